//! A connection as the table keeps it: two cache lines, and elsewhere what few frames need.

use nvcapture::Timestamp;
use nvcapture::wire::protocol;

use crate::clock::Clock;
use crate::key::flag;
use crate::tcp::{Segment, Small, TcpBlock, TcpEvents, small, value};
use crate::{
    Direction, FlowEndReason, FlowKey, FlowRecord, Side, TcpRecord, TcpSide, TcpState, Vantage,
};

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// What a frame adds to [`Counters`]: packets, IP octets, frame octets, payload octets; two in a word, the first in its lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts([u64; 2]);

impl Amounts {
    /// The most of each: no frame is longer, though one may say so.
    pub(crate) const MOST: u32 = (1 << Counters::BITS) - 1;

    /// Each at most [`Self::MOST`].
    #[inline(always)]
    pub(crate) const fn new([packets, octets, layer2_octets, payload_octets]: [u32; 4]) -> Self {
        debug_assert!((packets | octets | layer2_octets | payload_octets) <= Self::MOST);
        Self(Self::packed([
            packets,
            octets,
            layer2_octets,
            payload_octets,
        ]))
    }

    #[inline(always)]
    const fn packed([packets, octets, layer2_octets, payload_octets]: [u32; 4]) -> [u64; 2] {
        [
            (octets as u64) << 32 | packets as u64,
            (payload_octets as u64) << 32 | layer2_octets as u64,
        ]
    }

    /// Each of them.
    pub(crate) const fn each(self) -> [u32; 4] {
        let [first, second] = self.0;
        [
            first as u32,
            (first >> 32) as u32,
            second as u32,
            (second >> 32) as u32,
        ]
    }

    #[inline(always)]
    const fn packets(self) -> u32 {
        self.0[0] as u32
    }

    #[inline(always)]
    const fn payload_octets(self) -> u32 {
        (self.0[1] >> 32) as u32
    }
}

/// Counters of two directions, each of what [`Amounts`] holds and packed as there, so that two are added at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters([[u64; 2]; 2]);

/// What was carried from [`Counters`], per direction and of each in [its place](Counters::PLACES): it lies elsewhere, as few connections come
/// so far.
pub(crate) type Carried = [u64; 2];

/// Nothing yet.
const NO_CARRIED: Carried = [0; 2];

impl Counters {
    /// One that comes to have more carries before it is added to again; so it has room for another [`Amounts::MOST`].
    const BITS: u32 = 31;
    const HIGH: u64 = (1 << Self::BITS) * (1 << 32 | 1);
    /// What is carried. One of it stays, so that a counter of much does not become one of little.
    const UNIT_BITS: u32 = Self::BITS - 1;
    /// Where what is carried of packets, IP octets, frame octets and payload octets begins and ends: there may be 2^43 packets and 2^47 octets
    /// of each in a record, of more it is not known how many.
    const PLACES: [u32; 5] = [0, 13, 30, 47, 64];

    /// Where each of them begins, and the most of it.
    fn places() -> impl Iterator<Item = (u32, u64)> {
        let of = |ends: &[u32]| (ends[0], (1 << (ends[1] - ends[0])) - 1);
        Self::PLACES.windows(2).map(of)
    }

    /// Whether those of a direction have to [carry](Self::carry) before they are added to.
    #[inline(always)]
    const fn are_high(&self, direction: usize) -> bool {
        let [first, second] = self.0[direction];
        (first | second) & Self::HIGH != 0
    }

    /// Adds to those of a direction that are not [high](Self::are_high).
    #[inline(always)]
    const fn add(&mut self, direction: usize, amounts: Amounts) {
        debug_assert!(!self.are_high(direction));
        let both = &mut self.0[direction];
        *both = [both[0] + amounts.0[0], both[1] + amounts.0[1]];
    }

