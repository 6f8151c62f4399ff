//! Connections between two attached containers: seen at both, with a record each.

use std::collections::{HashMap, VecDeque};

use nvflow::{Endpoint, FlowRecord, Vantage};

/// Records that wait for that of the other end, at most. Both come within moments of each other.
const WAITING: usize = 131_072;

/// Whose connection it is, at both ends the same.
type Key = (Endpoint, Endpoint, u8);

/// Finds the second record of the same.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    /// Where the first was seen, and its number.
    waiting: HashMap<Key, (Vantage, u64)>,
    order: VecDeque<(u64, Key)>,
    number: u64,
}

impl Twins {
    /// Whether `record` tells of what another one told that was seen at the other end.
    pub(crate) fn is_second(&mut self, record: &FlowRecord) -> bool {
        let Some(vantage) = record.vantage else {
            return false;
        };
        if record.labels.peer_workload.is_none() {
            return false;
        }
        let key = (
            record.source,
            record.destination,
            record.protocol_identifier,
        );
        if let Some((at, _)) = self.waiting.get(&key)
            && *at != vantage
        {
            self.waiting.remove(&key);
            return true;
        }
        self.number += 1;
        self.waiting.insert(key, (vantage, self.number));
        self.order.push_back((self.number, key));
        if self.order.len() > WAITING
            && let Some((number, key)) = self.order.pop_front()
            && self.waiting.get(&key).is_some_and(|(_, of)| *of == number)
        {
            self.waiting.remove(&key);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn record(port: u16, vantage: Vantage) -> FlowRecord {
        let mut record = FlowRecord::default();
        record.source.address = Ipv4Addr::new(10, 0, 0, 1).into();
        record.source.port = port;
        record.protocol_identifier = 6;
        record.vantage = Some(vantage);
        record.labels.peer_workload = Some("db".into());
        record
    }

    #[test]
    fn the_second_record_of_two_is_found_whichever_comes_first() {
        let mut twins = Twins::default();
        let (egress, ingress) = (Vantage::Egress, Vantage::Ingress);
        for (first, second) in [(egress, ingress), (ingress, egress)] {
            // The same ports, again and again.
            for _ in 0..3 {
                assert!(!twins.is_second(&record(1, first)));
                assert!(!twins.is_second(&record(2, first)));
                assert!(twins.is_second(&record(1, second)));
                assert!(twins.is_second(&record(2, second)));
            }
        }
        // The other end of the first one was not seen.
        assert!(!twins.is_second(&record(3, egress)));
        assert!(!twins.is_second(&record(3, egress)));
        assert!(twins.is_second(&record(3, ingress)));
    }

    #[test]
    fn of_whom_one_end_is_attached_there_is_one_record() {
        let mut twins = Twins::default();
        for vantage in [Some(Vantage::Egress), Some(Vantage::Ingress), None] {
            let mut alone = record(1, Vantage::Egress);
            alone.vantage = vantage;
            alone.labels.peer_workload = None;
            assert!(!twins.is_second(&alone));
        }
        let mut of_a_file = record(1, Vantage::Egress);
        of_a_file.vantage = None;
        assert!(!twins.is_second(&of_a_file));
        assert!(!twins.is_second(&of_a_file));
    }

    #[test]
    fn those_that_wait_are_bounded() {
        let mut twins = Twins::default();
        for number in 0..3 * WAITING as u32 {
            let mut one = record(1, Vantage::Egress);
            one.source.address = Ipv4Addr::from(number).into();
            assert!(!twins.is_second(&one));
        }
        assert_eq!(twins.waiting.len(), WAITING);
        assert_eq!(twins.order.len(), WAITING);
        // Their places are given up in their order, whatever came of them.
        for _ in 0..3 * WAITING {
            assert!(!twins.is_second(&record(9, Vantage::Egress)));
            assert!(twins.is_second(&record(9, Vantage::Ingress)));
        }
        assert_eq!(twins.waiting.len(), 0);
        assert_eq!(twins.order.len(), WAITING);
    }
}
