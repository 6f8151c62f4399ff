//! Writes the inputs to start from into a folder for each target: `cargo run --example seeds -- corpus`.

use std::path::Path;

use nvcapture_fuzz::seeds;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| "corpus".into());
    let with_head = |head: &[u8], file: &[u8]| [head, file].concat();
    let (pcap, pcapng) = (seeds::pcap_files(), seeds::pcapng_files());
    let targets: [(&str, Vec<Vec<u8>>); 4] = [
        ("wire", seeds::wire_inputs()),
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