    fn carry(&mut self, direction: usize, carried: &mut Carried) {
        let mut each = Amounts(self.0[direction]).each();
        for (counter, (place, most)) in each.iter_mut().zip(Self::places()) {
            if *counter >> Self::BITS == 0 {
                continue;
            }
            let units = (*counter >> Self::UNIT_BITS) - 1;
            *counter -= units << Self::UNIT_BITS;
            let before = carried[direction] >> place & most;
            let after = most.min(before + u64::from(units));
            carried[direction] += (after - before) << place;
        }
        self.0[direction] = Amounts::packed(each);
    }

    /// All but what was carried.
    #[inline(always)]
    fn of(&self, direction: usize) -> [u64; 4] {
        Amounts(self.0[direction]).each().map(u64::from)
    }

    /// All.
    fn with(&self, direction: usize, carried: &Carried) -> [u64; 4] {
        let mut all = self.of(direction);
        for (counter, (place, most)) in all.iter_mut().zip(Self::places()) {
            *counter += (carried[direction] >> place & most) << Self::UNIT_BITS;
        }
        all
    }

    #[inline]
    const fn packets(&self, direction: usize) -> u32 {
        self.0[direction][0] as u32
    }

    #[inline]
    const fn payload_octets(&self, direction: usize) -> u32 {
        (self.0[direction][1] >> 32) as u32
    }
}

/// What is known of a TCP connection's state, beside the control bits seen.
pub(crate) mod state {
    /// The lower end said FIN; shifted by 1 for the higher.
    pub(crate) const FIN: u8 = 1;
    /// The lower end's FIN was acknowledged; shifted by 1 for the higher.
    pub(crate) const FIN_ACKED: u8 = 1 << 2;
    /// The higher end said FIN first.
    pub(crate) const HIGH_FIRST: u8 = 1 << 4;
    /// Reset.
    pub(crate) const RESET: u8 = 1 << 5;
    /// The handshake is done, or was not seen.
    pub(crate) const ESTABLISHED: u8 = 1 << 6;
    /// Both sides have acknowledged something.
    pub(crate) const BOTH_ACKNOWLEDGED: u8 = 1 << 7;

    /// Over and done, but for what comes late.
    ///
    /// Both are asked, without a branch: which state a connection is in when it changes is as good as random.
    #[inline]
    pub(super) const fn is_ended(state: u8) -> bool {
        const ALL: u8 = (FIN * 3) | (FIN_ACKED * 3);
        (state & RESET != 0) | (state & ALL == ALL)
    }
}

mod mark {
    /// The higher end is the initiator.
    pub(super) const INITIATOR_HIGH: u8 = 1;
    /// The lower end is inside the container.
    pub(super) const INSIDE_LOW: u8 = 1 << 1;
    /// The higher end is inside the container.
    pub(super) const INSIDE_HIGH: u8 = 1 << 2;
    /// A counter has carried.
    pub(super) const CARRIED: u8 = 1 << 3;
    /// What TCP tells beside the state is of this connection.
    pub(super) const FOLLOWED: u8 = 1 << 4;
    /// The lower end's payload is not looked at any more; shifted by 1 for the higher.
    pub(super) const SETTLED: u8 = 1 << 5;
    /// What it speaks is known.
    pub(super) const NAMED: u8 = 1 << 7;
}

/// One connection.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(crate) struct Entry {
    /// IPv4: both addresses. IPv6: the slot of the addresses. In a free entry what [`set_free`](Self::set_free) was given.
    pub(crate) addresses: u64,
    /// The key's first word behind the addresses, which tells whether there is one more; 0 in a free entry.
    pub(crate) word: u64,
    /// When the first frame was seen. Unit: microseconds since the epoch.
    start: u64,
    /// The last frame's tick, low 32 bits.
    pub(crate) last: u32,
    /// See [`state`].
    pub(crate) state: u8,
    /// See [`mark`].
    marks: u8,
    /// Per direction the code point of the last packet.
    dscp: [u8; 2],
    /// Per direction all TCP control bits.
    pub(crate) control: [u16; 2],
    /// Per direction lowest and highest time to live.
    ttl: [[u8; 2]; 2],
    /// From first frame to last, in microseconds: high part.
    duration_high: u16,
    /// How long the handshake took to the client and to the server, one more than it is, 0 for what is not known.
    handshake: [Small; 2],
    counters: Counters,
    /// Per direction the sequence number behind the highest octet seen.
    pub(crate) sequence: [u32; 2],
    /// Per direction the highest acknowledgment.
    pub(crate) acknowledged: [u32; 2],
    /// Of a connection that is [followed](Self::is_followed) only; before that it holds the hash.
    pub(crate) block: TcpBlock,
    /// The low part of how long it lasts.
    duration_low: u32,
}

