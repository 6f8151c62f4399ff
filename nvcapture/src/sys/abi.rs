//! Layouts of include/uapi/linux/if_packet.h, checked against libc's types when this is compiled.

use std::mem::{offset_of, size_of};

/// Octets of `struct tpacket_block_desc` at the head of a block.
pub(crate) const BLOCK_DESC_LEN: usize = 48;
/// Where `block_status` lies in a block.
pub(crate) const BLOCK_STATUS: usize = 8;
/// Where `num_pkts` lies in a block.
pub(crate) const NUM_PKTS: usize = 12;
/// Where `offset_to_first_pkt` lies in a block.
pub(crate) const OFFSET_TO_FIRST_PKT: usize = 16;

/// Where `ts_last_pkt` lies in a block: seconds and nanoseconds. (`ts_first_pkt` is when the block was begun, which may be long before.)
pub(crate) const TS_LAST_PKT: usize = 40;
/// In `block_status`: the block's time was out before it was full.
pub(crate) const TP_STATUS_BLK_TMO: u32 = 1 << 5;

/// Octets of `struct tpacket3_hdr` at the head of a frame.
pub(crate) const FRAME_HDR_LEN: usize = 48;
/// Where its `tp_sec` lies, with `tp_nsec` behind it.
pub(crate) const FRAME_TIME: usize = 4;
/// Octets of `struct sockaddr_ll` behind it.
pub(crate) const SOCKADDR_LEN: usize = 20;
/// Octets from the head of a frame to the first octet that may be the frame's own.
pub(crate) const FRAME_HEAD_LEN: usize = FRAME_HDR_LEN + SOCKADDR_LEN;
/// Where `sll_pkttype` lies, counted from the head of a frame.
pub(crate) const PKTTYPE: usize = FRAME_HDR_LEN + 10;

/// Octets of `struct virtio_net_hdr`, right before a frame's own where `PACKET_VNET_HDR` is set.
pub(crate) const VNET_HDR_LEN: usize = 10;
/// What is reserved beside it, so that what follows stays aligned as without it.
pub(crate) const VNET_ALIGNMENT: libc::c_int = 6;
const _: () =
    assert!((VNET_HDR_LEN + VNET_ALIGNMENT as usize).is_multiple_of(libc::TPACKET_ALIGNMENT));
/// Where `gso_type` lies in it, and what it holds for a frame that is one packet.
pub(crate) const VNET_GSO_TYPE: usize = 1;
pub(crate) const VNET_GSO_NONE: u8 = 0;
/// Where `gso_size` lies in it, in the machine's byte order.
pub(crate) const VNET_GSO_SIZE: usize = 4;

/// `SKF_AD_OFF + SKF_AD_PKTTYPE` of include/uapi/linux/filter.h: loads the packet type in a classic BPF program.
pub(crate) const SKF_AD_PKTTYPE: u32 = (-0x1000_i32 + 4) as u32;

const _: () = assert!(size_of::<libc::tpacket_block_desc>() == BLOCK_DESC_LEN);
const _: () = assert!(
    offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, block_status)
        == BLOCK_STATUS
);
const _: () = assert!(
    offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, num_pkts)
        == NUM_PKTS
);
const _: () = assert!(
    offset_of!(libc::tpacket_block_desc, hdr)
        + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt)
        == OFFSET_TO_FIRST_PKT
);
const _: () = assert!(
    offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, ts_last_pkt)
        == TS_LAST_PKT
);
const _: () = assert!(size_of::<libc::tpacket3_hdr>() == FRAME_HDR_LEN);
// The kernel puts the address at TPACKET_ALIGN(sizeof(struct tpacket3_hdr)), which adds nothing to 48.
const _: () = assert!(FRAME_HDR_LEN.is_multiple_of(libc::TPACKET_ALIGNMENT));
const _: () = assert!(size_of::<libc::sockaddr_ll>() == SOCKADDR_LEN);
const _: () = assert!(FRAME_HDR_LEN + offset_of!(libc::sockaddr_ll, sll_pkttype) == PKTTYPE);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_next_offset) == 0);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_sec) == FRAME_TIME);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_nsec) == FRAME_TIME + 4);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_snaplen) == 12);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_len) == 16);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_status) == 20);
const _: () = assert!(offset_of!(libc::tpacket3_hdr, tp_mac) == 24);
const _: () = assert!(
    offset_of!(libc::tpacket3_hdr, hv1) + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tci) == 32
);
const _: () = assert!(
    offset_of!(libc::tpacket3_hdr, hv1) + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tpid)
        == 36
);
