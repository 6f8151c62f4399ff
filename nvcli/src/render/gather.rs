//! Lines in the making: what is put down is gathered and written in large pieces.
//!
//! A flood of connections is a flood of records; a formatter for each number would cost more than metering the frame did.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets from which on a line's end writes what has been gathered.
const GATHERED: usize = 1 << 16;
/// Room for a line behind that. Texts end in its first half, or are put aside with all that stands before them: what a record has beside
/// texts fits into the other half.
const PIECE: usize = 1 << 14;
/// What is put down at once is no longer.
const PAST: usize = 64;

/// The digits of all numbers below 1,000: three octets, with zeros before, and how many of them the number needs.
static DIGITS: [u32; 1000] = {
    let mut all = [0; 1000];
    let mut number = 0;
    while number < all.len() {
        let count = if number < 10 {
            1
        } else if number < 100 {
            2
        } else {
            3
        };
        let [hundreds, tens, ones] = [number / 100, number / 10 % 10, number % 10];
        all[number] = u32::from_le_bytes([
            b'0' + hundreds as u8,
            b'0' + tens as u8,
            b'0' + ones as u8,
            count,
        ]);
        number += 1;
    }
    all
};

/// A few octets, kept so that copying them needs no call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Short {
    octets: [u8; Self::MOST],
    length: usize,
}

impl Short {
    const MOST: usize = 48;

    /// Without any octets.
    pub(crate) const EMPTY: Self = Self {
        octets: [0; Self::MOST],
        length: 0,
    };

    /// `parts`, one after the other, at most 48 octets of them.
    pub(crate) const fn new(parts: &[&str]) -> Self {
        let mut part = 0;
        let mut short = Self::EMPTY;
        while part < parts.len() {
            short = short.and(parts[part].as_bytes());
            part += 1;
        }
        short
    }

    /// The same with `octets` behind it.
    const fn and(mut self, octets: &[u8]) -> Self {
        let mut at = 0;
        while at < octets.len() {
            self.octets[self.length] = octets[at];
            self.length += 1;
            at += 1;
        }
        self
    }

    /// What it consists of.
    pub(crate) const fn octets(&self) -> &[u8] {
        self.octets.split_at(self.length).0
    }
}

/// The digits of a number of seconds: most records begin and end within the same few.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Second {
    number: u64,
    text: [u8; 16],
    /// 0 for a number that is written otherwise: none, or one of more than ten digits.
    length: usize,
}

impl Second {
    #[cold]
    fn new(number: u64) -> Self {
        let mut room = [0; DECIMAL];
        let length = match number {
            1..10_000_000_000 => decimal(&mut room, number),
            _ => 0,
        };
        let mut text = [0; 16];
        text.copy_from_slice(&room[..16]);
        Self {
            number,
            text,
            length,
        }
    }
}

impl Default for Second {
    fn default() -> Self {
        Self::new(0)
    }
}

/// A line in the making.
///
/// Nothing asks whether there is room: a line's place is below [`PIECE`] at all times, which its mask tells the compiler.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    piece: &'a mut [u8; PIECE + PAST],
    at: usize,
    /// What was put aside of it, as it is longer than usual.
    long: &'a mut Vec<u8>,
}

