//! Frames in, records out.

use std::fmt;
use std::ops::ControlFlow;

use nvcapture::wire::{
    Headers, Plain, PlainVisitor, SegmentSource, Segments, Transport, Tunnel, WireError,
};
use nvcapture::{Ability, Frame, FrameMeta, LinkType, SegmentSize, Timestamp, Usual, Wide, Work};

use crate::clock::Clock;
use crate::entry::{Amounts, Step};
use crate::fragments::Fragments;
use crate::table::{Evicted, Table};
use crate::tcp::Segment;
use crate::{
    Direction, Error, FlowEndReason, FlowKey, FlowRecord, KeyHasher, MeterConfig, MeterStats,
    ResolvedName, Sink,
};

/// Frames that are taken before anything else is done with them.
///
/// Each needs three cache lines from anywhere in the table: one of the index, two of the entry (and of IPv6 the addresses as a fourth). One
/// after the other, every line would be waited for. So of four batches in a line the last asks for the index's lines, the one before for the
/// entries that those tell, the one before that for what else few frames need, and the oldest is counted: by then all is there.
///
/// A processor that does not know where a page is looks that up before it goes on from what asks for it, unless that stands beside others of its kind: one
/// frame at a time took 12 % longer (nv-trace's uniform and ipv6). Eight at a time are more lines than it can wait for, and took 15 to 40 % longer.
const BATCH: usize = 4;
/// Batches in the line of frames that wait.
const BATCHES: usize = 4;
/// Frames in the line.
const LINE: usize = BATCHES * BATCH;

/// More than any connection lasts, and less than a time before its start comes to when it is taken modulo 2^64. Unit: microseconds.
const MOST_ACTIVE: u128 = 1 << 62;

/// Meters frames into connections.
///
/// ```
/// use nvcapture::Frame;
/// use nvflow::{FlowRecord, Meter, MeterConfig};
///
/// # fn frames() -> Vec<Frame<'static>> { Vec::new() }
/// let mut meter = Meter::new(MeterConfig::default())?;
/// let mut records: Vec<FlowRecord> = Vec::new(); // any `Sink`
/// let _ = meter.observe(frames(), &mut records)?;
/// let _ = meter.finish(&mut records)?;
/// assert!(meter.stats().is_balanced());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Meter {
    metering: Metering,
    line: Box<[[Step; BATCH]; BATCHES]>,
}

/// The octets that were kept of a frame, and what they begin with.
type Kept<'f> = (&'f [u8], LinkType);

/// All of a meter but its line.
struct Metering {
    config: MeterConfig,
    active: u64,
    clock: Clock,
    table: Table,
    fragments: Fragments,
    hasher: KeyHasher,
    stats: MeterStats,
    /// Packets of super-frames metered, beyond one for each.
    beyond_frames: u64,
    /// Packets longer than this may be of super-frames where the source does not tell. Unit: octets.
    longest: u32,
    /// Of each frame in the line; empty unless tunnels are looked into.
    tunnels: Box<[Option<Tunnel>]>,
    /// The last one made, over which the next is written.
    record: FlowRecord,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("config", &self.metering.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Meter {
    /// A meter with an empty table.
    ///
    /// Reserves address space for `max_connections` and touches it as connections come: 144 octets for each, 32 more for IPv6, 24 once something
    /// goes wrong in TCP, 8 with a VLAN, a virtual network or ICMP, 16 from 2 GiB on. Fails when there is not so much.
    pub fn new(config: MeterConfig) -> Result<Self, Error> {
        let table = Table::new(&config)?;
        let tunnels = if config.decapsulate { LINE } else { 0 };
        let metering = Metering {
            active: config.timeouts.active.as_micros().min(MOST_ACTIVE) as u64,
            clock: Clock::default(),
            table,
            fragments: Fragments::new(),
            hasher: config
                .hash_key
                .map_or_else(KeyHasher::random, KeyHasher::new),
            stats: MeterStats::default(),
            beyond_frames: 0,
            longest: config.mtu.unwrap_or(u32::MAX),
            tunnels: vec![None; tunnels].into_boxed_slice(),
            record: FlowRecord::default(),
            config,
        };
        Ok(Self {
            metering,
            line: Box::new([[Step::EMPTY; BATCH]; BATCHES]),
        })
    }

    /// Meters `frames`, oldest first; records of connections that ended meanwhile go to `sink`.
    ///
    /// All frames are metered, whatever the sink says: what it does not take any more is counted as undelivered.
    pub fn observe<'f, S: Sink>(
        &mut self,
        frames: impl IntoIterator<Item = Frame<'f>>,
        sink: &mut S,
    ) -> Result<ControlFlow<()>, S::Error> {
        match Wide::detect() {
            Some(wide) => self.observe_by(wide, frames, sink),
            None => self.observe_by(Usual, frames, sink),
        }
    }

    fn observe_by<'f, S: Sink>(
        &mut self,
        ability: impl Ability,
        frames: impl IntoIterator<Item = Frame<'f>>,
        sink: &mut S,
    ) -> Result<ControlFlow<()>, S::Error> {
        let Self { metering, line } = self;
        let mut out = Out::new(sink);
        ability.run(Observing {
            ability,
            metering,
            line,
            frames: frames.into_iter(),
            out: &mut out,
        });
        out.finish(&mut metering.stats)
    }

