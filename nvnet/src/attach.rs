//! Attach and detach, as steps that can be shown before and taken back after.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::fmt;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use netlink_packet_route::tc::TcActionType;

use crate::bpf::{self, Way};
use crate::features::Features;
use crate::identity::{self, Everything, Identity};
use crate::ids::{self, GROUP, Record};
use crate::inventory::{self, Attachment, Fate, Health, Orphan, Repaired};
use crate::keep::Kept;
use crate::link::{self, Link, PairEnd};
use crate::probe::{Blackout, Prober, Told};
use crate::session::{self, Session, Shared, Turn};
use crate::socket::RouteSocket;
use crate::switch::{Means, Switch, add_early, early, wait_for_early};
use crate::tc::{self, Classifier, Filter, Hook, Mirred};
use crate::{AttachmentId, BRIDGE, Error, MAC_PREFIX, MacAddr, Mode, Netns, Workload, sysctl};

/// Largest MTU of a bridge: every port's frames fit.
const BRIDGE_MTU: u32 = 65_535;
/// What the kernel gives a veth end by itself.
const TAP_TXQLEN: u32 = 1_000;

/// What to attach, and how.
#[derive(Clone, Debug)]
#[must_use = "a plan changes nothing until it is checked and attached"]
pub struct Plan {
    host: Netns,
    pub(crate) target: Netns,
    workload: Workload,
    pub(crate) mode: Mode,
    interfaces: Vec<String>,
}

impl Plan {
    /// Attaches the interfaces of `target`, seen from `host`, as `workload`'s.
    pub fn new(host: &Netns, target: &Netns, workload: Workload) -> Self {
        Self {
            host: host.clone(),
            target: target.clone(),
            workload,
            mode: Mode::default(),
            interfaces: vec![],
        }
    }

    /// How; [`Mode::Inline`] unless said otherwise.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Attaches this interface, and others only when they are named too. Without any name: every Ethernet interface
    /// that is up.
    pub fn interface(mut self, name: &str) -> Self {
        self.interfaces.push(name.into());
        self
    }

    /// Looks whether it can be done, and how; changes nothing. Other processes wait with their changes until the
    /// checked plan is attached or dropped.
    ///
    /// # Errors
    /// Everything that can be known before: no such interface, attached already, a mode that would cut connections, a
    /// kernel without a feature, no free id.
    pub fn check(self) -> Result<CheckedPlan, Error> {
        let session = Session::open(&self.host)?;
        self.check_in(session)
    }

    /// The same in a session that is open already, which is dropped when it fails.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_in(self, mut session: Session) -> Result<CheckedPlan, Error> {
        if self.host == self.target || *session.host.netns() != self.host {
            return Err(Error::HostNetwork {
                netns: self.target.label().into(),
            });
        }
        for name in &self.interfaces {
            ids::check_name(name)?;
        }
        let features = session::features(self.mode == Mode::Inline)?;
        let mut target = session.inside(&self.target)?;
        check_bridge(&mut session.host)?;

        let links = link::all(&mut target)?;
        let chosen = choose(&links, &self.interfaces, self.target.label())?;
        let chosen = match self.free(&session.attached(), &chosen) {
            // The session may know of a container that ended since, and another have got its number.
            Err(_) => {
                session.refresh()?;
                self.free(&session.attached(), &chosen).map(|()| chosen)?
            }
            Ok(()) => chosen,
        };
        let mut interfaces = Vec::new();
        for link in chosen {
            let id = session.take_id()?;
            interfaces.push(self.check_interface(
                &mut session.host,
                &mut target,
                &links,
                link,
                id,
            )?);
        }
        let pairs = interfaces.iter().filter(|interface| interface.has_pair());
        session.take_ports(&pairs.map(|interface| interface.id).collect::<Vec<_>>())?;
        if interfaces.iter().any(Interface::has_pair) {
            features.need_pairs()?;
        }
        let steps = steps(&interfaces, &self.target);
        Ok(CheckedPlan {
            session,
            target,
            features,
            interfaces,
            steps,
            mode: self.mode,
        })
    }

    /// Whether none of the chosen is attached, or was left half-done.
    fn free(&self, attached: &[Attachment], chosen: &[&Link]) -> Result<(), Error> {
        let ino = self.target.id().ino;
        let netns = || self.target.label().to_owned();
        let mut here = attached.iter().filter(|a| a.record.netns_ino == ino);
        let already = |there: &Attachment| Error::AlreadyAttached {
            interface: there.interface.clone(),
            netns: netns(),
            id: there.id,
        };
        if chosen.is_empty() {
            return Err(here.next().map_or_else(
                || Error::Unfinished {
                    interface: "every interface".into(),
                    netns: netns(),
                },
                already,
            ));
        }
        if let Some(there) = here.find(|a| chosen.iter().any(|link| link.name == a.interface)) {
            return Err(already(there));
        }
        if let Some(ours) = chosen.iter().find(|link| is_ours(link)) {
            return Err(Error::Unfinished {
                interface: ours.name.clone(),
                netns: netns(),
            });
        }
        Ok(())
    }

    fn check_interface(
        &self,
        host: &mut RouteSocket,
        target: &mut RouteSocket,
        links: &[Link],
        link: &Link,
        id: AttachmentId,
    ) -> Result<Interface, Error> {
        let refuse = |why: String| Error::Unsafe {
            mode: self.mode,
            interface: link.name.clone(),
            netns: self.target.label().into(),
            why,
        };
        let mac = link
            .mac
            .ok_or_else(|| refuse("it has no Ethernet address".into()))?;
        let foreign = |standing: Vec<tc::Standing>| {
            standing
                .into_iter()
                .filter(|f| !f.is_ours())
                .collect::<Vec<_>>()
        };
        let behind = |hook: Hook| {
            refuse(format!(
                "another tool's filter stands first (pref 1) on its {}",
                hook.name()
            ))
        };
        let before_ours = |hook: Hook, on: &str| {
            refuse(format!(
                "a TCX program is attached to the {} of {on}: it comes before every filter, and what it ends would not reach ours",
                hook.name()
            ))
        };
        let record = |had_clsact| Record {
            id,
            mode: self.mode,
            interface: link.name.clone(),
            mac,
            ifindex: link.index,
            netns_ino: self.target.id().ino,
            addr_gen_mode: link.addr_gen_mode,
            had_clsact,
            bridge: None,
            inside: None,
            since: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| u64::try_from(since.as_millis()).ok()),
            workload: self.workload.clone(),
        };
        let place = match self.mode {
            Mode::Inline => {
                // The one in its place would be up, with what the kernel then adds by itself.
                if !link.is_up() {
                    return Err(Error::Down {
                        interfaces: vec![link.name.clone()],
                        netns: self.target.label().into(),
                    });
                }
                if !link.is_kind("veth") {
                    let kind = link.kind.as_deref().unwrap_or("physical");
                    return Err(refuse(format!(
                        "it is no veth but {kind}: what it receives depends on its addresses"
                    )));
                }
                if let Some(above) = identity::stacked_on(links, link).first() {
                    return Err(refuse(format!(
                        "`{}` stands on it and would lose its frames",
                        above.name
                    )));
                }
                if let Some(master) = link.master {
                    let master = links
                        .iter()
                        .find(|l| l.index == master)
                        .map_or("another link", |l| &l.name);
                    return Err(refuse(format!("it is a port of `{master}`")));
                }
                if !link.is_text {
                    return Err(refuse(
                        "its name or its alias is no UTF-8, and would not be put back as it is"
                            .into(),
                    ));
                }
                if link.has_xdp {
                    return Err(refuse("an XDP program is attached to it".into()));
                }
                let ingress = foreign(tc::filters(target, link.index, Hook::Ingress)?);
                let pref = tc::first_pref(&ingress).ok_or_else(|| behind(Hook::Ingress))?;
                if tc::has_tcx(target.netns(), link.index, Hook::Ingress)? {
                    return Err(before_ours(Hook::Ingress, &link.name));
                }
                let ex = ids::ex_name(&link.name);
                if let Some(there) = links.iter().find(|l| l.name == ex) {
                    return Err(Error::Foreign {
                        name: there.name.clone(),
                        netns: self.target.label().into(),
                        why: "no attachment of ours uses it".into(),
                    });
                }
                let had_clsact = tc::has_clsact(target, link.index)?;
                Place::Inline {
                    ex,
                    pref,
                    record: record(had_clsact),
                }
            }
            Mode::Mirror => {
                let port = host_end(host, &self.target, link)?;
                // Where the rules go: onto the host end, or where there is none onto the interface itself.
                let (rules, on) = match &port {
                    Some(port) => (host, port),
                    None => (target, link),
                };
                if link.is_l3s {
                    return Err(refuse(
                        "it is an ipvlan in mode l3s: what it receives passes no rule of its own"
                            .into(),
                    ));
                }
                let standing = tc::all_filters(rules, on.index)?;
                if port.is_none() && standing.iter().any(tc::Standing::is_our_rule) {
                    return Err(Error::Unfinished {
                        interface: link.name.clone(),
                        netns: self.target.label().into(),
                    });
                }
                let pref = |hook: Hook| {
                    let here = standing
                        .iter()
                        .filter(|f| f.hook == hook && !f.is_ours())
                        .cloned()
                        .collect::<Vec<_>>();
                    tc::first_pref(&here).ok_or_else(|| behind(hook))
                };
                let prefs = (pref(Hook::Ingress)?, pref(Hook::Egress)?);
                for hook in [Hook::Ingress, Hook::Egress] {
                    if tc::has_tcx(rules.netns(), on.index, hook)? {
                        return Err(before_ours(hook, &on.name));
                    }
                }
                let record = record(tc::has_clsact(rules, on.index)?);
                match port {
                    Some(port) => Place::Mirror {
                        port,
                        prefs,
                        record,
                    },
                    None => Place::Inside {
                        prefs,
                        record: Record {
                            inside: Some(link.mtu),
                            ..record
                        },
                    },
                }
            }
        };
        Ok(Interface {
            link: link.clone(),
            mac,
            id,
            place,
        })
    }
}

