//! Captures of all kinds, whole, cut and mutated; pcap-file as the second opinion.
#![allow(clippy::unwrap_used, reason = "in a test an error is a failure")]

use std::io::{self, Read};

use nvcapture::{
    CaptureFile, CaptureWriter, Error, Frame, FrameBlock, FrameMeta, FrameSource,
    InterfaceDescription, LinkType, Next, PacketType, SourceStats, Timestamp, VlanTag,
};
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq)]
struct Owned {
    octets: Vec<u8>,
    meta: FrameMeta,
}

/// All frames, and how it ended.
fn read<R: Read>(input: R) -> (Vec<Owned>, Option<Error>) {
    let mut capture = CaptureFile::new(input);
    let mut frames = Vec::new();
    let mut octets = 0;
    let error = loop {
        match capture.next_block() {
            Ok(Next::Block(block)) => {
                let before = frames.len();
                for frame in block.frames() {
                    octets += u64::from(frame.wire_len());
                    assert!(frame.octets().len() <= frame.wire_len() as usize);
                    frames.push(Owned {
                        octets: frame.octets().to_vec(),
                        meta: *frame.meta(),
                    });
                }
                // The walk that is not asked for each frame knows a shorter way.
                let mut same = frames[before..].iter();
                block.frames().for_each(|frame| {
                    let asked = same.next().expect("as many frames");
                    assert_eq!(frame.octets(), asked.octets);
                    assert_eq!(*frame.meta(), asked.meta);
                });
                assert!(same.next().is_none());
            }
            Ok(Next::TimedOut) => panic!("files do not wait"),
            Ok(Next::End) => break None,
            Err(error) => break Some(error),
        }
    };
    // Whatever happened: then there is no more, and the totals are those of what was handed out.
    assert!(matches!(capture.next_block(), Ok(Next::End)));
    let stats = capture.stats().unwrap();
    assert_eq!(
        (stats.frames, stats.wire_octets),
        (frames.len() as u64, octets)
    );
    (frames, error)
}

/// Hands out a few octets at a time, as pipes do.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        if self.1 == 3 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = self.1.min(self.0.len()).min(buffer.len());
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

/// Builds files in either byte order.
struct Build {
    big_endian: bool,
    octets: Vec<u8>,
}

impl Build {
    fn new(big_endian: bool) -> Self {
        let octets = Vec::new();
        Self { big_endian, octets }
    }
    fn u16(mut self, value: u16) -> Self {
        let word = if self.big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        };
        self.octets.extend(word);
        self
    }
    fn u32(mut self, value: u32) -> Self {
        let word = if self.big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        };
        self.octets.extend(word);
        self
    }
    fn u64(mut self, value: u64) -> Self {
        let word = if self.big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        };
        self.octets.extend(word);
        self
    }
    fn raw(mut self, octets: &[u8]) -> Self {
        self.octets.extend(octets);
        self
    }
    fn pcap(self, magic: u32, minor: u16, network: u32) -> Self {
        self.u32(magic)
            .u16(2)
            .u16(minor)
            .u32(0)
            .u32(0)
            .u32(262_144)
            .u32(network)
    }
    fn option(self, code: u16, value: &[u8]) -> Self {
        let padding = vec![0; value.len().next_multiple_of(4) - value.len()];
        self.u16(code)
            .u16(value.len() as u16)
            .raw(value)
            .raw(&padding)
    }
    fn block(self, kind: u32, body: impl FnOnce(Self) -> Self) -> Self {
        let body = body(Self::new(self.big_endian)).octets;
        let length = body.len() as u32 + 12;
        self.u32(kind).u32(length).raw(&body).u32(length)
    }
    fn section(self) -> Self {
        self.block(0x0a0d_0d0a, |b| {
            b.u32(0x1a2b_3c4d).u16(1).u16(0).u64(u64::MAX)
        })
    }
    fn interface(self, link: u16, snaplen: u32, options: impl FnOnce(Self) -> Self) -> Self {
        self.block(1, |b| options(b.u16(link).u16(0).u32(snaplen)))
    }
    fn packet(self, interface: u32, time: u64, octets: &[u8], wire_len: u32) -> Self {
        let padding = vec![0; octets.len().next_multiple_of(4) - octets.len()];
        self.block(6, |b| {
            b.u32(interface)
                .u32((time >> 32) as u32)
                .u32(time as u32)
                .u32(octets.len() as u32)
                .u32(wire_len)
                .raw(octets)
                .raw(&padding)
        })
    }
}

fn told(error: Option<Error>) -> String {
    error.map_or_else(String::new, |error| error.to_string())
}

