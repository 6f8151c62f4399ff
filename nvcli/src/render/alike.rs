//! What records say as others before them did, copied and not made again.
//!
//! Two runs of fields repeat: how connections went, as there are few ways to, and the rest, which is most of the time nothing but whose connection
//! it was. Of a flood or a scan everything does but the ends: each record tells of others, and all of them of the same one packet.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use nvcapture::wire::protocol;
use nvflow::{
    Application, Columns, Field, FlowRecord, Labels, Side, TcpRecord, TcpSide, Value, Vantage,
};

use crate::render::gather::Line;

/// Texts that are kept of each.
const KEPT: usize = 16;
/// One that was not there is kept at one of so many turns: where each is another, keeping them all would cost more than making them.
const TURNS: u8 = 4;

/// The texts of what repeats that were written before, in lines of one kind.
#[derive(Debug, Default)]
pub(crate) struct Alike {
    singles: Kept<Single>,
    ways: Kept<Way>,
    rests: Kept<Rest>,
}

impl Alike {
    /// Writes `record` by `columns`, which puts it into a line.
    #[inline(always)]
    pub(crate) fn write<'r, 'l, C>(&mut self, record: &'r FlowRecord, mut columns: C) -> C
    where
        C: Columns<'r> + AsMut<Line<'l>>,
    {
        record.columns(&mut Part::<Ends, _>::of(&mut columns));
        if let Some(text) = self.singles.of(record) {
            columns.as_mut().octets(text);
            return columns;
        }
        let single = columns.as_mut().mark();
        record.columns(&mut Part::<Amounts, _>::of(&mut columns));
        columns = self.ways.write(record, columns);
        record.columns(&mut Part::<Times, _>::of(&mut columns));
        columns = self.rests.write(record, columns);
        self.singles.keep(record, columns.as_mut().since(single));
        columns
    }
}

/// The last texts of something that repeats.
#[derive(Debug)]
struct Kept<R> {
    texts: [(Option<R>, Vec<u8>); KEPT],
    turn: u8,
}

impl<R> Default for Kept<R> {
    fn default() -> Self {
        Self {
            texts: [const { (None, Vec::new()) }; KEPT],
            turn: 0,
        }
    }
}

impl<R: Repeats> Kept<R> {
    /// The text of `record`, if there is one.
    #[inline(always)]
    fn of(&self, record: &FlowRecord) -> Option<&[u8]> {
        if !R::may_repeat(record) {
            return None;
        }
        let (of, text) = &self.texts[R::place(record) % KEPT];
        of.as_ref()
            .is_some_and(|of| of.is_of(record))
            .then_some(&**text)
    }

