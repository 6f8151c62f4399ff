//! Conversations made octet by octet, metered.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use nvcapture::{Frame, FrameMeta, Timestamp};
use proptest::prelude::*;

use super::datagram::{self, Ends, Told};
use super::pieces::LIMIT;
use super::{Verdict, stream};
use crate::{
    Application, Dns, Field, FlowRecord, Identify, Meter, MeterConfig, MeterStats, Protocol,
    Timeouts, Tls, Value,
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
const CLIENT: usize = 0;
const SERVER: usize = 1;

/// A frame: when, its octets, and how long it was before it was cut.
#[derive(Clone)]
struct Made {
    micros: u64,
    octets: Vec<u8>,
    length: usize,
}

/// What two ends say to each other.
#[derive(Clone)]
struct Talk {
    protocol: u8,
    addresses: [Ipv4Addr; 2],
    ports: [u16; 2],
    micros: u64,
    /// TCP: the next number of each side.
    numbers: [u32; 2],
    frames: Vec<Made>,
}

impl Talk {
    /// Over TCP to a port, from the handshake on. The numbers of the client pass through zero soon.
    fn tcp(port: u16) -> Self {
        let mut talk = Self::begun(port);
        talk.segment(CLIENT, SYN, talk.numbers[CLIENT].wrapping_sub(1), &[]);
        talk.segment(SERVER, SYN | ACK, talk.numbers[SERVER].wrapping_sub(1), &[]);
        talk.segment(CLIENT, ACK, talk.numbers[CLIENT], &[]);
        talk
    }

    /// Over TCP, seen from the middle on.
    fn begun(port: u16) -> Self {
        Self {
            protocol: 6,
            addresses: [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
            ports: [40_000, port],
            micros: 1_000_000,
            numbers: [u32::MAX - 100, 5_000],
            frames: Vec::new(),
        }
    }

    fn udp(port: u16) -> Self {
        Self {
            protocol: 17,
            ..Self::begun(port)
        }
    }

    fn with_client_port(mut self, port: u16) -> Self {
        self.ports[CLIENT] = port;
        for frame in &mut self.frames {
            let from_client = frame.octets[26..30] == [10, 0, 0, 1];
            let at = if from_client { 34 } else { 36 };
            frame.octets[at..at + 2].copy_from_slice(&port.to_be_bytes());
        }
        self
    }

    fn frame(&mut self, side: usize, transport: &[u8], payload: &[u8]) {
        let mut octets = vec![2; 12];
        octets.extend([0x08, 0x00, 0x45, 0]);
        octets.extend((20 + transport.len() as u16 + payload.len() as u16).to_be_bytes());
        octets.extend([0, 0, 0, 0, 64, self.protocol, 0, 0]);
        octets.extend(self.addresses[side].octets());
        octets.extend(self.addresses[1 - side].octets());
        octets.extend(transport);
        octets.extend(payload);
        self.micros += 1_000;
        let length = octets.len();
        self.frames.push(Made {
            micros: self.micros,
            octets,
            length,
        });
    }

    fn segment(&mut self, side: usize, control: u8, number: u32, payload: &[u8]) {
        let mut header = Vec::new();
        header.extend(self.ports[side].to_be_bytes());
        header.extend(self.ports[1 - side].to_be_bytes());
        header.extend(number.to_be_bytes());
        header.extend(self.numbers[1 - side].to_be_bytes());
        header.extend([0x50, control, 4, 0, 0, 0, 0, 0]);
        self.frame(side, &header, payload);
    }

    /// One segment, or one datagram.
    fn says(&mut self, side: usize, payload: &[u8]) -> &mut Self {
        if self.protocol == 6 {
            self.segment(side, ACK, self.numbers[side], payload);
            self.numbers[side] = self.numbers[side].wrapping_add(payload.len() as u32);
        } else {
            let mut header = Vec::new();
            header.extend(self.ports[side].to_be_bytes());
            header.extend(self.ports[1 - side].to_be_bytes());
            header.extend((8 + payload.len() as u16).to_be_bytes());
            header.extend([0, 0]);
            self.frame(side, &header, payload);
        }
        self
    }

    /// Segments, given by where they begin and end, in that order.
    fn says_in(&mut self, side: usize, payload: &[u8], pieces: &[(usize, usize)]) -> &mut Self {
        for &(from, to) in pieces {
            let number = self.numbers[side].wrapping_add(from as u32);
            self.segment(side, ACK, number, &payload[from..to]);
        }
        self.numbers[side] = self.numbers[side].wrapping_add(payload.len() as u32);
        self
    }

    /// The last frame keeps so many octets of its payload.
    fn cut(&mut self, kept: usize) -> &mut Self {
        let headers = if self.protocol == 6 { 54 } else { 42 };
        if let Some(frame) = self.frames.last_mut() {
            frame.octets.truncate(headers + kept);
        }
        self
    }

    fn metered(&self) -> FlowRecord {
        let (mut records, stats) = meter(&self.frames, config());
        assert!(stats.is_balanced());
        assert_eq!(records.len(), 1);
        records.remove(0)
    }

    fn application(&self) -> Application {
        let application = self.metered().application;
        application.as_deref().cloned().unwrap_or_default()
    }

    fn protocol(&self) -> Option<Protocol> {
        self.application().protocol
    }
}

fn config() -> MeterConfig {
    MeterConfig {
        max_connections: 1_000,
        identify: Some(Identify::default()),
        ..MeterConfig::default()
    }
}

fn meter(frames: &[Made], config: MeterConfig) -> (Vec<FlowRecord>, MeterStats) {
    let mut meter = Meter::new(config).unwrap();
    let mut records = Vec::new();
    let Ok(_) = meter.observe(frames.iter().map(lent), &mut records);
    let Ok(_) = meter.finish(&mut records);
    (records, meter.stats())
}

fn lent(made: &Made) -> Frame<'_> {
    let time = Timestamp::from_nanos(made.micros * 1_000);
    Frame::new(&made.octets, FrameMeta::ethernet(time, made.length as u32))
}

fn long(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes(), octets].concat()
}

fn short(octets: &[u8]) -> Vec<u8> {
    [&[octets.len() as u8], octets].concat()
}

fn words(numbers: &[u16]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}

fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(value)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &long(&[&[0], &long(name)[..]].concat()))
}

/// A ClientHello, as the message that QUIC has.
fn hello_of(ciphers: &[u16], extensions: &[Vec<u8>]) -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &short(&[9; 32]),
        &long(&words(ciphers)),
        &short(&[0]),
        &long(&extensions.concat()),
    ]
    .concat();
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// What Chrome sends, of which the JA4 is that of the fingerprint's own description.
fn chromes_hello(name: &[u8]) -> Vec<u8> {
    let versions = words(&[0x3a3a, 0x0304, 0x0303]);
    let signatures = words(&[
        0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601,
    ]);
    let protocols = [short(b"h2"), short(b"http/1.1")].concat();
    let mut extensions = vec![
        extension(0x2a2a, &[]),
        server_name(name),
        extension(0x0010, &long(&protocols)),
        extension(0x002b, &short(&versions)),
        extension(0x000d, &long(&signatures)),
        extension(0x0033, &[0; 1_216]),
    ];
    for kind in [
        0x4469, 0xff01, 0x0017, 0x000a, 0x000b, 0x0005, 0x0012, 0x0023, 0x001b, 0x002d, 0x0015,
        0xdada,
    ] {
        extensions.push(extension(kind, &[1, 2]));
    }
    hello_of(
        &[
            0x6a6a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
            0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
        ],
        &extensions,
    )
}

const CHROME: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";

/// A message in a record.
fn record(message: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &long(message)].concat()
}

fn server_hello(version: Option<u16>) -> Vec<u8> {
    let chosen = version.map(|version| extension(43, &version.to_be_bytes()));
    let body = [
        &[3, 3][..],
        &[7; 32],
        &short(&[9; 32]),
        &[0x13, 0x01, 0],
        &chosen.map(|chosen| long(&chosen)).unwrap_or_default(),
    ]
    .concat();
    let length = (body.len() as u32).to_be_bytes();
    record(&[&[2], &length[1..], &body].concat())
}

fn tls(application: &Application) -> &Tls {
    application.tls.as_deref().unwrap()
}

#[test]
fn a_hello_of_tls_tells_name_versions_alpn_and_fingerprint() {
    // On no port of its own.
    let mut talk = Talk::tcp(4711);
    talk.says(CLIENT, &record(&chromes_hello(b"www.example.com")))
        .says(SERVER, &server_hello(Some(0x0304)));
    let record = talk.metered();
    assert_eq!(
        record.value(Field::ApplicationName),
        Some(Value::Text("tls"))
    );
    assert_eq!(record.value(Field::ApplicationGuess), None);
    for (field, text) in [
        (Field::TlsServerName, "www.example.com"),
        (Field::TlsAlpn, "h2,http/1.1"),
        (Field::TlsClientVersion, "TLSv1.3"),
        (Field::TlsVersion, "TLSv1.3"),
        (Field::TlsJa4, CHROME),
    ] {
        assert_eq!(record.value(field), Some(Value::Text(text)), "{field:?}");
    }
    // The server of before 1.3 says it in the hello itself, and an unknown one as a number.
    for (chosen, text) in [(None, "TLSv1.2"), (Some(0x7f1c), "0x7f1c")] {
        let mut talk = Talk::tcp(443);
        talk.says(CLIENT, &record_of_old_client())
            .says(SERVER, &server_hello(chosen));
        let application = talk.application();
        assert_eq!(tls(&application).version.as_deref(), Some(text));
        assert_eq!(tls(&application).client_version.as_deref(), Some("TLSv1.2"));
    }
}

