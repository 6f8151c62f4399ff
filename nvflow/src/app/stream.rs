//! What a stream of TCP begins with.
//!
//! Every answer depends on the octets from the beginning alone: not on where segments end, nor on a port. More octets make "maybe" a yes
//! or a no, and change neither.

use super::dns;
use super::octets::Octets;
use super::{Application, Protocol, Verdict, http, http2, tls};

/// Says what a stream begins with, of which `octets` are the first.
///
/// `is_all` says that no more will come. `known` is what the other side has told already, `asked` the id of a DNS query of it.
pub(super) fn judge(
    octets: &[u8],
    is_all: bool,
    known: Option<Protocol>,
    asked: Option<u16>,
) -> Verdict {
    type Parser = fn(&[u8], bool) -> Verdict;
    const ALL: [Parser; 12] = [
        tls_alone,
        tls_records,
        http2::stream,
        ssh,
        http::response,
        http::request,
        redis,
        postgresql,
        mysql_greeting,
        mongodb,
        dns_over_tcp,
        kafka,
    ];
    let one: Parser = match known {
        None => return first_of(&ALL, octets, is_all),
        Some(Protocol::Tls) => tls_alone,
        Some(Protocol::Http) => {
            return first_of(&[http::response, http::request], octets, is_all);
        }
        Some(Protocol::MySql) => {
            return first_of(&[mysql_greeting, mysql_in_tls], octets, is_all);
        }
        Some(Protocol::Dns) => return dns_message(octets, is_all, asked),
        Some(_) => return Verdict::No,
    };
    one(octets, is_all)
}

/// Octets that Kafka's shortest request has behind its length: key, version, number, and a name of one octet with its length.
const KAFKA_LEAST: u32 = 11;

/// The kinds of beginnings that are told by their first three octets: of each octet, those that may have it as their first, second and third.
///
/// A word of HTTP, or of what is made to be taken for it or to differ from it; a record of TLS; an array of Redis.
static KINDS: [[u8; 256]; 3] = {
    const WORD: u8 = 1;
    const TLS: u8 = 2;
    const REDIS: u8 = 4;
    let mut kinds = [[0; 256], [0; 256], [TLS | REDIS; 256]];
    let mut octet = 0;
    while octet < 256 {
        let it = octet as u8;
        if it.is_ascii_uppercase() || it == b'-' {
            kinds[0][octet] |= WORD;
            kinds[1][octet] |= WORD;
            kinds[2][octet] |= WORD;
        }
        if matches!(it, 20..=23) {
            kinds[0][octet] |= TLS;
        }
        if it == b'*' {
            kinds[0][octet] |= REDIS;
        }
        if it == 3 {
            kinds[1][octet] |= TLS;
        }
        if it.is_ascii_digit() {
            kinds[1][octet] |= REDIS;
        }
        octet += 1;
    }
    kinds
};

/// Whether [`judge`] may say anything but no, now or when more comes, whatever is known: a test so short that it can be made of every segment.
///
/// False for nearly all that is not the beginning of a message.
#[inline]
pub(super) fn may_begin(octets: &[u8]) -> bool {
    // Shorter ones are rare, and leave open too much.
    let Some(head) = octets.first_chunk::<8>() else {
        return true;
    };
    let word = |at: usize| octets.get(at..).and_then(<[u8]>::first_chunk).copied();
    let [first, second, third, fourth, fifth, sixth, _, eighth] = *head;
    let [one, two, three] = [first, second, third].map(usize::from);
    let is_told = KINDS[0][one] & KINDS[1][two] & KINDS[2][three] != 0;
    // As numbers, the rest takes a comparison or two for most of what is nothing.
    let little = u32::from_le_bytes([first, second, third, fourth]);
    let both = u64::from_be_bytes(*head);
    let (high, low) = ((both >> 32) as u32, both as u32);
    let is_mysql = (little >> 8 == 0 && first >= 40 && fifth == 10)
        || (little == 0x0100_0020 && sixth & 0x08 != 0);
    let is_mongodb = (26..=48_000_000).contains(&little)
        && word(12)
            .is_none_or(|operation| matches!(u32::from_le_bytes(operation), 2004 | 2012 | 2013));
    let is_postgresql =
        high >> 16 == 0 && (low >> 8 == 0x300 || matches!(low, 80_877_102..=80_877_104));
    // Operations 0, 1, 4 and 5, a bit that is none, and a number of questions below 256.
    let is_dns = high >> 16 >= 12 && low & 0x5040_ff00 == 0 && (eighth <= 1 || octets.len() < 14);
    // Below 16 million octets; neither keys nor versions have come near 256.
    let is_kafka = (KAFKA_LEAST..1 << 24).contains(&high)
        && low & 0xff00_ff00 == 0
        && sixth < 100
        && eighth < 20
        && word(8).is_none_or(|[a, b, ..]| a | b == 0)
        && octets.get(13).is_none_or(|octet| *octet > 0);
    is_told || is_mysql || is_mongodb || is_postgresql || is_dns || is_kafka
}

