//! The agent beside namespaces and a real engine: what it attaches, takes over, hears of, answers, and leaves.

#[path = "../../nvnet/tests/common/mod.rs"]
mod common;
mod engine;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Need, chain, ensure, picture, privileged, same, same_picture, sh_in};
use engine::Engine;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nvnet::lab::Lab;
use nvnet::{Attachment, Mode, Netns};
use serde_json::Value;

const NETNS: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const DOCKER: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Docker];
const DNS: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Busybox];
/// Longer than anything here takes, also on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut trials: Vec<Trial> = Vec::new();
    for mode in [Mode::Inline, Mode::Mirror] {
        let mut add = |name: &str, needs, test: fn(Mode) -> Result<(), Failed>| {
            trials.push(privileged(format!("{name}::{mode}"), needs, move || {
                test(mode)
            }));
        };
        add(
            "a_killed_agent_is_taken_over_from",
            NETNS,
            a_killed_agent_is_taken_over_from,
        );
        add(
            "a_storm_while_the_engine_restarts",
            DOCKER,
            a_storm_while_the_engine_restarts,
        );
        add(
            "what_an_engine_tells_is_obeyed",
            DOCKER,
            what_an_engine_tells_is_obeyed,
        );
    }
    let mut add = |name: &str, needs, test: fn() -> Result<(), Failed>| {
        trials.push(privileged(name, needs, test));
    };
    add("there_is_one_agent", NETNS, there_is_one_agent);
    add(
        "who_may_not_ask_is_told_that_an_agent_runs",
        NETNS,
        who_may_not_ask_is_told_that_an_agent_runs,
    );
    add(
        "an_agent_that_hangs_is_not_waited_for",
        NETNS,
        an_agent_that_hangs_is_not_waited_for,
    );
    add(
        "a_dry_run_tells_of_targets",
        NETNS,
        a_dry_run_tells_of_targets,
    );
    add(
        "detach_tells_of_an_agent_that_attaches_again",
        NETNS,
        detach_tells_of_an_agent_that_attaches_again,
    );
    add(
        "interfaces_that_come_later_are_attached",
        NETNS,
        interfaces_that_come_later_are_attached,
    );
    add(
        "a_reload_changes_what_is_attached",
        NETNS,
        a_reload_changes_what_is_attached,
    );
    add(
        "what_others_hold_up_is_taken_back_later",
        NETNS,
        what_others_hold_up_is_taken_back_later,
    );
    add(
        "a_command_that_waits_keeps_its_place",
        NETNS,
        a_command_that_waits_keeps_its_place,
    );
    add("questions_are_answered", NETNS, questions_are_answered);
    add(
        "flows_come_from_the_agent",
        NETNS,
        flows_come_from_the_agent,
    );
    add(
        "what_an_agent_does_not_do_a_ring_does",
        NETNS,
        what_an_agent_does_not_do_a_ring_does,
    );
    add("an_agent_keeps_frames", NETNS, an_agent_keeps_frames);
    add(
        "threads_have_the_rights_that_they_need",
        NETNS,
        threads_have_the_rights_that_they_need,
    );
    add(
        "peers_have_the_names_that_were_asked_for",
        DNS,
        peers_have_the_names_that_were_asked_for,
    );
    add(
        "networks_of_others_are_said",
        DOCKER,
        networks_of_others_are_said,
    );
    let mut arguments = Arguments::from_args();
    // Each counts what happens on the machine's processors, of which it needs its share.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// An agent that runs in a namespace of the test's.
struct Agent {
    host: Netns,
    child: Child,
    socket: PathBuf,
    said: Option<JoinHandle<String>>,
    _folder: tempfile::TempDir,
}

impl Agent {
    /// Starts it in `host`, and waits until it is ready.
    fn start(host: &Netns, arguments: &[&str]) -> Result<Self, Failed> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("agent.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command
            .arg("agent")
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = host.run(|| command.spawn())??;
        let mut stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let mut told = String::new();
        while !told.contains("ready:") {
            let mut line = String::new();
            if stderr.read_line(&mut line)? == 0 {
                let _ = child.wait();
                return Err(format!("the agent ended: {told}").into());
            }
            told.push_str(&line);
        }
        // Or it would wait for somebody to read what it says.
        let said = std::thread::spawn(move || {
            let _ = stderr.read_to_string(&mut told);
            told
        });
        Ok(Self {
            host: host.clone(),
            child,
            socket,
            said: Some(said),
            _folder: folder,
        })
    }

    fn signal(&self, signal: Signal) -> Result<(), Failed> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// Ends it as a service manager does; gives what it said.
    fn end(mut self) -> Result<String, Failed> {
        self.signal(Signal::SIGTERM)?;
        let status = self.child.wait()?;
        let said = self.said();
        ensure(status.success(), format!("{status}: {said}"))?;
        ensure(!self.socket.exists(), "its socket is left")?;
        Ok(said)
    }

    fn said(&mut self) -> String {
        self.said
            .take()
            .and_then(|said| said.join().ok())
            .unwrap_or_default()
    }

    /// Asks it, as curl would; the body of the answer.
    fn ask(&self, path: &str) -> Result<String, Failed> {
        let (head, body) = self.ask_raw(&format!("GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n"))?;
        ensure(
            head.starts_with("HTTP/1.1 200 OK\r\n"),
            format!("{head}{body}"),
        )?;
        Ok(body)
    }

