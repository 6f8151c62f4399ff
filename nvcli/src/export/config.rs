//! What is to be exported where: from the agent's TOML, or from a URL of the command line.
//!
//! Both give the same [`ExportConfig`]; a URL's options are its fields. [`ExportConfig::check`] makes of it what an exporter needs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::args;

/// One `[[export]]` of a configuration, or one URL.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ExportConfig {
    /// What kind of exporter.
    pub(crate) kind: Kind,
    /// What it is called in statistics; its address or path by default.
    pub(crate) name: Option<String>,
    /// Records that wait for it, at most.
    pub(crate) queue: Option<Count>,
    /// How long the end of the run waits for it.
    pub(crate) flush: Option<Time>,
    /// `file`, `unix`: where.
    pub(crate) path: Option<PathBuf>,
    /// `file`: octets of a file before the next one is begun.
    pub(crate) max_size: Option<Size>,
    /// `file`: age of a file before the next one is begun.
    pub(crate) max_age: Option<Time>,
    /// `file`: full files that are kept.
    pub(crate) keep: Option<Count>,
    /// `ipfix`, `prometheus`, `nats`, `otlp`: host and port.
    pub(crate) address: Option<String>,
    /// `ipfix`: UDP or TCP.
    pub(crate) transport: Option<Transport>,
    /// `ipfix`: the observation domain.
    pub(crate) domain: Option<Count>,
    /// `ipfix`: the private enterprise number of our own elements.
    pub(crate) enterprise: Option<Count>,
    /// `ipfix`: whether the types of our own elements are told.
    pub(crate) types: Option<Flag>,
    /// `ipfix` over UDP: the path's MTU.
    pub(crate) mtu: Option<Size>,
    /// `ipfix` over UDP: messages a second, at most.
    pub(crate) rate: Option<Count>,
    /// `ipfix` over UDP: after how long templates are sent again.
    pub(crate) template_interval: Option<Time>,
    /// `ipfix` over UDP: after how many messages templates are sent again.
    pub(crate) template_messages: Option<Count>,
    /// `prometheus`: workloads and protocols that are told apart, at most.
    pub(crate) series: Option<Count>,
    /// `nats`: who we are.
    pub(crate) user: Option<String>,
    /// `nats`: the user's password.
    pub(crate) password: Option<String>,
    /// `nats`: what is said instead of a user.
    pub(crate) token: Option<String>,
    /// `nats`: what subjects begin with.
    pub(crate) subject: Option<String>,
    /// `nats`: what subjects call this host.
    pub(crate) host: Option<String>,
    /// `nats`: the stream.
    pub(crate) stream: Option<String>,
    /// `nats`: whether a stream that is not there is made.
    pub(crate) create: Option<Flag>,
    /// `nats`: a directory for what is sent while the broker is away.
    pub(crate) spool: Option<PathBuf>,
    /// `nats`: octets of it, at most.
    pub(crate) spool_size: Option<Size>,
}

/// What kind of exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// JSON lines to a file that is rotated.
    File,
    /// JSON lines to standard output.
    Stdout,
    /// JSON lines to a unix socket.
    Unix,
    /// IPFIX messages.
    Ipfix,
    /// Sums for Prometheus to fetch.
    Prometheus,
    /// JSON to NATS JetStream.
    Nats,
    /// Log records of OpenTelemetry.
    Otlp,
}

impl Kind {
    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Stdout => "stdout",
            Self::Unix => "unix",
            Self::Ipfix => "ipfix",
            Self::Prometheus => "prometheus",
            Self::Nats => "nats",
            Self::Otlp => "otlp",
        }
    }
}

/// How IPFIX messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
}

/// What is wrong with a configuration: which field, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    /// The field, as it is written; empty where it is about the whole.
    pub(crate) field: &'static str,
    /// Why it cannot be.
    pub(crate) why: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            "" => f.write_str(&self.why),
            field => write!(f, "{field}: {}", self.why),
        }
    }
}

impl std::error::Error for ConfigError {}