#[test]
fn pcap_of_every_kind() {
    for big_endian in [false, true] {
        for (magic, unit) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
            let file = Build::new(big_endian)
                .pcap(magic, 4, 1)
                .u32(1_700_000_000)
                .u32(123_456)
                .u32(3)
                .u32(60)
                .raw(b"abc")
                .u32(1_700_000_001)
                .u32(999_999)
                .u32(0)
                .u32(0)
                .octets;
            let (frames, error) = read(&file[..]);
            assert!(error.is_none());
            assert_eq!(frames.len(), 2);
            assert_eq!(frames[0].octets, b"abc");
            let time = Timestamp::from_nanos(1_700_000_000_000_000_000 + 123_456 * unit);
            assert_eq!(frames[0].meta, FrameMeta::ethernet(time, 60));
            assert_eq!(frames[1].meta.wire_len, 0);
        }
        // The heads of a modified libpcap are longer.
        let file = Build::new(big_endian)
            .pcap(0xa1b2_cd34, 4, 113)
            .u32(1)
            .u32(2)
            .u32(3)
            .u32(3)
            .u32(7)
            .u16(8)
            .raw(&[0, 0])
            .raw(b"abc")
            .octets;
        let (frames, error) = read(&file[..]);
        assert!(error.is_none());
        assert_eq!(frames[0].octets, b"abc");
        assert_eq!(frames[0].meta.link_type, LinkType::LINUX_SLL);
        assert_eq!(frames[0].meta.timestamp.as_nanos(), 1_000_002_000);
    }
}

#[test]
fn pcap_oddities() {
    // Lengths the other way round, before 2.3 always, in 2.3 perhaps.
    for (minor, lengths, expected) in [
        (2, [60, 3], 60),
        (3, [60, 3], 60),
        (3, [3, 60], 60),
        (4, [3, 60], 60),
        // Less on the wire than was kept cannot be.
        (4, [3, 1], 3),
    ] {
        let file = Build::new(false)
            .pcap(0xa1b2_c3d4, minor, 1)
            .u32(0)
            .u32(0)
            .u32(lengths[0])
            .u32(lengths[1])
            .raw(b"abc")
            .octets;
        let (frames, error) = read(&file[..]);
        assert!(error.is_none(), "{minor}: {error:?}");
        assert_eq!(
            (&frames[0].octets[..], frames[0].meta.wire_len),
            (&b"abc"[..], expected)
        );
    }
    // 4 octets of FCS, told in the upper bits of the link type.
    let file = Build::new(false)
        .pcap(0xa1b2_c3d4, 4, 0x2400_0001)
        .u32(0)
        .u32(0)
        .u32(7)
        .u32(7)
        .raw(b"abcFCS!")
        .u32(0)
        .u32(0)
        .u32(5)
        .u32(70)
        .raw(b"abcde")
        .octets;
    let (frames, _) = read(&file[..]);
    assert_eq!(
        (&frames[0].octets[..], frames[0].meta.wire_len),
        (&b"abc"[..], 3)
    );
    assert_eq!(
        (&frames[1].octets[..], frames[1].meta.wire_len),
        (&b"abcde"[..], 66)
    );
    assert_eq!(frames[0].meta.link_type, LinkType::ETHERNET);
    // Longer than the header's snap length.
    let long = vec![7; 300_000];
    let file = Build::new(true)
        .pcap(0xa1b2_c3d4, 4, 1)
        .u32(0)
        .u32(0)
        .u32(300_000)
        .u32(300_000)
        .raw(&long)
        .octets;
    assert_eq!(read(&file[..]).0[0].octets, long);
}

