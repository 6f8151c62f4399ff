//! What becomes of connections, one situation at a time. Time is the frames' own: in milliseconds here.

#[path = "support/frames.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod frames;

use std::convert::Infallible;
use std::num::NonZeroU16;
use std::ops::ControlFlow;
use std::time::Duration;

use frames::{ACK, End, FIN, Made, RST, SYN, icmp, ip, tcp, tcp_window, udp, v4, v6};
use nvcapture::{Frame, SegmentSize, Timestamp};
use nvflow::{
    Aggregator, FlowEndReason, FlowRecord, GroupBy, Meter, MeterConfig, Observation, TcpState,
    Timeouts, Value, Vantage, sink_fn,
};

fn observe(meter: &mut Meter, records: &mut Vec<FlowRecord>, frames: &[Made]) {
    let Ok(_) = meter.observe(frames.iter().map(Made::frame), records);
}

/// All records of `frames`, the table emptied at the end.
fn meter(config: MeterConfig, frames: &[Made]) -> Vec<FlowRecord> {
    let mut meter = Meter::new(config).expect("memory");
    let mut records = Vec::new();
    observe(&mut meter, &mut records, frames);
    let Ok(_) = meter.finish(&mut records);
    balanced(&meter, &records);
    assert_eq!(meter.stats().connections, 0);
    records
}

fn balanced(meter: &Meter, records: &[FlowRecord]) {
    let stats = meter.stats();
    assert!(stats.is_balanced(), "{stats:?}");
    assert_eq!(stats.records, records.len() as u64);
    let mut packets: u64 = records
        .iter()
        .map(|record| record.forward.packets + record.reverse.packets)
        .sum();
    let _ = meter.open(|record| {
        packets += record.forward.packets + record.reverse.packets;
        ControlFlow::Continue(())
    });
    assert_eq!(packets, stats.metered, "every metered frame is in a record");
}

const CLIENT: u16 = 40_000;

fn ends(port: u16) -> (End, End) {
    (v4(9, port), v4(1, 80))
}

fn back((client, server): (End, End)) -> (End, End) {
    (server, client)
}

/// A whole connection: handshake with 20 ms to the server and 2 ms to the client, a request of 100 octets, an answer of 1,000.
fn http(at: u64, ends: (End, End), numbers: (u32, u32)) -> Vec<Made> {
    let (c, s) = numbers;
    vec![
        tcp(at, ends, SYN, (c, 0), 0),
        tcp(at + 20, back(ends), SYN | ACK, (s, c + 1), 0),
        tcp(at + 22, ends, ACK, (c + 1, s + 1), 0),
        tcp(at + 23, ends, ACK, (c + 1, s + 1), 100),
        tcp(at + 43, back(ends), ACK, (s + 1, c + 101), 0),
        tcp(at + 44, back(ends), ACK, (s + 1, c + 101), 1000),
        tcp(at + 46, ends, ACK, (c + 101, s + 1001), 0),
        tcp(at + 50, ends, FIN | ACK, (c + 101, s + 1001), 0),
        tcp(at + 70, back(ends), FIN | ACK, (s + 1001, c + 102), 0),
        tcp(at + 72, ends, ACK, (c + 102, s + 1002), 0),
    ]
}

#[test]
fn a_connection_is_one_record() {
    let records = meter(MeterConfig::default(), &http(1_000, ends(CLIENT), (7, 9)));
    let [record] = &records[..] else {
        panic!("{records:#?}")
    };
    assert_eq!((record.source.address, record.source.port), v4(9, CLIENT));
    assert_eq!(
        (record.destination.address, record.destination.port),
        v4(1, 80)
    );
    assert_eq!(record.flow_start, Timestamp::from_nanos(1_000_000_000));
    assert_eq!(record.duration(), Duration::from_millis(72));
    assert_eq!((record.forward.packets, record.reverse.packets), (6, 4));
    assert_eq!(
        (record.forward.payload_octets, record.reverse.payload_octets),
        (100, 1000)
    );
    assert_eq!(
        (record.forward.octets, record.reverse.octets),
        (6 * 40 + 100, 4 * 40 + 1000)
    );
    assert_eq!(record.forward.layer2_octets, 6 * 54 + 100);
    assert_eq!(record.forward.tcp_control_bits, u16::from(SYN | ACK | FIN));
    assert_eq!(
        (record.forward.minimum_ttl, record.forward.maximum_ttl),
        (64, 64)
    );
    assert_eq!(
        record.flow_end_reason,
        Some(FlowEndReason::EndOfFlowDetected)
    );
    let tcp = record.tcp.expect("TCP");
    assert_eq!(tcp.state, TcpState::TimeWait);
    assert_eq!(tcp.server_handshake_rtt_micros, Some(20_000));
    assert_eq!(tcp.client_handshake_rtt_micros, Some(2_000));
    assert_eq!(tcp.forward.smoothed_rtt_micros, Some(20_000));
    assert_eq!(tcp.reverse.smoothed_rtt_micros, Some(2_000));
    assert_eq!(
        tcp.forward.retransmitted_segments + tcp.reverse.retransmitted_segments,
        0
    );
}

#[test]
fn fields_have_the_names_and_the_order_of_the_design() {
    let records = meter(MeterConfig::default(), &http(1_000, ends(CLIENT), (7, 9)));
    let mut names = Vec::new();
    records[0].fields(|field, value| names.push((field.name(), value)));
    let order: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        order.join(" "),
        "flowStartMicroseconds flowEndMicroseconds sourceIPv4Address destinationIPv4Address sourceTransportPort \
         destinationTransportPort protocolIdentifier packetDeltaCount reversePacketDeltaCount octetDeltaCount \
         reverseOctetDeltaCount layer2OctetDeltaCount reverseLayer2OctetDeltaCount initiatorOctets responderOctets \
         tcpControlBits reverseTcpControlBits minimumTTL reverseMinimumTTL maximumTTL reverseMaximumTTL \
         ipDiffServCodePoint reverseIpDiffServCodePoint flowEndReason tcpState handshakeRttMicroseconds \
         smoothedRttMicroseconds reverseSmoothedRttMicroseconds retransmittedSegments reverseRetransmittedSegments \
         outOfOrderSegments reverseOutOfOrderSegments duplicateAcks reverseDuplicateAcks zeroWindows \
         reverseZeroWindows"
    );
    assert_eq!(names[0].1, Value::Unsigned(1_000_000));
    assert_eq!(names[23].1, Value::Unsigned(3));
    assert_eq!(names[24].1, Value::Text("TIME-WAIT"));
    assert_eq!(
        names[25].1,
        Value::HandshakeRtt {
            client: Some(2_000),
            server: Some(20_000)
        }
    );
}

