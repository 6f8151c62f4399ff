//! The classifier programs, instruction by instruction: no compiler, no object file, no map.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use crate::sys::{self, Insn};
use crate::{AttachmentId, Error, MacAddr};

/// Offsets in `struct __sk_buff`, include/uapi/linux/bpf.h.
mod skb {
    pub(super) const INGRESS_IFINDEX: i16 = 36;
    pub(super) const TC_INDEX: i16 = 44;
    pub(super) const DATA: i16 = 76;
    pub(super) const DATA_END: i16 = 80;
}

/// Helper numbers of `enum bpf_func_id`.
mod helper {
    pub(super) const SKB_STORE_BYTES: i32 = 9;
    pub(super) const CLONE_REDIRECT: i32 = 13;
    pub(super) const REDIRECT: i32 = 23;
}

/// `BPF_F_INGRESS`: the clone is received by the device, not sent through it.
const F_INGRESS: i32 = 1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;
/// Offset of the destination and of the source address in an Ethernet frame.
const DESTINATION: i32 = 0;
const SOURCE: i32 = 6;
/// Octets of an Ethernet header.
const ETH_HLEN: i32 = 14;

/// `skb->tc_index` of a frame that leaves the container; written by the rules on its new interface (as the class they
/// assign), kept by veth, read at the host end.
pub(crate) const LEAVES: u16 = 1;
/// `skb->tc_index` of a frame that entered the container.
pub(crate) const ENTERED: u16 = 2;

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;
const R7: u8 = 7;
const R8: u8 = 8;
const FP: u8 = 10;

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn {
        code,
        regs: dst | src << 4,
        off,
        imm,
    }
}
const fn mov(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}
const fn mov_imm(dst: u8, imm: i32) -> Insn {
    insn(0xb7, dst, 0, 0, imm)
}
const fn add_imm(dst: u8, imm: i32) -> Insn {
    insn(0x07, dst, 0, 0, imm)
}
const fn and_imm(dst: u8, imm: i32) -> Insn {
    insn(0x57, dst, 0, 0, imm)
}
const fn load_word(dst: u8, src: u8, off: i16) -> Insn {
    insn(0x61, dst, src, off, 0)
}
const fn load_half(dst: u8, src: u8, off: i16) -> Insn {
    insn(0x69, dst, src, off, 0)
}
const fn load_byte(dst: u8, src: u8, off: i16) -> Insn {
    insn(0x71, dst, src, off, 0)
}
const fn store_half(dst: u8, off: i16, src: u8) -> Insn {
    insn(0x6b, dst, src, off, 0)
}
const fn store_word_imm(dst: u8, off: i16, imm: i32) -> Insn {
    insn(0x62, dst, 0, off, imm)
}
const fn store_half_imm(dst: u8, off: i16, imm: i32) -> Insn {
    insn(0x6a, dst, 0, off, imm)
}
const fn store_byte_imm(dst: u8, off: i16, imm: i32) -> Insn {
    insn(0x72, dst, 0, off, imm)
}
const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}
const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

/// A jump whose target is told by label and put in when the program is complete.
#[derive(Clone, Copy)]
enum Jump {
    Always,
    /// Unsigned `>` of two registers.
    Above(u8, u8),
    /// The register equals the number.
    Is(u8, i32),
    /// The register does not equal the number; compared as 64 bits, the number sign-extended.
    IsNot(u8, i32),
}

/// Puts labelled jumps and instructions together.
#[derive(Default)]
struct Assembler {
    insns: Vec<Insn>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn then(mut self, insns: &[Insn]) -> Self {
        self.insns.extend_from_slice(insns);
        self
    }

    fn jump(mut self, jump: Jump, to: &'static str) -> Self {
        self.jumps.push((self.insns.len(), to));
        self.insns.push(match jump {
            Jump::Always => insn(0x05, 0, 0, 0, 0),
            Jump::Above(a, b) => insn(0x2d, a, b, 0, 0),
            Jump::Is(a, imm) => insn(0x15, a, 0, 0, imm),
            Jump::IsNot(a, imm) => insn(0x55, a, 0, 0, imm),
        });
        self
    }

    fn label(mut self, name: &'static str) -> Self {
        self.labels.push((name, self.insns.len()));
        self
    }

