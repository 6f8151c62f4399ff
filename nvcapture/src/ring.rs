//! TPACKET_V3: the ring lends blocks, a block lends frames.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::socket::{Interface, Socket, UnboundSocket};
use crate::sys::abi::{FRAME_HDR_LEN, FRAME_HEAD_LEN, PKTTYPE};
use crate::sys::mapping::{Lent, Mapping};
use crate::{
    Error, Frame, FrameBlock, FrameMeta, FrameSource, LinkType, Next, PacketType, RingConfig,
    RingGeometry, SourceStats, Timestamp, VlanTag,
};

/// Frames of one interface, read from memory shared with the kernel (AF_PACKET, TPACKET_V3).
///
/// Needs `CAP_NET_RAW` in the user namespace that owns the network namespace. The ring belongs to the network namespace
/// of the thread that opened it and can then be used from any thread.
///
/// # Every frame is accounted for
/// A frame that passed the filter is handed out or counted in [`SourceStats::dropped`]. The kernel hands over a block
/// when it is full or [`RingConfig::retire_blk_tov`] after its first look at it, so the latest frames come late:
/// [`Ring::stop`] closes the ring to new frames, after which [`Ring::next_block`] hands out all that came before and
/// then answers [`Next::End`].
///
/// ```no_run
/// use std::time::{Duration, Instant};
/// use nvcapture::{Next, Ring, RingConfig};
///
/// let mut ring = Ring::open(&RingConfig::default(), "nv-br")?;
/// let until = Instant::now() + Duration::from_secs(10);
/// let mut stopped = false;
/// loop {
///     match ring.next_block(Some(Duration::from_millis(200)))? {
///         Next::Block(block) => {
///             for frame in block.frames() {
///                 println!("{} octets at {:?}", frame.wire_len(), frame.timestamp());
///             }
///         }
///         Next::TimedOut => {}
///         Next::End => break,
///     }
///     if !stopped && Instant::now() >= until {
///         ring.stop()?;
///         stopped = true;
///     }
/// }
/// println!("{:?}", ring.stats()?);
/// # Ok::<(), nvcapture::Error>(())
/// ```
#[derive(Debug)]
pub struct Ring {
    // Before the socket: unmapped first.
    mapping: Mapping,
    tally: Tally,
    counts: Counts,
    geometry: RingGeometry,
    busy_poll: Duration,
    state: State,
    socket: Socket,
}

/// What was handed out.
#[derive(Debug, Default)]
struct Tally {
    /// The block to be handed out next.
    cursor: usize,
    frames: u64,
    wire_octets: u64,
    truncated: u64,
    /// Frames in the blocks that went back to the kernel, as the kernel told it.
    returned: u64,
    malformed: Option<(u32, u32)>,
}

/// The kernel's counters, added up.
#[derive(Debug, Default)]
struct Counts {
    packets: u64,
    drops: u64,
    freezes: u64,
}

#[derive(Debug)]
enum State {
    Running,
    /// The interface has gone down and the caller knows; it may come up again or be removed.
    Down,
    /// No new frame comes, until what came before is handed out; then the caller is told why.
    Draining {
        why: Option<Error>,
        give_up: Option<Instant>,
    },
}

/// How often a ring whose interface is down looks whether it is still there.
const DOWN_CHECK: Duration = Duration::from_millis(250);

