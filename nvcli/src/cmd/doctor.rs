//! `nvcli doctor`: what works on this machine, what does not, and what to do about it.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};

use serde::Serialize;

use crate::args::{Doctor, ListOutput};
use crate::container::Engine;
use crate::escape;
use crate::exit::{CliError, Exit, Result, Say};
use crate::render::table::{Column, Fit, table, terminal_width};
use crate::target::Target;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less than could be.
    Warn,
    /// nvcli cannot do its work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    check: &'static str,
    found: String,
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            check,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            check,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            check,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// A failed attempt, as bad as `verdict`.
    fn error(verdict: Verdict, check: &'static str, error: &CliError) -> Self {
        let found = match error.causes() {
            causes if causes.is_empty() => error.what().to_owned(),
            causes => format!("{}: {causes}", error.what()),
        };
        Self {
            verdict,
            check,
            found,
            remedy: error.to_do().map(str::to_owned),
        }
    }
}

/// Looks at everything and prints what it finds.
pub(crate) fn run(args: &Doctor, say: Say) -> Result<Exit> {
    let mut findings = vec![privileges(), kernel()];
    findings.extend(engine(args.target.as_ref()));
    print(&findings, args.output).map_err(|source| CliError::output(&source))?;
    let usable = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Fail);
    if usable {
        say.note("this machine is ready");
    }
    Ok(if usable { Exit::Done } else { Exit::Failed })
}

/// The capabilities that the work needs, by their bit in the kernel's sets.
///
/// Source: include/uapi/linux/capability.h.
const NEEDED: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (21, "CAP_SYS_ADMIN"),
];

fn privileges() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&status) else {
        return Finding::warn(
            "privileges",
            "cannot read the capabilities in /proc/self/status",
            "mount /proc",
        );
    };
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        let who = if nix::unistd::geteuid().is_root() {
            "root"
        } else {
            "not root, with the capabilities needed"
        };
        return Finding::ok("privileges", who);
    }
    let found = format!("without {}", missing.join(", "));
    Finding::fail(
        "privileges",
        found,
        "sudo nvcli doctor; `nvcli flows --read` works without privileges",
    )
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

fn kernel() -> Finding {
    match nix::sys::utsname::uname() {
        Ok(name) => Finding::ok(
            "kernel",
            format!(
                "{} {}",
                name.release().to_string_lossy(),
                name.machine().to_string_lossy()
            ),
        ),
        Err(source) => Finding::warn(
            "kernel",
            format!("its release is not told: {source}"),
            "uname -r",
        ),
    }
}

/// The engine is needed only by who names containers.
fn engine(target: Option<&Target>) -> Vec<Finding> {
    let wanted = match target {
        Some(Target::Container(name)) => Some(name),
        _ => None,
    };
    let needed = if wanted.is_some() {
        Verdict::Fail
    } else {
        Verdict::Warn
    };
    let engine = match Engine::connect() {
        Ok(engine) => engine,
        Err(error) => return vec![Finding::error(needed, "docker", &error)],
    };
    let mut findings = vec![match engine.version() {
        Ok(version) => Finding::ok(
            "docker",
            format!("{version} at {}", engine.socket().display()),
        ),
        Err(error) => Finding::error(needed, "docker", &error),
    }];
    if let Some(wanted) = wanted {
        findings.push(
            match engine
                .find(wanted)
                .and_then(|found| engine.still_is(&found).map(|()| found))
            {
                Ok(found) => {
                    let shared = found
                        .shared_by
                        .map(|by| format!("; {by} shares its network"))
                        .unwrap_or_default();
                    let id = found.id.get(..12).unwrap_or_default();
                    Finding::ok(
                        "target",
                        format!(
                            "container {} ({id}) runs as pid {}{shared}",
                            found.name, found.pid
                        ),
                    )
                }
                Err(error) => Finding::error(Verdict::Fail, "target", &error),
            },
        );
    }
    findings
}

fn print(findings: &[Finding], output: ListOutput) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        ListOutput::Json => {
            for finding in findings {
                escape::json(&mut out, finding)?;
                out.write_all(b"\n")?;
            }
        }
        ListOutput::Table => {
            let rows: Vec<Vec<String>> = findings
                .iter()
                .flat_map(|finding| {
                    let found = vec![
                        finding.verdict.to_string(),
                        finding.check.to_owned(),
                        escape::text(&finding.found).into_owned(),
                    ];
                    let remedy = finding.remedy.as_ref().map(|remedy| {
                        vec![
                            String::new(),
                            String::new(),
                            format!("try: {}", escape::text(remedy)),
                        ]
                    });
                    [Some(found), remedy].into_iter().flatten()
                })
                .collect();
            let columns = [
                Column::left(""),
                Column::left(""),
                Column::left("").fit(Fit::Whole),
            ];
            out.write_all(table(&columns, &rows, terminal_width(), true).as_bytes())?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tnvcli\nCapPrm:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("CapEff:\tx\n"), None);
        assert_eq!(effective_capabilities(""), None);
    }
}