impl Line<'_> {
    /// What a record may have beside texts. Unit: octets.
    pub(crate) const FIXED: usize = PIECE / 2;

    /// Room for `N` octets, of which the caller says how many stay.
    #[inline(always)]
    fn room<const N: usize>(&mut self) -> &mut [u8; N] {
        const { assert!(N <= PAST) };
        debug_assert!(self.at < PIECE);
        self.piece[self.at % PIECE..]
            .first_chunk_mut()
            .expect("room past the last place")
    }

    /// One octet.
    #[inline(always)]
    pub(crate) fn octet(&mut self, octet: u8) {
        *self.room() = [octet];
        self.at += 1;
    }

    /// A text known when this was built.
    #[inline(always)]
    pub(crate) fn short(&mut self, short: &Short) {
        // All but the longest need no more than two thirds of it.
        match short.octets.first_chunk::<32>() {
            Some(first) if short.length <= first.len() => *self.room() = *first,
            _ => *self.room() = short.octets,
        }
        self.at += short.length;
    }

    /// A number, in decimal.
    #[inline(always)]
    pub(crate) fn number(&mut self, number: u64) {
        self.at += if number < 1_000_000 {
            first_six(self.room(), number as u32)
        } else {
            decimal(self.room(), number)
        };
    }

    /// A time in microseconds, as a number; `second` is that of the last one.
    #[inline(always)]
    pub(crate) fn micros(&mut self, micros: u64, second: &mut Second) {
        let (whole, rest) = (micros / 1_000_000, (micros % 1_000_000) as u32);
        if whole != second.number {
            *second = Second::new(whole);
        }
        let Second { text, length, .. } = second;
        if *length == 0 {
            return self.number(micros);
        }
        let room = self.room::<DECIMAL>();
        room[..16].copy_from_slice(text);
        three(room, *length, rest / 1_000);
        three(room, *length + 3, rest % 1_000);
        self.at += *length + 6;
    }

    /// An address, as RFC 5952 writes it.
    #[inline(always)]
    pub(crate) fn address(&mut self, address: IpAddr) {
        self.at += match address {
            IpAddr::V4(address) => dotted(self.room(), address),
            IpAddr::V6(address) => colons(self.room(), address),
        };
    }

    /// A text of any length, as it is.
    #[inline(always)]
    pub(crate) fn text(&mut self, text: &str) {
        self.octets(text.as_bytes());
    }

    /// Octets that were put down in a line before, as they are.
    #[inline(always)]
    pub(crate) fn octets(&mut self, octets: &[u8]) {
        // Not by a method of the line: one that is not inlined would have its place in memory, and every value wait for it.
        self.at = put_text(self.piece, self.at, self.long, octets);
    }

    /// How far it has come; see [`since`](Self::since).
    #[inline(always)]
    pub(crate) const fn mark(&self) -> usize {
        self.at
    }

    /// What was put down since a mark; none where that was put aside.
    pub(crate) fn since(&self, mark: usize) -> Option<&[u8]> {
        self.long.is_empty().then(|| &self.piece[mark..self.at])
    }

    /// Ends it.
    #[inline(always)]
    pub(crate) fn end(mut self) -> Made {
        self.octet(b'\n');
        Made(self.at)
    }
}

/// A line that is made: how many octets of it were not put aside.
#[must_use]
#[derive(Debug)]
pub(crate) struct Made(usize);

/// Puts `text` behind the `at` octets of `piece`, or behind those in `long` with it; gives how many are in `piece` then.
fn put_text(piece: &mut [u8], at: usize, long: &mut Vec<u8>, text: &[u8]) -> usize {
    let end = at + text.len();
    if end <= PIECE / 2
        && let Some(room) = piece.get_mut(at..end)
    {
        room.copy_from_slice(text);
        return end;
    }
    long.extend_from_slice(&piece[..at]);
    long.extend_from_slice(text);
    0
}

/// Room for a number: 20 digits, and so much more that no place below 32 has to be looked at.
const DECIMAL: usize = 36;

/// Writes a number below 1,000; gives its length.
#[inline(always)]
fn first_three<const N: usize>(room: &mut [u8; N], number: u32) -> usize {
    let digits = DIGITS[number as usize];
    let count = digits >> 24;
    // Zeros before it go, and what comes in behind is written over.
    room[..4].copy_from_slice(&(digits >> (24 - 8 * count)).to_le_bytes());
    count as usize
}

/// Writes three digits from `at` on, and an octet behind them that means nothing.
#[inline(always)]
fn three(room: &mut [u8; DECIMAL], at: usize, number: u32) {
    let at = at % 32;
    room[at..at + 4].copy_from_slice(&DIGITS[number as usize].to_le_bytes());
}

/// Writes a number of up to six digits; gives its length.
#[inline(always)]
fn first_six(room: &mut [u8; DECIMAL], number: u32) -> usize {
    if number < 1_000 {
        return first_three(room, number);
    }
    let length = first_three(room, number / 1_000);
    three(room, length, number % 1_000);
    length + 3
}

/// Writes a number of up to nine digits; gives its length.
#[inline(always)]
fn first_nine(room: &mut [u8; DECIMAL], number: u32) -> usize {
    if number < 1_000_000 {
        return first_six(room, number);
    }
    let length = first_six(room, number / 1_000);
    three(room, length, number % 1_000);
    length + 3
}

/// Writes nine digits from `at` on.
#[inline(always)]
fn nine(room: &mut [u8; DECIMAL], at: usize, number: u32) {
    three(room, at, number / 1_000_000);
    three(room, at + 3, number / 1_000 % 1_000);
    three(room, at + 6, number % 1_000);
}

