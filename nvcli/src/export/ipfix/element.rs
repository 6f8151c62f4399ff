//! Which information element a field of a record is, and how its values are written.

use std::net::IpAddr;

use nvflow::{Field, FlowRecord, Value};

use nvcapture::Timestamp;

/// The enterprise of elements of the other direction (RFC 5103).
pub(super) const REVERSE: u32 = 29_305;
/// In our own elements' numbers, what tells the other direction (RFC 5103, section 6.2).
const REVERSE_BIT: u16 = 0x4000;

/// The abstract type of an element's values (RFC 7012), which gives their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    U8,
    U16,
    U32,
    U64,
    Text,
    Millis,
    Micros,
    V4,
    V6,
}

impl Type {
    /// Octets of a value; 65,535 where every value says it.
    pub(super) const fn length(self) -> u16 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 | Self::V4 => 4,
            Self::U64 | Self::Millis | Self::Micros => 8,
            Self::V6 => 16,
            Self::Text => 65_535,
        }
    }

    /// Its number in IANA's registry of `informationElementDataType`.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 => 3,
            Self::U64 => 4,
            Self::Text => 13,
            Self::Millis => 15,
            Self::Micros => 16,
            Self::V4 => 18,
            Self::V6 => 19,
        }
    }

    /// The type of a value that nothing else is known of.
    const fn of(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Unsigned(_) => Some(Self::U64),
            Value::Address(IpAddr::V4(_)) => Some(Self::V4),
            Value::Address(IpAddr::V6(_)) => Some(Self::V6),
            Value::Text(_) => Some(Self::Text),
            _ => None,
        }
    }
}

/// Where an element's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Field(Field),
    /// The parts of [`Field::HandshakeRtt`].
    ClientRtt,
    ServerRtt,
    /// `biflowDirection`: the source is the initiator.
    Initiator,
    /// The times again, for the collectors that know only milliseconds.
    StartMillis,
    EndMillis,
}

/// Whose an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// IANA's.
    Iana,
    /// One of IANA's, of the other direction.
    Reverse,
    /// Ours.
    Own,
}

/// An information element.
#[derive(Clone, Debug)]
pub(super) struct Element {
    source: Source,
    pub(super) name: String,
    pub(super) owner: Owner,
    pub(super) id: u16,
    /// `None` until a value was seen, of a field that was not known when this was written.
    pub(super) kind: Option<Type>,
    /// `informationElementSemantics`.
    pub(super) semantics: u8,
    /// `informationElementUnits`.
    pub(super) units: u8,
    /// A record without it may have a template with it: an empty text and a number that is 0 where nothing was sent say the same.
    pub(super) is_soft: bool,
    /// A record without it never has a template with it, however many templates there are.
    pub(super) is_firm: bool,
}

const IDENTIFIER: u8 = 4;
const DELTA: u8 = 3;
const QUANTITY: u8 = 1;
const MICROSECONDS: u8 = 7;
const PACKETS: u8 = 3;

/// Our own elements: number, name, type, semantics, unit. What is once here is never changed.
const OWN: [(u16, &str, Type, u8, u8); 22] = [
    (1, "tcpState", Type::Text, 0, 0),
    (
        2,
        "handshakeRttClientMicroseconds",
        Type::U32,
        QUANTITY,
        MICROSECONDS,
    ),
    (
        3,
        "handshakeRttServerMicroseconds",
        Type::U32,
        QUANTITY,
        MICROSECONDS,
    ),
    (
        4,
        "smoothedRttMicroseconds",
        Type::U32,
        QUANTITY,
        MICROSECONDS,
    ),
    (5, "retransmittedSegments", Type::U32, DELTA, PACKETS),
    (6, "outOfOrderSegments", Type::U32, DELTA, PACKETS),
    (7, "duplicateAcks", Type::U32, DELTA, PACKETS),
    (8, "zeroWindows", Type::U32, DELTA, PACKETS),
    (9, "tunnelType", Type::Text, 0, 0),
    (10, "tunnelId", Type::U32, IDENTIFIER, 0),
    (11, "tunnelSourceIPv4Address", Type::V4, 0, 0),
    (12, "tunnelSourceIPv6Address", Type::V6, 0, 0),
    (13, "tunnelDestinationIPv4Address", Type::V4, 0, 0),
    (14, "tunnelDestinationIPv6Address", Type::V6, 0, 0),
    (15, "workload", Type::Text, 0, 0),
    (16, "peerWorkload", Type::Text, 0, 0),
    (17, "interface", Type::Text, 0, 0),
    (18, "vantage", Type::Text, 0, 0),
    (19, "tlsServerName", Type::Text, 0, 0),
    (20, "dnsQueryName", Type::Text, 0, 0),
    (21, "sourceDomain", Type::Text, 0, 0),
    (22, "destinationDomain", Type::Text, 0, 0),
];