fn wrong<T>(field: &'static str, why: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError {
        field,
        why: why.into(),
    })
}

/// A checked [`ExportConfig`].
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// What it is called.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Records that wait for it, at most.
    pub(crate) queue: usize,
    /// How long the end of the run waits for it.
    pub(crate) flush: Duration,
    /// Where to, and how.
    pub(crate) to: To,
}

impl Export {
    /// The folder in which it makes files, if it does.
    pub(crate) fn writes_beneath(&self) -> Option<&Path> {
        match &self.to {
            To::File(file) => Some(file.path.parent().unwrap_or(Path::new("/"))),
            To::Nats(nats) => nats.spool.as_deref(),
            _ => None,
        }
    }
}

/// Where to, and how.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// See [`Kind::File`].
    File(FileTo),
    /// See [`Kind::Stdout`].
    Stdout,
    /// See [`Kind::Unix`].
    Unix(PathBuf),
    /// See [`Kind::Ipfix`].
    Ipfix(IpfixTo),
    /// See [`Kind::Prometheus`].
    Prometheus(PrometheusTo),
    /// See [`Kind::Nats`].
    Nats(NatsTo),
    /// See [`Kind::Otlp`].
    Otlp(OtlpTo),
}

/// A file, and when the next one is begun.
#[derive(Clone, Debug)]
pub(crate) struct FileTo {
    /// The file that is being written.
    pub(crate) path: PathBuf,
    /// Octets before it is rotated.
    pub(crate) max_size: u64,
    /// Time before it is rotated.
    pub(crate) max_age: Option<Duration>,
    /// Rotated ones that are kept.
    pub(crate) keep: u32,
}

/// A collector of IPFIX messages.
#[derive(Clone, Debug)]
pub(crate) struct IpfixTo {
    /// Host and port.
    pub(crate) address: String,
    /// Datagrams or a stream.
    pub(crate) transport: Transport,
    /// The observation domain.
    pub(crate) domain: u32,
    /// The private enterprise number of our own elements.
    pub(crate) enterprise: u32,
    /// Whether the types of our own elements are told (RFC 5610).
    pub(crate) types: bool,
    /// Octets of a message, at most.
    pub(crate) message: usize,
    /// Messages a second, at most.
    pub(crate) rate: u32,
    /// After how long templates are sent again.
    pub(crate) template_interval: Duration,
    /// After how many messages templates are sent again.
    pub(crate) template_messages: u32,
}

/// Where Prometheus fetches.
#[derive(Clone, Debug)]
pub(crate) struct PrometheusTo {
    /// Where to listen: host and port.
    pub(crate) address: String,
    /// Workloads and protocols that are told apart, at most.
    pub(crate) series: usize,
}

/// A collector of OpenTelemetry.
#[derive(Clone, Debug)]
pub(crate) struct OtlpTo {
    /// Host and port.
    pub(crate) address: String,
}

/// A broker of NATS with JetStream.
#[derive(Clone)]
pub(crate) struct NatsTo {
    /// Host and port.
    pub(crate) address: String,
    /// Who we are.
    pub(crate) user: Option<String>,
    /// The user's password.
    pub(crate) password: Option<String>,
    /// What is said instead of a user.
    pub(crate) token: Option<String>,
    /// What subjects begin with.
    pub(crate) subject: String,
    /// What subjects call this host; its own name where nothing is said.
    pub(crate) host: Option<String>,
    /// The stream.
    pub(crate) stream: String,
    /// Whether a stream that is not there is made.
    pub(crate) create: bool,
    /// A directory for what is sent while the broker is away.
    pub(crate) spool: Option<PathBuf>,
    /// Octets of it, at most.
    pub(crate) spool_size: u64,
}

impl fmt::Debug for NatsTo {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsTo")
            .field("address", &self.address)
            .field("subject", &self.subject)
            .field("stream", &self.stream)
            .field("spool", &self.spool)
            .finish_non_exhaustive()
    }
}

/// Octets of the headers that a datagram has in front of its payload, at most: IPv6 and UDP.
const UDP_HEADERS: u64 = 48;

