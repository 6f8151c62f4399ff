//! What a [`crate::Meter`] is told at the start.

use std::time::Duration;

use nvcapture::wire::Ethernet;

use crate::key::Observed;
use crate::{Identify, Timeouts};

/// The marker address' first four octets: "NeuV". The group bit is set where it stands for a group address.
const MARKER: [u8; 4] = [0x4e, 0x65, 0x75, 0x56];

/// Where the observation point's id comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observation {
    /// There is none.
    #[default]
    None,
    /// All frames are of this one.
    Fixed(u16),
    /// Frames carry it: a source address 4e:65:75:56:HH:LL on what leaves container HHLL, such a destination address on what enters it.
    Marker,
}

impl Observation {
    /// The observation point of a frame with this header, and whether its sender is inside.
    #[inline(always)]
    pub(crate) fn of(self, ethernet: Option<&Ethernet<'_>>) -> (Observed, Option<bool>) {
        match (self, ethernet) {
            (Self::Marker, Some(ethernet)) => marker(ethernet),
            (Self::Fixed(id), _) => (Observed::at(id), None),
            (Self::None, _) | (Self::Marker, None) => (Observed::NONE, None),
        }
    }
}

/// The bit of an address's first four octets that makes it one of a group.
const GROUP: u32 = u32::from_ne_bytes([1, 0, 0, 0]);

/// The observation point in a frame's addresses, and whether the sender is inside.
#[inline(always)]
fn marker(ethernet: &Ethernet<'_>) -> (Observed, Option<bool>) {
    for (address, sender_inside) in [(ethernet.source(), true), (ethernet.destination(), false)] {
        let [first @ .., high, low] = address;
        if u32::from_ne_bytes(first) & !GROUP == u32::from_ne_bytes(MARKER) {
            let id = u16::from_be_bytes([high, low]);
            return (Observed::at(id), Some(sender_inside));
        }
    }
    (Observed::NONE, None)
}

/// How to meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterConfig {
    /// Connections kept at the same time, at most. Their memory is reserved at the start and touched when first used; see
    /// [`crate::Meter::new`] for how much it is. Default: 131,072.
    pub max_connections: usize,
    /// When a connection's record is made.
    pub timeouts: Timeouts,
    /// Where the observation point's id comes from. Default: none.
    pub observation: Observation,
    /// Whether packets in tunnels are metered by the innermost packet, or by the outermost. Which tunnels, and by which UDP ports they are known:
    /// [`nvcapture::wire::Headers::decapsulate`]. Default: the outermost.
    pub decapsulate: bool,
    /// Whether equal addresses and ports on different VLANs are different connections; of two tags (QinQ) both count. Default: yes.
    pub vlan_in_key: bool,
    /// Whether to keep what [`crate::TcpRecord`] holds beside the state: round trips, retransmissions and so on. Costs 24 octets of
    /// memory for each TCP connection that loses something, and time for each segment. Default: yes.
    pub tcp_metrics: bool,
    /// Whether and how far to find out what connections speak, from the octets they begin with. Costs a look at the first packets of each
    /// connection, and memory for the names found; see [`Identify`]. Default: not at all, since it is the one thing that looks at payload.
    pub identify: Option<Identify>,
    /// A full table gives up a connection for a new one only if it has been idle for so long (half-open, ended and single-packet ones
    /// are given up at once); otherwise the new one's frame is refused. Default: 1 s.
    pub protect: Duration,
    /// Packets longer than this, where the source does not tell how they are cut, are counted as the packets of this length that an offload
    /// made one frame of; `None` to count each as one. See [`nvcapture::wire::Segments`]. Default: 1,500 octets, Ethernet's.
    pub mtu: Option<u32>,
    /// The key of the table's hash; `None` for one that the operating system chooses, which is right wherever others choose the frames.
    pub hash_key: Option<[u64; 2]>,
}

impl Default for MeterConfig {
    fn default() -> Self {
        Self {
            max_connections: 131_072,
            timeouts: Timeouts::default(),
            observation: Observation::None,
            decapsulate: false,
            vlan_in_key: true,
            tcp_metrics: true,
            identify: None,
            protect: Duration::from_secs(1),
            mtu: Some(1500),
            hash_key: None,
        }
    }
}
