//! What the metering thread shows the view: taken when the view asks, and never changed afterwards.

use std::time::Instant;

use nvcapture::{SourceStats, Timestamp};
use nvflow::{FlowRecord, Meter, MeterStats};

use crate::agent::feed::Sums;
use crate::health::Seen;

/// An open connection.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its place in the meter's table.
    pub(crate) place: u32,
    pub(crate) record: FlowRecord,
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) taken: Instant,
    /// The same moment on the frames' clock.
    pub(crate) now: Timestamp,
    pub(crate) rows: Vec<Row>,
    pub(crate) meter: MeterStats,
    pub(crate) source: SourceStats,
    /// By observation point.
    pub(crate) seen: Vec<Seen>,
}

impl Snapshot {
    pub(crate) fn empty() -> Self {
        Self {
            taken: Instant::now(),
            now: Timestamp::ZERO,
            rows: Vec::new(),
            meter: MeterStats::default(),
            source: SourceStats::default(),
            seen: Vec::new(),
        }
    }

    /// As [`retake`](Self::retake), of what an agent told.
    pub(crate) fn retell<'r>(
        &mut self,
        sums: &Sums,
        rows: impl Iterator<Item = (u32, &'r FlowRecord)>,
    ) {
        self.taken = Instant::now();
        self.now = crate::cmd::flows::wall_clock();
        self.meter = sums.meter;
        self.source = sums.source;
        self.seen.clone_from(&sums.seen);
        self.rows.clear();
        self.rows.extend(rows.map(|(place, record)| Row {
            place,
            record: record.clone(),
        }));
    }

    /// Takes the place of what was here, in the same memory.
    pub(crate) fn retake(
        &mut self,
        meter: &Meter,
        source: SourceStats,
        seen: &[Seen],
        admits: impl Fn(&FlowRecord) -> bool,
    ) {
        self.taken = Instant::now();
        self.now = crate::cmd::flows::wall_clock();
        self.meter = meter.stats();
        self.source = source;
        self.seen.clear();
        self.seen.extend_from_slice(seen);
        self.rows.clear();
        let rows = &mut self.rows;
        let _all = meter.open_places(|place, record| {
            if admits(&record) {
                rows.push(Row { place, record });
            }
            std::ops::ControlFlow::Continue(())
        });
    }
}
