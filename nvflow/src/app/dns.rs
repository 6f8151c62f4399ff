//! DNS messages (RFC 1035), which mDNS (RFC 6762) and LLMNR (RFC 4795) share.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Dns;
use super::octets::Octets;

/// Addresses that are told of a response.
const ADDRESSES: usize = 8;
/// Records of a response that are looked through for them.
const RECORDS: u16 = 32;

/// A message, and what it tells.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: u16,
    pub(super) is_response: bool,
    /// The type that is asked for.
    pub(super) kind: u16,
    /// Addresses that the name which was asked for has, with the seconds for which that holds.
    pub(super) resolved: Vec<(IpAddr, u32)>,
    pub(super) dns: Dns,
}

/// The header of a message.
#[derive(Clone, Copy)]
struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
    authorities: u16,
    additionals: u16,
}

impl Header {
    fn read(rest: &mut Octets<'_>) -> Option<Self> {
        Some(Self {
            id: rest.u16()?,
            flags: rest.u16()?,
            questions: rest.u16()?,
            answers: rest.u16()?,
            authorities: rest.u16()?,
            additionals: rest.u16()?,
        })
    }

    const fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    const fn response_code(&self) -> u8 {
        (self.flags & 0x0f) as u8
    }

    /// Whether it can be that of a message; `asked` is the id of a query that was seen and not answered.
    fn is_sound(&self, is_multicast: bool, asked: Option<u16>) -> bool {
        let opcode = self.flags >> 11 & 0x0f;
        // Query, inverse query, notify, update; the bit Z is zero.
        if !matches!(opcode, 0 | 1 | 4 | 5) || self.flags & 0x40 != 0 {
            return false;
        }
        let few = |count: u16, most: u16| count <= most;
        if is_multicast {
            let some = self.questions > 0 || self.answers > 0 || self.authorities > 0;
            return some
                && few(self.questions, 256)
                && few(self.answers, 512)
                && few(self.authorities, 512)
                && few(self.additionals, 512);
        }
        if self.is_response() {
            // One that was refused may come back without its question.
            let has_question =
                self.questions == 1 || (self.questions == 0 && asked == Some(self.id));
            return has_question
                && few(self.answers, 4_096)
                && few(self.authorities, 256)
                && few(self.additionals, 256);
        }
        // A question of opcode 1 is in the answers.
        let has_question = self.questions == 1 || (opcode == 1 && self.questions == 0);
        has_question
            && self.response_code() == 0
            && (self.answers == 0 || opcode != 0)
            && few(self.answers, 64)
            && few(self.authorities, 64)
            && few(self.additionals, 8)
    }
}

/// Reads a message as far as it goes; `None` when it is none, or cut off before the end of its question.
///
/// `is_multicast` says that it went where mDNS or LLMNR goes; `asked` is the id of a query that was seen and not answered.
pub(super) fn message(octets: &[u8], is_multicast: bool, asked: Option<u16>) -> Option<Message> {
    let mut rest = Octets(octets);
    let header = Header::read(&mut rest)?;
    if !header.is_sound(is_multicast, asked) {
        return None;
    }
    let mut dns = Dns::default();
    let mut asked_for = 0;
    if header.questions > 0 || header.answers > 0 || header.authorities > 0 {
        let before = rest;
        let (name, kind) = about(&mut rest)?;
        dns.query_name = Some(name);
        dns.query_type = Some(type_name(kind));
        if header.questions > 0 {
            asked_for = kind;
            for _ in 1..header.questions {
                if skip_name(&mut rest).and_then(|()| rest.take(4)).is_none() {
                    rest = Octets(&[]);
                }
            }
        } else {
            // An announcement: what it is about stands for the question.
            rest = before;
        }
    }
    let mut resolved = Vec::new();
    if header.is_response() {
        if header.questions == 1 && header.response_code() == 0 && !is_multicast {
            resolve(octets, rest, header.answers, &mut resolved);
        }
        dns.response_code = Some(code_name(header.response_code()));
        dns.answer_count = Some(header.answers);
        dns.answers = addresses(rest, header.answers);
    }
    Some(Message {
        id: header.id,
        is_response: header.is_response(),
        kind: asked_for,
        resolved,
        dns,
    })
}

