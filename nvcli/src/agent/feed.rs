//! What an agent meters, for those who would meter it themselves if there were none.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use nvcapture::{SourceStats, Timestamp};
use nvflow::{Endpoint, FlowRecord, MeterStats};
use nvnet::Netns;
use serde_json::Value;

use super::api::Looked;
use super::client::{Answer, Client, HASTE, PATIENCE, Waited, ask, socket};
use super::read::{Line, line};
use crate::events::Event;
use crate::exit::{CliError, Result};
use crate::health::Seen;

/// What an agent tells as it goes on.
#[derive(Debug)]
pub(crate) struct Feed {
    answer: Answer,
    part: Vec<u8>,
    pub(crate) pid: u64,
    lost_before: u64,
}

/// One thing that it tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// Of an open connection: what it has come to since its last record.
    Open(Box<FlowRecord>),
    /// A record was made.
    Record(Box<FlowRecord>),
    /// A look at all that is open is over.
    Looked(Box<Sums>),
    /// Nothing, in the time that was waited.
    Nothing,
    /// The agent has ended.
    Ended,
}

/// Totals of an agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    /// Connections that were not told of since the last one are gone.
    pub(crate) whole: bool,
    pub(crate) meter: MeterStats,
    pub(crate) source: SourceStats,
    pub(crate) seen: Vec<Seen>,
}

impl Feed {
    /// Begins to listen to the agent of `host`; `None` when none answers. `watch` says how often to tell of open connections.
    pub(crate) fn open(host: &Netns, watch: Option<Duration>) -> Result<Option<Self>> {
        let Some((pid, lost_before)) = status(host)? else {
            return Ok(None);
        };
        let path = match watch {
            None => "/v1/flows?open=false&follow=true".to_owned(),
            Some(every) => format!("/v1/flows?watch={}", every.as_millis().clamp(1, 60_000)),
        };
        Ok(ask(host, &path, PATIENCE).map(|answer| Self {
            answer,
            part: Vec::new(),
            pid,
            lost_before,
        }))
    }

    /// The next thing that it tells, if it tells one within `most`.
    pub(crate) fn next(&mut self, most: Duration) -> Result<Told> {
        loop {
            match self.answer.wait(&mut self.part, most)? {
                Waited::Nothing => return Ok(Told::Nothing),
                Waited::Ended => return Ok(Told::Ended),
                Waited::Line => {}
            }
            let part = std::mem::take(&mut self.part);
            if part.trim_ascii().is_empty() {
                continue;
            }
            return Ok(match line(&part).ok_or_else(no_record)? {
                Line::Record(Some(Event::Open | Event::Update), record)
                    if record.flow_end_reason.is_none() =>
                {
                    Told::Open(record)
                }
                Line::Record(_, record) => Told::Record(record),
                Line::Other(other) if other.get("event").is_some_and(|event| event == "totals") => {
                    let looked = serde_json::from_value(Value::Object(other));
                    Told::Looked(Box::new(Sums::new(looked.map_err(|_| no_record())?)))
                }
                Line::Other(_) => continue,
            });
        }
    }

    /// Records that the agent has not told since this one began, as somebody listened too slowly.
    pub(crate) fn lost(&self, host: &Netns) -> u64 {
        let now = status(host).ok().flatten();
        now.map_or(0, |(_, lost)| lost.saturating_sub(self.lost_before))
    }
}

/// The agent's process, and how many records those who listen have missed.
fn status(host: &Netns) -> Result<Option<(u64, u64)>> {
    // Nobody there is nothing to tell of.
    if Client::connect(&socket(), HASTE).ok().flatten().is_none() {
        return Ok(None);
    }
    let Some(answer) = ask(host, "/v1/status", HASTE) else {
        return Ok(None);
    };
    let lines = answer.all()?;
    let status: Value = lines
        .first()
        .and_then(|line| serde_json::from_str(line).ok())
        .ok_or_else(no_record)?;
    let number = |pointer| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    Ok(Some((
        number("/pid"),
        number("/lost/records_listener_slow"),
    )))
}

