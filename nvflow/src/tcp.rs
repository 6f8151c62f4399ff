//! TCP as an onlooker sees it.

use nvcapture::HugeVec;
use nvcapture::wire::{Tcp, control};

use crate::TcpSide;
use crate::entry::{Entry, Step, state};

/// Where a connection is, in the words of RFC 9293 and as its initiator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// SYN was sent.
    SynSent,
    /// SYN was answered.
    SynReceived,
    /// The handshake is done, or was before the first frame seen.
    Established,
    /// The initiator said FIN.
    FinWait1,
    /// The initiator said FIN, which was acknowledged.
    FinWait2,
    /// The responder said FIN.
    CloseWait,
    /// Both said FIN, neither of which was acknowledged.
    Closing,
    /// The responder, then the initiator said FIN; the last acknowledgment is missing.
    LastAck,
    /// Both said FIN, the initiator first, whose FIN was acknowledged.
    TimeWait,
    /// All over: by RST, or by FIN of the responder, then of the initiator.
    Closed,
}

impl TcpState {
    /// All of them, in the order of this type.
    pub const ALL: &'static [Self] = &[
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWait1,
        Self::FinWait2,
        Self::CloseWait,
        Self::Closing,
        Self::LastAck,
        Self::TimeWait,
        Self::Closed,
    ];

    /// The name, as RFC 9293 writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECEIVED",
            Self::Established => "ESTABLISHED",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
            Self::Closed => "CLOSED",
        }
    }
}

impl std::fmt::Display for TcpState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A number of 24 bits that stops at its end, in the three octets that it takes.
pub(crate) type Small = [u8; 3];

const MOST: u32 = (1 << 24) - 1;

pub(crate) const fn value([a, b, c]: Small) -> u32 {
    u32::from_le_bytes([a, b, c, 0])
}

pub(crate) fn small(value: u32) -> Small {
    let [a, b, c, _] = value.min(MOST).to_le_bytes();
    [a, b, c]
}

fn increment(number: &mut Small) {
    *number = small(value(*number) + 1);
}

/// `yes` if `condition` holds, else `no`; both are there already, so there is nothing to guess wrong.
///
/// Whether a segment carries octets, or acknowledges what is waited for, is as good as random: a branch would be mispredicted every other
/// frame, which costs as much as a walk through its headers.
#[inline(always)]
const fn pick(condition: bool, yes: u32, no: u32) -> u32 {
    let mask = (condition as u32).wrapping_neg();
    (yes & mask) | (no & !mask)
}

/// What [`TcpBlock`] waits for, per direction, above the smoothed time.
mod wait {
    pub(super) const NOTHING: u32 = 0;
    /// For the acknowledgment of the octet before the number.
    pub(super) const ACKNOWLEDGMENT: u32 = 1 << 24;
    /// For the octets from the one before the number on, which were overtaken or lost; over when they are acknowledged.
    pub(super) const GAP: u32 = 2 << 24;
    /// The bits of the above.
    pub(super) const ALL: u32 = 3 << 24;
    /// Of the first direction alone: there are [`TcpEvents`](super::TcpEvents).
    pub(super) const EVENTS: u32 = 1 << 31;
}

/// What TCP tells beside its state and any segment may change, per direction.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct TcpBlock {
    /// The sequence number that is waited for.
    number: [u32; 2],
    /// Since when. Unit: microseconds, low 32 bits.
    since: [u32; 2],
    window: [u16; 2],
    /// The smoothed round trip in 24 bits, one more than it is, 0 for none; above it what is waited for, see [`wait`].
    word: [u32; 2],
}

const _: () = assert!(size_of::<TcpBlock>() == 28);

/// What few segments change, per direction: it lies elsewhere, so that the others need not wait for it.
///
/// Counts are kept in 24 bits, so they stop at 16.7 million.
pub(crate) type TcpEvents = [[Small; 2]; 4];

/// None yet.
pub(crate) const NO_EVENTS: TcpEvents = [[[0; 3]; 2]; 4];

