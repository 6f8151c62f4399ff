//! Links: what the kernel tells of them, and the requests that change them.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::attr;
use crate::ids::{GROUP, LEAVING};
use crate::socket::{CREATE, Request, RouteSocket};
use crate::{Error, MacAddr};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETNETCONF: u16 = 82;
/// Octets of `struct netconfmsg`, padded.
const NETCONFMSG: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_RP_FILTER: u16 = 3;
/// `NETCONFA_IFINDEX_ALL`: what is set for all interfaces.
const NETCONF_ALL: i32 = -1;
/// Octets of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// Attribute numbers of include/uapi/linux/if_link.h.
mod ifla {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const LINK: u16 = 5;
    pub(super) const MASTER: u16 = 10;
    pub(super) const TXQLEN: u16 = 13;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const IPVLAN_MODE: u16 = 1;
    pub(super) const IFALIAS: u16 = 20;
    pub(super) const STATS64: u16 = 23;
    pub(super) const AF_SPEC: u16 = 26;
    pub(super) const GROUP: u16 = 27;
    pub(super) const LINK_NETNSID: u16 = 37;
    pub(super) const XDP: u16 = 43;
    pub(super) const XDP_ATTACHED: u16 = 2;
    pub(super) const INET_CONF: u16 = 1;
    pub(super) const INET6_CONF: u16 = 2;
    pub(super) const INET6_ADDR_GEN_MODE: u16 = 8;
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `IPV4_DEVCONF_RP_FILTER`.
const DEVCONF_RP_FILTER: u16 = 8;
/// Places in those arrays of what is not given to the interface that takes another one's: IPv4's `mc_forwarding`; `mtu`,
/// `mc_forwarding` and `addr_gen_mode` of IPv6.
const NOT_COMPARED_4: [usize; 1] = [1];
const NOT_COMPARED_6: [usize; 3] = [2, 25, 47];
/// `IN6_ADDR_GEN_MODE_NONE`: the kernel makes no link-local address by itself.
pub(crate) const ADDR_GEN_MODE_NONE: u8 = 1;
/// `IPVLAN_MODE_L3S`.
const IPVLAN_L3S: u8 = 2;
/// `ARPHRD_ETHER`.
const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_LOOPBACK`.
const ARPHRD_LOOPBACK: u16 = 772;

/// Frames and octets that an interface counted since it was made.
///
/// Source: `struct rtnl_link_stats64`, include/uapi/linux/if_link.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Received frames that were dropped.
    pub rx_dropped: u64,
    /// Frames to be sent that were dropped.
    pub tx_dropped: u64,
}

/// A network interface, as `RTM_GETLINK` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFF_*` flags.
    pub flags: u32,
    /// What it is (`veth`, `bridge`, `macvlan`); `None` for a device without rtnl_link_ops.
    pub kind: Option<String>,
    /// Its Ethernet address.
    pub mac: Option<MacAddr>,
    /// Largest packet, without the link header. Unit: octets.
    pub mtu: u32,
    /// Length of its transmit queue. Unit: frames.
    pub txqlen: u32,
    /// Its alias.
    pub alias: Option<String>,
    /// Its link group.
    pub group: u32,
    /// The bridge or bond it belongs to.
    pub master: Option<u32>,
    /// The interface below it, or the other end of a veth pair.
    pub link: Option<u32>,
    /// The namespace of [`Self::link`], as the link's own namespace numbers it; `None` when it is the same.
    pub link_netnsid: Option<i32>,
    /// `IN6_ADDR_GEN_MODE_*`; `None` without IPv6.
    pub addr_gen_mode: Option<u8>,
    /// An XDP program is attached.
    pub has_xdp: bool,
    /// What it counted.
    pub stats: LinkStats,
    /// Its own sysctl `rp_filter`; 0 without IPv4.
    pub(crate) rp_filter: u32,
    /// Its IPv4 and IPv6 sysctls as the kernel's octets, but for some; to be compared alone.
    pub(crate) settings: Vec<u8>,
    /// Its name and its alias are UTF-8, and so what they are here.
    pub(crate) is_text: bool,
    /// An ipvlan in mode l3s: what it receives passes no rule of its own.
    pub(crate) is_l3s: bool,
    kind_of_header: u16,
}

/// An array of words, with zeros at these places.
fn masked(words: &[u8], places: &[usize]) -> Vec<u8> {
    let mut words = words.to_vec();
    for place in places {
        if let Some(word) = words.get_mut(4 * place..4 * place + 4) {
            word.fill(0);
        }
    }
    words
}

