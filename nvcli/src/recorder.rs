//! The flight recorder: who keeps the last frames, and who asks for them.
//!
//! Who reads nv-br keeps frames ([`Recorder`]) and answers on a socket in /run/nvcli that only root may use ([`serve`]); `nvcli dump`
//! asks ([`ask`]). The protocol, version 1:
//!
//! - the client sends one line, a [`Request`] as JSON, and nothing more;
//! - the server answers with one line, an [`Answer`](Told) as JSON: the version, its process, and an error in words, or none;
//! - where there is none, a pcapng stream of the frames as they were read from nv-br (marks in their addresses) follows to the end of the connection; its
//!   statistics say how many fell out while it was written.

use std::fs::DirBuilder;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt::PeerCredentials};
use nvcapture::{
    CaptureWriter, FlightRecorder, Frame, FrameMeta, InterfaceDescription, SourceStats, Timestamp,
};
use nvnet::{AttachmentId, BRIDGE, MacAddr, NetnsId};
use serde::{Deserialize, Serialize};

use crate::cmd::flows::wall_clock;
use crate::escape;
use crate::exit::{CliError, Result};

/// Where the sockets are. `NVCLI_RUN_DIR` is for tests, which must not see each other's.
fn directory() -> PathBuf {
    std::env::var_os("NVCLI_RUN_DIR").map_or_else(|| "/run/nvcli".into(), PathBuf::from)
}

const VERSION: u32 = 1;
/// A request longer than this is none.
const LONGEST: u64 = 1 << 20;
/// How long one waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many are answered at the same time: who reads slowly keeps the others waiting only if there are as many of them.
const CLIENTS: usize = 4;
/// Octets of frames that are copied out while the recorder is held: some hundred microseconds' work.
const AT_ONCE: usize = 1 << 20;

/// The last frames, shared by who reads and who answers.
#[derive(Debug)]
pub(crate) struct Recorder(Mutex<FlightRecorder>);

impl Recorder {
    /// For so many octets, and frames not older than `age`.
    pub(crate) fn new(octets: usize, age: Duration) -> Result<Arc<Self>> {
        let recorder = FlightRecorder::new(octets, age).map_err(|error| {
            CliError::new("cannot keep frames")
                .caused_by(&error)
                .remedy("a smaller --keep")
        })?;
        Ok(Arc::new(Self(Mutex::new(recorder))))
    }

    /// Keeps frames; the ring's block may go back after it.
    pub(crate) fn keep<'f>(&self, frames: impl IntoIterator<Item = Frame<'f>>) {
        let mut recorder = self.lock();
        for frame in frames {
            recorder.push(&frame);
        }
    }

    /// Forgets what is too old, also when no frame comes.
    pub(crate) fn expire(&self, now: Timestamp) {
        self.lock().expire(now);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FlightRecorder> {
        // No frame is half kept, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    version: u32,
    /// The network namespace that nv-br is in: device and inode.
    netns: (u64, u64),
    /// The ids of the interfaces wanted.
    ids: Vec<u16>,
    /// Only frames younger than this, by the clock of who keeps them.
    last_millis: Option<u64>,
}

impl Request {
    pub(crate) fn new(
        netns: NetnsId,
        ids: impl IntoIterator<Item = u16>,
        last: Option<Duration>,
    ) -> Self {
        Self {
            version: VERSION,
            netns: (netns.dev, netns.ino),
            ids: ids.into_iter().collect(),
            last_millis: last.map(|last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// What comes before the frames.
#[derive(Debug, Deserialize, Serialize)]
struct Told {
    version: u32,
    pid: u32,
    error: Option<String>,
    /// It keeps frames of another namespace's nv-br.
    elsewhere: bool,
}

/// Frames that come, and from whom.
pub(crate) struct Answer {
    pub(crate) pid: u32,
    pub(crate) frames: BufReader<UnixStream>,
}

/// Answers as long as it lives; ends with it, and its socket goes.
#[derive(Debug)]
pub(crate) struct Served {
    path: PathBuf,
    listener: UnixListener,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = std::fs::remove_file(&self.path);
        // Wakes those who wait for a client.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Answers for `recorder`, which keeps frames of the nv-br in `netns`, in threads that run `prepare` first.
pub(crate) fn serve(
    recorder: &Arc<Recorder>,
    netns: NetnsId,
    prepare: impl Fn() + Copy + Send + 'static,
) -> Result<Served> {
    let directory = directory();
    let path = directory.join(format!("recorder-{}.sock", std::process::id()));
    let failed = |source: io::Error| {
        CliError::new(format!("cannot answer on {}", path.display()))
            .because(source)
            .remedy("run it as root, or without --keep")
    };
    private(&directory).map_err(failed)?;
    // Of processes that were killed. What cannot be deleted is left; others may do the same at the same time.
    for old in sockets(&directory).map_err(failed)? {
        if let Err(error) = UnixStream::connect(&old)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            let _ = std::fs::remove_file(&old);
        }
    }
    // Under another name first: to those who look, one that is bound and not yet listened to looks like one that was left.
    let hidden = directory.join(format!(".{}", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&hidden, &path).map_err(failed)?;
    let mut served = Served {
        path: path.clone(),
        listener,
        over: Arc::new(AtomicBool::new(false)),
        threads: Vec::new(),
    };
    for _ in 0..CLIENTS {
        let listener = served.listener.try_clone().map_err(failed)?;
        let (recorder, over) = (Arc::clone(recorder), Arc::clone(&served.over));
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                prepare();
                for client in listener.incoming() {
                    if over.load(Ordering::Acquire) {
                        break;
                    }
                    let answered =
                        client.and_then(|client| answer(&client, &recorder, netns, &over));
                    if let Err(error) = answered {
                        tracing::warn!("a request for kept frames: {error}");
                    }
                }
            })
            .map_err(failed)?;
        served.threads.push(thread);
    }
    Ok(served)
}

/// Makes the directory, in which nobody else can put or find a socket.
fn private(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let there = std::fs::symlink_metadata(directory)?;
    let ours = nix::unistd::geteuid().as_raw();
    if !there.is_dir() || there.uid() != ours || there.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "{} must be a directory that is uid {ours}'s alone (mode 0700)",
            directory.display()
        )));
    }
    Ok(())
}

