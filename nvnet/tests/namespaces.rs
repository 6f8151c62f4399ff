//! Attach and detach in namespaces of their own, with iproute2 as the witness.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Need, chain, ensure, picture, privileged, same, same_picture, sh_in};
use libtest_mimic::{Arguments, Failed, Trial};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use nvnet::lab::{Lab, LabContainer};
use nvnet::{Attachment, CheckedPlan, Error, Fate, Mode, Netns, Plan, Workload};

const ALL: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const WITH_MACVLAN: &[Need] = &[
    Need::Netns,
    Need::Ebpf,
    Need::Iproute2,
    Need::Kind("macvlan"),
];
const MODES: [Mode; 2] = [Mode::Inline, Mode::Mirror];
const KINDS: [Kind; 3] = [Kind::Inline, Kind::Mirror, Kind::Inside];
/// A child process is told what to do by this variable: `MODE STEP HOST TARGET`, see [`child`].
const CHILD: &str = "NV_TEST_CHILD";

fn main() {
    if let Ok(order) = std::env::var(CHILD) {
        child(&order);
    }
    let mut trials = Vec::new();
    for kind in KINDS {
        let needs = if kind == Kind::Inside {
            WITH_MACVLAN
        } else {
            ALL
        };
        let mut add = |name: &str, test: fn(Kind) -> Result<(), Failed>| {
            trials.push(privileged(format!("{name}::{kind}"), needs, move || {
                test(kind)
            }));
        };
        add(
            "traffic_flows_and_detach_leaves_nothing",
            traffic_flows_and_detach_leaves_nothing,
        );
        add(
            "a_rich_container_is_the_same_after_detach",
            a_rich_container_is_the_same_after_detach,
        );
        add(
            "every_step_that_fails_is_undone",
            every_step_that_fails_is_undone,
        );
        add(
            "a_kill_at_any_step_is_repaired",
            a_kill_at_any_step_is_repaired,
        );
        add(
            "a_connection_outlives_attach_and_detach",
            a_connection_outlives_attach_and_detach,
        );
        add("filters_of_others_survive", filters_of_others_survive);
        add(
            "two_containers_have_their_own_ids",
            two_containers_have_their_own_ids,
        );
        add("refusals_change_nothing", refusals_change_nothing);
        add(
            "a_container_that_dies_leaves_nothing",
            a_container_that_dies_leaves_nothing,
        );
        add(
            "frames_are_marked_by_the_way_they_went",
            frames_are_marked_by_the_way_they_went,
        );
    }
    let mut add =
        |name, test: fn() -> Result<(), Failed>| trials.push(privileged(name, WITH_MACVLAN, test));
    add(
        "a_pair_deleted_by_hand_leaves_no_filter_inside",
        a_pair_deleted_by_hand_leaves_no_filter_inside,
    );
    add(
        "an_interface_that_goes_takes_its_copies_along",
        an_interface_that_goes_takes_its_copies_along,
    );
    add(
        "nothing_but_copies_leaves_by_the_pair",
        nothing_but_copies_leaves_by_the_pair,
    );
    let mut add = |name, test: fn() -> Result<(), Failed>| trials.push(privileged(name, ALL, test));
    add(
        "links_of_every_namespace_are_told_of",
        links_of_every_namespace_are_told_of,
    );
    add(
        "the_container_is_untouched_in_mirror_mode",
        the_container_is_untouched_in_mirror_mode,
    );
    add(
        "the_rules_stand_where_the_design_says",
        the_rules_stand_where_the_design_says,
    );
    add(
        "nothing_sent_into_the_bridge_reaches_a_container",
        nothing_sent_into_the_bridge_reaches_a_container,
    );
    add(
        "the_kernel_takes_the_names_that_we_take",
        the_kernel_takes_the_names_that_we_take,
    );
    add("next_hop_objects_follow", next_hop_objects_follow);
    add(
        "a_port_deleted_by_hand_is_brought_back_whole",
        a_port_deleted_by_hand_is_brought_back_whole,
    );
    add(
        "of_what_is_left_of_a_container_its_runtime_decides",
        of_what_is_left_of_a_container_its_runtime_decides,
    );
    add(
        "another_hosts_attachment_is_left_alone",
        another_hosts_attachment_is_left_alone,
    );
    add(
        "a_bridge_deleted_by_hand_is_told_and_repaired",
        a_bridge_deleted_by_hand_is_told_and_repaired,
    );
    add(
        "what_the_original_sends_by_itself_is_seen",
        what_the_original_sends_by_itself_is_seen,
    );
    add(
        "inline_is_refused_where_it_would_cut_connections",
        inline_is_refused_where_it_would_cut_connections,
    );
    add(
        "inline_is_refused_where_a_name_is_no_text",
        inline_is_refused_where_a_name_is_no_text,
    );
    add(
        "what_changed_while_attached_stays",
        what_changed_while_attached_stays,
    );
    add(
        "an_interface_that_was_set_down_stays_down",
        an_interface_that_was_set_down_stays_down,
    );
    add(
        "several_interfaces_are_attached_together",
        several_interfaces_are_attached_together,
    );
    add(
        "who_is_waited_for_in_vain_is_told",
        who_is_waited_for_in_vain_is_told,
    );
    add(
        "a_ticket_that_is_given_back_just_now_is_not_waited_for",
        a_ticket_that_is_given_back_just_now_is_not_waited_for,
    );
    add("who_came_first_goes_first", who_came_first_goes_first);
    add(
        "nobody_without_a_privilege_is_waited_for",
        nobody_without_a_privilege_is_waited_for,
    );
    add(
        "processes_wait_for_each_other",
        processes_wait_for_each_other,
    );
    add(
        "requests_of_others_for_filters_are_waited_for",
        requests_of_others_for_filters_are_waited_for,
    );
    let unprivileged = Trial::test("a_missing_privilege_is_told", a_missing_privilege_is_told);
    trials.push(unprivileged);
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A mode, and what the first container's interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Inline,
    Mirror,
    /// Mirror mode of a macvlan, which has no end on the host.
    Inside,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Mirror => "mirror",
            Self::Inside => "inside",
        })
    }
}

impl Kind {
    fn mode(self) -> Mode {
        match self {
            Self::Inline => Mode::Inline,
            Self::Mirror | Self::Inside => Mode::Mirror,
        }
    }

    fn lab(self, names: &[&str]) -> Result<Lab, Failed> {
        let mut lab = Lab::new(names)?;
        if self == Self::Inside {
            let web = &mut lab.containers[0];
            let fd = web.netns.as_fd().as_raw_fd();
            sh_in(
                &lab.host,
                &format!(
                    "set -e
                     ip link delete {}
                     ip link add link lab-br name mv0 address {} type macvlan mode bridge
                     ip link set mv0 netns /proc/{}/fd/{fd}",
                    web.host_end,
                    web.mac,
                    std::process::id(),
                ),
            )?;
            sh_in(
                &web.netns,
                &format!(
                    "set -e
                     echo 0 > /proc/sys/net/ipv6/conf/mv0/accept_dad
                     ip link set mv0 name eth0
                     ip link set eth0 up
                     ip addr add {}/24 dev eth0
                     ip addr add {}/64 dev eth0 nodad
                     ip route add default via 10.78.0.1
                     ip -6 route add default via fd4e:6576::1 dev eth0
                     timeout 20 sh -c 'while ip -6 addr | grep -q tentative; do :; done'",
                    web.ipv4, web.ipv6
                ),
            )?;
            web.host_end = "none".into();
        }
        Ok(lab)
    }
}

fn workload(container: &LabContainer) -> Workload {
    Workload {
        name: container.name.clone(),
        ..Workload::default()
    }
}

fn plan(lab: &Lab, container: usize, mode: Mode) -> Plan {
    let container = &lab.containers[container];
    Plan::new(&lab.host, &container.netns, workload(container)).mode(mode)
}

fn attach(lab: &Lab, container: usize, mode: Mode) -> Result<Attachment, Failed> {
    let attached = plan(lab, container, mode)
        .check()
        .and_then(CheckedPlan::attach)
        .map_err(chain)?;
    same("attached", attached.len(), 1)?;
    Ok(attached.into_iter().next().expect("one"))
}

