//! The view, driven by keys and snapshots, without a terminal.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use nvcapture::Timestamp;
use nvflow::{
    Application, Endpoint, FlowEndReason, FlowRecord, Labels, Protocol, Side, TcpRecord, TcpSide,
    TcpState, Tls, Vantage,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use unicode_width::UnicodeWidthStr as _;

use super::model::{Grouping, Order};
use super::roster::{Attached, Roster};
use super::snapshot::{Row, Snapshot};
use super::state::{Action, Options, Page, Sight, State};
use super::theme::Theme;
use super::view::draw;
use crate::health::Seen;
use crate::names::Known;

const WEB: u16 = 1;
const DB: u16 = 2;
const START: u64 = 1_700_000_000_000_000_000;

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn attached(id: u16, name: &str) -> Attached {
    Attached {
        id,
        name: name.into(),
        interface: "eth0".into(),
        mode: "inline",
        damage: None,
        counted: None,
    }
}

/// `names` are attached as 1, 2 and so on, with addresses that end alike.
fn roster(names: &[&str]) -> Roster {
    let mut roster = Roster {
        version: 1,
        ..Roster::default()
    };
    for (name, id) in names.iter().zip(1_u16..) {
        roster.attached.push(attached(id, name));
        let known = Known {
            workload: (*name).into(),
            container_id: Some(format!("{id:x}f00")),
            interface: "eth0".into(),
            since: 0,
        };
        roster.by_id.insert(id, vec![known]);
        let last = u8::try_from(id).expect("few");
        roster
            .by_address
            .insert(address(last), Some((*name).into()));
    }
    roster
}

/// A TCP connection as seen at `point`, with octets to the server and back.
fn tcp(point: u16, source: (u8, u16), destination: (u8, u16), octets: [u64; 2]) -> FlowRecord {
    let end = |(last, port): (u8, u16)| Endpoint {
        address: address(last),
        port,
    };
    let side = |octets: u64| Side {
        packets: octets.div_ceil(1_000).max(1),
        octets,
        layer2_octets: octets + 14,
        payload_octets: octets,
        tcp_control_bits: 0x12,
        ..Side::default()
    };
    let inside = u8::try_from(point).expect("few") == source.0;
    FlowRecord {
        flow_start: Timestamp::from_nanos(START),
        flow_end: Timestamp::from_nanos(START),
        source: end(source),
        destination: end(destination),
        protocol_identifier: 6,
        has_ports: true,
        icmp_type_code: None,
        vlan_id: None,
        customer_vlan_id: None,
        observation_point: Some(point),
        vantage: Some(if inside {
            Vantage::Egress
        } else {
            Vantage::Ingress
        }),
        forward: side(octets[0]),
        reverse: side(octets[1]),
        flow_end_reason: None,
        tcp: Some(TcpRecord {
            state: TcpState::Established,
            server_handshake_rtt_micros: Some(400),
            client_handshake_rtt_micros: Some(30),
            forward: TcpSide::default(),
            reverse: TcpSide::default(),
        }),
        tunnel: None,
        application: None,
        labels: Labels::default(),
    }
}

fn udp(record: FlowRecord) -> FlowRecord {
    FlowRecord {
        protocol_identifier: 17,
        tcp: None,
        ..record
    }
}

/// A protocol, and the name that was asked for in it.
fn speaks(protocol: Protocol, name: &str) -> Arc<Application> {
    Arc::new(Application {
        protocol: Some(protocol),
        tls: Some(Box::new(Tls {
            server_name: Some(name.into()),
            ..Tls::default()
        })),
        ..Application::default()
    })
}

/// The view beside the clock that its snapshots are stamped with.
struct Watch {
    state: State,
    second: u64,
}

impl Watch {
    fn new(names: &[&str]) -> Self {
        let options = Options {
            order: Order::Rate,
            grouping: Grouping::None,
            follow: Vec::new(),
            expression: None,
        };
        Self {
            state: State::new(options, roster(names), Theme::new(true, true)),
            second: 0,
        }
    }

    /// A second later these are the connections, in places of the table by their order.
    fn shows(&mut self, records: &[FlowRecord]) {
        let places = records.iter().cloned().zip(0..);
        self.shows_in_places(
            places
                .map(|(record, place)| Row { place, record })
                .collect(),
        );
    }

    fn shows_in_places(&mut self, rows: Vec<Row>) {
        self.second += 1;
        let seen = Seen {
            frames: [50, 50],
            octets: [1_000 * self.second, 4_000 * self.second],
            partial: 0,
            last: Timestamp::from_nanos(START + self.second * 1_000_000_000),
        };
        let mut snapshot = Snapshot::empty();
        snapshot.taken = self.state.began + Duration::from_secs(self.second);
        snapshot.now = Timestamp::from_nanos(START + self.second * 1_000_000_000);
        snapshot.meter.frames = 100;
        snapshot.meter.metered = 100;
        snapshot.seen = vec![Seen::default(), seen, seen];
        snapshot.rows = rows;
        self.state.snapshot(snapshot);
    }

    fn key(&mut self, code: KeyCode) -> Action {
        self.state.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn types(&mut self, text: &str) {
        for letter in text.chars() {
            self.key(KeyCode::Char(letter));
        }
    }

    /// The screen, line by line, without the blanks at the end of lines.
    fn screen(&mut self, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        let state = &mut self.state;
        terminal
            .draw(|frame| draw(state, frame.area(), frame.buffer_mut()))
            .expect("it is drawn");
        let buffer = terminal.backend().buffer();
        let mut screen = String::new();
        for y in 0..height {
            let mut line = String::new();
            let mut x = 0;
            while x < width {
                let symbol = buffer[(x, y)].symbol();
                line.push_str(symbol);
                x += (symbol.width() as u16).max(1);
            }
            screen.push_str(line.trim_end());
            screen.push('\n');
        }
        screen
    }

    /// The first cells of the rows that are shown.
    fn clients(&mut self) -> Vec<String> {
        let screen = self.screen(120, 24);
        let rows = screen.lines().skip(3).take(19);
        rows.filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }
}

/// Three connections of two containers: a request to web from outside, web's to db (seen at both), one of db to outside.
fn some() -> Vec<FlowRecord> {
    vec![
        tcp(WEB, (9, 40_000), (1, 80), [1_000, 50_000]),
        tcp(WEB, (1, 41_000), (2, 5_432), [300, 20_000]),
        tcp(DB, (1, 41_000), (2, 5_432), [300, 20_000]),
        udp(tcp(DB, (2, 42_000), (8, 53), [60, 120])),
    ]
}

fn lines(text: &[&str]) -> String {
    text.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_first_look_at_eighty_columns() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    let expected = lines(&[
        " nvcli   2 interfaces   3 connections   2000 B/s out   8000 B/s in       ● live",
        " 1 Connections  2 Containers  3 Health                                   rate ▾",
        " CLIENT           SERVER           APP    STATE      AGE → B/s ← B/s BYTES   RTT",
        " 10.0.0.9:40000   web-1:80         tcp    estab       1s  1000 50.0K 51.0K 430us",
        " web-1:41000      db-1:5432        tcp    estab       1s   300 20.0K 20.3K 430us",
        " db-1:42000       10.0.0.8:53      udp    answered    1s    60   120   180",
        "",
        "",
        "",
        " ? help  / filter  s sort  g group  f follow  Enter open  p pause  q quit",
    ]);
    assert_eq!(watch.screen(80, 10), expected);
}

#[test]
fn a_wide_terminal_shows_more() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    let mut records = some();
    records[0].application = Some(speaks(Protocol::Tls, "shop.example"));
    watch.shows(&records);
    for record in &mut records {
        record.forward.octets *= 2;
    }
    watch.shows(&records);
    let screen = watch.screen(200, 12);
    for text in [
        "SEEN AT",
        "ASKED FOR",
        "TREND",
        "PKTS",
        "LOSS",
        "shop.example",
        "tls",
    ] {
        assert!(screen.contains(text), "{text}:\n{screen}");
    }
    let row = screen
        .lines()
        .find(|line| line.contains("shop.example"))
        .expect("a row");
    // A second of 51,000 octets, then one of 1,000.
    assert!(row.contains("█▁"), "{row}");
}

#[test]
fn no_line_is_ever_longer_than_the_terminal() {
    let mut watch = Watch::new(&[
        "a-container-with-a-name-that-is-far-too-long-for-most-tables",
        "日本語のコンテナ",
    ]);
    let mut records = some();
    records[0].source.address = "fe80::1234:5678:9abc:def0".parse().expect("an address");
    records[1].reverse.octets = u64::MAX / 4;
    watch.shows(&records);
    for width in [30, 40, 60, 79, 80, 99, 100, 149, 150, 200, 300] {
        for keys in ["", "g", "gg", "ggg", "gggg", "\n", "2", "3", "?", "/web"] {
            for key in keys.chars() {
                watch.key(if key == '\n' {
                    KeyCode::Enter
                } else {
                    KeyCode::Char(key)
                });
            }
            let screen = watch.screen(width, 24);
            assert!(
                screen
                    .lines()
                    .all(|line| line.width() <= usize::from(width))
            );
            for _ in 0..4 {
                watch.key(KeyCode::Esc);
            }
            watch.state.grouping = Grouping::None;
        }
    }
    assert!(watch.screen(20, 5).contains("nvcli needs"));
}

#[test]
fn keys_choose_the_order() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    assert_eq!(
        watch.clients(),
        ["10.0.0.9:40000", "web-1:41000", "db-1:42000"]
    );
    watch.key(KeyCode::Char('r'));
    assert_eq!(
        watch.clients(),
        ["db-1:42000", "web-1:41000", "10.0.0.9:40000"]
    );
    while watch.state.order != Order::Client {
        watch.key(KeyCode::Char('s'));
    }
    // Texts ascend, and containers come before addresses.
    assert_eq!(
        watch.clients(),
        ["db-1:42000", "web-1:41000", "10.0.0.9:40000"]
    );
    watch.key(KeyCode::Char('S'));
    assert_eq!(watch.state.order, Order::Loss);
}

