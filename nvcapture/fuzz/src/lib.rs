//! What must hold for any octets, whoever chose them: each target is one function here that panics when it does not.

mod file;
mod filter;
pub mod seeds;
mod wire;

pub use file::{capture, pcap, pcapng};
pub use filter::filter;
pub use wire::{LINK_TYPES, wire};