/// Without any extension.
fn record_of_old_client() -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &long(&words(&[0x002f])),
        &[1, 0],
    ]
    .concat();
    record(&[&[1, 0, 0, body.len() as u8], &body[..]].concat())
}

#[test]
fn fingerprints_of_odd_hellos_are_those_of_the_description() {
    // SHA-256 of "002f" begins with these; nothing is zeros.
    let of = |hello: &[u8]| {
        let mut talk = Talk::tcp(443);
        talk.says(CLIENT, &record(hello));
        tls(&talk.application()).ja4.clone().unwrap()
    };
    assert_eq!(
        &*of(&record_of_old_client()[5..]),
        "t12i010000_6e3e9b2d2e19_000000000000"
            .replace("6e3e9b2d2e19", &sha("002f"))
            .as_str()
    );
    assert_eq!(
        &*of(&hello_of(&[], &[server_name(b"a")])),
        "t12d000100_000000000000_000000000000"
    );
    // Of a name that is not letters and digits the hexadecimal digits count.
    for (name, shown) in [
        (&b"\x00z"[..], "0a"),
        (b"x", "xx"),
        (b"\xab", "ab"),
        (b"http/1.1", "h1"),
    ] {
        let fingerprint = of(&hello_of(&[0x002f], &[extension(16, &long(&short(name)))]));
        assert_eq!(&fingerprint[8..10], shown);
    }
}

fn sha(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text.as_bytes())[..6]
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect()
}

#[test]
fn a_hello_in_two_pieces_says_the_same_wherever_it_is_cut_and_whichever_comes_first() {
    let hello = record(&chromes_hello(b"split.example"));
    let mut whole = Talk::tcp(443);
    let whole = whole.says(CLIENT, &hello).application();
    assert_eq!(tls(&whole).ja4.as_deref(), Some(CHROME));
    for at in 1..hello.len() {
        let (a, b) = ((0, at), (at, hello.len()));
        for pieces in [[a, b], [b, a]] {
            let mut talk = Talk::tcp(443);
            talk.says_in(CLIENT, &hello, &pieces);
            assert_eq!(talk.application(), whole, "{pieces:?}");
        }
    }
    // One octet sent again and again, overlaps, and another text for what was there already.
    let mut talk = Talk::tcp(443);
    talk.says_in(
        CLIENT,
        &hello,
        &[(0, 1), (0, 1), (0, 700), (300, 900), (200, hello.len())],
    );
    assert_eq!(talk.application(), whole);
}

#[test]
fn a_hello_in_many_records_is_put_together() {
    let hello = chromes_hello(b"records.example");
    for size in [1, 3, 50, 1_000] {
        let records: Vec<u8> = hello.chunks(size).flat_map(record).collect();
        let mut talk = Talk::tcp(443);
        talk.says(CLIENT, &records);
        let application = talk.application();
        // Its first 4 KiB are looked at: of records of one octet that is a sixth.
        if records.len() <= LIMIT {
            assert_eq!(tls(&application).ja4.as_deref(), Some(CHROME), "{size}");
        }
        let name = application.tls.and_then(|tls| tls.server_name);
        assert_eq!(name.as_deref(), Some("records.example"), "{size}");
    }
    // Another kind of record in between ends it: what came counts.
    let mut talk = Talk::tcp(443);
    talk.says(
        CLIENT,
        &[record(&hello[..400]), vec![23, 3, 3, 0, 1, 0]].concat(),
    );
    let application = talk.application();
    assert_eq!(
        tls(&application).server_name.as_deref(),
        Some("records.example")
    );
    assert_eq!(tls(&application).ja4, None);
}

#[test]
fn names_are_told_as_they_were_sent() {
    for (sent, told) in [
        (&b"evil\n\x1b[2J.example"[..], "evil\n\x1b[2J.example"),
        (b"caf\xc3\xa9", "caf\u{e9}"),
        (b"not\xff8", "not\u{fffd}8"),
        (&[b'a'; 255], &"a".repeat(255)),
        (&[b'a'; 300], &"a".repeat(255)),
    ] {
        let mut talk = Talk::tcp(443);
        talk.says(CLIENT, &record(&hello_of(&[1], &[server_name(sent)])));
        assert_eq!(tls(&talk.application()).server_name.as_deref(), Some(told));
    }
    let mut talk = Talk::tcp(443);
    talk.says(CLIENT, &record(&hello_of(&[1], &[server_name(b"")])));
    assert_eq!(tls(&talk.application()).server_name, None);
}

#[test]
fn lengths_that_lie_do_no_harm() {
    let hello = record(&chromes_hello(b"lies.example"));
    // Every octet set to every extreme: it is TLS or it is not, and nothing breaks.
    for at in 0..hello.len().min(400) {
        for octet in [0, 1, 0x7f, 0xff] {
            let mut sent = hello.clone();
            sent[at] = octet;
            let mut talk = Talk::tcp(443);
            talk.says(CLIENT, &sent);
            assert!(matches!(talk.protocol(), None | Some(Protocol::Tls)));
        }
    }
    // A message that is said to be longer than all that comes: the name is told at the end.
    let mut sent = hello.clone();
    sent[3..5].copy_from_slice(&[0x3f, 0xff]);
    sent[6..9].copy_from_slice(&[0, 0x3f, 0xf0]);
    let mut talk = Talk::tcp(443);
    talk.says(CLIENT, &sent);
    let application = talk.application();
    assert_eq!(
        tls(&application).server_name.as_deref(),
        Some("lies.example")
    );
    assert_eq!(tls(&application).ja4, None);
}

#[test]
fn of_a_cut_frame_as_much_is_told_as_was_kept() {
    let hello = record(&chromes_hello(b"cut.example"));
    let name = hello
        .windows(11)
        .position(|part| part == b"cut.example")
        .unwrap();
    for (kept, told) in [
        (name + 11, Some("cut.example")),
        (name + 10, None),
        (20, None),
    ] {
        let mut talk = Talk::tcp(443);
        talk.says(CLIENT, &hello).cut(kept);
        talk.says(CLIENT, b"more");
        let application = talk.application();
        assert_eq!(application.protocol, Some(Protocol::Tls));
        let name = application
            .tls
            .as_ref()
            .and_then(|tls| tls.server_name.as_deref());
        assert_eq!(name, told, "{kept}");
    }
}

#[test]
fn records_without_a_hello_are_known_in_the_middle_of_a_connection() {
    let mut talk = Talk::begun(443);
    talk.says(CLIENT, &[0xaa; 900])
        .says(SERVER, &[&[23, 3, 3, 1, 0][..], &[0xbb; 256]].concat());
    assert_eq!(talk.application(), Application::of(Protocol::Tls));
}

#[cfg(feature = "quic")]
#[test]
fn quic_tells_what_its_hello_does() {
    use super::quic::tests::datagram;
    let hello = chromes_hello(b"quic.example");
    let told = |datagrams: &[Vec<u8>]| {
        let mut talk = Talk::udp(4711);
        for datagram in datagrams {
            talk.says(CLIENT, datagram);
        }
        talk.application()
    };
    for version in [1, 0x6b33_43cf, 0xff00_001d, 0xff00_0017] {
        let first = datagram(version, 0, &[(0, &hello[..700])]);
        let second = datagram(version, 1, &[(700, &hello[700..])]);
        let whole = told(&[first.clone(), second.clone()]);
        assert_eq!(whole.protocol, Some(Protocol::Quic));
        assert_eq!(tls(&whole).server_name.as_deref(), Some("quic.example"));
        assert_eq!(
            tls(&whole).ja4.as_deref(),
            Some(CHROME.replacen('t', "q", 1).as_str())
        );
        assert_eq!(tls(&whole).alpn.as_deref(), Some("h2,http/1.1"));
        // The other way round, in frames that are mixed, both in one datagram.
        assert_eq!(told(&[second.clone(), first.clone()]), whole);
        assert_eq!(told(&[[first.clone(), second].concat()]), whole);
        let mixed = datagram(
            version,
            0,
            &[
                (900, &hello[900..]),
                (30, &hello[30..500]),
                (0, &hello[..30]),
                (500, &hello[500..900]),
            ],
        );
        assert_eq!(told(&[mixed]), whole);
        // Only the first half: what is in it.
        let half = told(&[first]);
        assert_eq!(half.protocol, Some(Protocol::Quic));
        assert_eq!(tls(&half).server_name.as_deref(), Some("quic.example"));
        assert_eq!(tls(&half).ja4, None);
    }
    // The server, whose keys are others, and versions that cannot be read.
    let mut talk = Talk::udp(443);
    let opaque = [
        &[0xe0, 0, 0, 0, 1, 8][..],
        &[1; 8],
        &[8],
        &[2; 8],
        &[0; 100],
    ]
    .concat();
    talk.says(SERVER, &opaque)
        .says(CLIENT, &datagram(1, 0, &[(0, &hello)]));
    assert_eq!(
        tls(&talk.application()).server_name.as_deref(),
        Some("quic.example")
    );
    assert_eq!(told(&[opaque]), Application::of(Protocol::Quic));
    let googles = [&b"\xc3Q046\x50"[..], &[1; 40]].concat();
    assert_eq!(told(&[googles]), Application::of(Protocol::Quic));
    assert_eq!(told(&[vec![0xc3; 1_200]]), Application::default());
}

