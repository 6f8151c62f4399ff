//! TCP headers (RFC 9293).

use super::word_at;

/// TCP control bits, as they lie in octets 13 and 14 of the header; the IPFIX element `tcpControlBits` holds the same.
pub mod control {
    /// No more data from the sender.
    pub const FIN: u16 = 0x001;
    /// Synchronize sequence numbers.
    pub const SYN: u16 = 0x002;
    /// Reset the connection.
    pub const RST: u16 = 0x004;
    /// Push.
    pub const PSH: u16 = 0x008;
    /// The acknowledgment field is significant.
    pub const ACK: u16 = 0x010;
    /// The urgent pointer is significant.
    pub const URG: u16 = 0x020;
    /// ECN echo.
    pub const ECE: u16 = 0x040;
    /// Congestion window reduced.
    pub const CWR: u16 = 0x080;
    /// Accurate ECN, once the nonce sum.
    pub const AE: u16 = 0x100;
}

/// The fixed 20 octets of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp<'f>(pub(crate) &'f [u8; 20]);

impl<'f> Tcp<'f> {
    /// A view of `octets`.
    pub const fn new(octets: &'f [u8; 20]) -> Self {
        Self(octets)
    }

    /// The sender's port.
    #[inline]
    pub const fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// The receiver's port.
    #[inline]
    pub const fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// Both ports, the sender's in the upper half: one load for who wants them both.
    #[inline]
    pub const fn ports(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Number of the first octet of the payload, or of SYN.
    #[inline]
    pub const fn sequence(&self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// The next octet the sender waits for, when ACK is set.
    #[inline]
    pub const fn acknowledgment(&self) -> u32 {
        u32::from_be_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// Length of the header with its options, as it says; below 20 when malformed.
    ///
    /// Unit: octets. Source: the data offset field.
    #[inline]
    #[doc(alias = "doff")]
    pub const fn header_octets(&self) -> usize {
        (self.offset_and_control() >> 12) as usize * 4
    }

    /// The 12 bits from the reserved ones to FIN; see [`control`].
    #[inline]
    pub const fn control_bits(&self) -> u16 {
        self.offset_and_control() & 0x0fff
    }

    /// Both, as one load.
    #[inline]
    const fn offset_and_control(&self) -> u16 {
        word_at(self.0, 12)
    }

    /// The receive window, not scaled.
    #[inline]
    pub const fn window(&self) -> u16 {
        u16::from_be_bytes([self.0[14], self.0[15]])
    }
}
