//! SIGINT, SIGTERM and SIGHUP: the end of a run, and no end in the middle of a change.

use std::os::fd::{AsFd, BorrowedFd};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};

use crate::exit::{CliError, Result};

fn endings() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// How long a view has to end when its terminal is gone.
const GRACE: Duration = Duration::from_secs(2);

/// Whether somebody asked for the end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<Asked>);

#[derive(Debug)]
struct Asked {
    is_asked: AtomicBool,
    /// Readable as soon as it is, for those who wait for something else meanwhile.
    wake: EventFd,
}

impl Interrupt {
    /// Nobody has asked yet.
    fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(Asked {
            is_asked: AtomicBool::new(false),
            wake: EventFd::from_flags(flags)?,
        })))
    }

    /// From now on a signal asks for the end, and a second one forces it. To be called before any thread is started.
    pub(crate) fn listen() -> Result<Self> {
        let failed =
            |source: nix::Error| CliError::new("cannot listen for signals").because(source);
        let set = endings();
        set.thread_block().map_err(failed)?;
        let interrupt = Self::new().map_err(failed)?;
        let asked = interrupt.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                while let Ok(signal) = set.wait() {
                    let is_second = asked.is_asked();
                    asked.ask();
                    if signal == Signal::SIGHUP && !is_second && crate::watch::is_taken() {
                        // A view whose terminal is gone has nobody to read from, and may not notice.
                        thread::sleep(GRACE);
                    }
                    if is_second || (signal == Signal::SIGHUP && crate::watch::is_taken()) {
                        crate::watch::give_back();
                        process::exit(128 + signal as i32);
                    }
                }
            })
            .map_err(|source| CliError::new("cannot listen for signals").because(source))?;
        Ok(interrupt)
    }

    /// Asks for the end, as a signal does.
    pub(crate) fn ask(&self) {
        self.0.is_asked.store(true, Ordering::Release);
        // It can only fail where it is readable already.
        let _ = self.0.wake.write(1);
    }

    /// Whether a signal came.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.is_asked.load(Ordering::Acquire)
    }

    /// Waits until there is something to read from `source`, the end is asked for, or for as long as `wait`; gives whether it was woken by the second.
    pub(crate) fn asked_before(&self, source: BorrowedFd<'_>, wait: Duration) -> bool {
        // Rounded up, or who waits for less than a millisecond would ask again and again.
        let millis = wait.as_nanos().div_ceil(1_000_000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = [self.0.wake.as_fd(), source].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Where it fails, the source says why as it is read.
        let _ = poll(&mut fds, timeout);
        fds[0].any() == Some(true)
    }
}

/// Runs `change` to its end: a signal that comes meanwhile works afterwards.
pub(crate) fn uninterrupted<T>(change: impl FnOnce() -> T) -> T {
    let set = endings();
    let before = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
    let done = change();
    if let Ok(before) = before {
        // Undoes what the call above did, so it cannot fail if that one did not.
        let _ = before.thread_set_mask();
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_something_else_is_told_of_the_end() {
        let interrupt = Interrupt::new().unwrap();
        let (silent, _other_end) = nix::unistd::pipe().unwrap();
        assert!(!interrupt.asked_before(silent.as_fd(), Duration::ZERO));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| interrupt.asked_before(silent.as_fd(), 20 * GRACE));
            interrupt.ask();
            assert!(waiting.join().unwrap());
        });
        // And who asks again, of whom asked again.
        interrupt.ask();
        assert!(interrupt.asked_before(silent.as_fd(), Duration::MAX));
    }

    #[test]
    fn what_is_there_to_read_is_not_waited_for() {
        let interrupt = Interrupt::new().unwrap();
        let (source, other_end) = nix::unistd::pipe().unwrap();
        drop(other_end);
        assert!(!interrupt.asked_before(source.as_fd(), Duration::MAX));
    }
}
