//! Keeps attached what is to be attached: compares what runs with what the kernel knows, and changes what differs.
//!
//! One thread, since changes of one host take turns anyway. It holds no namespace open while it waits, so what it attached can go.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nvflow::WorkloadDetails;
use nvnet::{
    Attachment, AttachmentId, Error, Health, LinkEvent, LinkNews, Mode, Netns, Orphan, Plan,
    Session, Workload,
};
use tracing::field::display;

use super::board::{self, Board, Known, Place, Subject};
use super::config::Config;
use super::docker::{Container, EngineState, Network, process_start};
use super::select::{Choice, Facts};
use crate::cmd::flows::wall_clock;
use crate::engine::Engine;
use crate::escape;
use crate::open::netns_of;
use crate::orphan;
use crate::target::Target;

/// How often everything is looked at although nobody says that something changed.
const ROUND: Duration = Duration::from_secs(15);
/// After so many such rounds addresses are read again that no engine tells of: each takes a visit to its namespace.
const ADDRESSES: u64 = 4;
/// A network that is being set up is left alone until it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(300);
/// What is left when a container ends is cleared away so much later: the kernel needs a moment.
const SWEEP: Duration = Duration::from_millis(500);
/// How often that is done again while something is left.
const SWEEPS: u32 = 20;
/// How long after a failure it is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// How long the keeper waits for others that change what is attached, in one turn: shorter than it is thought to hang.
pub(super) const WAITS: Duration = Duration::from_secs(20);
/// The same at the end, after which nobody tries again: with a turn before it, shorter than a service manager waits for the end.
const WAITS_AT_END: Duration = Duration::from_secs(60);

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum News {
    /// An engine's container runs, or something of it changed.
    Running(usize, Box<Container>),
    /// A container does not run any longer.
    Ended(String),
    /// These are all that run, of those of an engine.
    Listed(usize, HashSet<String>),
    /// How an engine fares.
    Engine(usize, EngineState),
    /// Links changed.
    Links(LinkNews),
    /// The configuration changed.
    Config(Arc<Config>),
    /// The agent ends.
    Stop,
}

/// Totals of what was done.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// Interfaces attached.
    pub(crate) attached: AtomicU64,
    /// Interfaces taken back.
    pub(crate) detached: AtomicU64,
    /// Attempts that failed.
    pub(crate) failed: AtomicU64,
    /// Turns of the thread, to see that it is alive.
    pub(crate) turns: AtomicU64,
}

/// A container or target, and what becomes of it.
#[derive(Debug)]
struct Kept {
    what: What,
    choice: Choice,
    said_by: String,
    state: State,
    /// Its namespace: inode, and number as the host sees it.
    netns: Option<(u64, Option<i32>)>,
    /// When it is to be looked at.
    due: Option<Instant>,
    /// When it was first heard of, and how long it took to be attached.
    heard: Instant,
    took: Option<Duration>,
    failures: u32,
    /// What is attached in its namespace is taken back when it is to be ignored, however it fares meanwhile.
    is_ours: bool,
}

#[derive(Debug)]
enum What {
    Container(usize, Box<Container>),
    Target(Target),
}

impl What {
    /// What the configuration names, if it is that.
    fn target(&self) -> Option<&Target> {
        match self {
            Self::Container(..) => None,
            Self::Target(target) => Some(target),
        }
    }

