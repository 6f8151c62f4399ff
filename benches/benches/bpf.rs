//! Filters run by our own interpreter, beside the walk through the same frames' headers. One element is one frame.
#![allow(missing_docs, reason = "a benchmark has no users")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nv_benches::{ACK, Shape, Traffic};
use nvcapture::filter::Filter;
use nvcapture::wire::Headers;
use nvcapture::{LinkType, Timestamp};

const FRAMES: usize = 1024;

fn bpf(criterion: &mut Criterion) {
    for length in [64, 594, 1514] {
        let traffic = Traffic::new(Shape::V4, length, FRAMES, |place| {
            (place as u32 * 7_919, place % 3 == 0, ACK)
        });
        for (unit, throughput) in [
            ("frames", Throughput::Elements(FRAMES as u64)),
            ("octets", Throughput::Bytes((FRAMES * length) as u64)),
        ] {
            let mut group = criterion.benchmark_group(format!("bpf/{unit}/{length}"));
            group.throughput(throughput);
            group.bench_function("walk", |bencher| {
                bencher.iter(|| {
                    for frame in traffic.frames(Timestamp::ZERO) {
                        let headers = Headers::parse(&frame);
                        let _ = black_box(&headers);
                    }
                });
            });
            for expression in [
                "ip",
                "tcp port 443 and host 10.0.0.2",
                "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
            ] {
                let Ok(program) = Filter::compile(expression, LinkType::ETHERNET, u32::MAX) else {
                    continue;
                };
                group.bench_function(expression, |bencher| {
                    bencher.iter(|| {
                        for frame in traffic.frames(Timestamp::ZERO) {
                            black_box(program.admits(&frame));
                        }
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, bpf);
criterion_main!(benches);