/// Whatever came between, what was kept of a connection is not there for the next one in its place.
#[cfg(feature = "quic")]
#[test]
fn pieces_do_not_outlive_their_connection() {
    use super::quic::tests::datagram;
    let half = datagram(1, 0, &[(0, &chromes_hello(b"old.example")[..700])]);
    let query = dns_message(7, 0x0100, [1, 0, 0, 0], &[&question(&[b"a"], 1)]);
    let firsts: [&[(usize, &[u8])]; 4] = [
        &[(CLIENT, &query), (CLIENT, &half)],
        &[(CLIENT, &half), (SERVER, &ntp(4, 2))],
        &[(CLIENT, &half), (SERVER, &query)],
        &[(SERVER, &half), (CLIENT, &half), (CLIENT, &[0xee; 9])],
    ];
    for said in firsts {
        for is_tcp in [false, true] {
            let mut first = Talk::udp(4711);
            for (side, payload) in said {
                first.says(*side, payload);
            }
            let mut next = if is_tcp {
                Talk::tcp(4712)
            } else {
                Talk::udp(4712)
            };
            for frame in &mut next.frames {
                frame.micros += 1_000_000_000;
            }
            next.micros += 1_000_000_000;
            next.says(CLIENT, b"GET / HTTP/1.1\r\n\r\n")
                .says(SERVER, &[0xee; 9]);
            let mut frames = first.frames;
            frames.append(&mut next.frames);
            let (records, stats) = meter(&frames, learning(100));
            assert_eq!((records.len(), stats.high_water), (2, 1), "{said:x?}");
            let protocol = records[1].application.as_ref().and_then(|of| of.protocol);
            assert_eq!(protocol, is_tcp.then_some(Protocol::Http), "{said:x?}");
        }
    }
}

fn dns_message(id: u16, flags: u16, counts: [u16; 4], rest: &[&[u8]]) -> Vec<u8> {
    let mut message = words(&[id, flags]);
    message.extend(words(&counts));
    message.extend(rest.concat());
    message
}

fn name(labels: &[&[u8]]) -> Vec<u8> {
    let mut name: Vec<u8> = labels.iter().flat_map(|label| short(label)).collect();
    name.push(0);
    name
}

fn question(labels: &[&[u8]], kind: u16) -> Vec<u8> {
    [name(labels), words(&[kind, 1])].concat()
}

/// An answer for the name of the question.
fn answer(kind: u16, data: &[u8]) -> Vec<u8> {
    [&[0xc0, 12][..], &words(&[kind, 1, 0, 60]), &long(data)].concat()
}

fn dns(application: &Application) -> &Dns {
    application.dns.as_deref().unwrap()
}

#[test]
fn the_first_query_of_dns_is_told_with_its_response() {
    let asked = question(&[b"www", b"example", b"com"], 1);
    let query = |id: u16| dns_message(id, 0x0100, [1, 0, 0, 0], &[&asked]);
    let response = |id: u16| {
        let alias = answer(5, &name(&[b"a"]));
        let (first, second) = (answer(1, &[192, 0, 2, 1]), answer(1, &[192, 0, 2, 2]));
        let v6 = answer(
            28,
            &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        );
        dns_message(
            id,
            0x8180,
            [1, 4, 0, 0],
            &[&asked, &alias, &first, &second, &v6],
        )
    };
    for over_tcp in [false, true] {
        let mut talk = if over_tcp {
            Talk::tcp(4711)
        } else {
            Talk::udp(4711)
        };
        let framed = |message: Vec<u8>| if over_tcp { long(&message) } else { message };
        talk.says(CLIENT, &framed(query(7)));
        talk.says(
            CLIENT,
            &framed(dns_message(
                8,
                0x0100,
                [1, 0, 0, 0],
                &[&question(&[b"b"], 28)],
            )),
        );
        if !over_tcp {
            // Of another query, and of nobody's.
            talk.says(SERVER, &response(8)).says(SERVER, &response(9));
        }
        talk.says(SERVER, &framed(response(7)));
        let took = if over_tcp { 2_000 } else { 4_000 };
        let record = talk.metered();
        for (field, value) in [
            (Field::ApplicationName, Value::Text("dns")),
            (Field::DnsQueryName, Value::Text("www.example.com")),
            (Field::DnsQueryType, Value::Text("A")),
            (Field::DnsResponseCode, Value::Text("NOERROR")),
            (Field::DnsAnswerCount, Value::Unsigned(4)),
            (
                Field::DnsAnswers,
                Value::Text("192.0.2.1,192.0.2.2,2001:db8::1"),
            ),
            (Field::DnsLatency, Value::Unsigned(took)),
        ] {
            assert_eq!(record.value(field), Some(value), "{field:?} {over_tcp}");
        }
    }
    // A name that is not there; one that was refused without a question; the response alone.
    let mut talk = Talk::udp(53);
    talk.says(CLIENT, &query(1))
        .says(SERVER, &dns_message(1, 0x8183, [1, 0, 0, 0], &[&asked]));
    assert_eq!(
        dns(&talk.application()).response_code.as_deref(),
        Some("NXDOMAIN")
    );
    let mut talk = Talk::udp(53);
    talk.says(CLIENT, &query(1))
        .says(SERVER, &dns_message(1, 0x8185, [0; 4], &[]));
    assert_eq!(
        dns(&talk.application()).response_code.as_deref(),
        Some("REFUSED")
    );
    let mut talk = Talk::udp(53);
    talk.says(SERVER, &response(1)).says(CLIENT, &query(2));
    let application = talk.application();
    assert_eq!(dns(&application).answer_count, Some(4));
    assert_eq!(dns(&application).latency_micros, None);
    // Without a response there is nothing of one.
    let mut talk = Talk::udp(53);
    let application = talk.says(CLIENT, &query(1)).application();
    assert_eq!(dns(&application).response_code, None);
    assert_eq!(
        dns(&application).query_name.as_deref(),
        Some("www.example.com")
    );
}

/// The names that are learnt of a talk, each with an address and its seconds.
fn learnt(talk: &Talk) -> Vec<(String, String, u64)> {
    let mut meter = Meter::new(learning(100)).unwrap();
    let mut records: Vec<FlowRecord> = Vec::new();
    let Ok(_) = meter.observe(talk.frames.iter().map(lent), &mut records);
    let learnt = meter.resolved_names().map(|one| {
        assert!(one.at.as_micros() > 1_000_000 && one.observation_point.is_none());
        let seconds = one.time_to_live.as_secs();
        (one.name.to_string(), one.address.to_string(), seconds)
    });
    let learnt = learnt.collect();
    assert_eq!(meter.resolved_names().count(), 0, "taken once");
    learnt
}

fn learning(names: usize) -> MeterConfig {
    MeterConfig {
        identify: Some(Identify {
            names,
            ..Identify::default()
        }),
        ..config()
    }
}

/// A record of a response.
fn of(owner: &[u8], kind: u16, seconds: u32, data: &[u8]) -> Vec<u8> {
    [
        owner,
        &words(&[kind, 1]),
        &seconds.to_be_bytes(),
        &long(data),
    ]
    .concat()
}

const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn said(names: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
    let said = names.iter();
    said.map(|(name, address, seconds)| ((*name).into(), (*address).into(), *seconds))
        .collect()
}