/// However the last four frames come, and whatever comes late, it stays one connection that has ended.
#[test]
fn a_hundred_connections_are_a_hundred_records_in_whatever_order_they_end() {
    let mut expected = 0;
    let mut all = Vec::new();
    for order in 0..24_usize {
        let ends = ends(CLIENT + order as u16);
        let mut frames = http(1_000, ends, (order as u32 * 1000, 5));
        // The order-th permutation of the last four.
        let mut last = frames.split_off(6);
        let (mut rest, mut shuffled) = (order, Vec::new());
        for left in (1..=4).rev() {
            shuffled.push(last.remove(rest % left));
            rest /= left;
        }
        for (place, frame) in shuffled.iter_mut().enumerate() {
            frame.nanos = (1_050 + place as u64) * 1_000_000;
        }
        frames.extend(shuffled);
        let late = order as u32 * 1000;
        frames.push(tcp(1_500, back(ends), FIN | ACK, (5 + 1001, late + 102), 0));
        frames.push(tcp(1_501, ends, ACK, (late + 102, 5 + 1002), 0));
        frames.push(tcp(3_000, ends, RST, (late + 102, 0), 0));
        all.extend(frames);
        expected += 1;
    }
    // Ends by RST, of either side.
    for (port, from_server) in [(100, false), (101, true)] {
        let ends = ends(CLIENT + port);
        let mut frames = http(1_000, ends, (50, 60));
        frames.truncate(7);
        frames.push(match from_server {
            false => tcp(1_100, ends, RST, (151, 0), 0),
            true => tcp(1_100, back(ends), RST | ACK, (1061, 151), 0),
        });
        frames.push(tcp(1_101, back(ends), ACK, (1061, 151), 10));
        all.extend(frames);
        expected += 1;
    }
    all.sort_by_key(|made| made.nanos);
    let records = meter(MeterConfig::default(), &all);
    assert_eq!(records.len(), expected);
    for record in &records {
        assert_eq!(
            record.flow_end_reason,
            Some(FlowEndReason::EndOfFlowDetected),
            "{record:#?}"
        );
        assert_eq!(record.source.address, v4(9, 0).0);
    }
}

#[test]
fn a_refused_connection_has_ended() {
    let ends = ends(CLIENT);
    let frames = [
        tcp(0, ends, SYN, (5, 0), 0),
        tcp(1, back(ends), RST | ACK, (0, 6), 0),
    ];
    let records = meter(MeterConfig::default(), &frames);
    assert_eq!(
        records[0].flow_end_reason,
        Some(FlowEndReason::EndOfFlowDetected)
    );
    assert_eq!(records[0].tcp.expect("TCP").state, TcpState::Closed);
}

#[test]
fn a_reset_from_nowhere_ends_nothing() {
    let ends = ends(CLIENT);
    let mut frames = http(0, ends, (50, 60));
    frames.truncate(7);
    frames.push(tcp(100, back(ends), RST, (1061 + (1 << 30) + 5, 0), 0));
    let records = meter(MeterConfig::default(), &frames);
    assert_eq!(records[0].flow_end_reason, Some(FlowEndReason::ForcedEnd));
    assert_eq!(records[0].tcp.expect("TCP").state, TcpState::Established);
}

#[test]
fn a_new_syn_after_the_end_begins_a_new_connection_at_once() {
    let mut frames = http(1_000, ends(CLIENT), (7, 9));
    frames.extend(http(1_100, ends(CLIENT), (500_000, 900_000)));
    let records = meter(MeterConfig::default(), &frames);
    assert_eq!(records.len(), 2);
    for record in records {
        assert_eq!((record.forward.packets, record.reverse.packets), (6, 4));
        assert_eq!(
            record.flow_end_reason,
            Some(FlowEndReason::EndOfFlowDetected)
        );
    }
}

#[test]
fn a_syn_sent_again_is_the_same_connection() {
    let ends = ends(CLIENT);
    let mut frames = vec![tcp(0, ends, SYN, (7, 0), 0)];
    frames.extend(http(1_000, ends, (7, 9)));
    // A copy of it that the network held back: its number is behind what the client has sent since.
    frames.insert(6, tcp(1_044, ends, SYN, (7, 0), 0));
    let records = meter(MeterConfig::default(), &frames);
    assert_eq!(records.len(), 1);
    assert_eq!(
        records[0].tcp.expect("TCP").forward.retransmitted_segments,
        2
    );
    assert_eq!(
        records[0].tcp.expect("TCP").server_handshake_rtt_micros,
        None,
        "which SYN was answered is not known"
    );
}

#[test]
fn who_answers_a_syn_is_not_the_initiator() {
    let ends = ends(CLIENT);
    let frames = [
        tcp(0, back(ends), SYN | ACK, (9, 8), 0),
        tcp(1, ends, SYN, (7, 0), 0),
        tcp(2, ends, ACK, (8, 10), 0),
    ];
    let records = meter(MeterConfig::default(), &frames);
    assert_eq!(records.len(), 1);
    assert_eq!(
        (records[0].source.address, records[0].source.port),
        v4(9, CLIENT)
    );
    assert_eq!(records[0].tcp.expect("TCP").state, TcpState::Established);
}

#[test]
fn what_goes_wrong_in_tcp_is_counted() {
    let ends = ends(CLIENT);
    let (c, s) = (7_u32, 9_u32);
    let mut frames = http(1_000, ends, (c, s));
    frames.truncate(7);
    let (c, s) = (c + 101, s + 1001);
    let more = |at, offset| tcp(at, back(ends), ACK, (s + offset, c), 100);
    frames.extend([
        more(2_000, 0),
        more(2_001, 200),                                 // a gap
        more(2_002, 100),                                 // filled 1 ms later: overtaken
        more(2_100, 400),                                 // a gap
        tcp(2_101, ends, ACK, (c, s + 300), 0),           // first acknowledgment of it
        tcp(2_102, ends, ACK, (c, s + 300), 0),           // again
        tcp(2_103, ends, ACK, (c, s + 300), 0),           // and again
        more(2_300, 300),                                 // filled 200 ms later: sent again
        tcp_window(2_301, ends, ACK, (c, s + 500), 0, 0), // no room
        tcp(3_301, back(ends), ACK, (s + 499, c), 0),     // keep-alive
    ]);
    let records = meter(MeterConfig::default(), &frames);
    let tcp = records[0].tcp.expect("TCP");
    assert_eq!(tcp.reverse.out_of_order_segments, 1);
    assert_eq!(tcp.reverse.retransmitted_segments, 1);
    assert_eq!(tcp.forward.duplicate_acks, 2);
    assert_eq!(tcp.forward.zero_windows, 1);
    assert_eq!(
        (tcp.forward.retransmitted_segments, tcp.reverse.zero_windows),
        (0, 0)
    );
    let without = meter(
        MeterConfig {
            tcp_metrics: false,
            ..MeterConfig::default()
        },
        &frames,
    );
    let tcp = without[0].tcp.expect("TCP");
    assert_eq!(tcp.state, TcpState::Established);
    assert_eq!(tcp.reverse.retransmitted_segments, 0);
    assert_eq!(
        without[0].reverse, records[0].reverse,
        "counters do not depend on it"
    );
}