#[test]
fn pcapng_of_every_kind() {
    for big_endian in [false, true] {
        let ticks = 1_700_000_000_u64;
        let file = Build::new(big_endian)
            .section()
            .block(0x0bad, |b| b.raw(&[1; 8]))
            .interface(1, 0, |b| {
                b.option(2, b"eth0").option(3, b"one").option(0, b"")
            })
            .interface(101, 4, |b| b.option(9, &[9]))
            .interface(113, 0, |b| {
                let b = b.option(9, &[0x80 | 10]);
                let offset = if big_endian {
                    5_u64.to_be_bytes()
                } else {
                    5_u64.to_le_bytes()
                };
                b.option(14, &offset)
            })
            .packet(0, ticks * 1_000_000 + 7, b"first", 60)
            .packet(1, ticks * 1_000_000_000 + 7, b"next", 4)
            .packet(2, ticks * 1024 + 512, b"", 0)
            .block(3, |b| b.u32(60).raw(b"simple.."))
            .block(2, |b| {
                b.u16(1).u16(9).u32(0).u32(77).u32(3).u32(3).raw(b"old\0")
            })
            .octets;
        // The simple packet has as many octets as interface 0 keeps, which is all: 60 are not there.
        let (frames, error) = read(&file[..]);
        assert_eq!(frames.len(), 3);
        assert!(told(error).contains("too short for its fields"));

        let section = |file: Build, name: &[u8]| {
            file.section()
                .interface(1, 8, |b| b.option(2, name))
                .block(3, |b| b.u32(60).raw(b"simple.."))
                .interface(101, 0, |b| b)
                .block(2, |b| {
                    b.u16(1).u16(9).u32(0).u32(77).u32(3).u32(3).raw(b"old\0")
                })
        };
        // Another byte order in the second section; its interfaces go on counting.
        let mut file = section(Build::new(big_endian), b"a").octets;
        file.extend(section(Build::new(!big_endian), b"b").octets);
        let (more, error) = read(&file[..]);
        assert!(error.is_none(), "{error:?}");
        let seen: Vec<_> = more
            .iter()
            .map(|f| {
                (
                    &f.octets[..],
                    f.meta.interface,
                    f.meta.wire_len,
                    f.meta.timestamp.as_nanos(),
                )
            })
            .collect();
        let expected = [
            (&b"simple.."[..], 0, 60, 0),
            (b"old", 1, 3, 77_000),
            (b"simple..", 2, 60, 0),
            (b"old", 3, 3, 77_000),
        ];
        assert_eq!(seen, expected);
        let links: Vec<_> = frames.iter().map(|f| f.meta.link_type).collect();
        assert_eq!(
            links,
            [LinkType::ETHERNET, LinkType::RAW, LinkType::LINUX_SLL]
        );
        let times: Vec<_> = frames.iter().map(|f| f.meta.timestamp.as_nanos()).collect();
        let second = ticks * 1_000_000_000;
        assert_eq!(times, [second + 7000, second + 7, second + 5_500_000_000]);
    }
}

#[test]
fn times_beyond_what_can_be_told_stay_at_the_end() {
    let cases: [(u8, u64, i64, u64); 8] = [
        (0, u64::MAX, 0, u64::MAX),
        (0x80, u64::MAX, 0, u64::MAX),
        (9, u64::MAX, i64::MAX, u64::MAX),
        (9, 5, i64::MIN, 0),
        (9, 5_000_000_000, -2, 3_000_000_000),
        (12, 5_000, 0, 5),
        (127, u64::MAX, 0, 0),
        (0xff, u64::MAX, 0, 0),
    ];
    for (resolution, time, offset, expected) in cases {
        let file = Build::new(false)
            .section()
            .interface(1, 0, |b| {
                b.option(9, &[resolution]).option(14, &offset.to_le_bytes())
            })
            .packet(0, time, b"", 0)
            .octets;
        let (frames, error) = read(&file[..]);
        assert!(error.is_none());
        assert_eq!(
            frames[0].meta.timestamp.as_nanos(),
            expected,
            "{resolution:#x} {offset}"
        );
    }
}

#[test]
fn what_is_no_capture_is_named() {
    for (octets, said) in [
        (&b""[..], "empty"),
        (b"\xd4\xc3", "shorter"),
        (b"\x1f\x8b\x08\0....", "gzip"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"PK\x03\x04....", "neither"),
        (
            b"hello, world, this is text and longer than a header",
            "neither",
        ),
        (
            &Build::new(false)
                .u32(0xa1b2_c3d4)
                .u16(9)
                .raw(&[0; 40])
                .octets,
            "version",
        ),
    ] {
        let (frames, error) = read(octets);
        assert!(frames.is_empty());
        assert!(matches!(error, Some(Error::NotACapture { .. })));
        assert!(told(error).contains(said), "{said}");
    }
    let error = CaptureFile::open("/nonexistent/capture.pcap").unwrap_err();
    assert_eq!(error.to_string(), "open /nonexistent/capture.pcap");
}

/// Small files that have something of everything.
fn samples() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for big_endian in [false, true] {
        let mut pcap = Build::new(big_endian).pcap(0xa1b2_c3d4, 4, 1);
        for n in 0..4 {
            pcap = pcap
                .u32(n)
                .u32(n)
                .u32(n + 1)
                .u32(60)
                .raw(&[9; 4][..n as usize + 1]);
        }
        samples.push(pcap.octets);
        samples.push(
            Build::new(big_endian)
                .section()
                .interface(1, 0, |b| {
                    b.option(2, b"eth0")
                        .option(9, &[6])
                        .option(14, &[0; 8])
                        .option(0, b"")
                })
                .packet(0, 1, b"abcde", 60)
                .block(0x0bad, |b| b.u32(0))
                .block(5, |b| b.u32(0).u64(0).option(5, &[1; 8]))
                .section()
                .interface(1, 3, |b| b)
                .block(3, |b| b.u32(3).raw(b"abc\0"))
                .packet(0, 2, b"xyz", 3)
                .octets,
        );
    }
    samples
}