/// The interfaces to attach: those named, or all that carry frames; none when all that do are ours.
///
/// What stands on another interface of the container (VLANs, macvlans, bonds, bridges) is left out then: its frames are seen
/// on the one below. So are the ports of a bridge, by which the container serves others, unless there is nothing else.
fn choose<'l>(links: &'l [Link], names: &[String], netns: &str) -> Result<Vec<&'l Link>, Error> {
    let present = || {
        links
            .iter()
            .map(|link| link.name.clone())
            .collect::<Vec<_>>()
    };
    if names.is_empty() {
        let carries = |link: &&Link| link.is_ethernet() && link.is_up() && !is_ours(link);
        let has_ports = |link: &Link| links.iter().any(|l| l.master == Some(link.index));
        let is_above = |link: &Link| {
            let below = |l: &&Link| Some(l.index) == link.link && l.index != link.index;
            let here = link.link_netnsid.is_none() && !link.is_kind("veth");
            has_ports(link) || link.is_kind("bridge") || here && links.iter().any(|l| below(&l))
        };
        let is_port = |link: &Link| {
            let bridge = |l: &Link| Some(l.index) == link.master && l.is_kind("bridge");
            links.iter().any(bridge)
        };
        let mut chosen: Vec<_> = links.iter().filter(carries).collect();
        for other in [&is_above as &dyn Fn(&Link) -> bool, &is_port] {
            let fewer: Vec<_> = chosen.iter().copied().filter(|link| !other(link)).collect();
            if !fewer.is_empty() {
                chosen = fewer;
            }
        }
        if chosen.is_empty() && !links.iter().any(is_ours) {
            let ethernet = links.iter().filter(|link| link.is_ethernet());
            let down: Vec<String> = ethernet.map(|link| link.name.clone()).collect();
            if !down.is_empty() {
                return Err(Error::Down {
                    interfaces: down,
                    netns: netns.into(),
                });
            }
            return Err(Error::NothingToAttach {
                netns: netns.into(),
                present: present(),
            });
        }
        return Ok(chosen);
    }
    let mut chosen: Vec<&Link> = Vec::new();
    for name in names {
        let link = links
            .iter()
            .find(|link| link.name == *name)
            .ok_or_else(|| Error::NoSuchInterface {
                interface: name.clone(),
                netns: netns.into(),
                present: present(),
            })?;
        if link.is_loopback() || !link.is_ethernet() {
            return Err(Error::NothingToAttach {
                netns: netns.into(),
                present: vec![name.clone()],
            });
        }
        if !chosen.iter().any(|there| there.index == link.index) {
            chosen.push(link);
        }
    }
    Ok(chosen)
}

/// Whether we made a link, or hold it as the original of an attachment.
pub(crate) fn is_ours(link: &Link) -> bool {
    link.is_in_our_group() || link.alias.as_deref().and_then(Record::decode).is_some()
}

/// The other end of a veth pair, when it is in the host's namespace.
fn host_end(host: &mut RouteSocket, target: &Netns, link: &Link) -> Result<Option<Link>, Error> {
    let Some(peer) = link.link.filter(|_| link.is_kind("veth")) else {
        return Ok(None);
    };
    let Some(port) = link::by_index(host, peer)? else {
        return Ok(None);
    };
    let points_back = port.is_kind("veth") && port.link == Some(link.index);
    let there = inventory::nsid(host, target)?;
    Ok((points_back && there.is_some() && port.link_netnsid == there).then_some(port))
}

fn check_bridge(host: &mut RouteSocket) -> Result<Option<Link>, Error> {
    let bridge = link::by_name(host, BRIDGE)?;
    if let Some(bridge) = bridge
        .as_ref()
        .filter(|b| !b.is_in_our_group() || !b.is_kind("bridge"))
    {
        return Err(Error::Foreign {
            name: BRIDGE.into(),
            netns: host.netns().label().into(),
            why: format!("it is in link group {}, ours is {GROUP:#x}", bridge.group),
        });
    }
    Ok(bridge)
}

/// One interface of a plan.
#[derive(Clone, Debug)]
struct Interface {
    link: Link,
    mac: MacAddr,
    id: AttachmentId,
    place: Place,
}

impl Interface {
    /// Whether a veth pair is made for it.
    fn has_pair(&self) -> bool {
        !matches!(self.place, Place::Mirror { .. })
    }

    /// The name of the container end of that pair when it is made.
    fn container_end(&self) -> String {
        match self.place {
            Place::Inside { .. } => self.id.tap(),
            Place::Inline { .. } | Place::Mirror { .. } => self.id.tmp(),
        }
    }
}

/// Where its rules go.
#[derive(Clone, Debug)]
enum Place {
    Inline {
        ex: String,
        pref: u16,
        record: Record,
    },
    /// On the host end of the container's veth pair.
    Mirror {
        port: Link,
        prefs: (u16, u16),
        record: Record,
    },
    /// On the container's interface itself.
    Inside { prefs: (u16, u16), record: Record },
}

/// One step of a plan: what it does, and what takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    action: Action,
    /// Which interface of the plan.
    interface: usize,
    text: String,
    undo: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Bridge,
    Pair,
    Port,
    Inside,
    Early,
    Switch,
    Keep,
    Verify,
    Tap,
    Mirror(Way),
}