    fn ask_raw(&self, request: &str) -> Result<(String, String), Failed> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
        Ok((format!("{head}\r\n\r\n"), body.to_owned()))
    }

    fn lines(&self, path: &str) -> Result<Vec<Value>, Failed> {
        let body = self.ask(path)?;
        body.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    fn status(&self) -> Result<Value, Failed> {
        Ok(self.lines("/v1/status")?.remove(0))
    }

    fn nvcli(&self, arguments: &[&str]) -> Result<Output, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command
            .args(arguments)
            .env("NVCLI_AGENT_SOCKET", &self.socket)
            .stdin(Stdio::null());
        Ok(self.host.run(|| command.output())??)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

/// Looks until it holds, and fails with what was seen last when it never does.
fn until<T: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> Result<T, Failed>,
    holds: impl Fn(&T) -> bool,
) -> Result<T, Failed> {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = look()?;
        if holds(&seen) {
            return Ok(seen);
        }
        if Instant::now() > end {
            return Err(format!("{what} never came; last: {seen:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The way to a namespace that only this process holds.
fn target(netns: &Netns) -> String {
    format!(
        "netns:/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    )
}

fn listed(host: &Netns) -> Result<Vec<Attachment>, Failed> {
    nvnet::list(host).map_err(chain)
}

fn ids(attached: &[Attachment]) -> BTreeMap<String, String> {
    attached
        .iter()
        .map(|a| {
            (
                a.id.to_string(),
                format!("{} {} {}", a.netns_inode(), a.interface, a.mode),
            )
        })
        .collect()
}

/// Links of ours that a namespace has.
fn ours(netns: &Netns) -> Result<String, Failed> {
    sh_in(
        netns,
        "ip -o link show | grep -o 'nv-[a-z0-9-]*' | sort -u | tr '\\n' ' '",
    )
}

/// A connection that says something back, as long as it is open.
struct Talk {
    stream: TcpStream,
    _server: JoinHandle<()>,
}

impl Talk {
    fn open(server: &Netns, address: IpAddr, client: &Netns) -> Result<Self, Failed> {
        let listener = server.run(|| TcpListener::bind((address, 0)))??;
        let at = listener.local_addr()?;
        let server = std::thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut part = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut part) {
                if stream.write_all(&part[..length]).is_err() {
                    return;
                }
            }
        });
        let stream = client.run(|| TcpStream::connect_timeout(&at, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            _server: server,
        })
    }

    /// Says something `times` times, and hears it again.
    fn say(&mut self, times: usize) -> Result<(), Failed> {
        for number in 0..times {
            let text = format!("{number:08}");
            self.stream.write_all(text.as_bytes())?;
            let mut back = [0; 8];
            self.stream.read_exact(&mut back)?;
            same("echo", std::str::from_utf8(&back)?, &text)?;
        }
        Ok(())
    }
}

fn a_killed_agent_is_taken_over_from(mode: Mode) -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [web, client] = [0, 1].map(|n| lab.containers[n].netns.clone());
    // The link-local addresses are being asked about for a second: a picture taken now would not stay true.
    for netns in [&lab.host, &web, &client] {
        let tentative = || sh_in(netns, "ip addr | grep tentative | cat");
        until("settled addresses", tentative, String::is_empty)?;
    }
    let before = [picture(&lab.host)?, picture(&web)?, picture(&client)?];
    let (mode_text, targets) = (mode.to_string(), [target(&web), target(&client)]);
    let arguments = [
        "--no-engine",
        "--mode",
        &mode_text,
        "--target",
        &targets[0],
        "--target",
        &targets[1],
    ];
    let agent = Agent::start(&lab.host, &arguments)?;
    same(
        "attached",
        agent.status()?["work"]["attached"].clone(),
        2.into(),
    )?;
    let first = ids(&listed(&lab.host)?);
    let mut talk = Talk::open(&web, lab.containers[0].ipv4.into(), &client)?;
    talk.say(50)?;
    let ports = ours(&lab.host)?;

    agent.signal(Signal::SIGKILL)?;
    // Nobody is there, and everything goes on.
    talk.say(50)?;
    drop(agent);
    same(
        "attached without an agent",
        ids(&listed(&lab.host)?),
        first.clone(),
    )?;

    let agent = Agent::start(&lab.host, &arguments)?;
    talk.say(50)?;
    let status = agent.status()?;
    same(
        "attached again",
        status["work"]["attached"].clone(),
        0.into(),
    )?;
    same(
        "taken over",
        status["containers"]["attached"].clone(),
        2.into(),
    )?;
    same(
        "attached to the next",
        ids(&listed(&lab.host)?),
        first.clone(),
    )?;
    same("links", ours(&lab.host)?, ports)?;
    // And it sees what the connection says.
    let open = until(
        "the connection",
        || agent.lines("/v1/flows"),
        |flows| {
            flows
                .iter()
                .filter(|flow| {
                    flow["protocolIdentifier"] == 6 && flow["packetDeltaCount"].as_u64() >= Some(50)
                })
                .count()
                == 2
        },
    )?;
    let vantages: BTreeSet<_> = open
        .iter()
        .filter_map(|flow| flow["vantage"].as_str())
        .collect();
    same("vantages", vantages, BTreeSet::from(["egress", "ingress"]))?;
    // A signal leaves what it finds, as it was told; the next takes everything back.
    let said = agent.end()?;
    ensure(said.contains("frames read ="), said)?;
    same("attached after the end", ids(&listed(&lab.host)?), first)?;
    talk.say(50)?;
    let last: Vec<&str> = arguments
        .iter()
        .copied()
        .chain(["--on-exit", "detach"])
        .collect();
    Agent::start(&lab.host, &last)?.end()?;
    talk.say(50)?;
    drop(talk);
    same("left", ours(&lab.host)?, String::new())?;
    let after = [picture(&lab.host)?, picture(&web)?, picture(&client)?];
    for (what, (before, after)) in ["host", "web", "client"]
        .iter()
        .zip(before.iter().zip(&after))
    {
        same_picture(what, before, after)?;
    }
    Ok(())
}

fn there_is_one_agent() -> Result<(), Failed> {
    let lab = Lab::new(&[])?;
    let agent = Agent::start(&lab.host, &["--no-engine"])?;
    let second = agent.nvcli(&["agent", "--no-engine"])?;
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    same("exit code", second.status.code(), Some(1))?;
    ensure(
        told.contains("an agent runs already") && told.contains(&agent.child.id().to_string()),
        told,
    )?;
    // The first one does not notice.
    agent.status()?;
    let shown = agent.nvcli(&["status"])?;
    let text = String::from_utf8(shown.stdout)?;
    ensure(
        shown.status.success() && text.contains(&format!("process {}", agent.child.id())),
        text,
    )?;
    // Another host may have one of its own.
    let other = Lab::new(&[])?;
    Agent::start(&other.host, &["--no-engine"])?.end()?;
    let (socket, host) = (agent.socket.clone(), agent.host.clone());
    agent.end()?;
    let mut none = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    none.arg("status").arg("--socket").arg(&socket);
    let none = host.run(|| none.output())??;
    same("exit code without one", none.status.code(), Some(1))?;
    ensure(
        String::from_utf8_lossy(&none.stderr).contains("no agent runs"),
        "it does not say so",
    )
}

fn who_may_not_ask_is_told_that_an_agent_runs() -> Result<(), Failed> {
    let lab = Lab::new(&[])?;
    let agent = Agent::start(&lab.host, &["--no-engine"])?;
    let socket = agent.socket.clone();
    let status = || -> Result<String, Failed> {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--clear-groups"])
            .arg(env!("CARGO_BIN_EXE_nvcli"))
            .arg("status")
            .arg("--socket")
            .arg(&socket);
        let output = lab.host.run(|| command.output())??;
        same("exit code", output.status.code(), Some(1))?;
        Ok(String::from_utf8(output.stderr)?)
    };
    let said = status()?;
    ensure(
        said.contains("an agent runs, but") && said.contains("as root"),
        said,
    )?;
    let said = agent.end()?;
    // Who asks has to be told where, since it is not where one looks.
    let told = format!("NVCLI_AGENT_SOCKET={}", socket.display());
    ensure(said.contains(&told), said)?;
    let said = status()?;
    ensure(said.contains("no agent runs"), said)
}

fn an_agent_that_hangs_is_not_waited_for() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let name = target(&lab.containers[0].netns);
    let agent = Agent::start(&lab.host, &["--no-engine", "--target", &name])?;
    agent.signal(Signal::SIGSTOP)?;
    for arguments in [&["list"][..], &["flows", "--duration", "1s"]] {
        let output = agent.nvcli(arguments)?;
        let said = String::from_utf8(output.stderr)?;
        ensure(
            output.status.success() && said.contains("does not answer"),
            format!("{arguments:?}: {said}"),
        )?;
        ensure(!said.contains("os error"), said)?;
        if arguments == ["list"] {
            let shown = String::from_utf8(output.stdout)?;
            ensure(shown.contains("eth0"), shown)?;
        }
    }
    agent.signal(Signal::SIGCONT)?;
    agent.end().map(drop)
}

