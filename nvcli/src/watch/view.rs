//! How the state looks: every line of the screen, made of what is shown and nothing else.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nvflow::{Endpoint, Field, FlowEndReason, FlowRecord, TcpState, Value};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use unicode_width::UnicodeWidthStr as _;

use super::columns::{Cell, Placed, Table, place};
use super::model::{
    Group, GroupKey, Grouping, History, Order, PAST, Party, Track, application, asked_for,
};
use super::roster::Attached;
use super::state::{Page, Sight, State};
use super::theme::Theme;
use crate::escape;
use crate::health::Verdict;
use crate::render::flows::{ended, icmp, protocol};
use crate::render::order::{handshake_rtt, loss, retransmitted};
use crate::render::table::shortened;
use crate::render::text::{count, duration, grouped, wrapped};

/// A piece of a line.
type Piece = (Cow<'static, str>, Style);
/// A line of what scrolls.
type Line = Vec<Piece>;

/// Draws everything.
pub(crate) fn draw(state: &mut State, area: Rect, buffer: &mut Buffer) {
    if area.width < 30 || area.height < 8 {
        let text = "nvcli needs a terminal of 30 x 8 at least";
        buffer.set_stringn(area.x, area.y, text, area.width.into(), Style::new());
        return;
    }
    let body = Rect {
        y: area.y + 2,
        height: area.height - 3,
        ..area
    };
    let mut painter = Painter {
        theme: state.theme,
        buffer,
        scratch: String::new(),
    };
    let room = usize::from(body.height.saturating_sub(2));
    if state.page == Page::Connections {
        state.arrange(room);
    }
    painter.top(state, area);
    painter.tabs(state, area);
    if state.help {
        painter.scrolling(state, body, help(state));
    } else if state.detail {
        let beside = body.width >= 150;
        let pane = if beside {
            let half = body.width / 2 - 4;
            let list = Rect {
                width: body.width - half - 2,
                ..body
            };
            painter.list(state, list);
            Rect {
                x: body.x + body.width - half,
                width: half,
                ..body
            }
        } else {
            body
        };
        let lines = detail(state, usize::from(pane.width));
        painter.scrolling(state, pane, lines);
    } else {
        match state.page {
            Page::Connections => painter.list(state, body),
            Page::Containers => painter.containers(state, body),
            Page::Health => {
                let lines = health(state, usize::from(body.width));
                painter.scrolling(state, body, lines);
            }
        }
    }
    painter.foot(state, area);
}

struct Painter<'a> {
    theme: Theme,
    buffer: &'a mut Buffer,
    scratch: String,
}