#[test]
fn cut_at_every_octet() {
    for file in samples() {
        let (whole, error) = read(&file[..]);
        assert!(error.is_none() && whole.len() > 2);
        assert_eq!(read(Trickle(&file, 0)).0, whole);
        let mut most = 0;
        for end in 0..file.len() {
            let (frames, error) = read(Trickle(&file[..end], 0));
            assert_eq!(frames, whole[..frames.len()], "cut at {end}");
            assert!(frames.len() >= most, "cut at {end}");
            most = frames.len();
            let at_once = read(&file[..end]).1;
            assert_eq!(
                error.as_ref().map(Error::to_string),
                at_once.map(|error| error.to_string()),
                "cut at {end}: however the octets come"
            );
            match error {
                None => {}
                Some(Error::Damaged { offset, .. }) => assert!(offset < end as u64),
                Some(Error::NotACapture { .. }) => assert!(end < 24),
                Some(other) => panic!("{other}"),
            }
        }
        assert!(most >= whole.len() - 1);
    }
}

#[test]
fn a_cut_record_is_told_with_its_offset() {
    let file = Build::new(false)
        .pcap(0xa1b2_c3d4, 4, 1)
        .u32(0)
        .u32(0)
        .u32(3)
        .u32(3)
        .raw(b"abc")
        .u32(0)
        .u32(0)
        .u32(3)
        .u32(3)
        .raw(b"ab")
        .octets;
    let (frames, error) = read(&file[..]);
    assert_eq!(frames.len(), 1);
    assert_eq!(
        told(error),
        "the capture is damaged at offset 43: it ends in the middle of a record"
    );
    let mut file = file;
    file[43 + 8..43 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(told(read(&file[..]).1).contains("offset 43: a frame of more than 16 MiB"));
}

#[test]
fn damage_in_pcapng_is_named() {
    let good = Build::new(false).section().interface(1, 0, |b| b);
    let at = good.octets.len();
    let good = good.packet(0, 1, b"abc", 3).octets;
    let mut lengths = good.clone();
    let last = lengths.len() - 4;
    lengths[last] ^= 4;
    let mut interface = good.clone();
    interface[at + 8] = 1;
    let mut short = good.clone();
    short[at + 4..at + 8].copy_from_slice(&8_u32.to_le_bytes());
    let mut kept = good.clone();
    kept[at + 20] = 5;
    for (file, said) in [
        (lengths, "a block whose two lengths differ"),
        (interface, "a packet of an interface that was not described"),
        (short, "a block shorter than a block can be"),
        (kept, "a packet block too short for its fields"),
    ] {
        let (frames, error) = read(&file[..]);
        assert!(frames.is_empty(), "{said}");
        assert_eq!(
            told(error),
            format!("the capture is damaged at offset {at}: {said}")
        );
    }
    let statistics = Build::new(false)
        .section()
        .block(5, |b| b.u32(0).u64(0))
        .octets;
    assert!(told(read(&statistics[..]).1).contains("not described"));
}

#[test]
fn every_octet_mutated() {
    for file in samples() {
        for at in 0..file.len() {
            for value in 0..=255 {
                let mut mutated = file.clone();
                mutated[at] = value;
                let (frames, _) = read(&mutated[..]);
                assert!(frames.len() <= 8);
                // How it arrives makes no difference.
                if value.is_power_of_two() {
                    assert_eq!(read(Trickle(&mutated, 0)).0, frames);
                }
            }
        }
    }
}

/// Counts the octets asked for, to see what a claim makes the reader do.
struct Endless {
    head: Vec<u8>,
    sent: usize,
    most: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.most = self.most.max(buffer.len());
        let n = buffer.len().min(4096);
        for (i, octet) in buffer[..n].iter_mut().enumerate() {
            *octet = self.head.get(self.sent + i).copied().unwrap_or(0);
        }
        if self.sent > 64 << 20 {
            return Ok(0);
        }
        self.sent += n;
        Ok(n)
    }
}

#[test]
fn what_a_length_claims_is_not_allocated() {
    let skipped = Build::new(false)
        .section()
        .u32(0x0bad)
        .u32(u32::MAX - 3)
        .octets;
    let large = Build::new(false)
        .section()
        .u32(6)
        .u32((16 << 20) + 64)
        .octets;
    for head in [skipped, large] {
        let mut input = Endless {
            head,
            sent: 0,
            most: 0,
        };
        let (frames, error) = read(&mut input);
        assert!(frames.is_empty());
        assert!(
            matches!(error, Some(Error::Damaged { offset: 28.., .. })),
            "{error:?}"
        );
        assert!(
            input.most <= 1 << 20,
            "{} octets asked for at once",
            input.most
        );
    }
}