fn a_dry_run_tells_of_targets() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let name = target(&lab.containers[0].netns);
    let plan = |targets: &[&str]| -> Result<(String, String), Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command.args(["agent", "--no-engine", "--dry-run"]);
        for target in targets {
            command.args(["--target", target]);
        }
        let output = lab.host.run(|| command.output())??;
        let said = String::from_utf8(output.stderr)?;
        ensure(output.status.success(), &said)?;
        Ok((String::from_utf8(output.stdout)?, said))
    };
    let (shown, _) = plan(&[&name, "netns:nope"])?;
    let line = |begins: &str| {
        let mut lines = shown.lines();
        lines.find(|line| line.starts_with(begins)).unwrap_or("")
    };
    ensure(
        line(&name).contains("targets") && line(&name).contains("attach it in"),
        &shown,
    )?;
    ensure(
        line("netns:nope").contains("wait until it is there"),
        &shown,
    )?;
    let (shown, said) = plan(&[])?;
    same("shown of nothing", shown.as_str(), "")?;
    ensure(said.contains("nothing to attach"), said)
}

fn detach_tells_of_an_agent_that_attaches_again() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "by hand"])?;
    let [web, by_hand] = [0, 1].map(|n| target(&lab.containers[n].netns));
    let agent = Agent::start(&lab.host, &["--no-engine", "--target", &web])?;
    let told = agent.nvcli(&["attach", &by_hand])?;
    same("attach", told.status.code(), Some(0))?;
    let detach = |arguments: &[&str]| -> Result<String, Failed> {
        let told = agent.nvcli(&[&["detach"], arguments].concat())?;
        let err = String::from_utf8(told.stderr)?;
        same(&err, told.status.code(), Some(0))?;
        Ok(err)
    };
    let err = detach(&[&web])?;
    ensure(
        err.contains("the agent") && err.contains(&web) && err.contains("attaches it again"),
        err,
    )?;
    until(
        "the attachment of the agent",
        || listed(&lab.host),
        |attached| attached.len() == 2,
    )?;
    // What it does not select stays detached, and nothing is to be said.
    same("of what it does not keep", &detach(&[&by_hand])?[..], "")?;
    // By whatever name: it is the namespace that counts.
    let other = lab.containers[0].netns.clone();
    let err = detach(&[&format!("netns:/proc/self/root{}", &target(&other)[6..])])?;
    ensure(err.contains("attaches it again"), err)?;
    agent.end()?;
    same("without an agent", listed(&lab.host)?.len(), 0)
}

fn interfaces_that_come_later_are_attached() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let web = &lab.containers[0].netns;
    let agent = Agent::start(
        &lab.host,
        &[
            "--verbose",
            "--no-engine",
            "--mode",
            "mirror",
            "--target",
            &target(web),
        ],
    )?;
    same("attached at first", listed(&lab.host)?.len(), 1)?;
    let path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        web.as_fd().as_raw_fd()
    );
    sh_in(
        &lab.host,
        &format!(
            "ip link add later type veth peer name eth1 && ip link set later up && ip link set eth1 netns {path}"
        ),
    )?;
    sh_in(web, "ip link set eth1 up")?;
    let attached = until(
        "the second interface",
        || listed(&lab.host),
        |attached| attached.len() == 2,
    )?;
    same("its name", attached[1].interface.as_str(), "eth1")?;
    // And it is followed when it goes.
    sh_in(&lab.host, "ip link del later")?;
    until(
        "its end",
        || agent.lines("/v1/attachments"),
        |attached| attached.len() == 1,
    )?;
    // Deleted by hand: noticed, and put right.
    sh_in(&lab.host, "ip link del nv-br")?;
    until(
        "nv-br again",
        || listed(&lab.host),
        |attached| attached.len() == 1 && attached[0].health == nvnet::Health::Whole,
    )?;
    // The ring is open again: frames are counted.
    let read = |agent: &Agent| -> Result<u64, Failed> {
        Ok(agent.status()?["frames"]["read"].as_u64().unwrap_or(0))
    };
    let before = read(&agent)?;
    until(
        "frames after that",
        || {
            let _ = sh_in(web, &format!("ping -c 1 -W 1 {}", lab.gateway()));
            read(&agent)
        },
        |frames| *frames > before,
    )?;
    let said = agent.end()?;
    let line = said.lines().find(|line| line.contains("by=targets"));
    // There is nothing to say of why it is attached.
    ensure(line.is_some_and(|line| !line.contains("why=")), &said)
}

fn a_reload_changes_what_is_attached() -> Result<(), Failed> {
    let lab = Lab::new(&["one", "two"])?;
    let [one, two] = [0, 1].map(|n| target(&lab.containers[n].netns));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    let write = |targets: &[&String], more: &str| -> Result<(), Failed> {
        Ok(std::fs::write(
            &file,
            format!("mode = \"mirror\"\ntargets = {targets:?}\n{more}"),
        )?)
    };
    write(&[&one], "on-exit = \"detach\"\n")?;
    let path = file.display().to_string();
    let agent = Agent::start(&lab.host, &["--no-engine", "--config", &path])?;
    let names = || -> Result<Vec<String>, Failed> {
        Ok(listed(&lab.host)?
            .into_iter()
            .map(|a| format!("{} {}", a.workload.name, a.mode))
            .collect())
    };
    same("at first", names()?, vec![format!("{one} mirror")])?;
    write(&[&one, &two], "on-exit = \"detach\"\n")?;
    agent.signal(Signal::SIGHUP)?;
    until("the second target", names, |names| names.len() == 2)?;
    write(&[&two], "on-exit = \"detach\"\n")?;
    agent.signal(Signal::SIGHUP)?;
    until("the end of the first", names, |names| {
        *names == [format!("{two} mirror")]
    })?;
    // What is wrong changes nothing, and is told with its place.
    std::fs::write(&file, "mode = \"mirror\"\ntargets = 7\n")?;
    agent.signal(Signal::SIGHUP)?;
    let check = agent.nvcli(&["agent", "--check", "--config", &path])?;
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    same("exit code of --check", check.status.code(), Some(2))?;
    ensure(told.contains("agent.toml:2:11"), told)?;
    write(&[&two], "on-exit = \"detach\"\n[capture]\nrings = 2\n")?;
    agent.signal(Signal::SIGHUP)?;
    until(
        "the reload",
        || agent.status(),
        |status| status["containers"]["attached"] == 1,
    )?;
    same("after all", names()?, vec![format!("{two} mirror")])?;
    let said = agent.end()?;
    ensure(
        said.contains("the configuration stays as it was"),
        said.clone(),
    )?;
    ensure(said.contains("[capture] changed"), said)?;
    same("left", ours(&lab.host)?, String::new())
}

