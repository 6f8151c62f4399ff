//! The ring's memory, shared with the kernel block by block.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::abi::{
    BLOCK_DESC_LEN, BLOCK_STATUS, FRAME_TIME, NUM_PKTS, OFFSET_TO_FIRST_PKT, TP_STATUS_BLK_TMO,
    TS_LAST_PKT,
};

/// The blocks of a packet socket's ring, mapped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    block_size: usize,
    block_nr: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; nothing of it is tied to the one that made it.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives no access to the memory: a block is lent through `&mut Mapping` only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the ring of `socket`, whose `PACKET_RX_RING` was set to these numbers.
    ///
    /// The kernel refuses a mapping whose length is not exactly that of the ring.
    pub(crate) fn new(socket: impl AsFd, block_size: usize, block_nr: usize) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        let length = block_size.checked_mul(block_nr).ok_or_else(too_large)?;
        let length = NonZeroUsize::new(length).ok_or_else(too_large)?;
        assert!(block_size >= BLOCK_DESC_LEN && block_size.is_multiple_of(8));
        // SAFETY: no address is asked for, so no other mapping is replaced.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                socket,
                0,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            block_size,
            block_nr,
        })
    }

    /// Lends a block if the kernel has handed it over; it goes back when the loan is dropped.
    pub(crate) fn lend(&mut self, block: usize) -> Option<Lent<'_>> {
        // Acquire: what the kernel wrote into the block before this word is seen after it.
        let status = self.status_word(block).load(Ordering::Acquire);
        (status & libc::TP_STATUS_USER != 0).then_some(Lent {
            mapping: self,
            block,
            is_full: status & TP_STATUS_BLK_TMO == 0,
        })
    }

    /// Whether the kernel has handed `block` over.
    pub(crate) fn is_ready(&self, block: usize) -> bool {
        self.status_word(block).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    fn status_word(&self, block: usize) -> &AtomicU32 {
        assert!(block < self.block_nr);
        // SAFETY: in bounds: just checked, and `new` mapped `block_size * block_nr` octets, a block being at least
        //   a descriptor long. Aligned: mappings start at a page, block_size is a multiple of 8, and 8 of 4.
        // Shared: the kernel stores the word after a write barrier (net/packet/af_packet.c, prb_close_block), so no
        //   plain reference to it is ever made: `Lent::octets` starts behind it. Unmapped only in `drop`.
        unsafe {
            AtomicU32::from_ptr(
                self.base
                    .as_ptr()
                    .add(block * self.block_size + BLOCK_STATUS)
                    .cast(),
            )
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every loan borrows self, so none is left.
        let unmapped = unsafe { munmap(self.base.cast(), self.block_size * self.block_nr) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A block that is ours: the kernel does not write to it until this is dropped.
#[derive(Debug)]
pub(crate) struct Lent<'m> {
    // Shared, but made from `&mut Mapping`: there is one loan at a time, so none sees another one's block go back.
    mapping: &'m Mapping,
    block: usize,
    is_full: bool,
}

impl Lent<'_> {
    /// The block from its first octet behind `block_status` to its end; [`Lent::BASE`] is the first one's offset.
    pub(crate) fn octets(&self) -> &[u8] {
        // SAFETY: in bounds: `lend` checked the block. Initialised: the kernel zeroes the pages of a ring.
        // Not written meanwhile: `lend` saw TP_STATUS_USER, after which the kernel leaves the block alone until
        //   `drop` stores TP_STATUS_KERNEL; the slice borrows self, so it is gone by then. Only this process could
        //   write here, and it has no other pointer to it.
        unsafe {
            std::slice::from_raw_parts(
                self.mapping
                    .base
                    .as_ptr()
                    .add(self.block * self.mapping.block_size + Self::BASE),
                self.mapping.block_size - Self::BASE,
            )
        }
    }

    /// Offset in the block of the first octet of [`Lent::octets`].
    pub(crate) const BASE: usize = NUM_PKTS;

    /// Frames in the block, as the kernel tells it.
    pub(crate) fn num_pkts(&self) -> u32 {
        self.word(NUM_PKTS)
    }

    /// Offset of the first frame, as the kernel tells it; not checked.
    pub(crate) fn offset_to_first_pkt(&self) -> u32 {
        self.word(OFFSET_TO_FIRST_PKT)
    }

    /// How long the block took to fill, from its first frame's time to its last one's; `None` when it was handed over before it was full.
    pub(crate) fn filled_in(&self) -> Option<Duration> {
        let time = |at| Duration::new(self.word(at).into(), self.word(at + 4));
        let first = self.offset_to_first_pkt() as usize + FRAME_TIME;
        self.is_full
            .then(|| time(TS_LAST_PKT).saturating_sub(time(first)))
    }

    fn word(&self, at: usize) -> u32 {
        at.checked_sub(Self::BASE)
            .and_then(|at| self.octets().get(at..)?.first_chunk())
            .map_or(0, |word| u32::from_ne_bytes(*word))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // Release: all our reads are done before the kernel sees that it may write again.
        self.mapping
            .status_word(self.block)
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}
