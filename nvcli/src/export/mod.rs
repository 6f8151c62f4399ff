//! Records on their way to other systems.
//!
//! A [`Stage`] takes records from whoever meters and never makes it wait: each exporter has a bounded queue and a thread of its own.
//! What does not fit, or cannot be delivered, is counted by cause, and at every moment
//! offered = exported + lost + waiting.

mod backoff;
mod config;
mod file;
mod ipfix;
mod lane;
mod lines;
mod nats;
mod otlp;
mod prometheus;
mod stream;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvcapture::SourceStats;
use nvflow::{FlowRecord, MeterStats};

use crate::exit::{CliError, Result, Say};
use crate::render::text::{count, grouped};

pub(crate) use config::{Export, ExportConfig, Size, Time, To};
use lane::Lane;
pub(crate) use lane::{ExporterStats, Pace};

impl Export {
    /// Whether it takes standard output for itself.
    pub(crate) const fn is_stdout(&self) -> bool {
        matches!(self.to, To::Stdout)
    }
}

/// After its deadline an exporter's thread is given this long to notice, before it is left alone.
const GRACE: Duration = Duration::from_millis(500);

/// What became of frames and connections, for the exporters that tell it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Frames metered.
    pub(crate) metered: u64,
    /// Frames without IP.
    pub(crate) not_ip: u64,
    /// Frames that could not be read.
    pub(crate) unparsed: u64,
    /// Frames of connections that there was no room for.
    pub(crate) refused: u64,
    /// Frames the kernel had no room for.
    pub(crate) dropped: u64,
    /// Connections seen.
    pub(crate) connections: u64,
    /// Connections that had to leave the table.
    pub(crate) evicted: u64,
}

