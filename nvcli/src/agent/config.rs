//! What the agent is told: a TOML file, over which the command line and the environment go.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nvnet::Mode;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::select::{Choice, Glob, LabelGlob, Rule, Selection};
use crate::cmd::agent::Agent;
use crate::exit::{CliError, Result};
use crate::export::{Export, ExportConfig, Size, Time};
use crate::target::Target;

/// The file that is read when none is named, if it is there.
pub(crate) const DEFAULT_FILE: &str = "/etc/nvcli/agent.toml";
/// How long the last frames are kept when nothing else is said.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Where the agent listens.
pub(crate) const DEFAULT_SOCKET: &str = "/run/nvcli/agent.sock";

/// Everything the agent is told, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The file it was read from.
    pub(crate) file: Option<PathBuf>,
    /// Sockets of engines; `None` for those of the usual ones that are there.
    pub(crate) engines: Option<Vec<PathBuf>>,
    /// Which containers are attached, and how.
    pub(crate) selection: Selection,
    /// What is attached beside containers, and how.
    pub(crate) targets: Vec<Target>,
    /// How targets are attached, and containers of which nothing else is said.
    pub(crate) mode: Mode,
    /// What becomes of the attachments at the end.
    pub(crate) on_exit: OnExit,
    /// Where the agent listens.
    pub(crate) socket: PathBuf,
    /// Rings on nv-br.
    pub(crate) rings: u16,
    /// Octets of each ring.
    pub(crate) ring_size: u64,
    /// Octets that are kept of a frame.
    pub(crate) snaplen: u32,
    /// Memory for the last frames, and how long they are kept there.
    pub(crate) recorder: Option<(usize, Duration)>,
    /// Connections kept at the same time, at most.
    pub(crate) max_connections: usize,
    /// Silence after which a connection counts as over.
    pub(crate) idle_timeout: Option<Duration>,
    /// After how long a connection that stays open gets a record.
    pub(crate) active_timeout: Duration,
    /// Whether the innermost packet of a tunnel is metered.
    pub(crate) decap: bool,
    /// Whether it is found out what connections speak.
    pub(crate) identify: bool,
    /// Records that wait for their names, at most.
    pub(crate) queue: usize,
    /// Where records go.
    pub(crate) exports: Vec<Export>,
}

/// What becomes of the attachments when the agent ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnExit {
    /// They stay, and the next agent takes over
    #[default]
    Leave,
    /// Those that the agent's own rules select are taken back
    Detach,
}

/// The file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    engines: Option<Vec<PathBuf>>,
    mode: Option<Named<Mode>>,
    others: Option<Named<ChoiceName>>,
    targets: Vec<Named<Target>>,
    on_exit: Option<OnExit>,
    socket: Option<PathBuf>,
    rule: Vec<RuleFile>,
    capture: Capture,
    recorder: Option<RecorderFile>,
    metering: Metering,
    export: Vec<toml::Spanned<ExportConfig>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Capture {
    rings: Option<Between<1, 64>>,
    ring_size: Option<Size>,
    snaplen: Option<Between<64, 262_144>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RecorderFile {
    size: Size,
    keep_for: Option<Time>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Metering {
    max_connections: Option<Between<1, 67_108_864>>,
    idle_timeout: Option<Time>,
    active_timeout: Option<Time>,
    decap: Option<bool>,
    identify: Option<bool>,
    queue: Option<Between<1, 16_777_216>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleFile {
    #[serde(default)]
    name: Texts,
    #[serde(default)]
    image: Texts,
    #[serde(default)]
    project: Texts,
    #[serde(default)]
    service: Texts,
    #[serde(default)]
    label: Texts,
    attach: Named<ChoiceName>,
}

/// `inline`, `mirror` or `no`.
#[derive(Clone, Copy, Debug)]
struct ChoiceName(Choice);

impl FromStr for ChoiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(Self(Choice::Ignore)),
            _ => match text.parse() {
                Ok(mode) => Ok(Self(Choice::Attach(mode))),
                Err(_) => Err(format!(
                    "`{}` is not one of inline, mirror and no",
                    text.escape_debug()
                )),
            },
        }
    }
}

