//! Frames of an attached namespace: what is metered, filtered and captured of them, without an engine, with the kernel's own
//! counters and tshark as witnesses.

#[path = "support/beside.rs"]
mod beside;
#[path = "../../nvnet/tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use beside::{Beside, number, same_payload};
use common::{Need, chain, ensure, privileged, same, sh, sh_in};
use libtest_mimic::{Arguments, Failed};
use nvcapture::{CaptureFile, Next};
use nvnet::lab::{Lab, LabContainer};
use nvnet::{Mode, Netns, Plan, Workload};
use serde_json::Value;

type Test = Result<(), Failed>;

const NEEDS: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const WITH_TSHARK: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Tshark];
const MODES: [(&str, Mode); 2] = [("inline", Mode::Inline), ("mirror", Mode::Mirror)];

fn main() {
    let mut trials = Vec::new();
    for (name, mode) in MODES {
        trials.push(privileged(
            format!("super_frames_are_counted_as_on_the_wire::{name}"),
            NEEDS,
            move || super_frames(mode),
        ));
        trials.push(privileged(
            format!("who_is_attached_meanwhile_is_told_by_name::{name}"),
            NEEDS,
            move || attached_meanwhile(mode),
        ));
        trials.push(privileged(
            format!("who_is_detached_before_the_end_is_told_by_name::{name}"),
            NEEDS,
            move || detached_before_the_end(mode),
        ));
        trials.push(privileged(
            format!("frames_of_a_mark_are_of_who_had_it_when_they_came::{name}"),
            NEEDS,
            move || marks_that_are_used_again(mode),
        ));
    }
    trials.push(privileged(
        "doctor_says_which_mode_is_safe",
        NEEDS,
        doctor_says_which_mode_is_safe,
    ));
    trials.push(privileged(
        "attach_tells_the_blackout_it_measured",
        NEEDS,
        attach_tells_the_blackout_it_measured,
    ));
    trials.push(privileged(
        "what_is_attached_is_told_where_the_output_is_full",
        NEEDS,
        attached_without_output,
    ));
    trials.push(privileged(
        "all_targets_are_attached_or_none",
        NEEDS,
        all_targets_are_attached_or_none,
    ));
    trials.push(privileged(
        "a_mount_point_that_is_no_utf8_hides_nothing",
        NEEDS,
        a_mount_point_that_is_no_utf8_hides_nothing,
    ));
    trials.push(privileged(
        "who_may_open_no_more_files_is_told_so",
        NEEDS,
        who_may_open_no_more_files_is_told_so,
    ));
    trials.push(privileged(
        "list_tells_of_the_hosts_side_and_doctor_of_the_inside",
        NEEDS,
        list_tells_of_the_hosts_side_and_doctor_of_the_inside,
    ));
    trials.push(privileged(
        "who_waits_says_for_whom_and_can_be_interrupted",
        NEEDS,
        who_waits_says_for_whom_and_can_be_interrupted,
    ));
    trials.push(privileged(
        "remedies_can_be_given_to_a_shell",
        NEEDS,
        remedies_can_be_given_to_a_shell,
    ));
    for (name, test) in [
        (
            "filters_choose_frames_of_an_attached_container",
            filters as fn() -> Test,
        ),
        ("captures_are_bounded_and_each_file_is_whole", captures),
        ("a_capture_to_a_pipe_ends_by_itself", to_a_pipe),
        ("the_last_frames_are_there_when_somebody_asks", last_frames),
        (
            "of_a_file_without_room_what_is_there_is_whole",
            without_room,
        ),
        (
            "between_two_attached_ones_a_connection_counts_once",
            seen_twice,
        ),
    ] {
        trials.push(privileged(name, WITH_TSHARK, test));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn who_waits_says_for_whom_and_can_be_interrupted() -> Test {
    let lab = Lab::new(&["web"])?;
    let target = path_of(&lab.containers[0].netns);
    let session = nvnet::Session::open(&lab.host).map_err(chain)?;
    let whom = format!("waiting for process {} (live", std::process::id());
    // Let go of after a while, so that one that cannot be interrupted is told and not waited for.
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let _ = is_done.recv_timeout(std::time::Duration::from_secs(20));
        drop(session);
    });
    for arguments in [&["repair"][..], &["detach", "--all"], &["attach", &target]] {
        // As on a terminal: what a shell starts in the background ignores the signal, and so do its children.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_nvcli")]);
        command.args(arguments);
        let waits = lab.host.run(|| Beside::start(command, &whom))??;
        let ended = waits.end().err().unwrap_or_else(|| "done".into());
        let ended = ended.message().unwrap_or_default();
        ensure(ended.contains("SIGINT"), format!("{arguments:?}: {ended}"))?;
    }
    drop(done);
    holder.join().map_err(|_| "the holder panicked")?;
    same("attached", nvnet::list(&lab.host).map_err(chain)?.len(), 0)
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

    // Down: not inline, and no command that would be refused.
    sh_in(web, "ip link set eth0 down")?;
    let eth0 = of("eth0")?;
    same("verdict", &eth0["verdict"], &Value::from("warn"))?;
    same("inline", &eth0["inlineRefused"], &Value::from("it is down"))?;
    let remedy = format!("set it up first, then nvcli doctor {target}");
    same("try", &eth0["try"], &Value::from(remedy))?;
    sh_in(
        web,
        "set -e
         ip link set eth0 up
         ip route add default via 10.78.0.1",
    )?;

    // Whoever is in a multicast group is told of, beside an interface whose name is no UTF-8.
    sh_in(web, "ip link add $(printf 'br\\351') up type bridge")?;
    let member = web.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    member.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &lab.containers[0].ipv4)?;
    same("advice", &of("eth0")?["advice"], &Value::from("mirror"))?;
    drop(member);
    sh_in(web, "ip link delete $(printf 'br\\351')")?;
    same("advice", &of("eth0")?["advice"], &Value::from("inline"))?;

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

