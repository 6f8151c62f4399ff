//! Exports, read back by the systems they are for, and by readers that misbehave.

#[path = "../../../nvnet/tests/common/mod.rs"]
mod common;
mod decode;
mod nats;
mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Need, ensure, privileged, same, sh};
use decode::{Decoder, messages, of};
use libtest_mimic::{Arguments, Failed, Trial};
use nvcapture::{CaptureWriter, Frame, FrameMeta, InterfaceDescription, Timestamp};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![
        privileged(
            "nfdump_reads_back_every_record",
            &[Need::Nfdump],
            nfdump_reads_back_every_record,
        ),
        privileged("tshark_decodes_every_message", &[Need::Tshark], || {
            tshark_decodes_every_message("udp", "?mtu=700&template-messages=5&rate=2000")?;
            tshark_decodes_every_message("tcp", "")
        }),
        privileged(
            "a_full_disk_is_survived",
            &[Need::Netns],
            a_full_disk_is_survived,
        ),
        privileged(
            "a_full_disk_gets_no_segment_for_each_try",
            &[Need::Netns],
            a_full_disk_gets_no_segment_for_each_try,
        ),
        privileged(
            "prometheus_scrapes_the_sums",
            &[Need::Prometheus],
            prometheus_scrapes_the_sums,
        ),
    ];
    trials.push(privileged(
        "a_live_run_exports_with_names",
        &[Need::Netns, Need::Ebpf],
        a_live_run_exports_with_names,
    ));
    for (name, test) in [
        (
            "a_nats_consumer_gets_every_record",
            a_nats_consumer_gets_every_record as fn() -> Result<(), Failed>,
        ),
        (
            "a_broker_that_is_killed_in_the_middle_gets_every_record",
            a_broker_that_is_killed_in_the_middle_gets_every_record,
        ),
        (
            "records_wait_on_disk_for_a_broker",
            records_wait_on_disk_for_a_broker,
        ),
    ] {
        trials.push(privileged(name, &[Need::Nats], test));
    }
    type Plain = (&'static str, fn() -> Result<(), Failed>);
    let plain: [Plain; 11] = [
        (
            "otlp_is_what_opentelemetry_reads",
            otlp_is_what_opentelemetry_reads,
        ),
        (
            "metrics_are_served_to_whoever_asks_properly",
            metrics_are_served_to_whoever_asks_properly,
        ),
        (
            "a_broker_that_is_away_costs_what_the_buffer_cannot_hold",
            a_broker_that_is_away_costs_what_the_buffer_cannot_hold,
        ),
        (
            "files_and_standard_output_hold_what_is_shown",
            files_and_standard_output_hold_what_is_shown,
        ),
        ("ipfix_says_what_json_says", ipfix_says_what_json_says),
        (
            "templates_are_sent_again_and_messages_fit",
            templates_are_sent_again_and_messages_fit,
        ),
        (
            "a_unix_socket_that_closes_is_found_again",
            a_unix_socket_that_closes_is_found_again,
        ),
        (
            "a_tcp_collector_that_closes_is_found_again",
            a_tcp_collector_that_closes_is_found_again,
        ),
        (
            "a_collector_that_comes_late_gets_everything",
            a_collector_that_comes_late_gets_everything,
        ),
        (
            "a_collector_that_is_away_costs_records_and_no_memory",
            a_collector_that_is_away_costs_records_and_no_memory,
        ),
        (
            "what_cannot_be_followed_is_told",
            what_cannot_be_followed_is_told,
        ),
    ];
    for (name, test) in plain {
        trials.push(Trial::test(name, test));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A directory with a capture of so many connections.
struct Fixture {
    directory: tempfile::TempDir,
    capture: PathBuf,
}

impl Fixture {
    fn new(connections: u16) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let capture = directory.path().join("capture.pcapng");
        traffic::capture(&capture, connections);
        Ok(Self { directory, capture })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, output: &str, exports: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
        command
            .args(["flows", "--output", output, "--read"])
            .arg(&self.capture)
            .env_remove("NVCLI_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for export in exports {
            command.args(["--export", export]);
        }
        command
    }

    /// Runs to the end, and gives the records that were shown.
    fn run(&self, exports: &[&str]) -> Result<Vec<Value>, Failed> {
        let output = self.command("json", exports).output()?;
        ensure(output.status.success(), text(&output.stderr))?;
        records(&text(&output.stdout))
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn records(lines: &str) -> Result<Vec<Value>, Failed> {
    let parsed = lines.lines().map(serde_json::from_str);
    Ok(parsed.collect::<Result<_, _>>()?)
}

/// Ends with its process.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Result<Self, Failed> {
        Ok(Self(command.spawn()?))
    }

    /// Asks it to end, and waits until it has.
    fn end(&mut self) -> Result<(), Failed> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }

    fn output(mut self) -> Result<Output, Failed> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(mut pipe) = self.0.stdout.take() {
            pipe.read_to_end(&mut stdout)?;
        }
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_end(&mut stderr)?;
        }
        let status = self.0.wait()?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls until `done` says so.
fn until(what: &str, mut done: impl FnMut() -> Result<bool, Failed>) -> Result<(), Failed> {
    let began = Instant::now();
    while !done()? {
        ensure(began.elapsed() < PATIENCE, format!("never: {what}"))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A port of UDP that nobody has.
fn free_udp_port() -> Result<u16, Failed> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Whether somebody has bound the port of UDP.
fn is_bound(port: u16) -> Result<bool, Failed> {
    let sockets = std::fs::read_to_string("/proc/net/udp")?;
    Ok(sockets.contains(&format!(":{port:04X} 00000000:0000 ")))
}

/// All datagrams that come until `child` has ended and none is left, in order.
fn received(socket: &UdpSocket, child: Running) -> Result<(Vec<Vec<u8>>, Output), Failed> {
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let ended = std::thread::spawn(move || child.output().map_err(|error| format!("{error:?}")));
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let was_over = ended.is_finished();
        match socket.recv(&mut buffer) {
            Ok(length) => datagrams.push(buffer[..length].to_vec()),
            Err(_) if was_over => break,
            Err(_) => {}
        }
    }
    let output = ended.join().map_err(|_| "the reading thread panicked")??;
    Ok((datagrams, output))
}

/// Numbers of a record that every format has.
fn numbers(record: &Value) -> [u64; 6] {
    [
        "packetDeltaCount",
        "reversePacketDeltaCount",
        "octetDeltaCount",
        "reverseOctetDeltaCount",
        "sourceTransportPort",
        "destinationTransportPort",
    ]
    .map(|key| record[key].as_u64().unwrap_or(0))
}

fn address<'v>(record: &'v Value, which: &str) -> &'v str {
    let v4 = record[format!("{which}IPv4Address")].as_str();
    v4.or_else(|| record[format!("{which}IPv6Address")].as_str())
        .unwrap_or_default()
}

