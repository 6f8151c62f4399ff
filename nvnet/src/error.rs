//! What can go wrong while changing a network, and what is left when it does.

use std::io;
use std::path::PathBuf;

/// Why an operation on a network failed.
///
/// [`Display`](std::fmt::Display) tells one level; [`source`](std::error::Error::source) the next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network namespace could not be opened or entered.
    #[error("cannot {op} network namespace {netns}")]
    Netns {
        /// `open`, `enter`, `create`, `lock` or `look for`.
        op: &'static str,
        /// Which one, as the caller named it.
        netns: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused one rtnetlink request; nothing of that request was applied.
    #[error("the kernel refused to {op} in {netns}{}", said(.kernel_says))]
    Refused {
        /// What was asked for: verb and object.
        op: String,
        /// The namespace it was asked in.
        netns: String,
        /// The kernel's own words (`NLMSGERR_ATTR_MSG`), where it has some.
        kernel_says: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The netlink socket itself failed, or the kernel's answer could not be read.
    #[error("netlink: cannot {op} in {netns}")]
    Netlink {
        /// What was being done.
        op: String,
        /// The namespace it was done in.
        netns: String,
        /// The socket's error.
        source: io::Error,
    },
    /// A file of the kernel (sysctl, `/proc`) could not be read or written.
    #[error("cannot {op} {}", .path.display())]
    Proc {
        /// `read` or `write`.
        op: &'static str,
        /// Which one.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not take a classifier program.
    #[error("the kernel refused the classifier program `{program}`{}", said(.verifier))]
    Bpf {
        /// The program's name.
        program: &'static str,
        /// The verifier's last words, where it has some.
        verifier: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("no interface `{interface}` in {netns} (there: {})", list(.present))]
    NoSuchInterface {
        /// The name asked for.
        interface: String,
        /// Where it was looked for.
        netns: String,
        /// The interfaces that are there.
        present: Vec<String>,
    },
    /// There is no interface that could be attached.
    #[error("nothing to attach in {netns}: it has no Ethernet interface (there: {})", list(.present))]
    NothingToAttach {
        /// Where it was looked for.
        netns: String,
        /// The interfaces that are there.
        present: Vec<String>,
    },
    /// Every interface that was to be attached is down, or the one that inline mode was to take the place of.
    #[error("{} in {netns} {} down", list(.interfaces), if .interfaces.len() == 1 { "is" } else { "are" })]
    Down {
        /// The interfaces.
        interfaces: Vec<String>,
        /// Their namespace.
        netns: String,
    },
    /// The target is the host's own namespace.
    #[error(
        "{netns} is the host's own network namespace; attaching it would mirror the host into itself"
    )]
    HostNetwork {
        /// The target, as the caller named it.
        netns: String,
    },
    /// The interface is attached already.
    #[error("`{interface}` in {netns} is attached already (id {id})")]
    AlreadyAttached {
        /// The interface.
        interface: String,
        /// Its namespace.
        netns: String,
        /// The attachment that holds it.
        id: crate::AttachmentId,
    },
    /// The interface belongs to an attachment that a killed process left half-done.
    #[error("{interface} in {netns} is part of an attachment that was left half-done")]
    Unfinished {
        /// The interface.
        interface: String,
        /// Its namespace.
        netns: String,
    },
    /// There is no such attachment.
    #[error("there is no attachment {id}")]
    NotAttached {
        /// The id asked for.
        id: crate::AttachmentId,
    },
    /// The name is none that an interface can have.
    #[error("`{name}` cannot be an interface's name: {why}")]
    BadName {
        /// The name, escaped.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The chosen mode is not safe for this interface.
    #[error("{mode} mode is not safe for `{interface}` in {netns}: {why}")]
    Unsafe {
        /// The mode asked for.
        mode: crate::Mode,
        /// The interface.
        interface: String,
        /// Its namespace.
        netns: String,
        /// What would break.
        why: String,
    },
    /// This kernel lacks something that is needed.
    #[error("this kernel has no {feature}: {why}")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// How that was found out.
        why: String,
    },
    /// All 65,535 ids, or all ports of the bridge, are taken.
    #[error("no free {what}: {taken} are taken")]
    Exhausted {
        /// What ran out.
        what: &'static str,
        /// How many there are.
        taken: usize,
    },
    /// Something of this name is there and is not ours.
    #[error("`{name}` in {netns} was not made by nvnet: {why}")]
    Foreign {
        /// The name.
        name: String,
        /// Where.
        netns: String,
        /// Why it cannot be ours.
        why: String,
    },
    /// After the change the container's network was not what it had been.
    #[error("the network of `{interface}` in {netns} would have changed: {}", .differences.join("; "))]
    Changed {
        /// The interface.
        interface: String,
        /// Its namespace.
        netns: String,
        /// What differed.
        differences: Vec<String>,
    },
    /// The container answered before its interface was exchanged, and not after.
    #[error(
        "`{interface}` in {netns} answered no ARP probe for {waited_ms} ms after the switch, though it did before"
    )]
    Silent {
        /// The interface.
        interface: String,
        /// Its namespace.
        netns: String,
        /// How long it was probed.
        waited_ms: u64,
    },
    /// The namespace behind an attachment could not be found.
    #[error(
        "cannot find the network namespace of attachment {id} ({netns}): no process, mount or file holds it open"
    )]
    NetnsLost {
        /// The attachment.
        id: crate::AttachmentId,
        /// What is recorded of it.
        netns: String,
    },
    /// The kernel did not finish something in time.
    #[error("gave up after {waited_ms} ms waiting for {what} in {netns}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// Where.
        netns: String,
        /// How long.
        waited_ms: u64,
    },
    /// Another process changes what is attached, and was not done in time.
    #[error("{} works on what is attached in {netns}, still after {waited_ms} ms", holder(.pid, .command))]
    Locked {
        /// The host's namespace.
        netns: String,
        /// That process, if it may be seen.
        pid: Option<u32>,
        /// How its command is called, escaped.
        command: Option<String>,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The change failed and was taken back; the network is as it was.
    #[error("failed, and was undone ({undone} of {undone} changes)")]
    Undone {
        /// How many changes were taken back.
        undone: usize,
        /// Why it failed.
        source: Box<Error>,
    },
    /// The change failed and could not be taken back entirely.
    #[error("failed, and {} could not be undone", list(.left))]
    RollbackIncomplete {
        /// What is still there, newest first.
        left: Vec<String>,
        /// Why it failed.
        source: Box<Error>,
    },
}

