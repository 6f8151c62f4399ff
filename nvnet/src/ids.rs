//! The names of things: modes, ids, addresses, and the record that an attachment leaves in the kernel.

use std::fmt;
use std::str::FromStr;

/// The bridge that all mirrored frames reach.
pub const BRIDGE: &str = "nv-br";
/// How the host ends of our veth pairs begin; the id in hex follows.
pub const PORT_PREFIX: &str = "nv-in-";
/// How an original interface is called while it is attached inline; its name follows.
pub const EX_PREFIX: &str = "nv-ex-";
/// How a new interface is called before it takes its place; the id in hex follows.
pub(crate) const TMP_PREFIX: &str = "nv-tmp";
/// How the container ends of our pairs begin that copies leave by, in mirror mode without a host end; the id in hex follows.
pub const TAP_PREFIX: &str = "nv-mr-";
/// The first four octets of the addresses that mark frames on [`BRIDGE`]: `NeuV` in ASCII.
pub const MAC_PREFIX: [u8; 4] = *b"NeuV";
/// Link group of everything we make, so that it can be found and deleted together.
pub const GROUP: u32 = 0x4e65_7556;
/// Link group of what is deleted by the same message that puts it there.
pub(crate) const LEAVING: u32 = GROUP + 1;
/// Longest name of an interface, without the NUL (`IFNAMSIZ` - 1).
pub(crate) const NAME_MAX: usize = 15;

/// How frames reach the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All frames of the container pass our rules: its interface is replaced by one of ours that forwards to it.
    #[default]
    Inline,
    /// The way of the frames is not touched: rules on the host end of the container's veth pair copy them. Where there is
    /// no such end (macvlan, ipvlan), the rules are on the interface itself, and the copies leave by a pair of ours.
    Mirror,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Mirror => "mirror",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "inline" => Ok(Self::Inline),
            "mirror" => Ok(Self::Mirror),
            _ => Err(format!(
                "`{}` is no mode: inline or mirror",
                s.escape_debug()
            )),
        }
    }
}

/// The 16-bit number of an attached interface; 1 to 65,535, allocated from what the kernel shows as free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(u16);

impl AttachmentId {
    /// The id of this number; zero is none.
    pub const fn new(number: u16) -> Option<Self> {
        if number == 0 {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The address that stands for this interface on frames of [`BRIDGE`]: 4e:65:75:56:HH:LL.
    pub const fn mac(self) -> MacAddr {
        let [p0, p1, p2, p3] = MAC_PREFIX;
        let [hi, lo] = self.0.to_be_bytes();
        MacAddr([p0, p1, p2, p3, hi, lo])
    }

    /// The same with the group bit set, 4f:65:75:56:HH:LL: in the place of a broadcast or multicast address.
    pub const fn group_mac(self) -> MacAddr {
        let [first, rest @ ..] = self.mac().0;
        let [b, c, d, e, f] = rest;
        MacAddr([first | 1, b, c, d, e, f])
    }

    /// The id that a marked address carries, whether it stands for one or for a group; `None` for any other address.
    pub const fn from_mac(mac: MacAddr) -> Option<Self> {
        let [a, b, c, d, hi, lo] = mac.0;
        let [p0, p1, p2, p3] = MAC_PREFIX;
        if a & !1 == p0 && b == p1 && c == p2 && d == p3 {
            Self::new(u16::from_be_bytes([hi, lo]))
        } else {
            None
        }
    }

    /// The name of the host end of its veth pair, inline.
    pub(crate) fn port(self) -> String {
        format!("{PORT_PREFIX}{self}")
    }

    /// The name of the new container end before it takes its place.
    pub(crate) fn tmp(self) -> String {
        format!("{TMP_PREFIX}{self}")
    }

    /// The name of the container end of a pair that copies leave by.
    pub(crate) fn tap(self) -> String {
        format!("{TAP_PREFIX}{self}")
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for AttachmentId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let digits = s.len() == 4 && s.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u16::from_str_radix(s, 16).ok()).flatten();
        number
            .and_then(Self::new)
            .ok_or_else(|| format!("`{}` is no id: four hex digits, not 0000", s.escape_debug()))
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Its octets, in the order they are sent.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut octets = [0; 6];
        let mut parts = s.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or("six pairs of hex digits")?;
        }
        if parts.next().is_some() {
            Err("six pairs of hex digits".into())
        } else {
            Ok(Self(octets))
        }
    }
}