#[test]
fn every_order_puts_the_greatest_first() {
    for order in Order::ALL {
        let mut watch = Watch::new(&["web-1", "db-1"]);
        let mut records = some();
        // The second is the greatest in everything, and by its texts the first.
        let record = &mut records[1];
        record.forward.octets = 1 << 40;
        record.forward.packets = 1 << 30;
        record.flow_start = Timestamp::from_nanos(START - 1_000);
        let tcp = record.tcp.as_mut().expect("TCP");
        tcp.state = TcpState::SynSent;
        tcp.server_handshake_rtt_micros = Some(1_000_000);
        tcp.forward.retransmitted_segments = 1 << 29;
        record.source = Endpoint {
            address: address(2),
            port: 1,
        };
        record.vantage = Some(Vantage::Egress);
        record.observation_point = Some(DB);
        record.destination = Endpoint {
            address: address(2),
            port: 1,
        };
        record.application = Some(speaks(Protocol::Dns, ""));
        for other in [0, 2, 3] {
            records[other].application = Some(speaks(Protocol::Tls, ""));
        }
        watch.shows(&records);
        watch.state.order = order;
        assert_eq!(watch.clients()[0], "db-1:1", "{order:?}");
    }
}

#[test]
fn only_what_can_be_seen_is_put_in_order_and_that_rightly() {
    let mut watch = Watch::new(&["web-1"]);
    let records: Vec<FlowRecord> = (0..5_000_u16)
        .map(|n| {
            // Each number once, in no order.
            let octets = u64::from(n) * 7_919 % 5_003;
            tcp(WEB, (9, n), (1, 80), [octets, 0])
        })
        .collect();
    watch.shows(&records);
    let mut expected: Vec<(u64, u16)> = records
        .iter()
        .map(|record| (record.forward.octets, record.source.port))
        .collect();
    expected.sort_by(|a, b| b.cmp(a));
    let _ = watch.screen(80, 24);
    for (moves, key, first) in [
        (0, KeyCode::Down, 0),
        (1, KeyCode::Down, 0),
        (30, KeyCode::Down, 12),
        (20, KeyCode::PageDown, 372),
        (3, KeyCode::PageUp, 336),
    ] {
        for _ in 0..moves {
            watch.key(key);
        }
        let _ = watch.screen(80, 24);
        assert_eq!(watch.state.offset, first);
        let seen = expected.iter().enumerate().skip(watch.state.offset);
        for (nth, (_, port)) in seen.take(19) {
            let row = watch.state.model.row(nth).expect("a row");
            assert_eq!(row.record.source.port, *port, "{nth}");
        }
    }
    watch.key(KeyCode::End);
    let _ = watch.screen(80, 24);
    let last = watch.state.model.row(4_999).expect("the last");
    assert_eq!(last.record.source.port, expected[4_999].1);
    assert_eq!(watch.state.cursor, Some(4_999));
    watch.key(KeyCode::Home);
    assert_eq!((watch.state.cursor, watch.state.offset), (Some(0), 0));
}

