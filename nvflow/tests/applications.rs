//! What connections speak, and with whom, in captures of other projects: ours against what nDPI, Arkime, Zeek, Suricata and ipfixprobe say.
//!
//! `NV_CONFORMANCE` names the folder, as for `conformance.rs`. Compared is what both can know: the peer's word for the application where it
//! is one of ours, and the host where the peer and tshark both have it. Every connection of which we say something else is in
//! `applications-differences.txt`, with the reason; the rates that are printed are in docs/applications.md.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nvcapture::{CaptureFile, Next};
use nvflow::{Application, Endpoint, FlowRecord, Identify, Meter, MeterConfig, Protocol};
use serde_json::Value;

const DIFFERENCES: &str = include_str!("applications-differences.txt");

fn main() {
    let arguments = Arguments::from_args();
    let name = "applications agree with those of other projects";
    let trial = match std::env::var_os("NV_CONFORMANCE") {
        Some(folder) => {
            let folder = absolute(Path::new(&folder));
            Trial::test(name, move || agree(&folder))
        }
        None => Trial::ignorable_test(name, || {
            let why = "needs NV_CONFORMANCE: the folder of captures";
            let must = std::env::var("NV_TESTS_MUST_RUN").unwrap_or_default();
            if must.split(',').any(|name| name.trim() == "conformance") {
                return Err(why.into());
            }
            Ok(Completion::ignored_with(why))
        }),
    };
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

/// Tests run in their package's folder; the variable is set in the workspace's.
fn absolute(folder: &Path) -> PathBuf {
    if folder.is_absolute() || folder.exists() {
        folder.into()
    } else {
        Path::new("..").join(folder)
    }
}

type End = (IpAddr, u16);
type Flow = (u8, End, End);

fn flow(protocol: u8, a: End, b: End) -> Flow {
    (protocol, a.min(b), a.max(b))
}

/// What is said of a connection: its application, and its host.
#[derive(Debug, Default)]
struct Said {
    application: Option<Protocol>,
    hosts: BTreeSet<String>,
}

/// Meters a capture, which may be damaged.
fn metered(path: &Path, decapsulate: bool) -> Result<Vec<FlowRecord>, Failed> {
    let mut file = CaptureFile::open(path)?;
    let mut meter = Meter::new(MeterConfig {
        decapsulate,
        identify: Some(Identify::default()),
        ..MeterConfig::default()
    })?;
    let mut records = Vec::new();
    while let Ok(Next::Block(block)) = file.next_block() {
        let Ok(_) = meter.observe(block.frames(), &mut records);
    }
    let Ok(_) = meter.finish(&mut records);
    Ok(records)
}

fn ours(path: &Path, decapsulate: bool) -> Result<BTreeMap<Flow, Said>, Failed> {
    let mut all: BTreeMap<Flow, Said> = BTreeMap::new();
    for record in metered(path, decapsulate)? {
        let end = |end: Endpoint| (end.address, end.port);
        let flow = flow(
            record.protocol_identifier,
            end(record.source),
            end(record.destination),
        );
        let said = all.entry(flow).or_default();
        if let Some(application) = &record.application {
            said.application = said.application.or(application.protocol);
            said.hosts.extend(hosts(application));
        }
    }
    Ok(all)
}

fn hosts(application: &Application) -> impl Iterator<Item = String> {
    let tls = application
        .tls
        .as_ref()
        .and_then(|tls| tls.server_name.clone());
    let http = application.http.as_ref().and_then(|http| http.host.clone());
    let dns = application
        .dns
        .as_ref()
        .and_then(|dns| dns.query_name.clone());
    [tls, http, dns]
        .into_iter()
        .flatten()
        .map(|host| plain(&host))
}

/// A host as all write it: small letters, no port, no dot at the end.
fn plain(host: &str) -> String {
    let host = host.to_lowercase();
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => &host,
    };
    host.trim_end_matches('.').to_owned()
}

/// The protocols that a peer's word may stand for; none when it is not one of those that are looked for.
fn meant(word: &str) -> &'static [Protocol] {
    match word {
        "dns" => &[Protocol::Dns],
        "mdns" => &[Protocol::Mdns],
        "ssdp" => &[Protocol::Ssdp],
        "llmnr" => &[Protocol::Llmnr],
        "tls" | "ssl" => &[Protocol::Tls],
        // TLS on a port of its own.
        "imaps" | "smtps" | "ftps" => &[Protocol::Tls],
        "quic" => &[Protocol::Quic],
        "http" => &[Protocol::Http, Protocol::Http2, Protocol::Grpc],
        "ssh" => &[Protocol::Ssh],
        "postgresql" | "pgsql" => &[Protocol::PostgreSql],
        "mysql" => &[Protocol::MySql],
        "redis" => &[Protocol::Redis],
        "kafka" => &[Protocol::Kafka],
        "mongodb" => &[Protocol::MongoDb],
        "ntp" => &[Protocol::Ntp],
        "dhcp" => &[Protocol::Dhcp],
        _ => &[],
    }
}

