//! nvcli: shows what a container is talking to.

#![forbid(unsafe_code)]

mod agent;
mod args;
mod capture_file;
mod cmd;
mod container;
mod engine;
mod escape;
mod events;
mod exit;
mod export;
mod expression;
mod filter;
mod groups;
mod health;
mod meters;
mod names;
mod open;
mod orphan;
mod patient;
mod queue;
mod recorder;
mod render;
mod signals;
mod target;
mod twins;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Say};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(
        cli.verbose,
        matches!(cli.command, Command::Agent(_)) && !cli.quiet,
    );
    let say = Say::new(cli.quiet);
    let ended = match &cli.command {
        Command::Agent(args) => cmd::agent::run(args, say).map(|()| Exit::Done),
        Command::Attach(args) => cmd::attach::run(args, say).map(|()| Exit::Done),
        Command::Detach(args) => cmd::detach::run(args, say).map(|()| Exit::Done),
        Command::List(args) => cmd::list::run(args, say).map(|()| Exit::Done),
        Command::Repair(args) => cmd::repair::run(args, say).map(|()| Exit::Done),
        Command::Flows(args) => cmd::flows::run(args, say).map(|()| Exit::Done),
        Command::Capture(args) => cmd::capture::run(args, say).map(|()| Exit::Done),
        Command::Status(args) => cmd::status::run(args).map(|()| Exit::Done),
        Command::Dump(args) => cmd::dump::run(args, say).map(|()| Exit::Done),
        Command::Demo => cmd::demo::run().map(|()| Exit::Done),
        Command::Doctor(args) => cmd::doctor::run(args, say),
        Command::Completions(args) => cmd::completions::run(args).map(|()| Exit::Done),
        Command::Names(args) => cmd::completions::names(args).map(|()| Exit::Done),
        Command::Man(args) => cmd::man::run(args).map(|()| Exit::Done),
    };
    ended.unwrap_or_else(|error| error.report()).into()
}

/// Sends what the libraries log to standard error.
fn log(verbose: u8, is_agent: bool) {
    use tracing_subscriber::EnvFilter;

    let filter = match (std::env::var("NVCLI_LOG"), verbose) {
        (Ok(filter), _) if !filter.is_empty() => EnvFilter::new(filter),
        (_, 0) if is_agent => EnvFilter::new("warn,nvcli=info"),
        (_, 0) => return,
        (_, 1) => EnvFilter::new("info"),
        (_, _) => EnvFilter::new("nvcli=debug,nvnet=debug,nvcapture=debug,nvflow=debug"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| escape::Log(std::io::stderr()))
        .with_target(false)
        .init();
}