impl Ring {
    /// Opens a ring on `interface` (name or ifindex) of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Config`] before anything is opened; [`Error::NoInterface`], [`Error::Socket`] (no privilege),
    /// [`Error::Option`] (names the option, the value and what to try), [`Error::Map`], [`Error::InterfaceDown`].
    pub fn open<'a>(
        config: &RingConfig,
        interface: impl Into<Interface<'a>>,
    ) -> Result<Self, Error> {
        let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(4096);
        let geometry = config.geometry(page_size)?;
        let socket = UnboundSocket::open(config, &geometry, interface.into())?;
        let mapping = Mapping::new(
            socket.as_fd(),
            geometry.block_size() as usize,
            geometry.block_nr() as usize,
        )
        .map_err(|source| Error::Map {
            octets: geometry.mapped(),
            source,
        })?;
        let socket = socket.bind(config)?;
        Ok(Self {
            mapping,
            tally: Tally::default(),
            counts: Counts::default(),
            geometry,
            busy_poll: config.busy_poll,
            state: State::Running,
            socket,
        })
    }

    /// The next block that the kernel has handed over; waits up to `wait`, or for ever when it is `None`.
    ///
    /// Signals do not end the wait; who must notice one waits in slices.
    ///
    /// # Errors
    /// [`Error::InterfaceDown`], once, when the interface goes down and all frames before that were handed out; calling
    /// again waits for it to come up. [`Error::InterfaceGone`] when it was removed. [`Error::Malformed`] when the last
    /// block could not be read to its end.
    pub fn next_block(&mut self, wait: Option<Duration>) -> Result<Next<Block<'_>>, Error> {
        if let Some((block, lost)) = self.tally.malformed.take() {
            return Err(Error::Malformed {
                interface: self.socket.name.clone(),
                block,
                lost,
            });
        }
        if self.tally.cursor == 0 {
            // Once a turn, so that the kernel's 32 bits cannot overflow unseen.
            self.read_counts()?;
        }
        if !self.mapping.is_ready(self.tally.cursor)
            && let Some(other) = self.wait(wait)?
        {
            return Ok(other);
        }
        match self.mapping.lend(self.tally.cursor) {
            Some(lent) => {
                if let State::Down = self.state {
                    self.state = State::Running;
                }
                Ok(Next::Block(Block::new(
                    lent,
                    &mut self.tally,
                    self.geometry.block_nr() as usize,
                    self.socket.ifindex,
                    self.socket.link_type,
                )))
            }
            None => Ok(Next::TimedOut),
        }
    }

    /// Waits until the next block is ready (`None`), or says what there is instead.
    fn wait<B>(&mut self, wait: Option<Duration>) -> Result<Option<Next<B>>, Error> {
        let started = Instant::now();
        // A wait too long to be told ends never.
        let deadline = wait.and_then(|wait| started.checked_add(wait));
        let spin_until = started.checked_add(self.busy_poll);
        loop {
            if self.mapping.is_ready(self.tally.cursor) {
                return Ok(None);
            }
            let mut slice = None;
            match &self.state {
                State::Running => {
                    if spin_until.is_some_and(|until| {
                        let now = Instant::now();
                        now < until && deadline.is_none_or(|deadline| now < deadline)
                    }) {
                        std::hint::spin_loop();
                        continue;
                    }
                }
                State::Down => {
                    if self.socket.is_gone()? {
                        return Err(self.gone());
                    }
                    slice = Some(DOWN_CHECK);
                }
                State::Draining { .. } => {
                    if let Some(end) = self.drained()? {
                        return Ok(Some(end));
                    }
                    slice = Some(self.geometry.retire_blk_tov());
                }
            }
            let now = Instant::now();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
            let timeout = match (left, slice) {
                (Some(left), Some(slice)) => Some(left.min(slice)),
                (left, slice) => left.or(slice),
            };
            self.poll(timeout)?;
            if left.is_some_and(|left| left.is_zero()) && !self.mapping.is_ready(self.tally.cursor)
            {
                return Ok(Some(Next::TimedOut));
            }
        }
    }

    /// When draining: the end, if all that the kernel took in was handed out.
    fn drained<B>(&mut self) -> Result<Option<Next<B>>, Error> {
        self.read_counts()?;
        let missing = (self.counts.packets - self.counts.drops).saturating_sub(self.tally.returned);
        let patience = Duration::from_secs(2) + 8 * self.geometry.retire_blk_tov();
        let State::Draining { why, give_up } = &mut self.state else {
            return Ok(None);
        };
        if missing > 0 {
            // The kernel hands over the block that it is filling when its time is out: soon.
            let now = Instant::now();
            if *give_up.get_or_insert(now + patience) > now {
                return Ok(None);
            }
            return Err(Error::Incomplete {
                interface: self.socket.name.clone(),
                missing,
            });
        }
        match why.take() {
            None => Ok(Some(Next::End)),
            Some(why) => {
                self.state = State::Down;
                if self.socket.is_gone()? {
                    return Err(self.gone());
                }
                Err(why)
            }
        }
    }

    fn gone(&self) -> Error {
        Error::InterfaceGone {
            interface: self.socket.name.clone(),
        }
    }

    fn poll(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            // Rounded up, so that a wait does not end early and spin through its last millisecond.
            let ms = timeout.as_nanos().div_ceil(1_000_000);
            i32::try_from(ms)
                .ok()
                .and_then(|ms| PollTimeout::try_from(ms).ok())
                .unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(self.socket.failed("poll", errno.into())),
        }
        let revents = fds[0].revents().unwrap_or(PollFlags::POLLERR);
        if revents.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL)
            && let Some(error) = self.socket.take_error()?
        {
            match &mut self.state {
                // Stopped: what is in the ring is still handed out, and nothing else is wanted.
                State::Draining { .. } => {}
                state @ (State::Running | State::Down) => {
                    *state = State::Draining {
                        why: Some(error),
                        give_up: None,
                    };
                }
            }
        }
        Ok(())
    }

    fn read_counts(&mut self) -> Result<(), Error> {
        let new = self.socket.take_statistics()?;
        self.counts.packets += u64::from(new.packets);
        self.counts.drops += u64::from(new.drops);
        self.counts.freezes += u64::from(new.freezes);
        Ok(())
    }

    /// Takes no new frame from now on; what came before is still handed out, then [`Next::End`].
    ///
    /// This is how a run ends without losing its last frames, which wait in a block that is not full yet.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.socket.stop()?;
        self.state = State::Draining {
            why: None,
            give_up: None,
        };
        Ok(())
    }

    /// Totals since the ring was opened; they never decrease.
    ///
    /// Of the frames that passed the filter: `frames + dropped`, and those still in the ring.
    pub fn stats(&mut self) -> Result<SourceStats, Error> {
        self.read_counts()?;
        Ok(SourceStats {
            frames: self.tally.frames,
            wire_octets: self.tally.wire_octets,
            truncated: self.tally.truncated,
            dropped: self.counts.drops,
            freezes: self.counts.freezes,
        })
    }

    /// The ring's numbers.
    pub const fn geometry(&self) -> &RingGeometry {
        &self.geometry
    }

    /// The interface's name when the ring was opened.
    pub fn interface(&self) -> &str {
        &self.socket.name
    }

    /// The interface's number.
    pub const fn ifindex(&self) -> u32 {
        self.socket.ifindex
    }

    /// What the frames' first octets are.
    pub const fn link_type(&self) -> LinkType {
        self.socket.link_type
    }
}

