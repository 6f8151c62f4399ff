//! Containers of a lab, and traffic between them that goes on until it is dropped.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nvnet::lab::Lab;
use nvnet::{Attachment, Netns, Plan, Workload};

use crate::common::chain;

pub(crate) const NVCLI: &str = env!("CARGO_BIN_EXE_nvcli");
/// So long something may take to be seen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a thread without traffic looks whether it is over.
const BREATH: Duration = Duration::from_millis(100);

/// web-1, client-1 and db-1; the first two are attached.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) attached: Vec<Attachment>,
}

/// Attaches a container of the lab under this name.
pub(crate) fn attach(lab: &Lab, number: usize, name: &str) -> Result<Vec<Attachment>, Failed> {
    let workload = Workload {
        name: name.to_owned(),
        ..Workload::default()
    };
    let plan = Plan::new(&lab.host, &lab.containers[number].netns, workload);
    plan.check().and_then(|plan| plan.attach()).map_err(chain)
}

impl Stage {
    pub(crate) fn new() -> Result<Self, Failed> {
        Self::called(["web-1", "client-1"])
    }

    pub(crate) fn called(names: [&str; 2]) -> Result<Self, Failed> {
        let lab = Lab::new(&["one", "two", "three"]).map_err(chain)?;
        let mut attached = Vec::new();
        for (number, name) in names.into_iter().enumerate() {
            attached.extend(attach(&lab, number, name)?);
        }
        Ok(Self { lab, attached })
    }

    pub(crate) fn netns(&self, number: usize) -> &Netns {
        &self.lab.containers[number].netns
    }

    pub(crate) fn address(&self, number: usize, port: u16) -> SocketAddr {
        (self.lab.containers[number].ipv4, port).into()
    }

    pub(crate) fn udp(&self, number: usize, port: u16) -> Result<UdpSocket, Failed> {
        let address: SocketAddr = match port {
            0 => (Ipv4Addr::UNSPECIFIED, 0).into(),
            port => self.address(number, port),
        };
        let bound = self.netns(number).run(|| UdpSocket::bind(address));
        Ok(bound.map_err(chain)??)
    }

    pub(crate) fn listener(&self, number: usize, port: u16) -> Result<TcpListener, Failed> {
        let address = self.address(number, port);
        let bound = self.netns(number).run(|| TcpListener::bind(address));
        Ok(bound.map_err(chain)??)
    }

    pub(crate) fn connect(&self, number: usize, to: SocketAddr) -> Result<TcpStream, Failed> {
        let connected = self
            .netns(number)
            .run(|| TcpStream::connect_timeout(&to, PATIENCE));
        Ok(connected.map_err(chain)??)
    }

    /// A command of nvcli on the lab's host.
    pub(crate) fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(NVCLI);
        command
            .args(arguments)
            .env("DOCKER_HOST", "unix:///nonexistent");
        command
    }

    /// Runs nvcli on the lab's host and gives what it printed, on both outputs.
    pub(crate) fn nvcli(&self, arguments: &[&str]) -> Result<(String, String), Failed> {
        let run = || Self::command(arguments).output();
        let output = self.lab.host.run(run).map_err(chain)??;
        Ok((
            String::from_utf8(output.stdout)?,
            String::from_utf8(output.stderr)?,
        ))
    }
}

/// What is said on a connection: first one thing, then another again and again.
#[derive(Clone)]
pub(crate) struct Talk {
    first: [Vec<u8>; 2],
    pub(crate) again: [Vec<u8>; 2],
    pub(crate) pause: Duration,
}

impl Talk {
    fn turn(&self, number: u64) -> &[Vec<u8>; 2] {
        if number == 0 {
            &self.first
        } else {
            &self.again
        }
    }
}

/// A page of 20,000 octets, asked for again and again.
pub(crate) fn http() -> Talk {
    let request = b"GET /shop HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_vec();
    let mut page = b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n".to_vec();
    page.resize(page.len() + 20_000, b'x');
    Talk {
        first: [request.clone(), page.clone()],
        again: [request, page],
        pause: Duration::from_millis(40),
    }
}

/// A client of PostgreSQL that is let in, and asks.
fn postgresql() -> Talk {
    let startup = [&[0, 0, 0, 19, 0, 3, 0, 0][..], b"user\0shop\0\0"].concat();
    Talk {
        first: [startup, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I".to_vec()],
        again: [b"Q\0\0\0\x0dSELECT 1\0".to_vec(), vec![b'D'; 500]],
        pause: Duration::from_millis(100),
    }
}

/// A TLS ClientHello with this server name, and records that nobody can read.
pub(crate) fn tls(name: &[u8]) -> Talk {
    Talk {
        first: [hello(name), vec![23, 3, 3, 0, 0]],
        again: [record(23, &[7; 100]), record(23, &[8; 300])],
        pause: Duration::from_millis(100),
    }
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3], &long(content)[..]].concat()
}

