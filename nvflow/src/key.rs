//! What makes frames belong to one connection.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nvcapture::VlanTag;
use nvcapture::wire::{Headers, Ip, Plain, Transport, TunnelKind, protocol};

use crate::Endpoint;

/// Which way a frame goes between the two ends of a [`FlowKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the lower end to the higher.
    Up = 0,
    /// From the higher end to the lower.
    Down = 1,
}

impl Direction {
    /// The other one.
    #[inline]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// What all frames of a connection share, whichever way they go: the two ends in order, the protocol, the observation point, the VLANs, the
/// virtual network, and of ICMP the kind of query.
///
/// IPv4 needs 3 words of it, IPv6 6; the first of the last two is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// IPv4: both addresses in the first word, the others 0. IPv6: lower end, higher end.
    pub(crate) addresses: [u64; 4],
    /// Ports, observation point, protocol and flags; then from the lowest bit on VLAN (12 bits), virtual network (24), ICMP type and code
    /// (16) and the customer's VLAN (12).
    pub(crate) rest: [u64; 2],
}

pub(crate) mod flag {
    pub(crate) const V6: u64 = 1;
    pub(crate) const OBSERVED: u64 = 1 << 1;
    pub(crate) const PORTS: u64 = 1 << 2;
    pub(crate) const ICMP: u64 = 1 << 3;
    pub(crate) const VLAN: u64 = 1 << 4;
    pub(crate) const NETWORK: u64 = 1 << 5;
    /// Where the customer's VLAN is in the last word.
    pub(crate) const CUSTOMER: u32 = 52;
    /// Where ICMP's type and code are there.
    pub(crate) const TYPE_CODE: u32 = 36;
    /// Always set, so that no key is all zeros.
    pub(crate) const PRESENT: u64 = 1 << 6;
    /// Where none of these is set, the last word is 0.
    pub(crate) const EXTRA: u64 = ICMP | VLAN | NETWORK;
}

/// What a key says of the observation point, as it lies in the word behind the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observed(u64);

impl Observed {
    /// That there is none.
    pub(crate) const NONE: Self = Self(0);

    /// That it is this one.
    #[inline(always)]
    pub(crate) const fn at(id: u16) -> Self {
        Self(((id as u64) << 16) | flag::OBSERVED)
    }

    /// The bits; none of others is set, which a compiler does not know by itself, and so would ask for flags that it can tell.
    #[inline(always)]
    const fn bits(self) -> u64 {
        self.0 & (0xffff << 16 | flag::OBSERVED)
    }
}

impl FlowKey {
    /// The key of a frame with `headers`, and which way the frame goes.
    ///
    /// `observation_point` is the id its marker address carries; `with_vlan` tells VLANs apart, of two tags by both. A tag of VLAN 0 says a
    /// priority and no VLAN (IEEE 802.1Q, clause 6.9).
    #[inline(always)]
    pub fn of(
        headers: &Headers<'_>,
        observation_point: Option<u16>,
        with_vlan: bool,
    ) -> (Self, Direction) {
        let observed = observation_point.map_or(Observed::NONE, Observed::at);
        Self::of_observed(headers, observed, with_vlan)
    }

    /// As [`of`](Self::of), of what was observed there.
    #[inline(always)]
    pub(crate) fn of_observed(
        headers: &Headers<'_>,
        observed: Observed,
        with_vlan: bool,
    ) -> (Self, Direction) {
        let mut flags = flag::PRESENT;
        let mut extra = 0;
        let joined =
            |source: u16, destination: u16| (u32::from(source) << 16) | u32::from(destination);
        let mut ports = 0;
        match headers.transport {
            Transport::Tcp(tcp) => {
                ports = tcp.ports();
                flags |= flag::PORTS;
            }
            Transport::Udp(udp) => {
                ports = udp.ports();
                flags |= flag::PORTS;
            }
            Transport::Ports {
                source,
                destination,
            } => {
                ports = joined(source, destination);
                flags |= flag::PORTS;
            }
            Transport::Icmp(icmp) => {
                let (icmp_type, is_query) = icmp_kind(headers.protocol, icmp.icmp_type);
                if is_query {
                    let identifier = icmp.identifier.unwrap_or(0);
                    ports = joined(identifier, identifier);
                }
                flags |= flag::ICMP;
                extra |= u64::from(u16::from_be_bytes([icmp_type, icmp.code])) << flag::TYPE_CODE;
            }
            Transport::Other => {}
        }
        if with_vlan {
            let id = |tag: Option<VlanTag>| tag.map_or(0, |tag| u64::from(tag.vlan_id()));
            let vlans = id(headers.vlan) | id(headers.inner_vlan) << flag::CUSTOMER;
            if vlans != 0 {
                flags |= flag::VLAN;
                extra |= vlans;
            }
        }
        if let Some(tunnel) = headers.tunnel
            && let Some(id) = tunnel.id
            && matches!(tunnel.kind, TunnelKind::Vxlan | TunnelKind::Geneve)
        {
            flags |= flag::NETWORK;
            extra |= u64::from(id & 0x00ff_ffff) << 12;
        }
        Self::between(
            &headers.ip,
            ports,
            observed.bits() | (u64::from(headers.protocol) << 8) | flags,
            extra,
        )
    }

