//! What this kernel can do, found by doing it in a namespace that is thrown away.

use std::os::fd::AsFd;

use netlink_packet_route::tc::TcActionType;

use crate::link::{self, PairEnd};
use crate::socket::RouteSocket;
use crate::tc::{self, Classifier, Filter, Hook, Mirred};
use crate::{Error, MacAddr, Netns, bpf};

/// How the lack of eBPF is told.
pub(crate) const EBPF: &str = "eBPF (CONFIG_BPF_SYSCALL, and CAP_BPF or CAP_SYS_ADMIN)";

/// The outcome of a probe: done, or why not.
pub type Probe = Result<(), String>;

/// What this kernel can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// A bridge can be made. Needed.
    pub bridge: Probe,
    /// A veth pair can be made. Needed.
    pub veth: Probe,
    /// The clsact queueing discipline (Linux 4.5). Needed.
    pub clsact: Probe,
    /// Classic BPF as a classifier, for the drop rules. Needed.
    pub cls_bpf: Probe,
    /// eBPF as a classifier, for the marks. Needed.
    pub ebpf: Probe,
    /// The mirred action, in all four directions (Linux 4.10). Needed inline.
    pub mirred: Probe,
    /// The u32 classifier; it or matchall is needed inline.
    pub cls_u32: Probe,
    /// The matchall classifier (Linux 4.8); it or u32 is needed inline.
    pub cls_matchall: Probe,
    /// A link can be renamed while it is up (Linux 6.2): attaching inline without taking it down.
    pub rename_up: Probe,
}

impl Features {
    /// Tries everything.
    ///
    /// # Errors
    /// No namespace could be made to try it in; a feature that is missing is no error.
    pub fn probe() -> Result<Self, Error> {
        Self::probe_in(&Netns::nameless("the probe's namespace")?)
    }

    /// The same in a namespace that nothing else is in.
    pub(crate) fn probe_in(netns: &Netns) -> Result<Self, Error> {
        let mut socket = RouteSocket::open(netns)?;
        let socket = &mut socket;
        let end = |name| PairEnd {
            name,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            txqlen: 1000,
        };

        let bridge = said(socket.send(link::add_bridge("probe-br", MacAddr([2, 0, 0, 0, 0, 2]))));
        let veth = said(socket.send(link::add_pair(
            &end("probe-a"),
            &end("probe-b"),
            netns.as_fd(),
        )));
        let index = |socket: &mut RouteSocket, name| {
            link::by_name(socket, name)
                .ok()
                .flatten()
                .map(|link| link.index)
        };
        let (a, b) = match (index(socket, "probe-a"), index(socket, "probe-b")) {
            (Some(a), Some(b)) => (a, b),
            _ => {
                let why = || Err("cannot be tried without a veth pair".to_owned());
                return Ok(Self {
                    bridge,
                    veth,
                    clsact: why(),
                    cls_bpf: why(),
                    ebpf: why(),
                    mirred: why(),
                    cls_u32: why(),
                    cls_matchall: why(),
                    rename_up: why(),
                });
            }
        };
        let clsact = said(socket.send(tc::add_clsact(a, "probe-a")));
        let cls_bpf = said(socket.send(trial(a, 1, Classifier::Classic(2), None).add("probe-a")));
        let program = bpf::load(c"nv_probe", &bpf::not_from(1));
        let ebpf = said(program.and_then(|fd| {
            socket.send(trial(a, 2, Classifier::Ebpf(fd.as_fd()), None).add("probe-a"))
        }));
        let directions = [
            Mirred::EgressMirror(b),
            Mirred::EgressRedirect(b),
            Mirred::IngressMirror(b),
            Mirred::IngressRedirect(b),
        ];
        let mirred = (10..).zip(directions).try_for_each(|(pref, direction)| {
            let filter = trial(a, pref, Classifier::Classic(u32::MAX), Some(direction));
            said(socket.send(filter.add("probe-a")))
        });
        let cls_u32 = said(socket.send(trial(a, 4, Classifier::U32All, None).add("probe-a")));
        let cls_matchall =
            said(socket.send(trial(a, 5, Classifier::Matchall, None).add("probe-a")));
        let rename_up = said(
            socket
                .send(link::up(a, "probe-a"))
                .and_then(|()| socket.send(link::rename(a, "probe-a", "probe-c"))),
        );
        Ok(Self {
            bridge,
            veth,
            clsact,
            cls_bpf,
            ebpf,
            mirred,
            cls_u32,
            cls_matchall,
            rename_up,
        })
    }

    /// All features, by the name they have in messages.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Probe)> {
        [
            ("bridge", &self.bridge),
            ("veth", &self.veth),
            ("sch_clsact", &self.clsact),
            ("cls_bpf", &self.cls_bpf),
            ("eBPF classifier", &self.ebpf),
            ("act_mirred", &self.mirred),
            ("cls_u32", &self.cls_u32),
            ("cls_matchall", &self.cls_matchall),
            ("rename of a link that is up", &self.rename_up),
        ]
        .into_iter()
    }

    /// Refuses when no veth pair can be made.
    pub(crate) fn need_pairs(&self) -> Result<(), Error> {
        self.veth.clone().map_err(|why| Error::Unsupported {
            feature: "veth",
            why,
        })
    }

    /// Refuses when something is missing without which no mode works.
    pub(crate) fn need(&self, inline: bool) -> Result<(), Error> {
        let always: [(&'static str, &Probe); 4] = [
            ("bridge", &self.bridge),
            (
                "clsact queueing discipline (CONFIG_NET_SCH_INGRESS, module sch_ingress)",
                &self.clsact,
            ),
            (
                "BPF classifier (CONFIG_NET_CLS_BPF, module cls_bpf)",
                &self.cls_bpf,
            ),
            (EBPF, &self.ebpf),
        ];
        let more: [(&'static str, &Probe); 2] = [
            ("veth", &self.veth),
            (
                "mirred action (CONFIG_NET_ACT_MIRRED, module act_mirred)",
                &self.mirred,
            ),
        ];
        let missing = always
            .iter()
            .chain(more.iter().filter(|_| inline))
            .find_map(|(feature, probe)| {
                probe.as_ref().err().map(|why| Error::Unsupported {
                    feature,
                    why: why.clone(),
                })
            });
        if let Some(missing) = missing {
            return Err(missing);
        }
        match (&self.cls_u32, &self.cls_matchall) {
            (Err(why), Err(_)) if inline => Err(Error::Unsupported {
                feature: "classifier that matches everything (module cls_u32 or cls_matchall)",
                why: why.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// A filter to see whether the kernel takes it.
fn trial(link: u32, pref: u16, classifier: Classifier<'_>, mirred: Option<Mirred>) -> Filter<'_> {
    Filter {
        link,
        hook: Hook::Ingress,
        pref,
        direct_action: mirred.is_none() && matches!(classifier, Classifier::Classic(_)),
        classifier,
        name: tc::NAME.into(),
        class: 1,
        mirred: mirred.into_iter().collect(),
        then: TcActionType::Ok,
    }
}

/// The error with its cause, as one line.
fn said<T>(outcome: Result<T, Error>) -> Probe {
    outcome
        .map(drop)
        .map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
}
