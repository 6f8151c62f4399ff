//! `nvcli demo`: the whole way of a frame, in namespaces that vanish with the process.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use nvcapture::{Next, Ring, RingConfig};
use nvflow::{
    FlowEndReason, FlowRecord, Meter, MeterConfig, MeterStats, Observation, Timeouts, sink_fn,
};
use nvnet::lab::Lab;
use nvnet::{BRIDGE, Link, Netns, Plan, Workload};

use crate::cmd::flows::{frame_clock, no_ring};
use crate::exit::{CliError, Result};
use crate::names::Names;
use crate::open::net;
use crate::render::flows::{Lines, Table};
use crate::render::table::terminal_width;
use crate::render::text::grouped;

const WEB: &str = "web";
const CLIENT: &str = "client";
const HTTP: u16 = 80;
const DNS: u16 = 53;
/// Octets of the documents fetched, one connection each, by IPv4 and IPv6 in turn.
const DOCUMENTS: [usize; 10] = [
    120, 4_000, 90_000, 600, 12_000, 1_500_000, 64, 30_000, 2_000, 250_000,
];
/// Names asked for, one query each.
const QUESTIONS: [&str; 4] = ["web.demo", "db.demo", "cache.demo", "mail.demo"];
/// Between two connections, so that one can watch.
const PACE: Duration = Duration::from_millis(100);
/// So long nothing may block.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than the kernel waits between two reports of the same change.
const SILENCE: Duration = Duration::from_millis(1_100);
const TICK: Duration = Duration::from_millis(20);

/// What the client knows of its own traffic, to be compared with the records.
#[derive(Debug, Default)]
struct Sent {
    /// By the client's end: octets written and read.
    http: BTreeMap<SocketAddr, [u64; 2]>,
    dns: usize,
}

