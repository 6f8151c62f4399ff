//! How far a long file is read, in one line on standard error.

use std::io::{self, IsTerminal, Stderr, Write};
use std::time::{Duration, Instant};

use crate::render::text::count;

/// A run that is over before that shows none.
const DELAY: Duration = Duration::from_millis(500);
/// How often the line is drawn anew.
const EVERY: Duration = Duration::from_millis(100);
/// Marks of a whole bar.
const WIDTH: u64 = 30;

/// The line. It costs a look at the clock for each block of frames, not for each frame.
#[derive(Debug)]
pub(crate) struct Progress<W: Write = Stderr> {
    out: W,
    /// Octets of all files; `None` when that is not known.
    total: Option<u64>,
    due: Instant,
    drawn: bool,
}

impl Progress {
    /// A line on standard error; `None` when that is no terminal.
    pub(crate) fn start(total: Option<u64>) -> Option<Self> {
        let out = io::stderr();
        out.is_terminal()
            .then(|| Self::new(out, total, Instant::now()))
    }
}

impl<W: Write> Progress<W> {
    fn new(out: W, total: Option<u64>, now: Instant) -> Self {
        Self {
            out,
            total,
            due: now + DELAY,
            drawn: false,
        }
    }

    /// Draws the line if it is due: `octets` were read by `now`.
    pub(crate) fn at(&mut self, octets: u64, now: Instant) {
        if now < self.due {
            return;
        }
        self.due = now + EVERY;
        self.drawn = true;
        let read = count(octets);
        let line = match self.total {
            // A file may grow while it is read.
            Some(total) if octets <= total && total > 0 => {
                let part =
                    |of: u64| (u128::from(octets) * u128::from(of) / u128::from(total)) as u64;
                let marks = part(WIDTH) as usize;
                format!(
                    "[{}{}] {:>3} %  {read} of {} octets",
                    "#".repeat(marks),
                    ".".repeat(WIDTH as usize - marks),
                    part(100),
                    count(total),
                )
            }
            _ => format!("{read} octets read"),
        };
        // Who cannot see it is not told so.
        let _ = write!(self.out, "\r{line}\x1b[K").and_then(|()| self.out.flush());
    }
}

impl<W: Write> Drop for Progress<W> {
    /// Takes the line away.
    fn drop(&mut self) {
        if self.drawn {
            let _ = write!(self.out, "\r\x1b[K").and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(total: Option<u64>, at: &[(u64, u64)]) -> String {
        let start = Instant::now();
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, total, start);
        for &(millis, octets) in at {
            progress.at(octets, start + Duration::from_millis(millis));
        }
        drop(progress);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn it_shows_when_it_takes_long_and_is_taken_away() {
        assert_eq!(lines(Some(1_000), &[(0, 0), (499, 900)]), "");
        assert_eq!(
            lines(Some(1_000), &[(500, 500), (550, 600), (600, 1_000)]),
            "\r[###############...............]  50 %  500 of 1000 octets\x1b[K\
             \r[##############################] 100 %  1000 of 1000 octets\x1b[K\
             \r\x1b[K"
        );
    }

    #[test]
    fn without_a_size_it_tells_what_was_read() {
        for (total, octets) in [(None, 700), (Some(0), 700), (Some(600), 700)] {
            assert_eq!(
                lines(total, &[(500, octets)]),
                "\r700 octets read\x1b[K\r\x1b[K"
            );
        }
    }
}
