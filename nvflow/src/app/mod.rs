//! What a connection speaks: told by the first octets of each side, never by a port.
//!
//! A side is looked at until it is known, or until so many octets or packets have gone by that it will not be. One packet is enough for
//! most; what comes in pieces is put together in a pool of bounded size. Nothing of the payload is kept but the fields of [`Application`].

mod datagram;
mod dns;
mod http;
mod http2;
mod identifier;
mod names;
mod octets;
mod pieces;
mod ports;
#[cfg(feature = "quic")]
mod quic;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

use std::borrow::Cow;

pub(crate) use identifier::{Counts, Identifier};
pub use names::ResolvedName;
pub use ports::registered_service;

/// How far a connection's application is looked for.
///
/// Off by default: see [`crate::MeterConfig::identify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identify {
    /// Sides of connections whose first octets are put together from pieces at the same time, at most; each takes 4 KiB while it lasts.
    /// When all are taken, the longest standing is judged by what is there of it. Default: 4,096.
    pub pieces: usize,
    /// Memory for names and the like of all connections in the table. Where it is used up, the protocol is told and no more. Unit:
    /// octets. Default: 32 MiB.
    pub memory: usize,
    /// Names that are learnt from responses of DNS and put to the records of connections that follow, at most; the oldest give way, and one
    /// observation point has an eighth of them at most. With 0 none are, and of a connection of DNS no more than the first query and
    /// response is looked at. Default: 32,768.
    pub names: usize,
}

impl Default for Identify {
    fn default() -> Self {
        Self {
            pieces: 4_096,
            memory: 32 << 20,
            names: 32_768,
        }
    }
}

macro_rules! protocols {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// An application protocol that is known by its octets.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Protocol {
            $($(#[$doc])* $variant,)*
        }

        impl Protocol {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name, as records have it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

protocols! {
    /// DNS (RFC 1035), over UDP or TCP.
    Dns = "dns";
    /// Multicast DNS (RFC 6762).
    Mdns = "mdns";
    /// Link-local multicast name resolution (RFC 4795).
    Llmnr = "llmnr";
    /// TLS, or SSL 3, and nothing known of what is in it.
    Tls = "tls";
    /// QUIC (RFC 9000).
    Quic = "quic";
    /// HTTP/1 (RFC 9112).
    Http = "http";
    /// HTTP/2 without TLS, with prior knowledge (RFC 9113).
    Http2 = "http2";
    /// gRPC over such HTTP/2.
    Grpc = "grpc";
    /// SSH (RFC 4253).
    Ssh = "ssh";
    /// PostgreSQL, in TLS or not.
    PostgreSql = "postgresql";
    /// MySQL and MariaDB, in TLS or not.
    MySql = "mysql";
    /// Redis, and what speaks RESP like it.
    Redis = "redis";
    /// Kafka.
    Kafka = "kafka";
    /// MongoDB.
    MongoDb = "mongodb";
    /// NTP (RFC 5905).
    Ntp = "ntp";
    /// SSDP, by which UPnP finds devices.
    Ssdp = "ssdp";
    /// DHCP for IPv4 (RFC 2131).
    Dhcp = "dhcp";
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a connection speaks, and whom for.
///
/// All texts were chosen by whoever sent the frames. They hold what was sent, control characters included: escape them before they
/// are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Application {
    /// The protocol, as the octets tell.
    pub protocol: Option<Protocol>,
    /// A guess: what the server's port is registered for. Only where the octets did not tell the protocol.
    pub registered: Option<&'static str>,
    /// What TLS told, also of QUIC and of protocols that begin by themselves and go on in TLS.
    pub tls: Option<Box<Tls>>,
    /// What the first HTTP request and its response told.
    pub http: Option<Box<Http>>,
    /// What the first DNS query and its response told.
    pub dns: Option<Box<Dns>>,
}

/// What the handshake of TLS tells in the clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name that the client asks for (SNI, RFC 6066).
    pub server_name: Option<Box<str>>,
    /// The application protocols that the client offers (ALPN, RFC 7301), in its order, with commas between them.
    pub alpn: Option<Box<str>>,
    /// The highest version that the client offers, as OpenSSL writes it: `TLSv1.3`.
    pub client_version: Option<Cow<'static, str>>,
    /// The version that the server chose.
    pub version: Option<Cow<'static, str>>,
    /// The fingerprint JA4 of the ClientHello.
    pub ja4: Option<Box<str>>,
}

/// What HTTP tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http {
    /// The method of the first request.
    pub method: Option<Box<str>>,
    /// Its host.
    pub host: Option<Box<str>>,
    /// The status of the first response that is final.
    pub status: Option<u16>,
}

/// What DNS tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// The name of the first question in the notation of zone files (RFC 1035, section 5.1), but that UTF-8 stays.
    pub query_name: Option<Box<str>>,
    /// Its type: `A`, or `TYPE4711` where the number has no name.
    pub query_type: Option<Cow<'static, str>>,
    /// The response code: `NXDOMAIN`.
    pub response_code: Option<Cow<'static, str>>,
    /// Answers in the response.
    pub answer_count: Option<u16>,
    /// The addresses among the first of them, with commas between.
    pub answers: Option<Box<str>>,
    /// Time from the query to its response. Unit: microseconds.
    pub latency_micros: Option<u32>,
}

