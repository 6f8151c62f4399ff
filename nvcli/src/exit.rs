//! How a run ends: the exit code, and the error a person reads.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::escape;

/// What the exit code says of the machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, or whoever read our output has had enough.
    Done,
    /// Failed; nothing is left of the attempt.
    Failed,
    /// The command line cannot be followed; nothing was tried.
    Usage,
    /// Failed, and something is left in the kernel.
    Left,
}

impl Exit {
    const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Left => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What went wrong, why, what state the machine is in, and what to do.
#[derive(Debug)]
pub(crate) struct CliError(Box<Told>);

#[derive(Debug)]
struct Told {
    exit: Exit,
    what: String,
    because: Vec<String>,
    undone: Option<String>,
    left: Vec<String>,
    remedy: Option<String>,
}

/// A result whose error is ready to be shown.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// An error that left nothing behind.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(Box::new(Told {
            exit: Exit::Failed,
            what: what.into(),
            because: Vec::new(),
            undone: None,
            left: Vec::new(),
            remedy: None,
        }))
    }

    /// A command line that cannot be followed.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(what).with(Exit::Usage)
    }

    fn with(mut self, exit: Exit) -> Self {
        self.0.exit = exit;
        self
    }

    /// The reader of our output went away: not an error to anybody.
    fn closed_pipe() -> Self {
        Self::new("the reader of the output went away").with(Exit::Done)
    }

    /// Writing our own output failed.
    pub(crate) fn output(source: &io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Self::closed_pipe();
        }
        Self::new("cannot write the output")
            .because(source)
            .remedy("make room where it is written to, or write it elsewhere")
    }

    /// Adds the next deeper cause.
    pub(crate) fn because(mut self, cause: impl fmt::Display) -> Self {
        self.0.because.push(cause.to_string());
        self
    }

    /// Adds `error` and all of its sources as causes; a level that repeats the one above it is left out.
    pub(crate) fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self
                .0
                .because
                .last()
                .is_none_or(|above| !above.ends_with(&text))
            {
                self.0.because.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Says that the attempt was taken back.
    pub(crate) fn undone(mut self, undone: impl Into<String>) -> Self {
        self.0.undone = Some(undone.into());
        self
    }

    /// Says what is still in the kernel; any such line makes the exit code of a failure 3.
    pub(crate) fn left(mut self, left: impl IntoIterator<Item = String>) -> Self {
        self.0.left.extend(left);
        if !self.0.left.is_empty() && self.0.exit != Exit::Done {
            self.0.exit = Exit::Left;
        }
        self
    }

    /// Says what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// The exit code this error ends the run with.
    #[cfg(test)]
    pub(crate) fn exit(&self) -> Exit {
        self.0.exit
    }

    /// What went wrong, without the causes.
    pub(crate) fn what(&self) -> &str {
        &self.0.what
    }

    /// The causes, in one line.
    pub(crate) fn causes(&self) -> String {
        self.0.because.join(": ")
    }

    /// What to do about it, if there is something.
    pub(crate) fn to_do(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// Prints the error on standard error (a closed pipe is silent) and gives the exit code.
    pub(crate) fn report(&self) -> Exit {
        if self.0.exit != Exit::Done {
            // Nobody left to tell when standard error is gone too.
            let _ = io::stderr().write_all(self.to_string().as_bytes());
        }
        self.0.exit
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        writeln!(text, "error: {}", escape::text(&self.0.what))?;
        for cause in &self.0.because {
            writeln!(text, "  because: {}", escape::text(cause))?;
        }
        if let Some(undone) = &self.0.undone {
            writeln!(text, "  undone: {}", escape::text(undone))?;
        }
        for left in &self.0.left {
            writeln!(text, "  left: {}", escape::text(left))?;
        }
        if let Some(remedy) = &self.0.remedy {
            writeln!(text, "  try: {}", escape::text(remedy))?;
        }
        f.write_str(&text)
    }
}

/// What a run says beside its records: always on standard error, nothing when quiet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Say {
    quiet: bool,
}

impl Say {
    /// Says everything, or nothing but errors and warnings when `quiet`.
    pub(crate) const fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether nothing but errors and warnings is said.
    pub(crate) const fn is_quiet(self) -> bool {
        self.quiet
    }

    /// One line about what goes on. The text has to be harmless already.
    pub(crate) fn note(self, line: impl fmt::Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// One line that is said even when quiet. The text has to be harmless already.
    pub(crate) fn warn(self, line: impl fmt::Display) {
        let _ = writeln!(io::stderr(), "warning: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_from_effect_to_cause_to_remedy() {
        let error = CliError::new("cannot attach to container web-1")
            .because("rename `eth0` in netns pid:4711")
            .because("Device or resource busy (os error 16)")
            .undone("all changes; the container is as it was")
            .remedy("nvcli doctor web-1");
        assert_eq!(
            error.to_string(),
            "error: cannot attach to container web-1\n  because: rename `eth0` in netns pid:4711\n  \
             because: Device or resource busy (os error 16)\n  undone: all changes; the container is as it was\n  \
             try: nvcli doctor web-1\n"
        );
        assert_eq!(error.exit(), Exit::Failed);
    }

    #[test]
    fn what_is_left_decides_the_exit_code() {
        assert_eq!(CliError::new("x").left(Vec::new()).exit(), Exit::Failed);
        assert_eq!(
            CliError::new("x").left(["nv-in-0001".to_owned()]).exit(),
            Exit::Left
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(
            CliError::output(&io::ErrorKind::BrokenPipe.into()).exit(),
            Exit::Done
        );
        assert_eq!(
            CliError::output(&io::ErrorKind::StorageFull.into()).exit(),
            Exit::Failed
        );
    }

    #[test]
    fn hostile_text_in_an_error_reaches_no_terminal_raw() {
        let error = CliError::new("no container \x1b[2Jx\nerror: fake").because("\u{202e}gnp");
        let text = error.to_string();
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'));
        assert_eq!(text.lines().count(), 2);
    }
}