/// What is parsed from a text.
#[derive(Clone, Copy, Debug)]
struct Named<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A number within bounds.
#[derive(Clone, Copy, Debug)]
struct Between<const LEAST: u64, const MOST: u64>(u64);

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Between<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u64::try_from(number) {
            Ok(number) if (LEAST..=MOST).contains(&number) => Ok(Self(number)),
            _ => Err(de::Error::custom(format_args!(
                "{number} is not from {LEAST} to {MOST}"
            ))),
        }
    }
}

/// A text, or a list of them.
#[derive(Debug, Default)]
struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                if text.is_empty() {
                    return Err(E::custom("it is empty, so nothing would ever fit it"));
                }
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = all.next_element::<String>()? {
                    texts.push(text);
                }
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    return Err(de::Error::custom(
                        "a list without a text, or with an empty one",
                    ));
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

impl Texts {
    fn globs(&self) -> Vec<Glob> {
        self.0.iter().map(|text| Glob::new(text)).collect()
    }
}

impl Config {
    /// What the command line and the file together say.
    pub(crate) fn read(args: &Agent) -> Result<Self> {
        let (file, path) = match &args.config {
            Some(path) => (read(path)?, Some(path.clone())),
            None if Path::new(DEFAULT_FILE).exists() => {
                (read(Path::new(DEFAULT_FILE))?, Some(DEFAULT_FILE.into()))
            }
            None => (File::default(), None),
        };
        Self::merge(file, path, args)
    }

    fn merge(file: File, path: Option<PathBuf>, args: &Agent) -> Result<Self> {
        let mode = args.mode.map_or_else(
            || file.mode.map_or_else(Mode::default, |mode| mode.0),
            Mode::from,
        );
        // What is set to nothing, in the environment say, names nothing.
        let globs = |names: &[String]| -> Vec<Glob> {
            let names = names.iter().filter(|name| !name.is_empty());
            names.map(|name| Glob::new(name)).collect()
        };
        let include = globs(&args.include);
        let includes = !include.is_empty();
        let mut rules = Vec::new();
        let mut named = |names: Vec<Glob>, choice: Choice, said_by: &str| {
            if !names.is_empty() {
                rules.push(Rule {
                    names,
                    images: vec![],
                    projects: vec![],
                    services: vec![],
                    labels: vec![],
                    choice,
                    said_by: said_by.into(),
                });
            }
        };
        named(globs(&args.exclude), Choice::Ignore, "--exclude");
        named(include, Choice::Attach(mode), "--include");
        for (number, rule) in (1..).zip(&file.rule) {
            rules.push(Rule {
                names: rule.name.globs(),
                images: rule.image.globs(),
                projects: rule.project.globs(),
                services: rule.service.globs(),
                labels: rule
                    .label
                    .0
                    .iter()
                    .map(|text| LabelGlob::new(text))
                    .collect(),
                choice: rule.attach.0.0,
                said_by: format!("rule {number}"),
            });
        }
        // Whoever names what to attach means that and nothing else.
        let names_some = rules
            .iter()
            .any(|rule| matches!(rule.choice, Choice::Attach(_)));
        let others = match file.others {
            Some(_) if includes => Choice::Ignore,
            Some(others) => others.0.0,
            None if names_some => Choice::Ignore,
            None => Choice::Attach(mode),
        };
        let engines = if args.no_engine {
            Some(vec![])
        } else if args.engines.is_empty() {
            file.engines
        } else {
            Some(args.engines.clone())
        };
        let targets = file.targets.into_iter().map(|target| target.0);
        let exports = file.export.iter().map(toml::Spanned::get_ref);
        let exports = exports
            .chain(&args.exports)
            .map(|config| {
                config
                    .check()
                    .map_err(|error| CliError::usage("an exporter cannot be made").because(error))
            })
            .collect::<Result<Vec<_>>>()?;
        let identify = file.metering.identify.unwrap_or(true);
        let config = Self {
            file: path,
            engines,
            selection: Selection { rules, others },
            targets: args.targets.iter().cloned().chain(targets).collect(),
            mode,
            on_exit: args.on_exit.or(file.on_exit).unwrap_or_default(),
            socket: args
                .socket
                .clone()
                .or(file.socket)
                .unwrap_or_else(|| DEFAULT_SOCKET.into()),
            rings: file.capture.rings.map_or(1, |rings| rings.0 as u16),
            ring_size: file.capture.ring_size.map_or(16 << 20, |size| size.0),
            snaplen: match (file.capture.snaplen, identify) {
                (Some(snaplen), _) => snaplen.0 as u32,
                (None, true) => crate::cmd::flows::BEGINNINGS,
                (None, false) => crate::cmd::flows::HEADERS,
            },
            recorder: {
                let in_file = file.recorder.as_ref();
                let size = in_file.map(|file| usize::try_from(file.size.0).unwrap_or(usize::MAX));
                let keep_for = in_file.and_then(|file| file.keep_for.as_ref());
                let keep_for = args.keep_for.or(keep_for.map(|time| time.0));
                args.keep
                    .or(size)
                    .map(|octets| (octets, keep_for.unwrap_or(KEPT_FOR)))
            },
            identify,
            max_connections: file
                .metering
                .max_connections
                .map_or(131_072, |most| most.0 as usize),
            idle_timeout: file.metering.idle_timeout.map(|time| time.0),
            active_timeout: file
                .metering
                .active_timeout
                .map_or(Duration::from_secs(1_800), |time| time.0),
            decap: file.metering.decap.unwrap_or(false),
            queue: file.metering.queue.map_or(65_536, |most| most.0 as usize),
            exports,
        };
        config.check()
    }

