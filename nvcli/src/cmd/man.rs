//! `nvcli man`: the manual pages, made from the command line's own description.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::args::Cli;
use crate::exit::{CliError, Result};

/// Write the manual pages, one for each command
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The folder to write them to
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}

/// Writes them.
pub(crate) fn run(args: &Man) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(|source| {
        CliError::new(format!("cannot write to {}", args.folder.display()))
            .because(source)
            .remedy("a folder that is there")
    })
}
