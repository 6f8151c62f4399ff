//! Network namespaces by handle: opened once, entered only by threads that end afterwards.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{DirEntry, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";

/// Which namespace a handle stands for: equal when it is the same one, whatever way it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device of the namespace file system.
    pub dev: u64,
    /// Inode there; unique among the namespaces that live.
    pub ino: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// An open network namespace; it lives at least as long as the handle.
#[derive(Clone)]
pub struct Netns {
    file: Arc<File>,
    label: Arc<str>,
    id: NetnsId,
}

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open("the host".into(), Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// There is no such process, or it may not be looked at.
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        Self::open(
            format!("pid:{pid}"),
            &PathBuf::from(format!("/proc/{pid}/ns/net")),
        )
    }

    /// The namespace called `name` by `ip netns`.
    ///
    /// # Errors
    /// There is none of that name, or the name would lead elsewhere.
    pub fn named(name: &str) -> Result<Self, Error> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Error::Netns {
                op: "open",
                netns: format!("netns:{}", name.escape_debug()),
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a name has no `/` and is not empty",
                ),
            });
        }
        Self::open(format!("netns:{name}"), &Path::new(NAMED).join(name))
    }

    /// The namespace behind a file such as `/run/docker/netns/1a2b3c` or `/proc/4711/ns/net`.
    ///
    /// # Errors
    /// The file is not there or is no network namespace.
    pub fn at_path(path: &Path) -> Result<Self, Error> {
        Self::open(format!("netns:{}", path.display()), path)
    }

    /// A new namespace without a name, gone when its last handle is closed and its last process ends.
    pub fn nameless(label: &str) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Netns {
            op: "create",
            netns: label.into(),
            source,
        };
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
                    Self::open(label.into(), Path::new("/proc/thread-self/ns/net"))
                })
                .join()
        });
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn open(label: String, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Netns {
            op: "open",
            netns: label.clone(),
            source,
        };
        // Any path can be given: a pipe would be waited for until somebody writes into it.
        let mut how = OpenOptions::new();
        how.read(true).custom_flags(libc::O_NONBLOCK);
        let file = how.open(path).map_err(failed)?;
        let stat = file.metadata().map_err(failed)?;
        // The kernel says which kind of namespace it is; anything else (a plain file, a user namespace) is refused here
        // and not at setns(2), where the message would be "invalid argument".
        match crate::sys::namespace_type(file.as_fd()) {
            Ok(libc::CLONE_NEWNET) => {}
            _ => {
                let why = io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "that file is no network namespace",
                );
                return Err(failed(why));
            }
        }
        Ok(Self {
            file: Arc::new(file),
            id: NetnsId {
                dev: stat.dev(),
                ino: stat.ino(),
            },
            label: label.into(),
        })
    }

    /// Whether the calling thread is inside.
    fn is_current(&self) -> bool {
        let current = std::fs::metadata("/proc/thread-self/ns/net");
        current.is_ok_and(|stat| (stat.dev(), stat.ino()) == (self.id.dev, self.id.ino))
    }

    /// The same namespace under another name for messages.
    pub fn labelled(mut self, label: &str) -> Self {
        self.label = label.into();
        self
    }

    /// How it is called in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Moves the calling thread inside, for good: for threads that work on containers, one after the other, and then end.
    pub(crate) fn stay(&self) -> Result<(), Error> {
        // Where one is already one may stay without a privilege.
        if self.is_current() {
            return Ok(());
        }
        setns(&*self.file, CloneFlags::CLONE_NEWNET).map_err(|e| Error::Netns {
            op: "enter",
            netns: self.label.to_string(),
            source: e.into(),
        })
    }

    /// As [`run`](Self::run), for what leaves its thread where it is: without another thread when this one is inside.
    pub(crate) fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        if self.is_current() {
            Ok(f())
        } else {
            self.run(f)
        }
    }

    /// Runs `f` inside, on a thread of its own that then ends, so that no thread has to find its way back.
    ///
    /// # Errors
    /// The namespace may not be entered (CAP_SYS_ADMIN is needed).
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.stay()?;
                Ok(f())
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Netns {}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({}, {})", self.label, self.id)
    }
}

