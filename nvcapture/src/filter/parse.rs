//! From the words of an expression to the questions they stand for, on one link type.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::blocks::{Join, Node, Test};
use super::program::{
    AD_PKTTYPE, AD_VLAN_TAG, AD_VLAN_TAG_PRESENT, IND, JEQ, JGE, JGT, JSET, LD_B, LD_H, LD_IMM,
    LD_LEN, LD_W, LDX_MEM, LDX_MSH, MEMORY, NEG, SRC_X, ST, TAX, compute,
};
use super::{Error, Filter, Place, services};
use crate::LinkType;
use crate::bpf::BpfInsn;

/// Parentheses, `not` and brackets inside each other, at most.
const MAX_DEPTH: usize = 64;
/// Longest frame that is read anywhere; an offset beyond it is a mistake.
const MAX_OFFSET: u32 = 262_144;
/// First four octets of the address that marks a frame on `nv-br`, and which bits of them count in a destination.
const MARK: u32 = 0x4e65_7556;
const MARK_MASK: u32 = 0xfeff_ffff;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;

const AND: u16 = 0x54;
const SUB_X: u16 = 0x1c;
const ADD_X: u16 = 0x0c;

type Result<T> = std::result::Result<T, Error>;

/// What an expression asks.
pub(super) struct Parsed {
    pub(super) node: Node,
    /// It asks for a VLAN tag, which the kernel may have taken out of the octets.
    pub(super) asks_vlan: bool,
}

/// Reads `text`; `beside`: for frames whose first tag is told beside the octets.
pub(super) fn parse(text: &str, filter: &Filter, beside: bool) -> Result<Parsed> {
    let (off_type, off_net) = match filter.link_type {
        LinkType::ETHERNET => (12, 14),
        LinkType::LINUX_SLL => (14, 16),
        LinkType::LINUX_SLL2 => (0, 20),
        LinkType::NULL | LinkType::LOOP => (0, 4),
        LinkType::RAW | LinkType::RAW_12 | LinkType::RAW_14 | LinkType::IPV4 | LinkType::IPV6 => {
            (0, 0)
        }
        other => {
            return Err(Error::new(
                0,
                format!("not supported: filters on frames of link type {other}"),
            ));
        }
    };
    let mut parser = Parser {
        text,
        at: 0,
        filter,
        beside,
        off_type,
        off_net,
        tags: 0,
        depth: 0,
        last: None,
        operators: (0, false),
    };
    parser.space();
    let node = if parser.rest().is_empty() {
        Node::Const(true)
    } else {
        parser.expression()?
    };
    if !parser.rest().is_empty() {
        return Err(parser.expected("`and`, `or` or the end"));
    }
    Ok(Parsed {
        node,
        asks_vlan: parser.tags > 0,
    })
}

/// Whether the kernel took the first tag out of the octets.
pub(super) fn tag_is_beside() -> Node {
    not(cmp(LD_W, AD_VLAN_TAG_PRESENT, u32::MAX, 0))
}

/// What a word says of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proto {
    Ether,
    Ip,
    Ip6,
    Arp,
    Rarp,
    /// Over IPv4 and IPv6.
    Over(u8),
    /// Over IPv4 only.
    Over4(u8),
    Icmp6,
}

impl Proto {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "ether" | "link" => Self::Ether,
            "ip" => Self::Ip,
            "ip6" => Self::Ip6,
            "arp" => Self::Arp,
            "rarp" => Self::Rarp,
            "tcp" => Self::Over(6),
            "udp" => Self::Over(17),
            "sctp" => Self::Over(132),
            "ah" => Self::Over(51),
            "esp" => Self::Over(50),
            "pim" => Self::Over(103),
            "icmp" => Self::Over4(1),
            "igmp" => Self::Over4(2),
            "igrp" => Self::Over4(9),
            "vrrp" => Self::Over4(112),
            "icmp6" => Self::Icmp6,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dir {
    Src,
    Dst,
    Either,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
    Proto,
}

/// What stands before an address or number; kept for `port 80 or 443`.
#[derive(Clone, Copy, Debug)]
struct Qualifiers {
    proto: Option<Proto>,
    dir: Dir,
    kind: Kind,
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    filter: &'t Filter,
    beside: bool,
    off_type: u32,
    off_net: u32,
    tags: u32,
    depth: usize,
    last: Option<Qualifiers>,
    /// Operators of this parenthesis so far, and whether one of them is `%` or `^`.
    operators: (usize, bool),
}

/// Arithmetic.
enum Arith {
    Const(u32),
    Len,
    /// Octets at an offset from the frame's start.
    Load {
        index: Box<Arith>,
        base: u32,
        size: u16,
        /// The offset is counted from behind the IPv4 header that begins here.
        behind: Option<u32>,
    },
    Neg(Box<Arith>),
    Op(u16, Box<Arith>, Box<Arith>),
}

fn insn(code: u16, k: u32) -> BpfInsn {
    BpfInsn {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn not(node: Node) -> Node {
    Node::Not(Box::new(node))
}

fn join(join: Join, nodes: impl IntoIterator<Item = Node>) -> Node {
    let mut nodes = nodes.into_iter();
    let first = nodes.next().unwrap_or(Node::Const(join == Join::And));
    let rest: Vec<_> = nodes.map(|node| (join, node)).collect();
    if rest.is_empty() {
        first
    } else {
        Node::Chain(Box::new(first), rest)
    }
}

fn all(nodes: impl IntoIterator<Item = Node>) -> Node {
    join(Join::And, nodes)
}

fn any(nodes: impl IntoIterator<Item = Node>) -> Node {
    join(Join::Or, nodes)
}

/// One load, masked, compared.
fn ask(size: u16, at: u32, mask: u32, jump: u16, k: u32) -> Node {
    let mut load = vec![insn(size, at)];
    if mask != u32::MAX {
        load.push(insn(AND, mask));
    }
    Node::Test(Test { load, jump, k })
}

fn cmp(size: u16, at: u32, mask: u32, value: u32) -> Node {
    ask(size, at, mask, JEQ, value)
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn skip(&mut self, octets: usize) {
        self.at += octets;
        self.space();
    }

    fn found(&self) -> String {
        let rest = self.rest();
        let end = rest
            .find(|c: char| c.is_whitespace() || "()".contains(c))
            .unwrap_or(rest.len());
        match (rest.get(..end), rest.chars().next()) {
            (_, None) => "the end".into(),
            (Some(""), Some(first)) => format!("`{first}`"),
            (found, _) => format!(
                "`{}`",
                found
                    .unwrap_or_default()
                    .chars()
                    .take(40)
                    .collect::<String>()
            ),
        }
    }

    fn expected(&self, what: &str) -> Error {
        Error::new(self.at, format!("expected {what}, found {}", self.found()))
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::new(
                self.at,
                format!("more than {MAX_DEPTH} parentheses, brackets or `not` inside each other"),
            ));
        }
        Ok(())
    }

    /// The word here: letters and digits, and `-` before a letter.
    fn word(&self) -> &'t str {
        let rest = self.rest();
        let octets = rest.as_bytes();
        if !octets.first().is_some_and(u8::is_ascii_alphabetic) {
            return "";
        }
        let end = (0..octets.len()).find(|&at| {
            let joins =
                octets[at] == b'-' && octets.get(at + 1).is_some_and(u8::is_ascii_alphabetic);
            !(octets[at].is_ascii_alphanumeric() || octets[at] == b'_' || joins)
        });
        rest.get(..end.unwrap_or(octets.len())).unwrap_or_default()
    }

