//! Records to NATS JetStream: at least once, each under an id by which what arrived twice can be told.
//!
//! The client is our own: async-nats brings 105 crates with it, takes no part in what has to be on disk before a crash, and its TLS
//! stack is of no use without a provider that is C and assembler.

mod client;
mod spool;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nvflow::FlowRecord;

use self::client::{Answer, Client};
use self::spool::{Place, Spool};
use super::backoff::Backoff;
use super::config::NatsTo;
use super::lane::{Exporter, Lane, Lost, Trouble};
use crate::render::flows::{Json, Lines as _};

/// Messages that wait for their acknowledgment at the same time, at most.
const WINDOW: usize = 1_024;
/// How long an acknowledgment may take.
const ACKNOWLEDGMENT: Duration = Duration::from_secs(10);

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: String,
    subject: String,
    body: Vec<u8>,
}

impl Entry {
    /// As octets: two lines, then the body.
    fn encoded(&self) -> Vec<u8> {
        [
            self.id.as_bytes(),
            b"\n",
            self.subject.as_bytes(),
            b"\n",
            &self.body,
        ]
        .concat()
    }

    fn decoded(octets: &[u8]) -> Option<Self> {
        let mut parts = octets.splitn(3, |octet| *octet == b'\n');
        let mut text = || String::from_utf8(parts.next()?.to_vec()).ok();
        Some(Self {
            id: text()?,
            subject: text()?,
            body: parts.next()?.to_vec(),
        })
    }
}

/// A message that is on its way.
struct Sent {
    entry: Entry,
    at: Instant,
    /// Where it is on disk, if it is.
    place: Option<Place>,
}

pub(super) struct Nats {
    to: NatsTo,
    client: Option<Client>,
    backoff: Backoff,
    spool: Option<Spool>,
    /// What was sent and not acknowledged, by the number under which the answer comes.
    sent: BTreeMap<u64, Sent>,
    json: Json<Vec<u8>>,
    host: String,
    /// What makes this run's ids different from all others'.
    run: String,
    next: u64,
    was_recovered: bool,
}

/// Sixteen digits that nobody else has.
fn token() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:016x}", RandomState::new().hash_one(now))
}

/// A text as one token of a subject.
fn as_token(raw: &str) -> String {
    let harmless = |c: char| !c.is_whitespace() && !c.is_control() && !".*>".contains(c);
    let token: String = raw
        .chars()
        .map(|c| if harmless(c) { c } else { '_' })
        .collect();
    if token.is_empty() {
        "_".to_owned()
    } else {
        token
    }
}

