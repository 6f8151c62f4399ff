//! From a tree of tests to instructions: a graph of blocks, each of which loads and asks, whose edges point to what comes next.

use std::collections::HashMap;

use super::program::{JA, JEQ, JGE, JGT, JSET, LDX_MSH, Program, RET_K, SRC_X};
use crate::bpf::{BpfInsn, MAX_INSNS};

/// What `bpf::compose` puts around a program at most.
const AROUND: usize = 8;
/// Blocks made before an expression counts as too long; each gives an instruction or more.
const MAX_BLOCKS: usize = 2 * MAX_INSNS;
/// What is remembered of the way to a block; bounds the work of the optimiser.
const MAX_FACTS: usize = 48;

/// The block that takes the frame.
pub(super) const ACCEPT: usize = 0;
/// The block that leaves it.
pub(super) const REJECT: usize = 1;

/// One question: what is loaded into A (and X), and what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Test {
    pub(super) load: Vec<BpfInsn>,
    /// `JEQ`, `JGT`, `JGE` or `JSET`, with `SRC_X` when it compares with X.
    pub(super) jump: u16,
    pub(super) k: u32,
}

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Const(bool),
    Test(Test),
    Not(Box<Node>),
    /// From left to right, `and` and `or` alike: each joins all before it with what follows.
    Chain(Box<Node>, Vec<(Join, Node)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    load: usize,
    jump: u16,
    k: u32,
    yes: usize,
    no: usize,
}

/// Blocks, successors before predecessors: an edge points to a smaller number.
#[derive(Debug)]
pub(super) struct Graph {
    blocks: Vec<Block>,
    known: HashMap<Block, usize>,
    loads: Vec<Vec<BpfInsn>>,
    load_numbers: HashMap<Vec<BpfInsn>, usize>,
}

/// What is known of a load that was done on every way to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fact {
    load: usize,
    jump: u16,
    k: u32,
    holds: bool,
}

/// What the registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    /// The load that A is the result of.
    a: Option<usize>,
    /// The offset of the octet that X was made from by `ldxb 4*([k]&0xf)`.
    x: Option<u32>,
}

impl Graph {
    pub(super) fn new() -> Self {
        // The two ends have numbers of their own and are never looked into.
        let end = |k| Block {
            load: usize::MAX,
            jump: 0,
            k,
            yes: 0,
            no: 0,
        };
        Self {
            blocks: vec![end(1), end(0)],
            known: HashMap::new(),
            loads: Vec::new(),
            load_numbers: HashMap::new(),
        }
    }

    /// The block where the question `node` begins, which goes on at `yes` or `no`.
    pub(super) fn add(&mut self, node: &Node, yes: usize, no: usize) -> usize {
        match node {
            Node::Const(true) => yes,
            Node::Const(false) => no,
            Node::Not(inner) => self.add(inner, no, yes),
            Node::Test(test) => self.block(test, yes, no),
            Node::Chain(first, rest) => {
                let (mut yes, mut no) = (yes, no);
                for (join, node) in rest.iter().rev() {
                    let right = self.add(node, yes, no);
                    match join {
                        Join::And => yes = right,
                        Join::Or => no = right,
                    }
                }
                self.add(first, yes, no)
            }
        }
    }

    fn block(&mut self, test: &Test, yes: usize, no: usize) -> usize {
        let load = match self.load_numbers.get(&test.load) {
            Some(&number) => number,
            None => {
                self.loads.push(test.load.clone());
                let number = self.loads.len() - 1;
                self.load_numbers.insert(test.load.clone(), number);
                number
            }
        };
        let block = Block {
            load,
            jump: test.jump,
            k: test.k,
            yes,
            no,
        };
        if let Some(&number) = self.known.get(&block) {
            return number;
        }
        if self.blocks.len() <= MAX_BLOCKS {
            self.blocks.push(block);
        }
        let number = self.blocks.len() - 1;
        self.known.insert(block, number);
        number
    }

    /// The program that begins at `root`; `None` when it would be too long.
    pub(super) fn emit(mut self, mut root: usize, keep: u32, optimise: bool) -> Option<Program> {
        if self.blocks.len() > MAX_BLOCKS {
            return None;
        }
        if optimise {
            // Each pass may make the next one's answers known; the last ones seldom do.
            for _ in 0..8 {
                let before = root;
                if !self.thread(&mut root) && before == root {
                    break;
                }
            }
        }
        let order = self.reachable(root);
        let bodies = self.bodies(root, &order, optimise);
        let insns = lay_out(&self.blocks, &order, &bodies, root, keep)?;
        Program::new(insns).ok()
    }

    /// Blocks that can be come to, in an order in which all edges point forward.
    fn reachable(&self, root: usize) -> Vec<usize> {
        let mut seen = vec![false; self.blocks.len()];
        seen[root] = true;
        let mut order = Vec::new();
        for number in (2..=root).rev() {
            if seen[number] {
                order.push(number);
                seen[self.blocks[number].yes] = true;
                seen[self.blocks[number].no] = true;
            }
        }
        order
    }

