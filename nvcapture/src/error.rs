//! What can go wrong while reading frames.

use std::io;

/// Why frames could not be read or written.
///
/// Each variant names the operation and its object; what the kernel said is the [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, pipe or stream could not be opened, read or written.
    #[error("{op} {path}")]
    Io {
        /// `open`, `read` or `write`.
        op: &'static str,
        /// Which file, or `the capture` for a stream.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A number of a ring's configuration cannot be.
    #[error("{field} is {value}: it must {must}")]
    Config {
        /// The field of `RingConfig`.
        field: &'static str,
        /// Its value, in the field's unit.
        value: u64,
        /// What it must do.
        must: String,
    },
    /// The kernel refused to open a packet socket.
    #[error("open a packet socket ({advice})")]
    Socket {
        /// What to try.
        advice: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such interface in the network namespace.
    #[error("no interface {interface} in this network namespace")]
    NoInterface {
        /// Its name, or `ifindex N`.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused one option of the packet socket.
    #[error("set {option} to {value} on {interface} ({advice})")]
    Option {
        /// The option's name in the kernel's headers.
        option: &'static str,
        /// The value asked for.
        value: String,
        /// The interface the ring is for.
        interface: String,
        /// What to try.
        advice: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The ring was made but could not be mapped.
    #[error("map {octets} octets of ring (try fewer or smaller blocks)")]
    Map {
        /// Its length.
        octets: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket could not be bound to the interface.
    #[error("bind the packet socket to {interface}")]
    Bind {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interface's link header is one that a ring does not read.
    #[error("{interface} has link headers of ARPHRD type {hatype}, which are not read here")]
    LinkHeader {
        /// The interface.
        interface: String,
        /// `ARPHRD_` number, include/uapi/linux/if_arp.h.
        hatype: u16,
    },
    /// The interface is down: no frame comes until it is set up again; then the same ring goes on.
    #[error("{interface} is down (try: ip link set {interface} up)")]
    InterfaceDown {
        /// The interface.
        interface: String,
    },
    /// The interface was removed, or moved to another network namespace: no frame will ever come.
    #[error("{interface} is gone")]
    InterfaceGone {
        /// The interface.
        interface: String,
    },
    /// Waiting for frames or reading the counters failed.
    #[error("{op} on {interface}")]
    Ring {
        /// The system call, or the option read.
        op: &'static str,
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A block of the ring does not hold what its descriptor tells; the rest of that block was left out.
    #[error(
        "block {block} of the ring on {interface} is malformed: {lost} of its frames cannot be read"
    )]
    Malformed {
        /// The interface.
        interface: String,
        /// Number of the block in the ring.
        block: u32,
        /// Frames left out.
        lost: u32,
    },
    /// After `Ring::stop` the kernel did not hand over all frames it had counted.
    #[error("{interface} kept {missing} frames back after the ring was stopped")]
    Incomplete {
        /// The interface.
        interface: String,
        /// Frames counted by the kernel but not handed over.
        missing: u64,
    },
    /// The file is no capture, or one of a kind that is not read here.
    #[error("not a capture that can be read: {what}")]
    NotACapture {
        /// What was found instead, and what to try.
        what: &'static str,
    },
    /// The file is damaged; what came before `offset` was handed out.
    #[error("the capture is damaged at offset {offset}: {what}")]
    Damaged {
        /// Octets from the file's start to the record or block that is damaged.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// There is not so much memory.
    #[error("{octets} octets of memory are not to be had")]
    Memory {
        /// How much was asked for.
        octets: usize,
        /// Why not.
        source: std::collections::TryReserveError,
    },
    /// What is to be written does not fit into the format.
    #[error("cannot write the capture: {what}")]
    Unwritable {
        /// What does not fit.
        what: &'static str,
    },
}
