//! Packets inside packets.

use std::net::IpAddr;

use super::link::{by_ether_type, ethernet, ppp};
use super::{Headers, Layer, Link, Rest, Transport, WireError, ip, ipv4, ipv6, protocol};

/// How a packet was carried inside another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TunnelKind {
    /// IPv4 or IPv6 in IP (RFC 2003, RFC 4213, RFC 2473).
    IpInIp,
    /// GRE (RFC 2784), also with ERSPAN or PPTP's PPP in it.
    Gre,
    /// VXLAN (RFC 7348), also with its generic protocol extension, and to the port that Linux used before there was one for it.
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve,
    /// GTP-U (3GPP TS 29.281).
    GtpU,
    /// Teredo (RFC 4380).
    Teredo,
}

/// The tunnel that a packet came out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// Its kind.
    pub kind: TunnelKind,
    /// The network identifier of VXLAN and Geneve, the key of GRE, the endpoint identifier of GTP-U.
    pub id: Option<u32>,
    /// The endpoint that wrapped the packet.
    pub source: IpAddr,
    /// The endpoint it was wrapped for.
    pub destination: IpAddr,
}

/// More tunnels than are nested in earnest; bounds the work on a packet that is made of them.
const MOST: usize = 8;

pub(super) fn innermost<'f>(outer: &Headers<'f>) -> Option<Headers<'f>> {
    let (kind, id, first) = inside(outer)?;
    let mut inner = first;
    for _ in 1..MOST {
        let Some((.., next)) = inside(&inner) else {
            break;
        };
        inner = next;
    }
    inner.tunnel = Some(Tunnel {
        kind,
        id,
        source: outer.ip.source(),
        destination: outer.ip.destination(),
    });
    Some(inner)
}

/// The packet inside `outer`, which keeps the frame's own link headers.
fn inside<'f>(outer: &Headers<'f>) -> Option<(TunnelKind, Option<u32>, Headers<'f>)> {
    if outer.fragment.is_some() {
        return None;
    }
    let link = Link {
        ethernet: outer.ethernet,
        vlan: outer.vlan,
        inner_vlan: outer.inner_vlan,
    };
    // Offsets are of no use behind a tunnel's header: its errors are dropped.
    let rest = Rest {
        octets: outer.payload,
        offset: 0,
        wire: outer.payload_octets,
    };
    let found = match (outer.protocol, outer.transport) {
        (protocol::IPV4, Transport::Other) => (TunnelKind::IpInIp, None, ipv4(link, rest).ok()?),
        (protocol::IPV6, Transport::Other) => (TunnelKind::IpInIp, None, ipv6(link, rest).ok()?),
        (protocol::GRE, Transport::Other) => gre(link, rest)?,
        (_, Transport::Udp(udp)) => match (udp.source_port(), udp.destination_port()) {
            (_, 4789) => vxlan(link, rest)?,
            (_, 4790) => vxlan_gpe(link, rest)?,
            (_, 8472) => vxlan_by_looks(link, rest)?,
            (_, 6081) => geneve(link, rest)?,
            (2152, _) | (_, 2152) => gtp_u(link, rest)?,
            (3544, _) | (_, 3544) => teredo(link, rest)?,
            _ => return None,
        },
        _ => return None,
    };
    Some(found)
}

/// A frame inside a tunnel: its own tags tell its VLANs, and where it has none the outermost frame's.
fn inner_ethernet<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    let untagged = Link {
        vlan: None,
        inner_vlan: None,
        ..link
    };
    let mut headers = ethernet(untagged, rest)?;
    if headers.vlan.is_none() {
        (headers.vlan, headers.inner_vlan) = (link.vlan, link.inner_vlan);
    }
    Ok(headers)
}

type Found<'f> = Option<(TunnelKind, Option<u32>, Headers<'f>)>;

