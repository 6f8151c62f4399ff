//! The system calls that no crate types: `bpf(2)`, the namespace ioctl, packet sockets by number, and whose news a datagram of netlink is. All `unsafe` of this crate is here.
#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper; each block says why it is sound"
)]

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::memlock;

/// `NS_GET_NSTYPE` of include/uapi/linux/nsfs.h: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Which kind of namespace an open file is: one of the `CLONE_NEW*` values. Since Linux 4.11.
///
/// # Errors
/// `ENOTTY` when the file is no namespace at all.
pub(crate) fn namespace_type(file: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: the request takes no argument and writes nowhere; the descriptor is open for the call, as it is borrowed.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(kind)
    }
}

/// One eBPF instruction: `struct bpf_insn` of include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    /// Operation code.
    pub(crate) code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub(crate) regs: u8,
    /// Offset of a jump or of a memory operand.
    pub(crate) off: i16,
    /// Immediate operand.
    pub(crate) imm: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

/// The head of `union bpf_attr` as `BPF_PROG_LOAD` reads it, up to `prog_name` (Linux 4.15).
#[repr(C)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; BPF_NAME],
}

const _: () = assert!(size_of::<ProgLoadAttr>() == 64);

const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// Loads a classifier (`BPF_PROG_TYPE_SCHED_CLS`); a refusal brings what the verifier wrote into `log`.
///
/// # Errors
/// `EPERM` without CAP_BPF or beyond RLIMIT_MEMLOCK where that cannot be raised, `EACCES` or `EINVAL` when the verifier refuses, `ENOSYS` without the system call.
pub(crate) fn load_classifier(name: &CStr, insns: &[Insn], log: &mut [u8]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut attr = ProgLoadAttr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(insns.len()).map_err(too_long)?,
        insns: insns.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(too_long)?,
        log_buf: if log.is_empty() {
            0
        } else {
            log.as_mut_ptr() as u64
        },
        kern_version: 0,
        prog_flags: 0,
        prog_name: object_name(name.to_bytes()),
    };
    // SAFETY: `attr` is laid out as the kernel reads it (asserted above). Its pointers lead to `insns` (`insn_cnt` entries), a NUL-ended
    // string and `log` (`log_size` octets, the only memory that is written), all of which outlive the calls.
    let fd = memlock::charged(|| unsafe { bpf(BPF_PROG_LOAD, &mut attr) })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns (the kernel sets O_CLOEXEC on it).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Octets of an eBPF object's name, with the NUL (`BPF_OBJ_NAME_LEN`).
const BPF_NAME: usize = 16;

/// The head of `union bpf_attr` as `BPF_MAP_CREATE` reads it, up to `map_name` (Linux 4.15).
#[repr(C)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; BPF_NAME],
}

const _: () = assert!(size_of::<MapCreateAttr>() == 44);

/// The same for `BPF_MAP_GET_NEXT_ID` and `BPF_MAP_GET_FD_BY_ID`.
#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

const _: () = assert!(size_of::<IdAttr>() == 12);

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

const _: () = assert!(size_of::<InfoAttr>() == 16);

/// The head of `struct bpf_map_info`, up to `name` (Linux 4.15).
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; BPF_NAME],
}

const _: () = assert!(size_of::<MapInfo>() == 40);

const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_GET_NEXT_ID: c_int = 12;
const BPF_MAP_GET_FD_BY_ID: c_int = 14;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;
/// Since Linux 4.15.
const BPF_F_RDONLY: u32 = 1 << 3;
/// Of the types there are since Linux 4.14 the one that takes CAP_NET_ADMIN, whether or not others may be made without a capability.
const BPF_MAP_TYPE_DEVMAP: u32 = 14;

