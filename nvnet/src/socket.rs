//! A blocking rtnetlink socket of one namespace: single requests, dumps, and batches sent as one message.
//!
//! rtnetlink's own `Handle` sends every request by itself. The switch of a container's network from one link to another
//! must reach the kernel in one send, so that neither a kill nor the scheduler can split it; and undoing must work in
//! `Drop`. So its message builders are used, and the messages travel here.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkHeader, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::attr;
use crate::{Error, Netns};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Octets of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Header flag: the acknowledgement holds no copy of the request (`NLM_F_CAPPED`).
const NLM_F_CAPPED: u16 = 0x100;
/// Header flag: attributes with the kernel's words follow (`NLM_F_ACK_TLVS`).
const NLM_F_ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ATTR_MSG: u16 = 1;
/// Room for a batch and its answers; thousands of routes fit.
const BUFFER: usize = 8 << 20;

/// Room for one message of the kernel's, larger than any it makes. How much is offered here is also what the kernel fills
/// at a time when it lists things.
const MESSAGE: usize = 256 << 10;

/// How long an answer is waited for. The kernel always answers; this only keeps a bug from hanging for ever.
const PATIENCE: TimeVal = TimeVal::new(30, 0);

/// Flags of a request that makes something new.
pub(crate) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Flags of a request that makes something or adds to it.
pub(crate) const ADD: u16 = NLM_F_CREATE;

/// One rtnetlink request: what it does, in words, and its octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Verb and object, for messages: "rename eth0 to nv-ex-eth0".
    pub(crate) op: String,
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    /// Error numbers that mean the work is done already.
    accepted: Vec<i32>,
    /// Whether it is sent again while the kernel says that what it is about is busy.
    waits: bool,
}

impl Request {
    /// A request from the types of netlink-packet-route.
    pub(crate) fn new(op: impl Into<String>, flags: u16, message: &RouteNetlinkMessage) -> Self {
        let mut body = vec![0; NetlinkSerializable::buffer_len(message)];
        message.serialize(&mut body);
        Self::raw(op, message.message_type(), flags, body)
    }

    /// A request whose body is given as octets.
    pub(crate) fn raw(op: impl Into<String>, kind: u16, flags: u16, body: Vec<u8>) -> Self {
        Self {
            op: op.into(),
            kind,
            flags,
            body,
            accepted: Vec::new(),
            waits: false,
        }
    }

    /// The same request, for which these error numbers are no failure.
    pub(crate) fn accepting(mut self, errnos: &[i32]) -> Self {
        self.accepted.extend_from_slice(errnos);
        self
    }

    /// The same request, to be sent again while the kernel says `EBUSY`: for what requests of others can hold for a moment.
    pub(crate) fn waiting(mut self) -> Self {
        self.waits = true;
        self
    }

    fn emit(&self, seq: u32, flags: u16, to: &mut Vec<u8>) {
        let mut header = NetlinkHeader::default();
        // A request's length is bounded by its attributes', see `attr::push`.
        header.length =
            u32::try_from(HEADER + self.body.len()).expect("a request is shorter than 4 GiB");
        header.message_type = self.kind;
        header.flags = NLM_F_REQUEST | self.flags | flags;
        header.sequence_number = seq;
        let at = to.len();
        to.resize(at + HEADER, 0);
        header.emit(&mut to[at..]);
        to.extend_from_slice(&self.body);
        to.resize(attr::align(to.len()), 0);
    }
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `RTM_NEWLINK` and the like.
    pub(crate) kind: u16,
    /// What follows the netlink header.
    pub(crate) body: Vec<u8>,
}

/// A socket that stays in the namespace it was opened in.
pub(crate) struct RouteSocket {
    socket: Socket,
    netns: Netns,
    seq: u32,
    buffer: Vec<u8>,
}

