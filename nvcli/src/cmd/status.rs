//! `nvcli status`: how the agent fares.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::agent::client::{self, Client};
use crate::agent::config::DEFAULT_SOCKET;
use crate::args::ListOutput;
use crate::escape;
use crate::exit::{CliError, Result};
use crate::render::table::{Column, Fit, table, terminal_width};
use crate::render::text::grouped;

/// Show how the agent fares: engines, containers, frames, records, and what was lost
///
/// Asks the agent that runs; exit code 1 when none does.
#[derive(Args, Debug)]
pub(crate) struct Status {
    /// Show every container too, what becomes of it, and why
    #[arg(short, long)]
    pub(crate) containers: bool,
    /// Where the agent answers
    #[arg(long, value_name = "PATH", env = "NVCLI_AGENT_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// How it is written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
}

/// Asks, and prints the answer.
pub(crate) fn run(args: &Status) -> Result<()> {
    let ask = |path: &str| -> Result<Vec<String>> {
        let Some(client) = Client::connect(&args.socket, client::PATIENCE)? else {
            if client::is_closed_to_us(&args.socket) {
                return Err(CliError::new(format!(
                    "an agent runs, but {} may not be opened by this user",
                    args.socket.display()
                ))
                .because("it answers root")
                .remedy("the same as root"));
            }
            return Err(CliError::new(format!(
                "no agent runs: nobody listens at {}",
                args.socket.display()
            ))
            .remedy("nvcli agent, or systemctl start nvcli-agent; `nvcli list` needs none"));
        };
        client.get(path)?.all()
    };
    let status = ask("/v1/status")?;
    let containers = if args.containers {
        ask("/v1/containers")?
    } else {
        vec![]
    };
    let mut out = io::stdout().lock();
    let written = match args.output {
        ListOutput::Json => status
            .iter()
            .chain(&containers)
            .try_for_each(|line| writeln!(out, "{line}")),
        ListOutput::Table => show(&mut out, &status, &containers),
    };
    written
        .and_then(|()| out.flush())
        .map_err(|source| CliError::output(&source))
}

fn show(out: &mut impl io::Write, status: &[String], containers: &[String]) -> io::Result<()> {
    let parse = |line: &String| serde_json::from_str::<Value>(line).unwrap_or_default();
    let status = status.first().map(parse).unwrap_or_default();
    let number =
        |pointer: &str| grouped(status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0));
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => escape::text(text).into_owned(),
        other => escape::text(&other.to_string()).into_owned(),
    };
    writeln!(
        out,
        "agent        process {}, version {}, up {} s",
        text(&status["pid"]),
        text(&status["version"]),
        number("/uptimeSeconds")
    )?;
    for engine in status["engines"].as_array().into_iter().flatten() {
        let state = if engine["connected"].as_bool() == Some(true) {
            format!(
                "connected, {} events heard",
                grouped(engine["events"].as_u64().unwrap_or(0))
            )
        } else {
            format!("does not answer: {}", text(&engine["why"]))
        };
        writeln!(out, "engine       {}: {state}", text(&engine["socket"]))?;
    }
    writeln!(
        out,
        "containers   {} known: {} attached, {} ignored, {} waiting, {} failed, {} without a network of their own",
        number("/containers/known"),
        number("/containers/attached"),
        number("/containers/ignored"),
        number("/containers/waiting"),
        number("/containers/failed"),
        number("/containers/other"),
    )?;
    writeln!(
        out,
        "interfaces   {} attached",
        number("/interfacesAttached")
    )?;
    writeln!(
        out,
        "frames       {} read = {} metered + {} not IP + {} unparsed + {} refused",
        number("/frames/read"),
        number("/frames/metered"),
        number("/frames/notIp"),
        number("/frames/unparsed"),
        number("/frames/refused"),
    )?;
    writeln!(
        out,
        "connections  {} open, {} in all",
        number("/connections/open"),
        number("/connections/opened")
    )?;
    writeln!(
        out,
        "records      {} made, {} handed on, {} waiting",
        number("/records/made"),
        number("/records/handled"),
        number("/records/waiting")
    )?;
    for exporter in status["exporters"].as_array().into_iter().flatten() {
        let count = |value: &Value| grouped(value.as_u64().unwrap_or(0));
        let lost: u64 = exporter["lost"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, n)| n.as_u64())
            .sum();
        let trouble = match exporter["lastError"].as_str() {
            Some(why) if exporter["connected"].as_bool() != Some(true) => {
                format!("; {}", escape::text(why))
            }
            _ => String::new(),
        };
        writeln!(
            out,
            "exporter     {}: {} of {} records, {} waiting, {} lost{trouble}",
            text(&exporter["name"]),
            count(&exporter["exported"]),
            count(&exporter["offered"]),
            count(&exporter["waiting"]),
            grouped(lost),
        )?;
    }
    let lost: Vec<String> = status["lost"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(cause, count)| format!("{} {}", escape::text(cause), text(count)))
        .collect();
    let lost = if lost.is_empty() {
        "nothing".to_owned()
    } else {
        lost.join(", ")
    };
    writeln!(out, "lost         {lost}")?;
    if containers.is_empty() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = containers
        .iter()
        .map(|line| {
            let one = parse(line);
            ["workload", "image", "attach", "because", "state", "why"]
                .map(|key| text(&one[key]))
                .to_vec()
        })
        .collect();
    let columns = [
        Column::left("CONTAINER").fit(Fit::Shorten(12)),
        Column::left("IMAGE").fit(Fit::Drop(2)),
        Column::left("ATTACH"),
        Column::left("BECAUSE"),
        Column::left("STATE"),
        Column::left("WHY").fit(Fit::Shorten(20)),
    ];
    writeln!(out)?;
    out.write_all(table(&columns, &rows, terminal_width(), false).as_bytes())
}
