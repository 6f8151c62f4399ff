//! What is attached, read from the kernel alone.

use std::collections::BTreeSet;
use std::fmt;

use crate::attach;
use crate::attr;
use crate::ids::{LEAVING, PORT_PREFIX, Record};
use crate::link::{self, Link};
use crate::session::Session;
use crate::socket::{Request, RouteSocket};
use crate::tc::{self, Hook};
use crate::{AttachmentId, BRIDGE, Error, MacAddr, Mode, Netns, NetnsId, Workload};

const RTM_GETNSID: u16 = 90;
/// Octets of `struct rtgenmsg`, padded.
const RTGENMSG: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Whether an attachment is all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything that can be seen from the host is in place.
    Whole,
    /// Something is missing.
    Damaged {
        /// What.
        why: String,
    },
}

/// An attached interface, as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its number, and with it the address that marks its frames.
    pub id: AttachmentId,
    /// How its frames reach the bridge.
    pub mode: Mode,
    /// Whose it is.
    pub workload: Workload,
    /// Its name inside the container.
    pub interface: String,
    /// Its own address, which frames on the bridge carry the mark instead of.
    pub mac: MacAddr,
    /// The link on the host that our rules are on: `nv-in-*` with a pair of ours, the host end of its own veth pair without.
    pub port: String,
    /// Largest packet. Unit: octets.
    pub mtu: u32,
    /// What the port counted; `nv-in-*` receives what the container sends and what it is sent.
    pub stats: crate::LinkStats,
    /// Whether it is all there.
    pub health: Health,
    /// What the attach that made it measured; `None` in a list, and in mirror mode, where nothing is exchanged.
    pub blackout: Option<crate::Blackout>,
    pub(crate) record: Record,
    pub(crate) port_index: u32,
}

/// Everything attached in `host`, by id.
///
/// # Errors
/// The kernel's lists could not be read.
pub fn list(host: &Netns) -> Result<Vec<Attachment>, Error> {
    read(&mut RouteSocket::open(host)?)
}

/// The links of a namespace, with their counters.
///
/// # Errors
/// The namespace could not be entered, or the list could not be read.
pub fn links(netns: &Netns) -> Result<Vec<Link>, Error> {
    link::all(&mut RouteSocket::open(netns)?)
}

/// How `host` numbers the namespace `of`; `None` when it has no number for it, as when no veth pair joins the two.
///
/// # Errors
/// The namespace could not be entered.
#[doc(alias = "RTM_GETNSID")]
pub fn number_of(host: &Netns, of: &Netns) -> Result<Option<i32>, Error> {
    nsid(&mut RouteSocket::open(host)?, of)
}

/// What is wrong with an attachment, looked at from inside its container too; `None` when it is whole.
///
/// # Errors
/// Its namespace could not be found or entered.
pub fn inspect(host: &Netns, attachment: &Attachment) -> Result<Option<String>, Error> {
    attach::inspect(host, attachment)
}

/// A filter of another tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignFilter {
    /// The link it is on.
    pub link: String,
    /// `ingress` or `egress`.
    pub hook: &'static str,
    /// Its preference; lower ones come first.
    pub pref: u16,
    /// What it classifies with: `bpf`, `u32`, `flower`.
    pub kind: String,
    /// Its name, where its kind has one.
    pub name: Option<String>,
}

impl fmt::Display for ForeignFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            link,
            hook,
            pref,
            kind,
            name,
        } = self;
        write!(f, "{kind} on {hook} of {link} (pref {pref}")?;
        match name {
            Some(name) => write!(f, ", {name})"),
            None => f.write_str(")"),
        }
    }
}

