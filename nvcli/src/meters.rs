//! Files metered by one thread or by many: what frames go into and records come out of.

use std::io;
use std::num::NonZeroU16;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};

use nvcapture::{Frame, FrameMeta, Timestamp};
use nvflow::{FlowRecord, Meter, MeterConfig, MeterStats, Shards, Sink};

use crate::exit::{CliError, Result};

/// Runs of frames on their way to a thread, at most: with fewer it would wait for the reader, with more memory would be taken for nothing.
const ON_THE_WAY: usize = 4;

/// One meter in this thread, or several in threads of their own.
#[derive(Debug)]
pub(crate) enum Meters {
    One(Box<Meter>),
    Many(Box<Crew>),
}

impl Meters {
    /// As many as `threads`; with one there is no other thread.
    pub(crate) fn new(config: MeterConfig, threads: u16) -> Result<Self> {
        let Some(threads) = NonZeroU16::new(threads).filter(|threads| threads.get() > 1) else {
            return Ok(Self::One(Box::new(meter(config)?)));
        };
        let shards = Shards::new(&config, threads);
        let (records, made) = mpsc::channel();
        let lanes = (0..shards.count())
            .map(|number| Lane::start(number, meter(shards.config())?, records.clone()))
            .collect::<Result<_>>()?;
        Ok(Self::Many(Box::new(Crew {
            shards,
            lanes,
            made,
            has_begun: false,
        })))
    }

    /// Meters a run of frames; records of connections that ended go to `out`.
    pub(crate) fn observe<'f>(
        &mut self,
        frames: impl Iterator<Item = Frame<'f>>,
        out: &mut impl Sink<Error = io::Error>,
    ) -> io::Result<ControlFlow<()>> {
        match self {
            Self::One(meter) => meter.observe(frames, out),
            Self::Many(crew) => crew.observe(frames, out),
        }
    }

    /// Shows `out` all connections that are still open, and tells what was done. `wanted` is whether it wants them.
    pub(crate) fn finish(
        self,
        out: &mut impl Sink<Error = io::Error>,
        wanted: bool,
    ) -> io::Result<MeterStats> {
        match self {
            Self::One(mut meter) => {
                if wanted {
                    let _full = meter.finish(out)?;
                }
                Ok(meter.stats())
            }
            Self::Many(crew) => crew.finish(out, wanted),
        }
    }
}

/// A meter, or why there is none.
pub(crate) fn meter(config: MeterConfig) -> Result<Meter> {
    Meter::new(config).map_err(|error| {
        CliError::new("cannot make the table of connections")
            .caused_by(&error)
            .remedy("a smaller --max-connections")
    })
}

/// Frames for one thread, copied out of the reader's buffer.
#[derive(Debug, Default)]
struct Run {
    octets: Vec<u8>,
    /// Where in `octets` each frame ends, and what is known of it.
    frames: Vec<(usize, FrameMeta)>,
    /// The time at which all meters begin, in the first run.
    begin: Option<Timestamp>,
    /// The time that the last frame told, whichever thread it is for.
    until: Timestamp,
}

impl Run {
    fn push(&mut self, frame: &Frame<'_>) {
        self.octets.extend_from_slice(frame.octets());
        self.frames.push((self.octets.len(), *frame.meta()));
    }

    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let mut start = 0;
        self.frames.iter().map(move |&(end, meta)| {
            let octets = self.octets.get(start..end).unwrap_or_default();
            start = end;
            Frame::new(octets, meta)
        })
    }

    fn clear(&mut self) {
        self.octets.clear();
        self.frames.clear();
        self.begin = None;
    }
}

/// A thread with a meter.
#[derive(Debug)]
struct Lane {
    /// What is being filled for it.
    run: Run,
    to: SyncSender<Run>,
    /// Runs it is done with, to be filled again.
    back: Receiver<Run>,
    thread: JoinHandle<Meter>,
}

impl Lane {
    fn start(number: usize, meter: Meter, records: Sender<Vec<FlowRecord>>) -> Result<Self> {
        let (to, runs) = mpsc::sync_channel(ON_THE_WAY);
        let (done, back) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("meter {number}"))
            .spawn(move || work(meter, &runs, &done, &records))
            .map_err(|error| {
                CliError::new("cannot start another thread")
                    .because(error)
                    .remedy("a smaller --threads")
            })?;
        Ok(Self {
            run: Run::default(),
            to,
            back,
            thread,
        })
    }

    /// Sends what was filled; the thread is there as long as we are.
    fn send(&mut self) {
        let next = self.back.try_recv().unwrap_or_default();
        let _gone = self.to.send(std::mem::replace(&mut self.run, next));
    }
}

