//! TLS: what a ClientHello and a ServerHello tell (RFC 8446, section 4.1), in records over TCP or by themselves in QUIC.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::octets::Octets;
use super::{Application, Protocol, Tls, Verdict, text};

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

mod extension {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
    pub(super) const ALPN: u16 = 16;
    pub(super) const SUPPORTED_VERSIONS: u16 = 43;
}

/// A stream that begins with records of TLS; what it tells is of `protocol`.
pub(super) fn stream(octets: &[u8], is_all: bool, protocol: Protocol) -> Verdict {
    if !begins(octets) {
        return Verdict::No;
    }
    let Some(Message {
        kind,
        body,
        is_whole,
        ends,
    }) = Message::in_records(octets)
    else {
        return Verdict::more(is_all);
    };
    if !is_whole && !is_all && !ends {
        return Verdict::More;
    }
    let tls = match kind {
        CLIENT_HELLO => client_hello(&body, is_whole, 't'),
        _ => server_hello(&body),
    };
    Verdict::Found(Application::of_tls(protocol, tls))
}

/// Whether octets are, as far as they go, the beginning of a record with a hello in it.
fn begins(octets: &[u8]) -> bool {
    // A record may be so short that the next one begins within the message's head.
    let is_short = matches!(octets.get(3..5), Some([0, 0..6]));
    octets
        .iter()
        .take(11)
        .enumerate()
        .all(|(at, &octet)| match at {
            0 => octet == HANDSHAKE,
            1 => octet == 3,
            2 => octet <= 4,
            5 => matches!(octet, CLIENT_HELLO | SERVER_HELLO),
            // The first octet of the message's length, then its version.
            6 => octet <= 1 || is_short,
            9 => octet == 3 || is_short,
            _ => true,
        })
}

/// A handshake message, as far as it is there.
struct Message<'a> {
    kind: u8,
    body: Cow<'a, [u8]>,
    is_whole: bool,
    /// No more of it comes, although it is not whole.
    ends: bool,
}

impl<'a> Message<'a> {
    /// The first one in some records; `None` when too little is there to tell that it is one.
    fn in_records(octets: &'a [u8]) -> Option<Self> {
        if octets.len() < 11 {
            return None;
        }
        let mut rest = Octets(octets);
        let mut gathered: Cow<'a, [u8]> = Cow::Borrowed(&[]);
        let mut ends = false;
        loop {
            let mut record = rest;
            let (Some(kind), Some(_), Some(length)) = (record.u8(), record.u16(), record.u16())
            else {
                break;
            };
            // An empty record of a handshake is not allowed (RFC 8446, section 5.1).
            if kind != HANDSHAKE || length == 0 {
                ends = true;
                break;
            }
            let there = record.0.len().min(length.into());
            let part = &record.0[..there];
            rest = Octets(&record.0[there..]);
            if gathered.is_empty() {
                gathered = Cow::Borrowed(part);
            } else {
                gathered.to_mut().extend_from_slice(part);
            }
            let mut head = Octets(&gathered);
            let is_there = head.u8().is_some()
                && head
                    .u24()
                    .is_some_and(|length| head.0.len() >= length as usize);
            if is_there || there < length.into() {
                break;
            }
        }
        let (kind, body, is_whole) = match gathered {
            Cow::Borrowed(octets) => {
                let (kind, body, is_whole) = split(octets)?;
                (kind, Cow::Borrowed(body), is_whole)
            }
            Cow::Owned(octets) => {
                let (kind, body, is_whole) = split(&octets)?;
                (kind, Cow::Owned(body.to_vec()), is_whole)
            }
        };
        Some(Self {
            kind,
            body,
            is_whole,
            ends,
        })
    }
}

/// Kind and body of a message, and whether all of the body is there.
fn split(octets: &[u8]) -> Option<(u8, &[u8], bool)> {
    let mut rest = Octets(octets);
    let kind = rest.u8()?;
    let length = rest.u24()? as usize;
    let body = &rest.0[..rest.0.len().min(length)];
    Some((kind, body, body.len() == length))
}

/// What the handshake stream of QUIC tells, of which `octets` are the beginning; `None` when it is no ClientHello.
#[cfg(feature = "quic")]
pub(super) fn in_quic(octets: &[u8]) -> Option<(Tls, bool)> {
    let length_is_sound = octets.get(1).is_none_or(|high| *high <= 1);
    if octets.first().is_some_and(|kind| *kind != CLIENT_HELLO) || !length_is_sound {
        return None;
    }
    Some(match split(octets) {
        Some((_, body, is_whole)) => (client_hello(body, is_whole, 'q'), is_whole),
        None => (Tls::default(), false),
    })
}

/// Whether a number is one of those that mean nothing and are sent so that nobody relies on their absence (RFC 8701).
const fn is_grease(number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// What a ClientHello tells; of one that is not whole, or not sound, as much as is there.
fn client_hello(body: &[u8], is_whole: bool, transport: char) -> Tls {
    let mut hello = Hello::default();
    let is_sound = hello.read(body).is_some();
    let alpn = hello.alpn.join(&b","[..]);
    let version = hello.versions.iter().copied().max().or(hello.version);
    Tls {
        server_name: hello.server_name.and_then(text),
        alpn: text(&alpn),
        client_version: version.map(version_name),
        version: None,
        ja4: (is_whole && is_sound).then(|| hello.ja4(version, transport)),
    }
}

/// The parts of a ClientHello that matter, GREASE left out.
#[derive(Default)]
struct Hello<'a> {
    version: Option<u16>,
    ciphers: Vec<u16>,
    extensions: Vec<u16>,
    versions: Vec<u16>,
    signatures: Vec<u16>,
    alpn: Vec<&'a [u8]>,
    server_name: Option<&'a [u8]>,
}

