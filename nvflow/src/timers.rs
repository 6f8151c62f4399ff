//! What expires next: timers in buckets of time, linked through the entries they belong to.
//!
//! A timer is not moved when a frame comes. When its bucket's time has come, its entry says whether it has been idle for so long; if not,
//! it goes to a later bucket. So a frame costs nothing, and a connection one visit for each timeout it outlives.

use crate::entry::{Entry, NONE};

/// Ticks in a bucket, as a power of two: 262 ms.
pub(crate) const BUCKET_SHIFT: u32 = 8;
/// Buckets: 268 s, after which a timer is looked at again.
const BUCKETS: usize = 1024;
const WORDS: usize = BUCKETS / 64;
/// In a link: not a slot but a bucket's number.
const IS_BUCKET: u32 = 1 << 31;

/// The timers of some of a table's entries.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// First and last of each bucket.
    ends: Box<[[u32; 2]; BUCKETS]>,
    /// A bit for each bucket that is not empty.
    occupied: [u64; WORDS],
}

impl Wheel {
    /// Buckets in a turn.
    pub(crate) const TURN: u64 = BUCKETS as u64;

    pub(crate) fn new() -> Self {
        Self {
            ends: Box::new([[NONE; 2]; BUCKETS]),
            occupied: [0; WORDS],
        }
    }

    /// Stops all timers.
    pub(crate) fn clear(&mut self) {
        self.ends.fill([NONE; 2]);
        self.occupied = [0; WORDS];
    }

    /// Starts the timer of `slot` to run out at the tick `deadline`, in the bucket `at` or one behind it, but never so far that it would
    /// come round to the bucket before `at`.
    pub(crate) fn link(&mut self, entries: &mut [Entry], slot: u32, deadline: u64, at: u64) {
        // The bucket behind it, so that when it is visited the time has come.
        let ahead = ((deadline >> BUCKET_SHIFT) + 1)
            .saturating_sub(at)
            .min(BUCKETS as u64 - 2);
        let bucket = (at.wrapping_add(ahead) % BUCKETS as u64) as usize;
        let [first, last] = &mut self.ends[bucket];
        let mark = IS_BUCKET | bucket as u32;
        let entry = &mut entries[slot as usize];
        entry.next = mark;
        if *last == NONE {
            entry.previous = mark;
            *first = slot;
            self.occupied[bucket / 64] |= 1 << (bucket % 64);
        } else {
            entry.previous = *last;
            entries[*last as usize].next = slot;
        }
        *last = slot;
    }

    /// Stops the timer of `slot`, which runs in this wheel.
    pub(crate) fn unlink(&mut self, entries: &mut [Entry], slot: u32) {
        let Entry { next, previous, .. } = entries[slot as usize];
        if previous & IS_BUCKET != 0 {
            let bucket = (previous & !IS_BUCKET) as usize;
            self.ends[bucket][0] = if next & IS_BUCKET != 0 { NONE } else { next };
        } else {
            entries[previous as usize].next = next;
        }
        if next & IS_BUCKET != 0 {
            let bucket = (next & !IS_BUCKET) as usize;
            self.ends[bucket][1] = if previous & IS_BUCKET != 0 {
                NONE
            } else {
                previous
            };
            if previous & IS_BUCKET != 0 {
                self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            }
        } else {
            entries[next as usize].previous = previous;
        }
    }

    /// The first timer of the first bucket that has one, from `at` on and before `end`, and that bucket.
    #[inline]
    pub(crate) fn first(&self, at: u64, end: u64) -> Option<(u32, u64)> {
        let start = (at % BUCKETS as u64) as usize;
        let mut word = start / 64;
        let mut bits = self.occupied[word] & (u64::MAX << (start % 64));
        // The first word is looked at twice: its upper part first, its lower part last.
        for turn in 0..=WORDS {
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (bucket + BUCKETS - start) % BUCKETS;
                let time = at + ahead as u64;
                return (time < end).then(|| (self.ends[bucket][0], time));
            }
            word = (word + 1) % WORDS;
            bits = self.occupied[word];
            if turn == WORDS - 1 {
                bits &= !(u64::MAX << (start % 64));
            }
        }
        None
    }

    /// The timer that follows the one of `slot` in its bucket.
    pub(crate) fn following(entries: &[Entry], slot: u32) -> Option<u32> {
        let next = entries[slot as usize].next;
        (next & IS_BUCKET == 0).then_some(next)
    }
}
