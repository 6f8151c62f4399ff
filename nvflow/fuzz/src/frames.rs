//! Frames out of an input's octets: few addresses and ports, so that they meet; a writer of the same for seeds.

use nvcapture::{FrameMeta, LinkType, Timestamp};

use crate::Op;

/// What a frame's first octet chooses: in the lowest three bits what it is, above them how it comes.
pub mod kind {
    /// A UDP datagram.
    pub const UDP: u8 = 0;
    /// A TCP segment; 2 and 3 are too.
    pub const TCP: u8 = 1;
    /// An ICMP message.
    pub const ICMP: u8 = 4;
    /// Another protocol.
    pub const OTHER: u8 = 5;
    /// A fragment of a UDP datagram; the first when the sequence number is even.
    pub const FRAGMENT: u8 = 6;
    /// A TCP segment in VXLAN.
    pub const TUNNEL: u8 = 7;
    /// Over IPv6.
    pub const V6: u8 = 1 << 3;
    /// With a VLAN tag.
    pub const VLAN: u8 = 1 << 4;
    /// Cut by a snap length.
    pub const CUT: u8 = 1 << 5;
    /// With the marker as its source.
    pub const MARKED_SOURCE: u8 = 1 << 6;
    /// With the marker as its destination.
    pub const MARKED_DESTINATION: u8 = 1 << 7;
}

/// What the last octet of a frame chooses: how long after the frame before it comes. Unit: milliseconds.
const PAUSES: [i64; 16] = [
    0, 0, 1, 2, 10, 100, 500, 1_000, 4_000, 20_000, 70_000, 400_000, 2_000_000, -1, -500, -100_000,
];

const MARKER: [u8; 6] = [0x4e, 0x65, 0x75, 0x56, 0, 9];

/// Reads operations until the input ends.
pub(crate) struct Reader<'d> {
    rest: &'d [u8],
    millis: i64,
}

impl<'d> Reader<'d> {
    pub(crate) fn new(rest: &'d [u8]) -> Self {
        Self {
            rest,
            millis: 1_000_000,
        }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn pause(&mut self, pause: u8) -> Timestamp {
        self.millis = (self.millis + PAUSES[usize::from(pause % 16)]).max(0);
        Timestamp::from_nanos(self.millis.unsigned_abs() * 1_000_000)
    }
}

impl Iterator for Reader<'_> {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        let [op] = self.take()?;
        Some(match op % 8 {
            0..5 => {
                let [kind, ends, control, numbers, length, pause] = self.take()?;
                let time = self.pause(pause);
                let octets = made(kind, ends, control, numbers, length);
                let wire_len = octets.len();
                let mut octets = octets;
                if kind & kind::CUT != 0 {
                    octets.truncate(64);
                }
                Op::Frame(octets, FrameMeta::ethernet(time, wire_len as u32))
            }
            5 => {
                let [length, link_type, pause] = self.take()?;
                let (octets, rest) = self.rest.split_at(self.rest.len().min(length.into()));
                self.rest = rest;
                let time = self.pause(pause);
                let meta = FrameMeta {
                    link_type: LinkType([1, 101, 113, 0][usize::from(link_type % 4)]),
                    ..FrameMeta::ethernet(time, octets.len() as u32 + u32::from(link_type >> 4))
                };
                Op::Frame(octets.to_vec(), meta)
            }
            6 => {
                let [pause] = self.take()?;
                Op::Expire(self.pause(pause))
            }
            _ => Op::Look,
        })
    }
}