    /// Makes the records of connections that have been idle for too long at the time `now`, without a frame that tells it.
    pub fn expire<S: Sink>(
        &mut self,
        now: Timestamp,
        sink: &mut S,
    ) -> Result<ControlFlow<()>, S::Error> {
        let metering = &mut self.metering;
        let now = metering.clock.advance(now.as_micros());
        let mut out = Out::new(sink);
        metering.expire_until(now, &mut out);
        out.finish(&mut metering.stats)
    }

    /// Makes the records of all connections. The table is empty then, unless the sink wanted no more: those it was not shown stay.
    pub fn finish<S: Sink>(&mut self, sink: &mut S) -> Result<ControlFlow<()>, S::Error> {
        let mut out = Out::new(sink);
        let Metering {
            table,
            stats,
            clock,
            record,
            ..
        } = &mut self.metering;
        // The last frames may have been of no connection, and yet tell the time. It is asked of each connection: how soon the wheels
        // come to it depends on when they were looked at.
        let now = clock.now();
        let mut shown = 0;
        for slot in 0..table.slots_used() {
            if out.is_done() {
                break;
            }
            if table.entry(slot).is_free() {
                continue;
            }
            let reason = if table.is_overdue(slot, now) {
                FlowEndReason::IdleTimeout
            } else {
                FlowEndReason::ForcedEnd
            };
            table.conclude(slot);
            table.write(record, slot, Some(reason));
            out.record(record);
            shown = slot + 1;
        }
        if out.is_done() {
            for slot in 0..shown {
                if !table.entry(slot).is_free() {
                    table.close(slot, table.hash_of(slot));
                }
            }
        } else {
            table.clear();
        }
        out.finish(stats)
    }

    /// Shows `visit` every open connection as it stands now, in no order; stops when told to.
    ///
    /// Such a record's counts are those since the connection's last record. Its end reason is `None`, or
    /// [`FlowEndReason::EndOfFlowDetected`] for one that has ended and stays a little for what comes late.
    pub fn open(&self, mut visit: impl FnMut(&FlowRecord) -> ControlFlow<()>) -> ControlFlow<()> {
        self.metering
            .table
            .slots()
            .try_for_each(|slot| visit(&self.metering.table.record(slot, None)))
    }

    /// As [`open`](Self::open) for up to `most` places of the table, from `from` on; tells from where to go on, `None` at the end.
    ///
    /// Frames may be metered between two such looks: a connection that stays open is shown once, one that is opened or ends meanwhile
    /// may be shown or not.
    pub fn open_from(
        &self,
        from: u32,
        most: u32,
        mut visit: impl FnMut(&FlowRecord),
    ) -> Option<u32> {
        let used = self.metering.table.slots_used();
        let end = from.saturating_add(most).min(used);
        for slot in from..end {
            if !self.metering.table.entry(slot).is_free() {
                visit(&self.metering.table.record(slot, None));
            }
        }
        (end < used).then_some(end)
    }