fn detach(lab: &Lab, id: nvnet::AttachmentId) -> Result<(), Failed> {
    nvnet::detach(&lab.host, id).map_err(chain)
}

/// A listener and a stream to it, between two namespaces.
fn connect(
    server: &Netns,
    address: IpAddr,
    client: &Netns,
) -> Result<(TcpStream, TcpStream), Failed> {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let to = listener.local_addr()?;
    let near = client.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
    }
    Ok((near, far))
}

/// Sends `octets` one way and reads them on the other side.
fn carry(from: &mut TcpStream, to: &mut TcpStream, octets: usize) -> Result<(), Failed> {
    let sent: Vec<u8> = (0..octets).map(|n| (n % 251) as u8).collect();
    let mut received = vec![0; octets];
    std::thread::scope(|scope| -> std::io::Result<()> {
        let writer = scope.spawn(|| from.write_all(&sent));
        to.read_exact(&mut received)?;
        writer.join().expect("the writer does not panic")
    })?;
    ensure(sent == received, "what was received is not what was sent")
}

/// TCP with large segments and UDP, both families, both ways.
fn traffic(lab: &Lab) -> Result<(), Failed> {
    let (one, two) = (&lab.containers[0], &lab.containers[1]);
    for address in [IpAddr::from(one.ipv4), IpAddr::from(one.ipv6)] {
        let (mut near, mut far) = connect(&one.netns, address, &two.netns)?;
        carry(&mut near, &mut far, 1 << 20)?;
        carry(&mut far, &mut near, 1 << 20)?;
        let server = one
            .netns
            .run(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
        let any: SocketAddr = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        }
        .parse()?;
        let client = two.netns.run(|| UdpSocket::bind(any))??;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        }
        client.send_to(b"question", server.local_addr()?)?;
        let mut buffer = [0; 16];
        let (len, from) = server.recv_from(&mut buffer)?;
        same("question", &buffer[..len], &b"question"[..])?;
        server.send_to(b"answer", from)?;
        let (len, _) = client.recv_from(&mut buffer)?;
        same("answer", &buffer[..len], &b"answer"[..])?;
    }
    Ok(())
}

/// Both pictures are as they were, and nothing of ours is left.
fn untouched(lab: &Lab, before: &[String]) -> Result<(), Failed> {
    for (netns, before) in namespaces(lab).zip(before) {
        same_picture(netns.label(), before, &picture(netns)?)?;
    }
    same("attachments", nvnet::list(&lab.host)?.len(), 0)
}

fn namespaces(lab: &Lab) -> impl Iterator<Item = &Netns> {
    std::iter::once(&lab.host).chain(lab.containers.iter().map(|container| &container.netns))
}

fn pictures(lab: &Lab) -> Result<Vec<String>, Failed> {
    namespaces(lab).map(picture).collect()
}

fn traffic_flows_and_detach_leaves_nothing(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    traffic(&lab)?;
    let before = pictures(&lab)?;
    let attachment = attach(&lab, 0, mode)?;
    same("health", &attachment.health, &nvnet::Health::Whole)?;
    same("interface", &attachment.interface[..], "eth0")?;
    same("mac", attachment.mac, lab.containers[0].mac)?;
    traffic(&lab)?;
    let listed = nvnet::list(&lab.host)?;
    same(
        "listed",
        listed.iter().map(|a| a.id).collect::<Vec<_>>(),
        vec![attachment.id],
    )?;
    same("nothing to repair", nvnet::repair(&lab.host)?, vec![])?;
    detach(&lab, attachment.id)?;
    untouched(&lab, &before)?;
    traffic(&lab)
}

/// All that a container can have configured, as far as this kernel takes it.
const RICH: &str = r"
    ip link set eth0 mtu 1400 txqueuelen 77 alias 'the uplink'
    ip addr add 10.78.1.2/24 dev eth0 label eth0:1
    ip addr add 10.78.1.3/24 dev eth0
    ip addr add 192.0.2.9/32 dev eth0 scope link
    ip addr add 198.51.100.2 peer 198.51.100.1/32 dev eth0
    ip addr add 2001:db8:1::2/64 dev eth0 nodad
    ip addr add 2001:db8:2::2/64 dev eth0 nodad preferred_lft 5000 valid_lft 6000
    ip addr add 2001:db8:3::2/128 dev eth0 nodad noprefixroute
    ip route add 203.0.113.0/24 nexthop via 10.78.0.1 weight 1 nexthop via 10.78.1.1 weight 3
    ip route add 203.0.114.0/24 via 10.78.0.3 metric 50 mtu 1300 advmss 1000
    ip route add 203.0.114.0/24 via 10.78.0.1 metric 60 src 10.78.1.2
    ip route add 203.0.115.0/24 via 192.168.99.1 dev eth0 onlink
    ip route add blackhole 203.0.116.0/24
    ip route add default via 10.78.1.1 dev eth0 table 100
    ip rule add from 10.78.1.2 lookup 100 priority 1000
    ip rule add iif eth0 lookup 100 priority 1001
    ip -6 route add 2001:db8:9::/64 via fd4e:6576::1 dev eth0 metric 7
    ip -6 route add 2001:db8:a::/64 nexthop via fd4e:6576::1 dev eth0 nexthop via fd4e:6576::3 dev eth0
    ip -6 route add default via fe80::1 dev eth0 metric 2048
    ip neigh add 10.78.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
    ip -6 neigh add fd4e:6576::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent
    ip neigh add proxy 10.78.0.99 dev eth0
    echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter
    echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify
    echo 0 > /proc/sys/net/ipv4/conf/eth0/accept_redirects
    echo 3 > /proc/sys/net/ipv6/conf/eth0/router_solicitations
    echo 44 > /proc/sys/net/ipv4/neigh/eth0/gc_stale_time
";

fn a_rich_container_is_the_same_after_detach(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["rich", "client"])?;
    let target = &lab.containers[0].netns;
    sh_in(target, &format!("set -e; {RICH}"))?;
    traffic(&lab)?;
    let before = pictures(&lab)?;
    for _ in 0..2 {
        let attachment = attach(&lab, 0, mode)?;
        let during = sh_in(
            target,
            "ip -4 addr show dev eth0; ip -4 route show table all; ip -6 route show",
        )?;
        for line in [
            "10.78.1.2/24",
            "198.51.100.2 peer 198.51.100.1/32",
            "weight 3",
            "table 100",
            "2001:db8:a::/64",
        ] {
            ensure(
                during.contains(line),
                format!("without {line} while attached:\n{during}"),
            )?;
        }
        same(
            "addresses left behind",
            sh_in(target, "ip -o addr show | grep nv-ex | cat")?,
            String::new(),
        )?;
        traffic(&lab)?;
        detach(&lab, attachment.id)?;
        untouched(&lab, &before)?;
    }
    traffic(&lab)
}

fn every_step_that_fails_is_undone(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    sh_in(&lab.containers[0].netns, &format!("set -e; {RICH}"))?;
    traffic(&lab)?;
    let before = pictures(&lab)?;
    let steps = plan(&lab, 0, mode).check()?.steps().len();
    for step in 0..steps {
        let fails = |number, _: &nvnet::Step| {
            if number == step {
                Err(Error::NotAttached { id: id(0xffff) })
            } else {
                Ok(())
            }
        };
        match plan(&lab, 0, mode).check()?.attach_observed(fails) {
            Err(Error::Undone { .. }) => {}
            other => return Err(format!("step {step} of {steps}: {other:?}").into()),
        }
        untouched(&lab, &before)
            .map_err(|e| format!("step {step}: {}", e.message().unwrap_or_default()))?;
    }
    println!("{kind}: {steps} steps failed and undone");
    traffic(&lab)
}

fn id(number: u16) -> nvnet::AttachmentId {
    nvnet::AttachmentId::new(number).expect("not zero")
}

