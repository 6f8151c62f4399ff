//! The one way in which text from frames, files and engines reaches a terminal, a log or a table.
//!
//! A name in a frame is chosen by whoever sent it. Shown raw it could move the cursor, forge a line, reverse the
//! reading order, or become a formula in a spreadsheet.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use serde_json::ser::{CharEscape, CompactFormatter, Formatter};
use unicode_width::UnicodeWidthChar as _;

/// Whether a character may reach a terminal as it is, if it does not lean on the one before it.
///
/// Out: C0, DEL and C1 controls, line and paragraph separators, what changes the reading order, what is invisible or a blank of another
/// kind and so makes two names look alike, and what is no character.
fn harmless(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f'
        | '\x7f'..='\u{a0}'
        | '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'..='\u{1160}'
        | '\u{1680}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{2000}'..='\u{200f}'
        | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}'
        | '\u{2800}'
        | '\u{3000}'
        | '\u{3164}'
        | '\u{fdd0}'..='\u{fdef}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{13430}'..='\u{1345f}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
        && u32::from(c) & 0xfffe != 0xfffe
}

/// Marks that may lean on one character: more than any language has, and few enough to stay within the line.
const MARKS: u8 = 4;

/// Goes through a text, and knows of each character whether it may be shown.
#[derive(Clone, Copy, Debug, Default)]
struct Gate {
    /// What stands before: `None` where a mark would lean on what is not of the text, else how many lean there.
    marks: Option<u8>,
}

impl Gate {
    fn admits(&mut self, c: char) -> bool {
        let is_mark = !c.is_ascii() && c.width() == Some(0);
        self.marks = match (harmless(c), is_mark, self.marks) {
            (true, false, _) => Some(0),
            (true, true, Some(marks)) if marks < MARKS => Some(marks + 1),
            _ => None,
        };
        self.marks.is_some()
    }
}

/// `raw` made harmless for one line of a terminal or log; borrowed when it was harmless already.
///
/// What is not harmless becomes `\n`, `\x1b` or `\u{202e}`, and a backslash becomes two, so that no two texts look
/// the same.
pub(crate) fn text(raw: &str) -> Cow<'_, str> {
    escaped(raw, '\\')
}

/// As [`text`], but with backslashes as they are: for a line that is made of texts of which some were escaped before.
pub(crate) fn line(raw: &str) -> Cow<'_, str> {
    escaped(raw, '\0')
}

