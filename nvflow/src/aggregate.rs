//! Conversations: records added up by what they have in common, in windows of time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nvcapture::Timestamp;
use nvcapture::wire::protocol;

use crate::{Application, FlowEndReason, FlowRecord, Protocol, TcpState};

/// A client or a server: by the name of its workload where one is known, else by its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A workload.
    Workload(Arc<str>),
    /// An address.
    Address(IpAddr),
}

/// Which fields make records belong to one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupBy {
    /// The initiator's workload or address.
    pub client: bool,
    /// The initiator's port.
    pub client_port: bool,
    /// The responder's workload or address.
    pub server: bool,
    /// The responder's port.
    pub server_port: bool,
    /// The protocol above IP.
    pub protocol: bool,
    /// The observation point.
    pub observation_point: bool,
    /// The interface observed.
    pub interface: bool,
    /// The VLANs of both tags.
    pub vlan: bool,
    /// The application protocol.
    pub application: bool,
    /// The name that the client asked for, of TLS, else of HTTP, else of DNS.
    pub server_name: bool,
}

impl Default for GroupBy {
    /// Client, server, server port, protocol and observation point.
    fn default() -> Self {
        Self {
            client: true,
            client_port: false,
            server: true,
            server_port: true,
            protocol: true,
            observation_point: true,
            interface: false,
            vlan: false,
            application: false,
            server_name: false,
        }
    }
}

/// What the records of a conversation have in common, and its window of time. A field that is not grouped by is `None`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationKey {
    /// When the window begins in which the records end.
    pub window: Timestamp,
    /// The initiator.
    pub client: Option<Party>,
    /// The initiator's port.
    pub client_port: Option<u16>,
    /// The responder.
    pub server: Option<Party>,
    /// The responder's port.
    pub server_port: Option<u16>,
    /// The protocol above IP.
    pub protocol: Option<u8>,
    /// The observation point.
    pub observation_point: Option<u16>,
    /// The interface observed.
    pub interface: Option<Arc<str>>,
    /// The VLAN of the outermost tag.
    pub vlan: Option<u16>,
    /// The VLAN of the second tag.
    pub customer_vlan: Option<u16>,
    /// The application protocol, as its octets tell.
    pub application: Option<&'static str>,
    /// The name that the client asked for.
    pub server_name: Option<Arc<str>>,
}

impl GroupBy {
    fn key(&self, record: &FlowRecord, window: Timestamp) -> ConversationKey {
        // The workload is at the observation point, the peer at the other end.
        let labels = &record.labels;
        let (client, server) = match record.vantage {
            Some(crate::Vantage::Ingress) => (&labels.peer_workload, &labels.workload),
            Some(crate::Vantage::Egress) | None => (&labels.workload, &labels.peer_workload),
        };
        let party = |workload: &Option<Arc<str>>, address: IpAddr| match workload {
            Some(workload) => Party::Workload(Arc::clone(workload)),
            None => Party::Address(address),
        };
        let label =
            |wanted: bool, text: &Option<Arc<str>>| text.as_ref().filter(|_| wanted).cloned();
        let application = record.application.as_deref();
        let asked = |of: &Application| {
            let tls = of.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
            let http = of.http.as_ref().and_then(|http| http.host.as_deref());
            let dns = of.dns.as_ref().and_then(|dns| dns.query_name.as_deref());
            tls.or(http).or(dns).map(Arc::from)
        };
        ConversationKey {
            window,
            client_port: (self.client_port && record.has_ports).then_some(record.source.port),
            interface: label(self.interface, &labels.interface),
            application: application
                .filter(|_| self.application)
                .and_then(|of| of.protocol)
                .map(Protocol::name),
            server_name: application.filter(|_| self.server_name).and_then(asked),
            client: self.client.then(|| party(client, record.source.address)),
            server: self
                .server
                .then(|| party(server, record.destination.address)),
            server_port: (self.server_port && record.has_ports).then_some(record.destination.port),
            protocol: self.protocol.then_some(record.protocol_identifier),
            observation_point: record.observation_point.filter(|_| self.observation_point),
            vlan: record.vlan_id.filter(|_| self.vlan),
            customer_vlan: record.customer_vlan_id.filter(|_| self.vlan),
        }
    }
}

/// Times counted by size: 8 classes for each power of two, so a quantile is right to an eighth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// From 0 to 2^24 microseconds; the last class holds all that is longer.
    counts: Box<[u32; Self::CLASSES]>,
    total: u64,
}

