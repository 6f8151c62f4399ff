//! Records as lines: JSON, CSV, or a table.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use nvflow::{Endpoint, Field, FlowEndReason, FlowRecord, Value, Vantage};

use crate::escape;
use crate::render::table::{Column, Fit, Layout};
use crate::render::text::{count, duration};

/// Takes records and writes lines.
pub(crate) trait Lines {
    /// Writes one record.
    fn record(&mut self, record: &FlowRecord) -> io::Result<()>;
    /// Makes what was written so far visible.
    fn flush(&mut self) -> io::Result<()>;
}

/// One JSON object a line; its keys are those of [`Field`], in their order.
#[derive(Debug)]
pub(crate) struct Json<W> {
    out: W,
}

impl<W: Write> Json<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write> Lines for Json<W> {
    fn record(&mut self, record: &FlowRecord) -> io::Result<()> {
        let mut done = Ok(());
        let mut comma = "{";
        record.fields(|field, value| {
            if done.is_ok() {
                done = member(&mut self.out, comma, field.name(), value);
                comma = ",";
            }
        });
        done?;
        self.out.write_all(b"}\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn member(out: &mut impl Write, comma: &str, name: &str, value: Value<'_>) -> io::Result<()> {
    write!(out, "{comma}\"{name}\":")?;
    match value {
        Value::Unsigned(number) => write!(out, "{number}"),
        Value::Address(address) => write!(out, "\"{address}\""),
        Value::Text(text) => escape::json(out, &text),
        Value::HandshakeRtt { client, server } => {
            let mut comma = "{";
            for (name, part) in [("client", client), ("server", server)] {
                if let Some(micros) = part {
                    write!(out, "{comma}\"{name}\":{micros}")?;
                    comma = ",";
                }
            }
            out.write_all(b"}")
        }
        other => escape::json(out, &format!("{other:?}")),
    }
}

/// Comma-separated values: a column for every [`Field`], empty where it has no meaning.
pub(crate) struct Csv<W: Write> {
    out: csv::Writer<W>,
    header: bool,
}

impl<W: Write> Csv<W> {
    pub(crate) fn new(out: W, header: bool) -> Self {
        Self {
            out: csv::WriterBuilder::new().from_writer(out),
            header,
        }
    }

    fn field(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        self.out.write_field(text).map_err(io_error)
    }

    fn titles(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.header) {
            return Ok(());
        }
        for &field in Field::ALL {
            if field == Field::HandshakeRtt {
                for part in ["client", "server"] {
                    self.field(format!("{}.{part}", field.name()))?;
                }
            } else {
                self.field(field.name())?;
            }
        }
        self.out.write_record(None::<&[u8]>).map_err(io_error)
    }
}

impl<W: Write> Lines for Csv<W> {
    fn record(&mut self, record: &FlowRecord) -> io::Result<()> {
        self.titles()?;
        let number = |number: Option<u32>| number.map(|n| n.to_string()).unwrap_or_default();
        for &field in Field::ALL {
            match record.value(field) {
                Some(Value::HandshakeRtt { client, server }) => {
                    self.field(number(client))?;
                    self.field(number(server))?;
                }
                None if field == Field::HandshakeRtt => {
                    self.field("")?;
                    self.field("")?;
                }
                None => self.field("")?,
                Some(Value::Unsigned(number)) => self.field(number.to_string())?,
                Some(Value::Address(address)) => self.field(address.to_string())?,
                Some(Value::Text(text)) => self.field(escape::csv_field(text).as_bytes())?,
                Some(other) => self
                    .out
                    .write_field(escape::csv_field(&format!("{other:?}")).as_bytes())?,
            }
        }
        self.out.write_record(None::<&[u8]>).map_err(io_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A file without records still tells its columns.
        self.titles()?;
        self.out.flush()
    }
}

/// The error itself: csv's own conversion hides its kind, and with it that a pipe was closed.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// The columns of a table of connections.
pub(crate) const COLUMNS: [Column; 11] = [
    Column::left("CLIENT").fit(Fit::Shorten(14)).usual(21),
    Column::left("SERVER").fit(Fit::Shorten(14)).usual(21),
    Column::left("AT").fit(Fit::Drop(3)),
    Column::left("PROTO"),
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
    let end =
        |endpoint: Endpoint, name: Option<&str>| endpoint_text(endpoint, name, record.has_ports);
    let both = |forward: u64, reverse: u64| format!("{}/{}", count(forward), count(reverse));
    let state = match (&record.tcp, record.icmp_type_code) {
        (Some(tcp), _) => tcp.state.as_str().to_owned(),
        (None, Some(code)) => icmp(record.protocol_identifier, code),
        (None, None) => String::new(),
    };
    let rtt = record.tcp.as_ref().and_then(|tcp| {
        match (
            tcp.client_handshake_rtt_micros,
            tcp.server_handshake_rtt_micros,
        ) {
            (Some(client), Some(server)) => Some(u64::from(client) + u64::from(server)),
            (one, other) => one.or(other).map(u64::from),
        }
    });
    vec![
        end(record.source, client.as_deref()),
        end(record.destination, server.as_deref()),
        // Traffic between two attached containers is seen at both.
        escape::text(record.labels.workload.as_deref().unwrap_or_default()).into_owned(),
        protocol(record.protocol_identifier).into_owned(),
        record.vlan_id.map(|id| id.to_string()).unwrap_or_default(),
        state,
        both(record.forward.packets, record.reverse.packets),
        both(record.forward.octets, record.reverse.octets),
        rtt.map(|micros| duration(std::time::Duration::from_micros(micros)))
            .unwrap_or_default(),
        duration(record.duration()),
        ended(record).to_owned(),
    ]
}

fn endpoint_text(endpoint: Endpoint, name: Option<&str>, has_ports: bool) -> String {
    // A group is not the container that listens to it.
    let is_group = match endpoint.address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    let name = name.filter(|_| !is_group);
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
fn icmp(protocol: u8, type_code: u16) -> String {
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
fn ended(record: &FlowRecord) -> &'static str {
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
