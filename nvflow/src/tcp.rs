//! TCP as an onlooker sees it.

use nvcapture::wire::control;

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
    /// Both said FIN, the initiator first, and both were acknowledged.
    TimeWait,
    /// All over: by RST, or by FIN of the responder, then of the initiator.
    Closed,
}

impl TcpState {
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

/// A number of 24 bits that stops at its end.
#[derive(Clone, Copy, Debug, Default)]
struct Small([u8; 3]);

impl Small {
    const MOST: u32 = (1 << 24) - 1;

    const fn value(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }

    fn set(&mut self, value: u32) {
        let [a, b, c, _] = value.min(Self::MOST).to_le_bytes();
        self.0 = [a, b, c];
    }

    fn increment(&mut self) {
        self.set(self.value() + 1);
    }

    /// The value, one less, of which 0 stands for none.
    const fn time(self) -> Option<u32> {
        self.value().checked_sub(1)
    }

    fn set_time(&mut self, micros: u32) {
        self.set(micros.saturating_add(1));
    }
}

/// What [`TcpBlock::waits`] is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Wait {
    #[default]
    Nothing,
    /// For the acknowledgment of the octet before the number.
    Acknowledgment,
    /// For the octets from the number on, which were overtaken or lost.
    Gap,
}

/// What TCP tells beside its state, per direction.
///
/// 56 octets: times and counts are kept in 24 bits, so they stop at 16.7 s and 16.7 million.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpBlock {
    /// The sequence number that is waited for.
    number: [u32; 2],
    /// Since when. Unit: microseconds, low 32 bits.
    since: [u32; 2],
    window: [u16; 2],
    waits: [Wait; 2],
    /// Round trips of the handshake: to the client, to the server.
    handshake: [Small; 2],
    smoothed: [Small; 2],
    retransmitted: [Small; 2],
    out_of_order: [Small; 2],
    duplicate_acks: [Small; 2],
    /// 16 bits, to keep the block at 56 octets.
    zero_windows: [u16; 2],
}

const _: () = assert!(size_of::<TcpBlock>() <= 56);

/// Overtaken rather than lost, when a gap is filled so soon. Unit: microseconds.
const REORDERING: u32 = 3_000;

impl TcpBlock {
    pub(crate) const fn free(next: u32) -> Self {
        Self {
            number: [next, 0],
            ..Self::EMPTY
        }
    }

    const EMPTY: Self = Self {
        number: [0; 2],
        since: [0; 2],
        window: [0; 2],
        waits: [Wait::Nothing; 2],
        handshake: [Small([0; 3]); 2],
        smoothed: [Small([0; 3]); 2],
        retransmitted: [Small([0; 3]); 2],
        out_of_order: [Small([0; 3]); 2],
        duplicate_acks: [Small([0; 3]); 2],
        zero_windows: [0; 2],
    };

    /// Of a free block the next one.
    pub(crate) const fn next_free(&self) -> u32 {
        self.number[0]
    }

    /// Something to load, so that the block is in the cache: of both its ends, as they may be in two lines.
    #[inline(always)]
    pub(crate) const fn touch(&self) -> u32 {
        self.number[0] ^ self.zero_windows[1] as u32
    }

    pub(crate) const fn handshake(&self) -> [Option<u32>; 2] {
        let [client, server] = self.handshake;
        [client.time(), server.time()]
    }

    pub(crate) fn side(&self, side: usize) -> TcpSide {
        TcpSide {
            smoothed_rtt_micros: self.smoothed[side].time(),
            retransmitted_segments: self.retransmitted[side].value(),
            out_of_order_segments: self.out_of_order[side].value(),
            duplicate_acks: self.duplicate_acks[side].value(),
            zero_windows: self.zero_windows[side].into(),
        }
    }

    /// Begins the next record: counts start again.
    pub(crate) fn begin_anew(&mut self) {
        self.retransmitted = Default::default();
        self.out_of_order = Default::default();
        self.duplicate_acks = Default::default();
        self.zero_windows = Default::default();
    }

    fn smooth(&mut self, side: usize, sample: u32) {
        let smoothed = &mut self.smoothed[side];
        match smoothed.time() {
            // RFC 6298, section 2.3: alpha is 1/8.
            Some(before) => {
                let difference = i64::from(sample) - i64::from(before);
                smoothed.set_time((i64::from(before) + difference / 8).try_into().unwrap_or(0));
            }
            None => smoothed.set_time(sample),
        }
    }
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
    !(entry.control[other] & control::ACK as u8 != 0 && entry.acknowledged[other] == next)
}

