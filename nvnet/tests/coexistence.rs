//! Beside other tools: their programs, filters, firewalls and addresses stay and go on to work, in every mode; what would
//! not go together is refused with the reason, and told beforehand by `survey`.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{Need, chain, ensure, picture, privileged, same, same_picture, sh_in};
use libtest_mimic::{Arguments, Failed};
use nvnet::lab::{Lab, LabContainer};
use nvnet::{Attachment, CheckedPlan, Error, Mode, Netns, Plan, Survey, Workload};

const ALL: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const WITH_TCX: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Tcx];
const WITH_NFT: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Nft];
const WITH_VXLAN: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Kind("vxlan")];
const WITH_VLAN: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Kind("vlan")];
const WITH_BOND: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Kind("bond")];
const WITH_IPVLAN: &[Need] = &[
    Need::Netns,
    Need::Ebpf,
    Need::Iproute2,
    Need::Kind("ipvlan"),
];
const WITH_MACVLAN: &[Need] = &[
    Need::Netns,
    Need::Ebpf,
    Need::Iproute2,
    Need::Kind("macvlan"),
];
const MODES: [Mode; 2] = [Mode::Inline, Mode::Mirror];

fn main() {
    let mut trials = Vec::new();
    for mode in MODES {
        let mut add = |name: &str, needs, test: fn(Mode) -> Result<(), Failed>| {
            trials.push(privileged(format!("{name}::{mode}"), needs, move || {
                test(mode)
            }));
        };
        add(
            "a_firewall_goes_on_to_decide",
            WITH_NFT,
            a_firewall_goes_on_to_decide,
        );
        add(
            "privacy_addresses_outlive_it",
            ALL,
            privacy_addresses_outlive_it,
        );
        add(
            "a_network_manager_is_not_noticed",
            ALL,
            a_network_manager_is_not_noticed,
        );
    }
    let mut add = |name, needs, test: fn() -> Result<(), Failed>| {
        trials.push(privileged(name, needs, test));
    };
    add(
        "a_direct_action_filter_is_passed_first",
        ALL,
        a_direct_action_filter_is_passed_first,
    );
    add("tcx_programs_are_told", WITH_TCX, tcx_programs_are_told);
    add("a_raised_mtu_is_followed", ALL, a_raised_mtu_is_followed);
    add(
        "a_survey_says_what_is_safe",
        ALL,
        a_survey_says_what_is_safe,
    );
    add("a_survey_of_a_macvlan", WITH_MACVLAN, a_survey_of_a_macvlan);
    add("a_tunnel_is_mirrored", WITH_VXLAN, a_tunnel_is_mirrored);
    add("an_ipvlan_is_mirrored", WITH_IPVLAN, an_ipvlan_is_mirrored);
    add(
        "vlans_inside_are_seen_once",
        WITH_VLAN,
        vlans_inside_are_seen_once,
    );
    add(
        "a_bond_inside_is_mirrored",
        WITH_BOND,
        a_bond_inside_is_mirrored,
    );
    add(
        "a_bridge_inside_is_left_out",
        ALL,
        a_bridge_inside_is_left_out,
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn workload(container: &LabContainer) -> Workload {
    Workload {
        name: container.name.clone(),
        ..Workload::default()
    }
}

fn plan(lab: &Lab, mode: Mode) -> Plan {
    let container = &lab.containers[0];
    Plan::new(&lab.host, &container.netns, workload(container)).mode(mode)
}

fn attach_all(plan: Plan) -> Result<Vec<Attachment>, Failed> {
    plan.check().and_then(CheckedPlan::attach).map_err(chain)
}

fn attach(lab: &Lab, mode: Mode) -> Result<Attachment, Failed> {
    let mut attached = attach_all(plan(lab, mode))?;
    same("attached", attached.len(), 1)?;
    attached.pop().ok_or_else(|| "none".into())
}

fn detach(lab: &Lab, attachment: &Attachment) -> Result<(), Failed> {
    nvnet::detach(&lab.host, attachment.id).map_err(chain)
}

/// One connection and what it carries, both ways.
fn talk(server: &Netns, address: IpAddr, client: &Netns) -> Result<(), Failed> {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let to = listener.local_addr()?;
    let mut near = client.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    let (mut far, _) = listener.accept()?;
    both_ways(&mut near, &mut far)
}

fn both_ways(near: &mut TcpStream, far: &mut TcpStream) -> Result<(), Failed> {
    let mut octets = vec![7; 20_000];
    for stream in [&*near, &*far] {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    near.write_all(&octets)?;
    far.read_exact(&mut octets)?;
    far.write_all(&octets)?;
    near.read_exact(&mut octets)?;
    Ok(())
}

/// Web is reached by the client, in both families.
fn reach(lab: &Lab) -> Result<(), Failed> {
    let (web, client) = (&lab.containers[0], &lab.containers[1]);
    talk(&web.netns, web.ipv4.into(), &client.netns)?;
    talk(&web.netns, web.ipv6.into(), &client.netns)
}

/// Frames that reached the host end of an attachment's pair.
fn copied(lab: &Lab, attachment: &Attachment) -> Result<u64, Failed> {
    let links = nvnet::links(&lab.host)?;
    let port = links.iter().find(|link| link.name == attachment.port);
    Ok(port.ok_or("no port")?.stats.rx_packets)
}

fn web(lab: &Lab) -> &Netns {
    &lab.containers[0].netns
}

fn pictures(lab: &Lab) -> Result<[String; 2], Failed> {
    Ok([picture(&lab.host)?, picture(web(lab))?])
}

fn untouched(lab: &Lab, before: &[String; 2]) -> Result<(), Failed> {
    same("attachments", nvnet::list(&lab.host)?.len(), 0)?;
    let now = pictures(lab)?;
    same_picture("the host", &before[0], &now[0])?;
    same_picture("web", &before[1], &now[1])
}

fn survey(lab: &Lab) -> Result<Vec<Survey>, Failed> {
    nvnet::survey(&lab.host, web(lab)).map_err(chain)
}

/// Refused, with this in the reason.
fn refused(plan: Plan, why: &str) -> Result<(), Failed> {
    match plan.check() {
        Err(error @ Error::Unsafe { .. }) => {
            ensure(error.to_string().contains(why), error.to_string())?;
            ensure(error.remedy().is_some(), "no remedy")
        }
        other => Err(format!("not refused for {why}: {other:?}").into()),
    }
}

/// A firewall as firewalld makes it: by the name of the interface, by the state of connections, and closed otherwise.
fn a_firewall_goes_on_to_decide(mode: Mode) -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let address = lab.containers[0].ipv4;
    let rules = "table inet filter {
        chain input {
            type filter hook input priority 0; policy drop;
            ct state established,related accept
            icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
            iifname \"eth0\" tcp dport 8080 counter accept
        }
        chain output {
            type filter hook output priority 0; policy drop;
            oifname \"eth0\" accept
        }
    }";
    sh_in(web(&lab), &format!("nft -f - <<'EOF'\n{rules}\nEOF"))?;
    let ruleset = || sh_in(web(&lab), "nft -s list ruleset");
    let (before, firewall) = (pictures(&lab)?, ruleset()?);
    let client = &lab.containers[1].netns;
    let open = web(&lab).run(|| TcpListener::bind(SocketAddr::new(address.into(), 8080)))??;
    let _closed = web(&lab).run(|| TcpListener::bind(SocketAddr::new(address.into(), 8081)))??;
    let connect = |port: u16, wait| {
        let to = SocketAddr::new(address.into(), port);
        client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(wait)))
    };
    let decides = || -> Result<(TcpStream, TcpStream), Failed> {
        let near = connect(8080, 5_000)??;
        ensure(
            connect(8081, 300)?.is_err(),
            "the firewall let something in",
        )?;
        Ok((near, open.accept()?.0))
    };
    let (mut near, mut far) = decides()?;
    let attachment = attach(&lab, mode)?;
    // What connection tracking knew goes on, and new ones are judged as before.
    both_ways(&mut near, &mut far)?;
    decides()?;
    same("rules while attached", ruleset()?, firewall.clone())?;
    detach(&lab, &attachment)?;
    both_ways(&mut near, &mut far)?;
    decides()?;
    same("rules", ruleset()?, firewall)?;
    untouched(&lab, &before)
}