#[test]
fn names_are_learnt_from_responses_to_what_was_asked() {
    let labels: &[&[u8]] = &[b"www", b"Example", b"com"];
    let asked = |kind| question(labels, kind);
    let query = |id, kind| dns_message(id, 0x0100, [1, 0, 0, 0], &[&asked(kind)]);
    // An alias of an alias, by names of their own and by references; the letters' case does not matter, other names do.
    let cdn = name(&[b"edge", b"cdn", b"example"]);
    let chain = [
        of(&[0xc0, 12], 5, 300, &cdn),
        of(
            &name(&[b"EDGE", b"cdn", b"example"]),
            5,
            20,
            &[1, b'a', 0xc0, 16],
        ),
        of(&name(&[b"a", b"example", b"com"]), 1, 60, &[192, 0, 2, 1]),
        of(&name(&[b"other", b"example"]), 1, 60, &[192, 0, 2, 66]),
        of(&name(&[b"a", b"Example", b"com"]), 1, 10, &[192, 0, 2, 2]),
        of(&name(&[b"a", b"example", b"com"]), 1, 10, &[0, 0, 0, 0]),
    ];
    let v4 = |id| dns_message(id, 0x8180, [1, 6, 0, 0], &[&asked(1), &chain.concat()]);
    let v6 = |id| {
        let record = of(&[0xc0, 12], 28, 0x8000_0001, &V6);
        dns_message(id, 0x8180, [1, 1, 0, 0], &[&asked(28), &record])
    };
    // As the C library asks: both at once, from one port. And again later, from the same one.
    let mut talk = Talk::udp(53);
    talk.says(CLIENT, &query(7, 1))
        .says(CLIENT, &query(8, 28))
        .says(SERVER, &v6(8))
        .says(SERVER, &v4(7))
        .says(SERVER, &v4(7));
    let name = "www.Example.com";
    let both = said(&[
        (name, "2001:db8::1", 0),
        (name, "192.0.2.1", 20),
        (name, "192.0.2.2", 10),
    ]);
    assert_eq!(learnt(&talk), both);
    for id in 20..40 {
        talk.says(CLIENT, &query(id, 28)).says(SERVER, &v6(id));
    }
    assert_eq!(learnt(&talk).len(), 3 + 20);
    // Something else in between, but not for ever.
    for (others, names) in [(63, 3 + 20 + 1), (64, 3 + 20)] {
        let mut talk = talk.clone();
        for _ in 0..others {
            talk.says(CLIENT, b"none of DNS");
        }
        talk.says(CLIENT, &query(41, 28)).says(SERVER, &v6(41));
        assert_eq!(learnt(&talk).len(), names, "{others}");
    }
    // Longer than a record lasts, and behind what is none of DNS's.
    talk.says(SERVER, &ntp(4, 2));
    for id in 40..43 {
        talk.micros += 1_900_000_000;
        for id in [id, id + 10] {
            talk.says(CLIENT, &query(id, 28)).says(SERVER, &v6(id));
        }
    }
    let mut lasting = Meter::new(MeterConfig {
        timeouts: Timeouts {
            udp: Duration::from_secs(10_000),
            active: Duration::from_secs(1_800),
            ..Timeouts::default()
        },
        ..learning(100)
    })
    .unwrap();
    let mut records: Vec<FlowRecord> = Vec::new();
    let Ok(_) = lasting.observe(talk.frames.iter().map(lent), &mut records);
    assert_eq!(lasting.resolved_names().count(), 3 + 20 + 6);
    assert_eq!(lasting.stats().opened, 1);
    assert_eq!(lasting.stats().records, 3);
    talk.frames.truncate(5 + 2 * 20);
    // The record is the one of somebody who does not learn.
    let without = talk.metered();
    let (with, stats) = meter(&talk.frames, learning(100));
    assert_eq!((with, stats.is_balanced()), (vec![without], true));

    let mut over_tcp = Talk::tcp(53);
    over_tcp
        .says(CLIENT, &long(&query(7, 28)))
        .says(SERVER, &long(&v6(7)));
    assert_eq!(learnt(&over_tcp), said(&[(name, "2001:db8::1", 0)]));
    // Not asked for; asked for something else; said by who asks; refused; by a group that everybody may answer.
    let other = dns_message(7, 0x0100, [1, 0, 0, 0], &[&question(&[b"b"], 1)]);
    let refused = dns_message(7, 0x8183, [1, 6, 0, 0], &[&asked(1), &chain.concat()]);
    let of_group = |talk: &mut Talk| talk.addresses[SERVER] = Ipv4Addr::new(224, 0, 0, 251);
    let as_usual = |_: &mut Talk| {};
    for (first, side, second, port, how) in [
        (query(6, 1), SERVER, v4(7), 53, as_usual as fn(&mut Talk)),
        (other, SERVER, v4(7), 53, as_usual),
        (query(7, 28), SERVER, v4(7), 53, as_usual),
        (query(7, 1), CLIENT, v4(7), 53, as_usual),
        (query(7, 1), SERVER, refused, 53, as_usual),
        (query(7, 1), SERVER, v4(7), 5353, of_group),
    ] {
        let mut talk = Talk::udp(port);
        how(&mut talk);
        talk.says(CLIENT, &first).says(side, &second);
        assert_eq!(learnt(&talk), [], "{first:x?} {second:x?}");
    }
    // Nobody who did not ask for names gets them.
    let mut meter = Meter::new(learning(0)).unwrap();
    let mut records: Vec<FlowRecord> = Vec::new();
    let Ok(_) = meter.observe(talk.frames.iter().map(lent), &mut records);
    assert_eq!(meter.resolved_names().count(), 0);
}

/// A packet of NTP.
fn ntp(mode: u8, stratum: u8) -> Vec<u8> {
    let mut packet = vec![0x20 | mode, stratum, 6, 0xe9];
    packet.extend([0, 0, 1, 2, 0, 0, 3, 4]);
    packet.extend([1; 36]);
    packet
}

#[test]
fn whatever_its_id_a_query_is_one_of_dns() {
    // 48, 52 and 60 octets.
    for labels in [
        &[&b"www"[..], b"googleapis", b"com", b"example", b"org"][..],
        &[b"www", b"googleapis", b"com", b"example", b"off", b"org"],
        &[
            b"redis", b"default", b"svc", b"cluster", b"local", b"of", b"a", b"group",
        ],
    ] {
        let asked = question(labels, 1);
        for id in (0..=u16::MAX).step_by(if cfg!(miri) { 4_097 } else { 1 }) {
            let query = dns_message(id, 0x0100, [1, 0, 0, 0], &[&asked]);
            assert!(
                query.len().is_multiple_of(4) && query.len() >= 48,
                "{}",
                query.len()
            );
            let ends = Ends {
                ports: [40_000, 53],
                group: None,
            };
            let told = datagram::judge(&query, ends, None);
            assert!(
                matches!(told, Told::Dns(Protocol::Dns, _)),
                "{id:#x}: {told:?}"
            );
        }
    }
}

/// A query for www.example, and the response: 10.0.0.9, for 60 s.
fn asked_for_www_example() -> Talk {
    let asked = question(&[b"www", b"example"], 1);
    let mut dns = Talk::udp(53);
    dns.says(CLIENT, &dns_message(7, 0x0100, [1, 0, 0, 0], &[&asked]));
    let address = of(&[0xc0, 12], 1, 60, &[10, 0, 0, 9]);
    dns.says(
        SERVER,
        &dns_message(7, 0x8180, [1, 1, 0, 0], &[&asked, &address]),
    );
    dns
}

#[test]
fn connections_are_called_by_the_names_that_were_asked_for() {
    let dns = asked_for_www_example();
    let web = |server: u8, seconds: u64| {
        let mut talk = Talk::begun(80);
        talk.addresses[SERVER] = Ipv4Addr::new(10, 0, 0, server);
        talk.micros += seconds * 1_000_000;
        talk.segment(CLIENT, SYN, 1, &[]);
        talk.segment(SERVER, SYN | ACK, 1, &[]);
        talk.frames
    };
    let name = |records: &[FlowRecord], field| -> Vec<Option<String>> {
        let tcp = records
            .iter()
            .filter(|record| record.protocol_identifier == 6);
        tcp.map(|record| match record.value(field) {
            Some(Value::Text(name)) => Some(name.to_owned()),
            _ => None,
        })
        .collect()
    };
    let wanted = Some("www.example".to_owned());
    for (frames, expected) in [
        (web(9, 1), wanted.clone()),
        // Another address; another time, however long the record takes.
        (web(8, 1), None),
        (web(9, 62), None),
    ] {
        let (records, _) = meter(&[dns.frames.clone(), frames].concat(), config());
        assert_eq!(name(&records, Field::DestinationDomain), [expected]);
        assert_eq!(name(&records, Field::SourceDomain), [None]);
    }
    // Before it was asked for it had no name; and a meter that was taught has.
    let mut later = dns.clone();
    for frame in &mut later.frames {
        frame.micros += 5_000_000;
    }
    let (records, _) = meter(&[web(9, 1), later.frames].concat(), config());
    assert_eq!(name(&records, Field::DestinationDomain), [None]);
    let mut heard = Meter::new(config()).unwrap();
    let mut taught = Meter::new(config()).unwrap();
    let mut records: Vec<FlowRecord> = Vec::new();
    let Ok(_) = heard.observe(dns.frames.iter().map(lent), &mut records);
    for told in heard.resolved_names() {
        taught.learn(&told);
    }
    let Ok(_) = taught.observe(web(9, 1).iter().map(lent), &mut records);
    let Ok(_) = taught.finish(&mut records);
    assert_eq!(name(&records, Field::DestinationDomain), [wanted]);
}

