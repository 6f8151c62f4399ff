//! Filters: libpcap's compiler, tcpdump and the kernel say the same of the same frames.
#![allow(clippy::unwrap_used, reason = "in a test an error is a failure")]

#[allow(dead_code, reason = "shared with the tests of rings")]
mod common;

use std::process::Command;
use std::time::Duration;

use common::{Pair, RawSender, needing, privileged};
use libtest_mimic::{Arguments, Failed, Trial};
use nvcapture::filter::{Filter, Invalid, Place, Program};
use nvcapture::{
    BpfInsn, CaptureFile, CaptureWriter, Error, Frame, FrameMeta, InterfaceDescription, LinkType,
    Next, Ring, RingConfig, Timestamp, VlanTag,
};
use proptest::prelude::*;

type Test = Result<(), Failed>;

const SNAPLEN: u32 = 262_144;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let _ = common::become_root();
    let tcpdump = || {
        let told = Command::new("tcpdump").arg("--version").output();
        told.map(|_| ()).map_err(|error| error.to_string())
    };
    let mut trials = vec![
        Trial::test("optimised_programs_say_the_same", || {
            optimised();
            Ok(())
        }),
        Trial::test("any_text_is_compiled_or_refused", || {
            any_text();
            Ok(())
        }),
        Trial::test("any_instructions_end_or_are_refused", || {
            any_instructions();
            Ok(())
        }),
        Trial::test("errors_tell_the_place", errors),
        Trial::test("offsets_of_the_kernels_are_those_of_the_packet", offsets),
        Trial::test("a_tag_beside_the_octets_is_one_in_them", tags),
        Trial::test("marks_tell_the_direction", marks),
        Trial::test("long_programs_jump_far", long),
        needing(
            "tcpdump_writes_the_same_frames",
            "tcpdump",
            tcpdump,
            second_witness,
        ),
        privileged("the_kernel_says_the_same", kernel),
        privileged("the_kernel_loads_the_same", loads),
        privileged("the_kernel_takes_what_is_a_program", programs),
    ];
    for (name, link_type, dlt) in [
        ("as_libpcap_on_ethernet", LinkType::ETHERNET, "EN10MB"),
        ("as_libpcap_on_cooked", LinkType::LINUX_SLL, "LINUX_SLL"),
        ("as_libpcap_on_cooked_2", LinkType::LINUX_SLL2, "LINUX_SLL2"),
        ("as_libpcap_on_raw", LinkType::RAW, "RAW"),
        ("as_libpcap_on_ipv4", LinkType::IPV4, "IPV4"),
        ("as_libpcap_on_ipv6", LinkType::IPV6, "IPV6"),
        ("as_libpcap_on_null", LinkType::NULL, "NULL"),
        ("as_libpcap_on_loop", LinkType::LOOP, "LOOP"),
    ] {
        trials.push(needing(name, "tcpdump", tcpdump, move || {
            as_libpcap(link_type, dlt)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Numbers that are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}

const PORTS: [u16; 6] = [22, 53, 80, 443, 1024, 50_000];
const V4: [[u8; 4]; 6] = [
    [10, 0, 0, 1],
    [10, 0, 0, 2],
    [10, 1, 2, 3],
    [192, 168, 1, 9],
    [224, 0, 0, 251],
    [255, 255, 255, 255],
];
const V6: [[u8; 16]; 3] = [
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2],
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb],
];
const MACS: [[u8; 6]; 4] = [
    [2, 0x42, 0xac, 0x11, 0, 2],
    [2, 0x42, 0xac, 0x11, 0, 3],
    [0xff; 6],
    [1, 0, 0x5e, 0, 0, 0xfb],
];

/// A packet of IPv4 (0x0800), IPv6 or ARP, and which.
fn packet(dice: &mut Dice) -> (u16, Vec<u8>) {
    let protocol = dice.pick(&[6, 6, 17, 17, 132, 1, 58, 2, 47, 0]);
    let mut inner = Vec::new();
    inner.extend(dice.pick(&PORTS).to_be_bytes());
    inner.extend(dice.pick(&PORTS).to_be_bytes());
    inner.extend(
        (0..20 + dice.roll(40)).map(|_| dice.pick(&[0_u8, 1, 2, 8, 0x10, 0x12, 0x50, 0xff])),
    );
    match dice.roll(10) {
        0 => {
            let ether_type = dice.pick(&[0x0806, 0x8035]);
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0x42, 0xac, 0x11, 0, 2];
            arp.extend(dice.pick(&V4));
            arp.extend([0; 6]);
            arp.extend(dice.pick(&V4));
            (ether_type, arp)
        }
        1..=3 => {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend((inner.len() as u16).to_be_bytes());
            let fragment = dice.roll(4) == 0;
            ip.extend([if fragment { 44 } else { protocol }, 64]);
            ip.extend(dice.pick(&V6));
            ip.extend(dice.pick(&V6));
            if fragment {
                ip.extend([protocol, 0, 0, dice.pick(&[0, 1, 8]), 0, 0, 0, 1]);
            }
            ip.extend(inner);
            (0x86dd, ip)
        }
        _ => {
            let words = dice.pick(&[5, 5, 5, 6, 8, 15]);
            let mut ip = vec![0x40 | words, 0];
            ip.extend((u16::from(words) * 4 + inner.len() as u16).to_be_bytes());
            ip.extend([0, 7]);
            ip.extend(
                dice.pick(&[0_u16, 0, 0, 0x4000, 0x2000, 0x2001, 185])
                    .to_be_bytes(),
            );
            ip.extend([64, protocol, 0, 0]);
            ip.extend(dice.pick(&V4));
            ip.extend(dice.pick(&V4));
            ip.resize(usize::from(words) * 4, 1);
            ip.extend(inner);
            (0x0800, ip)
        }
    }
}

