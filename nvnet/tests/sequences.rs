//! Attach and detach ended, or refused, at every message to the kernel; and any sequence of what can happen to a
//! container: afterwards it is attached or as it was, and can be reached.

mod common;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Need, chain, ensure, picture, privileged, same, same_picture, sh_in};
use libtest_mimic::{Arguments, Failed};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use nvnet::lab::Lab;
use nvnet::{AttachmentId, CheckedPlan, Error, Health, Mode, Netns, Outcome, Plan, Workload};

const ALL: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const MODES: [Mode; 2] = [Mode::Inline, Mode::Mirror];
const WITH_MACVLAN: &[Need] = &[
    Need::Netns,
    Need::Ebpf,
    Need::Iproute2,
    Need::Kind("macvlan"),
];
/// How a container is attached, and whether its interface has an end on the host; without one it is a macvlan.
const WAYS: [(Mode, bool); 3] = [
    (Mode::Inline, true),
    (Mode::Mirror, true),
    (Mode::Mirror, false),
];
/// A child process is told what to do by this variable: `attach|detach|churn MODE HOST TARGET[,TARGET...]`.
const CHILD: &str = "NV_TEST_CHILD";
/// The seed of [`any_sequence_leaves_it_attached_or_untouched`], to see a failure again.
const SEED: &str = "NV_TEST_SEED";

