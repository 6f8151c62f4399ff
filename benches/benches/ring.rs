//! What it costs to be handed a frame: out of a ring's block that the kernel filled, out of a file by the trait that both share, and into a
//! flight recorder. One element is one frame.
//!
//! Rings are opened in a network namespace made for it, as root; without that their part is left out, and why is told.
#![allow(missing_docs, reason = "a benchmark has no users")]

use std::error::Error;
use std::hint::black_box;
use std::net::UdpSocket;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use nv_benches::{ACK, Shape, Traffic};
use nvcapture::{
    CaptureFile, CaptureWriter, FlightRecorder, FrameBlock, FrameSource, InterfaceDescription,
    LinkType, Next, Ring, RingConfig, SegmentSizes, Timestamp,
};
use nvnet::lab::Lab;

const FRAMES: usize = 1024;
/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

type Failure = Box<dyn Error + Send + Sync>;

/// Reads all that a source has, whatever it is.
fn octets(source: &mut impl FrameSource) -> u64 {
    let mut octets = 0;
    while let Ok(Next::Block(block)) = source.next_block(Some(Duration::ZERO)) {
        octets += walked(&block);
    }
    octets
}

fn walked(block: &impl FrameBlock) -> u64 {
    block
        .frames()
        .map(|frame| {
            let frame = black_box(frame);
            u64::from(frame.wire_len()) + frame.octets().first().map_or(0, |&octet| octet.into())
        })
        .sum()
}

/// What a group counts.
#[derive(Clone, Copy)]
enum Unit {
    Frames,
    Octets,
}

impl Unit {
    fn of(self, frames: usize, length: usize) -> Throughput {
        match self {
            Self::Frames => Throughput::Elements(frames as u64),
            Self::Octets => Throughput::Bytes((frames * length) as u64),
        }
    }
}

/// Frames of a file: so many that a reader's buffer, made anew for each turn, does not count.
const IN_FILE: usize = 16 * FRAMES;

fn files(group: &mut BenchmarkGroup<'_, WallTime>, unit: Unit) {
    for length in [64, 594, 1514] {
        let traffic = Traffic::new(Shape::V4, length, IN_FILE, |place| {
            (place as u32, false, ACK)
        });
        let mut pcap = Vec::new();
        for word in [
            0xa1b2_3c4d_u32,
            0x0004_0002,
            0,
            0,
            262_144,
            u32::from(LinkType::ETHERNET.0),
        ] {
            pcap.extend(word.to_le_bytes());
        }
        let mut writer = CaptureWriter::new(Vec::new(), "bench").expect("memory");
        let number = writer
            .add_interface(&InterfaceDescription::default())
            .expect("memory");
        for frame in traffic.frames(Timestamp::ZERO) {
            let nanos = frame.timestamp().as_nanos() as u32;
            for word in [0, nanos, length as u32, length as u32] {
                pcap.extend(word.to_le_bytes());
            }
            pcap.extend(frame.octets());
            writer.write(number, &frame).expect("memory");
        }
        let pcapng = writer.finish().expect("memory");
        group.throughput(unit.of(IN_FILE, length));
        for (name, file) in [("pcap", &pcap), ("pcapng", &pcapng)] {
            group.bench_function(format!("{name}/{length}"), |bencher| {
                bencher.iter(|| {
                    let read = octets(&mut CaptureFile::new(&file[..]));
                    assert!(read >= (length * IN_FILE) as u64);
                    read
                });
            });
        }
    }
}

fn recorders(group: &mut BenchmarkGroup<'_, WallTime>, unit: Unit) {
    for length in [64, 256, 1514] {
        let traffic = Traffic::new(Shape::V4, length, FRAMES, |place| {
            (place as u32, false, ACK)
        });
        group.throughput(unit.of(FRAMES, length));
        // Larger than the caches, and full: each frame that comes pushes others out.
        let mut recorder = FlightRecorder::new(64 << 20, Duration::MAX).expect("memory");
        while recorder.stats().no_room == 0 {
            traffic
                .frames(Timestamp::ZERO)
                .for_each(|frame| recorder.push(&frame));
        }
        group.bench_function(format!("recorder/{length}"), |bencher| {
            bencher.iter(|| {
                traffic
                    .frames(Timestamp::ZERO)
                    .for_each(|frame| recorder.push(&frame));
            });
        });
    }
}

/// A ring that is closed to new frames, in whose first block are frames of `length` octets, put there by the kernel.
fn filled(config: &RingConfig, length: usize) -> Result<Ring, Failure> {
    let mut ring = Ring::open(config, "lo")?;
    let (from, to) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    let payload = vec![7; length - HEADERS];
    // Each is seen as it leaves and as it comes.
    for _ in 0..FRAMES / 2 {
        from.send_to(&payload, to.local_addr()?)?;
    }
    ring.stop()?;
    Ok(ring)
}

/// Walks a block again and again: it stays as it is as long as it is lent.
fn rings(group: &mut BenchmarkGroup<'_, WallTime>, unit: Unit) -> Result<(), Failure> {
    let lab = Lab::new(&["bench"])?;
    for length in [64, 594, 1514] {
        for (name, segment_sizes) in [
            ("block", SegmentSizes::Never),
            ("block, segment sizes told", SegmentSizes::Auto),
        ] {
            let config = RingConfig {
                block_size: 4 << 20,
                block_nr: 2,
                // Its time must not be out before all is sent.
                retire_blk_tov: Duration::from_secs(1),
                segment_sizes,
                ..RingConfig::default()
            };
            let mut ring = lab.host.run(|| filled(&config, length))??;
            let Next::Block(block) = ring.next_block(None)? else {
                return Err("no block came".into());
            };
            if block.len() != FRAMES {
                return Err(format!("{} frames of {FRAMES} in the block", block.len()).into());
            }
            group.throughput(unit.of(FRAMES, length));
            group.bench_function(format!("{name}/{length}"), |bencher| {
                bencher.iter(|| walked(&block));
            });
        }
    }
    Ok(())
}

fn ring(criterion: &mut Criterion) {
    for (name, unit) in [("frames", Unit::Frames), ("octets", Unit::Octets)] {
        let mut group = criterion.benchmark_group(format!("ring/{name}"));
        files(&mut group, unit);
        recorders(&mut group, unit);
        if let Err(why) = rings(&mut group, unit) {
            eprintln!("rings are left out: {why}");
        }
        group.finish();
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
