//! The frames of containers as pcapng files: with the container's own addresses, and one file after the other if wanted.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nvcapture::{
    CaptureWriter, Frame, InterfaceDescription, InterfaceNumber, PacketType, SourceStats, Timestamp,
};
use nvnet::{Attachment, AttachmentId, BRIDGE, MacAddr};

use crate::cmd::detach::{is_of, not_attached};
use crate::cmd::flows::wall_clock;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::names::millis;
use crate::target::Target;

/// An interface being captured: its mark, its own address, how it is described, its number in the file, and what was written to that.
struct Captured {
    id: u16,
    /// When it was attached. Unit, also of the next two: milliseconds since 1970.
    since: u64,
    /// Frames of its mark that are older are another's.
    from: u64,
    /// It is gone: frames that are not older are another's, too.
    until: Option<u64>,
    mac: [u8; 6],
    description: InterfaceDescription,
    number: InterfaceNumber,
    stats: SourceStats,
}

/// Of `attached` those that `targets` name, in that order and each once.
pub(crate) fn chosen<'a>(
    targets: &[Target],
    attached: &'a [Attachment],
    say: Say,
) -> Result<Vec<&'a Attachment>> {
    let mut chosen: Vec<&Attachment> = Vec::new();
    for target in targets {
        let before = chosen.len();
        let of_target: Vec<&Attachment> = attached
            .iter()
            .filter(|attachment| is_of(attachment, target))
            .collect();
        if of_target.is_empty() {
            let remedy = format!("nvcli attach {}", target.to_shell());
            return Err(not_attached(target, attached, remedy));
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
    Ok(chosen)
}

/// When the next file begins, and how many are kept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rotation {
    /// Octets of a file at most, unless a single frame is longer; one file without.
    pub(crate) size: Option<u64>,
    /// Files kept: the oldest is deleted for a new one.
    pub(crate) files: Option<usize>,
}

/// Where the blocks of a capture go.
type Writer = CaptureWriter<Box<dyn Write>>;

/// A capture being written: one file, a pipe, or numbered files each of which is whole by itself.
pub(crate) struct Files {
    /// `-`: standard output.
    path: PathBuf,
    rotation: Rotation,
    interfaces: Vec<Captured>,
    /// The numbers of the file being written and of those before it that are kept.
    current: (PathBuf, Writer),
    older: VecDeque<PathBuf>,
    number: u64,
    /// Frames that the kernel has dropped so far, and those of them that earlier files tell of.
    pub(crate) lost: u64,
    lost_before: u64,
    frames: u64,
    /// Frames in the file being written.
    in_file: u64,
}

/// Octets of a block that are not the frame's: its head, direction flags and what is padded; a tag that is put back.
const FRAME_BLOCK: u64 = 32 + 12 + 3 + 4;
/// Octets of a statistics block.
const STATISTICS_BLOCK: u64 = 72;

impl Files {
    /// Begins to write the frames of `interfaces` to `path`.
    pub(crate) fn create(
        path: &Path,
        interfaces: &[&Attachment],
        snaplen: Option<u32>,
        rotation: Rotation,
    ) -> Result<Self> {
        let first = match rotation.size {
            Some(_) => numbered(path, 1),
            None => path.to_owned(),
        };
        let mut descriptions: Vec<_> = interfaces
            .iter()
            .map(|attachment| (attachment, description(attachment, snaplen)))
            .collect();
        descriptions.sort_by_key(|(attachment, _)| attachment.id.number());
        let (writer, numbers) = begin(&first, descriptions.iter().map(|(_, told)| told))?;
        let interfaces = descriptions
            .into_iter()
            .zip(numbers)
            .map(|((attachment, description), number)| Captured {
                id: attachment.id.number(),
                since: attachment.since_ms().unwrap_or_default(),
                from: 0,
                until: None,
                mac: attachment.mac.octets(),
                description,
                number,
                stats: SourceStats::default(),
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            rotation,
            interfaces,
            current: (first, writer),
            older: VecDeque::new(),
            number: 1,
            lost: 0,
            lost_before: 0,
            frames: 0,
            in_file: 0,
        })
    }

    /// For frames that were kept before: those from before an interface was attached are of who had its mark then.
    pub(crate) fn leave_out_older(&mut self) {
        for interface in &mut self.interfaces {
            interface.from = interface.since;
        }
    }