/// Whose interface it is, as far as the caller knows.
///
/// The kernel has room for a part of it, so that [`list`](crate::list) tells less than an attach was given: not to be compared for equality. An engine's
/// id is one of an attachment that is listed when it starts with the `container_id` there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The name shown for it. In a list, what fits of it: 100 octets and more, fewer of what is not ASCII.
    pub name: String,
    /// The engine's id of the container, in hex. In a list, its first 12 octets.
    pub container_id: Option<String>,
    /// A process inside, to find the namespace faster.
    pub pid: Option<u32>,
}

/// How the original interface is called while it is attached: `nv-ex-eth0`, or, when that is too long for a name,
/// `nv-ex-` and nine hex digits of a hash of it.
pub(crate) fn ex_name(interface: &str) -> String {
    let plain = format!("{EX_PREFIX}{interface}");
    if plain.len() <= NAME_MAX {
        return plain;
    }
    // FNV-1a: only has to tell the few interfaces of one container apart, and to be the same in every version.
    let hash = interface
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{EX_PREFIX}{:09x}", hash >> 28)
}

/// Whether an interface can have this name, as the kernel's `dev_valid_name` decides.
pub(crate) fn check_name(name: &str) -> Result<(), crate::Error> {
    let why = match name {
        "" => "it is empty",
        "." | ".." => "it is a directory",
        _ if name.len() > NAME_MAX => "it is longer than 15 octets",
        // A blank is what lib/ctype.c says, octet by octet: Latin-1's as well, which is also half of an `à`.
        _ if name
            .bytes()
            .any(|b| matches!(b, 0 | b'\t'..=b'\r' | b' ' | b'/' | b':')) =>
        {
            "it has a `/`, a `:` or a blank in it"
        }
        _ if name.bytes().any(|b| b == 0xa0) => {
            "it has the octet 0xa0 in it, which is a blank to the kernel"
        }
        _ => return Ok(()),
    };
    Err(crate::Error::BadName {
        name: name.escape_debug().to_string(),
        why,
    })
}

/// What is written into the kernel about an attachment: an alias of its links, or the name of its filters.
///
/// `nvcli:1 id=0001 mode=inline if=eth0 ...`: fields in any order, unknown ones ignored, values percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: AttachmentId,
    pub(crate) mode: Mode,
    pub(crate) interface: String,
    pub(crate) mac: MacAddr,
    /// Ifindex of the container's own interface.
    pub(crate) ifindex: u32,
    /// Inode of the container's namespace.
    pub(crate) netns_ino: u64,
    /// `IFLA_INET6_ADDR_GEN_MODE` of the container's own interface, to be put back.
    pub(crate) addr_gen_mode: Option<u8>,
    /// The container's own interface had a clsact qdisc before we came.
    pub(crate) had_clsact: bool,
    /// In mirror mode: ifindex of what the filters send to, the bridge or the container end of our pair.
    pub(crate) bridge: Option<u32>,
    /// In mirror mode: the filters are on the container's own interface, whose MTU this is.
    pub(crate) inside: Option<u32>,
    /// When it was attached. Unit: milliseconds since 1970.
    pub(crate) since: Option<u64>,
    pub(crate) workload: Workload,
}

const MAGIC: &str = "nvcli:1";
/// `IFALIASZ` - 1, and `CLS_BPF_NAME_LEN` - 1.
const RECORD_MAX: usize = 255;
/// Octets that are kept of an engine's id: as many as engines show.
const ID_MAX: usize = 12;

