//! Kernels before 5.11 charge eBPF maps and programs to RLIMIT_MEMLOCK.

use std::io;
use std::sync::{Mutex, PoisonError};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Asks the kernel for an eBPF object, and when that is not permitted, once more with RLIMIT_MEMLOCK out of the way.
///
/// Before Linux 5.11 what all processes of a user have of these counts for it, the service manager's included, and who is beyond the limit,
/// often 64 KiB, gets `EPERM` whatever capabilities it has. What is there already stays when the limit is lower again, so it is raised for the one
/// call, as far as that is allowed: without an end with CAP_SYS_RESOURCE, else to the hard limit. It is the whole process's: another thread that
/// locks memory at that moment may lock more, and one that sets this limit then has its own undone.
pub(crate) fn charged<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let refused = match ask() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => error,
        answer => return answer,
    };
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = Resource::RLIMIT_MEMLOCK;
    let Ok((soft, hard)) = getrlimit(limit) else {
        return Err(refused);
    };
    let is_raised = soft != RLIM_INFINITY
        && (setrlimit(limit, RLIM_INFINITY, RLIM_INFINITY).is_ok()
            || (soft < hard && setrlimit(limit, hard, hard).is_ok()));
    if !is_raised {
        return Err(refused);
    }
    let answer = ask();
    if let Err(error) = setrlimit(limit, soft, hard) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays raised");
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_for_the_one_call() {
        let limit = Resource::RLIMIT_MEMLOCK;
        let (before, hard) = getrlimit(limit).expect("there is one");
        let low = 1;
        assert!(hard > low, "nothing can be raised here");
        setrlimit(limit, low, hard).expect("lower is allowed");
        let mut asked = 0;
        let answer = charged(|| {
            asked += 1;
            match getrlimit(limit)?.0 {
                soft if soft > low => Ok(soft),
                _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
            }
        });
        let after = getrlimit(limit).expect("there is one");
        setrlimit(limit, before, hard).expect("as it was");
        assert!(answer.expect("it is raised") >= hard);
        assert_eq!((asked, after), (2, (low, hard)));
        // Nothing else is a reason to.
        let mut asked = 0;
        let answer = charged(|| -> io::Result<()> {
            asked += 1;
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        });
        assert_eq!((asked, answer.is_err()), (1, true));
    }
}
