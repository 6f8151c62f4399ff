//! Metering allocates nothing per frame: not in a table that is filling, not in one that is full and gives connections up.

#[path = "support/frames.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod frames;

use std::convert::Infallible;
use std::ops::ControlFlow;

use frames::{ACK, Made, SYN, tcp, udp, v4, v6};
use nvflow::{FlowRecord, Meter, MeterConfig, sink_fn};

#[test]
fn nothing_is_allocated_per_frame() {
    let made: Vec<Made> = (0..10_000_u64)
        .flat_map(|n| {
            let port = n as u16;
            let ends = (v4(1, port), v4(2, 80));
            [
                tcp(n, ends, SYN, (0, 0), 0),
                tcp(n, (ends.1, ends.0), SYN | ACK, (0, 1), 0),
                tcp(n, ends, ACK, (1, 1), 10),
                udp(n, v6(3, port), v6(4, 53), 30),
            ]
        })
        .collect();
    let mut meter = Meter::new(MeterConfig {
        max_connections: 1_000,
        ..MeterConfig::default()
    })
    .expect("memory");
    let mut seen = 0;
    let mut sink = sink_fn(|_: &FlowRecord| {
        seen += 1;
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    });
    let allocated = allocation_counter::measure(|| {
        let Ok(_) = meter.observe(made.iter().map(Made::frame), &mut sink);
        let Ok(_) = meter.finish(&mut sink);
    });
    assert_eq!(allocated.count_total, 0);
    let stats = meter.stats();
    assert_eq!(
        (stats.metered + stats.refused, stats.connections),
        (40_000, 0)
    );
    assert!(
        seen > 1_000 && stats.evicted_embryonic + stats.evicted_idle > 1_000,
        "{stats:?}"
    );
}