#[test]
fn hostile_responses_teach_nothing_false() {
    let asked = question(&[b"www", b"example"], 1);
    let query = dns_message(7, 0x0100, [1, 0, 0, 0], &[&asked]);
    let teach = |count, records: &[u8]| {
        let response = dns_message(7, 0x8180, [1, count, 0, 0], &[&asked, records]);
        let mut talk = Talk::udp(53);
        learnt(talk.says(CLIENT, &query).says(SERVER, &response))
    };
    let address = [192, 0, 2, 1];
    let good = of(&[0xc0, 12], 1, 60, &address);
    let one = said(&[("www.example", "192.0.2.1", 60)]);
    assert_eq!(teach(1, &good), one);
    assert_eq!(teach(0, &good), []);
    assert_eq!(teach(4_096, &good), one);
    // The records begin at 29. References to themselves, forwards, in a circle, behind the end, of a kind that there is not; a label
    // that is too long; a name that is.
    let at = 29_u8;
    let long_name = [&[63; 1][..], &[b'x'; 63]].concat().repeat(4);
    for owner in [
        vec![0xc0, at],
        vec![0xc0, at + 2],
        vec![0xc0, at + 1, 0xc0, at],
        vec![0xff, 0xff],
        vec![0x80, 12],
        vec![0x40],
        vec![63],
        [&long_name[..], &[0]].concat(),
        [&long_name[..], &[0xc0, 12]].concat(),
    ] {
        let bad = of(&owner, 1, 60, &address);
        assert_eq!(teach(2, &[&bad[..], &good].concat()), [], "{owner:x?}");
        // What came before it counts.
        assert_eq!(
            teach(2, &[&good[..], &bad].concat())[..1],
            one,
            "{owner:x?}"
        );
    }
    // Aliases in a circle, and one that is cut off.
    let circle = [
        of(&[0xc0, 12], 5, 60, &name(&[b"a"])),
        of(&name(&[b"a"]), 5, 60, &[0xc0, 12]),
    ]
    .concat();
    assert_eq!(teach(40, &circle.repeat(20)), []);
    assert_eq!(
        teach(2, &[&of(&[0xc0, 12], 5, 60, &[5])[..], &good].concat()),
        []
    );
    // Addresses of the wrong length, and data that is longer than the message.
    for data in [&[1, 2, 3][..], &[0; 5], &[0; 16]] {
        assert_eq!(
            teach(2, &[&of(&[0xc0, 12], 1, 60, data)[..], &good].concat()),
            one
        );
    }
    let beyond = [&[0xc0, 12][..], &words(&[1, 1, 0, 60, 400]), &address].concat();
    assert_eq!(teach(1, &beyond), []);
    // However many are told: a few are enough.
    assert_eq!(teach(100, &good.repeat(100)).len(), 16);
    // Cut off anywhere: nothing, or what was whole.
    let whole = [&good[..], &of(&[0xc0, 12], 1, 60, &[192, 0, 2, 2])].concat();
    for kept in 0..whole.len() {
        let seen = teach(2, &whole[..kept]);
        assert_eq!(seen.len(), kept / good.len(), "{kept}");
    }
}

proptest! {
    #[test]
    fn whatever_is_answered_is_bounded(
        records in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xc0), Just(12), Just(0), Just(1)], 0..400),
        count in 0_u16..500,
    ) {
        let asked = question(&[b"www", b"example"], 1);
        let mut talk = Talk::udp(53);
        talk.says(CLIENT, &dns_message(7, 0x0100, [1, 0, 0, 0], &[&asked]))
            .says(SERVER, &dns_message(7, 0x8180, [1, count, 0, 0], &[&asked, &records]));
        let learnt = learnt(&talk);
        prop_assert!(learnt.len() <= 16);
        prop_assert!(learnt.iter().all(|(name, ..)| name == "www.example"));
    }
}

#[test]
fn names_of_dns_are_written_as_in_zone_files() {
    let told = |labels: &[&[u8]]| {
        let mut talk = Talk::udp(53);
        talk.says(
            CLIENT,
            &dns_message(1, 0, [1, 0, 0, 0], &[&question(labels, 4711 % 300)]),
        );
        dns(&talk.application()).clone()
    };
    assert_eq!(told(&[]).query_name.as_deref(), Some("."));
    assert_eq!(
        told(&[b"a.b", b"c\\d"]).query_name.as_deref(),
        Some("a\\.b.c\\\\d")
    );
    assert_eq!(
        told(&[b"x\x1b[2J\n\xff"]).query_name.as_deref(),
        Some("x\\027[2J\\010\\255")
    );
    assert_eq!(
        told(&["bücher".as_bytes()]).query_name.as_deref(),
        Some("bücher")
    );
    assert_eq!(told(&[b"a"]).query_type.as_deref(), Some("TYPE211"));
    // 255 octets, the longest name there is, and one more.
    let label = [0x07; 63];
    let longest = told(&[&label, &label, &label, &[b'x'; 61]]);
    let shown = format!("{0}.{0}.{0}.{1}", "\\007".repeat(63), "x".repeat(61));
    assert_eq!(longest.query_name.as_deref(), Some(shown.as_str()));
    let mut talk = Talk::udp(53);
    let too_long = question(&[&label, &label, &label, &[b'x'; 62]], 1);
    talk.says(CLIENT, &dns_message(1, 0, [1, 0, 0, 0], &[&too_long]));
    assert_eq!(talk.protocol(), None);
}

#[test]
fn messages_of_dns_that_are_not_sound_are_none_or_harmless() {
    let of = |message: &[u8]| {
        let mut talk = Talk::udp(4711);
        talk.says(CLIENT, message).application()
    };
    let header = |flags, counts| dns_message(1, flags, counts, &[]);
    // A name that refers to itself; a label that is too long; nothing behind the header; a class that is none.
    for rest in [
        &[0xc0, 12, 0, 1, 0, 1][..],
        &[64, 1, 0, 0, 1, 0, 1],
        &[],
        b"\x01a\x00\x00\x01\x00\x09",
    ] {
        assert_eq!(
            of(&[&header(0, [1, 0, 0, 0]), rest].concat()),
            Application::default()
        );
    }
    // The name service of NetBIOS, other operations, answers in a query, and too many of everything.
    let netbios = question(&[b"CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"], 33);
    assert_eq!(
        of(&dns_message(1, 0, [1, 0, 0, 0], &[&netbios])).protocol,
        None
    );
    let asked = question(&[b"a"], 1);
    for (flags, counts) in [
        (0x7800, [1, 0, 0, 0]),
        (0x40, [1, 0, 0, 0]),
        (0, [1, 1, 0, 0]),
        (0, [2, 0, 0, 0]),
        (0x8000, [1, 9_999, 0, 0]),
    ] {
        assert_eq!(
            of(&dns_message(1, flags, counts, &[&asked])).protocol,
            None,
            "{flags} {counts:?}"
        );
    }
    // Answers whose names run in circles, or that are longer than the message.
    for records in [
        &[0xc0, 29, 0xc0, 29][..],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 1],
    ] {
        let application = of(&dns_message(1, 0x8000, [1, 300, 0, 0], &[&asked, records]));
        assert_eq!(dns(&application).answer_count, Some(300));
        assert_eq!(dns(&application).answers, None);
    }
}

#[test]
fn mdns_and_llmnr_are_told_by_their_groups() {
    let asked = question(&[b"_http", b"_tcp", b"local"], 12);
    let query = dns_message(0, 0, [1, 0, 0, 0], &[&asked]);
    let to = |group: [u8; 4], ports: [u16; 2]| {
        let mut talk = Talk::udp(ports[1]);
        talk.ports = ports;
        talk.addresses[SERVER] = group.into();
        talk.says(CLIENT, &query).protocol()
    };
    assert_eq!(to([224, 0, 0, 251], [5353, 5353]), Some(Protocol::Mdns));
    assert_eq!(to([224, 0, 0, 252], [40_000, 5355]), Some(Protocol::Llmnr));
    assert_eq!(to([10, 0, 0, 9], [40_000, 5353]), Some(Protocol::Mdns));
    assert_eq!(to([10, 0, 0, 9], [5353, 53]), Some(Protocol::Dns));
    // An announcement has no question.
    let mut talk = Talk::udp(5353);
    talk.addresses[SERVER] = [224, 0, 0, 251].into();
    let record = [
        name(&["Drucker süd".as_bytes(), b"local"]),
        words(&[28, 0x8001, 0, 120]),
        long(&[0; 16]),
    ]
    .concat();
    talk.says(CLIENT, &dns_message(0, 0x8400, [0, 1, 0, 0], &[&record]));
    let application = talk.application();
    assert_eq!(application.protocol, Some(Protocol::Mdns));
    assert_eq!(
        dns(&application).query_name.as_deref(),
        Some("Drucker süd.local")
    );
    assert_eq!(dns(&application).answers.as_deref(), Some("::"));
}

#[test]
fn http_tells_method_host_and_status() {
    let told = |request: &[u8], response: &[u8]| {
        let mut talk = Talk::tcp(4711);
        talk.says(CLIENT, request).says(SERVER, response);
        let application = talk.application();
        let http = application.http.as_deref().cloned().unwrap_or_default();
        (application.protocol, http.method, http.host, http.status)
    };
    let is = |method: &str, host: Option<&str>, status| {
        (
            Some(Protocol::Http),
            Some(method.into()),
            host.map(Into::into),
            status,
        )
    };
    let ok = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n";
    assert_eq!(
        told(
            b"GET / HTTP/1.1\r\nAccept: */*\r\nhOsT: a.example:8080\r\n\r\n",
            ok
        ),
        is("GET", Some("a.example:8080"), Some(200))
    );
    assert_eq!(
        told(b"CONNECT b.example:443 HTTP/1.1\r\n\r\n", ok),
        is("CONNECT", Some("b.example:443"), Some(200))
    );
    assert_eq!(
        told(
            b"POST /x HTTP/1.0\r\n\r\n",
            b"HTTP/1.0 404 Not Found\r\n\r\n"
        ),
        is("POST", None, Some(404))
    );
    // The response that is final counts; a protocol that is switched to is.
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n";
    assert_eq!(
        told(b"PUT /x HTTP/1.1\r\nHost: c\r\n\r\n", interim),
        is("PUT", Some("c"), Some(503))
    );
    assert_eq!(
        told(
            b"GET / HTTP/1.1\r\nHost: c\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
        ),
        is("GET", Some("c"), Some(101))
    );
    // What is sent is told, control characters too; a name behind a malformed field is not.
    assert_eq!(
        told(b"GET / HTTP/1.1\r\nHost: caf\xc3\xa9\xff\r\n\r\n", ok),
        is("GET", Some("café\u{fffd}"), Some(200))
    );
    assert_eq!(
        told(b"GET / HTTP/1.1\r\n\x1b[2J: x\r\nHost: c\r\n\r\n", ok),
        is("GET", None, Some(200))
    );
    // A target of kilobytes.
    let endless = [&b"GET /"[..], &[b'x'; 9_000]].concat();
    assert_eq!(told(&endless, ok), is("GET", None, Some(200)));
    // The response alone, and what only looks like HTTP.
    let mut talk = Talk::tcp(80);
    assert_eq!(talk.says(SERVER, ok).protocol(), Some(Protocol::Http));
    for other in [
        &b"GET /\r\n"[..],
        b"USER anonymous\r\n",
        b"get / http/1.1\r\n\r\n",
        b"HTTP/9.9 200",
        b"A B C\r\n\r\n",
        b"GETTINGLONGERANDLONGER / HTTP/1.1\r\n\r\n",
    ] {
        let mut talk = Talk::tcp(4711);
        assert_eq!(talk.says(CLIENT, other).protocol(), None, "{other:?}");
    }
}

