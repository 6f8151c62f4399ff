//! What a container's connections notice of an attach: HTTP requests, TCP streams and 1 ms UDP probes, both ways and
//! both families, while `nvcli` attaches and detaches round after round; beside it the quiet machine, and the order of
//! work that comes to mind first (link down, rename, link up).
//!
//! ```text
//! nv-hitless NVCLI [ROUNDS]
//! ```

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvnet::Netns;
use nvnet::lab::{Lab, LabContainer};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Between two UDP probes of one direction and family.
const PROBE: Duration = Duration::from_millis(1);
/// Between two HTTP requests of one family: both together make 250 a second.
const REQUEST: Duration = Duration::from_millis(8);
/// Octets of an HTTP answer, and of what the TCP streams write at once.
const BODY: usize = 10_000;
const CHUNK: usize = 4_096;
/// What is still counted to a change after its command ended.
const AFTERWARDS: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(100);
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    let nvcli = arguments.next().ok_or("usage: nv-hitless NVCLI [ROUNDS]")?;
    let rounds: usize = arguments.next().map_or(Ok(20), |n| n.parse())?;
    let lab = Lab::new(&["web", "client"])?;
    let load = Load::start(&lab)?;
    std::thread::sleep(Duration::from_millis(500));

    let target = path(&lab.containers[0].netns);
    let nvcli = |arguments: &[&str]| command(&lab.host, &nvcli, arguments);
    let inside = |script: &str| {
        let ip = ["-force", "-batch", "-"];
        batch(&lab.containers[0].netns, "ip", &ip, script)
    };
    let mut good = true;
    for (what, change, undo) in kinds() {
        println!("{what}, {rounds} rounds:");
        println!(
            "  {:22} {:>8} {:>34} {:>5} {:>22} {:>16}",
            "",
            "took",
            "longest gap, ms: 4in 4out 6in 6out",
            "lost",
            "HTTP ok/failed slowest",
            "TCP resets pause"
        );
        let mut gaps = Vec::new();
        let mut total = Seen::default();
        for round in 1..=rounds {
            for (name, action) in [("there", change), ("back", undo)] {
                let start = Instant::now();
                match action {
                    Action::Nothing => std::thread::sleep(Duration::from_millis(40)),
                    Action::Attach(mode) => nvcli(&["attach", &target, "--mode", mode, "-q"])?,
                    Action::Detach => nvcli(&["detach", "--all", "-q"])?,
                    Action::Batch(script) => inside(&script(&lab.containers[0], &lab))?,
                }
                let took = start.elapsed();
                std::thread::sleep(AFTERWARDS);
                let seen = load.seen(start, Instant::now());
                println!("  {:>3} {name:18} {:6.1}ms {seen}", round, ms(took));
                gaps.push(seen.longest());
                total.add(&seen);
                std::thread::sleep(PAUSE);
            }
        }
        gaps.sort();
        let median = gaps[gaps.len() / 2];
        println!(
            "  median of the longest gaps {:.1} ms, worst {:.1} ms; {} of {} probes lost; {} of {} requests failed; {} resets\n",
            ms(median),
            ms(gaps[gaps.len() - 1]),
            total.lost,
            total.probes,
            total.failed,
            total.failed + total.requests,
            total.resets,
        );
        if matches!(change, Action::Attach(_)) {
            good &= total.failed == 0 && total.resets == 0 && median <= Duration::from_millis(10);
        }
    }
    load.stop.store(true, Ordering::Relaxed);
    Ok(good)
}