/// Writes a number; gives its length.
#[inline]
fn decimal(room: &mut [u8; DECIMAL], number: u64) -> usize {
    const BILLION: u64 = 1_000_000_000;
    if number < BILLION {
        return first_nine(room, number as u32);
    }
    // The lower digits do not wait for the higher ones.
    let (high, low) = (number / BILLION, (number % BILLION) as u32);
    let length = if high < BILLION {
        first_nine(room, high as u32)
    } else {
        let length = first_nine(room, (high / BILLION) as u32);
        nine(room, length, (high % BILLION) as u32);
        length + 9
    };
    nine(room, length, low);
    length + 9
}

/// Each octet in decimal with a point behind it, and the length of that.
static POINTED: [([u8; 4], u8); 256] = {
    let mut all = [([0; 4], 0); 256];
    let mut octet = 0;
    while octet < all.len() {
        let [hundreds, tens, ones, count] = DIGITS[octet].to_le_bytes();
        all[octet] = match count {
            1 => ([ones, b'.', 0, 0], 2),
            2 => ([tens, ones, b'.', 0], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        octet += 1;
    }
    all
};

/// Writes an IPv4 address; gives its length.
#[inline(always)]
fn dotted(room: &mut [u8; 16], address: Ipv4Addr) -> usize {
    let mut at = 0;
    for octet in address.octets() {
        let (text, length) = POINTED[usize::from(octet)];
        room[at..at + 4].copy_from_slice(&text);
        at += usize::from(length);
    }
    at - 1
}

/// Each octet as two hexadecimal digits.
static HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut all = [[0; 2]; 256];
    let mut octet = 0;
    while octet < all.len() {
        all[octet] = [DIGITS[octet / 16], DIGITS[octet % 16]];
        octet += 1;
    }
    all
};

/// Writes an IPv6 address; gives its length.
fn colons(room: &mut [u8; 48], address: Ipv6Addr) -> usize {
    if address.to_ipv4_mapped().is_some() {
        let whole = room.len();
        let mut rest = &mut room[..];
        // 22 octets at most.
        drop(write!(rest, "{address}"));
        return whole - rest.len();
    }
    let segments = address.segments();
    let (start, length) = longest_zeros(&segments);
    let mut at = 0;
    let mut place = 0;
    while place < segments.len() {
        if length > 1 && place == start {
            room[at..at + 2].copy_from_slice(b"::");
            at += 2;
            place += length;
            continue;
        }
        if place > 0 && place != start + length {
            room[at] = b':';
            at += 1;
        }
        let segment = segments[place];
        let [high, low] = segment.to_be_bytes().map(|octet| HEX[usize::from(octet)]);
        let digits = u32::from_le_bytes([high[0], high[1], low[0], low[1]]);
        let count = (19 - (segment | 1).leading_zeros()) / 4;
        // As for numbers: zeros before it go.
        room[at..at + 4].copy_from_slice(&(digits >> (32 - 8 * count)).to_le_bytes());
        at += count as usize;
        place += 1;
    }
    at
}

/// Where the first of the longest runs of zeros is that are worth two colons, and how long; at the end and of none where there is none.
fn longest_zeros(segments: &[u16; 8]) -> (usize, usize) {
    let (mut start, mut length) = (segments.len(), 0);
    let mut run = 0;
    for (place, &segment) in segments.iter().enumerate() {
        run = if segment == 0 { run + 1 } else { 0 };
        if run > length.max(1) {
            (start, length) = (place + 1 - run, run);
        }
    }
    (start, length)
}

/// Text on its way to `out`.
#[derive(Debug)]
pub(crate) struct Gather<W> {
    out: W,
    text: Vec<u8>,
    at: usize,
    /// Lines that are longer than usual; empty most of the time.
    long: Vec<u8>,
}

impl<W: Write> Gather<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            text: vec![0; GATHERED + PIECE + PAST],
            at: 0,
            long: Vec::new(),
        }
    }

    /// Begins a line, which is to be [taken](Self::take) when all is put down. Beside texts there is room for [`Line::FIXED`] octets.
    #[inline(always)]
    pub(crate) fn begin(&mut self) -> Line<'_> {
        let room = &mut self.text[self.at..];
        Line {
            piece: room
                .first_chunk_mut()
                .expect("room for a line behind what is gathered"),
            at: 0,
            long: &mut self.long,
        }
    }

    /// Takes the line that was [begun](Self::begin), with its end.
    #[inline(always)]
    pub(crate) fn take(&mut self, Made(length): Made) -> io::Result<()> {
        if !self.long.is_empty() {
            return self.write_long(length);
        }
        self.at += length;
        if self.at >= GATHERED {
            self.write()?;
        }
        Ok(())
    }

    /// Writes a line that was put aside but for its last octets, and what was gathered before it.
    #[cold]
    fn write_long(&mut self, last: usize) -> io::Result<()> {
        let mut long = std::mem::take(&mut self.long);
        long.extend_from_slice(&self.text[self.at..self.at + last]);
        self.write()?;
        self.out.write_all(&long)
    }

    fn write(&mut self) -> io::Result<()> {
        // What could not be written once is not tried again.
        let gathered = std::mem::take(&mut self.at);
        self.out.write_all(&self.text[..gathered])
    }

    /// What is written to.
    pub(crate) fn out_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes all that has been gathered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.write()?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<W: Write>(gather: &mut Gather<W>, put: impl Fn(&mut Line<'_>)) {
        let mut line = gather.begin();
        put(&mut line);
        let made = line.end();
        gather.take(made).expect("memory");
    }

    fn shown(what: impl Fn(&mut Line<'_>)) -> String {
        let mut out = Vec::new();
        let mut gather = Gather::new(&mut out);
        put(&mut gather, what);
        gather.flush().expect("memory");
        drop(gather);
        assert_eq!(out.pop(), Some(b'\n'));
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn numbers_are_as_the_standard_library_writes_them() {
        let mut number = 0_u64;
        let mut numbers = vec![u64::MAX, 0, 9, 10, 99, 100, 999, 1_000, 12_345];
        for power in 0..20 {
            let power = 10_u64.pow(power);
            numbers.extend([power - 1, power, power + 1, power / 3]);
        }
        for digit in (1..20).map(|n| n % 10) {
            number = number * 10 + digit;
            numbers.extend([number, number - 1, 10_u64.pow(digit as u32 + 9)]);
        }
        for number in numbers {
            assert_eq!(shown(|line| line.number(number)), number.to_string());
            let second = std::cell::Cell::new(Second::default());
            let micros = |line: &mut Line<'_>| {
                let mut last = second.get();
                line.micros(number, &mut last);
                second.set(last);
            };
            assert_eq!(shown(micros), number.to_string());
            assert_eq!(shown(micros), number.to_string());
        }
    }

    #[test]
    fn addresses_are_as_the_standard_library_writes_them() {
        for address in [
            "0.0.0.0",
            "255.255.255.255",
            "10.0.200.99",
            "1.23.45.167",
            "::",
            "2001:db8::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "::ffff:255.255.255.255",
            "ffff::",
            "1:0:0:2::3",
            "1::2:0:0:3:4",
            "1:0:0:2::",
            "0:1:0:1:0:1:0:1",
        ] {
            let parsed: IpAddr = address.parse().expect("an address");
            assert_eq!(shown(|line| line.address(parsed)), address);
        }
        // Each segment one of these, in turn and mixed.
        const SEGMENTS: [u16; 6] = [0, 1, 0xa, 0x10, 0xfff, 0xffff];
        let mut state = 1_u64;
        for turn in 0..20_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
            let segments: [u16; 8] = std::array::from_fn(|place| {
                let random = (state >> (20 + 5 * place)) as usize;
                // Half of them zeros, so that there are runs.
                if random & 1 == 0 && turn % 3 > 0 {
                    0
                } else {
                    SEGMENTS[random / 2 % SEGMENTS.len()]
                }
            });
            let address = Ipv6Addr::from(segments);
            assert_eq!(
                shown(|line| line.address(address.into())),
                address.to_string()
            );
        }
    }

    #[test]
    fn nothing_is_lost_however_much_there_is() {
        let long = "x".repeat(3 * (GATHERED + PIECE));
        for count in [1, 1_000, 40_000] {
            let mut out = Vec::new();
            let mut gather = Gather::new(&mut out);
            for place in 0..count {
                put(&mut gather, |line| {
                    line.number(7);
                    line.short(&Short::new(&["key", "="]));
                    line.address([255; 4].into());
                    if place == count / 2 {
                        line.text(&long);
                    }
                });
            }
            gather.flush().expect("memory");
            let all = String::from_utf8(out).expect("text");
            assert_eq!(all.lines().count(), count);
            for (place, line) in all.lines().enumerate() {
                let rest = line.strip_prefix("7key=255.255.255.255").expect("whole");
                assert_eq!(rest, if place == count / 2 { &long } else { "" });
            }
        }
    }

    #[test]
    fn a_failure_is_told_once() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut gather = Gather::new(Full);
        put(&mut gather, |line| line.text("line"));
        assert_eq!(
            gather.flush().map_err(|error| error.kind()),
            Err(io::ErrorKind::StorageFull)
        );
        assert!(gather.flush().is_ok());
    }
}
