//! What is said of a connection: one record, both directions (RFC 5103), named as IPFIX names it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use nvcapture::Timestamp;
use nvcapture::wire::{Tunnel, TunnelKind, protocol};

use crate::TcpState;
use crate::app::{Application, Dns, Http, Tls};

/// Why a record was made; the IPFIX element `flowEndReason`(136).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowEndReason {
    /// No frame for longer than the idle timeout.
    IdleTimeout = 1,
    /// The connection goes on; it was open for longer than the active timeout since its start or its last record.
    ActiveTimeout = 2,
    /// The connection ended: both sides said FIN, one said RST, or a new connection took its place.
    EndOfFlowDetected = 3,
    /// Metering was ended.
    ForcedEnd = 4,
    /// The table was full and this one was in the way.
    LackOfResources = 5,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 where the protocol has none.
    pub port: u16,
}

/// On which side of a container's interface the initiator of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vantage {
    /// The container opened the connection.
    Egress,
    /// The connection was opened to the container.
    Ingress,
}

impl Vantage {
    /// As it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// What one side of a connection sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Packets on the wire; a super-frame counts as those that it stands for.
    pub packets: u64,
    /// Octets of those IP packets, each with its headers.
    pub octets: u64,
    /// Octets of those packets' frames on the wire, without FCS.
    pub layer2_octets: u64,
    /// Octets of TCP or UDP payload; 0 for other protocols.
    pub payload_octets: u64,
    /// All TCP control bits that were set in any segment.
    pub tcp_control_bits: u16,
    /// Lowest time to live; 0 when nothing was sent.
    pub minimum_ttl: u8,
    /// Highest time to live; 0 when nothing was sent.
    pub maximum_ttl: u8,
    /// Differentiated services code point of the last packet.
    pub dscp: u8,
}

/// What TCP alone tells of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSide {
    /// Smoothed time from a segment of this side to its acknowledgment, both as seen here; delayed acknowledgments are in it.
    ///
    /// Unit: microseconds. Smoothed as RFC 6298 does, with segments that were sent twice left out.
    pub smoothed_rtt_micros: Option<u32>,
    /// Segments whose octets had been sent before.
    pub retransmitted_segments: u32,
    /// Segments that filled a gap within 3 ms, so rather overtaken than sent again.
    pub out_of_order_segments: u32,
    /// Acknowledgments that said nothing new while data was outstanding (RFC 5681).
    pub duplicate_acks: u32,
    /// Segments that announced a receive window of 0.
    pub zero_windows: u32,
}

/// What TCP alone tells of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpRecord {
    /// Where the connection had got to, as its initiator sees it.
    pub state: TcpState,
    /// Time from SYN to SYN-ACK: from here to the server and back. Unit: microseconds.
    pub server_handshake_rtt_micros: Option<u32>,
    /// Time from SYN-ACK to the ACK of it: from here to the client and back. Unit: microseconds.
    pub client_handshake_rtt_micros: Option<u32>,
    /// What the initiator sent.
    pub forward: TcpSide,
    /// What the responder sent.
    pub reverse: TcpSide,
}

/// What is known of a workload beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadDetails {
    /// The engine's id of its container.
    pub id: Option<Arc<str>>,
    /// Its image, as it was named when it was made.
    pub image: Option<Arc<str>>,
    /// The project that it is part of, such as Docker Compose's.
    pub project: Option<Arc<str>>,
    /// Which of the project's services it is.
    pub service: Option<Arc<str>>,
}

/// What others know of a connection: the metering process leaves all of it empty but the domains, a [`crate::Sink`] may fill it in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// The container, pod or process at the observation point.
    pub workload: Option<Arc<str>>,
    /// The one at the other end, where known.
    pub peer_workload: Option<Arc<str>>,
    /// The interface observed.
    pub interface: Option<Arc<str>>,
    /// The network that interface is on, as the engine calls it.
    pub network: Option<Arc<str>>,
    /// More of the workload.
    pub details: Option<Arc<WorkloadDetails>>,
    /// More of the one at the other end.
    pub peer_details: Option<Arc<WorkloadDetails>>,
    /// The name by which the source's address was known at the observation point when the connection began: the last one that somebody had
    /// asked for there whose response of DNS had the address ([`Identify::names`](crate::Identify::names)).
    pub source_domain: Option<Arc<str>>,
    /// The same of the destination's address.
    pub destination_domain: Option<Arc<str>>,
}

