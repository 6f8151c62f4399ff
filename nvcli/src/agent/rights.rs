//! Gives up what a thread does not need. docs/security.md says what stays and why.
//!
//! Capabilities, then the file system (Landlock), then system calls (seccomp): all three are of a thread, and of those that it starts
//! afterwards. What a kernel does not have is left out, with a line in the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What the thread needs that attaches, and the process with it.
///
/// NET_ADMIN: links and rules. SYS_ADMIN: entering namespaces. BPF and PERFMON: loading the classifiers. NET_RAW: rings. SYS_PTRACE: opening
/// the namespace of somebody else's process. NET_BROADCAST: hearing of links in other namespaces. DAC_OVERRIDE: an engine's socket and a
/// container's sysctls may belong to others.
const ATTACHING: [Capability; 8] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_NET_BROADCAST,
    Capability::CAP_DAC_OVERRIDE,
];

/// What a ring's thread needs: to open its ring again when nv-br has been away.
const READING: [Capability; 1] = [Capability::CAP_NET_RAW];

/// System calls that nothing here makes, and that are of use to somebody who has taken over a thread: other programs, other processes'
/// memory, the kernel's own code, mounts, keys, and ways into the kernel that are often open.
const NOBODYS: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_personality,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
];

/// What attaching needs beside that, and nothing else.
const THE_KEEPERS: &[libc::c_long] = &[libc::SYS_setns, libc::SYS_unshare, libc::SYS_bpf];

/// The newest Landlock that is known here; of an older kernel what it has.
const LANDLOCK: ABI = ABI::V5;

/// What of the file system a thread may use.
enum Files<'p> {
    /// Nothing: whatever it needs is open.
    None,
    /// All may be read, and what is beneath these paths written.
    Beneath(&'p [PathBuf]),
}

/// For the whole process, before it starts threads: no more than attaching needs, and no program that it starts ever gets more.
pub(crate) fn of_process() {
    if let Err(errno) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!("no_new_privs cannot be set: {errno}");
    }
    keep(&ATTACHING);
    forbid("of the process", refused(NOBODYS), libc::EPERM);
}

/// For a thread that reads a ring.
pub(crate) fn of_reader() {
    keep(&READING);
    seal();
}

/// For a thread that needs none: it meters, names, answers.
pub(crate) fn of_worker() {
    keep(&[]);
    seal();
}

/// For threads that carry records away, to files beneath `paths` and over the network.
pub(crate) fn of_exporter(paths: &[PathBuf]) {
    keep(&[]);
    confine(&Files::Beneath(paths));
    forbid("of a thread", refused(THE_KEEPERS), libc::EPERM);
    no_namespaces();
}

/// For the thread that talks to engines: their sockets may belong to others.
pub(crate) fn of_listener() {
    keep(&[Capability::CAP_DAC_OVERRIDE]);
    confine(&Files::Beneath(&[]));
    forbid("of a thread", refused(THE_KEEPERS), libc::EPERM);
    no_namespaces();
}

/// For the main thread, once the others run: it reads the configuration again, whosever it is, and takes the socket's file away.
pub(crate) fn of_main() {
    keep(&[Capability::CAP_DAC_OVERRIDE]);
    forbid("of a thread", refused(THE_KEEPERS), libc::EPERM);
}

/// No files, no namespaces, no new code.
fn seal() {
    confine(&Files::None);
    let mut rules = refused(THE_KEEPERS);
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        rules.insert(call, with_bits(2, libc::PROT_EXEC as u64));
    }
    forbid("of a thread", rules, libc::EPERM);
    no_namespaces();
}

/// A new user namespace would have all capabilities again, within it.
fn no_namespaces() {
    const NEW: u64 = (libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP) as u64;
    let each = (0..u64::BITS).map(|bit| 1 << bit);
    let asked = each.filter(|bit| NEW & bit != 0);
    let clone = asked.flat_map(|bit| with_bits(0, bit)).collect();
    let rules = BTreeMap::from([(libc::SYS_clone, clone)]);
    forbid("of namespaces", rules, libc::EPERM);
    // Its flags are in memory, where no filter looks; without it threads are started by the older call.
    forbid("of clone3", refused(&[libc::SYS_clone3]), libc::ENOSYS);
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// Whatever their arguments are.
fn refused(calls: &[libc::c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// When all of `bits` are set in an argument.
fn with_bits(argument: u8, bits: u64) -> Vec<SeccompRule> {
    let operator = SeccompCmpOp::MaskedEq(bits);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, bits).ok();
    let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]).ok());
    rule.into_iter().collect()
}

