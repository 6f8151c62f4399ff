//! The connections: slots of fixed size, found by an index, timed by two wheels.

use std::collections::HashMap;

use nvcapture::wire::Tunnel;
use nvcapture::{HugeVec, Zero, prefetch};

use crate::app::{Counts, Identifier, ResolvedName};
use crate::clock::Clock;
use crate::entry::{Carried, Class, Entry, NONE, Step};
use crate::index::BucketIndex;
use crate::tcp::{self, NO_EVENTS, TcpEvents};
use crate::timers::{BUCKET_SHIFT, Timers, Wheel};
use crate::{Error, FlowEndReason, FlowKey, FlowRecord, KeyHasher, MeterConfig};

/// Entries looked at, at most, for one that can be given up.
const TRIES: usize = 64;
/// Connections moved at once, at most, that are worth keeping by now. Each is moved once in its life.
const MOVES: usize = 4096;
/// How long a table that could give nothing up does not try again. Unit: ticks.
const PAUSE: u64 = 64;

/// Slots for connections, or for addresses of IPv6 ones: taken and given back, in memory that never moves.
#[derive(Debug)]
struct Pool<T: Copy> {
    items: HugeVec<T>,
    free: u32,
}

impl<T: Copy> Pool<T> {
    fn new(capacity: usize) -> Result<Self, Error> {
        let items =
            HugeVec::with_capacity(capacity).ok_or_else(|| no_memory(capacity, size_of::<T>()))?;
        Ok(Self { items, free: NONE })
    }

    /// A slot for `item`; `next` reads the link that `give` wrote.
    #[inline(always)]
    fn take(&mut self, item: T, next: impl FnOnce(&T) -> u32) -> u32 {
        match self.items.get_mut(self.free as usize) {
            Some(place) => {
                let slot = std::mem::replace(&mut self.free, next(place));
                *place = item;
                slot
            }
            None => {
                self.items.push(item);
                (self.items.len() - 1) as u32
            }
        }
    }

    fn clear(&mut self) {
        self.items.clear();
        self.free = NONE;
    }

    /// Takes `slot` back; `link` makes its item hold the link.
    fn give(&mut self, slot: u32, link: impl FnOnce(&mut T, u32)) {
        link(&mut self.items[slot as usize], self.free);
        self.free = slot;
    }
}

/// There is none for so many connections of `size` octets each.
const fn no_memory(connections: usize, size: usize) -> Error {
    Error::Memory {
        connections,
        octets: connections.saturating_mul(size),
    }
}

/// Numbers for each of `count` connections, 0 until they are written.
fn zeros<T: Zero>(count: usize) -> Result<HugeVec<T>, Error> {
    HugeVec::zeros(count).ok_or_else(|| no_memory(count, size_of::<T>()))
}

/// Why a connection was given up for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evicted {
    Ended,
    Embryonic,
    Idle,
}

/// What of keys does not fit into an entry.
#[derive(Debug)]
struct Keys {
    /// Of IPv6, in slots of their own.
    addresses: Pool<[u64; 4]>,
    /// The last word of those that have one, by the connection's slot.
    extra: HugeVec<u64>,
}

impl Keys {
    /// Whether `entry`, which is in `slot`, is of the connection with that key.
    #[inline(always)]
    fn is_of(&self, entry: &Entry, slot: u32, key: &FlowKey) -> bool {
        if entry.word != key.rest[0] {
            return false;
        }
        let is_between = if key.is_ipv6() {
            self.addresses.items.get(entry.addresses as usize) == Some(&key.addresses)
        } else {
            entry.addresses == key.addresses[0]
        };
        is_between && (!key.has_extra() || self.extra.get(slot as usize) == Some(&key.rest[1]))
    }

    /// The key of the connection whose `entry` is in `slot`.
    fn of(&self, entry: &Entry, slot: u32) -> FlowKey {
        let mut key = FlowKey {
            addresses: [entry.addresses, 0, 0, 0],
            rest: [entry.word, 0],
        };
        if key.is_ipv6() {
            key.addresses = self.addresses.items[entry.addresses as usize];
        }
        if key.has_extra() {
            key.rest[1] = self.extra[slot as usize];
        }
        key
    }

    /// Takes the addresses of the connection of `step`; gives what its entry says of them.
    #[inline(always)]
    fn take(&mut self, step: &Step) -> u64 {
        if step.key.is_ipv6() {
            let addresses = &mut self.addresses;
            addresses
                .take(step.key.addresses, |link| link[0] as u32)
                .into()
        } else {
            step.key.addresses[0]
        }
    }

