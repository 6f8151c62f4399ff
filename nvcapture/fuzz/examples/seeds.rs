//! Writes the inputs to start from into a folder for each target: `cargo run --example seeds -- corpus`.

use std::path::Path;

use nvcapture_fuzz::seeds;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| "corpus".into());
    let with_head = |head: &[u8], file: &[u8]| [head, file].concat();
    let (pcap, pcapng) = (seeds::pcap_files(), seeds::pcapng_files());
    let targets: [(&str, Vec<Vec<u8>>); 5] = [
        ("wire", seeds::wire_inputs()),
        // Which link type and place, what is told beside the octets, an expression, and a frame behind it.
        (
            "filter",
            [
                "tcp port 443 and host 10.0.0.2",
                "vlan 5 and not (udp or icmp6)",
                "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
                "ip[2:2] - ((ip[0]&0xf)<<2) > len / 3",
                "net 10.0.0.0/8 or ip6 net 2001:db8::/32",
                "src or dst portrange 1-1024 || less 60",
                "ether host 02:42:ac:11:00:02 or broadcast or multicast",
                "inbound and port (domain or 53) and proto 17",
            ]
            .iter()
            .zip(seeds::wire_inputs())
            .map(|(text, frame)| with_head(b"\0\0", &[text.as_bytes(), b"\n", &frame].concat()))
            .collect(),
        ),
        // How the octets come, and what is put before them: the magic number or the section header.
        (
            "pcap",
            (0..)
                .zip(&pcap)
                .map(|(n, file)| with_head(&[n * 3, n / 5], &file[4..]))
                .collect(),
        ),
        (
            "pcapng",
            (0..)
                .zip(&pcapng)
                .map(|(n, file)| {
                    let is_big = file[8] == 0x1a;
                    let section = usize::from(file[if is_big { 7 } else { 4 }]);
                    with_head(&[n * 3, u8::from(is_big)], &file[section..])
                })
                .collect(),
        ),
        (
            "capture",
            (0..)
                .zip(pcap.iter().chain(&pcapng))
                .map(|(n, file)| with_head(&[n * 3], file))
                .collect(),
        ),
    ];
    for (target, inputs) in targets {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, input) in inputs.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:03}")), input)?;
        }
        println!("{}: {} inputs", folder.display(), inputs.len());
    }
    Ok(())
}
