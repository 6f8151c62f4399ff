//! Who is who on nv-br: from the marks on frames and from addresses to the names of containers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvcapture::Timestamp;
use nvflow::FlowRecord;
use nvnet::{Attachment, LinkEvents, LinkNews, Netns};

use crate::cmd::flows::wall_clock;
use crate::container::Engine;

/// How old the kernel's list is at least when it is read again.
const FRESH: Duration = Duration::from_secs(1);

/// The same of the engine's names.
const FRESH_NAMES: Duration = Duration::from_secs(5);
/// How many times as long as the engine took it is left alone then.
const PAUSE: u32 = 10;
/// News that are taken at once, at most: who brings more need not be waited for.
const NEWS: usize = 1_000;
/// How often addresses are looked for, at most, where some are not found.
const TRIES: u8 = 5;
/// Addresses of attachments that are gone whose names are remembered, beside those of the last reading.
const LEFT: usize = 4_096;
/// How many attachments are remembered that had an id one after the other.
const HOLDERS: usize = 16;

/// The names that containers have now. The kernel calls one as it was called when it was attached; since then it can have been
/// renamed, and its name be another's.
#[derive(Debug, Default)]
pub(crate) struct Current {
    engine: Option<Engine>,
    asked: Option<Instant>,
    /// Not before it is asked again, whatever for: one that hangs is waited for in a small part of the time.
    pause: Option<Instant>,
    /// By what the kernel has of the container's id.
    names: HashMap<String, String>,
}

impl Current {
    /// Calls each container of an engine as the engine does, where that answers.
    pub(crate) fn apply(&mut self, attached: &mut [Attachment]) {
        let ids: Vec<String> = attached
            .iter()
            .filter_map(|one| one.workload.container_id.clone())
            .collect();
        let known = |id: &String| self.names.contains_key(id);
        if !(ids.is_empty() || self.is_pausing() || self.is_fresh() && ids.iter().all(known)) {
            self.ask(ids);
        }
        for one in attached {
            let id = one.workload.container_id.as_ref();
            if let Some(name) = id.and_then(|id| self.names.get(id)) {
                one.workload.name.clone_from(name);
            }
        }
    }

    fn is_fresh(&self) -> bool {
        self.asked.is_some_and(|at| at.elapsed() < FRESH_NAMES)
    }

    fn is_pausing(&self) -> bool {
        self.pause.is_some_and(|until| Instant::now() < until)
    }

    fn ask(&mut self, ids: Vec<String>) {
        let began = Instant::now();
        self.ask_of_engine(ids);
        let ended = Instant::now();
        self.asked = Some(ended);
        self.pause = Some(ended + (ended - began) * PAUSE);
    }

    fn ask_of_engine(&mut self, ids: Vec<String>) {
        if self.engine.is_none() {
            self.engine = Engine::connect().ok();
        }
        let told = self
            .engine
            .as_ref()
            .map(|engine| engine.names_of(ids.clone()));
        let Some(Ok(told)) = told else {
            // Names that were told before are still the newest there are.
            self.engine = None;
            return;
        };
        for (whole, name) in told {
            for id in ids.iter().filter(|id| whole.starts_with(&id[..])) {
                self.names.insert(id.clone(), name.clone());
            }
        }
    }
}

/// Whether what is attached may be other than it was when `links` were last asked; `is_port` knows the host's links
/// that it has, by index.
pub(crate) fn may_differ(
    links: &mut LinkEvents,
    is_port: impl Fn(u32) -> bool,
) -> Result<bool, nvnet::Error> {
    let mut differs = false;
    // To the end, so that none is left to be heard behind the list that is read for it.
    for _ in 0..NEWS {
        differs |= match links.next(Some(Duration::ZERO))? {
            LinkNews::Nothing => return Ok(differs),
            // With a link go the rules on it, which is not told.
            LinkNews::Events(events) => events
                .iter()
                .any(|it| it.is_ours || it.is_gone && is_port(it.index)),
            LinkNews::Rules | LinkNews::Lost => true,
        };
    }
    Ok(true)
}

/// Whose an attached interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) workload: Arc<str>,
    pub(crate) container_id: Option<String>,
    pub(crate) interface: Arc<str>,
    /// Frames that are older are of one that had the id before. Unit: milliseconds since 1970.
    pub(crate) since: u64,
}

