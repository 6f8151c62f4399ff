//! The filter that is typed: words, each of which a row must hold.
//!
//! A word is found as it stands, or as letters in their order within one word of the row: `wb80` finds `web-1:80`. Digits
//! alone must stand together, since nearly every address has any two digits somewhere. `!word` finds rows without it.

/// What was typed, ready to be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pattern {
    words: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    /// In lower case.
    text: Box<[u8]>,
    unwanted: bool,
    /// Whether its letters have to stand together.
    whole: bool,
}

impl Pattern {
    pub(crate) fn new(typed: &str) -> Self {
        let words = typed
            .split_whitespace()
            .filter_map(|word| {
                let (unwanted, text) = match word.strip_prefix('!') {
                    Some(text) => (true, text),
                    None => (false, word),
                };
                let text = text.to_lowercase().into_bytes().into_boxed_slice();
                (!text.is_empty()).then(|| Word {
                    // What is not wanted should be clear.
                    whole: unwanted || !text.iter().any(u8::is_ascii_alphabetic),
                    text,
                    unwanted,
                })
            })
            .collect();
        Self { words }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether a row of `text`, in lower case, is shown.
    pub(crate) fn admits(&self, text: &[u8]) -> bool {
        self.words
            .iter()
            .all(|word| word.is_in(text) != word.unwanted)
    }
}

impl Word {
    fn is_in(&self, text: &[u8]) -> bool {
        if self.whole {
            return contains(text, &self.text);
        }
        text.split(|octet| *octet == b' ')
            .any(|part| is_spread_over(&self.text, part))
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Whether all octets of `word` come in `text`, in their order.
fn is_spread_over(word: &[u8], text: &[u8]) -> bool {
    if word.len() > text.len() {
        return false;
    }
    let mut rest = text.iter();
    word.iter().all(|octet| rest.any(|other| other == octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[u8] = b"client-1:40278 web-1:443 tcp tls estab shop.example";

    fn admits(typed: &str) -> bool {
        Pattern::new(typed).admits(ROW)
    }

    #[test]
    fn words_are_found_whole_or_by_letters_in_order() {
        for typed in [
            "",
            "web",
            "wb1",
            "WEB-1",
            "clnt",
            "443",
            "tls shop",
            "estab :443",
            "sp.ex",
        ] {
            assert!(admits(typed), "{typed}");
        }
        for typed in ["db", "bew", "423", "web postgres", "webtls", "44 3x"] {
            assert!(!admits(typed), "{typed}");
        }
    }

    #[test]
    fn what_is_not_wanted_is_left_out() {
        assert!(admits("!udp"));
        assert!(!admits("!tls"));
        assert!(!admits("web !443"));
        // By its letters alone it would be found here.
        assert!(admits("!wb1"));
        assert!(admits("!"), "nothing has been typed yet");
    }
}
