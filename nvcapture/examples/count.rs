//! Counts the frames of a capture file: `cargo run -p nvcapture --example count -- FILE`.

use std::process::ExitCode;

use nvcapture::{CaptureFile, Error, FrameSource, Next};

fn count(capture: &mut CaptureFile) -> Result<(), Error> {
    while let Next::Block(block) = capture.next_block()? {
        drop(block); // its frames are counted, looked at or not
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: count FILE (pcap or pcapng)");
        return ExitCode::from(2);
    };
    let result = CaptureFile::open(path).and_then(|mut capture| {
        let read = count(&mut capture);
        let stats = capture.stats()?;
        println!(
            "{} frames, {} octets on the wire",
            stats.frames, stats.wire_octets
        );
        read // a damaged file is counted up to the damage
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