#[test]
fn the_cursor_stays_on_its_connection() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    let mut records = some();
    watch.shows(&records);
    let _ = watch.screen(80, 24);
    watch.key(KeyCode::Down);
    watch.key(KeyCode::Down);
    assert_eq!(watch.state.cursor, Some(1));
    records[1].forward.octets += 1 << 30;
    records[2].forward.octets += 1 << 30;
    watch.shows(&records);
    let _ = watch.screen(80, 24);
    assert_eq!(watch.state.cursor, Some(0), "it is the fastest now");
    let row = watch.state.model.row(0).expect("a row");
    assert_eq!(row.record.source.port, 41_000);
}

#[test]
fn the_filter_narrows_with_every_letter() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    watch.types("/");
    assert!(watch.state.editing);
    watch.types("web");
    assert_eq!(watch.clients().len(), 2);
    watch.types(" 5432");
    assert_eq!(watch.clients(), ["web-1:41000"]);
    let screen = watch.screen(80, 24);
    assert!(
        screen.contains("/web 5432") && screen.contains("1 of 3"),
        "{screen}"
    );
    watch.types("x");
    assert!(watch.screen(80, 24).contains("no connection is like that"));
    watch.key(KeyCode::Backspace);
    watch.key(KeyCode::Enter);
    assert!(!watch.state.editing);
    assert!(watch.screen(80, 24).contains("/web 5432 · rate"));
    // A key is a key again, and Esc takes the filter back.
    watch.types("s");
    assert_eq!(watch.state.order, Order::Octets);
    watch.key(KeyCode::Esc);
    assert_eq!(watch.clients().len(), 3);
    // What is typed may be anything.
    watch.types("/\u{1b}\u{202e}é");
    assert!(!watch.screen(80, 24).contains('\u{202e}'));
}