impl Step {
    /// What takes it back, in words.
    pub fn undo(&self) -> &str {
        &self.undo
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn steps(interfaces: &[Interface], target: &Netns) -> Vec<Step> {
    let netns = target.label();
    let mut steps = vec![Step {
        action: Action::Bridge,
        interface: 0,
        text: format!("create the bridge {BRIDGE} with its drop rules, if it is not there"),
        undo: format!("delete {BRIDGE} if nothing else uses it"),
    }];
    for (at, interface) in interfaces.iter().enumerate() {
        let mut step = |action, text: String, undo: &str| {
            steps.push(Step {
                action,
                interface: at,
                text,
                undo: undo.into(),
            });
        };
        let Interface {
            link,
            mac,
            id,
            place,
        } = interface;
        let name = &link.name;
        match place {
            Place::Inline { ex, .. } => {
                let (port, tmp) = (id.port(), id.tmp());
                let with_port = format!("goes with {port}");
                step(
                    Action::Pair,
                    format!(
                        "create the veth pair {port} (host) and {tmp} ({netns}), MAC {mac}, MTU {}",
                        link.mtu
                    ),
                    &format!("delete {port}"),
                );
                step(
                    Action::Port,
                    format!(
                        "make {port} an isolated port of {BRIDGE}; rules: mark {}, redirect to {BRIDGE}",
                        id.mac()
                    ),
                    &with_port,
                );
                step(
                    Action::Inside,
                    format!(
                        "give {tmp} the sysctls of {name}; rule: what it sends goes out through {name}; set it up"
                    ),
                    &with_port,
                );
                step(
                    Action::Early,
                    format!("add the IPv6 addresses of {name} to {tmp}"),
                    &with_port,
                );
                step(
                    Action::Switch,
                    format!(
                        "in one message: {name} becomes {ex}, {tmp} becomes {name} with its addresses, routes and neighbours; rule: what {ex} receives goes to {name}"
                    ),
                    &format!("in one message: all back onto {ex}, which becomes {name}"),
                );
                step(
                    Action::Keep,
                    format!(
                        "write a copy of its addresses and routes on {ex}, for the case that somebody deletes {port}"
                    ),
                    "goes with the rules on it",
                );
                step(
                    Action::Verify,
                    format!("compare {netns} with what it was"),
                    "nothing to undo",
                );
            }
            Place::Mirror { port, .. } => {
                let port = &port.name;
                let gone = format!("delete our filter of {port}");
                step(
                    Action::Mirror(Way::Leaves),
                    format!(
                        "copy what {name} sends from {port} to {BRIDGE}, marked {}",
                        id.mac()
                    ),
                    &gone,
                );
                step(
                    Action::Mirror(Way::Enters),
                    format!(
                        "copy what {name} receives from {port} to {BRIDGE}, marked {}",
                        id.mac()
                    ),
                    &gone,
                );
            }
            Place::Inside { .. } => {
                let (port, tap) = (id.port(), id.tap());
                let with_port = format!("goes with {port}");
                step(
                    Action::Pair,
                    format!("create the veth pair {port} (host) and {tap} ({netns})"),
                    &format!("delete {port}"),
                );
                step(
                    Action::Port,
                    format!(
                        "make {port} an isolated port of {BRIDGE}; rule: what is marked {} is redirected to {BRIDGE}, all else dropped",
                        id.mac()
                    ),
                    &with_port,
                );
                step(
                    Action::Tap,
                    format!("set {tap} up, without IPv6: nothing is sent through it but copies"),
                    &with_port,
                );
                let gone = format!("delete our filter of {name}");
                for (way, what) in [(Way::Leaves, "sends"), (Way::Enters, "receives")] {
                    step(
                        Action::Mirror(way),
                        format!("copy what {name} {what} to {tap}, marked {}", id.mac()),
                        &gone,
                    );
                }
            }
        }
    }
    steps
}

/// A plan that was found to be possible; it holds the lock of its host namespace.
#[must_use = "a checked plan changes nothing until it is attached"]
pub struct CheckedPlan {
    interfaces: Vec<Interface>,
    steps: Vec<Step>,
    mode: Mode,
    features: Features,
    session: Session,
    target: RouteSocket,
}

impl fmt::Debug for CheckedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedPlan")
            .field("mode", &self.mode)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl CheckedPlan {
    /// What will be done, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The link whose frames are copied for the first interface: the original inline, in mirror mode the other end of its pair or
    /// itself.
    pub(crate) fn observed_at(&self) -> Option<&str> {
        self.interfaces.first().map(|i| match &i.place {
            Place::Mirror { port, .. } => &port.name[..],
            Place::Inline { .. } | Place::Inside { .. } => &i.link.name,
        })
    }

    /// Does it. Either everything is attached afterwards, or everything is as it was.
    ///
    /// # Errors
    /// [`Error::Undone`] when a step failed and all was taken back, [`Error::RollbackIncomplete`] when that failed too.
    pub fn attach(self) -> Result<Vec<Attachment>, Error> {
        self.attach_observed(|_, _| Ok(()))
    }

    /// As [`attach`](Self::attach); the session goes on, and is dropped when it fails.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_in_session(self) -> Result<(Vec<Attachment>, Session), Error> {
        self.work(&mut |_, _| Ok(()))
    }

    /// Does nothing; the session goes on, and gives the ids that were planned to nothing else.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// As [`attach`](Self::attach), but asks `before` ahead of every step, with the number of the step; an error from it
    /// is a failure of that step.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_observed(
        self,
        mut before: impl FnMut(usize, &Step) -> Result<(), Error>,
    ) -> Result<Vec<Attachment>, Error> {
        self.work(&mut before).map(|(attached, _)| attached)
    }

    fn work(
        self,
        before: &mut dyn FnMut(usize, &Step) -> Result<(), Error>,
    ) -> Result<(Vec<Attachment>, Session), Error> {
        let Self {
            interfaces,
            steps,
            features,
            mut session,
            mut target,
            mode: _,
        } = self;
        let mut transaction = Transaction {
            host: &mut session.host,
            shared: &session.shared,
            turn: None,
            target: &mut target,
            features,
            new_links: BTreeMap::new(),
            settings: None,
            done: Vec::new(),
            measured: Vec::new(),
        };
        for (number, step) in steps.iter().enumerate() {
            let interface = &interfaces[step.interface];
            let span =
                tracing::debug_span!("attach", interface = interface.link.name, step = step.text);
            let _entered = span.enter();
            if let Err(error) = before(number, step).and_then(|()| transaction.run(step, interface))
            {
                return Err(transaction.abort(error));
            }
        }
        let mut measured = transaction.finish();
        let mut attached = Vec::new();
        for interface in &interfaces {
            let port = match &interface.place {
                Place::Inline { .. } | Place::Inside { .. } => {
                    existing(&mut session.host, &interface.id.port())?
                }
                Place::Mirror { port, .. } => existing(&mut session.host, &port.name)?,
            };
            let bridge = existing(&mut session.host, BRIDGE)?;
            let there = inventory::among(&mut session.host, &[port, bridge])?;
            attached.extend(there.into_iter().filter(|a| a.id == interface.id));
        }
        for attachment in &mut attached {
            let at = measured.iter().position(|(id, _)| *id == attachment.id);
            attachment.blackout = at.map(|at| measured.swap_remove(at).1);
        }
        session.add(&attached);
        Ok((attached, session))
    }
}

/// A change that was made, with what is needed to take it back.
enum Done {
    Bridge,
    Pair {
        port: String,
    },
    Switch {
        switch: Box<Switch>,
        before: Box<Before>,
    },
    /// On the host, or inside the container.
    Mirror {
        port: Link,
        id: AttachmentId,
        had_clsact: bool,
        inside: bool,
    },
}

impl Done {
    fn left(&self) -> String {
        match self {
            Self::Bridge => BRIDGE.into(),
            Self::Pair { port } => port.clone(),
            Self::Switch { switch, .. } => {
                format!("{} in place of {}", switch.new.tmp(), switch.name)
            }
            Self::Mirror { port, .. } => format!("our filters on {}", port.name),
        }
    }
}

/// What an interface was before it was touched.
struct Before {
    identity: Identity,
    settings: Settings,
    /// Looked at on the way there only.
    surroundings: Option<Surroundings>,
}

/// The sysctls of an interface, as far as they are given to the one that takes its place.
struct Settings {
    /// Of IPv4 and IPv6, as its link tells them ([`Link::settings`]): there are a hundred of them, and to read each from its
    /// file takes as long as the exchange itself.
    of_addresses: Vec<u8>,
    of_neighbours: sysctl::Settings,
}

impl Settings {
    fn read(netns: &Netns, link: &Link) -> Result<Self, Error> {
        Ok(Self {
            of_addresses: link.settings.clone(),
            of_neighbours: sysctl::read(netns, &link.name, &sysctl::OF_NEIGHBOURS)?,
        })
    }

    /// In what `holder` differs; `other` has been given the same.
    fn differences(
        &self,
        target: &mut RouteSocket,
        holder: u32,
        other: u32,
    ) -> Result<Vec<String>, Error> {
        let netns = target.netns().clone();
        let Some(holder) = link::by_index(target, holder)? else {
            return Ok(vec!["without the interface".into()]);
        };
        let mut was = self.of_neighbours.clone();
        let mut is = sysctl::read(&netns, &holder.name, &sysctl::OF_NEIGHBOURS)?;
        if holder.settings != self.of_addresses {
            let Some(other) = link::by_index(target, other)? else {
                return Ok(vec!["with other sysctls".into()]);
            };
            was.extend(sysctl::read(&netns, &other.name, &sysctl::OF_ADDRESSES)?);
            is.extend(sysctl::read(&netns, &holder.name, &sysctl::OF_ADDRESSES)?);
        }
        let [was, is] = [was, is].map(|s| sysctl::describe(&s).collect::<BTreeSet<_>>());
        let missing = was.difference(&is);
        Ok(missing.map(|line| format!("without {line}")).collect())
    }
}

/// The trees of sysctls in which two links may differ.
fn unequal(one: &Link, other: &Link) -> &'static [usize] {
    if one.settings == other.settings {
        &sysctl::OF_NEIGHBOURS
    } else {
        &sysctl::ALL
    }
}

/// All in a namespace that an exchange of two of its links must leave alone.
struct Surroundings {
    links: BTreeSet<String>,
    identity: Identity,
}

