//! `nvcli capture`: the frames of attached containers, as a pcapng file.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nvcapture::{
    CaptureWriter, Frame, InterfaceDescription, InterfaceNumber, Next, PacketType, Ring,
    RingConfig, SourceStats, Timestamp,
};
use nvnet::{Attachment, AttachmentId, BRIDGE, MacAddr};

use crate::args::Capture;
use crate::cmd::detach::{is_of, not_attached};
use crate::cmd::flows::no_ring;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::expression;
use crate::names::Current;
use crate::open::{host, net};
use crate::render::text::grouped;
use crate::signals::Interrupt;

/// How long the capture sleeps at most before it looks at signals and clocks.
const TICK: Duration = Duration::from_millis(100);

/// An interface being captured: its mark, its own address, its number in the file, and what was counted.
struct Captured {
    id: u16,
    mac: [u8; 6],
    number: InterfaceNumber,
    stats: SourceStats,
}

/// Captures until the end is asked for.
pub(crate) fn run(args: &Capture, say: Say) -> Result<()> {
    let to_stdout = args.write.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(CliError::usage(
            "a capture is not for the terminal: give -w a file, or pipe it (-w - | tshark -r -)",
        ));
    }
    let filter = args
        .expression
        .as_deref()
        .map(expression::live)
        .transpose()?;
    let interrupt = Interrupt::listen()?;
    let mut attached =
        nvnet::list(&host()?).map_err(|error| net("cannot read what is attached", &error))?;
    Current::default().apply(&mut attached);
    let mut chosen: Vec<&Attachment> = Vec::new();
    for target in &args.targets {
        let before = chosen.len();
        let of_target: Vec<&Attachment> = attached
            .iter()
            .filter(|attachment| is_of(attachment, target))
            .collect();
        if of_target.is_empty() {
            return Err(not_attached(target, &attached).remedy(format!("nvcli attach {target}")));
        }
        for new in of_target {
            if chosen.iter().all(|old| old.id != new.id) {
                chosen.push(new);
            }
        }
        if chosen.len() == before {
            say.note(format_args!("note: {target} was named before"));
        }
    }
    let config = RingConfig {
        snaplen: args.snaplen,
        filter,
        ..RingConfig::default()
    };
    let mut ring = Ring::open(&config, BRIDGE).map_err(|error| no_ring(&error))?;
    let out: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout())
    } else {
        Box::new(create(&args.write)?)
    };
    let shown = if to_stdout {
        "standard output".to_owned()
    } else {
        args.write.display().to_string()
    };
    let failed = |error: nvcapture::Error| unwritable(&shown, &error);

    let mut writer =
        CaptureWriter::new(out, concat!("nvcli ", env!("CARGO_PKG_VERSION"))).map_err(failed)?;
    let mut captured = Vec::with_capacity(chosen.len());
    for attachment in chosen {
        let number = writer
            .add_interface(&description(attachment, args.snaplen))
            .map_err(failed)?;
        let (id, mac) = (attachment.id.number(), attachment.mac.octets());
        captured.push(Captured {
            id,
            mac,
            number,
            stats: SourceStats::default(),
        });
    }
    captured.sort_by_key(|interface| interface.id);
    writer.flush().map_err(failed)?;
    say.note(format_args!(
        "capturing {} interfaces to {}; Ctrl-C ends it",
        captured.len(),
        escape::text(&shown)
    ));

    let read =
        copy(&mut ring, &mut writer, &mut captured, args, &interrupt).map_err(
            |stop| match stop {
                Stop::Write(error) => failed(error),
                Stop::Read(error) => {
                    CliError::new(format!("cannot read {BRIDGE} any longer")).caused_by(&error)
                }
            },
        )?;
    let lost = ring.stats().unwrap_or_default().dropped;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = Timestamp::from_nanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    for (at, interface) in captured.iter_mut().enumerate() {
        // The ring serves all of them; what it lost is told once.
        interface.stats.dropped = if at == 0 { lost } else { 0 };
        writer
            .write_statistics(interface.number, now, &interface.stats)
            .map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    let written: u64 = captured
        .iter()
        .map(|interface| interface.stats.frames)
        .sum();
    say.note(format_args!(
        "{} frames written, {} of other containers passed over, {} dropped by the kernel",
        grouped(written),
        grouped(read - written),
        grouped(lost)
    ));
    Ok(())
}

enum Stop {
    Read(nvcapture::Error),
    Write(nvcapture::Error),
}