impl Histogram {
    const CLASSES: usize = 8 * 22 + 1;

    fn class(micros: u32) -> usize {
        if micros < 8 {
            return micros as usize;
        }
        let power = 31 - micros.leading_zeros();
        let part = (micros >> (power - 3)) & 7;
        ((power - 2) * 8 + part).min(Self::CLASSES as u32 - 1) as usize
    }

    /// The highest time of a class.
    fn highest(class: usize) -> u32 {
        match class as u32 {
            class @ 0..8 => class,
            class => {
                let (power, part) = (class / 8 + 2, class % 8);
                ((8 + part + 1) << (power - 3)) - 1
            }
        }
    }

    /// Counts a time.
    pub fn add(&mut self, micros: u32) {
        let count = &mut self.counts[Self::class(micros)];
        *count = count.saturating_add(1);
        self.total += 1;
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The time that a part of `quantile` (0 to 1) of all does not exceed, at most an eighth too high; `None` when there is none.
    pub fn quantile(&self, quantile: f64) -> Option<u32> {
        if self.total == 0 {
            return None;
        }
        let wanted = ((quantile.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).max(1);
        let mut sum = 0;
        for (class, &count) in self.counts.iter().enumerate() {
            sum += u64::from(count);
            if sum >= wanted {
                return Some(Self::highest(class));
            }
        }
        Some(Self::highest(Self::CLASSES - 1))
    }

    fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count = count.saturating_add(*more);
        }
        self.total += other.total;
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; Self::CLASSES]),
            total: 0,
        }
    }
}

/// Records of one conversation added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Records added.
    pub records: u64,
    /// Connections whose beginning is in one of the records: TCP with its SYN. Of other protocols no record tells, so they count with the last one
    /// of each, when they are [`closed`](Self::closed).
    pub opened: u64,
    /// Connections that came to an end.
    pub closed: u64,
    /// TCP connections that were never established: refused, or not answered.
    pub failed: u64,
    /// Packets of the clients.
    pub packets: u64,
    /// Packets of the servers.
    pub reverse_packets: u64,
    /// IP octets of the clients.
    pub octets: u64,
    /// IP octets of the servers.
    pub reverse_octets: u64,
    /// Layer-4 payload of the clients.
    pub initiator_octets: u64,
    /// Layer-4 payload of the servers.
    pub responder_octets: u64,
    /// Retransmitted segments of both sides.
    pub retransmitted_segments: u64,
    /// Round trips of handshakes, client's part and server's part together. `None` until there is one: a histogram takes 708 octets.
    pub handshake_rtt: Option<Histogram>,
}

impl Conversation {
    fn add(&mut self, record: &FlowRecord) {
        let (forward, reverse) = (&record.forward, &record.reverse);
        self.records += 1;
        self.packets += forward.packets;
        self.reverse_packets += reverse.packets;
        self.octets += forward.octets;
        self.reverse_octets += reverse.octets;
        self.initiator_octets += forward.payload_octets;
        self.responder_octets += reverse.payload_octets;
        let goes_on = matches!(
            record.flow_end_reason,
            Some(FlowEndReason::ActiveTimeout) | None
        );
        self.closed += u64::from(!goes_on);
        let Some(tcp) = record
            .tcp
            .as_ref()
            .filter(|_| record.protocol_identifier == protocol::TCP)
        else {
            self.opened += u64::from(!goes_on);
            return;
        };
        const SYN: u16 = nvcapture::wire::control::SYN;
        let has_begun = (forward.tcp_control_bits | reverse.tcp_control_bits) & SYN != 0;
        self.opened += u64::from(has_begun);
        let refused =
            tcp.state == TcpState::Closed && has_begun && reverse.tcp_control_bits & SYN == 0;
        self.failed += u64::from(
            !goes_on && (refused || matches!(tcp.state, TcpState::SynSent | TcpState::SynReceived)),
        );
        self.retransmitted_segments += u64::from(tcp.forward.retransmitted_segments);
        self.retransmitted_segments += u64::from(tcp.reverse.retransmitted_segments);
        if let (Some(client), Some(server), true) = (
            tcp.client_handshake_rtt_micros,
            tcp.server_handshake_rtt_micros,
            has_begun,
        ) {
            self.handshake_rtt
                .get_or_insert_default()
                .add(client.saturating_add(server));
        }
    }