    /// Looks who has the marks at the time `now`: of an interface that is no longer `attached`, no frame counts that came after somebody else
    /// had got its mark. Says which are newly gone.
    pub(crate) fn follow(&mut self, attached: &[Attachment], now: Timestamp, say: Say) {
        for interface in self.interfaces.iter_mut().filter(|it| it.until.is_none()) {
            let holder = attached.iter().find(|it| it.id.number() == interface.id);
            let since = holder.map(|holder| holder.since_ms().unwrap_or_default());
            if since != Some(interface.since) {
                interface.until = Some(since.unwrap_or(u64::MAX).min(millis(now)));
                let name = interface.description.name.as_deref().unwrap_or_default();
                let name = escape::text(name);
                say.warn(format_args!("{name} is not attached any more"));
            }
        }
    }

    /// Whether all interfaces are gone.
    pub(crate) fn is_over(&self) -> bool {
        self.interfaces.iter().all(|it| it.until.is_some())
    }

    /// Where it goes, for people.
    pub(crate) fn shown(&self) -> String {
        shown(&self.current.0)
    }

    /// Frames written, to all files.
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    /// Files begun.
    pub(crate) const fn files(&self) -> u64 {
        self.number
    }

    /// Writes a frame as it was read from nv-br, if it is of one of the interfaces; tells whether it is.
    pub(crate) fn write(&mut self, frame: &Frame<'_>, octets: &mut Vec<u8>) -> Result<bool> {
        let Some((at, leaves)) = whose(frame.octets(), millis(frame.timestamp()), &self.interfaces)
        else {
            return Ok(false);
        };
        if let Some(size) = self.rotation.size {
            let statistics = STATISTICS_BLOCK * self.interfaces.len() as u64;
            let block = FRAME_BLOCK + frame.octets().len() as u64;
            if self.in_file > 0 && self.current.1.len() + block + statistics > size {
                self.rotate()?;
            }
        }
        let interface = &mut self.interfaces[at];
        let restored = restored(frame, octets, interface.mac, leaves);
        let (path, writer) = &mut self.current;
        writer
            .write(interface.number, &restored)
            .map_err(|error| unwritable(path, &error))?;
        interface.stats.frames += 1;
        interface.stats.wire_octets += u64::from(frame.wire_len());
        self.frames += 1;
        self.in_file += 1;
        Ok(true)
    }

    /// Lets a reader at the other end see what was written.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let (path, writer) = &mut self.current;
        writer.flush().map_err(|error| unwritable(path, &error))
    }

    /// Ends the file with what was counted.
    pub(crate) fn finish(mut self) -> Result<Self> {
        self.end()?;
        Ok(self)
    }

    fn end(&mut self) -> Result<()> {
        let now = wall_clock();
        let (path, writer) = &mut self.current;
        let lost = self.lost - self.lost_before;
        self.lost_before = self.lost;
        for (at, interface) in self.interfaces.iter_mut().enumerate() {
            // One ring serves all of them; what it lost is told once.
            interface.stats.dropped = if at == 0 { lost } else { 0 };
            writer
                .write_statistics(interface.number, now, &interface.stats)
                .map_err(|error| unwritable(path, &error))?;
            interface.stats = SourceStats::default();
        }
        self.in_file = 0;
        writer.flush().map_err(|error| unwritable(path, &error))
    }

    /// Ends the file and begins the next one; deletes the oldest if there are more than are kept.
    fn rotate(&mut self) -> Result<()> {
        self.end()?;
        self.number += 1;
        let next = numbered(&self.path, self.number);
        let (writer, numbers) = begin(
            &next,
            self.interfaces
                .iter()
                .map(|interface| &interface.description),
        )?;
        for (interface, number) in self.interfaces.iter_mut().zip(numbers) {
            interface.number = number;
        }
        let (last, _) = std::mem::replace(&mut self.current, (next, writer));
        self.older.push_back(last);
        while self
            .rotation
            .files
            .is_some_and(|most| self.older.len() >= most)
            && let Some(oldest) = self.older.pop_front()
        {
            std::fs::remove_file(&oldest).map_err(|source| {
                CliError::new(format!("cannot delete {}", oldest.display()))
                    .because(source)
                    .remedy("check who may write in its folder")
            })?;
        }
        Ok(())
    }
}

/// `web.pcapng` as `web-00001.pcapng`.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number:05}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn shown(path: &Path) -> String {
    if is_stdout(path) {
        "standard output".to_owned()
    } else {
        path.display().to_string()
    }
}

