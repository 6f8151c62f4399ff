//! What every source of frames hands out: the octets, lent, and what is known of them.

use std::fmt;
use std::num::NonZeroU16;
use std::time::{Duration, SystemTime};

/// A moment on the capture's clock: nanoseconds since the Unix epoch.
///
/// Comes with a frame (the kernel's receive time stamp, or the file's); nothing here reads a clock. A ring's frames are stamped by the system's
/// clock, so what asks for the time now takes `SystemTime::now()`:
///
/// ```
/// use std::time::SystemTime;
/// use nvcapture::Timestamp;
///
/// let now: Timestamp = SystemTime::now().into();
/// assert!(now > Timestamp::from_nanos(1_700_000_000_000_000_000));
/// assert_eq!(Timestamp::from(SystemTime::from(now)), now);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch.
    pub const ZERO: Self = Self(0);

    /// From nanoseconds since the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Microseconds since the Unix epoch, cut, as the IPFIX elements `flowStartMicroseconds` hold them here.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later, as clocks step back.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment `duration` later, or the last one that can be told.
    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// Before 1970 the Unix epoch; after July 2554 the last moment that can be told.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Self::ZERO.saturating_add(since),
            Err(_) => Self::ZERO,
        }
    }
}

/// Always exact: on Linux, a `SystemTime` tells nanoseconds of far more years.
impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        Self::UNIX_EPOCH + Duration::from_nanos(time.as_nanos())
    }
}

/// What a frame's first octets are: the `LINKTYPE_` number of pcap and pcapng.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback: 4 octets of address family in the writer's byte order.
    pub const NULL: Self = Self(0);
    /// Ethernet, from the destination address on.
    pub const ETHERNET: Self = Self(1);
    /// PPP, with or without HDLC framing.
    pub const PPP: Self = Self(9);
    /// IPv4 or IPv6 packets without a link header (`DLT_RAW` as OpenBSD and others number it).
    pub const RAW_12: Self = Self(12);
    /// IPv4 or IPv6 packets without a link header (`DLT_RAW` as BSD/OS numbers it).
    pub const RAW_14: Self = Self(14);
    /// PPPoE session packets.
    pub const PPP_ETHER: Self = Self(51);
    /// IPv4 or IPv6 packets without a link header.
    pub const RAW: Self = Self(101);
    /// Cisco HDLC.
    pub const C_HDLC: Self = Self(104);
    /// OpenBSD loopback: 4 octets of address family, most significant first.
    pub const LOOP: Self = Self(108);
    /// Linux cooked capture, version 1.
    pub const LINUX_SLL: Self = Self(113);
    /// IPv4 packets without a link header.
    pub const IPV4: Self = Self(228);
    /// IPv6 packets without a link header.
    pub const IPV6: Self = Self(229);
    /// Linux cooked capture, version 2.
    pub const LINUX_SLL2: Self = Self(276);
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NULL => "NULL",
            Self::ETHERNET => "ETHERNET",
            Self::PPP => "PPP",
            Self::RAW_12 | Self::RAW_14 | Self::RAW => "RAW",
            Self::PPP_ETHER => "PPP_ETHER",
            Self::C_HDLC => "C_HDLC",
            Self::LOOP => "LOOP",
            Self::LINUX_SLL => "LINUX_SLL",
            Self::IPV4 => "IPV4",
            Self::IPV6 => "IPV6",
            Self::LINUX_SLL2 => "LINUX_SLL2",
            Self(other) => return write!(f, "LINKTYPE {other}"),
        };
        f.write_str(name)
    }
}

/// An 802.1Q tag that the kernel took out of the frame and tells beside it.
///
/// Source: `tp_vlan_tci` and `tp_vlan_tpid` of `struct tpacket_hdr_variant1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// Tag protocol identifier: 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Tag control information: priority, drop-eligible bit and VLAN identifier.
    pub tci: u16,
}

impl VlanTag {
    /// The VLAN identifier, 0 to 4095.
    pub const fn vlan_id(self) -> u16 {
        self.tci & 0x0fff
    }
}

/// Whom a frame was for, as the kernel saw it at the interface it was read from.
///
/// Source: `sll_pkttype` of `struct sockaddr_ll`, include/uapi/linux/if_packet.h; in pcapng files direction and reception type of `epb_flags`,
/// which [`CaptureWriter`](crate::CaptureWriter) writes and [`CaptureFile`](crate::CaptureFile) reads so that each is itself again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketType {
    /// For this interface's own address.
    Host,
    /// For the broadcast address.
    Broadcast,
    /// For a multicast address.
    Multicast,
    /// For somebody else; seen because the interface listens to all, or was handed it by a mirror.
    OtherHost,
    /// Sent by this host through this interface.
    Outgoing,
    /// Came in through this interface; for whom is not told. Files say so, the kernel never does.
    ///
    /// Source: `epb_flags` of pcapng, direction inbound with reception type "not specified".
    Inbound,
}

