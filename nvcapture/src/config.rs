//! What a ring should be like, and whether it can be.

use std::time::Duration;

use crate::Error;
use crate::bpf::{BpfInsn, MAX_INSNS};

/// How a ring is to be made. Start from [`RingConfig::default`] and change what matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Octets of a block: a multiple of the page size, and room for the largest frame that is to be kept.
    ///
    /// 4 MiB by default: a reader is woken for each, which costs as much as a thousand frames do. A BIG TCP super-frame takes 512 KiB.
    #[doc(alias = "tp_block_size")]
    pub block_size: u32,
    /// Blocks of the ring: 8 by default.
    #[doc(alias = "tp_block_nr")]
    pub block_nr: u32,
    /// How long a block that is not full waits for more frames before it is handed over, and so about how late a frame is at most.
    ///
    /// 200 ms by default. A reader that is held up while little comes has a ring of so many blocks times this before frames are lost. Unit in the
    /// kernel: whole milliseconds, 1 to 65,535.
    #[doc(alias = "tp_retire_blk_tov")]
    pub retire_blk_tov: Duration,
    /// Octets to keep of a frame, cut in the kernel; `None` (the default) keeps all.
    ///
    /// A super-frame of 64 KiB then costs its head only. [`wire_len`](crate::Frame::wire_len) still tells the rest.
    pub snaplen: Option<u32>,
    /// Take in what is addressed to others on the same link. Off by default; mirrored frames come without it.
    #[doc(alias = "PACKET_MR_PROMISC")]
    pub promiscuous: bool,
    /// Leave out what this host itself sends through the interface. Off by default.
    #[doc(alias = "PACKET_IGNORE_OUTGOING")]
    pub ignore_outgoing: bool,
    /// Share the interface's frames with other rings.
    pub fanout: Option<Fanout>,
    /// How long to watch for the next block before going to sleep in poll(2); zero (the default) sleeps at once.
    ///
    /// Spends a processor to save a wake-up. `SO_BUSY_POLL` is not used: packet sockets have no queue to poll.
    pub busy_poll: Duration,
    /// In a ring of many small blocks, how long those that fill up may gather before they are handed out; zero wakes up for each.
    ///
    /// 10 ms by default, and never longer than an eighth of the ring takes to fill at the rate of the last block: so a ring of fewer than 16
    /// blocks, as the default's, never gathers. A block that was handed over before it was full is not waited behind, nor one that took longer to
    /// fill than would be waited: the next one wakes as well. In 10 ms not even 3 GB a second fill 32 MiB; a smaller ring wants less.
    pub gather: Duration,
    /// Whether frames tell how the packets are cut that they stand for: [`FrameMeta::segment_size`](crate::FrameMeta::segment_size).
    pub segment_sizes: SegmentSizes,
    /// A classic BPF program that says which frames are wanted, run by the kernel before a frame is copied.
    ///
    /// Its answer is how many octets to keep, 0 for none; `snaplen` still applies. What the kernel does not take is an
    /// [`Error::Option`](crate::Error::Option) when the ring is opened; [`Program::new`](crate::filter::Program::new) tells which instruction it is.
    #[doc(alias = "SO_ATTACH_FILTER")]
    pub filter: Option<Vec<BpfInsn>>,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            block_size: 4 << 20,
            block_nr: 8,
            retire_blk_tov: Duration::from_millis(200),
            snaplen: None,
            promiscuous: false,
            ignore_outgoing: false,
            fanout: None,
            busy_poll: Duration::ZERO,
            gather: Duration::from_millis(10),
            segment_sizes: SegmentSizes::Auto,
            filter: None,
        }
    }
}

/// Whether a ring asks the kernel how super-frames are cut.
///
/// The kernel puts a `struct virtio_net_hdr` before each frame then, and drops super-frames of a kind that this cannot describe: SCTP's,
/// and UDP's before Linux 6.2. They are counted in [`SourceStats::dropped_untold`](crate::SourceStats::dropped_untold).
#[doc(alias = "PACKET_VNET_HDR")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentSizes {
    /// Asks from Linux 6.2 on, where only SCTP's super-frames are the price.
    #[default]
    Auto,
    /// Does not ask: no frame is lost for it, and each says [`SegmentSize::Unknown`](crate::SegmentSize::Unknown).
    Never,
}

/// A group of rings on one interface, each of which gets some of its frames.
///
/// Every ring of a group names the same number, mode and flags; the first one makes the group, and it is gone with the last. Each frame goes to one
/// ring of those that are there at that moment: a ring that is opened or closed changes which ring is whose, so open all of them before
/// what must not be torn apart is read. [`FanoutMode::Connections`] is what several meters want.
///
/// ```no_run
/// use nvcapture::{Fanout, FanoutMode, Ring, RingConfig};
///
/// let config = RingConfig {
///     fanout: Some(Fanout { group: 78, mode: FanoutMode::Connections, defrag: false }),
///     ..RingConfig::default()
/// };
/// let rings = (0..4)
///     .map(|_| Ring::open(&config, "nv-br"))
///     .collect::<Result<Vec<_>, _>>()?; // one for each thread
/// # Ok::<(), nvcapture::Error>(())
/// ```
#[doc(alias = "PACKET_FANOUT")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fanout {
    /// The group's number, unique within the network namespace.
    pub group: u16,
    /// Which ring gets which frame.
    pub mode: FanoutMode,
    /// Put IPv4 fragments together first, so that all of a packet goes to one ring. It comes as one frame then.
    pub defrag: bool,
}

