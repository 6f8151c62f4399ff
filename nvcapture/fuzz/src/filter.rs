//! An expression compiles or is refused with a place inside it; its program says the same with the optimiser off and on.

use nvcapture::filter::{Filter, Place, Program};
use nvcapture::{BpfInsn, Frame, FrameMeta, LinkType, PacketType, Timestamp, VlanTag};

const LINK_TYPES: [LinkType; 8] = [
    LinkType::ETHERNET,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType::RAW,
    LinkType::NULL,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::PPP,
];

/// Two octets that choose, the expression up to a line feed, then a frame; with the first bit set, instructions instead of
/// the expression.
pub fn filter(data: &[u8]) {
    let Some((&[how, more], rest)) = data.split_first_chunk() else {
        return;
    };
    let end = rest.iter().position(|octet| *octet == b'\n');
    let (first, octets) = match end {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, rest),
    };
    let meta = FrameMeta {
        vlan: (more & 1 == 1).then_some(VlanTag {
            tpid: 0x8100,
            tci: more.into(),
        }),
        packet_type: (more & 2 == 2).then_some(PacketType::Outgoing),
        ..FrameMeta::ethernet(Timestamp::ZERO, octets.len() as u32)
    };
    let frame = Frame::new(octets, meta);
    if how & 1 == 1 {
        let insns = first.chunks_exact(8).map(|insn| BpfInsn {
            code: u16::from_le_bytes([insn[0], insn[1]]),
            jt: insn[2],
            jf: insn[3],
            k: u32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]),
        });
        if let Ok(program) = Program::new(insns.collect()) {
            let _ = program.run(&frame);
        }
        return;
    }
    let text = String::from_utf8_lossy(first);
    let filter = Filter::new(LINK_TYPES[usize::from(how >> 1) % LINK_TYPES.len()], 99).at(
        match how >> 4 & 3 {
            0 => Place::Interface,
            1 => Place::Marked,
            _ => Place::File,
        },
    );
    let plain = Filter {
        optimise: false,
        ..filter
    };
    match (filter.program(&text), plain.program(&text)) {
        (Ok(fast), Ok(plain)) => {
            assert!(fast.instructions().len() <= plain.instructions().len());
            assert_eq!(fast.run(&frame), plain.run(&frame), "{text}");
        }
        (Ok(fast), Err(_)) => {
            let _ = fast.run(&frame);
        }
        (Err(error), other) => {
            assert!(other.is_err(), "{text}: {error}");
            assert!(text.is_char_boundary(error.position()), "{text}: {error}");
        }
    }
}