    /// Keeps what was `made` of `record`, at some turns.
    #[inline(never)]
    fn keep(&mut self, record: &FlowRecord, made: Option<&[u8]>) {
        if !R::may_repeat(record) {
            return;
        }
        self.turn = (self.turn + 1) % TURNS;
        if self.turn == 1
            && let Some(made) = made
        {
            let (of, text) = &mut self.texts[R::place(record) % KEPT];
            *of = Some(R::of(record));
            text.clear();
            text.extend_from_slice(made);
        }
    }
}

impl<R: Repeats + Run> Kept<R> {
    /// Writes the run of `record`, copied where it is kept.
    #[inline(always)]
    fn write<'r, 'l, C>(&mut self, record: &'r FlowRecord, mut columns: C) -> C
    where
        C: Columns<'r> + AsMut<Line<'l>>,
    {
        if let Some(text) = self.of(record) {
            columns.as_mut().octets(text);
            return columns;
        }
        let mark = columns.as_mut().mark();
        let mut columns = make::<R, _>(record, columns);
        self.keep(record, columns.as_mut().since(mark));
        columns
    }
}

/// Writes a run. In a function of its own, so that nothing of it is made ready where it is not wanted.
#[inline(never)]
fn make<'r, R: Run, C: Columns<'r>>(record: &'r FlowRecord, mut columns: C) -> C {
    record.columns(&mut Part::<R, _>::of(&mut columns));
    columns
}

/// Fields that stand beside each other.
trait Run {
    /// Their numbers.
    const FIELDS: Range<usize>;
}

/// What many records tell the same of.
trait Repeats {
    /// Whether what it is told apart by holds all that the text of `record` depends on: of others none is kept or copied.
    fn may_repeat(record: &FlowRecord) -> bool;
    /// Where it is kept, modulo [`KEPT`].
    fn place(record: &FlowRecord) -> usize;
    /// What tells whether another record's is the same.
    fn of(record: &FlowRecord) -> Self;
    /// Whether that of `record` is the same.
    fn is_of(&self, record: &FlowRecord) -> bool;
}

/// The fields of a run.
struct Part<'a, R, C>(&'a mut C, PhantomData<R>);

impl<'a, R, C> Part<'a, R, C> {
    #[inline(always)]
    const fn of(columns: &'a mut C) -> Self {
        Self(columns, PhantomData)
    }
}

impl<'r, R: Run, C: Columns<'r>> Columns<'r> for Part<'_, R, C> {
    #[inline(always)]
    fn column(&mut self, field: Field, value: Option<Value<'r>>) {
        if R::FIELDS.contains(&(field as usize)) {
            self.0.column(field, value);
        }
    }
}

/// Between whom a connection was, and when.
struct Ends;

impl Run for Ends {
    const FIELDS: Range<usize> = 0..Amounts::FIELDS.start;
}

/// Of what kind it was, and how much.
struct Amounts;

impl Run for Amounts {
    const FIELDS: Range<usize> = Field::Protocol as usize..Way::FIELDS.start;
}

/// How it went: control bits, times to live, code points, state, and why it ended.
#[derive(Debug, PartialEq, Eq)]
struct Way([u64; 2]);

impl Run for Way {
    const FIELDS: Range<usize> = Field::ControlBits as usize..Times::FIELDS.start;
}

impl Repeats for Way {
    #[inline(always)]
    fn may_repeat(_: &FlowRecord) -> bool {
        true
    }

    #[inline(always)]
    fn place(record: &FlowRecord) -> usize {
        spread(Self::of(record).0)
    }

    #[inline(always)]
    fn of(record: &FlowRecord) -> Self {
        let side = |side: &Side| {
            // All of them named, so that none is forgotten.
            let Side {
                packets,
                octets: _,
                layer2_octets: _,
                payload_octets: _,
                tcp_control_bits,
                minimum_ttl,
                maximum_ttl,
                dscp,
            } = *side;
            u64::from(tcp_control_bits)
                | u64::from(minimum_ttl) << 16
                | u64::from(maximum_ttl) << 24
                | u64::from(dscp) << 32
                // Of who sent nothing, nothing is told.
                | u64::from(packets > 0) << 40
        };
        let reason = record.flow_end_reason.map_or(0, |reason| reason as u64);
        let state = record.tcp.as_ref().map_or(0, |tcp| 1 + tcp.state as u64);
        let is_tcp = record.protocol_identifier == protocol::TCP;
        Self([
            side(&record.forward) | reason << 48 | u64::from(is_tcp) << 63,
            side(&record.reverse) | state << 48,
        ])
    }

    #[inline(always)]
    fn is_of(&self, record: &FlowRecord) -> bool {
        *self == Self::of(record)
    }
}

/// How long it took to come and go.
struct Times;

impl Run for Times {
    const FIELDS: Range<usize> = Field::HandshakeRtt as usize..Rest::FIELDS.start;
}

/// What went wrong in it, out of which tunnel it came, whose it was and what it spoke: where nothing did, and it came out of none.
#[derive(Debug)]
struct Rest {
    has_tcp: bool,
    vantage: Option<Vantage>,
    application: Option<Arc<Application>>,
    labels: Labels,
}

impl Run for Rest {
    const FIELDS: Range<usize> = Field::Retransmitted as usize..Field::ALL.len();
}

impl Repeats for Rest {
    #[inline(always)]
    fn may_repeat(record: &FlowRecord) -> bool {
        record.tunnel.is_none() && !record.tcp.as_ref().is_some_and(has_events)
    }