/// Every namespace that a process is in or a mount holds, each once. What only an open file holds is not among them.
pub(crate) fn all() -> Vec<Netns> {
    let want = Want::default();
    look_around(&want);
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    seen.iter()
        .filter_map(|(id, path)| open_if(path, *id, &want, Netns::at_path))
        .collect()
}

/// The folders of all processes.
pub(crate) fn pids() -> impl Iterator<Item = PathBuf> {
    pids_or(&Want::default())
}

fn pids_or(want: &Want) -> impl Iterator<Item = PathBuf> + use<> {
    let is_pid = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
    };
    want.entries(Path::new("/proc"))
        .map(|entry| entry.path())
        .filter(is_pid)
}

/// Where namespaces are mounted.
fn mounted(want: &Want) -> Vec<PathBuf> {
    let mounts = want.of(std::fs::read("/proc/self/mountinfo"));
    let mounts = mounts.unwrap_or_default();
    // Octets: any mount point may be no UTF-8.
    let lines = mounts.split(|&b| b == b'\n');
    let nsfs = lines.filter(|line| line.windows(8).any(|part| part == b" - nsfs "));
    nsfs.filter_map(|line| line.split(|&b| b == b' ').nth(4))
        .map(unescape_mount)
        .collect()
}

/// Whether something could not be looked at for want of files that may be opened. Asked right then: others may have closed theirs later.
#[derive(Debug, Default)]
struct Want(Cell<Option<i32>>);

impl Want {
    /// What was opened, if it was.
    fn of<T>(&self, opened: io::Result<T>) -> Option<T> {
        opened.map_err(|error| self.note(&error)).ok()
    }

    /// What is in a folder.
    fn entries(&self, folder: &Path) -> impl Iterator<Item = DirEntry> + use<> {
        let entries = self.of(std::fs::read_dir(folder));
        entries.into_iter().flatten().flatten()
    }

    fn note(&self, error: &io::Error) {
        let errno = error.raw_os_error();
        if matches!(errno, Some(libc::EMFILE | libc::ENFILE)) {
            self.0.set(errno);
        }
    }
}

/// Looks for a living namespace by its id: in processes, in mounts, at last in open files.
///
/// An inode is not used again while its namespace lives, so a match is the right one as long as something that
/// belongs to the namespace (a veth end of ours) is known to be there.
///
/// # Errors
/// Nothing was found, and no more files could be opened meanwhile, which hides whatever is there.
pub(crate) fn find(id: NetnsId, likely_pid: Option<u32>) -> io::Result<Option<Netns>> {
    let want = Want::default();
    let found = search(id, likely_pid, &want);
    match want.0.get() {
        Some(errno) if found.is_none() => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(found),
    }
}

fn search(id: NetnsId, likely_pid: Option<u32>, want: &Want) -> Option<Netns> {
    let same = |path: &Path| open_if(path, id, want, Netns::at_path);
    if let Some(found) = likely_pid.and_then(|pid| same(Path::new(&format!("/proc/{pid}/ns/net"))))
    {
        return Some(found);
    }
    if let Some(found) = seen(id).and_then(|path| same(&path)) {
        return Some(found);
    }
    look_around(want);
    if let Some(found) = seen(id).and_then(|path| same(&path)) {
        return Some(found);
    }
    pids_or(want).find_map(|pid| {
        // Threads can be elsewhere than their process, and a handle can be all that holds a namespace.
        let held = want
            .entries(&pid.join("fd"))
            .find_map(|fd| same(&fd.path()));
        held.or_else(|| {
            want.entries(&pid.join("task"))
                .find_map(|task| same(&task.path().join("ns/net")))
        })
    })
}

/// Where namespaces were when they were last looked for, so that to find a thousand of them takes one look around. Only a
/// hint: who opens such a path compares what is there.
static SEEN: Mutex<BTreeMap<NetnsId, PathBuf>> = Mutex::new(BTreeMap::new());

fn seen(id: NetnsId) -> Option<PathBuf> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.get(&id).cloned()
}

