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

impl<'f> Plain<'f> {
    /// The headers of `frame`, if it is a plain one.
    #[inline(always)]
    pub fn of(frame: &Frame<'f>) -> Option<Self> {
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
                Self::carrying(
                    ethernet,
                    Ip::V4(ip),
                    ip.protocol(),
                    octets,
                    body,
                    body_octets,
                )
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
                Self::carrying(
                    ethernet,
                    Ip::V6(ip),
                    ip.next_header(),
                    octets,
                    body,
                    body_octets,
                )
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn carrying(
        ethernet: Ethernet<'f>,
        ip: Ip<'f>,
        protocol: u8,
        ip_octets: u32,
        body: &'f [u8],
        body_octets: u32,
    ) -> Option<Self> {
        let (transport, payload_octets) = match protocol {
            protocol::TCP if body_octets >= 20 => {
                let tcp = Tcp(body.first_chunk()?);
                let header = tcp.header_octets().max(20) as u32;
                (Transport::Tcp(tcp), body_octets.saturating_sub(header))
            }
            protocol::UDP if body_octets >= 8 => {
                let udp = Udp(body.first_chunk()?);
                let length = match u32::from(udp.length()) {
                    0 => body_octets,
                    length => length.min(body_octets),
                };
                (Transport::Udp(udp), length.saturating_sub(8))
            }
            _ => return None,
        };
        Some(Self {
            ethernet,
            ip,
            protocol,
            ip_octets,
            transport,
            payload_octets,
        })
    }
}
