//! Frames: no panic, nothing outside of the frame, all paths through the headers agree, and etherparse agrees with them.

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice, VlanSlice};
use nvcapture::wire::{Headers, Ip, Plain, Transport};
use nvcapture::{Frame, FrameMeta, LinkType, Timestamp, VlanTag};

/// What the first octet of an input chooses from: every link type that is read, and one that is not.
pub const LINK_TYPES: [LinkType; 16] = [
    LinkType::ETHERNET,
    LinkType::RAW,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::NULL,
    LinkType::LOOP,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType::PPP,
    LinkType::PPP_ETHER,
    LinkType::C_HDLC,
    LinkType::RAW_12,
    LinkType::RAW_14,
    LinkType::ETHERNET,
    LinkType::ETHERNET,
    LinkType(147),
];

/// An input is a link type, a length that was cut off by a snap length, a place to cut at once more, and a frame.
pub fn wire(data: &[u8]) {
    let [kind, cut_off, cut, octets @ ..] = data else {
        return;
    };
    let link_type = LINK_TYPES[usize::from(*kind) % LINK_TYPES.len()];
    let wire_len = octets.len() as u32 + u32::from(*cut_off);
    let meta = FrameMeta {
        link_type,
        ..FrameMeta::ethernet(Timestamp::ZERO, wire_len)
    };
    let frame = Frame::new(octets, meta);
    let whole = Headers::parse(&frame);
    if let Ok(headers) = &whole {
        is_within(headers, octets, wire_len);
        assert!(headers.tunnel.is_none());
        if let Some(inner) = headers.decapsulate() {
            is_within(&inner, octets, wire_len);
            let tunnel = inner.tunnel.expect("out of a tunnel");
            assert_eq!(tunnel.source, headers.ip.source());
            assert_eq!(tunnel.destination, headers.ip.destination());
            assert!(inner.ip_octets < headers.ip_octets);
            if headers.ethernet.is_some() {
                assert_eq!(inner.ethernet, headers.ethernet);
            }
        }
    }
    // What is left of a frame says of itself what the whole one does.
    let kept = &octets[..octets.len().min(usize::from(*cut))];
    if let Ok(part) = Headers::parse(&Frame::new(kept, meta)) {
        is_within(&part, kept, wire_len);
        let whole = whole.as_ref().expect("more octets tell no less");
        assert_eq!(part.ip, whole.ip);
        assert_eq!(part.ip_octets, whole.ip_octets);
        assert_eq!((part.vlan, part.inner_vlan), (whole.vlan, whole.inner_vlan));
    }
    if link_type == LinkType::ETHERNET {
        other_paths(&frame, &whole.ok());
        if let Ok(headers) = &whole {
            etherparse_agrees(headers, octets);
        }
    }
}

fn is_within(headers: &Headers<'_>, octets: &[u8], wire_len: u32) {
    assert!(headers.ip_octets <= wire_len);
    assert!(headers.payload_octets <= headers.ip_octets);
    assert!(headers.payload.len() <= headers.payload_octets as usize);
    if !headers.payload.is_empty() {
        let (frame, payload) = (octets.as_ptr_range(), headers.payload.as_ptr_range());
        assert!(frame.start <= payload.start && payload.end <= frame.end);
    }
    let least = match headers.ip {
        Ip::V4(_) => 20,
        Ip::V6(_) => 40,
    };
    assert!(headers.ip_octets >= least);
    if let Transport::Other = headers.transport {
        assert_eq!((headers.source_port(), headers.destination_port()), (0, 0));
    }
}

/// What two walks must agree on that begin at different places.
fn same(a: &Headers<'_>, b: &Headers<'_>) {
    assert_eq!(a.ip, b.ip);
    assert_eq!(a.protocol, b.protocol);
    assert_eq!(a.ip_octets, b.ip_octets);
    assert_eq!(a.fragment, b.fragment);
    assert_eq!(a.transport, b.transport);
    assert_eq!(a.payload_octets, b.payload_octets);
    assert_eq!(a.payload, b.payload);
}