#[test]
fn a_response_before_which_more_is_said_comes_in_pieces() {
    let mut talk = Talk::tcp(80);
    talk.says(CLIENT, b"PO")
        .says(CLIENT, b"ST / HTTP/1.1\r\nHo")
        .says(CLIENT, b"st: d\r\n\r\n");
    talk.says(SERVER, b"HTTP/1.1 100 Continue\r\n");
    talk.says(CLIENT, &[b'x'; 5_000]);
    talk.says(SERVER, b"\r\nHTTP/1.1 20")
        .says(SERVER, b"1 Created\r\n\r\n");
    let http = talk.application().http.unwrap();
    assert_eq!(
        (http.method.as_deref(), http.host.as_deref(), http.status),
        (Some("POST"), Some("d"), Some(201))
    );
}

#[test]
fn a_status_has_three_digits_wherever_it_is_cut() {
    let said = |pieces: &[&[u8]]| {
        let mut talk = Talk::begun(4711);
        for piece in pieces {
            talk.says(SERVER, piece);
        }
        talk.application().http.and_then(|http| http.status)
    };
    assert_eq!(said(&[b"HTTP/1.1 9000"]), None);
    assert_eq!(said(&[b"HTTP/1.1 900", b"0"]), None);
    assert_eq!(said(&[b"HTTP/1.1 204", b"\r\n\r\n"]), Some(204));
    // The server said no more.
    assert_eq!(said(&[b"HTTP/1.1 204"]), Some(204));
}

/// What curl sends to begin HTTP/2 by itself, and a request of which `block` is the header block.
fn http2(block: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        let length = (body.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], body].concat()
    };
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]),
        frame(8, 0, 0, &[0, 1, 0, 0]),
        frame(
            1,
            0x04 | 0x08 | 0x20,
            1,
            &[&[2, 0, 0, 0, 0, 10], block, &[0, 0]].concat(),
        ),
    ]
    .concat()
}

#[test]
fn http2_and_grpc_are_told_by_their_first_request() {
    // :method GET, :scheme http, :authority www.example.com in Huffman's code (RFC 7541, C.4.1).
    let get = [
        &[0x82, 0x86, 0x84, 0x41, 0x8c][..],
        b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
    ]
    .concat();
    let mut talk = Talk::tcp(4711);
    let application = talk.says(CLIENT, &http2(&get)).application();
    let http = application.http.unwrap();
    assert_eq!(application.protocol, Some(Protocol::Http2));
    assert_eq!(
        (http.method.as_deref(), http.host.as_deref()),
        (Some("GET"), Some("www.example.com"))
    );
    // :method POST, :authority and content-type as literals; "application/grpc" and "application/grpc+proto" in the clear, then coded.
    let coded = b"\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64";
    for (kind, protocol) in [
        (short(b"application/grpc"), Protocol::Grpc),
        (short(b"application/grpc+proto"), Protocol::Grpc),
        (
            [&[0x80 | coded.len() as u8], &coded[..]].concat(),
            Protocol::Grpc,
        ),
        (short(b"application/grpc-web"), Protocol::Http2),
        (short(b"application/json"), Protocol::Http2),
    ] {
        let block = [&[0x83, 0x41][..], &short(b"svc:50051"), &[0x5f], &kind].concat();
        let mut talk = Talk::tcp(50_051);
        let application = talk.says(CLIENT, &http2(&block)).application();
        assert_eq!(application.protocol, Some(protocol));
        let http = application.http.unwrap();
        assert_eq!(
            (http.method.as_deref(), http.host.as_deref()),
            (Some("POST"), Some("svc:50051"))
        );
    }
    // A block that is not sound, and none at all.
    let mut talk = Talk::tcp(80);
    assert_eq!(
        talk.says(CLIENT, &http2(&[0xff; 20])).protocol(),
        Some(Protocol::Http2)
    );
    let mut talk = Talk::tcp(80);
    assert_eq!(
        talk.says(CLIENT, &http2(&[])[..24]).protocol(),
        Some(Protocol::Http2)
    );
}

fn startup() -> Vec<u8> {
    let body = b"\x00\x03\x00\x00user\0app\0database\0shop\0\0";
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

const TLS_PLEASE: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

fn mysql_greeting() -> Vec<u8> {
    let body = b"\x0a8.4.3\0\x08\0\0\0abcdefgh\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0abcdefghijkl\0caching_sha2_password\0";
    [&[body.len() as u8, 0, 0, 0], &body[..]].concat()
}

fn kafka(name: &[u8]) -> Vec<u8> {
    let body = [
        &[0, 18, 0, 3, 0, 0, 0, 1][..],
        &long(name),
        &[0, 5, b'x', 1, 0, 0],
    ]
    .concat();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

fn mongodb() -> Vec<u8> {
    let document = b"\x13\0\0\0\x10ping\0\x01\0\0\0\0";
    let body = [
        &[9, 0, 0, 0, 0, 0, 0, 0, 0xdd, 7, 0, 0, 0, 0, 0, 0, 0][..],
        document,
    ]
    .concat();
    [&(body.len() as u32 + 4).to_le_bytes()[..], &body].concat()
}

#[test]
fn other_protocols_are_told_by_how_they_begin_on_any_port() {
    let compressed = {
        let mut message = mongodb();
        message[12..20].copy_from_slice(&[0xdc, 7, 0, 0, 0xdd, 7, 0, 0]);
        message
    };
    let cancel = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2];
    for (side, octets, protocol) in [
        (SERVER, b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), Protocol::Ssh),
        (CLIENT, b"SSH-1.99-old\r\n".to_vec(), Protocol::Ssh),
        (CLIENT, startup(), Protocol::PostgreSql),
        (CLIENT, cancel.to_vec(), Protocol::PostgreSql),
        (CLIENT, TLS_PLEASE.to_vec(), Protocol::PostgreSql),
        (SERVER, mysql_greeting(), Protocol::MySql),
        (
            CLIENT,
            b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".to_vec(),
            Protocol::Redis,
        ),
        (CLIENT, kafka(b"consumer-1"), Protocol::Kafka),
        (CLIENT, mongodb(), Protocol::MongoDb),
        (CLIENT, compressed, Protocol::MongoDb),
    ] {
        let mut talk = Talk::tcp(4711);
        assert_eq!(
            talk.says(side, &octets).application(),
            Application::of(protocol)
        );
        // The same in two pieces, wherever cut.
        for at in 1..octets.len() {
            let mut talk = Talk::tcp(4711);
            talk.says(side, &octets[..at]).says(side, &octets[at..]);
            assert_eq!(talk.protocol(), Some(protocol), "{protocol} at {at}");
        }
        // It is the beginning that counts.
        let mut talk = Talk::tcp(4711);
        talk.says(side, b"\x01").says(side, &octets);
        assert_eq!(talk.protocol(), None, "{protocol}");
        // Of a connection that was seen from the middle on, any packet's.
        let mut talk = Talk::begun(4711);
        talk.says(side, b"\x01").says(side, &octets);
        assert_eq!(talk.protocol(), Some(protocol));
    }
    let mut dhcp = vec![1, 1, 6, 0];
    dhcp.resize(236, 0);
    dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    for (octets, protocol) in [
        (ntp(3, 0), Protocol::Ntp),
        (ntp(4, 2), Protocol::Ntp),
        (dhcp.clone(), Protocol::Dhcp),
        (
            b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n".to_vec(),
            Protocol::Ssdp,
        ),
    ] {
        let mut talk = Talk::udp(4711);
        assert_eq!(talk.says(CLIENT, &octets).protocol(), Some(protocol));
        let mut talk = Talk::udp(4711);
        assert_eq!(talk.says(CLIENT, &octets[1..]).protocol(), None);
        // Not over TCP.
        let mut talk = Talk::tcp(4711);
        assert_ne!(talk.says(CLIENT, &octets).protocol(), Some(protocol));
    }
    for (octets, why) in [
        (ntp(3, 99), "stratum"),
        (ntp(7, 0), "mode"),
        (ntp(3, 0)[..47].to_vec(), "length"),
        (dhcp[..239].to_vec(), "cookie"),
    ] {
        let mut talk = Talk::udp(123);
        assert_eq!(talk.says(CLIENT, &octets).protocol(), None, "{why}");
    }
}

