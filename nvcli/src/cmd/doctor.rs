//! `nvcli doctor`: what works on this machine, what does not, and what to do about it.

use std::fs;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use nvcapture::{Next, Ring, RingConfig};
use nvnet::{Attachment, BRIDGE, EX_PREFIX, Features, Mode, Netns, Survey};
use serde::Serialize;

use crate::args::{Doctor, ListOutput};
use crate::cmd::flows::no_ring;
use crate::container::Engine;
use crate::escape;
use crate::exit::{CliError, Exit, Result, Say};
use crate::health::{self, Tally, Verdict, Whose};
use crate::open::{Opener, host, net};
use crate::render::table::{Column, table, terminal_width};
use crate::render::text::{grouped, wrapped};
use crate::target::Target;

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    check: &'static str,
    found: String,
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    /// About one interface of the target.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    surveyed: Option<Surveyed>,
}

/// What a program wants to know of an interface.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Surveyed {
    interface: String,
    kind: String,
    is_up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached_as: Option<String>,
    inline_safe: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    inline_refused: Option<String>,
    mirror_safe: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror_refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirrored_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    remarks: Vec<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            check,
            found: found.into(),
            remedy: None,
            surveyed: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            check,
            found: found.into(),
            remedy: Some(remedy.into()),
            surveyed: None,
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            check,
            found: found.into(),
            remedy: Some(remedy.into()),
            surveyed: None,
        }
    }

    fn of(check: &'static str, finding: health::Finding) -> Self {
        Self {
            verdict: finding.verdict,
            check,
            found: finding.what,
            remedy: finding.remedy,
            surveyed: None,
        }
    }

    /// A failed attempt, as bad as `verdict`.
    fn error(verdict: Verdict, check: &'static str, error: &CliError) -> Self {
        let found = match error.causes() {
            causes if causes.is_empty() => error.what().to_owned(),
            causes => format!("{}: {causes}", error.what()),
        };
        Self {
            verdict,
            check,
            found,
            remedy: error.to_do().map(str::to_owned),
            surveyed: None,
        }
    }
}

/// Looks at everything and prints what it finds.
pub(crate) fn run(args: &Doctor, say: Say) -> Result<Exit> {
    let mut findings = vec![privileges(), kernel()];
    let privileged = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Fail);
    if privileged {
        findings.extend(features());
        findings.push(ring());
    }
    let engine = Engine::connect();
    findings.push(docker(engine.as_ref(), args.target.as_ref()));
    if privileged {
        findings.extend(attachments());
        findings.extend(frames());
        let host = Netns::current();
        findings.push(other_filters(host.as_ref(), "on this host"));
        if let Some(target) = &args.target {
            findings.extend(attachable(target, engine));
        }
    }
    print(&findings, args.output).map_err(|source| CliError::output(&source))?;
    let usable = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Fail);
    if usable {
        say.note("this machine is ready");
    }
    Ok(if usable { Exit::Done } else { Exit::Failed })
}

/// The capabilities that the work needs, by their bit in the kernel's sets.
///
/// Source: include/uapi/linux/capability.h.
const NEEDED: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (21, "CAP_SYS_ADMIN"),
];

fn privileges() -> Finding {
    // The name in its first line may be no UTF-8.
    let status = fs::read("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&String::from_utf8_lossy(&status)) else {
        return Finding::warn(
            "privileges",
            "cannot read the capabilities in /proc/self/status",
            "mount /proc",
        );
    };
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        let who = if nix::unistd::geteuid().is_root() {
            "root"
        } else {
            "not root, with the capabilities needed"
        };
        return Finding::ok("privileges", who);
    }
    let found = format!("without {}", missing.join(", "));
    Finding::fail(
        "privileges",
        found,
        "sudo nvcli doctor; `nvcli flows --read` works without privileges",
    )
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

fn kernel() -> Finding {
    match nix::sys::utsname::uname() {
        Ok(name) => Finding::ok(
            "kernel",
            format!(
                "{} {}",
                name.release().to_string_lossy(),
                name.machine().to_string_lossy()
            ),
        ),
        Err(source) => Finding::warn(
            "kernel",
            format!("its release is not told: {source}"),
            "uname -r",
        ),
    }
}