/// The temporary addresses of RFC 8981: the kernel makes them beside an address, and lets nobody add one.
fn privacy_addresses_outlive_it(mode: Mode) -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    sh_in(
        web(&lab),
        "set -e
         echo 2 > /proc/sys/net/ipv6/conf/eth0/use_tempaddr
         ip addr add fd4e:6576::5:2/64 dev eth0 mngtmpaddr valid_lft 7000 preferred_lft 6000
         timeout 20 sh -c 'until ip -6 addr show dev eth0 | grep -q temporary; do :; done'
         timeout 20 sh -c 'while ip -6 addr | grep -q tentative; do :; done'",
    )?;
    let addresses = |what: &str| -> Result<Vec<IpAddr>, Failed> {
        let shown = sh_in(
            web(&lab),
            &format!("ip -6 -o addr show dev eth0 {what} | sed -nE 's/.*inet6 ([^/]+).*/\\1/p'"),
        )?;
        Ok(shown.lines().map(str::parse).collect::<Result<_, _>>()?)
    };
    let temporary = addresses("temporary")?[0];
    let client = &lab.containers[1].netns;
    // A connection that goes out under the temporary address.
    let listener =
        client.run(|| TcpListener::bind(SocketAddr::new(lab.containers[1].ipv6.into(), 0)))??;
    let to = listener.local_addr()?;
    let mut near = web(&lab).run(|| TcpStream::connect(to))??;
    same("source", near.local_addr()?.ip(), temporary)?;
    let (mut far, _) = listener.accept()?;
    both_ways(&mut near, &mut far)?;
    for _ in 0..2 {
        let attachment = attach(&lab, mode)?;
        both_ways(&mut near, &mut far)?;
        ensure(
            !addresses("temporary")?.is_empty(),
            "no temporary address while attached",
        )?;
        ensure(addresses("")?.contains(&temporary), "the old one is gone")?;
        same("inspected", nvnet::inspect(&lab.host, &attachment)?, None)?;
        detach(&lab, &attachment)?;
        both_ways(&mut near, &mut far)?;
        ensure(
            !addresses("temporary")?.is_empty(),
            "no temporary address after it",
        )?;
        ensure(addresses("")?.contains(&temporary), "the old one is gone")?;
    }
    if mode == Mode::Mirror {
        same("temporary", addresses("temporary")?, vec![temporary])?;
    }
    reach(&lab)
}