impl Painter<'_> {
    /// Writes `text` from `x` on, at most up to `end`; gives where the next may begin.
    fn put(&mut self, x: u16, y: u16, end: u16, text: &str, style: Style) -> u16 {
        if x >= end {
            return x;
        }
        self.buffer
            .set_stringn(x, y, text, usize::from(end - x), style)
            .0
    }

    fn put_right(&mut self, y: u16, end: u16, text: &str, style: Style) -> u16 {
        let start = end.saturating_sub(text.width() as u16);
        self.put(start, y, end, text, style);
        start
    }

    /// The first line: what there is and what goes through.
    fn top(&mut self, state: &State, area: Rect) {
        let (y, end) = (area.y, area.x + area.width);
        let (theme, model) = (self.theme, &state.model);
        let snapshot = &model.snapshot;
        let (text, style) = if state.paused {
            (
                "paused".to_owned(),
                theme.warn().add_modifier(Modifier::BOLD),
            )
        } else {
            (format!("{} live", theme.signs.live), theme.good())
        };
        let mut edge = self.put_right(y, end - 1, &text, style);
        let lost = snapshot.source.dropped + snapshot.meter.refused;
        if lost > 0 {
            edge = self.put_right(
                y,
                edge - 2,
                &format!("LOST {} frames", count(lost)),
                theme.bad(),
            );
        }
        let rates = model.interfaces.iter().fold([0.0; 2], |[out, into], one| {
            [out + one.pace.rate[0], into + one.pace.rate[1]]
        });
        let containers = state.model.roster.attached.len();
        let mut x = self.put(area.x + 1, y, edge, "nvcli", theme.accent());
        let mut piece = |painter: &mut Self, value: &str, unit: &str| {
            let needed = (value.width() + unit.width() + 4) as u16;
            if x + needed < edge {
                x = painter.put(x + 3, y, edge, value, theme.strong());
                x = painter.put(x + 1, y, edge, unit, theme.dim());
            }
        };
        piece(
            self,
            &count(containers as u64),
            plural(containers as u64, "interface"),
        );
        piece(
            self,
            &count(model.distinct as u64),
            plural(model.distinct as u64, "connection"),
        );
        piece(self, &rate(rates[0]), "B/s out");
        piece(self, &rate(rates[1]), "B/s in");
    }

    /// The second line: the pages, and what was chosen.
    fn tabs(&mut self, state: &State, area: Rect) {
        let (y, end) = (area.y + 1, area.x + area.width);
        let theme = self.theme;
        let problems = state.problems();
        let health = match problems {
            0 => "3 Health".to_owned(),
            _ => format!("3 Health ({problems})"),
        };
        let mut x = area.x + 1;
        for (page, title) in [
            (Page::Connections, "1 Connections"),
            (Page::Containers, "2 Containers"),
            (Page::Health, health.as_str()),
        ] {
            let style = match page {
                page if page == state.page => theme.strong().add_modifier(Modifier::UNDERLINED),
                Page::Health if problems > 0 => theme.warn(),
                _ => theme.dim(),
            };
            x = self.put(x, y, end, title, style) + 2;
        }
        if state.page != Page::Connections {
            return;
        }
        let mut chosen = Vec::new();
        if let Some(scope) = state.scope {
            chosen.push(format!("in {}", group_text(state, scope)));
        } else if state.grouping != Grouping::None {
            chosen.push(format!("by {}", state.grouping.name()));
        }
        if !state.follow.is_empty() {
            let names: Vec<Cow<'_, str>> =
                state.follow.iter().map(|name| escape::text(name)).collect();
            chosen.push(format!("only {}", names.join(", ")));
        }
        if !state.typed.is_empty() && !state.editing {
            chosen.push(format!("/{}", escape::text(&state.typed)));
        }
        let descends = state.order.is_ascending() == state.reverse;
        let arrow = if descends {
            theme.signs.down
        } else {
            theme.signs.up
        };
        chosen.push(format!("{} {arrow}", state.order.name()));
        let text = chosen.join(&format!(" {} ", theme.signs.dot));
        let room = usize::from(end.saturating_sub(x + 2));
        let text = shortened(&text, room).into_owned();
        self.put_right(y, end - 1, &text, theme.plain());
    }

    /// The last line: what can be done, or the filter that is typed.
    fn foot(&mut self, state: &State, area: Rect) {
        let (y, end) = (area.y + area.height - 1, area.x + area.width);
        let theme = self.theme;
        if state.editing {
            let found = format!(
                "{} of {}",
                grouped(state.model.matching as u64),
                grouped(state.model.distinct as u64)
            );
            let edge = self.put_right(y, end - 1, &found, theme.dim());
            let x = self.put(area.x + 1, y, edge, "/", theme.accent());
            let typed = escape::text(&state.typed);
            let room = usize::from(edge.saturating_sub(x + 2));
            // The end is where it is typed.
            let mut shown = typed.as_ref();
            while shown.width() > room {
                shown = shown
                    .get(shown.chars().next().map_or(1, char::len_utf8)..)
                    .unwrap_or_default();
            }
            let x = self.put(x, y, edge, shown, theme.strong());
            self.put(x, y, edge, " ", theme.selected());
            return;
        }
        let keys: &[(&str, &str)] = if state.help {
            &[("Esc", "back"), ("j k", "scroll"), ("q", "quit")]
        } else if state.detail {
            &[
                ("Esc", "back"),
                ("j k", "scroll"),
                ("p", "pause"),
                ("?", "help"),
                ("q", "quit"),
            ]
        } else {
            match state.page {
                Page::Connections => &[
                    ("?", "help"),
                    ("/", "filter"),
                    ("s", "sort"),
                    ("g", "group"),
                    ("f", "follow"),
                    ("Enter", "open"),
                    ("p", "pause"),
                    ("q", "quit"),
                ],
                Page::Containers => &[
                    ("?", "help"),
                    ("Enter", "its connections"),
                    ("Tab", "next page"),
                    ("p", "pause"),
                    ("q", "quit"),
                ],
                Page::Health => &[
                    ("?", "help"),
                    ("j k", "scroll"),
                    ("Tab", "next page"),
                    ("p", "pause"),
                    ("q", "quit"),
                ],
            }
        };
        let mut x = area.x + 1;
        for (key, does) in keys {
            if x + (key.width() + does.width() + 1) as u16 >= end {
                break;
            }
            x = self.put(x, y, end, key, theme.accent());
            x = self.put(x + 1, y, end, does, theme.dim()) + 2;
        }
    }

    fn titles(&mut self, state: &State, area: Rect, columns: &[Placed], of_container: bool) {
        let theme = self.theme;
        for placed in columns {
            let (title, order) = title(placed.spec.cell, theme, of_container);
            let title: Cow<'_, str> = match (placed.spec.cell, state.page, state.grouping_shown()) {
                (Cell::Party, Page::Connections, grouping) => {
                    Cow::Owned(grouping.name().to_uppercase())
                }
                _ => title,
            };
            let sorted = state.page == Page::Connections && order == Some(state.order);
            let style = if sorted {
                theme.strong().add_modifier(Modifier::UNDERLINED)
            } else {
                theme.title()
            };
            let (x, end) = (area.x + placed.x, area.x + placed.x + placed.width);
            if placed.spec.right {
                self.put_right(area.y, end, &title, style);
            } else {
                self.put(x, area.y, end, &title, style);
            }
        }
    }

    /// Connections or groups of them.
    fn list(&mut self, state: &mut State, area: Rect) {
        let grouping = state.grouping_shown();
        let table = match grouping {
            Grouping::None => Table::Connections,
            Grouping::Conversation => Table::Conversations,
            _ => Table::Groups,
        };
        let columns = place(table, area.width);
        let of_container = matches!(grouping, Grouping::Container | Grouping::Remote);
        self.titles(state, area, &columns, of_container);
        state.top = area.y + 1;
        let room = usize::from(area.height.saturating_sub(2));
        for line in 0..room {
            let nth = state.offset + line;
            let y = area.y + 1 + line as u16;
            let selected = state.cursor == Some(nth);
            if grouping == Grouping::None {
                let Some(row) = state.model.row(nth) else {
                    break;
                };
                let track = state.model.track(row);
                let is_over = row.record.flow_end_reason.is_some();
                self.row(area, y, selected, is_over, &columns, |cell, out| {
                    connection_cell(state, &row.record, track, cell, out)
                });
                self.trend(
                    area,
                    y,
                    selected,
                    &columns,
                    &track.pace.history,
                    state.model.round,
                );
            } else {
                let Some(group) = state.model.group(nth) else {
                    break;
                };
                self.row(area, y, selected, false, &columns, |cell, out| {
                    group_cell(state, group, cell, out)
                });
            }
        }
        self.empty_or_more(state, area, room);
    }

    /// What stands in place of rows when there are none, and below them when there are more.
    fn empty_or_more(&mut self, state: &State, area: Rect, room: usize) {
        let theme = self.theme;
        let (shown, all) = (state.model.len(), state.model.snapshot.rows.len());
        let y = area.y + area.height - 1;
        let end = area.x + area.width - 1;
        if shown == 0 {
            let text = match (all, state.model.round) {
                (_, 0 | 1) if all == 0 => "listening ...",
                (0, _) => "no connection yet: the attached containers are silent",
                _ => "no connection is like that; Esc takes the filter back",
            };
            let x = area.x + 1;
            self.put(x, area.y + 2, end, text, theme.dim());
        } else if shown > room {
            let text = format!(
                "{} to {} of {}",
                grouped(state.offset as u64 + 1),
                grouped((state.offset + room).min(shown) as u64),
                grouped(shown as u64)
            );
            self.put_right(y, end, &text, theme.dim());
        }
    }

    fn row(
        &mut self,
        area: Rect,
        y: u16,
        selected: bool,
        faint: bool,
        columns: &[Placed],
        mut write: impl FnMut(Cell, &mut Out<'_>),
    ) {
        let theme = self.theme;
        let base = if selected {
            theme.selected()
        } else {
            Style::new()
        };
        if selected {
            let line = Rect {
                y,
                height: 1,
                ..area
            };
            self.buffer.set_style(line, base);
        }
        let mut text = std::mem::take(&mut self.scratch);
        for placed in columns {
            text.clear();
            let mut out = Out {
                text: &mut text,
                theme,
                style: theme.plain(),
                tail: 0,
            };
            write(placed.spec.cell, &mut out);
            let (style, tail) = (out.style, out.tail);
            let style = if selected {
                base.add_modifier(style.add_modifier)
            } else if faint && style == theme.plain() {
                theme.dim()
            } else {
                style
            };
            let (x, end) = (area.x + placed.x, area.x + placed.x + placed.width);
            if placed.spec.right {
                self.put_right(y, end, &text, style);
                continue;
            }
            // The tail, a port, is never cut: it tells apart what has the same name.
            let (head, port) = text.split_at(text.len() - tail);
            let room = usize::from(placed.width).saturating_sub(port.width());
            let head = shortened(head, room);
            let head = if theme.signs.cut == "…" {
                head
            } else {
                Cow::Owned(head.replace('…', theme.signs.cut))
            };
            let x = self.put(x, y, end, &head, style);
            let faint_port = if selected { base } else { theme.dim() };
            self.put(x, y, end, port, faint_port);
        }
        self.scratch = text;
    }

    /// The bars of a row, if there is a column for them.
    fn trend(
        &mut self,
        area: Rect,
        y: u16,
        selected: bool,
        columns: &[Placed],
        history: &History,
        round: u32,
    ) {
        let Some(placed) = columns
            .iter()
            .find(|placed| placed.spec.cell == Cell::Trend)
        else {
            return;
        };
        let width = usize::from(placed.width);
        let both: Vec<f32> = history
            .last(0, round, width)
            .zip(history.last(1, round, width))
            .map(|(to, from)| to + from)
            .collect();
        let style = if selected {
            self.theme.selected()
        } else {
            self.theme.good()
        };
        let x = area.x + placed.x;
        self.put(x, y, x + placed.width, &bars(self.theme, &both), style);
    }

    fn containers(&mut self, state: &mut State, area: Rect) {
        let columns = place(Table::Containers, area.width);
        self.titles(state, area, &columns, true);
        state.top = area.y + 1;
        state.room = usize::from(area.height.saturating_sub(2));
        let attached = &state.model.roster.attached;
        state.offset = state.offset.min(attached.len().saturating_sub(state.room));
        for line in 0..state.room {
            let nth = state.offset + line;
            let Some(one) = attached.get(nth) else { break };
            let y = area.y + 1 + line as u16;
            let selected = state.cursor == Some(nth);
            self.row(area, y, selected, false, &columns, |cell, out| {
                container_cell(state, one, cell, out)
            });
            if let Some(interface) = state.model.interfaces.get(usize::from(one.id)) {
                let history = &interface.pace.history;
                self.trend(area, y, selected, &columns, history, state.model.round);
            }
        }
        if attached.is_empty() {
            let text = "nothing is attached any more; nvcli attach CONTAINER";
            self.put(
                area.x + 1,
                area.y + 2,
                area.x + area.width,
                text,
                self.theme.dim(),
            );
        }
    }

    /// Lines that scroll when there are more than fit.
    fn scrolling(&mut self, state: &mut State, area: Rect, lines: Vec<Line>) {
        let room = usize::from(area.height);
        state.scroll = state.scroll.min(lines.len().saturating_sub(room));
        let end = area.x + area.width;
        let more = lines.len() > state.scroll + room;
        for (line, y) in lines
            .into_iter()
            .skip(state.scroll)
            .take(room)
            .zip(area.y..)
        {
            let mut x = area.x;
            for (text, style) in line {
                x = self.put(x, y, end, &text, style);
            }
        }
        if more {
            let y = area.y + area.height - 1;
            self.put_right(
                y,
                end - 1,
                &format!(" more {} ", self.theme.signs.down),
                self.theme.dim(),
            );
        }
    }
}