#[test]
fn groups_add_up_and_open() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    watch.key(KeyCode::Char('g'));
    assert_eq!(watch.state.grouping, Grouping::Container);
    let screen = watch.screen(120, 12);
    let row = |screen: &str, name: &str| -> Vec<String> {
        let line = screen
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name}:\n{screen}"))
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    // Out: 50,000 to its client and 300 to db. In: 1,000 and 20,000.
    assert_eq!(
        row(&screen, "web-1")[..7],
        ["web-1", "2", "1s", "50.3K", "21.0K", "50.3K", "21.0K"]
    );
    assert_eq!(
        row(&screen, "db-1")[..5],
        ["db-1", "2", "1s", "20.1K", "420"]
    );

    watch.key(KeyCode::Char('g'));
    let screen = watch.screen(120, 12);
    assert_eq!(
        row(&screen, "db-1:5432")[..3],
        ["db-1:5432", "tcp", "1"],
        "once, though seen twice"
    );
    assert_eq!(row(&screen, "10.0.0.8:53")[1], "udp");

    watch.key(KeyCode::Char('g'));
    let screen = watch.screen(120, 12);
    assert_eq!(row(&screen, "web-1")[..3], ["web-1", "db-1", "1"]);

    watch.key(KeyCode::Char('g'));
    let screen = watch.screen(120, 12);
    for (remote, connections) in [("10.0.0.9", "1"), ("10.0.0.8", "1"), ("db-1", "1")] {
        assert_eq!(row(&screen, remote)[1], connections, "{screen}");
    }

    // Enter opens the first, Esc leads back to it.
    watch.key(KeyCode::Enter);
    assert_eq!(watch.clients(), ["10.0.0.9:40000"]);
    assert!(watch.screen(80, 24).contains("in 10.0.0.9"));
    watch.key(KeyCode::Esc);
    assert_eq!(watch.state.grouping_shown(), Grouping::Remote);
    let _ = watch.screen(80, 24);
    assert_eq!(watch.state.cursor, Some(0));
}

