//! From the link header to the IP packet: Ethernet, tags, label stacks, and the link types that are not Ethernet.

use super::{
    Ethernet, Headers, Layer, Link, Rest, WireError, ether_type, ip, ipv4, ipv4_inline, ipv6,
    ipv6_inline,
};
use crate::{LinkType, VlanTag};

/// More tags than any real frame has; bounds the walk over one that is made of them.
const MOST_TAGS: usize = 16;

/// Reads an Ethernet frame, where speed does not matter.
pub(super) fn ethernet<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    ethernet_inline(link, rest)
}

/// Reads an Ethernet frame, in the place of the call.
#[inline(always)]
pub(super) fn ethernet_inline<'f>(
    mut link: Link<'f>,
    rest: Rest<'f>,
) -> Result<Headers<'f>, WireError> {
    let Some(head) = rest.octets.first_chunk() else {
        return Err(rest.truncated(Layer::Link, 14));
    };
    let ethernet = Ethernet(head);
    link.ethernet.get_or_insert(ethernet);
    let rest = rest.after(14);
    match ethernet.ether_type() {
        ether_type::IPV4 => ipv4_inline(link, rest),
        ether_type::IPV6 => ipv6_inline(link, rest),
        // One tag is common enough to be worth its own line.
        0x8100 => match rest.octets.first_chunk() {
            Some(&[a, b, 0x08, 0x00]) => ipv4(tagged(link, 0x8100, [a, b]), rest.after(4)),
            _ => by_ether_type(link, rest, 0x8100),
        },
        other => by_ether_type(link, rest, other),
    }
}

#[inline]
fn tagged<'f>(mut link: Link<'f>, tpid: u16, tci: [u8; 2]) -> Link<'f> {
    let tag = VlanTag {
        tpid,
        tci: u16::from_be_bytes(tci),
    };
    if link.vlan.is_none() {
        link.vlan = Some(tag);
    } else if link.inner_vlan.is_none() {
        link.inner_vlan = Some(tag);
    }
    link
}

/// Reads what the EtherType `ether_type` announces.
pub(super) fn by_ether_type<'f>(
    mut link: Link<'f>,
    mut rest: Rest<'f>,
    mut ether_type: u16,
) -> Result<Headers<'f>, WireError> {
    for _ in 0..MOST_TAGS {
        match ether_type {
            ether_type::IPV4 => return ipv4(link, rest),
            ether_type::IPV6 => return ipv6(link, rest),
            // 802.1Q, 802.1ad, and two that were in use before there was a standard for stacking.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let Some(&[a, b, c, d]) = rest.octets.first_chunk() else {
                    return Err(rest.truncated(Layer::Vlan, 4));
                };
                link = tagged(link, ether_type, [a, b]);
                ether_type = u16::from_be_bytes([c, d]);
                rest = rest.after(4);
            }
            // VN-Tag: 4 octets of tag, then the EtherType of what follows. 802.1BR E-Tag: 6.
            0x8926 | 0x893f => {
                let tag = if ether_type == 0x8926 { 4 } else { 6 };
                let inside = rest.after(tag);
                let Some(&[a, b]) = inside.octets.first_chunk() else {
                    return Err(rest.truncated(Layer::Vlan, tag + 2));
                };
                ether_type = u16::from_be_bytes([a, b]);
                rest = inside.after(2);
            }
            // 802.1ah I-Tag and Cisco FabricPath: a tag and a whole Ethernet frame.
            0x88e7 | 0x8903 => {
                let tag = if ether_type == 0x88e7 { 4 } else { 2 };
                let inside = rest.after(tag);
                let Some(head) = inside.octets.first_chunk() else {
                    return Err(rest.truncated(Layer::Vlan, tag + 14));
                };
                ether_type = Ethernet(head).ether_type();
                rest = inside.after(14);
            }
            0x8847 | 0x8848 => return mpls(link, rest, ether_type),
            0x8864 => return pppoe(link, rest),
            // An 802.3 length: IP may follow an LLC header that announces SNAP with no organization.
            0..0x0600 => {
                let Some(&[0xaa, 0xaa, 0x03, 0, 0, 0, a, b]) = rest.octets.first_chunk() else {
                    return Err(WireError::NotIp { ether_type });
                };
                ether_type = u16::from_be_bytes([a, b]);
                rest = rest.after(8);
                if ether_type < 0x0600 {
                    return Err(WireError::NotIp { ether_type });
                }
            }
            _ => return Err(WireError::NotIp { ether_type }),
        }
    }
    Err(rest.malformed(Layer::Vlan, "number of tags", MOST_TAGS as u32))
}