/// Numbers of two octets, GREASE left out.
fn numbers(octets: &[u8]) -> Vec<u16> {
    octets
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .filter(|number| !is_grease(*number))
        .collect()
}

impl<'a> Hello<'a> {
    /// Reads as far as it goes; `None` where it ends too soon.
    fn read(&mut self, body: &'a [u8]) -> Option<()> {
        let mut rest = Octets(body);
        self.version = Some(rest.u16()?);
        rest.take(32)?;
        rest.short()?;
        self.ciphers = numbers(rest.long()?);
        rest.short()?;
        if rest.0.is_empty() {
            return Some(()); // Without extensions: SSL 3 and the oldest clients.
        }
        let length = usize::from(rest.u16()?);
        let is_whole = rest.0.len() >= length;
        rest = Octets(&rest.0[..rest.0.len().min(length)]);
        while !rest.0.is_empty() {
            let (kind, value) = (rest.u16()?, rest.long()?);
            if !is_grease(kind) {
                self.extensions.push(kind);
            }
            self.extension(kind, Octets(value));
        }
        is_whole.then_some(())
    }

    /// What is not sound in an extension is left out; of several of one kind, which is not allowed, the first counts.
    fn extension(&mut self, kind: u16, mut value: Octets<'a>) -> Option<()> {
        match kind {
            extension::SERVER_NAME if self.server_name.is_none() => {
                let mut names = Octets(value.long()?);
                // Names of other kinds do not exist, but might come first.
                while !names.0.is_empty() {
                    let (kind, name) = (names.u8()?, names.long()?);
                    if kind == 0 {
                        self.server_name = Some(name);
                        break;
                    }
                }
            }
            extension::ALPN if self.alpn.is_empty() => {
                let mut names = Octets(value.long()?);
                while !names.0.is_empty() {
                    self.alpn.push(names.short()?);
                }
            }
            extension::SUPPORTED_VERSIONS if self.versions.is_empty() => {
                self.versions = numbers(value.short()?);
            }
            extension::SIGNATURE_ALGORITHMS if self.signatures.is_empty() => {
                self.signatures = numbers(value.long()?);
            }
            _ => {}
        }
        Some(())
    }

    /// The fingerprint JA4 (github.com/FoxIO-LLC/ja4, technical_details/JA4.md).
    fn ja4(&self, version: Option<u16>, transport: char) -> Box<str> {
        let version = match version {
            Some(0x0304) => "13",
            Some(0x0303) => "12",
            Some(0x0302) => "11",
            Some(0x0301) => "10",
            Some(0x0300) => "s3",
            Some(0x0002) => "s2",
            _ => "00",
        };
        let has_name = self.extensions.contains(&extension::SERVER_NAME);
        let hex = |octet: u8| -> [char; 2] {
            [octet >> 4, octet & 15].map(|digit| char::from(b"0123456789abcdef"[digit as usize]))
        };
        let [first, last] = match self.alpn.first().copied() {
            Some(&[first, .., last])
                if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() =>
            {
                [first, last].map(char::from)
            }
            Some(&[only]) if only.is_ascii_alphanumeric() => [char::from(only); 2],
            Some(&[first, .., last]) => [hex(first)[0], hex(last)[1]],
            Some(&[only]) => hex(only),
            _ => ['0'; 2],
        };
        let mut ciphers = self.ciphers.clone();
        ciphers.sort_unstable();
        let mut extensions: Vec<u16> = self.extensions.clone();
        extensions.retain(|kind| !matches!(*kind, extension::SERVER_NAME | extension::ALPN));
        extensions.sort_unstable();
        let mut second = listed(&extensions);
        if !self.signatures.is_empty() {
            second.push('_');
            second.push_str(&listed(&self.signatures));
        }
        format!(
            "{transport}{version}{}{:02}{:02}{first}{last}_{}_{}",
            if has_name { 'd' } else { 'i' },
            self.ciphers.len().min(99),
            self.extensions.len().min(99),
            digest(&listed(&ciphers)),
            digest(&second),
        )
        .into()
    }
}

/// A version as OpenSSL writes it; its number where it has no name.
fn version_name(version: u16) -> Cow<'static, str> {
    Cow::Borrowed(match version {
        0x0300 => "SSLv3",
        0x0301 => "TLSv1",
        0x0302 => "TLSv1.1",
        0x0303 => "TLSv1.2",
        0x0304 => "TLSv1.3",
        other => return Cow::Owned(format!("{other:#06x}")),
    })
}

fn listed(numbers: &[u16]) -> String {
    let mut list = String::with_capacity(5 * numbers.len());
    for number in numbers {
        if !list.is_empty() {
            list.push(',');
        }
        // Writing to a String does not fail.
        let _ = write!(list, "{number:04x}");
    }
    list
}

/// The first 12 digits of a SHA-256, or zeros of nothing.
fn digest(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(12);
    }
    Sha256::digest(text.as_bytes())
        .iter()
        .take(6)
        .map(|octet| format!("{octet:02x}"))
        .collect()
}

/// The version that a ServerHello tells.
fn server_hello(body: &[u8]) -> Tls {
    let read = || {
        let mut rest = Octets(body);
        let version = rest.u16()?;
        rest.take(32)?;
        rest.short()?;
        rest.take(3)?;
        let mut chosen = None;
        let mut extensions = Octets(rest.long().unwrap_or_default());
        while let (Some(kind), Some(value)) = (extensions.u16(), extensions.long()) {
            if kind == extension::SUPPORTED_VERSIONS {
                chosen = Octets(value).u16();
            }
        }
        Some(chosen.unwrap_or(version))
    };
    Tls {
        version: read().map(version_name),
        ..Tls::default()
    }
}