/// Whether a peer's word that is none of ours is a use of what we call it.
fn is_use_of(word: &str, ours: Protocol) -> bool {
    matches!(
        (word, ours),
        // A resolver's certificate is asked for in plain DNS.
        ("dnscrypt", Protocol::Dns) | ("applepush", Protocol::Tls)
    )
}

/// How often we say the same.
#[derive(Debug, Default)]
struct Rate {
    same: u64,
    all: u64,
}

impl Rate {
    fn count(&mut self, is_same: bool) {
        self.all += 1;
        self.same += u64::from(is_same);
    }
}

#[derive(Debug, Default)]
struct Rates {
    applications: BTreeMap<String, Rate>,
    hosts: BTreeMap<String, Rate>,
    /// Connections of which a peer has a word that is none of ours, and we say nothing either.
    silent: Rate,
}

/// Compares what is said of one connection: what differs.
fn compare(row: &Value, said: &Said, rates: &mut Rates) -> Vec<String> {
    let mut differences = Vec::new();
    let word = row["app"].as_str().unwrap_or_default();
    let meant = meant(word);
    let ours = said.application;
    if let Some(first) = meant.first() {
        let is_same = ours.is_some_and(|ours| meant.contains(&ours));
        let rate = rates.applications.entry(first.name().into()).or_default();
        rate.count(is_same);
        if !is_same {
            differences.push(format!("{word}, not {ours:?}"));
        }
    } else if !word.is_empty() {
        let is_same = ours.is_none_or(|ours| is_use_of(word, ours));
        rates.silent.count(is_same);
        if !is_same {
            differences.push(format!("{word}, not {ours:?}"));
        }
    }
    if let Some(host) = row["host"].as_str() {
        let is_same = said.hosts.contains(&plain(host));
        let kind = if word.is_empty() { "no word" } else { word };
        rates.hosts.entry(kind.into()).or_default().count(is_same);
        if !is_same {
            differences.push(format!("host {host:?}, not {:?}", said.hosts));
        }
    }
    differences
}

fn agree(folder: &Path) -> Result<(), Failed> {
    let truth = std::fs::read_to_string(folder.join("truth.jsonl"))?;
    // By capture and client.
    let mut listed: BTreeSet<(String, String)> = BTreeSet::new();
    for line in DIFFERENCES.lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.splitn(3, ' ');
        // A line without a reason is not counted.
        if let (Some(file), Some(client), Some(_)) = (parts.next(), parts.next(), parts.next()) {
            listed.insert((file.to_owned(), client.to_owned()));
        }
    }
    let mut rates = Rates::default();
    let mut unexpected = Vec::new();
    for line in truth.lines() {
        let file: Value = serde_json::from_str(line)?;
        let (Some(name), Some(rows)) = (file["file"].as_str(), file["truth"].as_array()) else {
            continue;
        };
        let is_told = |row: &Value| row["app"].is_string() || row["host"].is_string();
        if !rows.iter().any(is_told) {
            continue;
        }
        let decapsulate = matches!(file["layer"].as_str(), Some("inner" | "deep"));
        let ours = ours(&folder.join(name), decapsulate)?;
        for row in rows {
            let end = |address: &str, port: &str| -> Option<End> {
                let address = row[address].as_str()?.parse().ok()?;
                Some((address, u16::try_from(row[port].as_u64()?).ok()?))
            };
            let (Some(client), Some(server)) =
                (end("client", "client_port"), end("server", "server_port"))
            else {
                continue;
            };
            // Where nobody said anything there is nothing to know; some peers go by port or address.
            let sent = row["bytes"]["payload"].as_array();
            if sent.is_some_and(|sent| sent.iter().all(|octets| octets == &Value::from(0))) {
                continue;
            }
            let number = u8::try_from(row["proto"].as_u64().unwrap_or_default())?;
            let nothing = Said::default();
            let said = ours.get(&flow(number, client, server)).unwrap_or(&nothing);
            let differences = compare(row, said, &mut rates);
            let client = format!("{}:{}", client.0, client.1);
            let is_listed = listed.remove(&(name.to_owned(), client.clone()));
            if is_listed == differences.is_empty() {
                unexpected.push(format!(
                    "{name} {client}: {differences:?}, listed: {is_listed}"
                ));
            }
        }
    }
    unexpected.extend(
        listed
            .iter()
            .map(|row| format!("{row:?} is listed, and not there")),
    );
    for (kind, rates) in [("application", &rates.applications), ("host", &rates.hosts)] {
        for (what, Rate { same, all }) in rates {
            println!("{kind} {what}: {same} of {all}");
        }
    }
    let Rate { same, all } = rates.silent;
    println!("no application where a peer has another word: {same} of {all}");
    if unexpected.is_empty() {
        Ok(())
    } else {
        Err(unexpected.join("\n").into())
    }
}