/// The number of the eBPF map that a process waits for its turn with.
fn ticket_of(process: u32) -> Option<u32> {
    let files = std::fs::read_dir(format!("/proc/{process}/fdinfo")).ok()?;
    files.flatten().find_map(|file| {
        let text = std::fs::read_to_string(file.path()).ok()?;
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
    })
}

/// It says whom it waits for without drawing another ticket, behind those who came meanwhile.
fn a_command_that_waits_keeps_its_place() -> Result<(), Failed> {
    let lab = Lab::new(&[])?;
    let held = nvnet::Session::open(&lab.host).map_err(chain)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    command
        .args(["detach", "--all"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = lab.host.run(|| command.spawn())??;
    let ticket = || Ok(ticket_of(child.id()));
    let first = until("a wait", ticket, Option::is_some)?;
    let mut stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
    let mut said = String::new();
    stderr.read_line(&mut said)?;
    let own = format!("waiting for process {} (", std::process::id());
    ensure(said.contains(&own), said)?;
    same("its ticket", ticket_of(child.id()), first)?;
    drop(held);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest)?;
    ensure(child.wait()?.success(), rest)
}

/// An agent that waited in vain for another process to be done takes back all the same what is selected no longer.
fn what_others_hold_up_is_taken_back_later() -> Result<(), Failed> {
    let lab = Lab::new(&["one", "two"])?;
    let [one, two] = [0, 1].map(|n| target(&lab.containers[n].netns));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    let write = |targets: &[&String]| {
        std::fs::write(&file, format!("mode = \"mirror\"\ntargets = {targets:?}\n"))
    };
    write(&[&one])?;
    let path = file.display().to_string();
    let agent = Agent::start(&lab.host, &["--no-engine", "--config", &path])?;
    let names = || -> Result<Vec<String>, Failed> {
        let all = listed(&lab.host)?.into_iter();
        Ok(all.map(|a| a.workload.name).collect())
    };
    same("at first", names()?, vec![one])?;
    let held = nvnet::Session::open(&lab.host).map_err(chain)?;
    write(&[&two])?;
    agent.signal(Signal::SIGHUP)?;
    let ticket = || Ok(ticket_of(agent.child.id()));
    let first = until("a wait", ticket, Option::is_some)?;
    // Another ticket is drawn when the first one was given up.
    until("another try", ticket, |now| now.is_some() && *now != first)?;
    drop(held);
    until("the change", names, |names| names[..] == [two.clone()])?;
    agent.end().map(drop)
}

/// An agent of two containers that writes its records to the file told, with `more` in its configuration.
fn exporting(
    lab: &Lab,
    folder: &tempfile::TempDir,
    more: &str,
) -> Result<(Agent, PathBuf), Failed> {
    let file = folder.path().join("agent.toml");
    let exported = folder.path().join("flows.json");
    let [first, second] = [0, 1].map(|n| target(&lab.containers[n].netns));
    let text = format!(
        "targets = [{first:?}, {second:?}]\n{more}[metering]\nidle-timeout = \"1s\"\n\
         [[export]]\nkind = \"file\"\npath = {exported:?}\n"
    );
    std::fs::write(&file, text)?;
    let agent = Agent::start(
        &lab.host,
        &["--no-engine", "--config", &file.display().to_string()],
    )?;
    Ok((agent, exported))
}

fn questions_are_answered() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [web, client] = [0, 1].map(|n| lab.containers[n].netns.clone());
    let folder = tempfile::tempdir()?;
    let (agent, exported) = exporting(&lab, &folder, "[capture]\nrings = 2\n")?;
    // A listener hears every record that is made from here on.
    let mut stream = UnixStream::connect(&agent.socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /v1/flows?open=false&follow=true HTTP/1.1\r\n\r\n")?;
    let mut heard = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        heard.read_line(&mut line)?;
    }
    for _ in 0..10 {
        let mut talk = Talk::open(&web, lab.containers[0].ipv4.into(), &client)?;
        talk.say(3)?;
    }
    let paths = until(
        "the paths",
        || agent.lines("/v1/paths"),
        |paths| {
            paths
                .iter()
                .filter(|path| path["protocolIdentifier"] == 6)
                .filter_map(|path| path["connections"].as_u64())
                .sum::<u64>()
                == 10
        },
    )?;
    // Each is one connection with two ends, and nothing was lost between them.
    for path in &paths {
        same(
            "server",
            path["server"].as_str(),
            Some(target(&web).as_str()),
        )?;
        same(
            "client",
            path["client"].as_str(),
            Some(target(&client).as_str()),
        )?;
        same(
            "lost",
            [
                path["lostPackets"].clone(),
                path["reverseLostPackets"].clone(),
            ],
            [0.into(), 0.into()],
        )?;
    }
    let mut records = 0;
    while records < 20 {
        line.clear();
        ensure(heard.read_line(&mut line)? > 0, "the listener's end came")?;
        if line.trim().is_empty() {
            continue;
        }
        let record: Value = serde_json::from_str(&line)?;
        if record["protocolIdentifier"] == 6 {
            records += 1;
            ensure(
                record["workload"].is_string() && record["peerWorkload"].is_string(),
                line.clone(),
            )?;
        }
    }
    let sum = |values: &[Value], key: &str| -> u64 {
        values.iter().filter_map(|value| value[key].as_u64()).sum()
    };
    let tcp: Vec<Value> = agent
        .lines("/v1/aggregates")?
        .into_iter()
        .filter(|c| c["protocolIdentifier"] == 6)
        .collect();
    same("records added up", sum(&tcp, "records"), 20)?;
    same("opened", sum(&tcp, "opened"), 20)?;
    let attachments = agent.lines("/v1/attachments")?;
    same("attachments", attachments.len(), 2)?;
    let status = agent.status()?;
    let frames = |key: &str| status["frames"][key].as_u64().unwrap_or(u64::MAX);
    same(
        "frames",
        frames("read"),
        frames("metered") + frames("notIp") + frames("unparsed") + frames("refused"),
    )?;
    same("rings", status["rings"].clone(), 2.into())?;
    let metrics = agent.ask("/metrics")?;
    ensure(
        metrics.contains("nvcli_agent_attachments{health=\"whole\"} 2\n"),
        metrics,
    )?;
    for (request, code) in [
        ("GET /v1/nothing HTTP/1.1\r\n\r\n", "404"),
        ("POST /v1/status HTTP/1.1\r\n\r\n", "405"),
        ("GET /v1/status?x=1 HTTP/1.1\r\n\r\n", "400"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let (head, body) = agent.ask_raw(request)?;
        ensure(
            head.starts_with(&format!("HTTP/1.1 {code} ")),
            format!("{request}: {head}"),
        )?;
        ensure(
            serde_json::from_str::<Value>(&body)?["error"].is_string(),
            body,
        )?;
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&agent.socket)?.permissions());
    same("mode of the socket", mode & 0o777, 0o600)?;
    agent.end()?;
    // The stream ends with the agent, after the last record.
    let mut rest = String::new();
    heard.read_to_string(&mut rest)?;
    // And everything was exported, with the names.
    let exported = std::fs::read_to_string(&exported)?;
    let exported: Vec<Value> = exported
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let tcp: Vec<_> = exported
        .iter()
        .filter(|record| record["protocolIdentifier"] == 6)
        .collect();
    same("exported", tcp.len(), 20)?;
    ensure(
        tcp.iter().all(|record| record["peerWorkload"].is_string()),
        "without names",
    )
}

