//! Reading what may not come for long: a pipe, a terminal, a FIFO that nobody has opened yet.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::signals::Interrupt;

/// How long it is waited before it is looked at signals.
const TICK: u16 = 100;

/// Ends, as its input does, when the end is asked for.
#[derive(Debug)]
pub(crate) struct Patient<'i> {
    input: File,
    interrupt: &'i Interrupt,
}

impl<'i> Patient<'i> {
    /// Standard input.
    pub(crate) fn stdin(interrupt: &'i Interrupt) -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?.into();
        Ok(Self { input, interrupt })
    }

    /// What is no regular file; that is not waited for until somebody writes to it.
    pub(crate) fn open(path: &Path, interrupt: &'i Interrupt) -> io::Result<Self> {
        let input = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        Ok(Self { input, interrupt })
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while !self.interrupt.is_asked() {
            let mut fds = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(TICK)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            match self.input.read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
        Ok(0)
    }
}
