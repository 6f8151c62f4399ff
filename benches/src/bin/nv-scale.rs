//! A thousand attached containers: how long it takes, whether every frame of each is counted, and what a frame costs.
//!
//! ```text
//! nv-scale NVCLI [CONTAINERS] [all|times|costs]
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket,
};
use nix::time::{ClockId, clock_gettime};
use nvcapture::{Frame, Next, Ring, RingConfig};
use nvnet::{AttachmentId, BRIDGE, MacAddr, Netns};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Ports that a bridge of the kernel has (`BR_MAX_PORTS`, and number 0 is none).
const PORTS: usize = 1_023;
/// Frames sent into each container, and out of each, to be counted.
const EACH_WAY: usize = 5;
/// Frames of one round of the cost, and rounds; each round has an unattached container beside it.
const FRAMES: usize = 4_000;
const ROUNDS: usize = 25;

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
    let nvcli = arguments
        .next()
        .ok_or("usage: nv-scale NVCLI [CONTAINERS] [all|times|costs]")?;
    let count: usize = arguments.next().map_or(Ok(1_000), |n| n.parse())?;
    let part = arguments.next().unwrap_or_else(|| "all".into());
    if !["all", "times", "costs"].contains(&&part[..]) {
        return Err(format!("`{part}` is neither all nor times nor costs").into());
    }
    if !(100..=PORTS).contains(&count) {
        return Err(format!("from 100 to {PORTS} containers").into());
    }
    let start = Instant::now();
    // One more than there are ports, and one that is never attached.
    let field = Field::new(PORTS + 2)?;
    println!(
        "{} containers made in {:.1} s",
        field.containers.len(),
        start.elapsed().as_secs_f64()
    );
    let (unattached, all) = field.containers.split_last().ok_or("no containers")?;
    let nvcli = Nvcli {
        path: nvcli,
        host: field.host.clone(),
    };
    let mut good = true;

    if part != "times" {
        costs_of_few(&field, &nvcli, count)?;
    }
    let took = nvcli.attach(&all[..count])?;
    if part != "times" {
        println!(
            "  {count:>5} attached: {}",
            field.cost(unattached, &all[..1])?
        );
        println!(
            "  {count:>5} attached, the frames going round all of them: {}",
            field.cost(unattached, &all[..count])?
        );
    }
    if part == "costs" {
        nvcli.detach_all()?;
        return Ok(true);
    }
    println!(
        "\nattach {count}: {:.1} s, {:.1} ms each",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e3 / count as f64
    );
    good &= took <= Duration::from_secs(20);

    let mut lists = (0..5)
        .map(|_| nvcli.run(&["list", "--no-header"]).map(|(took, _)| took))
        .collect::<Result<Vec<_>>>()?;
    lists.sort();
    println!(
        "list {count}: {:.0} ms (median of {}; {:.0} to {:.0})",
        lists[lists.len() / 2].as_secs_f64() * 1e3,
        lists.len(),
        lists[0].as_secs_f64() * 1e3,
        lists[lists.len() - 1].as_secs_f64() * 1e3,
    );
    good &= lists[lists.len() / 2] <= Duration::from_millis(100);

    let wrong = field.count(&all[..count])?;
    println!(
        "frames: {EACH_WAY} into and {EACH_WAY} out of each of {count}; {wrong} containers with another count"
    );
    good &= wrong == 0;

    if count < PORTS {
        let took = nvcli.attach(&all[count..PORTS])?;
        println!(
            "attach {} more, to {PORTS}: {:.1} ms each",
            PORTS - count,
            took.as_secs_f64() * 1e3 / (PORTS - count) as f64
        );
    }
    let (took, output) = nvcli.try_run(&["attach", &all[PORTS].target()])?;
    println!(
        "attach one more: exit code {}, {:.0} ms\n{}",
        output.status.code().unwrap_or(-1),
        took.as_secs_f64() * 1e3,
        indented(&String::from_utf8_lossy(&output.stderr))
    );
    good &= output.status.code() == Some(1);
    let took = nvcli.attach_mirror(&all[PORTS..])?;
    println!(
        "the same in mirror mode: attached, {:.0} ms",
        took.as_secs_f64() * 1e3
    );

    let took = nvcli.detach_all()?;
    println!(
        "detach {}: {:.1} s, {:.1} ms each",
        PORTS + 1,
        took.as_secs_f64(),
        took.as_secs_f64() * 1e3 / (PORTS + 1) as f64
    );
    let left = nvnet::links(&field.host)?
        .iter()
        .filter(|link| link.name.starts_with("nv-"))
        .count();
    println!("links of ours left on the host: {left}");
    Ok(good && left == 0)
}