    #[inline(always)]
    fn place(record: &FlowRecord) -> usize {
        let labels = &record.labels;
        let whose = address(&labels.workload) ^ address(&labels.peer_workload).rotate_left(1);
        let what = address(&record.application).rotate_left(2);
        let of_tcp = usize::from(record.tcp.is_some());
        let vantage = record.vantage.map_or(0, |vantage| 1 + vantage as usize);
        // What is allocated begins at multiples of 16.
        (whose ^ what) >> 4 ^ of_tcp ^ vantage << 1
    }

    #[cold]
    fn of(record: &FlowRecord) -> Self {
        Self {
            has_tcp: record.tcp.is_some(),
            vantage: record.vantage,
            application: record.application.clone(),
            labels: record.labels.clone(),
        }
    }

    /// Of what is shared it is compared where that lies: as long as it is kept here, nothing else can be there.
    #[inline(always)]
    fn is_of(&self, record: &FlowRecord) -> bool {
        // All of them named, so that none is forgotten.
        let Labels {
            workload,
            peer_workload,
            interface,
            network,
            details,
            peer_details,
            source_domain,
            destination_domain,
        } = &self.labels;
        let of = &record.labels;
        self.has_tcp == record.tcp.is_some()
            && self.vantage == record.vantage
            && is_same(&self.application, &record.application)
            && is_same(workload, &of.workload)
            && is_same(peer_workload, &of.peer_workload)
            && is_same(interface, &of.interface)
            && is_same(network, &of.network)
            && is_same(details, &of.details)
            && is_same(peer_details, &of.peer_details)
            && is_same(source_domain, &of.source_domain)
            && is_same(destination_domain, &of.destination_domain)
    }
}

/// All but the ends of a connection of one packet.
#[derive(Debug)]
struct Single {
    kind: Kind,
    amounts: [u64; 2],
    way: Way,
    rest: Rest,
}

/// What it is told apart by beside its ends: protocol, ICMP's type and code, both VLANs, observation point.
type Kind = (u8, [Option<u16>; 4]);

impl Single {
    /// The most octets that are [told](Self::amounts) of one.
    const MOST: u64 = 0xffff;

    #[inline(always)]
    const fn kind(record: &FlowRecord) -> Kind {
        let numbers = [
            record.icmp_type_code,
            record.vlan_id,
            record.customer_vlan_id,
            record.observation_point,
        ];
        (record.protocol_identifier, numbers)
    }

    #[inline(always)]
    fn amounts(record: &FlowRecord) -> [u64; 2] {
        [&record.forward, &record.reverse].map(|side| {
            side.packets << 48 | side.octets << 32 | side.layer2_octets << 16 | side.payload_octets
        })
    }
}

impl Repeats for Single {
    #[inline(always)]
    fn may_repeat(record: &FlowRecord) -> bool {
        let any = |side: &Side| side.octets | side.layer2_octets | side.payload_octets;
        let (forward, reverse) = (record.forward.packets, record.reverse.packets);
        (forward | reverse == 1)
            & (forward != reverse)
            & ((any(&record.forward) | any(&record.reverse)) <= Self::MOST)
            && !record.tcp.as_ref().is_some_and(has_times)
            && Rest::may_repeat(record)
    }

    #[inline(always)]
    fn place(record: &FlowRecord) -> usize {
        Way::place(record)
    }

    #[cold]
    fn of(record: &FlowRecord) -> Self {
        // All of them named, so that none is forgotten: what is told here, with the ends, or by the runs that a single one consists of.
        let FlowRecord {
            flow_start: _,
            flow_end: _,
            source: _,
            destination: _,
            protocol_identifier: _,
            has_ports: _,
            icmp_type_code: _,
            vlan_id: _,
            customer_vlan_id: _,
            observation_point: _,
            vantage: _,
            forward: _,
            reverse: _,
            flow_end_reason: _,
            tcp: _,
            tunnel: _,
            application: _,
            labels: _,
        } = record;
        Self {
            kind: Self::kind(record),
            amounts: Self::amounts(record),
            way: Way::of(record),
            rest: Rest::of(record),
        }
    }

