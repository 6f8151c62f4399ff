//! Any text through the one function that makes it harmless.
#![no_main]

// nvcli is a program, not a library; this module of it needs nothing else of it.
#[path = "../../src/escape.rs"]
mod escape;

use std::io::Write as _;

use unicode_width::UnicodeWidthChar as _;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let sent = String::from_utf8_lossy(data);
    let shown = escape::text(&sent);
    harmless(&shown);
    assert_eq!(raw(&shown), sent);

    let field = escape::csv_field(&sent);
    harmless(&field);
    assert!(!field.starts_with(['=', '+', '-', '@', '\t', '\r']));
    assert_eq!(raw(field.strip_prefix('\'').unwrap_or(&field)), sent);

    let label = escape::metric_label(&sent);
    harmless(&label);
    let (mut read, mut rest) = (String::new(), label.chars());
    while let Some(c) = rest.next() {
        assert_ne!(c, '"');
        let c = if c == '\\' {
            rest.next()
                .filter(|c| matches!(c, '\\' | '"'))
                .expect("an escape that there is")
        } else {
            c
        };
        read.push(c);
    }
    assert_eq!(raw(&read), sent);

    let mut json = Vec::new();
    escape::json(&mut json, &sent).expect("memory");
    let json = String::from_utf8(json).expect("JSON is text");
    harmless(&json);
    let back: String = serde_json::from_str(&json).expect("JSON");
    assert_eq!(back, sent);

    if escape::is_plain(&sent) {
        assert_eq!(shown, sent);
        assert_eq!(field, sent);
        assert_eq!(json, format!("\"{sent}\""));
    }

    let mut log = escape::Log(Vec::new());
    log.write_all(format!("{sent}\n").as_bytes())
        .expect("memory");
    let log = String::from_utf8(log.0).expect("text");
    harmless(log.strip_suffix('\n').expect("a line"));
});

/// By another list than the function's own: what Unicode says of the characters, and the blocks that are invisible.
fn harmless(shown: &str) {
    let mut marks = 0;
    for c in shown.chars() {
        assert!(!c.is_control(), "{shown:?}");
        assert!(c == ' ' || !c.is_whitespace(), "{shown:?}");
        let width = c.width();
        assert!(width.is_some(), "{shown:?}");
        marks = if width == Some(0) { marks + 1 } else { 0 };
        assert!(marks <= 4, "{shown:?}");
        let reorders = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let hides = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e01ef}');
        assert!(!reorders && !hides, "{shown:?}");
    }
    assert!(
        shown.chars().next().is_none_or(|c| c.width() != Some(0)),
        "{shown:?}"
    );
}

/// What was escaped.
fn raw(shown: &str) -> String {
    let mut raw = String::new();
    let mut rest = shown.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            raw.push(c);
            continue;
        }
        let number = |digits: String| {
            u32::from_str_radix(&digits, 16)
                .ok()
                .and_then(char::from_u32)
                .expect("a character")
        };
        match rest.next().expect("something behind a backslash") {
            'n' => raw.push('\n'),
            'r' => raw.push('\r'),
            't' => raw.push('\t'),
            'x' => raw.push(number(rest.by_ref().take(2).collect())),
            'u' => raw.push(number(
                rest.by_ref().skip(1).take_while(|c| *c != '}').collect(),
            )),
            c => raw.push(c),
        }
    }
    raw
}
