//! The packet socket: made, set up and bound in the one order in which no frame is seen unfiltered or unmapped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::bpf::{self, BpfInsn};
use crate::sys::{abi, sockopt};
use crate::{Error, Fanout, FanoutMode, LinkType, RingConfig, RingGeometry, SegmentSizes};

/// `PACKET_FANOUT_FLAG_IGNORE_OUTGOING` does not exist before Linux 5.17, so it is tried, not required.
const FANOUT_FLAGS: i32 = 16;

/// Missing in libc: a device without link headers, as modems are.
const ARPHRD_RAWIP: u16 = 519;

/// Whether the kernel can describe UDP's super-frames in a `struct virtio_net_hdr`, as it does since Linux 6.2 (commit 860b7f27b8f7).
///
/// Told by its release: it cannot be tried without such a frame, and a kernel that cannot loses it.
fn tells_segments() -> bool {
    nix::sys::utsname::uname().is_ok_and(|name| since_6_2(&name.release().to_string_lossy()))
}

fn since_6_2(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

/// Which interface a ring is opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface<'a> {
    /// By name.
    Name(&'a str),
    /// By number.
    Index(u32),
}

impl<'a> From<&'a str> for Interface<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for Interface<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

impl From<u32> for Interface<'_> {
    fn from(ifindex: u32) -> Self {
        Self::Index(ifindex)
    }
}

impl Interface<'_> {
    /// Number and name, looked up in the calling thread's network namespace.
    fn resolve(self) -> Result<(u32, String), Error> {
        match self {
            Self::Name(name) => match nix::net::if_::if_nametoindex(name) {
                Ok(ifindex) => Ok((ifindex, name.to_owned())),
                Err(errno) => Err(Error::NoInterface {
                    interface: name.escape_debug().to_string(),
                    source: errno.into(),
                }),
            },
            Self::Index(ifindex) => {
                let name = match nix::net::if_::if_indextoname(ifindex) {
                    // nix 0.31 takes the null pointer of a failure for success.
                    Ok(name) if name.is_empty() => Err(Errno::ENXIO),
                    name => name,
                };
                match name {
                    Ok(name) => Ok((ifindex, name.to_string_lossy().into_owned())),
                    Err(errno) => Err(Error::NoInterface {
                        interface: format!("ifindex {ifindex}"),
                        source: errno.into(),
                    }),
                }
            }
        }
    }
}

/// A packet socket with a ring, made but not yet bound: nothing arrives.
#[derive(Debug)]
pub(crate) struct UnboundSocket {
    fd: OwnedFd,
    ifindex: u32,
    name: String,
    segment_sizes: bool,
}

