//! TCP as an onlooker sees it.

/// Where a connection is, in the words of RFC 9293 and as its initiator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// SYN was sent.
    SynSent,
    /// SYN was answered.
    SynReceived,
    /// The handshake is done, or was before the first frame seen.
    Established,
    /// The initiator said FIN.
    FinWait1,
    /// The initiator said FIN, which was acknowledged.
    FinWait2,
    /// The responder said FIN.
    CloseWait,
    /// Both said FIN, neither of which was acknowledged.
    Closing,
    /// The responder, then the initiator said FIN; the last acknowledgment is missing.
    LastAck,
    /// Both said FIN, the initiator first, and both were acknowledged.
    TimeWait,
    /// All over: by RST, or by FIN of the responder, then of the initiator.
    Closed,
}

impl TcpState {
    /// The name, as RFC 9293 writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECEIVED",
            Self::Established => "ESTABLISHED",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
            Self::Closed => "CLOSED",
        }
    }
}

impl std::fmt::Display for TcpState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