impl ExportConfig {
    /// What an exporter needs, or the first thing that is wrong.
    pub(crate) fn check(&self) -> Result<Export, ConfigError> {
        self.only_its_own()?;
        let to = match self.kind {
            Kind::File => To::File(self.file()?),
            Kind::Stdout => To::Stdout,
            Kind::Unix => To::Unix(self.needed_path()?),
            Kind::Ipfix => To::Ipfix(self.ipfix()?),
            Kind::Prometheus => To::Prometheus(PrometheusTo {
                address: self.needed_address(9464)?,
                series: between("series", self.series.map(|n| n.0), 1_000, 1, 1_000_000)? as usize,
            }),
            Kind::Nats => To::Nats(self.nats()?),
            Kind::Otlp => To::Otlp(OtlpTo {
                address: self.needed_address(4318)?,
            }),
        };
        let name = match (&self.name, &to) {
            (Some(name), _) if name.is_empty() => return wrong("name", "it is empty"),
            (Some(name), _) => name.clone(),
            (None, To::File(file)) => format!("file:{}", file.path.display()),
            (None, To::Stdout) => "stdout".to_owned(),
            (None, To::Unix(path)) => format!("unix:{}", path.display()),
            (None, To::Ipfix(to)) => match to.transport {
                Transport::Udp => format!("ipfix+udp://{}", to.address),
                Transport::Tcp => format!("ipfix+tcp://{}", to.address),
            },
            (None, To::Prometheus(to)) => format!("prometheus://{}", to.address),
            (None, To::Nats(to)) => format!("nats://{}", to.address),
            (None, To::Otlp(to)) => format!("otlp+http://{}", to.address),
        };
        // Nobody has to fetch the last sums.
        let flush = match self.kind {
            Kind::Prometheus => Duration::ZERO,
            _ => Duration::from_secs(5),
        };
        Ok(Export {
            name,
            kind: self.kind,
            queue: between("queue", self.queue.map(|n| n.0), 16_384, 1, 10_000_000)? as usize,
            flush: self.flush.map_or(flush, |time| time.0),
            to,
        })
    }