#[test]
fn one_container_can_be_followed() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    let _ = watch.screen(80, 24);
    watch.key(KeyCode::End);
    watch.key(KeyCode::Char('f'));
    assert_eq!(watch.state.follow, ["db-1"]);
    // Its own sight of the connection of web-1 is shown.
    assert_eq!(watch.clients(), ["web-1:41000", "db-1:42000"]);
    assert!(watch.screen(80, 24).contains("only db-1"));
    watch.key(KeyCode::Char('f'));
    assert_eq!(watch.clients().len(), 3);
    watch.key(KeyCode::Char('2'));
    let _ = watch.screen(80, 24);
    watch.key(KeyCode::Down);
    watch.key(KeyCode::Enter);
    assert_eq!(
        (watch.state.page, watch.state.follow.as_slice()),
        (Page::Connections, &["web-1".to_owned()][..])
    );
    assert_eq!(watch.clients(), ["10.0.0.9:40000", "web-1:41000"]);
    // By the first digits of its id, as at the command line; one that is not there has nothing.
    watch.state.follow = vec!["2f0".into()];
    watch.key(KeyCode::Char('r'));
    assert_eq!(watch.clients().len(), 2);
    watch.state.follow = vec!["gone".into()];
    watch.key(KeyCode::Char('r'));
    assert!(watch.screen(80, 24).contains("no connection is like that"));
}

#[test]
fn the_detail_tells_the_whole_record_and_outlives_it() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    let mut records = some();
    records[0].application = Some(speaks(Protocol::Tls, "shop\x1b[2J.example\n"));
    watch.shows(&records);
    let _ = watch.screen(80, 24);
    watch.key(KeyCode::Enter);
    let screen = watch.screen(100, 60);
    let mut fields = 0;
    records[0].fields(|field, _| {
        fields += 1;
        let name = field.name();
        let short = name
            .strip_prefix("destination")
            .or(name.strip_prefix("source"))
            .unwrap_or(name);
        let label = short
            .replace("Transport", "")
            .replace("Address", "")
            .replace("initiatorOctets", "initiator, responderOctets");
        assert!(
            name.starts_with("reverse") || screen.contains(&label),
            "{label}\n{screen}"
        );
    });
    assert!(fields > 30);
    let row = |key: &str| {
        let line = screen
            .lines()
            .find(|line| line.contains(key))
            .expect("a field");
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        row("source, destinationIPv4")[2..],
        ["10.0.0.9", "10.0.0.1"]
    );
    assert_eq!(row("octetDeltaCount")[1..], ["1000", "50000"]);
    assert_eq!(row("tcpControlBits")[1..], ["18", "AS", "18", "AS"]);
    assert_eq!(row("workload")[1], "web-1");
    assert!(screen.contains("shop\\x1b[2J.example\\n"), "{screen}");

    // It scrolls where it does not fit, and no further than to its end.
    let top = watch.screen(80, 24);
    assert!(top.contains("more ▾") && !top.contains("workload"));
    for _ in 0..100 {
        watch.key(KeyCode::Down);
        let _ = watch.screen(80, 24);
    }
    let bottom = watch.screen(80, 24);
    assert!(
        !bottom.contains("more ▾") && bottom.contains("workload"),
        "{bottom}"
    );
    // Who types faster than it is drawn gets there as well.
    for key in [KeyCode::Esc, KeyCode::Enter, KeyCode::End] {
        watch.key(key);
    }
    assert_eq!(watch.screen(80, 24), bottom);
    watch.key(KeyCode::Home);
    records.remove(0);
    let rest = records.iter().cloned().zip(1..);
    watch.shows_in_places(rest.map(|(record, place)| Row { place, record }).collect());
    assert!(
        watch
            .screen(100, 24)
            .contains("gone, this is the last that was seen")
    );
    // Another one has the place by now.
    watch.shows(&[tcp(WEB, (9, 1), (1, 80), [1, 1])]);
    assert!(watch.screen(100, 24).contains("10.0.0.9:40000"));
    watch.key(KeyCode::Esc);
    assert_eq!(watch.clients(), ["10.0.0.9:1"]);
}

