//! Records as lines: JSON, CSV, or a table.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use nvflow::{Columns, Endpoint, Field, FlowEndReason, FlowRecord, Value, Vantage};

use crate::escape;
use crate::events::Event;
use crate::render::alike::Alike;
use crate::render::gather::{Gather, Line, Second, Short};
use crate::render::order::handshake_rtt;
use crate::render::table::{Column, Fit, Layout, shortened};
use crate::render::text::{count, duration};

/// Takes records and writes lines.
pub(crate) trait Lines {
    /// Writes one record.
    fn record(&mut self, record: &FlowRecord) -> io::Result<()>;
    /// Makes what was written so far visible.
    fn flush(&mut self) -> io::Result<()>;
    /// From now on every line says first what it tells; a table has no such column.
    fn tell(&mut self, _: Event) {}
}

/// The names of all fields, each as it stands before its value; known when this is built, so that copying one is a few stores.
static KEYS: [Short; Field::ALL.len()] = {
    let mut keys = [Short::EMPTY; Field::ALL.len()];
    let mut place = 0;
    let mut sum = 0;
    while place < keys.len() {
        // Every record has its start, which is the first field.
        let before = if place == 0 { "{\"" } else { ",\"" };
        keys[place] = Short::new(&[before, Field::ALL[place].name(), "\":"]);
        sum += keys[place].octets().len() + LONGEST_VALUE;
        place += 1;
    }
    assert!(sum < Line::FIXED);
    keys
};
/// No value that is not a text is longer, be it an address of IPv6 in quotes or two times.
const LONGEST_VALUE: usize = 48;

/// One JSON object a line; its keys are those of [`Field`], in their order.
#[derive(Debug)]
pub(crate) struct Json<W> {
    out: Gather<W>,
    event: Option<Event>,
    /// That of the last start and of the last end.
    seconds: [Second; 2],
    alike: Alike,
}

impl<W: Write> Json<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out: Gather::new(out),
            event: None,
            seconds: Default::default(),
            alike: Alike::default(),
        }
    }

    /// What is written to.
    pub(crate) fn out_mut(&mut self) -> &mut W {
        self.out.out_mut()
    }
}

impl<W: Write> Lines for Json<W> {
    fn record(&mut self, record: &FlowRecord) -> io::Result<()> {
        let mut line = self.out.begin();
        if let Some(event) = self.event {
            line.text("{\"event\":\"");
            line.text(event.name());
            line.text("\"");
        }
        let object = Object {
            line,
            goes_on: self.event.is_some(),
            record,
            seconds: &mut self.seconds,
        };
        let mut line = self.alike.write(record, object).line;
        line.octet(b'}');
        let made = line.end();
        self.out.take(made)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn tell(&mut self, event: Event) {
        self.event = Some(event);
    }
}

/// A JSON object in the making.
struct Object<'a> {
    line: Line<'a>,
    /// Whether a key stands before the record's first.
    goes_on: bool,
    /// What is written: of some fields more is known than their value tells.
    record: &'a FlowRecord,
    seconds: &'a mut [Second; 2],
}

impl Object<'_> {
    /// The end of which `field` is the address of IPv4, which is there in most records.
    ///
    /// Not by way of its value: of one that may be of IPv6 too only memory is large enough, and what comes from there is waited for.
    #[inline(always)]
    const fn end_in(&self, field: Field) -> Option<&Endpoint> {
        match field {
            Field::SourceIpv4 => Some(&self.record.source),
            Field::DestinationIpv4 => Some(&self.record.destination),
            _ => None,
        }
    }
}

impl<'a> AsMut<Line<'a>> for Object<'a> {
    fn as_mut(&mut self) -> &mut Line<'a> {
        &mut self.line
    }
}

