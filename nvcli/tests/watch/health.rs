//! Every state in which counts are not the truth, made on purpose: `doctor` and the view say it in words, with what to do.

use std::process::{Child, Stdio};

use libtest_mimic::Failed;
use nvnet::Netns;
use serde_json::Value;

use crate::common::{chain, ensure, same, sh, sh_in};
use crate::screen::Screen;
use crate::stage::{Stage, Traffic, attach, until};

const SIZE: (u16, u16) = (160, 40);

/// Every finding of doctor, as programs read it.
fn doctor(stage: &Stage) -> Result<Vec<Value>, Failed> {
    findings(&stage.nvcli(&["doctor", "--output", "json"])?.0)
}

fn findings(told: &str) -> Result<Vec<Value>, Failed> {
    let parsed: Result<Vec<Value>, _> = told.lines().map(serde_json::from_str).collect();
    Ok(parsed?)
}

/// The finding that says so, of which the remedy has to be that.
fn finding(findings: &[Value], verdict: &str, text: &str, remedy: &str) -> Result<(), Failed> {
    let has = |finding: &Value, key: &str, text: &str| {
        finding[key]
            .as_str()
            .is_some_and(|found| found.contains(text))
    };
    let found = findings.iter().find(|finding| has(finding, "found", text));
    let found = found.ok_or_else(|| format!("nothing says {text:?}: {findings:#?}"))?;
    same(text, found["verdict"].as_str(), Some(verdict))?;
    ensure(has(found, "try", remedy), found.to_string())
}

pub(crate) fn who_is_not_seen_is_told() -> Result<(), Failed> {
    let stage = Stage::new()?;
    let port = &stage.attached[0].port;
    sh_in(&stage.lab.host, &format!("tc qdisc del dev {port} clsact"))?;
    let _traffic = Traffic::usual(&stage)?;
    let blind = "web-1 eth0: attached, but no frame of it was seen, while its interface counted";
    let told = doctor(&stage)?;
    finding(&told, "fail", blind, "nvcli repair")?;
    // What is seen comes from the other end, and nobody computes checksums between two ends of a host.
    let partial = "of the frames have no checksum yet (offload)";
    finding(&told, "ok", partial, "nothing to do")?;
    let screen = Screen::view(&stage, SIZE, "")?;
    screen.shows("3 Health (")?;
    screen.keys("2")?;
    screen.once("blind", |text| {
        text.lines()
            .any(|line| line.contains("web-1") && line.contains("blind"))
    })?;
    screen.keys("3")?;
    screen.shows(blind)?;
    screen.shows("try: nvcli repair")?;
    let text = screen.shows(partial)?;
    // The other one is well.
    ensure(!text.contains("client-1 eth0"), text)?;

    // Who was seen before is missed, too.
    let other = &stage.attached[1].port;
    sh_in(&stage.lab.host, &format!("tc qdisc del dev {other} clsact"))?;
    screen.shows("client-1 eth0: attached, but no frame of it was seen")?;
    screen.keys("2")?;
    screen.once("blind", |text| text.matches(" blind").count() == 2)?;
    screen.keys("3")?;
    stage.nvcli(&["detach", "client-1"])?;
    attach(&stage.lab, 1, "client-1")?;

    // What is told to be done mends it. The name in it is one of an engine's containers, which these are not.
    stage.nvcli(&["detach", "web-1"])?;
    attach(&stage.lab, 0, "web-1")?;
    screen.shows("all that is attached is whole, and nothing was lost")?;
    let told = doctor(&stage)?;
    ensure(
        !told
            .iter()
            .any(|finding| finding.to_string().contains("web-1 eth0")),
        format!("{told:#?}"),
    )
}