impl Surroundings {
    /// Of every link but these two.
    fn of(links: &[Link], everything: &Everything, but: [u32; 2]) -> Self {
        let others = links.iter().filter(|link| !but.contains(&link.index));
        let indices: Vec<u32> = others.clone().map(|link| link.index).collect();
        let links = others.map(|link| format!("{} (number {})", properties(link), link.index));
        Self {
            links: links.collect(),
            identity: everything.of(&indices),
        }
    }

    /// What was there `before` and is not any more. What came meanwhile was brought by others.
    fn lost(&self, before: &Self, exchanged: [u32; 2]) -> Vec<String> {
        let (was, is) = [before, self]
            .map(|s| s.identity.describe(&exchanged))
            .into();
        let links = before.links.difference(&self.links).cloned();
        links
            .chain(was.difference(&is).map(|line| without_octets(line)))
            .map(|line| format!("without {line}"))
            .collect()
    }
}

/// What a link has of its own, as far as it is given to the one that takes its place.
fn properties(link: &Link) -> String {
    format!(
        "link {} {} MAC {} MTU {} queue {} alias {:?}",
        link.name,
        if link.is_up() { "up" } else { "down" },
        link.mac
            .map_or_else(|| "none".into(), |mac| mac.to_string()),
        link.mtu,
        link.txqlen,
        link.alias.as_deref().unwrap_or_default(),
    )
}

/// A line of [`Identity::describe`] as people read it.
fn without_octets(line: &str) -> String {
    line.split(" [").next().unwrap_or_default().to_owned()
}

/// The changes made so far; what is not committed is taken back, newest first.
struct Transaction<'s> {
    host: &'s mut RouteSocket,
    shared: &'s Shared,
    turn: Option<Turn<'s>>,
    target: &'s mut RouteSocket,
    features: Features,
    /// The container ends of the pairs made.
    new_links: BTreeMap<AttachmentId, Link>,
    /// The sysctls for neighbours that the interface in work had, and the new one was given.
    settings: Option<sysctl::Settings>,
    done: Vec<Done>,
    measured: Vec<(AttachmentId, Blackout)>,
}

