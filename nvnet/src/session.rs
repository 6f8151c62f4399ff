//! Several changes in a row, under one lock; and several at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::features::Features;
use crate::ids::{AttachmentId, PORT_PREFIX};
use crate::inventory::{self, Attachment, Fate, Orphan, Repaired};
use crate::link::{self, Link};
use crate::lock::{Lock, Waiting};
use crate::socket::RouteSocket;
use crate::{BRIDGE, Error, Mode, Netns, Plan, attach};

/// Ports that a bridge can have: `BR_MAX_PORTS` of net/bridge/br_private.h, of which number 0 is none.
const BRIDGE_PORTS: usize = 1_023;
/// Threads that work on containers at a time, at most: the kernel makes its changes one after the other all the same.
const WORKERS: usize = 4;
/// Until it is logged who is waited for.
const QUIET: Duration = Duration::from_secs(1);

/// A host namespace whose attachments nobody else changes as long as this lives.
///
/// What is attached is read once, so that attaching the thousandth interface takes no longer than the first one. Other
/// processes wait meanwhile, and so does this one when it opens a second session of the same host.
#[must_use = "dropping a session lets go of its lock"]
pub struct Session {
    pub(crate) host: RouteSocket,
    /// In the namespace that was worked on last.
    inside: Option<RouteSocket>,
    pub(crate) shared: Arc<Shared>,
}

/// What the threads that work in one session have in common.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Held while the kernel's network is changed.
    ///
    /// It makes one change at a time anyway. But each message of a batch waits for the kernel's own lock by itself, so
    /// that another thread's changes would come between those that a container has to wait for.
    turn: Mutex<()>,
    /// Namespaces, by inode, that a thread works on.
    busy: Mutex<BTreeSet<u64>>,
    free: Condvar,
    _lock: Lock,
}

/// The right to change the kernel's network.
pub(crate) type Turn<'s> = MutexGuard<'s, ()>;

/// Asked ahead of every step, with its number and what it does; an error is one of that step.
type Ask<'a> = dyn FnMut(usize, &str) -> Result<(), Error> + 'a;

struct State {
    /// As read when the session was opened, with what it changed since.
    attached: Arc<Vec<Attachment>>,
    /// Ids of what is attached, planned, or in use by a link.
    taken: BTreeSet<AttachmentId>,
    /// Of what is planned and not attached yet, and whether it takes a port of the bridge.
    planned: BTreeMap<AttachmentId, bool>,
    /// Ports of the bridge.
    ports: usize,
    /// All ids below are taken.
    lowest: u16,
    /// Ports without a record, which nothing depends on yet; only a process that was killed leaves them.
    strays: Vec<(u32, String)>,
    has_bridge: bool,
    /// The number of the bridge, once this session made sure that it is whole.
    bridge: Option<u32>,
}

/// What became of one of several plans.
#[derive(Debug)]
pub struct Outcome {
    /// What a process that was killed had left half-done in its target, and what was done about it.
    pub repaired: Vec<Repaired>,
    /// `None` when it was not begun, since another one had failed.
    pub attached: Option<Result<Vec<Attachment>, Error>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("host", self.host.netns())
            .field("attached", &self.attached().len())
            .finish_non_exhaustive()
    }
}

/// Nothing is left half-written by a thread that panics: each change of what these locks hold is one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Waits until no other thread of this session changes the kernel's network.
    pub(crate) fn turn(&self) -> Turn<'_> {
        locked(&self.turn)
    }

    /// The number of the bridge, once this session made sure that it is whole.
    pub(crate) fn bridge(&self) -> Option<u32> {
        locked(&self.state).bridge
    }

    pub(crate) fn set_bridge(&self, number: Option<u32>) {
        locked(&self.state).bridge = number;
    }

    /// Waits until no other thread works on the namespace of this inode.
    fn claim(&self, inode: u64) -> Claim<'_> {
        let mut busy = locked(&self.busy);
        while !busy.insert(inode) {
            busy = self.free.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Claim {
            shared: self,
            inode,
        }
    }
}

/// A namespace that this thread alone works on.
struct Claim<'s> {
    shared: &'s Shared,
    inode: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        locked(&self.shared.busy).remove(&self.inode);
        self.shared.free.notify_all();
    }
}

