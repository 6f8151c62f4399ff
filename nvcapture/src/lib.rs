//! Zero-copy frames from AF_PACKET rings and capture files, and the walk through their headers.
#![deny(unsafe_code)]

#[cfg(feature = "ring")]
mod bpf;
#[cfg(feature = "ring")]
mod config;
mod error;
#[cfg(feature = "file")]
mod file;
mod frame;
#[cfg(feature = "ring")]
mod ring;
#[cfg(feature = "ring")]
mod socket;
mod source;
mod stats;
#[cfg(feature = "ring")]
mod sys;
pub mod wire;
#[cfg(feature = "file")]
mod writer;

#[cfg(feature = "ring")]
pub use bpf::BpfInsn;
#[cfg(feature = "ring")]
pub use config::{Fanout, FanoutMode, RingConfig, RingGeometry};
#[cfg(feature = "ring")]
pub use ring::{Block, Frames, Ring};
#[cfg(feature = "ring")]
pub use socket::Interface;

pub use error::Error;
#[cfg(feature = "file")]
pub use file::{CaptureFile, FileBlock, FileFrames, FileInterface};
pub use frame::{Frame, FrameMeta, LinkType, PacketType, Timestamp, VlanTag};
pub use source::{FrameBlock, FrameSource, Next};
pub use stats::SourceStats;
#[cfg(feature = "file")]
pub use writer::{CaptureWriter, InterfaceDescription, InterfaceNumber};
