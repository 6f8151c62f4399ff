//! IPv6 headers (RFC 8200).

use std::net::Ipv6Addr;

/// The fixed 40 octets of an IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6<'f>(pub(crate) &'f [u8; 40]);

impl<'f> Ipv6<'f> {
    /// A view of `octets`.
    pub const fn new(octets: &'f [u8; 40]) -> Self {
        Self(octets)
    }

    /// The version field: 6, unless malformed.
    #[inline]
    pub const fn version(&self) -> u8 {
        self.0[0] >> 4
    }

    /// The differentiated services code point, 0 to 63.
    #[inline]
    pub const fn dscp(&self) -> u8 {
        ((self.0[0] & 0x0f) << 2) | (self.0[1] >> 6)
    }

    /// Length of what follows these 40 octets; 0 in super-frames of more than 65,535 octets.
    ///
    /// Unit: octets.
    #[inline]
    pub const fn payload_length(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// The protocol of the next header, which may be an extension header.
    #[inline]
    pub const fn next_header(&self) -> u8 {
        self.0[6]
    }

    /// Hops left.
    #[inline]
    pub const fn hop_limit(&self) -> u8 {
        self.0[7]
    }

    /// The sender.
    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        let (_, rest) = self.0.split_at(8);
        let octets: [u8; 16] = *rest
            .first_chunk()
            .expect("24 octets follow the first 16 of 40");
        Ipv6Addr::from(octets)
    }

    /// The receiver.
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        let octets: [u8; 16] = *self.0.last_chunk().expect("16 of 40 octets");
        Ipv6Addr::from(octets)
    }
}
