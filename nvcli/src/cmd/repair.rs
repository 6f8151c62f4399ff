//! `nvcli repair`: clears away what a killed run left half-done.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::args::{ListOutput, Repair};
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::open::{host, net, session};
use crate::orphan::Judge;
use crate::signals::uninterrupted;

#[derive(Serialize)]
struct Line<'a> {
    what: &'a str,
    done: &'a str,
}

/// Repairs, and prints what was repaired.
pub(crate) fn run(args: &Repair, say: Say) -> Result<()> {
    let host = host()?;
    let judge = Judge::default();
    // A signal ends the wait for others, and nothing afterwards.
    let mut session = session(&host, say)?;
    let repaired = uninterrupted(|| session.repair_with(&|orphan| judge.fate(orphan)))
        .map_err(|error| net("cannot repair everything", &error))?;
    drop(session);
    if repaired.is_empty() {
        say.note("nothing to repair");
    }
    let write = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        for item in &repaired {
            match args.output {
                ListOutput::Table => writeln!(out, "{}", escape::text(&item.to_string()))?,
                ListOutput::Json => {
                    escape::json(
                        &mut out,
                        &Line {
                            what: &item.what,
                            done: &item.done,
                        },
                    )?;
                    out.write_all(b"\n")?;
                }
            }
        }
        out.flush()
    };
    write().map_err(|source| CliError::output(&source))
}