/// Octets and length on the wire.
fn frame(dice: &mut Dice, link_type: LinkType) -> (Vec<u8>, u32) {
    let (mut ether_type, packet) = packet(dice);
    if dice.roll(12) == 0 {
        ether_type = dice.pick(&[0x0800, 0x86dd, 0x0806, 0x88cc, 0x8863, 0x0026]);
    }
    let mut octets = Vec::new();
    match link_type {
        LinkType::ETHERNET => {
            octets.extend(dice.pick(&MACS));
            octets.extend(dice.pick(&MACS));
            for _ in 0..dice.pick(&[0, 0, 0, 1, 1, 2]) {
                octets.extend(dice.pick(&[0x8100_u16, 0x88a8, 0x9100]).to_be_bytes());
                octets.extend(dice.pick(&[5_u16, 7, 0x2005]).to_be_bytes());
            }
            octets.extend(ether_type.to_be_bytes());
        }
        LinkType::LINUX_SLL => {
            octets.extend([
                0,
                dice.pick(&[0, 1, 4]),
                0,
                1,
                0,
                6,
                2,
                0x42,
                0xac,
                0x11,
                0,
                2,
                0,
                0,
            ]);
            octets.extend(ether_type.to_be_bytes());
        }
        LinkType::LINUX_SLL2 => {
            octets.extend(ether_type.to_be_bytes());
            octets.extend([0, 0, 0, 0, 0, 3, 0, 1, dice.pick(&[0, 1, 4]), 6]);
            octets.extend([2, 0x42, 0xac, 0x11, 0, 2, 0, 0]);
        }
        LinkType::NULL | LinkType::LOOP => {
            let family: u32 = match ether_type {
                0x0800 => AF_INET,
                0x86dd => AF_INET6,
                _ => dice.pick(&[0, 7, 0x0800, 0x0200, 0x0001_0002]),
            };
            // As Linux writes it, and libpcap there expects it.
            octets.extend(match link_type {
                LinkType::NULL => family.to_ne_bytes(),
                _ => family.to_be_bytes(),
            });
        }
        _ => {}
    }
    octets.extend(packet);
    let wire_len = octets.len() as u32;
    (octets, wire_len)
}

/// What BSD loopback calls the families: IPv4 everywhere, IPv6 on Linux.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// A BSD loopback frame as another system has written it, in its order and with its number of IPv6; any other frame as it is.
fn from_elsewhere(dice: &mut Dice, link_type: LinkType, octets: &[u8]) -> Vec<u8> {
    let mut octets = octets.to_vec();
    if let LinkType::NULL | LinkType::LOOP = link_type
        && let Some(head) = octets.first_chunk_mut()
    {
        let family = match link_type {
            LinkType::NULL => u32::from_ne_bytes(*head),
            _ => u32::from_be_bytes(*head),
        };
        let theirs = match family {
            AF_INET6 => dice.pick(&[10, 24, 28, 30]),
            other => other,
        };
        *head = dice.pick(&[theirs.to_le_bytes(), theirs.to_be_bytes()]);
    }
    octets
}

/// The same frames, one in five of them cut.
fn cut_frames(seed: u64, count: usize, link_type: LinkType) -> Vec<(Vec<u8>, u32)> {
    let mut dice = Dice(seed);
    let mut frames = frames(seed, count, link_type);
    for (octets, _) in &mut frames {
        if dice.roll(5) == 0 {
            octets.truncate(dice.roll(octets.len() + 1));
        }
    }
    frames
}

fn frames(seed: u64, count: usize, link_type: LinkType) -> Vec<(Vec<u8>, u32)> {
    let mut dice = Dice(seed);
    (0..count).map(|_| frame(&mut dice, link_type)).collect()
}

fn meta(link_type: LinkType, wire_len: u32) -> FrameMeta {
    FrameMeta {
        link_type,
        ..FrameMeta::ethernet(Timestamp::ZERO, wire_len)
    }
}