#[test]
fn protocols_that_go_on_in_tls_tell_its_hello_too() {
    let hello = record(&chromes_hello(b"db.example"));
    let mut talk = Talk::tcp(4711);
    talk.says(CLIENT, &TLS_PLEASE)
        .says(SERVER, b"S")
        .says(CLIENT, &hello);
    let application = talk.application();
    assert_eq!(application.protocol, Some(Protocol::PostgreSql));
    assert_eq!(tls(&application).server_name.as_deref(), Some("db.example"));
    // The server does not want to: the startup message follows.
    let mut talk = Talk::tcp(4711);
    talk.says(CLIENT, &TLS_PLEASE)
        .says(SERVER, b"N")
        .says(CLIENT, &startup());
    assert_eq!(talk.application(), Application::of(Protocol::PostgreSql));
    let mut login = vec![32, 0, 0, 1, 0x05, 0xae];
    login.resize(36, 0);
    let mut talk = Talk::tcp(4711);
    talk.says(SERVER, &mysql_greeting())
        .says(CLIENT, &login)
        .says(CLIENT, &hello);
    let application = talk.application();
    assert_eq!(application.protocol, Some(Protocol::MySql));
    assert_eq!(tls(&application).ja4.as_deref(), Some(CHROME));
}

#[test]
fn what_nearly_is_a_protocol_is_none() {
    let mut kafka_like = kafka(b"x");
    kafka_like[3] = 9;
    for octets in [
        b"SSH-3".to_vec(),
        b"*2\r\n$3\r\n\x1b".to_vec(),
        b"*x\r\n".to_vec(),
        b"*2\r\n$99\r\nGET".to_vec(),
        b"+PONG\r\n".to_vec(),
        kafka_like,
        kafka(b"a\nb"),
        [&mysql_greeting()[..5], b"x.y\0"].concat(),
        [&startup()[..8], b"\xff"].concat(),
        vec![0; 64],
        vec![0xff; 64],
        vec![22, 3, 1, 0, 0, 1, 0, 0, 0, 3, 3],
        vec![23, 3, 3, 0, 0],
    ] {
        for side in [CLIENT, SERVER] {
            let mut talk = Talk::tcp(4711);
            assert_eq!(talk.says(side, &octets).protocol(), None, "{octets:?}");
        }
    }
}

/// As what stands for data often is, and at a side whose beginning was not seen each packet may begin something: that is ruled out in line.
#[test]
fn zeros_begin_nothing() {
    for length in 8..64 {
        assert!(!stream::may_begin(&vec![0; length]), "{length}");
    }
}

#[test]
fn a_port_is_but_a_guess() {
    let of = |talk: &mut Talk| talk.says(CLIENT, b"\x01\x02\x03 who knows").metered();
    let record = of(&mut Talk::tcp(443));
    assert_eq!(record.value(Field::ApplicationName), None);
    assert_eq!(
        record.value(Field::ApplicationGuess),
        Some(Value::Text("https"))
    );
    // Who is the server of a connection that was seen from the middle on is not sure.
    let mut talk = Talk::begun(40_001).with_client_port(6_379);
    assert_eq!(
        of(&mut talk).value(Field::ApplicationGuess),
        Some(Value::Text("redis"))
    );
    assert_eq!(of(&mut Talk::tcp(40_001)).application, None);
    assert_eq!(of(&mut Talk::udp(22)).application, None);
    // What is known needs no guess.
    let mut talk = Talk::tcp(80);
    talk.says(CLIENT, b"SSH-2.0-x\r\n");
    let record = talk.metered();
    assert_eq!(
        record.value(Field::ApplicationName),
        Some(Value::Text("ssh"))
    );
    assert_eq!(record.value(Field::ApplicationGuess), None);
}

#[test]
fn nothing_is_looked_at_unless_asked_for() {
    let mut talk = Talk::tcp(443);
    talk.says(CLIENT, &record(&chromes_hello(b"a.example")));
    let off = MeterConfig {
        identify: None,
        ..config()
    };
    let (records, stats) = meter(&talk.frames, off);
    assert_eq!(records[0].application, None);
    assert_eq!(stats.identified, 0);
}

#[test]
fn a_side_is_given_up_after_some_packets() {
    // From the middle on: 8 packets are tried.
    for (before, told) in [(7, Some(Protocol::Ssh)), (8, None)] {
        for mut talk in [Talk::begun(4711), Talk::udp(4711)] {
            for _ in 0..before {
                talk.says(CLIENT, b"\x01nothing that is known");
            }
            if talk.protocol == 6 {
                talk.says(CLIENT, b"SSH-2.0-x\r\n");
                assert_eq!(talk.protocol(), told, "{before}");
            } else {
                talk.says(
                    CLIENT,
                    &dns_message(1, 0, [1, 0, 0, 0], &[&question(&[b"a"], 1)]),
                );
                assert_eq!(talk.protocol().is_some(), told.is_some(), "{before}");
            }
        }
    }
    // Pieces of one octet: so many are put together, and no more.
    let hello = record(&chromes_hello(b"tiny.example"));
    let mut talk = Talk::tcp(443);
    for octet in &hello {
        talk.says(CLIENT, &[*octet]);
    }
    let application = talk.application();
    assert_eq!(application.protocol, Some(Protocol::Tls));
    assert_eq!(tls(&application).server_name, None);
    // 4 KiB of a hello: what is in there is told, and nothing more is waited for.
    let padded = hello_of(
        &[1],
        &[extension(21, &[0; 9_000]), server_name(b"far.example")],
    );
    let mut talk = Talk::tcp(443);
    for part in record(&padded).chunks(1_000) {
        talk.says(CLIENT, part);
    }
    let application = talk.application();
    assert_eq!(application.protocol, Some(Protocol::Tls));
    assert_eq!(tls(&application).server_name, None);
}

/// A hello of which the second half is missing, from a port of its own.
fn half_a_hello(port: u16) -> Talk {
    let hello = record(&chromes_hello(format!("h{port}.example").as_bytes()));
    let mut talk = Talk::tcp(443).with_client_port(port);
    talk.says(CLIENT, &hello[..300]);
    talk
}

#[test]
fn pieces_are_bounded_and_the_longest_standing_give_way() {
    let mut frames = Vec::new();
    for port in 1..=5 {
        frames.extend(half_a_hello(port).frames);
    }
    let identify = Some(Identify {
        pieces: 2,
        ..Identify::default()
    });
    let (records, stats) = meter(
        &frames,
        MeterConfig {
            identify,
            ..config()
        },
    );
    assert_eq!(stats.pieces_given_up, 3);
    assert_eq!(stats.identified, 5);
    // All are told, by what was there.
    for record in &records {
        let wanted = format!("h{}.example", record.source.port);
        assert_eq!(
            record.value(Field::TlsServerName),
            Some(Value::Text(&wanted))
        );
        assert_eq!(record.value(Field::TlsJa4), None);
    }
}

#[test]
fn memory_is_bounded_and_given_back() {
    let closed = |port: u16| {
        let mut talk = Talk::tcp(443).with_client_port(port);
        talk.says(CLIENT, &record(&chromes_hello(&[b'n'; 200])));
        talk
    };
    let identify = Some(Identify {
        memory: 900,
        ..Identify::default()
    });
    let small = MeterConfig {
        identify,
        ..config()
    };
    // Two at the same time have no room for both names; both are told to be TLS.
    let frames = [closed(1).frames, closed(2).frames].concat();
    let (records, stats) = meter(&frames, small);
    assert_eq!((stats.identified, stats.names_refused), (2, 1));
    let named = |record: &&FlowRecord| record.value(Field::TlsServerName).is_some();
    assert_eq!(records.iter().filter(named).count(), 1);
    assert!(
        records
            .iter()
            .all(|record| record.value(Field::ApplicationName) == Some(Value::Text("tls")))
    );
    // One after the other has.
    let mut frames = Vec::new();
    for port in 1..=50 {
        let mut talk = closed(port);
        talk.micros += u64::from(port) * 60_000_000;
        for frame in &mut talk.frames {
            frame.micros += u64::from(port) * 60_000_000;
        }
        talk.segment(CLIENT, RST | ACK, talk.numbers[CLIENT], &[]);
        frames.extend(talk.frames);
    }
    let (records, stats) = meter(&frames, small);
    assert_eq!((stats.identified, stats.names_refused), (50, 0));
    assert!(records.iter().all(|record| named(&record)));
}

#[test]
fn every_record_of_a_connection_says_what_it_speaks() {
    let timeouts = Timeouts {
        active: Duration::from_secs(5),
        ..Timeouts::default()
    };
    let mut talk = half_a_hello(7);
    talk.micros += 20_000_000;
    talk.says(CLIENT, b"later");
    let (records, stats) = meter(
        &talk.frames,
        MeterConfig {
            timeouts,
            ..config()
        },
    );
    assert_eq!(records.len(), 2);
    for record in &records {
        assert_eq!(
            record.value(Field::TlsServerName),
            Some(Value::Text("h7.example"))
        );
    }
    assert_eq!(stats.identified, 1);
    // One record's memory is the other's.
    let [first, second] = &records[..] else {
        panic!()
    };
    assert!(Arc::ptr_eq(
        first.application.as_ref().unwrap(),
        second.application.as_ref().unwrap()
    ));
}