fn main() {
    if let Ok(order) = std::env::var(CHILD) {
        child(&order);
    }
    let mut trials = Vec::new();
    for (mode, has_end) in WAYS {
        let mut add = |name: &str, test: fn(Mode, bool) -> Result<(), Failed>| {
            let kind = if has_end {
                mode.to_string()
            } else {
                "inside".into()
            };
            let needs = if has_end { ALL } else { WITH_MACVLAN };
            let name = format!("{name}::{kind}");
            trials.push(privileged(name, needs, move || test(mode, has_end)));
        };
        add(
            "a_kill_at_any_message_is_repaired",
            a_kill_at_any_message_is_repaired,
        );
        add(
            "any_message_that_is_refused_is_undone",
            any_message_that_is_refused_is_undone,
        );
        add(
            "every_step_of_detach_that_fails_can_be_tried_again",
            every_step_of_detach_that_fails_can_be_tried_again,
        );
    }
    let mut add = |name, test: fn() -> Result<(), Failed>| trials.push(privileged(name, ALL, test));
    add(
        "a_difference_takes_the_attach_back",
        a_difference_takes_the_attach_back,
    );
    add("the_blackout_is_measured", the_blackout_is_measured);
    add(
        "processes_attach_and_detach_at_the_same_time",
        processes_attach_and_detach_at_the_same_time,
    );
    add(
        "several_are_detached_together",
        several_are_detached_together,
    );
    add(
        "several_are_attached_together",
        several_are_attached_together,
    );
    add(
        "a_kill_while_several_are_changed_is_repaired",
        a_kill_while_several_are_changed_is_repaired,
    );
    add(
        "a_container_that_falls_silent_is_put_back",
        a_container_that_falls_silent_is_put_back,
    );
    add(
        "any_sequence_leaves_it_attached_or_untouched",
        any_sequence_leaves_it_attached_or_untouched,
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A host with a client, and a container that can be started again.
struct World {
    lab: Lab,
    web: Netns,
    has_end: bool,
    /// The pictures of host and container when nothing is attached.
    before: [String; 2],
}

/// The host end of the container's pair.
const END: &str = "web-end";
/// The container's addresses; the client is the lab's first, 10.78.0.2.
const WEB: [&str; 2] = ["10.78.0.99", "fd4e:6576::99"];

impl World {
    fn new() -> Result<Self, Failed> {
        Self::with(true)
    }

    /// Without an end on the host the container's interface is a macvlan.
    fn with(has_end: bool) -> Result<Self, Failed> {
        let mut world = Self {
            lab: Lab::new(&["client"])?,
            web: Netns::nameless("web")?,
            has_end,
            before: Default::default(),
        };
        world.start()?;
        world.before = [view(&world.lab.host)?, view(&world.web)?];
        Ok(world)
    }

    /// Gives the container its network: some of all that is moved.
    fn start(&mut self) -> Result<(), Failed> {
        let netns = path(&self.web);
        let make = if self.has_end {
            format!(
                "set -e
                 ip link add {END} address 02:4e:76:00:01:99 type veth peer name eth0 address 02:4e:76:00:00:99 netns {netns}
                 echo 0 > /proc/sys/net/ipv6/conf/{END}/accept_dad
                 ip link set {END} master lab-br up"
            )
        } else {
            format!(
                "set -e
                 ip link add link lab-br name {END} address 02:4e:76:00:00:99 type macvlan mode bridge
                 ip link set {END} netns {netns} name eth0"
            )
        };
        sh_in(&self.lab.host, &make)?;
        let [v4, v6] = WEB;
        sh_in(
            &self.web,
            &format!(
                "set -e
                 ip link set lo up
                 echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
                 ip link set eth0 mtu 1400 txqueuelen 77 alias uplink up
                 ip addr add {v4}/24 dev eth0
                 ip addr add 10.78.1.99/24 dev eth0
                 ip addr add {v6}/64 dev eth0 nodad
                 ip route add default via 10.78.0.1
                 ip route add 203.0.113.0/24 nexthop via 10.78.0.1 nexthop via 10.78.1.1
                 ip -6 route add default via fd4e:6576::1
                 ip neigh add 10.78.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
                 ip link add other address 02:4e:76:00:02:01 type veth peer name far address 02:4e:76:00:02:02
                 echo 0 > /proc/sys/net/ipv6/conf/other/accept_dad
                 echo 0 > /proc/sys/net/ipv6/conf/far/accept_dad
                 ip link set far up
                 ip link set other up
                 ip addr add 192.0.2.1/24 dev other
                 ip route add 198.51.100.0/24 via 192.0.2.9
                 echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter
                 echo 0 > /proc/sys/net/ipv4/conf/eth0/accept_redirects
                 timeout 20 sh -c 'while ip -6 addr | grep -q tentative; do :; done'"
            ),
        )?;
        // What the kernel does by itself is done: it can be reached, and its carrier is there.
        self.reach()?;
        if !self.has_end {
            return Ok(());
        }
        sh_in(
            &self.lab.host,
            &format!(
                "timeout 20 sh -c 'until ip link show {END} | grep -q \"state UP\"; do :; done'"
            ),
        )?;
        Ok(())
    }

    /// The container dies, and another one comes in its place.
    fn restart(&mut self) -> Result<(), Failed> {
        self.web = Netns::nameless("web")?;
        // The kernel clears a namespace away after its last handle is closed.
        sh_in(
            &self.lab.host,
            &format!(
                "timeout 20 sh -c 'while ip link show {END} 2>/dev/null; do :; done' >/dev/null"
            ),
        )?;
        self.start()
    }

    /// A connection to the container carries something both ways, in both families.
    fn reach(&self) -> Result<(), Failed> {
        let client = &self.lab.containers[0].netns;
        for address in WEB {
            let address = SocketAddr::new(address.parse::<IpAddr>()?, 0);
            let listener = self.web.run(|| TcpListener::bind(address))??;
            let to = listener.local_addr()?;
            let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
            let mut near = client
                .run(connect)?
                .map_err(|e| format!("no way to {to}: {e}"))?;
            let (mut far, _) = listener.accept()?;
            for stream in [&near, &far] {
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            }
            let mut octets = vec![0; 5_000];
            near.write_all(&octets)?;
            far.read_exact(&mut octets)?;
            far.write_all(&octets)?;
            near.read_exact(&mut octets)?;
        }
        Ok(())
    }

    fn plan(&self, mode: Mode) -> Plan {
        let workload = Workload {
            name: "web".into(),
            ..Workload::default()
        };
        Plan::new(&self.lab.host, &self.web, workload)
            .mode(mode)
            .interface("eth0")
    }

    fn attach(&self, mode: Mode) -> Result<nvnet::Attachment, Failed> {
        let attached = self.plan(mode).check().and_then(CheckedPlan::attach);
        attached
            .map_err(chain)?
            .pop()
            .ok_or_else(|| "nothing attached".into())
    }

    fn untouched(&self) -> Result<(), Failed> {
        same("attachments", nvnet::list(&self.lab.host)?.len(), 0)?;
        let netns = [&self.lab.host, &self.web];
        netns
            .into_iter()
            .zip(&self.before)
            .try_for_each(|(netns, before)| same_picture(netns.label(), before, &view(netns)?))
    }

    /// The container is attached and whole, or as it was; and it can be reached.
    fn attached_or_untouched(&self) -> Result<(), Failed> {
        self.reach()?;
        match &nvnet::list(&self.lab.host)?[..] {
            [] => self.untouched(),
            [one] => {
                same("health", &one.health, &Health::Whole)?;
                same("wrong inside", nvnet::inspect(&self.lab.host, one)?, None)?;
                same("namespace", one.netns().as_ref(), Some(&self.web))
            }
            more => Err(format!("attached {} times", more.len()).into()),
        }
    }

    /// Repairs, and detaches what is whole.
    fn clear(&self) -> Result<(), Failed> {
        nvnet::repair(&self.lab.host).map_err(chain)?;
        for whole in nvnet::list(&self.lab.host)? {
            nvnet::detach(&self.lab.host, whole.id).map_err(chain)?;
        }
        self.untouched()
    }
}

/// The picture without the numbers that the kernel gives to links and namespaces.
fn view(netns: &Netns) -> Result<String, Failed> {
    let picture = picture(netns)?;
    let lines = picture.lines().map(|line| {
        let line = match line.split_once(": ") {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest,
            _ => line,
        };
        let words = line.split(' ').collect::<Vec<_>>();
        let mut kept = Vec::new();
        for (at, word) in words.iter().enumerate() {
            if at == 0 || words[at - 1] != "link-netnsid" {
                kept.push(*word);
            }
        }
        // `eth0@if4`
        let mut line = kept.join(" ");
        if let Some(at) = line.find("@if") {
            let digits = line[at + 3..]
                .bytes()
                .take_while(u8::is_ascii_digit)
                .count();
            line.replace_range(at..at + 3 + digits, "");
        }
        line
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn path(netns: &Netns) -> String {
    format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    )
}

/// Attaches or detaches, watched by the test; the exit code tells what came of it.
fn child(order: &str) -> ! {
    let words: Vec<&str> = order.split(' ').collect();
    let [what, mode, host, target] = words[..] else {
        panic!("{order}")
    };
    let open = |path: &str| Netns::at_path(path.as_ref()).expect("the parent holds it open");
    let targets: Vec<Netns> = target.split(',').map(open).collect();
    let (host, target) = (open(host), targets[0].clone());
    if what == "churn" {
        let mode = mode.parse().expect("a mode");
        if let Err(failed) = churn(&host, &target, mode) {
            eprintln!("{failed:?}");
            std::process::exit(1);
        }
        std::process::exit(0);
    }
    ptrace::traceme().expect("the parent wants to trace");
    raise(Signal::SIGSTOP).expect("we may stop ourselves");
    let done = if targets.len() > 1 {
        let mode = mode.parse().expect("a mode");
        together(&host, &targets, mode, what == "attach").map_err(|failed| {
            eprintln!("{failed:?}");
            std::process::exit(1)
        })
    } else if what == "attach" {
        let workload = Workload {
            name: "web".into(),
            ..Workload::default()
        };
        let plan = Plan::new(&host, &target, workload).mode(mode.parse().expect("a mode"));
        plan.interface("eth0")
            .check()
            .and_then(CheckedPlan::attach)
            .map(drop)
    } else {
        nvnet::list(&host).and_then(|all| nvnet::detach(&host, all[0].id))
    };
    let code = match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}: {:?}", std::error::Error::source(&error));
            if error.left().is_empty() { 1 } else { 3 }
        }
    };
    std::process::exit(code)
}

/// What happens to a child at one of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is killed before the kernel gets the message.
    Kill,
    /// The kernel does not get it, and the child is told so (`EIO`).
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    /// All done; what was refused did not matter.
    Done,
    /// Failed and undone.
    Failed,
    /// All done with fewer messages.
    Untold,
}