    /// What no single value tells.
    fn check(self) -> Result<Self> {
        let wrong = |what: String| CliError::usage(what).remedy("docs/agent.md");
        if !self.socket.is_absolute() || self.socket.as_os_str().len() > 107 {
            return Err(wrong(format!(
                "{} is no path for a socket: it has to be absolute and of at most 107 octets",
                self.socket.display()
            )));
        }
        if let Some(Target::Container(name)) = self
            .targets
            .iter()
            .find(|target| matches!(target, Target::Container(_)))
        {
            return Err(wrong(format!(
                "the target {name} is a container: those are named by rules, or by --include"
            )));
        }
        if self.recorder.is_some_and(|(octets, _)| octets < 64 << 10) {
            return Err(wrong("[recorder] size: it has to be 64KiB at least".into()));
        }
        self.ring_config()
            .geometry(4_096)
            .map_err(|error| wrong(format!("ring-size: {error}")))?;
        Ok(self)
    }

    /// How the rings are made.
    pub(crate) fn ring_config(&self) -> nvcapture::RingConfig {
        let usual = nvcapture::RingConfig::default();
        // As many as a ring has by default, each smaller, but not so small that a reader is woken for little.
        let block = self.ring_size / u64::from(usual.block_nr);
        let block_size = 1 << block.clamp(1 << 20, usual.block_size.into()).ilog2();
        let blocks = self.ring_size.div_ceil(block_size.into());
        nvcapture::RingConfig {
            block_size,
            // What is asked of an agent is so old at most.
            retire_blk_tov: Duration::from_millis(100),
            block_nr: u32::try_from(blocks).unwrap_or(u32::MAX),
            snaplen: Some(self.snaplen),
            ..usual
        }
    }

    /// How is metered.
    pub(crate) fn meter_config(&self) -> nvflow::MeterConfig {
        nvflow::MeterConfig {
            max_connections: self.max_connections,
            timeouts: crate::cmd::flows::timeouts(self.idle_timeout, self.active_timeout),
            observation: nvflow::Observation::Marker,
            decapsulate: self.decap,
            identify: self.identify.then(nvflow::Identify::default),
            ..nvflow::MeterConfig::default()
        }
    }