/// Fills [`SEEN`] with what processes are in and mounts hold.
fn look_around(want: &Want) {
    let mut found = BTreeMap::new();
    for path in pids_or(want)
        .map(|pid| pid.join("ns/net"))
        .chain(mounted(want))
    {
        if let Ok(stat) = std::fs::metadata(&path) {
            let id = NetnsId {
                dev: stat.dev(),
                ino: stat.ino(),
            };
            found.entry(id).or_insert(path);
        }
    }
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = found;
}

/// What `open` makes of `path`, if that is the namespace `id`.
///
/// Looked at twice: only what may be it is opened, and what was opened is compared again, since a process may have ended, moved or closed
/// its file in between, and another namespace have come in its place.
fn open_if(
    path: &Path,
    id: NetnsId,
    want: &Want,
    open: impl FnOnce(&Path) -> Result<Netns, Error>,
) -> Option<Netns> {
    let stat = std::fs::metadata(path).ok()?;
    if (stat.dev(), stat.ino()) != (id.dev, id.ino) {
        return None;
    }
    match open(path) {
        Ok(netns) => Some(netns).filter(|netns| netns.id() == id),
        Err(error) => {
            if let Error::Netns { source, .. } = &error {
                want.note(source);
            }
            None
        }
    }
}

/// mountinfo writes blanks and backslashes as `\040` and the like.
fn unescape_mount(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &after[3..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        for (field, path) in [
            (&br"/run/netns/a\040b\134"[..], &br"/run/netns/a b\"[..]),
            (br"/plain\", br"/plain\"),
            (br"/not\9octal", br"/not\9octal"),
            (b"/run/usb-\xe9t\xe9", b"/run/usb-\xe9t\xe9"),
        ] {
            assert_eq!(unescape_mount(field).as_os_str().as_bytes(), path);
        }
    }

    #[test]
    fn names_do_not_lead_elsewhere() {
        for name in ["", ".", "..", "../x", "a/b"] {
            let error = Netns::named(name).expect_err("refused");
            assert!(
                matches!(error, Error::Netns { op: "open", .. }),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let error = Netns::at_path(Path::new("/proc/self/ns/uts")).expect_err("refused");
        assert!(
            std::error::Error::source(&error)
                .is_some_and(|s| s.to_string().contains("no network namespace"))
        );
        assert!(Netns::at_path(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_pipe_without_a_writer_is_refused_at_once() {
        let name = format!("nvnet-pipe-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let (done, outcome) = std::sync::mpsc::channel();
        let opened = path.clone();
        std::thread::spawn(move || done.send(Netns::at_path(&opened).map(drop)));
        let outcome = outcome.recv_timeout(std::time::Duration::from_secs(10));
        std::fs::remove_file(&path).expect("it was made");
        assert!(outcome.expect("it does not wait").is_err());
    }

    #[test]
    fn a_namespace_that_takes_the_place_of_another_is_not_taken_for_it() {
        let path = Path::new("/proc/self/ns/net");
        let own = Netns::at_path(path).expect("own namespace");
        let want = Want::default();
        assert_eq!(
            open_if(path, own.id(), &want, Netns::at_path),
            Some(own.clone())
        );
        // Between the look and the opening, the file became another.
        let mut other = own.clone();
        other.id.ino += 1;
        assert_eq!(open_if(path, own.id(), &want, |_| Ok(other)), None);
        assert_eq!(want.0.get(), None);
        // It could not be opened: what for is known.
        for (errno, noted) in [(libc::ENOENT, None), (libc::EMFILE, Some(libc::EMFILE))] {
            let refused = |_: &Path| {
                Err(Error::Netns {
                    op: "open",
                    netns: String::new(),
                    source: io::Error::from_raw_os_error(errno),
                })
            };
            assert_eq!(open_if(path, own.id(), &want, refused), None);
            assert_eq!(want.0.get(), noted);
        }
    }

    #[test]
    fn the_own_namespace_is_found_by_its_id() {
        let own = Netns::current().expect("own namespace");
        let find = |id| find(id, None).expect("files enough");
        assert_eq!(find(own.id()).map(|n| n.id()), Some(own.id()));
        let nobodys = NetnsId {
            dev: own.id().dev,
            ino: 1,
        };
        assert_eq!(find(nobodys), None);
    }
}
