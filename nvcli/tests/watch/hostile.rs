//! Names that were chosen to do harm: of a container, and in frames.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::common::{chain, ensure, same, sh_in};
use crate::screen::Screen;
use crate::stage::{Stage, Traffic, dns, http, tls, until};

/// Colours, rings, and turns round what follows.
const NAME: &str = "w\x1b[41m\u{202e}\u{7}\"x";
const NAME_SHOWN: &str = "w\\x1b[41m\\u{202e}\\x07\"x";
/// Clears the screen, and forges a line.
const SNI: &[u8] = b"evil\n\x1b[2J\x1b]0;owned\x07.example";
const SNI_SHOWN: &str = "evil\\n\\x1b[2J\\x1b]0;owned\\x07.example";
/// In a column there is no room for all of it.
const SNI_BEGINS: &str = "evil\\n\\x1b";

/// What must not reach a terminal but by the view itself.
const HARMFUL: [&str; 5] = ["\x1b[41m", "\u{202e}", "\x07", "\x1b[2J", "\x1b]0"];

fn hostile_traffic(stage: &Stage) -> Result<Traffic, Failed> {
    let mut traffic = Traffic::new();
    traffic.tcp(stage, (1, 0), 80, http())?;
    traffic.tcp(stage, (1, 0), 443, tls(SNI))?;
    let (query, answer) = longest_query();
    traffic.udp(stage, (1, 0), 53, (query, Some(answer)))?;
    Ok(traffic)
}

/// Of a name of 255 octets, each of which rings the bell.
fn longest_query() -> (Vec<u8>, Vec<u8>) {
    let [query, answer] = dns(&[&[7; 63], &[7; 63], &[7; 63], &[7; 61]]);
    (query, answer)
}

pub(crate) fn hostile_text_is_shown_harmless() -> Result<(), Failed> {
    let stage = Stage::called([NAME, "client-1"])?;
    let screen = Screen::view(&stage, (200, 50), "")?;
    screen.shows("live")?;
    // The name that TLS tells is in the first thing that is said.
    let _traffic = hostile_traffic(&stage)?;
    screen.shows(NAME_SHOWN)?;
    screen.shows(SNI_BEGINS)?;
    screen.is_harmless(&HARMFUL)?;
    for (keys, shown) in [
        ("/ e v i l Enter Enter", SNI_SHOWN),
        ("Escape Escape 2", NAME_SHOWN),
        // Followed, so that the name stands among what was chosen.
        ("j f", "only w\\x1b"),
    ] {
        screen.keys(keys)?;
        screen.shows(shown)?;
        screen.is_harmless(&HARMFUL)?;
    }
    // What is wrong with it is told with the name.
    let port = &stage.attached[0].port;
    sh_in(&stage.lab.host, &format!("tc qdisc del dev {port} clsact"))?;
    let screen = Screen::view(&stage, (200, 50), "")?;
    screen.keys("3")?;
    screen.shows(&format!("{NAME_SHOWN} eth0: attached, but"))?;
    screen.is_harmless(&HARMFUL)
}

pub(crate) fn names_beyond_measure_fit_the_screen() -> Result<(), Failed> {
    let stage = Stage::called([&"長".repeat(80), "client-1"])?;
    let _traffic = hostile_traffic(&stage)?;
    for size in [(80, 24), (200, 50)] {
        let screen = Screen::view(&stage, size, "--protocol udp")?;
        let list = screen.once("the query", |text| {
            text.contains(":53") && text.contains("client-1")
        })?;
        // Ports and what stands behind the names are where they belong: the name is cut, not they.
        ensure(list.contains('…'), list)?;
        screen.keys("Enter End")?;
        let record = screen.shows("dnsQueryName")?;
        ensure(record.contains("\\\\007\\\\007"), record)?;
        screen.is_harmless(&HARMFUL)?;
    }
    Ok(())
}

/// What programs and people read, of both outputs.
pub(crate) fn metrics_and_lists_have_no_control_character() -> Result<(), Failed> {
    let stage = Stage::called([NAME, "client-1"])?;
    let harmless = |what: &str, text: &str| {
        let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        ensure(!text.contains(harmful), format!("{what}: {text:?}"))
    };
    for command in [
        &["list"][..],
        &["list", "--output", "json"],
        &["doctor"],
        &["doctor", "--output", "json"],
        &["completions", "bash"],
    ] {
        let (out, err) = stage.nvcli(command)?;
        harmless(&command.join(" "), &(out + &err).replace('\t', " "))?;
    }
    let (list, _) = stage.nvcli(&["list"])?;
    ensure(list.contains(NAME_SHOWN), list)?;

    let traffic = hostile_traffic(&stage)?;
    for output in ["table", "json", "csv"] {
        let (out, err) = stage.nvcli(&["flows", "--duration", "1s", "--output", output])?;
        harmless(output, &(out.clone() + &err))?;
        if output == "json" {
            let records: Result<Vec<Value>, _> = out.lines().map(serde_json::from_str).collect();
            let is_named = |record: &Value| record["workload"] == NAME;
            ensure(records?.iter().any(is_named), out)?;
        } else {
            // A quotation mark is doubled where a field has it.
            let shown = NAME_SHOWN.replace('"', if output == "csv" { "\"\"" } else { "\"" });
            ensure(out.contains(&shown), out)?;
        }
    }

    // A metric's label, of what is fetched while it runs.
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
    let address = stage.lab.host.run(free).map_err(chain)??;
    let url = format!("prometheus://{address}");
    let mut command = Stage::command(&["flows", "--output", "none", "--export", &url]);
    command.stderr(Stdio::null());
    let mut child = stage.lab.host.run(|| command.spawn()).map_err(chain)??;
    let fetched = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let mut metrics = String::new();
    let listens = until("metrics are served", || {
        let answer = stage.lab.host.run(fetched).map_err(chain)?;
        metrics = answer.unwrap_or_default();
        Ok(!metrics.is_empty())
    });
    // Records come as connections end.
    drop(traffic);
    let told = listens.and_then(|()| {
        until("the workload's metrics", || {
            metrics = stage.lab.host.run(fetched).map_err(chain)??;
            Ok(metrics.contains("workload=\"w"))
        })
    });
    child.kill()?;
    child.wait()?;
    told?;
    let (_, body) = metrics.split_once("\r\n\r\n").ok_or("no body")?;
    harmless("metrics", body)?;
    // As the text format wants it: each backslash of what is shown is two, and the quotation mark has one in front.
    let label = "workload=\"w\\\\x1b[41m\\\\u{202e}\\\\x07\\\"x\"";
    ensure(body.contains(label), body)?;
    // Each line is a comment, or a name, labels and a number.
    let number = |line: &str| {
        line.rsplit_once(' ')
            .is_some_and(|(_, n)| n.parse::<f64>().is_ok())
    };
    let odd = body
        .lines()
        .find(|line| !line.starts_with('#') && !number(line));
    same("odd lines", odd, None)
}