    /// The container, and which engine it is of.
    fn container(&self) -> Option<(usize, &Container)> {
        match self {
            Self::Container(engine, container) => Some((*engine, container)),
            Self::Target(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Attached(Option<String>),
    Ignored,
    Shared(String),
    HostNetwork,
    NoNetwork,
    Failed(String),
}

/// Why a container was not attached.
enum Trouble {
    /// It has ended meanwhile.
    Ended,
    /// Nothing will change that by itself.
    Refused(String),
    /// It may work later.
    Failed(String),
    /// Another process changes what is attached, so that nothing was tried: all is as it was.
    Busy(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Locked { .. } => Self::Busy(error),
            other => Self::Failed(chain(&other)),
        }
    }
}

/// The thread that keeps attached what is to be.
pub(crate) struct Keeper {
    host: Netns,
    config: Arc<Config>,
    rings: Arc<Engine>,
    board: Arc<Board>,
    deeds: Arc<Deeds>,
    news: Receiver<News>,
    kept: BTreeMap<String, Kept>,
    /// Engines of which the first list is still to come.
    unlisted: HashSet<usize>,
    /// Open while there is something to change.
    session: Option<Session>,
    /// When nv-br is looked at, which may have lost its last user.
    sweep: Option<Instant>,
    /// How often more that is done if something is there that nobody is known to have.
    sweeps: u32,
    /// Until when others are waited for in this turn; what is not done by then is tried again.
    waits_until: Instant,
    round: Instant,
    rounds: u64,
    /// What was read inside namespaces that no engine tells of.
    addresses: HashMap<(AttachmentId, u64), Vec<IpAddr>>,
    /// Something is to be put on the board.
    changed: bool,
}

/// A name for what is neither container nor known: an attachment made by hand.
fn known_by_hand(attachment: &Attachment) -> Known {
    let id = attachment.workload.container_id.as_deref();
    Known {
        name: attachment.workload.name.as_str().into(),
        details: id.map(|id| {
            Arc::new(WorkloadDetails {
                id: Some(id.into()),
                ..WorkloadDetails::default()
            })
        }),
    }
}

/// An error with its causes, in a line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Keeper {
    pub(crate) fn new(
        host: Netns,
        config: Arc<Config>,
        engines: usize,
        rings: Arc<Engine>,
        (board, deeds): (Arc<Board>, Arc<Deeds>),
        news: Receiver<News>,
    ) -> Self {
        let mut keeper = Self {
            host,
            config,
            rings,
            board,
            deeds,
            news,
            kept: BTreeMap::new(),
            unlisted: (0..engines).collect(),
            session: None,
            sweep: Some(Instant::now()),
            sweeps: 0,
            waits_until: Instant::now(),
            round: Instant::now() + ROUND,
            rounds: 0,
            addresses: HashMap::new(),
            changed: true,
        };
        keeper.take_targets();
        keeper
    }

    /// Works until the agent ends; then takes back what it is told to.
    pub(crate) fn run(mut self) {
        if let Err(error) = Session::prepare() {
            // Each attach that needs what is missing tells so by itself.
            tracing::debug!("{}", escape::text(&chain(&error)));
        }
        loop {
            self.work();
            self.deeds.turns.fetch_add(1, Ordering::Relaxed);
            let wait = self.next_due().saturating_duration_since(Instant::now());
            // Also when there is nothing to do, so that it is seen to be alive.
            let mut next = self.news.recv_timeout(wait.min(Duration::from_secs(5)));
            loop {
                match next {
                    Ok(News::Stop) | Err(RecvTimeoutError::Disconnected) => return self.end(),
                    Ok(news) => self.hear(news),
                    Err(RecvTimeoutError::Timeout) => break,
                }
                next = self.news.recv_timeout(Duration::ZERO);
            }
        }
    }

    fn next_due(&self) -> Instant {
        let kept = self.kept.values().filter_map(|kept| kept.due);
        kept.chain(self.sweep).fold(self.round, Instant::min)
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Running(engine, container) => self.running(engine, container),
            News::Ended(id) => self.ended(&id),
            News::Listed(engine, running) => {
                let gone: Vec<String> = self
                    .kept
                    .iter()
                    .filter(|(id, kept)| {
                        matches!(kept.what, What::Container(of, _) if of == engine)
                            && !running.contains(*id)
                    })
                    .map(|(id, _)| id.clone())
                    .collect();
                for id in gone {
                    self.ended(&id);
                }
                self.unlisted.remove(&engine);
            }
            News::Engine(number, state) => {
                // One that does not answer is not waited for.
                if !state.is_connected {
                    self.unlisted.remove(&number);
                }
                self.board.engine(number, state);
            }
            News::Links(LinkNews::Events(events)) => {
                for event in events {
                    self.link(&event);
                }
            }
            News::Links(LinkNews::Lost | LinkNews::Rules) => self.round = Instant::now(),
            News::Links(LinkNews::Nothing) | News::Stop => {}
            News::Config(config) => {
                self.config = config;
                self.take_targets();
                for kept in self.kept.values_mut() {
                    let (choice, said_by) = decide(&self.config, &kept.what);
                    if (choice, &said_by) != (kept.choice, &kept.said_by) {
                        (kept.choice, kept.said_by) = (choice, said_by);
                        kept.due = Some(Instant::now());
                        kept.failures = 0;
                    }
                }
                self.changed = true;
            }
        }
    }