/// As nfdump writes times in UTC, with milliseconds.
fn time(micros: u64) -> String {
    let millis = micros / 1_000;
    let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
    // Howard Hinnant's `civil_from_days`, for years from 1970 on.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, millis) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
}

fn nfdump_reads_back_every_record() -> Result<(), Failed> {
    let fixture = Fixture::new(600)?;
    let port = free_udp_port()?;
    let folder = fixture.path("nfcapd");
    std::fs::create_dir(&folder)?;
    let mut collector = Command::new("nfcapd");
    collector
        .args([
            "-b",
            "127.0.0.1",
            "-B",
            "8000000",
            "-p",
            &port.to_string(),
            "-w",
        ])
        .arg(&folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut collector = Running::start(collector)?;
    until("nfcapd listens", || is_bound(port))?;
    let shown = fixture.run(&[&format!("ipfix+udp://127.0.0.1:{port}?rate=500")])?;
    same("connections", shown.len(), 600)?;
    // What is in its socket is read before it looks at the signal.
    until("nfcapd has read everything", || {
        let sockets = std::fs::read_to_string("/proc/net/udp")?;
        let is_empty = format!(":{port:04X} 00000000:0000 07 00000000:00000000");
        Ok(sockets.contains(&is_empty))
    })?;
    collector.end()?;
    let output = Command::new("nfdump")
        .args(["-q", "-o", "json", "-R"])
        .arg(&folder)
        .env("TZ", "UTC")
        .output()?;
    // Its objects have commas between them and no brackets around them.
    let objects = text(&output.stdout);
    let objects = objects.trim().trim_matches(['[', ']', ',']);
    let read: Vec<Value> = serde_json::from_str(&format!("[{objects}]"))?;

    type Row = (String, String, String, String, u64, [u64; 6]);
    let mut ours: Vec<Row> = shown
        .iter()
        .map(|record| {
            (
                time(record["flowStartMicroseconds"].as_u64().unwrap_or(0)),
                time(record["flowEndMicroseconds"].as_u64().unwrap_or(0)),
                address(record, "source").to_owned(),
                address(record, "destination").to_owned(),
                record["protocolIdentifier"].as_u64().unwrap_or(0),
                numbers(record),
            )
        })
        .collect();
    let mut theirs: Vec<Row> = read
        .iter()
        .map(|record| {
            let number = |key: &str| record[key].as_u64().unwrap_or(0);
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            let address = |which: &str| {
                let v4 = record[format!("{which}4_addr")].as_str();
                let address = v4.or_else(|| record[format!("{which}6_addr")].as_str());
                // It writes IPv6 in its own way.
                let parsed = address.and_then(|text| text.parse::<IpAddr>().ok());
                parsed
                    .map(|address| address.to_string())
                    .unwrap_or_default()
            };
            // Where others have the destination's port it has ICMP's type and code.
            let is_icmp = matches!(number("proto"), 1 | 58);
            (
                text("first"),
                text("last"),
                address("src"),
                address("dst"),
                number("proto"),
                [
                    number("in_packets"),
                    number("out_packets"),
                    number("in_bytes"),
                    number("out_bytes"),
                    number("src_port"),
                    if is_icmp { 0 } else { number("dst_port") },
                ],
            )
        })
        .collect();
    ours.sort();
    theirs.sort();
    same("records", theirs.len(), ours.len())?;
    for (theirs, ours) in theirs.iter().zip(&ours) {
        same("nfdump's record and ours", theirs, ours)?;
    }
    Ok(())
}

/// Collects what nvcli sends over UDP or TCP, message by message.
fn collected(
    fixture: &Fixture,
    transport: &str,
    options: &str,
) -> Result<(Vec<Vec<u8>>, Vec<Value>), Failed> {
    let (messages, output) = if transport == "udp" {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let url = format!("ipfix+udp://{}{options}", socket.local_addr()?);
        received(&socket, Running::start(fixture.command("json", &[&url]))?)?
    } else {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("ipfix+tcp://{}{options}", listener.local_addr()?);
        let child = Running::start(fixture.command("json", &[&url]))?;
        let reader = std::thread::spawn(move || {
            let mut stream = Vec::new();
            listener
                .accept()
                .and_then(|(mut peer, _)| peer.read_to_end(&mut stream))?;
            std::io::Result::Ok(stream)
        });
        let output = child.output()?;
        let stream = reader.join().map_err(|_| "the reading thread panicked")??;
        let (whole, rest) = messages(&stream);
        same("octets behind the last message", rest, 0)?;
        (whole.into_iter().map(<[u8]>::to_vec).collect(), output)
    };
    ensure(output.status.success(), text(&output.stderr))?;
    Ok((messages, records(&text(&output.stdout))?))
}

fn tshark_decodes_every_message(transport: &str, options: &str) -> Result<(), Failed> {
    let fixture = Fixture::new(300)?;
    let (messages, shown) = collected(&fixture, transport, options)?;
    // As datagrams to a file: both are the same messages.
    let path = fixture.path("messages.pcapng");
    let mut writer = CaptureWriter::new(std::fs::File::create(&path)?, "test")?;
    let interface = writer.add_interface(&InterfaceDescription::default())?;
    for message in &messages {
        let length = u16::try_from(message.len())?;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        frame.extend((28 + length).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
        frame.extend([0x13, 0x88, 0x12, 0x83]);
        frame.extend((8 + length).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(message);
        let time = Timestamp::from_nanos(1_700_000_000_000_000_000);
        let meta = FrameMeta::ethernet(time, u32::try_from(frame.len())?);
        writer.write(interface, &Frame::new(&frame, meta))?;
    }
    writer.finish()?;
    let decoded = sh(&format!(
        "tshark -d udp.port==4739,cflow -V -r {}",
        path.display()
    ))?;
    for bad in [
        "Malformed",
        "malformed",
        "No template",
        "Expert Info",
        "Unknown",
    ] {
        let line = decoded.lines().find(|line| line.contains(bad));
        same("what tshark complains of", line, None)?;
    }
    let sum_of = |key: &str, is_reverse: bool| -> u64 {
        decoded
            .lines()
            .filter_map(|line| line.trim().strip_prefix(key))
            .filter(|rest| rest.contains("(Reverse") == is_reverse)
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .sum()
    };
    for (key, ours) in [
        ("Packets: ", ["packetDeltaCount", "reversePacketDeltaCount"]),
        ("Octets: ", ["octetDeltaCount", "reverseOctetDeltaCount"]),
        (
            "Layer2 Octet Delta Count: ",
            ["layer2OctetDeltaCount", "reverseLayer2OctetDeltaCount"],
        ),
    ] {
        for (ours, is_reverse) in ours.into_iter().zip([false, true]) {
            let sum: u64 = shown
                .iter()
                .filter_map(|record| record[ours].as_u64())
                .sum();
            same(ours, sum_of(key, is_reverse), sum)?;
        }
    }
    let initiators = decoded.matches("Biflow Direction: Initiator (1)").count();
    same("records", initiators, shown.len())?;
    let names = decoded
        .matches("Information Element Name: peerWorkload")
        .count();
    ensure(names >= 1, "the types of our elements are told")
}

/// The element of a key of JSON, as RFC 7012, RFC 5103 and docs/export.md have it.
fn elements() -> HashMap<&'static str, decode::Key> {
    const REVERSE: u32 = 29_305;
    HashMap::from([
        ("sourceIPv4Address", (0, 8)),
        ("sourceIPv6Address", (0, 27)),
        ("destinationIPv4Address", (0, 12)),
        ("destinationIPv6Address", (0, 28)),
        ("sourceTransportPort", (0, 7)),
        ("destinationTransportPort", (0, 11)),
        ("protocolIdentifier", (0, 4)),
        ("icmpTypeCodeIPv4", (0, 32)),
        ("icmpTypeCodeIPv6", (0, 139)),
        ("packetDeltaCount", (0, 2)),
        ("reversePacketDeltaCount", (REVERSE, 2)),
        ("octetDeltaCount", (0, 1)),
        ("reverseOctetDeltaCount", (REVERSE, 1)),
        ("layer2OctetDeltaCount", (0, 352)),
        ("reverseLayer2OctetDeltaCount", (REVERSE, 352)),
        ("initiatorOctets", (0, 231)),
        ("responderOctets", (0, 232)),
        ("tcpControlBits", (0, 6)),
        ("reverseTcpControlBits", (REVERSE, 6)),
        ("minimumTTL", (0, 52)),
        ("maximumTTL", (0, 53)),
        ("ipDiffServCodePoint", (0, 195)),
        ("flowEndReason", (0, 136)),
        ("tcpState", (4711, 1)),
        ("smoothedRttMicroseconds", (4711, 4)),
        ("reverseSmoothedRttMicroseconds", (4711, 0x4004)),
        ("retransmittedSegments", (4711, 5)),
        ("reverseRetransmittedSegments", (4711, 0x4005)),
    ])
}

/// Compares every value of every record, in the order in which they came.
fn same_as_json(decoder: &Decoder, shown: &[Value]) -> Result<(), Failed> {
    same("records", decoder.records.len(), shown.len())?;
    let elements = elements();
    for (record, json) in decoder.records.iter().zip(shown) {
        for (name, key) in &elements {
            let (octets, value) = (record.get(key), &json[*name]);
            let is_same = match (octets, value) {
                (None, Value::Null) => true,
                (Some(octets), Value::Number(number)) => {
                    Some(decode::number(octets)) == number.as_u64()
                }
                (Some(octets), Value::String(text)) => match text.parse::<IpAddr>() {
                    Ok(IpAddr::V4(address)) => octets[..] == address.octets(),
                    Ok(IpAddr::V6(address)) => octets[..] == address.octets(),
                    Err(_) => octets == text.as_bytes(),
                },
                _ => false,
            };
            ensure(is_same, format!("{name}: {octets:?} is not {value}"))?;
        }
        for (name, micros, millis) in [
            ("flowStartMicroseconds", 154, 152),
            ("flowEndMicroseconds", 155, 153),
        ] {
            let ntp = of(record, (0, micros)).ok_or("no time")?;
            let seconds = (ntp >> 32) - 2_208_988_800;
            let time = seconds * 1_000_000 + (((ntp & 0xffff_ffff) * 1_000_000) >> 32);
            same(name, Some(time), json[name].as_u64())?;
            same(name, of(record, (0, millis)), Some(time / 1_000))?;
        }
        let rtt = &json["handshakeRttMicroseconds"];
        same("client", of(record, (4711, 2)), rtt["client"].as_u64())?;
        same("server", of(record, (4711, 3)), rtt["server"].as_u64())?;
        same("biflowDirection", of(record, (0, 239)), Some(1))?;
    }
    Ok(())
}

fn ipfix_says_what_json_says() -> Result<(), Failed> {
    for (transport, options) in [
        ("udp", "?enterprise=4711&rate=2000"),
        ("udp", "?enterprise=4711&rate=2000&mtu=9000&types=false"),
        ("tcp", "?enterprise=4711"),
    ] {
        let (messages, shown) = collected(&Fixture::new(500)?, transport, options)?;
        let mut decoder = Decoder::default();
        for message in &messages {
            decoder.message(message)?;
        }
        same_as_json(&decoder, &shown)?;
        // RFC 5610: what tells an element is its enterprise and number; here also its name and type.
        let mut told: Vec<_> = decoder
            .options
            .iter()
            .filter(|option| option[&(0, 341)] == b"tcpState")
            .map(|option| [346, 303, 339].map(|id| of(option, (0, id))))
            .collect();
        // All is said again when a record shows a field that none had before.
        told.dedup();
        let tells = !options.contains("types=false");
        let expected = if tells {
            vec![[Some(4711), Some(1), Some(13)]]
        } else {
            vec![]
        };
        same(&format!("types, {transport}{options}"), told, expected)?;
    }
    Ok(())
}

fn templates_are_sent_again_and_messages_fit() -> Result<(), Failed> {
    let fixture = Fixture::new(300)?;
    let usual = |options: &str| -> Result<(usize, usize, usize), Failed> {
        let (messages, shown) = collected(&fixture, "udp", options)?;
        let mut decoder = Decoder::default();
        for message in &messages {
            decoder.message(message)?;
        }
        same("records", decoder.records.len(), shown.len())?;
        let longest = messages.iter().map(Vec::len).max().unwrap_or(0);
        Ok((decoder.template_sets, messages.len(), longest))
    };
    let (once, ..) = usual("?rate=2000")?;
    let (again, count, longest) = usual("?rate=2000&mtu=600&template-messages=10")?;
    ensure(count > 100, format!("{count} messages"))?;
    ensure((400..=552).contains(&longest), format!("{longest} octets"))?;
    ensure(
        again > 2 * once,
        format!("{again} template sets, and {once} when nothing is sent again"),
    )
}

fn files_and_standard_output_hold_what_is_shown() -> Result<(), Failed> {
    let fixture = Fixture::new(500)?;
    let file = fixture.path("flows.json");
    let export = format!("file:{}?max-size=100KiB&keep=50", file.display());
    let shown = fixture.command("json", &[&export]).output()?;
    ensure(shown.status.success(), text(&shown.stderr))?;
    let mut files = String::new();
    let mut count = 0;
    for number in (1..=50).rev() {
        let rotated = fixture.path(&format!("flows.json.{number}"));
        if rotated.exists() {
            ensure(
                rotated.metadata()?.len() <= 100 << 10,
                "larger than it may be",
            )?;
            files.push_str(&std::fs::read_to_string(&rotated)?);
            count += 1;
        }
    }
    files.push_str(&std::fs::read_to_string(&file)?);
    ensure(count >= 3, format!("{count} files"))?;
    ensure(
        files == text(&shown.stdout),
        "the files are not what was shown",
    )?;
    let output = fixture.command("none", &["stdout"]).output()?;
    ensure(output.status.success(), text(&output.stderr))?;
    ensure(
        output.stdout == shown.stdout,
        "standard output is not what was shown",
    )
}

/// Ports of the records in these lines, in order.
fn ports(lines: &[String]) -> Result<Vec<u64>, Failed> {
    let port = |line: &String| -> Result<u64, Failed> {
        let record: Value = serde_json::from_str(line)?;
        Ok(record["flowStartMicroseconds"].as_u64().ok_or("no start")?)
    };
    lines.iter().map(port).collect()
}

fn a_unix_socket_that_closes_is_found_again() -> Result<(), Failed> {
    let fixture = Fixture::new(5_000)?;
    let path = fixture.path("flows.sock");
    let listener = UnixListener::bind(&path)?;
    let url = format!("unix:{}?queue=100&flush=50s", path.display());
    let child = Running::start(fixture.command("none", &[&url]))?;
    let mut reader = BufReader::new(listener.accept()?.0);
    let mut first = Vec::new();
    for _ in 0..50 {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        first.push(line);
    }
    // It goes away in the middle of a line, and with it what was on its way.
    drop((reader, listener));
    std::fs::remove_file(&path)?;
    let listener = UnixListener::bind(&path)?;
    let rest: Vec<String> = BufReader::new(listener.accept()?.0)
        .lines()
        .collect::<Result<_, _>>()?;
    let output = child.output()?;
    let said = text(&output.stderr);
    ensure(output.status.success(), &said)?;
    ensure(said.contains("5,000 of 5,000 records exported"), &said)?;
    // Each line whole, and what is missing was in the socket that was closed: not more than fits there.
    let (first, rest) = (ports(&first)?, ports(&rest)?);
    let shown = fixture.run(&[])?;
    let all: Vec<u64> = shown
        .iter()
        .filter_map(|record| record["flowStartMicroseconds"].as_u64())
        .collect();
    same("the first lines", &first[..], &all[..50])?;
    same("the last lines", &rest[..], &all[all.len() - rest.len()..])?;
    ensure(
        rest.len() > 3_500,
        format!("{} of 5,000 after it came back", rest.len()),
    )
}

fn a_tcp_collector_that_closes_is_found_again() -> Result<(), Failed> {
    let fixture = Fixture::new(20_000)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!(
        "ipfix+tcp://{}?queue=100&flush=50s&enterprise=4711",
        listener.local_addr()?
    );
    let child = Running::start(fixture.command("json", &[&url]))?;
    let shown = std::thread::spawn(move || child.output().map_err(|error| format!("{error:?}")));
    let mut stream = vec![0; 20_000];
    let (mut peer, _) = listener.accept()?;
    peer.read_exact(&mut stream)?;
    drop(peer);
    let mut decoder = Decoder::default();
    for message in messages(&stream).0 {
        decoder.message(message)?;
    }
    let before = decoder.records.len();
    ensure(before > 10, format!("{before} records before it closed"))?;
    // A session of its own: with its own templates and numbers.
    decoder.begin_anew();
    let mut stream = Vec::new();
    listener.accept()?.0.read_to_end(&mut stream)?;
    let (whole, rest) = messages(&stream);
    same("octets behind the last message", rest, 0)?;
    for message in whole {
        decoder.message(message)?;
    }
    let output = shown.join().map_err(|_| "the thread panicked")??;
    ensure(output.status.success(), text(&output.stderr))?;
    let shown = records(&text(&output.stdout))?;
    drop(decoder.records.drain(..before));
    let tail = &shown[shown.len() - decoder.records.len()..];
    ensure(
        tail.len() > 1_000,
        format!("{} records after it came back", tail.len()),
    )?;
    same_as_json(&decoder, tail)
}

fn a_collector_that_comes_late_gets_everything() -> Result<(), Failed> {
    for transport in ["udp", "tcp"] {
        let fixture = Fixture::new(200)?;
        // The port is known before anybody listens there.
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?;
        drop(taken);
        let url = format!("ipfix+{transport}://{address}?flush=50s&enterprise=4711");
        let mut command = fixture.command("json", &[&url]);
        command.arg("--verbose");
        let mut child = Running::start(command)?;
        // What it says when it found nobody.
        let mut log = BufReader::new(child.0.stderr.take().ok_or("no standard error")?);
        let mut said = String::new();
        while !said.contains("export to ") {
            ensure(log.read_line(&mut said)? > 0, format!("it ended: {said}"))?;
        }
        let (messages, output) = if transport == "udp" {
            received(&UdpSocket::bind(address)?, child)?
        } else {
            let listener = TcpListener::bind(address)?;
            let output = std::thread::spawn(move || child.output().map_err(|e| format!("{e:?}")));
            let mut stream = Vec::new();
            listener.accept()?.0.read_to_end(&mut stream)?;
            let whole = messages(&stream)
                .0
                .into_iter()
                .map(<[u8]>::to_vec)
                .collect();
            (whole, output.join().map_err(|_| "the thread panicked")??)
        };
        ensure(output.status.success(), format!("{transport}: {said}"))?;
        let mut decoder = Decoder::default();
        for message in &messages {
            decoder.message(message)?;
        }
        same_as_json(&decoder, &records(&text(&output.stdout))?)?;
    }
    Ok(())
}

/// The most memory that a process had, in KiB.
fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn a_collector_that_is_away_costs_records_and_no_memory() -> Result<(), Failed> {
    let fixture = Fixture::new(50_000)?;
    // One that is not there, one that accepts and never reads, and one that reads nothing over UDP.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let nobody = free_udp_port()?;
    let socket = fixture.path("silent.sock");
    let _backlog = UnixListener::bind(&socket)?;
    let exports = [
        format!("ipfix+udp://127.0.0.1:{nobody}?queue=500&flush=1s"),
        format!("ipfix+tcp://{}?queue=500&flush=1s", silent.local_addr()?),
        format!("unix:{}?queue=500&flush=1s", socket.display()),
        format!(
            "unix:{}?queue=500&flush=1s",
            fixture.path("nobody").display()
        ),
    ];
    let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
    let child = Running::start(fixture.command("none", &exports))?;
    let pid = child.0.id();
    let ended = std::thread::spawn(move || child.output().map_err(|error| format!("{error:?}")));
    let mut most = 0;
    until("it ends", || {
        most = high_water(pid).unwrap_or(0).max(most);
        Ok(ended.is_finished())
    })?;
    let output = ended.join().map_err(|_| "the thread panicked")??;
    let said = text(&output.stderr);
    same("exit code", output.status.code(), Some(1))?;
    ensure(said.contains("records were not exported"), &said)?;
    ensure(said.contains("found its queue full"), &said)?;
    ensure(said.contains("still waited when the run ended"), &said)?;
    ensure(said.contains("nobody listens there"), &said)?;
    ensure(said.contains("No such file or directory"), &said)?;
    // Of every exporter: exported + lost = offered. What the silent ones' sockets took counts as exported.
    let number = |text: &str| text.replace(',', "").parse::<u64>().unwrap_or(0);
    let exported: u64 = said
        .lines()
        .filter_map(|line| Some(number(line.split_once(" of 50,000 records exported")?.0)))
        .sum();
    let lost = said.lines().find_map(|line| {
        let line = line.strip_prefix("error: ")?;
        Some(number(line.split_once(" records were not exported")?.0))
    });
    same(
        "records of four exporters",
        exported + lost.unwrap_or(0),
        200_000,
    )?;
    ensure(
        (1_000..64 << 10).contains(&most),
        format!("{most} KiB at most"),
    )
}

fn a_full_disk_is_survived() -> Result<(), Failed> {
    let fixture = Fixture::new(1_000)?;
    let folder = fixture.path("small");
    std::fs::create_dir(&folder)?;
    let nvcli = Path::new(env!("CARGO_BIN_EXE_nvcli")).display();
    let (small, capture) = (folder.display(), fixture.capture.display());
    let shown = fixture.run(&[])?;
    // A file system of 1 MiB that is full for a while: in a mount namespace, which goes with its last process.
    let script = format!(
        "set -e
         mount -t tmpfs -o size=1m none {small}
         head -c 900k /dev/zero > {small}/filler
         {nvcli} --verbose flows -r {capture} -o none --export 'file:{small}/flows.json?queue=2000&flush=50s' 2> {small}.log &
         n=0
         until grep -q 'No space left' {small}.log; do n=$((n+1)); [ $n -lt 600 ]; sleep 0.1; done
         tail -c 1 {small}/flows.json | od -An -c
         rm {small}/filler
         wait $!
         cat {small}/flows.json"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .output()?;
    let log = std::fs::read_to_string(format!("{small}.log")).unwrap_or_default();
    ensure(
        output.status.success(),
        format!("{}{log}", text(&output.stderr)),
    )?;
    let stdout = text(&output.stdout);
    let (last, lines) = stdout.split_once('\n').ok_or("no output")?;
    same(
        "the last character while the disk is full",
        last.trim(),
        "\\n",
    )?;
    ensure(
        records(lines)? == shown,
        "the file is not what is shown elsewhere",
    )
}

fn a_full_disk_gets_no_segment_for_each_try() -> Result<(), Failed> {
    let fixture = Fixture::new(1_000)?;
    let folder = fixture.path("small");
    std::fs::create_dir(&folder)?;
    let nvcli = Path::new(env!("CARGO_BIN_EXE_nvcli")).display();
    let (small, capture, port) = (
        folder.display(),
        fixture.capture.display(),
        free_tcp_port()?,
    );
    let script = format!(
        "mount -t tmpfs -o size=256k none {small} || exit 1
         {nvcli} flows -r {capture} -o none --export 'nats://127.0.0.1:{port}?flush=4s&spool={small}/spool'
         ls {small}/spool"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .output()?;
    let said = text(&output.stderr);
    ensure(output.status.success(), &said)?;
    ensure(said.contains("No space left"), &said)?;
    same(
        "files of the buffer",
        text(&output.stdout).trim(),
        "0000000000000000.spool\nlock",
    )
}

fn what_cannot_be_followed_is_told() -> Result<(), Failed> {
    let fixture = Fixture::new(1)?;
    for (output, exports, code, told) in [
        (
            "none",
            &[][..],
            2,
            "--output none leaves nothing to do without --export",
        ),
        ("json", &["stdout"], 2, "would be mixed on standard output"),
        (
            "json",
            &["file:x?mtu=1"],
            2,
            "mtu: an exporter of kind file has none",
        ),
        ("json", &["gopher://x"], 2, "ipfix+udp://HOST:PORT"),
        (
            "json",
            &["file:/nonexistent/flows.json"],
            1,
            "cannot write /nonexistent/flows.json",
        ),
    ] {
        let output = fixture.command(output, exports).output()?;
        let said = text(&output.stderr);
        same(
            &format!("exit code with {exports:?}: {said}"),
            output.status.code(),
            Some(code),
        )?;
        ensure(said.contains(told), format!("{exports:?}: {said}"))?;
    }
    Ok(())
}

/// An answer to GET.
fn get(port: u16, path: &str) -> Result<String, Failed> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP")?;
    ensure(head.contains(" 200 "), head)?;
    Ok(body.to_owned())
}

/// A port of TCP that nobody has.
fn free_tcp_port() -> Result<u16, Failed> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn prometheus_scrapes_the_sums() -> Result<(), Failed> {
    let fixture = Fixture::new(700)?;
    let (ours, theirs) = (free_tcp_port()?, free_tcp_port()?);
    let config = fixture.path("prometheus.yml");
    std::fs::write(
        &config,
        format!(
            "scrape_configs:\n- job_name: nvcli\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['127.0.0.1:{ours}']\n"
        ),
    )?;
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            fixture.path("tsdb").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{theirs}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _prometheus = Running::start(command)?;
    until(
        "Prometheus is ready",
        || Ok(get(theirs, "/-/ready").is_ok()),
    )?;
    // It ends when somebody has fetched the sums of all records.
    let shown = fixture.run(&[&format!("prometheus://127.0.0.1:{ours}?flush=60s")])?;

    let query = |what: &str| -> Result<u64, Failed> {
        // It is over: an instant query would find it gone.
        let query = format!("sum(last_over_time({what}[1h]))");
        let escaped: String = query.bytes().map(|octet| format!("%{octet:02X}")).collect();
        let answer: Value =
            serde_json::from_str(&get(theirs, &format!("/api/v1/query?query={escaped}"))?)?;
        let value = answer["data"]["result"][0]["value"][1].as_str();
        Ok(value.unwrap_or("0").parse()?)
    };
    until("the last sums are there", || {
        Ok(query("nvcli_flow_records_total")? == shown.len() as u64)
    })?;
    for (number, protocol) in [
        (6, "tcp"),
        (17, "udp"),
        (1, "icmp"),
        (58, "icmp6"),
        (47, "other"),
    ] {
        let of_it = || {
            shown
                .iter()
                .filter(move |record| record["protocolIdentifier"].as_u64() == Some(number))
        };
        let sum = |key: &str| -> u64 { of_it().filter_map(|record| record[key].as_u64()).sum() };
        ensure(of_it().count() > 0, format!("no {protocol}"))?;
        for (metric, key, direction) in [
            ("octets", "octetDeltaCount", "initiator"),
            ("octets", "reverseOctetDeltaCount", "responder"),
            ("packets", "packetDeltaCount", "initiator"),
            ("packets", "reversePacketDeltaCount", "responder"),
        ] {
            let series = format!(
                "nvcli_flow_{metric}_total{{protocol=\"{protocol}\",direction=\"{direction}\"}}"
            );
            same(&series, query(&series)?, sum(key))?;
        }
        let records = format!("nvcli_flow_records_total{{protocol=\"{protocol}\"}}");
        same(&records, query(&records)?, of_it().count() as u64)?;
    }
    let exported = "nvcli_export_records_total{result=\"exported\"}";
    same(exported, query(exported)?, shown.len() as u64)
}

fn metrics_are_served_to_whoever_asks_properly() -> Result<(), Failed> {
    let fixture = Fixture::new(10)?;
    let port = free_tcp_port()?;
    let url = format!("prometheus://127.0.0.1:{port}?flush=60s");
    let child = Running::start(fixture.command("none", &[&url]))?;
    until("it listens", || Ok(get(port, "/").is_ok()))?;
    let raw = |request: &str| -> Result<String, Failed> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    };
    // Others that take their time do not keep anybody from being answered.
    let _idle: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(("127.0.0.1", port)))
        .collect::<Result<_, _>>()?;
    same(
        "POST",
        raw("POST /metrics HTTP/1.0\r\n\r\n")?,
        "HTTP/1.0 405 Method Not Allowed".to_owned(),
    )?;
    same(
        "another path",
        raw("GET /x HTTP/1.0\r\n\r\n")?,
        "HTTP/1.0 404 Not Found".to_owned(),
    )?;
    let endless = format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(100_000));
    // Refused while it still sends: the answer may be lost with the connection.
    let refused = raw(&endless);
    ensure(
        !refused.is_ok_and(|line| line.contains(" 200 ")),
        "an endless request was answered",
    )?;
    let metrics = get(port, "/metrics")?;
    ensure(
        metrics.contains("# TYPE nvcli_flow_octets_total counter\n"),
        &metrics,
    )?;
    let output = child.output()?;
    ensure(output.status.success(), text(&output.stderr))?;
    // The port is taken: told at once.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("prometheus://{}", taken.local_addr()?);
    let output = fixture.command("none", &[&url]).output()?;
    same("exit code", output.status.code(), Some(1))?;
    ensure(
        text(&output.stderr).contains("cannot listen at"),
        text(&output.stderr),
    )
}

