//! `nvcli flows`: connections, live or from files.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, IsTerminal, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nvcapture::{
    BpfInsn, CaptureFile, FrameSource as _, Next, Ring, RingConfig, SourceStats, Timestamp,
};
use nvflow::{FlowRecord, Identify, Meter, MeterConfig, MeterStats, Observation, Sink, Timeouts};
use nvnet::BRIDGE;

use crate::agent::feed::{self, Feed, Open, Told};
use crate::args::{ACTIVE_TIMEOUT, Flows, MAX_CONNECTIONS, RecordOutput, SortKey};
use crate::cmd::detach::not_attached;
use crate::escape;
use crate::events::{Changes, Event};
use crate::exit::{CliError, Result, Say};
use crate::export::{self, Export, Pace, Stage, Totals};
use crate::expression::{self, OfFiles};
use crate::groups::{Form, Groups};
use crate::health::Tally;
use crate::meters::{self, Meters};
use crate::names::Names;
use crate::open::{host, net};
use crate::patient::Patient;
use crate::recorder::{self, Recorder};
use crate::render::flows::{Csv, Json, Lines, Table};
use crate::render::order::rank;
use crate::render::progress::Progress;
use crate::render::table::terminal_width;
use crate::render::text::{count, grouped};
use crate::signals::Interrupt;
use crate::target::Target;
use crate::watch;

/// How often, at most, a live run looks at clocks; how rarely, see [`Live::patience`].
const TICK: Duration = Duration::from_millis(100);
/// How long frames are waited for before something else is looked at, but for signals: longer than a block of a ring is kept back, so that while
/// frames come nothing else wakes, which costs as much as a thousand of them.
const WAIT: Duration = Duration::from_secs(1);
/// Frames reach us this much later than they came, at most: the ring keeps them until a block is full or due.
const LATENESS: Duration = Duration::from_millis(500);
/// Enough for Ethernet, two tags, IPv6 with extension headers and TCP with all options.
pub(crate) const HEADERS: u32 = 256;
/// Enough for a whole frame of Ethernet, and for a ClientHello in a super-frame.
pub(crate) const BEGINNINGS: u32 = 2_048;
/// What is kept of a frame for `nvcli dump`: a whole packet of Ethernet's, but not all of a super-frame.
const KEPT: u32 = 1_600;
/// Records that are held back for sorting when no count is given.
const SORTED: usize = 1_000_000;

/// Meters, and prints the records.
pub(crate) fn run(args: &Flows, say: Say) -> Result<()> {
    if args.read.iter().filter(|file| is_stdin(file)).count() > 1 {
        return Err(CliError::usage(
            "--read - was given twice; standard input can be read once",
        ));
    }
    let filter = (!args.expression.is_empty()).then(|| args.expression.join(" "));
    // What cannot be understood is told before anything is looked at.
    let filter = if args.read.is_empty() {
        Frames::Live(filter.as_deref().map(expression::live).transpose()?)
    } else {
        Frames::Files(filter.map(OfFiles::new).transpose()?)
    };
    let exports = exports(args)?;
    if !args.grouping.group_by.is_empty() {
        let why = match args.sort {
            None | Some(SortKey::Octets | SortKey::Packets) => None,
            Some(SortKey::Start) if args.grouping.window.is_some() => None,
            Some(SortKey::Start) => Some("sums have no start of their own, but with --window"),
            Some(_) => Some(
                "this --sort is of single connections; with --group-by: octets, packets or start",
            ),
        };
        if let Some(why) = why {
            return Err(CliError::usage(why));
        }
    }
    without_effect(args)?;
    let interrupt = Interrupt::listen()?;
    match filter {
        Frames::Live(program) => match agent(args, say)? {
            Some(feed) => by_agent((args, &exports), say, feed, &interrupt),
            None => {
                let mut meter = meters::meter(config(args))?;
                live((args, &exports), program, say, &mut meter, &interrupt)
            }
        },
        Frames::Files(filter) => {
            let meters = Meters::new(config(args), args.threads)?;
            files((args, &exports), filter, say, meters, &interrupt)
        }
    }
}

/// Refuses what would do nothing: clap does not ask for an option that one beside it rules out.
fn without_effect(args: &Flows) -> Result<()> {
    let refused = [
        (
            args.interval.is_some() && !args.watch,
            "--interval",
            "--watch",
        ),
        (args.group.is_some() && !args.watch, "--group", "--watch"),
        (
            args.threads > 1 && args.read.is_empty(),
            "--threads",
            "--read",
        ),
    ];
    match refused.into_iter().find(|(is_refused, ..)| *is_refused) {
        Some((_, option, with)) => Err(CliError::usage(format!(
            "{option} has a meaning with {with} only"
        ))),
        None => Ok(()),
    }
}