fn long(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes(), octets].concat()
}

fn hello(name: &[u8]) -> Vec<u8> {
    let server_name = long(&[&[0], &long(name)[..]].concat());
    let extensions = long(&[&[0, 0], &long(&server_name)[..]].concat());
    let body = [
        &[3, 3],
        &[7; 32][..],
        &[0],
        &long(&[0x13, 0x01]),
        &[1, 0],
        &extensions,
    ]
    .concat();
    record(22, &[&[1, 0], &long(&body)[..]].concat())
}

/// A query for the address of a name, and its answer.
pub(crate) fn dns(labels: &[&[u8]]) -> [Vec<u8>; 2] {
    let mut question = Vec::new();
    for label in labels {
        question.push(label.len() as u8);
        question.extend_from_slice(label);
    }
    question.extend([0, 0, 1, 0, 1]);
    let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &question[..]].concat();
    let answer = [
        &[0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0],
        &question[..],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1],
    ]
    .concat();
    [query, answer]
}

/// Traffic until it is dropped.
pub(crate) struct Traffic {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    streams: Vec<TcpStream>,
}

impl Traffic {
    pub(crate) fn new() -> Self {
        Self {
            ended: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
            streams: Vec::new(),
        }
    }

    fn thread(&mut self, mut again: impl FnMut() -> bool + Send + 'static) {
        let ended = Arc::clone(&self.ended);
        self.threads.push(thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) && again() {}
        }));
    }

    /// A TCP connection from one container to another.
    pub(crate) fn tcp(
        &mut self,
        stage: &Stage,
        (client, server): (usize, usize),
        port: u16,
        talk: Talk,
    ) -> Result<(), Failed> {
        let listener = stage.listener(server, port)?;
        let mut asking = stage.connect(client, stage.address(server, port))?;
        let (mut answering, _) = listener.accept()?;
        for stream in [&asking, &answering] {
            // Said at once, so that what is seen does not depend on timers.
            stream.set_nodelay(true)?;
            self.streams.push(stream.try_clone()?);
        }
        let (said, mut turn) = (talk.clone(), 0);
        self.thread(move || {
            let [request, answer] = said.turn(turn);
            turn += 1;
            hear(&answering, request.len()).is_ok() && answering.write_all(answer).is_ok()
        });
        let mut turn = 0;
        self.thread(move || {
            let [request, answer] = talk.turn(turn);
            turn += 1;
            let went = asking.write_all(request).is_ok() && hear(&asking, answer.len()).is_ok();
            thread::sleep(talk.pause);
            went
        });
        Ok(())
    }

    /// Datagrams from one container to another, with an answer or without.
    pub(crate) fn udp(
        &mut self,
        stage: &Stage,
        (client, server): (usize, usize),
        port: u16,
        (question, answer): (Vec<u8>, Option<Vec<u8>>),
    ) -> Result<(), Failed> {
        let address = stage.address(server, port);
        let (answering, asking) = (stage.udp(server, port)?, stage.udp(client, 0)?);
        answering.set_read_timeout(Some(BREATH))?;
        self.thread(move || {
            let heard = answering.recv_from(&mut [0; 1_024]);
            if let (Ok((_, from)), Some(answer)) = (heard, &answer) {
                let _ = answering.send_to(answer, from);
            }
            true
        });
        self.thread(move || {
            let _ = asking.send_to(&question, address);
            thread::sleep(BREATH / 2);
            true
        });
        Ok(())
    }

    /// Three of TCP, one of UDP, between all three containers.
    pub(crate) fn usual(stage: &Stage) -> Result<Self, Failed> {
        let mut traffic = Self::new();
        traffic.tcp(stage, (1, 0), 80, http())?;
        traffic.tcp(stage, (1, 0), 443, tls(b"pay.example"))?;
        traffic.tcp(stage, (1, 2), 5_432, postgresql())?;
        let [query, answer] = dns(&[b"shop", b"example"]);
        traffic.udp(stage, (1, 0), 53, (query, Some(answer)))?;
        Ok(traffic)
    }
}

fn hear(mut stream: &TcpStream, octets: usize) -> std::io::Result<()> {
    stream.read_exact(&mut vec![0; octets])
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks again and again until it is so.
pub(crate) fn until(
    what: &str,
    mut is_so: impl FnMut() -> Result<bool, Failed>,
) -> Result<(), Failed> {
    let end = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > end {
            return Err(format!("never: {what}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