    /// Replaces [`MeterConfig::mtu`], as the interface's own changes.
    pub fn set_mtu(&mut self, mtu: Option<u32>) {
        self.metering.config.mtu = mtu;
        self.metering.longest = mtu.unwrap_or(u32::MAX);
    }

    /// As [`open`](Self::open), with the number of each connection's place in the table.
    ///
    /// The place stays the same as long as the connection is open; afterwards another one may get it, which begins later
    /// or has other ends. Places are below [`MeterStats::high_water`]: whoever looks again and again can keep what it knows
    /// of each connection in an array.
    pub fn open_places(
        &self,
        mut visit: impl FnMut(u32, FlowRecord) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let table = &self.metering.table;
        table
            .slots()
            .try_for_each(|slot| visit(slot, table.record(slot, None)))
    }

    /// Takes a name that another meter has learnt, as [`resolved_names`](Self::resolved_names) gave it: for meters that share the frames. One
    /// that learns none itself ([`Identify::names`](crate::Identify::names) is 0) takes none.
    pub fn learn(&mut self, told: &ResolvedName) {
        self.metering.table.learn(told);
    }

    /// The last names that responses of DNS have told, oldest first, each once; see [`Identify::names`](crate::Identify::names).
    pub fn resolved_names(&mut self) -> impl Iterator<Item = ResolvedName> {
        self.metering.table.resolved_names()
    }

    /// What was done so far.
    pub fn stats(&self) -> MeterStats {
        let found = self.metering.table.identified();
        MeterStats {
            connections: self.metering.table.len() as u64,
            identified: found.identified,
            names_refused: found.without_names,
            pieces_given_up: found.given_up,
            packets: self.metering.stats.metered + self.metering.beyond_frames,
            ..self.metering.stats
        }
    }
}

/// Meters some frames.
struct Observing<'m, 's, A, F, S: Sink> {
    ability: A,
    metering: &'m mut Metering,
    line: &'m mut [[Step; BATCH]; BATCHES],
    frames: F,
    out: &'m mut Out<'s, S>,
}

impl<'f, A: Ability, F: Iterator<Item = Frame<'f>>, S: Sink> Work for Observing<'_, '_, A, F, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            ability,
            metering,
            line,
            frames,
            out,
        } = self;
        let identifies = metering.config.identify.is_some();
        // What was kept of each frame in the line; nothing unless it may be looked at again.
        let mut kept: [[Kept<'f>; BATCH]; BATCHES] = [[(&[], LinkType::ETHERNET); BATCH]; BATCHES];
        // How many frames have entered the line.
        let mut taken: usize = 0;
        // By `for_each`: a source may know a shorter way from frame to frame than by being asked for each.
        frames.for_each(|frame| {
            let place = taken % LINE;
            if identifies {
                kept.as_flattened_mut()[place] = (frame.octets(), frame.meta().link_type);
            }
            if !metering.take(&frame, &mut line.as_flattened_mut()[place], place) {
                // The next frame gets the place.
                return;
            }
            taken += 1;
            if taken.is_multiple_of(BATCH) {
                ability.run(Advancing {
                    metering,
                    line,
                    kept: &kept,
                    turn: taken / BATCH,
                    out,
                });
            }
        });
        // What is left: the batch that is not full, and those that wait.
        let whole = taken / BATCH * BATCH;
        let (line, kept) = (line.as_flattened_mut(), kept.as_flattened());
        for place in (whole..taken).chain(whole.saturating_sub(BATCH)..whole) {
            metering.look(&mut line[place % LINE]);
        }
        for place in whole.saturating_sub(2 * BATCH)..taken {
            metering.look_further(&line[place % LINE]);
        }
        for place in whole.saturating_sub(3 * BATCH)..taken {
            let place = place % LINE;
            metering.count(&line[place], &kept[place], place, out);
        }
    }
}

