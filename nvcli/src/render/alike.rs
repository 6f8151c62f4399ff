//! Records of a flood or a scan: each tells of another pair of ends, and all of them of the same one packet.
//!
//! What such a record says behind its ends is copied from a line before, where it is the same, and not made again.

use nvflow::{Columns, Field, FlowRecord, Value};

use crate::render::gather::Line;

/// The last field that is not of the rest: whose ends they are, and when.
const LAST_OF_ENDS: usize = Field::DestinationPort as usize;

/// When a record that might be the first of many is kept: not each, since many may be of as many kinds.
const TURNS: u8 = 8;

/// What the last record that was kept says behind its ends, as it was written.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    record: FlowRecord,
    text: Vec<u8>,
    turn: u8,
}

impl Rest {
    /// Writes `record` by `columns`, which puts it into a line.
    #[inline(always)]
    pub(crate) fn write<'r, 'l, C>(&mut self, record: &'r FlowRecord, mut columns: C) -> C
    where
        C: Columns<'r> + AsMut<Line<'l>>,
    {
        record.columns(&mut Part::<false, _>(&mut columns));
        // Whatever numbers an agent tells: what is alike is compared in all of them.
        let is_single = record.forward.packets.wrapping_add(record.reverse.packets) == 1;
        if is_single && !self.text.is_empty() && is_alike(record, &self.record) {
            columns.as_mut().octets(&self.text);
            return columns;
        }
        let mark = columns.as_mut().mark();
        let mut columns = others(record, columns);
        if is_single {
            self.turn = (self.turn + 1) % TURNS;
            if self.turn == 1
                && let Some(text) = columns.as_mut().since(mark)
            {
                self.keep(record, text);
            }
        }
        columns
    }

    #[cold]
    fn keep(&mut self, record: &FlowRecord, text: &[u8]) {
        self.record = record.clone();
        self.text.clear();
        self.text.extend_from_slice(text);
    }
}

/// Writes what is behind the ends. In a function of its own, so that nothing of it is made ready where it is not wanted.
#[inline(never)]
fn others<'r, C: Columns<'r>>(record: &'r FlowRecord, mut columns: C) -> C {
    record.columns(&mut Part::<true, _>(&mut columns));
    columns
}

/// Whether two records differ in nothing but their ends and their times.
fn is_alike(a: &FlowRecord, b: &FlowRecord) -> bool {
    // All of them named, so that none is forgotten.
    let FlowRecord {
        flow_start: _,
        flow_end: _,
        source: _,
        destination: _,
        protocol_identifier,
        has_ports: _,
        icmp_type_code,
        vlan_id,
        observation_point,
        vantage,
        forward,
        reverse,
        flow_end_reason,
        tcp,
        tunnel,
        application,
        labels,
    } = a;
    *forward == b.forward
        && *reverse == b.reverse
        && *tcp == b.tcp
        && *protocol_identifier == b.protocol_identifier
        && *icmp_type_code == b.icmp_type_code
        && *vlan_id == b.vlan_id
        && *observation_point == b.observation_point
        && *vantage == b.vantage
        && *flow_end_reason == b.flow_end_reason
        && *tunnel == b.tunnel
        && *application == b.application
        && *labels == b.labels
}

/// The fields that tell whose ends they are, and when, or all others.
struct Part<'a, const REST: bool, C>(&'a mut C);

