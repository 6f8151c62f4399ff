//! What tests in namespaces share: skipping with a reason, a scratch network, senders.
//!
//! A test runs on a thread of its own in a network namespace of its own, which vanishes with it.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed, Trial};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, sendto, socket,
};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, LinkVeth};

/// A test that needs a network namespace: ignored with the reason where there is none to be had, failed where
/// `NV_TESTS_MUST_RUN` lists `netns`.
pub(crate) fn privileged(name: &'static str, test: fn() -> Result<(), Failed>) -> Trial {
    needing(
        name,
        "netns",
        || in_netns(|| ()).map_err(|error| error.to_string()),
        move || in_netns(test)?,
    )
}

/// A test that needs what `probe` tries.
pub(crate) fn needing(
    name: &'static str,
    need: &'static str,
    probe: impl FnOnce() -> Result<(), String> + Send + 'static,
    test: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Err(why) = probe() {
            let text = format!("needs {need}: {why}");
            let must = std::env::var("NV_TESTS_MUST_RUN").unwrap_or_default();
            if must.split(',').any(|name| name == need) {
                return Err(text.into());
            }
            return Ok(Completion::ignored_with(text));
        }
        test().map(|()| Completion::Completed)
    })
}

/// Makes the process root in a user namespace of its own if it is not root; before any thread is started.
pub(crate) fn become_root() -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Runs `work` in a new network namespace without IPv6, so that nothing is sent but what a test sends.
pub(crate) fn in_netns<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").or_else(
                |error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()), // no IPv6 at all
                    _ => Err(error),
                },
            )?;
            Ok(work())
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The scratch network: `left` (10.0.0.1/24) and `right`, two ends of a veth pair, up.
pub(crate) struct Pair {
    route: Socket,
    pub(crate) left: u32,
    pub(crate) right: u32,
}

impl Pair {
    pub(crate) fn new() -> io::Result<Self> {
        let mut route = Socket::new(NETLINK_ROUTE)?;
        route.bind_auto()?;
        route.connect(&SocketAddr::new(0, 0))?;
        let mut pair = Self {
            route,
            left: 0,
            right: 0,
        };
        pair.create(LinkVeth::new("left", "right").build())?;
        pair.left = index("left")?;
        pair.right = index("right")?;
        pair.set_up("left")?;
        pair.set_up("right")?;
        pair.address(pair.left, Ipv4Addr::new(10, 0, 0, 1))?;
        settle()?;
        Ok(pair)
    }

    fn create(&self, link: LinkMessage) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    fn address(&self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link)
            .address(address, 24)
            .build();
        self.ask(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    pub(crate) fn set_up(&self, name: &str) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index(name)?).up().build();
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    pub(crate) fn set_down(&self, name: &str) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index(name)?).down().build();
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Lets both ends take frames with so many octets behind the link header.
    pub(crate) fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        for end in [self.left, self.right] {
            let link = LinkUnspec::new_with_index(end).mtu(mtu).build();
            self.ask(RouteNetlinkMessage::SetLink(link), 0)?;
        }
        Ok(())
    }

    pub(crate) fn delete(&self) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(self.left).build();
        self.ask(RouteNetlinkMessage::DelLink(link), 0)
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut octets = vec![0; request.buffer_len()];
        request.serialize(&mut octets);
        self.route.send(&octets, 0)?;
        let (answer, _) = self.route.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io()),
            },
            other => Err(io::Error::other(format!("not an answer: {other:?}"))),
        }
    }
}

pub(crate) fn index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Returns once what is sent from `left` arrives at `right`, and all that was sent has arrived.
///
/// The kernel notices the carrier in its own time; until then what is sent is lost before it counts as sent.
pub(crate) fn settle() -> io::Result<()> {
    let probe = Sender::new()?;
    let before = received("right")?.0;
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        probe.send(1, 1)?;
        let arrived = received("right")?.0;
        if arrived > before && arrived == counted("left", 9)? {
            return Ok(());
        }
        std::thread::yield_now();
    }
    Err(io::Error::other("nothing arrives at the other end"))
}

/// Frames and octets that an interface of this namespace has received.
pub(crate) fn received(name: &str) -> io::Result<(u64, u64)> {
    Ok((counted(name, 1)?, counted(name, 0)?))
}

/// A column of /proc/net/dev.
fn counted(name: &str, column: usize) -> io::Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{name}:")))
        .ok_or_else(|| io::Error::other("not in /proc/net/dev"))?;
    line.split_whitespace()
        .nth(column)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/net/dev has another shape"))
}

/// Sends datagrams out of `left` to everybody: no ARP, and exactly one frame each at `right`.
pub(crate) struct Sender(UdpSocket);

impl Sender {
    pub(crate) fn new() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::new(10, 0, 0, 1), 0))?;
        socket.set_broadcast(true)?;
        Ok(Self(socket))
    }

    /// Has the kernel cut what is sent into datagrams of so many octets, as late as it can: the veth carries them as one frame.
    pub(crate) fn segments(&self, octets: i32) -> io::Result<()> {
        Ok(nix::sys::socket::setsockopt(
            &self.0,
            nix::sys::socket::sockopt::UdpGsoSegment,
            &octets,
        )?)
    }

    pub(crate) fn send(&self, count: usize, payload: usize) -> io::Result<()> {
        self.send_to(9, count, payload)
    }

    pub(crate) fn send_to(&self, port: u16, count: usize, payload: usize) -> io::Result<()> {
        let payload = vec![0x5a; payload];
        for _ in 0..count {
            self.0
                .send_to(&payload, (Ipv4Addr::new(10, 0, 0, 255), port))?;
        }
        Ok(())
    }
}

/// Sends one frame out of an interface as it is.
pub(crate) fn send_raw(interface: &str, frame: &[u8]) -> io::Result<()> {
    RawSender::new(interface)?.send(frame)
}

/// Sends frames out of an interface as they are.
pub(crate) struct RawSender {
    socket: OwnedFd,
    address: SockaddrStorage,
}

impl RawSender {
    pub(crate) fn new(interface: &str) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let address = nix::ifaddrs::getifaddrs()?
            .filter(|address| address.interface_name == interface)
            .filter_map(|address| address.address)
            .find(|address| address.family() == Some(AddressFamily::Packet))
            .ok_or_else(|| io::Error::other("the interface has no link address"))?;
        Ok(Self { socket, address })
    }

    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = sendto(
            self.socket.as_raw_fd(),
            frame,
            &self.address,
            MsgFlags::empty(),
        )?;
        assert_eq!(sent, frame.len());
        Ok(())
    }
}