/// Shows everything.
pub(crate) fn run() -> Result<()> {
    let mut out = io::stdout();
    let mut say = |line: std::fmt::Arguments<'_>| {
        writeln!(out, "{line}").map_err(|source| CliError::output(&source))
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::new("the demo needs root")
            .because("it makes network namespaces and gives the kernel a small eBPF program, which users may not")
            .remedy("sudo nvcli demo; without root: nvcli flows --read FILE"));
    }
    let failed = |what: &'static str| move |error: nvnet::Error| net(what, &error);

    say(format_args!(
        "1. A network of its own: containers {WEB} and {CLIENT} on a bridge. Nothing of this host is touched."
    ))?;
    let lab = Lab::new(&[WEB, CLIENT]).map_err(failed("cannot make the demo's network"))?;
    let [web, client] = lab.containers.as_slice() else {
        return Err(CliError::new(
            "the demo's network has not the containers it should have",
        ));
    };
    let before = picture(&lab).map_err(failed("cannot read the demo's network"))?;

    say(format_args!(
        "2. Attach {WEB}, as `nvcli attach {WEB}` does: frames it sends and gets are mirrored to {BRIDGE}."
    ))?;
    let workload = Workload {
        name: WEB.to_owned(),
        ..Workload::default()
    };
    let attached = Plan::new(&lab.host, &web.netns, workload)
        .check()
        .and_then(|plan| plan.attach())
        .map_err(failed("cannot attach the demo's container"))?;
    let [attachment] = attached.as_slice() else {
        return Err(CliError::new(
            "the demo's container should have one interface",
        ));
    };
    say(format_args!(
        "   {} of {WEB} is id {}: its frames carry {} on {BRIDGE}",
        attachment.interface,
        attachment.id,
        attachment.id.mac()
    ))?;

    let addresses: [IpAddr; 2] = [web.ipv4.into(), web.ipv6.into()];
    let services = Services::open(&web.netns, addresses)?;
    say(format_args!(
        "3. Traffic: {} HTTP requests and {} DNS queries from {CLIENT} to {WEB}; a line as each connection ends:",
        DOCUMENTS.len(),
        QUESTIONS.len()
    ))?;
    let gauge = Gauge {
        host: &lab.host,
        host_end: &web.host_end,
        port: &attachment.port,
    };
    gauge.settle()?;
    let (mut ring, base) = gauge.open_ring()?;
    let metered = thread::scope(|scope| {
        let served = scope.spawn(|| services.serve());
        let asked = scope.spawn(|| ask(&client.netns, addresses));
        let metered = meter(&lab, &mut ring, &gauge, || {
            asked.is_finished() && served.is_finished()
        });
        let asked = asked
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let served = served
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let traffic =
            |source: io::Error| CliError::new("the demo's own traffic failed").because(source);
        metered.and_then(|metered| {
            served.map_err(traffic)?;
            Ok((metered, asked.map_err(traffic)?))
        })
    });
    let (metered, sent) = metered?;
    drop(services);

    say(format_args!("4. Is it the truth?"))?;
    let mut wrong = 0;
    let mut check = |right: bool, what: String| -> Result<()> {
        wrong += u32::from(!right);
        let mut out = io::stdout();
        writeln!(out, "   {}  {what}", if right { "yes" } else { "NO " })
            .map_err(|source| CliError::output(&source))
    };
    let [lower, upper] = metered.counted.map(|now| now.since(base));
    let stats = metered.stats;
    check(
        (lower.wire..=upper.wire).contains(&stats.frames),
        format!(
            "frames on the wire = frames metered: the container's veth counted {}, nvcli read {}",
            upper.wire, stats.frames
        ),
    )?;
    check(
        (lower.port..=upper.port).contains(&stats.frames) && metered.dropped == 0,
        format!(
            "none lost on the way: {} came through {}, {} dropped",
            upper.port, attachment.port, metered.dropped
        ),
    )?;
    check(
        stats.is_balanced(),
        format!(
            "{} read = {} metered + {} not IP + {} unparsed + {} refused",
            stats.frames, stats.metered, stats.not_ip, stats.unparsed, stats.refused
        ),
    )?;
    let http: Vec<&FlowRecord> = metered
        .records
        .iter()
        .filter(|record| record.destination.port == HTTP)
        .collect();
    check(
        is_http_right(&http, &sent),
        format!(
            "{} requests = {} connections, each closed, each with the octets that {CLIENT} wrote and read ({} in all){}",
            DOCUMENTS.len(),
            sent.http.len(),
            grouped(sent.http.values().flatten().sum()),
            match http
                .iter()
                .flat_map(|record| sent_again(record))
                .sum::<u32>()
            {
                0 => String::new(),
                again => format!("; segments sent again: {again}"),
            }
        ),
    )?;
    let answered = metered
        .records
        .iter()
        .filter(|r| r.destination.port == DNS && r.reverse.packets == r.forward.packets)
        .count();
    check(
        answered == sent.dns && sent.dns == QUESTIONS.len(),
        format!("{} queries = {answered} answered by DNS", sent.dns),
    )?;

    drop(ring);
    nvnet::detach(&lab.host, attachment.id)
        .map_err(failed("cannot detach the demo's container"))?;
    let after = picture(&lab).map_err(failed("cannot read the demo's network"))?;
    check(
        before == after,
        format!("detached: {WEB} and its host are as they were, {BRIDGE} is gone"),
    )?;
    if wrong > 0 {
        return Err(
            CliError::new(format!("{wrong} of the demo's checks failed"))
                .remedy("nvcli doctor; and please report it"),
        );
    }
    let mut out = io::stdout();
    writeln!(out, "\nNow yours: sudo nvcli attach CONTAINER; sudo nvcli flows --watch; sudo nvcli detach CONTAINER")
        .map_err(|source| CliError::output(&source))
}

/// What should be the same before and after: every link's name, address, size, state and place.
fn picture(lab: &Lab) -> std::result::Result<Vec<String>, nvnet::Error> {
    let mut lines = Vec::new();
    let namespaces =
        std::iter::once(&lab.host).chain(lab.containers.iter().map(|container| &container.netns));
    for netns in namespaces {
        for link in nvnet::links(netns)? {
            let Link {
                name,
                mac,
                mtu,
                txqlen,
                alias,
                group,
                flags,
                ..
            } = link;
            lines.push(format!(
                "{} {name} {mac:?} {mtu} {txqlen} {alias:?} {group} {flags:x}",
                netns.label()
            ));
        }
    }
    lines.sort();
    Ok(lines)
}