/// `bpf(2)`.
///
/// # Safety
/// `attr` is laid out as `command` reads and writes it, and what it points to is as the command needs it for as long as the call takes.
unsafe fn bpf<T>(command: c_int, attr: &mut T) -> io::Result<c_int> {
    let attr: *mut T = attr;
    // SAFETY: the size is passed along, so nothing beyond `attr` is touched; all else is the caller's to see to.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>() as libc::c_uint) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        c_int::try_from(done).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// An empty eBPF map of this name, of a type that nobody makes without CAP_NET_ADMIN. Of the name 15 octets are taken.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN and CAP_BPF or beyond RLIMIT_MEMLOCK where that cannot be raised, `ENOSYS` without the system call.
pub(crate) fn make_map(name: &str) -> io::Result<OwnedFd> {
    let mut attr = MapCreateAttr {
        map_type: BPF_MAP_TYPE_DEVMAP,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: object_name(name.as_bytes()),
    };
    // SAFETY: laid out as the kernel reads it (asserted above); there is no pointer in it.
    let fd = memlock::charged(|| unsafe { bpf(BPF_MAP_CREATE, &mut attr) })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns (the kernel sets O_CLOEXEC on it).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What an eBPF object's name has room for, and a NUL.
fn object_name(name: &[u8]) -> [u8; BPF_NAME] {
    let mut octets = [0; BPF_NAME];
    for (to, from) in octets.iter_mut().take(BPF_NAME - 1).zip(name) {
        *to = *from;
    }
    octets
}

/// The number of a map made by [`make_map`] for this name; `None` when it is another one.
///
/// # Errors
/// The descriptor is none of a map.
pub(crate) fn number_of_map(map: BorrowedFd<'_>, name: &str) -> io::Result<Option<u32>> {
    let mut info = MapInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: u32::try_from(map.as_raw_fd())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        info_len: size_of::<MapInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: laid out as the kernel reads it (asserted above). It writes no more than `info_len` octets into `info`, which outlives the
    // call and may hold any octets; the descriptor is open for the call, as it is borrowed.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let is_one = info.map_type == BPF_MAP_TYPE_DEVMAP && info.name == object_name(name.as_bytes());
    Ok(is_one.then_some(info.id))
}

/// The lowest number of an eBPF map above this one; the kernel numbers them in the order in which they are made.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub(crate) fn map_after(number: u32) -> io::Result<Option<u32>> {
    let mut attr = IdAttr {
        id: number,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: laid out as the kernel reads and writes it (asserted above); there is no pointer in it.
    match unsafe { bpf(BPF_MAP_GET_NEXT_ID, &mut attr) } {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The eBPF map of this number, if it is still there, to ask what it is: with no more rights on what is in it than have to be asked for.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `EACCES` or `EPERM` when a Linux security module keeps this one from us.
pub(crate) fn map(number: u32) -> io::Result<Option<OwnedFd>> {
    let mut attr = IdAttr {
        id: number,
        next_id: 0,
        open_flags: BPF_F_RDONLY,
    };
    // SAFETY: laid out as the kernel reads it (asserted above); there is no pointer in it.
    match unsafe { bpf(BPF_MAP_GET_FD_BY_ID, &mut attr) } {
        // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns (the kernel sets O_CLOEXEC on it).
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The head of `union bpf_attr` as `BPF_PROG_QUERY` reads and writes it, up to `revision` (Linux 6.6).
#[repr(C)]
#[derive(Default)]
struct ProgQueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<ProgQueryAttr>() == 64);

/// The same for `BPF_PROG_ATTACH`, up to `expected_revision`.
#[repr(C)]
#[derive(Default)]
struct ProgAttachAttr {
    target_ifindex: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    relative_fd: u32,
    expected_revision: u64,
}

const _: () = assert!(size_of::<ProgAttachAttr>() == 32);

const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_QUERY: c_int = 16;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
fn tcx(ingress: bool) -> u32 {
    if ingress { 46 } else { 47 }
}

/// How many TCX programs are attached to a hook of a link of the calling thread's namespace.
///
/// # Errors
/// `EINVAL` before Linux 6.6, `EPERM` without CAP_NET_ADMIN, `ENODEV` without the link.
pub(crate) fn tcx_count(link: u32, ingress: bool) -> io::Result<u32> {
    let mut attr = ProgQueryAttr {
        target_ifindex: link,
        attach_type: tcx(ingress),
        ..ProgQueryAttr::default()
    };
    // SAFETY: laid out as the kernel reads and writes it (asserted above). Its pointers are null with room for no program: only the count is
    // told.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(attr.prog_cnt)
}

/// Attaches a classifier to a hook of a link of the calling thread's namespace by TCX; it stays as long as the link.
///
/// # Errors
/// `EINVAL` before Linux 6.6, `EPERM` without CAP_NET_ADMIN, `ENODEV` without the link.
pub(crate) fn tcx_attach(link: u32, ingress: bool, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = ProgAttachAttr {
        target_ifindex: link,
        attach_bpf_fd: u32::try_from(program.as_raw_fd())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        attach_type: tcx(ingress),
        ..ProgAttachAttr::default()
    };
    // SAFETY: laid out as the kernel reads it (asserted above); there is no pointer in it. The descriptor is open for the call, as it is borrowed.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// `struct sockaddr_ll` of the link with this number, for all protocols.
fn all_of(link: u32) -> io::Result<libc::sockaddr_ll> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok(libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: c_int::try_from(link).map_err(too_large)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    })
}

/// A socket, not blocking, that sends frames through a link and receives those frames of it that `filter` takes.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW, `ENODEV` without the link.
pub(crate) fn packet_socket(link: u32, filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let address = all_of(link)?;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(too_long)?,
        filter: filter.as_ptr().cast_mut(),
    };
    let ok = |returned: c_int| match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointer is passed. Without a protocol it receives nothing until it is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel reads one `sock_fprog` of the size given, and through it `len` instructions of `filter`, which
    // outlives the call; it writes nothing.
    ok(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })?;
    // SAFETY: the kernel reads one `sockaddr_ll` of the size given and writes nothing.
    ok(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// `NETLINK_LISTEN_ALL_NSID` of include/uapi/linux/netlink.h.
const NETLINK_LISTEN_ALL_NSID: c_int = 8;

/// Receives a datagram, and the number of the namespace that it tells of, where that is not the socket's own.
///
/// # Errors
/// `EAGAIN` when there is none, `ENOBUFS` when some were lost.
pub(crate) fn receive_with_nsid(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<i32>)> {
    /// Aligned as `struct cmsghdr` has to be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: a C structure of numbers and pointers, for which all zeroes are a value; field by field it cannot be made, since some
    // C libraries have private padding in it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the kernel writes into `buffer` and `control` no more than the lengths given, and into `message`; all three outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut netns = None;
    // SAFETY: `message` is what recvmsg(2) left, and its control buffer is still there.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !at.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole, aligned header inside the control buffer.
        let header = unsafe { at.read() };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID) {
            // SAFETY: the kernel puts an int behind this header (net/netlink/af_netlink.c, netlink_cmsg_listen_all_nsid), and 64
            // octets of control hold both whole; alignment is not relied on.
            netns = Some(unsafe { libc::CMSG_DATA(at).cast::<c_int>().read_unaligned() });
        }
        // SAFETY: as for CMSG_FIRSTHDR; `at` is inside the control buffer.
        at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
    }
    Ok((length, netns))
}
