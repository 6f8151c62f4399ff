//! Filter expressions in the language of tcpdump, compiled to classic BPF.
//!
//! [`Filter::compile`] gives a [`Program`] for a link type: [`RingConfig::filter`](crate::RingConfig::filter) has the
//! kernel run it, [`Program::admits`] runs it over any frame, as of a file. docs/filters.md has the grammar, and what differs
//! from pcap-filter(7).
//!
//! ```
//! use nvcapture::filter::Filter;
//! use nvcapture::{Frame, FrameMeta, LinkType, Timestamp};
//!
//! let program = Filter::compile("arp or udp port 53", LinkType::ETHERNET, 262_144)?;
//! let mut octets = [0; 60];
//! octets[12..14].copy_from_slice(&[0x08, 0x06]);
//! let frame = Frame::new(&octets, FrameMeta::ethernet(Timestamp::ZERO, 60));
//! assert!(program.admits(&frame));
//!
//! let error = Filter::compile("tcp prot 443", LinkType::ETHERNET, 262_144).unwrap_err();
//! assert_eq!(error.position(), 4);
//! # Ok::<(), nvcapture::filter::Error>(())
//! ```

mod blocks;
mod parse;
mod program;
mod services;

use std::fmt;

pub use program::{Invalid, Program};

use crate::LinkType;

/// Why an expression was not compiled: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    position: usize,
    what: String,
}

impl Error {
    pub(crate) fn new(position: usize, what: impl Into<String>) -> Self {
        Self {
            position,
            what: what.into(),
        }
    }

    /// Octets of the expression before the place that is wrong; always on a character's boundary.
    pub const fn position(&self) -> usize {
        self.position
    }

    /// What is wrong there, what was expected, and what to write instead where that is known.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at octet {}: {}", self.position, self.what)
    }
}

impl std::error::Error for Error {}

/// Where the frames come from; it decides what can be asked of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// An interface: the kernel tells the first VLAN tag and the direction beside the octets.
    #[default]
    Interface,
    /// The bridge `nv-br`: an Ethernet address is replaced by a mark that tells the container and the direction.
    Marked,
    /// A capture file: everything is in the octets.
    File,
}

/// How an expression is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What the frames begin with.
    pub link_type: LinkType,
    /// What the program answers for a frame that is wanted: octets to keep.
    pub snaplen: u32,
    /// Where the frames come from.
    pub place: Place,
    /// Leave out loads and tests whose answer is known. On by default; the verdicts are the same.
    pub optimise: bool,
}

impl Filter {
    /// Longest expression that is read, in octets.
    pub const MAX_EXPRESSION: usize = 65_536;

    /// Compiles `expression` for frames of `link_type` from an interface; the answer for those wanted is `snaplen`.
    ///
    /// An expression without words wants all frames.
    ///
    /// # Errors
    /// [`Error`] when the expression is not understood, is about what `link_type` does not have, or becomes longer than
    /// the kernel takes (`BPF_MAXINSNS`).
    pub fn compile(expression: &str, link_type: LinkType, snaplen: u32) -> Result<Program, Error> {
        Self::new(link_type, snaplen).program(expression)
    }

    /// For frames of `link_type` from an interface.
    pub const fn new(link_type: LinkType, snaplen: u32) -> Self {
        Self {
            link_type,
            snaplen,
            place: Place::Interface,
            optimise: true,
        }
    }

    /// The same for frames from `place`.
    pub const fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Compiles `expression`; see [`Filter::compile`].
    ///
    /// # Errors
    /// As [`Filter::compile`].
    pub fn program(&self, expression: &str) -> Result<Program, Error> {
        if expression.len() > Self::MAX_EXPRESSION {
            return Err(Error::new(
                0,
                format!("longer than {} octets", Self::MAX_EXPRESSION),
            ));
        }
        let mut graph = blocks::Graph::new();
        let octets = parse::parse(expression, self, false)?;
        let mut root = graph.add(&octets.node, blocks::ACCEPT, blocks::REJECT);
        if octets.asks_vlan && self.place != Place::File {
            // Two programs in one: where the kernel took the first tag out of the octets, nothing is shifted by it.
            let beside = parse::parse(expression, self, true)?;
            let beside = graph.add(&beside.node, blocks::ACCEPT, blocks::REJECT);
            root = graph.add(&parse::tag_is_beside(), beside, root);
        }
        graph.emit(root, self.snaplen, self.optimise).ok_or_else(|| {
            Error::new(
                0,
                "needs more instructions than the kernel takes (BPF_MAXINSNS, 4,096): ask for less, such as a net in place of hosts",
            )
        })
    }
}