/// Where records go beside the output.
fn exports(args: &Flows) -> Result<Vec<Export>> {
    let exports = args
        .exports
        .iter()
        .map(|config| {
            config
                .check()
                .map_err(|error| CliError::usage("--export cannot be followed").because(error))
        })
        .collect::<Result<Vec<_>>>()?;
    let shows_nothing = args.output == RecordOutput::None;
    if shows_nothing && exports.is_empty() {
        return Err(CliError::usage(
            "--output none leaves nothing to do without --export",
        ));
    }
    if !shows_nothing && exports.iter().any(Export::is_stdout) {
        return Err(CliError::usage(
            "records and --export stdout would be mixed on standard output",
        )
        .remedy("--output none"));
    }
    Ok(exports)
}

/// Whether it is shown on the terminal as it goes on.
fn has_view(args: &Flows) -> bool {
    args.watch && args.output == RecordOutput::Table && watch::has_screen()
}

/// Which frames are read.
enum Frames {
    Live(Option<Vec<BpfInsn>>),
    Files(Option<OfFiles>),
}

/// When connections are over: `idle` as the option of that name says it.
pub(crate) fn timeouts(idle: Option<Duration>, active: Duration) -> Timeouts {
    let mut timeouts = Timeouts {
        active,
        ..Timeouts::default()
    };
    if let Some(idle) = idle {
        timeouts.tcp_established = idle;
        timeouts.udp = idle;
        timeouts.other = idle;
        timeouts.icmp = timeouts.icmp.min(idle);
        timeouts.tcp_half_open = timeouts.tcp_half_open.min(idle);
        timeouts.tcp_closing = timeouts.tcp_closing.min(idle);
    }
    timeouts
}

fn config(args: &Flows) -> MeterConfig {
    // The view shows all of a connection; nobody reads a part of it.
    let active = if has_view(args) && args.exports.is_empty() {
        Duration::MAX
    } else {
        args.active_timeout
    };
    MeterConfig {
        max_connections: args.max_connections,
        timeouts: timeouts(args.idle_timeout, active),
        observation: if args.read.is_empty() {
            Observation::Marker
        } else {
            Observation::None
        },
        decapsulate: args.decap,
        identify: (!args.no_identify).then(Identify::default),
        mtu: args.mtu.map_or(MeterConfig::default().mtu, mtu),
        ..MeterConfig::default()
    }
}

/// An MTU as it is given; 0 is none.
pub(crate) const fn mtu(octets: u32) -> Option<u32> {
    if octets == 0 { None } else { Some(octets) }
}

/// Takes records: names them, leaves out what is not wanted, sorts, counts, and hands them on.
struct Output<'a> {
    args: &'a Flows,
    names: Option<Names>,
    to: Box<dyn Lines>,
    /// Takes every record that is wanted, in the order in which they come.
    stage: Stage,
    /// Where records are added up instead of being shown.
    groups: Option<Groups>,
    /// With --watch: connections are told of while they are open, too.
    changes: Option<Changes>,
    shown: u64,
    /// How many may be shown as they come.
    most: u64,
    /// By what records are held back, if they are.
    sort: Option<SortKey>,
    /// Records held back for sorting, best first, and how many fell out of bounds.
    held: BTreeMap<(std::cmp::Reverse<u64>, u64), FlowRecord>,
    seen: u64,
    beyond: u64,
    /// While files are read; gone before the first record is written to the same terminal.
    progress: Option<Progress>,
    beside_progress: bool,
}

/// Where records go when they are exported only.
struct Nowhere;

impl Lines for Nowhere {
    fn record(&mut self, _: &FlowRecord) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> Output<'a> {
    fn new(args: &'a Flows, names: Option<Names>, stage: Stage) -> Self {
        let terminal = io::stdout().is_terminal();
        let out = || BufWriter::with_capacity(1 << 16, io::stdout());
        let mut to: Box<dyn Lines> = match args.output {
            RecordOutput::Table if !args.watch => {
                Box::new(Table::new(out(), terminal_width(), !args.no_header))
            }
            RecordOutput::Table | RecordOutput::Json => Box::new(Json::new(io::stdout())),
            RecordOutput::Csv => Box::new(Csv::new(io::stdout(), !args.no_header)),
            RecordOutput::None => Box::new(Nowhere),
        };
        let tells = args.watch && args.output != RecordOutput::None;
        let changes = tells.then(|| {
            to.tell(Event::Open);
            Changes::every(args.interval.unwrap_or(watch::REFRESH))
        });
        let sort = args
            .sort
            .filter(|_| changes.is_none() && args.output != RecordOutput::None);
        let groups = Groups::new(&args.grouping);
        let most = args
            .count
            .filter(|_| groups.is_none() && sort.is_none())
            .unwrap_or(u64::MAX);
        Self {
            args,
            names,
            to,
            stage,
            groups,
            changes,
            shown: 0,
            most,
            sort,
            held: BTreeMap::new(),
            seen: 0,
            beyond: 0,
            progress: None,
            beside_progress: !terminal,
        }
    }

