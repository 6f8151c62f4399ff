//! What must hold of a meter for any frames at any times, and of what it finds out: [`table`] and [`app`] panic when it does not.

mod app;
mod frames;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use nvcapture::wire::{Headers, protocol};
use nvcapture::{Frame, FrameMeta, Timestamp};
use nvflow::{
    Aggregator, Conversation, FlowEndReason, FlowRecord, GroupBy, Identify, Meter, MeterConfig,
    Observation, Timeouts,
};

pub use app::app;
pub use frames::{Script, kind};

/// What an input tells to do.
enum Op {
    Frame(Vec<u8>, FrameMeta),
    Expire(Timestamp),
    Look,
}

/// What all frames of a pair of addresses add up to, by direction: packets, IP octets, frame octets.
type Sums = BTreeMap<(u8, IpAddr, IpAddr), [u64; 3]>;

/// An input is three octets of configuration, then frames, times and looks at the table.
pub fn table(data: &[u8]) {
    let Some((&[first, second, third], rest)) = data.split_first_chunk() else {
        return;
    };
    let config = config(first, second, third);
    let ops: Vec<Op> = frames::Reader::new(rest).collect();

    // One frame at a time.
    let mut meter = Meter::new(config).expect("a small table");
    let mut records = Vec::new();
    let mut expected = Sums::new();
    let mut most = Sums::new();
    let mut has_fragments = false;
    for op in &ops {
        match op {
            Op::Frame(octets, meta) => {
                let frame = Frame::new(octets, *meta);
                let before = meter.stats();
                let Ok(_) = meter.observe([frame], &mut records);
                let after = meter.stats();
                let headers = Headers::parse(&frame).ok().map(|outer| {
                    let inner = outer.decapsulate().filter(|_| config.decapsulate);
                    inner.unwrap_or(outer)
                });
                has_fragments |= headers.is_some_and(|headers| headers.fragment.is_some());
                assert_eq!(after.frames, before.frames + 1);
                assert_eq!(
                    after.not_ip + after.unparsed > before.not_ip + before.unparsed,
                    headers.is_none()
                );
                if let Some(headers) = headers {
                    add(&mut most, &headers, meta.wire_len);
                    if after.metered > before.metered {
                        add(&mut expected, &headers, meta.wire_len);
                    }
                }
            }
            Op::Expire(now) => {
                let Ok(_) = meter.expire(*now, &mut records);
            }
            Op::Look => {
                let mut open = 0;
                let _ = meter.open(|record| {
                    holds(record);
                    open += 1;
                    ControlFlow::Continue(())
                });
                assert_eq!(open, meter.stats().connections);
            }
        }
        let stats = meter.stats();
        assert!(stats.is_balanced(), "{stats:?}");
        assert!(
            stats.connections <= config.max_connections as u64,
            "{stats:?}"
        );
        assert_eq!(stats.records, records.len() as u64);
    }
    let Ok(_) = meter.finish(&mut records);
    let stats = meter.stats();
    assert_eq!((stats.connections, stats.undelivered), (0, 0));
    assert_eq!(stats.records, records.len() as u64);
    assert!(stats.high_water <= config.max_connections as u64);
    if stats.refused == 0 {
        assert_eq!(expected, most);
    }

    // The records hold every frame metered, once; each connection has one last record.
    records.iter().for_each(holds);
    assert_eq!(sums(&records), expected);
    let goes_on =
        |record: &&FlowRecord| record.flow_end_reason == Some(FlowEndReason::ActiveTimeout);
    let last = records.len() - records.iter().filter(goes_on).count();
    assert_eq!(last as u64, stats.opened);
    // One that had ended, or where both sides had said so, ended: its record says that.
    let lack =
        |record: &&FlowRecord| record.flow_end_reason == Some(FlowEndReason::LackOfResources);
    let given_up = stats.evicted_embryonic + stats.evicted_idle;
    assert!(records.iter().filter(lack).count() as u64 <= given_up);

    // However they are batched, and whatever the key of the hash is, but that a fragment may be forgotten for another.
    let hash_key = if has_fragments {
        config.hash_key
    } else {
        Some([5, 6])
    };
    let mut meter = Meter::new(MeterConfig { hash_key, ..config }).expect("a small table");
    let mut again: Vec<FlowRecord> = Vec::new();
    let mut run = Vec::new();
    for op in &ops {
        match op {
            Op::Frame(octets, meta) => run.push(Frame::new(octets, *meta)),
            Op::Expire(now) => {
                let Ok(_) = meter.observe(run.drain(..), &mut again);
                let Ok(_) = meter.expire(*now, &mut again);
            }
            Op::Look => {}
        }
    }
    let Ok(_) = meter.observe(run, &mut again);
    let Ok(_) = meter.finish(&mut again);
    assert_eq!(again, records);
    assert_eq!(meter.stats(), stats);

    aggregates(&records, usize::from(first % 8));
}

