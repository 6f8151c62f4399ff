//! The whole way with a real engine: containers attached, captured, metered, shown and detached, with the kernel's
//! counters, tcpdump and tshark as witnesses.

#[path = "support/beside.rs"]
mod beside;
#[path = "../../nvnet/tests/common/mod.rs"]
mod common;
mod engine;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use beside::{Beside, number, same_payload};
use common::{Need, ensure, picture, privileged, same, same_picture, sh, sh_in};
use engine::Engine;
use libtest_mimic::{Arguments, Failed};
use nvnet::Netns;
use serde_json::Value;

const ALL: &[Need] = &[
    Need::Netns,
    Need::Ebpf,
    Need::Iproute2,
    Need::Tcpdump,
    Need::Docker,
];
const WITH_TSHARK: &[Need] = &[Need::Netns, Need::Iproute2, Need::Tshark];
const MODES: [&str; 2] = ["inline", "mirror"];

/// Octets of the document that is fetched a hundred times, and of the one that is fetched once.
const DOCUMENT: usize = 12_345;
const LARGE: usize = 200 << 20;

fn main() {
    let mut trials = Vec::new();
    for mode in MODES {
        let mut add = |name: &str, test: fn(&str) -> Result<(), Failed>| {
            trials.push(privileged(format!("{name}::{mode}"), ALL, move || {
                test(mode)
            }));
        };
        add(
            "a_hundred_requests_are_a_hundred_records",
            a_hundred_requests_are_a_hundred_records,
        );
        add(
            "ping_and_udp_and_ipv6_are_metered",
            ping_and_udp_and_ipv6_are_metered,
        );
        add(
            "a_large_transfer_is_counted_to_the_octet",
            a_large_transfer_is_counted_to_the_octet,
        );
        add(
            "both_sides_are_seen_and_named",
            both_sides_are_seen_and_named,
        );
        add(
            "a_download_outlives_attach_and_detach",
            a_download_outlives_attach_and_detach,
        );
        add(
            "stop_and_restart_leave_nothing",
            stop_and_restart_leave_nothing,
        );
        add("a_capture_opens_elsewhere", a_capture_opens_elsewhere);
        add(
            "a_paused_container_stays_attached",
            a_paused_container_stays_attached,
        );
        add("networks_come_and_go", networks_come_and_go);
        add(
            "a_renamed_container_is_not_taken_for_another",
            a_renamed_container_is_not_taken_for_another,
        );
        add(
            "an_engine_that_restarts_finds_all_as_it_was",
            an_engine_that_restarts_finds_all_as_it_was,
        );
        add(
            "an_engine_that_ends_its_containers_leaves_nothing",
            an_engine_that_ends_its_containers_leaves_nothing,
        );
    }
    trials.push(privileged(
        "a_port_deleted_by_hand_is_brought_back",
        ALL,
        a_port_deleted_by_hand_is_brought_back,
    ));
    trials.push(privileged(
        "bad_targets_are_told_in_a_line",
        ALL,
        bad_targets_are_told_in_a_line,
    ));
    trials.push(privileged(
        "names_are_shown_that_an_engine_lets_through",
        ALL,
        names_are_shown_that_an_engine_lets_through,
    ));
    trials.push(privileged(
        "files_agree_with_tshark",
        WITH_TSHARK,
        files_agree_with_tshark,
    ));
    let mut arguments = Arguments::from_args();
    // One bridge nv-br and one set of counters: the tests take turns.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// Two containers on a network of their own; everything goes when it is dropped.
struct Pair {
    prefix: String,
    directory: tempfile::TempDir,
}

impl Pair {
    fn new() -> Result<Self, Failed> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("nvt{}-{number}", std::process::id());
        let pair = Self {
            directory: tempfile::tempdir()?,
            prefix,
        };
        let (root, prefix) = (pair.directory.path().display(), &pair.prefix);
        sh(&format!(
            "set -e
             mkdir -p {root}/image/bin {root}/image/www
             cp $(command -v busybox) {root}/image/bin/busybox
             for applet in sh httpd wget nc ping cat sleep dd; do ln -s busybox {root}/image/bin/$applet; done
             head -c {DOCUMENT} /dev/zero | tr '\\0' x > {root}/image/www/doc
             tar -C {root}/image -c . | docker import - {prefix}:test
             docker network create --ipv6 --subnet fd4e:6576:{number:x}::/64 {prefix}
             docker run -d --network {prefix} --name {prefix}-web {prefix}:test /bin/httpd -f -p 80 -h /www
             docker run -d --network {prefix} --name {prefix}-client {prefix}:test /bin/sleep 3600"
        ))?;
        // The link-local addresses are being asked about for a second: a picture taken now would not stay true.
        for container in [pair.web(), pair.client()] {
            sh_in(
                &pair.netns(&container)?,
                "timeout 20 sh -c 'while ip addr | grep -q tentative; do :; done'",
            )?;
        }
        Ok(pair)
    }

    fn web(&self) -> String {
        format!("{}-web", self.prefix)
    }

    fn client(&self) -> String {
        format!("{}-client", self.prefix)
    }

    fn addresses(&self, container: &str) -> Result<(IpAddr, IpAddr), Failed> {
        let format =
            "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}";
        let told = sh(&format!("docker inspect -f '{format}' {container}"))?;
        let mut addresses = told.split_whitespace();
        let mut next =
            || -> Result<IpAddr, Failed> { Ok(addresses.next().ok_or("no address")?.parse()?) };
        Ok((next()?, next()?))
    }

    fn netns(&self, container: &str) -> Result<Netns, Failed> {
        let pid = sh(&format!(
            "docker inspect -f '{{{{.State.Pid}}}}' {container}"
        ))?;
        Ok(Netns::of_pid(pid.trim().parse()?)?)
    }

    /// Frames and octets that the host end of a container's veth pair counted, both ways.
    fn counted(&self, container: &str) -> Result<(u64, u64), Failed> {
        let inside = nvnet::links(&self.netns(container)?)?;
        // The container's own interface, whatever it is called at the moment.
        let own = inside
            .iter()
            .find(|l| l.name == "nv-ex-eth0")
            .or(inside.iter().find(|l| l.name == "eth0"));
        let end = own.and_then(|own| own.link).ok_or("no interface")?;
        let host = nvnet::links(&Netns::current()?)?;
        let stats = host
            .iter()
            .find(|link| link.index == end)
            .ok_or("no host end")?
            .stats;
        Ok((
            stats.rx_packets + stats.tx_packets,
            stats.rx_bytes + stats.tx_bytes,
        ))
    }

    /// The same once it has stood still for a while.
    fn settled(&self, container: &str) -> Result<(u64, u64), Failed> {
        let mut last = self.counted(container)?;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.counted(container)?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        Err("the container is never quiet".into())
    }

    fn fetch(&self, address: IpAddr, document: &str, times: usize) -> Result<(), Failed> {
        let url = format!("http://{}/{document}", SocketAddr::new(address, 80));
        sh(&format!(
            "docker exec {} sh -c 'i=0; while [ $i -lt {times} ]; do wget -q -O /dev/null {url} || exit 1; i=$((i+1)); done'",
            self.client()
        ))
        .map(drop)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let prefix = &self.prefix;
        let _ = nvcli(&["detach", "--all"]);
        let _ = sh(&format!(
            "docker rm -f {prefix}-web {prefix}-client; docker network rm {prefix}; docker rmi {prefix}:test"
        ));
    }
}