/// The filters that other tools have on clsact and ingress of a namespace's links.
///
/// # Errors
/// The namespace could not be entered, or the lists could not be read.
pub fn foreign_filters(netns: &Netns) -> Result<Vec<ForeignFilter>, Error> {
    let mut socket = RouteSocket::open(netns)?;
    let mut found = Vec::new();
    let qdiscs = tc::qdiscs(&mut socket)?;
    for link in link::all(&mut socket)? {
        let place = |q: &&tc::Qdisc| q.link == link.index && (q.is_clsact() || q.kind == "ingress");
        if qdiscs.iter().find(place).is_none() {
            continue;
        }
        for filter in tc::all_filters(&mut socket, link.index)? {
            if !filter.is_ours() {
                found.push(ForeignFilter {
                    link: link.name.clone(),
                    hook: filter.hook.name(),
                    pref: filter.pref,
                    kind: filter.kind,
                    name: filter.name,
                });
            }
        }
    }
    // A list has some kinds' tables beside their filters.
    found.dedup();
    Ok(found)
}

/// A thing that was left half-done, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Which.
    pub what: String,
    /// What was wrong, and what was done.
    pub done: String,
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.done)
    }
}

/// An original interface whose veth pair is gone, although it was attached inline.
///
/// Somebody deleted the pair by hand; or the runtime took the interface away from its container, found ours under the
/// name, and left the original where it was.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Orphan<'a> {
    /// Whose it is.
    pub workload: &'a Workload,
    /// The name it had before it was attached.
    pub interface: &'a str,
    /// Its address.
    pub mac: MacAddr,
    /// Another link of the container that has the same address.
    pub replaced_by: Option<&'a str>,
}

impl<'a> Orphan<'a> {
    /// One of this description.
    pub fn new(
        workload: &'a Workload,
        interface: &'a str,
        mac: MacAddr,
        replaced_by: Option<&'a str>,
    ) -> Self {
        Self {
            workload,
            interface,
            mac,
            replaced_by,
        }
    }
}

/// What is to become of an [`Orphan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It gets back its name, and its addresses and routes as they were when it was attached.
    Restore,
    /// It is deleted, for this reason: the runtime has taken it away from the container.
    Remove(String),
    /// Nothing is done, for this reason: nobody can tell.
    Leave(String),
}

/// Undoes what a process that was killed left half-done; what is whole is left as it is. An [`Orphan`] is restored.
///
/// # Errors
/// Something could not be undone; what was repaired before stays so.
pub fn repair(host: &Netns) -> Result<Vec<Repaired>, Error> {
    repair_with(host, &|_| Fate::Restore)
}