const _: () = assert!(size_of::<Entry>() == 128);
// See `second_line`.
const _: () = assert!(std::mem::offset_of!(Entry, acknowledged) >= 64);

/// What of a timeout applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    TcpEstablished,
    TcpHalfOpen,
    TcpClosing,
    TcpEnded,
    Udp,
    Icmp,
    Other,
}

impl Class {
    pub(crate) const COUNT: usize = 7;

    /// That of TCP in a [`state`].
    #[inline(always)]
    pub(crate) fn of_tcp(state: u8) -> Self {
        TCP_CLASSES[usize::from(state)]
    }
}

/// The class of each [`state`]: looked up, since what state a connection is in when it changes is as good as random.
static TCP_CLASSES: [Class; 256] = {
    let mut classes = [Class::TcpClosing; 256];
    let mut state = 0;
    while state < classes.len() {
        let it = state as u8;
        if it & !(state::ESTABLISHED | state::BOTH_ACKNOWLEDGED) == 0 {
            classes[state] = if it & state::ESTABLISHED != 0 {
                Class::TcpEstablished
            } else {
                Class::TcpHalfOpen
            };
        } else if state::is_ended(it) {
            classes[state] = Class::TcpEnded;
        }
        state += 1;
    }
    classes
};

/// What a frame tells of its connection.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Step {
    pub(crate) key: FlowKey,
    /// One half of its hash.
    pub(crate) hash: u32,
    /// The frame's time. Unit: microseconds since the epoch.
    pub(crate) micros: u64,
    /// The clock's time.
    pub(crate) now: u64,
    /// What it adds to the counters.
    pub(crate) amounts: Amounts,
    /// The slot its connection may be in.
    pub(crate) candidate: u32,
    pub(crate) segment: Segment,
    pub(crate) has_segment: bool,
    pub(crate) direction: Direction,
    pub(crate) ttl: u8,
    pub(crate) dscp: u8,
    /// Where in the frame the payload begins; 0 where that is not known without another walk through the headers.
    pub(crate) payload_at: u8,
    /// The receiver is the initiator, if this is the first frame; of TCP the segment tells that.
    pub(crate) is_answer: bool,
    /// Whether the sender is inside the container, or the receiver; neither where that is not known.
    pub(crate) sender_inside: Option<bool>,
}

impl Step {
    /// Of no frame yet.
    pub(crate) const EMPTY: Self = Self {
        key: FlowKey {
            addresses: [0; 4],
            rest: [0; 2],
        },
        hash: 0,
        micros: 0,
        now: 0,
        amounts: Amounts([0; 2]),
        candidate: NONE,
        segment: Segment {
            sequence: 0,
            acknowledgment: 0,
            window: 0,
            control: 0,
        },
        has_segment: false,
        direction: Direction::Up,
        ttl: 0,
        dscp: 0,
        payload_at: 0,
        is_answer: false,
        sender_inside: None,
    };

    /// Word by word: a whole key would be read back wider than it was written, which stalls. Beside the two words of a short one there stays
    /// what was of another frame: nobody looks there.
    #[inline(always)]
    pub(crate) const fn set_key(&mut self, key: &FlowKey) {
        self.key.rest[0] = key.rest[0];
        self.key.addresses[0] = key.addresses[0];
        if !key.is_long() {
            return;
        }
        self.key.rest[1] = key.rest[1];
        self.key.addresses[1] = key.addresses[1];
        self.key.addresses[2] = key.addresses[2];
        self.key.addresses[3] = key.addresses[3];
    }

