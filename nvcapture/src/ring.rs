//! TPACKET_V3: the ring lends blocks, a block lends frames.

use std::cell::Cell;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::socket::{Interface, Socket, UnboundSocket};
use crate::sys::abi::{
    FRAME_HDR_LEN, FRAME_HEAD_LEN, PKTTYPE, VNET_GSO_NONE, VNET_GSO_SIZE, VNET_GSO_TYPE,
    VNET_HDR_LEN,
};
use crate::sys::mapping::{Lent, Mapping};
use crate::sys::prefetch::prefetch_behind;
use crate::{
    Error, Frame, FrameBlock, FrameMeta, FrameSource, LinkType, Next, PacketType, RingConfig,
    RingGeometry, SegmentSize, SourceStats, Timestamp, VlanTag,
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
///     match ring.next_block(Some(Duration::from_millis(250)))? {
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
    gather: Duration,
    /// How long the last block took to fill; nothing when its time was out before, and after it was asked for.
    filled_in: Option<Duration>,
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
    untold: u64,
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
            gather: config.gather,
            filled_in: None,
            state: State::Running,
            socket,
        })
    }

    /// The next block that the kernel has handed over; waits up to `wait`, or for ever when it is `None`.
    ///
    /// Signals do not end the wait; who must notice one waits in slices, or for the ring's descriptor beside something else.
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
                self.filled_in = lent.filled_in();
                if let State::Down = self.state {
                    self.state = State::Running;
                }
                Ok(Next::Block(Block::new(
                    lent,
                    &mut self.tally,
                    self.geometry.block_nr() as usize,
                    &self.socket,
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
                    let left = deadline.map_or(Duration::MAX, |deadline| {
                        deadline.saturating_duration_since(Instant::now())
                    });
                    if self.busy_poll.is_zero()
                        && !left.is_zero()
                        && let Some(gather) = self.gathers()
                    {
                        // Asleep, but not in poll(2), which would end with the next block.
                        std::thread::sleep(gather.min(left));
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
            if self.poll(timeout)? {
                // It may be told at once, and who waits for the descriptor will not be woken again.
                continue;
            }
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

    /// Waits for the kernel; tells whether it said that the interface is down.
    fn poll(&mut self, timeout: Option<Duration>) -> Result<bool, Error> {
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
            Err(Errno::EINTR) => return Ok(false),
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
                    return Ok(true);
                }
            }
        }
        Ok(false)
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
            dropped_untold: self.tally.untold,
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

    /// Whether the kernel tells how super-frames are cut: see [`SegmentSizes`](crate::SegmentSizes).
    pub const fn tells_segment_sizes(&self) -> bool {
        self.socket.segment_sizes
    }

    /// Octets of the longest IP packet that the interface sends as one frame, as it is now.
    ///
    /// # Errors
    /// [`Error::Ring`] when the kernel does not say, as of an interface that is gone.
    pub fn mtu(&self) -> Result<u32, Error> {
        self.socket.mtu()
    }

    /// How long to leave the ring alone so that more than one block gathers: told once for each block that was full, where that is longer than
    /// such a block takes to fill. Never by a ring of fewer than 16 blocks.
    ///
    /// [`Ring::next_block`] does so itself when it may wait. Who polls the ring's descriptor sleeps so long before.
    pub fn gathers(&mut self) -> Option<Duration> {
        let filled_in = self.filled_in.take()?;
        gathers(filled_in, self.geometry.block_nr(), self.gather)
    }

    /// What the frames' first octets are.
    pub const fn link_type(&self) -> LinkType {
        self.socket.link_type
    }
}

/// Readable when a block is ready, or the interface goes down; then call [`Ring::next_block`] with no time to wait until it answers
/// [`Next::TimedOut`]. That an interface which is down was removed is not told by it, nor, all of the time, when a ring that is down or was
/// stopped has handed out its last block: then wait by `next_block`, or ask it from time to time.
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

/// How many frames before its turn a frame's first octets are asked for: the kernel wrote them on another processor, or long enough ago that
/// they lie in no near cache. On a Xeon, frames of 64 octets: 38 ns a frame without asking, 26 with 4, 24 with 10, 22 to 23 with 16, 24 and 48.
const AHEAD: usize = 16;

/// Where a walk through a block stands, and what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Walk {
    /// Frames read.
    read: u32,
    /// Where the next one lies in the [octets](Lent::octets) of the block.
    at: usize,
    wire_octets: u64,
    truncated: u32,
    /// Places in the block that the kernel left without a frame.
    holes: u32,
}

