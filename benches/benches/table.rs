//! From a frame in memory to its connection: walk, key, hash, lookup, update; what each option costs; the index alone; and from a record
//! to its conversation.
//!
//! NV_BENCH_CONNECTIONS=131072,1000000,10000000 picks the sizes of the table (default: the first). One element is one frame.
#![allow(missing_docs, reason = "a benchmark has no users")]

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashTable;
use nv_benches::{ACK, Numbers, SYN, Shape, Traffic, Zipf, shortest};
use nvcapture::Timestamp;
use nvflow::{
    Aggregator, BucketIndex, FlowRecord, GroupBy, Identify, Meter, MeterConfig, Observation,
    sink_fn,
};

const FRAMES: usize = 1 << 20;

fn sizes() -> Vec<usize> {
    std::env::var("NV_BENCH_CONNECTIONS").map_or_else(
        |_| vec![131_072],
        |list| {
            list.split(',')
                .map(|size| {
                    size.parse()
                        .expect("NV_BENCH_CONNECTIONS: numbers and commas")
                })
                .collect()
        },
    )
}

fn nowhere(_: &FlowRecord) -> Result<ControlFlow<()>, std::convert::Infallible> {
    Ok(ControlFlow::Continue(()))
}

/// A meter in which all `size` connections are open, both sides seen.
fn filled(shape: Shape, size: usize, config: MeterConfig) -> Meter {
    filled_by(shape, size, config, |traffic| traffic)
}

/// The same, of frames that are changed before they are metered.
fn filled_by(
    shape: Shape,
    size: usize,
    config: MeterConfig,
    change: impl Fn(Traffic) -> Traffic,
) -> Meter {
    let mut meter = Meter::new(MeterConfig {
        max_connections: size,
        ..config
    })
    .expect("memory");
    for back in [false, true] {
        for part in (0..size).step_by(FRAMES) {
            let count = FRAMES.min(size - part);
            let traffic = Traffic::new(shape, shortest(shape), count, |place| {
                ((part + place) as u32, back, ACK)
            });
            let traffic = change(traffic);
            let Ok(_) = meter.observe(
                traffic.frames(Timestamp::from_nanos(1_000_000_000)),
                &mut sink_fn(nowhere),
            );
        }
    }
    assert_eq!(meter.stats().connections, size as u64);
    meter
}

fn observe(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    group
        .throughput(Throughput::Elements(FRAMES as u64))
        .sample_size(10);
    for size in sizes() {
        let mut random = Numbers::new(1);
        let uniform =
            |random: &mut Numbers| (random.below(size) as u32, random.next_u64() & 1 == 1, ACK);
        for (name, shape) in [
            ("uniform/v4", Shape::V4),
            ("uniform/v6", Shape::V6),
            ("uniform/vlan", Shape::Vlan),
        ] {
            let mut meter = filled(shape, size, MeterConfig::default());
            let traffic = Traffic::new(shape, shortest(shape), FRAMES, |_| uniform(&mut random));
            group.bench_function(format!("{name}/{size}"), |bencher| {
                bencher.iter(|| {
                    meter.observe(
                        traffic.frames(Timestamp::from_nanos(3_000_000_000)),
                        &mut sink_fn(nowhere),
                    )
                });
            });
            assert_eq!(meter.stats().opened, size as u64);
        }
        let zipf = Zipf::new(size, &mut random);
        let mut meter = filled(Shape::V4, size, MeterConfig::default());
        let traffic = Traffic::new(Shape::V4, shortest(Shape::V4), FRAMES, |_| {
            (zipf.pick(&mut random), random.next_u64() & 1 == 1, ACK)
        });
        group.bench_function(format!("zipf/v4/{size}"), |bencher| {
            bencher.iter(|| {
                meter.observe(
                    traffic.frames(Timestamp::from_nanos(3_000_000_000)),
                    &mut sink_fn(nowhere),
                )
            });
        });

        // Every frame opens a connection, and the full table gives up another for it.
        let flood = Traffic::new(Shape::V4, shortest(Shape::V4), FRAMES, |place| {
            (0x80_0000 + place as u32, false, SYN)
        });
        group.bench_function(format!("syn flood/v4/{size}"), |bencher| {
            bencher.iter_batched_ref(
                || filled(Shape::V4, size, MeterConfig::default()),
                |meter| {
                    meter.observe(
                        flood.frames(Timestamp::from_nanos(400_000_000_000)),
                        &mut sink_fn(nowhere),
                    )
                },
                BatchSize::PerIteration,
            );
        });

        // All connections at once: what one of them costs, its record included.
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("expiry/v4/{size}"), |bencher| {
            bencher.iter_batched_ref(
                || filled(Shape::V4, size, MeterConfig::default()),
                |meter| {
                    meter.expire(
                        Timestamp::from_nanos(4_000_000_000_000),
                        &mut sink_fn(nowhere),
                    )
                },
                BatchSize::PerIteration,
            );
        });
        group.throughput(Throughput::Elements(FRAMES as u64));
    }
    group.finish();
}