/// A connection, or what happened in it since its last record.
///
/// The source is the initiator: who sent SYN; without one seen, who was seen sending first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// When its first frame was seen.
    pub flow_start: Timestamp,
    /// When its last frame was seen.
    pub flow_end: Timestamp,
    /// The initiator.
    pub source: Endpoint,
    /// The responder.
    pub destination: Endpoint,
    /// The protocol above IP.
    pub protocol_identifier: u8,
    /// Whether the ports are known: TCP or UDP, and not only later fragments seen.
    pub has_ports: bool,
    /// ICMP type and code, type times 256 and code; of a query and its replies that of the query.
    pub icmp_type_code: Option<u16>,
    /// The VLAN of the outermost tag; none of a tag that says a priority alone (VLAN 0), nor where VLANs are not told apart.
    pub vlan_id: Option<u16>,
    /// The VLAN of the second tag, which IEEE 802.1ad calls the customer's.
    pub customer_vlan_id: Option<u16>,
    /// The observation point: the id that frames carry in their marker address.
    pub observation_point: Option<u16>,
    /// Which way the connection was opened, seen from the observation point.
    pub vantage: Option<Vantage>,
    /// What the initiator sent.
    pub forward: Side,
    /// What the responder sent.
    pub reverse: Side,
    /// Why the record was made; `None` for a look at an open connection.
    pub flow_end_reason: Option<FlowEndReason>,
    /// What TCP alone tells.
    pub tcp: Option<TcpRecord>,
    /// The tunnel the first frame came out of.
    pub tunnel: Option<Tunnel>,
    /// What it speaks, where [`MeterConfig::identify`](crate::MeterConfig::identify) asks for it and it is known or guessed.
    pub application: Option<Arc<Application>>,
    /// What others know of it.
    pub labels: Labels,
}

/// Of no connection, with nothing in it: to be filled in by who makes a record of what somebody else has told.
impl Default for FlowRecord {
    fn default() -> Self {
        let nowhere = Endpoint {
            address: Ipv4Addr::UNSPECIFIED.into(),
            port: 0,
        };
        Self {
            flow_start: Timestamp::ZERO,
            flow_end: Timestamp::ZERO,
            source: nowhere,
            destination: nowhere,
            protocol_identifier: 0,
            has_ports: false,
            icmp_type_code: None,
            vlan_id: None,
            customer_vlan_id: None,
            observation_point: None,
            vantage: None,
            forward: Side::default(),
            reverse: Side::default(),
            flow_end_reason: None,
            tcp: None,
            tunnel: None,
            application: None,
            labels: Labels::default(),
        }
    }
}

/// A value of a [`Field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value<'r> {
    /// A number.
    Unsigned(u64),
    /// An address.
    Address(IpAddr),
    /// A text.
    Text(&'r str),
    /// The two parts of a handshake's round trip, in microseconds; at least one is there.
    HandshakeRtt {
        /// From the observation point to the client and back.
        client: Option<u32>,
        /// From the observation point to the server and back.
        server: Option<u32>,
    },
}

/// Takes the fields of a record one after the other: any closure with the same arguments does.
///
/// A type whose method is `#[inline(always)]` becomes straight code in which nothing is left to choose: what a writer of many records wants.
pub trait Columns<'r> {
    /// Takes `field`; `None` when it has no meaning for this record.
    fn column(&mut self, field: Field, value: Option<Value<'r>>);
}