/// Bodies of the messages and lines that were shown, both in order of the alphabet.
fn same_messages(messages: &BTreeMap<String, nats::Message>, lines: &str) -> Result<(), Failed> {
    let mut bodies: Vec<&str> = messages.values().map(|message| &message.body[..]).collect();
    let mut shown: Vec<&str> = lines.lines().collect();
    bodies.sort_unstable();
    shown.sort_unstable();
    same("messages", bodies.len(), shown.len())?;
    ensure(bodies == shown, "the messages are not what was shown")
}

fn a_nats_consumer_gets_every_record() -> Result<(), Failed> {
    let fixture = Fixture::new(3_000)?;
    let port = free_tcp_port()?;
    let _broker = nats::broker(port, &fixture.path("store"))?;
    let url = format!("nats://127.0.0.1:{port}?host=a.b&flush=50s");
    let output = fixture.command("json", &[&url]).output()?;
    ensure(output.status.success(), text(&output.stderr))?;
    let messages = nats::Consumer::connect(port)?.all("nvcli")?;
    same_messages(&messages, &text(&output.stdout))?;
    let subject = &messages.values().next().ok_or("no message")?.subject;
    same("subject", subject.as_str(), "nvcli.flows.a_b._")
}

fn a_broker_that_is_killed_in_the_middle_gets_every_record() -> Result<(), Failed> {
    for with_spool in [true, false] {
        let fixture = Fixture::new(20_000)?;
        let (port, store) = (free_tcp_port()?, fixture.path("store"));
        let mut broker = nats::broker(port, &store)?;
        let mut url = format!("nats://127.0.0.1:{port}?flush=50s&queue=2000");
        if with_spool {
            url.push_str(&format!("&spool={}", fixture.path("spool").display()));
        }
        let child = Running::start(fixture.command("json", &[&url]))?;
        let ended =
            std::thread::spawn(move || child.output().map_err(|error| format!("{error:?}")));
        let mut consumer = nats::Consumer::connect(port)?;
        until("some have arrived", || Ok(consumer.count("nvcli")? > 500))?;
        let is_over = ended.is_finished();
        broker.0.kill()?;
        broker.0.wait()?;
        ensure(!is_over, "it was over before the broker was killed")?;
        let _broker = nats::broker(port, &store)?;
        let output = ended.join().map_err(|_| "the thread panicked")??;
        ensure(output.status.success(), text(&output.stderr))?;
        let said = text(&output.stderr);
        ensure(said.contains("20,000 of 20,000 records exported"), &said)?;
        let messages = nats::Consumer::connect(port)?.all("nvcli")?;
        same_messages(&messages, &text(&output.stdout))?;
    }
    Ok(())
}

