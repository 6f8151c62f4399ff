//! The live engine: a thread for each ring on nv-br, each with a meter of its own.
//!
//! Such a thread reads, meters and hands records on; it never waits for anybody else. Who wants to see what is open asks
//! for it: the table is then shown in pieces, between which frames are metered. When the interface is removed, as nv-br is with its last
//! user, the tables stay, and the reading goes on when it is there again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvcapture::{Next, Ring, RingConfig, SourceStats, Timestamp};
use nvflow::{FlowRecord, Meter, MeterConfig, MeterStats, ResolvedName};

use crate::cmd::flows::{frame_clock, mtu};
use crate::health::{Seen, Tally};
use crate::recorder::Recorder;

/// How often connections are looked at that ran out, and the totals published.
const TICK: Duration = Duration::from_millis(100);
/// Places of the table that are shown in one go: well below a millisecond.
const PIECE: u32 = 4_096;
/// How often a ring is tried again whose interface is not there, if nobody says that it is.
const RETRY: Duration = Duration::from_secs(2);

/// What is read and how it is metered.
#[derive(Clone, Debug)]
pub(crate) struct EngineConfig {
    /// The interface, in the network namespace of the thread that starts the engine.
    pub(crate) interface: String,
    /// Rings, each with its thread. More than one share the frames so that no connection is torn apart.
    pub(crate) rings: u16,
    /// How each ring is made.
    pub(crate) ring: RingConfig,
    /// How is metered; the connections are shared out among the rings.
    pub(crate) meter: MeterConfig,
    /// Keeps the last frames of all rings.
    pub(crate) recorder: Option<Arc<Recorder>>,
}

/// Takes the records of one ring, in its thread: what takes long here costs frames.
pub(crate) trait Receiver: Send + 'static {
    /// Takes a record; [`ControlFlow::Break`] ends the ring's thread.
    fn record(&mut self, record: &FlowRecord) -> ControlFlow<()>;

    /// After each block of frames and each tick: what was gathered may go on.
    fn pause(&mut self) {}

    /// The ring is closed: who takes records may be waited for from now on.
    fn closing(&mut self) {}
}

impl<F: FnMut(&FlowRecord) -> ControlFlow<()> + Send + 'static> Receiver for F {
    fn record(&mut self, record: &FlowRecord) -> ControlFlow<()> {
        self(record)
    }
}

/// Totals of all rings; they only grow, but for what is open now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineStats {
    /// What the rings handed out, and what the kernel dropped before.
    pub(crate) source: SourceStats,
    /// What became of it.
    pub(crate) meter: MeterStats,
    /// Frames that were in a ring and could not be read.
    pub(crate) unread: u64,
    /// Rings that are open now.
    pub(crate) rings: u64,
    /// Times a ring was opened.
    pub(crate) opened: u64,
}

impl EngineStats {
    fn merge(&mut self, other: &Self) {
        self.source.merge(&other.source);
        self.meter.merge(&other.meter);
        self.unread += other.unread;
        self.rings += other.rings;
        self.opened += other.opened;
    }
}

/// Why a ring's thread ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was asked to; the last frame is metered and its record handed on.
    Stopped,
    /// Its receiver wanted no more.
    Enough,
    /// Its ring failed.
    Failed(nvcapture::Error),
    /// It panicked.
    Panicked,
}