/// What each option of the meter adds to, or takes from, the plain case beside it.
fn options(criterion: &mut Criterion) {
    const MARKER: [u8; 6] = [0x4e, 0x65, 0x75, 0x56, 0, 9];
    type Change = fn(Traffic) -> Traffic;
    let plain = MeterConfig::default;
    let cases: [(&str, Shape, MeterConfig, Change); 9] = [
        ("none", Shape::V4, plain(), |traffic| traffic),
        (
            "without tcp_metrics",
            Shape::V4,
            MeterConfig {
                tcp_metrics: false,
                ..plain()
            },
            |traffic| traffic,
        ),
        (
            "decapsulate, no tunnel",
            Shape::V4,
            MeterConfig {
                decapsulate: true,
                ..plain()
            },
            |traffic| traffic,
        ),
        (
            "decapsulate, VXLAN",
            Shape::V4,
            MeterConfig {
                decapsulate: true,
                ..plain()
            },
            Traffic::in_vxlan,
        ),
        (
            "observation marker",
            Shape::V4,
            MeterConfig {
                observation: Observation::Marker,
                ..plain()
            },
            |traffic| traffic.sent_from(MARKER),
        ),
        (
            "observation fixed",
            Shape::V4,
            MeterConfig {
                observation: Observation::Fixed(9),
                ..plain()
            },
            |traffic| traffic,
        ),
        (
            "identify, all settled",
            Shape::V4,
            MeterConfig {
                identify: Some(Identify::default()),
                ..plain()
            },
            |traffic| traffic,
        ),
        ("VLAN, vlan_in_key", Shape::Vlan, plain(), |traffic| traffic),
        (
            "VLAN, not in key",
            Shape::Vlan,
            MeterConfig {
                vlan_in_key: false,
                ..plain()
            },
            |traffic| traffic,
        ),
    ];
    let mut group = criterion.benchmark_group("option");
    group
        .throughput(Throughput::Elements(FRAMES as u64))
        .sample_size(10);
    for size in sizes() {
        for (name, shape, config, change) in cases {
            let mut random = Numbers::new(1);
            let mut meter = filled_by(shape, size, config, change);
            let traffic = change(Traffic::new(shape, shortest(shape), FRAMES, |_| {
                (random.below(size) as u32, random.next_u64() & 1 == 1, ACK)
            }));
            group.bench_function(format!("{name}/{size}"), |bencher| {
                bencher.iter(|| {
                    meter.observe(
                        traffic.frames(Timestamp::from_nanos(3_000_000_000)),
                        &mut sink_fn(nowhere),
                    )
                });
            });
            assert_eq!(meter.stats().opened, size as u64, "{name}");
        }
    }
    group.finish();
}

/// A ClientHello of the usual size, in its record.
fn hello() -> Vec<u8> {
    let long = |octets: &[u8]| [&(octets.len() as u16).to_be_bytes(), octets].concat();
    let extension = |kind: u16, value: &[u8]| [&kind.to_be_bytes()[..], &long(value)].concat();
    let name = long(&[&[0], &long(b"www.example.com")[..]].concat());
    let mut extensions = [
        extension(0, &name),
        extension(16, &long(b"\x02h2\x08http/1.1")),
        extension(43, &[4, 3, 4, 3, 3]),
        extension(13, &long(&[4, 3, 8, 4, 4, 1, 5, 3, 8, 5, 5, 1, 8, 6, 6, 1])),
    ]
    .concat();
    for kind in [5, 10, 11, 18, 23, 27, 35, 45, 51] {
        extensions.extend(extension(kind, &[0; 16]));
    }
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[32],
        &[9; 32],
        &long(&[0x13; 32]),
        &[1, 0],
        &long(&extensions),
    ]
    .concat();
    let message = [&[1, 0], &long(&body)[..]].concat();
    [&[22, 3, 1][..], &long(&message)].concat()
}

