//! Traffic control: clsact, filters and mirred, always by preference and handle, so that nothing of others is touched.
//!
//! Built on the types of netlink-packet-route; rtnetlink's own builders are not used here, as some of them overwrite
//! the protocol, expect it in another byte order, or delete every filter of a hook.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_ECHO};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption,
    TcFilterMatchAll, TcFilterMatchAllOption, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Selector, TcU32SelectorFlags,
};

use crate::attr;
use crate::socket::{Answer, CREATE, Request, RouteSocket};
use crate::{Error, Netns, bpf};

/// Major number of the class that our filters assign (`flowid 4e56:...`): tells them from others' where no name can.
pub(crate) const CLASS_MAJOR: u16 = 0x4e56;
/// Preference of our filters, unless an earlier one is needed to come before another tool's.
pub(crate) const PREF: u16 = 0x4e;
/// How the names of our bpf filters begin.
pub(crate) const NAME: &str = "nvcli:1";

const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
const RTM_NEWTFILTER: u16 = 44;
const RTM_NEWQDISC: u16 = 36;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_NAME: u16 = 7;
const TCA_CLASSID_U32: u16 = 1;
const TCA_CLASSID_BPF: u16 = 3;
const ETH_P_ALL: u16 = 3;
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;
/// Octets of `struct tcmsg`.
const TCMSG: usize = 20;

/// The two places of clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle {
            major: u16::MAX,
            minor,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Where mirred sends a frame, and whether the frame goes on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mirred {
    /// A copy is sent through the device.
    EgressMirror(u32),
    /// The frame is sent through the device, and is gone here.
    EgressRedirect(u32),
    /// A copy is received by the device.
    IngressMirror(u32),
    /// The frame is received by the device, and is gone here.
    IngressRedirect(u32),
}

impl Mirred {
    /// The action as number `order` of its filter; `then` is what happens after it.
    fn action(self, order: u16, then: TcActionType) -> TcAction {
        let (eaction, ifindex) = match self {
            Self::EgressMirror(ifindex) => (TcMirrorActionType::EgressMirror, ifindex),
            Self::EgressRedirect(ifindex) => (TcMirrorActionType::EgressRedir, ifindex),
            Self::IngressMirror(ifindex) => (TcMirrorActionType::IngressMirror, ifindex),
            Self::IngressRedirect(ifindex) => (TcMirrorActionType::IngressRedir, ifindex),
        };
        let mut generic = TcActionGeneric::default();
        generic.action = then;
        let mut parms = TcMirror::default();
        parms.generic = generic;
        parms.eaction = eaction;
        parms.ifindex = ifindex;
        let mut action = TcAction::default();
        action.tab = order;
        action.attributes = vec![
            TcActionAttribute::Kind(TcActionMirror::KIND.into()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
                parms,
            ))]),
        ];
        action
    }
}

/// What a filter matches with, and what it then does.
pub(crate) enum Classifier<'a> {
    /// eBPF by its open program; its value is the class, -1 the one given.
    Ebpf(BorrowedFd<'a>),
    /// Classic BPF that returns one number for every frame.
    Classic(u32),
    /// Everything, by u32.
    U32All,
    /// Everything, by matchall.
    Matchall,
}

/// One filter of ours.
pub(crate) struct Filter<'a> {
    pub(crate) link: u32,
    pub(crate) hook: Hook,
    pub(crate) pref: u16,
    pub(crate) classifier: Classifier<'a>,
    /// For bpf: its name, which carries our record.
    pub(crate) name: String,
    /// The class assigned (`flowid`): major is [`CLASS_MAJOR`].
    pub(crate) class: u16,
    /// In order; what follows the last one is decided by `then`.
    pub(crate) mirred: Vec<Mirred>,
    pub(crate) then: TcActionType,
    /// bpf alone: the program's value is the verdict.
    pub(crate) direct_action: bool,
}