/// Attaches or detaches until the step that it is told, and dies there as if killed.
fn child(order: &str) -> ! {
    if order == "locker" {
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).expect("to be nobody");
        let host = Netns::current().expect("one's own");
        let refused = nvnet::Session::open(&host).expect_err("not allowed");
        let file = std::fs::File::open("/proc/self/ns/net").expect("one's own");
        let _lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive);
        println!("{}", refused.remedy().unwrap_or_default());
        std::thread::sleep(Duration::from_secs(3600));
    }
    if order == "holder" {
        let host = Netns::current().expect("one's own");
        let _session = nvnet::Session::open(&host).expect("free");
        println!("held");
        std::thread::sleep(Duration::from_secs(3600));
    }
    if order == "unprivileged" {
        // Refused when it is somebody else already, and then just as well.
        let _ = nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534));
        let error = Netns::nameless("probe").expect_err("not allowed");
        println!("{}", error.remedy().unwrap_or_default());
        std::process::exit(0);
    }
    let words: Vec<&str> = order.split(' ').collect();
    let [what, mode, step, host, target] = words[..] else {
        panic!("{order}")
    };
    let open = |path: &str| Netns::at_path(path.as_ref()).expect("the parent holds it open");
    let (host, target) = (open(host), open(target));
    let step: usize = step.parse().expect("a number");
    let die = |number: usize| {
        if number == step {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)
                .expect("we may kill ourselves");
        }
        Ok(())
    };
    if what == "attach" {
        let workload = Workload {
            name: "web".into(),
            ..Workload::default()
        };
        let plan = Plan::new(&host, &target, workload).mode(mode.parse().expect("a mode"));
        let plan = plan.check().expect("can be attached");
        plan.attach_observed(|number, _| die(number))
            .expect("attached");
    } else {
        let id = nvnet::list(&host).expect("a list")[0].id;
        nvnet::detach_observed(&host, id, |number, _| die(number)).expect("detached");
    }
    std::process::exit(0);
}

/// Starts a [`child`] inside.
fn child_in(netns: &Netns, order: &str) -> Result<std::process::Child, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .env(CHILD, order)
        .stdout(std::process::Stdio::piped());
    Ok(netns.run(|| command.spawn())??)
}

fn first_line(child: &mut std::process::Child) -> Result<String, Failed> {
    use std::io::BufRead;
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line)?;
    Ok(line)
}

/// Starts a [`child`]; tells whether it was killed, as it is unless `step` is beyond the last.
fn killed_at(lab: &Lab, what: &str, mode: Mode, step: usize) -> Result<bool, Failed> {
    use std::os::unix::process::ExitStatusExt;
    let path = |netns: &Netns| {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            netns.as_fd().as_raw_fd()
        )
    };
    let order = format!(
        "{what} {mode} {step} {} {}",
        path(&lab.host),
        path(&lab.containers[0].netns)
    );
    let output = Command::new(std::env::current_exe()?)
        .env(CHILD, order)
        .output()?;
    let killed = output.status.signal() == Some(9);
    ensure(
        killed || output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )?;
    Ok(killed)
}

fn a_kill_at_any_step_is_repaired(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    sh_in(&lab.containers[0].netns, &format!("set -e; {RICH}"))?;
    traffic(&lab)?;
    let before = pictures(&lab)?;
    let mut tried = 0;
    for what in ["attach", "detach"] {
        for step in 0.. {
            if what == "detach" {
                attach(&lab, 0, mode)?;
            }
            let killed = killed_at(&lab, what, mode, step)?;
            tried += usize::from(killed);
            traffic(&lab).map_err(|e| {
                format!(
                    "killed at {what} {step}: {}",
                    e.message().unwrap_or_default()
                )
            })?;
            // Nothing of ours is ever taken for an interface of the container.
            if let Ok(plan) = plan(&lab, 0, mode).check() {
                let steps: Vec<_> = plan.steps().iter().map(ToString::to_string).collect();
                ensure(
                    !steps.iter().any(|step| step.contains("sysctls of nv-")),
                    format!("{steps:?}"),
                )?;
            }
            // Whoever attaches next does it over what is there, after a repair of that container alone.
            let (host, web) = (&lab.host, &lab.containers[0].netns);
            nvnet::repair_target(host, web).map_err(chain)?;
            match plan(&lab, 0, mode).check().and_then(CheckedPlan::attach) {
                Ok(_) | Err(Error::AlreadyAttached { .. }) => {}
                Err(error) => return Err(chain(error)),
            }
            same("attached once", nvnet::list(host)?.len(), 1)?;
            nvnet::repair(&lab.host).map_err(chain)?;
            // What was complete is left as it is.
            for whole in nvnet::list(&lab.host)? {
                detach(&lab, whole.id)?;
            }
            untouched(&lab, &before).map_err(|e| {
                format!(
                    "killed at {what} {step}: {}",
                    e.message().unwrap_or_default()
                )
            })?;
            if !killed {
                break;
            }
        }
    }
    println!("{kind}: killed at {tried} steps and repaired");
    ensure(tried >= 5, format!("only {tried} kills"))
}

fn a_connection_outlives_attach_and_detach(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    let (one, two) = (&lab.containers[0], &lab.containers[1]);
    for address in [IpAddr::from(one.ipv4), IpAddr::from(one.ipv6)] {
        let (mut near, mut far) = connect(&one.netns, address, &two.netns)?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<(), Failed> {
            // Both directions are busy all the time, so that every moment of the switch is hit.
            let busy = scope.spawn(|| -> Result<u64, Failed> {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    carry(&mut near, &mut far, 4_000)?;
                    carry(&mut far, &mut near, 40_000)?;
                    rounds += 1;
                }
                Ok(rounds)
            });
            let changes = (0..5).try_for_each(|_| -> Result<(), Failed> {
                let attachment = attach(&lab, 0, mode)?;
                detach(&lab, attachment.id)
            });
            stop.store(true, Ordering::Relaxed);
            let rounds = busy.join().expect("no panic")?;
            changes?;
            ensure(rounds > 0, "nothing was carried")
        })?;
    }
    Ok(())
}

fn filters_of_others_survive(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    let (netns, link) = match kind {
        Kind::Inline | Kind::Inside => (&lab.containers[0].netns, "eth0".to_owned()),
        Kind::Mirror => (&lab.host, lab.containers[0].host_end.clone()),
    };
    sh_in(
        netns,
        &format!(
            "set -e
             tc qdisc add dev {link} clsact
             tc filter add dev {link} ingress pref 100 protocol ip u32 match ip protocol 6 0xff flowid 1:1
             tc filter add dev {link} egress pref 78 protocol all bpf bytecode '1,6 0 0 0' flowid 1:2"
        ),
    )?;
    let before = pictures(&lab)?;
    let attachment = attach(&lab, 0, mode)?;
    let link = if mode == Mode::Inline {
        "nv-ex-eth0"
    } else {
        &link
    };
    let during = sh_in(
        netns,
        &format!("tc filter show dev {link} ingress; tc filter show dev {link} egress"),
    )?;
    ensure(
        during.contains("pref 100 u32") && during.contains("flowid 1:2"),
        format!("gone:\n{during}"),
    )?;
    traffic(&lab)?;
    detach(&lab, attachment.id)?;
    untouched(&lab, &before)?;

    // A filter at the very first place would decide before ours.
    let link = if mode == Mode::Inline { "eth0" } else { link };
    sh_in(
        netns,
        &format!(
            "tc filter add dev {link} ingress pref 1 protocol all u32 match u32 0 0 flowid 1:1"
        ),
    )?;
    let before = pictures(&lab)?;
    match plan(&lab, 0, mode).check() {
        Err(Error::Unsafe { why, .. }) if why.contains("pref 1") => {}
        other => return Err(format!("{other:?}").into()),
    }
    untouched(&lab, &before)
}

