//! What makes an interface the container's: addresses, routes, neighbours. Read as the kernel's own octets and put onto
//! another link with nothing changed but the link's number, so that what this code does not know is not lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::Error;
use crate::attr;
use crate::link::Link;
use crate::socket::{ADD, Answer, CREATE, Request, RouteSocket};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Octets of `struct ifaddrmsg`, `rtmsg`, `ndmsg` and `nhmsg`.
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const NDMSG: usize = 12;
const NHMSG: usize = 8;

mod ifa {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
    pub(super) const LABEL: u16 = 3;
    pub(super) const CACHEINFO: u16 = 6;
    pub(super) const FLAGS: u16 = 8;
    /// `IFA_F_TEMPORARY`: a privacy address (RFC 8981), which only the kernel makes.
    pub(super) const F_TEMPORARY: u32 = 0x01;
    pub(super) const F_NODAD: u32 = 0x02;
    pub(super) const F_TENTATIVE: u32 = 0x40;
}

mod rta {
    pub(super) const DST: u16 = 1;
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const MULTIPATH: u16 = 9;
    pub(super) const CACHEINFO: u16 = 12;
    pub(super) const TABLE: u16 = 15;
    pub(super) const VIA: u16 = 18;
    pub(super) const EXPIRES: u16 = 23;
    pub(super) const NH_ID: u16 = 30;
    /// `RTNH_F_PERVASIVE` and `RTNH_F_ONLINK`: the flags a request may carry; the rest is state.
    pub(super) const F_SETTABLE: u32 = 2 | 4;
    /// `RTNH_F_ONLINK`.
    pub(super) const F_ONLINK: u32 = 4;
    /// `RTM_F_CLONED`: a cached copy.
    pub(super) const F_CLONED: u32 = 0x200;
    pub(super) const TABLE_LOCAL: u32 = 255;
    pub(super) const PROT_KERNEL: u8 = 2;
    /// Clock ticks a second in `rta_cacheinfo`, `USER_HZ`.
    pub(super) const USER_HZ: u32 = 100;
}

mod nda {
    pub(super) const DST: u16 = 1;
    pub(super) const LLADDR: u16 = 2;
    pub(super) const CACHEINFO: u16 = 3;
    pub(super) const PROBES: u16 = 4;
    pub(super) const REACHABLE: u16 = 0x02;
    pub(super) const STALE: u16 = 0x04;
    pub(super) const DELAY: u16 = 0x08;
    pub(super) const PROBE: u16 = 0x10;
    pub(super) const PERMANENT: u16 = 0x80;
    pub(super) const F_PROXY: u8 = 0x08;
    pub(super) const F_ROUTER: u8 = 0x80;
}

mod nha {
    pub(super) const ID: u16 = 1;
    pub(super) const GROUP: u16 = 2;
    pub(super) const GROUP_TYPE: u16 = 3;
    pub(super) const OIF: u16 = 5;
    /// Octets of `struct nexthop_grp`, which begins with a next hop's id.
    pub(super) const MEMBER: usize = 8;
}

/// The kernel's octets of one address, route or neighbour, behind the netlink header.
type Raw = Vec<u8>;

/// All that is moved when one link takes another's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    addresses4: Vec<Raw>,
    addresses6: Vec<Raw>,
    routes: Vec<Raw>,
    neighbours: Vec<Raw>,
    nexthops: Vec<Raw>,
    /// Groups of next hops, and routes by such objects: they follow the next hops by themselves as long as those live.
    /// Read by [`with_followers`](Self::with_followers) alone.
    groups: Vec<Raw>,
    followers: Vec<Raw>,
}

/// Every address, route, neighbour and next hop of a namespace, as its kernel lists them. Read once for as many links as are
/// looked at: most of the time that reading takes is the way there and back.
pub(crate) struct Everything(Identity);