impl Filter<'_> {
    /// The request that adds it.
    pub(crate) fn add(&self, where_: &str) -> Request {
        self.add_to(0, where_)
    }

    /// The request that adds it to a chain; frames come to chain 0, to another one only when a filter sends them there.
    pub(crate) fn add_to(&self, chain: u32, where_: &str) -> Request {
        let class = TcHandle {
            major: CLASS_MAJOR,
            minor: self.class,
        };
        let last = self.mirred.len().saturating_sub(1);
        let actions: Vec<TcAction> = (1u16..)
            .zip(&self.mirred)
            .map(|(order, mirred)| {
                // A redirect that is not last would steal the frame from the actions behind it.
                let then = if usize::from(order) > last {
                    self.then
                } else {
                    TcActionType::Pipe
                };
                mirred.action(order, then)
            })
            .collect();
        let (kind, options) = match &self.classifier {
            Classifier::U32All => {
                let mut selector = TcU32Selector::default();
                selector.flags = TcU32SelectorFlags::Terminal;
                selector.nkeys = 1;
                selector.keys = vec![Default::default()];
                let mut options = vec![
                    TcFilterU32Option::ClassId(class),
                    TcFilterU32Option::Selector(selector),
                ];
                if !actions.is_empty() {
                    options.push(TcFilterU32Option::Action(actions));
                }
                (
                    TcFilterU32::KIND,
                    options.into_iter().map(TcOption::U32).collect(),
                )
            }
            Classifier::Matchall => {
                let mut options = vec![TcFilterMatchAllOption::ClassId(class)];
                if !actions.is_empty() {
                    options.push(TcFilterMatchAllOption::Action(actions));
                }
                (
                    TcFilterMatchAll::KIND,
                    options
                        .into_iter()
                        .map(TcOption::MatchAll)
                        .collect::<Vec<_>>(),
                )
            }
            Classifier::Ebpf(fd) => {
                let fd = u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative");
                (
                    TcFilterBpf::KIND,
                    self.bpf(vec![TcFilterBpfOption::ProgFd(fd)], class, &actions),
                )
            }
            Classifier::Classic(value) => {
                let program = bpf::classic_return(*value);
                let len = u16::try_from(program.len() / 8).expect("one instruction");
                let program = vec![
                    TcFilterBpfOption::Other(DefaultNla::new(
                        TCA_BPF_OPS_LEN,
                        len.to_ne_bytes().to_vec(),
                    )),
                    TcFilterBpfOption::Other(DefaultNla::new(TCA_BPF_OPS, program)),
                ];
                (TcFilterBpf::KIND, self.bpf(program, class, &actions))
            }
        };
        let mut message = TcMessage::with_index(ifindex(self.link));
        message.header.parent = self.hook.parent();
        message.header.info = info(self.pref);
        message.attributes = vec![
            TcAttribute::Kind(kind.into()),
            TcAttribute::Options(options),
        ];
        if chain != 0 {
            message.attributes.push(TcAttribute::Chain(chain));
        }
        let op = format!("add a {kind} filter on {} of {where_}", self.hook.name());
        Request::new(op, CREATE, &RouteNetlinkMessage::NewTrafficFilter(message))
    }

    fn bpf(
        &self,
        program: Vec<TcFilterBpfOption>,
        class: TcHandle,
        actions: &Vec<TcAction>,
    ) -> Vec<TcOption> {
        let mut options = program;
        options.push(TcFilterBpfOption::ProgName(self.name.clone()));
        // Also where the program decides: a classic one's name is not kept, its class is, and tells that it is ours.
        options.push(TcFilterBpfOption::ClassId(class));
        if self.direct_action {
            options.push(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction));
        }
        if !actions.is_empty() {
            let mut octets = vec![0; actions.as_slice().buffer_len()];
            actions.as_slice().emit(&mut octets);
            options.push(TcFilterBpfOption::Other(DefaultNla::new(
                TCA_BPF_ACT,
                octets,
            )));
        }
        options.into_iter().map(TcOption::Bpf).collect()
    }
}

/// A filter that drops everything: nothing passes this hook.
pub(crate) fn drop_all(link: u32, hook: Hook, record: String) -> Filter<'static> {
    Filter {
        link,
        hook,
        pref: PREF,
        classifier: Classifier::Classic(SHOT),
        name: record,
        class: 0,
        mirred: vec![],
        then: TcActionType::Ok,
        direct_action: true,
    }
}

/// The request that adds clsact to a link.
pub(crate) fn add_clsact(link: u32, where_: &str) -> Request {
    Request::new(
        format!("add clsact to {where_}"),
        CREATE,
        &RouteNetlinkMessage::NewQueueDiscipline(clsact(link)),
    )
}

/// The same for a link that is not ours. The kernel gives a link without a queue one of 1,000 frames when it gets a
/// queueing discipline, which is not ours to change.
pub(crate) fn add_clsact_to_foreign(link: u32, where_: &str, txqlen: u32) -> [Request; 2] {
    [
        add_clsact(link, where_),
        crate::link::txqlen(link, where_, txqlen),
    ]
}

/// The request that deletes clsact with all its filters; only for a link where no filter of others is left.
///
/// Newer kernels, Debian's 6.1 among them, refuse it while anybody's request for a filter there waits for the kernel's lock.
pub(crate) fn delete_clsact(link: u32, where_: &str) -> Request {
    Request::new(
        format!("delete clsact of {where_}"),
        0,
        &RouteNetlinkMessage::DelQueueDiscipline(clsact(link)),
    )
    .accepting(&[libc::ENODEV, libc::ENOENT, libc::EINVAL])
    .waiting()
}

