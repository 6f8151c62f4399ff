//! The trait that rings and files share.

use std::time::Duration;

use crate::{Error, Frame, SourceStats};

/// What a source answers when asked for more.
#[derive(Debug)]
pub enum Next<B> {
    /// A run of frames.
    Block(B),
    /// Nothing came within the time given; there may be more later.
    TimedOut,
    /// There will never be more (the end of a file).
    End,
}

/// A run of frames that lie in memory together; given back to its source when dropped.
pub trait FrameBlock {
    /// The frames, oldest first. They borrow the block.
    fn frames(&self) -> impl Iterator<Item = Frame<'_>>;
}

/// Where frames come from: an AF_PACKET ring, or a capture file.
///
/// A source lends one block at a time and a block lends its frames, so nothing is copied and nothing outlives
/// the memory it lies in.
pub trait FrameSource {
    /// The run of frames this source lends.
    type Block<'s>: FrameBlock
    where
        Self: 's;

    /// The next run of frames; waits up to `wait`, or for ever when it is `None`. Files never wait.
    fn next_block(&mut self, wait: Option<Duration>) -> Result<Next<Self::Block<'_>>, Error>;

    /// Totals since the source was opened; they never decrease.
    fn stats(&mut self) -> Result<SourceStats, Error>;
}
