//! The table against a plain map, and against what must hold whatever comes.

#[path = "support/frames.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod frames;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use frames::{End, Made, ip, tcp, udp, v4, v6};
use nvcapture::Timestamp;
use nvflow::{FlowRecord, Meter, MeterConfig, Timeouts};
use proptest::prelude::*;

const TIMEOUT: u64 = 60_000;

/// A datagram: milliseconds since the one before, family, the two ends, payload.
type Datagram = (u64, bool, u8, u8, u16, usize);

fn datagrams() -> impl Strategy<Value = Vec<Datagram>> {
    // Multiples of 10 ms: a tick more or less does not matter.
    let pause = prop_oneof![4 => 0..100_u64, 2 => 100..1_000_u64, 1 => 5_000..7_000_u64, 1 => 100_000..10_000_000_u64];
    prop::collection::vec(
        (
            pause,
            any::<bool>(),
            0..4_u8,
            0..4_u8,
            0..3_u16,
            0..200_usize,
        ),
        1..300,
    )
}

/// What is said of a connection: ends in order, then packets and octets from the lower end, and from the higher.
type Said = ((IpAddr, u16), (IpAddr, u16), [u64; 4], u64, u64);

fn said(record: &FlowRecord) -> Said {
    let a = (record.source.address, record.source.port);
    let b = (record.destination.address, record.destination.port);
    let (forward, reverse) = (&record.forward, &record.reverse);
    let (start, end) = (
        record.flow_start.as_micros() / 1_000,
        record.flow_end.as_micros() / 1_000,
    );
    if a <= b {
        (
            a,
            b,
            [
                forward.packets,
                forward.octets,
                reverse.packets,
                reverse.octets,
            ],
            start,
            end,
        )
    } else {
        (
            b,
            a,
            [
                reverse.packets,
                reverse.octets,
                forward.packets,
                forward.octets,
            ],
            start,
            end,
        )
    }
}

#[derive(Clone, Debug)]
struct Open {
    sums: [u64; 4],
    start: u64,
    last: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Room for all, no active timeout: exactly what a map from ends to sums gives, which looks at the time only when a frame comes.
    #[test]
    fn agrees_with_a_map(datagrams in datagrams(), batch in 1..70_usize) {
        let timeouts = Timeouts { active: Duration::MAX, udp: Duration::from_millis(TIMEOUT), ..Timeouts::default() };
        let mut meter = Meter::new(MeterConfig { max_connections: 1_000, timeouts, ..MeterConfig::default() })?;
        let mut expected = Vec::new();
        let mut model: BTreeMap<(End, End), Open> = BTreeMap::new();
        let mut now = 1_000_000;
        let mut made = Vec::new();
        for (pause, is_v6, a, b, port, payload) in datagrams {
            now += pause * 10;
            let end = |last, port| if is_v6 { v6(last, port) } else { v4(last, port) };
            let (source, destination) = (end(a, port), end(b, 7));
            made.push(udp(now, source, destination, payload));
            let turned = source > destination;
            let key = if turned { (destination, source) } else { (source, destination) };
            if let Some(open) = model.get(&key).filter(|open| now - open.last > TIMEOUT) {
                expected.push((key.0, key.1, open.sums, open.start, open.last));
                model.remove(&key);
            }
            let open = model.entry(key).or_insert(Open { sums: [0; 4], start: now, last: now });
            open.last = now;
            open.sums[usize::from(turned) * 2] += 1;
            open.sums[usize::from(turned) * 2 + 1] += (payload + if is_v6 { 48 } else { 28 }) as u64;
        }
        expected.extend(model.into_iter().map(|(key, open)| (key.0, key.1, open.sums, open.start, open.last)));
        expected.sort();

        let mut records = Vec::new();
        for part in made.chunks(batch) {
            let Ok(_) = meter.observe(part.iter().map(Made::frame), &mut records);
        }
        let Ok(_) = meter.finish(&mut records);
        let mut found: Vec<Said> = records.iter().map(said).collect();
        found.sort();
        prop_assert_eq!(found, expected);
        prop_assert!(meter.stats().is_balanced());
    }

    /// Too little room, any TCP segment, any time: every frame is in one record or counted as refused.
    #[test]
    fn loses_nothing_unseen(
        capacity in 1..20_usize,
        protect in 0..3_u64,
        frames in prop::collection::vec(
            (any::<bool>(), -5_000..40_000_i64, 0..12_u8, any::<u8>(), 0..5_u32, 0..5_u32, 0..3_usize, 0..40_u8), 1..500),
    ) {
        let config = MeterConfig { max_connections: capacity, protect: Duration::from_secs(protect), ..MeterConfig::default() };
        let mut meter = Meter::new(config)?;
        let mut records: Vec<FlowRecord> = Vec::new();
        let mut now: i64 = 100_000;
        for (back, step, client, control, sequence, acknowledgment, payload, kind) in frames {
            now = (now + if step < 30_000 { step / 100 } else { step * 10 }).max(0);
            let ends = if kind % 2 == 0 { (v4(client, 9), v4(200, 80)) } else { (v6(client, 9), v6(200, 80)) };
            let (source, destination) = if back { (ends.1, ends.0) } else { ends };
            let made = match kind {
                0 => udp(now as u64, source, destination, payload),
                1 => ip(now as u64, source.0, destination.0, control, &[control; 30]),
                2 => { let Ok(_) = meter.expire(Timestamp::from_nanos(now as u64 * 1_000_000), &mut records); continue }
                _ => tcp(now as u64, (source, destination), control, (sequence, acknowledgment), payload),
            };
            let Ok(_) = meter.observe([made.frame()], &mut records);
            let stats = meter.stats();
            prop_assert!(stats.connections <= capacity as u64);
            prop_assert!(stats.is_balanced());
        }
        let mut open = 0;
        let _ = meter.open(|_| { open += 1; ControlFlow::Continue(()) });
        prop_assert_eq!(open, meter.stats().connections);
        let Ok(_) = meter.finish(&mut records);
        let stats = meter.stats();
        prop_assert_eq!(stats.connections, 0);
        prop_assert_eq!(stats.records, records.len() as u64);
        let packets: u64 = records.iter().map(|record| record.forward.packets + record.reverse.packets).sum();
        prop_assert_eq!(packets, stats.metered);
        let evicted = stats.evicted_ended + stats.evicted_embryonic + stats.evicted_idle;
        prop_assert!(records.len() as u64 >= evicted);
        prop_assert!(stats.refused == 0 || stats.high_water == capacity as u64);
    }
}
