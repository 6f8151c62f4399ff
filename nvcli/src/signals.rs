//! SIGINT, SIGTERM and SIGHUP: the end of a run, and no end in the middle of a change.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on a signal asks for the end, and a second one forces it. To be called before any thread is started.
    pub(crate) fn listen() -> Result<Self> {
        let failed =
            |source: nix::Error| CliError::new("cannot listen for signals").because(source);
        let set = endings();
        set.thread_block().map_err(failed)?;
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                while let Ok(signal) = set.wait() {
                    let is_second = flag.swap(true, Ordering::Relaxed);
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
        Ok(Self(asked))
    }

    /// Asks for the end, as a signal does.
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a signal came.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