    /// Microseconds since the first frame of the connection in `entry`; more than any timeout where this one is before that.
    #[inline(always)]
    pub(crate) const fn since(&self, entry: &Entry) -> u64 {
        self.micros.wrapping_sub(entry.start)
    }

    #[inline(always)]
    pub(crate) const fn packets(&self) -> u32 {
        self.amounts.packets()
    }

    #[inline(always)]
    pub(crate) const fn payload_octets(&self) -> u32 {
        self.amounts.payload_octets()
    }

    /// What was kept of the payload in the frame's `octets`, where it is known where that begins.
    #[inline]
    pub(crate) fn payload_in<'f>(&self, octets: &'f [u8]) -> Option<&'f [u8]> {
        let kept = octets.get(usize::from(self.payload_at)..)?;
        // What pads a short frame is none of it.
        let payload = &kept[..kept.len().min(self.payload_octets() as usize)];
        (self.payload_at > 0).then_some(payload)
    }
}

impl Entry {
    /// What an entry begins with.
    const FREE: Self = Self {
        addresses: 0,
        word: 0,
        start: 0,
        last: 0,
        state: 0,
        marks: 0,
        dscp: [0; 2],
        control: [0; 2],
        ttl: [[u8::MAX, 0]; 2],
        duration_high: 0,
        handshake: [[0; 3]; 2],
        counters: Counters([[0; 2]; 2]),
        sequence: [0; 2],
        acknowledged: [0; 2],
        block: TcpBlock::EMPTY,
        duration_low: 0,
    };

    /// Makes it a free entry, which tells the next one. What else it held is never looked at.
    pub(crate) fn set_free(&mut self, next: u32) {
        self.word = 0;
        self.addresses = next.into();
    }

    /// The connection that the frame of `step` opens; the frame itself is not yet counted.
    #[inline(always)]
    pub(crate) fn opened_by(step: &Step, addresses: u64) -> Self {
        let sender_high = step.direction == Direction::Down;
        let mut marks = 0;
        let is_answer = step.is_answer || (step.has_segment && step.segment.answers());
        if sender_high != is_answer {
            marks |= mark::INITIATOR_HIGH;
        }
        if let Some(sender) = step.sender_inside {
            marks |= if sender == sender_high {
                mark::INSIDE_HIGH
            } else {
                mark::INSIDE_LOW
            };
        }
        let state = if step.has_segment && step.segment.is_syn() {
            0
        } else {
            state::ESTABLISHED
        };
        Self {
            addresses,
            word: step.key.rest[0],
            start: step.micros,
            last: step.now as u32,
            marks,
            state,
            block: TcpBlock::of_hash(step.hash),
            ..Self::FREE
        }
    }

    /// The hash that it is found by, as far as that is still known: 32 bits.
    #[inline]
    pub(crate) const fn hash(&self) -> Option<u32> {
        if self.is_followed() {
            None
        } else {
            Some(self.block.hash())
        }
    }

    #[inline]
    pub(crate) const fn is_free(&self) -> bool {
        self.word == 0
    }

    #[inline]
    pub(crate) const fn is_ipv6(&self) -> bool {
        self.word & flag::V6 != 0
    }

    #[inline]
    pub(crate) const fn protocol(&self) -> u8 {
        (self.word >> 8) as u8
    }

    #[inline]
    pub(crate) const fn is_tcp(&self) -> bool {
        self.protocol() == protocol::TCP
    }

    /// Whether what TCP tells beside its state is kept.
    #[inline]
    pub(crate) const fn is_followed(&self) -> bool {
        self.marks & mark::FOLLOWED != 0
    }

    /// Begins to keep it.
    pub(crate) fn follow(&mut self) {
        self.block = TcpBlock::EMPTY;
        self.marks |= mark::FOLLOWED;
    }