/// Runs a child until it sends its `at`-th message that changes something: netlink requests that are no questions, and
/// writes into sysctls.
fn fated(world: &World, what: &str, mode: Mode, fate: Fate, at: usize) -> Result<End, Failed> {
    let (host, web) = (path(&world.lab.host), path(&world.web));
    fated_child(&format!("{what} {mode} {host} {web}"), fate, at)
}

fn fated_child(order: &str, fate: Fate, at: usize) -> Result<End, Failed> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(CHILD, order)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(child.id().try_into()?);
    let end = trace(pid, fate, at);
    if end.is_err() {
        let _ = child.kill();
    }
    let mut told = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut told)?;
    }
    end?.map_err(|code| {
        format!("{order} {fate:?} at message {at}: exit code {code}: {told}").into()
    })
}

/// Follows a stopped child to its end; the error inside is its exit code when that is none that is expected.
fn trace(pid: Pid, fate: Fate, at: usize) -> Result<Result<End, i32>, Failed> {
    waitpid(pid, None)?;
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options)?;
    ptrace::syscall(pid, None)?;
    let (mut messages, mut refused, mut killed) = (0, None, false);
    loop {
        // All threads of the child, and nobody else's children.
        let status = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))?;
        // A thread that dies meanwhile cannot be told to go on.
        let go_on = |tid, signal| {
            let _ = ptrace::syscall(tid, signal);
        };
        match status {
            WaitStatus::Exited(who, code) if who == pid => {
                return Ok(match code {
                    0 if messages < at => Ok(End::Untold),
                    0 => Ok(End::Done),
                    1 => Ok(End::Failed),
                    code => Err(code),
                });
            }
            WaitStatus::Signaled(who, ..) if who == pid => {
                ensure(killed, "it died by itself")?;
                return Ok(Ok(End::Killed));
            }
            WaitStatus::PtraceSyscall(tid) if !killed => {
                let Ok(mut regs) = ptrace::getregs(tid) else {
                    continue;
                };
                if refused == Some(tid) {
                    // Its way out again.
                    refused = None;
                    regs.rax = -i64::from(nix::libc::EIO) as u64;
                    ptrace::setregs(tid, regs)?;
                } else if messages < at && entered(&regs) && changes(tid, &regs) {
                    messages += 1;
                    if messages == at && fate == Fate::Kill {
                        killed = true;
                        kill(pid, Signal::SIGKILL)?;
                    } else if messages == at {
                        // No system call has this number.
                        regs.orig_rax = u64::MAX;
                        ptrace::setregs(tid, regs)?;
                        refused = Some(tid);
                    }
                }
                go_on(tid, None);
            }
            WaitStatus::Stopped(tid, Signal::SIGSTOP) => go_on(tid, None),
            WaitStatus::Stopped(tid, signal) => go_on(tid, Some(signal)),
            WaitStatus::PtraceEvent(tid, ..) | WaitStatus::PtraceSyscall(tid) => go_on(tid, None),
            _ => {}
        }
    }
}

/// Whether it is about to go into the kernel, and not on its way out.
fn entered(regs: &nix::libc::user_regs_struct) -> bool {
    regs.rax == -i64::from(nix::libc::ENOSYS) as u64
}