/// What a frame costs before many are attached, and after one and a hundred are; nothing is attached afterwards.
fn costs_of_few(field: &Field, nvcli: &Nvcli, count: usize) -> Result<()> {
    let (unattached, all) = field.containers.split_last().ok_or("no containers")?;
    println!(
        "\ncost of a frame, CPU of its way into a container; {ROUNDS} rounds of {FRAMES} frames, each beside as many to an unattached one:"
    );
    println!(
        "  {:>5} attached, the frames going round {count} containers: {}",
        0,
        field.measure(unattached, &all[..count])?
    );
    nvcli.attach(&all[..1])?;
    println!(
        "  {:>5} attached: {}",
        1,
        field.cost(unattached, &all[..1])?
    );
    nvcli.attach(&all[1..100])?;
    println!(
        "  {:>5} attached: {}",
        100,
        field.cost(unattached, &all[..1])?
    );
    nvcli.detach_all()?;
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// The program, run in the host's namespace.
struct Nvcli {
    path: String,
    host: Netns,
}

impl Nvcli {
    fn try_run(&self, arguments: &[&str]) -> Result<(Duration, Output)> {
        let start = Instant::now();
        let output = self
            .host
            .run(|| Command::new(&self.path).args(arguments).output())??;
        Ok((start.elapsed(), output))
    }

    fn run(&self, arguments: &[&str]) -> Result<(Duration, Output)> {
        let (took, output) = self.try_run(arguments)?;
        if output.status.success() {
            return Ok((took, output));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("nvcli {}: {said}", arguments[0]).into())
    }

    fn attach(&self, containers: &[Container]) -> Result<Duration> {
        self.attach_with(containers, &["attach", "-q"])
    }

    fn attach_mirror(&self, containers: &[Container]) -> Result<Duration> {
        self.attach_with(&containers[..1], &["attach", "-q", "--mode", "mirror"])
    }

    fn attach_with(&self, containers: &[Container], how: &[&str]) -> Result<Duration> {
        let targets: Vec<String> = containers.iter().map(Container::target).collect();
        let arguments: Vec<&str> = how
            .iter()
            .copied()
            .chain(targets.iter().map(String::as_str))
            .collect();
        Ok(self.run(&arguments)?.0)
    }

    fn detach_all(&self) -> Result<Duration> {
        Ok(self.run(&["detach", "--all", "-q"])?.0)
    }
}

/// A container: a namespace that a mount holds, with a veth pair to the host.
struct Container {
    netns: Netns,
    path: PathBuf,
    mac: MacAddr,
    host_end: String,
    /// The host end, to send through.
    wire: Option<LinkAddr>,
}

impl Container {
    fn target(&self) -> String {
        format!("netns:{}", self.path.display())
    }
}

/// A host and its containers; gone with the process, but for an empty folder that `drop` removes.
struct Field {
    host: Netns,
    containers: Vec<Container>,
    folder: PathBuf,
}

impl Field {
    fn new(count: usize) -> Result<Self> {
        // Mounts of our own, seen by our children and gone with us.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let folder = std::env::temp_dir().join(format!("nv-scale.{}", std::process::id()));
        fs::create_dir(&folder)?;
        mount(
            Some("nv-scale"),
            &folder,
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )?;
        let mut field = Self {
            host: Netns::nameless("the host")?,
            containers: Vec::new(),
            folder,
        };
        batch(&field.host, "link set lo up\n")?;
        let mut pairs = String::new();
        for number in 0..count {
            let container = field.container(number)?;
            let Container {
                mac,
                host_end,
                path,
                ..
            } = &container;
            pairs.push_str(&format!(
                "link add {host_end} type veth peer name eth0 address {mac} netns {}\nlink set {host_end} up\n",
                path.display()
            ));
            field.containers.push(container);
        }
        field
            .host
            .run(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))??;
        batch(&field.host, &pairs)?;
        for (number, container) in field.containers.iter().enumerate() {
            let (high, low) = (number / 250, number % 250 + 2);
            container.netns.run(|| {
                fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
                fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
            })??;
            batch(
                &container.netns,
                &format!(
                    "link set lo up\nlink set eth0 up\naddr add 10.{high}.0.{low}/24 dev eth0\nroute add default via 10.{high}.0.1\naddr add fd4e:6576::{high}:{low}/64 dev eth0 nodad\n"
                ),
            )?;
        }
        let wires: BTreeMap<String, LinkAddr> = addresses(&field.host)?;
        for container in &mut field.containers {
            container.wire = wires.get(&container.host_end).copied();
        }
        Ok(field)
    }

    fn container(&self, number: usize) -> Result<Container> {
        let netns = Netns::nameless("a container")?;
        let path = self.folder.join(format!("c{number}"));
        fs::File::create(&path)?;
        let open = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
        let none: Option<&str> = None;
        mount(Some(Path::new(&open)), &path, none, MsFlags::MS_BIND, none)?;
        let [.., high, low] = u32::try_from(number)?.to_be_bytes();
        Ok(Container {
            netns,
            path,
            mac: MacAddr([2, 0x4e, 0x76, 0, high, low]),
            host_end: format!("c{number}"),
            wire: None,
        })
    }

    /// The same with nobody reading.
    fn measure(&self, unattached: &Container, targets: &[Container]) -> Result<Cost> {
        measure(&sender(&self.host)?, unattached, targets)
    }

    /// CPU that a frame costs on its way into each of `targets`, beside one on its way into `unattached`.
    fn cost(&self, unattached: &Container, targets: &[Container]) -> Result<Cost> {
        let stop = AtomicBool::new(false);
        let config = RingConfig {
            snaplen: Some(64),
            // Sooner than is waited for below: the last block comes before the end.
            retire_blk_tov: Duration::from_millis(10),
            ..RingConfig::default()
        };
        let mut ring = self.host.run(|| Ring::open(&config, BRIDGE))??;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| -> Result<usize> {
                let mut read = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Next::Block(block) = ring.next_block(Some(Duration::from_millis(50)))? {
                        read += block.frames().count();
                    }
                }
                Ok(read)
            });
            let measured = self.measure(unattached, targets);
            stop.store(true, Ordering::Relaxed);
            let read = reader.join().map_err(|_| "the reader ended")??;
            // One round ahead warms up.
            if measured.is_ok() && read < FRAMES * ROUNDS {
                return Err(format!("only {read} frames came through {BRIDGE}").into());
            }
            measured
        })
    }

    fn send_to_all(&self, containers: &[Container]) -> Result<()> {
        let socket = sender(&self.host)?;
        for container in containers {
            let inside = sender(&container.netns)?;
            let eth0 = addresses(&container.netns)?;
            let eth0 = eth0.get("eth0").ok_or("no eth0")?;
            let mut out = frame(MacAddr([2, 0, 0, 0, 0, 9]));
            out[6..12].copy_from_slice(&container.mac.octets());
            for _ in 0..EACH_WAY {
                send(&socket, container.wire.as_ref(), &frame(container.mac))?;
                send(&inside, Some(eth0), &out)?;
            }
        }
        Ok(())
    }

    /// Sends frames into and out of each container; how many have another count than was sent.
    fn count(&self, containers: &[Container]) -> Result<usize> {
        let mut ring = self
            .host
            .run(|| Ring::open(&RingConfig::default(), BRIDGE))??;
        let sent = AtomicBool::new(false);
        let (entered, left, stats) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| -> Result<_> {
                let (mut entered, mut left) = (BTreeMap::new(), BTreeMap::new());
                let mut stopped = false;
                loop {
                    if !stopped && sent.load(Ordering::Acquire) {
                        ring.stop()?;
                        stopped = true;
                    }
                    match ring.next_block(Some(Duration::from_millis(50)))? {
                        Next::Block(block) => tally(block.frames(), &mut entered, &mut left),
                        Next::TimedOut => {}
                        Next::End => break,
                    }
                }
                Ok((entered, left, ring.stats()?))
            });
            let outcome = self.send_to_all(containers);
            sent.store(true, Ordering::Release);
            let counted = reader.join().map_err(|_| "the reader ended")??;
            outcome.map(|()| counted)
        })?;
        if stats.dropped > 0 {
            return Err(format!("the ring dropped {} frames", stats.dropped).into());
        }
        let attached = nvnet::list(&self.host)?;
        let right = attached
            .iter()
            .filter(|a| entered.get(&a.id) == Some(&EACH_WAY) && left.get(&a.id) == Some(&EACH_WAY))
            .count();
        Ok(containers.len() - right)
    }
}

