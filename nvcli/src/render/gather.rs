//! Lines in the making: what is put down is gathered and written in large pieces.
//!
//! A flood of connections is a flood of records; a formatter for each number would cost more than metering the frame did.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

/// Octets from which on a line's end writes what has been gathered.
const GATHERED: usize = 1 << 16;
/// Room behind that for the end of a line; texts see to it themselves.
const ROOM: usize = 8 << 10;
/// Room kept for what is put down without looking: numbers, addresses, keys.
const SMALL: usize = 64;

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

/// Text on its way to `out`.
#[derive(Debug)]
pub(crate) struct Gather<W> {
    out: W,
    text: Box<[u8]>,
    at: usize,
    failed: io::Result<()>,
}

impl<W: Write> Gather<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            text: vec![0; GATHERED + ROOM].into_boxed_slice(),
            at: 0,
            failed: Ok(()),
        }
    }

    /// Room for `N` octets; the caller says how many of them stay.
    #[inline(always)]
    fn room<const N: usize>(&mut self) -> &mut [u8; N] {
        if self.at + SMALL > self.text.len() {
            self.empty();
        }
        let room = self.text[self.at..].first_chunk_mut();
        room.expect("at least SMALL octets are there")
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
        *self.room() = short.octets;
        self.at += usize::from(short.length);
    }

    /// A number, in decimal.
    #[inline(always)]
    pub(crate) fn number(&mut self, number: u64) {
        match number {
            0..10 => self.octet(b'0' + number as u8),
            10..100 => {
                *self.room() = PAIRS[number as usize];
                self.at += 2;
            }
            _ => self.long_number(number),
        }
    }

    #[inline(never)]
    fn long_number(&mut self, mut number: u64) {
        let digits = number.ilog10() as usize + 1;
        let room = self.room::<20>();
        let mut end = digits;
        while end >= 2 {
            end -= 2;
            let pair = PAIRS[(number % 100) as usize];
            number /= 100;
            room[end..end + 2].copy_from_slice(&pair);
        }
        if end == 1 {
            room[0] = b'0' + number as u8;
        }
        self.at += digits;
    }

    /// An address, as RFC 5952 writes it.
    #[inline]
    pub(crate) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.ipv4(address),
            // Writing to memory that is long enough does not fail: 39 octets at most.
            IpAddr::V6(address) => {
                let mut rest = &mut self.room::<SMALL>()[..];
                drop(write!(rest, "{address}"));
                let left = rest.len();
                self.at += SMALL - left;
            }
        }
    }

    fn ipv4(&mut self, address: Ipv4Addr) {
        let room = self.room::<16>();
        let mut at = 0;
        for octet in address.octets() {
            let [tens, ones] = PAIRS[usize::from(octet % 100)];
            if octet >= 100 {
                room[at..at + 4].copy_from_slice(&[b'0' + octet / 100, tens, ones, b'.']);
                at += 4;
            } else if octet >= 10 {
                room[at..at + 3].copy_from_slice(&[tens, ones, b'.']);
                at += 3;
            } else {
                room[at..at + 2].copy_from_slice(&[ones, b'.']);
                at += 2;
            }
        }
        self.at += at - 1;
    }

    /// A text of any length, as it is.
    pub(crate) fn text(&mut self, text: &str) {
        if self.at + text.len() + SMALL > self.text.len() {
            self.empty();
        }
        match self.text.get_mut(self.at..self.at + text.len()) {
            Some(room) => {
                room.copy_from_slice(text.as_bytes());
                self.at += text.len();
            }
            None => self.write(text.as_bytes()),
        }
    }

    /// Ends a line; what has been gathered is written when it is worth it.
    ///
    /// Tells of any failure since the last line.
    #[inline]
    pub(crate) fn end_line(&mut self) -> io::Result<()> {
        self.octet(b'\n');
        if self.at >= GATHERED {
            self.empty();
        }
        self.outcome()
    }

    /// Writes all that has been gathered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.empty();
        self.outcome()?;
        self.out.flush()
    }

    #[inline]
    fn outcome(&mut self) -> io::Result<()> {
        if self.failed.is_err() {
            return std::mem::replace(&mut self.failed, Ok(()));
        }
        Ok(())
    }

    #[cold]
    fn empty(&mut self) {
        let gathered = self.at;
        // What could not be written once is not tried again.
        self.at = 0;
        if self.failed.is_ok() {
            self.failed = self.out.write_all(&self.text[..gathered]);
        }
    }

    #[cold]
    fn write(&mut self, octets: &[u8]) {
        if self.failed.is_ok() {
            self.failed = self.out.write_all(octets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(put: impl Fn(&mut Gather<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        let mut gather = Gather::new(&mut out);
        put(&mut gather);
        gather.flush().expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn numbers_are_as_the_standard_library_writes_them() {
        let mut number = 0_u64;
        let mut numbers = vec![u64::MAX, 0, 9, 10, 99, 100, 999, 1_000, 12_345];
        for digit in (1..20).map(|n| n % 10) {
            number = number * 10 + digit;
            numbers.extend([number, number - 1, 10_u64.pow(digit as u32 + 9)]);
        }
        for number in numbers {
            assert_eq!(shown(|gather| gather.number(number)), number.to_string());
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
            assert_eq!(shown(|gather| gather.address(parsed)), address);
        }
    }

    #[test]
    fn nothing_is_lost_however_much_there_is() {
        let long = "x".repeat(3 * (GATHERED + ROOM));
        for count in [1, 1_000, 40_000] {
            let expected = format!("7key=255.255.255.255{long}\n").len() + 21 * (count - 1);
            let put = |gather: &mut Gather<&mut Vec<u8>>| {
                for place in 0..count {
                    gather.number(7);
                    gather.short(&Short::new(&["key", "="]));
                    gather.address([255; 4].into());
                    if place == count / 2 {
                        gather.text(&long);
                    }
                    gather.end_line().expect("memory");
                }
            };
            let all = shown(put);
            assert_eq!(all.len(), expected);
            assert_eq!(all.lines().count(), count);
            assert!(
                all.lines()
                    .all(|line| line.starts_with("7key=255.255.255.255"))
            );
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
        gather.text("line");
        assert_eq!(
            gather.flush().map_err(|error| error.kind()),
            Err(io::ErrorKind::StorageFull)
        );
        assert!(gather.flush().is_ok());
    }
}
