//! How many packets a frame stands for.

use super::{Headers, Transport};
use crate::{Frame, SegmentSize};

/// Who says how a super-frame is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentSource {
    /// The kernel, beside the frame: exact.
    Kernel,
    /// Nobody: the frame is longer than the link's packets can be, so they are taken to be as long as it lets them.
    ///
    /// A connection whose packets are shorter than that (its ends agreed on a smaller segment size) has more of them than this tells.
    Mtu,
}

/// The packets that a super-frame stands for: what the wire carried before an offload put them together, or will when one has cut it.
///
/// Each has the frame's headers, from the link's to TCP's or UDP's, and a part of its payload. On the wire there were so, beside the frame's
/// octets, those of its headers `count - 1` times more: [`Segments::repeated`].
///
/// ```
/// use nvcapture::{Frame, FrameMeta, SegmentSize, Timestamp, wire::{Headers, Segments, SegmentSource}};
/// use std::num::NonZeroU16;
///
/// let mut octets = vec![0; 14 + 20 + 20];
/// octets[12..14].copy_from_slice(&[0x08, 0x00]);
/// octets[14..18].copy_from_slice(&[0x45, 0, (4040_u16 >> 8) as u8, 4040_u16 as u8]); // 4,000 octets of payload
/// octets[23] = 6;
/// octets[46] = 0x50;
/// let mut meta = FrameMeta::ethernet(Timestamp::ZERO, 14 + 4040); // of which the headers were kept
/// meta.segment_size = SegmentSize::Octets(NonZeroU16::new(1460).unwrap());
/// let frame = Frame::new(&octets, meta);
///
/// let headers = Headers::parse(&frame)?;
/// let segments = Segments::of(&frame, &headers, None).unwrap();
/// assert_eq!((segments.count, segments.source), (3, SegmentSource::Kernel));
/// assert_eq!(headers.ip_octets + segments.repeated(headers.ip_octets), 4000 + 3 * 40);
/// # Ok::<(), nvcapture::wire::WireError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// How many; 2 or more.
    pub count: u32,
    /// Octets of payload that are shared among them.
    pub payload_octets: u32,
    /// Who says so.
    pub source: SegmentSource,
}

/// The longest packet of a loopback interface, whose MTU is 65,536.
const LOOPBACK: u32 = 65_536;

impl Segments {
    /// Of `frame`, whose outermost packet is `headers`; `None` when the frame is one packet.
    ///
    /// Where the source does not tell, a TCP segment or UDP datagram whose packet is longer than `mtu` is a super-frame; without an `mtu`
    /// none is. Frames of a loopback interface (no addresses) are whole up to its own MTU.
    #[cold]
    pub fn of(frame: &Frame<'_>, headers: &Headers<'_>, mtu: Option<u32>) -> Option<Self> {
        if headers.fragment.is_some() {
            return None;
        }
        // An offload cuts the innermost packet, and gives each part all headers that are around it.
        let inner = headers.decapsulate();
        let cut = inner.as_ref().unwrap_or(headers);
        let payload_octets = cut.payload_octets;
        let (size, source) = match frame.meta().segment_size {
            SegmentSize::Whole => return None,
            SegmentSize::Octets(size) => (size.get().into(), SegmentSource::Kernel),
            SegmentSize::Unknown => {
                let is_loopback = headers.ethernet.is_some_and(|ethernet| {
                    ethernet.source() == [0; 6] && ethernet.destination() == [0; 6]
                });
                let mtu = mtu?.max(if is_loopback { LOOPBACK } else { 0 });
                if headers.ip_octets <= mtu
                    || !matches!(cut.transport, Transport::Tcp(_) | Transport::Udp(_))
                {
                    return None;
                }
                let around = headers.ip_octets.saturating_sub(payload_octets);
                (mtu.saturating_sub(around), SegmentSource::Mtu)
            }
        };
        // No payload fits in beside the headers: such an MTU says nothing of this frame.
        if size == 0 {
            return None;
        }
        let count = payload_octets.div_ceil(size);
        (count > 1).then_some(Self {
            count,
            payload_octets,
            source,
        })
    }