/// What is done in a round, and what takes it back.
#[derive(Clone, Copy)]
enum Action {
    Nothing,
    Attach(&'static str),
    Detach,
    /// Commands for `ip -batch`, in one process: the quickest that this order can be done.
    Batch(fn(&LabContainer, &Lab) -> String),
}

fn kinds() -> [(&'static str, Action, Action); 4] {
    [
        ("nothing is done", Action::Nothing, Action::Nothing),
        ("nvcli, inline", Action::Attach("inline"), Action::Detach),
        ("nvcli, mirror", Action::Attach("mirror"), Action::Detach),
        (
            "link down, rename, link up, what was lost put back",
            Action::Batch(|web, lab| naive(web, lab, "eth0", "ex-eth0")),
            Action::Batch(|web, lab| naive(web, lab, "ex-eth0", "eth0")),
        ),
    ]
}

/// The kernel drops routes and IPv6 addresses of a link that goes down.
fn naive(web: &LabContainer, lab: &Lab, from: &str, to: &str) -> String {
    format!(
        "link set {from} down\nlink set {from} name {to}\nlink set {to} up\nroute add default via {} dev {to}\naddr add {}/64 dev {to} nodad\n",
        lab.gateway(),
        web.ipv6
    )
}

fn path(netns: &Netns) -> String {
    format!(
        "netns:/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    )
}

fn command(netns: &Netns, program: &str, arguments: &[&str]) -> Result<()> {
    batch(netns, program, arguments, "")
}

/// Runs a program inside a namespace, with this on its standard input.
fn batch(netns: &Netns, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let output = netns.run(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })??;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {told}").into())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What the load saw of a stretch of time.
#[derive(Default)]
struct Seen {
    /// The longest time between two arrivals: IPv4 into the container and out of it, then IPv6.
    gaps: [Duration; 4],
    probes: u64,
    lost: u64,
    requests: u64,
    failed: u64,
    slowest: Duration,
    resets: u64,
    pause: Duration,
}

impl Seen {
    fn longest(&self) -> Duration {
        self.gaps.into_iter().max().unwrap_or_default()
    }

    fn add(&mut self, other: &Self) {
        self.probes += other.probes;
        self.lost += other.lost;
        self.requests += other.requests;
        self.failed += other.failed;
        self.resets += other.resets;
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gaps: Vec<String> = self
            .gaps
            .iter()
            .map(|gap| format!("{:.1}", ms(*gap)))
            .collect();
        write!(
            f,
            "{:>34} {:>5} {:>12}/{} {:5.1}ms {:>7} {:5.1}ms",
            gaps.join(" "),
            self.lost,
            self.requests,
            self.failed,
            ms(self.slowest),
            self.resets,
            ms(self.pause),
        )
    }
}

/// One thing that happened: when, and for an arrival which probe it was.
#[derive(Clone, Copy)]
struct Event {
    at: Instant,
    number: u64,
}

/// What happened, oldest first.
#[derive(Default)]
struct Journal(Mutex<Vec<Event>>);

impl Journal {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, at: Instant, number: u64) {
        self.events().push(Event { at, number });
    }

    /// The longest time between two events, of which the second came within this time; how many came, and how many
    /// numbers are missing among them.
    fn between(&self, from: Instant, to: Instant) -> (Duration, u64, u64) {
        let events = self.events();
        let (mut gap, mut came, mut missing) = (Duration::ZERO, 0, 0);
        for pair in events.windows(2) {
            if pair[1].at >= from && pair[1].at <= to {
                gap = gap.max(pair[1].at - pair[0].at);
                came += 1;
                missing += pair[1].number.saturating_sub(pair[0].number + 1);
            }
        }
        // Nothing came any more.
        let silent = events
            .last()
            .map_or(to - from, |last| to.saturating_duration_since(last.at));
        (gap.max(silent), came, missing)
    }
}

/// All that runs beside the changes.
struct Load {
    /// By way and family, see [`Seen::gaps`].
    probes: [Arc<Journal>; 4],
    /// Requests that were answered: when, and how many microseconds it took.
    answered: Arc<Journal>,
    failed: Arc<Journal>,
    /// What the TCP streams received, both ways.
    streams: Vec<Arc<Journal>>,
    resets: Arc<AtomicU64>,
    resets_told: AtomicU64,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(lab: &Lab) -> Result<Self> {
        let (web, client) = (&lab.containers[0], &lab.containers[1]);
        let stop = Arc::new(AtomicBool::new(false));
        let probes: [Arc<Journal>; 4] = Default::default();
        let (answered, failed) = (Arc::default(), Arc::default());
        let (mut streams, resets) = (Vec::new(), Arc::new(AtomicU64::new(0)));
        let families: [(IpAddr, IpAddr); 2] = [
            (web.ipv4.into(), client.ipv4.into()),
            (web.ipv6.into(), client.ipv6.into()),
        ];
        for (family, (web_ip, client_ip)) in families.into_iter().enumerate() {
            let inside = web.netns.run(|| UdpSocket::bind((web_ip, 0)))??;
            let outside = client.netns.run(|| UdpSocket::bind((client_ip, 0)))??;
            for (from, to, way) in [(&outside, &inside, 0), (&inside, &outside, 1)] {
                let (from, address, to) = (from.try_clone()?, to.local_addr()?, to.try_clone()?);
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || send_probes(&from, address, &stop));
                let journal = Arc::clone(&probes[family * 2 + way]);
                std::thread::spawn(move || receive_probes(&to, &journal));
            }

            let listener = web.netns.run(|| TcpListener::bind((web_ip, 0)))??;
            let server = listener.local_addr()?;
            std::thread::spawn(move || serve(&listener));
            let (netns, stop_too) = (client.netns.clone(), Arc::clone(&stop));
            let (ok, bad) = (Arc::clone(&answered), Arc::clone(&failed));
            std::thread::spawn(move || request(&netns, server, &stop_too, &ok, &bad));

            let listener = web.netns.run(|| TcpListener::bind((web_ip, 0)))??;
            let to = listener.local_addr()?;
            let near = client.netns.run(|| TcpStream::connect(to))??;
            let (far, _) = listener.accept()?;
            for stream in [near, far] {
                stream.set_nodelay(true)?;
                let journal = Arc::new(Journal::default());
                streams.push(Arc::clone(&journal));
                let (writer, stop, resets) =
                    (stream.try_clone()?, Arc::clone(&stop), Arc::clone(&resets));
                std::thread::spawn(move || write_stream(writer, &stop));
                std::thread::spawn(move || read_stream(stream, &journal, &resets));
            }
        }
        Ok(Self {
            probes,
            answered,
            failed,
            streams,
            resets,
            resets_told: AtomicU64::new(0),
            stop,
        })
    }

    fn seen(&self, from: Instant, to: Instant) -> Seen {
        let mut seen = Seen::default();
        for (gap, journal) in seen.gaps.iter_mut().zip(&self.probes) {
            let (longest, came, missing) = journal.between(from, to);
            *gap = longest;
            seen.probes += came + missing;
            seen.lost += missing;
        }
        let within = |event: &&Event| event.at >= from && event.at <= to;
        let answered = self.answered.events();
        let answered: Vec<&Event> = answered.iter().filter(within).collect();
        seen.requests = answered.len() as u64;
        let slowest = answered.iter().map(|event| event.number).max();
        seen.slowest = Duration::from_micros(slowest.unwrap_or_default());
        seen.failed = self.failed.events().iter().filter(within).count() as u64;
        let pauses = self.streams.iter().map(|stream| stream.between(from, to).0);
        seen.pause = pauses.max().unwrap_or_default();
        let resets = self.resets.load(Ordering::Relaxed);
        seen.resets = resets - self.resets_told.swap(resets, Ordering::Relaxed);
        seen
    }
}

/// Calls `each` again and again at this distance; what was missed is not made up for.
fn paced(every: Duration, stop: &AtomicBool, mut each: impl FnMut()) {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        each();
        next = (next + every).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn send_probes(socket: &UdpSocket, to: SocketAddr, stop: &AtomicBool) {
    let mut number = 0_u64;
    paced(PROBE, stop, || {
        // A refusal (no route at the moment) is a probe that is lost.
        let _ = socket.send_to(&number.to_be_bytes(), to);
        number += 1;
    });
}

fn receive_probes(socket: &UdpSocket, journal: &Journal) {
    let mut octets = [0; 8];
    loop {
        // ICMP errors of what was sent come back here too.
        if let Ok(8) = socket.recv(&mut octets) {
            journal.push(Instant::now(), u64::from_be_bytes(octets));
        }
    }
}

fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || -> io::Result<()> {
            let mut stream = stream;
            let mut head = [0; 512];
            let _ = stream.read(&mut head)?;
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes())?;
            stream.write_all(&[b'x'; BODY])
        });
    }
}