impl Everything {
    /// What the socket's namespace has now.
    pub(crate) fn read(socket: &mut RouteSocket) -> Result<Self, Error> {
        let mut all = Identity::addresses(socket)?;
        for family in [AF_INET, AF_INET6] {
            let mut request = vec![0; RTMSG];
            request[0] = family;
            let routes = dump(socket, "list routes", RTM_GETROUTE, RTM_NEWROUTE, request)?;
            all.routes.extend(routes.filter(|body| body.len() >= RTMSG));
        }
        // A route by a gateway can be added only where the gateway is reached, so those that need none come first.
        all.routes.sort_by_key(|route| route_needs_gateway(route));

        for flags in [0, nda::F_PROXY] {
            let mut request = vec![0; NDMSG];
            request[10] = flags;
            let neighbours = dump(
                socket,
                "list neighbours",
                RTM_GETNEIGH,
                RTM_NEWNEIGH,
                request,
            )?;
            all.neighbours.extend(neighbours.filter(|body| {
                let family = body.first();
                body.len() >= NDMSG
                    && family.is_some_and(|family| [AF_INET, AF_INET6].contains(family))
            }));
        }

        match dump(
            socket,
            "list next hops",
            RTM_GETNEXTHOP,
            RTM_NEWNEXTHOP,
            vec![0; NHMSG],
        ) {
            Ok(nexthops) => all
                .nexthops
                .extend(nexthops.filter(|body| body.len() >= NHMSG)),
            // Next hop objects came with Linux 5.3.
            Err(Error::Refused { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {}
            Err(error) => return Err(error),
        }
        Ok(Self(all))
    }

    /// What belongs to any of these links and is moved with them, in the order the kernel lists it.
    pub(crate) fn of(&self, links: &[u32]) -> Identity {
        let on = |index: Option<u32>| index.is_some_and(|index| links.contains(&index));
        // Addresses and neighbours have the link's number at the same place.
        let there = |body: &Raw| on(body.get(4..).and_then(attr::u32_of));
        let take = |all: &[Raw], is: &dyn Fn(&Raw) -> bool| -> Vec<Raw> {
            all.iter().filter(|body| is(body)).cloned().collect()
        };
        let all = &self.0;
        Identity {
            addresses4: take(&all.addresses4, &there),
            addresses6: take(&all.addresses6, &there),
            routes: take(&all.routes, &|body| route_is_moved(body, &on)),
            neighbours: take(&all.neighbours, &|body| {
                there(body) && neighbour_is_moved(body)
            }),
            nexthops: take(&all.nexthops, &|body| {
                on(attr::find_u32(&body[NHMSG..], nha::OIF))
            }),
            ..Identity::default()
        }
    }
}

impl Identity {
    /// The addresses of all links, and nothing else.
    fn addresses(socket: &mut RouteSocket) -> Result<Self, Error> {
        let mut all = Self::default();
        for body in dump(
            socket,
            "list addresses",
            RTM_GETADDR,
            RTM_NEWADDR,
            vec![0; IFADDRMSG],
        )? {
            if body.len() >= IFADDRMSG {
                match body[0] {
                    AF_INET => all.addresses4.push(body),
                    AF_INET6 => all.addresses6.push(body),
                    _ => {}
                }
            }
        }
        // The kernel puts a new IPv6 address before those of its scope, so the last one listed was the first one added.
        all.addresses6.reverse();
        Ok(all)
    }

    /// The addresses of any of these links.
    pub(crate) fn read_addresses(socket: &mut RouteSocket, links: &[u32]) -> Result<Self, Error> {
        Ok(Everything(Self::addresses(socket)?).of(links))
    }

    /// What belongs to any of these links.
    pub(crate) fn read(socket: &mut RouteSocket, links: &[u32]) -> Result<Self, Error> {
        Ok(Everything::read(socket)?.of(links))
    }

    /// The IPv6 addresses, to be added to `link` before the switch, without waiting for duplicates to answer.
    pub(crate) fn early(&self, link: u32) -> Vec<Request> {
        self.addresses6
            .iter()
            .map(|raw| add_address(raw, link, ifa::F_NODAD))
            .collect()
    }

    /// Whether all IPv6 addresses are usable on `link`: the kernel makes their local routes a moment after the address.
    pub(crate) fn early_is_done(&self, socket: &mut RouteSocket, link: u32) -> Result<bool, Error> {
        if self.addresses6.is_empty() {
            return Ok(true);
        }
        let mut request = vec![0; RTMSG];
        request[0] = AF_INET6;
        let mut local = BTreeSet::new();
        for body in dump(socket, "list routes", RTM_GETROUTE, RTM_NEWROUTE, request)? {
            if body.len() < RTMSG || table(&body) != rta::TABLE_LOCAL || body[1] != 128 {
                continue;
            }
            let attrs = &body[RTMSG..];
            if attr::find_u32(attrs, rta::OIF) == Some(link) {
                local.extend(attr::find(attrs, rta::DST).map(<[u8]>::to_vec));
            }
        }
        Ok(self
            .addresses6
            .iter()
            .filter_map(|raw| address(raw))
            .all(|address| local.contains(address)))
    }

    /// IPv4 addresses and all routes, onto `to`.
    pub(crate) fn arrive(&self, from: u32, to: u32) -> Vec<Request> {
        let mut requests: Vec<Request> = self
            .addresses4
            .iter()
            .map(|raw| add_address(raw, to, 0))
            .collect();
        // Next hop objects are changed in place: the routes that name them follow.
        requests.extend(
            self.nexthops
                .iter()
                .map(|raw| replace_nexthop(&with_attr_u32(raw, NHMSG, nha::OIF, to))),
        );
        requests.extend(self.routes.iter().map(|raw| {
            let flags = if spans_links(raw, &[from, to]) {
                ADD | NLM_F_REPLACE
            } else {
                ADD | NLM_F_APPEND
            };
            // IPv6 needs no flag to stand beside the old one, and takes APPEND for "make it one route of two paths".
            let flags = if raw[0] == AF_INET6 && flags & NLM_F_REPLACE == 0 {
                ADD
            } else {
                flags
            };
            let body = route_on(raw, &|index| if index == from { to } else { index });
            Request::raw(
                format!("add {}", route_name(raw)),
                RTM_NEWROUTE,
                flags,
                body,
            )
            .accepting(&[libc::EEXIST])
        }));
        requests
    }

    /// The old routes go: from here on packets wait for a neighbour on the new link, which is what keeps them from loss.
    pub(crate) fn leave(&self, from: u32, to: u32) -> Vec<Request> {
        let routes = self
            .routes
            .iter()
            .filter(|raw| !spans_links(raw, &[from, to]));
        routes
            .map(|raw| {
                let body = route_on(raw, &|index| if index == to { from } else { index });
                Request::raw(format!("delete {}", route_name(raw)), RTM_DELROUTE, 0, body)
                    .accepting(&[libc::ESRCH, libc::ENOENT, libc::ENODEV])
            })
            .collect()
    }

    /// Neighbours onto `to`, which lets waiting packets go, and off `from`.
    pub(crate) fn neighbours(&self, from: u32, to: u32) -> Vec<Request> {
        let add = self.neighbours.iter().map(|raw| add_neighbour(raw, to));
        let delete = self.neighbours.iter().map(|raw| {
            let body = neighbour_on(raw, from);
            Request::raw(
                format!("delete neighbour {}", neighbour_name(raw)),
                RTM_DELNEIGH,
                0,
                body,
            )
            .accepting(&[libc::ENOENT, libc::ESRCH, libc::ENODEV])
        });
        add.chain(delete).collect()
    }

    /// All addresses off `from`; then the flags of those on `to` as they were.
    pub(crate) fn settle(&self, from: u32, to: u32) -> Vec<Request> {
        let delete = self.addresses4.iter().chain(&self.addresses6).map(|raw| {
            let body = address_on(raw, from, &[ifa::CACHEINFO, ifa::FLAGS, ifa::LABEL], None);
            Request::raw(
                format!("delete address {}", address_name(raw)),
                RTM_DELADDR,
                0,
                body,
            )
            .accepting(&[libc::EADDRNOTAVAIL, libc::ENODEV])
        });
        delete.chain(self.flags(to)).collect()
    }

    /// The IPv6 addresses on `to` with the flags that they had.
    fn flags(&self, to: u32) -> impl Iterator<Item = Request> {
        self.addresses6.iter().map(move |raw| {
            let body = address_on(raw, to, &[], Some(address_flags(raw) & !ifa::F_TENTATIVE));
            Request::raw(
                format!("restore address {}", address_name(raw)),
                RTM_NEWADDR,
                ADD | NLM_F_REPLACE,
                body,
            )
        })
    }

    /// What cannot be learnt again, with what follows next hop objects: all that has to be kept in case that the link which
    /// has it is deleted.
    pub(crate) fn with_followers(&self, socket: &mut RouteSocket) -> Result<Self, Error> {
        let mut kept = self.clone();
        kept.neighbours.retain(|raw| is_configured(raw));
        if self.nexthops.is_empty() {
            return Ok(kept);
        }
        let id = |raw: &Raw| attr::find_u32(&raw[NHMSG..], nha::ID);
        let mut ids: BTreeSet<u32> = self.nexthops.iter().filter_map(id).collect();
        let all = dump(
            socket,
            "list next hops",
            RTM_GETNEXTHOP,
            RTM_NEWNEXTHOP,
            vec![0; NHMSG],
        )?;
        for mut body in all.filter(|body| body.len() >= NHMSG) {
            let members = attr::find(&body[NHMSG..], nha::GROUP).unwrap_or_default();
            let mut members = members.chunks(nha::MEMBER).filter_map(attr::u32_of);
            if members.any(|member| ids.contains(&member)) {
                // The rest is state.
                let wanted = [nha::ID, nha::GROUP, nha::GROUP_TYPE];
                body = only_attrs(&body, NHMSG, |kind| wanted.contains(&kind));
                kept.groups.push(body);
            }
        }
        ids.extend(kept.groups.iter().filter_map(id));
        for family in [AF_INET, AF_INET6] {
            let mut request = vec![0; RTMSG];
            request[0] = family;
            for body in dump(socket, "list routes", RTM_GETROUTE, RTM_NEWROUTE, request)? {
                let by = body
                    .get(RTMSG..)
                    .and_then(|attrs| attr::find_u32(attrs, rta::NH_ID));
                if by.is_some_and(|by| ids.contains(&by)) {
                    // Beside the object the kernel lists what it leads to, for programs that do not know such.
                    let told = [rta::OIF, rta::GATEWAY, rta::VIA, rta::MULTIPATH];
                    kept.followers
                        .push(only_attrs(&body, RTMSG, |kind| !told.contains(&kind)));
                }
            }
        }
        Ok(kept)
    }

    /// All that [`with_followers`](Self::with_followers) gave, back onto the link that it was read from; what [`early`](Self::early)
    /// adds is there.
    pub(crate) fn restore(&self, link: u32) -> Vec<Request> {
        let mut requests = self.arrive(link, link);
        requests.extend(self.groups.iter().map(|raw| replace_nexthop(raw)));
        requests.extend(self.followers.iter().map(|raw| {
            let name = format!("add {}", route_name(raw));
            Request::raw(name, RTM_NEWROUTE, ADD, route_on(raw, &|index| index))
                .accepting(&[libc::EEXIST])
        }));
        requests.extend(self.neighbours.iter().map(|raw| add_neighbour(raw, link)));
        requests.extend(self.flags(link));
        requests
    }

    /// All of it, one after the other, as octets.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        for (kind, raws) in (0u8..).zip(self.parts()) {
            for raw in raws {
                // The kernel made it, as one message of a dump.
                let len = u32::try_from(raw.len()).expect("a message is shorter than 4 GiB");
                octets.push(kind);
                octets.extend(len.to_ne_bytes());
                octets.extend(raw);
            }
        }
        octets
    }