    fn is_full(&self) -> bool {
        self.shown >= self.most
    }

    fn hold(&mut self, record: FlowRecord, key: SortKey) {
        let most = self
            .args
            .count
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(SORTED)
            .min(SORTED);
        self.held
            .insert((std::cmp::Reverse(rank(&record, key)), self.seen), record);
        if self.held.len() > most {
            self.held.pop_last();
            self.beyond += 1;
        }
    }

    /// Tells of a connection that is open, if such are told of and it is wanted.
    fn change(&mut self, event: Event, record: &FlowRecord) -> io::Result<()> {
        let wanted = self.changes.is_some()
            && self.args.filter.admits(record)
            && is_of(record, &self.args.containers);
        if !wanted {
            return Ok(());
        }
        self.to.tell(event);
        self.to.record(record)
    }

    /// Writes what was held back, and the rest of what was buffered.
    fn finish(&mut self, say: Say) -> io::Result<()> {
        self.progress = None;
        if let Some(groups) = &self.groups {
            let form = Form {
                output: self.args.output,
                header: !self.args.no_header,
                width: terminal_width(),
            };
            let out = BufWriter::with_capacity(1 << 16, io::stdout());
            return groups.write(out, &form, self.args.sort, self.args.count, say);
        }
        for record in std::mem::take(&mut self.held).into_values() {
            self.to.record(&record)?;
        }
        self.to.flush()?;
        if self.beyond > 0 && self.args.count.is_none_or(|count| count > SORTED as u64) {
            say.warn(format_args!(
                "{} records are not shown: only the first {} are kept for --sort",
                grouped(self.beyond),
                grouped(SORTED as u64)
            ));
        }
        Ok(())
    }
}

/// The record with the names of its ends, or nothing if it is not wanted.
fn named(names: &Names, containers: &[String], record: &FlowRecord) -> Option<FlowRecord> {
    if !names.wanted(record, containers) {
        return None;
    }
    let mut record = record.clone();
    names.label(&mut record);
    Some(record)
}

impl Sink for Output<'_> {
    type Error = io::Error;

    fn record(&mut self, record: &FlowRecord) -> io::Result<ControlFlow<()>> {
        if self.is_full() {
            return Ok(ControlFlow::Break(()));
        }
        if !self.args.filter.admits(record) {
            return Ok(ControlFlow::Continue(()));
        }
        self.seen += 1;
        let labelled;
        let record = match &self.names {
            None => record,
            Some(names) => match named(names, &self.args.containers, record) {
                Some(record) => {
                    labelled = record;
                    &labelled
                }
                None => return Ok(ControlFlow::Continue(())),
            },
        };
        self.stage.record(record);
        if let Some(groups) = &mut self.groups {
            groups.add(record);
            return Ok(ControlFlow::Continue(()));
        }
        if self.sort.is_none() && !self.beside_progress {
            self.progress = None;
        }
        if let Some(key) = self.sort {
            self.hold(record.clone(), key);
        } else {
            let mut is_last = true;
            if self.changes.is_some() {
                let event = Event::of_record(record);
                is_last = event == Event::End;
                self.to.tell(event);
            }
            self.to.record(record)?;
            self.shown += u64::from(is_last);
        }
        Ok(if self.is_full() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }
}