fn two_containers_have_their_own_ids(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    let before = pictures(&lab)?;
    let (one, two) = (attach(&lab, 0, mode)?, attach(&lab, 1, mode)?);
    ensure(one.id != two.id, "one id for two")?;
    for hook in ["ingress", "egress"] {
        let shown = sh_in(&lab.host, &format!("tc filter show dev nv-br {hook}"))?;
        same(
            &format!("drop rules on {hook} of nv-br"),
            shown.matches("bytecode").count(),
            1,
        )?;
    }
    same(
        "ours taken for others'",
        nvnet::foreign_filters(&lab.host)?,
        vec![],
    )?;
    same(
        "names",
        (&one.workload.name[..], &two.workload.name[..]),
        ("web", "client"),
    )?;
    traffic(&lab)?;
    match plan(&lab, 0, mode).check() {
        Err(Error::AlreadyAttached { id, .. }) => same("attached as", id, one.id)?,
        other => return Err(format!("{other:?}").into()),
    }
    detach(&lab, one.id)?;
    traffic(&lab)?;
    ensure(
        sh_in(&lab.host, "ip link show nv-br").is_ok(),
        "the bridge went while it was used",
    )?;
    let again = attach(&lab, 0, mode)?;
    same("the free id is taken again", again.id, one.id)?;
    for id in [again.id, two.id] {
        detach(&lab, id)?;
    }
    ensure(
        matches!(
            nvnet::detach(&lab.host, two.id),
            Err(Error::NotAttached { .. })
        ),
        "detached twice",
    )?;
    untouched(&lab, &before)
}

fn refusals_change_nothing(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web"])?;
    let before = pictures(&lab)?;
    let refused = |plan: Plan, text: &str| match plan.check() {
        Ok(_) => Err(Failed::from(format!("accepted, not: {text}"))),
        Err(error) => ensure(
            error.to_string().contains(text),
            format!("{error} is not: {text}"),
        ),
    };
    refused(
        plan(&lab, 0, mode).interface("eth7"),
        "no interface `eth7` in web (there: lo, eth0)",
    )?;
    refused(plan(&lab, 0, mode).interface("lo"), "no Ethernet interface")?;
    refused(
        plan(&lab, 0, mode).interface("a-name-that-is-too-long"),
        "longer than 15 octets",
    )?;
    refused(
        plan(&lab, 0, mode).interface("../eth0"),
        "cannot be an interface's name",
    )?;
    refused(
        Plan::new(&lab.host, &lab.host, Workload::default()).mode(mode),
        "the host's own network namespace",
    )?;
    let empty = Netns::nameless("empty")?;
    refused(
        Plan::new(&lab.host, &empty, Workload::default()).mode(mode),
        "no Ethernet interface (there: lo)",
    )?;
    untouched(&lab, &before)?;

    let down = Lab::new(&["web"])?;
    sh_in(&down.containers[0].netns, "ip link set eth0 down")?;
    let before_down = picture(&down.containers[0].netns)?;
    refused(plan(&down, 0, mode), "eth0 in web is down")?;
    if mode == Mode::Inline {
        refused(
            plan(&down, 0, mode).interface("eth0"),
            "eth0 in web is down",
        )?;
    } else {
        let attached = plan(&down, 0, mode).interface("eth0").check();
        let attached = attached.and_then(CheckedPlan::attach).map_err(chain)?;
        detach(&down, attached[0].id)?;
    }
    let after = picture(&down.containers[0].netns)?;
    same_picture("down", &before_down, &after)?;

    sh_in(&lab.host, "ip link add nv-br type bridge")?;
    let before = pictures(&lab)?;
    refused(
        plan(&lab, 0, mode),
        "`nv-br` in the lab's host was not made by nvnet",
    )?;
    untouched(&lab, &before)
}

fn a_container_that_dies_leaves_nothing(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let mut lab = kind.lab(&["web", "client"])?;
    let one = attach(&lab, 0, mode)?;
    let two = attach(&lab, 1, mode)?;
    let gone = lab.containers.remove(0);
    let end = match kind {
        Kind::Inside => one.port,
        Kind::Inline | Kind::Mirror => gone.host_end.clone(),
    };
    drop(gone);
    // The kernel clears a namespace away after its last handle is closed; wait for its other end to go.
    sh_in(
        &lab.host,
        &format!("timeout 20 sh -c 'while ip link show {end} 2>/dev/null; do :; done' >/dev/null"),
    )?;
    let left: Vec<_> = nvnet::list(&lab.host)?.iter().map(|a| a.id).collect();
    same("left", left, vec![two.id])?;
    detach(&lab, two.id)?;
    same(
        "links of ours",
        sh_in(&lab.host, "ip -o link show | grep nv- | cat")?,
        String::new(),
    )
}

fn the_container_is_untouched_in_mirror_mode() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let before = picture(&lab.containers[0].netns)?;
    let attachment = attach(&lab, 0, Mode::Mirror)?;
    same("picture", &picture(&lab.containers[0].netns)?, &before)?;
    same("port", &attachment.port, &lab.containers[0].host_end)?;
    detach(&lab, attachment.id)
}

fn the_rules_stand_where_the_design_says() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let attachment = attach(&lab, 0, Mode::Inline)?;
    let port = &attachment.port;
    same("port", &port[..], "nv-in-0001")?;
    let inside = &lab.containers[0].netns;
    for (netns, link, hook, rule) in [
        (
            inside,
            "eth0",
            "egress",
            "mirred (Egress Mirror to device nv-ex-eth0)",
        ),
        (
            inside,
            "nv-ex-eth0",
            "ingress",
            "mirred (Ingress Redirect to device eth0)",
        ),
        (
            &lab.host,
            &port[..],
            "ingress",
            "mirred (Ingress Redirect to device nv-br)",
        ),
        (&lab.host, "nv-br", "ingress", "bytecode '1,6 0 0 2'"),
        (&lab.host, "nv-br", "egress", "bytecode '1,6 0 0 2'"),
    ] {
        let shown = sh_in(netns, &format!("tc filter show dev {link} {hook}"))?;
        ensure(
            shown.contains(rule),
            format!("{link} {hook} without {rule}:\n{shown}"),
        )?;
    }
    let links = sh_in(&lab.host, "ip -d link show")?;
    for part in [
        "nv-br",
        "4e:65:75:56:00:00",
        "nv-in-0001@",
        "isolated on",
        "nvcli:1 id=0001 mode=inline if=eth0",
    ] {
        ensure(links.contains(part), format!("without {part}:\n{links}"))?;
    }
    let inner = sh_in(inside, "ip -o link show")?;
    let mac = lab.containers[0].mac.to_string();
    for name in ["eth0@", "nv-ex-eth0@"] {
        ensure(
            inner.lines().any(|l| l.contains(name) && l.contains(&mac)),
            format!("{name} without {mac}: {inner}"),
        )?;
    }
    detach(&lab, attachment.id)
}

/// An AF_PACKET socket on an interface, for sending and receiving whole frames.
struct Wire(std::os::fd::OwnedFd);

