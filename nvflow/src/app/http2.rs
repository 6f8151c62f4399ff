//! HTTP/2 that begins by itself: the preface, and what the first header block tells (RFC 9113, RFC 7541).

use super::octets::Octets;
use super::{Application, Http, LONGEST, Protocol, Verdict, text};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

/// A stream that begins with the preface of a client.
pub(super) fn stream(octets: &[u8], is_all: bool) -> Verdict {
    let there = octets.len().min(PREFACE.len());
    if octets[..there] != PREFACE[..there] {
        return Verdict::No;
    }
    // The first line is of no other protocol.
    if there < 16 {
        return Verdict::more(is_all);
    }
    let mut rest = Octets(&octets[there..]);
    loop {
        let mut frame = rest;
        let (Some(length), Some(kind), Some(flags), Some(_)) =
            (frame.u24(), frame.u8(), frame.u8(), frame.u32())
        else {
            break;
        };
        let there = frame.0.len().min(length as usize);
        let is_whole = there == length as usize;
        if kind == HEADERS && (is_whole || is_all) {
            return Verdict::Found(headers(flags, Octets(&frame.0[..there])));
        }
        if !is_whole {
            break;
        }
        rest = Octets(&frame.0[there..]);
    }
    if is_all {
        Verdict::Found(Application::of(Protocol::Http2))
    } else {
        Verdict::More
    }
}

/// What a HEADERS frame tells.
fn headers(flags: u8, mut frame: Octets<'_>) -> Application {
    let mut block = || {
        let padding = if flags & PADDED == 0 { 0 } else { frame.u8()? };
        if flags & PRIORITY != 0 {
            frame.take(5)?;
        }
        let end = frame.0.len().saturating_sub(padding.into());
        Some(&frame.0[..end])
    };
    let fields = Fields::of(block().unwrap_or_default());
    let protocol = if fields.is_grpc {
        Protocol::Grpc
    } else {
        Protocol::Http2
    };
    Application::of_http(
        protocol,
        Http {
            method: text(&fields.method),
            host: text(&fields.authority),
            status: None,
        },
    )
}

/// The fields of a header block that matter.
#[derive(Debug, Default)]
struct Fields {
    method: Vec<u8>,
    authority: Vec<u8>,
    is_grpc: bool,
}

impl Fields {
    /// Reads a header block as far as it goes.
    ///
    /// It is the first of its connection, so all that can be referred to is the static table, but for what the block itself adds: a
    /// request that names a field twice does not exist.
    fn of(block: &[u8]) -> Self {
        let mut fields = Self::default();
        let mut rest = Octets(block);
        while fields.field(&mut rest).is_some() {}
        fields
    }

    fn field(&mut self, rest: &mut Octets<'_>) -> Option<()> {
        let first = *rest.0.first()?;
        // A field of the table; a new size of it; a name from it, or written out, and a value.
        let prefix = match first {
            0x80.. => 7,
            0x40..0x80 => 6,
            0x20..0x40 => 5,
            _ => 4,
        };
        let index = integer(rest, prefix)?;
        match (prefix, index) {
            (7, 2) => self.method = b"GET".to_vec(),
            (7, 3) => self.method = b"POST".to_vec(),
            (7 | 5, _) => {}
            _ => {
                let name = match index {
                    0 => string(rest)?,
                    1 => b":authority".to_vec(),
                    2 | 3 => b":method".to_vec(),
                    31 => b"content-type".to_vec(),
                    _ => Vec::new(),
                };
                let value = string(rest)?;
                match &name[..] {
                    b":authority" if self.authority.is_empty() => self.authority = value,
                    b":method" if self.method.is_empty() => self.method = value,
                    b"content-type" => {
                        let rest = value.strip_prefix(b"application/grpc");
                        self.is_grpc = rest
                            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
                    }
                    _ => {}
                }
            }
        }
        Some(())
    }
}