impl RouteSocket {
    /// Opens a socket inside `netns`.
    pub(crate) fn open(netns: &Netns) -> Result<Self, Error> {
        let failed = |source| Error::Netlink {
            op: "open a socket".into(),
            netns: netns.label().into(),
            source,
        };
        let socket = netns
            .within(|| -> io::Result<Socket> {
                let mut socket = Socket::new(NETLINK_ROUTE)?;
                socket.bind_auto()?;
                Ok(socket)
            })?
            .map_err(failed)?;
        // Both make errors readable and are there since Linux 4.12; what depends on them copes without.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let size = |name: &str, e: nix::Error| failed(io::Error::other(format!("{name}: {e}")));
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))
            .map_err(|e| size("SO_RCVBUF", e))?;
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &BUFFER))
            .map_err(|e| size("SO_SNDBUF", e))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)
            .map_err(|e| size("SO_RCVTIMEO", e))?;
        Ok(Self {
            socket,
            netns: netns.clone(),
            seq: 0,
            buffer: Vec::with_capacity(MESSAGE),
        })
    }

    /// The namespace this socket works in.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Sends one request and waits until it is done.
    pub(crate) fn send(&mut self, request: Request) -> Result<(), Error> {
        self.batch(std::slice::from_ref(&request))
    }

    /// Sends all requests in one message. The kernel works through them in order and does not stop at a refusal; the
    /// first one is the error returned. Those that [wait](Request::waiting) are sent again where they have to.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Result<(), Error> {
        // Nothing tells when it is over. It takes as long as others wait for the kernel's lock.
        const PATIENCE: Duration = Duration::from_secs(5);
        const PAUSE: Duration = Duration::from_millis(1);
        let start = Instant::now();
        let mut busy = self.batch_once(requests)?;
        while !busy.is_empty() {
            if start.elapsed() >= PATIENCE {
                return Err(busy.swap_remove(0).1);
            }
            std::thread::sleep(PAUSE);
            let again: Vec<Request> = busy.into_iter().map(|(request, _)| request).collect();
            busy = self.batch_once(&again)?;
        }
        Ok(())
    }

    /// As [`batch`](Self::batch), but gives those that wait, each with its refusal.
    fn batch_once(&mut self, requests: &[Request]) -> Result<Vec<(Request, Error)>, Error> {
        let Some(last) = requests.len().checked_sub(1) else {
            return Ok(Vec::new());
        };
        let first_seq = self.seq.wrapping_add(1);
        let mut octets = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            self.seq = self.seq.wrapping_add(1);
            // Only the last one is acknowledged when it succeeds: refusals come by themselves, and a thousand
            // acknowledgements could overrun the receive buffer.
            request.emit(
                self.seq,
                if at == last { NLM_F_ACK } else { 0 },
                &mut octets,
            );
        }
        let op = || match requests {
            [one] => one.op.clone(),
            [first, ..] => format!("{} and {last} more", first.op),
            [] => String::new(),
        };
        self.transmit(&octets, op)?;
        let last_seq = self.seq;
        let mut refused: Option<Error> = None;
        let mut busy = Vec::new();
        loop {
            let mut done = false;
            for (header, body) in self.receive(op)? {
                if header.kind != NLMSG_ERROR
                    || header.seq.wrapping_sub(first_seq) > last_seq.wrapping_sub(first_seq)
                {
                    continue; // an answer to an earlier call that timed out
                }
                done |= header.seq == last_seq;
                let Some(refusal) = refusal(&header, &body) else {
                    continue;
                };
                let request = &requests[header.seq.wrapping_sub(first_seq) as usize];
                if request.waits && refusal.errno == libc::EBUSY {
                    busy.push((request.clone(), self.refused(&request.op, refusal)));
                } else if !request.accepted.contains(&refusal.errno) {
                    tracing::debug!(
                        op = request.op,
                        errno = refusal.errno,
                        says = refusal.says,
                        "refused"
                    );
                    refused.get_or_insert_with(|| self.refused(&request.op, refusal));
                }
            }
            if done {
                return refused.map_or(Ok(busy), Err);
            }
        }
    }

    /// All messages of a dump; asks again when the kernel says that the list changed while it was read.
    pub(crate) fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, Error> {
        // Where a thousand links come and go, some hundred readings can be interrupted in a row.
        const PATIENCE: Duration = Duration::from_secs(5);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            self.seq = self.seq.wrapping_add(1);
            let mut octets = Vec::new();
            request.emit(self.seq, NLM_F_DUMP, &mut octets);
            self.transmit(&octets, || request.op.clone())?;
            if let Some(answers) = self.collect(request)? {
                return Ok(answers);
            }
        }
        Err(Error::Timeout {
            what: format!(
                "a list that does not change while it is read ({})",
                request.op
            ),
            netns: self.netns.label().into(),
            waited_ms: PATIENCE.as_millis() as u64,
        })
    }

    /// Reads a dump to its end; `None` when it was interrupted.
    fn collect(&mut self, request: &Request) -> Result<Option<Vec<Answer>>, Error> {
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            for (header, body) in self.receive(|| request.op.clone())? {
                if header.seq != self.seq {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_DONE => {
                        let errno = body.first_chunk().map_or(0, |e| i32::from_ne_bytes(*e));
                        if errno < 0 && -errno != libc::EINTR {
                            let refusal = Refusal {
                                errno: -errno,
                                says: None,
                            };
                            return Err(self.refused(&request.op, refusal));
                        }
                        return Ok((!interrupted).then_some(answers));
                    }
                    NLMSG_ERROR => match refusal(&header, &body) {
                        Some(refusal) => return Err(self.refused(&request.op, refusal)),
                        None => return Ok(Some(answers)),
                    },
                    kind => answers.push(Answer { kind, body }),
                }
            }
        }
    }

    /// The one message that answers a request.
    pub(crate) fn get(&mut self, request: &Request) -> Result<Answer, Error> {
        self.seq = self.seq.wrapping_add(1);
        let mut octets = Vec::new();
        request.emit(self.seq, 0, &mut octets);
        self.transmit(&octets, || request.op.clone())?;
        loop {
            for (header, body) in self.receive(|| request.op.clone())? {
                if header.seq != self.seq {
                    continue;
                }
                if header.kind != NLMSG_ERROR {
                    return Ok(Answer {
                        kind: header.kind,
                        body,
                    });
                }
                if let Some(refusal) = refusal(&header, &body) {
                    return Err(self.refused(&request.op, refusal));
                }
            }
        }
    }

    fn transmit(&self, octets: &[u8], op: impl Fn() -> String) -> Result<(), Error> {
        match self.socket.send_to(octets, &SocketAddr::new(0, 0), 0) {
            Ok(sent) if sent == octets.len() => Ok(()),
            Ok(_) => Err(self.failed(op(), io::Error::from(io::ErrorKind::WriteZero))),
            Err(source) => Err(self.failed(op(), source)),
        }
    }

    fn receive(&mut self, op: impl Fn() -> String) -> Result<Vec<(Header, Vec<u8>)>, Error> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Ok((len, _)) if len > self.buffer.len() => {
                    let short = io::Error::other(format!("an answer of {len} octets"));
                    return Err(self.failed(op(), short));
                }
                // Only the kernel (port 0) is believed: any process may send to a netlink port.
                Ok((_, from)) if from.port_number() == 0 => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(op(), source)),
            }
        }
        let mut rest = &self.buffer[..];
        let mut messages = Vec::new();
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let header = Header::parse(header);
            let len = header.len;
            let Some(body) = rest.get(HEADER..len) else {
                break;
            };
            messages.push((header, body.to_vec()));
            rest = rest.get(attr::align(len)..).unwrap_or(&[]);
        }
        Ok(messages)
    }

    fn failed(&self, op: String, source: io::Error) -> Error {
        Error::Netlink {
            op,
            netns: self.netns.label().into(),
            source,
        }
    }

    fn refused(&self, op: &str, refusal: Refusal) -> Error {
        Error::Refused {
            op: op.into(),
            netns: self.netns.label().into(),
            kernel_says: refusal.says,
            source: io::Error::from_raw_os_error(refusal.errno),
        }
    }
}