    /// No field that this kind does not look at.
    fn only_its_own(&self) -> Result<(), ConfigError> {
        use Kind::{File, Ipfix, Nats, Otlp, Prometheus, Unix};
        let given: [(&'static str, bool, &[Kind]); 23] = [
            ("path", self.path.is_some(), &[File, Unix]),
            ("max-size", self.max_size.is_some(), &[File]),
            ("max-age", self.max_age.is_some(), &[File]),
            ("keep", self.keep.is_some(), &[File]),
            (
                "address",
                self.address.is_some(),
                &[Ipfix, Prometheus, Nats, Otlp],
            ),
            ("series", self.series.is_some(), &[Prometheus]),
            ("user", self.user.is_some(), &[Nats]),
            ("password", self.password.is_some(), &[Nats]),
            ("token", self.token.is_some(), &[Nats]),
            ("subject", self.subject.is_some(), &[Nats]),
            ("host", self.host.is_some(), &[Nats]),
            ("stream", self.stream.is_some(), &[Nats]),
            ("create", self.create.is_some(), &[Nats]),
            ("spool", self.spool.is_some(), &[Nats]),
            ("spool-size", self.spool_size.is_some(), &[Nats]),
            ("transport", self.transport.is_some(), &[Ipfix]),
            ("domain", self.domain.is_some(), &[Ipfix]),
            ("enterprise", self.enterprise.is_some(), &[Ipfix]),
            ("types", self.types.is_some(), &[Ipfix]),
            ("mtu", self.mtu.is_some(), &[Ipfix]),
            ("rate", self.rate.is_some(), &[Ipfix]),
            (
                "template-interval",
                self.template_interval.is_some(),
                &[Ipfix],
            ),
            (
                "template-messages",
                self.template_messages.is_some(),
                &[Ipfix],
            ),
        ];
        for (field, is_given, kinds) in given {
            if is_given && !kinds.contains(&self.kind) {
                return wrong(
                    field,
                    format!("an exporter of kind {} has none", self.kind.as_str()),
                );
            }
        }
        Ok(())
    }

    fn needed_path(&self) -> Result<PathBuf, ConfigError> {
        match &self.path {
            Some(path) if !path.as_os_str().is_empty() => Ok(path.clone()),
            _ => wrong("path", "a path is needed"),
        }
    }

    /// Host and port, with `port` where none is said.
    fn needed_address(&self, port: u16) -> Result<String, ConfigError> {
        let Some(address) = self.address.as_deref().filter(|text| !text.is_empty()) else {
            return wrong("address", "a host and a port are needed");
        };
        with_port(address, port).ok_or_else(|| ConfigError {
            field: "address",
            why: format!(
                "`{address}` is no host and port, such as collector:{port} or [fd00::1]:{port}"
            ),
        })
    }

    fn file(&self) -> Result<FileTo, ConfigError> {
        Ok(FileTo {
            path: self.needed_path()?,
            max_size: between(
                "max-size",
                self.max_size.map(|size| size.0),
                100 << 20,
                4 << 10,
                u64::MAX,
            )?,
            max_age: self.max_age.map(|age| age.0),
            keep: between("keep", self.keep.map(|n| n.0), 5, 0, 10_000)? as u32,
        })
    }

    fn ipfix(&self) -> Result<IpfixTo, ConfigError> {
        let transport = self.transport.unwrap_or(Transport::Udp);
        let message = match transport {
            Transport::Tcp => {
                for (field, is_given) in [
                    ("mtu", self.mtu.is_some()),
                    ("rate", self.rate.is_some()),
                    ("template-interval", self.template_interval.is_some()),
                    ("template-messages", self.template_messages.is_some()),
                ] {
                    if is_given {
                        return wrong(field, "it is of use over UDP only");
                    }
                }
                16 << 10
            }
            Transport::Udp => {
                let mtu = between("mtu", self.mtu.map(|size| size.0), 1_500, 576, 65_535)?;
                (mtu - UDP_HEADERS) as usize
            }
        };
        let number = |field, given: &Option<Count>, usual, least| {
            let number = given.as_ref().map(|n| n.0);
            between(field, number, usual, least, u32::MAX.into()).map(|n| n as u32)
        };
        Ok(IpfixTo {
            address: self.needed_address(4739)?,
            transport,
            domain: number("domain", &self.domain, 1, 0)?,
            enterprise: number(
                "enterprise",
                &self.enterprise,
                super::ipfix::DOCUMENTATION.into(),
                1,
            )?,
            types: self.types.is_none_or(|flag| flag.0),
            message,
            rate: number("rate", &self.rate, 10_000, 1)?,
            template_interval: self
                .template_interval
                .map_or(Duration::from_secs(60), |time| time.0),
            template_messages: number("template-messages", &self.template_messages, 1_000, 1)?,
        })
    }
}

impl ExportConfig {
    fn nats(&self) -> Result<NatsTo, ConfigError> {
        if self.token.is_some() && self.user.is_some() {
            return wrong("token", "a user is said already");
        }
        if self.password.is_some() && self.user.is_none() {
            return wrong("password", "it is of use with a user only");
        }
        if self.spool_size.is_some() && self.spool.is_none() {
            return wrong("spool-size", "it is of use with a spool only");
        }
        let bad = |c: char| c.is_whitespace() || c.is_control() || "*>".contains(c);
        let subject = self
            .subject
            .clone()
            .unwrap_or_else(|| "nvcli.flows".to_owned());
        if subject
            .split('.')
            .any(|token| token.is_empty() || token.contains(bad))
        {
            return wrong(
                "subject",
                format!("`{subject}` is no row of words with dots between them"),
            );
        }
        let stream = self.stream.clone().unwrap_or_else(|| "nvcli".to_owned());
        if stream.is_empty() || stream.contains(|c: char| bad(c) || "./\\".contains(c)) {
            return wrong("stream", format!("`{stream}` is no name of a stream"));
        }
        Ok(NatsTo {
            address: self.needed_address(4222)?,
            user: self.user.clone(),
            password: self.password.clone(),
            token: self.token.clone(),
            subject,
            host: self.host.clone(),
            stream,
            create: self.create.is_none_or(|flag| flag.0),
            spool: self.spool.clone(),
            spool_size: between(
                "spool-size",
                self.spool_size.map(|size| size.0),
                256 << 20,
                64 << 10,
                u64::MAX,
            )?,
        })
    }
}

fn between(
    field: &'static str,
    given: Option<u64>,
    usual: u64,
    least: u64,
    most: u64,
) -> Result<u64, ConfigError> {
    let number = given.unwrap_or(usual);
    if number < least {
        return wrong(field, format!("it must be at least {least}"));
    }
    if number > most {
        return wrong(field, format!("it can be at most {most}"));
    }
    Ok(number)
}

/// `HOST` or `HOST:PORT`, IPv6 addresses in brackets, as `HOST:PORT`.
fn with_port(address: &str, port: u16) -> Option<String> {
    let (host, given) = match address.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            let _: std::net::Ipv6Addr = inside.parse().ok()?;
            (
                &address[..inside.len() + 2],
                match after {
                    "" => None,
                    _ => Some(after.strip_prefix(':')?),
                },
            )
        }
        None => match address.split_once(':') {
            Some((host, given)) => (host, Some(given)),
            None => (address, None),
        },
    };
    let is_host = |c: char| !c.is_whitespace() && !c.is_control() && !"/?#@,".contains(c);
    let port = given.map_or(Some(port), |text| text.parse().ok())?;
    (!host.is_empty() && host.chars().all(is_host)).then(|| format!("{host}:{port}"))
}

