//! `nvcli flows --watch` without a terminal: a line as a connection opens, changes and ends.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use nvcapture::Timestamp;
use nvflow::{FlowEndReason, FlowRecord, Meter};

/// What a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A connection is there; counts so far.
    Open,
    /// Frames came since the last line of it; counts so far, or with `flowEndReason` 2 counts that end here and begin anew.
    Update,
    /// It is over: its last record.
    End,
}

impl Event {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Update => "update",
            Self::End => "end",
        }
    }

    /// What a record that the meter made tells.
    pub(crate) fn of_record(record: &FlowRecord) -> Self {
        if record.flow_end_reason == Some(FlowEndReason::ActiveTimeout) {
            Self::Update
        } else {
            Self::End
        }
    }
}

/// What was told last of the connection in a place of the meter's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// Who it is: a later one in the same place began later, or has other ports.
    start: Timestamp,
    ports: [u16; 2],
    packets: u64,
}

/// Finds out, at every look, which connections are new and which have changed.
#[derive(Debug)]
pub(crate) struct Changes {
    interval: Duration,
    due: Instant,
    told: Vec<Told>,
}

impl Changes {
    pub(crate) fn every(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now() + interval,
            told: Vec::new(),
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// How long until then.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Shows `tell` every connection that is new or has changed since the last look.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        meter: &Meter,
        mut tell: impl FnMut(Event, FlowRecord) -> io::Result<()>,
    ) -> io::Result<()> {
        self.due = now + self.interval;
        let told = &mut self.told;
        let mut failed = None;
        let _all = meter.open_places(|place, mut record| {
            let place = place as usize;
            if told.len() <= place {
                told.resize(place + 1, Told::default());
            }
            let packets = record.forward.packets + record.reverse.packets;
            let now = Told {
                start: record.flow_start,
                ports: [record.source.port, record.destination.port],
                packets,
            };
            let before = std::mem::replace(&mut told[place], now);
            let same = (before.start, before.ports) == (now.start, now.ports);
            let event = match same {
                true if before.packets == packets => return ControlFlow::Continue(()),
                true => Event::Update,
                false => Event::Open,
            };
            // Its last record says how it ended, when it comes.
            record.flow_end_reason = None;
            match tell(event, record) {
                Ok(()) => ControlFlow::Continue(()),
                Err(source) => {
                    failed = Some(source);
                    ControlFlow::Break(())
                }
            }
        });
        failed.map_or(Ok(()), Err)
    }
}