const RETRANSMITTED: usize = 0;
const OUT_OF_ORDER: usize = 1;
const DUPLICATE_ACKS: usize = 2;
const ZERO_WINDOWS: usize = 3;

const _: () = assert!(size_of::<TcpEvents>() == 24);

/// Overtaken rather than lost, when a gap is filled so soon. Unit: microseconds.
const REORDERING: u32 = 3_000;

impl TcpBlock {
    pub(crate) const EMPTY: Self = Self {
        number: [0; 2],
        since: [0; 2],
        window: [0; 2],
        word: [wait::NOTHING; 2],
    };

    /// None yet: in its place a connection that is not followed keeps the hash that it is found by.
    pub(crate) const fn of_hash(hash: u32) -> Self {
        Self {
            number: [hash, 0],
            ..Self::EMPTY
        }
    }

    /// What [`of_hash`](Self::of_hash) was given.
    pub(crate) const fn hash(&self) -> u32 {
        self.number[0]
    }

    #[inline(always)]
    const fn waits_for(&self, side: usize) -> u32 {
        self.word[side] & wait::ALL
    }

    #[inline(always)]
    fn wait_for(&mut self, side: usize, what: u32) {
        self.word[side] = (self.word[side] & !wait::ALL) | what;
    }

    /// The events, as they are; none yet when they were not written since the block was taken.
    pub(crate) fn events(&self, events: &TcpEvents) -> TcpEvents {
        if self.word[0] & wait::EVENTS == 0 {
            NO_EVENTS
        } else {
            *events
        }
    }

    /// Counts that `what` happened to `side`; `events` are of all connections, this one's in `slot`, or there are none.
    ///
    /// They come as they are kept: where a slice begins would be looked up ahead of every frame.
    #[cold]
    fn happens(&mut self, events: &mut HugeVec<TcpEvents>, slot: u32, what: usize, side: usize) {
        let Some(events) = events.get_mut(slot as usize) else {
            return;
        };
        if self.word[0] & wait::EVENTS == 0 {
            *events = NO_EVENTS;
            self.word[0] |= wait::EVENTS;
        }
        increment(&mut events[what][side]);
    }

    pub(crate) fn side(&self, events: &TcpEvents, side: usize) -> TcpSide {
        TcpSide {
            smoothed_rtt_micros: (self.word[side] & MOST).checked_sub(1),
            retransmitted_segments: value(events[RETRANSMITTED][side]),
            out_of_order_segments: value(events[OUT_OF_ORDER][side]),
            duplicate_acks: value(events[DUPLICATE_ACKS][side]),
            zero_windows: value(events[ZERO_WINDOWS][side]),
        }
    }

    /// Begins the next record: counts start again.
    pub(crate) fn begin_anew(&mut self) {
        self.word[0] &= !wait::EVENTS;
    }

    /// Follows what `side` sent: `octets` up to `end`, in line or not; `first` if none were seen before.
    #[inline(always)]
    fn sent(&mut self, side: usize, octets: u32, end: u32, in_line: bool, first: bool, time: u32) {
        let waits = self.waits_for(side);
        let starts = (octets > 0) & in_line & ((waits == wait::NOTHING) | first);
        self.number[side] = pick(starts, end, self.number[side]);
        self.since[side] = pick(starts, time, self.since[side]);
        // What was waited for is nothing, or of an earlier record.
        let over = u32::from(starts & first) * wait::ALL;
        self.word[side] = (self.word[side] & !over) | (u32::from(starts) * wait::ACKNOWLEDGMENT);
    }