    /// What [`encode`](Self::encode) made; `None` when it is something else.
    pub(crate) fn decode(mut octets: &[u8]) -> Option<Self> {
        let mut identity = Self::default();
        while let Some((&[kind, ref len @ ..], rest)) = octets.split_first_chunk::<5>() {
            let len = usize::try_from(u32::from_ne_bytes(*len)).ok()?;
            let raw = rest.get(..len)?;
            let (to, head) = match kind {
                0 => (&mut identity.addresses4, IFADDRMSG),
                1 => (&mut identity.addresses6, IFADDRMSG),
                2 => (&mut identity.routes, RTMSG),
                3 => (&mut identity.neighbours, NDMSG),
                4 => (&mut identity.nexthops, NHMSG),
                5 => (&mut identity.groups, NHMSG),
                6 => (&mut identity.followers, RTMSG),
                _ => return None,
            };
            to.push(Some(raw.to_vec()).filter(|raw| raw.len() >= head)?);
            octets = &rest[len..];
        }
        octets.is_empty().then_some(identity)
    }

    fn parts(&self) -> [&[Raw]; 7] {
        [
            &self.addresses4,
            &self.addresses6,
            &self.routes,
            &self.neighbours,
            &self.nexthops,
            &self.groups,
            &self.followers,
        ]
    }

