//! Real captures from the test suites of other projects, metered, against the flows that those projects and tshark find in them.
//!
//! `NV_CONFORMANCE` names the folder that holds them and `truth.jsonl`. Where it is not set the test is reported as ignored, or fails
//! when `NV_TESTS_MUST_RUN` lists `conformance`. What we count otherwise, and why, is in `conformance-differences.txt`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nvcapture::{CaptureFile, Error, FrameSource as _, Next};
use nvflow::{Endpoint, FlowRecord, Meter, MeterConfig, MeterStats};
use serde_json::Value;

const DIFFERENCES: &str = include_str!("conformance-differences.txt");

fn main() {
    let arguments = Arguments::from_args();
    let trials = match std::env::var_os("NV_CONFORMANCE") {
        Some(folder) => trials(&absolute(Path::new(&folder))),
        None => vec![Trial::ignorable_test("conformance", || {
            let why = "needs NV_CONFORMANCE: the folder of captures";
            let must = std::env::var("NV_TESTS_MUST_RUN").unwrap_or_default();
            if must.split(',').any(|name| name.trim() == "conformance") {
                return Err(why.into());
            }
            Ok(Completion::ignored_with(why))
        })],
    };
    libtest_mimic::run(&arguments, trials).exit();
}

/// Tests run in their package's folder; the variable is set in the workspace's.
fn absolute(folder: &Path) -> PathBuf {
    if folder.is_absolute() || folder.exists() {
        folder.into()
    } else {
        Path::new("..").join(folder)
    }
}

fn trials(folder: &Path) -> Vec<Trial> {
    let truth = match std::fs::read_to_string(folder.join("truth.jsonl")) {
        Ok(truth) => truth,
        Err(error) => {
            let text = format!("{}/truth.jsonl: {error}", folder.display());
            return vec![Trial::test("conformance", move || Err(text.into()))];
        }
    };
    let files: Vec<Value> = truth
        .lines()
        .map(|line| serde_json::from_str(line).expect("truth.jsonl holds JSON"))
        .collect();
    let differences: Arc<BTreeMap<&str, &str>> = Arc::new(
        DIFFERENCES
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                line.split_once(char::is_whitespace)
                    .expect("a file and a reason")
            })
            .map(|(file, reason)| (file, reason.trim()))
            .collect(),
    );
    let known: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file["file"].as_str())
        .collect();
    let unknown: Vec<&str> = differences
        .keys()
        .copied()
        .filter(|file| !known.contains(file))
        .collect();
    let mut trials = vec![Trial::test("differences name files that are there", {
        let text = unknown.join(", ");
        move || {
            if text.is_empty() {
                Ok(())
            } else {
                Err(text.into())
            }
        }
    })];
    for file in files {
        let name = file["file"].as_str().expect("each has a file").to_owned();
        let path = folder.join(&name);
        let differences = Arc::clone(&differences);
        trials.push(Trial::test(name.clone(), move || {
            match (compare(&path, &file), differences.get(name.as_str())) {
                (Ok(()), None) => Ok(()),
                (Ok(()), Some(reason)) => {
                    Err(format!("agrees now; listed as differing: {reason}").into())
                }
                (Err(_), Some(_)) => Ok(()),
                (Err(why), None) => Err(why),
            }
        }));
    }
    trials
}

/// Meters a capture; the records up to where it is damaged, if it is.
fn meter(path: &Path, decapsulate: bool) -> Result<(Vec<FlowRecord>, MeterStats), Failed> {
    let length = std::fs::metadata(path)?.len();
    let mut file = CaptureFile::open(path)?;
    let mut meter = Meter::new(MeterConfig {
        decapsulate,
        // The truth counts frames.
        mtu: None,
        ..MeterConfig::default()
    })?;
    let mut records = Vec::new();
    let damage = loop {
        match file.next_block() {
            Ok(Next::Block(block)) => {
                let Ok(_) = meter.observe(block.frames(), &mut records);
            }
            Ok(Next::TimedOut) => return Err("a file does not wait".into()),
            Ok(Next::End) => break None,
            Err(error) => break Some(error),
        }
    };
    let Ok(_) = meter.finish(&mut records);
    let stats = meter.stats();
    let read = file.stats()?;
    check(stats.is_balanced() && stats.frames == read.frames, || {
        format!("not balanced: {stats:?} of {read:?}")
    })?;
    // Each frame takes 16 octets of the file at least, whatever the file claims.
    check(read.frames <= length / 16, || {
        format!("{} frames of {length} octets", read.frames)
    })?;
    // The file is read to its end, or told is where not and why.
    match &damage {
        None => check(file.position() == length, || {
            format!("ended at {} of {length}", file.position())
        })?,
        Some(Error::Damaged { offset, .. }) => {
            check(*offset <= length, || format!("damaged at {offset}"))?;
        }
        Some(Error::NotACapture { .. }) => check(records.is_empty(), || "not a capture".into())?,
        Some(other) => return Err(format!("{other}").into()),
    }
    check(stats.connections == 0 && stats.undelivered == 0, || {
        format!("left behind: {stats:?}")
    })?;
    let packets: u64 = records
        .iter()
        .map(|record| record.forward.packets + record.reverse.packets)
        .sum();
    check(packets == stats.metered, || {
        format!("{packets} packets in records of {stats:?}")
    })?;
    Ok((records, stats))
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(what().into()) }
}

type End = (IpAddr, u16);
/// Protocol, lower end, higher end.
type Flow = (u8, End, End);
/// By definition of "octets", each way, from the lower end first; `packets` among them.
type Sums = BTreeMap<&'static str, [u64; 2]>;