    #[inline(always)]
    fn is_of(&self, record: &FlowRecord) -> bool {
        self.amounts == Self::amounts(record)
            && self.way.is_of(record)
            && self.kind == Self::kind(record)
            && self.rest.is_of(record)
    }
}

/// A number below [`KEPT`] that depends on all of both words.
#[inline(always)]
const fn spread([a, b]: [u64; 2]) -> usize {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    ((a ^ b.rotate_left(7)).wrapping_mul(FACTOR) >> (u64::BITS - KEPT.ilog2())) as usize
}

/// Where it lies; 0 for nothing.
#[inline(always)]
fn address<T: ?Sized>(of: &Option<Arc<T>>) -> usize {
    of.as_deref().map_or(0, |it| std::ptr::from_ref(it).addr())
}

#[inline(always)]
fn is_same<T: ?Sized>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
    address(a) == address(b)
}

/// Whether it is known how long anything took.
#[inline(always)]
fn has_times(tcp: &TcpRecord) -> bool {
    // All of them named, so that none is forgotten.
    let TcpRecord {
        state: _,
        server_handshake_rtt_micros,
        client_handshake_rtt_micros,
        forward,
        reverse,
    } = tcp;
    let handshake = [*server_handshake_rtt_micros, *client_handshake_rtt_micros];
    let smoothed = [forward, reverse].map(|side| side.smoothed_rtt_micros);
    handshake.iter().chain(&smoothed).any(Option::is_some)
}

