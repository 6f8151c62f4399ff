//! One change at a time, among all processes that work on the same host namespace.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Error, Netns, features, netns, sys};

/// From looking once more whether it is one's turn to the next look: twice as long each time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(8));
/// So many looks are taken, which is some 20 ms, even where it is not to be waited: a ticket that was given back is there for as long as
/// somebody who draws one, or lists maps (`bpftool`), looks at it.
const GRACE: u32 = 5;
/// How often it is looked who that is, at most.
const LOOKS: u32 = 3;

/// Held while links and rules of a host namespace are changed; the kernel lets go of it when its process dies.
///
/// Whoever wants it draws a number, and has it when nobody has a lower one. A ticket is an empty eBPF map that is called after the
/// namespace: the kernel numbers maps in the order in which they are made, and a map is gone with its last descriptor. So nothing is
/// left behind, two host namespaces do not wait for each other, and it does not matter who sees which files.
///
/// The kernel lets nobody make one without CAP_NET_ADMIN, which is why it is this: what else ends with its process and is the same for all
/// processes of a namespace can be had, and kept from us, by anybody inside (a lock on the namespace's own file, an abstract socket's name, a
/// port of netlink). A file that is root's alone is another one in the next mount namespace, as in a container with the host's network.
///
/// A map that may not be opened, as a Linux security module can have it, is taken for none of ours: whoever uses such a module has to let all
/// that attach open each other's maps, or they do not wait for each other.
///
/// Numbers begin anew after 2^31 maps: in the one change that this happens in, two could be at work.
pub(crate) struct Lock {
    _ticket: OwnedFd,
}

impl Lock {
    /// Waits until no other process changes this namespace, but no longer than `wait`, nor than `watch` lets it, which is asked each time that
    /// it is looked in vain.
    pub(crate) fn of(
        host: &Netns,
        wait: Duration,
        watch: &mut dyn FnMut(&Waiting<'_>) -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOSYS) => Error::Unsupported {
                feature: features::EBPF,
                why: source.to_string(),
            },
            _ => Error::Netns {
                op: "lock",
                netns: host.label().into(),
                source,
            },
        };
        let (ticket, mut ahead) = draw(&name(host)).map_err(failed)?;
        let (mut pause, mut looks) = (PAUSES.0, 0);
        // The one just ahead first: most often the others are gone when it is.
        while let Some(&last) = ahead.last() {
            if !is_there(last).map_err(failed)? {
                ahead.pop();
                continue;
            }
            let waiting = Waiting {
                begun,
                ahead: &ahead,
            };
            let waited = waiting.lasted();
            looks += 1;
            if (waited >= wait && looks > GRACE) || watch(&waiting).is_break() {
                let (pid, command) = waiting.holder().unzip();
                return Err(Error::Locked {
                    netns: host.label().into(),
                    pid,
                    command,
                    waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                });
            }
            let rest = wait.saturating_sub(waited);
            std::thread::sleep(if looks > GRACE {
                pause.min(rest)
            } else {
                pause
            });
            pause = (pause * 2).min(PAUSES.1);
        }
        Ok(Self { _ticket: ticket })
    }
}

/// A wait for other processes that change what is attached, as [`Session::open_watched`](crate::Session::open_watched) tells of it.
#[derive(Debug)]
pub struct Waiting<'a> {
    begun: Instant,
    /// Numbers of the tickets ahead, ascending.
    ahead: &'a [u32],
}

impl Waiting<'_> {
    /// How long it has lasted.
    pub fn lasted(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Pid and command (escaped) of the process whose turn it is, if it may be seen. All of `/proc` is looked through for it, which takes
    /// milliseconds: not for every call.
    pub fn holder(&self) -> Option<(u32, String)> {
        let mut ahead = self.ahead.iter();
        let first = ahead.find(|one| is_there(**one).unwrap_or(false))?;
        process_with(*first)
    }
}

