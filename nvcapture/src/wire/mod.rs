//! The walk through a frame's headers, by views of fixed arrays: no copy, no allocation, no index that could be out of bounds.
//!
//! [`Headers::parse`] finds the outermost IP packet and what it carries. Frames may be cut by a snap length: lengths are taken from
//! the headers and from the length on the wire, so a cut frame gives the same numbers as a whole one as long as the headers are there.
//!
//! ```
//! use nvcapture::{Frame, FrameMeta, Timestamp, wire::{Headers, Transport}};
//!
//! let mut octets = vec![0; 14 + 28];
//! octets[12..14].copy_from_slice(&[0x08, 0x00]);                        // IPv4
//! octets[14..18].copy_from_slice(&[0x45, 0, 0, 28]);                    // 28 octets
//! octets[23] = 17;                                                      // UDP
//! octets[34..40].copy_from_slice(&[0x30, 0x39, 0, 53, 0, 8]);           // 12345 to 53
//! let frame = Frame::new(&octets, FrameMeta::ethernet(Timestamp::ZERO, 42));
//!
//! let headers = Headers::parse(&frame)?;
//! assert_eq!(headers.ip_octets, 28);
//! assert!(matches!(headers.transport, Transport::Udp(udp) if udp.destination_port() == 53));
//! # Ok::<(), nvcapture::wire::WireError>(())
//! ```

mod error;
mod ethernet;
mod icmp;
mod ipv4;
mod ipv6;
mod link;
mod plain;
mod segments;
mod tcp;
mod tunnel;
mod udp;

use std::net::IpAddr;

pub use error::{Layer, WireError};
pub use ethernet::Ethernet;
pub use icmp::Icmp;
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use plain::{Plain, PlainVisitor};
pub use segments::{SegmentSource, Segments};
pub use tcp::{Tcp, control};
pub use tunnel::{Tunnel, TunnelKind};
pub use udp::Udp;

use crate::{Frame, LinkType, VlanTag};

/// EtherTypes, as IEEE and IANA list them.
pub(crate) mod ether_type {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers, as IANA lists them.
pub mod protocol {
    /// Internet Control Message Protocol.
    pub const ICMP: u8 = 1;
    /// IPv4 inside IP.
    pub const IPV4: u8 = 4;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// IPv6 inside IP.
    pub const IPV6: u8 = 41;
    /// Generic Routing Encapsulation.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// The IP header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip<'f> {
    /// IPv4.
    V4(Ipv4<'f>),
    /// IPv6.
    V6(Ipv6<'f>),
}

impl Ip<'_> {
    /// The sender.
    #[inline]
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(ip) => IpAddr::V4(ip.source()),
            Self::V6(ip) => IpAddr::V6(ip.source()),
        }
    }

    /// The receiver.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(ip) => IpAddr::V4(ip.destination()),
            Self::V6(ip) => IpAddr::V6(ip.destination()),
        }
    }

    /// Hops left: time to live, or hop limit.
    #[inline]
    pub const fn time_to_live(&self) -> u8 {
        match self {
            Self::V4(ip) => ip.time_to_live(),
            Self::V6(ip) => ip.hop_limit(),
        }
    }

    /// The differentiated services code point, 0 to 63.
    #[inline]
    pub const fn dscp(&self) -> u8 {
        match self {
            Self::V4(ip) => ip.dscp(),
            Self::V6(ip) => ip.dscp(),
        }
    }
}

/// What tells the fragments of one packet from another's and where this one lies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What the fragments of one packet share: in IPv4 beside the addresses and the protocol (RFC 791, section 3.2), in IPv6 beside the
    /// addresses alone (RFC 8200, section 4.5).
    ///
    /// The [`protocol`](Headers::protocol) of a later IPv6 fragment is what its own fragment header says next, which is to be ignored: that of
    /// the first one counts.
    pub identification: u32,
    /// Where it begins in the packet's payload, in octets; 0 is the one with the ports.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