/// Frames of ours by the mark they carry: as destination they entered, as source they left.
fn tally<'f>(
    frames: impl Iterator<Item = Frame<'f>>,
    entered: &mut BTreeMap<AttachmentId, usize>,
    left: &mut BTreeMap<AttachmentId, usize>,
) {
    for frame in frames {
        let Some((head, _)) = frame.octets().split_first_chunk::<14>() else {
            continue;
        };
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, 0x88, 0xb5] = *head else {
            continue;
        };
        if let Some(id) = AttachmentId::from_mac(MacAddr([d0, d1, d2, d3, d4, d5])) {
            *entered.entry(id).or_insert(0) += 1;
        }
        if let Some(id) = AttachmentId::from_mac(MacAddr([s0, s1, s2, s3, s4, s5])) {
            *left.entry(id).or_insert(0) += 1;
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.folder);
    }
}

/// CPU of one frame, as medians over the rounds. Unit: nanoseconds.
struct Cost {
    unattached: f64,
    attached: f64,
    ratio: f64,
    spread: (f64, f64),
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            unattached,
            attached,
            ratio,
            spread,
        } = self;
        write!(
            f,
            "{ratio:.2} times the unattached one's (quartiles {:.2} to {:.2}; {attached:.0} ns, {unattached:.0} ns)",
            spread.0, spread.1
        )
    }
}