/// Name and type, and a class, as a question has them and a record begins with; `None` when they cannot be DNS's.
fn about(rest: &mut Octets<'_>) -> Option<(Box<str>, u16)> {
    let name = name(rest)?;
    let (kind, class) = (rest.u16()?, rest.u16()?);
    (is_type(kind) && is_class(class) && !is_netbios(&name, kind)).then_some((name, kind))
}

/// Whether octets are, as far as they go, the header of a message that is sent by itself.
pub(super) fn begins(octets: &[u8], asked: Option<u16>) -> bool {
    match Header::read(&mut Octets(octets)) {
        Some(header) => header.is_sound(false, asked),
        // The id can be anything; of the flags the first octet says the opcode, the second has Z.
        None => {
            octets
                .get(2)
                .is_none_or(|flags| matches!(flags >> 3 & 0x0f, 0 | 1 | 4 | 5))
                && octets.get(3).is_none_or(|flags| flags & 0x40 == 0)
                && octets.get(4).is_none_or(|questions| *questions == 0)
        }
    }
}

/// Whether it is the name service of NetBIOS, which has the same format: types of its own, and names in letters that stand for half an
/// octet (RFC 1002, section 4.2).
fn is_netbios(name: &str, kind: u16) -> bool {
    let label = name.split('.').next().unwrap_or_default();
    matches!(kind, 32 | 33)
        && label.len() == 32
        && label.bytes().all(|letter| matches!(letter, b'A'..=b'P'))
}

const fn is_type(number: u16) -> bool {
    matches!(number, 1..=300 | 0x8000 | 0x8001)
}

/// Whether it is a class; of the highest bit mDNS makes something else.
const fn is_class(number: u16) -> bool {
    matches!(number & 0x7fff, 1 | 3 | 4 | 254 | 255)
}

/// A name that refers to no other one, in the notation of zone files: dots and backslashes in labels are behind a backslash, and what is
/// neither UTF-8 nor printable is `\DDD`. The root is a dot.
fn name(rest: &mut Octets<'_>) -> Option<Box<str>> {
    let mut after = *rest;
    let mut text = String::new();
    let mut octets = 1;
    loop {
        let length = after.u8()?;
        if length == 0 {
            break;
        }
        octets += usize::from(length) + 1;
        if length > 63 || octets > 255 {
            return None;
        }
        let label = after.take(length.into())?;
        if !text.is_empty() {
            text.push('.');
        }
        for chunk in label.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '.' | '\\' => text.extend(['\\', c]),
                    // Writing to a String does not fail.
                    c if c.is_ascii_control() => drop(write!(text, "\\{:03}", u32::from(c))),
                    c => text.push(c),
                }
            }
            for octet in chunk.invalid() {
                let _ = write!(text, "\\{octet:03}");
            }
        }
    }
    *rest = after;
    if text.is_empty() {
        text.push('.');
    }
    Some(text.into())
}

/// Steps over a name.
fn skip_name(rest: &mut Octets<'_>) -> Option<()> {
    // As many labels as a name can have.
    for _ in 0..128 {
        match rest.u8()? {
            0 => return Some(()),
            length @ 1..=63 => rest.take(length.into())?,
            // A reference is the last part.
            0xc0.. => return rest.take(1).map(|_| ()),
            _ => return None,
        };
    }
    None
}

/// The addresses among the first of so many records.
fn addresses(mut rest: Octets<'_>, count: u16) -> Option<Box<str>> {
    let mut text = String::new();
    let mut found = 0;
    let mut next = || {
        skip_name(&mut rest)?;
        let (kind, class, _) = (rest.u16()?, rest.u16()?, rest.u32()?);
        Some((kind, class, rest.long()?))
    };
    for _ in 0..count.min(RECORDS) {
        let Some((kind, class, data)) = next() else {
            break;
        };
        let address = match (kind, <[u8; 4]>::try_from(data), <[u8; 16]>::try_from(data)) {
            _ if class & 0x7fff != 1 => continue,
            (1, Ok(octets), _) => Ipv4Addr::from(octets).to_string(),
            (28, _, Ok(octets)) => Ipv6Addr::from(octets).to_string(),
            _ => continue,
        };
        if found > 0 {
            text.push(',');
        }
        text.push_str(&address);
        found += 1;
        if found == ADDRESSES {
            break;
        }
    }
    (found > 0).then(|| text.into())
}