impl PacketType {
    /// All of them, by their place in the enumeration.
    pub(crate) const ALL: [Self; 6] = [
        Self::Host,
        Self::Broadcast,
        Self::Multicast,
        Self::OtherHost,
        Self::Outgoing,
        Self::Inbound,
    ];
}

/// What the source says of the packets that a frame stands for.
///
/// Offloads let a host hand many packets of one connection around as one frame, a super-frame: the sender's before it is cut (TSO, UDP
/// segmentation), the receiver's after it was put together (GRO). [`wire::Segments`](crate::wire::Segments) makes the number of packets of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentSize {
    /// Nothing: files do not say it, nor do rings before Linux 6.2.
    #[default]
    Unknown,
    /// The frame is one packet.
    Whole,
    /// The frame is a super-frame: each of its packets but the last carries so many octets of TCP or UDP payload.
    ///
    /// Source: `gso_size` of `struct virtio_net_hdr`, include/uapi/linux/virtio_net.h.
    #[doc(alias = "gso_size")]
    Octets(NonZeroU16),
}

/// What the source knows of a frame beside its octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// When the frame was seen.
    pub timestamp: Timestamp,
    /// Octets the frame had on the wire, without FCS; more than were kept when a snap length cut it.
    pub wire_len: u32,
    /// What the first octets are.
    pub link_type: LinkType,
    /// The interface: its ifindex for a ring, its number in the file for pcapng, 0 for pcap.
    pub interface: u32,
    /// The outermost VLAN tag, when it is not in the octets but told beside them.
    pub vlan: Option<VlanTag>,
    /// Whom the frame was for; `None` where the source does not say (pcap, and pcapng without the direction).
    pub packet_type: Option<PacketType>,
    /// The layer-4 checksum was left for the device to fill in (`TP_STATUS_CSUMNOTREADY`): it is wrong and that is fine.
    pub checksum_not_ready: bool,
    /// Whether it is one packet, or how those are cut that it stands for.
    pub segment_size: SegmentSize,
}

impl FrameMeta {
    /// What is known of an Ethernet frame of `wire_len` octets seen at `timestamp`, and no more.
    pub const fn ethernet(timestamp: Timestamp, wire_len: u32) -> Self {
        Self {
            timestamp,
            wire_len,
            link_type: LinkType::ETHERNET,
            interface: 0,
            vlan: None,
            packet_type: None,
            checksum_not_ready: false,
            segment_size: SegmentSize::Unknown,
        }
    }
}

/// One frame, lent by the block it lies in.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'b> {
    octets: &'b [u8],
    meta: FrameMeta,
}

impl<'b> Frame<'b> {
    /// A frame of `octets`, of which `meta` is known.
    pub const fn new(octets: &'b [u8], meta: FrameMeta) -> Self {
        Self { octets, meta }
    }

    /// The octets that were kept, from the link header on.
    pub const fn octets(&self) -> &'b [u8] {
        self.octets
    }

    /// All that is known beside the octets.
    pub const fn meta(&self) -> &FrameMeta {
        &self.meta
    }

    /// When the frame was seen.
    pub const fn timestamp(&self) -> Timestamp {
        self.meta.timestamp
    }

    /// Octets the frame had on the wire, without FCS; more than `octets().len()` when it was cut.
    ///
    /// Source: `tp_len` of `struct tpacket3_hdr`, or the file's original length.
    #[doc(alias = "tp_len")]
    pub const fn wire_len(&self) -> u32 {
        self.meta.wire_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_system_are_clamped_to_what_can_be_told() {
        let epoch = SystemTime::UNIX_EPOCH;
        let year = Duration::from_secs(365 * 86_400);
        for (time, nanos) in [
            (epoch - Duration::from_nanos(1), 0),
            (epoch - 100 * year, 0),
            (epoch, 0),
            (
                epoch + Duration::new(1_700_000_000, 7),
                1_700_000_000_000_000_007,
            ),
            (epoch + Duration::from_nanos(u64::MAX), u64::MAX),
            (
                epoch + Duration::from_nanos(u64::MAX) + Duration::from_nanos(1),
                u64::MAX,
            ),
            (epoch + 10_000 * year, u64::MAX),
        ] {
            assert_eq!(Timestamp::from(time).as_nanos(), nanos, "{time:?}");
        }
        for nanos in [0, 1, 1_700_000_000_000_000_007, u64::MAX] {
            let time = Timestamp::from_nanos(nanos);
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }
}
