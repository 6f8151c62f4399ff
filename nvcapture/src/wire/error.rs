//! Why the headers of a frame could not be read.

use std::fmt;

use crate::LinkType;

/// A protocol layer, as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layer {
    /// The link header: Ethernet, cooked capture, PPP, or the 4 octets of a loopback.
    Link,
    /// An 802.1Q, 802.1ad or like tag.
    Vlan,
    /// An MPLS label stack.
    Mpls,
    /// A PPPoE session header.
    Pppoe,
    /// An IPv4 header.
    Ipv4,
    /// An IPv6 header.
    Ipv6,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "link header",
            Self::Vlan => "VLAN tag",
            Self::Mpls => "MPLS label stack",
            Self::Pppoe => "PPPoE header",
            Self::Ipv4 => "IPv4 header",
            Self::Ipv6 => "IPv6 header",
        })
    }
}

/// Why a frame has no addresses to meter it by.
///
/// [`WireError::NotIp`] is an ordinary frame of another protocol (ARP, LLDP); the others are malformed, cut too short, or
/// of a link type that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The frame is whole and carries no IP packet.
    #[error("no IP packet inside, but EtherType {ether_type:#06x}")]
    NotIp {
        /// What it carries: an EtherType, an 802.3 length, or the number that stands in its place on other links.
        ether_type: u16,
    },
    /// The octets end before a header does.
    #[error("{layer} at octet {offset} needs {needed} octets, {have} are there")]
    Truncated {
        /// Whose header it is.
        layer: Layer,
        /// Where the header begins, in octets from the start of the frame.
        offset: usize,
        /// Octets the header needs.
        needed: usize,
        /// Octets that are there from `offset` on.
        have: usize,
    },
    /// A header contradicts itself.
    #[error("{layer} at octet {offset}: {field} is {value}")]
    Malformed {
        /// Whose header it is.
        layer: Layer,
        /// Where the header begins, in octets from the start of the frame.
        offset: usize,
        /// The field that cannot be so.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// Frames of this link type are not read.
    #[error("link type {0} is not read")]
    UnsupportedLinkType(LinkType),
}
