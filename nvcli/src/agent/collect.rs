//! Records on their way from the rings: named, added up, shown to who listens, and handed to the exporters.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvcapture::Timestamp;
use nvflow::{Aggregator, Endpoint, FlowRecord, GroupBy, Party, Vantage};
use serde::Serialize;

use super::board::Board;
use crate::queue::Records;

/// Conversations are added up for so long each.
const WINDOW: Duration = Duration::from_secs(60);
/// So many windows are kept.
pub(crate) const WINDOWS: u64 = 15;
/// Conversations of all windows, at most; what has no room is added up in one.
const CONVERSATIONS: usize = 8_192;
/// Connections of which one side was told and the other may come, at most.
const HALVES: usize = 8_192;
/// How long the other side may take: both are told when the connection has been idle for the same time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Both sides see a connection's first frame within this time.
const TOGETHER: Duration = Duration::from_secs(1);
/// Pairs of workloads and ports that are added up, at most.
const PATHS: usize = 4_096;
/// Records that wait for a listener, at most.
const LISTENING: usize = 4_096;

/// What the collector has added up, for those who answer questions.
#[derive(Debug)]
pub(crate) struct Totals {
    state: Mutex<State>,
    /// Records that were taken out of the queue.
    pub(crate) records: AtomicU64,
    /// Records that a listener was too slow for.
    pub(crate) unheard: AtomicU64,
    /// Turns of the thread, to see that it is alive.
    pub(crate) turns: AtomicU64,
}

#[derive(Debug)]
struct State {
    conversations: Aggregator,
    paths: Paths,
    listeners: Vec<SyncSender<Arc<FlowRecord>>>,
}

impl Totals {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                conversations: Aggregator::new(GroupBy::default(), WINDOW, CONVERSATIONS),
                paths: Paths::default(),
                listeners: Vec::new(),
            }),
            records: AtomicU64::new(0),
            unheard: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records from now on, until the receiver is dropped.
    pub(crate) fn listen(&self) -> Receiver<Arc<FlowRecord>> {
        let (sender, receiver) = mpsc::sync_channel(LISTENING);
        self.lock().listeners.push(sender);
        receiver
    }

    /// What was added up in the last windows, newest first.
    pub(crate) fn conversations(&self, windows: u64) -> Aggregator {
        let all = self.lock().conversations.clone();
        let newest = all
            .iter()
            .map(|(key, _)| key.window)
            .max()
            .unwrap_or(Timestamp::ZERO);
        let width = WINDOW.as_nanos() as u64;
        let from = newest
            .as_nanos()
            .saturating_sub(width.saturating_mul(windows.saturating_sub(1)));
        let mut all = all;
        drop(all.take_until(Timestamp::from_nanos(from)));
        all
    }

    /// Connections between two attached workloads.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let state = self.lock();
        let mut all: Vec<Path> = state
            .paths
            .totals
            .iter()
            .map(|(key, sums)| key.path(sums))
            .collect();
        drop(state);
        all.sort_by(|a, b| {
            (&a.client, &a.server, a.server_port).cmp(&(&b.client, &b.server, b.server_port))
        });
        all
    }

    fn take(&self, records: VecDeque<FlowRecord>, export: &impl Fn(&FlowRecord)) {
        self.records
            .fetch_add(records.len() as u64, Ordering::Relaxed);
        let mut state = self.lock();
        let state = &mut *state;
        for record in records {
            state.conversations.add(&record);
            state.paths.add(&record);
            export(&record);
            if state.listeners.is_empty() {
                continue;
            }
            let record = Arc::new(record);
            state
                .listeners
                .retain(|listener| match listener.try_send(Arc::clone(&record)) {
                    Ok(()) => true,
                    Err(TrySendError::Full(_)) => {
                        self.unheard.fetch_add(1, Ordering::Relaxed);
                        true
                    }
                    Err(TrySendError::Disconnected(_)) => false,
                });
        }
        let end = state.conversations.iter().map(|(key, _)| key.window).max();
        if let Some(newest) = end {
            let oldest = newest
                .as_nanos()
                .saturating_sub((WINDOWS - 1) * WINDOW.as_nanos() as u64);
            drop(
                state
                    .conversations
                    .take_until(Timestamp::from_nanos(oldest)),
            );
        }
        state.paths.forget(Instant::now());
    }
}

/// Takes records until there will be no more.
pub(crate) fn run(records: &Records, board: &Board, totals: &Totals, export: impl Fn(&FlowRecord)) {
    while let Some(mut taken) = records.take(Duration::from_secs(1)) {
        totals.turns.fetch_add(1, Ordering::Relaxed);
        if taken.is_empty() {
            continue;
        }
        board.label(&mut taken);
        totals.take(taken, &export);
    }
    // Listeners see the end.
    totals.lock().listeners.clear();
}

/// What tells a connection, whoever sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    source: Endpoint,
    destination: Endpoint,
    protocol: u8,
}