    /// Follows octets of `side` that are not the next ones: `expected` is the number of those.
    #[cold]
    fn sent_out_of_line(
        &mut self,
        events: &mut HugeVec<TcpEvents>,
        slot: u32,
        step: &Step,
        side: usize,
        expected: u32,
        end: u32,
    ) {
        let segment = &step.segment;
        if end == segment.sequence {
            // No octets. Asked here: whether there are any is as good as random, that they are not the next ones is rare.
            return;
        }
        let time = step.micros as u32;
        let skipped = distance(segment.sequence, expected);
        if distance(end, expected) > 0 {
            if skipped > 0 {
                self.number[side] = expected.wrapping_add(1);
                self.since[side] = time;
                self.wait_for(side, wait::GAP);
            } else {
                self.happens(events, slot, RETRANSMITTED, side);
                self.wait_for(side, wait::NOTHING);
            }
            return;
        }
        // A keep-alive sends the last octet again, or none, on purpose.
        if step.payload_octets() <= 1
            && !segment.is_syn()
            && !segment.has(control::FIN)
            && skipped == -1
        {
            return;
        }
        let missing = self.number[side].wrapping_sub(1);
        let fills = self.waits_for(side) == wait::GAP && distance(segment.sequence, missing) >= 0;
        if fills && time.wrapping_sub(self.since[side]) < REORDERING {
            self.happens(events, slot, OUT_OF_ORDER, side);
            if segment.sequence == missing {
                self.number[side] = end.wrapping_add(1);
            }
        } else {
            self.happens(events, slot, RETRANSMITTED, side);
            self.wait_for(side, wait::NOTHING);
        }
    }

    /// Follows an acknowledgment of what `other` sent; gives the time that it took to come, if it was waited for.
    #[inline(always)]
    fn acknowledged(
        &mut self,
        other: usize,
        acknowledgment: u32,
        time: u32,
        is_smoothed: bool,
    ) -> Option<u32> {
        let word = self.word[other];
        // A gap that is acknowledged was filled, whoever saw it: what comes next may be timed again.
        let is_over = (word & wait::ALL != 0) & (distance(acknowledgment, self.number[other]) >= 0);
        let comes = is_over & (word & wait::ACKNOWLEDGMENT != 0);
        let sample = time.wrapping_sub(self.since[other]);
        // Frames may be a little out of order: a time below zero is none.
        let counts = comes & (sample < 1 << 31);
        let before = word & MOST;
        let time = pick(counts & is_smoothed, smoothed(before, sample), before);
        let waits = pick(is_over, wait::NOTHING, word & wait::ALL);
        self.word[other] = (word & wait::EVENTS) | waits | time;
        (counts & !is_smoothed).then_some(sample)
    }
}

/// The smoothed time after another `sample`: RFC 6298, section 2.3, alpha being 1/8. Both times are one more than they are, 0 for none.
#[inline(always)]
const fn smoothed(before: u32, sample: u32) -> u32 {
    // Below 2^24, so what is between them is too.
    let sample = pick(sample < MOST, sample.wrapping_add(1), MOST);
    let difference = sample as i32 - before as i32;
    // To the nearest number: always down, times of some microseconds would be told too short.
    let after = before as i32 + ((difference + 4) >> 3);
    pick(before == 0, sample, after as u32)
}

/// What matters of a TCP header.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) control: u16,
}

impl Segment {
    #[inline(always)]
    pub(crate) const fn of(tcp: Tcp<'_>) -> Self {
        /// All that have a name; the others are reserved.
        const KEPT: u16 = 0x1ff;
        Self {
            sequence: tcp.sequence(),
            acknowledgment: tcp.acknowledgment(),
            window: tcp.window(),
            control: tcp.control_bits() & KEPT,
        }
    }

    #[inline(always)]
    const fn has(&self, bits: u16) -> bool {
        self.control & bits != 0
    }

    /// Whether it begins a connection, or answers one that does.
    #[inline]
    pub(crate) const fn is_syn(&self) -> bool {
        self.has(control::SYN)
    }

    /// Whether it begins a connection.
    #[inline]
    pub(crate) const fn begins(&self) -> bool {
        self.control & (control::SYN | control::ACK | control::RST) == control::SYN
    }

    /// Whether it may put its connection into a state of which the timeout is shorter.
    #[inline(always)]
    pub(crate) const fn may_end(&self) -> bool {
        self.has(control::FIN | control::RST)
    }