/// Whether a system call that is being entered changes the network.
fn changes(tid: Pid, regs: &nix::libc::user_regs_struct) -> bool {
    /// Octets of an ARP probe, which is no change.
    const PROBE: u64 = 42;
    match i64::try_from(regs.orig_rax) {
        Ok(nix::libc::SYS_sendto) => {
            // Length, type and flags of the first message; of every four types the third one is a question.
            let head = ptrace::read(tid, regs.rsi as ptrace::AddressType).unwrap_or_default();
            let [_, _, _, _, low, high, ..] = head.to_ne_bytes();
            u16::from_ne_bytes([low, high]) % 4 != 2
        }
        Ok(nix::libc::SYS_write) => regs.rdi > 2 && regs.rdx != PROBE,
        _ => false,
    }
}

fn a_kill_at_any_message_is_repaired(mode: Mode, has_end: bool) -> Result<(), Failed> {
    let world = World::with(has_end)?;
    for what in ["attach", "detach"] {
        let mut killed = 0;
        for at in 1.. {
            let context = |e: Failed| {
                format!(
                    "killed at message {at} of {what}: {}",
                    e.message().unwrap_or_default()
                )
            };
            if what == "detach" {
                world.attach(mode)?;
            }
            let end = fated(&world, what, mode, Fate::Kill, at)?;
            // Even before anybody repairs it: what is half-done stands beside what is used.
            world.reach().map_err(context)?;
            nvnet::repair_target(&world.lab.host, &world.web)
                .map_err(chain)
                .map_err(context)?;
            world.attached_or_untouched().map_err(context)?;
            world.clear().map_err(context)?;
            if end != End::Killed {
                same("end", end, End::Untold)?;
                break;
            }
            killed += 1;
        }
        println!("{mode}: {what} killed at {killed} messages and repaired");
        ensure(killed >= 2, format!("only {killed} kills"))?;
    }
    Ok(())
}

fn any_message_that_is_refused_is_undone(mode: Mode, has_end: bool) -> Result<(), Failed> {
    let world = World::with(has_end)?;
    for what in ["attach", "detach"] {
        let mut failed = 0;
        for at in 1.. {
            let context = |e: Failed| {
                format!(
                    "message {at} of {what} refused: {}",
                    e.message().unwrap_or_default()
                )
            };
            if what == "detach" {
                world.attach(mode)?;
            }
            let end = fated(&world, what, mode, Fate::Refuse, at)?;
            world.reach().map_err(context)?;
            match (what, end) {
                ("attach", End::Failed) => world.untouched().map_err(context)?,
                ("detach", End::Failed) => {
                    // It can be tried again, from wherever it stopped.
                    for left in nvnet::list(&world.lab.host)? {
                        nvnet::detach(&world.lab.host, left.id)
                            .map_err(chain)
                            .map_err(context)?;
                    }
                    world.clear().map_err(context)?;
                }
                _ => {
                    world.attached_or_untouched().map_err(context)?;
                    world.clear().map_err(context)?;
                }
            }
            if end == End::Untold {
                break;
            }
            failed += usize::from(end == End::Failed);
        }
        println!("{mode}: {what} refused at {failed} messages and undone");
        ensure(failed >= 2, format!("only {failed} refusals"))?;
    }
    Ok(())
}

fn every_step_of_detach_that_fails_can_be_tried_again(
    mode: Mode,
    has_end: bool,
) -> Result<(), Failed> {
    let world = World::with(has_end)?;
    let mut failed = 0;
    for step in 0.. {
        let attachment = world.attach(mode)?;
        let fails = |number, _: &str| {
            if number == step {
                Err(Error::NotAttached { id: attachment.id })
            } else {
                Ok(())
            }
        };
        let detached = nvnet::detach_observed(&world.lab.host, attachment.id, fails);
        world.reach()?;
        if detached.is_ok() {
            world.untouched()?;
            break;
        }
        failed += 1;
        match nvnet::detach(&world.lab.host, attachment.id) {
            // Nothing but the bridge was left.
            Ok(()) | Err(Error::NotAttached { .. }) => world.clear()?,
            Err(error) => return Err(chain(error)),
        }
    }
    println!("{mode}: {failed} steps of detach failed and tried again");
    ensure(failed == 2, format!("{failed} steps"))
}

