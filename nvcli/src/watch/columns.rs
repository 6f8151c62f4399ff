//! Which columns a table has in the width there is.

/// A column of one of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Client,
    Server,
    At,
    Party,
    Connections,
    Protocol,
    /// The application, or the protocol where it is not known.
    Speaks,
    Application,
    /// What the application was asked for: a name.
    Asked,
    State,
    Age,
    RateTo,
    RateFrom,
    Total,
    OctetsTo,
    OctetsFrom,
    Packets,
    Rtt,
    Retransmits,
    Loss,
    Trend,
    Interface,
    Mode,
    Id,
    Last,
    Health,
}

/// How wide a column is, where its text stands, and how much it matters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) cell: Cell,
    least: u16,
    most: u16,
    pub(crate) right: bool,
    /// What is left out first when there is no room: the highest.
    order: u8,
}

const fn text(cell: Cell, least: u16, most: u16, order: u8) -> Spec {
    Spec {
        cell,
        least,
        most,
        right: false,
        order,
    }
}

/// Five columns of the terminal hold any count, time or share.
const fn number(cell: Cell, order: u8) -> Spec {
    Spec {
        cell,
        least: 5,
        most: 5,
        right: true,
        order,
    }
}

const NARROW: &[Spec] = &[
    text(Cell::Client, 14, 22, 0),
    text(Cell::Server, 14, 22, 0),
    text(Cell::Speaks, 5, 8, 4),
    text(Cell::State, 8, 8, 3),
    number(Cell::Age, 6),
    number(Cell::RateTo, 1),
    number(Cell::RateFrom, 1),
    number(Cell::Total, 2),
    number(Cell::Rtt, 7),
    number(Cell::Retransmits, 8),
    number(Cell::Loss, 9),
];

const MIDDLE: &[Spec] = &[
    text(Cell::Client, 16, 30, 0),
    text(Cell::Server, 16, 30, 0),
    text(Cell::Speaks, 6, 10, 0),
    text(Cell::Asked, 12, 40, 10),
    text(Cell::State, 8, 8, 0),
    number(Cell::Age, 0),
    number(Cell::RateTo, 0),
    number(Cell::RateFrom, 0),
    number(Cell::OctetsTo, 1),
    number(Cell::OctetsFrom, 1),
    number(Cell::Rtt, 2),
    number(Cell::Retransmits, 3),
    number(Cell::Loss, 4),
];

const WIDE: &[Spec] = &[
    text(Cell::Client, 21, 47, 0),
    text(Cell::Server, 21, 47, 0),
    text(Cell::At, 10, 16, 5),
    text(Cell::Protocol, 5, 5, 0),
    text(Cell::Application, 6, 10, 0),
    text(Cell::Asked, 12, 40, 2),
    text(Cell::State, 8, 8, 0),
    number(Cell::Age, 0),
    number(Cell::RateTo, 0),
    number(Cell::RateFrom, 0),
    text(Cell::Trend, 8, 20, 1),
    number(Cell::OctetsTo, 0),
    number(Cell::OctetsFrom, 0),
    number(Cell::Packets, 3),
    number(Cell::Rtt, 0),
    number(Cell::Retransmits, 0),
    number(Cell::Loss, 0),
];

const GROUPED: &[Spec] = &[
    text(Cell::Party, 18, 44, 0),
    number(Cell::Connections, 0),
    number(Cell::Age, 6),
    number(Cell::RateTo, 0),
    number(Cell::RateFrom, 0),
    number(Cell::OctetsTo, 1),
    number(Cell::OctetsFrom, 1),
    number(Cell::Packets, 5),
    number(Cell::Rtt, 2),
    number(Cell::Retransmits, 3),
    number(Cell::Loss, 4),
];

const CONVERSATIONS: &[Spec] = &[
    text(Cell::Client, 14, 40, 0),
    text(Cell::Server, 14, 40, 0),
    number(Cell::Connections, 0),
    number(Cell::Age, 6),
    number(Cell::RateTo, 0),
    number(Cell::RateFrom, 0),
    number(Cell::OctetsTo, 1),
    number(Cell::OctetsFrom, 1),
    number(Cell::Packets, 7),
    number(Cell::Rtt, 2),
    number(Cell::Retransmits, 3),
    number(Cell::Loss, 4),
];