/// The attached containers, as the kernel last told; one that is gone keeps its name for what it sent and received.
#[derive(Debug)]
pub(crate) struct Names {
    host: Netns,
    read: Option<Instant>,
    /// What tells that the list may be another one, where that is [listened](Self::listen) for.
    news: Option<LinkEvents>,
    /// The list may be another one than was read.
    is_old: bool,
    /// How often the addresses of some are still looked for that had none, as one that is being attached has for a moment.
    tries: u8,
    current: Current,
    attached: Vec<Attachment>,
    /// Who had the id, the latest last.
    by_id: HashMap<u16, Vec<Known>>,
    /// `None` where two containers have the same address, in networks of their own.
    by_address: HashMap<IpAddr, Option<Arc<str>>>,
    /// Whose they were that are gone, and when that was seen. Unit: milliseconds since 1970.
    left: HashMap<IpAddr, (Arc<str>, u64)>,
    version: u32,
}

impl Names {
    /// Reads the list, to be [read again](Self::refresh) from time to time.
    pub(crate) fn read(host: Netns) -> Result<Self, nvnet::Error> {
        Self::new(host, None)
    }

    /// Reads the list, to be [followed](Self::follow).
    pub(crate) fn listen(host: Netns) -> Result<Self, nvnet::Error> {
        let news = LinkEvents::open_one(&host)?;
        Self::new(host, Some(news))
    }

    fn new(host: Netns, news: Option<LinkEvents>) -> Result<Self, nvnet::Error> {
        let mut names = Self {
            host,
            read: None,
            news,
            is_old: false,
            tries: 0,
            current: Current::default(),
            attached: Vec::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            left: HashMap::new(),
            version: 0,
        };
        names.read_again()?;
        Ok(names)
    }

    /// Reads the list again if it is not fresh.
    pub(crate) fn refresh(&mut self) -> Result<(), nvnet::Error> {
        if self.age() < FRESH {
            return Ok(());
        }
        self.read_again()
    }

    fn age(&self) -> Duration {
        self.read.map_or(Duration::MAX, |read| read.elapsed())
    }

    fn read_again(&mut self) -> Result<(), nvnet::Error> {
        self.read = Some(Instant::now());
        let attached = nvnet::list(&self.host)?;
        self.is_old = false;
        self.take(attached);
        Ok(())
    }

    fn take(&mut self, mut attached: Vec<Attachment>) {
        self.current.apply(&mut attached);
        let same = attached.len() == self.attached.len()
            && attached.iter().zip(&self.attached).all(|(new, old)| {
                new.id == old.id
                    && new.workload == old.workload
                    && new.interface == old.interface
                    && new.since_ms() == old.since_ms()
            });
        if same && self.tries == 0 {
            // Health and counters may be others.
            self.attached = attached;
            return;
        }
        self.version += 1;
        let mut all_have_some = true;
        let before = std::mem::take(&mut self.by_address);
        for attachment in &attached {
            let workload: Arc<str> = attachment.workload.name.as_str().into();
            let known = Known {
                workload: Arc::clone(&workload),
                container_id: attachment.workload.container_id.clone(),
                interface: attachment.interface.as_str().into(),
                since: attachment.since_ms().unwrap_or_default(),
            };
            let holders = self.by_id.entry(attachment.id.number()).or_default();
            hold(holders, known);
            let addresses = addresses(attachment);
            all_have_some &= !addresses.is_empty();
            for address in addresses {
                let named = self
                    .by_address
                    .entry(address)
                    .or_insert_with(|| Some(Arc::clone(&workload)));
                if named.as_ref().is_some_and(|name| *name != workload) {
                    *named = None;
                }
            }
        }
        self.tries = match (all_have_some, same) {
            (true, _) => 0,
            (false, true) => self.tries - 1,
            (false, false) => TRIES - 1,
        };
        let now = millis(wall_clock());
        let gone = before.into_iter().filter_map(|(address, name)| {
            let name = name.filter(|_| !self.by_address.contains_key(&address))?;
            Some((address, (name, now)))
        });
        leave(&mut self.left, gone);
        self.attached = attached;
    }

    /// As [`refresh`](Self::refresh), but reads only where something changed: a list of a thousand takes as long as a ring of frames does to
    /// fill. What was known stays good enough until the kernel answers again.
    pub(crate) fn follow(&mut self) {
        let heard = self.hear();
        let read = if (self.is_old || self.tries > 0) && self.age() >= FRESH {
            self.read_again()
        } else {
            let is_of_engine = |one: &Attachment| one.workload.container_id.is_some();
            // Of a new name of a container the kernel does not know.
            if !self.current.is_fresh()
                && !self.current.is_pausing()
                && self.attached.iter().any(is_of_engine)
            {
                self.take(self.attached.clone());
            }
            Ok(())
        };
        warn(heard.and(read));
    }