/// Finds the addresses of the name in the question among the first of so many records: its own, or those of what it is an alias of. What
/// other names there are in an answer does not count. Ends where the message does, or is not sound.
fn resolve<'m>(message: &'m [u8], mut rest: Octets<'m>, count: u16, out: &mut Vec<(IpAddr, u32)>) {
    let mut next = || {
        let owner = Expanded::at(message, message.len() - rest.0.len())?;
        rest = Octets(message.get(owner.end..)?);
        let (kind, class, seconds) = (rest.u16()?, rest.u16()?, rest.u32()?);
        let data = rest.long()?;
        let at = message.len() - rest.0.len() - data.len();
        Some((owner, (kind, class), seconds, (at, data)))
    };
    let Some(mut wanted) = Expanded::at(message, size_of::<[u16; 6]>()) else {
        return;
    };
    let mut longest = u32::MAX;
    for _ in 0..count.min(RECORDS) {
        let Some((owner, kind, seconds, (at, data))) = next() else {
            return;
        };
        if owner.name() != wanted.name() {
            continue;
        }
        // With the highest bit it is none (RFC 2181, section 8).
        let seconds = i32::try_from(seconds).map_or(0, i32::unsigned_abs);
        let address: IpAddr = match (kind, <[u8; 4]>::try_from(data), <[u8; 16]>::try_from(data)) {
            ((1, 1), Ok(octets), _) => Ipv4Addr::from(octets).into(),
            ((28, 1), _, Ok(octets)) => Ipv6Addr::from(octets).into(),
            ((5, 1), ..) => {
                let Some(alias) = Expanded::at(message, at) else {
                    return;
                };
                longest = longest.min(seconds);
                wanted = alias;
                continue;
            }
            _ => continue,
        };
        // Of nobody in particular: how some say that there is no such name.
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            continue;
        }
        out.push((address, seconds.min(longest)));
        if out.len() == 2 * ADDRESSES {
            return;
        }
    }
}

/// A name of a message, references followed, in lower case: to be compared.
struct Expanded {
    octets: [u8; 255],
    length: usize,
    /// Behind it in the message.
    end: usize,
}

impl Expanded {
    fn at(message: &[u8], start: usize) -> Option<Self> {
        let mut name = Self {
            octets: [0; 255],
            length: 0,
            end: 0,
        };
        let (mut at, mut before) = (start, start);
        loop {
            match *message.get(at)? {
                0 => {
                    if name.end == 0 {
                        name.end = at + 1;
                    }
                    return Some(name);
                }
                length @ 1..=63 => {
                    let label = message.get(at..=at + usize::from(length))?;
                    // The root, which ends it, is an octet too.
                    let room = name.octets[..254].get_mut(name.length..)?;
                    let room = room.get_mut(..label.len())?;
                    room.copy_from_slice(label);
                    room.make_ascii_lowercase();
                    name.length += label.len();
                    at += label.len();
                }
                high @ 0xc0.. => {
                    let low = *message.get(at + 1)?;
                    if name.end == 0 {
                        name.end = at + 2;
                    }
                    // Only back, and each time before the last one, so that there is an end.
                    at = usize::from(u16::from_be_bytes([high & 0x3f, low]));
                    if at >= before {
                        return None;
                    }
                    before = at;
                }
                _ => return None,
            }
        }
    }

    fn name(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

/// The name of a type; `TYPE123` of one that has none here (RFC 3597).
fn type_name(number: u16) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        10 => "NULL",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        17 => "RP",
        18 => "AFSDB",
        24 => "SIG",
        25 => "KEY",
        28 => "AAAA",
        29 => "LOC",
        33 => "SRV",
        35 => "NAPTR",
        36 => "KX",
        37 => "CERT",
        39 => "DNAME",
        41 => "OPT",
        43 => "DS",
        44 => "SSHFP",
        45 => "IPSECKEY",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        49 => "DHCID",
        50 => "NSEC3",
        51 => "NSEC3PARAM",
        52 => "TLSA",
        53 => "SMIMEA",
        59 => "CDS",
        60 => "CDNSKEY",
        61 => "OPENPGPKEY",
        62 => "CSYNC",
        63 => "ZONEMD",
        64 => "SVCB",
        65 => "HTTPS",
        99 => "SPF",
        249 => "TKEY",
        250 => "TSIG",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        256 => "URI",
        257 => "CAA",
        other => return Cow::Owned(format!("TYPE{other}")),
    })
}

/// The name of a response code; `RCODE12` of one that has none.
fn code_name(number: u8) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        11 => "DSOTYPENI",
        other => return Cow::Owned(format!("RCODE{other}")),
    })
}
