//! Zero-copy frames from AF_PACKET rings and capture files, and the walk through their headers.
//!
//! [`Ring`] and [`CaptureFile`] are both a [`FrameSource`]: it lends blocks, a block lends frames, and the borrow checker
//! sees to it that nothing is kept longer than its memory is there. [`wire`] walks through a frame's headers.
//!
//! ```no_run
//! use nvcapture::{Error, FrameBlock, FrameSource, Next};
//!
//! /// The same for rings and files.
//! fn octets(source: &mut impl FrameSource) -> Result<u64, Error> {
//!     let mut octets = 0;
//!     loop {
//!         match source.next_block(None)? {
//!             Next::Block(block) => octets += block.frames().map(|frame| u64::from(frame.wire_len())).sum::<u64>(),
//!             Next::TimedOut => {}
//!             Next::End => return Ok(octets),
//!         }
//!     }
//! }
//! ```
#![deny(unsafe_code)]

mod bpf;
#[cfg(feature = "ring")]
mod config;
mod error;
#[cfg(feature = "file")]
mod file;
pub mod filter;
mod frame;
mod recorder;
#[cfg(feature = "ring")]
mod ring;
#[cfg(feature = "ring")]
mod socket;
mod source;
mod stats;
mod sys;
pub mod wire;
#[cfg(feature = "file")]
mod writer;

pub use bpf::BpfInsn;
#[cfg(feature = "ring")]
pub use config::{Fanout, FanoutMode, RingConfig, RingGeometry, SegmentSizes};
#[cfg(feature = "ring")]
pub use ring::{Block, Frames, Ring};
#[cfg(feature = "ring")]
pub use socket::Interface;

pub use error::Error;
#[cfg(feature = "file")]
pub use file::{CaptureFile, FileBlock, FileFrames, FileInterface};
pub use frame::{Frame, FrameMeta, LinkType, PacketType, SegmentSize, Timestamp, VlanTag};
pub use recorder::{FlightRecorder, Position, Recorded, RecorderStats};
pub use source::{FrameBlock, FrameSource, Next};
pub use stats::SourceStats;
#[doc(hidden)]
pub use sys::{
    huge::{HugeVec, Zero},
    octets::places_of,
    prefetch::prefetch,
    wide::{Ability, Usual, Wide, Work},
};
#[cfg(feature = "file")]
pub use writer::{CaptureWriter, InterfaceDescription, InterfaceNumber};

/// The examples of the README are compiled.
#[cfg(all(doctest, feature = "ring", feature = "file"))]
#[doc = include_str!("../README.md")]
struct Readme;