impl Link {
    /// Whether it is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Whether its frames are Ethernet frames.
    pub fn is_ethernet(&self) -> bool {
        self.kind_of_header == ARPHRD_ETHER
    }

    /// Whether it is the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.kind_of_header == ARPHRD_LOOPBACK
    }

    /// Whether it is of this kind.
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    /// Whether it is in a link group of ours.
    pub(crate) fn is_in_our_group(&self) -> bool {
        [GROUP, LEAVING].contains(&self.group)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let head = body.get(..IFINFOMSG)?;
        let attrs = &body[IFINFOMSG..];
        let octets = |value| <[u8]>::split(value, |&b| b == 0).next().unwrap_or_default();
        let text = |value| String::from_utf8_lossy(octets(value)).into_owned();
        let is_text = |kind| {
            let value = attr::find(attrs, kind).map(octets).unwrap_or_default();
            std::str::from_utf8(value).is_ok()
        };
        let mac = attr::find(attrs, ifla::ADDRESS)
            .and_then(|v| v.try_into().ok())
            .map(MacAddr);
        let info = attr::find(attrs, ifla::LINKINFO).unwrap_or_default();
        let kind = attr::find(info, ifla::INFO_KIND).map(text);
        let data = attr::find(info, ifla::INFO_DATA).unwrap_or_default();
        let mode = attr::find(data, ifla::IPVLAN_MODE).and_then(|v| v.first().copied());
        let spec = attr::find(attrs, ifla::AF_SPEC).unwrap_or_default();
        let inet6 = attr::find(spec, AF_INET6).unwrap_or_default();
        // All of the link's IPv4 settings as an array of words, in the order of their numbers.
        let inet = attr::find(spec, AF_INET).unwrap_or_default();
        let settings4 = attr::find(inet, ifla::INET_CONF).unwrap_or_default();
        let settings6 = attr::find(inet6, ifla::INET6_CONF).unwrap_or_default();
        let rp_filter = settings4.get(4 * (usize::from(DEVCONF_RP_FILTER) - 1)..);
        let xdp = attr::find(attrs, ifla::XDP).and_then(|x| attr::find(x, ifla::XDP_ATTACHED));
        let stats = attr::find(attrs, ifla::STATS64).unwrap_or_default();
        let counter = |n: usize| {
            stats
                .get(n * 8..)
                .and_then(|s| s.first_chunk())
                .map_or(0, |v| u64::from_ne_bytes(*v))
        };
        Some(Self {
            kind_of_header: u16::from_ne_bytes([head[2], head[3]]),
            index: attr::u32_of(&head[4..])?,
            flags: attr::u32_of(&head[8..])?,
            name: text(attr::find(attrs, ifla::IFNAME)?),
            is_text: is_text(ifla::IFNAME) && is_text(ifla::IFALIAS),
            is_l3s: kind.as_deref() == Some("ipvlan") && mode == Some(IPVLAN_L3S),
            kind,
            mac,
            mtu: attr::find_u32(attrs, ifla::MTU).unwrap_or_default(),
            txqlen: attr::find_u32(attrs, ifla::TXQLEN).unwrap_or_default(),
            alias: attr::find(attrs, ifla::IFALIAS)
                .map(text)
                .filter(|alias| !alias.is_empty()),
            group: attr::find_u32(attrs, ifla::GROUP).unwrap_or_default(),
            master: attr::find_u32(attrs, ifla::MASTER),
            link: attr::find_u32(attrs, ifla::LINK),
            link_netnsid: attr::find_u32(attrs, ifla::LINK_NETNSID)
                .map(|id| i32::from_ne_bytes(id.to_ne_bytes())),
            addr_gen_mode: attr::find(inet6, ifla::INET6_ADDR_GEN_MODE)
                .and_then(|v| v.first().copied()),
            rp_filter: rp_filter.and_then(attr::u32_of).unwrap_or_default(),
            settings: [
                masked(settings4, &NOT_COMPARED_4),
                masked(settings6, &NOT_COMPARED_6),
            ]
            .concat(),
            has_xdp: xdp.is_some_and(|v| v.first().is_some_and(|&mode| mode != 0)),
            stats: LinkStats {
                rx_packets: counter(0),
                tx_packets: counter(1),
                rx_bytes: counter(2),
                tx_bytes: counter(3),
                rx_dropped: counter(6),
                tx_dropped: counter(7),
            },
        })
    }
}

/// The link that the body of a message tells of.
pub(crate) fn parse(body: &[u8]) -> Option<Link> {
    Link::parse(body)
}

