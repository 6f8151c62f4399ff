//! Ethernet II headers.

/// An Ethernet header, from the destination address to the EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet<'f>(pub(crate) &'f [u8; 14]);

impl<'f> Ethernet<'f> {
    /// A view of `octets`.
    pub const fn new(octets: &'f [u8; 14]) -> Self {
        Self(octets)
    }

    /// The address the frame is for.
    #[inline]
    pub const fn destination(&self) -> [u8; 6] {
        // By reference: octet by octet it would be put together again by whoever compares it.
        let [address @ .., _, _, _, _, _, _, _, _] = self.0;
        *address
    }

    /// The address of the sender.
    #[inline]
    pub const fn source(&self) -> [u8; 6] {
        let [_, _, _, _, _, _, address @ .., _, _] = self.0;
        *address
    }

    /// The EtherType, or the length of an 802.3 frame when below 0x0600.
    #[inline]
    pub const fn ether_type(&self) -> u16 {
        u16::from_be_bytes([self.0[12], self.0[13]])
    }
}