/// A cell in the making.
struct Out<'a> {
    text: &'a mut String,
    theme: Theme,
    style: Style,
    /// Octets at its end that are less important and are not cut.
    tail: usize,
}

impl Out<'_> {
    fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn styled(&mut self, text: &str, style: Style) {
        self.text.push_str(text);
        self.style = style;
    }

    /// A number, or a dot where it is zero: what is there stands out.
    fn number(&mut self, number: u64, style: Style) {
        if number == 0 {
            let (dot, dim) = (self.theme.signs.dot, self.theme.dim());
            self.styled(dot, dim);
        } else {
            self.styled(&count(number), style);
        }
    }

    fn end(&mut self, name: Option<&str>, end: Endpoint, has_ports: bool) {
        match name {
            Some(name) => {
                let name = escape::text(name);
                self.styled(&name, self.theme.name());
            }
            None => {
                let _ = match end.address {
                    IpAddr::V4(address) => write!(self.text, "{address}"),
                    IpAddr::V6(address) if has_ports => write!(self.text, "[{address}]"),
                    IpAddr::V6(address) => write!(self.text, "{address}"),
                };
            }
        }
        if has_ports {
            let before = self.text.len();
            let _ = write!(self.text, ":{}", end.port);
            self.tail = self.text.len() - before;
        }
    }

    fn share(&mut self, share: Option<f64>) {
        let theme = self.theme;
        match share {
            Some(share) if share > 0.0 => {
                let percent = share * 100.0;
                let style = if percent >= 5.0 {
                    theme.bad()
                } else if percent >= 1.0 {
                    theme.warn()
                } else {
                    theme.plain()
                };
                let text = if percent >= 9.95 {
                    format!("{percent:.0}%")
                } else {
                    format!("{percent:.1}%")
                };
                self.styled(&text, style);
            }
            Some(_) => {
                let (dot, dim) = (theme.signs.dot, theme.dim());
                self.styled(dot, dim);
            }
            None => {}
        }
    }

    fn again(&mut self, segments: u64, is_tcp: bool) {
        if is_tcp {
            let style = self.theme.warn();
            self.number(segments, style);
        }
    }
}

