//! Several changes in a row, under one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;

use crate::features::Features;
use crate::ids::{AttachmentId, PORT_PREFIX};
use crate::inventory::{self, Attachment, Fate, Orphan, Repaired};
use crate::link::{self, Link};
use crate::lock::Lock;
use crate::socket::RouteSocket;
use crate::{BRIDGE, Error, Netns, attach};

/// Ports that a bridge can have: `BR_MAX_PORTS` of net/bridge/br_private.h, of which number 0 is none.
const BRIDGE_PORTS: usize = 1_023;

/// A host namespace whose attachments nobody else changes as long as this lives.
///
/// What is attached is read once, so that attaching the thousandth interface takes no longer than the first one. Other
/// processes wait meanwhile, and so does this one when it opens a second session of the same host.
#[must_use = "dropping a session lets go of its lock"]
pub struct Session {
    pub(crate) host: RouteSocket,
    /// As read when the session was opened, with what it changed since.
    attached: Vec<Attachment>,
    /// Ids of what is attached, planned, or in use by a link.
    taken: BTreeSet<AttachmentId>,
    /// Ports of the bridge.
    ports: usize,
    /// All ids below are taken.
    lowest: u16,
    /// Ports without a record, which nothing depends on yet; only a process that was killed leaves them.
    strays: Vec<(u32, String)>,
    has_bridge: bool,
    /// The number of the bridge, once this session made sure that it is whole.
    pub(crate) bridge: Option<u32>,
    /// In the namespace that was worked on last.
    inside: Option<RouteSocket>,
    _lock: Lock,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("host", self.host.netns())
            .field("attached", &self.attached.len())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Waits until no other process changes what is attached in `host`, and reads it.
    ///
    /// # Errors
    /// The namespace could not be locked or entered, or the kernel's lists could not be read.
    pub fn open(host: &Netns) -> Result<Self, Error> {
        let lock = Lock::of(host)?;
        let mut session = Self {
            host: RouteSocket::open(host)?,
            attached: vec![],
            taken: BTreeSet::new(),
            ports: 0,
            lowest: 1,
            strays: vec![],
            has_bridge: false,
            bridge: None,
            inside: None,
            _lock: lock,
        };
        session.refresh()?;
        Ok(session)
    }

    /// What is attached, by id.
    pub fn attached(&self) -> &[Attachment] {
        &self.attached
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
        self.detach_some(ids, &mut |_, _| Ok(()))
    }

    pub(crate) fn detach_observed(
        &mut self,
        id: AttachmentId,
        before: &mut dyn FnMut(usize, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.detach_some(&[id], before).into_iter().collect()
    }

    fn detach_some(
        &mut self,
        ids: &[AttachmentId],
        before: &mut dyn FnMut(usize, &str) -> Result<(), Error>,
    ) -> Vec<Result<(), Error>> {
        let wanted: BTreeSet<AttachmentId> = ids.iter().copied().collect();
        let (chosen, others): (Vec<_>, Vec<_>) =
            self.attached.iter().partition(|a| wanted.contains(&a.id));
        // By id, as `attached` is.
        let outcomes = attach::detach_locked(&mut self.host, &chosen, others.is_empty(), before);
        let mut of_each: BTreeMap<AttachmentId, Result<(), Error>> =
            chosen.iter().map(|a| a.id).zip(outcomes).collect();
        let is_gone = |id: &AttachmentId| of_each.get(id).is_some_and(Result::is_ok);
        for gone in self.attached.extract_if(.., |a| is_gone(&a.id)) {
            self.taken.remove(&gone.id);
            self.lowest = self.lowest.min(gone.id.number());
            self.ports -= usize::from(gone.has_pair() && self.ports > 0);
        }
        // It may be among what was deleted.
        self.bridge = None;
        ids.iter()
            .map(|id| {
                of_each
                    .remove(id)
                    .unwrap_or(Err(Error::NotAttached { id: *id }))
            })
            .collect()
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
        let links = link::all(&mut self.host)?;
        self.attached = inventory::among(&mut self.host, &links)?;
        let of_ports = links
            .iter()
            .filter_map(|l| l.name.strip_prefix(PORT_PREFIX)?.parse().ok());
        self.lowest = 1;
        self.taken = of_ports.chain(self.attached.iter().map(|a| a.id)).collect();
        let strays = links.iter().filter(|link| inventory::is_stray(link));
        self.strays = strays.map(|link| (link.index, link.name.clone())).collect();
        let bridge = links.iter().find(|link| link.name == BRIDGE);
        self.has_bridge = bridge.is_some();
        self.ports = bridge.map_or(0, |bridge| {
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
        let mut swept = Vec::new();
        for (index, name) in std::mem::take(&mut self.strays) {
            self.host.send(link::delete(index, &name))?;
            swept.push(Repaired {
                what: name,
                done: "had no record yet; deleted".into(),
            });
        }
        if self.has_bridge && self.attached.is_empty() {
            attach::remove_unused_bridge(&mut self.host)?;
            if link::by_name(&mut self.host, BRIDGE)?.is_none() {
                swept.push(Repaired {
                    what: BRIDGE.into(),
                    done: "nothing used it; deleted".into(),
                });
            }
        }
        if !swept.is_empty() {
            self.refresh()?;
        }
        Ok(swept)
    }

    /// An id that nothing has; nothing else gets it as long as the session lives.
    pub(crate) fn take_id(&mut self) -> Result<AttachmentId, Error> {
        let free = (self.lowest..=u16::MAX)
            .filter_map(AttachmentId::new)
            .find(|id| !self.taken.contains(id));
        let id = free.ok_or(Error::Exhausted {
            what: "id",
            taken: self.taken.len(),
        })?;
        self.taken.insert(id);
        self.lowest = id.number();
        Ok(id)
    }

    /// Refuses when the bridge has not as many free ports.
    pub(crate) fn need_ports(&self, wanted: usize) -> Result<(), Error> {
        if self.ports + wanted > BRIDGE_PORTS {
            return Err(Error::Exhausted {
                what: "port of nv-br, which takes 1,023",
                taken: self.ports,
            });
        }
        Ok(())
    }

    /// Takes note of what was attached.
    pub(crate) fn add(&mut self, new: &[Attachment]) {
        self.ports += new.iter().filter(|a| a.has_pair()).count();
        self.attached.extend_from_slice(new);
        self.attached.sort_by_key(|attachment| attachment.id);
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
