//! pcap and pcapng files, read into one buffer out of which frames are lent.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use crate::{
    Error, Frame, FrameBlock, FrameMeta, FrameSource, LinkType, Next, PacketType, SourceStats,
    Timestamp,
};

/// The longest record that is read; a length above it is taken for damage.
///
/// libpcap's own limit is 262,144 octets for all link types of networks; a BIG TCP super-frame has up to 524,288.
const MAX_RECORD: usize = 16 << 20;
/// Octets asked of read(2) at first; twice as many each time, so that a small file costs little.
const FIRST_CHUNK: usize = 4 << 10;
/// Octets asked of read(2) at most.
const CHUNK: usize = 256 << 10;
/// The longest that the buffer becomes: a record, and room to read on behind it.
const MAX_BUFFER: usize = MAX_RECORD + 2 * CHUNK;
/// Interfaces that one file may describe, in all its sections.
const MAX_INTERFACES: usize = 65_536;
/// Octets of an interface's name or description that are kept.
const MAX_NAME: usize = 255;
/// What the names and descriptions of one file may cost together. Unit: octets of memory.
const MAX_TEXTS: usize = 2 << 20;
/// What a text costs beside its octets: the allocator's own words and rounding.
const TEXT_COST: usize = 32;

const NG_SECTION: u32 = 0x0a0d_0d0a;
const NG_BYTE_ORDER: u32 = 0x1a2b_3c4d;
const NG_INTERFACE: u32 = 1;
const NG_PACKET: u32 = 2;
const NG_SIMPLE_PACKET: u32 = 3;
const NG_STATISTICS: u32 = 5;
const NG_ENHANCED_PACKET: u32 = 6;

/// Frames of a pcap or pcapng capture: a file, a pipe, any [`Read`].
///
/// pcap with micro- and nanoseconds, also with the longer record heads of modified libpcaps; pcapng with any number of
/// sections and clock resolutions, and up to 65,536 interfaces, those of all sections together (more count as damage, as frames are told apart
/// by their number in the file); both in both byte orders.
///
/// Nothing is trusted: memory stays below 32 MiB whatever the file claims. That is one buffer, which grows to the longest record, 16 MiB at
/// most, and what is kept of interfaces: 136 octets for each, and 2 MiB of names and descriptions. A usual file takes half a MiB.
///
/// A damaged or cut file is read up to the damage: the frames before it are handed out, then comes
/// [`Error::Damaged`], once, and after that [`Next::End`].
///
/// Times before 1970 and after 2554 are the first and the last that a [`Timestamp`] can tell.
///
/// ```no_run
/// use nvcapture::{CaptureFile, Next};
///
/// let mut capture = CaptureFile::open("web.pcapng")?;
/// while let Next::Block(block) = capture.next_block()? {
///     for frame in block.frames() {
///         println!("{} octets at {:?}", frame.wire_len(), frame.timestamp());
///     }
/// }
/// # Ok::<(), nvcapture::Error>(())
/// ```
///
/// What is read can be written again: interfaces as they were described, frames with their times and directions, losses. One section comes of
/// many; comments, names of addresses and what else is no frame is left out, times are cut to nanoseconds, and frames to what their interface's
/// description says is kept of one.
///
/// ```
/// use std::io::{Read, Write};
/// use nvcapture::{CaptureFile, CaptureWriter, Error, Next, SourceStats, Timestamp};
///
/// fn copy<W: Write>(input: impl Read, output: W) -> Result<W, Error> {
///     let mut capture = CaptureFile::new(input);
///     let mut writer = CaptureWriter::new(output, "copy 1.0")?;
///     let (mut copied, mut last) = (Vec::new(), Timestamp::ZERO);
///     while let Next::Block(block) = capture.next_block()? {
///         for interface in &block.interfaces()[copied.len()..] {
///             copied.push((writer.add_interface(&interface.into())?, SourceStats::default()));
///         }
///         for frame in block.frames() {
///             let (number, stats) = &mut copied[frame.meta().interface as usize];
///             writer.write(*number, &frame)?;
///             stats.frames += 1;
///             last = last.max(frame.timestamp());
///         }
///     }
///     // Without a frame behind them, some with losses all the same.
///     for interface in &capture.interfaces()[copied.len()..] {
///         copied.push((writer.add_interface(&interface.into())?, SourceStats::default()));
///     }
///     for ((number, stats), interface) in copied.iter_mut().zip(capture.interfaces()) {
///         stats.dropped = interface.dropped;
///         writer.write_statistics(*number, last, stats)?;
///     }
///     writer.finish()
/// }
/// # use nvcapture::{Frame, FrameMeta, InterfaceDescription, PacketType};
/// # let mut writer = CaptureWriter::new(Vec::new(), "copy 1.0")?;
/// # let eth0 = writer.add_interface(&InterfaceDescription { name: Some("eth0".into()), ..Default::default() })?;
/// # let meta = FrameMeta { packet_type: Some(PacketType::Inbound), ..FrameMeta::ethernet(Timestamp::from_nanos(7), 60) };
/// # writer.write(eth0, &Frame::new(&[0; 60], meta))?;
/// # let stats = SourceStats { frames: 1, dropped: 3, ..SourceStats::default() };
/// # writer.write_statistics(eth0, meta.timestamp, &stats)?;
/// # let eth1 = writer.add_interface(&InterfaceDescription { name: Some("eth1".into()), ..Default::default() })?;
/// # writer.write_statistics(eth1, meta.timestamp, &SourceStats { dropped: 7, ..SourceStats::default() })?;
/// # let file = writer.finish()?;
/// # let copied = copy(&file[..], Vec::new())?;
/// # let mut copied = CaptureFile::new(&copied[..]);
/// # while !matches!(copied.next_block()?, Next::End) {}
/// # let dropped: Vec<u64> = copied.interfaces().iter().map(|interface| interface.dropped).collect();
/// # assert_eq!(dropped, [3, 7]);
/// # let file = copy(&file[..], Vec::new())?;
/// # assert_eq!(copy(&file[..], Vec::new())?, file);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct CaptureFile<R = File> {
    input: R,
    path: String,
    buffer: Vec<u8>,
    /// Octets of `buffer` that were read.
    filled: usize,
    /// Offset in the file of `buffer[0]`.
    base: u64,
    at_end: bool,
    finished: bool,
    format: Format,
    tally: Tally,
}