    /// What may be an address, a number, a range or a name.
    fn operand(&self) -> &'t str {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "_.:/-\\".contains(c)))
            .unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.word() == word;
        if found {
            self.skip(word.len());
        }
        found
    }

    fn joint(&mut self) -> Option<Join> {
        for (sign, join) in [("&&", Join::And), ("||", Join::Or)] {
            if self.rest().starts_with(sign) {
                self.skip(sign.len());
                return Some(join);
            }
        }
        if self.accept_word("and") {
            Some(Join::And)
        } else if self.accept_word("or") {
            Some(Join::Or)
        } else {
            None
        }
    }

    fn expression(&mut self) -> Result<Node> {
        let first = self.term()?;
        let mut rest = Vec::new();
        while let Some(join) = self.joint() {
            rest.push((join, self.term()?));
        }
        Ok(if rest.is_empty() {
            first
        } else {
            Node::Chain(Box::new(first), rest)
        })
    }

    fn term(&mut self) -> Result<Node> {
        self.deeper()?;
        let node = self.bare_term();
        self.depth -= 1;
        node
    }

    fn bare_term(&mut self) -> Result<Node> {
        let rest = self.rest();
        if rest.starts_with('!') && !rest.starts_with("!=") {
            self.skip(1);
            return Ok(not(self.term()?));
        }
        if rest.starts_with('(') {
            if self.is_arithmetic() {
                return self.relation();
            }
            self.skip(1);
            let node = self.expression()?;
            self.close(')')?;
            return Ok(node);
        }
        if rest.starts_with('-') {
            return self.relation();
        }
        let word = self.word();
        let after = self
            .rest()
            .get(word.len()..)
            .unwrap_or_default()
            .trim_start();
        if word == "not" {
            self.skip(3);
            return Ok(not(self.term()?));
        }
        let operand = self.operand();
        let is_number = number(operand).is_some()
            || rest.starts_with(|c: char| c.is_ascii_digit()) && !operand.contains(['.', ':', '/']);
        if is_number {
            let digits = rest
                .find(|c: char| !c.is_ascii_alphanumeric())
                .unwrap_or(rest.len());
            let after = rest.get(digits..).unwrap_or_default().trim_start();
            if computes(after) {
                return self.relation();
            }
        }
        if is_number
            || operand.parse::<Ipv4Addr>().is_ok()
            || operand.contains("::")
            || operand.matches(':').count() >= 5
            || operand.contains('/')
            || rest.starts_with(|c: char| c.is_ascii_digit() || c == '\\')
        {
            let qualifiers = match self.last {
                Some(qualifiers) => qualifiers,
                None if is_number => {
                    return Err(Error::new(
                        self.at,
                        format!("what is {operand}? write `port {operand}` or `proto {operand}`"),
                    ));
                }
                None => Qualifiers {
                    proto: None,
                    dir: Dir::Either,
                    kind: if operand.contains('/') {
                        Kind::Net
                    } else {
                        Kind::Host
                    },
                },
            };
            return self.id(qualifiers);
        }
        if word == "len" || word == "length" || constant(word).is_some() {
            return self.relation();
        }
        if let Some(proto) = Proto::named(word) {
            if after.starts_with('[') {
                return self.relation();
            }
            let start = self.at;
            self.skip(word.len());
            return self.after_proto(proto, start);
        }
        self.last = None;
        let start = self.at;
        match word {
            "src" | "dst" | "host" | "net" | "port" | "portrange" | "proto" => self.qualified(None),
            "less" | "greater" => {
                self.skip(word.len());
                let n = self.number("a number of octets")?;
                let load = vec![insn(LD_LEN, 0)];
                let test = |jump, k| Node::Test(Test { load, jump, k });
                Ok(if word == "less" {
                    not(test(JGT, n))
                } else {
                    test(JGE, n)
                })
            }
            "vlan" => {
                self.skip(4);
                self.vlan(start)
            }
            "inbound" | "outbound" => {
                self.skip(word.len());
                self.direction(word == "outbound", start)
            }
            "broadcast" | "multicast" => self.group(Some(Proto::Ether)),
            "" => Err(self.expected("a primitive such as `host 10.0.0.1`, `tcp` or `port 443`")),
            _ => Err(self.unsupported(word)),
        }
    }

    /// Why `word` does not begin a primitive.
    fn unsupported(&self, word: &str) -> Error {
        let advice = match word {
            "gateway" => "use `ether host MAC and not host ADDRESS`",
            "mpls" => "use `ether proto 0x8847`",
            "pppoes" => "use `ether proto 0x8864`",
            "pppoed" => "use `ether proto 0x8863`",
            "geneve" => "use `udp port 6081`",
            "vxlan" => "use `udp port 4789`, or 8472 where Linux chose",
            "protochain" => "use `ip6[6] = N`, or `ip6 proto N` without extension headers",
            "ifname" | "on" | "ifindex" => "use --container",
            "decnet" | "iso" | "stp" | "ipx" | "netbeui" | "atalk" | "aarp" | "lat" | "moprc"
            | "mopdl" | "llc" | "clnp" | "esis" | "isis" => {
                "compare octets, as in `ether[12:2] = N`"
            }
            "wlan" | "type" | "subtype" | "dir" | "radio" => "wireless frames are not read here",
            _ => {
                return self.expected(
                    "a primitive such as `host 10.0.0.1`, `net 10.0.0.0/8`, `tcp`, `port 443` or `vlan`",
                );
            }
        };
        Error::new(self.at, format!("not supported: `{word}`; {advice}"))
    }

    fn close(&mut self, sign: char) -> Result<()> {
        if self.rest().starts_with(sign) {
            self.skip(1);
            Ok(())
        } else {
            Err(self.expected(&format!("`{sign}`")))
        }
    }

    /// Whether the parenthesis here holds arithmetic: what follows its end tells.
    fn is_arithmetic(&self) -> bool {
        let mut open = 0_usize;
        for (at, octet) in self.rest().bytes().enumerate() {
            match octet {
                b'(' => open += 1,
                b')' => {
                    open -= 1;
                    if open == 0 {
                        let after = self.rest().get(at + 1..).unwrap_or_default();
                        return computes(after.trim_start());
                    }
                }
                _ => {}
            }
        }
        false
    }

    /// What follows the name of a protocol.
    fn after_proto(&mut self, proto: Proto, start: usize) -> Result<Node> {
        match self.word() {
            "src" | "dst" | "host" | "net" | "port" | "portrange" | "proto" => {
                self.qualified(Some((proto, start)))
            }
            "broadcast" | "multicast" => {
                self.last = None;
                self.group(Some(proto))
            }
            _ if proto == Proto::Ether => {
                Err(self.expected("`host`, `src`, `dst`, `proto`, `broadcast`, `multicast` or `[`"))
            }
            "protochain" => Err(self.unsupported("protochain")),
            _ => {
                self.last = None;
                Ok(self.is_proto(proto))
            }
        }
    }

    fn qualified(&mut self, proto: Option<(Proto, usize)>) -> Result<Node> {
        let start = proto.map_or(self.at, |(_, start)| start);
        let mut dir = None;
        for (word, other, this) in [("src", "dst", Dir::Src), ("dst", "src", Dir::Dst)] {
            if dir.is_none() && self.accept_word(word) {
                dir = Some(this);
                let here = self.at;
                match self.joint() {
                    Some(join) if self.accept_word(other) => {
                        dir = Some(if join == Join::And {
                            Dir::Both
                        } else {
                            Dir::Either
                        });
                    }
                    _ => self.at = here,
                }
            }
        }
        let kind = [
            ("host", Kind::Host),
            ("net", Kind::Net),
            ("portrange", Kind::PortRange),
            ("port", Kind::Port),
            ("proto", Kind::Proto),
        ]
        .into_iter()
        .find(|(word, _)| self.accept_word(word))
        .map(|(_, kind)| kind);
        let qualifiers = Qualifiers {
            proto: proto.map(|(proto, _)| proto),
            dir: dir.unwrap_or(Dir::Either),
            kind: kind.unwrap_or(Kind::Host),
        };
        let wrong = |what: &str| Err(Error::new(start, what));
        match (qualifiers.kind, qualifiers.proto) {
            (
                Kind::Host,
                None | Some(Proto::Ether | Proto::Ip | Proto::Ip6 | Proto::Arp | Proto::Rarp),
            )
            | (Kind::Net, None | Some(Proto::Ip | Proto::Ip6 | Proto::Arp | Proto::Rarp))
            | (Kind::Port | Kind::PortRange, None | Some(Proto::Over(6 | 17 | 132)))
            | (Kind::Proto, None | Some(Proto::Ether | Proto::Ip | Proto::Ip6)) => {}
            (Kind::Host | Kind::Net, _) => {
                return wrong(
                    "this protocol has no addresses of that kind: join the two, as in `tcp and host 10.0.0.1`",
                );
            }
            (Kind::Port | Kind::PortRange, _) => {
                return wrong("only `tcp`, `udp` and `sctp` have ports");
            }
            (Kind::Proto, _) => {
                return wrong("`proto` goes with `ether`, `ip`, `ip6` or alone");
            }
        }
        if qualifiers.kind == Kind::Proto && dir.is_some() {
            return wrong("a protocol has no direction: leave `src` or `dst` out");
        }
        self.last = Some(qualifiers);
        self.ids(qualifiers)
    }

    /// One address or number, or several in parentheses.
    fn ids(&mut self, qualifiers: Qualifiers) -> Result<Node> {
        let negated = if self.rest().starts_with('!') {
            self.skip(1);
            true
        } else {
            self.accept_word("not")
        };
        if negated {
            self.deeper()?;
            let inner = self.ids(qualifiers)?;
            self.depth -= 1;
            return Ok(not(inner));
        }
        if !self.rest().starts_with('(') {
            return self.id(qualifiers);
        }
        self.deeper()?;
        self.skip(1);
        let first = self.ids(qualifiers)?;
        let mut rest = Vec::new();
        while let Some(join) = self.joint() {
            rest.push((join, self.ids(qualifiers)?));
        }
        self.close(')')?;
        self.depth -= 1;
        Ok(Node::Chain(Box::new(first), rest))
    }

    fn id(&mut self, qualifiers: Qualifiers) -> Result<Node> {
        let start = self.at;
        let operand = self.operand();
        let text = operand.strip_prefix('\\').unwrap_or(operand);
        let Qualifiers { proto, dir, kind } = qualifiers;
        match kind {
            Kind::Host if proto == Some(Proto::Ether) => {
                let mac = mac(text)
                    .ok_or_else(|| self.expected("an address such as 02:42:ac:11:00:02"))?;
                self.skip(operand.len());
                self.ether_host(mac, dir, start)
            }
            Kind::Host | Kind::Net => self.address(qualifiers),
            Kind::Port => {
                let port = self.port(text)?;
                self.skip(operand.len());
                Ok(self.ports(proto, dir, port, port))
            }
            Kind::PortRange => {
                let (low, high) = match text.split_once('-') {
                    Some((low, high)) => (self.port(low)?, self.port(high)?),
                    None => return Err(self.expected("a range of ports such as 1024-65535")),
                };
                self.skip(operand.len());
                Ok(self.ports(proto, dir, low.min(high), low.max(high)))
            }
            Kind::Proto => {
                let value = match proto {
                    Some(Proto::Ether) => ether_type(text),
                    _ => number(text).or_else(|| match Proto::named(text) {
                        Some(Proto::Over(n) | Proto::Over4(n)) => Some(n.into()),
                        Some(Proto::Icmp6) => Some(58),
                        _ => None,
                    }),
                }
                .ok_or_else(|| self.expected("the number or name of a protocol"))?;
                let most = if proto == Some(Proto::Ether) {
                    0xffff
                } else {
                    0xff
                };
                if value > most {
                    return Err(Error::new(
                        start,
                        format!("a protocol's number is at most {most}"),
                    ));
                }
                let node = match proto {
                    Some(Proto::Ether) if value <= 1500 || value == 0x809b || value == 0x80f3 => {
                        return Err(Error::new(
                            start,
                            format!(
                                "not supported: LLC; compare octets, as in `ether[12:2] = {value}`"
                            ),
                        ));
                    }
                    Some(Proto::Ether) => self.is_type(value as u16),
                    Some(Proto::Ip) => self.over4(value as u8),
                    Some(Proto::Ip6) => self.over6(value as u8),
                    _ => any([self.over4(value as u8), self.over6(value as u8)]),
                };
                self.skip(operand.len());
                Ok(node)
            }
        }
    }

    fn port(&self, text: &str) -> Result<u16> {
        if let Some(number) = number(text) {
            return u16::try_from(number)
                .map_err(|_| Error::new(self.at, format!("port {number} is beyond 65535")));
        }
        services::port(text)
            .ok_or_else(|| self.expected("the number of a port, or the name of a well-known one"))
    }

    fn address(&mut self, Qualifiers { proto, dir, kind }: Qualifiers) -> Result<Node> {
        let start = self.at;
        let operand = self.operand();
        let (text, length) = match operand.split_once('/') {
            Some((text, length)) => (text, Some(length)),
            None => (operand, None),
        };
        if length.is_some() && kind == Kind::Host {
            return Err(Error::new(
                start,
                format!("a host has no prefix: write `net {operand}`"),
            ));
        }
        let length = |most: u32| match length {
            None => Ok(None),
            Some(length) => match length.parse::<u32>() {
                Ok(length) if length <= most => Ok(Some(length)),
                _ => Err(Error::new(
                    start + text.len() + 1,
                    format!("expected a prefix length of at most {most}"),
                )),
            },
        };
        let strays = || {
            Error::new(
                start,
                "the address has bits set beyond its prefix: leave those zero",
            )
        };
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            if !matches!(proto, None | Some(Proto::Ip6)) {
                return Err(Error::new(
                    start,
                    "an IPv6 address goes with `ip6` or alone",
                ));
            }
            let length = length(128)?.unwrap_or(128);
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            if address.to_bits() & !mask != 0 {
                return Err(strays());
            }
            self.skip(operand.len());
            return Ok(self.host6(address.to_bits(), mask, dir));
        }
        let parts: Vec<&str> = text.split('.').collect();
        let octets: Option<Vec<u8>> = parts
            .iter()
            .map(|part| {
                let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
                digits.then(|| part.parse().ok()).flatten()
            })
            .collect();
        let Some(octets) =
            octets.filter(|octets| octets.len() <= 4 && (octets.len() == 4 || kind == Kind::Net))
        else {
            if text.starts_with(|c: char| c.is_ascii_alphabetic()) && !text.contains(':') {
                return Err(Error::new(
                    start,
                    format!(
                        "names are not resolved, since one name has many addresses that change: write the address of `{text}`"
                    ),
                ));
            }
            return Err(self.expected("an IPv4 or IPv6 address"));
        };
        if !matches!(proto, None | Some(Proto::Ip | Proto::Arp | Proto::Rarp)) {
            return Err(Error::new(
                start,
                "an IPv4 address goes with `ip`, `arp`, `rarp` or alone",
            ));
        }
        let given = 8 * octets.len() as u32;
        let address = octets
            .iter()
            .zip([24, 16, 8, 0])
            .fold(0, |address, (octet, shift)| {
                address | u32::from(*octet) << shift
            });
        let prefix = length(32)?;
        self.skip(operand.len());
        let mask = if kind == Kind::Net && prefix.is_none() && self.accept_word("mask") {
            let text = self.operand();
            let mask: Ipv4Addr = text
                .parse()
                .map_err(|_| self.expected("a mask such as 255.255.0.0"))?;
            self.skip(text.len());
            mask.to_bits()
        } else {
            u32::MAX
                .checked_shl(32 - prefix.unwrap_or(given))
                .unwrap_or(0)
        };
        if address & !mask != 0 {
            return Err(strays());
        }
        let on = |parser: &Self, ether_type, src, dst| {
            let end = |offset| {
                let same = cmp(LD_W, parser.off_net + offset, mask, address);
                let same = if mask == 0 { Node::Const(true) } else { same };
                all([parser.is_type(ether_type), same])
            };
            directed(dir, || end(src), || end(dst))
        };
        Ok(match proto {
            Some(Proto::Arp) => on(self, ARP, 14, 24),
            Some(Proto::Rarp) => on(self, RARP, 14, 24),
            Some(_) => on(self, IPV4, 12, 16),
            None => any([
                on(self, IPV4, 12, 16),
                on(self, ARP, 14, 24),
                on(self, RARP, 14, 24),
            ]),
        })
    }

    fn host6(&self, address: u128, mask: u128, dir: Dir) -> Node {
        let end = |offset: u32| {
            let word = |value: u128, place: u32| (value >> (96 - 32 * place)) as u32;
            let words = (0..4).filter(|&place| word(mask, place) != 0).map(|place| {
                let at = self.off_net + offset + 4 * place;
                cmp(LD_W, at, word(mask, place), word(address, place))
            });
            all(std::iter::once(self.is_type(IPV6)).chain(words))
        };
        directed(dir, || end(8), || end(24))
    }

    fn ether_only(&self, what: &str, start: usize) -> Result<()> {
        if self.filter.link_type == LinkType::ETHERNET {
            return Ok(());
        }
        Err(Error::new(
            start,
            format!("{what} on frames of link type {}", self.filter.link_type),
        ))
    }

    fn ether_host(&self, mac: [u8; 6], dir: Dir, start: usize) -> Result<Node> {
        self.ether_only("there are no Ethernet addresses", start)?;
        if self.filter.place == Place::Marked {
            return Err(Error::new(
                start,
                "on nv-br one Ethernet address of each frame is replaced by a mark of nvcli: use `host`, or --container",
            ));
        }
        Ok(same_mac(mac, dir))
    }

    fn group(&mut self, proto: Option<Proto>) -> Result<Node> {
        let start = self.at;
        let is_broadcast = self.accept_word("broadcast");
        if !is_broadcast {
            self.accept_word("multicast");
        }
        match (proto, is_broadcast) {
            (None | Some(Proto::Ether), true) => {
                self.ether_only("there is no broadcast address", start)?;
                if self.filter.place == Place::Marked {
                    return Err(Error::new(
                        start,
                        "on nv-br the destination of a frame that enters a container is a mark of nvcli: use `multicast`, which broadcasts are too",
                    ));
                }
                Ok(same_mac([0xff; 6], Dir::Dst))
            }
            (None | Some(Proto::Ether), false) => {
                self.ether_only("there is no multicast address", start)?;
                Ok(ask(LD_B, 0, u32::MAX, JSET, 1))
            }
            (Some(Proto::Ip), false) => Ok(all([
                self.is_type(IPV4),
                ask(LD_B, self.off_net + 16, u32::MAX, JGE, 224),
            ])),
            (Some(Proto::Ip6), false) => Ok(all([
                self.is_type(IPV6),
                cmp(LD_B, self.off_net + 24, u32::MAX, 255),
            ])),
            (Some(Proto::Ip), true) => Err(Error::new(
                start,
                "not supported: `ip broadcast`, since the netmask is not known; use `dst host ADDRESS`",
            )),
            _ => Err(Error::new(
                start,
                "`broadcast` goes with `ether`; `multicast` with `ether`, `ip` or `ip6`",
            )),
        }
    }

    fn vlan(&mut self, start: usize) -> Result<Node> {
        self.ether_only("not supported: `vlan`", start)?;
        let mut nodes = Vec::new();
        let at_id = self.at;
        let id = if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            let id = self.number("a VLAN identifier")?;
            if id > 4095 {
                return Err(Error::new(at_id, "a VLAN identifier is at most 4095"));
            }
            Some(id)
        } else {
            None
        };
        let (size, at) = if self.beside && self.tags == 0 {
            (LD_W, AD_VLAN_TAG)
        } else {
            nodes.push(any([0x8100, 0x88a8, 0x9100].map(|tpid| self.is_type(tpid))));
            (LD_H, self.off_net)
        };
        nodes.extend(id.map(|id| cmp(size, at, 0x0fff, id)));
        if size == LD_H {
            self.off_type += 4;
            self.off_net += 4;
        }
        self.tags += 1;
        Ok(all(nodes))
    }

    fn direction(&self, outbound: bool, start: usize) -> Result<Node> {
        let leaves = match (self.filter.link_type, self.filter.place) {
            (LinkType::LINUX_SLL, _) => cmp(LD_H, 0, u32::MAX, 4),
            (LinkType::LINUX_SLL2, _) => cmp(LD_B, 10, u32::MAX, 4),
            (LinkType::ETHERNET, Place::Marked) => {
                let leaves = cmp(LD_W, 6, u32::MAX, MARK);
                return Ok(if outbound {
                    leaves
                } else {
                    all([not(leaves), cmp(LD_W, 0, MARK_MASK, MARK)])
                });
            }
            (_, Place::Interface) => cmp(LD_W, AD_PKTTYPE, u32::MAX, 4),
            (link_type, _) => {
                return Err(Error::new(
                    start,
                    format!(
                        "a file of link type {link_type} does not tell the direction: use `src host` or `dst host`"
                    ),
                ));
            }
        };
        Ok(if outbound { leaves } else { not(leaves) })
    }

    fn is_type(&self, ether_type: u16) -> Node {
        match self.filter.link_type {
            LinkType::RAW | LinkType::RAW_12 | LinkType::RAW_14 => match ether_type {
                IPV4 => cmp(LD_B, 0, 0xf0, 0x40),
                IPV6 => cmp(LD_B, 0, 0xf0, 0x60),
                _ => Node::Const(false),
            },
            LinkType::IPV4 => Node::Const(ether_type == IPV4),
            LinkType::IPV6 => Node::Const(ether_type == IPV6),
            LinkType::NULL | LinkType::LOOP => {
                // The order of the machine that wrote it is not known; the numbers of the systems that have written such.
                let families: &[u32] = match ether_type {
                    IPV4 => &[2],
                    IPV6 => &[10, 24, 28, 30],
                    _ => &[],
                };
                let either = families
                    .iter()
                    .flat_map(|&family| [family, family.swap_bytes()]);
                any(either.map(|family| cmp(LD_W, 0, u32::MAX, family)))
            }
            _ => cmp(LD_H, self.off_type, u32::MAX, ether_type.into()),
        }
    }

    fn over4(&self, protocol: u8) -> Node {
        all([
            self.is_type(IPV4),
            cmp(LD_B, self.off_net + 9, u32::MAX, protocol.into()),
        ])
    }

    /// Behind the fixed header or a fragment header, as libpcap looks; no other extension header is walked through.
    fn over6(&self, protocol: u8) -> Node {
        let next = |at, value: u8| cmp(LD_B, self.off_net + at, u32::MAX, value.into());
        all([
            self.is_type(IPV6),
            any([next(6, protocol), all([next(6, 44), next(40, protocol)])]),
        ])
    }

    fn is_proto(&self, proto: Proto) -> Node {
        match proto {
            Proto::Ether => Node::Const(true),
            Proto::Ip => self.is_type(IPV4),
            Proto::Ip6 => self.is_type(IPV6),
            Proto::Arp => self.is_type(ARP),
            Proto::Rarp => self.is_type(RARP),
            Proto::Over(protocol) => any([self.over4(protocol), self.over6(protocol)]),
            Proto::Over4(protocol) => self.over4(protocol),
            Proto::Icmp6 => self.over6(58),
        }
    }

    fn first_fragment(&self) -> Node {
        not(ask(LD_H, self.off_net + 6, u32::MAX, JSET, 0x1fff))
    }

    fn ports(&self, proto: Option<Proto>, dir: Dir, low: u16, high: u16) -> Node {
        let protocols: &[u8] = match proto {
            Some(Proto::Over(6)) => &[6],
            Some(Proto::Over(17)) => &[17],
            Some(Proto::Over(_)) => &[132],
            _ => &[132, 6, 17],
        };
        let within = |load: Vec<BpfInsn>| {
            let ask = |jump, k: u16| {
                Node::Test(Test {
                    load: load.clone(),
                    jump,
                    k: k.into(),
                })
            };
            if low == high {
                ask(JEQ, low)
            } else {
                all([ask(JGE, low), not(ask(JGT, high))])
            }
        };
        let end4 = |at: u32| {
            within(vec![
                insn(LDX_MSH, self.off_net),
                insn(LD_H + IND, self.off_net + at),
            ])
        };
        let end6 = |at: u32| within(vec![insn(LD_H, self.off_net + 40 + at)]);
        let over = |at: u32, ports: Node| {
            let is = |&protocol: &u8| cmp(LD_B, self.off_net + at, u32::MAX, protocol.into());
            all([any(protocols.iter().map(is)), ports])
        };
        any([
            all([
                self.is_type(IPV6),
                over(6, directed(dir, || end6(0), || end6(2))),
            ]),
            all([
                self.is_type(IPV4),
                over(
                    9,
                    all([self.first_fragment(), directed(dir, || end4(0), || end4(2))]),
                ),
            ]),
        ])
    }

    fn number(&mut self, what: &str) -> Result<u32> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len());
        let text = rest.get(..end).unwrap_or_default();
        let value = number(text).ok_or_else(|| self.expected(what))?;
        self.skip(end);
        Ok(value)
    }

    // Arithmetic.

    fn relation(&mut self) -> Result<Node> {
        self.last = None;
        let start = self.at;
        let mut checks = Vec::new();
        let left = self.computed(&mut checks)?;
        let signs = [
            ("!=", JEQ, true),
            (">=", JGE, false),
            ("<=", JGT, true),
            ("==", JEQ, false),
            ("=", JEQ, false),
            (">", JGT, false),
            ("<", JGE, true),
        ];
        let Some((sign, jump, reversed)) = signs
            .into_iter()
            .find(|(sign, ..)| self.rest().starts_with(sign))
        else {
            return Err(self.expected("`=`, `!=`, `<`, `<=`, `>` or `>=`"));
        };
        self.skip(sign.len());
        let right = self.computed(&mut checks)?;
        let test = match (left, right) {
            (Arith::Const(a), Arith::Const(b)) => Node::Const(match jump {
                JEQ => a == b,
                JGT => a > b,
                _ => a >= b,
            }),
            (Arith::Op(AND, masked, mask), Arith::Const(0))
                if jump == JEQ && matches!(*mask, Arith::Const(_)) =>
            {
                let k = if let Arith::Const(k) = *mask { k } else { 0 };
                let mut load = Vec::new();
                generate(&masked, 0, &mut load, start)?;
                not(Node::Test(Test {
                    load,
                    jump: JSET,
                    k,
                }))
            }
            (left, Arith::Const(k)) => {
                let mut load = Vec::new();
                generate(&left, 0, &mut load, start)?;
                Node::Test(Test { load, jump, k })
            }
            (left, right) => {
                let mut load = Vec::new();
                generate(&right, 0, &mut load, start)?;
                load.push(insn(ST, 0));
                generate(&left, 1, &mut load, start)?;
                load.push(insn(LDX_MEM, 0));
                if jump == JEQ {
                    load.push(insn(SUB_X, 0));
                    Node::Test(Test { load, jump, k: 0 })
                } else {
                    Node::Test(Test {
                        load,
                        jump: jump | SRC_X,
                        k: 0,
                    })
                }
            }
        };
        checks.push(if reversed { not(test) } else { test });
        Ok(all(checks))
    }

    /// Arithmetic up to a comparison or the end of its parenthesis or bracket.
    fn computed(&mut self, checks: &mut Vec<Node>) -> Result<Arith> {
        let start = self.at;
        let outside = std::mem::take(&mut self.operators);
        let arith = self.arith(0, checks)?;
        let (operators, unordered) = std::mem::replace(&mut self.operators, outside);
        if unordered && operators > 1 {
            return Err(Error::new(
                start,
                "`%` and `^` have no order among other operators: use parentheses",
            ));
        }
        Ok(arith)
    }

    /// Operators of `level` and above, from left to right.
    fn arith(&mut self, level: usize, checks: &mut Vec<Node>) -> Result<Arith> {
        const LEVELS: [&[(&str, u16)]; 5] = [
            &[("|", 0x44), ("^", 0xa4)],
            &[("&", AND)],
            &[("<<", 0x64), (">>", 0x74)],
            &[("+", 0x04), ("-", 0x14)],
            &[("*", 0x24), ("/", 0x34), ("%", 0x94)],
        ];
        let Some(operators) = LEVELS.get(level) else {
            return self.atom(checks);
        };
        let mut left = self.arith(level + 1, checks)?;
        let mut operations = 0;
        loop {
            let rest = self.rest();
            let found = operators.iter().find(|(sign, _)| rest.starts_with(sign));
            let Some(&(sign, op)) = found else {
                return Ok(left);
            };
            if rest.starts_with("&&") || rest.starts_with("||") {
                return Ok(left);
            }
            // What is left of an operator is inside it, which generating walks down.
            operations += 1;
            self.operators.0 += 1;
            self.operators.1 |= matches!(sign, "%" | "^");
            if operations > MAX_DEPTH {
                return Err(Error::new(
                    self.at,
                    format!("more than {MAX_DEPTH} operators in a row"),
                ));
            }
            self.skip(sign.len());
            let at = self.at;
            let right = self.arith(level + 1, checks)?;
            left = match (left, right) {
                (_, Arith::Const(0)) if matches!(op, 0x34 | 0x94) => {
                    return Err(Error::new(at, "division by zero"));
                }
                (_, Arith::Const(32..)) if matches!(op, 0x64 | 0x74) => {
                    return Err(Error::new(at, "a shift by more than 31 bits"));
                }
                (Arith::Const(a), Arith::Const(b)) => Arith::Const(compute(op, a, b).unwrap_or(0)),
                (_, right) if matches!(op, 0x64 | 0x74) && !matches!(right, Arith::Const(_)) => {
                    return Err(Error::new(
                        at,
                        "not supported: a shift by a computed number; use `*` or `/`",
                    ));
                }
                (left, right) => Arith::Op(op, Box::new(left), Box::new(right)),
            };
        }
    }

    fn atom(&mut self, checks: &mut Vec<Node>) -> Result<Arith> {
        self.deeper()?;
        let atom = self.bare_atom(checks);
        self.depth -= 1;
        atom
    }

    fn bare_atom(&mut self, checks: &mut Vec<Node>) -> Result<Arith> {
        let rest = self.rest();
        if rest.starts_with('(') {
            self.skip(1);
            let inner = self.computed(checks)?;
            self.close(')')?;
            return Ok(inner);
        }
        if rest.starts_with('-') {
            self.skip(1);
            return Ok(match self.atom(checks)? {
                Arith::Const(value) => Arith::Const(value.wrapping_neg()),
                other => Arith::Neg(Box::new(other)),
            });
        }
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Arith::Const(self.number("a number")?));
        }
        let word = self.word();
        if word == "len" || word == "length" {
            self.skip(word.len());
            return Ok(Arith::Len);
        }
        if let Some(value) = constant(word) {
            self.skip(word.len());
            return Ok(Arith::Const(value));
        }
        let Some(proto) = Proto::named(word) else {
            return Err(self.expected("a number, `len`, or octets such as `tcp[13]`"));
        };
        self.skip(word.len());
        if !self.rest().starts_with('[') {
            return Err(self.expected("`[`"));
        }
        self.skip(1);
        let at = self.at;
        let index = self.computed(checks)?;
        if let Arith::Const(index) = index
            && index > MAX_OFFSET
        {
            return Err(Error::new(
                at,
                format!("no frame has octets beyond {MAX_OFFSET}"),
            ));
        }
        let mut size = LD_B;
        if self.rest().starts_with(':') {
            self.skip(1);
            let at = self.at;
            size = match self.number("a size: 1, 2 or 4")? {
                1 => LD_B,
                2 => LD_H,
                4 => LD_W,
                _ => return Err(Error::new(at, "the size must be 1, 2 or 4 octets")),
            };
        }
        self.close(']')?;
        let (base, behind, check) = match proto {
            Proto::Ether => (0, None, None),
            Proto::Ip | Proto::Ip6 | Proto::Arp | Proto::Rarp => {
                (self.off_net, None, Some(self.is_proto(proto)))
            }
            Proto::Over(protocol) | Proto::Over4(protocol) => (
                self.off_net,
                Some(self.off_net),
                Some(all([self.over4(protocol), self.first_fragment()])),
            ),
            Proto::Icmp6 => {
                let next = cmp(LD_B, self.off_net + 6, u32::MAX, 58);
                (
                    self.off_net + 40,
                    None,
                    Some(all([self.is_type(IPV6), next])),
                )
            }
        };
        checks.extend(check);
        Ok(Arith::Load {
            index: Box::new(index),
            base,
            size,
            behind,
        })
    }
}