fn clsact(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex(link));
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    message
}

/// `tcm_info`: preference in the high half, protocol in network byte order in the low one.
fn info(pref: u16) -> u32 {
    u32::from(pref) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn ifindex(link: u32) -> i32 {
    i32::from_ne_bytes(link.to_ne_bytes())
}

/// A filter as it stands in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) link: u32,
    pub(crate) hook: Hook,
    pub(crate) pref: u16,
    /// In network byte order, as the kernel has it.
    protocol: u16,
    handle: u32,
    pub(crate) kind: String,
    /// Name of a bpf filter.
    pub(crate) name: Option<String>,
    class: Option<u32>,
    pub(crate) chain: u32,
    /// The whole answer, for comparing.
    pub(crate) body: Vec<u8>,
}

impl Standing {
    /// Whether we made it.
    pub(crate) fn is_ours(&self) -> bool {
        let named = self
            .name
            .as_deref()
            .is_some_and(|n| n == NAME || n.starts_with("nvcli:1 "));
        named
            || self
                .class
                .is_some_and(|class| class >> 16 == u32::from(CLASS_MAJOR))
    }

    /// Whether it is a rule of ours, that frames come to.
    pub(crate) fn is_our_rule(&self) -> bool {
        self.is_ours() && self.chain == 0
    }

    /// Whether it is but the table in which u32 keeps filters: a handle without a node number.
    fn is_u32_table(&self) -> bool {
        self.kind == TcFilterU32::KIND && self.handle & 0xfff == 0
    }

    /// Whether both are kept together by the kernel, under one preference of one hook.
    fn is_beside(&self, other: &Self) -> bool {
        let key = |f: &Self| (f.link, f.hook, f.chain, f.pref, f.protocol);
        key(self) == key(other)
    }

    /// The request that deletes this one, or with `handle` 0 all that are beside it.
    fn delete(&self, handle: u32, where_: &str) -> Request {
        let mut message = TcMessage::with_index(ifindex(self.link));
        message.header.parent = self.hook.parent();
        message.header.handle = handle.into();
        message.header.info = u32::from(self.pref) << 16 | u32::from(self.protocol);
        message.attributes = vec![TcAttribute::Kind(self.kind.clone())];
        if self.chain != 0 {
            message.attributes.push(TcAttribute::Chain(self.chain));
        }
        let op = format!(
            "delete our {} filter on {} of {where_}",
            self.kind,
            self.hook.name()
        );
        Request::new(op, 0, &RouteNetlinkMessage::DelTrafficFilter(message)).accepting(&[
            libc::ENODEV,
            libc::ENOENT,
            libc::EINVAL,
        ])
    }

    fn parse(answer: Answer, hook: Hook) -> Option<Self> {
        let body = answer.body;
        if answer.kind != RTM_NEWTFILTER || body.len() < TCMSG {
            return None;
        }
        let word = |at: usize| body.get(at..).and_then(attr::u32_of).unwrap_or_default();
        let attrs = &body[TCMSG..];
        let kind = string(attr::find(attrs, TCA_KIND)?);
        let options = attr::find(attrs, TCA_OPTIONS).unwrap_or_default();
        let class_attr = if kind == TcFilterBpf::KIND {
            TCA_CLASSID_BPF
        } else {
            TCA_CLASSID_U32
        };
        let classes =
            [TcFilterBpf::KIND, TcFilterU32::KIND, TcFilterMatchAll::KIND].contains(&&kind[..]);
        let named = kind == TcFilterBpf::KIND;
        Some(Self {
            link: word(4),
            hook,
            handle: word(8),
            pref: (word(16) >> 16) as u16,
            protocol: word(16) as u16,
            name: named
                .then(|| attr::find(options, TCA_BPF_NAME).map(string))
                .flatten(),
            class: classes
                .then(|| attr::find_u32(options, class_attr))
                .flatten(),
            chain: attr::find_u32(attrs, TCA_CHAIN).unwrap_or_default(),
            kind,
            body,
        })
    }
}

fn string(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

/// A queueing discipline as it stands in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qdisc {
    pub(crate) link: u32,
    pub(crate) handle: u32,
    pub(crate) parent: u32,
    pub(crate) kind: String,
}

impl Qdisc {
    pub(crate) fn is_clsact(&self) -> bool {
        self.kind == "clsact"
    }
}

/// All queueing disciplines of the socket's namespace.
pub(crate) fn qdiscs(socket: &mut RouteSocket) -> Result<Vec<Qdisc>, Error> {
    let request = Request::raw("list queueing disciplines", RTM_GETQDISC, 0, vec![0; TCMSG]);
    let answers = socket.dump(&request)?;
    let parse = |answer: Answer| {
        let body = answer.body;
        let word = |at: usize| body.get(at..).and_then(attr::u32_of);
        (answer.kind == RTM_NEWQDISC).then(|| {
            let kind = string(attr::find(body.get(TCMSG..)?, TCA_KIND)?);
            Some(Qdisc {
                link: word(4)?,
                handle: word(8)?,
                parent: word(12)?,
                kind,
            })
        })?
    };
    Ok(answers.into_iter().filter_map(parse).collect())
}

