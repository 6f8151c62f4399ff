//! Which connection the later fragments of a packet belong to: those have no ports.

use std::time::Duration;

use nvcapture::wire::Fragment;

use crate::clock::Clock;
use crate::{Direction, FlowKey, KeyHasher};

/// Packets remembered; a new one takes the place of one whose hash is equal modulo this.
const PLACES: usize = 1024;
/// How long later fragments of a packet are waited for: as long as Linux does (`ipfrag_time`).
const WAIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Packet {
    identification: u32,
    /// The tick of the last fragment seen.
    last: u64,
    /// What the first fragment told.
    key: FlowKey,
    direction: Direction,
}

/// The packets whose first fragment was seen lately.
#[derive(Debug)]
pub(crate) struct Fragments {
    packets: Vec<Option<Packet>>,
    wait: u64,
}

impl Fragments {
    pub(crate) fn new() -> Self {
        Self {
            packets: vec![None; PLACES],
            wait: Clock::ticks(WAIT).into(),
        }
    }

    /// The key and direction of the packet that `fragment` is of, whose own are `key` and `direction`; `None` for a later fragment of
    /// a packet whose first was not seen.
    #[cold]
    pub(crate) fn resolve(
        &mut self,
        hasher: &KeyHasher,
        fragment: Fragment,
        (key, direction): (FlowKey, Direction),
        now: u64,
    ) -> Option<(FlowKey, Direction)> {
        let shared = key.without_ports();
        let mut identity = shared;
        // Where the ports and ICMP's type are in a whole key.
        identity.rest[0] |= u64::from(fragment.identification) << 32;
        identity.rest[1] |= (key.way(direction) as u64) << 36;
        let place = &mut self.packets[hasher.hash(&identity) as usize % PLACES];
        if fragment.offset == 0 {
            *place = Some(Packet {
                identification: fragment.identification,
                last: now,
                key,
                direction,
            });
            return Some((key, direction));
        }
        let packet = place.as_mut().filter(|packet| {
            packet.identification == fragment.identification
                && packet.key.without_ports() == shared
                && packet.key.way(packet.direction) == key.way(direction)
                && now.saturating_sub(packet.last) <= self.wait
        })?;
        packet.last = now;
        Some((packet.key, packet.direction))
    }
}
