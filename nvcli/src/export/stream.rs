//! JSON lines to standard output and to unix sockets.

use std::io::{self, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::lane::{Lane, TICK, Trouble};
use super::lines::Open;

/// Standard output.
pub(super) struct Stdout;

impl Open for Stdout {
    fn open(&mut self, _lane: &Lane) -> Result<Box<dyn Write + Send>, Trouble> {
        // Past the standard library's buffer, whose lines would be written one by one.
        let fd = io::stdout().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| Trouble::new("standard output", error))?;
        Ok(Box::new(std::fs::File::from(fd)))
    }

    fn what(&self) -> String {
        "standard output".to_owned()
    }
}

/// A unix socket that somebody listens on.
pub(super) struct Unix(pub(super) PathBuf);

impl Open for Unix {
    fn open(&mut self, _lane: &Lane) -> Result<Box<dyn Write + Send>, Trouble> {
        let connected = || -> io::Result<UnixStream> {
            let address = UnixAddr::new(&self.0)?;
            // A full backlog is not waited for.
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            connect(socket.as_raw_fd(), &address)?;
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(TICK))?;
            Ok(stream)
        };
        match connected() {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(Trouble::new(self.what(), error)),
        }
    }

    fn what(&self) -> String {
        format!("unix socket {}", self.0.display())
    }
}