/// What follows the IP header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'f> {
    /// A TCP segment.
    Tcp(Tcp<'f>),
    /// A UDP datagram.
    Udp(Udp<'f>),
    /// An ICMP message (in IPv4), or an ICMPv6 one (in IPv6).
    Icmp(Icmp),
    /// TCP or UDP of which little more than the ports was kept; the protocol tells which.
    Ports {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        destination: u16,
    },
    /// Another protocol, a later fragment, or nothing that was kept.
    Other,
}

/// The headers of a frame, as far as they matter for metering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'f> {
    /// The outermost Ethernet header, where the link has one.
    pub ethernet: Option<Ethernet<'f>>,
    /// The outermost VLAN tag, from the octets or from beside them.
    pub vlan: Option<VlanTag>,
    /// The second VLAN tag.
    pub inner_vlan: Option<VlanTag>,
    /// The IP header.
    pub ip: Ip<'f>,
    /// The protocol that follows IP and the extension headers that were kept.
    pub protocol: u8,
    /// Length of the IP packet with its header, never more than there was on the wire; padding of the link is not in it.
    ///
    /// Unit: octets. Source: the IP header; the length on the wire where that says 0, as super-frames do.
    pub ip_octets: u32,
    /// There when the packet is a fragment.
    pub fragment: Option<Fragment>,
    /// What follows IP.
    pub transport: Transport<'f>,
    /// Length of the payload of TCP or UDP, else of all that follows IP; as on the wire, not as kept.
    ///
    /// Unit: octets.
    pub payload_octets: u32,
    /// The octets of that payload that were kept.
    pub payload: &'f [u8],
    /// The tunnel this packet came out of: the outermost, when there are several. Only from [`Headers::decapsulate`].
    pub tunnel: Option<Tunnel>,
}

impl<'f> Headers<'f> {
    /// Reads the headers of `frame` up to its outermost IP packet's transport header.
    ///
    /// What is cut off or odd behind the IP header is no error: such a packet is [`Transport::Other`] with right lengths.
    #[inline(always)]
    pub fn parse(frame: &Frame<'f>) -> Result<Self, WireError> {
        let octets = frame.octets();
        // A file may claim fewer octets on the wire than it holds.
        let kept = u32::try_from(octets.len()).unwrap_or(u32::MAX);
        let rest = Rest {
            octets,
            offset: 0,
            wire: frame.wire_len().max(kept),
        };
        let meta = frame.meta();
        let link = Link {
            ethernet: None,
            vlan: meta.vlan,
            inner_vlan: None,
        };
        if meta.link_type == LinkType::ETHERNET {
            link::ethernet_inline(link, rest)
        } else {
            link::other(link, rest, meta.link_type)
        }
    }

    /// The packet inside the innermost tunnel that can be read, with the outermost tunnel's endpoints; `None` when this is no tunnel's
    /// packet, or what it carries is not IP.
    ///
    /// Tunnels: IP in IP, 6in4, GRE (with ERSPAN and PPTP), and by their UDP ports VXLAN (to 4789; to 4790 with the generic protocol extension;
    /// to 8472, which Linux, Flannel and Cilium use, only if its header's fixed bits are all as they must be), Geneve (to 6081), GTP-U (2152),
    /// Teredo (3544).
    pub fn decapsulate(&self) -> Option<Self> {
        tunnel::innermost(self)
    }

    /// The sender's port; 0 where there is none.
    #[inline]
    pub const fn source_port(&self) -> u16 {
        match self.transport {
            Transport::Tcp(tcp) => tcp.source_port(),
            Transport::Udp(udp) => udp.source_port(),
            Transport::Ports { source, .. } => source,
            Transport::Icmp(_) | Transport::Other => 0,
        }
    }

    /// The receiver's port; 0 where there is none.
    #[inline]
    pub const fn destination_port(&self) -> u16 {
        match self.transport {
            Transport::Tcp(tcp) => tcp.destination_port(),
            Transport::Udp(udp) => udp.destination_port(),
            Transport::Ports { destination, .. } => destination,
            Transport::Icmp(_) | Transport::Other => 0,
        }
    }
}

/// What of the frame is still to be read.
#[derive(Clone, Copy, Debug)]
struct Rest<'f> {
    /// The octets kept.
    octets: &'f [u8],
    /// How far into the frame they begin.
    offset: usize,
    /// How many octets there were on the wire; never fewer than kept.
    wire: u32,
}

impl<'f> Rest<'f> {
    /// What follows the first `octets`, fewer of which may have been kept.
    #[inline(always)]
    fn after(self, octets: usize) -> Self {
        Self {
            octets: self.octets.get(octets..).unwrap_or_default(),
            offset: self.offset + octets,
            wire: self.wire.saturating_sub(octets as u32),
        }
    }