fn answer(
    client: &UnixStream,
    recorder: &Recorder,
    netns: NetnsId,
    over: &AtomicBool,
) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut out = BufWriter::with_capacity(1 << 16, client);
    let mut tell = |error: Option<String>, elsewhere: bool| -> io::Result<()> {
        let told = Told {
            version: VERSION,
            pid: std::process::id(),
            error,
            elsewhere,
        };
        serde_json::to_writer(&mut out, &told)?;
        out.write_all(b"\n")?;
        out.flush()
    };
    // The permissions keep others out; this also holds where somebody has changed them.
    let peer = getsockopt(client, PeerCredentials)?;
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        return tell(Some(format!("uid {} may not ask", peer.uid())), false);
    }
    let mut line = String::new();
    BufReader::new(client.take(LONGEST)).read_line(&mut line)?;
    if line.is_empty() {
        // Who only looked whether somebody is there.
        return Ok(());
    }
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return tell(Some(format!("not a request: {error}")), false),
    };
    if request.version != VERSION {
        let (theirs, ours) = (request.version, VERSION);
        return tell(
            Some(format!("version {theirs} was asked for, this is {ours}")),
            false,
        );
    }
    if request.netns != (netns.dev, netns.ino) {
        return tell(Some("it reads another nv-br".into()), true);
    }
    tell(None, false)?;
    write_frames(out, recorder, &request, over)
}