    /// Takes the addresses of `entry` back.
    #[inline(always)]
    fn give(&mut self, entry: &Entry) {
        if entry.is_ipv6() {
            self.addresses
                .give(entry.addresses as u32, |item, next| item[0] = next.into());
        }
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Pool<Entry>,
    keys: Keys,
    /// By slot what few segments change, and what few connections come to; memory is taken where they do. The first is empty without TCP
    /// metrics.
    events: HugeVec<TcpEvents>,
    carried: HugeVec<Carried>,
    tunnels: HashMap<u32, Tunnel>,
    /// Finds out what connections speak, where that is asked for.
    identifier: Option<Box<Identifier>>,
    index: BucketIndex,
    hasher: KeyHasher,
    capacity: usize,
    len: usize,
    /// By deadline.
    timers: Timers,
    /// The wheels' bucket that is looked at next.
    at: u64,
    timeouts: [u32; Class::COUNT],
    /// The shortest of them: who has been idle for less is not overdue, whatever it is.
    shortest: u32,
    protect: u32,
    tcp_metrics: bool,
    /// The tick before which nothing can be given up.
    full_until: u64,
    /// The connection that is likely closed next, and its hash: see [`prefetch_following`](Self::prefetch_following).
    ahead: (u32, u64),
}

impl Table {
    /// The most connections there can be: slots are 31 bits, beside marks.
    pub(crate) const MOST: usize = (1 << 31) - 2;

    pub(crate) fn new(config: &MeterConfig) -> Result<Self, Error> {
        let capacity = config.max_connections;
        if !(1..=Self::MOST).contains(&capacity) {
            return Err(Error::Capacity {
                connections: capacity,
                most: Self::MOST,
            });
        }
        let timeouts = &config.timeouts;
        let timeouts = [
            timeouts.tcp_established,
            timeouts.tcp_half_open,
            timeouts.tcp_closing,
            timeouts.tcp_ended,
            timeouts.udp,
            timeouts.icmp,
            timeouts.other,
        ]
        .map(Clock::ticks);
        let followed = if config.tcp_metrics { capacity } else { 0 };
        Ok(Self {
            entries: Pool::new(capacity)?,
            keys: Keys {
                addresses: Pool::new(capacity)?,
                extra: zeros(capacity)?,
            },
            events: zeros(followed)?,
            carried: zeros(capacity)?,
            tunnels: HashMap::new(),
            identifier: config.identify.map(|how| Box::new(Identifier::new(how))),
            index: BucketIndex::new(capacity)?,
            hasher: config
                .hash_key
                .map_or_else(KeyHasher::random, KeyHasher::new),
            capacity,
            len: 0,
            timers: Timers::new(capacity).ok_or_else(|| no_memory(capacity, Timers::SIZE))?,
            at: 0,
            timeouts,
            shortest: timeouts.into_iter().fold(u32::MAX, u32::min),
            protect: Clock::ticks(config.protect),
            tcp_metrics: config.tcp_metrics,
            full_until: 0,
            ahead: (NONE, 0),
        })
    }

    #[inline]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    #[inline(always)]
    pub(crate) fn hash(&self, key: &FlowKey) -> u32 {
        self.hasher.half(key)
    }

