//! Whether a container answers, and for how long it did not: ARP probes through the host end of its veth pair.
//!
//! A probe (RFC 5227: a request whose sender has no address) goes the way that every frame to the container goes, is
//! answered by the container's own kernel, and comes back the way that every frame of the container goes. It leaves no
//! entry in any neighbour table, and no process of the container sees it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::link::Link;
use crate::{MacAddr, Netns, sys};

/// Between two probes.
const INTERVAL: Duration = Duration::from_micros(200);
/// Between two probes to a container that has not answered for [`SILENT`].
const SLOWLY: Duration = Duration::from_millis(5);
const SILENT: Duration = Duration::from_millis(50);
/// So many answers tell that the path can be measured, and that it works again.
const ENOUGH: u64 = 3;
/// After so many without [`ENOUGH`] answers there will be none. They come within microseconds: the kernel answers before the
/// sending of the probe returns. Counted and not timed, since the thread may be kept from running.
const UNANSWERED: u64 = 50;
/// How long the first answers are waited for.
const BEFORE: Duration = Duration::from_secs(1);
/// How long answers are waited for after the switch.
const AFTER: Duration = Duration::from_secs(1);

/// For how long a container could not be reached while its interface was exchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blackout {
    /// From sending the switch's message until the kernel had worked through it; packets that the container sends wait
    /// in the new interface's neighbour queue for a part of it.
    pub switch: Duration,
    /// What the ARP probes told, or why there were none.
    pub probe: Result<Probed, String>,
}

impl Blackout {
    /// The longest time for which any frame can have been lost or held. It is never too small: it holds the switch as a
    /// whole, and moments in which the probing thread itself was kept from running.
    pub fn at_most(&self) -> Duration {
        let gap = self.probe.as_ref().map_or(Duration::ZERO, |p| p.gap);
        self.switch.max(gap)
    }
}

/// ARP probes sent to the container from shortly before the switch until it answered after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// How many were sent, one each 0.2 ms.
    pub sent: u64,
    /// How many were answered.
    pub answered: u64,
    /// The longest time between two answers.
    pub gap: Duration,
}

/// What a [`Prober`] tells at its end.
pub(crate) enum Told {
    Answered(Probed),
    /// It answered before, and after the switch not for so long.
    Silent(Duration),
    /// Nothing is known, and why.
    Nothing(String),
}

/// A thread that probes; it ends by itself when it is dropped.
pub(crate) struct Prober {
    switched: Arc<AtomicBool>,
    told: Receiver<Seen>,
    ipv4: Ipv4Addr,
}

/// What the thread saw: once when it was answered the first time or was not, once at its end.
struct Seen {
    sent: u64,
    answers: Vec<Instant>,
    /// Answers to what was sent after the switch.
    after: u64,
}

impl Prober {
    /// Starts to probe `ipv4`, which `end` on the host leads to; gives the reason when that cannot be done.
    pub(crate) fn start(
        host: &Netns,
        end: &Link,
        own: MacAddr,
        ipv4: Ipv4Addr,
    ) -> Result<Self, String> {
        let source = end.mac.ok_or("its host end has no Ethernet address")?;
        let failed = |error: io::Error| format!("no socket on {}: {error}", end.name);
        let filter = answers_of(ipv4);
        let index = end.index;
        let socket = host
            .within(|| sys::packet_socket(index, &filter))
            .map_err(|error| error.to_string())?
            .map_err(failed)?;
        let frame = probe(source, own, ipv4);
        let switched = Arc::new(AtomicBool::new(false));
        // Room for both: the thread never waits for anybody.
        let (tell, told) = mpsc::sync_channel(2);
        let seen = Arc::clone(&switched);
        let thread = std::thread::Builder::new().name("nv-probe".into());
        thread
            .spawn(move || run(socket, &frame, &seen, &tell))
            .map_err(|error| format!("no thread: {error}"))?;
        Ok(Self {
            switched,
            told,
            ipv4,
        })
    }

    /// Waits until the first probes were answered; gives the reason when they are not.
    pub(crate) fn ready(self) -> Result<Self, String> {
        match self.told.recv_timeout(BEFORE) {
            Ok(seen) if !seen.answers.is_empty() => Ok(self),
            _ => Err(format!("{} does not answer ARP probes", self.ipv4)),
        }
    }

    /// To be called when the switch is done: goes on until the container answers, or for a second.
    pub(crate) fn finish(self, switch_began: Instant) -> Told {
        self.switched.store(true, Ordering::Release);
        let Ok(seen) = self.told.recv_timeout(2 * AFTER) else {
            return Told::Nothing("the probing thread was kept from running".into());
        };
        if seen.after < ENOUGH {
            return Told::Silent(AFTER);
        }
        Told::Answered(Probed {
            sent: seen.sent,
            answered: seen.answers.len() as u64,
            gap: longest_gap(&seen.answers, switch_began),
        })
    }
}

