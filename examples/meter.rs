//! Meters a capture file and prints its connections.
//!
//! ```console
//! $ cargo run -p nv-examples --example meter -- trace.pcapng
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::ops::ControlFlow;

use nvcapture::{CaptureFile, Next};
use nvflow::{FlowRecord, Meter, MeterConfig, sink_fn};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: meter FILE")?;
    let mut file = CaptureFile::open(&path)?;
    let mut meter = Meter::new(MeterConfig::default())?;

    // Records are pushed as connections end; this sink wants them all.
    let mut print = sink_fn(|record: &FlowRecord| {
        println!(
            "{}:{} -> {}:{} protocol {}: {} and {} packets, {:?}",
            record.source.address,
            record.source.port,
            record.destination.address,
            record.destination.port,
            record.protocol_identifier,
            record.forward.packets,
            record.reverse.packets,
            record.duration(),
        );
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    });

    while let Next::Block(block) = file.next_block()? {
        let _ = meter.observe(block.frames(), &mut print)?;
    }
    let _ = meter.finish(&mut print)?;

    let stats = meter.stats();
    println!(
        "{} frames in {} records, {} without an IP packet",
        stats.frames, stats.records, stats.not_ip
    );
    Ok(())
}
