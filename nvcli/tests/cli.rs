//! The program, run as people run it: output, exit codes, errors. Needs no privileges.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy takes for something else"
)]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nvcapture::{CaptureWriter, Frame, FrameMeta, InterfaceDescription, SourceStats, Timestamp};
use serde_json::Value;

fn nvcli() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    command
        .env_remove("COLUMNS")
        .env_remove("NVCLI_LOG")
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    command
}

fn run(args: &[&str]) -> Output {
    nvcli().args(args).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A TCP segment in an Ethernet frame, without checksums, which nobody looks at.
fn segment(
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    seq: u32,
    ack: u32,
    bits: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let total = u16::try_from(40 + payload.len()).unwrap();
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(source.0);
    frame.extend(destination.0);
    frame.extend(source.1.to_be_bytes());
    frame.extend(destination.1.to_be_bytes());
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, bits, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

fn datagram(source: ([u8; 4], u16), destination: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let length = u16::try_from(8 + payload.len()).unwrap();
    frame.extend([0x45, 0]);
    frame.extend((20 + length).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source.0);
    frame.extend(destination.0);
    frame.extend(source.1.to_be_bytes());
    frame.extend(destination.1.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 2], 40_000);
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 3], 80);
const RESOLVER: ([u8; 4], u16) = ([10, 0, 0, 9], 53);
const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// One HTTP connection from SYN to the last ACK, one DNS query with its answer, one ARP request.
fn frames() -> Vec<Vec<u8>> {
    let asks = |seq, ack, bits, payload: &[u8]| segment(CLIENT, SERVER, seq, ack, bits, payload);
    let answers = |seq, ack, bits, payload: &[u8]| segment(SERVER, CLIENT, seq, ack, bits, payload);
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 2, 8, 6]);
    arp.extend([0; 28]);
    vec![
        arp,
        datagram((CLIENT.0, 5_353), RESOLVER, b"question"),
        datagram(RESOLVER, (CLIENT.0, 5_353), b"answer, longer"),
        asks(100, 0, SYN, b""),
        answers(500, 101, SYN | ACK, b""),
        asks(101, 501, ACK, b""),
        asks(101, 501, PSH | ACK, b"GET / HTTP/1.1\r\n\r\n"),
        answers(501, 119, PSH | ACK, b"HTTP/1.1 204 No Content\r\n\r\n"),
        answers(528, 119, FIN | ACK, b""),
        asks(119, 529, FIN | ACK, b""),
        answers(529, 120, ACK, b""),
    ]
}

fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
    let number = writer
        .add_interface(&InterfaceDescription::default())
        .unwrap();
    for (frame, at) in frames.iter().zip(0_u64..) {
        let time = Timestamp::from_nanos(1_700_000_000_000_000_000 + at * 1_000_000);
        let meta = FrameMeta::ethernet(time, u32::try_from(frame.len()).unwrap());
        writer.write(number, &Frame::new(frame, meta)).unwrap();
    }
    writer.finish().unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, octets: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, octets).unwrap();
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn lines_of(output: &Output) -> Vec<Value> {
    stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_cannot_be_followed_is_wrong_usage() {
    for args in [
        &[][..],
        &["nonsense"],
        &["attach"],
        &["detach"],
        &["detach", "web-1", "--all"],
        &["attach", "a b"],
        &["attach", "web-1", "--mode", "sideways"],
        &["attach", "pid:0"],
        &["flows", "--read"],
        &["flows", "--read", "a", "--watch"],
        &["flows", "--read", "a", "--container", "web-1"],
        &["flows", "--duration", "10"],
        &["flows", "--count", "0"],
        &["flows", "--snaplen", "1"],
        &["flows", "--max-connections", "0", "--read", "a"],
        &["flows", "--output", "xml"],
        &["flows", "--threads", "2"],
        &["flows", "--read", "a", "--threads", "0"],
        &["flows", "--read", "a", "--group-by", "weather"],
        &["flows", "--read", "a", "--window", "1m"],
        &["flows", "--watch", "--group-by", "client"],
        &[
            "flows",
            "--read",
            "a",
            "--group-by",
            "client",
            "--sort",
            "duration",
        ],
        &["flows", "--read", "-", "--read", "-"],
        // Of an option that is ruled out clap does not ask for what it needs.
        &["flows", "--read", "a", "--interval", "1s"],
        &["flows", "--read", "a", "--group", "service"],
        &["flows", "--duration", "1s", "--threads", "2"],
        &[
            "flows",
            "--read",
            "a",
            "--group-by",
            "client",
            "--sort",
            "start",
        ],
        &["capture", "web-1"],
        &["completions", "tcsh"],
    ] {
        let output = run(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_is_on_standard_output_and_tells_every_command() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for command in [
        "attach",
        "detach",
        "list",
        "repair",
        "flows",
        "capture",
        "doctor",
        "demo",
        "completions",
    ] {
        assert!(
            stdout(&output).contains(&format!("\n  {command}")),
            "{command}"
        );
        let help = run(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert!(stdout(&help).contains("Usage: nvcli"), "{command}");
    }
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("flows"), "{shell}");
    }
}

#[test]
fn json_has_the_elements_names_in_their_order() {
    let folder = Folder::new();
    let file = folder.file("a.pcapng", &capture(&frames()));
    let output = run(&["flows", "--read", text(&file), "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
    let records = lines_of(&output);
    assert_eq!(records.len(), 2);
    let tcp = records
        .iter()
        .find(|record| record["protocolIdentifier"] == 6)
        .unwrap();
    let expected = serde_json::json!({
        "flowStartMicroseconds": 1_700_000_000_003_000_u64,
        "flowEndMicroseconds": 1_700_000_000_010_000_u64,
        "sourceIPv4Address": "10.0.0.2",
        "destinationIPv4Address": "10.0.0.3",
        "sourceTransportPort": 40_000,
        "destinationTransportPort": 80,
        "protocolIdentifier": 6,
        "packetDeltaCount": 4,
        "reversePacketDeltaCount": 4,
        "octetDeltaCount": 178,
        "reverseOctetDeltaCount": 187,
        "layer2OctetDeltaCount": 234,
        "reverseLayer2OctetDeltaCount": 243,
        "initiatorOctets": 18,
        "responderOctets": 27,
        "tcpControlBits": 27,
        "reverseTcpControlBits": 27,
        "minimumTTL": 64,
        "reverseMaximumTTL": 64,
        "ipDiffServCodePoint": 0,
        "duplicateAcks": 0,
        "reverseZeroWindows": 0,
        "flowEndReason": 3,
        "handshakeRttMicroseconds": { "client": 1_000, "server": 1_000 },
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&tcp[key], value, "{key}");
    }
    for absent in [
        "sourceIPv6Address",
        "icmpTypeCodeIPv4",
        "vlanId",
        "workload",
        "vantage",
        "observationPointId",
        "tunnelType",
    ] {
        assert!(tcp.get(absent).is_none(), "{absent}");
    }
    let line = stdout(&output)
        .lines()
        .find(|line| line.contains("\"protocolIdentifier\":6"))
        .unwrap();
    let order = [
        "flowStartMicroseconds",
        "sourceIPv4Address",
        "packetDeltaCount",
        "flowEndReason",
        "tcpState",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|key| line.find(&format!("\"{key}\":")).unwrap())
        .collect();
    assert!(places.is_sorted(), "{line}");
}

#[test]
fn two_tags_are_told_and_tell_customers_apart() {
    let folder = Folder::new();
    let frames: Vec<Vec<u8>> = [
        &[(0x88a8, 100), (0x8100, 20)][..],
        &[(0x88a8, 100), (0x8100, 30)],
        &[(0x8100, 5 << 13)],
    ]
    .into_iter()
    .map(|tags| {
        let mut frame = datagram((CLIENT.0, 5_353), RESOLVER, b"question");
        for (kind, tag) in tags.iter().rev() {
            let (kind, tag): (u16, u16) = (*kind, *tag);
            frame.splice(12..12, [kind.to_be_bytes(), tag.to_be_bytes()].concat());
        }
        frame
    })
    .collect();
    let file = folder.file("qinq.pcapng", &capture(&frames));
    let shown = |output| run(&["flows", "--read", text(&file), "--output", output]);
    let json = shown("json");
    let mut told: Vec<_> = lines_of(&json)
        .iter()
        .map(|record| ["vlanId", "dot1qCustomerVlanId"].map(|key| record[key].as_u64()))
        .collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [[None, None], [Some(100), Some(20)], [Some(100), Some(30)]]
    );
    let csv = shown("csv");
    let mut reader = csv::Reader::from_reader(stdout(&csv).as_bytes());
    let titles = reader.headers().unwrap().clone();
    let at = titles
        .iter()
        .position(|title| title == "dot1qCustomerVlanId")
        .unwrap();
    let mut told: Vec<_> = reader
        .records()
        .map(|row| row.unwrap()[at].to_owned())
        .collect();
    told.sort_unstable();
    assert_eq!(told, ["", "20", "30"]);
    let by_vlan = run(&["flows", "--read", text(&file), "--group-by", "vlan"]);
    for table in [shown("table"), by_vlan] {
        for vlans in ["100.20", "100.30"] {
            assert!(stdout(&table).contains(vlans), "{}", stdout(&table));
        }
    }

    // In a tunnel, on a VLAN of its own: what is inside has its own tags.
    let hosts = [([192, 0, 2, 1], 50_000), ([192, 0, 2, 2], 4_789)];
    let vxlan = [&[8, 0, 0, 0, 0, 0, 77, 0][..], &frames[0]].concat();
    let mut outer = datagram(hosts[0], hosts[1], &vxlan);
    outer.splice(12..12, [0x81, 0x00, 0, 42]);
    let file = folder.file("inside.pcapng", &capture(&[outer]));
    let json = run(&[
        "flows",
        "--read",
        text(&file),
        "--decap",
        "--output",
        "json",
    ]);
    let [record] = &lines_of(&json)[..] else {
        panic!("{}", stdout(&json));
    };
    assert_eq!(
        [&record["vlanId"], &record["dot1qCustomerVlanId"]],
        [100, 20]
    );
}

/// Two datagrams on VLAN 42, each in VXLAN between the same two hosts, the second an answer.
fn wrapped() -> Vec<Vec<u8>> {
    let inside = [
        datagram((CLIENT.0, 5_353), RESOLVER, b"question"),
        datagram(RESOLVER, (CLIENT.0, 5_353), b"answer"),
    ];
    let hosts = [([192, 0, 2, 1], 50_000), ([192, 0, 2, 2], 4_789)];
    inside
        .iter()
        .zip([(hosts[0], hosts[1]), (hosts[1], hosts[0])])
        .map(|(inner, (from, to))| {
            let vxlan = [&[8, 0, 0, 0, 0, 0, 77, 0][..], inner].concat();
            let mut frame = datagram((from.0, 50_000), (to.0, 4_789), &vxlan);
            frame.splice(12..12, [0x81, 0x00, 0, 42]);
            // Expedited forwarding, and one hop less than others.
            frame[14 + 4 + 1] = 46 << 2;
            frame[14 + 4 + 8] = 63;
            frame
        })
        .collect()
}

#[test]
fn losses_that_a_file_tells_add_up_whatever_it_says() {
    let mut writer = CaptureWriter::new(Vec::new(), "test").unwrap();
    for dropped in [u64::MAX, 7] {
        let number = writer
            .add_interface(&InterfaceDescription::default())
            .unwrap();
        let frame = [0; 60];
        let meta = FrameMeta::ethernet(Timestamp::ZERO, 60);
        writer.write(number, &Frame::new(&frame, meta)).unwrap();
        let stats = SourceStats {
            dropped,
            ..SourceStats::default()
        };
        writer
            .write_statistics(number, Timestamp::ZERO, &stats)
            .unwrap();
    }
    let folder = Folder::new();
    let file = folder.file("lost.pcapng", &writer.finish().unwrap());
    // Twice, since each file's are added to those of the one before.
    let output = run(&[
        "flows",
        "--stats",
        "--read",
        text(&file),
        "--read",
        text(&file),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("18,446,744,073,709,551,615"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_tunnel_is_told_with_the_packet_that_came_out_of_it() {
    let folder = Folder::new();
    let file = folder.file("vxlan.pcapng", &capture(&wrapped()));
    let plain = run(&["flows", "--read", text(&file), "--output", "json"]);
    let records = lines_of(&plain);
    assert_eq!(records.len(), 2, "VXLAN's answers have ports of their own");
    for record in &records {
        assert_eq!(record["destinationTransportPort"], 4_789);
        assert_eq!(record["vlanId"], 42);
        assert_eq!(record["ipDiffServCodePoint"], 46);
        assert_eq!(record["maximumTTL"], 63);
        // Nothing came back.
        assert!(record.get("reverseMinimumTTL").is_none());
        assert!(record.get("reverseIpDiffServCodePoint").is_none());
        assert!(record.get("tunnelType").is_none());
    }

    let args = ["flows", "--read", text(&file), "--decap", "--output"];
    let json = run(&[&args[..], &["json"]].concat());
    let [record] = &lines_of(&json)[..] else {
        panic!("{}", stdout(&json));
    };
    for (key, value) in [
        ("sourceIPv4Address", "10.0.0.2"),
        ("destinationIPv4Address", "10.0.0.9"),
        ("tunnelType", "vxlan"),
        ("tunnelSourceIPv4Address", "192.0.2.1"),
        ("tunnelDestinationIPv4Address", "192.0.2.2"),
    ] {
        assert_eq!(record[key], value, "{key}");
    }
    for (key, value) in [
        ("tunnelId", 77),
        ("vlanId", 42),
        ("minimumTTL", 64),
        ("ipDiffServCodePoint", 0),
    ] {
        assert_eq!(record[key], value, "{key}");
    }
    assert!(record.get("tunnelSourceIPv6Address").is_none());

    let csv = run(&[&args[..], &["csv"]].concat());
    let mut reader = csv::Reader::from_reader(stdout(&csv).as_bytes());
    let titles = reader.headers().unwrap().clone();
    let row = reader.records().next().unwrap().unwrap();
    for (key, value) in record.as_object().unwrap() {
        let at = titles.iter().position(|title| title == key).unwrap();
        assert_eq!(row[at], value.to_string().replace('"', ""), "{key}");
    }
}

#[test]
fn filters_choose_records() {
    let folder = Folder::new();
    let file = folder.file("a.pcapng", &capture(&frames()));
    // Of the HTTP connection and the DNS query.
    for (filter, expected) in [
        ("", [6, 17].as_slice()),
        ("--protocol tcp", &[6]),
        ("--protocol 17", &[17]),
        ("--protocol tcp --protocol udp", &[6, 17]),
        ("--protocol icmp", &[]),
        ("--port 80", &[6]),
        ("--port 5353", &[17]),
        ("--port 80 --port 53", &[6, 17]),
        ("--port 81", &[]),
        ("--host 10.0.0.2", &[6, 17]),
        ("--host 10.0.0.9", &[17]),
        ("--host 10.0.0.2/31", &[6, 17]),
        ("--host 10.0.0.8/30", &[17]),
        ("--host 2001:db8::/32", &[]),
        ("--host 10.0.0.2 --port 80", &[6]),
        ("--host 10.0.0.9 --port 80", &[]),
        ("--count 1 --protocol udp", &[17]),
        ("--sort octets --count 1 --protocol udp", &[17]),
    ] {
        let args = ["flows", "--read", text(&file), "--output", "json"];
        let output = run(&[&args[..], &filter.split_whitespace().collect::<Vec<_>>()].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let mut protocols: Vec<u64> = lines_of(&output)
            .iter()
            .map(|record| record["protocolIdentifier"].as_u64().unwrap())
            .collect();
        protocols.sort_unstable();
        assert_eq!(protocols, expected, "{filter}");
    }
    for wrong in [
        "--port 65536",
        "--host web-1",
        "--host 10.0.0.0/33",
        "--protocol http",
    ] {
        let args = ["flows", "--read", text(&file)];
        let output = run(&[&args[..], &wrong.split_whitespace().collect::<Vec<_>>()].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn an_expression_chooses_frames() {
    let folder = Folder::new();
    let path = folder.file("a.pcapng", &capture(&frames()));
    for (expression, records, frames) in [
        (&["tcp port 80 and host 10.0.0.2"][..], 1, 8),
        (&["udp"], 1, 2),
        // Unquoted, as tcpdump takes it.
        (&["src", "port", "53", "or", "arp"], 1, 2),
        (&["not ip"], 0, 1),
    ] {
        let mut args = vec![
            "flows",
            "--read",
            text(&path),
            "--stats",
            "--output",
            "json",
        ];
        args.extend(expression);
        let output = run(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(lines_of(&output).len(), records, "{expression:?}");
        let told = stderr(&output);
        assert!(told.contains(&format!("{frames} frames read")), "{told}");
        let left_out = format!("{} frames left out by the filter", 11 - frames);
        assert!(told.contains(&left_out), "{told}");
    }
}

#[test]
fn an_expression_that_is_not_understood_is_wrong_usage() {
    let folder = Folder::new();
    let path = folder.file("a.pcapng", &capture(&frames()));
    for (args, place) in [
        (&["flows", "tcp prt 443"][..], "because:     ^ expected"),
        (&["flows", "broadcast"], "use `multicast`"),
        (
            &["flows", "--read", text(&path), "inbound"],
            "does not tell the direction",
        ),
        (
            &["capture", "web-1", "-w", "/dev/null", "--filter", "port"],
            "found the end",
        ),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(place), "{}", stderr(&output));
        assert!(stdout(&output).is_empty());
    }
}

/// Many connections of a few clients with two servers: each is one SYN, its answer, a reset.
fn many(connections: u16) -> Vec<Vec<u8>> {
    (0..connections)
        .flat_map(|n| {
            let client = ([10, 0, 1, (n % 5) as u8], 20_000 + n);
            let server = ([10, 0, 2, (n % 2) as u8], 443);
            [
                segment(client, server, 1, 0, SYN, b""),
                segment(server, client, 9, 2, SYN | ACK, b""),
                segment(client, server, 2, 10, ACK, b"request"),
            ]
        })
        .collect()
}

#[test]
fn many_threads_tell_the_records_of_one() {
    let folder = Folder::new();
    let mut all = frames();
    all.extend(many(700));
    let file = folder.file("many.pcapng", &capture(&all));
    let told = |threads: &str| {
        let args = [
            "flows",
            "--read",
            text(&file),
            "--output",
            "json",
            "--stats",
        ];
        let output = run(&[&args[..], &["--threads", threads]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let accounted = stderr(&output).lines().next().unwrap().to_owned();
        let mut lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
        lines.sort();
        (lines, accounted)
    };
    let one = told("1");
    assert_eq!(one.0.len(), 702);
    for threads in ["2", "5"] {
        assert_eq!(told(threads), one, "{threads} threads");
    }
    // Who has had enough ends the run, however many read.
    let output = run(&[
        "flows",
        "--read",
        text(&file),
        "--threads",
        "3",
        "-n",
        "4",
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(lines_of(&output).len(), 4);
}

#[test]
fn connections_are_added_up_by_what_they_share() {
    let folder = Folder::new();
    let mut all = frames();
    all.extend(many(700));
    let file = folder.file("many.pcapng", &capture(&all));
    let run_with = |more: &[&str]| {
        let output = run(&[&["flows", "--read", text(&file)][..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    };
    for threads in ["1", "3"] {
        let by = [
            "--group-by",
            "server,port",
            "--output",
            "json",
            "--threads",
            threads,
        ];
        let sums = lines_of(&run_with(&by));
        let keys: Vec<String> = sums
            .iter()
            .map(|sum| format!("{} {}", sum["server"], sum["destinationTransportPort"]))
            .collect();
        assert_eq!(
            keys,
            [
                r#""10.0.2.0" 443"#,
                r#""10.0.2.1" 443"#,
                r#""10.0.0.3" 80"#,
                r#""10.0.0.9" 53"#
            ]
        );
        let first = &sums[0];
        assert_eq!(first["records"], 350);
        assert_eq!(first["connectionsOpened"], 350);
        assert_eq!(first["packetDeltaCount"], 700);
        assert_eq!(first["reversePacketDeltaCount"], 350);
        assert_eq!(first["initiatorOctets"], 350 * 7);
        assert_eq!(first["handshakeRttMicroseconds"]["count"], 350);
        // A millisecond from SYN to its answer, one from there to the ACK: at most an eighth too high.
        let median = first["handshakeRttMicroseconds"]["p50"].as_u64().unwrap();
        assert!((2_000..=2_250).contains(&median), "{median}");
        assert!(first.get("client").is_none() && first.get("windowStartMicroseconds").is_none());
    }

    // 2,111 frames a millisecond apart: three windows, and nothing is lost between them.
    let sums = lines_of(&run_with(&[
        "--group-by",
        "protocol",
        "--window",
        "1s",
        "--output",
        "json",
    ]));
    let windows: Vec<u64> = sums
        .iter()
        .map(|sum| sum["windowStartMicroseconds"].as_u64().unwrap())
        .collect();
    assert!(windows.is_sorted() && windows.iter().all(|start| start % 1_000_000 == 0));
    let records: u64 = sums
        .iter()
        .map(|sum| sum["records"].as_u64().unwrap())
        .sum();
    assert_eq!(records, 702);

    // What has no room is in one line, and it is said.
    let output = run_with(&[
        "--group-by",
        "client-port",
        "--max-groups",
        "100",
        "--output",
        "csv",
    ]);
    let mut reader = csv::Reader::from_reader(&*output.stdout);
    let at = |name: &str, reader: &mut csv::Reader<&[u8]>| {
        reader
            .headers()
            .unwrap()
            .iter()
            .position(|title| title == name)
            .unwrap()
    };
    let (rest, records) = (at("rest", &mut reader), at("records", &mut reader));
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 101);
    assert_eq!((&rows[100][rest], &rows[100][records]), ("true", "602"));
    assert!(
        stderr(&output).contains("602 records"),
        "{}",
        stderr(&output)
    );

    let table = run_with(&["--group-by", "client,server,port,protocol", "-n", "2"]);
    let lines: Vec<&str> = stdout(&table).lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("CLIENT") && lines[0].contains("OCTETS"));
    assert!(
        lines[1].contains("10.0.2.") && lines[1].contains("tcp"),
        "{lines:?}"
    );
}

#[test]
fn csv_has_the_same_names_and_one_row_a_record() {
    let folder = Folder::new();
    let file = folder.file("a.pcapng", &capture(&frames()));
    let output = run(&["flows", "--read", text(&file), "--output", "csv"]);
    let mut reader = csv::Reader::from_reader(stdout(&output).as_bytes());
    let titles = reader.headers().unwrap().clone();
    let of = |row: &csv::StringRecord, title: &str| {
        let at = titles.iter().position(|name| name == title).unwrap();
        row[at].to_owned()
    };
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2);
    let tcp = rows
        .iter()
        .find(|row| of(row, "protocolIdentifier") == "6")
        .unwrap();
    assert_eq!(of(tcp, "responderOctets"), "27");
    assert_eq!(of(tcp, "handshakeRttMicroseconds.server"), "1000");
    assert_eq!(of(tcp, "sourceIPv6Address"), "");

    let bare = run(&[
        "flows",
        "--read",
        text(&file),
        "--output",
        "csv",
        "--no-header",
    ]);
    assert_eq!(stdout(&bare).lines().count(), 2);
    let empty = folder.file("empty.pcapng", &capture(&[]));
    let output = run(&["flows", "--read", text(&empty), "--output", "csv"]);
    assert!(stdout(&output).starts_with("flowStartMicroseconds,"));
    assert_eq!(stdout(&output).lines().count(), 1);
}

#[test]
fn a_table_is_whole_without_a_terminal_and_fits_the_columns_told() {
    let folder = Folder::new();
    let file = folder.file("a.pcapng", &capture(&frames()));
    let args = ["flows", "--read", text(&file), "--sort", "octets"];
    let whole = run(&args);
    assert_eq!(
        stdout(&whole),
        "CLIENT                 SERVER                 PROTO  APPLICATION   STATE          PACKETS       OCTETS    RTT   TIME  END\n\
         10.0.0.2:40000         10.0.0.3:80            tcp    http GET 204  CLOSED             4/4      178/187  2.0ms  7.0ms  closed\n\
         10.0.0.2:5353          10.0.0.9:53            udp    domain?                          1/1        36/42         1.0ms  open\n"
    );
    let plain = run(&[&args[..], &["--no-identify"]].concat());
    assert_eq!(
        stdout(&plain),
        "CLIENT                 SERVER                 PROTO  STATE          PACKETS       OCTETS    RTT   TIME  END\n\
         10.0.0.2:40000         10.0.0.3:80            tcp    CLOSED             4/4      178/187  2.0ms  7.0ms  closed\n\
         10.0.0.2:5353          10.0.0.9:53            udp                       1/1        36/42         1.0ms  open\n"
    );
    // All that stays is shown whole; what has no room is left out.
    let narrow = nvcli().args(args).env("COLUMNS", "80").output().unwrap();
    assert_eq!(stdout(&narrow).lines().count(), 3);
    for line in stdout(&narrow).lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(
        stdout(&narrow).contains("10.0.0.2:40000"),
        "{}",
        stdout(&narrow)
    );
    assert!(!stdout(&narrow).contains("STATE"), "{}", stdout(&narrow));
    let bare = run(&["flows", "--read", text(&file), "--no-header"]);
    assert_eq!(stdout(&bare).lines().count(), 2);
    assert!(!stdout(&bare).contains("CLIENT"));
}

/// A ClientHello that asks for `name`, in its record.
fn hello(name: &[u8]) -> Vec<u8> {
    let long = |octets: &[u8]| {
        let length = u16::try_from(octets.len()).unwrap();
        [&length.to_be_bytes(), octets].concat()
    };
    let names = long(&[&[0], &long(name)[..]].concat());
    let extensions = long(&[&[0, 0], &long(&names)[..]].concat());
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &extensions,
    ]
    .concat();
    let message = [&[1, 0], &long(&body)[..]].concat();
    [&[22, 3, 1], &long(&message)[..]].concat()
}

#[test]
fn hostile_names_from_frames_are_shown_harmless() {
    let name = "evil\n\x1b[2J\u{202e}.example";
    // 255 octets, of characters that ring the bell and of what a spreadsheet takes for a formula.
    let label = [&[63][..], &[7; 63]].concat();
    let query = [
        &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
        &[61],
        &[b'='; 61],
        &label,
        &label,
        &label,
        &[0, 0, 1, 0, 1],
    ]
    .concat();
    let web = ([10, 0, 0, 2], 40_001);
    let request = b"GET / HTTP/1.1\r\nHost: =cmd|'/c calc'\r\n\r\n";
    let frames = [
        segment(CLIENT, SERVER, 9, 0, SYN, b""),
        segment(CLIENT, SERVER, 10, 1, ACK, &hello(name.as_bytes())),
        datagram(CLIENT, RESOLVER, &query),
        segment(web, SERVER, 10, 1, ACK, request),
    ];
    let folder = Folder::new();
    let file = folder.file("a.pcapng", &capture(&frames));
    let shown = |output: &str| {
        let output = run(&["flows", "--read", text(&file), "--output", output]);
        let shown = stdout(&output).to_owned();
        let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!shown.contains(harmful), "{shown}");
        shown
    };
    let table = shown("table");
    assert_eq!(table.lines().count(), 4);
    assert!(
        table.contains("tls evil\\n\\x1b[2J\\u{202e}.example"),
        "{table}"
    );
    // A name that is long beyond use does not make the table so.
    assert!(table.lines().all(|line| line.len() < 250), "{table}");

    let json = shown("json");
    let records: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told = |key: &str| records.iter().find_map(|record| record[key].as_str());
    assert_eq!(told("tlsServerName"), Some(name));
    let asked = format!(
        "{}{}",
        "=".repeat(61),
        format!(".{}", "\\007".repeat(63)).repeat(3)
    );
    assert_eq!(told("dnsQueryName"), Some(asked.as_str()));
    assert_eq!(told("httpRequestHost"), Some("=cmd|'/c calc'"));

    let table = shown("csv");
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let fields: Vec<String> = reader
        .records()
        .flat_map(|row| row.unwrap().iter().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(fields.iter().any(|field| field == "'=cmd|'/c calc'"));
    let formula = |field: &&String| field.starts_with(['=', '+', '@']);
    assert_eq!(fields.iter().find(formula), None);
}

#[test]
fn count_ends_the_run_and_with_sort_takes_the_first() {
    let folder = Folder::new();
    let file = folder.file("a.pcapng", &capture(&frames()));
    let output = run(&[
        "flows",
        "--read",
        text(&file),
        "--output",
        "json",
        "--count",
        "1",
    ]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(lines_of(&output).len(), 1);
    for (key, protocol) in [("octets", 6), ("start", 17)] {
        let output = run(&[
            "flows",
            "--read",
            text(&file),
            "--output",
            "json",
            "--count",
            "1",
            "--sort",
            key,
        ]);
        let records = lines_of(&output);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0]["protocolIdentifier"], protocol, "{key}");
    }
}

#[test]
fn stats_account_for_every_frame_on_standard_error() {
    let folder = Folder::new();
    let mut all = frames();
    // An IPv4 header that ends too soon.
    all.push(vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
    let file = folder.file("a.pcapng", &capture(&all));
    let output = run(&[
        "flows",
        "--read",
        text(&file),
        "--output",
        "json",
        "--stats",
    ]);
    assert_eq!(lines_of(&output).len(), 2);
    let told = "12 frames read = 10 metered + 1 not IP + 1 unparsed + 0 refused";
    assert!(stderr(&output).contains(told), "{}", stderr(&output));
}

#[test]
fn several_files_are_read_as_one_and_standard_input_too() {
    let folder = Folder::new();
    let all = frames();
    let first = folder.file("1.pcapng", &capture(&all[..6]));
    let output = {
        let mut child = nvcli()
            .args([
                "flows",
                "--read",
                text(&first),
                "--read",
                "-",
                "--output",
                "json",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&capture(&all[6..]))
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let records = lines_of(&output);
    assert_eq!(records.len(), 2);
    let tcp = records
        .iter()
        .find(|record| record["protocolIdentifier"] == 6)
        .unwrap();
    assert_eq!(
        (&tcp["packetDeltaCount"], &tcp["flowEndReason"]),
        (&4.into(), &3.into())
    );
}

#[test]
fn a_damaged_capture_gives_its_records_and_an_error() {
    let folder = Folder::new();
    let mut octets = capture(&frames());
    octets.truncate(octets.len() - 10);
    let file = folder.file("cut.pcapng", &octets);
    let output = run(&["flows", "--read", text(&file), "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let records = lines_of(&output);
    assert_eq!(records.len(), 2);
    let tcp = records
        .iter()
        .find(|record| record["protocolIdentifier"] == 6)
        .unwrap();
    assert_eq!(
        tcp["reversePacketDeltaCount"], 3,
        "the last frame is the damaged one"
    );
    let told = stderr(&output);
    assert!(
        told.contains("was not read to its end")
            && told.contains("offset")
            && told.contains("try: "),
        "{told}"
    );
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_cause() {
    let folder = Folder::new();
    let nonsense = folder.file(
        "nonsense",
        b"this is no capture at all, but long enough to be one",
    );
    let empty = folder.file("empty", b"");
    let missing = folder.0.path().join("missing\x1b[31m\nerror: forged");
    for (path, says) in [
        (nonsense.as_path(), "neither pcap nor pcapng"),
        (empty.as_path(), "cannot read"),
        (missing.as_path(), "No such file"),
        (folder.0.path(), "Is a directory"),
    ] {
        let output = run(&["flows", "--read", text(path)]);
        assert_eq!(output.status.code(), Some(1), "{path:?}");
        assert!(output.stdout.is_empty());
        let told = stderr(&output);
        assert!(told.starts_with("error: ") && told.contains(says), "{told}");
        assert!(
            !told.contains('\x1b') && !told.contains("\nerror: forged"),
            "{told}"
        );
    }
}

#[test]
fn one_bad_file_does_not_keep_the_others() {
    let folder = Folder::new();
    let good = folder.file("a.pcapng", &capture(&frames()));
    let output = run(&[
        "flows",
        "--read",
        "/nonexistent",
        "--read",
        text(&good),
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines_of(&output).len(), 2);
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    let folder = Folder::new();
    // More records than a pipe and all buffers hold.
    let many: Vec<Vec<u8>> = (0..20_000_u16)
        .map(|port| datagram((CLIENT.0, port), RESOLVER, b"question"))
        .collect();
    let file = folder.file("many.pcapng", &capture(&many));
    for output in ["json", "csv", "table"] {
        let mut child = nvcli()
            .args(["flows", "--read", text(&file), "--output", output])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 16];
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut first).unwrap();
        drop(pipe);
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{output}: {}", stderr(&ended));
        assert!(ended.stderr.is_empty(), "{output}: {}", stderr(&ended));
    }
}

#[test]
fn a_full_table_refuses_no_memory_and_says_so() {
    let folder = Folder::new();
    let many: Vec<Vec<u8>> = (0..1_000_u16)
        .map(|port| datagram((CLIENT.0, port), RESOLVER, b"question"))
        .collect();
    let file = folder.file("many.pcapng", &capture(&many));
    let output = run(&[
        "flows",
        "--read",
        text(&file),
        "--output",
        "json",
        "--max-connections",
        "16",
        "--stats",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let records = lines_of(&output);
    let packets: u64 = records
        .iter()
        .map(|record| record["packetDeltaCount"].as_u64().unwrap())
        .sum();
    assert_eq!(packets, 1_000);
    assert!(records.iter().any(|record| record["flowEndReason"] == 5));
    assert!(
        stderr(&output).contains("16 at the same time at most"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn no_engine_is_said_with_the_way_round_it() {
    let output = run(&["attach", "web-1"]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(
        told.contains("no Docker engine") && told.contains("pid:N"),
        "{told}"
    );
    let output = nvcli()
        .args(["attach", "web-1"])
        .env("DOCKER_HOST", "tcp://10.0.0.1:2375")
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("no socket of this machine"),
        "{}",
        stderr(&output)
    );
    let output = run(&["attach", "netns:no-such-name-at-all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("No such file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn doctor_tells_each_finding_as_json_too() {
    let output = run(&["doctor", "--output", "json", "--quiet"]);
    let findings = lines_of(&output);
    assert!(
        findings
            .iter()
            .any(|finding| finding["check"] == "privileges")
    );
    let docker = findings
        .iter()
        .find(|finding| finding["check"] == "docker")
        .unwrap();
    assert_eq!(docker["verdict"], "warn");
    assert!(docker["try"].is_string());
    let fails = findings.iter().any(|finding| finding["verdict"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(fails)));
}

/// Who writes may be silent for ever, or not be there yet.
#[test]
fn a_signal_ends_the_wait_for_a_pipe() {
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::time::{Duration, Instant};

    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let long = Duration::from_secs(20);
    for writes in [true, false] {
        let mut child = nvcli()
            .args(["flows", "--output", "json", "--read"])
            .arg(&fifo)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It can be opened as soon as somebody reads.
        let began = Instant::now();
        let mut writer = loop {
            let opened = std::fs::OpenOptions::new()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&fifo);
            match opened {
                Ok(writer) => break writer,
                Err(error) => assert!(began.elapsed() < long, "{error}"),
            }
            std::thread::yield_now();
        };
        if writes {
            writer.write_all(&capture(&frames())).unwrap();
        }
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let asked = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if asked.elapsed() > long {
                child.kill().unwrap();
                panic!("it still waits");
            }
            std::thread::yield_now();
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
        drop(writer);
    }
}

/// Somebody listens there, and the socket's mode lets nobody in: root may all the same, but without one of its capabilities.
#[test]
fn an_agent_that_may_not_be_asked_is_told_from_none() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    let folder = Folder::new();
    let socket = folder.0.path().join("agent.sock");
    let status = || {
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set=-dac_override", "--"]);
            command.arg(env!("CARGO_BIN_EXE_nvcli"));
            command
        } else {
            nvcli()
        };
        let output = command.args(["status", "--socket", text(&socket)]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    let closed = std::fs::Permissions::from_mode(0o000);
    let listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, closed).unwrap();
    let said = status();
    assert!(said.contains("an agent runs, but"), "{said}");
    assert!(said.contains("the same as root"), "{said}");
    // What is left of one that was killed.
    drop(listener);
    let said = status();
    assert!(said.contains("no agent runs"), "{said}");
}