    /// What a person would compare: one line for each thing, without what changes by itself (lifetimes, dynamic
    /// neighbours) and without the link's number.
    pub(crate) fn describe(&self, links: &[u32]) -> BTreeSet<String> {
        let same = |index: u32| if links.contains(&index) { 0 } else { index };
        let mut lines = BTreeSet::new();
        let lasting = |raw: &&Raw| !is_temporary(raw);
        for raw in self
            .addresses4
            .iter()
            .chain(&self.addresses6)
            .filter(lasting)
        {
            let forever = attr::find(&raw[IFADDRMSG..], ifa::CACHEINFO)
                .and_then(|info| info.get(4..))
                .and_then(attr::u32_of)
                .is_none_or(|valid| valid == u32::MAX);
            let body = address_on(
                raw,
                0,
                &[ifa::CACHEINFO],
                Some(address_flags(raw) & !ifa::F_TENTATIVE),
            );
            let finite = if forever { "" } else { " with a lifetime" };
            lines.insert(format!(
                "address {}{finite} [{}]",
                address_name(raw),
                hex(&body)
            ));
        }
        for raw in &self.routes {
            lines.insert(format!(
                "{} [{}]",
                route_name(raw),
                hex(&route_key(raw, &same))
            ));
        }
        for raw in &self.neighbours {
            if is_configured(raw) {
                lines.insert(format!(
                    "neighbour {} [{}]",
                    neighbour_name(raw),
                    hex(&neighbour_on(raw, 0))
                ));
            }
        }
        for raw in &self.nexthops {
            let id = attr::find_u32(&raw[NHMSG..], nha::ID).unwrap_or_default();
            lines.insert(format!(
                "next hop {id} [{}]",
                hex(&with_attr_u32(raw, NHMSG, nha::OIF, 0))
            ));
        }
        lines
    }