impl UnboundSocket {
    pub(crate) fn open(
        config: &RingConfig,
        geometry: &RingGeometry,
        interface: Interface<'_>,
    ) -> Result<Self, Error> {
        let (ifindex, name) = interface.resolve()?;
        let fd = sockopt::packet_socket().map_err(|source| Error::Socket {
            advice: match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_RAW",
                Some(libc::EAFNOSUPPORT) => "the kernel needs CONFIG_PACKET",
                Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files",
                _ => "see the cause",
            },
            source,
        })?;
        let mut socket = Self {
            fd,
            ifindex,
            name,
            segment_sizes: false,
        };
        let segment_sizes = config.segment_sizes == SegmentSizes::Auto && tells_segments();
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        socket.set(
            libc::SOL_PACKET,
            ("PACKET_VERSION", libc::PACKET_VERSION),
            &version,
            || "TPACKET_V3".into(),
            "the kernel needs CONFIG_PACKET and to be Linux 3.2 or later",
        )?;
        if segment_sizes {
            // Both have to be known before the ring is made.
            let never = "leave segment_sizes at Never";
            let option = ("PACKET_VNET_HDR", libc::PACKET_VNET_HDR);
            socket.set(libc::SOL_PACKET, option, &1, || "1".into(), never)?;
            let reserve = ("PACKET_RESERVE", libc::PACKET_RESERVE);
            let octets = abi::VNET_ALIGNMENT;
            socket.set(
                libc::SOL_PACKET,
                reserve,
                &octets,
                || octets.to_string(),
                never,
            )?;
            socket.segment_sizes = true;
        }
        socket.set(
            libc::SOL_PACKET,
            ("PACKET_RX_RING", libc::PACKET_RX_RING),
            &geometry.request(),
            || {
                format!(
                    "{} blocks of {} octets",
                    geometry.block_nr(),
                    geometry.block_size()
                )
            },
            "try fewer or smaller blocks",
        )?;
        if config.ignore_outgoing {
            let set = sockopt::set::<libc::c_int>(
                socket.fd.as_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                &1,
            );
            // Unknown before Linux 4.20. The filter leaves the same frames out; this only spares the kernel a clone.
            if let Err(source) = set
                && source.raw_os_error() != Some(libc::ENOPROTOOPT)
            {
                return Err(Error::Option {
                    option: "PACKET_IGNORE_OUTGOING",
                    value: "1".into(),
                    interface: socket.name,
                    advice: "leave ignore_outgoing off",
                    source,
                });
            }
        }
        if config.promiscuous {
            let request = libc::packet_mreq {
                mr_ifindex: i32::try_from(ifindex).unwrap_or(i32::MAX),
                mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            socket.set(
                libc::SOL_PACKET,
                ("PACKET_ADD_MEMBERSHIP", libc::PACKET_ADD_MEMBERSHIP),
                &request,
                || "PACKET_MR_PROMISC".into(),
                "leave promiscuous off",
            )?;
        }
        Ok(socket)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Binds with a filter that keeps nothing, joins the fanout group, then puts the real filter in place: the first
    /// frame that is seen is one that should be.
    pub(crate) fn bind(self, config: &RingConfig) -> Result<Socket, Error> {
        let name = || self.name.clone();
        attach(self.as_fd(), &bpf::DROP_ALL, &self.name)?;
        sockopt::bind_all(self.as_fd(), self.ifindex).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::ENODEV | libc::ENXIO) => Error::NoInterface {
                    interface: name(),
                    source,
                },
                _ => Error::Bind {
                    interface: name(),
                    source,
                },
            }
        })?;
        let failed = |op| {
            move |source| Error::Ring {
                op,
                interface: name(),
                source,
            }
        };
        match sockopt::take_error(self.as_fd()).map_err(failed("read SO_ERROR"))? {
            0 => {}
            libc::ENETDOWN => return Err(Error::InterfaceDown { interface: name() }),
            errno => {
                return Err(Error::Bind {
                    interface: name(),
                    source: io::Error::from_raw_os_error(errno),
                });
            }
        }
        let hatype = sockopt::bound(self.as_fd())
            .map_err(failed("getsockname"))?
            .hatype;
        let link_type = match hatype {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => LinkType::ETHERNET,
            // Layer-3 devices: tun, WireGuard, IP in IP.
            libc::ARPHRD_NONE
            | ARPHRD_RAWIP
            | libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT => LinkType::RAW,
            hatype => {
                return Err(Error::LinkHeader {
                    interface: name(),
                    hatype,
                });
            }
        };
        if let Some(fanout) = config.fanout {
            self.join(fanout, config.ignore_outgoing)?;
        }
        let ignore_outgoing = config.ignore_outgoing.then_some(abi::SKF_AD_PKTTYPE);
        let program = bpf::compose(ignore_outgoing, config.filter.as_deref(), config.snaplen);
        attach(self.as_fd(), &program, &self.name)?;
        Ok(Socket {
            fd: self.fd,
            ifindex: self.ifindex,
            name: self.name,
            link_type,
            segment_sizes: self.segment_sizes,
        })
    }

    /// Nothing has come yet, so no frame is shared out before all is set.
    fn join(&self, fanout: Fanout, ignore_outgoing: bool) -> Result<(), Error> {
        self.join_group(fanout, ignore_outgoing)?;
        if fanout.mode != FanoutMode::Connections {
            return Ok(());
        }
        // Each ring of the group gives the same one.
        sockopt::fanout_by(self.as_fd(), &bpf::by_connection()).map_err(|source| Error::Option {
            option: "PACKET_FANOUT_DATA",
            value: "a program by connection".into(),
            interface: self.name.clone(),
            advice: "Linux 4.3 is needed; or share out by Hash",
            source,
        })
    }

    fn join_group(&self, fanout: Fanout, ignore_outgoing: bool) -> Result<(), Error> {
        let mode = match fanout.mode {
            FanoutMode::Connections => libc::PACKET_FANOUT_CBPF,
            FanoutMode::Hash => libc::PACKET_FANOUT_HASH,
            FanoutMode::Cpu => libc::PACKET_FANOUT_CPU,
            FanoutMode::Queue => libc::PACKET_FANOUT_QM,
        };
        let defrag = if fanout.defrag {
            libc::PACKET_FANOUT_FLAG_DEFRAG
        } else {
            0
        };
        // Group number below, mode and flags above.
        let value = |flags: libc::c_uint| -> libc::c_int {
            (u32::from(fanout.group) | (mode | defrag | flags) << FANOUT_FLAGS).cast_signed()
        };
        if ignore_outgoing {
            // A group has its own hook, which does not know of PACKET_IGNORE_OUTGOING. A kernel without the flag
            // refuses it; the filter leaves the same frames out.
            let with = value(libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING);
            let joined = sockopt::set(self.as_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, &with);
            if joined.is_ok() {
                return Ok(());
            }
        }
        self.set(
            libc::SOL_PACKET,
            ("PACKET_FANOUT", libc::PACKET_FANOUT),
            &value(0),
            || format!("group {} by {:?}", fanout.group, fanout.mode),
            "a group's rings must agree on interface and mode: take another group number",
        )
    }

    fn set<T: sockopt::Plain>(
        &self,
        level: libc::c_int,
        (option, number): (&'static str, libc::c_int),
        value: &T,
        shown: impl FnOnce() -> String,
        advice: &'static str,
    ) -> Result<(), Error> {
        sockopt::set(self.as_fd(), level, number, value).map_err(|source| Error::Option {
            option,
            value: shown(),
            interface: self.name.clone(),
            advice,
            source,
        })
    }
}