fn measure(socket: &OwnedFd, unattached: &Container, targets: &[Container]) -> Result<Cost> {
    let plain = frame(unattached.mac);
    let frames: Vec<_> = targets.iter().map(|target| frame(target.mac)).collect();
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        let start = cpu()?;
        for _ in 0..FRAMES {
            send(socket, unattached.wire.as_ref(), &plain)?;
        }
        let between = cpu()?;
        for (target, frame) in targets.iter().zip(&frames).cycle().take(FRAMES) {
            send(socket, target.wire.as_ref(), frame)?;
        }
        let each = |time: Duration| time.as_nanos() as f64 / FRAMES as f64;
        rounds.push((each(between - start), each(cpu()? - between)));
    }
    rounds.remove(0);
    let sorted = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let ratios = sorted(&|(plain, attached)| attached / plain);
    Ok(Cost {
        unattached: sorted(&|round| round.0)[ROUNDS / 2],
        attached: sorted(&|round| round.1)[ROUNDS / 2],
        ratio: ratios[ROUNDS / 2],
        spread: (ratios[ROUNDS / 4], ratios[ROUNDS * 3 / 4]),
    })
}

/// CPU that this thread used, in the kernel too: a veth's frames are received on the processor, and mostly in the
/// thread, that sent them.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// A packet socket that receives nothing.
fn sender(netns: &Netns) -> Result<OwnedFd> {
    let opened = netns.run(|| {
        socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
    })?;
    Ok(opened?)
}

fn send(socket: &OwnedFd, through: Option<&LinkAddr>, frame: &[u8]) -> Result<()> {
    let through = through.ok_or("a host end has no address")?;
    debug_assert_eq!(through.family(), Some(AddressFamily::Packet));
    sendto(socket.as_raw_fd(), frame, through, MsgFlags::empty())?;
    Ok(())
}

/// A frame of an experimental type, which no stack answers.
fn frame(to: MacAddr) -> Vec<u8> {
    let mut frame = [&to.octets()[..], &[2, 0, 0, 0, 0, 8], &[0x88, 0xb5]].concat();
    frame.resize(60, 0);
    frame
}

/// The links of a namespace as packet sockets name them.
fn addresses(netns: &Netns) -> Result<BTreeMap<String, LinkAddr>> {
    let all = netns.run(|| {
        nix::ifaddrs::getifaddrs().map(|all| {
            all.filter_map(|each| {
                let link = each.address?.as_link_addr().copied()?;
                Some((each.interface_name, link))
            })
            .collect()
        })
    })?;
    Ok(all?)
}

/// Commands for one `ip -batch`.
fn batch(netns: &Netns, commands: &str) -> Result<()> {
    let output = netns.run(|| -> std::io::Result<Output> {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        child.wait_with_output()
    })??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip -batch: {said}").into())
}