/// One connection for each request, as a client without keep-alive makes them.
fn request(
    netns: &Netns,
    server: SocketAddr,
    stop: &AtomicBool,
    answered: &Journal,
    failed: &Journal,
) {
    let done = netns.run(|| {
        paced(REQUEST, stop, || {
            let start = Instant::now();
            let once = || -> io::Result<usize> {
                let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
                stream.read_to_end(&mut Vec::new())
            };
            match once() {
                Ok(octets) if octets > BODY => {
                    let took = start.elapsed().as_micros();
                    answered.push(Instant::now(), took as u64);
                }
                Ok(_) | Err(_) => failed.push(Instant::now(), 0),
            }
        });
    });
    if let Err(error) = done {
        eprintln!("error: {error}");
    }
}

fn write_stream(mut stream: TcpStream, stop: &AtomicBool) {
    paced(PROBE, stop, || {
        let _ = stream.write_all(&[b's'; CHUNK]);
    });
}

fn read_stream(mut stream: TcpStream, journal: &Journal, resets: &AtomicU64) {
    let mut octets = vec![0; 1 << 16];
    for number in 0.. {
        match stream.read(&mut octets) {
            Ok(0) | Err(_) => {
                resets.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(_) => journal.push(Instant::now(), number),
        }
    }
}