fn records_wait_on_disk_for_a_broker() -> Result<(), Failed> {
    let fixture = Fixture::new(5_000)?;
    let (port, spool) = (free_tcp_port()?, fixture.path("spool"));
    let url = format!("nats://127.0.0.1:{port}?flush=1s&spool={}", spool.display());
    // Nobody is there: nothing is lost.
    let output = fixture.command("json", &[&url]).output()?;
    let said = text(&output.stderr);
    ensure(output.status.success(), &said)?;
    ensure(said.contains("5,000 records for nats://"), &said)?;
    // A second run is killed while it waits for the end.
    let long = format!("nats://127.0.0.1:{port}?flush=1h&spool={}", spool.display());
    let mut killed = Running::start(fixture.command("none", &[&long]))?;
    let segments = || -> Result<u64, Failed> {
        let entries: Vec<_> = std::fs::read_dir(&spool)?.collect::<Result<_, _>>()?;
        Ok(entries
            .iter()
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum())
    };
    let before = segments()?;
    until("it has written some", || {
        Ok(segments()? > before + (1 << 20))
    })?;
    killed.0.kill()?;
    killed.0.wait()?;
    // The third finds a broker.
    let _broker = nats::broker(port, &fixture.path("store"))?;
    let last = fixture
        .command("json", &[&url.replace("flush=1s", "flush=50s")])
        .output()?;
    ensure(last.status.success(), text(&last.stderr))?;
    let messages = nats::Consumer::connect(port)?.all("nvcli")?;
    let shown = text(&last.stdout);
    let mut times: HashMap<&str, usize> = HashMap::new();
    for message in messages.values() {
        *times.entry(&message.body).or_default() += 1;
    }
    // Of the first and the last run all, of the killed one what had come to disk.
    for line in shown.lines() {
        let times = times.get(line).copied().unwrap_or(0);
        ensure((2..=3).contains(&times), format!("{times} times: {line}"))?;
    }
    same("bodies", times.len(), shown.lines().count())?;
    ensure(
        messages.len() > 10_500,
        format!("{} messages", messages.len()),
    )?;
    let left: Vec<_> = std::fs::read_dir(&spool)?.collect::<Result<_, _>>()?;
    same("files left in the buffer, beside its lock", left.len(), 1)
}

