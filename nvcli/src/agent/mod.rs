//! The agent: hears of containers, attaches those it is told to, meters, and hands the records on.
//!
//! ```text
//! engine --docker--> keeper --> kernel (nvnet)          links --> keeper
//!                      |
//! nv-br --> ring-N --> queue --> collect --> exporters  board: who is who
//!                                   |            api: status, flows, aggregates
//! ```
//! Each arrow is a thread's end; none of them makes a ring wait.

mod api;
mod board;
pub(crate) mod client;
mod collect;
pub(crate) mod config;
mod docker;
pub(crate) mod feed;
mod keeper;
mod lock;
mod read;
mod rights;
mod select;

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nvnet::{BRIDGE, LinkEvents, LinkNews, Mode, Netns};
use serde::{Deserialize, Serialize};

use self::board::Board;
use self::collect::Totals;
use self::config::Config;
use self::keeper::{Deeds, Keeper, News};
use self::lock::AgentLock;
use self::select::Choice;
use crate::cmd::agent::Agent;
use crate::engine::{Ended, Engine, EngineConfig, EngineStats};
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::export::{self, Export, ExporterStats, Pace, Stage};
use crate::open::{host, net, netns_of};
use crate::queue::{self, Gauge, WhenFull};
use crate::recorder::{self, Recorder};
use crate::render::text::grouped;

/// Sockets of engines, of which those are followed that are there.
const ENGINES: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// How long the start waits for the engines' first lists.
const FIRST: Duration = Duration::from_secs(20);
/// How often the main thread looks after the others.
const LOOK: Duration = Duration::from_secs(1);
/// A thread that has done nothing for so long hangs, and the service manager is not told that all is well.
const HANGS: Duration = Duration::from_secs(60);

/// What all threads that answer questions know.
#[derive(Debug)]
pub(crate) struct State {
    host: Netns,
    config: RwLock<Arc<Config>>,
    board: Arc<Board>,
    deeds: Arc<Deeds>,
    totals: Arc<Totals>,
    rings: Arc<Engine>,
    queue: Gauge,
    /// Gone when the agent ends.
    stage: RwLock<Option<Stage>>,
    began: Instant,
}

/// What `/v1/status` tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    api_version: u32,
    version: &'static str,
    pid: u32,
    uptime_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_file: Option<PathBuf>,
    on_exit: &'static str,
    engines: Vec<EngineStatus>,
    containers: Containers,
    interfaces_attached: usize,
    rings: u64,
    work: Work,
    frames: Frames,
    connections: Connections,
    records: Records,
    exporters: Vec<ExporterStats>,
    /// All that was lost, by cause.
    lost: Lost,
}