/// Follows the connection in `entry` through the segment of `step`, which is not yet counted.
#[inline]
pub(crate) fn follow(entry: &mut Entry, block: Option<&mut TcpBlock>, step: &Step) {
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
    let had_ack = entry.control[side] & control::ACK as u8 != 0;
    let time = step.micros as u32;
    let mut scratch = TcpBlock::EMPTY;
    let has_block = block.is_some();
    let block = block.unwrap_or(&mut scratch);

    if rst {
        if is_plausible_reset(entry, step) {
            entry.state |= state::RESET;
        }
        if !known {
            entry.sequence[side] = segment.sequence;
        }
        entry.add_control(side, segment.control);
        return;
    }

    let octets = step.payload_octets + u32::from(syn) + u32::from(fin);
    let end = segment.sequence.wrapping_add(octets);
    if segment.begins() && (entry.control[0] | entry.control[1]) & control::SYN as u8 == 0 {
        // Frames of the other side were seen before this: now it is sure who began.
        entry.set_initiator(side);
    }
    if !known {
        entry.sequence[side] = end;
        if octets > 0 {
            block.number[side] = end;
            block.since[side] = time;
            block.waits[side] = Wait::Acknowledgment;
        }
    } else {
        let expected = entry.sequence[side];
        let ahead = distance(end, expected);
        let skipped = distance(segment.sequence, expected);
        if ahead > 0 {
            entry.sequence[side] = end;
        }
        if has_block && octets > 0 {
            if ahead > 0 {
                if skipped > 0 {
                    block.number[side] = expected;
                    block.since[side] = time;
                    block.waits[side] = Wait::Gap;
                } else if skipped < 0 {
                    block.retransmitted[side].increment();
                    block.waits[side] = Wait::Nothing;
                } else if block.waits[side] == Wait::Nothing {
                    block.number[side] = end;
                    block.since[side] = time;
                    block.waits[side] = Wait::Acknowledgment;
                }
            } else {
                // A keep-alive sends the last octet again, or none, on purpose.
                let keeps_alive = step.payload_octets <= 1 && !syn && !fin && skipped == -1;
                let fills = block.waits[side] == Wait::Gap
                    && distance(segment.sequence, block.number[side]) >= 0;
                if keeps_alive {
                } else if fills && time.wrapping_sub(block.since[side]) < REORDERING {
                    block.out_of_order[side].increment();
                    if segment.sequence == block.number[side] {
                        block.number[side] = end;
                    }
                } else {
                    block.retransmitted[side].increment();
                    block.waits[side] = Wait::Nothing;
                }
            }
        }
    }

    if ack {
        let acknowledgment = segment.acknowledgment;
        let progress = if had_ack {
            distance(acknowledgment, entry.acknowledged[side])
        } else {
            1
        };
        if has_block && other_known {
            if progress == 0
                && octets == 0
                && segment.window == block.window[side]
                && distance(entry.sequence[other], acknowledgment) > 0
            {
                block.duplicate_acks[side].increment();
            }
            if syn
                && !entry.has(state::ESTABLISHED)
                && entry.initiator() == other
                && entry.packets_of(other) == 1
                && acknowledgment == entry.sequence[other]
            {
                let rtt = entry.since_start(step.micros).min(u32::MAX.into()) as u32;
                block.handshake[1].set_time(rtt);
            }
            if block.waits[other] == Wait::Acknowledgment
                && distance(acknowledgment, block.number[other]) >= 0
            {
                let sample = time.wrapping_sub(block.since[other]);
                block.waits[other] = Wait::Nothing;
                // Frames may be a little out of order: a time below zero is none.
                if sample < 1 << 31 {
                    if entry.has(state::ESTABLISHED) {
                        block.smooth(other, sample);
                    } else if entry.initiator() == side && !syn {
                        block.handshake[0].set_time(sample);
                    }
                }
            }
        }
        if progress > 0 {
            entry.acknowledged[side] = acknowledgment;
        }
        if entry.has(state::FIN << other) && distance(acknowledgment, entry.sequence[other]) >= 0 {
            entry.state |= state::FIN_ACKED << other;
        }
        if !syn && (entry.initiator() == side || step.payload_octets > 0) {
            entry.state |= state::ESTABLISHED;
        }
    }
    if fin {
        if side == 1 && !entry.has(state::FIN) {
            entry.state |= state::HIGH_FIRST;
        }
        entry.state |= state::FIN << side;
        let acked = entry.control[other] & control::ACK as u8 != 0;
        if acked && distance(entry.acknowledged[other], end) >= 0 {
            entry.state |= state::FIN_ACKED << side;
        }
    }
    if has_block {
        block.window[side] = segment.window;
        if segment.window == 0 && !syn && !fin {
            block.zero_windows[side] = block.zero_windows[side].saturating_add(1);
        }
    }
    entry.add_control(side, segment.control);
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
    if entry.control[other] & control::ACK as u8 != 0 {
        return near(distance(segment.sequence, entry.acknowledged[other]));
    }
    if entry.control[side] != 0 {
        return near(distance(segment.sequence, entry.sequence[side]));
    }
    true
}
