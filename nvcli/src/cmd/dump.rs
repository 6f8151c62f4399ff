//! `nvcli dump`: the last frames of containers, out of the memory of a run that keeps them.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nvcapture::{CaptureFile, FrameSource as _, Next};

use crate::args::duration;
use crate::capture_file::{Files, Rotation, chosen};
use crate::cmd::capture::not_for_the_terminal;
use crate::cmd::flows::wall_clock;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::names::Current;
use crate::open::{attached, host};
use crate::recorder::{self, Request};
use crate::render::text::grouped;
use crate::target::Target;

/// Write the last frames of attached containers to a pcapng file: what happened before you came
///
/// A run of `nvcli flows --keep SIZE` keeps the last frames in its memory; this asks it for them, by a socket that only root may use. Its
/// snap length says how much there is of each frame. The file is as of `nvcli capture`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  nvcli flows --watch --keep 64M                     keeps them, as long as it runs
  nvcli dump web-1 --last 60s -w before.pcapng
  nvcli dump web-1 -w - | tshark -r -")]
pub(crate) struct Dump {
    /// What to write: an attached container, pid:N or netns:NAME
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Only frames of this last time, such as 500ms, 60s, 5m; all that are kept by default
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    last: Option<Duration>,
    /// Where to write (- for standard output); an old file is replaced
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
}

/// Asks, and writes what comes.
pub(crate) fn run(args: &Dump, say: Say) -> Result<()> {
    if args.write.as_os_str() == "-" && io::stdout().is_terminal() {
        return Err(not_for_the_terminal());
    }
    let host = host()?;
    let mut listed = attached(&host)?;
    Current::default().apply(&mut listed);
    let chosen = chosen(&args.targets, &listed, say)?;
    let request = Request::new(
        host.id(),
        chosen.iter().map(|attachment| attachment.id.number()),
        args.last,
    );
    // Asked before a file is made: there may be nobody who kept anything.
    let answer = recorder::ask(&request)?;
    let mut files = Files::create(&args.write, &chosen, None, Rotation::default())?;
    files.leave_out_older();
    // While it was asked others may have got the marks.
    files.follow(&attached(&host)?, wall_clock(), say);
    let mut capture = CaptureFile::new(answer.frames);
    let mut octets = Vec::new();
    let read = loop {
        match capture.next_block() {
            Ok(Next::Block(block)) => {
                for frame in block.frames() {
                    files.write(&frame, &mut octets)?;
                }
            }
            Ok(Next::TimedOut) => {}
            Ok(Next::End) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    // What fell out while it was read is missing in between: lost, like what the kernel drops.
    files.lost = capture.stats().map_or(0, |stats| stats.dropped);
    let lost = files.lost;
    let files = files.finish()?;
    read.map_err(|error| {
        CliError::new(format!("the answer of process {} ended early", answer.pid))
            .caused_by(&error)
            .remedy(format!(
                "{} has what came until then; ask again",
                escape::text(&files.shown())
            ))
    })?;
    say.note(format_args!(
        "{} frames written to {}, {} fell out while they were read",
        grouped(files.frames()),
        escape::text(&files.shown()),
        grouped(lost)
    ));
    Ok(())
}