#[derive(Debug, Serialize)]
struct EngineStatus {
    socket: String,
    connected: bool,
    connects: u64,
    events: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Containers {
    known: usize,
    attached: usize,
    ignored: usize,
    waiting: usize,
    failed: usize,
    other: usize,
}

#[derive(Debug, Serialize)]
struct Work {
    attached: u64,
    detached: u64,
    failed: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Frames {
    read: u64,
    metered: u64,
    not_ip: u64,
    unparsed: u64,
    refused: u64,
    cut: u64,
    octets: u64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Connections {
    open: u64,
    opened: u64,
    evicted: u64,
}

impl Frames {
    fn new(stats: &EngineStats) -> Self {
        let (meter, source) = (&stats.meter, &stats.source);
        Self {
            read: meter.frames,
            metered: meter.metered,
            not_ip: meter.not_ip,
            unparsed: meter.unparsed,
            refused: meter.refused,
            cut: source.truncated,
            octets: source.wire_octets,
        }
    }
}

impl Connections {
    fn new(stats: &EngineStats) -> Self {
        let meter = &stats.meter;
        Self {
            open: meter.connections,
            opened: meter.opened,
            evicted: meter.evicted_ended + meter.evicted_embryonic + meter.evicted_idle,
        }
    }
}

#[derive(Debug, Serialize)]
struct Records {
    made: u64,
    handled: u64,
    waiting: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lost {
    frames_ring_full: u64,
    frames_unread: u64,
    frames_table_full: u64,
    records_queue_full: u64,
    records_listener_slow: u64,
}

impl State {
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How every exporter fares.
    fn exporters(&self) -> Vec<ExporterStats> {
        let stage = self.stage.read().unwrap_or_else(PoisonError::into_inner);
        stage.as_ref().map(Stage::stats).unwrap_or_default()
    }

    /// Tells the exporters that pass it on what became of frames and connections.
    fn tell_exporters(&self) {
        let stats = self.rings.stats();
        let mut source = stats.source;
        source.dropped += stats.unread;
        let stage = self.stage.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stage) = &*stage {
            stage.totals(export::Totals::new(&stats.meter, &source));
        }
    }

    fn lost(&self, stats: &EngineStats) -> Lost {
        Lost {
            frames_ring_full: stats.source.dropped,
            frames_unread: stats.unread,
            frames_table_full: stats.meter.refused,
            records_queue_full: self.queue.read().dropped,
            records_listener_slow: self.totals.unheard.load(Ordering::Relaxed),
        }
    }

    /// Everything in numbers.
    fn status(&self) -> Status {
        let config = self.config();
        let stats = self.rings.stats();
        let meter = stats.meter;
        let queue = self.queue.read();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut containers = Containers::default();
        for subject in self.board.subjects() {
            containers.known += 1;
            *match subject.state {
                "attached" => &mut containers.attached,
                "ignored" => &mut containers.ignored,
                "waiting" => &mut containers.waiting,
                "failed" => &mut containers.failed,
                _ => &mut containers.other,
            } += 1;
        }
        let engines = self.board.engines().into_iter().map(|engine| EngineStatus {
            socket: engine.socket.display().to_string(),
            connected: engine.is_connected,
            connects: engine.connects,
            events: engine.events,
            why: engine.why,
        });
        Status {
            api_version: api::VERSION,
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs(),
            config_file: config.file.clone(),
            on_exit: match config.on_exit {
                config::OnExit::Leave => "leave",
                config::OnExit::Detach => "detach",
            },
            engines: engines.collect(),
            containers,
            interfaces_attached: self.board.attached().len(),
            rings: stats.rings,
            work: Work {
                attached: count(&self.deeds.attached),
                detached: count(&self.deeds.detached),
                failed: count(&self.deeds.failed),
            },
            frames: Frames::new(&stats),
            connections: Connections::new(&stats),
            records: Records {
                made: meter.records,
                handled: count(&self.totals.records),
                waiting: queue.waiting as u64,
            },
            exporters: self.exporters(),
            lost: self.lost(&stats),
        }
    }
}

/// Runs the agent, or does what else is asked of it.
pub(crate) fn run(args: &Agent, say: Say) -> Result<()> {
    let config = Config::read(args)?;
    if args.check {
        let file = config.file.as_ref().map_or_else(
            || "no file: command line and defaults".to_owned(),
            |file| file.display().to_string(),
        );
        say.note(format_args!(
            "{}: it can be used; {} rules, others: {}",
            escape::text(&file),
            config.selection.rules.len(),
            config.selection.others
        ));
        return Ok(());
    }
    let host = host()?;
    if args.dry_run {
        return dry_run(&config, &host, say);
    }
    serve(args, Arc::new(config), host, say)
}

fn serve(args: &Agent, config: Arc<Config>, host: Netns, say: Say) -> Result<()> {
    let signals = Signals::listen()?;
    let lock = AgentLock::take(&host)?;
    rights::of_process();
    let listener = api::bind(&config.socket)?;
    let socket = Socket(config.socket.clone());
    // What a killed one left half-done would be in the way; what is whole is taken over.
    // Where that cannot be found out, as in a namespace of somebody who changes it all the time, each attach still mends its own.
    match repair(&host, &config) {
        Ok(all) => {
            for done in all {
                let done = done.to_string();
                say.note(format_args!("repaired: {}", escape::text(&done)));
            }
        }
        Err(error) => {
            error.report();
        }
    }
    // Before any list: what happens meanwhile is heard of afterwards.
    let mut links = LinkEvents::open(&host).map_err(|error| net("cannot hear of links", &error))?;
    let recorder = config
        .recorder
        .map(|(octets, age)| Recorder::new(octets, age))
        .transpose()?;

    let (mut sender, records) = queue::bounded(config.queue, WhenFull::Drop);
    let rings = Engine::start(
        &EngineConfig {
            interface: BRIDGE.into(),
            rings: config.rings,
            ring: config.ring_config(),
            meter: config.meter_config(),
            recorder: recorder.clone(),
        },
        |_| sender(),
        rights::of_reader,
    )
    .map_err(|error| {
        CliError::new(format!("cannot read {BRIDGE}"))
            .caused_by(&error)
            .remedy("nvcli doctor")
    })?;
    drop(sender);
    let written: Vec<PathBuf> = config
        .exports
        .iter()
        .filter_map(Export::writes_beneath)
        .map(Path::to_owned)
        .collect();
    let stage = prepared(
        || rights::of_exporter(&written),
        || Stage::start(&config.exports, Pace::Live),
    )?;
    let answering = recorder
        .map(|recorder| recorder::serve(&recorder, host.id(), rights::of_worker))
        .transpose()?;
    let state = Arc::new(State {
        host: host.clone(),
        config: RwLock::new(Arc::clone(&config)),
        board: Arc::default(),
        deeds: Arc::default(),
        totals: Arc::new(Totals::new()),
        rings: Arc::new(rings),
        queue: records.gauge(),
        stage: RwLock::new(Some(stage)),
        began: Instant::now(),
    });

    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| -> Result<JoinHandle<()>> {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|source| {
                CliError::new(format!("cannot start the thread {name}")).because(source)
            })
    };
    let collecting = spawn("collect", {
        let state = Arc::clone(&state);
        Box::new(move || {
            rights::of_worker();
            collect::run(&records, &state.board, &state.totals, |record| {
                let stage = state.stage.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(stage) = &*stage {
                    stage.record(record);
                }
            });
        })
    })?;
    let (news, heard) = mpsc::channel();
    let engines = engines(&config);
    let keeping = spawn("keeper", {
        let keeper = Keeper::new(
            host,
            Arc::clone(&config),
            engines.len(),
            Arc::clone(&state.rings),
            (Arc::clone(&state.board), Arc::clone(&state.deeds)),
            heard,
        );
        Box::new(move || keeper.run())
    })?;
    let (links_to, rings) = (news.clone(), Arc::clone(&state.rings));
    spawn(
        "links",
        Box::new(move || {
            rights::of_worker();
            follow_links(&mut links, &rings, &links_to);
        }),
    )?;
    if !engines.is_empty() {
        let to = news.clone();
        spawn(
            "engines",
            Box::new(move || {
                rights::of_listener();
                follow_engines(engines, &to);
            }),
        )?;
    }
    api::serve(listener, &state, rights::of_worker)
        .map_err(|source| CliError::new("cannot start the thread api").because(source))?;

    rights::of_main();
    let mut watchdog = Watchdog::new(&state);
    let ended = look_after(args, &state, &signals, &news, &keeping, &mut watchdog, say);
    tell_manager(&[sd_notify::NotifyState::Stopping]);
    drop(answering);
    // The last frames are read while everything is still attached; then what is told to be is taken back.
    state.rings.stop();
    let rings = state.rings.join();
    let collected = collecting.join();
    let stage = state
        .stage
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let exported = stage.map_or(Ok(()), |stage| export::told(say, &stage.finish()));
    let _ = news.send(News::Stop);
    let kept = keeping.join();
    drop((socket, lock));
    account(say, &state);
    if collected.is_err() || kept.is_err() {
        return Err(CliError::new("a thread of the agent panicked")
            .remedy("report it; what is attached is in nvcli list"));
    }
    for ring in rings {
        match ring {
            Ended::Failed(error) => {
                return Err(
                    CliError::new(format!("cannot read {BRIDGE} any longer")).caused_by(&error)
                );
            }
            Ended::Panicked => {
                return Err(CliError::new("a ring's thread panicked").remedy("report it"));
            }
            Ended::Stopped | Ended::Enough => {}
        }
    }
    ended.and(exported)
}

/// Runs `start` in a thread that gives up rights first: the threads that it starts have no more.
fn prepared<T: Send>(prepare: impl FnOnce() + Send, start: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let started = scope.spawn(|| {
            prepare();
            start()
        });
        started
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The agent's socket: removed when the agent ends.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Waits for others no longer than for each change later on: meanwhile nothing is answered, and no signal heard.
fn repair(host: &Netns, config: &Config) -> Result<Vec<nvnet::Repaired>> {
    let judge = crate::orphan::Judge::of(engines(config));
    nvnet::Session::open_within(host, keeper::WAITS)
        .and_then(|mut session| session.repair_with(&|orphan| judge.fate(orphan)))
        .map_err(|error| net("cannot mend what a killed run left", &error))
}

/// Sockets of the engines to follow.
fn engines(config: &Config) -> Vec<PathBuf> {
    if let Some(engines) = &config.engines {
        return engines.clone();
    }
    if let Some(socket) =
        crate::container::socket_of(std::env::var("DOCKER_HOST").ok().as_deref()).ok()
        && socket != Path::new(ENGINES[0])
    {
        return vec![socket];
    }
    let there: Vec<PathBuf> = ENGINES
        .iter()
        .map(PathBuf::from)
        .filter(|socket| socket.exists())
        .collect();
    if there.is_empty() {
        // It may be started later.
        return vec![ENGINES[0].into()];
    }
    there
}

fn follow_links(links: &mut LinkEvents, rings: &Engine, out: &Sender<News>) {
    loop {
        let news = match links.next(None) {
            Ok(LinkNews::Nothing) => continue,
            Ok(news) => news,
            Err(error) => {
                tracing::error!("cannot hear of links any longer: {error}");
                return;
            }
        };
        // While the keeper attaches the first one: its memory takes a ring as long as an attach takes.
        if let LinkNews::Events(events) = &news
            && events
                .iter()
                .any(|it| it.netns.is_none() && it.name == BRIDGE)
            && rings.stats().rings == 0
        {
            rings.reopen();
        }
        if out.send(News::Links(news)).is_err() {
            return;
        }
    }
}

fn follow_engines(engines: Vec<PathBuf>, out: &Sender<News>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot talk to engines: {error}");
            return;
        }
    };
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for (number, socket) in engines.into_iter().enumerate() {
            all.spawn(docker::follow(number, socket, out.clone()));
        }
        while all.join_next().await.is_some() {}
    });
}

