//! Numbers and times as people read them.

use std::time::Duration;

use unicode_width::UnicodeWidthStr as _;

/// A count in at most five columns: 9999, 12.3K, 456M.
pub(crate) fn count(number: u64) -> String {
    if number < 10_000 {
        return number.to_string();
    }
    let mut unit = 1_000;
    let mut sign = "K";
    for next in ["M", "G", "T", "P", "E"] {
        // What would be rounded to 1000 of a unit is 1 of the next.
        if number < unit * 1_000 - unit / 2 {
            break;
        }
        unit *= 1_000;
        sign = next;
    }
    let rounded =
        |parts: u128| (u128::from(number) * parts + u128::from(unit) / 2) / u128::from(unit);
    let tenths = rounded(10);
    if tenths < 1_000 {
        return format!("{}.{}{sign}", tenths / 10, tenths % 10);
    }
    format!("{}{sign}", rounded(1))
}

/// A time in at most six columns: 400us, 1.2ms, 12ms, 1.2s, 3m05s, 2h10m, 4d03h.
pub(crate) fn duration(time: Duration) -> String {
    let micros = time.as_micros();
    let seconds = time.as_secs();
    match micros {
        0 => "0".to_owned(),
        1..1_000 => format!("{micros}us"),
        1_000..10_000 => format!("{}.{}ms", micros / 1_000, micros % 1_000 / 100),
        10_000..1_000_000 => format!("{}ms", micros / 1_000),
        1_000_000..60_000_000 => format!("{}.{}s", seconds, micros % 1_000_000 / 100_000),
        _ if seconds < 3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A number in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `text` in lines of at most `width` columns, broken between words.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let fits = lines
            .last()
            .is_some_and(|line| line.width() + 1 + word.width() <= width);
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if fits => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fit_five_columns() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0K"),
            (12_345, "12.3K"),
            (99_999, "100K"),
            (123_456, "123K"),
            (999_499, "999K"),
            (999_500, "1.0M"),
            (1_000_000, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text);
            assert!(count(number).len() <= 5);
        }
    }

    #[test]
    fn times_fit_six_columns() {
        for (micros, text) in [
            (0, "0"),
            (400, "400us"),
            (9_999, "9.9ms"),
            (12_345, "12ms"),
            (1_234_567, "1.2s"),
            (185_000_000, "3m05s"),
            (7_800_000_000, "2h10m"),
            (356_400_000_000, "4d03h"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn large_numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("one two three", 80), ["one two three"]);
        assert_eq!(wrapped("far-too-long a", 4), ["far-too-long", "a"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