/// A DHCP client or a network manager that flushes what is on the interface, and puts it there anew with other routes.
fn a_network_manager_is_not_noticed(mode: Mode) -> Result<(), Failed> {
    let renew = "set -e
        ip addr flush dev eth0 scope global
        ip addr add 10.78.0.2/24 brd + dev eth0 valid_lft 3600 preferred_lft 1800 proto 16
        ip addr add 10.78.7.2/24 dev eth0
        ip addr add fd4e:6576::2/64 dev eth0 nodad
        ip route replace default via 10.78.0.1 proto dhcp metric 100
        ip route add 203.0.113.0/24 via 10.78.7.1 proto dhcp
        ip -6 route add 2001:db8:9::/64 via fd4e:6576::1 dev eth0 proto ra
        ip neigh replace 10.78.0.55 lladdr 02:00:00:00:00:55 dev eth0 nud permanent";
    // `proto` of addresses came with iproute2 6.x and Linux 5.18; without it the rest is the same.
    let renew = |lab: &Lab| {
        sh_in(web(lab), renew).or_else(|_| sh_in(web(lab), &renew.replace(" proto 16", "")))
    };
    let lab = Lab::new(&["web", "client"])?;
    let attachment = attach(&lab, mode)?;
    renew(&lab)?;
    reach(&lab)?;
    same("inspected", nvnet::inspect(&lab.host, &attachment)?, None)?;
    same("repaired", nvnet::repair(&lab.host)?, vec![])?;
    detach(&lab, &attachment)?;
    reach(&lab)?;
    let after = pictures(&lab)?;
    let other = Lab::new(&["web", "client"])?;
    renew(&other)?;
    untouched(&other, &after)
}

