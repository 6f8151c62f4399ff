//! Octets that are taken from the front.

/// What is left of some octets; every `take` fails at their end and leaves them as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Octets<'a>(pub(super) &'a [u8]);

impl<'a> Octets<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.chunk().map(|[octet]| octet)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.chunk().map(u16::from_be_bytes)
    }

    pub(super) fn u24(&mut self) -> Option<u32> {
        self.chunk()
            .map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_be_bytes)
    }

    /// Octets behind a length of one octet.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let mut after = *self;
        let length = after.u8()?;
        let taken = after.take(length.into())?;
        *self = after;
        Some(taken)
    }

    /// Octets behind a length of two octets.
    pub(super) fn long(&mut self) -> Option<&'a [u8]> {
        let mut after = *self;
        let length = after.u16()?;
        let taken = after.take(length.into())?;
        *self = after;
        Some(taken)
    }
}