/// What the kernel can do: one line when all is there, one for each that is missing.
fn features() -> Vec<Finding> {
    const CHECK: &str = "features";
    let features = match Features::probe() {
        Ok(features) => features,
        Err(error) => {
            let error = net("cannot try the kernel's features", &error);
            return vec![Finding::error(Verdict::Fail, CHECK, &error)];
        }
    };
    let either = features.cls_u32.is_ok() || features.cls_matchall.is_ok();
    let mut findings = Vec::new();
    for (name, probe) in features.iter() {
        let Err(why) = probe else { continue };
        let found = format!("no {name}: {why}");
        findings.push(match name {
            "cls_u32" | "cls_matchall" if either => continue,
            "cls_u32" | "cls_matchall" => {
                Finding::warn(CHECK, found, "modprobe cls_matchall; without it only `attach --mode mirror` works")
            }
            "rename of a link that is up" => Finding::warn(
                CHECK,
                found,
                "Linux 6.2 or later; before, attaching inline takes the interface down for a moment",
            ),
            _ => Finding::fail(CHECK, found, "a kernel with CONFIG_BRIDGE, VETH, NET_SCH_INGRESS, NET_CLS_BPF, NET_ACT_MIRRED and BPF_SYSCALL"),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            "all that attaching needs, tried in a scratch namespace",
        ));
    }
    findings
}

/// Whether the memory of a ring can be had.
fn ring() -> Finding {
    const CHECK: &str = "ring";
    let open = || -> Result<Finding> {
        let config = RingConfig::default();
        let scratch = Netns::nameless("a scratch namespace")
            .map_err(|error| net("cannot make a scratch namespace", &error))?;
        let opened = scratch
            .run(|| Ring::open(&config, "lo"))
            .map_err(|error| net("cannot enter a scratch namespace", &error))?;
        match opened {
            // Its loopback is down, which is told last: memory and socket were had.
            Ok(_) | Err(nvcapture::Error::InterfaceDown { .. }) => {
                let mebibytes = (u64::from(config.block_size) * u64::from(config.block_nr)) >> 20;
                Ok(Finding::ok(
                    CHECK,
                    format!("{mebibytes} MiB shared with the kernel"),
                ))
            }
            Err(error) => Err(CliError::new("cannot open a ring")
                .caused_by(&error)
                .remedy("free memory; ulimit -l")),
        }
    };
    open().unwrap_or_else(|error| Finding::error(Verdict::Fail, CHECK, &error))
}

/// The engine is needed only by who names containers.
fn docker(engine: std::result::Result<&Engine, &CliError>, target: Option<&Target>) -> Finding {
    let needed = if matches!(target, Some(Target::Container(_))) {
        Verdict::Fail
    } else {
        Verdict::Warn
    };
    match engine.map(|engine| (engine, engine.version())) {
        Ok((engine, Ok(version))) => Finding::ok(
            "docker",
            format!("{version} at {}", engine.socket().display()),
        ),
        Ok((_, Err(error))) => Finding::error(needed, "docker", &error),
        Err(error) => Finding::error(needed, "docker", error),
    }
}

