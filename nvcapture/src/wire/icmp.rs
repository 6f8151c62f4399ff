//! ICMP (RFC 792) and ICMPv6 (RFC 4443) headers.

/// The first 4 octets of an ICMP or ICMPv6 message, and the identifier of those messages that have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// The type of the message.
    pub icmp_type: u8,
    /// Its code.
    pub code: u8,
    /// Octets 5 and 6: the identifier of echo and other queries; `None` when cut off.
    pub identifier: Option<u16>,
}

impl Icmp {
    /// Reads the message's first octets; `None` when fewer than 2 are there.
    #[inline]
    pub fn read(octets: &[u8]) -> Option<Self> {
        let (&[icmp_type, code], _) = octets.split_first_chunk()?;
        let identifier = octets
            .first_chunk()
            .map(|&[_, _, _, _, a, b]| u16::from_be_bytes([a, b]));
        Some(Self {
            icmp_type,
            code,
            identifier,
        })
    }
}