fn a_difference_takes_the_attach_back() -> Result<(), Failed> {
    for (change, told) in [
        (
            "ip addr del 10.78.1.99/24 dev eth0",
            "without address 10.78.1.99/24",
        ),
        (
            "ip -6 addr add 2001:db8::77/64 dev eth0 nodad",
            "with address 2001:db8::77/64",
        ),
        (
            "ip route del 203.0.113.0/24",
            "without route 203.0.113.0/24",
        ),
        (
            "ip route add 203.0.114.0/24 via 10.78.0.7",
            "with route 203.0.114.0/24",
        ),
        (
            "ip neigh del 10.78.0.77 dev eth0",
            "without neighbour 10.78.0.77",
        ),
        ("ip link set eth0 mtu 1300", "MTU 1300"),
        ("ip link set eth0 txqueuelen 5", "queue 5"),
        ("ip link set eth0 alias changed", "alias \"changed\""),
        (
            "echo 1 > /proc/sys/net/ipv4/conf/eth0/accept_redirects",
            "without sysctl ipv4.conf.accept_redirects = 0",
        ),
        (
            "ip addr add 192.0.2.77/24 dev nv-ex-eth0",
            "left on nv-ex-eth0",
        ),
        (
            "ip route del 198.51.100.0/24",
            "without route 198.51.100.0/24 via 192.0.2.9",
        ),
        ("ip link set other down", "without link other up"),
    ] {
        let world = World::new()?;
        let plan = world.plan(Mode::Inline).check()?;
        let last = plan.steps().len() - 1;
        let changes = |number, _: &nvnet::Step| {
            if number == last {
                sh_in(&world.web, change).expect("the change can be made");
            }
            Ok(())
        };
        let error = match plan.attach_observed(changes) {
            Err(Error::Undone { source, .. }) => source.to_string(),
            // What somebody else put onto the original is not for us to take away.
            Err(Error::RollbackIncomplete { source, .. }) if change.contains("nv-ex") => {
                ensure(source.to_string().contains(told), source.to_string())?;
                continue;
            }
            other => return Err(format!("after {change}: {other:?}").into()),
        };
        ensure(
            error.contains(told),
            format!("after {change}, without `{told}`: {error}"),
        )?;
        world.reach()?;
        // What is on the container's other interfaces is not for us to put back.
        if !error.contains("other") && !error.contains("192.0.2.9") {
            world
                .untouched()
                .map_err(|e| format!("after {change}: {}", e.message().unwrap_or_default()))?;
        }
    }
    Ok(())
}

fn the_blackout_is_measured() -> Result<(), Failed> {
    let world = World::new()?;
    let measure = |mode| -> Result<Option<nvnet::Blackout>, Failed> {
        let attachment = world.attach(mode)?;
        nvnet::detach(&world.lab.host, attachment.id)?;
        Ok(attachment.blackout)
    };
    let blackout = measure(Mode::Inline)?.ok_or("not measured")?;
    let probed = blackout
        .probe
        .clone()
        .map_err(|why| format!("not probed: {why}"))?;
    ensure(!blackout.switch.is_zero(), "a switch in no time")?;
    ensure(
        probed.answered > 0 && probed.answered <= probed.sent,
        format!("{probed:?}"),
    )?;
    ensure(
        !probed.gap.is_zero() && blackout.at_most() >= probed.gap,
        format!("{blackout:?}"),
    )?;
    same("mirror", measure(Mode::Mirror)?, None)?;
    // A probe leaves nothing behind.
    world.untouched()?;
    same(
        "neighbours without a known address",
        sh_in(
            &world.web,
            "ip neigh show nud incomplete; ip neigh show nud failed; ip neigh | grep 0.0.0.0 | cat",
        )?,
        String::new(),
    )?;

    // What does not answer is attached all the same.
    for (change, why) in [
        (
            "echo 8 > /proc/sys/net/ipv4/conf/eth0/arp_ignore",
            "does not answer",
        ),
        ("ip -4 addr flush dev eth0", "no IPv4 address"),
    ] {
        sh_in(&world.web, change)?;
        let blackout = measure(Mode::Inline)?.ok_or("not measured")?;
        ensure(
            blackout
                .probe
                .as_ref()
                .is_err_and(|told| told.contains(why)),
            format!("{blackout:?}"),
        )?;
        same("at most", blackout.at_most(), blackout.switch)?;
    }
    Ok(())
}

/// What one process of many does: attaches and detaches, without regard to what the others do to the same container.
fn churn(host: &Netns, target: &Netns, mode: Mode) -> Result<(), Failed> {
    for _ in 0..ROUNDS {
        let workload = Workload {
            name: format!("process {}", std::process::id()),
            ..Workload::default()
        };
        nvnet::repair_target(host, target).map_err(chain)?;
        let plan = Plan::new(host, target, workload).mode(mode);
        let attached = match plan.interface("eth0").check().and_then(CheckedPlan::attach) {
            Ok(attached) => attached,
            Err(Error::AlreadyAttached { .. }) => vec![],
            Err(error) => return Err(chain(error)),
        };
        let all = nvnet::list(host)?;
        let ids: BTreeSet<_> = all.iter().map(|one| one.id).collect();
        same("ids", ids.len(), all.len())?;
        for one in attached {
            match nvnet::detach(host, one.id) {
                Ok(()) | Err(Error::NotAttached { .. }) => {}
                Err(error) => return Err(chain(error)),
            }
        }
    }
    Ok(())
}

/// Rounds of each process.
const ROUNDS: usize = 6;