/// Programs that decide in the classifier, as Cilium's do, on the host end: ours come before them, and they decide as before.
fn a_direct_action_filter_is_passed_first() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let end = &lab.containers[0].host_end;
    // Both hooks, each ends classification.
    sh_in(
        &lab.host,
        &format!(
            "set -e
             tc qdisc add dev {end} clsact
             tc filter add dev {end} ingress pref 2 protocol all bpf da bytecode '1,6 0 0 0'
             tc filter add dev {end} egress pref 2 protocol all bpf da bytecode '1,6 0 0 0'"
        ),
    )?;
    let before = pictures(&lab)?;
    for mode in MODES {
        let attachment = attach(&lab, mode)?;
        // What reached nv-br was read there and dropped by its rule.
        let of_bridge = || -> Result<u64, Failed> {
            let told = sh_in(
                &lab.host,
                "tc -s qdisc show dev nv-br clsact | sed -nE 's/.*dropped ([0-9]+),.*/\\1/p'",
            )?;
            Ok(told.trim().parse()?)
        };
        let seen = of_bridge()?;
        reach(&lab)?;
        ensure(of_bridge()? >= seen + 20, format!("{mode}: nothing seen"))?;
        detach(&lab, &attachment)?;
        untouched(&lab, &before)?;
    }
    // Where one stands at the very first place, the other mode is the way.
    sh_in(
        &lab.host,
        &format!("tc filter add dev {end} ingress pref 1 protocol all bpf da bytecode '1,6 0 0 0'"),
    )?;
    refused(plan(&lab, Mode::Mirror), "pref 1")?;
    let looked_at = survey(&lab)?;
    same("advice", looked_at[0].advice(), Some(Mode::Inline))?;
    ensure(looked_at[0].mirror.is_err(), "mirror is told to be safe")?;
    let attachment = attach(&lab, Mode::Inline)?;
    reach(&lab)?;
    detach(&lab, &attachment)
}

fn tcx_programs_are_told() -> Result<(), Failed> {
    // On the host end: mirror mode would see nothing, inline does not care.
    let lab = Lab::new(&["web", "client"])?;
    nvnet::lab::attach_tcx(&lab.host, &lab.containers[0].host_end, true)?;
    let before = pictures(&lab)?;
    refused(plan(&lab, Mode::Mirror), "TCX program")?;
    same("advice", survey(&lab)?[0].advice(), Some(Mode::Inline))?;
    let attachment = attach(&lab, Mode::Inline)?;
    reach(&lab)?;
    detach(&lab, &attachment)?;
    untouched(&lab, &before)?;

    // Inside: inline would lose what comes in, mirror mode does not care.
    let lab = Lab::new(&["web", "client"])?;
    nvnet::lab::attach_tcx(web(&lab), "eth0", true)?;
    let before = pictures(&lab)?;
    refused(plan(&lab, Mode::Inline), "TCX program")?;
    same("advice", survey(&lab)?[0].advice(), Some(Mode::Mirror))?;
    let attachment = attach(&lab, Mode::Mirror)?;
    reach(&lab)?;
    detach(&lab, &attachment)?;
    untouched(&lab, &before)?;

    // One that comes while attached: told, and taken out of its way by a repair.
    for (mode, on) in [(Mode::Inline, "nv-ex-eth0"), (Mode::Mirror, "")] {
        let lab = Lab::new(&["web", "client"])?;
        let attachment = attach(&lab, mode)?;
        let end = &lab.containers[0].host_end;
        let (netns, on) = if mode == Mode::Inline {
            (web(&lab), on)
        } else {
            (&lab.host, &end[..])
        };
        nvnet::lab::attach_tcx(netns, on, true)?;
        let told = nvnet::inspect(&lab.host, &attachment)?.unwrap_or_default();
        ensure(told.contains("a TCX program came"), told)?;
        same("repaired", nvnet::repair(&lab.host)?.len(), 2)?;
        same("attached", nvnet::list(&lab.host)?.len(), 0)?;
        reach(&lab)?;
    }
    Ok(())
}

