//! One exporter's queue, thread and counters.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvflow::FlowRecord;
use serde::Serialize;

use super::backoff::Backoff;
use super::config::Export;
use crate::escape;

/// Records that an exporter is given at once, at most.
const BATCH: usize = 1_024;
/// How long the first record of a batch waits for more.
const GATHER: Duration = Duration::from_millis(100);
/// With [`Pace::Wait`], how long an exporter that gets nowhere is waited for at least.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often an exporter is called when nothing happens.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// Whether whoever offers records may be made to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Never: frames are coming meanwhile.
    Live,
    /// For an exporter that gets on, and for the time that the end of the run waits for one that does not: files do not run away.
    Wait,
}

/// Why records did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The queue was full: the exporter was slower than the records, or its collector away.
    QueueFull,
    /// The collector said no.
    Refused,
    /// The run ended before they could be delivered.
    GaveUp,
    /// It does not fit into a message.
    TooLarge,
}

/// How an exporter fares.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExporterStats {
    /// What it is called.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static str,
    /// Whether its collector answers, or its file can be written.
    pub(crate) connected: bool,
    /// Records it was offered.
    pub(crate) offered: u64,
    /// Records that were delivered.
    pub(crate) exported: u64,
    /// Octets that were delivered.
    pub(crate) octets: u64,
    /// Records that wait.
    pub(crate) waiting: u64,
    /// Records on disk that are for the next run if this one does not deliver them.
    pub(crate) kept: u64,
    /// Records that were lost, by cause.
    pub(crate) lost: LostRecords,
    /// Times the connection was made anew, or a file begun.
    pub(crate) connects: u64,
    /// The last thing that went wrong.
    pub(crate) last_error: Option<String>,
}

/// Records that were lost, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LostRecords {
    /// The queue was full.
    pub(crate) queue_full: u64,
    /// The collector said no.
    pub(crate) refused: u64,
    /// The run ended first.
    pub(crate) gave_up: u64,
    /// Larger than a message can be.
    pub(crate) too_large: u64,
}

impl LostRecords {
    /// Of all causes.
    pub(crate) const fn total(&self) -> u64 {
        self.queue_full + self.refused + self.gave_up + self.too_large
    }
}

/// What stopped an exporter; it is tried again after a rest.
#[derive(Debug)]
pub(super) struct Trouble(String);

impl Trouble {
    /// `what` failed because of `why`.
    pub(super) fn new(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }

    /// As it is told.
    pub(super) fn why(&self) -> &str {
        &self.0
    }
}

/// Delivers records.
pub(super) trait Exporter: Send {
    /// Takes records off the front, as far as it gets, and counts each as exported or lost, now or when it is known.
    ///
    /// Called also when there are none, at least every [`TICK`]. On [`Trouble`] it is called again after a rest.
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble>;

    /// Whether there is something left of what it took of which the end is not known.
    fn is_busy(&self) -> bool {
        false
    }

    /// Nothing will come any more; `records` were not taken when the time was over.
    fn close(
        &mut self,
        _records: &mut VecDeque<Arc<FlowRecord>>,
        _lane: &Lane,
    ) -> Result<(), Trouble> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Arc<FlowRecord>>,
    /// The exporter waits for the first record, or for a whole batch.
    wanted: usize,
    /// What the exporter was done with when somebody had to wait for it first, and when that was.
    progress: Option<(u64, Instant)>,
    /// When the run ended, how long to go on.
    deadline: Option<Instant>,
    is_over: bool,
}

/// One exporter, as others see it.
#[derive(Debug)]
pub(super) struct Lane {
    name: String,
    kind: &'static str,
    flush: Duration,
    room: usize,
    queue: Mutex<Queue>,
    /// Something to do for the exporter.
    work: Condvar,
    /// Room in the queue, or the exporter's end.
    rest: Condvar,
    offered: AtomicU64,
    exported: AtomicU64,
    octets: AtomicU64,
    lost: [AtomicU64; 4],
    kept: AtomicU64,
    connects: AtomicU64,
    connected: AtomicBool,
    last_error: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    pub(super) fn new(export: &Export) -> Self {
        Self {
            name: export.name.clone(),
            kind: export.kind.as_str(),
            flush: export.flush,
            room: export.queue,
            queue: Mutex::default(),
            work: Condvar::new(),
            rest: Condvar::new(),
            offered: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            octets: AtomicU64::new(0),
            lost: Default::default(),
            kept: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            last_error: Mutex::default(),
        }
    }

