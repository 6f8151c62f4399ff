//! Frames of an attached namespace: what is metered, filtered and captured of them, without an engine, with the kernel's own
//! counters and tshark as witnesses.

#[path = "support/beside.rs"]
mod beside;
#[path = "../../nvnet/tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use beside::{Beside, number};
use common::{Need, chain, ensure, privileged, same, sh_in};
use libtest_mimic::{Arguments, Failed};
use nvnet::lab::{Lab, LabContainer};
use nvnet::{Mode, Netns, Plan, Workload};
use serde_json::Value;

type Test = Result<(), Failed>;

const NEEDS: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const MODES: [(&str, Mode); 2] = [("inline", Mode::Inline), ("mirror", Mode::Mirror)];

fn main() {
    let mut trials = Vec::new();
    for (name, mode) in MODES {
        trials.push(privileged(
            format!("super_frames_are_counted_as_on_the_wire::{name}"),
            NEEDS,
            move || super_frames(mode),
        ));
    }
    trials.push(privileged(
        "doctor_says_which_mode_is_safe",
        NEEDS,
        doctor_says_which_mode_is_safe,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Of every interface of a target, as people and as programs read it, with the command to give.
fn doctor_says_which_mode_is_safe() -> Test {
    let lab = Lab::new(&["web"])?;
    let (web, end) = (&lab.containers[0].netns, &lab.containers[0].host_end);
    let target = path_of(web);
    let doctor = |output: &str| -> Result<(Option<i32>, String), Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command.args(["doctor", "--output", output, &target]);
        let told = lab.host.run(|| command.output())??;
        Ok((told.status.code(), String::from_utf8(told.stdout)?))
    };
    let of = |name: &str| -> Result<Value, Failed> {
        let (_, told) = doctor("json")?;
        let mut findings = told.lines().map(serde_json::from_str::<Value>);
        findings
            .find(|f| f.as_ref().is_ok_and(|f| f["interface"] == name))
            .ok_or_else(|| Failed::from(told.clone()))?
            .map_err(Into::into)
    };
    let eth0 = of("eth0")?;
    for (key, value) in [
        ("check", Value::from("interface")),
        ("verdict", Value::from("ok")),
        ("kind", Value::from("veth")),
        ("inlineSafe", Value::from(true)),
        ("mirrorSafe", Value::from(true)),
        ("mirroredFrom", Value::from(end.as_str())),
        ("advice", Value::from("inline")),
    ] {
        same(key, &eth0[key], &value)?;
    }

    // A bridge over it: not inline, with the reason; and what nobody can attach makes it fail.
    sh_in(
        web,
        "ip link add br0 type bridge && ip link set eth0 master br0",
    )?;
    let eth0 = of("eth0")?;
    same("verdict", &eth0["verdict"], &Value::from("warn"))?;
    same("advice", &eth0["advice"], &Value::from("mirror"))?;
    let why = eth0["inlineRefused"].as_str().unwrap_or_default();
    ensure(why.contains("a port of `br0`"), why)?;
    let remedy = eth0["try"].as_str().unwrap_or_default();
    let command = format!("nvcli attach {target} --interface eth0 --mode mirror");
    same("try", remedy, &command)?;
    let (code, table) = doctor("table")?;
    same("exit code", code, Some(0))?;
    ensure(
        table.contains("not inline: it is a port of `br0`") && table.contains(&command),
        table,
    )?;
    sh_in(web, "ip link delete br0; ip link delete eth0")?;
    let (code, table) = doctor("table")?;
    same("exit code without an interface", code, Some(1))?;
    ensure(table.contains("no interface of"), table)
}

fn path_of(netns: &Netns) -> String {
    use std::os::fd::{AsFd, AsRawFd};
    format!(
        "netns:/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    )
}

/// A host with `web` attached and `client` beside it.
struct Net {
    lab: Lab,
    /// The port on nv-br, of an inline attachment.
    port: String,
}

impl Net {
    /// Without IPv6 and IGMP, so that nothing is sent but ARP and what a test sends.
    fn new(mode: Mode) -> Result<Self, Failed> {
        let lab = Lab::new(&["web", "client"])?;
        for netns in [
            &lab.host,
            &lab.containers[0].netns,
            &lab.containers[1].netns,
        ] {
            sh_in(
                netns,
                "cd /proc/sys/net && echo 1 | tee ipv6/conf/*/disable_ipv6 >/dev/null && echo 0 > ipv4/igmp_link_local_mcast_reports",
            )?;
        }
        let workload = Workload {
            name: "web".into(),
            ..Workload::default()
        };
        let attached = Plan::new(&lab.host, &lab.containers[0].netns, workload)
            .mode(mode)
            .check()
            .and_then(|plan| plan.attach())
            .map_err(chain)?;
        let port = attached.first().ok_or("nothing was attached")?.port.clone();
        Ok(Self { lab, port })
    }

    fn web(&self) -> &LabContainer {
        &self.lab.containers[0]
    }

    fn client(&self) -> &LabContainer {
        &self.lab.containers[1]
    }

    /// nvcli on the host, which runs until it is interrupted.
    fn beside(&self, arguments: &[&str], ready: &str) -> Result<Beside, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command.args(arguments);
        self.lab.host.run(|| Beside::start(command, ready))?
    }

    /// A connection from `client` to `web` that carries so many octets each way, and is over when this returns.
    fn exchange(&self, octets: usize) -> Test {
        let address = IpAddr::from(self.web().ipv4);
        let listener = self
            .web()
            .netns
            .run(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
        let to = listener.local_addr()?;
        let mut near = self.client().netns.run(|| TcpStream::connect(to))??;
        let (mut far, _) = listener.accept()?;
        let server = std::thread::spawn(move || -> std::io::Result<usize> {
            let mut came = Vec::new();
            far.read_to_end(&mut came)?;
            far.write_all(&came)?;
            Ok(came.len())
        });
        near.write_all(&vec![7; octets])?;
        near.shutdown(std::net::Shutdown::Write)?;
        let mut back = Vec::new();
        near.read_to_end(&mut back)?;
        same("octets there", server.join().expect("no panic")?, octets)?;
        same("octets back", back.len(), octets)?;
        drop(near);
        for netns in [&self.web().netns, &self.client().netns] {
            // Nothing is sent any more: what is left waits for what comes late.
            sh_in(
                netns,
                "timeout 20 sh -c 'while ss -tanH exclude listening exclude time-wait | grep -q .; do :; done'",
            )?;
        }
        Ok(())
    }
}

/// The records that were printed.
fn records(out: &str) -> Result<Vec<Value>, Failed> {
    Ok(out
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?)
}

fn sum(record: &Value, keys: [&str; 2]) -> u64 {
    keys.iter().filter_map(|key| record[*key].as_u64()).sum()
}

/// Segments that TCP has sent in a namespace: what is cut by an offload counts as its parts.
fn segments_sent(netns: &Netns) -> Result<u64, Failed> {
    let told = sh_in(
        netns,
        "awk '/^Tcp: [0-9]/ {print $12 + $13}' /proc/thread-self/net/snmp",
    )?;
    Ok(told.trim().parse()?)
}

/// Packets and octets that went through the queueing discipline of a link: the kernel counts those of the wire there.
fn through_queue(netns: &Netns, link: &str) -> Result<(u64, u64), Failed> {
    let told = sh_in(netns, &format!("tc -s qdisc show dev {link} root"))?;
    let line = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("Sent "))
        .ok_or_else(|| format!("no counters: {told}"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    let (octets, packets) = numbers.next().zip(numbers.next()).ok_or("no numbers")?;
    Ok((packets, octets))
}

/// Frames and octets that a link has received and sent: a super-frame is one, with one head.
fn counted(netns: &Netns, link: &str) -> Result<(u64, u64), Failed> {
    let told = sh_in(
        netns,
        &format!("cd /proc/thread-self/net && awk '/^ *{link}:/ {{print $3 + $11, $2 + $10}}' dev"),
    )?;
    let (frames, octets) = told.trim().split_once(' ').ok_or("no counters")?;
    Ok((frames.parse()?, octets.parse()?))
}

/// Three counts of the kernel's agree with the records: TCP's own of its segments, the queues' of packets and octets on the wire, and, once
/// the heads that a super-frame has only once are added, the interface's of frames.
fn super_frames(mode: Mode) -> Test {
    let net = Net::new(mode)?;
    let (web, host, client) = (&net.web().netns, &net.lab.host, &net.client().netns);
    // What leaves the container, and what enters it; inline both go out of the new interface, to the host.
    let mut queues = vec![(web, "eth0")];
    if mode == Mode::Mirror {
        queues.push((host, &net.web().host_end));
    }
    for (netns, link) in &queues {
        sh_in(
            netns,
            &format!("tc qdisc add dev {link} root pfifo limit 100000"),
        )?;
    }
    let flows = net.beside(&["flows", "--output", "json"], "metering")?;
    let queued = || -> Result<(u64, u64), Failed> {
        let each = queues
            .iter()
            .map(|(netns, link)| through_queue(netns, link));
        each.sum_pairs()
    };
    let sent = || Ok::<_, Failed>(segments_sent(web)? + segments_sent(client)?);
    let veth = match mode {
        Mode::Inline => net.port.clone(),
        _ => net.web().host_end.clone(),
    };
    let passed = || counted(host, &veth);
    let before = (queued()?, sent()?, passed()?);
    net.exchange(20 << 20)?;
    let after = (queued()?, sent()?, passed()?);
    let (out, err) = flows.end()?;

    let records = records(&out)?;
    let total = |keys| records.iter().map(|record| sum(record, keys)).sum::<u64>();
    const PACKETS: [&str; 2] = ["packetDeltaCount", "reversePacketDeltaCount"];
    let packets = total(PACKETS);
    let octets = total(["layer2OctetDeltaCount", "reverseLayer2OctetDeltaCount"]);
    let ip = total(["octetDeltaCount", "reverseOctetDeltaCount"]);
    let context = format!("{mode:?}: {err}{out}");
    // Others are the kernel's own, such as IGMP.
    let tcp: Vec<&Value> = records
        .iter()
        .filter(|record| record["protocolIdentifier"] == 6)
        .collect();
    same(&format!("{context}: connections"), tcp.len(), 1)?;
    same(
        &format!("{context}: segments and packets"),
        after.1 - before.1,
        sum(tcp[0], PACKETS),
    )?;
    // ARP has 42 octets.
    let not_ip = number(&err, "not IP")?;
    let on_the_wire = (packets + not_ip, octets + 42 * not_ip);
    same(
        &format!("{context}: in the queues and in the records"),
        (after.0.0 - before.0.0, after.0.1 - before.0.1),
        on_the_wire,
    )?;
    same(&format!("{context}: IP octets"), ip + 14 * packets, octets)?;
    same("packets told", number(&err, "packets counted")?, packets)?;

    let frames = (after.2.0 - before.2.0, after.2.1 - before.2.1);
    let metered = number(&err, "metered")?;
    same("frames of the veth", frames.0, metered + not_ip)?;
    same(
        "octets of the veth",
        frames.1,
        number(&err, "octets on the wire")?,
    )?;
    ensure(metered * 4 < packets, format!("{context}: no super-frames"))?;
    // Ethernet, IPv4, TCP with time stamps: a super-frame has them once, each of its packets on the wire has them.
    let heads = 66 * (packets - metered);
    same(
        &format!("{context}: with their heads"),
        frames.1 + heads,
        on_the_wire.1,
    )
}

trait SumPairs {
    fn sum_pairs(self) -> Result<(u64, u64), Failed>;
}

impl<I: Iterator<Item = Result<(u64, u64), Failed>>> SumPairs for I {
    fn sum_pairs(self) -> Result<(u64, u64), Failed> {
        self.into_iter().try_fold((0, 0), |(a, b), each| {
            let (c, d) = each?;
            Ok((a + c, b + d))
        })
    }
}
