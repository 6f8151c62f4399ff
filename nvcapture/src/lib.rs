//! Zero-copy frames from AF_PACKET rings and capture files, and the walk through their headers.
#![deny(unsafe_code)]

mod error;
mod frame;
mod source;
mod stats;
pub mod wire;

pub use error::Error;
pub use frame::{Frame, FrameMeta, LinkType, PacketType, Timestamp, VlanTag};
pub use source::{FrameBlock, FrameSource, Next};
pub use stats::SourceStats;