/// A run of nvcli that goes on beside the test.
struct Beside {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: JoinHandle<String>,
}

impl Beside {
    /// Starts it, and waits until it has said `ready` on standard error.
    fn start(agent: &Agent, arguments: &[&str], ready: &str) -> Result<Self, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command
            .args(arguments)
            .env("NVCLI_AGENT_SOCKET", &agent.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = agent.host.run(|| command.spawn())??;
        let mut stdout = child.stdout.take().ok_or("no stdout")?;
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let mut said = String::new();
        while !said.contains(ready) {
            if lines.read_line(&mut said)? == 0 {
                let _ = child.wait();
                return Err(format!("{arguments:?} ended, and said: {said}").into());
            }
        }
        let stderr = std::thread::spawn(move || {
            let _ = lines.read_to_string(&mut said);
            said
        });
        Ok(Self {
            child,
            stdout: Some(stdout),
            stderr,
        })
    }

    /// Ends it as Ctrl-C does, if it has not ended; gives its records and what it said.
    fn end(mut self) -> Result<(Vec<Value>, String), Failed> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        self.wait()
    }

    /// Waits until it ends by itself.
    fn wait(&mut self) -> Result<(Vec<Value>, String), Failed> {
        let status = self.child.wait()?;
        let stdout = self.stdout.take().and_then(|read| read.join().ok());
        let stderr = std::mem::replace(&mut self.stderr, std::thread::spawn(String::new));
        let said = stderr.join().unwrap_or_default();
        ensure(status.success(), format!("{status}: {said}"))?;
        let lines = stdout.unwrap_or_default();
        let records = lines.lines().map(serde_json::from_str);
        Ok((records.collect::<Result<_, _>>()?, said))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Packet sockets of a host that are handed frames by now: while a ring is made, its socket is there and not yet running.
fn rings(host: &Netns) -> Result<usize, Failed> {
    const RUNNING: usize = 5;
    let text = sh_in(host, "tail -n +2 /proc/net/packet")?;
    let is_running = |line: &&str| line.split_whitespace().nth(RUNNING) == Some("1");
    Ok(text.lines().filter(is_running).count())
}

fn flows_come_from_the_agent() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [web, client] = [0, 1].map(|n| lab.containers[n].netns.clone());
    let folder = tempfile::tempdir()?;
    let (agent, exported) = exporting(&lab, &folder, "")?;
    let tells = format!("the agent (process {}) tells", agent.child.id());
    let json = ["flows", "--output", "json", "--protocol", "tcp"];
    let with = |more: &[&'static str]| -> Vec<&'static str> { [&json[..], more].concat() };
    let name = target(&web);
    let all = Beside::start(&agent, &with(&["--count", "20"]), &tells)?;
    let of_web = [&json[..], &["--count", "10", "--container", &name]].concat();
    let of_web = Beside::start(&agent, &of_web, &tells)?;
    let watched = Beside::start(&agent, &with(&["--watch", "--interval", "100ms"]), &tells)?;
    same("rings", rings(&lab.host)?, 1)?;
    for _ in 0..10 {
        Talk::open(&web, lab.containers[0].ipv4.into(), &client)?.say(3)?;
    }
    let mut kept = Talk::open(&web, lab.containers[0].ipv4.into(), &client)?;
    // Said every now and then, so that it stays open and changes.
    let ended = |mut run: Beside| -> Result<(Vec<Value>, String), Failed> {
        until(
            "the end of a run",
            || {
                kept.say(1)?;
                Ok(run.child.try_wait()?)
            },
            Option::is_some,
        )?;
        run.wait()
    };
    let (all, of_web) = {
        let mut ended = ended;
        (ended(all)?.0, ended(of_web)?.0)
    };
    // Those that ended are what was exported, key by key.
    let ended: BTreeSet<String> = all.iter().map(Value::to_string).collect();
    let exported = || -> Result<BTreeSet<String>, Failed> {
        let text = std::fs::read_to_string(&exported)?;
        let records = text.lines().map(serde_json::from_str::<Value>);
        let records: Vec<Value> = records.collect::<Result<_, _>>()?;
        let tcp = records.iter().filter(|one| one["protocolIdentifier"] == 6);
        Ok(tcp.map(Value::to_string).collect())
    };
    until("all in the file", exported, |all| ended.is_subset(all))?;
    same("ended", ended.len(), 20)?;
    ensure(
        of_web.iter().all(|one| one["workload"] == *name) && of_web.len() == 10,
        format!("of another container: {of_web:?}"),
    )?;
    let (events, _) = watched.end()?;
    let told = |event: &str, port: Option<&Value>| -> usize {
        events
            .iter()
            .filter(|one| one["event"] == event)
            .filter(|one| port.is_none_or(|port| one["sourceTransportPort"] == *port))
            .count()
    };
    // The one that stayed open changed; what ended is told as the others were.
    let port = kept.stream.local_addr()?.port().into();
    ensure(told("update", Some(&port)) >= 2, "no change was told")?;
    same("opened", told("open", Some(&port)), 2)?;
    let last: BTreeSet<String> = events
        .iter()
        .filter(|one| one["event"] == "end" && one["flowEndReason"].is_u64())
        .map(|one| {
            let mut one = one.clone();
            drop(one.as_object_mut().and_then(|one| one.remove("event")));
            one.to_string()
        })
        .collect();
    ensure(ended.is_subset(&last), "an end is missing among the events")?;
    // A run that is ended tells what is open; the table has it too.
    let (open, said) = Beside::start(&agent, &json, &tells)?.end()?;
    let kept_open = open.iter().filter(|one| one["sourceTransportPort"] == port);
    same("still open", kept_open.count(), 2)?;
    ensure(!said.contains("missing"), said)?;
    let table = agent.nvcli(&["flows", "--duration", "100ms", "--protocol", "tcp"])?;
    let shown = String::from_utf8(table.stdout)?;
    ensure(
        shown.contains("CLIENT") && shown.contains("ESTABLISHED"),
        shown,
    )?;
    let unknown = agent.nvcli(&["flows", "--container", "nobody"])?;
    same("of nobody", unknown.status.code(), Some(1))?;
    // When the agent ends, the run does, and says so.
    let mut last = Beside::start(&agent, &json, &tells)?;
    agent.end()?;
    let (records, said) = last.wait()?;
    ensure(said.contains("has ended"), said)?;
    ensure(
        records.iter().any(|one| one["sourceTransportPort"] == port),
        "without the last records",
    )
}

fn what_an_agent_does_not_do_a_ring_does() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [web, client] = [0, 1].map(|n| lab.containers[n].netns.clone());
    let agent = Agent::start(&lab.host, &["--no-engine", "--target", &target(&web)])?;
    for (arguments, said) in [
        (&["udp port 4711"][..], "for FILTER nv-br is read beside it"),
        (&["--decap"], "for --decap nv-br is read beside it"),
        (&["--direct"], "metering;"),
    ] {
        let arguments = [&["flows", "--output", "json"], arguments].concat();
        let run = Beside::start(&agent, &arguments, said)?;
        let both = || rings(&lab.host);
        until("a second ring", both, |rings| *rings == 2)?;
        Talk::open(&web, lab.containers[0].ipv4.into(), &client)?.say(3)?;
        let (records, said) = run.end()?;
        ensure(said.contains("frames read ="), said)?;
        let tcp = records.iter().filter(|one| one["protocolIdentifier"] == 6);
        same(
            "tcp",
            tcp.count(),
            usize::from(!arguments.contains(&"udp port 4711")),
        )?;
    }
    agent.end().map(drop)
}

