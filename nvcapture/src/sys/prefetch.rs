//! Memory asked for before it is needed, and in large pages.

/// Asks the processor to bring the cache line where `place` begins, without waiting for it.
///
/// A load would do it too, but what comes behind a load cannot be completed before it; a table that looks many keys up at once would wait
/// for the slowest. No-op on processors other than x86-64 and AArch64.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing and cannot fault; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, which reads nothing, cannot fault, and changes neither flags nor stack.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{place}]",
            place = in(reg) std::ptr::from_ref(place),
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}

/// Asks the kernel for huge pages behind the memory of `items`, all that is reserved included; what is touched is then taken 2 MiB at a time.
///
/// A table that is looked at in no order misses the processor's page table cache with each look, and such a miss costs about as much as the
/// line itself. Where the kernel gives none (`/sys/kernel/mm/transparent_hugepage/enabled` says never) it stays as it is.
pub fn prefer_huge_pages<T>(items: &Vec<T>) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        /// Pages are no larger than that where Linux runs, and advice begins at a page.
        const PAGE: usize = 64 << 10;
        let length = items.capacity().saturating_mul(size_of::<T>());
        let skipped = items.as_ptr().cast::<u8>().align_offset(PAGE);
        if let Some(length) = length.checked_sub(skipped) {
            let start = items.as_ptr().cast::<u8>().wrapping_add(skipped);
            // SAFETY: the range lies within the vector's own allocation, and the advice changes neither what is in it nor whether it is
            // there; an error means that nothing was done.
            unsafe {
                libc::madvise(
                    start.cast_mut().cast(),
                    length / PAGE * PAGE,
                    libc::MADV_HUGEPAGE,
                );
            }
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = items;
}
