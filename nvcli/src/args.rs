//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::export::ExportConfig;
use crate::filter::Filter;
use crate::groups::Grouping;
use crate::target::Target;
use crate::watch::model::Grouping as ViewGrouping;

/// See what a container is talking to: attach, capture and meter its network, from one command.
///
/// nvcli steers copies of a container's frames to one bridge, nv-br, by TC rules in the kernel, and tells from them who
/// talks to whom: one record per connection, both directions in it. Nothing in the container has to change.
#[derive(Debug, Parser)]
#[command(
    name = "nvcli",
    version,
    disable_help_subcommand = true,
    after_help = "\
Start here:
  nvcli demo                      see it work, without Docker; leaves nothing behind
  nvcli doctor                    can this machine do it?
  sudo nvcli attach web-1         steer the container's frames to nv-br
  sudo nvcli flows --watch        who talks to whom, now
  sudo nvcli detach web-1         take everything back
  nvcli flows --read web.pcapng   the same records from a capture, without privileges

Exit codes: 0 done; 1 failed, and nothing is left of it; 2 wrong usage; 3 failed, and something is left (`nvcli repair`).",
    max_term_width = 110
)]
pub(crate) struct Cli {
    /// Say nothing but records, warnings and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log to standard error what is done; twice: each step (or set NVCLI_LOG=nvnet=trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Agent(crate::cmd::agent::Agent),
    Attach(Attach),
    Detach(Detach),
    List(List),
    Repair(Repair),
    Flows(Flows),
    Capture(Capture),
    Status(crate::cmd::status::Status),
    Dump(crate::cmd::dump::Dump),
    /// See it work: two containers made for it, real HTTP and DNS, the check of every frame, nothing left behind
    ///
    /// Needs root and nothing else: no Docker, no network. Everything happens in network namespaces of its own, which
    /// vanish with the process.
    Demo,
    Doctor(Doctor),
    Completions(Completions),
    #[command(hide = true)]
    Names(crate::cmd::completions::Names),
    Man(crate::cmd::man::Man),
}

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListOutput {
    /// For people
    #[default]
    Table,
    /// For programs: one JSON object a line
    Json,
}

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordOutput {
    /// For people
    #[default]
    Table,
    /// One JSON object a line, keys are IPFIX information elements
    Json,
    /// The same names as columns
    Csv,
    /// Nothing: the records are for --export
    None,
}

/// Steer copies of a container's frames to nv-br
///
/// TARGET is a container (name, id, or the first digits of its id), pid:N for the network namespace of a process, or
/// netns:NAME for one in /run/netns (netns:/PATH for any other).
///
/// Open connections go on. If anything fails, everything is put back. Attachments live in the kernel, so they outlast
/// nvcli; `nvcli detach` takes them back.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli attach web-1 db-1
  nvcli attach web-1 --mode mirror      touch nothing inside the container
  nvcli attach netns:blue --dry-run     print what would be done")]
pub(crate) struct Attach {
    /// What to attach: container, pid:N or netns:NAME
    #[arg(value_name = "TARGET", required = true)]
    pub(crate) targets: Vec<Target>,
    /// How the frames are got
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) mode: ModeArg,
    /// Only this interface of the container (may be given again); all by default
    #[arg(short, long = "interface", value_name = "NAME")]
    pub(crate) interfaces: Vec<String>,
    /// Check, and print what would be done, but do nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
    /// No line of titles
    #[arg(long)]
    pub(crate) no_header: bool,
}

/// How the frames of a container are got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// A new veth pair in the way of the container's interface
    #[default]
    Inline,
    /// Rules on the host end of the container's veth pair; nothing inside it changes
    Mirror,
}

impl From<ModeArg> for nvnet::Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Inline => Self::Inline,
            ModeArg::Mirror => Self::Mirror,
        }
    }
}

/// Take attachments back: the container's network is as it was before
///
/// Works from what the kernel knows, so the container may be gone and Docker need not run.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli detach web-1
  nvcli detach --all")]
pub(crate) struct Detach {
    /// What to detach, as it was attached, or as `nvcli list` shows it
    #[arg(
        value_name = "TARGET",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub(crate) targets: Vec<Target>,
    /// Everything that is attached
    #[arg(short, long)]
    pub(crate) all: bool,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
}

/// Show what is attached
///
/// HEALTH is of what can be seen from the host, so that the list is quick. Whether the rules inside a container are there too,
/// `nvcli doctor` tells.
///
/// An agent that runs tells the names that containers have now; NVCLI_AGENT_SOCKET tells one that answers elsewhere.
#[derive(Args, Debug)]
pub(crate) struct List {
    /// How the list is written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
    /// No line of titles
    #[arg(long)]
    pub(crate) no_header: bool,
}

/// Clear away what a killed nvcli left half-done
#[derive(Args, Debug)]
pub(crate) struct Repair {
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
}

