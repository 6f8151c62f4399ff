//! Attaches a network namespace as a mirror, waits for Enter, detaches.
//!
//! ```console
//! # cargo run -p nv-examples --example attach -- /run/netns/blue
//! ```

use std::error::Error;
use std::path::Path;

use nvnet::{Mode, Netns, Plan, Workload};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: attach /run/netns/NAME | /proc/PID/ns/net")?;
    let host = Netns::current()?;
    let target = Netns::at_path(Path::new(&path))?;

    let workload = Workload {
        name: "example".into(),
        ..Workload::default()
    };
    let plan = Plan::new(&host, &target, workload)
        .mode(Mode::Mirror)
        .check()?;
    for step in plan.steps() {
        println!("will {step}");
    }

    // All interfaces or none: what fails half-way is taken back before the error arrives here.
    let attached = plan.attach()?;
    for attachment in &attached {
        println!(
            "{}: frames on nv-br carry {}",
            attachment.interface,
            attachment.id.mac()
        );
    }

    println!("press Enter to detach");
    std::io::stdin().read_line(&mut String::new())?;
    for attachment in attached {
        nvnet::detach(&host, attachment.id)?;
    }
    Ok(())
}
