//! A bounded queue of records between the threads of the rings and one that takes them.
//!
//! A ring's thread locks it once for a block of frames, not for a record. When it is full, records are dropped and counted, or, where
//! nothing may be lost, the ring's thread waits and the kernel drops and counts frames.

use std::collections::VecDeque;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvflow::FlowRecord;

use crate::engine::Receiver;

/// Records that a sender gathers at most before it hands them on.
const GATHERED: usize = 1_024;

/// What a sender does when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// It drops the record and counts it.
    Drop,
    /// It waits.
    Wait,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to take, or no sender left.
    filled: Condvar,
    /// There is room, or nobody to take.
    emptied: Condvar,
    bound: usize,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<FlowRecord>,
    senders: usize,
    dropped: u64,
    most: usize,
    /// Nobody takes any longer.
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts records into the queue; one for each ring.
#[derive(Debug)]
pub(crate) struct Sender {
    gathered: Vec<FlowRecord>,
    when_full: WhenFull,
    shared: Arc<Shared>,
}

/// Takes records out of the queue.
#[derive(Debug)]
pub(crate) struct Records {
    shared: Arc<Shared>,
}

/// Totals of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueStats {
    /// Records in it now.
    pub(crate) waiting: usize,
    /// The most there ever were.
    pub(crate) most: usize,
    /// Records dropped because it was full.
    pub(crate) dropped: u64,
}

/// A view of the queue's totals.
#[derive(Clone, Debug)]
pub(crate) struct Gauge {
    shared: Arc<Shared>,
}

impl Gauge {
    /// The totals.
    pub(crate) fn read(&self) -> QueueStats {
        let state = self.shared.lock();
        QueueStats {
            waiting: state.records.len(),
            most: state.most,
            dropped: state.dropped,
        }
    }
}

/// A queue of up to `bound` records, and what makes its senders.
pub(crate) fn bounded(bound: usize, when_full: WhenFull) -> (impl FnMut() -> Sender, Records) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        filled: Condvar::new(),
        emptied: Condvar::new(),
        bound: bound.max(1),
    });
    let records = Records {
        shared: Arc::clone(&shared),
    };
    let senders = move || {
        shared.lock().senders += 1;
        Sender {
            gathered: Vec::new(),
            when_full,
            shared: Arc::clone(&shared),
        }
    };
    (senders, records)
}

impl Sender {
    /// Hands on what was gathered.
    fn send(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        let mut gathered = self.gathered.drain(..);
        loop {
            let room = self.shared.bound.saturating_sub(state.records.len());
            state.records.extend(gathered.by_ref().take(room));
            state.most = state.most.max(state.records.len());
            self.shared.filled.notify_one();
            if gathered.len() == 0 {
                return;
            }
            if self.when_full == WhenFull::Drop || state.is_closed {
                state.dropped += gathered.len() as u64;
                return;
            }
            state = self
                .shared
                .emptied
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Receiver for Sender {
    fn record(&mut self, record: &FlowRecord) -> ControlFlow<()> {
        self.gathered.push(record.clone());
        if self.gathered.len() >= GATHERED {
            self.send();
        }
        ControlFlow::Continue(())
    }

    fn pause(&mut self) {
        self.send();
    }

    fn closing(&mut self) {
        self.when_full = WhenFull::Wait;
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.send();
        self.shared.lock().senders -= 1;
        self.shared.filled.notify_one();
    }
}

impl Records {
    /// All that is in the queue; waits up to `wait` for something. `None` when there will never be more.
    pub(crate) fn take(&self, wait: Duration) -> Option<VecDeque<FlowRecord>> {
        let until = Instant::now() + wait;
        let mut state = self.shared.lock();
        loop {
            if !state.records.is_empty() {
                let taken = mem::take(&mut state.records);
                self.shared.emptied.notify_all();
                return Some(taken);
            }
            if state.senders == 0 {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(VecDeque::new());
            }
            state = self
                .shared
                .filled
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// To see how full it is.
    pub(crate) fn gauge(&self) -> Gauge {
        Gauge {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.emptied.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn record(number: u16) -> FlowRecord {
        let mut record = FlowRecord::default();
        record.source.port = number;
        record
    }

    fn ports(records: &VecDeque<FlowRecord>) -> Vec<u16> {
        records.iter().map(|record| record.source.port).collect()
    }

    #[test]
    fn what_has_no_room_is_dropped_and_counted() {
        let (mut sender, records) = bounded(3, WhenFull::Drop);
        let mut sender = sender();
        for number in 0..5 {
            assert!(sender.record(&record(number)).is_continue());
        }
        sender.pause();
        let gauge = records.gauge();
        assert_eq!(
            gauge.read(),
            QueueStats {
                waiting: 3,
                most: 3,
                dropped: 2
            }
        );
        assert_eq!(ports(&records.take(Duration::ZERO).unwrap()), [0, 1, 2]);
        assert!(sender.record(&record(9)).is_continue());
        drop(sender);
        assert_eq!(ports(&records.take(Duration::ZERO).unwrap()), [9]);
        assert_eq!(gauge.read().dropped, 2);
        assert_eq!(gauge.read().waiting, 0);
    }

    #[test]
    fn the_end_comes_after_the_last_record_of_the_last_sender() {
        let (mut senders, records) = bounded(8, WhenFull::Drop);
        let (mut one, two) = (senders(), senders());
        drop(senders);
        assert!(one.record(&record(1)).is_continue());
        drop(one);
        assert_eq!(ports(&records.take(Duration::ZERO).unwrap()), [1]);
        assert!(records.take(Duration::ZERO).unwrap().is_empty());
        drop(two);
        assert!(records.take(Duration::from_secs(60)).is_none());
    }

    #[test]
    fn nothing_is_lost_by_a_sender_that_waits() {
        let (mut senders, records) = bounded(2, WhenFull::Drop);
        let mut sender = senders();
        drop(senders);
        sender.closing();
        let sending = thread::spawn(move || {
            for number in 0..5_000 {
                assert!(sender.record(&record(number)).is_continue());
            }
        });
        let mut all = Vec::new();
        while let Some(taken) = records.take(Duration::from_secs(60)) {
            assert!(taken.len() <= 2);
            all.extend(ports(&taken));
        }
        sending.join().unwrap();
        assert_eq!(all, (0..5_000).collect::<Vec<u16>>());
        assert_eq!(records.gauge().read().dropped, 0);
    }

    #[test]
    fn a_sender_does_not_wait_for_somebody_who_is_gone() {
        let (mut senders, records) = bounded(1, WhenFull::Wait);
        let mut sender = senders();
        let gauge = records.gauge();
        drop(records);
        for number in 0..3 {
            assert!(sender.record(&record(number)).is_continue());
        }
        sender.pause();
        assert_eq!(gauge.read().dropped, 2);
    }
}
