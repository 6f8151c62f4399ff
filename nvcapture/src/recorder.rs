//! The last frames, kept in memory for when somebody asks what happened.

use std::num::NonZeroU16;
use std::time::Duration;

use crate::{
    Error, Frame, FrameBlock, FrameMeta, LinkType, PacketType, SegmentSize, Timestamp, VlanTag,
};

/// The last frames of a source, in a bounded buffer: a flight recorder.
///
/// Frames are copied in, each behind the other, and the oldest fall out when there is no room or when they are older than wanted. Nothing is
/// allocated after the start; the memory is touched as it is first filled. What fell out is counted.
///
/// ```
/// use std::time::Duration;
/// use nvcapture::{FlightRecorder, Frame, FrameMeta, Timestamp};
///
/// let mut recorder = FlightRecorder::new(64 << 20, Duration::from_secs(60))?;
/// let octets = [0; 60];
/// for second in 0..100 {
///     let meta = FrameMeta::ethernet(Timestamp::from_nanos(second * 1_000_000_000), 60);
///     recorder.push(&Frame::new(&octets, meta));
/// }
/// let kept = recorder.frames_from(recorder.oldest());
/// assert_eq!(kept.map(|(frame, _)| frame.timestamp().as_nanos() / 1_000_000_000).min(), Some(39));
/// assert_eq!(recorder.stats().frames, 61);
/// assert_eq!(recorder.stats().too_old, 39);
/// # Ok::<(), nvcapture::Error>(())
/// ```
#[derive(Debug)]
pub struct FlightRecorder {
    buffer: Box<[u8]>,
    /// Positions count octets since the start; the place in the buffer is the remainder by its length.
    oldest: u64,
    end: u64,
    age: u64,
    newest: Timestamp,
    stats: RecorderStats,
}

/// What a [`FlightRecorder`] holds and what it held. Unit: frames, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecorderStats {
    /// Frames held.
    pub frames: u64,
    /// Octets of memory that they take, with what is known of them.
    pub octets: u64,
    /// Frames that were ever given to it: `frames + no_room + too_old + too_long`.
    pub seen: u64,
    /// Frames that fell out for newer ones.
    pub no_room: u64,
    /// Frames that fell out as they were older than wanted.
    pub too_old: u64,
    /// Frames longer than the whole buffer.
    pub too_long: u64,
}

/// Where a frame lies in a [`FlightRecorder`]: positions only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// Octets before a frame's own: length of the whole, of the frame, and what is known of it.
const HEAD: usize = 40;
/// In the place of a length: the next frame is at the buffer's start.
const AT_START: u32 = u32::MAX;

impl FlightRecorder {
    /// For `octets` of memory, and frames not older than `age` behind the newest.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not so much address space; [`Error::Config`] for less than 64 KiB.
    pub fn new(octets: usize, age: Duration) -> Result<Self, Error> {
        if octets < 64 << 10 {
            return Err(Error::Config {
                field: "octets",
                value: octets as u64,
                must: "be 64 KiB or more".into(),
            });
        }
        // Frames lie at multiples of 8.
        let octets = octets & !7;
        // Whether it is to be had is asked first: pages that come zeroed, and only when they are touched, are had without being able to ask.
        Vec::<u8>::new()
            .try_reserve_exact(octets)
            .map_err(|source| Error::Memory { octets, source })?;
        Ok(Self {
            buffer: vec![0; octets].into_boxed_slice(),
            oldest: 0,
            end: 0,
            age: u64::try_from(age.as_nanos()).unwrap_or(u64::MAX),
            newest: Timestamp::ZERO,
            stats: RecorderStats::default(),
        })
    }