#[test]
fn keys_that_come_faster_than_it_is_drawn_mean_what_they_would_later() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    let _ = watch.screen(80, 24);
    watch.types("/web 5432");
    watch.key(KeyCode::Enter);
    watch.key(KeyCode::Enter);
    let screen = watch.screen(80, 24);
    assert!(screen.contains(" web-1:41000 → db-1:5432"), "{screen}");
    assert!(!screen.contains("gone"), "{screen}");
}

#[test]
fn rates_are_those_of_the_last_seconds_and_begin_anew_with_a_connection() {
    let mut watch = Watch::new(&["web-1"]);
    let mut record = tcp(WEB, (9, 1), (1, 80), [1_000, 0]);
    watch.shows(std::slice::from_ref(&record));
    let rate = |watch: &Watch| {
        let row = &watch.state.model.snapshot.rows[0];
        watch.state.model.track(row).pace.rate
    };
    assert_eq!(rate(&watch), [1_000.0, 0.0]);
    record.forward.octets += 2_000;
    watch.shows(std::slice::from_ref(&record));
    assert_eq!(rate(&watch), [1_600.0, 0.0], "smoothed");
    for _ in 0..20 {
        watch.shows(std::slice::from_ref(&record));
    }
    assert_eq!(rate(&watch), [0.0, 0.0]);
    // The same ends in the same place, but later: another connection.
    record.flow_start = Timestamp::from_nanos(START + 22_000_000_000);
    record.forward.octets = 500;
    watch.shows(std::slice::from_ref(&record));
    assert_eq!(rate(&watch), [500.0, 0.0]);
}

#[test]
fn while_paused_nothing_changes_but_what_is_asked_for() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    watch.key(KeyCode::Char('p'));
    watch.shows(&[]);
    assert_eq!(watch.clients().len(), 3);
    assert!(watch.screen(80, 24).contains("paused"));
    watch.types("/db");
    assert_eq!(watch.clients().len(), 2);
    watch.key(KeyCode::Esc);
    watch.key(KeyCode::Char(' '));
    watch.shows(&[]);
    assert!(watch.screen(80, 24).contains("no connection yet"));
}

#[test]
fn the_health_page_says_it_in_words() {
    let mut watch = Watch::new(&["web-1", "db-1", "mail-1"]);
    watch.state.model.roster.attached[0].damage = Some("nv-in-0001 is down".into());
    watch.state.model.roster.attached[2].counted = Some([40, 2]);
    let mut records = some();
    records[0]
        .tcp
        .as_mut()
        .expect("TCP")
        .reverse
        .retransmitted_segments = 7;
    records[1].flow_end_reason = Some(FlowEndReason::EndOfFlowDetected);
    records[1].reverse.tcp_control_bits = 0x14;
    records[1].forward.tcp_control_bits = 0x02;
    for _ in 0..4 {
        watch.shows(&records);
    }
    let first = watch.screen(80, 24);
    assert!(first.contains("3 Health (2)"), "{first}");
    watch.key(KeyCode::Char('3'));
    let screen = watch.screen(100, 40);
    for text in [
        "fail  web-1 eth0: nv-in-0001 is down",
        "try: nvcli repair",
        "fail  mail-1 eth0: attached, but no frame of it was seen, while its interface counted 42",
        "100  read",
        "refused",
    ] {
        assert!(screen.contains(text), "{text}:\n{screen}");
    }
    let worst: Vec<&str> = screen
        .lines()
        .skip_while(|line| !line.contains("WORST"))
        .skip(2)
        .collect();
    assert!(
        worst[0].contains("10.0.0.9:40000") && worst[0].contains(" 7 "),
        "{worst:?}"
    );
    assert!(worst[1].contains("refused"), "{worst:?}");
    // With a filter of frames silence says nothing.
    watch.state.options.expression = Some("port 80".into());
    watch.shows(&records);
    let screen = watch.screen(100, 40);
    assert!(
        !screen.contains("mail-1") && screen.contains("'port 80'"),
        "{screen}"
    );
}