impl Nats {
    /// With its buffer on disk, if it has one; the broker may be away.
    pub(super) fn open(to: &NatsTo) -> io::Result<Self> {
        let spool = match &to.spool {
            Some(directory) => Some(Spool::open(directory, to.spool_size)?),
            None => None,
        };
        let host = match &to.host {
            Some(host) => host.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        Ok(Self {
            to: to.clone(),
            client: None,
            backoff: Backoff::default(),
            spool,
            sent: BTreeMap::new(),
            json: Json::new(Vec::new()),
            host: as_token(&host),
            run: token(),
            next: 0,
            was_recovered: false,
        })
    }

    fn entry(&mut self, record: &FlowRecord) -> Entry {
        let out = self.json.out_mut();
        out.clear();
        // Writing to memory does not fail.
        let _ = self.json.record(record).and_then(|()| self.json.flush());
        let mut body = self.json.out_mut().clone();
        body.pop();
        self.next += 1;
        let workload = as_token(record.labels.workload.as_deref().unwrap_or_default());
        Entry {
            id: format!("{}-{}-{}", self.host, self.run, self.next),
            subject: format!("{}.{}.{workload}", self.to.subject, self.host),
            body,
        }
    }

    fn disk(&self, error: &io::Error) -> Trouble {
        let directory = self.to.spool.as_deref().unwrap_or(std::path::Path::new(""));
        Trouble::new(format!("buffer {}", directory.display()), error)
    }

    /// The buffer is full, so records have to wait in the queue.
    fn full(&self) -> Result<(), Trouble> {
        match (&self.to.spool, &self.client) {
            (Some(directory), None) => Err(Trouble::new(
                format!("buffer {}", directory.display()),
                "it is full",
            )),
            _ => Ok(()),
        }
    }

    /// The broker is away: what it has not acknowledged, and what comes, goes to disk.
    fn put_aside(&mut self, records: &mut VecDeque<Arc<FlowRecord>>) -> Result<(), Trouble> {
        self.client = None;
        let Some(mut spool) = self.spool.take() else {
            return Ok(());
        };
        let put = self.put_into(&mut spool, records);
        self.spool = Some(spool);
        put.map_err(|error| self.disk(&error))
    }

    fn put_into(
        &mut self,
        spool: &mut Spool,
        records: &mut VecDeque<Arc<FlowRecord>>,
    ) -> io::Result<()> {
        // Those that came from there are there still.
        self.sent.retain(|_, sent| sent.place.is_none());
        spool.rewind();
        while let Some(first) = self.sent.first_entry() {
            if !spool.push(&first.get().entry)? {
                return Ok(());
            }
            first.remove();
        }
        while let Some(record) = records.front() {
            let entry = self.entry(record);
            if !spool.push(&entry)? {
                self.next -= 1;
                break;
            }
            records.pop_front();
        }
        spool.sync()
    }

    /// Sends what there is room for, from disk first.
    fn send(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        let mut spool = self.spool.take();
        let sent = self.send_with(&mut spool, records, lane);
        self.spool = spool;
        sent.map_err(|error| self.disk(&error))
    }

    fn send_with(
        &mut self,
        spool: &mut Option<Spool>,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> io::Result<()> {
        while self.sent.len() < WINDOW {
            let from_disk = spool.as_mut().map_or(Ok(None), Spool::pop)?;
            let (place, entry) = match from_disk {
                Some((place, entry)) => (Some(place), entry),
                None => match records.pop_front() {
                    Some(record) => (None, self.entry(&record)),
                    None => break,
                },
            };
            let Some(client) = &mut self.client else {
                break;
            };
            if Client::length(&entry) > client.max_payload {
                lane.lost(Lost::TooLarge, 1);
                if let (Some(spool), Some(place)) = (spool.as_mut(), place) {
                    spool.settle(place)?;
                }
                continue;
            }
            // Not the number of its id: what comes from disk has an id of another run.
            let number = self
                .sent
                .last_key_value()
                .map_or(0, |(number, _)| number + 1)
                .max(self.next);
            self.next = number + 1;
            client.publish(number, &entry);
            let at = Instant::now();
            self.sent.insert(number, Sent { entry, at, place });
        }
        Ok(())
    }

    /// Counts what was acknowledged.
    fn settle(&mut self, answers: Vec<(u64, Answer)>, lane: &Lane) -> Result<(), Trouble> {
        let mut not_now = None;
        for (number, answer) in answers {
            if let Answer::NotNow(why) = answer {
                not_now = Some(why);
                continue;
            }
            let Some(sent) = self.sent.remove(&number) else {
                continue;
            };
            match answer {
                Answer::Refused(why) => {
                    tracing::warn!("nats refused a record: {}", crate::escape::text(&why));
                    lane.lost(Lost::Refused, 1);
                }
                _ => lane.exported(1, sent.entry.body.len()),
            }
            if let (Some(place), Some(spool)) = (sent.place, &mut self.spool) {
                spool.settle(place).map_err(|error| {
                    Trouble::new("cannot delete a segment of the buffer", error)
                })?;
            }
        }
        match not_now {
            Some(why) => Err(Trouble::new(format!("nats {}", self.to.address), why)),
            None => Ok(()),
        }
    }

    fn deliver(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        if self.client.is_none() {
            let mut client = Client::connect(&self.to, lane)?;
            lane.connected();
            // Under the same ids: what had arrived is told apart by them.
            for (number, sent) in &mut self.sent {
                client.publish(*number, &sent.entry);
                sent.at = Instant::now();
            }
            self.client = Some(client);
        }
        let broken =
            |to: &NatsTo, error: io::Error| Trouble::new(format!("nats {}", to.address), error);
        loop {
            self.send(records, lane)?;
            let is_full = self.sent.len() >= WINDOW;
            let Some(client) = &mut self.client else {
                return Ok(());
            };
            client
                .flush(lane)
                .map_err(|error| broken(&self.to, error))?;
            // Without a reason to wait, others' records are not kept waiting.
            let patience = match is_full || lane.is_ending() {
                true if !self.sent.is_empty() => Duration::from_millis(50),
                _ => Duration::ZERO,
            };
            let answers = client
                .answers(patience)
                .map_err(|error| broken(&self.to, error))?;
            self.settle(answers, lane)?;
            let oldest = self.sent.first_key_value();
            if oldest.is_some_and(|(_, sent)| sent.at.elapsed() > ACKNOWLEDGMENT) {
                return Err(Trouble::new(
                    format!("nats {}", self.to.address),
                    "it acknowledges nothing",
                ));
            }
            let has_more = self.spool.as_ref().is_some_and(Spool::has_more);
            if lane.is_over() || (records.is_empty() && !has_more) {
                return Ok(());
            }
        }
    }
}

impl Exporter for Nats {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        if !std::mem::replace(&mut self.was_recovered, true) {
            lane.recovered(self.spool.as_ref().map_or(0, Spool::len));
        }
        // With a buffer on disk the broker's absence is no reason to leave records in the queue.
        let delivered = match self.spool {
            Some(_) if self.backoff.rest(Instant::now()) > Duration::ZERO => {
                self.put_aside(records)
            }
            _ => self.deliver(records, lane),
        };
        let result = match (delivered, &self.spool) {
            (Ok(()), _) => {
                if self.client.is_some() {
                    self.backoff.worked();
                }
                Ok(())
            }
            (Err(trouble), None) => {
                self.client = None;
                Err(trouble)
            }
            (Err(trouble), Some(_)) => {
                self.backoff.failed(Instant::now());
                lane.failed(trouble.why());
                self.put_aside(records)
            }
        };
        lane.kept(self.spool.as_ref().map_or(0, Spool::len));
        if records.is_empty() {
            result
        } else {
            result.and_then(|()| self.full())
        }
    }

    fn is_busy(&self) -> bool {
        !self.sent.is_empty() || self.spool.as_ref().is_some_and(|spool| spool.len() > 0)
    }

    /// What the broker did not acknowledge waits on disk for the next run.
    fn close(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        let put = self.put_aside(records);
        lane.kept(self.spool.as_ref().map_or(0, Spool::len));
        put
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_nothing_that_means_something() {
        assert_eq!(as_token("web-1"), "web-1");
        assert_eq!(as_token("a.b c*>\n"), "a_b_c___");
        assert_eq!(as_token(""), "_");
        assert_ne!(token(), token());
    }

    #[test]
    fn entries_survive_as_octets() {
        let entry = Entry {
            id: "h-1-2".to_owned(),
            subject: "a.b".to_owned(),
            body: b"{\n}\n".to_vec(),
        };
        assert_eq!(Entry::decoded(&entry.encoded()), Some(entry));
        assert_eq!(Entry::decoded(b"a\nb"), None);
    }
}
