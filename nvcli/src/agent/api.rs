//! Answers questions on a unix socket: HTTP/1.1, GET, one answer a connection, JSON lines.
//!
//! So `curl --unix-socket` is enough of a client. docs/agent.md lists what can be asked.

use std::borrow::Cow;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use nvcapture::Timestamp;
use nvnet::Health;
use serde::{Deserialize, Serialize};

use super::collect::{WINDOWS, party};
use super::{Connections, Frames, Lost, State};
use crate::cmd::flows::frame_clock;
use crate::cmd::list::Listed;
use crate::escape;
use crate::events::Event;
use crate::exit::{CliError, Result};
use crate::health::Seen;
use crate::render::flows::{Json, Lines};

/// Version of the API: the first part of every path, but for /metrics.
pub(crate) const VERSION: u32 = 1;
/// The head's field that tells which network namespace the agent's host is.
pub(crate) const HOST: &str = "Nvcli-Host-Netns";
/// How long somebody may take to ask, or to take what was answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// Octets of a question.
const QUESTION: usize = 4 << 10;
/// Who is served at the same time.
const AT_ONCE: usize = 32;

/// Begins to listen at `path`, which nobody else does: the agent's lock is ours.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    let failed = |source: io::Error| {
        CliError::new(format!("cannot listen at {}", path.display()))
            .because(source)
            .remedy("--socket PATH")
    };
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(
                CliError::new(format!("cannot listen at {}", path.display()))
                    .because("something else than a socket is there, which is left as it is")
                    .remedy("--socket PATH, where nothing is; or move away what is there"),
            );
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(failed(io::Error::from(io::ErrorKind::AddrInUse))),
            // Left by one that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(_) => {}
        },
        // It is to be made.
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves until the process ends, in threads of its own.
pub(crate) fn serve(
    listener: UnixListener,
    state: &Arc<State>,
    prepare: impl Fn() + Send + 'static,
) -> io::Result<()> {
    let state = Arc::clone(state);
    thread::Builder::new()
        .name("api".to_owned())
        .spawn(move || {
            // Threads that it starts have no more rights than it has.
            prepare();
            let serving = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of descriptors, mostly: some will be given back.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let place = Place::take(&serving);
                let state = Arc::clone(&state);
                let served =
                    thread::Builder::new()
                        .name("api-answer".to_owned())
                        .spawn(move || {
                            let is_full = place.number > AT_ONCE;
                            // Who asked has gone: nobody to tell.
                            let _ = answer(&stream, &state, is_full);
                        });
                if let Err(error) = served {
                    tracing::warn!("cannot answer: {error}");
                }
            }
        })?;
    Ok(())
}

/// One of those who are served.
struct Place {
    number: usize,
    all: Arc<AtomicUsize>,
}

impl Place {
    fn take(all: &Arc<AtomicUsize>) -> Self {
        Self {
            number: all.fetch_add(1, Ordering::Relaxed) + 1,
            all: Arc::clone(all),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Question<'q> {
    path: &'q str,
    query: Vec<(&'q str, &'q str)>,
}

/// Why a question is not answered.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: &'static str,
    why: String,
}

fn refuse<T>(status: &'static str, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        status,
        why: why.into(),
    })
}

impl<'q> Question<'q> {
    /// The question that a request's head is.
    fn parse(head: &'q [u8]) -> Result<Self, Refusal> {
        let line = head
            .split(|octet| *octet == b'\n')
            .next()
            .unwrap_or_default();
        let Ok(line) = std::str::from_utf8(line) else {
            return refuse("400 Bad Request", "the request is no text");
        };
        let mut words = line.trim_end_matches('\r').split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return refuse(
                "400 Bad Request",
                "the first line is no request of HTTP/1.1",
            );
        };
        if !version.starts_with("HTTP/1.") {
            return refuse("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here");
        }
        if method != "GET" {
            return refuse("405 Method Not Allowed", "only GET is allowed");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .collect();
        Ok(Self { path, query })
    }