/// Does what is to be done each time that a batch of frames has been taken: `turn` in all.
struct Advancing<'m, 's, 'f, S: Sink> {
    metering: &'m mut Metering,
    line: &'m mut [[Step; BATCH]; BATCHES],
    kept: &'m [[Kept<'f>; BATCH]; BATCHES],
    turn: usize,
    out: &'m mut Out<'s, S>,
}

impl<S: Sink> Work for Advancing<'_, '_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            metering,
            line,
            kept,
            turn,
            out,
        } = self;
        // Where the batch is that was taken so many before the last one, if there was one.
        let batch = |before: usize| (turn > before).then(|| (turn - 1 - before) % BATCHES);
        if let Some(batch) = batch(0) {
            for step in &line[batch] {
                metering.table.prefetch_index(KeyHasher::whole(step.hash));
            }
        }
        if let Some(batch) = batch(1) {
            for step in &mut line[batch] {
                metering.look(step);
            }
        }
        if let Some(batch) = batch(2) {
            for step in &line[batch] {
                metering.look_further(step);
            }
        }
        if let Some(batch) = batch(3) {
            for (place, (step, kept)) in line[batch].iter().zip(&kept[batch]).enumerate() {
                metering.count(step, kept, batch * BATCH + place, out);
            }
        }
    }
}

/// Puts a plain frame into its place in the line.
struct Stepping<'m, 'f> {
    metering: &'m mut Metering,
    frame: &'m Frame<'f>,
    step: &'m mut Step,
}

impl<'f> PlainVisitor<'f> for Stepping<'_, 'f> {
    type Output = ();

    #[inline(always)]
    fn visit(self, plain: Plain<'f>) {
        self.metering.step_plain(self.frame, &plain, self.step);
    }
}

impl Metering {
    /// Reads a frame's headers into its place in the line; whether there is an IP packet in it.
    #[inline(always)]
    fn take(&mut self, frame: &Frame<'_>, step: &mut Step, place: usize) -> bool {
        self.stats.frames += 1;
        let micros = frame.timestamp().as_micros();
        let now = self.clock.advance(micros);
        step.micros = micros;
        step.now = now;
        // A tag in the octets makes a frame not plain; one beside them may be part of the key.
        let is_plain = !self.config.decapsulate
            && frame.meta().vlan.is_none()
            && Plain::show(
                frame,
                Stepping {
                    metering: self,
                    frame,
                    step,
                },
            )
            .is_some();
        if !is_plain {
            // A copy, so that of the plain ones nothing need be in memory.
            let frame = needed(frame);
            return self.take_odd(&frame, step, place, now);
        }
        true
    }

    #[inline(never)]
    fn take_odd(&mut self, frame: &Frame<'_>, step: &mut Step, place: usize, now: u64) -> bool {
        // By reference: headers that are moved are read back wider than they were written, which stalls.
        let parsed = Headers::parse(frame);
        let headers = match &parsed {
            Ok(headers) => headers,
            Err(WireError::NotIp { .. }) => {
                self.stats.not_ip += 1;
                return false;
            }
            Err(_) => {
                self.stats.unparsed += 1;
                return false;
            }
        };
        if self.config.decapsulate {
            self.step_decapsulated(frame, headers, step, place, now);
        } else {
            self.step(frame, headers, headers.ip_octets, step, now);
        }
        true
    }

    #[cold]
    fn step_decapsulated(
        &mut self,
        frame: &Frame<'_>,
        outer: &Headers<'_>,
        step: &mut Step,
        place: usize,
        now: u64,
    ) {
        let inner = outer.decapsulate();
        self.stats.decapsulated += u64::from(inner.is_some());
        let headers = inner.as_ref().unwrap_or(outer);
        if let Some(tunnel) = self.tunnels.get_mut(place) {
            *tunnel = headers.tunnel;
        }
        self.step(frame, headers, outer.ip_octets, step, now);
    }

