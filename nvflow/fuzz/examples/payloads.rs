//! Writes what connections in captures begin with into a folder, to start from: `cargo run --example payloads -- corpus/app FILE...`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nvcapture::wire::{Headers, Transport};
use nvcapture::{CaptureFile, Next};
use nvflow::FlowKey;

/// Frames of a connection that are taken, one after the other, as one input.
const FRAMES: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().unwrap_or_else(|| "corpus/app".into());
    std::fs::create_dir_all(&folder)?;
    let mut count = 0;
    for file in arguments {
        count += payloads(&file, &folder, count);
    }
    println!("{count} inputs");
    Ok(())
}

fn payloads(file: &Path, folder: &Path, first: usize) -> usize {
    let mut count = 0;
    let mut seen: HashMap<FlowKey, usize> = HashMap::new();
    let Ok(mut capture) = CaptureFile::open(file) else {
        return 0;
    };
    while let Ok(Next::Block(block)) = capture.next_block() {
        for frame in block.frames() {
            let Ok(headers) = Headers::parse(&frame) else {
                continue;
            };
            let how: u8 = match headers.transport {
                Transport::Tcp(_) => 0,
                Transport::Udp(_) => 2,
                _ => continue,
            };
            let (key, direction) = FlowKey::of(&headers, None, false);
            let frames = seen.entry(key).or_default();
            if headers.payload.is_empty() || *frames == FRAMES {
                continue;
            }
            *frames += 1;
            let mut input = vec![how | direction as u8, 255, 90, 7];
            input.extend(headers.payload);
            // What cannot be written is missed by nobody.
            let _ = std::fs::write(folder.join(format!("{}", first + count)), input);
            count += 1;
        }
    }
    count
}
