//! Lines in the making: what is put down is gathered and written in large pieces.
//!
//! A flood of connections is a flood of records; a formatter for each number would cost more than metering the frame did.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets from which on a line's end writes what has been gathered.
const GATHERED: usize = 1 << 16;
/// Room behind that for a line that is no longer than usual.
const ROOM: usize = 8 << 10;

/// All pairs of digits.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

/// Octets that are not longer than [`Self::MOST`], kept so that copying them needs no call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Short {
    octets: [u8; Self::MOST],
    length: u8,
}

impl Short {
    pub(crate) const MOST: usize = 48;

    /// `parts`, one after the other, at most [`Self::MOST`] octets of them.
    pub(crate) const fn new(parts: &[&str]) -> Self {
        let mut octets = [0; Self::MOST];
        let mut length = 0;
        let mut part = 0;
        while part < parts.len() {
            let text = parts[part].as_bytes();
            let mut at = 0;
            while at < text.len() {
                octets[length] = text[at];
                length += 1;
                at += 1;
            }
            part += 1;
        }
        Self {
            octets,
            length: length as u8,
        }
    }
}

/// A line in the making.
///
/// It lives where its writer does, so that how far it has come stays in a register from one value to the next.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    octets: &'a mut [u8],
    at: usize,
    /// It did not fit: what was put down is of no use.
    is_cut: bool,
}

impl Line<'_> {
    /// Room for `N` octets, of which the caller says how many stay; `None` when the line does not fit.
    #[inline(always)]
    fn room<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let room = self
            .octets
            .get_mut(self.at..)
            .and_then(|rest| rest.first_chunk_mut());
        if room.is_none() {
            self.is_cut = true;
        }
        room
    }

    /// One octet.
    #[inline(always)]
    pub(crate) fn octet(&mut self, octet: u8) {
        if let Some(room) = self.room() {
            *room = [octet];
            self.at += 1;
        }
    }

    /// A text known when this was built.
    #[inline(always)]
    pub(crate) fn short(&mut self, short: &Short) {
        if let Some(room) = self.room() {
            *room = short.octets;
            self.at += usize::from(short.length);
        }
    }

    /// A number, in decimal.
    #[inline(always)]
    pub(crate) fn number(&mut self, number: u64) {
        if number < 10 {
            self.octet(b'0' + number as u8);
        } else if let Some(room) = self.room() {
            self.at += decimal(room, number);
        }
    }

    /// An address, as RFC 5952 writes it.
    #[inline(always)]
    pub(crate) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                if let Some(room) = self.room() {
                    self.at += dotted(room, address);
                }
            }
            IpAddr::V6(address) => {
                if let Some(room) = self.room() {
                    self.at += colons(room, address);
                }
            }
        }
    }

    /// A text of any length, as it is.
    #[inline]
    pub(crate) fn text(&mut self, text: &str) {
        let end = self.at + text.len();
        match self.octets.get_mut(self.at..end) {
            Some(room) => {
                room.copy_from_slice(text.as_bytes());
                self.at = end;
            }
            None => self.is_cut = true,
        }
    }
}

/// Writes a number; gives its length.
#[inline]
fn decimal(room: &mut [u8; 20], number: u64) -> usize {
    const EIGHT: u64 = 100_000_000;
    if number < EIGHT {
        return up_to_eight(room, 0, number as u32);
    }
    // The lower digits do not wait for the higher ones.
    let (high, low) = (number / EIGHT, number % EIGHT);
    let length = if high < EIGHT {
        up_to_eight(room, 0, high as u32)
    } else {
        let length = up_to_eight(room, 0, (high / EIGHT) as u32);
        eight(room, length, (high % EIGHT) as u32);
        length + 8
    };
    eight(room, length, low as u32);
    length + 8
}

/// Writes eight digits from `at` on.
#[inline(always)]
fn eight(room: &mut [u8; 20], at: usize, number: u32) {
    let (high, low) = (number / 10_000, number % 10_000);
    for (place, pair) in [high / 100, high % 100, low / 100, low % 100]
        .into_iter()
        .enumerate()
    {
        room[at + 2 * place..at + 2 * place + 2].copy_from_slice(&PAIRS[pair as usize]);
    }
}

/// Writes up to eight digits from `at` on; gives how many.
#[inline(always)]
fn up_to_eight(room: &mut [u8; 20], at: usize, mut number: u32) -> usize {
    let digits = number.max(1).ilog10() as usize + 1;
    let mut end = digits;
    while end >= 2 {
        end -= 2;
        room[at + end..at + end + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    if end == 1 {
        room[at] = b'0' + number as u8;
    }
    digits
}

/// Each octet in decimal with a point behind it, and the length of that.
const POINTED: [([u8; 4], u8); 256] = {
    let mut all = [([0; 4], 0); 256];
    let mut octet = 0;
    while octet < all.len() {
        let [tens, ones] = PAIRS[octet % 100];
        all[octet] = match octet {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            _ => ([b'0' + (octet / 100) as u8, tens, ones, b'.'], 4),
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

/// Writes an IPv6 address; gives its length.
fn colons(room: &mut [u8; 48], address: Ipv6Addr) -> usize {
    let whole = room.len();
    let mut rest = &mut room[..];
    // 45 octets at most.
    drop(write!(rest, "{address}"));
    whole - rest.len()
}

/// Text on its way to `out`.
#[derive(Debug)]
pub(crate) struct Gather<W> {
    out: W,
    text: Vec<u8>,
    at: usize,
}

impl<W: Write> Gather<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            text: vec![0; GATHERED + ROOM],
            at: 0,
        }
    }

    /// Gathers a line, without its end, that `make` makes; it is asked again when the line was longer than there was room.
    #[inline]
    pub(crate) fn line(&mut self, make: impl Fn(&mut Line<'_>)) -> io::Result<()> {
        loop {
            let mut line = Line {
                octets: &mut self.text[self.at..],
                at: 0,
                is_cut: false,
            };
            make(&mut line);
            line.octet(b'\n');
            let Line { at, is_cut, .. } = line;
            if !is_cut {
                self.at += at;
                break;
            }
            self.make_room()?;
        }
        if self.at >= GATHERED {
            self.write()?;
        }
        Ok(())
    }

    #[cold]
    fn make_room(&mut self) -> io::Result<()> {
        if self.at == 0 {
            let twice = 2 * self.text.len();
            self.text.resize(twice, 0);
        }
        self.write()
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

    fn shown(put: impl Fn(&mut Line<'_>)) -> String {
        let mut out = Vec::new();
        let mut gather = Gather::new(&mut out);
        gather.line(put).expect("memory");
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
        ] {
            let parsed: IpAddr = address.parse().expect("an address");
            assert_eq!(shown(|line| line.address(parsed)), address);
        }
    }

    #[test]
    fn nothing_is_lost_however_much_there_is() {
        let long = "x".repeat(3 * (GATHERED + ROOM));
        for count in [1, 1_000, 40_000] {
            let mut out = Vec::new();
            let mut gather = Gather::new(&mut out);
            for place in 0..count {
                let made = gather.line(|line| {
                    line.number(7);
                    line.short(&Short::new(&["key", "="]));
                    line.address([255; 4].into());
                    if place == count / 2 {
                        line.text(&long);
                    }
                });
                made.expect("memory");
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
        gather.line(|line| line.text("line")).expect("gathered");
        assert_eq!(
            gather.flush().map_err(|error| error.kind()),
            Err(io::ErrorKind::StorageFull)
        );
        assert!(gather.flush().is_ok());
    }
}