    /// The key of a frame with plain headers, which tells no VLANs apart, and which way the frame goes.
    #[inline(always)]
    pub(crate) fn of_plain(plain: &Plain<'_>, observed: Observed) -> (Self, Direction) {
        let flags = flag::PRESENT | flag::PORTS;
        let ports = match plain.transport {
            Transport::Tcp(tcp) => tcp.ports(),
            Transport::Udp(udp) => udp.ports(),
            // Plain frames are of TCP or UDP.
            _ => 0,
        };
        Self::between(
            &plain.ip,
            ports,
            observed.bits() | (u64::from(plain.protocol) << 8) | flags,
            0,
        )
    }

    /// Puts both ends in order; `ports` has the sender's in the upper half, `word` and `extra` are what the key holds beside them.
    ///
    /// Which end is the lower one is as good as random, so no branch depends on it.
    #[inline(always)]
    fn between(ip: &Ip<'_>, ports: u32, word: u64, extra: u64) -> (Self, Direction) {
        let pick = |down: bool, yes: u64, no: u64| {
            let mask = u64::from(down).wrapping_neg();
            (yes & mask) | (no & !mask)
        };
        let turned = ports.rotate_left(16);
        let (addresses, down, flags) = match ip {
            Ip::V4(ip) => {
                let both = ip.addresses();
                let swapped = both.rotate_left(32);
                // By address, or else by port: of two that are turned the first halves decide, where they differ.
                let ends = |both: u64, ports: u32| (u128::from(both) << 64) | u128::from(ports);
                let down = ends(both, ports) > ends(swapped, turned);
                ([pick(down, swapped, both), 0, 0, 0], down, 0)
            }
            Ip::V6(ip) => {
                let (a, b) = (u128::from(ip.source()), u128::from(ip.destination()));
                let down = (a > b) | ((a == b) & (ports > turned));
                let [a, b] = [a, b].map(|address| [(address >> 64) as u64, address as u64]);
                let addresses = [
                    pick(down, b[0], a[0]),
                    pick(down, b[1], a[1]),
                    pick(down, a[0], b[0]),
                    pick(down, a[1], b[1]),
                ];
                (addresses, down, flag::V6)
            }
        };
        let ports = pick(down, turned.into(), ports.into());
        let key = Self {
            addresses,
            rest: [(ports << 32) | word | flags, extra],
        };
        let direction = if down { Direction::Down } else { Direction::Up };
        (key, direction)
    }

    /// The same, with neither ports nor what ICMP adds: what the fragments of one packet share.
    #[inline]
    pub(crate) const fn without_ports(mut self) -> Self {
        self.rest[0] &= 0x0000_0000_ffff_ffff & !(flag::PORTS | flag::ICMP);
        self.rest[1] &= !(0xffff << flag::TYPE_CODE);
        self
    }

    /// The same for whatever protocol above IP.
    #[inline]
    pub(crate) const fn without_protocol(mut self) -> Self {
        self.rest[0] &= !0xff00;
        self
    }

    /// Which way `direction` is by the addresses alone; one and the same where both are equal.
    pub(crate) fn way(&self, direction: Direction) -> Direction {
        let (low, high) = self.ends();
        if low.address == high.address {
            Direction::Up
        } else {
            direction
        }
    }

    #[inline]
    const fn has(&self, flag: u64) -> bool {
        self.rest[0] & flag != 0
    }

    /// Whether its addresses are IPv6.
    #[inline]
    pub const fn is_ipv6(&self) -> bool {
        self.has(flag::V6)
    }

    /// The protocol above IP.
    #[inline]
    pub const fn protocol(&self) -> u8 {
        (self.rest[0] >> 8) as u8
    }

    /// Whether there is more of it than addresses and [`rest`](Self::rest)'s first word.
    #[inline]
    pub(crate) const fn has_extra(&self) -> bool {
        self.has(flag::EXTRA)
    }

