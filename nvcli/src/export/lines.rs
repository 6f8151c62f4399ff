//! Records as JSON lines on their way out, with where each of them ends.

use std::collections::VecDeque;
use std::sync::Arc;

use nvflow::FlowRecord;

use super::lane::{Exporter, Lane, Trouble};
use crate::render::flows::{Json, Lines as _};

/// Lines that are being written: a line counts when all of it is.
pub(super) struct Pending {
    json: Json<Vec<u8>>,
    /// Where each line ends.
    ends: Vec<usize>,
    /// Lines that are written as a whole.
    done: usize,
    /// Octets that are written.
    at: usize,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self {
            json: Json::new(Vec::new()),
            ends: Vec::new(),
            done: 0,
            at: 0,
        }
    }

    /// Takes `records`, when what it took before is written.
    pub(super) fn fill(&mut self, records: &mut VecDeque<Arc<FlowRecord>>) {
        if !self.is_empty() {
            return;
        }
        (self.done, self.at) = (0, 0);
        self.ends.clear();
        self.json.out_mut().clear();
        for record in records.drain(..) {
            // Writing to memory does not fail.
            let _ = self.json.record(&record).and_then(|()| self.json.flush());
            self.ends.push(self.json.out_mut().len());
        }
    }

    /// Whether all of it is written.
    pub(super) fn is_empty(&self) -> bool {
        self.done == self.ends.len()
    }

    /// The end of the last line that is written as a whole.
    fn settled(&self) -> usize {
        let last = self.done.checked_sub(1);
        last.and_then(|last| self.ends.get(last))
            .copied()
            .unwrap_or(0)
    }

    /// What is to be written next: whole lines of up to `most` octets, but at least one; or the rest of one that was begun.
    pub(super) fn next(&mut self, most: u64) -> &[u8] {
        let settled = self.settled();
        let fits = |end: &usize| (*end - settled) as u64 <= most;
        let lines = self.ends[self.done..]
            .iter()
            .take_while(|end| fits(end))
            .count();
        let last = (self.done + lines.max(1)).min(self.ends.len());
        let end = last.checked_sub(1).map_or(0, |last| self.ends[last]);
        &self.json.out_mut()[self.at..end]
    }

    /// The length of the next line.
    pub(super) fn next_line(&self) -> u64 {
        let end = self.ends.get(self.done).copied();
        end.map_or(0, |end| (end - self.settled()) as u64)
    }

    /// Octets were written; gives how many lines came to their end with it, and their octets.
    pub(super) fn wrote(&mut self, octets: usize) -> (usize, usize) {
        let (done, settled) = (self.done, self.settled());
        self.at += octets;
        while self.ends.get(self.done).is_some_and(|end| *end <= self.at) {
            self.done += 1;
        }
        (self.done - done, self.settled() - settled)
    }

    /// What was written of a line that is not whole is to be written again; gives how many octets that are.
    pub(super) fn rewind(&mut self) -> usize {
        let begun = self.at - self.settled();
        self.at -= begun;
        begun
    }
}

/// Writes what is pending to `out`, as it takes it.
pub(super) fn write(
    pending: &mut Pending,
    out: &mut dyn std::io::Write,
    lane: &Lane,
) -> Result<(), std::io::Error> {
    use std::io::ErrorKind;
    while !pending.is_empty() {
        match out.write(pending.next(u64::MAX)) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(octets) => {
                let (records, octets) = pending.wrote(octets);
                lane.exported(records, octets);
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock | ErrorKind::TimedOut if !lane.is_over() => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Somewhere to write lines to, that is opened again when it fails.
pub(super) trait Open: Send {
    /// Opens it.
    fn open(&mut self, lane: &Lane) -> Result<Box<dyn std::io::Write + Send>, Trouble>;
    /// What failed when writing does.
    fn what(&self) -> String;
}

/// JSON lines to a stream.
pub(super) struct Lines<O> {
    open: O,
    out: Option<Box<dyn std::io::Write + Send>>,
    pending: Pending,
}

impl<O: Open> Lines<O> {
    pub(super) fn new(open: O) -> Self {
        Self {
            open,
            out: None,
            pending: Pending::new(),
        }
    }
}

impl<O: Open> Exporter for Lines<O> {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        let out = match &mut self.out {
            Some(out) => out,
            None => {
                let out = self.open.open(lane)?;
                lane.connected();
                self.out.insert(out)
            }
        };
        self.pending.fill(records);
        write(&mut self.pending, out, lane).map_err(|error| {
            self.out = None;
            self.pending.rewind();
            Trouble::new(self.open.what(), error)
        })
    }

    fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::lane::tests::record;

    #[test]
    fn lines_are_counted_when_they_are_whole() {
        let mut records: VecDeque<_> = (0..3).map(|port| Arc::new(record(port))).collect();
        let mut pending = Pending::new();
        pending.fill(&mut records);
        assert!(records.is_empty());
        let all = String::from_utf8(pending.next(u64::MAX).to_vec()).expect("text");
        let lines: Vec<&str> = all.lines().collect();
        assert_eq!(lines.len(), 3);
        for (line, port) in lines.iter().zip(0..) {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(value["sourceTransportPort"], port);
        }
        let first = lines[0].len() + 1;
        assert_eq!(pending.next_line(), first as u64);
        // One line at least, however little room there is.
        assert_eq!(pending.next(1).len(), first);
        assert_eq!(pending.next(2 * first as u64).len(), 2 * first);
        assert_eq!(pending.wrote(first + 10), (1, first));
        // The connection breaks: the line that was begun is written again.
        assert_eq!(pending.rewind(), 10);
        assert_eq!(pending.next(u64::MAX), &all.as_bytes()[first..]);
        assert_eq!(pending.wrote(all.len() - first).0, 2);
        assert!(pending.is_empty());
    }
}