/// Which ring of a group gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FanoutMode {
    /// By a program of ours: all frames of a connection go to one ring, both directions of it.
    ///
    /// TCP by addresses and ports; all else by addresses alone, so fragments, ICMP and what a tunnel carries (VXLAN, Geneve, GTP-U, GRE,
    /// IP in IP) stay together too, at the price that two hosts' UDP is not shared out. Apart from it are TCP in fragments, which
    /// TCP avoids. What is not IP, or has a second VLAN tag, goes to one ring. The Ethernet addresses do not count, so marks do not.
    ///
    /// Needs Linux 4.3.
    #[doc(alias = "PACKET_FANOUT_CBPF")]
    Connections,
    /// By the kernel's hash of the addresses and ports, which is the same for both directions of a connection.
    ///
    /// With exceptions: fragments go by their addresses, apart from whole packets of their connection; a tunnel over UDP goes by its outer
    /// ports, so what it carries is torn apart; and older kernels take IPv6 packets with a flow label by their addresses alone, so a connection
    /// of which one direction has labels and the other has none may be on two rings.
    #[doc(alias = "PACKET_FANOUT_HASH")]
    Hash,
    /// By the processor that the frame came in on.
    #[doc(alias = "PACKET_FANOUT_CPU")]
    Cpu,
    /// By the receive queue that the frame came in on.
    #[doc(alias = "PACKET_FANOUT_QM")]
    Queue,
}

/// The numbers of a ring, checked against each other and the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGeometry {
    block_size: u32,
    block_nr: u32,
    retire_ms: u32,
}

/// `tp_frame_size`: only checked by the kernel, not used by it for this ring version.
const FRAME_SIZE: u32 = 2048;
/// Block descriptor (48), frame head (68) and the room that the kernel leaves before the link header, aligned; 48 more
/// for link headers longer than Ethernet's, 16 for what is told of super-frames.
pub(crate) const FRAME_OVERHEAD: u32 = 48 + 112 + 48 + 16;
/// The largest frame that a host makes without BIG TCP: an IP packet of 65,535 octets, Ethernet and two VLAN tags.
const SUPER_FRAME: u32 = 65_535 + 14 + 8;

impl RingConfig {
    /// Checks the numbers for a machine with pages of `page_size` octets.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what it must be.
    pub fn geometry(&self, page_size: usize) -> Result<RingGeometry, Error> {
        let refuse = |field, value: u64, must: String| Err(Error::Config { field, value, must });
        let block_size = self.block_size;
        if block_size == 0
            || page_size == 0
            || !(block_size as usize).is_multiple_of(page_size)
            || !block_size.is_multiple_of(FRAME_SIZE)
        {
            let must = format!("be a multiple of the page size, {page_size}");
            return refuse("block_size", block_size.into(), must);
        }
        if i32::try_from(block_size).is_err() {
            return refuse("block_size", block_size.into(), "be below 2 GiB".into());
        }
        let kept = self.snaplen.unwrap_or(SUPER_FRAME).min(SUPER_FRAME);
        if block_size < kept + FRAME_OVERHEAD {
            let must = format!(
                "hold a frame of {kept} octets and {FRAME_OVERHEAD} beside it; take a larger block or a smaller snaplen"
            );
            return refuse("block_size", block_size.into(), must);
        }
        if self.block_nr < 2 {
            let must = "be 2 or more, so that one can be filled while another is read".into();
            return refuse("block_nr", self.block_nr.into(), must);
        }
        let octets = u64::from(block_size) * u64::from(self.block_nr);
        let frame_nr = u64::from(block_size / FRAME_SIZE) * u64::from(self.block_nr);
        if isize::try_from(octets).is_err() || u32::try_from(frame_nr).is_err() {
            let must = format!("leave a ring that can be mapped, not one of {octets} octets");
            return refuse("block_nr", self.block_nr.into(), must);
        }
        let retire_ms = self.retire_blk_tov.as_millis();
        let retire_ms = match u16::try_from(retire_ms) {
            Ok(ms) if ms > 0 => u32::from(ms),
            _ => {
                let value = u64::try_from(retire_ms).unwrap_or(u64::MAX);
                return refuse("retire_blk_tov", value, "be 1 to 65,535 ms".into());
            }
        };
        if self.snaplen == Some(0) {
            return refuse(
                "snaplen",
                0,
                "be 1 or more, or None for whole frames".into(),
            );
        }
        if let Some(filter) = &self.filter {
            // 8: what `bpf::compose` puts around it at most.
            if filter.is_empty() || filter.len() > MAX_INSNS - 8 {
                let must = format!("have 1 to {} instructions", MAX_INSNS - 8);
                return refuse("filter", filter.len() as u64, must);
            }
        }
        Ok(RingGeometry {
            block_size,
            block_nr: self.block_nr,
            retire_ms,
        })
    }
}

