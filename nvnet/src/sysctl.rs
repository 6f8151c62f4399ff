//! Per-interface sysctls: those of the interface that is replaced are given to the one that replaces it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::{Error, Netns};

/// Where the kernel keeps settings of the network.
const NET: &str = "/proc/sys/net";
/// Where below it those of interfaces are.
const TREES: [&str; 4] = ["ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"];

/// Not copied: made from the link itself, secret, set over netlink, or the same thing under its older name.
const LEFT_OUT: [&str; 6] = [
    "addr_gen_mode",
    "base_reachable_time",
    "mc_forwarding",
    "mtu",
    "retrans_time",
    "stable_secret",
];

/// Those of them that a link tells by itself ([`Link::settings`](crate::link::Link)), and those that it does not.
pub(crate) const OF_ADDRESSES: [usize; 2] = [0, 1];
pub(crate) const OF_NEIGHBOURS: [usize; 2] = [2, 3];
pub(crate) const ALL: [usize; 4] = [0, 1, 2, 3];

/// Settings of one interface: path below the tree, and value.
pub(crate) type Settings = BTreeMap<(usize, String), String>;

/// For a link that nothing but our rules sends through: the kernel says nothing on it by itself.
pub(crate) fn silence(netns: &Netns, interface: &str) -> Result<(), Error> {
    let silent = Settings::from([((1, "disable_ipv6".to_owned()), "1".to_owned())]);
    netns.within(|| write(&folders(interface, &OF_ADDRESSES), interface, &silent))?
}

/// Reads the settings of `interface` in some of the trees; what cannot be read (a secret that is not set) is left out.
pub(crate) fn read(netns: &Netns, interface: &str, trees: &[usize]) -> Result<Settings, Error> {
    netns.within(|| values(&mut folders(interface, trees)))
}

/// Gives the interface `to` those of `from`, in these trees, in which the two differ. Returns what `from` has.
pub(crate) fn copy(
    netns: &Netns,
    from: &str,
    to: &str,
    trees: &[usize],
) -> Result<Settings, Error> {
    netns.within(|| {
        let wanted = values(&mut folders(from, trees));
        let mut folders = folders(to, trees);
        let present = values(&mut folders);
        let differs = |(key, value): &(&(usize, String), &String)| {
            present.get(key).is_some_and(|there| there != *value)
        };
        let missing = wanted.iter().filter(differs);
        let missing = missing.map(|(key, value)| (key.clone(), value.clone()));
        write(&folders, to, &missing.collect())?;
        Ok(wanted)
    })?
}

fn values(folders: &mut [(usize, Dir)]) -> Settings {
    let mut all = Settings::new();
    for (tree, folder) in folders {
        let names: Vec<String> = folder
            .iter()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.') && !LEFT_OUT.contains(&&name[..]))
            .collect();
        for name in names {
            if let Some(value) = value(folder, &name) {
                all.insert((*tree, name), value);
            }
        }
    }
    all
}

/// Where the settings of `interface` are, in the namespace of the calling thread.
///
/// Files are opened from there, by name: the kernel looks for `/proc/sys/net` among those of all namespaces, one after
/// the other, which takes as long as there are containers.
fn folders(interface: &str, trees: &[usize]) -> Vec<(usize, Dir)> {
    let Ok(net) = File::open(NET) else {
        return vec![];
    };
    let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = |tree: &str| {
        let path = Path::new(tree).join(interface);
        Dir::openat(&net, &path, how, Mode::empty()).ok()
    };
    let trees = trees.iter();
    trees
        .filter_map(|&tree| Some((tree, open(TREES[tree])?)))
        .collect()
}

fn at(folder: &Dir, name: &str, how: OFlag) -> io::Result<OwnedFd> {
    Ok(openat(folder, name, how | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// One setting, by one read: these files give all they have at once, and there are well over a hundred of them.
fn value(folder: &Dir, name: &str) -> Option<String> {
    let file = at(folder, name, OFlag::O_RDONLY).ok()?;
    let mut octets = [0; 256];
    let len = nix::unistd::read(&file, &mut octets).ok()?;
    let text = std::str::from_utf8(octets.get(..len)?).ok()?;
    Some(text.trim_end().to_owned())
}

fn write(folders: &[(usize, Dir)], interface: &str, settings: &Settings) -> Result<(), Error> {
    for ((tree, name), value) in settings {
        let Some((_, folder)) = folders.iter().find(|(of, _)| of == tree) else {
            continue;
        };
        let written = at(folder, name, OFlag::O_WRONLY)
            .and_then(|file| File::from(file).write_all(value.as_bytes()));
        match written {
            Ok(()) => {}
            // Some are shown and cannot be set on every kernel.
            Err(e)
                if e.kind() == io::ErrorKind::PermissionDenied
                    && nix::unistd::geteuid().is_root() =>
            {
                tracing::debug!(tree = TREES[*tree], name, "read-only");
            }
            Err(source) => {
                return Err(Error::Proc {
                    op: "write",
                    path: Path::new(NET).join(TREES[*tree]).join(interface).join(name),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Whether the kernel has IPv6 at all; looked up until it has, as it keeps it then.
pub(crate) fn has_ipv6(netns: &Netns) -> Result<bool, Error> {
    static SEEN: AtomicBool = AtomicBool::new(false);
    if !SEEN.load(Ordering::Relaxed) {
        let there = netns.within(|| Path::new(NET).join(TREES[1]).exists())?;
        SEEN.store(there, Ordering::Relaxed);
    }
    Ok(SEEN.load(Ordering::Relaxed))
}

/// The settings as lines, for comparing.
pub(crate) fn describe(settings: &Settings) -> impl Iterator<Item = String> {
    settings.iter().map(|((tree, name), value)| {
        format!("sysctl {}.{name} = {value}", TREES[*tree].replace('/', "."))
    })
}