impl Wire {
    fn open(netns: &Netns, interface: &str) -> Result<Self, Failed> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt,
        };
        let all = SockProtocol::EthAll;
        let fd = netns.run(|| {
            socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                all,
            )
        })??;
        let wait = nix::sys::time::TimeVal::new(0, 300_000);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait)?;
        // The interface's address as the kernel tells it is also the one to bind to; it names no protocol, so the
        // socket's own stays.
        let address = netns.run(|| {
            let mut all = nix::ifaddrs::getifaddrs()?.filter(|a| a.interface_name == interface);
            Ok::<_, nix::Error>(all.find_map(|a| a.address?.as_link_addr().copied()))
        })??;
        bind(fd.as_raw_fd(), &address.ok_or("no such interface")?)?;
        Ok(Self(fd))
    }

    fn send(&self, frame: &[u8]) -> Result<(), Failed> {
        match nix::unistd::write(&self.0, frame) {
            // So the kernel tells that a rule dropped it.
            Ok(_) | Err(nix::Error::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All frames that come until none comes for a while.
    fn drain(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        std::iter::from_fn(|| {
            let len = nix::unistd::read(&self.0, &mut buffer).ok()?;
            Some(buffer[..len].to_vec())
        })
        .collect()
    }
}

/// An Ethernet frame of an experimental type, so that no stack answers it.
fn frame(destination: [u8; 6], source: [u8; 6], text: &str) -> Vec<u8> {
    let mut frame = [&destination[..], &source[..], &[0x88, 0xb5]].concat();
    frame.extend(text.as_bytes());
    frame.resize(60, 0);
    frame
}

fn nothing_sent_into_the_bridge_reaches_a_container() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let (one, two) = (
        attach(&lab, 0, Mode::Inline)?,
        attach(&lab, 1, Mode::Inline)?,
    );
    let (web, client) = (&lab.containers[0], &lab.containers[1]);
    let listeners = [
        Wire::open(&web.netns, "eth0")?,
        Wire::open(&client.netns, "eth0")?,
    ];
    let source = [2, 0, 0, 0, 0, 9];
    for interface in ["nv-br", &one.port, &two.port] {
        let wire = Wire::open(&lab.host, interface)?;
        for destination in [
            [0xff; 6],
            web.mac.octets(),
            client.mac.octets(),
            one.id.mac().octets(),
        ] {
            wire.send(&frame(destination, source, "from the host"))?;
        }
    }
    let leaked =
        |wire: &Wire, text: &str| wire.drain().iter().filter(|f| contains(f, text)).count();
    same(
        "leaked from the host",
        listeners
            .iter()
            .map(|w| leaked(w, "from the host"))
            .sum::<usize>(),
        0,
    )?;

    // A broadcast of one container goes its own way over the lab's bridge, and no other: the second container sees it
    // once coming in, and once as the copy of that on its way to the host.
    let port = Wire::open(&lab.host, &two.port)?;
    let bridge = Wire::open(&lab.host, "nv-br")?;
    Wire::open(&web.netns, "eth0")?.send(&frame([0xff; 6], web.mac.octets(), "to all"))?;
    same("seen by the other one", leaked(&listeners[1], "to all"), 2)?;
    same("left through the other's port", leaked(&port, "to all"), 1)?;
    same("on nv-br: once a side", leaked(&bridge, "to all"), 2)?;
    for id in [one.id, two.id] {
        detach(&lab, id)?;
    }
    Ok(())
}

fn what_the_original_sends_by_itself_is_seen() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let attachment = attach(&lab, 0, Mode::Inline)?;
    let (web, client) = (&lab.containers[0], &lab.containers[1]);
    let bridge = Wire::open(&lab.host, "nv-br")?;
    let outside = Wire::open(&client.netns, "eth0")?;
    let (own, other) = (web.mac.octets(), client.mac.octets());
    let sent = frame(other, own, "bound to the original");
    Wire::open(&web.netns, "nv-ex-eth0")?.send(&sent)?;
    let arrived = outside.drain().iter().filter(|f| f[..] == sent[..]).count();
    same("arrived", arrived, 1)?;
    let seen = bridge
        .drain()
        .into_iter()
        .filter(|f| contains(f, "bound to the original"))
        .collect::<Vec<_>>();
    let marked = frame(other, attachment.id.mac().octets(), "bound to the original");
    same("seen, as leaving", seen, vec![marked])?;

    // From the moment of the switch on, the wire's counter and the port's are of the same frames: what the original says
    // by itself when it loses its addresses is among them.
    let counted = || -> Result<(u64, u64), Failed> {
        let links = nvnet::links(&lab.host)?;
        let of = |name: &str| {
            links
                .iter()
                .find(|link| link.name == name)
                .map(|link| link.stats)
                .ok_or("no link")
        };
        let (end, port) = (of(&web.host_end)?, of(&attachment.port)?);
        Ok((end.rx_packets + end.tx_packets, port.rx_packets))
    };
    let (wire, port) = counted()?;
    traffic(&lab)?;
    // Two seconds are longer than anything IPv6 puts off.
    std::thread::sleep(Duration::from_secs(2));
    let (wire_after, port_after) = counted()?;
    same(
        "frames on the wire and on the port",
        wire_after - wire,
        port_after - port,
    )?;
    detach(&lab, attachment.id)
}

fn contains(frame: &[u8], text: &str) -> bool {
    frame
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

fn frames_are_marked_by_the_way_they_went(kind: Kind) -> Result<(), Failed> {
    let mode = kind.mode();
    let lab = kind.lab(&["web", "client"])?;
    let attachment = attach(&lab, 0, mode)?;
    let (web, client) = (&lab.containers[0], &lab.containers[1]);
    let bridge = Wire::open(&lab.host, "nv-br")?;
    let (mark, group) = (
        attachment.id.mac().octets(),
        attachment.id.group_mac().octets(),
    );
    let (own, other, forged) = (web.mac.octets(), client.mac.octets(), [2, 9, 9, 9, 9, 9]);
    let inside = Wire::open(&web.netns, "eth0")?;
    let outside = Wire::open(&client.netns, "eth0")?;
    for (wire, sent, seen) in [
        (&inside, frame(other, own, "leaves"), (other, mark)),
        (
            &inside,
            frame([0xff; 6], own, "leaves to all"),
            ([0xff; 6], mark),
        ),
        (
            &inside,
            frame(other, forged, "leaves with a forged source"),
            (other, mark),
        ),
        (
            &inside,
            frame([0xff; 6], forged, "leaves forged to all"),
            ([0xff; 6], mark),
        ),
        (&outside, frame(own, other, "enters"), (mark, other)),
        (
            &outside,
            frame([0xff; 6], other, "enters to all"),
            (group, other),
        ),
        (
            &outside,
            frame([2, 8, 8, 8, 8, 8], other, "enters for somebody else"),
            (mark, other),
        ),
    ] {
        // A macvlan does not get what is not for it.
        if kind == Kind::Inside && contains(&sent, "somebody else") {
            continue;
        }
        bridge.drain();
        wire.send(&sent)?;
        let text = String::from_utf8_lossy(&sent[14..])
            .trim_end_matches('\0')
            .to_owned();
        let marked = bridge
            .drain()
            .into_iter()
            .filter(|f| contains(f, &text))
            .collect::<Vec<_>>();
        let addresses = marked
            .iter()
            .map(|f| (f[..6].to_vec(), f[6..12].to_vec()))
            .collect::<Vec<_>>();
        same(
            &format!("{mode}, {text}"),
            addresses,
            vec![(seen.0.to_vec(), seen.1.to_vec())],
        )?;
        // The frame itself arrives as it was sent.
        let arrived = if std::ptr::eq(wire, &inside) {
            outside.drain()
        } else {
            inside.drain()
        };
        let arrived = arrived.iter().any(|f| f[..] == sent[..]);
        ensure(
            arrived,
            format!("{mode}, {text}: did not arrive as it was sent"),
        )?;
    }
    detach(&lab, attachment.id)?;
    Ok(())
}

fn inline_is_refused_where_it_would_cut_connections() -> Result<(), Failed> {
    for (make, why) in [
        (
            "ip link add link eth0 name above type macvlan",
            "`above` stands on it",
        ),
        (
            "ip link add br0 type bridge && ip link set eth0 master br0",
            "a port of `br0`",
        ),
    ] {
        let lab = Lab::new(&["web"])?;
        sh_in(&lab.containers[0].netns, make)?;
        let before = pictures(&lab)?;
        match plan(&lab, 0, Mode::Inline).interface("eth0").check() {
            Err(error @ Error::Unsafe { .. }) => {
                ensure(error.to_string().contains(why), error.to_string())?;
                ensure(
                    error.remedy().is_some_and(|r| r.contains("mirror")),
                    "no remedy",
                )?;
            }
            other => return Err(format!("{other:?}").into()),
        }
        untouched(&lab, &before)?;
        // What is refused inline works in mirror mode.
        let attached = plan(&lab, 0, Mode::Mirror)
            .interface("eth0")
            .check()?
            .attach()?;
        detach(&lab, attached[0].id)?;
        untouched(&lab, &before)?;
    }
    let lab = Lab::new(&["web"])?;
    sh_in(
        &lab.containers[0].netns,
        "ip link add link eth0 name mac0 type macvlan && ip link set mac0 up",
    )?;
    match plan(&lab, 0, Mode::Inline).interface("mac0").check() {
        Err(Error::Unsafe { why, .. }) if why.contains("macvlan") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// What is no text could not be given to the one in its place, nor put back.
fn inline_is_refused_where_a_name_is_no_text() -> Result<(), Failed> {
    for make in [
        r#"name=$(printf 'eth\351')
        ip link set eth0 down && ip link set eth0 name "$name" && ip link set "$name" up"#,
        r#"ip link set eth0 alias "$(printf 'eth\351')""#,
    ] {
        let lab = Lab::new(&["web"])?;
        let web = &lab.containers[0].netns;
        // Fails without it.
        let is_there = || sh_in(web, r"ip link | od -An -c | tr -d ' \n' | grep -q eth351");
        sh_in(web, make)?;
        is_there()?;
        let all = |mode| Plan::new(&lab.host, web, Workload::default()).mode(mode);
        let error = all(Mode::Inline).check().err();
        ensure(
            matches!(&error, Some(Error::Unsafe { why, .. }) if why.contains("UTF-8")),
            format!("{error:?}"),
        )?;
        let attached = all(Mode::Mirror).check()?.attach()?;
        detach(&lab, attached[0].id)?;
        is_there()?;
    }
    Ok(())
}

fn what_changed_while_attached_stays() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let inside = &lab.containers[0].netns;
    let change = "set -e
        ip addr add 10.78.5.5/24 dev eth0
        ip route add 203.0.113.0/24 via 10.78.0.1
        ip route del default via 10.78.0.1
        ip link set eth0 mtu 1400
        echo 7 > /proc/sys/net/ipv4/neigh/eth0/gc_stale_time";
    let attachment = attach(&lab, 0, Mode::Inline)?;
    sh_in(inside, change)?;
    traffic(&lab)?;
    detach(&lab, attachment.id)?;
    let after = pictures(&lab)?;
    let other = Lab::new(&["web", "client"])?;
    sh_in(&other.containers[0].netns, change)?;
    untouched(&other, &after)
}

fn an_interface_that_was_set_down_stays_down() -> Result<(), Failed> {
    const KEEP: &str = "echo 1 > /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down";
    const DOWN: &str = "ip link set eth0 down";
    // The kernel makes the routes of IPv6 addresses a moment later.
    const UP: &str = "ip link set eth0 up
        timeout 20 sh -c 'until ip -6 route show table local | grep -q fd4e:6576::2; do sleep 0.01; done'";
    for (before, during) in [
        ("true", DOWN.to_owned()),
        (KEEP, DOWN.to_owned()),
        ("true", format!("{KEEP}; {DOWN}")),
    ] {
        let lab = Lab::new(&["web", "client"])?;
        let inside = &lab.containers[0].netns;
        sh_in(inside, &format!("set -e; {RICH}{before}"))?;
        let attachment = attach(&lab, 0, Mode::Inline)?;
        sh_in(inside, &during)?;
        detach(&lab, attachment.id)?;
        let other = Lab::new(&["web", "client"])?;
        let apart = &other.containers[0].netns;
        sh_in(apart, &format!("set -e; {RICH}{before}; {during}"))?;
        let what = format!("{before}; {during}");
        same_picture(&what, &picture(apart)?, &picture(inside)?)?;
        same("attachments", nvnet::list(&lab.host)?.len(), 0)?;
        if what.contains(KEEP) {
            sh_in(inside, UP)?;
            traffic(&lab)?;
        }
    }
    Ok(())
}

/// Of every octet but NUL that a text can have: as a character, or the last one of a character.
fn the_kernel_takes_the_names_that_we_take() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let web = &lab.containers[0].netns;
    // Before Linux 6.2 none is renamed that is up.
    sh_in(web, "ip link set eth0 down")?;
    let index = web.run(|| nix::net::if_::if_nametoindex("eth0"))??;
    // To a rename `%` begins a number that is to be found, so it is in no name either, but that is no rule of names.
    for character in ('\u{1}'..='\u{ff}').filter(|c| *c != '%') {
        let name = format!("a{character}b");
        let is_taken = match web
            .run(|| rename(index, &name))?
            .map_err(|e| e.raw_os_error())
        {
            Ok(()) => true,
            Err(Some(libc::EINVAL)) => false,
            Err(other) => return Err(format!("{name:?}: {other:?}").into()),
        };
        let error = plan(&lab, 0, Mode::Mirror).interface(&name).check().err();
        let is_refused = matches!(error, Some(Error::BadName { .. }));
        same(&format!("{name:?}"), !is_refused, is_taken)?;
    }
    Ok(())
}

/// Asks the kernel itself: iproute2 has an opinion of its own about names.
fn rename(index: u32, name: &str) -> std::io::Result<()> {
    let link = rtnetlink::LinkUnspec::new_with_index(index).name(name.to_owned());
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::SetLink(link.build()));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(4_096);
    socket.recv(&mut answer, 0)?;
    // Behind the header is the error, negated.
    let code = answer.get(16..20).and_then(|code| code.try_into().ok());
    match i32::from_ne_bytes(code.ok_or(std::io::ErrorKind::InvalidData)?) {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(-code)),
    }
}

