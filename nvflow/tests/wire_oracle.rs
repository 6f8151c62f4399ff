//! Our walk through a frame's headers against etherparse's: what both read, both must read alike.

use etherparse::{LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice, VlanSlice};
use nvcapture::wire::{Headers, Ip, Plain, Transport};
use nvcapture::{Frame, FrameMeta, LinkType, Timestamp};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Kind {
    vlan: u8,
    v6: bool,
    transport: u8,
}

fn build(kind: Kind, ports: (u16, u16), payload: usize) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let payload = vec![0xab; payload];
    let mut octets = Vec::new();
    macro_rules! finish {
        ($ip:expr) => {
            match kind.transport {
                0 => $ip
                    .tcp(ports.0, ports.1, 77, 1_024)
                    .syn()
                    .write(&mut octets, &payload),
                1 => $ip.udp(ports.0, ports.1).write(&mut octets, &payload),
                _ => $ip
                    .icmpv4_echo_request(ports.0, 1)
                    .write(&mut octets, &payload),
            }
            .expect("written to memory")
        };
    }
    macro_rules! network {
        ($link:expr) => {
            if kind.v6 {
                finish!($link.ipv6([1; 16], [9; 16], 64))
            } else {
                finish!($link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64))
            }
        };
    }
    let id = |id: u16| etherparse::VlanId::try_new(id).expect("12 bits");
    match kind.vlan {
        0 => network!(link),
        1 => network!(link.single_vlan(id(7))),
        _ => network!(link.double_vlan(id(5), id(6))),
    }
    octets
}

fn kinds() -> impl Strategy<Value = Kind> {
    (0..3_u8, any::<bool>(), 0..3_u8).prop_map(|(vlan, v6, transport)| Kind {
        vlan,
        v6,
        transport,
    })
}

fn compare(octets: &[u8], wire_len: usize) -> Result<(), TestCaseError> {
    let frame = Frame::new(
        octets,
        FrameMeta::ethernet(Timestamp::ZERO, wire_len as u32),
    );
    plain_is_right(&frame)?;
    let (Ok(ours), Ok(theirs)) = (
        Headers::parse(&frame),
        LaxSlicedPacket::from_ethernet(octets),
    ) else {
        return Ok(());
    };
    let Some(net) = &theirs.net else {
        return Ok(());
    };
    let (source, destination) = match net {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Arp(_) => return Err(TestCaseError::fail("ARP is no IP")),
    };
    prop_assert_eq!(
        (ours.ip.source(), ours.ip.destination()),
        (source, destination)
    );
    if let Ip::V4(ip) = ours.ip {
        let both = [ip.source(), ip.destination()].map(|address| u64::from(address.to_bits()));
        prop_assert_eq!(ip.addresses(), both[0] << 32 | both[1]);
    }
    let ids = match theirs.vlan() {
        None => (None, None),
        Some(VlanSlice::SingleVlan(tag)) => (Some(tag.vlan_identifier().value()), None),
        Some(VlanSlice::DoubleVlan(tags)) => (
            Some(tags.outer.vlan_identifier().value()),
            Some(tags.inner.vlan_identifier().value()),
        ),
    };
    prop_assert_eq!(
        (
            ours.vlan.map(|tag| tag.vlan_id()),
            ours.inner_vlan.map(|tag| tag.vlan_id())
        ),
        ids
    );
    match (ours.transport, &theirs.transport) {
        (Transport::Tcp(ours), Some(TransportSlice::Tcp(theirs))) => {
            prop_assert_eq!(ours.source_port(), theirs.source_port());
            prop_assert_eq!(ours.destination_port(), theirs.destination_port());
            let both = [ours.source_port(), ours.destination_port()].map(u32::from);
            prop_assert_eq!(ours.ports(), both[0] << 16 | both[1]);
            prop_assert_eq!(ours.sequence(), theirs.sequence_number());
            prop_assert_eq!(ours.acknowledgment(), theirs.acknowledgment_number());
            prop_assert_eq!(ours.window(), theirs.window_size());
            prop_assert_eq!(ours.control_bits() & 2 != 0, theirs.syn());
            prop_assert_eq!(ours.control_bits() & 1 != 0, theirs.fin());
            prop_assert_eq!(ours.header_octets(), theirs.header_len());
        }
        (Transport::Udp(ours), Some(TransportSlice::Udp(theirs))) => {
            prop_assert_eq!(ours.source_port(), theirs.source_port());
            prop_assert_eq!(ours.destination_port(), theirs.destination_port());
            let both = [ours.source_port(), ours.destination_port()].map(u32::from);
            prop_assert_eq!(ours.ports(), both[0] << 16 | both[1]);
            prop_assert_eq!(ours.length(), theirs.length());
        }
        (Transport::Icmp(ours), Some(TransportSlice::Icmpv4(theirs))) => {
            prop_assert_eq!(
                (ours.icmp_type, ours.code),
                (theirs.type_u8(), theirs.code_u8())
            );
        }
        (Transport::Icmp(ours), Some(TransportSlice::Icmpv6(theirs))) => {
            prop_assert_eq!(
                (ours.icmp_type, ours.code),
                (theirs.type_u8(), theirs.code_u8())
            );
        }
        // One of them wants more of a cut or mutated header than the other.
        (_, None) | (Transport::Other | Transport::Ports { .. }, Some(_)) => {}
        (ours, Some(theirs)) => {
            return Err(TestCaseError::fail(format!("{ours:?}, not {theirs:?}")));
        }
    }
    Ok(())
}