    /// Whether its receiver began the connection.
    #[inline]
    pub(crate) const fn answers(&self) -> bool {
        self.control & (control::SYN | control::ACK) == control::SYN | control::ACK
    }
}

/// How far `a` is after `b`, in sequence numbers.
#[inline(always)]
const fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// Whether the SYN of `step` begins another connection than the one in `entry`, between the same ends.
///
/// Not when it is the SYN of this one sent again: its number is the one that was seen.
pub(crate) fn replaces(entry: &Entry, step: &Step) -> bool {
    let (side, other) = (step.direction as usize, step.direction.opposite() as usize);
    let next = step.segment.sequence.wrapping_add(1);
    let known = entry.control[side] != 0;
    if known && entry.sequence[side] == next {
        return false;
    }
    if entry.has_ended() || entry.has(state::FIN) || entry.has(state::FIN << 1) {
        return true;
    }
    if !entry.has(state::ESTABLISHED) {
        // Half-open: whoever sends it tries again.
        return false;
    }
    if known {
        // An old number is the SYN of this connection, come late; a new one is ahead (RFC 9293, section 3.6.1).
        return distance(entry.sequence[side], next) < 0;
    }
    // Only the other side was seen yet. It may have answered this very SYN.
    !(entry.control[other] & control::ACK != 0 && entry.acknowledged[other] == next)
}

/// Whether the segment of `step` begins where the last one of its side ended, and acknowledges, in a connection both sides of which were seen and
/// that is established; it has none of the control bits `no_control`, and beside those two the connection none of the state bits `no_state`.
#[inline(always)]
const fn is_next(entry: &Entry, step: &Step, no_control: u16, no_state: u8) -> bool {
    const STATE: u8 = state::ESTABLISHED | state::BOTH_ACKNOWLEDGED;
    let segment = &step.segment;
    // What differs, all together: a branch for each would be mispredicted more often.
    let differs = ((segment.control & (no_control | control::ACK)) ^ control::ACK) as u32
        | ((entry.state & (no_state | STATE)) ^ STATE) as u32
        | (segment.sequence ^ entry.sequence[step.direction as usize]);
    (differs == 0) & (segment.window != 0)
}

/// Whether [`follow_in_line`] does for the segment of `step` all that there is to do, as it does for nearly all: nothing but ACK and PSH.
#[inline(always)]
pub(crate) const fn is_in_line(entry: &Entry, step: &Step) -> bool {
    is_next(
        entry,
        step,
        control::SYN | control::FIN | control::RST,
        u8::MAX,
    )
}

/// Whether [`follow_next`] does for the segment of `step` all but the state: it may be a FIN, or come behind one.
#[inline(always)]
const fn is_next_or_last(entry: &Entry, step: &Step) -> bool {
    is_next(entry, step, control::SYN | control::RST, 0)
}

/// Follows a connection through a segment that [is in line](is_in_line); `events` are of all connections, or there are none.
#[inline(always)]
pub(crate) fn follow_in_line(entry: &mut Entry, events: &mut HugeVec<TcpEvents>, step: &Step) {
    let is_duplicate = follow_next(entry, step, step.payload_octets());
    if is_duplicate {
        let side = step.direction as usize;
        entry
            .block
            .happens(events, step.candidate, DUPLICATE_ACKS, side);
    }
}