impl<'r> Columns<'r> for Object<'_> {
    #[inline(always)]
    fn column(&mut self, field: Field, value: Option<Value<'r>>) {
        const CLIENT: Short = Short::new(&["\"client\":"]);
        const SERVER: Short = Short::new(&["\"server\":"]);
        // As the first key of all, but behind another one.
        const FIRST: Short = Short::new(&[",\"", Field::ALL[0].name(), "\":"]);
        if let Some(end) = self.end_in(field) {
            if let (IpAddr::V4(address), Some(key)) = (end.address, KEYS.get(field as usize)) {
                self.line.short(key);
                quoted(&mut self.line, address.into());
            }
            return;
        }
        let out = &mut self.line;
        let Some(value) = value else { return };
        if field as usize == 0 && self.goes_on {
            out.short(&FIRST);
        } else if let Some(key) = KEYS.get(field as usize) {
            out.short(key);
        }
        match value {
            Value::Unsigned(start) if field == Field::FlowStart => {
                out.micros(start, &mut self.seconds[0]);
            }
            Value::Unsigned(end) if field == Field::FlowEnd => {
                out.micros(end, &mut self.seconds[1]);
            }
            Value::Unsigned(number) => out.number(number),
            Value::Address(address) => quoted(out, address),
            Value::Text(text) => json_text(out, text),
            Value::HandshakeRtt { client, server } => {
                out.octet(b'{');
                if let Some(micros) = client {
                    out.short(&CLIENT);
                    out.number(micros.into());
                }
                if client.is_some() && server.is_some() {
                    out.octet(b',');
                }
                if let Some(micros) = server {
                    out.short(&SERVER);
                    out.number(micros.into());
                }
                out.octet(b'}');
            }
            other => json_text(out, &format!("{other:?}")),
        }
    }
}

#[inline(always)]
fn quoted(out: &mut Line<'_>, address: IpAddr) {
    out.octet(b'"');
    out.address(address);
    out.octet(b'"');
}

#[inline(always)]
fn json_text(out: &mut Line<'_>, text: &str) {
    if escape::is_plain(text) {
        out.octet(b'"');
        out.text(text);
        out.octet(b'"');
    } else {
        out.text(&escaped(text));
    }
}

#[cold]
fn escaped(text: &str) -> String {
    let mut escaped = Vec::new();
    // Writing to a Vec does not fail, and what is written is text.
    drop(escape::json(&mut escaped, &text));
    String::from_utf8_lossy(&escaped).into_owned()
}

/// Comma-separated values (RFC 4180): a column for every [`Field`], empty where it has no meaning.
pub(crate) struct Csv<W> {
    out: Gather<W>,
    header: bool,
    event: Option<Event>,
    alike: Alike,
}

impl<W: Write> Csv<W> {
    pub(crate) fn new(out: W, header: bool) -> Self {
        Self {
            out: Gather::new(out),
            header,
            event: None,
            alike: Alike::default(),
        }
    }

    #[cold]
    fn titles(&mut self) -> io::Result<()> {
        self.header = false;
        let mut line = self.out.begin();
        if self.event.is_some() {
            line.text("event,");
        }
        for (place, &field) in Field::ALL.iter().enumerate() {
            let parts: &[&str] = match field {
                Field::HandshakeRtt => &[".client", ".server"],
                _ => &[""],
            };
            for (part, suffix) in parts.iter().enumerate() {
                if place + part > 0 {
                    line.octet(b',');
                }
                line.text(field.name());
                line.text(suffix);
            }
        }
        let made = line.end();
        self.out.take(made)
    }
}

impl<W: Write> Lines for Csv<W> {
    fn record(&mut self, record: &FlowRecord) -> io::Result<()> {
        if self.header {
            self.titles()?;
        }
        let mut line = self.out.begin();
        if let Some(event) = self.event {
            line.text(event.name());
            line.octet(b',');
        }
        let Row(line) = self.alike.write(record, Row(line));
        let made = line.end();
        self.out.take(made)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A file without records still tells its columns.
        if self.header {
            self.titles()?;
        }
        self.out.flush()
    }

    fn tell(&mut self, event: Event) {
        self.event = Some(event);
    }
}

/// A line of CSV in the making.
struct Row<'a>(Line<'a>);

impl<'a> AsMut<Line<'a>> for Row<'a> {
    fn as_mut(&mut self) -> &mut Line<'a> {
        &mut self.0
    }
}

impl<'r> Columns<'r> for Row<'_> {
    #[inline(always)]
    fn column(&mut self, field: Field, value: Option<Value<'r>>) {
        let out = &mut self.0;
        if field as usize > 0 {
            out.octet(b',');
        }
        match value {
            None if field == Field::HandshakeRtt => out.octet(b','),
            None => {}
            Some(Value::Unsigned(number)) => out.number(number),
            Some(Value::Address(address)) => out.address(address),
            Some(Value::HandshakeRtt { client, server }) => {
                if let Some(micros) = client {
                    out.number(micros.into());
                }
                out.octet(b',');
                if let Some(micros) = server {
                    out.number(micros.into());
                }
            }
            Some(Value::Text(text)) => csv_text(out, text),
            Some(other) => csv_text(out, &format!("{other:?}")),
        }
    }
}

