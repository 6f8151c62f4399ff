//! Which connections are known, and what is looked at of the others.

use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use nvcapture::wire::{control, protocol};

use super::datagram::{self, Ends};
use super::dns::Message;
use super::names::{Learner, ResolvedName};
use super::pieces::{LIMIT, Pieces};
use super::{Application, Dns, Identify, Protocol, Verdict, ports, stream};
#[cfg(feature = "quic")]
use super::{quic, tls};
use crate::entry::{Entry, Step};
use crate::{FlowKey, FlowRecord};

/// Packets of a side that are looked at when none of them is known, its beginning being unknown too or there being none.
const TRIES: u64 = 8;

/// Numbers of slots are ours, so nobody chooses them.
#[derive(Default)]
pub(super) struct SlotHasher(u64);

impl Hasher for SlotHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        for octet in octets {
            self.write_u32((*octet).into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

pub(super) type Slots<V> = HashMap<u32, V, BuildHasherDefault<SlotHasher>>;

/// What is known of a connection.
#[derive(Debug)]
struct Known {
    application: Arc<Application>,
    /// The DNS query that waits for its response.
    asked: Option<Asked>,
    /// What it counts for in the memory of all.
    memory: usize,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u16,
    micros: u64,
}

/// A side of a connection of which pieces were seen.
#[derive(Debug)]
struct Started {
    /// The slot of the connection and the side; [`NOWHERE`] when it is free.
    place: u32,
    /// The sequence number of the first octet.
    base: u32,
    /// That octet is the first one of the side, not only the first one seen.
    is_beginning: bool,
    pieces: Pieces,
    #[cfg(feature = "quic")]
    keys: Option<quic::Keys>,
}

const NOWHERE: u32 = u32::MAX;

const fn place(slot: u32, side: usize) -> u32 {
    (slot << 1) | side as u32
}

/// When something was said, and where it was heard.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    micros: u64,
    observation_point: Option<u16>,
}

impl Moment {
    fn of(step: &Step) -> Self {
        Self {
            micros: step.micros,
            observation_point: step.key.observation_point(),
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) identified: u64,
    pub(crate) without_names: u64,
    pub(crate) given_up: u64,
}

/// Finds out what connections speak.
#[derive(Debug)]
pub(crate) struct Identifier {
    config: Identify,
    known: Slots<Known>,
    memory: usize,
    /// Where in the pool the pieces of a side are.
    started: Slots<u32>,
    pool: Vec<Started>,
    free: Vec<u32>,
    /// Whose turn it is to be given up.
    hand: usize,
    /// By protocol, for all connections of which no more is known.
    plain: Box<[Arc<Application>]>,
    /// By place in the list of registered ports.
    guesses: Box<[Arc<Application>]>,
    learner: Learner,
    pub(crate) counts: Counts,
}

impl Identifier {
    pub(crate) fn new(config: Identify) -> Self {
        let plain = |protocol: &Protocol| Arc::new(Application::of(*protocol));
        let guess = |name| {
            Arc::new(Application {
                registered: Some(name),
                ..Application::default()
            })
        };
        Self {
            config,
            known: Slots::default(),
            memory: 0,
            started: Slots::default(),
            pool: Vec::new(),
            free: Vec::new(),
            hand: 0,
            plain: Protocol::ALL.iter().map(plain).collect(),
            guesses: ports::names().map(guess).collect(),
            learner: Learner::new(config.names),
            counts: Counts::default(),
        }
    }

    /// Looks at the payload of a frame, which is not yet counted.
    #[cold]
    pub(crate) fn look(&mut self, entries: &mut [Entry], slot: u32, step: &Step, payload: &[u8]) {
        let side = step.direction as usize;
        let entry = &mut entries[slot as usize];
        match entry.protocol() {
            protocol::TCP if step.has_segment => self.segment(entries, slot, step, payload),
            protocol::UDP => {
                self.datagram(entries, slot, step, payload);
                let entry = &mut entries[slot as usize];
                if !entry.is_settled(side)
                    && entry.few_packets_of(side) + 1 >= TRIES
                    && !self.learner.follows(slot)
                {
                    self.conclude_side(entry, slot, side);
                }
            }
            _ => entry.settle(side),
        }
    }