    /// Keeps a frame; older ones fall out for it.
    pub fn push(&mut self, frame: &Frame<'_>) {
        self.stats.seen += 1;
        let octets = frame.octets();
        let length = HEAD + octets.len().next_multiple_of(8);
        if length > self.buffer.len() {
            self.stats.too_long += 1;
            return;
        }
        self.expire(frame.timestamp());
        let place = self.place(self.end);
        let behind = self.buffer.len() - place;
        // A frame is not torn apart: what does not fit behind the last one begins at the start.
        let mut skipped = if behind < length { behind } else { 0 };
        while self.end - self.oldest + (skipped + length) as u64 > self.buffer.len() as u64 {
            if self.oldest == self.end {
                // Empty, so nothing tells where the next one is.
                self.end += skipped as u64;
                self.oldest = self.end;
                skipped = 0;
            } else {
                self.stats.no_room += 1;
                self.drop_oldest();
            }
        }
        if skipped > 0 {
            self.buffer[place..place + 4].copy_from_slice(&AT_START.to_ne_bytes());
            self.end += skipped as u64;
        }
        let place = self.place(self.end);
        let whole = &mut self.buffer[place..place + length];
        let (head, body) = whole.split_at_mut(HEAD);
        head.copy_from_slice(&pack(length as u32, octets.len() as u32, frame.meta()));
        body[..octets.len()].copy_from_slice(octets);
        self.end += length as u64;
        self.stats.frames += 1;
        self.stats.octets += length as u64;
    }

    /// Lets those fall out that are older than wanted at `now`, without a frame that tells it.
    pub fn expire(&mut self, now: Timestamp) {
        self.newest = self.newest.max(now);
        while let Some((_, meta)) = self.first()
            && self
                .newest
                .as_nanos()
                .saturating_sub(meta.timestamp.as_nanos())
                > self.age
        {
            self.stats.too_old += 1;
            self.drop_oldest();
        }
    }

    /// Where the oldest frame lies.
    pub const fn oldest(&self) -> Position {
        Position(self.oldest)
    }

    /// Behind the newest frame.
    pub const fn end(&self) -> Position {
        Position(self.end)
    }

    /// The frames from `position` on, oldest first, each with the position behind it; from the oldest when what was there has fallen out.
    ///
    /// Who must not hold the recorder for long reads some, remembers the position and goes on from there.
    pub fn frames_from(&self, position: Position) -> Recorded<'_> {
        Recorded {
            recorder: self,
            at: position.0.clamp(self.oldest, self.end),
        }
    }

    /// What it holds and held.
    pub const fn stats(&self) -> RecorderStats {
        self.stats
    }

    fn place(&self, position: u64) -> usize {
        (position % self.buffer.len() as u64) as usize
    }

    /// The position of the frame at or behind `at`, its whole length, and what is known of it with the frame's own length.
    fn at(&self, mut at: u64) -> Option<(u64, u32, (u32, FrameMeta))> {
        if at >= self.end {
            return None;
        }
        let place = self.place(at);
        let word = self.buffer.get(place..)?.first_chunk()?;
        if u32::from_ne_bytes(*word) == AT_START {
            at += (self.buffer.len() - place) as u64;
        }
        let place = self.place(at);
        let head = self.buffer.get(place..)?.first_chunk()?;
        let (length, kept, meta) = unpack(head);
        Some((at, length, (kept, meta)))
    }

    fn first(&self) -> Option<(u32, FrameMeta)> {
        self.at(self.oldest).map(|(_, _, known)| known)
    }

    fn drop_oldest(&mut self) {
        match self.at(self.oldest) {
            Some((at, length, _)) => {
                self.oldest = at + u64::from(length);
                self.stats.frames -= 1;
                self.stats.octets -= u64::from(length);
            }
            None => self.oldest = self.end,
        }
    }
}

impl FrameBlock for FlightRecorder {
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.frames_from(self.oldest()).map(|(frame, _)| frame)
    }
}

/// Frames of a [`FlightRecorder`], which they borrow.
#[derive(Debug)]
pub struct Recorded<'r> {
    recorder: &'r FlightRecorder,
    at: u64,
}

