//! Who is attached, as the view knows it: read on a thread of its own, since a thousand interfaces take a moment.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nvnet::{Attachment, Netns};

use crate::health;
use crate::names::{Known, Names};

/// An attached interface.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    pub(crate) id: u16,
    pub(crate) name: Arc<str>,
    pub(crate) interface: Arc<str>,
    pub(crate) mode: &'static str,
    pub(crate) damage: Option<String>,
    /// Frames that its own interface counted from when it was first doubted to a moment ago: `[out, into]`.
    pub(crate) counted: Option<[u64; 2]>,
}

/// Everything that is attached, and the names that go with marks and addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    pub(crate) attached: Vec<Attached>,
    pub(crate) by_id: HashMap<u16, Vec<Known>>,
    pub(crate) by_address: HashMap<IpAddr, Option<Arc<str>>>,
    /// Another one when a name may be another.
    pub(crate) version: u32,
}

/// Ids whose own counters the view wants to know, since it has seen no frame of theirs, or of one direction only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubts(Arc<Mutex<Vec<u16>>>);

impl Doubts {
    pub(crate) fn set(&self, ids: impl Iterator<Item = u16>) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.clear();
        list.extend(ids);
    }

    fn get(&self) -> Vec<u16> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Between two readings.
const PAUSE: Duration = Duration::from_secs(1);
/// A reading takes at most this part of the time: more of many attachments take longer to read, so they are read less often.
const SHARE: u32 = 20;

/// Reads the roster again and again until nobody wants it any more.
pub(crate) fn keep(
    mut names: Names,
    doubts: &Doubts,
    to: &mpsc::SyncSender<Roster>,
    ended: &mpsc::Receiver<()>,
) {
    let mut readings = HashMap::new();
    loop {
        let began = Instant::now();
        // What was known stays good enough until the kernel answers again.
        if let Err(error) = names.refresh() {
            tracing::warn!("cannot read what is attached: {error}");
        }
        let roster = read(&names, &doubts.get(), &mut readings);
        if let Err(mpsc::TrySendError::Disconnected(_)) = to.try_send(roster) {
            return;
        }
        let pause = PAUSE.max(began.elapsed() * SHARE);
        match ended.recv_timeout(pause) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

/// An interface's own counters, as they were first read since it is doubted, and last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    first: [u64; 2],
    last: [u64; 2],
}

/// The roster as `names` has it, with the counters of `doubtful` ids.
pub(crate) fn read(
    names: &Names,
    doubtful: &[u16],
    readings: &mut HashMap<u16, Reading>,
) -> Roster {
    let host = names.host();
    // Who was seen meanwhile begins anew with the next doubt.
    readings.retain(|id, _| doubtful.contains(id));
    let attached = names
        .attached()
        .iter()
        .map(|attachment| attached(host, attachment, doubtful, readings))
        .collect();
    Roster {
        attached,
        by_id: names.by_id().clone(),
        by_address: names.by_address().clone(),
        version: names.version(),
    }
}

fn attached(
    host: &Netns,
    attachment: &Attachment,
    doubtful: &[u16],
    readings: &mut HashMap<u16, Reading>,
) -> Attached {
    let id = attachment.id.number();
    let counted = if doubtful.contains(&id) {
        health::counted(host, attachment).map(|now| {
            let new = Reading {
                first: now,
                last: now,
            };
            let reading = readings.entry(id).or_insert(new);
            // What was counted up to the last reading: what was counted since may still be on its way to us.
            let last = std::mem::replace(&mut reading.last, now);
            [0, 1].map(|way: usize| last[way].saturating_sub(reading.first[way]))
        })
    } else {
        None
    };
    Attached {
        id,
        name: attachment.workload.name.as_str().into(),
        interface: attachment.interface.as_str().into(),
        mode: match attachment.mode {
            nvnet::Mode::Inline => "inline",
            nvnet::Mode::Mirror => "mirror",
        },
        damage: match &attachment.health {
            nvnet::Health::Whole => None,
            nvnet::Health::Damaged { why } => Some(why.clone()),
        },
        counted,
    }
}
