//! A connection as the table keeps it: two and a half cache lines, half a one more for IPv6 addresses.

use nvcapture::Timestamp;
use nvcapture::wire::protocol;

use crate::clock::Clock;
use crate::key::flag;
use crate::tcp::{Segment, TcpBlock, TcpEvents, small};
use crate::{Direction, FlowEndReason, FlowKey, FlowRecord, Side, TcpRecord, TcpState, Vantage};

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// What a frame adds to [`Counters`]: packets, IP octets, frame octets, payload octets; two in a word, the first in its lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts([u64; 2]);

impl Amounts {
    /// The most of each: no frame is longer, though one may say so.
    pub(crate) const MOST: u32 = u32::MAX >> 1;

    /// Each at most [`Self::MOST`].
    #[inline(always)]
    pub(crate) const fn new([packets, octets, layer2_octets, payload_octets]: [u32; 4]) -> Self {
        debug_assert!((packets | octets | layer2_octets | payload_octets) <= Self::MOST);
        Self([
            (octets as u64) << 32 | packets as u64,
            (payload_octets as u64) << 32 | layer2_octets as u64,
        ])
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

/// Counters of 47 bits, two directions, each of what [`Amounts`] holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// 31 bits of each, two in a word as in [`Amounts`]: the bit above each is free to take a carry, so that two are added at once.
    low: [[u64; 2]; 2],
    /// What was carried.
    high: [[u16; 4]; 2],
}

impl Counters {
    const CARRIES: u64 = 1 << 63 | 1 << 31;

    #[inline(always)]
    fn add(&mut self, direction: usize, amounts: Amounts) {
        let low = &mut self.low[direction];
        *low = [
            low[0].wrapping_add(amounts.0[0]),
            low[1].wrapping_add(amounts.0[1]),
        ];
        if (low[0] | low[1]) & Self::CARRIES != 0 {
            self.carry(direction);
        }
    }

    /// Once in 2 GiB.
    #[cold]
    #[inline(never)]
    fn carry(&mut self, direction: usize) {
        for (word, high) in self.low[direction]
            .iter_mut()
            .zip(self.high[direction].chunks_exact_mut(2))
        {
            for (half, high) in high.iter_mut().enumerate() {
                *high = high.wrapping_add((*word >> (31 + 32 * half) & 1) as u16);
            }
            *word &= !Self::CARRIES;
        }
    }

    #[inline]
    pub(crate) fn of(&self, direction: usize) -> [u64; 4] {
        let low = &self.low[direction];
        std::array::from_fn(|place| {
            let low = low[place / 2] >> (32 * (place % 2)) & 0xffff_ffff;
            (u64::from(self.high[direction][place]) << 31) | low
        })
    }

    #[inline]
    fn packets(&self, direction: usize) -> u64 {
        (u64::from(self.high[direction][0]) << 31) | (self.low[direction][0] & 0xffff_ffff)
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
    /// Its timer is in the wheel of connections worth keeping.
    pub(super) const KEPT: u8 = 1 << 3;
    /// What TCP tells beside the state is of this connection.
    pub(super) const FOLLOWED: u8 = 1 << 4;
    /// The lower end's payload is not looked at any more; shifted by 1 for the higher.
    pub(super) const SETTLED: u8 = 1 << 5;
    /// What it speaks is known.
    pub(super) const NAMED: u8 = 1 << 7;
}

/// One connection.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// IPv4: both addresses. IPv6: the slot of the addresses.
    pub(crate) addresses: u64,
    /// The rest of the key; the first word is 0 in a free entry.
    pub(crate) rest: [u64; 2],
    /// When the first frame was seen. Unit: microseconds since the epoch.
    start: u64,
    /// From first frame to last, in microseconds: low part.
    duration_low: u32,
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
    /// The next in the timer's bucket, or among the free.
    pub(crate) next: u32,
    pub(crate) previous: u32,
    /// The high part.
    duration_high: u16,
    /// As `handshake`: the high parts.
    handshake_high: [u8; 2],
    pub(crate) counters: Counters,
    /// Per direction the sequence number behind the highest octet seen.
    pub(crate) sequence: [u32; 2],
    /// Per direction the highest acknowledgment.
    pub(crate) acknowledged: [u32; 2],
    /// Of a connection that is [followed](Self::is_followed) only; before that it holds the hash.
    pub(crate) block: TcpBlock,
    /// How long the handshake took to the client and to the server, in 24 bits, one more than it is, 0 for what is not known: low parts.
    handshake: [u16; 2],
}

const _: () = assert!(size_of::<Entry>() == 160);

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
    pub(crate) hash: u64,
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

    /// Word by word: a whole key would be read back wider than it was written, which stalls.
    #[inline(always)]
    pub(crate) const fn set_key(&mut self, key: &FlowKey) {
        self.key.rest[0] = key.rest[0];
        self.key.rest[1] = key.rest[1];
        self.key.addresses[0] = key.addresses[0];
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
        rest: [0; 2],
        start: 0,
        duration_low: 0,
        last: 0,
        state: 0,
        marks: 0,
        dscp: [0; 2],
        control: [0; 2],
        ttl: [[u8::MAX, 0]; 2],
        next: NONE,
        previous: NONE,
        duration_high: 0,
        handshake_high: [0; 2],
        counters: Counters {
            low: [[0; 2]; 2],
            high: [[0; 4]; 2],
        },
        sequence: [0; 2],
        acknowledged: [0; 2],
        block: TcpBlock::EMPTY,
        handshake: [0; 2],
    };

