//! What expires next: timers in buckets of time, linked in lists.
//!
//! A timer is not moved when a frame comes. When its bucket's time has come, its connection's entry says whether it has been idle for so
//! long; if not, it goes to a later bucket. So a frame costs nothing, and a connection one visit for each timeout it outlives.

use nvcapture::{HugeVec, prefetch};

use crate::entry::NONE;

/// Ticks in a bucket, as a power of two: 262 ms.
pub(crate) const BUCKET_SHIFT: u32 = 8;
/// Buckets of a wheel: 268 s, after which a timer is looked at again.
const BUCKETS: usize = 1024;
const WORDS: usize = BUCKETS / 64;
/// In a link: not a slot but the number of a list.
const IS_LIST: u32 = 1 << 31;

/// What connections a wheel has the timers of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wheel {
    /// Those that are given up first.
    Expendable = 0,
    /// All others.
    Kept = 1,
}

/// The next and the one before in a timer's list, slots or, at its ends, the list itself.
#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    previous: u32,
}

/// The timers of a table's connections, in two wheels.
///
/// Links lie beside each other and not in the entries: those of many fit into a cache, and no frame that only counts needs them.
#[derive(Debug)]
pub(crate) struct Timers {
    /// By slot.
    links: HugeVec<Link>,
    /// First and last of each list; there is one for each bucket of each wheel.
    ends: Box<[[u32; 2]; 2 * BUCKETS]>,
    /// By wheel a bit for each bucket that is not empty.
    occupied: [[u64; WORDS]; 2],
}

impl Timers {
    /// Buckets in a turn of a wheel.
    pub(crate) const TURN: u64 = BUCKETS as u64;
    /// What a timer takes. Unit: octets.
    pub(crate) const SIZE: usize = size_of::<Link>();

    /// Room for the timers of `capacity` slots; `None` when there is not so much memory.
    pub(crate) fn new(capacity: usize) -> Option<Self> {
        Some(Self {
            links: HugeVec::with_capacity(capacity)?,
            ends: Box::new([[NONE; 2]; 2 * BUCKETS]),
            occupied: [[0; WORDS]; 2],
        })
    }

    /// Stops all timers.
    pub(crate) fn clear(&mut self) {
        self.links.clear();
        self.ends.fill([NONE; 2]);
        self.occupied = [[0; WORDS]; 2];
    }

    /// Starts the timer of `slot` to run out at the tick `deadline`, in the bucket `at` or one behind it, but never so far that it would
    /// come round to the bucket before `at`.
    ///
    /// Slots are taken one after the other: none is above those that had a timer before by more than one.
    #[inline(always)]
    pub(crate) fn start(&mut self, slot: u32, wheel: Wheel, deadline: u64, at: u64) {
        // The bucket behind it, so that when it is visited the time has come.
        let ahead = ((deadline >> BUCKET_SHIFT) + 1)
            .saturating_sub(at)
            .min(BUCKETS as u64 - 2);
        let bucket = (at.wrapping_add(ahead) % BUCKETS as u64) as usize;
        let list = wheel as usize * BUCKETS + bucket;
        let mark = IS_LIST | list as u32;
        let [first, last] = &mut self.ends[list];
        let mut link = Link {
            next: mark,
            previous: mark,
        };
        if *last == NONE {
            *first = slot;
            self.occupied[wheel as usize][bucket / 64] |= 1 << (bucket % 64);
        } else {
            link.previous = *last;
            self.links[*last as usize].next = slot;
        }
        *last = slot;
        match self.links.get_mut(slot as usize) {
            Some(place) => *place = link,
            None => {
                debug_assert_eq!(self.links.len(), slot as usize);
                self.links.push(link);
            }
        }
    }

    /// Stops the timer of `slot`, which runs.
    #[inline(always)]
    pub(crate) fn stop(&mut self, slot: u32) {
        let Link { next, previous } = self.links[slot as usize];
        if previous & IS_LIST != 0 {
            let list = (previous & !IS_LIST) as usize;
            self.ends[list][0] = if next & IS_LIST != 0 { NONE } else { next };
        } else {
            self.links[previous as usize].next = next;
        }
        if next & IS_LIST != 0 {
            let list = (next & !IS_LIST) as usize;
            self.ends[list][1] = if previous & IS_LIST != 0 {
                let bucket = list % BUCKETS;
                self.occupied[list / BUCKETS][bucket / 64] &= !(1 << (bucket % 64));
                NONE
            } else {
                previous
            };
        } else {
            self.links[next as usize].previous = previous;
        }
    }