fn gre<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let &[flags, version, a, b] = rest.octets.first_chunk()?;
    let ether_type = u16::from_be_bytes([a, b]);
    let has = |flag: u8| flags & flag != 0;
    let (checksum, routing, key, sequence) = (has(0x80), has(0x40), has(0x20), has(0x10));
    if routing {
        return None;
    }
    let mut body = rest.after(4 + usize::from(checksum) * 4);
    let id = match (key, body.octets.first_chunk()) {
        (false, _) => None,
        (true, Some(&key)) => Some(u32::from_be_bytes(key)),
        (true, None) => return None,
    };
    body = body.after(usize::from(key) * 4 + usize::from(sequence) * 4);
    let headers = match (version & 0x07, ether_type) {
        // PPTP (RFC 2637): an acknowledgment number may follow; a packet may be one alone.
        (1, 0x880b) => {
            let body = body.after(usize::from(version & 0x80 != 0) * 4);
            let framed = body.octets.starts_with(&[0xff, 0x03]);
            ppp(link, body.after(usize::from(framed) * 2)).ok()?
        }
        (0, 0x6558) => inner_ethernet(link, body).ok()?,
        // ERSPAN: type I has no header of its own and no sequence number, type II has 8 octets.
        (0, 0x88be) => inner_ethernet(link, body.after(usize::from(sequence) * 8)).ok()?,
        // Type III: 12 octets, and 8 more when its last bit says so.
        (0, 0x22eb) => {
            let &[.., last] = body.octets.first_chunk::<12>()?;
            inner_ethernet(link, body.after(12 + usize::from(last & 1) * 8)).ok()?
        }
        (0, other) => by_ether_type(link, body, other).ok()?,
        _ => return None,
    };
    Some((TunnelKind::Gre, id, headers))
}

fn vxlan<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let &[flags, _, _, _, a, b, c, _] = rest.octets.first_chunk()?;
    if flags & 0x08 == 0 {
        return None;
    }
    Some((
        TunnelKind::Vxlan,
        Some(u32::from_be_bytes([0, a, b, c])),
        inner_ethernet(link, rest.after(8)).ok()?,
    ))
}

/// VXLAN to UDP port 8472: Linux's port when none is given (drivers/net/vxlan), as Flannel and Cilium leave it.
///
/// The port is registered for OTV, whose header looks alike but for an overlay's number in bits that VXLAN reserves, and anybody may send
/// from it: so all that is fixed must be as RFC 7348 wants it, and what is inside must come from one station.
fn vxlan_by_looks<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let &[0x08, 0, 0, 0, _, _, _, 0] = rest.octets.first_chunk()? else {
        return None;
    };
    let &[.., from, _, _, _, _, _, _, _] = rest.octets.first_chunk::<22>()?;
    // The group bit of the inner source address.
    if from & 1 != 0 {
        return None;
    }
    vxlan(link, rest)
}

/// VXLAN with a field for what it carries (draft-ietf-nvo3-vxlan-gpe).
fn vxlan_gpe<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let &[flags, _, _, next, a, b, c, _] = rest.octets.first_chunk()?;
    // Version 0, with a network identifier and a next protocol.
    if flags & 0x3c != 0x0c {
        return None;
    }
    let body = rest.after(8);
    let headers = match next {
        1 => ipv4(link, body).ok()?,
        2 => ipv6(link, body).ok()?,
        3 => inner_ethernet(link, body).ok()?,
        _ => return None,
    };
    Some((
        TunnelKind::Vxlan,
        Some(u32::from_be_bytes([0, a, b, c])),
        headers,
    ))
}

fn geneve<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let &[options, _, x, y, a, b, c, _] = rest.octets.first_chunk()?;
    if options >> 6 != 0 {
        return None;
    }
    let body = rest.after(8 + usize::from(options & 0x3f) * 4);
    let headers = match u16::from_be_bytes([x, y]) {
        0x6558 => inner_ethernet(link, body).ok()?,
        other => by_ether_type(link, body, other).ok()?,
    };
    Some((
        TunnelKind::Geneve,
        Some(u32::from_be_bytes([0, a, b, c])),
        headers,
    ))
}

