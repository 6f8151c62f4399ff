//! UDP headers (RFC 768).

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp<'f>(pub(crate) &'f [u8; 8]);

impl<'f> Udp<'f> {
    /// A view of `octets`.
    pub const fn new(octets: &'f [u8; 8]) -> Self {
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

    /// Length of the datagram with its header; 0 in jumbograms.
    ///
    /// Unit: octets.
    #[inline]
    pub const fn length(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }
}
