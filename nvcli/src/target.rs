//! What a command is aimed at: `web-1`, `pid:4711`, `netns:blue`, `netns:/proc/4711/ns/net`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::escape;

/// A container, or a network namespace without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A container by name, id, or the first digits of its id.
    Container(String),
    /// The network namespace of a process.
    Pid(u32),
    /// A network namespace in /run/netns.
    NetnsName(String),
    /// A network namespace by the path of a handle on it.
    NetnsPath(PathBuf),
}

/// Why a text names no target.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("it is empty; name a container, pid:N or netns:NAME")]
    Empty,
    #[error("`pid:` needs a process id from 1 to 4194304, such as pid:4711")]
    Pid,
    #[error(
        "`netns:` needs a name in /run/netns or an absolute path, such as netns:blue or netns:/proc/4711/ns/net"
    )]
    Netns,
    #[error(
        "no container can have this name: letters, digits, `_`, `.` and `-` only, the first one a letter or digit \
         (or use pid:N, netns:NAME)"
    )]
    Name,
}

/// The kernel's own limit, PID_MAX_LIMIT on 64 bit.
const PID_MAX: u32 = 1 << 22;

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            let digits = pid.bytes().all(|b| b.is_ascii_digit());
            let pid = pid
                .parse()
                .ok()
                .filter(|pid| digits && (1..=PID_MAX).contains(pid));
            return pid.map(Self::Pid).ok_or(TargetError::Pid);
        }
        if let Some(netns) = text.strip_prefix("netns:") {
            if netns.contains('\0') {
                return Err(TargetError::Netns);
            }
            if netns.starts_with('/') {
                return Ok(Self::NetnsPath(netns.into()));
            }
            let plain = !netns.is_empty() && netns != "." && netns != ".." && !netns.contains('/');
            return if plain {
                Ok(Self::NetnsName(netns.to_owned()))
            } else {
                Err(TargetError::Netns)
            };
        }
        let name = text.strip_prefix('/').unwrap_or(text);
        let first = name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if !first
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        {
            return Err(TargetError::Name);
        }
        Ok(Self::Container(name.to_owned()))
    }
}

impl Target {
    /// As one word of a command for a shell.
    pub(crate) fn to_shell(&self) -> String {
        let raw = match self {
            Self::NetnsName(name) => format!("netns:{name}"),
            Self::NetnsPath(path) => format!("netns:{}", path.display()),
            plain => plain.to_string(),
        };
        escape::shell(&raw).into_owned()
    }
}

/// As it is written on the command line, harmless.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(name) => f.write_str(name),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::NetnsName(name) => write!(f, "netns:{}", escape::text(name)),
            Self::NetnsPath(path) => write!(f, "netns:{}", escape::text(&path.to_string_lossy())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        let cases = [
            ("web-1", Target::Container("web-1".into())),
            ("/web-1", Target::Container("web-1".into())),
            ("4f5c0e1b", Target::Container("4f5c0e1b".into())),
            ("pid:1", Target::Pid(1)),
            ("netns:blue", Target::NetnsName("blue".into())),
            (
                "netns:/proc/1/ns/net",
                Target::NetnsPath("/proc/1/ns/net".into()),
            ),
        ];
        for (text, target) in cases {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
    }

    #[test]
    fn what_can_be_no_target_is_refused() {
        for text in [
            "",
            "/",
            "-rf",
            "a b",
            "a\x1b[2J",
            "../x",
            "pid:",
            "pid:0",
            "pid:-1",
            "pid:+1",
            "pid:4194305",
            "pid:x",
            "pid:99999999999999999999",
            "netns:",
            "netns:..",
            "netns:a/b",
            "netns:a\0b",
            "é",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_target_is_shown_as_it_is_written() {
        for text in [
            "web-1",
            "pid:4711",
            "netns:blue",
            "netns:/run/docker/netns/1-a",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }
}
