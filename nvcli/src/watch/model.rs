//! What the view knows of connections beyond the last snapshot: their rates, their history, their names; and which of them are
//! shown, in what order.
//!
//! Fifty thousand connections are looked at at every refresh, some thirty are shown. So what is kept of each lies in an array
//! by its place in the meter's table, text is made only of what is shown, and only as much is sorted as can be seen.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvcapture::Timestamp;
use nvflow::{Endpoint, FlowRecord, Vantage};

use super::fuzzy::Pattern;
use super::roster::Roster;
use super::snapshot::{Row, Snapshot};
use crate::render::flows::{is_group_address, protocol};
use crate::render::order::{handshake_rtt, loss, retransmitted};

/// Refreshes that a history tells of.
pub(crate) const PAST: usize = 60;

/// A name, as its number; 0 is none.
pub(crate) type Symbol = u32;

/// Rates of the last [`PAST`] refreshes, both directions: the upper half of an `f32` is exact to the third digit.
#[derive(Clone, Debug)]
pub(crate) struct History([[u16; PAST]; 2]);

impl History {
    const EMPTY: Self = Self([[0; PAST]; 2]);

    fn put(&mut self, round: u32, rates: [f32; 2]) {
        for (past, rate) in self.0.iter_mut().zip(rates) {
            past[round as usize % PAST] = (rate.to_bits() >> 16) as u16;
        }
    }

    /// The last `count` rates of a direction up to `round`, oldest first.
    pub(crate) fn last(
        &self,
        way: usize,
        round: u32,
        count: usize,
    ) -> impl Iterator<Item = f32> + '_ {
        (0..count.min(PAST)).rev().map(move |back| {
            let at = (round as usize + PAST - back) % PAST;
            f32::from_bits(u32::from(self.0[way][at]) << 16)
        })
    }
}

/// What is kept of a connection, or of an interface, from one snapshot to the next.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    octets: [u64; 2],
    /// Octets a second; smoothed over about two refreshes, so that it can be read.
    pub(crate) rate: [f32; 2],
    pub(crate) history: History,
}

impl Pace {
    const NONE: Self = Self {
        octets: [0; 2],
        rate: [0.0; 2],
        history: History::EMPTY,
    };

    /// How much of a new rate counts at once.
    const WEIGHT: f32 = 0.6;

    fn go_on(&mut self, octets: [u64; 2], seconds: f32, round: u32) {
        let mut now = [0.0; 2];
        for way in 0..2 {
            now[way] = octets[way].saturating_sub(self.octets[way]) as f32 / seconds;
            // What begins is shown at once.
            let before = if self.rate[way] > 0.0 {
                self.rate[way]
            } else {
                now[way]
            };
            let smooth = before * (1.0 - Self::WEIGHT) + now[way] * Self::WEIGHT;
            self.rate[way] = if smooth < 1.0 { 0.0 } else { smooth };
        }
        self.octets = octets;
        self.history.put(round, now);
    }

    fn begin(octets: [u64; 2], seconds: f32, round: u32) -> Self {
        let rate = octets.map(|octets| octets as f32 / seconds);
        let mut pace = Self {
            octets,
            rate,
            ..Self::NONE
        };
        pace.history.put(round, rate);
        pace
    }
}

/// What is known of the connection in a place of the table.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    ends: [Endpoint; 2],
    start: Timestamp,
    /// When it was last there.
    round: u32,
    /// Of which version of the roster the names are.
    named: u32,
    pub(crate) client: Symbol,
    pub(crate) server: Symbol,
    /// The container at whose interface it was seen.
    pub(crate) at: Symbol,
    /// The same for both sights of a connection between two attached containers; 0 when there is one sight only.
    twin: u64,
    pub(crate) pace: Pace,
}

/// One end of a connection: a container where it is known, an address else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Party {
    Name(Symbol),
    Address(IpAddr),
}

/// What connections are put together by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Grouping {
    /// One line for each connection
    #[default]
    None,
    /// The attached container
    Container,
    /// Server, port and protocol
    Service,
    /// Client and server
    Conversation,
    /// Who is at the other end
    Remote,
}

impl Grouping {
    pub(crate) const ALL: [Self; 5] = [
        Self::None,
        Self::Container,
        Self::Service,
        Self::Conversation,
        Self::Remote,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Container => "container",
            Self::Service => "service",
            Self::Conversation => "conversation",
            Self::Remote => "remote",
        }
    }
}