impl<'r, F: FnMut(Field, Option<Value<'r>>)> Columns<'r> for F {
    #[inline]
    fn column(&mut self, field: Field, value: Option<Value<'r>>) {
        self(field, value);
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $element:expr;)*) => {
        /// A field of a record, in the order in which records are written.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Field {
            $($(#[$doc])* #[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Field {
            /// All fields, in the order in which records are written.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The field's name: that of its IPFIX element, where there is one.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The number of its IPFIX element; the element of the same field of the other direction for `reverse` ones (RFC 5103).
            pub const fn element(self) -> Option<u16> {
                match self { $(Self::$variant => $element,)* }
            }
        }

        impl FlowRecord {
            /// Shows `columns` every field, in the order in which records are written.
            #[inline(always)]
            pub fn columns<'r>(&'r self, columns: &mut impl Columns<'r>) {
                $(columns.column(Field::$variant, self.value_of(Field::$variant));)*
            }
        }
    };
}

fields! {
    FlowStart = "flowStartMicroseconds", Some(154);
    FlowEnd = "flowEndMicroseconds", Some(155);
    SourceIpv4 = "sourceIPv4Address", Some(8);
    SourceIpv6 = "sourceIPv6Address", Some(27);
    DestinationIpv4 = "destinationIPv4Address", Some(12);
    DestinationIpv6 = "destinationIPv6Address", Some(28);
    SourcePort = "sourceTransportPort", Some(7);
    DestinationPort = "destinationTransportPort", Some(11);
    Protocol = "protocolIdentifier", Some(4);
    IcmpTypeCodeIpv4 = "icmpTypeCodeIPv4", Some(32);
    IcmpTypeCodeIpv6 = "icmpTypeCodeIPv6", Some(139);
    Vlan = "vlanId", Some(58);
    CustomerVlan = "dot1qCustomerVlanId", Some(245);
    ObservationPoint = "observationPointId", Some(138);
    Packets = "packetDeltaCount", Some(2);
    ReversePackets = "reversePacketDeltaCount", Some(2);
    Octets = "octetDeltaCount", Some(1);
    ReverseOctets = "reverseOctetDeltaCount", Some(1);
    Layer2Octets = "layer2OctetDeltaCount", Some(352);
    ReverseLayer2Octets = "reverseLayer2OctetDeltaCount", Some(352);
    InitiatorOctets = "initiatorOctets", Some(231);
    ResponderOctets = "responderOctets", Some(232);
    ControlBits = "tcpControlBits", Some(6);
    ReverseControlBits = "reverseTcpControlBits", Some(6);
    MinimumTtl = "minimumTTL", Some(52);
    ReverseMinimumTtl = "reverseMinimumTTL", Some(52);
    MaximumTtl = "maximumTTL", Some(53);
    ReverseMaximumTtl = "reverseMaximumTTL", Some(53);
    Dscp = "ipDiffServCodePoint", Some(195);
    ReverseDscp = "reverseIpDiffServCodePoint", Some(195);
    EndReason = "flowEndReason", Some(136);
    State = "tcpState", None;
    HandshakeRtt = "handshakeRttMicroseconds", None;
    SmoothedRtt = "smoothedRttMicroseconds", None;
    ReverseSmoothedRtt = "reverseSmoothedRttMicroseconds", None;
    Retransmitted = "retransmittedSegments", None;
    ReverseRetransmitted = "reverseRetransmittedSegments", None;
    OutOfOrder = "outOfOrderSegments", None;
    ReverseOutOfOrder = "reverseOutOfOrderSegments", None;
    DuplicateAcks = "duplicateAcks", None;
    ReverseDuplicateAcks = "reverseDuplicateAcks", None;
    ZeroWindows = "zeroWindows", None;
    ReverseZeroWindows = "reverseZeroWindows", None;
    TunnelType = "tunnelType", None;
    TunnelId = "tunnelId", None;
    TunnelSourceIpv4 = "tunnelSourceIPv4Address", None;
    TunnelSourceIpv6 = "tunnelSourceIPv6Address", None;
    TunnelDestinationIpv4 = "tunnelDestinationIPv4Address", None;
    TunnelDestinationIpv6 = "tunnelDestinationIPv6Address", None;
    Workload = "workload", None;
    PeerWorkload = "peerWorkload", None;
    Interface = "interface", None;
    VantagePoint = "vantage", None;
    Network = "networkName", None;
    WorkloadId = "workloadId", None;
    WorkloadImage = "workloadImage", None;
    WorkloadProject = "workloadProject", None;
    WorkloadService = "workloadService", None;
    PeerWorkloadId = "peerWorkloadId", None;
    PeerWorkloadImage = "peerWorkloadImage", None;
    PeerWorkloadProject = "peerWorkloadProject", None;
    PeerWorkloadService = "peerWorkloadService", None;
    SourceDomain = "sourceDomain", None;
    DestinationDomain = "destinationDomain", None;
    ApplicationName = "applicationName", Some(96);
    ApplicationGuess = "applicationGuess", None;
    TlsServerName = "tlsServerName", None;
    TlsAlpn = "tlsAlpn", None;
    TlsClientVersion = "tlsClientVersion", None;
    TlsVersion = "tlsVersion", None;
    TlsJa4 = "tlsJa4", None;
    HttpRequestMethod = "httpRequestMethod", Some(459);
    HttpRequestHost = "httpRequestHost", Some(460);
    HttpStatusCode = "httpStatusCode", Some(457);
    DnsQueryName = "dnsQueryName", None;
    DnsQueryType = "dnsQueryType", None;
    DnsResponseCode = "dnsResponseCode", None;
    DnsAnswerCount = "dnsAnswerCount", None;
    DnsAnswers = "dnsAnswers", None;
    DnsLatency = "dnsLatencyMicroseconds", None;
}