    /// Refuses what nobody would look at.
    fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        match self.query.iter().find(|(key, _)| !known.contains(key)) {
            Some((key, _)) if known.is_empty() => {
                refuse("400 Bad Request", format!("{} takes no `{key}`", self.path))
            }
            Some((key, _)) => refuse(
                "400 Bad Request",
                format!("{} takes no `{key}`, but {}", self.path, known.join(", ")),
            ),
            None => Ok(()),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, Refusal> {
        match self.query.iter().find(|(other, _)| *other == key) {
            None => Ok(default),
            Some((_, "true" | "1" | "")) => Ok(true),
            Some((_, "false" | "0")) => Ok(false),
            Some((_, other)) => refuse(
                "400 Bad Request",
                format!("{key} is `{other}`: true or false is needed"),
            ),
        }
    }

    fn number(&self, key: &str, default: u64, most: u64) -> Result<u64, Refusal> {
        match self.query.iter().find(|(other, _)| *other == key) {
            None => Ok(default),
            Some((_, text)) => match text.parse() {
                Ok(number) if (1..=most).contains(&number) => Ok(number),
                _ => refuse(
                    "400 Bad Request",
                    format!("{key} is `{text}`: a number from 1 to {most} is needed"),
                ),
            },
        }
    }
}

#[derive(Serialize)]
struct Refused<'a> {
    error: &'a str,
}

fn answer(stream: &UnixStream, state: &State, is_full: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut out = BufWriter::with_capacity(32 << 10, stream);
    let head = read_head(stream)?;
    let question = may_ask(stream)
        .and_then(|()| {
            if is_full {
                refuse(
                    "503 Service Unavailable",
                    "too many are served at this moment",
                )
            } else {
                Ok(())
            }
        })
        .and_then(|()| Question::parse(&head));
    let done = match question {
        Ok(question) => reply(&question, state, &mut out)?,
        Err(refusal) => Err(refusal),
    };
    if let Err(Refusal { status, why }) = done {
        begin(&mut out, state, status, "application/json")?;
        line(&mut out, &Refused { error: &why })?;
    }
    out.flush()
}

/// Everything up to the empty line; what comes after it is not looked at.
fn read_head(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") && head.len() < QUESTION {
        match stream.read(&mut part)? {
            0 => break,
            length => head.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    Ok(head)
}

/// Root, and who runs the agent; the socket's mode says the same.
fn may_ask(stream: &UnixStream) -> Result<(), Refusal> {
    let own = nix::unistd::geteuid().as_raw();
    match getsockopt(stream, sockopt::PeerCredentials) {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => Ok(()),
        _ => refuse("403 Forbidden", "only root may ask"),
    }
}

fn begin(out: &mut impl Write, state: &State, status: &str, content: &str) -> io::Result<()> {
    let host = state.host.id().ino;
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\n{HOST}: {host}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    escape::json(&mut *out, value)?;
    out.write_all(b"\n")
}

/// An attached interface, as the agent knows it.
#[derive(Serialize)]
struct Attached<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    frames: u64,
    octets: u64,
}

/// Records of one conversation, added up.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conversation {
    window_start_seconds: u64,
    client: Option<String>,
    server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_identifier: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observation_point_id: Option<u16>,
    #[serde(flatten)]
    sums: Sums,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sums {
    records: u64,
    opened: u64,
    closed: u64,
    failed: u64,
    packet_delta_count: u64,
    reverse_packet_delta_count: u64,
    octet_delta_count: u64,
    reverse_octet_delta_count: u64,
    retransmitted_segments: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake_rtt_median_microseconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake_rtt_p99_microseconds: Option<u32>,
}

impl Sums {
    fn new(sums: &nvflow::Conversation) -> Self {
        let rtt = |quantile| {
            sums.handshake_rtt
                .as_ref()
                .and_then(|times| times.quantile(quantile))
        };
        Self {
            records: sums.records,
            opened: sums.opened,
            closed: sums.closed,
            failed: sums.failed,
            packet_delta_count: sums.packets,
            reverse_packet_delta_count: sums.reverse_packets,
            octet_delta_count: sums.octets,
            reverse_octet_delta_count: sums.reverse_octets,
            retransmitted_segments: sums.retransmitted_segments,
            handshake_rtt_median_microseconds: rtt(0.5),
            handshake_rtt_p99_microseconds: rtt(0.99),
        }
    }
}

#[derive(Serialize)]
struct Rest {
    rest: Sums,
}

