//! The kernel's edge: the only folder of this crate with `unsafe` in it.
//!
//! Rules of the folder: what leaves it is safe to use in any order; each block says what must hold and who made sure of
//! it; words that the kernel may write at the same time are reached as atomics only.
#![allow(
    unsafe_code,
    reason = "system calls, the memory shared with the kernel, and what the processor offers"
)]

#[cfg(feature = "ring")]
pub(crate) mod abi;
pub(crate) mod huge;
#[cfg(feature = "ring")]
pub(crate) mod mapping;
pub(crate) mod octets;
pub(crate) mod prefetch;
#[cfg(feature = "ring")]
pub(crate) mod sockopt;
pub(crate) mod wide;