    fn running(&mut self, engine: usize, container: Box<Container>) {
        let now = Instant::now();
        self.changed = true;
        let what = What::Container(engine, container.clone());
        let (choice, said_by) = decide(&self.config, &what);
        if let Some(kept) = self.kept.get_mut(&container.id)
            && let What::Container(_, before) = &kept.what
            && (before.pid, before.started) == (container.pid, container.started)
        {
            kept.what = what;
            (kept.choice, kept.said_by) = (choice, said_by);
            kept.failures = 0;
            kept.due = Some(now);
            return;
        }
        let id = container.id.clone();
        self.kept.insert(
            id,
            Kept {
                what,
                choice,
                said_by,
                state: State::Waiting,
                netns: None,
                due: Some(now),
                heard: now,
                took: None,
                failures: 0,
                is_ours: false,
            },
        );
    }

    fn ended(&mut self, id: &str) {
        if let Some(kept) = self.kept.remove(id) {
            tracing::info!(workload = %escape::text(&name_of(&kept.what)), "ended");
            self.changed = true;
            (self.sweep, self.sweeps) = (Some(Instant::now() + SWEEP), SWEEPS);
            // Who shares a network with it may have to take its place.
            for other in self.kept.values_mut() {
                if matches!(other.state, State::Shared(_)) {
                    other.due = Some(Instant::now() + SWEEP);
                }
            }
        }
    }

    fn link(&mut self, event: &LinkEvent) {
        let soon = Instant::now() + QUIET;
        match event.netns {
            None => {
                // Somebody attaches by hand, or took our bridge away.
                if event.name == nvnet::BRIDGE || event.is_ours {
                    self.round = self.round.min(soon);
                }
            }
            Some(_) if event.is_ours => {}
            Some(number) => {
                for kept in self.kept.values_mut() {
                    if kept.netns.is_some_and(|(_, there)| there == Some(number)) {
                        kept.due = Some(soon);
                    }
                }
            }
        }
    }

    /// Targets of the configuration that are new.
    fn take_targets(&mut self) {
        for target in &self.config.targets {
            let what = What::Target(target.clone());
            let (choice, said_by) = decide(&self.config, &what);
            self.kept.entry(target.to_string()).or_insert_with(|| Kept {
                what,
                choice,
                said_by,
                state: State::Waiting,
                netns: None,
                due: Some(Instant::now()),
                heard: Instant::now(),
                took: None,
                failures: 0,
                is_ours: false,
            });
        }
    }

    /// Does what is due.
    fn work(&mut self) {
        let now = Instant::now();
        self.waits_until = now + WAITS;
        if self.round <= now {
            self.look_around();
        }
        let due: Vec<String> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.due.is_some_and(|due| due <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.settle(&id);
        }
        if self.sweep.is_some_and(|due| due <= now) {
            self.sweep();
        }
        if self.changed {
            self.put_up();
        }
        // Others wait for it.
        self.session = None;
        if self.unlisted.is_empty() && !self.board.is_settled() {
            self.board.settled();
        }
    }