    /// As [`step`](Self::step), for the frames that nearly all traffic is made of.
    #[inline(always)]
    fn step_plain(&mut self, frame: &Frame<'_>, plain: &Plain<'_>, step: &mut Step) {
        let (observed, sender_inside) = self.config.observation.of(Some(&plain.ethernet));
        let segment = match plain.transport {
            Transport::Tcp(tcp) => Some(Segment::of(tcp)),
            _ => None,
        };
        let (key, direction) = FlowKey::of_plain(plain, observed);
        step.hash = self.table.hash(&key);
        step.set_key(&key);
        // No plain frame is too long, nor has this one a tag beside its octets.
        step.amounts = Amounts::new([1, plain.ip_octets, frame.wire_len(), plain.payload_octets]);
        step.has_segment = segment.is_some();
        step.segment = segment.unwrap_or_default();
        step.direction = direction;
        step.ttl = plain.ip.time_to_live();
        step.dscp = plain.ip.dscp();
        step.payload_at = if step.has_segment {
            // Where there is any, the rest of the packet is headers.
            14_u8.wrapping_add(plain.ip_octets.wrapping_sub(plain.payload_octets) as u8)
        } else {
            0
        };
        step.is_answer = false;
        step.sender_inside = sender_inside;
        if self.may_be_super(frame, plain.ip_octets) {
            let frame = needed(frame);
            self.unfold(&frame, step);
        }
    }

    /// Whether a frame, whose outermost packet has `ip_octets`, may stand for more than one packet.
    #[inline(always)]
    fn may_be_super(&self, frame: &Frame<'_>, ip_octets: u32) -> bool {
        let segment_size = frame.meta().segment_size;
        segment_size != SegmentSize::Whole
            && (segment_size != SegmentSize::Unknown || ip_octets > self.longest)
    }

    /// Counts the frame of `step` as the packets that it stands for.
    #[cold]
    fn unfold(&mut self, frame: &Frame<'_>, step: &mut Step) {
        let Ok(outer) = Headers::parse(frame) else {
            return;
        };
        let Some(segments) = Segments::of(frame, &outer, self.config.mtu) else {
            return;
        };
        let whole = |octets: u32| {
            octets
                .saturating_add(segments.repeated(octets))
                .min(Amounts::MOST)
        };
        let [_, ip_octets, frame_octets, payload_octets] = step.amounts.each();
        // Of a frame that says it were one of octets each, in a file: no more than can be counted.
        let count = segments.count.min(Amounts::MOST);
        step.amounts = Amounts::new([count, whole(ip_octets), whole(frame_octets), payload_octets]);
        self.stats.super_frames += 1;
        self.stats.super_frames_by_mtu += u64::from(segments.source == SegmentSource::Mtu);
        self.beyond_frames += u64::from(count - 1);
    }

    /// Takes back what [`unfold`](Self::unfold) counted of a frame that was refused.
    #[cold]
    fn refuse(&mut self, step: &Step) {
        self.stats.refused += 1;
        self.beyond_frames -= u64::from(step.packets() - 1);
    }