#[test]
fn a_gap_does_not_end_the_measuring_of_round_trips() {
    let ends = ends(CLIENT);
    let (c, s) = (108_u32, 1_010_u32);
    let answered = |filled: Option<u64>| {
        let mut frames = http(1_000, ends, (7, 9));
        frames.truncate(7);
        let more = |at, offset| tcp(at, back(ends), ACK, (s + offset, c), 100);
        frames.push(more(2_000, 100));
        frames.extend(filled.map(|after| more(2_000 + after, 0)));
        frames.push(tcp(2_050, ends, ACK, (c, s + 200), 0));
        let before = meter(MeterConfig::default(), &frames);
        // From here on each acknowledgment takes 40 ms.
        for turn in 0..50 {
            let (at, offset) = (3_000 + 100 * u64::from(turn), 200 + 100 * turn);
            frames.push(more(at, offset));
            frames.push(tcp(at + 40, ends, ACK, (c, s + offset + 100), 0));
        }
        let after = meter(MeterConfig::default(), &frames);
        [before, after].map(|records| records[0].tcp.expect("TCP").reverse)
    };
    // Overtaken, sent again, and lost on the way to us alone.
    for (filled, counts) in [(Some(1), (1, 0)), (Some(20), (0, 1)), (None, (0, 0))] {
        let [before, after] = answered(filled);
        assert_eq!(
            (after.out_of_order_segments, after.retransmitted_segments),
            counts
        );
        let rtt = after.smoothed_rtt_micros.expect("measured");
        assert!(
            (39_000..=40_000).contains(&rtt),
            "{filled:?}: {rtt}, {:?} before",
            before.smoothed_rtt_micros
        );
    }
}

#[test]
fn connections_expire_by_their_own_timeout() {
    let cases: [(Made, u64); 5] = [
        (tcp(0, ends(1), SYN, (1, 0), 0), 30),
        (tcp(0, ends(2), ACK, (1, 1), 10), 300),
        (udp(0, v6(1, 1), v6(2, 53), 10), 60),
        (icmp(0, v4(1, 0).0, v4(2, 0).0, 8, 7), 10),
        (ip(0, v4(1, 0).0, v4(2, 0).0, 89, &[0; 20]), 60),
    ];
    for (frame, seconds) in cases {
        let mut meter = Meter::new(MeterConfig::default()).expect("memory");
        let mut records = Vec::new();
        observe(&mut meter, &mut records, &[frame]);
        let Ok(_) = meter.expire(Timestamp::from_nanos(seconds * 1_000_000_000), &mut records);
        assert_eq!(records.len(), 0, "not before {seconds} s");
        let Ok(_) = meter.expire(
            Timestamp::from_nanos((seconds + 1) * 1_000_000_000),
            &mut records,
        );
        assert_eq!(records.len(), 1, "after {seconds} s");
        assert_eq!(records[0].flow_end_reason, Some(FlowEndReason::IdleTimeout));
        balanced(&meter, &records);
    }
}

/// Which of them applies changes with the connection's state.
#[test]
fn the_end_of_a_connection_makes_its_timeout_shorter() {
    let ends = ends(CLIENT);
    let open = [
        tcp(0, ends, SYN, (0, 0), 0),
        tcp(10, back(ends), SYN | ACK, (0, 1), 0),
        tcp(20, ends, ACK, (1, 1), 0),
        tcp(30, back(ends), ACK, (1, 1), 0),
    ];
    let fin = tcp(40, ends, FIN | ACK, (1, 1), 0);
    let rst = tcp(40, back(ends), RST, (1, 0), 0);
    let timeouts = MeterConfig::default().timeouts;
    let cases = [
        (None, timeouts.tcp_established),
        (Some(fin), timeouts.tcp_closing),
        (Some(rst), timeouts.tcp_ended),
    ];
    for (last, timeout) in cases {
        let mut meter = Meter::new(MeterConfig::default()).expect("memory");
        let mut records = Vec::new();
        observe(&mut meter, &mut records, &open);
        observe(&mut meter, &mut records, last.as_slice());
        let after = |timeout: Duration| Timestamp::from_nanos(timeout.as_nanos() as u64);
        let Ok(_) = meter.expire(after(timeout - Duration::from_millis(100)), &mut records);
        assert_eq!(records.len(), 0, "not before {timeout:?}");
        let Ok(_) = meter.expire(after(timeout + Duration::from_secs(2)), &mut records);
        assert_eq!(records.len(), 1, "after {timeout:?}");
        balanced(&meter, &records);
    }
}

#[test]
fn a_frame_after_the_timeout_is_of_a_new_connection_and_one_before_it_of_the_old() {
    let at = |millis| udp(millis, v4(1, 1), v4(2, 53), 10);
    assert_eq!(
        meter(MeterConfig::default(), &[at(0), at(59_900), at(119_800)]).len(),
        1
    );
    assert_eq!(meter(MeterConfig::default(), &[at(0), at(60_100)]).len(), 2);
}

/// The first record has one segment only, the second begins with the one that makes the connection established.
#[test]
fn what_tcp_tells_goes_on_behind_a_record_of_one_segment() {
    let mut config = MeterConfig::default();
    config.timeouts.active = Duration::from_secs(1);
    let ends = ends(CLIENT);
    let (mut client, server) = (1, 1);
    let mut frames = vec![
        tcp(0, ends, ACK, (client, server), 0),
        tcp(2_000, back(ends), ACK, (server, client), 0),
    ];
    for at in (2_100..2_900).step_by(80) {
        frames.push(tcp(at, ends, ACK, (client, server), 12));
        client += 12;
        frames.push(tcp(at + 20, back(ends), ACK, (server, client), 0));
    }
    let records = meter(config, &frames);
    let [first, second] = &records[..] else {
        panic!("{records:#?}")
    };
    assert_eq!((first.forward.packets, first.reverse.packets), (1, 0));
    assert_eq!((second.forward.packets, second.reverse.packets), (10, 11));
    let tcp = second.tcp.expect("TCP");
    assert_eq!(tcp.forward.smoothed_rtt_micros, Some(20_000));
}

