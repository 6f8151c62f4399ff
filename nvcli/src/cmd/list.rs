//! `nvcli list`: what is attached.

use std::io::{self, Write as _};
use std::time::Duration;

use nvnet::{Attachment, Blackout, Health, Mode};
use serde::Serialize;
use serde_json::Value;

use crate::agent::client;
use crate::args::{List, ListOutput};
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::names::Current;
use crate::open::{attached, host};
use crate::render::table::{Column, Fit, table, terminal_width};

/// An attachment as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed<'a> {
    id: String,
    pub(crate) workload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    interface: &'a str,
    mode: String,
    mac: String,
    marker_mac: String,
    port: &'a str,
    mtu: u32,
    health: &'static str,
    /// Frames that came through its port since it was attached; inline only, where the port is its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    frames_seen: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    blackout: Option<Measured<'a>>,
}

/// What an attach measured of itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured<'a> {
    blackout_at_most_microseconds: u128,
    switch_microseconds: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    longest_gap_microseconds: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probes_answered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_probed: Option<&'a str>,
}

impl<'a> Measured<'a> {
    fn new(blackout: &'a Blackout) -> Self {
        let probe = blackout.probe.as_ref();
        Self {
            blackout_at_most_microseconds: blackout.at_most().as_micros(),
            switch_microseconds: blackout.switch.as_micros(),
            longest_gap_microseconds: probe.ok().map(|probed| probed.gap.as_micros()),
            probes_sent: probe.ok().map(|probed| probed.sent),
            probes_answered: probe.ok().map(|probed| probed.answered),
            not_probed: probe.err().map(String::as_str),
        }
    }
}

impl<'a> Listed<'a> {
    pub(crate) fn new(attachment: &'a Attachment) -> Self {
        let damage = match &attachment.health {
            Health::Whole => None,
            Health::Damaged { why } => Some(why.as_str()),
        };
        Self {
            id: attachment.id.to_string(),
            workload: &attachment.workload.name,
            container_id: attachment.workload.container_id.as_deref(),
            pid: attachment.workload.pid,
            interface: &attachment.interface,
            mode: attachment.mode.to_string(),
            mac: attachment.mac.to_string(),
            marker_mac: attachment.id.mac().to_string(),
            port: &attachment.port,
            mtu: attachment.mtu,
            health: if damage.is_some() { "damaged" } else { "whole" },
            damage,
            frames_seen: frames_seen(attachment),
            blackout: attachment.blackout.as_ref().map(Measured::new),
        }
    }
}

/// Frames of a listed attachment; `None` where the kernel does not tell ours from others, and of one that was made just now.
fn frames_seen(attachment: &Attachment) -> Option<u64> {
    let tells = attachment.mode == Mode::Inline && attachment.blackout.is_none();
    tells.then_some(attachment.stats.rx_packets)
}

/// Prints the list.
pub(crate) fn run(args: &List, say: Say) -> Result<()> {
    let host = host()?;
    // An agent knows its containers' names of today; the kernel those they had.
    if let Some(answer) = client::ask(&host, "/v1/attachments", client::HASTE) {
        let lines = answer.all()?;
        if lines.is_empty() && args.output == ListOutput::Table {
            say.note("nothing is attached; nvcli status --containers tells why");
        }
        return told(&lines, args).map_err(|source| CliError::output(&source));
    }
    let mut attached = attached(&host)?;
    Current::default().apply(&mut attached);
    if attached.is_empty() && args.output == ListOutput::Table {
        say.note("nothing is attached; try: nvcli attach CONTAINER");
    }
    print(&attached, args.output, args.no_header)?;
    let blind = attached
        .iter()
        .filter(|one| frames_seen(one) == Some(0))
        .count();
    if blind > 0 && args.output == ListOutput::Table {
        say.note(format_args!(
            "of {blind} no frame was seen since it was attached: it is silent, or not seen; nvcli doctor tells which"
        ));
    }
    Ok(())
}

/// Prints attachments, as a table or as JSON lines.
pub(crate) fn print(attached: &[Attachment], output: ListOutput, no_header: bool) -> Result<()> {
    write(attached, output, no_header).map_err(|source| CliError::output(&source))
}

fn write(attached: &[Attachment], output: ListOutput, no_header: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        ListOutput::Json => {
            for attachment in attached {
                escape::json(&mut out, &Listed::new(attachment))?;
                out.write_all(b"\n")?;
            }
        }
        ListOutput::Table if attached.is_empty() => {}
        ListOutput::Table => {
            let mut columns = columns();
            let measured = attached.iter().any(|a| a.blackout.is_some());
            if measured {
                columns.push(Column::right("BLACKOUT"));
            }
            let rows: Vec<Vec<String>> = attached
                .iter()
                .map(|attachment| {
                    let health = match &attachment.health {
                        Health::Whole if frames_seen(attachment) == Some(0) => {
                            "ok, no frame yet".to_owned()
                        }
                        Health::Whole => "ok".to_owned(),
                        Health::Damaged { why } => format!("damaged: {}", escape::text(why)),
                    };
                    let mut row = vec![
                        attachment.id.to_string(),
                        escape::text(&attachment.workload.name).into_owned(),
                        escape::text(&attachment.interface).into_owned(),
                        attachment.mode.to_string(),
                        escape::text(&attachment.port).into_owned(),
                        attachment.mac.to_string(),
                        attachment.mtu.to_string(),
                        health,
                    ];
                    if measured {
                        let longest = |b: &Blackout| format!("<={:.1}ms", ceil_ms(b.at_most()));
                        let longest = attachment.blackout.as_ref().map(longest);
                        row.push(longest.unwrap_or_else(|| "-".into()));
                    }
                    row
                })
                .collect();
            out.write_all(table(&columns, &rows, terminal_width(), no_header).as_bytes())?;
        }
    }
    out.flush()
}

fn columns() -> Vec<Column> {
    vec![
        Column::left("ID"),
        Column::left("CONTAINER").fit(Fit::Shorten(12)),
        Column::left("INTERFACE"),
        Column::left("MODE"),
        Column::left("PORT").fit(Fit::Drop(2)),
        Column::left("MAC").fit(Fit::Drop(3)),
        Column::right("MTU").fit(Fit::Drop(4)),
        Column::left("HEALTH").fit(Fit::Shorten(10)),
    ]
}

/// Prints what an agent told.
fn told(lines: &[String], args: &List) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.output == ListOutput::Json {
        for line in lines {
            writeln!(out, "{line}")?;
        }
        return out.flush();
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let one: Value = serde_json::from_str(line).unwrap_or_default();
            let text = |key: &str| match &one[key] {
                Value::String(text) => escape::text(text).into_owned(),
                Value::Null => "-".to_owned(),
                other => other.to_string(),
            };
            let health = match one["damage"].as_str() {
                None => "ok".to_owned(),
                Some(why) => format!("damaged: {}", escape::text(why)),
            };
            let mut row = ["id", "workload", "interface", "mode", "port", "mac", "mtu"]
                .map(text)
                .to_vec();
            row.push(health);
            row
        })
        .collect();
    if !rows.is_empty() {
        out.write_all(table(&columns(), &rows, terminal_width(), args.no_header).as_bytes())?;
    }
    out.flush()
}

/// Milliseconds, rounded up to a tenth.
fn ceil_ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).ceil() / 10.0
}