    /// First of what is asked for ahead of a lookup: the index.
    #[inline(always)]
    pub(crate) fn prefetch_index(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Second: the slot that it may be.
    #[inline(always)]
    pub(crate) fn candidate(&self, hash: u64) -> u32 {
        self.index.candidate(hash)
    }

    /// Third: the cache lines of the entry.
    #[inline(always)]
    pub(crate) fn prefetch_entry(&self, slot: u32) {
        if let Some(entry) = self.entries.items.get(slot as usize) {
            prefetch(entry);
            prefetch(entry.second_line());
        }
    }

    /// Last, where the key does not fit into the entry: what else there is of it.
    #[inline(always)]
    pub(crate) fn prefetch_key(&self, slot: u32, key: &FlowKey) {
        if key.has_extra()
            && let Some(extra) = self.keys.extra.get(slot as usize)
        {
            prefetch(extra);
        }
        if key.is_ipv6()
            && let Some(entry) = self.entries.items.get(slot as usize)
            && let Some(addresses) = self.keys.addresses.items.get(entry.addresses as usize)
        {
            prefetch(addresses);
        }
    }

    /// Beside it, where the timer may be moved: the links before and behind its own.
    #[inline(always)]
    pub(crate) fn prefetch_beside(&self, slot: u32) {
        self.timers.prefetch_beside(slot);
    }

    #[inline(always)]
    pub(crate) fn is_at(&self, slot: u32, key: &FlowKey) -> bool {
        self.entries
            .items
            .get(slot as usize)
            .is_some_and(|entry| self.keys.is_of(entry, slot, key))
    }

    /// The slot of `key`'s connection.
    #[inline(always)]
    pub(crate) fn find(&self, step: &Step) -> Option<u32> {
        if self.is_at(step.candidate, &step.key) {
            return Some(step.candidate);
        }
        self.index.find(KeyHasher::whole(step.hash), |slot| {
            self.is_at(slot, &step.key)
        })
    }

    #[inline(always)]
    pub(crate) fn entry(&self, slot: u32) -> &Entry {
        &self.entries.items[slot as usize]
    }

    /// Whether the connection has been idle for longer than it may.
    #[inline(always)]
    pub(crate) fn is_overdue(&self, slot: u32, now: u64) -> bool {
        let entry = self.entry(slot);
        let idle = (now as u32).wrapping_sub(entry.last);
        idle > self.shortest && idle > self.timeouts[entry.class() as usize]
    }

    fn deadline(&self, entry: &Entry, now: u64) -> u64 {
        let idle = (now as u32).wrapping_sub(entry.last);
        now.saturating_sub(idle.into()) + u64::from(self.timeouts[entry.class() as usize])
    }

    /// Opens the connection of `step`, whose frame is not yet counted; there is room.
    pub(crate) fn open(&mut self, step: &Step, tunnel: Option<Tunnel>) -> u32 {
        let addresses = self.keys.take(step);
        let slot = self
            .entries
            .take(Entry::opened_by(step, addresses), |free| {
                free.addresses as u32
            });
        if step.key.has_extra() {
            self.keys.extra[slot as usize] = step.key.rest[1];
        }
        self.index.insert(KeyHasher::whole(step.hash), slot);
        self.len += 1;
        if let Some(tunnel) = tunnel {
            self.tunnels.insert(slot, tunnel);
        }
        let deadline = self.deadline(self.entry(slot), step.now);
        self.timers
            .start(slot, Wheel::Expendable, deadline, self.at);
        slot
    }

    /// Counts the frame of `step` if it is one of the many that change nothing but counts: in line, of a connection that is open and goes on,
    /// whose payload tells nothing; `octets` are what was kept of it. Else does nothing, and [`count`](Self::count) has to.
    #[inline(always)]
    pub(crate) fn count_in_line(&mut self, step: &Step, octets: &[u8], active: u64) -> bool {
        let Some(entry) = self.entries.items.get_mut(step.candidate as usize) else {
            return false;
        };
        if !self.keys.is_of(entry, step.candidate, &step.key) {
            return false;
        }
        let idle = (step.now as u32).wrapping_sub(entry.last);
        // Of a frame from before the start this is more than any timeout.
        let since_start = step.since(entry);
        if (idle > self.shortest) | (since_start > active) | entry.are_counters_high(step) {
            return false;
        }
        if step.has_segment && !tcp::is_in_line(entry, step) {
            return false;
        }
        // In this order: most sides have long told what there is to tell, and whether a frame has a payload is as good as random.
        if let Some(identifier) = &self.identifier
            && !entry.is_settled(step.direction as usize)
            && step.payload_octets() > 0
            && !step
                .payload_in(octets)
                .is_some_and(|payload| identifier.rules_out(entry, step, payload))
        {
            return false;
        }
        if step.has_segment {
            tcp::follow_in_line(entry, &mut self.events, step);
        }
        entry.count_at(step, since_start);
        true
    }

    /// Counts the frame of `step` to the connection in `slot`, whatever it is.
    #[inline(always)]
    pub(crate) fn count(&mut self, slot: u32, step: &Step) {
        let entry = &mut self.entries.items[slot as usize];
        let before = entry.state;
        if step.has_segment {
            tcp::follow(entry, &mut self.events, slot, step, self.tcp_metrics);
        }
        if entry.are_counters_high(step) {
            entry.carry(step, &mut self.carried[slot as usize]);
        }
        entry.count(step);
        let after = entry.state;
        if after != before && self.runs_out_sooner(before, after) {
            self.rearm(slot, step.now);
        }
    }

    /// Whether a connection of TCP may be idle for less long in the state `after` than in the one `before`.
    #[inline(always)]
    fn runs_out_sooner(&self, before: u8, after: u8) -> bool {
        let timeout = |state| self.timeouts[Class::of_tcp(state) as usize];
        timeout(after) < timeout(before)
    }

    /// Puts the timer of `slot` where it belongs now.
    fn rearm(&mut self, slot: u32, now: u64) {
        let entry = self.entry(slot);
        let deadline = self.deadline(entry, now);
        let wheel = if entry.is_expendable() {
            Wheel::Expendable
        } else {
            Wheel::Kept
        };
        self.timers.stop(slot);
        self.timers.start(slot, wheel, deadline, self.at);
    }

    /// What is to be said of the connection in `slot`.
    pub(crate) fn record(&self, slot: u32, reason: Option<FlowEndReason>) -> FlowRecord {
        let mut record = FlowRecord::default();
        self.write(&mut record, slot, reason);
        record
    }

    /// Writes what is to be said of the connection in `slot` over what `record` said.
    #[inline(never)]
    pub(crate) fn write(&self, record: &mut FlowRecord, slot: u32, reason: Option<FlowEndReason>) {
        let entry = self.entry(slot);
        let key = self.keys.of(entry, slot);
        let events = self.events.get(slot as usize).unwrap_or(&NO_EVENTS);
        let carried = &self.carried[slot as usize];
        entry.write(record, &key, events, carried, reason);
        record.tunnel = None;
        if !self.tunnels.is_empty() {
            record.tunnel = self.tunnels.get(&slot).copied();
        }
        if let Some(identifier) = &self.identifier {
            record.application = identifier.application(entry, slot, &key);
            identifier.label(record);
        }
    }

    /// Whether nothing more can be told from what the side speaks that sent the frame of `step`.
    #[inline(always)]
    pub(crate) fn is_settled(&self, slot: u32, step: &Step) -> bool {
        self.entry(slot).is_settled(step.direction as usize)
    }

    /// Looks at the payload of the frame of `step`, which is not yet counted.
    pub(crate) fn look(&mut self, slot: u32, step: &Step, payload: &[u8]) {
        if let Some(identifier) = &mut self.identifier {
            identifier.look(&mut self.entries.items, slot, step, payload);
        }
    }

    /// Says what can be said of what the connection in `slot` speaks: no more is looked at.
    #[inline]
    pub(crate) fn conclude(&mut self, slot: u32) {
        if let Some(identifier) = &mut self.identifier {
            identifier.conclude(&mut self.entries.items[slot as usize], slot);
        }
    }

    /// What the identifier has done.
    pub(crate) fn identified(&self) -> Counts {
        self.identifier
            .as_ref()
            .map_or_else(Counts::default, |identifier| identifier.counts)
    }

    /// Takes a name that another meter has learnt.
    pub(crate) fn learn(&mut self, told: &ResolvedName) {
        if let Some(identifier) = &mut self.identifier {
            identifier.learn(told);
        }
    }

    /// Names that were learnt and not yet taken.
    pub(crate) fn resolved_names(&mut self) -> impl Iterator<Item = ResolvedName> {
        self.identifier
            .iter_mut()
            .flat_map(|identifier| identifier.resolved_names())
    }

    /// Begins the next record of a connection that goes on.
    pub(crate) fn begin_anew(&mut self, slot: u32, micros: u64) {
        self.entries.items[slot as usize].begin_anew(micros);
    }

    /// The hash that the connection in `slot` is found by.
    #[inline]
    pub(crate) fn hash_of(&self, slot: u32) -> u64 {
        if self.ahead.0 == slot {
            return self.ahead.1;
        }
        let entry = self.entry(slot);
        match entry.hash() {
            Some(half) => KeyHasher::whole(half),
            None => self.hasher.hash(&self.keys.of(entry, slot)),
        }
    }

    /// Asks for what it takes to close the connection behind the one of `slot` in its timer's bucket, and for the entry and the link behind that.
    ///
    /// Those who run out, or are given up, do so in the order of a bucket. That order is none in memory: each would be waited for.
    #[inline]
    pub(crate) fn prefetch_following(&mut self, slot: u32) {
        let Some(next) = self.timers.following(slot) else {
            return;
        };
        let hash = self.hash_of(next);
        self.ahead = (next, hash);
        self.index.prefetch(hash);
        if let Some(after) = self.timers.following(next) {
            self.prefetch_entry(after);
            self.timers.prefetch(after);
        }
    }

    /// Takes the connection in `slot` out, which has this `hash`.
    pub(crate) fn close(&mut self, slot: u32, hash: u64) {
        self.index.remove(hash, slot);
        self.timers.stop(slot);
        self.keys.give(&self.entries.items[slot as usize]);
        if !self.tunnels.is_empty() {
            self.tunnels.remove(&slot);
        }
        if let Some(identifier) = &mut self.identifier
            && self.entries.items[slot as usize].is_named()
        {
            identifier.forget(slot);
        }
        self.entries.give(slot, Entry::set_free);
        self.len -= 1;
        if self.ahead.0 == slot {
            self.ahead.0 = NONE;
        }
    }

    /// Takes all connections out.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.keys.addresses.clear();
        self.tunnels.clear();
        if let Some(identifier) = &mut self.identifier {
            identifier.clear();
        }
        self.index.clear();
        self.timers.clear();
        self.len = 0;
        self.ahead.0 = NONE;
    }