#[test]
fn who_is_not_seen_any_more_is_told_when_its_interface_counts() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    let counts = |watch: &mut Watch| {
        watch.state.model.roster.attached[0].counted = Some([40, 2]);
        watch.shows(&some());
        watch.state.sight(1)
    };
    // The frames of a snapshot in this test are always the same ones: none came after the first.
    assert_eq!(counts(&mut watch), Sight::Good, "it was seen just now");
    for _ in 0..20 {
        watch.shows(&some());
    }
    assert_eq!(counts(&mut watch), Sight::Blind);
    assert_eq!(watch.state.sight(2), Sight::Good, "silent for a while");
    assert_eq!(watch.state.problems(), 1);
    watch.key(KeyCode::Char('3'));
    let screen = watch.screen(120, 40);
    assert!(
        screen.contains("fail  web-1 eth0: attached, but no frame of it was seen, while its interface counted 42"),
        "{screen}"
    );
}

#[test]
fn hostile_names_are_shown_harmless_everywhere() {
    let hostile = "w\x1b[2J\u{202e}\nx";
    let mut watch = Watch::new(&[hostile, "db-1"]);
    let mut records = some();
    for record in &mut records {
        record.application = Some(speaks(Protocol::Tls, "s\x1b]0;x\x07\u{9b}31m"));
    }
    watch.state.model.roster.attached[0].damage = Some(hostile.into());
    for _ in 0..4 {
        watch.shows(&records);
    }
    for keys in ["", "2", "3", "1\n", "g", "g", "g", "g", "g", "f"] {
        for key in keys.chars() {
            watch.key(if key == '\n' {
                KeyCode::Enter
            } else {
                KeyCode::Char(key)
            });
        }
        for width in [80, 200] {
            let screen = watch.screen(width, 50);
            let harmful = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!screen.contains(harmful), "{keys}: {screen:?}");
        }
    }
    watch.key(KeyCode::Char('2'));
    assert!(watch.screen(200, 50).contains("w\\x1b[2J"));
}

#[test]
fn the_ways_out() {
    let mut watch = Watch::new(&["web-1"]);
    watch.shows(&some());
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    assert_eq!(watch.state.key(control('c')), Action::Quit);
    assert_eq!(watch.state.key(control('z')), Action::Suspend);
    watch.types("/q");
    assert_eq!(watch.state.typed, "q", "a letter of the filter");
    assert_eq!(watch.state.key(control('c')), Action::Quit);
    watch.key(KeyCode::Esc);
    assert_eq!(watch.key(KeyCode::Esc), Action::None, "never out by Esc");
    assert_eq!(watch.key(KeyCode::Char('q')), Action::Quit);
}

#[test]
fn the_mouse_is_off_until_it_is_asked_for() {
    let mut watch = Watch::new(&["web-1", "db-1"]);
    watch.shows(&some());
    assert_eq!(watch.key(KeyCode::Char('m')), Action::Mouse(true));
    assert_eq!(watch.key(KeyCode::Char('m')), Action::Mouse(false));
    let _ = watch.screen(80, 24);
    let event = |kind, row| MouseEvent {
        kind,
        column: 5,
        row,
        modifiers: KeyModifiers::NONE,
    };
    watch
        .state
        .mouse(event(MouseEventKind::Down(MouseButton::Left), 4));
    assert_eq!(watch.state.cursor, Some(1));
    watch
        .state
        .mouse(event(MouseEventKind::Down(MouseButton::Left), 1));
    assert_eq!(watch.state.cursor, Some(1), "the title is no row");
    watch.state.mouse(event(MouseEventKind::ScrollDown, 4));
    assert_eq!(watch.state.cursor, Some(2));
}

#[test]
fn nothing_but_plain_signs_where_there_is_no_utf_8() {
    let mut watch = Watch::new(&["a-container-with-a-name-that-is-far-too-long", "db-1"]);
    watch.state.theme = Theme::new(false, false);
    watch.shows(&some());
    for key in ['1', '\n', '2', '3', '?'] {
        watch.key(if key == '\n' {
            KeyCode::Enter
        } else {
            KeyCode::Char(key)
        });
        for width in [60, 200] {
            let screen = watch.screen(width, 50);
            assert!(screen.is_ascii(), "{screen}");
        }
    }
}
