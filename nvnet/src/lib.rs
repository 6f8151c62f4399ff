//! Attaches a container's network interfaces to the bridge `nv-br`, over netlink alone.
//!
//! See the crate's README for what an attachment changes on a system, and `docs/architecture.md` for why.
//!
//! ```no_run
//! use nvnet::{Mode, Netns, Plan, Workload};
//!
//! # fn main() -> Result<(), nvnet::Error> {
//! let host = Netns::current()?;
//! let target = Netns::of_pid(4711)?;
//! let workload = Workload { name: "web-1".into(), ..Workload::default() };
//!
//! let plan = Plan::new(&host, &target, workload).mode(Mode::Mirror).check()?;
//! for step in plan.steps() {
//!     println!("{step}");
//! }
//! for attachment in plan.attach()? {
//!     println!("{} is read on nv-br as {}", attachment.interface, attachment.id.mac());
//!     nvnet::detach(&host, attachment.id)?;
//! }
//! # Ok(())
//! # }
//! ```

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod attach;
mod attr;
mod bpf;
mod diag;
mod error;
mod events;
mod features;
mod identity;
mod ids;
mod inventory;
mod keep;
#[doc(hidden)]
pub mod lab;
mod link;
mod lock;
mod memlock;
mod netns;
mod probe;
mod session;
mod socket;
mod survey;
mod switch;
mod sys;
mod sysctl;
mod tc;

pub use attach::{CheckedPlan, Plan, Step, detach, detach_observed};
pub use error::Error;
pub use events::{LinkEvent, LinkEvents, LinkNews};
pub use features::{Features, Probe};
pub use ids::{
    AttachmentId, BRIDGE, EX_PREFIX, GROUP, MAC_PREFIX, MacAddr, Mode, PORT_PREFIX, TAP_PREFIX,
    Workload,
};
pub use inventory::{
    Attachment, Fate, ForeignFilter, Health, Orphan, Repaired, foreign_filters, inspect, links,
    list, number_of, repair, repair_target, repair_with,
};
pub use link::{Link, LinkStats};
pub use lock::Waiting;
pub use netns::{Netns, NetnsId};
pub use probe::{Blackout, Probed};
pub use session::{Outcome, Session};
pub use survey::{Remark, Survey, survey};