/// Writes the frames of the interfaces wanted; gives how many frames were read.
fn copy(
    ring: &mut Ring,
    writer: &mut CaptureWriter<Box<dyn Write>>,
    captured: &mut [Captured],
    args: &Capture,
    interrupt: &Interrupt,
) -> std::result::Result<u64, Stop> {
    let until = args.duration.map(|duration| Instant::now() + duration);
    let most = args.count.unwrap_or(u64::MAX);
    let mut octets = Vec::new();
    let (mut read, mut written) = (0, 0);
    let mut stopped = false;
    let mut due = Instant::now() + TICK;
    loop {
        match ring.next_block(Some(TICK)) {
            Ok(Next::Block(block)) => {
                for frame in block.frames() {
                    read += 1;
                    let Some((at, leaves)) = whose(frame.octets(), captured) else {
                        continue;
                    };
                    let interface = &mut captured[at];
                    let restored = restored(&frame, &mut octets, interface.mac, leaves);
                    writer
                        .write(interface.number, &restored)
                        .map_err(Stop::Write)?;
                    interface.stats.frames += 1;
                    interface.stats.wire_octets += u64::from(frame.wire_len());
                    written += 1;
                    if written == most {
                        return Ok(read);
                    }
                }
            }
            Ok(Next::TimedOut) | Err(nvcapture::Error::InterfaceDown { .. }) => {}
            Ok(Next::End) | Err(nvcapture::Error::InterfaceGone { .. }) => return Ok(read),
            Err(
                error @ (nvcapture::Error::Malformed { .. } | nvcapture::Error::Incomplete { .. }),
            ) => {
                tracing::warn!("{error}");
            }
            Err(error) => return Err(Stop::Read(error)),
        }
        let now = Instant::now();
        if now >= due {
            due = now + TICK;
            writer.flush().map_err(Stop::Write)?;
            if !stopped && (interrupt.is_asked() || until.is_some_and(|until| now >= until)) {
                ring.stop().map_err(Stop::Read)?;
                stopped = true;
            }
        }
    }
}

/// Which of the interfaces (sorted by id) a frame belongs to, and whether it leaves the container.
fn whose(octets: &[u8], captured: &[Captured]) -> Option<(usize, bool)> {
    let marked = |address: &[u8; 6]| -> Option<usize> {
        let id = AttachmentId::from_mac(MacAddr(*address))?.number();
        captured
            .binary_search_by_key(&id, |interface| interface.id)
            .ok()
    };
    let (destination, rest) = octets.split_first_chunk::<6>()?;
    let source = rest.first_chunk::<6>()?;
    match marked(source) {
        Some(at) => Some((at, true)),
        None => marked(destination).map(|at| (at, false)),
    }
}

/// The frame as the container's interface saw it: with its own address, and the direction seen from there.
fn restored<'o>(
    frame: &Frame<'_>,
    octets: &'o mut Vec<u8>,
    mac: [u8; 6],
    leaves: bool,
) -> Frame<'o> {
    octets.clear();
    octets.extend_from_slice(frame.octets());
    let group = frame.octets().first().is_some_and(|first| first & 1 == 1);
    let (place, address, packet_type) = match (leaves, group) {
        (true, _) => (6..12, mac, PacketType::Outgoing),
        (false, false) => (0..6, mac, PacketType::Host),
        (false, true) => match group_address(frame.octets()) {
            BROADCAST => (0..6, BROADCAST, PacketType::Broadcast),
            multicast => (0..6, multicast, PacketType::Multicast),
        },
    };
    if let Some(octets) = octets.get_mut(place) {
        octets.copy_from_slice(&address);
    }
    let mut meta = *frame.meta();
    meta.packet_type = Some(packet_type);
    Frame::new(octets, meta)
}

const BROADCAST: [u8; 6] = [0xff; 6];

/// The group address that a frame was sent to, from the group that its packet names (RFC 1112, RFC 2464); what names none
/// (ARP, an IPv4 broadcast) was sent to all.
fn group_address(octets: &[u8]) -> [u8; 6] {
    let word = |at: usize| {
        octets
            .get(at..at + 2)
            .map(|w| u16::from_be_bytes([w[0], w[1]]))
    };
    let mut at = 12;
    while let Some(0x8100 | 0x88a8) = word(at) {
        at += 4;
    }
    let group = |at: usize| octets.get(at..)?.first_chunk::<4>().copied();
    match word(at) {
        // The destination is 16 octets into an IPv4 header.
        Some(0x0800) => match group(at + 2 + 16) {
            Some([0xe0..=0xef, b, c, d]) => [0x01, 0x00, 0x5e, b & 0x7f, c, d],
            _ => BROADCAST,
        },
        // And 24 octets into an IPv6 header, where its last four count.
        Some(0x86dd) => match group(at + 2 + 24 + 12) {
            Some([a, b, c, d]) => [0x33, 0x33, a, b, c, d],
            None => BROADCAST,
        },
        _ => BROADCAST,
    }
}

