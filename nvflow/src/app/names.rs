//! Which names have which addresses, as responses of DNS tell those who asked; and by which name an address was known when a connection
//! to it began.
//!
//! A name holds at the observation point where it was heard, for connections that begin while it holds. An address that nobody asked for
//! there has none, and none is ever looked up.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nvcapture::Timestamp;

use super::LONGEST;
use super::dns::Message;
use super::identifier::Slots;
use crate::FlowRecord;

/// That a name has an address: a response of DNS said so to somebody who had asked for the name.
///
/// The name was chosen by whoever sent the frames: escape it before it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedName {
    /// Where the response was seen.
    pub observation_point: Option<u16>,
    /// The name that was asked for, in the notation of zone files (RFC 1035, section 5.1), but that UTF-8 stays.
    pub name: Arc<str>,
    /// An address that it has, itself or by way of aliases.
    pub address: IpAddr,
    /// For how long, by the shortest-lived record on the way to it.
    pub time_to_live: Duration,
    /// When the response was seen.
    pub at: Timestamp,
}

/// Queries of one connection that wait for their responses.
#[derive(Debug, Default)]
struct Waiting {
    /// The last ones: id, and a digest of what is asked for.
    queries: [Option<(u16, u32)>; Self::MOST],
    next: u8,
    /// The side that asks.
    side: u8,
    /// Datagrams since the last one of DNS.
    others: u8,
}

impl Waiting {
    /// A resolver that asks for many names from one port has about so many under way.
    const MOST: usize = 16;
    /// So many datagrams in a row that are none of DNS, and the connection is looked at no more.
    const OTHERS: u8 = 64;
}

/// Names that were learnt and may wait to be taken; the oldest give way.
const UNTAKEN: usize = 1_024;
/// The part of all names that one observation point knows, at most: what a single workload fills up is its own.
const SHARE: usize = 8;
/// Names of one address at one point, at most.
const OF_ADDRESS: usize = 4;
/// A name holds at least so long: who asked may keep it longer than it was told.
const LEAST: Duration = Duration::from_secs(60);
/// And at most so long.
const MOST: Duration = Duration::from_secs(86_400);

/// A name that an address had.
#[derive(Clone, Debug)]
struct Named {
    name: Arc<str>,
    from: Timestamp,
    until: Timestamp,
}

/// What one observation point has heard.
#[derive(Debug, Default)]
struct Point {
    names: HashMap<IpAddr, Vec<Named>>,
    /// In the order in which they came.
    order: VecDeque<IpAddr>,
}

impl Point {
    /// Forgets what it heard first.
    fn forget_one(&mut self) -> bool {
        let Some(address) = self.order.pop_front() else {
            return false;
        };
        if let Some(names) = self.names.get_mut(&address) {
            if names.len() > 1 {
                names.remove(0);
            } else {
                self.names.remove(&address);
            }
        }
        true
    }
}

/// Names that were heard, bounded.
#[derive(Debug, Default)]
struct Domains {
    /// All, at most.
    most: usize,
    points: HashMap<Option<u16>, Point>,
    count: usize,
}

impl Domains {
    /// Takes what a response told.
    fn learn(&mut self, told: &ResolvedName) {
        if self.most == 0 {
            return;
        }
        let holds = told.time_to_live.clamp(LEAST, MOST);
        let until = told.at.saturating_add(holds);
        let point = self.points.entry(told.observation_point).or_default();
        let names = point.names.entry(told.address).or_default();
        let now = Named {
            name: Arc::clone(&told.name),
            from: told.at,
            until,
        };
        match names.last_mut() {
            // The same again, as long as it held: it goes on.
            Some(last) if last.name == now.name && last.until >= now.from => {
                last.until = last.until.max(until);
                return;
            }
            _ => names.push(now),
        }
        point.order.push_back(told.address);
        self.count += 1;
        if names.len() > OF_ADDRESS {
            names.remove(0);
            if let Some(first) = point.order.iter().position(|one| *one == told.address) {
                point.order.remove(first);
            }
            self.count -= 1;
        }
        if point.order.len() > self.most.div_ceil(SHARE) && point.forget_one() {
            self.count -= 1;
        }
        if self.count > self.most {
            let largest = self
                .points
                .values_mut()
                .max_by_key(|point| point.order.len());
            if largest.is_some_and(Point::forget_one) {
                self.count -= 1;
            }
        }
    }