/// Whether there is one.
pub(crate) fn is_there(host: &Netns) -> bool {
    status(host).ok().flatten().is_some()
}

/// Connections that are open now, as an agent has them.
pub(crate) fn open(host: &Netns) -> Result<Vec<FlowRecord>> {
    let Some(answer) = ask(host, "/v1/flows", PATIENCE) else {
        return Ok(Vec::new());
    };
    let lines = answer.all()?;
    let read = |text: &String| match line(text.as_bytes()) {
        Some(Line::Record(_, record)) => Ok(*record),
        _ => Err(no_record()),
    };
    lines.iter().map(read).collect()
}

fn no_record() -> CliError {
    CliError::new("the agent tells what cannot be understood")
        .remedy("an agent of the same version as this nvcli; or --direct, which needs none")
}

impl Sums {
    fn new(looked: Looked) -> Self {
        let mut seen = Vec::new();
        for interface in looked.interfaces {
            let id = usize::from(interface.observation_point_id);
            if seen.len() <= id {
                seen.resize(id + 1, Seen::default());
            }
            seen[id] = Seen {
                frames: interface.frames,
                octets: interface.octets,
                partial: interface.partial_checksums,
                last: Timestamp::from_nanos(interface.last_microseconds.saturating_mul(1_000)),
            };
        }
        let (frames, lost) = (looked.frames, looked.lost);
        Self {
            whole: looked.whole,
            meter: MeterStats {
                frames: frames.read,
                metered: frames.metered,
                not_ip: frames.not_ip,
                unparsed: frames.unparsed,
                refused: frames.refused,
                opened: looked.connections.opened,
                connections: looked.connections.open,
                evicted_idle: looked.connections.evicted,
                ..MeterStats::default()
            },
            source: SourceStats {
                frames: frames.read,
                wire_octets: frames.octets,
                truncated: frames.cut,
                dropped: lost.frames_ring_full + lost.frames_unread,
                ..SourceStats::default()
            },
            seen,
        }
    }
}

/// What tells a connection from others that are open at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    ends: [Endpoint; 2],
    protocol: u8,
    icmp: Option<u16>,
    vlans: [Option<u16>; 2],
    network: Option<u32>,
    observation_point: Option<u16>,
}

impl Identity {
    fn of(record: &FlowRecord) -> Self {
        let mut ends = [record.source, record.destination];
        // Who began it can turn out to be the other one.
        ends.sort_unstable();
        Self {
            ends,
            protocol: record.protocol_identifier,
            icmp: record.icmp_type_code,
            vlans: [record.vlan_id, record.customer_vlan_id],
            network: record.tunnel.and_then(|tunnel| tunnel.id),
            observation_point: record.observation_point,
        }
    }
}

/// Open connections as they were last told of, each in a place that is its own as long as it is open.
#[derive(Debug, Default)]
pub(crate) struct Open {
    places: HashMap<Identity, u32>,
    rows: Vec<Option<(FlowRecord, u64)>>,
    free: Vec<u32>,
    round: u64,
}

impl Open {
    /// Takes what is told of an open connection; tells what that is to somebody who has heard of it before, if it is something new.
    pub(crate) fn put(&mut self, record: FlowRecord) -> Option<Event> {
        let packets = |record: &FlowRecord| record.forward.packets + record.reverse.packets;
        let round = self.round;
        match self.places.entry(Identity::of(&record)) {
            Entry::Occupied(place) => {
                let row = self.rows.get_mut(*place.get() as usize)?;
                let (before, _) = row.as_ref()?;
                let event = if before.flow_start != record.flow_start {
                    Some(Event::Open)
                } else {
                    (packets(before) != packets(&record)).then_some(Event::Update)
                };
                *row = Some((record, round));
                event
            }
            Entry::Vacant(place) => {
                let at = self.free.pop().unwrap_or_else(|| {
                    self.rows.push(None);
                    (self.rows.len() - 1) as u32
                });
                place.insert(at);
                if let Some(row) = self.rows.get_mut(at as usize) {
                    *row = Some((record, round));
                }
                Some(Event::Open)
            }
        }
    }