/// Octets of all `files`; `None` when one of them has no length, as a pipe.
fn length(files: &[PathBuf]) -> Option<u64> {
    files
        .iter()
        .map(|file| std::fs::metadata(file).ok())
        .map(|file| file.filter(Metadata::is_file).map(|file| file.len()))
        .sum()
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Files are read as one stream, in the order given.
fn files(
    (args, exports): (&Flows, &[Export]),
    mut filter: Option<OfFiles>,
    say: Say,
    mut meters: Meters,
    interrupt: &Interrupt,
) -> Result<()> {
    let began = Instant::now();
    let stage = Stage::start(exports, Pace::Wait)?;
    let mut out = Output::new(args, None, stage);
    if !say.is_quiet() {
        out.progress = Progress::start(length(&args.read));
    }
    let mut run = Reading {
        meters: &mut meters,
        out: &mut out,
        filter: filter.as_mut(),
        interrupt,
        before: 0,
        totals: SourceStats::default(),
        lost_before: 0,
    };
    let mut failed: Option<CliError> = None;
    for file in &args.read {
        let shown = if is_stdin(file) {
            "standard input".into()
        } else {
            file.display().to_string()
        };
        let read = match Input::open(file, interrupt) {
            Ok(Input::File(capture)) => run.read(capture),
            Ok(Input::Pipe(capture)) => run.read(capture),
            Err(error) => Err(Stop::Source(error)),
        };
        run.before += length(std::slice::from_ref(file)).unwrap_or(0);
        match read {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(Stop::Output(source)) => return Err(CliError::output(&source)),
            Err(Stop::Filter(error)) => {
                return Err(error.because(format!("so {shown} is not read")));
            }
            Err(Stop::Source(error)) => {
                run.out.progress = None;
                let error = unreadable(&shown, &error);
                if let Some(earlier) = failed.replace(error) {
                    earlier.report();
                }
            }
        }
    }
    let Reading {
        totals,
        lost_before,
        ..
    } = run;
    let wanted = !out.is_full();
    let stats = meters
        .finish(&mut out, wanted)
        .map_err(|source| CliError::output(&source))?;
    out.finish(say)
        .map_err(|source| CliError::output(&source))?;
    out.stage.totals(Totals::new(&stats, &totals));
    let exported = export::told(say, &out.stage.finish());
    if args.stats {
        account(say, &stats, &totals, began.elapsed());
        if let Some(filter) = &filter {
            say.note(format_args!(
                "{} frames left out by the filter",
                grouped(filter.left_out)
            ));
        }
        if lost_before > 0 {
            say.note(format_args!(
                "the captures say that {} frames were lost before they were written",
                grouped(lost_before)
            ));
        }
    }
    match failed {
        None => exported,
        Some(failed) => {
            if let Err(lost) = exported {
                lost.report();
            }
            Err(failed)
        }
    }
}

/// Why reading stopped before the end.
enum Stop {
    Source(nvcapture::Error),
    Output(io::Error),
    Filter(CliError),
}

/// A capture to read.
enum Input<'i> {
    File(CaptureFile<File>),
    Pipe(CaptureFile<Patient<'i>>),
}

impl<'i> Input<'i> {
    fn open(file: &Path, interrupt: &'i Interrupt) -> std::result::Result<Self, nvcapture::Error> {
        let pipe = if is_stdin(file) {
            Patient::stdin(interrupt)
        } else if std::fs::metadata(file).is_ok_and(|it| !it.is_file() && !it.is_dir()) {
            Patient::open(file, interrupt)
        } else {
            return CaptureFile::open(file).map(Self::File);
        };
        match pipe {
            Ok(input) => Ok(Self::Pipe(CaptureFile::new(input))),
            Err(source) => Err(nvcapture::Error::Io {
                op: "open",
                path: file.display().to_string(),
                source,
            }),
        }
    }
}

/// What files are read into, one after the other.
struct Reading<'r, 'o> {
    meters: &'r mut Meters,
    out: &'r mut Output<'o>,
    filter: Option<&'r mut OfFiles>,
    interrupt: &'r Interrupt,
    /// Octets of those that were read before.
    before: u64,
    totals: SourceStats,
    /// Frames that captures say were lost before they were written.
    lost_before: u64,
}

impl Reading<'_, '_> {
    fn read<R: Read>(
        &mut self,
        mut capture: CaptureFile<R>,
    ) -> std::result::Result<ControlFlow<()>, Stop> {
        let Self { meters, out, .. } = self;
        let ended = loop {
            let flow = match capture.next_block() {
                Ok(Next::Block(block)) => match &mut self.filter {
                    None => meters.observe(block.frames(), out).map_err(Stop::Output),
                    Some(filter) => {
                        let wanted = block.frames().filter(|frame| filter.admits(frame));
                        let flow = meters.observe(wanted, out).map_err(Stop::Output);
                        match filter.failure() {
                            Some(error) => Err(Stop::Filter(error)),
                            None => flow,
                        }
                    }
                },
                Ok(Next::TimedOut) => Ok(ControlFlow::Continue(())),
                Ok(Next::End) => break Ok(ControlFlow::Continue(())),
                // What was to come of a pipe was not waited for.
                Err(_) if self.interrupt.is_asked() => break Ok(ControlFlow::Break(())),
                Err(error) => Err(Stop::Source(error)),
            };
            if let Some(progress) = &mut out.progress {
                progress.at(self.before + capture.position(), Instant::now());
            }
            match flow {
                Ok(ControlFlow::Continue(())) if !self.interrupt.is_asked() => {}
                Ok(_) => break Ok(ControlFlow::Break(())),
                Err(stop) => break Err(stop),
            }
        };
        if let Ok(stats) = capture.stats() {
            self.totals.frames += stats.frames;
            self.totals.wire_octets += stats.wire_octets;
            self.totals.truncated += stats.truncated;
            // The file's word, which may be anything.
            self.lost_before = self.lost_before.saturating_add(stats.dropped);
        }
        ended
    }
}

fn unreadable(file: &str, error: &nvcapture::Error) -> CliError {
    match error {
        nvcapture::Error::Damaged { .. } => {
            CliError::new(format!("{file} was not read to its end"))
                .caused_by(error)
                .remedy("the records printed are of what came before the damage")
        }
        nvcapture::Error::Io { source, .. } => {
            let told = CliError::new(format!("cannot read {file}")).because(source);
            match source.kind() {
                io::ErrorKind::NotFound => told.remedy("check the path"),
                io::ErrorKind::PermissionDenied => told.remedy("check who may read the file"),
                io::ErrorKind::IsADirectory => {
                    told.remedy("name a file, or several by --read A --read B")
                }
                _ => told,
            }
        }
        other => CliError::new(format!("cannot read {file}"))
            .caused_by(other)
            .remedy("a pcap or pcapng file, such as `nvcli capture` or `tcpdump -w` writes"),
    }
}

/// What of the command line an agent does not do, so that a ring of one's own has to.
fn of_a_ring(args: &Flows) -> Option<&'static str> {
    let asked = [
        (!args.expression.is_empty(), "FILTER"),
        (args.decap, "--decap"),
        (args.keep.is_some(), "--keep"),
        (args.snaplen.is_some(), "--snaplen"),
        (args.mtu.is_some(), "--mtu"),
        (args.no_identify, "--no-identify"),
        (args.idle_timeout.is_some(), "--idle-timeout"),
        (args.active_timeout != ACTIVE_TIMEOUT, "--active-timeout"),
        (args.max_connections != MAX_CONNECTIONS, "--max-connections"),
        (args.stats, "--stats"),
    ];
    let first = asked.into_iter().find(|(is_asked, _)| *is_asked);
    first.map(|(_, option)| option)
}