impl Totals {
    /// Of a meter, and of what feeds it.
    pub(crate) const fn new(meter: &MeterStats, source: &SourceStats) -> Self {
        Self {
            metered: meter.metered,
            not_ip: meter.not_ip,
            unparsed: meter.unparsed,
            refused: meter.refused,
            dropped: source.dropped,
            connections: meter.opened,
            evicted: meter.evicted_ended + meter.evicted_embryonic + meter.evicted_idle,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All exporters of a run.
#[derive(Debug)]
pub(crate) struct Stage {
    totals: Arc<Mutex<Totals>>,
    lanes: Vec<(Arc<Lane>, Option<JoinHandle<()>>)>,
    pace: Pace,
}

impl Stage {
    /// Starts an exporter for each of `exports`.
    ///
    /// What this machine refuses, such as a file that cannot be written, is an error; a collector that does not answer is not, since it may later.
    pub(crate) fn start(exports: &[Export], pace: Pace) -> Result<Self> {
        let mut stage = Self {
            totals: Arc::default(),
            lanes: Vec::new(),
            pace,
        };
        let all = Arc::new(OnceLock::new());
        for export in exports {
            let lane = Arc::new(Lane::new(export));
            let exporter: Box<dyn lane::Exporter> = match &export.to {
                To::File(to) => Box::new(file::File::open(to).map_err(|source| {
                    CliError::new(format!("cannot write {}", to.path.display()))
                        .because(source)
                        .remedy("a path that can be written")
                })?),
                To::Stdout => Box::new(lines::Lines::new(stream::Stdout)),
                To::Unix(path) => Box::new(lines::Lines::new(stream::Unix(path.clone()))),
                To::Ipfix(to) => ipfix::exporter(to),
                To::Prometheus(to) => {
                    let (totals, all) = (Arc::clone(&stage.totals), Arc::clone(&all));
                    let started = prometheus::Prometheus::start(to, totals, all);
                    Box::new(started.map_err(|source| {
                        CliError::new(format!("cannot listen at {}", to.address))
                            .because(source)
                            .remedy("an address of this machine and a port that nobody has")
                    })?)
                }
                To::Otlp(to) => Box::new(otlp::Otlp::new(to).map_err(|source| {
                    CliError::new(format!("cannot start the exporter {}", export.name))
                        .because(source)
                })?),
                To::Nats(to) => Box::new(nats::Nats::open(to).map_err(|source| {
                    let directory = to.spool.as_deref().unwrap_or(std::path::Path::new(""));
                    CliError::new(format!("cannot use the buffer {}", directory.display()))
                        .because(source)
                        .remedy("a directory that can be written, for each exporter one of its own")
                })?),
            };
            let its = Arc::clone(&lane);
            let thread = thread::Builder::new()
                .name(format!("export-{}", export.kind.as_str()))
                .spawn(move || lane::run(exporter, &its))
                .map_err(|source| {
                    CliError::new(format!("cannot start the exporter {}", export.name))
                        .because(source)
                })?;
            stage.lanes.push((lane, Some(thread)));
        }
        let lanes = stage.lanes.iter().map(|(lane, _)| Arc::clone(lane));
        all.get_or_init(|| lanes.collect());
        Ok(stage)
    }

    /// Tells the exporters that pass it on what became of frames and connections.
    pub(crate) fn totals(&self, totals: Totals) {
        *lock(&self.totals) = totals;
    }

    /// Offers a record to every exporter.
    ///
    /// With [`Pace::Live`] this never waits; with [`Pace::Wait`] it waits for an exporter that is busy, and not for one that gets nowhere.
    #[inline]
    pub(crate) fn record(&self, record: &FlowRecord) {
        if !self.lanes.is_empty() {
            self.offer(record);
        }
    }

    fn offer(&self, record: &FlowRecord) {
        let record = Arc::new(record.clone());
        for (lane, _) in &self.lanes {
            lane.offer(&record, self.pace);
        }
    }

    /// How every exporter fares.
    pub(crate) fn stats(&self) -> Vec<ExporterStats> {
        self.lanes.iter().map(|(lane, _)| lane.stats()).collect()
    }

    /// Lets the exporters deliver what waits, each until its deadline; what is left then is lost, and counted so.
    pub(crate) fn finish(mut self) -> Vec<ExporterStats> {
        self.end()
    }

    fn end(&mut self) -> Vec<ExporterStats> {
        let now = Instant::now();
        for (lane, _) in &self.lanes {
            lane.end(now);
        }
        for (lane, thread) in &mut self.lanes {
            let Some(thread) = thread.take() else {
                continue;
            };
            // One that hangs in a system call is not waited for any longer: the process ends without it.
            if lane.wait_until_over(now + lane.flush() + GRACE) && thread.join().is_err() {
                lane.failed("its thread panicked");
            }
            lane.give_up();
        }
        self.stats()
    }
}

impl Drop for Stage {
    /// As [`finish`](Self::finish), for the ways out of a run that are errors.
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells how a run's exporters fared; records that did not arrive are an error.
pub(crate) fn told(say: Say, exporters: &[ExporterStats]) -> Result<()> {
    let mut lost = 0;
    let mut why = Vec::new();
    for exporter in exporters {
        say.note(format_args!(
            "{} of {} records exported to {}: {} octets",
            grouped(exporter.exported),
            grouped(exporter.offered),
            crate::escape::text(&exporter.name),
            count(exporter.octets),
        ));
        if exporter.kept > 0 {
            say.note(format_args!(
                "{} records for {} wait on disk for the next run",
                grouped(exporter.kept),
                crate::escape::text(&exporter.name),
            ));
        }
        if exporter.lost.total() == 0 {
            continue;
        }
        lost += exporter.lost.total();
        let causes = [
            (exporter.lost.queue_full, "found its queue full"),
            (exporter.lost.refused, "were refused"),
            (exporter.lost.too_large, "were too large for a message"),
            (exporter.lost.gave_up, "still waited when the run ended"),
        ];
        let causes: Vec<String> = causes
            .iter()
            .filter(|(records, _)| *records > 0)
            .map(|(records, cause)| format!("{} {cause}", grouped(*records)))
            .collect();
        why.push(format!("{}: {}", exporter.name, causes.join(", ")));
        why.extend(exporter.last_error.clone());
    }
    if lost == 0 {
        return Ok(());
    }
    let error = CliError::new(format!("{} records were not exported", grouped(lost))).remedy(
        "whether the collector is there and keeps up; a longer ?flush=TIME or ?queue=RECORDS",
    );
    Err(why.into_iter().fold(error, CliError::because))
}