/// Whether a link has clsact.
pub(crate) fn has_clsact(socket: &mut RouteSocket, link: u32) -> Result<bool, Error> {
    let message = RouteNetlinkMessage::GetQueueDiscipline(clsact(link));
    // Without NLM_F_ECHO the answer goes to those alone who listen to all changes.
    match socket.get(&Request::new("look for clsact", NLM_F_ECHO, &message)) {
        Ok(answer) => {
            let kind = answer
                .body
                .get(TCMSG..)
                .and_then(|attrs| attr::find(attrs, TCA_KIND));
            Ok(kind.map(string).as_deref() == Some("clsact"))
        }
        // There is none, the link is gone, or what is there is an ingress discipline.
        Err(Error::Refused { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether TCX programs (Linux 6.6) are attached to a hook: they come before every filter of clsact, and unless they say that
/// classification goes on (`TCX_NEXT`), no filter is asked.
pub(crate) fn has_tcx(netns: &Netns, link: u32, hook: Hook) -> Result<bool, Error> {
    // The kernel looks for the link in the namespace of the thread.
    let count = netns.within(|| crate::sys::tcx_count(link, hook == Hook::Ingress))?;
    match count {
        Ok(count) => Ok(count > 0),
        // An older kernel, one without TCX, or a link that is gone meanwhile.
        Err(source)
            if matches!(
                source.raw_os_error(),
                Some(libc::EINVAL | libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(false)
        }
        Err(source) => Err(Error::Refused {
            op: format!("tell of TCX programs on {} of link {link}", hook.name()),
            netns: netns.label().into(),
            kernel_says: None,
            source,
        }),
    }
}

/// The filters on one hook of a link; none when it has no clsact.
pub(crate) fn filters(
    socket: &mut RouteSocket,
    link: u32,
    hook: Hook,
) -> Result<Vec<Standing>, Error> {
    let mut body = vec![0; TCMSG];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    body[12..16].copy_from_slice(&u32::from(hook.parent()).to_ne_bytes());
    let request = Request::raw(
        format!("list {} filters", hook.name()),
        RTM_GETTFILTER,
        0,
        body,
    );
    match socket.dump(&request) {
        Ok(answers) => {
            let all = answers
                .into_iter()
                .filter_map(|answer| Standing::parse(answer, hook));
            // A dump also tells of the chain of filters itself, without a handle.
            let all: Vec<Standing> = all.filter(|filter| filter.handle != 0).collect();
            let ours: Vec<u16> = all
                .iter()
                .filter(|filter| filter.is_ours())
                .map(|filter| filter.pref)
                .collect();
            // u32 keeps its filters in a table, which it lists as if it were one of them.
            Ok(all
                .into_iter()
                .filter(|filter| !(filter.is_u32_table() && ours.contains(&filter.pref)))
                .collect())
        }
        // Without clsact there is no such parent.
        Err(Error::Refused { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) =>
        {
            Ok(vec![])
        }
        Err(error) => Err(error),
    }
}

/// The filters on both hooks of a link.
pub(crate) fn all_filters(socket: &mut RouteSocket, link: u32) -> Result<Vec<Standing>, Error> {
    let mut all = filters(socket, link, Hook::Ingress)?;
    all.extend(filters(socket, link, Hook::Egress)?);
    Ok(all)
}

/// The requests that delete those of `standing` that `chosen` takes, and nothing else.
pub(crate) fn delete(
    standing: &[Standing],
    where_: &str,
    chosen: impl Fn(&Standing) -> bool,
) -> Vec<Request> {
    let (gone, kept): (Vec<&Standing>, Vec<&Standing>) =
        standing.iter().partition(|filter| chosen(filter));
    let requests = gone.iter().map(|filter| {
        // Where nothing else is beside it the whole preference goes, and with it what u32 keeps of its own.
        let alone = !kept.iter().any(|other| other.is_beside(filter));
        filter.delete(if alone { 0 } else { filter.handle }, where_)
    });
    requests.collect()
}

/// A preference at which our filter comes before all that stand on its hook; `None` when one stands at 1.
pub(crate) fn first_pref(standing: &[Standing]) -> Option<u16> {
    let lowest = standing
        .iter()
        .map(|filter| filter.pref)
        .min()
        .unwrap_or(u16::MAX);
    let pref = PREF.min(lowest.checked_sub(1)?);
    (pref > 0).then_some(pref)
}
