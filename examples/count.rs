//! Counts frames and octets on an interface for ten seconds, and what was lost.
//!
//! ```console
//! # cargo run -p nv-examples --example count -- eth0
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use nvcapture::{Next, Ring, RingConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let interface = std::env::args().nth(1).ok_or("usage: count INTERFACE")?;

    // Only the heads are of interest, so the kernel copies no more than those.
    let config = RingConfig {
        snaplen: Some(96),
        ..RingConfig::default()
    };
    let mut ring = Ring::open(&config, &interface[..])?;

    let end = Instant::now() + Duration::from_secs(10);
    let (mut frames, mut octets) = (0_u64, 0_u64);
    let mut stopped = false;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() && !stopped {
            // From here on no new frame is taken; those that wait in the ring still come.
            ring.stop()?;
            stopped = true;
        }
        match ring.next_block((!stopped).then_some(left))? {
            Next::Block(block) => {
                for frame in block.frames() {
                    frames += 1;
                    octets += u64::from(frame.wire_len());
                }
            }
            Next::TimedOut => {}
            Next::End => break,
        }
    }
    let lost = ring.stats()?.dropped;
    println!("{interface}: {frames} frames, {octets} octets, {lost} lost");
    Ok(())
}
