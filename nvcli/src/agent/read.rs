//! Records as the agent's API writes them, read again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use nvcapture::Timestamp;
use nvcapture::wire::{Tunnel, TunnelKind};
use nvflow::{
    Application, Field, FlowEndReason, FlowRecord, Protocol, TcpRecord, TcpSide, TcpState, Vantage,
    WorkloadDetails,
};
use serde_json::{Map, Value};

use crate::events::Event;

/// All fields by their names.
static FIELDS: LazyLock<HashMap<&'static str, Field>> = LazyLock::new(|| {
    let all = Field::ALL.iter();
    all.map(|field| (field.name(), *field)).collect()
});

/// What a line of an answer tells.
#[derive(Clone, Debug)]
pub(super) enum Line {
    /// A connection, and what is told of it, where something is.
    Record(Option<Event>, Box<FlowRecord>),
    /// Something else; `event` says what.
    Other(Map<String, Value>),
}

/// Reads a line; `None` when it cannot be one of an agent of this version.
pub(super) fn line(text: &[u8]) -> Option<Line> {
    let Ok(Value::Object(line)) = serde_json::from_slice(text) else {
        return None;
    };
    let event = match line.get("event").map(Value::as_str) {
        None => None,
        Some(Some("open")) => Some(Event::Open),
        Some(Some("update")) => Some(Event::Update),
        Some(Some("end")) => Some(Event::End),
        Some(_) => return Some(Line::Other(line)),
    };
    record(&line).map(|record| Line::Record(event, Box::new(record)))
}

/// The record that an object is. Keys that are not known may have come to the API since; values that cannot be are refused.
fn record(object: &Map<String, Value>) -> Option<FlowRecord> {
    let mut record = FlowRecord::default();
    let mut more = More::default();
    for (key, value) in object {
        if let Some(field) = FIELDS.get(key.as_str()) {
            put(&mut record, &mut more, *field, value)?;
        }
    }
    let ports = [record.source.port, record.destination.port];
    if let Some(guess) = more.guess {
        // Names of services are few, and kept once.
        let application = more.application.get_or_insert_default();
        application.registered = ports
            .iter()
            .filter_map(|port| nvflow::registered_service(record.protocol_identifier, *port))
            .find(|name| *name == guess);
    }
    record.application = more.application.map(Arc::new);
    record.labels.details = more.details.map(Arc::new);
    record.labels.peer_details = more.peer_details.map(Arc::new);
    Some(record)
}

/// What is shared within a record, in the making.
#[derive(Default)]
struct More<'v> {
    application: Option<Application>,
    guess: Option<&'v str>,
    details: Option<WorkloadDetails>,
    peer_details: Option<WorkloadDetails>,
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn time(value: &Value) -> Option<Timestamp> {
    Some(Timestamp::from_nanos(value.as_u64()?.checked_mul(1_000)?))
}

fn name(value: &Value) -> Option<Option<Arc<str>>> {
    Some(Some(value.as_str()?.into()))
}

fn text(value: &Value) -> Option<Option<Box<str>>> {
    Some(Some(value.as_str()?.into()))
}

fn word(value: &Value) -> Option<Option<Cow<'static, str>>> {
    Some(Some(Cow::Owned(value.as_str()?.to_owned())))
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn reason(value: &Value) -> Option<FlowEndReason> {
    Some(match value.as_u64()? {
        1 => FlowEndReason::IdleTimeout,
        2 => FlowEndReason::ActiveTimeout,
        3 => FlowEndReason::EndOfFlowDetected,
        4 => FlowEndReason::ForcedEnd,
        5 => FlowEndReason::LackOfResources,
        _ => return None,
    })
}

fn tunnel_kind(text: &str) -> Option<TunnelKind> {
    Some(match text {
        "ipip" => TunnelKind::IpInIp,
        "gre" => TunnelKind::Gre,
        "vxlan" => TunnelKind::Vxlan,
        "geneve" => TunnelKind::Geneve,
        "gtpu" => TunnelKind::GtpU,
        "teredo" => TunnelKind::Teredo,
        _ => return None,
    })
}

fn tcp(record: &mut FlowRecord) -> &mut TcpRecord {
    record.tcp.get_or_insert(TcpRecord {
        state: TcpState::Established,
        server_handshake_rtt_micros: None,
        client_handshake_rtt_micros: None,
        forward: TcpSide::default(),
        reverse: TcpSide::default(),
    })
}

