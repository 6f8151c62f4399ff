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
    /// Adds those of another source.
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
        self.frames += frames;
        self.wire_octets += wire_octets;
        self.truncated += truncated;
        self.dropped += dropped;
        self.dropped_untold += dropped_untold;
        self.freezes += freezes;
    }
}