    /// The name by which `address` was known at an observation point when a connection began: the last one that held then.
    fn name(&self, point: Option<u16>, address: IpAddr, at: Timestamp) -> Option<&Arc<str>> {
        let names = self.points.get(&point)?.names.get(&address)?;
        let held = |named: &&Named| named.from <= at && at <= named.until;
        names.iter().rev().find(held).map(|named| &named.name)
    }

    /// Writes into a record by which names its ends were known.
    fn label(&self, record: &mut FlowRecord) {
        let (point, at) = (record.observation_point, record.flow_start);
        let name = |address| self.name(point, address, at).map(Arc::clone);
        record.labels.source_domain = name(record.source.address);
        record.labels.destination_domain = name(record.destination.address);
    }
}

/// Learns names, where that is asked for.
#[derive(Debug)]
pub(super) struct Learner {
    waiting: Slots<Waiting>,
    resolved: VecDeque<ResolvedName>,
    domains: Domains,
}

impl Learner {
    pub(super) fn new(most: usize) -> Self {
        Self {
            waiting: Slots::default(),
            resolved: VecDeque::new(),
            domains: Domains {
                most,
                ..Domains::default()
            },
        }
    }

    pub(super) const fn is_on(&self) -> bool {
        self.domains.most > 0
    }

    /// Takes a name that somebody else has learnt.
    pub(super) fn learn(&mut self, told: &ResolvedName) {
        self.domains.learn(told);
    }

    /// Writes into a record by which names its ends were known, or that there are none: it may be the one before, written over.
    #[inline]
    pub(super) fn label(&self, record: &mut FlowRecord) {
        self.domains.label(record);
    }

    /// Whether a connection is one of DNS of which more is to be learnt.
    pub(super) fn follows(&self, slot: u32) -> bool {
        self.waiting.contains_key(&slot)
    }

    /// Takes note of a datagram that was none of DNS: many in a row, and the connection is followed no more.
    pub(super) fn hears_other(&mut self, slot: u32) {
        if let Some(waiting) = self.waiting.get_mut(&slot) {
            waiting.others += 1;
            if waiting.others == Waiting::OTHERS {
                self.waiting.remove(&slot);
            }
        }
    }

    /// Takes a message that `side` of the connection in `slot` sent.
    pub(super) fn take(
        &mut self,
        (slot, side): (u32, usize),
        message: &Message,
        (observation_point, micros): (Option<u16>, u64),
    ) {
        let Some(name) = message.dns.query_name.as_deref() else {
            return;
        };
        let asked = (message.id, digest(name, message.kind));
        if !message.is_response {
            let waiting = self.waiting.entry(slot).or_default();
            waiting.others = 0;
            waiting.side = side as u8;
            waiting.queries[usize::from(waiting.next) % Waiting::MOST] = Some(asked);
            waiting.next = waiting.next.wrapping_add(1);
            return;
        }
        let Some(waiting) = self.waiting.get_mut(&slot) else {
            return;
        };
        waiting.others = 0;
        // What nobody asked for nobody believes.
        let Some(query) = waiting
            .queries
            .iter_mut()
            .find(|query| **query == Some(asked) && usize::from(waiting.side) != side)
        else {
            return;
        };
        *query = None;
        if message.resolved.is_empty() || name.len() > LONGEST {
            return;
        }
        let name: Arc<str> = name.into();
        for (address, seconds) in &message.resolved {
            let told = ResolvedName {
                observation_point,
                name: Arc::clone(&name),
                address: *address,
                time_to_live: Duration::from_secs((*seconds).into()),
                at: Timestamp::from_nanos(micros.saturating_mul(1_000)),
            };
            self.domains.learn(&told);
            if self.resolved.len() == UNTAKEN {
                self.resolved.pop_front();
            }
            self.resolved.push_back(told);
        }
    }

