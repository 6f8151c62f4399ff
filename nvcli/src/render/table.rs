//! Tables of plain text that fit the width they are shown in.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// What happens to a column when the line is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It stays as it is.
    Whole,
    /// Its cells lose their middle, down to this width.
    Shorten(usize),
    /// Both: down to this width, and where that is too much it is left out as [`Drop`](Self::Drop) is.
    ShortenOrDrop(usize, u8),
    /// It is left out, highest number first.
    Drop(u8),
}

impl Fit {
    /// The width that cells can be shortened to.
    const fn least(self) -> Option<usize> {
        match self {
            Self::Shorten(least) | Self::ShortenOrDrop(least, _) => Some(least),
            Self::Whole | Self::Drop(_) => None,
        }
    }

    /// When the column is left out; the highest number goes first.
    const fn order(self) -> Option<u8> {
        match self {
            Self::Drop(order) | Self::ShortenOrDrop(_, order) => Some(order),
            Self::Whole | Self::Shorten(_) => None,
        }
    }
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) align: Align,
    pub(crate) fit: Fit,
    /// The width it gets when rows come later than the layout; wider cells of the first rows widen it.
    pub(crate) usual: usize,
}

impl Column {
    /// A column of text that is shown whole.
    pub(crate) const fn left(title: &'static str) -> Self {
        Self {
            title,
            align: Align::Left,
            fit: Fit::Whole,
            usual: 0,
        }
    }

    /// A column of numbers that is shown whole.
    pub(crate) const fn right(title: &'static str) -> Self {
        Self {
            title,
            align: Align::Right,
            fit: Fit::Whole,
            usual: 0,
        }
    }

    pub(crate) const fn fit(self, fit: Fit) -> Self {
        Self { fit, ..self }
    }

    pub(crate) const fn usual(self, usual: usize) -> Self {
        Self { usual, ..self }
    }
}

/// Columns between one and the next.
const GAP: usize = 2;

/// The widths that the columns of a table got; `None` for one that is left out.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    columns: Vec<Column>,
    widths: Vec<Option<usize>>,
    limit: Option<usize>,
}

