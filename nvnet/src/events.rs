//! Links that come, change and go: in a host's namespace and in those that it has a number for, from one socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::link::{self, Link};
use crate::{Error, Netns, attach, sys};

/// `RTMGRP_LINK`.
const RTMGRP_LINK: u32 = 1;
/// `RTMGRP_TC`.
const RTMGRP_TC: u32 = 8;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
/// Octets of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Octets of news that wait, at most: a storm of a thousand containers fits.
const WAITING: usize = 4 << 20;

/// A link that came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// The namespace, as the host numbers it ([`number_of`](crate::number_of)); `None` for the host's own.
    pub netns: Option<i32>,
    /// Its number there.
    pub index: u32,
    /// Its name there.
    pub name: String,
    /// It was removed, or moved to another namespace.
    pub is_gone: bool,
    /// We made it, or hold it as the original of an attachment.
    pub is_ours: bool,
}

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkNews {
    /// In the order in which it happened.
    Events(Vec<LinkEvent>),
    /// Rules on links came or went; which, whoever follows has to look for itself. Of [`LinkEvents::open_one`] alone.
    Rules,
    /// More happened than was read in time: whoever follows has to look for itself.
    Lost,
    /// Nothing within the time given.
    Nothing,
}

/// News of the links of a host's namespace, and of every namespace that it has a number for, as it has for the other side of any
/// veth pair. Does not keep those namespaces alive.
#[derive(Debug)]
#[doc(alias = "NETLINK_LISTEN_ALL_NSID")]
pub struct LinkEvents {
    socket: Socket,
    label: String,
    buffer: Vec<u8>,
    /// Rules came or went, which was not yet told.
    rules: bool,
}

impl LinkEvents {
    /// Listens from now on.
    ///
    /// # Errors
    /// The namespace could not be entered, or the kernel refused: to hear of other namespaces takes CAP_NET_BROADCAST in them.
    pub fn open(host: &Netns) -> Result<Self, Error> {
        Self::listen(host, RTMGRP_LINK, true)
    }

    /// The same of the links in `netns` alone, and of the rules on them: all that is attached in mirror mode may have changed. From inside it
    /// takes no capability.
    ///
    /// # Errors
    /// The namespace could not be entered, or the kernel refused.
    pub fn open_one(netns: &Netns) -> Result<Self, Error> {
        Self::listen(netns, RTMGRP_LINK | RTMGRP_TC, false)
    }

    fn listen(netns: &Netns, groups: u32, to_all: bool) -> Result<Self, Error> {
        let failed = |source| Error::Netlink {
            op: "listen for links".into(),
            netns: netns.label().into(),
            source,
        };
        let socket = netns
            .within(|| -> io::Result<Socket> {
                let mut socket = Socket::new(NETLINK_ROUTE)?;
                setsockopt(&socket, sockopt::RcvBufForce, &WAITING)
                    .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &WAITING))?;
                if to_all {
                    socket.set_listen_all_namespaces(true)?;
                }
                socket.set_non_blocking(true)?;
                socket.bind(&SocketAddr::new(0, groups))?;
                Ok(socket)
            })?
            .map_err(failed)?;
        Ok(Self {
            socket,
            label: netns.label().into(),
            buffer: vec![0; 64 << 10],
            rules: false,
        })
    }

    /// What happened since it was last asked; waits up to `wait` for something, or for ever when it is `None`.
    ///
    /// # Errors
    /// The socket failed.
    pub fn next(&mut self, wait: Option<Duration>) -> Result<LinkNews, Error> {
        // What the clock cannot tell is for ever, too.
        let until = wait.and_then(|wait| Instant::now().checked_add(wait));
        loop {
            match self.read() {
                Ok(events) if !events.is_empty() => return Ok(LinkNews::Events(events)),
                Ok(_) if std::mem::take(&mut self.rules) => return Ok(LinkNews::Rules),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(LinkNews::Lost);
                }
                Err(source) => return Err(self.failed(source)),
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = match left {
                Some(Duration::ZERO) => return Ok(LinkNews::Nothing),
                Some(left) => {
                    let ms = i32::try_from(left.as_nanos().div_ceil(1_000_000));
                    PollTimeout::try_from(ms.unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
                }
                None => PollTimeout::NONE,
            };
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Netlink {
            op: "listen for links".into(),
            netns: self.label.clone(),
            source,
        }
    }

    /// All that waits.
    fn read(&mut self) -> io::Result<Vec<LinkEvent>> {
        let mut events = Vec::new();
        loop {
            match sys::receive_with_nsid(self.socket.as_fd(), &mut self.buffer) {
                Ok((length, netns)) => {
                    let octets = self.buffer.get(..length).unwrap_or_default();
                    for (kind, body) in messages(octets) {
                        self.rules |= is_of_rules(kind);
                        events.extend(event(kind, body, netns));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What came before is left too: whoever looks for itself sees it.
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for LinkEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Type and body of each message in a datagram.
fn messages(octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

const fn is_of_rules(kind: u16) -> bool {
    matches!(
        kind,
        RTM_NEWQDISC | RTM_DELQDISC | RTM_NEWTFILTER | RTM_DELTFILTER
    )
}

fn event(kind: u16, body: &[u8], netns: Option<i32>) -> Option<LinkEvent> {
    if !matches!(kind, RTM_NEWLINK | RTM_DELLINK) {
        return None;
    }
    let link: Link = link::parse(body)?;
    // Of a port that was taken from its bridge the kernel says the same as of a link that is gone, but for the family.
    let is_of_bridge = body.first() == Some(&(libc::AF_BRIDGE as u8));
    Some(LinkEvent {
        netns,
        index: link.index,
        is_gone: kind == RTM_DELLINK && !is_of_bridge,
        is_ours: attach::is_ours(&link),
        name: link.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_taken_from_its_bridge_is_not_gone() {
        let told = |kind, family: i32| {
            let mut body = vec![0; 16];
            body[0] = family as u8;
            body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
            body.extend_from_slice(&9_u16.to_ne_bytes());
            body.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
            body.extend_from_slice(b"eth0\0");
            let event = event(kind, &body, None).expect("a link");
            assert_eq!((event.index, &event.name[..]), (7, "eth0"));
            event.is_gone
        };
        assert!(told(RTM_DELLINK, libc::AF_UNSPEC));
        assert!(!told(RTM_DELLINK, libc::AF_BRIDGE));
        assert!(!told(RTM_NEWLINK, libc::AF_UNSPEC));
    }

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let mut octets = Vec::new();
        for (kind, body) in [(16_u16, &b"abc"[..]), (17, b"defg")] {
            octets.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
            octets.extend_from_slice(&kind.to_ne_bytes());
            octets.extend_from_slice(&[0; 10]);
            octets.extend_from_slice(body);
            octets.resize(octets.len().next_multiple_of(4), 0);
        }
        let all: Vec<_> = messages(&octets).collect();
        assert_eq!(all, [(16, &b"abc"[..]), (17, b"defg")]);
        // Cut off, or lying about its length: what is whole is told, and it ends.
        assert_eq!(messages(&octets[..octets.len() - 5]).count(), 1);
        octets[0] = 3;
        octets[1] = 0;
        assert_eq!(messages(&octets).count(), 0);
    }
}