fn title(cell: Cell, theme: Theme, of_container: bool) -> (Cow<'static, str>, Option<Order>) {
    let signs = theme.signs;
    let both = |to: &'static str, from: &'static str, sign: &str, unit: &str, is_to: bool| {
        if of_container {
            Cow::Borrowed(if is_to { to } else { from })
        } else {
            Cow::Owned(format!("{sign} {unit}"))
        }
    };
    let (text, order) = match cell {
        Cell::Client => ("CLIENT", Some(Order::Client)),
        Cell::Server => ("SERVER", Some(Order::Server)),
        Cell::At => ("SEEN AT", None),
        Cell::Party => ("CONTAINER", None),
        Cell::Connections => ("CONNS", None),
        Cell::Protocol => ("PROTO", None),
        Cell::Speaks | Cell::Application => ("APP", Some(Order::Application)),
        Cell::Asked => ("ASKED FOR", None),
        Cell::State => ("STATE", Some(Order::State)),
        Cell::Age => ("AGE", Some(Order::Age)),
        Cell::RateTo => {
            return (
                both("OUT/s", "IN/s", signs.to, "B/s", true),
                Some(Order::Rate),
            );
        }
        Cell::RateFrom => {
            return (
                both("OUT/s", "IN/s", signs.from, "B/s", false),
                Some(Order::Rate),
            );
        }
        Cell::OctetsTo => {
            return (both("OUT", "IN", signs.to, "B", true), Some(Order::Octets));
        }
        Cell::OctetsFrom => {
            return (
                both("OUT", "IN", signs.from, "B", false),
                Some(Order::Octets),
            );
        }
        Cell::Total => ("BYTES", Some(Order::Octets)),
        Cell::Packets => ("PKTS", Some(Order::Packets)),
        Cell::Rtt => ("RTT", Some(Order::Rtt)),
        Cell::Retransmits => ("RETR", Some(Order::Retransmits)),
        Cell::Loss => ("LOSS", Some(Order::Loss)),
        Cell::Trend => ("TREND", None),
        Cell::Interface => ("INTERFACE", None),
        Cell::Mode => ("MODE", None),
        Cell::Id => ("ID", None),
        Cell::Last => ("LAST", None),
        Cell::Health => ("HEALTH", None),
    };
    (Cow::Borrowed(text), order)
}

fn connection_cell(
    state: &State,
    record: &FlowRecord,
    track: &Track,
    cell: Cell,
    out: &mut Out<'_>,
) {
    let (model, theme) = (&state.model, out.theme);
    match cell {
        Cell::Client => out.end(model.text_of(track.client), record.source, record.has_ports),
        Cell::Server => out.end(
            model.text_of(track.server),
            record.destination,
            record.has_ports,
        ),
        Cell::At => out.text(&escape::text(model.text_of(track.at).unwrap_or_default())),
        Cell::Protocol => out.text(&protocol(record.protocol_identifier)),
        Cell::Application | Cell::Speaks => match application(record) {
            ("", _) if cell == Cell::Speaks => out.text(&protocol(record.protocol_identifier)),
            ("", _) => {}
            (guess, true) => out.styled(&format!("{guess}?"), theme.dim()),
            (known, false) => out.text(known),
        },
        Cell::Asked => out.text(&escape::text(asked_for(record).unwrap_or_default())),
        Cell::State => {
            let (text, style) = state_of(record, theme);
            out.styled(&text, style);
        }
        Cell::Age => {
            let now = model.snapshot.now;
            let over = record.flow_end_reason.is_some();
            let end = if over { record.flow_end } else { now };
            out.text(&age(end.saturating_since(record.flow_start)));
        }
        Cell::RateTo => out.number(track.pace.rate[0] as u64, theme.to()),
        Cell::RateFrom => out.number(track.pace.rate[1] as u64, theme.from()),
        Cell::Total => out.number(
            record.forward.octets.saturating_add(record.reverse.octets),
            theme.plain(),
        ),
        Cell::OctetsTo => out.number(record.forward.octets, theme.plain()),
        Cell::OctetsFrom => out.number(record.reverse.octets, theme.plain()),
        Cell::Packets => out.number(
            record.forward.packets + record.reverse.packets,
            theme.plain(),
        ),
        Cell::Rtt => out.text(&rtt(handshake_rtt(record))),
        Cell::Retransmits => out.again(retransmitted(record), record.tcp.is_some()),
        Cell::Loss => out.share(loss(record)),
        _ => {}
    }
}

