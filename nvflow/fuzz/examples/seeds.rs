//! Writes the inputs to start from into a folder: `cargo run --example seeds -- corpus/table`.

use std::path::Path;

use nvflow_fuzz::{Script, kind};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Host 0, port 80 to host 1, port 81; and back.
const THERE: u8 = 0b01_00_01_00;
const BACK: u8 = 0b00_01_00_01;

/// A connection from SYN to the last ACK, with data that is sent twice.
fn connection(script: Script, kind: u8) -> Script {
    script
        .frame(kind, THERE, SYN, 0, 0, 3)
        .frame(kind, BACK, SYN | ACK, 0x10, 0, 3)
        .frame(kind, THERE, ACK, 0x11, 0, 3)
        .frame(kind, THERE, ACK, 0x11, 4, 3)
        .frame(kind, THERE, ACK, 0x11, 4, 5)
        .frame(kind, BACK, ACK, 0x51, 255, 3)
        .look()
        .frame(kind, THERE, FIN | ACK, 0x15, 0, 3)
        .frame(kind, BACK, FIN | ACK, 0x61, 0, 3)
        .frame(kind, THERE, ACK, 0x26, 0, 3)
}

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| "corpus/table".into());
    std::fs::create_dir_all(&folder)?;
    let mut scripts = Vec::new();
    for config in [
        [0x06, 3, 0],
        [0x27, 200, 0],
        [0x16, 1, 0x55],
        [0x04, 0, 0xff],
        [0x01, 15, 0xaa],
    ] {
        let new = || Script::new(config);
        for how in [
            0,
            kind::V6,
            kind::VLAN,
            kind::CUT,
            kind::MARKED_SOURCE,
            kind::MARKED_DESTINATION,
        ] {
            scripts.push(connection(new(), kind::TCP | how));
            scripts.push(connection(new(), kind::TUNNEL | how));
            scripts.push(connection(new(), kind::TCP | how).expire(10));
            let mut many = new();
            for number in 0..40_u8 {
                // A flood: every pair of ends, all kinds that are no segment too.
                let ends = number.wrapping_mul(37);
                many = many.frame(kind::TCP | how, ends, SYN, number, 0, 2).frame(
                    [kind::UDP, kind::ICMP, kind::OTHER][usize::from(number % 3)] | how,
                    ends,
                    132,
                    number,
                    20,
                    4,
                );
            }
            scripts.push(many.look().expire(11));
            let mut fragments = new();
            for number in [0, 1, 2, 3, 5, 4] {
                fragments = fragments.frame(kind::FRAGMENT | how, THERE, 0, number, 16, 3);
            }
            scripts.push(fragments);
        }
        let reset = new()
            .frame(kind::TCP, THERE, SYN, 0, 0, 3)
            .frame(kind::TCP, BACK, RST | ACK, 0x10, 0, 3)
            .frame(kind::TCP, THERE, SYN, 9, 0, 8)
            .frame(kind::UDP, THERE, 0, 0, 9, 12)
            .frame(kind::UDP, BACK, 0, 0, 9, 15);
        scripts.push(reset.raw(&[2; 20]).raw(&[]));
    }
    for (number, script) in scripts.iter().enumerate() {
        std::fs::write(
            Path::new(&folder).join(format!("seed-{number:03}")),
            &script.0,
        )?;
    }
    println!("{}: {} inputs", folder.display(), scripts.len());
    Ok(())
}
