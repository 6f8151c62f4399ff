//! `nvcli demo`: the whole way of a frame, shown in a network of its own.

mod traffic;

use std::io::{self, IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvcapture::{Next, Ring, RingConfig};
use nvflow::{FlowEndReason, FlowRecord, Meter, MeterConfig, Observation};
use nvnet::lab::{Lab, LabContainer};
use nvnet::{Attachment, Netns, Plan, Workload};

use crate::args::Demo;
use crate::exit::{CliError, Exit, Result};
use crate::render::table::{Align, Column, Fit, table, terminal_width};

/// Pages fetched over IPv4, and as many over IPv6.
const PAGES: u16 = 6;
/// Names asked for.
const NAMES: [&str; 3] = ["web.demo", "mail.demo", "db.demo"];
/// Between one thing the client does and the next, so that a person can watch.
const PACE: Duration = Duration::from_millis(120);
/// How often the live table is drawn.
const REDRAW: Duration = Duration::from_millis(150);
/// Longer than the kernel keeps a block that is not full.
const QUIET: Duration = Duration::from_millis(120);

/// Runs the demo.
pub(crate) fn run(args: &Demo) -> Result<Exit> {
    let mut out = io::stdout().lock();
    demo(args, &mut out)
}

fn demo(args: &Demo, out: &mut impl io::Write) -> Result<Exit> {
    macro_rules! say {
        ($($text:tt)*) => { writeln!(out, $($text)*).map_err(|e| CliError::output(&e))? };
    }
    say!("nvcli demo: who talks to whom in a small network of its own. This machine's network is not touched.\n");

    let lab = Lab::new(&["web", "client"]).map_err(|e| failed("cannot make the demo's network namespaces", &e))?;
    let [web, client] = &lab.containers[..] else { unreachable!("two were asked for") };
    say!("1. Two containers on a bridge of their own host: {} is {}, {} is {}.", web.name, web.ipv4, client.name, client.ipv4);

    say!("\n2. Attach {} ({}):", web.name, args.mode);
    let workload = Workload { name: web.name.clone(), ..Workload::default() };
    let plan = Plan::new(&lab.host, &web.netns, workload).mode(args.mode);
    let plan = plan.check().map_err(|e| failed("cannot attach the demo's container", &e))?;
    for step in plan.steps() {
        say!("   - {step}");
    }
    let start = Instant::now();
    let attached = plan.attach().map_err(|e| failed("cannot attach the demo's container", &e))?;
    let [attachment] = &attached[..] else { unreachable!("it has one interface") };
    say!("   done in {} ms; its frames are on nv-br, marked {}.", start.elapsed().as_millis(), attachment.id.mac());

    say!("\n3. {} is a web server and a name server; {} fetches {} pages and asks for {} names:\n", web.name, client.name, 2 * PAGES, NAMES.len());
    let mut live = Live::open(&lab, attachment)?;
    let before = live.settle()?;
    let traffic = watch(&mut live, web, client, out)?;
    let after = live.settle()?;
    live.finish();
    let width = terminal_width();
    write!(out, "{}", live.table(width)).map_err(|e| CliError::output(&e))?;

    say!("\n4. The check:");
    let stats = live.meter.stats();
    let wire = after.wire - before.wire;
    let read = after.read - before.read;
    let balanced = stats.is_balanced() && stats.unparsed == 0 && stats.refused == 0 && after.lost == 0;
    let connections = live.complete();
    say!("   {wire:>6} frames counted by the kernel on {}'s own interface", web.name);
    say!("   {read:>6} frames read from nv-br and metered ({} of them no IP: ARP)", stats.not_ip);
    say!("   {connections:>6} HTTP connections seen from SYN to FIN, of {}", 2 * PAGES);
    say!("   {:>6} frames lost", after.lost);
    let right = wire == read && balanced && connections == usize::from(2 * PAGES) && traffic.is_ok();
    say!("   {}", if right { "Every frame on the wire was metered." } else { "THAT IS NOT RIGHT." });

    say!("\n5. Detach:");
    nvnet::detach(&lab.host, attachment.id).map_err(|e| failed("cannot detach the demo's container", &e))?;
    let left = leftovers(&lab)?;
    match left.is_empty() {
        true => say!("   {} has its own interface back, nv-br is gone, nothing is left.", web.name),
        false => say!("   left behind: {}", left.join(", ")),
    }
    say!("\nNow with a container of yours:  nvcli attach CONTAINER  and  nvcli flows --watch");
    traffic.map_err(|e| CliError::new("the demo's client got no answer").because(e))?;
    match (left.is_empty(), right) {
        (false, _) => Err(CliError::new("the demo left something behind").left(left)),
        (true, false) => Err(CliError::new("the demo's counts differ").because("see the check above")),
        (true, true) => Ok(Exit::Done),
    }
}

fn failed(what: &str, error: &nvnet::Error) -> CliError {
    let told = CliError::new(what).caused_by(error).left(error.left().to_vec());
    match error.remedy() {
        Some(remedy) => told.remedy(remedy),
        None => told,
    }
}

/// Names of links that should not be there any more.
fn leftovers(lab: &Lab) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for netns in [&lab.host, &lab.containers[0].netns] {
        let links = nvnet::links(netns).map_err(|e| failed("cannot look at the demo's network", &e))?;
        left.extend(links.into_iter().map(|link| link.name).filter(|name| name.starts_with("nv-")));
    }
    Ok(left)
}

