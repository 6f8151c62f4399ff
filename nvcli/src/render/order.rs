//! What records are worth in an order.

use nvflow::{FlowRecord, Side, TcpRecord, TcpSide};

use crate::args::SortKey;

/// What a record is worth; the greatest comes first.
pub(crate) fn rank(record: &FlowRecord, key: SortKey) -> u64 {
    let both = |pick: fn(&Side) -> u64| pick(&record.forward).saturating_add(pick(&record.reverse));
    match key {
        SortKey::Octets => both(|side| side.octets),
        SortKey::Packets => both(|side| side.packets),
        SortKey::Duration => u64::try_from(record.duration().as_nanos()).unwrap_or(u64::MAX),
        SortKey::Start => u64::MAX - record.flow_start.as_nanos(),
        SortKey::Rate => {
            let nanos = record.duration().as_nanos().max(1_000);
            let rate = u128::from(both(|side| side.octets)) * 1_000_000_000 / nanos;
            u64::try_from(rate).unwrap_or(u64::MAX)
        }
        SortKey::Rtt => handshake_rtt(record).unwrap_or_default(),
        SortKey::Retransmits => retransmitted(record),
        // A millionth tells any two shares apart that are worth it.
        SortKey::Loss => loss(record).map_or(0, |share| (share * 1e6) as u64),
    }
}

/// Both parts of the handshake's round trip, or the one that is known. Unit: microseconds.
pub(crate) fn handshake_rtt(record: &FlowRecord) -> Option<u64> {
    let tcp = record.tcp.as_ref()?;
    let (client, server) = (
        tcp.client_handshake_rtt_micros,
        tcp.server_handshake_rtt_micros,
    );
    match (client, server) {
        (Some(client), Some(server)) => Some(u64::from(client) + u64::from(server)),
        (one, other) => one.or(other).map(u64::from),
    }
}

fn both_sides(tcp: &TcpRecord, pick: fn(&TcpSide) -> u32) -> u64 {
    u64::from(pick(&tcp.forward)) + u64::from(pick(&tcp.reverse))
}

/// Segments of both sides that were sent again.
pub(crate) fn retransmitted(record: &FlowRecord) -> u64 {
    let again = |side: &TcpSide| side.retransmitted_segments;
    record.tcp.as_ref().map_or(0, |tcp| both_sides(tcp, again))
}

/// The share of TCP packets that were sent again: what the network lost, or was thought to have lost.
pub(crate) fn loss(record: &FlowRecord) -> Option<f64> {
    let packets = record.forward.packets + record.reverse.packets;
    (record.tcp.is_some() && packets > 0).then(|| retransmitted(record) as f64 / packets as f64)
}