fn next_hop_objects_follow() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let target = &lab.containers[0].netns;
    sh_in(
        target,
        "set -e
         ip nexthop add id 5 via 10.78.0.1 dev eth0
         ip nexthop add id 6 via 10.78.0.9 dev eth0 onlink
         ip nexthop add id 7 via fd4e:6576::1 dev eth0
         ip nexthop add id 8 group 5/6
         ip route add 203.0.113.0/24 nhid 5
         ip route add 203.0.114.0/24 nhid 8
         ip -6 route add 2001:db8:7::/64 nhid 7",
    )?;
    traffic(&lab)?;
    let before = pictures(&lab)?;
    let attachment = attach(&lab, 0, Mode::Inline)?;
    let during = sh_in(target, "ip nexthop show; ip route show 203.0.113.0/24")?;
    ensure(!during.contains("nv-ex"), during)?;
    traffic(&lab)?;
    detach(&lab, attachment.id)?;
    untouched(&lab, &before)
}

fn a_port_deleted_by_hand_is_brought_back_whole() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let target = &lab.containers[0].netns;
    sh_in(target, &format!("set -e; {RICH}{FOLLOWERS}"))?;
    traffic(&lab)?;
    let before = pictures(&lab)?;
    let attachment = attach(&lab, 0, Mode::Inline)?;
    sh_in(&lab.host, &format!("ip link delete {}", attachment.port))?;
    ensure(
        matches!(
            plan(&lab, 0, Mode::Inline).check(),
            Err(Error::Unfinished { .. })
        ),
        "not told",
    )?;
    ensure(
        !sh_in(target, "ip -o addr")?.contains("10.78.0.2/"),
        "its addresses did not go with the pair",
    )?;
    let repaired = nvnet::repair_target(&lab.host, target).map_err(chain)?;
    let told = repaired
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    ensure(
        told.contains("eth0 is back, with its addresses and routes"),
        told,
    )?;
    untouched(&lab, &before)?;
    traffic(&lab)?;
    same("once more", nvnet::repair(&lab.host)?, vec![])
}

/// Next hop objects, a group of them, and routes by both.
const FOLLOWERS: &str = "
    ip nexthop add id 5 via 10.78.0.1 dev eth0
    ip nexthop add id 6 via 10.78.1.1 dev eth0
    ip nexthop add id 7 group 5/6,3
    ip route add 203.0.117.0/24 nhid 5
    ip route add 203.0.118.0/24 nhid 7 metric 9
";

fn of_what_is_left_of_a_container_its_runtime_decides() -> Result<(), Failed> {
    for fate in [
        Fate::Leave("nobody knows".into()),
        Fate::Remove("it was disconnected".into()),
    ] {
        let lab = Lab::new(&["web", "client"])?;
        let target = &lab.containers[0].netns;
        let attachment = attach(&lab, 0, Mode::Inline)?;
        sh_in(&lab.host, &format!("ip link delete {}", attachment.port))?;
        let judge = |orphan: &nvnet::Orphan<'_>| {
            assert_eq!(
                (orphan.interface, orphan.mac),
                ("eth0", lab.containers[0].mac)
            );
            assert_eq!(orphan.replaced_by, None);
            fate.clone()
        };
        let repaired = nvnet::Session::open(&lab.host)?
            .repair_target(target, &judge)
            .map_err(chain)?;
        let told = repaired.first().map(ToString::to_string);
        let links = sh_in(target, "ip -o link show")?;
        match &fate {
            Fate::Leave(why) => {
                ensure(told.is_some_and(|t| t.contains(&why[..])), "not told")?;
                ensure(links.contains("nv-ex-eth0"), links)?;
            }
            _ => {
                ensure(told.is_some_and(|t| t.contains("is deleted")), "not told")?;
                ensure(!links.contains("eth0"), links)?;
                let end = &lab.containers[0].host_end;
                ensure(
                    sh_in(&lab.host, &format!("ip link show {end}")).is_err(),
                    "its other end is left",
                )?;
            }
        }
    }
    Ok(())
}