/// What /proc says of a thread's rights: capabilities it may have, has and hands on, no_new_privs, and filters of system calls.
#[derive(Debug, PartialEq, Eq)]
struct Rights {
    permitted: u64,
    effective: u64,
    inheritable: u64,
    has_no_new_privs: bool,
    filters: u64,
}

impl Rights {
    fn of(status: &str) -> Result<Self, Failed> {
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.map(str::trim).ok_or(format!("no {key} {status}"))
        };
        let set = |key| Ok::<_, Failed>(u64::from_str_radix(value(key)?, 16)?);
        Ok(Self {
            permitted: set("CapPrm:")?,
            effective: set("CapEff:")?,
            inheritable: set("CapInh:")?,
            has_no_new_privs: value("NoNewPrivs:")? == "1",
            filters: value("Seccomp_filters:")?.parse()?,
        })
    }
}

fn threads_have_the_rights_that_they_need() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    let exported = folder.path().join("flows.json");
    let text = format!(
        "targets = [{:?}]\n[recorder]\nsize = \"1MiB\"\n[[export]]\nkind = \"file\"\npath = {exported:?}\n\
         [[export]]\nkind = \"prometheus\"\naddress = \"127.0.0.1:0\"\n",
        target(&lab.containers[0].netns)
    );
    std::fs::write(&file, text)?;
    let agent = Agent::start(
        &lab.host,
        &["--no-engine", "--config", &file.display().to_string()],
    )?;
    // Somebody who listens, so that the thread that answers him is there too.
    let tells = format!("the agent (process {}) tells", agent.child.id());
    let listener = Beside::start(&agent, &["flows", "--output", "json"], &tells)?;
    let bits = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
    // DAC_OVERRIDE, NET_BROADCAST, NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF: include/uapi/linux/capability.h.
    let attaching = bits(&[1, 11, 12, 13, 19, 21, 38, 39]);
    let (none, override_only, raw) = (0, bits(&[1]), bits(&[13]));
    let expected: BTreeMap<&str, (u64, u64)> = [
        ("nvcli", (override_only, 2)),
        ("keeper", (attaching, 1)),
        ("ring-0", (raw, 4)),
        ("collect", (none, 4)),
        ("links", (none, 4)),
        ("api", (none, 4)),
        ("api-answer", (none, 4)),
        ("recorder", (none, 4)),
        ("export-file", (none, 4)),
        ("export-promethe", (none, 4)),
        ("metrics", (none, 4)),
    ]
    .into();
    let mut seen = BTreeSet::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", agent.child.id()))? {
        let thread = thread?.path();
        let name = std::fs::read_to_string(thread.join("comm"))?;
        let name = name.trim();
        let (capabilities, filters) = *expected
            .get(name)
            .ok_or_else(|| format!("a thread called {name}"))?;
        let rights = Rights::of(&std::fs::read_to_string(thread.join("status"))?)?;
        let wanted = Rights {
            permitted: capabilities,
            effective: capabilities,
            inheritable: 0,
            has_no_new_privs: true,
            filters,
        };
        same(&format!("rights of {name}"), rights, wanted)?;
        seen.insert(name.to_owned());
    }
    same("threads", seen.len(), expected.len())?;
    listener.end()?;
    let said = agent.end()?;
    ensure(!said.contains("given up"), said)?;
    ensure(exported.exists(), "nothing was exported")
}

/// A server of DNS that knows some names, until it is asked for one without a dot.
fn serve_names(
    netns: &Netns,
    at: IpAddr,
    names: Vec<(&'static str, IpAddr)>,
) -> Result<JoinHandle<()>, Failed> {
    let socket = netns.run(|| std::net::UdpSocket::bind((at, 53)))??;
    Ok(std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let Some(question) = query.get(12..length) else {
                continue;
            };
            let mut name = Vec::new();
            let mut rest = question;
            while let Some((&label @ 1..=63, behind)) = rest.split_first() {
                let (label, behind) = behind.split_at(usize::from(label).min(behind.len()));
                name.extend([label, b"."].concat());
                rest = behind;
            }
            let name = String::from_utf8_lossy(&name).into_owned();
            let kind = rest.get(2).copied().unwrap_or_default();
            let question = question.get(..name.len() + 5).unwrap_or(question);
            let mut answers = Vec::new();
            for (_, address) in names
                .iter()
                .filter(|(known, _)| format!("{known}.") == name)
            {
                let data = match (kind, address) {
                    (1, IpAddr::V4(v4)) => v4.octets().to_vec(),
                    (28, IpAddr::V6(v6)) => v6.octets().to_vec(),
                    _ => continue,
                };
                answers.push(
                    [
                        &[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 5, 0, data.len() as u8][..],
                        &data,
                    ]
                    .concat(),
                );
            }
            let counts = [0x81, 0x80, 0, 1, 0, answers.len() as u8, 0, 0, 0, 0];
            let response = [&query[..2], &counts, question, &answers.concat()].concat();
            let _ = socket.send_to(&response, from);
            if !name.trim_end_matches('.').contains('.') {
                return;
            }
        }
    }))
}