    /// Those that were learnt and not yet taken, oldest first.
    pub(super) fn resolved(&mut self) -> impl Iterator<Item = ResolvedName> {
        self.resolved.drain(..)
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, slot: u32) {
        self.waiting.remove(&slot);
    }

    /// All connections are gone; what they told is still to be had.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// Of a name, whatever the case of its letters, and a type (FNV-1a).
fn digest(name: &str, kind: u16) -> u32 {
    let octets = name.bytes().map(|octet| octet.to_ascii_lowercase());
    octets
        .chain(kind.to_be_bytes())
        .fold(0x811c_9dc5, |hash, octet| {
            (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(point: u16, name: &str, address: u32, at: u64, seconds: u64) -> ResolvedName {
        ResolvedName {
            observation_point: Some(point),
            name: name.into(),
            address: IpAddr::V4(address.into()),
            time_to_live: Duration::from_secs(seconds),
            at: Timestamp::from_nanos(at * 1_000_000_000),
        }
    }

    fn name(domains: &Domains, point: u16, address: u32, at: u64) -> Option<&str> {
        let at = Timestamp::from_nanos(at * 1_000_000_000);
        let name = domains.name(Some(point), IpAddr::V4(address.into()), at);
        name.map(|name| &**name)
    }

    #[test]
    fn a_name_holds_where_it_was_heard_and_as_long_as_it_was_told() {
        let mut domains = Domains {
            most: 65_536,
            ..Domains::default()
        };
        domains.learn(&told(1, "a.example", 7, 1_000, 300));
        domains.learn(&told(1, "b.example", 7, 2_000, 0));
        domains.learn(&told(1, "b.example", 7, 2_050, 300));
        domains.learn(&told(1, "c.example", 8, 1_000, 1 << 40));
        for (point, address, at, expected) in [
            (1, 7, 999, None),
            (1, 7, 1_000, Some("a.example")),
            (1, 7, 1_300, Some("a.example")),
            (1, 7, 1_301, None),
            // Told for no time at all, and again while who asked may still use it.
            (1, 7, 2_060, Some("b.example")),
            (1, 7, 2_350, Some("b.example")),
            (1, 7, 2_351, None),
            // The one before still says of a connection that was open then.
            (1, 7, 1_100, Some("a.example")),
            (1, 8, 1_000 + 86_400, Some("c.example")),
            (1, 8, 1_001 + 86_400, None),
            (2, 7, 1_100, None),
            (1, 9, 1_100, None),
        ] {
            assert_eq!(
                name(&domains, point, address, at),
                expected,
                "{point} {address} {at}"
            );
        }
        assert_eq!(domains.count, 3);
    }

    #[test]
    fn who_asks_for_much_forgets_its_own() {
        let mut domains = Domains {
            most: 65_536,
            ..Domains::default()
        };
        domains.learn(&told(2, "quiet.example", 1, 1, 86_400));
        for number in 0..3 * 8_192_usize as u32 {
            domains.learn(&told(1, &format!("n{number}.example"), number, 1, 86_400));
        }
        for number in 0..100 {
            domains.learn(&told(3, &format!("n{number}.example"), 5, 1, 86_400));
        }
        assert_eq!(domains.points[&Some(1)].names.len(), 8_192_usize);
        assert_eq!(name(&domains, 1, 0, 2), None);
        assert_eq!(
            name(&domains, 1, 3 * 8_192_usize as u32 - 1, 2),
            Some("n24575.example")
        );
        assert_eq!(name(&domains, 2, 1, 2), Some("quiet.example"));
        assert_eq!(domains.points[&Some(3)].names.len(), 1);
        assert_eq!(domains.points[&Some(3)].order.len(), OF_ADDRESS);
        assert_eq!(name(&domains, 3, 5, 2), Some("n99.example"));
        for point in 10..40 {
            for number in 0..8_192_usize as u32 {
                domains.learn(&told(point, "x.example", number, 1, 86_400));
            }
        }
        assert_eq!(domains.count, 65_536);
        let all: usize = domains.points.values().map(|point| point.order.len()).sum();
        assert_eq!(all, 65_536);
        assert_eq!(name(&domains, 2, 1, 2), Some("quiet.example"));
    }
}