    /// Whether nothing more can be told from the payload of `side`.
    #[inline(always)]
    pub(crate) const fn is_settled(&self, side: usize) -> bool {
        self.marks & (mark::SETTLED << side) != 0
    }

    pub(crate) fn settle(&mut self, side: usize) {
        self.marks |= mark::SETTLED << side;
    }

    /// Whether it is known what the connection speaks.
    #[inline]
    pub(crate) const fn is_named(&self) -> bool {
        self.marks & mark::NAMED != 0
    }

    pub(crate) fn set_named(&mut self) {
        self.marks |= mark::NAMED;
    }

    /// Whether payload was seen of a side.
    pub(crate) const fn has_payload_of(&self, side: usize) -> bool {
        self.counters.payload_octets(side) > 0
    }

    /// Whether there is more in [`Carried`].
    #[inline]
    pub(crate) const fn has_carried(&self) -> bool {
        self.marks & mark::CARRIED != 0
    }

    /// The second cache line, to be asked for ahead.
    #[inline(always)]
    pub(crate) const fn second_line(&self) -> &[u32; 2] {
        &self.acknowledged
    }

    /// The end that is the initiator: 0 the lower, 1 the higher.
    #[inline]
    pub(crate) const fn initiator(&self) -> usize {
        (self.marks & mark::INITIATOR_HIGH) as usize
    }

    pub(crate) fn set_initiator(&mut self, end: usize) {
        self.marks = (self.marks & !mark::INITIATOR_HIGH) | (end as u8 & mark::INITIATOR_HIGH);
    }

    #[inline]
    pub(crate) const fn has(&self, state: u8) -> bool {
        self.state & state != 0
    }

    /// TCP: over and done, but for what comes late.
    #[inline]
    pub(crate) const fn has_ended(&self) -> bool {
        state::is_ended(self.state)
    }

    /// Whether both sides have said that they are done: good enough when no more comes.
    #[inline]
    const fn both_said_fin(&self) -> bool {
        self.state & (state::FIN * 3) == state::FIN * 3
    }

    /// Packets seen of both sides, where they are few; else some number of many.
    #[inline]
    pub(crate) const fn few_packets(&self) -> u64 {
        self.few_packets_of(0) + self.few_packets_of(1)
    }

    /// The same of one side.
    #[inline]
    pub(crate) const fn few_packets_of(&self, direction: usize) -> u64 {
        self.counters.packets(direction) as u64
    }

    /// Microseconds from the first frame to `micros`.
    #[inline]
    pub(crate) const fn since_start(&self, micros: u64) -> u64 {
        micros.saturating_sub(self.start)
    }

    /// Whether it is given up before others when the table is full: it has ended, is half-open, or of one packet. Without a branch, as
    /// [`is_ended`](state::is_ended).
    pub(crate) fn is_expendable(&self) -> bool {
        self.has_ended()
            | (self.few_packets() <= 1)
            | (self.is_tcp() & !self.has(state::ESTABLISHED))
    }

    #[inline]
    pub(crate) fn class(&self) -> Class {
        match self.protocol() {
            protocol::TCP => Class::of_tcp(self.state),
            protocol::UDP => Class::Udp,
            protocol::ICMP | protocol::ICMPV6 => Class::Icmp,
            _ => Class::Other,
        }
    }

    /// Whether counters of the side that sent the frame of `step` have to [carry](Self::carry) before it is counted.
    #[inline(always)]
    pub(crate) const fn are_counters_high(&self, step: &Step) -> bool {
        self.counters.are_high(step.direction as usize)
    }

    /// Lets them carry, into what is of this connection.
    #[cold]
    pub(crate) fn carry(&mut self, step: &Step, carried: &mut Carried) {
        if !self.has_carried() {
            *carried = NO_CARRIED;
            self.marks |= mark::CARRIED;
        }
        self.counters.carry(step.direction as usize, carried);
    }