/// The walk of plain frames says what the other one says, or nothing; tells whether it said something.
fn plain_is_right(frame: &Frame<'_>) -> Result<bool, TestCaseError> {
    let Some(plain) = Plain::of(frame) else {
        return Ok(false);
    };
    let whole = Headers::parse(frame).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(Some(plain.ethernet), whole.ethernet);
    prop_assert_eq!(plain.ip, whole.ip);
    prop_assert_eq!(plain.protocol, whole.protocol);
    prop_assert_eq!(plain.ip_octets, whole.ip_octets);
    prop_assert_eq!(plain.transport, whole.transport);
    prop_assert_eq!(plain.payload_octets, whole.payload_octets);
    prop_assert_eq!((whole.fragment, whole.tunnel), (None, None));
    prop_assert_eq!((whole.vlan, whole.inner_vlan), (frame.meta().vlan, None));
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whole frames, with and without padding behind: everything is read, and lengths are those of the builder.
    #[test]
    fn whole_frames(kind in kinds(), ports in any::<(u16, u16)>(), payload in 0..1_400_usize, padding in 0..40_usize) {
        let mut octets = build(kind, ports, payload);
        let whole = octets.len();
        octets.resize(whole + padding, 0);
        compare(&octets, octets.len())?;
        let frame = Frame::new(&octets, FrameMeta::ethernet(Timestamp::ZERO, octets.len() as u32));
        prop_assert_eq!(plain_is_right(&frame)?, kind.vlan == 0 && kind.transport < 2);
        let headers = Headers::parse(&frame).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(headers.ip_octets as usize, whole - 14 - 4 * usize::from(kind.vlan));
        if kind.transport < 2 {
            prop_assert_eq!((headers.source_port(), headers.destination_port()), ports);
            prop_assert_eq!(headers.payload_octets as usize, payload);
            prop_assert_eq!(headers.payload, &vec![0xab; payload][..]);
        }
    }

    /// A frame cut by a snap length says of itself what the whole one does, as long as its transport header is there.
    #[test]
    fn cut_frames(kind in kinds(), ports in any::<(u16, u16)>(), payload in 0..1_400_usize, cut in 0..1_500_usize) {
        let whole = build(kind, ports, payload);
        let kept = &whole[..cut.min(whole.len())];
        compare(kept, whole.len())?;
        let meta = FrameMeta::ethernet(Timestamp::ZERO, whole.len() as u32);
        let expected = Headers::parse(&Frame::new(&whole, meta)).expect("whole");
        let found = Headers::parse(&Frame::new(kept, meta));
        let network = 14 + 4 * usize::from(kind.vlan) + if kind.v6 { 40 } else { 20 };
        prop_assert_eq!(found.is_ok(), kept.len() >= network);
        if let Ok(found) = found {
            prop_assert_eq!(found.ip_octets, expected.ip_octets);
            if kept.len() >= network + 4 && kind.transport < 2 {
                prop_assert_eq!((found.source_port(), found.destination_port()), ports);
            }
            if kept.len() >= network + 20 {
                prop_assert_eq!(found.payload_octets, expected.payload_octets);
                prop_assert_eq!(found.transport, expected.transport);
            }
        }
    }

    /// Octets changed at will: no panic, and no contradiction.
    #[test]
    fn mutated_frames(
        kind in kinds(),
        ports in any::<(u16, u16)>(),
        payload in 0..100_usize,
        changes in prop::collection::vec((0..90_usize, any::<u8>()), 0..8),
        cut in 0..200_usize,
    ) {
        let mut octets = build(kind, ports, payload);
        for (place, value) in changes {
            let length = octets.len();
            octets[place % length] = value;
        }
        octets.truncate(cut.max(1));
        compare(&octets, octets.len())?;
    }

    /// Any octets under any link type, looked into as far as tunnels go: no panic, and never more than there was on the wire.
    #[test]
    fn any_octets(octets in prop::collection::vec(any::<u8>(), 0..200), link_type in 0..300_u16, wire_len in any::<u32>()) {
        let meta = FrameMeta { link_type: LinkType(link_type), ..FrameMeta::ethernet(Timestamp::ZERO, wire_len) };
        plain_is_right(&Frame::new(&octets, meta))?;
        if let Ok(headers) = Headers::parse(&Frame::new(&octets, meta)) {
            for headers in [Some(headers), headers.decapsulate()].into_iter().flatten() {
                prop_assert!(headers.ip_octets <= wire_len.max(octets.len() as u32));
                prop_assert!(headers.payload_octets <= headers.ip_octets);
                prop_assert!(headers.payload.len() <= headers.payload_octets as usize);
            }
        }
    }
}