    /// Whether the wheels have to be looked at.
    #[inline(always)]
    pub(crate) const fn is_due(&self, now: u64) -> bool {
        now >> BUCKET_SHIFT >= self.at
    }

    /// A connection that has been idle for longer than it may; to be asked until there is none.
    pub(crate) fn overdue(&mut self, now: u64) -> Option<u32> {
        let end = (now >> BUCKET_SHIFT) + 1;
        // After a leap one turn of the wheels meets every timer.
        self.at = self.at.max(end.saturating_sub(Timers::TURN));
        loop {
            let expendable = self.timers.first(Wheel::Expendable, self.at, end);
            let kept = self.timers.first(Wheel::Kept, self.at, end);
            let (slot, bucket) = match (expendable, kept) {
                (Some(a), Some(b)) => {
                    if a.1 <= b.1 {
                        a
                    } else {
                        b
                    }
                }
                (Some(only), None) | (None, Some(only)) => only,
                (None, None) => {
                    self.at = self.at.max(end);
                    return None;
                }
            };
            // Timers that go on are put at least one bucket further.
            self.at = self.at.max(bucket);
            if self.is_overdue(slot, now) {
                return Some(slot);
            }
            self.at += 1;
            self.rearm(slot, now);
            self.at -= 1;
        }
    }