fn a_broker_that_is_away_costs_what_the_buffer_cannot_hold() -> Result<(), Failed> {
    let fixture = Fixture::new(5_000)?;
    let port = free_tcp_port()?;
    let spool = fixture.path("spool");
    let url = format!(
        "nats://127.0.0.1:{port}?queue=100&flush=1s&spool-size=100KiB&spool={}",
        spool.display()
    );
    let output = fixture.command("none", &[&url]).output()?;
    let said = text(&output.stderr);
    same("exit code", output.status.code(), Some(1))?;
    ensure(said.contains("it is full"), &said)?;
    let number = |before: &str, after: &str| -> Option<u64> {
        let line = said.lines().find(|line| line.contains(after))?;
        let number = line.strip_prefix(before)?.split_once(after)?.0;
        number.replace(',', "").parse().ok()
    };
    let kept = number("", " records for nats://").ok_or(&said[..])?;
    let lost = number("error: ", " records were not exported").ok_or(&said[..])?;
    same("kept and lost", kept + lost, 5_000)?;
    ensure(kept > 50, &said)?;
    ensure(kept * 700 < 150 << 10, &said)
}

/// Reads a request of HTTP; gives its body.
fn request_of(stream: &mut BufReader<TcpStream>) -> Result<Option<Vec<u8>>, Failed> {
    let mut length = 0;
    let mut line = String::new();
    let mut is_first = true;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if std::mem::take(&mut is_first) {
            same("request", line.trim(), "POST /v1/logs HTTP/1.1")?;
        }
        let (key, value) = line.split_once(':').unwrap_or_default();
        match key.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse()?,
            "content-type" => same("content type", value.trim(), "application/json")?,
            _ if line == "\r\n" => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(body))
}