impl FromStr for ExportConfig {
    type Err = ConfigError;

    /// Reads `SCHEME:PLACE?OPTION=VALUE&...`; `%XX` is the octet XX, everywhere; all of them are UTF-8.
    fn from_str(url: &str) -> Result<Self, ConfigError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (scheme, place) = base.split_once(':').unwrap_or((base, ""));
        let mut fields = serde_json::Map::new();
        let mut put = |key: &str, value: &str| {
            fields.insert(key.to_owned(), value.to_owned().into());
        };
        let authority = || {
            let place = place.strip_prefix("//").unwrap_or(place);
            place.strip_suffix('/').unwrap_or(place)
        };
        match scheme {
            "file" | "unix" => {
                put("kind", scheme);
                put("path", &decoded(place.strip_prefix("//").unwrap_or(place))?);
            }
            "stdout" if place.is_empty() => put("kind", scheme),
            "ipfix+udp" | "ipfix+tcp" => {
                put("kind", "ipfix");
                put("transport", &scheme["ipfix+".len()..]);
                put("address", &decoded(authority())?);
            }
            "prometheus" => {
                put("kind", scheme);
                put("address", &decoded(authority())?);
            }
            "otlp+http" => {
                put("kind", "otlp");
                put("address", &decoded(authority())?);
            }
            "nats" => {
                put("kind", scheme);
                let (who, address) = authority().rsplit_once('@').unwrap_or(("", authority()));
                match who.split_once(':') {
                    Some((user, password)) => {
                        put("user", &decoded(user)?);
                        put("password", &decoded(password)?);
                    }
                    None if !who.is_empty() => put("token", &decoded(who)?),
                    None => {}
                }
                put("address", &decoded(address)?);
            }
            _ => {
                return wrong(
                    "",
                    "file:PATH, stdout, unix:PATH, ipfix+udp://HOST:PORT, ipfix+tcp://HOST:PORT, prometheus://HOST:PORT, nats://HOST:PORT or otlp+http://HOST:PORT is needed",
                );
            }
        }
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let Some((key, value)) = option.split_once('=') else {
                return wrong("", format!("`{option}` is no OPTION=VALUE"));
            };
            let key = decoded(key)?;
            if fields.contains_key(&key) {
                return wrong("", format!("`{key}` is said twice"));
            }
            fields.insert(key, decoded(value)?.into());
        }
        Self::deserialize(serde_json::Value::Object(fields)).map_err(|error| ConfigError {
            field: "",
            why: error.to_string(),
        })
    }
}

