//! Frames made for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nvcapture::{Frame, FrameMeta, Timestamp};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

pub(crate) type End = (IpAddr, u16);

pub(crate) fn v4(last: u8, port: u16) -> End {
    (Ipv4Addr::new(10, 0, 0, last).into(), port)
}

pub(crate) fn v6(last: u8, port: u16) -> End {
    (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        port,
    )
}

/// A frame and its time.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) octets: Vec<u8>,
    pub(crate) nanos: u64,
}

impl Made {
    pub(crate) fn frame(&self) -> Frame<'_> {
        let meta = FrameMeta::ethernet(Timestamp::from_nanos(self.nanos), self.octets.len() as u32);
        Frame::new(&self.octets, meta)
    }
}

/// A frame from `source` to `destination` at `millis`, of `protocol`, with `body` behind IP.
pub(crate) fn ip(
    millis: u64,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    body: &[u8],
) -> Made {
    let mut octets = vec![2; 12];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            octets.extend([0x08, 0x00, 0x45, 0]);
            octets.extend((20 + body.len() as u16).to_be_bytes());
            octets.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            octets.extend(source.octets());
            octets.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            octets.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            octets.extend((body.len() as u16).to_be_bytes());
            octets.extend([protocol, 64]);
            octets.extend(source.octets());
            octets.extend(destination.octets());
        }
        _ => panic!("ends of one family"),
    }
    octets.extend(body);
    Made {
        octets,
        nanos: millis * 1_000_000,
    }
}

pub(crate) fn udp(millis: u64, source: End, destination: End, payload: usize) -> Made {
    let mut body = Vec::new();
    body.extend(source.1.to_be_bytes());
    body.extend(destination.1.to_be_bytes());
    body.extend((8 + payload as u16).to_be_bytes());
    body.extend([0, 0]);
    body.resize(8 + payload, 0);
    ip(millis, source.0, destination.0, 17, &body)
}

/// A TCP segment: times in milliseconds, sequence and acknowledgment numbers.
pub(crate) fn tcp(
    millis: u64,
    ends: (End, End),
    control: u8,
    numbers: (u32, u32),
    payload: usize,
) -> Made {
    tcp_window(millis, ends, control, numbers, payload, 1000)
}

pub(crate) fn tcp_window(
    millis: u64,
    (source, destination): (End, End),
    control: u8,
    (sequence, acknowledgment): (u32, u32),
    payload: usize,
    window: u16,
) -> Made {
    let mut body = Vec::new();
    body.extend(source.1.to_be_bytes());
    body.extend(destination.1.to_be_bytes());
    body.extend(sequence.to_be_bytes());
    body.extend(acknowledgment.to_be_bytes());
    body.extend([0x50, control]);
    body.extend(window.to_be_bytes());
    body.extend([0; 4]);
    body.resize(20 + payload, 0);
    ip(millis, source.0, destination.0, 6, &body)
}

pub(crate) fn icmp(
    millis: u64,
    source: IpAddr,
    destination: IpAddr,
    icmp_type: u8,
    identifier: u16,
) -> Made {
    let mut body = vec![icmp_type, 0, 0, 0];
    body.extend(identifier.to_be_bytes());
    body.extend([0; 10]);
    ip(
        millis,
        source,
        destination,
        if source.is_ipv4() { 1 } else { 58 },
        &body,
    )
}
