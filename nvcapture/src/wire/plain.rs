//! The frames that nearly all traffic is made of, by a walk of their own.

use super::{Ethernet, Ip, Ipv4, Ipv6, Tcp, Transport, Udp, ether_type, protocol};
use crate::{Frame, LinkType};

/// The headers of a plain frame: Ethernet without a tag in the octets, IP without options, extension headers or fragments, TCP or UDP
/// whose header was kept.
///
/// Says of such a frame what [`Headers`](super::Headers) says, and of any other nothing. It is small enough for registers: nothing of it
/// is written to memory and read back, which is why metering tries it first.
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
        if frame.meta().link_type != LinkType::ETHERNET {
            return None;
        }
        let (head, rest) = frame.octets().split_first_chunk()?;
        let ethernet = Ethernet(head);
        let on_wire = frame.wire_len().saturating_sub(14);
        match ethernet.ether_type() {
            ether_type::IPV4 => {
                let (head, body) = rest.split_first_chunk()?;
                let ip = Ipv4(head);
                let octets = u32::from(ip.total_length());
                if head[0] != 0x45 || ip.flags_and_offset() & 0x3fff != 0 || octets > on_wire {
                    return None;
                }
                let body_octets = octets.checked_sub(20)?;
                let headers = (ethernet, Ip::V4(ip), octets);
                match ip.protocol() {
                    protocol::TCP => Some(visitor.visit(Self::tcp(headers, body, body_octets)?)),
                    protocol::UDP => Some(visitor.visit(Self::udp(headers, body, body_octets)?)),
                    _ => None,
                }
            }
            ether_type::IPV6 => {
                let (head, body) = rest.split_first_chunk()?;
                let ip = Ipv6(head);
                let body_octets = u32::from(ip.payload_length());
                let octets = body_octets + 40;
                // A super-frame says 0, so its headers do not fit either.
                if ip.version() != 6 || octets > on_wire {
                    return None;
                }
                let headers = (ethernet, Ip::V6(ip), octets);
                match ip.next_header() {
                    protocol::TCP => Some(visitor.visit(Self::tcp(headers, body, body_octets)?)),
                    protocol::UDP => Some(visitor.visit(Self::udp(headers, body, body_octets)?)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn tcp(
        (ethernet, ip, ip_octets): (Ethernet<'f>, Ip<'f>, u32),
        body: &'f [u8],
        body_octets: u32,
    ) -> Option<Self> {
        if body_octets < 20 {
            return None;
        }
        let tcp = Tcp(body.first_chunk()?);
        let header = tcp.header_octets().max(20) as u32;
        Some(Self {
            ethernet,
            ip,
            protocol: protocol::TCP,
            ip_octets,
            transport: Transport::Tcp(tcp),
            payload_octets: body_octets.saturating_sub(header),
        })
    }

    #[inline(always)]
    fn udp(
        (ethernet, ip, ip_octets): (Ethernet<'f>, Ip<'f>, u32),
        body: &'f [u8],
        body_octets: u32,
    ) -> Option<Self> {
        if body_octets < 8 {
            return None;
        }
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