    /// Whether `payload` begins nothing, in a segment that is in line and not yet counted; then all is done that [`look`](Self::look) would do.
    #[inline(never)]
    pub(crate) fn rules_out(&self, entry: &mut Entry, step: &Step, payload: &[u8]) -> bool {
        let side = step.direction as usize;
        // Nothing at all is the beginning of anything, but a frame that was cut there tells no more.
        let may_begin = !payload.is_empty() && stream::may_begin(payload);
        if may_begin || self.has_pieces(step.candidate, side) {
            return false;
        }
        let is_beginning = !entry.has_payload_of(side) && entry.control[side] & control::SYN != 0;
        if is_beginning || entry.few_packets_of(side) + 1 >= TRIES {
            entry.settle(side);
        }
        true
    }

    fn segment(&mut self, entries: &mut [Entry], slot: u32, step: &Step, payload: &[u8]) {
        let side = step.direction as usize;
        let entry = &mut entries[slot as usize];
        let is_cut = payload.len() < step.payload_octets() as usize;
        let is_syn = step.segment.is_syn();
        let start = step.segment.sequence.wrapping_add(is_syn.into());
        if let Some(&at) = self.started.get(&place(slot, side)) {
            let started = &mut self.pool[at as usize];
            let offset = start.wrapping_sub(started.base) as i32;
            // What lies before the first octet was lost, or is a probe.
            if let Ok(offset) = usize::try_from(offset) {
                started.pieces.put(offset, payload);
            }
            let is_all = is_cut || started.pieces.is_full();
            let is_beginning = started.is_beginning;
            let (known, asked) = self.known_of(slot);
            let front = self.pool[at as usize].pieces.front();
            let verdict = stream::judge(front, is_all, known, asked.map(|asked| asked.id));
            if matches!(verdict, Verdict::More) {
                return;
            }
            self.stop(at);
            if is_beginning || !matches!(verdict, Verdict::No) {
                return self.decide(entry, slot, side, verdict, Moment::of(step));
            }
        }
        let saw_syn = entry.control[side] & control::SYN != 0;
        let is_first = !entry.has_payload_of(side);
        let base = if saw_syn && is_first {
            entry.sequence[side]
        } else {
            start
        };
        let is_beginning = is_first && (saw_syn || is_syn);
        let Ok(offset) = usize::try_from(start.wrapping_sub(base) as i32) else {
            return;
        };
        if offset > 0 {
            self.start(entries, slot, side, (base, is_beginning))
                .put(offset, payload);
            return;
        }
        let front = &payload[..payload.len().min(LIMIT)];
        // Where the beginning was not seen, a later packet may begin something: some are tried.
        let is_last_try = !is_beginning && entry.few_packets_of(side) + 1 >= TRIES;
        let is_all = is_cut || front.len() == LIMIT || is_last_try;
        let (known, asked) = self.known_of(slot);
        match stream::judge(front, is_all, known, asked.map(|asked| asked.id)) {
            Verdict::More => self
                .start(entries, slot, side, (base, is_beginning))
                .put(0, front),
            Verdict::No if !is_beginning && !is_last_try => {}
            verdict => self.decide(entry, slot, side, verdict, Moment::of(step)),
        }
    }

    /// Takes what was said of a side: nothing more is asked of it.
    fn decide(
        &mut self,
        entry: &mut Entry,
        slot: u32,
        side: usize,
        verdict: Verdict,
        moment: Moment,
    ) {
        entry.settle(side);
        match verdict {
            Verdict::No | Verdict::More => {}
            Verdict::Found(application) => {
                if stream::is_complete(application.protocol) {
                    entry.settle(1 - side);
                }
                self.keep(entry, slot, application);
            }
            Verdict::Dns(message) => self.dns(entry, slot, side, Protocol::Dns, message, moment),
        }
    }