impl Layout {
    /// Lays out `columns` for `rows` (and rows like them) in `width` columns of a terminal, or in what they need.
    ///
    /// A column in which no row has text is left out when `hide_empty`.
    pub(crate) fn new(
        columns: &[Column],
        rows: &[Vec<String>],
        width: Option<usize>,
        hide_empty: bool,
    ) -> Self {
        let mut widths: Vec<Option<usize>> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let widest = rows
                    .iter()
                    .filter_map(|row| row.get(at))
                    .map(|cell| cell.width())
                    .max()
                    .unwrap_or(0);
                (widest > 0 || !hide_empty)
                    .then(|| widest.max(column.title.width()).max(column.usual))
            })
            .collect();
        if let Some(width) = width {
            shrink(columns, &mut widths, width);
        }
        Self {
            columns: columns.to_vec(),
            widths,
            limit: width,
        }
    }

    /// Gives the room that is left to the columns that can be shortened, up to `most` each, for rows that come later.
    pub(crate) fn widen(&mut self, most: usize) {
        let Some(limit) = self.limit else { return };
        let mut room = limit.saturating_sub(total(&self.widths));
        let mut left = self
            .columns
            .iter()
            .zip(&self.widths)
            .filter(|(column, width)| column.fit.least().is_some() && width.is_some())
            .count();
        for (column, width) in self.columns.iter().zip(&mut self.widths) {
            if let (Some(_), Some(width)) = (column.fit.least(), width) {
                let more = (room / left.max(1)).min(most.saturating_sub(*width));
                *width += more;
                room -= more;
                left -= 1;
            }
        }
    }

    /// The line of titles, with its end.
    pub(crate) fn header(&self) -> String {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.title.to_owned())
            .collect();
        self.row(&titles)
    }

    /// One line, with its end.
    pub(crate) fn row(&self, cells: &[String]) -> String {
        let mut line = String::with_capacity(128);
        for ((column, width), cell) in self.columns.iter().zip(&self.widths).zip(cells) {
            let Some(width) = *width else { continue };
            if !line.is_empty() {
                line.extend(std::iter::repeat_n(' ', GAP));
            }
            let cell = match column.fit.least() {
                Some(_) if self.limit.is_some() => shortened(cell, width),
                _ => Cow::Borrowed(cell.as_str()),
            };
            let padding = width.saturating_sub(cell.width());
            match column.align {
                Align::Left => {
                    line.push_str(&cell);
                    line.extend(std::iter::repeat_n(' ', padding));
                }
                Align::Right => {
                    line.extend(std::iter::repeat_n(' ', padding));
                    line.push_str(&cell);
                }
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

fn total(widths: &[Option<usize>]) -> usize {
    let shown = widths.iter().flatten().count();
    widths.iter().flatten().sum::<usize>() + GAP * shown.saturating_sub(1)
}

/// Leaves columns out until the rest fits with the shortest cells allowed, then shortens the widest first.
fn shrink(columns: &[Column], widths: &mut [Option<usize>], limit: usize) {
    let shortest = |widths: &[Option<usize>]| -> usize {
        let saved: usize = columns
            .iter()
            .zip(widths)
            .filter_map(|(column, width)| {
                let least = column.fit.least()?;
                width.map(|width| width.saturating_sub(least))
            })
            .sum();
        total(widths) - saved
    };
    while shortest(widths) > limit {
        let next = columns
            .iter()
            .enumerate()
            .filter_map(|(at, column)| {
                let order = column.fit.order()?;
                widths[at].map(|_| (order, at))
            })
            .max();
        let Some((_, at)) = next else { break };
        widths[at] = None;
    }
    // One column of the terminal at a time; a terminal has some hundred.
    while total(widths) > limit {
        let widest = columns
            .iter()
            .enumerate()
            .filter_map(|(at, column)| match (column.fit.least(), widths[at]) {
                (Some(least), Some(width)) if width > least => Some((width, at)),
                _ => None,
            })
            .max();
        let Some((width, at)) = widest else { break };
        // Far from the limit at first: the widest may be as wide as a name can be.
        let excess = total(widths) - limit;
        let Some(least) = columns[at].fit.least() else {
            break;
        };
        let second = columns
            .iter()
            .enumerate()
            .filter_map(
                |(other, column)| match (column.fit.least(), widths[other]) {
                    (Some(_), Some(width)) if other != at => Some(width),
                    _ => None,
                },
            )
            .max()
            .unwrap_or(0);
        let step = excess
            .min((width - second.min(width)).max(1))
            .min(width - least);
        widths[at] = Some(width - step);
    }
}

/// `text` in at most `width` columns; what is too long loses its middle, since both ends of a name tell it apart.
pub(crate) fn shortened(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    if width == 0 {
        return Cow::Borrowed("");
    }
    let room = width - 1;
    let (front_room, back_room) = (room - room / 2, room / 2);
    let taken = |chars: &mut dyn Iterator<Item = char>, room: usize| -> usize {
        let mut used = 0;
        chars
            .take_while(|c| {
                used += c.width().unwrap_or(0);
                used <= room
            })
            .map(char::len_utf8)
            .sum()
    };
    let front = taken(&mut text.chars(), front_room);
    let back = taken(&mut text.chars().rev(), back_room);
    Cow::Owned(format!("{}…{}", &text[..front], &text[text.len() - back..]))
}

/// A whole table: titles unless `no_header`, then the rows.
pub(crate) fn table(
    columns: &[Column],
    rows: &[Vec<String>],
    width: Option<usize>,
    no_header: bool,
) -> String {
    let layout = Layout::new(columns, rows, width, true);
    let mut text = if no_header {
        String::new()
    } else {
        layout.header()
    };
    text.extend(rows.iter().map(|row| layout.row(row)));
    text
}

/// The width of the terminal that standard output is, or what `COLUMNS` says; `None` when neither is there.
pub(crate) fn terminal_width() -> Option<usize> {
    let told = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal_size::terminal_size_of(std::io::stdout())
        .map(|(width, _)| usize::from(width.0))
        .or_else(told)
        .map(|width: usize| width.max(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        vec![
            Column::left("NAME").fit(Fit::Shorten(6)),
            Column::left("WHERE").fit(Fit::Shorten(6)),
            Column::right("N"),
            Column::left("MORE").fit(Fit::Drop(1)),
            Column::left("LEAST").fit(Fit::Drop(2)),
        ]
    }

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
        vec![
            row([
                "a-very-long-container-name",
                "10.0.0.2:43210",
                "7",
                "more",
                "least",
            ]),
            row(["db", "10.0.0.3:5432", "12345", "m", "l"]),
        ]
    }

    #[test]
    fn without_a_limit_everything_is_shown() {
        assert_eq!(
            table(&columns(), &rows(), None, false),
            "NAME                        WHERE               N  MORE  LEAST\n\
             a-very-long-container-name  10.0.0.2:43210      7  more  least\n\
             db                          10.0.0.3:5432   12345  m     l\n"
        );
    }

    #[test]
    fn what_fits_no_longer_is_shortened_then_left_out() {
        for width in 21..80 {
            for line in table(&columns(), &rows(), Some(width), false).lines() {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
        let narrow = table(&columns(), &rows(), Some(24), false);
        assert!(
            !narrow.contains("MORE") && !narrow.contains("LEAST") && narrow.contains("12345"),
            "{narrow}"
        );
    }

    #[test]
    fn a_shortened_name_keeps_both_ends() {
        assert_eq!(shortened("abcdefghij", 5), "ab…ij");
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("日本語日本語", 5), "日…語");
        assert_eq!(shortened("ab", 1), "…");
        assert_eq!(shortened("ab", 0), "");
    }

    #[test]
    fn a_column_without_text_is_left_out() {
        let rows = vec![vec![
            "a".to_owned(),
            String::new(),
            "1".to_owned(),
            String::new(),
            String::new(),
        ]];
        assert_eq!(table(&columns(), &rows, None, false), "NAME  N\na     1\n");
        assert_eq!(table(&columns(), &rows, None, true), "a     1\n");
    }

    #[test]
    fn a_name_as_long_as_it_may_be_costs_no_time() {
        let rows = vec![vec![
            "x".repeat(1 << 20),
            "y".repeat(1 << 20),
            "1".into(),
            String::new(),
            String::new(),
        ]];
        let text = table(&columns(), &rows, Some(80), true);
        assert_eq!(text.trim_end().width(), 80);
    }
}
