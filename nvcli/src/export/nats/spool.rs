//! Messages on disk while the broker is away.
//!
//! A directory of segments, each a row of entries: length, checksum, octets. A segment goes when everything in it is
//! acknowledged, so that after a crash at most one segment's messages are sent twice, under the same ids. An entry that a crash cut off ends its segment.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::Entry;

/// Octets of a segment from which on the next one is begun.
const SEGMENT: u64 = 1 << 20;
/// Octets in front of an entry.
const HEAD: usize = 8;
/// Longer than any message that a broker takes.
const LONGEST: usize = 64 << 20;

#[derive(Debug)]
struct Segment {
    number: u64,
    octets: u64,
    entries: u64,
    /// Entries handed out.
    read: u64,
    /// Which of them are acknowledged.
    settled: HashSet<u64>,
}

impl Segment {
    fn new(number: u64) -> Self {
        Self {
            number,
            octets: 0,
            entries: 0,
            read: 0,
            settled: HashSet::new(),
        }
    }

    fn left(&self) -> u64 {
        self.entries - self.settled.len() as u64
    }
}

/// Where an entry is: its segment's number, and its own in there.
pub(super) type Place = (u64, u64);

/// Messages on disk, oldest first.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    most: u64,
    segments: VecDeque<Segment>,
    writer: Option<File>,
    /// Reads the segment of this number.
    reader: Option<(u64, BufReader<File>)>,
    octets: u64,
    next: u64,
    _lock: Flock<File>,
}

impl Spool {
    /// Opens the directory, or makes it; for one process at a time.
    pub(super) fn open(directory: &Path, most: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| io::Error::other("another process uses it"))?;
        let mut numbers: Vec<u64> = fs::read_dir(directory)?
            .filter_map(|entry| {
                let name = entry.ok()?.file_name();
                let digits = name.to_str()?.strip_suffix(".spool")?;
                u64::from_str_radix(digits, 16).ok()
            })
            .collect();
        numbers.sort_unstable();
        let mut spool = Self {
            directory: directory.to_owned(),
            most,
            segments: VecDeque::new(),
            writer: None,
            reader: None,
            octets: 0,
            next: numbers.last().map_or(0, |last| last + 1),
            _lock: lock,
        };
        for number in numbers {
            let (entries, octets) = whole(&spool.path(number))?;
            if entries == 0 {
                fs::remove_file(spool.path(number))?;
                continue;
            }
            spool.octets += octets;
            spool.segments.push_back(Segment {
                octets,
                entries,
                ..Segment::new(number)
            });
        }
        Ok(spool)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016x}.spool"))
    }

    /// Entries that are not acknowledged.
    pub(super) fn len(&self) -> u64 {
        self.segments.iter().map(Segment::left).sum()
    }

    /// Whether there is something that was not handed out.
    pub(super) fn has_more(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.read < segment.entries)
    }

    /// Appends an entry; `false` when there is no room.
    pub(super) fn push(&mut self, entry: &Entry) -> io::Result<bool> {
        let body = entry.encoded();
        let octets = (HEAD + body.len()) as u64;
        if self.octets + octets > self.most || body.len() > LONGEST {
            return Ok(false);
        }
        let is_full = self
            .segments
            .back()
            .is_none_or(|last| last.octets >= SEGMENT);
        if self.writer.is_none() || is_full {
            self.begin()?;
        }
        let (Some(writer), Some(last)) = (&mut self.writer, self.segments.back_mut()) else {
            return Ok(false);
        };
        let mut whole = Vec::with_capacity(HEAD + body.len());
        whole.extend((body.len() as u32).to_le_bytes());
        whole.extend(checksum(&body).to_le_bytes());
        whole.extend(body);
        if let Err(error) = writer.write_all(&whole) {
            // What is there of it is taken back, so that the next try goes on here; otherwise it ends the segment when it is read.
            if writer.set_len(last.octets).is_err() {
                self.writer = None;
            }
            return Err(error);
        }
        last.octets += octets;
        last.entries += 1;
        self.octets += octets;
        Ok(true)
    }

    fn begin(&mut self) -> io::Result<()> {
        self.sync()?;
        let number = self.next;
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(number))?;
        File::open(&self.directory)?.sync_all()?;
        self.next += 1;
        self.writer = Some(file);
        self.segments.push_back(Segment::new(number));
        Ok(())
    }

    /// What was appended is on disk when this returns.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.writer.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// The next entry that is not acknowledged, and its place, for [`settle`](Self::settle).
    pub(super) fn pop(&mut self) -> io::Result<Option<(Place, Entry)>> {
        while let Some(at) = self
            .segments
            .iter()
            .position(|segment| segment.read < segment.entries)
        {
            let number = self.segments[at].number;
            if self.reader.as_ref().is_none_or(|(open, _)| *open != number) {
                let file = File::open(self.path(number))?;
                self.reader = Some((number, BufReader::new(file)));
            }
            let Some((_, reader)) = &mut self.reader else {
                break;
            };
            let damaged = || io::Error::other("an entry is damaged");
            let body = next(reader)?.ok_or_else(damaged)?;
            let segment = &mut self.segments[at];
            let place = segment.read;
            segment.read += 1;
            if !segment.settled.contains(&place) {
                let entry = Entry::decoded(&body).ok_or_else(damaged)?;
                return Ok(Some(((number, place), entry)));
            }
        }
        Ok(None)
    }

    /// What was handed out and not acknowledged is handed out again.
    pub(super) fn rewind(&mut self) {
        self.reader = None;
        for segment in &mut self.segments {
            segment.read = 0;
        }
    }

    /// The entry at this place is done with; a segment that is done with goes.
    pub(super) fn settle(&mut self, (number, place): Place) -> io::Result<()> {
        let Some(at) = self
            .segments
            .iter()
            .position(|segment| segment.number == number)
        else {
            return Ok(());
        };
        let segment = &mut self.segments[at];
        segment.settled.insert(place);
        if segment.left() > 0 {
            return Ok(());
        }
        self.octets -= segment.octets;
        if at + 1 == self.segments.len() {
            self.writer = None;
        }
        self.segments.remove(at);
        fs::remove_file(self.path(number))
    }
}