#[test]
fn open_connections_tell_what_is_known_so_far() {
    let mut talk = Talk::tcp(80);
    talk.says(CLIENT, b"GET / HTTP/1.1\r\nHost: e\r\n\r\n");
    let mut meter = Meter::new(config()).unwrap();
    let mut records = Vec::new();
    let Ok(_) = meter.observe(talk.frames.iter().map(lent), &mut records);
    let mut seen = Vec::new();
    let _ = meter.open(|record| {
        seen.push(record.clone());
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(
        seen[0].value(Field::HttpRequestHost),
        Some(Value::Text("e"))
    );
    let shown = talk.frames.len();
    talk.says(SERVER, b"HTTP/1.1 204 No Content\r\n\r\n");
    let Ok(_) = meter.observe(talk.frames[shown..].iter().map(lent), &mut records);
    let Ok(_) = meter.finish(&mut records);
    assert_eq!(
        records[0].value(Field::HttpStatusCode),
        Some(Value::Unsigned(204))
    );
    // What was told before stays as it was told.
    assert_eq!(seen[0].value(Field::HttpStatusCode), None);
}

/// Each is written over the one before: with a name, an application, TCP's metrics, or none of that.
#[test]
fn a_record_has_nothing_of_the_one_before() {
    let mut frames = asked_for_www_example().frames;
    for port in 1..7 {
        let is_tcp = port % 2 == 1;
        let mut talk = if is_tcp {
            Talk::begun(40_000 + port)
        } else {
            Talk::udp(40_000 + port)
        };
        talk.micros += 1_000_000;
        if port % 3 != 0 {
            talk.addresses[SERVER] = Ipv4Addr::new(10, 0, 0, 9);
        }
        if is_tcp {
            talk.segment(CLIENT, SYN, 1, &[]);
            talk.segment(SERVER, SYN | ACK, 1, &[]);
        }
        if port < 4 {
            talk.says(CLIENT, b"GET / HTTP/1.1\r\nHost: e\r\n\r\n");
        }
        talk.says(SERVER, &[0xee; 9]);
        frames.extend(talk.frames);
    }
    let mut meter = Meter::new(config()).unwrap();
    let mut records: Vec<FlowRecord> = Vec::new();
    let Ok(_) = meter.observe(frames.iter().map(lent), &mut records);
    assert!(records.is_empty());
    let mut fresh = Vec::new();
    let _ = meter.open(|record| {
        fresh.push(record.clone());
        std::ops::ControlFlow::Continue(())
    });
    let Ok(_) = meter.finish(&mut records);
    for record in &mut records {
        record.flow_end_reason = None;
    }
    assert_eq!(records, fresh);
    // One of them by the server, which was seen first.
    let named = fresh.iter().filter(|record| {
        record.labels.source_domain.is_some() || record.labels.destination_domain.is_some()
    });
    assert_eq!((fresh.len(), named.count()), (7, 4));
}

/// What tells nothing is looked at 8 times where the beginning was not seen, else once.
#[test]
fn a_side_is_given_up_after_so_much_that_tells_nothing() {
    for (mut talk, looks) in [(Talk::begun(4711), 7), (Talk::tcp(4711), 0)] {
        talk.says(SERVER, b"0123456789");
        for _ in 0..looks {
            talk.says(CLIENT, b"0123456789");
        }
        let mut late = talk.clone();
        talk.says(CLIENT, b"GET /a HTTP/1.1\r\nHost: p.example\r\n\r\n");
        assert_eq!(talk.protocol(), Some(Protocol::Http), "after {looks}");
        late.says(CLIENT, b"0123456789");
        late.says(CLIENT, b"GET /a HTTP/1.1\r\nHost: p.example\r\n\r\n");
        assert_eq!(late.protocol(), None, "after {looks} and one");
    }
    // Each of these may begin a request of Kafka, until the next one shows that it does not.
    for (before, told) in [(7, Some(Protocol::Http)), (8, None), (100, None)] {
        let mut talk = Talk::begun(4711);
        for _ in 0..before {
            talk.says(CLIENT, &[0; 10]);
        }
        talk.says(CLIENT, b"GET /a HTTP/1.1\r\nHost: p.example\r\n\r\n");
        assert_eq!(talk.protocol(), told, "after {before}");
    }
}

/// The beginnings of all kinds of streams.
fn streams() -> Vec<Vec<u8>> {
    vec![
        record(&chromes_hello(b"p.example")),
        record_of_old_client(),
        server_hello(Some(0x0304)),
        b"GET /a HTTP/1.1\r\nUser-Agent: x\r\nHost: p.example\r\n\r\n".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_vec(),
        b"HTTP/1.1 9000".to_vec(),
        http2(b"\x83\x41\x01a\x5f\x10application/grpc"),
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        startup(),
        [&TLS_PLEASE[..], &record(&chromes_hello(b"p.example"))].concat(),
        mysql_greeting(),
        b"*1\r\n$4\r\nPING\r\n".to_vec(),
        kafka(b"me"),
        mongodb(),
        long(&dns_message(
            1,
            0x0100,
            [1, 0, 0, 0],
            &[&question(&[b"p", b"example"], 1)],
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Wherever a stream is cut, in whatever order the pieces come, and whatever was changed in it: it says what the whole says.
    #[test]
    fn pieces_say_what_the_whole_says(
        which in 0..15_usize,
        changes in proptest::collection::vec((0..2_000_usize, any::<u8>()), 0..3),
        cuts in proptest::collection::vec(1..2_000_usize, 0..6),
        order in any::<u64>(),
        side in 0..2_usize,
    ) {
        let mut stream = streams()[which].clone();
        for (at, octet) in changes {
            let at = at % stream.len();
            stream[at] = octet;
        }
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % stream.len()).filter(|cut| *cut > 0).collect();
        ends.extend([0, stream.len()]);
        ends.sort_unstable();
        ends.dedup();
        let mut pieces: Vec<(usize, usize)> = ends.windows(2).map(|pair| (pair[0], pair[1])).collect();
        // Any order of so few, made from a number.
        let mut order = order;
        for last in (1..pieces.len()).rev() {
            pieces.swap(last, (order % (last as u64 + 1)) as usize);
            order /= last as u64 + 1;
        }
        let mut whole = Talk::tcp(4711);
        whole.says(side, &stream);
        let mut parts = Talk::tcp(4711);
        parts.says_in(side, &stream, &pieces);
        prop_assert_eq!(parts.application(), whole.application());
    }

    /// What begins nothing by the short test begins nothing by the parsers, whatever the other side speaks.
    #[test]
    fn what_may_not_begin_is_nothing(
        which in 0..16_usize,
        changes in proptest::collection::vec((0..20_usize, any::<u8>()), 0..4),
        any in proptest::collection::vec(any::<u8>(), 1..40),
        kept in 0..80_usize,
        id in any::<u16>(),
    ) {
        let mut stream = streams().into_iter().nth(which).unwrap_or(any);
        for (at, octet) in changes {
            let at = at % stream.len();
            stream[at] = octet;
        }
        stream.truncate(kept);
        // Of nothing, only that no more comes rules out what it may begin.
        let is_nothing = stream.is_empty();
        if stream::may_begin(&stream) && !is_nothing {
            return Ok(());
        }
        let own = stream.get(2..4).map(|id| u16::from_be_bytes([id[0], id[1]]));
        let knowns = Protocol::ALL.iter().copied().map(Some).chain([None]);
        for known in knowns {
            for (is_all, asked) in [(false, None), (true, own), (false, own), (true, Some(id))] {
                if is_nothing && !is_all {
                    continue;
                }
                let verdict = stream::judge(&stream, is_all, known, asked);
                prop_assert!(matches!(verdict, Verdict::No), "{known:?} {asked:?}: {verdict:?}");
            }
        }
    }

    /// Frames with a tag take the long way, and tell the same.
    #[test]
    fn the_short_way_tells_what_the_long_one_does(
        is_whole in any::<bool>(),
        says in proptest::collection::vec((0..2_usize, 0..20_usize, 0..60_usize), 1..24),
        any in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        let mut talk = if is_whole { Talk::tcp(4711) } else { Talk::begun(4711) };
        for (side, which, most) in says {
            let said = streams().into_iter().nth(which).unwrap_or_else(|| any.clone());
            talk.says(side, &said[..said.len().min(most.max(1))]);
            if most == 0 {
                talk.cut(0);
            }
        }
        let mut tagged = talk.clone();
        for frame in &mut tagged.frames {
            frame.octets.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
            frame.length += 4;
        }
        prop_assert_eq!(talk.application(), tagged.application());
    }

    /// Any octets in datagrams and segments: each frame is accounted for, and nothing breaks.
    #[test]
    fn any_octets_do_no_harm(
        talks in proptest::collection::vec((any::<bool>(), 0..2_usize, proptest::collection::vec(any::<u8>(), 0..200)), 1..12),
        port in prop_oneof![Just(53), Just(443), Just(5353), any::<u16>()],
    ) {
        for mut talk in [Talk::tcp(port), Talk::udp(port)] {
            for (is_cut, side, octets) in &talks {
                talk.says(*side, octets);
                if *is_cut {
                    talk.cut(octets.len() / 2);
                }
            }
            let record = talk.metered();
            let named = record.value(Field::ApplicationName).is_some();
            prop_assert!(!named || record.value(Field::ApplicationGuess).is_none());
        }
    }
}
