//! A small network to try things in: a host, a bridge and containers, all of them namespaces without a name that
//! vanish with the last handle. Nothing of the real host is touched.
//!
//! For this workspace's tests, benches and `nvcli demo`: public since those are other crates, hidden since it is no part of the API. It may change in any
//! version.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

use crate::link::{self, Link, PairEnd};
use crate::socket::{CREATE, Request, RouteSocket};
use crate::{Error, MacAddr, Netns};

/// The bridge that joins the containers.
pub const LAB_BRIDGE: &str = "lab-br";
/// The name of every container's interface.
pub const LAB_INTERFACE: &str = "eth0";

const PREFIX4: u8 = 24;
const PREFIX6: u8 = 64;

/// A host with containers on a bridge.
#[derive(Debug)]
pub struct Lab {
    /// Where the bridge and the host ends are, and where attachments are made from.
    pub host: Netns,
    /// The containers.
    pub containers: Vec<LabContainer>,
}

/// One container of a [`Lab`].
#[derive(Clone, Debug)]
pub struct LabContainer {
    /// Its namespace.
    pub netns: Netns,
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The address of its interface.
    pub mac: MacAddr,
    /// The host end of its veth pair.
    pub host_end: String,
}

impl Lab {
    /// A host with one container for each name: 10.78.0.2, 10.78.0.3 and so on, and the like in fd4e:6576::/64; the
    /// host is .1 and ::1 on the bridge and every container's default route.
    ///
    /// # Errors
    /// Namespaces or links could not be made: CAP_SYS_ADMIN and CAP_NET_ADMIN are needed.
    pub fn new(names: &[&str]) -> Result<Self, Error> {
        let host = Netns::nameless("the lab's host")?;
        let mut socket = RouteSocket::open(&host)?;
        loopback_up(&mut socket)?;
        socket.send(link::add_bridge(
            LAB_BRIDGE,
            MacAddr([2, 0x4e, 0x76, 0, 0, 1]),
        ))?;
        let bridge = index_of(&mut socket, LAB_BRIDGE)?;
        no_duplicates(&host, LAB_BRIDGE)?;
        socket.batch(&[
            // In no group: it is the host's own bridge here, none of nvnet's.
            Request::new(
                "put the lab's bridge into group 0",
                0,
                &RouteNetlinkMessage::SetLink(
                    rtnetlink::LinkUnspec::new_with_index(bridge)
                        .link_group(0)
                        .build(),
                ),
            ),
            link::up(bridge, LAB_BRIDGE),
            add_address(bridge, ipv4(1).into(), PREFIX4),
            add_address(bridge, ipv6(1).into(), PREFIX6),
        ])?;
        let mut containers = Vec::new();
        for (name, number) in names.iter().zip(2..) {
            containers.push(container(&mut socket, bridge, name, number)?);
        }
        // The kernel tells of carriers on a work queue, a moment later.
        wait_for_carrier(&mut socket)?;
        for container in &containers {
            wait_for_carrier(&mut RouteSocket::open(&container.netns)?)?;
        }
        Ok(Self { host, containers })
    }

    /// The address of the host on the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        ipv4(1)
    }
}

/// Attaches a program to an interface by TCX (Linux 6.6), as other tools do: it ends classification with the verdict "pass".
///
/// # Errors
/// The kernel has no TCX, there is no such interface, or CAP_BPF is missing.
pub fn attach_tcx(netns: &Netns, interface: &str, ingress: bool) -> Result<(), Error> {
    let index = index_of(&mut RouteSocket::open(netns)?, interface)?;
    let program = crate::bpf::load(c"lab_pass", &crate::bpf::pass())?;
    let attached = netns.run(|| crate::sys::tcx_attach(index, ingress, program.as_fd()))?;
    attached.map_err(|source| Error::Refused {
        op: format!("attach a TCX program to {interface}"),
        netns: netns.label().into(),
        kernel_says: None,
        source,
    })
}

fn ipv4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, number)
}

fn ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd4e, 0x6576, 0, 0, 0, 0, 0, number.into())
}

