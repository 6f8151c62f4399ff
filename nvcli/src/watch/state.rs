//! What the view is at, and what each key makes of it. Nothing here knows a terminal.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nvcapture::Timestamp;
use nvflow::Endpoint;
use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

use super::fuzzy::Pattern;
use super::model::{Choice, GroupKey, Grouping, Model, Order, Symbol, Track};
use super::roster::{Attached, Roster};
use super::snapshot::{Row, Snapshot};
use super::theme::Theme;
use crate::health::{self, Earlier, Finding, Seen, UNDERWAY, Verdict, Whose};

/// How long an interface may be silent before that is worth a word.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Connections,
    Containers,
    Health,
}

/// What the caller has to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    None,
    Quit,
    Suspend,
    Mouse(bool),
}

/// What the cursor is on; it stays there when the order changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pin {
    Row(u32, Timestamp, Endpoint),
    Group(GroupKey),
}

/// The connection that the detail pane tells of; what is known last stays when it has ended.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) row: Row,
    pub(crate) track: Track,
    /// The refresh that this is of.
    pub(crate) round: u32,
    pub(crate) gone: bool,
}

/// What the view starts with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) order: Order,
    pub(crate) grouping: Grouping,
    pub(crate) follow: Vec<String>,
    /// The filter of frames, as it was given: what it leaves out is not seen, and says nothing of anybody's health.
    pub(crate) expression: Option<String>,
}

/// Whether an interface's frames are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    Damaged,
    /// Its own counters say that there were some.
    Blind,
    Silent,
    OneWay,
    Good,
}

/// The view.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) model: Model,
    pub(crate) theme: Theme,
    pub(crate) options: Options,
    pub(crate) began: Instant,
    pub(crate) page: Page,
    pub(crate) order: Order,
    pub(crate) reverse: bool,
    pub(crate) grouping: Grouping,
    pub(crate) follow: Vec<String>,
    /// The group whose connections are shown.
    pub(crate) scope: Option<GroupKey>,
    /// The filter as it is typed.
    pub(crate) typed: String,
    pattern: Pattern,
    pub(crate) editing: bool,
    pub(crate) paused: bool,
    pub(crate) help: bool,
    pub(crate) detail: bool,
    pub(crate) mouse: bool,
    /// First line of the detail pane, the help or the health page that is shown.
    pub(crate) scroll: usize,
    pin: Option<Pin>,
    /// Which row of the list the cursor is on; `None` until it is first moved.
    pub(crate) cursor: Option<usize>,
    /// The first row shown.
    pub(crate) offset: usize,
    /// Rows there is room for, as last drawn, and the line of the screen the first one is on.
    pub(crate) room: usize,
    pub(crate) top: u16,
    pub(crate) opened: Option<Opened>,
    /// What is to be said of what is seen and lost, the worst first.
    pub(crate) findings: Vec<Finding>,
    sights: HashMap<u16, Sight>,
    earlier: Earlier,
    stale: bool,
}

impl State {
    pub(crate) fn new(options: Options, roster: Roster, theme: Theme) -> Self {
        let began = Instant::now();
        Self {
            model: Model::new(roster),
            theme,
            began,
            earlier: Earlier::new(began),
            page: Page::Connections,
            order: options.order,
            reverse: false,
            grouping: options.grouping,
            follow: options.follow.clone(),
            scope: None,
            typed: String::new(),
            pattern: Pattern::default(),
            editing: false,
            paused: false,
            help: false,
            detail: false,
            mouse: false,
            scroll: 0,
            pin: None,
            cursor: None,
            offset: 0,
            room: 0,
            top: 0,
            opened: None,
            findings: Vec::new(),
            sights: HashMap::new(),
            stale: true,
            options,
        }
    }