    /// The first timer of the first bucket of `wheel` that has one, from `at` on and before `end`, and that bucket.
    #[inline]
    pub(crate) fn first(&self, wheel: Wheel, at: u64, end: u64) -> Option<(u32, u64)> {
        let start = (at % BUCKETS as u64) as usize;
        let occupied = &self.occupied[wheel as usize];
        let mut word = start / 64;
        let mut bits = occupied[word] & (u64::MAX << (start % 64));
        // The first word is looked at twice: its upper part first, its lower part last.
        for turn in 0..=WORDS {
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (bucket + BUCKETS - start) % BUCKETS;
                let time = at + ahead as u64;
                let [first, _] = self.ends[wheel as usize * BUCKETS + bucket];
                return (time < end).then_some((first, time));
            }
            word = (word + 1) % WORDS;
            bits = occupied[word];
            if turn == WORDS - 1 {
                bits &= !(u64::MAX << (start % 64));
            }
        }
        None
    }

    /// The timer that follows the one of `slot` in its list.
    #[inline]
    pub(crate) fn following(&self, slot: u32) -> Option<u32> {
        let next = self.links[slot as usize].next;
        (next & IS_LIST == 0).then_some(next)
    }

    /// Asks for the link of `slot`, from which the next one is known.
    #[inline(always)]
    pub(crate) fn prefetch(&self, slot: u32) {
        if let Some(link) = self.links.get(slot as usize) {
            prefetch(link);
        }
    }

    /// Asks for what it takes to move the timer of `slot`, if there is one: the links beside its own, which is read for that. It is one of those
    /// that fit into a cache, unless there are millions.
    #[inline(always)]
    pub(crate) fn prefetch_beside(&self, slot: u32) {
        if let Some(&Link { next, previous }) = self.links.get(slot as usize) {
            for beside in [next, previous] {
                // Where that is a list, its number is beyond all slots.
                self.prefetch(beside);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u32 = 40;

    /// What is in the lists of `wheel` from the bucket `at` on, bucket by bucket, as often as there are slots and no more.
    fn told(timers: &Timers, wheel: Wheel, at: u64) -> Vec<(u64, u32)> {
        let mut told = Vec::new();
        let mut from = at;
        while let Some((first, bucket)) = timers.first(wheel, from, at + Timers::TURN) {
            let mut next = Some(first);
            while let Some(slot) = next
                && told.len() < 2 * SLOTS as usize
            {
                told.push((bucket, slot));
                next = timers.following(slot);
            }
            from = bucket + 1;
        }
        told
    }

    #[test]
    fn timers_run_out_in_their_order() {
        let mut timers = Timers::new(SLOTS as usize).expect("memory");
        let mut model: [Vec<(u64, u32)>; 2] = [Vec::new(), Vec::new()];
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
            (state >> 33) % below
        };
        let mut used = 0;
        let mut at = 1 << 20;
        for turn in 0..if cfg!(miri) { 200 } else { 20_000 } {
            // Few buckets, so that lists are long, and now and then one that is further than a turn.
            let slot = (random(u64::from(SLOTS)) as u32).min(used);
            let running = model
                .iter()
                .position(|timers| timers.iter().any(|timer| timer.1 == slot));
            if let Some(wheel) = running {
                timers.stop(slot);
                model[wheel].retain(|timer| timer.1 != slot);
            } else {
                used = used.max(slot + 1).min(SLOTS - 1);
                let wheel = [Wheel::Expendable, Wheel::Kept][random(2) as usize];
                let ahead = random(4) * [1, 1, 600][random(3) as usize];
                timers.start(slot, wheel, (at + ahead) << BUCKET_SHIFT, at);
                let bucket = at + (ahead + 1).min(Timers::TURN - 2);
                model[wheel as usize].push((bucket, slot));
            }
            for wheel in [Wheel::Expendable, Wheel::Kept] {
                let timers_here = &mut model[wheel as usize];
                timers_here.sort_by_key(|timer| timer.0);
                assert_eq!(told(&timers, wheel, at), *timers_here, "turn {turn}");
            }
            // Time goes on to where the first of them would run out.
            let first = model.iter().flatten().map(|timer| timer.0).min();
            at = first.map_or(at + 1, |first| first.min(at + random(2)));
        }
        assert!(model.iter().all(|timers| timers.len() > 1) && (used > SLOTS / 2));
        // As if none of them had been.
        timers.clear();
        let (a, b) = (at << BUCKET_SHIFT, (at + 1) << BUCKET_SHIFT);
        for (slot, wheel, deadline) in [
            (0, Wheel::Kept, b),
            (1, Wheel::Expendable, a),
            (2, Wheel::Kept, b),
        ] {
            timers.start(slot, wheel, deadline, at);
        }
        assert_eq!(told(&timers, Wheel::Expendable, at), [(at + 1, 1)]);
        assert_eq!(told(&timers, Wheel::Kept, at), [(at + 2, 0), (at + 2, 2)]);
    }
}