impl Walk {
    /// At an offset from the block's beginning.
    const fn starting(offset: usize) -> Self {
        Self {
            read: 0,
            at: offset.wrapping_sub(Lent::BASE),
            wire_octets: 0,
            truncated: 0,
            holes: 0,
        }
    }
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
    segment_sizes: bool,
    frames: u32,
    /// The furthest that any walk got: each frame is counted once, however often it is looked at.
    furthest: Cell<Walk>,
}

impl<'r> Block<'r> {
    fn new(lent: Lent<'r>, tally: &'r mut Tally, block_nr: usize, socket: &Socket) -> Self {
        let furthest = Cell::new(Walk::starting(lent.offset_to_first_pkt() as usize));
        Self {
            frames: lent.num_pkts(),
            lent,
            tally,
            block_nr,
            ifindex: socket.ifindex,
            link_type: socket.link_type,
            segment_sizes: socket.segment_sizes,
            furthest,
        }
    }

    /// Frames in the block; a little more where the kernel dropped some too late to leave no place for them
    /// ([`SourceStats::dropped_untold`]).
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
            segment_sizes: self.segment_sizes,
            walk: Walk::starting(offset),
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
        tally.frames += u64::from(walk.read - walk.holes);
        tally.untold += u64::from(walk.holes);
        tally.wire_octets += walk.wire_octets;
        tally.truncated += u64::from(walk.truncated);
        // What the kernel dropped it did not count as taken in.
        tally.returned += u64::from(self.frames - walk.holes);
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
    segment_sizes: bool,
    walk: Walk,
    furthest: &'b Cell<Walk>,
}

impl<'b> Iterator for Frames<'b> {
    type Item = Frame<'b>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'b>> {
        let mut walk = self.walk;
        let frame = loop {
            match self.step(&mut walk) {
                Found::Frame(place) => break Some(self.frame(&place)),
                Found::Hole => {}
                Found::End => break None,
            }
        };
        self.walk = walk;
        frame
    }

    /// As by [`next`](Self::next), at a part of the cost: frames stay in registers, what nobody asks of them is not read, and how far the walk
    /// has come stays there too.
    #[inline(always)]
    fn fold<A, F: FnMut(A, Frame<'b>) -> A>(mut self, mut sum: A, mut f: F) -> A {
        let mut walk = self.walk;
        loop {
            match self.step(&mut walk) {
                Found::Frame(place) => sum = f(sum, self.frame(&place)),
                Found::Hole => {}
                Found::End => break,
            }
        }
        self.walk = walk;
        sum
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Fewer when the block is malformed.
        (0, Some((self.frames - self.walk.read) as usize))
    }
}

/// What a walk comes to.
enum Found<'b> {
    Frame(Place<'b>),
    /// A place whose frame was dropped when it was taken: all but tp_next_offset and the status is what lay here before.
    Hole,
    /// The end, or where the block is malformed.
    End,
}

/// A place with a frame in a block.
struct Place<'b> {
    head: &'b [u8; FRAME_HEAD_LEN],
    octets: &'b [u8],
    segment_size: SegmentSize,
}