/// What it costs to find out what a connection speaks: each frame is the first of its connection. Off beside it.
fn identify(criterion: &mut Criterion) {
    const CONNECTIONS: usize = 1 << 16;
    let query = b"\x00\x21\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01";
    let request = b"GET /index.html HTTP/1.1\r\nUser-Agent: curl/8.5.0\r\nHost: www.example.com\r\nAccept: */*\r\n\r\n";
    let mut group = criterion.benchmark_group("identify");
    group
        .throughput(Throughput::Elements(CONNECTIONS as u64))
        .sample_size(10);
    for (name, payload) in [
        ("ClientHello", &hello()[..]),
        ("request of HTTP", request),
        ("query of DNS", query),
        ("nothing known", &[0xee; 100]),
    ] {
        let traffic = Traffic::new(Shape::V4, 54 + payload.len(), CONNECTIONS, |place| {
            (place as u32, false, ACK)
        })
        .saying(payload);
        for (how, identify) in [("off", None), ("on", Some(Identify::default()))] {
            group.bench_function(format!("{name}, {how}"), |bencher| {
                bencher.iter_batched_ref(
                    || {
                        Meter::new(MeterConfig {
                            max_connections: CONNECTIONS,
                            identify,
                            ..MeterConfig::default()
                        })
                        .expect("memory")
                    },
                    |meter| {
                        let Ok(_) = meter.observe(
                            traffic.frames(Timestamp::from_nanos(1_000_000_000)),
                            &mut sink_fn(nowhere),
                        );
                        let found = meter.stats().identified > 0;
                        assert_eq!(found, identify.is_some() && name != "nothing known");
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

/// Records to conversations. One element is one record; of `merge` one conversation.
fn aggregate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("aggregate");
    group.sample_size(10);
    for size in sizes() {
        let mut records: Vec<FlowRecord> = Vec::with_capacity(size);
        let Ok(_) = filled(Shape::V4, size, MeterConfig::default()).finish(&mut records);
        let by_server = GroupBy {
            client: false,
            ..GroupBy::default()
        };
        let added = |group_by, most| {
            let mut sums = Aggregator::new(group_by, Duration::from_secs(60), most);
            records.iter().for_each(|record| sums.add(record));
            sums
        };
        // 1,757 servers; as many conversations as records; room for a thousandth of them.
        for (name, group_by, most) in [
            ("by server", by_server, size),
            ("by client and server", GroupBy::default(), size),
            ("bounded", GroupBy::default(), size / 1_000),
        ] {
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(format!("{name}/{size}"), |bencher| {
                bencher.iter_with_large_drop(|| added(group_by, most));
            });
        }
        let one = added(GroupBy::default(), size);
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("merge/{size}"), |bencher| {
            bencher.iter_batched(
                || (one.clone(), one.clone()),
                |(mut into, from)| {
                    into.merge(from);
                    into
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// The index alone, ours against hashbrown's, over the same slots of two lines: hash given, lookup in batches of 32, one update.
fn index(criterion: &mut Criterion) {
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Slot {
        hash: u64,
        count: u64,
        other_line: [u64; 14],
    }
    const BATCH: usize = 32;
    let mut group = criterion.benchmark_group("index");
    group
        .throughput(Throughput::Elements(FRAMES as u64))
        .sample_size(20);
    for size in sizes() {
        let mut random = Numbers::new(2);
        let hashes: Vec<u64> = (0..size).map(|_| random.next_u64()).collect();
        let wanted: Vec<u64> = (0..FRAMES).map(|_| hashes[random.below(size)]).collect();
        let mut slots: Vec<Slot> = hashes
            .iter()
            .map(|&hash| Slot {
                hash,
                count: 0,
                other_line: [0; 14],
            })
            .collect();

        let mut ours = BucketIndex::new(size).expect("memory");
        let mut theirs: HashTable<u32> = HashTable::with_capacity(size);
        for (slot, &hash) in hashes.iter().enumerate() {
            ours.insert(hash, slot as u32);
            theirs.insert_unique(hash, slot as u32, |&slot| hashes[slot as usize]);
        }

        group.bench_function(format!("buckets/{size}"), |bencher| {
            bencher.iter(|| {
                for batch in wanted.chunks_exact(BATCH) {
                    let mut found = [0; BATCH];
                    for &hash in batch {
                        ours.prefetch(hash);
                    }
                    for (found, &hash) in found.iter_mut().zip(batch) {
                        *found = ours.candidate(hash);
                    }
                    for &found in &found {
                        let slot = &slots[found as usize];
                        nvcapture::prefetch(slot);
                        nvcapture::prefetch(&slot.other_line[8]);
                    }
                    for (&slot, &hash) in found.iter().zip(batch) {
                        let slot = if slots[slot as usize].hash == hash {
                            slot
                        } else {
                            ours.find(hash, |slot| slots[slot as usize].hash == hash)
                                .expect("inserted")
                        };
                        slots[slot as usize].count += 1;
                        slots[slot as usize].other_line[8] += 1;
                    }
                }
            });
        });
        group.bench_function(format!("hashbrown/{size}"), |bencher| {
            bencher.iter(|| {
                for batch in wanted.chunks_exact(BATCH) {
                    let mut loaded = 0;
                    let mut found = [0; BATCH];
                    for (found, &hash) in found.iter_mut().zip(batch) {
                        *found = theirs.iter_hash(hash).next().copied().unwrap_or(0);
                    }
                    for &found in &found {
                        let slot = &slots[found as usize];
                        loaded ^= slot.count as u32 ^ slot.other_line[8] as u32;
                    }
                    black_box(loaded);
                    for (&slot, &hash) in found.iter().zip(batch) {
                        let slot = if slots[slot as usize].hash == hash {
                            slot
                        } else {
                            *theirs
                                .find(hash, |&slot| slots[slot as usize].hash == hash)
                                .expect("inserted")
                        };
                        slots[slot as usize].count += 1;
                        slots[slot as usize].other_line[8] += 1;
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, observe, options, identify, index, aggregate);
criterion_main!(benches);