fn peers_have_the_names_that_were_asked_for() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [web, client] = [0, 1].map(|n| lab.containers[n].netns.clone());
    let (v4, v6) = (lab.containers[0].ipv4, lab.containers[0].ipv6);
    let gateway: IpAddr = "10.78.0.1".parse()?;
    let hostile = "bad\u{202e}name.example";
    let names = vec![
        ("www.shop.example", v4.into()),
        ("www.shop.example", v6.into()),
        ("gate.shop.example", gateway),
        (hostile, gateway),
    ];
    let server = serve_names(&web, v4.into(), names)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    let text = format!("targets = [{:?}]\n[capture]\nrings = 2\n", target(&client));
    std::fs::write(&file, text)?;
    let agent = Agent::start(
        &lab.host,
        &["--no-engine", "--config", &file.display().to_string()],
    )?;
    let ask = |name: &str| sh_in(&client, &format!("busybox nslookup '{name}' {v4}"));
    let arguments = ["flows", "--output", "json", "--protocol", "tcp"];
    let direct = [&arguments[..], &["--direct"]].concat();
    let direct = Beside::start(&agent, &direct, "metering;")?;
    until("a third ring", || rings(&lab.host), |rings| *rings == 3)?;
    // Before anybody has asked there is no name.
    let mut talks = vec![Talk::open(&web, v4.into(), &client)?];
    ask("www.shop.example")?;
    for address in [v4.into(), v6.into()] {
        for _ in 0..8 {
            talks.push(Talk::open(&web, address, &client)?);
        }
    }
    let told = ask("gate.shop.example")?;
    ensure(told.contains("10.78.0.1"), told)?;
    talks.push(Talk::open(&lab.host, gateway, &client)?);
    for talk in &mut talks {
        talk.say(2)?;
    }
    let expected = |records: &[Value]| -> Vec<Option<String>> {
        let names = talks.iter().map(|talk| {
            let port = Value::from(talk.stream.local_addr().map_or(0, |local| local.port()));
            let record = records
                .iter()
                .find(|one| one["sourceTransportPort"] == port);
            let record = record.cloned().unwrap_or_default();
            record["destinationDomain"].as_str().map(str::to_owned)
        });
        names.collect()
    };
    let mut wanted = vec![None];
    wanted.extend(vec![Some("www.shop.example".to_owned()); 16]);
    wanted.push(Some("gate.shop.example".to_owned()));
    // Also those that are metered by the ring that has not seen the answer.
    until(
        "the names",
        || agent.lines("/v1/flows"),
        |records| expected(records) == wanted,
    )?;
    let (records, _) = direct.end()?;
    same(
        "names of a ring of its own",
        expected(&records),
        wanted.clone(),
    )?;
    let by_agent = agent.nvcli(&[&arguments[..], &["--duration", "100ms"]].concat())?;
    let records = String::from_utf8(by_agent.stdout)?;
    let records = records.lines().map(serde_json::from_str::<Value>);
    let records: Vec<Value> = records.collect::<Result<_, _>>()?;
    same("names by way of the agent", expected(&records), wanted)?;
    let table = agent.nvcli(&["flows", "--duration", "100ms", "--protocol", "tcp"])?;
    let shown = String::from_utf8(table.stdout)?;
    ensure(shown.contains(" gate.shop.example:"), shown)?;
    // A name that would turn a terminal's text round comes out harmless.
    ask(hostile)?;
    let mut turned = Talk::open(&lab.host, gateway, &client)?;
    turned.say(1)?;
    until(
        "its name",
        || {
            let table = agent.nvcli(&["flows", "--duration", "100ms", "--protocol", "tcp"])?;
            Ok(String::from_utf8(table.stdout)?)
        },
        |shown| shown.contains("\\u{202e}") && !shown.contains('\u{202e}'),
    )?;
    agent.end()?;
    let _ = ask("end");
    drop(server.join());
    Ok(())
}

fn an_agent_keeps_frames() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [web, client] = [0, 1].map(|n| lab.containers[n].netns.clone());
    let folder = tempfile::tempdir()?;
    let written = folder.path().join("before.pcapng").display().to_string();
    let name = target(&web);
    let dump = |agent: &Agent| agent.nvcli(&["dump", &name, "--last", "60s", "--write", &written]);
    let agent = Agent::start(&lab.host, &["--no-engine", "--target", &name])?;
    let none = dump(&agent)?;
    same("exit code without a recorder", none.status.code(), Some(1))?;
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    ensure(said.contains("nvcli agent --keep"), said)?;
    agent.end()?;
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, "[recorder]\nsize = \"4MiB\"\nkeep-for = \"5m\"\n")?;
    let agent = Agent::start(
        &lab.host,
        &[
            "--no-engine",
            "--target",
            &name,
            "--config",
            &file.display().to_string(),
        ],
    )?;
    let mut talk = Talk::open(&web, lab.containers[0].ipv4.into(), &client)?;
    talk.say(50)?;
    let port = talk.stream.local_addr()?.port();
    // The kernel hands a block of frames on when it is due.
    let packets = || -> Result<u64, Failed> {
        let dumped = dump(&agent)?;
        let said = String::from_utf8_lossy(&dumped.stderr).into_owned();
        ensure(dumped.status.success(), said)?;
        let read = agent.nvcli(&["flows", "--read", &written, "--output", "json"])?;
        let text = String::from_utf8(read.stdout)?;
        let records = text.lines().map(serde_json::from_str::<Value>);
        let records: Vec<Value> = records.collect::<Result<_, _>>()?;
        let mine = records
            .iter()
            .filter(|one| one["sourceTransportPort"] == port);
        Ok(mine
            .filter_map(|one| one["packetDeltaCount"].as_u64())
            .sum())
    };
    until("the frames of before", packets, |packets| *packets >= 50)?;
    agent.end().map(drop)
}

/// Names of the containers that run.
fn running(engine: &Engine) -> Result<BTreeSet<String>, Failed> {
    let told = engine.sh("docker ps --format '{{.Names}}'")?;
    Ok(told.split_whitespace().map(str::to_owned).collect())
}

fn attached_names(host: &Netns) -> Result<BTreeSet<String>, Failed> {
    Ok(listed(host)?.into_iter().map(|a| a.workload.name).collect())
}

fn a_storm_while_the_engine_restarts(mode: Mode) -> Result<(), Failed> {
    const ALL: usize = 30;
    let mut engine = Engine::start(true)?;
    engine.image()?;
    let socket = engine.socket().replace("unix://", "");
    let agent = Agent::start(
        &engine.netns,
        &["--engine", &socket, "--mode", &mode.to_string()],
    )?;
    let web = "/bin/httpd -f -p 80 -h /www";
    let start = |engine: &Engine, numbers: std::ops::Range<usize>| -> Result<(), Failed> {
        let numbers: Vec<String> = numbers.map(|n| n.to_string()).collect();
        let numbers = numbers.join(" ");
        engine
            .sh(&format!(
                "for n in {numbers}; do docker run -d --name storm-$n nvt:engine {web} & done; wait"
            ))
            .map(drop)
    };
    let fetch = |engine: &Engine, name: &str| -> Result<(), Failed> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        engine.fetch(
            engine
                .sh(&format!("docker inspect -f '{format}' {name}"))?
                .trim(),
        )
    };
    let settled = |engine: &Engine| -> Result<(), Failed> {
        let running = running(engine)?;
        until(
            "everything that runs, attached",
            || attached_names(&engine.netns),
            |names| *names == running,
        )
        .map(drop)
    };
    start(&engine, 0..10)?;
    // Some go at once, some come and go in one breath.
    engine.sh(
        "docker rm -f storm-0 storm-1; docker run --rm --name brief nvt:engine /bin/sh -c true",
    )?;
    settled(&engine)?;
    for name in running(&engine)? {
        fetch(&engine, &name)?;
    }
    for round in 1..=2 {
        engine.end()?;
        engine.run()?;
        start(&engine, round * 10..round * 10 + 10)?;
        engine.sh(&format!(
            "docker rm -f storm-{round}2 storm-{round}3 & docker restart -t 0 storm-{round}4 & wait"
        ))?;
        settled(&engine)?;
        let all = running(&engine)?;
        for name in &all {
            fetch(&engine, name)?;
        }
    }
    let lived = running(&engine)?.len();
    same("that live", lived, ALL - 6)?;
    let attached = listed(&engine.netns)?;
    same("attached, each once", attached.len(), lived)?;
    let status = agent.status()?;
    same(
        "connections to the engine",
        status["engines"][0]["connects"].clone(),
        3.into(),
    )?;
    ensure(
        attached
            .iter()
            .all(|a| a.mode == mode && a.health == nvnet::Health::Whole),
        "not whole",
    )?;
    // Connections to all of them were seen, each under its container's name.
    let flows = agent.lines("/v1/flows?open=true")?;
    let aggregates = agent.lines("/v1/aggregates")?;
    let seen: BTreeSet<String> = flows
        .iter()
        .filter_map(|flow| flow["workload"].as_str())
        .chain(aggregates.iter().filter_map(|sum| sum["server"].as_str()))
        .map(str::to_owned)
        .collect();
    let missing: Vec<_> = running(&engine)?
        .into_iter()
        .filter(|name| !seen.contains(name))
        .collect();
    same("whose connections were not seen", missing, vec![])?;
    engine.sh("docker rm -f $(docker ps -aq)")?;
    until("an empty host", || ours(&engine.netns), String::is_empty)?;
    until(
        "an end of all attachments",
        || agent.status(),
        |status| status["interfacesAttached"] == 0,
    )?;
    agent.end().map(drop)
}