/// Primitives that every link type has.
const PRIMITIVES: &[&str] = &[
    "ip",
    "ip6",
    "arp",
    "rarp",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "igmp",
    "esp",
    "ah",
    "pim",
    "vrrp",
    "host 10.0.0.2",
    "src host 10.0.0.1",
    "dst 10.0.0.2",
    "src and dst host 10.0.0.1",
    "src or dst host 10.1.2.3",
    "ip host 10.0.0.1",
    "arp host 10.0.0.1",
    "rarp dst host 10.0.0.1",
    "host 2001:db8::1",
    "src host 2001:db8::1",
    "ip6 dst host ff02::fb",
    "net 2001:db8::/32",
    "dst net 2001:db8:0:1::/64",
    "net 10.0.0.0/8",
    "net 10",
    "src net 192.168",
    "net 10.1.0.0 mask 255.255.0.0",
    "net 0.0.0.0/0",
    "ip6 net ::/0",
    "dst net 10.0.0.0/31",
    "port 53",
    "tcp port 80",
    "udp src port 53",
    "sctp dst port 443",
    "src and dst port 443",
    "src or dst port 22",
    "tcp src and dst port 80",
    "portrange 50-100",
    "tcp dst portrange 443-1024",
    "udp portrange 100-50",
    "port 80 or 443",
    "port (22 or 53)",
    "port not 53",
    "proto 6",
    "ip proto 17",
    "ip6 proto 6",
    "ip proto 47",
    "ip6 proto 44",
    "ip multicast",
    "ip6 multicast",
    "less 60",
    "greater 70",
    "len > 80",
    "len <= 64",
    "len - 4 >= 60",
    "tcp[tcpflags] & tcp-syn != 0",
    "tcp[13] & (tcp-syn|tcp-fin) = 0",
    "tcp[13] = 0x12",
    "tcp[2:2] = 443",
    "udp[0:2] > 1000",
    "icmp[icmptype] = icmp-echo",
    "icmp[0] != icmp-echoreply",
    "icmp6[icmp6type] = 0",
    "ip[0] & 0xf > 5",
    "ip[6:2] & 0x1fff != 0",
    "ip[9] = tcp[0]",
    "ip[2:2] > len",
    "ip[2:2] - ((ip[0]&0xf)<<2) < 20",
    "tcp[((tcp[12] & 0xf0) >> 2):1] > 1",
    "ip6[6] = 44",
    "arp[6:2] = 1",
    "ip[8] * 2 = 128",
    "ip[8] / 3 > 20",
    "ip[8] % 7 = 1",
    "ip[8] ^ 64 = 0",
    "udp[ip[8] - 60] = 8",
    "ip[12:4] = 0x0a000001",
    "1 + 2 * 3 = 7",
    "ip[16] >= 224",
    "-ip[8] < 0xffffffd0",
    "tcp[0:2] = tcp[2:2]",
    "ip[8] | ip[9] & 3 = 2",
    "10 = ip[8]",
    "ip[0:4] >> 28 = 4",
];
const ETHERNET: &[&str] = &[
    "ether host 02:42:ac:11:00:02",
    "ether src 02:42:ac:11:00:03",
    "ether dst ff:ff:ff:ff:ff:ff",
    "ether src and dst host 02:42:ac:11:00:02",
    "broadcast",
    "ether broadcast",
    "multicast",
    "ether multicast",
    "ether proto 0x88cc",
    "ether proto \\ip6",
    "ether[0] & 1 = 0",
    "ether[12:2] = 0x0806",
    "ether[6:4] = 0x0242ac11",
    "vlan",
    "vlan 5",
    "vlan 7",
    "ether proto 0x8100",
];

fn primitives(link_type: LinkType) -> Vec<&'static str> {
    let more: &[_] = match link_type {
        LinkType::ETHERNET => ETHERNET,
        LinkType::LINUX_SLL | LinkType::LINUX_SLL2 => &["ether proto 0x88cc", "ether[0] = 0"],
        LinkType::NULL | LinkType::LOOP => &["ether[0] = 0", "ether[0:4] & 0xff00 = 0"],
        _ => &["ether[0] & 0xf0 = 0x60"],
    };
    [PRIMITIVES, more].concat()
}

fn expression(dice: &mut Dice, primitives: &[&str], depth: usize) -> String {
    let mut text = String::new();
    for place in 0..1 + dice.roll(3) {
        if place > 0 {
            text.push_str(dice.pick(&[" and ", " or ", " && ", " || "]));
        }
        if dice.roll(4) == 0 {
            text.push_str(dice.pick(&["not ", "! "]));
        }
        if depth > 0 && dice.roll(3) == 0 {
            text.push_str(&format!("({})", expression(dice, primitives, depth - 1)));
        } else {
            text.push_str(dice.pick(primitives));
        }
    }
    text
}

fn expressions(seed: u64, count: usize, link_type: LinkType) -> Vec<String> {
    let mut dice = Dice(seed);
    let primitives = primitives(link_type);
    let mut all: Vec<String> = primitives.iter().map(ToString::to_string).collect();
    all.extend(
        primitives
            .iter()
            .map(|primitive| format!("not ({primitive})")),
    );
    all.extend((0..count).map(|_| expression(&mut dice, &primitives, 2)));
    all
}

/// libpcap's program for the expression, without its optimiser: that of 1.10.3 takes a changed X for the one it was (as in
/// `(tcp[0:2] = tcp[2:2] || ! portrange 50-100) && ip[8] > 0`).
fn reference(expression: &str, dlt: &str) -> Result<Program, String> {
    let out = Command::new("tcpdump")
        .args(["-y", dlt, "-O", "-ddd", "--", expression])
        .output()
        .map_err(|error| error.to_string())?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let text = String::from_utf8(out.stdout).map_err(|error| error.to_string())?;
    let insns = text.lines().skip(1).map(|line| {
        let mut numbers = line.split(' ').map(|word| word.parse::<u32>().unwrap());
        let mut next = || numbers.next().unwrap();
        BpfInsn {
            code: next() as u16,
            jt: next() as u8,
            jf: next() as u8,
            k: next(),
        }
    });
    Program::new(insns.collect()).map_err(|error| error.to_string())
}