/// Serves and asks, while the table is drawn on a terminal again and again; the inner result is the client's.
fn watch(
    live: &mut Live<'_>,
    web: &LabContainer,
    client: &LabContainer,
    out: &mut impl io::Write,
) -> Result<io::Result<()>> {
    let told = |what: &'static str| move |e: io::Error| CliError::new(what).because(e);
    let any: IpAddr = std::net::Ipv6Addr::UNSPECIFIED.into();
    // Bound to "any" of IPv6, they answer over IPv4 too.
    let (pages, names) = inside(&web.netns, || -> io::Result<_> {
        Ok((TcpListener::bind(SocketAddr::new(any, 80))?, UdpSocket::bind(SocketAddr::new(any, 53))?))
    })?
    .map_err(told("cannot start the demo's servers"))?;
    let stop = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    let terminal = io::stdout().is_terminal();
    std::thread::scope(|scope| {
        scope.spawn(|| traffic::serve_pages(&pages, &stop));
        scope.spawn(|| traffic::serve_names(&names, web.ipv4, &stop));
        let asked = scope.spawn(|| {
            let asked = inside(&client.netns, || ask(web));
            done.store(true, Ordering::Relaxed);
            asked
        });
        let mut drawn = 0;
        let mut read = Ok(());
        while !done.load(Ordering::Relaxed) && read.is_ok() {
            read = live.read(REDRAW).and_then(|()| if terminal { live.draw(out, &mut drawn) } else { Ok(()) });
        }
        let asked = asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        stop.store(true, Ordering::Relaxed);
        read?;
        erase(out, drawn)?;
        asked
    })
}

/// What the client does.
fn ask(web: &LabContainer) -> io::Result<()> {
    for (name, id) in NAMES.iter().zip(1..) {
        traffic::look_up(SocketAddr::new(web.ipv4.into(), 53), id, name)?;
        std::thread::sleep(PACE);
    }
    for _ in 0..PAGES {
        for address in [IpAddr::from(web.ipv4), IpAddr::from(web.ipv6)] {
            traffic::fetch_page(SocketAddr::new(address, 80))?;
            std::thread::sleep(PACE);
        }
    }
    Ok(())
}

fn inside<T: Send>(netns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T> {
    netns.run(f).map_err(|e| failed("cannot enter the demo's network namespace", &e))
}

/// Moves the cursor back over what was drawn and clears it.
fn erase(out: &mut impl io::Write, lines: usize) -> Result<()> {
    if lines > 0 {
        write!(out, "\x1b[{lines}A\x1b[J").map_err(|e| CliError::output(&e))?;
    }
    Ok(())
}

/// What was counted at a moment when nothing was under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    /// Frames on the container's own interface, both ways, counted by the kernel at its other end.
    wire: u64,
    /// Frames read from the ring.
    read: u64,
    /// Frames that the ring had no room for.
    lost: u64,
}

/// The ring on nv-br and what is made of it.
struct Live<'l> {
    lab: &'l Lab,
    ring: Ring,
    meter: Meter,
    ended: Vec<FlowRecord>,
    host_end: String,
}