impl Session {
    /// Finds out what this kernel can do, which the first attach of a process does otherwise and takes tens of milliseconds for: for who
    /// knows that there will be one.
    ///
    /// # Errors
    /// What attaching inline needs is missing, or there is no namespace to try it in.
    pub fn prepare() -> Result<(), Error> {
        features(true).map(drop)
    }

    /// How long [`open`](Self::open) waits: beyond all that those before it can have to do. To attach a thousand containers takes some
    /// ten seconds, and on a machine with twenty times the work that it can do some minutes.
    pub const PATIENCE: Duration = Duration::from_secs(30 * 60);

    /// Waits until no other process changes what is attached in `host`, and reads it. Who came first goes first.
    ///
    /// # Errors
    /// [`Error::Locked`] after [`PATIENCE`](Self::PATIENCE). The namespace could not be locked (CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN are needed)
    /// or entered, or the kernel's lists could not be read.
    pub fn open(host: &Netns) -> Result<Self, Error> {
        Self::open_within(host, Self::PATIENCE)
    }

    /// The same, but waits no longer than `wait`, but some 20 ms at least; [`Duration::ZERO`] is to try it. Each call is a new place in the queue: who waits again
    /// is behind those who came meanwhile.
    ///
    /// # Errors
    /// As [`open`](Self::open), but [`Error::Locked`] after `wait`.
    pub fn open_within(host: &Netns, wait: Duration) -> Result<Self, Error> {
        let mut is_told = false;
        Self::open_watched(host, wait, |waiting| {
            if waiting.lasted() >= QUIET && !std::mem::replace(&mut is_told, true) {
                let (pid, command) = waiting.holder().unzip();
                tracing::warn!(
                    netns = host.label(),
                    pid,
                    command,
                    "waiting for another process that attaches or detaches"
                );
            }
            ControlFlow::Continue(())
        })
    }