/// What is attached, whether it is whole, and whether nv-br is wide enough for it.
fn attachments() -> Vec<Finding> {
    const CHECK: &str = "attached";
    let read = || -> Result<Vec<Finding>> {
        let failed = |error: nvnet::Error| net("cannot read what is attached", &error);
        let host = host()?;
        let attached = nvnet::list(&host).map_err(failed)?;
        if attached.is_empty() {
            return Ok(vec![Finding::ok(CHECK, "nothing")]);
        }
        let mut findings = Vec::new();
        for attachment in &attached {
            let (name, interface) = (&attachment.workload.name, &attachment.interface);
            if let Some(why) = nvnet::inspect(&host, attachment).map_err(failed)? {
                findings.push(Finding::warn(
                    CHECK,
                    format!("{interface} of {name} is damaged: {why}"),
                    "nvcli repair",
                ));
            }
            findings.extend(narrow(attachment).map_err(failed)?);
        }
        let links = nvnet::links(&host).map_err(failed)?;
        match links.iter().find(|link| link.name == BRIDGE) {
            Some(bridge) => {
                let wider: Vec<String> = attached
                    .iter()
                    .filter(|attachment| attachment.mtu > bridge.mtu)
                    .map(|attachment| format!("{} ({})", attachment.port, attachment.mtu))
                    .collect();
                if !wider.is_empty() {
                    let found = format!(
                        "{BRIDGE} has MTU {}, less than {}: longer frames are not seen",
                        bridge.mtu,
                        wider.join(", ")
                    );
                    let widest = attached
                        .iter()
                        .map(|attachment| attachment.mtu)
                        .max()
                        .unwrap_or(bridge.mtu);
                    findings.push(Finding::warn(
                        "mtu",
                        found,
                        format!("ip link set {BRIDGE} mtu {widest}"),
                    ));
                }
                if !bridge.is_up() {
                    findings.push(Finding::warn(
                        CHECK,
                        format!("{BRIDGE} is down: no frame is seen"),
                        format!("ip link set {BRIDGE} up"),
                    ));
                }
            }
            None => findings.push(Finding::warn(
                CHECK,
                format!("{BRIDGE} is gone"),
                "nvcli repair",
            )),
        }
        if findings.is_empty() {
            findings.push(Finding::ok(
                CHECK,
                format!("{} interfaces, all whole", attached.len()),
            ));
        }
        Ok(findings)
    };
    read().unwrap_or_else(|error| vec![Finding::error(Verdict::Fail, CHECK, &error)])
}

/// How long is listened for the frames of what is attached.
const LISTENS: Duration = Duration::from_secs(1);

/// Whether the frames of what is attached are seen, both ways, beside what its interfaces count in the same time.
fn frames() -> Vec<Finding> {
    const CHECK: &str = "frames";
    let listen = || -> Result<Vec<Finding>> {
        let failed = |error: nvnet::Error| net("cannot read what is attached", &error);
        let host = host()?;
        let attached = nvnet::list(&host).map_err(failed)?;
        if attached.is_empty() {
            return Ok(Vec::new());
        }
        let counted = || -> Vec<Option<[u64; 2]>> {
            let each = attached.iter();
            each.map(|attachment| health::counted(&host, attachment))
                .collect()
        };
        let config = RingConfig {
            snaplen: Some(64),
            ..RingConfig::default()
        };
        let unreadable =
            |error: nvcapture::Error| CliError::new("cannot read nv-br").caused_by(&error);
        // Open for longer than the interfaces are asked: what they count has to be seen.
        let mut ring = Ring::open(&config, BRIDGE).map_err(|error| no_ring(&error))?;
        let before = counted();
        let until = Instant::now() + LISTENS;
        let mut tally = Tally::default();
        let mut after = None;
        loop {
            match ring.next_block(Some(LISTENS / 10)) {
                Ok(Next::Block(block)) => block.frames().for_each(|frame| tally.count(&frame)),
                Ok(Next::TimedOut) => {}
                Ok(Next::End) => break,
                Err(error) => return Err(unreadable(error)),
            }
            if after.is_none() && Instant::now() >= until {
                after = Some(counted());
                ring.stop().map_err(unreadable)?;
            }
        }
        let dropped = ring.stats().map_err(unreadable)?.dropped;
        let after = after.unwrap_or_default();
        let mut findings = Vec::new();
        let (mut seen_of, mut silent, mut total) = (0_u64, 0_u64, 0);
        for (at, attachment) in attached.iter().enumerate() {
            let seen = tally.of(attachment.id.number());
            let whose = Whose {
                name: &attachment.workload.name,
                interface: &attachment.interface,
            };
            let pair = before
                .get(at)
                .copied()
                .flatten()
                .zip(after.get(at).copied().flatten());
            let counted = pair.map(|(before, after)| {
                [0, 1].map(|way: usize| after[way].saturating_sub(before[way]))
            });
            total += seen.total();
            match health::of_frames(whose, &seen, counted, LISTENS) {
                // Most are silent for a second now and then.
                Some(finding) if finding.verdict == Verdict::Ok => silent += 1,
                Some(finding) => findings.push(Finding::of(CHECK, finding)),
                None => seen_of += 1,
            }
        }
        if dropped > 0 {
            findings.push(Finding::warn(
                CHECK,
                format!("{} frames were dropped within a second, since the ring was full", grouped(dropped)),
                "a filter that leaves out what is not wanted (nvcli flows 'tcp'), or more CPU (nice -n -10)",
            ));
        }
        if findings.is_empty() {
            findings.push(Finding::ok(
                CHECK,
                format!(
                    "{} seen within a second, of {seen_of} interfaces; {silent} were silent, as their own counters say",
                    grouped(total)
                ),
            ));
        }
        findings.extend(
            health::of_checksums(tally.all()).map(|finding| Finding::of("checksums", finding)),
        );
        Ok(findings)
    };
    listen().unwrap_or_else(|error| vec![Finding::error(Verdict::Warn, CHECK, &error)])
}

