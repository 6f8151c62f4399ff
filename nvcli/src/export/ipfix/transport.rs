//! Messages over UDP and TCP.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nvflow::FlowRecord;

use super::message::{Message, Messages};
use crate::export::config::IpfixTo;
use crate::export::lane::{Exporter, Lane, TICK, Trouble};

/// How long a collector may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How long octets may stay unacknowledged before the connection counts as broken.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// The types of our elements are sent again with every tenth repetition of the templates.
const TYPES_EVERY: u32 = 10;

/// The addresses that a host's name stands for.
fn resolved(address: &str) -> Result<Vec<SocketAddr>, Trouble> {
    let found = address.to_socket_addrs();
    let found = found.map_err(|error| Trouble::new(format!("cannot resolve {address}"), error))?;
    Ok(found.collect())
}

/// The first of `addresses` that `make` succeeds with.
fn first_of<T>(address: &str, make: impl Fn(SocketAddr) -> io::Result<T>) -> Result<T, Trouble> {
    let mut last = io::Error::other("the name has no address");
    for candidate in resolved(address)? {
        match make(candidate) {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(Trouble::new(format!("cannot connect to {address}"), last))
}

pub(super) struct Udp {
    to: IpfixTo,
    messages: Messages,
    socket: Option<UdpSocket>,
    /// The last message: that nobody listens is known only after it was sent.
    last: Message,
    /// When templates were last sent, messages since, and how often that was.
    templates: (Instant, u32, u32),
    /// When the next message may go.
    due: Instant,
}

impl Udp {
    pub(super) fn new(to: &IpfixTo) -> Self {
        let now = Instant::now();
        Self {
            to: to.clone(),
            messages: Messages::new(to),
            socket: None,
            last: Message::default(),
            templates: (now, 0, 0),
            due: now,
        }
    }

    fn open(&mut self) -> Result<(), Trouble> {
        if self.socket.is_some() {
            return Ok(());
        }
        let socket = first_of(&self.to.address, |address| {
            let any: SocketAddr = match address {
                SocketAddr::V4(_) => ([0; 4], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.set_write_timeout(Some(TICK))?;
            Ok(socket)
        })?;
        self.socket = Some(socket);
        // Another socket is another session.
        self.messages.begin_anew();
        Ok(())
    }

    /// Has templates sent again when it is time.
    fn repeat(&mut self) {
        let (at, messages, times) = self.templates;
        if at.elapsed() < self.to.template_interval && messages < self.to.template_messages {
            return;
        }
        self.messages.announce_again();
        // Nobody needs the types to read the records, and collectors that do not count them tell of a gap.
        if times % TYPES_EVERY == TYPES_EVERY - 1 {
            self.messages.describe_again();
        }
        self.templates = (Instant::now(), 0, times.wrapping_add(1));
    }

    /// Counts the last message as arrived.
    fn settle(&mut self, lane: &Lane) {
        let last = std::mem::take(&mut self.last);
        if !last.records.is_empty() {
            lane.connected();
            lane.exported(last.records.len(), last.octets.len());
        }
    }

    fn broken(&mut self, error: &io::Error, records: &mut VecDeque<Arc<FlowRecord>>) -> Trouble {
        self.messages.take_back(&mut self.last, records);
        let what = format!("cannot send to {}", self.to.address);
        if error.kind() == ErrorKind::ConnectionRefused {
            return Trouble::new(what, "nobody listens there");
        }
        // Its addresses may be others now, or ours.
        self.socket = None;
        Trouble::new(what, error)
    }

    /// Leaves a collector the time to read what was sent.
    fn wait_for_turn(&mut self) {
        let now = Instant::now();
        if self.due > now {
            std::thread::sleep(self.due - now);
        }
        self.due = self.due.max(now) + Duration::from_secs(1) / self.to.rate;
    }
}

impl Exporter for Udp {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        self.open()?;
        let pending = |socket: &Option<UdpSocket>| {
            socket
                .as_ref()
                .and_then(|socket| socket.take_error().ok().flatten())
        };
        if let Some(error) = pending(&self.socket) {
            return Err(self.broken(&error, records));
        }
        self.settle(lane);
        while !records.is_empty() && !lane.is_over() {
            self.repeat();
            let mut message = Message::default();
            if !self.messages.fill(&mut message, records, lane) {
                break;
            }
            self.wait_for_turn();
            let Some(socket) = &self.socket else {
                break;
            };
            let sent = loop {
                match socket.send(&message.octets) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    sent => break sent,
                }
            };
            if let Err(error) = sent {
                // The error is of the one before: this one was not sent.
                self.messages.take_back(&mut message, records);
                return Err(self.broken(&error, records));
            }
            self.templates.1 += 1;
            self.settle(lane);
            self.last = message;
            if let Some(error) = pending(&self.socket) {
                return Err(self.broken(&error, records));
            }
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        !self.last.records.is_empty()
    }
}

pub(super) struct Tcp {
    to: IpfixTo,
    messages: Messages,
    stream: Option<TcpStream>,
}

impl Tcp {
    pub(super) fn new(to: &IpfixTo) -> Self {
        Self {
            to: to.clone(),
            messages: Messages::new(to),
            stream: None,
        }
    }

    fn open(&mut self, lane: &Lane) -> Result<(), Trouble> {
        if self.stream.is_some() {
            return Ok(());
        }
        let patience = lane.within(CONNECT).max(Duration::from_millis(1));
        let stream = first_of(&self.to.address, |address| {
            let stream = TcpStream::connect_timeout(&address, patience)?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(TICK))?;
            let millis = UNACKNOWLEDGED.as_millis() as u32;
            setsockopt(&stream, sockopt::TcpUserTimeout, &millis)?;
            setsockopt(&stream, sockopt::KeepAlive, &true)?;
            Ok(stream)
        })?;
        self.stream = Some(stream);
        self.messages.begin_anew();
        lane.connected();
        Ok(())
    }
}

/// Whether the collector has closed its side: what is written then is lost without a word.
fn is_closed(stream: &TcpStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Ok(octets) => octets == 0,
        Err(error) => error != Errno::EAGAIN && error != Errno::EINTR,
    }
}

/// Writes a whole message.
fn write(mut stream: &TcpStream, octets: &[u8], lane: &Lane) -> io::Result<()> {
    let mut rest = octets;
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock if !lane.is_over() => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

impl Exporter for Tcp {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        if self.stream.as_ref().is_some_and(is_closed) {
            self.stream = None;
            lane.failed(&format!("{} closed the connection", self.to.address));
        }
        self.open(lane)?;
        let mut message = Message::default();
        while let Some(stream) = &self.stream {
            if records.is_empty() || !self.messages.fill(&mut message, records, lane) {
                break;
            }
            let written = if is_closed(stream) {
                Err(ErrorKind::ConnectionAborted.into())
            } else {
                write(stream, &message.octets, lane)
            };
            if let Err(error) = written {
                self.messages.take_back(&mut message, records);
                // Half a message is of no use to anybody.
                self.stream = None;
                let what = format!("cannot send to {}", self.to.address);
                return Err(Trouble::new(what, error));
            }
            lane.exported(message.records.len(), message.octets.len());
        }
        Ok(())
    }
}