/// What an agent tells that can be asked instead of metering once more.
fn agent(args: &Flows, say: Say) -> Result<Option<Feed>> {
    if args.direct {
        return Ok(None);
    }
    let host = host()?;
    if let Some(option) = of_a_ring(args) {
        if feed::is_there(&host) {
            say.note(format_args!(
                "an agent runs; for {option} {BRIDGE} is read beside it"
            ));
        }
        return Ok(None);
    }
    let every = args.interval.unwrap_or(watch::REFRESH);
    let tells = args.watch && (has_view(args) || args.output != RecordOutput::None);
    Feed::open(&host, tells.then_some(every))
}

/// Whether a record of an agent's is of a container that is asked for.
pub(crate) fn is_of(record: &FlowRecord, containers: &[String]) -> bool {
    let labels = &record.labels;
    let id = labels.details.as_ref().and_then(|of| of.id.as_deref());
    containers.is_empty()
        || labels.workload.as_deref().is_some_and(|name| {
            let mut wanted = containers.iter();
            wanted.any(|wanted| crate::names::is_called(wanted, name, id))
        })
}

/// Who is attached, as `read` tells; all of `containers` have to be.
fn attached(
    containers: &[String],
    read: impl Fn(nvnet::Netns) -> std::result::Result<Names, nvnet::Error>,
) -> Result<Names> {
    let names = read(host()?).map_err(|error| net("cannot read what is attached", &error))?;
    for wanted in containers {
        let is_there = |a: &&nvnet::Attachment| {
            crate::names::is_called(wanted, &a.workload.name, a.workload.container_id.as_deref())
        };
        if names.attached().iter().find(is_there).is_none() {
            let remedy = format!("nvcli attach {}", escape::shell(wanted));
            let target = Target::Container(wanted.clone());
            return Err(not_attached(&target, names.attached(), remedy));
        }
    }
    Ok(names)
}

