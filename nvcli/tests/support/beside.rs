//! Programs beside a test, and what they say.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;
use serde_json::Value;

use crate::common::ensure;

/// Fails unless `record` tells under `key` that its side sent so many octets of payload. What a side sent again, since the machine was slow, was
/// on the wire more than once and is counted so: each time at most what a segment may have, which is no more than what a super-frame has.
pub(crate) fn same_payload(record: &Value, key: &str, octets: u64) -> Result<(), Failed> {
    let again = match key {
        "initiatorOctets" => "retransmittedSegments",
        "responderOctets" => "reverseRetransmittedSegments",
        _ => return Err(format!("{key} is not a payload").into()),
    };
    let again = record[again].as_u64().unwrap_or_default();
    let is_right = record[key]
        .as_u64()
        .is_some_and(|counted| (octets..=octets + again * 65_535).contains(&counted));
    ensure(is_right, format!("{key} is not {octets}: {record}"))
}

/// A program that runs beside the test until it is interrupted.
pub(crate) struct Beside {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Beside {
    /// Starts it, and waits until its standard error has a line with `ready` in it.
    pub(crate) fn start(mut command: Command, ready: &str) -> Result<Self, Failed> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let mut beside = Self { child, stderr };
        let mut told = String::new();
        while !told.contains(ready) {
            let mut line = String::new();
            if beside.stderr.read_line(&mut line)? == 0 {
                return Err(format!("{command:?} ended: {told}").into());
            }
            told.push_str(&line);
        }
        Ok(beside)
    }

    /// Interrupts it, and gives what it printed on standard output and error.
    pub(crate) fn end(self) -> Result<(String, String), Failed> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.wait()
    }

    /// Waits until it ends by itself, and gives the same.
    pub(crate) fn wait(mut self) -> Result<(String, String), Failed> {
        let (mut out, mut err) = (String::new(), String::new());
        self.child
            .stdout
            .take()
            .ok_or("no stdout")?
            .read_to_string(&mut out)?;
        self.stderr.read_to_string(&mut err)?;
        let status = self.child.wait()?;
        ensure(status.success(), format!("{status}: {err}"))?;
        Ok((out, err))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number in front of `what`, whatever groups its digits.
pub(crate) fn number(text: &str, what: &str) -> Result<u64, Failed> {
    let end = text
        .find(what)
        .ok_or_else(|| format!("no `{what}` in: {text}"))?;
    let digits: String = text[..end]
        .trim_end()
        .chars()
        .rev()
        .take_while(|c| c.is_ascii_digit() || ",'_\u{202f}\u{a0}".contains(*c))
        .filter(char::is_ascii_digit)
        .collect();
    Ok(digits.chars().rev().collect::<String>().parse()?)
}