impl<'b> Frames<'b> {
    /// What comes next.
    #[inline(always)]
    fn step(&self, walk: &mut Walk) -> Found<'b> {
        if walk.read == self.frames {
            return Found::End;
        }
        // The kernel wrote all that follows; it is checked as if anybody had.
        let Some(behind) = self.octets.get(walk.at..) else {
            return Found::End;
        };
        let Some(head) = behind.first_chunk::<FRAME_HEAD_LEN>() else {
            return Found::End;
        };
        let next_offset = u32_at(head, 0) as usize;
        // The next head lies behind this one. There is none behind the last.
        if next_offset < FRAME_HDR_LEN && walk.read + 1 < self.frames {
            return Found::End;
        }
        // Where a later frame lies if those up to there take as much: frames of a length come in runs. Of a place that is none, nothing comes.
        let later = AHEAD.wrapping_mul(next_offset);
        for line in [0, 64, 128] {
            prefetch_behind(head, later.wrapping_add(line));
        }
        let next = walk.at.saturating_add(next_offset);
        if self.segment_sizes && u32_at(head, 20) & libc::TP_STATUS_USER == 0 {
            walk.at = next;
            walk.read += 1;
            walk.holes += 1;
            return Found::Hole;
        }
        // A walk that ends here stays here: what is behind belongs to nobody.
        let Some(place) = self.place(head, behind) else {
            return Found::End;
        };
        walk.at = next;
        walk.read += 1;
        walk.wire_octets += u64::from(u32_at(head, 16));
        walk.truncated += u32::from(u32_at(head, 12) < u32_at(head, 16));
        Found::Frame(place)
    }

    /// The place that begins with `head`, what is `behind` its beginning, which is no hole.
    #[inline(always)]
    fn place(&self, head: &'b [u8; FRAME_HEAD_LEN], behind: &'b [u8]) -> Option<Place<'b>> {
        let snaplen = u32_at(head, 12) as usize;
        let mac = usize::from(u16_at(head, 24));
        let (octets, segment_size) = if self.segment_sizes {
            // What the kernel was asked for lies right before the octets.
            let behind = behind.get(mac.wrapping_sub(VNET_HDR_LEN)..)?;
            let (vnet_hdr, octets) = behind
                .get(..VNET_HDR_LEN.saturating_add(snaplen))?
                .split_first_chunk::<VNET_HDR_LEN>()?;
            (octets, segment_size(vnet_hdr))
        } else {
            (behind.get(mac..)?.get(..snaplen)?, SegmentSize::Unknown)
        };
        Some(Place {
            head,
            octets,
            segment_size,
        })
    }

    /// The frame in a place.
    #[inline(always)]
    fn frame(&self, place: &Place<'b>) -> Frame<'b> {
        let head = place.head;
        let status = u32_at(head, 20);
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
            wire_len: u32_at(head, 16),
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
            segment_size: place.segment_size,
        };
        Frame::new(place.octets, meta)
    }
}