/// Which group a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GroupKey {
    Container(Symbol),
    Service(Party, u16, u8),
    Conversation(Party, Party),
    Remote(Party),
}

/// The sum of its connections. Where there are two: `[client to server, server to client]`, or `[out, into]` of the container.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) key: GroupKey,
    pub(crate) connections: u64,
    pub(crate) rate: [f32; 2],
    pub(crate) octets: [u64; 2],
    pub(crate) packets: u64,
    pub(crate) retransmitted: u64,
    tcp_packets: u64,
    start: Timestamp,
    rtt: u64,
    rtts: u64,
}

impl Group {
    fn new(key: GroupKey) -> Self {
        Self {
            key,
            connections: 0,
            rate: [0.0; 2],
            octets: [0; 2],
            packets: 0,
            retransmitted: 0,
            tcp_packets: 0,
            start: Timestamp::from_nanos(u64::MAX),
            rtt: 0,
            rtts: 0,
        }
    }

    /// The mean of its connections' handshakes. Unit: microseconds.
    pub(crate) fn rtt(&self) -> Option<u64> {
        self.rtt.checked_div(self.rtts)
    }

    /// Share of TCP packets that were sent again.
    pub(crate) fn loss(&self) -> Option<f64> {
        (self.tcp_packets > 0).then(|| self.retransmitted as f64 / self.tcp_packets as f64)
    }

    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        now.saturating_since(self.start)
    }
}

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Rate,
    Octets,
    Packets,
    Age,
    Rtt,
    Retransmits,
    Loss,
    Client,
    Server,
    Application,
    State,
}

impl Order {
    pub(crate) const ALL: [Self; 11] = [
        Self::Rate,
        Self::Octets,
        Self::Packets,
        Self::Age,
        Self::Rtt,
        Self::Retransmits,
        Self::Loss,
        Self::Client,
        Self::Server,
        Self::Application,
        Self::State,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Octets => "total",
            Self::Packets => "packets",
            Self::Age => "age",
            Self::Rtt => "rtt",
            Self::Retransmits => "retransmits",
            Self::Loss => "loss",
            Self::Client => "client",
            Self::Server => "server",
            Self::Application => "application",
            Self::State => "state",
        }
    }

    /// Whether the smallest comes first: of texts.
    pub(crate) const fn is_ascending(self) -> bool {
        matches!(
            self,
            Self::Client | Self::Server | Self::Application | Self::State
        )
    }
}

/// A row and what it is ordered by first; what follows is looked up when that is equal.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    rank: u64,
    row: u32,
}

/// What is shown, as chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) pattern: &'a Pattern,
    /// Only connections of these containers; all when there are none.
    pub(crate) follow: &'a [String],
    pub(crate) scope: Option<GroupKey>,
    pub(crate) grouping: Grouping,
    pub(crate) order: Order,
    pub(crate) reverse: bool,
}

/// Everything the view knows.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) snapshot: Snapshot,
    pub(crate) roster: Roster,
    tracks: Vec<Track>,
    pub(crate) round: u32,
    symbols: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, Symbol>,
    hasher: RandomState,
    /// By observation point: the pace of its interface, and how many connections it has.
    pub(crate) interfaces: Vec<Interface>,
    /// Rows that are the second sight of a connection.
    second: Vec<bool>,
    /// Connections, each counted once.
    pub(crate) distinct: usize,
    twins: Vec<(u64, bool, u32)>,
    ranked: Vec<Ranked>,
    pub(crate) groups: Vec<Group>,
    group_of: HashMap<GroupKey, u32>,
    /// Rows, or groups when they are put together, that are shown; the first of them in order.
    shown: Vec<u32>,
    /// How many of them are in order.
    pub(crate) ordered: usize,
    /// Connections that are shown, in groups or not.
    pub(crate) matching: usize,
    text: String,
    previous: Option<Instant>,
}

/// An attached interface in the view.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) pace: Pace,
    pub(crate) connections: u32,
    pub(crate) retransmitted: u64,
}