/// Follows a connection, but for its state, through a segment that [is the next one](is_next) and takes `length` sequence numbers, which are below
/// 2^31 in any real one. Tells whether it is an acknowledgment sent again, which is to be counted.
#[inline(always)]
fn follow_next(entry: &mut Entry, step: &Step, length: u32) -> bool {
    let segment = &step.segment;
    let (side, other) = (step.direction as usize, step.direction.opposite() as usize);
    let end = segment.sequence.wrapping_add(length);
    entry.sequence[side] = end;
    let progress = acknowledgment_progress(entry, side, segment);
    entry.acknowledged[side] = pick(
        progress > 0,
        segment.acknowledgment,
        entry.acknowledged[side],
    );
    entry.control[side] |= segment.control;
    if !entry.is_followed() {
        return false;
    }
    let time = step.micros as u32;
    let block = &mut entry.block;
    block.sent(side, length, end, true, false, time);
    // All together, as one by one they are as good as random.
    let news = progress as u32 | length | u32::from(segment.window ^ block.window[side]);
    let is_duplicate = (news == 0) & (distance(entry.sequence[other], segment.acknowledgment) > 0);
    block.window[side] = segment.window;
    let _ = block.acknowledged(other, segment.acknowledgment, time, true);
    is_duplicate
}

/// Follows the connection in `slot` through the segment of `step`, which is not yet counted; with the `tcp_metrics` or without.
#[inline(always)]
pub(crate) fn follow(
    entry: &mut Entry,
    events: &mut HugeVec<TcpEvents>,
    slot: u32,
    step: &Step,
    tcp_metrics: bool,
) {
    if is_next_or_last(entry, step) {
        // The end of a connection, most of the time.
        let segment = &step.segment;
        let (side, other) = (step.direction as usize, step.direction.opposite() as usize);
        let fin = segment.has(control::FIN);
        let length = step.payload_octets().wrapping_add(fin.into());
        if follow_next(entry, step, length) {
            entry.block.happens(events, slot, DUPLICATE_ACKS, side);
        }
        entry.state |= acknowledged_fin(entry, other, segment);
        if fin {
            follow_fin(entry, side, other, entry.sequence[side]);
        }
        return;
    }
    // Most that come to no second segment are worth no more work than this. A first one may have been told of in a record before.
    let goes_on = entry.few_packets() > 0 || entry.control != [0; 2];
    if tcp_metrics && !entry.is_followed() && goes_on {
        entry.follow();
    }
    follow_any(entry, events, slot, step);
}

/// The state in which the acknowledgment in `segment` puts a connection: of the FIN of `other`, if that is what it acknowledges.
#[inline(always)]
fn acknowledged_fin(entry: &Entry, other: usize, segment: &Segment) -> u8 {
    let acknowledges_fin = entry.has(state::FIN << other)
        & (distance(segment.acknowledgment, entry.sequence[other]) >= 0);
    u8::from(acknowledges_fin) * (state::FIN_ACKED << other)
}

/// Follows a connection through a FIN of `side`, whose segment has its `end` behind that.
#[inline(always)]
fn follow_fin(entry: &mut Entry, side: usize, other: usize, end: u32) {
    if side == 1 && !entry.has(state::FIN) {
        entry.state |= state::HIGH_FIRST;
    }
    entry.state |= state::FIN << side;
    let acked = entry.control[other] & control::ACK != 0;
    if acked && distance(entry.acknowledged[other], end) >= 0 {
        entry.state |= state::FIN_ACKED << side;
    }
}

