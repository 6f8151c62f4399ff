//! `--watch` for programs: a line as a connection opens, changes and ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::common::{chain, ensure, same};
use crate::stage::{PATIENCE, Stage};

/// nvcli, and the lines of both its outputs. Dropping it ends it.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(stage: &Stage, arguments: &[&str]) -> Result<Self, Failed> {
        let mut command = Stage::command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = stage.lab.host.run(|| command.spawn()).map_err(chain)??;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (told, lines) = mpsc::channel();
        let said = told.clone();
        thread::spawn(move || lines_of(out, &told));
        thread::spawn(move || lines_of(err, &said));
        Ok(Self { child, lines })
    }

    fn next(&self) -> Result<String, Failed> {
        Ok(self.lines.recv_timeout(PATIENCE)?)
    }

    /// The next record of this kind; those before it are in `seen`, too.
    fn event(&self, wanted: &str, seen: &mut Vec<Value>) -> Result<Value, Failed> {
        loop {
            let line = self
                .next()
                .map_err(|_| format!("no {wanted} after {seen:#?}"))?;
            let Ok(record) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            seen.push(record.clone());
            if record["event"] == wanted {
                return Ok(record);
            }
        }
    }
}

fn lines_of(from: Option<impl std::io::Read>, to: &mpsc::Sender<String>) {
    let lines = from
        .into_iter()
        .flat_map(|from| BufReader::new(from).lines());
    for line in lines.map_while(Result::ok) {
        // Nobody listens any more when the test is over.
        let _ = to.send(line);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn without_a_terminal_lines_tell_it() -> Result<(), Failed> {
    // Standard output is a pipe: with --output json, and where nothing is said of the output.
    for output in [&["--output", "json"][..], &[]] {
        lines_tell_it(output)?;
    }
    Ok(())
}

fn lines_tell_it(output: &[&str]) -> Result<(), Failed> {
    let stage = Stage::new()?;
    let arguments = [
        &["flows", "--watch", "--interval", "200ms", "--count", "2"][..],
        &["--protocol", "tcp", "--container", "web-1"],
        output,
    ]
    .concat();
    let running = Running::start(&stage, &arguments)?;
    // From then on nothing is missed.
    while !running.next()?.contains("metering") {}
    let listener = stage.listener(0, 80)?;
    let mut client = stage.connect(1, stage.address(0, 80))?;
    let (mut server, _) = listener.accept()?;
    let mut seen = Vec::new();
    let opened = running.event("open", &mut seen)?;
    ensure(opened.get("flowEndReason").is_none(), opened.to_string())?;
    same("state", opened["tcpState"].as_str(), Some("ESTABLISHED"))?;
    same("named", opened["workload"].as_str(), Some("web-1"))?;
    let peer = opened["peerWorkload"].as_str();
    same("its peer", peer, Some("client-1"))?;

    let request = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    client.write_all(request)?;
    server.read_exact(&mut [0; 30])?;
    let updated = loop {
        let updated = running.event("update", &mut seen)?;
        if updated["initiatorOctets"] == request.len() {
            break updated;
        }
    };
    ensure(updated.get("flowEndReason").is_none(), updated.to_string())?;
    let host = updated["httpRequestHost"].as_str();
    same("what it asked for", host, Some("shop"))?;
    for key in ["sourceTransportPort", "flowStartMicroseconds"] {
        same(key, &updated[key], &opened[key])?;
    }

    drop((client, server));
    let ended = running.event("end", &mut seen)?;
    same("how it ended", ended["flowEndReason"].as_u64(), Some(3))?;
    same("all of it", ended["initiatorOctets"].as_u64(), Some(30))?;
    let lines = |seen: &[Value], event: &str| {
        let of_it = seen.iter().filter(|record| {
            record["event"] == event
                && record["sourceTransportPort"] == opened["sourceTransportPort"]
        });
        of_it.count()
    };
    same("it opens once", lines(&seen, "open"), 1)?;
    same("it ends once", lines(&seen, "end"), 1)?;

    // The second end is the last one that is wanted.
    let client = stage.connect(1, stage.address(0, 80))?;
    drop((client, listener.accept()?));
    running.event("end", &mut seen)?;
    let mut running = running;
    let status = running.child.wait()?;
    ensure(status.success(), format!("{status}"))?;
    // Each line of a record is one.
    let is_event = |record: &Value| record["event"].as_str().is_some();
    ensure(seen.iter().all(is_event), format!("{seen:#?}"))
}