fn a_pair_deleted_by_hand_leaves_no_filter_inside() -> Result<(), Failed> {
    let lab = Kind::Inside.lab(&["web", "client"])?;
    let before = pictures(&lab)?;
    let attachment = attach(&lab, 0, Mode::Mirror)?;
    sh_in(&lab.host, &format!("ip link delete {}", attachment.port))?;
    // The copies end, the container's network goes on.
    traffic(&lab)?;
    ensure(
        matches!(
            plan(&lab, 0, Mode::Mirror).check(),
            Err(Error::Unfinished { .. })
        ),
        "not told",
    )?;
    let repaired = nvnet::repair_target(&lab.host, &lab.containers[0].netns).map_err(chain)?;
    ensure(
        repaired
            .iter()
            .any(|r| r.to_string().contains("eth0 of web")),
        format!("{repaired:?}"),
    )?;
    untouched(&lab, &before)
}

fn an_interface_that_goes_takes_its_copies_along() -> Result<(), Failed> {
    let lab = Kind::Inside.lab(&["web", "client"])?;
    let attachment = attach(&lab, 0, Mode::Mirror)?;
    same("inspected", nvnet::inspect(&lab.host, &attachment)?, None)?;
    sh_in(&lab.containers[0].netns, "ip link delete eth0")?;
    same(
        "inspected",
        nvnet::inspect(&lab.host, &attachment)?.as_deref(),
        Some("eth0 is gone"),
    )?;
    same("repaired", nvnet::repair(&lab.host)?.len(), 2)?;
    for netns in namespaces(&lab) {
        same(
            "links of ours",
            sh_in(netns, "ip -o link show | grep nv- | cat")?,
            String::new(),
        )?;
    }
    Ok(())
}

/// What a program of the container sends through the pair that copies leave by is nobody's frame.
fn nothing_but_copies_leaves_by_the_pair() -> Result<(), Failed> {
    let lab = Kind::Inside.lab(&["web", "client"])?;
    let attachment = attach(&lab, 0, Mode::Mirror)?;
    let tap = format!("{}{}", nvnet::TAP_PREFIX, attachment.id);
    let bridge = Wire::open(&lab.host, "nv-br")?;
    let inside = Wire::open(&lab.containers[0].netns, &tap)?;
    inside.send(&frame([0xff; 6], [2, 0, 0, 0, 0, 9], "spoken by itself"))?;
    inside.send(&frame(
        [0x4f, 0x65, 0x75, 0x56, 0xff, 0xff],
        [2, 0, 0, 0, 0, 9],
        "of another id",
    ))?;
    let own = attachment.id.group_mac().octets();
    inside.send(&frame(own, [2, 0, 0, 0, 0, 9], "as a copy"))?;
    let seen = bridge.drain();
    let times = |text: &str| seen.iter().filter(|f| contains(f, text)).count();
    same(
        "seen",
        [
            times("spoken by itself"),
            times("of another id"),
            times("as a copy"),
        ],
        [0, 0, 1],
    )?;
    // And nothing comes in by it.
    Wire::open(&lab.host, &attachment.port)?.send(&frame([0xff; 6], own, "from the host"))?;
    let came = inside
        .drain()
        .iter()
        .filter(|f| contains(f, "from the host"))
        .count();
    same("came in", came, 0)?;
    detach(&lab, attachment.id)
}

fn another_hosts_attachment_is_left_alone() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let target = &lab.containers[0].netns;
    let attachment = attach(&lab, 0, Mode::Inline)?;
    let before = sh_in(
        target,
        "ip -d addr show; tc filter show dev nv-ex-eth0 ingress",
    )?;
    let other = Lab::new(&["other"])?;
    let repaired = nvnet::repair_target(&other.host, target).map_err(chain)?;
    ensure(repaired.is_empty(), format!("{repaired:?}"))?;
    let after = sh_in(
        target,
        "ip -d addr show; tc filter show dev nv-ex-eth0 ingress",
    )?;
    same("the container", before, after)?;
    traffic(&lab)?;
    detach(&lab, attachment.id)
}

fn a_bridge_deleted_by_hand_is_told_and_repaired() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let before = pictures(&lab)?;
    let one = attach(&lab, 0, Mode::Mirror)?;
    sh_in(&lab.host, "ip link delete nv-br")?;
    let two = attach(&lab, 1, Mode::Mirror)?;
    let health: Vec<_> = nvnet::list(&lab.host)?
        .iter()
        .map(|a| a.health == nvnet::Health::Whole)
        .collect();
    same("whole", health, vec![false, true])?;
    same("repaired", nvnet::repair(&lab.host)?.len(), 1)?;
    let again = attach(&lab, 0, Mode::Mirror)?;
    same("the id is free again", again.id, one.id)?;
    for id in [again.id, two.id] {
        detach(&lab, id)?;
    }
    untouched(&lab, &before)
}

fn several_interfaces_are_attached_together() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let target = &lab.containers[0].netns;
    let pid_path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        target.as_fd().as_raw_fd()
    );
    sh_in(
        &lab.host,
        &format!(
            "set -e
             ip link add second type veth peer name eth1
             echo 0 > /proc/sys/net/ipv6/conf/second/accept_dad
             ip link set second up
             ip link set eth1 netns {pid_path}"
        ),
    )?;
    sh_in(
        target,
        "echo 0 > /proc/sys/net/ipv6/conf/eth1/accept_dad && ip link set eth1 up && ip addr add 10.79.0.2/24 dev eth1",
    )?;
    let before = pictures(&lab)?;
    for mode in MODES {
        let attached = plan(&lab, 0, mode).check()?.attach()?;
        let names: Vec<_> = attached.iter().map(|a| &a.interface[..]).collect();
        same("interfaces", names, vec!["eth0", "eth1"])?;
        traffic(&lab)?;
        for attachment in attached {
            detach(&lab, attachment.id)?;
        }
        untouched(&lab, &before)?;

        // When the second one fails, the first is taken back too.
        let steps = plan(&lab, 0, mode).check()?.steps().len();
        let fails = |number, _: &nvnet::Step| {
            if number == steps - 1 {
                Err(Error::NotAttached { id: id(1) })
            } else {
                Ok(())
            }
        };
        ensure(
            plan(&lab, 0, mode).check()?.attach_observed(fails).is_err(),
            "did not fail",
        )?;
        untouched(&lab, &before)?;
    }
    Ok(())
}