    /// Whether it is more than one word of addresses and one beside them.
    #[inline]
    pub(crate) const fn is_long(&self) -> bool {
        self.has(flag::V6 | flag::EXTRA)
    }

    /// Whether the ports of the ends are known.
    pub const fn has_ports(&self) -> bool {
        self.has(flag::PORTS)
    }

    /// The observation point.
    pub fn observation_point(&self) -> Option<u16> {
        self.has(flag::OBSERVED)
            .then_some((self.rest[0] >> 16) as u16)
    }

    /// The VLAN of the outermost tag, when the key tells VLANs apart.
    pub fn vlan_id(&self) -> Option<u16> {
        self.vlans()[0]
    }

    /// The VLAN of the second tag (IEEE 802.1ad's customer), when the key tells VLANs apart.
    pub fn customer_vlan_id(&self) -> Option<u16> {
        self.vlans()[1]
    }

    /// Both of them.
    #[inline(always)]
    pub(crate) fn vlans(&self) -> [Option<u16>; 2] {
        if !self.has(flag::VLAN) {
            return [None; 2];
        }
        [self.rest[1], self.rest[1] >> flag::CUSTOMER]
            .map(|word| Some((word & 0x0fff) as u16).filter(|id| *id != 0))
    }

    /// ICMP type and code of the query, type times 256 and code.
    pub fn icmp_type_code(&self) -> Option<u16> {
        self.has(flag::ICMP)
            .then_some((self.rest[1] >> flag::TYPE_CODE) as u16)
    }

    /// The two ends, the lower first. Ports are 0 where there are none.
    pub fn ends(&self) -> (Endpoint, Endpoint) {
        self.ends_from(0).into()
    }

    /// The end `first`, 0 being the lower and 1 the higher, and the other one.
    #[inline]
    pub(crate) fn ends_from(&self, first: usize) -> [Endpoint; 2] {
        // Turned while they are words: of two ends made, one could be picked from memory only.
        let is_turned = first != 0;
        let [a, b, c, d] = self.addresses;
        let addresses: [IpAddr; 2] = if self.is_ipv6() {
            let [a, b, c, d] = if is_turned {
                [c, d, a, b]
            } else {
                [a, b, c, d]
            };
            let v6 = |x: u64, y: u64| Ipv6Addr::from((u128::from(x) << 64) | u128::from(y));
            [v6(a, b).into(), v6(c, d).into()]
        } else {
            let both = if is_turned { a.rotate_left(32) } else { a };
            [both >> 32, both].map(|address| Ipv4Addr::from(address as u32).into())
        };
        let ports = if self.has_ports() {
            (self.rest[0] >> 32) as u32
        } else {
            0
        };
        let ports = if is_turned {
            ports.rotate_left(16)
        } else {
            ports
        };
        [
            Endpoint {
                address: addresses[0],
                port: (ports >> 16) as u16,
            },
            Endpoint {
                address: addresses[1],
                port: ports as u16,
            },
        ]
    }
}

/// Of an ICMP reply the type of its query, and whether the type is one of those that have an identifier.
#[inline]
const fn icmp_kind(protocol: u8, icmp_type: u8) -> (u8, bool) {
    match (protocol, icmp_type) {
        // Echo, timestamp, information, address mask.
        (protocol::ICMP, 8 | 13 | 15 | 17) => (icmp_type, true),
        (protocol::ICMP, 0) => (8, true),
        (protocol::ICMP, 14 | 16 | 18) => (icmp_type - 1, true),
        (protocol::ICMPV6, 128) => (128, true),
        (protocol::ICMPV6, 129) => (128, true),
        _ => (icmp_type, false),
    }
}

/// Whether an ICMP message answers a query, so that its receiver is the initiator.
#[inline]
pub(crate) const fn is_icmp_reply(protocol: u8, icmp_type: u8) -> bool {
    let (query, is_query) = icmp_kind(protocol, icmp_type);
    is_query && query != icmp_type
}

/// A keyed hash of keys, so that nobody can choose addresses and ports that collide.
///
/// Pair-multiply-shift (Dietzfelbinger; Thorup, "High speed hashing for integers and strings", 2015) over the key's twelve half words,
/// under secret numbers that SipHash-1-3 makes of the hasher's key; then a fixed permutation (of MurmurHash3), which leaves nothing of the
/// order of keys that are alike. For any two keys, chosen by whoever does not know the secret, their hashes are two independent random
/// numbers of 32 bits: a collision in any bits of them is as likely as there are such bits, whatever the keys. That holds as long as nobody is
/// told hashes, and nothing here tells them. Somebody who could time single lookups might work the secret out, which SipHash alone, at
/// many times the cost, would not let them.
#[derive(Clone, Copy)]
pub struct KeyHasher {
    /// Added to the half words before they are multiplied in pairs: a pair for each word, those of every key first.
    add: [u64; 12],
    /// Added to the sum.
    base: u64,
    /// The same, with what the words come to that are 0 in a key of IPv4.
    base_ipv4: u64,
    /// And of one that ends behind its second word.
    base_short: u64,
}

impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher { .. }") // the key stays secret
    }
}

impl KeyHasher {
    /// A hasher under `key`.
    pub const fn new(key: [u64; 2]) -> Self {
        let mut add = [0; 12];
        let mut place = 0;
        while place < add.len() {
            add[place] = siphash(key, place as u64);
            place += 1;
        }
        let base = siphash(key, add.len() as u64);
        let absent = [
            add[4].wrapping_mul(add[5]),
            add[6].wrapping_mul(add[7]),
            add[8].wrapping_mul(add[9]),
            add[10].wrapping_mul(add[11]),
        ];
        let base_ipv4 = base
            .wrapping_add(absent[1])
            .wrapping_add(absent[2])
            .wrapping_add(absent[3]);
        Self {
            add,
            base,
            base_ipv4,
            base_short: base_ipv4.wrapping_add(absent[0]),
        }
    }

    /// A hasher under a key that the operating system chose, as it does for the standard library's hash maps.
    pub fn random() -> Self {
        let source = RandomState::new();
        Self::new([source.hash_one(0_u64), source.hash_one(1_u64)])
    }

    /// The hash of `key`: 32 bits, in both halves.
    #[inline(always)]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        Self::whole(self.half(key))
    }

    /// One half of the hash of `key`.
    #[inline(always)]
    pub(crate) fn half(&self, key: &FlowKey) -> u32 {
        let [first, second, third, fourth] = key.addresses;
        let [word, extra] = key.rest;
        debug_assert!(key.is_long() || extra == 0);
        let sum = self.pair(0, first).wrapping_add(self.pair(2, word));
        // Which of the other words there are is in the second one.
        let rest = if key.is_ipv6() {
            self.base
                .wrapping_add(self.pair(4, extra))
                .wrapping_add(self.pair(6, second))
                .wrapping_add(self.pair(8, third))
                .wrapping_add(self.pair(10, fourth))
        } else if key.has_extra() {
            self.base_ipv4.wrapping_add(self.pair(4, extra))
        } else {
            self.base_short
        };
        permuted((sum.wrapping_add(rest) >> 32) as u32)
    }

    /// The hash one half of which is `half`.
    #[inline(always)]
    pub(crate) const fn whole(half: u32) -> u64 {
        ((half as u64) << 32) | half as u64
    }

    #[inline(always)]
    const fn pair(&self, place: usize, word: u64) -> u64 {
        (word >> 32)
            .wrapping_add(self.add[place])
            .wrapping_mul((word & 0xffff_ffff).wrapping_add(self.add[place + 1]))
    }
}

