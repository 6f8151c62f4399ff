//! One agent for a host: a lock that the kernel lets go of when its holder dies.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nvnet::Netns;

use crate::exit::{CliError, Result};

/// Where locks are: for root alone, so that nobody else can hold one.
const FOLDER: &str = "/run/nvcli";

/// Held as long as the agent runs.
#[derive(Debug)]
pub(crate) struct AgentLock {
    path: PathBuf,
    _held: Flock<File>,
}

impl AgentLock {
    /// Takes the lock of `host`, or tells who has it.
    pub(crate) fn take(host: &Netns) -> Result<Self> {
        Self::at(&Path::new(FOLDER).join(format!("agent-{}.lock", host.id().ino)))
    }

    fn at(path: &Path) -> Result<Self> {
        let failed = |source: io::Error| {
            CliError::new(format!("cannot take the agent's lock {}", path.display()))
                .because(source)
                .remedy("run it as root")
        };
        if let Some(folder) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            let mut held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => held,
                Err((mut other, Errno::EWOULDBLOCK)) => {
                    let mut pid = String::new();
                    let _ = other.read_to_string(&mut pid);
                    let pid = pid.trim();
                    let whose = if pid.is_empty() {
                        "another process".to_owned()
                    } else {
                        format!("process {pid}")
                    };
                    return Err(CliError::new("an agent runs already on this host")
                        .because(format!("{whose} holds {}", path.display()))
                        .remedy("nvcli status; or end that one first"));
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // Its holder removes the file when it ends: what was opened may be that one.
            let is_there = fs::metadata(path).is_ok_and(|there| {
                held.metadata()
                    .is_ok_and(|mine| (mine.dev(), mine.ino()) == (there.dev(), there.ino()))
            });
            if !is_there {
                continue;
            }
            let written = held.set_len(0).and_then(|()| held.rewind());
            written
                .and_then(|()| writeln!(*held, "{}", std::process::id()))
                .map_err(failed)?;
            return Ok(Self {
                path: path.to_owned(),
                _held: held,
            });
        }
    }
}

impl Drop for AgentLock {
    fn drop(&mut self) {
        // While it is held: whoever opened it meanwhile sees that it is not the one that is there.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/agent.lock");
        let first = AgentLock::at(&path).unwrap();
        let error = AgentLock::at(&path).unwrap_err();
        assert!(
            error
                .causes()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        assert!(!path.exists());
        drop(AgentLock::at(&path).unwrap());
        // What a killed one left does not matter.
        fs::write(&path, "4711\n").unwrap();
        drop(AgentLock::at(&path).unwrap());
    }
}
