//! JSON lines to a file that is rotated.
//!
//! The file holds whole lines at every moment: what a full disk cut off is taken back, and written again when there is room.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nvflow::FlowRecord;

use super::config::FileTo;
use super::lane::{Exporter, Lane, Trouble};
use super::lines::Pending;

pub(super) struct File {
    to: FileTo,
    open: Option<Opened>,
    pending: Pending,
}

struct Opened {
    file: fs::File,
    /// Octets in it, all of whole lines.
    length: u64,
    born: SystemTime,
    /// What it was on disk when it was opened.
    identity: (u64, u64),
}

impl Opened {
    fn new(path: &Path) -> io::Result<Self> {
        // Who talks to whom is not for everybody.
        let file = OpenOptions::new()
            .append(true)
            .read(true)
            .create(true)
            .mode(0o640)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut opened = Self {
            length: metadata.len(),
            born: if metadata.len() > 0 {
                metadata.created().or_else(|_| metadata.modified())?
            } else {
                SystemTime::now()
            },
            identity: (metadata.dev(), metadata.ino()),
            file,
        };
        opened.end_line()?;
        Ok(opened)
    }

    /// Ends a line that somebody was stopped in the middle of.
    fn end_line(&mut self) -> io::Result<()> {
        let mut last = [b'\n'];
        if self.length > 0 {
            self.file.read_exact_at(&mut last, self.length - 1)?;
        }
        if last != [b'\n'] {
            self.file.write_all(b"\n")?;
            self.length += 1;
        }
        Ok(())
    }

    fn age(&self) -> Duration {
        self.born.elapsed().unwrap_or_default()
    }

    /// Whether the path still leads to it: others rotate files too.
    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == self.identity)
    }
}

impl File {
    /// Opens the file, or makes it.
    pub(super) fn open(to: &FileTo) -> io::Result<Self> {
        Ok(Self {
            open: Some(Opened::new(&to.path)?),
            to: to.clone(),
            pending: Pending::new(),
        })
    }

    fn write(&mut self, lane: &Lane) -> io::Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| !open.is_at(&self.to.path))
        {
            self.open = None;
        }
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => self.open.insert(Opened::new(&self.to.path)?),
            };
            lane.connected();
            let is_old = self.to.max_age.is_some_and(|most| open.age() >= most);
            let is_full = open.length + self.pending.next_line() > self.to.max_size;
            if open.length > 0 && (is_old || (is_full && !self.pending.is_empty())) {
                rotate(&open.file, &self.to.path, self.to.keep)?;
                self.open = None;
                continue;
            }
            if self.pending.is_empty() {
                return Ok(());
            }
            let room = self.to.max_size.saturating_sub(open.length);
            let wrote = match open.file.write(self.pending.next(room)) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                wrote => wrote,
            };
            match wrote {
                Ok(octets) => {
                    let (records, whole) = self.pending.wrote(octets);
                    open.length += whole as u64;
                    lane.exported(records, whole);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let length = open.length;
                    if self.pending.rewind() > 0 {
                        open.file.set_len(length)?;
                    }
                    return Err(error);
                }
            }
        }
    }
}