/// A connection as one of its two sides saw it.
#[derive(Clone, Debug)]
struct Half {
    at: Instant,
    start: Timestamp,
    observation_point: Option<u16>,
    vantage: Vantage,
    packets: [u64; 2],
    octets: [u64; 2],
}

/// Connections seen from both of their ends.
#[derive(Debug, Default)]
struct Paths {
    halves: HashMap<Ends, Vec<Half>>,
    /// In the order they came.
    order: VecDeque<(Instant, Ends)>,
    totals: HashMap<PathKey, Sums>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PathKey {
    client: Arc<str>,
    server: Arc<str>,
    server_port: Option<u16>,
    protocol: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    connections: u64,
    /// Of the client and of the server.
    sent_packets: [u64; 2],
    received_packets: [u64; 2],
    sent_octets: [u64; 2],
    received_octets: [u64; 2],
}

/// Connections between two workloads, each seen at both of its ends. A difference is what was lost in between: duplicates make it negative.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Path {
    client: String,
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_port: Option<u16>,
    protocol_identifier: u8,
    /// Records of which both sides came.
    connections: u64,
    packet_delta_count: u64,
    reverse_packet_delta_count: u64,
    octet_delta_count: u64,
    reverse_octet_delta_count: u64,
    lost_packets: i64,
    reverse_lost_packets: i64,
    lost_octets: i64,
    reverse_lost_octets: i64,
}

impl PathKey {
    fn path(&self, sums: &Sums) -> Path {
        let lost = |sent: u64, received: u64| sent.wrapping_sub(received) as i64;
        Path {
            client: self.client.to_string(),
            server: self.server.to_string(),
            server_port: self.server_port,
            protocol_identifier: self.protocol,
            connections: sums.connections,
            packet_delta_count: sums.sent_packets[0],
            reverse_packet_delta_count: sums.sent_packets[1],
            octet_delta_count: sums.sent_octets[0],
            reverse_octet_delta_count: sums.sent_octets[1],
            lost_packets: lost(sums.sent_packets[0], sums.received_packets[0]),
            reverse_lost_packets: lost(sums.sent_packets[1], sums.received_packets[1]),
            lost_octets: lost(sums.sent_octets[0], sums.received_octets[0]),
            reverse_lost_octets: lost(sums.sent_octets[1], sums.received_octets[1]),
        }
    }
}

impl Paths {
    fn add(&mut self, record: &FlowRecord) {
        let labels = &record.labels;
        let (Some(vantage), Some(here), Some(peer)) =
            (record.vantage, &labels.workload, &labels.peer_workload)
        else {
            return;
        };
        let ends = Ends {
            source: record.source,
            destination: record.destination,
            protocol: record.protocol_identifier,
        };
        let half = Half {
            at: Instant::now(),
            start: record.flow_start,
            observation_point: record.observation_point,
            vantage,
            packets: [record.forward.packets, record.reverse.packets],
            octets: [record.forward.octets, record.reverse.octets],
        };
        let others = self.halves.entry(ends).or_default();
        let fits = |other: &Half| {
            let apart = other
                .start
                .saturating_since(half.start)
                .max(half.start.saturating_since(other.start));
            other.vantage != vantage
                && other.observation_point != half.observation_point
                && apart <= TOGETHER
        };
        let Some(at) = others.iter().position(fits) else {
            self.order.push_back((half.at, ends));
            others.push(half);
            return;
        };
        let other = others.swap_remove(at);
        if others.is_empty() {
            self.halves.remove(&ends);
        }
        let (client, server, names) = match vantage {
            Vantage::Egress => (&half, &other, (here, peer)),
            Vantage::Ingress => (&other, &half, (peer, here)),
        };
        let key = PathKey {
            client: Arc::clone(names.0),
            server: Arc::clone(names.1),
            server_port: record.has_ports.then_some(record.destination.port),
            protocol: record.protocol_identifier,
        };
        if self.totals.len() >= PATHS && !self.totals.contains_key(&key) {
            return;
        }
        let sums = self.totals.entry(key).or_default();
        sums.connections += 1;
        // What the client sends is sent where the client is seen.
        for (direction, (sender, receiver)) in
            [(client, server), (server, client)].into_iter().enumerate()
        {
            sums.sent_packets[direction] += sender.packets[direction];
            sums.received_packets[direction] += receiver.packets[direction];
            sums.sent_octets[direction] += sender.octets[direction];
            sums.received_octets[direction] += receiver.octets[direction];
        }
    }

    /// Lets go of those whose other side has not come.
    fn forget(&mut self, now: Instant) {
        while let Some(&(at, ends)) = self.order.front() {
            if self.order.len() <= HALVES && now.saturating_duration_since(at) < PATIENCE {
                break;
            }
            self.order.pop_front();
            if let Some(halves) = self.halves.get_mut(&ends) {
                halves.retain(|half| half.at > at);
                if halves.is_empty() {
                    self.halves.remove(&ends);
                }
            }
        }
    }
}