    /// Forgets a connection that is over, unless another one has taken its place since.
    pub(crate) fn end(&mut self, last: &FlowRecord) {
        let identity = Identity::of(last);
        let Some(&at) = self.places.get(&identity) else {
            return;
        };
        let is_that = self.rows.get(at as usize).is_some_and(|row| {
            row.as_ref()
                .is_some_and(|(record, _)| record.flow_start <= last.flow_end)
        });
        if is_that {
            self.places.remove(&identity);
            self.clear(at);
        }
    }

    fn clear(&mut self, at: u32) {
        if let Some(row) = self.rows.get_mut(at as usize) {
            *row = None;
            self.free.push(at);
        }
    }

    /// A look is over; when it was a `whole` one, what was not told of since the last one is gone.
    pub(crate) fn looked(&mut self, whole: bool) {
        if whole {
            let round = self.round;
            let rows = (0_u32..).zip(&self.rows);
            let gone: Vec<(u32, Identity)> = rows
                .filter_map(|(at, row)| Some((at, row.as_ref()?)))
                .filter(|(_, (_, told))| *told < round)
                .map(|(at, (record, _))| (at, Identity::of(record)))
                .collect();
            for (at, identity) in gone {
                self.places.remove(&identity);
                self.clear(at);
            }
        }
        self.round += 1;
    }

    /// All of them, each with its place.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u32, &FlowRecord)> {
        let rows = (0_u32..).zip(&self.rows);
        rows.filter_map(|(at, row)| Some((at, &row.as_ref()?.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(port: u16, start: u64, packets: u64) -> FlowRecord {
        let text = format!(
            r#"{{"flowStartMicroseconds":{start},"flowEndMicroseconds":{},"sourceIPv4Address":"192.0.2.1","destinationIPv4Address":"192.0.2.2","sourceTransportPort":{port},"destinationTransportPort":80,"protocolIdentifier":6,"packetDeltaCount":{packets}}}"#,
            start + packets
        );
        match line(text.as_bytes()) {
            Some(Line::Record(None, record)) => *record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn connections_keep_their_place_as_long_as_they_are_open() {
        let mut open = Open::default();
        let places = |open: &Open| -> Vec<(u32, u16)> {
            open.rows().map(|(at, row)| (at, row.source.port)).collect()
        };
        assert_eq!(open.put(record(1, 100, 5)), Some(Event::Open));
        assert_eq!(open.put(record(2, 100, 5)), Some(Event::Open));
        open.looked(true);
        // The same again is nothing new.
        assert_eq!(open.put(record(1, 100, 5)), None);
        assert_eq!(open.put(record(1, 100, 7)), Some(Event::Update));
        assert_eq!(places(&open), [(0, 1), (1, 2)]);
        open.looked(false);
        assert_eq!(places(&open).len(), 2);
        // Ended, and another one begun with the same ends before that was told: it stays.
        assert_eq!(open.put(record(1, 900, 1)), Some(Event::Open));
        open.end(&record(1, 100, 9));
        assert_eq!(places(&open), [(0, 1), (1, 2)]);
        open.end(&record(1, 900, 3));
        assert_eq!(places(&open), [(1, 2)]);
        assert_eq!(open.put(record(3, 950, 1)), Some(Event::Open));
        assert_eq!(places(&open), [(0, 3), (1, 2)]);
        // The end of 2 was lost: the next whole look does not tell of it.
        assert_eq!(open.put(record(3, 950, 1)), None);
        open.looked(true);
        assert_eq!(places(&open), [(0, 3)]);
        // The other way round is the same connection.
        let mut turned = record(3, 950, 2);
        std::mem::swap(&mut turned.source, &mut turned.destination);
        assert_eq!(open.put(turned), Some(Event::Update));
        assert_eq!(open.rows().count(), 1);
    }
}
