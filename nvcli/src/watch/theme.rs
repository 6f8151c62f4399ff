//! Colours and signs: of the sixteen that every terminal has, none where NO_COLOR says so, plain ones where there is no UTF-8.

use ratatui::style::{Color, Modifier, Style};

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Theme {
    colours: bool,
    pub(crate) signs: Signs,
}

/// Signs beyond ASCII, or what stands for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signs {
    /// From client to server.
    pub(crate) to: &'static str,
    /// From server to client.
    pub(crate) from: &'static str,
    pub(crate) down: &'static str,
    pub(crate) up: &'static str,
    pub(crate) live: &'static str,
    pub(crate) dot: &'static str,
    pub(crate) rule: &'static str,
    pub(crate) mark: &'static str,
    pub(crate) cut: &'static str,
    pub(crate) bars: &'static [&'static str; 9],
}

const UNICODE: Signs = Signs {
    to: "→",
    from: "←",
    down: "▾",
    up: "▴",
    live: "●",
    dot: "·",
    rule: "─",
    mark: "▌",
    cut: "…",
    bars: &[" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"],
};

const ASCII: Signs = Signs {
    to: ">",
    from: "<",
    down: "v",
    up: "^",
    live: "*",
    dot: "-",
    rule: "-",
    mark: ">",
    cut: "~",
    bars: &[" ", "_", ".", ":", "-", "=", "+", "*", "#"],
};

impl Theme {
    pub(crate) const fn new(colours: bool, unicode: bool) -> Self {
        Self {
            colours,
            signs: if unicode { UNICODE } else { ASCII },
        }
    }

    /// As the environment asks for it: <https://no-color.org>, and the locale's character set.
    pub(crate) fn of_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let locale = set("LC_ALL")
            .or_else(|| set("LC_CTYPE"))
            .or_else(|| set("LANG"))
            .unwrap_or_default()
            .to_lowercase();
        let unicode = locale.contains("utf-8") || locale.contains("utf8");
        Self::new(set("NO_COLOR").is_none(), unicode)
    }

    const fn colour(self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    pub(crate) const fn plain(self) -> Style {
        Style::new()
    }

    /// What matters less than the rest.
    pub(crate) const fn dim(self) -> Style {
        if self.colours {
            // Bright black; the attribute is drawn differently everywhere, or not at all.
            Style::new().fg(Color::DarkGray)
        } else {
            Style::new().add_modifier(Modifier::DIM)
        }
    }

    pub(crate) const fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The program's name and what is chosen.
    pub(crate) const fn accent(self) -> Style {
        self.colour(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// A container.
    pub(crate) const fn name(self) -> Style {
        self.colour(Color::Cyan)
    }

    pub(crate) const fn good(self) -> Style {
        self.colour(Color::Green)
    }

    pub(crate) const fn warn(self) -> Style {
        self.colour(Color::Yellow)
    }

    pub(crate) const fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// From client to server, or out of the container.
    pub(crate) const fn to(self) -> Style {
        self.colour(Color::Green)
    }

    /// From server to client, or into the container.
    pub(crate) const fn from(self) -> Style {
        self.colour(Color::Blue)
    }

    /// The row that is selected, over what its cells have.
    pub(crate) const fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(crate) const fn title(self) -> Style {
        if self.colours {
            Style::new().fg(Color::DarkGray)
        } else {
            Style::new().add_modifier(Modifier::UNDERLINED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &[(&str, &str)]) -> Theme {
        Theme::of_environment(|name| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn no_color_means_no_colour_at_all() {
        let theme = of(&[("NO_COLOR", "1"), ("LANG", "C.UTF-8")]);
        for style in [
            theme.dim(),
            theme.accent(),
            theme.name(),
            theme.good(),
            theme.warn(),
            theme.bad(),
            theme.to(),
            theme.from(),
            theme.title(),
            theme.selected(),
        ] {
            assert_eq!((style.fg, style.bg), (None, None));
        }
        assert!(
            of(&[("NO_COLOR", "")]).colours,
            "set but empty does not count"
        );
    }

    #[test]
    fn signs_are_those_that_the_locale_has() {
        assert_eq!(of(&[("LANG", "de_DE.UTF-8")]).signs, UNICODE);
        assert_eq!(of(&[("LANG", "C.utf8"), ("LC_ALL", "C")]).signs, ASCII);
        assert_eq!(of(&[]).signs, ASCII);
        assert!(ASCII.bars.iter().all(|bar| bar.is_ascii()));
    }
}