/// As [`follow`], of whatever segment.
#[inline(always)]
fn follow_any(entry: &mut Entry, events: &mut HugeVec<TcpEvents>, slot: u32, step: &Step) {
    let segment = &step.segment;
    let (side, other) = (step.direction as usize, step.direction.opposite() as usize);
    let (syn, fin, rst, ack) = (
        segment.is_syn(),
        segment.has(control::FIN),
        segment.has(control::RST),
        segment.has(control::ACK),
    );
    let known = entry.control[side] != 0;
    let other_known = entry.control[other] != 0;
    let had_ack = entry.control[side] & control::ACK != 0;
    let time = step.micros as u32;

    if rst {
        if is_plausible_reset(entry, step) {
            entry.state |= state::RESET;
        }
        if !known {
            entry.sequence[side] = segment.sequence;
        }
        entry.control[side] |= segment.control;
        return;
    }

    let octets = step
        .payload_octets()
        .wrapping_add(u32::from(syn) + u32::from(fin));
    let end = segment.sequence.wrapping_add(octets);
    // The first segment of a side is the one expected.
    let expected = pick(known, entry.sequence[side], segment.sequence);
    entry.sequence[side] = pick(distance(end, expected) > 0, end, expected);
    if segment.begins() && (entry.control[0] | entry.control[1]) & control::SYN == 0 {
        // Frames of the other side were seen before this: now it is sure who began.
        entry.set_initiator(side);
        if !(known | fin | entry.is_followed()) {
            // The first of all, most of the time: nothing else of what follows is for it.
            entry.control[side] = segment.control;
            return;
        }
    }
    let progress = pick(
        had_ack,
        acknowledgment_progress(entry, side, segment) as u32,
        1,
    ) as i32;

    if entry.is_followed() {
        let skipped = distance(segment.sequence, expected);
        entry
            .block
            .sent(side, octets, end, skipped == 0, !known, time);
        if skipped != 0 {
            entry
                .block
                .sent_out_of_line(events, slot, step, side, expected, end);
        }
        if ack && other_known {
            let acknowledgment = segment.acknowledgment;
            if (progress == 0)
                & (octets == 0)
                & (segment.window == entry.block.window[side])
                & (distance(entry.sequence[other], acknowledgment) > 0)
            {
                entry.block.happens(events, slot, DUPLICATE_ACKS, side);
            }
            let is_established = entry.has(state::ESTABLISHED);
            if syn
                && !is_established
                && entry.initiator() == other
                && entry.few_packets_of(other) == 1
                && acknowledgment == entry.sequence[other]
            {
                let rtt = entry.since_start(step.micros).min(u32::MAX.into()) as u32;
                entry.set_handshake(1, rtt);
            }
            let took = entry
                .block
                .acknowledged(other, acknowledgment, time, is_established);
            if let Some(took) = took
                && entry.initiator() == side
                && !syn
            {
                entry.set_handshake(0, took);
            }
        }
        entry.block.window[side] = segment.window;
        if segment.window == 0 && !syn && !fin {
            entry.block.happens(events, slot, ZERO_WINDOWS, side);
        }
    }

    if ack {
        entry.acknowledged[side] = pick(
            progress > 0,
            segment.acknowledgment,
            entry.acknowledged[side],
        );
        entry.state |= acknowledged_fin(entry, other, segment);
        let establishes = !syn & ((entry.initiator() == side) | (step.payload_octets() > 0));
        entry.state |= u8::from(establishes) * state::ESTABLISHED;
    }
    if fin {
        follow_fin(entry, side, other, end);
    }
    entry.control[side] |= segment.control;
    if entry.control[0] & entry.control[1] & control::ACK != 0 {
        entry.state |= state::BOTH_ACKNOWLEDGED;
    }
}

/// How far the acknowledgment of `side`'s segment is ahead of the highest one before.
#[inline(always)]
const fn acknowledgment_progress(entry: &Entry, side: usize, segment: &Segment) -> i32 {
    distance(segment.acknowledgment, entry.acknowledged[side])
}