    fn finish(mut self) -> Vec<Insn> {
        for (at, to) in self.jumps {
            let target = self
                .labels
                .iter()
                .find(|(name, _)| *name == to)
                .map(|(_, at)| *at);
            let target =
                target.expect("every jump has its label, as the tests assemble every program");
            self.insns[at].off =
                i16::try_from(target - at - 1).expect("programs are short and jump forward only");
        }
        self.insns
    }
}

/// Lays `mac` on the stack at `off`, six octets.
fn stack_mac(off: i16, mac: MacAddr) -> [Insn; 2] {
    let [a, b, c, d, e, f] = mac.0;
    [
        store_word_imm(FP, off, i32::from_ne_bytes([a, b, c, d])),
        store_half_imm(FP, off + 4, i32::from(u16::from_ne_bytes([e, f]))),
    ]
}

/// Sets the group bit of the address on the stack at -8: a mark in the place of a group address stays a group address,
/// so that what it stood for can be told again from the packet.
fn keep_group_bit(id: AttachmentId) -> Insn {
    store_byte_imm(FP, -8, i32::from(id.group_mac().0[0]))
}

/// Stores the six octets on the stack at `stack` into the frame at `offset`.
fn store_mac(offset: i32, stack: i32) -> [Insn; 7] {
    [
        mov(R1, R6),
        mov_imm(R2, offset),
        mov(R3, FP),
        add_imm(R3, stack),
        mov_imm(R4, 6),
        mov_imm(R5, 0),
        call(helper::SKB_STORE_BYTES),
    ]
}

/// Host end of an inline attachment: marks the frame with the id and matches, so that the action takes it to the bridge.
///
/// Which way the frame went is told by [`LEAVES`] and [`ENTERED`]. Where neither came through, the addresses tell: the
/// container's own as source leaves, its own or a group as destination entered, and a frame that is neither left with an
/// address that is not the container's.
pub(crate) fn mark(id: AttachmentId, own: MacAddr) -> Vec<Insn> {
    let [a, b, c, d, e, f] = own.0;
    let head = i32::from_ne_bytes([a, b, c, d]);
    let tail = i32::from(u16::from_ne_bytes([e, f]));
    Assembler::default()
        .then(&[mov(R6, R1)])
        .then(&stack_mac(-8, id.mac()))
        .then(&[
            load_word(R7, R6, skb::TC_INDEX),
            load_word(R2, R6, skb::DATA),
            load_word(R3, R6, skb::DATA_END),
            mov(R4, R2),
            add_imm(R4, ETH_HLEN),
        ])
        .jump(Jump::Above(R4, R3), "leaves")
        .jump(Jump::Is(R7, i32::from(LEAVES)), "leaves")
        .jump(Jump::Is(R7, i32::from(ENTERED)), "entered")
        // 32-bit loads are zero-extended, immediates sign-extended: compare in halves that fit.
        .then(&[load_half(R5, R2, 6)])
        .jump(Jump::IsNot(R5, low_half(head)), "not_from_us")
        .then(&[load_half(R5, R2, 8)])
        .jump(Jump::IsNot(R5, high_half(head)), "not_from_us")
        .then(&[load_half(R5, R2, 10)])
        .jump(Jump::Is(R5, tail), "leaves")
        .label("not_from_us")
        .then(&[load_byte(R5, R2, 0), and_imm(R5, 1)])
        .jump(Jump::Is(R5, 1), "entered")
        .then(&[load_half(R5, R2, 0)])
        .jump(Jump::IsNot(R5, low_half(head)), "leaves")
        .then(&[load_half(R5, R2, 2)])
        .jump(Jump::IsNot(R5, high_half(head)), "leaves")
        .then(&[load_half(R5, R2, 4)])
        .jump(Jump::IsNot(R5, tail), "leaves")
        .label("entered")
        .then(&[load_byte(R5, R2, 0), and_imm(R5, 1)])
        .jump(Jump::Is(R5, 0), "to_one")
        .then(&[keep_group_bit(id)])
        .label("to_one")
        .then(&store_mac(DESTINATION, -8))
        .jump(Jump::Always, "match")
        .label("leaves")
        .then(&store_mac(SOURCE, -8))
        .label("match")
        .then(&[mov_imm(R0, -1), EXIT])
        .finish()
}

/// The first two octets in memory of a word, as a half-word is loaded.
fn low_half(word: i32) -> i32 {
    let [a, b, ..] = word.to_ne_bytes();
    i32::from(u16::from_ne_bytes([a, b]))
}