fn config(first: u8, second: u8, third: u8) -> MeterConfig {
    let seconds = |shift: u8| Duration::from_secs([300, 30, 1, 0][usize::from(third >> shift & 3)]);
    MeterConfig {
        // What is expected is added up frame by frame.
        mtu: None,
        max_connections: match second {
            0..128 => 1 + usize::from(second % 16),
            _ => 2_000,
        },
        timeouts: Timeouts {
            tcp_established: seconds(0),
            tcp_half_open: seconds(2),
            tcp_closing: seconds(2),
            tcp_ended: seconds(4),
            udp: seconds(4),
            icmp: seconds(6),
            other: seconds(6),
            active: Duration::from_secs([1_800, 5][usize::from(third & 1)]),
        },
        observation: match first >> 4 & 3 {
            0 => Observation::Fixed(7),
            1 => Observation::Marker,
            _ => Observation::None,
        },
        decapsulate: first & 1 != 0,
        vlan_in_key: first & 2 != 0,
        tcp_metrics: first & 4 != 0,
        identify: (first & 8 != 0).then(Identify::default),
        protect: Duration::from_secs((first >> 6).into()),
        hash_key: Some([1, 2]),
    }
}

fn add(sums: &mut Sums, headers: &Headers<'_>, wire_len: u32) {
    let key = (
        headers.protocol,
        headers.ip.source(),
        headers.ip.destination(),
    );
    let amounts = [1, headers.ip_octets.into(), wire_len.into()];
    put(sums, key, amounts);
}

fn put(sums: &mut Sums, key: (u8, IpAddr, IpAddr), amounts: [u64; 3]) {
    if amounts[0] == 0 {
        return;
    }
    let places = sums.entry(key).or_default().iter_mut();
    places.zip(amounts).for_each(|(sum, amount)| *sum += amount);
}

fn sums(records: &[FlowRecord]) -> Sums {
    let mut sums = Sums::new();
    for record in records {
        let (source, destination) = (record.source.address, record.destination.address);
        for (from, to, side) in [
            (source, destination, &record.forward),
            (destination, source, &record.reverse),
        ] {
            let amounts = [side.packets, side.octets, side.layer2_octets];
            put(&mut sums, (record.protocol_identifier, from, to), amounts);
        }
    }
    sums
}

/// What must hold of any record.
fn holds(record: &FlowRecord) {
    assert!(
        record.forward.packets + record.reverse.packets > 0,
        "{record:?}"
    );
    assert!(record.flow_start <= record.flow_end, "{record:?}");
    for side in [&record.forward, &record.reverse] {
        assert!(side.payload_octets <= side.octets, "{record:?}");
        assert!(side.octets <= side.layer2_octets, "{record:?}");
        assert!(side.minimum_ttl <= side.maximum_ttl, "{record:?}");
        assert!(side.dscp < 64, "{record:?}");
        assert!(
            side.packets > 0 || (side.octets, side.maximum_ttl) == (0, 0),
            "{record:?}"
        );
    }
    let is_tcp = record.protocol_identifier == protocol::TCP;
    assert!(is_tcp || record.tcp.is_none(), "{record:?}");
    if let Some(tcp) = &record.tcp {
        for (side, of) in [
            (&tcp.forward, &record.forward),
            (&tcp.reverse, &record.reverse),
        ] {
            let counts = [
                side.retransmitted_segments,
                side.out_of_order_segments,
                side.duplicate_acks,
                side.zero_windows,
            ];
            assert!(
                counts.iter().all(|count| u64::from(*count) <= of.packets),
                "{record:?}"
            );
        }
    }
}

/// Conversations hold every record, also when they have no room for all and were made in two parts.
fn aggregates(records: &[FlowRecord], most: usize) {
    let new = || Aggregator::new(GroupBy::default(), Duration::from_secs(60), most);
    let (a, b) = records.split_at(records.len() / 2);
    let (mut first, mut second) = (new(), new());
    a.iter().for_each(|record| first.add(record));
    b.iter().for_each(|record| second.add(record));
    first.merge(second);
    assert!(first.iter().count() <= most);
    let all = first
        .iter()
        .map(|(_, conversation)| conversation)
        .chain([first.rest()]);
    let of = |conversation: &Conversation| {
        let octets = conversation.octets + conversation.reverse_octets;
        [
            conversation.records,
            conversation.packets + conversation.reverse_packets,
            octets,
        ]
    };
    let found = all.map(of).fold([0; 3], |sum, more| {
        std::array::from_fn(|n| sum[n] + more[n])
    });
    let expected = sums(records)
        .values()
        .fold([0; 2], |sum, more| [sum[0] + more[0], sum[1] + more[1]]);
    assert_eq!(found, [records.len() as u64, expected[0], expected[1]]);
}
