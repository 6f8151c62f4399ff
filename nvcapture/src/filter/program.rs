//! Classic BPF programs, checked once, run over frames.

use std::fmt;

use crate::bpf::{BpfInsn, MAX_INSNS};
use crate::{Frame, LinkType, PacketType};

pub(super) const LD_IMM: u16 = 0x00;
const LDX_IMM: u16 = 0x01;
pub(super) const ST: u16 = 0x02;
const STX: u16 = 0x03;
pub(super) const LD_W: u16 = 0x20;
pub(super) const LD_H: u16 = 0x28;
pub(super) const LD_B: u16 = 0x30;
/// Added to a load of the packet: counted from X.
pub(super) const IND: u16 = 0x20;
const LD_W_IND: u16 = LD_W + IND;
const LD_H_IND: u16 = LD_H + IND;
const LD_B_IND: u16 = LD_B + IND;
const LD_MEM: u16 = 0x60;
pub(super) const LDX_MEM: u16 = 0x61;
pub(super) const LD_LEN: u16 = 0x80;
const LDX_LEN: u16 = 0x81;
/// X becomes 4 * (octet & 15): the length of an IPv4 header.
pub(super) const LDX_MSH: u16 = 0xb1;
pub(super) const NEG: u16 = 0x84;
/// The other operand is X.
pub(super) const SRC_X: u16 = 0x08;
/// The bits of a code that tell jumps from all else.
const CLASS: u16 = 0x07;
pub(super) const JA: u16 = 0x05;
pub(super) const JEQ: u16 = 0x15;
pub(super) const JGT: u16 = 0x25;
pub(super) const JGE: u16 = 0x35;
pub(super) const JSET: u16 = 0x45;
pub(super) const RET_K: u16 = 0x06;
const RET_A: u16 = 0x16;
pub(super) const TAX: u16 = 0x07;
const TXA: u16 = 0x87;

/// What the kernel tells beside the octets: `SKF_AD_OFF` and the numbers behind it, include/uapi/linux/filter.h.
const AD: u32 = (-0x1000_i32) as u32;
pub(super) const AD_PKTTYPE: u32 = AD + 4;
/// No load, but arithmetic: A is combined with X.
const AD_ALU_XOR_X: u32 = AD + 40;
pub(super) const AD_VLAN_TAG: u32 = AD + 44;
pub(super) const AD_VLAN_TAG_PRESENT: u32 = AD + 48;
const AD_VLAN_TPID: u32 = AD + 60;
/// Behind the last of them (`SKF_AD_MAX`); they are four apart.
const AD_END: u32 = AD + 64;
/// Offsets from here on count from the packet (`SKF_NET_OFF`).
const NET: u32 = (-0x10_0000_i32) as u32;
/// Offsets from here on count from the link header (`SKF_LL_OFF`).
const LINK: u32 = (-0x20_0000_i32) as u32;

/// Words of scratch memory (`BPF_MEMWORDS`).
pub(super) const MEMORY: usize = 16;

/// Why instructions are no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalid {
    /// There are none, or more than `BPF_MAXINSNS`.
    Length(usize),
    /// The instruction with this number is unknown, jumps beyond the end, divides by zero, shifts by more than 31 bits,
    /// names memory that is not there or was not written on every way to it, or returns X, which the kernel does not do.
    Instruction(usize),
    /// The instruction with this number loads what the kernel alone knows, as the processor it runs on: no [`Frame`] tells it.
    ///
    /// A ring takes such instructions all the same, as they are: [`RingConfig::filter`](crate::RingConfig::filter).
    OnlyKernel(usize),
    /// The last instruction does not return.
    NoReturn,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(
                f,
                "a program has 1 to {MAX_INSNS} instructions, not {length}"
            ),
            Self::Instruction(number) => write!(f, "instruction {number} cannot be"),
            Self::OnlyKernel(number) => write!(
                f,
                "instruction {number} loads what the kernel alone knows: such a program runs on a ring only, as RingConfig::filter takes it"
            ),
            Self::NoReturn => write!(f, "the last instruction does not return"),
        }
    }
}

impl std::error::Error for Invalid {}

/// A classic BPF program that was checked: it ends, whatever the frame, the kernel takes it, and [`run`](Self::run) answers as the kernel does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    insns: Vec<BpfInsn>,
}

