//! Sums of the records on `/metrics`, as Prometheus' text format.
//!
//! What can be told apart is bounded: workloads and a handful of protocols, up to a number of series; what is beyond goes into `other`.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use nvflow::{FlowRecord, Vantage};

use super::config::PrometheusTo;
use super::lane::{Exporter, Lane, Trouble};
use super::{Totals, lock};
use crate::escape;

/// Connections at the same time, at most.
const CONNECTIONS: usize = 16;
/// How long a request may take to come.
const REQUEST: Duration = Duration::from_secs(5);
/// A series that nothing was added to for so long makes room for a new one.
const IDLE: Duration = Duration::from_secs(600);
/// What has no room, and what a container of that name would be taken for.
const OTHER: &str = "other";

/// What is told apart: a workload (empty where none is known) and a protocol.
type Key = (Option<Arc<str>>, &'static str);

/// Sums of what one side sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    octets: u64,
    packets: u64,
    retransmitted: u64,
}

#[derive(Clone, Debug)]
struct Series {
    /// Records of connections that the workload opened, that were opened to it, and of which that is not known.
    records: [u64; 3],
    /// What the workload sent, what it received; and where that is not known, what initiators and responders sent.
    sent: [Sent; 4],
    last: Instant,
}

impl Series {
    fn new(now: Instant) -> Self {
        Self {
            records: [0; 3],
            sent: [Sent::default(); 4],
            last: now,
        }
    }

    fn add(&mut self, record: &FlowRecord, now: Instant) {
        let (kind, forward, reverse) = match record.vantage {
            Some(Vantage::Egress) => (0, 0, 1),
            Some(Vantage::Ingress) => (1, 1, 0),
            None => (2, 2, 3),
        };
        self.records[kind] += 1;
        let tcp = record.tcp.as_ref();
        for (place, side, tcp) in [
            (forward, &record.forward, tcp.map(|tcp| &tcp.forward)),
            (reverse, &record.reverse, tcp.map(|tcp| &tcp.reverse)),
        ] {
            let sent = &mut self.sent[place];
            sent.octets += side.octets;
            sent.packets += side.packets;
            sent.retransmitted += tcp.map_or(0, |tcp| u64::from(tcp.retransmitted_segments));
        }
        self.last = now;
    }
}

const fn protocol(number: u8) -> &'static str {
    match number {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmp6",
        132 => "sctp",
        _ => OTHER,
    }
}

/// All series, up to a number of them and those of [`OTHER`].
#[derive(Debug)]
struct Sums {
    most: usize,
    series: HashMap<Key, Series>,
    other: HashMap<&'static str, Series>,
    /// Records that went into `other` for want of room.
    beyond: u64,
}

impl Sums {
    fn new(most: usize) -> Self {
        Self {
            most,
            series: HashMap::new(),
            other: HashMap::new(),
            beyond: 0,
        }
    }

    fn add(&mut self, record: &FlowRecord, now: Instant) {
        let protocol = protocol(record.protocol_identifier);
        let key: Key = (record.labels.workload.clone(), protocol);
        let is_known = self.series.contains_key(&key);
        let is_other = key.0.as_deref() == Some(OTHER);
        if is_other || (!is_known && !self.make_room(now)) {
            self.beyond += u64::from(!is_other);
            let series = self.other.entry(protocol);
            series.or_insert_with(|| Series::new(now)).add(record, now);
        } else {
            let series = self.series.entry(key);
            series.or_insert_with(|| Series::new(now)).add(record, now);
        }
    }

    /// Whether there is room for one more, if need be in the place of one that is idle.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.series.len() < self.most {
            return true;
        }
        let oldest = self.series.iter().min_by_key(|(_, series)| series.last);
        let Some((key, _)) = oldest.filter(|(_, series)| now - series.last >= IDLE) else {
            return false;
        };
        let key = key.clone();
        self.series.remove(&key).is_some()
    }
}

/// What the exporter's thread and the server's both see.
struct Shared {
    sums: Mutex<Sums>,
    totals: Arc<Mutex<Totals>>,
    lanes: Arc<OnceLock<Vec<Arc<Lane>>>>,
    /// Records added, and how many of them somebody has fetched.
    added: AtomicU64,
    fetched: AtomicU64,
}

pub(super) struct Prometheus {
    shared: Arc<Shared>,
    server: Option<(tokio::sync::oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Prometheus {
    /// Listens at the address.
    pub(super) fn start(
        to: &PrometheusTo,
        totals: Arc<Mutex<Totals>>,
        lanes: Arc<OnceLock<Vec<Arc<Lane>>>>,
    ) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = to.address.to_socket_addrs()?.collect();
        let listener = TcpListener::bind(&addresses[..])?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let shared = Arc::new(Shared {
            sums: Mutex::new(Sums::new(to.series)),
            totals,
            lanes,
            added: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = serve(&listener, &its) => {}
                        _ = stopped => {}
                    }
                });
                // Who is being answered at that moment gets a little time.
                runtime.shutdown_timeout(Duration::from_millis(100));
            })?;
        Ok(Self {
            shared,
            server: Some((stop, thread)),
        })
    }
}