    /// Takes the packet with `headers`; the frame's outermost one has `ip_octets`.
    #[inline(always)]
    fn step(
        &mut self,
        frame: &Frame<'_>,
        headers: &Headers<'_>,
        ip_octets: u32,
        step: &mut Step,
        now: u64,
    ) {
        let (observed, sender_inside) = self.config.observation.of(headers.ethernet.as_ref());
        let (mut key, mut direction) =
            FlowKey::of_observed(headers, observed, self.config.vlan_in_key);
        if let Some(fragment) = headers.fragment {
            match self
                .fragments
                .resolve(&self.hasher, fragment, (key, direction), now)
            {
                Some(found) => {
                    (key, direction) = found;
                    self.stats.fragments += u64::from(fragment.offset != 0);
                }
                None => self.stats.fragments_without_first += 1,
            }
        }
        let mut segment = Segment::default();
        let mut has_segment = false;
        let mut payload_octets = 0;
        let is_answer = match headers.transport {
            Transport::Tcp(tcp) => {
                segment = Segment::of(tcp);
                has_segment = true;
                payload_octets = headers.payload_octets;
                false
            }
            Transport::Udp(_) | Transport::Ports { .. } => {
                payload_octets = headers.payload_octets;
                false
            }
            Transport::Icmp(icmp) => crate::key::is_icmp_reply(headers.protocol, icmp.icmp_type),
            Transport::Other => {
                if key.has_ports() {
                    payload_octets = headers.payload_octets;
                }
                false
            }
        };
        step.hash = self.table.hash(&key);
        step.set_key(&key);
        step.amounts = Amounts::new([
            1,
            headers.ip_octets.min(Amounts::MOST),
            frame_octets(frame),
            payload_octets.min(Amounts::MOST),
        ]);
        step.segment = segment;
        step.has_segment = has_segment;
        step.direction = direction;
        step.ttl = headers.ip.time_to_live();
        step.dscp = headers.ip.dscp();
        step.payload_at = 0;
        step.is_answer = is_answer;
        step.sender_inside = sender_inside;
        if self.may_be_super(frame, ip_octets) {
            self.unfold(frame, step);
        }
    }

    /// Asks for the entry that a frame in the line may be of.
    #[inline(always)]
    fn look(&self, step: &mut Step) {
        step.candidate = self.table.candidate(KeyHasher::whole(step.hash));
        self.table.prefetch_entry(step.candidate);
    }

    /// Asks for what few frames need beside it: the rest of a long key, and what lies beside the timer if that may be moved.
    #[inline(always)]
    fn look_further(&self, step: &Step) {
        if step.key.is_long() {
            self.table.prefetch_key(step.candidate, &step.key);
        }
        if step.has_segment & step.segment.may_end() {
            self.table.prefetch_beside(step.candidate);
        }
    }

    /// Counts a frame to its connection.
    #[inline(always)]
    fn count<S: Sink>(&mut self, step: &Step, kept: &Kept<'_>, place: usize, out: &mut Out<'_, S>) {
        if self.table.is_due(step.now) {
            self.expire_until(step.now, out);
        }
        if self.table.count_in_line(step, kept.0, self.active) {
            self.stats.metered += 1;
        } else {
            self.count_any(step, *kept, place, out);
        }
    }

    /// The same for whatever frame.
    #[inline(never)]
    fn count_any<S: Sink>(
        &mut self,
        step: &Step,
        kept: Kept<'_>,
        place: usize,
        out: &mut Out<'_, S>,
    ) {
        let found = match self.table.find(step) {
            Some(slot) => self.go_on(slot, step, out),
            None => None,
        };
        let slot = match found {
            Some(slot) => slot,
            None => match self.open_for(step, place, out) {
                Some(slot) => slot,
                None => return self.refuse(step),
            },
        };
        if !kept.0.is_empty() && step.payload_octets() > 0 && !self.table.is_settled(slot, step) {
            self.look_behind_headers(slot, step, kept);
        }
        self.table.count(slot, step);
        self.stats.metered += 1;
    }

    /// Looks at the payload of a frame, since it may tell what its connection speaks.
    ///
    /// Walks through the headers again: that is done for few frames, and so all others need not keep where their payload is.
    #[cold]
    fn look_behind_headers(&mut self, slot: u32, step: &Step, (octets, link_type): Kept<'_>) {
        let meta = FrameMeta {
            link_type,
            // The lengths in the headers count; they were found to fit before.
            ..FrameMeta::ethernet(Timestamp::ZERO, u32::MAX >> 1)
        };
        let Ok(outer) = Headers::parse(&Frame::new(octets, meta)) else {
            return;
        };
        let inner = self.config.decapsulate.then(|| outer.decapsulate());
        let inner = inner.flatten();
        let headers = inner.as_ref().unwrap_or(&outer);
        if matches!(headers.transport, Transport::Tcp(_) | Transport::Udp(_)) {
            self.table.look(slot, step, headers.payload);
        }
    }