/// All attached containers, as an agent meters them.
fn by_agent(
    (args, exports): (&Flows, &[Export]),
    say: Say,
    feed: Feed,
    interrupt: &Interrupt,
) -> Result<()> {
    let names = attached(&args.containers, Names::read)?;
    let host = names.host().clone();
    let until = args.duration.map(|duration| Instant::now() + duration);
    let pid = feed.pid;
    let mut stage = Stage::start(exports, Pace::Live)?;
    let (is_over, lost) = if has_view(args) {
        watch::by_agent(args, feed, (names, &stage), interrupt, until)?
    } else {
        say.note(format_args!(
            "the agent (process {pid}) tells what it meters{}; Ctrl-C ends it",
            if args.watch {
                ": a line as a connection opens, changes and ends"
            } else {
                ": records as connections end, at last those still open"
            }
        ));
        let mut out = Output::new(args, None, stage);
        let ended = told((args, &host), feed, &mut out, interrupt, until)?;
        out.finish(say)
            .map_err(|source| CliError::output(&source))?;
        stage = out.stage;
        ended
    };
    let exported = export::told(say, &stage.finish());
    if lost > 0 {
        say.warn(format_args!(
            "{} records are missing: the agent does not wait for those who listen",
            grouped(lost)
        ));
    }
    if is_over {
        say.warn(format_args!(
            "the agent (process {pid}) has ended, and the run with it; again, {BRIDGE} is read without one"
        ));
    }
    exported
}

/// Hands on what an agent tells; gives whether it has ended, and how many records are missing.
fn told(
    (args, host): (&Flows, &nvnet::Netns),
    mut feed: Feed,
    out: &mut Output<'_>,
    interrupt: &Interrupt,
    until: Option<Instant>,
) -> Result<(bool, u64)> {
    let output = |source: io::Error| CliError::output(&source);
    let mut open = Open::default();
    let is_over = loop {
        if out.is_full() || interrupt.is_asked() || until.is_some_and(|at| Instant::now() >= at) {
            break false;
        }
        match feed.next(TICK)? {
            Told::Open(record) => {
                let shown = (*record).clone();
                if let Some(event) = open.put(*record) {
                    out.change(event, &shown).map_err(output)?;
                }
            }
            Told::Record(record) => {
                if Event::of_record(&record) == Event::End {
                    open.end(&record);
                }
                if is_of(&record, &args.containers) {
                    let _full = out.record(&record).map_err(output)?;
                }
            }
            Told::Looked(sums) => {
                open.looked(sums.whole);
                out.stage.totals(Totals::new(&sums.meter, &sums.source));
                out.to.flush().map_err(output)?;
            }
            Told::Nothing => out.to.flush().map_err(output)?,
            Told::Ended => break true,
        }
    };
    if !is_over && !out.is_full() {
        for record in feed::open(host)? {
            if is_of(&record, &args.containers) && out.record(&record).map_err(output)?.is_break() {
                break;
            }
        }
    }
    Ok((is_over, feed.lost(host)))
}

/// All attached containers, from nv-br.
fn live(
    (args, exports): (&Flows, &[Export]),
    filter: Option<Vec<BpfInsn>>,
    say: Say,
    meter: &mut Meter,
    interrupt: &Interrupt,
) -> Result<()> {
    let read = if has_view(args) {
        Names::read
    } else {
        Names::listen
    };
    let names = attached(&args.containers, read)?;
    if names.attached().is_empty() {
        return Err(
            CliError::new("nothing is attached, so there is nothing to meter")
                .remedy("nvcli attach CONTAINER; or read a capture: nvcli flows --read FILE"),
        );
    }
    let recorder = match args.keep {
        Some(octets) => {
            let recorder = Recorder::new(octets, args.keep_for)?;
            let served = recorder::serve(&recorder, host()?.id(), || ())?;
            Some((recorder, served))
        }
        None => None,
    };
    let default = match (&recorder, args.no_identify) {
        (Some(_), _) => KEPT,
        (None, true) => HEADERS,
        (None, false) => BEGINNINGS,
    };
    let config = RingConfig {
        snaplen: Some(args.snaplen.unwrap_or(default)),
        filter,
        ..RingConfig::default()
    };
    let mut ring = Ring::open(&config, BRIDGE).map_err(|error| no_ring(&error))?;
    if args.mtu.is_none() {
        // Only asked where the kernel does not tell how super-frames are cut.
        meter.set_mtu(ring.mtu().map_or(MeterConfig::default().mtu, mtu));
    }
    let began = Instant::now();
    let until = args.duration.map(|duration| began + duration);
    let mut stage = Stage::start(exports, Pace::Live)?;
    let kept = recorder.as_ref().map(|(recorder, _)| recorder.as_ref());
    let gone = if has_view(args) {
        watch::run(
            args,
            (&mut ring, kept),
            meter,
            (names, &stage),
            interrupt,
            until,
        )?
    } else {
        say.note(if args.watch {
            "metering; a line as a connection opens, changes and ends; Ctrl-C ends it"
        } else {
            "metering; records come as connections end, Ctrl-C ends it with those still open"
        });
        let mut out = Output::new(args, Some(names), stage);
        let gone = metering((&mut ring, kept), meter, &mut out, interrupt, until)?;
        let output = |source: io::Error| CliError::output(&source);
        if !out.is_full() {
            if let Some(names) = &mut out.names {
                names.catch_up();
            }
            let _all = meter.finish(&mut out).map_err(output)?;
        }
        out.finish(say).map_err(output)?;
        stage = out.stage;
        gone
    };
    drop(recorder);
    let totals = ring.stats().unwrap_or_default();
    stage.totals(Totals::new(&meter.stats(), &totals));
    let exported = export::told(say, &stage.finish());
    // What waited in the ring came later, but was there by then.
    let took = began.elapsed().min(args.duration.unwrap_or(Duration::MAX));
    account(say, &meter.stats(), &totals, took);
    if let Some(gone) = gone {
        say.warn(format_args!(
            "{}: everything was detached; the run ended there",
            escape::text(&gone)
        ));
    }
    exported
}