    /// Requests that take away what `links` have and `wanted` has not: routes that the kernel made by itself.
    pub(crate) fn surplus(&self, wanted: &Self, links: &[u32]) -> Vec<Request> {
        let same = |index: u32| if links.contains(&index) { 0 } else { index };
        let wanted: BTreeSet<Raw> = wanted
            .routes
            .iter()
            .map(|raw| route_key(raw, &same))
            .collect();
        let surplus = self
            .routes
            .iter()
            .filter(|raw| raw[5] == rta::PROT_KERNEL && !wanted.contains(&route_key(raw, &same)));
        surplus
            .map(|raw| {
                let body = route_on(raw, &|index| index);
                Request::raw(format!("delete {}", route_name(raw)), RTM_DELROUTE, 0, body)
                    .accepting(&[libc::ESRCH])
            })
            .collect()
    }

    /// Without the addresses that `holder` and another link have both: those on the other one are there in advance, for
    /// an exchange that did not come.
    pub(crate) fn of_holder(mut self, holder: u32) -> Self {
        for addresses in [&mut self.addresses4, &mut self.addresses6] {
            let key = |raw: &Raw| (address(raw).map(<[u8]>::to_vec), raw[1]);
            let on_holder = |raw: &Raw| attr::u32_of(&raw[4..]) == Some(holder);
            let held: BTreeSet<_> = addresses
                .iter()
                .filter(|raw| on_holder(raw))
                .map(key)
                .collect();
            addresses.retain(|raw| on_holder(raw) || !held.contains(&key(raw)));
        }
        self
    }

    /// The first IPv4 address.
    pub(crate) fn ipv4(&self) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = address(self.addresses4.first()?)?.try_into().ok()?;
        Some(octets.into())
    }

    /// Whether the kernel made temporary IPv6 addresses.
    pub(crate) fn has_temporary(&self) -> bool {
        self.addresses6.iter().any(|raw| is_temporary(raw))
    }

    /// The temporary IPv6 addresses as [`describe`](Self::describe) would have them on a link that they were moved to.
    pub(crate) fn temporary(&self) -> BTreeSet<String> {
        let temporary = self.addresses6.iter().filter(|raw| is_temporary(raw));
        temporary
            .map(|raw| format!("address {} with a lifetime", address_name(raw)))
            .collect()
    }

    /// Addresses, for messages.
    pub(crate) fn address_count(&self) -> usize {
        self.addresses4.len() + self.addresses6.len()
    }

    /// Routes, for messages.
    pub(crate) fn route_count(&self) -> usize {
        self.routes.len()
    }
}

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_APPEND: u16 = 0x800;
const _: () = assert!(CREATE & ADD == ADD);

fn dump(
    socket: &mut RouteSocket,
    op: &str,
    get: u16,
    new: u16,
    body: Vec<u8>,
) -> Result<impl Iterator<Item = Raw>, Error> {
    let answers = socket.dump(&Request::raw(op, get, 0, body))?;
    Ok(answers
        .into_iter()
        .filter(move |Answer { kind, .. }| *kind == new)
        .map(|answer| answer.body))
}

/// The same message with one 32-bit attribute changed.
fn with_attr_u32(raw: &[u8], head: usize, kind: u16, value: u32) -> Raw {
    let mut body = raw[..head].to_vec();
    for (k, v) in attr::attrs(&raw[head..]) {
        if k == kind {
            attr::push(&mut body, k, &value.to_ne_bytes());
        } else {
            attr::push(&mut body, k, v);
        }
    }
    body
}

/// The same message with some of its attributes.
fn only_attrs(raw: &[u8], head: usize, wanted: impl Fn(u16) -> bool) -> Raw {
    let mut body = raw[..head].to_vec();
    for (kind, value) in attr::attrs(&raw[head..]).filter(|(kind, _)| wanted(*kind)) {
        attr::push(&mut body, kind, value);
    }
    body
}

/// Makes a next hop object or a group, or changes it in place.
fn replace_nexthop(raw: &[u8]) -> Request {
    let mut body = raw.to_vec();
    // A dump tells the scope and the state of a next hop; a request may not.
    body[1] = 0;
    body[3] = 0;
    let flags = attr::u32_of(&raw[4..]).unwrap_or_default() & rta::F_ONLINK;
    body[4..8].copy_from_slice(&flags.to_ne_bytes());
    let id = attr::find_u32(&raw[NHMSG..], nha::ID).unwrap_or_default();
    let op = format!("move next hop {id}");
    Request::raw(op, RTM_NEWNEXTHOP, ADD | NLM_F_REPLACE, body)
}

