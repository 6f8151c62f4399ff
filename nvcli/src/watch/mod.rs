//! `nvcli flows --watch` on a terminal.
//!
//! Three threads: one reads the ring and meters, and never waits for anybody; one reads who is attached; this one shows it.
//! What passes between them is whole snapshots, in memory that goes round.

mod columns;
mod fuzzy;
pub(crate) mod model;
mod roster;
mod snapshot;
mod state;
mod term;
#[cfg(test)]
mod tests;
mod theme;
mod view;

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nvcapture::Ring;
use nvflow::{FlowRecord, Meter, Sink};
use nvnet::Netns;
use ratatui::crossterm::event::{self, Event};

pub(crate) use self::term::{give_back, is_taken};

use self::model::{Grouping, Order};
use self::roster::{Doubts, Roster};
use self::snapshot::Snapshot;
use self::state::{Action, Options, State};
use self::term::{Keyboard, Terminal, Typed};
use self::theme::Theme;
use crate::agent::feed::{Feed, Open, Sums, Told};
use crate::args::{Flows, SortKey};
use crate::cmd::flows::{Live, is_of, metering};
use crate::events::Event as Change;
use crate::exit::{CliError, Result};
use crate::export::{Stage, Totals};
use crate::filter::Filter;
use crate::health::Tally;
use crate::names::Names;
use crate::open::net;
use crate::recorder::Recorder;
use crate::signals::Interrupt;

/// How often the view is made anew when nothing else is said.
pub(crate) const REFRESH: Duration = Duration::from_secs(1);
/// How long a key waits at most while nothing else happens, and a signal.
const POLL: Duration = Duration::from_millis(50);

/// Takes a snapshot when the view wants one, and is otherwise in nobody's way.
struct Publisher<'a> {
    filter: &'a Filter,
    count: Option<u64>,
    ended: u64,
    wanted: &'a AtomicBool,
    to: SyncSender<Snapshot>,
    spare: Receiver<Snapshot>,
    /// With --export: where records go, and the names in them; an agent's have them already.
    export: Option<(&'a Stage, Option<Names>)>,
    containers: &'a [String],
}

impl Sink for Publisher<'_> {
    type Error = io::Error;

    fn record(&mut self, record: &FlowRecord) -> io::Result<ControlFlow<()>> {
        if self.filter.admits(record) {
            self.ended += 1;
            match &self.export {
                Some((stage, Some(names))) if names.wanted(record, self.containers) => {
                    let mut record = record.clone();
                    names.label(&mut record);
                    stage.record(&record);
                }
                Some((stage, None)) if is_of(record, self.containers) => stage.record(record),
                _ => {}
            }
        }
        Ok(if self.is_full() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }
}

impl Live for Publisher<'_> {
    fn is_full(&self) -> bool {
        self.count.is_some_and(|count| self.ended >= count)
    }

    fn tallies(&self) -> bool {
        true
    }

    /// Whoever looks at a view waits for what the tick gives it.
    fn patience(&self, _now: Instant) -> Duration {
        POLL
    }

    fn tick(&mut self, ring: &mut Ring, meter: &Meter, tally: &Tally) -> io::Result<()> {
        if let Some((stage, names)) = &mut self.export {
            if let Some(names) = names {
                names.follow();
            }
            stage.totals(Totals::new(
                &meter.stats(),
                &ring.stats().unwrap_or_default(),
            ));
        }
        if self.wanted.swap(false, Ordering::Acquire) {
            let mut snapshot = self.spare.try_recv().unwrap_or_else(|_| Snapshot::empty());
            let source = ring.stats().unwrap_or_default();
            snapshot.retake(meter, source, tally.all(), |record| {
                self.filter.admits(record)
            });
            // One that the view has not taken yet is as good.
            let _ = self.to.try_send(snapshot);
        }
        Ok(())
    }
}