fn description(attachment: &Attachment, snaplen: Option<u32>) -> InterfaceDescription {
    let name = &attachment.workload.name;
    InterfaceDescription {
        name: Some(format!("{name}/{}", attachment.interface)),
        description: Some(format!(
            "{} of container {name}, read by nvcli from {BRIDGE}",
            attachment.interface
        )),
        mac: Some(attachment.mac.octets()),
        snaplen: snaplen.unwrap_or(0),
        ..InterfaceDescription::default()
    }
}

/// Whoever captures may read what is sent in the clear; nobody else shall.
fn create(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| {
            CliError::new(format!("cannot write {}", path.display()))
                .because(source)
                .remedy("check the folder and who may write there")
        })
}

fn unwritable(path: &str, error: &nvcapture::Error) -> CliError {
    match error {
        nvcapture::Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
            CliError::output(source)
        }
        nvcapture::Error::Io { source, .. } => CliError::new(format!("cannot write {path}"))
            .because(source)
            .remedy("make room there, or write elsewhere"),
        other => CliError::new(format!("cannot write {path}")).caused_by(other),
    }
}

#[cfg(test)]
mod tests {
    use nvcapture::FrameMeta;

    use super::*;

    fn two() -> Vec<Captured> {
        let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
        [(0x0102_u16, 0xaa), (0x0304, 0xbb)]
            .map(|(id, octet)| Captured {
                id,
                mac: [octet; 6],
                number: writer
                    .add_interface(&InterfaceDescription::default())
                    .unwrap(),
                stats: SourceStats::default(),
            })
            .into_iter()
            .collect()
    }

    fn frame(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
        [destination.as_slice(), &source, &[8, 0, 0x45]].concat()
    }

    #[test]
    fn a_mark_tells_the_interface_and_the_direction() {
        let (first, second, other) = (*b"NeuV\x01\x02", *b"NeuV\x03\x04", [2; 6]);
        let all = two();
        assert_eq!(whose(&frame(other, first), &all), Some((0, true)));
        assert_eq!(whose(&frame(second, other), &all), Some((1, false)));
        // On the side of the sender only its own address is replaced, but the mark of the source counts first.
        assert_eq!(whose(&frame(second, first), &all), Some((0, true)));
        assert_eq!(whose(&frame(other, *b"NeuV\x09\x09"), &all), None);
        assert_eq!(whose(&frame(other, other), &all), None);
        assert_eq!(whose(&[0x4e; 11], &all), None);
    }

    #[test]
    fn a_group_address_is_told_from_the_packet() {
        let to = |ethertype: [u8; 2], at: usize, destination: &[u8]| {
            let mut octets = [&b"OeuV\x01\x02"[..], &[2; 6], &ethertype].concat();
            octets.resize(14 + at, 0);
            octets.extend_from_slice(destination);
            octets
        };
        let cases = [
            (
                to([8, 0], 16, &[224, 129, 2, 3]),
                [0x01, 0x00, 0x5e, 1, 2, 3],
                PacketType::Multicast,
            ),
            (
                to([8, 0], 16, &[10, 0, 0, 255]),
                BROADCAST,
                PacketType::Broadcast,
            ),
            (to([8, 6], 0, &[0, 1]), BROADCAST, PacketType::Broadcast),
            (
                to([0x86, 0xdd], 24 + 12, &[0xff, 0, 0, 2]),
                [0x33, 0x33, 0xff, 0, 0, 2],
                PacketType::Multicast,
            ),
            (to([0x86, 0xdd], 3, &[]), BROADCAST, PacketType::Broadcast),
        ];
        for (marked, address, kind) in cases {
            assert_eq!(whose(&marked, &two()), Some((0, false)));
            let meta = FrameMeta::ethernet(Timestamp::ZERO, 60);
            let mut octets = Vec::new();
            let frame = restored(&Frame::new(&marked, meta), &mut octets, [0xaa; 6], false);
            assert_eq!(
                (&frame.octets()[..6], frame.meta().packet_type),
                (&address[..], Some(kind))
            );
            assert_eq!(frame.octets()[6..], marked[6..]);
        }
    }

    #[test]
    fn the_containers_own_address_is_put_back() {
        let marked = frame([2; 6], *b"NeuV\x01\x02");
        let meta = FrameMeta::ethernet(Timestamp::ZERO, 15);
        let mut octets = Vec::new();
        let restored = restored(&Frame::new(&marked, meta), &mut octets, [0xaa; 6], true);
        assert_eq!(restored.octets(), frame([2; 6], [0xaa; 6]));
        assert_eq!(restored.meta().packet_type, Some(PacketType::Outgoing));
        assert_eq!(restored.wire_len(), 15);
    }
}