fn processes_wait_for_each_other() -> Result<(), Failed> {
    let lab = Lab::new(&["a", "b", "c", "d"])?;
    let before = pictures(&lab)?;
    std::thread::scope(|scope| -> Result<(), Failed> {
        let lab = &lab;
        let threads: Vec<_> = (0..4)
            .map(|container| {
                scope.spawn(move || -> Result<(), Failed> {
                    for mode in MODES {
                        let attachment = attach(lab, container, mode)?;
                        detach(lab, attachment.id)?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    untouched(&lab, &before)
}

/// Whoever is in the host's namespace can lock its file, and have any name and port there.
fn nobody_without_a_privilege_is_waited_for() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let mut locker = child_in(&lab.host, "locker")?;
    let said = first_line(&mut locker)?;
    ensure(said.contains("run it as root"), format!("a ticket: {said}"))?;
    let (done, outcome) = std::sync::mpsc::channel();
    let host = lab.host.clone();
    std::thread::spawn(move || {
        let opened = nvnet::Session::open(&host).map(drop);
        let _ = done.send(opened.map_err(chain));
    });
    let outcome = outcome.recv_timeout(Duration::from_secs(10));
    locker.kill()?;
    locker.wait()?;
    outcome.map_err(|_| "it was waited for a process of nobody's")?
}

fn who_is_waited_for_in_vain_is_told() -> Result<(), Failed> {
    let (lab, other) = (Lab::new(&["web"])?, Lab::new(&["web"])?);
    let told = |host: &Netns, holder: u32| -> Result<(), Failed> {
        let outcome = nvnet::Session::open_within(host, Duration::from_millis(200));
        let Err(error @ Error::Locked { pid, .. }) = &outcome else {
            return Err(format!("{outcome:?}").into());
        };
        same("pid", *pid, Some(holder))?;
        let said = error.to_string();
        ensure(said.contains(&format!("{holder} (namespaces")), said)?;
        let remedy = error.remedy().unwrap_or_default();
        ensure(remedy.contains(&format!("kill {holder}`")), remedy)
    };
    let mut holder = child_in(&lab.host, "holder")?;
    same("held", &first_line(&mut holder)?[..], "held\n")?;
    told(&lab.host, holder.id())?;
    // Another host's is free; and a plan that was checked holds it, too.
    let session = nvnet::Session::open_within(&other.host, Duration::ZERO)?;
    let checked = plan(&other, 0, Mode::Mirror).check_in(session)?;
    told(&other.host, std::process::id())?;
    drop(checked);
    drop(nvnet::Session::open_within(&other.host, Duration::ZERO).map_err(chain)?);
    // Killed, it lets go.
    let host = lab.host.clone();
    let waits = std::thread::spawn(move || {
        nvnet::Session::open_within(&host, Duration::from_secs(10)).map(drop)
    });
    holder.kill()?;
    holder.wait()?;
    waits.join().expect("no panic").map_err(chain)
}

/// As when somebody who lists maps holds it a moment longer than its owner.
fn a_ticket_that_is_given_back_just_now_is_not_waited_for() -> Result<(), Failed> {
    let lab = Lab::new(&[])?;
    let mut held = Some(nvnet::Session::open(&lab.host).map_err(chain)?);
    let tried = nvnet::Session::open_watched(&lab.host, Duration::ZERO, |_| {
        held = None;
        ControlFlow::Continue(())
    });
    let _held = tried.map_err(chain)?;
    // It is an end, too, that who waits wants no more.
    let refused =
        nvnet::Session::open_watched(&lab.host, nvnet::Session::PATIENCE, |waiting| match waiting
            .holder()
        {
            Some((pid, _)) if pid == std::process::id() => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
    ensure(
        matches!(refused, Err(Error::Locked { .. })),
        format!("{refused:?}"),
    )
}

/// Of those who wait, the first one is the first to go on, whoever is quicker.
fn who_came_first_goes_first() -> Result<(), Failed> {
    const WAIT: Duration = Duration::from_secs(30);
    let lab = Lab::new(&[])?;
    let host = &lab.host;
    let order = std::sync::Mutex::new(Vec::new());
    let (waits, is_waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| -> Result<(), Failed> {
        let held = nvnet::Session::open_within(host, WAIT)?;
        let mut waiting = Vec::new();
        for number in 0..6 {
            let (order, waits) = (&order, waits.clone());
            waiting.push(scope.spawn(move || {
                let session = nvnet::Session::open_watched(host, WAIT, |_| {
                    // More often than it is listened to.
                    let _ = waits.send(number);
                    ControlFlow::Continue(())
                });
                order.lock().expect("no panic").push(number);
                session.map(drop)
            }));
            // Who looks in vain has a ticket.
            while is_waiting.recv_timeout(WAIT)? != number {}
        }
        drop(held);
        waiting
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic").map_err(chain))
    })?;
    let order = order.into_inner().expect("no panic");
    same("order", order, (0..6).collect::<Vec<_>>())
}

/// While somebody's request for a filter waits for the kernel's lock, the kernel refuses to delete what the filter would be at.
fn requests_of_others_for_filters_are_waited_for() -> Result<(), Failed> {
    let lab = Lab::new(&["web"])?;
    let before = pictures(&lab)?;
    let port = &lab.containers[0].host_end;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), Failed> {
        let others =
            [(); 2].map(|()| scope.spawn(|| lab.host.run(|| ask_for_filters(port, &stop))));
        let rounds = (0..30).try_for_each(|_| -> Result<(), Failed> {
            let attachment = attach(&lab, 0, Mode::Mirror)?;
            detach(&lab, attachment.id)
        });
        stop.store(true, Ordering::Relaxed);
        for other in others {
            let asked = other.join().expect("no panic")??;
            ensure(asked > 100, format!("asked {asked} times"))?;
        }
        rounds
    })?;
    untouched(&lab, &before)
}

/// Asks for a filter that is not there until told to stop; how often.
fn ask_for_filters(link: &str, stop: &AtomicBool) -> std::io::Result<u64> {
    const ETH_P_ALL: u16 = 3;
    let mut filter = TcMessage::with_index(nix::net::if_::if_nametoindex(link)? as i32);
    filter.header.parent = TcHandle {
        major: u16::MAX,
        minor: TcHandle::MIN_INGRESS,
    };
    filter.header.info = 9_999 << 16 | u32::from(ETH_P_ALL.to_be());
    filter.attributes = vec![TcAttribute::Kind("u32".into())];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(filter));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut answer = Vec::with_capacity(4_096);
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        socket.send(&request, 0)?;
        answer.clear();
        socket.recv(&mut answer, 0)?;
        asked += 1;
        // So that others have a turn, too.
        std::thread::yield_now();
    }
    Ok(asked)
}

fn a_missing_privilege_is_told() -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?)
        .env(CHILD, "unprivileged")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(
        output.status.success() && said.contains("run it as root"),
        format!("{output:?}"),
    )
}

fn links_of_every_namespace_are_told_of() -> Result<(), Failed> {
    /// Longer than anything here takes, also on a machine that is busy.
    const LONG: Duration = Duration::from_secs(30);
    let lab = Lab::new(&["web"])?;
    let web = &lab.containers[0].netns;
    let number = nvnet::number_of(&lab.host, web).map_err(chain)?;
    ensure(number.is_some(), "a veth pair joins the two")?;
    let mut events = nvnet::LinkEvents::open(&lab.host).map_err(chain)?;
    same(
        "before anything happened",
        events.next(Some(Duration::ZERO)).map_err(chain)?,
        nvnet::LinkNews::Nothing,
    )?;
    // For ever, and as good as that.
    for wait in [None, Some(Duration::MAX)] {
        sh_in(
            &lab.host,
            "ip link add soon0 type veth peer name soon1 && ip link del soon0",
        )?;
        let news = events.next(wait).map_err(chain)?;
        ensure(
            matches!(news, nvnet::LinkNews::Events(_)),
            format!("{news:?}"),
        )?;
    }
    let mut until = |what: &dyn Fn(&nvnet::LinkEvent) -> bool| -> Result<(), Failed> {
        let end = std::time::Instant::now() + LONG;
        while std::time::Instant::now() < end {
            if let nvnet::LinkNews::Events(all) = events.next(Some(LONG)).map_err(chain)?
                && all.iter().any(what)
            {
                return Ok(());
            }
        }
        Err("it was not told".into())
    };
    sh_in(web, "ip link add new0 type veth peer name new1")?;
    until(&|event| event.netns == number && event.name == "new0" && !event.is_ours)?;
    sh_in(web, "ip link del new0")?;
    until(&|event| event.netns == number && event.name == "new0" && event.is_gone)?;
    sh_in(&lab.host, "ip link add here0 type veth peer name here1")?;
    until(&|event| event.netns.is_none() && event.name == "here0")?;
    let attachment = attach(&lab, 0, Mode::Inline)?;
    until(&|event| event.netns == number && event.name == "eth0" && event.is_ours)?;
    detach(&lab, attachment.id)?;
    // The last one takes the bridge along, which is ours until it is gone.
    let mut bridge = Vec::new();
    let end = std::time::Instant::now() + LONG;
    while !bridge
        .last()
        .is_some_and(|last: &nvnet::LinkEvent| last.is_gone)
    {
        ensure(
            std::time::Instant::now() < end,
            format!("it is not gone: {bridge:#?}"),
        )?;
        if let nvnet::LinkNews::Events(all) = events.next(Some(LONG)).map_err(chain)? {
            bridge.extend(all.into_iter().filter(|event| event.name == nvnet::BRIDGE));
        }
    }
    ensure(
        bridge.iter().all(|event| event.is_ours),
        format!("{bridge:#?}"),
    )
}