/// Leaves the value of `arith` in A; scratch memory from `depth` on is free.
fn generate(arith: &Arith, depth: u32, load: &mut Vec<BpfInsn>, start: usize) -> Result<()> {
    if depth >= MEMORY as u32 {
        return Err(Error::new(
            start,
            "more parts are computed than there is scratch memory for",
        ));
    }
    match arith {
        Arith::Const(value) => load.push(insn(LD_IMM, *value)),
        Arith::Len => load.push(insn(LD_LEN, 0)),
        Arith::Load {
            index,
            base,
            size,
            behind,
        } => match (&**index, behind) {
            (Arith::Const(index), None) => load.push(insn(*size, base + index)),
            (Arith::Const(index), Some(header)) => {
                load.extend([insn(LDX_MSH, *header), insn(size + IND, base + index)]);
            }
            (index, behind) => {
                generate(index, depth, load, start)?;
                if let Some(header) = behind {
                    load.extend([insn(LDX_MSH, *header), insn(ADD_X, 0)]);
                }
                load.extend([insn(TAX, 0), insn(size + IND, *base)]);
            }
        },
        Arith::Neg(inner) => {
            generate(inner, depth, load, start)?;
            load.push(insn(NEG, 0));
        }
        Arith::Op(op, left, right) => {
            if let Arith::Const(k) = **right {
                generate(left, depth, load, start)?;
                load.push(insn(*op, k));
            } else {
                generate(right, depth, load, start)?;
                load.push(insn(ST, depth));
                generate(left, depth + 1, load, start)?;
                load.extend([insn(LDX_MEM, depth), insn(op | SRC_X, 0)]);
            }
        }
    }
    Ok(())
}