impl<'r> Iterator for Recorded<'r> {
    type Item = (Frame<'r>, Position);

    fn next(&mut self) -> Option<Self::Item> {
        let (at, length, (kept, meta)) = self.recorder.at(self.at)?;
        let place = self.recorder.place(at) + HEAD;
        let octets = self.recorder.buffer.get(place..)?.get(..kept as usize)?;
        self.at = at + u64::from(length);
        Some((Frame::new(octets, meta), Position(self.at)))
    }
}

const HAS_VLAN: u8 = 1;
const CHECKSUM_NOT_READY: u8 = 1 << 1;
const WHOLE: u8 = 1 << 2;

fn pack(length: u32, kept: u32, meta: &FrameMeta) -> [u8; HEAD] {
    let FrameMeta {
        timestamp,
        wire_len,
        link_type,
        interface,
        vlan,
        packet_type,
        checksum_not_ready,
        segment_size,
    } = *meta;
    let mut flags = 0;
    let mut set = |flag: u8, is_set: bool| flags |= if is_set { flag } else { 0 };
    set(HAS_VLAN, vlan.is_some());
    set(CHECKSUM_NOT_READY, checksum_not_ready);
    set(WHOLE, segment_size == SegmentSize::Whole);
    let tag = vlan.unwrap_or(VlanTag { tpid: 0, tci: 0 });
    let segment = match segment_size {
        SegmentSize::Octets(octets) => octets.get(),
        SegmentSize::Unknown | SegmentSize::Whole => 0,
    };
    let mut head = [0; HEAD];
    let mut at = 0;
    let mut put = |octets: &[u8]| {
        head[at..at + octets.len()].copy_from_slice(octets);
        at += octets.len();
    };
    put(&length.to_ne_bytes());
    put(&kept.to_ne_bytes());
    put(&timestamp.as_nanos().to_ne_bytes());
    put(&wire_len.to_ne_bytes());
    put(&interface.to_ne_bytes());
    put(&link_type.0.to_ne_bytes());
    put(&tag.tpid.to_ne_bytes());
    put(&tag.tci.to_ne_bytes());
    put(&segment.to_ne_bytes());
    put(&[flags, packet_type.map_or(0, |kind| kind as u8 + 1)]);
    head
}

fn unpack(head: &[u8; HEAD]) -> (u32, u32, FrameMeta) {
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
    let nanos = head[8..16]
        .first_chunk()
        .map_or(0, |nanos| u64::from_ne_bytes(*nanos));
    let flags = head[32];
    let meta = FrameMeta {
        timestamp: Timestamp::from_nanos(nanos),
        wire_len: word(16),
        interface: word(20),
        link_type: LinkType(half(24)),
        vlan: (flags & HAS_VLAN != 0).then(|| VlanTag {
            tpid: half(26),
            tci: half(28),
        }),
        packet_type: PacketType::ALL
            .get(usize::from(head[33]).wrapping_sub(1))
            .copied(),
        checksum_not_ready: flags & CHECKSUM_NOT_READY != 0,
        segment_size: match NonZeroU16::new(half(30)) {
            Some(octets) => SegmentSize::Octets(octets),
            None if flags & WHOLE != 0 => SegmentSize::Whole,
            None => SegmentSize::Unknown,
        },
    };
    (word(0), word(4), meta)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn meta(nanos: u64, wire_len: u32) -> FrameMeta {
        FrameMeta::ethernet(Timestamp::from_nanos(nanos), wire_len)
    }

    fn kept(recorder: &FlightRecorder) -> Vec<(Vec<u8>, FrameMeta)> {
        recorder
            .frames()
            .map(|frame| (frame.octets().to_vec(), *frame.meta()))
            .collect()
    }

    #[test]
    fn everything_that_is_known_of_a_frame_is_kept() {
        let plain = meta(1_700_000_000_123_456_789, 90_000);
        let mut metas = vec![
            plain,
            FrameMeta {
                link_type: LinkType::LINUX_SLL2,
                interface: u32::MAX,
                ..plain
            },
            FrameMeta {
                vlan: Some(VlanTag {
                    tpid: 0x88a8,
                    tci: 0xffff,
                }),
                ..plain
            },
            FrameMeta {
                vlan: Some(VlanTag { tpid: 0, tci: 0 }),
                ..plain
            },
            FrameMeta {
                checksum_not_ready: true,
                ..plain
            },
            FrameMeta {
                segment_size: SegmentSize::Whole,
                ..plain
            },
            FrameMeta {
                segment_size: SegmentSize::Octets(NonZeroU16::MAX),
                ..plain
            },
        ];
        metas.extend(PacketType::ALL.map(|kind| FrameMeta {
            packet_type: Some(kind),
            ..plain
        }));
        let mut recorder = FlightRecorder::new(1 << 16, Duration::MAX).unwrap();
        for (length, meta) in metas.iter().enumerate() {
            recorder.push(&Frame::new(&vec![length as u8; length], *meta));
        }
        let expected: Vec<_> = metas
            .iter()
            .enumerate()
            .map(|(length, meta)| (vec![length as u8; length], *meta))
            .collect();
        assert_eq!(kept(&recorder), expected);
    }

    #[test]
    fn what_is_longer_than_the_buffer_is_counted_and_nothing_falls_out_for_it() {
        let mut recorder = FlightRecorder::new(1 << 16, Duration::MAX).unwrap();
        recorder.push(&Frame::new(&[1; 60], meta(0, 60)));
        recorder.push(&Frame::new(&vec![2; 1 << 16], meta(1, 1 << 16)));
        let fits = vec![3; (1 << 16) - HEAD];
        assert_eq!(kept(&recorder).len(), 1);
        assert_eq!(recorder.stats().too_long, 1);
        recorder.push(&Frame::new(&fits, meta(2, fits.len() as u32)));
        assert_eq!(
            kept(&recorder),
            [(fits.clone(), meta(2, fits.len() as u32))]
        );
        assert!(FlightRecorder::new(1000, Duration::MAX).is_err());
        assert!(FlightRecorder::new(usize::MAX, Duration::MAX).is_err());
    }

    #[test]
    fn a_reader_goes_on_where_it_was_or_at_the_oldest() {
        let mut recorder = FlightRecorder::new(1 << 16, Duration::MAX).unwrap();
        let push = |recorder: &mut FlightRecorder, number: u64| {
            recorder.push(&Frame::new(&[0; 1000], meta(number, 1000)));
        };
        (0..20).for_each(|number| push(&mut recorder, number));
        let numbers = |recorder: &FlightRecorder, from| -> Vec<u64> {
            let frames = recorder.frames_from(from);
            frames
                .map(|(frame, _)| frame.timestamp().as_nanos())
                .collect()
        };
        let (_, behind) = recorder.frames_from(recorder.oldest()).nth(9).unwrap();
        assert_eq!(numbers(&recorder, behind), (10..20).collect::<Vec<_>>());
        let (_, end) = recorder.frames_from(behind).last().unwrap();
        assert_eq!(numbers(&recorder, end), [0; 0]);
        push(&mut recorder, 20);
        assert_eq!(numbers(&recorder, end), [20]);
        (21..200).for_each(|number| push(&mut recorder, number));
        // What it would have read next has fallen out.
        let all = numbers(&recorder, recorder.oldest());
        assert_eq!(numbers(&recorder, behind), all);
        assert_eq!(all.last(), Some(&199));
    }

    proptest! {
        /// Against a queue without bounds of its own.
        #[test]
        fn agrees_with_a_queue(
            frames in proptest::collection::vec((0..9_000_usize, 0..3_000_u64, any::<u8>()), 0..300),
            size in (1_usize << 16)..(1 << 17),
            age in 1_000..200_000_u64,
        ) {
            let mut recorder = FlightRecorder::new(size, Duration::from_nanos(age)).unwrap();
            let mut model: VecDeque<(Vec<u8>, FrameMeta)> = VecDeque::new();
            let mut now = 0;
            for (length, step, octet) in frames {
                now += step;
                let octets = vec![octet; length];
                let meta = meta(now, length as u32);
                recorder.push(&Frame::new(&octets, meta));
                model.push_back((octets, meta));
                let stats = recorder.stats();
                let kept = kept(&recorder);
                prop_assert!(!kept.is_empty());
                prop_assert_eq!(stats.frames, kept.len() as u64);
                prop_assert_eq!(stats.seen, stats.frames + stats.no_room + stats.too_old + stats.too_long);
                prop_assert!(stats.octets <= size as u64);
                // The last ones, all of them and unchanged.
                while model.len() > kept.len() {
                    model.pop_front();
                }
                prop_assert!(kept.iter().eq(model.iter()));
                prop_assert!(kept.iter().all(|(_, meta)| now - meta.timestamp.as_nanos() <= age));
                // No more fell out than had to: there was no room for the one before, or it is too old.
                if stats.too_old == 0 && stats.no_room == 0 {
                    prop_assert_eq!(stats.frames, stats.seen);
                }
            }
            // Half the buffer is in use at least once frames fell out for others: one frame is far less than that.
            let stats = recorder.stats();
            if stats.no_room > 0 && stats.too_old == 0 {
                prop_assert!(stats.octets > size as u64 / 2, "{stats:?} of {size}");
            }
        }
    }
}