fn reply<W: Write>(
    question: &Question<'_>,
    state: &State,
    out: &mut W,
) -> io::Result<Result<(), Refusal>> {
    const LINES: &str = "application/x-ndjson";
    const OK: &str = "200 OK";
    macro_rules! or_refuse {
        ($result:expr) => {
            match $result {
                Ok(value) => value,
                Err(refusal) => return Ok(Err(refusal)),
            }
        };
    }
    match question.path {
        "/v1/status" => {
            or_refuse!(question.only(&[]));
            begin(out, state, OK, "application/json")?;
            line(out, &state.status())?;
        }
        "/v1/attachments" => {
            or_refuse!(question.only(&[]));
            let attached = or_refuse!(nvnet::list(&state.host).or_else(|error| {
                refuse(
                    "500 Internal Server Error",
                    format!("cannot read what is attached: {error}"),
                )
            }));
            let names = state.board.subjects();
            begin(out, state, OK, LINES)?;
            for attachment in &attached {
                let mut listed = Listed::new(attachment);
                // The kernel keeps the name that it had when it was attached.
                let id = attachment.workload.container_id.as_deref();
                if let Some(subject) = names.iter().find(|subject| {
                    id.zip(subject.container_id.as_deref())
                        .is_some_and(|(part, whole)| whole.starts_with(part))
                }) {
                    listed.workload = &subject.workload;
                    listed.container_id = subject.container_id.as_deref();
                }
                let stats = attachment.stats;
                line(
                    out,
                    &Attached {
                        listed,
                        frames: stats.rx_packets + stats.tx_packets,
                        octets: stats.rx_bytes + stats.tx_bytes,
                    },
                )?;
            }
        }
        "/v1/containers" => {
            or_refuse!(question.only(&[]));
            begin(out, state, OK, LINES)?;
            for subject in state.board.subjects() {
                line(out, &subject)?;
            }
        }
        "/v1/flows" => {
            or_refuse!(question.only(&["open", "follow", "watch"]));
            let open = or_refuse!(question.flag("open", true));
            let follow = or_refuse!(question.flag("follow", false));
            let watch = or_refuse!(question.number("watch", 0, 60_000));
            begin(out, state, OK, LINES)?;
            if watch > 0 {
                changes(state, Duration::from_millis(watch), out)?;
            } else {
                flows(state, open, follow, out)?;
            }
        }
        "/v1/aggregates" => {
            or_refuse!(question.only(&["minutes"]));
            let minutes = or_refuse!(question.number("minutes", WINDOWS, WINDOWS));
            begin(out, state, OK, LINES)?;
            let all = state.totals.conversations(minutes);
            let mut sorted: Vec<_> = all.iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(b.0));
            for (key, sums) in sorted {
                line(
                    out,
                    &Conversation {
                        window_start_seconds: key.window.as_nanos() / 1_000_000_000,
                        client: key.client.as_ref().map(party),
                        server: key.server.as_ref().map(party),
                        server_port: key.server_port,
                        protocol_identifier: key.protocol,
                        observation_point_id: key.observation_point,
                        sums: Sums::new(sums),
                    },
                )?;
            }
            if all.rest().records > 0 {
                line(
                    out,
                    &Rest {
                        rest: Sums::new(all.rest()),
                    },
                )?;
            }
        }
        "/v1/paths" => {
            or_refuse!(question.only(&[]));
            begin(out, state, OK, LINES)?;
            for path in state.totals.paths() {
                line(out, &path)?;
            }
        }
        "/metrics" => {
            or_refuse!(question.only(&[]));
            begin(out, state, OK, "text/plain; version=0.0.4")?;
            metrics(state, out)?;
        }
        path => {
            let known = "/v1/status /v1/attachments /v1/containers /v1/flows /v1/aggregates /v1/paths /metrics";
            return Ok(refuse(
                "404 Not Found",
                format!("there is no {path}; there are {known}"),
            ));
        }
    }
    Ok(Ok(()))
}