fn tunnel(record: &mut FlowRecord) -> &mut Tunnel {
    record.tunnel.get_or_insert(Tunnel {
        kind: TunnelKind::IpInIp,
        id: None,
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: Ipv4Addr::UNSPECIFIED.into(),
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "a line for each field, in their order"
)]
fn put<'v>(
    record: &mut FlowRecord,
    more: &mut More<'v>,
    field: Field,
    value: &'v Value,
) -> Option<()> {
    macro_rules! of_application {
        ($part:ident) => {
            more.application
                .get_or_insert_default()
                .$part
                .get_or_insert_default()
        };
    }
    match field {
        Field::FlowStart => record.flow_start = time(value)?,
        Field::FlowEnd => record.flow_end = time(value)?,
        Field::SourceIpv4 | Field::SourceIpv6 => record.source.address = address(value)?,
        Field::DestinationIpv4 | Field::DestinationIpv6 => {
            record.destination.address = address(value)?;
        }
        Field::SourcePort => (record.source.port, record.has_ports) = (number(value)?, true),
        Field::DestinationPort => {
            (record.destination.port, record.has_ports) = (number(value)?, true);
        }
        Field::Protocol => record.protocol_identifier = number(value)?,
        Field::IcmpTypeCodeIpv4 | Field::IcmpTypeCodeIpv6 => {
            record.icmp_type_code = Some(number(value)?);
        }
        Field::Vlan => record.vlan_id = Some(number(value)?),
        Field::CustomerVlan => record.customer_vlan_id = Some(number(value)?),
        Field::ObservationPoint => record.observation_point = Some(number(value)?),
        Field::Packets => record.forward.packets = number(value)?,
        Field::ReversePackets => record.reverse.packets = number(value)?,
        Field::Octets => record.forward.octets = number(value)?,
        Field::ReverseOctets => record.reverse.octets = number(value)?,
        Field::Layer2Octets => record.forward.layer2_octets = number(value)?,
        Field::ReverseLayer2Octets => record.reverse.layer2_octets = number(value)?,
        Field::InitiatorOctets => record.forward.payload_octets = number(value)?,
        Field::ResponderOctets => record.reverse.payload_octets = number(value)?,
        Field::ControlBits => record.forward.tcp_control_bits = number(value)?,
        Field::ReverseControlBits => record.reverse.tcp_control_bits = number(value)?,
        Field::MinimumTtl => record.forward.minimum_ttl = number(value)?,
        Field::ReverseMinimumTtl => record.reverse.minimum_ttl = number(value)?,
        Field::MaximumTtl => record.forward.maximum_ttl = number(value)?,
        Field::ReverseMaximumTtl => record.reverse.maximum_ttl = number(value)?,
        Field::Dscp => record.forward.dscp = number(value)?,
        Field::ReverseDscp => record.reverse.dscp = number(value)?,
        Field::EndReason => record.flow_end_reason = Some(reason(value)?),
        Field::State => {
            let text = value.as_str()?;
            tcp(record).state = *TcpState::ALL.iter().find(|state| state.as_str() == text)?;
        }
        Field::HandshakeRtt => {
            let part = |key| value.get(key).and_then(number);
            tcp(record).client_handshake_rtt_micros = part("client");
            tcp(record).server_handshake_rtt_micros = part("server");
        }
        Field::SmoothedRtt => tcp(record).forward.smoothed_rtt_micros = Some(number(value)?),
        Field::ReverseSmoothedRtt => {
            tcp(record).reverse.smoothed_rtt_micros = Some(number(value)?);
        }
        Field::Retransmitted => tcp(record).forward.retransmitted_segments = number(value)?,
        Field::ReverseRetransmitted => tcp(record).reverse.retransmitted_segments = number(value)?,
        Field::OutOfOrder => tcp(record).forward.out_of_order_segments = number(value)?,
        Field::ReverseOutOfOrder => tcp(record).reverse.out_of_order_segments = number(value)?,
        Field::DuplicateAcks => tcp(record).forward.duplicate_acks = number(value)?,
        Field::ReverseDuplicateAcks => tcp(record).reverse.duplicate_acks = number(value)?,
        Field::ZeroWindows => tcp(record).forward.zero_windows = number(value)?,
        Field::ReverseZeroWindows => tcp(record).reverse.zero_windows = number(value)?,
        Field::TunnelType => tunnel(record).kind = tunnel_kind(value.as_str()?)?,
        Field::TunnelId => tunnel(record).id = Some(number(value)?),
        Field::TunnelSourceIpv4 | Field::TunnelSourceIpv6 => {
            tunnel(record).source = address(value)?;
        }
        Field::TunnelDestinationIpv4 | Field::TunnelDestinationIpv6 => {
            tunnel(record).destination = address(value)?;
        }
        Field::Workload => record.labels.workload = name(value)?,
        Field::PeerWorkload => record.labels.peer_workload = name(value)?,
        Field::Interface => record.labels.interface = name(value)?,
        Field::VantagePoint => {
            record.vantage = Some(match value.as_str()? {
                "egress" => Vantage::Egress,
                "ingress" => Vantage::Ingress,
                _ => return None,
            });
        }
        Field::Network => record.labels.network = name(value)?,
        Field::WorkloadId => more.details.get_or_insert_default().id = name(value)?,
        Field::WorkloadImage => more.details.get_or_insert_default().image = name(value)?,
        Field::WorkloadProject => more.details.get_or_insert_default().project = name(value)?,
        Field::WorkloadService => more.details.get_or_insert_default().service = name(value)?,
        Field::PeerWorkloadId => more.peer_details.get_or_insert_default().id = name(value)?,
        Field::PeerWorkloadImage => more.peer_details.get_or_insert_default().image = name(value)?,
        Field::PeerWorkloadProject => {
            more.peer_details.get_or_insert_default().project = name(value)?;
        }
        Field::PeerWorkloadService => {
            more.peer_details.get_or_insert_default().service = name(value)?;
        }
        Field::SourceDomain => record.labels.source_domain = name(value)?,
        Field::DestinationDomain => record.labels.destination_domain = name(value)?,
        Field::ApplicationName => {
            let name = value.as_str()?;
            let protocol = Protocol::ALL.iter().find(|one| one.name() == name)?;
            more.application.get_or_insert_default().protocol = Some(*protocol);
        }
        Field::ApplicationGuess => more.guess = Some(value.as_str()?),
        Field::TlsServerName => of_application!(tls).server_name = text(value)?,
        Field::TlsAlpn => of_application!(tls).alpn = text(value)?,
        Field::TlsClientVersion => of_application!(tls).client_version = word(value)?,
        Field::TlsVersion => of_application!(tls).version = word(value)?,
        Field::TlsJa4 => of_application!(tls).ja4 = text(value)?,
        Field::HttpRequestMethod => of_application!(http).method = text(value)?,
        Field::HttpRequestHost => of_application!(http).host = text(value)?,
        Field::HttpStatusCode => of_application!(http).status = Some(number(value)?),
        Field::DnsQueryName => of_application!(dns).query_name = text(value)?,
        Field::DnsQueryType => of_application!(dns).query_type = word(value)?,
        Field::DnsResponseCode => of_application!(dns).response_code = word(value)?,
        Field::DnsAnswerCount => of_application!(dns).answer_count = Some(number(value)?),
        Field::DnsAnswers => of_application!(dns).answers = text(value)?,
        Field::DnsLatency => of_application!(dns).latency_micros = Some(number(value)?),
        // The test below finds one that is not here.
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::render::flows::{Json, Lines as _};

    /// A value for every field, as JSON has it.
    fn value_of(field: Field) -> Value {
        let text = match field {
            Field::HandshakeRtt => return serde_json::json!({"client": 7, "server": 8}),
            Field::EndReason => return 5.into(),
            Field::Protocol => return 6.into(),
            Field::SourceIpv4 => "192.0.2.1",
            Field::DestinationIpv4 => "192.0.2.2",
            Field::SourceIpv6 => "2001:db8::1",
            Field::DestinationIpv6 => "2001:db8::2",
            Field::TunnelSourceIpv4 => "198.51.100.1",
            Field::TunnelDestinationIpv4 => "198.51.100.2",
            Field::TunnelSourceIpv6 => "2001:db8:1::1",
            Field::TunnelDestinationIpv6 => "2001:db8:1::2",
            Field::State => "FIN-WAIT-2",
            Field::TunnelType => "geneve",
            Field::VantagePoint => "ingress",
            Field::ApplicationName => "grpc",
            Field::ApplicationGuess => "https",
            Field::DestinationPort => return 443.into(),
            Field::Workload | Field::PeerWorkload | Field::Interface | Field::Network => {
                "a \"name\"\u{202e}\n"
            }
            _ if matches!(
                field.name(),
                name if name.starts_with("workload") || name.starts_with("peerW")
                    || name.starts_with("tls") || name.contains("omain")
            ) =>
            {
                "text"
            }
            Field::HttpRequestMethod
            | Field::HttpRequestHost
            | Field::DnsQueryName
            | Field::DnsQueryType
            | Field::DnsResponseCode
            | Field::DnsAnswers => "other text",
            other => return (other as u64 + 1).into(),
        };
        text.into()
    }

    fn written(record: &FlowRecord) -> Value {
        let mut line = Vec::new();
        let mut json = Json::new(&mut line);
        json.record(record).unwrap();
        json.flush().unwrap();
        drop(json);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again_whatever_the_field() {
        let mut seen = BTreeSet::new();
        // No record has all: an address has one family, an ICMP message no ports, what is known is not guessed.
        for (family, protocol, is_known) in [
            ("4", 6, true),
            ("6", 6, false),
            ("4", 1, true),
            ("6", 58, false),
        ] {
            let has = |field: Field| {
                let name = field.name();
                let of_icmp = protocol == 1 || protocol == 58;
                match field {
                    Field::IcmpTypeCodeIpv4 => protocol == 1,
                    Field::IcmpTypeCodeIpv6 => protocol == 58,
                    Field::ApplicationName => is_known,
                    Field::ApplicationGuess => !is_known && !of_icmp,
                    _ if name.contains("IPv4") => family == "4",
                    _ if name.contains("IPv6") => family == "6",
                    Field::SourcePort
                    | Field::DestinationPort
                    | Field::InitiatorOctets
                    | Field::ResponderOctets
                    | Field::ControlBits
                    | Field::ReverseControlBits
                    | Field::State
                    | Field::HandshakeRtt
                    | Field::SmoothedRtt
                    | Field::ReverseSmoothedRtt
                    | Field::Retransmitted
                    | Field::ReverseRetransmitted
                    | Field::OutOfOrder
                    | Field::ReverseOutOfOrder
                    | Field::DuplicateAcks
                    | Field::ReverseDuplicateAcks
                    | Field::ZeroWindows
                    | Field::ReverseZeroWindows => !of_icmp,
                    _ => true,
                }
            };
            let mut object = Map::new();
            for &field in Field::ALL.iter().filter(|field| has(**field)) {
                let value = match field {
                    Field::Protocol => protocol.into(),
                    _ => value_of(field),
                };
                object.insert(field.name().to_owned(), value);
                seen.insert(field.name());
            }
            let object = Value::Object(object);
            let Some(Line::Record(None, record)) = line(object.to_string().as_bytes()) else {
                panic!("{object}");
            };
            assert_eq!(written(&record), object);
            let again = line(written(&record).to_string().as_bytes());
            assert!(matches!(again, Some(Line::Record(None, again)) if again == record));
        }
        assert_eq!(seen.len(), Field::ALL.len());
    }

    /// Each state, and of what can go wrong all, nothing or one thing: these are written by pieces longer than a field.
    #[test]
    fn any_connection_of_tcp_is_written_field_by_field() {
        let text = r#"{"protocolIdentifier":6,"retransmittedSegments":7,"outOfOrderSegments":8}"#;
        let Some(Line::Record(_, record)) = line(text.as_bytes()) else {
            panic!("{text}");
        };
        let quiet = nvflow::TcpSide::default();
        let (some, one) = (
            record.tcp.expect("a connection of TCP").forward,
            nvflow::TcpSide {
                zero_windows: 1,
                ..quiet
            },
        );
        for &state in nvflow::TcpState::ALL {
            for (forward, reverse) in [(quiet, quiet), (some, quiet), (quiet, one)] {
                let mut record = record.clone();
                record.tcp = record.tcp.map(|tcp| nvflow::TcpRecord {
                    state,
                    forward,
                    reverse,
                    ..tcp
                });
                let mut expected = Map::new();
                record.fields(|field, value| {
                    let value = match value {
                        nvflow::Value::Unsigned(number) => number.into(),
                        nvflow::Value::Text(text) => text.into(),
                        nvflow::Value::Address(address) => address.to_string().into(),
                        other => panic!("{other:?}"),
                    };
                    expected.insert(field.name().to_owned(), value);
                });
                assert_eq!(expected["tcpState"], state.as_str());
                assert_eq!(written(&record), Value::Object(expected));
            }
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in [
            "",
            "7",
            "{",
            "[]",
            r#"{"sourceTransportPort":65536}"#,
            r#"{"sourceTransportPort":-1}"#,
            r#"{"sourceTransportPort":"80"}"#,
            r#"{"sourceIPv4Address":"web-1"}"#,
            r#"{"tcpState":"OPEN"}"#,
            r#"{"flowEndReason":9}"#,
            r#"{"flowStartMicroseconds":18446744073709551615}"#,
            r#"{"vantage":"both"}"#,
            r#"{"workload":7}"#,
        ] {
            assert!(line(text.as_bytes()).is_none(), "{text}");
        }
        // What has come to the API since is nothing to stumble over.
        let later = line(br#"{"packetDeltaCount":3,"moonPhase":"full"}"#);
        assert!(matches!(later, Some(Line::Record(None, record)) if record.forward.packets == 3));
        for (text, event) in [
            ("open", Event::Open),
            ("update", Event::Update),
            ("end", Event::End),
        ] {
            let told = line(format!(r#"{{"event":"{text}"}}"#).as_bytes());
            assert!(matches!(told, Some(Line::Record(Some(told), _)) if told == event));
        }
        assert!(matches!(
            line(br#"{"event":"totals"}"#),
            Some(Line::Other(_))
        ));
    }
}