impl Model {
    pub(crate) fn new(roster: Roster) -> Self {
        Self {
            snapshot: Snapshot::empty(),
            roster,
            tracks: Vec::new(),
            round: 0,
            symbols: vec!["".into()],
            numbers: HashMap::new(),
            hasher: RandomState::new(),
            interfaces: Vec::new(),
            second: Vec::new(),
            distinct: 0,
            twins: Vec::new(),
            ranked: Vec::new(),
            groups: Vec::new(),
            group_of: HashMap::new(),
            shown: Vec::new(),
            ordered: 0,
            matching: 0,
            text: String::new(),
            previous: None,
        }
    }

    /// Takes the next snapshot, and gives back the one before.
    pub(crate) fn take(&mut self, next: Snapshot) -> Snapshot {
        let before = std::mem::replace(&mut self.snapshot, next);
        let taken = self.snapshot.taken;
        let passed = self.previous.map_or(1.0, |previous| {
            taken.saturating_duration_since(previous).as_secs_f32()
        });
        // Two snapshots are never so close but in tests.
        let seconds = passed.max(0.01);
        self.previous = Some(taken);
        self.round = self.round.wrapping_add(1);
        self.follow_interfaces(seconds);
        let rows = std::mem::take(&mut self.snapshot.rows);
        for row in &rows {
            self.follow_row(row, seconds);
        }
        self.find_twins(&rows);
        self.snapshot.rows = rows;
        before
    }

    fn follow_interfaces(&mut self, seconds: f32) {
        let seen = &self.snapshot.seen;
        let none = Interface {
            pace: Pace::NONE,
            connections: 0,
            retransmitted: 0,
        };
        let most = seen.len().max(self.interfaces.len());
        self.interfaces.resize(most, none);
        for (interface, seen) in self.interfaces.iter_mut().zip(seen) {
            interface.pace.go_on(seen.octets, seconds, self.round);
            interface.connections = 0;
            interface.retransmitted = 0;
        }
    }

    fn follow_row(&mut self, row: &Row, seconds: f32) {
        let record = &row.record;
        let place = row.place as usize;
        let (round, version) = (self.round, self.roster.version);
        let octets = [record.forward.octets, record.reverse.octets];
        if let Some(interface) = record
            .observation_point
            .and_then(|id| self.interfaces.get_mut(usize::from(id)))
        {
            interface.connections += 1;
            interface.retransmitted += retransmitted(record);
        }
        if let Some(track) = self.tracks.get_mut(place)
            && track.start == record.flow_start
            && track.round.wrapping_add(1) == round
            && track.ends == [record.source, record.destination]
        {
            track.pace.go_on(octets, seconds, round);
            track.round = round;
            if track.named == version {
                return;
            }
        } else {
            let age = self.snapshot.now.saturating_since(record.flow_start);
            let begun = Track {
                ends: [record.source, record.destination],
                start: record.flow_start,
                round,
                named: version,
                client: 0,
                server: 0,
                at: 0,
                twin: 0,
                pace: Pace::begin(octets, seconds.max(age.as_secs_f32()), round),
            };
            if self.tracks.len() <= place {
                self.tracks.resize(place + 1, begun.clone());
            }
            self.tracks[place] = begun;
        }
        self.name(place, record);
    }

    /// Finds out whose the ends of the connection in `place` are.
    fn name(&mut self, place: usize, record: &FlowRecord) {
        let known = crate::names::holder(&self.roster.by_id, record)
            .map(|known| Arc::clone(&known.workload));
        let peer = match record.vantage {
            Some(Vantage::Egress) => Some(record.destination.address),
            Some(Vantage::Ingress) => Some(record.source.address),
            None => None,
        };
        let peer = peer
            .and_then(|address| self.roster.by_address.get(&address).cloned())
            .flatten();
        let at = known.map_or(0, |name| self.symbol(name));
        let peer = peer.map_or(0, |name| self.symbol(name));
        let (client, server) = match record.vantage {
            Some(Vantage::Egress) => (at, peer),
            Some(Vantage::Ingress) => (peer, at),
            None => (0, 0),
        };
        // Who is no container may have a name that was asked for.
        let client = self.or_domain(client, &record.labels.source_domain);
        let server = self.or_domain(server, &record.labels.destination_domain);
        let twin = if peer == 0 {
            0
        } else {
            self.hasher
                .hash_one((
                    record.source,
                    record.destination,
                    record.protocol_identifier,
                ))
                .max(1)
        };
        let track = &mut self.tracks[place];
        track.named = self.roster.version;
        track.at = at;
        // A group is not the container that listens to it.
        let unless_group = |symbol, end: Endpoint| {
            if is_group_address(end.address) {
                0
            } else {
                symbol
            }
        };
        track.client = unless_group(client, record.source);
        track.server = unless_group(server, record.destination);
        track.twin = twin;
    }

