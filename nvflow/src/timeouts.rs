//! How long a connection is kept without a frame.

use std::time::Duration;

/// Times after which a connection's record is made. All run on the frames' own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, handshake done or not seen. Default: 300 s.
    pub tcp_established: Duration,
    /// TCP, handshake begun and not done. Default: 30 s.
    pub tcp_half_open: Duration,
    /// TCP after the first FIN. Default: 60 s.
    pub tcp_closing: Duration,
    /// TCP that has ended, by FIN of both sides and their acknowledgment, or by RST: so long after the last frame its record is
    /// made, so that what comes late (a retransmitted FIN, an ACK of it) is counted to it and starts no connection of its own.
    /// Default: 5 s.
    pub tcp_ended: Duration,
    /// UDP. Default: 60 s.
    pub udp: Duration,
    /// ICMP and ICMPv6. Default: 10 s.
    pub icmp: Duration,
    /// Other protocols. Default: 60 s.
    pub other: Duration,
    /// An open connection gets a record every so often, at its next frame. Default: 1,800 s.
    pub active: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(300),
            tcp_half_open: Duration::from_secs(30),
            tcp_closing: Duration::from_secs(60),
            tcp_ended: Duration::from_secs(5),
            udp: Duration::from_secs(60),
            icmp: Duration::from_secs(10),
            other: Duration::from_secs(60),
            active: Duration::from_secs(1_800),
        }
    }
}
