//! A capture metered from its file, and the same frames sent through a veth pair and metered from a ring at its other end: the same
//! records, but for what depends on time.
//!
//! The capture is made here: TCP, UDP, ICMP, tags, fragments, a tunnel, super-frames, runts. With `NV_CONFORMANCE` also every Ethernet
//! capture of its folder `core` is replayed.
#![allow(clippy::unwrap_used, reason = "in a test an error is a failure")]

#[path = "../../nvcapture/tests/common/mod.rs"]
#[allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "shared with nvcapture's tests, which wait for the kernel"
)]
mod common;
#[path = "support/frames.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod frames;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Pair, RawSender, needing, privileged};
use frames::{ACK, FIN, RST, SYN, icmp, ip, tcp, tcp_window, udp, v4, v6};
use libtest_mimic::{Arguments, Failed};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use nvcapture::{
    CaptureFile, CaptureWriter, Frame, FrameMeta, InterfaceDescription, LinkType, Next, Ring,
    RingConfig, Timestamp,
};
use nvflow::{FlowRecord, Meter, MeterConfig, MeterStats, Timeouts};

type Test = Result<(), Failed>;

/// The longest frame that can be sent: the largest MTU there is, behind an Ethernet header.
const LONGEST: usize = 65_535 + 14;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    // Where this fails, each test says that it needs a namespace.
    let _ = common::become_root();
    let folder = std::env::var_os("NV_CONFORMANCE").map(|folder| {
        let folder = PathBuf::from(folder);
        // Tests run in their package's folder; the variable is set in the workspace's.
        let folder = if folder.exists() {
            folder
        } else {
            Path::new("..").join(folder)
        };
        folder.join("core")
    });
    let trials = vec![
        privileged("a_capture_of_ours", a_capture_of_ours),
        needing(
            "captures_of_others",
            "conformance",
            {
                let folder = folder.clone();
                move || {
                    folder
                        .map(drop)
                        .ok_or_else(|| "NV_CONFORMANCE is not set".to_owned())
                }
            },
            move || common::in_netns(|| captures_of_others(&folder.unwrap()))?,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Frames of every kind that matters.
fn frames() -> Vec<Vec<u8>> {
    let (client, server) = (v4(1, 40_000), v4(2, 80));
    let (client6, server6) = (v6(1, 40_001), v6(2, 443));
    let there = |control, numbers, payload| tcp(0, (client, server), control, numbers, payload);
    let back = |control, numbers, payload| tcp(0, (server, client), control, numbers, payload);
    let big = tcp(0, (server6, client6), ACK, (900, 7), 60_000);
    let inner = tcp(0, (v4(7, 1), v4(8, 2)), SYN, (5, 0), 0);
    let vxlan = [&[0; 8][..], &inner.octets].concat();
    let mut outer = udp(0, v4(3, 50_000), v4(4, 4_789), vxlan.len());
    let start = outer.octets.len() - vxlan.len();
    outer.octets[start..].copy_from_slice(&vxlan);
    outer.octets[start] = 0x08;
    let mut first = udp(0, v4(5, 600), v4(6, 700), 16);
    first.octets[20] = 0x20;
    let mut later = udp(0, v4(5, 0), v4(6, 0), 16);
    later.octets[21] = 3;
    let made = [
        there(SYN, (100, 0), 0),
        back(SYN | ACK, (500, 101), 0),
        there(ACK, (101, 501), 0),
        there(ACK, (101, 501), 300),
        back(ACK, (501, 401), 1_400),
        back(ACK, (501, 401), 1_400),
        tcp_window(0, (client, server), ACK, (401, 1_901), 0, 0),
        there(FIN | ACK, (401, 1_901), 0),
        back(FIN | ACK, (1_901, 402), 0),
        there(ACK, (402, 1_902), 0),
        tcp(0, (client6, server6), SYN, (6, 0), 0),
        big,
        tcp(0, (client6, server6), RST, (7, 0), 0),
        udp(0, v4(1, 5_353), v4(9, 53), 30),
        udp(0, v4(9, 53), v4(1, 5_353), 500),
        icmp(0, v4(1, 0).0, v4(2, 0).0, 8, 77),
        icmp(0, v4(2, 0).0, v4(1, 0).0, 0, 77),
        ip(0, v6(1, 0).0, v6(2, 0).0, 132, &[1; 40]),
        outer,
        first,
        later,
    ];
    let mut frames: Vec<Vec<u8>> = made.into_iter().map(|made| made.octets).collect();
    // The same connection on a VLAN, and on one inside another, is another one.
    let plain = frames[0].clone();
    for tags in [&[0x81, 0, 0x60, 42][..], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8]] {
        frames.push([&plain[..12], tags, &plain[12..]].concat());
    }
    // As short as a frame can be, cut in its IP header, no IP at all.
    frames.push(plain[..14].to_vec());
    frames.push(plain[..30].to_vec());
    frames.push([&plain[..12], &[0x08, 0x06], &[0; 28]].concat());
    frames
}

/// One meter for all: nothing ends by time.
fn meter(decapsulate: bool) -> Meter {
    let long = Duration::MAX;
    Meter::new(MeterConfig {
        decapsulate,
        timeouts: Timeouts {
            tcp_established: long,
            tcp_half_open: long,
            tcp_closing: long,
            tcp_ended: long,
            udp: long,
            icmp: long,
            other: long,
            active: long,
        },
        // The veth carries whole what an offload made one frame of elsewhere.
        mtu: None,
        ..MeterConfig::default()
    })
    .unwrap()
}

/// What a record says beside times, sorted: a segment that comes again soon counts as late, else as sent again.
fn said(records: Vec<FlowRecord>) -> Vec<String> {
    let mut said: Vec<String> = records
        .into_iter()
        .map(|mut record| {
            record.flow_start = Timestamp::ZERO;
            record.flow_end = Timestamp::ZERO;
            if let Some(tcp) = &mut record.tcp {
                tcp.client_handshake_rtt_micros = None;
                tcp.server_handshake_rtt_micros = None;
                for side in [&mut tcp.forward, &mut tcp.reverse] {
                    side.smoothed_rtt_micros = None;
                    side.retransmitted_segments += side.out_of_order_segments;
                    side.out_of_order_segments = 0;
                }
            }
            format!("{record:?}")
        })
        .collect();
    said.sort();
    said
}

/// What was metered, and the records.
type Metered = (MeterStats, Vec<String>);

fn finish(mut meter: Meter, mut records: Vec<FlowRecord>) -> Metered {
    let Ok(_) = meter.finish(&mut records);
    (meter.stats(), said(records))
}

/// Whether a frame can be sent and is delivered: the kernel drops one that ends in its tag.
fn can_be_sent(frame: &[u8]) -> bool {
    let is_tagged = matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
    let shortest = if is_tagged { 20 } else { 14 };
    (shortest..=LONGEST).contains(&frame.len())
}

/// Meters the frames of `capture`, up to its damage if it has one: as they come from the file, and through the wire. A frame that was cut
/// when it was captured is taken as it is: it cannot be sent otherwise.
fn compare(capture: &[u8], ring: &mut Ring, wire: &RawSender) -> Result<u64, Failed> {
    let mut sent = 0;
    let mut of_file = [false, true].map(|decapsulate| (meter(decapsulate), Vec::new()));
    let mut of_wire = [false, true].map(|decapsulate| (meter(decapsulate), Vec::new()));
    let mut came = 0;
    // Until as many have come as were sent, or none comes any more.
    let mut read = |ring: &mut Ring, sent: u64, wait: Duration| -> Result<u64, Failed> {
        while came < sent {
            let Next::Block(block) = ring.next_block(Some(wait))? else {
                break;
            };
            for (meter, records) in &mut of_wire {
                let Ok(_) = meter.observe(block.frames(), records);
            }
            came += block.frames().count() as u64;
        }
        Ok(came)
    };
    let mut file = CaptureFile::new(capture);
    while let Ok(Next::Block(block)) = file.next_block() {
        for frame in block.frames() {
            let octets = frame.octets();
            if frame.meta().link_type != LinkType::ETHERNET || !can_be_sent(octets) {
                continue;
            }
            // One tick apart: no clock goes back, and no pause is long.
            let time = Timestamp::from_nanos(sent * 2_000_000);
            let whole = Frame::new(octets, FrameMeta::ethernet(time, octets.len() as u32));
            for (meter, records) in &mut of_file {
                let Ok(_) = meter.observe([whole], records);
            }
            wire.send(octets)?;
            sent += 1;
            if sent % 64 == 0 {
                read(ring, sent, Duration::ZERO)?;
            }
        }
    }
    let came = read(ring, sent, Duration::from_secs(5))?;
    if came != sent {
        return Err(format!("{sent} frames were sent, {came} came").into());
    }
    for ((a, a_records), (b, b_records)) in of_file.into_iter().zip(of_wire) {
        let (file, wire) = (finish(a, a_records), finish(b, b_records));
        if file != wire {
            return Err(format!("file: {file:#?}\nwire: {wire:#?}").into());
        }
    }
    Ok(sent)
}

/// A pair of ends that take the longest frames there are, a ring at one and a sender at the other.
fn wire() -> Result<(Pair, Ring, RawSender), Failed> {
    // One processor, so that no frame overtakes another.
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    one.set(first.ok_or("no processor")?)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    let pair = Pair::new()?;
    pair.set_mtu(65_535)?;
    let config = RingConfig {
        ignore_outgoing: true,
        retire_blk_tov: Duration::from_millis(10),
        ..RingConfig::default()
    };
    let ring = Ring::open(&config, "right")?;
    let sender = RawSender::new("left")?;
    Ok((pair, ring, sender))
}

fn a_capture_of_ours() -> Test {
    let mut writer = CaptureWriter::new(Vec::new(), "test")?;
    let interface = writer.add_interface(&InterfaceDescription::default())?;
    let frames = frames();
    for (octets, number) in frames.iter().zip(0..) {
        let time = Timestamp::from_nanos(number * 1_000_000);
        let meta = FrameMeta::ethernet(time, octets.len() as u32);
        writer.write(interface, &Frame::new(octets, meta))?;
    }
    let (_pair, mut ring, sender) = wire()?;
    let sent = compare(&writer.finish()?, &mut ring, &sender)?;
    assert_eq!(sent, frames.len() as u64);
    assert_eq!(ring.stats()?.dropped, 0);
    Ok(())
}

fn captures_of_others(folder: &Path) -> Test {
    let (_pair, mut ring, sender) = wire()?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let mut frames = 0;
    let mut replayed = 0;
    for path in &files {
        let sent = compare(&std::fs::read(path)?, &mut ring, &sender)
            .map_err(|error| format!("{}: {}", path.display(), error.message().unwrap_or("")))?;
        frames += sent;
        replayed += u64::from(sent > 0);
    }
    println!("{replayed} of {} captures, {frames} frames", files.len());
    assert!(replayed > 0);
    assert_eq!(ring.stats()?.dropped, 0);
    Ok(())
}