impl<'r, const REST: bool, C: Columns<'r>> Columns<'r> for Part<'_, REST, C> {
    #[inline(always)]
    fn column(&mut self, field: Field, value: Option<Value<'r>>) {
        if (field as usize > LAST_OF_ENDS) == REST {
            self.0.column(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use nvcapture::Timestamp;
    use nvcapture::wire::{Tunnel, TunnelKind};
    use nvflow::{
        Application, FlowEndReason, Labels, Side, TcpRecord, TcpSide, TcpState, Vantage,
        WorkloadDetails,
    };

    use super::*;
    use crate::events::Event;
    use crate::render::flows::{Csv, Json, Lines};

    fn syn() -> FlowRecord {
        FlowRecord {
            protocol_identifier: 6,
            has_ports: true,
            forward: Side {
                packets: 1,
                octets: 60,
                layer2_octets: 74,
                payload_octets: 0,
                tcp_control_bits: 2,
                minimum_ttl: 64,
                maximum_ttl: 64,
                dscp: 0,
            },
            flow_end_reason: Some(FlowEndReason::LackOfResources),
            tcp: Some(TcpRecord {
                state: TcpState::SynSent,
                server_handshake_rtt_micros: None,
                client_handshake_rtt_micros: None,
                forward: TcpSide::default(),
                reverse: TcpSide::default(),
            }),
            application: Some(Arc::default()),
            labels: Labels {
                workload: Some("web".into()),
                ..Labels::default()
            },
            ..FlowRecord::default()
        }
    }

    /// What changes a record, each in another of the fields behind its ends.
    const CHANGES: &[fn(&mut FlowRecord)] = &[
        |record| record.protocol_identifier = 17,
        |record| record.icmp_type_code = Some(0),
        |record| record.vlan_id = Some(0),
        |record| record.observation_point = Some(0),
        |record| record.vantage = Some(Vantage::Ingress),
        |record| std::mem::swap(&mut record.forward, &mut record.reverse),
        |record| record.forward.packets = 2,
        |record| (record.forward.packets, record.reverse.packets) = (u64::MAX, 2),
        |record| record.forward.octets = 61,
        |record| record.forward.layer2_octets = 75,
        |record| record.forward.payload_octets = 1,
        |record| record.forward.tcp_control_bits = 3,
        |record| record.forward.minimum_ttl = 63,
        |record| record.forward.maximum_ttl = 65,
        |record| record.forward.dscp = 1,
        |record| record.reverse.octets = 1,
        |record| record.reverse.layer2_octets = 1,
        |record| record.reverse.payload_octets = 1,
        |record| record.reverse.tcp_control_bits = 1,
        |record| record.flow_end_reason = None,
        |record| record.tcp = None,
        |record| tcp(record).state = TcpState::Closed,
        |record| tcp(record).server_handshake_rtt_micros = Some(0),
        |record| tcp(record).client_handshake_rtt_micros = Some(0),
        |record| tcp(record).forward.smoothed_rtt_micros = Some(0),
        |record| tcp(record).forward.retransmitted_segments = 1,
        |record| tcp(record).forward.out_of_order_segments = 1,
        |record| tcp(record).forward.duplicate_acks = 1,
        |record| tcp(record).forward.zero_windows = 1,
        |record| tcp(record).reverse.smoothed_rtt_micros = Some(0),
        |record| tcp(record).reverse.retransmitted_segments = 1,
        |record| tcp(record).reverse.out_of_order_segments = 1,
        |record| tcp(record).reverse.duplicate_acks = 1,
        |record| tcp(record).reverse.zero_windows = 1,
        |record| {
            record.tunnel = Some(Tunnel {
                kind: TunnelKind::Vxlan,
                id: None,
                source: record.source.address,
                destination: record.source.address,
            });
        },
        |record| record.application = None,
        |record| {
            record.application = Some(Arc::new(Application {
                registered: Some("https"),
                ..Application::default()
            }));
        },
        |record| record.labels.workload = Some("database".into()),
        |record| record.labels.peer_workload = Some("web".into()),
        |record| record.labels.interface = Some("eth0".into()),
        |record| record.labels.network = Some("bridge".into()),
        |record| record.labels.details = details(),
        |record| record.labels.peer_details = details(),
        |record| record.labels.source_domain = Some("a.example".into()),
        |record| record.labels.destination_domain = Some("b.example".into()),
    ];

    fn tcp(record: &mut FlowRecord) -> &mut TcpRecord {
        record.tcp.as_mut().expect("TCP")
    }

    fn details() -> Option<Arc<WorkloadDetails>> {
        Some(Arc::new(WorkloadDetails {
            image: Some("image".into()),
            ..WorkloadDetails::default()
        }))
    }

    /// Records as they come in a flood, each with other ends, and in their midst one of another kind.
    fn flood(usual: &FlowRecord, other: &FlowRecord) -> Vec<FlowRecord> {
        (0..12_u16)
            .map(|turn| {
                let mut record = if turn == 10 { other } else { usual }.clone();
                let number = 1_111 * u64::from(turn);
                record.flow_start = Timestamp::from_nanos(number);
                record.flow_end = Timestamp::from_nanos(3 * number);
                for (end, turn) in [(&mut record.source, turn), (&mut record.destination, !turn)] {
                    end.port = turn.wrapping_mul(1_111);
                    end.address = if turn % 3 == 0 {
                        IpAddr::from([turn; 8])
                    } else {
                        IpAddr::from([turn as u8; 4])
                    };
                }
                record.has_ports = turn % 5 != 0;
                record
            })
            .collect()
    }

    fn json(records: &[FlowRecord]) -> String {
        let mut out = Vec::new();
        write(&mut Json::new(&mut out), records);
        String::from_utf8(out).expect("text")
    }

    fn csv(records: &[FlowRecord]) -> String {
        let mut out = Vec::new();
        write(&mut Csv::new(&mut out, false), records);
        String::from_utf8(out).expect("text")
    }

    fn write(lines: &mut impl Lines, records: &[FlowRecord]) {
        for record in records {
            lines.record(record).expect("memory");
        }
        lines.flush().expect("memory");
    }

    #[test]
    fn what_is_copied_is_what_would_be_made() {
        let base = syn();
        for (place, change) in CHANGES.iter().enumerate() {
            let mut changed = base.clone();
            change(&mut changed);
            for records in [flood(&base, &changed), flood(&changed, &base)] {
                // A writer that has written nothing before copies nothing.
                for write in [json, csv] {
                    let alone: String = records.chunks(1).map(write).collect();
                    assert_eq!(write(&records), alone, "change {place}");
                }
            }
        }
    }

    #[test]
    fn what_happened_stands_before_it_and_is_not_copied() {
        let records = flood(&syn(), &syn());
        let told = |records: &[FlowRecord], event: Option<Event>| {
            let mut out = Vec::new();
            let mut lines = Json::new(&mut out);
            for (place, record) in records.iter().enumerate() {
                if place % 4 == 2
                    && let Some(event) = event
                {
                    lines.tell(event);
                }
                lines.record(record).expect("memory");
            }
            lines.flush().expect("memory");
            drop(lines);
            String::from_utf8(out).expect("text")
        };
        let (plain, ended) = (told(&records, None), told(&records, Some(Event::End)));
        let begun = format!("{{\"event\":\"{}\",", Event::End.name());
        assert!(
            plain
                .lines()
                .zip(ended.lines())
                .enumerate()
                .all(|(place, (plain, ended))| match plain.strip_prefix('{') {
                    Some(rest) if place >= 2 => ended.strip_prefix(&begun) == Some(rest),
                    _ => ended == plain,
                })
        );
        assert_eq!(ended.lines().count(), records.len());
    }

    #[test]
    fn what_was_put_aside_is_not_kept() {
        let mut long = syn();
        long.labels.workload = Some("x".repeat(9_000).into());
        // Behind it comes more than stands before.
        long.labels.interface = Some("y".repeat(900).into());
        let records = flood(&long, &syn());
        for write in [json, csv] {
            let alone: String = records.chunks(1).map(write).collect();
            assert_eq!(write(&records), alone);
        }
    }

    #[test]
    fn a_flood_is_alike_and_nothing_else() {
        let base = syn();
        let mut other = base.clone();
        other.source.address = [10, 0, 0, 1].into();
        other.destination.port = 80;
        other.flow_start = Timestamp::from_nanos(1);
        other.application = Some(Arc::default());
        assert!(is_alike(&other, &base));
        for (place, change) in CHANGES.iter().enumerate() {
            let mut changed = base.clone();
            change(&mut changed);
            assert!(!is_alike(&changed, &base), "change {place}");
            assert!(!is_alike(&base, &changed), "change {place}");
        }
    }
}
