//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use super::word_at;

/// The fixed 20 octets of an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4<'f>(pub(crate) &'f [u8; 20]);

impl<'f> Ipv4<'f> {
    /// A view of `octets`.
    pub const fn new(octets: &'f [u8; 20]) -> Self {
        Self(octets)
    }

    /// Length of the header with its options, as it says; below 20 when malformed.
    ///
    /// Unit: octets. Source: the IHL field.
    #[inline]
    #[doc(alias = "ihl")]
    pub const fn header_octets(&self) -> usize {
        ((self.0[0] & 0x0f) as usize) * 4
    }

    /// The version field: 4, unless malformed.
    #[inline]
    pub const fn version(&self) -> u8 {
        self.0[0] >> 4
    }

    /// The differentiated services code point, 0 to 63.
    #[inline]
    pub const fn dscp(&self) -> u8 {
        self.0[1] >> 2
    }

    /// Length of the packet with its header; 0 in super-frames of more than 65,535 octets.
    ///
    /// Unit: octets.
    #[inline]
    pub const fn total_length(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// The identification that the fragments of one packet share.
    #[inline]
    pub const fn identification(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// Flags and fragment offset, as they lie in the header.
    #[inline]
    pub(crate) const fn flags_and_offset(&self) -> u16 {
        word_at(self.0, 6)
    }

    /// Hops left.
    #[inline]
    pub const fn time_to_live(&self) -> u8 {
        self.0[8]
    }

    /// The protocol of what follows the header.
    #[inline]
    pub const fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// The sender.
    #[inline]
    pub const fn source(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    /// The receiver.
    #[inline]
    pub const fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    /// Both addresses as numbers, the sender's in the upper half: one load for who wants them both.
    #[inline]
    pub const fn addresses(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = *self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}