    /// Lets each edge pass over blocks whose answer is known on every way that comes along it; a block is passed over
    /// only when its load was done before, since a load may end the program. Says whether anything changed.
    fn thread(&mut self, root: &mut usize) -> bool {
        let mut known: Vec<Option<Vec<Fact>>> = vec![None; self.blocks.len()];
        known[*root] = Some(Vec::new());
        let mut changed = false;
        for number in (2..=*root).rev() {
            let Some(facts) = known[number].take() else {
                continue;
            };
            let block = self.blocks[number];
            for holds in [true, false] {
                let mut along = facts.clone();
                if along.len() == MAX_FACTS {
                    along.remove(0);
                }
                along.push(Fact {
                    load: block.load,
                    jump: block.jump,
                    k: block.k,
                    holds,
                });
                let mut to = if holds { block.yes } else { block.no };
                while to > REJECT
                    && let Some(answer) = decided(&self.blocks[to], &along)
                {
                    to = if answer {
                        self.blocks[to].yes
                    } else {
                        self.blocks[to].no
                    };
                    changed = true;
                }
                if holds {
                    self.blocks[number].yes = to;
                } else {
                    self.blocks[number].no = to;
                }
                match &mut known[to] {
                    Some(others) => others.retain(|fact| along.contains(fact)),
                    none => *none = Some(along),
                }
            }
        }
        changed
    }

    /// What each block of `order` has to load, given what the registers hold on every way to it.
    fn bodies(&self, root: usize, order: &[usize], optimise: bool) -> Vec<Vec<BpfInsn>> {
        let nothing = Registers { a: None, x: None };
        let mut held: Vec<Option<Registers>> = vec![None; self.blocks.len()];
        held[root] = Some(nothing);
        let mut bodies = Vec::with_capacity(order.len());
        for &number in order {
            let block = self.blocks[number];
            let before = held[number].filter(|_| optimise).unwrap_or(nothing);
            let load = &self.loads[block.load];
            let header = load.first().filter(|insn| insn.code == LDX_MSH);
            // A comparison with X needs X as the load leaves it.
            let here = before.a == Some(block.load) && block.jump & SRC_X == 0;
            let body = if here {
                Vec::new()
            } else if header.is_some_and(|insn| before.x == Some(insn.k)) {
                load.get(1..).unwrap_or_default().to_vec()
            } else {
                load.clone()
            };
            let writes_x = |insn: &BpfInsn| matches!(insn.code & 7, 1 | 7);
            let x = match header {
                _ if here => before.x,
                Some(insn) if !load.iter().skip(1).any(writes_x) => Some(insn.k),
                _ if !load.iter().any(writes_x) => before.x,
                _ => None,
            };
            let after = Registers {
                a: Some(block.load),
                x,
            };
            for to in [block.yes, block.no] {
                held[to] = Some(match held[to] {
                    None => after,
                    Some(other) => Registers {
                        a: other.a.filter(|_| other.a == after.a),
                        x: other.x.filter(|_| other.x == after.x),
                    },
                });
            }
            bodies.push(body);
        }
        bodies
    }
}

/// The answer of `block`, if `facts` decide it.
fn decided(block: &Block, facts: &[Fact]) -> Option<bool> {
    facts
        .iter()
        .filter(|fact| fact.load == block.load)
        .find_map(|fact| {
            if fact.jump == block.jump && fact.k == block.k {
                return Some(fact.holds);
            }
            if fact.jump != JEQ || !fact.holds {
                return None;
            }
            match block.jump {
                JEQ => Some(fact.k == block.k),
                JGT => Some(fact.k > block.k),
                JGE => Some(fact.k >= block.k),
                JSET => Some(fact.k & block.k != 0),
                _ => None,
            }
        })
}

/// Instructions of all blocks, then the two ends. Where an end of a jump is more than 255 instructions away, a `ja` behind
/// the block goes there.
fn lay_out(
    blocks: &[Block],
    order: &[usize],
    bodies: &[Vec<BpfInsn>],
    root: usize,
    keep: u32,
) -> Option<Vec<BpfInsn>> {
    let end = |k| BpfInsn {
        code: RET_K,
        jt: 0,
        jf: 0,
        k,
    };
    if root <= REJECT {
        return Some(vec![end(if root == ACCEPT { keep } else { 0 })]);
    }
    let mut far = vec![[false; 2]; order.len()];
    let mut place = vec![0_usize; blocks.len()];
    loop {
        let mut at = 0;
        for ((&number, body), far) in order.iter().zip(bodies).zip(&far) {
            place[number] = at;
            at += body.len() + 1 + usize::from(far[0]) + usize::from(far[1]);
        }
        (place[ACCEPT], place[REJECT]) = (at, at + 1);
        if at + 2 > MAX_INSNS - AROUND {
            return None;
        }
        let mut grew = false;
        for ((&number, body), far) in order.iter().zip(bodies).zip(&mut far) {
            let jump = place[number] + body.len();
            for (to, far) in [blocks[number].yes, blocks[number].no].into_iter().zip(far) {
                if !*far && place[to] - jump - 1 > usize::from(u8::MAX) {
                    *far = true;
                    grew = true;
                }
            }
        }
        if !grew {
            break;
        }
    }
    let mut insns = Vec::with_capacity(place[REJECT] + 1);
    for ((&number, body), far) in order.iter().zip(bodies).zip(&far) {
        let block = blocks[number];
        insns.extend_from_slice(body);
        let jump = insns.len();
        let near = |to: usize| u8::try_from(place[to] - jump - 1).ok();
        let jt = if far[0] { 0 } else { near(block.yes)? };
        let jf = if far[1] {
            u8::from(far[0])
        } else {
            near(block.no)?
        };
        insns.push(BpfInsn {
            code: block.jump,
            jt,
            jf,
            k: block.k,
        });
        for (to, far) in [block.yes, block.no].into_iter().zip(far) {
            if *far {
                insns.push(BpfInsn {
                    code: JA,
                    jt: 0,
                    jf: 0,
                    k: u32::try_from(place[to] - insns.len() - 1).ok()?,
                });
            }
        }
    }
    insns.extend([end(keep), end(0)]);
    Some(insns)
}