/// Frames counted by the kernel, at two places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// By the host end of the container's veth pair, both directions.
    wire: u64,
    /// By the port of nv-br.
    port: u64,
}

impl Counters {
    fn since(self, base: Self) -> Self {
        Self {
            wire: self.wire - base.wire,
            port: self.port - base.port,
        }
    }
}

/// Where the kernel counts the frames of the container.
struct Gauge<'l> {
    host: &'l Netns,
    host_end: &'l str,
    port: &'l str,
}

impl Gauge<'_> {
    fn read(&self) -> Result<Counters> {
        let links = nvnet::links(self.host)
            .map_err(|error| net("cannot read the demo's counters", &error))?;
        let of = |name: &str| {
            links
                .iter()
                .find(|link| link.name == name)
                .map(|link| link.stats)
                .unwrap_or_default()
        };
        let (wire, port) = (of(self.host_end), of(self.port));
        Ok(Counters {
            wire: wire.rx_packets + wire.tx_packets,
            port: port.rx_packets,
        })
    }

    /// Waits until the container has been silent for so long that all news of its moved addresses are out.
    ///
    /// The kernel tells the routers of multicast groups left and joined up to twice, each within a second (RFC 3810,
    /// section 9.11), and for the interface that was renamed it does so past our rules.
    fn settle(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let (mut last, mut since) = (self.read()?, Instant::now());
        while since.elapsed() < SILENCE && Instant::now() < until {
            thread::sleep(TICK);
            let now = self.read()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Opens the ring and reads the counters at the same moment: between two equal readings.
    fn open_ring(&self) -> Result<(Ring, Counters)> {
        let config = RingConfig {
            snaplen: Some(256),
            ..RingConfig::default()
        };
        loop {
            let before = self.read()?;
            let ring = self
                .host
                .run(|| Ring::open(&config, BRIDGE))
                .map_err(|error| net("cannot enter the demo's host", &error))?
                .map_err(|error| no_ring(&error))?;
            if self.read()? == before {
                return Ok((ring, before));
            }
        }
    }
}

/// What came out of the metering.
struct Metered {
    records: Vec<FlowRecord>,
    stats: MeterStats,
    dropped: u64,
    /// The counters right before and right after the ring was stopped: a frame that came in between may be in or not.
    counted: [Counters; 2],
}

/// Meters until the traffic is done, printing records as they come.
fn meter(
    lab: &Lab,
    ring: &mut Ring,
    gauge: &Gauge<'_>,
    is_done: impl Fn() -> bool,
) -> Result<Metered> {
    // Short, so that each connection is shown soon after its end.
    let soon = Duration::from_millis(300);
    let timeouts = Timeouts {
        tcp_ended: soon,
        udp: soon,
        ..Timeouts::default()
    };
    let config = MeterConfig {
        max_connections: 1_024,
        observation: Observation::Marker,
        timeouts,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config)
        .map_err(|error| CliError::new("cannot make the table of connections").caused_by(&error))?;
    let names = Names::read(lab.host.clone())
        .map_err(|error| net("cannot read what is attached", &error))?;
    let mut table = Table::new(io::stdout(), terminal_width(), true);
    let mut records = Vec::new();
    let mut counted = [Counters::default(); 2];
    let mut stopped = false;
    loop {
        let mut sink = sink_fn(|record: &FlowRecord| {
            let mut record = record.clone();
            names.label(&mut record);
            table.record(&record)?;
            table.flush()?;
            records.push(record);
            Ok(ControlFlow::Continue(()))
        });
        let output = |source: io::Error| CliError::output(&source);
        match ring.next_block(Some(TICK)) {
            Ok(Next::Block(block)) => {
                let _all = meter.observe(block.frames(), &mut sink).map_err(output)?;
            }
            Ok(Next::TimedOut) => {}
            Ok(Next::End) => {
                let _all = meter.finish(&mut sink).map_err(output)?;
                break;
            }
            Err(error) => {
                return Err(CliError::new(format!("cannot read {BRIDGE}")).caused_by(&error));
            }
        }
        let _all = meter.expire(frame_clock(), &mut sink).map_err(output)?;
        if !stopped && is_done() {
            let now = gauge.read()?;
            // Until two readings are equal, the last frames are still on their way.
            if now == std::mem::replace(&mut counted[0], now) {
                ring.stop().map_err(|error| {
                    CliError::new(format!("cannot read {BRIDGE}")).caused_by(&error)
                })?;
                counted[1] = gauge.read()?;
                stopped = true;
            }
        }
    }
    let dropped = ring.stats().map(|stats| stats.dropped).unwrap_or_default();
    Ok(Metered {
        records,
        stats: meter.stats(),
        dropped,
        counted,
    })
}

/// Whether there is one closed connection for each request, with the octets the client knows of.
fn is_http_right(http: &[&FlowRecord], sent: &Sent) -> bool {
    let is_right = |record: &&FlowRecord| {
        let client = SocketAddr::new(record.source.address, record.source.port);
        let Some(known) = sent.http.get(&client) else {
            return false;
        };
        let counted = [record.forward.payload_octets, record.reverse.payload_octets];
        let again = sent_again(record);
        record.flow_end_reason == Some(FlowEndReason::EndOfFlowDetected)
            // What a slow machine sends again is on the wire more than once: each time a super-frame at most.
            && (0..2).all(|side| {
                let most = known[side] + u64::from(again[side]) * u64::from(u16::MAX);
                (known[side]..=most).contains(&counted[side])
            })
    };
    http.len() == DOCUMENTS.len() && sent.http.len() == http.len() && http.iter().all(is_right)
}

/// How many segments the client and the server have sent again.
fn sent_again(record: &FlowRecord) -> [u32; 2] {
    record.tcp.map_or([0; 2], |tcp| {
        [tcp.forward, tcp.reverse].map(|side| side.retransmitted_segments)
    })
}

/// What the container offers: a web server and a name server.
struct Services {
    http: [TcpListener; 2],
    dns: UdpSocket,
}

impl Services {
    /// Opens their sockets inside the container; they stay there whatever thread uses them.
    fn open(netns: &Netns, addresses: [IpAddr; 2]) -> Result<Self> {
        let [v4, v6] = addresses;
        let open = || -> io::Result<Self> {
            let listen = |address: IpAddr| -> io::Result<TcpListener> {
                let listener = TcpListener::bind((address, HTTP))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            let dns = UdpSocket::bind((v4, DNS))?;
            dns.set_read_timeout(Some(PATIENCE))?;
            Ok(Self {
                http: [listen(v4)?, listen(v6)?],
                dns,
            })
        };
        netns
            .run(open)
            .map_err(|error| net("cannot enter the demo's container", &error))?
            .map_err(|source| CliError::new("cannot start the demo's servers").because(source))
    }

    /// Serves as many requests and queries as the client has.
    fn serve(&self) -> io::Result<()> {
        for (number, size) in DOCUMENTS.into_iter().enumerate() {
            serve_document(accepted(&self.http[number % 2])?, size)?;
        }
        let mut octets = [0; 512];
        for _ in QUESTIONS {
            let (len, peer) = self.dns.recv_from(&mut octets)?;
            if let Some(answer) = octets.get(..len).and_then(dns_answer) {
                self.dns.send_to(&answer, peer)?;
            }
        }
        Ok(())
    }
}

fn accepted(listener: &TcpListener) -> io::Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                thread::sleep(Duration::from_millis(2));
            }
            answer => {
                let (stream, _) = answer?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
        }
    }
}