    /// What cannot be changed while the agent runs, and differs in `new`.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let mut changed = Vec::new();
        let mut differs = |what, is: bool| {
            if is {
                changed.push(what);
            }
        };
        differs("engines", self.engines != new.engines);
        differs("socket", self.socket != new.socket);
        differs(
            "[capture]",
            (self.rings, self.ring_size, self.snaplen) != (new.rings, new.ring_size, new.snaplen),
        );
        differs("[recorder]", self.recorder != new.recorder);
        differs(
            "[metering]",
            (
                self.max_connections,
                self.idle_timeout,
                self.active_timeout,
                self.decap,
                self.identify,
                self.queue,
            ) != (
                new.max_connections,
                new.idle_timeout,
                new.active_timeout,
                new.decap,
                new.identify,
                new.queue,
            ),
        );
        let exports = |config: &Self| format!("{:?}", config.exports);
        differs("[[export]]", exports(self) != exports(new));
        changed
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(|source| {
        CliError::usage(format!("cannot read {}", path.display()))
            .because(source)
            .remedy("--config FILE")
    })?;
    parse(&text).map_err(|wrong| {
        let at = wrong.at(&text);
        CliError::usage(format!("{}{at}: {}", path.display(), wrong.why))
            .because(wrong.line(&text))
            .remedy("docs/agent.md has an example")
    })
}

/// What is wrong in a file, and where.
#[derive(Debug)]
struct Wrong {
    why: String,
    span: Option<Range<usize>>,
}

impl Wrong {
    /// `:LINE:COLUMN`, counted from 1, columns in letters.
    fn at(&self, text: &str) -> String {
        let Some(before) = self.before(text) else {
            return String::new();
        };
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        format!(":{line}:{column}")
    }

    /// The line it is in.
    fn line(&self, text: &str) -> String {
        let number = self
            .before(text)
            .map_or(0, |before| before.matches('\n').count());
        let line = text.lines().nth(number).unwrap_or_default().trim();
        if line.is_empty() {
            "the file ends there".to_owned()
        } else {
            format!("it says: {line}")
        }
    }

    fn before<'t>(&self, text: &'t str) -> Option<&'t str> {
        let start = self.span.as_ref()?.start.min(text.len());
        text.get(..start)
    }
}