    /// A connection to give up for a new one: the first to run out among those that have ended, are half-open or of one packet; else among
    /// the others the first to run out that is not protected.
    pub(crate) fn victim(&mut self, now: u64) -> Option<(u32, Evicted)> {
        if now < self.full_until {
            return None;
        }
        for tries in 0.. {
            let Some((slot, _)) = self.timers.first(Wheel::Expendable, self.at, u64::MAX) else {
                break;
            };
            if tries == MOVES {
                // Those behind are no better to lose than the new one.
                return None;
            }
            let entry = self.entry(slot);
            if entry.has_ended() {
                return Some((slot, Evicted::Ended));
            }
            if entry.is_expendable() {
                return Some((slot, Evicted::Embryonic));
            }
            self.rearm(slot, now);
        }
        let mut tries = 0;
        let (mut at, mut next) = (self.at, None);
        while tries < TRIES {
            tries += 1;
            let slot = match next {
                Some(slot) => slot,
                None => {
                    let Some((slot, bucket)) =
                        self.timers.first(Wheel::Kept, at, self.at + Timers::TURN)
                    else {
                        break;
                    };
                    at = bucket + 1;
                    slot
                }
            };
            next = self.timers.following(slot);
            let entry = self.entry(slot);
            let idle = (now as u32).wrapping_sub(entry.last);
            // A timer that is put off goes behind those that are looked at here.
            if idle >= self.protect {
                let bucket = (self.deadline(entry, now) >> BUCKET_SHIFT) + 1;
                if bucket < at || tries == TRIES {
                    return Some((slot, Evicted::Idle));
                }
            }
            self.rearm(slot, now);
        }
        self.full_until = now + PAUSE;
        None
    }

    /// The slots of all connections, in no order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries
            .items
            .iter()
            .enumerate()
            .filter(|(_, entry)| !entry.is_free())
            .map(|(slot, _)| slot as u32)
    }

    /// Slots there have ever been: all connections are below.
    pub(crate) fn slots_used(&self) -> u32 {
        self.entries.items.len() as u32
    }
}
