//! pcapng, written block by block into any [`Write`].

use std::io::Write;

use crate::{Error, FileInterface, Frame, LinkType, PacketType, SourceStats, Timestamp};

/// Octets that are gathered before they are written.
const GATHER: usize = 64 << 10;

/// Writes frames as pcapng (one section, nanosecond times), to a file or a pipe.
///
/// The kernel's VLAN tag, which a ring tells beside the octets, is put back into them. What is gathered in memory is
/// written by [`CaptureWriter::finish`] or [`CaptureWriter::flush`]; dropping the writer loses it, as an error could not
/// be told.
///
/// ```
/// use nvcapture::{CaptureWriter, Frame, FrameMeta, InterfaceDescription, Timestamp};
///
/// let mut writer = CaptureWriter::new(Vec::new(), "my program 1.0")?;
/// let eth0 = writer.add_interface(&InterfaceDescription {
///     name: Some("eth0".into()),
///     ..InterfaceDescription::default()
/// })?;
/// let octets = [0; 60];
/// let meta = FrameMeta::ethernet(Timestamp::from_nanos(1_700_000_000_000_000_000), 60);
/// writer.write(eth0, &Frame::new(&octets, meta))?;
/// let file: Vec<u8> = writer.finish()?;
/// # Ok::<(), nvcapture::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping a CaptureWriter loses what it has gathered; call `finish`"]
pub struct CaptureWriter<W: Write> {
    output: W,
    gathered: Vec<u8>,
    /// Link type and snap length of each interface.
    interfaces: Vec<(LinkType, u32)>,
    written: u64,
}

/// An interface, as a pcapng file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceDescription {
    /// Its name (`if_name`).
    pub name: Option<String>,
    /// What it is, in words (`if_description`).
    pub description: Option<String>,
    /// Its hardware address (`if_MACaddr`).
    pub mac: Option<[u8; 6]>,
    /// Octets kept of a frame at most; 0 (the default) for no limit.
    pub snaplen: u32,
    /// What its frames' first octets are; Ethernet by default.
    pub link_type: LinkType,
}

impl Default for InterfaceDescription {
    fn default() -> Self {
        Self {
            name: None,
            description: None,
            mac: None,
            snaplen: 0,
            link_type: LinkType::ETHERNET,
        }
    }
}

/// As a file described it, for a copy of that file: see [`CaptureFile`](crate::CaptureFile).
///
/// With the file's `snaplen`, frames that are longer than it are cut to it when they are written; set it to 0 where that is not wanted.
impl From<&FileInterface> for InterfaceDescription {
    fn from(interface: &FileInterface) -> Self {
        // What is lost is no description: `CaptureWriter::write_statistics` tells it.
        let FileInterface {
            name,
            description,
            mac,
            snaplen,
            link_type,
            dropped: _,
        } = interface;
        Self {
            name: name.clone(),
            description: description.clone(),
            mac: *mac,
            snaplen: *snaplen,
            link_type: *link_type,
        }
    }
}

/// The number of an interface in the file being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceNumber(u32);

impl<W: Write> CaptureWriter<W> {
    /// Begins a file; `application` is what the file says wrote it.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when `application` is longer than an option can be.
    pub fn new(output: W, application: &str) -> Result<Self, Error> {
        let mut writer = Self {
            output,
            gathered: Vec::with_capacity(2 * GATHER),
            interfaces: Vec::new(),
            written: 0,
        };
        writer.block(0x0a0d_0d0a, |block| {
            block.extend(0x1a2b_3c4d_u32.to_le_bytes());
            block.extend(1_u16.to_le_bytes());
            block.extend(0_u16.to_le_bytes());
            block.extend(u64::MAX.to_le_bytes()); // a section of unknown length, as it may be a pipe
            option(block, 4, application.as_bytes())?;
            option(block, 0, &[])
        })?;
        Ok(writer)
    }

