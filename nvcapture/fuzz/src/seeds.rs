//! Inputs to start from, made here: frames of every kind that is read, and files that hold them.

use etherparse::{IpNumber, PacketBuilder, VlanId};
use nvcapture::{CaptureWriter, Frame, FrameMeta, InterfaceDescription, PacketType, SourceStats};
use nvcapture::{LinkType, Timestamp};

use crate::LINK_TYPES;

/// A frame and what its first octets are.
pub struct Seed {
    /// Which kind.
    pub link_type: LinkType,
    /// The frame.
    pub octets: Vec<u8>,
}

fn seed(link_type: LinkType, parts: &[&[u8]]) -> Seed {
    Seed {
        link_type,
        octets: parts.concat(),
    }
}

/// An IP packet of `protocol`; TCP, UDP and ICMP with a header.
fn packet(v6: bool, protocol: u8, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    macro_rules! finish {
        ($ip:expr) => {
            match protocol {
                6 => $ip
                    .tcp(ports.0, ports.1, 7, 512)
                    .ack(9)
                    .write(&mut octets, payload),
                17 => $ip.udp(ports.0, ports.1).write(&mut octets, payload),
                1 => $ip
                    .icmpv4_echo_request(ports.0, 1)
                    .write(&mut octets, payload),
                58 => $ip
                    .icmpv6_echo_request(ports.0, 1)
                    .write(&mut octets, payload),
                other => $ip.write(&mut octets, IpNumber(other), payload),
            }
        };
    }
    let written = if v6 {
        finish!(PacketBuilder::ipv6([1; 16], [9; 16], 64))
    } else {
        finish!(PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64))
    };
    written.expect("to memory");
    octets
}

const ETHERNET_V4: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];