    /// Looks whether everything is as it was left, as after an event that nobody told.
    fn look_around(&mut self) {
        self.round = Instant::now() + ROUND;
        self.changed = true;
        let gone: Vec<String> = self
            .kept
            .iter()
            .filter(|(_, kept)| match &kept.what {
                What::Container(_, container) => !is_alive(container),
                What::Target(_) => false,
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.ended(&id);
        }
        let attached = match nvnet::list(&self.host) {
            Ok(attached) => attached,
            Err(error) => {
                tracing::warn!(
                    "cannot read what is attached: {}",
                    escape::text(&chain(&error))
                );
                return;
            }
        };
        let whole = |inode: u64| {
            let mut of = attached
                .iter()
                .filter(|a| a.netns_inode() == inode)
                .peekable();
            of.peek().is_some() && of.all(|a| a.health == Health::Whole)
        };
        for kept in self.kept.values_mut() {
            let is_due = match (&kept.state, &kept.what) {
                (State::Attached(_), what) => kept.netns.is_none_or(|(inode, _)| {
                    // A name may stand for another namespace by now.
                    !whole(inode)
                        || what
                            .target()
                            .is_some_and(|target| inode_of(target) != Some(inode))
                }),
                (State::Waiting | State::Failed(_), What::Target(_)) => true,
                _ => false,
            };
            if is_due && kept.due.is_none() {
                kept.due = Some(Instant::now());
            }
        }
        self.rounds += 1;
        if self.rounds.is_multiple_of(ADDRESSES) {
            self.addresses.clear();
        }
        if attached.is_empty() {
            self.sweep.get_or_insert_with(Instant::now);
        } else if self.rings.stats().rings == 0 {
            self.rings.reopen();
        }
    }

    /// Takes nv-br away when nothing uses it any longer.
    fn sweep(&mut self) {
        self.sweep = None;
        self.changed = true;
        let known: HashSet<u64> = self
            .kept
            .values()
            .filter_map(|kept| kept.netns)
            .map(|(inode, _)| inode)
            .collect();
        let swept = self.session().and_then(|session| {
            session.refresh()?;
            let swept = session.sweep()?;
            let left = session.attached();
            let is_unknown = |a: &Attachment| !known.contains(&a.netns_inode());
            Ok((swept, left.iter().any(is_unknown)))
        });
        match swept {
            Ok((swept, is_some_left)) => {
                for done in swept {
                    tracing::info!("{}", escape::text(&done.to_string()));
                }
                // The kernel takes namespaces down when it has time; what was attached by hand stays.
                if is_some_left && self.sweeps > 0 {
                    self.sweeps -= 1;
                    self.sweep = Some(Instant::now() + SWEEP);
                }
            }
            Err(error) => {
                let rest = match error {
                    Error::Locked { .. } => SWEEP,
                    _ => RETRY.1,
                };
                self.sweep = Some(Instant::now() + rest);
                tracing::warn!("cannot clear away: {}", escape::text(&chain(&error)));
            }
        }
    }

    fn session(&mut self) -> Result<&mut Session, Error> {
        let session = self.take_session()?;
        Ok(self.session.insert(session))
    }

    fn take_session(&mut self) -> Result<Session, Error> {
        let wait = self.waits_until.saturating_duration_since(Instant::now());
        match self.session.take() {
            Some(session) => Ok(session),
            None => Session::open_within(&self.host, wait),
        }
    }

    /// Brings one container or target to where it is to be.
    fn settle(&mut self, id: &str) {
        let Some(mut kept) = self.kept.remove(id) else {
            return;
        };
        kept.due = None;
        let before = kept.state.clone();
        let outcome = self.bring(&mut kept);
        match &outcome {
            Err(Trouble::Failed(_)) => {
                self.deeds.failed.fetch_add(1, Ordering::Relaxed);
            }
            Err(Trouble::Busy(error)) => {
                let (name, why) = (name_of(&kept.what), chain(error));
                tracing::debug!(workload = %escape::text(&name), why = %escape::text(&why), "waits");
            }
            // Its event is on the way; a target may come again.
            Err(Trouble::Ended) if matches!(kept.what, What::Container(..)) => {
                self.changed = true;
                (self.sweep, self.sweeps) = (Some(Instant::now() + SWEEP), SWEEPS);
                return;
            }
            _ => {}
        }
        kept.take(outcome, Instant::now());
        if kept.state != before {
            self.changed = true;
            let name = name_of(&kept.what);
            let name = escape::text(&name);
            match &kept.state {
                State::Failed(why) => {
                    tracing::warn!(workload = %name, why = %escape::text(why), "cannot be attached");
                }
                state => {
                    let (text, why) = state.told();
                    let why = why.as_deref().map(escape::text).map(display);
                    tracing::info!(workload = %name, why, by = %kept.said_by, "{text}");
                }
            }
        }
        // One that is in the configuration no longer is done with.
        if matches!(kept.what, What::Container(..)) || kept.state != State::Ignored {
            self.kept.insert(id.to_owned(), kept);
        }
    }

    fn bring(&mut self, kept: &mut Kept) -> Result<State, Trouble> {
        let mode = match kept.choice {
            Choice::Attach(mode) => mode,
            Choice::Ignore => {
                // What an earlier configuration attached is taken back; what others did is left.
                if kept.is_ours
                    && let Some((inode, _)) = kept.netns
                {
                    self.take_back(|a| a.netns_inode() == inode)?;
                }
                kept.is_ours = false;
                return Ok(State::Ignored);
            }
        };
        let netns = match &kept.what {
            What::Container(_, container) => {
                if container.network == Network::Host {
                    return Ok(State::HostNetwork);
                }
                let netns = Netns::of_pid(container.pid).map_err(|_| Trouble::Ended)?;
                // The same process before and after: its namespace is the container's.
                if !is_alive(container) {
                    return Err(Trouble::Ended);
                }
                netns
            }
            What::Target(target) => netns_of(target).ok_or(Trouble::Ended)?,
        };
        if netns == self.host {
            return Ok(State::HostNetwork);
        }
        let name = name_of(&kept.what);
        let netns = netns.labelled(&name);
        let inode = netns.id().ino;
        let owner = self.owner_of(&kept.what, inode);
        let workload = match (&kept.what, owner) {
            // Whose network it is has to be attached itself, and is.
            (_, Some((owner, true))) => {
                kept.netns = Some((inode, None));
                kept.is_ours = false;
                return Ok(State::Shared(owner.name));
            }
            (_, Some((owner, false))) => owner,
            (What::Container(_, container), None) => Workload {
                name,
                container_id: Some(container.id.clone()),
                pid: Some(container.pid),
            },
            (What::Target(target), None) => Workload {
                name,
                container_id: None,
                pid: match target {
                    Target::Pid(pid) => Some(*pid),
                    _ => None,
                },
            },
        };
        let of = kept.what.container();
        let trouble = self.attach(&netns, (&workload, of), mode, &mut kept.is_ours);
        let number = nvnet::number_of(&self.host, &netns).ok().flatten();
        kept.netns = Some((inode, number));
        let alive = match &kept.what {
            What::Container(_, container) => is_alive(container),
            What::Target(_) => true,
        };
        match trouble {
            Ok((0, None)) => Ok(State::NoNetwork),
            Ok((_, why)) => {
                kept.took.get_or_insert(kept.heard.elapsed());
                Ok(State::Attached(why))
            }
            // Whatever it was, it is because it went away under our hands.
            Err(_) if !alive => Err(Trouble::Ended),
            Err(trouble) => Err(trouble),
        }
    }

    /// The other container whose network this one uses, and whether that one is to be attached itself.
    fn owner_of(&self, what: &What, inode: u64) -> Option<(Workload, bool)> {
        let What::Container(_, container) = what else {
            return None;
        };
        let Network::Of(owner) = &container.network else {
            return None;
        };
        let other = self.kept.values().find_map(|kept| match &kept.what {
            What::Container(_, other) if other.id == *owner || other.facts.name == *owner => {
                Some((kept, other))
            }
            _ => None,
        });
        match other {
            Some((kept, other)) => Some((
                Workload {
                    name: other.facts.name.clone(),
                    container_id: Some(other.id.clone()),
                    pid: Some(other.pid),
                },
                matches!(kept.choice, Choice::Attach(_)),
            )),
            None => {
                // The owner has ended; another one of those who are left may stand for it.
                let stands = self.kept.values().find(|kept| {
                    matches!(kept.state, State::Attached(_))
                        && kept.netns.is_some_and(|(there, _)| there == inode)
                })?;
                Some((
                    Workload {
                        name: name_of(&stands.what),
                        ..Workload::default()
                    },
                    true,
                ))
            }
        }
    }

    /// Attaches what is not attached of a namespace; tells how many interfaces are, and what could not be. From when it may change
    /// something what is attached there is ours, which `is_taken_on` says.
    fn attach(
        &mut self,
        netns: &Netns,
        (workload, of): (&Workload, Option<(usize, &Container)>),
        mode: Mode,
        is_taken_on: &mut bool,
    ) -> Result<(usize, Option<String>), Trouble> {
        let inode = netns.id().ino;
        let links = nvnet::links(netns)?;
        let there = |session: &Session| -> Vec<Attachment> {
            let all = session.attached();
            let here = all.iter().filter(|a| a.netns_inode() == inode);
            here.cloned().collect()
        };
        let session = self.session()?;
        *is_taken_on = true;
        let mut mine = there(session);
        let is_ours = |link: &nvnet::Link| {
            link.group == nvnet::GROUP || link.name.starts_with(nvnet::EX_PREFIX)
        };
        // Originals whose pair is gone, or links of an attach that was killed.
        let originals = links
            .iter()
            .filter(|link| link.name.starts_with(nvnet::EX_PREFIX));
        let inline = mine.iter().filter(|a| a.mode == Mode::Inline);
        let half_done =
            originals.count() != inline.count() || (mine.is_empty() && links.iter().any(is_ours));
        if half_done || mine.iter().any(|a| a.health != Health::Whole) {
            let mut session = self.take_session()?;
            let judge = |orphan: &Orphan<'_>| orphan::decide(orphan, |id| self.interfaces(id, of));
            let repaired = session.repair_target(netns, &judge)?;
            for done in repaired {
                tracing::warn!("repaired: {}", escape::text(&done.to_string()));
            }
            let session = self.session.insert(session);
            mine = there(session);
        }
        // What the rules select is ours, whoever attached it.
        if mine.iter().any(|a| a.mode != mode) {
            self.take_back(|a| a.netns_inode() == inode && a.mode != mode)?;
            let session = self.session()?;
            mine = there(session);
        }
        let links = nvnet::links(netns)?;
        let wanted = links.iter().filter(|link| {
            link.is_ethernet()
                && link.is_up()
                && !is_ours(link)
                && mine.iter().all(|a| a.interface != link.name)
        });
        let mut count = mine.len();
        let mut refused: Vec<String> = Vec::new();
        let mut again = false;
        for link in wanted {
            let session = self.take_session()?;
            let done = Plan::new(&self.host, netns, workload.clone())
                .mode(mode)
                .interface(&link.name)
                .check_in(session)
                .and_then(nvnet::CheckedPlan::attach_in_session);
            match done {
                Ok((new, session)) => {
                    self.session = Some(session);
                    count += new.len();
                    self.deeds
                        .attached
                        .fetch_add(new.len() as u64, Ordering::Relaxed);
                    // nv-br may just have been made.
                    if self.rings.stats().rings == 0 {
                        self.rings.reopen();
                    }
                }
                // Somebody was quicker.
                Err(Error::AlreadyAttached { .. }) => count += 1,
                Err(error) => {
                    again |= !is_refusal(&error);
                    refused.push(format!("{}: {}", link.name, chain(&error)));
                }
            }
        }
        let why = (!refused.is_empty()).then(|| refused.join("; "));
        match why {
            Some(why) if again => Err(Trouble::Failed(why)),
            Some(why) if count == 0 => Err(Trouble::Refused(why)),
            why => Ok((count, why)),
        }
    }

    /// The addresses of a container's interfaces, as its engine tells when it is asked now; `None` when it is not connected. `of` is the
    /// container that is being worked on.
    ///
    /// What was heard before is not enough to take an interface away, or give one back: Podman's socket does not tell when a container is
    /// connected to a network or disconnected.
    fn interfaces(
        &self,
        id: &str,
        of: Option<(usize, &Container)>,
    ) -> Option<crate::exit::Result<Option<Vec<String>>>> {
        let engines = self.board.engines();
        let known = self.kept.iter().find(|(key, _)| key.starts_with(id));
        let (engine, container) = of
            .filter(|(_, container)| container.id.starts_with(id))
            .or_else(|| known.and_then(|(_, kept)| kept.what.container()))?;
        let engine = engines.get(engine).filter(|engine| engine.is_connected)?;
        let asked = crate::container::Engine::at(engine.socket.clone());
        Some(asked.and_then(|engine| engine.interfaces(&container.id)))
    }

    fn take_back(&mut self, which: impl Fn(&Attachment) -> bool) -> Result<(), Trouble> {
        let deeds = Arc::clone(&self.deeds);
        let session = self.session()?;
        let ids: Vec<_> = session
            .attached()
            .iter()
            .filter(|a| which(a))
            .map(|a| a.id)
            .collect();
        for id in ids {
            session.detach(id)?;
            deeds.detached.fetch_add(1, Ordering::Relaxed);
        }
        self.changed = true;
        Ok(())
    }

    /// Puts on the board what is true now.
    fn put_up(&mut self) {
        self.changed = false;
        let attached = match &self.session {
            Some(session) => Ok(session.attached().to_vec()),
            None => nvnet::list(&self.host),
        };
        let attached = match attached {
            Ok(attached) => attached,
            Err(error) => {
                tracing::warn!(
                    "cannot read what is attached: {}",
                    escape::text(&chain(&error))
                );
                self.changed = true;
                self.round = self.round.min(Instant::now() + SWEEP);
                return;
            }
        };
        let mut by_inode: HashMap<u64, (Arc<Known>, Option<&Container>)> = HashMap::new();
        let mut places: HashMap<IpAddr, Vec<Place>> = HashMap::new();
        let mut subjects = Vec::new();
        for kept in self.kept.values() {
            let known = Arc::new(known(&kept.what));
            subjects.push(subject(kept));
            let container = match &kept.what {
                What::Container(_, container) => Some(&**container),
                What::Target(_) => None,
            };
            if let Some((inode, _)) = kept.netns {
                let is_owner = !matches!(kept.state, State::Shared(_));
                if is_owner || !by_inode.contains_key(&inode) {
                    by_inode.insert(inode, (Arc::clone(&known), container));
                }
            }
            for on in container.iter().flat_map(|container| &container.on) {
                for address in &on.addresses {
                    places.entry(*address).or_default().push(Place {
                        network: Some(on.name.as_str().into()),
                        workload: Arc::clone(&known),
                    });
                }
            }
        }
        let mut told = Vec::new();
        for attachment in attached {
            let found = by_inode.get(&attachment.netns_inode());
            let (known, network) = match found {
                Some((known, container)) => {
                    let on = container.iter().flat_map(|container| &container.on);
                    let on: Vec<_> = on.collect();
                    let network = on
                        .iter()
                        .find(|on| on.mac == Some(attachment.mac))
                        .or(if on.len() == 1 { on.first() } else { None });
                    (Arc::clone(known), network.map(|on| on.name.as_str().into()))
                }
                None => (Arc::new(known_by_hand(&attachment)), None),
            };
            // Engines tell where their containers are; of others the namespace does.
            if found.is_none_or(|(_, container)| container.is_none()) {
                let key = (attachment.id, attachment.netns_inode());
                let read = || crate::names::addresses(&attachment);
                for &address in self.addresses.entry(key).or_insert_with(read).iter() {
                    places.entry(address).or_default().push(Place {
                        network: None,
                        workload: Arc::clone(&known),
                    });
                }
            }
            told.push((attachment, known, network));
        }
        let news = board::News {
            attached: told,
            places,
            subjects,
        };
        self.board.put(news, wall_clock());
    }

    /// The end: takes back what it is told to.
    fn end(mut self) {
        self.session = None;
        self.waits_until = Instant::now() + WAITS_AT_END;
        if self.config.on_exit != super::config::OnExit::Detach {
            return;
        }
        let mine: HashSet<u64> = self
            .kept
            .values()
            .filter(|kept| kept.is_ours || matches!(kept.choice, Choice::Attach(_)))
            .filter_map(|kept| kept.netns)
            .map(|(inode, _)| inode)
            .collect();
        let is_mine = |a: &&Attachment| mine.contains(&a.netns_inode());
        let mut why = None;
        match self.session() {
            Ok(session) => {
                let all = session.attached();
                let ids: Vec<_> = all.iter().filter(is_mine).map(|a| a.id).collect();
                for done in session.detach_together(&ids) {
                    match done {
                        Ok(()) => {
                            self.deeds.detached.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => why = Some(error),
                    }
                }
                self.sweep();
            }
            Err(error) => why = Some(error),
        }
        let Some(why) = why else {
            return;
        };
        let left = match nvnet::list(&self.host) {
            Ok(all) => {
                let left = all.iter().filter(is_mine);
                let left: Vec<_> = left.map(crate::cmd::detach::still_there).collect();
                left.join("; ")
            }
            Err(error) => format!("what is cannot be read: {}", chain(&error)),
        };
        tracing::error!(
            why = %escape::text(&chain(&why)),
            "not everything could be detached: {}; `nvcli detach` with the names takes it back",
            escape::text(&left)
        );
    }
}

impl Kept {
    /// Takes note of what became of it. What could not be tried for others changes nothing that is known of it, and is tried again soon.
    fn take(&mut self, outcome: Result<State, Trouble>, now: Instant) {
        match outcome {
            Ok(state) => {
                self.failures = 0;
                self.state = state;
            }
            Err(Trouble::Ended) => {
                self.state = State::Waiting;
                self.netns = None;
                self.is_ours = false;
            }
            Err(Trouble::Refused(why)) => self.state = State::Failed(why),
            Err(Trouble::Failed(why)) => {
                let rest = RETRY
                    .0
                    .saturating_mul(1 << self.failures.min(16))
                    .min(RETRY.1);
                self.failures += 1;
                self.due = Some(now + rest);
                self.state = State::Failed(why);
            }
            Err(Trouble::Busy(_)) => self.due = Some(now + RETRY.0),
        }
    }
}

impl State {
    fn told(&self) -> (&'static str, Option<String>) {
        match self {
            Self::Waiting => ("waiting", None),
            Self::Attached(why) => ("attached", why.clone()),
            Self::Ignored => ("ignored", None),
            Self::Shared(owner) => ("shared", Some(format!("it uses the network of {owner}"))),
            Self::HostNetwork => (
                "host network",
                Some(
                    "it has no interface of its own: attaching it would attach the whole host"
                        .into(),
                ),
            ),
            Self::NoNetwork => ("no network", Some("loopback is its only interface".into())),
            Self::Failed(why) => ("failed", Some(why.clone())),
        }
    }
}

fn inode_of(target: &Target) -> Option<u64> {
    netns_of(target).map(|netns| netns.id().ino)
}

fn is_alive(container: &Container) -> bool {
    process_start(container.pid) == Some(container.started)
}

/// Whether nothing but a change of the container, or of the configuration, makes it work.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Undone { source, .. } => is_refusal(source),
        Error::Unsafe { .. }
        | Error::Foreign { .. }
        | Error::HostNetwork { .. }
        | Error::NothingToAttach { .. }
        | Error::Down { .. }
        | Error::BadName { .. } => true,
        _ => false,
    }
}

