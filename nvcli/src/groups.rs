//! Connections added up by what they have in common: `nvcli flows --group-by`.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use nvflow::{Aggregator, Conversation, ConversationKey, FlowRecord, GroupBy, Party};
use serde::Serialize;

use crate::args::{RecordOutput, SortKey, duration, positive};
use crate::escape;
use crate::exit::Say;
use crate::render::flows::{protocol, vlans};
use crate::render::table::{Column, Fit, Layout};
use crate::render::text::{self, count, grouped};
use crate::twins::Twins;

/// What connections are added up by.
#[derive(Args, Debug)]
pub(crate) struct Grouping {
    /// Add connections up by these fields, with commas between them, and show the sums at the end. One between two attached containers counts once, unless `id` or `interface` tells where it was seen
    #[arg(
        short,
        long,
        value_name = "FIELDS",
        value_delimiter = ',',
        value_enum,
        conflicts_with = "watch"
    )]
    pub(crate) group_by: Vec<By>,
    /// With --group-by: a sum for each span of time, such as 10s, 1m or 1h, by when connections ended
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "group_by")]
    pub(crate) window: Option<Duration>,
    /// With --group-by: sums at the same time, at most; what has no room is added up in one line
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 100_000, requires = "group_by")]
    pub(crate) max_groups: usize,
}

/// A field that connections can have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// Who opened the connection: container, or address
    Client,
    /// The client's port
    ClientPort,
    /// To whom it was opened: container, or address
    Server,
    /// The server's port
    #[value(alias = "server-port")]
    Port,
    /// The protocol above IP
    Protocol,
    /// The id of the attached interface, as `nvcli list` shows it
    Id,
    /// The container's interface
    Interface,
    /// The VLANs, of both tags
    Vlan,
    /// The application protocol, where it is known
    Application,
    /// The name that the client asked for: of TLS, HTTP or DNS
    Name,
}

/// Sums in the making.
#[derive(Debug)]
pub(crate) struct Groups {
    sums: Aggregator,
    window: Option<Duration>,
    /// Where a sum may be of what was seen at two places.
    twins: Option<Twins>,
}

impl Groups {
    /// `None` when connections are to be shown one by one.
    pub(crate) fn new(args: &Grouping) -> Option<Self> {
        let by = |field: By| args.group_by.contains(&field);
        let group_by = GroupBy {
            client: by(By::Client),
            client_port: by(By::ClientPort),
            server: by(By::Server),
            server_port: by(By::Port),
            protocol: by(By::Protocol),
            observation_point: by(By::Id),
            interface: by(By::Interface),
            vlan: by(By::Vlan),
            application: by(By::Application),
            server_name: by(By::Name),
        };
        let window = args.window.unwrap_or_default();
        (!args.group_by.is_empty()).then(|| Self {
            sums: Aggregator::new(group_by, window, args.max_groups),
            window: args.window,
            twins: (!by(By::Id) && !by(By::Interface)).then(Twins::default),
        })
    }

    pub(crate) fn add(&mut self, record: &FlowRecord) {
        let twins = self.twins.as_mut();
        if !twins.is_some_and(|twins| twins.is_second(record)) {
            self.sums.add(record);
        }
    }

    /// Writes all sums: by window and then the largest first, or all by `sort`; only the first `most`.
    pub(crate) fn write(
        &self,
        out: impl Write,
        form: &Form,
        sort: Option<SortKey>,
        most: Option<u64>,
        say: Say,
    ) -> io::Result<()> {
        let mut sums: Vec<_> = self.sums.iter().collect();
        let octets = |sum: &Conversation| Reverse(sum.octets + sum.reverse_octets);
        // The key comes last everywhere, so that the same capture gives the same lines.
        match sort {
            None | Some(SortKey::Start) => sums
                .sort_by(|(a, x), (b, y)| (a.window, octets(x), a).cmp(&(b.window, octets(y), b))),
            Some(SortKey::Packets) => {
                let packets = |sum: &Conversation| Reverse(sum.packets + sum.reverse_packets);
                sums.sort_by(|(a, x), (b, y)| (packets(x), a).cmp(&(packets(y), b)));
            }
            // What only single connections have was refused before.
            Some(_) => {
                sums.sort_by(|(a, x), (b, y)| (octets(x), a).cmp(&(octets(y), b)));
            }
        }
        let most = most.and_then(|most| usize::try_from(most).ok());
        sums.truncate(most.unwrap_or(usize::MAX));
        let window = self.window.is_some();
        let mut lines: Vec<Line<'_>> = sums
            .iter()
            .map(|(key, sum)| Line::new(key, sum, window))
            .collect();
        let rest = self.sums.rest();
        if rest.records > 0 {
            lines.push(Line::of(rest, Some(true)));
            say.warn(format_args!(
                "{} records are in the line of the rest: there was room for {} groups (--max-groups)",
                grouped(rest.records),
                grouped(self.sums.iter().count() as u64),
            ));
        }
        match form.output {
            RecordOutput::Json => json(out, &lines),
            RecordOutput::Csv => csv(out, &lines, form.header),
            RecordOutput::Table => table(out, &lines, form),
            RecordOutput::None => Ok(()),
        }
    }
}