/// Of a namespace that a mount alone holds, beside somebody's mount with a name of octets.
fn a_mount_point_that_is_no_utf8_hides_nothing() -> Test {
    let script = r#"
        stick=$(printf '/run/netns/usb-\351t\351')
        mkdir "$stick"
        mount -t tmpfs stick "$stick"
        ip netns add db
        ip link add lab-db up type veth peer name eth0 netns db
        ip -n db link set eth0 up
        "$NVCLI" attach netns:db
        "$NVCLI" detach netns:db
        "$NVCLI" repair
    "#;
    with_own_mounts(script)
}

/// Not that a namespace were gone that only could not be looked for.
fn who_may_open_no_more_files_is_told_so() -> Test {
    let script = r#"
        for name in a b c; do
          ip netns add $name
          ip link add lab-$name up type veth peer name eth0 netns $name
          ip netns exec $name sh -c 'echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
          ip -n $name link set eth0 up
        done
        "$NVCLI" attach netns:a netns:b netns:c
        # How many are too few depends on what is open already, and on how many are detached at a time.
        told=no
        for files in 7 8 9 10 11 7 8 9 10 11; do
          # Where all were detached; else some are there still.
          "$NVCLI" attach netns:a netns:b netns:c 2>/dev/null || :
          said=$( (ulimit -n $files; "$NVCLI" detach --all) 2>&1 >/dev/null) && continue
          echo "$said"
          case $said in *"ip link delete"*) exit 2 ;; esac
          case $said in *"ulimit -n"*) told=yes ;; esac
        done
        test $told = yes
        "$NVCLI" detach --all
        test -z "$("$NVCLI" --quiet list --no-header 2>/dev/null)"
    "#;
    with_own_mounts(script)
}