impl Program {
    /// Checks instructions of any origin, by the kernel's rules (`bpf_check_classic`, net/core/filter.c).
    ///
    /// # Errors
    /// [`Invalid`] names the first instruction that cannot be, or that no frame can answer.
    pub fn new(insns: Vec<BpfInsn>) -> Result<Self, Invalid> {
        if insns.is_empty() || insns.len() > MAX_INSNS {
            return Err(Invalid::Length(insns.len()));
        }
        // Words of memory that are written on every way: to here, and to each instruction by the jumps seen so far.
        let mut written = 0_u16;
        let mut written_at = vec![u16::MAX; insns.len()];
        for (at, insn) in insns.iter().enumerate() {
            written &= written_at[at];
            let left = insns.len() - at - 1;
            let fits = |offset: u32| usize::try_from(offset).is_ok_and(|offset| offset < left);
            let good = match insn.code {
                LD_W | LD_H | LD_B if insn.k >= AD => match insn.k {
                    AD_PKTTYPE | AD_ALU_XOR_X | AD_VLAN_TAG | AD_VLAN_TAG_PRESENT
                    | AD_VLAN_TPID => true,
                    AD..AD_END if insn.k.is_multiple_of(4) => return Err(Invalid::OnlyKernel(at)),
                    _ => false,
                },
                LD_IMM | LDX_IMM | LD_LEN | LDX_LEN | LD_W | LD_H | LD_B | LD_W_IND | LD_H_IND
                | LD_B_IND | LDX_MSH | NEG | TAX | TXA | RET_K | RET_A => true,
                ST | STX => insn.k < MEMORY as u32,
                LD_MEM | LDX_MEM => insn.k < MEMORY as u32 && written & 1 << insn.k != 0,
                JA => fits(insn.k),
                JEQ | JGT | JGE | JSET | 0x1d | 0x2d | 0x3d | 0x4d => {
                    fits(insn.jt.into()) && fits(insn.jf.into())
                }
                // Division and remainder by a constant, shifts by one.
                0x34 | 0x94 => insn.k != 0,
                0x64 | 0x74 => insn.k < 32,
                0x04 | 0x0c | 0x14 | 0x1c | 0x24 | 0x2c | 0x3c | 0x44 | 0x4c | 0x54 | 0x5c
                | 0x6c | 0x7c | 0x9c | 0xa4 | 0xac => true,
                _ => false,
            };
            if !good {
                return Err(Invalid::Instruction(at));
            }
            match insn.code {
                ST | STX => written |= 1 << insn.k,
                JA => {
                    written_at[at + 1 + insn.k as usize] &= written;
                    written = u16::MAX;
                }
                code if code & CLASS == JA => {
                    for skipped in [insn.jt, insn.jf] {
                        written_at[at + 1 + usize::from(skipped)] &= written;
                    }
                    written = u16::MAX;
                }
                _ => {}
            }
        }
        match insns.last() {
            Some(last) if matches!(last.code, RET_K | RET_A) => Ok(Self { insns }),
            _ => Err(Invalid::NoReturn),
        }
    }

    /// The instructions, as a socket takes them.
    pub fn instructions(&self) -> &[BpfInsn] {
        &self.insns
    }

    /// The instructions, as [`RingConfig::filter`](crate::RingConfig::filter) takes them.
    pub fn into_instructions(self) -> Vec<BpfInsn> {
        self.insns
    }

    /// Whether the frame is wanted.
    #[inline]
    pub fn admits(&self, frame: &Frame<'_>) -> bool {
        self.run(frame) != 0
    }

    /// What the program answers: octets to keep, 0 for a frame that is not wanted.
    ///
    /// A load beyond the octets that were kept, or a division by zero, ends it with 0, as in the kernel.
    ///
    /// Of what the kernel tells beside the octets, the frame's meta data answer for the packet type (as `PACKET_HOST` where it says none, or
    /// inbound alone) and the VLAN tag. Offsets from `SKF_LL_OFF` on count from the frame's first octet, those from `SKF_NET_OFF` on from where
    /// the kernel has the packet of a frame that it received: behind the Ethernet header and the first tag, where that is in the octets; at the
    /// first octet of link types that are IP itself; behind the headers of NULL, LOOP and both cooked captures. With other link types such a
    /// load ends the program with 0. (Older kernels end it, too, for octets that lie in pages of their own, as those of large frames may.)
    pub fn run(&self, frame: &Frame<'_>) -> u32 {
        let (mut a, mut x) = (0_u32, 0_u32);
        let mut memory = [0_u32; MEMORY];
        let mut at = 0;
        // Jumps point forward, so this ends.
        while let Some(&BpfInsn { code, jt, jf, k }) = self.insns.get(at) {
            at += 1;
            let branch = |yes: bool| usize::from(if yes { jt } else { jf });
            let loaded = match code {
                LD_W | LD_H | LD_B if k >= AD => beside(frame, k, a, x),
                LD_W => load::<4>(frame, 0, k).map(u32::from_be_bytes),
                LD_H => load::<2>(frame, 0, k).map(|w| u16::from_be_bytes(w).into()),
                LD_B => load::<1>(frame, 0, k).map(|[octet]| octet.into()),
                LD_W_IND => load::<4>(frame, x, k).map(u32::from_be_bytes),
                LD_H_IND => load::<2>(frame, x, k).map(|w| u16::from_be_bytes(w).into()),
                LD_B_IND => load::<1>(frame, x, k).map(|[octet]| octet.into()),
                LDX_MSH => {
                    let Some([octet]) = load::<1>(frame, 0, k) else {
                        return 0;
                    };
                    x = u32::from(octet & 15) * 4;
                    continue;
                }
                JEQ => {
                    at += branch(a == k);
                    continue;
                }
                JGT => {
                    at += branch(a > k);
                    continue;
                }
                JGE => {
                    at += branch(a >= k);
                    continue;
                }
                JSET => {
                    at += branch(a & k != 0);
                    continue;
                }
                0x1d => {
                    at += branch(a == x);
                    continue;
                }
                0x2d => {
                    at += branch(a > x);
                    continue;
                }
                0x3d => {
                    at += branch(a >= x);
                    continue;
                }
                0x4d => {
                    at += branch(a & x != 0);
                    continue;
                }
                JA => {
                    at += k as usize;
                    continue;
                }
                RET_K => return k,
                RET_A => return a,
                LD_IMM => Some(k),
                LD_LEN => Some(frame.wire_len()),
                LD_MEM => memory.get(k as usize).copied(),
                LDX_IMM => {
                    x = k;
                    continue;
                }
                LDX_LEN => {
                    x = frame.wire_len();
                    continue;
                }
                LDX_MEM => {
                    x = memory.get(k as usize).copied().unwrap_or(0);
                    continue;
                }
                ST | STX => {
                    if let Some(word) = memory.get_mut(k as usize) {
                        *word = if code == ST { a } else { x };
                    }
                    continue;
                }
                TAX => {
                    x = a;
                    continue;
                }
                TXA => Some(x),
                NEG => Some(a.wrapping_neg()),
                _ => compute(code & !SRC_X, a, if code & SRC_X == 0 { k } else { x }),
            };
            match loaded {
                Some(value) => a = value,
                None => return 0,
            }
        }
        0
    }
}