    /// Puts `record` into the queue, or counts it as lost.
    pub(super) fn offer(&self, record: &Arc<FlowRecord>, pace: Pace) {
        self.offered.fetch_add(1, Ordering::Relaxed);
        let mut queue = lock(&self.queue);
        if queue.records.len() >= self.room && pace == Pace::Wait {
            queue = self.wait_for_room(queue);
        }
        if queue.records.len() >= self.room || queue.is_over {
            drop(queue);
            return self.lost(Lost::QueueFull, 1);
        }
        queue.records.push_back(Arc::clone(record));
        let is_wanted = queue.records.len() == queue.wanted;
        drop(queue);
        if is_wanted {
            self.work.notify_one();
        }
    }

    /// Waits as long as the exporter gets on.
    #[cold]
    fn wait_for_room<'a>(&self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        while queue.records.len() >= self.room && !queue.is_over {
            let settled = self.settled();
            let (before, since) = *queue.progress.get_or_insert((settled, Instant::now()));
            if settled > before {
                queue.progress = None;
            } else if since.elapsed() >= self.flush.max(SHORTEST) {
                break;
            }
            queue = self
                .rest
                .wait_timeout(queue, TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        queue
    }

    fn settled(&self) -> u64 {
        let lost: u64 = self.lost.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        // What was lost to a full queue was not the exporter's doing.
        self.exported.load(Ordering::Relaxed) + self.kept.load(Ordering::Relaxed) + lost
            - self.lost[Lost::QueueFull as usize].load(Ordering::Relaxed)
    }

    /// Moves up to a batch to `batch`, when there is one or after [`GATHER`]; waits at most `patience` for the first.
    fn take(&self, batch: &mut VecDeque<Arc<FlowRecord>>, patience: Duration) {
        let most = BATCH.min(self.room);
        let mut queue = lock(&self.queue);
        for (wanted, patience) in [(1, patience), (most, GATHER.min(patience))] {
            queue.wanted = wanted;
            let waits =
                |queue: &mut Queue| queue.records.len() < wanted && queue.deadline.is_none();
            queue = self
                .work
                .wait_timeout_while(queue, patience, waits)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if queue.records.is_empty() {
                break;
            }
        }
        queue.wanted = 0;
        let taken = most.saturating_sub(batch.len()).min(queue.records.len());
        batch.extend(queue.records.drain(..taken));
        drop(queue);
        if taken > 0 {
            self.rest.notify_all();
        }
    }

    /// Sleeps for `rest`, or until the end of the run comes nearer.
    fn sleep(&self, rest: Duration) {
        let queue = lock(&self.queue);
        let had_deadline = queue.deadline.is_some();
        let waits = |queue: &mut Queue| queue.deadline.is_some() == had_deadline;
        drop(self.work.wait_timeout_while(queue, rest, waits));
    }

    /// The end of the run: from now on there is time for `flush`.
    pub(super) fn end(&self, now: Instant) {
        lock(&self.queue).deadline.get_or_insert(now + self.flush);
        self.work.notify_all();
    }

    /// How long the end of the run waits.
    pub(super) const fn flush(&self) -> Duration {
        self.flush
    }

    /// Whether the run has ended.
    pub(super) fn is_ending(&self) -> bool {
        lock(&self.queue).deadline.is_some()
    }

