//! Per-interface sysctls: those of the interface that is replaced are given to the one that replaces it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Netns};

/// Where the kernel keeps settings by interface.
const TREES: [&str; 4] = [
    "/proc/sys/net/ipv4/conf",
    "/proc/sys/net/ipv6/conf",
    "/proc/sys/net/ipv4/neigh",
    "/proc/sys/net/ipv6/neigh",
];

/// Not copied: made from the link itself, secret, set over netlink, or the same thing under its older name.
const LEFT_OUT: [&str; 6] = [
    "addr_gen_mode",
    "base_reachable_time",
    "mc_forwarding",
    "mtu",
    "retrans_time",
    "stable_secret",
];

/// The settings of one interface: path below the tree, and value.
pub(crate) type Settings = BTreeMap<(usize, String), String>;

/// Reads the settings of `interface`; what cannot be read (a secret that is not set) is left out.
pub(crate) fn read(netns: &Netns, interface: &str) -> Result<Settings, Error> {
    netns.run(|| {
        let mut all = Settings::new();
        for (tree, root) in TREES.iter().enumerate() {
            let Ok(entries) = std::fs::read_dir(Path::new(root).join(interface)) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if LEFT_OUT.contains(&&name[..]) {
                    continue;
                }
                if let Ok(value) = std::fs::read_to_string(entry.path()) {
                    all.insert((tree, name), value.trim_end().to_owned());
                }
            }
        }
        all
    })
}

/// Gives `interface` those of `settings` in which it differs.
pub(crate) fn write(netns: &Netns, interface: &str, settings: &Settings) -> Result<(), Error> {
    let present = read(netns, interface)?;
    netns.run(|| {
        for ((tree, name), value) in settings {
            let key = (*tree, name.clone());
            if present.get(&key).is_none_or(|there| there == value) {
                continue;
            }
            let path: PathBuf = Path::new(TREES[*tree]).join(interface).join(name);
            match std::fs::write(&path, value) {
                Ok(()) => {}
                // Some are shown and cannot be set on every kernel.
                Err(e)
                    if e.kind() == io::ErrorKind::PermissionDenied
                        && nix::unistd::geteuid().is_root() =>
                {
                    tracing::debug!(path = %path.display(), "read-only");
                }
                Err(source) => {
                    return Err(Error::Proc {
                        op: "write",
                        path,
                        source,
                    });
                }
            }
        }
        Ok(())
    })?
}

/// One value of `/proc/sys/net/ipv4/conf/NAME/rp_filter`, 0 when there is none.
pub(crate) fn rp_filter(netns: &Netns, interface: &str) -> Result<u32, Error> {
    netns.run(|| {
        let path = format!("{}/{interface}/rp_filter", TREES[0]);
        std::fs::read_to_string(path)
            .ok()
            .and_then(|v| v.trim().parse().ok())
            .unwrap_or(0)
    })
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_ipv6(netns: &Netns) -> Result<bool, Error> {
    netns.run(|| Path::new(TREES[1]).exists())
}

/// The settings as lines, for comparing.
pub(crate) fn describe(settings: &Settings) -> impl Iterator<Item = String> {
    settings.iter().map(|((tree, name), value)| {
        format!(
            "sysctl {}.{name} = {value}",
            TREES[*tree]
                .trim_start_matches("/proc/sys/net/")
                .replace('/', ".")
        )
    })
}
