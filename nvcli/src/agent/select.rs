//! Which containers are attached, and how: rules, of which the first that fits decides.

use std::collections::HashMap;
use std::fmt;

use nvnet::Mode;

/// The label by which Docker Compose says which project a container is of.
const PROJECT: [&str; 2] = ["com.docker.compose.project", "io.podman.compose.project"];
/// The label by which Docker Compose says which of its services a container is.
const SERVICE: [&str; 2] = ["com.docker.compose.service", "io.podman.compose.service"];

/// What becomes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is attached.
    Attach(Mode),
    /// It is left alone.
    Ignore,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach(mode) => write!(f, "{mode}"),
            Self::Ignore => f.write_str("no"),
        }
    }
}

/// A text with `*` for any letters, none as well, and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob(Box<str>);

impl Glob {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Whether all of `text` fits. Takes no longer than the product of the two lengths.
    pub(crate) fn fits(&self, text: &str) -> bool {
        let (pattern, text): (Vec<char>, Vec<char>) =
            (self.0.chars().collect(), text.chars().collect());
        let (mut p, mut t) = (0, 0);
        // Where the last star stands, and how far what it stands for reaches.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(&c) if c == '?' || c == text[t] => {
                    p += 1;
                    t += 1;
                }
                _ => match &mut star {
                    Some((at, reach)) => {
                        *reach += 1;
                        (p, t) = (*at + 1, *reach);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == '*')
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A label that a container must have: `key`, or `key=value`; both may be globs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabelGlob {
    key: Glob,
    value: Option<Glob>,
}

impl LabelGlob {
    pub(crate) fn new(text: &str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self {
                key: Glob::new(key),
                value: Some(Glob::new(value)),
            },
            None => Self {
                key: Glob::new(text),
                value: None,
            },
        }
    }

    fn fits(&self, labels: &HashMap<String, String>) -> bool {
        labels.iter().any(|(key, value)| {
            self.key.fits(key) && self.value.as_ref().is_none_or(|glob| glob.fits(value))
        })
    }
}

impl fmt::Display for LabelGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => write!(f, "{}", self.key),
        }
    }
}

/// What is known of a container that a rule can ask about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its name.
    pub(crate) name: String,
    /// Its image, as it was named when it was made.
    pub(crate) image: String,
    /// Its labels.
    pub(crate) labels: HashMap<String, String>,
}

impl Facts {
    /// The Compose project it is of.
    pub(crate) fn project(&self) -> Option<&str> {
        self.one_of(&PROJECT)
    }

    /// The Compose service it is of.
    pub(crate) fn service(&self) -> Option<&str> {
        self.one_of(&SERVICE)
    }

    fn one_of(&self, keys: &[&str]) -> Option<&str> {
        keys.iter()
            .find_map(|key| self.labels.get(*key))
            .map(String::as_str)
    }
}

/// Says what becomes of the containers that it fits: those which fit one glob of every list that is not empty; of labels, all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) names: Vec<Glob>,
    pub(crate) images: Vec<Glob>,
    pub(crate) projects: Vec<Glob>,
    pub(crate) services: Vec<Glob>,
    pub(crate) labels: Vec<LabelGlob>,
    pub(crate) choice: Choice,
    /// Where it stands: `rule 2`, `--exclude`.
    pub(crate) said_by: String,
}

impl Rule {
    fn fits(&self, facts: &Facts) -> bool {
        let one = |globs: &[Glob], text: Option<&str>| {
            globs.is_empty() || text.is_some_and(|text| globs.iter().any(|glob| glob.fits(text)))
        };
        one(&self.names, Some(&facts.name))
            && one(&self.images, Some(&facts.image))
            && one(&self.projects, facts.project())
            && one(&self.services, facts.service())
            && self.labels.iter().all(|label| label.fits(&facts.labels))
    }
}

/// All rules, and what becomes of a container that none of them fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) rules: Vec<Rule>,
    pub(crate) others: Choice,
}

impl Selection {
    /// What becomes of a container, and what says so.
    pub(crate) fn decide(&self, facts: &Facts) -> (Choice, &str) {
        self.rules
            .iter()
            .find(|rule| rule.fits(facts))
            .map_or((self.others, "others"), |rule| (rule.choice, &rule.said_by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_whole_texts() {
        for (glob, fits, not) in [
            ("web-1", &["web-1"][..], &["web-10", "xweb-1", ""][..]),
            ("web-*", &["web-", "web-1"], &["web", "a-web-1"]),
            ("*", &["", "anything"], &[]),
            ("*db*", &["db", "my-db-1"], &["d-b"]),
            ("?", &["a", "ä"], &["", "ab"]),
            ("a*b*c", &["abc", "aXbXbc"], &["ab", "acb"]),
            ("nginx:1.*-alpine", &["nginx:1.27-alpine"], &["nginx:1.27"]),
        ] {
            for text in fits {
                assert!(Glob::new(glob).fits(text), "{glob} {text}");
            }
            for text in not {
                assert!(!Glob::new(glob).fits(text), "{glob} {text}");
            }
        }
        // Many stars take no time that grows without bound.
        assert!(!Glob::new(&"*a".repeat(50)).fits(&"b".repeat(10_000)));
    }

    fn rule(choice: Choice) -> Rule {
        Rule {
            names: vec![],
            images: vec![],
            projects: vec![],
            services: vec![],
            labels: vec![],
            choice,
            said_by: String::new(),
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let selection = Selection {
            rules: vec![
                Rule {
                    labels: vec![LabelGlob::new("team=shop"), LabelGlob::new("tier")],
                    said_by: "rule 1".into(),
                    ..rule(Choice::Ignore)
                },
                Rule {
                    names: vec![Glob::new("web-*"), Glob::new("api-*")],
                    images: vec![Glob::new("nginx:*")],
                    said_by: "rule 2".into(),
                    ..rule(Choice::Attach(Mode::Mirror))
                },
                Rule {
                    projects: vec![Glob::new("shop")],
                    said_by: "rule 3".into(),
                    ..rule(Choice::Attach(Mode::Inline))
                },
            ],
            others: Choice::Ignore,
        };
        let facts = |name: &str, image: &str, labels: &[(&str, &str)]| Facts {
            name: name.into(),
            image: image.into(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        };
        let decided = |facts: Facts| {
            let (choice, by) = selection.decide(&facts);
            (choice, by.to_owned())
        };
        let both = [("team", "shop"), ("tier", "1")];
        assert_eq!(
            decided(facts("web-1", "nginx:1", &both)),
            (Choice::Ignore, "rule 1".into())
        );
        assert_eq!(
            decided(facts("web-1", "nginx:1", &both[..1])),
            (Choice::Attach(Mode::Mirror), "rule 2".into())
        );
        assert_eq!(
            decided(facts("web-1", "httpd", &[])),
            (Choice::Ignore, "others".into())
        );
        let compose = [("com.docker.compose.project", "shop")];
        assert_eq!(
            decided(facts("db", "postgres", &compose)),
            (Choice::Attach(Mode::Inline), "rule 3".into())
        );
    }
}
