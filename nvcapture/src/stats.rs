//! Totals of a source.

/// What a source has handed out and what was lost before it could, since it was opened.
///
/// Unit: frames, unless said otherwise. Totals only grow, although the kernel's own counters start again at every read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Frames handed out.
    pub frames: u64,
    /// Octets those frames had on the wire.
    pub wire_octets: u64,
    /// Frames that came with fewer octets than they had on the wire.
    pub truncated: u64,
    /// Frames the kernel dropped: the ring was full, or see [`dropped_untold`](Self::dropped_untold).
    ///
    /// Source: `tp_drops` of `PACKET_STATISTICS`.
    #[doc(alias = "tp_drops")]
    pub dropped: u64,
    /// Of those dropped: super-frames whose cut the kernel cannot tell beside them, such as SCTP's; always 0 where it is not asked.
    pub dropped_untold: u64,
    /// Times the kernel found no free block and stood still.
    ///
    /// Source: `tp_freeze_q_cnt` of `PACKET_STATISTICS`.
    #[doc(alias = "tp_freeze_q_cnt")]
    pub freezes: u64,
}

impl SourceStats {
    /// Adds those of another source; at the end of what can be told it stays there, as a file's losses may be anything.
    pub fn merge(&mut self, other: &Self) {
        // Field by field without `..`, so that none can be forgotten.
        let Self {
            frames,
            wire_octets,
            truncated,
            dropped,
            dropped_untold,
            freezes,
        } = other;
        self.frames = self.frames.saturating_add(*frames);
        self.wire_octets = self.wire_octets.saturating_add(*wire_octets);
        self.truncated = self.truncated.saturating_add(*truncated);
        self.dropped = self.dropped.saturating_add(*dropped);
        self.dropped_untold = self.dropped_untold.saturating_add(*dropped_untold);
        self.freezes = self.freezes.saturating_add(*freezes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sum_overflows() {
        let most = SourceStats {
            frames: 1,
            wire_octets: 2,
            truncated: 3,
            dropped: u64::MAX,
            dropped_untold: 4,
            freezes: 5,
        };
        let mut sum = most;
        sum.merge(&most);
        let expected = SourceStats {
            frames: 2,
            wire_octets: 4,
            truncated: 6,
            dropped: u64::MAX,
            dropped_untold: 8,
            freezes: 10,
        };
        assert_eq!(sum, expected);
    }
}