/// Whether a segment of either side did anything but carry on.
#[inline(always)]
fn has_events(tcp: &TcpRecord) -> bool {
    let of = |side: &TcpSide| {
        // All of them named, so that none is forgotten.
        let TcpSide {
            smoothed_rtt_micros: _,
            retransmitted_segments,
            out_of_order_segments,
            duplicate_acks,
            zero_windows,
        } = *side;
        retransmitted_segments | out_of_order_segments | duplicate_acks | zero_windows
    };
    of(&tcp.forward) | of(&tcp.reverse) != 0
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use nvcapture::Timestamp;
    use nvcapture::wire::{Tunnel, TunnelKind};
    use nvflow::{FlowEndReason, TcpState, WorkloadDetails};

    use super::*;
    use crate::events::Event;
    use crate::render::flows::{Csv, Json, Lines};
    use crate::render::gather::Gather;

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
        |record| record.protocol_identifier = 47,
        |record| record.icmp_type_code = Some(0),
        |record| record.vlan_id = Some(0),
        |record| record.customer_vlan_id = Some(0),
        |record| record.observation_point = Some(0),
        |record| record.vantage = Some(Vantage::Ingress),
        |record| std::mem::swap(&mut record.forward, &mut record.reverse),
        |record| record.forward.packets = 2,
        |record| (record.forward.packets, record.reverse.packets) = (u64::MAX, 2),
        |record| (record.forward.packets, record.reverse.packets) = (1, 1),
        |record| record.forward.octets = 61,
        |record| record.forward.layer2_octets = 75,
        |record| record.forward.octets |= 1 << 16,
        |record| record.forward.layer2_octets |= 1 << 16,
        |record| record.forward.payload_octets |= 1 << 16,
        |record| {
            record.reverse.packets = 1;
            record.reverse.minimum_ttl = 1;
        },
        |record| {
            record.reverse.packets = 1;
            record.reverse.maximum_ttl = 1;
        },
        |record| {
            record.reverse.packets = 1;
            record.reverse.dscp = 1;
        },
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
    fn what_is_kept_gives_way_to_what_comes() {
        // More ways, rests and single ones than are kept, each a few times, and no two rests with what they share where others had it.
        let record = |number: u16| {
            let mut record = syn();
            record.forward.dscp = (number / 7 % 40) as u8;
            record.forward.packets = 1 + u64::from(number % 3 / 2);
            record.labels.workload = Some(format!("workload {}", number / 9 % 30).into());
            record
        };
        for write in [json, csv] {
            let mut shared: Vec<FlowRecord> = Vec::new();
            for number in 0..1_000 {
                let mut next = record(number);
                if let Some(last) = shared.last()
                    && last.labels.workload == next.labels.workload
                {
                    next.labels = last.labels.clone();
                }
                shared.push(next);
            }
            let alone: String = shared.chunks(1).map(write).collect();
            assert_eq!(write(&shared), alone);
        }
    }

    #[test]
    fn what_was_shared_is_not_taken_for_what_lies_there_later() {
        let mut lines = Json::new(Vec::new());
        let mut alone = String::new();
        for number in 0..500 {
            // Gone after it was written.
            let mut record = syn();
            record.labels.workload = Some(format!("{number:03}").into());
            lines.record(&record).expect("memory");
            alone += &json(std::slice::from_ref(&record));
        }
        lines.flush().expect("memory");
        assert_eq!(lines.out_mut(), alone.as_bytes());
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

    /// Writes `record` with what `alike` keeps.
    fn with(alike: &mut Alike, record: &FlowRecord) -> String {
        let mut out = Vec::new();
        let mut gather = Gather::new(&mut out);
        let made = alike.write(record, Names(gather.begin())).0.end();
        gather.take(made).expect("memory");
        gather.flush().expect("memory");
        drop(gather);
        String::from_utf8(out).expect("text")
    }

    /// Puts down which fields there are.
    struct Names<'l>(Line<'l>);

    impl<'l> AsMut<Line<'l>> for Names<'l> {
        fn as_mut(&mut self) -> &mut Line<'l> {
            &mut self.0
        }
    }

    impl<'r> Columns<'r> for Names<'_> {
        fn column(&mut self, field: Field, value: Option<Value<'r>>) {
            if value.is_some() {
                self.0.text(field.name());
                self.0.text(" ");
            }
        }
    }

    #[test]
    fn what_was_written_before_is_copied() {
        let base = syn();
        // What is kept is marked, so that it can be told what was copied.
        let copied = |record: &FlowRecord| {
            let mut alike = Alike::default();
            with(&mut alike, &base);
            fn mark<R>(kept: &mut Kept<R>, text: &[u8]) {
                for (_, kept) in &mut kept.texts {
                    kept.splice(.., text.iter().copied());
                }
            }
            mark(&mut alike.singles, b"SINGLE");
            mark(&mut alike.ways, b"WAY");
            mark(&mut alike.rests, b"REST");
            let made = with(&mut alike, record);
            ["SINGLE", "WAY", "REST"].map(|mark| made.contains(mark))
        };
        assert_eq!(copied(&base), [true, false, false]);
        // The same told by others.
        let mut other = base.clone();
        other.source.address = [10, 0, 0, 1].into();
        other.flow_start = Timestamp::from_nanos(1);
        assert_eq!(copied(&other), [true, false, false]);
        let (mut ways, mut rests) = (0, 0);
        for change in CHANGES {
            let mut changed = base.clone();
            change(&mut changed);
            let [is_single, is_way, is_rest] = copied(&changed);
            assert!(!is_single);
            ways += usize::from(!is_way);
            rests += usize::from(!is_rest);
        }
        // Of the way: both protocols, reason, state, no TCP, both sides turned; of the one side four values, of the other its bits, and five times that it sent.
        // Of the rest: eight events, tunnel, vantage, no TCP, application twice, eight labels.
        assert_eq!((ways, rests), (16, 21));
    }

    #[test]
    fn a_number_is_spread_over_all_places() {
        let mut seen = [false; KEPT];
        for number in 0..100 {
            seen[spread([number, 0])] = true;
        }
        assert_eq!(seen, [true; KEPT]);
    }
}
