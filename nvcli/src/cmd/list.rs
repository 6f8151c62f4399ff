//! `nvcli list`: what is attached.

use std::io::{self, Write as _};

use nvnet::{Attachment, Health};
use serde::Serialize;

use crate::args::{List, ListOutput};
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::open::{host, net};
use crate::render::table::{Column, Fit, table, terminal_width};

/// An attachment as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    id: String,
    workload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    interface: &'a str,
    mode: String,
    mac: String,
    marker_mac: String,
    port: &'a str,
    mtu: u32,
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<&'a str>,
}

impl<'a> Listed<'a> {
    fn new(attachment: &'a Attachment) -> Self {
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
        }
    }
}

/// Prints the list.
pub(crate) fn run(args: &List, say: Say) -> Result<()> {
    let attached =
        nvnet::list(&host()?).map_err(|error| net("cannot read what is attached", &error))?;
    if attached.is_empty() && args.output == ListOutput::Table {
        say.note("nothing is attached; try: nvcli attach CONTAINER");
    }
    print(&attached, args.output, args.no_header)
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
            let columns = [
                Column::left("ID"),
                Column::left("CONTAINER").fit(Fit::Shorten(12)),
                Column::left("INTERFACE"),
                Column::left("MODE"),
                Column::left("PORT").fit(Fit::Drop(2)),
                Column::left("MAC").fit(Fit::Drop(3)),
                Column::right("MTU").fit(Fit::Drop(4)),
                Column::left("HEALTH").fit(Fit::Shorten(10)),
            ];
            let rows: Vec<Vec<String>> = attached
                .iter()
                .map(|attachment| {
                    let health = match &attachment.health {
                        Health::Whole => "ok".to_owned(),
                        Health::Damaged { why } => format!("damaged: {}", escape::text(why)),
                    };
                    vec![
                        attachment.id.to_string(),
                        escape::text(&attachment.workload.name).into_owned(),
                        escape::text(&attachment.interface).into_owned(),
                        attachment.mode.to_string(),
                        escape::text(&attachment.port).into_owned(),
                        attachment.mac.to_string(),
                        attachment.mtu.to_string(),
                        health,
                    ]
                })
                .collect();
            out.write_all(table(&columns, &rows, terminal_width(), no_header).as_bytes())?;
        }
    }
    out.flush()
}