/// What a thread does until there are no more runs.
fn work(
    mut meter: Meter,
    runs: &Receiver<Run>,
    done: &Sender<Run>,
    records: &Sender<Vec<FlowRecord>>,
) -> Meter {
    for mut run in runs {
        let mut made = Vec::new();
        let Ok(_) = match run.begin {
            Some(begin) => meter.expire(begin, &mut made),
            None => Ok(ControlFlow::Continue(())),
        };
        let Ok(_) = meter.observe(run.frames(), &mut made);
        // What others were shown tells the time too.
        let Ok(_) = meter.expire(run.until, &mut made);
        if !made.is_empty() {
            let _nobody_reads = records.send(made);
        }
        run.clear();
        let _nobody_fills = done.send(run);
    }
    meter
}

/// Threads that meter side by side, each its share of the connections.
#[derive(Debug)]
pub(crate) struct Crew {
    shards: Shards,
    lanes: Vec<Lane>,
    made: Receiver<Vec<FlowRecord>>,
    has_begun: bool,
}

impl Crew {
    fn observe<'f>(
        &mut self,
        frames: impl Iterator<Item = Frame<'f>>,
        out: &mut impl Sink<Error = io::Error>,
    ) -> io::Result<ControlFlow<()>> {
        let Self {
            shards,
            lanes,
            has_begun,
            ..
        } = self;
        let mut last = None;
        frames.for_each(|frame| {
            if !*has_begun {
                *has_begun = true;
                for lane in &mut *lanes {
                    lane.run.begin = Some(frame.timestamp());
                }
            }
            last = Some(frame.timestamp());
            if let Some(lane) = lanes.get_mut(shards.of(&frame)) {
                lane.run.push(&frame);
            }
        });
        if let Some(last) = last {
            for lane in lanes {
                lane.run.until = last;
                lane.send();
            }
        }
        while let Ok(records) = self.made.try_recv() {
            if hand_on(&records, out)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(
        self,
        out: &mut impl Sink<Error = io::Error>,
        mut wanted: bool,
    ) -> io::Result<MeterStats> {
        let Self { lanes, made, .. } = self;
        let mut meters = Vec::with_capacity(lanes.len());
        for Lane { to, thread, .. } in lanes {
            drop(to);
            meters.push(
                thread
                    .join()
                    .map_err(|_| io::Error::other("a metering thread panicked"))?,
            );
        }
        let mut total = MeterStats::default();
        while let Ok(records) = made.try_recv() {
            wanted = wanted && hand_on(&records, out)?.is_continue();
        }
        for mut meter in meters {
            if wanted {
                wanted = meter.finish(out)?.is_continue();
            }
            total.merge(&meter.stats());
        }
        Ok(total)
    }
}

fn hand_on(
    records: &[FlowRecord],
    out: &mut impl Sink<Error = io::Error>,
) -> io::Result<ControlFlow<()>> {
    for record in records {
        if out.record(record)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use nvflow::sink_fn;

    use super::*;

    #[test]
    fn a_run_gives_back_what_was_put_in() {
        let mut run = Run::default();
        let meta = |at| FrameMeta::ethernet(Timestamp::from_nanos(at), 99);
        for turn in 0..2 {
            for (octets, at) in [(&b"abc"[..], 1), (b"", 2), (b"defgh", 3)] {
                run.push(&Frame::new(octets, meta(at + turn)));
            }
            let seen: Vec<_> = run
                .frames()
                .map(|frame| (frame.octets().to_vec(), *frame.meta()))
                .collect();
            assert_eq!(
                seen,
                [
                    (b"abc".to_vec(), meta(1 + turn)),
                    (vec![], meta(2 + turn)),
                    (b"defgh".to_vec(), meta(3 + turn))
                ]
            );
            run.clear();
        }
    }

    #[test]
    fn who_wants_no_more_gets_no_more() {
        let mut meters = Meters::new(MeterConfig::default(), 2).expect("threads");
        let frame = Frame::new(&[0; 14], FrameMeta::ethernet(Timestamp::ZERO, 14));
        let mut none = sink_fn(|_: &FlowRecord| -> io::Result<ControlFlow<()>> {
            Err(io::Error::other("no record was wanted"))
        });
        let said = meters.observe([frame].into_iter(), &mut none);
        assert!(said.is_ok_and(|said| said.is_continue()));
        let stats = meters.finish(&mut none, false).expect("no record");
        assert_eq!((stats.frames, stats.unparsed + stats.not_ip), (1, 1));
    }
}