fn attach(fd: BorrowedFd<'_>, program: &[BpfInsn], interface: &str) -> Result<(), Error> {
    sockopt::attach_filter(fd, program).map_err(|source| Error::Option {
        option: "SO_ATTACH_FILTER",
        value: format!("a program of {} instructions", program.len()),
        interface: interface.to_owned(),
        advice: match source.raw_os_error() {
            Some(libc::ENOMEM) => "raise net.core.optmem_max or take a shorter filter",
            _ => "the filter is not a valid classic BPF program",
        },
        source,
    })
}

/// A packet socket that is bound: frames arrive.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    pub(crate) ifindex: u32,
    pub(crate) name: String,
    pub(crate) link_type: LinkType,
    /// Frames have a `struct virtio_net_hdr` before them.
    pub(crate) segment_sizes: bool,
}

impl Socket {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// No new frame is taken after this; what the kernel is just copying is done when it returns.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        attach(self.as_fd(), &bpf::DROP_ALL, &self.name)?;
        // A frame that passed the old filter may still be on its way into the ring, on another processor. Where the
        // barrier is not to be had, `Ring` goes on reading the counters until they agree.
        let _ = sockopt::membarrier_global();
        Ok(())
    }

    pub(crate) fn take_statistics(&self) -> Result<sockopt::KernelCounts, Error> {
        sockopt::take_statistics(self.as_fd())
            .map_err(|source| self.failed("PACKET_STATISTICS", source))
    }

    /// The pending error that poll(2) announced, as an [`Error`]; `None` when there is none.
    pub(crate) fn take_error(&self) -> Result<Option<Error>, Error> {
        let errno = sockopt::take_error(self.as_fd())
            .map_err(|source| self.failed("read SO_ERROR", source))?;
        Ok(match errno {
            0 => None,
            libc::ENETDOWN | libc::ENODEV | libc::ENXIO => Some(Error::InterfaceDown {
                interface: self.name.clone(),
            }),
            errno => Some(self.failed("wait for frames", io::Error::from_raw_os_error(errno))),
        })
    }

    pub(crate) fn mtu(&self) -> Result<u32, Error> {
        sockopt::mtu(self.as_fd(), &self.name).map_err(|source| self.failed("SIOCGIFMTU", source))
    }

    /// Whether the interface is still there; a socket whose interface was removed stays open and silent.
    pub(crate) fn is_gone(&self) -> Result<bool, Error> {
        let bound =
            sockopt::bound(self.as_fd()).map_err(|source| self.failed("getsockname", source))?;
        Ok(bound.ifindex < 0)
    }

    pub(crate) fn failed(&self, op: &'static str, source: io::Error) -> Error {
        Error::Ring {
            op,
            interface: self.name.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_tells_its_version() {
        for (release, is_since) in [
            ("6.18.44-fc-v657", true),
            ("6.2.0-39-generic", true),
            ("6.2", true),
            ("7.0-rc1", true),
            ("10.0.1", true),
            ("6.1.0-56-amd64", false),
            ("5.15.0", false),
            ("4.19.2", false),
            ("6", false),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(since_6_2(release), is_since, "{release}");
        }
    }
}