/// How sums are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) output: RecordOutput,
    pub(crate) header: bool,
    /// Columns of the terminal, if it is one.
    pub(crate) width: Option<usize>,
}

/// One sum, as it is written. Names are those of records where they mean the same.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    window_start_microseconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_transport_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_transport_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_identifier: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observation_point_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan_id: Option<u16>,
    #[serde(
        rename = "dot1qCustomerVlanId",
        skip_serializing_if = "Option::is_none"
    )]
    customer_vlan_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    /// What had no room.
    #[serde(skip_serializing_if = "Option::is_none")]
    rest: Option<bool>,
    records: u64,
    connections_opened: u64,
    connections_closed: u64,
    connections_failed: u64,
    packet_delta_count: u64,
    reverse_packet_delta_count: u64,
    octet_delta_count: u64,
    reverse_octet_delta_count: u64,
    initiator_octets: u64,
    responder_octets: u64,
    retransmitted_segments: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake_rtt_microseconds: Option<Quantiles>,
}

/// Of the handshakes of a sum, at most an eighth too high.
#[derive(Clone, Copy, Debug, Serialize)]
struct Quantiles {
    count: u64,
    p50: u32,
    p90: u32,
    p99: u32,
}

impl<'a> Line<'a> {
    fn of(sum: &Conversation, rest: Option<bool>) -> Self {
        let quantiles = sum.handshake_rtt.as_ref().and_then(|times| {
            Some(Quantiles {
                count: times.count(),
                p50: times.quantile(0.5)?,
                p90: times.quantile(0.9)?,
                p99: times.quantile(0.99)?,
            })
        });
        Self {
            rest,
            records: sum.records,
            connections_opened: sum.opened,
            connections_closed: sum.closed,
            connections_failed: sum.failed,
            packet_delta_count: sum.packets,
            reverse_packet_delta_count: sum.reverse_packets,
            octet_delta_count: sum.octets,
            reverse_octet_delta_count: sum.reverse_octets,
            initiator_octets: sum.initiator_octets,
            responder_octets: sum.responder_octets,
            retransmitted_segments: sum.retransmitted_segments,
            handshake_rtt_microseconds: quantiles,
            ..Self::default()
        }
    }

    fn new(key: &'a ConversationKey, sum: &Conversation, window: bool) -> Self {
        let party = |party: &'a Option<Party>| {
            party.as_ref().map(|party| match party {
                Party::Workload(name) => Cow::Borrowed(&**name),
                Party::Address(address) => Cow::Owned(address.to_string()),
            })
        };
        Self {
            window_start_microseconds: window.then(|| key.window.as_micros()),
            client: party(&key.client),
            source_transport_port: key.client_port,
            server: party(&key.server),
            destination_transport_port: key.server_port,
            protocol_identifier: key.protocol,
            observation_point_id: key.observation_point,
            interface: key.interface.as_deref(),
            vlan_id: key.vlan,
            customer_vlan_id: key.customer_vlan,
            application_name: key.application,
            server_name: key.server_name.as_deref(),
            ..Self::of(sum, None)
        }
    }

    /// Titles and values as of CSV.
    fn columns(&self) -> [(&'static str, Cow<'_, str>); 28] {
        let number = |number: Option<u64>| {
            Cow::Owned(number.map(|number| number.to_string()).unwrap_or_default())
        };
        let text = |text: Option<&'a str>| escape::csv_field(text.unwrap_or_default());
        let rtt = |pick: fn(&Quantiles) -> u64| {
            number(self.handshake_rtt_microseconds.as_ref().map(pick))
        };
        [
            (
                "windowStartMicroseconds",
                number(self.window_start_microseconds),
            ),
            (
                "client",
                escape::csv_field(self.client.as_deref().unwrap_or_default()),
            ),
            (
                "sourceTransportPort",
                number(self.source_transport_port.map(u64::from)),
            ),
            (
                "server",
                escape::csv_field(self.server.as_deref().unwrap_or_default()),
            ),
            (
                "destinationTransportPort",
                number(self.destination_transport_port.map(u64::from)),
            ),
            (
                "protocolIdentifier",
                number(self.protocol_identifier.map(u64::from)),
            ),
            (
                "observationPointId",
                number(self.observation_point_id.map(u64::from)),
            ),
            ("interface", text(self.interface)),
            ("vlanId", number(self.vlan_id.map(u64::from))),
            (
                "dot1qCustomerVlanId",
                number(self.customer_vlan_id.map(u64::from)),
            ),
            ("applicationName", text(self.application_name)),
            ("serverName", text(self.server_name)),
            (
                "rest",
                Cow::Borrowed(if self.rest == Some(true) { "true" } else { "" }),
            ),
            ("records", number(Some(self.records))),
            ("connectionsOpened", number(Some(self.connections_opened))),
            ("connectionsClosed", number(Some(self.connections_closed))),
            ("connectionsFailed", number(Some(self.connections_failed))),
            ("packetDeltaCount", number(Some(self.packet_delta_count))),
            (
                "reversePacketDeltaCount",
                number(Some(self.reverse_packet_delta_count)),
            ),
            ("octetDeltaCount", number(Some(self.octet_delta_count))),
            (
                "reverseOctetDeltaCount",
                number(Some(self.reverse_octet_delta_count)),
            ),
            ("initiatorOctets", number(Some(self.initiator_octets))),
            ("responderOctets", number(Some(self.responder_octets))),
            (
                "retransmittedSegments",
                number(Some(self.retransmitted_segments)),
            ),
            ("handshakeRttMicroseconds.count", rtt(|times| times.count)),
            (
                "handshakeRttMicroseconds.p50",
                rtt(|times| times.p50.into()),
            ),
            (
                "handshakeRttMicroseconds.p90",
                rtt(|times| times.p90.into()),
            ),
            (
                "handshakeRttMicroseconds.p99",
                rtt(|times| times.p99.into()),
            ),
        ]
    }

    /// The cells of [`COLUMNS`].
    fn cells(&self) -> Vec<String> {
        let name = |text: Option<&str>| escape::text(text.unwrap_or_default()).into_owned();
        let port = |port: Option<u16>| port.map(|port| port.to_string()).unwrap_or_default();
        let both = |forward, reverse| format!("{}/{}", count(forward), count(reverse));
        let rtt = self.handshake_rtt_microseconds.map(|times| {
            let time = |micros: u32| text::duration(Duration::from_micros(micros.into()));
            format!("{}/{}", time(times.p50), time(times.p99))
        });
        let first = match self.rest {
            Some(_) => "(the rest)".to_owned(),
            None => self.window_start_microseconds.map(utc).unwrap_or_default(),
        };
        vec![
            first,
            name(self.client.as_deref()),
            port(self.source_transport_port),
            name(self.server.as_deref()),
            port(self.destination_transport_port),
            self.protocol_identifier
                .map(|number| protocol(number).into_owned())
                .unwrap_or_default(),
            self.observation_point_id
                .map(|id| format!("{id:04x}"))
                .unwrap_or_default(),
            name(self.interface),
            vlans(self.vlan_id, self.customer_vlan_id),
            name(self.application_name),
            name(self.server_name),
            count(self.connections_opened),
            count(self.connections_failed),
            both(self.packet_delta_count, self.reverse_packet_delta_count),
            both(self.octet_delta_count, self.reverse_octet_delta_count),
            count(self.retransmitted_segments),
            rtt.unwrap_or_default(),
        ]
    }
}