    fn datagram(&mut self, entries: &mut [Entry], slot: u32, step: &Step, payload: &[u8]) {
        let side = step.direction as usize;
        let (known, asked) = self.known_of(slot);
        let entry = &mut entries[slot as usize];
        if known == Some(Protocol::Quic) || self.has_pieces(slot, side) {
            return self.quic(entries, slot, step, payload);
        }
        let told = datagram::judge(payload, ends(&step.key), asked.map(|asked| asked.id));
        if !matches!(told, datagram::Told::Dns(..)) {
            self.learner.hears_other(slot);
        }
        match told {
            datagram::Told::Nothing => {}
            // The first one counts, and more is to be learnt of it.
            datagram::Told::Application(_) if self.learner.follows(slot) => {}
            datagram::Told::Application(application) => {
                entry.settle(0);
                entry.settle(1);
                self.keep(entry, slot, application);
            }
            datagram::Told::Dns(protocol, message) => {
                self.dns(entry, slot, side, protocol, message, Moment::of(step));
            }
            datagram::Told::Quic => self.quic(entries, slot, step, payload),
        }
    }

    #[cfg(feature = "quic")]
    fn quic(&mut self, entries: &mut [Entry], slot: u32, step: &Step, payload: &[u8]) {
        let side = step.direction as usize;
        let at = self.started.get(&place(slot, side)).copied();
        let before = at.and_then(|at| self.pool[at as usize].keys);
        let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
        let told = quic::initial(payload, before, |at, piece| {
            pieces.push((at, piece.to_vec()));
        });
        match told {
            quic::Told::No => {}
            quic::Told::Opaque => {
                let entry = &mut entries[slot as usize];
                // Of a client that is being read, something else came between.
                if at.is_none() {
                    entry.settle(side);
                }
                self.keep(entry, slot, Application::of(Protocol::Quic));
            }
            quic::Told::Initial(keys) => {
                let all = self.start(entries, slot, side, (0, true));
                for (at, piece) in &pieces {
                    all.put(*at, piece);
                }
                let Some(&at) = self.started.get(&place(slot, side)) else {
                    return;
                };
                let started = &mut self.pool[at as usize];
                started.keys = Some(keys);
                let front = started.pieces.front();
                let is_all = started.pieces.is_full();
                let entry = &mut entries[slot as usize];
                match tls::in_quic(front) {
                    Some((_, false)) if !is_all => {}
                    read => {
                        let tls = read.map(|(tls, _)| tls).unwrap_or_default();
                        self.stop(at);
                        entry.settle(0);
                        entry.settle(1);
                        self.keep(entry, slot, Application::of_tls(Protocol::Quic, tls));
                    }
                }
            }
        }
    }

    #[cfg(not(feature = "quic"))]
    fn quic(&mut self, _: &mut [Entry], _: u32, _: &Step, _: &[u8]) {}

    /// Takes a DNS message: the first query, and the response to it.
    fn dns(
        &mut self,
        entry: &mut Entry,
        slot: u32,
        side: usize,
        protocol: Protocol,
        message: Message,
        moment: Moment,
    ) {
        let micros = moment.micros;
        let learns = self.learner.is_on() && protocol == Protocol::Dns;
        if learns {
            let at = (moment.observation_point, micros);
            self.learner.take((slot, side), &message, at);
        }
        // Whoever asks again from the same port is heard again.
        let goes_on = learns && !entry.is_tcp();
        let Message {
            id,
            is_response,
            dns,
            ..
        } = message;
        let application = |dns: Dns| Application {
            dns: Some(Box::new(dns)),
            ..Application::of(protocol)
        };
        match (self.known.get_mut(&slot), is_response) {
            (None, true) => {
                if !goes_on {
                    entry.settle(0);
                    entry.settle(1);
                }
                self.keep(entry, slot, application(dns));
            }
            (None, false) => {
                if !goes_on {
                    entry.settle(side);
                }
                self.keep(entry, slot, application(dns));
                if let Some(known) = self.known.get_mut(&slot) {
                    known.asked = Some(Asked { id, micros });
                }
            }
            (Some(known), true) => {
                let Some(asked) = known.asked.filter(|asked| asked.id == id) else {
                    return;
                };
                known.asked = None;
                if !goes_on {
                    entry.settle(0);
                    entry.settle(1);
                }
                let took = micros.saturating_sub(asked.micros);
                let dns = Dns {
                    latency_micros: u32::try_from(took).ok(),
                    ..dns
                };
                self.keep(entry, slot, application(dns));
            }
            (Some(_), false) if goes_on => {}
            (Some(_), false) => entry.settle(side),
        }
    }