fn add_neighbour(raw: &[u8], link: u32) -> Request {
    let op = format!("add neighbour {}", neighbour_name(raw));
    let body = neighbour_on(raw, link);
    Request::raw(op, RTM_NEWNEIGH, ADD | NLM_F_REPLACE, body)
}

/// Whether somebody configured the neighbour, so that the kernel does not learn it by itself.
fn is_configured(raw: &[u8]) -> bool {
    let state = u16::from_ne_bytes([raw[8], raw[9]]);
    state & nda::PERMANENT != 0 || raw[10] & nda::F_PROXY != 0
}

fn address(raw: &[u8]) -> Option<&[u8]> {
    let attrs = &raw[IFADDRMSG..];
    attr::find(attrs, ifa::LOCAL).or_else(|| attr::find(attrs, ifa::ADDRESS))
}

fn address_name(raw: &[u8]) -> String {
    format!("{}/{}", ip(address(raw)), raw[1])
}

fn address_flags(raw: &[u8]) -> u32 {
    attr::find_u32(&raw[IFADDRMSG..], ifa::FLAGS).unwrap_or(u32::from(raw[2]))
}

fn is_temporary(raw: &[u8]) -> bool {
    raw[0] == AF_INET6 && address_flags(raw) & ifa::F_TEMPORARY != 0
}

fn address_on(raw: &[u8], link: u32, without: &[u16], flags: Option<u32>) -> Raw {
    let mut body = raw[..IFADDRMSG].to_vec();
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    if let Some(flags) = flags {
        body[2] = flags as u8;
    }
    for (kind, value) in attr::attrs(&raw[IFADDRMSG..]) {
        match (kind, flags) {
            _ if without.contains(&kind) => {}
            (ifa::FLAGS, Some(flags)) => attr::push(&mut body, kind, &flags.to_ne_bytes()),
            _ => attr::push(&mut body, kind, value),
        }
    }
    body
}

fn add_address(raw: &[u8], link: u32, more_flags: u32) -> Request {
    let body = address_on(
        raw,
        link,
        &[],
        Some((address_flags(raw) & !ifa::F_TENTATIVE) | more_flags),
    );
    Request::raw(
        format!("add address {}", address_name(raw)),
        RTM_NEWADDR,
        CREATE,
        body,
    )
    .accepting(&[libc::EEXIST])
}

fn table(raw: &[u8]) -> u32 {
    attr::find_u32(&raw[RTMSG..], rta::TABLE).unwrap_or(u32::from(raw[4]))
}

/// The hops of a multipath route: each a `struct rtnexthop` and its attributes.
fn hops(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = attr::find(&raw[RTMSG..], rta::MULTIPATH).unwrap_or_default();
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let hop = rest.get(..len).filter(|hop| hop.len() >= 8)?;
        rest = rest.get(attr::align(len)..).unwrap_or(&[]);
        Some(hop)
    })
}

fn hop_link(hop: &[u8]) -> Option<u32> {
    attr::u32_of(&hop[4..])
}

fn route_is_moved(raw: &[u8], on: &impl Fn(Option<u32>) -> bool) -> bool {
    let attrs = &raw[RTMSG..];
    let flags = attr::u32_of(&raw[8..]).unwrap_or_default();
    let by_object = attr::find(attrs, rta::NH_ID).is_some();
    let ours = on(attr::find_u32(attrs, rta::OIF)) || hops(raw).any(|hop| on(hop_link(hop)));
    ours && !by_object && flags & rta::F_CLONED == 0 && table(raw) != rta::TABLE_LOCAL
}

/// Whether some of the route's paths lie on other links than these, which must not be doubled.
fn spans_links(raw: &[u8], links: &[u32]) -> bool {
    hops(raw).any(|hop| !hop_link(hop).is_some_and(|link| links.contains(&link)))
}

/// Routes by gateway come after those that reach the gateway; among them what the kernel made comes first.
fn route_needs_gateway(raw: &[u8]) -> (bool, bool) {
    let attrs = &raw[RTMSG..];
    let gateway = [rta::GATEWAY, rta::VIA, rta::MULTIPATH]
        .iter()
        .any(|&kind| attr::find(attrs, kind).is_some());
    (gateway, raw[5] != rta::PROT_KERNEL)
}

fn route_name(raw: &[u8]) -> String {
    let attrs = &raw[RTMSG..];
    let to = match attr::find(attrs, rta::DST) {
        Some(address) => format!("{}/{}", ip(Some(address)), raw[1]),
        None => "default".into(),
    };
    match attr::find(attrs, rta::GATEWAY) {
        Some(gateway) => format!(
            "route {to} via {} in table {}",
            ip(Some(gateway)),
            table(raw)
        ),
        None => format!("route {to} in table {}", table(raw)),
    }
}