impl Record {
    /// As text of at most 255 octets: the name of the workload is cut when it does not fit.
    pub(crate) fn encode(&self) -> String {
        let mut text = format!(
            "{MAGIC} id={} mode={} if={} mac={} ifindex={} ns={}",
            self.id,
            self.mode,
            percent(&self.interface),
            self.mac,
            self.ifindex,
            self.netns_ino
        );
        if let Some(mode) = self.addr_gen_mode {
            text.push_str(&format!(" agm={mode}"));
        }
        if self.had_clsact {
            text.push_str(" clsact=1");
        }
        if let Some(bridge) = self.bridge {
            text.push_str(&format!(" br={bridge}"));
        }
        if let Some(mtu) = self.inside {
            text.push_str(&format!(" inside={mtu}"));
        }
        if let Some(since) = self.since {
            text.push_str(&format!(" since={since}"));
        }
        if let Some(pid) = self.workload.pid {
            text.push_str(&format!(" pid={pid}"));
        }
        if let Some(id) = &self.workload.container_id {
            let ends = id.char_indices().map(|(at, c)| at + c.len_utf8());
            let end = ends.take_while(|end| *end <= ID_MAX).last().unwrap_or(0);
            text.push_str(&format!(" ref={}", percent(&id[..end])));
        }
        text.push_str(" name=");
        for piece in self
            .workload
            .name
            .chars()
            .map(|c| percent(c.encode_utf8(&mut [0; 4])))
        {
            if text.len() + piece.len() > RECORD_MAX {
                break;
            }
            text.push_str(&piece);
        }
        text
    }

    /// The record in `text`, if it is one of ours.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let words = text.strip_prefix(MAGIC)?.split(' ').skip(1);
        let field = |key: &str| {
            words
                .clone()
                .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
                .map(unpercent)
        };
        let record = Self {
            id: field("id")?.parse().ok()?,
            mode: field("mode")?.parse().ok()?,
            interface: field("if")?,
            mac: field("mac")?.parse().ok()?,
            ifindex: field("ifindex")?.parse().ok()?,
            netns_ino: field("ns")?.parse().ok()?,
            addr_gen_mode: field("agm").and_then(|m| m.parse().ok()),
            had_clsact: field("clsact").is_some(),
            bridge: field("br").and_then(|b| b.parse().ok()),
            inside: field("inside").and_then(|mtu| mtu.parse().ok()),
            since: field("since").and_then(|since| since.parse().ok()),
            workload: Workload {
                name: field("name").unwrap_or_default(),
                // Of an empty one every id would be the continuation.
                container_id: field("ref").filter(|id| !id.is_empty()),
                pid: field("pid").and_then(|p| p.parse().ok()),
            },
        };
        Some(record)
    }
}

/// Letters, digits and `-_.@` as they are, all else as `%XX`.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for octet in text.bytes() {
        if octet.is_ascii_alphanumeric() || b"-_.@".contains(&octet) {
            out.push(char::from(octet));
        } else {
            out.push_str(&format!("%{octet:02x}"));
        }
    }
    out
}