fn directed(dir: Dir, src: impl FnOnce() -> Node, dst: impl FnOnce() -> Node) -> Node {
    match dir {
        Dir::Src => src(),
        Dir::Dst => dst(),
        Dir::Either => any([src(), dst()]),
        Dir::Both => all([src(), dst()]),
    }
}

fn same_mac([a, b, c, d, e, f]: [u8; 6], dir: Dir) -> Node {
    let end = |at: u32| {
        all([
            cmp(LD_W, at + 2, u32::MAX, u32::from_be_bytes([c, d, e, f])),
            cmp(LD_H, at, u32::MAX, u16::from_be_bytes([a, b]).into()),
        ])
    };
    directed(dir, || end(6), || end(0))
}

/// Whether what follows makes a number or a parenthesis part of arithmetic.
fn computes(after: &str) -> bool {
    let joins = after.starts_with("&&") || after.starts_with("||");
    !joins
        && (after.starts_with("!=")
            || after.starts_with(['=', '<', '>', '+', '-', '*', '/', '%', '&', '|', '^']))
}

/// Decimal, hexadecimal after `0x`, octal after `0`.
fn number(text: &str) -> Option<u32> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return (!digits.starts_with('+'))
            .then(|| u32::from_str_radix(digits, 16).ok())
            .flatten();
    }
    match text.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => (!digits.starts_with('+'))
            .then(|| u32::from_str_radix(digits, 8).ok())
            .flatten(),
        _ => text.parse().ok(),
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.len() > 2 || part.starts_with('+') {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

fn ether_type(text: &str) -> Option<u32> {
    number(text).or(match text {
        "ip" => Some(IPV4.into()),
        "ip6" => Some(IPV6.into()),
        "arp" => Some(ARP.into()),
        "rarp" => Some(RARP.into()),
        _ => None,
    })
}

/// Offsets and values that have names, as in pcap-filter(7).
fn constant(word: &str) -> Option<u32> {
    Some(match word {
        "icmptype" | "icmp6type" => 0,
        "icmpcode" | "icmp6code" => 1,
        "tcpflags" => 13,
        "tcp-fin" => 0x01,
        "tcp-syn" => 0x02,
        "tcp-rst" => 0x04,
        "tcp-push" => 0x08,
        "tcp-ack" => 0x10,
        "tcp-urg" => 0x20,
        "tcp-ece" => 0x40,
        "tcp-cwr" => 0x80,
        "icmp-echoreply" => 0,
        "icmp-unreach" => 3,
        "icmp-sourcequench" => 4,
        "icmp-redirect" => 5,
        "icmp-echo" => 8,
        "icmp-routeradvert" => 9,
        "icmp-routersolicit" => 10,
        "icmp-timxceed" => 11,
        "icmp-paramprob" => 12,
        "icmp-tstamp" => 13,
        "icmp-tstampreply" => 14,
        "icmp-ireq" => 15,
        "icmp-ireqreply" => 16,
        "icmp-maskreq" => 17,
        "icmp-maskreply" => 18,
        "icmp6-destinationunreach" => 1,
        "icmp6-packettoobig" => 2,
        "icmp6-timeexceeded" => 3,
        "icmp6-parameterproblem" => 4,
        "icmp6-echo" => 128,
        "icmp6-echoreply" => 129,
        "icmp6-multicastlistenerquery" => 130,
        "icmp6-multicastlistenerreportv1" => 131,
        "icmp6-multicastlistenerdone" => 132,
        "icmp6-routersolicit" => 133,
        "icmp6-routeradvert" => 134,
        "icmp6-neighborsolicit" => 135,
        "icmp6-neighboradvert" => 136,
        "icmp6-redirect" => 137,
        _ => return None,
    })
}
