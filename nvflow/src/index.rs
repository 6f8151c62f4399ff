//! From a key's hash to the slot of its connection.

use nvcapture::{HugeVec, places_of};

use crate::Error;

/// Slots in one bucket.
const WIDTH: usize = 12;
/// The most that is counted of entries that are in a bucket further on.
const MANY: u64 = 15;

/// A cache line: for each slot an octet of its hash, then the slots, each with more of its hash above it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket {
    /// 12 tags from the lowest octet on, 0 where the slot is free; in the highest 32 bits, for each [class](BucketIndex::class) of hashes
    /// in 4 bits, how many entries would be in this bucket or one before it, and are in one behind. Fifteen are as good as any number.
    tags: [u64; 2],
    slots: [u32; WIDTH],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    const EMPTY: Self = Self {
        tags: [0; 2],
        slots: [0; WIDTH],
    };

    /// A bit for each place whose tag equals `tag`.
    ///
    /// Made without a branch: the processor must not guess from a line that has not come yet, or it waits before it asks for the next.
    #[inline(always)]
    fn matching(&self, tag: u8) -> u32 {
        u32::from(places_of(tag, self.tags)) & ((1 << WIDTH) - 1)
    }

    /// The first place of `matching`, or one behind the last.
    #[inline(always)]
    const fn first(matching: u32) -> usize {
        (matching | 1 << WIDTH).trailing_zeros() as usize
    }

    #[inline(always)]
    fn word(&self, place: usize) -> u32 {
        self.slots[place.min(WIDTH - 1)]
    }

    /// How many entries of that class are further on.
    #[inline(always)]
    const fn passed(&self, class: u32) -> u64 {
        (self.tags[1] >> (32 + 4 * class)) & MANY
    }

    /// Another one is. Of many it is not known any more how many, so they stay many.
    fn add_passed(&mut self, class: u32) {
        let one = u64::from(self.passed(class) < MANY);
        self.tags[1] += one << (32 + 4 * class);
    }

    /// One of them is no more.
    fn take_passed(&mut self, class: u32) {
        let one = u64::from(self.passed(class) < MANY);
        self.tags[1] -= one << (32 + 4 * class);
    }

    fn set(&mut self, place: usize, tag: u8, word: u32) {
        let shift = place % 8 * 8;
        let tags = &mut self.tags[place / 8];
        *tags = (*tags & !(0xff << shift)) | (u64::from(tag) << shift);
        self.slots[place] = word;
    }
}

/// An index of fixed capacity: open addressing over buckets of one cache line each, 8 octets an entry at two thirds full.
///
/// Unlike a general hash table it leaves no tombstones, so it never has to be rebuilt however long entries come and go, and it tells
/// which memory a lookup will need, so that a batch of lookups can wait for it together.
#[derive(Debug)]
pub struct BucketIndex {
    buckets: HugeVec<Bucket>,
    /// The bits of a [`word`](Self::word) that a slot's number has; those above are of the hash.
    slot_mask: u32,
    /// How far the hash is turned, so that those are there which neither the tag nor the bucket tells, and of few slots some of the tag's.
    turn: u32,
}

impl BucketIndex {
    /// An empty index for up to `capacity` entries, whose slots are below that.
    pub fn new(capacity: usize) -> Result<Self, Error> {
        let count = (capacity / 8 + 1).min(u32::MAX as usize);
        let mut buckets = HugeVec::with_capacity(count).ok_or(Error::Memory {
            connections: capacity,
            octets: count.saturating_mul(size_of::<Bucket>()),
        })?;
        buckets.fill_up(Bucket::EMPTY);
        let slot_bits = capacity.next_power_of_two().ilog2();
        Ok(Self {
            buckets,
            slot_mask: ((1_u64 << slot_bits) - 1) as u32,
            // Its lowest 8 bits are the tag's.
            turn: (slot_bits + 32 - 8) % 32,
        })
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.buckets.fill(Bucket::EMPTY);
    }

    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn tag(hash: u64) -> u8 {
        (hash as u8).max(1)
    }

    /// One of eight: who looks for what is not there need go on only if one of its class did, which is rare.
    #[inline(always)]
    const fn class(hash: u64) -> u32 {
        (hash >> 8) as u32 & 7
    }