    /// Takes a name that another meter has learnt.
    pub(crate) fn learn(&mut self, told: &ResolvedName) {
        self.learner.learn(told);
    }

    /// Writes into a record by which names its ends were known.
    #[inline]
    pub(crate) fn label(&self, record: &mut FlowRecord) {
        self.learner.label(record);
    }

    /// Names that were learnt and not yet taken, oldest first.
    pub(crate) fn resolved_names(&mut self) -> impl Iterator<Item = ResolvedName> {
        self.learner.resolved()
    }

    /// Whether pieces of a side are kept.
    fn has_pieces(&self, slot: u32, side: usize) -> bool {
        self.started.contains_key(&place(slot, side))
    }

    /// What the other side, or an earlier message, has told.
    fn known_of(&self, slot: u32) -> (Option<Protocol>, Option<Asked>) {
        self.known.get(&slot).map_or((None, None), |known| {
            (known.application.protocol, known.asked)
        })
    }

    /// Adds to what is known of a connection.
    fn keep(&mut self, entry: &mut Entry, slot: u32, application: Application) {
        let Some(protocol) = application.protocol else {
            return;
        };
        let plain = |protocol: Protocol, all: &[Arc<Application>]| {
            all.iter()
                .find(|one| one.protocol == Some(protocol))
                .map(Arc::clone)
        };
        let known = match self.known.get_mut(&slot) {
            Some(known) => {
                // Two sides that do not speak the same: the first one counts.
                let fits = known.application.protocol == Some(protocol)
                    || known.application.protocol == Some(Protocol::Http2);
                if !fits {
                    return;
                }
                known
            }
            None => {
                let Some(application) = plain(protocol, &self.plain) else {
                    return;
                };
                self.counts.identified += 1;
                entry.set_named();
                self.known.entry(slot).or_insert(Known {
                    application,
                    asked: None,
                    memory: 0,
                })
            }
        };
        if application == *known.application {
            return;
        }
        let mut all = (*known.application).clone();
        all.add(application);
        let memory = all.memory();
        if self.memory - known.memory + memory > self.config.memory {
            self.counts.without_names += 1;
            return;
        }
        self.memory = self.memory - known.memory + memory;
        known.memory = memory;
        known.application = Arc::new(all);
    }

    /// The pieces of a side, which are begun if they were not: with what number, and whether that is the side's first.
    fn start(
        &mut self,
        entries: &mut [Entry],
        slot: u32,
        side: usize,
        (base, is_beginning): (u32, bool),
    ) -> &mut Pieces {
        let place = place(slot, side);
        let at = match self.started.get(&place) {
            Some(&at) => at,
            None => {
                let at = self.free_place(entries);
                let started = &mut self.pool[at as usize];
                started.place = place;
                started.base = base;
                started.is_beginning = is_beginning;
                self.started.insert(place, at);
                at
            }
        };
        &mut self.pool[at as usize].pieces
    }

    /// A place in the pool; when there is none, the one whose turn it is gives way.
    fn free_place(&mut self, entries: &mut [Entry]) -> u32 {
        if let Some(at) = self.free.pop() {
            return at;
        }
        if self.pool.len() < self.config.pieces.max(1) {
            self.pool.push(Started {
                place: NOWHERE,
                base: 0,
                is_beginning: false,
                pieces: Pieces::default(),
                #[cfg(feature = "quic")]
                keys: None,
            });
            return (self.pool.len() - 1) as u32;
        }
        let at = self.hand;
        self.hand = (at + 1) % self.pool.len();
        let place = self.pool[at].place;
        let (slot, side) = (place >> 1, (place & 1) as usize);
        self.counts.given_up += 1;
        self.conclude_side(&mut entries[slot as usize], slot, side);
        // That has made it free.
        self.free.pop().unwrap_or(at as u32)
    }

