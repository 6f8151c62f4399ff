//! What a datagram of UDP is.

use super::dns::{self, Message};
use super::{Application, Protocol, Verdict, http};

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) ports: [u16; 2],
    /// The group of mDNS or LLMNR among the addresses.
    pub(super) group: Option<Protocol>,
}

/// What is said of a datagram.
#[derive(Debug)]
pub(super) enum Told {
    Nothing,
    Application(Application),
    Dns(Protocol, Message),
    /// Perhaps one of QUIC.
    Quic,
}

/// Says what a datagram is, of which `octets` were kept; `asked` is the id of a DNS query that was seen and not answered.
pub(super) fn judge(octets: &[u8], ends: Ends, asked: Option<u16>) -> Told {
    if is_dhcp(octets) {
        return Told::Application(Application::of(Protocol::Dhcp));
    }
    // One format, three protocols: RFC 6762 and RFC 4795 tell theirs by group and port alone.
    let dialect = ends.group.or_else(|| {
        // A server of DNS may be asked from any port.
        if ends.ports.contains(&53) {
            None
        } else if ends.ports.contains(&5353) {
            Some(Protocol::Mdns)
        } else if ends.ports.contains(&5355) {
            Some(Protocol::Llmnr)
        } else {
            None
        }
    });
    let is_mdns = dialect == Some(Protocol::Mdns);
    if let Some(message) = dns::message(octets, is_mdns, asked) {
        return Told::Dns(dialect.unwrap_or(Protocol::Dns), message);
    }
    // Behind DNS: one in fifty of its queries of 48 octets and more would do. Clocks that say how precise they are have bits that DNS has not.
    if is_ntp(octets) {
        return Told::Application(Application::of(Protocol::Ntp));
    }
    // The form bit and the fixed bit; Google's own before there was a standard had other ones.
    let first = octets.first().copied().unwrap_or_default();
    if (first & 0xc0 == 0xc0 || first & 0xc9 == 0x09) && octets.len() > 20 {
        return Told::Quic;
    }
    if let Some(application) = ssdp(octets) {
        return Told::Application(application);
    }
    Told::Nothing
}

/// A search, a notice or an answer of UPnP: HTTP in a datagram (UPnP Device Architecture 1.1, section 1).
fn ssdp(octets: &[u8]) -> Option<Application> {
    let begins = |with: &[u8]| octets.starts_with(with);
    let read = if begins(b"M-SEARCH * ") || begins(b"NOTIFY * ") {
        http::request(octets, true)
    } else if begins(b"HTTP/1.1 200 ") {
        http::response(octets, true)
    } else {
        return None;
    };
    let Verdict::Found(application) = read else {
        return None;
    };
    Some(Application {
        protocol: Some(Protocol::Ssdp),
        ..application
    })
}

/// A client's or a server's packet (RFC 5905, section 7.3), whose numbers are those of clocks that exist.
fn is_ntp(octets: &[u8]) -> bool {
    let Some((head, rest)) = octets.split_first_chunk::<48>() else {
        return false;
    };
    // With a key's number and a digest, or extensions of words.
    if rest.len() % 4 != 0 || rest.len() > 1024 {
        return false;
    }
    let (version, mode) = (head[0] >> 3 & 7, head[0] & 7);
    let (stratum, poll, precision) = (head[1], head[2], head[3] as i8);
    let seconds = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (delay, dispersion) = (seconds(4), seconds(8));
    let transmit = &head[40..48];
    let is_sound = (1..=4).contains(&version)
        && (1..=5).contains(&mode)
        && stratum <= 16
        && poll <= 17
        && (-32..=0).contains(&precision)
        && delay < 16
        && dispersion <= 16;
    // Clients say little more than when they sent it; servers say since when.
    let has_time = transmit.iter().any(|octet| *octet != 0);
    let is_plain_client = mode == 3 && head[4..40].iter().all(|octet| *octet == 0);
    is_sound && (has_time || is_plain_client) && (mode != 4 || stratum > 0 || head[12] != 0)
}

/// The fixed part of BOOTP, and the cookie of DHCP behind it (RFC 2131, section 3).
fn is_dhcp(octets: &[u8]) -> bool {
    const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
    matches!(octets.first(), Some(1 | 2)) && octets.get(236..240) == Some(&COOKIE)
}