impl Transaction<'_> {
    fn run(&mut self, step: &Step, interface: &Interface) -> Result<(), Error> {
        match (step.action, &interface.place) {
            (Action::Bridge, _) => {
                self.begin();
                self.done.push(Done::Bridge);
                let bridge = ensure_bridge(self.host, self.shared.bridge())?;
                self.shared.set_bridge(Some(bridge));
                Ok(())
            }
            (Action::Pair, Place::Inline { .. } | Place::Inside { .. }) => self.pair(interface),
            (Action::Port, Place::Inline { record, .. } | Place::Inside { record, .. }) => {
                self.port(interface, record)
            }
            (Action::Tap, Place::Inside { .. }) => self.tap(interface),
            (Action::Inside, Place::Inline { .. }) => self.inside(interface),
            (Action::Early, Place::Inline { .. }) => {
                let new = self.new_link(interface)?.index;
                let identity = Identity::read_addresses(self.target, &[interface.link.index])?;
                self.begin();
                add_early(self.target, &identity, new)?;
                self.end();
                wait_for_early(self.target, &identity, new)
            }
            (Action::Switch, Place::Inline { ex, pref, record }) => {
                self.switch(interface, ex, *pref, record)
            }
            (Action::Keep, Place::Inline { .. }) => self.keep(),
            (Action::Verify, Place::Inline { .. }) => self.verify(interface),
            (
                Action::Mirror(way),
                Place::Mirror {
                    port,
                    prefs,
                    record,
                },
            ) => self.mirror(interface, way, port, *prefs, record),
            (Action::Mirror(way), Place::Inside { prefs, record }) => {
                self.mirror(interface, way, &interface.link, *prefs, record)
            }
            (action, place) => unreachable!("{action:?} is no step of {place:?}"),
        }
    }

    /// Waits until no other thread changes the kernel's network, unless this one does already.
    fn begin(&mut self) {
        let shared = self.shared;
        self.turn.get_or_insert_with(|| shared.turn());
    }

    fn end(&mut self) {
        self.turn = None;
    }

    /// Lets others change the network, and tells what was measured.
    fn finish(self) -> Vec<(AttachmentId, Blackout)> {
        self.measured
    }

    fn pair(&mut self, interface: &Interface) -> Result<(), Error> {
        // Up to the step that writes the record: without one a pair is what a killed process left.
        self.begin();
        let Interface { link, mac, id, .. } = interface;
        let (port, there) = (id.port(), interface.container_end());
        // Copies are of whatever length the interface gets to send.
        let copies = matches!(interface.place, Place::Inside { .. });
        let end = |name| PairEnd {
            name,
            mac: if copies { tap_mac(*id) } else { *mac },
            mtu: if copies { BRIDGE_MTU } else { link.mtu },
            txqlen: if copies { TAP_TXQLEN } else { link.txqlen },
        };
        let host_mac = PairEnd {
            mac: host_mac(*id),
            ..end(&port)
        };
        let netns = self.target.netns().clone();
        self.host
            .send(link::add_pair(&host_mac, &end(&there), netns.as_fd()))?;
        self.done.push(Done::Pair { port });
        Ok(())
    }

    fn port(&mut self, interface: &Interface, record: &Record) -> Result<(), Error> {
        let Interface { mac, id, .. } = interface;
        let name = id.port();
        let name = &name;
        let port = existing(self.host, name)?.index;
        let bridge = self.bridge()?;
        let copies = matches!(interface.place, Place::Inside { .. });
        let program = if copies {
            bpf::load(c"nv_marked", &bpf::only_marked(*id, bridge))?
        } else {
            bpf::load(c"nv_mark", &bpf::mark(*id, *mac))?
        };
        let redirect = (!copies).then_some(Mirred::IngressRedirect(bridge));
        let mark = Filter {
            link: port,
            hook: Hook::Ingress,
            pref: tc::PREF,
            classifier: Classifier::Ebpf(program.as_fd()),
            name: format!("{} mark id={id}", tc::NAME),
            class: id.number(),
            mirred: redirect.into_iter().collect(),
            then: TcActionType::Stolen,
            // The program that drops what is not marked redirects by itself.
            direct_action: copies,
        };
        let mut batch = vec![link::alias(port, name, &record.encode())];
        if sysctl::has_ipv6(self.host.netns())? {
            batch.push(link::addr_gen_mode(port, name, link::ADDR_GEN_MODE_NONE));
        }
        batch.extend([
            link::master(port, name, bridge),
            link::isolate(port, name),
            tc::add_clsact(port, name),
            tc::drop_all(port, Hook::Egress, format!("{} drop", tc::NAME)).add(name),
            mark.add(name),
            link::up(port, name),
        ]);
        self.host.batch(&batch)
    }

    fn inside(&mut self, interface: &Interface) -> Result<(), Error> {
        self.end();
        let Interface { link, .. } = interface;
        let new = self.new_link(interface)?.clone();
        let name = &new.name;
        let netns = self.target.netns().clone();
        let mut settings = sysctl::copy(&netns, &link.name, name, unequal(link, &new))?;
        settings.retain(|(tree, _), _| sysctl::OF_NEIGHBOURS.contains(tree));
        self.settings = Some(settings);
        let program = bpf::load(c"nv_leaves", &bpf::not_from(link.index))?;
        let leaves = Filter {
            link: new.index,
            hook: Hook::Egress,
            pref: tc::PREF,
            classifier: Classifier::Ebpf(program.as_fd()),
            name: format!("{} leaves", tc::NAME),
            class: bpf::LEAVES,
            mirred: vec![Mirred::EgressMirror(link.index)],
            then: TcActionType::Ok,
            direct_action: false,
        };
        // What is left on this hook are copies, which get their class and go on to the host.
        let classes = bpf::load(c"nv_copied", &bpf::copied(interface.mac))?;
        let copied = Filter {
            link: new.index,
            hook: Hook::Egress,
            pref: tc::PREF + 1,
            classifier: Classifier::Ebpf(classes.as_fd()),
            name: format!("{} copied", tc::NAME),
            class: bpf::ENTERED,
            mirred: vec![],
            then: TcActionType::Ok,
            direct_action: false,
        };
        let mut batch = Vec::new();
        if sysctl::has_ipv6(&netns)? {
            batch.push(link::addr_gen_mode(
                new.index,
                name,
                link::ADDR_GEN_MODE_NONE,
            ));
        }
        if let Some(alias) = &link.alias {
            batch.push(link::alias(new.index, name, alias));
        }
        batch.extend([
            tc::add_clsact(new.index, name),
            leaves.add(name),
            copied.add(name),
            link::up(new.index, name),
            // A queueing discipline can reset it.
            link::txqlen(new.index, name, link.txqlen),
        ]);
        self.begin();
        self.target.batch(&batch)?;
        self.end();
        Ok(())
    }

    /// The container end of the pair that copies leave by.
    fn tap(&mut self, interface: &Interface) -> Result<(), Error> {
        let new = self.new_link(interface)?.clone();
        let netns = self.target.netns().clone();
        sysctl::silence(&netns, &new.name)?;
        self.target.send(link::up(new.index, &new.name))
    }

    fn switch(
        &mut self,
        interface: &Interface,
        ex: &str,
        pref: u16,
        record: &Record,
    ) -> Result<(), Error> {
        let Interface { link, id, .. } = interface;
        let new = self.new_link(interface)?.index;
        let netns = self.target.netns().clone();
        let settings = self.settings.take();
        // From here on, so that the probes are not kept waiting.
        self.begin();
        let end = host_end(self.host, &netns, link);
        let addresses = Identity::read_addresses(self.target, &[link.index])?;
        // It works while the rest is read.
        let prober = self.prober(end, &addresses, interface.mac);
        let links = link::all(self.target)?;
        let now = links.iter().find(|now| now.index == link.index);
        let settings = match settings {
            Some(of_neighbours) => Settings {
                of_addresses: now.unwrap_or(link).settings.clone(),
                of_neighbours,
            },
            None => Settings::read(&netns, now.unwrap_or(link))?,
        };
        // Last, so that it is as new as can be.
        let everything = Everything::read(self.target)?;
        let before = Before {
            surroundings: Some(Surroundings::of(&links, &everything, [link.index, new])),
            settings,
            identity: everything.of(&[link.index]),
        };
        let prober = prober.and_then(Prober::ready);
        let switch = Switch {
            name: link.name.clone(),
            ex: ex.into(),
            original: link.index,
            new: *id,
            new_index: new,
            alias: link.alias.clone(),
            txqlen: link.txqlen,
            addr_gen_mode: link.addr_gen_mode,
            had_clsact: record.had_clsact,
            pref,
            means: Means::from(&self.features),
        };
        // Before it is tried: something may have changed even if it fails, as the kernel goes on behind a refused request.
        let Done::Switch { switch, before } = self.done.push_mut(Done::Switch {
            switch: Box::new(switch),
            before: Box::new(before),
        }) else {
            unreachable!("it was just pushed")
        };
        let took = switch.forward(self.target, &before.identity, &record.encode())?;
        let probe = match prober.map(|prober| prober.finish(took.start)) {
            Ok(Told::Answered(probed)) => Ok(probed),
            Ok(Told::Silent(waited)) => {
                return Err(Error::Silent {
                    interface: link.name.clone(),
                    netns: netns.label().into(),
                    waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                });
            }
            Ok(Told::Nothing(why)) | Err(why) => Err(why),
        };
        self.end();
        let blackout = Blackout {
            switch: took.end - took.start,
            probe,
        };
        tracing::debug!(?blackout, "switched");
        self.measured.push((*id, blackout));
        Ok(())
    }

    fn keep(&mut self) -> Result<(), Error> {
        let Some(Done::Switch { switch, before }) = self.done.last() else {
            unreachable!("the step before was the switch")
        };
        let kept = Kept {
            identity: before.identity.with_followers(self.target)?,
            txqlen: switch.txqlen,
            alias: switch.alias.clone(),
        };
        if !kept.write(self.target, switch.new, switch.original, &switch.ex)? {
            tracing::warn!(
                interface = switch.name,
                "too many routes: no copy is kept, and who deletes the port by hand deletes them too"
            );
        }
        Ok(())
    }

    /// Something that probes the interface while it is exchanged, or why there is none. Not being able to measure is
    /// no reason not to attach.
    fn prober(
        &mut self,
        end: Result<Option<Link>, Error>,
        addresses: &Identity,
        mac: MacAddr,
    ) -> Result<Prober, String> {
        let end = end.map_err(|error| chain(&error))?;
        let end = end.ok_or("the other end of its veth pair is not on this host")?;
        let ipv4 = addresses.ipv4().ok_or("it has no IPv4 address")?;
        Prober::start(self.host.netns(), &end, mac, ipv4)
    }

    /// Whether the namespace is as it was, but for the original's name and for the new link in its place.
    fn verify(&mut self, interface: &Interface) -> Result<(), Error> {
        let Some(Done::Switch { switch, before }) = self.done.last() else {
            unreachable!("the step before was the switch")
        };
        let link = &interface.link;
        let (old, new) = (switch.original, switch.new_index);
        let now = compare(self.target, &link.name, before, old, new, new)?;
        let links = link::all(self.target)?;
        let mut differences = Vec::new();
        let (was, is) = (
            properties(link),
            links
                .iter()
                .find(|link| link.index == new)
                .map_or_else(|| "gone".into(), properties),
        );
        if was != is {
            differences.push(format!("{was} would be {is}"));
        }
        let leftover = now.of(&[old]);
        let left = leftover.address_count() + leftover.route_count();
        if left > 0 {
            differences.push(format!("{left} addresses and routes left on {}", switch.ex));
        }
        if let Some(surroundings) = &before.surroundings {
            let now = Surroundings::of(&links, &now, [old, new]);
            differences.extend(now.lost(surroundings, [old, new]));
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Changed {
            interface: link.name.clone(),
            netns: self.target.netns().label().into(),
            differences,
        })
    }

    fn mirror(
        &mut self,
        interface: &Interface,
        way: Way,
        port: &Link,
        prefs: (u16, u16),
        record: &Record,
    ) -> Result<(), Error> {
        self.begin();
        let inside = record.inside.is_some();
        let id = interface.id;
        // What the host end receives the container has sent; on the interface itself it is the other way round.
        let (hook, pref) = match (way, inside) {
            (Way::Leaves, false) | (Way::Enters, true) => (Hook::Ingress, prefs.0),
            (Way::Enters, false) | (Way::Leaves, true) => (Hook::Egress, prefs.1),
        };
        let (to, program) = if inside {
            let tap = self.new_link(interface)?.index;
            (tap, bpf::mirror_through(id, tap, way))
        } else {
            let bridge = self.bridge()?;
            (bridge, bpf::mirror(id, bridge, way))
        };
        let program = bpf::load(c"nv_mirror", &program)?;
        let filter = Filter {
            link: port.index,
            hook,
            pref,
            classifier: Classifier::Ebpf(program.as_fd()),
            name: Record {
                bridge: Some(to),
                ..record.clone()
            }
            .encode(),
            class: 0,
            mirred: vec![],
            then: TcActionType::Unspec,
            direct_action: true,
        };
        let mut batch = Vec::new();
        if way == Way::Leaves && !record.had_clsact {
            batch.extend(tc::add_clsact_to_foreign(
                port.index,
                &port.name,
                port.txqlen,
            ));
        }
        batch.push(filter.add(&port.name));
        if way == Way::Leaves {
            let done = Done::Mirror {
                port: port.clone(),
                id,
                had_clsact: record.had_clsact,
                inside,
            };
            self.done.push(done);
        }
        if inside {
            self.target.batch(&batch)
        } else {
            self.host.batch(&batch)
        }
    }

    /// The new container end, as it was made.
    fn new_link(&mut self, interface: &Interface) -> Result<&Link, Error> {
        match self.new_links.entry(interface.id) {
            Entry::Occupied(there) => Ok(there.into_mut()),
            Entry::Vacant(free) => {
                let port = existing(self.host, &interface.id.port())?;
                let index = port.link.unwrap_or_default();
                let link = link::by_index(self.target, index)?;
                let link = link.ok_or_else(|| Error::NoSuchInterface {
                    interface: interface.container_end(),
                    netns: self.target.netns().label().into(),
                    present: vec![],
                })?;
                Ok(free.insert(link))
            }
        }
    }

    /// The number of the bridge, which the first step made.
    fn bridge(&mut self) -> Result<u32, Error> {
        match self.shared.bridge() {
            Some(bridge) => Ok(bridge),
            None => Ok(existing(self.host, BRIDGE)?.index),
        }
    }

    /// Takes everything back, newest first, and says what became of it.
    fn abort(mut self, cause: Error) -> Error {
        self.begin();
        let (mut undone, mut left) = (0, Vec::new());
        while let Some(done) = self.done.pop() {
            match self.undo(&done) {
                Ok(()) => undone += 1,
                Err(error) => {
                    tracing::error!(error = %crate::attach::chain(&error), what = done.left(), "could not undo");
                    left.push(done.left());
                }
            }
        }
        let source = Box::new(cause);
        if left.is_empty() {
            Error::Undone { undone, source }
        } else {
            Error::RollbackIncomplete { left, source }
        }
    }

    fn undo(&mut self, done: &Done) -> Result<(), Error> {
        match done {
            Done::Bridge => remove_unused_bridge(self.host),
            Done::Pair { port } => delete_link(self.host, port),
            Done::Switch { switch, before } => {
                // A refusal on the way back counts only if something is not as it was.
                let back = switch.back(self.target, &before.identity);
                compare(
                    self.target,
                    &switch.name,
                    before,
                    switch.original,
                    switch.new_index,
                    switch.original,
                )?;
                let standing = tc::all_filters(self.target, switch.original)?;
                if standing.iter().any(tc::Standing::is_ours) {
                    back
                } else {
                    Ok(())
                }
            }
            Done::Mirror {
                port,
                id,
                had_clsact,
                inside,
            } => {
                let socket = if *inside {
                    &mut *self.target
                } else {
                    &mut *self.host
                };
                delete_mirror(socket, port, *id, *had_clsact)
            }
        }
    }
}