#[test]
fn the_active_timeout_makes_a_record_and_goes_on() {
    let frames: Vec<Made> = (0..=40)
        .map(|minute| udp(minute * 50_000, v4(1, 1), v4(2, 53), 10))
        .collect();
    let records = meter(MeterConfig::default(), &frames);
    let reasons: Vec<_> = records
        .iter()
        .map(|record| record.flow_end_reason.expect("made"))
        .collect();
    assert_eq!(
        reasons,
        [FlowEndReason::ActiveTimeout, FlowEndReason::ForcedEnd]
    );
    assert_eq!(records[0].forward.packets + records[1].forward.packets, 41);
    assert_eq!(
        records[0].forward.packets, 37,
        "30 minutes and the one that is not later"
    );
    assert_eq!(
        records[1].flow_start,
        Timestamp::from_nanos(37 * 50_000_000_000)
    );
}

/// Frames that say they were of nearly 2 GiB each, as the longest that is believed.
#[test]
fn no_count_is_too_large() {
    const LENGTH: u32 = (1 << 31) - 1;
    let server = v4(1, 80);
    let connection = |at: u64, client: End| {
        let ends = (client, server);
        let mut made = vec![
            tcp(at, ends, SYN, (0, 0), 0),
            tcp(at + 1, back(ends), SYN | ACK, (0, 1), 0),
        ];
        made.extend((2..30).map(|turn| tcp(at + turn, ends, ACK, (1, 1), 0)));
        made.push(tcp(at + 30, back(ends), RST | ACK, (1, 1), 0));
        made
    };
    let observe = |meter: &mut Meter, records: &mut Vec<FlowRecord>, made: &[Made], length| {
        let frames = made.iter().map(|made| {
            let mut meta = *made.frame().meta();
            meta.wire_len = length;
            Frame::new(&made.octets, meta)
        });
        let Ok(_) = meter.observe(frames, records);
    };
    let layer2 = |records: &[FlowRecord]| -> Vec<_> {
        let of =
            |record: &FlowRecord| [&record.forward, &record.reverse].map(|side| side.layer2_octets);
        records.iter().map(of).collect()
    };
    let config = MeterConfig {
        max_connections: 1,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config).expect("memory");
    let mut records = Vec::new();
    // One takes the place of another, and of itself: an hour later there is a record in between.
    observe(&mut meter, &mut records, &connection(0, v4(9, 1)), LENGTH);
    observe(&mut meter, &mut records, &connection(100, v4(9, 2)), 60);
    observe(
        &mut meter,
        &mut records,
        &connection(200, v4(9, 3))[..30],
        LENGTH,
    );
    let later = (1..40).map(|minute| tcp(minute * 60_000, (v4(9, 3), server), ACK, (1, 1), 0));
    observe(&mut meter, &mut records, &later.collect::<Vec<_>>(), 60);
    let Ok(_) = meter.finish(&mut records);
    let [most, little] = [LENGTH, 60].map(u64::from);
    let reported = layer2(&records)[2][0];
    assert_eq!(
        layer2(&records),
        [
            [29 * most, 2 * most],
            [29 * little, 2 * little],
            [reported, most],
            [29 * most + 39 * little - reported, 0],
        ]
    );
    assert!(reported > 29 * most && reported < 29 * most + 39 * little);
}

#[test]
fn time_may_step_back_or_leap() {
    let at = |millis, port| udp(millis, v4(1, port), v4(2, 53), 10);
    // A year on and back again: the first connection expires with the leap, and nothing else.
    let year = 365 * 86_400_000;
    let records = meter(
        MeterConfig::default(),
        &[
            at(5_000, 1),
            at(5_000 + year, 2),
            at(6_000, 3),
            at(7_000, 3),
        ],
    );
    assert_eq!(records.len(), 3);
    assert_eq!(records[2].forward.packets, 2);
    let hostile: Vec<Made> = (0..1_000)
        .map(|n| Made {
            nanos: if n % 2 == 0 { 0 } else { u64::MAX },
            ..at(0, n as u16)
        })
        .collect();
    assert_eq!(meter(MeterConfig::default(), &hostile).len(), 1_000);
}

#[test]
fn a_flood_of_syns_costs_no_connection_that_carries_data() {
    let config = MeterConfig {
        max_connections: 100,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config).expect("memory");
    let mut records = Vec::new();
    for port in 0..50 {
        let mut frames = http(1_000, ends(port), (7, 9));
        frames.truncate(7);
        observe(&mut meter, &mut records, &frames);
    }
    let flood: Vec<Made> = (0..5_000)
        .map(|n| {
            tcp(
                20_000 + n,
                (v4(200, n as u16), v4(1, 80)),
                SYN,
                (n as u32, 0),
                0,
            )
        })
        .collect();
    observe(&mut meter, &mut records, &flood);
    let stats = meter.stats();
    assert_eq!(stats.connections, 100);
    assert_eq!(stats.high_water, 100);
    assert_eq!(stats.evicted_embryonic, 5_000 - 50);
    assert_eq!((stats.evicted_idle, stats.refused), (0, 0));
    assert!(
        records
            .iter()
            .all(|record| record.source.address == v4(200, 0).0)
    );
    assert!(
        records
            .iter()
            .all(|record| record.flow_end_reason == Some(FlowEndReason::LackOfResources))
    );
    // The oldest went first.
    let ports: Vec<u16> = records.iter().map(|record| record.source.port).collect();
    assert!(ports.is_sorted());
    balanced(&meter, &records);
}

#[test]
fn a_full_table_gives_up_the_longest_idle() {
    let config = MeterConfig {
        max_connections: 10,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config).expect("memory");
    let mut records = Vec::new();
    for port in (0..10).rev() {
        let at = 1_000 * (10 - u64::from(port));
        let busy = [
            udp(at, v4(1, port), v4(2, 53), 1),
            udp(at + 1, v4(2, 53), v4(1, port), 1),
        ];
        observe(&mut meter, &mut records, &busy);
    }
    observe(
        &mut meter,
        &mut records,
        &[
            udp(10_500, v4(3, 1), v4(2, 53), 1),
            udp(10_501, v4(2, 53), v4(3, 1), 1),
        ],
    );
    assert_eq!(meter.stats().evicted_idle, 1);
    assert_eq!(records[0].source.port, 9, "seen last at 1 s");
    balanced(&meter, &records);
}

#[test]
fn busy_connections_are_not_given_up() {
    let config = MeterConfig {
        max_connections: 10,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config).expect("memory");
    let mut records = Vec::new();
    for port in 0..10 {
        observe(
            &mut meter,
            &mut records,
            &[
                udp(1_000, v4(1, port), v4(2, 53), 1),
                udp(1_001, v4(2, 53), v4(1, port), 1),
            ],
        );
    }
    observe(
        &mut meter,
        &mut records,
        &[udp(1_100, v4(3, 1), v4(2, 53), 1)],
    );
    assert_eq!((records.len(), meter.stats().refused), (0, 1));
    balanced(&meter, &records);
}

