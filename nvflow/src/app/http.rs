//! HTTP/1: the first request and the status of its response (RFC 9112).

use httparse::{EMPTY_HEADER, Request};

use super::octets::Octets;
use super::{Application, Http, Protocol, Verdict, text};

/// Header fields that are looked through for the host; it comes first nearly always.
const FIELDS: usize = 64;

/// A stream that begins with a request: its method and host.
pub(super) fn request(octets: &[u8], is_all: bool) -> Verdict {
    // A method is a word in capitals (or of those registered with a hyphen), which rules out nearly all that is no request.
    let is_of_method = |octet: &u8| octet.is_ascii_uppercase() || *octet == b'-';
    let word = octets
        .iter()
        .take_while(|octet| is_of_method(octet))
        .count();
    if word > 20
        || octets
            .get(word)
            .is_some_and(|octet| *octet != b' ' || word < 3)
    {
        return Verdict::No;
    }
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut request = Request::new(&mut fields);
    let parsed = request.parse(octets);
    let (Some(method), Some(_)) = (request.method, request.version) else {
        return match parsed {
            // A line that is longer than what is looked at, or was cut: most of what could be told of it is there.
            Ok(_) if is_all && is_usual(request.method, request.path, octets) => {
                found(&octets[..word], None)
            }
            Ok(_) => Verdict::more(is_all),
            Err(_) => Verdict::No,
        };
    };
    let host = request
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("host"))
        .map(|field| field.value);
    match (host, parsed) {
        (None, Ok(httparse::Status::Partial)) if !is_all => Verdict::More,
        // The target of CONNECT is a host, and there need be no other.
        (None, _) if method == "CONNECT" => {
            found(method.as_bytes(), request.path.map(str::as_bytes))
        }
        _ => found(method.as_bytes(), host),
    }
}

fn found(method: &[u8], host: Option<&[u8]>) -> Verdict {
    Verdict::Found(Application::of_http(
        Protocol::Http,
        Http {
            method: text(method),
            host: host.and_then(text),
            status: None,
        },
    ))
}

/// Whether what is there of a request line is of the kind that every client sends.
fn is_usual(method: Option<&str>, path: Option<&str>, octets: &[u8]) -> bool {
    let Some(method) = method else { return false };
    let target = path.map_or_else(
        || octets.get(method.len() + 1..).unwrap_or_default(),
        str::as_bytes,
    );
    matches!(
        method,
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH"
    ) && (target.starts_with(b"/") || target.starts_with(b"http"))
}

/// A stream that begins with a response: the status of the first one that is final.
pub(super) fn response(octets: &[u8], is_all: bool) -> Verdict {
    let mut rest = octets;
    loop {
        let Some(status) = status(rest, is_all) else {
            return Verdict::No;
        };
        let Some(status) = status else {
            return Verdict::more(is_all);
        };
        // 1xx are said before the response; 101 is the last word of HTTP/1.
        let is_final = !(100..200).contains(&status) || status == 101;
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
        match end {
            Some(end) if !is_final => rest = &rest[end + 4..],
            None if !is_final && !is_all => return Verdict::More,
            _ => {
                return Verdict::Found(Application::of_http(
                    Protocol::Http,
                    Http {
                        status: Some(status),
                        ..Http::default()
                    },
                ));
            }
        }
        if rest.is_empty() && is_all {
            return Verdict::Found(Application::of(Protocol::Http));
        }
    }
}

/// The status in a status line; `Some(None)` when more is needed to tell, `None` when it is no such line.
///
/// What follows the three digits has to be there, if anything comes: another digit makes it none.
fn status(octets: &[u8], is_all: bool) -> Option<Option<u16>> {
    const LINE: &[u8; 12] = b"HTTP/1.0 000";
    let fits = octets.iter().zip(LINE).all(|(octet, model)| match model {
        b'0' => octet.is_ascii_digit(),
        other => octet == other,
    });
    if !fits || octets.get(12).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    if octets.len() == LINE.len() && !is_all {
        return Some(None);
    }
    let mut rest = Octets(octets);
    Some(rest.take(9).and(rest.take(3)).map(|digits| {
        digits
            .iter()
            .fold(0, |sum, digit| 10 * sum + u16::from(digit - b'0'))
    }))
}