fn processes_attach_and_detach_at_the_same_time() -> Result<(), Failed> {
    let lab = Lab::new(&["a", "b", "c"])?;
    let netns = || {
        let inside = lab.containers.iter().map(|container| &container.netns);
        inside.chain([&lab.host])
    };
    let before = netns().map(picture).collect::<Result<Vec<_>, _>>()?;
    // Two at each container, one for each mode: one of them finds what the other one attached.
    let children = lab
        .containers
        .iter()
        .flat_map(|container| MODES.map(|mode| (container, mode)))
        .map(|(container, mode)| {
            let order = format!(
                "churn {mode} {} {}",
                path(&lab.host),
                path(&container.netns)
            );
            Command::new(std::env::current_exe()?)
                .env(CHILD, order)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        })
        .collect::<Result<Vec<_>, _>>()?;
    for child in children {
        let output = child.wait_with_output()?;
        ensure(
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )?;
    }
    same("attachments", nvnet::list(&lab.host)?.len(), 0)?;
    for (netns, before) in netns().zip(&before) {
        same_picture(netns.label(), before, &picture(netns)?)?;
    }
    Ok(())
}

fn several_are_detached_together() -> Result<(), Failed> {
    let lab = Lab::new(&["a", "b", "c", "d"])?;
    let before = picture(&lab.host)?;
    let mut ids = Vec::new();
    let attach = |container: usize, mode| -> Result<nvnet::AttachmentId, Failed> {
        let workload = Workload {
            name: container.to_string(),
            ..Workload::default()
        };
        let plan = Plan::new(&lab.host, &lab.containers[container].netns, workload).mode(mode);
        let attached = plan.check().and_then(CheckedPlan::attach).map_err(chain)?;
        Ok(attached[0].id)
    };
    let inside = lab.containers[..3]
        .iter()
        .map(|container| picture(&container.netns))
        .collect::<Result<Vec<_>, _>>()?;
    for container in 0..3 {
        ids.push(attach(container, MODES[usize::from(container == 1)])?);
    }
    let stays = attach(3, Mode::Inline)?;
    let nobody = nvnet::AttachmentId::new(999).ok_or("an id")?;
    // Somebody took the interface away whose place ours has: there is nothing to be put back, and the others are.
    sh_in(
        &lab.containers[2].netns,
        "ip link set eth0 name gone; ip addr flush dev gone; ip link del nv-ex-eth0",
    )?;
    let mut session = nvnet::Session::open(&lab.host)?;
    let outcomes = session.detach_together(&[ids[2], nobody, ids[0], ids[1]]);
    ensure(
        matches!(
            outcomes[..],
            [Ok(()), Err(Error::NotAttached { id }), Ok(()), Ok(())] if id == nobody
        ),
        format!("{outcomes:?}"),
    )?;
    let left: Vec<_> = session.attached().iter().map(|one| one.id).collect();
    same("left", &left, &vec![stays])?;
    drop(session);
    same("listed", nvnet::list(&lab.host)?.len(), 1)?;
    for (container, before) in lab.containers[..2].iter().zip(&inside) {
        same_picture(container.netns.label(), before, &picture(&container.netns)?)?;
    }
    // The last one takes the bridge along.
    let outcomes = nvnet::Session::open(&lab.host)?.detach_together(&[stays]);
    ensure(matches!(outcomes[..], [Ok(())]), format!("{outcomes:?}"))?;
    let ends_gone = sh_in(
        &lab.host,
        "ip link show nv-br 2>&1; ip -br link | grep -c nv-; true",
    )?;
    ensure(
        ends_gone.contains("does not exist") && ends_gone.contains("\n0"),
        ends_gone,
    )?;
    let now = picture(&lab.host)?;
    // Gone with the interface that was deleted.
    let end = &lab.containers[2].host_end;
    let without = |picture: &str| -> String {
        let lines = picture.lines().filter(|line| !line.contains(&end[..]));
        lines.collect::<Vec<_>>().join("\n")
    };
    same_picture("host", &without(&before), &without(&now))
}

/// Attaches all of these, or detaches all that is attached.
fn together(host: &Netns, targets: &[Netns], mode: Mode, attach: bool) -> Result<(), Failed> {
    let mut session = nvnet::Session::open(host)?;
    if attach {
        let plan = |target: &Netns| Plan::new(host, target, Workload::default()).mode(mode);
        let plans = targets.iter().map(plan).collect();
        let outcomes = session.attach_together(plans, &|_| nvnet::Fate::Restore);
        for outcome in outcomes {
            outcome.attached.ok_or("not begun")??;
        }
    } else {
        let ids: Vec<AttachmentId> = session.attached().iter().map(|a| a.id).collect();
        for outcome in session.detach_together(&ids) {
            outcome?;
        }
    }
    Ok(())
}