/// The signals that the agent obeys.
struct Signals(SignalFd);

impl Signals {
    /// To be called before any thread is started, so that none of them gets one.
    fn listen() -> Result<Self> {
        let failed =
            |source: nix::Error| CliError::new("cannot listen for signals").because(source);
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map(Self)
            .map_err(failed)
    }

    /// The next one, if one comes within `wait`.
    fn next(&self, wait: Duration) -> Option<Signal> {
        let read = || {
            let info = self.0.read_signal().ok().flatten()?;
            Signal::try_from(info.ssi_signo as i32).ok()
        };
        if let Some(signal) = read() {
            return Some(signal);
        }
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let ms = u16::try_from(wait.as_millis()).map_or(PollTimeout::MAX, PollTimeout::from);
        let _ = poll(&mut fds, ms);
        read()
    }
}

/// Waits for the end, reloads meanwhile, and tells the service manager how it goes.
fn look_after(
    args: &Agent,
    state: &Arc<State>,
    signals: &Signals,
    news: &Sender<News>,
    keeping: &JoinHandle<()>,
    watchdog: &mut Watchdog<'_>,
    say: Say,
) -> Result<()> {
    let began = Instant::now();
    let mut is_ready = false;
    loop {
        if !is_ready && (state.board.is_settled() || began.elapsed() > FIRST) {
            is_ready = true;
            tell_manager(&[sd_notify::NotifyState::Ready]);
            let attached = state.board.attached().len();
            say.note(format_args!(
                "ready: {attached} interfaces attached; nvcli status tells more"
            ));
            let socket = &state.config().socket;
            if socket != Path::new(config::DEFAULT_SOCKET) {
                let socket = socket.display().to_string();
                say.note(format_args!(
                    "it answers elsewhere than usual: nvcli list, flows and status find it with NVCLI_AGENT_SOCKET={}",
                    escape::text(&socket)
                ));
            }
        }
        let wait = if is_ready {
            LOOK
        } else {
            Duration::from_millis(20)
        };
        match signals.next(wait) {
            None => {}
            Some(Signal::SIGHUP) => {
                tell_manager(&[
                    sd_notify::NotifyState::Reloading,
                    sd_notify::NotifyState::monotonic_usec_now()
                        .unwrap_or(sd_notify::NotifyState::Reloading),
                ]);
                reload(args, state, news, say);
                tell_manager(&[sd_notify::NotifyState::Ready]);
            }
            Some(signal) => {
                say.note(format_args!("{signal}: the last records are handed on"));
                return Ok(());
            }
        }
        if state.rings.is_over() || keeping.is_finished() {
            return Err(
                CliError::new("the agent cannot go on: one of its threads has ended")
                    .remedy("its messages above tell why"),
            );
        }
        state.tell_exporters();
        watchdog.pat();
    }
}