/// The same packet behind other link headers goes other ways through the code.
fn other_paths(frame: &Frame<'_>, headers: &Option<Headers<'_>>) {
    let octets = frame.octets();
    let meta = *frame.meta();
    // The short way for plain frames.
    if let Some(plain) = Plain::of(frame) {
        let headers = headers.as_ref().expect("a plain frame is read");
        assert_eq!(Some(plain.ethernet), headers.ethernet);
        assert_eq!(plain.ip, headers.ip);
        assert_eq!(plain.protocol, headers.protocol);
        assert_eq!(plain.ip_octets, headers.ip_octets);
        assert_eq!(plain.transport, headers.transport);
        assert_eq!(plain.payload_octets, headers.payload_octets);
        assert_eq!((headers.fragment, headers.vlan), (None, meta.vlan));
    }
    let Some((head, packet)) = octets.split_first_chunk::<14>() else {
        assert!(headers.is_none());
        return;
    };
    let (addresses, ether_type) = (&head[..12], [head[12], head[13]]);
    // Without the Ethernet header: the way of all other link types.
    let raw = match ether_type {
        [0x08, 0x00] => Some(LinkType::IPV4),
        [0x86, 0xdd] => Some(LinkType::IPV6),
        _ => None,
    };
    if let Some(link_type) = raw {
        let meta = FrameMeta {
            link_type,
            wire_len: meta.wire_len - 14,
            ..meta
        };
        match (headers, Headers::parse(&Frame::new(packet, meta))) {
            (Some(ours), Ok(raw)) => same(ours, &raw),
            (None, Err(_)) => {}
            (ours, raw) => panic!("{ours:?}, but {raw:?}"),
        }
    }
    // With a tag in the octets, and with that tag told beside them as a ring does.
    let tci = u16::from_be_bytes([head[0], head[1]]);
    let mut tagged = Vec::with_capacity(octets.len() + 4);
    tagged.extend_from_slice(addresses);
    tagged.extend_from_slice(&[0x81, 0x00]);
    tagged.extend_from_slice(&tci.to_be_bytes());
    tagged.extend_from_slice(&ether_type);
    tagged.extend_from_slice(packet);
    let inside = FrameMeta {
        wire_len: meta.wire_len + 4,
        ..meta
    };
    let beside = FrameMeta {
        vlan: Some(VlanTag { tpid: 0x8100, tci }),
        ..meta
    };
    let inside = Headers::parse(&Frame::new(&tagged, inside));
    let beside = Headers::parse(&Frame::new(octets, beside));
    match (&inside, &beside) {
        (Ok(inside), Ok(beside)) => {
            same(inside, beside);
            assert_eq!(
                (inside.vlan, inside.inner_vlan),
                (beside.vlan, beside.inner_vlan)
            );
            let plain = headers.as_ref().expect("a tag makes nothing readable");
            same(plain, beside);
            assert_eq!(plain.vlan, beside.inner_vlan);
        }
        // One tag more may be one too many.
        (Err(_), _) => {}
        (Ok(_), Err(_)) => panic!("{inside:?}, but {beside:?}"),
    }
}

/// What both read they read alike.
fn etherparse_agrees(ours: &Headers<'_>, octets: &[u8]) {
    let Ok(theirs) = LaxSlicedPacket::from_ethernet(octets) else {
        return;
    };
    let (source, destination) = match &theirs.net {
        Some(LaxNetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        Some(LaxNetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        Some(LaxNetSlice::Arp(_)) => panic!("ARP is no IP"),
        None => return,
    };
    assert_eq!(
        (ours.ip.source(), ours.ip.destination()),
        (source, destination)
    );
    // It knows two tags at most, and MACsec, behind which we do not look.
    let ids = match theirs.vlan() {
        None => (None, None),
        Some(VlanSlice::SingleVlan(tag)) => (Some(tag.vlan_identifier().value()), None),
        Some(VlanSlice::DoubleVlan(tags)) => (
            Some(tags.outer.vlan_identifier().value()),
            Some(tags.inner.vlan_identifier().value()),
        ),
    };
    assert_eq!(
        (
            ours.vlan.map(VlanTag::vlan_id),
            ours.inner_vlan.map(VlanTag::vlan_id)
        ),
        ids
    );
    match (ours.transport, &theirs.transport) {
        (Transport::Tcp(ours), Some(TransportSlice::Tcp(theirs))) => {
            assert_eq!(ours.source_port(), theirs.source_port());
            assert_eq!(ours.destination_port(), theirs.destination_port());
            assert_eq!(ours.sequence(), theirs.sequence_number());
            assert_eq!(ours.acknowledgment(), theirs.acknowledgment_number());
            assert_eq!(ours.window(), theirs.window_size());
            assert_eq!(ours.control_bits() & 2 != 0, theirs.syn());
            assert_eq!(ours.control_bits() & 1 != 0, theirs.fin());
            assert_eq!(ours.header_octets(), theirs.header_len());
        }
        (Transport::Udp(ours), Some(TransportSlice::Udp(theirs))) => {
            assert_eq!(ours.source_port(), theirs.source_port());
            assert_eq!(ours.destination_port(), theirs.destination_port());
            assert_eq!(ours.length(), theirs.length());
        }
        (Transport::Icmp(ours), Some(TransportSlice::Icmpv4(theirs))) => {
            assert_eq!(
                (ours.icmp_type, ours.code),
                (theirs.type_u8(), theirs.code_u8())
            );
        }
        (Transport::Icmp(ours), Some(TransportSlice::Icmpv6(theirs))) => {
            assert_eq!(
                (ours.icmp_type, ours.code),
                (theirs.type_u8(), theirs.code_u8())
            );
        }
        // One of them wants more of a cut or odd header than the other.
        (_, None) | (Transport::Other | Transport::Ports { .. }, Some(_)) => {}
        (ours, Some(theirs)) => panic!("{ours:?}, but {theirs:?}"),
    }
}