fn several_are_attached_together() -> Result<(), Failed> {
    let lab = Lab::new(&["a", "b", "c", "d", "e"])?;
    let everything = || -> Result<Vec<String>, Failed> {
        let containers = lab.containers.iter().map(|container| &container.netns);
        containers
            .chain([&lab.host])
            .map(picture)
            .collect::<Result<_, _>>()
    };
    let before = everything()?;
    let plan = |at: usize, mode| {
        let target = &lab.containers[at].netns;
        Plan::new(&lab.host, target, Workload::default()).mode(mode)
    };
    let attach = |plans| -> Result<(Vec<Outcome>, nvnet::Session), Failed> {
        let mut session = nvnet::Session::open(&lab.host)?;
        let outcomes = session.attach_together(plans, &|_| nvnet::Fate::Restore);
        Ok((outcomes, session))
    };
    for mode in MODES {
        let (outcomes, mut session) = attach((0..5).map(|at| plan(at, mode)).collect())?;
        let mut ids = Vec::new();
        for (at, outcome) in outcomes.into_iter().enumerate() {
            let attached = outcome.attached.ok_or("not begun")?.map_err(chain)?;
            let [one] = &attached[..] else {
                return Err(format!("{attached:?}").into());
            };
            // In their order, whoever was done first.
            let netns = &lab.containers[at].netns;
            same("namespace", one.netns().as_ref(), Some(netns))?;
            same("inside", nvnet::inspect(&lab.host, one)?, None)?;
            ids.push(one.id);
        }
        let known: BTreeSet<_> = session.attached().iter().map(|a| a.id).collect();
        same("ids", &known, &ids.iter().copied().collect())?;
        same("ids", known.len(), 5)?;
        let outcomes = session.detach_together(&ids);
        ensure(outcomes.iter().all(Result::is_ok), format!("{outcomes:?}"))?;
        same("pictures", &everything()?, &before)?;
    }

    // The same container twice: by whichever comes first, and the other one is told.
    let (outcomes, mut session) = attach(vec![plan(0, Mode::Inline), plan(0, Mode::Inline)])?;
    let ends: Vec<_> = outcomes.into_iter().map(|o| o.attached).collect();
    let is_told = |end: &Option<Result<_, _>>| {
        matches!(end, Some(Err(Error::AlreadyAttached { .. }))) || end.is_none()
    };
    ensure(
        ends.iter().filter(|end| matches!(end, Some(Ok(_)))).count() == 1
            && ends.iter().filter(|end| is_told(end)).count() == 1,
        format!("{ends:?}"),
    )?;
    let id = session.attached()[0].id;
    session.detach(id)?;
    drop(session);

    // One that cannot be: it is undone, and what was attached beside it is whole.
    let missing = plan(1, Mode::Inline).interface("eth7");
    let plans = vec![plan(0, Mode::Inline), missing, plan(2, Mode::Inline)];
    let (outcomes, mut session) = attach(plans)?;
    let refused = &outcomes[1].attached;
    ensure(
        matches!(refused, Some(Err(Error::NoSuchInterface { interface, .. })) if interface == "eth7"),
        format!("{refused:?}"),
    )?;
    let attached = session.attached();
    for one in attached.iter() {
        same("inside", nvnet::inspect(&lab.host, one)?, None)?;
    }
    let told = outcomes
        .iter()
        .filter_map(|o| o.attached.as_ref()?.as_ref().ok());
    let told: usize = told.map(Vec::len).sum();
    same("told of", told, attached.len())?;
    let ids: Vec<_> = attached.iter().map(|a| a.id).collect();
    let outcomes = session.detach_together(&ids);
    ensure(outcomes.iter().all(Result::is_ok), format!("{outcomes:?}"))?;
    drop(session);
    nvnet::repair(&lab.host)?;
    same("pictures", &everything()?, &before)
}

/// Two threads are at work, each somewhere in a container, when the process is killed.
fn a_kill_while_several_are_changed_is_repaired() -> Result<(), Failed> {
    let lab = Lab::new(&["a", "b", "c"])?;
    let targets: Vec<Netns> = lab.containers.iter().map(|c| c.netns.clone()).collect();
    let everything = || -> Result<Vec<String>, Failed> {
        targets.iter().chain([&lab.host]).map(picture).collect()
    };
    let before = everything()?;
    let paths: Vec<String> = targets.iter().map(path).collect();
    for what in ["attach", "detach"] {
        let (mut killed, mut half_done) = (0, 0);
        // Not after each message: three containers have some seventy, and they come in another order each time.
        for at in (1..).step_by(2) {
            let context = |e: Failed| {
                let message = e.message().unwrap_or_default();
                format!("killed at message {at} of {what}: {message}")
            };
            if what == "detach" {
                together(&lab.host, &targets, Mode::Inline, true)?;
            }
            let order = format!("{what} inline {} {}", path(&lab.host), paths.join(","));
            let end = fated_child(&order, Fate::Kill, at)?;
            let repaired = nvnet::repair(&lab.host).map_err(chain).map_err(context)?;
            half_done += usize::from(repaired.len() > 1);
            for one in nvnet::list(&lab.host)? {
                same("inside", nvnet::inspect(&lab.host, &one)?, None).map_err(context)?;
            }
            together(&lab.host, &targets, Mode::Inline, false).map_err(context)?;
            for (before, now) in before.iter().zip(everything()?) {
                same_picture("it", before, &now).map_err(context)?;
            }
            if end != End::Killed {
                same("end", end, End::Untold)?;
                break;
            }
            killed += 1;
        }
        println!(
            "inline: {what} of three killed at {killed} messages and repaired, {half_done} times more than one of them"
        );
        ensure(killed >= 8, format!("only {killed} kills"))?;
    }
    Ok(())
}

