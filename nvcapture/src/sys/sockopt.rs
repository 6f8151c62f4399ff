//! The packet socket's system calls, typed.

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::bpf::BpfInsn;

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A packet socket that is not yet connected to any protocol, so that nothing arrives before it is set up.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Options are C integers and structs of them.
pub(crate) trait Plain: Copy {}
impl Plain for libc::c_int {}
impl Plain for libc::tpacket_req3 {}
impl Plain for libc::packet_mreq {}

/// setsockopt(2).
pub(crate) fn set<T: Plain>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` octets, which `value` has.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
}

/// Replaces the socket's filter in one step; there is no moment without one.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[BpfInsn]) -> io::Result<()> {
    set_program(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}

/// Replaces the program that says which ring of the socket's fanout group gets a frame.
pub(crate) fn fanout_by(socket: BorrowedFd<'_>, program: &[BpfInsn]) -> io::Result<()> {
    set_program(socket, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, program)
}

fn set_program(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    program: &[BpfInsn],
) -> io::Result<()> {
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut program: Vec<libc::sock_filter> = program
        .iter()
        .map(|insn| libc::sock_filter {
            code: insn.code,
            jt: insn.jt,
            jf: insn.jf,
            k: insn.k,
        })
        .collect();
    let fprog = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `fprog` points at `len` instructions that live until the call is over; the kernel copies them.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&fprog).cast(),
            size_of_val(&fprog) as libc::socklen_t,
        )
    })
}

fn get<T: Default + Plain>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets, which `value` has; any octets make a `Plain` value.
    done(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    })?;
    if len as usize == size_of::<T>() {
        Ok(value)
    } else {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct StatsV3 {
    packets: libc::c_uint,
    drops: libc::c_uint,
    freeze_q_cnt: libc::c_uint,
}
impl Plain for StatsV3 {}
const _: () = assert!(size_of::<StatsV3>() == size_of::<libc::tpacket_stats_v3>());

/// What `PACKET_STATISTICS` counted since it was read last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KernelCounts {
    /// Frames that passed the filter, those dropped among them.
    pub(crate) packets: u32,
    /// Frames that passed the filter and found no room.
    pub(crate) drops: u32,
    /// Times the queue was frozen.
    pub(crate) freezes: u32,
}

/// Reads and resets `PACKET_STATISTICS`.
pub(crate) fn take_statistics(socket: BorrowedFd<'_>) -> io::Result<KernelCounts> {
    let stats: StatsV3 = get(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
    Ok(KernelCounts {
        packets: stats.packets,
        drops: stats.drops,
        freezes: stats.freeze_q_cnt,
    })
}

/// Reads and clears the socket's pending error; 0 when there is none.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    get(socket, libc::SOL_SOCKET, libc::SO_ERROR)
}

/// bind(2) to one interface, all protocols: from here on frames arrive.
pub(crate) fn bind_all(socket: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex =
        libc::c_int::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: the kernel reads the length given from `address`.
    done(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })
}

/// Which interface the socket is bound to, and of what kind it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// The ifindex; -1 when the interface has been removed.
    pub(crate) ifindex: i32,
    /// `ARPHRD_`: what its link headers look like.
    pub(crate) hatype: u16,
}

/// getsockname(2).
pub(crate) fn bound(socket: BorrowedFd<'_>) -> io::Result<Bound> {
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets, which `address` has.
    done(unsafe {
        libc::getsockname(
            socket.as_raw_fd(),
            std::ptr::from_mut(&mut address).cast(),
            &mut len,
        )
    })?;
    Ok(Bound {
        ifindex: address.sll_ifindex,
        hatype: address.sll_hatype,
    })
}

/// The MTU of the interface `name` in the socket's network namespace.
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    // SAFETY: all zeroes is a value of this struct of octets, integers and a null pointer.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // One octet stays 0, the end of the text.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes one `ifreq`, which `request` is.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFMTU as libc::Ioctl,
            std::ptr::from_mut(&mut request),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFMTU has written this member, and any octets make an integer.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Waits until every processor is out of the kernel code it was in (an RCU grace period).
///
/// Fails where the kernel has no membarrier(2) or runs tickless everywhere.
pub(crate) fn membarrier_global() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
