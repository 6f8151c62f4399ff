//! Writes synthetic captures for whole-process measurements: `nv-trace KIND FRAMES CONNECTIONS FILE`.
//!
//! Frames are cut to 86 octets, as by a snap length; times are 1 µs apart from 2026-01-01 on. The same arguments give the same file.

use std::io::{self, BufWriter, Write};

use nv_benches::{Numbers, Zipf};

/// Octets kept of each frame: Ethernet, IPv4, TCP with timestamps and 20 octets of payload, or IPv6 and TCP with timestamps.
const KEPT: usize = 86;
/// 2026-01-01T00:00:00Z. Unit: seconds.
const START: u64 = 1_767_225_600;
const USAGE: &str = "usage: nv-trace KIND FRAMES CONNECTIONS FILE

KIND     what the frames are of
uniform  connections that are all open, each frame of any of them (IPv4)
zipf     the same, the n-th most frequent one with a frequency of 1/n
ipv6     as uniform, over IPv6
short    connections of 8 packets from SYN to the last ACK, CONNECTIONS of them at once
syn      a SYN of a new connection each; CONNECTIONS is not used
FILE     where the pcap file is written; - for standard output";

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Uniform,
    Zipf,
    Ipv6,
    Short,
    Syn,
}

/// A connection on its way: which one it is, how far it is, and both sides' sequence numbers.
#[derive(Clone, Copy)]
struct Connection {
    number: u32,
    step: u8,
    sequence: [u32; 2],
}

impl Connection {
    fn new(number: u32) -> Self {
        let hash = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            number,
            step: 0,
            sequence: [hash as u32, (hash >> 32) as u32],
        }
    }

    /// Control bits and payload octets of the next segment of `side`, 0 being the client.
    fn segment(&mut self, frame: &mut Frame, side: usize, control: u8, payload: u16) {
        frame.segment(
            self.number,
            side == 1,
            control,
            [self.sequence[side], self.sequence[1 - side]],
            payload,
        );
        let octets = u32::from(payload) + u32::from(control & (SYN | FIN) != 0);
        self.sequence[side] = self.sequence[side].wrapping_add(octets);
    }
}

/// One frame in the making.
struct Frame {
    octets: [u8; KEPT],
    wire_len: u32,
    v6: bool,
}

