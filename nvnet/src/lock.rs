//! One change at a time, among all processes that work on the same host namespace.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Netns};

/// Held while links and rules of a host namespace are changed; the kernel lets go of it when its process dies.
///
/// It is an advisory lock on the namespace's own file, so there is nothing on disk to be left behind, and two host
/// namespaces do not wait for each other.
pub(crate) struct Lock {
    _held: Flock<File>,
}

impl Lock {
    /// Waits until no other process changes this namespace.
    pub(crate) fn of(host: &Netns) -> Result<Self, Error> {
        let failed = |source| Error::Netns {
            op: "lock",
            netns: host.label().into(),
            source,
        };
        // An open file of its own: locks belong to those, and a copied descriptor would share the one that is there.
        let path = format!("/proc/self/fd/{}", host.as_fd().as_raw_fd());
        let file = File::open(path).map_err(failed)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                tracing::info!(
                    netns = host.label(),
                    "waiting for another process that attaches or detaches"
                );
                loop {
                    match Flock::lock(file.try_clone().map_err(failed)?, FlockArg::LockExclusive) {
                        Ok(lock) => break lock,
                        Err((_, nix::errno::Errno::EINTR)) => {}
                        Err((_, errno)) => return Err(failed(errno.into())),
                    }
                }
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        Ok(Self { _held: lock })
    }
}