/// Meter connections: who talks to whom, how much, how well, and how it ended
///
/// Reads all attached containers from nv-br, or capture files (pcap, pcapng) with --read, which needs no privileges. Each
/// connection is one record with both directions in it; its source is who opened it. Records come as connections end; at
/// the end of the run, or of the files, those still open follow.
///
/// Where an agent runs (NVCLI_AGENT_SOCKET tells one that answers elsewhere), it is asked for its records, and nothing is metered a second time; what it does not do as the options want it
/// (FILTER, --decap, --keep, --snaplen, --stats, other limits and timeouts), a ring of its own does, as always with --direct.
///
/// Standard output gets records only. In tables, packets and octets are from client to server / from server to client.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli flows --watch                            who talks to whom, now; q ends it
  nvcli flows --watch --group service
  nvcli flows --watch --output json              a line as each connection opens, changes and ends
  nvcli flows --container web-1 --duration 10s
  nvcli flows 'tcp port 443 and host 10.0.0.2'   only these frames; the kernel leaves out the others
  nvcli flows --output json | jq .octetDeltaCount
  nvcli flows --output none --export ipfix+udp://collector:4739 --export file:flows.json
  nvcli flows --read web.pcapng --sort octets --count 10
  nvcli flows --read web.pcapng --protocol tcp --port 443 --host 10.0.0.0/8
  nvcli flows --read web.pcapng --group-by client,server,port --window 1m
  tcpdump -w - | nvcli flows --read - --output csv")]
pub(crate) struct Flows {
    /// Only frames that this filter takes, as of tcpdump: 'tcp port 443 and host 10.0.0.2' (docs/filters.md)
    #[arg(value_name = "FILTER")]
    pub(crate) expression: Vec<String>,
    /// Read a capture file (- for standard input); may be given again, the files are read as one
    #[arg(short, long, value_name = "FILE", num_args = 1, conflicts_with_all = ["watch", "containers", "snaplen", "duration"])]
    pub(crate) read: Vec<PathBuf>,
    /// Show the open connections as they go on, ? tells the keys (without a terminal, or with --output json or csv: a
    /// line as each opens, changes and ends)
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// With --watch: how often it is looked at what has changed [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "watch")]
    pub(crate) interval: Option<Duration>,
    /// With --watch: put connections together by this at the start
    #[arg(long, value_enum, value_name = "KEY", requires = "watch")]
    pub(crate) group: Option<ViewGrouping>,
    /// Only connections of this container (name, or first digits of its id); may be given again
    #[arg(short, long = "container", value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
    /// Which records are shown.
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// End after this time, such as 500ms, 10s, 2m, 1h30m
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// End after so many records (with --sort: the first so many in that order)
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// How records are written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: RecordOutput,
    /// Send the records there too (docs/export.md); may be given again: file:PATH, stdout, unix:PATH, ipfix+udp://HOST:PORT, ipfix+tcp://HOST:PORT, prometheus://HOST:PORT, nats://HOST:PORT, otlp+http://HOST:PORT
    #[arg(short = 'x', long = "export", value_name = "URL")]
    pub(crate) exports: Vec<ExportConfig>,
    /// Hold the records back until the end and put the largest first; with --watch what is shown is so ordered
    #[arg(short, long, value_enum, value_name = "KEY")]
    pub(crate) sort: Option<SortKey>,
    /// Meter by a ring of its own, also when an agent runs that could be asked
    #[arg(long, conflicts_with = "read")]
    pub(crate) direct: bool,
    /// End with the accounting of all frames on standard error (who reads nv-br itself always does, unless --quiet)
    #[arg(long)]
    pub(crate) stats: bool,
    /// What connections are added up by.
    #[command(flatten)]
    pub(crate) grouping: Grouping,
    /// With --read: threads that meter, each its share of the connections, beside the one that reads
    #[arg(long, value_name = "N", default_value_t = 1, requires = "read", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: u16,
    /// No line of titles
    #[arg(long)]
    pub(crate) no_header: bool,
    /// Meter the innermost packet of tunnels (VXLAN, Geneve, GRE, GTP-U, IP in IP), not the outermost
    #[arg(long)]
    pub(crate) decap: bool,
    /// Connections kept at the same time, at most
    #[arg(long, value_name = "N", default_value_t = MAX_CONNECTIONS, value_parser = positive)]
    pub(crate) max_connections: usize,
    /// Do not find out what connections speak: no look at what is behind the headers
    #[arg(long)]
    pub(crate) no_identify: bool,
    /// Octets of a frame that the kernel keeps for reading [default: 2048, whole frames of Ethernet; 256, headers, with --no-identify; 1600 with --keep]
    #[arg(long, value_name = "OCTETS", value_parser = clap::value_parser!(u32).range(64..=262_144))]
    pub(crate) snaplen: Option<u32>,
    /// Keep the last frames in so much memory, such as 64M, for `nvcli dump`
    #[arg(long, value_name = "SIZE", value_parser = kept_size, conflicts_with = "read")]
    pub(crate) keep: Option<usize>,
    /// With --keep: frames are forgotten after this time
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m", requires = "keep")]
    pub(crate) keep_for: Duration,
    /// Longest packet of the link: what is longer and not told how it is cut counts as several; 0: as one [default: 1500; live: nv-br's]
    #[arg(long, value_name = "OCTETS")]
    pub(crate) mtu: Option<u32>,
    /// Silence after which an established TCP, a UDP or another connection counts as over [default: 5m, 1m, 1m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// A connection that stays open gets a record every so often
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30m")]
    pub(crate) active_timeout: Duration,
}