/// Copies frames out in pieces, so that who meters never waits for long, and writes them in between.
fn write_frames(
    out: impl Write,
    recorder: &Recorder,
    request: &Request,
    over: &AtomicBool,
) -> io::Result<()> {
    let failed = |error: nvcapture::Error| match error {
        nvcapture::Error::Io { source, .. } => source,
        other => io::Error::other(other),
    };
    let mut writer = CaptureWriter::new(out, "nvcli flight recorder").map_err(failed)?;
    let bridge = writer
        .add_interface(&InterfaceDescription {
            name: Some(BRIDGE.into()),
            ..InterfaceDescription::default()
        })
        .map_err(failed)?;
    let now = wall_clock().as_nanos();
    let since = request
        .last_millis
        .map_or(0, |last| now.saturating_sub(last.saturating_mul(1_000_000)));
    // Frames are numbered by those that fell out before them.
    let first = |recorder: &FlightRecorder| recorder.stats().no_room + recorder.stats().too_old;
    let (mut at, end, mut next, behind_last) = {
        let recorder = recorder.lock();
        let first = first(&recorder);
        (
            recorder.oldest(),
            recorder.end(),
            first,
            first + recorder.stats().frames,
        )
    };
    let (mut copied, mut piece): (Vec<u8>, Vec<(usize, FrameMeta)>) = Default::default();
    let mut done = SourceStats::default();
    loop {
        copied.clear();
        piece.clear();
        let mut looked = 0;
        {
            let recorder = recorder.lock();
            // Those that have fallen out since the last piece.
            let oldest = first(&recorder).min(behind_last);
            done.dropped += oldest.saturating_sub(next);
            next = next.max(oldest);
            for (frame, behind) in recorder.frames_from(at) {
                if behind > end || looked >= AT_ONCE {
                    break;
                }
                at = behind;
                next += 1;
                // What is left out is looked at too.
                looked += 64;
                let octets = frame.octets();
                if frame.timestamp().as_nanos() >= since && is_of(octets, &request.ids) {
                    copied.extend_from_slice(octets);
                    piece.push((octets.len(), *frame.meta()));
                    looked += octets.len();
                }
            }
        }
        if looked == 0 || over.load(Ordering::Acquire) {
            break;
        }
        let mut rest = &copied[..];
        for (length, meta) in &piece {
            let Some((octets, behind)) = rest.split_at_checked(*length) else {
                break;
            };
            rest = behind;
            writer
                .write(bridge, &Frame::new(octets, *meta))
                .map_err(failed)?;
            done.frames += 1;
        }
    }
    writer
        .write_statistics(bridge, Timestamp::from_nanos(now), &done)
        .map_err(failed)?;
    writer.finish().map_err(failed)?.flush()
}

/// Whether a frame is of one of the interfaces `ids`.
fn is_of(octets: &[u8], ids: &[u16]) -> bool {
    let marked = |address: [u8; 6]| {
        AttachmentId::from_mac(MacAddr(address)).is_some_and(|id| ids.contains(&id.number()))
    };
    let Some((destination, rest)) = octets.split_first_chunk() else {
        return false;
    };
    marked(*destination) || rest.first_chunk().is_some_and(|source| marked(*source))
}

/// Whether a path is what [`serve`] makes.
fn is_recorder(path: &Path) -> bool {
    path.file_name().is_some_and(|name| {
        let name = name.to_string_lossy();
        name.starts_with("recorder-") && name.ends_with(".sock")
    })
}

/// What [`serve`] has made in `directory`, where the agent has a socket of its own.
fn sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_recorder(path))
        .collect();
    paths.sort();
    Ok(paths)
}

/// Asks those who keep frames, until one has those of the namespace that is asked about.
pub(crate) fn ask(request: &Request) -> Result<Answer> {
    let directory = directory();
    let nobody = || {
        CliError::new("nobody keeps the frames of what is attached here")
            .remedy("nvcli agent --keep 64M, or nvcli flows --watch --keep 64M, before what is to be seen happens")
    };
    let failed = |source: io::Error| {
        CliError::new(format!("cannot ask in {}", directory.display()))
            .because(source)
            .remedy("run it as root, as who keeps the frames")
    };
    let paths = match sockets(&directory) {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(nobody()),
        Err(error) => return Err(failed(error)),
    };
    let mut silent = None;
    for path in paths {
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Of a process that was killed; whoever may not delete it leaves it.
                let _ = std::fs::remove_file(&path);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let answer = match asked(stream, request) {
            // Others may have what is asked for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                silent = Some(path);
                continue;
            }
            // It is just ending.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                ) =>
            {
                continue;
            }
            answer => answer.map_err(failed)?,
        };
        match answer {
            (told, _) if told.elsewhere => {}
            (
                Told {
                    pid,
                    error: Some(error),
                    ..
                },
                _,
            ) => {
                return Err(CliError::new(format!("process {pid} gives no frames"))
                    .because(escape::text(&error)));
            }
            (Told { pid, .. }, frames) => return Ok(Answer { pid, frames }),
        }
    }
    Err(silent.map_or_else(nobody, |path| {
        CliError::new("who keeps frames does not answer")
            .because(format!("{} is silent", path.display()))
            .remedy("its number is that of a process: look whether it is stopped, or has as many clients as it answers at a time")
    }))
}

fn asked(stream: UnixStream, request: &Request) -> io::Result<(Told, BufReader<UnixStream>)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut frames = BufReader::with_capacity(1 << 16, stream);
    let mut line = Vec::new();
    (&mut frames).take(LONGEST).read_until(b'\n', &mut line)?;
    Ok((serde_json::from_slice(&line)?, frames))
}

#[cfg(test)]
mod tests {
    use nvcapture::{CaptureFile, Next};

