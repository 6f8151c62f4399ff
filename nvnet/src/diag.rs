//! Sockets that are bound to an interface, as `sock_diag` tells of them.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::{Error, Netns};

/// `NETLINK_SOCK_DIAG`.
const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Octets of `struct nlmsghdr` and of `struct inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Where `struct inet_diag_msg` has the number of the interface.
const BOUND_TO: usize = 40;
/// Families and protocols: TCP, UDP, UDP-Lite and raw, in IPv4 and IPv6.
const FAMILIES: [u8; 2] = [2, 10];
const PROTOCOLS: [u8; 4] = [6, 17, 136, 255];
const MESSAGE: usize = 64 << 10;

/// How many sockets of a namespace are bound to an interface (`SO_BINDTODEVICE`, or a link-local address), by its number.
pub(crate) fn bound(netns: &Netns) -> Result<BTreeMap<u32, usize>, Error> {
    let failed = |source| Error::Netlink {
        op: "list sockets".into(),
        netns: netns.label().into(),
        source,
    };
    let socket = netns.within(|| Socket::new(NETLINK_SOCK_DIAG))?;
    let mut socket = socket.map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(10, 0))
        .map_err(|e| failed(e.into()))?;
    let mut found = BTreeMap::new();
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let mut message = Vec::with_capacity(HEADER + REQUEST);
            message.extend(
                u32::try_from(HEADER + REQUEST)
                    .expect("72 octets")
                    .to_ne_bytes(),
            );
            message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
            message.extend([0; 8]);
            message.extend([family, protocol, 0, 0]);
            // Sockets in any state, with any address.
            message.extend(u32::MAX.to_ne_bytes());
            message.resize(HEADER + REQUEST, 0);
            socket
                .send_to(&message, &SocketAddr::new(0, 0), 0)
                .map_err(failed)?;
            collect(&socket, &mut found).map_err(failed)?;
        }
    }
    Ok(found)
}

/// Reads a dump to its end. A kernel that cannot tell of a protocol's sockets says so, and then there is nothing to count.
fn collect(socket: &Socket, found: &mut BTreeMap<u32, usize>) -> io::Result<()> {
    loop {
        let mut buffer = Vec::with_capacity(MESSAGE);
        let (_, from) = socket.recv_from(&mut buffer, 0)?;
        if from.port_number() != 0 {
            continue;
        }
        let mut rest = &buffer[..];
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = u32::from_ne_bytes(*len) as usize;
            let kind = after
                .first_chunk()
                .map_or(NLMSG_ERROR, |kind| u16::from_ne_bytes(*kind));
            if kind == NLMSG_DONE || kind == NLMSG_ERROR {
                return Ok(());
            }
            let Some(body) = rest.get(HEADER..len) else {
                return Ok(());
            };
            match body.get(BOUND_TO..).and_then(crate::attr::u32_of) {
                None | Some(0) => {}
                Some(link) => *found.entry(link).or_insert(0) += 1,
            }
            rest = rest.get(crate::attr::align(len)..).unwrap_or(&[]);
        }
    }
}
