//! Filters: libpcap's compiler, tcpdump and the kernel say the same of the same frames.
#![allow(clippy::unwrap_used, reason = "in a test an error is a failure")]

#[allow(dead_code, reason = "shared with the tests of rings")]
mod common;

use std::process::Command;
use std::time::Duration;

use common::{Pair, RawSender, needing, privileged};
use libtest_mimic::{Arguments, Failed, Trial};
use nvcapture::filter::{Filter, Place, Program};
use nvcapture::{
    BpfInsn, CaptureFile, CaptureWriter, Frame, FrameMeta, InterfaceDescription, LinkType, Next,
    Ring, RingConfig, Timestamp, VlanTag,
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