fn otlp_is_what_opentelemetry_reads() -> Result<(), Failed> {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;

    let fixture = Fixture::new(1_200)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("otlp+http://{}?flush=50s", listener.local_addr()?);
    let child = Running::start(fixture.command("json", &[&url]))?;
    let ended = std::thread::spawn(move || child.output().map_err(|error| format!("{error:?}")));
    // It is busy, closes in the middle, then takes some but not all, then refuses, and takes the rest.
    let answers = [
        Some(("503 Service Unavailable", "")),
        None,
        Some((
            "200 OK",
            "{\"partialSuccess\":{\"rejectedLogRecords\":\"2\",\"errorMessage\":\"too old\"}}",
        )),
        Some(("400 Bad Request", "{\"message\":\"not this one\"}")),
    ];
    let mut bodies = Vec::new();
    let mut answers = answers.into_iter();
    listener.set_nonblocking(true)?;
    until("it ends", || {
        let Ok((stream, _)) = listener.accept() else {
            return Ok(ended.is_finished());
        };
        stream.set_nonblocking(false)?;
        let mut stream = BufReader::new(stream);
        while let Some(body) = request_of(&mut stream)? {
            let Some((status, said)) = answers.next().unwrap_or(Some(("200 OK", "{}"))) else {
                break;
            };
            bodies.push((status, body));
            write!(
                stream.get_mut(),
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{said}",
                said.len()
            )?;
        }
        Ok(false)
    })?;
    let output = ended.join().map_err(|_| "the thread panicked")??;
    let said = text(&output.stderr);
    let shown = records(&text(&output.stdout))?;
    let mut read = Vec::new();
    let mut refused = 2;
    for (status, body) in &bodies {
        // OpenTelemetry's own types, which know the JSON of their protocol.
        let request: ExportLogsServiceRequest = serde_json::from_slice(body)?;
        let logs: Vec<_> = request
            .resource_logs
            .iter()
            .flat_map(|resource| &resource.scope_logs)
            .flat_map(|scope| &scope.log_records)
            .cloned()
            .collect();
        if status.starts_with("503") {
            ensure(!logs.is_empty(), "an empty request")?;
            continue;
        }
        refused += if status.starts_with("400") {
            logs.len()
        } else {
            0
        };
        read.extend(logs);
    }
    same("records", read.len(), shown.len())?;
    for (log, json) in read.iter().zip(&shown) {
        let micros = json["flowStartMicroseconds"].as_u64();
        same("time", Some(log.time_unix_nano / 1_000), micros)?;
        let mut keys = 0;
        for attribute in &log.attributes {
            let expected = match attribute.key.strip_prefix("handshakeRttMicroseconds.") {
                Some(part) => &json["handshakeRttMicroseconds"][part],
                None => &json[&attribute.key],
            };
            let value = attribute
                .value
                .as_ref()
                .and_then(|value| value.value.clone());
            let is_same = match value {
                Some(Any::IntValue(number)) => expected.as_i64() == Some(number),
                Some(Any::StringValue(text)) => expected.as_str() == Some(&text),
                _ => false,
            };
            ensure(is_same, format!("{attribute:?} is not {expected}"))?;
            keys += usize::from(
                !attribute.key.ends_with(".server")
                    || json["handshakeRttMicroseconds"]["client"].is_null(),
            );
        }
        same(
            "attributes",
            Some(keys),
            json.as_object().map(serde_json::Map::len),
        )?;
    }
    same("exit code", output.status.code(), Some(1))?;
    let exported = format!("{} of 1,200 records exported", shown.len() - refused);
    ensure(said.contains(&exported), &said)?;
    ensure(said.contains(&format!("{refused} were refused")), &said)?;
    ensure(said.contains("not this one"), &said)
}