fn group_cell(state: &State, group: &Group, cell: Cell, out: &mut Out<'_>) {
    let theme = out.theme;
    let party = |party: Party, out: &mut Out<'_>| match party {
        Party::Name(symbol) => {
            let name = escape::text(state.model.text_of(symbol).unwrap_or("?")).into_owned();
            out.styled(&name, theme.name());
        }
        Party::Address(address) => {
            let _ = write!(out.text, "{address}");
        }
    };
    match (cell, group.key) {
        (Cell::Party, GroupKey::Service(Party::Address(address), port, number)) if port > 0 => {
            let _ = write!(out.text, "{}", SocketAddr::new(address, port));
            out.text(" ");
            out.text(&protocol(number));
        }
        (Cell::Party, GroupKey::Service(server, port, number)) => {
            party(server, out);
            let before = out.text.len();
            if port > 0 {
                let _ = write!(out.text, ":{port}");
            }
            out.text(" ");
            out.text(&protocol(number));
            out.tail = out.text.len() - before;
        }
        (Cell::Party, GroupKey::Container(symbol)) => party(Party::Name(symbol), out),
        (Cell::Party, GroupKey::Remote(remote)) => party(remote, out),
        (Cell::Client, GroupKey::Conversation(client, _)) => party(client, out),
        (Cell::Server, GroupKey::Conversation(_, server)) => party(server, out),
        (Cell::Connections, _) => out.number(group.connections, theme.plain()),
        (Cell::Age, _) => out.text(&age(group.age(state.model.snapshot.now))),
        (Cell::RateTo, _) => out.number(group.rate[0] as u64, theme.to()),
        (Cell::RateFrom, _) => out.number(group.rate[1] as u64, theme.from()),
        (Cell::OctetsTo, _) => out.number(group.octets[0], theme.plain()),
        (Cell::OctetsFrom, _) => out.number(group.octets[1], theme.plain()),
        (Cell::Packets, _) => out.number(group.packets, theme.plain()),
        (Cell::Rtt, _) => out.text(&rtt(group.rtt())),
        (Cell::Retransmits, _) => out.again(group.retransmitted, group.loss().is_some()),
        (Cell::Loss, _) => out.share(group.loss()),
        _ => {}
    }
}

fn container_cell(state: &State, one: &Attached, cell: Cell, out: &mut Out<'_>) {
    let (model, theme) = (&state.model, out.theme);
    let interface = model.interfaces.get(usize::from(one.id));
    let seen = state.seen(one.id);
    let rates = interface.map_or([0.0; 2], |interface| interface.pace.rate);
    match cell {
        Cell::Party => {
            let name = escape::text(&one.name);
            out.styled(&name, theme.name());
        }
        Cell::Interface => out.text(&escape::text(&one.interface)),
        Cell::Mode => out.text(one.mode),
        Cell::Id => {
            let _ = write!(out.text, "{:04x}", one.id);
        }
        Cell::Connections => {
            let connections = interface.map_or(0, |interface| interface.connections);
            out.number(connections.into(), theme.plain());
        }
        Cell::RateTo => out.number(rates[0] as u64, theme.to()),
        Cell::RateFrom => out.number(rates[1] as u64, theme.from()),
        Cell::OctetsTo => out.number(seen.octets[0], theme.plain()),
        Cell::OctetsFrom => out.number(seen.octets[1], theme.plain()),
        Cell::Retransmits => {
            let again = interface.map_or(0, |interface| interface.retransmitted);
            out.number(again, theme.warn());
        }
        Cell::Last if seen.total() > 0 => {
            out.text(&age(model.snapshot.now.saturating_since(seen.last)));
        }
        Cell::Last => out.styled("never", theme.warn()),
        Cell::Health => match state.sight(one.id) {
            Sight::Damaged => out.styled("damaged", theme.bad()),
            Sight::Blind => out.styled("blind", theme.bad()),
            Sight::Silent => out.styled("silent", theme.dim()),
            Sight::OneWay => out.styled("one-way", theme.warn()),
            Sight::Good => out.styled("ok", theme.good()),
        },
        _ => {}
    }
}

/// The state in a word of at most eight letters, as far as one can be said of the protocol.
fn state_of(record: &FlowRecord, theme: Theme) -> (Cow<'static, str>, Style) {
    if record.flow_end_reason == Some(FlowEndReason::EndOfFlowDetected) {
        let word = ended(record);
        let style = if word == "closed" {
            theme.dim()
        } else {
            theme.bad()
        };
        return (Cow::Borrowed(word), style);
    }
    let answered = record.reverse.packets > 0;
    match (&record.tcp, record.icmp_type_code) {
        (Some(tcp), _) => match tcp.state {
            TcpState::SynSent => (Cow::Borrowed("syn-sent"), theme.warn()),
            TcpState::SynReceived => (Cow::Borrowed("syn-rcvd"), theme.warn()),
            TcpState::Established => (Cow::Borrowed("estab"), theme.plain()),
            TcpState::FinWait1 | TcpState::FinWait2 => (Cow::Borrowed("fin-wait"), theme.dim()),
            TcpState::CloseWait => (Cow::Borrowed("cl-wait"), theme.dim()),
            TcpState::Closing => (Cow::Borrowed("closing"), theme.dim()),
            TcpState::LastAck => (Cow::Borrowed("last-ack"), theme.dim()),
            _ => (Cow::Borrowed("closed"), theme.dim()),
        },
        (None, Some(code)) => (
            Cow::Owned(icmp(record.protocol_identifier, code)),
            theme.plain(),
        ),
        (None, None) if answered => (Cow::Borrowed("answered"), theme.plain()),
        (None, None) => (Cow::Borrowed("one-way"), theme.dim()),
    }
}