fn gtp_u<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let &[flags, message, _, _, a, b, c, d] = rest.octets.first_chunk()?;
    // Version 1, protocol GTP, message G-PDU.
    if flags & 0xf0 != 0x30 || message != 0xff {
        return None;
    }
    let mut body = rest.after(8);
    if flags & 0x07 != 0 {
        let &[_, _, _, mut next] = body.octets.first_chunk()?;
        body = body.after(4);
        // Extension headers, in words of 4 octets, the last octet announcing the next.
        for _ in 0..MOST {
            if next == 0 {
                break;
            }
            let words = usize::from(*body.octets.first()?);
            if words == 0 {
                return None;
            }
            next = *body.octets.get(words * 4 - 1)?;
            body = body.after(words * 4);
        }
    }
    Some((
        TunnelKind::GtpU,
        Some(u32::from_be_bytes([a, b, c, d])),
        ip(link, body, Layer::Ipv4).ok()?,
    ))
}

fn teredo<'f>(link: Link<'f>, rest: Rest<'f>) -> Found<'f> {
    let mut body = rest;
    if let Some(&[0x00, 0x01, id, auth]) = body.octets.first_chunk() {
        body = body.after(13 + usize::from(id) + usize::from(auth));
    }
    if let Some(&[0x00, 0x00]) = body.octets.first_chunk() {
        body = body.after(8);
    }
    Some((TunnelKind::Teredo, None, ipv6(link, body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, FrameMeta, Timestamp};

    /// Ethernet, IPv4 and UDP to `port` around `payload`.
    fn to_port(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![2; 12];
        octets.extend([8, 0, 0x45, 0]);
        octets.extend((28 + payload.len() as u16).to_be_bytes());
        octets.extend([
            0,
            0,
            0,
            0,
            64,
            protocol::UDP,
            0,
            0,
            10,
            0,
            0,
            1,
            10,
            0,
            0,
            2,
        ]);
        octets.extend(50_000_u16.to_be_bytes());
        octets.extend(port.to_be_bytes());
        octets.extend((8 + payload.len() as u16).to_be_bytes());
        octets.extend([0, 0]);
        octets.extend(payload);
        octets
    }

    /// Kind and id of the tunnel, and the port inside.
    fn inside_of(octets: &[u8]) -> Option<(TunnelKind, Option<u32>, u16)> {
        let meta = FrameMeta::ethernet(Timestamp::ZERO, octets.len() as u32);
        let inner = Headers::parse(&Frame::new(octets, meta))
            .expect("headers")
            .decapsulate()?;
        let tunnel = inner.tunnel.expect("a tunnel");
        Some((tunnel.kind, tunnel.id, inner.destination_port()))
    }

    #[test]
    fn vxlan_to_linuxs_port_is_known_by_its_looks() {
        let inner = to_port(53, b"abc");
        let header = [0x08, 0, 0, 0, 0, 0, 42, 0];
        let whole = [&header[..], &inner].concat();
        let expected = Some((TunnelKind::Vxlan, Some(42), 53));
        assert_eq!(inside_of(&to_port(8472, &whole)), expected);
        assert_eq!(inside_of(&to_port(4789, &whole)), expected);
        // Any other bit of the fixed ones, such as OTV's overlay; to the port of VXLAN itself they are ignored, as RFC 7348 says.
        for bit in (0..32).chain(56..64) {
            let mut other = whole.clone();
            other[bit / 8] ^= 0x80 >> (bit % 8);
            assert_eq!(inside_of(&to_port(8472, &other)), None, "bit {bit}");
            let has_id = bit != 4;
            assert_eq!(inside_of(&to_port(4789, &other)).is_some(), has_id);
        }
        // A group sends nothing, other traffic has no IP there, and some is too short.
        let mut group = whole.clone();
        group[8 + 6] |= 1;
        assert_eq!(inside_of(&to_port(8472, &group)), None);
        let mut other = whole.clone();
        other[8 + 12] = 9;
        assert_eq!(inside_of(&to_port(8472, &other)), None);
        for end in 0..8 + 14 + 20 {
            assert_eq!(inside_of(&to_port(8472, &whole[..end])), None, "{end}");
        }
        // A client that happens to send from the port.
        let mut answer = to_port(9999, &whole);
        answer[34..36].copy_from_slice(&8472_u16.to_be_bytes());
        assert_eq!(inside_of(&answer), None);
    }
}
