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
/// How old a frame is, is told by the frames that came after it, and by [`expire`](Self::expire), such that a clock that is set back, or a frame
/// that lies, does not empty the recorder (one that is set forward does: nothing tells it from time that passed):
///
/// - Frames may come a little out of order. Time stands still while they are behind, by a minute at most.
/// - A frame that is more than a minute away from the last time, ahead or behind, is kept, and nothing else is changed by it until the next frame is
///   as far away to the same side. So of one frame with an odd time nothing else becomes older, and it falls out in its turn like any other.
/// - Two such frames are believed, as far as both go. Ahead, so much time has passed (a source that was quiet, or a clock that was set
///   forward: nothing tells which). Behind, the clock was set back: no time has passed, and time goes on from there. Frames that were kept
///   before the step are as old as they were, and become older from then on, although their own times are in what is now the future.
///
/// ```
/// # use std::time::Duration;
/// # use nvcapture::{FlightRecorder, Frame, FrameMeta, Timestamp};
/// let mut recorder = FlightRecorder::new(1 << 20, Duration::from_secs(60))?;
/// let mut push = |second: u64| {
///     let meta = FrameMeta::ethernet(Timestamp::from_nanos(second * 1_000_000_000), 60);
///     recorder.push(&Frame::new(&[0; 60], meta));
///     recorder.stats().frames
/// };
/// assert_eq!((7_200..7_260).map(&mut push).last(), Some(60));
/// // The clock is set back by an hour: those before the step fall out as they would have without it.
/// assert_eq!((3_660..3_662).map(&mut push).last(), Some(62));
/// assert_eq!((3_662..3_780).map(&mut push).last(), Some(61));
/// # Ok::<(), nvcapture::Error>(())
/// ```
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
    /// Where the frame lies that was pushed last, if it is still held.
    last: u64,
    age: u64,
    clock: Clock,
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

/// Octets before a frame's own: length of the whole, of the frame, what is known of it, and when it came by [`Clock::passed`].
const HEAD: usize = 48;
/// Where in them that is.
const CAME: usize = 34;
/// In the place of a length: the next frame is at the buffer's start.
const AT_START: u32 = u32::MAX;
/// From here on an age is for ever: 146 years. Unit: nanoseconds.
const FOR_EVER: u64 = 1 << 62;

/// The time by which frames become older, made of the frames' own. Unit: nanoseconds.
///
/// See [`FlightRecorder`] for the rule, which is nvflow's clock's but that one frame alone is not believed: there it makes timeouts run out early,
/// here it would throw away what is kept.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// The time of frames that `passed` stands for; `None` before the first.
    anchor: Option<u64>,
    /// How much time has passed, by wrapping arithmetic: only differences count. A frame that is kept is at most an age and a step old, an age is below
    /// [`FOR_EVER`], and a frame moves time twice by no more than that before what is too old falls out: no difference comes near 2^64.
    passed: u64,
    /// What the last frame said, if it was more than [`Clock::STEP`] away from `anchor`.
    odd: Option<u64>,
}

/// When frames came, by [`Clock::passed`].
#[derive(Clone, Copy, Debug)]
struct Seen {
    came: u64,
    /// Of the frame before, if its time was odd and is believed now: it came later than was thought.
    before: Option<u64>,
}

impl Clock {
    /// How far away a frame's time is for it to be odd.
    const STEP: u64 = 60_000_000_000;

    /// Takes in a frame's time. No more than `most` passes at once.
    fn see(&mut self, time: u64, most: u64) -> Seen {
        let Some(mut anchor) = self.anchor else {
            self.anchor = Some(time);
            return Seen {
                came: self.passed,
                before: None,
            };
        };
        let mut before = None;
        if time.abs_diff(anchor) > Self::STEP
            && let Some(odd) = self.odd
            && (odd > anchor) == (time > anchor)
        {
            // Two in turn: as far as both go.
            anchor = if time > anchor {
                time.min(odd)
            } else {
                time.max(odd)
            };
            self.move_to(anchor, most);
            before = Some(self.passed);
        }
        let is_odd = time.abs_diff(anchor) > Self::STEP;
        self.odd = is_odd.then_some(time);
        if !is_odd && time > anchor {
            self.move_to(time, most);
        }
        // One that comes is not too old already: the clock may have been set back by a little.
        let late = if is_odd {
            0
        } else {
            anchor.saturating_sub(time).min(most - 1)
        };
        Seen {
            came: self.passed.wrapping_sub(late),
            before,
        }
    }