/// The last two octets in memory of a word, as a half-word is loaded.
fn high_half(word: i32) -> i32 {
    let [.., c, d] = word.to_ne_bytes();
    i32::from(u16::from_ne_bytes([c, d]))
}

/// Lets everything pass, and ends classification with it (`TC_ACT_OK`).
pub(crate) fn pass() -> Vec<Insn> {
    vec![mov_imm(R0, 0), EXIT]
}

/// The container's new interface, egress: matches (with class [`LEAVES`]) what the container sends, and not the copies
/// of what came in by the original interface.
pub(crate) fn not_from(original: u32) -> Vec<Insn> {
    let ifindex = i32::from_ne_bytes(original.to_ne_bytes());
    Assembler::default()
        .then(&[load_word(R2, R1, skb::INGRESS_IFINDEX), mov_imm(R0, 0)])
        .jump(Jump::Is(R2, ifindex), "out")
        .then(&[mov_imm(R0, i32::from(LEAVES))])
        .label("out")
        .then(&[EXIT])
        .finish()
}

/// The container's new interface, egress, for what [`not_from`] left: copies of frames that came in are [`ENTERED`], and
/// those of what the original interface sent by itself, told by the source address, [`LEAVES`].
pub(crate) fn copied(own: MacAddr) -> Vec<Insn> {
    let [a, b, c, d, e, f] = own.0;
    let halves = [[a, b], [c, d], [e, f]].map(|half| i32::from(u16::from_ne_bytes(half)));
    Assembler::default()
        .then(&[
            mov_imm(R0, i32::from(ENTERED)),
            load_word(R2, R1, skb::DATA),
            load_word(R3, R1, skb::DATA_END),
            mov(R4, R2),
            add_imm(R4, ETH_HLEN),
        ])
        .jump(Jump::Above(R4, R3), "out")
        .then(&[load_half(R5, R2, 6)])
        .jump(Jump::IsNot(R5, halves[0]), "out")
        .then(&[load_half(R5, R2, 8)])
        .jump(Jump::IsNot(R5, halves[1]), "out")
        .then(&[load_half(R5, R2, 10)])
        .jump(Jump::IsNot(R5, halves[2]), "out")
        .then(&[mov_imm(R0, i32::from(LEAVES))])
        .label("out")
        .then(&[EXIT])
        .finish()
}

/// Which address carries the id in mirror mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Ingress of the host end: the frame leaves the container.
    Leaves,
    /// Egress of the host end: the frame enters the container.
    Enters,
}

/// Host end of the container's own veth pair, mirror mode: a clone with the id goes to the bridge, the frame goes on as
/// it was, and so does classification (`TC_ACT_UNSPEC`).
pub(crate) fn mirror(id: AttachmentId, bridge: u32, way: Way) -> Vec<Insn> {
    clone_to(id, bridge, F_INGRESS, way)
}

/// The container's own interface, mirror mode without a host end: the clone is sent through the container end of a pair of
/// ours, and what comes out of the other end is marked already.
pub(crate) fn mirror_through(id: AttachmentId, pair: u32, way: Way) -> Vec<Insn> {
    clone_to(id, pair, 0, way)
}

/// Host end of such a pair: what is marked is received by the bridge, and nothing else comes out.
pub(crate) fn only_marked(id: AttachmentId, bridge: u32) -> Vec<Insn> {
    let [a, b, c, d, e, f] = id.mac().0;
    let halves = [[a, b], [c, d], [e, f]].map(|half| i32::from(u16::from_ne_bytes(half)));
    // The first half of the mark as a destination may have the group bit: it is compared octet by octet.
    Assembler::default()
        .then(&[
            load_word(R2, R1, skb::DATA),
            load_word(R3, R1, skb::DATA_END),
            mov(R4, R2),
            add_imm(R4, ETH_HLEN),
        ])
        .jump(Jump::Above(R4, R3), "drop")
        .then(&[load_half(R5, R2, 6)])
        .jump(Jump::IsNot(R5, halves[0]), "not_source")
        .then(&[load_half(R5, R2, 8)])
        .jump(Jump::IsNot(R5, halves[1]), "not_source")
        .then(&[load_half(R5, R2, 10)])
        .jump(Jump::Is(R5, halves[2]), "marked")
        .label("not_source")
        .then(&[load_byte(R5, R2, 0), and_imm(R5, 0xfe)])
        .jump(Jump::IsNot(R5, i32::from(a)), "drop")
        .then(&[load_byte(R5, R2, 1)])
        .jump(Jump::IsNot(R5, i32::from(b)), "drop")
        .then(&[load_half(R5, R2, 2)])
        .jump(Jump::IsNot(R5, halves[1]), "drop")
        .then(&[load_half(R5, R2, 4)])
        .jump(Jump::IsNot(R5, halves[2]), "drop")
        .label("marked")
        .then(&[
            mov_imm(R1, i32::from_ne_bytes(bridge.to_ne_bytes())),
            mov_imm(R2, F_INGRESS),
            call(helper::REDIRECT),
            EXIT,
        ])
        .label("drop")
        .then(&[mov_imm(R0, SHOT), EXIT])
        .finish()
}

