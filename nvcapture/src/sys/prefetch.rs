//! Memory asked for before it is needed.

/// Asks the processor to bring the cache line where `place` begins, without waiting for it.
///
/// A load would do it too, but what comes behind a load cannot be completed before it; a table that looks many keys up at once would wait
/// for the slowest. No-op on processors other than x86-64 and AArch64.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    ask(std::ptr::from_ref(place).cast());
}

/// As [`prefetch`] for what lies so many `octets` behind the beginning of `place`, whether or not there is anything.
#[cfg(feature = "ring")]
#[inline(always)]
pub(crate) fn prefetch_behind<T>(place: &T, octets: usize) {
    ask(std::ptr::from_ref(place).cast::<u8>().wrapping_add(octets));
}

#[inline(always)]
fn ask(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing and cannot fault, wherever it points to; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, which reads nothing, cannot fault, wherever it points to, and changes neither flags nor stack.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{place}]",
            place = in(reg) place,
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}