fn container(
    host: &mut RouteSocket,
    bridge: u32,
    name: &str,
    number: u8,
) -> Result<LabContainer, Error> {
    let netns = Netns::nameless(name)?;
    let mut inside = RouteSocket::open(&netns)?;
    let host_end = format!("lab-{number}");
    let mac = MacAddr([2, 0x4e, 0x76, 0, 0, number]);
    let end = |name, mac| PairEnd {
        name,
        mac,
        mtu: 1500,
        // As an engine makes them.
        txqlen: 0,
    };
    let outside = MacAddr([2, 0x4e, 0x76, 0, 1, number]);
    host.send(link::add_pair(
        &end(&host_end, outside),
        &end(LAB_INTERFACE, mac),
        netns.as_fd(),
    ))?;
    let index = index_of(host, &host_end)?;
    no_duplicates(host.netns(), &host_end)?;
    host.batch(&[
        Request::new(
            "put the host end into group 0",
            0,
            &RouteNetlinkMessage::SetLink(
                rtnetlink::LinkUnspec::new_with_index(index)
                    .link_group(0)
                    .build(),
            ),
        ),
        link::master(index, &host_end, bridge),
        link::up(index, &host_end),
    ])?;
    loopback_up(&mut inside)?;
    no_duplicates(&netns, LAB_INTERFACE)?;
    let index = index_of(&mut inside, LAB_INTERFACE)?;
    let (v4, v6) = (ipv4(number), ipv6(number));
    let default4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(ipv4(1))
        .output_interface(index)
        .build();
    let default6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .gateway(ipv6(1))
        .output_interface(index)
        .build();
    inside.batch(&[
        Request::new(
            "put the interface into group 0",
            0,
            &RouteNetlinkMessage::SetLink(
                rtnetlink::LinkUnspec::new_with_index(index)
                    .link_group(0)
                    .build(),
            ),
        ),
        link::up(index, LAB_INTERFACE),
        add_address(index, v4.into(), PREFIX4),
        add_address(index, v6.into(), PREFIX6),
        Request::new(
            "add the IPv4 default route",
            CREATE,
            &RouteNetlinkMessage::NewRoute(default4),
        ),
        Request::new(
            "add the IPv6 default route",
            CREATE,
            &RouteNetlinkMessage::NewRoute(default6),
        ),
    ])?;
    Ok(LabContainer {
        netns,
        name: name.into(),
        ipv4: v4,
        ipv6: v6,
        mac,
        host_end,
    })
}

fn index_of(socket: &mut RouteSocket, name: &str) -> Result<u32, Error> {
    link::by_name(socket, name)?
        .map(|link| link.index)
        .ok_or_else(|| Error::NoSuchInterface {
            interface: name.into(),
            netns: socket.netns().label().into(),
            present: vec![],
        })
}

/// Nobody else is here, so nothing has to be asked before a link-local address is used.
fn no_duplicates(netns: &Netns, interface: &str) -> Result<(), Error> {
    netns.run(|| {
        let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"));
        match std::fs::write(&path, "0") {
            Err(source) if path.exists() => Err(Error::Proc {
                op: "write",
                path,
                source,
            }),
            _ => Ok(()),
        }
    })?
}

/// Waits until every link that is up can carry frames, as the kernel tells it (`IFF_RUNNING`); a bridge without ports
/// never can.
fn wait_for_carrier(socket: &mut RouteSocket) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let start = Instant::now();
    loop {
        let links = link::all(socket)?;
        let has_port = |bridge: &Link| links.iter().any(|link| link.master == Some(bridge.index));
        let waits = |link: &&Link| {
            let dead = link.is_kind("bridge") && !has_port(link);
            link.is_up() && !dead && link.flags & libc::IFF_RUNNING as u32 == 0
        };
        let Some(late) = links.iter().find(waits) else {
            return Ok(());
        };
        if start.elapsed() > PATIENCE {
            return Err(Error::Timeout {
                what: format!("the carrier of {}", late.name),
                netns: socket.netns().label().into(),
                waited_ms: u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX),
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn loopback_up(socket: &mut RouteSocket) -> Result<(), Error> {
    let lo = index_of(socket, "lo")?;
    socket.send(link::up(lo, "lo"))
}

/// Adds an address; an IPv6 one without waiting for duplicates to answer.
fn add_address(link: u32, address: IpAddr, prefix: u8) -> Request {
    let mut message: AddressMessage = match address {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link)
            .address(v4, prefix)
            .build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(link)
            .address(v6, prefix)
            .build(),
    };
    if address.is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    Request::new(
        format!("add address {address}/{prefix}"),
        CREATE,
        &RouteNetlinkMessage::NewAddress(message),
    )
}