/// Escapes what is not harmless, and `also`.
fn escaped(raw: &str, also: char) -> Cow<'_, str> {
    let mut gate = Gate::default();
    let Some(first) = raw.find(|c| !gate.admits(c) || c == also) else {
        return Cow::Borrowed(raw);
    };
    let mut shown = String::with_capacity(raw.len() + 16);
    shown.push_str(&raw[..first]);
    // What leans on the character before that one was let through.
    let mut gate = Gate::default();
    for c in raw[..first].chars() {
        gate.admits(c);
    }
    for c in raw[first..].chars() {
        match c {
            c if gate.admits(c) && c != also => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            '\\' => shown.push_str("\\\\"),
            // Writing to a String does not fail.
            c if c.is_ascii() => drop(write!(shown, "\\x{:02x}", u32::from(c))),
            c => drop(write!(shown, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(shown)
}

/// Whether `raw` is the same whatever it is escaped for: a letter or digit, then more of them and what stands in plain names.
#[inline]
pub(crate) fn is_plain(raw: &str) -> bool {
    let plain = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_.:/".contains(octet);
    raw.as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric)
        && raw.as_bytes().iter().all(plain)
}

/// `raw` as one word of a command for a shell, to be escaped where it is shown: without a backslash, which would become two there.
pub(crate) fn shell(raw: &str) -> Cow<'_, str> {
    if is_plain(raw) {
        return Cow::Borrowed(raw);
    }
    Cow::Owned(format!("'{}'", raw.replace('\'', r#"'"'"'"#)))
}

/// What a spreadsheet takes for the beginning of a formula.
const FORMULA: [char; 8] = [
    '=', '+', '-', '@', '\u{ff0b}', '\u{ff0d}', '\u{ff1d}', '\u{ff20}',
];

/// `raw` made harmless for a CSV field: as [`text`], and no spreadsheet takes it for a formula.
///
/// Quotes and commas are left to the CSV writer.
pub(crate) fn csv_field(raw: &str) -> Cow<'_, str> {
    let shown = text(raw);
    // A field that begins with an apostrophe of its own gets another one: no two look the same.
    if shown.starts_with(FORMULA) || shown.starts_with('\'') {
        return Cow::Owned(format!("'{shown}"));
    }
    shown
}

/// `raw` made harmless for the value of a label in Prometheus' text format: as [`text`], then what has a meaning between the quotes there.
pub(crate) fn metric_label(raw: &str) -> String {
    text(raw).replace('\\', "\\\\").replace('"', "\\\"")
}

/// Writes JSON on one line in which every harmful character of a string is `\uXXXX`: the value is the same, the text
/// is harmless.
#[derive(Clone, Debug, Default)]
pub(crate) struct HarmlessJson(CompactFormatter);

impl Formatter for HarmlessJson {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        // At the beginning of a fragment stands a quotation mark, or what was escaped.
        let mut gate = Gate::default();
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !gate.admits(c)) {
            let (clean, tail) = rest.split_at(at);
            writer.write_all(clean.as_bytes())?;
            let mut chars = tail.chars();
            for c in chars.by_ref().take(1) {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W>(&mut self, writer: &mut W, char_escape: CharEscape) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        self.0.write_char_escape(writer, char_escape)
    }
}

/// `value` as one line of harmless JSON, without the line's end.
pub(crate) fn json<W: io::Write>(writer: W, value: &impl serde::Serialize) -> io::Result<()> {
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            writer,
            HarmlessJson::default(),
        ))
        .map_err(io::Error::from)
}

/// Where the log goes: every event is one line, and harmless, whatever a library put into it.
#[derive(Debug)]
pub(crate) struct Log<W>(pub(crate) W);

impl<W: io::Write> io::Write for Log<W> {
    /// Takes an event as a whole, with the end of its line.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let told = text.strip_suffix('\n').unwrap_or(&text);
        self.0.write_all(format!("{}\n", line(told)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const HOSTILE: [&str; 15] = [
        "\x1b[2J\x1b[1;1H",
        "a\nerror: forged",
        "\r\t\0\x07\x08",
        "\u{9b}31m",
        "\u{202e}gnp.exe",
        "\u{2066}x\u{2069}",
        "\u{200b}\u{feff}\u{ad}",
        "\u{2028}\u{2029}",
        "\u{e0041}\u{1d173}",
        "\x7f",
        "\u{a0}\u{2003}\u{3000}\u{2800}",
        "\u{301}leans on what is before",
        "z\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}",
        "\n\u{301}",
        "\u{fffe}\u{1ffff}\u{fdd0}",
    ];

    /// What must hold of a text that is shown, whatever it was.
    fn is_harmless(shown: &str) -> bool {
        let mut gate = Gate { marks: Some(0) };
        shown
            .chars()
            .all(|c| gate.admits(c) && !c.is_control() && (c == ' ' || !c.is_whitespace()))
    }

    /// The other way round: what was escaped.
    fn raw(shown: &str) -> String {
        let mut raw = String::new();
        let mut rest = shown.chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                raw.push(c);
                continue;
            }
            let number = |digits: &str| {
                let number = u32::from_str_radix(digits, 16).unwrap();
                char::from_u32(number).unwrap()
            };
            match rest.next().unwrap() {
                'n' => raw.push('\n'),
                'r' => raw.push('\r'),
                't' => raw.push('\t'),
                'x' => raw.push(number(&rest.by_ref().take(2).collect::<String>())),
                'u' => {
                    let digits: String = rest.by_ref().skip(1).take_while(|c| *c != '}').collect();
                    raw.push(number(&digits));
                }
                c => raw.push(c),
            }
        }
        raw
    }

    #[test]
    fn nothing_harmful_is_left() {
        for hostile in HOSTILE {
            for shown in [text(hostile), csv_field(hostile), line(hostile)] {
                assert!(is_harmless(&shown), "{shown:?}");
                assert!(shown.starts_with('\\') || !shown.starts_with('\u{301}'));
            }
            assert!(matches!(text(hostile), Cow::Owned(_)), "{hostile:?}");
        }
    }

    #[test]
    fn what_is_harmless_stays_as_it_is() {
        for raw in [
            "",
            "web-1",
            "münchen.example",
            "日本",
            "a b",
            "🦀",
            "e\u{301}",
            "हिन्दी",
            "ไทยที่",
            "ＡＢ",
        ] {
            assert!(
                matches!(text(raw), Cow::Borrowed(shown) if shown == raw),
                "{raw}"
            );
        }
        assert_eq!(line("a\\x1b"), "a\\x1b");
    }

    #[test]
    fn a_word_is_one_word_to_a_shell_and_nothing_else() {
        for word in [
            "web-1",
            "netns:/run/a b",
            "it's",
            "''",
            "$(id)`id`;#&|*~",
            "-",
            "",
        ] {
            let script = format!("printf %s. {}", text(&shell(word)));
            let mut sh = std::process::Command::new("sh");
            let told = sh.args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(told.stdout).unwrap(), format!("{word}."));
        }
        assert_eq!(shell("netns:/run/netns/blue"), "netns:/run/netns/blue");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_text_is_shown_harmless_and_no_two_alike(sent in sent()) {
            let shown = text(&sent);
            prop_assert!(is_harmless(&shown), "{shown:?}");
            prop_assert_eq!(raw(&shown), sent.clone());
            // A table reckons with the columns that the terminal will take.
            prop_assert!(shown.chars().all(|c| c.width().is_some()));
            let mut json_line = Vec::new();
            json(&mut json_line, &sent).unwrap();
            let json_line = String::from_utf8(json_line).unwrap();
            prop_assert!(is_harmless(&json_line), "{json_line:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&json_line).unwrap(), sent);
        }

        #[test]
        fn any_text_is_one_field_of_a_csv_and_no_formula(sent in sent()) {
            let field = csv_field(&sent);
            prop_assert!(is_harmless(&field));
            prop_assert!(!field.starts_with(FORMULA));
            prop_assert_eq!(raw(field.strip_prefix('\'').unwrap_or(&field)), sent);
        }

        #[test]
        fn any_text_is_one_label_of_a_metric(sent in sent()) {
            let label = metric_label(&sent);
            prop_assert!(is_harmless(&label));
            // As Prometheus reads it: a backslash stands before itself or a quotation mark only, and no mark without one ends it.
            let (mut read, mut rest) = (String::new(), label.chars());
            while let Some(c) = rest.next() {
                prop_assert!(c != '"');
                match c {
                    '\\' => {
                        let c = rest.next();
                        prop_assert!(matches!(c, Some('\\' | '"')));
                        read.extend(c);
                    }
                    c => read.push(c),
                }
            }
            prop_assert_eq!(raw(&read), sent);
        }

        #[test]
        fn any_event_is_one_line_of_the_log(sent in sent()) {
            let mut log = Log(Vec::new());
            log.write_all(format!("WARN {sent}\n").as_bytes()).unwrap();
            let log = String::from_utf8(log.0).unwrap();
            prop_assert!(is_harmless(log.strip_suffix('\n').unwrap()));
        }
    }

    /// Texts of what is harmful, of what nearly is, and of everything else.
    fn sent() -> impl Strategy<Value = String> {
        let harmful = "[\\\\=+@'\"\n\r\t\0\x1b\x7f\u{80}-\u{a0}\u{202a}-\u{202e}\u{2066}-\u{2069}\u{200b}-\u{200f}\u{300}-\u{303}\u{fe0f}\u{1f600}\u{3042}-]";
        proptest::collection::vec(
            prop_oneof![
                harmful,
                Just("a".to_owned()),
                any::<char>().prop_map(String::from)
            ],
            0..24,
        )
        .prop_map(|parts| parts.concat())
    }

    #[test]
    fn two_texts_never_look_the_same() {
        assert_eq!(text("\x1b"), "\\x1b");
        assert_eq!(text("\\x1b"), "\\\\x1b");
        assert_eq!(text("\u{202e}"), "\\u{202e}");
        assert_eq!(text("a\nb"), "a\\nb");
    }

    #[test]
    fn no_field_of_a_csv_is_a_formula() {
        for raw in ["=1+1", "+1", "-1", "@SUM(A1)", "＝1"] {
            assert!(csv_field(raw).starts_with('\''), "{raw}");
        }
        assert_eq!(csv_field("\t=1"), "\\t=1");
        assert_eq!(csv_field("a=1"), "a=1");
    }

    #[test]
    fn plain_text_is_never_escaped() {
        for raw in ["TIME-WAIT", "web-1.example:80/tcp", "7"] {
            assert!(is_plain(raw), "{raw}");
            assert_eq!(text(raw), raw);
            assert_eq!(csv_field(raw), raw);
        }
        for raw in HOSTILE
            .into_iter()
            .chain(["", "-1", "a\"b", "a,b", "a b", "a\\b", "=1", "é"])
        {
            assert!(!is_plain(raw), "{raw:?}");
        }
    }

    #[test]
    fn json_keeps_the_value_and_hides_the_character() {
        for raw in HOSTILE.into_iter().chain(["plain", "quo\"te\\"]) {
            let mut line = Vec::new();
            json(&mut line, &raw).unwrap();
            let line = String::from_utf8(line).unwrap();
            assert!(is_harmless(&line), "{line:?}");
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), raw);
        }
    }
}
