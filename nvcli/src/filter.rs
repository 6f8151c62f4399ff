//! Which records are shown, by protocol, port and address.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use nvflow::FlowRecord;

use crate::render::flows::protocol as protocol_name;

/// Records that are wanted: of any of the values of a flag, and of all flags given.
#[derive(Args, Debug, Default)]
pub(crate) struct Filter {
    /// Only connections of this protocol (tcp, udp, icmp, ... or a number); may be given again
    #[arg(long = "protocol", value_name = "PROTOCOL", value_parser = protocol)]
    protocols: Vec<u8>,
    /// Only connections from or to this port; may be given again
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<u16>,
    /// Only connections from or to this address or prefix, such as 10.0.0.0/8; may be given again
    #[arg(long = "host", value_name = "ADDRESS")]
    hosts: Vec<Prefix>,
}

impl Filter {
    /// Whether `record` is wanted.
    #[inline(always)]
    pub(crate) fn admits(&self, record: &FlowRecord) -> bool {
        // Nearly always, and so in line.
        let is_empty = self.protocols.is_empty() && self.ports.is_empty() && self.hosts.is_empty();
        is_empty || self.names(record)
    }

    /// Whether `record` is of what the flags name.
    fn names(&self, record: &FlowRecord) -> bool {
        let ends = [record.source, record.destination];
        let any =
            |ports: &[u16]| record.has_ports && ends.iter().any(|end| ports.contains(&end.port));
        (self.protocols.is_empty() || self.protocols.contains(&record.protocol_identifier))
            && (self.ports.is_empty() || any(&self.ports))
            && (self.hosts.is_empty()
                || self
                    .hosts
                    .iter()
                    .any(|prefix| ends.iter().any(|end| prefix.holds(end.address))))
    }
}

/// A protocol by its number, or by the name that tables show.
fn protocol(text: &str) -> Result<u8, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let wanted = text.to_ascii_lowercase();
    (0..=u8::MAX)
        .find(|number| protocol_name(*number) == wanted)
        .ok_or_else(|| {
            "a number up to 255 is needed, or a name such as tcp, udp, icmp, icmp6, sctp".into()
        })
}

/// An address and how many of its first bits count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    fn holds(self, address: IpAddr) -> bool {
        // A shift by all bits is none.
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.length))
                    .unwrap_or(0);
                (ours.to_bits() ^ other.to_bits()) & mask == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.length))
                    .unwrap_or(0);
                (ours.to_bits() ^ other.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Prefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str =
            "an address or a prefix is needed, such as 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32";
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| WRONG)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => whole,
            Some(length) => length.parse().map_err(|_| WRONG)?,
        };
        if length > whole {
            return Err(WRONG);
        }
        Ok(Self { address, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_what_begins_alike() {
        for (prefix, inside, outside) in [
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.0.0.77/31", "10.0.0.76", "10.0.0.78"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "ff02::1", "0.0.0.0"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::"),
        ] {
            let prefix: Prefix = prefix.parse().expect("a prefix");
            assert!(
                prefix.holds(inside.parse().expect("an address")),
                "{prefix:?}"
            );
            assert!(
                !prefix.holds(outside.parse().expect("an address")),
                "{prefix:?}"
            );
        }
        for text in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "web-1",
            "/8",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        for (text, number) in [
            ("tcp", 6),
            ("UDP", 17),
            ("icmp6", 58),
            ("250", 250),
            ("0", 0),
        ] {
            assert_eq!(protocol(text), Ok(number), "{text}");
        }
        for text in ["", "256", "-1", "http"] {
            assert!(protocol(text).is_err(), "{text}");
        }
    }
}