    /// The slot, if the frame of `step` belongs to the connection there; else its record is made and it is gone.
    #[inline(always)]
    fn go_on<S: Sink>(&mut self, slot: u32, step: &Step, out: &mut Out<'_, S>) -> Option<u32> {
        if self.table.is_overdue(slot, step.now) {
            self.close(slot, FlowEndReason::IdleTimeout, out);
            return None;
        }
        let entry = self.table.entry(slot);
        if step.has_segment && step.segment.begins() && crate::tcp::replaces(entry, step) {
            self.close(slot, FlowEndReason::EndOfFlowDetected, out);
            return None;
        }
        if entry.since_start(step.micros) > self.active && entry.few_packets() > 0 {
            self.report_active(slot, step.micros, out);
        }
        Some(slot)
    }

    #[cold]
    fn report_active<S: Sink>(&mut self, slot: u32, micros: u64, out: &mut Out<'_, S>) {
        self.table.conclude(slot);
        self.table
            .write(&mut self.record, slot, Some(FlowEndReason::ActiveTimeout));
        out.record(&self.record);
        self.table.begin_anew(slot, micros);
    }

    /// A slot for the connection that the frame of `step` opens.
    #[inline(never)]
    fn open_for<S: Sink>(
        &mut self,
        step: &Step,
        place: usize,
        out: &mut Out<'_, S>,
    ) -> Option<u32> {
        if self.table.is_full() {
            let (victim, why) = self.table.victim(step.now)?;
            *match why {
                Evicted::Ended => &mut self.stats.evicted_ended,
                Evicted::Embryonic => &mut self.stats.evicted_embryonic,
                Evicted::Idle => &mut self.stats.evicted_idle,
            } += 1;
            self.close(victim, FlowEndReason::LackOfResources, out);
        }
        let slot = self
            .table
            .open(step, self.tunnels.get(place).copied().flatten());
        self.stats.opened += 1;
        self.stats.high_water = self.stats.high_water.max(self.table.len() as u64);
        Some(slot)
    }

    #[cold]
    fn expire_until<S: Sink>(&mut self, now: u64, out: &mut Out<'_, S>) {
        while let Some(slot) = self.table.overdue(now) {
            self.close(slot, FlowEndReason::IdleTimeout, out);
        }
    }

    fn close<S: Sink>(&mut self, slot: u32, reason: FlowEndReason, out: &mut Out<'_, S>) {
        // The index needs a line from anywhere: asked for before the record is made, it has come after.
        let hash = self.table.hash_of(slot);
        self.table.prefetch_index(hash);
        self.table.conclude(slot);
        self.table.write(&mut self.record, slot, Some(reason));
        out.record(&self.record);
        self.table.prefetch_following(slot);
        self.table.close(slot, hash);
    }
}

/// The frame with what the meter asks of it alone, so that a source need not find out the rest of each.
#[inline(always)]
fn needed<'f>(frame: &Frame<'f>) -> Frame<'f> {
    let FrameMeta {
        timestamp,
        wire_len,
        link_type,
        vlan,
        segment_size,
        interface: _,
        packet_type: _,
        checksum_not_ready: _,
    } = *frame.meta();
    let meta = FrameMeta {
        link_type,
        vlan,
        segment_size,
        ..FrameMeta::ethernet(timestamp, wire_len)
    };
    Frame::new(frame.octets(), meta)
}

/// Octets of a frame on the wire, where a tag that a ring tells beside the octets was among them.
#[inline(always)]
fn frame_octets(frame: &Frame<'_>) -> u32 {
    frame
        .wire_len()
        .saturating_add(4 * u32::from(frame.meta().vlan.is_some()))
        .min(Amounts::MOST)
}

/// A sink that has not failed yet, or why it takes no more.
struct Out<'s, S: Sink> {
    sink: &'s mut S,
    said: Result<ControlFlow<()>, S::Error>,
    records: u64,
    undelivered: u64,
}