/// Parts of a file, each so many times.
struct Parts<'a> {
    parts: &'a [(&'a [u8], usize)],
    at: usize,
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // As much as there is room for, so that reads end anywhere in a block.
        let mut read = 0;
        while let Some(((part, times), later)) = self.parts.split_first()
            && read < buffer.len()
        {
            if self.at == part.len() * times {
                (self.parts, self.at) = (later, 0);
                continue;
            }
            let rest = &part[self.at % part.len()..];
            let n = rest.len().min(buffer.len() - read);
            buffer[read..read + n].copy_from_slice(&rest[..n]);
            self.at += n;
            read += n;
        }
        Ok(read)
    }
}

#[test]
fn interfaces_that_a_file_describes_do_not_fill_memory() {
    // What is no UTF-8 is longer once it is replaced.
    let name = [0xff; 600];
    let section = Build::new(false).section().octets;
    let interface = Build::new(false)
        .interface(1, 0, |b| b.option(2, &name).option(3, &name))
        .octets;
    let short = Build::new(false)
        .interface(1, 0, |b| b.option(2, b""))
        .octets;
    let octets = vec![7; (16 << 20) - 64];
    let packet = Build::new(false)
        .packet(0, 1, &octets, octets.len() as u32)
        .octets;
    for described in [&interface, &short] {
        let parts = [
            (&section[..], 1),
            (described, 32_768),
            (&section, 1),
            (described, 32_768),
            (&packet, 1),
            (described, 1),
        ];
        let mut capture = CaptureFile::new(Parts {
            parts: &parts,
            at: 0,
        });
        let mut frames = 0;
        let mut error = None;
        let allocated = allocation_counter::measure(|| {
            loop {
                match capture.next_block() {
                    Ok(Next::Block(block)) => frames += block.frames().count(),
                    Ok(Next::TimedOut | Next::End) => break,
                    Err(damage) => error = Some(damage),
                }
            }
        });
        assert!(
            allocated.bytes_max < 32 << 20,
            "{} octets",
            allocated.bytes_max
        );
        assert_eq!(frames, 1);
        assert!(told(error).contains("more than 65,536 interfaces"));
        let interfaces = capture.interfaces();
        assert_eq!(interfaces.len(), 65_536);
        let texts = || {
            interfaces
                .iter()
                .flat_map(|interface| [&interface.name, &interface.description])
                .flatten()
        };
        assert!(texts().all(|text| text.len() <= 255));
        // As many as there is room for, which are the first ones.
        let told = texts().count();
        let cost = texts().map(|text| text.len() + 32).sum::<usize>();
        let each = 32 + interfaces[0].name.as_ref().map_or(0, String::len);
        assert!((cost..cost + each).contains(&(2 << 20)) || told == 65_536);
        assert!(interfaces[0].name.is_some());
    }
}

#[test]
fn texts_are_cut_where_a_character_ends() {
    let cases: [(Vec<u8>, String); 6] = [
        (vec![b'x'; 255], "x".repeat(255)),
        (vec![b'x'; 256], "x".repeat(255)),
        ("\u{e4}".repeat(200).into(), "\u{e4}".repeat(127)),
        ("\u{1f980}".repeat(64).into(), "\u{1f980}".repeat(63)),
        (vec![0xff; 255], "\u{fffd}".repeat(85)),
        (b"\xf0\x9f\xa6eth0".into(), "\u{fffd}eth0".to_owned()),
    ];
    for (value, expected) in cases {
        let file = Build::new(true)
            .section()
            .interface(1, 0, |b| {
                b.option(2, &value).option(3, &value).option(0, b"")
            })
            .octets;
        let mut capture = CaptureFile::new(&file[..]);
        assert!(matches!(capture.next_block(), Ok(Next::End)));
        let interface = &capture.interfaces()[0];
        assert_eq!(interface.name.as_ref(), Some(&expected));
        assert_eq!(interface.description.as_ref(), Some(&expected));
    }
}

/// The buffer grows with the first blocks; then frames are lent out of it, however many there are.
#[test]
fn nothing_is_allocated_per_frame() {
    const FRAMES: u32 = 50_000;
    let mut pcap = Build::new(false)
        .u32(0xa1b2_3c4d)
        .u16(2)
        .u16(4)
        .u32(0)
        .u32(0)
        .u32(65_535)
        .u32(1)
        .octets;
    let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
    let number = writer
        .add_interface(&InterfaceDescription::default())
        .unwrap();
    for nth in 0..FRAMES {
        let octets = vec![7; 60 + nth as usize % 200];
        let length = octets.len() as u32;
        for word in [nth, nth, length, length] {
            pcap.extend(word.to_le_bytes());
        }
        pcap.extend(&octets);
        let meta = FrameMeta::ethernet(Timestamp::ZERO, length);
        writer.write(number, &Frame::new(&octets, meta)).unwrap();
    }
    for file in [pcap, writer.finish().unwrap()] {
        let mut capture = CaptureFile::new(&file[..]);
        let mut frames = 0;
        while frames < FRAMES as usize / 2
            && let Ok(Next::Block(block)) = capture.next_block()
        {
            frames += block.frames().count();
        }
        let mut blocks = 0;
        let allocated = allocation_counter::measure(|| {
            while let Ok(Next::Block(block)) = FrameSource::next_block(&mut capture, None) {
                blocks += 1;
                frames += FrameBlock::frames(&block).count();
            }
        });
        assert_eq!(frames, FRAMES as usize);
        assert!(blocks > 1, "{blocks}");
        assert_eq!(allocated.count_total, 0);
    }
}