/// Why an engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A ring cannot be opened.
    #[error(transparent)]
    Ring(#[from] nvcapture::Error),
    /// A table cannot be made.
    #[error(transparent)]
    Meter(#[from] nvflow::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread to read {interface}")]
    Thread {
        /// What it would have read.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// Rings that are read and metered until they are stopped. Can be used from any thread.
#[derive(Debug)]
pub(crate) struct Engine {
    workers: Vec<Remote>,
    threads: Mutex<Vec<JoinHandle<Ended>>>,
}

/// What an engine keeps of one of its threads.
#[derive(Debug)]
struct Remote {
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    stats: Arc<Mutex<EngineStats>>,
}

enum Order {
    Look(Box<dyn Look>),
    Count(mpsc::Sender<Vec<Seen>>),
    Learn(Arc<[ResolvedName]>),
    Reopen,
    Stop,
}

/// Somebody who looks at open connections.
trait Look: Send {
    fn record(&mut self, record: &FlowRecord);
    fn done(self: Box<Self>);
}

struct Fold<T, V> {
    value: T,
    visit: V,
    reply: mpsc::Sender<T>,
}

impl<T: Send, V: FnMut(&mut T, &FlowRecord) + Send> Look for Fold<T, V> {
    fn record(&mut self, record: &FlowRecord) {
        (self.visit)(&mut self.value, record);
    }

    fn done(self: Box<Self>) {
        // Who asked may have gone.
        let _ = self.reply.send(self.value);
    }
}

impl Engine {
    /// Opens the rings, and starts a thread for each with the receiver that `receiver` makes for its number.
    ///
    /// `prepare` runs first in each thread, when its ring is open: to give up rights, for example.
    pub(crate) fn start<R: Receiver>(
        config: &EngineConfig,
        mut receiver: impl FnMut(u16) -> R,
        prepare: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        let rings = config.rings.max(1);
        let mut ready = Vec::new();
        for number in 0..rings {
            let mut ring_config = config.ring.clone();
            if rings > 1 && ring_config.fanout.is_none() {
                ring_config.fanout = Some(nvcapture::Fanout {
                    // Unique in the namespace as long as no two processes share the low digits of their numbers.
                    group: (std::process::id() & 0xffff) as u16,
                    mode: nvcapture::FanoutMode::Connections,
                    defrag: false,
                });
            }
            let meter = Meter::new(MeterConfig {
                max_connections: config.meter.max_connections.div_ceil(rings.into()),
                ..config.meter
            })?;
            let mut opening = Opening {
                interface: config.interface.clone(),
                config: ring_config,
            };
            let ring = opening.open()?;
            ready.push((number, meter, opening, ring));
        }
        let mut engine = Self {
            workers: Vec::new(),
            threads: Mutex::default(),
        };
        let (orders, taken): (Vec<_>, Vec<_>) = ready.iter().map(|_| mpsc::channel()).unzip();
        for ((number, meter, opening, ring), taken) in ready.into_iter().zip(taken) {
            let failed = |source| StartError::Thread {
                interface: config.interface.clone(),
                source,
            };
            let wake =
                EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                    .map_err(|errno| failed(errno.into()))?;
            let wake = Arc::new(wake);
            let stats = Arc::default();
            let worker = Worker {
                opened: ring.is_some().into(),
                ring,
                opening,
                meter,
                receiver: receiver(number),
                orders: taken,
                others: others_than(number, &orders),
                wake: Arc::clone(&wake),
                stats: Arc::clone(&stats),
                recorder: config.recorder.clone(),
                tally: Tally::default(),
                before: SourceStats::default(),
                unread: 0,
                looks: VecDeque::new(),
                stopping: false,
                tried: Instant::now(),
            };
            let prepare = prepare.clone();
            let thread = thread::Builder::new()
                .name(format!("ring-{number}"))
                .spawn(move || {
                    prepare();
                    worker.run()
                })
                .map_err(failed)?;
            engine.workers.push(Remote {
                orders: orders[usize::from(number)].clone(),
                wake,
                stats,
            });
            engine
                .threads
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok(engine)
    }

    /// Totals of all rings, at most a moment old; exact once the engine has ended.
    pub(crate) fn stats(&self) -> EngineStats {
        let mut all = EngineStats::default();
        for worker in &self.workers {
            all.merge(&worker.stats.lock().unwrap_or_else(PoisonError::into_inner));
        }
        all
    }

    /// Shows every open connection to `visit`, which adds it to a value that was `first` for each ring; waits until all rings have.
    ///
    /// Frames go on being metered in between; see [`Meter::open_from`]. A record's end reason is as [`Meter::open`] says.
    pub(crate) fn look<T, V>(&self, first: impl Fn() -> T, visit: V) -> Vec<T>
    where
        T: Send + 'static,
        V: FnMut(&mut T, &FlowRecord) + Clone + Send + 'static,
    {
        let (reply, replies) = mpsc::channel();
        for worker in &self.workers {
            worker.order(Order::Look(Box::new(Fold {
                value: first(),
                visit: visit.clone(),
                reply: reply.clone(),
            })));
        }
        drop(reply);
        // Ends when the last of them has answered, or is gone.
        replies.into_iter().collect()
    }

    /// Every open connection as it stands now, in no order.
    pub(crate) fn open(&self) -> Vec<FlowRecord> {
        let all = self.look(Vec::new, |all: &mut Vec<FlowRecord>, record| {
            all.push(record.clone());
        });
        all.into_iter().flatten().collect()
    }

    /// Those of which a frame came at `since` or later.
    pub(crate) fn changed(&self, since: Timestamp) -> Vec<FlowRecord> {
        let all = self.look(Vec::new, move |all: &mut Vec<FlowRecord>, record| {
            if record.flow_end >= since {
                all.push(record.clone());
            }
        });
        all.into_iter().flatten().collect()
    }

    /// The frames of each attached interface, by its id.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let (reply, replies) = mpsc::channel();
        for worker in &self.workers {
            worker.order(Order::Count(reply.clone()));
        }
        drop(reply);
        let mut all: Vec<Seen> = Vec::new();
        for of_ring in replies {
            if all.len() < of_ring.len() {
                all.resize(of_ring.len(), Seen::default());
            }
            for (sum, seen) in all.iter_mut().zip(&of_ring) {
                sum.merge(seen);
            }
        }
        all
    }

    /// The interface is there (again): rings that wait for it are opened now.
    pub(crate) fn reopen(&self) {
        for worker in &self.workers {
            worker.order(Order::Reopen);
        }
    }

    /// Ends the reading: what came before is still metered, then the connections that are open are handed on.
    pub(crate) fn stop(&self) {
        for worker in &self.workers {
            worker.order(Order::Stop);
        }
    }

    /// Whether all threads have ended.
    pub(crate) fn is_over(&self) -> bool {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits until all threads have ended, and tells why each did.
    pub(crate) fn join(&self) -> Vec<Ended> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads
            .drain(..)
            .map(|thread| thread.join().unwrap_or(Ended::Panicked))
            .collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        let _all = self.join();
    }
}

impl Remote {
    fn order(&self, order: Order) {
        // A thread that has ended takes none; its part of a look is then missing, as it should be.
        if self.orders.send(order).is_ok() {
            // Full is as good as one more.
            let _ = self.wake.write(1);
        }
    }
}

/// How a ring is opened, now and again.
struct Opening {
    interface: String,
    config: RingConfig,
}

impl Opening {
    /// The ring; `None` when its interface is not there and may come.
    fn open(&mut self) -> Result<Option<Ring>, nvcapture::Error> {
        match Ring::open(&self.config, self.interface.as_str()) {
            Ok(ring) => Ok(Some(ring)),
            Err(
                nvcapture::Error::NoInterface { .. }
                | nvcapture::Error::InterfaceDown { .. }
                | nvcapture::Error::InterfaceGone { .. },
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

struct Worker<R> {
    ring: Option<Ring>,
    opening: Opening,
    meter: Meter,
    receiver: R,
    orders: mpsc::Receiver<Order>,
    wake: Arc<EventFd>,
    stats: Arc<Mutex<EngineStats>>,
    /// The other rings' threads, which meter other connections: the query for a name may be here, who connects to it there.
    others: Vec<mpsc::Sender<Order>>,
    recorder: Option<Arc<Recorder>>,
    tally: Tally,
    /// Totals of rings that are closed.
    before: SourceStats,
    unread: u64,
    opened: u64,
    /// Who looks at the table, and how far each is.
    looks: VecDeque<(Box<dyn Look>, u32)>,
    stopping: bool,
    tried: Instant,
}

/// What the ring had.
enum Had {
    Frames,
    Nothing,
    End(Ended),
}

impl<R: Receiver> Worker<R> {
    fn run(mut self) -> Ended {
        self.take_mtu();
        let ended = self.go_on();
        if let Some(ring) = &mut self.ring {
            self.before.merge(&ring.stats().unwrap_or_default());
        }
        self.ring = None;
        if !matches!(ended, Ended::Enough) {
            self.receiver.closing();
            let Self {
                meter, receiver, ..
            } = &mut self;
            let Ok(_all) = meter.finish(&mut to(receiver));
            self.receiver.pause();
        }
        for (look, _) in self.looks.drain(..) {
            look.done();
        }
        self.publish();
        ended
    }

    /// By the interface's MTU super-frames are counted where the kernel does not tell how they are cut.
    fn take_mtu(&mut self) {
        if let Some(ring) = &self.ring {
            let known = ring.mtu().map_or(MeterConfig::default().mtu, mtu);
            self.meter.set_mtu(known);
        }
    }

    fn go_on(&mut self) -> Ended {
        let mut due = Instant::now() + TICK;
        loop {
            match self.read() {
                Had::Frames => {}
                Had::Nothing => {
                    if !self.looks.is_empty() {
                        self.show();
                    } else if self.sleep(due) {
                        // Somebody wants something.
                        if let Some(ended) = self.obey() {
                            return ended;
                        }
                    }
                }
                Had::End(ended) => return ended,
            }
            let now = Instant::now();
            if now < due {
                continue;
            }
            due = now + TICK;
            let Self {
                meter, receiver, ..
            } = self;
            let Ok(flow) = meter.expire(frame_clock(), &mut to(receiver));
            self.receiver.pause();
            if let Some(recorder) = &self.recorder {
                recorder.expire(frame_clock());
            }
            if flow.is_break() {
                return Ended::Enough;
            }
            if let Some(ended) = self.obey() {
                return ended;
            }
            // Also when frames come without a pause.
            self.show();
            self.publish();
            if self.ring.is_none()
                && self.tried.elapsed() >= RETRY
                && let Some(ended) = self.try_again()
            {
                return ended;
            }
        }
    }

    /// Meters the next block, if there is one.
    fn read(&mut self) -> Had {
        let Some(ring) = &mut self.ring else {
            return if self.stopping {
                Had::End(Ended::Stopped)
            } else {
                Had::Nothing
            };
        };
        let error = match ring.next_block(Some(Duration::ZERO)) {
            Ok(Next::Block(block)) => {
                if let Some(recorder) = &self.recorder {
                    recorder.keep(block.frames());
                }
                let frames = block.frames().inspect(|frame| self.tally.count(frame));
                let Ok(flow) = self.meter.observe(frames, &mut to(&mut self.receiver));
                drop(block);
                teach(&mut self.meter, &self.others);
                self.receiver.pause();
                return if flow.is_break() {
                    Had::End(Ended::Enough)
                } else {
                    Had::Frames
                };
            }
            Ok(Next::TimedOut) => return Had::Nothing,
            Ok(Next::End) => return Had::End(Ended::Stopped),
            Err(error) => error,
        };
        match error {
            // It may come up again, and somebody took it down on purpose.
            nvcapture::Error::InterfaceDown { .. } => Had::Nothing,
            nvcapture::Error::InterfaceGone { .. } => {
                self.before.merge(&ring.stats().unwrap_or_default());
                self.ring = None;
                if self.stopping {
                    Had::End(Ended::Stopped)
                } else {
                    // It may be there again already.
                    self.try_again().map_or(Had::Nothing, Had::End)
                }
            }
            nvcapture::Error::Malformed { lost, .. } => {
                self.unread += u64::from(lost);
                tracing::warn!("{error}");
                Had::Nothing
            }
            nvcapture::Error::Incomplete { missing, .. } => {
                self.unread += missing;
                tracing::warn!("{error}");
                Had::End(Ended::Stopped)
            }
            error => Had::End(Ended::Failed(error)),
        }
    }

    /// Waits for frames or for somebody who wants something; tells whether it may have been the latter.
    fn sleep(&mut self, due: Instant) -> bool {
        let left = due.saturating_duration_since(Instant::now());
        let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        // Whatever poll says against it, the next block is asked for again.
        let wait = |fds: &mut [PollFd<'_>], wait: Duration| {
            // Rounded up, so that a wait does not end early and spin through its last millisecond.
            let ms = wait.as_nanos().div_ceil(1_000_000).min(1_000);
            let timeout = u16::try_from(ms).map_or(PollTimeout::ZERO, PollTimeout::from);
            let _ = poll(fds, timeout);
            fds[0].any().unwrap_or(true)
        };
        match &mut self.ring {
            Some(ring) => match ring.gathers() {
                Some(gather) => wait(&mut [wake], left.min(gather)),
                None => wait(
                    &mut [wake, PollFd::new(ring.as_fd(), PollFlags::POLLIN)],
                    left,
                ),
            },
            None => wait(&mut [wake], left),
        }
    }

    /// Does what others want; tells if that ended the thread.
    fn obey(&mut self) -> Option<Ended> {
        // Emptied first: what is sent from here on wakes again.
        let _ = self.wake.read();
        loop {
            match self.orders.try_recv() {
                Ok(Order::Look(look)) => self.looks.push_back((look, 0)),
                // Who asked may have gone.
                Ok(Order::Count(reply)) => drop(reply.send(self.tally.all().to_vec())),
                Ok(Order::Learn(names)) => names.iter().for_each(|told| self.meter.learn(told)),
                Ok(Order::Reopen) => {
                    if self.ring.is_none()
                        && let Some(ended) = self.try_again()
                    {
                        return Some(ended);
                    }
                }
                // Nobody can reach this thread any longer: as if it were told to stop.
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) if !self.stopping => {
                    self.stopping = true;
                    if let Some(ring) = &mut self.ring
                        && let Err(error) = ring.stop()
                    {
                        return Some(Ended::Failed(error));
                    }
                }
                Ok(Order::Stop) => {}
                Err(_) => return None,
            }
        }
    }

    /// Opens the ring again, if that can be.
    fn try_again(&mut self) -> Option<Ended> {
        self.tried = Instant::now();
        if self.stopping {
            return None;
        }
        match self.opening.open() {
            Ok(None) => None,
            Ok(Some(ring)) => {
                self.ring = Some(ring);
                self.take_mtu();
                self.opened += 1;
                None
            }
            Err(error) => Some(Ended::Failed(error)),
        }
    }

    /// Shows a piece of the table to the first who looks at it.
    fn show(&mut self) {
        let Some((look, from)) = self.looks.front_mut() else {
            return;
        };
        match self
            .meter
            .open_from(*from, PIECE, |record| look.record(record))
        {
            Some(next) => *from = next,
            None => {
                if let Some((look, _)) = self.looks.pop_front() {
                    look.done();
                }
            }
        }
    }

    fn publish(&mut self) {
        let mut source = self.before;
        if let Some(ring) = &mut self.ring {
            source.merge(&ring.stats().unwrap_or_default());
        }
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = EngineStats {
            source,
            meter: self.meter.stats(),
            unread: self.unread,
            rings: self.ring.is_some().into(),
            opened: self.opened,
        };
    }
}

/// Tells the other rings the names that this one has learnt; each takes them at its next tick.
fn teach(meter: &mut Meter, others: &[mpsc::Sender<Order>]) {
    if others.is_empty() {
        return;
    }
    let names: Arc<[ResolvedName]> = meter.resolved_names().collect();
    if names.is_empty() {
        return;
    }
    for other in others {
        // One that has ended meters nothing.
        let _ = other.send(Order::Learn(Arc::clone(&names)));
    }
}

/// The ways to all but the one of this number.
fn others_than(number: u16, orders: &[mpsc::Sender<Order>]) -> Vec<mpsc::Sender<Order>> {
    let numbered = (0..).zip(orders);
    let others = numbered.filter(|(other, _)| *other != number);
    others.map(|(_, orders)| orders.clone()).collect()
}

/// A receiver as nvflow wants it.
fn to<R: Receiver>(receiver: &mut R) -> impl nvflow::Sink<Error = Infallible> + use<'_, R> {
    nvflow::sink_fn(|record: &FlowRecord| Ok(receiver.record(record)))
}