/// Connections that are kept at the same time when nothing else is said.
pub(crate) const MAX_CONNECTIONS: usize = 131_072;
/// After how long a connection that stays open gets a record when nothing else is said; as `Flows` has it in words.
pub(crate) const ACTIVE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// What records are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortKey {
    /// Octets of both directions
    Octets,
    /// Packets of both directions
    Packets,
    /// Time from the first frame to the last
    Duration,
    /// First frame; the earliest first
    Start,
    /// Octets a second of both directions
    Rate,
    /// Round trip of the TCP handshake
    Rtt,
    /// Segments that were sent again
    Retransmits,
    /// Their share of the packets
    Loss,
}

/// Write the frames of attached containers to a pcapng file
///
/// One interface block for each interface of the containers, nanosecond times, directions as the container sees them, and
/// the container's own MAC address. Wireshark and tshark open it. Frames that carry no container's address (broadcast into
/// it) are not in it. It ends at the latest when none of its interfaces is attached any more.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli capture web-1 -w web.pcapng --duration 10s
  nvcli capture web-1 -w web.pcapng --rotate 64M --files 10    the last 640 MiB, for as long as it takes
  nvcli capture web-1 db-1 -w - | tshark -r -")]
pub(crate) struct Capture {
    /// What to capture: an attached container, pid:N or netns:NAME
    #[arg(value_name = "TARGET", required = true)]
    pub(crate) targets: Vec<Target>,
    /// Where to write (- for standard output); an old file is replaced
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: PathBuf,
    /// Begin another file when one has so many octets, such as 64M or 1G: FILE gets a number, web-00001.pcapng; each is whole by itself
    #[arg(long, value_name = "SIZE", value_parser = file_size)]
    pub(crate) rotate: Option<u64>,
    /// Keep this many of those files: the oldest is deleted for a new one
    #[arg(long, value_name = "N", requires = "rotate", value_parser = positive)]
    pub(crate) files: Option<usize>,
    /// Only frames that this filter takes, as of tcpdump: 'udp port 53 or icmp' (docs/filters.md)
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub(crate) expression: Option<String>,
    /// End after so many frames
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after this time, such as 500ms, 10s, 2m, 1h30m
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Octets of a frame to keep [default: all]
    #[arg(short, long, value_name = "OCTETS", value_parser = clap::value_parser!(u32).range(14..=262_144))]
    pub(crate) snaplen: Option<u32>,
}

/// Check whether this machine can do it, and what is wrong if something is
///
/// Looks at privileges, kernel features, the memory a ring needs, the Docker engine and what is attached, and listens for a
/// second whether the frames of all that is attached are seen. Changes nothing. Exit code 0: usable; 1: not.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Look at this target too: container, pid:N or netns:NAME
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<Target>,
    /// How the findings are written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
}

/// Print the completion script of a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli completions bash > /etc/bash_completion.d/nvcli
  nvcli completions zsh > \"${fpath[1]}/_nvcli\"
  nvcli completions fish > ~/.config/fish/completions/nvcli.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Octets as people write them: a number with K, M or G, of 1,024 each.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "a number of octets is needed, such as 65536, 512K, 64M or 1G".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A flight recorder's memory.
pub(crate) fn kept_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(octets @ 0x1_0000..) => Ok(octets),
        Ok(_) => Err("it has to be 64K at least".to_owned()),
        Err(_) => Err("there is not so much memory".to_owned()),
    }
}

/// A file's size: room for its head and some frames.
fn file_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        octets @ 0x1_0000.. => Ok(octets),
        _ => Err("a file has at least 64K".to_owned()),
    }
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "a number is needed".to_owned())?;
    if number == 0 {
        Err("it must be at least 1".to_owned())
    } else {
        Ok(number)
    }
}

/// A time as people write it: numbers with units, longest first, such as `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a number and a unit are needed, such as 500ms, 10s, 2m or 1h30m".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut above = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        if millis >= above {
            return Err(wrong());
        }
        above = millis;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let part = number
            .checked_mul(millis)
            .ok_or_else(|| "it is too long".to_owned())?;
        total = total.saturating_add(Duration::from_millis(part));
        rest = tail;
    }
    if total.is_zero() {
        return Err(if text.is_empty() {
            wrong()
        } else {
            "it must be longer than nothing".to_owned()
        });
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, octets) in [
            ("0", 0),
            ("65536", 65_536),
            ("64K", 65_536),
            ("64M", 64 << 20),
            ("1G", 1 << 30),
            ("3GiB", 3 << 30),
        ] {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for text in [
            "",
            "M",
            "1.5M",
            "-1",
            "1T",
            "64MB",
            "99999999999999999999",
            "99999999999G",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(file_size("63K").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("2min", 120_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1s500ms", 1_500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "0s",
            "1s1h",
            "1s1s",
            "1y",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
