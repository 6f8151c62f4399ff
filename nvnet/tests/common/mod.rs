//! Tests that need privileges or tools: run where they can, reported as ignored with the reason where they cannot,
//! failures where `NV_TESTS_MUST_RUN` (a list with commas) names what they need.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary takes what it needs"
)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Completion, Failed, Trial};

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces with CAP_NET_ADMIN inside.
    Netns,
    /// Loading eBPF, which only the initial user namespace may.
    Ebpf,
    /// iproute2, as a witness that is not ours.
    Iproute2,
    /// tcpdump, as a witness that is not ours.
    Tcpdump,
    /// tshark, as a witness that is not ours.
    Tshark,
    /// nfdump and its collector, as a reader of IPFIX that is not ours.
    Nfdump,
    /// A Prometheus to be fetched by.
    Prometheus,
    /// A broker of NATS with JetStream.
    Nats,
    /// tmux, as the terminal.
    Tmux,
    /// A Docker engine that answers, and a static busybox to make an image from.
    Docker,
    /// Links of this kind.
    Kind(&'static str),
    /// TCX (Linux 6.6).
    Tcx,
    /// nft, as another tool's firewall.
    Nft,
    /// busybox, whose nslookup is a client of DNS that is not ours.
    Busybox,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Ebpf => "ebpf",
            Self::Iproute2 => "iproute2",
            Self::Tcpdump => "tcpdump",
            Self::Tshark => "tshark",
            Self::Nfdump => "nfdump",
            Self::Prometheus => "prometheus",
            Self::Nats => "nats",
            Self::Tmux => "tmux",
            Self::Docker => "docker",
            Self::Kind(kind) => kind,
            Self::Tcx => "tcx",
            Self::Nft => "nft",
            Self::Busybox => "busybox",
        }
    }

    fn probe(self) -> Result<(), String> {
        let tool =
            |name: &str, arguments: &[&str]| match Command::new(name).args(arguments).output() {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(String::from_utf8_lossy(&output.stderr)
                    .lines()
                    .next()
                    .unwrap_or("failed")
                    .to_owned()),
                Err(error) => Err(format!("{name}: {error}")),
            };
        match self {
            Self::Netns => nvnet::lab::Lab::new(&["probe"])
                .map(drop)
                .map_err(|error| error.to_string()),
            Self::Ebpf => {
                nvnet::Features::probe()
                    .map_err(|error| error.to_string())?
                    .ebpf
            }
            Self::Iproute2 => tool("ip", &["-V"]).and_then(|()| tool("tc", &["-V"])),
            Self::Tcpdump => tool("tcpdump", &["--version"]),
            Self::Tshark => tool("tshark", &["--version"]),
            Self::Nfdump => tool("nfdump", &["-V"]).and_then(|()| tool("nfcapd", &["-V"])),
            Self::Prometheus => tool("prometheus", &["--version"]),
            Self::Nats => tool("nats-server", &["--version"]),
            Self::Kind(kind) => {
                // One after the other: a module that two ask for at the same time can be refused to the second one.
                let mut probed = PROBED.lock().unwrap_or_else(PoisonError::into_inner);
                probed
                    .entry(kind)
                    .or_insert_with(|| probe_kind(kind))
                    .clone()
            }
            Self::Tcx => {
                let lab = nvnet::lab::Lab::new(&["probe"]).map_err(|error| error.to_string())?;
                nvnet::lab::attach_tcx(&lab.host, "lab-br", true).map_err(|error| {
                    std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), ToString::to_string)
                })
            }
            Self::Nft => tool("nft", &["--version"]),
            Self::Tmux => tool("tmux", &["-V"]),
            Self::Busybox => tool("busybox", &["true"]),
            Self::Docker => tool("docker", &["version"]).and_then(|()| tool("busybox", &["true"])),
        }
    }
}

/// Which kinds of links there are, each tried once.
static PROBED: Mutex<BTreeMap<&str, Result<(), String>>> = Mutex::new(BTreeMap::new());