impl Publisher<'_> {
    /// Takes what an agent tells until the end is asked for; whether the agent has ended, and how many records are missing.
    fn follow(
        &mut self,
        host: &Netns,
        mut feed: Feed,
        interrupt: &Interrupt,
        until: Option<Instant>,
    ) -> Result<(bool, u64)> {
        let output = |source: io::Error| CliError::output(&source);
        let mut open = Open::default();
        let mut sums = None;
        let is_over = loop {
            if self.is_full()
                || interrupt.is_asked()
                || until.is_some_and(|until| Instant::now() >= until)
            {
                break false;
            }
            match feed.next(POLL)? {
                Told::Open(record) => {
                    let _event = open.put(*record);
                }
                Told::Record(record) => {
                    if Change::of_record(&record) == Change::End {
                        open.end(&record);
                    }
                    let _full = self.record(&record).map_err(output)?;
                }
                Told::Looked(looked) => {
                    open.looked(looked.whole);
                    if let Some((stage, _)) = &self.export {
                        stage.totals(Totals::new(&looked.meter, &looked.source));
                    }
                    sums = Some(looked);
                }
                Told::Nothing => {}
                Told::Ended => break true,
            }
            if let Some(sums) = &sums
                && self.wanted.swap(false, Ordering::Acquire)
            {
                self.publish(&open, sums);
            }
        };
        if !is_over && self.export.is_some() {
            for (_, record) in open.rows() {
                if self.record(record).map_err(output)?.is_break() {
                    break;
                }
            }
        }
        Ok((is_over, feed.lost(host)))
    }

    fn publish(&self, open: &Open, sums: &Sums) {
        let mut snapshot = self.spare.try_recv().unwrap_or_else(|_| Snapshot::empty());
        let admitted = open.rows().filter(|(_, record)| self.filter.admits(record));
        snapshot.retell(sums, admitted);
        // One that the view has not taken yet is as good.
        let _ = self.to.try_send(snapshot);
    }
}

/// The ends of the channels that the view holds.
struct Ends<'a> {
    wanted: &'a AtomicBool,
    snapshots: Receiver<Snapshot>,
    spare: SyncSender<Snapshot>,
    rosters: Receiver<Roster>,
    doubts: Doubts,
    keyboard: Keyboard,
}

