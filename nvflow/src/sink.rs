//! Where records go.

use std::convert::Infallible;
use std::ops::ControlFlow;

use crate::FlowRecord;

/// Takes records, one at a time, as they are made.
pub trait Sink {
    /// Why a record could not be taken.
    type Error;

    /// Takes a record, which it may clone; [`ControlFlow::Break`] asks for no more.
    fn record(&mut self, record: &FlowRecord) -> Result<ControlFlow<()>, Self::Error>;
}

impl<S: Sink + ?Sized> Sink for &mut S {
    type Error = S::Error;

    fn record(&mut self, record: &FlowRecord) -> Result<ControlFlow<()>, Self::Error> {
        (**self).record(record)
    }
}

/// Keeps every record: for tests and short captures.
impl Sink for Vec<FlowRecord> {
    type Error = Infallible;

    fn record(&mut self, record: &FlowRecord) -> Result<ControlFlow<()>, Self::Error> {
        self.push(record.clone());
        Ok(ControlFlow::Continue(()))
    }
}

/// A [`Sink`] made of a closure; see [`sink_fn`].
#[derive(Clone, Copy, Debug)]
pub struct SinkFn<F>(F);

/// Makes a sink of a closure.
pub const fn sink_fn<F, E>(take: F) -> SinkFn<F>
where
    F: FnMut(&FlowRecord) -> Result<ControlFlow<()>, E>,
{
    SinkFn(take)
}

impl<F, E> Sink for SinkFn<F>
where
    F: FnMut(&FlowRecord) -> Result<ControlFlow<()>, E>,
{
    type Error = E;

    fn record(&mut self, record: &FlowRecord) -> Result<ControlFlow<()>, E> {
        (self.0)(record)
    }
}