/// Readable when a block is ready; then call [`Ring::next_block`] with no time to wait until it answers
/// [`Next::TimedOut`].
impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl FrameSource for Ring {
    type Block<'s> = Block<'s>;

    fn next_block(&mut self, wait: Option<Duration>) -> Result<Next<Block<'_>>, Error> {
        Ring::next_block(self, wait)
    }

    fn stats(&mut self) -> Result<SourceStats, Error> {
        Ring::stats(self)
    }
}

/// Where a walk through a block stands, and what it has seen.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// Frames read.
    read: u32,
    /// Offset of the next one in the block.
    offset: usize,
    wire_octets: u64,
    truncated: u32,
}

/// A run of frames; the kernel does not touch it until it is dropped.
///
/// It borrows the ring, so there is one at a time:
/// ```compile_fail,E0499
/// # fn two(ring: &mut nvcapture::Ring) -> Result<(), nvcapture::Error> {
/// let first = ring.next_block(None)?;
/// let second = ring.next_block(None)?;
/// drop(first);
/// # Ok(())
/// # }
/// ```
/// and it cannot outlive the ring:
/// ```compile_fail,E0505
/// # fn outlive(mut ring: nvcapture::Ring) -> Result<(), nvcapture::Error> {
/// let block = ring.next_block(None)?;
/// drop(ring); // unmapped from here on
/// drop(block);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Block<'r> {
    lent: Lent<'r>,
    tally: &'r mut Tally,
    block_nr: usize,
    ifindex: u32,
    link_type: LinkType,
    frames: u32,
    /// The furthest that any walk got: each frame is counted once, however often it is looked at.
    furthest: Cell<Walk>,
}

impl<'r> Block<'r> {
    fn new(
        lent: Lent<'r>,
        tally: &'r mut Tally,
        block_nr: usize,
        ifindex: u32,
        link_type: LinkType,
    ) -> Self {
        let furthest = Cell::new(Walk {
            read: 0,
            offset: lent.offset_to_first_pkt() as usize,
            wire_octets: 0,
            truncated: 0,
        });
        Self {
            frames: lent.num_pkts(),
            lent,
            tally,
            block_nr,
            ifindex,
            link_type,
            furthest,
        }
    }

    /// Frames in the block.
    pub const fn len(&self) -> usize {
        self.frames as usize
    }

