//! Memory in large pages.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What the kernel takes for a huge page on most machines; where they are larger it gives none for less.
const HUGE: usize = if cfg!(miri) { 4 << 10 } else { 2 << 20 };

/// A number, or an array of such: what can be made of memory that is all zeros.
///
/// # Safety
/// Octets that are all 0 are a value of it.
pub unsafe trait Zero: Copy {}

// SAFETY: it is the octet.
unsafe impl Zero for u8 {}
// SAFETY: of any eight octets it is a value.
unsafe impl Zero for u64 {}
// SAFETY: it is so many values one after the other, each of which such octets are.
unsafe impl<T: Zero, const N: usize> Zero for [T; N] {}

/// A vector of fixed capacity, which is all reserved at the start, in memory that begins where a huge page can and is asked to be made of such;
/// what is touched is then taken 2 MiB at a time.
///
/// A table that is looked at in no order misses the processor's page table cache with each look, and such a miss costs about as much as the
/// line itself. From half a page on it takes a whole one. Where the kernel gives none (`/sys/kernel/mm/transparent_hugepage/enabled` says never), or
/// the vector is smaller than that, it is memory as any other.
pub struct HugeVec<T: Copy> {
    start: NonNull<T>,
    length: usize,
    capacity: usize,
    layout: Layout,
}

impl<T: Copy> HugeVec<T> {
    /// An empty vector for up to `capacity` items; `None` when there is not so much memory.
    pub fn with_capacity(capacity: usize) -> Option<Self> {
        const { assert!(size_of::<T>() > 0) };
        let layout = Self::layout(capacity)?;
        if layout.size() == 0 {
            return Some(Self {
                start: NonNull::dangling(),
                length: 0,
                capacity: 0,
                layout,
            });
        }
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        #[cfg(all(target_os = "linux", not(miri)))]
        if layout.align() >= HUGE {
            // SAFETY: the range is this allocation, from the beginning of a page to the end of one; the advice changes neither what is in it
            // nor whether it is there, and an error means that nothing was done.
            unsafe {
                libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE);
            }
        }
        Some(Self {
            start: start.cast(),
            length: 0,
            capacity,
            layout,
        })
    }

    /// `count` zeros, wherever there is room for them; `None` when there is not so much memory. Of a large number of them memory is taken where
    /// they are written: what is new is zeros already.
    pub fn zeros(count: usize) -> Option<Self>
    where
        T: Zero,
    {
        let layout = Layout::array::<T>(count).ok()?;
        if layout.size() == 0 {
            return Self::with_capacity(0);
        }
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        // All `count` items are there: octets that are 0 are one of them, as `Zero` says.
        Some(Self {
            start: start.cast(),
            length: count,
            capacity: count,
            layout,
        })
    }

    fn layout(capacity: usize) -> Option<Layout> {
        let layout = Layout::array::<T>(capacity).ok()?;
        if layout.size() < HUGE / 2 {
            return Some(layout);
        }
        let size = layout.size().checked_next_multiple_of(HUGE)?;
        Layout::from_size_align(size, HUGE.max(layout.align())).ok()
    }

    /// Puts `item` behind the last one.
    ///
    /// # Panics
    /// When there are as many as the capacity.
    #[inline]
    pub fn push(&mut self, item: T) {
        assert!(
            self.length < self.capacity,
            "a vector of fixed capacity is full"
        );
        // SAFETY: the place is within the allocation, as its number is below the capacity, and nobody else has it.
        unsafe { self.start.add(self.length).write(item) };
        self.length += 1;
    }

    /// Puts `item` into all places that are left.
    pub fn fill_up(&mut self, item: T) {
        while self.length < self.capacity {
            self.push(item);
        }
    }

    /// Takes all items out. The memory stays.
    pub fn clear(&mut self) {
        self.length = 0;
    }
}

impl<T: Copy> Deref for HugeVec<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: so many items from the start have been written, and are borrowed as the vector is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T: Copy> DerefMut for HugeVec<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; the vector is borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T: Copy> Drop for HugeVec<T> {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: it was allocated with this layout, and nothing refers to it any more; items that can be copied need no end of their own.
            unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
        }
    }
}

// SAFETY: it owns its items, as a vector does.
unsafe impl<T: Copy + Send> Send for HugeVec<T> {}
// SAFETY: a shared one shows its items, and nothing else.
unsafe impl<T: Copy + Sync> Sync for HugeVec<T> {}

impl<T: Copy + fmt::Debug> fmt::Debug for HugeVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_where_they_were_put() {
        // What has no huge page, and one less than that; half of one, one, more than one.
        let page = HUGE / 8;
        for capacity in [0, 1, 7, page / 2 - 1, page / 2, page, page * 3 / 2 + 1] {
            let mut numbers: HugeVec<u64> = HugeVec::with_capacity(capacity).expect("memory");
            assert!(numbers.is_empty());
            if capacity >= page / 2 {
                assert_eq!(numbers.start.as_ptr().align_offset(HUGE), 0);
            }
            for turn in 0..2 {
                for number in 0..capacity as u64 / 2 {
                    numbers.push(number + turn);
                }
                numbers.fill_up(u64::MAX);
                assert_eq!(numbers.len(), capacity);
                for (place, number) in numbers.iter_mut().enumerate() {
                    let expected = place as u64 + turn;
                    let is_left = place >= capacity / 2;
                    assert_eq!(*number, if is_left { u64::MAX } else { expected });
                    *number = 0;
                }
                numbers.clear();
                assert!(numbers.is_empty());
            }
        }
    }

    #[test]
    fn zeros_are_there() {
        for count in [0, 1, HUGE / 8 + 1] {
            let mut numbers: HugeVec<[u8; 3]> = HugeVec::zeros(count).expect("memory");
            assert_eq!(numbers.len(), count);
            assert!(numbers.iter().all(|item| *item == [0; 3]));
            if let Some(last) = numbers.last_mut() {
                *last = [7; 3];
                assert_eq!(numbers.last(), Some(&[7; 3]));
            }
        }
        assert!(HugeVec::<u64>::zeros(usize::MAX).is_none());
        // Miri ends where there is no memory.
        #[cfg(not(miri))]
        assert!(HugeVec::<u64>::zeros(isize::MAX as usize / 8).is_none());
    }

    #[test]
    #[should_panic(expected = "full")]
    fn no_more_than_the_capacity_is_taken() {
        let mut numbers: HugeVec<u8> = HugeVec::with_capacity(1).expect("memory");
        numbers.push(1);
        numbers.push(2);
    }

    #[test]
    fn what_cannot_be_had_is_none() {
        assert!(HugeVec::<u64>::with_capacity(usize::MAX).is_none());
        assert!(HugeVec::<u64>::with_capacity(isize::MAX as usize / 8).is_none());
    }
}