/// What the first parser says that does not say no: one that says maybe goes before those behind it.
fn first_of(parsers: &[fn(&[u8], bool) -> Verdict], octets: &[u8], is_all: bool) -> Verdict {
    parsers
        .iter()
        .map(|parser| parser(octets, is_all))
        .find(|verdict| !matches!(verdict, Verdict::No))
        .unwrap_or(Verdict::No)
}

fn tls_alone(octets: &[u8], is_all: bool) -> Verdict {
    tls::stream(octets, is_all, Protocol::Tls)
}

/// Records of TLS without a hello, as in the middle of a connection: a change of cipher, an alert, or data.
fn tls_records(octets: &[u8], is_all: bool) -> Verdict {
    let fits = octets
        .iter()
        .take(5)
        .enumerate()
        .all(|(at, octet)| match at {
            0 => matches!(octet, 20 | 21 | 23),
            1 => *octet == 3,
            2 => (1..=3).contains(octet),
            // No record is longer than 16,640 octets.
            3 => *octet <= 65,
            _ => true,
        });
    let Some(&[kind, _, _, high, low]) = octets.first_chunk().filter(|_| fits) else {
        return if fits {
            Verdict::more(is_all)
        } else {
            Verdict::No
        };
    };
    let is_one = match (kind, u16::from_be_bytes([high, low])) {
        (20, length) => length == 1,
        // In the clear, or with a nonce, a digest and padding.
        (21, length) => length == 2 || (18..=128).contains(&length),
        (_, length) => length > 16,
    };
    if is_one {
        found(Protocol::Tls)
    } else {
        Verdict::No
    }
}

fn found(protocol: Protocol) -> Verdict {
    Verdict::Found(Application::of(protocol))
}

/// Compares octets with what must be there, as far as they go: whether they fit, and whether all of it is there.
fn fits(octets: &[u8], model: &[u8]) -> Option<bool> {
    let there = octets.len().min(model.len());
    (octets[..there] == model[..there]).then_some(there == model.len())
}

/// `SSH-2.0-...` of either side (RFC 4253, section 4.2).
fn ssh(octets: &[u8], is_all: bool) -> Verdict {
    match (fits(octets, b"SSH-2."), fits(octets, b"SSH-1.")) {
        (Some(true), _) | (_, Some(true)) => found(Protocol::Ssh),
        (None, None) => Verdict::No,
        _ => Verdict::more(is_all),
    }
}

/// A command as an array of strings, as every client of RESP sends: `*2\r\n$3\r\nGET\r\n...`.
fn redis(octets: &[u8], is_all: bool) -> Verdict {
    let mut rest = Octets(octets);
    let (elements, length) = match (resp_number(&mut rest, b'*'), resp_number(&mut rest, b'$')) {
        (Some(Some(elements)), Some(Some(length))) => (elements, length),
        (None, _) | (Some(Some(_)), None) => return Verdict::No,
        _ => return Verdict::more(is_all),
    };
    // The command's name, and no argument of kilobytes in its place.
    match rest.u8() {
        _ if elements == 0 || !(1..=32).contains(&length) => Verdict::No,
        Some(octet) if octet.is_ascii_alphabetic() => found(Protocol::Redis),
        Some(_) => Verdict::No,
        None => Verdict::more(is_all),
    }
}