fn a_raised_mtu_is_followed() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let attachment = attach(&lab, Mode::Inline)?;
    let (end, far) = (&lab.containers[0].host_end, &lab.containers[1].host_end);
    sh_in(
        &lab.host,
        &format!("for l in {end} {far} lab-br; do ip link set $l mtu 9000; done"),
    )?;
    for container in &lab.containers {
        sh_in(&container.netns, "ip link set eth0 mtu 9000")?;
    }
    let server = web(&lab).run(|| UdpSocket::bind((lab.containers[0].ipv4, 0)))??;
    let client = lab.containers[1]
        .netns
        .run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let arrives = |wait| -> Result<bool, Failed> {
        server.set_read_timeout(Some(Duration::from_millis(wait)))?;
        client.send_to(&[9; 8_000], server.local_addr()?)?;
        Ok(server.recv(&mut [0; 9_000]).is_ok())
    };
    ensure(!arrives(300)?, "it is no test: what is too long arrives")?;
    let repaired = nvnet::repair(&lab.host).map_err(chain)?;
    let told = repaired
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    ensure(told.contains("MTU was raised to 9000"), told)?;
    let seen = copied(&lab, &attachment)?;
    ensure(arrives(5_000)?, "8,000 octets do not arrive")?;
    ensure(copied(&lab, &attachment)? > seen, "nor are they seen")?;
    same("again", nvnet::repair(&lab.host)?, vec![])?;
    detach(&lab, &attachment)?;
    ensure(arrives(5_000)?, "nor after detach")?;
    let mtu = sh_in(
        web(&lab),
        "cat /sys/class/net/eth0/mtu; ip -o link show eth0",
    )?;
    ensure(mtu.contains("mtu 9000"), mtu)
}

fn a_survey_says_what_is_safe() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let end = &lab.containers[0].host_end;
    let one = survey(&lab)?.remove(0);
    same(
        "interface",
        (&one.interface[..], &one.kind[..]),
        ("eth0", "veth"),
    )?;
    same("inline", &one.inline, &Ok(()))?;
    same("mirror", &one.mirror, &Ok(end.clone()))?;
    let against = one.remarks.iter().any(|r| r.speaks_against_inline);
    ensure(!against, format!("{:?}", one.remarks))?;
    same("advice", one.advice(), Some(Mode::Inline))?;

    // A socket bound to it, and a member of a group.
    let bound = web(&lab).run(|| -> Result<UdpSocket, Failed> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::BindToDevice,
            &"eth0".into(),
        )?;
        socket.join_multicast_v4(&"224.0.0.251".parse()?, &lab.containers[0].ipv4)?;
        Ok(socket)
    })??;
    let one = survey(&lab)?.remove(0);
    let remarks: Vec<_> = one.remarks.iter().map(|r| &r.text[..]).collect();
    let remarks = remarks.join("\n");
    ensure(
        remarks.contains("bound to it receive nothing inline: 1")
            && remarks.contains("224.0.0.251"),
        remarks,
    )?;
    same("advice", one.advice(), Some(Mode::Mirror))?;
    same("inline could be", one.inline, Ok(()))?;
    drop(bound);
    same("advice", survey(&lab)?[0].advice(), Some(Mode::Inline))?;

    // What is attached is said to be.
    for mode in MODES {
        let attachment = attach(&lab, mode)?;
        let all = survey(&lab)?;
        same("interfaces", all.len(), 1)?;
        same("name", &all[0].interface[..], "eth0")?;
        same("attached", all[0].attached, Some((attachment.id, mode)))?;
        detach(&lab, &attachment)?;
    }
    // It changed nothing.
    same(
        "links of ours",
        sh_in(&lab.host, "ip -o link show | grep nv- | cat")?,
        String::new(),
    )
}

fn a_survey_of_a_macvlan() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    sh_in(
        web(&lab),
        "ip link add link eth0 name mac0 type macvlan && ip link set mac0 up",
    )?;
    let all = survey(&lab)?;
    let of = |name: &str| {
        all.iter()
            .find(|one| one.interface == name)
            .ok_or_else(|| Failed::from(format!("{name} is not among {all:?}")))
    };
    let (below, above) = (of("eth0")?, of("mac0")?);
    ensure(
        below
            .inline
            .as_ref()
            .is_err_and(|why| why.contains("`mac0` stands on it")),
        "below",
    )?;
    same("advice below", below.advice(), Some(Mode::Mirror))?;
    ensure(
        above
            .inline
            .as_ref()
            .is_err_and(|why| why.contains("macvlan")),
        "above",
    )?;
    same("mirrored from", &above.mirror, &Ok("mac0".into()))?;
    // Without a name what stands on another is left out: its frames are seen below.
    let attachment = attach(&lab, Mode::Mirror)?;
    same("attached", &attachment.interface[..], "eth0")?;
    detach(&lab, &attachment)
}