fn probe_kind(kind: &str) -> Result<(), String> {
    let lab = nvnet::lab::Lab::new(&["probe"]).map_err(|error| error.to_string())?;
    let (on, what) = match kind {
        "bond" => ("", kind),
        "vxlan" => ("", "vxlan id 5 dstport 4789"),
        "vlan" => ("link eth0", "vlan id 5"),
        _ => ("link eth0", kind),
    };
    let made = sh_in(
        &lab.containers[0].netns,
        &format!("ip link add {on} name probe0 type {what}"),
    );
    made.map(drop)
        .map_err(|e| e.message().unwrap_or_default().to_owned())
}

/// A test that runs where what it needs is there.
pub fn privileged(
    name: impl Into<String>,
    needs: &'static [Need],
    test: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        for need in needs {
            let Err(why) = need.probe() else { continue };
            let text = format!("needs {}: {why}", need.name());
            let must = std::env::var("NV_TESTS_MUST_RUN").unwrap_or_default();
            if must.split(',').any(|name| name == need.name()) {
                return Err(text.into());
            }
            return Ok(Completion::ignored_with(text));
        }
        test().map(|()| Completion::Completed)
    })
}

/// Runs a shell command, and gives what it printed; a failure is the test's.
pub fn sh(command: &str) -> Result<String, Failed> {
    let output = Command::new("sh").arg("-c").arg(command).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!(
            "{command}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into())
    }
}

/// The same inside a namespace.
pub fn sh_in(netns: &nvnet::Netns, command: &str) -> Result<String, Failed> {
    netns.run(|| sh(command))?
}

/// Fails with both when they are not the same.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, left: T, right: T) -> Result<(), Failed> {
    if left == right {
        Ok(())
    } else {
        Err(format!("{what}:\n  left:  {left:?}\n  right: {right:?}").into())
    }
}

/// Fails when it does not hold.
pub fn ensure(holds: bool, what: impl Into<String>) -> Result<(), Failed> {
    if holds {
        Ok(())
    } else {
        Err(what.into().into())
    }
}

/// What a person would look at to see whether a namespace's network is as it was: links, addresses, routes, rules,
/// permanent neighbours, proxies, queueing disciplines, filters and per-interface settings, as iproute2 and /proc show
/// them. Counters, lifetimes and what neighbours come and go are left out.
pub fn picture(netns: &nvnet::Netns) -> Result<String, Failed> {
    sh_in(
        netns,
        r#"
        # Few processes, since starting one is what takes longest where kernels are emulated.
        printf '%s\n' 'link show' 'addr show' 'nexthop show' | ip -force -d -o -batch - 2>/dev/null |
            sed -E 's/^[0-9]+: //; s/_timer +[0-9.]+/_timer/g; s/valid_lft [0-9]+sec preferred_lft [0-9]+sec/with a lifetime/'
        for family in -4 -6; do
            printf '%s\n' 'rule show' 'neigh show nud permanent' 'neigh show proxy' | ip $family -batch -
            ip $family route show table all | sed -E 's/ expires [0-9]+sec//' | sort
        done
        qdiscs=$(tc qdisc show)
        echo "$qdiscs"
        for link in $(echo "$qdiscs" | sed -nE 's/^qdisc (clsact|ingress) .* dev ([^ ]+) .*/\2/p'); do
            for hook in ingress egress; do
                echo "$link $hook:"
                tc filter show dev $link $hook 2>/dev/null
            done
        done
        cd /proc/sys/net && grep -rs . ipv4/conf ipv6/conf ipv4/neigh ipv6/neigh | sort
        "#,
    )
}

/// An error with its causes, as a test's failure.
pub fn chain(error: nvnet::Error) -> Failed {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text.into()
}

/// Fails with the lines that are in one picture only.
pub fn same_picture(what: &str, before: &str, after: &str) -> Result<(), Failed> {
    if before == after {
        return Ok(());
    }
    let only = |of: &str, other: &str, sign: char| {
        let there: std::collections::BTreeSet<&str> = other.lines().collect();
        of.lines()
            .filter(|line| !there.contains(line))
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    Err(format!(
        "{what} is not as it was:\n{}{}",
        only(before, after, '-'),
        only(after, before, '+')
    )
    .into())
}
