//! The first octets of a side, put together from pieces that come in any order.

/// As far as a side is looked at: the largest ClientHello in use is 2 KiB.
pub(super) const LIMIT: usize = 4_096;
/// Pieces that may stand apart at the same time: Chrome cuts a hello in many, and mixes them.
const APART: usize = 16;
/// Pieces that are taken at most.
pub(super) const MOST: u8 = 24;

/// Pieces, the gaps between them not yet filled.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    octets: Vec<u8>,
    /// Where there are octets: from and up to, in order, none touching the next.
    ranges: [(u16, u16); APART],
    used: u8,
    count: u8,
}

impl Pieces {
    /// Takes a piece that begins `at`; of what is there already the first one stays.
    pub(super) fn put(&mut self, at: usize, piece: &[u8]) {
        self.count = self.count.saturating_add(1);
        let end = (at + piece.len()).min(LIMIT);
        if at >= end {
            return;
        }
        let touches = |&&(from, to): &&(u16, u16)| usize::from(from) <= end && at <= to.into();
        let ranges = &self.ranges[..self.used.into()];
        let joined = ranges.iter().filter(touches).count();
        if joined == 0 && ranges.len() == APART {
            return;
        }
        if self.octets.len() < end {
            self.octets.resize(end, 0);
        }
        // What lies between the ranges is new.
        let (mut from, mut written) = (at, at);
        for &(start, stop) in ranges {
            let (start, stop) = (usize::from(start), usize::from(stop));
            if stop < at || start > end {
                continue;
            }
            if start > written {
                self.octets[written..start].copy_from_slice(&piece[written - at..start - at]);
            }
            written = written.max(stop);
            from = from.min(start);
        }
        if written < end {
            self.octets[written..end].copy_from_slice(&piece[written - at..end - at]);
            written = end;
        }
        let mut all = [(u16::MAX, u16::MAX); APART + 1];
        let apart = ranges.iter().filter(|range| !touches(range));
        let joined = [(from as u16, written as u16)];
        for (place, range) in all.iter_mut().zip(apart.chain(&joined)) {
            *place = *range;
        }
        all.sort_unstable();
        self.used = all.iter().filter(|range| range.0 != u16::MAX).count() as u8;
        self.ranges.copy_from_slice(&all[..APART]);
    }

    /// The octets from the beginning to the first gap.
    pub(super) fn front(&self) -> &[u8] {
        match self.ranges[..self.used.into()].first() {
            Some(&(0, to)) => &self.octets[..to.into()],
            _ => &[],
        }
    }

    /// Whether no more is taken.
    pub(super) fn is_full(&self) -> bool {
        self.count >= MOST || self.front().len() == LIMIT
    }

    /// Empty again; the memory stays.
    pub(super) fn clear(&mut self) {
        self.octets.clear();
        self.used = 0;
        self.count = 0;
    }
}