    /// Takes the next snapshot and gives one back whose memory can be used again. While paused it is the same one.
    pub(crate) fn snapshot(&mut self, next: Snapshot) -> Snapshot {
        if self.paused {
            return next;
        }
        self.stale = true;
        let before = self.model.take(next);
        let snapshot = &self.model.snapshot;
        self.earlier.go_on(snapshot.taken, &snapshot.seen);
        self.judge();
        before
    }

    /// Finds out what is to be said of everybody's health.
    fn judge(&mut self) {
        let snapshot = &self.model.snapshot;
        let mut findings = health::of_losses(&snapshot.meter, &snapshot.source);
        let time = self.watched();
        for attached in &self.model.roster.attached {
            let seen = self.seen(attached.id);
            let whose = Whose {
                name: &attached.name,
                interface: &attached.interface,
            };
            if let Some(damage) = &attached.damage {
                findings.push(Finding::damaged(whose, damage));
            } else if self.options.expression.is_none() && time >= PATIENCE {
                // What fails now is told whatever was seen before; who has nobody to talk to for a while is well.
                let (since, lately) = self.lately(attached.id);
                let fails = health::of_frames(whose, &since, attached.counted, lately)
                    .filter(|finding| finding.verdict == Verdict::Fail);
                findings.extend(
                    fails.or_else(|| health::of_frames(whose, &seen, attached.counted, time)),
                );
            }
        }
        findings.extend(health::of_checksums(&snapshot.seen));
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        let all = &self.model.roster.attached;
        let sights = all.iter().map(|one| (one.id, self.look_at(one))).collect();
        (self.findings, self.sights) = (findings, sights);
    }

    /// The frames of an interface.
    pub(crate) fn seen(&self, id: u16) -> Seen {
        let seen = self.model.snapshot.seen.get(usize::from(id));
        seen.copied().unwrap_or_default()
    }

    /// The frames of an interface that came in the last ten to twenty seconds, and in how many.
    fn lately(&self, id: u16) -> (Seen, Duration) {
        let taken = self.model.snapshot.taken;
        self.earlier.since(id, &self.seen(id), taken)
    }

    /// How it was with an interface when the last snapshot was taken: its own counters may be newer than that.
    pub(crate) fn sight(&self, id: u16) -> Sight {
        self.sights.get(&id).copied().unwrap_or(Sight::Silent)
    }

    fn look_at(&self, of: &Attached) -> Sight {
        let (seen, since) = (self.seen(of.id), self.lately(of.id).0);
        let missed = |way: usize| of.counted.is_some_and(|counted| counted[way] > UNDERWAY);
        let unseen = |seen: Seen, way: usize| seen.frames[way] == 0;
        if of.damage.is_some() {
            Sight::Damaged
        } else if since.total() == 0 && (missed(0) || missed(1)) {
            Sight::Blind
        } else if seen.total() == 0 {
            Sight::Silent
        } else if [0, 1]
            .iter()
            .any(|&way| unseen(seen, way) || unseen(since, way) && missed(way))
        {
            Sight::OneWay
        } else {
            Sight::Good
        }
    }

