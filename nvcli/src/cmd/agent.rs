//! `nvcli agent`: its command line; the rest is in `crate::agent`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::agent::config::OnExit;
use crate::args::{ModeArg, duration, kept_size};
use crate::exit::{Result, Say};
use crate::export::ExportConfig;
use crate::target::Target;

/// Attach containers as they come, meter all of them, and answer questions
///
/// Follows Docker and Podman, attaches the containers that its rules select, meters their connections and hands the records on. What is
/// attached stays so when the agent ends or is killed; the next one takes over. SIGHUP reads the configuration again, SIGTERM ends it.
///
/// Without a configuration every container is attached. docs/agent.md has an example.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli agent                                    every container of the engines that are there
  nvcli agent --include 'web-*' --mode mirror    only these; nothing inside them is touched
  nvcli agent --config agent.toml --check        is the file right?
  nvcli agent --dry-run                          what would be attached now?
  nvcli status                                   how an agent that runs fares")]
pub(crate) struct Agent {
    /// Its configuration [default: /etc/nvcli/agent.toml, if that is there]
    #[arg(short, long, value_name = "FILE", env = "NVCLI_AGENT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Look whether the configuration is right, and end
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) check: bool,
    /// Tell what would become of every container that runs now, and end
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// How containers are attached of which no rule says it
    #[arg(short, long, value_enum, env = "NVCLI_AGENT_MODE")]
    pub(crate) mode: Option<ModeArg>,
    /// Attach containers of these names (globs) and no others but those of rules; may be given again
    #[arg(
        long,
        value_name = "NAME",
        env = "NVCLI_AGENT_INCLUDE",
        value_delimiter = ','
    )]
    pub(crate) include: Vec<String>,
    /// Leave containers of these names (globs) alone, whatever else is said; may be given again
    #[arg(
        long,
        value_name = "NAME",
        env = "NVCLI_AGENT_EXCLUDE",
        value_delimiter = ','
    )]
    pub(crate) exclude: Vec<String>,
    /// Attach this namespace too: pid:N or netns:NAME; may be given again
    #[arg(long = "target", value_name = "TARGET")]
    pub(crate) targets: Vec<Target>,
    /// Follow the engine that listens at this socket; may be given again [default: Docker's and Podman's, if they are there]
    #[arg(long = "engine", value_name = "SOCKET")]
    pub(crate) engines: Vec<PathBuf>,
    /// Follow no engine
    #[arg(long, conflicts_with = "engines")]
    pub(crate) no_engine: bool,
    /// Send the records there (docs/export.md), beside where the configuration says; may be given again
    #[arg(short = 'x', long = "export", value_name = "URL")]
    pub(crate) exports: Vec<ExportConfig>,
    /// Keep the last frames in so much memory, such as 64M, for `nvcli dump`
    #[arg(long, value_name = "SIZE", value_parser = kept_size)]
    pub(crate) keep: Option<usize>,
    /// Frames that are kept are forgotten after this time [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) keep_for: Option<Duration>,
    /// Where to answer questions [default: /run/nvcli/agent.sock]; who asks needs NVCLI_AGENT_SOCKET then, too
    #[arg(long, value_name = "PATH", env = "NVCLI_AGENT_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// What becomes of the attachments at the end [default: leave]
    #[arg(long, value_enum, env = "NVCLI_AGENT_ON_EXIT")]
    pub(crate) on_exit: Option<OnExit>,
}

/// Runs the agent.
pub(crate) fn run(args: &Agent, say: Say) -> Result<()> {
    crate::agent::run(args, say)
}