/// `path` with `.number` behind it.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// Moves `path` to `path.1`, that to `path.2` and so on; what is beyond `keep` is gone.
fn rotate(file: &fs::File, path: &Path, keep: u32) -> io::Result<()> {
    file.sync_all()?;
    if keep == 0 {
        return fs::remove_file(path);
    }
    let used = (1..keep)
        .take_while(|number| numbered(path, *number).exists())
        .count() as u32;
    for number in (1..=used).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    fs::rename(path, numbered(path, 1))?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

impl Exporter for File {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        self.pending.fill(records);
        self.write(lane).map_err(|error| {
            let what = format!("cannot write {}", self.to.path.display());
            Trouble::new(what, error)
        })
    }

    fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    fn close(
        &mut self,
        _records: &mut VecDeque<Arc<FlowRecord>>,
        _lane: &Lane,
    ) -> Result<(), Trouble> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        open.file.sync_all().map_err(|error| {
            let what = format!("cannot settle {} on disk", self.to.path.display());
            Trouble::new(what, error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::lane::tests::{lane, record};

    struct Fixture {
        _directory: tempfile::TempDir,
        to: FileTo,
        lane: Lane,
    }

    impl Fixture {
        fn new(max_size: u64, keep: u32) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            Self {
                to: FileTo {
                    path: directory.path().join("flows.json"),
                    max_size,
                    max_age: None,
                    keep,
                },
                _directory: directory,
                lane: lane(100, Duration::ZERO),
            }
        }

        fn export(&self, file: &mut File, ports: std::ops::Range<u16>) {
            let mut records = ports.map(|port| Arc::new(record(port))).collect();
            file.export(&mut records, &self.lane).expect("written");
            assert!(records.is_empty() && !file.is_busy());
        }

        /// The ports in the file of this number.
        fn ports(&self, number: u32) -> Option<Vec<u64>> {
            let path = match number {
                0 => self.to.path.clone(),
                number => numbered(&self.to.path, number),
            };
            let text = fs::read_to_string(path).ok()?;
            assert!(text.is_empty() || text.ends_with('\n'));
            let port = |line: &str| {
                let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
                value["sourceTransportPort"].as_u64().expect("a port")
            };
            Some(text.lines().map(port).collect())
        }
    }

    #[test]
    fn files_are_rotated_between_lines() {
        let fixture = Fixture::new(4096, 3);
        let mut file = File::open(&fixture.to).expect("opened");
        fixture.export(&mut file, 1000..1100);
        fixture.export(&mut file, 1100..1101);
        let files: Vec<_> = (0..6).map(|number| fixture.ports(number)).collect();
        assert!(files[..4].iter().all(Option::is_some), "{files:?}");
        assert_eq!(files[4..], [None, None]);
        let kept: Vec<u64> = files.iter().rev().flatten().flatten().copied().collect();
        let first = *kept.first().expect("kept");
        assert_eq!(kept, (first..=1100).collect::<Vec<_>>());
        for number in 1..4 {
            let length = numbered(&fixture.to.path, number)
                .metadata()
                .expect("there")
                .len();
            assert!((2000..=4096).contains(&length), "{length}");
        }
        assert_eq!(fixture.lane.stats().exported, 101);
    }

    #[test]
    fn an_old_file_is_rotated_and_none_is_kept() {
        let mut fixture = Fixture::new(1 << 20, 0);
        fixture.to.max_age = Some(Duration::ZERO);
        let mut file = File::open(&fixture.to).expect("opened");
        fixture.export(&mut file, 0..1);
        // All that was written at once is in one file, which is too old the moment it is.
        assert_eq!(fixture.ports(0), Some(vec![]));
        assert_eq!(fixture.ports(1), None);
    }

    #[test]
    fn what_others_moved_is_left_to_them_and_what_they_cut_is_ended() {
        let fixture = Fixture::new(1 << 20, 3);
        fs::write(&fixture.to.path, "{\"sourceTransportPort\":1}\n{}").expect("written");
        let mut file = File::open(&fixture.to).expect("opened");
        fixture.export(&mut file, 7..8);
        let text = fs::read_to_string(&fixture.to.path).expect("there");
        assert_eq!(text.lines().nth(1), Some("{}"));
        assert_eq!(text.lines().count(), 3);
        let moved = fixture.to.path.with_extension("moved");
        fs::rename(&fixture.to.path, &moved).expect("moved");
        fixture.export(&mut file, 8..10);
        assert_eq!(fixture.ports(0), Some(vec![8, 9]));
        assert_eq!(fs::read_to_string(&moved).expect("there"), text);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let mut fixture = Fixture::new(1 << 20, 3);
        for path in ["/dev/null", "/", "/nonexistent/file"] {
            fixture.to.path = path.into();
            assert!(File::open(&fixture.to).is_err(), "{path}");
        }
    }
}
