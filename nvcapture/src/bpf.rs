//! Classic BPF programs, as a packet socket takes them.

/// One instruction of classic BPF.
///
/// Source: `struct sock_filter`, include/uapi/linux/filter.h.
#[doc(alias = "sock_filter")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BpfInsn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a condition is true.
    pub jt: u8,
    /// Instructions to skip when a condition is false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Instructions that the kernel takes at most (`BPF_MAXINSNS`).
pub(crate) const MAX_INSNS: usize = 4096;

#[cfg(feature = "ring")]
const LD_IMM: u16 = 0x00;
#[cfg(feature = "ring")]
const LD_W_ABS: u16 = 0x20;
#[cfg(feature = "ring")]
const JMP_JA: u16 = 0x05;
#[cfg(feature = "ring")]
const JMP_JEQ_K: u16 = 0x15;
#[cfg(feature = "ring")]
const JMP_JGT_K: u16 = 0x25;
#[cfg(feature = "ring")]
const RET_K: u16 = 0x06;
#[cfg(feature = "ring")]
const RET_A: u16 = 0x16;

/// What a program returns to keep all of a frame.
#[cfg(feature = "ring")]
const WHOLE: u32 = u32::MAX;

#[cfg(feature = "ring")]
mod op {
    pub(super) const LD_H_ABS: u16 = 0x28;
    pub(super) const LD_B_ABS: u16 = 0x30;
    pub(super) const LD_H_IND: u16 = 0x48;
    pub(super) const LD_MEM: u16 = 0x60;
    pub(super) const LDX_MEM: u16 = 0x61;
    pub(super) const ST: u16 = 0x02;
    pub(super) const ALU_MUL_K: u16 = 0x24;
    pub(super) const ALU_AND_K: u16 = 0x54;
    pub(super) const ALU_LSH_K: u16 = 0x64;
    pub(super) const ALU_RSH_K: u16 = 0x74;
    pub(super) const ALU_XOR_X: u16 = 0xac;
    pub(super) const JMP_JSET_K: u16 = 0x45;
    pub(super) const TAX: u16 = 0x07;
}

/// The program of [`FanoutMode::Connections`](crate::FanoutMode::Connections): a number that is the same for all frames of a connection, of which
/// the kernel takes the remainder.
///
/// Both directions give the same, since what is of the two ends is put together by exclusive or. The kernel runs it with the frame's own start or
/// the packet's before it, depending on the way the frame goes: so all loads are relative to the packet.
#[cfg(feature = "ring")]
pub(crate) fn by_connection() -> Vec<BpfInsn> {
    use op::*;

    /// `SKF_AD_OFF + SKF_AD_PROTOCOL`: the EtherType, behind a tag that is told beside the octets.
    const PROTOCOL: u32 = (-0x1000_i32) as u32;
    /// `SKF_NET_OFF`: where the packet begins.
    const NET: u32 = (-0x10_0000_i32) as u32;
    const TCP: u32 = 6;
    /// 2 to the power of 32 by the golden ratio: spreads what differs in few bits over the high ones.
    const SPREAD: u32 = 0x9e37_79b1;

    let load = |offset: u32| insn(LD_W_ABS, 0, 0, NET.wrapping_add(offset));
    let mut program = vec![insn(LD_W_ABS, 0, 0, PROTOCOL)];
    // Where jumps over what is not known yet are put right.
    let to_ipv6 = program.len();
    program.push(insn(JMP_JEQ_K, 0, 0, 0x0800));
    // IPv4: both addresses, then TCP's ports, unless it is a fragment.
    program.extend([
        load(12),
        insn(TAX, 0, 0, 0),
        load(16),
        insn(ALU_XOR_X, 0, 0, 0),
        insn(ST, 0, 0, 0),
        insn(LD_B_ABS, 0, 0, NET.wrapping_add(9)),
    ]);
    let not_tcp = program.len();
    program.push(insn(JMP_JEQ_K, 0, 0, TCP));
    program.push(insn(LD_H_ABS, 0, 0, NET.wrapping_add(6)));
    let fragment = program.len();
    program.push(insn(JMP_JSET_K, 0, 0, 0x3fff));
    program.extend([
        insn(LD_B_ABS, 0, 0, NET),
        insn(ALU_AND_K, 0, 0, 0x0f),
        insn(ALU_LSH_K, 0, 0, 2),
    ]);
    let to_ports = program.len();
    program.push(insn(JMP_JA, 0, 0, 0));
    // IPv6: all eight words of the addresses.
    let ipv6 = program.len();
    program.push(insn(JMP_JEQ_K, 0, 0, 0x86dd));
    program.push(load(8));
    for word in 1..8 {
        program.extend([
            insn(TAX, 0, 0, 0),
            load(8 + 4 * word),
            insn(ALU_XOR_X, 0, 0, 0),
        ]);
    }
    program.extend([insn(ST, 0, 0, 0), insn(LD_B_ABS, 0, 0, NET.wrapping_add(6))]);
    let not_tcp6 = program.len();
    program.push(insn(JMP_JEQ_K, 0, 0, TCP));
    program.push(insn(LD_IMM, 0, 0, 40));
    // The accumulator has the length of the IP header: both ports.
    let ports = program.len();
    program.extend([
        insn(TAX, 0, 0, 0),
        insn(LD_H_IND, 0, 0, NET),
        insn(ST, 0, 0, 1),
        insn(LD_H_IND, 0, 0, NET.wrapping_add(2)),
        insn(LDX_MEM, 0, 0, 1),
        insn(ALU_XOR_X, 0, 0, 0),
        // Apart from the addresses' low bits, which are what differs in them.
        insn(ALU_LSH_K, 0, 0, 8),
        insn(LDX_MEM, 0, 0, 0),
        insn(ALU_XOR_X, 0, 0, 0),
        insn(ST, 0, 0, 0),
    ]);
    let spread = program.len();
    program.extend([
        insn(LD_MEM, 0, 0, 0),
        insn(ALU_MUL_K, 0, 0, SPREAD),
        insn(ALU_RSH_K, 0, 0, 12),
        insn(RET_A, 0, 0, 0),
    ]);
    let other = program.len();
    program.push(insn(RET_K, 0, 0, 0));

    let over = |from: usize, to: usize| (to - from - 1) as u8;
    program[to_ipv6].jf = over(to_ipv6, ipv6);
    program[not_tcp].jf = over(not_tcp, spread);
    program[fragment].jt = over(fragment, spread);
    program[to_ports].k = over(to_ports, ports).into();
    program[ipv6].jf = over(ipv6, other);
    program[not_tcp6].jf = over(not_tcp6, spread);
    program
}