/// How tickets for a namespace are called: 14 of the 15 octets that a map's name can have.
fn name(host: &Netns) -> String {
    // Inodes of namespaces have 32 bits; if they had more, a few namespaces would wait for each other.
    format!("nv_lk_{:08x}", host.id().ino & 0xffff_ffff)
}

/// A ticket, and the numbers of those ahead, ascending. No more can come ahead of it.
fn draw(name: &str) -> io::Result<(OwnedFd, Vec<u32>)> {
    let ticket = sys::make_map(name)?;
    // Without one it would not be known who is ahead.
    let own = sys::number_of_map(ticket.as_fd(), name)?
        .ok_or_else(|| io::Error::other("the kernel tells neither type nor name of an eBPF map"))?;
    let mut ahead = Vec::new();
    let mut at = 0;
    while let Some(number) = sys::map_after(at)?.filter(|number| *number < own) {
        at = number;
        // One that is gone by now is waited for no more.
        if let Some(map) = if_allowed(sys::map(number))?
            && sys::number_of_map(map.as_fd(), name)?.is_some()
        {
            ahead.push(number);
        }
    }
    Ok((ticket, ahead))
}

/// `None` for a map that may not be opened. That it is not for the lack of a capability [`sys::map_after`] tells, which takes the same one.
fn if_allowed<T>(map: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match map {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => Ok(None),
        other => other,
    }
}

/// Whether the map of this number is still there; it is not opened for that, which would keep it.
fn is_there(number: u32) -> io::Result<bool> {
    Ok(sys::map_after(number.saturating_sub(1))? == Some(number))
}

/// Pid and command of a process that has this map open, as far as may be seen. The command is escaped.
fn process_with(map: u32) -> Option<(u32, String)> {
    // Who just looked at it has let go of it by the second look.
    let (process, _) = (0..LOOKS).find_map(|_| {
        let found = descriptor_of(map, netns::pids())?;
        std::thread::sleep(PAUSES.0);
        is_of(map, &found.1).then_some(found)
    })?;
    let command = fs::read(process.join("comm")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command);
    Some((
        process.file_name()?.to_str()?.parse().ok()?,
        command.trim_end().escape_debug().to_string(),
    ))
}

/// The first of these folders of processes in which this map is open, and as which file.
fn descriptor_of(
    map: u32,
    mut processes: impl Iterator<Item = PathBuf>,
) -> Option<(PathBuf, PathBuf)> {
    processes.find_map(|process| {
        let fds = fs::read_dir(process.join("fd")).into_iter().flatten();
        let mut paths = fds.flatten().map(|fd| fd.path());
        let fd = paths.find(|fd| is_of(map, fd))?;
        Some((process, fd))
    })
}

/// Whether this file of a process is the map of this number.
fn is_of(map: u32, fd: &Path) -> bool {
    let is_map = fs::read_link(fd).is_ok_and(|to| to.as_os_str() == "anon_inode:bpf-map");
    let info = fd
        .parent()
        .and_then(Path::parent)
        .zip(fd.file_name())
        .map(|(process, number)| process.join("fdinfo").join(number));
    let line = format!("map_id:\t{map}");
    is_map
        && info
            .and_then(|info| fs::read_to_string(info).ok())
            .is_some_and(|text| text.lines().any(|l| l == line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_namespaces_share_a_name_that_is_cut() {
        let host = Netns::current().expect("one's own");
        // Of a longer one the kernel would have the beginning alone, which is the same for many.
        assert!(name(&host).len() < 16, "{}", name(&host));
    }

    #[test]
    fn a_map_that_may_not_be_opened_is_no_ticket() {
        let refused = |errno| if_allowed::<()>(Err(io::Error::from_raw_os_error(errno)));
        for errno in [libc::EPERM, libc::EACCES] {
            assert!(refused(errno).is_ok_and(|map| map.is_none()));
        }
        assert!(refused(libc::EMFILE).is_err());
        assert!(if_allowed(Ok(Some(7))).is_ok_and(|map| map == Some(7)));
    }
}