impl Error {
    /// What is still in the kernel that should not be: empty when all was undone.
    pub fn left(&self) -> &[String] {
        match self {
            Self::RollbackIncomplete { left, .. } => left,
            _ => &[],
        }
    }

    /// What to do about it, in one line, where something can be done: functions of this crate, and commands that do the same.
    pub fn remedy(&self) -> Option<String> {
        let errno = |source: &io::Error| source.raw_os_error();
        Some(match self {
            Self::RollbackIncomplete { .. } => "`repair` undoes what is left (`nvcli repair`); then look at what `list` shows (`nvcli list`)".into(),
            Self::Undone { source, .. } => return source.remedy(),
            Self::Netns { op: "lock", source, .. } | Self::Bpf { source, .. }
                if errno(source) == Some(libc::EPERM) && may_use_bpf() =>
            {
                "this process has the capabilities; what may still forbid bpf(2): RLIMIT_MEMLOCK before Linux 5.11 (`ulimit -l unlimited`, LimitMEMLOCK=infinity), \
                 a user namespace, a seccomp filter (as that of a container), an LSM, the kernel's lockdown"
                    .into()
            }
            Self::Refused { source, .. }
            | Self::Netlink { source, .. }
            | Self::Netns { source, .. }
            | Self::Bpf { source, .. }
            | Self::Proc { source, .. }
                if matches!(errno(source), Some(libc::EPERM | libc::EACCES)) =>
            {
                "run it as root (CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF are needed)".into()
            }
            Self::Netns { source, .. } | Self::Bpf { source, .. } | Self::Netlink { source, .. }
                if matches!(errno(source), Some(libc::EMFILE | libc::ENFILE)) =>
            {
                "this process may open no more files: raise its limit (`ulimit -n`)".into()
            }
            Self::Netns { source, .. } if errno(source) == Some(libc::ENOENT) => {
                "check the pid or name; `ls /run/netns` shows named namespaces".into()
            }
            Self::BadName { .. } => "name an interface as `ip link` shows it".into(),
            Self::NothingToAttach { .. } => "give it an Ethernet interface, or choose another target".into(),
            Self::Down { .. } => "set it up first; in mirror mode it can be attached while it is down, by its name".into(),
            Self::NetnsLost { .. } => "`ip link delete` its port when the container is gone for good".into(),
            Self::NoSuchInterface { .. } => "name one of the interfaces that are there".into(),
            Self::HostNetwork { .. } => {
                "choose a container with a network of its own; the host's traffic is read without attaching".into()
            }
            Self::AlreadyAttached { .. } => "detach it first, or read its flows as it is".into(),
            Self::Unfinished { .. } => "`repair` undoes it (`nvcli repair`)".into(),
            Self::NotAttached { .. } => "`list` shows what is attached (`nvcli list`)".into(),
            Self::Silent { .. } | Self::Unsafe { mode: crate::Mode::Inline, .. } => "use mirror mode: it leaves the container untouched".into(),
            Self::Unsafe { .. } => "use inline mode".into(),
            Self::Foreign { .. } => "rename or remove it, then try again".into(),
            Self::Exhausted { what: "id", .. } => "detach something first".into(),
            Self::Exhausted { .. } => {
                "use mirror mode, which needs no port; or detach something first".into()
            }
            Self::Locked { pid: Some(pid), .. } => format!("wait until it is done; if it hangs, `kill {pid}`, and what it leaves is repaired by the next attach"),
            Self::Locked { .. } => "wait until it is done".into(),
            Self::Timeout { .. } => "try again; if it stays, look at the kernel's log".into(),
            _ => return None,
        })
    }
}