    fn merge(&mut self, other: &Self) {
        for (mine, more) in [
            (&mut self.records, other.records),
            (&mut self.opened, other.opened),
            (&mut self.closed, other.closed),
            (&mut self.failed, other.failed),
            (&mut self.packets, other.packets),
            (&mut self.reverse_packets, other.reverse_packets),
            (&mut self.octets, other.octets),
            (&mut self.reverse_octets, other.reverse_octets),
            (&mut self.initiator_octets, other.initiator_octets),
            (&mut self.responder_octets, other.responder_octets),
            (
                &mut self.retransmitted_segments,
                other.retransmitted_segments,
            ),
        ] {
            *mine += more;
        }
        if let Some(more) = &other.handshake_rtt {
            self.handshake_rtt.get_or_insert_default().merge(more);
        }
    }
}

/// Adds up records by conversation. Bounded: what has no room is added up in one [`Aggregator::rest`].
#[derive(Clone, Debug)]
pub struct Aggregator {
    group_by: GroupBy,
    window: u64,
    most: usize,
    conversations: HashMap<ConversationKey, Conversation>,
    rest: Conversation,
}

impl Aggregator {
    /// An empty one for up to `most` conversations, in windows of `window`; a window of zero is all time.
    pub fn new(group_by: GroupBy, window: Duration, most: usize) -> Self {
        let window = u64::try_from(window.as_nanos()).unwrap_or(0);
        Self {
            group_by,
            window,
            most,
            conversations: HashMap::new(),
            rest: Conversation::default(),
        }
    }

    /// Adds a record, to the window in which it ends.
    pub fn add(&mut self, record: &FlowRecord) {
        let end = record.flow_end.as_nanos();
        let window = Timestamp::from_nanos(
            end.checked_rem(self.window)
                .map_or(0, |inside| end - inside),
        );
        let key = self.group_by.key(record, window);
        self.conversation(key).add(record);
    }

    /// Adds what another, of a thread or a host, has added up.
    pub fn merge(&mut self, other: Self) {
        for (key, conversation) in other.conversations {
            self.conversation(key).merge(&conversation);
        }
        self.rest.merge(&other.rest);
    }

    fn conversation(&mut self, key: ConversationKey) -> &mut Conversation {
        if self.conversations.len() >= self.most && !self.conversations.contains_key(&key) {
            return &mut self.rest;
        }
        self.conversations.entry(key).or_default()
    }

    /// The conversations, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&ConversationKey, &Conversation)> {
        self.conversations.iter()
    }

    /// What had no room, added up.
    pub fn rest(&self) -> &Conversation {
        &self.rest
    }

    /// Takes out the conversations of windows that end at or before `end`, oldest first; a window of all time does not end.
    pub fn take_until(&mut self, end: Timestamp) -> Vec<(ConversationKey, Conversation)> {
        let window = self.window;
        self.take(|key| {
            window > 0 && key.window.as_nanos().saturating_add(window) <= end.as_nanos()
        })
    }

    /// Takes out all conversations, oldest first, whether their windows have ended or not.
    pub fn take_all(&mut self) -> Vec<(ConversationKey, Conversation)> {
        self.take(|_| true)
    }

    /// Takes what had no room: [`rest`](Self::rest) begins anew.
    pub fn take_rest(&mut self) -> Conversation {
        std::mem::take(&mut self.rest)
    }

    fn take(
        &mut self,
        is_wanted: impl Fn(&ConversationKey) -> bool,
    ) -> Vec<(ConversationKey, Conversation)> {
        let mut taken: Vec<_> = self
            .conversations
            .extract_if(|key, _| is_wanted(key))
            .collect();
        taken.sort_by(|a, b| a.0.cmp(&b.0));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_an_eighth_wide() {
        for micros in (0..20).chain([100, 1_000, 65_535, 65_536, 1_000_000, (1 << 24) - 1]) {
            let highest = Histogram::highest(Histogram::class(micros));
            assert!(
                highest >= micros && highest - micros <= micros / 8,
                "{micros}: {highest}"
            );
        }
        assert_eq!(Histogram::class(u32::MAX), Histogram::CLASSES - 1);
    }

    #[test]
    fn quantiles_are_of_what_was_counted() {
        let mut times = Histogram::default();
        assert_eq!(times.quantile(0.5), None);
        for micros in 1..=1000 {
            times.add(micros);
        }
        let median = times.quantile(0.5).expect("counted");
        assert!((500..=563).contains(&median), "{median}");
        let most = times.quantile(1.0).expect("counted");
        assert!((1000..=1125).contains(&most), "{most}");
    }
}
