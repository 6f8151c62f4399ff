//! Sends frames as they are, many with one system call: `nv-blast INTERFACE OCTETS FRAMES RATE CONNECTIONS [FIRST]`.
//!
//! Each frame is a TCP segment of the next connection, round and round, every third one from its server; the first frame of each is its SYN, and
//! what follows is new data, none of it twice. RATE is in frames a second, 0 for as many as there can be. FIRST is the number of the first
//! frame (0): so one run goes on where another one ended. Prints what it sent, in how long, and with how much CPU time, that of the kernel's
//! work for the frames on this processor in it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind,
    sendmmsg, socket,
};
use nix::sys::time::TimeValLike;
use nv_benches::{ACK, SYN, Shape, connection};

const USAGE: &str = "usage: nv-blast INTERFACE OCTETS FRAMES RATE CONNECTIONS [FIRST]";
/// Ethernet, IPv4 and TCP.
const HEADERS: usize = 14 + 20 + 20;
/// Frames of one system call.
const BATCH: usize = 64;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [interface, numbers @ ..] = arguments.as_slice() else {
        return Err(io::Error::other(USAGE));
    };
    let numbers: Vec<u64> = numbers
        .iter()
        .map(|number| number.parse().map_err(|_| io::Error::other(USAGE)))
        .collect::<io::Result<_>>()?;
    let (octets, frames, rate, connections, first) = match numbers[..] {
        [octets, frames, rate, connections] => (octets, frames, rate, connections, 0),
        [octets, frames, rate, connections, first] => (octets, frames, rate, connections, first),
        _ => return Err(io::Error::other(USAGE)),
    };
    let socket = open(interface)?;
    // Of a connection only few octets differ: they are written anew for each frame, the rest stays.
    let mut batch = vec![vec![0; octets as usize]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let none = vec![None; BATCH];
    let began = Instant::now();
    let cpu_before = cpu();
    let mut sent = 0;
    while sent < frames {
        let most = BATCH.min((frames - sent) as usize);
        for (place, frame) in batch.iter_mut().take(most).enumerate() {
            let number = first + sent + place as u64;
            let (turn, which) = (number / connections, (number % connections) as u32);
            let control = if turn == 0 { SYN } else { ACK };
            let back = turn % 3 == 2;
            // The head alone: what is behind it is zero and stays so.
            let length = frame.len();
            connection(
                &mut frame[..length.min(64)],
                Shape::V4,
                which,
                back,
                control,
            );
            if turn > 0 {
                // What both have said before: the first segment of the client was its SYN, which counts as one octet.
                let payload = length.saturating_sub(HEADERS) as u64;
                let server = turn / 3;
                let client = turn - 1 - server;
                let [client, server] = [client, server].map(|said| (1 + said * payload) as u32);
                let (sequence, acknowledged) = if back {
                    (server, client)
                } else {
                    (client, server)
                };
                frame[38..42].copy_from_slice(&sequence.to_be_bytes());
                frame[42..46].copy_from_slice(&acknowledged.to_be_bytes());
            }
            frame[16..18].copy_from_slice(&((length - 14) as u16).to_be_bytes());
            frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
            frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        }
        let slices: Vec<[IoSlice<'_>; 1]> = batch
            .iter()
            .take(most)
            .map(|frame| [IoSlice::new(frame)])
            .collect();
        let went = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &none[..most],
            [],
            MsgFlags::empty(),
        );
        match went {
            Ok(went) => sent += went.count() as u64,
            Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(nanos) = sent.saturating_mul(1_000_000_000).checked_div(rate) {
            let due = began + Duration::from_nanos(nanos);
            // Sleeping would be too coarse, and the reader is on another processor.
            while Instant::now() < due {
                std::hint::spin_loop();
            }
        }
    }
    let took = began.elapsed().as_secs_f64();
    let (user, system) = cpu();
    println!(
        "{sent} frames sent in {took:.3} s, {:.0} a second; {:.3} s of CPU in the kernel, {:.3} s outside",
        sent as f64 / took,
        system - cpu_before.1,
        user - cpu_before.0,
    );
    Ok(())
}

/// A packet socket that sends out of `interface` and receives nothing.
fn open(interface: &str) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|address| address.interface_name == interface)
        .filter_map(|address| address.address)
        .find(|address| address.family() == Some(AddressFamily::Packet))
        .ok_or_else(|| io::Error::other(format!("no interface {interface}")))?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// User and system time so far, in seconds.
fn cpu() -> (f64, f64) {
    getrusage(UsageWho::RUSAGE_SELF).map_or((0.0, 0.0), |usage| {
        let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
        (seconds(usage.user_time()), seconds(usage.system_time()))
    })
}