/// A text, made harmless, in quotes where it needs them; there are no line ends left in it.
#[inline(always)]
fn csv_text(out: &mut Line<'_>, text: &str) {
    if escape::is_plain(text) {
        return out.text(text);
    }
    out.text(&csv_field(text));
}

#[cold]
fn csv_field(text: &str) -> String {
    let text = escape::csv_field(text);
    if text.contains(['"', ',']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into_owned()
    }
}

/// The columns of a table of connections.
pub(crate) const COLUMNS: [Column; 12] = [
    Column::left("CLIENT").fit(Fit::Shorten(14)).usual(21),
    Column::left("SERVER").fit(Fit::Shorten(14)).usual(21),
    Column::left("AT").fit(Fit::Drop(3)),
    Column::left("PROTO"),
    Column::left("APPLICATION").fit(Fit::ShortenOrDrop(12, 1)),
    Column::left("VLAN").fit(Fit::Drop(5)),
    Column::left("STATE").fit(Fit::Drop(2)).usual(11),
    Column::right("PACKETS").usual(9),
    Column::right("OCTETS").usual(11),
    Column::right("RTT").fit(Fit::Drop(4)).usual(5),
    Column::right("TIME").usual(5),
    Column::left("END").usual(7),
];

/// A table whose lines come as the records do: the first ones settle the widths.
#[derive(Debug)]
pub(crate) struct Table<W> {
    out: W,
    width: Option<usize>,
    header: bool,
    waiting: Vec<Vec<String>>,
    layout: Option<Layout>,
}

/// `[address]:port` of IPv6 at its longest.
const WIDEST: usize = 47;
/// Rows that are looked at before the widths are settled.
const LOOK_AHEAD: usize = 500;

impl<W: Write> Table<W> {
    pub(crate) fn new(out: W, width: Option<usize>, header: bool) -> Self {
        Self {
            out,
            width,
            header,
            waiting: Vec::new(),
            layout: None,
        }
    }
}