impl FlowRecord {
    /// Calls `visit` with every field that has a meaning for this record, in the order in which records are written.
    #[inline]
    pub fn fields<'r>(&'r self, mut visit: impl FnMut(Field, Value<'r>)) {
        self.columns(&mut |field, value| {
            if let Some(value) = value {
                visit(field, value);
            }
        });
    }

    /// The value of `field`; `None` when it has no meaning for this record.
    pub fn value(&self, field: Field) -> Option<Value<'_>> {
        self.value_of(field)
    }

    /// As [`value`](Self::value), in the place of the call, where the field is known and nothing is left to choose.
    #[inline(always)]
    fn value_of(&self, field: Field) -> Option<Value<'_>> {
        let number = |number: u64| Some(Value::Unsigned(number));
        let v4 = |address: IpAddr| address.is_ipv4().then_some(Value::Address(address));
        let v6 = |address: IpAddr| address.is_ipv6().then_some(Value::Address(address));
        let port = |port: u16| self.has_ports.then_some(Value::Unsigned(port.into()));
        let has_payload = matches!(self.protocol_identifier, protocol::TCP | protocol::UDP);
        let payload = |octets: u64| has_payload.then_some(Value::Unsigned(octets));
        let is_tcp = self.protocol_identifier == protocol::TCP;
        let bits = |bits: u16| is_tcp.then_some(Value::Unsigned(bits.into()));
        let of_tcp = |pick: fn(&TcpRecord) -> u32| {
            self.tcp
                .as_ref()
                .map(|tcp| Value::Unsigned(pick(tcp).into()))
        };
        let rtt = |pick: fn(&TcpRecord) -> Option<u32>| {
            self.tcp
                .as_ref()
                .and_then(pick)
                .map(|micros| Value::Unsigned(micros.into()))
        };
        let sent = |side: &Side, pick: fn(&Side) -> u8| {
            (side.packets > 0).then(|| Value::Unsigned(pick(side).into()))
        };
        let icmp = |protocol: u8| {
            self.icmp_type_code
                .filter(|_| self.protocol_identifier == protocol)
                .map(|code| Value::Unsigned(code.into()))
        };
        match field {
            Field::FlowStart => number(self.flow_start.as_micros()),
            Field::FlowEnd => number(self.flow_end.as_micros()),
            Field::SourceIpv4 => v4(self.source.address),
            Field::SourceIpv6 => v6(self.source.address),
            Field::DestinationIpv4 => v4(self.destination.address),
            Field::DestinationIpv6 => v6(self.destination.address),
            Field::SourcePort => port(self.source.port),
            Field::DestinationPort => port(self.destination.port),
            Field::Protocol => number(self.protocol_identifier.into()),
            Field::IcmpTypeCodeIpv4 => icmp(protocol::ICMP),
            Field::IcmpTypeCodeIpv6 => icmp(protocol::ICMPV6),
            Field::Vlan => self.vlan_id.map(|id| Value::Unsigned(id.into())),
            Field::CustomerVlan => self.customer_vlan_id.map(|id| Value::Unsigned(id.into())),
            Field::ObservationPoint => self.observation_point.map(|id| Value::Unsigned(id.into())),
            Field::Packets => number(self.forward.packets),
            Field::ReversePackets => number(self.reverse.packets),
            Field::Octets => number(self.forward.octets),
            Field::ReverseOctets => number(self.reverse.octets),
            Field::Layer2Octets => number(self.forward.layer2_octets),
            Field::ReverseLayer2Octets => number(self.reverse.layer2_octets),
            Field::InitiatorOctets => payload(self.forward.payload_octets),
            Field::ResponderOctets => payload(self.reverse.payload_octets),
            Field::ControlBits => bits(self.forward.tcp_control_bits),
            Field::ReverseControlBits => bits(self.reverse.tcp_control_bits),
            Field::MinimumTtl => sent(&self.forward, |side| side.minimum_ttl),
            Field::ReverseMinimumTtl => sent(&self.reverse, |side| side.minimum_ttl),
            Field::MaximumTtl => sent(&self.forward, |side| side.maximum_ttl),
            Field::ReverseMaximumTtl => sent(&self.reverse, |side| side.maximum_ttl),
            Field::Dscp => sent(&self.forward, |side| side.dscp),
            Field::ReverseDscp => sent(&self.reverse, |side| side.dscp),
            Field::EndReason => self
                .flow_end_reason
                .map(|reason| Value::Unsigned(reason as u64)),
            Field::State => self.tcp.as_ref().map(|tcp| Value::Text(tcp.state.as_str())),
            Field::HandshakeRtt => {
                let tcp = self.tcp.as_ref()?;
                let (client, server) = (
                    tcp.client_handshake_rtt_micros,
                    tcp.server_handshake_rtt_micros,
                );
                (client.is_some() || server.is_some())
                    .then_some(Value::HandshakeRtt { client, server })
            }
            Field::SmoothedRtt => rtt(|tcp| tcp.forward.smoothed_rtt_micros),
            Field::ReverseSmoothedRtt => rtt(|tcp| tcp.reverse.smoothed_rtt_micros),
            Field::Retransmitted => of_tcp(|tcp| tcp.forward.retransmitted_segments),
            Field::ReverseRetransmitted => of_tcp(|tcp| tcp.reverse.retransmitted_segments),
            Field::OutOfOrder => of_tcp(|tcp| tcp.forward.out_of_order_segments),
            Field::ReverseOutOfOrder => of_tcp(|tcp| tcp.reverse.out_of_order_segments),
            Field::DuplicateAcks => of_tcp(|tcp| tcp.forward.duplicate_acks),
            Field::ReverseDuplicateAcks => of_tcp(|tcp| tcp.reverse.duplicate_acks),
            Field::ZeroWindows => of_tcp(|tcp| tcp.forward.zero_windows),
            Field::ReverseZeroWindows => of_tcp(|tcp| tcp.reverse.zero_windows),
            Field::TunnelType => self
                .tunnel
                .map(|tunnel| Value::Text(tunnel_type(tunnel.kind))),
            Field::TunnelId => self
                .tunnel
                .and_then(|tunnel| tunnel.id)
                .map(|id| Value::Unsigned(id.into())),
            Field::TunnelSourceIpv4 => self.tunnel.and_then(|tunnel| v4(tunnel.source)),
            Field::TunnelSourceIpv6 => self.tunnel.and_then(|tunnel| v6(tunnel.source)),
            Field::TunnelDestinationIpv4 => self.tunnel.and_then(|tunnel| v4(tunnel.destination)),
            Field::TunnelDestinationIpv6 => self.tunnel.and_then(|tunnel| v6(tunnel.destination)),
            Field::Workload => label(&self.labels.workload),
            Field::PeerWorkload => label(&self.labels.peer_workload),
            Field::Interface => label(&self.labels.interface),
            Field::VantagePoint => self.vantage.map(|vantage| Value::Text(vantage.as_str())),
            Field::Network => label(&self.labels.network),
            Field::WorkloadId => detail(&self.labels.details, |of| &of.id),
            Field::WorkloadImage => detail(&self.labels.details, |of| &of.image),
            Field::WorkloadProject => detail(&self.labels.details, |of| &of.project),
            Field::WorkloadService => detail(&self.labels.details, |of| &of.service),
            Field::PeerWorkloadId => detail(&self.labels.peer_details, |of| &of.id),
            Field::PeerWorkloadImage => detail(&self.labels.peer_details, |of| &of.image),
            Field::PeerWorkloadProject => detail(&self.labels.peer_details, |of| &of.project),
            Field::PeerWorkloadService => detail(&self.labels.peer_details, |of| &of.service),
            Field::SourceDomain => label(&self.labels.source_domain),
            Field::DestinationDomain => label(&self.labels.destination_domain),
            Field::ApplicationName => {
                let application = self.application.as_deref()?;
                application.protocol.map(|it| Value::Text(it.name()))
            }
            Field::ApplicationGuess => {
                let application = self.application.as_deref()?;
                application.registered.map(Value::Text)
            }
            Field::TlsServerName => told(self.tls(), |tls| tls.server_name.as_deref()),
            Field::TlsAlpn => told(self.tls(), |tls| tls.alpn.as_deref()),
            Field::TlsClientVersion => told(self.tls(), |tls| tls.client_version.as_deref()),
            Field::TlsVersion => told(self.tls(), |tls| tls.version.as_deref()),
            Field::TlsJa4 => told(self.tls(), |tls| tls.ja4.as_deref()),
            Field::HttpRequestMethod => told(self.http(), |http| http.method.as_deref()),
            Field::HttpRequestHost => told(self.http(), |http| http.host.as_deref()),
            Field::HttpStatusCode => {
                let status = self.http().and_then(|http| http.status);
                status.map(|status| Value::Unsigned(status.into()))
            }
            Field::DnsQueryName => told(self.dns(), |dns| dns.query_name.as_deref()),
            Field::DnsQueryType => told(self.dns(), |dns| dns.query_type.as_deref()),
            Field::DnsResponseCode => told(self.dns(), |dns| dns.response_code.as_deref()),
            Field::DnsAnswerCount => {
                let count = self.dns().and_then(|dns| dns.answer_count);
                count.map(|count| Value::Unsigned(count.into()))
            }
            Field::DnsAnswers => told(self.dns(), |dns| dns.answers.as_deref()),
            Field::DnsLatency => {
                let latency = self.dns().and_then(|dns| dns.latency_micros);
                latency.map(|micros| Value::Unsigned(micros.into()))
            }
        }
    }

    #[inline]
    fn tls(&self) -> Option<&Tls> {
        self.application.as_deref()?.tls.as_deref()
    }

    #[inline]
    fn http(&self) -> Option<&Http> {
        self.application.as_deref()?.http.as_deref()
    }

    #[inline]
    fn dns(&self) -> Option<&Dns> {
        self.application.as_deref()?.dns.as_deref()
    }

    /// The time from its first frame to its last.
    pub fn duration(&self) -> std::time::Duration {
        self.flow_end.saturating_since(self.flow_start)
    }
}

const fn tunnel_type(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::IpInIp => "ipip",
        TunnelKind::Gre => "gre",
        TunnelKind::Vxlan => "vxlan",
        TunnelKind::Geneve => "geneve",
        TunnelKind::GtpU => "gtpu",
        TunnelKind::Teredo => "teredo",
        // The enum may grow; its names are here.
        _ => "other",
    }
}

/// A text of what an application told, if it did.
#[inline]
fn told<T>(of: Option<&T>, pick: impl FnOnce(&T) -> Option<&str>) -> Option<Value<'_>> {
    of.and_then(pick).map(Value::Text)
}

fn label(text: &Option<Arc<str>>) -> Option<Value<'_>> {
    text.as_deref().map(Value::Text)
}

fn detail(
    of: &Option<Arc<WorkloadDetails>>,
    pick: impl FnOnce(&WorkloadDetails) -> &Option<Arc<str>>,
) -> Option<Value<'_>> {
    of.as_deref().and_then(|of| label(pick(of)))
}