    /// The first `wire` octets of it.
    #[inline(always)]
    fn limit(self, wire: u32) -> Self {
        Self {
            octets: self.octets.get(..wire as usize).unwrap_or(self.octets),
            wire: self.wire.min(wire),
            ..self
        }
    }

    #[cold]
    fn truncated(self, layer: Layer, needed: usize) -> WireError {
        WireError::Truncated {
            layer,
            offset: self.offset,
            needed,
            have: self.octets.len(),
        }
    }

    #[cold]
    fn malformed(self, layer: Layer, field: &'static str, value: u32) -> WireError {
        WireError::Malformed {
            layer,
            offset: self.offset,
            field,
            value,
        }
    }
}

/// What the link's headers told.
#[derive(Clone, Copy, Debug)]
struct Link<'f> {
    ethernet: Option<Ethernet<'f>>,
    vlan: Option<VlanTag>,
    inner_vlan: Option<VlanTag>,
}

/// The two octets from `at` on as a number; 0 behind the end.
///
/// As one load, also where parts of it are asked for one by one: of two octets that are loaded apart no compiler makes one again.
#[inline(always)]
const fn word_at(octets: &[u8], at: usize) -> u16 {
    if let Some((_, rest)) = octets.split_at_checked(at)
        && let Some(word) = rest.first_chunk()
    {
        u16::from_be_bytes(*word)
    } else {
        0
    }
}

/// Reads the IP packet that `rest` begins with, whichever version it says.
fn ip<'f>(link: Link<'f>, rest: Rest<'f>, layer: Layer) -> Result<Headers<'f>, WireError> {
    let Some(&first) = rest.octets.first() else {
        return Err(rest.truncated(layer, 1));
    };
    match first >> 4 {
        4 => ipv4(link, rest),
        6 => ipv6(link, rest),
        version => Err(rest.malformed(layer, "IP version", version.into())),
    }
}

/// Reads an IPv4 packet, where speed does not matter.
fn ipv4<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    ipv4_inline(link, rest)
}

/// Reads an IPv4 packet, in the place of the call: headers that are returned in memory are read back wider than they were written, which
/// costs more than the walk itself.
#[inline(always)]
fn ipv4_inline<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    let Some(head) = rest.octets.first_chunk() else {
        return Err(rest.truncated(Layer::Ipv4, 20));
    };
    let ip = Ipv4(head);
    let header = ip.header_octets();
    if head[0] != 0x45 {
        if ip.version() != 4 {
            return Err(rest.malformed(Layer::Ipv4, "version", ip.version().into()));
        }
        if header < 20 {
            return Err(rest.malformed(Layer::Ipv4, "header length", header as u32));
        }
        if rest.wire < header as u32 {
            return Err(rest.truncated(Layer::Ipv4, header));
        }
    }
    let total = u32::from(ip.total_length());
    let ip_octets = if total == 0 {
        rest.wire
    } else {
        total.min(rest.wire)
    };
    if ip_octets < header as u32 {
        return Err(rest.malformed(Layer::Ipv4, "total length", total));
    }
    let body = rest.limit(ip_octets).after(header);
    let bits = ip.flags_and_offset();
    let fragment = (bits & 0x3fff != 0).then(|| Fragment {
        identification: ip.identification().into(),
        offset: (bits & 0x1fff) << 3,
        more: bits & 0x2000 != 0,
    });
    Ok(transport(
        link,
        Ip::V4(ip),
        ip.protocol(),
        ip_octets,
        fragment,
        body,
    ))
}

/// Reads an IPv6 packet, where speed does not matter.
fn ipv6<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    ipv6_inline(link, rest)
}

/// Reads an IPv6 packet, in the place of the call.
#[inline(always)]
fn ipv6_inline<'f>(link: Link<'f>, rest: Rest<'f>) -> Result<Headers<'f>, WireError> {
    let Some(head) = rest.octets.first_chunk() else {
        return Err(rest.truncated(Layer::Ipv6, 40));
    };
    let ip = Ipv6(head);
    if ip.version() != 6 {
        return Err(rest.malformed(Layer::Ipv6, "version", ip.version().into()));
    }
    let next = ip.next_header();
    let payload = u32::from(ip.payload_length());
    // Super-frames say 0, with a jumbo option or, since Linux 7.0, without; a packet that ends here says 59, no next header.
    let ip_octets = if payload == 0 && next != extension::NONE {
        rest.wire
    } else {
        (payload + 40).min(rest.wire)
    };
    let body = rest.limit(ip_octets).after(40);
    if extension::is_one(next) {
        let (next, fragment, body) = extension::skip(next, body);
        return Ok(transport(link, Ip::V6(ip), next, ip_octets, fragment, body));
    }
    Ok(transport(link, Ip::V6(ip), next, ip_octets, None, body))
}

