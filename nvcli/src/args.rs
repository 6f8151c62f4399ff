//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::target::Target;

/// See what a container is talking to: attach, capture and meter its network, from one command.
///
/// nvcli steers the traffic of containers past one bridge, nv-br, by TC rules in the kernel, and tells from it who
/// talks to whom: one record per connection, both directions in it. Nothing in the container has to change.
#[derive(Debug, Parser)]
#[command(
    name = "nvcli",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed and undone, 2 usage, 3 failed and something is left (`nvcli repair`).",
    max_term_width = 110
)]
pub(crate) struct Cli {
    /// Say nothing but records, warnings and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log what is done on standard error; twice for each step (NVCLI_LOG=nvnet=trace for more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Doctor(Doctor),
    Completions(Completions),
}

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListOutput {
    /// For people
    #[default]
    Table,
    /// For programs: one JSON object a line
    Json,
}

/// Check whether this machine can do it, and what is wrong if something is
///
/// Looks at privileges, kernel features, the memory a ring needs, the Docker engine and what is attached. Changes
/// nothing. Exit code 0: usable; 1: not.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Look at this target too: container, pid:N or netns:NAME
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<Target>,
    /// How the findings are written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
}

/// Print the completion script of a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli completions bash > /etc/bash_completion.d/nvcli
  nvcli completions zsh > \"${fpath[1]}/_nvcli\"
  nvcli completions fish > ~/.config/fish/completions/nvcli.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
