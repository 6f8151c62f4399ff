//! The one way in which text from frames, files and engines reaches a terminal, a log or a table.
//!
//! A name in a frame is chosen by whoever sent it. Shown raw it could move the cursor, forge a line, reverse the
//! reading order, or become a formula in a spreadsheet.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

/// Whether a character may reach a terminal as it is.
///
/// Out: C0, DEL and C1 controls, line and paragraph separators, what changes the reading order, and what is
/// invisible and so makes two names look alike.
const fn harmless(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f'
        | '\x7f'..='\u{9f}'
        | '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// `raw` made harmless for one line of a terminal or log; borrowed when it was harmless already.
///
/// What is not harmless becomes `\n`, `\x1b` or `\u{202e}`, and a backslash becomes two, so that no two texts look
/// the same.
pub(crate) fn text(raw: &str) -> Cow<'_, str> {
    let clean = |c: char| harmless(c) && c != '\\';
    let Some(first) = raw.find(|c| !clean(c)) else {
        return Cow::Borrowed(raw);
    };
    let mut shown = String::with_capacity(raw.len() + 16);
    shown.push_str(&raw[..first]);
    for c in raw[first..].chars() {
        match c {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if harmless(c) => shown.push(c),
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

/// `raw` made harmless for a CSV field: as [`text`], and no spreadsheet takes it for a formula.
///
/// Quotes and commas are left to the CSV writer.
pub(crate) fn csv_field(raw: &str) -> Cow<'_, str> {
    let shown = text(raw);
    if shown.starts_with([
        '=', '+', '-', '@', '\u{ff0b}', '\u{ff0d}', '\u{ff1d}', '\u{ff20}',
    ]) {
        return Cow::Owned(format!("'{shown}"));
    }
    shown
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
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !harmless(c)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: [&str; 10] = [
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
    ];

    #[test]
    fn nothing_harmful_is_left() {
        for raw in HOSTILE {
            for shown in [text(raw), csv_field(raw)] {
                assert!(
                    shown.chars().all(|c| harmless(c) && !c.is_control()),
                    "{shown:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_harmless_stays_as_it_is() {
        for raw in ["", "web-1", "münchen.example", "日本", "a b", "🦀"] {
            assert!(matches!(text(raw), Cow::Borrowed(shown) if shown == raw));
        }
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
            assert!(line.chars().all(harmless), "{line:?}");
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), raw);
        }
    }
}
