//! Rings in namespaces of their own: every frame that the interface counted is handed out or counted as lost.
#![allow(clippy::unwrap_used, reason = "in a test an error is a failure")]

#[allow(dead_code, reason = "shared with nvflow's test of replays")]
mod common;

use std::num::NonZeroU16;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use common::{Pair, RawSender, Sender, in_netns, needing, privileged, received, send_raw};
use libtest_mimic::{Arguments, Failed};
use nvcapture::{
    BpfInsn, CaptureFile, CaptureWriter, Error, Fanout, FanoutMode, InterfaceDescription, Next,
    PacketType, Ring, RingConfig, SegmentSize, SegmentSizes, SourceStats, VlanTag,
    wire::{Headers, Segments},
};

type Test = Result<(), Failed>;

/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Asks this program, run by somebody without privileges, to open a ring and say what it got.
const CHILD: &str = "NV_RING_TEST_CHILD";

fn main() -> std::process::ExitCode {
    if std::env::var_os(CHILD).is_some() {
        match Ring::open(&RingConfig::default(), "lo") {
            Ok(_) => println!("opened"),
            Err(error) => println!("{error}"),
        }
        return std::process::ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // They count what the process has open.
    arguments.test_threads = Some(1);
    // Where this fails, each test says that it needs a namespace.
    let _ = common::become_root();
    let trials = vec![
        privileged("every_frame_is_handed_out", every_frame_is_handed_out),
        privileged(
            "frames_tell_what_the_kernel_knew",
            frames_tell_what_the_kernel_knew,
        ),
        privileged("a_block_looked_at_twice_or_never_counts_once", counts_once),
        privileged("snaplen_cuts_in_the_kernel", snaplen_cuts_in_the_kernel),
        privileged("vlan_tag_comes_beside_the_octets", vlan_tag),
        privileged("super_frames_tell_how_they_are_cut", super_frames),
        privileged("outgoing_frames_can_be_left_out", outgoing),
        privileged(
            "a_full_ring_counts_what_it_drops",
            a_full_ring_counts_what_it_drops,
        ),
        privileged("a_full_block_lets_more_gather", gathers),
        privileged("nothing_is_allocated_per_frame", nothing_is_allocated),
        privileged("fanout_shares_without_loss_or_double", fanout),
        privileged("no_connection_is_on_two_rings", connections),
        privileged(
            "a_filter_is_there_before_the_first_frame",
            filter_before_first_frame,
        ),
        privileged("a_filter_may_compute_its_answer", filter_computes),
        privileged("a_filter_the_kernel_refuses_is_named", filter_refused),
        privileged("missing_interface_is_named", missing_interface),
        privileged("interface_that_is_down_is_named", interface_down_at_open),
        privileged("interface_goes_down_and_up_again", down_and_up),
        privileged(
            "down_is_told_to_who_does_not_wait",
            down_is_told_to_who_does_not_wait,
        ),
        privileged("interface_removed_while_waiting", removed),
        privileged("waiting_ends_in_time_without_frames", waiting_ends),
        privileged("a_ring_can_move_to_another_thread_and_namespace", moves),
        privileged(
            "opened_1000_times_in_24_namespaces_leaves_nothing",
            leaves_nothing,
        ),
        needing(
            "without_privilege_the_error_says_what_is_missing",
            "other uid",
            probe_uid,
            unprivileged,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// For rings that nobody reads while frames are sent: a slow sender would else fill one block after the other with next to nothing.
const UNREAD: Duration = Duration::from_millis(500);

fn small() -> RingConfig {
    RingConfig {
        block_size: 1 << 18,
        block_nr: 8,
        retire_blk_tov: Duration::from_millis(10),
        ..RingConfig::default()
    }
}

/// Reads to the end and returns the lengths kept of all frames; the ring must have been stopped.
fn drain(ring: &mut Ring) -> Result<Vec<usize>, Error> {
    let mut kept = Vec::new();
    loop {
        match ring.next_block(None)? {
            Next::Block(block) => kept.extend(block.frames().map(|frame| frame.octets().len())),
            Next::TimedOut => {}
            Next::End => return Ok(kept),
        }
    }
}

fn finish(ring: &mut Ring) -> Result<(Vec<usize>, SourceStats), Error> {
    ring.stop()?;
    let kept = drain(ring)?;
    Ok((kept, ring.stats()?))
}

fn every_frame_is_handed_out() -> Test {
    let _pair = Pair::new()?;
    let before = received("right")?;
    // So long that the last block is still being filled when the ring is stopped.
    let config = RingConfig {
        retire_blk_tov: Duration::from_millis(500),
        ..small()
    };
    let mut ring = Ring::open(&config, "right")?;
    let sender = Sender::new()?;
    // More than the ring holds, so it is read in between.
    let mut seen = 0;
    for _ in 0..50 {
        sender.send(200, 1000)?;
        while let Next::Block(block) = ring.next_block(Some(Duration::ZERO))? {
            seen += block.frames().count();
        }
    }
    let (kept, stats) = finish(&mut ring)?;
    let after = received("right")?;
    assert_eq!(seen + kept.len(), 10_000);
    assert_eq!(stats.frames, 10_000);
    assert_eq!(stats.frames, after.0 - before.0);
    assert_eq!(stats.wire_octets, after.1 - before.1);
    assert_eq!(stats.wire_octets, 10_000 * (1000 + HEADERS) as u64);
    assert_eq!((stats.dropped, stats.truncated), (0, 0));
    // Stopped is stopped.
    sender.send(10, 10)?;
    assert!(matches!(ring.next_block(None)?, Next::End));
    assert_eq!(ring.stats()?, stats);
    Ok(())
}

fn frames_tell_what_the_kernel_knew() -> Test {
    let pair = Pair::new()?;
    let mut ring = Ring::open(&small(), pair.right)?;
    assert_eq!((ring.interface(), ring.ifindex()), ("right", pair.right));
    let clock = std::time::SystemTime::now();
    Sender::new()?.send(3, 100)?;
    ring.stop()?;
    let mut last = nvcapture::Timestamp::ZERO;
    let mut frames = 0;
    while let Next::Block(block) = ring.next_block(None)? {
        for frame in block.frames() {
            frames += 1;
            let meta = frame.meta();
            assert_eq!(meta.interface, pair.right);
            assert_eq!(meta.packet_type, Some(PacketType::Broadcast));
            assert_eq!(meta.vlan, None);
            assert!(
                meta.checksum_not_ready,
                "veth leaves checksums to the device"
            );
            assert_eq!(frame.wire_len() as usize, 100 + HEADERS);
            assert_eq!(frame.octets()[..6], [0xff; 6]);
            assert_eq!(frame.octets()[12..14], [8, 0]);
            assert_eq!(frame.octets()[HEADERS..], [0x5a; 100]);
            assert!(frame.timestamp() >= last);
            last = frame.timestamp();
        }
    }
    assert_eq!(frames, 3);
    let sent = clock.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let apart = u128::from(last.as_nanos()).abs_diff(sent);
    assert!(
        apart < 3_600_000_000_000,
        "nanoseconds since the epoch: {apart} apart"
    );
    Ok(())
}

fn counts_once() -> Test {
    let _pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    let sender = Sender::new()?;
    sender.send(10, 100)?;
    ring.stop()?;
    let mut blocks = 0;
    while let Next::Block(block) = ring.next_block(None)? {
        blocks += 1;
        assert_eq!(block.frames().count(), block.len());
        assert_eq!(block.frames().take(2).count(), 2.min(block.len()));
        assert_eq!(block.frames().count(), block.len());
    }
    assert!(blocks > 0);
    assert_eq!(ring.stats()?.frames, 10);

    let mut ring = Ring::open(&small(), "right")?;
    sender.send(10, 100)?;
    ring.stop()?;
    while let Next::Block(block) = ring.next_block(None)? {
        let _ = block.frames().next();
    }
    let stats = ring.stats()?;
    assert_eq!(stats.frames, 10);
    assert_eq!(stats.wire_octets, 10 * (100 + HEADERS) as u64);
    Ok(())
}

fn snaplen_cuts_in_the_kernel() -> Test {
    let _pair = Pair::new()?;
    let config = RingConfig {
        snaplen: Some(64),
        ..small()
    };
    let mut ring = Ring::open(&config, "right")?;
    let sender = Sender::new()?;
    sender.send(5, 1000)?;
    sender.send(2, 64 - HEADERS)?;
    let (kept, stats) = finish(&mut ring)?;
    assert_eq!(kept, [64; 7]);
    assert_eq!(stats.truncated, 5);
    assert_eq!(stats.wire_octets, 5 * (1000 + HEADERS) as u64 + 2 * 64);
    Ok(())
}

fn vlan_tag() -> Test {
    let _pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    let addresses = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    let inside = [&[0x88, 0xb5][..], &[0x5a; 60]].concat();
    let tags = [[0x81, 0, 0x60, 42], [0x88, 0xa8, 0x0f, 0xff]];
    let frames: Vec<_> = tags
        .iter()
        .map(|tag| [&addresses[..], tag, &inside].concat())
        .collect();
    for frame in &frames {
        send_raw("left", frame)?;
    }
    ring.stop()?;
    let mut writer = CaptureWriter::new(Vec::new(), "test")?;
    let right = writer.add_interface(&InterfaceDescription::default())?;
    let mut seen = Vec::new();
    while let Next::Block(block) = ring.next_block(None)? {
        for frame in block.frames() {
            assert_eq!(frame.octets(), [&addresses[..], &inside].concat());
            assert_eq!(frame.wire_len() as usize, frame.octets().len());
            writer.write(right, &frame)?;
            seen.push(frame.meta().vlan.ok_or("no tag")?);
        }
    }
    let expected = [(0x8100, 0x602a), (0x88a8, 0x0fff)].map(|(tpid, tci)| VlanTag { tpid, tci });
    assert_eq!(seen, expected);
    // In a file the tag is where it was on the wire.
    let file = writer.finish()?;
    let mut file = CaptureFile::new(&file[..]);
    let mut written = Vec::new();
    while let Next::Block(block) = file.next_block()? {
        for frame in block.frames() {
            assert_eq!(frame.wire_len() as usize, frame.octets().len());
            assert_eq!(frame.meta().packet_type, Some(PacketType::Broadcast));
            written.push(frame.octets().to_vec());
        }
    }
    assert_eq!(written, frames);
    Ok(())
}

/// Of the kernel's own making: UDP segmentation, which veth carries uncut.
fn super_frames() -> Test {
    let pair = Pair::new()?;
    let never = RingConfig {
        segment_sizes: SegmentSizes::Never,
        ..small()
    };
    let cut = RingConfig {
        snaplen: Some(60),
        ..small()
    };
    let mut rings = [
        Ring::open(&small(), "right")?,
        Ring::open(&cut, "right")?,
        Ring::open(&never, "right")?,
    ];
    assert_eq!(rings[0].mtu()?, 1500);
    pair.set_mtu(2000)?;
    assert_eq!(rings[0].mtu()?, 2000);
    let told = rings[0].tells_segment_sizes();
    assert!(!rings[2].tells_segment_sizes());
    let sender = Sender::new()?;
    sender.segments(1000)?;
    sender.send(1, 999)?;
    sender.send(1, 4001)?;
    sender.send(1, 1000)?;
    sender.segments(333)?;
    sender.send(1, 3330)?;
    let size = |octets| match NonZeroU16::new(octets) {
        Some(octets) => SegmentSize::Octets(octets),
        None => SegmentSize::Whole,
    };
    let expected = [(999, 0, 1), (4001, 1000, 5), (1000, 0, 1), (3330, 333, 10)];
    for (at, ring) in rings.iter_mut().enumerate() {
        ring.stop()?;
        let mut seen = Vec::new();
        while let Next::Block(block) = ring.next_block(None)? {
            for frame in block.frames() {
                let headers = Headers::parse(&frame)?;
                let count = Segments::of(&frame, &headers, None).map_or(1, |told| told.count);
                // Nothing is moved by what the kernel tells beside the octets.
                assert_eq!(frame.octets()[12..15], [8, 0, 0x45]);
                let payload = frame.wire_len() as usize - HEADERS;
                seen.push((payload, frame.meta().segment_size, count));
            }
        }
        let expected = expected.map(|(payload, octets, count)| {
            if told && at < 2 {
                (payload, size(octets), count)
            } else {
                (payload, SegmentSize::Unknown, 1)
            }
        });
        assert_eq!(seen, expected, "ring {at}");
        assert_eq!(ring.stats()?.dropped, 0);
    }
    Ok(())
}

fn outgoing() -> Test {
    let _pair = Pair::new()?;
    let with = RingConfig {
        ignore_outgoing: true,
        ..small()
    };
    let grouped = RingConfig {
        fanout: Some(Fanout {
            group: 7,
            mode: FanoutMode::Hash,
            defrag: false,
        }),
        ..with.clone()
    };
    let mut all = Ring::open(&small(), "left")?;
    let mut incoming = Ring::open(&with, "left")?;
    let mut shared = Ring::open(&grouped, "left")?;
    Sender::new()?.send(5, 100)?;
    all.stop()?;
    let mut frames = 0;
    while let Next::Block(block) = all.next_block(None)? {
        for frame in block.frames() {
            frames += 1;
            assert_eq!(frame.meta().packet_type, Some(PacketType::Outgoing));
        }
    }
    assert_eq!(frames, 5);
    assert_eq!(finish(&mut incoming)?.0.len(), 0);
    assert_eq!(finish(&mut shared)?.0.len(), 0);
    Ok(())
}

fn a_full_ring_counts_what_it_drops() -> Test {
    let _pair = Pair::new()?;
    let config = RingConfig {
        block_size: 1 << 17,
        block_nr: 2,
        ..small()
    };
    let mut ring = Ring::open(&config, "right")?;
    let sender = Sender::new()?;
    sender.send(2000, 1000)?;
    // Read in the middle: what the kernel resets at each reading is added up.
    let first = ring.stats()?;
    assert!(first.dropped > 0);
    sender.send(2000, 1000)?;
    let (kept, stats) = finish(&mut ring)?;
    assert!(stats.dropped > first.dropped);
    assert!(stats.freezes > 0);
    assert_eq!(stats.frames, kept.len() as u64);
    assert_eq!(stats.frames + stats.dropped, 4000);
    Ok(())
}

fn gathers() -> Test {
    let _pair = Pair::new()?;
    // No block is handed over but one that is full.
    let config = RingConfig {
        retire_blk_tov: Duration::from_secs(60),
        ..small()
    };
    let sender = Sender::new()?;
    for gather in [Duration::from_nanos(1), Duration::from_secs(3600)] {
        let mut ring = Ring::open(
            &RingConfig {
                gather,
                block_nr: 16,
                ..config.clone()
            },
            "right",
        )?;
        assert_eq!(ring.gathers(), None);
        sender.send(400, 1000)?;
        let Next::Block(block) = ring.next_block(None)? else {
            return Err("no block".into());
        };
        let times: Vec<_> = block.frames().map(|frame| frame.timestamp()).collect();
        drop(block);
        // Who may not wait does not gather.
        assert!(matches!(
            ring.next_block(Some(Duration::ZERO))?,
            Next::TimedOut
        ));
        // An eighth of sixteen blocks is two; in less time than one takes none would come.
        let took = Duration::from_nanos(times[times.len() - 1].as_nanos() - times[0].as_nanos());
        assert_eq!(ring.gathers(), (gather > took).then_some(2 * took));
        assert_eq!(ring.gathers(), None, "told once");
        // It has waited behind this one, and ends in time.
        sender.send(400, 1000)?;
        assert!(matches!(ring.next_block(None)?, Next::Block(_)));
        while let Next::Block(_) = ring.next_block(Some(Duration::from_millis(500)))? {}
        assert_eq!(ring.gathers(), None, "slept for already");
    }
    for (gather, retire_blk_tov, payload) in [
        (Duration::ZERO, Duration::from_secs(60), 1000),
        // Time was out: nothing is there to be waited for.
        (Duration::from_secs(3600), Duration::from_millis(10), 1),
        // An eighth of eight blocks is one: the next one wakes as well.
        (Duration::from_secs(3600), Duration::from_secs(60), 1000),
    ] {
        let config = RingConfig {
            gather,
            retire_blk_tov,
            ..config.clone()
        };
        let mut ring = Ring::open(&config, "right")?;
        sender.send(400, payload)?;
        assert!(matches!(ring.next_block(None)?, Next::Block(_)));
        assert_eq!(ring.gathers(), None);
    }
    Ok(())
}

/// From block to block, out of the kernel's memory, with the walk through the headers and the totals.
fn nothing_is_allocated() -> Test {
    const FRAMES: usize = 10_000;
    let _pair = Pair::new()?;
    let config = RingConfig {
        block_nr: 64,
        retire_blk_tov: UNREAD,
        ..small()
    };
    let mut ring = Ring::open(&config, "right")?;
    Sender::new()?.send(FRAMES, 1000)?;
    let (mut frames, mut blocks, mut failed) = (0, 0, None);
    let allocated = allocation_counter::measure(|| {
        while frames < FRAMES {
            match ring.next_block(Some(Duration::from_secs(20))) {
                Ok(Next::Block(block)) => {
                    blocks += 1;
                    frames += block
                        .frames()
                        .filter(|frame| Headers::parse(frame).is_ok())
                        .count();
                }
                Ok(_) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        failed = failed.take().or(ring.stats().err());
    });
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!(frames, FRAMES);
    // Several blocks, or it is not seen what each takes.
    assert!(blocks > 10, "{blocks}");
    assert_eq!(allocated.count_total, 0);
    Ok(())
}

fn fanout() -> Test {
    let _pair = Pair::new()?;
    let config = RingConfig {
        fanout: Some(Fanout {
            group: 3,
            mode: FanoutMode::Hash,
            defrag: false,
        }),
        retire_blk_tov: UNREAD,
        ..small()
    };
    let mut rings = [Ring::open(&config, "right")?, Ring::open(&config, "right")?];
    // Another source port each: other connections.
    for _ in 0..64 {
        Sender::new()?.send(3, 100)?;
    }
    let mut frames = Vec::new();
    for ring in &mut rings {
        let (kept, stats) = finish(ring)?;
        assert_eq!(stats.dropped, 0);
        frames.push(kept.len());
    }
    assert_eq!(frames.iter().sum::<usize>(), 64 * 3, "{frames:?}");
    assert!(frames.iter().all(|&frames| frames > 0), "{frames:?}");
    assert!(
        frames.iter().all(|&frames| frames % 3 == 0),
        "a connection was split: {frames:?}"
    );

    let other = RingConfig {
        fanout: Some(Fanout {
            group: 3,
            mode: FanoutMode::Cpu,
            defrag: false,
        }),
        ..small()
    };
    let error = Ring::open(&other, "right").unwrap_err().to_string();
    assert!(
        error.contains("PACKET_FANOUT") && error.contains("group 3"),
        "{error}"
    );
    Ok(())
}

/// Wants UDP datagrams to `port` and keeps what `answer` says of them.
/// Ethernet, IP, and what is behind; the connection's number ends the frame.
fn packet(
    client: u8,
    from_client: bool,
    protocol: u8,
    ports: (u16, u16),
    behind: &[u8],
    how: &How,
) -> Vec<u8> {
    let mark = *b"NeuV\x00\x07";
    let (inside, outside) = (mark, [2, 0, 0, 0, 0, 9]);
    let mut frame = if from_client {
        [inside, outside].concat() // to the container
    } else {
        [outside, inside].concat()
    };
    let (source, destination) = if from_client {
        (client, 1)
    } else {
        (1, client)
    };
    let (sport, dport) = if from_client {
        ports
    } else {
        (ports.1, ports.0)
    };
    let mut body = Vec::new();
    if !how.later_fragment {
        body.extend(sport.to_be_bytes());
        body.extend(dport.to_be_bytes());
    }
    if protocol == 17 && !how.later_fragment {
        body.extend((8 + behind.len() as u16).to_be_bytes());
        body.extend([0; 2]);
    } else if protocol == 6 {
        body.extend([0; 8]);
        body.extend([0x50, 0x10, 0, 9, 0, 0, 0, 0]);
    }
    body.extend(behind);
    if how.v6 {
        let label = if how.label { 5 } else { 0 };
        frame.extend([0x86, 0xdd, 0x60, 0, 0, label]);
        frame.extend((body.len() as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        for last in [source, destination] {
            frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
    } else {
        let options = if how.options { [1; 4].as_slice() } else { &[] };
        let fragment: u16 = if how.later_fragment {
            100
        } else if how.first_fragment {
            0x2000
        } else {
            0
        };
        frame.extend([8, 0, 0x45 + (options.len() / 4) as u8, 0]);
        frame.extend((20 + options.len() as u16 + body.len() as u16).to_be_bytes());
        frame.extend([0, 7]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend([10, 1, 0, source, 10, 1, 0, destination]);
        frame.extend(options);
    }
    frame.extend(body);
    frame
}

#[derive(Default)]
struct How {
    v6: bool,
    label: bool,
    options: bool,
    first_fragment: bool,
    later_fragment: bool,
}

/// Thousands of connections, each in both directions and in all shapes that its packets come in.
fn connections() -> Test {
    const RINGS: usize = 3;
    const TCP: u32 = 4096;
    const UDP: u32 = 200;
    let _pair = Pair::new()?;
    let config = RingConfig {
        fanout: Some(Fanout {
            group: 11,
            mode: FanoutMode::Connections,
            defrag: false,
        }),
        block_nr: 32,
        retire_blk_tov: UNREAD,
        ..small()
    };
    let mut rings = Vec::new();
    for _ in 0..RINGS {
        rings.push(Ring::open(&config, "right")?);
    }
    // Frames that leave are shared out too, by a program that then finds them elsewhere in memory.
    let mut leaving = Vec::new();
    for _ in 0..RINGS {
        leaving.push(Ring::open(&config_in(&config, 12), "left")?);
    }
    let sender = RawSender::new("left")?;
    let default = How::default;
    for number in 0..TCP {
        let ports = (1024 + (number % 64) as u16 * 3, 443);
        let client = 2 + (number / 64) as u8;
        let v6 = number % 2 == 1;
        for from_client in [true, false] {
            // One end labels its flows, the other does not; one end's packets have options.
            let label = from_client && v6;
            let how = How {
                v6,
                label,
                options: from_client && !v6,
                ..default()
            };
            sender.send(&packet(
                client,
                from_client,
                6,
                ports,
                &number.to_be_bytes(),
                &how,
            ))?;
        }
    }
    let mut sent = 2 * TCP;
    for number in TCP..TCP + UDP {
        let ports = (1024 + number as u16, 53);
        let client = 2 + (number - TCP) as u8;
        let number = number.to_be_bytes();
        for how in [
            default(),
            How {
                options: true,
                ..default()
            },
            How {
                first_fragment: true,
                ..default()
            },
            How {
                later_fragment: true,
                ..default()
            },
        ] {
            for from_client in [true, false] {
                sender.send(&packet(client, from_client, 17, ports, &number, &how))?;
                sent += 1;
            }
        }
        // A tunnel's ends choose the port they send from as they like, for each direction and connection inside.
        for (from_client, port) in [(true, 40_000), (false, 50_000), (true, 60_000)] {
            let inside = packet(client, from_client, 6, ports, &number, &default());
            let vxlan = [&[8, 0, 0, 0, 0, 0, 9, 0], &inside[..]].concat();
            let ports = if from_client {
                (port, 4789)
            } else {
                (4789, port)
            };
            sender.send(&packet(client, from_client, 17, ports, &vxlan, &default()))?;
            sent += 1;
        }
    }
    for group in [&mut rings, &mut leaving] {
        let mut whose = std::collections::BTreeMap::new();
        let mut shares = [0_u32; RINGS];
        for (at, ring) in group.iter_mut().enumerate() {
            ring.stop()?;
            while let Next::Block(block) = ring.next_block(None)? {
                for frame in block.frames() {
                    shares[at] += 1;
                    let number = *frame.octets().last_chunk::<4>().ok_or("too short")?;
                    let ring = *whose.entry(number).or_insert(at);
                    assert_eq!(ring, at, "connection {number:?} is on two rings");
                }
            }
            assert_eq!(ring.stats()?.dropped, 0);
        }
        assert_eq!(whose.len() as u32, TCP + UDP);
        assert_eq!(shares.iter().sum::<u32>(), sent, "{shares:?}");
        // Shared out, not only kept together: no ring has less than half of its part.
        let part = sent / RINGS as u32;
        assert!(shares.iter().all(|&share| share > part / 2), "{shares:?}");
    }
    Ok(())
}

fn config_in(config: &RingConfig, group: u16) -> RingConfig {
    RingConfig {
        fanout: config.fanout.map(|fanout| Fanout { group, ..fanout }),
        ..config.clone()
    }
}

fn to_port(port: u32, answer: &[BpfInsn]) -> Vec<BpfInsn> {
    let insn = |code, jt, jf, k| BpfInsn { code, jt, jf, k };
    let mut program = vec![
        insn(0x28, 0, 0, 12),
        insn(0x15, 0, 4, 0x0800),
        insn(0x30, 0, 0, 23),
        insn(0x15, 0, 2, 17),
        insn(0x28, 0, 0, 36), // no IP options here
        insn(0x15, 1, 0, port),
        insn(0x06, 0, 0, 0),
    ];
    program.extend_from_slice(answer);
    program
}

const KEEP: BpfInsn = BpfInsn {
    code: 0x06,
    jt: 0,
    jf: 0,
    k: 0xffff,
};

fn filter_before_first_frame() -> Test {
    let _pair = Pair::new()?;
    let config = RingConfig {
        filter: Some(to_port(4242, &[KEEP])),
        snaplen: Some(50),
        ..small()
    };
    let sender = Sender::new()?;
    let (done, until) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| -> Test {
        // Frames that no ring wants, all the time, the moment of opening included.
        let noise = scope.spawn(move || -> std::io::Result<u64> {
            let mut sent = 0;
            while let Err(std::sync::mpsc::TryRecvError::Empty) = until.try_recv() {
                sender.send_to(4243, 1, 100)?;
                sent += 1;
            }
            Ok(sent)
        });
        let wanted = Sender::new()?;
        let before = received("right")?.0;
        while received("right")?.0 < before + 100 {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            let mut ring = Ring::open(&config, "right")?;
            wanted.send_to(4242, 1, 100)?;
            // Behind the noise it may have to wait for its turn in the kernel.
            let mut kept = Vec::new();
            if let Next::Block(block) = ring.next_block(Some(Duration::from_secs(10)))? {
                kept.extend(block.frames().map(|frame| frame.octets().len()));
            }
            let (late, stats) = finish(&mut ring)?;
            kept.extend(late);
            assert_eq!(kept, [50]);
            assert_eq!((stats.frames, stats.dropped), (1, 0));
        }
        drop(done);
        assert!(noise.join().map_err(|_| "the sender panicked")?? > 100);
        Ok(())
    })
}

fn filter_computes() -> Test {
    let _pair = Pair::new()?;
    let sender = Sender::new()?;
    // The answer is the port number found in the frame: `ld [36:2]; ret a`.
    let insn = |code, jt, jf, k| BpfInsn { code, jt, jf, k };
    let answer = [insn(0x28, 0, 0, 36), insn(0x16, 0, 0, 0)];
    for (snaplen, kept) in [(None, [60, 60]), (Some(50), [50, 50]), (Some(80), [60, 60])] {
        let config = RingConfig {
            filter: Some(to_port(60, &answer)),
            snaplen,
            ..small()
        };
        let mut ring = Ring::open(&config, "right")?;
        sender.send_to(60, 2, 100)?;
        sender.send_to(61, 2, 100)?;
        assert_eq!(finish(&mut ring)?.0, kept);
    }
    // The accumulator is 0 at the start, whatever is put before the program: nothing is kept.
    let config = RingConfig {
        filter: Some(vec![insn(0x16, 0, 0, 0)]),
        ignore_outgoing: true,
        ..small()
    };
    let mut ring = Ring::open(&config, "right")?;
    sender.send(2, 100)?;
    assert_eq!(finish(&mut ring)?.0.len(), 0);
    Ok(())
}

fn filter_refused() -> Test {
    let _pair = Pair::new()?;
    let jumps_out = BpfInsn {
        code: 0x05,
        jt: 0,
        jf: 0,
        k: 100,
    };
    let config = RingConfig {
        filter: Some(vec![jumps_out, KEEP]),
        ..small()
    };
    let error = Ring::open(&config, "right").unwrap_err();
    assert!(error.to_string().contains("SO_ATTACH_FILTER"), "{error}");
    Ok(())
}

fn missing_interface() -> Test {
    let error = Ring::open(&small(), "eth7").unwrap_err();
    assert!(matches!(error, Error::NoInterface { .. }));
    assert!(error.to_string().contains("eth7"), "{error}");
    let error = Ring::open(&small(), 4711).unwrap_err();
    assert!(error.to_string().contains("ifindex 4711"), "{error}");
    for odd in ["", "a\0b", "a name that is far too long for the kernel"] {
        assert!(matches!(
            Ring::open(&small(), odd),
            Err(Error::NoInterface { .. })
        ));
    }
    Ok(())
}

fn interface_down_at_open() -> Test {
    let pair = Pair::new()?;
    pair.set_down("right")?;
    let error = Ring::open(&small(), "right").unwrap_err();
    assert!(matches!(&error, Error::InterfaceDown { interface } if interface == "right"));
    Ok(())
}

/// Reads until the ring fails; the frames before that.
fn until_error(ring: &mut Ring) -> Result<(usize, Error), Failed> {
    let mut frames = 0;
    loop {
        match ring.next_block(Some(Duration::from_secs(20))) {
            Ok(Next::Block(block)) => frames += block.frames().count(),
            Ok(other) => return Err(format!("{other:?} instead of an error").into()),
            Err(error) => return Ok((frames, error)),
        }
    }
}

fn down_and_up() -> Test {
    let pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    let sender = Sender::new()?;
    sender.send(5, 100)?;
    pair.set_down("right")?;
    let (frames, error) = until_error(&mut ring)?;
    assert_eq!(frames, 5, "what came before is handed out first");
    assert!(
        matches!(&error, Error::InterfaceDown { interface } if interface == "right"),
        "{error}"
    );
    // Told once; then the ring waits for better times.
    assert!(matches!(
        ring.next_block(Some(Duration::ZERO))?,
        Next::TimedOut
    ));
    let before = received("right")?.0;
    pair.set_up("right")?;
    common::settle()?;
    sender.send(5, 100)?;
    let (kept, stats) = finish(&mut ring)?;
    let after = (received("right")?.0 - before) as usize;
    assert!(after > 5);
    assert_eq!((kept.len(), stats.frames as usize), (after, 5 + after));
    Ok(())
}

fn down_is_told_to_who_does_not_wait() -> Test {
    let pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    assert!(matches!(
        ring.next_block(Some(Duration::ZERO))?,
        Next::TimedOut
    ));
    pair.set_down("right")?;
    let told = ring.next_block(Some(Duration::ZERO));
    assert!(
        matches!(&told, Err(Error::InterfaceDown { interface }) if interface == "right"),
        "{told:?}"
    );
    Ok(())
}

fn removed() -> Test {
    let pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    Sender::new()?.send(5, 100)?;
    std::thread::scope(|scope| -> Test {
        let deleting = scope.spawn(|| pair.delete());
        let (frames, error) = until_error(&mut ring)?;
        assert_eq!(frames, 5);
        // Removal sets it down first; either may be seen.
        let error = match error {
            Error::InterfaceDown { .. } => until_error(&mut ring)?.1,
            error => error,
        };
        assert!(
            matches!(&error, Error::InterfaceGone { interface } if interface == "right"),
            "{error}"
        );
        // And so it stays.
        assert!(matches!(
            until_error(&mut ring)?.1,
            Error::InterfaceGone { .. }
        ));
        deleting.join().map_err(|_| "deleting panicked")??;
        Ok(())
    })
}

fn waiting_ends() -> Test {
    let _pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    for wait in [
        Duration::ZERO,
        Duration::from_micros(1),
        Duration::from_millis(3),
    ] {
        assert!(matches!(ring.next_block(Some(wait))?, Next::TimedOut));
    }
    let config = RingConfig {
        busy_poll: Duration::from_secs(3600),
        ..small()
    };
    let mut ring = Ring::open(&config, "right")?;
    assert!(matches!(
        ring.next_block(Some(Duration::from_millis(3)))?,
        Next::TimedOut
    ));
    ring.stop()?;
    assert!(matches!(ring.next_block(None)?, Next::End));
    Ok(())
}

fn moves() -> Test {
    let _pair = Pair::new()?;
    let mut ring = Ring::open(&small(), "right")?;
    Sender::new()?.send(5, 100)?;
    let stats = in_netns(move || finish(&mut ring).map(|(_, stats)| stats))??;
    assert_eq!(stats.frames, 5);
    Ok(())
}

/// An error rather than a panic: who panics leaves the others waiting for him.
fn check(holds: bool, expected: &str) -> Test {
    if holds {
        Ok(())
    } else {
        Err(format!("expected: {expected}").into())
    }
}

/// What a process has of rings: file descriptors, mappings of sockets, and memory in KiB.
fn held() -> Result<(usize, usize, usize), Failed> {
    let fds = std::fs::read_dir("/proc/self/fd")?.count();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let maps = maps.lines().filter(|line| line.contains("socket:")).count();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
        .ok_or("no VmRSS")?;
    Ok((fds, maps, resident.parse()?))
}

/// Packet sockets that the namespace has, as the kernel counts them.
fn packet_sockets() -> Result<u32, Failed> {
    let table = std::fs::read_to_string("/proc/thread-self/net/protocols")?;
    let line = table.lines().find(|line| line.starts_with("PACKET "));
    let sockets = line.and_then(|line| line.split_whitespace().nth(2));
    Ok(sockets.ok_or("no PACKET in /proc/net/protocols")?.parse()?)
}

/// In 24 namespaces side by side; `NV_TESTS_ROUNDS` says how often in each: 1,000 take about as many seconds as the machine has patience for.
fn leaves_nothing() -> Test {
    const NAMESPACES: usize = 24;
    let rounds: usize = match std::env::var("NV_TESTS_ROUNDS") {
        Ok(rounds) => rounds.parse()?,
        Err(_) => 42,
    };
    // Refused late: the ring is mapped and bound by then.
    let refused = RingConfig {
        filter: Some(vec![BpfInsn {
            code: 0xffff,
            ..KEEP
        }]),
        ..small()
    };
    let opening = |round: usize| -> Test {
        let config = RingConfig {
            // Both of what the kernel frees by ways of their own.
            fanout: (round % 2 == 1).then_some(Fanout {
                group: 5,
                mode: FanoutMode::Connections,
                defrag: false,
            }),
            ..small()
        };
        let mut ring = Ring::open(&config, "right")?;
        check(packet_sockets()? == 1, "one packet socket")?;
        Sender::new()?.send(1, 100)?;
        if round.is_multiple_of(8) {
            // Closed while a block is lent, too.
            let block = ring.next_block(Some(Duration::from_secs(20)))?;
            let came = matches!(block, Next::Block(block) if block.len() == 1);
            check(came, "a block with one frame")?;
        }
        drop(ring);
        if round.is_multiple_of(20) {
            check(Ring::open(&refused, "right").is_err(), "a refusal")?;
        }
        Ok(())
    };
    let together = Barrier::new(NAMESPACES + 1);
    std::thread::scope(|scope| {
        let work = || -> Test {
            in_netns(|| -> Test {
                let ready = Pair::new().map_err(Failed::from).and_then(|pair| {
                    // What is made once and stays, such as a thread's own heap, is made before it is looked at.
                    opening(0).and_then(|()| opening(1)).map(|()| pair)
                });
                together.wait();
                together.wait();
                let opened = ready.and_then(|pair| {
                    (0..rounds).try_for_each(opening)?;
                    check(packet_sockets()? == 0, "no packet socket left")?;
                    Ok(pair)
                });
                together.wait();
                together.wait();
                opened.map(drop)
            })?
        };
        let threads: Vec<_> = (0..NAMESPACES).map(|_| scope.spawn(work)).collect();
        together.wait();
        let before = held();
        together.wait();
        together.wait();
        let after = held();
        together.wait();
        for thread in threads {
            thread
                .join()
                .map_err(|_| "a namespace's thread panicked")??;
        }
        let (before, after) = (before?, after?);
        assert_eq!((after.0, after.1), (before.0, before.1));
        // A ring is 2 MiB; half of one is room for the heap's own ways.
        assert!(after.2 < before.2 + 1024, "{before:?} {after:?} KiB");
        Ok(())
    })
}

/// This program, run by nobody.
fn as_nobody() -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .env(CHILD, "1")
        .uid(65_534)
        .gid(65_534)
        .output()
        .map_err(|error| format!("run as uid 65534: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn probe_uid() -> Result<(), String> {
    as_nobody().map(drop)
}

fn unprivileged() -> Test {
    let said = as_nobody()?;
    assert!(
        said.contains("packet socket") && said.contains("CAP_NET_RAW"),
        "{said}"
    );
    Ok(())
}