fn as_libpcap(link_type: LinkType, dlt: &str) -> Test {
    let mut dice = Dice(0xe15e);
    let frames: Vec<(Vec<u8>, u32, Vec<u8>)> = cut_frames(0x5eed, 3_000, link_type)
        .into_iter()
        .map(|(octets, wire_len)| {
            let elsewhere = from_elsewhere(&mut dice, link_type, &octets);
            (octets, wire_len, elsewhere)
        })
        .collect();
    let filter = Filter::new(link_type, SNAPLEN).at(Place::File);
    let plain = Filter {
        optimise: false,
        ..filter
    };
    let (mut compared, mut taken, mut wrong) = (0, 0, Vec::new());
    for text in expressions(0xd1ce, 220, link_type) {
        let theirs = match reference(&text, dlt) {
            Ok(program) => program,
            Err(said) => {
                wrong.push(format!("{text}: libpcap refuses: {said}"));
                continue;
            }
        };
        for filter in [filter, plain] {
            let ours = match filter.program(&text) {
                Ok(program) => program,
                Err(error) => {
                    wrong.push(format!("{text}: {error}"));
                    break;
                }
            };
            // Words of an address of which no bit counts are loaded by its program, not by ours: a cut frame may lack them.
            let loads_more = ["::/", "0.0.0.0/0"].iter().any(|net| text.contains(net));
            // Who asks for the octets of the family gets them.
            let reads_family = text.contains("ether[");
            let differs = frames.iter().find(|(octets, wire_len, elsewhere)| {
                if loads_more && octets.len() < *wire_len as usize {
                    return false;
                }
                let frame = Frame::new(octets, meta(link_type, *wire_len));
                taken += usize::from(ours.admits(&frame));
                compared += 1;
                let elsewhere = Frame::new(elsewhere, meta(link_type, *wire_len));
                let said = theirs.run(&frame);
                ours.run(&frame) != said || !reads_family && ours.run(&elsewhere) != said
            });
            if let Some((octets, ..)) = differs {
                wrong.push(format!(
                    "{text} (optimise {}): {octets:02x?}",
                    filter.optimise
                ));
            }
        }
    }
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    // Both answers occur, or nothing was compared.
    assert!(
        taken > compared / 20 && taken < compared * 19 / 20,
        "{taken} of {compared}"
    );
    Ok(())
}