/// What the header before a frame says.
#[inline(always)]
fn segment_size(vnet_hdr: &[u8; VNET_HDR_LEN]) -> SegmentSize {
    if vnet_hdr[VNET_GSO_TYPE] == VNET_GSO_NONE {
        return SegmentSize::Whole;
    }
    let size = [vnet_hdr[VNET_GSO_SIZE], vnet_hdr[VNET_GSO_SIZE + 1]];
    NonZeroU16::new(u16::from_ne_bytes(size)).map_or(SegmentSize::Unknown, SegmentSize::Octets)
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

/// How long a ring of `block_nr` blocks may gather, but not longer than `most`, the last block of which was filled in that time.
fn gathers(filled_in: Duration, block_nr: u32, most: Duration) -> Option<Duration> {
    // While an eighth of the ring fills the rate may rise eightfold, and nothing is lost.
    let gather = filled_in.saturating_mul(block_nr / 8).min(most);
    // Until then the next block has to have come, or being woken up was for nothing.
    (gather > filled_in).then_some(gather)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::abi::BLOCK_DESC_LEN;

    #[test]
    fn blocks_gather_while_an_eighth_of_the_ring_fills() {
        let ms = Duration::from_millis;
        for (filled_in, block_nr, most, gather) in [
            (2, 32, 10, Some(8)),
            (2, 32, 7, Some(7)),
            (2, 32, 2, None),
            (2, 16, 10, Some(4)),
            (2, 15, 10, None),
            (9, 32, 10, Some(10)),
            (10, 32, 10, None),
            (0, 32, 10, None),
            (2, 32, 0, None),
        ] {
            assert_eq!(gathers(ms(filled_in), block_nr, ms(most)), gather.map(ms));
        }
        assert_eq!(gathers(Duration::MAX, 32, Duration::MAX), None);
    }

    /// A place in a block, as the kernel fills it.
    struct Place {
        status: u32,
        vlan: (u32, u16),
        packet_type: u8,
        /// Before the frame: `gso_type`, `gso_size`.
        gso: (u8, u16),
        octets: Vec<u8>,
        wire_len: u32,
    }

    impl Place {
        fn new(status: u32) -> Self {
            Self {
                status,
                vlan: (0, 0),
                packet_type: libc::PACKET_HOST,
                gso: (VNET_GSO_NONE, 0),
                octets: vec![7; 20],
                wire_len: 20,
            }
        }
    }

    const TAKEN: u32 = libc::TP_STATUS_USER;
    const MAC: usize = 98;

    /// The octets of a block behind its status, as [`Lent::octets`] gives them.
    fn block(places: &[Place]) -> Vec<u8> {
        let mut octets = vec![0; BLOCK_DESC_LEN];
        for (number, place) in places.iter().enumerate() {
            let length = (MAC + place.octets.len()).next_multiple_of(16);
            // What an earlier turn left here: the kernel writes only what follows.
            let mut frame = vec![0xee; length];
            let mut word = |at: usize, value: u32| {
                frame[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            };
            word(
                0,
                if number + 1 == places.len() {
                    0
                } else {
                    length as u32
                },
            );
            word(20, place.status);
            word(32, place.vlan.0);
            if place.status & TAKEN != 0 {
                word(4, 1_700_000_000);
                word(8, 999_999_999);
                word(12, place.octets.len() as u32);
                word(16, place.wire_len);
                frame[24..26].copy_from_slice(&(MAC as u16).to_ne_bytes());
                frame[36..38].copy_from_slice(&place.vlan.1.to_ne_bytes());
                frame[PKTTYPE] = place.packet_type;
                let header = MAC - VNET_HDR_LEN;
                frame[header + VNET_GSO_TYPE] = place.gso.0;
                frame[header + VNET_GSO_SIZE..header + VNET_GSO_SIZE + 2]
                    .copy_from_slice(&place.gso.1.to_ne_bytes());
                frame[MAC..MAC + place.octets.len()].copy_from_slice(&place.octets);
            }
            octets.extend(frame);
        }
        octets.split_off(Lent::BASE)
    }

    fn walk(places: &[Place], segment_sizes: bool) -> (Vec<FrameMeta>, Walk) {
        walk_through(&block(places), places.len(), segment_sizes)
    }

    /// All that a block of so many `places` has.
    fn frames<'b>(
        octets: &'b [u8],
        places: usize,
        segment_sizes: bool,
        furthest: &'b Cell<Walk>,
    ) -> Frames<'b> {
        Frames {
            octets,
            frames: places as u32,
            ifindex: 3,
            link_type: LinkType::ETHERNET,
            segment_sizes,
            walk: Walk::starting(BLOCK_DESC_LEN),
            furthest,
        }
    }

    /// What is seen by being asked for each frame; the same by a fold, from whatever frame on.
    fn walk_through(octets: &[u8], places: usize, segment_sizes: bool) -> (Vec<FrameMeta>, Walk) {
        let furthest = Cell::new(Walk::starting(BLOCK_DESC_LEN));
        let frames = || frames(octets, places, segment_sizes, &furthest);
        let meta = |frame: Frame<'_>| {
            assert_eq!(frame.octets()[..1], [7]);
            *frame.meta()
        };
        let mut metas = Vec::new();
        for frame in frames() {
            metas.push(meta(frame));
        }
        let walk = furthest.get();
        for first in 0..=metas.len() {
            furthest.set(Walk::starting(BLOCK_DESC_LEN));
            let mut rest = frames();
            let mut seen: Vec<_> = rest.by_ref().take(first).map(meta).collect();
            rest.for_each(|frame| seen.push(meta(frame)));
            assert_eq!(seen, metas, "from {first} on");
            assert_eq!(furthest.get(), walk, "from {first} on");
        }
        (metas, walk)
    }

    #[test]
    fn a_walk_ends_where_the_block_is_malformed() {
        let places = [TAKEN, 0, TAKEN, TAKEN].map(Place::new);
        let whole = block(&places);
        let ends: Vec<usize> = (0..whole.len())
            .map(|length| walk_through(&whole[..length], places.len(), true).0.len())
            .collect();
        // What pads the last one may be cut.
        assert_eq!([ends[0], ends[whole.len() - 1]], [0, 3]);
        assert!(ends.is_sorted());
        // The next head behind the block, within this one, and nowhere.
        for (offset, frames) in [
            (u32::MAX, 1),
            (1 << 31, 1),
            (4096, 1),
            (FRAME_HDR_LEN as u32 - 1, 0),
            (0, 0),
        ] {
            let mut octets = whole.clone();
            octets[BLOCK_DESC_LEN - Lent::BASE..][..4].copy_from_slice(&offset.to_ne_bytes());
            let (metas, walk) = walk_through(&octets, places.len(), true);
            assert_eq!(
                (metas.len(), walk.read),
                (frames, frames as u32),
                "{offset}"
            );
        }
    }

    #[test]
    fn octets_that_would_lie_elsewhere_are_none() {
        let places = [TAKEN, TAKEN].map(Place::new);
        let whole = block(&places);
        let head = BLOCK_DESC_LEN - Lent::BASE;
        for (mac, with, without) in [(0, 0, 1), (9, 0, 1), (10, 1, 1), (u16::MAX, 0, 0)] {
            for (segment_sizes, expected) in [(true, with), (false, without)] {
                let mut octets = whole.clone();
                octets[head + 24..][..2].copy_from_slice(&mac.to_ne_bytes());
                let furthest = Cell::new(Walk::starting(BLOCK_DESC_LEN));
                let seen = frames(&octets, places.len(), segment_sizes, &furthest);
                assert_eq!(seen.count(), 2 * expected, "{mac}, {segment_sizes}");
            }
        }
    }

    #[test]
    fn a_walk_that_has_ended_goes_on_nowhere() {
        let places = [TAKEN; 4].map(Place::new);
        let whole = block(&places);
        let second = BLOCK_DESC_LEN - Lent::BASE + (MAC + 20_usize).next_multiple_of(16);
        for (at, value) in [(12, u32::MAX), (12, 1 << 20), (24, 0)] {
            let mut octets = whole.clone();
            octets[second + at..][..4].copy_from_slice(&value.to_ne_bytes());
            let furthest = Cell::new(Walk::starting(BLOCK_DESC_LEN));
            let mut walk = frames(&octets, places.len(), true, &furthest);
            assert!(walk.next().is_some());
            for _ in 0..3 {
                assert!(walk.next().is_none(), "{at}, {value}");
            }
            drop(walk);
            // As who drops the block does.
            let mut rest = frames(&octets, places.len(), true, &furthest);
            rest.walk = furthest.get();
            assert_eq!(rest.by_ref().count(), 0, "{at}, {value}");
            drop(rest);
            assert_eq!(furthest.get().read, 1, "{at}, {value}");
        }
    }

    #[test]
    fn every_field_is_the_kernels() {
        let plain = FrameMeta {
            timestamp: Timestamp::from_nanos(1_700_000_000_999_999_999),
            wire_len: 20,
            link_type: LinkType::ETHERNET,
            interface: 3,
            vlan: None,
            packet_type: Some(PacketType::Host),
            checksum_not_ready: false,
            segment_size: SegmentSize::Whole,
        };
        let tagged = TAKEN | libc::TP_STATUS_VLAN_VALID;
        let size = |octets| SegmentSize::Octets(NonZeroU16::new(octets).unwrap());
        let cases = [
            (Place::new(TAKEN), plain),
            (
                Place::new(TAKEN | libc::TP_STATUS_CSUMNOTREADY),
                FrameMeta {
                    checksum_not_ready: true,
                    ..plain
                },
            ),
            (
                Place {
                    wire_len: 262_144,
                    gso: (4 | 0x80, 1440),
                    ..Place::new(TAKEN)
                },
                FrameMeta {
                    wire_len: 262_144,
                    segment_size: size(1440),
                    ..plain
                },
            ),
            (
                // A kind of segmentation, but no size: nothing can be made of it.
                Place {
                    gso: (1, 0),
                    ..Place::new(TAKEN)
                },
                FrameMeta {
                    segment_size: SegmentSize::Unknown,
                    ..plain
                },
            ),
            (
                Place {
                    vlan: (0x602a, 0x88a8),
                    ..Place::new(tagged | libc::TP_STATUS_VLAN_TPID_VALID)
                },
                FrameMeta {
                    vlan: Some(VlanTag {
                        tpid: 0x88a8,
                        tci: 0x602a,
                    }),
                    ..plain
                },
            ),
            (
                // Kernels that do not tell the TPID take out 802.1Q tags alone.
                Place {
                    vlan: (5, 0),
                    ..Place::new(tagged)
                },
                FrameMeta {
                    vlan: Some(VlanTag {
                        tpid: 0x8100,
                        tci: 5,
                    }),
                    ..plain
                },
            ),
        ];
        for (place, expected) in cases {
            assert_eq!(walk(&[place], true).0, [expected]);
        }
        for (number, packet_type) in [
            (libc::PACKET_HOST, Some(PacketType::Host)),
            (libc::PACKET_BROADCAST, Some(PacketType::Broadcast)),
            (libc::PACKET_MULTICAST, Some(PacketType::Multicast)),
            (libc::PACKET_OTHERHOST, Some(PacketType::OtherHost)),
            (libc::PACKET_OUTGOING, Some(PacketType::Outgoing)),
            (77, None),
        ] {
            let place = Place {
                packet_type: number,
                ..Place::new(TAKEN)
            };
            assert_eq!(
                walk(&[place], true).0,
                [FrameMeta {
                    packet_type,
                    ..plain
                }]
            );
        }
        let unasked = Place {
            gso: (1, 1000),
            ..Place::new(TAKEN)
        };
        assert_eq!(
            walk(&[unasked], false).0[0].segment_size,
            SegmentSize::Unknown
        );
    }

    #[test]
    fn what_the_kernel_dropped_in_the_block_is_left_out_and_counted() {
        for places in [
            vec![0, TAKEN, TAKEN],
            vec![TAKEN, 0, libc::TP_STATUS_VLAN_VALID, TAKEN],
            vec![TAKEN, TAKEN, 0],
            vec![0],
        ] {
            let taken = places.iter().filter(|status| **status & TAKEN != 0).count();
            let all: Vec<_> = places.iter().map(|status| Place::new(*status)).collect();
            let (metas, walk) = walk(&all, true);
            assert_eq!(metas.len(), taken, "{places:?}");
            assert_eq!(walk.read as usize, places.len());
            assert_eq!(walk.holes as usize, places.len() - taken);
            assert_eq!(walk.wire_octets, 20 * taken as u64);
        }
    }
}