impl Frame {
    fn new(v6: bool) -> Self {
        let mut octets = [0; KEPT];
        octets[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        if v6 {
            octets[12..14].copy_from_slice(&[0x86, 0xdd]);
            octets[14] = 0x60;
            octets[20..22].copy_from_slice(&[6, 64]);
        } else {
            octets[12..14].copy_from_slice(&[0x08, 0x00]);
            octets[14] = 0x45;
            octets[20] = 0x40; // don't fragment
            octets[22..24].copy_from_slice(&[64, 6]);
        }
        let tcp = if v6 { 54 } else { 34 };
        octets[tcp + 12] = 0x80;
        octets[tcp + 14..tcp + 16].copy_from_slice(&[0x72, 0x10]);
        // NOP, NOP, timestamps.
        octets[tcp + 20..tcp + 24].copy_from_slice(&[1, 1, 8, 10]);
        Self {
            octets,
            wire_len: 0,
            v6,
        }
    }

    fn segment(&mut self, number: u32, back: bool, control: u8, numbers: [u32; 2], payload: u16) {
        let bits = number.to_be_bytes();
        let client = [10, bits[1], bits[2], bits[3]];
        let server = [192, 168, (number % 7) as u8, (number % 251) as u8];
        let ports = [
            32_768 + (number % 28_000) as u16 + u16::from(bits[0]) * 100,
            443,
        ];
        let (from, to, ports) = if back {
            (server, client, [ports[1], ports[0]])
        } else {
            (client, server, ports)
        };
        let tcp = if self.v6 {
            self.octets[18..20].copy_from_slice(&(32 + payload).to_be_bytes());
            for (at, address) in [(22, from), (38, to)] {
                self.octets[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
                self.octets[at + 12..at + 16].copy_from_slice(&address);
            }
            54
        } else {
            self.octets[16..18].copy_from_slice(&(52 + payload).to_be_bytes());
            self.octets[26..30].copy_from_slice(&from);
            self.octets[30..34].copy_from_slice(&to);
            34
        };
        let out = &mut self.octets[tcp..];
        out[0..2].copy_from_slice(&ports[0].to_be_bytes());
        out[2..4].copy_from_slice(&ports[1].to_be_bytes());
        out[4..8].copy_from_slice(&numbers[0].to_be_bytes());
        let acknowledgment = if control & ACK == 0 { 0 } else { numbers[1] };
        out[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
        out[13] = control;
        self.wire_len = (tcp + 32) as u32 + u32::from(payload);
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match &arguments[..] {
        [kind, frames, connections, file] => parse(kind, frames, connections)
            .map(|(kind, frames, connections)| (kind, frames, connections, file)),
        _ => None,
    };
    let Some((kind, frames, connections, file)) = parsed else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let out: Box<dyn Write> = if file == "-" {
        Box::new(io::stdout())
    } else {
        Box::new(std::fs::File::create(file)?)
    };
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
    out.write_all(&[2, 0, 4, 0])?;
    out.write_all(&[0; 8])?;
    out.write_all(&(KEPT as u32).to_le_bytes())?;
    out.write_all(&1_u32.to_le_bytes())?;
    write(&mut out, kind, frames, connections)?;
    out.flush()
}

fn parse(kind: &str, frames: &str, connections: &str) -> Option<(Kind, u64, usize)> {
    let kind = match kind {
        "uniform" => Kind::Uniform,
        "zipf" => Kind::Zipf,
        "ipv6" => Kind::Ipv6,
        "short" => Kind::Short,
        "syn" => Kind::Syn,
        _ => return None,
    };
    let connections = connections.parse().ok().filter(|count| *count > 0)?;
    Some((kind, frames.parse().ok()?, connections))
}

fn write(out: &mut impl Write, kind: Kind, frames: u64, connections: usize) -> io::Result<()> {
    let mut random = Numbers::new(1);
    let zipf = (kind == Kind::Zipf).then(|| Zipf::new(connections, &mut random));
    let mut open: Vec<Connection> = (0..connections as u32).map(Connection::new).collect();
    let mut next = connections as u32;
    let mut frame = Frame::new(kind == Kind::Ipv6);
    for place in 0..frames {
        match kind {
            Kind::Syn => Connection::new(place as u32).segment(&mut frame, 0, SYN, 0),
            Kind::Short => {
                let connection = &mut open[random.below(connections)];
                // A request and its answer, between handshake and end.
                const LIFE: [(usize, u8, u16); 8] = [
                    (0, SYN, 0),
                    (1, SYN | ACK, 0),
                    (0, ACK, 0),
                    (0, ACK | PSH, 310),
                    (1, ACK | PSH, 1_200),
                    (0, ACK | FIN, 0),
                    (1, ACK | FIN, 0),
                    (0, ACK, 0),
                ];
                let (side, control, payload) = LIFE[usize::from(connection.step)];
                connection.segment(&mut frame, side, control, payload);
                connection.step += 1;
                if usize::from(connection.step) == LIFE.len() {
                    *connection = Connection::new(next);
                    next += 1;
                }
            }
            Kind::Uniform | Kind::Zipf | Kind::Ipv6 => {
                let which = match &zipf {
                    Some(zipf) => zipf.pick(&mut random) as usize,
                    None => random.below(connections),
                };
                let bits = random.next_u64();
                // Two thirds data, a third acknowledgments, as of downloads.
                let (side, payload) = match bits % 3 {
                    0 => (0, 0),
                    1 => (0, 90 + (bits >> 32) as u16 % 200),
                    _ => (1, 1_000 + (bits >> 32) as u16 % 400),
                };
                open[which].segment(&mut frame, side, ACK, payload);
            }
        }
        let mut head = [0; 16];
        head[0..4].copy_from_slice(&((START + place / 1_000_000) as u32).to_le_bytes());
        head[4..8].copy_from_slice(&((place % 1_000_000) as u32).to_le_bytes());
        head[8..12].copy_from_slice(&(KEPT as u32).to_le_bytes());
        head[12..16].copy_from_slice(&frame.wire_len.max(KEPT as u32).to_le_bytes());
        out.write_all(&head)?;
        out.write_all(&frame.octets)?;
    }
    Ok(())
}