#[cfg(feature = "ring")]
const fn insn(code: u16, jt: u8, jf: u8, k: u32) -> BpfInsn {
    BpfInsn { code, jt, jf, k }
}

/// Keeps nothing.
#[cfg(feature = "ring")]
pub(crate) const DROP_ALL: [BpfInsn; 1] = [insn(RET_K, 0, 0, 0)];

/// One program that leaves out outgoing frames if told to, asks `user` about the rest, and keeps at most `snaplen`
/// octets of what `user` keeps.
///
/// Offsets in classic BPF are relative and point forward, so a head and a tail can be put around any program.
#[cfg(feature = "ring")]
pub(crate) fn compose(
    ignore_outgoing: Option<u32>,
    user: Option<&[BpfInsn]>,
    snaplen: Option<u32>,
) -> Vec<BpfInsn> {
    let keep = snaplen.unwrap_or(WHOLE);
    let mut program = Vec::new();
    if let Some(load_packet_type) = ignore_outgoing {
        const PACKET_OUTGOING: u32 = 4;
        program.extend([
            insn(LD_W_ABS, 0, 0, load_packet_type),
            insn(JMP_JEQ_K, 0, 1, PACKET_OUTGOING),
            insn(RET_K, 0, 0, 0),
            insn(LD_IMM, 0, 0, 0), // a program may rely on finding 0 in the accumulator
        ]);
    }
    let Some(user) = user else {
        program.push(insn(RET_K, 0, 0, keep));
        return program;
    };
    let user_end = program.len() + user.len();
    for &given in user {
        program.push(match given.code {
            RET_K => insn(RET_K, 0, 0, given.k.min(keep)),
            RET_A if snaplen.is_some() => insn(JMP_JA, 0, 0, (user_end - program.len() - 1) as u32),
            _ => given,
        });
    }
    if snaplen.is_some() && user.iter().any(|given| given.code == RET_A) {
        program.extend([
            insn(JMP_JGT_K, 0, 1, keep),
            insn(RET_K, 0, 0, keep),
            insn(RET_A, 0, 0, 0),
        ]);
    }
    program
}

#[cfg(all(test, feature = "ring"))]
mod tests {
    use super::*;

    /// Runs a program of the few operations used here; the kernel's own interpreter is asked in tests/ring.rs.
    fn run(program: &[BpfInsn], packet_type: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let insn = program[at];
            at += 1;
            match insn.code {
                LD_W_ABS => a = packet_type,
                LD_IMM => a = insn.k,
                JMP_JA => at += insn.k as usize,
                JMP_JEQ_K => at += usize::from(if a == insn.k { insn.jt } else { insn.jf }),
                JMP_JGT_K => at += usize::from(if a > insn.k { insn.jt } else { insn.jf }),
                RET_K => return insn.k,
                RET_A => return a,
                code => panic!("operation {code:#x}"),
            }
        }
    }

    const OUTGOING: u32 = 4;

    #[test]
    fn the_shorter_of_answer_and_snaplen_counts() {
        for answer in [0, 10, 100, u32::MAX] {
            let programs = [
                vec![insn(RET_K, 0, 0, answer)],
                vec![insn(LD_IMM, 0, 0, answer), insn(RET_A, 0, 0, 0)],
                vec![
                    insn(LD_IMM, 0, 0, answer),
                    insn(JMP_JEQ_K, 0, 1, 10),
                    insn(RET_A, 0, 0, 0),
                    insn(RET_A, 0, 0, 0),
                ],
            ];
            for user in &programs {
                for (snaplen, expected) in [
                    (None, answer),
                    (Some(64), answer.min(64)),
                    (Some(1), answer.min(1)),
                ] {
                    let with = compose(Some(0), Some(user), snaplen);
                    assert_eq!(run(&with, 0), expected);
                    assert_eq!(run(&with, OUTGOING), 0);
                    assert_eq!(run(&compose(None, Some(user), snaplen), OUTGOING), expected);
                }
            }
        }
    }

    #[test]
    fn without_a_program_all_is_kept_up_to_snaplen() {
        assert_eq!(run(&compose(None, None, None), OUTGOING), u32::MAX);
        assert_eq!(run(&compose(None, None, Some(96)), 0), 96);
        assert_eq!(run(&compose(Some(0), None, Some(96)), OUTGOING), 0);
        assert_eq!(run(&DROP_ALL, 0), 0);
    }
}