/// Attaches one interface of web by rules on itself, sends something by it, and sees it copied.
fn mirrored_inside(
    lab: &Lab,
    interface: &str,
    frames: impl Fn() -> Result<(), Failed>,
) -> Result<(), Failed> {
    let before = pictures(lab)?;
    let attachment = attach_all(plan(lab, Mode::Mirror).interface(interface))?
        .pop()
        .ok_or("none")?;
    ensure(attachment.has_pair(), "not by rules on itself")?;
    same("inspected", nvnet::inspect(&lab.host, &attachment)?, None)?;
    let seen = copied(lab, &attachment)?;
    frames()?;
    let now = copied(lab, &attachment)?;
    ensure(
        now >= seen + 10,
        format!("{} frames of {interface} copied", now - seen),
    )?;
    same("repaired", nvnet::repair(&lab.host)?, vec![])?;
    detach(lab, &attachment)?;
    untouched(lab, &before)?;
    frames()
}

/// A kind that is neither veth nor a slave of another link: VXLAN between the containers.
fn a_tunnel_is_mirrored() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [one, two] = [&lab.containers[0], &lab.containers[1]];
    for (here, there, address) in [(one, two, "192.0.2.1"), (two, one, "192.0.2.2")] {
        sh_in(
            &here.netns,
            &format!(
                "set -e
                 ip link add name vx0 type vxlan id 5 remote {} local {} dstport 4789
                 echo 0 > /proc/sys/net/ipv6/conf/vx0/accept_dad
                 ip link set vx0 up
                 ip addr add {address}/24 dev vx0",
                there.ipv4, here.ipv4
            ),
        )?;
    }
    mirrored_inside(&lab, "vx0", || {
        talk(&one.netns, "192.0.2.1".parse()?, &two.netns)
    })
}

/// A container whose only interface is an ipvlan of the host's; the link below leads to another container.
fn an_ipvlan_is_mirrored() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let client = &lab.containers[1].netns;
    let path = |netns: &Netns| {
        use std::os::fd::{AsFd, AsRawFd};
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            netns.as_fd().as_raw_fd()
        )
    };
    for (mode, number) in [("l2", 1), ("l3", 2)] {
        let inner = Netns::nameless("an ipvlan's container")?;
        let lower = format!("low{number}");
        let far = format!("far{number}");
        sh_in(
            &lab.host,
            &format!(
                "set -e
                 ip link add name {lower} type veth peer name {far} address 02:00:00:00:00:0{number} netns {}
                 ip link set {lower} up
                 ip link add link {lower} name iv0 type ipvlan mode {mode}
                 ip link set iv0 netns {}",
                path(client),
                path(&inner)
            ),
        )?;
        sh_in(
            client,
            &format!(
                "set -e
                 echo 0 > /proc/sys/net/ipv6/conf/{far}/accept_dad
                 ip link set {far} up
                 ip addr add 192.0.{number}.1/24 dev {far}"
            ),
        )?;
        sh_in(
            &inner,
            &format!(
                "set -e
                 ip link set lo up
                 echo 0 > /proc/sys/net/ipv6/conf/iv0/accept_dad
                 ip link set iv0 up
                 ip addr add 192.0.{number}.2/24 dev iv0
                 ip route add default dev iv0"
            ),
        )?;
        if mode == "l3" {
            // Nobody asks or answers by ARP, and what it sends goes where the host's routes lead.
            let lower_mac = sh_in(
                &lab.host,
                &format!(
                    "ip route add 192.0.{number}.0/24 dev {lower} >&2
                     ip neigh add 192.0.{number}.1 lladdr 02:00:00:00:00:0{number} dev {lower} >&2
                     ip -o link show {lower} | sed -nE 's/.*ether ([^ ]+).*/\\1/p'"
                ),
            )?;
            sh_in(
                client,
                &format!(
                    "ip neigh add 192.0.{number}.2 lladdr {} dev {far}",
                    lower_mac.trim()
                ),
            )?;
        }
        let before = picture(&inner)?;
        let plan = || Plan::new(&lab.host, &inner, Workload::default());
        refused(plan().mode(Mode::Inline), "ipvlan")?;
        let attachment = attach_all(plan().mode(Mode::Mirror))?.pop().ok_or("none")?;
        let seen = copied(&lab, &attachment)?;
        let address: IpAddr = format!("192.0.{number}.2").parse()?;
        talk(&inner, address, client)?;
        let frames = copied(&lab, &attachment)? - seen;
        ensure(frames >= 10, format!("{mode}: {frames} frames copied"))?;
        detach(&lab, &attachment)?;
        same_picture(mode, &before, &picture(&inner)?)?;
        talk(&inner, address, client)?;
    }
    // In mode l3s what it receives never passes its own hooks.
    sh_in(
        web(&lab),
        "ip link add link eth0 name iv1 type ipvlan mode l3s && ip link set iv1 up",
    )?;
    refused(plan(&lab, Mode::Mirror).interface("iv1"), "l3s")
}

