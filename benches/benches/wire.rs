//! The walk through a frame's headers. One element is one frame.
#![allow(missing_docs, reason = "a benchmark has no users")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nv_benches::{ACK, Shape, Traffic, shortest};
use nvcapture::Timestamp;
use nvcapture::wire::Headers;
use nvflow::{FlowKey, KeyHasher};

const FRAMES: usize = 1024;

fn walk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Elements(FRAMES as u64));
    for length in [64, 594, 1514] {
        for (name, shape) in [("v4", Shape::V4), ("v6", Shape::V6), ("vlan", Shape::Vlan)] {
            let length = length.max(shortest(shape));
            let traffic = Traffic::new(shape, length, FRAMES, |place| {
                (place as u32 * 7_919, place % 3 == 0, ACK)
            });
            group.bench_function(format!("walk/{name}/{length}"), |bencher| {
                bencher.iter(|| {
                    for frame in traffic.frames(Timestamp::ZERO) {
                        let headers = Headers::parse(&frame);
                        let _ = black_box(&headers);
                    }
                });
            });
            group.bench_function(format!("etherparse, lax/{name}/{length}"), |bencher| {
                bencher.iter(|| {
                    for frame in traffic.frames(Timestamp::ZERO) {
                        let packet = etherparse::LaxSlicedPacket::from_ethernet(frame.octets());
                        let _ = black_box(&packet);
                    }
                });
            });
        }
    }
    let hasher = KeyHasher::new([1, 2]);
    for (name, shape) in [("v4", Shape::V4), ("v6", Shape::V6)] {
        let traffic = Traffic::new(shape, shortest(shape), FRAMES, |place| {
            (place as u32 * 7_919, place % 3 == 0, ACK)
        });
        group.bench_function(format!("walk, key and hash/{name}"), |bencher| {
            bencher.iter(|| {
                traffic
                    .frames(Timestamp::ZERO)
                    .filter_map(|frame| Headers::parse(&frame).ok())
                    .fold(0, |sum, headers| {
                        sum ^ hasher.hash(&FlowKey::of(&headers, None, true).0)
                    })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, walk);
criterion_main!(benches);