/// From now on the calling thread gets `errno` for these system calls.
fn forbid(what: &str, rules: Rules, errno: libc::c_int) {
    let forbidden = || -> Result<(), String> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
        let refuse = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
        let filter = filter.map_err(|error| error.to_string())?;
        let program = BpfProgram::try_from(filter).map_err(|error| error.to_string())?;
        seccompiler::apply_filter(&program).map_err(|error| error.to_string())
    };
    if let Err(why) = forbidden() {
        tracing::warn!("system calls {what} cannot be given up: {why}");
    }
}

/// From now on the calling thread has only these files; descriptors that are open stay so.
fn confine(files: &Files<'_>) {
    let confined = || -> Result<RulesetStatus, landlock::RulesetError> {
        let all = AccessFs::from_all(LANDLOCK);
        let mut ruleset = Ruleset::default().handle_access(all)?.create()?;
        if let Files::Beneath(paths) = files {
            let read = AccessFs::from_read(LANDLOCK) & !AccessFs::Execute;
            ruleset = with(ruleset, Path::new("/"), read)?;
            for path in *paths {
                ruleset = with(ruleset, there(path), all & !AccessFs::Execute)?;
            }
        }
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match confined() {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {}
        Ok(RulesetStatus::NotEnforced) => {
            tracing::debug!("this kernel has no Landlock: files are not given up");
        }
        Err(error) => tracing::warn!("files cannot be given up: {error}"),
    }
}

fn with(
    ruleset: landlock::RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, landlock::RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => ruleset.add_rule(PathBeneath::new(fd, access)),
        Err(error) => {
            tracing::warn!("{error}");
            Ok(ruleset)
        }
    }
}

/// The path, or of what is not there yet the nearest folder above it that is.
fn there(path: &Path) -> &Path {
    let all = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    all.into_iter()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("."))
}

/// Keeps of the calling thread's capabilities those of `wanted`, and of no other; threads that it starts have no more.
fn keep(wanted: &[Capability]) {
    let given_up = || -> Result<(), caps::errors::CapsError> {
        let has = caps::read(None, CapSet::Permitted)?;
        let kept: CapsHashSet = wanted
            .iter()
            .copied()
            .filter(|cap| has.contains(cap))
            .collect();
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    };
    if let Err(error) = given_up() {
        tracing::warn!("capabilities cannot be given up: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_gives_up_what_it_has() {
        let read = || caps::read(None, CapSet::Permitted).unwrap();
        let before = read();
        let inside = std::thread::spawn(move || {
            of_worker();
            // Another thread of it can be started, and has no more.
            let inner = std::thread::spawn(|| fs::read("/etc/passwd").is_ok());
            let program = Command::new("/bin/true").status().is_ok();
            let namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
            (
                read(),
                caps::read(None, CapSet::Effective).unwrap(),
                (fs::read("/etc/passwd").is_ok(), inner.join().unwrap()),
                program,
                namespace,
            )
        });
        let (permitted, effective, files, program, namespace) = inside.join().unwrap();
        assert!(permitted.is_empty() && effective.is_empty());
        assert_eq!(files, (false, false));
        assert!(!program);
        assert_eq!(namespace, Err(nix::errno::Errno::EPERM));
        // Of the thread alone.
        assert_eq!(read(), before);
        assert!(fs::read("/etc/passwd").is_ok());
        assert!(
            Command::new("/bin/true")
                .status()
                .is_ok_and(|it| it.success())
        );
    }

    #[test]
    fn who_exports_writes_where_it_was_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, other) = (folder.path().join("mine"), folder.path().join("other"));
        fs::create_dir(&mine).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("old"), "old").unwrap();
        let told = mine.join("not there yet/flows.json");
        let results = std::thread::spawn(move || {
            of_exporter(std::slice::from_ref(&told));
            [
                fs::read(other.join("old")).is_ok(),
                fs::create_dir_all(told.parent().unwrap()).is_ok(),
                fs::write(&told, "a record").is_ok(),
                fs::rename(&told, told.with_extension("1")).is_ok(),
                fs::write(other.join("new"), "x").is_ok(),
                fs::write(other.join("old"), "x").is_ok(),
                fs::remove_file(other.join("old")).is_ok(),
                Command::new("/bin/true").status().is_ok(),
                std::net::TcpListener::bind("127.0.0.1:0").is_ok(),
            ]
        });
        let results = results.join().unwrap();
        assert_eq!(
            results,
            [true, true, true, true, false, false, false, false, true]
        );
    }
}