#[inline]
fn load<const N: usize>(frame: &Frame<'_>, x: u32, k: u32) -> Option<[u8; N]> {
    // In 32 bits, as the kernel adds them: X may be a negative number.
    let offset = x.wrapping_add(k);
    let at = if offset <= i32::MAX as u32 {
        offset as usize
    } else {
        counted_from(frame, offset)?
    };
    frame.octets().get(at..)?.first_chunk().copied()
}

/// The place of an offset that counts from the packet or the link header (`bpf_internal_load_pointer_neg_helper`).
#[cold]
fn counted_from(frame: &Frame<'_>, offset: u32) -> Option<usize> {
    if offset < NET {
        // The frame begins with its link header.
        return offset.checked_sub(LINK).map(|offset| offset as usize);
    }
    let meta = frame.meta();
    let packet = match meta.link_type {
        // What `eth_type_vlan` knows is taken out by the kernel, once.
        LinkType::ETHERNET => match (meta.vlan, frame.octets().get(12..14)) {
            (None, Some([0x81, 0x00] | [0x88, 0xa8])) => 18,
            _ => 14,
        },
        LinkType::RAW | LinkType::RAW_12 | LinkType::RAW_14 | LinkType::IPV4 | LinkType::IPV6 => 0,
        LinkType::NULL | LinkType::LOOP => 4,
        LinkType::LINUX_SLL => 16,
        LinkType::LINUX_SLL2 => 20,
        _ => return None,
    };
    Some(packet + (offset - NET) as usize)
}

/// One operation of arithmetic; `None` for a division by zero. The kernel shifts by the last five bits.
pub(super) fn compute(op: u16, a: u32, b: u32) -> Option<u32> {
    Some(match op {
        0x04 => a.wrapping_add(b),
        0x14 => a.wrapping_sub(b),
        0x24 => a.wrapping_mul(b),
        0x34 => a.checked_div(b)?,
        0x44 => a | b,
        0x54 => a & b,
        0x64 => a.wrapping_shl(b),
        0x74 => a.wrapping_shr(b),
        0x94 => a.checked_rem(b)?,
        0xa4 => a ^ b,
        _ => return None,
    })
}

/// What the source of the frame tells beside its octets; where it does not say, what a file's frame has. `None` for what [`Program::new`] refused.
#[cold]
fn beside(frame: &Frame<'_>, k: u32, a: u32, x: u32) -> Option<u32> {
    let meta = frame.meta();
    match k {
        AD_PKTTYPE => Some(match meta.packet_type {
            Some(PacketType::Host | PacketType::Inbound) | None => 0,
            Some(PacketType::Broadcast) => 1,
            Some(PacketType::Multicast) => 2,
            Some(PacketType::OtherHost) => 3,
            Some(PacketType::Outgoing) => 4,
        }),
        AD_VLAN_TAG => Some(meta.vlan.map_or(0, |tag| tag.tci.into())),
        AD_VLAN_TAG_PRESENT => Some(meta.vlan.is_some().into()),
        AD_VLAN_TPID => Some(meta.vlan.map_or(0, |tag| tag.tpid.into())),
        AD_ALU_XOR_X => Some(a ^ x),
        _ => None,
    }
}
