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