    /// Interfaces whose own counters should be asked, since they alone tell whether silence is silence.
    pub(crate) fn doubtful(&self) -> impl Iterator<Item = u16> + '_ {
        let attached = self.model.roster.attached.iter();
        attached
            .map(|attached| attached.id)
            .filter(|id| self.lately(*id).0.frames.contains(&0))
    }

    /// How many findings need somebody's attention.
    pub(crate) fn problems(&self) -> usize {
        let problem = |finding: &&Finding| finding.verdict > Verdict::Ok;
        self.findings.iter().filter(problem).count()
    }

    pub(crate) fn roster(&mut self, roster: Roster) {
        // The names of this snapshot's rows are looked up with the next one.
        self.model.roster = roster;
    }

    fn choice(&self) -> Choice<'_> {
        Choice {
            pattern: &self.pattern,
            follow: &self.follow,
            scope: self.scope,
            grouping: self.grouping_shown(),
            order: self.order,
            reverse: self.reverse,
        }
    }

    /// Within a group its connections are shown one by one.
    pub(crate) fn grouping_shown(&self) -> Grouping {
        if self.scope.is_some() {
            Grouping::None
        } else {
            self.grouping
        }
    }

    /// Puts the list in order for `room` rows, if anything has changed since.
    pub(crate) fn arrange(&mut self, room: usize) {
        if !self.stale && room == self.room {
            return;
        }
        self.room = room;
        self.stale = false;
        let mut model = std::mem::replace(&mut self.model, Model::new(Roster::default()));
        let choice = self.choice();
        // Once for the rows that are seen where the view was; the cursor may have to be followed further down.
        // A few pages more, so that moving on does not order everything anew.
        let mut needed = self.offset + 4 * room;
        model.arrange(&choice, needed);
        let found = self.pin.and_then(|pin| match pin {
            Pin::Row(place, start, source) => model.rank_of_row((place, start, source), &choice),
            Pin::Group(key) => model.rank_of_group(key, &choice),
        });
        let last = model.len().saturating_sub(1);
        let cursor = found.or(self.cursor).map(|cursor| cursor.min(last));
        let mut offset = self.offset;
        if let Some(cursor) = cursor {
            offset = offset.min(cursor).max((cursor + 1).saturating_sub(room));
        }
        offset = offset.min(model.len().saturating_sub(room));
        if offset + room > needed {
            needed = offset + 4 * room;
            model.arrange(&choice, needed);
        }
        self.model = model;
        self.cursor = cursor;
        self.offset = offset;
        match &mut self.opened {
            // What is told of stays the same one.
            Some(opened) if self.detail && found.is_none() => opened.gone = true,
            _ => self.pin_cursor(),
        }
    }

    /// What a key points at is what would be drawn now, however many keys came since.
    fn catch_up(&mut self) {
        if self.page == Page::Connections && self.room > 0 {
            self.arrange(self.room);
        }
    }

    fn pin_cursor(&mut self) {
        self.pin = self.cursor.and_then(|cursor| {
            if self.grouping_shown() == Grouping::None {
                let row = self.model.row(cursor)?;
                self.opened = Some(Opened {
                    row: row.clone(),
                    track: self.model.track(row).clone(),
                    round: self.model.round,
                    gone: false,
                });
                Some(Pin::Row(
                    row.place,
                    row.record.flow_start,
                    row.record.source,
                ))
            } else {
                Some(Pin::Group(self.model.group(cursor)?.key))
            }
        });
    }

    /// Begins a list anew, at its top.
    fn restart(&mut self) {
        self.cursor = None;
        self.pin = None;
        self.offset = 0;
        self.scroll = 0;
        self.stale = true;
    }

    /// Does what a key asks for.
    pub(crate) fn key(&mut self, key: KeyEvent) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Action::Quit,
                KeyCode::Char('z') => return Action::Suspend,
                KeyCode::Char('u') if self.editing => {
                    self.typed.clear();
                    self.retype();
                    return Action::None;
                }
                KeyCode::Char('w') if self.editing => {
                    let kept = self.typed.trim_end().rfind(' ').map_or(0, |at| at + 1);
                    self.typed.truncate(kept);
                    self.retype();
                    return Action::None;
                }
                KeyCode::Char('d') => self.go(self.page_length() / 2),
                KeyCode::Char('u') => self.go(-(self.page_length() / 2)),
                _ => {}
            }
            return Action::None;
        }
        if self.editing {
            self.edit(key.code);
            return Action::None;
        }
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => {
                self.help = !self.help;
                self.scroll = 0;
            }
            KeyCode::Esc => self.back(),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-self.page_length()),
            KeyCode::PageDown => self.go(self.page_length()),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Char('m') => {
                self.mouse = !self.mouse;
                return Action::Mouse(self.mouse);
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            _ if self.help => self.help = false,
            KeyCode::Char('1') => self.turn_to(Page::Connections),
            KeyCode::Char('2') => self.turn_to(Page::Containers),
            KeyCode::Char('3') => self.turn_to(Page::Health),
            KeyCode::Tab => self.turn_to(match self.page {
                Page::Connections => Page::Containers,
                Page::Containers => Page::Health,
                Page::Health => Page::Connections,
            }),
            KeyCode::BackTab => self.turn_to(match self.page {
                Page::Connections => Page::Health,
                Page::Containers => Page::Connections,
                Page::Health => Page::Containers,
            }),
            KeyCode::Enter => self.enter(),
            KeyCode::Char('/') => {
                self.turn_to(Page::Connections);
                self.detail = false;
                self.editing = true;
            }
            KeyCode::Char('s') => self.reorder(1),
            KeyCode::Char('S') => self.reorder(Order::ALL.len() - 1),
            KeyCode::Char('r') => {
                self.reverse = !self.reverse;
                self.stale = true;
            }
            KeyCode::Char('g') => self.regroup(),
            KeyCode::Char('f') => self.follow_selected(),
            _ => {}
        }
        Action::None
    }

    pub(crate) fn mouse(&mut self, mouse: MouseEvent) -> Action {
        match mouse.kind {
            MouseEventKind::ScrollUp => self.go(-3),
            MouseEventKind::ScrollDown => self.go(3),
            MouseEventKind::Down(MouseButton::Left) if mouse.row >= self.top => {
                let row = usize::from(mouse.row - self.top);
                let shows_list = !self.help && !self.detail && self.page != Page::Health;
                if shows_list && row < self.room {
                    self.select(self.offset + row);
                }
            }
            _ => {}
        }
        Action::None
    }

    fn edit(&mut self, code: KeyCode) {
        match code {
            KeyCode::Esc => {
                self.editing = false;
                self.typed.clear();
                self.retype();
            }
            KeyCode::Enter => self.editing = false,
            KeyCode::Backspace => {
                if self.typed.pop().is_none() {
                    self.editing = false;
                }
                self.retype();
            }
            KeyCode::Char(letter) if !letter.is_control() => {
                self.typed.push(letter);
                self.retype();
            }
            KeyCode::Up => self.go(-1),
            KeyCode::Down => self.go(1),
            _ => {}
        }
    }

    fn retype(&mut self) {
        self.pattern = Pattern::new(&self.typed);
        self.restart();
    }

    /// Takes back the last thing that narrows what is seen.
    fn back(&mut self) {
        if self.help {
            self.help = false;
        } else if self.detail {
            self.detail = false;
        } else if self.page != Page::Connections {
            self.turn_to(Page::Connections);
            return;
        } else if !self.typed.is_empty() {
            self.typed.clear();
            self.retype();
        } else if let Some(scope) = self.scope.take() {
            self.restart();
            self.cursor = Some(0);
            self.pin = Some(Pin::Group(scope));
        } else if self.follow != self.options.follow {
            self.follow.clone_from(&self.options.follow);
            self.restart();
        } else {
            self.restart();
        }
        self.scroll = 0;
    }

    fn turn_to(&mut self, page: Page) {
        if self.page != page {
            self.page = page;
            self.detail = false;
            self.restart();
        }
    }

    fn page_length(&self) -> isize {
        isize::try_from(self.room.max(2)).unwrap_or(isize::MAX) - 1
    }

    fn length(&self) -> usize {
        match self.page {
            Page::Connections => self.model.len(),
            Page::Containers => self.model.roster.attached.len(),
            Page::Health => 0,
        }
    }

    /// Moves the cursor, or what scrolls.
    fn go(&mut self, by: isize) {
        let moved = |from: usize, most: usize| from.saturating_add_signed(by).min(most);
        if self.help || self.detail || self.page == Page::Health {
            // How far that goes is known when it is drawn.
            self.scroll = self.scroll.saturating_add_signed(by);
            return;
        }
        self.catch_up();
        match self.cursor {
            Some(cursor) => self.select(moved(cursor, usize::MAX)),
            None if by == 1 => self.select(self.offset),
            None => self.select(moved(self.offset, usize::MAX)),
        }
    }

    fn select(&mut self, row: usize) {
        let length = self.length();
        if length == 0 {
            return;
        }
        self.cursor = Some(row.min(length - 1));
        self.pin = None;
        if self.page == Page::Connections {
            // What is far below has to be put in order before it is known what the cursor is on.
            if row.min(length - 1) >= self.model.ordered {
                self.offset = (row.min(length - 1) + 1).saturating_sub(self.room);
                self.stale = true;
                self.arrange(self.room);
            }
            let cursor = row.min(length - 1);
            self.cursor = Some(cursor);
            self.offset = self
                .offset
                .min(cursor)
                .max((cursor + 1).saturating_sub(self.room.max(1)));
            self.pin_cursor();
        } else if let Some(cursor) = self.cursor {
            self.offset = self
                .offset
                .min(cursor)
                .max((cursor + 1).saturating_sub(self.room.max(1)));
        }
    }

    fn enter(&mut self) {
        self.catch_up();
        match self.page {
            Page::Connections if self.detail => self.detail = false,
            Page::Connections => {
                if self.cursor.is_none() {
                    self.select(self.offset);
                }
                let Some(cursor) = self.cursor else { return };
                if self.grouping_shown() == Grouping::None {
                    self.detail = self.model.row(cursor).is_some();
                    self.scroll = 0;
                } else if let Some(group) = self.model.group(cursor) {
                    self.scope = Some(group.key);
                    self.restart();
                }
            }
            Page::Containers => {
                let chosen = self.cursor.unwrap_or_default();
                if let Some(attached) = self.model.roster.attached.get(chosen) {
                    self.follow = vec![attached.name.to_string()];
                    self.scope = None;
                    self.turn_to(Page::Connections);
                }
            }
            Page::Health => {}
        }
    }

    fn reorder(&mut self, by: usize) {
        let at = Order::ALL.iter().position(|order| *order == self.order);
        let next = (at.unwrap_or_default() + by) % Order::ALL.len();
        self.order = Order::ALL[next];
        self.reverse = false;
        self.stale = true;
    }

    fn regroup(&mut self) {
        let at = Grouping::ALL.iter().position(|one| *one == self.grouping);
        self.grouping = Grouping::ALL[(at.unwrap_or_default() + 1) % Grouping::ALL.len()];
        self.scope = None;
        self.detail = false;
        self.turn_to(Page::Connections);
        self.restart();
    }

    /// Follows the container of the row under the cursor, or no longer.
    fn follow_selected(&mut self) {
        if self.follow != self.options.follow {
            self.follow.clone_from(&self.options.follow);
            self.restart();
            return;
        }
        self.catch_up();
        let cursor = self.cursor.unwrap_or(self.offset);
        let name = match self.page {
            Page::Containers => {
                let attached = self.model.roster.attached.get(cursor);
                attached.map(|attached| attached.name.to_string())
            }
            Page::Connections => {
                let symbol: Option<Symbol> = if self.grouping_shown() == Grouping::None {
                    self.model.row(cursor).map(|row| self.model.track(row).at)
                } else {
                    match self.model.group(cursor).map(|group| group.key) {
                        Some(GroupKey::Container(symbol)) => Some(symbol),
                        _ => None,
                    }
                };
                symbol.and_then(|symbol| self.model.text_of(symbol).map(str::to_owned))
            }
            Page::Health => None,
        };
        if let Some(name) = name {
            self.follow = vec![name];
            self.scope = None;
            if self.grouping == Grouping::Container {
                self.grouping = Grouping::None;
            }
            self.turn_to(Page::Connections);
            self.restart();
        }
    }

    /// How long it has been looked at.
    pub(crate) fn watched(&self) -> Duration {
        self.model
            .snapshot
            .taken
            .saturating_duration_since(self.began)
    }
}