/// What is needed of `struct nlmsghdr`.
struct Header {
    len: usize,
    kind: u16,
    flags: u16,
    seq: u32,
}

impl Header {
    fn parse(octets: &[u8; HEADER]) -> Self {
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *octets;
        Self {
            len: u32::from_ne_bytes([l0, l1, l2, l3]) as usize,
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
        }
    }
}

/// Why the kernel refused one request.
struct Refusal {
    errno: i32,
    says: Option<String>,
}

/// What an `NLMSG_ERROR` says; `None` when it is an acknowledgement.
fn refusal(header: &Header, body: &[u8]) -> Option<Refusal> {
    let errno = body
        .first_chunk()
        .map_or(-libc::EBADMSG, |e| i32::from_ne_bytes(*e));
    if errno == 0 {
        return None;
    }
    // After the error number the request's header is echoed, and its body too unless the answer is capped.
    let echoed = body
        .get(4..)
        .and_then(|b| b.first_chunk::<HEADER>())
        .map_or(HEADER, |h| Header::parse(h).len);
    let at = 4 + if header.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        attr::align(echoed)
    };
    let words = (header.flags & NLM_F_ACK_TLVS != 0)
        .then(|| attr::find(body.get(at..)?, ATTR_MSG))
        .flatten();
    let says = words
        .map(|w| {
            String::from_utf8_lossy(w)
                .trim_end_matches('\0')
                .to_string()
        })
        .filter(|w| !w.is_empty());
    Some(Refusal {
        errno: -errno,
        says,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_found_behind_the_echo() {
        for (flags, echo) in [(NLM_F_CAPPED | NLM_F_ACK_TLVS, 16), (NLM_F_ACK_TLVS, 20)] {
            let mut body = (-libc::EBUSY).to_ne_bytes().to_vec();
            let mut echoed = vec![0; echo];
            echoed[..4].copy_from_slice(&(20u32).to_ne_bytes());
            body.extend(echoed);
            attr::push(&mut body, ATTR_MSG, b"Device is up\0");
            let header = Header {
                len: 0,
                kind: NLMSG_ERROR,
                flags,
                seq: 1,
            };
            let refusal = refusal(&header, &body).expect("refused");
            assert_eq!(
                (refusal.errno, refusal.says.as_deref()),
                (libc::EBUSY, Some("Device is up"))
            );
        }
    }

    #[test]
    fn an_acknowledgement_is_no_refusal() {
        let header = Header {
            len: 0,
            kind: NLMSG_ERROR,
            flags: 0,
            seq: 1,
        };
        assert!(refusal(&header, &[0; 20]).is_none());
        assert_eq!(refusal(&header, &[]).expect("damaged").errno, libc::EBADMSG);
    }

    #[test]
    fn requests_are_padded_and_numbered() {
        let mut octets = Vec::new();
        Request::raw("a", 16, ADD, vec![1, 2, 3, 4, 5]).emit(7, NLM_F_ACK, &mut octets);
        Request::raw("b", 17, 0, vec![]).emit(8, 0, &mut octets);
        assert_eq!(octets.len(), 24 + 16);
        let second = Header::parse(octets[24..].first_chunk().expect("header"));
        assert_eq!(
            (second.len, second.kind, second.seq, second.flags),
            (16, 17, 8, NLM_F_REQUEST)
        );
    }
}