fn decoded(text: &str) -> Result<String, ConfigError> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let bad = || ConfigError {
        field: "",
        why: format!("`{text}` has a % that is not followed by two hexadecimal digits of UTF-8"),
    };
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            octets.push(*first);
            continue;
        }
        let (digits, tail) = tail.split_first_chunk::<2>().ok_or_else(bad)?;
        let digit = |octet: u8| char::from(octet).to_digit(16);
        let [high, low] = digits.map(digit);
        let octet = high.zip(low).map(|(high, low)| high * 16 + low);
        octets.push(
            octet
                .and_then(|octet| u8::try_from(octet).ok())
                .ok_or_else(bad)?,
        );
        rest = tail;
    }
    String::from_utf8(octets).map_err(|_| bad())
}

/// A value that is a number in TOML or a text in a URL.
trait Scalar: Sized {
    const WHAT: &'static str;
    fn of_number(number: u64) -> Result<Self, String>;
    fn of_text(text: &str) -> Result<Self, String>;
}

macro_rules! scalar {
    ($($name:ident)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Loose(std::marker::PhantomData))
            }
        }
    )*};
}

/// A number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count(pub(crate) u64);
/// Octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);
/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flag(pub(crate) bool);
/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

scalar! { Count Size Flag Time }

impl Scalar for Count {
    const WHAT: &'static str = "a number";
    fn of_number(number: u64) -> Result<Self, String> {
        Ok(Self(number))
    }
    fn of_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| format!("`{text}` is no number"))
    }
}

impl Scalar for Size {
    const WHAT: &'static str = "octets, such as 1400 or 100MiB";
    fn of_number(number: u64) -> Result<Self, String> {
        Ok(Self(number))
    }
    fn of_text(text: &str) -> Result<Self, String> {
        size(text).map(Self)
    }
}

impl Scalar for Flag {
    const WHAT: &'static str = "true or false";
    fn of_number(number: u64) -> Result<Self, String> {
        Self::of_text(&number.to_string())
    }
    fn of_text(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(Self(true)),
            "false" => Ok(Self(false)),
            _ => Err(format!("`{text}` is neither true nor false")),
        }
    }
}

impl Scalar for Time {
    const WHAT: &'static str = "a time, such as \"500ms\", \"10s\", \"2m\" or \"1h30m\"";
    fn of_number(number: u64) -> Result<Self, String> {
        Err(format!(
            "{number} has no unit; {} is needed",
            <Self as Scalar>::WHAT
        ))
    }
    fn of_text(text: &str) -> Result<Self, String> {
        args::duration(text)
            .map(Self)
            .map_err(|why| format!("`{text}`: {why}"))
    }
}

/// Octets as people write them.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no number of octets; {} are needed", Size::WHAT);
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "k" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "K" | "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

struct Loose<T>(std::marker::PhantomData<T>);

