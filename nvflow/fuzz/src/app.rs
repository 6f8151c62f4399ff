//! What connections speak, of any octets in any pieces.

use nvcapture::{Frame, FrameMeta, Timestamp};
use nvflow::{Application, FlowRecord, Identify, Meter, MeterConfig};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// An input is how it is sent, where it is cut, and what is sent.
///
/// In pieces, in any order, a stream says what it says as a whole; of datagrams and of two sides that answer each other it is only
/// asked that nothing breaks and that texts have an end.
pub fn app(data: &[u8]) {
    let Some((&[how, a, b, c], payload)) = data.split_first_chunk() else {
        return;
    };
    let payload = &payload[..payload.len().min(8_192)];
    let side = usize::from(how & 1);
    if how & 2 == 0 {
        let mut ends: Vec<usize> = [a, b, c]
            .iter()
            .map(|at| usize::from(*at) * payload.len() / 256)
            .collect();
        ends.extend([0, payload.len()]);
        ends.sort_unstable();
        ends.dedup();
        let mut pieces: Vec<(usize, usize)> = ends.windows(2).map(|two| (two[0], two[1])).collect();
        let turn = usize::from(how >> 4) % pieces.len().max(1);
        pieces.rotate_left(turn);
        if how & 8 != 0 {
            pieces.reverse();
        }
        let whole = metered(&stream(side, payload, &[(0, payload.len())]));
        let parts = metered(&stream(side, payload, &pieces));
        assert_eq!(parts, whole, "{pieces:?}");
        return;
    }
    // Both sides in turns, in parts as long as the first octets say.
    let (ports, protocol) = match how >> 2 & 3 {
        0 => ([40_000, 443], UDP),
        1 => ([5_353, 5_353], UDP),
        2 => ([40_000, 53], UDP),
        _ => ([40_000, 5_432], TCP),
    };
    let mut frames = Vec::new();
    let mut rest = payload;
    let mut numbers = [1_000_u32, 2_000];
    for turn in 0..24 {
        let side = (side + turn) % 2;
        let length = usize::from([a, b, c][turn % 3]) * if how & 0x10 == 0 { 1 } else { 8 };
        let (said, after) = rest.split_at(rest.len().min(length));
        rest = after;
        let mut frame = frame(protocol, ports, side, numbers[side], ACK, said);
        numbers[side] = numbers[side].wrapping_add(said.len() as u32);
        let length = frame.len();
        if how & 0x20 != 0 {
            frame.truncate(length - said.len() / 3);
        }
        frames.push((frame, length));
    }
    metered(&frames);
}

/// A handshake, then the pieces of what a side says.
fn stream(side: usize, payload: &[u8], pieces: &[(usize, usize)]) -> Vec<(Vec<u8>, usize)> {
    let ports = [40_000, 4_711];
    let first = u32::MAX - 1_000;
    let mut frames = vec![
        frame(TCP, ports, side, first.wrapping_sub(1), SYN, &[]),
        frame(TCP, ports, 1 - side, 77, SYN | ACK, &[]),
    ];
    for &(from, to) in pieces {
        let number = first.wrapping_add(from as u32);
        frames.push(frame(TCP, ports, side, number, ACK, &payload[from..to]));
    }
    frames
        .into_iter()
        .map(|frame| (frame.clone(), frame.len()))
        .collect()
}

fn frame(
    protocol: u8,
    ports: [u16; 2],
    side: usize,
    number: u32,
    control: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header = if protocol == TCP { 20 } else { 8 };
    let length = (20 + header + payload.len()) as u16;
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend([10, 0, 0, side as u8, 10, 0, 0, 1 - side as u8]);
    frame.extend(ports[side].to_be_bytes());
    frame.extend(ports[1 - side].to_be_bytes());
    if protocol == TCP {
        frame.extend(number.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0x50, control, 1, 0, 0, 0, 0, 0]);
    } else {
        frame.extend((length - 20).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(payload);
    frame
}

fn metered(frames: &[(Vec<u8>, usize)]) -> Option<Application> {
    let mut meter = Meter::new(MeterConfig {
        max_connections: 4,
        identify: Some(Identify::default()),
        hash_key: Some([1, 2]),
        ..MeterConfig::default()
    })
    .expect("a small table");
    let mut records: Vec<FlowRecord> = Vec::new();
    let frames = frames.iter().enumerate().map(|(at, (octets, length))| {
        let time = Timestamp::from_nanos((1_000_000 + at as u64) * 1_000);
        Frame::new(octets, FrameMeta::ethernet(time, *length as u32))
    });
    let Ok(_) = meter.observe(frames, &mut records);
    let Ok(_) = meter.finish(&mut records);
    assert!(meter.stats().is_balanced());
    for record in &records {
        record.fields(|field, value| {
            if let nvflow::Value::Text(text) = value {
                // A name of DNS takes four characters for an octet at most.
                assert!(text.len() <= 1_024, "{field:?} {text:?}");
            }
        });
    }
    records
        .pop()?
        .application
        .map(|application| (*application).clone())
}
