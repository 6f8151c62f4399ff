//! A terminal that a test can look at, and what is expected on it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nvnet::Netns;

use crate::common::{ensure, sh_in};
use crate::stage::{NVCLI, PATIENCE, Stage};

/// A terminal of a tmux server of its own, on the lab's host.
pub(crate) struct Screen {
    server: String,
    directory: tempfile::TempDir,
    host: Netns,
}

impl Screen {
    /// Runs `command` in a shell there, in the test's folder.
    pub(crate) fn run(
        stage: &Stage,
        (width, height): (u16, u16),
        environment: &str,
        command: &str,
    ) -> Result<Self, Failed> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let screen = Self {
            server: format!("nvt{}-{number}", std::process::id()),
            directory: tempfile::tempdir()?,
            host: stage.lab.host.clone(),
        };
        let script = screen.file("script");
        std::fs::write(&script, format!("cd ${{0%/*}}\n{command}\n"))?;
        screen.tmux(&format!(
            "new-session -d -x {width} -y {height} \
             'env -u NO_COLOR -u COLORTERM LC_ALL=C.UTF-8 DOCKER_HOST=unix:///nonexistent {environment} bash --norc --noprofile {}'",
            script.display()
        ))?;
        Ok(screen)
    }

    /// The view, and what the shell says when it has ended. The number of its process is in the file `pid`.
    pub(crate) fn view(stage: &Stage, size: (u16, u16), arguments: &str) -> Result<Self, Failed> {
        Self::view_between(stage, size, arguments, ("true", "echo ended with $?"))
    }

    /// The view between two commands.
    pub(crate) fn view_between(
        stage: &Stage,
        size: (u16, u16),
        arguments: &str,
        (before, after): (&str, &str),
    ) -> Result<Self, Failed> {
        let view = format!("echo $$ > pid; exec {NVCLI} --quiet flows --watch {arguments}");
        let command = format!("{before}\nsh -c '{view}'\n{after}\nsleep 1000");
        Self::run(stage, size, "", &command)
    }

    /// A shell that somebody types into.
    pub(crate) fn shell(stage: &Stage, size: (u16, u16)) -> Result<Self, Failed> {
        let screen = Self::run(
            stage,
            size,
            "",
            "exec env PS1=ready: bash --norc --noprofile",
        )?;
        screen.shows("ready:")?;
        Ok(screen)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn pid(&self) -> Result<String, Failed> {
        Ok(std::fs::read_to_string(self.file("pid"))?.trim().to_owned())
    }

    pub(crate) fn tmux(&self, command: &str) -> Result<String, Failed> {
        // Its socket is in a folder that goes with the test; the user's own settings are not read.
        let folder = self.directory.path().display();
        sh_in(
            &self.host,
            &format!(
                "env -u TMUX TMUX_TMPDIR={folder} tmux -L {} -f /dev/null {command}",
                self.server
            ),
        )
    }

    pub(crate) fn keys(&self, keys: &str) -> Result<(), Failed> {
        self.tmux(&format!("send-keys {keys}")).map(drop)
    }

    /// What is seen.
    pub(crate) fn text(&self) -> Result<String, Failed> {
        self.tmux("capture-pane -p")
    }

    /// The same when it is as waited for.
    pub(crate) fn once(&self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String, Failed> {
        let until = Instant::now() + PATIENCE;
        loop {
            let text = self.text()?;
            if is_it(&text) {
                return Ok(text);
            }
            if Instant::now() > until {
                return Err(format!("{what} is never seen:\n{text}").into());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn shows(&self, what: &str) -> Result<String, Failed> {
        self.once(what, |text| text.contains(what))
    }

    /// Waits until the screen is the one in the file of that name.
    pub(crate) fn agrees(&self, name: &str, rule: Mask) -> Result<(), Failed> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/watch/snapshots")
            .join(format!("{name}.txt"));
        if std::env::var_os("NV_TESTS_UPDATE").is_some() {
            // Whoever writes them anew looks at them: a screen is taken once it has not changed for three refreshes.
            let mut seen = masked(&self.text()?, rule);
            let mut same = 0;
            while same < 30 {
                thread::sleep(Duration::from_millis(100));
                let now = masked(&self.text()?, rule);
                same = if now == seen { same + 1 } else { 0 };
                seen = now;
            }
            std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
            std::fs::write(&path, &seen)?;
        }
        let expected = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let screen = self.text()?;
            let seen = masked(&screen, rule);
            if seen == expected {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(differs(name, &expected, &seen, &screen).into());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What tmux knows of the terminal.
    pub(crate) fn told(&self, format: &str) -> Result<String, Failed> {
        Ok(self
            .tmux(&format!("display-message -p '{format}'"))?
            .trim()
            .to_owned())
    }

    /// That neither the text nor what it is drawn with has anything of `harmful`.
    pub(crate) fn is_harmless(&self, harmful: &[&str]) -> Result<(), Failed> {
        let drawn = self.tmux("capture-pane -e -p")?;
        let found = harmful.iter().find(|harmful| drawn.contains(**harmful));
        ensure(found.is_none(), format!("{found:?} in {drawn:?}"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.tmux("kill-server");
    }
}

/// What cannot be the same twice, and by what rule it is masked. In the first line always the numbers before `B/s`, and how many blanks
/// are between words; below the titles what the rule says. Names, ports of servers, states, how many connections there are, titles and where
/// everything stands have to be the same, and the last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// Numbers stand on the right: each with its unit, and the dot that stands for zero, becomes `#` where its last
    /// character is; ports that the kernel chose for clients become `:#####`, and bars become blanks.
    Numbers,
    /// Numbers stand on the left: the same, and more than two blanks become two, before a number one.
    Values,
    /// Nothing else is masked.
    Nothing,
}

fn masked(screen: &str, rule: Mask) -> String {
    let mut masked = String::new();
    let last = screen.lines().count().saturating_sub(1);
    // Where numbers of connections end.
    let kept = screen.lines().nth(2).and_then(|titles| {
        let before = titles.split_once("CONNS")?.0;
        Some(before.chars().count() + "CONNS".len())
    });
    for (number, line) in screen.lines().enumerate() {
        let bars = |c: char| if ('▁'..='█').contains(&c) { ' ' } else { c };
        let line: String = line.chars().map(bars).collect();
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut column = 0;
        for at in 0..words.len() {
            let word = &words[at];
            column += word.chars().count() + usize::from(at > 0);
            let is_rate = words.get(at + 1).is_some_and(|next| next == "B/s");
            if number == 0 && is_value(word) && is_rate {
                words[at] = "#".to_owned();
            } else if number > 1 && number < last && rule != Mask::Nothing {
                if is_value(word) && kept != Some(column) {
                    let width = word.chars().count();
                    words[at] = format!("{}#", " ".repeat(width - 1));
                } else if let Some((name, port)) = word.rsplit_once(':')
                    && port.parse::<u16>().is_ok_and(|port| port >= 32_768)
                {
                    words[at] = format!("{name}:#####");
                }
            }
        }
        if number == 0 {
            words.retain(|word| !word.is_empty());
        }
        let mut line = words.join(" ");
        for (many, fewer) in [("   ", "  "), ("  #", " #")] {
            while rule == Mask::Values && line.contains(many) {
                line = line.replace(many, fewer);
            }
        }
        // Writing to a String does not fail.
        let _ = writeln!(masked, "{}", line.trim_end());
    }
    masked
}

/// `17`, `1.2K`, `45us`, `0.3%`, or the dot that stands for zero. An address has more dots.
fn is_value(word: &str) -> bool {
    let word = word.trim_start_matches('(');
    let of_number = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '%' | ',');
    word == "·"
        || (word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(of_number)
            && word.matches('.').count() < 2)
}

fn differs(name: &str, expected: &str, seen: &str, screen: &str) -> String {
    let mut text = format!("{name} looks different (NV_TESTS_UPDATE=1 writes it anew):\n");
    let mut lines = (expected.lines(), seen.lines());
    loop {
        match (lines.0.next(), lines.1.next()) {
            (None, None) => break,
            (one, other) if one == other => {}
            (one, other) => {
                for (sign, line) in [('-', one), ('+', other)] {
                    let _ = writeln!(text, "{sign}{}", line.unwrap_or("(no line)"));
                }
            }
        }
    }
    text + "-- all of it, as it was seen:\n" + screen
}
