//! `nvcli completions`: the shell's completion script.

use std::io::{self, Write as _};

use clap::CommandFactory as _;

use crate::args::{Cli, Completions};
use crate::exit::{CliError, Result};

/// Prints the script.
pub(crate) fn run(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nvcli", &mut script);
    io::stdout()
        .write_all(&script)
        .map_err(|source| CliError::output(&source))
}