impl<'l> Live<'l> {
    fn open(lab: &'l Lab, attachment: &Attachment) -> Result<Self> {
        let config = RingConfig { block_nr: 8, ..RingConfig::default() };
        let ring = inside(&lab.host, || Ring::open(&config, nvnet::BRIDGE))?
            .map_err(|e| CliError::new("cannot read nv-br").caused_by(&e))?;
        let meter = Meter::new(MeterConfig { observation: Observation::Marker, ..MeterConfig::default() })
            .map_err(|e| CliError::new("cannot make the connection table").caused_by(&e))?;
        let web = &lab.containers[0];
        debug_assert_eq!(attachment.mac, web.mac);
        Ok(Self { lab, ring, meter, ended: Vec::new(), host_end: web.host_end.clone() })
    }

    /// Meters what comes within `wait`.
    fn read(&mut self, wait: Duration) -> Result<()> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.ring.next_block(Some(left)) {
                Ok(Next::Block(block)) => {
                    let Ok(_) = self.meter.observe(block.frames(), &mut self.ended);
                }
                Ok(Next::TimedOut | Next::End) => return Ok(()),
                Err(error) => return Err(CliError::new("cannot read nv-br").caused_by(&error)),
            }
        }
    }

    /// Reads until the kernel's counter stands still, so that both counts are of the same moment.
    fn settle(&mut self) -> Result<Counted> {
        let mut wire = self.wire()?;
        loop {
            self.read(QUIET)?;
            let now = self.wire()?;
            if now == wire {
                let stats = self.ring.stats().map_err(|e| CliError::new("cannot ask the ring").caused_by(&e))?;
                return Ok(Counted { wire, read: self.meter.stats().frames, lost: stats.dropped });
            }
            wire = now;
        }
    }

    fn wire(&self) -> Result<u64> {
        let links = nvnet::links(&self.lab.host).map_err(|e| failed("cannot read the counters", &e))?;
        let link = links.iter().find(|link| link.name == self.host_end);
        Ok(link.map_or(0, |link| link.stats.rx_packets + link.stats.tx_packets))
    }

    fn finish(&mut self) {
        let Ok(_) = self.meter.finish(&mut self.ended);
    }

    /// HTTP connections that were seen from their first to their last segment.
    fn complete(&self) -> usize {
        let http = |record: &&FlowRecord| record.destination.port == 80 && record.protocol_identifier == 6;
        let whole = |record: &&FlowRecord| record.flow_end_reason == Some(FlowEndReason::EndOfFlowDetected);
        self.ended.iter().filter(http).filter(whole).count()
    }

    fn draw(&self, out: &mut impl io::Write, drawn: &mut usize) -> Result<()> {
        erase(out, *drawn)?;
        let text = self.table(terminal_width());
        *drawn = text.lines().count();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::output(&e))
    }

    /// The connections, oldest first.
    fn table(&self, width: Option<usize>) -> String {
        let mut records = self.ended.clone();
        let ControlFlow::Continue(()) = self.meter.open(|record| {
            records.push(record.clone());
            ControlFlow::Continue(())
        }) else {
            unreachable!("it is never told to stop")
        };
        records.retain(|record| record.has_ports);
        records.sort_by_key(|record| record.flow_start);
        let rows: Vec<Vec<String>> = records.iter().map(row).collect();
        let text = table(&COLUMNS, &rows, width.map(|width| width.saturating_sub(3)), false);
        text.lines().map(|line| format!("   {line}\n")).collect()
    }
}

const COLUMNS: [Column; 7] = [
    Column { title: "CLIENT", align: Align::Left, fit: Fit::Shorten(12), usual: 20 },
    Column { title: "SERVER", align: Align::Left, fit: Fit::Shorten(12), usual: 15 },
    Column { title: "PROTO", align: Align::Left, fit: Fit::Whole, usual: 0 },
    Column { title: "FRAMES", align: Align::Right, fit: Fit::Whole, usual: 0 },
    Column { title: "SENT", align: Align::Right, fit: Fit::Whole, usual: 5 },
    Column { title: "RECEIVED", align: Align::Right, fit: Fit::Whole, usual: 5 },
    Column { title: "STATE", align: Align::Left, fit: Fit::Drop(1), usual: 11 },
];

fn row(record: &FlowRecord) -> Vec<String> {
    let end = |end: nvflow::Endpoint| SocketAddr::new(end.address, end.port).to_string();
    vec![
        end(record.source),
        end(record.destination),
        if record.protocol_identifier == 6 { "tcp".into() } else { "udp".into() },
        (record.forward.packets + record.reverse.packets).to_string(),
        record.forward.payload_octets.to_string(),
        record.reverse.payload_octets.to_string(),
        record.tcp.map_or_else(|| "-".into(), |tcp| tcp.state.as_str().to_owned()),
    ]
}