/// What a live run feeds.
pub(crate) trait Live: Sink<Error = io::Error> {
    /// Whether it wants no more.
    fn is_full(&self) -> bool;

    /// Whether frames are to be counted by their marks.
    fn tallies(&self) -> bool {
        false
    }

    /// How long the next [`tick`](Self::tick) can wait while no frames come.
    fn patience(&self, _now: Instant) -> Duration {
        WAIT
    }

    /// Comes again and again, whether there are frames or not.
    fn tick(&mut self, ring: &mut Ring, meter: &Meter, tally: &Tally) -> io::Result<()>;
}

impl Live for Output<'_> {
    fn is_full(&self) -> bool {
        Output::is_full(self)
    }

    fn patience(&self, now: Instant) -> Duration {
        let changes = self.changes.as_ref();
        changes.map_or(WAIT, |changes| changes.left(now).min(WAIT))
    }

    fn tick(&mut self, ring: &mut Ring, meter: &Meter, _: &Tally) -> io::Result<()> {
        let source = ring.stats().unwrap_or_default();
        self.stage.totals(Totals::new(&meter.stats(), &source));
        if let Some(names) = &mut self.names {
            names.follow();
        }
        let (names, containers) = (self.names.as_ref(), &self.args.containers);
        let (filter, to) = (&self.args.filter, &mut self.to);
        let now = Instant::now();
        if let Some(changes) = self.changes.as_mut().filter(|changes| changes.is_due(now)) {
            changes.look(now, meter, |event, record| {
                if !filter.admits(&record) {
                    return Ok(());
                }
                let record = match names {
                    None => record,
                    Some(names) => match named(names, containers, &record) {
                        Some(record) => record,
                        None => return Ok(()),
                    },
                };
                to.tell(event);
                to.record(&record)
            })?;
        }
        to.flush()
    }
}

