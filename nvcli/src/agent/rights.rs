//! Gives up what a thread does not need. docs/security.md says what stays and why.

use caps::{CapSet, Capability, CapsHashSet};

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

/// For the whole process, before it starts threads: no more than attaching needs, and no program that it starts ever gets more.
pub(crate) fn of_process() {
    if let Err(errno) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!("no_new_privs cannot be set: {errno}");
    }
    keep(&ATTACHING);
}

/// For a thread that reads a ring.
pub(crate) fn of_reader() {
    keep(&READING);
}

/// For a thread that needs none: it meters, names, answers.
pub(crate) fn of_worker() {
    keep(&[]);
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
    use super::*;

    #[test]
    fn a_thread_gives_up_what_it_has() {
        let read = || caps::read(None, CapSet::Permitted).unwrap();
        let before = read();
        let inside = std::thread::spawn(move || {
            of_worker();
            (read(), caps::read(None, CapSet::Effective).unwrap())
        });
        let (permitted, effective) = inside.join().unwrap();
        assert!(permitted.is_empty() && effective.is_empty());
        // Of the thread alone.
        assert_eq!(read(), before);
    }
}
