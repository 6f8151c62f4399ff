//! Meters connections: frames in, bidirectional flow records out.
//!
//! No I/O, no clock, no thread: time comes with the frames and with [`Meter::expire`]. The table is bounded, its memory taken at the
//! start, and nothing is allocated per frame; what connections speak is found out when asked for, and takes memory where it is found.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod aggregate;
mod app;
mod clock;
mod config;
mod entry;
mod error;
mod fragments;
mod index;
mod key;
mod meter;
mod record;
mod shards;
mod sink;
mod stats;
mod table;
mod tcp;
mod timeouts;
mod timers;

pub use aggregate::{Aggregator, Conversation, ConversationKey, GroupBy, Histogram, Party};
pub use app::{Application, Dns, Http, Identify, Protocol, ResolvedName, Tls, registered_service};
pub use config::{MeterConfig, Observation};
pub use error::Error;
pub use index::BucketIndex;
pub use key::{Direction, FlowKey, KeyHasher};
pub use meter::Meter;
pub use record::{
    Columns, Endpoint, Field, FlowEndReason, FlowRecord, Labels, Side, TcpRecord, TcpSide, Value,
    Vantage, WorkloadDetails,
};
pub use shards::Shards;
pub use sink::{Sink, SinkFn, sink_fn};
pub use stats::MeterStats;
pub use tcp::TcpState;
pub use timeouts::Timeouts;
