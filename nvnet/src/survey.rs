//! What can be said of a container's interfaces before one of them is attached: which mode is safe, and why.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attach::{self, is_ours};
use crate::identity::{self, Identity};
use crate::link::{self, Link};
use crate::session;
use crate::socket::RouteSocket;
use crate::tc::{self, Hook};
use crate::{AttachmentId, Error, Mode, Netns, Plan, Workload, diag, inventory};

/// One interface of a container, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survey {
    /// Its name.
    pub interface: String,
    /// What it is: `veth`, `macvlan`, `physical`.
    pub kind: String,
    /// Whether it is up.
    pub is_up: bool,
    /// As what it is attached already.
    pub attached: Option<(AttachmentId, Mode)>,
    /// Whether it can be attached inline, or why not.
    pub inline: Result<(), String>,
    /// The link whose frames would be copied in mirror mode: the other end of its veth pair, on the host, or itself; or why not.
    pub mirror: Result<String, String>,
    /// What else is to be known.
    pub remarks: Vec<Remark>,
}

/// Something to be known of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remark {
    /// What.
    pub text: String,
    /// Whether something would stop to work inline.
    pub speaks_against_inline: bool,
}

impl Survey {
    /// The mode to choose: inline where nothing stops to work by it, else mirror mode; `None` when neither can be.
    pub fn advice(&self) -> Option<Mode> {
        let loses = self.remarks.iter().any(|r| r.speaks_against_inline);
        match (&self.inline, &self.mirror) {
            (Ok(()), _) if !loses => Some(Mode::Inline),
            (_, Ok(_)) => Some(Mode::Mirror),
            (Ok(()), Err(_)) => Some(Mode::Inline),
            (Err(_), Err(_)) => None,
        }
    }
}

/// Looks at every Ethernet interface of `target`, seen from `host`; changes nothing.
///
/// # Errors
/// A namespace could not be entered, or the kernel's lists could not be read.
pub fn survey(host: &Netns, target: &Netns) -> Result<Vec<Survey>, Error> {
    let ino = target.id().ino;
    // Without the lock, which every plan that is tried takes for itself.
    let mut attached = inventory::list(host)?;
    attached.retain(|a| a.record.netns_ino == ino);
    let mut socket = RouteSocket::open(target)?;
    let links = link::all(&mut socket)?;
    let listening = Listening::read(target)?;
    let mut all = Vec::new();
    for link in links.iter().filter(|link| link.is_ethernet()) {
        let there = attached.iter().find(|a| {
            let original = a.mode == Mode::Inline && a.record.ifindex == link.index;
            original || a.mode == Mode::Mirror && a.interface == link.name
        });
        if there.is_none() && is_ours(link) {
            continue;
        }
        let try_in = |mode| {
            Plan::new(host, target, Workload::default())
                .mode(mode)
                .interface(&link.name)
                .check()
        };
        let why = |error: Error| match error {
            Error::Unsafe { why, .. } => why,
            Error::Down { .. } => "it is down".into(),
            other => attach::chain(&other),
        };
        let (mut inline, mut mirror) = (Ok(()), Ok(link.name.clone()));
        let mut remarks = Vec::new();
        if there.is_none() {
            inline = try_in(Mode::Inline).map(drop).map_err(why);
            mirror = try_in(Mode::Mirror)
                .map(|plan| plan.observed_at().unwrap_or_default().to_owned())
                .map_err(why);
            remarks = remark(&mut socket, &links, link, &listening)?;
        }
        all.push(Survey {
            interface: there.map_or_else(|| link.name.clone(), |a| a.interface.clone()),
            kind: link.kind.clone().unwrap_or_else(|| "physical".into()),
            is_up: link.is_up(),
            attached: there.map(|a| (a.id, a.mode)),
            inline,
            mirror,
            remarks,
        });
    }
    Ok(all)
}

fn remark(
    socket: &mut RouteSocket,
    links: &[Link],
    link: &Link,
    listening: &Listening,
) -> Result<Vec<Remark>, Error> {
    let mut remarks = Vec::new();
    let mut say = |text: String, speaks_against_inline| {
        remarks.push(Remark {
            text,
            speaks_against_inline,
        });
    };
    if let Some(&bound) = listening.sockets.get(&link.index) {
        say(
            format!("sockets that are bound to it receive nothing inline: {bound}"),
            true,
        );
    }
    if let Some(groups) = listening.groups.get(&link.index) {
        let shown: Vec<String> = groups.iter().take(5).map(ToString::to_string).collect();
        let more = groups.len() - shown.len();
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        say(
            format!(
                "members of multicast groups on it receive nothing inline: {}{more}",
                shown.join(", ")
            ),
            true,
        );
    }
    if let Some(&packet) = listening.packet.get(&link.index) {
        say(
            format!(
                "packet sockets on it stay with the original inline, and see the same frames: {packet}"
            ),
            false,
        );
    }
    let above = identity::stacked_on(links, link);
    if !above.is_empty() {
        let names: Vec<&str> = above.iter().map(|l| &l.name[..]).collect();
        say(format!("it carries {}", names.join(", ")), false);
    }
    if link.has_xdp {
        say(
            "what its XDP program drops or sends on is not seen where the rules are on the interface itself".into(),
            false,
        );
    }
    let foreign = tc::all_filters(socket, link.index)?
        .iter()
        .filter(|filter| !filter.is_ours())
        .count();
    if foreign > 0 {
        say(
            format!("filters of other tools on it, which stay: {foreign}"),
            false,
        );
    }
    for hook in [Hook::Ingress, Hook::Egress] {
        if tc::has_tcx(socket.netns(), link.index, hook)? {
            say(
                format!("a TCX program is attached to its {}", hook.name()),
                false,
            );
        }
    }
    if Identity::read(socket, &[link.index])?.has_temporary() {
        say(
            "temporary IPv6 addresses become ordinary ones inline, until they expire; the kernel makes new ones".into(),
            false,
        );
    }
    if link.is_kind("veth") && session::features(false)?.rename_up.is_err() {
        say(
            "before Linux 6.2 it is down for some milliseconds while it is attached inline".into(),
            false,
        );
    }
    Ok(remarks)
}