/// The address of the host end: ours, with the id, and locally administered like the mark.
fn host_mac(id: AttachmentId) -> MacAddr {
    let [.., hi, lo] = id.mac().0;
    MacAddr([0x4e, 0x76, MAC_PREFIX[2], MAC_PREFIX[3], hi, lo])
}

/// The address of the container end of a pair that copies leave by.
fn tap_mac(id: AttachmentId) -> MacAddr {
    let [a, _, c, d, hi, lo] = host_mac(id).0;
    MacAddr([a, 0x77, c, d, hi, lo])
}

/// An error and what is behind it, on one line.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn existing(socket: &mut RouteSocket, name: &str) -> Result<Link, Error> {
    link::by_name(socket, name)?.ok_or_else(|| Error::NoSuchInterface {
        interface: name.into(),
        netns: socket.netns().label().into(),
        present: vec![],
    })
}

fn delete_link(socket: &mut RouteSocket, name: &str) -> Result<(), Error> {
    match link::by_name(socket, name)? {
        Some(link) => socket.send(link::delete(link.index, name)),
        None => Ok(()),
    }
}

/// Makes the bridge, or finishes one that was left half-made; that of the number `known` is whole. Returns its number.
fn ensure_bridge(host: &mut RouteSocket, known: Option<u32>) -> Result<u32, Error> {
    let there = check_bridge(host)?;
    if let Some(there) = there.as_ref().filter(|there| known == Some(there.index)) {
        return Ok(there.index);
    }
    if there.is_none() {
        host.send(link::add_bridge(
            BRIDGE,
            MacAddr([
                MAC_PREFIX[0],
                MAC_PREFIX[1],
                MAC_PREFIX[2],
                MAC_PREFIX[3],
                0,
                0,
            ]),
        ))?;
    }
    let bridge = existing(host, BRIDGE)?;
    let standing = tc::all_filters(host, bridge.index)?;
    let mut batch = Vec::new();
    if sysctl::has_ipv6(host.netns())? {
        batch.push(link::addr_gen_mode(
            bridge.index,
            BRIDGE,
            link::ADDR_GEN_MODE_NONE,
        ));
    }
    if bridge.mtu != BRIDGE_MTU {
        // In a message of its own: only then it is kept when ports with smaller ones come and go.
        batch.push(link::mtu(bridge.index, BRIDGE, BRIDGE_MTU));
    }
    batch.push(link::no_snooping(bridge.index, BRIDGE));
    if !tc::has_clsact(host, bridge.index)? {
        batch.push(tc::add_clsact(bridge.index, BRIDGE));
    }
    for hook in [Hook::Egress, Hook::Ingress] {
        if !standing
            .iter()
            .any(|filter| filter.hook == hook && filter.is_ours())
        {
            batch.push(tc::drop_all(bridge.index, hook, format!("{} drop", tc::NAME)).add(BRIDGE));
        }
    }
    batch.push(link::up(bridge.index, BRIDGE));
    host.batch(&batch)?;
    Ok(bridge.index)
}

/// Deletes the bridge when it has no port and no mirror rule leads to it.
pub(crate) fn remove_unused_bridge(host: &mut RouteSocket) -> Result<(), Error> {
    delete_unused(host, &mut vec![], true)
}

/// Deletes these links of ours, and with them the bridge if `all` is detached and nothing else uses it.
fn delete_unused(
    host: &mut RouteSocket,
    unused: &mut Vec<(u32, String)>,
    all: bool,
) -> Result<(), Error> {
    if let Some(bridge) = all.then(|| check_bridge(host)).transpose()?.flatten() {
        let mut links = link::all(host)?;
        links.retain(|link| unused.iter().all(|(index, _)| *index != link.index));
        let ports = links.iter().any(|link| link.master == Some(bridge.index));
        if !ports && inventory::among(host, &links)?.is_empty() {
            unused.push((bridge.index, BRIDGE.into()));
        }
    }
    host.batch(&link::delete_together(unused))
}

/// Whether `holder` has what the interface had before; takes away what the kernel added by itself. Returns what there is
/// in the namespace now.
fn compare(
    target: &mut RouteSocket,
    name: &str,
    before: &Before,
    original: u32,
    new: u32,
    holder: u32,
) -> Result<Everything, Error> {
    let both = [original, new];
    let wanted = before.identity.describe(&both);
    let mut everything = Everything::read(target)?;
    let mut identity = everything.of(&[holder]);
    let surplus = identity.surplus(&before.identity, &both);
    if !surplus.is_empty() {
        target.batch(&surplus)?;
        everything = Everything::read(target)?;
        identity = everything.of(&[holder]);
    }
    let present = identity.describe(&both);
    let mut differences: Vec<String> = wanted
        .difference(&present)
        .map(|line| format!("without {}", without_octets(line)))
        .collect();
    // A temporary address is an ordinary one on another link, and the kernel makes a new temporary one beside it.
    let brought = before.identity.temporary();
    let added = present
        .difference(&wanted)
        .map(|line| without_octets(line))
        .filter(|line| !brought.contains(line));
    differences.extend(added.map(|line| format!("with {line}")));
    let other = if holder == new { original } else { new };
    differences.extend(before.settings.differences(target, holder, other)?);
    if differences.is_empty() {
        return Ok(everything);
    }
    tracing::debug!(?wanted, ?present, "the network differs");
    Err(Error::Changed {
        interface: name.into(),
        netns: target.netns().label().into(),
        differences,
    })
}

fn delete_mirror(
    host: &mut RouteSocket,
    port: &Link,
    id: AttachmentId,
    had_clsact: bool,
) -> Result<(), Error> {
    if link::by_index(host, port.index)?.is_none() {
        return Ok(());
    }
    let standing = tc::all_filters(host, port.index)?;
    let of_id = |filter: &tc::Standing| {
        filter
            .name
            .as_deref()
            .and_then(Record::decode)
            .is_some_and(|record| record.id == id)
    };
    let mut batch = tc::delete(&standing, &port.name, of_id);
    if standing.iter().all(of_id) && !had_clsact && tc::has_clsact(host, port.index)? {
        batch.push(tc::delete_clsact(port.index, &port.name));
    }
    host.batch(&batch)
}

/// Takes one attachment back: the container's network is as it was before.
///
/// # Errors
/// There is no such attachment, its namespace cannot be found, or the kernel refused; it can be tried again.
pub fn detach(host: &Netns, id: AttachmentId) -> Result<(), Error> {
    detach_observed(host, id, |_, _| Ok(()))
}