fn decide(config: &Config, what: &What) -> (Choice, String) {
    match what {
        What::Container(_, container) => {
            let (choice, said_by) = config.selection.decide(&container.facts);
            (choice, said_by.to_owned())
        }
        What::Target(target) if config.targets.contains(target) => {
            (Choice::Attach(config.mode), "targets".to_owned())
        }
        What::Target(_) => (Choice::Ignore, "targets".to_owned()),
    }
}

fn name_of(what: &What) -> String {
    match what {
        What::Container(_, container) => container.facts.name.clone(),
        What::Target(target) => target.to_string(),
    }
}

fn known(what: &What) -> Known {
    let text = |text: &str| Some(Arc::from(text));
    match what {
        What::Container(_, container) => {
            let Facts { name, image, .. } = &container.facts;
            Known {
                name: name.as_str().into(),
                details: Some(Arc::new(WorkloadDetails {
                    id: text(&container.id),
                    image: text(image),
                    project: container.facts.project().and_then(text),
                    service: container.facts.service().and_then(text),
                })),
            }
        }
        What::Target(target) => Known {
            name: target.to_string().into(),
            details: None,
        },
    }
}

fn subject(kept: &Kept) -> Subject {
    let (state, why) = kept.state.told();
    let container = match &kept.what {
        What::Container(_, container) => Some(container),
        What::Target(_) => None,
    };
    Subject {
        workload: name_of(&kept.what),
        container_id: container.map(|container| container.id.clone()),
        image: container.map(|container| container.facts.image.clone()),
        pid: container.map(|container| container.pid),
        attach: kept.choice.to_string(),
        because: kept.said_by.clone(),
        state,
        why,
        attached_after_microseconds: kept
            .took
            .and_then(|took| u64::try_from(took.as_micros()).ok()),
        paused: container.is_some_and(|container| container.is_paused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_others_changes_nothing_that_is_known() {
        let now = Instant::now();
        let mut kept = Kept {
            what: What::Target(Target::Pid(1)),
            choice: Choice::Ignore,
            said_by: "targets".into(),
            state: State::Attached(None),
            netns: Some((7, None)),
            due: None,
            heard: now,
            took: None,
            failures: 0,
            is_ours: true,
        };
        let locked = || {
            Trouble::from(Error::Locked {
                netns: "host".into(),
                pid: None,
                command: None,
                waited_ms: 20_000,
            })
        };
        for _ in 0..20 {
            kept.take(Err(locked()), now);
        }
        assert_eq!(kept.state, State::Attached(None));
        assert_eq!((kept.failures, kept.due), (0, Some(now + RETRY.0)));
        assert!(kept.is_ours);
        // Nor is it forgotten after a failure that is one.
        kept.take(Err(Trouble::Failed("no".into())), now);
        assert!(kept.is_ours && matches!(kept.state, State::Failed(_)));
        kept.take(Err(locked()), now);
        assert!(kept.is_ours && kept.failures == 1);
    }
}
