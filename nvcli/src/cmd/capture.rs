//! `nvcli capture`: the frames of attached containers, as pcapng files.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use nvcapture::{Next, Ring, RingConfig, SegmentSizes};
use nvnet::{BRIDGE, LinkEvents, Netns};

use crate::args::Capture;
use crate::capture_file::{Files, Rotation, chosen};
use crate::cmd::flows::{no_ring, wall_clock};
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::expression;
use crate::names::{Current, may_differ};
use crate::open::{attached, host, net};
use crate::render::text::grouped;
use crate::signals::Interrupt;

/// How long the capture sleeps at most before it looks at signals and clocks.
const TICK: Duration = Duration::from_millis(100);

/// Captures until the end is asked for.
pub(crate) fn run(args: &Capture, say: Say) -> Result<()> {
    let to_stdout = args.write.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(not_for_the_terminal());
    }
    if to_stdout && args.rotate.is_some() {
        return Err(CliError::usage(
            "--rotate makes numbered files: give -w a name for them, not standard output",
        ));
    }
    let filter = args
        .expression
        .as_deref()
        .map(expression::live)
        .transpose()?;
    let interrupt = Interrupt::listen()?;
    let mut holders = Holders::follow(host()?)?;
    let mut attached = attached(&holders.host)?;
    holders.has(&attached);
    Current::default().apply(&mut attached);
    let chosen = chosen(&args.targets, &attached, say)?;
    let config = RingConfig {
        snaplen: args.snaplen,
        filter,
        // A file cannot say how a super-frame is cut, so none need be lost for it.
        segment_sizes: SegmentSizes::Never,
        ..RingConfig::default()
    };
    let mut ring = Ring::open(&config, BRIDGE).map_err(|error| no_ring(&error))?;
    let rotation = Rotation {
        size: args.rotate,
        files: args.files,
    };
    let mut files = Files::create(&args.write, &chosen, args.snaplen, rotation)?;
    say.note(format_args!(
        "capturing {} interfaces to {}; Ctrl-C ends it",
        chosen.len(),
        escape::text(&files.shown())
    ));

    let read = copy(&mut ring, &mut holders, &mut files, (args, &interrupt, say));
    let lost = ring.stats().unwrap_or_default().dropped;
    files.lost = lost;
    // Also of a capture that failed; of both errors the first one counts.
    let files = files.finish();
    let read = read?;
    let files = files?;
    let numbered = match files.files() {
        1 => String::new(),
        many => format!(" to {} files", grouped(many)),
    };
    say.note(format_args!(
        "{} frames written{numbered}, {} of other containers passed over, {} dropped by the kernel",
        grouped(files.frames()),
        grouped(read - files.frames()),
        grouped(lost)
    ));
    Ok(())
}

/// What `-w -` says to a person.
pub(crate) fn not_for_the_terminal() -> CliError {
    CliError::usage(
        "a capture is not for the terminal: give -w a file, or pipe it (-w - | tshark -r -)",
    )
}

/// Who has the marks of frames: it is asked again when what is attached may be other than it was.
struct Holders {
    host: Netns,
    links: LinkEvents,
    /// The host's links that what was attached has.
    ports: Vec<u32>,
    /// It could not be asked, which was said.
    failed: bool,
}

impl Holders {
    fn follow(host: Netns) -> Result<Self> {
        let links =
            LinkEvents::open_one(&host).map_err(|error| net("cannot hear of links", &error))?;
        Ok(Self {
            host,
            links,
            ports: Vec::new(),
            failed: false,
        })
    }

    fn has(&mut self, attached: &[nvnet::Attachment]) {
        self.ports = attached.iter().map(nvnet::Attachment::port_index).collect();
    }

    /// Tells `files` who has them now.
    ///
    /// Whoever has got a mark did so before its first frame came: asked before a block is written, no frame is taken for another's.
    fn tell(&mut self, files: &mut Files, say: Say) -> Result<()> {
        let ports = &self.ports;
        let differs = may_differ(&mut self.links, |index| ports.contains(&index));
        let differs = differs.map_err(|error| net("cannot hear of links", &error))?;
        if !differs && !self.failed {
            return Ok(());
        }
        match attached(&self.host) {
            Ok(attached) => {
                self.failed = false;
                self.has(&attached);
                files.follow(&attached, wall_clock(), say);
            }
            // Links may come and go faster than they can be listed: a capture goes on.
            Err(error) if !self.failed => {
                self.failed = true;
                error.report();
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// Writes the frames of the interfaces wanted; gives how many frames were read.
fn copy(
    ring: &mut Ring,
    holders: &mut Holders,
    files: &mut Files,
    (args, interrupt, say): (&Capture, &Interrupt, Say),
) -> Result<u64> {
    let unreadable = |error: nvcapture::Error| {
        CliError::new(format!("cannot read {BRIDGE} any longer")).caused_by(&error)
    };
    let until = args.duration.map(|duration| Instant::now() + duration);
    let most = args.count.unwrap_or(u64::MAX);
    let mut octets = Vec::new();
    let mut read = 0;
    let mut stopped = false;
    let mut due = Instant::now() + TICK;
    loop {
        match ring.next_block(Some(TICK)) {
            Ok(Next::Block(block)) => {
                holders.tell(files, say)?;
                for frame in block.frames() {
                    read += 1;
                    if files.write(&frame, &mut octets)? && files.frames() == most {
                        return Ok(read);
                    }
                }
            }
            Ok(Next::TimedOut) | Err(nvcapture::Error::InterfaceDown { .. }) => {}
            Ok(Next::End) => return Ok(read),
            Err(error @ nvcapture::Error::InterfaceGone { .. }) => {
                say.warn(format_args!("{error}"));
                return Ok(read);
            }
            Err(error @ nvcapture::Error::Malformed { .. }) => tracing::warn!("{error}"),
            Err(error @ nvcapture::Error::Incomplete { .. }) => {
                // Nothing comes any more, however long it is asked for.
                tracing::warn!("{error}");
                return Ok(read);
            }
            Err(error) => return Err(unreadable(error)),
        }
        let now = Instant::now();
        if now >= due {
            due = now + TICK;
            holders.tell(files, say)?;
            files.lost = ring.stats().unwrap_or_default().dropped;
            files.flush()?;
            let is_over = || files.is_over() || until.is_some_and(|until| now >= until);
            if !stopped && (interrupt.is_asked() || is_over()) {
                ring.stop().map_err(unreadable)?;
                stopped = true;
            }
        }
    }
}