fn serve_document(stream: TcpStream, size: usize) -> io::Result<()> {
    let mut request = BufReader::new(&stream);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(&vec![b'x'; size])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the client closes too: to leave earlier could reset the connection.
    io::copy(&mut request, &mut io::sink()).map(drop)
}

/// Sends the requests and queries from inside the client's namespace.
fn ask(client: &Netns, addresses: [IpAddr; 2]) -> io::Result<Sent> {
    let inside = || -> io::Result<Sent> {
        let mut sent = Sent::default();
        for (number, size) in DOCUMENTS.into_iter().enumerate() {
            let (client, octets) =
                fetch(SocketAddr::new(addresses[number % 2], HTTP), number, size)?;
            sent.http.insert(client, octets);
            thread::sleep(PACE);
        }
        for (id, name) in (1..).zip(QUESTIONS) {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect((addresses[0], DNS))?;
            socket.send(&dns_query(id, name))?;
            let mut answer = [0; 512];
            socket.recv(&mut answer)?;
            sent.dns += 1;
            thread::sleep(PACE);
        }
        Ok(sent)
    };
    client.run(inside).map_err(io::Error::other)?
}

/// One request on a connection of its own: the client's end, and the octets written and read.
fn fetch(server: SocketAddr, number: usize, size: usize) -> io::Result<(SocketAddr, [u64; 2])> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let local = stream.local_addr()?;
    // Without IPv6's zone and flow label, which no record has.
    let client = SocketAddr::new(local.ip(), local.port());
    let request = format!("GET /{number} HTTP/1.1\r\nHost: {WEB}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::with_capacity(size + 128);
    stream.read_to_end(&mut answer)?;
    if answer.len() <= size {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the document was cut off",
        ));
    }
    Ok((client, [request.len() as u64, answer.len() as u64]))
}

