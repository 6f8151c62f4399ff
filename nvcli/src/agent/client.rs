//! Asks an agent, if one runs.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nvnet::Netns;

use super::api::HOST;
use super::config::DEFAULT_SOCKET;
use crate::exit::{CliError, Result};

/// How long an answer may take to begin.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// The same, where there is another way than to ask the agent.
pub(crate) const HASTE: Duration = Duration::from_secs(2);

/// A connection to an agent, good for one question.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    socket: String,
}

/// The socket of the agent of this machine.
pub(crate) fn socket() -> PathBuf {
    std::env::var_os("NVCLI_AGENT_SOCKET").map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}

/// What the agent of `host` answers; `None` when none runs, and when it does not answer, which is said.
pub(crate) fn ask(host: &Netns, path: &str, patience: Duration) -> Option<Answer> {
    let answer = Client::connect(&socket(), patience)
        .and_then(|client| client.map(|client| client.get(path)).transpose());
    match answer {
        Ok(answer) => answer.filter(|answer| answer.is_of(host)),
        Err(error) => {
            error.report();
            None
        }
    }
}

impl Client {
    /// Connects; `None` when no agent listens there, or none for this user.
    pub(crate) fn connect(socket: &Path, patience: Duration) -> Result<Option<Self>> {
        let shown = socket.display().to_string();
        match UnixStream::connect(socket) {
            Ok(stream) => {
                let timeouts = stream
                    .set_read_timeout(Some(patience))
                    .and_then(|()| stream.set_write_timeout(Some(patience)));
                timeouts.map_err(|source| failed(&shown, &source))?;
                Ok(Some(Self {
                    stream,
                    socket: shown,
                }))
            }
            // Who may not ask the agent may not ask the kernel either, and is told there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::PermissionDenied
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(failed(&shown, &error)),
        }
    }

    /// Asks for `path`, and gives the lines of the answer as they come.
    pub(crate) fn get(mut self, path: &str) -> Result<Answer> {
        let failed = |error: &io::Error| failed(&self.socket, error);
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        self.stream
            .write_all(request.as_bytes())
            .map_err(|error| failed(&error))?;
        let mut lines = BufReader::new(self.stream);
        let mut first = String::new();
        lines
            .read_line(&mut first)
            .map_err(|error| failed(&error))?;
        let mut host = None;
        let mut head = String::new();
        loop {
            head.clear();
            let length = lines.read_line(&mut head).map_err(|error| failed(&error))?;
            if length == 0 || head == "\r\n" {
                break;
            }
            if let Some((HOST, inode)) = head.split_once(": ") {
                host = inode.trim_end().parse().ok();
            }
        }
        let mut answer = Answer {
            lines,
            host,
            socket: self.socket,
        };
        if first.split(' ').nth(1) == Some("200") {
            return Ok(answer);
        }
        let why = answer
            .next_line()?
            .unwrap_or_else(|| first.trim().to_owned());
        let told = serde_json::from_str::<serde_json::Value>(&why);
        let why = told
            .ok()
            .and_then(|told| told["error"].as_str().map(str::to_owned))
            .unwrap_or(why);
        Err(CliError::new(format!(
            "the agent at {} does not answer {path}",
            answer.socket
        ))
        .because(why)
        .remedy("an agent of the same version as this nvcli"))
    }
}

/// Whether somebody listens there, whom this user may not ask: the kernel tells everybody.
///
/// Source: the flag SO_ACCEPTCON of /proc/net/unix, proc(5).
pub(crate) fn is_closed_to_us(socket: &Path) -> bool {
    let refused = UnixStream::connect(socket).err();
    if refused.map(|error| error.kind()) != Some(io::ErrorKind::PermissionDenied) {
        return false;
    }
    let all = std::fs::read("/proc/net/unix").unwrap_or_default();
    all.split(|octet| *octet == b'\n').any(|line| {
        let mut fields = line.splitn(8, |octet| *octet == b' ');
        fields.nth(3) == Some(b"00010000")
            && line
                .strip_suffix(socket.as_os_str().as_bytes())
                .is_some_and(|before| before.ends_with(b" "))
    })
}

/// Whether nothing came within the time.
fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn failed(socket: &str, error: &io::Error) -> CliError {
    if is_late(error) {
        return CliError::new(format!("the agent at {socket} does not answer"))
            .because("it listens, and nothing comes from it")
            .remedy("systemctl status nvcli-agent; it may be stopped, or very busy");
    }
    CliError::new(format!("cannot talk to the agent at {socket}"))
        .because(error)
        .remedy("systemctl status nvcli-agent")
}

/// What somebody who waits for a line gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// A line.
    Line,
    /// None within the time.
    Nothing,
    /// The answer is over.
    Ended,
}

/// The lines of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    lines: BufReader<UnixStream>,
    host: Option<u64>,
    socket: String,
}

impl Answer {
    /// Whether the agent's host is this one: one socket may be seen from several network namespaces.
    pub(crate) fn is_of(&self, host: &Netns) -> bool {
        self.host == Some(host.id().ino)
    }

    /// All lines that are left.
    pub(crate) fn all(mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_line()? {
            lines.push(line);
        }
        Ok(lines)
    }

    /// The next line, empty ones too, if one comes within `most`; what came of one stays in `part`, and is there the next time.
    pub(crate) fn wait(&mut self, part: &mut Vec<u8>, most: Duration) -> Result<Waited> {
        // None would be to wait for ever.
        let most = most.max(Duration::from_millis(1));
        let failed = |error: &io::Error| failed(&self.socket, error);
        if self.lines.buffer().is_empty() {
            let set = self.lines.get_ref().set_read_timeout(Some(most));
            set.map_err(|error| failed(&error))?;
        }
        match self.lines.read_until(b'\n', part) {
            Ok(0) => Ok(Waited::Ended),
            Ok(_) if part.last() != Some(&b'\n') => Ok(Waited::Ended),
            Ok(_) => Ok(Waited::Line),
            Err(error) if is_late(&error) || error.kind() == io::ErrorKind::Interrupted => {
                Ok(Waited::Nothing)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// The next line that is not empty, without its end; `None` at the end of the answer.
    pub(crate) fn next_line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        loop {
            line.clear();
            match self.lines.read_line(&mut line) {
                Ok(0) => return Ok(None),
                Ok(_) => {
                    let text = line.trim_end_matches(['\n', '\r']);
                    if !text.is_empty() {
                        return Ok(Some(text.to_owned()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&self.socket, &error)),
            }
        }
    }
}