fn nvcli(arguments: &[&str]) -> Result<Output, Failed> {
    Ok(Command::new(env!("CARGO_BIN_EXE_nvcli"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

/// Runs nvcli, which has to succeed, and gives what it printed.
fn done(arguments: &[&str]) -> Result<String, Failed> {
    let output = nvcli(arguments)?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure(
        output.status.success(),
        format!("nvcli {arguments:?}: {told}"),
    )?;
    Ok(String::from_utf8(output.stdout)?)
}

/// What `nvcli flows` told of a run, beside what the witnesses counted.
#[derive(Debug)]
struct Metered {
    records: Vec<Value>,
    read: u64,
    metered: u64,
    not_ip: u64,
    octets: u64,
    /// On the wire: those that super-frames stand for.
    packets: u64,
    /// By the container's veth.
    counted: (u64, u64),
    /// By tcpdump on nv-br.
    dumped: u64,
}

/// Runs `traffic` while nvcli meters and tcpdump listens, and holds both against the counters of `container`'s veth.
/// What the kernel sends by itself at the edges would be in one count and not in the other: then it is done again.
fn meter(
    pair: &Pair,
    container: &str,
    output: &[&str],
    traffic: impl Fn() -> Result<(), Failed>,
) -> Result<Metered, Failed> {
    for _ in 0..5 {
        let file = pair.directory.path().join("nv-br.pcap");
        let before = pair.settled(container)?;
        let mut flows = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        flows.args(["flows", "--output", "json"]).args(output);
        let flows = Beside::start(flows, "metering")?;
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args([
                "-i",
                "nv-br",
                "-n",
                "-s",
                "128",
                "-B",
                "65536",
                "--immediate-mode",
                "-U",
                "-w",
            ])
            .arg(&file);
        let tcpdump = Beside::start(tcpdump, "listening on nv-br")?;
        if pair.counted(container)? != before {
            continue;
        }
        traffic()?;
        let after = pair.settled(container)?;
        let (out, err) = flows.end()?;
        let (_, dumped) = tcpdump.end()?;
        if pair.counted(container)? != after {
            continue;
        }
        let records = out
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()?;
        ensure(number(&err, "dropped by the kernel")? == 0, err.clone())?;
        ensure(
            number(&dumped, "packets dropped by kernel")? == 0,
            dumped.clone(),
        )?;
        let metered = Metered {
            records,
            read: number(&err, "frames read")?,
            metered: number(&err, "metered")?,
            not_ip: number(&err, "not IP")?,
            octets: number(&err, "octets on the wire")?,
            packets: match err.contains("packets counted") {
                true => number(&err, "packets counted")?,
                false => number(&err, "metered")?,
            },
            counted: (after.0 - before.0, after.1 - before.1),
            dumped: number(&dumped, "packets captured")?,
        };
        return Ok(metered);
    }
    Err("the container is never quiet at the edges".into())
}

impl Metered {
    fn sum(&self, keys: [&str; 2]) -> u64 {
        let of = |record: &Value| {
            keys.iter()
                .filter_map(|key| record[*key].as_u64())
                .sum::<u64>()
        };
        self.records.iter().map(of).sum()
    }

    /// All three counts are the same, of frames and of octets; `sides` is how many attached containers saw each frame.
    fn agrees(&self, sides: u64) -> Result<(), Failed> {
        let Self {
            records,
            read,
            metered,
            not_ip,
            octets,
            packets,
            counted,
            dumped,
        } = self;
        let context = |what: &str| {
            format!(
                "{what} ({} records, read {read}, metered {metered}, packets {packets}, not IP {not_ip}, octets {octets}, counted \
                 {counted:?}, dumped {dumped})",
                records.len()
            )
        };
        same(
            &context("frames on the veth and read"),
            self.counted.0 * sides,
            self.read,
        )?;
        same(
            &context("octets on the veth and read"),
            self.counted.1 * sides,
            self.octets,
        )?;
        same(
            &context("frames by tcpdump and read"),
            self.dumped,
            self.read,
        )?;
        same(
            &context("frames metered and not IP"),
            self.metered + self.not_ip,
            self.read,
        )?;
        same(
            &context("packets in records"),
            self.sum(["packetDeltaCount", "reversePacketDeltaCount"]),
            self.packets,
        )?;
        // What is not IP here is ARP, 42 octets a frame. A super-frame has one head for all its packets: Ethernet, IP and TCP with
        // time stamps. No test has them of both families.
        let is_ipv6 = |r: &Value| r["protocolIdentifier"] == 6 && !r["sourceIPv6Address"].is_null();
        let head = if self.records.iter().any(is_ipv6) {
            86
        } else {
            66
        };
        let octets = self.sum(["layer2OctetDeltaCount", "reverseLayer2OctetDeltaCount"]);
        same(
            &context("octets in records"),
            octets + 42 * self.not_ip,
            self.octets + head * (self.packets - self.metered),
        )
    }

    fn of(&self, protocol: u64, port: Option<u64>) -> Vec<&Value> {
        let protocol = |r: &&Value| r["protocolIdentifier"] == protocol;
        let port = |r: &&Value| port.is_none_or(|port| r["destinationTransportPort"] == port);
        self.records.iter().filter(protocol).filter(port).collect()
    }
}

fn a_hundred_requests_are_a_hundred_records(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, client) = (pair.web(), pair.client());
    let netns = pair.netns(&web)?;
    let before = (picture(&Netns::current()?)?, picture(&netns)?);
    let shown = done(&["attach", &web, "--mode", mode])?;
    ensure(shown.contains(&web) && shown.contains("eth0"), shown)?;
    for address in [pair.addresses(&web)?.0, pair.addresses(&web)?.1] {
        // The whole answer, as a client counts it that is not ours.
        let request = format!(
            "printf \"GET /doc HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n\" | nc {address} 80"
        );
        let answer: usize = sh(&format!("docker exec {client} sh -c '{request}' | wc -c"))?
            .trim()
            .parse()?;
        ensure(answer > DOCUMENT, format!("an answer of {answer} octets"))?;
        let metered = meter(&pair, &web, &["--container", &web], || {
            pair.fetch(address, "doc", 100)
        })?;
        metered.agrees(1)?;
        let http = metered.of(6, Some(80));
        same("connections", http.len(), 100)?;
        for record in http {
            same("end reason", &record["flowEndReason"], &Value::from(3))?;
            same_payload(record, "responderOctets", answer as u64)?;
            same("workload", &record["workload"], &Value::from(web.as_str()))?;
            same("interface", &record["interface"], &Value::from("eth0"))?;
            let (source, key) = match address {
                IpAddr::V4(_) => (pair.addresses(&client)?.0, "sourceIPv4Address"),
                IpAddr::V6(_) => (pair.addresses(&client)?.1, "sourceIPv6Address"),
            };
            same("initiator", &record[key], &Value::from(source.to_string()))?;
        }
    }
    done(&["detach", &web])?;
    same_picture("the container", &before.1, &picture(&netns)?)?;
    let links = |picture: &str| {
        picture
            .lines()
            .filter(|line| line.contains("nv-"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    same(
        "links and filters of ours on the host",
        links(&picture(&Netns::current()?)?),
        links(&before.0),
    )
}

fn ping_and_udp_and_ipv6_are_metered(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, client) = (pair.web(), pair.client());
    done(&["attach", &web, "--mode", mode])?;
    let (v4, v6) = pair.addresses(&web)?;
    let (inside, outside) = (pair.netns(&web)?, pair.netns(&client)?);
    for (address, icmp) in [(v4, 1), (v6, 58)] {
        let metered = meter(&pair, &web, &[], || {
            sh(&format!("docker exec {client} ping -c 3 {address}"))?;
            let server = inside.run(|| UdpSocket::bind(SocketAddr::new(address, 5353)))??;
            let any = if address.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = outside.run(|| UdpSocket::bind(any))??;
            for (sent, answer) in [(&b"one"[..], &b"first answer"[..]), (b"two", b"second")] {
                let mut buffer = [0; 64];
                socket.send_to(sent, server.local_addr()?)?;
                let (_, from) = server.recv_from(&mut buffer)?;
                server.send_to(answer, from)?;
                socket.recv_from(&mut buffer)?;
            }
            Ok(())
        })?;
        metered.agrees(1)?;
        let udp = metered.of(17, Some(5353));
        same("UDP connections", udp.len(), 1)?;
        let counts = [
            "packetDeltaCount",
            "reversePacketDeltaCount",
            "initiatorOctets",
            "responderOctets",
        ];
        same(
            "UDP",
            counts.map(|key| udp[0][key].as_u64()),
            [2, 2, 6, 18].map(Some),
        )?;
        let echoes = |record: &&&Value| {
            record["packetDeltaCount"] == 3 && record["reversePacketDeltaCount"] == 3
        };
        same(
            "pings",
            metered.of(icmp, None).iter().filter(echoes).count(),
            1,
        )?;
    }
    Ok(())
}

fn a_large_transfer_is_counted_to_the_octet(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, client) = (pair.web(), pair.client());
    sh(&format!(
        "docker exec {web} dd if=/dev/zero of=/www/large bs=1M count={}",
        LARGE >> 20
    ))?;
    done(&["attach", &web, "--mode", mode])?;
    let address = pair.addresses(&web)?.0;
    let metered = meter(&pair, &web, &[], || pair.fetch(address, "large", 1))?;
    metered.agrees(1)?;
    let http = metered.of(6, Some(80));
    same("connections", http.len(), 1)?;
    let octets = http[0]["responderOctets"].as_u64().unwrap_or_default();
    let again = http[0]["reverseRetransmittedSegments"]
        .as_u64()
        .unwrap_or_default();
    // A response's head is some hundred octets; what was sent again is on the wire twice.
    let head = octets.saturating_sub(LARGE as u64);
    ensure(
        (1..2000).contains(&head) || again > 0,
        format!("{octets} octets, {again} sent again"),
    )?;
    ensure(octets >= LARGE as u64, format!("{octets} octets"))?;
    same("end reason", &http[0]["flowEndReason"], &Value::from(3))?;
    // With offloads on, frames are larger than the MTU: far fewer than one for every 1,448 octets. What is counted are packets.
    let packets = http[0]["reversePacketDeltaCount"]
        .as_u64()
        .unwrap_or_default();
    ensure(
        metered.read < octets / 1448 && packets >= octets.div_ceil(1448),
        format!("{metered:?}: offloads were switched off, or super-frames counted as packets"),
    )?;
    same(
        "the client is untouched",
        sh_in(&pair.netns(&client)?, "ip -o link | grep nv- | cat")?,
        String::new(),
    )
}

fn both_sides_are_seen_and_named(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, client) = (pair.web(), pair.client());
    done(&["attach", &web, &client, "--mode", mode])?;
    let listed: Vec<Value> = done(&["list", "--output", "json"])?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    same("attached", listed.len(), 2)?;
    let address = pair.addresses(&web)?.0;
    let metered = meter(&pair, &web, &[], || pair.fetch(address, "doc", 10))?;
    let http = metered.of(6, Some(80));
    for (workload, peer) in [(&web, &client), (&client, &web)] {
        let side: Vec<_> = http
            .iter()
            .filter(|r| r["workload"] == workload.as_str())
            .collect();
        same(&format!("connections seen by {workload}"), side.len(), 10)?;
        for record in side {
            same("peer", &record["peerWorkload"], &Value::from(peer.as_str()))?;
            same("end reason", &record["flowEndReason"], &Value::from(3))?;
        }
    }
    same("connections", http.len(), 20)?;
    let only = meter(&pair, &web, &["--container", &client], || {
        pair.fetch(address, "doc", 10)
    })?;
    same("of one container", only.of(6, Some(80)).len(), 10)
}

fn a_download_outlives_attach_and_detach(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, client) = (pair.web(), pair.client());
    let (inside, outside) = (pair.netns(&web)?, pair.netns(&client)?);
    for address in [pair.addresses(&web)?.0, pair.addresses(&web)?.1] {
        let listener = inside.run(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
        let to = listener.local_addr()?;
        let mut near = outside.run(|| TcpStream::connect(to))??;
        let (mut far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        }
        let echo = std::thread::spawn(move || -> std::io::Result<u64> {
            let mut copy = far.try_clone()?;
            std::io::copy(&mut far, &mut copy)
        });
        let mut sent = 0_u64;
        let mut round = |near: &mut TcpStream| -> Result<(), Failed> {
            let text = format!("round {sent}").repeat(500);
            near.write_all(text.as_bytes())?;
            let mut back = vec![0; text.len()];
            near.read_exact(&mut back)?;
            sent += text.len() as u64;
            ensure(
                back == text.as_bytes(),
                "what came back is not what was sent",
            )
        };
        for _ in 0..3 {
            round(&mut near)?;
            done(&["attach", &web, "--mode", mode])?;
            round(&mut near)?;
            done(&["detach", &web])?;
            round(&mut near)?;
        }
        near.shutdown(std::net::Shutdown::Write)?;
        same("octets echoed", echo.join().expect("no panic")?, sent)?;
    }
    Ok(())
}

fn stop_and_restart_leave_nothing(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let web = pair.web();
    for command in ["restart -t 1", "stop -t 1", "start", "kill", "start"] {
        if command != "start" {
            done(&["attach", &web, "--mode", mode])?;
        }
        sh(&format!("docker {command} {web}"))?;
        if command != "start" {
            same(
                "attached after it",
                done(&["list", "--output", "json"])?,
                String::new(),
            )?;
        }
    }
    pair.fetch(pair.addresses(&web)?.0, "doc", 1)?;
    done(&["attach", &web, "--mode", mode])?;
    pair.fetch(pair.addresses(&web)?.0, "doc", 1)?;
    sh(&format!("docker network disconnect {} {web}", pair.prefix))?;
    done(&["repair"])?;
    same(
        "links of ours",
        sh("ip -o link show | grep nv- | cat")?,
        String::new(),
    )?;
    same("left inside", &interfaces(&pair, &web)?[..], "")?;
    sh(&format!("docker network connect {} {web}", pair.prefix))?;
    pair.fetch(pair.addresses(&web)?.0, "doc", 1)
}

/// The interfaces inside a container but its loopback, each with a blank behind it.
fn interfaces(pair: &Pair, container: &str) -> Result<String, Failed> {
    sh_in(
        &pair.netns(container)?,
        "ip -o link show | sed -nE '/LOOPBACK/d; s/^[0-9]+: ([^:@]+)[:@].*/\\1/p' | tr '\\n' ' '",
    )
}

fn attached() -> Result<Vec<Value>, Failed> {
    let listed = done(&["list", "--output", "json"])?;
    Ok(listed
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?)
}

/// The interfaces that are attached, all of them whole.
fn whole() -> Result<Vec<String>, Failed> {
    attached()?
        .iter()
        .map(|one| {
            same("health", &one["health"], &Value::from("whole"))?;
            Ok(one["interface"].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

/// Links and filters of ours that are still on the host.
fn leftovers() -> Result<(), Failed> {
    same(
        "left on the host",
        sh(
            "{ ip -d link show; for l in $(ls /sys/class/net); do tc filter show dev $l ingress; done; } 2>/dev/null \
            | grep -E 'nv-|nvcli' | cat",
        )?,
        String::new(),
    )
}

fn a_paused_container_stays_attached(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let web = pair.web();
    let address = pair.addresses(&web)?.0;
    let before = picture(&pair.netns(&web)?)?;
    let eth0 = vec!["eth0".to_owned()];
    done(&["attach", &web, "--mode", mode])?;
    sh(&format!("docker pause {web}"))?;
    same("while paused", whole()?, eth0.clone())?;
    sh(&format!("docker unpause {web}"))?;
    pair.fetch(address, "doc", 3)?;
    same("after it", whole()?, eth0.clone())?;
    // Its network does not sleep: it can be put back, and attached, meanwhile.
    sh(&format!("docker pause {web}"))?;
    done(&["detach", &web])?;
    same_picture("paused", &before, &picture(&pair.netns(&web)?)?)?;
    done(&["attach", &web, "--mode", mode])?;
    sh(&format!("docker unpause {web}"))?;
    pair.fetch(address, "doc", 3)?;
    same("attached while paused", whole()?, eth0)?;
    sh(&format!("docker rm -f {web}"))?;
    same("after its end", attached()?.len(), 0)?;
    let refused = nvcli(&["detach", &web])?;
    same("exit code", refused.status.code(), Some(1))?;
    done(&["repair"])?;
    leftovers()
}

fn networks_come_and_go(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let web = pair.web();
    let second = format!("{}-second", pair.prefix);
    let address = pair.addresses(&web)?.0;
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let tried = (|| {
        sh(&format!("docker network create {second}"))?;
        done(&["attach", &web, "--mode", mode])?;
        // One comes while the first is attached.
        sh(&format!("docker network connect {second} {web}"))?;
        same("attached", whole()?, names(&["eth0"]))?;
        pair.fetch(address, "doc", 1)?;
        done(&["attach", &web, "--mode", mode, "--interface", "eth1"])?;
        same("attached", whole()?, names(&["eth0", "eth1"]))?;
        pair.fetch(address, "doc", 1)?;
        // It goes while it is attached, and the first stays.
        sh(&format!("docker network disconnect {second} {web}"))?;
        done(&["repair"])?;
        same("attached", whole()?, names(&["eth0"]))?;
        pair.fetch(address, "doc", 1)?;
        // Inline the engine finds ours under the name and takes that away; repair asks it, and does it to its own.
        let ours = if mode == "inline" {
            "eth0 nv-ex-eth0"
        } else {
            "eth0"
        };
        let inside = interfaces(&pair, &web)?;
        let mut inside: Vec<&str> = inside.split_whitespace().collect();
        inside.sort_unstable();
        same("inside", inside.join(" "), ours.to_owned())?;
        // And comes again.
        sh(&format!("docker network connect {second} {web}"))?;
        let addresses = "ip -o -4 addr show | awk '$2 ~ /^eth/ && $2 != \"eth0\" {print $2}'";
        let name = sh_in(&pair.netns(&web)?, addresses)?;
        let name = name.trim();
        done(&["attach", &web, "--mode", mode, "--interface", name])?;
        same("attached", whole()?, names(&["eth0", name]))?;
        done(&["detach", &web])?;
        pair.fetch(address, "doc", 1)?;
        sh(&format!("docker network disconnect {second} {web}"))?;
        sh(&format!("docker restart -t 1 {web}"))?;
        pair.fetch(pair.addresses(&web)?.0, "doc", 1)?;
        leftovers()
    })();
    let _ = sh(&format!(
        "docker network disconnect -f {second} {web}; docker network rm {second}"
    ));
    tried
}

/// A container is put aside under another name, and a new one takes its name.
fn a_renamed_container_is_not_taken_for_another(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, old) = (pair.web(), format!("{}-old", pair.web()));
    let tried = (|| {
        done(&["attach", &web, "--mode", mode])?;
        let address = pair.addresses(&web)?.0;
        sh(&format!(
            "docker rename {web} {old} && docker run -d --network {0} --name {web} {0}:test /bin/httpd -f -p 80 -h /www",
            pair.prefix
        ))?;
        let names = || -> Result<Vec<String>, Failed> {
            let name = |one: &Value| one["workload"].as_str().unwrap_or_default().to_owned();
            Ok(attached()?.iter().map(name).collect())
        };
        same("attached", names()?, vec![old.clone()])?;
        let refused = nvcli(&["detach", &web])?;
        same("exit code", refused.status.code(), Some(1))?;
        let refused = nvcli(&["flows", "--container", &web, "--duration", "1s"])?;
        same("exit code", refused.status.code(), Some(1))?;
        // Both attached: each under the name it has now.
        done(&["attach", &web, "--mode", mode])?;
        same("attached", names()?, vec![old.clone(), web.clone()])?;
        let mut flows = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        flows.args(["flows", "--output", "json"]);
        let flows = Beside::start(flows, "metering")?;
        pair.fetch(address, "doc", 1)?;
        pair.fetch(pair.addresses(&web)?.0, "doc", 1)?;
        let (records, _) = flows.end()?;
        for (of, name) in [(address, &old), (pair.addresses(&web)?.0, &web)] {
            let served = records
                .lines()
                .map(serde_json::from_str::<Value>)
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .filter(|r| {
                    r["destinationIPv4Address"] == of.to_string()
                        && r["destinationTransportPort"] == 80
                })
                .map(|r| r["workload"].clone())
                .collect::<Vec<_>>();
            same("workload", served, vec![Value::from(name.as_str())])?;
        }
        done(&["detach", &old])?;
        same("attached", names()?, vec![web.clone()])?;
        pair.fetch(address, "doc", 1)
    })();
    let _ = sh(&format!("docker rm -f {old}"));
    tried
}

fn a_port_deleted_by_hand_is_brought_back() -> Result<(), Failed> {
    let pair = Pair::new()?;
    let web = pair.web();
    let netns = pair.netns(&web)?;
    let before = picture(&netns)?;
    done(&["attach", &web])?;
    sh("ip link delete nv-in-0001")?;
    let (v4, v6) = pair.addresses(&web)?;
    ensure(
        pair.fetch(v4, "doc", 1).is_err(),
        "it is no test: it is still reached",
    )?;
    let repaired = done(&["repair"])?;
    ensure(
        repaired.contains("eth0 is back, with its addresses"),
        repaired,
    )?;
    same_picture("web", &before, &picture(&netns)?)?;
    for address in [v4, v6] {
        pair.fetch(address, "doc", 1)?;
    }
    leftovers()
}

/// Live restore: the containers go on while the engine is away.
fn an_engine_that_restarts_finds_all_as_it_was(mode: &str) -> Result<(), Failed> {
    let mut engine = Engine::start(true)?;
    let address = engine.serve()?;
    engine.nvcli(&format!("attach web --mode {mode}"))?;
    let before = engine.listed()?;
    ensure(before.contains("\"health\":\"whole\""), before.clone())?;
    engine.end()?;
    engine.fetch(&address)?;
    same("listed without an engine", engine.listed()?, before.clone())?;
    // By name too: the kernel knows it.
    engine.nvcli("detach web")?;
    engine.fetch(&address)?;
    engine.run()?;
    engine.fetch(&address)?;
    engine.nvcli(&format!("attach web --mode {mode}"))?;
    engine.end()?;
    engine.run()?;
    same("listed after a restart", engine.listed()?, before)?;
    engine.fetch(&address)?;
    // Killed, it tells nobody.
    engine.kill()?;
    engine.fetch(&address)?;
    let killed = engine.listed()?;
    same("listed after its death", killed.lines().count(), 1)?;
    engine.run()?;
    engine.fetch(&address)?;
    engine.nvcli("detach web")?;
    engine.fetch(&address)?;
    engine.nvcli(&format!("attach web --mode {mode}"))?;
    engine.sh("docker restart -t 1 web")?;
    same(
        "listed after the container's",
        engine.listed()?,
        String::new(),
    )?;
    engine.fetch(&engine.address()?)?;
    engine.nvcli(&format!("attach web --mode {mode}"))?;
    engine.fetch(&engine.address()?)?;
    engine.sh("docker rm -f web")?;
    engine.nvcli("repair")?;
    same(
        "left",
        engine.sh("ip -o link show | grep nv- | cat")?,
        String::new(),
    )
}

fn an_engine_that_ends_its_containers_leaves_nothing(mode: &str) -> Result<(), Failed> {
    let mut engine = Engine::start(false)?;
    engine.serve()?;
    engine.nvcli(&format!("attach web --mode {mode}"))?;
    engine.end()?;
    same("listed", engine.listed()?, String::new())?;
    engine.run()?;
    engine.sh("docker start web")?;
    engine.fetch(&engine.address()?)?;
    let again = engine.nvcli(&format!("attach web --mode {mode} --output json"))?;
    ensure(
        again.contains("\"id\":\"0001\""),
        format!("a stale id: {again}"),
    )?;
    engine.fetch(&engine.address()?)?;
    engine.nvcli("detach --all")?;
    engine.fetch(&engine.address()?)?;
    same(
        "left",
        engine.sh("ip -o link show | grep nv- | cat")?,
        String::new(),
    )
}

fn a_capture_opens_elsewhere(mode: &str) -> Result<(), Failed> {
    let pair = Pair::new()?;
    let web = pair.web();
    done(&["attach", &web, "--mode", mode])?;
    let file = pair.directory.path().join("web.pcapng");
    let mut capture = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    capture.args(["capture", &web, "-w"]).arg(&file);
    let capture = Beside::start(capture, "captur")?;
    pair.fetch(pair.addresses(&web)?.0, "doc", 5)?;
    pair.settled(&web)?;
    capture.end()?;
    let read = sh(&format!("tcpdump -e -n -r {} 2>&1", file.display()))?;
    let own = sh_in(
        &pair.netns(&web)?,
        "ip -o link show dev eth0 | sed -E 's/.*ether ([0-9a-f:]+).*/\\1/'",
    )?;
    ensure(
        read.contains(own.trim()),
        format!("without the container's own address {own}: {read}"),
    )?;
    ensure(
        !read.contains("4e:65:75:56"),
        format!("marks were left in the frames: {read}"),
    )?;
    let records = done(&[
        "flows",
        "--read",
        &file.display().to_string(),
        "--output",
        "json",
    ])?;
    let records: Vec<Value> = records
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    same(
        "connections",
        records
            .iter()
            .filter(|r| r["destinationTransportPort"] == 80)
            .count(),
        5,
    )
}

fn bad_targets_are_told_in_a_line(/* all that an operator can get wrong with an engine */)
 -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (web, prefix) = (pair.web(), &pair.prefix);
    let image = format!("{prefix}:test");
    sh(&format!(
        "set -e
         docker create --name {prefix}-stopped {image} /bin/sleep 100
         docker run -d --network host --name {prefix}-host {image} /bin/sleep 100
         docker run -d --network none --name {prefix}-none {image} /bin/sleep 100
         docker run -d --network container:{web} --name {prefix}-shared {image} /bin/sleep 100"
    ))?;
    let checked = (|| {
        let refused = |arguments: &[&str], code: i32, words: &[&str]| -> Result<(), Failed> {
            let output = nvcli(arguments)?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            same(
                &format!("exit code of {arguments:?}: {told}"),
                output.status.code(),
                Some(code),
            )?;
            ensure(
                told.lines().any(|line| line.starts_with("error: ")),
                told.clone(),
            )?;
            ensure(
                told.contains("try: "),
                format!("{arguments:?} says not what to do: {told}"),
            )?;
            words.iter().try_for_each(|word| {
                ensure(told.contains(word), format!("without `{word}`: {told}"))
            })
        };
        refused(&["attach", "no-such-container"], 1, &["no-such-container"])?;
        refused(
            &["attach", &format!("{prefix}-stopped")],
            1,
            &["docker start"],
        )?;
        refused(&["attach", &format!("{prefix}-host")], 1, &["host"])?;
        refused(&["attach", &format!("{prefix}-none")], 1, &["none"])?;
        refused(
            &["attach", &web, "--interface", "eth7"],
            1,
            &["eth7", "eth0"],
        )?;
        refused(
            &["attach", &web, "--interface", "an-impossible-name"],
            1,
            &["15 octets"],
        )?;
        refused(&["flows", "--duration", "1s"], 1, &["attach"])?;
        refused(&["capture", &web, "-w", "/dev/null"], 1, &["attach"])?;
        refused(&["detach", &web], 1, &["not attached"])?;
        done(&["attach", &web])?;
        refused(&["attach", &web], 1, &["already"])?;
        // It has no network of its own: what it shares is attached already, as its owner's.
        let shared = format!("{prefix}-shared");
        refused(&["attach", &shared], 1, &[&web])?;
        for arguments in [
            &["detach", &shared][..],
            &["capture", &shared, "-w", "/dev/null"],
            &["flows", "--container", &shared],
        ] {
            refused(arguments, 1, &[&format!("name {web} instead")])?;
        }
        // By its whole id as well, of which the kernel has the beginning.
        let id = sh(&format!("docker inspect --format '{{{{.Id}}}}' {web}"))?;
        for arguments in [
            &["flows", "--duration", "1ms", "--container", id.trim()][..],
            &["detach", id.trim()],
            &["attach", id.trim()],
        ] {
            done(arguments)?;
        }
        done(&["detach", "--all"])?;
        same(
            "links of ours",
            sh("ip -o link show | grep nv- | cat")?,
            String::new(),
        )
    })();
    let _ = sh(&format!(
        "docker rm -f {prefix}-stopped {prefix}-host {prefix}-none {prefix}-shared"
    ));
    checked
}

/// A name with an escape sequence is refused by the engine; one of 200 letters is not, and what stands in labels is nobody's business.
fn names_are_shown_that_an_engine_lets_through() -> Result<(), Failed> {
    let pair = Pair::new()?;
    let (prefix, image) = (&pair.prefix, format!("{}:test", pair.prefix));
    let hostile = sh("printf 'w\\033[2Jx'")?;
    let refused = sh(&format!(
        "docker create --name '{hostile}' {image} /bin/sleep 1"
    ));
    let why = refused
        .err()
        .ok_or("Docker takes escape sequences in names: test them here")?;
    let why = why.message().unwrap_or_default().to_owned();
    ensure(why.contains("Invalid container name"), why)?;
    let name = format!("{prefix}_.-{}", "x".repeat(200));
    sh(&format!(
        "docker run -d --network {prefix} --name {name} --hostname w --label 'a={hostile}' --label 'com.docker.compose.project={hostile}' \
         {image} /bin/sleep 3600"
    ))?;
    let checked = (|| {
        let harmless = |arguments: &[&str]| -> Result<(Option<i32>, String), Failed> {
            let output = nvcli(arguments)?;
            let told = String::from_utf8([output.stdout, output.stderr].concat())?;
            let harmful = |c: char| c.is_control() && c != '\n';
            ensure(!told.contains(harmful), format!("{arguments:?}: {told:?}"))?;
            Ok((output.status.code(), told))
        };
        let (code, told) = harmless(&["attach", &hostile])?;
        same("attach of what cannot be one", code, Some(2))?;
        ensure(told.contains("no container can have this name"), told)?;
        same("attach", harmless(&["attach", &name])?.0, Some(0))?;
        let listed: Vec<Value> = attached()?;
        let is_it = |one: &&Value| one["workload"] == name.as_str();
        ensure(listed.iter().find(is_it).is_some(), format!("{listed:#?}"))?;
        for arguments in [
            &["list"][..],
            &["doctor", &name],
            &["doctor", &name, "--output", "json"],
            &["flows", "--container", &name, "--duration", "1s"],
            &["flows", "--duration", "1s", "--output", "csv"],
        ] {
            let (code, told) = harmless(arguments)?;
            same(&format!("{arguments:?}: {told}"), code, Some(0))?;
        }
        same("detach", harmless(&["detach", &name])?.0, Some(0))
    })();
    let _ = sh(&format!("docker rm -f {name}"));
    checked
}

/// Frames made by real stacks between two namespaces, read from the veth by tcpdump, without an engine.
fn files_agree_with_tshark() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    // Readable for the one who reads it without privileges below.
    sh(&format!("chmod 755 {}", directory.path().display()))?;
    let lab = nvnet::lab::Lab::new(&["web", "client"])?;
    let file = directory.path().join("lab.pcap");
    let dump = format!(
        "exec tcpdump -i lab-br -n -s 0 -B 65536 -U -w {}",
        file.display()
    );
    let tcpdump = lab.host.run(|| {
        let mut command = Command::new("sh");
        command.args(["-c", &dump]);
        Beside::start(command, "listening on")
    })??;
    let (web, client) = (&lab.containers[0], &lab.containers[1]);
    for (address, octets) in [
        (IpAddr::from(web.ipv4), 100_000),
        (web.ipv6.into(), 7),
        (web.ipv4.into(), 3_000_000),
    ] {
        let listener = web
            .netns
            .run(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
        let to = listener.local_addr()?;
        let mut near = client.netns.run(|| TcpStream::connect(to))??;
        let (mut far, _) = listener.accept()?;
        let sender =
            std::thread::spawn(move || near.write_all(&vec![7; octets]).map(|()| drop(near)));
        same(
            "carried",
            std::io::copy(&mut far, &mut std::io::sink())?,
            octets as u64,
        )?;
        sender.join().expect("no panic")?;
    }
    // A frame sent last and seen in the file tells that all before it are there too.
    let mark = UdpMark::send(&lab)?;
    mark.wait_for(&file)?;
    tcpdump.end()?;

    let path = file.display().to_string();
    let mut read = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    // tshark counts frames.
    read.args(["flows", "--output", "json", "--mtu", "0", "--read", &path]);
    if nix::unistd::geteuid().is_root() {
        read.uid(65_534).gid(65_534);
    }
    let output = read.output()?;
    ensure(
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )?;
    let ours = String::from_utf8(output.stdout)?;
    let mut ours: Vec<(String, u64, u64)> = ours
        .lines()
        .map(serde_json::from_str::<Value>)
        .collect::<Result<Vec<_>, _>>()?
        .iter()
        .filter(|record| record["protocolIdentifier"] == 6)
        .map(|record| {
            let sum = |a: &str, b: &str| {
                record[a].as_u64().unwrap_or(0) + record[b].as_u64().unwrap_or(0)
            };
            (
                record["sourceTransportPort"].to_string(),
                sum("packetDeltaCount", "reversePacketDeltaCount"),
                sum("layer2OctetDeltaCount", "reverseLayer2OctetDeltaCount"),
            )
        })
        .collect();
    ours.sort();

    // Its conversations by frames; the octets it rounds there, so they are added up from its frames.
    let conversations = sh(&format!("tshark -r {path} -q -z conv,tcp 2>/dev/null"))?;
    let mut theirs = Vec::new();
    for line in conversations.lines().filter(|line| line.contains("<->")) {
        let port = line
            .split_whitespace()
            .next()
            .and_then(|end| end.rsplit(':').next())
            .ok_or("no port")?
            .to_owned();
        let fields = format!("-Y 'tcp.port == {port}' -T fields -e frame.len");
        let lengths = sh(&format!("tshark -r {path} {fields} 2>/dev/null"))?;
        let lengths = lengths
            .lines()
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()?;
        ensure(
            line.contains(&format!(" {} ", lengths.len())),
            format!("{line} has not {} frames", lengths.len()),
        )?;
        theirs.push((port, lengths.len() as u64, lengths.iter().sum()));
    }
    theirs.sort();
    same("connections", ours.len(), 3)?;
    same("conversations", ours, theirs)
}

/// A datagram that says of itself that it was the last.
struct UdpMark;

impl UdpMark {
    fn send(lab: &nvnet::lab::Lab) -> Result<Self, Failed> {
        let (web, client) = (&lab.containers[0], &lab.containers[1]);
        let socket = client.netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.send_to(b"that was all of it", (web.ipv4, 9))?;
        Ok(Self)
    }

    fn wait_for(&self, file: &Path) -> Result<(), Failed> {
        let file: PathBuf = file.into();
        let found = "that was all of it";
        sh(&format!(
            "timeout 20 sh -c 'until grep -q \"{found}\" {}; do :; done'",
            file.display()
        ))
        .map(drop)
    }
}