impl RingGeometry {
    /// Octets of a block.
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks of the ring.
    pub const fn block_nr(&self) -> u32 {
        self.block_nr
    }

    /// How long a block that is not full waits for more frames.
    pub const fn retire_blk_tov(&self) -> Duration {
        Duration::from_millis(self.retire_ms as u64)
    }

    /// Octets of kernel memory that the ring takes.
    pub const fn mapped(&self) -> usize {
        self.block_size as usize * self.block_nr as usize
    }

    /// Octets of the longest frame that is kept whole, whatever its link header; a longer one is cut and counted as
    /// [`truncated`](crate::SourceStats::truncated).
    pub const fn max_frame(&self) -> u32 {
        self.block_size - FRAME_OVERHEAD
    }

    pub(crate) const fn request(&self) -> libc::tpacket_req3 {
        libc::tpacket_req3 {
            tp_block_size: self.block_size,
            tp_block_nr: self.block_nr,
            tp_frame_size: FRAME_SIZE,
            tp_frame_nr: self.block_size / FRAME_SIZE * self.block_nr,
            tp_retire_blk_tov: self.retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &RingConfig, page_size: usize) -> String {
        match config.geometry(page_size) {
            Ok(geometry) => panic!("accepted as {geometry:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_default_fits_pages_of_4_16_and_64_kib() {
        for page_size in [4 << 10, 16 << 10, 64 << 10] {
            let geometry = RingConfig::default().geometry(page_size).unwrap();
            assert_eq!(geometry.mapped(), 32 << 20);
            let request = geometry.request();
            // What packet_set_ring() asks for.
            assert!((request.tp_block_size as usize).is_multiple_of(page_size));
            let per_block = request.tp_block_size / request.tp_frame_size;
            assert_eq!(per_block * request.tp_block_nr, request.tp_frame_nr);
            assert!(request.tp_frame_size.is_multiple_of(16));
            // BIG TCP: GSO_MAX_SIZE is 8 * 65,536 octets.
            assert!(geometry.max_frame() >= 8 * 65_536 + 14);
        }
    }

    #[test]
    fn a_block_that_suits_small_pages_is_refused_with_large_ones() {
        let config = RingConfig {
            block_size: 48 << 10,
            snaplen: Some(256),
            ..RingConfig::default()
        };
        assert!(config.geometry(4 << 10).is_ok());
        assert!(config.geometry(16 << 10).is_ok());
        let said = refused(&config, 64 << 10);
        assert_eq!(
            said,
            "block_size is 49152: it must be a multiple of the page size, 65536"
        );
    }

    #[test]
    fn a_block_must_hold_what_is_kept_of_a_frame() {
        let whole = RingConfig {
            block_size: 64 << 10,
            ..RingConfig::default()
        };
        let said = refused(&whole, 4096);
        assert!(said.contains("hold a frame of 65557 octets"), "{said}");
        let cut = RingConfig {
            snaplen: Some(60_000),
            ..whole.clone()
        };
        assert!(cut.geometry(4096).is_ok());
        let longest = RingConfig {
            snaplen: Some(u32::MAX),
            ..whole
        };
        refused(&longest, 4096);
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_by_name() {
        let good = RingConfig::default;
        let cases: [(RingConfig, &str); 11] = [
            (
                RingConfig {
                    block_size: 0,
                    ..good()
                },
                "block_size is 0",
            ),
            (
                RingConfig {
                    block_size: 4097,
                    ..good()
                },
                "block_size is 4097",
            ),
            (
                RingConfig {
                    block_size: 1 << 31,
                    ..good()
                },
                "below 2 GiB",
            ),
            (
                RingConfig {
                    block_nr: 0,
                    ..good()
                },
                "block_nr is 0",
            ),
            (
                RingConfig {
                    block_nr: 1,
                    ..good()
                },
                "block_nr is 1",
            ),
            (
                RingConfig {
                    block_nr: u32::MAX,
                    ..good()
                },
                "can be mapped",
            ),
            (
                RingConfig {
                    retire_blk_tov: Duration::ZERO,
                    ..good()
                },
                "1 to 65,535 ms",
            ),
            (
                RingConfig {
                    retire_blk_tov: Duration::from_secs(66),
                    ..good()
                },
                "retire_blk_tov is 66000",
            ),
            (
                RingConfig {
                    retire_blk_tov: Duration::MAX,
                    ..good()
                },
                "1 to 65,535 ms",
            ),
            (
                RingConfig {
                    snaplen: Some(0),
                    ..good()
                },
                "snaplen is 0",
            ),
            (
                RingConfig {
                    filter: Some(Vec::new()),
                    ..good()
                },
                "filter is 0",
            ),
        ];
        for (config, expected) in cases {
            let said = refused(&config, 4096);
            assert!(said.contains(expected), "{said}");
        }
    }
}