    /// Counts the frame of `step`, to counters that are not high.
    #[inline(always)]
    pub(crate) fn count(&mut self, step: &Step) {
        match step.micros.checked_sub(self.start) {
            Some(since_start) => self.count_at(step, since_start),
            None => {
                self.begin_earlier(step.micros);
                self.count_at(step, 0);
            }
        }
    }

    /// The same, so many microseconds after the first frame.
    #[inline(always)]
    pub(crate) fn count_at(&mut self, step: &Step, since_start: u64) {
        let side = step.direction as usize;
        self.counters.add(side, step.amounts);
        self.last = step.now as u32;
        let ttl = &mut self.ttl[side];
        // Nearly always the same.
        if *ttl != [step.ttl; 2] {
            *ttl = [ttl[0].min(step.ttl), ttl[1].max(step.ttl)];
        }
        self.dscp[side] = step.dscp;
        if (since_start >> 32) | u64::from(self.duration_high) == 0 {
            self.duration_low = self.duration_low.max(since_start as u32);
        } else {
            self.lasts(since_start);
        }
    }

    /// What lasts longer than 71 minutes.
    #[cold]
    fn lasts(&mut self, since_start: u64) {
        self.set_duration(self.duration().max(since_start));
    }

    const fn duration(&self) -> u64 {
        ((self.duration_high as u64) << 32) | self.duration_low as u64
    }

    fn set_duration(&mut self, micros: u64) {
        let micros = micros.min((1 << 48) - 1);
        self.duration_low = micros as u32;
        self.duration_high = (micros >> 32) as u16;
    }

    /// Notes how long the handshake took, to the client (0) or to the server (1).
    pub(crate) fn set_handshake(&mut self, to: usize, micros: u32) {
        self.handshake[to] = small(micros.saturating_add(1));
    }

    const fn handshake_to(&self, to: usize) -> Option<u32> {
        value(self.handshake[to]).checked_sub(1)
    }

    /// A frame that was overtaken by the first one seen; one from before the clock was set back tells nothing.
    #[cold]
    fn begin_earlier(&mut self, micros: u64) {
        let earlier = self.start - micros;
        if earlier <= Clock::STEP {
            self.set_duration(self.duration() + earlier);
            self.start = micros;
        }
    }

    /// Begins the next record of a connection that goes on: counts start again, what is known of it stays.
    pub(crate) fn begin_anew(&mut self, micros: u64) {
        self.start = micros;
        self.counters = Counters::default();
        self.marks &= !mark::CARRIED;
        self.set_duration(0);
        if self.is_followed() {
            self.block.begin_anew();
        }
        self.ttl = [[u8::MAX, 0]; 2];
        self.dscp = [0; 2];
        // Without the bits of a side its sequence numbers are not known: keep the one bit that says they are.
        for control in &mut self.control {
            *control &= nvcapture::wire::control::ACK;
        }
    }

    fn tcp_state(&self) -> TcpState {
        let (initiator, responder) = (self.initiator(), 1 - self.initiator());
        let fin = |side: usize| self.has(state::FIN << side);
        let acked = |side: usize| self.has(state::FIN_ACKED << side);
        if self.has(state::RESET) {
            return TcpState::Closed;
        }
        if !fin(initiator) && !fin(responder) {
            let answered = self.control[responder] & nvcapture::wire::control::SYN != 0;
            return match (self.has(state::ESTABLISHED), answered) {
                (true, _) => TcpState::Established,
                (false, true) => TcpState::SynReceived,
                (false, false) => TcpState::SynSent,
            };
        }
        let responder_first = if fin(initiator) && fin(responder) {
            self.has(state::HIGH_FIRST) == (responder == 1)
        } else {
            fin(responder)
        };
        match (
            responder_first,
            fin(initiator),
            fin(responder),
            acked(initiator),
        ) {
            (false, _, false, false) => TcpState::FinWait1,
            (false, _, false, true) => TcpState::FinWait2,
            (false, _, true, false) => TcpState::Closing,
            (false, _, true, true) => TcpState::TimeWait,
            (true, false, ..) => TcpState::CloseWait,
            (true, true, _, false) => TcpState::LastAck,
            (true, true, _, true) => TcpState::Closed,
        }
    }