    /// Goes to the time `now`, unless that is a little behind. Gives when the last frame came, if its time was odd to the same side.
    fn told(&mut self, now: u64, most: u64) -> Option<u64> {
        let odd = self.odd.take();
        let Some(anchor) = self.anchor else {
            self.anchor = Some(now);
            return None;
        };
        if now <= anchor && anchor - now <= Self::STEP {
            return None;
        }
        self.move_to(now, most);
        odd.filter(|odd| now > anchor && *odd > anchor)
            .map(|odd| self.passed.wrapping_sub(now.saturating_sub(odd).min(most)))
    }

    /// Goes to `time`. Of more than `most` there is no need: all that is kept is too old by then.
    fn move_to(&mut self, time: u64, most: u64) {
        if let Some(anchor) = self.anchor {
            self.passed = self
                .passed
                .wrapping_add(time.saturating_sub(anchor).min(most));
        }
        self.anchor = Some(time);
    }
}

impl FlightRecorder {
    /// For `octets` of memory, and frames not older than `age` behind the newest; 146 years and more are for ever.
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
            last: 0,
            age: u64::try_from(age.as_nanos()).map_or(FOR_EVER, |age| age.min(FOR_EVER)),
            clock: Clock::default(),
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
        let Seen { came, before } = self.clock.see(frame.timestamp().as_nanos(), self.age + 1);
        self.correct_last(before);
        self.drop_old();
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
        let known = Head {
            length: length as u32,
            kept: octets.len() as u32,
            came,
            meta: *frame.meta(),
        };
        head.copy_from_slice(&known.pack());
        body[..octets.len()].copy_from_slice(octets);
        self.last = self.end;
        self.end += length as u64;
        self.stats.frames += 1;
        self.stats.octets += length as u64;
    }

    /// Lets those fall out that are older than wanted at `now`, without a frame that tells it.
    ///
    /// `now` is of the clock that stamps the frames, for those of a ring the system's: `SystemTime::now().into()`. It is believed at once; when it is
    /// behind the frames by more than a minute, the clock was set back.
    pub fn expire(&mut self, now: Timestamp) {
        let last = self.clock.told(now.as_nanos(), self.age + 1);
        self.correct_last(last);
        self.drop_old();
    }

    /// Puts right when the frame that was pushed last came.
    fn correct_last(&mut self, came: Option<u64>) {
        if let Some(came) = came
            && self.stats.frames > 0
        {
            // The last to be pushed is the last to fall out.
            let place = self.place(self.last) + CAME;
            self.buffer[place..place + 8].copy_from_slice(&came.to_ne_bytes());
        }
    }

    /// Lets those fall out that are older than wanted.
    fn drop_old(&mut self) {
        if self.age == FOR_EVER {
            return;
        }
        while let Some((_, head)) = self.at(self.oldest)
            && self.clock.passed.wrapping_sub(head.came) > self.age
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

    /// The position of the frame at or behind `at`, and what is known of it.
    fn at(&self, mut at: u64) -> Option<(u64, Head)> {
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
        Some((at, Head::unpack(head)))
    }

    fn drop_oldest(&mut self) {
        match self.at(self.oldest) {
            Some((at, head)) => {
                self.oldest = at + u64::from(head.length);
                self.stats.frames -= 1;
                self.stats.octets -= u64::from(head.length);
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
        let (at, head) = self.recorder.at(self.at)?;
        let place = self.recorder.place(at) + HEAD;
        let octets = self.recorder.buffer.get(place..)?;
        let octets = octets.get(..head.kept as usize)?;
        self.at = at + u64::from(head.length);
        Some((Frame::new(octets, head.meta), Position(self.at)))
    }
}

const HAS_VLAN: u8 = 1;
const CHECKSUM_NOT_READY: u8 = 1 << 1;
const WHOLE: u8 = 1 << 2;

/// What is kept before a frame's octets.
#[derive(Clone, Copy, Debug)]
struct Head {
    /// Octets of the whole, this head and padding included.
    length: u32,
    /// Octets of the frame.
    kept: u32,
    /// When it came, by [`Clock::passed`].
    came: u64,
    meta: FrameMeta,
}

impl Head {
    fn pack(&self) -> [u8; HEAD] {
        let Self {
            length,
            kept,
            came,
            meta,
        } = *self;
        let FrameMeta {
            timestamp,
            wire_len,
            link_type,
            interface,
            vlan,
            packet_type,
            checksum_not_ready,
            segment_size,
        } = meta;
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
        put(&came.to_ne_bytes());
        head
    }

    fn unpack(head: &[u8; HEAD]) -> Self {
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let long = |at: usize| {
            head[at..]
                .first_chunk()
                .map_or(0, |octets| u64::from_ne_bytes(*octets))
        };
        let flags = head[32];
        let meta = FrameMeta {
            timestamp: Timestamp::from_nanos(long(8)),
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
        Self {
            length: word(0),
            kept: word(4),
            came: long(CAME),
            meta,
        }
    }
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

    const SECOND: u64 = 1_000_000_000;

    /// Pushes a frame for each time, in seconds, and says how many are held after each.
    fn push_all(recorder: &mut FlightRecorder, seconds: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut held = Vec::new();
        for second in seconds {
            recorder.push(&Frame::new(&[0; 60], meta(second * SECOND, 60)));
            held.push(recorder.stats().frames);
        }
        held
    }

    fn a_minute() -> FlightRecorder {
        FlightRecorder::new(1 << 16, Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn a_clock_that_is_set_back_throws_nothing_away() {
        for back in [62, 3_600, 1_700_000_000] {
            let mut recorder = a_minute();
            let start = 1_700_000_100;
            let held = push_all(&mut recorder, start..start + 100);
            assert_eq!(held.last(), Some(&61));
            // All of the minute before are there, until they are a minute old by the new time: no time passes between the two clocks.
            let again = start + 99 - back;
            let held = push_all(&mut recorder, again..again + 61);
            assert!(
                held[1..].iter().all(|held| (61..=63).contains(held)),
                "{held:?}"
            );
            let times = |recorder: &FlightRecorder| -> Vec<u64> {
                let frames = recorder.frames();
                frames
                    .map(|frame| frame.timestamp().as_nanos() / SECOND)
                    .collect()
            };
            let before = |recorder: &FlightRecorder| {
                times(recorder)
                    .into_iter()
                    .filter(|time| *time > again + 61)
                    .count()
            };
            assert!(before(&recorder) <= 2, "{:?}", times(&recorder));
            push_all(&mut recorder, again + 61..again + 70);
            let expected: Vec<u64> = (again + 9..again + 70).collect();
            assert_eq!(times(&recorder), expected);
        }
        // The caller's word counts at once, and what is kept grows old by it.
        let mut recorder = a_minute();
        push_all(&mut recorder, 7_200..7_230);
        let now = |second: u64| Timestamp::from_nanos(second * SECOND);
        recorder.expire(now(3_600));
        assert_eq!(recorder.stats().frames, 30);
        recorder.expire(now(3_645));
        assert_eq!(recorder.stats().frames, 16);
        recorder.expire(now(3_661));
        assert_eq!(recorder.stats().frames, 0);
    }

    /// By less than a minute, so that time stands still, and yet by more than frames are kept for.
    #[test]
    fn a_clock_that_is_set_back_by_a_little_throws_nothing_away() {
        let mut recorder = FlightRecorder::new(1 << 16, Duration::from_secs(30)).unwrap();
        push_all(&mut recorder, 1_000..1_100);
        // So many that none from before is left.
        let many = (0..1_000).map(|_| 1_054);
        let full = push_all(&mut recorder, many).last().copied();
        assert!(full > Some(500), "{full:?}");
        for second in 1_055..1_100 {
            assert_eq!(push_all(&mut recorder, [second]).last().copied(), full);
            recorder.expire(Timestamp::from_nanos(second * SECOND));
            assert_eq!(Some(recorder.stats().frames), full);
        }
        // As time goes on, what is older than wanted falls out.
        assert_eq!(push_all(&mut recorder, [1_100]), [31]);
    }

    #[test]
    fn one_frame_with_an_odd_time_changes_nothing() {
        for odd in [0, 900, 1_500, 18_000_000_000] {
            let mut recorder = a_minute();
            push_all(&mut recorder, 1_000..1_061);
            assert_eq!(push_all(&mut recorder, [odd]), [62], "{odd}");
            // Within the minute, it is gone with those around it.
            let held = push_all(&mut recorder, 1_061..1_121);
            assert!(held.iter().all(|held| *held == 62), "{odd}: {held:?}");
            assert_eq!(push_all(&mut recorder, [1_121]), [61]);
            assert!(
                recorder
                    .frames()
                    .all(|frame| frame.timestamp().as_nanos() / SECOND != odd)
            );
            // However often, one at a time.
            for second in 1_122..1_200 {
                let held = push_all(&mut recorder, [second, odd, second]);
                assert!(held[0] > 60, "{held:?}");
            }
            // Nor one on each side in turn.
            let stats = recorder.stats();
            push_all(&mut recorder, [0, 2_000, 0, 2_000, 1_199]);
            assert_eq!(recorder.stats().too_old, stats.too_old);
        }
    }

    #[test]
    fn two_frames_are_believed_as_far_as_both_go() {
        let mut recorder = a_minute();
        push_all(&mut recorder, 1_000..1_010);
        // Ahead: time has passed, by the lesser of the two.
        assert_eq!(push_all(&mut recorder, [1_100, 18_000_000_000]), [11, 2]);
        assert_eq!(push_all(&mut recorder, [1_101, 1_110]), [3, 4]);
        // A quiet source: frames are two minutes apart.
        let held = push_all(&mut recorder, (1_200..2_000).step_by(120));
        assert!(held[2..].iter().all(|held| *held == 2), "{held:?}");
        recorder.expire(Timestamp::from_nanos(2_100 * SECOND));
        assert_eq!(recorder.stats().frames, 0);
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
        /// Whatever times frames have, all are accounted for, and what came before falls out once a minute has passed.
        #[test]
        fn whatever_times_say_the_past_ends(
            times in proptest::collection::vec(
                prop_oneof![any::<u64>(), 0..200 * SECOND, Just(0), Just(u64::MAX)],
                0..200,
            ),
            told in proptest::collection::vec(proptest::option::of(any::<u64>()), 0..200),
            start in 0..u64::MAX - 200 * SECOND,
            age in prop_oneof![Just(60 * SECOND), 0..120 * SECOND, (1 << 62)..u64::MAX, any::<u64>()],
        ) {
            let mut recorder = FlightRecorder::new(1 << 16, Duration::from_nanos(age)).unwrap();
            let told = told.into_iter().chain(std::iter::repeat(None));
            for (time, told) in times.into_iter().zip(told) {
                recorder.push(&Frame::new(&[0; 60], meta(time, 60)));
                prop_assert!(recorder.stats().frames > 0);
                if let Some(told) = told {
                    recorder.expire(Timestamp::from_nanos(told));
                }
                let stats = recorder.stats();
                prop_assert_eq!(stats.seen, stats.frames + stats.no_room + stats.too_old);
                prop_assert_eq!(stats.frames, recorder.frames().count() as u64);
                prop_assert!(stats.octets <= 1 << 16);
            }
            let before = recorder.end();
            for second in 0..200 {
                recorder.push(&Frame::new(&[0; 60], meta(start + second * SECOND, 60)));
            }
            prop_assert!(recorder.oldest() >= before || age > 120 * SECOND);
        }

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