/// An integer behind a prefix of so many bits (RFC 7541, section 5.1).
fn integer(rest: &mut Octets<'_>, prefix: u32) -> Option<usize> {
    let mask = (1_u8 << prefix) - 1;
    let first = rest.u8()? & mask;
    let mut value = usize::from(first);
    if first == mask {
        for shift in [0, 7, 14, 21] {
            let octet = rest.u8()?;
            value += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return Some(value);
            }
        }
        return None;
    }
    Some(value)
}

/// A string, of which as much as a text may have is kept.
fn string(rest: &mut Octets<'_>) -> Option<Vec<u8>> {
    let is_coded = rest.0.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let octets = rest.take(length)?;
    if is_coded {
        decoded(octets)
    } else {
        Some(octets[..octets.len().min(LONGEST)].to_vec())
    }
}

/// Lengths of the codes of all octets (RFC 7541, appendix B). The code is canonical: those of one length are numbered in the order of the
/// octets, from where the shorter ones end.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Undoes the Huffman code; `None` when it is not sound.
fn decoded(octets: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for octet in octets {
        for bit in (0..8).rev() {
            code = (code << 1) | u32::from(octet >> bit & 1);
            length += 1;
            if length > 30 {
                return None;
            }
            if let Some(octet) = OF_CODES.octet(code, length) {
                if out.len() == LONGEST {
                    return Some(out);
                }
                out.push(octet);
                (code, length) = (0, 0);
            }
        }
    }
    // What fills the last octet is the beginning of the longest code: ones.
    (length < 8 && code == (1 << length) - 1).then_some(out)
}

/// Codes by length: the first code, how many there are, and where their octets stand in the list.
struct Codes {
    first: [u32; 31],
    count: [u16; 31],
    start: [u16; 31],
    octets: [u8; 256],
}

static OF_CODES: Codes = Codes::new();

impl Codes {
    const fn new() -> Self {
        let mut codes = Self {
            first: [0; 31],
            count: [0; 31],
            start: [0; 31],
            octets: [0; 256],
        };
        let (mut code, mut place, mut length) = (0, 0, 1);
        while length <= 30 {
            code <<= 1;
            codes.first[length] = code;
            codes.start[length] = place as u16;
            let mut octet = 0;
            while octet < 256 {
                if LENGTHS[octet] as usize == length {
                    codes.octets[place] = octet as u8;
                    place += 1;
                    code += 1;
                }
                octet += 1;
            }
            codes.count[length] = place as u16 - codes.start[length];
            length += 1;
        }
        codes
    }

    fn octet(&self, code: u32, length: u8) -> Option<u8> {
        let length = usize::from(length);
        let place = code.checked_sub(self.first[length])?;
        (place < self.count[length].into())
            .then(|| self.octets[usize::from(self.start[length]) + place as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|digit| !digit.is_ascii_whitespace())
            .collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn the_examples_of_rfc_7541_are_decoded() {
        // Appendix C.4.1, C.4.3, C.6.1.
        for (coded, text) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("25a8 49e9 5ba9 7d7f", "custom-key"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            (
                "9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3",
                "https://www.example.com",
            ),
            (
                "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ] {
            assert_eq!(decoded(&hex(coded)).as_deref(), Some(text.as_bytes()));
        }
        // Appendix C.3.1 and C.4.1: GET http://www.example.com/, in the clear and coded.
        for block in [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        ] {
            let fields = Fields::of(&hex(block));
            assert_eq!(fields.method, b"GET");
            assert_eq!(fields.authority, b"www.example.com");
            assert!(!fields.is_grpc);
        }
    }

    #[test]
    fn what_is_not_sound_is_not_decoded() {
        // Filled with zeros; a whole octet to fill; the code that ends a string.
        for coded in ["00", "25a849e95ba97d7fff", "ffffffff"] {
            assert_eq!(decoded(&hex(coded)), None, "{coded}");
        }
        assert_eq!(integer(&mut Octets(&[0x1f, 0x9a, 0x0a]), 5), Some(1337));
        assert_eq!(integer(&mut Octets(&[0xff; 9]), 7), None);
    }
}
