//! Which connection the later fragments of a packet belong to: those have no ports.

use std::time::Duration;

use nvcapture::wire::Fragment;

use crate::clock::Clock;
use crate::{Direction, FlowKey, KeyHasher};

/// Where a packet may be remembered is told by its hash: in any place of one of so many sets.
const SETS: usize = 128;
/// Places of a set; a packet more takes that of the one whose last fragment is longest ago.
const WAYS: usize = 8;
/// How long later fragments of a packet are waited for: as long as Linux does (`ipfrag_time`).
const WAIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Packet {
    /// What all its fragments have in common.
    identity: FlowKey,
    /// The tick of the last fragment seen.
    last: u64,
    /// What the first fragment told.
    key: FlowKey,
    direction: Direction,
}

/// The packets whose first fragment was seen lately.
#[derive(Debug)]
pub(crate) struct Fragments {
    sets: Vec<[Option<Packet>; WAYS]>,
    wait: u64,
}

impl Fragments {
    pub(crate) fn new() -> Self {
        Self {
            sets: vec![[None; WAYS]; SETS],
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
        let mut identity = key.without_ports();
        // Where the ports and ICMP's type are in a whole key.
        identity.rest[0] |= u64::from(fragment.identification) << 32;
        identity.rest[1] |= (key.way(direction) as u64) << 36;
        let set = &mut self.sets[hasher.hash(&identity) as usize % SETS];
        let known = set
            .iter()
            .position(|place| place.is_some_and(|packet| packet.identity == identity));
        if fragment.offset == 0 {
            let oldest = || (0..WAYS).min_by_key(|&way| set[way].map(|packet| packet.last));
            set[known.or_else(oldest).unwrap_or(0)] = Some(Packet {
                identity,
                last: now,
                key,
                direction,
            });
            return Some((key, direction));
        }
        let packet = set[known?]
            .as_mut()
            .filter(|packet| now.saturating_sub(packet.last) <= self.wait)?;
        packet.last = now;
        Some((packet.key, packet.direction))
    }
}