    /// Whether there is no frame in the block.
    pub const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// The block's frames, oldest first. They borrow the block, so none outlives it:
    /// ```compile_fail,E0505
    /// # fn keep(block: nvcapture::Block<'_>) {
    /// let first = block.frames().next();
    /// drop(block); // the kernel may write here from now on
    /// println!("{first:?}");
    /// # }
    /// ```
    pub fn frames(&self) -> Frames<'_> {
        let offset = self.lent.offset_to_first_pkt() as usize;
        Frames {
            octets: self.lent.octets(),
            frames: self.frames,
            ifindex: self.ifindex,
            link_type: self.link_type,
            walk: Walk {
                read: 0,
                offset,
                wire_octets: 0,
                truncated: 0,
            },
            furthest: &self.furthest,
        }
    }
}

impl FrameBlock for Block<'_> {
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        Block::frames(self)
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        if self.furthest.get().read < self.frames {
            // The caller stopped early: the rest was handed out all the same.
            let mut rest = self.frames();
            rest.walk = self.furthest.get();
            rest.by_ref().for_each(drop);
        }
        let walk = self.furthest.get();
        let tally = &mut *self.tally;
        if walk.read < self.frames {
            tally.malformed = Some((tally.cursor as u32, self.frames - walk.read));
        }
        tally.frames += u64::from(walk.read);
        tally.wire_octets += walk.wire_octets;
        tally.truncated += u64::from(walk.truncated);
        tally.returned += u64::from(self.frames);
        tally.cursor = (tally.cursor + 1) % self.block_nr;
    }
}

/// The frames of a [`Block`].
#[derive(Debug)]
pub struct Frames<'b> {
    octets: &'b [u8],
    frames: u32,
    ifindex: u32,
    link_type: LinkType,
    walk: Walk,
    furthest: &'b Cell<Walk>,
}

impl<'b> Iterator for Frames<'b> {
    type Item = Frame<'b>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'b>> {
        if self.walk.read == self.frames {
            return None;
        }
        // The kernel wrote all that follows; it is checked as if anybody had.
        let at = self.walk.offset.checked_sub(Lent::BASE)?;
        let behind = self.octets.get(at..)?;
        let head: &[u8; FRAME_HEAD_LEN] = behind.first_chunk()?;
        let snaplen = u32_at(head, 12) as usize;
        let wire_len = u32_at(head, 16);
        let status = u32_at(head, 20);
        let mac = usize::from(u16_at(head, 24));
        let octets = behind.get(mac..)?.get(..snaplen)?;

        let next_offset = u32_at(head, 0) as usize;
        if self.walk.read + 1 < self.frames {
            // The next head lies behind this one; so a walk ends.
            if next_offset < FRAME_HDR_LEN {
                return None;
            }
            self.walk.offset += next_offset;
        }
        self.walk.read += 1;
        self.walk.wire_octets += u64::from(wire_len);
        self.walk.truncated += u32::from(snaplen < wire_len as usize);

        let vlan = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| VlanTag {
            tpid: if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
                u16_at(head, 36)
            } else {
                0x8100
            },
            tci: u32_at(head, 32) as u16,
        });
        let meta = FrameMeta {
            timestamp: Timestamp::from_nanos(
                u64::from(u32_at(head, 4)) * 1_000_000_000 + u64::from(u32_at(head, 8)),
            ),
            wire_len,
            link_type: self.link_type,
            interface: self.ifindex,
            vlan,
            packet_type: match head[PKTTYPE] {
                libc::PACKET_HOST => Some(PacketType::Host),
                libc::PACKET_BROADCAST => Some(PacketType::Broadcast),
                libc::PACKET_MULTICAST => Some(PacketType::Multicast),
                libc::PACKET_OTHERHOST => Some(PacketType::OtherHost),
                libc::PACKET_OUTGOING => Some(PacketType::Outgoing),
                _ => None,
            },
            checksum_not_ready: status & libc::TP_STATUS_CSUMNOTREADY != 0,
        };
        Some(Frame::new(octets, meta))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Fewer when the block is malformed.
        (0, Some((self.frames - self.walk.read) as usize))
    }
}

impl Drop for Frames<'_> {
    fn drop(&mut self) {
        if self.walk.read > self.furthest.get().read {
            self.furthest.set(self.walk);
        }
    }
}

fn u32_at(head: &[u8; FRAME_HEAD_LEN], at: usize) -> u32 {
    u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn u16_at(head: &[u8; FRAME_HEAD_LEN], at: usize) -> u16 {
    u16::from_ne_bytes([head[at], head[at + 1]])
}