/// Whether the container's interface has got a larger MTU than the links behind it, inline.
fn narrow(attachment: &Attachment) -> std::result::Result<Option<Finding>, nvnet::Error> {
    let Some(netns) = attachment
        .netns()
        .filter(|_| attachment.mode == Mode::Inline)
    else {
        return Ok(None);
    };
    let links = nvnet::links(&netns)?;
    let Some(own) = links.iter().find(|link| link.name == attachment.interface) else {
        return Ok(None);
    };
    let original = links
        .iter()
        .find(|link| link.name.starts_with(EX_PREFIX) && link.mac == own.mac);
    let least = original.map_or(attachment.mtu, |original| original.mtu.min(attachment.mtu));
    let (name, interface) = (&attachment.workload.name, &attachment.interface);
    Ok((own.mtu > least).then(|| {
        Finding::warn(
            "mtu",
            format!("{interface} of {name} has MTU {}, the links behind it {least}: longer frames are lost", own.mtu),
            "nvcli repair, which gives all of them the new one",
        )
    }))
}

/// Whether other tools have filters where ours go: on this host, or in a target's namespace.
fn other_filters(netns: std::result::Result<&Netns, &nvnet::Error>, of: &str) -> Finding {
    const CHECK: &str = "other tc";
    let Ok(netns) = netns else {
        return Finding::warn(
            CHECK,
            format!("cannot be read {of}"),
            "nvcli doctor as root",
        );
    };
    match nvnet::foreign_filters(netns) {
        Ok(filters) if filters.is_empty() => {
            Finding::ok(CHECK, format!("no filters of other tools {of}"))
        }
        Ok(filters) => {
            let shown: Vec<String> = filters.iter().take(5).map(ToString::to_string).collect();
            let more = filters.len().saturating_sub(shown.len());
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            // They are kept, and ours come before them: nothing to be done about it.
            Finding::ok(
                CHECK,
                format!(
                    "filters of other tools {of}, which stay: {}{more}",
                    shown.join("; ")
                ),
            )
        }
        Err(error) => Finding::error(
            Verdict::Warn,
            CHECK,
            &net("cannot read the filters", &error),
        ),
    }
}

/// Which mode is safe for the interfaces of the target, and why, found out as `attach --dry-run` does.
fn attachable(target: &Target, engine: Result<Engine>) -> Vec<Finding> {
    const CHECK: &str = "target";
    if let (Target::Container(_), Err(_)) = (target, &engine) {
        let found = format!("{target} cannot be looked up without Docker");
        return vec![Finding::fail(
            CHECK,
            found,
            "name it by pid:N or netns:NAME",
        )];
    }
    let check = || -> Result<Vec<Finding>> {
        let (netns, _) = Opener::with(engine.ok()).open(target, Say::new(true))?;
        let others = other_filters(Ok(&netns), "inside the target");
        let all = nvnet::survey(&host()?, &netns)
            .map_err(|error| net(format!("cannot look at {target}"), &error))?;
        let usable = |one: &&Survey| one.attached.is_some() || one.advice().is_some();
        let count = all.iter().filter(usable).count();
        let mut findings = Vec::new();
        findings.push(if count > 0 {
            let all = all.len();
            Finding::ok(
                CHECK,
                format!("{count} of {all} interfaces of {target} can be attached, or are"),
            )
        } else {
            Finding::fail(
                CHECK,
                format!("no interface of {target} can be attached"),
                "give it an Ethernet interface, or do what is told below",
            )
        });
        findings.extend(all.iter().map(|one| surveyed(target, one)));
        findings.push(others);
        Ok(findings)
    };
    check().unwrap_or_else(|error| vec![Finding::error(Verdict::Fail, CHECK, &error)])
}