    /// The symbol, or that of the name which the address was asked for by.
    fn or_domain(&mut self, symbol: Symbol, domain: &Option<Arc<str>>) -> Symbol {
        /// Symbols are kept as long as the view is; names that are asked for may be any number.
        const MOST: usize = 100_000;
        match domain {
            Some(domain) if symbol == 0 && self.symbols.len() < MOST => {
                self.symbol(Arc::clone(domain))
            }
            _ => symbol,
        }
    }

    fn symbol(&mut self, name: Arc<str>) -> Symbol {
        if let Some(symbol) = self.numbers.get(&name) {
            return *symbol;
        }
        let symbol = self.symbols.len() as Symbol;
        self.symbols.push(Arc::clone(&name));
        self.numbers.insert(name, symbol);
        symbol
    }

    /// Of connections that were seen at both ends, the sight at the server is the second.
    fn find_twins(&mut self, rows: &[Row]) {
        self.second.clear();
        self.second.resize(rows.len(), false);
        self.twins.clear();
        for (row, at) in rows.iter().zip(0..) {
            let twin = self.tracks[row.place as usize].twin;
            if twin != 0 {
                let is_server = row.record.vantage == Some(Vantage::Ingress);
                self.twins.push((twin, is_server, at));
            }
        }
        self.twins.sort_unstable();
        for pair in self.twins.windows(2) {
            let [one, other] = pair else { continue };
            if one.0 == other.0 && !one.1 && other.1 {
                self.second[other.2 as usize] = true;
            }
        }
        self.distinct = self.second.iter().filter(|second| !**second).count();
    }

    /// The name with a number, which is none for 0.
    pub(crate) fn text_of(&self, symbol: Symbol) -> Option<&str> {
        match symbol {
            0 => None,
            symbol => self.symbols.get(symbol as usize).map(AsRef::as_ref),
        }
    }

    pub(crate) fn track(&self, row: &Row) -> &Track {
        &self.tracks[row.place as usize]
    }

    fn party(symbol: Symbol, end: Endpoint) -> Party {
        if symbol == 0 {
            Party::Address(end.address)
        } else {
            Party::Name(symbol)
        }
    }

    fn group_key(&self, row: &Row, grouping: Grouping) -> Option<GroupKey> {
        let (track, record) = (self.track(row), &row.record);
        let client = Self::party(track.client, record.source);
        let server = Self::party(track.server, record.destination);
        match grouping {
            Grouping::None => None,
            Grouping::Container => Some(GroupKey::Container(track.at)),
            Grouping::Service => Some(GroupKey::Service(
                server,
                if record.has_ports {
                    record.destination.port
                } else {
                    0
                },
                record.protocol_identifier,
            )),
            Grouping::Conversation => Some(GroupKey::Conversation(client, server)),
            Grouping::Remote => Some(GroupKey::Remote(match record.vantage {
                Some(Vantage::Ingress) => client,
                _ => server,
            })),
        }
    }

    const fn grouping_of(key: GroupKey) -> Grouping {
        match key {
            GroupKey::Container(_) => Grouping::Container,
            GroupKey::Service(..) => Grouping::Service,
            GroupKey::Conversation(..) => Grouping::Conversation,
            GroupKey::Remote(_) => Grouping::Remote,
        }
    }