/// Open connections, then records as they come, each as a line.
fn flows<W: Write>(state: &State, open: bool, follow: bool, out: &mut W) -> io::Result<()> {
    // Before the look: what ends meanwhile is told.
    let listener = follow.then(|| state.totals.listen());
    let mut lines = Json::new(&mut *out);
    if open {
        let mut records = state.rings.open();
        state.board.label(&mut records);
        for record in &records {
            lines.record(record)?;
        }
        lines.flush()?;
    }
    drop(lines);
    out.flush()?;
    let Some(listener) = listener else {
        return Ok(());
    };
    let mut told = Instant::now();
    loop {
        match listener.recv_timeout(Duration::from_secs(1)) {
            Ok(record) => {
                let mut lines = Json::new(&mut *out);
                lines.record(&record)?;
                for record in listener.try_iter().take(1_000) {
                    lines.record(&record)?;
                }
                lines.flush()?;
                drop(lines);
                out.flush()?;
                told = Instant::now();
            }
            // An empty line now and then: it fails when nobody reads any longer.
            Err(RecvTimeoutError::Timeout) if told.elapsed() >= Duration::from_secs(5) => {
                out.write_all(b"\n")?;
                out.flush()?;
                told = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// What there is to say between two looks.
#[derive(Deserialize, Serialize)]
pub(super) struct Looked {
    event: Cow<'static, str>,
    /// Every open connection was told of since the last such line: what was not is gone.
    pub(super) whole: bool,
    pub(super) frames: Frames,
    pub(super) connections: Connections,
    pub(super) lost: Lost,
    pub(super) interfaces: Vec<Interface>,
}

/// Frames that were read of an attached interface: `[out of the container, into it]` where there are two.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Interface {
    pub(super) observation_point_id: u16,
    pub(super) frames: [u64; 2],
    pub(super) octets: [u64; 2],
    pub(super) partial_checksums: u64,
    pub(super) last_microseconds: u64,
}

/// Connections as they change, and records as they come, each as a line; after every look a line with the totals, and an empty one.
fn changes<W: Write>(state: &State, every: Duration, out: &mut W) -> io::Result<()> {
    /// Looks after which all is told, also what has not changed: who has missed a record puts itself right.
    const WHOLE: u32 = 60;
    // Before the first look: what ends meanwhile is told.
    let listener = state.totals.listen();
    let mut since = Timestamp::ZERO;
    for look in 0_u32.. {
        let due = Instant::now() + every;
        let whole = look % WHOLE == 0;
        // What came so long ago was not yet read, and is asked for again.
        let next = frame_clock();
        let from = if whole { Timestamp::ZERO } else { since };
        let mut records = state.rings.changed(from);
        since = next;
        state.board.label(&mut records);
        let mut lines = Json::new(&mut *out);
        lines.tell(Event::Update);
        for mut record in records {
            // Its last record says how it ended, when it comes.
            record.flow_end_reason = None;
            lines.record(&record)?;
        }
        lines.flush()?;
        drop(lines);
        let stats = state.rings.stats();
        let looked = Looked {
            event: "totals".into(),
            whole,
            frames: Frames::new(&stats),
            connections: Connections::new(&stats),
            lost: state.lost(&stats),
            interfaces: interfaces(&state.rings.seen()),
        };
        line(out, &looked)?;
        out.write_all(b"\n")?;
        out.flush()?;
        loop {
            let first = match listener.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(record) => record,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut lines = Json::new(&mut *out);
            for record in std::iter::once(first).chain(listener.try_iter().take(1_000)) {
                lines.tell(Event::of_record(&record));
                lines.record(&record)?;
            }
            lines.flush()?;
            drop(lines);
            out.flush()?;
        }
    }
    Ok(())
}

fn interfaces(seen: &[Seen]) -> Vec<Interface> {
    let all = (0..=u16::MAX).zip(seen);
    all.filter(|(_, seen)| seen.total() > 0)
        .map(|(id, seen)| Interface {
            observation_point_id: id,
            frames: seen.frames,
            octets: seen.octets,
            partial_checksums: seen.partial,
            last_microseconds: seen.last.as_micros(),
        })
        .collect()
}

/// The same totals for Prometheus, in its text format.
fn metrics(state: &State, out: &mut impl Write) -> io::Result<()> {
    let status = state.status();
    let mut metric =
        |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| -> io::Result<()> {
            writeln!(out, "# HELP nvcli_agent_{name} {help}")?;
            writeln!(out, "# TYPE nvcli_agent_{name} {kind}")?;
            for (label, value) in values {
                if label.is_empty() {
                    writeln!(out, "nvcli_agent_{name} {value}")?;
                } else {
                    writeln!(out, "nvcli_agent_{name}{{{label}}} {value}")?;
                }
            }
            Ok(())
        };
    let attached = state.board.attached();
    let whole = attached
        .iter()
        .filter(|a| a.health == Health::Whole)
        .count() as u64;
    metric(
        "uptime_seconds",
        "gauge",
        "Time since the agent was started.",
        &[("", status.uptime_seconds)],
    )?;
    metric(
        "attachments",
        "gauge",
        "Attached interfaces.",
        &[
            ("health=\"whole\"", whole),
            ("health=\"damaged\"", attached.len() as u64 - whole),
        ],
    )?;
    metric(
        "interfaces_attached_total",
        "counter",
        "Interfaces that the agent attached.",
        &[("", status.work.attached)],
    )?;
    metric(
        "interfaces_detached_total",
        "counter",
        "Interfaces that the agent took back.",
        &[("", status.work.detached)],
    )?;
    metric(
        "attach_failures_total",
        "counter",
        "Attempts to attach that failed and are made again.",
        &[("", status.work.failed)],
    )?;
    metric(
        "frames_total",
        "counter",
        "Frames read, by what became of them.",
        &[
            ("outcome=\"metered\"", status.frames.metered),
            ("outcome=\"not_ip\"", status.frames.not_ip),
            ("outcome=\"unparsed\"", status.frames.unparsed),
            ("outcome=\"refused\"", status.frames.refused),
        ],
    )?;
    metric(
        "frames_lost_total",
        "counter",
        "Frames that were not read, by cause.",
        &[
            ("cause=\"ring_full\"", status.lost.frames_ring_full),
            ("cause=\"unread\"", status.lost.frames_unread),
        ],
    )?;
    metric(
        "octets_total",
        "counter",
        "Octets of the frames read, on the wire.",
        &[("", status.frames.octets)],
    )?;
    metric(
        "connections",
        "gauge",
        "Open connections.",
        &[("", status.connections.open)],
    )?;
    metric(
        "connections_total",
        "counter",
        "Connections opened.",
        &[("", status.connections.opened)],
    )?;
    metric(
        "evictions_total",
        "counter",
        "Connections given up because the table was full.",
        &[("", status.connections.evicted)],
    )?;
    metric(
        "records_total",
        "counter",
        "Records made.",
        &[("", status.records.made)],
    )?;
    metric(
        "records_lost_total",
        "counter",
        "Records that were dropped, by cause.",
        &[
            ("cause=\"queue_full\"", status.lost.records_queue_full),
            ("cause=\"listener_slow\"", status.lost.records_listener_slow),
        ],
    )?;
    metric(
        "queue_records",
        "gauge",
        "Records that wait for their names.",
        &[("", status.records.waiting)],
    )?;
    let by_name = |value: &dyn Fn(&crate::export::ExporterStats) -> u64| -> Vec<(String, u64)> {
        let label = |name: &str| format!("exporter=\"{}\"", escape::metric_label(name));
        let exporters = status.exporters.iter();
        exporters
            .map(|exporter| (label(&exporter.name), value(exporter)))
            .collect()
    };
    for (name, help, values) in [
        (
            "exported_records_total",
            "Records delivered.",
            by_name(&|one| one.exported),
        ),
        (
            "export_lost_records_total",
            "Records not delivered.",
            by_name(&|one| one.lost.total()),
        ),
    ] {
        let values: Vec<(&str, u64)> = values
            .iter()
            .map(|(label, value)| (&label[..], *value))
            .collect();
        if !values.is_empty() {
            metric(name, "counter", help, &values)?;
        }
    }
    let engines: Vec<(String, u64)> = status
        .engines
        .iter()
        .map(|engine| {
            (
                format!("engine=\"{}\"", escape::metric_label(&engine.socket)),
                engine.connected.into(),
            )
        })
        .collect();
    let engines: Vec<(&str, u64)> = engines
        .iter()
        .map(|(label, value)| (&label[..], *value))
        .collect();
    if !engines.is_empty() {
        metric(
            "engine_connected",
            "gauge",
            "Whether the engine answers.",
            &engines,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_makes_room_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = bind(&socket).unwrap();
        assert!(bind(&socket).is_err(), "somebody listens there");
        drop(listener);
        let listener = bind(&socket).unwrap();
        drop(listener);
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, "precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        for other in [&file, &link] {
            let told = bind(other).unwrap_err().to_string();
            assert!(told.contains("something else than a socket"), "{told}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert!(link.is_symlink() && socket.exists());
    }

    #[test]
    fn questions_are_read_and_others_refused() {
        let asked =
            Question::parse(b"GET /v1/flows?open=false&follow HTTP/1.1\r\nHost: agent\r\n\r\n")
                .unwrap();
        assert_eq!(asked.path, "/v1/flows");
        assert_eq!(asked.flag("open", true), Ok(false));
        assert_eq!(asked.flag("follow", false), Ok(true));
        assert_eq!(asked.flag("other", true), Ok(true));
        assert!(asked.only(&["open", "follow"]).is_ok());
        assert!(
            asked
                .only(&["open"])
                .unwrap_err()
                .why
                .contains("takes no `follow`, but open")
        );
        let asked = Question::parse(b"GET /v1/aggregates?minutes=5 HTTP/1.0\n\n").unwrap();
        assert_eq!(asked.number("minutes", 15, 15), Ok(5));
        assert!(
            asked
                .number("minutes", 15, 4)
                .unwrap_err()
                .why
                .contains("from 1 to 4")
        );
        for (head, status) in [
            (&b"POST /v1/status HTTP/1.1\r\n\r\n"[..], "405"),
            (b"GET /v1/status HTTP/2\r\n\r\n", "505"),
            (b"GET /v1/status\r\n\r\n", "400"),
            (b"", "400"),
            (b"\xff\xfe", "400"),
        ] {
            assert!(
                Question::parse(head)
                    .unwrap_err()
                    .status
                    .starts_with(status),
                "{head:?}"
            );
        }
    }
}
