//! IPFIX messages (RFC 7011) with both directions of a connection in one record (RFC 5103).

mod element;
mod message;
mod transport;

use super::config::{IpfixTo, Transport};
use super::lane::Exporter;

/// The private enterprise number of examples (RFC 5612), which our own elements have where no other is configured: there is none of ours.
pub(super) const DOCUMENTATION: u32 = 32_473;

/// An exporter to this collector.
pub(super) fn exporter(to: &IpfixTo) -> Box<dyn Exporter> {
    match to.transport {
        Transport::Udp => Box::new(transport::Udp::new(to)),
        Transport::Tcp => Box::new(transport::Tcp::new(to)),
    }
}