    /// Gives the place of a side's pieces back.
    fn stop(&mut self, at: u32) {
        let started = &mut self.pool[at as usize];
        self.started.remove(&started.place);
        started.place = NOWHERE;
        started.pieces.clear();
        #[cfg(feature = "quic")]
        {
            started.keys = None;
        }
        self.free.push(at);
    }

    /// No more comes of a side: says what can be said of what came.
    fn conclude_side(&mut self, entry: &mut Entry, slot: u32, side: usize) {
        entry.settle(side);
        let Some(&at) = self.started.get(&place(slot, side)) else {
            return;
        };
        let (known, asked) = self.known_of(slot);
        let front = self.pool[at as usize].pieces.front();
        let verdict = if entry.is_tcp() {
            stream::judge(front, true, known, asked.map(|asked| asked.id))
        } else {
            opened(front)
        };
        self.stop(at);
        self.decide(entry, slot, side, verdict, Moment::default());
    }

    /// A record of a connection is to be made: says what can be said by what came, and looks at no more.
    ///
    /// One over UDP that speaks DNS is looked at as long as it goes on. Of no connection pieces are left: the next one in its slot would be taken to
    /// go on with them.
    pub(crate) fn conclude(&mut self, entry: &mut Entry, slot: u32) {
        let goes_on = !entry.is_tcp() && self.learner.follows(slot);
        for side in [0, 1] {
            if self.has_pieces(slot, side) || !(goes_on || entry.is_settled(side)) {
                self.conclude_side(entry, slot, side);
            }
        }
    }

    /// Forgets what is known of a connection that is gone.
    pub(crate) fn forget(&mut self, slot: u32) {
        if let Some(known) = self.known.remove(&slot) {
            self.memory -= known.memory;
        }
        self.learner.forget(slot);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.started.clear();
        self.learner.clear();
        self.pool.clear();
        self.free.clear();
        self.memory = 0;
        self.hand = 0;
    }

    /// What is to be said of a connection: what is known, or what its port is registered for.
    pub(crate) fn application(
        &self,
        entry: &Entry,
        slot: u32,
        key: &FlowKey,
    ) -> Option<Arc<Application>> {
        if entry.is_named() {
            return self
                .known
                .get(&slot)
                .map(|known| Arc::clone(&known.application));
        }
        if !key.has_ports() {
            return None;
        }
        let [source, destination] = key.ends_from(entry.initiator());
        // Where the SYN was not seen, who is the server is a guess as well.
        [destination, source]
            .into_iter()
            .find_map(|end| ports::place(key.protocol(), end.port))
            .and_then(|place| self.guesses.get(place))
            .map(Arc::clone)
    }
}

/// What the pieces of QUIC's handshake tell that are there.
#[cfg(feature = "quic")]
fn opened(front: &[u8]) -> Verdict {
    let tls = tls::in_quic(front).map(|(tls, _)| tls).unwrap_or_default();
    Verdict::Found(Application::of_tls(Protocol::Quic, tls))
}

#[cfg(not(feature = "quic"))]
fn opened(_: &[u8]) -> Verdict {
    Verdict::No
}

/// Between which ends a datagram goes.
fn ends(key: &FlowKey) -> Ends {
    let (low, high) = key.ends();
    let group = |address: IpAddr| match address {
        IpAddr::V4(address) => match address.octets() {
            [224, 0, 0, 251] => Some(Protocol::Mdns),
            [224, 0, 0, 252] => Some(Protocol::Llmnr),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0xff02, 0, 0, 0, 0, 0, 0, 0xfb] => Some(Protocol::Mdns),
            [0xff02, 0, 0, 0, 0, 0, 1, 3] => Some(Protocol::Llmnr),
            _ => None,
        },
    };
    Ends {
        ports: [low.port, high.port],
        group: group(low.address).or_else(|| group(high.address)),
    }
}