/// All links of the socket's namespace.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<Link>, Error> {
    let answers = socket.dump(&Request::raw(
        "list links",
        RTM_GETLINK,
        0,
        vec![0; IFINFOMSG],
    ))?;
    let links = answers.iter().filter(|answer| answer.kind == RTM_NEWLINK);
    Ok(links
        .filter_map(|answer| Link::parse(&answer.body))
        .collect())
}

/// The link of this name, if there is one.
pub(crate) fn by_name(socket: &mut RouteSocket, name: &str) -> Result<Option<Link>, Error> {
    one(socket, LinkUnspec::new_with_name(name).build(), name)
}

/// The link of this number, if there is one.
pub(crate) fn by_index(socket: &mut RouteSocket, index: u32) -> Result<Option<Link>, Error> {
    one(
        socket,
        LinkUnspec::new_with_index(index).build(),
        &format!("link {index}"),
    )
}

fn one(socket: &mut RouteSocket, message: LinkMessage, what: &str) -> Result<Option<Link>, Error> {
    match socket.get(&Request::new(
        format!("look at {what}"),
        0,
        &RouteNetlinkMessage::GetLink(message),
    )) {
        Ok(answer) => Ok(Link::parse(&answer.body)),
        Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn set(op: String, message: LinkMessage) -> Request {
    Request::new(op, 0, &RouteNetlinkMessage::SetLink(message))
}

fn change(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

pub(crate) fn rename(index: u32, from: &str, to: &str) -> Request {
    set(
        format!("rename {from} to {to}"),
        change(index).name(to).build(),
    )
}

pub(crate) fn up(index: u32, name: &str) -> Request {
    set(format!("set {name} up"), change(index).up().build())
}

pub(crate) fn down(index: u32, name: &str) -> Request {
    set(format!("set {name} down"), change(index).down().build())
}

/// Sets the alias, or takes it away when it is empty.
pub(crate) fn alias(index: u32, name: &str, alias: &str) -> Request {
    let attribute = LinkAttribute::Other(DefaultNla::new(ifla::IFALIAS, alias.as_bytes().to_vec()));
    set(
        format!("set the alias of {name}"),
        change(index).append_extra_attribute(attribute).build(),
    )
}

pub(crate) fn mtu(index: u32, name: &str, mtu: u32) -> Request {
    set(
        format!("set the MTU of {name} to {mtu}"),
        change(index).mtu(mtu).build(),
    )
}

pub(crate) fn txqlen(index: u32, name: &str, len: u32) -> Request {
    set(
        format!("set the queue length of {name} to {len}"),
        change(index).txqueuelen(len).build(),
    )
}

pub(crate) fn master(index: u32, name: &str, master: u32) -> Request {
    set(
        format!("make {name} a port of {}", crate::BRIDGE),
        change(index).controller(master).build(),
    )
}

fn af_spec(family: u16, inner: &[u8]) -> LinkAttribute {
    let mut spec = Vec::new();
    attr::push(&mut spec, family, inner);
    LinkAttribute::Other(DefaultNla::new(ifla::AF_SPEC, spec))
}

/// Who makes IPv6 addresses for the link; only for a kernel with IPv6.
pub(crate) fn addr_gen_mode(index: u32, name: &str, mode: u8) -> Request {
    let mut inner = Vec::new();
    attr::push(&mut inner, ifla::INET6_ADDR_GEN_MODE, &[mode]);
    let message = change(index)
        .append_extra_attribute(af_spec(AF_INET6, &inner))
        .build();
    // A link whose MTU is below 1,280 has no IPv6, and so nothing to set.
    set(format!("set the address generation of {name}"), message)
        .accepting(&[libc::EINVAL, libc::EAFNOSUPPORT])
}

/// Reverse path filtering of the link, as the sysctl `rp_filter` has it.
pub(crate) fn rp_filter(index: u32, name: &str, value: u32) -> Request {
    let (mut conf, mut inner) = (Vec::new(), Vec::new());
    attr::push(&mut conf, DEVCONF_RP_FILTER, &value.to_ne_bytes());
    attr::push(&mut inner, ifla::INET_CONF, &conf);
    set(
        format!("set the reverse path filter of {name} to {value}"),
        change(index)
            .append_extra_attribute(af_spec(AF_INET, &inner))
            .build(),
    )
}

/// The sysctl `rp_filter` of `all`, of which and the link's own one the larger counts.
pub(crate) fn rp_filter_of_all(socket: &mut RouteSocket) -> Result<u32, Error> {
    let mut body = vec![0; NETCONFMSG];
    body[0] = AF_INET as u8;
    attr::push(&mut body, NETCONFA_IFINDEX, &NETCONF_ALL.to_ne_bytes());
    let answer = socket.get(&Request::raw(
        "look at the reverse path filter",
        RTM_GETNETCONF,
        0,
        body,
    ))?;
    let attrs = answer.body.get(NETCONFMSG..).unwrap_or_default();
    Ok(attr::find_u32(attrs, NETCONFA_RP_FILTER).unwrap_or_default())
}

/// Puts a link into a group.
fn group(index: u32, name: &str, group: u32) -> Request {
    set(
        format!("set the group of {name}"),
        change(index).link_group(group).build(),
    )
}

/// Deletes links as one, in one message: the kernel waits for its readers once, and not for each of them.
pub(crate) fn delete_together(links: &[(u32, String)]) -> Vec<Request> {
    if let [(index, name)] = links {
        return vec![delete(*index, name)];
    }
    let mut requests: Vec<Request> = links
        .iter()
        .map(|(index, name)| group(*index, name, LEAVING).accepting(&[libc::ENODEV]))
        .collect();
    if !requests.is_empty() {
        let message = LinkUnspec::new_with_index(0).link_group(LEAVING).build();
        let op = format!("delete {} links", links.len());
        // Each one may be gone by itself meanwhile, with its container.
        let message = RouteNetlinkMessage::DelLink(message);
        requests.push(Request::new(op, 0, &message).accepting(&[libc::ENODEV]));
    }
    requests
}

/// Deletes a link, and with a veth its other end; it is no failure when it is gone already.
pub(crate) fn delete(index: u32, name: &str) -> Request {
    Request::new(
        format!("delete {name}"),
        0,
        &RouteNetlinkMessage::DelLink(change(index).build()),
    )
    .accepting(&[libc::ENODEV])
}

/// Makes a bridge that learns nothing, talks to nobody and forwards nothing by itself.
pub(crate) fn add_bridge(name: &str, mac: MacAddr) -> Request {
    let message = LinkBridge::new(name)
        .address(mac.0.to_vec())
        .stp_state(netlink_packet_route::link::BridgeStpState::Disabled)
        .link_group(GROUP)
        .build();
    Request::new(
        format!("create bridge {name}"),
        CREATE,
        &RouteNetlinkMessage::NewLink(message),
    )
}

/// Switches a bridge's multicast snooping off; refused by kernels that were built without it, which is as good.
pub(crate) fn no_snooping(index: u32, name: &str) -> Request {
    // Without the name: kernels before 6.2 take it for a request to rename.
    let message = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
        .index(index)
        .mcast_snooping(false)
        .build();
    let op = format!("switch multicast snooping of {name} off");
    Request::new(op, 0, &RouteNetlinkMessage::NewLink(message))
        .accepting(&[libc::EOPNOTSUPP, libc::EINVAL])
}

/// What is given to both ends of a veth pair.
pub(crate) struct PairEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u32,
    pub(crate) txqlen: u32,
}

impl PairEnd<'_> {
    fn describe<T>(&self, builder: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
        builder
            .name(self.name)
            .address(self.mac.0.to_vec())
            .mtu(self.mtu)
            .txqueuelen(self.txqlen)
            .link_group(GROUP)
    }
}

/// Makes a veth pair of which the peer lies in another namespace from its first moment on.
pub(crate) fn add_pair(
    here: &PairEnd<'_>,
    there: &PairEnd<'_>,
    netns: std::os::fd::BorrowedFd<'_>,
) -> Request {
    use std::os::fd::AsRawFd;
    let peer = there
        .describe(LinkMessageBuilder::<LinkUnspec>::new())
        .setns_by_fd(netns.as_raw_fd())
        .build();
    let message = here
        .describe(LinkMessageBuilder::<LinkVeth>::new_with_info_kind(
            InfoKind::Veth,
        ))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let op = format!("create the veth pair {} and {}", here.name, there.name);
    Request::new(op, CREATE, &RouteNetlinkMessage::NewLink(message))
}

/// A port that receives nothing from the bridge and teaches it nothing.
pub(crate) fn isolate(index: u32, name: &str) -> Request {
    let message = LinkBridgePort::new(index)
        .learning(false)
        .flood(false)
        .mcast_flood(false)
        .bcast_flood(false)
        .isolated(true)
        .build();
    // A port's options travel in RTM_NEWLINK: RTM_SETLINK passes them over without a word.
    Request::new(
        format!("isolate port {name}"),
        0,
        &RouteNetlinkMessage::NewLink(message),
    )
}
