//! A copy of what a container's interface has, for the case that somebody deletes the veth pair which has it now.
//!
//! It is kept in the kernel, where it cannot grow old beside another container: in the names of filters on the original
//! interface, in a chain that no frame comes to.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use netlink_packet_route::tc::TcActionType;

use crate::identity::{Identity, hex};
use crate::ids::GROUP;
use crate::socket::RouteSocket;
use crate::tc::{self, Classifier, Filter, Hook, Standing};
use crate::{AttachmentId, Error, bpf};

/// The chain of the filters that keep it; a chain has 28 bits.
const CHAIN: u32 = GROUP >> 4;
/// Octets that one name holds, as hex digits behind what says which piece it is: `CLS_BPF_NAME_LEN` is 256.
const PIECE: usize = 104;
/// Pieces that are kept at most, which is some five hundred routes. A container with more is one that routes for others.
const PIECES: usize = 512;

/// What is kept of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) identity: Identity,
    pub(crate) txqlen: u32,
    pub(crate) alias: Option<String>,
}

impl Kept {
    fn encode(&self) -> Vec<u8> {
        let alias = self.alias.as_deref().unwrap_or_default().as_bytes();
        let mut octets = self.txqlen.to_ne_bytes().to_vec();
        // IFALIASZ is 256.
        octets.push(u8::try_from(alias.len()).unwrap_or(u8::MAX));
        octets.extend(alias.iter().take(usize::from(u8::MAX)));
        octets.extend(self.identity.encode());
        octets
    }

    fn decode(octets: &[u8]) -> Option<Self> {
        let (txqlen, rest) = octets.split_first_chunk()?;
        let (&len, rest) = rest.split_first()?;
        let (alias, rest) = rest.split_at_checked(usize::from(len))?;
        let alias = String::from_utf8_lossy(alias).into_owned();
        Some(Self {
            identity: Identity::decode(rest)?,
            txqlen: u32::from_ne_bytes(*txqlen),
            alias: Some(alias).filter(|alias| !alias.is_empty()),
        })
    }

    /// Writes it on `link`, which has clsact; in one message. Tells whether it is not too much.
    pub(crate) fn write(
        &self,
        target: &mut RouteSocket,
        id: AttachmentId,
        link: u32,
        name: &str,
    ) -> Result<bool, Error> {
        let octets = self.encode();
        let pieces: Vec<&[u8]> = octets.chunks(PIECE).collect();
        if pieces.len() > PIECES {
            return Ok(false);
        }
        // A program that is never run: only such a filter keeps its name.
        let program = bpf::load(c"nv_kept", &bpf::not_from(link))?;
        let batch: Vec<_> = (1..)
            .zip(&pieces)
            .map(|(number, piece)| {
                let filter = Filter {
                    link,
                    hook: Hook::Egress,
                    pref: tc::PREF,
                    classifier: Classifier::Ebpf(program.as_fd()),
                    name: piece_name(id, number, pieces.len(), piece),
                    class: id.number(),
                    mirred: vec![],
                    then: TcActionType::Unspec,
                    direct_action: false,
                };
                filter.add_to(CHAIN, name)
            })
            .collect();
        target.batch(&batch)?;
        Ok(true)
    }

    /// What is kept among `standing` for attachment `id`; `None` when nothing is, or not all of it.
    pub(crate) fn read(standing: &[Standing], id: AttachmentId) -> Option<Self> {
        let mut pieces = BTreeMap::new();
        let mut expected = 0;
        let names = standing.iter().filter(|filter| filter.chain == CHAIN);
        for name in names.filter_map(|filter| filter.name.as_deref()) {
            if let Some((number, of, octets)) = parse_piece(name, id) {
                expected = of;
                pieces.insert(number, octets);
            }
        }
        let complete = expected > 0 && pieces.keys().copied().eq(1..=expected);
        let octets: Vec<u8> = pieces.into_values().flatten().collect();
        complete.then(|| Self::decode(&octets))?
    }
}

fn piece_name(id: AttachmentId, number: usize, of: usize, piece: &[u8]) -> String {
    format!("{} kept id={id} {number}/{of} {}", tc::NAME, hex(piece))
}

/// Number, how many there are, and the octets of a piece that is kept for `id`.
fn parse_piece(name: &str, id: AttachmentId) -> Option<(usize, usize, Vec<u8>)> {
    let rest = name.strip_prefix(&format!("{} kept id={id} ", tc::NAME))?;
    let (place, digits) = rest.split_once(' ')?;
    let (number, of) = place.split_once('/')?;
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let octets = digits.as_bytes().chunks(2).map(octet);
    Some((
        number.parse().ok()?,
        of.parse().ok()?,
        octets.collect::<Option<_>>()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_fits_into_a_name_and_comes_back() {
        let id = AttachmentId::new(0xffff).expect("not zero");
        let octets: Vec<u8> = (0..PIECE).map(|n| n as u8).collect();
        let name = piece_name(id, PIECES, PIECES, &octets);
        assert!(name.len() < 256, "{}", name.len());
        assert_eq!(parse_piece(&name, id), Some((PIECES, PIECES, octets)));
        let other = AttachmentId::new(1).expect("not zero");
        assert_eq!(parse_piece(&name, other), None);
        for bad in [
            "",
            "nvcli:1 kept id=ffff 1/1 zz",
            "nvcli:1 kept id=ffff 11 00",
        ] {
            assert_eq!(parse_piece(bad, id), None, "{bad}");
        }
    }

    #[test]
    fn alias_and_queue_come_back() {
        for alias in [None, Some("the uplink".to_owned())] {
            let kept = Kept {
                identity: Identity::default(),
                txqlen: 77,
                alias,
            };
            assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }
        assert_eq!(Kept::decode(&[1, 2, 3]), None);
    }
}