/// Frames of every kind that is read.
pub fn frames() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let tcp = packet(false, 6, (40_000, 80), b"GET /");
    let tcp6 = packet(true, 6, (40_000, 443), b"hello");
    let addresses = &ETHERNET_V4[..12];
    for v6 in [false, true] {
        for protocol in [6, 17, if v6 { 58 } else { 1 }, 132] {
            let ether_type: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
            let packet = packet(v6, protocol, (53, 9_000), b"0123456789");
            seeds.push(seed(LinkType::ETHERNET, &[addresses, &ether_type, &packet]));
            seeds.push(seed(
                LinkType::ETHERNET,
                &[addresses, &[0x81, 0, 0, 7], &ether_type, &packet],
            ));
            seeds.push(seed(LinkType::RAW, &[&packet]));
        }
    }
    let id = VlanId::try_new(5).expect("12 bits");
    let mut double = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .double_vlan(id, id)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 2)
        .write(&mut double, b"x")
        .expect("to memory");
    seeds.push(seed(LinkType::ETHERNET, &[&double]));
    // Options, fragments, lengths of super-frames, extension headers.
    let mut options = packet(false, 17, (1, 2), b"options");
    options[0] = 0x46;
    options.splice(20..20, [1, 1, 1, 0]);
    let mut fragment = packet(false, 17, (1, 2), b"fragment");
    fragment[6] = 0x20;
    let mut later = fragment.clone();
    later[7] = 0x10;
    let mut super_frame = tcp.clone();
    super_frame[2..4].fill(0);
    for packet in [&options, &fragment, &later, &super_frame] {
        seeds.push(seed(LinkType::ETHERNET, &[&ETHERNET_V4, packet]));
    }
    let udp = &packet(false, 17, (1, 2), b"behind")[20..];
    for chain in [&[0_u8, 60, 43, 51][..], &[44], &[0, 44], &[139, 140]] {
        let mut extended = packet(true, 17, (1, 2), b"")[..40].to_vec();
        extended[6] = chain[0];
        for next in chain[1..].iter().chain(&[17]) {
            extended.extend([*next, 0, 0, 1, 0, 0, 0, 9]);
        }
        extended.extend(udp);
        let length = (extended.len() - 40) as u16;
        extended[4..6].copy_from_slice(&length.to_be_bytes());
        seeds.push(seed(
            LinkType::ETHERNET,
            &[addresses, &[0x86, 0xdd], &extended],
        ));
    }
    // Behind other link headers.
    let mpls = [0x88, 0x47, 0, 1, 0, 64, 0, 2, 1, 64];
    let pppoe = [
        0x88,
        0x64,
        0x11,
        0,
        0,
        1,
        0,
        tcp.len() as u8 + 2,
        0x00,
        0x21,
    ];
    let snap = [0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0x00];
    let vn_tag = [0x89, 0x26, 1, 2, 3, 4, 0x08, 0x00];
    let pbb = [&[0x88, 0xe7, 0, 0, 0, 1][..], &ETHERNET_V4].concat();
    for link in [&mpls[..], &pppoe, &snap, &vn_tag, &pbb] {
        seeds.push(seed(LinkType::ETHERNET, &[addresses, link, &tcp]));
    }
    let mut sll = [0; 16];
    sll[14] = 0x08;
    let mut sll2 = [0; 20];
    sll2[0] = 0x08;
    for (link_type, head, packet) in [
        (LinkType::LINUX_SLL, &sll[..], &tcp),
        (LinkType::LINUX_SLL2, &sll2, &tcp),
        (LinkType::NULL, &[2, 0, 0, 0], &tcp),
        (LinkType::LOOP, &[0, 0, 0, 24], &tcp6),
        (LinkType::PPP, &[0xff, 3, 0, 0x21], &tcp),
        (LinkType::C_HDLC, &[0x0f, 0, 0x08, 0], &tcp),
        (LinkType::PPP_ETHER, &pppoe[2..], &tcp),
        (LinkType::IPV4, &[], &tcp),
        (LinkType::IPV6, &[], &tcp6),
    ] {
        seeds.push(seed(link_type, &[head, packet]));
    }
    // Tunnels.
    let ethernet_tcp = [&ETHERNET_V4[..], &tcp].concat();
    let over_udp = |port: u16, head: &[u8], inner: &[u8]| {
        packet(false, 17, (50_000, port), &[head, inner].concat())
    };
    let over_ip = |protocol: u8, head: &[u8], inner: &[u8]| {
        packet(false, protocol, (0, 0), &[head, inner].concat())
    };
    let gtp_length = (tcp.len() as u16).to_be_bytes();
    let gtp = [0x30, 0xff, gtp_length[0], gtp_length[1], 0, 0, 0, 5];
    let nested = over_udp(4789, &[8, 0, 0, 0, 0, 0, 9, 0], &ethernet_tcp);
    for tunnel in [
        nested.clone(),
        over_udp(4790, &[0x0c, 0, 0, 1, 0, 0, 9, 0], &tcp),
        over_udp(8472, &[8, 0, 0, 0, 0, 0, 9, 0], &ethernet_tcp),
        over_udp(6081, &[0, 0, 0x65, 0x58, 0, 0, 1, 0], &ethernet_tcp),
        over_udp(2152, &gtp, &tcp),
        over_udp(3544, &[], &tcp6),
        over_ip(4, &[], &tcp),
        over_ip(41, &[], &tcp6),
        over_ip(4, &[], &nested),
        over_ip(47, &[0, 0, 0x08, 0], &tcp),
        over_ip(
            47,
            &[0xb0, 0, 0x65, 0x58, 1, 1, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1],
            &ethernet_tcp,
        ),
        over_ip(
            47,
            &[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &ethernet_tcp,
        ),
        over_ip(
            47,
            &[
                0x30, 0x81, 0x88, 0x0b, 0, 9, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0xff, 3, 0, 0x21,
            ],
            &tcp,
        ),
    ] {
        seeds.push(seed(LinkType::ETHERNET, &[&ETHERNET_V4, &tunnel]));
    }
    let arp = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    seeds.push(seed(LinkType::ETHERNET, &[addresses, &arp]));
    seeds
}

/// Inputs of the target `wire`.
pub fn wire_inputs() -> Vec<Vec<u8>> {
    frames()
        .iter()
        .enumerate()
        .map(|(number, seed)| {
            let kind = LINK_TYPES
                .iter()
                .position(|link_type| *link_type == seed.link_type)
                .expect("a link type that is read");
            // Some cut, at different places.
            let head = [kind as u8, (number % 3) as u8 * 50, (number * 7) as u8];
            [&head[..], &seed.octets].concat()
        })
        .collect()
}