/// A packet of `protocol` between two of four hosts.
fn packet(v6: bool, ends: u8, protocol: u8, control: u8, body: &[u8]) -> Vec<u8> {
    let (source, destination) = (ends & 3, ends >> 2 & 3);
    let mut octets = Vec::with_capacity(60 + body.len());
    if v6 {
        octets.extend([0x60 | control & 0x0f, 0, 0, 0]);
        octets.extend((body.len() as u16).to_be_bytes());
        octets.extend([protocol, 60 + (control & 7)]);
        for host in [source, destination] {
            octets.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
    } else {
        octets.extend([0x45, control & 0xfc]);
        octets.extend((20 + body.len() as u16).to_be_bytes());
        octets.extend([0, ends, 0, 0, 60 + (control & 7), protocol, 0, 0]);
        octets.extend([10, 0, 0, source, 10, 0, 0, destination]);
    }
    octets.extend(body);
    octets
}

fn ports(ends: u8) -> [u8; 4] {
    [0, 80 + (ends >> 4 & 3), 0, 80 + (ends >> 6)]
}

fn segment(v6: bool, ends: u8, control: u8, numbers: u8, length: u8) -> Vec<u8> {
    let mut body = ports(ends).to_vec();
    body.extend([
        0,
        0,
        0,
        numbers & 0x0f,
        0,
        0,
        0,
        numbers >> 4,
        0x50,
        control,
    ]);
    body.extend(if length >= 200 { [0, 0] } else { [1, 0] });
    body.extend([0; 4]);
    body.resize(20 + usize::from(length % 8), 0);
    packet(v6, ends, 6, control, &body)
}

fn datagram(v6: bool, ends: u8, ports: [u8; 4], control: u8, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let body = [&ports[..], &length, &[0, 0], payload].concat();
    packet(v6, ends, 17, control, &body)
}

fn made(what: u8, ends: u8, control: u8, numbers: u8, length: u8) -> Vec<u8> {
    let v6 = what & kind::V6 != 0;
    let packet = match what & 7 {
        kind::UDP => datagram(v6, ends, ports(ends), control, &vec![0; length.into()]),
        kind::ICMP => {
            let icmp_type = [8, 0, 3, 128, 129, 13, 14, 11][usize::from(numbers & 7)];
            let message = [icmp_type, 0, 0, 0, 0, numbers >> 4, 0, 0];
            packet(v6, ends, if v6 { 58 } else { 1 }, control, &message)
        }
        kind::OTHER => packet(v6, ends, control, control, &vec![0; length.into()]),
        kind::FRAGMENT => {
            let is_later = numbers & 1;
            let mut octets = datagram(false, ends, ports(ends), control, &vec![0; length.into()]);
            octets[5] = numbers >> 1 & 3;
            octets[6] = 0x20 * (1 - is_later);
            octets[7] = is_later;
            if !v6 {
                octets
            } else {
                let head = [
                    17,
                    0,
                    0,
                    (is_later << 3) | (1 - is_later),
                    0,
                    0,
                    0,
                    numbers >> 1 & 3,
                ];
                packet(true, ends, 44, control, &[&head, &octets[20..]].concat())
            }
        }
        kind::TUNNEL => {
            let head = [8, 0, 0, 0, 0, 0, numbers >> 6, 0];
            let ether_type: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
            let inner = segment(v6, ends, control, numbers, length);
            let payload = [&head[..], &[4; 12], &ether_type, &inner].concat();
            datagram(!v6, ends.rotate_left(2), [0xc0, 0, 0x12, 0xb5], 0, &payload)
        }
        _ => segment(v6, ends, control, numbers, length),
    };
    let mut octets = Vec::with_capacity(18 + packet.len());
    for marked in [kind::MARKED_DESTINATION, kind::MARKED_SOURCE] {
        octets.extend(if what & marked != 0 {
            MARKER
        } else {
            [2, 0, 0, 0, 0, 1]
        });
    }
    if what & kind::VLAN != 0 {
        octets.extend([0x81, 0x00, 0, control & 1]);
    }
    octets.extend(if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    });
    octets.extend(packet);
    octets
}

/// Writes an input, for seeds.
#[derive(Clone, Debug)]
pub struct Script(pub Vec<u8>);

impl Script {
    /// An input for this configuration.
    pub fn new(config: [u8; 3]) -> Self {
        Self(config.to_vec())
    }

    /// A frame: its kind, both ends, control bits, sequence and acknowledgment number, payload, and the place of its pause.
    pub fn frame(
        mut self,
        kind: u8,
        ends: u8,
        control: u8,
        numbers: u8,
        length: u8,
        pause: u8,
    ) -> Self {
        self.0
            .extend([0, kind, ends, control, numbers, length, pause]);
        self
    }

    /// A frame as it is.
    pub fn raw(mut self, octets: &[u8]) -> Self {
        self.0.extend([5, octets.len() as u8, 0, 3]);
        self.0.extend(octets);
        self
    }

    /// Time passes.
    pub fn expire(mut self, pause: u8) -> Self {
        self.0.extend([6, pause]);
        self
    }

    /// A look at the open connections.
    pub fn look(mut self) -> Self {
        self.0.push(7);
        self
    }
}