    /// Whether the run has ended, and the time that was left for it.
    pub(super) fn is_over(&self) -> bool {
        let deadline = lock(&self.queue).deadline;
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// What is left of `most`, when the run has ended.
    pub(super) fn within(&self, most: Duration) -> Duration {
        let deadline = lock(&self.queue).deadline;
        deadline.map_or(most, |deadline| {
            most.min(deadline.saturating_duration_since(Instant::now()))
        })
    }

    fn is_empty(&self) -> bool {
        lock(&self.queue).records.is_empty()
    }

    /// Whether the exporter's thread came to its end before `until`.
    pub(super) fn wait_until_over(&self, until: Instant) -> bool {
        let queue = lock(&self.queue);
        let patience = until.saturating_duration_since(Instant::now());
        let queue = self
            .rest
            .wait_timeout_while(queue, patience, |queue| !queue.is_over)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        queue.is_over
    }

    /// Counts as lost what is neither exported nor lost yet.
    pub(super) fn give_up(&self) {
        let mut queue = lock(&self.queue);
        queue.is_over = true;
        queue.records = VecDeque::new();
        drop(queue);
        let stats = self.stats();
        self.lost(Lost::GaveUp, stats.waiting);
    }

    /// `records` were delivered, in `octets`.
    pub(super) fn exported(&self, records: usize, octets: usize) {
        self.exported.fetch_add(records as u64, Ordering::Relaxed);
        self.octets.fetch_add(octets as u64, Ordering::Relaxed);
    }

    /// Records of an earlier run were found on disk.
    pub(super) fn recovered(&self, records: u64) {
        self.offered.fetch_add(records, Ordering::Relaxed);
    }

    /// So many records are on disk.
    pub(super) fn kept(&self, records: u64) {
        self.kept.store(records, Ordering::Relaxed);
    }

    /// `records` were lost.
    pub(super) fn lost(&self, cause: Lost, records: u64) {
        self.lost[cause as usize].fetch_add(records, Ordering::Relaxed);
    }

    /// The collector answers.
    pub(super) fn connected(&self) {
        if !self.connected.swap(true, Ordering::Relaxed) {
            self.connects.fetch_add(1, Ordering::Relaxed);
            tracing::info!("export to {}: connected", escape::text(&self.name));
        }
    }

    /// The collector refused something, and answers still.
    pub(super) fn said(&self, why: &str) {
        self.failed(why);
        self.connected.store(true, Ordering::Relaxed);
    }

    /// Something went wrong; told when it is new.
    pub(super) fn failed(&self, why: &str) {
        let was_connected = self.connected.swap(false, Ordering::Relaxed);
        let mut last = lock(&self.last_error);
        if was_connected || last.as_deref() != Some(why) {
            tracing::warn!(
                "export to {}: {}",
                escape::text(&self.name),
                escape::text(why)
            );
        }
        *last = Some(why.to_owned());
    }

    pub(super) fn stats(&self) -> ExporterStats {
        let lost = |cause: Lost| self.lost[cause as usize].load(Ordering::Relaxed);
        let lost = LostRecords {
            queue_full: lost(Lost::QueueFull),
            refused: lost(Lost::Refused),
            gave_up: lost(Lost::GaveUp),
            too_large: lost(Lost::TooLarge),
        };
        let exported = self.exported.load(Ordering::Relaxed);
        let kept = self.kept.load(Ordering::Relaxed);
        // Read last, so that it is never less than its parts.
        let offered = self.offered.load(Ordering::Relaxed);
        ExporterStats {
            name: self.name.clone(),
            kind: self.kind,
            connected: self.connected.load(Ordering::Relaxed),
            offered,
            exported,
            octets: self.octets.load(Ordering::Relaxed),
            waiting: offered.saturating_sub(exported + lost.total() + kept),
            kept,
            lost,
            connects: self.connects.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        }
    }
}

/// Says that the thread is at its end, however it got there.
struct End<'a>(&'a Lane);

impl Drop for End<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).is_over = true;
        self.0.rest.notify_all();
    }
}