impl<W: Write> Lines for Table<W> {
    fn record(&mut self, record: &FlowRecord) -> io::Result<()> {
        let cells = row(record);
        if let Some(layout) = &self.layout {
            return self.out.write_all(layout.row(&cells).as_bytes());
        }
        self.waiting.push(cells);
        if self.waiting.len() >= LOOK_AHEAD {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.layout.is_none() && !self.waiting.is_empty() {
            let mut layout = Layout::new(&COLUMNS, &self.waiting, self.width, true);
            layout.widen(WIDEST);
            if self.header {
                self.out.write_all(layout.header().as_bytes())?;
            }
            for cells in self.waiting.drain(..) {
                self.out.write_all(layout.row(&cells).as_bytes())?;
            }
            self.layout = Some(layout);
        }
        self.out.flush()
    }
}

/// The cells of one record, in the order of [`COLUMNS`], harmless.
pub(crate) fn row(record: &FlowRecord) -> Vec<String> {
    let (client, server) = match record.vantage {
        Some(Vantage::Egress) => (&record.labels.workload, &record.labels.peer_workload),
        Some(Vantage::Ingress) => (&record.labels.peer_workload, &record.labels.workload),
        None => (&None, &None),
    };
    let client = client.as_ref().or(record.labels.source_domain.as_ref());
    let server = server
        .as_ref()
        .or(record.labels.destination_domain.as_ref());
    let end =
        |endpoint: Endpoint, name: Option<&str>| endpoint_text(endpoint, name, record.has_ports);
    let both = |forward: u64, reverse: u64| format!("{}/{}", count(forward), count(reverse));
    let state = match (&record.tcp, record.icmp_type_code) {
        (Some(tcp), _) => tcp.state.as_str().to_owned(),
        (None, Some(code)) => icmp(record.protocol_identifier, code),
        (None, None) => String::new(),
    };
    vec![
        end(record.source, client.map(|name| &**name)),
        end(record.destination, server.map(|name| &**name)),
        // Traffic between two attached containers is seen at both.
        escape::text(record.labels.workload.as_deref().unwrap_or_default()).into_owned(),
        protocol(record.protocol_identifier).into_owned(),
        application(record),
        vlans(record.vlan_id, record.customer_vlan_id),
        state,
        both(record.forward.packets, record.reverse.packets),
        both(record.forward.octets, record.reverse.octets),
        handshake_rtt(record)
            .map(|micros| duration(std::time::Duration::from_micros(micros)))
            .unwrap_or_default(),
        duration(record.duration()),
        ended(record).to_owned(),
    ]
}

/// Columns that a name may take, which can be 1,000 characters: JSON and CSV have all of it.
const LONGEST_WORD: usize = 64;

/// The VLAN of the outermost tag, and behind it that of the second.
pub(crate) fn vlans(vlan: Option<u16>, customer: Option<u16>) -> String {
    match (vlan, customer) {
        (None, None) => String::new(),
        (Some(id), None) => id.to_string(),
        (id, Some(customer)) => format!("{}.{customer}", id.unwrap_or_default()),
    }
}

/// What a connection speaks, with whom it wants to speak, and what came of it; a guess has a question mark.
pub(crate) fn application(record: &FlowRecord) -> String {
    let Some(application) = &record.application else {
        return String::new();
    };
    let Some(protocol) = application.protocol else {
        return application
            .registered
            .map(|name| format!("{name}?"))
            .unwrap_or_default();
    };
    let mut text = protocol.name().to_owned();
    let mut add = |word: Option<&str>| {
        if let Some(word) = word {
            text.push(' ');
            text.push_str(&shortened(&escape::text(word), LONGEST_WORD));
        }
    };
    if let Some(tls) = &application.tls {
        add(tls.server_name.as_deref());
    }
    if let Some(http) = &application.http {
        add(http.method.as_deref());
        add(http.host.as_deref());
        add(http.status.map(|status| status.to_string()).as_deref());
    }
    if let Some(dns) = &application.dns {
        add(dns.query_type.as_deref());
        add(dns.query_name.as_deref());
        add(dns
            .response_code
            .as_deref()
            .filter(|code| *code != "NOERROR"));
    }
    text
}

/// Whether an address is that of a group, so not one container's.
pub(crate) fn is_group_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

fn endpoint_text(endpoint: Endpoint, name: Option<&str>, has_ports: bool) -> String {
    // A group is not the container that listens to it.
    let name = name.filter(|_| !is_group_address(endpoint.address));
    match (name, has_ports) {
        (Some(name), true) => format!("{}:{}", escape::text(name), endpoint.port),
        (Some(name), false) => escape::text(name).into_owned(),
        (None, true) => SocketAddr::new(endpoint.address, endpoint.port).to_string(),
        (None, false) => match endpoint.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => address.to_string(),
        },
    }
}

/// The protocol's usual name, or its number.
pub(crate) fn protocol(number: u8) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipip",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ip6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "icmp6",
        88 => "eigrp",
        89 => "ospf",
        103 => "pim",
        112 => "vrrp",
        132 => "sctp",
        136 => "udpl",
        other => return Cow::Owned(other.to_string()),
    })
}

/// What an ICMP message is, in a word, or its numbers.
pub(crate) fn icmp(protocol: u8, type_code: u16) -> String {
    let [kind, code] = type_code.to_be_bytes();
    let word = match (protocol, kind) {
        (1, 0 | 8) | (58, 128 | 129) => "echo",
        (1, 3) | (58, 1) => "unreachable",
        (1, 11) | (58, 3) => "expired",
        (58, 2) => "too big",
        (58, 130..=132 | 143) => "mld",
        (58, 133) => "rs",
        (58, 134) => "ra",
        (58, 135) => "ns",
        (58, 136) => "na",
        _ => return format!("type {kind}/{code}"),
    };
    word.to_owned()
}

const SYN: u16 = 0x02;
const RST: u16 = 0x04;

/// Why the record was made, in a word.
pub(crate) fn ended(record: &FlowRecord) -> &'static str {
    match record.flow_end_reason {
        None => "",
        Some(FlowEndReason::IdleTimeout) => "idle",
        Some(FlowEndReason::ActiveTimeout) => "goes on",
        Some(FlowEndReason::EndOfFlowDetected) => {
            let (client, server) = (
                record.forward.tcp_control_bits,
                record.reverse.tcp_control_bits,
            );
            if server & RST != 0 && server & SYN == 0 && client & SYN != 0 {
                "refused"
            } else if (client | server) & RST != 0 {
                "reset"
            } else {
                "closed"
            }
        }
        Some(FlowEndReason::ForcedEnd) => "open",
        Some(FlowEndReason::LackOfResources) => "evicted",
    }
}