/// What a capture file tells of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInterface {
    /// `if_name`, cut to 255 octets at a character's end; what is not UTF-8 is replaced by U+FFFD before that.
    ///
    /// `None` where the file tells none, or where its names and descriptions would take more than 2 MiB of memory, each counted with 32 octets more
    /// than it has: those that do not fit are left out.
    pub name: Option<String>,
    /// `if_description`; as the name.
    pub description: Option<String>,
    /// Its hardware address (`if_MACaddr`).
    pub mac: Option<[u8; 6]>,
    /// Octets that were kept of a frame at most; 0 when there was no limit.
    pub snaplen: u32,
    /// What its frames' first octets are.
    pub link_type: LinkType,
    /// Frames that the capturing program said it lost: `isb_ifdrop` and `isb_osdrop`, of each the most that any statistics told, as they count
    /// from the capture's start. Statistics that leave one out say nothing of it.
    pub dropped: u64,
}

#[derive(Debug)]
enum Format {
    Unknown,
    /// How its records are read, and what it tells of the one interface.
    Pcap(Pcap, FileInterface),
    PcapNg(PcapNg),
}

#[derive(Clone, Copy, Debug)]
struct Pcap {
    big_endian: bool,
    /// Nanoseconds of one unit of the second time word.
    unit: u64,
    head_len: usize,
    lengths_swapped: Swapped,
    link_type: LinkType,
    fcs_len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Swapped {
    No,
    Maybe,
    Yes,
}

#[derive(Debug, Default)]
struct PcapNg {
    in_section: bool,
    big_endian: bool,
    /// Number in the file of the section's first interface.
    section: usize,
    clocks: Vec<Clock>,
    interfaces: Vec<FileInterface>,
    /// Of each interface the most that `isb_ifdrop` and `isb_osdrop` told.
    losses: Vec<[u64; 2]>,
    /// What the texts of `interfaces` cost, up to [`MAX_TEXTS`].
    texts: usize,
}

/// What it takes to read a frame of one interface.
#[derive(Clone, Copy, Debug)]
struct Clock {
    link_type: LinkType,
    snaplen: u32,
    fcs_len: u32,
    scale: Scale,
    /// Nanoseconds to add.
    offset: i128,
}

#[derive(Clone, Copy, Debug)]
enum Scale {
    Times(u64),
    Over(u64),
    /// Binary fractions of a second.
    Shift(u32),
}

#[derive(Debug, Default)]
struct Tally {
    /// Offset in the buffer of the first record that was not handed out.
    at: usize,
    frames: u64,
    wire_octets: u64,
    truncated: u64,
}

/// What lies at some place of the buffer.
enum Record<'f> {
    Frame(Frame<'f>, usize),
    /// Nothing for us, of this many octets; more than the buffer has, perhaps.
    Skip(u64),
    /// A block of this many octets that changes how the next ones are read.
    Control(usize),
    /// Not all here: this many octets are needed.
    Need(usize),
    Damaged(&'static str),
}

impl CaptureFile<File> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`] names the file. What is in it shows at the first block.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        match File::open(path) {
            Ok(input) => Ok(Self::with_path(input, shown)),
            Err(source) => Err(Error::Io {
                op: "open",
                path: shown,
                source,
            }),
        }
    }
}

impl<R: Read> CaptureFile<R> {
    /// Reads a capture from a pipe, standard input, or anything else; no buffer is needed in between.
    pub fn new(input: R) -> Self {
        Self::with_path(input, "the capture".to_owned())
    }

    fn with_path(input: R, path: String) -> Self {
        Self {
            input,
            path,
            buffer: Vec::new(),
            filled: 0,
            base: 0,
            at_end: false,
            finished: false,
            format: Format::Unknown,
            tally: Tally::default(),
        }
    }

    /// The interfaces the file has described so far, by their number in the file (several sections go on counting). Of pcap there is one, of which
    /// only link type and snap length are known.
    pub fn interfaces(&self) -> &[FileInterface] {
        self.format.interfaces()
    }

    /// Octets of the file that were handed out or passed over.
    pub fn position(&self) -> u64 {
        self.base + self.tally.at as u64
    }

    /// The next run of frames.
    ///
    /// # Errors
    /// [`Error::NotACapture`], [`Error::Damaged`], [`Error::Io`]; each once, then there is no more.
    pub fn next_block(&mut self) -> Result<Next<FileBlock<'_>>, Error> {
        if self.finished {
            return Ok(Next::End);
        }
        match self.advance() {
            Ok(true) => Ok(Next::Block(FileBlock {
                octets: &self.buffer[..self.filled],
                format: &self.format,
                start: self.tally.at,
                furthest: Cell::new(Walk::at(self.tally.at)),
                tally: &mut self.tally,
            })),
            Ok(false) => {
                self.finished = true;
                Ok(Next::End)
            }
            Err(error) => {
                self.finished = true;
                Err(error)
            }
        }
    }

    /// Goes to the next frame; `false` when there is none.
    fn advance(&mut self) -> Result<bool, Error> {
        if matches!(self.format, Format::Unknown) && !self.recognise()? {
            return Ok(false);
        }
        loop {
            let octets = &self.buffer[self.tally.at..self.filled];
            match self.format.record(octets) {
                Record::Frame(..) => return Ok(true),
                Record::Skip(length) => self.skip(length)?,
                Record::Control(length) => {
                    let Format::PcapNg(format) = &mut self.format else {
                        return Ok(false);
                    };
                    if let Err(what) = format.control(&octets[..length]) {
                        return Err(self.damaged(what));
                    }
                    self.tally.at += length;
                }
                Record::Need(length) => {
                    if !self.fill(length)? {
                        return if self.filled == self.tally.at {
                            Ok(false)
                        } else {
                            Err(self.damaged("it ends in the middle of a record"))
                        };
                    }
                }
                Record::Damaged(what) => return Err(self.damaged(what)),
            }
        }
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            offset: self.position(),
            what,
        }
    }

    /// Reads until `length` octets are there from the current place on; `false` when the file ends before.
    fn fill(&mut self, length: usize) -> Result<bool, Error> {
        self.buffer.copy_within(self.tally.at..self.filled, 0);
        self.base += self.tally.at as u64;
        self.filled -= self.tally.at;
        self.tally.at = 0;
        while self.filled < length && !self.at_end {
            // Grows with what has come, not with what a length claims.
            let more = (2 * self.buffer.len()).clamp(FIRST_CHUNK, CHUNK);
            let room = (self.filled + more).min(MAX_BUFFER);
            if self.buffer.len() < room {
                if self.buffer.capacity() < room {
                    // Not left to the vector, which would take twice as much at last. In few steps, since both are there while one is copied
                    // to the next; what is not touched costs nothing.
                    let next = 4 * self.buffer.capacity();
                    let capacity = if 2 * next > MAX_BUFFER {
                        MAX_BUFFER
                    } else {
                        next.max(room)
                    };
                    self.buffer.reserve_exact(capacity - self.buffer.len());
                }
                self.buffer.resize(room, 0);
            }
            match self.input.read(&mut self.buffer[self.filled..]) {
                Ok(0) => self.at_end = true,
                // Not more than it was given room for, whatever it says.
                Ok(read) => self.filled = (self.filled + read).min(self.buffer.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Io {
                        op: "read",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
        Ok(self.filled >= length)
    }

    /// Passes over `length` octets without keeping them.
    fn skip(&mut self, mut length: u64) -> Result<(), Error> {
        let offset = self.position();
        loop {
            let here = length.min((self.filled - self.tally.at) as u64);
            self.tally.at += here as usize;
            length -= here;
            if length == 0 {
                return Ok(());
            }
            if !self.fill(1)? {
                return Err(Error::Damaged {
                    offset,
                    what: "it ends in the middle of a block",
                });
            }
        }
    }

    /// Reads the first octets; `false` when there are none at all.
    fn recognise(&mut self) -> Result<bool, Error> {
        let enough = self.fill(4)?;
        let octets = &self.buffer[..self.filled];
        let Some(&magic) = octets.first_chunk::<4>().filter(|_| enough) else {
            let what = if octets.is_empty() {
                "it is empty"
            } else {
                "it is shorter than any capture"
            };
            return Err(Error::NotACapture { what });
        };
        if u32::from_be_bytes(magic) == NG_SECTION {
            self.format = Format::PcapNg(PcapNg::default());
            return Ok(true);
        }
        let big_endian = matches!(magic, [0xa1, ..]);
        let number = if big_endian {
            u32::from_be_bytes(magic)
        } else {
            u32::from_le_bytes(magic)
        };
        let (unit, head_len) = match number {
            0xa1b2_c3d4 => (1_000, 16),
            0xa1b2_3c4d => (1, 16),
            0xa1b2_cd34 => (1_000, 24),
            _ => {
                let what = match magic {
                    [0x1f, 0x8b, ..] => "it is compressed by gzip (try: gzip -dc FILE | ... -)",
                    [0x28, 0xb5, 0x2f, 0xfd] => {
                        "it is compressed by zstd (try: zstd -dc FILE | ... -)"
                    }
                    [0xfd, b'7', b'z', b'X'] => "it is compressed by xz (try: xz -dc FILE | ... -)",
                    [b'B', b'Z', b'h', _] => {
                        "it is compressed by bzip2 (try: bzip2 -dc FILE | ... -)"
                    }
                    [0x04, 0x22, 0x4d, 0x18] => {
                        "it is compressed by lz4 (try: lz4 -dc FILE | ... -)"
                    }
                    [b's', b'n', b'o', b'o'] => {
                        "it is a snoop capture (try: editcap -F pcapng FILE OUT)"
                    }
                    _ => "it is neither pcap nor pcapng",
                };
                return Err(Error::NotACapture { what });
            }
        };
        if !self.fill(24)? {
            return Err(self.damaged("it ends in the middle of the file header"));
        }
        let Some(head) = self.buffer[..self.filled].first_chunk::<24>() else {
            return Ok(false);
        };
        let order = Order(big_endian);
        let (major, minor) = (order.u16(head, 4), order.u16(head, 6));
        if major != 2 {
            return Err(Error::NotACapture {
                what: "it is pcap of a version other than 2",
            });
        }
        let network = order.u32(head, 20);
        let fcs_len = if network & 0x0400_0000 != 0 {
            (network >> 28) * 2
        } else {
            0
        };
        let link_type = LinkType(network as u16);
        let interface = FileInterface {
            name: None,
            description: None,
            mac: None,
            snaplen: order.u32(head, 16),
            link_type,
            dropped: 0,
        };
        let pcap = Pcap {
            big_endian,
            unit,
            head_len,
            lengths_swapped: match minor {
                0..3 => Swapped::Yes,
                3 => Swapped::Maybe,
                _ => Swapped::No,
            },
            link_type,
            fcs_len,
        };
        self.format = Format::Pcap(pcap, interface);
        self.tally.at = 24;
        Ok(true)
    }
}

impl<R: Read> FrameSource for CaptureFile<R> {
    type Block<'s>
        = FileBlock<'s>
    where
        R: 's;

    fn next_block(&mut self, _: Option<Duration>) -> Result<Next<FileBlock<'_>>, Error> {
        CaptureFile::next_block(self)
    }

    /// `dropped` is what the capturing program wrote into the file, of all interfaces together.
    fn stats(&mut self) -> Result<SourceStats, Error> {
        Ok(SourceStats {
            frames: self.tally.frames,
            wire_octets: self.tally.wire_octets,
            truncated: self.tally.truncated,
            dropped_untold: 0,
            dropped: self
                .interfaces()
                .iter()
                .fold(0, |sum, interface| sum.saturating_add(interface.dropped)),
            freezes: 0,
        })
    }
}

/// Reads integers in the file's byte order; zero beyond the end, which callers have excluded.
#[derive(Clone, Copy)]
struct Order(bool);

impl Order {
    #[inline]
    fn u32(self, octets: &[u8], at: usize) -> u32 {
        match octets.get(at..).and_then(|octets| octets.first_chunk()) {
            Some(word) if self.0 => u32::from_be_bytes(*word),
            Some(word) => u32::from_le_bytes(*word),
            None => 0,
        }
    }

    #[inline]
    fn u16(self, octets: &[u8], at: usize) -> u16 {
        match octets.get(at..).and_then(|octets| octets.first_chunk()) {
            Some(word) if self.0 => u16::from_be_bytes(*word),
            Some(word) => u16::from_le_bytes(*word),
            None => 0,
        }
    }

    /// 64 bits as pcapng's time stamps have them: the upper half first in either byte order.
    #[inline]
    fn halves(self, octets: &[u8], at: usize) -> u64 {
        u64::from(self.u32(octets, at)) << 32 | u64::from(self.u32(octets, at + 4))
    }

    /// 64 bits in the file's byte order.
    fn u64(self, octets: &[u8]) -> Option<u64> {
        let word = octets.first_chunk()?;
        Some(if self.0 {
            u64::from_be_bytes(*word)
        } else {
            u64::from_le_bytes(*word)
        })
    }

    /// The options in `octets`, up to where they end or make no sense.
    fn options(self, mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
        std::iter::from_fn(move || {
            if octets.len() < 4 {
                return None;
            }
            let (code, length) = (self.u16(octets, 0), usize::from(self.u16(octets, 2)));
            if code == 0 {
                return None;
            }
            let value = octets.get(4..4 + length)?;
            octets = octets
                .get(4 + length.next_multiple_of(4)..)
                .unwrap_or_default();
            Some((code, value))
        })
    }
}

impl Format {
    fn interfaces(&self) -> &[FileInterface] {
        match self {
            Self::PcapNg(format) => &format.interfaces,
            Self::Pcap(_, interface) => std::slice::from_ref(interface),
            Self::Unknown => &[],
        }
    }

    /// The next frame of the run that goes on with `octets`, and the length of its record; `None` where the run ends.
    #[inline(never)]
    fn frame<'f>(&self, mut octets: &'f [u8], walk: &mut Walk) -> Option<(Frame<'f>, usize)> {
        while !walk.ended {
            match self.record(octets) {
                Record::Frame(frame, length) => return Some((frame, length)),
                Record::Skip(length) if length <= octets.len() as u64 => {
                    walk.at += length as usize;
                    octets = octets.get(length as usize..).unwrap_or_default();
                }
                // For `CaptureFile::advance` to deal with.
                Record::Skip(_) | Record::Control(_) | Record::Need(_) | Record::Damaged(_) => {
                    walk.ended = true;
                }
            }
        }
        None
    }

    #[inline(always)]
    fn record<'f>(&self, octets: &'f [u8]) -> Record<'f> {
        match self {
            Self::Pcap(format, _) => format.record(octets),
            Self::PcapNg(format) => format.record(octets),
            Self::Unknown => Record::Need(usize::MAX),
        }
    }
}

/// A frame without its FCS, if the file has that in the octets.
#[inline(always)]
fn frame<'f>(octets: &'f [u8], wire_len: u32, fcs_len: u32, mut meta: FrameMeta) -> Frame<'f> {
    // Some writers leave the length on the wire out; it is never less than what was kept.
    let with_fcs = wire_len.max(octets.len() as u32);
    meta.wire_len = with_fcs.saturating_sub(fcs_len);
    let kept = octets.len().min(meta.wire_len as usize);
    Frame::new(&octets[..kept], meta)
}

impl Pcap {
    #[inline(always)]
    fn record<'f>(&self, octets: &'f [u8]) -> Record<'f> {
        let Some((head, behind)) = octets.split_at_checked(self.head_len) else {
            return Record::Need(self.head_len);
        };
        let order = Order(self.big_endian);
        let (mut kept, mut wire_len) = (order.u32(head, 8), order.u32(head, 12));
        if self.lengths_swapped != Swapped::No
            && (self.lengths_swapped == Swapped::Yes || kept > wire_len)
        {
            (kept, wire_len) = (wire_len, kept);
        }
        let kept = kept as usize;
        let Some(octets) = behind.get(..kept) else {
            return if kept > MAX_RECORD {
                Record::Damaged("a frame of more than 16 MiB")
            } else {
                Record::Need(self.head_len + kept)
            };
        };
        let time = [order.u32(head, 0), order.u32(head, 4)];
        Record::Frame(self.frame(octets, wire_len, time), self.head_len + kept)
    }

    /// Whether its records are as those of nearly all files, so that [`usual_record`](Self::usual_record) reads them.
    fn is_usual(&self) -> bool {
        self.head_len == 16 && self.lengths_swapped == Swapped::No && self.fcs_len == 0
    }

    /// As [`record`](Self::record), with next to nothing to ask: the frame that `octets` begin with, if all of it is there, and the length of
    /// its record.
    #[inline(always)]
    fn usual_record<'f>(&self, octets: &'f [u8]) -> Option<(Frame<'f>, usize)> {
        let (head, behind) = octets.split_first_chunk::<16>()?;
        let [seconds, parts, kept, wire_len] = std::array::from_fn(|place| {
            let word = u128::from_le_bytes(*head) >> (32 * place);
            if self.big_endian {
                (word as u32).swap_bytes()
            } else {
                word as u32
            }
        });
        let octets = behind.get(..kept as usize)?;
        let meta = self.meta(wire_len, [seconds, parts]);
        Some((frame(octets, wire_len, 0, meta), 16 + kept as usize))
    }

    #[inline(always)]
    fn frame<'f>(&self, octets: &'f [u8], wire_len: u32, time: [u32; 2]) -> Frame<'f> {
        frame(octets, wire_len, self.fcs_len, self.meta(wire_len, time))
    }

    #[inline(always)]
    fn meta(&self, wire_len: u32, [seconds, parts]: [u32; 2]) -> FrameMeta {
        let nanos = u64::from(seconds) * 1_000_000_000 + u64::from(parts) * self.unit;
        FrameMeta {
            link_type: self.link_type,
            ..FrameMeta::ethernet(Timestamp::from_nanos(nanos), wire_len)
        }
    }
}

impl PcapNg {
    #[inline(always)]
    fn record<'f>(&self, octets: &'f [u8]) -> Record<'f> {
        let Some(head) = octets.first_chunk::<12>() else {
            return Record::Need(12);
        };
        if u32::from_be_bytes([head[0], head[1], head[2], head[3]]) == NG_SECTION {
            // The only block that tells its byte order.
            let big_endian = match u32::from_be_bytes([head[8], head[9], head[10], head[11]]) {
                NG_BYTE_ORDER => true,
                order if order.swap_bytes() == NG_BYTE_ORDER => false,
                _ => return Record::Damaged("a section header without a byte-order mark"),
            };
            return match Order(big_endian).u32(head, 4) {
                ..28 => Record::Damaged("a section header too short"),
                length if length as usize > MAX_RECORD => {
                    Record::Damaged("a section header of more than 16 MiB")
                }
                length => self.whole(octets, length, Order(big_endian), Record::Control),
            };
        }
        if !self.in_section {
            return Record::Damaged("no section header");
        }
        let order = Order(self.big_endian);
        let (kind, length) = (order.u32(head, 0), order.u32(head, 4));
        if length < 12 {
            return Record::Damaged("a block shorter than a block can be");
        }
        match kind {
            NG_INTERFACE | NG_STATISTICS | NG_PACKET | NG_SIMPLE_PACKET | NG_ENHANCED_PACKET => {}
            // Not kept, so it may be as long as it likes.
            _ => return Record::Skip(u64::from(length).next_multiple_of(4)),
        }
        if length as usize > MAX_RECORD {
            return Record::Damaged("a block of more than 16 MiB");
        }
        match kind {
            NG_INTERFACE | NG_STATISTICS => self.whole(octets, length, order, Record::Control),
            _ => self.whole(octets, length, order, |length| {
                // Whole, so these are there.
                let body = octets.get(8..length - 4).unwrap_or_default();
                match self.packet(kind, body, order) {
                    Ok(frame) => Record::Frame(frame, length),
                    Err(what) => Record::Damaged(what),
                }
            }),
        }
    }

    /// Goes on with a block's length, padding included, when all of it is there and both its lengths agree.
    #[inline]
    fn whole<'f>(
        &self,
        octets: &[u8],
        length: u32,
        order: Order,
        then: impl FnOnce(usize) -> Record<'f>,
    ) -> Record<'f> {
        // Some writers forget to count the padding.
        let padded = (length as usize).next_multiple_of(4);
        if octets.len() < padded {
            return Record::Need(padded);
        }
        if order.u32(octets, padded - 4) != length {
            return Record::Damaged("a block whose two lengths differ");
        }
        then(padded)
    }

    #[inline]
    fn packet<'f>(
        &self,
        kind: u32,
        body: &'f [u8],
        order: Order,
    ) -> Result<Frame<'f>, &'static str> {
        const SHORT: &str = "a packet block too short for its fields";
        const UNKNOWN: &str = "a packet of an interface that was not described";
        let (number, fixed) = match kind {
            NG_ENHANCED_PACKET => (order.u32(body, 0), 20),
            NG_PACKET => (u32::from(order.u16(body, 0)), 20),
            _ => (0, 4),
        };
        let Some((head, behind)) = body.split_at_checked(fixed) else {
            return Err(SHORT);
        };
        let interface = (self.section).saturating_add(number as usize);
        let Some(clock) = self.clocks.get(interface) else {
            return Err(UNKNOWN);
        };
        if kind == NG_SIMPLE_PACKET {
            let wire_len = order.u32(head, 0);
            let limit = match clock.snaplen {
                0 => u32::MAX,
                limit => limit,
            };
            let Some(octets) = behind.get(..wire_len.min(limit) as usize) else {
                return Err(SHORT);
            };
            // This kind of block has no time.
            let mut meta = FrameMeta::ethernet(Timestamp::ZERO, wire_len);
            meta.link_type = clock.link_type;
            meta.interface = interface as u32;
            return Ok(frame(octets, wire_len, clock.fcs_len, meta));
        }
        let (kept, wire_len) = (order.u32(head, 12) as usize, order.u32(head, 16));
        let Some(octets) = behind.get(..kept) else {
            return Err(SHORT);
        };
        let mut meta = FrameMeta::ethernet(clock.read(order.halves(head, 4)), wire_len);
        meta.link_type = clock.link_type;
        meta.interface = interface as u32;
        let options = behind.get(kept.next_multiple_of(4)..).unwrap_or_default();
        if !options.is_empty() {
            meta.packet_type = order
                .options(options)
                .find(|(code, value)| *code == 2 && value.len() == 4)
                .and_then(|(_, flags)| packet_type(order.u32(flags, 0)));
        }
        Ok(frame(octets, wire_len, clock.fcs_len, meta))
    }

    /// Takes in a section header, an interface or its statistics.
    fn control(&mut self, block: &[u8]) -> Result<(), &'static str> {
        if block.first_chunk() == Some(&NG_SECTION.to_be_bytes()) {
            let big_endian = block.get(8..12) == Some(&NG_BYTE_ORDER.to_be_bytes());
            if Order(big_endian).u16(block, 12) != 1 {
                return Err("a section of a version other than 1");
            }
            self.in_section = true;
            self.big_endian = big_endian;
            self.section = self.interfaces.len();
            return Ok(());
        }
        let order = Order(self.big_endian);
        let kind = order.u32(block, 0);
        let body = block
            .get(8..block.len().saturating_sub(4))
            .unwrap_or_default();
        if kind == NG_STATISTICS {
            let Some(options) = body.get(12..) else {
                return Err("interface statistics too short");
            };
            let number = self.section.saturating_add(order.u32(body, 0) as usize);
            let known = self.interfaces.get_mut(number);
            let Some((interface, losses)) = known.zip(self.losses.get_mut(number)) else {
                return Err("statistics of an interface that was not described");
            };
            for (code, value) in order.options(options) {
                let place = match code {
                    5 => 0,
                    7 => 1,
                    _ => continue,
                };
                if let Some(told) = order.u64(value) {
                    // Both count from the capture's start, so less is no news.
                    losses[place] = losses[place].max(told);
                }
            }
            interface.dropped = losses[0].saturating_add(losses[1]);
            return Ok(());
        }
        let Some(options) = body.get(8..) else {
            return Err("an interface description too short");
        };
        if self.interfaces.len() == MAX_INTERFACES {
            return Err("more than 65,536 interfaces");
        }
        let mut clock = Clock {
            link_type: LinkType(order.u16(body, 0)),
            snaplen: order.u32(body, 4),
            fcs_len: 0,
            scale: Scale::Times(1_000),
            offset: 0,
        };
        let (mut name, mut description, mut mac) = (None, None, None);
        for (code, value) in order.options(options) {
            match (code, value) {
                (2, _) => name = Some(value),
                (3, _) => description = Some(value),
                (6, _) => mac = value.try_into().ok(),
                (9, [resolution, ..]) => clock.scale = Scale::of(*resolution),
                // Told in bits by the specification, in octets by some writers.
                (13, [length, ..]) => {
                    clock.fcs_len = u32::from(if *length >= 8 { *length / 8 } else { *length });
                }
                (14, _) => {
                    if let Some(seconds) = order.u64(value) {
                        clock.offset = i128::from(seconds.cast_signed()) * 1_000_000_000;
                    }
                }
                _ => {}
            }
        }
        let interface = FileInterface {
            name: name.and_then(|value| self.text(value)),
            description: description.and_then(|value| self.text(value)),
            mac,
            snaplen: clock.snaplen,
            link_type: clock.link_type,
            dropped: 0,
        };
        self.clocks.push(clock);
        self.interfaces.push(interface);
        self.losses.push([0; 2]);
        Ok(())
    }

    /// Text of an option, made valid and cut; `None` when it would be too much with those before.
    fn text(&mut self, value: &[u8]) -> Option<String> {
        // A character that begins before the cut is all here, and what is no character takes as many octets or more when it is replaced.
        let valid = String::from_utf8_lossy(&value[..value.len().min(MAX_NAME + 3)]);
        let cut = &valid[..valid.floor_char_boundary(MAX_NAME)];
        let texts = self.texts + cut.len() + TEXT_COST;
        if texts > MAX_TEXTS {
            return None;
        }
        self.texts = texts;
        Some(cut.to_owned())
    }
}

/// `epb_flags`: direction in bits 0 and 1, reception type in bits 2 to 4.
fn packet_type(flags: u32) -> Option<PacketType> {
    match (flags & 3, flags >> 2 & 7) {
        (2, _) => Some(PacketType::Outgoing),
        (1, 1) => Some(PacketType::Host),
        (1, 2) => Some(PacketType::Multicast),
        (1, 3) => Some(PacketType::Broadcast),
        (1, 4) => Some(PacketType::OtherHost),
        // Not told, or by a number that has no meaning yet: which way it went is known all the same.
        (1, _) => Some(PacketType::Inbound),
        _ => None,
    }
}

impl Scale {
    /// Of `if_tsresol`.
    fn of(resolution: u8) -> Self {
        let exponent = u32::from(resolution & 0x7f);
        if resolution & 0x80 != 0 {
            Self::Shift(exponent)
        } else if exponent <= 9 {
            Self::Times(10_u64.pow(9 - exponent))
        } else {
            // Finer than 64 bits can tell: always zero.
            10_u64
                .checked_pow(exponent - 9)
                .map_or(Self::Times(0), Self::Over)
        }
    }
}

impl Clock {
    #[inline]
    fn read(&self, units: u64) -> Timestamp {
        let nanos = match self.scale {
            Scale::Times(factor) => units.saturating_mul(factor),
            Scale::Over(divisor) => units / divisor,
            Scale::Shift(bits) => {
                // 64 bits times 10^9 is below 2^94.
                u64::try_from((u128::from(units) * 1_000_000_000) >> bits).unwrap_or(u64::MAX)
            }
        };
        if self.offset == 0 {
            return Timestamp::from_nanos(nanos);
        }
        let moved = (i128::from(nanos) + self.offset).clamp(0, i128::from(u64::MAX));
        Timestamp::from_nanos(u64::try_from(moved).unwrap_or(u64::MAX))
    }
}

/// Where a walk through a run stands, and what it has seen.
#[derive(Clone, Copy, Debug)]
struct Walk {
    at: usize,
    frames: u64,
    wire_octets: u64,
    truncated: u64,
    ended: bool,
}

impl Walk {
    const fn at(at: usize) -> Self {
        Self {
            at,
            frames: 0,
            wire_octets: 0,
            truncated: 0,
            ended: false,
        }
    }

    /// Goes behind a frame, in a record of `length` octets.
    #[inline(always)]
    fn count(&mut self, frame: &Frame<'_>, length: usize) {
        self.at += length;
        self.frames += 1;
        self.wire_octets += u64::from(frame.wire_len());
        self.truncated += u64::from(frame.octets().len() < frame.wire_len() as usize);
    }
}

/// A run of frames in a [`CaptureFile`]'s buffer, up to where the buffer ends or the file describes something anew.
#[derive(Debug)]
pub struct FileBlock<'s> {
    octets: &'s [u8],
    format: &'s Format,
    start: usize,
    /// The furthest that any walk got: each frame is counted once, however often it is looked at.
    furthest: Cell<Walk>,
    tally: &'s mut Tally,
}

impl FileBlock<'_> {
    /// The interfaces the file has described up to these frames: [`CaptureFile::interfaces`], all that their
    /// [`interface`](FrameMeta::interface) can name.
    pub fn interfaces(&self) -> &[FileInterface] {
        self.format.interfaces()
    }

    /// The run's frames, in the file's order.
    pub fn frames(&self) -> FileFrames<'_> {
        FileFrames {
            octets: self.octets,
            format: self.format,
            walk: Walk::at(self.start),
            furthest: &self.furthest,
        }
    }
}

impl FrameBlock for FileBlock<'_> {
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        FileBlock::frames(self)
    }
}

impl Drop for FileBlock<'_> {
    fn drop(&mut self) {
        if !self.furthest.get().ended {
            // The caller stopped early: the rest was handed out all the same.
            let mut rest = self.frames();
            rest.walk = self.furthest.get();
            rest.by_ref().for_each(drop);
        }
        let walk = self.furthest.get();
        self.tally.at = walk.at;
        self.tally.frames += walk.frames;
        self.tally.wire_octets += walk.wire_octets;
        self.tally.truncated += walk.truncated;
    }
}

/// The frames of a [`FileBlock`].
#[derive(Debug)]
pub struct FileFrames<'b> {
    octets: &'b [u8],
    format: &'b Format,
    walk: Walk,
    furthest: &'b Cell<Walk>,
}

impl<'b> Iterator for FileFrames<'b> {
    type Item = Frame<'b>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'b>> {
        let octets = self.octets.get(self.walk.at..).unwrap_or_default();
        let (frame, length) = self.format.frame(octets, &mut self.walk)?;
        self.walk.count(&frame, length);
        Some(frame)
    }

    /// As by [`next`](Self::next), at half the cost: frames stay in registers, and so does how far the walk has come.
    #[inline(always)]
    fn fold<A, F: FnMut(A, Frame<'b>) -> A>(mut self, mut sum: A, mut f: F) -> A {
        let mut walk = self.walk;
        let usual = match self.format {
            Format::Pcap(format, _) if format.is_usual() => Some(*format),
            _ => None,
        };
        // One call of `f` for all formats: two of them would not be inlined.
        loop {
            let octets = self.octets.get(walk.at..);
            let record = usual
                .zip(octets)
                .and_then(|(usual, octets)| usual.usual_record(octets));
            let (frame, length) = match record {
                Some(record) => record,
                None => match self.format.frame(octets.unwrap_or_default(), &mut walk) {
                    Some(record) => record,
                    None => break,
                },
            };
            walk.count(&frame, length);
            sum = f(sum, frame);
        }
        self.walk = walk;
        sum
    }
}

impl Drop for FileFrames<'_> {
    fn drop(&mut self) {
        let furthest = self.furthest.get();
        if self.walk.at > furthest.at || self.walk.ended && !furthest.ended {
            self.furthest.set(self.walk);
        }
    }
}