/// The route as it is compared: an expiry counts, the seconds left do not.
fn route_key(raw: &[u8], map: &dyn Fn(u32) -> u32) -> Raw {
    with_attr_u32(&route_on(raw, map), RTMSG, rta::EXPIRES, 0)
}

/// The route with every link's number put through `map`, and without what is state and not configuration.
fn route_on(raw: &[u8], map: &dyn Fn(u32) -> u32) -> Raw {
    let mut body = raw[..RTMSG].to_vec();
    let flags = attr::u32_of(&raw[8..]).unwrap_or_default() & rta::F_SETTABLE;
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    for (kind, value) in attr::attrs(&raw[RTMSG..]) {
        match kind {
            rta::OIF => {
                let link = attr::u32_of(value).unwrap_or_default();
                attr::push(&mut body, kind, &map(link).to_ne_bytes());
            }
            rta::MULTIPATH => {
                let mut paths = Vec::new();
                for hop in hops(raw) {
                    let mut hop = hop.to_vec();
                    hop[2] &= rta::F_SETTABLE as u8;
                    let link = hop_link(&hop).unwrap_or_default();
                    hop[4..8].copy_from_slice(&map(link).to_ne_bytes());
                    paths.extend(hop);
                    paths.resize(attr::align(paths.len()), 0);
                }
                attr::push(&mut body, kind, &paths);
            }
            rta::CACHEINFO => {
                // `rta_expires` is the third word; only IPv6 routes have one.
                let ticks = value.get(8..).and_then(attr::u32_of).unwrap_or_default();
                let seconds = ticks / rta::USER_HZ;
                if raw[0] == AF_INET6 && ticks != 0 && seconds < i32::MAX as u32 / rta::USER_HZ {
                    attr::push(&mut body, rta::EXPIRES, &seconds.max(1).to_ne_bytes());
                }
            }
            rta::EXPIRES => {}
            _ => attr::push(&mut body, kind, value),
        }
    }
    body
}

fn neighbour_is_moved(raw: &[u8]) -> bool {
    const VALID: u16 = nda::REACHABLE | nda::STALE | nda::DELAY | nda::PROBE | nda::PERMANENT;
    let state = u16::from_ne_bytes([raw[8], raw[9]]);
    let known = attr::find(&raw[NDMSG..], nda::LLADDR).is_some();
    (state & VALID != 0 && known) || raw[10] & nda::F_PROXY != 0
}

fn neighbour_name(raw: &[u8]) -> String {
    ip(attr::find(&raw[NDMSG..], nda::DST))
}

fn neighbour_on(raw: &[u8], link: u32) -> Raw {
    let mut body = raw[..NDMSG].to_vec();
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    let state = u16::from_ne_bytes([raw[8], raw[9]]);
    // What was being asked about is taken over as known but old: the kernel then asks by itself.
    let state = if state & (nda::DELAY | nda::PROBE) != 0 {
        nda::STALE
    } else {
        state
    };
    body[8..10].copy_from_slice(&state.to_ne_bytes());
    body[10] &= nda::F_PROXY | nda::F_ROUTER;
    for (kind, value) in attr::attrs(&raw[NDMSG..]) {
        if kind != nda::CACHEINFO && kind != nda::PROBES {
            attr::push(&mut body, kind, value);
        }
    }
    body
}

fn ip(octets: Option<&[u8]>) -> String {
    let octets = octets.unwrap_or_default();
    let v4 = octets.try_into().map(|o: [u8; 4]| IpAddr::from(o));
    let v6 = octets.try_into().map(|o: [u8; 16]| IpAddr::from(o));
    v4.or(v6).map_or_else(|_| "?".into(), |ip| ip.to_string())
}

pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Links that others stand on: moving what is below them would leave them without their frames.
pub(crate) fn stacked_on<'l>(links: &'l [Link], below: &Link) -> Vec<&'l Link> {
    let on = |link: &&Link| {
        link.link == Some(below.index) && link.link_netnsid.is_none() && link.index != below.index
    };
    links.iter().filter(on).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(flags: u32, attrs: &[(u16, &[u8])]) -> Raw {
        let mut raw = vec![AF_INET, 24, 0, 0, 254, 4, 0, 1];
        raw.extend(flags.to_ne_bytes());
        for (kind, value) in attrs {
            attr::push(&mut raw, *kind, value);
        }
        raw
    }

    fn hop(flags: u8, link: u32, gateway: [u8; 4]) -> Raw {
        let mut hop = vec![16, 0, flags, 2];
        hop.extend(link.to_ne_bytes());
        attr::push(&mut hop, rta::GATEWAY, &gateway);
        hop
    }

    #[test]
    fn every_path_of_a_route_follows_and_the_rest_stays() {
        let paths = [hop(0x10 | 4, 5, [10, 0, 0, 1]), hop(0, 9, [10, 0, 0, 2])].concat();
        let unknown: &[u8] = &[1, 2, 3];
        let raw = route(
            0x10,
            &[
                (rta::DST, &[192, 0, 2, 0]),
                (rta::MULTIPATH, &paths),
                (77, unknown),
            ],
        );
        assert!(spans_links(&raw, &[5, 6]) && route_is_moved(&raw, &|link| link == Some(5)));
        let moved = route_on(&raw, &|link| if link == 5 { 6 } else { link });
        assert_eq!(
            hops(&moved)
                .map(|hop| (hop[2], hop_link(hop)))
                .collect::<Vec<_>>(),
            [(4, Some(6)), (0, Some(9))]
        );
        assert_eq!(attr::find(&moved[RTMSG..], 77), Some(unknown));
        assert_eq!(moved[8..12], [0; 4], "state is no configuration");
    }

    #[test]
    fn what_is_kept_comes_back_octet_by_octet() {
        let some = Identity {
            addresses4: vec![vec![1; IFADDRMSG], vec![2; 40]],
            routes: vec![route(0, &[(rta::GATEWAY, &[10, 0, 0, 1])])],
            followers: vec![vec![7; RTMSG]],
            ..Identity::default()
        };
        let octets = some.encode();
        assert_eq!(Identity::decode(&octets), Some(some));
        assert_eq!(Identity::decode(&[]), Some(Identity::default()));
        for cut in 1..octets.len() {
            // Where one thing ends and the next begins it is another identity, anywhere else it is none.
            assert!(Identity::decode(&octets[..cut]).is_none_or(|i| i.encode() == octets[..cut]));
        }
        assert_eq!(Identity::decode(&[0, 3, 0, 0, 0, 1, 2, 3]), None, "no head");
    }

    #[test]
    fn routes_by_gateway_come_last() {
        let mut routes = [
            route(0, &[(rta::GATEWAY, &[10, 0, 0, 1])]),
            route(0, &[(rta::OIF, &[5, 0, 0, 0])]),
        ];
        routes.sort_by_key(|route| route_needs_gateway(route));
        assert!(attr::find(&routes[0][RTMSG..], rta::GATEWAY).is_none());
    }

    #[test]
    fn local_cached_and_foreign_routes_stay() {
        let on = |link: Option<u32>| link == Some(5);
        let oif: &[u8] = &5u32.to_ne_bytes();
        assert!(route_is_moved(&route(0, &[(rta::OIF, oif)]), &on));
        assert!(!route_is_moved(
            &route(rta::F_CLONED, &[(rta::OIF, oif)]),
            &on
        ));
        assert!(!route_is_moved(
            &route(0, &[(rta::OIF, oif), (rta::TABLE, &255u32.to_ne_bytes())]),
            &on
        ));
        assert!(!route_is_moved(
            &route(0, &[(rta::OIF, &6u32.to_ne_bytes())]),
            &on
        ));
    }

    #[test]
    fn an_address_keeps_all_but_its_link_and_the_flags_given() {
        let mut raw = vec![AF_INET6, 64, 0x40, 0];
        raw.extend(5u32.to_ne_bytes());
        attr::push(&mut raw, ifa::ADDRESS, &[0x20; 16]);
        attr::push(&mut raw, ifa::FLAGS, &(0x240u32).to_ne_bytes());
        attr::push(&mut raw, 11, &[3]);
        let moved = address_on(
            &raw,
            6,
            &[],
            Some((address_flags(&raw) & !ifa::F_TENTATIVE) | ifa::F_NODAD),
        );
        assert_eq!(attr::u32_of(&moved[4..]), Some(6));
        assert_eq!(attr::find_u32(&moved[IFADDRMSG..], ifa::FLAGS), Some(0x202));
        assert_eq!(attr::find(&moved[IFADDRMSG..], 11), Some(&[3][..]));
        assert_eq!(moved[2], 2);
    }

    #[test]
    fn a_neighbour_that_is_being_probed_is_taken_over_as_stale() {
        let mut raw = vec![AF_INET, 0, 0, 0, 5, 0, 0, 0];
        raw.extend(nda::PROBE.to_ne_bytes());
        raw.extend([0, 1]);
        attr::push(&mut raw, nda::DST, &[10, 0, 0, 1]);
        assert!(!neighbour_is_moved(&raw), "its address is not known");
        attr::push(&mut raw, nda::LLADDR, &[2; 6]);
        attr::push(&mut raw, nda::CACHEINFO, &[0; 16]);
        assert!(neighbour_is_moved(&raw));
        let moved = neighbour_on(&raw, 6);
        assert_eq!(u16::from_ne_bytes([moved[8], moved[9]]), nda::STALE);
        assert!(attr::find(&moved[NDMSG..], nda::CACHEINFO).is_none());
    }
}
