//! Capture files: no panic, no more frames than there are octets for, totals that are those of the frames, and the same frames
//! however the octets come.

use std::collections::HashMap;
use std::io::{self, Read};

use nvcapture::{
    CaptureFile, CaptureWriter, Error, FileInterface, Frame, FrameMeta, FrameSource,
    InterfaceDescription, LinkType, Next, SourceStats,
};

/// The shortest thing a frame can come in: a pcapng simple packet block without octets; a pcap record has 16 as well.
const LEAST_RECORD: usize = 16;

/// First octets of pcap files of all kinds.
pub(crate) const MAGICS: [[u8; 4]; 6] = [
    [0xd4, 0xc3, 0xb2, 0xa1],
    [0xa1, 0xb2, 0xc3, 0xd4],
    [0x4d, 0x3c, 0xb2, 0xa1],
    [0xa1, 0xb2, 0x3c, 0x4d],
    [0x34, 0xcd, 0xb2, 0xa1],
    [0xa1, 0xb2, 0xcd, 0x34],
];

/// An input is how the octets come, a kind of pcap, and the file from behind its magic number on.
pub fn pcap(data: &[u8]) {
    let [how, kind, rest @ ..] = data else {
        return;
    };
    let mut file = MAGICS[usize::from(*kind) % MAGICS.len()].to_vec();
    file.extend_from_slice(rest);
    read(*how, &file);
}

/// An input is how the octets come, a byte order, and the file from behind a section header on.
pub fn pcapng(data: &[u8]) {
    let [how, order, rest @ ..] = data else {
        return;
    };
    let mut file = vec![0x0a, 0x0d, 0x0d, 0x0a];
    for (word, octets) in [
        (28, 4),
        (0x1a2b_3c4d, 4),
        (1, 2),
        (0, 2),
        (u64::MAX, 8),
        (28, 4),
    ] {
        if order % 2 == 0 {
            file.extend_from_slice(&u64::to_le_bytes(word)[..octets]);
        } else {
            file.extend_from_slice(&u64::to_be_bytes(word)[8 - octets..]);
        }
    }
    file.extend_from_slice(rest);
    read(*how, &file);
}

/// An input is how the octets come, and the file.
pub fn capture(data: &[u8]) {
    let [how, file @ ..] = data else {
        return;
    };
    read(*how, file);
}

/// All that a file says.
#[derive(Debug, PartialEq)]
struct Said {
    frames: Vec<(FrameMeta, Vec<u8>)>,
    interfaces: Vec<FileInterface>,
    stats: SourceStats,
    /// `None` when it ended well.
    error: Option<String>,
}

/// Reads like a pipe from a slow writer: never more than `step` octets at a time, now and then disturbed by a signal.
struct Trickle<'f> {
    rest: &'f [u8],
    step: usize,
    calls: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls % 7 == 3 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let step = (1 + self.calls % self.step)
            .min(self.rest.len())
            .min(buffer.len());
        let (now, later) = self.rest.split_at(step);
        buffer[..step].copy_from_slice(now);
        self.rest = later;
        Ok(step)
    }
}

fn read(how: u8, file: &[u8]) {
    let whole = all(CaptureFile::new(file), file.len(), false);
    let slow = Trickle {
        rest: file,
        step: 1 + usize::from(how),
        calls: 0,
    };
    assert_eq!(all(CaptureFile::new(slow), file.len(), true), whole);
    written_again(&whole.frames);
}

/// Reads all there is; with `idle`, each block's frames are not only walked once, and some only by the block itself.
fn all<R: Read>(mut capture: CaptureFile<R>, length: usize, idle: bool) -> Said {
    let mut frames: Vec<(FrameMeta, Vec<u8>)> = Vec::new();
    let error = loop {
        let before = frames.len();
        match capture.next_block() {
            Ok(Next::Block(block)) => {
                if idle {
                    assert!(block.frames().next().is_some(), "a block has a frame");
                    assert_eq!(block.frames().count(), block.frames().count());
                }
                frames.extend(
                    block
                        .frames()
                        .map(|frame| (*frame.meta(), frame.octets().to_vec())),
                );
                assert!(frames.len() > before, "a block has a frame");
            }
            Ok(Next::TimedOut) => panic!("files do not wait"),
            Ok(Next::End) => break None,
            Err(error) => {
                if let Error::Damaged { offset, .. } = &error {
                    assert!(*offset <= length as u64, "damage is in the file");
                }
                break Some(format!("{error:?}"));
            }
        }
        assert!(capture.position() <= length as u64);
    };
    assert!(
        matches!(capture.next_block(), Ok(Next::End)),
        "an error comes once, then nothing"
    );
    assert!(
        error.is_some() || capture.position() == length as u64,
        "all of it was read"
    );
    let stats = capture.stats().expect("counted, not asked for");
    assert!(
        frames.len() * LEAST_RECORD <= length,
        "{} frames of {length} octets",
        frames.len()
    );
    assert!(frames.iter().map(|(_, octets)| octets.len()).sum::<usize>() <= length);
    assert!(
        frames
            .iter()
            .all(|(meta, octets)| octets.len() <= meta.wire_len as usize)
    );
    assert_eq!(stats.frames, frames.len() as u64);
    assert_eq!(
        stats.wire_octets,
        frames
            .iter()
            .map(|(meta, _)| u64::from(meta.wire_len))
            .sum()
    );
    let cut = |(meta, octets): &&(FrameMeta, Vec<u8>)| octets.len() < meta.wire_len as usize;
    assert_eq!(stats.truncated, frames.iter().filter(cut).count() as u64);
    let interfaces = capture.interfaces().to_vec();
    // An interface takes a block of 20 octets to describe.
    assert!(interfaces.len() * 20 <= length);
    for (meta, _) in &frames {
        assert!(interfaces.is_empty() || (meta.interface as usize) < interfaces.len());
    }
    Said {
        frames,
        interfaces,
        stats,
        error,
    }
}

/// What was read, written and read again is the same.
fn written_again(frames: &[(FrameMeta, Vec<u8>)]) {
    let mut writer = CaptureWriter::new(Vec::new(), "fuzz").expect("a short name");
    let mut interfaces = HashMap::new();
    for (meta, octets) in frames {
        let LinkType(link_type) = meta.link_type;
        let interface = *interfaces.entry(link_type).or_insert_with(|| {
            writer
                .add_interface(&InterfaceDescription {
                    link_type: meta.link_type,
                    ..InterfaceDescription::default()
                })
                .expect("to memory")
        });
        writer
            .write(interface, &Frame::new(octets, *meta))
            .expect("to memory");
    }
    let file = writer.finish().expect("to memory");
    let again = all(CaptureFile::new(&file[..]), file.len(), false);
    assert_eq!(again.error, None);
    assert_eq!(again.frames.len(), frames.len());
    for ((found, found_octets), (meta, octets)) in again.frames.iter().zip(frames) {
        assert_eq!(found_octets, octets);
        let of = |meta: &FrameMeta| {
            (
                meta.timestamp,
                meta.wire_len,
                meta.link_type,
                meta.packet_type,
            )
        };
        assert_eq!(of(found), of(meta));
    }
}