/// Whether a RST can be one of this connection: where its receiver waits for octets, or acknowledging what its receiver sent. Others cannot
/// end what goes on.
fn is_plausible_reset(entry: &Entry, step: &Step) -> bool {
    const NEAR: i32 = 1 << 30;
    const BEHIND: i32 = 1 << 16;
    let (side, other) = (step.direction as usize, step.direction.opposite() as usize);
    let segment = &step.segment;
    let near = |distance: i32| distance > -BEHIND && distance < NEAR;
    if segment.has(control::ACK)
        && entry.control[other] != 0
        && distance(segment.acknowledgment, entry.sequence[other]) == 0
    {
        return true;
    }
    if entry.control[other] & control::ACK != 0 {
        return near(distance(segment.sequence, entry.acknowledged[other]));
    }
    if entry.control[side] != 0 {
        return near(distance(segment.sequence, entry.sequence[side]));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Direction;
    use crate::entry::Amounts;

    /// Segments of one connection, most of them the next one.
    fn segments(mut state: u64) -> Vec<Step> {
        let mut random = move |below: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
            (state >> 33) as u32 % below
        };
        let is_seen_from_start = random(3) > 0;
        let mut next = [u32::MAX - 20, 7];
        let mut micros = 0;
        (0..40)
            .map(|place| {
                let side = random(2) as usize;
                let control = match (place, random(25)) {
                    (0, _) if is_seen_from_start => control::SYN,
                    (1, _) if is_seen_from_start => control::SYN | control::ACK,
                    (_, 0) => random(1 << 9) as u16,
                    (_, 1) => control::FIN,
                    (_, 2) => control::ACK | control::FIN,
                    (_, 3..10) => control::ACK | control::PSH,
                    _ => control::ACK,
                };
                let octets = [0, 1, 100][random(3) as usize];
                let near = |of: u32, by: u32| of.wrapping_add(by).wrapping_sub(2);
                let off = if random(6) == 0 { random(5) } else { 2 };
                let acknowledged = if random(3) == 0 { random(5) } else { 2 };
                let segment = Segment {
                    sequence: near(next[side], off),
                    acknowledgment: near(next[1 - side], acknowledged),
                    window: [0, 1_000, 1_000, 1_000, 2_000][random(5) as usize],
                    control,
                };
                let takes = octets + u32::from(segment.is_syn()) + u32::from(segment.may_end());
                next[side] = segment.sequence.wrapping_add(takes);
                micros += u64::from(random(5_000));
                Step {
                    segment,
                    has_segment: true,
                    direction: [Direction::Up, Direction::Down][side],
                    amounts: Amounts::new([1, 40 + octets, 54 + octets, octets]),
                    micros,
                    now: micros >> 10,
                    candidate: 0,
                    ..Step::EMPTY
                }
            })
            .collect()
    }

    #[test]
    fn every_way_to_follow_a_segment_comes_to_the_same() {
        let (mut in_line, mut next, mut ended) = (0, 0, 0);
        for seed in 0..3_000 {
            let steps = segments(seed);
            let mut entries = [Entry::opened_by(&steps[0], 0); 3];
            let tcp_metrics = !seed.is_multiple_of(3);
            let mut events = [(); 3].map(|()| {
                let count = usize::from(tcp_metrics);
                HugeVec::<TcpEvents>::zeros(count).expect("memory for one")
            });
            for (place, step) in steps.iter().enumerate() {
                if place == 20 && seed.is_multiple_of(4) {
                    for entry in &mut entries {
                        entry.begin_anew(step.micros);
                    }
                }
                let [usual, short, any] = &mut entries;
                let [of_usual, of_short, of_any] = &mut events;
                if is_in_line(usual, step) {
                    follow_in_line(usual, of_usual, step);
                    in_line += 1;
                } else {
                    follow(usual, of_usual, 0, step, tcp_metrics);
                }
                next += usize::from(is_next_or_last(short, step));
                follow(short, of_short, 0, step, tcp_metrics);
                if tcp_metrics && !any.is_followed() && place > 0 {
                    any.follow();
                }
                follow_any(any, of_any, 0, step);
                for entry in &mut entries {
                    entry.count(step);
                }
                let told = |place: usize| {
                    let entry: &Entry = &entries[place];
                    format!(
                        "{entry:?} {:?}",
                        entry
                            .block
                            .events(events[place].first().unwrap_or(&NO_EVENTS))
                    )
                };
                assert_eq!(told(0), told(2), "seed {seed}, segment {place}: {step:?}");
                assert_eq!(told(1), told(2), "seed {seed}, segment {place}: {step:?}");
            }
            ended += usize::from(entries[0].has_ended());
        }
        // So that it is known to have been tried.
        assert!(in_line > 5_000, "{in_line}");
        assert!(next > in_line + 5_000, "{next}");
        assert!(ended > 500, "{ended}");
    }
}