fn mpls<'f>(link: Link<'f>, mut rest: Rest<'f>, ether_type: u16) -> Result<Headers<'f>, WireError> {
    for _ in 0..MOST_TAGS {
        let Some(&[_, _, c, _]) = rest.octets.first_chunk() else {
            return Err(rest.truncated(Layer::Mpls, 4));
        };
        rest = rest.after(4);
        if c & 1 == 0 {
            continue;
        }
        // The stack does not say what follows it; the first four bits do (RFC 4928).
        return match rest.octets.first().map(|first| first >> 4) {
            Some(4) => ipv4(link, rest),
            Some(6) => ipv6(link, rest),
            Some(_) => Err(WireError::NotIp { ether_type }),
            None => Err(rest.truncated(Layer::Ipv4, 20)),
        };
    }
    Err(rest.malformed(Layer::Mpls, "number of labels", MOST_TAGS as u32))
}

/// A PPPoE session packet, from the version on (RFC 2516).
fn pppoe<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    let Some(&[version, code, _, _, a, b]) = rest.octets.first_chunk() else {
        return Err(rest.truncated(Layer::Pppoe, 6));
    };
    if version != 0x11 {
        return Err(rest.malformed(Layer::Pppoe, "version and type", version.into()));
    }
    if code != 0 {
        return Err(WireError::NotIp { ether_type: 0x8864 });
    }
    ppp(link, rest.after(6).limit(u16::from_be_bytes([a, b]).into()))
}

/// A PPP frame from its protocol field on, which is 1 octet long when compressed (RFC 1661).
pub(super) fn ppp<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    let (protocol, octets) = match *rest.octets {
        [a, ..] if a & 1 == 1 => (u16::from(a), 1),
        [a, b, ..] => (u16::from_be_bytes([a, b]), 2),
        _ => return Err(rest.truncated(Layer::Link, 2)),
    };
    match protocol {
        0x0021 => ipv4(link, rest.after(octets)),
        0x0057 => ipv6(link, rest.after(octets)),
        other => Err(WireError::NotIp { ether_type: other }),
    }
}

/// Reads a frame of a link type other than Ethernet.
#[cold]
pub(super) fn other<'f>(
    link: Link<'f>,
    rest: Rest<'f>,
    link_type: LinkType,
) -> Result<Headers<'f>, WireError> {
    match link_type {
        LinkType::RAW | LinkType::RAW_12 | LinkType::RAW_14 => ip(link, rest, Layer::Ipv4),
        LinkType::IPV4 => ipv4(link, rest),
        LinkType::IPV6 => ipv6(link, rest),
        LinkType::NULL | LinkType::LOOP => {
            let Some(&family) = rest.octets.first_chunk() else {
                return Err(rest.truncated(Layer::Link, 4));
            };
            // NULL is in the order of the machine that wrote it, which the file does not tell for sure.
            let family = u32::from_be_bytes(family).min(u32::from_le_bytes(family));
            match family {
                2 => ipv4(link, rest.after(4)),
                // AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, macOS.
                10 | 24 | 28 | 30 => ipv6(link, rest.after(4)),
                other => Err(WireError::NotIp {
                    ether_type: other as u16,
                }),
            }
        }
        LinkType::LINUX_SLL => match rest.octets.first_chunk::<16>() {
            Some(&[.., a, b]) => by_ether_type(link, rest.after(16), u16::from_be_bytes([a, b])),
            None => Err(rest.truncated(Layer::Link, 16)),
        },
        LinkType::LINUX_SLL2 => match rest.octets.first_chunk::<20>() {
            Some(&[a, b, ..]) => by_ether_type(link, rest.after(20), u16::from_be_bytes([a, b])),
            None => Err(rest.truncated(Layer::Link, 20)),
        },
        LinkType::PPP => match rest.octets.first_chunk() {
            // Address and control fields of HDLC framing; they may be left out.
            Some(&[0xff, 0x03]) => ppp(link, rest.after(2)),
            // Cisco's framing under the same link type.
            Some(&[0x0f | 0x8f, _]) => hdlc(link, rest),
            _ => ppp(link, rest),
        },
        LinkType::C_HDLC => hdlc(link, rest),
        LinkType::PPP_ETHER => pppoe(link, rest),
        other => Err(WireError::UnsupportedLinkType(other)),
    }
}

fn hdlc<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    match rest.octets.first_chunk() {
        Some(&[_, _, a, b]) => by_ether_type(link, rest.after(4), u16::from_be_bytes([a, b])),
        None => Err(rest.truncated(Layer::Link, 4)),
    }
}