/// Whether standard output is a terminal that a view can be drawn on.
pub(crate) fn has_screen() -> bool {
    io::IsTerminal::is_terminal(&io::stdout())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn options(args: &Flows) -> Options {
    Options {
        order: match args.sort {
            None | Some(SortKey::Rate) => Order::Rate,
            Some(SortKey::Octets) => Order::Octets,
            Some(SortKey::Packets) => Order::Packets,
            Some(SortKey::Duration | SortKey::Start) => Order::Age,
            Some(SortKey::Rtt) => Order::Rtt,
            Some(SortKey::Retransmits) => Order::Retransmits,
            Some(SortKey::Loss) => Order::Loss,
        },
        grouping: args.group.unwrap_or(Grouping::None),
        follow: args.containers.clone(),
        expression: (!args.expression.is_empty()).then(|| args.expression.join(" ")),
    }
}

/// Shows what `ring` brings until it is quit; tells why when the interface ended it.
pub(crate) fn run(
    args: &Flows,
    (ring, recorder): (&mut Ring, Option<&Recorder>),
    meter: &mut Meter,
    (names, stage): (Names, &Stage),
    interrupt: &Interrupt,
    until: Option<Instant>,
) -> Result<Option<String>> {
    let export = if args.exports.is_empty() {
        None
    } else {
        let names = Names::listen(names.host().clone());
        let names = names.map_err(|error| net("cannot read what is attached", &error))?;
        Some((stage, Some(names)))
    };
    show(args, names, export, interrupt, move |mut publisher| {
        let gone = metering((ring, recorder), meter, &mut publisher, interrupt, until)?;
        if !publisher.is_full()
            && let Some((_, names)) = &mut publisher.export
        {
            if let Some(names) = names {
                names.catch_up();
            }
            let finished = meter.finish(&mut publisher);
            let _all = finished.map_err(|source| CliError::output(&source))?;
        }
        Ok(gone)
    })
}

/// Shows what an agent meters until it is quit; whether the agent has ended, and how many records are missing.
pub(crate) fn by_agent(
    args: &Flows,
    feed: Feed,
    (names, stage): (Names, &Stage),
    interrupt: &Interrupt,
    until: Option<Instant>,
) -> Result<(bool, u64)> {
    let export = (!args.exports.is_empty()).then_some((stage, None));
    let host = names.host().clone();
    show(args, names, export, interrupt, move |mut publisher| {
        publisher.follow(&host, feed, interrupt, until)
    })
}

/// The view, beside a thread that feeds it by `feed`.
fn show<'a, T: Send>(
    args: &'a Flows,
    names: Names,
    export: Option<(&'a Stage, Option<Names>)>,
    interrupt: &Interrupt,
    feed: impl FnOnce(Publisher<'_>) -> Result<T> + Send,
) -> Result<T> {
    let wanted = AtomicBool::new(false);
    let (to_view, snapshots) = mpsc::sync_channel(1);
    let (spare, from_view) = mpsc::sync_channel(2);
    let (to_roster, rosters) = mpsc::sync_channel(1);
    let (end_roster, roster_ended) = mpsc::channel();
    let doubts = Doubts::default();
    let theme = Theme::of_environment(|name| std::env::var(name).ok());
    let first = roster::read(&names, &[], &mut std::collections::HashMap::new());
    let mut state = State::new(options(args), first, theme);
    let no_terminal = |source: io::Error| {
        CliError::new("cannot take the terminal")
            .because(source)
            .remedy("without a view: nvcli flows --watch --output json")
    };
    let keyboard = Keyboard::open().map_err(no_terminal)?;
    let mut terminal = Terminal::take().map_err(no_terminal)?;
    let publisher = Publisher {
        filter: &args.filter,
        count: args.count,
        ended: 0,
        wanted: &wanted,
        to: to_view,
        spare: from_view,
        export,
        containers: &args.containers,
    };
    let shown = Ends {
        wanted: &wanted,
        snapshots,
        spare,
        rosters,
        doubts: doubts.clone(),
        keyboard,
    };
    thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let no_thread = |source: io::Error| CliError::new("cannot start a thread").because(source);
        let keeping = named("roster")
            .spawn_scoped(scope, move || {
                roster::keep(names, &doubts, &to_roster, &roster_ended);
            })
            .map_err(no_thread)?;
        let metered = named("meter")
            // Moved in, so that the view sees the channel close when this ends, however it ends.
            .spawn_scoped(scope, move || feed(publisher))
            .map_err(no_thread)?;
        let looked = look(
            &mut state,
            &mut terminal,
            &shown,
            args.interval.unwrap_or(REFRESH),
            interrupt,
        );
        interrupt.ask();
        drop(end_roster);
        drop(terminal);
        let metered = metered
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        keeping
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        looked.map_err(|source| CliError::output(&source))?;
        metered
    })
}

/// Shows and listens until somebody quits, a signal comes, or the metering ends.
fn look(
    state: &mut State,
    terminal: &mut Terminal,
    feed: &Ends<'_>,
    interval: Duration,
    interrupt: &Interrupt,
) -> io::Result<()> {
    let mut due = Instant::now();
    let mut is_stale = true;
    while !interrupt.is_asked() && is_taken() {
        let now = Instant::now();
        if now >= due && !state.paused {
            feed.wanted.store(true, Ordering::Release);
            due = now + interval;
        }
        if let Ok(roster) = feed.rosters.try_recv() {
            state.roster(roster);
            is_stale = true;
        }
        match feed.snapshots.try_recv() {
            Ok(snapshot) => {
                let before = state.snapshot(snapshot);
                // When there are spare ones enough it is let go.
                let _ = feed.spare.try_send(before);
                feed.doubts.set(state.doubtful());
                is_stale = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        if is_stale && is_taken() {
            let _ = terminal
                .screen
                .draw(|frame| view::draw(state, frame.area(), frame.buffer_mut()))?;
            is_stale = false;
        }
        let wait = POLL.min(
            due.saturating_duration_since(Instant::now())
                .max(Duration::from_millis(5)),
        );
        if feed.keyboard.wait(wait)? == Typed::Gone {
            return Ok(());
        }
        while event::poll(Duration::ZERO)? {
            is_stale = true;
            let action = match event::read()? {
                Event::Key(key) => state.key(key),
                Event::Mouse(mouse) => state.mouse(mouse),
                _ => Action::None,
            };
            match action {
                Action::None => {}
                Action::Quit => return Ok(()),
                Action::Mouse(on) => terminal.set_mouse(on)?,
                Action::Suspend => terminal.suspend()?,
            }
        }
    }
    Ok(())
}