/// Reads the configuration again; keeps what there is when it is wrong.
fn reload(args: &Agent, state: &State, news: &Sender<News>, say: Say) {
    match Config::read(args) {
        Ok(new) => {
            let old = state.config();
            let unchanged = old.needs_restart(&new);
            if !unchanged.is_empty() {
                say.warn(format_args!(
                    "{} changed, which takes a new start; the rest is in force",
                    unchanged.join(", ")
                ));
            }
            let new = Arc::new(new);
            *state.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
            // It is there as long as this thread waits for it.
            let _ = news.send(News::Config(new));
            say.note("the configuration was read again");
        }
        Err(error) => {
            error.report();
            say.warn("the configuration stays as it was");
        }
    }
}

/// Tells the service manager that all is well, as long as it is.
struct Watchdog<'s> {
    state: &'s State,
    every: Option<Duration>,
    told: Instant,
    seen: [(u64, Instant); 2],
}

impl<'s> Watchdog<'s> {
    fn new(state: &'s State) -> Self {
        Self {
            state,
            every: sd_notify::watchdog_enabled().map(|limit| limit / 3),
            told: Instant::now(),
            seen: [(0, Instant::now()); 2],
        }
    }

    fn pat(&mut self) {
        let Some(every) = self.every else { return };
        let now = Instant::now();
        let turns = [
            self.state.deeds.turns.load(Ordering::Relaxed),
            self.state.totals.turns.load(Ordering::Relaxed),
        ];
        for ((seen, at), turns) in self.seen.iter_mut().zip(turns) {
            if *seen != turns {
                (*seen, *at) = (turns, now);
            }
        }
        let is_well = self
            .seen
            .iter()
            .all(|(_, at)| now.duration_since(*at) < HANGS);
        if is_well && now.duration_since(self.told) >= every.min(LOOK) {
            self.told = now;
            tell_manager(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Tells systemd, if it is there and wants to know.
fn tell_manager(what: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

/// Where every frame and record went.
fn account(say: Say, state: &State) {
    let Status {
        frames,
        records,
        lost,
        ..
    } = state.status();
    say.note(format_args!(
        "{} frames read = {} metered + {} not IP + {} unparsed + {} refused; {} dropped by the kernel",
        grouped(frames.read),
        grouped(frames.metered),
        grouped(frames.not_ip),
        grouped(frames.unparsed),
        grouped(frames.refused),
        grouped(lost.frames_ring_full + lost.frames_unread),
    ));
    say.note(format_args!(
        "{} records made = {} handed on + {} dropped",
        grouped(records.made),
        grouped(records.handled),
        grouped(lost.records_queue_full),
    ));
}

/// Tells what would be done with every container that runs now, and every target.
fn dry_run(config: &Config, host: &Netns, say: Say) -> Result<()> {
    use crate::render::table::{Column, Fit, table, terminal_width};
    use io::Write as _;

    let (out, heard) = mpsc::channel();
    let engines = engines(config);
    let count = engines.len();
    // Ends with the process, or when nobody listens to it.
    thread::spawn(move || follow_engines(engines, &out));
    let mut containers = Vec::new();
    let mut listed = 0;
    while listed < count {
        match heard.recv_timeout(FIRST) {
            Ok(News::Running(_, container)) => containers.push(container),
            Ok(News::Listed(..)) => listed += 1,
            Ok(News::Engine(_, engine)) if !engine.is_connected => {
                return Err(CliError::new(format!(
                    "the engine at {} does not answer",
                    engine.socket.display()
                ))
                .because(engine.why.unwrap_or_default())
                .remedy("--engine SOCKET, or --no-engine"));
            }
            Ok(_) => {}
            Err(_) => {
                return Err(CliError::new("the engine does not answer").remedy("docker version"));
            }
        }
    }
    let mut rows = Vec::new();
    for container in &containers {
        let (choice, because) = config.selection.decide(&container.facts);
        let says = match (choice, &container.network) {
            (Choice::Ignore, _) => String::new(),
            (_, docker::Network::Host) => "not: it uses the host's network".into(),
            (_, docker::Network::Of(owner)) => {
                // Docker tells its id.
                let known = containers.iter().find(|other| other.id == *owner);
                let name = known.map_or(owner, |other| &other.facts.name);
                format!("with the network of {name}")
            }
            (Choice::Attach(mode), docker::Network::Own) => would(
                host,
                Netns::of_pid(container.pid),
                &container.facts.name,
                mode,
            ),
        };
        let facts = &container.facts;
        let texts =
            [&facts.name, &facts.image, because, &says].map(|text| escape::text(text).into_owned());
        let [name, image, because, says] = texts;
        rows.push(vec![name, image, choice.to_string(), because, says]);
    }
    for target in &config.targets {
        let (name, mode) = (target.to_string(), config.mode);
        let says = match netns_of(target) {
            Some(netns) => would(host, Ok(netns), &name, mode),
            None => "wait until it is there".into(),
        };
        let says = escape::text(&says).into_owned();
        rows.push(vec![
            name,
            String::new(),
            mode.to_string(),
            "targets".into(),
            says,
        ]);
    }
    if rows.is_empty() {
        say.note("no container runs, and no target is named: there is nothing to attach");
        return Ok(());
    }
    rows.sort();
    let columns = [
        Column::left("CONTAINER").fit(Fit::Shorten(12)),
        Column::left("IMAGE").fit(Fit::Shorten(10)),
        Column::left("ATTACH"),
        Column::left("BECAUSE"),
        Column::left("WOULD").fit(Fit::Shorten(20)),
    ];
    let text = table(&columns, &rows, terminal_width(), false);
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| CliError::output(&source))
}

/// What attaching a container or target would come to.
fn would(host: &Netns, netns: Result<Netns, nvnet::Error>, name: &str, mode: Mode) -> String {
    let plan = netns.and_then(|netns| {
        let netns = netns.labelled(name);
        nvnet::Plan::new(host, &netns, nvnet::Workload::default())
            .mode(mode)
            .check()
    });
    match plan {
        Ok(plan) => format!("attach it in {} steps", plan.steps().len()),
        Err(nvnet::Error::AlreadyAttached { id, .. }) => {
            format!("take over what is attached (id {id})")
        }
        Err(error) => format!("not: {error}"),
    }
}