    #[inline(always)]
    fn side(&self, side: usize, carried: &Carried) -> Side {
        let [packets, octets, layer2_octets, payload_octets] = if self.has_carried() {
            self.counters.with(side, carried)
        } else {
            self.counters.of(side)
        };
        let [lowest, highest] = self.ttl[side];
        Side {
            packets,
            octets,
            layer2_octets,
            payload_octets,
            tcp_control_bits: self.control[side],
            minimum_ttl: if packets == 0 { 0 } else { lowest },
            maximum_ttl: highest,
            dscp: self.dscp[side],
        }
    }

    /// Writes what is to be said of it over what `record` said, but for its tunnel, application and labels; `reason` is why, and gives way to
    /// the end of the connection if that was seen.
    ///
    /// Field by field: a record that is returned is made on the stack first, piece by piece, and read back in other pieces, which stalls.
    #[inline(always)]
    pub(crate) fn write(
        &self,
        record: &mut FlowRecord,
        key: &FlowKey,
        events: &TcpEvents,
        carried: &Carried,
        reason: Option<FlowEndReason>,
    ) {
        // All of them named, so that none is forgotten.
        let FlowRecord {
            flow_start,
            flow_end,
            source,
            destination,
            protocol_identifier,
            has_ports,
            icmp_type_code,
            vlan_id,
            customer_vlan_id,
            observation_point,
            vantage,
            forward,
            reverse,
            flow_end_reason,
            tcp,
            tunnel: _,
            application: _,
            labels: _,
        } = record;
        let (initiator, responder) = (self.initiator(), 1 - self.initiator());
        let end = self.start.saturating_add(self.duration());
        *flow_start = Timestamp::from_nanos(self.start.saturating_mul(1_000));
        *flow_end = Timestamp::from_nanos(end.saturating_mul(1_000));
        [*source, *destination] = key.ends_from(initiator);
        *protocol_identifier = key.protocol();
        *has_ports = key.has_ports();
        *icmp_type_code = key.icmp_type_code();
        [*vlan_id, *customer_vlan_id] = key.vlans();
        *observation_point = key.observation_point();
        *vantage = match self.marks & (mark::INSIDE_LOW | mark::INSIDE_HIGH) {
            mark::INSIDE_LOW => Some(0),
            mark::INSIDE_HIGH => Some(1),
            _ => None,
        }
        .map(|inside| {
            if inside == initiator {
                Vantage::Egress
            } else {
                Vantage::Ingress
            }
        });
        *forward = self.side(initiator, carried);
        *reverse = self.side(responder, carried);
        *flow_end_reason = match reason {
            None if self.has_ended() => Some(FlowEndReason::EndOfFlowDetected),
            Some(FlowEndReason::ActiveTimeout) | None => reason,
            Some(_) if self.has_ended() || self.both_said_fin() => {
                Some(FlowEndReason::EndOfFlowDetected)
            }
            other => other,
        };
        if !self.is_tcp() {
            *tcp = None;
            return;
        }
        let tcp = tcp.insert(TcpRecord {
            state: self.tcp_state(),
            server_handshake_rtt_micros: self.handshake_to(1),
            client_handshake_rtt_micros: self.handshake_to(0),
            forward: TcpSide::default(),
            reverse: TcpSide::default(),
        });
        if self.is_followed() {
            let events = self.block.events(events);
            tcp.forward = self.block.side(&events, initiator);
            tcp.reverse = self.block.side(&events, responder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an entry does: first carries, where that has to be, then adds.
    fn add(
        counters: &mut Counters,
        carried: &mut Carried,
        direction: usize,
        amounts: [u32; 4],
    ) -> bool {
        let are_high = counters.are_high(direction);
        if are_high {
            counters.carry(direction, carried);
        }
        counters.add(direction, Amounts::new(amounts));
        are_high
    }

    #[test]
    fn counters_carry() {
        let (mut counters, mut carried) = (Counters::default(), NO_CARRIED);
        let mut expected = [[0_u64; 4]; 2];
        let mut times = 0;
        for turn in 0..60_u32 {
            let direction = (turn % 2) as usize;
            let amounts = [1, Amounts::MOST, 1 << (turn % 31), Amounts::MOST - turn];
            times += u32::from(add(&mut counters, &mut carried, direction, amounts));
            for (sum, amount) in expected[direction].iter_mut().zip(amounts) {
                *sum += u64::from(amount);
            }
            let told = [0, 1].map(|direction| counters.with(direction, &carried));
            assert_eq!(told, expected);
        }
        assert!(times > 20, "{times}");
    }

    #[test]
    fn a_counter_that_is_full_spoils_no_other() {
        // Nearly full, all but the IP octets.
        let nearly = (u64::MAX - 3) & !(0xffff << 13);
        let (mut counters, mut carried) = (Counters::default(), [0, nearly]);
        for _ in 0..20 {
            let most = [Amounts::MOST, 1, Amounts::MOST, Amounts::MOST];
            add(&mut counters, &mut carried, 1, most);
        }
        assert_eq!(counters.with(0, &carried), [0; 4]);
        let told = counters.with(1, &carried);
        for (place, (counter, size)) in told.into_iter().zip([13, 17, 17, 17]).enumerate() {
            let units = counter >> Counters::UNIT_BITS;
            let expected = if place == 1 { 1 << 16 } else { 1 << size };
            assert!(
                (expected..expected + 3).contains(&units),
                "{place}: {units}"
            );
        }
        assert_eq!(told[1] & ((1 << Counters::UNIT_BITS) - 1), 20);
    }

    #[test]
    fn what_was_much_does_not_become_little() {
        let (mut counters, mut carried) = (Counters::default(), NO_CARRIED);
        for amount in [Amounts::MOST, 1] {
            counters.add(0, Amounts::new([amount, 0, amount, 0]));
        }
        assert!(counters.are_high(0));
        counters.carry(0, &mut carried);
        assert_eq!(counters.packets(0), 1 << Counters::UNIT_BITS);
        assert_eq!(counters.payload_octets(0), 0);
        assert_eq!(
            counters.with(0, &carried),
            [1 << Counters::BITS, 0, 1 << Counters::BITS, 0]
        );
    }

    #[test]
    fn amounts_are_told_as_given() {
        let amounts = [1, Amounts::MOST, 3, 4];
        let packed = Amounts::new(amounts);
        assert_eq!(packed.each(), amounts);
        assert_eq!((packed.packets(), packed.payload_octets()), (1, 4));
    }

    #[test]
    fn a_connection_may_last_for_long() {
        let hour = 3_600_000_000;
        let mut step = Step {
            micros: 5 * hour,
            ..Step::EMPTY
        };
        let mut entry = Entry::opened_by(&step, 0);
        for (at, duration) in [(5, 0), (6, 1), (7, 2), (6, 2), (40, 35), (5, 35)] {
            step.micros = at * hour;
            entry.count(&step);
            assert_eq!(entry.duration(), duration * hour);
        }
        // Overtaken by the first: the connection began earlier.
        step.micros = 5 * hour - 7;
        entry.count(&step);
        assert_eq!(entry.duration(), 35 * hour + 7);
        assert_eq!(entry.start, 5 * hour - 7);
    }

    #[test]
    fn handshakes_take_up_to_24_bits() {
        let mut entry = Entry::FREE;
        assert_eq!([0, 1].map(|to| entry.handshake_to(to)), [None; 2]);
        for (micros, kept) in [
            (0, 0),
            (0xffff, 0xffff),
            (0x12_3456, 0x12_3456),
            (u32::MAX, 0xff_fffe),
        ] {
            entry.set_handshake(1, micros);
            assert_eq!([0, 1].map(|to| entry.handshake_to(to)), [None, Some(kept)]);
        }
    }
}