/// A file with its head and interfaces, written out so that a reader has something to open.
fn begin<'d>(
    path: &Path,
    interfaces: impl Iterator<Item = &'d InterfaceDescription>,
) -> Result<(Writer, Vec<InterfaceNumber>)> {
    let out: Box<dyn Write> = if is_stdout(path) {
        Box::new(io::stdout())
    } else {
        Box::new(Whole {
            file: create(path)?,
            length: 0,
        })
    };
    head(out, interfaces).map_err(|error| {
        // Without its head it is nothing.
        if std::fs::symlink_metadata(path).is_ok_and(|it| it.is_file()) {
            let _ = std::fs::remove_file(path);
        }
        unwritable(path, &error).remedy("make room there, or write elsewhere")
    })
}

fn head<'d>(
    out: Box<dyn Write>,
    interfaces: impl Iterator<Item = &'d InterfaceDescription>,
) -> std::result::Result<(Writer, Vec<InterfaceNumber>), nvcapture::Error> {
    let mut writer = CaptureWriter::new(out, concat!("nvcli ", env!("CARGO_PKG_VERSION")))?;
    let numbers = interfaces
        .map(|description| writer.add_interface(description))
        .collect::<std::result::Result<_, _>>()?;
    writer.flush()?;
    Ok((writer, numbers))
}

/// A file of what was written whole: of a piece for which there is no room, nothing stays. A capture's pieces end where blocks do.
struct Whole {
    file: File,
    length: u64,
}

impl Write for Whole {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.file.write_all(piece) {
            // What is no file of a disk keeps what it has.
            let back = self.file.set_len(self.length);
            let _ = back.and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            return Err(error);
        }
        self.length += piece.len() as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Which of the interfaces (sorted by id) a frame of that `time` belongs to, and whether it leaves the container.
fn whose(octets: &[u8], time: u64, captured: &[Captured]) -> Option<(usize, bool)> {
    let marked = |address: &[u8; 6]| -> Option<usize> {
        let id = AttachmentId::from_mac(MacAddr(*address))?.number();
        captured
            .binary_search_by_key(&id, |interface| interface.id)
            .ok()
            .filter(|&at| {
                let Captured { from, until, .. } = captured[at];
                time >= from && until.is_none_or(|until| time < until)
            })
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
fn create(path: &Path) -> Result<File> {
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

fn unwritable(path: &Path, error: &nvcapture::Error) -> CliError {
    let path = shown(path);
    match error {
        nvcapture::Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
            CliError::output(source)
        }
        nvcapture::Error::Io { source, .. } => CliError::new(format!("cannot write {path}"))
            .because(source)
            .remedy("make room there, or write elsewhere; a file has what was written until then, whole"),
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
                since: 0,
                from: 0,
                until: None,
                mac: [octet; 6],
                description: InterfaceDescription::default(),
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
        assert_eq!(whose(&frame(other, first), 0, &all), Some((0, true)));
        assert_eq!(whose(&frame(second, other), 0, &all), Some((1, false)));
        // On the side of the sender only its own address is replaced, but the mark of the source counts first.
        assert_eq!(whose(&frame(second, first), 0, &all), Some((0, true)));
        assert_eq!(whose(&frame(other, *b"NeuV\x09\x09"), 0, &all), None);
        assert_eq!(whose(&frame(other, other), 0, &all), None);
        assert_eq!(whose(&[0x4e; 11], 0, &all), None);
    }

    #[test]
    fn a_mark_is_of_who_has_it_at_that_time() {
        let mut all = two();
        (all[0].from, all[0].until) = (100, Some(200));
        let marked = frame([2; 6], *b"NeuV\x01\x02");
        let is_its = |time| whose(&marked, time, &all).is_some();
        assert_eq!([99, 100, 199, 200].map(is_its), [false, true, true, false]);
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
            assert_eq!(whose(&marked, 0, &two()), Some((0, false)));
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

    #[test]
    fn a_number_comes_before_the_extension() {
        for (path, expected) in [
            ("web.pcapng", "web-00001.pcapng"),
            ("/tmp/a.b/web", "/tmp/a.b/web-00001"),
            ("x.tar.gz", "x.tar-00001.gz"),
        ] {
            assert_eq!(numbered(Path::new(path), 1), Path::new(expected));
        }
        assert_eq!(numbered(Path::new("a"), 123_456), Path::new("a-123456"));
    }
}