    /// Finds what is shown, and puts at least the first `needed` of it in order.
    pub(crate) fn arrange(&mut self, choice: &Choice<'_>, needed: usize) {
        let followed: Vec<Symbol> = self.followed(choice.follow);
        // By containers a connection between two of them belongs to both.
        let both_sights = choice.grouping == Grouping::Container
            || matches!(choice.scope, Some(GroupKey::Container(_)))
            || !followed.is_empty();
        let mut ranked = std::mem::take(&mut self.ranked);
        let mut text = std::mem::take(&mut self.text);
        ranked.clear();
        for (row, at) in self.snapshot.rows.iter().zip(0_u32..) {
            if self.second[at as usize] && !both_sights {
                continue;
            }
            if !followed.is_empty() && !followed.contains(&self.track(row).at) {
                continue;
            }
            if let Some(scope) = choice.scope
                && self.group_key(row, Self::grouping_of(scope)) != Some(scope)
            {
                continue;
            }
            if !choice.pattern.is_empty() {
                self.write_text(row, &mut text);
                if !choice.pattern.admits(text.as_bytes()) {
                    continue;
                }
            }
            let rank = if choice.grouping == Grouping::None {
                self.rank(row, choice.order)
            } else {
                0
            };
            ranked.push(Ranked { rank, row: at });
        }
        self.matching = ranked.len();
        self.text = text;
        self.shown.clear();
        if choice.grouping == Grouping::None {
            let compare = |a: &Ranked, b: &Ranked| self.compare(*a, *b, choice);
            order_first(&mut ranked, needed, compare);
            self.shown.extend(ranked.iter().map(|ranked| ranked.row));
        } else {
            self.put_together(&ranked, choice.grouping);
            let mut order: Vec<u32> = (0..self.groups.len() as u32).collect();
            let compare = |a: &u32, b: &u32| {
                self.compare_groups(&self.groups[*a as usize], &self.groups[*b as usize], choice)
            };
            order_first(&mut order, needed, compare);
            self.shown = order;
        }
        self.ordered = if needed == 0 {
            self.shown.len()
        } else {
            needed.min(self.shown.len())
        };
        self.ranked = ranked;
    }