/// The types of IANA's elements, those of [`Field`] and others that may come to it.
const fn iana(id: u16) -> Option<Type> {
    Some(match id {
        4 | 5 | 52 | 53 | 60 | 61 | 136 | 176..=179 | 192 | 193 | 195 | 239 => Type::U8,
        6 | 7 | 11 | 32 | 58 | 59 | 139 | 180..=183 | 243 | 245 | 254 | 256 | 457 => Type::U16,
        10 | 14 | 16 | 17 | 31 | 130 | 149 | 160 | 161 | 234 | 235 => Type::U32,
        1 | 2 | 23 | 24 | 85 | 86 | 138 | 148 | 231 | 232 | 298 | 299 | 351 | 352 => Type::U64,
        8 | 12 | 15 | 225 | 226 => Type::V4,
        27 | 28 | 62 | 281 | 282 => Type::V6,
        82 | 83 | 94 | 96 | 459..=462 | 468 | 469 => Type::Text,
        152 | 153 => Type::Millis,
        154 | 155 => Type::Micros,
        _ => return None,
    })
}

/// `reverseThing` is the `thing` of the other direction.
fn forward_name(name: &str) -> Option<String> {
    let rest = name.strip_prefix("reverse")?;
    let first = rest.chars().next().filter(char::is_ascii_uppercase)?;
    Some(format!("{}{}", first.to_ascii_lowercase(), &rest[1..]))
}

/// The number of an own element that [`OWN`] does not have: always the same for the same name.
fn derived(name: &str) -> u16 {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    0x1000 | (hash ^ (hash >> 32)) as u16 & 0x0fff
}

impl Element {
    fn iana(source: Source, name: &str, owner: Owner, id: u16) -> Self {
        let kind = iana(id);
        Self {
            source,
            name: name.to_owned(),
            owner,
            id,
            kind,
            semantics: 0,
            units: 0,
            is_soft: matches!(id, 52 | 53 | 195) || kind == Some(Type::Text),
            is_firm: matches!(id, 8 | 12 | 27 | 28),
        }
    }

    fn own(source: Source, name: &str) -> Self {
        let forward = forward_name(name);
        let stem = forward.as_deref().unwrap_or(name);
        let known = OWN.iter().find(|own| own.1 == stem);
        let (id, kind, semantics, units) = known.map_or_else(
            || (derived(stem), None, 0, 0),
            |own| (own.0, Some(own.2), own.3, own.4),
        );
        Self {
            source,
            name: name.to_owned(),
            owner: Owner::Own,
            id: id | if forward.is_some() { REVERSE_BIT } else { 0 },
            kind,
            semantics,
            units,
            is_soft: kind == Some(Type::Text),
            is_firm: false,
        }
    }

    /// All elements, in the order in which records have them.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for &field in Field::ALL {
            let name = field.name();
            let source = Source::Field(field);
            match (field, field.element()) {
                (Field::HandshakeRtt, _) => {
                    all.push(Self::own(
                        Source::ClientRtt,
                        "handshakeRttClientMicroseconds",
                    ));
                    all.push(Self::own(
                        Source::ServerRtt,
                        "handshakeRttServerMicroseconds",
                    ));
                }
                (_, Some(id)) if forward_name(name).is_some() => {
                    all.push(Self::iana(source, name, Owner::Reverse, id));
                }
                (_, Some(id)) => all.push(Self::iana(source, name, Owner::Iana, id)),
                (_, None) => all.push(Self::own(source, name)),
            }
        }
        for (source, name, id) in [
            (Source::StartMillis, "flowStartMilliseconds", 152),
            (Source::EndMillis, "flowEndMilliseconds", 153),
            (Source::Initiator, "biflowDirection", 239),
        ] {
            all.push(Self::iana(source, name, Owner::Iana, id));
        }
        all
    }

    /// Its value in `record`, if it has a meaning there.
    pub(super) fn value<'r>(&self, record: &'r FlowRecord) -> Option<Value<'r>> {
        let rtt = |pick: fn(Option<u32>, Option<u32>) -> Option<u32>| {
            match record.value(Field::HandshakeRtt)? {
                Value::HandshakeRtt { client, server } => pick(client, server),
                _ => None,
            }
            .map(|micros| Value::Unsigned(micros.into()))
        };
        let millis = |time: Timestamp| Some(Value::Unsigned(time.as_micros() / 1_000));
        match self.source {
            Source::Field(field) => record.value(field),
            Source::ClientRtt => rtt(|client, _| client),
            Source::ServerRtt => rtt(|_, server| server),
            Source::Initiator => Some(Value::Unsigned(1)),
            Source::StartMillis => millis(record.flow_start),
            Source::EndMillis => millis(record.flow_end),
        }
    }

    /// Learns its type from a value; tells whether that was news.
    pub(super) fn learn(&mut self, value: Value<'_>) -> bool {
        if self.kind.is_some() {
            return false;
        }
        self.kind = Type::of(value);
        self.is_soft = self.kind == Some(Type::Text);
        self.kind.is_some()
    }

    /// Appends a value, or what stands for none.
    pub(super) fn put(&self, value: Option<Value<'_>>, out: &mut Vec<u8>) {
        let number = match value {
            Some(Value::Unsigned(number)) => number,
            _ => 0,
        };
        match self.kind {
            None => {}
            Some(Type::U8) => out.push(u8::try_from(number).unwrap_or(u8::MAX)),
            Some(Type::U16) => {
                out.extend(u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes());
            }
            Some(Type::U32) => {
                out.extend(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
            }
            Some(Type::U64 | Type::Millis) => out.extend(number.to_be_bytes()),
            Some(Type::Micros) => out.extend(ntp(number).to_be_bytes()),
            Some(Type::V4) => match value {
                Some(Value::Address(IpAddr::V4(address))) => out.extend(address.octets()),
                _ => out.extend([0; 4]),
            },
            Some(Type::V6) => match value {
                Some(Value::Address(IpAddr::V6(address))) => out.extend(address.octets()),
                _ => out.extend([0; 16]),
            },
            Some(Type::Text) => match value {
                Some(Value::Text(text)) => put_text(text, out),
                _ => out.push(0),
            },
        }
    }
}