fn vlans_inside_are_seen_once() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [one, two] = [&lab.containers[0], &lab.containers[1]];
    for (here, address) in [(one, "192.0.2.1"), (two, "192.0.2.2")] {
        sh_in(
            &here.netns,
            &format!(
                "set -e
                 ip link add link eth0 name eth0.5 type vlan id 5
                 echo 0 > /proc/sys/net/ipv6/conf/eth0.5/accept_dad
                 ip link set eth0.5 up
                 ip addr add {address}/24 dev eth0.5"
            ),
        )?;
    }
    let frames = || talk(&one.netns, "192.0.2.1".parse()?, &two.netns);
    frames()?;
    refused(plan(&lab, Mode::Inline), "`eth0.5` stands on it")?;
    // Both are on the wire of eth0, and that is what is attached.
    let before = pictures(&lab)?;
    let attachment = attach(&lab, Mode::Mirror)?;
    same("attached", &attachment.interface[..], "eth0")?;
    frames()?;
    detach(&lab, &attachment)?;
    untouched(&lab, &before)?;
    // By name it is one of its own, without tags.
    mirrored_inside(&lab, "eth0.5", frames)
}

fn a_bond_inside_is_mirrored() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    let [one, two] = [&lab.containers[0], &lab.containers[1]];
    sh_in(
        &one.netns,
        &format!(
            "set -e
             ip link add bond0 type bond mode active-backup
             echo 0 > /proc/sys/net/ipv6/conf/bond0/accept_dad
             # Else both links lead to the client, and its answers are expected on the one that gives all it gets to the bond.
             ip addr flush dev eth0
             ip link set eth0 down
             ip link set eth0 master bond0
             ip link set bond0 up
             ip addr add {}/24 dev bond0
             timeout 20 sh -c 'until ip link show bond0 | grep -q LOWER_UP; do :; done'",
            one.ipv4
        ),
    )?;
    let frames = || talk(&one.netns, one.ipv4.into(), &two.netns);
    frames()?;
    refused(plan(&lab, Mode::Inline), "a port of `bond0`")?;
    let before = pictures(&lab)?;
    let attachment = attach(&lab, Mode::Mirror)?;
    same("attached", &attachment.interface[..], "eth0")?;
    frames()?;
    detach(&lab, &attachment)?;
    untouched(&lab, &before)?;
    mirrored_inside(&lab, "bond0", frames)
}

/// A container that has containers of its own, on a bridge: its own interface is what is attached.
fn a_bridge_inside_is_left_out() -> Result<(), Failed> {
    let lab = Lab::new(&["web", "client"])?;
    sh_in(
        web(&lab),
        "set -e
         ip link add br0 type bridge
         ip link add inner type veth peer name inner-end
         ip link set inner-end master br0
         for l in br0 inner inner-end; do echo 0 > /proc/sys/net/ipv6/conf/$l/accept_dad; ip link set $l up; done
         ip link set inner nomaster",
    )?;
    let names: Vec<String> = attach_all(plan(&lab, Mode::Mirror))?
        .iter()
        .map(|attachment| attachment.interface.clone())
        .collect();
    ensure(
        !names.iter().any(|n| n == "br0" || n == "inner-end"),
        names.join(" "),
    )?;
    ensure(names.iter().any(|n| n == "eth0"), names.join(" "))?;
    for attachment in nvnet::list(&lab.host)? {
        detach(&lab, &attachment)?;
    }
    // What bears nothing but ports is attached by them.
    sh_in(
        web(&lab),
        "ip link set inner down; ip link set eth0 master br0",
    )?;
    let attached = attach_all(plan(&lab, Mode::Mirror))?;
    ensure(
        attached.iter().any(|a| a.interface == "eth0"),
        "not by its port",
    )?;
    for attachment in &attached {
        detach(&lab, attachment)?;
    }
    // And the bridge itself by name.
    let attachment = attach_all(plan(&lab, Mode::Mirror).interface("br0"))?
        .pop()
        .ok_or("none")?;
    detach(&lab, &attachment)
}
