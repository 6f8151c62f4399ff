//! The exchange of two links' places in a container, there and back.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_route::tc::TcActionType;

use crate::features::Features;
use crate::identity::Identity;
use crate::link;
use crate::socket::{Request, RouteSocket};
use crate::tc::{self, Classifier, Filter, Hook, Mirred};
use crate::{AttachmentId, Error, bpf};

/// How long the kernel may take to make IPv6 addresses usable; it takes about a millisecond.
const IPV6_PATIENCE: Duration = Duration::from_secs(5);

/// Two links of a container: its own, and ours that takes its place.
pub(crate) struct Switch {
    /// The container's name for its interface.
    pub(crate) name: String,
    /// What the original is called while attached.
    pub(crate) ex: String,
    pub(crate) original: u32,
    pub(crate) new: AttachmentId,
    pub(crate) new_index: u32,
    /// The original's alias.
    pub(crate) alias: Option<String>,
    /// Length of the transmit queue that the original has when it is in its place.
    pub(crate) txqlen: u32,
    pub(crate) addr_gen_mode: Option<u8>,
    pub(crate) had_clsact: bool,
    /// The preference of the rule on the original.
    pub(crate) pref: u16,
    pub(crate) means: Means,
}

/// What this kernel offers for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    /// A link can be renamed while it is up.
    pub(crate) rename_up: bool,
    /// There is a classifier made for matching all.
    pub(crate) matchall: bool,
}

impl From<&Features> for Means {
    fn from(features: &Features) -> Self {
        Self {
            rename_up: features.rename_up.is_ok(),
            matchall: features.cls_matchall.is_ok(),
        }
    }
}

/// Which of the two has the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Original,
    New,
}

impl Switch {
    /// Puts the new link in the original's place; `record` is written on the original.
    ///
    /// Where links can be renamed while they are up this is one message. Where not, each link is renamed while the other
    /// one has the addresses, which takes five: the container has its network all the time but for the moments in which
    /// the original is down.
    ///
    /// Returns from when to when the kernel worked on it.
    pub(crate) fn forward(
        &self,
        target: &mut RouteSocket,
        identity: &Identity,
        record: &str,
    ) -> Result<Range<Instant>, Error> {
        let mut mark = vec![link::alias(self.original, &self.ex, record)];
        let mut end = Vec::new();
        if let Some(mode) = self.addr_gen_mode {
            mark.push(link::addr_gen_mode(
                self.original,
                &self.ex,
                link::ADDR_GEN_MODE_NONE,
            ));
            end.push(link::addr_gen_mode(self.new_index, &self.name, mode));
        }
        if self.means.rename_up {
            let renames = vec![
                link::rename(self.original, &self.name, &self.ex),
                link::rename(self.new_index, &self.new.tmp(), &self.name),
            ];
            mark.extend(end);
            return self.relocate(target, identity, Holder::New, renames, mark);
        }
        let first = self.relocate(target, identity, Holder::New, vec![], mark)?;
        bounce(target, self.original, &self.name, &self.ex)?;
        self.relocate(target, identity, Holder::Original, vec![], vec![])?;
        bounce(target, self.new_index, &self.new.tmp(), &self.name)?;
        let last = self.relocate(target, identity, Holder::New, vec![], end)?;
        Ok(first.start..last.end)
    }

    /// Puts the original back into its place, from wherever the exchange stands; `identity` is what it gets.
    pub(crate) fn back(&self, target: &mut RouteSocket, identity: &Identity) -> Result<(), Error> {
        let gone = |index: u32, name: &str, target: &RouteSocket| Error::NoSuchInterface {
            interface: format!("{name} (number {index})"),
            netns: target.netns().label().into(),
            present: vec![],
        };
        let original = link::by_index(target, self.original)?;
        let original = original.ok_or_else(|| gone(self.original, &self.ex, target))?;
        let new = link::by_index(target, self.new_index)?;
        let new = new.ok_or_else(|| gone(self.new_index, &self.new.tmp(), target))?;
        let mut end = vec![link::alias(
            self.original,
            &self.name,
            self.alias.as_deref().unwrap_or_default(),
        )];
        if let Some(mode) = self.addr_gen_mode {
            end.push(link::addr_gen_mode(self.original, &self.name, mode));
        }
        let in_place = new.name == self.name;
        let away = original.name != self.name;
        if self.means.rename_up {
            let mut renames = Vec::new();
            if in_place {
                renames.push(link::rename(self.new_index, &new.name, &self.new.tmp()));
            }
            if away {
                renames.push(link::rename(self.original, &original.name, &self.name));
            }
            self.relocate(target, identity, Holder::Original, renames, end)?;
            return Ok(());
        }
        if in_place {
            self.relocate(target, identity, Holder::Original, vec![], vec![])?;
            bounce(target, self.new_index, &new.name, &self.new.tmp())?;
        }
        if away {
            self.relocate(target, identity, Holder::New, vec![], vec![])?;
            bounce(target, self.original, &original.name, &self.name)?;
        }
        self.relocate(target, identity, Holder::Original, vec![], end)?;
        Ok(())
    }