    #[inline(always)]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() {
            0
        } else {
            bucket + 1
        }
    }

    /// Asks for the memory that a lookup of `hash` will need first, without waiting for it.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        nvcapture::prefetch(&self.buckets[self.home(hash)]);
    }

    /// `slot` and, in the bits above it, those of `hash` that are neither in the tag nor, unless there are millions of buckets, tell the bucket.
    ///
    /// A tag alone is that of another entry once in some thirty lookups, whose memory nobody has asked for.
    #[inline(always)]
    const fn word(&self, hash: u64, slot: u32) -> u32 {
        (self.turned(hash) & !self.slot_mask) | slot
    }

    #[inline(always)]
    const fn turned(&self, hash: u64) -> u32 {
        (hash as u32).rotate_left(self.turn)
    }

    #[inline(always)]
    const fn slot_of(&self, word: u32) -> u32 {
        word & self.slot_mask
    }

    /// Whether `word` may be of the hash that was `turned` so.
    #[inline(always)]
    const fn may_be(&self, word: u32, turned: u32) -> bool {
        (word ^ turned) & !self.slot_mask == 0
    }

    /// A slot that may be the one of `hash`; its key is to be compared. When there is none it is any.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> u32 {
        let bucket = &self.buckets[self.home(hash)];
        let wanted = self.turned(hash);
        let mut matching = bucket.matching(Self::tag(hash));
        let mut word = bucket.word(Bucket::first(matching));
        while !self.may_be(word, wanted) && matching != 0 {
            matching &= matching - 1;
            word = bucket.word(Bucket::first(matching));
        }
        if matching == 0 && bucket.passed(Self::class(hash)) > 0 {
            return self.further_candidate(hash).unwrap_or(0);
        }
        self.slot_of(word)
    }

    /// A slot that may be the one of `hash`, in whatever bucket: about one in fifty is not where it would be.
    #[cold]
    fn further_candidate(&self, hash: u64) -> Option<u32> {
        self.search(hash, |_| true)
    }

    /// The slot of `hash` for which `is_it` holds.
    #[inline(always)]
    pub fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let bucket = &self.buckets[self.home(hash)];
        if bucket.matching(Self::tag(hash)) == 0 && bucket.passed(Self::class(hash)) == 0 {
            // Nearly always when it is not there.
            return None;
        }
        self.search(hash, is_it)
    }

    /// The same, bucket by bucket.
    #[inline(never)]
    fn search(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = Self::tag(hash);
        let wanted = self.turned(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            let mut matching = bucket.matching(tag);
            while matching != 0 {
                let word = bucket.word(Bucket::first(matching));
                let slot = self.slot_of(word);
                if self.may_be(word, wanted) && is_it(slot) {
                    return Some(slot);
                }
                matching &= matching - 1;
            }
            if bucket.passed(Self::class(hash)) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Adds `slot`, which is below the capacity, under `hash`; there must be fewer entries than the capacity.
    pub fn insert(&mut self, hash: u64, slot: u32) {
        debug_assert_eq!(self.slot_of(slot), slot);
        let word = self.word(hash, slot);
        let mut at = self.home(hash);
        loop {
            let bucket = &mut self.buckets[at];
            let free = Bucket::first(bucket.matching(0));
            if free < WIDTH {
                bucket.set(free, Self::tag(hash), word);
                return;
            }
            bucket.add_passed(Self::class(hash));
            at = self.after(at);
        }
    }

    /// Takes `slot` out, which is there under `hash`.
    pub fn remove(&mut self, hash: u64, slot: u32) {
        let word = self.word(hash, slot);
        let home = self.home(hash);
        let mut at = home;
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            let mut matching = bucket.matching(Self::tag(hash));
            while matching != 0 {
                let place = Bucket::first(matching);
                if bucket.word(place) == word {
                    bucket.set(place, 0, 0);
                    let mut before = home;
                    while before != at {
                        self.buckets[before].take_passed(Self::class(hash));
                        before = self.after(before);
                    }
                    return;
                }
                matching &= matching - 1;
            }
            at = self.after(at);
        }
        debug_assert!(false, "slot {slot} is not in the index");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots up to 300 under hashes of few kinds, which crowd in a few buckets: far more of one class pass a bucket than are counted.
    #[test]
    fn what_is_crowded_is_found_all_the_same() {
        const CAPACITY: u32 = 300;
        let mut index = BucketIndex::new(CAPACITY as usize).expect("memory");
        let mut here: Vec<Option<u64>> = vec![None; CAPACITY as usize];
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
            (state >> 33) % below
        };
        for turn in 0..40_000_u64 {
            // Filled up and emptied, again and again; hashes repeat.
            let fills = turn / 2_000 % 2 == 0;
            let slot = random(CAPACITY.into()) as u32;
            match &mut here[slot as usize] {
                place @ None if fills => {
                    let hash = random(2) << 63 | random(3) << 8 | (1 + random(4));
                    index.insert(hash, slot);
                    *place = Some(hash);
                }
                place @ Some(_) if !fills => {
                    let hash = place.take().expect("there is one");
                    index.remove(hash, slot);
                    assert_eq!(index.find(hash, |found| found == slot), None);
                }
                _ => {}
            }
            if turn % 500 == 0 {
                for (slot, hash) in (0..).zip(&here) {
                    if let Some(hash) = *hash {
                        assert_eq!(index.find(hash, |found| found == slot), Some(slot));
                        let candidate = index.candidate(hash);
                        assert_eq!(here[candidate as usize], Some(hash));
                    }
                }
            }
        }
        index.clear();
        assert_eq!(index.find(1, |_| true), None);
    }

    #[test]
    fn who_goes_on_is_told_by_class() {
        let mut index = BucketIndex::new(24).expect("memory");
        for slot in 0..=WIDTH as u32 {
            index.insert(5 << 8 | 1, slot);
        }
        let passed = |bucket: &Bucket| [0, 1, 2, 3, 4, 5, 6, 7].map(|class| bucket.passed(class));
        assert_eq!(passed(&index.buckets[0]), [0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(passed(&index.buckets[1]), [0; 8]);
    }

    #[test]
    fn classes_are_counted_apart() {
        let mut bucket = Bucket::EMPTY;
        for count in 1..=20 {
            bucket.add_passed(7);
            assert_eq!(bucket.passed(7), count.min(MANY));
            assert_eq!(bucket.passed(6), 0);
        }
        bucket.take_passed(7);
        assert_eq!(bucket.passed(7), MANY, "how many is not known any more");
        bucket.add_passed(0);
        bucket.set(11, 0xff, 1);
        assert_eq!((bucket.passed(0), bucket.passed(1)), (1, 0));
        bucket.take_passed(0);
        assert_eq!(bucket.passed(0), 0);
        assert_eq!(bucket.matching(0xff), 1 << 11);
    }
}