impl Application {
    /// One of which only the protocol is known.
    pub(crate) fn of(protocol: Protocol) -> Self {
        Self {
            protocol: Some(protocol),
            ..Self::default()
        }
    }

    fn of_tls(protocol: Protocol, tls: Tls) -> Self {
        Self {
            tls: (tls != Tls::default()).then(|| Box::new(tls)),
            ..Self::of(protocol)
        }
    }

    fn of_http(protocol: Protocol, http: Http) -> Self {
        Self {
            http: Some(Box::new(http)),
            ..Self::of(protocol)
        }
    }

    /// Takes over what is not known here yet; what is stays.
    fn add(&mut self, more: Self) {
        if self.protocol == Some(Protocol::Http2) && more.protocol == Some(Protocol::Grpc) {
            self.protocol = more.protocol;
        }
        self.protocol = self.protocol.or(more.protocol);
        match (&mut self.tls, more.tls) {
            (Some(tls), Some(more)) => {
                tls.server_name = tls.server_name.take().or(more.server_name);
                tls.alpn = tls.alpn.take().or(more.alpn);
                tls.client_version = tls.client_version.take().or(more.client_version);
                tls.version = tls.version.take().or(more.version);
                tls.ja4 = tls.ja4.take().or(more.ja4);
            }
            (tls @ None, more) => *tls = more,
            (Some(_), None) => {}
        }
        match (&mut self.http, more.http) {
            (Some(http), Some(more)) => {
                http.method = http.method.take().or(more.method);
                http.host = http.host.take().or(more.host);
                http.status = http.status.or(more.status);
            }
            (http @ None, more) => *http = more,
            (Some(_), None) => {}
        }
        match (&mut self.dns, more.dns) {
            (Some(dns), Some(more)) => {
                dns.query_name = dns.query_name.take().or(more.query_name);
                dns.query_type = dns.query_type.take().or(more.query_type);
                dns.response_code = dns.response_code.take().or(more.response_code);
                dns.answer_count = dns.answer_count.or(more.answer_count);
                dns.answers = dns.answers.take().or(more.answers);
                dns.latency_micros = dns.latency_micros.or(more.latency_micros);
            }
            (dns @ None, more) => *dns = more,
            (Some(_), None) => {}
        }
    }

    /// Octets of memory it takes, about.
    fn memory(&self) -> usize {
        /// Of the counts of an `Arc` and of what the allocator takes for each piece.
        const BESIDE: usize = 16;
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len() + BESIDE);
        let tls = self.tls.as_ref().map_or(0, |tls| {
            size_of::<Tls>() + BESIDE + text(&tls.server_name) + text(&tls.alpn) + text(&tls.ja4)
        });
        let http = self.http.as_ref().map_or(0, |http| {
            size_of::<Http>() + BESIDE + text(&http.method) + text(&http.host)
        });
        let dns = self.dns.as_ref().map_or(0, |dns| {
            size_of::<Dns>() + BESIDE + text(&dns.query_name) + text(&dns.answers)
        });
        size_of::<Self>() + BESIDE + tls + http + dns
    }
}

/// The longest text that is kept of any one field.
const LONGEST: usize = 255;

/// Octets as text: what is not UTF-8 becomes U+FFFD; `None` when there are none.
fn text(octets: &[u8]) -> Option<Box<str>> {
    if octets.is_empty() {
        return None;
    }
    let octets = &octets[..octets.len().min(LONGEST)];
    Some(match String::from_utf8_lossy(octets) {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(text) => text.into(),
    })
}

/// What a parser says of the octets that a side begins with.
#[derive(Debug)]
enum Verdict {
    /// It is not that protocol.
    No,
    /// It may be, if more comes.
    More,
    /// It is.
    Found(Application),
    /// It is a message of DNS.
    Dns(dns::Message),
}

impl Verdict {
    /// More is needed, or, when `is_all`, will not come.
    const fn more(is_all: bool) -> Self {
        if is_all { Self::No } else { Self::More }
    }
}