/// A text with its length in front (RFC 7011, section 7); one that is longer than that can say is cut.
pub(super) fn put_text(text: &str, out: &mut Vec<u8>) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    match u8::try_from(text.len()) {
        Ok(length) if length < 255 => out.push(length),
        _ => {
            out.push(255);
            // It was cut to fit.
            out.extend((text.len() as u16).to_be_bytes());
        }
    }
    out.extend(text.as_bytes());
}

/// Microseconds since 1970 as NTP's format: seconds since 1900 and a fraction, of whose lowest 11 bits collectors think nothing.
fn ntp(micros: u64) -> u64 {
    const TO_1900: u64 = 2_208_988_800;
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    // Rounded up, so that what is read back and cut to microseconds is what was put in.
    let fraction = ((micros << 32).div_ceil(1_000_000) + 0x7ff) & !0x7ff;
    ((seconds + TO_1900) << 32) | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_elements_are_the_same() {
        let mut seen = std::collections::HashMap::new();
        let all = Element::all();
        assert!(all.len() <= 128);
        for element in &all {
            let key = (element.owner, element.id);
            if let Some(other) = seen.insert(key, &element.name) {
                panic!("{other} and {} are {key:?}", element.name);
            }
        }
    }

    #[test]
    fn elements_of_iana_have_its_types() {
        for element in Element::all() {
            assert!(
                element.owner == Owner::Own || element.kind.is_some(),
                "{} ({}) needs its type in `iana`",
                element.name,
                element.id
            );
        }
    }

    #[test]
    fn the_other_direction_is_known_by_name() {
        assert_eq!(
            forward_name("reversePacketDeltaCount").as_deref(),
            Some("packetDeltaCount")
        );
        assert_eq!(forward_name("reverse"), None);
        assert_eq!(forward_name("reversed"), None);
        let all = Element::all();
        let named = |name: &str| all.iter().find(|e| e.name == name).expect("there");
        assert_eq!(named("reverseZeroWindows").id, 0x4008);
        assert_eq!(named("reverseOctetDeltaCount").owner, Owner::Reverse);
        assert_eq!(named("reverseOctetDeltaCount").id, 1);
        assert!((0x1000..0x2000).contains(&derived("somethingNew")));
    }

    #[test]
    fn microseconds_survive_ntp() {
        for micros in [0, 1, 999_999, 1_700_000_000_123_456, 1_999_999_999_999_999] {
            let ntp = ntp(micros);
            let back = ((ntp >> 32) - 2_208_988_800) * 1_000_000
                + (((ntp & 0xffff_ffff) * 1_000_000) >> 32);
            assert_eq!(back, micros);
            assert_eq!(ntp & 0x7ff, 0);
        }
    }

    #[test]
    fn long_texts_have_long_lengths() {
        for (length, head) in [
            (0, vec![0]),
            (254, vec![254]),
            (255, vec![255, 0, 255]),
            (70_000, vec![255, 255, 255]),
        ] {
            let mut out = Vec::new();
            put_text(&"x".repeat(length), &mut out);
            assert_eq!(out[..head.len()], head);
            assert_eq!(out.len(), head.len() + length.min(65_535));
        }
    }
}