/// A clone with the id goes to a link, received by it or sent through it as `flags` says; the frame goes on as it was.
fn clone_to(id: AttachmentId, link: u32, flags: i32, way: Way) -> Vec<Insn> {
    let offset = match way {
        Way::Leaves => SOURCE,
        Way::Enters => DESTINATION,
    };
    let at = offset as i16;
    let mut program = Assembler::default()
        .then(&[mov(R6, R1)])
        .then(&stack_mac(-8, id.mac()))
        .then(&[
            load_word(R2, R6, skb::DATA),
            load_word(R3, R6, skb::DATA_END),
            mov(R4, R2),
            add_imm(R4, ETH_HLEN),
        ])
        .jump(Jump::Above(R4, R3), "out")
        .then(&[
            load_half(R7, R2, at),
            load_half(R8, R2, at + 2),
            load_half(R5, R2, at + 4),
        ])
        .then(&[
            store_half(FP, -16, R7),
            store_half(FP, -14, R8),
            store_half(FP, -12, R5),
        ]);
    if way == Way::Enters {
        program = program
            .then(&[load_byte(R5, R2, 0), and_imm(R5, 1)])
            .jump(Jump::Is(R5, 0), "to_one")
            .then(&[keep_group_bit(id)])
            .label("to_one");
    }
    program
        .then(&store_mac(offset, -8))
        .then(&[
            mov(R1, R6),
            mov_imm(R2, i32::from_ne_bytes(link.to_ne_bytes())),
            mov_imm(R3, flags),
            call(helper::CLONE_REDIRECT),
        ])
        .then(&store_mac(offset, -16))
        .label("out")
        .then(&[mov_imm(R0, -1), EXIT])
        .finish()
}

/// Loads a program; a refusal says why in the verifier's words.
pub(crate) fn load(name: &'static CStr, insns: &[Insn]) -> Result<OwnedFd, Error> {
    sys::load_classifier(name, insns, &mut []).or_else(|_| {
        let mut log = vec![0; 64 * 1024];
        sys::load_classifier(name, insns, &mut log).map_err(|source| {
            let text = String::from_utf8_lossy(&log);
            let text = text.trim_end_matches('\0').trim_end();
            let last = text
                .lines()
                .rev()
                .find(|l| !l.starts_with("processed "))
                .map(str::to_owned);
            Error::Bpf {
                program: name.to_str().unwrap_or("classifier"),
                verifier: last,
                source,
            }
        })
    })
}

/// One instruction of classic BPF, `struct sock_filter`: return `value`.
pub(crate) fn classic_return(value: u32) -> Vec<u8> {
    const RET_K: u16 = 0x06;
    let mut octets = RET_K.to_ne_bytes().to_vec();
    octets.extend([0, 0]);
    octets.extend(value.to_ne_bytes());
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_assembles_and_ends() {
        let id = AttachmentId::new(0xbeef).expect("not zero");
        let own = MacAddr([0x82, 0xff, 0xfe, 0x80, 0xff, 0x01]);
        for program in [
            mark(id, own),
            copied(own),
            not_from(u32::MAX),
            mirror(id, 7, Way::Leaves),
            mirror(id, 7, Way::Enters),
            mirror_through(id, 7, Way::Leaves),
            only_marked(id, 7),
        ] {
            assert_eq!(program.last(), Some(&EXIT));
            for (at, insn) in program.iter().enumerate() {
                let jumps = insn.code & 0x07 == 0x05 && insn.code != 0x85 && insn.code != 0x95;
                if jumps {
                    assert!(
                        insn.off > 0 && at + 1 + (insn.off as usize) < program.len(),
                        "{at}: {insn:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_drop_rule_is_one_instruction() {
        assert_eq!(classic_return(2), [6, 0, 0, 0, 2, 0, 0, 0]);
    }
}