impl<'s, S: Sink> Out<'s, S> {
    fn new(sink: &'s mut S) -> Self {
        Self {
            sink,
            said: Ok(ControlFlow::Continue(())),
            records: 0,
            undelivered: 0,
        }
    }

    fn is_done(&self) -> bool {
        !matches!(self.said, Ok(ControlFlow::Continue(())))
    }

    fn record(&mut self, record: &FlowRecord) {
        self.records += 1;
        if self.is_done() {
            self.undelivered += 1;
        } else {
            match self.sink.record(record) {
                // Kept as it is: an answer that is copied is read back wider than it was written, which stalls.
                Ok(ControlFlow::Continue(())) => {}
                said => {
                    // The one that the sink failed on is lost too.
                    self.undelivered += u64::from(said.is_err());
                    self.said = said;
                }
            }
        }
    }

    fn finish(self, stats: &mut MeterStats) -> Result<ControlFlow<()>, S::Error> {
        stats.records += self.records;
        stats.undelivered += self.undelivered;
        self.said
    }
}

// Both are used as indices of pairs.
const _: () = assert!(Direction::Up as usize == 0 && Direction::Down as usize == 1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of a few connections, some of IPv6, in an order that is none.
    fn segments() -> Vec<[u8; 80]> {
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
            (state >> 33) % below
        };
        let segment = |_| {
            let mut octets = [0_u8; 80];
            let (end, from_server) = (random(40) as u8, random(2) as usize);
            let v6 = end % 3 == 0;
            let (kind, size, tcp) = if v6 {
                ([0x86, 0xdd], 40, 54)
            } else {
                ([0x08, 0x00], 20, 34)
            };
            octets[12..14].copy_from_slice(&kind);
            let payload = random(2) as u8;
            if v6 {
                octets[14] = 0x60;
                octets[19..21].copy_from_slice(&[20 + payload, 6]);
                octets[37 + 16 * from_server] = end;
            } else {
                octets[14] = 0x45;
                octets[17] = size + 20 + payload;
                octets[23] = 6;
                octets[29 + 4 * from_server] = end;
            }
            octets[tcp + 2 * from_server] = 1;
            octets[tcp + 7] = random(5) as u8;
            octets[tcp + 11] = random(5) as u8;
            octets[tcp + 12] = 0x50;
            octets[tcp + 13] = [0x10, 0x10, 0x18, 0x02, 0x11, 0x04][random(6) as usize];
            octets[tcp + 15] = 1;
            octets
        };
        (0..5_000).map(segment).collect()
    }

    #[test]
    fn whatever_the_processor_can_the_records_are_the_same() {
        let segments = segments();
        let frames = |from: usize, to: usize| {
            segments[from..to]
                .iter()
                .enumerate()
                .map(move |(place, octets)| {
                    let at = Timestamp::from_nanos((from + place) as u64 * 300_000_000);
                    Frame::new(octets, FrameMeta::ethernet(at, 80))
                })
        };
        let config = MeterConfig {
            max_connections: 20,
            hash_key: Some([1, 2]),
            ..MeterConfig::default()
        };
        let metered = |is_usual: bool| {
            let mut meter = Meter::new(config).expect("memory");
            let mut records = Vec::new();
            let mut from = 0;
            // Runs of any length, so that batches are left half full.
            for length in (0..).map(|turn| turn % 23) {
                let to = (from + length).min(segments.len());
                let Ok(_) = if is_usual {
                    meter.observe_by(Usual, frames(from, to), &mut records)
                } else {
                    meter.observe(frames(from, to), &mut records)
                };
                from = to;
                if from == segments.len() {
                    break;
                }
            }
            let Ok(_) = meter.finish(&mut records);
            assert!(meter.stats().is_balanced());
            assert_eq!(meter.stats().metered, segments.len() as u64);
            records
        };
        let usual = metered(true);
        assert!(usual.len() > 100, "{}", usual.len());
        assert_eq!(metered(false), usual);
    }
}