/// A container whose rules somebody deleted: what is said of it, and that the help says who says it.
fn list_tells_of_the_hosts_side_and_doctor_of_the_inside() -> Test {
    let lab = Lab::new(&["web"])?;
    let web = &lab.containers[0].netns;
    let (code, _, err) = nvcli(&lab, &["attach", &path_of(web)])?;
    same(&err, code, Some(0))?;
    sh_in(web, "tc filter delete dev nv-ex-eth0 ingress")?;
    let (_, listed, _) = nvcli(&lab, &["list", "--output", "json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    same("health", &listed["health"], &Value::from("whole"))?;
    let (_, told, _) = nvcli(&lab, &["doctor"])?;
    ensure(told.contains("nv-ex-eth0 has no rule"), told)?;
    let (_, help, _) = nvcli(&lab, &["list", "--help"])?;
    ensure(help.contains("nvcli doctor"), help)?;
    let (code, _, err) = nvcli(&lab, &["repair"])?;
    same(&err, code, Some(0))
}

/// Commands that are told for a namespace whose name has a blank, a quote and more, given to a shell as they are.
fn remedies_can_be_given_to_a_shell() -> Test {
    let script = r#"
        odd="odd; it's \$HOME"
        ip netns add "$odd"
        ip link add lab-odd up type veth peer name eth0 netns "$odd"
        ip -n "$odd" link set eth0 name 'eth&0' up
        nvcli() { "$NVCLI" "$@"; }
        try() { sed -n 's/^.*try: //p' | grep -o 'nvcli attach .*' | head -n 1; }
        attach=$(nvcli doctor "netns:$odd" | grep -A 2 'eth&0' | try)
        eval "$attach"
        nvcli list --no-header | grep -F "$odd"
        nvcli detach "netns:$odd"
        attach=$(nvcli detach "netns:$odd" 2>&1 | try)
        eval "$attach"
        nvcli detach "netns:$odd"
    "#;
    with_own_mounts(script)
}

/// Runs a script on a host of its own, with an empty folder for namespaces' names, which finds the program in `$NVCLI` and may mount what it
/// likes; each of its commands has to succeed.
fn with_own_mounts(script: &str) -> Test {
    let lab = Lab::new(&[])?;
    let begins = "set -e; mkdir -p /run/netns; mount -t tmpfs netns /run/netns";
    let script = format!("{begins}\n{script}");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .env("NVCLI", env!("CARGO_BIN_EXE_nvcli"));
    let told = lab.host.run(|| command.output())??;
    let err = String::from_utf8(told.stderr)?;
    same(&err, told.status.code(), Some(0))
}

/// Runs the program on the lab's host: its exit code, standard output and standard error.
fn nvcli(lab: &Lab, arguments: &[&str]) -> Result<(Option<i32>, String, String), Failed> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    command.args(arguments);
    let told = lab.host.run(|| command.output())??;
    let (out, err) = (String::from_utf8(told.stdout)?, told.stderr);
    Ok((told.status.code(), out, String::from_utf8(err)?))
}

/// The column and the keys, with the counters of the container's own pair as witnesses.
fn attach_tells_the_blackout_it_measured() -> Test {
    const KEYS: [&str; 6] = [
        "blackoutAtMostMicroseconds",
        "switchMicroseconds",
        "longestGapMicroseconds",
        "probesSent",
        "probesAnswered",
        "notProbed",
    ];
    let lab = Lab::new(&["web"])?;
    let (web, end) = (&lab.containers[0].netns, &lab.containers[0].host_end);
    let target = path_of(web);
    let attach = |more: &[&str]| -> Result<String, Failed> {
        let (code, out, err) = nvcli(&lab, &[&["attach", &target], more].concat())?;
        same(&err, code, Some(0))?;
        Ok(out)
    };
    let detach = || -> Test {
        let (code, _, err) = nvcli(&lab, &["detach", &target])?;
        same(&err, code, Some(0))
    };
    let keys = |out: &str| -> Result<[Option<Value>; 6], Failed> {
        let one: Value = serde_json::from_str(out)?;
        Ok(KEYS.map(|key| one.get(key).cloned()))
    };
    // Frames that the host end sent into the container, and that came back.
    let counted = || -> Result<[u64; 2], Failed> {
        let links = nvnet::links(&lab.host)?;
        let end = links.iter().find(|link| link.name == *end);
        let stats = end.ok_or("no host end")?.stats;
        Ok([stats.tx_packets, stats.rx_packets])
    };

    let before = counted()?;
    let out = attach(&["--output", "json"])?;
    let after = counted()?;
    let all = keys(&out)?;
    let number = |key: usize| all[key].as_ref().and_then(Value::as_u64);
    let [
        Some(most),
        Some(switch),
        Some(gap),
        Some(sent),
        Some(answered),
        None,
    ] = [0, 1, 2, 3, 4, 5].map(number)
    else {
        return Err(out.into());
    };
    same("not probed", &all[5], &None)?;
    same("the larger one", most, switch.max(gap))?;
    ensure(switch > 0, &out[..])?;
    ensure(answered >= 3 && answered <= sent, &out[..])?;
    ensure(
        after[0] - before[0] >= sent && after[1] - before[1] >= answered,
        format!("{before:?} to {after:?}: {out}"),
    )?;
    // It is no property of what is attached.
    let (_, listed, _) = nvcli(&lab, &["list", "--output", "json"])?;
    same("listed", keys(&listed)?, [const { None }; 6])?;
    let (_, listed, _) = nvcli(&lab, &["list"])?;
    ensure(!listed.contains("BLACKOUT"), listed)?;
    detach()?;

    let out = attach(&[])?;
    let (header, row) = out.trim_end().split_once('\n').ok_or("one row")?;
    ensure(header.ends_with(" BLACKOUT"), &out[..])?;
    let told = row.split(' ').next_back().unwrap_or_default();
    let ms = told.strip_prefix("<=").and_then(|ms| ms.strip_suffix("ms"));
    let ms: f64 = ms.ok_or(told)?.parse()?;
    ensure(ms > 0.0, &out[..])?;
    detach()?;

    // In mirror mode nothing is exchanged.
    let out = attach(&["--mode", "mirror", "--output", "json"])?;
    same("mirrored", keys(&out)?, [const { None }; 6])?;
    detach()?;
    let out = attach(&["--mode", "mirror"])?;
    ensure(out.contains("HEALTH") && !out.contains("BLACKOUT"), out)?;
    detach()?;

    // Who has no IPv4 address cannot be asked by ARP; the switch is measured all the same.
    sh_in(web, "ip -4 addr flush dev eth0")?;
    let out = attach(&["--output", "json"])?;
    let [most, switch, gap, sent, answered, why] = keys(&out)?;
    same("the switch alone", &most, &switch)?;
    ensure(switch.is_some_and(|us| us.as_u64() > Some(0)), &out[..])?;
    same("probes", [gap, sent, answered], [const { None }; 3])?;
    same("why", why, Some("it has no IPv4 address".into()))?;
    detach()
}

/// Several targets, of which one cannot be: it is named, and the others are as they were.
fn all_targets_are_attached_or_none() -> Test {
    let lab = Lab::new(&["a", "b", "c", "d"])?;
    let targets: Vec<String> = lab.containers.iter().map(|c| path_of(&c.netns)).collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let attach = [&["attach"], &targets[..]].concat();
    let (code, out, err) = nvcli(&lab, &attach)?;
    same(&err, code, Some(0))?;
    same("rows", out.lines().count(), 5)?;
    // In the order of the targets.
    for (target, row) in targets.iter().zip(out.lines().skip(1)) {
        let end = target.rsplit('/').next().unwrap_or_default();
        ensure(row.contains(end), format!("{target}: {row}"))?;
    }
    let (code, out, _) = nvcli(&lab, &["detach", "--all"])?;
    same("exit code", code, Some(0))?;
    same("detached", out.lines().count(), 4)?;

    sh_in(
        &lab.containers[2].netns,
        "ip link add br0 type bridge && ip link set eth0 master br0",
    )?;
    let (code, out, err) = nvcli(&lab, &attach)?;
    same(&err, code, Some(1))?;
    same("rows", &out[..], "")?;
    ensure(
        err.contains(&format!("cannot attach {}", targets[2])) && err.contains("a port of `br0`"),
        err,
    )?;
    same("attached", nvnet::list(&lab.host)?, vec![])?;
    same(
        "links of ours",
        sh_in(&lab.host, "ip -o link show | grep nv- | cat")?,
        String::new(),
    )?;
    for container in &lab.containers {
        let links = sh_in(&container.netns, "ip -o link show | grep nv- | cat")?;
        same("links inside", links, String::new())?;
    }
    Ok(())
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
    mode: Mode,
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
        Ok(Self { lab, mode, port })
    }

    fn web(&self) -> &LabContainer {
        &self.lab.containers[0]
    }

    fn client(&self) -> &LabContainer {
        &self.lab.containers[1]
    }

    /// Attaches another one, or one again; gives its id.
    fn attach(&self, container: &LabContainer) -> Result<nvnet::AttachmentId, Failed> {
        let workload = Workload {
            name: container.name.clone(),
            ..Workload::default()
        };
        let plan = Plan::new(&self.lab.host, &container.netns, workload).mode(self.mode);
        let attached = plan.check().and_then(|plan| plan.attach());
        Ok(attached.map_err(chain)?.first().ok_or("nothing")?.id)
    }

    /// nvcli on the host, which runs until it is interrupted.
    fn beside(&self, arguments: &[&str], ready: &str) -> Result<Beside, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command.args(arguments);
        self.lab.host.run(|| Beside::start(command, ready))?
    }

    fn beside_in(
        &self,
        directory: &Path,
        arguments: &[&str],
        ready: &str,
    ) -> Result<Beside, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command.args(arguments).env("NVCLI_RUN_DIR", directory);
        self.lab.host.run(|| Beside::start(command, ready))?
    }

    /// nvcli on the host, which has to succeed: what it printed on standard output and error.
    fn done(&self, arguments: &[&str], directory: &Path) -> Result<(Vec<u8>, String), Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command.args(arguments).env("NVCLI_RUN_DIR", directory);
        let output = self.lab.host.run(|| command.output())??;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(
            output.status.success(),
            format!("nvcli {arguments:?}: {told}"),
        )?;
        Ok((output.stdout, told))
    }

    /// A connection from `client` to `web` that carries so many octets each way, and is over when this returns; tells the server's port.
    fn exchange(&self, octets: usize) -> Result<u16, Failed> {
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
        Ok(to.port())
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
    net.exchange(20 << 20).map(drop)?;
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

/// The kernel leaves out what the filter does not take, and only that.
fn filters() -> Test {
    let net = Net::new(Mode::Inline)?;
    let web = net.web().ipv4;
    let of_web = format!("host {web} and tcp");
    let expressions = [
        (vec!["tcp"], true),
        (vec![of_web.as_str()], true),
        (vec!["udp", "or", "arp"], false),
        (vec!["not", "host", "10.78.0.3"], false),
        (vec!["tcp[tcpflags] & tcp-syn != 0"], true),
    ];
    let mut beside = Vec::new();
    for (expression, takes) in &expressions {
        let arguments = [&["flows", "--output", "json"], &expression[..]].concat();
        beside.push((net.beside(&arguments, "metering")?, expression, takes));
    }
    let port = net.exchange(100_000)?;
    for (flows, expression, takes) in beside {
        let (out, err) = flows.end()?;
        let tcp: Vec<Value> = records(&out)?
            .into_iter()
            .filter(|record| record["protocolIdentifier"] == 6)
            .collect();
        let context = format!("{expression:?}: {out}{err}");
        same(&context, tcp.len(), usize::from(*takes))?;
        let Some(record) = tcp.first() else { continue };
        same(
            &context,
            &record["destinationTransportPort"],
            &Value::from(port),
        )?;
        if expression[0].starts_with("tcp[") {
            same(&context, number(&err, "metered")?, 2)?;
        } else {
            same_payload(record, "initiatorOctets", 100_000)?;
        }
        same(&context, number(&err, "not IP")?, 0)?;
    }
    Ok(())
}

/// The octets of a frame, and how many there were on the wire.
type Kept = (Vec<u8>, u32);
/// Frames by which two rings may differ in what came last.
const OVERTAKEN: usize = 8;

/// What a file holds, and what the capture lost by its own account.
fn read(file: &Path) -> Result<(Vec<Kept>, u64), Failed> {
    let mut capture = CaptureFile::open(file)?;
    let mut frames = Vec::new();
    while let Next::Block(block) = capture.next_block()? {
        frames.extend(
            block
                .frames()
                .map(|frame| (frame.octets().to_vec(), frame.wire_len())),
        );
    }
    let lost = capture
        .interfaces()
        .iter()
        .map(|interface| interface.dropped)
        .sum();
    Ok((frames, lost))
}

/// Wireshark's tools read the file and have nothing to complain of; gives what capinfos says.
fn opens_elsewhere(file: &Path) -> Result<String, Failed> {
    let file = file.display();
    let told = sh(&format!(
        "tshark -r {file} 2>&1 >/dev/null | grep -v 'Running as user' | cat; capinfos -M {file} 2>&1"
    ))?;
    for complaint in ["arning", "rror", "cut short", "amage", "appears to"] {
        ensure(!told.contains(complaint), told.clone())?;
    }
    Ok(told)
}

fn listed(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>, Failed> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn captures() -> Test {
    let net = Net::new(Mode::Inline)?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let shown = |name: &str| path(name).display().to_string();
    let (all, rotated, last, cut) = (
        shown("all.pcapng"),
        shown("turn.pcapng"),
        shown("last"),
        shown("cut"),
    );
    // As it was attached: by the name of its workload.
    let of = |more: &[&str]| -> Result<Beside, Failed> {
        net.beside(
            &[&["capture", "web", "--filter", "tcp"], more].concat(),
            "capturing 1 interfaces",
        )
    };
    let beside = [
        of(&["-w", &all])?,
        of(&["-w", &rotated, "--rotate", "256K"])?,
        of(&["-w", &last, "--rotate", "256K", "--files", "2"])?,
        of(&["-w", &cut, "--snaplen", "100"])?,
    ];
    net.exchange(2 << 20)?;
    for capture in beside {
        let (_, err) = capture.end()?;
        same(&err, number(&err, "dropped by the kernel")?, 0)?;
    }
    let (frames, lost) = read(&path("all.pcapng"))?;
    same("lost", lost, 0)?;
    ensure(frames.len() > 100, format!("{} frames", frames.len()))?;
    let told = opens_elsewhere(&path("all.pcapng"))?;
    for expected in [
        "Name = web/eth0",
        "Description = eth0 of container web",
        "Time precision = nanoseconds (9)",
        "Number of stat entries = 1",
        &format!("Number of packets = {}", frames.len()),
    ] {
        ensure(
            told.contains(expected),
            format!("without `{expected}`: {told}"),
        )?;
    }
    let file = &all;
    let (address, mac) = (net.web().ipv4, net.web().mac);
    // tshark tells the direction, and which address the frame has: leaving from the container's, entering to it.
    let ways = sh(&format!(
        "tshark -r {file} -T fields -e frame.packet_flags_direction -e ip.src -e eth.src -e eth.dst 2>/dev/null | sort -u"
    ))?;
    let ways: Vec<Vec<&str>> = ways
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    same("ways", ways.len(), 2)?;
    for way in ways {
        let [direction, source, from, to] = way[..] else {
            return Err(format!("{way:?}").into());
        };
        let leaves = source == address.to_string();
        same(
            "direction",
            u32::from_str_radix(direction.trim_start_matches("0x"), 16)?,
            if leaves { 2 } else { 1 },
        )?;
        same(
            "own address",
            if leaves { from } else { to },
            &mac.to_string(),
        )?;
    }

    let parts = listed(directory.path(), "turn-")?;
    ensure(parts.len() > 8, format!("{parts:?}"))?;
    same("first", &parts[0], &path("turn-00001.pcapng"))?;
    let mut together = Vec::new();
    for part in &parts {
        ensure(part.metadata()?.len() <= 256 << 10, format!("{part:?}"))?;
        // tshark takes a second to start.
        if part == &parts[1] || Some(part) == parts.last() {
            opens_elsewhere(part)?;
        }
        together.extend(read(part)?.0);
    }
    // Two processors hand frames to several rings at the same time: what one ring has in a row the other may have the other way round.
    let sorted = |mut frames: Vec<Kept>| {
        frames.sort();
        frames
    };
    ensure(
        sorted(together) == sorted(frames.clone()),
        "the files together are not the one",
    )?;
    let kept = listed(directory.path(), "last-")?;
    same("kept", kept.len(), 2)?;
    let mut tail = Vec::new();
    for part in &kept {
        tail.extend(read(part)?.0);
    }
    let near = &frames[frames.len().saturating_sub(tail.len() + OVERTAKEN)..];
    ensure(
        !tail.is_empty() && tail.iter().all(|frame| near.contains(frame)),
        "not the last frames",
    )?;

    let (cut, _) = read(&path("cut"))?;
    let expected: Vec<_> = frames
        .iter()
        .map(|(octets, wire_len)| (octets[..octets.len().min(100)].to_vec(), *wire_len))
        .collect();
    ensure(
        sorted(cut) == sorted(expected),
        "cut otherwise than at 100 octets",
    )
}

fn to_a_pipe() -> Test {
    let net = Net::new(Mode::Inline)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("piped.pcapng");
    let script = format!(
        "{} capture web -w - --count 20 --filter tcp > {}",
        env!("CARGO_BIN_EXE_nvcli"),
        file.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let capture = net.lab.host.run(|| Beside::start(command, "capturing"))??;
    net.exchange(1 << 20)?;
    let (_, err) = capture.wait()?;
    same(&err, number(&err, "frames written")?, 20)?;
    same("frames", read(&file)?.0.len(), 20)?;
    opens_elsewhere(&file)?;
    // And after a time.
    let (out, err) = net.done(
        &["capture", "web", "-w", "-", "--duration", "50ms"],
        directory.path(),
    )?;
    same(&err, number(&err, "frames written")?, 0)?;
    std::fs::write(&file, out)?;
    opens_elsewhere(&file)?;
    Ok(())
}

/// What happened before somebody came.
fn last_frames() -> Test {
    let net = Net::new(Mode::Inline)?;
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let file = directory.path().join("before.pcapng");
    let shown = file.display().to_string();
    let dump = |more: &[&str]| net.done(&[&["dump", "web", "-w", &shown], more].concat(), &run);
    let refused = |expected: &str| -> Test {
        match dump(&[]) {
            Ok((_, told)) => Err(format!("dumped: {told}").into()),
            Err(error) => {
                let told = format!("{error:?}");
                ensure(told.contains(expected), told)?;
                ensure(!file.exists(), "a file of nothing")
            }
        }
    };
    refused("nobody keeps")?;
    // Of one that was killed.
    std::fs::create_dir(&run)?;
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    drop(UnixListener::bind(run.join("recorder-1.sock"))?);
    let flows = net.beside_in(
        &run,
        &[
            "flows",
            "--output",
            "json",
            "--keep",
            "16M",
            "--snaplen",
            "65536",
        ],
        "metering",
    )?;
    same("sockets", listed(&run, "recorder-")?.len(), 1)?;
    let other = Net::new(Mode::Inline)?;
    net.exchange(1 << 20)?;
    // The frames are with the recorder once the ring has handed their block over.
    let mut frames = Vec::new();
    for _ in 0..200 {
        dump(&["--last", "60s"])?;
        frames = read(&file)?.0;
        let fins = frames.iter().filter(|(octets, _)| {
            octets.get(12..14) == Some(&[8, 0])
                && octets.get(47).is_some_and(|flags| flags & 1 == 1)
        });
        if fins.count() >= 2 {
            break;
        }
        std::thread::yield_now();
    }
    let told = opens_elsewhere(&file)?;
    ensure(told.contains("Name = web/eth0"), told)?;
    let (out, _) = net.done(&["flows", "--output", "json", "--read", &shown], &run)?;
    let connection: Vec<Value> = records(std::str::from_utf8(&out)?)?
        .into_iter()
        .filter(|record| record["protocolIdentifier"] == 6)
        .collect();
    same("connections", connection.len(), 1)?;
    for key in ["initiatorOctets", "responderOctets"] {
        same_payload(&connection[0], key, 1 << 20)?;
    }
    ensure(
        frames
            .iter()
            .all(|(octets, _)| !octets[..12].windows(4).any(|four| four == b"NeuV")),
        "marks were left in the frames",
    )?;
    // Who does not read on keeps nobody waiting, and misses nothing.
    let mut slow = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    slow.args(["dump", "web", "-w", "-"])
        .env("NVCLI_RUN_DIR", &run)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    let mut slow = net.lab.host.run(|| slow.spawn())??;
    let mut pipe = slow.stdout.take().ok_or("no pipe")?;
    let mut piped = vec![0];
    pipe.read_exact(&mut piped)?;
    dump(&[])?;
    pipe.read_to_end(&mut piped)?;
    ensure(slow.wait()?.success(), "the slow one was given up")?;
    std::fs::write(directory.path().join("slow"), piped)?;
    let slow = read(&directory.path().join("slow"))?.0;
    ensure(slow.len() >= frames.len(), "frames are missing")?;
    // Nothing is younger than that by now.
    dump(&["--last", "1ms"])?;
    same("of the last millisecond", read(&file)?.0.len(), 0)?;
    let (piped, _) = net.done(&["dump", "web", "-w", "-"], &run)?;
    std::fs::write(&file, piped)?;
    same("through a pipe", read(&file)?.0.len() >= frames.len(), true)?;
    // Another host's frames are kept by nobody.
    let elsewhere = other.done(&["dump", "web", "-w", "-"], &run);
    ensure(
        elsewhere.is_err_and(|error| format!("{error:?}").contains("nobody keeps")),
        "frames of another nv-br",
    )?;
    flows.end()?;
    std::fs::remove_file(&file)?;
    refused("nobody keeps")?;
    same("sockets left", listed(&run, "recorder-")?.len(), 0)
}

/// The payloads that a file has of the interface `name`, in which the words are that were sent.
fn words(file: &Path, name: &str) -> Result<Vec<String>, Failed> {
    let mut capture = CaptureFile::open(file)?;
    let mut words = Vec::new();
    let mut frames = Vec::new();
    while let Next::Block(block) = capture.next_block()? {
        frames.extend(
            block
                .frames()
                .map(|frame| (frame.meta().interface, frame.octets().to_vec())),
        );
    }
    for (interface, octets) in frames {
        let of = capture.interfaces().get(interface as usize);
        if of.and_then(|of| of.name.as_deref()) == Some(name) {
            // A datagram's payload.
            let word = octets.get(42..).unwrap_or_default();
            words.push(String::from_utf8_lossy(word).into_owned());
        }
    }
    Ok(words)
}

/// An interface that is attached again gets the mark that it had, as another one would.
fn marks_that_are_used_again(mode: Mode) -> Test {
    let net = Net::new(mode)?;
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let (all, last) = (
        directory.path().join("all.pcapng"),
        directory.path().join("last.pcapng"),
    );
    let say = |word: &str| -> Test {
        let (from, to) = (net.web().ipv4, net.client().ipv4);
        let sent = net.web().netns.run(|| -> std::io::Result<usize> {
            UdpSocket::bind((from, 0))?.send_to(word.as_bytes(), (to, 9))
        })??;
        same("sent", sent, word.len())
    };
    let is_in = |words: &[String], word: &str| words.iter().any(|one| one == word);
    net.attach(net.client())?;
    let shown = all.display().to_string();
    let capture = net.beside(
        &["capture", "web", "client", "-w", &shown, "--filter", "udp"],
        "capturing 2 interfaces",
    )?;
    let flows = net.beside_in(
        &run,
        &["flows", "--output", "json", "--keep", "1M"],
        "metering",
    )?;
    let before = nvnet::list(&net.lab.host)?;
    say("first")?;
    net.done(&["detach", "web"], &run)?;
    let id = net.attach(net.web())?;
    ensure(
        before
            .iter()
            .any(|one| one.id == id && one.workload.name == "web"),
        "another mark",
    )?;
    say("second")?;
    let (_, err) = capture.end()?;
    ensure(err.contains("web/eth0 is not attached any more"), err)?;
    let web = words(&all, "web/eth0")?;
    ensure(
        is_in(&web, "first") && !is_in(&web, "second"),
        format!("{web:?}"),
    )?;
    let client = words(&all, "client/eth0")?;
    ensure(
        is_in(&client, "first") && is_in(&client, "second"),
        format!("{client:?}"),
    )?;

    // What is kept is of who has the mark now.
    let shown = last.display().to_string();
    let mut web = Vec::new();
    for _ in 0..200 {
        net.done(&["dump", "web", "-w", &shown], &run)?;
        web = words(&last, "web/eth0")?;
        if is_in(&web, "second") {
            break;
        }
    }
    ensure(
        is_in(&web, "second") && !is_in(&web, "first"),
        format!("{web:?}"),
    )?;
    flows.end()?;

    // With the last one that is captured a capture ends.
    let capture = net.beside(
        &["capture", "web", "-w", &shown, "--duration", "20s"],
        "capturing 1 interfaces",
    )?;
    net.done(&["detach", "web"], &run)?;
    let (_, err) = capture.wait()?;
    ensure(err.contains("web/eth0 is not attached any more"), err)
}

/// On a full file system.
fn without_room() -> Test {
    let net = Net::new(Mode::Inline)?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().display();
    sh(&format!("mount -t tmpfs -o size=512k none {path}"))?;
    let captured = || -> Test {
        for more in [&[][..], &["--rotate", "200K"]] {
            let shown = format!("{path}/web.pcapng");
            let capture = net.beside(
                &[&["capture", "web", "-w", &shown], more].concat(),
                "capturing 1 interfaces",
            )?;
            net.exchange(1 << 20)?;
            let Err(told) = capture.wait() else {
                return Err("there was room".into());
            };
            let told = format!("{told:?}");
            ensure(told.contains("No space left"), told)?;
            let files = listed(directory.path(), "web")?;
            let mut frames = 0;
            for file in files {
                // The last one may have no room for any.
                frames += read(&file)?.0.len();
                opens_elsewhere(&file)?;
                std::fs::remove_file(file)?;
            }
            ensure(frames > 0, "no frames")?;
        }
        Ok(())
    };
    let told = captured();
    sh(&format!("umount {path}"))?;
    told
}

/// All is over sooner than a list would be read again that nobody tells to be another.
fn attached_meanwhile(mode: Mode) -> Test {
    let net = Net::new(mode)?;
    let flows = net.beside(&["flows", "--output", "json", "tcp"], "metering")?;
    net.attach(net.client())?;
    net.exchange(1_000)?;
    let (out, err) = flows.end()?;
    let mut names: Vec<String> = records(&out)?
        .iter()
        .map(|record| record["workload"].as_str().unwrap_or("nobody").to_owned())
        .collect();
    names.sort_unstable();
    same(
        &format!("{out}{err}"),
        names,
        ["client", "web"].map(str::to_owned).to_vec(),
    )
}

/// What ends the run takes the names away, too.
fn detached_before_the_end(mode: Mode) -> Test {
    let net = Net::new(mode)?;
    let directory = tempfile::tempdir()?;
    net.attach(net.client())?;
    let by = ["--group-by", "client,server", "tcp"];
    let flows = net.beside(
        &[&["flows", "--output", "json"], &by[..]].concat(),
        "metering",
    )?;
    for _ in 0..3 {
        net.exchange(1_000)?;
    }
    net.done(&["detach", "--all"], directory.path())?;
    let (out, err) = flows.wait()?;
    ensure(err.contains("everything was detached"), &err)?;
    let sums = records(&out)?;
    same(&format!("{out}{err}"), sums.len(), 1)?;
    same("client", &sums[0]["client"], &"client".into())?;
    same("server", &sums[0]["server"], &"web".into())?;
    same("connections", &sums[0]["connectionsOpened"], &3.into())
}

/// Each end has a record of its own of the same connection.
fn seen_twice() -> Test {
    let net = Net::new(Mode::Inline)?;
    net.attach(net.client())?;
    let by = |fields: &str| {
        net.beside(
            &["flows", "--output", "json", "--group-by", fields, "tcp"],
            "metering",
        )
    };
    let (once, apart) = (by("client,server")?, by("client,server,id")?);
    for _ in 0..3 {
        net.exchange(1_000)?;
    }
    let sums = |run: Beside| -> Result<Vec<Value>, Failed> { records(&run.end()?.0) };
    let (once, apart) = (sums(once)?, sums(apart)?);
    same("sums", (once.len(), apart.len()), (1, 2))?;
    for sum in once.iter().chain(&apart) {
        same("client", &sum["client"], &"client".into())?;
        same("server", &sum["server"], &"web".into())?;
        same("connections", &sum["connectionsOpened"], &3.into())?;
        same("octets", &sum["initiatorOctets"], &3_000.into())?;
    }
    Ok(())
}

/// The change is made, and nobody could be told of it.
fn attached_without_output() -> Test {
    let lab = Lab::new(&["web"])?;
    let target = path_of(&lab.containers[0].netns);
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    command
        .args(["attach", &target])
        .stdout(std::fs::File::create("/dev/full")?);
    let told = lab.host.run(|| command.output())??;
    let err = String::from_utf8(told.stderr)?;
    same(&err, told.status.code(), Some(3))?;
    ensure(
        err.contains("left: eth0 of") && err.contains("is attached"),
        err,
    )?;
    same("attached", nvnet::list(&lab.host)?.len(), 1)?;
    let (code, _, err) = nvcli(&lab, &["detach", "--all"])?;
    same(&err, code, Some(0))
}