fn plural(number: u64, one: &'static str) -> &'static str {
    match (number, one) {
        (1, one) => one,
        (_, "interface") => "interfaces",
        _ => "connections",
    }
}

fn rate(octets: f32) -> String {
    count(octets as u64)
}

/// A time in at most five columns, to the second.
fn age(time: Duration) -> String {
    if time.as_secs() < 60 {
        return format!("{}s", time.as_secs());
    }
    duration(Duration::from_secs(time.as_secs()))
}

fn rtt(micros: Option<u64>) -> String {
    micros
        .map(|micros| duration(Duration::from_micros(micros)))
        .unwrap_or_default()
}

/// A bar for each rate, the highest as high as a line.
fn bars(theme: Theme, rates: &[f32]) -> String {
    let signs = theme.signs.bars;
    let highest = rates
        .iter()
        .fold(1.0_f32, |highest, rate| highest.max(*rate));
    rates
        .iter()
        .map(|rate| {
            let step = (rate / highest * 8.0).ceil() as usize;
            signs[step.min(8)]
        })
        .collect()
}

fn group_text(state: &State, key: GroupKey) -> String {
    let party = |party| match party {
        Party::Name(symbol) => {
            escape::text(state.model.text_of(symbol).unwrap_or("?")).into_owned()
        }
        Party::Address(address) => address.to_string(),
    };
    match key {
        GroupKey::Container(symbol) => party(Party::Name(symbol)),
        GroupKey::Service(Party::Address(address), port, _) if port > 0 => {
            SocketAddr::new(address, port).to_string()
        }
        GroupKey::Service(server, port, number) => {
            format!("{}:{port} {}", party(server), protocol(number))
        }
        GroupKey::Conversation(client, server) => {
            format!(
                "{} {} {}",
                party(client),
                state.theme.signs.to,
                party(server)
            )
        }
        GroupKey::Remote(remote) => party(remote),
    }
}

/// Everything that is known of one connection.
fn detail(state: &State, width: usize) -> Vec<Line> {
    let theme = state.theme;
    let Some(opened) = &state.opened else {
        return Vec::new();
    };
    let (record, track, model) = (&opened.row.record, &opened.track, &state.model);
    let mut lines: Vec<Line> = Vec::new();
    let mut ends = Line::new();
    ends.push((Cow::Borrowed(" "), theme.plain()));
    for (name, end, last) in [
        (model.text_of(track.client), record.source, false),
        (model.text_of(track.server), record.destination, true),
    ] {
        let mut text = String::new();
        let mut out = Out {
            text: &mut text,
            theme,
            style: theme.strong(),
            tail: 0,
        };
        out.end(name, end, record.has_ports);
        let style = out.style.add_modifier(Modifier::BOLD);
        ends.push((Cow::Owned(text), style));
        if !last {
            ends.push((Cow::Owned(format!(" {} ", theme.signs.to)), theme.dim()));
        }
    }
    let (word, style) = state_of(record, theme);
    ends.push((Cow::Borrowed("  "), theme.plain()));
    ends.push((word, style));
    if opened.gone {
        ends.push((
            Cow::Borrowed("  gone, this is the last that was seen"),
            theme.dim(),
        ));
    }
    lines.push(ends);
    lines.push(Line::new());
    let room = width.saturating_sub(34).min(PAST);
    for (way, sign, style) in [
        (0, theme.signs.to, theme.to()),
        (1, theme.signs.from, theme.from()),
    ] {
        let past: Vec<f32> = track.pace.history.last(way, opened.round, room).collect();
        let highest = past
            .iter()
            .fold(0.0_f32, |highest, rate| highest.max(*rate));
        let rate_now = if opened.gone {
            0.0
        } else {
            track.pace.rate[way]
        };
        lines.push(vec![
            (Cow::Owned(format!(" {sign} ")), theme.dim()),
            (Cow::Owned(bars(theme, &past)), style),
            (
                Cow::Owned(format!("  {:>5} B/s", rate(rate_now))),
                theme.strong(),
            ),
            (
                Cow::Owned(format!("  peak {:>5} B/s", rate(highest.max(rate_now)))),
                theme.dim(),
            ),
        ]);
    }
    lines.push(Line::new());
    let columns = |key: &str, to: &str, from: &str, style: Style| -> Line {
        vec![
            (Cow::Owned(format!(" {key:<32} ")), theme.title()),
            (Cow::Owned(format!("{to:<22} ")), style),
            (Cow::Owned(from.to_owned()), style),
        ]
    };
    lines.push(columns("", theme.signs.to, theme.signs.from, theme.dim()));
    let now = model.snapshot.now.as_micros();
    let mut rest: Vec<(&'static str, String)> = Vec::new();
    record.fields(|field, value| rest.push((field.name(), value_text(field, value, now))));
    // The names come from the roster, not from the meter.
    let labels = [
        ("workload", track.at),
        (
            "peerWorkload",
            if track.at == track.client {
                track.server
            } else {
                track.client
            },
        ),
    ];
    for (key, symbol) in labels {
        if let Some(name) = model.text_of(symbol) {
            rest.push((key, escape::text(name).into_owned()));
        }
    }
    let mut taken = vec![false; rest.len()];
    for at in 0..rest.len() {
        if taken[at] {
            continue;
        }
        let (name, value) = &rest[at];
        let other = other_direction(name).and_then(|(other, label)| {
            let found = rest.iter().position(|(name, _)| *name == other)?;
            taken[found] = true;
            Some((label, rest[found].1.as_str()))
        });
        match other {
            Some((label, other)) => lines.push(columns(&label, value, other, theme.plain())),
            None => lines.push(columns(name, value, "", theme.plain())),
        }
    }
    lines
}

/// The field that tells the same of the other direction, and what both are called together.
fn other_direction(name: &'static str) -> Option<(String, Cow<'static, str>)> {
    if let Some(rest) = name.strip_prefix("source") {
        let label = format!("source, destination{}", rest.replace("Transport", ""));
        return Some((
            format!("destination{rest}"),
            Cow::Owned(label.replace("Address", "")),
        ));
    }
    if name == "initiatorOctets" {
        return Some((
            "responderOctets".into(),
            Cow::Borrowed("initiator, responderOctets"),
        ));
    }
    let mut letters = name.chars();
    let first = letters.next()?.to_ascii_uppercase();
    Some((
        format!("reverse{first}{}", letters.as_str()),
        Cow::Borrowed(name),
    ))
}

fn value_text(field: Field, value: Value<'_>, now: u64) -> String {
    match (field, value) {
        (Field::FlowStart | Field::FlowEnd, Value::Unsigned(micros)) => {
            let ago = Duration::from_micros(now.saturating_sub(micros));
            format!("{micros} ({} ago)", age(ago))
        }
        (Field::Protocol, Value::Unsigned(number)) => {
            let name = u8::try_from(number).map(protocol);
            format!("{number} {}", name.unwrap_or_default())
        }
        (Field::ControlBits | Field::ReverseControlBits, Value::Unsigned(bits)) => {
            const LETTERS: [(u64, char); 8] = [
                (0x80, 'C'),
                (0x40, 'E'),
                (0x20, 'U'),
                (0x10, 'A'),
                (0x08, 'P'),
                (0x04, 'R'),
                (0x02, 'S'),
                (0x01, 'F'),
            ];
            let set = LETTERS.iter().filter(|(bit, _)| bits & bit != 0);
            format!(
                "{bits} {}",
                set.map(|(_, letter)| letter).collect::<String>()
            )
        }
        (_, Value::Unsigned(number)) => number.to_string(),
        (_, Value::Address(address)) => address.to_string(),
        (_, Value::Text(text)) => escape::text(text).into_owned(),
        (_, Value::HandshakeRtt { client, server }) => {
            let part = |name: &str, micros: Option<u32>| {
                micros
                    .map(|micros| format!("{name} {micros}"))
                    .unwrap_or_default()
            };
            format!("{} {}", part("client", client), part("server", server))
                .trim()
                .to_owned()
        }
        (_, other) => escape::text(&format!("{other:?}")).into_owned(),
    }
}

/// What is lost, who is not seen, and which connections fare worst.
fn health(state: &State, width: usize) -> Vec<Line> {
    let (theme, model) = (state.theme, &state.model);
    let (meter, source) = (&model.snapshot.meter, &model.snapshot.source);
    let heading =
        |text: &'static str| -> Line { vec![(Cow::Owned(format!(" {text}")), theme.title())] };
    let text =
        |text: String, style: Style| -> Line { vec![(Cow::Owned(format!("   {text}")), style)] };
    let mut lines = vec![heading("WHAT TO LOOK AT")];
    if state
        .findings
        .iter()
        .all(|finding| finding.verdict == Verdict::Ok)
    {
        lines.push(vec![
            (Cow::Borrowed("   ok    "), theme.good()),
            (
                Cow::Borrowed("all that is attached is whole, and nothing was lost"),
                theme.plain(),
            ),
        ]);
    }
    for finding in &state.findings {
        let (word, style) = match finding.verdict {
            Verdict::Ok => ("note", theme.dim()),
            Verdict::Warn => ("warn", theme.warn()),
            Verdict::Fail => ("fail", theme.bad()),
        };
        let said = wrapped(&escape::text(&finding.what), width.saturating_sub(10));
        for (line, part) in said.into_iter().enumerate() {
            let word = if line == 0 { word } else { "" };
            lines.push(vec![
                (Cow::Owned(format!("   {word:<6}")), style),
                (Cow::Owned(part), theme.plain()),
            ]);
        }
        if let Some(remedy) = &finding.remedy {
            for (line, part) in wrapped(&escape::text(remedy), width.saturating_sub(15))
                .into_iter()
                .enumerate()
            {
                let word = if line == 0 { "try:" } else { "" };
                lines.push(vec![(
                    Cow::Owned(format!("         {word:<5}{part}")),
                    theme.dim(),
                )]);
            }
        }
    }
    if let Some(expression) = &state.options.expression {
        let only = format!(
            "only frames are read that match '{}': who is silent is not judged",
            escape::text(expression)
        );
        lines.push(text(only, theme.dim()));
    }
    lines.push(Line::new());
    lines.push(heading("FRAMES"));
    for (number, what) in [
        (meter.frames, "read"),
        (meter.metered, "of them metered"),
        (meter.not_ip, "of them not IP (ARP and the like)"),
        (meter.unparsed, "of them unparsed"),
        (meter.refused, "of them refused: the table was full"),
        (
            source.dropped,
            "dropped by the kernel before they were read",
        ),
    ] {
        let style = if number > 0 && what.contains("pped") {
            theme.bad()
        } else {
            theme.plain()
        };
        lines.push(vec![
            (Cow::Owned(format!("   {:>15}  ", grouped(number))), style),
            (Cow::Borrowed(what), theme.dim()),
        ]);
    }
    lines.push(Line::new());
    lines.push(heading("WORST CONNECTIONS"));
    let worst = worst(state);
    if worst.is_empty() {
        lines.push(text(
            "none has lost a segment, was reset or refused".into(),
            theme.dim(),
        ));
        return lines;
    }
    let end_width = (width.saturating_sub(46) / 2).clamp(12, 40);
    let title = format!(
        "   {:<end_width$} {:<end_width$} {:>8} {:>5} {:>5} {:>5} {:>5}",
        "CLIENT", "SERVER", "STATE", "RETR", "LOSS", "DUPS", "ZEROW"
    );
    lines.push(vec![(Cow::Owned(title), theme.title())]);
    for row in worst {
        let (record, track) = (&row.record, model.track(row));
        let end = |symbol, end: Endpoint| {
            let mut text = String::new();
            let mut out = Out {
                text: &mut text,
                theme,
                style: theme.plain(),
                tail: 0,
            };
            out.end(model.text_of(symbol), end, record.has_ports);
            let tail = out.tail;
            let (head, port) = text.split_at(text.len() - tail);
            let text = format!(
                "{}{port}",
                shortened(head, end_width.saturating_sub(port.len()))
            );
            let padding = " ".repeat(end_width.saturating_sub(text.width()));
            text + &padding
        };
        let (word, style) = state_of(record, theme);
        let tcp = |pick: fn(&nvflow::TcpSide) -> u32| {
            record.tcp.map_or(0, |tcp| {
                u64::from(pick(&tcp.forward)) + u64::from(pick(&tcp.reverse))
            })
        };
        let share = loss(record).unwrap_or_default() * 100.0;
        lines.push(vec![
            (
                Cow::Owned(format!(
                    "   {} {} ",
                    end(track.client, record.source),
                    end(track.server, record.destination)
                )),
                theme.plain(),
            ),
            (Cow::Owned(format!("{word:>8}")), style),
            (
                Cow::Owned(format!(
                    " {:>5} {:>5} {:>5} {:>5}",
                    count(retransmitted(record)),
                    format!("{share:.1}%"),
                    count(tcp(|side| side.duplicate_acks)),
                    count(tcp(|side| side.zero_windows)),
                )),
                theme.plain(),
            ),
        ]);
    }
    lines
}

/// The connections that lost most, then those that were reset or refused; at most ten.
fn worst(state: &State) -> Vec<&super::snapshot::Row> {
    const MOST: usize = 10;
    let bad = |record: &FlowRecord| -> (u64, bool) {
        let over = record.flow_end_reason.is_some() && ended(record) != "closed";
        (retransmitted(record), over)
    };
    let mut found: Vec<_> = state
        .model
        .snapshot
        .rows
        .iter()
        .map(|row| (bad(&row.record), row))
        .filter(|((again, over), _)| *again > 0 || *over)
        .collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.place.cmp(&b.1.place)));
    found.truncate(MOST);
    found.into_iter().map(|(_, row)| row).collect()
}