#[test]
fn stopping_early_and_looking_twice_count_once() {
    let file = &samples()[0];
    let mut capture = CaptureFile::new(&file[..]);
    let Ok(Next::Block(block)) = capture.next_block() else {
        panic!("no block")
    };
    assert_eq!(block.frames().count(), 4);
    assert_eq!(block.frames().take(1).count(), 1);
    assert_eq!(block.frames().count(), 4);
    drop(block);
    assert_eq!(capture.stats().unwrap().frames, 4);

    let mut capture = CaptureFile::new(&file[..]);
    if let Ok(Next::Block(block)) = capture.next_block() {
        let _ = block.frames().next();
    }
    let stats = capture.stats().unwrap();
    assert_eq!(
        (stats.frames, stats.wire_octets, stats.truncated),
        (4, 240, 4)
    );
    assert_eq!(capture.position(), file.len() as u64);
}

#[test]
fn writer_tells_interfaces_and_losses() {
    let mut writer = CaptureWriter::new(Vec::new(), "nvcli test").unwrap();
    let description = InterfaceDescription {
        name: Some("web-1:eth0".into()),
        description: Some("container web-1".into()),
        mac: Some([2, 0, 0, 0, 0, 1]),
        snaplen: 96,
        link_type: LinkType::ETHERNET,
    };
    let first = writer.add_interface(&description).unwrap();
    let second = writer
        .add_interface(&InterfaceDescription::default())
        .unwrap();
    let octets = [1; 100];
    let mut meta = FrameMeta::ethernet(Timestamp::from_nanos(1_700_000_000_123_456_789), 1500);
    meta.vlan = Some(VlanTag {
        tpid: 0x8100,
        tci: 42,
    });
    writer
        .write(first, &Frame::new(&octets[..94], meta))
        .unwrap();
    let stats = SourceStats {
        frames: 10,
        dropped: 7,
        ..SourceStats::default()
    };
    for (interface, dropped) in [(first, 3), (first, 7), (second, 2)] {
        let stats = SourceStats { dropped, ..stats };
        writer
            .write_statistics(interface, meta.timestamp, &stats)
            .unwrap();
    }
    let length = writer.len();
    let file = writer.finish().unwrap();
    assert_eq!(length, file.len() as u64);

    let mut capture = CaptureFile::new(&file[..]);
    let Ok(Next::Block(block)) = capture.next_block() else {
        panic!("no block")
    };
    let frame = block.frames().next().unwrap();
    // The tag is in the octets, which are cut to what the interface's description promises.
    assert_eq!(
        frame.octets()[..18],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0x81, 0, 0, 42, 1, 1]
    );
    assert_eq!((frame.octets().len(), frame.wire_len()), (96, 1504));
    assert_eq!(frame.meta().timestamp, meta.timestamp);
    drop(block);
    assert!(matches!(capture.next_block(), Ok(Next::End)));
    let [one, two] = capture.interfaces() else {
        panic!("{:?}", capture.interfaces())
    };
    assert_eq!((one.name.as_deref(), one.snaplen), (Some("web-1:eth0"), 96));
    assert_eq!(one.description.as_deref(), Some("container web-1"));
    assert_eq!(InterfaceDescription::from(one), description);
    assert_eq!((one.dropped, two.dropped), (7, 2));
    assert_eq!(capture.stats().unwrap().dropped, 9);

    let mut other = CaptureWriter::new(Vec::new(), "").unwrap();
    assert!(matches!(
        other.write(second, &Frame::new(&[], meta)),
        Err(Error::Unwritable { .. })
    ));
    let name = Some("x".repeat(65_536));
    let too_long = InterfaceDescription {
        name,
        ..description
    };
    assert!(matches!(
        other.add_interface(&too_long),
        Err(Error::Unwritable { .. })
    ));
    let empty = other.finish().unwrap();
    assert!(
        read(&empty[..]).1.is_none(),
        "a refused block leaves nothing in the file"
    );
}

