//! Frames for benchmarks: made by rule from a seed, so that every run measures the same.

use nvcapture::{Frame, FrameMeta, Timestamp};

/// A small generator of numbers (xorshift64*): the same for every run, and cheap beside what is measured.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next one below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next_u64()) * end as u128) >> 64) as usize
    }

    /// The next one from 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Which IP the frames carry, and in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IPv4 and TCP.
    V4,
    /// IPv6 and TCP.
    V6,
    /// An 802.1Q tag, IPv4 and TCP.
    Vlan,
}

impl Shape {
    const fn network(self) -> usize {
        if matches!(self, Self::Vlan) { 18 } else { 14 }
    }
}

/// What [`connection`]'s segment is like.
pub const ACK: u8 = 0x10;
/// A segment that begins a connection.
pub const SYN: u8 = 0x02;

/// Writes into `frame`, whose length is the frame's, a TCP segment of the connection number `number`; `back` is from its server.
pub fn connection(frame: &mut [u8], shape: Shape, number: u32, back: bool, control: u8) {
    frame.fill(0);
    let network = shape.network();
    let client = [10, (number >> 16) as u8, (number >> 8) as u8, number as u8];
    let server = [192, 168, (number % 7) as u8, (number % 251) as u8];
    let ports = [32_768 + (number % 28_000) as u16, 443];
    let (from, to, ports) = if back {
        (server, client, [ports[1], ports[0]])
    } else {
        (client, server, ports)
    };
    let transport = match shape {
        Shape::V4 | Shape::Vlan => {
            let octets = (frame.len() - network) as u16;
            let ip = &mut frame[network..];
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&octets.to_be_bytes());
            ip[8] = 64;
            ip[9] = 6;
            ip[12..16].copy_from_slice(&from);
            ip[16..20].copy_from_slice(&to);
            network + 20
        }
        Shape::V6 => {
            let octets = frame.len().saturating_sub(network + 40) as u16;
            let ip = &mut frame[network..];
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&octets.to_be_bytes());
            ip[6] = 6;
            ip[7] = 64;
            ip[8..10].copy_from_slice(&[0x20, 0x01]);
            ip[20..24].copy_from_slice(&from);
            ip[24..26].copy_from_slice(&[0x20, 0x01]);
            ip[36..40].copy_from_slice(&to);
            network + 40
        }
    };
    let ether_type: u16 = if shape == Shape::V6 { 0x86dd } else { 0x0800 };
    frame[network - 2..network].copy_from_slice(&ether_type.to_be_bytes());
    if shape == Shape::Vlan {
        frame[12..16].copy_from_slice(&[0x81, 0x00, 0, 7]);
    }
    let tcp = &mut frame[transport..];
    tcp[0..2].copy_from_slice(&ports[0].to_be_bytes());
    tcp[2..4].copy_from_slice(&ports[1].to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = control;
    tcp[14] = 0x10;
}

/// The shortest frame of a shape: what the headers need. It may be metered again and again; a segment with payload would be a retransmission then.
pub const fn shortest(shape: Shape) -> usize {
    match shape {
        Shape::V4 => 54,
        Shape::Vlan => 58,
        Shape::V6 => 74,
    }
}

/// Frames in memory, one after the other, as a capture file holds them.
#[derive(Clone, Debug)]
pub struct Traffic {
    octets: Vec<u8>,
    length: usize,
}

impl Traffic {
    /// `frames` frames of `length` octets; `which` gives connection number, direction and control bits of each.
    pub fn new(
        shape: Shape,
        length: usize,
        frames: usize,
        mut which: impl FnMut(usize) -> (u32, bool, u8),
    ) -> Self {
        let mut octets = vec![0; length * frames];
        for (place, frame) in octets.chunks_exact_mut(length).enumerate() {
            let (number, back, control) = which(place);
            connection(frame, shape, number, back, control);
        }
        Self { octets, length }
    }

    /// The same frames with this Ethernet source address.
    #[must_use]
    pub fn sent_from(mut self, address: [u8; 6]) -> Self {
        for frame in self.octets.chunks_exact_mut(self.length) {
            frame[6..12].copy_from_slice(&address);
        }
        self
    }

    /// The same frames, with `payload` at the end of each.
    #[must_use]
    pub fn saying(mut self, payload: &[u8]) -> Self {
        for frame in self.octets.chunks_exact_mut(self.length) {
            let begin = frame.len().saturating_sub(payload.len());
            let said = &payload[..frame.len() - begin];
            frame[begin..].copy_from_slice(said);
        }
        self
    }

    /// The same frames, each in a VXLAN packet between two hosts.
    #[must_use]
    pub fn in_vxlan(self) -> Self {
        const HEADERS: usize = 14 + 20 + 8 + 8;
        let mut head = [0; HEADERS];
        head[12..14].copy_from_slice(&[0x08, 0x00]);
        head[14] = 0x45;
        head[16..18].copy_from_slice(&((HEADERS - 14 + self.length) as u16).to_be_bytes());
        head[22..24].copy_from_slice(&[64, 17]);
        head[26..34].copy_from_slice(&[172, 16, 0, 1, 172, 16, 0, 2]);
        head[34..38].copy_from_slice(&[0xc0, 0x00, 0x12, 0xb5]);
        head[38..40].copy_from_slice(&((16 + self.length) as u16).to_be_bytes());
        head[42] = 0x08;
        head[48] = 7;
        let frames = self.octets.chunks_exact(self.length);
        Self {
            octets: frames
                .flat_map(|frame| head.iter().chain(frame).copied())
                .collect(),
            length: HEADERS + self.length,
        }
    }

    /// The frames, a microsecond apart, the first at `start`.
    pub fn frames(&self, start: Timestamp) -> impl Iterator<Item = Frame<'_>> {
        let length = self.length as u32;
        self.octets
            .chunks_exact(self.length)
            .enumerate()
            .map(move |(place, octets)| {
                let time = Timestamp::from_nanos(start.as_nanos() + place as u64 * 1_000);
                Frame::new(octets, FrameMeta::ethernet(time, length))
            })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.octets.len() / self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }
}

/// Picks connection numbers so that the n-th most frequent one comes with a frequency of 1/n (Zipf).
#[derive(Clone, Debug)]
pub struct Zipf {
    sums: Vec<f64>,
    /// Which connection has which rank: neighbours in rank are not neighbours in memory.
    numbers: Vec<u32>,
}

impl Zipf {
    /// Of `count` connections.
    pub fn new(count: usize, random: &mut Numbers) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        let mut numbers: Vec<u32> = (0..count as u32).collect();
        for place in (1..count).rev() {
            numbers.swap(place, random.below(place + 1));
        }
        Self { sums, numbers }
    }

    /// The next one.
    pub fn pick(&self, random: &mut Numbers) -> u32 {
        let most = self.sums.last().copied().unwrap_or(0.0);
        let at = random.fraction() * most;
        let rank = self
            .sums
            .partition_point(|&sum| sum < at)
            .min(self.numbers.len() - 1);
        self.numbers[rank]
    }
}