impl Exporter for Prometheus {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        lane.connected();
        let now = Instant::now();
        let count = records.len();
        let mut sums = lock(&self.shared.sums);
        for record in records.drain(..) {
            sums.add(&record, now);
        }
        self.shared.added.fetch_add(count as u64, Ordering::Relaxed);
        drop(sums);
        lane.exported(count, 0);
        Ok(())
    }

    /// At the end it is waited, within `flush`, for somebody to fetch the last records' sums.
    fn is_busy(&self) -> bool {
        self.shared.fetched.load(Ordering::Relaxed) < self.shared.added.load(Ordering::Relaxed)
    }

    fn close(
        &mut self,
        _records: &mut VecDeque<Arc<FlowRecord>>,
        _lane: &Lane,
    ) -> Result<(), Trouble> {
        if let Some((stop, thread)) = self.server.take() {
            // It may have ended by itself.
            let _ = stop.send(());
            let _ = thread.join();
        }
        Ok(())
    }
}

/// Answers requests for ever.
async fn serve(listener: &tokio::net::TcpListener, shared: &Arc<Shared>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others have to close some first.
                tracing::warn!("metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let _slot = slot;
            let answers = hyper::service::service_fn(move |request| {
                std::future::ready(Ok::<_, Infallible>(answer(&request, &shared)))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), answers);
            // A client that went away is not our concern; one that does not read is given up.
            let patience = tokio::time::timeout(Duration::from_secs(120), connection);
            if let Ok(Err(error)) = patience.await {
                tracing::debug!("metrics: {error}");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET is all there is\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/metrics" => plain(StatusCode::OK, metrics(shared)),
        "/" => plain(StatusCode::OK, "nvcli: see /metrics\n".to_owned()),
        _ => plain(StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    }
}

/// The text in the making: writing to a String does not fail.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (place, (key, value)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{key}=\"{}\"", escape::metric_label(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

fn metrics(shared: &Shared) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    let sums = lock(&shared.sums);
    let added = shared.added.load(Ordering::Relaxed);
    let mut all: Vec<(&str, &str, &Series)> = sums
        .series
        .iter()
        .map(|((workload, protocol), series)| {
            (workload.as_deref().unwrap_or_default(), *protocol, series)
        })
        .chain(
            sums.other
                .iter()
                .map(|(protocol, series)| (OTHER, *protocol, series)),
        )
        .collect();
    all.sort_unstable_by_key(|(workload, protocol, _)| (*workload, *protocol));

    text.family(
        "nvcli_flow_records_total",
        "counter",
        "Records of connections, by who opened them: the workload (egress) or somebody else (ingress).",
    );
    for (workload, protocol, series) in &all {
        for (vantage, records) in ["egress", "ingress", "unknown"]
            .into_iter()
            .zip(series.records)
        {
            if records > 0 {
                let labels = [
                    ("workload", *workload),
                    ("protocol", *protocol),
                    ("vantage", vantage),
                ];
                text.sample("nvcli_flow_records_total", &labels, records);
            }
        }
    }
    type Pick = fn(&Sent) -> u64;
    let families: [(&str, &str, Pick); 3] = [
        (
            "nvcli_flow_octets_total",
            "Octets of IP packets, by whether the workload sent or received them.",
            |sent| sent.octets,
        ),
        (
            "nvcli_flow_packets_total",
            "IP packets, by whether the workload sent or received them.",
            |sent| sent.packets,
        ),
        (
            "nvcli_flow_retransmitted_segments_total",
            "TCP segments that were sent again, by whether the workload sent or received them.",
            |sent| sent.retransmitted,
        ),
    ];
    for (name, help, pick) in families {
        text.family(name, "counter", help);
        for (workload, protocol, series) in &all {
            for (place, direction) in ["transmit", "receive", "initiator", "responder"]
                .into_iter()
                .enumerate()
            {
                let is_used = match place {
                    0 | 1 => series.records[0] + series.records[1] > 0,
                    _ => series.records[2] > 0,
                };
                if is_used && (*protocol == "tcp" || !name.contains("retransmitted")) {
                    let labels = [
                        ("workload", *workload),
                        ("protocol", *protocol),
                        ("direction", direction),
                    ];
                    text.sample(name, &labels, pick(&series.sent[place]));
                }
            }
        }
    }
    text.family(
        "nvcli_series",
        "gauge",
        "Workloads and protocols that are told apart.",
    );
    text.sample("nvcli_series", &[], sums.series.len() as u64);
    text.family(
        "nvcli_series_beyond_records_total",
        "counter",
        "Records that were added to the workload `other` since there were too many series.",
    );
    text.sample("nvcli_series_beyond_records_total", &[], sums.beyond);
    drop(sums);
    metering(&mut text, &lock(&shared.totals));
    exporters(&mut text, shared.lanes.get().map_or(&[], Vec::as_slice));
    shared.fetched.fetch_max(added, Ordering::Relaxed);
    text.0
}

/// Where every frame went.
fn metering(text: &mut Text, totals: &Totals) {
    text.family(
        "nvcli_frames_total",
        "counter",
        "Frames read, by what became of them; dropped are those that the kernel had no room for, and were not read.",
    );
    for (result, frames) in [
        ("metered", totals.metered),
        ("not_ip", totals.not_ip),
        ("unparsed", totals.unparsed),
        ("refused", totals.refused),
        ("dropped", totals.dropped),
    ] {
        text.sample("nvcli_frames_total", &[("result", result)], frames);
    }
    text.family("nvcli_connections_total", "counter", "Connections seen.");
    text.sample("nvcli_connections_total", &[], totals.connections);
    text.family(
        "nvcli_connections_evicted_total",
        "counter",
        "Connections that had to leave the table for others.",
    );
    text.sample("nvcli_connections_evicted_total", &[], totals.evicted);
}

/// How the exporters fare, this one among them.
fn exporters(text: &mut Text, lanes: &[Arc<Lane>]) {
    let stats: Vec<_> = lanes.iter().map(|lane| lane.stats()).collect();
    text.family(
        "nvcli_export_records_total",
        "counter",
        "Records offered to an exporter, by what became of them.",
    );
    for stats in &stats {
        for (result, records) in [
            ("exported", stats.exported),
            ("queue_full", stats.lost.queue_full),
            ("refused", stats.lost.refused),
            ("gave_up", stats.lost.gave_up),
            ("too_large", stats.lost.too_large),
        ] {
            let labels = [("exporter", stats.name.as_str()), ("result", result)];
            text.sample("nvcli_export_records_total", &labels, records);
        }
    }
    text.family(
        "nvcli_export_waiting_records",
        "gauge",
        "Records that wait for an exporter.",
    );
    for stats in &stats {
        let labels = [("exporter", stats.name.as_str())];
        text.sample("nvcli_export_waiting_records", &labels, stats.waiting);
    }
    text.family(
        "nvcli_export_connected",
        "gauge",
        "Whether an exporter's collector answers.",
    );
    for stats in &stats {
        let labels = [("exporter", stats.name.as_str())];
        text.sample("nvcli_export_connected", &labels, stats.connected.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::lane::tests::record;

    fn named(workload: &str, protocol: u8) -> FlowRecord {
        let mut record = record(1);
        record.labels.workload = Some(workload.into());
        record.vantage = Some(Vantage::Ingress);
        record.protocol_identifier = protocol;
        record
    }

    fn shared(most: usize) -> Shared {
        Shared {
            sums: Mutex::new(Sums::new(most)),
            totals: Arc::default(),
            lanes: Arc::default(),
            added: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        }
    }

    #[test]
    fn series_are_bounded_and_nothing_is_lost() {
        let now = Instant::now();
        let shared = shared(10);
        let mut sums = lock(&shared.sums);
        for number in 0..100 {
            sums.add(&named(&format!("w{number}"), 17), now);
            sums.add(&named(OTHER, number), now);
        }
        assert_eq!((sums.series.len(), sums.beyond), (10, 90));
        // One that has been idle makes room.
        sums.add(&named("late", 6), now + IDLE);
        assert!(sums.series.contains_key(&(Some("late".into()), "tcp")));
        assert_eq!((sums.series.len(), sums.beyond), (10, 90));
        drop(sums);
        let text = metrics(&shared);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let keys: std::collections::HashSet<_> = samples
            .iter()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys.len(), samples.len(), "a sample is there twice");
        let records: u64 = samples
            .iter()
            .filter(|line| line.starts_with("nvcli_flow_records_total{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        // All but the one of the series that made room.
        assert_eq!(records, 200);
    }

    #[test]
    fn names_cannot_forge_samples() {
        let shared = shared(10);
        let hostile = "x\"} 1\nforged\x1b[2J{y=\"\\";
        lock(&shared.sums).add(&named(hostile, 6), Instant::now());
        let text = metrics(&shared);
        let lines = text.lines().filter(|line| line.contains("forged"));
        for line in lines {
            assert!(line.starts_with("nvcli_flow_"), "{line}");
            assert!(
                line.contains(r#"workload="x\"} 1\\nforged\\x1b[2J{y=\"\\\\","#),
                "{line}"
            );
        }
    }

    #[test]
    fn who_sent_what_depends_on_who_opened() {
        let shared = shared(10);
        let mut ingress = named("web", 6);
        (ingress.forward.octets, ingress.reverse.octets) = (100, 7);
        let mut egress = ingress.clone();
        egress.vantage = Some(Vantage::Egress);
        for record in [ingress, egress.clone(), egress] {
            lock(&shared.sums).add(&record, Instant::now());
        }
        let text = metrics(&shared);
        for line in [
            r#"nvcli_flow_octets_total{workload="web",protocol="tcp",direction="transmit"} 207"#,
            r#"nvcli_flow_octets_total{workload="web",protocol="tcp",direction="receive"} 114"#,
            r#"nvcli_flow_records_total{workload="web",protocol="tcp",vantage="egress"} 2"#,
            r#"nvcli_flow_records_total{workload="web",protocol="tcp",vantage="ingress"} 1"#,
        ] {
            assert!(
                text.lines().any(|there| there == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