/// A sign, a number of up to seven digits and the end of the line; `Some(None)` when it may be, if more comes.
fn resp_number(rest: &mut Octets<'_>, sign: u8) -> Option<Option<u32>> {
    match rest.u8() {
        None => return Some(None),
        Some(octet) if octet != sign => return None,
        Some(_) => {}
    }
    let mut value = 0;
    for digits in 0..8 {
        match rest.u8() {
            None => return Some(None),
            Some(digit @ b'0'..=b'9') if digits < 7 => value = 10 * value + u32::from(digit - b'0'),
            Some(b'\r') if digits > 0 => {
                return match rest.u8() {
                    None => Some(None),
                    Some(b'\n') => Some(Some(value)),
                    Some(_) => None,
                };
            }
            Some(_) => return None,
        }
    }
    None
}

/// A startup message, or the requests for encryption before it, then TLS (PostgreSQL's protocol, message formats).
fn postgresql(octets: &[u8], is_all: bool) -> Verdict {
    const CANCEL: u32 = 80_877_102;
    const TLS: u32 = 80_877_103;
    const GSS: u32 = 80_877_104;
    let mut rest = Octets(octets);
    let mut has_asked = false;
    loop {
        if has_asked && rest.0.first() == Some(&22) {
            return match tls::stream(rest.0, is_all, Protocol::PostgreSql) {
                Verdict::No => found(Protocol::PostgreSql),
                verdict => verdict,
            };
        }
        // At the end of a request for encryption it is known, but not yet what follows.
        let more = || match (has_asked, is_all) {
            (true, true) => found(Protocol::PostgreSql),
            _ => Verdict::more(is_all),
        };
        if rest.0.first().is_some_and(|high| *high != 0)
            || rest.0.get(1).is_some_and(|high| *high != 0)
        {
            return if has_asked {
                found(Protocol::PostgreSql)
            } else {
                Verdict::No
            };
        }
        let (Some(length), Some(code)) = (rest.u32(), rest.u32()) else {
            return more();
        };
        match (code, length) {
            (TLS | GSS, 8) => has_asked = true,
            (CANCEL, 16..=1024) => return found(Protocol::PostgreSql),
            // Protocol 3, and the name of the first parameter.
            (0x0003_0000..=0x0003_00ff, 9..=10_000) => {
                return match rest.u8() {
                    Some(letter) if letter.is_ascii_lowercase() || letter == b'_' => {
                        found(Protocol::PostgreSql)
                    }
                    Some(_) => Verdict::No,
                    None => more(),
                };
            }
            _ if has_asked => return found(Protocol::PostgreSql),
            _ => return Verdict::No,
        }
    }
}

/// The first packet of a server: protocol 10, and its version (MySQL's protocol, Protocol::HandshakeV10).
fn mysql_greeting(octets: &[u8], is_all: bool) -> Verdict {
    let head_fits = octets
        .iter()
        .take(6)
        .enumerate()
        .all(|(at, octet)| match at {
            0 => *octet >= 40,
            4 => *octet == 10,
            5 => octet.is_ascii_digit(),
            _ => *octet == 0,
        });
    if !head_fits {
        return Verdict::No;
    }
    let version = octets.get(5..).unwrap_or_default();
    let end = version.iter().position(|octet| *octet == 0);
    let shown = &version[..end.unwrap_or(version.len())];
    if shown.len() > 64 || !shown.iter().all(|octet| matches!(octet, b' '..=b'~')) {
        return Verdict::No;
    }
    match end {
        // A number of the connection, eight octets of a challenge, and a zero.
        Some(end) => match version.get(end + 13) {
            Some(0) if shown.contains(&b'.') => found(Protocol::MySql),
            Some(_) => Verdict::No,
            None => Verdict::more(is_all),
        },
        None => Verdict::more(is_all),
    }
}

/// The client's request for TLS: a login packet that ends where the user would stand. TLS follows.
fn mysql_in_tls(octets: &[u8], is_all: bool) -> Verdict {
    const HEAD: usize = 36;
    const TLS: u8 = 0x08;
    let head_fits = octets
        .iter()
        .take(6)
        .enumerate()
        .all(|(at, octet)| match at {
            0 => *octet == 32,
            3 => *octet == 1,
            5 => octet & TLS != 0,
            4 => true,
            _ => *octet == 0,
        });
    match octets.get(HEAD..) {
        _ if !head_fits => Verdict::No,
        Some([_, ..]) => match tls::stream(&octets[HEAD..], is_all, Protocol::MySql) {
            Verdict::Found(Application { tls: None, .. }) => Verdict::No,
            verdict => verdict,
        },
        _ => Verdict::more(is_all),
    }
}