fn parse(text: &str) -> Result<File, Wrong> {
    let file: File = toml::from_str(text).map_err(|error: toml::de::Error| Wrong {
        why: error.message().to_owned(),
        span: error.span(),
    })?;
    for export in &file.export {
        if let Err(error) = export.get_ref().check() {
            return Err(Wrong {
                why: error.to_string(),
                span: Some(export.span()),
            });
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &[&str]) -> Agent {
        let all = ["nvcli", "agent"].iter().chain(line);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Agent(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn config(text: &str, line: &[&str]) -> Config {
        Config::merge(parse(text).unwrap(), None, &args(line)).unwrap()
    }

    #[test]
    fn an_error_tells_line_and_column() {
        for (text, at, says) in [
            ("mode = \"inline\"\nfoo = 1\n", ":2:1", "foo"),
            ("mode = \"sideways\"\n", ":1:8", "sideways"),
            ("[capture]\nrings = 0\n", ":2:9", "0 is not from 1 to 64"),
            ("[capture]\n  ring-size = \"16XB\"", ":2:15", "16XB"),
            ("[[rule]]\nname = \"a\"\n", ":1:1", "attach"),
            ("[[rule]]\nname = \"ä\"\nattach = \"yes\"\n", ":3:10", "yes"),
            (
                "[[rule]]\nname = []\nattach = \"no\"\n",
                ":2:8",
                "without a text",
            ),
            ("mode = \n", ":1:8", ""),
            (
                "[metering]\nactive-timeout = \"5\"\n",
                ":2:18",
                "a number and a unit",
            ),
            ("targets = [\"pid:x\"]\n", ":1:11", "pid:"),
            (
                "mode = \"mirror\"\n[[export]]\nkind = \"file\"\n",
                ":2:1",
                "path",
            ),
            ("[[export]]\nkind = \"file\"\nfoo = 1\n", ":3:1", "foo"),
        ] {
            let wrong = parse(text).unwrap_err();
            assert_eq!(wrong.at(text), at, "{text}: {}", wrong.why);
            assert!(wrong.why.contains(says), "{text}: {}", wrong.why);
        }
    }

    #[test]
    fn who_names_what_to_attach_means_nothing_else() {
        let attach = Choice::Attach;
        assert_eq!(config("", &[]).selection.others, attach(Mode::Inline));
        assert_eq!(
            config("mode = \"mirror\"", &[]).selection.others,
            attach(Mode::Mirror)
        );
        let only_web = "[[rule]]\nname = \"web-*\"\nattach = \"mirror\"\n";
        assert_eq!(config(only_web, &[]).selection.others, Choice::Ignore);
        let not_db = "[[rule]]\nname = \"db\"\nattach = \"no\"\n";
        assert_eq!(config(not_db, &[]).selection.others, attach(Mode::Inline));
        let said = format!("others = \"inline\"\n{only_web}");
        assert_eq!(config(&said, &[]).selection.others, attach(Mode::Inline));
        assert_eq!(
            config(&said, &["--include", "x"]).selection.others,
            Choice::Ignore
        );
    }

    #[test]
    fn an_empty_name_names_nothing() {
        let all = Choice::Attach(Mode::Inline);
        let selection = config("", &["--include", "", "--exclude", ""]).selection;
        assert_eq!((selection.rules, selection.others), (vec![], all));
        let others = config("others = \"mirror\"", &["--include", ""])
            .selection
            .others;
        assert_eq!(others, Choice::Attach(Mode::Mirror));
        let selection = config("", &["--include", "web-*,,"]).selection;
        assert_eq!(selection.rules[0].names, [Glob::new("web-*")]);
        assert_eq!(selection.others, Choice::Ignore);
    }

    #[test]
    fn the_command_line_goes_over_the_file() {
        let file = "mode = \"mirror\"\non-exit = \"detach\"\nsocket = \"/a\"\nengines = [\"/e\"]\n";
        let both = config(
            file,
            &[
                "--mode",
                "inline",
                "--on-exit",
                "leave",
                "--socket",
                "/b",
                "--engine",
                "/f",
            ],
        );
        assert_eq!((both.mode, both.on_exit), (Mode::Inline, OnExit::Leave));
        assert_eq!(both.socket, Path::new("/b"));
        assert_eq!(both.engines, Some(vec!["/f".into()]));
        let file = config(file, &[]);
        assert_eq!((file.mode, file.on_exit), (Mode::Mirror, OnExit::Detach));
        assert_eq!(config("", &["--no-engine"]).engines, Some(vec![]));
    }

    #[test]
    fn a_ring_has_eight_blocks_of_its_size_where_those_are_neither_small_nor_large() {
        let ring = |mib: u64| {
            let file = format!("[capture]\nring-size = \"{mib}MiB\"");
            let ring = config(&file, &[]).ring_config();
            (ring.block_size >> 20, ring.block_nr)
        };
        assert_eq!(
            [2, 8, 16, 31, 32, 33, 256].map(ring),
            [(1, 2), (1, 8), (2, 8), (2, 16), (4, 8), (4, 9), (4, 64)]
        );
    }

    #[test]
    fn what_no_single_value_tells_is_refused_too() {
        for text in [
            "targets = [\"web-1\"]",
            "socket = \"relative\"",
            "[capture]\nring-size = 1",
        ] {
            let file = parse(text).unwrap();
            let error = Config::merge(file, None, &args(&[])).unwrap_err();
            assert_eq!(error.exit(), crate::exit::Exit::Usage, "{text}");
        }
    }
}