/// tcpdump's own run over a file, not ours of its program.
fn second_witness() -> Test {
    let frames = frames(0xface, 1_000, LinkType::ETHERNET);
    let folder = std::env::temp_dir().join(format!("nv-filter-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("all.pcapng");
    let mut writer = CaptureWriter::new(std::fs::File::create(&path)?, "test")?;
    let number = writer.add_interface(&InterfaceDescription::default())?;
    // The time is the frame's number, in microseconds.
    for (at, (octets, wire_len)) in (1..).zip(&frames) {
        let mut meta = meta(LinkType::ETHERNET, *wire_len);
        meta.timestamp = Timestamp::from_nanos(at * 1_000);
        writer.write(number, &Frame::new(octets, meta))?;
    }
    writer.finish()?;
    let filter = Filter::new(LinkType::ETHERNET, SNAPLEN).at(Place::File);
    for text in expressions(0xb0b, 40, LinkType::ETHERNET) {
        let kept = folder.join("kept.pcap");
        let out = Command::new("tcpdump")
            .arg("-Or")
            .arg(&path)
            .arg("-w")
            .arg(&kept)
            .args(["--", &text])
            .output()?;
        assert!(out.status.success(), "{text}: {out:?}");
        let mut theirs = Vec::new();
        let mut file = CaptureFile::open(&kept)?;
        while let Next::Block(block) = file.next_block()? {
            theirs.extend(block.frames().map(|frame| frame.timestamp().as_micros()));
        }
        let program = filter.program(&text)?;
        let ours: Vec<u64> = (1..)
            .zip(&frames)
            .filter(|(_, (octets, wire_len))| {
                program.admits(&Frame::new(octets, meta(LinkType::ETHERNET, *wire_len)))
            })
            .map(|(at, _)| at)
            .collect();
        assert_eq!(ours, theirs, "{text}");
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A ring with the program sees what the interpreter takes of what a ring without one sees.
fn kernel() -> Test {
    let _pair = Pair::new()?;
    let frames: Vec<Vec<u8>> = cut_frames(0xcafe, 400, LinkType::ETHERNET)
        .into_iter()
        .map(|(octets, _)| octets)
        .filter(|octets| octets.len() >= 34)
        .collect();
    let config = RingConfig {
        block_size: 1 << 18,
        block_nr: 4,
        retire_blk_tov: Duration::from_millis(60),
        ..RingConfig::default()
    };
    let sender = RawSender::new("left")?;
    let (mut taken, mut left) = (0, 0);
    let mut texts: Vec<String> = [
        "vlan and tcp",
        "vlan 5 and ip",
        "vlan and vlan",
        "inbound",
        "outbound",
        "not vlan and udp",
    ]
    .map(String::from)
    .to_vec();
    texts.extend(
        expressions(0xfeed, 16, LinkType::ETHERNET)
            .into_iter()
            .skip(PRIMITIVES.len() / 2)
            .step_by(5),
    );
    for text in texts {
        let program = Filter::compile(&text, LinkType::ETHERNET, SNAPLEN)?;
        let with = RingConfig {
            filter: Some(program.instructions().to_vec()),
            ..config.clone()
        };
        let (mut all, mut some) = (Ring::open(&config, "right")?, Ring::open(&with, "right")?);
        for frame in &frames {
            sender.send(frame)?;
        }
        all.stop()?;
        some.stop()?;
        let mut expected = Vec::new();
        loop {
            match all.next_block(None)? {
                Next::Block(block) => {
                    for frame in block.frames() {
                        if program.admits(&frame) {
                            expected.push(frame.octets().to_vec());
                        } else {
                            left += 1;
                        }
                    }
                }
                Next::TimedOut => {}
                Next::End => break,
            }
        }
        let mut got = Vec::new();
        loop {
            match some.next_block(None)? {
                Next::Block(block) => {
                    got.extend(block.frames().map(|frame| frame.octets().to_vec()))
                }
                Next::TimedOut => {}
                Next::End => break,
            }
        }
        assert_eq!((all.stats()?.dropped, some.stats()?.dropped), (0, 0));
        taken += got.len();
        assert_eq!(got, expected, "{text}");
    }
    assert!(taken > 500 && left > 500, "{taken} taken, {left} left");
    Ok(())
}

fn insn(code: u16, k: u32) -> BpfInsn {
    let (jt, jf) = (0, 0);
    BpfInsn { code, jt, jf, k }
}

/// `SKF_AD_OFF`, `SKF_NET_OFF`, `SKF_LL_OFF`.
const AD: u32 = (-0x1000_i32) as u32;
const NET: u32 = (-0x10_0000_i32) as u32;
const LINK: u32 = (-0x20_0000_i32) as u32;

/// What is loaded shows in how much of a frame is kept.
fn loads() -> Test {
    let _pair = Pair::new()?;
    let small = RingConfig {
        block_size: 1 << 17,
        block_nr: 2,
        retire_blk_tov: Duration::from_millis(60),
        ..RingConfig::default()
    };
    let sender = RawSender::new("left")?;
    let mut dice = Dice(0x10ad);
    // As they are sent: a packet, one behind a tag, one behind two.
    let tags: [&[u8]; 3] = [&[], &[0x81, 0, 0x20, 5], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 5]];
    let frames = tags.map(|tags| {
        let mut octets = [&MACS[1][..], &MACS[0], tags, &[8, 0, 0x45, 0]].concat();
        octets.extend((octets.len()..400).map(|_| dice.roll(256) as u8));
        octets
    });
    let (w, h, b, msh) = (0x20, 0x28, 0x30, 0xb1);
    let offsets = [
        vec![0, 13, 397, 0x7fff_ffff, 0x8000_0000],
        [0, 13, 397].map(|k| LINK + k).to_vec(),
        vec![LINK - 1, NET - 1],
        [0, 9, 383].map(|k| NET + k).to_vec(),
        [4, 40, 44, 48, 60].map(|k| AD + k).to_vec(),
    ]
    .concat();
    let mut programs = Vec::new();
    for code in [w, h, b, w + 0x20, h + 0x20, b + 0x20, msh] {
        for &k in &offsets {
            // X, also as a negative number.
            let first: &[u32] = if code & 0x40 == 0 {
                &[7]
            } else {
                &[5, -2_i32 as u32]
            };
            for &x in first {
                let mut insns = vec![insn(0x00, 0x1234_5678), insn(0x01, x), insn(code, k)];
                if code == msh {
                    insns.push(insn(0x87, 0)); // txa
                }
                // The octets loaded, all in one; then what is kept is 20 to 275 octets.
                insns.extend([
                    insn(0x07, 0),  // tax
                    insn(0x74, 16), // rsh
                    insn(0xac, 0),  // xor x
                    insn(0x07, 0),
                    insn(0x74, 8),
                    insn(0xac, 0),
                    insn(0x54, 0xff),
                    insn(0x04, 20),
                    insn(0x16, 0),
                ]);
                programs.push(Program::new(insns)?);
            }
        }
    }
    let frames_of = |ring: &mut Ring| -> Result<Vec<(Vec<u8>, FrameMeta)>, Failed> {
        ring.stop()?;
        let mut found = Vec::new();
        loop {
            match ring.next_block(None)? {
                Next::Block(block) => {
                    found.extend(block.frames().map(|f| (f.octets().to_vec(), *f.meta())));
                }
                Next::TimedOut => {}
                Next::End => break Ok(found),
            }
        }
    };
    let (mut taken, mut left) = (0, 0);
    for programs in programs.chunks(100) {
        let mut all = Ring::open(&small, "right")?;
        let mut rings = Vec::new();
        for program in programs {
            let config = RingConfig {
                filter: Some(program.instructions().to_vec()),
                ..small.clone()
            };
            rings.push(Ring::open(&config, "right")?);
        }
        for frame in &frames {
            sender.send(frame)?;
        }
        let all = frames_of(&mut all)?;
        assert_eq!(all.len(), frames.len());
        for (program, ring) in programs.iter().zip(&mut rings) {
            let expected: Vec<Vec<u8>> = all
                .iter()
                .map(|(octets, meta)| (octets, program.run(&Frame::new(octets, *meta))))
                .filter(|(_, keep)| *keep > 0)
                .map(|(octets, keep)| octets[..octets.len().min(keep as usize)].to_vec())
                .collect();
            let got: Vec<Vec<u8>> = frames_of(ring)?.into_iter().map(|found| found.0).collect();
            assert_eq!(got, expected, "{:x?}", program.instructions());
            taken += got.len();
            left += all.len() - got.len();
        }
    }
    assert!(taken > 200 && left > 200, "{taken} taken, {left} left");
    Ok(())
}

/// Of any instructions, the kernel takes those that are a program, and no others but for what only it can answer.
fn programs() -> Test {
    let _pair = Pair::new()?;
    let config = RingConfig {
        block_size: 1 << 17,
        block_nr: 2,
        ..RingConfig::default()
    };
    let opened = |insns: &[BpfInsn]| {
        let config = RingConfig {
            filter: Some(insns.to_vec()),
            ..config.clone()
        };
        match Ring::open(&config, "right") {
            Ok(_) => true,
            Err(Error::Option {
                option: "SO_ATTACH_FILTER",
                ..
            }) => false,
            Err(other) => panic!("{other}"),
        }
    };
    let (ret_k, ret_x, ret_a) = (insn(0x06, 1), insn(0x0e, 0), insn(0x16, 0));
    let (store, load) = (insn(0x02, 3), insn(0x60, 3));
    let jump = |code, k, jt, jf| BpfInsn { code, jt, jf, k };
    let cases: [(&[BpfInsn], Result<(), Invalid>); 13] = [
        (&[ret_k], Ok(())),
        (&[ret_a], Ok(())),
        (&[ret_x], Err(Invalid::Instruction(0))),
        (&[ret_x, ret_k], Err(Invalid::Instruction(0))),
        (&[store], Err(Invalid::NoReturn)),
        (&[store, load, ret_a], Ok(())),
        (&[load, ret_a], Err(Invalid::Instruction(0))),
        // Written on one way only, on both, by a jump over it.
        (
            &[jump(0x15, 0, 0, 1), store, load, ret_a],
            Err(Invalid::Instruction(2)),
        ),
        (
            &[
                jump(0x15, 0, 0, 2),
                store,
                jump(0x05, 1, 0, 0),
                store,
                load,
                ret_a,
            ],
            Ok(()),
        ),
        (
            &[jump(0x05, 1, 0, 0), store, load, ret_a],
            Err(Invalid::Instruction(2)),
        ),
        // What the kernel alone knows: the processor; and what nobody does.
        (&[insn(0x20, AD + 36), ret_a], Err(Invalid::OnlyKernel(0))),
        (&[insn(0x30, AD + 2), ret_a], Err(Invalid::Instruction(0))),
        (&[insn(0x28, AD + 64), ret_a], Err(Invalid::Instruction(0))),
    ];
    for (insns, expected) in cases {
        let checked = Program::new(insns.to_vec()).map(|_| ());
        assert_eq!(checked, expected, "{insns:x?}");
        let takes = matches!(expected, Ok(()) | Err(Invalid::OnlyKernel(_)));
        assert_eq!(opened(insns), takes, "{insns:x?}");
    }
    let mut dice = Dice(0xb1f);
    let codes: Vec<u16> = (0..0x100).collect();
    let operands = [
        0,
        1,
        2,
        3,
        31,
        32,
        0x7fff_ffff,
        AD + 4,
        AD + 8,
        AD + 60,
        NET,
        LINK,
    ];
    let (mut good, mut bad) = (0, 0);
    for _ in 0..300 {
        // Codes that are known, mostly, so that some go through.
        let known = [
            0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x07, 0x15, 0x1d, 0x20, 0x28, 0x30, 0x45, 0x48,
            0x50, 0x60, 0x61, 0x64, 0x74, 0x80, 0x81, 0x84, 0x87, 0xb1,
        ];
        let mut insns: Vec<BpfInsn> = (0..1 + dice.roll(6))
            .map(|_| BpfInsn {
                code: if dice.roll(8) == 0 {
                    dice.pick(&codes)
                } else {
                    dice.pick(&known)
                },
                jt: dice.roll(3) as u8,
                jf: dice.roll(3) as u8,
                k: dice.pick(&operands),
            })
            .collect();
        insns.extend([ret_k, ret_a]);
        let takes = opened(&insns);
        match Program::new(insns.clone()) {
            Ok(_) => assert!(takes, "{insns:x?}"),
            // There may be something else behind it that the kernel refuses.
            Err(Invalid::OnlyKernel(_)) => continue,
            Err(_) => assert!(!takes, "{insns:x?}"),
        }
        good += usize::from(takes);
        bad += usize::from(!takes);
    }
    assert!(good > 30 && bad > 30, "{good} taken, {bad} refused");
    Ok(())
}

/// Of each link type, and where a tag is in the octets or beside them.
fn offsets() -> Test {
    let net = Program::new(vec![insn(0x30, NET + 1), insn(0x16, 0)])?;
    let link = Program::new(vec![insn(0x30, LINK + 1), insn(0x16, 0)])?;
    let tpid = Program::new(vec![insn(0x28, AD + 60), insn(0x16, 0)])?;
    let octets: Vec<u8> = (100..160).collect();
    let tag = Some(VlanTag {
        tpid: 0x88a8,
        tci: 5,
    });
    for (link_type, packet) in [
        (LinkType::ETHERNET, Some(14)),
        (LinkType::RAW, Some(0)),
        (LinkType::RAW_12, Some(0)),
        (LinkType::RAW_14, Some(0)),
        (LinkType::IPV4, Some(0)),
        (LinkType::IPV6, Some(0)),
        (LinkType::NULL, Some(4)),
        (LinkType::LOOP, Some(4)),
        (LinkType::LINUX_SLL, Some(16)),
        (LinkType::LINUX_SLL2, Some(20)),
        (LinkType::PPP, None),
    ] {
        let frame = Frame::new(&octets, meta(link_type, 60));
        assert_eq!(
            net.run(&frame),
            packet.map_or(0, |at| 101 + at),
            "{link_type}"
        );
        assert_eq!(link.run(&frame), 101);
        assert_eq!(tpid.run(&frame), 0);
    }
    for (ether_type, vlan, packet) in [
        ([0x81, 0], None, 18),
        ([0x88, 0xa8], None, 18),
        ([0x91, 0], None, 14),
        ([0x81, 0], tag, 14),
    ] {
        let mut octets = octets.clone();
        octets[12..14].copy_from_slice(&ether_type);
        let meta = FrameMeta {
            vlan,
            ..meta(LinkType::ETHERNET, 60)
        };
        let frame = Frame::new(&octets, meta);
        assert_eq!(net.run(&frame), 101 + packet);
        assert_eq!(tpid.run(&frame), if vlan.is_some() { 0x88a8 } else { 0 });
    }
    Ok(())
}

/// Failures are not written to a file: there is no library beside this test to write it to.
fn quiet() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn optimised() {
    let primitives = primitives(LinkType::ETHERNET);
    let frames = cut_frames(0xabba, 200, LinkType::ETHERNET);
    proptest!(quiet(), |(seed in 1_u64.., depth in 0_usize..5)| {
        let text = expression(&mut Dice(seed), &primitives, depth);
        let filter = Filter::new(LinkType::ETHERNET, SNAPLEN);
        let plain = Filter { optimise: false, ..filter };
        let (fast, plain) = (filter.program(&text).unwrap(), plain.program(&text).unwrap());
        prop_assert!(fast.instructions().len() <= plain.instructions().len());
        for (octets, wire_len) in &frames {
            let mut meta = meta(LinkType::ETHERNET, *wire_len);
            if octets.len() % 3 == 0 {
                meta.vlan = Some(VlanTag { tpid: 0x8100, tci: 5 });
            }
            let frame = Frame::new(octets, meta);
            prop_assert_eq!(fast.run(&frame), plain.run(&frame), "{}", text);
        }
    });
}

fn any_text() {
    proptest!(quiet(), |(text in "[a-z0-9 ()!&|=<>:./\\[\\]-]{0,60}|\\PC{0,40}")| {
        for link_type in [LinkType::ETHERNET, LinkType::RAW, LinkType::NULL] {
            if let Err(error) = Filter::compile(&text, link_type, 1) {
                prop_assert!(text.is_char_boundary(error.position()), "{}", error);
            }
        }
    });
}

fn any_instructions() {
    let insn = (
        any::<u8>(),
        any::<u8>(),
        any::<u8>(),
        prop_oneof![0_u32..20, any::<u32>()],
    )
        .prop_map(|(code, jt, jf, k)| BpfInsn {
            code: code.into(),
            jt: jt % 4,
            jf: jf % 4,
            k,
        });
    let octets = prop::collection::vec(any::<u8>(), 0..64);
    proptest!(quiet(), |(mut insns in prop::collection::vec(insn, 0..12), octets in octets)| {
        insns.push(BpfInsn { code: 0x16, jt: 0, jf: 0, k: 0 });
        if let Ok(program) = Program::new(insns) {
            let _ = program.run(&Frame::new(&octets, meta(LinkType::ETHERNET, 64)));
        }
    });
}

fn errors() -> Test {
    let cases = [
        (
            "tcp prt 443",
            4,
            "expected `and`, `or` or the end, found `prt`",
        ),
        ("host web-1", 5, "names are not resolved"),
        ("tcp port", 8, "found the end"),
        ("port 70000", 5, "beyond 65535"),
        ("(tcp or udp", 11, "expected `)`"),
        ("tcp and", 7, "expected a primitive"),
        ("net 10.0.0.1/8", 4, "beyond its prefix"),
        ("host 10.0.0.0/8", 5, "write `net 10.0.0.0/8`"),
        ("icmp port 7", 0, "have ports"),
        ("tcp[0:3] = 1", 6, "1, 2 or 4"),
        ("ip[0] / 0 = 1", 8, "division by zero"),
        ("gateway 10.0.0.1", 0, "not supported"),
        ("mpls", 0, "ether proto 0x8847"),
        ("443", 0, "write `port 443`"),
        ("vlan 5000", 5, "at most 4095"),
        ("ip6 host 10.0.0.1", 9, "IPv4 address"),
        ("ether proto 4", 12, "LLC"),
        ("tcp[13] & 2", 11, "expected `=`"),
    ];
    for (text, position, what) in cases {
        let error = Filter::compile(text, LinkType::ETHERNET, 1).unwrap_err();
        assert!(error.what().contains(what), "{text}: {error}");
        assert_eq!(error.position(), position, "{text}: {error}");
    }
    for deep in ["(".repeat(5_000), "not ".repeat(5_000), "ip[".repeat(5_000)] {
        assert!(Filter::compile(&deep, LinkType::ETHERNET, 1).is_err());
    }
    let file = Filter::new(LinkType::ETHERNET, 1).at(Place::File);
    assert!(
        file.program("inbound")
            .unwrap_err()
            .what()
            .contains("direction")
    );
    let raw = Filter::compile("vlan", LinkType::RAW, 1).unwrap_err();
    assert!(raw.what().contains("link type RAW"), "{raw}");
    Ok(())
}

fn tags() -> Test {
    let mut differed = 0;
    for text in [
        "vlan",
        "vlan 5",
        "vlan and ip",
        "vlan 7 and tcp port 443",
        "not vlan",
        "vlan and vlan 5",
        "vlan and not udp",
    ] {
        let program = Filter::compile(text, LinkType::ETHERNET, SNAPLEN)?;
        for (octets, wire_len) in frames(0x7a65, 2_000, LinkType::ETHERNET) {
            let Some(&[a, b, c, d]) = octets.get(12..).and_then(|rest| rest.first_chunk()) else {
                continue;
            };
            let tpid = u16::from_be_bytes([a, b]);
            if ![0x8100, 0x88a8, 0x9100].contains(&tpid) {
                continue;
            }
            let inside = Frame::new(&octets, meta(LinkType::ETHERNET, wire_len));
            let without = [&octets[..12], &octets[16..]].concat();
            let mut meta = meta(LinkType::ETHERNET, wire_len);
            meta.vlan = Some(VlanTag {
                tpid,
                tci: u16::from_be_bytes([c, d]),
            });
            assert_eq!(
                program.run(&inside),
                program.run(&Frame::new(&without, meta)),
                "{text}"
            );
            differed += usize::from(program.admits(&inside));
        }
    }
    assert!(differed > 100);
    Ok(())
}

fn marks() -> Test {
    let filter = Filter::new(LinkType::ETHERNET, 1).at(Place::Marked);
    let (inbound, outbound) = (filter.program("inbound")?, filter.program("outbound")?);
    let frame =
        |destination: &[u8; 6], source: &[u8; 6]| [&destination[..], source, &[8, 0]].concat();
    for (octets, enters, leaves) in [
        (frame(&[2; 6], b"NeuV\x00\x01"), false, true),
        (frame(b"NeuV\x00\x01", &[2; 6]), true, false),
        (frame(b"OeuV\x00\x01", &[2; 6]), true, false),
        (frame(b"NeuV\x00\x02", b"NeuV\x00\x01"), false, true),
        (frame(&[2; 6], &[4; 6]), false, false),
    ] {
        let frame = Frame::new(&octets, meta(LinkType::ETHERNET, 14));
        assert_eq!(
            (inbound.admits(&frame), outbound.admits(&frame)),
            (enters, leaves)
        );
    }
    for refused in ["ether host 02:42:ac:11:00:02", "broadcast"] {
        assert!(filter.program(refused).unwrap_err().what().contains("mark"));
    }
    Ok(())
}

fn long() -> Test {
    let hosts: Vec<String> = (0..600)
        .map(|n| format!("src host 10.0.{}.{}", n / 250, n % 250 + 1))
        .collect();
    let text = format!("ip and ({})", hosts.join(" or "));
    let program = Filter::compile(&text, LinkType::ETHERNET, SNAPLEN)?;
    let mut octets = vec![0; 34];
    octets[12] = 8;
    for (source, wanted) in [
        ([10, 0, 0, 1], true),
        ([10, 0, 2, 100], true),
        ([10, 0, 2, 101], false),
        ([10, 9, 0, 1], false),
    ] {
        octets[26..30].copy_from_slice(&source);
        let frame = Frame::new(&octets, meta(LinkType::ETHERNET, 34));
        assert_eq!(program.admits(&frame), wanted, "{source:?}");
    }
    let many: Vec<String> = (0..3_000)
        .map(|n| format!("host 10.{}.{}.1", n / 250, n % 250))
        .collect();
    let error = Filter::compile(&many.join(" or "), LinkType::ETHERNET, 1).unwrap_err();
    assert!(error.what().contains("BPF_MAXINSNS"), "{error}");
    Ok(())
}
