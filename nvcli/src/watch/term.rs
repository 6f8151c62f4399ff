//! The terminal: taken, and given back however the program ends.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor;
use ratatui::crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    self, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// Whether the terminal is ours at the moment, so that it is given back once, by whoever comes first.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours; dropping it gives it back.
pub(crate) struct Terminal {
    pub(crate) screen: ratatui::Terminal<CrosstermBackend<io::Stdout>>,
    mouse: bool,
}

impl Terminal {
    /// Takes the terminal. A panic on any thread gives it back before it is told.
    pub(crate) fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let told = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                give_back();
                told(info);
            }));
        });
        enter()?;
        let screen = ratatui::Terminal::new(CrosstermBackend::new(io::stdout()))
            .inspect_err(|_| give_back())?;
        Ok(Self {
            screen,
            mouse: false,
        })
    }

    /// Turns the mouse on or off. While it is on, the terminal selects no text.
    pub(crate) fn set_mouse(&mut self, on: bool) -> io::Result<()> {
        self.mouse = on;
        if on {
            execute!(io::stdout(), EnableMouseCapture)
        } else {
            execute!(io::stdout(), DisableMouseCapture)
        }
    }

    /// Stops the program as Ctrl-Z does elsewhere; returns when it is continued, with the terminal taken again.
    pub(crate) fn suspend(&mut self) -> io::Result<()> {
        give_back();
        raise(Signal::SIGTSTP).map_err(io::Error::from)?;
        enter()?;
        if self.mouse {
            self.set_mouse(true)?;
        }
        // It may have another size by now, and shows something else.
        self.screen.autoresize()?;
        self.screen.clear()
    }
}

/// Whether it is ours: a panic elsewhere gives it back, and nothing may be drawn over what that tells.
pub(crate) fn is_taken() -> bool {
    TAKEN.load(Ordering::SeqCst)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(
        io::stdout(),
        EnterAlternateScreen,
        terminal::DisableLineWrap,
        cursor::Hide
    )
    .inspect_err(|_| give_back())
}

/// What somebody typed, as far as it is known without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// There may be something to read, or the size has changed.
    Maybe,
    /// The terminal is gone.
    Gone,
}

/// The terminal that keys come from.
#[derive(Debug)]
pub(crate) struct Keyboard(Option<File>);

impl Keyboard {
    /// Standard input, or the terminal of the process when that is something else.
    pub(crate) fn open() -> io::Result<Self> {
        if io::stdin().is_terminal() {
            return Ok(Self(None));
        }
        File::open("/dev/tty").map(|tty| Self(Some(tty)))
    }

    /// Waits up to `wait` for keys.
    ///
    /// crossterm reads on and on where there is nothing left to read, so a terminal that was hung up must not reach it.
    pub(crate) fn wait(&self, wait: Duration) -> io::Result<Typed> {
        let stdin = io::stdin();
        let fd = self.0.as_ref().map_or(stdin.as_fd(), File::as_fd);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            // SIGWINCH is such a signal.
            Err(Errno::EINTR) => return Ok(Typed::Maybe),
            other => other.map_err(io::Error::from)?,
        };
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        let is_gone = fds[0].revents().is_some_and(|told| told.intersects(gone));
        Ok(if is_gone { Typed::Gone } else { Typed::Maybe })
    }
}

/// Gives the terminal back if it is ours. Nobody is there to be told when it cannot be.
pub(crate) fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut out = io::stdout();
    let _ = execute!(
        out,
        DisableMouseCapture,
        terminal::EnableLineWrap,
        LeaveAlternateScreen,
        cursor::Show
    );
    let _ = out.flush();
    let _ = disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::process::{Command, Stdio};

    use nix::pty::openpty;
    use nix::sys::termios::{self, LocalFlags};

    use super::*;

    const INSIDE: &str = "watch::term::tests::a_panic_while_the_terminal_is_ours";

    /// The other half of the next test, which runs it by name: on its own it does nothing that could be seen.
    #[test]
    #[ignore = "run by a_panic_gives_the_terminal_back, on a terminal of its own"]
    fn a_panic_while_the_terminal_is_ours() {
        let terminal = Terminal::take().expect("a terminal");
        std::thread::spawn(|| panic!("somewhere else"))
            .join()
            .expect_err("it panics");
        assert!(!is_taken());
        drop(terminal);
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        let pty = openpty(None, None).expect("a pseudo terminal");
        let before = termios::tcgetattr(pty.slave.as_fd()).expect("its settings");
        assert!(
            before
                .local_flags
                .contains(LocalFlags::ICANON | LocalFlags::ECHO)
        );
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("another handle"));
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", INSIDE, "--ignored", "--nocapture"])
            .stdin(end(&pty.slave))
            .stdout(end(&pty.slave))
            .stderr(end(&pty.slave))
            .spawn()
            .expect("this test again");
        let ended = child.wait().expect("its end");
        let after = termios::tcgetattr(pty.slave.as_fd()).expect("its settings");
        drop(pty.slave);
        let mut told = Vec::new();
        // The read fails when the last handle of the other end is gone, after all has been read.
        let _ = std::fs::File::from(pty.master).read_to_end(&mut told);
        let told = String::from_utf8_lossy(&told);
        assert!(ended.success(), "{told}");
        let place = |text: &str| {
            told.find(text)
                .unwrap_or_else(|| panic!("no {text:?} in {told:?}"))
        };
        let (entered, left) = (place("\x1b[?1049h"), place("\x1b[?1049l"));
        assert!(entered < left && left < place("somewhere else"), "{told:?}");
        assert!(left < place("\x1b[?25h") && place("\x1b[?7l") < place("\x1b[?7h"));
        assert_eq!(told.matches("\x1b[?1049l").count(), 1);
        assert_eq!(before.local_flags, after.local_flags);
        assert_eq!(before.input_flags, after.input_flags);
        assert_eq!(before.output_flags, after.output_flags);
    }
}
