//! The frames that nearly all traffic is made of, by a walk of their own.

use super::{Ethernet, Ip, Ipv4, Ipv6, Tcp, Transport, Udp, ether_type, protocol};
use crate::{Frame, LinkType};

/// The headers of a plain frame: Ethernet without a tag in the octets, IP without options, extension headers or fragments, TCP or UDP
/// whose header was kept.
///
/// Says of such a frame what [`Headers`](super::Headers) says, and of any other nothing; nor of one that says to have had more than 2^30 octets
/// beside its packet's, or whose TCP header says to be shorter than one is, or longer than the packet. It is small enough for registers: nothing of
/// it is written to memory and read back, which is why metering tries it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain<'f> {
    /// The Ethernet header.
    pub ethernet: Ethernet<'f>,
    /// The IP header.
    pub ip: Ip<'f>,
    /// The protocol: TCP or UDP.
    pub protocol: u8,
    /// Length of the IP packet with its header. Unit: octets.
    pub ip_octets: u32,
    /// The TCP or UDP header.
    pub transport: Transport<'f>,
    /// Length of the payload of TCP or UDP, as on the wire. Unit: octets.
    pub payload_octets: u32,
}

/// What is done with [`Plain`] headers.
///
/// Not a closure, since of those nobody can demand that they are inlined.
pub trait PlainVisitor<'f> {
    /// What comes of it.
    type Output;

    /// Does it.
    fn visit(self, plain: Plain<'f>) -> Self::Output;
}

/// Hands them out.
struct Itself;

impl<'f> PlainVisitor<'f> for Itself {
    type Output = Plain<'f>;

    #[inline(always)]
    fn visit(self, plain: Plain<'f>) -> Plain<'f> {
        plain
    }
}

impl<'f> Plain<'f> {
    /// The headers of `frame`, if it is a plain one.
    #[inline(always)]
    pub fn of(frame: &Frame<'f>) -> Option<Self> {
        Self::show(frame, Itself)
    }

    /// As [`of`](Self::of), and shows them to `visitor`: for each kind of headers by a call of its own, so that, where that is inlined, no
    /// kind is asked for that is known already.
    #[inline(always)]
    pub fn show<V: PlainVisitor<'f>>(frame: &Frame<'f>, visitor: V) -> Option<V::Output> {
        let octets = frame.octets();
        // Of fewer octets none is plain; asked first, so that only what is longer has to be asked for again.
        if frame.meta().link_type != LinkType::ETHERNET || octets.len() < SHORTEST {
            return None;
        }
        let (head, rest) = octets.split_first_chunk()?;
        let ethernet = Ethernet(head);
        match ethernet.ether_type() {
            ether_type::IPV4 => {
                let (head, body) = rest.split_first_chunk()?;
                let ip = Ipv4(head);
                let octets = u32::from(ip.total_length());
                if head[0] != 0x45 || ip.flags_and_offset() & 0x3fff != 0 || !fits(octets, frame) {
                    return None;
                }
                let headers = (ethernet, Ip::V4(ip), octets);
                match ip.protocol() {
                    protocol::TCP => Some(visitor.visit(Self::tcp(headers, body, 20)?)),
                    protocol::UDP => Some(visitor.visit(Self::udp(headers, body, 20)?)),
                    _ => None,
                }
            }
            ether_type::IPV6 => {
                let (head, body) = rest.split_first_chunk()?;
                let ip = Ipv6(head);
                // A super-frame says 0, so its headers do not fit.
                let octets = u32::from(ip.payload_length()) + 40;
                if ip.version() != 6 || !fits(octets, frame) {
                    return None;
                }
                let headers = (ethernet, Ip::V6(ip), octets);
                match ip.next_header() {
                    protocol::TCP => Some(visitor.visit(Self::tcp(headers, body, 40)?)),
                    protocol::UDP => Some(visitor.visit(Self::udp(headers, body, 40)?)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Behind an IP header of `ip_head` octets.
    #[inline(always)]
    fn tcp(
        (ethernet, ip, ip_octets): (Ethernet<'f>, Ip<'f>, u32),
        body: &'f [u8],
        ip_head: u32,
    ) -> Option<Self> {
        let head = body.first_chunk()?;
        let tcp = Tcp(head);
        let header = u32::from(head[12] >> 2 & 0x3c);
        // One that says less than there is of it is malformed, which is left to the other walk.
        if header < 20 || ip_octets < ip_head + header {
            return None;
        }
        Some(Self {
            ethernet,
            ip,
            protocol: protocol::TCP,
            ip_octets,
            transport: Transport::Tcp(tcp),
            payload_octets: ip_octets - (ip_head + header),
        })
    }

    /// Behind an IP header of `ip_head` octets.
    #[inline(always)]
    fn udp(
        (ethernet, ip, ip_octets): (Ethernet<'f>, Ip<'f>, u32),
        body: &'f [u8],
        ip_head: u32,
    ) -> Option<Self> {
        if ip_octets < ip_head + 8 {
            return None;
        }
        let body_octets = ip_octets - ip_head;
        let udp = Udp(body.first_chunk()?);
        let length = match u32::from(udp.length()) {
            0 => body_octets,
            length => length.min(body_octets),
        };
        Some(Self {
            ethernet,
            ip,
            protocol: protocol::UDP,
            ip_octets,
            transport: Transport::Udp(udp),
            payload_octets: length.saturating_sub(8),
        })
    }
}

/// Octets of the shortest plain frame: Ethernet, IPv4, UDP.
const SHORTEST: usize = 14 + 20 + 8;
/// The most octets that a plain frame has on the wire beside its packet's; none has near as many, but a file may say so.
const MOST_BESIDE: u32 = 1 << 30;

/// Whether a packet of so many octets fits into an Ethernet frame, which is not absurdly long: all in one question, as what is missing comes to
/// more than there ever is.
#[inline(always)]
fn fits(octets: u32, frame: &Frame<'_>) -> bool {
    frame.wire_len().wrapping_sub(14 + octets) <= MOST_BESIDE
}
