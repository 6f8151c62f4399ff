//! Who is who: what the keeper knows, for those who name records and answer questions.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nvcapture::Timestamp;
use nvflow::{FlowRecord, Vantage, WorkloadDetails};
use nvnet::Attachment;
use serde::Serialize;

use super::docker::EngineState;

/// Records of a container's connections may come so long after it has ended.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Workloads that had the same id, one after the other, and are remembered.
const BEFORE: usize = 4;

/// A workload as records name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// More of it, where an engine tells.
    pub(crate) details: Option<Arc<WorkloadDetails>>,
}

impl Known {
    fn id(&self) -> Option<&str> {
        self.details.as_ref()?.id.as_deref()
    }
}

/// A workload's interface whose frames are marked with an id.
#[derive(Clone, Debug)]
struct Point {
    /// The id means this one from here on.
    from: Timestamp,
    workload: Arc<Known>,
    interface: Arc<str>,
    network: Option<Arc<str>>,
}

/// A workload's place on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The network's name; `None` where no engine tells.
    pub(crate) network: Option<Arc<str>>,
    /// Who is there.
    pub(crate) workload: Arc<Known>,
}

/// What became of a container or target.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subject {
    /// Its name.
    pub(crate) workload: String,
    /// The engine's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container_id: Option<String>,
    /// Its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    /// Its first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// `inline`, `mirror` or `no`.
    pub(crate) attach: String,
    /// What says so: `rule 2`, `others`.
    pub(crate) because: String,
    /// `attached`, `ignored`, `waiting`, `shared`, `host network`, `no network`, `failed`.
    pub(crate) state: &'static str,
    /// What there is to say of the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// From the moment it was heard of to the moment it was attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attached_after_microseconds: Option<u64>,
    /// It is paused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) paused: bool,
}

#[derive(Debug, Default)]
struct Inner {
    points: HashMap<u16, Vec<Point>>,
    places: HashMap<IpAddr, Vec<Place>>,
    /// Places of workloads that have ended, and when they were last there.
    past: HashMap<IpAddr, Vec<(Instant, Place)>>,
    attached: Vec<Attachment>,
    subjects: Vec<Subject>,
    engines: Vec<EngineState>,
    /// The keeper has once worked through all that its engines listed.
    is_settled: bool,
}

/// What is known, for all threads.
#[derive(Debug, Default)]
pub(crate) struct Board(RwLock<Inner>);

/// What the keeper puts on the board.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// What is attached, and whose each interface is, with its network.
    pub(crate) attached: Vec<(Attachment, Arc<Known>, Option<Arc<str>>)>,
    /// Who has which address.
    pub(crate) places: HashMap<IpAddr, Vec<Place>>,
    /// What became of every container and target.
    pub(crate) subjects: Vec<Subject>,
}

impl Board {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts up what is true from `now` on.
    pub(crate) fn put(&self, news: News, now: Timestamp) {
        let mut inner = self.write();
        let inner = &mut *inner;
        for (attachment, workload, network) in &news.attached {
            let points = inner.points.entry(attachment.id.number()).or_default();
            let interface: Arc<str> = attachment.interface.as_str().into();
            if let Some(last) = points.last_mut()
                && last.interface == interface
                && last.workload.id() == workload.id()
                && (last.workload.id().is_some() || last.workload.name == workload.name)
            {
                // The same one, perhaps under another name.
                last.workload = Arc::clone(workload);
                last.network.clone_from(network);
                continue;
            }
            if points.len() == BEFORE {
                points.remove(0);
            }
            let from = if points.is_empty() {
                Timestamp::ZERO
            } else {
                now
            };
            points.push(Point {
                from,
                workload: Arc::clone(workload),
                interface,
                network: network.clone(),
            });
        }
        let at = Instant::now();
        for (address, places) in std::mem::replace(&mut inner.places, news.places) {
            for place in places {
                let is_there = inner
                    .places
                    .get(&address)
                    .is_some_and(|there| there.iter().any(|other| other.network == place.network));
                if !is_there {
                    inner.past.entry(address).or_default().push((at, place));
                }
            }
        }
        inner.past.retain(|_, places| {
            places.retain(|(last, _)| last.elapsed() < REMEMBERED);
            !places.is_empty()
        });
        inner.attached = news
            .attached
            .into_iter()
            .map(|(attachment, ..)| attachment)
            .collect();
        inner.subjects = news.subjects;
    }

    /// The keeper has worked through all that its engines listed.
    pub(crate) fn settled(&self) {
        self.write().is_settled = true;
    }

    /// Whether it has.
    pub(crate) fn is_settled(&self) -> bool {
        self.read().is_settled
    }

    /// Notes how an engine fares.
    pub(crate) fn engine(&self, number: usize, state: EngineState) {
        let mut inner = self.write();
        if inner.engines.len() <= number {
            inner.engines.resize_with(number + 1, EngineState::default);
        }
        inner.engines[number] = state;
    }

    /// How every engine fares.
    pub(crate) fn engines(&self) -> Vec<EngineState> {
        self.read().engines.clone()
    }

    /// What is attached.
    pub(crate) fn attached(&self) -> Vec<Attachment> {
        self.read().attached.clone()
    }

    /// What became of every container and target.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        self.read().subjects.clone()
    }

    /// Writes into records who their ends are.
    pub(crate) fn label<'r>(&self, records: impl IntoIterator<Item = &'r mut FlowRecord>) {
        let inner = self.read();
        for record in records {
            inner.label(record);
        }
    }
}

impl Inner {
    fn label(&self, record: &mut FlowRecord) {
        let Some(points) = record.observation_point.and_then(|id| self.points.get(&id)) else {
            return;
        };
        // The last one that had the id when the connection began.
        let point = points
            .iter()
            .rev()
            .find(|point| point.from <= record.flow_start);
        let Some(point) = point.or(points.first()) else {
            return;
        };
        record.labels.workload = Some(Arc::clone(&point.workload.name));
        record.labels.interface = Some(Arc::clone(&point.interface));
        record.labels.network.clone_from(&point.network);
        record.labels.details.clone_from(&point.workload.details);
        let peer = match record.vantage {
            Some(Vantage::Egress) => record.destination.address,
            Some(Vantage::Ingress) => record.source.address,
            None => return,
        };
        if let Some(peer) = self.who_has(peer, point.network.as_ref()) {
            record.labels.peer_workload = Some(Arc::clone(&peer.name));
            record.labels.peer_details.clone_from(&peer.details);
        }
    }

    /// Who has an address, seen from a network: there, or where only one has it.
    fn who_has(&self, address: IpAddr, from: Option<&Arc<str>>) -> Option<&Arc<Known>> {
        let mut now: Vec<&Place> = self.places.get(&address).into_iter().flatten().collect();
        if now.is_empty() {
            let past = self.past.get(&address).into_iter().flatten();
            now = past.map(|(_, place)| place).collect();
        }
        let there = now
            .iter()
            .find(|place| from.is_some() && place.network.as_ref() == from);
        match (there, now.as_slice()) {
            (Some(place), _) => Some(&place.workload),
            (None, [only, rest @ ..])
                if rest.iter().all(|other| other.workload == only.workload) =>
            {
                Some(&only.workload)
            }
            _ => None,
        }
    }
}