/// As [`detach`], but asks `before` ahead of every step, with its number and what it does; an error from it ends the
/// work there.
///
/// # Errors
/// As [`detach`].
pub fn detach_observed(
    host: &Netns,
    id: AttachmentId,
    mut before: impl FnMut(usize, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    Session::open(host)?.detach_observed(id, &mut before)
}

/// Deletes what is left of attachments whose containers are put back; the outcome of each, in their order. `alone`: nothing
/// else is attached.
///
/// It is of no use to anybody and deleted together, since the kernel waits some 16 ms for its readers each time that
/// links are deleted, however many they are.
///
/// `outcomes` tells which of them are back in their places ([`release`]); an error in `before` is one of the deletion.
pub(crate) fn delete_released(
    host: &mut RouteSocket,
    attachments: &[&Attachment],
    mut outcomes: Vec<Result<(), Error>>,
    alone: bool,
    before: Result<(), Error>,
) -> Vec<Result<(), Error>> {
    let mut unused: Vec<(u32, String)> = Vec::new();
    for (attachment, done) in attachments.iter().zip(&outcomes) {
        if done.is_ok() && attachment.has_pair() {
            unused.push((attachment.port_index, attachment.port.clone()));
        }
    }
    let all = alone && outcomes.iter().all(Result::is_ok);
    let deleted = before.and_then(|()| delete_unused(host, &mut unused, all));
    match (deleted, &mut outcomes[..]) {
        (Ok(()), _) => {}
        (Err(error), [one]) => {
            if one.is_ok() {
                *one = Err(error);
            }
        }
        (Err(error), several) => {
            // One by one, so that what is told of each is true.
            tracing::debug!(error = chain(&error), "could not be deleted together");
            for (outcome, attachment) in several.iter_mut().zip(attachments) {
                if outcome.is_ok() && attachment.has_pair() {
                    *outcome = host.send(link::delete(attachment.port_index, &attachment.port));
                }
            }
            let bridge = all.then(|| remove_unused_bridge(host)).transpose();
            if let (Err(error), Some(last)) = (bridge, several.last_mut()) {
                *last = Err(error);
            }
        }
    }
    outcomes
}

/// Takes our rules off, and in inline mode the original interface back to its place.
pub(crate) fn release(
    host: &mut RouteSocket,
    attachment: &Attachment,
    shared: &Shared,
    before: &mut dyn FnMut(usize, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    match attachment.mode {
        Mode::Inline => {
            before(0, "put the original interface back into its place")?;
            put_back(host, attachment, shared)
        }
        Mode::Mirror if attachment.record.inside.is_some() => {
            before(0, "delete our filters")?;
            let _turn = shared.turn();
            untap(host, attachment)
        }
        Mode::Mirror => {
            before(0, "delete our filters")?;
            let _turn = shared.turn();
            let Some(port) = link::by_index(host, attachment.port_index)? else {
                return Ok(());
            };
            delete_mirror(host, &port, attachment.id, attachment.record.had_clsact)
        }
    }
}

/// Mirror mode without a host end: the container's interface without our filters.
fn untap(host: &mut RouteSocket, attachment: &Attachment) -> Result<(), Error> {
    let Some(port) = link::by_index(host, attachment.port_index)? else {
        return Ok(());
    };
    let (mut target, _) = inside(attachment, &port)?;
    let record = &attachment.record;
    match link::by_index(&mut target, record.ifindex)? {
        Some(own) => delete_mirror(&mut target, &own, attachment.id, record.had_clsact),
        None => Ok(()),
    }
}

/// Inline: from whatever state the container is in, back to its original interface.
fn put_back(host: &mut RouteSocket, attachment: &Attachment, shared: &Shared) -> Result<(), Error> {
    let Some(port) = link::by_index(host, attachment.port_index)? else {
        return Ok(());
    };
    let (mut target, new) = inside(attachment, &port)?;
    let target = &mut target;
    let record = &attachment.record;
    let Some(original) = link::by_index(target, record.ifindex)? else {
        // Somebody deleted the original; the container has but our end, which leads nowhere any more.
        return Ok(());
    };
    // The name may have been changed while attached; the new link has the one that counts, unless it never got there.
    let in_place = new.name != attachment.id.tmp();
    let name = if in_place {
        new.name.clone()
    } else {
        record.interface.clone()
    };
    let untouched = !in_place
        && original.name == name
        && original.alias.as_deref().and_then(Record::decode).is_none();
    if untouched {
        return Ok(());
    }
    let alias = if in_place {
        new.alias.clone()
    } else {
        original.alias.clone()
    };
    let others: Vec<_> = tc::filters(target, original.index, Hook::Ingress)?;
    let others: Vec<_> = others
        .into_iter()
        .filter(|filter| !filter.is_ours())
        .collect();
    let pref = tc::first_pref(&others).unwrap_or(tc::PREF);
    let means = Means::from(&session::features(true)?);
    let switch = Switch {
        name,
        ex: original.name.clone(),
        original: original.index,
        new: attachment.id,
        new_index: new.index,
        alias: alias.filter(|alias| Record::decode(alias).is_none()),
        txqlen: new.txqlen,
        addr_gen_mode: record.addr_gen_mode,
        had_clsact: record.had_clsact,
        pref,
        means,
    };
    let holder = if in_place { new.index } else { original.index };
    let identity = Identity::read(target, &[original.index, new.index])?.of_holder(holder);
    let before = Before {
        settings: Settings::read(target.netns(), &new)?,
        identity,
        surroundings: None,
    };
    let turn = shared.turn();
    switch.back(target, &before.identity)?;
    drop(turn);
    // What was set while attached was set on the new link, and stays.
    sysctl::copy(
        target.netns(),
        &attachment.id.tmp(),
        &switch.name,
        unequal(&original, &new),
    )?;
    let mut changed = Vec::new();
    if in_place && original.mtu != new.mtu {
        changed.push(link::mtu(original.index, &switch.name, new.mtu));
    }
    if in_place && !new.is_up() {
        // Behind the sysctls: one of them says whether IPv6 addresses stay. It takes the routes along that the kernel has just made.
        changed.push(link::down(original.index, &switch.name));
    }
    target.batch(&changed)?;
    compare(
        target,
        &switch.name,
        &before,
        original.index,
        new.index,
        original.index,
    )
    .map(drop)
}

/// Originals whose veth pair somebody deleted: `judge` says of each whether it is brought back.
pub(crate) fn rescue(
    target: &mut RouteSocket,
    attached: &[Attachment],
    judge: &dyn Fn(&Orphan<'_>) -> Fate,
) -> Result<Vec<Repaired>, Error> {
    let netns = target.netns().clone();
    let links = link::all(target)?;
    let mut rescued = Vec::new();
    for link in links.iter().filter(|link| !link.is_in_our_group()) {
        let Some(record) = link.alias.as_deref().and_then(Record::decode) else {
            continue;
        };
        let held = attached
            .iter()
            .any(|a| a.id == record.id && a.record.netns_ino == record.netns_ino);
        if held || record.ifindex != link.index || record.netns_ino != netns.id().ino {
            continue;
        }
        // Both ends of a pair go together: as long as one is here, the other is a port of another host's bridge.
        let tmp = record.id.tmp();
        let stands =
            |l: &Link| l.is_in_our_group() && (l.name == record.interface || l.name == tmp);
        if links.iter().any(stands) {
            continue;
        }
        let other = |l: &&Link| l.index != link.index && !l.is_in_our_group() && l.mac == link.mac;
        let beside = links.iter().find(other).map(|l| &l.name[..]);
        let fate = judge(&Orphan::new(
            &record.workload,
            &record.interface,
            record.mac,
            beside,
        ));
        let port = record.id.port();
        let done = match fate {
            Fate::Restore => bring_back(target, &links, link, &record)?,
            Fate::Remove(why) => {
                target.send(link::delete(link.index, &link.name))?;
                format!("{port} is gone; {why}; {} is deleted", link.name)
            }
            Fate::Leave(why) => format!("{port} is gone; {why}; {} is left as it is", link.name),
        };
        rescued.push(Repaired {
            what: what(&record),
            done,
        });
    }
    rescued.extend(forget_taps(target, &links, attached)?);
    Ok(rescued)
}

fn what(record: &Record) -> String {
    format!(
        "{} of {} ({})",
        record.interface, record.workload.name, record.id
    )
}

/// Filters that copied to a pair which somebody deleted, taken off the interfaces they are on.
fn forget_taps(
    target: &mut RouteSocket,
    links: &[Link],
    attached: &[Attachment],
) -> Result<Vec<Repaired>, Error> {
    let netns_ino = target.netns().id().ino;
    let qdiscs = tc::qdiscs(target)?;
    let mut forgotten = Vec::new();
    for qdisc in qdiscs.iter().filter(|qdisc| qdisc.is_clsact()) {
        let own = |link: &&Link| link.index == qdisc.link && !link.is_in_our_group();
        let Some(link) = links.iter().find(own) else {
            continue;
        };
        let mut records: Vec<Record> = Vec::new();
        for filter in tc::all_filters(target, link.index)? {
            let record = filter.name.as_deref().and_then(Record::decode);
            let of_tap = |r: &Record| r.inside.is_some() && r.netns_ino == netns_ino;
            let Some(record) = record.filter(of_tap) else {
                continue;
            };
            let held = attached
                .iter()
                .any(|a| a.id == record.id && a.record.netns_ino == netns_ino && a.has_pair());
            // As long as its container end is here, its host end is a port of another host's bridge.
            let tap = record.id.tap();
            let stands = links.iter().any(|l| l.is_in_our_group() && l.name == tap);
            if !held && !stands && records.iter().all(|other| other.id != record.id) {
                records.push(record);
            }
        }
        for record in records {
            delete_mirror(target, link, record.id, record.had_clsact)?;
            forgotten.push(Repaired {
                what: what(&record),
                done: format!("somebody deleted {}; detached", record.id.port()),
            });
        }
    }
    Ok(forgotten)
}

/// An original back into its place, with its own settings and, when a copy of them was kept, with its addresses and routes
/// as they were when it was attached. Says what was done.
fn bring_back(
    target: &mut RouteSocket,
    links: &[Link],
    link: &Link,
    record: &Record,
) -> Result<String, Error> {
    let port = record.id.port();
    let standing = tc::all_filters(target, link.index)?;
    let kept = Kept::read(&standing, record.id);
    let mut batch = Vec::new();
    // Down, as a kernel before 6.2 wants it, and since there is nothing left to be kept up for.
    batch.push(link::down(link.index, &link.name));
    let taken = links
        .iter()
        .any(|l| l.name == record.interface && l.index != link.index);
    let name = if taken { &link.name } else { &record.interface };
    if link.name != *name {
        batch.push(link::rename(link.index, &link.name, name));
    }
    batch.push(link::up(link.index, name));
    target.batch(&batch)?;
    let came_back = match &kept {
        None => Ok(format!(
            "somebody deleted {port}; {name} is back, its addresses and routes are lost: restart the container"
        )),
        Some(kept) => restore(target, name, link, record, kept).map(|()| {
            format!("somebody deleted {port}; {name} is back, with its addresses and routes as of the attach")
        }),
    }?;
    // The record and what is kept go last: until then it can be tried again.
    let mut batch = tc::delete(&standing, name, tc::Standing::is_ours);
    let others = standing.iter().any(|filter| !filter.is_ours());
    if !others && !record.had_clsact && tc::has_clsact(target, link.index)? {
        batch.push(tc::delete_clsact(link.index, name));
    }
    if let Some(kept) = &kept {
        batch.push(link::txqlen(link.index, name, kept.txqlen));
    }
    if let Some(mode) = record.addr_gen_mode {
        batch.push(link::addr_gen_mode(link.index, name, mode));
    }
    let alias = kept.as_ref().and_then(|kept| kept.alias.as_deref());
    batch.push(link::alias(link.index, name, alias.unwrap_or_default()));
    target.batch(&batch)?;
    Ok(came_back)
}

/// Gives `link` what was kept of it.
fn restore(
    target: &mut RouteSocket,
    name: &str,
    link: &Link,
    record: &Record,
    kept: &Kept,
) -> Result<(), Error> {
    early(target, &kept.identity, link.index)?;
    target.batch(&kept.identity.restore(link.index))?;
    let before = Before {
        identity: kept.identity.clone(),
        settings: Settings::read(target.netns(), link)?,
        surroundings: None,
    };
    tracing::debug!(id = %record.id, "restored");
    compare(target, name, &before, link.index, link.index, link.index).map(drop)
}

/// Makes the links behind a container's interface as wide as that is now; says what was done.
pub(crate) fn follow_mtu(host: &Netns, attachment: &Attachment) -> Result<Option<Repaired>, Error> {
    if attachment.mode != Mode::Inline {
        return Ok(None);
    }
    let mut host = RouteSocket::open(host)?;
    let Some(port) = link::by_index(&mut host, attachment.port_index)? else {
        return Ok(None);
    };
    let (mut target, new) = inside(attachment, &port)?;
    let Some(original) = link::by_index(&mut target, attachment.record.ifindex)? else {
        return Ok(None);
    };
    if new.mtu <= port.mtu.min(original.mtu) {
        return Ok(None);
    }
    if port.mtu < new.mtu {
        host.send(link::mtu(port.index, &port.name, new.mtu))?;
    }
    if original.mtu < new.mtu {
        target.send(link::mtu(original.index, &original.name, new.mtu))?;
    }
    Ok(Some(Repaired {
        what: what(&attachment.record),
        done: format!(
            "its MTU was raised to {}; {} and {} follow",
            new.mtu, port.name, original.name
        ),
    }))
}

/// A socket in the attachment's namespace, and the container end of its pair.
fn inside(attachment: &Attachment, port: &Link) -> Result<(RouteSocket, Link), Error> {
    let lost = || Error::NetnsLost {
        id: attachment.id,
        netns: format!("{} of {}", attachment.interface, attachment.workload.name),
    };
    let netns = attachment.find_netns()?.ok_or_else(lost)?;
    let mut target = RouteSocket::open(&netns)?;
    let new = link::by_index(&mut target, port.link.unwrap_or_default())?;
    let new = new
        .filter(|new| new.is_kind("veth") && new.link == Some(port.index))
        .ok_or_else(lost)?;
    Ok((target, new))
}

/// What is wrong with an attachment, inside its container too; `None` when it is whole.
pub(crate) fn inspect(host: &Netns, attachment: &Attachment) -> Result<Option<String>, Error> {
    if let Health::Damaged { why } = &attachment.health {
        return Ok(Some(why.clone()));
    }
    let mut socket = RouteSocket::open(host)?;
    let Some(port) = link::by_index(&mut socket, attachment.port_index)? else {
        return Ok(Some("its port is gone".into()));
    };
    if !attachment.has_pair() {
        return passed_by(&mut socket, &port, &[Hook::Ingress, Hook::Egress]);
    }
    let (mut target, new) = inside(attachment, &port)?;
    if attachment.mode == Mode::Mirror {
        return inspect_tap(&mut target, attachment, &new);
    }
    if new.name == attachment.id.tmp() {
        return Ok(Some(format!(
            "{} never took the place of {}",
            new.name, attachment.interface
        )));
    }
    let Some(original) = link::by_index(&mut target, attachment.record.ifindex)? else {
        return Ok(Some("the original interface is gone".into()));
    };
    let ours = |target: &mut RouteSocket, link, hook| -> Result<bool, Error> {
        Ok(tc::filters(target, link, hook)?
            .iter()
            .any(tc::Standing::is_our_rule))
    };
    if !ours(&mut target, original.index, Hook::Ingress)? {
        return Ok(Some(format!(
            "{} has no rule that takes its frames to {}",
            original.name, new.name
        )));
    }
    if !ours(&mut target, new.index, Hook::Egress)? {
        return Ok(Some(format!(
            "{} has no rule that takes its frames to {}",
            new.name, original.name
        )));
    }
    let leftover = Identity::read(&mut target, &[original.index])?;
    if leftover.address_count() + leftover.route_count() > 0 {
        return Ok(Some(format!(
            "{} still has addresses or routes",
            original.name
        )));
    }
    if let Some(why) = passed_by(&mut target, &original, &[Hook::Ingress])? {
        return Ok(Some(why));
    }
    passed_by(&mut target, &new, &[Hook::Egress])
}

/// Why frames may pass our rules on these hooks by; `None` when they do not.
fn passed_by(
    socket: &mut RouteSocket,
    link: &Link,
    hooks: &[Hook],
) -> Result<Option<String>, Error> {
    for &hook in hooks {
        if tc::has_tcx(socket.netns(), link.index, hook)? {
            return Ok(Some(format!(
                "a TCX program came to the {} of {}: what it ends does not reach our rules",
                hook.name(),
                link.name
            )));
        }
    }
    Ok(None)
}

/// The same for mirror mode without a host end; `tap` is the container end of our pair.
fn inspect_tap(
    target: &mut RouteSocket,
    attachment: &Attachment,
    tap: &Link,
) -> Result<Option<String>, Error> {
    let Some(own) = link::by_index(target, attachment.record.ifindex)? else {
        return Ok(Some(format!("{} is gone", attachment.interface)));
    };
    if !tap.is_up() {
        return Ok(Some(format!("{} is down", tap.name)));
    }
    for hook in [Hook::Egress, Hook::Ingress] {
        let ours = |filter: &tc::Standing| {
            let record = filter.name.as_deref().and_then(Record::decode);
            record.is_some_and(|r| r.id == attachment.id && r.bridge == Some(tap.index))
        };
        if !tc::filters(target, own.index, hook)?.iter().any(ours) {
            let hook = hook.name();
            return Ok(Some(format!("no filter on {hook} of {}", own.name)));
        }
    }
    passed_by(target, &own, &[Hook::Ingress, Hook::Egress])
}
