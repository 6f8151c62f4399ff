//! Frames in, records out.

use std::collections::HashMap;
use std::ops::ControlFlow;

use nvcapture::wire::{Headers, WireError};
use nvcapture::{Frame, Timestamp};

use crate::{
    Direction, Error, FlowEndReason, FlowKey, FlowRecord, Labels, MeterConfig, MeterStats, Side,
    Sink,
};

/// Meters frames into connections.
#[derive(Debug)]
pub struct Meter {
    config: MeterConfig,
    stats: MeterStats,
    open: HashMap<FlowKey, (FlowRecord, Direction)>,
}

impl Meter {
    /// A meter with an empty table.
    pub fn new(config: MeterConfig) -> Result<Self, Error> {
        Ok(Self {
            config,
            stats: MeterStats::default(),
            open: HashMap::new(),
        })
    }

    /// Meters `frames`, oldest first; records of connections that ended meanwhile go to `sink`.
    ///
    /// All frames are metered, whatever the sink says: what it does not take is counted as undelivered.
    pub fn observe<'f, S: Sink>(
        &mut self,
        frames: impl IntoIterator<Item = Frame<'f>>,
        _sink: &mut S,
    ) -> Result<ControlFlow<()>, S::Error> {
        for frame in frames {
            self.stats.frames += 1;
            let headers = match Headers::parse(&frame) {
                Ok(headers) => headers,
                Err(WireError::NotIp { .. }) => {
                    self.stats.not_ip += 1;
                    continue;
                }
                Err(_) => {
                    self.stats.unparsed += 1;
                    continue;
                }
            };
            self.stats.metered += 1;
            let (key, direction) = FlowKey::of(&headers, None, self.config.vlan_in_key);
            let (low, high) = key.ends();
            let (source, destination) = if direction == Direction::Up {
                (low, high)
            } else {
                (high, low)
            };
            let (record, initiator) = self.open.entry(key).or_insert_with(|| {
                let record = FlowRecord {
                    flow_start: frame.timestamp(),
                    flow_end: frame.timestamp(),
                    source,
                    destination,
                    protocol_identifier: key.protocol(),
                    has_ports: key.has_ports(),
                    icmp_type_code: key.icmp_type_code(),
                    vlan_id: key.vlan_id(),
                    observation_point: key.observation_point(),
                    vantage: None,
                    forward: Side::default(),
                    reverse: Side::default(),
                    flow_end_reason: None,
                    tcp: None,
                    tunnel: None,
                    labels: Labels::default(),
                };
                (record, direction)
            });
            record.flow_end = frame.timestamp();
            let side = if direction == *initiator {
                &mut record.forward
            } else {
                &mut record.reverse
            };
            side.packets += 1;
            side.octets += u64::from(headers.ip_octets);
            side.layer2_octets += u64::from(frame.wire_len());
            side.payload_octets += u64::from(headers.payload_octets);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Makes the records of connections that have been idle for too long at the time `now`, without a frame that tells it.
    pub fn expire<S: Sink>(
        &mut self,
        _now: Timestamp,
        _sink: &mut S,
    ) -> Result<ControlFlow<()>, S::Error> {
        Ok(ControlFlow::Continue(()))
    }

    /// Makes the records of all connections, which leaves the table empty.
    pub fn finish<S: Sink>(&mut self, sink: &mut S) -> Result<ControlFlow<()>, S::Error> {
        for (_, (mut record, _)) in self.open.drain() {
            record.flow_end_reason = Some(FlowEndReason::ForcedEnd);
            if sink.record(&record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Calls `visit` with every open connection, as it stands now; stops when told to.
    pub fn open(&self, mut visit: impl FnMut(&FlowRecord) -> ControlFlow<()>) -> ControlFlow<()> {
        self.open.values().try_for_each(|(record, _)| visit(record))
    }

    /// What was done so far.
    pub fn stats(&self) -> MeterStats {
        self.stats
    }
}