/// Whether this thread has the capabilities that our uses of `bpf(2)` take, be they those of a user namespace.
fn may_use_bpf() -> bool {
    std::fs::read_to_string("/proc/thread-self/status").is_ok_and(|status| allows_bpf(&status))
}

fn allows_bpf(status: &str) -> bool {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap_or_default();
    u64::from_str_radix(line.trim(), 16)
        .is_ok_and(|has| has & CAP_NET_ADMIN != 0 && has & CAP_SYS_ADMIN != 0)
}

/// `: words`, or nothing.
fn said(words: &Option<String>) -> String {
    words.as_ref().map(|w| format!(": {w}")).unwrap_or_default()
}

/// `process 4711 (nvcli)`, as far as it is known.
fn holder(pid: &Option<u32>, command: &Option<String>) -> String {
    match (pid, command) {
        (Some(pid), Some(command)) => format!("process {pid} ({command})"),
        (Some(pid), None) => format!("process {pid}"),
        (None, _) => "another process".into(),
    }
}

/// `a, b, c`, or `none`.
fn list(items: &[String]) -> String {
    if items.is_empty() {
        "none".into()
    } else {
        items.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_not_told_to_be_root() {
        for (capabilities, allows) in [
            ("000001ffffffffff", true),
            ("0000000000201000", true),
            ("0000008000001000", false),
            ("0000000000000000", false),
            ("", false),
        ] {
            let status =
                format!("Name:\tnvcli\nCapPrm:\t000001ffffffffff\nCapEff:\t{capabilities}\n");
            assert_eq!(allows_bpf(&status), allows, "{capabilities}");
        }
        let forbidden = |op| Error::Netns {
            op,
            netns: "host".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        let remedy = |op| forbidden(op).remedy().expect("something to do");
        assert!(remedy("enter").contains("run it as root"));
        assert_eq!(remedy("lock").contains("RLIMIT_MEMLOCK"), may_use_bpf());
        assert_eq!(remedy("lock").contains("run it as root"), !may_use_bpf());
    }

    #[test]
    fn what_to_do_is_told_to_callers_first_and_then_as_a_command() {
        let id = crate::AttachmentId::new(1).expect("not zero");
        let (interface, netns) = (String::from("eth0"), String::from("web"));
        let incomplete = Error::RollbackIncomplete {
            left: vec!["nv-br".into()],
            source: Box::new(Error::NotAttached { id }),
        };
        for (error, function) in [
            (incomplete, "repair"),
            (Error::Unfinished { interface, netns }, "repair"),
            (Error::NotAttached { id }, "list"),
        ] {
            let remedy = error.remedy().expect("there is something to do");
            let place = |what: &str| remedy.find(what).expect("named");
            assert!(
                place(&format!("`{function}`")) < place(&format!("`nvcli {function}`")),
                "{remedy}"
            );
        }
        let full = Error::Exhausted {
            what: "port",
            taken: 1_023,
        };
        assert!(!full.remedy().expect("something to do").contains("--"));
    }
}