/// As [`repair`], for who knows what the runtime wants: `judge` says what becomes of an [`Orphan`].
///
/// # Errors
/// As [`repair`].
pub fn repair_with(
    host: &Netns,
    judge: &dyn Fn(&Orphan<'_>) -> Fate,
) -> Result<Vec<Repaired>, Error> {
    Session::open(host)?.repair_with(judge)
}

pub(crate) fn repair_in(
    session: &mut Session,
    judge: &dyn Fn(&Orphan<'_>) -> Fate,
) -> Result<Vec<Repaired>, Error> {
    let mut others = crate::netns::all();
    others.retain(|netns| netns != session.host.netns());
    repair_where(session, &others, judge, |_| true)
}

/// The same for the attachments of one namespace and for what nothing depends on yet: quick enough to be done ahead of
/// every attach, however much is attached.
///
/// # Errors
/// As [`repair`].
pub fn repair_target(host: &Netns, target: &Netns) -> Result<Vec<Repaired>, Error> {
    repair_target_in(&mut Session::open(host)?, target, &|_| Fate::Restore)
}

pub(crate) fn repair_target_in(
    session: &mut Session,
    target: &Netns,
    judge: &dyn Fn(&Orphan<'_>) -> Fate,
) -> Result<Vec<Repaired>, Error> {
    repair_where(session, std::slice::from_ref(target), judge, |attachment| {
        attachment.record.netns_ino == target.id().ino
    })
}

fn repair_where(
    session: &mut Session,
    targets: &[Netns],
    judge: &dyn Fn(&Orphan<'_>) -> Fate,
    wanted: impl Fn(&Attachment) -> bool,
) -> Result<Vec<Repaired>, Error> {
    let host = session.host.netns().clone();
    let mut repaired = Vec::new();
    // One that cannot be repaired does not keep the others from it.
    let mut failed: Option<Error> = None;
    let mut fails = |error: Error| {
        tracing::error!(error = attach::chain(&error), "could not repair");
        failed.get_or_insert(error);
    };
    let looked_at: Vec<Attachment> = session
        .attached()
        .iter()
        .filter(|attachment| wanted(attachment))
        .cloned()
        .collect();
    for attachment in looked_at {
        let why = match attach::inspect(&host, &attachment) {
            Ok(Some(why)) => why,
            Ok(None) => {
                match attach::follow_mtu(&host, &attachment) {
                    Ok(done) => repaired.extend(done),
                    Err(error) => fails(error),
                }
                continue;
            }
            Err(error) => {
                fails(error);
                continue;
            }
        };
        match session.detach(attachment.id) {
            Ok(()) => {
                let (interface, name) = (&attachment.interface, &attachment.workload.name);
                let what = format!("{interface} of {name} ({})", attachment.id);
                repaired.push(Repaired {
                    what,
                    done: format!("{why}; detached"),
                });
            }
            Err(error) => fails(error),
        }
    }
    for target in targets {
        let rescued = session.inside(target).and_then(|mut inside| {
            let rescued = attach::rescue(&mut inside, &session.attached(), judge);
            session.keep(inside);
            rescued
        });
        match rescued {
            Ok(rescued) => repaired.extend(rescued),
            // A namespace that may not be entered, or that went away meanwhile, is none of ours.
            Err(Error::Netns { .. }) => {}
            Err(error) => fails(error),
        }
    }
    repaired.extend(session.sweep()?);
    failed.map_or(Ok(repaired), Err)
}

pub(crate) fn is_stray(link: &Link) -> bool {
    let ours = link.is_in_our_group() && link.name.starts_with(PORT_PREFIX);
    ours && link.alias.as_deref().and_then(Record::decode).is_none()
}

/// See [`list`].
pub(crate) fn read(socket: &mut RouteSocket) -> Result<Vec<Attachment>, Error> {
    let links = link::all(socket)?;
    among(socket, &links)
}

/// What of `links` is attached; the bridge has to be among them.
pub(crate) fn among(socket: &mut RouteSocket, links: &[Link]) -> Result<Vec<Attachment>, Error> {
    let bridge = links
        .iter()
        .find(|link| link.name == BRIDGE && link.is_in_our_group());
    let mut found: Vec<Attachment> = links
        .iter()
        .filter_map(|link| inline(link, bridge))
        .collect();
    found.extend(mirrored(socket, links, bridge)?);
    found.sort_by_key(|attachment| attachment.id);
    Ok(found)
}

fn inline(link: &Link, bridge: Option<&Link>) -> Option<Attachment> {
    if !link.is_in_our_group() || !link.name.starts_with(PORT_PREFIX) {
        return None;
    }
    let record = Record::decode(link.alias.as_deref()?)?;
    let health = if !link.is_up() {
        Health::Damaged {
            why: format!("{} is down", link.name),
        }
    } else if link.group == LEAVING {
        Health::Damaged {
            why: format!("{} was to be deleted", link.name),
        }
    } else if bridge.is_none_or(|bridge| link.master != Some(bridge.index)) {
        Health::Damaged {
            why: format!("{} is no port of {BRIDGE}", link.name),
        }
    } else {
        Health::Whole
    };
    Some(Attachment::new(record, link, health))
}

fn mirrored(
    socket: &mut RouteSocket,
    links: &[Link],
    bridge: Option<&Link>,
) -> Result<Vec<Attachment>, Error> {
    let mut found = Vec::new();
    // Of one link it is asked whether it has clsact, of many it is looked for in the list of all.
    let clsact: BTreeSet<u32> = if links.len() <= 2 {
        links.iter().map(|link| link.index).collect()
    } else {
        let all = tc::qdiscs(socket)?;
        all.iter()
            .filter(|q| q.is_clsact())
            .map(|q| q.link)
            .collect()
    };
    for link in links
        .iter()
        .filter(|link| !link.is_in_our_group() && clsact.contains(&link.index))
    {
        let mut hooks = Vec::new();
        let mut record: Option<Record> = None;
        for filter in tc::all_filters(socket, link.index)? {
            let named = filter.name.as_deref().and_then(Record::decode);
            let here = |r: &Record| r.mode == Mode::Mirror && r.inside.is_none();
            if let Some(named) = named.filter(here) {
                hooks.push(filter.hook);
                record = Some(named);
            }
        }
        let Some(record) = record else { continue };
        let missing = [Hook::Ingress, Hook::Egress]
            .into_iter()
            .find(|hook| !hooks.contains(hook));
        let health = match missing {
            Some(hook) => Health::Damaged {
                why: format!("no filter on {} of {}", hook.name(), link.name),
            },
            None if bridge.is_none_or(|bridge| record.bridge != Some(bridge.index)) => {
                Health::Damaged {
                    why: format!("its filters send to a {BRIDGE} that is gone"),
                }
            }
            None => Health::Whole,
        };
        found.push(Attachment::new(record, link, health));
    }
    Ok(found)
}

impl Attachment {
    fn new(record: Record, port: &Link, health: Health) -> Self {
        Self {
            id: record.id,
            mode: record.mode,
            workload: record.workload.clone(),
            interface: record.interface.clone(),
            mac: record.mac,
            port: port.name.clone(),
            mtu: record.inside.unwrap_or(port.mtu),
            stats: port.stats,
            health,
            blackout: None,
            port_index: port.index,
            record,
        }
    }

    /// The kernel's number of [`port`](Self::port), which stays when that is renamed.
    pub const fn port_index(&self) -> u32 {
        self.port_index
    }

    /// When it was attached, in milliseconds since 1970: what has its mark and is older belongs to one that had the id before.
    pub fn since_ms(&self) -> Option<u64> {
        self.record.since
    }

    /// Whether its frames reach the bridge by a veth pair of ours, which takes a port there: inline always, in mirror mode
    /// where the container's interface has no end on this host.
    pub fn has_pair(&self) -> bool {
        self.mode == Mode::Inline || self.record.inside.is_some()
    }

    /// The inode of the container's namespace: whether it is a certain one can be told without looking for it.
    pub fn netns_inode(&self) -> u64 {
        self.record.netns_ino
    }

    /// The container's namespace, wherever something still holds it open.
    pub fn netns(&self) -> Option<Netns> {
        self.find_netns().ok().flatten()
    }

    /// The same; an error where it may be there and could not be looked for.
    pub(crate) fn find_netns(&self) -> Result<Option<Netns>, Error> {
        let id = NetnsId {
            dev: Netns::current()?.id().dev,
            ino: self.record.netns_ino,
        };
        let found = crate::netns::find(id, self.workload.pid).map_err(|source| Error::Netns {
            op: "look for",
            netns: self.workload.name.clone(),
            source,
        })?;
        let label = format!("the network of {}", self.workload.name);
        Ok(found.map(|netns| netns.labelled(&label)))
    }
}

/// How the socket's namespace numbers another one; `None` when it has no number for it.
pub(crate) fn nsid(socket: &mut RouteSocket, of: &Netns) -> Result<Option<i32>, Error> {
    use std::os::fd::{AsFd, AsRawFd};
    let mut body = vec![0; RTGENMSG];
    attr::push(&mut body, NETNSA_FD, &of.as_fd().as_raw_fd().to_ne_bytes());
    let answer = socket.get(&Request::raw("look up a namespace", RTM_GETNSID, 0, body))?;
    let id = attr::find_u32(answer.body.get(RTGENMSG..).unwrap_or_default(), NETNSA_NSID);
    Ok(id
        .map(|id| i32::from_ne_bytes(id.to_ne_bytes()))
        .filter(|id| *id >= 0))
}