fn a_container_that_falls_silent_is_put_back() -> Result<(), Failed> {
    let mut world = World::new()?;
    // From its fifth on, no probe comes through: what is known to answer then falls silent.
    sh_in(
        &world.lab.host,
        "set -e
         tc qdisc add dev web-end root handle 1: htb
         tc class add dev web-end parent 1: classid 1:1 htb rate 8bit burst 190 cburst 190
         tc filter add dev web-end parent 1: protocol arp u32 match u32 0 0 flowid 1:1",
    )?;
    world.before[0] = view(&world.lab.host)?;
    match world.plan(Mode::Inline).check()?.attach() {
        Err(Error::Undone { source, .. }) if matches!(*source, Error::Silent { .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    sh_in(&world.lab.host, "tc qdisc del dev web-end root")?;
    world.before[0] = view(&world.lab.host)?;
    world.reach()?;
    world.untouched()
}

/// What can happen to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Attach(Mode),
    Detach,
    /// An attach or a detach is killed, or refused something, at this message.
    Ends(Fate, &'static str, Mode, usize),
    /// The container dies, and another one comes in its place.
    Restart,
    Repair,
    /// Somebody deletes our pair, if there is one, and repairs.
    PortGone,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn event(&mut self) -> Event {
        let mode = MODES[self.below(2)];
        match self.below(9) {
            0 | 1 => Event::Attach(mode),
            2 => Event::Detach,
            3..=5 => {
                let fate = [Fate::Kill, Fate::Kill, Fate::Refuse][self.below(3)];
                Event::Ends(
                    fate,
                    ["attach", "detach"][self.below(2)],
                    mode,
                    1 + self.below(12),
                )
            }
            6 => Event::Restart,
            7 => Event::PortGone,
            _ => Event::Repair,
        }
    }
}

/// Plays a sequence: after each event the container can be reached, and after a repair it is attached or as it was.
fn play(events: &[Event]) -> Result<(), Failed> {
    let mut world = World::new()?;
    for event in events {
        let attached = nvnet::list(&world.lab.host)?;
        let done = match *event {
            Event::Attach(mode) => {
                // As `nvcli attach` does it.
                nvnet::repair_target(&world.lab.host, &world.web).map_err(chain)?;
                match world.plan(mode).check().and_then(CheckedPlan::attach) {
                    Ok(_) | Err(Error::AlreadyAttached { .. }) => world.attached_or_untouched(),
                    Err(error) => Err(chain(error)),
                }
            }
            Event::Detach => attached
                .iter()
                .try_for_each(|one| nvnet::detach(&world.lab.host, one.id).map_err(chain)),
            Event::Ends(_, "detach", ..) if attached.is_empty() => Ok(()),
            Event::Ends(_, "attach", ..) if !attached.is_empty() => Ok(()),
            Event::Ends(fate, what, mode, at) => {
                // What an earlier kill left would be refused before anything is sent.
                if what == "attach" {
                    nvnet::repair_target(&world.lab.host, &world.web).map_err(chain)?;
                }
                fated(&world, what, mode, fate, at).map(drop)
            }
            Event::Restart => world.restart(),
            Event::PortGone => {
                let ports = "ip -o link show | sed -nE 's/.*(nv-in-[0-9a-f]+)@.*/\\1/p'";
                sh_in(
                    &world.lab.host,
                    &format!("for p in $({ports}); do ip link delete $p; done"),
                )?;
                nvnet::repair_target(&world.lab.host, &world.web)
                    .map_err(chain)
                    .and_then(|_| world.attached_or_untouched())
            }
            Event::Repair => nvnet::repair(&world.lab.host)
                .map_err(chain)
                .and_then(|_| world.attached_or_untouched()),
        };
        let told = |e: Failed| format!("{event}: {}", e.message().unwrap_or_default());
        done.map_err(told)?;
        world.reach().map_err(told)?;
    }
    nvnet::repair(&world.lab.host).map_err(chain)?;
    world.attached_or_untouched()?;
    world.clear()
}

fn any_sequence_leaves_it_attached_or_untouched() -> Result<(), Failed> {
    const FOR: Duration = Duration::from_secs(15);
    let start = Instant::now();
    let given = std::env::var(SEED)
        .ok()
        .map(|seed| seed.parse::<u64>())
        .transpose()?;
    let mut seed = match given {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    let (mut sequences, mut events_played) = (0, 0);
    loop {
        let mut dice = Dice(seed);
        let events: Vec<Event> = (0..3 + dice.below(10)).map(|_| dice.event()).collect();
        if let Err(failed) = play(&events) {
            let (events, failed) = shrink(events, failed);
            let listed: Vec<String> = events.iter().map(ToString::to_string).collect();
            return Err(format!(
                "{SEED}={seed}\n{}\n{}",
                listed.join("\n"),
                failed.message().unwrap_or_default()
            )
            .into());
        }
        sequences += 1;
        events_played += events.len();
        seed = seed.wrapping_add(1);
        if given.is_some() || start.elapsed() > FOR {
            break;
        }
    }
    println!("{sequences} sequences of {events_played} events");
    Ok(())
}

/// Leaves out what the failure does not need.
fn shrink(mut events: Vec<Event>, mut failed: Failed) -> (Vec<Event>, Failed) {
    let mut at = 0;
    while at < events.len() {
        let mut fewer = events.clone();
        fewer.remove(at);
        match play(&fewer) {
            Err(still) => (events, failed) = (fewer, still),
            Ok(()) => at += 1,
        }
    }
    (events, failed)
}