    /// The same for who wants to tell of the wait, or to end it, and keep its place meanwhile: `watch` is called each time that it is looked in
    /// vain, which is at once when somebody is ahead, and then every few milliseconds.
    ///
    /// # Errors
    /// As [`open`](Self::open), but [`Error::Locked`] after `wait`, or when `watch` breaks.
    pub fn open_watched(
        host: &Netns,
        wait: Duration,
        mut watch: impl FnMut(&Waiting<'_>) -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        let lock = Lock::of(host, wait, &mut watch)?;
        let state = State {
            attached: Arc::default(),
            taken: BTreeSet::new(),
            planned: BTreeMap::new(),
            ports: 0,
            lowest: 1,
            strays: vec![],
            has_bridge: false,
            bridge: None,
        };
        let mut session = Self {
            host: RouteSocket::open(host)?,
            inside: None,
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                turn: Mutex::default(),
                busy: Mutex::default(),
                free: Condvar::new(),
                _lock: lock,
            }),
        };
        session.refresh()?;
        Ok(session)
    }

    /// The same session for another thread.
    fn share(&self) -> Result<Self, Error> {
        Ok(Self {
            host: RouteSocket::open(self.host.netns())?,
            inside: None,
            shared: Arc::clone(&self.shared),
        })
    }

    /// What is attached now, by id.
    pub fn attached(&self) -> Arc<Vec<Attachment>> {
        Arc::clone(&self.state().attached)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.shared.state)
    }

    /// As [`repair_with`](crate::repair_with).
    ///
    /// # Errors
    /// As [`repair`](crate::repair).
    pub fn repair_with(
        &mut self,
        judge: &dyn Fn(&Orphan<'_>) -> Fate,
    ) -> Result<Vec<Repaired>, Error> {
        inventory::repair_in(self, judge)
    }

    /// Undoes what a process that was killed left half-done in `target`, and what nothing depends on yet; `judge` says what
    /// becomes of an [`Orphan`].
    ///
    /// # Errors
    /// As [`repair`](crate::repair).
    pub fn repair_target(
        &mut self,
        target: &Netns,
        judge: &dyn Fn(&Orphan<'_>) -> Fate,
    ) -> Result<Vec<Repaired>, Error> {
        inventory::repair_target_in(self, target, judge)
    }

    /// Repairs the target of each plan and attaches it, several at a time; the outcome of each, in their order. The first one
    /// that fails keeps those that were not begun from it.
    ///
    /// Much quicker than one after the other: one container is looked at while the kernel changes another one. Every single
    /// one is attached as by [`CheckedPlan::attach`](crate::CheckedPlan::attach), and what it notices of it is the same.
    pub fn attach_together(
        &mut self,
        plans: Vec<Plan>,
        judge: &(dyn Fn(&Orphan<'_>) -> Fate + Sync),
    ) -> Vec<Outcome> {
        let unbegun = || Outcome {
            repaired: vec![],
            attached: None,
        };
        let outcomes: Mutex<Vec<Outcome>> = Mutex::new(plans.iter().map(|_| unbegun()).collect());
        // Once, and not by all threads at once; an error is told by the plan that needs it.
        if let Some(plan) = plans.first() {
            let _ = features(plan.mode == Mode::Inline);
        }
        let count = plans.len();
        let queue = Mutex::new(plans.into_iter().enumerate());
        let failed = AtomicBool::new(false);
        let each = |session: &mut Option<Session>| {
            let next = locked(&queue).next();
            let (Some((at, plan)), Some(worker)) = (next, session.take()) else {
                return false;
            };
            let (outcome, worker) = worker.attach_one(plan, judge);
            failed.fetch_or(worker.is_none(), Ordering::Relaxed);
            *session = worker;
            locked(&outcomes)[at] = outcome;
            true
        };
        let begun = self.at_once(count, || !failed.load(Ordering::Relaxed), &each);
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if let (Err(error), Some(first)) = (begun, outcomes.first_mut()) {
            first.attached = Some(Err(error));
        }
        outcomes
    }

    fn attach_one(
        mut self,
        plan: Plan,
        judge: &dyn Fn(&Orphan<'_>) -> Fate,
    ) -> (Outcome, Option<Self>) {
        let shared = Arc::clone(&self.shared);
        let _claim = shared.claim(plan.target.id().ino);
        let mut repaired = Vec::new();
        let done = plan
            .target
            .stay()
            .and_then(|()| self.repair_target(&plan.target, judge))
            .and_then(|done| {
                repaired = done;
                plan.check_in(self)?.attach_in_session()
            });
        let (attached, session) = match done {
            Ok((attached, session)) => (Ok(attached), Some(session)),
            Err(error) => (Err(error), None),
        };
        let attached = Some(attached);
        (Outcome { repaired, attached }, session)
    }

    /// Has `each` called by several threads, which may go into other namespaces, until it tells that nothing is left, or
    /// `go_on` that it is enough. Each thread has a session of its own, which `each` may keep.
    fn at_once(
        &self,
        count: usize,
        go_on: impl Fn() -> bool + Sync,
        each: &(impl Fn(&mut Option<Session>) -> bool + Sync),
    ) -> Result<(), Error> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Two, even where there is one processor: most of the time the kernel waits.
        let workers = cores.clamp(2, WORKERS).min(count);
        let mut sessions = Vec::new();
        for _ in 0..workers {
            match self.share() {
                Ok(session) => sessions.push(session),
                Err(error) if sessions.is_empty() => return Err(error),
                // Those that are there do the work.
                Err(_) => break,
            }
        }
        std::thread::scope(|scope| {
            for session in sessions {
                let go_on = &go_on;
                scope.spawn(move || {
                    let mut session = Some(session);
                    while go_on() && each(&mut session) {}
                });
            }
        });
        Ok(())
    }

    /// Takes one attachment back, as [`detach`](crate::detach) does.
    ///
    /// # Errors
    /// As [`detach`](crate::detach).
    pub fn detach(&mut self, id: AttachmentId) -> Result<(), Error> {
        self.detach_observed(id, &mut |_, _| Ok(()))
    }

    /// Takes several back; the outcome of each, in their order. One that fails does not keep the others.
    ///
    /// Much quicker than one after the other: the kernel waits for its readers only once to delete what all of them leave.
    pub fn detach_together(&mut self, ids: &[AttachmentId]) -> Vec<Result<(), Error>> {
        self.detach_some(ids, None)
    }

    pub(crate) fn detach_observed(
        &mut self,
        id: AttachmentId,
        before: &mut dyn FnMut(usize, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.detach_some(&[id], Some(before)).into_iter().collect()
    }

    /// One after the other when `before` wants to know of each, else several at a time.
    fn detach_some(
        &mut self,
        ids: &[AttachmentId],
        mut before: Option<&mut Ask<'_>>,
    ) -> Vec<Result<(), Error>> {
        let wanted: BTreeSet<AttachmentId> = ids.iter().copied().collect();
        let attached = self.attached();
        let (chosen, others): (Vec<_>, Vec<_>) =
            attached.iter().partition(|a| wanted.contains(&a.id));
        // By id, as `attached` is.
        let released = match &mut before {
            None if chosen.len() > 1 => self.release_together(&chosen),
            before => {
                let mut ignore = |_: usize, _: &str| Ok(());
                let before: &mut Ask<'_> = match before {
                    Some(before) => before,
                    None => &mut ignore,
                };
                let mut release =
                    |a: &&Attachment| attach::release(&mut self.host, a, &self.shared, before);
                chosen.iter().map(&mut release).collect()
            }
        };
        let shared = Arc::clone(&self.shared);
        let turn = shared.turn();
        let deletion = "delete our veth pair, and the bridge if nothing uses it";
        let told = before.map_or(Ok(()), |before| before(1, deletion));
        let outcomes =
            attach::delete_released(&mut self.host, &chosen, released, others.is_empty(), told);
        drop(turn);
        let mut of_each: BTreeMap<AttachmentId, Result<(), Error>> =
            chosen.iter().map(|a| a.id).zip(outcomes).collect();
        let is_gone = |a: &Attachment| of_each.get(&a.id).is_some_and(Result::is_ok);
        let mut state = self.state();
        for gone in chosen.iter().filter(|a| is_gone(a)) {
            state.taken.remove(&gone.id);
            state.lowest = state.lowest.min(gone.id.number());
            state.ports -= usize::from(gone.has_pair() && state.ports > 0);
        }
        Arc::make_mut(&mut state.attached).retain(|a| !is_gone(a));
        // It may be among what was deleted.
        state.bridge = None;
        ids.iter()
            .map(|id| {
                of_each
                    .remove(id)
                    .unwrap_or(Err(Error::NotAttached { id: *id }))
            })
            .collect()
    }

    /// Puts the containers of these back, several at a time.
    fn release_together(&mut self, chosen: &[&Attachment]) -> Vec<Result<(), Error>> {
        let outcomes: Mutex<BTreeMap<AttachmentId, Result<(), Error>>> = Mutex::default();
        let queue = Mutex::new(chosen.iter());
        let each = |session: &mut Option<Session>| {
            let next = locked(&queue).next();
            let (Some(attachment), Some(worker)) = (next, session) else {
                return false;
            };
            let _claim = self.shared.claim(attachment.record.netns_ino);
            if let Some(netns) = attachment.netns() {
                // When it is refused, what comes next finds its own way, or tells why not.
                let _ = netns.stay();
            }
            let nobody = &mut |_: usize, _: &str| Ok(());
            let done = attach::release(&mut worker.host, attachment, &self.shared, nobody);
            locked(&outcomes).insert(attachment.id, done);
            true
        };
        let begun = self.at_once(chosen.len(), || true, &each);
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut begun = begun.err();
        let mut of = |a: &&Attachment| {
            let unbegun = || Err(begun.take().unwrap_or(Error::NotAttached { id: a.id }));
            outcomes.remove(&a.id).unwrap_or_else(unbegun)
        };
        chosen.iter().map(&mut of).collect()
    }

    /// A socket in a container: the one that is there from the call before, if that was about the same container.
    pub(crate) fn inside(&mut self, netns: &Netns) -> Result<RouteSocket, Error> {
        match self.inside.take() {
            Some(socket) if socket.netns() == netns => Ok(socket),
            _ => RouteSocket::open(netns),
        }
    }

    /// Keeps a socket for the next call.
    pub(crate) fn keep(&mut self, inside: RouteSocket) {
        self.inside = Some(inside);
    }

    /// Reads again what is attached.
    ///
    /// # Errors
    /// The kernel's lists could not be read.
    pub fn refresh(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        // What another thread has begun would be taken for what a killed process left.
        self.refresh_in(&shared.turn())
    }

    fn refresh_in(&mut self, _turn: &Turn<'_>) -> Result<(), Error> {
        let links = link::all(&mut self.host)?;
        let attached = inventory::among(&mut self.host, &links)?;
        let mut state = self.state();
        let of_ports = links
            .iter()
            .filter_map(|l| l.name.strip_prefix(PORT_PREFIX)?.parse().ok());
        let planned = state.planned.keys().copied();
        let of_attached = attached.iter().map(|a| a.id);
        let taken = of_ports.chain(of_attached).chain(planned).collect();
        state.taken = taken;
        state.lowest = 1;
        state.attached = Arc::new(attached);
        let strays = links.iter().filter(|link| inventory::is_stray(link));
        state.strays = strays.map(|link| (link.index, link.name.clone())).collect();
        let bridge = links.iter().find(|link| link.name == BRIDGE);
        state.has_bridge = bridge.is_some();
        state.ports = bridge.map_or(0, |bridge| {
            let of_bridge = |link: &&Link| link.master == Some(bridge.index);
            links.iter().filter(of_bridge).count()
        });
        Ok(())
    }

    /// Deletes what was made for nothing: ports that no record was written for, a bridge that nothing uses.
    ///
    /// # Errors
    /// The kernel refused, or its lists could not be read.
    pub fn sweep(&mut self) -> Result<Vec<Repaired>, Error> {
        let mut state = self.state();
        let unused = state.has_bridge && state.attached.is_empty() && state.planned.is_empty();
        let strays = std::mem::take(&mut state.strays);
        drop(state);
        let mut swept = Vec::new();
        if strays.is_empty() && !unused {
            return Ok(swept);
        }
        let shared = Arc::clone(&self.shared);
        let turn = shared.turn();
        for (index, name) in strays {
            self.host.send(link::delete(index, &name))?;
            swept.push(Repaired {
                what: name,
                done: "had no record yet; deleted".into(),
            });
        }
        if unused {
            attach::remove_unused_bridge(&mut self.host)?;
            if link::by_name(&mut self.host, BRIDGE)?.is_none() {
                swept.push(Repaired {
                    what: BRIDGE.into(),
                    done: "nothing used it; deleted".into(),
                });
            }
        }
        if !swept.is_empty() {
            self.refresh_in(&turn)?;
        }
        Ok(swept)
    }

    /// An id that nothing has; nothing else gets it as long as the session lives.
    pub(crate) fn take_id(&mut self) -> Result<AttachmentId, Error> {
        let mut state = self.state();
        let free = (state.lowest..=u16::MAX)
            .filter_map(AttachmentId::new)
            .find(|id| !state.taken.contains(id));
        let id = free.ok_or(Error::Exhausted {
            what: "id",
            taken: state.taken.len(),
        })?;
        state.taken.insert(id);
        state.planned.insert(id, false);
        state.lowest = id.number();
        Ok(id)
    }

    /// Sets ports of the bridge aside for these; refuses when it has not as many free ones.
    pub(crate) fn take_ports(&mut self, of: &[AttachmentId]) -> Result<(), Error> {
        let mut state = self.state();
        let planned = state.planned.values().filter(|has_port| **has_port);
        if state.ports + planned.count() + of.len() > BRIDGE_PORTS {
            return Err(Error::Exhausted {
                what: "port of nv-br, which takes 1,023",
                taken: state.ports,
            });
        }
        state.planned.extend(of.iter().map(|id| (*id, true)));
        Ok(())
    }

    /// Takes note of what was attached.
    pub(crate) fn add(&mut self, new: &[Attachment]) {
        let mut state = self.state();
        for attachment in new {
            state.planned.remove(&attachment.id);
        }
        // It may have been read meanwhile, on another thread's behalf.
        let is_new = |a: &&Attachment| state.attached.iter().all(|there| there.id != a.id);
        let unknown: Vec<Attachment> = new.iter().filter(is_new).cloned().collect();
        state.ports += unknown.iter().filter(|a| a.has_pair()).count();
        let attached = Arc::make_mut(&mut state.attached);
        attached.extend(unknown);
        attached.sort_by_key(|attachment| attachment.id);
    }
}

/// What this kernel can do, tried once a process and not once an interface; a missing feature is looked for again.
pub(crate) fn features(inline: bool) -> Result<Features, Error> {
    // With the namespace it was tried in: the kernel, when it clears one away, keeps everybody else from changing links, and
    // the first attach would wait for it.
    static ALL: OnceLock<(Features, Netns)> = OnceLock::new();
    if let Some((features, _)) = ALL.get() {
        return Ok(features.clone());
    }
    let netns = Netns::nameless("the probe's namespace")?;
    let features = Features::probe_in(&netns)?;
    features.need(inline)?;
    Ok(match features.need(true) {
        Ok(()) => ALL.get_or_init(|| (features, netns)).0.clone(),
        Err(_) => features,
    })
}