/// How a client or server is written.
pub(crate) fn party(party: &Party) -> String {
    match party {
        Party::Workload(name) => name.to_string(),
        Party::Address(address) => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use nvflow::{Labels, Side};

    use super::*;

    fn seen(point: u16, vantage: Vantage, start: u64, packets: [u64; 2]) -> FlowRecord {
        let end = |last, port| Endpoint {
            address: Ipv4Addr::new(10, 0, 0, last).into(),
            port,
        };
        let side = |packets| Side {
            packets,
            octets: 100 * packets,
            ..Side::default()
        };
        let (here, peer) = match vantage {
            Vantage::Egress => ("client", "server"),
            Vantage::Ingress => ("server", "client"),
        };
        FlowRecord {
            flow_start: Timestamp::from_nanos(start),
            flow_end: Timestamp::from_nanos(start + 1),
            source: end(1, 40_000),
            destination: end(2, 80),
            protocol_identifier: 6,
            has_ports: true,
            icmp_type_code: None,
            vlan_id: None,
            customer_vlan_id: None,
            observation_point: Some(point),
            vantage: Some(vantage),
            forward: side(packets[0]),
            reverse: side(packets[1]),
            flow_end_reason: None,
            tcp: None,
            tunnel: None,
            application: None,
            labels: Labels {
                workload: Some(here.into()),
                peer_workload: Some(peer.into()),
                ..Labels::default()
            },
        }
    }

    #[test]
    fn a_connection_seen_at_both_ends_is_one_and_tells_what_was_lost() {
        let totals = Totals::new();
        let records = [
            seen(1, Vantage::Egress, 1_000, [10, 8]),
            seen(2, Vantage::Ingress, 2_000, [9, 8]),
            // The same ports much later: another connection, of which one side is missing.
            seen(1, Vantage::Egress, 60_000_000_000, [5, 5]),
        ];
        totals.take(records.into(), &|_| {});
        let paths = totals.paths();
        assert_eq!(paths.len(), 1);
        let path = &paths[0];
        assert_eq!(
            (&path.client[..], &path.server[..], path.server_port),
            ("client", "server", Some(80))
        );
        assert_eq!(
            (
                path.connections,
                path.packet_delta_count,
                path.reverse_packet_delta_count
            ),
            (1, 10, 8)
        );
        assert_eq!((path.lost_packets, path.reverse_lost_packets), (1, 0));
        assert_eq!((path.lost_octets, path.reverse_lost_octets), (100, 0));
        // The other side may come first.
        let records = [
            seen(2, Vantage::Ingress, 60_000_000_500, [5, 4]),
            seen(2, Vantage::Ingress, 90_000_000_000, [1, 2]),
            seen(1, Vantage::Egress, 90_000_000_000, [1, 1]),
        ];
        totals.take(records.into(), &|_| {});
        let path = &totals.paths()[0];
        assert_eq!(
            (
                path.connections,
                path.lost_packets,
                path.reverse_lost_packets
            ),
            (3, 1, 0)
        );
        let state = totals.lock();
        assert!(state.paths.halves.is_empty());
    }

    #[test]
    fn halves_that_nobody_answers_are_bounded() {
        let totals = Totals::new();
        let mut records = VecDeque::new();
        for number in 0..(HALVES as u64 + 500) {
            records.push_back(seen(1, Vantage::Egress, number * 10_000_000_000, [1, 1]));
        }
        totals.take(records, &|_| {});
        let state = totals.lock();
        assert_eq!(state.paths.order.len(), HALVES);
        let halves: usize = state.paths.halves.values().map(Vec::len).sum();
        assert!(halves <= HALVES, "{halves}");
    }

    #[test]
    fn a_listener_that_is_slow_loses_and_holds_nobody_up() {
        let totals = Totals::new();
        let listener = totals.listen();
        let many = (0..LISTENING as u64 + 7).map(|n| seen(1, Vantage::Egress, n, [1, 1]));
        totals.take(many.collect(), &|_| {});
        assert_eq!(totals.unheard.load(Ordering::Relaxed), 7);
        assert_eq!(listener.try_iter().count(), LISTENING);
        drop(listener);
        totals.take([seen(1, Vantage::Egress, 1, [1, 1])].into(), &|_| {});
        assert!(totals.lock().listeners.is_empty());
    }

    #[test]
    fn old_windows_are_let_go() {
        let totals = Totals::new();
        for minute in 0..40 {
            totals.take(
                [seen(1, Vantage::Egress, minute * 60_000_000_000, [1, 1])].into(),
                &|_| {},
            );
        }
        let records =
            |aggregator: Aggregator| aggregator.iter().map(|(_, sum)| sum.records).sum::<u64>();
        assert_eq!(records(totals.conversations(u64::MAX)), WINDOWS);
        assert_eq!(records(totals.conversations(3)), 3);
        assert_eq!(records(totals.conversations(1)), 1);
    }
}