fn help(state: &State) -> Vec<Line> {
    let theme = state.theme;
    let signs = theme.signs;
    let heading =
        |text: &'static str| -> Line { vec![(Cow::Owned(format!(" {text}")), theme.title())] };
    let entry = |key: String, what: &'static str| -> Line {
        vec![
            (Cow::Owned(format!("   {key:<12} ")), theme.accent()),
            (Cow::Borrowed(what), theme.plain()),
        ]
    };
    let key = |key: &str, what| entry(key.to_owned(), what);
    vec![
        heading("KEYS"),
        key("1 2 3, Tab", "connections, containers, health"),
        key(
            "Up Down j k",
            "move; PgUp PgDn Home End too; the cursor stays on its connection",
        ),
        key(
            "Enter",
            "open: all of a connection, a group's connections, a container's",
        ),
        key("Esc", "back: one filter, group or pane less"),
        key(
            "/",
            "filter by words: web 443, wb for web-1, !dns for all but dns",
        ),
        key("s S, r", "sort by the next or the previous column; reverse"),
        key("g", "group: none, container, service, conversation, remote"),
        key("f", "follow the container of this row; again: all of them"),
        key("p, Space", "pause what is shown; metering goes on"),
        key(
            "m",
            "mouse on or off; while it is off the terminal selects text",
        ),
        key("Ctrl-Z, q", "suspend; quit"),
        Line::new(),
        heading("COLUMNS"),
        entry(
            format!("{} B/s, {} B", signs.to, signs.to),
            "octets a second and in all, from client to server",
        ),
        entry(
            format!("{} B/s, {} B", signs.from, signs.from),
            "from server to client; IP octets, headers included",
        ),
        key("OUT, IN", "the same out of the container and into it"),
        key(
            "APP",
            "what it speaks, from its first octets; http? is a port's guess",
        ),
        key(
            "STATE",
            "of TCP, as ss names it; of others whether somebody answered",
        ),
        key("RTT", "of the handshake, from here to both ends and back"),
        key("RETR", "segments that were sent again, both ways"),
        key(
            "LOSS",
            "their share of all packets: what the network lost, or seemed to",
        ),
        key(
            "TREND",
            "the last refreshes, the highest as high as the line",
        ),
        Line::new(),
        heading("WHAT IS SEEN"),
        vec![(
            Cow::Borrowed(
                "   A connection between two attached containers is seen twice and shown once.",
            ),
            theme.plain(),
        )],
        vec![(
            Cow::Borrowed(
                "   What has ended stays for a moment, dimmed. K, M, G are thousands, millions ...",
            ),
            theme.plain(),
        )],
    ]
}