fn what_an_engine_tells_is_obeyed(mode: Mode) -> Result<(), Failed> {
    let engine = Engine::start(false)?;
    engine.image()?;
    let socket = engine.socket().replace("unix://", "");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    std::fs::write(
        &file,
        format!(
            "engines = [{socket:?}]\n[[rule]]\nlabel = \"watch=no\"\nattach = \"no\"\n[[rule]]\nproject = \"sh*p\"\nattach = \"{mode}\"\n"
        ),
    )?;
    let path = file.display().to_string();
    let run = |name: &str, more: &str| {
        engine.sh(&format!(
            "docker run -d --name {name} {more} nvt:engine /bin/httpd -f -p 80 -h /www"
        ))
    };
    let shop = "--label com.docker.compose.project=shop --label com.docker.compose.service=web";
    // One is there before, one comes after.
    run("early", shop)?;
    let plan = sh_in(
        &engine.netns,
        &format!(
            "{} agent --config {path} --dry-run",
            env!("CARGO_BIN_EXE_nvcli")
        ),
    )?;
    ensure(
        plan.contains("early") && plan.contains(&mode.to_string()) && plan.contains("rule 2"),
        plan,
    )?;
    same("attached by a dry run", listed(&engine.netns)?.len(), 0)?;
    let agent = Agent::start(&engine.netns, &["--config", &path])?;
    let names = || attached_names(&engine.netns);
    let set = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    same("at the start", names()?, set(&["early"]))?;
    run("late", shop)?;
    run("other", "")?;
    run("quiet", &format!("{shop} --label watch=no"))?;
    until("the late one", names, |names| {
        *names == set(&["early", "late"])
    })?;
    let state = |name: &str| -> Result<Value, Failed> {
        let all = agent.lines("/v1/containers")?;
        Ok(all
            .into_iter()
            .find(|one| one["workload"] == name)
            .unwrap_or_default())
    };
    until(
        "what is said of the quiet one",
        || state("quiet"),
        |one| one["state"] == "ignored" && one["because"] == "rule 1",
    )?;
    until(
        "what is said of the other",
        || state("other"),
        |one| one["state"] == "ignored" && one["because"] == "others",
    )?;

    let status = agent.status()?;
    ensure(
        status["engines"][0]["events"].as_u64() >= Some(3),
        format!("events heard: {}", status["engines"]),
    )?;
    // A second network, and away again.
    engine.sh("docker network create second && docker network connect second early")?;
    until(
        "the second interface",
        || listed(&engine.netns),
        |all| all.len() == 3,
    )?;
    engine.sh("docker network disconnect second early")?;
    until("its end", || listed(&engine.netns), |all| all.len() == 2)?;
    engine.sh("docker pause late")?;
    until(
        "the pause",
        || state("late"),
        |one| one["paused"] == true && one["state"] == "attached",
    )?;
    engine.sh("docker unpause late")?;
    until("its end", || state("late"), |one| one["paused"].is_null())?;
    engine.sh("docker rename late renamed")?;
    until(
        "the new name",
        || state("renamed"),
        |one| one["state"] == "attached",
    )?;
    let shown = String::from_utf8(agent.nvcli(&["list"])?.stdout)?;
    ensure(shown.contains("renamed"), shown)?;
    engine.sh("docker restart -t 0 early")?;
    until(
        "attached after a restart",
        || listed(&engine.netns),
        |all| all.len() == 2 && all.iter().all(|a| a.health == nvnet::Health::Whole),
    )?;
    engine.sh("docker rm -f early renamed other quiet")?;
    until("an empty host", || ours(&engine.netns), String::is_empty)?;
    agent.end().map(drop)
}

fn networks_of_others_are_said() -> Result<(), Failed> {
    let engine = Engine::start(false)?;
    engine.image()?;
    let socket = engine.socket().replace("unix://", "");
    let agent = Agent::start(&engine.netns, &["--engine", &socket])?;
    let run = |name: &str, network: &str| {
        engine.sh(&format!(
            "docker run -d --name {name} --network {network} nvt:engine /bin/sleep 1000"
        ))
    };
    run("owner", "bridge")?;
    run("guest", "container:owner")?;
    run("bare", "none")?;
    let states = |agent: &Agent| -> Result<BTreeMap<String, String>, Failed> {
        let all = agent.lines("/v1/containers")?;
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        Ok(all
            .iter()
            .map(|one| (text(one, "workload"), text(one, "state")))
            .collect())
    };
    let wanted: BTreeMap<String, String> = [
        ("owner", "attached"),
        ("guest", "shared"),
        ("bare", "no network"),
    ]
    .map(|(name, state)| (name.to_owned(), state.to_owned()))
    .into();
    until(
        "what is said of each",
        || states(&agent),
        |states| *states == wanted,
    )?;
    same(
        "attached",
        attached_names(&engine.netns)?,
        BTreeSet::from(["owner".to_owned()]),
    )?;
    let plan = sh_in(
        &engine.netns,
        &format!(
            "{} agent --engine {socket} --dry-run",
            env!("CARGO_BIN_EXE_nvcli")
        ),
    )?;
    ensure(plan.contains("with the network of owner"), plan)?;
    // The next agent finds what is attached, and says the same.
    agent.end()?;
    let agent = Agent::start(&engine.netns, &["--engine", &socket])?;
    let states = || states(&agent);
    same("what the next one says of each", states()?, wanted)?;
    // A network for the one that had none.
    engine.sh("docker network disconnect none bare && docker network connect bridge bare")?;
    until("its network", states, |states| states["bare"] == "attached")?;
    // The host's network is the engine's own here.
    run("hosted", "host")?;
    until("the hosted one", states, |states| {
        states
            .get("hosted")
            .is_some_and(|state| state == "host network")
    })?;
    agent.end().map(drop)
}