    use super::*;

    const NETNS: NetnsId = NetnsId { dev: 4, ino: 7 };

    fn frame_of(id: u8, leaves: bool, number: u8) -> Vec<u8> {
        let (mark, other) = ([0x4e, 0x65, 0x75, 0x56, 0, id], [2; 6]);
        let addresses = if leaves { [other, mark] } else { [mark, other] };
        [&addresses.concat()[..], &[8, 0, number]].concat()
    }

    fn now() -> u64 {
        wall_clock().as_nanos()
    }

    /// What somebody who sends `line` is told, and the last octets of the frames that follow.
    fn exchange(recorder: &Arc<Recorder>, line: &[u8]) -> (Told, Vec<u8>) {
        let (client, server) = UnixStream::pair().unwrap();
        (&client).write_all(line).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                answer(&server, recorder, NETNS, &AtomicBool::new(false)).unwrap();
                drop(server.shutdown(std::net::Shutdown::Both));
            });
            let mut frames = BufReader::new(&client);
            let mut line = Vec::new();
            frames.read_until(b'\n', &mut line).unwrap();
            let told: Told = serde_json::from_slice(&line).unwrap();
            let mut numbers = Vec::new();
            if told.error.is_none() {
                let mut capture = CaptureFile::new(frames);
                while let Next::Block(block) = capture.next_block().unwrap() {
                    numbers.extend(block.frames().filter_map(|f| f.octets().last().copied()));
                }
                assert_eq!(capture.interfaces()[0].dropped, 0);
            }
            (told, numbers)
        })
    }

    fn line(request: &Request) -> Vec<u8> {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        line
    }

    #[test]
    fn frames_are_chosen_by_interface_and_age() {
        let recorder = Recorder::new(1 << 20, Duration::from_secs(600)).unwrap();
        let minute = 60_000_000_000;
        for (age, id, leaves, number) in [
            (2 * minute, 1, true, 10),
            (2 * minute, 2, true, 11),
            (minute / 2, 1, true, 12),
            (minute / 2, 1, false, 13),
            (minute / 2, 2, false, 14),
            (minute / 2, 3, false, 15),
        ] {
            let octets = frame_of(id, leaves, number);
            let meta = FrameMeta::ethernet(Timestamp::from_nanos(now() - age), 15);
            recorder.keep([Frame::new(&octets, meta)]);
        }
        let ask = |ids: &[u16], last| {
            let request = Request::new(NETNS, ids.iter().copied(), last);
            let (told, numbers) = exchange(&recorder, &line(&request));
            assert_eq!(told.error, None);
            numbers
        };
        assert_eq!(ask(&[1], None), [10, 12, 13]);
        assert_eq!(ask(&[1], Some(Duration::from_secs(60))), [12, 13]);
        assert_eq!(ask(&[2, 3], Some(Duration::from_secs(60))), [14, 15]);
        assert_eq!(ask(&[9], None), [0; 0]);
        assert_eq!(ask(&[1, 2, 3], None), [10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn what_is_no_request_is_told() {
        let recorder = Recorder::new(1 << 20, Duration::from_secs(600)).unwrap();
        let mut later = Request::new(NETNS, [1], None);
        later.version = 2;
        let elsewhere = Request::new(NetnsId { dev: 4, ino: 8 }, [1], None);
        for (line, expected, is_elsewhere) in [
            (b"\n".to_vec(), "not a request", false),
            (b"{\"version\":1}\n".to_vec(), "not a request", false),
            (b"GET / HTTP/1.1\r\n".to_vec(), "not a request", false),
            (line(&later), "version 2", false),
            (line(&elsewhere), "another nv-br", true),
        ] {
            let (told, _) = exchange(&recorder, &line);
            let error = told.error.unwrap();
            assert!(error.contains(expected), "{error}");
            assert_eq!(told.elsewhere, is_elsewhere);
        }
    }

    #[test]
    fn only_recorders_are_asked() {
        for (path, expected) in [
            ("/run/nvcli/recorder-1.sock", true),
            ("/run/nvcli/agent.sock", false),
            ("/run/nvcli/recorder-1.lock", false),
            ("/run/recorder-nvcli/x.sock", false),
        ] {
            assert_eq!(is_recorder(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("nvcli");
        private(&inner).unwrap();
        private(&inner).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(private(&inner).unwrap_err().to_string().contains("0700"));
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(outer.path(), &link).unwrap();
        assert!(private(&link).is_err());
    }
}