/// One interface: what can be done, what cannot, what is to be known, and the command.
fn surveyed(target: &Target, one: &Survey) -> Finding {
    const CHECK: &str = "interface";
    let name = &one.interface;
    let advice = one.advice().filter(|_| one.attached.is_none());
    let modes = match &one.attached {
        Some((id, mode)) => vec![format!("attached, {mode} (id {id})")],
        None => vec![
            match &one.inline {
                Ok(()) => "inline is safe".to_owned(),
                Err(why) => format!("not inline: {why}"),
            },
            match &one.mirror {
                Ok(at) if at == name => "mirror is safe, by rules on itself".to_owned(),
                Ok(at) => format!("mirror is safe, by rules on {at} of this host"),
                Err(why) => format!("not mirror: {why}"),
            },
        ],
    };
    let remarks: Vec<String> = one.remarks.iter().map(|r| r.text.clone()).collect();
    let found = [modes, remarks.clone()].concat().join("; ");
    let found = format!("{name} ({}): {found}", one.kind);
    let (of, on) = (target.to_shell(), escape::shell(name));
    let command = |mode: Mode| format!("nvcli attach {of} --interface {on} --mode {mode}");
    let mut finding = match advice {
        None if one.attached.is_some() => Finding::ok(CHECK, found),
        _ if !one.is_up => {
            let remedy = format!("set it up first, then nvcli doctor {of}");
            Finding::warn(CHECK, found, remedy)
        }
        None => Finding::warn(CHECK, found, "attach another interface of it"),
        Some(Mode::Inline) if one.inline.is_ok() => Finding {
            remedy: Some(command(Mode::Inline)),
            ..Finding::ok(CHECK, found)
        },
        Some(mode) => Finding::warn(CHECK, found, command(mode)),
    };
    finding.surveyed = Some(Surveyed {
        interface: name.clone(),
        kind: one.kind.clone(),
        is_up: one.is_up,
        attached_as: one.attached.map(|(_, mode)| mode.to_string()),
        inline_safe: one.inline.is_ok(),
        inline_refused: one.inline.clone().err(),
        mirror_safe: one.mirror.is_ok(),
        mirror_refused: one.mirror.clone().err(),
        mirrored_from: one.mirror.clone().ok(),
        advice: advice.map(|mode| mode.to_string()),
        remarks,
    });
    finding
}

fn print(findings: &[Finding], output: ListOutput) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        ListOutput::Json => {
            for finding in findings {
                escape::json(&mut out, finding)?;
                out.write_all(b"\n")?;
            }
        }
        ListOutput::Table => {
            // Sentences: what does not fit in a line goes on below its beginning.
            let before = findings.iter().map(|finding| finding.check.len()).max();
            let room = terminal_width().map_or(usize::MAX, |width| {
                width.saturating_sub(before.unwrap_or_default() + "warn".len() + 4)
            });
            let mut rows: Vec<Vec<String>> = Vec::new();
            for finding in findings {
                let first = [finding.verdict.to_string(), finding.check.to_owned()];
                let found = wrapped(&escape::text(&finding.found), room).into_iter();
                let remedy = finding.remedy.as_ref().map(|remedy| {
                    let told = format!("try: {}", escape::text(remedy));
                    wrapped(&told, room)
                });
                let lines = found.chain(remedy.into_iter().flatten());
                for (line, beginning) in lines
                    .zip(std::iter::once(first).chain(std::iter::repeat_with(Default::default)))
                {
                    rows.push(beginning.into_iter().chain([line]).collect());
                }
            }
            let columns = [Column::left(""), Column::left(""), Column::left("")];
            out.write_all(table(&columns, &rows, terminal_width(), true).as_bytes())?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tnvcli\nCapPrm:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("CapEff:\tx\n"), None);
        assert_eq!(effective_capabilities(""), None);
    }
}