    /// The octets of headers that the wire carried beside one layer's `octets` of the frame: its length, or that of its outer or inner packet.
    pub const fn repeated(&self, octets: u32) -> u32 {
        octets
            .saturating_sub(self.payload_octets)
            .saturating_mul(self.count - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::{FrameMeta, Timestamp};

    /// The head of a frame that carries `payload` octets in TCP with `options` octets of options, or in UDP.
    fn head(v6: bool, tcp_options: Option<usize>, payload: usize) -> (Vec<u8>, u32) {
        let l4 = tcp_options.map_or(8, |options| 20 + options);
        let mut octets = vec![2; 12];
        let length = (l4 + payload) as u32;
        let protocol = if tcp_options.is_some() { 6 } else { 17 };
        if v6 {
            let length = u16::try_from(length).unwrap_or(0);
            octets.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            octets.extend(length.to_be_bytes());
            octets.extend([protocol, 64]);
            octets.extend([1; 32]);
        } else {
            let length = u16::try_from(length + 20).unwrap_or(0);
            octets.extend([0x08, 0, 0x45, 0]);
            octets.extend(length.to_be_bytes());
            octets.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            octets.extend([10; 8]);
        }
        let at = octets.len();
        octets.resize(at + l4, 0);
        if let Some(options) = tcp_options {
            octets[at + 12] = (((20 + options) / 4) << 4) as u8;
        } else {
            let length = u16::try_from(length).unwrap_or(0);
            octets[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
        }
        let wire_len = octets.len() + payload;
        (octets, wire_len as u32)
    }

    fn of(
        octets: &[u8],
        wire_len: u32,
        size: SegmentSize,
        mtu: Option<u32>,
    ) -> Option<(u32, u32, u32, SegmentSource)> {
        let meta = FrameMeta {
            segment_size: size,
            ..FrameMeta::ethernet(Timestamp::ZERO, wire_len)
        };
        let frame = Frame::new(octets, meta);
        let headers = Headers::parse(&frame).unwrap();
        let segments = Segments::of(&frame, &headers, mtu)?;
        Some((
            segments.count,
            headers.ip_octets + segments.repeated(headers.ip_octets),
            wire_len + segments.repeated(wire_len),
            segments.source,
        ))
    }

    fn size(octets: u16) -> SegmentSize {
        NonZeroU16::new(octets).map_or(SegmentSize::Unknown, SegmentSize::Octets)
    }

    #[test]
    fn the_kernels_word_counts() {
        for v6 in [false, true] {
            let ip = if v6 { 40 } else { 20 };
            for (options, l4) in [(Some(0), 20), (Some(12), 32), (None, 8)] {
                for (payload, segment, count) in [
                    (1449, 1448, 2),
                    (2896, 1448, 2),
                    (2897, 1448, 3),
                    (60_000, 1448, 42),
                    (1000, 100, 10),      // shorter than any MTU and yet ten packets
                    (500_000, 1448, 346), // BIG TCP, whose IP header says 0
                ] {
                    let (octets, wire_len) = head(v6, options, payload);
                    let headers = ip + l4;
                    assert_eq!(
                        of(&octets, wire_len, size(segment), Some(1500)),
                        Some((
                            count,
                            payload as u32 + count * headers,
                            payload as u32 + count * (14 + headers),
                            SegmentSource::Kernel
                        )),
                        "{options:?} {payload}"
                    );
                }
                // One packet, whatever its length.
                let (octets, wire_len) = head(v6, options, 8000);
                assert_eq!(of(&octets, wire_len, SegmentSize::Whole, Some(1500)), None);
                assert_eq!(of(&octets, wire_len, size(8000), Some(1500)), None);
            }
        }
    }

    #[test]
    fn without_it_the_mtu_tells() {
        let (octets, wire_len) = head(false, Some(12), 60_000);
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)),
            Some((42, 60_000 + 42 * 52, 60_000 + 42 * 66, SegmentSource::Mtu))
        );
        assert_eq!(of(&octets, wire_len, SegmentSize::Unknown, None), None);
        // Exactly the MTU, and one octet more.
        let (octets, wire_len) = head(false, Some(12), 1448);
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)),
            None
        );
        let (octets, wire_len) = head(false, Some(12), 1449);
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)).map(|told| told.0),
            Some(2)
        );
        // Jumbo frames, when one says so.
        let (octets, wire_len) = head(true, Some(12), 8928);
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(9000)),
            None
        );
        // An MTU in which no payload has room.
        assert_eq!(of(&octets, wire_len, SegmentSize::Unknown, Some(40)), None);
    }

    #[test]
    fn loopback_frames_are_whole() {
        let (mut octets, wire_len) = head(false, Some(12), 32_768);
        octets[..12].fill(0);
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)),
            None
        );
        // But for super-frames of its own.
        let (mut octets, wire_len) = head(false, Some(12), 130_966);
        octets[..12].fill(0);
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)).map(|told| told.0),
            Some(2)
        );
    }

    #[test]
    fn fragments_and_other_protocols_are_whole() {
        let (mut octets, wire_len) = head(false, None, 8000);
        octets[20] = 0x20; // more fragments
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)),
            None
        );
        assert_eq!(of(&octets, wire_len, size(1000), Some(1500)), None);
        let (mut octets, wire_len) = head(false, None, 8000);
        octets[23] = 1; // ICMP: a link with longer packets
        assert_eq!(
            of(&octets, wire_len, SegmentSize::Unknown, Some(1500)),
            None
        );
    }

    #[test]
    fn a_tunnels_headers_are_repeated_too() {
        // Ethernet, IPv4, UDP to VXLAN, VXLAN, then a whole Ethernet frame.
        let (inner, inner_len) = head(true, Some(12), 14_000);
        let (mut octets, _) = head(false, None, 8 + inner_len as usize);
        octets[36..38].copy_from_slice(&4789_u16.to_be_bytes());
        octets.extend([8, 0, 0, 0, 0, 0, 7, 0]);
        octets.extend(&inner);
        let wire_len = (octets.len() + 14_000) as u32;
        let around = octets.len() as u32;
        assert_eq!(
            of(&octets, wire_len, size(1400), None),
            Some((
                10,
                14_000 + 10 * (around - 14),
                14_000 + 10 * around,
                SegmentSource::Kernel
            ))
        );
    }
}