fn flow(protocol: u8, a: End, b: End) -> (Flow, bool) {
    if a <= b {
        ((protocol, a, b), false)
    } else {
        ((protocol, b, a), true)
    }
}

/// Metered flows; by pair of addresses only, as if there were no ports, when `by_pair`.
fn ours(records: &[FlowRecord], by_pair: bool) -> BTreeMap<Flow, (Sums, BTreeSet<End>)> {
    let mut flows: BTreeMap<Flow, (Sums, BTreeSet<End>)> = BTreeMap::new();
    for record in records {
        let end = |end: Endpoint| (end.address, if by_pair { 0 } else { end.port });
        let (source, destination) = (end(record.source), end(record.destination));
        let (flow, turned) = flow(record.protocol_identifier, source, destination);
        let (sums, initiators) = flows.entry(flow).or_default();
        initiators.insert(source);
        for (side, place) in [(&record.forward, turned), (&record.reverse, !turned)] {
            for (name, amount) in [
                ("packets", side.packets),
                ("l2", side.layer2_octets),
                ("ip", side.octets),
                ("payload", side.payload_octets),
            ] {
                sums.entry(name).or_default()[usize::from(place)] += amount;
            }
        }
    }
    flows
}

fn compare(path: &Path, file: &Value) -> Result<(), Failed> {
    let Some(truth) = file["truth"].as_array() else {
        meter(path, false)?;
        meter(path, true)?;
        return Ok(());
    };
    let decapsulate = matches!(file["layer"].as_str(), Some("inner" | "deep"));
    let (records, _) = meter(path, decapsulate)?;
    // Peers give later fragments a flow of their own, with ports 0; we count them to their connection. Both agree by pair of addresses.
    let fragments = file["tags"]
        .as_array()
        .is_some_and(|tags| tags.iter().any(|tag| tag == "frag"));
    if fragments {
        compare_pairs(&records, truth)
    } else {
        compare_flows(&records, truth, file)
    }
}

fn compare_pairs(records: &[FlowRecord], truth: &[Value]) -> Result<(), Failed> {
    let mut wanted: BTreeMap<Flow, Sums> = BTreeMap::new();
    for row in truth {
        let (flow, turned, _) = key_of(row, true);
        for name in ["packets", "l2", "ip"] {
            let Some(pair) = pair_of(row, name, turned) else {
                continue;
            };
            let sums = wanted.entry(flow).or_default().entry(name).or_default();
            *sums = [sums[0] + pair[0], sums[1] + pair[1]];
        }
    }
    let found: BTreeMap<Flow, Sums> = ours(records, true)
        .into_iter()
        .filter(|(flow, _)| wanted.contains_key(flow))
        .map(|(flow, (mut sums, _))| {
            sums.retain(|name, _| wanted[&flow].contains_key(name));
            (flow, sums)
        })
        .collect();
    check(found == wanted, || format!("{found:?}, not {wanted:?}"))
}

/// A row's flow, whether its client is the higher end, and its client.
fn key_of(row: &Value, by_pair: bool) -> (Flow, bool, End) {
    let end = |address: &str, port: &str| -> End {
        let address = row[address]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address");
        (
            address,
            if by_pair {
                0
            } else {
                row[port].as_u64().expect("a port") as u16
            },
        )
    };
    let client = end("client", "client_port");
    let protocol = row["proto"].as_u64().expect("a protocol") as u8;
    let (flow, turned) = flow(protocol, client, end("server", "server_port"));
    (flow, turned, client)
}

/// A row's counts of a kind, the lower end's first.
fn pair_of(row: &Value, name: &str, turned: bool) -> Option<[u64; 2]> {
    let pair = if name == "packets" {
        &row["packets"]
    } else {
        &row["bytes"][name]
    };
    let [a, b] = pair.as_array()?.first_chunk()?;
    let [a, b] = [a.as_u64()?, b.as_u64()?];
    Some(if turned { [b, a] } else { [a, b] })
}

fn compare_flows(records: &[FlowRecord], truth: &[Value], file: &Value) -> Result<(), Failed> {
    let found = ours(records, false);
    let mut said = Vec::new();
    let mut expected = BTreeSet::new();
    for row in truth {
        let (flow, turned, client) = key_of(row, false);
        expected.insert(flow);
        let Some((sums, initiators)) = found.get(&flow) else {
            said.push(format!("{flow:?} is missing"));
            continue;
        };
        for name in ["packets", "l2", "ip", "payload"] {
            let Some(wanted) = pair_of(row, name, turned) else {
                continue;
            };
            if sums[name] != wanted {
                said.push(format!("{flow:?}: {name} {:?}, not {wanted:?}", sums[name]));
            }
        }
        let sure = row["role"].as_str() == Some("agreed") && row["records"].as_u64() == Some(1);
        if sure && !initiators.contains(&client) {
            said.push(format!(
                "{flow:?}: initiated by {initiators:?}, not {client:?}"
            ));
        }
    }
    if file["complete"].as_bool() == Some(true) {
        let scope: Option<Vec<u64>> = file["scope"]
            .as_array()
            .map(|scope| scope.iter().filter_map(Value::as_u64).collect());
        for flow in found.keys() {
            let in_scope = scope
                .as_ref()
                .is_none_or(|scope| scope.contains(&flow.0.into()));
            if in_scope && !expected.contains(flow) {
                said.push(format!("{flow:?} is not in the truth: {:?}", found[flow].0));
            }
        }
    }
    check(said.is_empty(), || said.join("\n"))
}
