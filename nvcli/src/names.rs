//! Who is who on nv-br: from the marks on frames and from addresses to the names of containers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvflow::FlowRecord;
use nvnet::{Attachment, LinkEvents, LinkNews, Netns};

use crate::container::Engine;

/// How old the kernel's list may be.
const FRESH: Duration = Duration::from_secs(1);

/// How old the engine's names may be.
const FRESH_NAMES: Duration = Duration::from_secs(5);
/// How many attachments are remembered that had an id one after the other.
const HOLDERS: usize = 16;

/// The names that containers have now. The kernel calls one as it was called when it was attached; since then it can have been
/// renamed, and its name be another's.
#[derive(Debug, Default)]
pub(crate) struct Current {
    engine: Option<Engine>,
    asked: Option<Instant>,
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
        let fresh = self.asked.is_some_and(|at| at.elapsed() < FRESH_NAMES);
        let known = |id: &String| self.names.contains_key(id);
        if !(ids.is_empty() || fresh && ids.iter().all(known)) {
            self.ask(ids);
        }
        for one in attached {
            let id = one.workload.container_id.as_ref();
            if let Some(name) = id.and_then(|id| self.names.get(id)) {
                one.workload.name.clone_from(name);
            }
        }
    }

    fn ask(&mut self, ids: Vec<String>) {
        self.asked = Some(Instant::now());
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

/// Whether a list of that age is to be read again, that may be another one by now or may have containers with other names.
fn is_due(is_old: bool, may_be_renamed: bool, age: Duration) -> bool {
    is_old && age >= FRESH || may_be_renamed && age >= FRESH_NAMES
}

/// Whether what is attached may be other than it was when `links` were last asked.
pub(crate) fn may_differ(links: &mut LinkEvents) -> Result<bool, nvnet::Error> {
    loop {
        match links.next(Some(Duration::ZERO))? {
            LinkNews::Nothing => return Ok(false),
            // With a link go the rules on it, which is not told.
            LinkNews::Events(events) if !events.iter().any(|it| it.is_ours | it.is_gone) => {}
            LinkNews::Events(_) | LinkNews::Rules | LinkNews::Lost => return Ok(true),
        }
    }
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
    /// What tells that the list may be another one, where it is [followed](Self::follow).
    news: Option<LinkEvents>,
    /// The list may be another one than was read.
    is_old: bool,
    current: Current,
    attached: Vec<Attachment>,
    /// Who had the id, the latest last.
    by_id: HashMap<u16, Vec<Known>>,
    /// `None` where two containers have the same address, in networks of their own.
    by_address: HashMap<IpAddr, Option<Arc<str>>>,
    version: u32,
}

impl Names {
    /// Reads the list.
    pub(crate) fn read(host: Netns) -> Result<Self, nvnet::Error> {
        let mut names = Self {
            host,
            read: None,
            news: None,
            is_old: false,
            current: Current::default(),
            attached: Vec::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            version: 0,
        };
        names.refresh()?;
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
        let mut attached = nvnet::list(&self.host)?;
        self.current.apply(&mut attached);
        let same = attached.len() == self.attached.len()
            && attached.iter().zip(&self.attached).all(|(new, old)| {
                new.id == old.id
                    && new.workload == old.workload
                    && new.interface == old.interface
                    && new.since_ms() == old.since_ms()
            });
        if same {
            // Health and counters may be others.
            self.attached = attached;
            return Ok(());
        }
        self.version += 1;
        self.by_address.clear();
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
            for address in addresses(attachment) {
                let named = self
                    .by_address
                    .entry(address)
                    .or_insert_with(|| Some(Arc::clone(&workload)));
                if named.as_ref().is_some_and(|name| *name != workload) {
                    *named = None;
                }
            }
        }
        self.attached = attached;
        Ok(())
    }

    /// As [`refresh`](Self::refresh), but reads only what may have changed: a list of a thousand takes as long as a ring of frames does to fill.
    pub(crate) fn follow(&mut self) -> Result<(), nvnet::Error> {
        self.hear();
        // Of a new name of a container the kernel does not know.
        let may_be_renamed = self
            .attached
            .iter()
            .any(|one| one.workload.container_id.is_some());
        if is_due(self.is_old, may_be_renamed, self.age()) {
            self.read_again()?;
            self.is_old = false;
        }
        Ok(())
    }

    /// As [`follow`](Self::follow), without waiting until what was read is a second old: before the last that is told.
    pub(crate) fn catch_up(&mut self) -> Result<(), nvnet::Error> {
        self.hear();
        if self.is_old {
            self.read_again()?;
            self.is_old = false;
        }
        Ok(())
    }

    /// Hears whether the list may be another one by now.
    fn hear(&mut self) {
        self.is_old |= match self.news.as_mut().map(may_differ) {
            Some(Ok(differs)) => differs,
            // From here on it is told; what changed before, and what cannot be told, is read.
            None | Some(Err(_)) => {
                self.news = LinkEvents::open_one(&self.host).ok();
                true
            }
        };
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
        record.labels.peer_workload = self.by_address.get(&peer).cloned().flatten();
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
    at(holders, record.flow_start.as_micros() / 1_000)
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
    fn a_list_is_read_again_where_it_may_be_another_one() {
        let ms = Duration::from_millis;
        for (is_old, may_be_renamed, age, due) in [
            (false, false, u64::MAX, false),
            (true, false, 999, false),
            (true, false, 1_000, true),
            (false, true, 4_999, false),
            (false, true, 5_000, true),
            (true, true, 1_000, true),
        ] {
            assert_eq!(is_due(is_old, may_be_renamed, ms(age)), due, "{age}");
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
