//! Netlink attributes as octets, for what must be read and written back exactly as the kernel gave it.

/// Low bits of an attribute's type; the high ones are `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = 0x3fff;

/// The attributes in `octets`, as type (without flags) and value; ends at the first that does not fit.
pub(crate) fn attrs(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = octets.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK;
        let value = octets.get(4..len)?;
        octets = octets.get(align(len)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of type `kind`.
pub(crate) fn find(octets: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(octets).find_map(|(k, value)| (k == kind).then_some(value))
}

/// A 32-bit attribute's value in host order.
pub(crate) fn find_u32(octets: &[u8], kind: u16) -> Option<u32> {
    find(octets, kind).and_then(u32_of)
}

/// The first four octets in host order.
pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|v| u32::from_ne_bytes(*v))
}

/// Appends one attribute.
pub(crate) fn push(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // No attribute here comes near 64 KiB: routes' are at most a page as the kernel dumps them.
    let len = u16::try_from(value.len() + 4).expect("an attribute is shorter than 64 KiB");
    to.extend_from_slice(&len.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(align(to.len()), 0);
}

/// Rounded up to a multiple of four.
pub(crate) const fn align(len: usize) -> usize {
    (len + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_found() {
        let mut octets = Vec::new();
        push(&mut octets, 3, b"eth0\0");
        push(&mut octets, 0x8004, &7u32.to_ne_bytes());
        assert_eq!(octets.len(), 12 + 8);
        assert_eq!(
            attrs(&octets).collect::<Vec<_>>(),
            [(3, &b"eth0\0"[..]), (4, &7u32.to_ne_bytes()[..])]
        );
        assert_eq!(find_u32(&octets, 4), Some(7));
        assert_eq!(find(&octets, 9), None);
    }

    #[test]
    fn a_damaged_list_ends_and_does_not_panic() {
        let mut octets = Vec::new();
        push(&mut octets, 3, b"eth0\0");
        for cut in 0..octets.len() {
            assert!(attrs(&octets[..cut]).count() <= 1);
        }
        for len in 0..=u8::MAX {
            octets[0] = len;
            assert!(attrs(&octets).count() <= 3);
        }
    }
}