/// An exporter's thread.
pub(super) fn run(mut exporter: Box<dyn Exporter>, lane: &Lane) {
    let _end = End(lane);
    let mut batch = VecDeque::new();
    let mut backoff = Backoff::default();
    loop {
        let rest = lane.within(backoff.rest(Instant::now()));
        if rest > Duration::ZERO {
            lane.sleep(rest);
            // The end of the run is a reason to try once more at once.
            if !lane.is_ending() {
                continue;
            }
        }
        let patience = if batch.is_empty() {
            TICK
        } else {
            Duration::ZERO
        };
        lane.take(&mut batch, patience);
        match exporter.export(&mut batch, lane) {
            Ok(()) => backoff.worked(),
            Err(Trouble(why)) => {
                lane.failed(&why);
                backoff.failed(Instant::now());
            }
        }
        if lane.is_over() {
            break;
        }
        let is_done = batch.is_empty() && !exporter.is_busy() && lane.is_empty();
        if lane.is_ending() && is_done {
            break;
        }
    }
    batch.append(&mut lock(&lane.queue).records);
    if let Err(Trouble(why)) = exporter.close(&mut batch, lane) {
        lane.failed(&why);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::export::config::ExportConfig;

    /// A lane that nothing runs on, with room for `queue` records.
    pub(in crate::export) fn lane(queue: u64, flush: Duration) -> Lane {
        let config: ExportConfig = format!("stdout?queue={queue}").parse().expect("right");
        let mut export = config.check().expect("right");
        export.flush = flush;
        Lane::new(&export)
    }

    /// A record of UDP from a port that tells it from others.
    pub(in crate::export) fn record(port: u16) -> FlowRecord {
        use nvflow::{Endpoint, Side};
        FlowRecord {
            flow_start: nvcapture::Timestamp::from_nanos(1_700_000_000_123_456_789),
            flow_end: nvcapture::Timestamp::from_nanos(1_700_000_001_000_000_000),
            source: Endpoint {
                address: [10, 0, 0, 1].into(),
                port,
            },
            destination: Endpoint {
                address: [10, 0, 0, 2].into(),
                port: 53,
            },
            protocol_identifier: 17,
            has_ports: true,
            icmp_type_code: None,
            vlan_id: None,
            customer_vlan_id: None,
            observation_point: None,
            vantage: None,
            forward: Side {
                packets: 1,
                octets: 60,
                ..Side::default()
            },
            reverse: Side::default(),
            flow_end_reason: Some(nvflow::FlowEndReason::IdleTimeout),
            tcp: None,
            tunnel: None,
            application: None,
            labels: nvflow::Labels::default(),
        }
    }

    struct Moody {
        /// Calls that fail before one works.
        failures: usize,
        taken: Arc<Mutex<Vec<u16>>>,
    }

    impl Exporter for Moody {
        fn export(
            &mut self,
            records: &mut VecDeque<Arc<FlowRecord>>,
            lane: &Lane,
        ) -> Result<(), Trouble> {
            if records.is_empty() {
                return Ok(());
            }
            if self.failures > 0 {
                self.failures -= 1;
                return Err(Trouble::new("moody", "not now"));
            }
            lane.connected();
            lane.exported(records.len(), 1);
            lock(&self.taken).extend(records.drain(..).map(|record| record.source.port));
            Ok(())
        }
    }

    fn moody(failures: usize) -> (Box<Moody>, Arc<Mutex<Vec<u16>>>) {
        let taken = Arc::default();
        let exporter = Moody {
            failures,
            taken: Arc::clone(&taken),
        };
        (Box::new(exporter), taken)
    }

    #[test]
    fn records_come_out_in_order_after_failures() {
        let lane = lane(10_000, Duration::from_secs(60));
        let (exporter, taken) = moody(3);
        std::thread::scope(|scope| {
            scope.spawn(|| run(exporter, &lane));
            for port in 0..5_000 {
                lane.offer(&Arc::new(record(port)), Pace::Live);
            }
            lane.end(Instant::now());
            assert!(lane.wait_until_over(Instant::now() + Duration::from_secs(60)));
        });
        lane.give_up();
        assert_eq!(*lock(&taken), (0..5_000).collect::<Vec<_>>());
        let stats = lane.stats();
        assert_eq!((stats.offered, stats.exported), (5_000, 5_000));
        assert_eq!((stats.lost, stats.waiting), (LostRecords::default(), 0));
        assert_eq!(stats.last_error.as_deref(), Some("moody: not now"));
    }

    #[test]
    fn what_has_no_room_is_counted_and_nobody_waits() {
        let lane = lane(10, Duration::ZERO);
        for port in 0..100 {
            lane.offer(&Arc::new(record(port)), Pace::Live);
        }
        let stats = lane.stats();
        assert_eq!((stats.waiting, stats.lost.queue_full), (10, 90));
        let (exporter, taken) = moody(usize::MAX);
        lane.end(Instant::now());
        run(exporter, &lane);
        lane.give_up();
        let stats = lane.stats();
        assert!(lock(&taken).is_empty());
        assert_eq!((stats.lost.gave_up, stats.lost.total()), (10, 100));
        assert_eq!(stats.waiting, 0);
        lane.offer(&Arc::new(record(0)), Pace::Wait);
        assert_eq!(lane.stats().lost.queue_full, 91);
    }

    #[test]
    fn files_wait_for_an_exporter_that_gets_on() {
        let lane = lane(7, Duration::from_secs(60));
        let (exporter, taken) = moody(2);
        std::thread::scope(|scope| {
            scope.spawn(|| run(exporter, &lane));
            for port in 0..1_000 {
                lane.offer(&Arc::new(record(port)), Pace::Wait);
            }
            lane.end(Instant::now());
            assert!(lane.wait_until_over(Instant::now() + Duration::from_secs(60)));
        });
        assert_eq!(*lock(&taken), (0..1_000).collect::<Vec<_>>());
        assert_eq!(lane.stats().lost, LostRecords::default());
    }
}