const COLUMNS: [Column; 17] = [
    Column::left("FROM"),
    Column::left("CLIENT").fit(Fit::Shorten(14)),
    Column::right("C-PORT"),
    Column::left("SERVER").fit(Fit::Shorten(14)),
    Column::right("PORT"),
    Column::left("PROTO"),
    Column::left("ID"),
    Column::left("INTERFACE").fit(Fit::Shorten(8)),
    Column::right("VLAN"),
    Column::left("APP"),
    Column::left("NAME").fit(Fit::Shorten(14)),
    Column::right("OPENED"),
    Column::right("FAILED").fit(Fit::Drop(2)),
    Column::right("PACKETS").fit(Fit::Drop(1)),
    Column::right("OCTETS"),
    Column::right("RETR").fit(Fit::Drop(3)),
    Column::right("RTT 50/99 %").fit(Fit::Drop(4)),
];

fn table(mut out: impl Write, lines: &[Line<'_>], form: &Form) -> io::Result<()> {
    let rows: Vec<Vec<String>> = lines.iter().map(Line::cells).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let layout = Layout::new(&COLUMNS, &rows, form.width, true);
    if form.header {
        out.write_all(layout.header().as_bytes())?;
    }
    for row in &rows {
        out.write_all(layout.row(row).as_bytes())?;
    }
    out.flush()
}

fn json(mut out: impl Write, lines: &[Line<'_>]) -> io::Result<()> {
    for line in lines {
        escape::json(&mut out, line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn csv(mut out: impl Write, lines: &[Line<'_>], header: bool) -> io::Result<()> {
    let mut write = |cells: &mut dyn Iterator<Item = &str>| -> io::Result<()> {
        for (place, cell) in cells.enumerate() {
            if place > 0 {
                out.write_all(b",")?;
            }
            if cell.contains(['"', ',']) {
                write!(out, "\"{}\"", cell.replace('"', "\"\""))?;
            } else {
                out.write_all(cell.as_bytes())?;
            }
        }
        out.write_all(b"\n")
    };
    if header {
        let titles = Line::default();
        write(&mut titles.columns().iter().map(|(title, _)| *title))?;
    }
    for line in lines {
        write(&mut line.columns().iter().map(|(_, value)| &**value))?;
    }
    out.flush()
}

/// A time as RFC 3339 writes it, to the second.
fn utc(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years of this count begin in March, so that leap days come last; 400 of them are 146,097 days.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!(
        "{:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + later,
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds * 1_000_000), text);
        }
    }
}