impl<T: Scalar> Visitor<'_> for Loose<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::of_number(number).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::custom(format!("{number} is below 0"))),
        }
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<T, E> {
        T::of_text(if flag { "true" } else { "false" }).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::of_text(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(url: &str) -> Result<Export, ConfigError> {
        url.parse::<ExportConfig>()?.check()
    }

    #[test]
    fn urls_say_what_a_configuration_says() {
        let export =
            checked("file:/var/log/a%20b.json?max-size=2MiB&max-age=1h&keep=0&queue=10&flush=1s")
                .expect("right");
        assert_eq!((export.queue, export.flush), (10, Duration::from_secs(1)));
        let To::File(file) = export.to else {
            panic!("{export:?}")
        };
        assert_eq!(file.path, PathBuf::from("/var/log/a b.json"));
        assert_eq!((file.max_size, file.keep), (2 << 20, 0));
        assert_eq!(file.max_age, Some(Duration::from_secs(3600)));

        let export = checked("ipfix+udp://[::1]?enterprise=4711&mtu=9000&domain=7").expect("right");
        assert_eq!(export.name, "ipfix+udp://[::1]:4739");
        let To::Ipfix(to) = export.to else {
            panic!("{export:?}")
        };
        assert_eq!((to.enterprise, to.domain, to.message), (4711, 7, 8952));
        assert!(
            matches!(checked("unix:flows.sock").expect("right").to, To::Unix(path) if path.as_os_str() == "flows.sock")
        );
        assert_eq!(checked("stdout").expect("right").name, "stdout");
    }

    #[test]
    fn secrets_are_in_no_name() {
        let export =
            checked("nats://me:s%40cret@broker?spool=/var/spool/nvcli&create=false&subject=a.b")
                .expect("right");
        assert!(!format!("{export:?}").contains("s@cret"));
        assert_eq!(export.name, "nats://broker:4222");
        let To::Nats(to) = export.to else {
            panic!("{export:?}")
        };
        assert_eq!(
            (to.user.as_deref(), to.password.as_deref()),
            (Some("me"), Some("s@cret"))
        );
        assert_eq!((to.subject.as_str(), to.create), ("a.b", false));
        let To::Nats(to) = checked("nats://t0ken@broker").expect("right").to else {
            panic!()
        };
        assert_eq!((to.token.as_deref(), to.user), (Some("t0ken"), None));
    }

    #[test]
    fn numbers_may_be_numbers() {
        let config = serde_json::json!({
            "kind": "ipfix", "address": "collector", "transport": "tcp", "queue": 5, "flush": "2s",
        });
        let config = ExportConfig::deserialize(config).expect("right");
        let export = config.check().expect("right");
        assert_eq!(export.name, "ipfix+tcp://collector:4739");
        assert_eq!(export.queue, 5);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (url, told) in [
            ("", "is needed"),
            ("http://x", "is needed"),
            ("stdout:x", "is needed"),
            ("file:", "path: a path is needed"),
            ("file:x?max-size=1", "max-size: it must be at least 4096"),
            ("file:x?max-size=1TB", "`1TB` is no number of octets"),
            ("file:x?max-age=10", "a number and a unit are needed"),
            ("file:x?keep=-1", "`-1` is no number"),
            ("file:x?mtu=1500", "mtu: an exporter of kind file has none"),
            ("file:x?colour=red", "unknown field `colour`"),
            ("file:x?keep=1&keep=2", "`keep` is said twice"),
            ("file:x?path=y", "`path` is said twice"),
            ("file:x?keep", "`keep` is no OPTION=VALUE"),
            ("file:%4", "hexadecimal"),
            ("file:%ff", "UTF-8"),
            ("ipfix+udp://", "address: a host and a port are needed"),
            ("ipfix+udp://a:b", "`a:b` is no host and port"),
            ("ipfix+udp://a:70000", "no host and port"),
            ("ipfix+udp://fd00::1", "no host and port"),
            ("ipfix+udp://[fd00::x]:1", "no host and port"),
            ("ipfix+udp://a?mtu=100", "mtu: it must be at least 576"),
            ("ipfix+tcp://a?mtu=1500", "mtu: it is of use over UDP only"),
            (
                "ipfix+udp://a?enterprise=0",
                "enterprise: it must be at least 1",
            ),
            ("ipfix+udp://a?types=no", "`no` is neither true nor false"),
            (
                "nats://a?subject=a..b",
                "subject: `a..b` is no row of words",
            ),
            ("nats://a?stream=a.b", "stream: `a.b` is no name"),
            (
                "nats://a?spool-size=1MiB",
                "spool-size: it is of use with a spool only",
            ),
            ("nats://u:p@a?token=x", "token: a user is said already"),
            ("prometheus://a?series=0", "series: it must be at least 1"),
            ("stdout?queue=0", "queue: it must be at least 1"),
            ("stdout?name=", "name: it is empty"),
        ] {
            let error = checked(url).expect_err(url).to_string();
            assert!(error.contains(told), "{url}: {error}");
        }
    }
}