/// IPv6 extension headers (RFC 8200, section 4; RFC 4302 for AH).
mod extension {
    use super::{Fragment, Rest};

    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    pub(super) const NONE: u8 = 59;
    const DESTINATION: u8 = 60;
    const HOST_IDENTITY: u8 = 139;
    const SHIM6: u8 = 140;

    /// More headers than any real packet has; bounds the walk over one that is made of them.
    const MOST: usize = 16;

    #[inline]
    pub(super) const fn is_one(next: u8) -> bool {
        matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | HOST_IDENTITY | SHIM6
        )
    }

    /// Steps over the extension headers; stops at one that was cut off, whose number then stands for the protocol.
    #[cold]
    pub(super) fn skip(mut next: u8, mut body: Rest<'_>) -> (u8, Option<Fragment>, Rest<'_>) {
        let mut fragment = None;
        for _ in 0..MOST {
            if !is_one(next) {
                break;
            }
            let Some(&[following, length, a, b, c, d, e, f]) = body.octets.first_chunk() else {
                break;
            };
            let octets = match next {
                FRAGMENT => {
                    let bits = u16::from_be_bytes([a, b]);
                    // Offset 0 and no more to come: an atomic fragment (RFC 6946), whole in itself.
                    if bits & 0xfff9 != 0 {
                        fragment = Some(Fragment {
                            identification: u32::from_be_bytes([c, d, e, f]),
                            offset: bits & 0xfff8,
                            more: bits & 1 != 0,
                        });
                    }
                    8
                }
                AUTHENTICATION => (usize::from(length) + 2) * 4,
                _ => (usize::from(length) + 1) * 8,
            };
            if body.wire < octets as u32 {
                break;
            }
            next = following;
            body = body.after(octets);
            if fragment.is_some_and(|fragment| fragment.offset != 0) {
                break;
            }
        }
        (next, fragment, body)
    }
}

#[inline(always)]
fn transport<'f>(
    link: Link<'f>,
    ip: Ip<'f>,
    protocol: u8,
    ip_octets: u32,
    fragment: Option<Fragment>,
    body: Rest<'f>,
) -> Headers<'f> {
    let (transport, header, payload_octets) = match (protocol, &ip) {
        _ if fragment.is_some_and(|fragment| fragment.offset != 0) => {
            (Transport::Other, 0, body.wire)
        }
        (protocol::TCP, _) => match body.octets.first_chunk() {
            Some(head) => {
                let tcp = Tcp(head);
                let header = tcp.header_octets().max(20);
                (
                    Transport::Tcp(tcp),
                    header,
                    body.wire.saturating_sub(header as u32),
                )
            }
            None => (ports(body), 20, body.wire.saturating_sub(20)),
        },
        (protocol::UDP, _) => match body.octets.first_chunk() {
            Some(head) => {
                let udp = Udp(head);
                let length = match u32::from(udp.length()) {
                    0 => body.wire,
                    length => length.min(body.wire),
                };
                (Transport::Udp(udp), 8, length.saturating_sub(8))
            }
            None => (ports(body), 8, body.wire.saturating_sub(8)),
        },
        (protocol::ICMP, Ip::V4(_)) | (protocol::ICMPV6, Ip::V6(_)) => (
            Icmp::read(body.octets).map_or(Transport::Other, Transport::Icmp),
            0,
            body.wire,
        ),
        _ => (Transport::Other, 0, body.wire),
    };
    let Link {
        ethernet,
        vlan,
        inner_vlan,
    } = link;
    let payload = body.after(header).limit(payload_octets).octets;
    Headers {
        ethernet,
        vlan,
        inner_vlan,
        ip,
        protocol,
        ip_octets,
        fragment,
        transport,
        payload_octets,
        payload,
        tunnel: None,
    }
}

/// The ports of a header that was cut off behind them.
#[cold]
fn ports<'f>(body: Rest<'_>) -> Transport<'f> {
    match body.octets.first_chunk() {
        Some(&[a, b, c, d]) => Transport::Ports {
            source: u16::from_be_bytes([a, b]),
            destination: u16::from_be_bytes([c, d]),
        },
        None => Transport::Other,
    }
}