    /// As [`follow`](Self::follow), without waiting until what was read is a second old: before the last records.
    pub(crate) fn catch_up(&mut self) {
        let heard = self.hear();
        let read = if self.is_old {
            self.read_again()
        } else {
            Ok(())
        };
        warn(heard.and(read));
    }

    /// Hears whether the list may be another one by now.
    fn hear(&mut self) -> Result<(), nvnet::Error> {
        let Some(news) = &mut self.news else {
            // What cannot be told is read, and what changed before it can again.
            self.is_old = true;
            if self.age() >= FRESH {
                self.news = Some(LinkEvents::open_one(&self.host)?);
            }
            return Ok(());
        };
        let attached = &self.attached;
        match may_differ(news, |index| {
            attached.iter().any(|one| one.port_index() == index)
        }) {
            Ok(differs) => self.is_old |= differs,
            Err(error) => {
                self.news = None;
                self.is_old = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whose frames those of the record are: of the attachment that had the id when the first one came.
    fn holder(&self, record: &FlowRecord) -> Option<&Known> {
        holder(&self.by_id, record)
    }

    /// What is attached now.
    pub(crate) fn attached(&self) -> &[Attachment] {
        &self.attached
    }

    /// Another number when a name may be another.
    pub(crate) const fn version(&self) -> u32 {
        self.version
    }

    pub(crate) const fn host(&self) -> &Netns {
        &self.host
    }

    /// Whose the marks are.
    pub(crate) const fn by_id(&self) -> &HashMap<u16, Vec<Known>> {
        &self.by_id
    }

    /// Whose the addresses are.
    pub(crate) const fn by_address(&self) -> &HashMap<IpAddr, Option<Arc<str>>> {
        &self.by_address
    }

    /// Writes into `record` whose it is.
    pub(crate) fn label(&self, record: &mut FlowRecord) {
        let Some(known) = self.holder(record) else {
            return;
        };
        let (workload, interface) = (Arc::clone(&known.workload), Arc::clone(&known.interface));
        record.labels.workload = Some(workload);
        record.labels.interface = Some(interface);
        let peer = match record.vantage {
            Some(nvflow::Vantage::Egress) => record.destination.address,
            Some(nvflow::Vantage::Ingress) => record.source.address,
            None => return,
        };
        let before = || {
            let (name, until) = self.left.get(&peer)?;
            (millis(record.flow_start) <= *until).then(|| Arc::clone(name))
        };
        record.labels.peer_workload = match self.by_address.get(&peer) {
            Some(now) => now.clone(),
            None => before(),
        };
    }

    /// Whether the record is of a container that one of `wanted` names; of any when there are none.
    pub(crate) fn wanted(&self, record: &FlowRecord, wanted: &[String]) -> bool {
        wanted.is_empty()
            || self.holder(record).is_some_and(|known| {
                wanted
                    .iter()
                    .any(|name| is_called(name, &known.workload, known.container_id.as_deref()))
            })
    }
}

/// A time as the kernel's list has it. Unit: milliseconds since 1970.
pub(crate) const fn millis(time: Timestamp) -> u64 {
    time.as_micros() / 1_000
}

/// Notes who has an id now; who has it still may have been renamed.
fn hold(holders: &mut Vec<Known>, now: Known) {
    match holders.last_mut() {
        Some(last) if last.since == now.since && last.container_id == now.container_id => {
            *last = now;
        }
        _ => {
            holders.push(now);
            if holders.len() > HOLDERS {
                holders.remove(0);
            }
        }
    }
}

/// Notes whose addresses are gone; of more than [`LEFT`] before those that left first are forgotten.
fn leave(
    left: &mut HashMap<IpAddr, (Arc<str>, u64)>,
    gone: impl Iterator<Item = (IpAddr, (Arc<str>, u64))>,
) {
    if left.len() > LEFT {
        let mut times: Vec<u64> = left.values().map(|(_, when)| *when).collect();
        times.sort_unstable();
        let oldest = times[times.len() - LEFT];
        left.retain(|_, (_, when)| *when > oldest);
    }
    left.extend(gone);
}

fn warn(read: Result<(), nvnet::Error>) {
    if let Err(error) = read {
        tracing::warn!("cannot read what is attached: {error}");
    }
}

/// Who had an id at a time: the last one who had got it by then, or the first one there is.
fn at(holders: &[Known], time: u64) -> Option<&Known> {
    let by_then = holders.iter().rev().find(|known| known.since <= time);
    by_then.or(holders.first())
}

/// Of those who had the ids, the one that had the record's when its first frame came.
pub(crate) fn holder<'k>(
    by_id: &'k HashMap<u16, Vec<Known>>,
    record: &FlowRecord,
) -> Option<&'k Known> {
    let holders = by_id.get(&record.observation_point?)?;
    at(holders, millis(record.flow_start))
}

/// Whether `wanted` names the workload: by its name, or by its container's id or the first digits of that, of which the kernel has twelve.
pub(crate) fn is_called(wanted: &str, name: &str, container_id: Option<&str>) -> bool {
    const WHOLE: usize = 64;
    let is_whole = wanted.len() == WHOLE && wanted.bytes().all(|digit| digit.is_ascii_hexdigit());
    let is_id = |id: &str| {
        !wanted.is_empty() && id.starts_with(wanted)
            || is_whole && !id.is_empty() && wanted.starts_with(id)
    };
    wanted == name || container_id.is_some_and(is_id)
}

/// The addresses inside the container that tell it from others.
pub(crate) fn addresses(attachment: &Attachment) -> Vec<IpAddr> {
    let read = || -> Vec<IpAddr> {
        let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
            return Vec::new();
        };
        interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .filter(|address| match address {
                IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
                IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
            })
            .collect()
    };
    attachment
        .netns()
        .and_then(|netns| netns.run(read).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_those_that_left_are_forgotten_the_oldest_first() {
        let many = LEFT as u32 / 4;
        let mut left = HashMap::new();
        for turn in 0..50_u32 {
            let gone = (0..many).map(|number| {
                let address = IpAddr::V4((turn * many + number).into());
                (address, ("web".into(), turn.into()))
            });
            leave(&mut left, gone);
            assert!(left.len() <= LEFT + many as usize);
            for recent in turn.saturating_sub(2)..=turn {
                assert!(
                    left.contains_key(&IpAddr::V4((recent * many).into())),
                    "{turn}"
                );
            }
        }
    }

    #[test]
    fn frames_belong_to_who_had_the_id_when_they_came() {
        let known = |name: &str, since| Known {
            workload: name.into(),
            container_id: Some(format!("id of the one since {since}")),
            interface: "eth0".into(),
            since,
        };
        let mut holders = Vec::new();
        for next in [known("web-1", 100), known("web-1", 200)] {
            hold(&mut holders, next);
        }
        // The first one is gone, and the second one called otherwise since.
        hold(&mut holders, known("web-2", 200));
        let named = |time| at(&holders, time).map(|known| &*known.workload);
        assert_eq!(holders.len(), 2);
        assert_eq!(
            [named(50), named(100), named(199), named(200), named(999)],
            ["web-1", "web-1", "web-1", "web-2", "web-2"].map(Some)
        );
        for since in 0..100 {
            hold(&mut holders, known("many", 1_000 + since));
        }
        assert_eq!(holders.len(), HOLDERS);
        assert_eq!(at(&[], 1), None);
    }

    #[test]
    fn a_container_is_called_by_name_or_by_the_beginning_of_its_id() {
        assert!(is_called("web-1", "web-1", None));
        assert!(is_called("4f5c", "web-1", Some("4f5c0e1b")));
        assert!(!is_called("web", "web-1", Some("4f5c0e1b")));
        assert!(!is_called("5c", "web-1", Some("4f5c0e1b")));
        assert!(!is_called("", "web-1", Some("4f5c0e1b")));
        // All of it, of which the kernel has less.
        let whole = "4f5c0e1b".repeat(8);
        assert!(is_called(&whole, "web-1", Some("4f5c0e1b4f5c")));
        assert!(is_called(&whole, "web-1", Some(&whole)));
        assert!(!is_called(&whole, "web-1", Some("4f5c0e1b4f5d")));
        assert!(!is_called(&whole, "web-1", Some("")));
        assert!(!is_called("4f5c0e1b4f5c.1", "web-1", Some("4f5c0e1b4f5c")));
    }
}
