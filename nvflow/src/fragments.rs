//! Which connection the later fragments of a packet belong to: those have no ports.

use std::time::Duration;

use nvcapture::wire::Fragment;

use crate::clock::Clock;
use crate::key::flag;
use crate::{Direction, FlowKey, KeyHasher};

/// Where a packet may be remembered is told by its hash: in any place of one of so many sets.
const SETS: usize = 128;
/// Places of a set, the one used last first; a packet more takes that of the one whose last fragment is longest ago.
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
        if identity.is_ipv6() {
            // Only the first fragment tells what is behind all extension headers: RFC 8200, section 4.5.
            identity = identity.without_protocol();
        }
        // Where the ports and ICMP's type are in a whole key.
        identity.rest[0] |= u64::from(fragment.identification) << 32;
        identity.rest[1] |= (key.way(direction) as u64) << flag::TYPE_CODE;
        // So that there is a last word.
        identity.rest[0] |= flag::ICMP;
        let set = &mut self.sets[hasher.hash(&identity) as usize % SETS];
        let known = set
            .iter()
            .position(|place| place.is_some_and(|packet| packet.identity == identity));
        if fragment.offset == 0 {
            set[..=known.unwrap_or(WAYS - 1)].rotate_right(1);
            set[0] = Some(Packet {
                identity,
                last: now,
                key,
                direction,
            });
            return Some((key, direction));
        }
        set[..=known?].rotate_right(1);
        let packet = set[0]
            .as_mut()
            .filter(|packet| now.saturating_sub(packet.last) <= self.wait)?;
        packet.last = now;
        Some((packet.key, packet.direction))
    }
}

#[cfg(test)]
mod tests {
    use nvcapture::wire::Headers;
    use nvcapture::{Frame, FrameMeta, Timestamp};

    use super::*;

    /// Resolves a fragment of the UDP packet `id`: its first one, with a source port, or a later one. Gives the port of its connection.
    fn port(fragments: &mut Fragments, id: u16, first: Option<u16>, now: u64) -> Option<u16> {
        let mut octets = [0; 42];
        octets[12..15].copy_from_slice(&[8, 0, 0x45]);
        octets[17] = 28;
        octets[18..20].copy_from_slice(&id.to_be_bytes());
        octets[20..22].copy_from_slice(if first.is_some() { &[0x20, 0] } else { &[0, 1] });
        octets[23] = 17;
        octets[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        octets[34..36].copy_from_slice(&first.unwrap_or(0).to_be_bytes());
        octets[39] = 8;
        let frame = Frame::new(&octets, FrameMeta::ethernet(Timestamp::ZERO, 42));
        let headers = Headers::parse(&frame).expect("a fragment");
        let own = FlowKey::of(&headers, None, false);
        let fragment = headers.fragment.expect("a fragment");
        let (key, _) = fragments.resolve(&KeyHasher::new([1, 2]), fragment, own, now)?;
        Some(key.ends().0.port)
    }

    #[test]
    fn a_full_set_forgets_the_packet_that_is_longest_ago() {
        let set_of = |id| {
            let mut fragments = Fragments::new();
            port(&mut fragments, id, Some(1), 0);
            fragments.sets.iter().position(|set| set[0].is_some())
        };
        let set = set_of(0);
        // One more than have a place.
        let same: Vec<u16> = (0..=u16::MAX)
            .filter(|&id| set_of(id) == set)
            .take(WAYS + 1)
            .collect();
        let mut fragments = Fragments::new();
        // All at one tick: it is the order that tells which is longest ago. A later fragment makes the first packet the last one used.
        for (number, &id) in same[..WAYS].iter().enumerate() {
            let source = 100 + number as u16;
            assert_eq!(port(&mut fragments, id, Some(source), 5), Some(source));
        }
        assert_eq!(port(&mut fragments, same[0], None, 5), Some(100));
        assert_eq!(
            port(&mut fragments, same[WAYS], Some(100 + WAYS as u16), 5),
            Some(108)
        );
        for (number, &id) in same.iter().enumerate() {
            let known = (number != 1).then_some(100 + number as u16);
            assert_eq!(port(&mut fragments, id, None, 5), known, "packet {number}");
        }
    }

    #[test]
    fn later_fragments_are_waited_for_and_an_identification_is_used_again() {
        let mut fragments = Fragments::new();
        let wait = fragments.wait;
        assert_eq!(port(&mut fragments, 7, None, 0), None, "nothing is known");
        port(&mut fragments, 7, Some(100), 0);
        assert_eq!(port(&mut fragments, 7, None, wait), Some(100));
        assert_eq!(
            port(&mut fragments, 7, None, 2 * wait),
            Some(100),
            "since the last one"
        );
        assert_eq!(
            port(&mut fragments, 7, None, 3 * wait + 1),
            None,
            "too late"
        );
        port(&mut fragments, 7, Some(200), 3 * wait + 2);
        assert_eq!(port(&mut fragments, 7, None, 3 * wait + 2), Some(200));
        assert_eq!(
            port(&mut fragments, 8, None, 3 * wait + 2),
            None,
            "another packet"
        );
    }
}