/// A query for the address of `name`; RFC 1035, section 4.1.
fn dns_query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.extend(u8::try_from(label.len()));
        query.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The answer to a query: 192.0.2.1, whatever the name.
fn dns_answer(query: &[u8]) -> Option<Vec<u8>> {
    let (id, rest) = query.split_first_chunk::<2>()?;
    let question = rest.get(10..)?;
    let mut answer = id.to_vec();
    // A response, recursion available, no error; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question);
    // The name of the question again, type A, class IN, for 60 s, 4 octets.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use nvflow::{Endpoint, TcpRecord, TcpSide, TcpState};

    use super::*;

    #[test]
    fn what_was_sent_again_may_be_counted_more_than_once() {
        let client = SocketAddr::from(([10, 0, 0, 1], 40_000));
        let mut sent = Sent::default();
        for number in 0..DOCUMENTS.len() as u16 {
            let end = SocketAddr::new(client.ip(), client.port() + number);
            sent.http.insert(end, [0, 0]);
        }
        let records = |again: u32| -> Vec<FlowRecord> {
            let of_client = TcpSide {
                retransmitted_segments: again,
                ..TcpSide::default()
            };
            let record = |end: &SocketAddr| FlowRecord {
                source: Endpoint {
                    address: end.ip(),
                    port: end.port(),
                },
                flow_end_reason: Some(FlowEndReason::EndOfFlowDetected),
                tcp: Some(TcpRecord {
                    state: TcpState::Closed,
                    server_handshake_rtt_micros: None,
                    client_handshake_rtt_micros: None,
                    forward: of_client,
                    reverse: TcpSide::default(),
                }),
                ..FlowRecord::default()
            };
            sent.http.keys().map(record).collect()
        };
        let is_right = |records: &[FlowRecord]| {
            let records: Vec<&FlowRecord> = records.iter().collect();
            is_http_right(&records, &sent)
        };
        let mut once = records(0);
        assert!(is_right(&once));
        once[0].reverse.payload_octets += 1;
        assert!(!is_right(&once), "more than was sent");
        once[0].reverse.payload_octets -= 1;
        once.pop();
        assert!(!is_right(&once), "one is missing");
        let mut again = records(1);
        assert_eq!(sent_again(&again[0]), [1, 0]);
        again[0].forward.payload_octets += 1;
        assert!(is_right(&again));
        again[0].reverse.payload_octets += 1;
        assert!(!is_right(&again), "that side sent nothing again");
    }

    #[test]
    fn a_query_is_answered_with_its_own_id_and_question() {
        let query = dns_query(7, "web.demo");
        assert_eq!(query.len(), 12 + 10 + 4);
        let answer = dns_answer(&query).unwrap();
        assert_eq!(answer[..2], [0, 7]);
        assert_eq!(answer[12..query.len()], query[12..]);
        assert_eq!(answer[answer.len() - 4..], [192, 0, 2, 1]);
        assert_eq!(dns_answer(&query[..11]), None);
    }
}