/// The longest time between two answers that follow each other, of which the second came after `since`.
fn longest_gap(answers: &[Instant], since: Instant) -> Duration {
    let gaps = answers.windows(2).filter(|pair| pair[1] > since);
    gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn run(socket: OwnedFd, frame: &[u8], switched: &Arc<AtomicBool>, tell: &SyncSender<Seen>) {
    let mut seen = Seen {
        sent: 0,
        answers: Vec::new(),
        after: 0,
    };
    let began = Instant::now();
    let (mut ready, mut switched_at, mut sent_after) = (false, None::<Instant>, 0);
    // The other one let go of it: nobody waits for an answer any more.
    while Arc::strong_count(switched) > 1 {
        if switched_at.is_none() && switched.load(Ordering::Acquire) {
            switched_at = Some(Instant::now());
        }
        if switched_at.is_some_and(|at| seen.after >= ENOUGH || at.elapsed() > AFTER) {
            break;
        }
        // A link that is down for a moment refuses it: that is what is being measured.
        let _ = nix::unistd::write(&socket, frame);
        seen.sent += 1;
        sent_after += u64::from(switched_at.is_some());
        let last = seen.answers.last().copied().unwrap_or(began);
        let interval = if last.elapsed() > SILENT {
            SLOWLY
        } else {
            INTERVAL
        };
        let next = Instant::now() + interval;
        loop {
            let mut octets = [0; 64];
            while nix::unistd::read(&socket, &mut octets).is_ok() {
                seen.answers.push(Instant::now());
                // An answer may be to an earlier probe: no more count than were sent since.
                seen.after = (seen.after + u64::from(switched_at.is_some())).min(sent_after);
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut readable = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            let _ = ppoll(&mut readable, Some(TimeSpec::from_duration(left)), None);
        }
        let answered = seen.answers.len() as u64 >= ENOUGH;
        if !ready && (answered || seen.sent >= UNANSWERED) {
            ready = true;
            let first = Seen {
                sent: seen.sent,
                answers: seen.answers.clone(),
                after: 0,
            };
            let _ = tell.try_send(first);
        }
    }
    let _ = tell.try_send(seen);
    // Closing it waits until no processor uses it any more, some milliseconds; nobody waits for this thread.
    drop(socket);
}

/// An ARP probe in an Ethernet frame.
fn probe(from: MacAddr, to: MacAddr, ipv4: Ipv4Addr) -> Vec<u8> {
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    const REQUEST: [u8; 2] = [0, 1];
    let parts: [&[u8]; 9] = [
        &to.0,
        &from.0,
        &[8, 6],
        &ETHERNET_IPV4,
        &REQUEST,
        &from.0,
        &[0; 4],
        &[0; 6],
        &ipv4.octets(),
    ];
    parts.concat()
}

/// A socket filter that takes ARP replies from `ipv4` and nothing else: whatever the container carries meanwhile is not
/// copied.
fn answers_of(ipv4: Ipv4Addr) -> [libc::sock_filter; 8] {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ETH_P_ARP: u32 = 0x0806;
    const REPLY: u32 = 2;
    let op = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    [
        op(LOAD_HALF, 12, 0),
        op(JUMP_EQUAL, ETH_P_ARP, 5),
        op(LOAD_HALF, 20, 0),
        op(JUMP_EQUAL, REPLY, 3),
        op(LOAD_WORD, 28, 0),
        op(JUMP_EQUAL, ipv4.into(), 1),
        op(RETURN, 64, 0),
        op(RETURN, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_that_of_the_switch() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        // A pause before the switch began is none of it; one that it falls into is.
        let answers = [at(0), at(30), at(31), at(38), at(39)];
        assert_eq!(longest_gap(&answers, at(32)), Duration::from_millis(7));
        assert_eq!(longest_gap(&answers, at(29)), Duration::from_millis(30));
        assert_eq!(longest_gap(&answers[..1], at(0)), Duration::ZERO);
    }

    #[test]
    fn a_blackout_is_never_told_too_small() {
        let mut blackout = Blackout {
            switch: Duration::from_millis(2),
            probe: Ok(Probed {
                sent: 9,
                answered: 8,
                gap: Duration::from_millis(3),
            }),
        };
        assert_eq!(blackout.at_most(), Duration::from_millis(3));
        blackout.switch = Duration::from_millis(4);
        assert_eq!(blackout.at_most(), Duration::from_millis(4));
        blackout.probe = Err("nobody answers".into());
        assert_eq!(blackout.at_most(), Duration::from_millis(4));
    }

    #[test]
    fn a_probe_is_an_arp_request_without_a_sender() {
        let (from, to) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let frame = probe(from, to, Ipv4Addr::new(10, 78, 0, 2));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[28..32], [0; 4], "no sender's address");
        assert_eq!(frame[38..], [10, 78, 0, 2]);
    }
}