    /// Describes an interface; its frames can then be written.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when a text is longer than 65,535 octets; [`Error::Io`].
    pub fn add_interface(
        &mut self,
        interface: &InterfaceDescription,
    ) -> Result<InterfaceNumber, Error> {
        let number = u32::try_from(self.interfaces.len()).map_err(|_| Error::Unwritable {
            what: "more interfaces than can be numbered",
        })?;
        self.block(1, |block| {
            block.extend(interface.link_type.0.to_le_bytes());
            block.extend(0_u16.to_le_bytes());
            block.extend(interface.snaplen.to_le_bytes());
            if let Some(name) = &interface.name {
                option(block, 2, name.as_bytes())?;
            }
            if let Some(description) = &interface.description {
                option(block, 3, description.as_bytes())?;
            }
            if let Some(mac) = &interface.mac {
                option(block, 6, mac)?;
            }
            option(block, 9, &[9])?; // times in nanoseconds
            option(block, 0, &[])
        })?;
        self.interfaces
            .push((interface.link_type, interface.snaplen));
        self.spill()?;
        Ok(InterfaceNumber(number))
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when the interface is not of this file; [`Error::Io`].
    pub fn write(&mut self, interface: InterfaceNumber, frame: &Frame<'_>) -> Result<(), Error> {
        let Some(&(link_type, snaplen)) = self.interfaces.get(interface.0 as usize) else {
            return Err(Error::Unwritable {
                what: "a frame of an interface that was not described",
            });
        };
        let octets = frame.octets();
        let meta = frame.meta();
        // Destination and source address, then the tag, then the rest.
        let tag = meta.vlan.filter(|_| link_type == LinkType::ETHERNET);
        let (before, tag, behind) = match (tag, octets.split_at_checked(12)) {
            (Some(tag), Some((addresses, rest))) => {
                let [a, b] = tag.tpid.to_be_bytes();
                let [c, d] = tag.tci.to_be_bytes();
                (addresses, Some([a, b, c, d]), rest)
            }
            _ => (octets, None, &[][..]),
        };
        let tag: &[u8] = tag.as_ref().map_or(&[], |tag| &tag[..]);
        let whole = octets.len() + tag.len();
        let limit = if snaplen == 0 {
            usize::MAX
        } else {
            snaplen as usize
        };
        // A frame that the tag makes longer than the file says frames are is cut like any other.
        let kept = whole.min(limit);
        let wire_len = meta.wire_len.saturating_add(tag.len() as u32);
        let flags = meta.packet_type.map(flags);
        let options = if flags.is_some() { 12 } else { 0 };
        let Some(length) = kept
            .checked_next_multiple_of(4)
            .and_then(|padded| padded.checked_add(32 + options))
            .and_then(|length| u32::try_from(length).ok())
        else {
            return Err(Error::Unwritable {
                what: "a frame of 4 GiB",
            });
        };
        let nanos = meta.timestamp.as_nanos();
        let mut head = [0; 28];
        for (word, value) in head.chunks_exact_mut(4).zip([
            6,
            length,
            interface.0,
            (nanos >> 32) as u32,
            nanos as u32,
            kept as u32,
            wire_len,
        ]) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let block = &mut self.gathered;
        block.extend_from_slice(&head);
        let start = block.len();
        block.extend_from_slice(before);
        block.extend_from_slice(tag);
        block.extend_from_slice(behind);
        block.truncate(start + kept);
        block.resize(start + kept.next_multiple_of(4), 0);
        if let Some(flags) = flags {
            block.extend_from_slice(&[2, 0, 4, 0]);
            block.extend_from_slice(&flags.to_le_bytes());
            block.extend_from_slice(&[0; 4]);
        }
        block.extend_from_slice(&length.to_le_bytes());
        self.spill()
    }

    /// Writes what was counted on an interface up to `at`. Readers take the last word, or the highest one, as [`CaptureFile`](crate::CaptureFile) does:
    /// totals do not decrease.
    ///
    /// `isb_ifrecv` is what came, `isb_ifdrop` what the kernel lost of it (dumpcap's use), `isb_usrdeliv` what was
    /// handed out.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when the interface is not of this file; [`Error::Io`].
    pub fn write_statistics(
        &mut self,
        interface: InterfaceNumber,
        at: Timestamp,
        stats: &SourceStats,
    ) -> Result<(), Error> {
        if interface.0 as usize >= self.interfaces.len() {
            return Err(Error::Unwritable {
                what: "statistics of an interface that was not described",
            });
        }
        let nanos = at.as_nanos();
        let received = stats.frames.saturating_add(stats.dropped);
        self.block(5, |block| {
            block.extend(interface.0.to_le_bytes());
            block.extend(((nanos >> 32) as u32).to_le_bytes());
            block.extend((nanos as u32).to_le_bytes());
            option(block, 4, &received.to_le_bytes())?;
            option(block, 5, &stats.dropped.to_le_bytes())?;
            option(block, 8, &stats.frames.to_le_bytes())?;
            option(block, 0, &[])
        })?;
        self.spill()
    }

    /// Octets of the file so far, those that are gathered among them.
    pub fn len(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    /// Never: a file begins with its header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what is gathered, so that a reader at the other end sees it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.spill_all()?;
        self.output.flush().map_err(failed)
    }

    /// Writes what is gathered and hands the output back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<W, Error> {
        self.flush()?;
        Ok(self.output)
    }

    fn spill(&mut self) -> Result<(), Error> {
        if self.gathered.len() < GATHER {
            return Ok(());
        }
        self.spill_all()
    }

    fn spill_all(&mut self) -> Result<(), Error> {
        // Gone even if writing fails: half a block may be out, and writing it again would make two halves.
        let result = self.output.write_all(&self.gathered).map_err(failed);
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        result
    }

    /// Appends a block, its length before and behind; nothing when `body` fails.
    fn block(
        &mut self,
        kind: u32,
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut block = Vec::new();
        body(&mut block)?;
        let length = u32::try_from(block.len() + 12).map_err(|_| Error::Unwritable {
            what: "a block of 4 GiB",
        })?;
        self.gathered.extend_from_slice(&kind.to_le_bytes());
        self.gathered.extend_from_slice(&length.to_le_bytes());
        self.gathered.extend_from_slice(&block);
        self.gathered.extend_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::Io {
        op: "write",
        path: "the capture".to_owned(),
        source,
    }
}

fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) -> Result<(), Error> {
    let length = u16::try_from(value.len()).map_err(|_| Error::Unwritable {
        what: "a text of more than 65,535 octets",
    })?;
    block.extend(code.to_le_bytes());
    block.extend(length.to_le_bytes());
    block.extend(value);
    block.resize(block.len().next_multiple_of(4), 0);
    Ok(())
}

/// `epb_flags`: direction in bits 0 and 1, reception type in bits 2 to 4.
fn flags(packet_type: PacketType) -> u32 {
    match packet_type {
        PacketType::Outgoing => 2,
        PacketType::Inbound => 1,
        PacketType::Host => 1 | 1 << 2,
        PacketType::Multicast => 1 | 2 << 2,
        PacketType::Broadcast => 1 | 3 << 2,
        PacketType::OtherHost => 1 | 4 << 2,
    }
}