pub(crate) fn one_direction_alone_is_told() -> Result<(), Failed> {
    let stage = Stage::new()?;
    let traffic = Traffic::usual(&stage)?;
    let port = &stage.attached[0].port;
    // Before ours: a classic program that drops all whose source address does not end in 00:02, which is web-1's.
    let drops = "4,40 0 0 10,21 1 0 2,6 0 0 2,6 0 0 4294967295";
    let address = stage.lab.containers[0].mac.0;
    same("the address", &address[4..], &[0, 2])?;
    sh_in(
        &stage.lab.host,
        &format!(
            "tc filter add dev {port} ingress pref 1 protocol all bpf bytecode '{drops}' direct-action"
        ),
    )?;
    let only = "web-1 eth0: only frames that leave it were seen";
    let told = doctor(&stage)?;
    finding(&told, "fail", only, "filters of other tools")?;
    finding(&told, "fail", "that enter it", "filters of other tools")?;
    // A view that begins now sees the same.
    let screen = Screen::view(&stage, SIZE, "")?;
    screen.keys("3")?;
    screen.shows(only)?;
    screen.shows("may take them first")?;
    screen.keys("2")?;
    screen.once("one-way", |text| {
        text.lines()
            .any(|line| line.contains("web-1") && line.contains("one-way"))
    })?;
    drop((screen, traffic));

    // Somebody who asks and gets no answer is told apart from that.
    sh_in(
        &stage.lab.host,
        &format!("tc filter del dev {port} ingress pref 1"),
    )?;
    // A neighbour that is looked for would be an answer: nobody looks for any, and both know each other already.
    for netns in [
        &stage.lab.host,
        stage.netns(0),
        stage.netns(1),
        stage.netns(2),
    ] {
        sh_in(
            netns,
            "cd /proc/sys/net && echo 1 | tee ipv6/conf/*/disable_ipv6 >/dev/null && echo 0 > ipv4/igmp_link_local_mcast_reports",
        )?;
    }
    for (one, other) in [(0, 2), (2, 0)] {
        let other = &stage.lab.containers[other];
        sh_in(
            stage.netns(one),
            &format!(
                "ip neigh replace {} lladdr {} dev eth0 nud permanent",
                other.ipv4, other.mac
            ),
        )?;
    }
    let mut traffic = Traffic::new();
    traffic.udp(&stage, (0, 2), 9_999, (vec![b'?'; 40], None))?;
    let unanswered = "its interface counts none that enter it";
    finding(&doctor(&stage)?, "warn", unanswered, "nothing answers")?;
    let screen = Screen::view(&stage, SIZE, "")?;
    screen.keys("3")?;
    screen.shows(unanswered)?;
    screen.shows("nothing answers").map(drop)
}

/// Whether somebody reads all frames of an interface here.
fn has_ring(netns: &Netns) -> Result<bool, Failed> {
    let sockets = sh_in(netns, "cat /proc/net/packet")?;
    // sk RefCnt Type Proto Iface Running ...
    Ok(sockets.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(4);
        words.next().is_some_and(|interface| interface != "0") && words.next() == Some("1")
    }))
}

/// More frames than the ring of 32 MiB holds, at some 350 octets each at least, while the process stands still.
fn flood(stage: &Stage, pid: &str) -> Result<(), Failed> {
    sh(&format!("kill -STOP {pid}"))?;
    let (socket, address) = (stage.udp(1, 0)?, stage.address(0, 9));
    for _ in 0..150_000 {
        let _ = socket.send_to(&[0; 200], address);
    }
    sh(&format!("kill -CONT {pid}")).map(drop)
}

pub(crate) fn what_is_dropped_is_told() -> Result<(), Failed> {
    let stage = Stage::new()?;
    let screen = Screen::view(&stage, SIZE, "")?;
    screen.shows("live")?;
    flood(&stage, &screen.pid()?)?;
    screen.shows("LOST")?;
    screen.keys("3")?;
    let lost = "were dropped by the kernel before they were read";
    let text = screen.shows(lost)?;
    ensure(text.contains("try: a filter"), text)?;
    drop(screen);
    until("the view has ended", || Ok(!has_ring(&stage.lab.host)?))?;

    // doctor listens for a second only, and stands still for a part of it.
    let mut command = Stage::command(&["doctor", "--output", "json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let doctor: Child = stage.lab.host.run(|| command.spawn()).map_err(chain)??;
    until("doctor listens", || has_ring(&stage.lab.host))?;
    flood(&stage, &doctor.id().to_string())?;
    let told = String::from_utf8(doctor.wait_with_output()?.stdout)?;
    finding(&findings(&told)?, "warn", "dropped", "")
}