/// The reverse of [`percent`]; what is no `%XX` stays as it is.
fn unpercent(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after
            .first_chunk::<2>()
            .filter(|d| first == b'%' && d.iter().all(u8::is_ascii_hexdigit));
        let value = digits
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 16).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[2..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: AttachmentId::new(0x1a2).expect("not zero"),
            mode: Mode::Inline,
            interface: "eth0".into(),
            mac: MacAddr([2, 0x42, 0xac, 0x11, 0, 2]),
            ifindex: 70_000,
            netns_ino: 4_026_532_000,
            addr_gen_mode: Some(1),
            had_clsact: true,
            bridge: Some(9),
            inside: Some(1400),
            since: Some(1_795_410_735_818),
            workload: Workload {
                name: "web-1".into(),
                container_id: Some("0123456789ab".into()),
                pid: Some(4711),
            },
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let all = record();
        assert_eq!(Record::decode(&all.encode()), Some(all.clone()));
        let few = Record {
            addr_gen_mode: None,
            had_clsact: false,
            bridge: None,
            inside: None,
            since: None,
            workload: Workload::default(),
            ..all
        };
        assert_eq!(Record::decode(&few.encode()), Some(few));
    }

    #[test]
    fn hostile_names_neither_forge_fields_nor_break_the_limit() {
        let name = "x id=ffff mode=mirror\n\x1b[31m%41é".repeat(40);
        let hostile = Record {
            interface: "a b=%".into(),
            workload: Workload {
                name: name.clone(),
                ..Workload::default()
            },
            ..record()
        };
        let text = hostile.encode();
        assert!(
            text.len() <= RECORD_MAX && text.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
            "{text}"
        );
        let back = Record::decode(&text).expect("ours");
        assert_eq!(
            (back.id, back.mode, &back.interface[..]),
            (hostile.id, Mode::Inline, "a b=%")
        );
        assert!(name.starts_with(&back.workload.name) && !back.workload.name.is_empty());
    }

    #[test]
    fn of_an_id_twelve_octets_come_back() {
        let back = |id: &str| {
            let mut given = record();
            given.workload.container_id = Some(id.into());
            let text = given.encode();
            assert!(text.len() <= RECORD_MAX, "{text}");
            let back = Record::decode(&text).expect("ours");
            back.workload.container_id.unwrap_or_default()
        };
        assert_eq!(
            Record::decode(&record().encode().replace("ref=0123456789ab", "ref="))
                .expect("ours")
                .workload
                .container_id,
            None
        );
        assert_eq!(back(&"0123456789abcdef".repeat(4)), "0123456789ab");
        assert_eq!(back("0123"), "0123");
        // No engine's: the twelfth octet is inside a character.
        assert_eq!(back(&format!("x{}", "é".repeat(99))), "xééééé");
    }

    #[test]
    fn what_is_not_ours_is_no_record() {
        for text in [
            "",
            "nvcli:1",
            "nvcli:2 id=0001",
            "uplink",
            "nvcli:1 id=0000 mode=inline if=a mac=0 ifindex=1 ns=1",
        ] {
            assert_eq!(Record::decode(text), None, "{text}");
        }
    }

    #[test]
    fn names_fit() {
        assert_eq!(ex_name("eth0"), "nv-ex-eth0");
        assert_eq!(ex_name("eth012345"), "nv-ex-eth012345");
        let (one, two) = (ex_name("eth0123456"), ex_name("eth0123457"));
        assert!(one.len() == NAME_MAX && one != two, "{one} {two}");
        assert_eq!(
            AttachmentId::new(0xffff).expect("not zero").port().len(),
            10
        );
        assert!(check_name("eth0").is_ok());
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\u{b}b",
            "voilà",
            "0123456789abcdef",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("é").is_ok());
    }

    #[test]
    fn an_id_is_its_mac() {
        let id = AttachmentId::new(0x0102).expect("not zero");
        assert_eq!(id.mac().to_string(), "4e:65:75:56:01:02");
        assert_eq!(id.group_mac().to_string(), "4f:65:75:56:01:02");
        assert_eq!(AttachmentId::from_mac(id.mac()), Some(id));
        assert_eq!(AttachmentId::from_mac(id.group_mac()), Some(id));
        assert_eq!(
            AttachmentId::from_mac(MacAddr([0x4e, 0x65, 0x75, 0x57, 1, 2])),
            None
        );
        assert_eq!(
            AttachmentId::from_mac(MacAddr([0x4e, 0x65, 0x75, 0x56, 0, 0])),
            None
        );
        assert_eq!("0102".parse(), Ok(id));
        assert!("0000".parse::<AttachmentId>().is_err() && "+102".parse::<AttachmentId>().is_err());
    }
}