fn a_live_run_exports_with_names() -> Result<(), Failed> {
    use nvnet::lab::Lab;
    use nvnet::{Plan, Workload};

    const CONNECTIONS: usize = 20;
    let lab = Lab::new(&["web", "client"])?;
    let (web, client) = (&lab.containers[0], &lab.containers[1]);
    let workload = Workload {
        name: "web".into(),
        ..Workload::default()
    };
    Plan::new(&lab.host, &web.netns, workload)
        .check()
        .and_then(|plan| plan.attach())
        .map_err(common::chain)?;
    common::sh_in(&lab.host, "ip link set lo up")?;
    let collector = lab.host.run(|| UdpSocket::bind("127.0.0.1:0"))??;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("flows.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvcli"));
    command
        .args([
            "flows",
            "tcp",
            "--output",
            "json",
            "--count",
            &CONNECTIONS.to_string(),
        ])
        .arg("--export")
        .arg(format!("file:{}", file.display()))
        .arg("--export")
        .arg(format!("ipfix+udp://{}", collector.local_addr()?))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = Running(lab.host.run(|| command.spawn())??);
    let mut said = BufReader::new(child.0.stderr.take().ok_or("no standard error")?);
    let mut line = String::new();
    while !line.contains("metering") {
        line.clear();
        ensure(said.read_line(&mut line)? > 0, "it ended")?;
    }
    let listener = web.netns.run(|| TcpListener::bind((web.ipv4, 0)))??;
    let to = listener.local_addr()?;
    for _ in 0..CONNECTIONS {
        let mut near = client.netns.run(|| TcpStream::connect(to))??;
        let (mut far, _) = listener.accept()?;
        near.write_all(b"ask")?;
        near.shutdown(std::net::Shutdown::Write)?;
        far.read_to_end(&mut Vec::new())?;
        far.write_all(b"answer")?;
        drop(far);
        near.read_to_end(&mut Vec::new())?;
    }
    let (messages, output) = received(&collector, child)?;
    let mut rest = String::new();
    said.read_to_string(&mut rest)?;
    ensure(output.status.success(), rest)?;
    let shown = text(&output.stdout);
    same("file", std::fs::read_to_string(&file)?, shown.clone())?;
    let mut decoder = Decoder::default();
    for message in &messages {
        decoder.message(message)?;
    }
    same("records", decoder.records.len(), CONNECTIONS)?;
    for (record, json) in decoder.records.iter().zip(records(&shown)?) {
        same("workload", json["workload"].as_str(), Some("web"))?;
        // The default enterprise number, and our elements for workload and vantage.
        for (id, name) in [(15, "web"), (18, "ingress")] {
            let octets = record.get(&(32_473, id)).map(|octets| text(octets));
            same("element", octets.as_deref(), Some(name))?;
        }
        same(
            "observationPointId",
            of(record, (0, 138)),
            json["observationPointId"].as_u64(),
        )?;
    }
    Ok(())
}
