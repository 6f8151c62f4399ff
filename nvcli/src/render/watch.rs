//! The table that refreshes itself.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use nvflow::{FlowRecord, Meter};

use crate::args::SortKey;
use crate::render::flows::{COLUMNS, row};
use crate::render::table::{Layout, shortened};
use crate::render::text::grouped;

/// How often the screen is drawn.
pub(crate) const REFRESH: Duration = Duration::from_millis(500);
/// How long a connection that ended stays in view.
const LINGER: Duration = Duration::from_secs(5);
/// Ended connections that are remembered for the view.
const REMEMBERED: usize = 200;

const CLEAR: &[u8] = b"\x1b[2J\x1b[H";
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";
const HIDE_CURSOR: &[u8] = b"\x1b[?25l";
const SHOW_CURSOR: &[u8] = b"\x1b[?25h";

/// What a record is worth in an order; the greatest comes first.
pub(crate) fn rank(record: &FlowRecord, key: SortKey) -> u64 {
    let both = |pick: fn(&nvflow::Side) -> u64| {
        pick(&record.forward).saturating_add(pick(&record.reverse))
    };
    match key {
        SortKey::Octets => both(|side| side.octets),
        SortKey::Packets => both(|side| side.packets),
        SortKey::Duration => u64::try_from(record.duration().as_nanos()).unwrap_or(u64::MAX),
        SortKey::Start => u64::MAX - record.flow_start.as_nanos(),
    }
}

/// A terminal that shows the table; dropping it gives the cursor back.
#[derive(Debug)]
pub(crate) struct Watch {
    sort: SortKey,
    drawn: Option<Instant>,
    ended: VecDeque<(Instant, FlowRecord)>,
}

/// What the first line tells.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    /// What stands before the number of open connections, harmless.
    pub(crate) before: String,
    /// What stands after it, harmless.
    pub(crate) after: String,
}

/// A candidate for a line: its rank (open ones first), a number that tells equal ones apart, and the record.
struct Ranked((bool, u64), usize, FlowRecord);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, Reverse(self.1)).cmp(&(other.0, Reverse(other.1)))
    }
}

impl Watch {
    /// Takes the terminal: clears it and hides the cursor.
    pub(crate) fn start(sort: SortKey) -> io::Result<Self> {
        let mut out = io::stdout().lock();
        let watch = Self {
            sort,
            drawn: None,
            ended: VecDeque::new(),
        };
        out.write_all(CLEAR)?;
        out.write_all(HIDE_CURSOR)?;
        out.flush()?;
        Ok(watch)
    }

    /// Keeps a connection that ended in view for a moment.
    pub(crate) fn ended(&mut self, record: FlowRecord) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((Instant::now(), record));
    }

    /// Whether it is time to draw again.
    pub(crate) fn is_due(&self) -> bool {
        self.drawn.is_none_or(|drawn| drawn.elapsed() >= REFRESH)
    }

    /// Draws the open connections of `meter` that `shown` lets through, which also names them.
    pub(crate) fn draw(
        &mut self,
        meter: &Meter,
        summary: &Summary,
        mut shown: impl FnMut(&FlowRecord) -> Option<FlowRecord>,
    ) -> io::Result<()> {
        let size = terminal_size::terminal_size_of(io::stdout());
        let (width, height) = size.map_or((80, 24), |(width, height)| {
            (usize::from(width.0), usize::from(height.0))
        });
        // The summary, the titles, and the last line, which would scroll.
        let room = height.saturating_sub(3).max(1);
        self.ended.retain(|(at, _)| at.elapsed() < LINGER);

        let mut best: BinaryHeap<Reverse<Ranked>> = BinaryHeap::with_capacity(room + 1);
        let (mut number, mut open) = (0, 0_u64);
        let sort = self.sort;
        let mut offer = |record: FlowRecord| {
            number += 1;
            let is_open = record.flow_end_reason.is_none();
            open += u64::from(is_open);
            let rank = (is_open, rank(&record, sort));
            best.push(Reverse(Ranked(rank, number, record)));
            if best.len() > room {
                best.pop();
            }
        };
        for (_, record) in &self.ended {
            offer(record.clone());
        }
        let _all = meter.open(|record| {
            if let Some(record) = shown(record) {
                offer(record);
            }
            ControlFlow::Continue(())
        });
        let mut best = best.into_vec();
        best.sort();
        let rows: Vec<Vec<String>> = best
            .iter()
            .map(|Reverse(Ranked(_, _, record))| row(record))
            .collect();

        let layout = Layout::new(&COLUMNS, &rows, Some(width), true);
        let mut screen = String::from(HOME);
        let line = |screen: &mut String, text: &str| {
            screen.push_str(&shortened(text.trim_end_matches('\n'), width));
            screen.push_str(REST_OF_LINE);
            screen.push_str("\r\n");
        };
        let title = format!(
            "{}{} connections open{}",
            summary.before,
            grouped(open),
            summary.after
        );
        line(&mut screen, &title);
        line(&mut screen, &layout.header());
        for cells in &rows {
            line(&mut screen, &layout.row(cells));
        }
        screen.push_str(REST_OF_SCREEN);
        let mut out = io::stdout().lock();
        out.write_all(screen.as_bytes())?;
        out.flush()?;
        self.drawn = Some(Instant::now());
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Nobody to tell when the terminal is gone.
        let mut out = io::stdout().lock();
        let _ = out.write_all(SHOW_CURSOR).and_then(|()| out.flush());
    }
}
