//! The frames of a capture file in memory, as far as it is whole: enough of pcap and pcapng for tests.

use nvcapture::{Frame, FrameMeta, LinkType, Timestamp};

#[derive(Clone, Copy)]
struct Order {
    big: bool,
}

impl Order {
    fn u16(self, octets: &[u8], at: usize) -> Option<u16> {
        let octets = *octets.get(at..)?.first_chunk()?;
        Some(if self.big {
            u16::from_be_bytes(octets)
        } else {
            u16::from_le_bytes(octets)
        })
    }

    fn u32(self, octets: &[u8], at: usize) -> Option<u32> {
        let octets = *octets.get(at..)?.first_chunk()?;
        Some(if self.big {
            u32::from_be_bytes(octets)
        } else {
            u32::from_le_bytes(octets)
        })
    }
}

/// The frames of a pcap or pcapng file.
pub(crate) fn frames(file: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    let _ = match file.first_chunk() {
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => pcapng(file, &mut frames),
        _ => pcap(file, &mut frames),
    };
    frames
}

fn meta(link_type: LinkType, nanos: u64, wire_len: u32) -> FrameMeta {
    FrameMeta {
        link_type,
        ..FrameMeta::ethernet(Timestamp::from_nanos(nanos), wire_len)
    }
}

fn pcap<'f>(file: &'f [u8], frames: &mut Vec<Frame<'f>>) -> Option<()> {
    let (order, unit) = match file.first_chunk()? {
        [0xd4, 0xc3, 0xb2, 0xa1] => (Order { big: false }, 1_000),
        [0xa1, 0xb2, 0xc3, 0xd4] => (Order { big: true }, 1_000),
        [0x4d, 0x3c, 0xb2, 0xa1] => (Order { big: false }, 1),
        [0xa1, 0xb2, 0x3c, 0x4d] => (Order { big: true }, 1),
        _ => return None,
    };
    let link_type = LinkType(order.u32(file, 20)? as u16);
    let mut rest = file.get(24..)?;
    loop {
        let length = order.u32(rest, 8)? as usize;
        let nanos =
            u64::from(order.u32(rest, 0)?) * 1_000_000_000 + u64::from(order.u32(rest, 4)?) * unit;
        let octets = rest.get(16..)?.get(..length)?;
        frames.push(Frame::new(
            octets,
            meta(link_type, nanos, order.u32(rest, 12)?),
        ));
        rest = &rest[16 + length..];
    }
}

fn pcapng<'f>(file: &'f [u8], frames: &mut Vec<Frame<'f>>) -> Option<()> {
    let mut order = Order { big: false };
    let mut interfaces: Vec<(LinkType, u64)> = Vec::new();
    let mut rest = file;
    loop {
        if rest.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
            order.big = rest.get(8..12)? == [0x1a, 0x2b, 0x3c, 0x4d];
            interfaces.clear();
        }
        let (kind, length) = (order.u32(rest, 0)?, order.u32(rest, 4)? as usize);
        let block = rest.get(..length.max(12))?;
        match kind {
            1 => {
                let mut options = block.get(16..)?;
                let mut unit = 1_000;
                while let (Some(code), Some(octets)) =
                    (order.u16(options, 0), order.u16(options, 2))
                {
                    if (code, octets) == (9, 1) {
                        unit = 10_u64.pow(9 - u32::from(options.get(4)?.min(&9) & 0x7f));
                    }
                    if code == 0 {
                        break;
                    }
                    options = options
                        .get(4 + usize::from(octets).next_multiple_of(4)..)
                        .unwrap_or_default();
                }
                interfaces.push((LinkType(order.u16(block, 8)?), unit));
            }
            // Enhanced packet block, and its obsolete elder.
            6 | 2 => {
                let interface = if kind == 6 {
                    order.u32(block, 8)? as usize
                } else {
                    order.u16(block, 8)?.into()
                };
                let &(link_type, unit) = interfaces.get(interface)?;
                let time =
                    (u64::from(order.u32(block, 12)?) << 32) | u64::from(order.u32(block, 16)?);
                let octets = block.get(28..)?.get(..order.u32(block, 20)? as usize)?;
                frames.push(Frame::new(
                    octets,
                    meta(link_type, time.saturating_mul(unit), order.u32(block, 24)?),
                ));
            }
            3 => {
                let &(link_type, _) = interfaces.first()?;
                let wire = order.u32(block, 8)?;
                let kept = (wire as usize).min(length.saturating_sub(16));
                frames.push(Frame::new(
                    block.get(12..)?.get(..kept)?,
                    meta(link_type, 0, wire),
                ));
            }
            _ => {}
        }
        rest = rest.get(length.max(12).next_multiple_of(4)..)?;
    }
}
