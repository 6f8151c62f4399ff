//! A capture with connections of every kind, whose numbers differ from each other.

use std::net::IpAddr;
use std::path::Path;

use nvcapture::{CaptureWriter, Frame, FrameMeta, InterfaceDescription, Timestamp};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let length = u16::try_from(payload.len()).expect("short");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 63]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("of two families"),
    }
    frame.extend(payload);
    frame
}

type End = (IpAddr, u16);

fn segment(from: End, to: End, seq: u32, ack: u32, bits: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.1.to_be_bytes());
    tcp.extend(to.1.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, bits, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    packet(from.0, to.0, 6, &tcp)
}

fn datagram(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(from.1.to_be_bytes());
    udp.extend(to.1.to_be_bytes());
    udp.extend(
        u16::try_from(8 + payload.len())
            .expect("short")
            .to_be_bytes(),
    );
    udp.extend([0, 0]);
    udp.extend(payload);
    packet(from.0, to.0, 17, &udp)
}

/// The frames of the connection of this number.
fn connection(number: u16) -> Vec<Vec<u8>> {
    let v6 = number % 3 == 1;
    let address = |host: u16| -> IpAddr {
        if v6 {
            [0xfd00, 0, 0, 0, 0, 0, 0, host].into()
        } else {
            let [high, low] = host.to_be_bytes();
            [10, 1, high, low].into()
        }
    };
    let client = (address(1 + number), 10_000_u16.wrapping_add(number));
    let server = (address(65_000 + number % 7), 80 + number % 5);
    let ask = vec![b'q'; usize::from(1 + number % 400)];
    let answer = vec![b'a'; 1 + usize::from(number) * 7 % 1_000];
    let (asked, answered) = (ask.len() as u32, answer.len() as u32);
    let up = |seq, ack, bits, payload: &[u8]| segment(client, server, seq, ack, bits, payload);
    let down = |seq, ack, bits, payload: &[u8]| segment(server, client, seq, ack, bits, payload);
    let mut frames = match number % 10 {
        // An echo request, mostly answered.
        0 => {
            let [high, low] = number.to_be_bytes();
            let (protocol, request, reply) = if v6 { (58, 128, 129) } else { (1, 8, 0) };
            let echo = |kind| [&[kind, 0, 0, 0, high, low, 0, 1][..], &ask].concat();
            vec![
                packet(client.0, server.0, protocol, &echo(request)),
                packet(server.0, client.0, protocol, &echo(reply)),
            ]
        }
        // A query, answered or not.
        1 => vec![datagram(client, server, &ask)],
        2 => vec![
            datagram(client, server, &ask),
            datagram(server, client, &answer),
        ],
        // Refused.
        3 => vec![up(7, 0, SYN, b""), down(0, 8, RST | ACK, b"")],
        // Open at the end.
        4 => vec![up(7, 0, SYN, b""), down(9, 8, SYN | ACK, b"")],
        _ => vec![
            up(7, 0, SYN, b""),
            down(9, 8, SYN | ACK, b""),
            up(8, 10, ACK, b""),
            up(8, 10, PSH | ACK, &ask),
            down(10, 8 + asked, PSH | ACK, &answer),
            down(10 + answered, 8 + asked, FIN | ACK, b""),
            up(8 + asked, 11 + answered, FIN | ACK, b""),
            down(11 + answered, 9 + asked, ACK, b""),
        ],
    };
    // A protocol without ports.
    if number % 50 == 20 {
        frames.truncate(1);
        frames[0] = packet(client.0, server.0, 47, &ask);
    }
    frames
}

/// Writes a capture of so many connections, a frame each 137 microseconds.
pub(crate) fn capture(path: &Path, connections: u16) {
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = CaptureWriter::new(std::io::BufWriter::new(file), "test").expect("written");
    let interface = writer
        .add_interface(&InterfaceDescription::default())
        .expect("written");
    let frames = (0..connections).flat_map(connection);
    for (frame, at) in frames.zip(0_u64..) {
        let time = Timestamp::from_nanos(1_700_000_000_000_000_000 + at * 137_000);
        let meta = FrameMeta::ethernet(time, u32::try_from(frame.len()).expect("short"));
        writer
            .write(interface, &Frame::new(&frame, meta))
            .expect("written");
    }
    let _ = writer.finish().expect("written");
}