#[test]
fn a_ping_and_its_answers_are_one_connection() {
    let (a, b) = (v4(9, 0).0, v4(1, 0).0);
    let frames = [
        icmp(0, a, b, 8, 7),
        icmp(1, b, a, 0, 7),
        icmp(2, a, b, 8, 8),
        icmp(3, a, b, 3, 0),
    ];
    let records = meter(MeterConfig::default(), &frames);
    assert_eq!(records.len(), 3);
    assert_eq!(
        (records[0].forward.packets, records[0].reverse.packets),
        (1, 1)
    );
    assert_eq!(records[0].icmp_type_code, Some(8 << 8));
    assert_eq!(records[0].source.address, a);
    // The answer alone: who asked is the initiator.
    let (a, b) = (v6(9, 0).0, v6(1, 0).0);
    let records = meter(MeterConfig::default(), &[icmp(0, b, a, 129, 7)]);
    assert_eq!(records[0].source.address, a);
    assert_eq!(
        (records[0].forward.packets, records[0].reverse.packets),
        (0, 1)
    );
}

#[test]
fn each_container_sees_its_own_side() {
    let config = MeterConfig {
        observation: Observation::Marker,
        ..MeterConfig::default()
    };
    let mark = |made: &Made, sent: Option<u8>, received: Option<u8>| {
        let mut made = made.clone();
        for (id, place) in [(sent, 6), (received, 0)] {
            if let Some(id) = id {
                made.octets[place..place + 6].copy_from_slice(&[0x4e, 0x65, 0x75, 0x56, 1, id]);
            }
        }
        made
    };
    let (client, server) = (0x0a, 0x0b);
    let mut frames = Vec::new();
    for (place, made) in http(1_000, ends(CLIENT), (7, 9)).iter().enumerate() {
        let from_client = ![1, 4, 5, 8].contains(&place);
        frames.push(mark(
            made,
            from_client.then_some(client),
            (!from_client).then_some(client),
        ));
        frames.push(mark(
            made,
            (!from_client).then_some(server),
            from_client.then_some(server),
        ));
    }
    let mut records = meter(config, &frames);
    records.sort_by_key(|record| record.observation_point);
    let seen: Vec<_> = records
        .iter()
        .map(|record| (record.observation_point, record.vantage))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(0x010a), Some(Vantage::Egress)),
            (Some(0x010b), Some(Vantage::Ingress))
        ]
    );
    assert!(
        records
            .iter()
            .all(|record| (record.forward.packets, record.reverse.packets) == (6, 4))
    );
}

#[test]
fn later_fragments_belong_to_the_first_one() {
    let (a, b) = (v4(9, CLIENT), v4(1, 53));
    let mut first = udp(0, a, b, 1_472);
    first.octets[18..22].copy_from_slice(&[0, 42, 0x20, 0]);
    let mut later = ip(1, a.0, b.0, 17, &[0; 100]);
    later.octets[18..22].copy_from_slice(&[0, 42, 0, 185]);
    let mut stray = later.clone();
    stray.octets[19] = 43;
    let mut meter = Meter::new(MeterConfig::default()).expect("memory");
    let mut records = Vec::new();
    observe(&mut meter, &mut records, &[first, later, stray]);
    assert_eq!(
        (
            meter.stats().fragments,
            meter.stats().fragments_without_first
        ),
        (1, 1)
    );
    let Ok(_) = meter.finish(&mut records);
    records.sort_by_key(|record| record.source.port);
    assert_eq!(
        (records[0].has_ports, records[0].forward.packets),
        (false, 1)
    );
    assert_eq!(
        (records[1].source.port, records[1].forward.packets),
        (CLIENT, 2)
    );
    assert_eq!(records[1].forward.payload_octets, 1_572);
    balanced(&meter, &records);
}

