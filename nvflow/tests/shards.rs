//! Many meters make the records that one makes.

#[path = "support/frames.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod frames;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use frames::{ACK, End, FIN, Made, RST, SYN, icmp, ip, tcp, udp, v4, v6};
use nvcapture::Timestamp;
use nvflow::{FlowRecord, Meter, MeterConfig, MeterStats, Observation, Shards, Timeouts};
use proptest::prelude::*;

/// Both fragments of a datagram over IPv4, whose second has no ports.
fn fragments(millis: u64, source: End, destination: End, id: u16) -> [Made; 2] {
    let mut whole = udp(millis, source, destination, 24);
    let mut later = ip(millis, source.0, destination.0, 17, &[0; 16]);
    for (made, flags_and_offset) in [(&mut whole, 0x2000_u16), (&mut later, 4)] {
        made.octets[18..20].copy_from_slice(&id.to_be_bytes());
        made.octets[20..22].copy_from_slice(&flags_and_offset.to_be_bytes());
    }
    [whole, later]
}

/// The frame in a VXLAN packet of network `id`.
fn in_vxlan(made: &Made, id: u8) -> Made {
    let mut body = vec![0xc0, 0, 0x12, 0xb5];
    body.extend((16 + made.octets.len() as u16).to_be_bytes());
    body.extend([0, 0, 8, 0, 0, 0, 0, 0, id, 0]);
    body.extend(&made.octets);
    let ends: [IpAddr; 2] = [v4(200, 0).0, v4(201, 0).0];
    ip(made.nanos / 1_000_000, ends[0], ends[1], 17, &body)
}

/// The frame with a VLAN tag, and with a marker as its source address.
fn tagged(mut made: Made, vlan: u8, marker: bool) -> Made {
    if marker {
        made.octets[6..12].copy_from_slice(&[0x4e, 0x65, 0x75, 0x56, 0, vlan]);
    }
    made.octets.splice(12..12, [0x81, 0, 0, vlan]);
    made
}

/// What happens, in numbers: time since the last, kind, ends, control bits, more.
type Event = (u64, u8, (u8, u8), u16, u8);

fn made(events: &[Event]) -> Vec<Made> {
    let mut now = 1_000_000;
    let mut all = Vec::new();
    for &(pause, kind, (a, b), port, more) in events {
        now += pause;
        let (source, destination) = (v4(a, 1_000 + port), v4(b, 1_000));
        let ends = if more & 1 == 0 {
            (source, destination)
        } else {
            (destination, source)
        };
        let control = [SYN, ACK, ACK, FIN | ACK, RST | ACK][usize::from(more) % 5];
        let number = u32::from(more) * 10;
        match kind {
            0..=2 => all.push(tcp(now, ends, control, (number, number), more.into())),
            3 => all.push(udp(now, v6(a, port), v6(b, 53), more.into())),
            // Few packets: sets of meters remember more of them than one does.
            4 => all.extend(fragments(now, ends.0, ends.1, (more & 7).into())),
            5 => all.push(fragments(now, ends.0, ends.1, (more & 7).into())[1].clone()),
            6 => all.push(icmp(now, ends.0.0, ends.1.0, more & 8, port)),
            7 => all.push(in_vxlan(&udp(now, ends.0, ends.1, 9), more & 3)),
            8 => all.push(tagged(udp(now, ends.0, ends.1, 9), more & 3, more & 4 != 0)),
            9 => all.push(ip(now, ends.0.0, ends.1.0, 47, &[more; 12])),
            _ => all.push(Made {
                octets: vec![more; usize::from(more)],
                nanos: now * 1_000_000,
            }),
        }
    }
    all
}

/// Records as text, sorted; and what was done.
type Said = (Vec<String>, MeterStats);

fn sorted(records: &[FlowRecord], stats: MeterStats) -> Said {
    let mut lines: Vec<String> = records.iter().map(|record| format!("{record:?}")).collect();
    lines.sort();
    assert!(stats.is_balanced());
    (lines, stats)
}

fn by_one(all: &[Made], config: MeterConfig) -> Said {
    let mut records = Vec::new();
    let mut meter = Meter::new(config).expect("memory");
    let Ok(_) = meter.observe(all.iter().map(Made::frame), &mut records);
    let Ok(_) = meter.finish(&mut records);
    sorted(&records, meter.stats())
}

fn by_many(all: &[Made], config: MeterConfig, count: u16) -> Said {
    let mut records = Vec::new();
    let mut shards = Shards::new(&config, NonZeroU16::new(count).expect("some"));
    let mut meters: Vec<Meter> = (0..count)
        .map(|_| Meter::new(shards.config()).expect("memory"))
        .collect();
    let time = |made: Option<&Made>| Timestamp::from_nanos(made.map_or(0, |made| made.nanos));
    for meter in &mut meters {
        let Ok(_) = meter.expire(time(all.first()), &mut records);
    }
    for made in all {
        let frame = made.frame();
        let Ok(_) = meters[shards.of(&frame)].observe([frame], &mut records);
    }
    let mut total = MeterStats::default();
    for meter in &mut meters {
        let Ok(_) = meter.expire(time(all.last()), &mut records);
        let Ok(_) = meter.finish(&mut records);
        total.merge(&meter.stats());
    }
    sorted(&records, total)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn many_meters_make_the_records_of_one(
        events in prop::collection::vec(
            (
                prop_oneof![8 => 0..50_u64, 1 => 1_000..20_000_u64],
                0..11_u8,
                (1..5_u8, 1..5_u8),
                0..4_u16,
                any::<u8>(),
            ),
            1..400,
        ),
        count in 1..6_u16,
        decapsulate in any::<bool>(),
        vlan_in_key in any::<bool>(),
        marker in any::<bool>(),
    ) {
        let config = MeterConfig {
            max_connections: 4_096,
            decapsulate,
            vlan_in_key,
            observation: if marker { Observation::Marker } else { Observation::Fixed(7) },
            timeouts: Timeouts { udp: Duration::from_secs(7), ..Timeouts::default() },
            hash_key: Some([1, 2]),
            ..MeterConfig::default()
        };
        let all = made(&events);
        let (records, stats) = by_one(&all, config);
        let (shared, mut total) = by_many(&all, config, count);
        prop_assert_eq!(records, shared);
        // Meters need not have been at their fullest at the same time, nor look at their timers at the same time.
        prop_assert!(total.high_water <= total.opened);
        prop_assert_eq!(total.high_water == 0, total.opened == 0);
        total.high_water = stats.high_water;
        prop_assert_eq!(stats, total);
    }
}

#[test]
fn frames_are_spread() {
    let config = MeterConfig::default();
    let mut shards = Shards::new(&config, NonZeroU16::new(4).expect("four"));
    assert_eq!(shards.config().max_connections, 32_768);
    let mut counts = [0; 4];
    for port in 0..4_000 {
        let made = udp(1, v4(1, port), v4(2, 53), 10);
        counts[shards.of(&made.frame())] += 1;
    }
    // Four times the standard deviation, about 27, is what chance leaves out once in 16,000 runs.
    assert!(
        counts.iter().all(|count| (880..1_120).contains(count)),
        "{counts:?}"
    );
}