    /// Makes it a free entry, which tells the next one. What else it held is never looked at.
    pub(crate) fn set_free(&mut self, next: u32) {
        self.rest[0] = 0;
        self.next = next;
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
            rest: step.key.rest,
            start: step.micros,
            last: step.now as u32,
            marks,
            state,
            block: TcpBlock::of_hash(step.hash as u32),
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
        self.rest[0] == 0
    }

    #[inline]
    pub(crate) const fn is_ipv6(&self) -> bool {
        self.rest[0] & flag::V6 != 0
    }

    #[inline]
    pub(crate) const fn protocol(&self) -> u8 {
        (self.rest[0] >> 8) as u8
    }

    #[inline]
    pub(crate) const fn is_tcp(&self) -> bool {
        self.protocol() == protocol::TCP
    }

    #[inline]
    pub(crate) const fn is_kept(&self) -> bool {
        self.marks & mark::KEPT != 0
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

    /// Octets of payload seen of a side.
    pub(crate) fn payload_octets_of(&self, side: usize) -> u64 {
        self.counters.of(side)[3]
    }

    pub(crate) fn set_kept(&mut self, kept: bool) {
        self.marks = if kept {
            self.marks | mark::KEPT
        } else {
            self.marks & !mark::KEPT
        };
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

    /// Packets seen of both sides.
    #[inline]
    pub(crate) fn packets(&self) -> u64 {
        self.counters.packets(0) + self.counters.packets(1)
    }

    #[inline]
    pub(crate) fn packets_of(&self, direction: usize) -> u64 {
        self.counters.packets(direction)
    }

    /// Microseconds from the first frame to `micros`.
    #[inline]
    pub(crate) const fn since_start(&self, micros: u64) -> u64 {
        micros.saturating_sub(self.start)
    }

    /// Whether it is given up before others when the table is full: it has ended, is half-open, or of one packet. Without a branch, as
    /// [`is_ended`](state::is_ended).
    pub(crate) fn is_expendable(&self) -> bool {
        self.has_ended() | (self.packets() <= 1) | (self.is_tcp() & !self.has(state::ESTABLISHED))
    }

    #[inline]
    pub(crate) fn class(&self) -> Class {
        self.class_in(self.state)
    }

    /// The class it has, or had, in that TCP state.
    #[inline(always)]
    pub(crate) fn class_in(&self, state: u8) -> Class {
        match self.protocol() {
            protocol::TCP => TCP_CLASSES[usize::from(state)],
            protocol::UDP => Class::Udp,
            protocol::ICMP | protocol::ICMPV6 => Class::Icmp,
            _ => Class::Other,
        }
    }

    /// Counts the frame of `step`.
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
        if (since_start >> 32 == 0) & (self.duration_high == 0) {
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
        let [low @ .., high] = small(micros.saturating_add(1));
        self.handshake[to] = u16::from_le_bytes(low);
        self.handshake_high[to] = high;
    }

    fn handshake_to(&self, to: usize) -> Option<u32> {
        ((u32::from(self.handshake_high[to]) << 16) | u32::from(self.handshake[to])).checked_sub(1)
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
    fn side(&self, side: usize) -> Side {
        let [packets, octets, layer2_octets, payload_octets] = self.counters.of(side);
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
        *vlan_id = key.vlan_id();
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
        *forward = self.side(initiator);
        *reverse = self.side(responder);
        *flow_end_reason = match reason {
            None if self.has_ended() => Some(FlowEndReason::EndOfFlowDetected),
            Some(FlowEndReason::ActiveTimeout) | None => reason,
            Some(_) if self.has_ended() || self.both_said_fin() => {
                Some(FlowEndReason::EndOfFlowDetected)
            }
            other => other,
        };
        *tcp = if self.is_tcp() {
            let (forward, reverse) = if self.is_followed() {
                let events = self.block.events(events);
                let of = |side| self.block.side(&events, side);
                (of(initiator), of(responder))
            } else {
                Default::default()
            };
            Some(TcpRecord {
                state: self.tcp_state(),
                server_handshake_rtt_micros: self.handshake_to(1),
                client_handshake_rtt_micros: self.handshake_to(0),
                forward,
                reverse,
            })
        } else {
            None
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_carry() {
        let mut counters = Counters::default();
        let mut expected = [[0_u64; 4]; 2];
        for turn in 0..40_u32 {
            let direction = (turn % 2) as usize;
            let amounts = [1, Amounts::MOST, 1 << (turn % 31), Amounts::MOST - turn];
            counters.add(direction, Amounts::new(amounts));
            for (sum, amount) in expected[direction].iter_mut().zip(amounts) {
                *sum += u64::from(amount);
            }
            assert_eq!([0, 1].map(|direction| counters.of(direction)), expected);
        }
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