/// pcap files: each kind of head, with a few frames.
pub fn pcap_files() -> Vec<Vec<u8>> {
    let frames = frames();
    let mut files = Vec::new();
    for (number, magic) in crate::file::MAGICS.iter().enumerate() {
        let is_big = magic[0] == 0xa1;
        let word = |file: &mut Vec<u8>, word: u32| {
            file.extend(if is_big {
                word.to_be_bytes()
            } else {
                word.to_le_bytes()
            });
        };
        let longer_heads = magic.contains(&0x34);
        for (link_type, minor) in [(1_u32, 4_u32), (101, 4), (1, 3), (1, 2), (0x4400_0001, 4)] {
            let mut file = magic.to_vec();
            word(
                &mut file,
                if is_big {
                    2 << 16 | minor
                } else {
                    minor << 16 | 2
                },
            );
            for value in [0, 0, 65_535, link_type] {
                word(&mut file, value);
            }
            for (second, seed) in frames.iter().skip(number * 3).take(3).enumerate() {
                let kept = seed.octets.len() as u32;
                let lengths = if minor < 3 {
                    [kept + 9, kept]
                } else {
                    [kept, kept + 9]
                };
                for value in [second as u32, 999, lengths[0], lengths[1]] {
                    word(&mut file, value);
                }
                if longer_heads {
                    file.extend([0; 8]);
                }
                file.extend(&seed.octets);
            }
            files.push(file);
        }
    }
    files
}

/// pcapng files: several interfaces and statistics from our own writer, in little-endian; and all other blocks, in both orders.
pub fn pcapng_files() -> Vec<Vec<u8>> {
    let frames = frames();
    let mut files = Vec::new();
    for (number, part) in frames.chunks(8).enumerate() {
        let mut writer = CaptureWriter::new(Vec::new(), "seeds").expect("a short name");
        for (second, seed) in part.iter().enumerate() {
            let interface = writer
                .add_interface(&InterfaceDescription {
                    name: Some(format!("eth{second}")),
                    link_type: seed.link_type,
                    snaplen: 40 * (number as u32 % 3),
                    ..InterfaceDescription::default()
                })
                .expect("to memory");
            let mut meta = FrameMeta::ethernet(
                Timestamp::from_nanos(second as u64 * 1_000_000_007),
                seed.octets.len() as u32 + 3,
            );
            meta.packet_type = (second % 2 == 0).then_some(PacketType::Broadcast);
            writer
                .write(interface, &Frame::new(&seed.octets, meta))
                .expect("to memory");
            writer
                .write_statistics(interface, meta.timestamp, &SourceStats::default())
                .expect("to memory");
        }
        files.push(writer.finish().expect("to memory"));
    }
    for is_big in [false, true] {
        let n16 = |n: u16| {
            if is_big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let n32 = |n: u32| {
            if is_big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let n64 = |n: u64| {
            if is_big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let block = |kind: u32, body: &[u8]| {
            let body = [body, &[0; 3][..body.len().next_multiple_of(4) - body.len()]].concat();
            let length = n32(body.len() as u32 + 12);
            [&n32(kind)[..], &length, &body, &length].concat()
        };
        let section = block(
            0x0a0d_0d0a,
            &[&n32(0x1a2b_3c4d)[..], &n16(1), &n16(0), &n64(u64::MAX)].concat(),
        );
        // Clocks: microseconds, 2^-10 s, picoseconds; with an offset and an FCS of 4 octets.
        let mut file = section.clone();
        for resolution in [6, 0x8a, 12] {
            let options = [
                &n16(9)[..],
                &n16(1),
                &[resolution, 0, 0, 0],
                &n16(13),
                &n16(1),
                &[4, 0, 0, 0],
                &n16(14),
                &n16(8),
                &n64(1_000),
                &n16(0),
                &n16(0),
            ];
            file.extend(block(
                1,
                &[&n16(1)[..], &n16(0), &n32(0), &options.concat()].concat(),
            ));
        }
        let frame = &frames[0].octets;
        let length = n32(frame.len() as u32);
        for interface in 0..3 {
            let time = [&n32(1)[..], &n32(5)].concat();
            file.extend(block(
                6,
                &[&n32(interface)[..], &time, &length, &length, frame].concat(),
            ));
            let head = [&n16(interface as u16)[..], &n16(0), &time, &length, &length];
            file.extend(block(2, &[&head.concat(), &frame[..]].concat()));
        }
        file.extend(block(3, &[&length[..], frame].concat()));
        file.extend(block(4, &[0; 8])); // names, which are passed over
        let drops = [&n16(5)[..], &n16(8), &n64(3), &n16(0), &n16(0)].concat();
        file.extend(block(5, &[&n32(0)[..], &n64(0), &drops].concat()));
        files.push(file.clone());
        file.extend(&section);
        files.push(file);
    }
    files
}