/// What is behind a fragment header of IPv6 differs between fragments: the first one's extension headers are in the first one alone.
#[test]
fn later_fragments_over_ipv6_are_known_whatever_their_next_header() {
    let (a, b) = (v6(9, CLIENT), v6(1, 53));
    // Behind the fragment header: an authentication header of 12 octets, then UDP.
    let fragment = |mut made: Made, next: u8, offset: u16, id: u8, authenticated: bool| {
        let mut headers = vec![next, 0];
        headers.extend((offset | u16::from(offset == 0)).to_be_bytes());
        headers.extend([0, 0, 0, id]);
        if authenticated {
            headers.extend([17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        }
        made.octets[20] = 44;
        made.octets.splice(54..54, headers);
        let length = (made.octets.len() - 54) as u16;
        made.octets[18..20].copy_from_slice(&length.to_be_bytes());
        made
    };
    let later = |id| fragment(ip(1, a.0, b.0, 51, &[0; 100]), 51, 1_488, id, false);
    let frames = [
        fragment(udp(0, a, b, 1_468), 51, 0, 42, true),
        later(42),
        later(43),
    ];
    let mut meter = Meter::new(MeterConfig::default()).expect("memory");
    let mut records = Vec::new();
    observe(&mut meter, &mut records, &frames);
    let stats = meter.stats();
    assert_eq!(
        (stats.fragments, stats.fragments_without_first),
        (1, 1),
        "{stats:?}"
    );
    let Ok(_) = meter.finish(&mut records);
    records.sort_by_key(|record| record.source.port);
    let told: Vec<_> = records
        .iter()
        .map(|record| (record.protocol_identifier, record.forward.packets))
        .collect();
    assert_eq!(told, [(51, 1), (17, 2)]);
    balanced(&meter, &records);
}

#[test]
fn fragments_of_a_hundred_packets_may_be_mixed() {
    let ends = |port| (v4(9, port), v4(1, 53));
    let cut = |mut made: Made, id: u8, offset: [u8; 2]| {
        made.octets[18..22].copy_from_slice(&[0, id, offset[0], offset[1]]);
        made
    };
    let mut frames: Vec<Made> = (0..100)
        .map(|id: u8| {
            let (a, b) = ends(CLIENT + u16::from(id));
            cut(udp(0, a, b, 1_472), id, [0x20, 0])
        })
        .collect();
    frames.extend((0..100).map(|id: u8| {
        let (a, b) = ends(0);
        cut(ip(1, a.0, b.0, 17, &[0; 100]), id, [0, 185])
    }));
    let config = MeterConfig {
        hash_key: Some([1, 2]),
        ..MeterConfig::default()
    };
    let records = meter(config, &frames);
    assert_eq!(records.len(), 100);
    assert!(records.iter().all(|record| record.forward.packets == 2));
}

#[test]
fn what_was_idle_for_too_long_at_the_end_ended_by_that() {
    let (idle, other) = ((v4(9, CLIENT), v4(1, 53)), (v4(8, CLIENT), v4(1, 53)));
    let config = MeterConfig {
        timeouts: Timeouts {
            udp: Duration::from_secs(7),
            ..Timeouts::default()
        },
        ..MeterConfig::default()
    };
    // The frame at 8,160 makes timers be looked at: the one of the first connection goes on until it has been idle for 7 s, and is not looked
    // at at 8,207.
    let records = meter(
        config,
        &[
            (0, idle),
            (183, idle),
            (1_206, idle),
            (8_160, other),
            (8_207, other),
        ]
        .map(|(millis, (a, b))| udp(millis, a, b, 9)),
    );
    let reasons: Vec<_> = records
        .iter()
        .map(|record| (record.source.address, record.flow_end_reason))
        .collect();
    assert_eq!(
        reasons,
        [
            (idle.0.0, Some(FlowEndReason::IdleTimeout)),
            (other.0.0, Some(FlowEndReason::ForcedEnd)),
        ]
    );
}

#[test]
fn of_two_tags_both_tell_connections_apart_and_a_priority_is_no_vlan() {
    let tagged = |tags: &[(u8, u16)], from_client: bool| {
        let ends = ends(CLIENT);
        let mut made = udp(0, ends.0, ends.1, 10);
        if !from_client {
            made = udp(1, ends.1, ends.0, 10);
        }
        for &(first, tag) in tags.iter().rev() {
            let [high, low] = tag.to_be_bytes();
            made.octets.splice(
                12..12,
                [first, if first == 0x88 { 0xa8 } else { 0 }, high, low],
            );
        }
        made
    };
    const SERVICE: u8 = 0x88;
    const CUSTOMER: u8 = 0x81;
    // What goes and what comes back, by connection.
    let both: [[&[(u8, u16)]; 2]; 5] = [
        [&[], &[(CUSTOMER, 5 << 13)]],
        [&[(SERVICE, 100)], &[(SERVICE, 100), (CUSTOMER, 3 << 13)]],
        [&[(SERVICE, 100), (CUSTOMER, 10)]; 2],
        [
            &[(SERVICE, 100), (CUSTOMER, 4_094)],
            &[(SERVICE, 100), (CUSTOMER, 2 << 13 | 4_094)],
        ],
        [&[(SERVICE, 0), (CUSTOMER, 10)]; 2],
    ];
    let made: Vec<Made> = both
        .iter()
        .flat_map(|[there, back]| [tagged(there, true), tagged(back, false)])
        .collect();
    let told = |vlan_in_key| {
        let config = MeterConfig {
            vlan_in_key,
            ..MeterConfig::default()
        };
        let mut told: Vec<_> = meter(config, &made)
            .iter()
            .map(|record| {
                let packets = (record.forward.packets, record.reverse.packets);
                (record.vlan_id, record.customer_vlan_id, packets)
            })
            .collect();
        told.sort_unstable();
        told
    };
    assert_eq!(
        told(true),
        [
            (None, None, (1, 1)),
            (None, Some(10), (1, 1)),
            (Some(100), None, (1, 1)),
            (Some(100), Some(10), (1, 1)),
            (Some(100), Some(4_094), (1, 1)),
        ]
    );
    assert_eq!(told(false), [(None, None, (5, 5))]);
}

/// Each in its turn in the place of another one, in a table that has no more room.
#[test]
fn the_same_ends_on_several_vlans_are_several_connections() {
    let tagged = |mut made: Made, vlan: u8| {
        if vlan > 0 {
            made.octets.splice(12..12, [0x81, 0, 0, vlan]);
        }
        made
    };
    let rounds: [&[u8]; 4] = [&[0, 1, 2], &[2, 0, 1], &[1, 2, 0], &[3, 4]];
    let mut made = Vec::new();
    for (round, vlans) in (0..).zip(rounds) {
        let number = 10_000 * round;
        let all = http(u64::from(number), ends(CLIENT), (number, number));
        for (place, frame) in all.iter().enumerate() {
            // All but the third are closed by FIN; that one is replaced by what begins anew, or in the end runs out.
            let open = if place < 7 { vlans } else { &vlans[..2] };
            made.extend(open.iter().map(|&vlan| tagged(frame.clone(), vlan)));
        }
    }
    made.push(udp(1_000_000_000, v4(3, 1), v4(4, 53), 1));
    let config = MeterConfig {
        max_connections: 3,
        ..MeterConfig::default()
    };
    let mut told: Vec<_> = meter(config, &made)
        .iter()
        .filter(|record| record.source.port == CLIENT)
        .map(|record| {
            let packets = (record.forward.packets, record.reverse.packets);
            (record.vlan_id, packets, record.flow_end_reason)
        })
        .collect();
    let all = ((6, 4), Some(FlowEndReason::EndOfFlowDetected));
    let replaced = ((4, 3), Some(FlowEndReason::EndOfFlowDetected));
    let overdue = ((4, 3), Some(FlowEndReason::IdleTimeout));
    let mut expected = Vec::new();
    for (vlan, records) in [
        (None, &[all, all, overdue][..]),
        (Some(1), &[all, replaced, all]),
        (Some(2), &[replaced, all, all]),
        (Some(3), &[all]),
        (Some(4), &[all]),
    ] {
        expected.extend(
            records
                .iter()
                .map(|&(packets, reason)| (vlan, packets, reason)),
        );
    }
    // Of one VLAN they come in their order.
    told.sort_by_key(|told| told.0);
    assert_eq!(told, expected);
}

#[test]
fn tunnels_are_looked_into_when_told() {
    let inner = udp(0, v4(5, 1000), v4(6, 2000), 10);
    let mut body = vec![0x12, 0x34, 0x12, 0xb5];
    body.extend((16 + inner.octets.len() as u16).to_be_bytes());
    body.extend([0, 0, 8, 0, 0, 0, 0, 0, 42, 0]);
    body.extend(&inner.octets);
    let frames = [ip(0, v4(1, 0).0, v4(2, 0).0, 17, &body)];
    let outer = &meter(MeterConfig::default(), &frames)[0];
    assert_eq!((outer.destination.port, outer.tunnel), (4789, None));
    let inner = &meter(
        MeterConfig {
            decapsulate: true,
            ..MeterConfig::default()
        },
        &frames,
    )[0];
    assert_eq!(
        (inner.source.port, inner.forward.payload_octets),
        (1000, 10)
    );
    let tunnel = inner.tunnel.expect("a tunnel");
    assert_eq!(
        (tunnel.source, tunnel.destination, tunnel.id),
        (v4(1, 0).0, v4(2, 0).0, Some(42))
    );
}

#[test]
fn a_sink_may_stop_or_fail_and_frames_are_still_metered() {
    let frames: Vec<Made> = (0..100)
        .map(|n| udp(n * 100_000, v4(1, 1), v4(2, 53), 1))
        .collect();
    let mut meter = Meter::new(MeterConfig::default()).expect("memory");
    let mut seen = 0;
    let mut sink = sink_fn(|_: &FlowRecord| {
        seen += 1;
        Ok::<_, Infallible>(if seen == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    });
    let Ok(said) = meter.observe(frames.iter().map(Made::frame), &mut sink);
    assert!(said.is_break());
    assert_eq!(
        (
            meter.stats().metered,
            meter.stats().records,
            meter.stats().undelivered
        ),
        (100, 99, 96)
    );
    let failed = meter.finish(&mut sink_fn(|_: &FlowRecord| Err("full disk")));
    assert_eq!(failed, Err("full disk"));
}

#[test]
fn what_is_not_ip_and_what_is_broken_are_told_apart() {
    let mut arp = udp(0, v4(1, 1), v4(2, 2), 0);
    arp.octets[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut cut = udp(0, v4(1, 1), v4(2, 2), 0);
    cut.octets.truncate(30);
    let mut wrong = udp(0, v4(1, 1), v4(2, 2), 0);
    wrong.octets[14] = 0x44;
    let mut meter = Meter::new(MeterConfig::default()).expect("memory");
    let mut records = Vec::new();
    observe(&mut meter, &mut records, &[arp, cut, wrong]);
    assert_eq!(
        (
            meter.stats().not_ip,
            meter.stats().unparsed,
            meter.stats().metered
        ),
        (1, 2, 0)
    );
    balanced(&meter, &records);
}

#[test]
fn conversations_add_up_and_merge() {
    let records: Vec<FlowRecord> = (0..20)
        .flat_map(|n| {
            meter(
                MeterConfig::default(),
                &http(1_000 + n * 500, ends(CLIENT + n as u16), (7, 9)),
            )
        })
        .chain(meter(
            MeterConfig::default(),
            &[
                tcp(2_000, ends(1), SYN, (5, 0), 0),
                tcp(2_001, back(ends(1)), RST | ACK, (0, 6), 0),
            ],
        ))
        .chain(meter(
            MeterConfig::default(),
            &[udp(2_000, v4(7, 1), v4(8, 53), 5)],
        ))
        .collect();
    let new = |most| Aggregator::new(GroupBy::default(), Duration::from_secs(5), most);
    let mut whole = new(100);
    records.iter().for_each(|record| whole.add(record));
    let (mut half, mut other) = (new(100), new(100));
    for (place, record) in records.iter().enumerate() {
        if place % 3 == 0 {
            &mut half
        } else {
            &mut other
        }
        .add(record);
    }
    half.merge(other);
    let sorted = |aggregator: &Aggregator| {
        let mut all: Vec<_> = aggregator
            .iter()
            .map(|(key, sums)| (key.clone(), sums.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    assert_eq!(sorted(&half), sorted(&whole));
    let all = sorted(&whole);
    let http: Vec<_> = all
        .iter()
        .filter(|(key, _)| key.server_port == Some(80))
        .map(|(_, sums)| sums)
        .collect();
    let sum =
        |pick: fn(&nvflow::Conversation) -> u64| http.iter().map(|sums| pick(sums)).sum::<u64>();
    assert_eq!(http.len(), 3, "1 s to 11 s in windows of 5 s");
    assert_eq!(
        (
            sum(|sums| sums.opened),
            sum(|sums| sums.closed),
            sum(|sums| sums.failed)
        ),
        (21, 21, 1)
    );
    assert_eq!(
        (
            sum(|sums| sums.initiator_octets),
            sum(|sums| sums.responder_octets)
        ),
        (2_000, 20_000)
    );
    let rtt = http[1]
        .handshake_rtt
        .as_ref()
        .and_then(|times| times.quantile(0.5))
        .expect("handshakes");
    assert!((22_000..=24_750).contains(&rtt), "{rtt}");

    let mut small = new(1);
    records.iter().for_each(|record| small.add(record));
    let kept: u64 = small.iter().map(|(_, sums)| sums.records).sum();
    assert_eq!(small.iter().count(), 1);
    assert_eq!(
        kept + small.rest().records,
        records.len() as u64,
        "what has no room is counted"
    );
    let taken = whole.take_until(Timestamp::from_nanos(10_000_000_000));
    assert_eq!(taken.len() + whole.iter().count(), all.len());
    assert!(
        whole
            .iter()
            .all(|(key, _)| key.window == Timestamp::from_nanos(10_000_000_000))
    );
    let later = whole.take_all();
    assert_eq!(taken.len() + later.len(), all.len());
    assert!(later.is_sorted_by_key(|(key, _)| key) && whole.iter().count() == 0);

    let rest = small.rest().clone();
    assert_eq!(small.take_rest(), rest);
    assert_eq!(small.rest().records, 0);
}

#[test]
fn a_look_in_pieces_shows_what_stays_once() {
    let mut meter = Meter::new(MeterConfig::default()).expect("memory");
    let mut records = Vec::new();
    let opening = |port: u16| http(0, ends(port), (1, 1)).into_iter().take(3);
    for port in 1_000..1_100 {
        observe(&mut meter, &mut records, &opening(port).collect::<Vec<_>>());
    }
    let mut seen = Vec::new();
    let (mut from, mut looks) = (0, 0);
    loop {
        let next = meter.open_from(from, 16, |record| seen.push(record.source.port));
        looks += 1;
        // Frames come between two pieces, and new connections with them.
        observe(
            &mut meter,
            &mut records,
            &opening(2_000 + looks).collect::<Vec<_>>(),
        );
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    seen.retain(|port| *port < 2_000);
    seen.sort_unstable();
    assert_eq!(seen, (1_000..1_100).collect::<Vec<u16>>());
    assert!(looks >= 100 / 16, "{looks}");
}

#[test]
fn totals_of_two_meters_balance_when_they_are_added() {
    let mut total = nvflow::MeterStats::default();
    for port in [1, 2] {
        let mut meter = Meter::new(MeterConfig::default()).expect("memory");
        let mut records = Vec::new();
        observe(&mut meter, &mut records, &http(0, ends(port), (1, 1)));
        total.merge(&meter.stats());
    }
    assert!(total.is_balanced());
    assert_eq!((total.opened, total.connections), (2, 2));
    assert_eq!(total.frames, 2 * http(0, ends(1), (1, 1)).len() as u64);
}

/// The frames of a download: what the server sent in one go comes as one frame of `payload` octets.
fn download(payload: usize, wire: usize) -> (Vec<Made>, usize) {
    let ends = ends(4000);
    let frames = vec![
        tcp(0, ends, SYN, (1, 0), 0),
        tcp(1, back(ends), SYN | ACK, (1, 2), 0),
        tcp(2, ends, ACK, (2, 2), 0),
        tcp(3, ends, ACK, (2, 2), 100),
        tcp(4, back(ends), ACK, (2, 102), payload),
        tcp(5, ends, ACK, (102, 2 + wire as u32), 0),
    ];
    (frames, 4)
}

#[test]
fn a_super_frame_is_counted_as_its_packets() {
    let size = |octets| SegmentSize::Octets(NonZeroU16::new(octets).expect("not 0"));
    for (segment_size, mtu, payload, packets) in [
        (size(1460), None, 14_600, 10),
        (size(1460), None, 14_601, 11),
        (size(536), Some(1500), 14_601, 28),
        (SegmentSize::Whole, Some(1500), 14_600, 1),
        (SegmentSize::Unknown, Some(1500), 14_600, 10),
        (SegmentSize::Unknown, Some(9000), 14_600, 2),
        (SegmentSize::Unknown, None, 14_600, 1),
        (SegmentSize::Unknown, Some(1500), 1460, 1),
    ] {
        let (made, large) = download(payload, payload);
        let frames = made.iter().enumerate().map(|(at, made)| {
            let mut meta = *made.frame().meta();
            if at == large {
                meta.segment_size = segment_size;
            }
            // A snap length cuts it.
            Frame::new(&made.octets[..made.octets.len().min(64)], meta)
        });
        let mut meter = Meter::new(MeterConfig {
            mtu,
            ..MeterConfig::default()
        })
        .expect("a table");
        let mut records = Vec::new();
        let Ok(_) = meter.observe(frames, &mut records);
        let Ok(_) = meter.finish(&mut records);
        let stats = meter.stats();
        assert_eq!(records.len(), 1);
        let record = &records[0];
        let case = format!("{segment_size:?} {mtu:?} {payload}");
        // SYN-ACK, and what the frame stands for: each packet has headers of its own.
        let sent = &record.reverse;
        assert_eq!(sent.packets, 1 + packets, "{case}");
        assert_eq!(sent.octets, 40 + payload as u64 + packets * 40, "{case}");
        assert_eq!(
            sent.layer2_octets,
            54 + payload as u64 + packets * 54,
            "{case}"
        );
        assert_eq!(sent.payload_octets, payload as u64, "{case}");
        assert_eq!(record.forward.packets, 4, "{case}");
        let tcp = record.tcp.as_ref().expect("TCP");
        assert_eq!(tcp.reverse.retransmitted_segments, 0, "{case}");
        assert!(stats.is_balanced());
        assert_eq!((stats.frames, stats.metered), (6, 6), "{case}");
        assert_eq!(stats.packets, 5 + packets, "{case}");
        assert_eq!(stats.super_frames, u64::from(packets > 1), "{case}");
        let by_mtu = packets > 1 && segment_size == SegmentSize::Unknown;
        assert_eq!(stats.super_frames_by_mtu, u64::from(by_mtu), "{case}");
    }
}

#[test]
fn packets_of_a_refused_super_frame_are_not_counted() {
    let config = MeterConfig {
        max_connections: 1,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config).expect("a table");
    let mut records: Vec<FlowRecord> = Vec::new();
    let (made, _) = download(14_600, 14_600);
    observe(&mut meter, &mut records, &made);
    let before = meter.stats();
    assert_eq!(before.packets, 15);
    observe(
        &mut meter,
        &mut records,
        &[tcp(6, ends(5000), ACK, (1, 1), 14_600)],
    );
    let after = meter.stats();
    assert_eq!((after.refused, after.packets), (1, 15));
}

#[test]
fn inside_a_tunnel_each_packet_has_the_headers_of_both() {
    let inner = tcp(0, ends(4000), ACK, (1, 1), 14_000);
    let mut body = Vec::new();
    body.extend([0x12, 0x34, 0x12, 0xb5]); // to VXLAN
    body.extend((16 + inner.octets.len() as u16).to_be_bytes());
    body.extend([0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
    body.extend(&inner.octets);
    let (from, to) = ends(1);
    let made = ip(0, from.0, to.0, 17, &body);
    let mut meta = *made.frame().meta();
    meta.segment_size = SegmentSize::Octets(NonZeroU16::new(1400).expect("not 0"));
    let frame = Frame::new(&made.octets, meta);
    // Outer: Ethernet, IPv4, UDP, VXLAN. Inner: Ethernet, IPv4, TCP.
    let around = 14 + 20 + 8 + 8 + 14 + 20 + 20;
    for (decapsulate, ip_headers) in [(false, around - 14), (true, 40)] {
        let config = MeterConfig {
            decapsulate,
            ..MeterConfig::default()
        };
        let mut meter = Meter::new(config).expect("a table");
        let mut records = Vec::new();
        let Ok(_) = meter.observe([frame], &mut records);
        let Ok(_) = meter.finish(&mut records);
        let sent = &records[0].forward;
        assert_eq!(sent.packets, 10);
        assert_eq!(sent.octets, 14_000 + 10 * ip_headers);
        assert_eq!(sent.layer2_octets, 14_000 + 10 * around);
    }
}

#[test]
fn an_open_connection_keeps_its_place() {
    let mut meter = Meter::new(MeterConfig::default()).expect("memory");
    let mut records = Vec::new();
    let places = |meter: &Meter| {
        let mut places = Vec::new();
        let _all = meter.open_places(|place, record| {
            assert!(u64::from(place) < meter.stats().high_water);
            places.push((record.source.port, place));
            ControlFlow::Continue(())
        });
        places.sort_unstable();
        places
    };
    let syn = |at, port| tcp(at, ends(port), SYN, (7, 0), 0);
    observe(&mut meter, &mut records, &[syn(0, 1), syn(1, 2), syn(2, 3)]);
    let before = places(&meter);
    assert_eq!(before.len(), 3);
    let reset = tcp(3, back(ends(2)), RST | ACK, (0, 8), 0);
    observe(&mut meter, &mut records, &[reset, syn(4, 1)]);
    // The one that was reset goes after a while; its place is free for the next.
    observe(&mut meter, &mut records, &[syn(20_000, 4)]);
    assert_eq!(records.len(), 1);
    let after = places(&meter);
    assert_eq!(after[0], before[0]);
    assert_eq!(after[1], before[2]);
    assert_eq!(after[2], (4, before[1].1));
}