/// Who listens on which interface, by its number.
struct Listening {
    sockets: BTreeMap<u32, usize>,
    groups: BTreeMap<u32, Vec<IpAddr>>,
    packet: BTreeMap<u32, usize>,
}

impl Listening {
    fn read(netns: &Netns) -> Result<Self, Error> {
        // What belongs to the thread, not to the process.
        let file = |name: &str| {
            let octets = std::fs::read(format!("/proc/thread-self/net/{name}"));
            // They have names of interfaces, which may be no UTF-8.
            String::from_utf8_lossy(&octets.unwrap_or_default()).into_owned()
        };
        let (igmp, igmp6, packet) =
            netns.within(|| (file("igmp"), file("igmp6"), file("packet")))?;
        let mut groups: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for (link, group) in igmp_groups(&igmp).chain(igmp6_groups(&igmp6)) {
            groups.entry(link).or_default().push(group);
        }
        let mut sockets = BTreeMap::new();
        for link in packet_links(&packet) {
            *sockets.entry(link).or_insert(0) += 1;
        }
        Ok(Self {
            sockets: diag::bound(netns)?,
            groups,
            packet: sockets,
        })
    }
}

/// IPv4 groups that a program joined; every host is in 224.0.0.1.
fn igmp_groups(text: &str) -> impl Iterator<Item = (u32, IpAddr)> {
    let mut link = 0;
    text.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        if !line.starts_with(char::is_whitespace) {
            link = first.parse().unwrap_or(0);
            return None;
        }
        // As the processor has it in memory.
        let group = Ipv4Addr::from(u32::from_str_radix(first, 16).ok()?.to_ne_bytes());
        let by_kernel = [Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::new(224, 0, 0, 106)];
        (!by_kernel.contains(&group)).then_some((link, group.into()))
    })
}

/// IPv6 groups that a program joined, without those that the kernel is in by itself: all nodes, routers and snoopers, and one
/// for each address.
fn igmp6_groups(text: &str) -> impl Iterator<Item = (u32, IpAddr)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let link = words.next()?.parse().ok()?;
        let digits = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        let group = Ipv6Addr::from(digits);
        let by_kernel = matches!(
            group.segments(),
            [0xff01 | 0xff02 | 0xff05, 0, 0, 0, 0, 0, 0, 1 | 2 | 0x6a]
                | [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _]
        );
        (!by_kernel).then_some((link, group.into()))
    })
}

/// The interfaces of packet sockets, each as often as there are.
fn packet_links(text: &str) -> impl Iterator<Item = u32> {
    let link = |line: &str| line.split_whitespace().nth(4)?.parse().ok();
    text.lines()
        .skip(1)
        .filter_map(link)
        .filter(|link| *link != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_programs_are_told_from_those_of_the_kernel() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    12\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let mdns: IpAddr = "224.0.0.251".parse().expect("an address");
        let seen: Vec<_> = igmp_groups(igmp).collect();
        // The file has the words of a little-endian machine.
        if cfg!(target_endian = "little") {
            assert_eq!(seen, [(12, mdns)]);
        }
        let igmp6 = "2    eth0            ff0200000000000000000000000000fb     1 00000004 0\n\
                     2    eth0            ff0200000000000000000001ff000002     1 00000004 0\n\
                     2    eth0            ff020000000000000000000000000001     1 0000000C 0\n\
                     2    eth0            ff010000000000000000000000000001     1 00000008 0\n";
        let mdns6: IpAddr = "ff02::fb".parse().expect("an address");
        assert_eq!(igmp6_groups(igmp6).collect::<Vec<_>>(), [(2, mdns6)]);
        for damaged in ["", "x", "Idx\n1\n\tzz\n", "1 eth0\n"] {
            assert_eq!(
                igmp_groups(damaged).count() + igmp6_groups(damaged).count(),
                0
            );
        }
    }

    #[test]
    fn packet_sockets_are_counted_by_interface() {
        let text = "sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                    ffff8881 3      3    0003   7     1 0      0      4711\n\
                    ffff8882 3      3    0003   0     1 0      0      4712\n";
        assert_eq!(packet_links(text).collect::<Vec<_>>(), [7]);
    }
}