/// The last step of MurmurHash3 for 32 bits: each bit of `word` changes each bit of the result for half of all words.
#[inline(always)]
const fn permuted(mut word: u32) -> u32 {
    word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// SipHash-1-3 of the eight octets of `word`.
const fn siphash([a, b]: [u64; 2], word: u64) -> u64 {
    let state = [
        a ^ 0x736f_6d65_7073_6575,
        b ^ 0x646f_7261_6e64_6f6d,
        a ^ 0x6c79_6765_6e65_7261,
        b ^ 0x7465_6462_7974_6573,
    ];
    finish(compress(compress(state, word), 8 << 56))
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32);
    c = c.wrapping_add(b);
    a = a.wrapping_add(d);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[inline(always)]
const fn compress([a, b, c, d]: [u64; 4], word: u64) -> [u64; 4] {
    let [a, b, c, d] = round([a, b, c, d ^ word]);
    [a ^ word, b, c, d]
}

#[inline(always)]
const fn finish([a, b, c, d]: [u64; 4]) -> u64 {
    let [a, b, c, d] = round(round(round([a, b, c ^ 0xff, d])));
    a ^ b ^ c ^ d
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use nvcapture::wire::{Ipv4, Ipv6};
    use siphasher::sip::SipHasher13;

    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn secrets_are_made_by_siphash_1_3() {
        for word in [0, 11, u64::MAX] {
            let mut oracle = SipHasher13::new_with_keys(KEY[0], KEY[1]);
            oracle.write(&word.to_le_bytes());
            assert_eq!(siphash(KEY, word), oracle.finish());
        }
    }

    fn key(addresses: [u64; 4], rest: [u64; 2]) -> FlowKey {
        FlowKey { addresses, rest }
    }

    /// What the hash is by definition, over all half words whatever the key.
    #[test]
    fn hash_is_pair_multiply_shift() {
        let hasher = KeyHasher::new(KEY);
        let secret = |place: usize| siphash(KEY, place as u64);
        for (addresses, rest) in [
            ([0x0a00_0001_0a00_0002, 0, 0, 0], [0x1234_0000_0640, 0]),
            ([7, 0, 0, 0], [0x0140 | flag::ICMP, 5 << 36]),
            ([1, 2, 3, u64::MAX], [flag::V6 | 0xffff << 32, u64::MAX]),
            ([u64::MAX; 4], [u64::MAX; 2]),
        ] {
            let [a, b, c, d] = addresses;
            let halves = [a, rest[0], rest[1], b, c, d]
                .map(|word| [word >> 32, word & 0xffff_ffff])
                .concat();
            let sum = halves
                .chunks(2)
                .enumerate()
                .fold(secret(12), |sum, (pair, words)| {
                    let [x, y] =
                        [0, 1].map(|half| words[half].wrapping_add(secret(2 * pair + half)));
                    sum.wrapping_add(x.wrapping_mul(y))
                });
            let hash = u64::from(permuted((sum >> 32) as u32));
            assert_eq!(
                hasher.hash(&key(addresses, rest)),
                (hash << 32) | hash,
                "{addresses:x?}"
            );
        }
    }

    /// The lower end is the one with the lower address, or else port, whichever of the two sends.
    #[test]
    fn ends_are_put_in_order() {
        let numbers = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        let addresses = |v6: bool, number: u32| -> IpAddr {
            if v6 {
                // Only the lower half tells some of them apart.
                Ipv6Addr::from(u128::from(number >> 31) << 64 | u128::from(number)).into()
            } else {
                Ipv4Addr::from(number).into()
            }
        };
        let ends = |v6: bool| {
            let of = move |number| {
                [0, 1, u16::MAX].map(|port| Endpoint {
                    address: addresses(v6, number),
                    port,
                })
            };
            numbers.into_iter().flat_map(of)
        };
        for v6 in [false, true] {
            for (a, b) in ends(v6).flat_map(|a| ends(v6).map(move |b| (a, b))) {
                let mut octets = [0_u8; 40];
                for (place, end) in [a, b].iter().enumerate() {
                    match end.address {
                        IpAddr::V4(address) => {
                            octets[12 + 4 * place..][..4].copy_from_slice(&address.octets());
                        }
                        IpAddr::V6(address) => {
                            octets[8 + 16 * place..][..16].copy_from_slice(&address.octets());
                        }
                    }
                }
                let ip = if v6 {
                    Ip::V6(Ipv6::new(&octets))
                } else {
                    Ip::V4(Ipv4::new(octets.first_chunk().expect("20 octets")))
                };
                let ports = u32::from(a.port) << 16 | u32::from(b.port);
                let (key, direction) = FlowKey::between(&ip, ports, flag::PORTS, 0);
                assert_eq!(key.ends(), (a.min(b), a.max(b)), "{a:?} {b:?}");
                assert_eq!(direction == Direction::Down, a > b, "{a:?} {b:?}");
            }
        }
    }

    /// Keys that differ in little, as those of a scan do, fill buckets as random numbers would.
    #[test]
    fn keys_that_are_alike_are_spread() {
        const BUCKETS: usize = 1 << 12;
        const KEYS: u64 = 1 << 16;
        let makers: [fn(u64) -> FlowKey; 4] = [
            |n| key([0x0a00_0001_0a00_0002, 0, 0, 0], [n << 32, 0]),
            |n| key([n << 32, 0, 0, 0], [0x0640, 0]),
            |n| key([1, n, 1, 0], [flag::V6, 0]),
            |n| key([1, 1, 1, n << 48], [flag::V6, 0]),
        ];
        for (place, make) in makers.into_iter().enumerate() {
            for seed in 0..4 {
                let hasher = KeyHasher::new([seed, 0]);
                let (mut high, mut low) = (vec![0_u32; BUCKETS], [0_u32; 256]);
                for n in 0..KEYS {
                    let hash = hasher.hash(&make(n));
                    high[(hash >> 52) as usize] += 1;
                    low[hash as u8 as usize] += 1;
                }
                // Expected are 16 and 256; with random numbers these are left once in 10 million runs.
                assert!(high.iter().all(|&count| count < 50), "{place}, {seed}");
                assert!(
                    low.iter().all(|count| (150..370).contains(count)),
                    "{place}, {seed}"
                );
            }
        }
    }
}