    /// Moves the addresses and what belongs to them in one message, and with them the rule on the original. Packets wait
    /// meanwhile for a neighbour on the link that takes over; the neighbours come last and let them go.
    fn relocate(
        &self,
        target: &mut RouteSocket,
        identity: &Identity,
        to: Holder,
        renames: Vec<Request>,
        end: Vec<Request>,
    ) -> Result<Range<Instant>, Error> {
        let (from, to_link) = match to {
            Holder::New => (self.original, self.new_index),
            Holder::Original => (self.new_index, self.original),
        };
        early(target, identity, to_link)?;
        // Held until the kernel has taken its number.
        let local = bpf::load(c"nv_local", &bpf::not_from(self.new_index))?;
        let rules = match to {
            Holder::New => self.rules(target, local.as_fd())?,
            Holder::Original => self.no_rules(target)?,
        };
        let (loosen, tighten) = reverse_path_filters(target, &[self.original, self.new_index])?;
        let mut batch = loosen;
        batch.extend(renames);
        batch.extend(identity.arrive(from, to_link));
        batch.extend(identity.leave(from, to_link));
        batch.extend(rules);
        batch.extend(identity.neighbours(from, to_link));
        batch.extend(identity.settle(from, to_link));
        batch.extend(tighten);
        batch.extend(end);
        let start = Instant::now();
        target.batch(&batch)?;
        Ok(start..Instant::now())
    }

    /// What is needed so that all the original receives goes to the new link, and that what it sends by itself (for a
    /// socket that is bound to it, or when it leaves a multicast group) is seen too.
    fn rules(
        &self,
        target: &mut RouteSocket,
        local: BorrowedFd<'_>,
    ) -> Result<Vec<Request>, Error> {
        let standing = tc::all_filters(target, self.original)?;
        if standing.iter().any(tc::Standing::is_our_rule) {
            return Ok(vec![]);
        }
        let egress: Vec<_> = standing
            .into_iter()
            .filter(|filter| filter.hook == Hook::Egress && filter.chain == 0)
            .collect();
        let mut rules = Vec::new();
        if !tc::has_clsact(target, self.original)? {
            // The kernel gives a link without a queue one of 1,000 frames with it. That is put back on the way back: to
            // set it the kernel stops the link again, and packets would wait the longer.
            rules.push(tc::add_clsact(self.original, &self.ex));
        }
        let entering = Filter {
            link: self.original,
            hook: Hook::Ingress,
            pref: self.pref,
            classifier: if self.means.matchall {
                Classifier::Matchall
            } else {
                Classifier::U32All
            },
            name: String::new(),
            class: self.new.number(),
            mirred: vec![
                Mirred::EgressMirror(self.new_index),
                Mirred::IngressRedirect(self.new_index),
            ],
            then: TcActionType::Stolen,
            direct_action: false,
        };
        let sent = Filter {
            link: self.original,
            hook: Hook::Egress,
            // Behind a filter that stands first, what that one ends is not seen; nothing else depends on it.
            pref: tc::first_pref(&egress).unwrap_or(tc::PREF),
            classifier: Classifier::Ebpf(local),
            name: format!("{} local", tc::NAME),
            class: self.new.number(),
            mirred: vec![Mirred::EgressMirror(self.new_index)],
            // Then the filters of others.
            then: TcActionType::Unspec,
            direct_action: false,
        };
        rules.extend([sent.add(&self.ex), entering.add(&self.ex)]);
        Ok(rules)
    }

    /// What is needed so that the original keeps what it receives.
    fn no_rules(&self, target: &mut RouteSocket) -> Result<Vec<Request>, Error> {
        let standing = tc::all_filters(target, self.original)?;
        let mut requests = tc::delete(&standing, &self.name, tc::Standing::is_ours);
        let others = standing.iter().any(|filter| !filter.is_ours());
        if !others && !self.had_clsact && tc::has_clsact(target, self.original)? {
            requests.push(tc::delete_clsact(self.original, &self.name));
        }
        requests.push(link::txqlen(self.original, &self.name, self.txqlen));
        Ok(requests)
    }
}

/// Renames a link of a kernel that does it only while the link is down.
fn bounce(target: &mut RouteSocket, index: u32, from: &str, to: &str) -> Result<(), Error> {
    target.batch(&[
        link::down(index, from),
        link::rename(index, from, to),
        link::up(index, to),
    ])
}

/// While two links exchange their addresses, packets come in where the way back does not lead: strict reverse path
/// filtering would drop them. The requests that loosen it, and those that put it back.
fn reverse_path_filters(
    target: &mut RouteSocket,
    links: &[u32],
) -> Result<(Vec<Request>, Vec<Request>), Error> {
    const STRICT: u32 = 1;
    const LOOSE: u32 = 2;
    let all = link::rp_filter_of_all(target)?;
    let (mut loosen, mut tighten) = (Vec::new(), Vec::new());
    for &index in links {
        let Some(link) = link::by_index(target, index)? else {
            continue;
        };
        let own = link.rp_filter;
        if all.max(own) == STRICT {
            loosen.push(link::rp_filter(index, &link.name, LOOSE));
            tighten.push(link::rp_filter(index, &link.name, own));
        }
    }
    Ok((loosen, tighten))
}

/// Adds the IPv6 addresses to a link and waits until they can be used.
pub(crate) fn early(target: &mut RouteSocket, identity: &Identity, link: u32) -> Result<(), Error> {
    add_early(target, identity, link)?;
    wait_for_early(target, identity, link)
}

pub(crate) fn add_early(
    target: &mut RouteSocket,
    identity: &Identity,
    link: u32,
) -> Result<(), Error> {
    target.batch(&identity.early(link))
}

pub(crate) fn wait_for_early(
    target: &mut RouteSocket,
    identity: &Identity,
    link: u32,
) -> Result<(), Error> {
    let start = Instant::now();
    while !identity.early_is_done(target, link)? {
        if start.elapsed() > IPV6_PATIENCE {
            return Err(Error::Timeout {
                what: "the IPv6 addresses to become usable".into(),
                netns: target.netns().label().into(),
                waited_ms: u64::try_from(IPV6_PATIENCE.as_millis()).unwrap_or(u64::MAX),
            });
        }
        // The kernel does it on a work queue and tells nobody when the route is there.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