const CONTAINERS: &[Spec] = &[
    text(Cell::Party, 14, 40, 0),
    text(Cell::Interface, 6, 15, 3),
    text(Cell::Mode, 6, 6, 4),
    text(Cell::Id, 4, 4, 6),
    number(Cell::Connections, 0),
    number(Cell::RateTo, 0),
    number(Cell::RateFrom, 0),
    text(Cell::Trend, 8, 40, 5),
    number(Cell::OctetsTo, 1),
    number(Cell::OctetsFrom, 1),
    number(Cell::Retransmits, 7),
    number(Cell::Last, 2),
    text(Cell::Health, 6, 20, 0),
];

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Connections,
    Groups,
    Conversations,
    Containers,
}

/// A column with its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) spec: Spec,
    pub(crate) x: u16,
    pub(crate) width: u16,
}

/// The columns of `table` in `width`, from the second column of the terminal on: the first is the cursor's.
pub(crate) fn place(table: Table, width: u16) -> Vec<Placed> {
    let all = match table {
        Table::Connections if width < 100 => NARROW,
        Table::Connections if width < 150 => MIDDLE,
        Table::Connections => WIDE,
        Table::Groups => GROUPED,
        Table::Conversations => CONVERSATIONS,
        Table::Containers => CONTAINERS,
    };
    let room = width.saturating_sub(1);
    let mut specs: Vec<Spec> = all.to_vec();
    let needed = |specs: &[Spec], gap: u16| -> u16 {
        let gaps = gap * (specs.len() as u16).saturating_sub(1);
        specs.iter().map(|spec| spec.least).sum::<u16>() + gaps
    };
    while needed(&specs, 1) > room && specs.len() > 1 {
        let worst = (0..specs.len()).max_by_key(|at| specs[*at].order);
        specs.remove(worst.unwrap_or_default());
    }
    let gap = if needed(&specs, 2) + specs.len() as u16 * 2 <= room {
        2
    } else {
        1
    };
    let mut spare = room.saturating_sub(needed(&specs, gap));
    let mut widths: Vec<u16> = specs.iter().map(|spec| spec.least).collect();
    // One by one, so that all that can grow do so evenly.
    while spare > 0 {
        let before = spare;
        for (spec, width) in specs.iter().zip(&mut widths) {
            if spare > 0 && *width < spec.most {
                *width += 1;
                spare -= 1;
            }
        }
        if spare == before {
            break;
        }
    }
    let mut x = 1;
    let mut placed = Vec::with_capacity(specs.len());
    for (spec, width) in specs.into_iter().zip(widths) {
        placed.push(Placed { spec, x, width });
        x += width + gap;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: [Table; 4] = [
        Table::Connections,
        Table::Groups,
        Table::Conversations,
        Table::Containers,
    ];

    #[test]
    fn columns_fit_and_stand_apart_at_any_width() {
        for table in TABLES {
            for width in 30..400 {
                let placed = place(table, width);
                for pair in placed.windows(2) {
                    assert!(pair[0].x + pair[0].width < pair[1].x, "{table:?} {width}");
                }
                let last = placed.last().expect("one column at least");
                assert!(last.x + last.width <= width, "{table:?} {width}");
            }
        }
    }

    #[test]
    fn eighty_columns_hold_what_matters() {
        let cells = |width| -> Vec<Cell> {
            let placed = place(Table::Connections, width);
            placed.iter().map(|placed| placed.spec.cell).collect()
        };
        let narrow = cells(80);
        for cell in [
            Cell::Client,
            Cell::Server,
            Cell::Speaks,
            Cell::State,
            Cell::Age,
            Cell::RateTo,
            Cell::RateFrom,
            Cell::Total,
            Cell::Rtt,
        ] {
            assert!(narrow.contains(&cell), "{cell:?}");
        }
        let wide = cells(200);
        assert_eq!(wide.len(), WIDE.len());
    }
}