    /// The containers that `wanted` names, by name or the first digits of their ids.
    fn followed(&mut self, wanted: &[String]) -> Vec<Symbol> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let called: Vec<Arc<str>> = self
            .roster
            .by_id
            .values()
            .flatten()
            .filter(|known| {
                let id = known.container_id.as_deref();
                wanted
                    .iter()
                    .any(|name| crate::names::is_called(name, &known.workload, id))
            })
            .map(|known| Arc::clone(&known.workload))
            .collect();
        let mut symbols: Vec<Symbol> = called.into_iter().map(|name| self.symbol(name)).collect();
        // One that is not there (any more) has no connection, which is not the same as all.
        symbols.push(Symbol::MAX);
        symbols
    }

    /// What a row is found by, in lower case.
    fn write_text(&self, row: &Row, text: &mut String) {
        text.clear();
        let (track, record) = (self.track(row), &row.record);
        for (symbol, end) in [
            (track.client, record.source),
            (track.server, record.destination),
        ] {
            if let Some(name) = self.text_of(symbol) {
                // With the port, so that both can be typed at once.
                let _ = write!(text, "{name}:{} ", end.port);
            }
            let _ = match end.address {
                IpAddr::V4(address) => write!(text, "{address}:{} ", end.port),
                IpAddr::V6(address) => write!(text, "[{address}]:{} ", end.port),
            };
        }
        text.push_str(self.text_of(track.at).unwrap_or_default());
        text.push(' ');
        text.push_str(&protocol(record.protocol_identifier));
        for word in [application(record).0]
            .into_iter()
            .chain(asked_for(record))
            .chain(record.labels.interface.as_deref())
        {
            text.push(' ');
            text.push_str(word);
        }
        if let Some(tcp) = &record.tcp {
            text.push(' ');
            text.push_str(tcp.state.as_str());
        }
        text.make_ascii_lowercase();
    }

    fn rank(&self, row: &Row, order: Order) -> u64 {
        let record = &row.record;
        match order {
            Order::Rate => {
                let [to, from] = self.track(row).pace.rate;
                of_float(to + from)
            }
            Order::Octets => record.forward.octets.saturating_add(record.reverse.octets),
            Order::Packets => record
                .forward
                .packets
                .saturating_add(record.reverse.packets),
            Order::Age => u64::MAX - record.flow_start.as_nanos(),
            Order::Rtt => handshake_rtt(record).map_or(0, |micros| micros + 1),
            Order::Retransmits => retransmitted(record),
            Order::Loss => loss(record).map_or(0, |share| of_float(share as f32) + 1),
            Order::Client => self.rank_of_end(self.track(row).client, record.source),
            Order::Server => self.rank_of_end(self.track(row).server, record.destination),
            Order::Application => first_octets(application(record).0),
            Order::State => record.tcp.as_ref().map_or(u64::MAX, |tcp| tcp.state as u64),
        }
    }

    /// Containers by name come before addresses.
    fn rank_of_end(&self, symbol: Symbol, end: Endpoint) -> u64 {
        match (self.text_of(symbol), end.address) {
            (Some(name), _) => first_octets(name) >> 2,
            (None, IpAddr::V4(address)) => {
                1 << 62 | u64::from(address.to_bits()) << 16 | u64::from(end.port)
            }
            (None, IpAddr::V6(address)) => 1 << 63 | (address.to_bits() >> 65) as u64,
        }
    }

    fn compare(&self, a: Ranked, b: Ranked, choice: &Choice<'_>) -> Ordering {
        let (one, other) = (
            &self.snapshot.rows[a.row as usize],
            &self.snapshot.rows[b.row as usize],
        );
        let by_text = || match choice.order {
            Order::Client => self.compare_ends(
                (self.track(one).client, one.record.source),
                (self.track(other).client, other.record.source),
            ),
            Order::Server => self.compare_ends(
                (self.track(one).server, one.record.destination),
                (self.track(other).server, other.record.destination),
            ),
            Order::Application => application(&one.record).cmp(&application(&other.record)),
            _ => Ordering::Equal,
        };
        in_order(choice, a.rank.cmp(&b.rank).then_with(by_text))
            .then_with(|| one.record.flow_start.cmp(&other.record.flow_start))
            .then_with(|| one.place.cmp(&other.place))
    }

    fn compare_ends(&self, a: (Symbol, Endpoint), b: (Symbol, Endpoint)) -> Ordering {
        let names = (self.text_of(a.0), self.text_of(b.0));
        match names {
            (Some(one), Some(other)) => one.cmp(other).then(a.1.port.cmp(&b.1.port)),
            _ => a.1.cmp(&b.1),
        }
    }

    fn put_together(&mut self, ranked: &[Ranked], grouping: Grouping) {
        self.groups.clear();
        self.group_of.clear();
        for Ranked { row, .. } in ranked {
            let row = &self.snapshot.rows[*row as usize];
            let Some(key) = self.group_key(row, grouping) else {
                continue;
            };
            let next = self.groups.len() as u32;
            let at = *self.group_of.entry(key).or_insert(next);
            if at == next {
                self.groups.push(Group::new(key));
            }
            let track = &self.tracks[row.place as usize];
            let record = &row.record;
            // Seen from the container, what a client of it sends comes in.
            let turned = matches!(grouping, Grouping::Container | Grouping::Remote)
                && record.vantage == Some(Vantage::Ingress);
            let group = &mut self.groups[at as usize];
            group.connections += 1;
            for (way, side) in [&record.forward, &record.reverse].into_iter().enumerate() {
                let to = way ^ usize::from(turned);
                group.rate[to] += track.pace.rate[way];
                group.octets[to] = group.octets[to].saturating_add(side.octets);
                group.packets += side.packets;
            }
            group.start = group.start.min(record.flow_start);
            if record.tcp.is_some() {
                group.retransmitted += retransmitted(record);
                group.tcp_packets += record.forward.packets + record.reverse.packets;
            }
            if let Some(micros) = handshake_rtt(record) {
                group.rtt += micros;
                group.rtts += 1;
            }
        }
    }

    fn compare_groups(&self, a: &Group, b: &Group, choice: &Choice<'_>) -> Ordering {
        let number = |group: &Group| match choice.order {
            Order::Rate => of_float(group.rate[0] + group.rate[1]),
            Order::Octets => group.octets[0].saturating_add(group.octets[1]),
            Order::Packets => group.packets,
            Order::Age => u64::MAX - group.start.as_nanos(),
            Order::Rtt => group.rtt().map_or(0, |micros| micros + 1),
            Order::Retransmits => group.retransmitted,
            Order::Loss => group.loss().map_or(0, |share| of_float(share as f32) + 1),
            Order::Client | Order::Server | Order::Application | Order::State => 0,
        };
        let (one, other) = (self.ends_of(a.key), self.ends_of(b.key));
        let by_text = match choice.order {
            Order::Client => one.cmp(&other),
            _ => (&one.1, &one.0, one.2).cmp(&(&other.1, &other.0, other.2)),
        };
        in_order(
            choice,
            number(a).cmp(&number(b)).then_with(|| {
                if choice.order.is_ascending() {
                    by_text
                } else {
                    // Numbers that are equal, zeros above all, leave the names in their order.
                    by_text.reverse()
                }
            }),
        )
    }

    /// Client, server and port of a group, as far as it has them, for ordering.
    fn ends_of(&self, key: GroupKey) -> (SortEnd<'_>, SortEnd<'_>, u16) {
        let end = |party| match party {
            Party::Name(symbol) => (0, self.text_of(symbol).unwrap_or_default(), None),
            Party::Address(address) => (1, "", Some(address)),
        };
        let none = (0, "", None);
        match key {
            GroupKey::Container(symbol) => (end(Party::Name(symbol)), none, 0),
            GroupKey::Service(server, port, _) => (none, end(server), port),
            GroupKey::Conversation(client, server) => (end(client), end(server), 0),
            GroupKey::Remote(remote) => (end(remote), none, 0),
        }
    }

    /// How many rows or groups are shown.
    pub(crate) fn len(&self) -> usize {
        self.shown.len()
    }

    /// The row that comes `nth` in order.
    pub(crate) fn row(&self, nth: usize) -> Option<&Row> {
        self.snapshot.rows.get(*self.shown.get(nth)? as usize)
    }

    /// The group that comes `nth` in order.
    pub(crate) fn group(&self, nth: usize) -> Option<&Group> {
        self.groups.get(*self.shown.get(nth)? as usize)
    }

    /// Where the connection with this place, start and source comes in order, if it is shown.
    pub(crate) fn rank_of_row(
        &self,
        (place, start, source): (u32, Timestamp, Endpoint),
        choice: &Choice<'_>,
    ) -> Option<usize> {
        let is_it = |ranked: &&Ranked| {
            let row = &self.snapshot.rows[ranked.row as usize];
            let record = &row.record;
            row.place == place && record.flow_start == start && record.source == source
        };
        let found = *self.ranked.iter().find(is_it)?;
        let before = |ranked: &&Ranked| self.compare(**ranked, found, choice) == Ordering::Less;
        Some(self.ranked.iter().filter(before).count())
    }

    /// Where a group comes in order.
    pub(crate) fn rank_of_group(&self, key: GroupKey, choice: &Choice<'_>) -> Option<usize> {
        let found = self.groups.iter().find(|group| group.key == key)?;
        let before = |group: &&Group| self.compare_groups(group, found, choice) == Ordering::Less;
        Some(self.groups.iter().filter(before).count())
    }
}