/// A message: lengths little end first, then what kind of operation (MongoDB's wire protocol).
fn mongodb(octets: &[u8], is_all: bool) -> Verdict {
    const QUERY: u32 = 2004;
    const COMPRESSED: u32 = 2012;
    const MESSAGE: u32 = 2013;
    let mut rest = Octets(octets);
    let mut little = || rest.u32().map(u32::swap_bytes);
    let Some(length) = little() else {
        // No message is longer than 48 MB.
        let fits = octets.get(3).is_none_or(|high| *high <= 2);
        return if fits {
            Verdict::more(is_all)
        } else {
            Verdict::No
        };
    };
    if !(26..=48_000_000).contains(&length) {
        return Verdict::No;
    }
    let (Some(_), Some(to), Some(operation)) = (little(), little(), little()) else {
        return Verdict::more(is_all);
    };
    let (Some(first), Some(second)) = (little(), little()) else {
        return if matches!(operation, QUERY | COMPRESSED | MESSAGE) {
            Verdict::more(is_all)
        } else {
            Verdict::No
        };
    };
    let is_one = match operation {
        // Flags of three bits in use, then a section of kind 0, whose document is shorter than all.
        MESSAGE => first & !0x0001_0003 == 0 && second & 0xff == 0,
        // Flags, then the name of a collection.
        QUERY => {
            matches!(to, 0 | u32::MAX)
                && first & !0xff == 0
                && second
                    .to_le_bytes()
                    .iter()
                    .all(|octet| matches!(octet, b' '..=b'~'))
        }
        // What it was before, and its length.
        COMPRESSED => matches!(first, QUERY | MESSAGE) && second <= 48_000_000,
        _ => false,
    };
    if is_one {
        found(Protocol::MongoDb)
    } else {
        Verdict::No
    }
}

fn dns_over_tcp(octets: &[u8], is_all: bool) -> Verdict {
    dns_message(octets, is_all, None)
}

/// A DNS message behind its length (RFC 1035, section 4.2.2).
fn dns_message(octets: &[u8], is_all: bool, asked: Option<u16>) -> Verdict {
    let Some((length, message)) = octets.split_first_chunk() else {
        return Verdict::more(is_all);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    let message = &message[..message.len().min(length)];
    if length < 12 || !dns::begins(message, asked) {
        return Verdict::No;
    }
    if message.len() < length && !is_all {
        return Verdict::More;
    }
    dns::message(message, false, asked).map_or(Verdict::No, Verdict::Dns)
}

/// A request: its length, what it asks for in which version, a number, and the client's name (Kafka's protocol, request headers).
fn kafka(octets: &[u8], is_all: bool) -> Verdict {
    /// One more than the last request there is, with some to come.
    const KEYS: u16 = 100;
    const VERSIONS: u16 = 20;
    let mut rest = Octets(octets);
    let fits = octets
        .iter()
        .take(14)
        .enumerate()
        .all(|(at, octet)| match at {
            // Up to 16 MiB; the high octets of key, version and the name's length are 0.
            0 | 4 | 6 | 12 => *octet == 0,
            5 => u16::from(*octet) < KEYS,
            7 => u16::from(*octet) < VERSIONS,
            // The number begins at 0 or 1 and is counted up.
            8 | 9 => *octet == 0,
            13 => *octet > 0,
            _ => true,
        });
    if !fits {
        return Verdict::No;
    }
    let Some(length) = rest.u32() else {
        return Verdict::more(is_all);
    };
    if length < KAFKA_LEAST {
        return Verdict::No;
    }
    let (Some(_), Some(_), Some(name)) = (rest.u32(), rest.u32(), rest.u16()) else {
        return Verdict::more(is_all);
    };
    if length < 10 + u32::from(name) {
        return Verdict::No;
    }
    let there = &rest.0[..rest.0.len().min(name.into())];
    if !there.iter().all(|octet| matches!(octet, b'!'..=b'~')) {
        return Verdict::No;
    }
    if there.len() < name.into() {
        return Verdict::more(is_all);
    }
    found(Protocol::Kafka)
}

/// Whether what a side told leaves nothing to be told by the other.
pub(super) const fn is_complete(protocol: Option<Protocol>) -> bool {
    !matches!(
        protocol,
        Some(
            Protocol::Tls
                | Protocol::Http
                | Protocol::Dns
                | Protocol::Mdns
                | Protocol::Llmnr
                | Protocol::MySql
        )
    )
}