/// Meters until the end is asked for; tells why when the interface ended it.
pub(crate) fn metering(
    (ring, recorder): (&mut Ring, Option<&Recorder>),
    meter: &mut Meter,
    out: &mut impl Live,
    interrupt: &Interrupt,
    mut until: Option<Instant>,
) -> Result<Option<String>> {
    let output = |source: io::Error| CliError::output(&source);
    let mut stopped = false;
    let mut due = Instant::now() + TICK;
    // Whether frames have come since the last tick: what came of them is not kept back for longer than that.
    let mut has_news = false;
    let mut tally = Tally::default();
    loop {
        let now = Instant::now();
        let mut wait = due.saturating_duration_since(now);
        if !has_news {
            wait = wait.max(out.patience(now));
        }
        if let Some(until) = until {
            wait = wait.min(until.saturating_duration_since(now));
        }
        if !stopped {
            interrupt.asked_before(ring.as_fd(), wait);
            wait = Duration::ZERO;
        }
        match ring.next_block(Some(wait)) {
            Ok(Next::Block(block)) => {
                has_news = true;
                if let Some(recorder) = recorder {
                    recorder.keep(block.frames());
                }
                let _full = if out.tallies() {
                    let frames = block.frames().inspect(|frame| tally.count(frame));
                    meter.observe(frames, out)
                } else {
                    meter.observe(block.frames(), out)
                }
                .map_err(output)?;
            }
            Ok(Next::TimedOut) => {}
            Ok(Next::End) => return Ok(None),
            Err(error @ nvcapture::Error::InterfaceGone { .. }) => {
                return Ok(Some(error.to_string()));
            }
            // It may come up again, and somebody took it down on purpose.
            Err(nvcapture::Error::InterfaceDown { .. }) => {}
            Err(error @ nvcapture::Error::Malformed { .. }) => tracing::warn!("{error}"),
            Err(error @ nvcapture::Error::Incomplete { .. }) => {
                // Nothing comes any more, however long it is asked for.
                tracing::warn!("{error}");
                return Ok(None);
            }
            Err(error) => {
                return Err(
                    CliError::new(format!("cannot read {BRIDGE} any longer")).caused_by(&error)
                );
            }
        }
        if out.is_full() {
            return Ok(None);
        }
        let now = Instant::now();
        let is_over = !stopped && (interrupt.is_asked() || until.is_some_and(|until| now >= until));
        if now < due && !is_over {
            continue;
        }
        due = now + TICK;
        has_news = false;
        // Whether the sink is full is asked of itself, above.
        let _full = meter.expire(frame_clock(), out).map_err(output)?;
        if let Some(recorder) = recorder {
            recorder.expire(frame_clock());
        }
        out.tick(ring, meter, &tally).map_err(output)?;
        if is_over {
            ring.stop().map_err(|error| {
                CliError::new(format!("cannot end the reading of {BRIDGE}")).caused_by(&error)
            })?;
            stopped = true;
            // What is in the ring comes however long it takes.
            until = None;
        }
    }
}

/// The time, as frames are stamped with it.
pub(crate) fn wall_clock() -> Timestamp {
    SystemTime::now().into()
}

/// The time up to which all frames are here.
pub(crate) fn frame_clock() -> Timestamp {
    let late = u64::try_from(LATENESS.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(wall_clock().as_nanos().saturating_sub(late))
}

/// Why nv-br cannot be read, and what to do.
pub(crate) fn no_ring(error: &nvcapture::Error) -> CliError {
    let told = CliError::new(format!("cannot read {BRIDGE}")).caused_by(error);
    match error {
        nvcapture::Error::NoInterface { .. } => {
            told.remedy("nvcli attach CONTAINER; nvcli repair if something is half-done")
        }
        nvcapture::Error::Socket { .. } => told.remedy("run it as root (CAP_NET_RAW is needed)"),
        _ => told.remedy("nvcli doctor"),
    }
}

/// Tells where every frame went, and how fast.
fn account(say: Say, stats: &MeterStats, source: &SourceStats, took: Duration) {
    say.note(format_args!(
        "{} frames read = {} metered + {} not IP + {} unparsed + {} refused; {} dropped by the kernel; {} cut",
        grouped(stats.frames),
        grouped(stats.metered),
        grouped(stats.not_ip),
        grouped(stats.unparsed),
        grouped(stats.refused),
        grouped(source.dropped),
        grouped(source.truncated),
    ));
    if stats.super_frames > 0 {
        let of_super_frames = stats.packets - (stats.metered - stats.super_frames);
        let by_mtu = match stats.super_frames_by_mtu {
            0 => String::new(),
            some => format!(
                ", {} of them cut at the MTU as nobody told how",
                grouped(some)
            ),
        };
        say.note(format_args!(
            "{} packets counted: {} super-frames stand for {} of them{by_mtu}",
            grouped(stats.packets),
            grouped(stats.super_frames),
            grouped(of_super_frames),
        ));
    }
    if source.dropped_untold > 0 {
        say.warn(format_args!(
            "{} of the dropped were super-frames that the kernel cannot describe, as of SCTP",
            grouped(source.dropped_untold)
        ));
    }
    let evicted = stats.evicted_ended + stats.evicted_embryonic + stats.evicted_idle;
    say.note(format_args!(
        "{} connections, {} at the same time at most, {} evicted; {} octets on the wire",
        grouped(stats.opened),
        grouped(stats.high_water),
        grouped(evicted),
        grouped(source.wire_octets),
    ));
    let rate = |seconds: f64| count((stats.frames as f64 / seconds.max(1e-6)) as u64);
    let cpu = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).map_or(
        0.0,
        |usage| {
            let seconds =
                |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            seconds(usage.user_time()) + seconds(usage.system_time())
        },
    );
    say.note(format_args!(
        "{:.3} s, {:.3} s of CPU: {} frames a second, {} a CPU-second",
        took.as_secs_f64(),
        cpu,
        rate(took.as_secs_f64()),
        rate(cpu),
    ));
}