#[test]
fn losses_add_up_and_never_decrease() {
    let word = |big_endian: bool, value: u64| {
        if big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    for big_endian in [false, true] {
        // Of the section's interface `number`: `isb_ifdrop` and `isb_osdrop`.
        let told = |file: Build, number: u32, dropped: [Option<u64>; 2]| {
            file.block(5, |b| {
                let mut b = b.u32(number).u64(0).option(4, &word(big_endian, 99));
                for (code, value) in [5, 7].into_iter().zip(dropped) {
                    if let Some(value) = value {
                        b = b.option(code, &word(big_endian, value));
                    }
                }
                b.option(0, b"")
            })
            .packet(number, 1, b"abc", 3)
        };
        let mut file = Build::new(big_endian)
            .section()
            .interface(1, 0, |b| b)
            .interface(1, 0, |b| b);
        for (number, dropped) in [
            (0, [Some(5), Some(3)]),
            (0, [None, None]),
            (1, [None, Some(10)]),
            (0, [Some(6), None]),
            (0, [Some(2), None]),
        ] {
            file = told(file, number, dropped);
        }
        file = file.section().interface(1, 0, |b| b);
        for dropped in [[Some(100), None], [None, None], [None, Some(u64::MAX)]] {
            file = told(file, 0, dropped);
        }
        let file = file.octets;
        let mut capture = CaptureFile::new(&file[..]);
        let mut totals = Vec::new();
        while matches!(capture.next_block(), Ok(Next::Block(_))) {
            totals.push(capture.stats().unwrap().dropped);
        }
        assert_eq!(totals, [8, 8, 18, 19, 19, 119, 119, u64::MAX]);
        let each: Vec<_> = capture.interfaces().iter().map(|i| i.dropped).collect();
        assert_eq!(each, [9, 10, u64::MAX]);
    }
}

#[test]
fn directions_are_those_of_the_flags() {
    for big_endian in [false, true] {
        for flags in 0..32_u32 {
            let expected = match flags {
                0b00101 => Some(PacketType::Host),
                0b01001 => Some(PacketType::Multicast),
                0b01101 => Some(PacketType::Broadcast),
                0b10001 => Some(PacketType::OtherHost),
                _ if flags & 3 == 1 => Some(PacketType::Inbound),
                _ if flags & 3 == 2 => Some(PacketType::Outgoing),
                _ => None,
            };
            let file = Build::new(big_endian)
                .section()
                .interface(1, 0, |b| b)
                .block(6, |b| {
                    b.u32(0)
                        .u64(0)
                        .u32(0)
                        .u32(0)
                        .u16(2)
                        .u16(4)
                        .u32(flags)
                        .u32(0)
                })
                .octets;
            let (frames, error) = read(&file[..]);
            assert!(error.is_none());
            assert_eq!(frames[0].meta.packet_type, expected, "{flags:#b}");
            // Written and read again it is the same.
            let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
            let number = writer
                .add_interface(&InterfaceDescription::default())
                .unwrap();
            writer
                .write(number, &Frame::new(&[], frames[0].meta))
                .unwrap();
            assert_eq!(read(&writer.finish().unwrap()[..]).0, frames);
        }
    }
}

#[test]
fn interfaces_are_told_as_they_were_described() {
    for big_endian in [false, true] {
        let file = Build::new(big_endian)
            .section()
            .interface(1, 96, |b| {
                b.option(2, b"eth0").option(6, &[2, 0, 0, 0, 0, 1])
            })
            .packet(0, 1, b"abc", 3)
            .section()
            .interface(276, 0, |b| b.option(3, b"all").option(6, &[2, 0, 0]))
            .packet(0, 1, b"abc", 3)
            .octets;
        let mut capture = CaptureFile::new(&file[..]);
        let expected = [
            InterfaceDescription {
                name: Some("eth0".into()),
                mac: Some([2, 0, 0, 0, 0, 1]),
                snaplen: 96,
                ..InterfaceDescription::default()
            },
            InterfaceDescription {
                description: Some("all".into()),
                link_type: LinkType::LINUX_SLL2,
                ..InterfaceDescription::default()
            },
        ];
        for (number, expected) in (1..).zip(&expected) {
            let Ok(Next::Block(block)) = capture.next_block() else {
                panic!("no block")
            };
            // A frame's interface is known when the frame is there.
            let [.., last] = block.interfaces() else {
                panic!("no interface")
            };
            assert_eq!(block.interfaces().len(), number);
            assert_eq!(InterfaceDescription::from(last), *expected);
        }
        assert!(matches!(capture.next_block(), Ok(Next::End)));
        // What is written of them reads the same.
        let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
        for interface in capture.interfaces() {
            writer.add_interface(&interface.into()).unwrap();
        }
        let again = writer.finish().unwrap();
        let mut again = CaptureFile::new(&again[..]);
        assert!(matches!(again.next_block(), Ok(Next::End)));
        assert_eq!(again.interfaces(), capture.interfaces());
    }
    let file = Build::new(true).pcap(0xa1b2_c3d4, 4, 0x2400_0071).octets;
    let mut capture = CaptureFile::new(&file[..]);
    assert!(capture.interfaces().is_empty());
    assert!(matches!(capture.next_block(), Ok(Next::End)));
    let [one] = capture.interfaces() else {
        panic!("{:?}", capture.interfaces())
    };
    let expected = InterfaceDescription {
        snaplen: 262_144,
        link_type: LinkType::LINUX_SLL,
        ..InterfaceDescription::default()
    };
    assert_eq!(InterfaceDescription::from(one), expected);
}

/// Fails after some octets.
struct Full(usize);

impl io::Write for Full {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let n = octets.len().min(self.0);
        self.0 -= n;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn writer_tells_that_the_disk_is_full() {
    let mut writer = CaptureWriter::new(Full(100_000), "").unwrap();
    let interface = writer
        .add_interface(&InterfaceDescription::default())
        .unwrap();
    let octets = vec![0; 1000];
    let meta = FrameMeta::ethernet(Timestamp::ZERO, 1000);
    let failed = (0..1000)
        .find_map(|_| writer.write(interface, &Frame::new(&octets, meta)).err())
        .expect("100,000 octets are not enough");
    assert!(matches!(failed, Error::Io { op: "write", .. }), "{failed}");
}

fn any_frame() -> impl Strategy<Value = Owned> {
    let packet_type = prop_oneof![
        Just(None),
        Just(Some(PacketType::Host)),
        Just(Some(PacketType::Broadcast)),
        Just(Some(PacketType::Multicast)),
        Just(Some(PacketType::OtherHost)),
        Just(Some(PacketType::Outgoing)),
        Just(Some(PacketType::Inbound)),
    ];
    let octets = prop::collection::vec(any::<u8>(), 0..200);
    (octets, any::<u64>(), 0..70_000_u32, 0..3_u32, packet_type).prop_map(
        |(octets, nanos, more, interface, packet_type)| {
            let wire_len = octets.len() as u32 + more;
            let mut meta = FrameMeta::ethernet(Timestamp::from_nanos(nanos), wire_len);
            meta.interface = interface;
            meta.packet_type = packet_type;
            Owned { octets, meta }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in prop::collection::vec(any_frame(), 0..40)) {
        let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
        let interfaces: Vec<_> = (0..3)
            .map(|_| writer.add_interface(&InterfaceDescription::default()).unwrap())
            .collect();
        for frame in &frames {
            let interface = interfaces[frame.meta.interface as usize];
            writer.write(interface, &Frame::new(&frame.octets, frame.meta)).unwrap();
        }
        let file = writer.finish().unwrap();
        let (ours, error) = read(&file[..]);
        prop_assert!(error.is_none());
        prop_assert_eq!(&ours, &frames);

        let mut theirs = pcap_file::pcapng::PcapNgReader::new(&file[..]).unwrap();
        let mut read = 0;
        while let Some(block) = theirs.next_block() {
            if let (pcap_file::pcapng::Block::EnhancedPacket(packet), _) = block.unwrap() {
                prop_assert_eq!(&packet.data[..], &frames[read].octets[..]);
                prop_assert_eq!(packet.original_len, frames[read].meta.wire_len);
                prop_assert_eq!(packet.interface_id, frames[read].meta.interface);
                read += 1;
            }
        }
        prop_assert_eq!(read, frames.len());
    }

    #[test]
    fn pcap_reads_as_pcap_file_reads_it(
        records in prop::collection::vec((any::<u32>(), 0..1_000_000_u32, prop::collection::vec(any::<u8>(), 0..100)), 0..40),
        big_endian in any::<bool>(),
        nanos in any::<bool>(),
    ) {
        let magic = if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let mut file = Build::new(big_endian).pcap(magic, 4, 1);
        for (seconds, fraction, octets) in &records {
            let length = octets.len() as u32;
            file = file.u32(*seconds).u32(*fraction).u32(length).u32(length).raw(octets);
        }
        let (ours, error) = read(Trickle(&file.octets, 0));
        prop_assert!(error.is_none());
        let mut theirs = pcap_file::pcap::PcapReader::new(&file.octets[..]).unwrap();
        let mut read = 0;
        while let Some(packet) = theirs.next_packet() {
            let packet = packet.unwrap();
            prop_assert_eq!(packet.data(), &ours[read].octets[..]);
            prop_assert_eq!(packet.timestamp().as_nanos(), u128::from(ours[read].meta.timestamp.as_nanos()));
            read += 1;
        }
        prop_assert_eq!(read, ours.len());
    }

    #[test]
    fn any_octets_end(mut octets in prop::collection::vec(any::<u8>(), 0..400), kind in 0..4_usize) {
        // Behind a true beginning, so that it gets further than the first four octets.
        let mut file = samples()[kind].clone();
        file.truncate(48);
        file.append(&mut octets);
        let (frames, _) = read(&file[..]);
        prop_assert!(frames.len() < 400 / 12);
    }
}