/// The next entry's octets; `None` at the end, and at one that is not whole.
fn next(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; HEAD];
    let whole = |read: io::Result<()>| match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    if !whole(reader.read_exact(&mut head))? {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > LONGEST {
        return Ok(None);
    }
    let mut body = vec![0; length];
    if !whole(reader.read_exact(&mut body))? {
        return Ok(None);
    }
    let is_right = checksum(&body) == u32::from_le_bytes([e, f, g, h]);
    Ok(is_right.then_some(body))
}

/// Entries that are whole, and their octets.
fn whole(path: &Path) -> io::Result<(u64, u64)> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut entries, mut octets) = (0, 0);
    while let Some(body) = next(&mut reader)? {
        entries += 1;
        octets += (HEAD + body.len()) as u64;
    }
    Ok((entries, octets))
}

/// CRC-32C (Castagnoli), bit by bit: messages are short and a disk is slower.
fn checksum(octets: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut octet = 0;
        while octet < 256 {
            let mut sum = octet as u32;
            let mut bit = 0;
            while bit < 8 {
                sum = (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[octet] = sum;
            octet += 1;
        }
        table
    };
    !octets.iter().fold(u32::MAX, |sum, octet| {
        (sum >> 8) ^ TABLE[usize::from(sum as u8 ^ octet)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        Entry {
            id: format!("host-run-{number}"),
            subject: "nvcli.flows.host.web".to_owned(),
            body: vec![b'x'; 100],
        }
    }

    fn ids(spool: &mut Spool) -> Vec<String> {
        std::iter::from_fn(|| spool.pop().expect("readable").map(|(_, entry)| entry.id)).collect()
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, B.4, and the usual check value.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_put_in_comes_out_in_order_also_by_another_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut spool = Spool::open(directory.path(), 64 << 20).expect("opened");
        assert!(Spool::open(directory.path(), 1).is_err(), "it is in use");
        for number in 0..20_000 {
            assert!(spool.push(&entry(number)).expect("written"));
        }
        let mut expected: Vec<String> = (0..20_000).map(|number| entry(number).id).collect();
        assert!(spool.segments.len() > 2);
        drop(spool);
        let mut spool = Spool::open(directory.path(), 64 << 20).expect("opened");
        assert_eq!(spool.len(), 20_000);
        assert_eq!(ids(&mut spool), expected);
        assert!(!spool.has_more());
        // All is handed out again until it is acknowledged.
        spool.rewind();
        let count = spool.segments[0].entries;
        for number in 0..count {
            // What is acknowledged is not handed out again.
            if number == count / 2 {
                spool.rewind();
            }
            let (place, popped) = spool.pop().expect("readable").expect("there");
            assert_eq!(popped.id, expected[number as usize]);
            spool.settle(place).expect("settled");
        }
        assert_eq!(spool.len(), 20_000 - count);
        drop(spool);
        let mut spool = Spool::open(directory.path(), 64 << 20).expect("opened");
        expected.drain(..count as usize);
        assert_eq!(ids(&mut spool), expected);
    }

    #[test]
    fn there_is_a_limit_and_room_again_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut spool = Spool::open(directory.path(), 1_000).expect("opened");
        let mut pushed = 0;
        while spool.push(&entry(pushed)).expect("written") {
            pushed += 1;
        }
        assert!((5..9).contains(&pushed), "{pushed}");
        for _ in 0..pushed {
            let (place, _) = spool.pop().expect("readable").expect("there");
            spool.settle(place).expect("settled");
        }
        assert_eq!((spool.len(), spool.octets), (0, 0));
        assert!(spool.push(&entry(7)).expect("written"));
        assert_eq!(ids(&mut spool), [entry(7).id]);
    }

    #[test]
    fn what_a_crash_cut_off_is_left_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut spool = Spool::open(directory.path(), 1 << 20).expect("opened");
        for number in 0..3 {
            assert!(spool.push(&entry(number)).expect("written"));
        }
        let path = spool.path(0);
        drop(spool);
        let whole = fs::read(&path).expect("there");
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("written");
            let mut spool = Spool::open(directory.path(), 1 << 20).expect("opened");
            let expected = cut * 3 / whole.len();
            assert_eq!(spool.len() as usize, expected, "cut at {cut}");
            assert_eq!(ids(&mut spool).len(), expected);
        }
        // An octet that is another than it was.
        let mut damaged = whole.clone();
        damaged[whole.len() / 3 + 20] ^= 1;
        fs::write(&path, damaged).expect("written");
        let mut spool = Spool::open(directory.path(), 1 << 20).expect("opened");
        assert_eq!(ids(&mut spool), [entry(0).id]);
    }
}