type SortEnd<'a> = (u8, &'a str, Option<IpAddr>);

fn in_order(choice: &Choice<'_>, ordering: Ordering) -> Ordering {
    if choice.order.is_ascending() == choice.reverse {
        ordering.reverse()
    } else {
        ordering
    }
}

/// Puts at least the first `needed` in order, in front of the others.
fn order_first<T>(items: &mut [T], needed: usize, mut compare: impl FnMut(&T, &T) -> Ordering) {
    if needed > 0 && needed < items.len() {
        let (first, _, _) = items.select_nth_unstable_by(needed, &mut compare);
        first.sort_unstable_by(compare);
    } else {
        items.sort_unstable_by(compare);
    }
}

/// The same order as the number's, which is not negative.
fn of_float(number: f32) -> u64 {
    number.max(0.0).to_bits().into()
}

fn first_octets(text: &str) -> u64 {
    let mut octets = [0; 8];
    for (to, from) in octets.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    u64::from_be_bytes(octets)
}

/// What a connection speaks, and whether that is but a guess, by the server's port; empty when there is none.
pub(crate) fn application(record: &FlowRecord) -> (&'static str, bool) {
    let Some(application) = &record.application else {
        return ("", false);
    };
    match (application.protocol, application.registered) {
        (Some(protocol), _) => (protocol.name(), false),
        (None, registered) => (registered.unwrap_or_default(), true),
    }
}

/// The name that was asked for: a server's, a host's or a question's.
pub(crate) fn asked_for(record: &FlowRecord) -> Option<&str> {
    let application = record.application.as_deref()?;
    let tls = application.tls.as_deref();
    let http = application.http.as_deref();
    let dns = application.dns.as_deref();
    tls.and_then(|tls| tls.server_name.as_deref())
        .or(http.and_then(|http| http.host.as_deref()))
        .or(dns.and_then(|dns| dns.query_name.as_deref()))
}
