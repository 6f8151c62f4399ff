//! `nvcli detach`: from the kernel's own state, so that neither the container nor Docker has to be there.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use nvnet::{Attachment, AttachmentId, Netns};
use serde::Serialize;
use serde_json::Value;

use crate::agent::client;
use crate::args::{Detach, ListOutput};
use crate::container::Engine;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::names::{Current, is_called};
use crate::open::{host, net, netns_of, session};
use crate::signals::uninterrupted;
use crate::target::Target;

/// So many are detached together: enough to share what the kernel waits for, few enough that a signal is soon heard.
const TOGETHER: usize = 64;

#[derive(Serialize)]
struct Detached<'a> {
    id: String,
    workload: &'a str,
    interface: &'a str,
}

/// Detaches the targets; one that fails does not keep the others.
pub(crate) fn run(args: &Detach, say: Say) -> Result<()> {
    let host = host()?;
    let mut session = session(&host, say)?;
    let mut attached = session.attached().to_vec();
    Current::default().apply(&mut attached);
    let mut chosen: Vec<&Attachment> = Vec::new();
    if args.all {
        chosen.extend(&attached);
    }
    for target in &args.targets {
        let of_target: Vec<&Attachment> = attached
            .iter()
            .filter(|attachment| is_of(attachment, target))
            .collect();
        let Some(first) = of_target.first() else {
            let remedy = match attached.is_empty() {
                true => format!("nvcli attach {}", target.to_shell()),
                false => "nvcli list".into(),
            };
            return Err(not_attached(target, &attached, remedy));
        };
        if let Some(other) = of_target
            .iter()
            .find(|other| other.workload != first.workload)
        {
            return Err(
                CliError::new(format!("{target} names more than one attached container"))
                    .because(format!(
                        "{} and {}",
                        first.workload.name, other.workload.name
                    ))
                    .remedy("the whole name, as `nvcli list` shows it"),
            );
        }
        for new in of_target {
            if chosen.iter().all(|old| old.id != new.id) {
                chosen.push(new);
            }
        }
    }
    if chosen.is_empty() {
        say.note("nothing is attached");
    }
    let mut failed: Option<CliError> = None;
    let mut detached: Vec<&Attachment> = Vec::new();
    for some in chosen.chunks(TOGETHER) {
        let ids: Vec<AttachmentId> = some.iter().map(|attachment| attachment.id).collect();
        let done = uninterrupted(|| session.detach_together(&ids));
        for (attachment, done) in some.iter().zip(done) {
            match done {
                Ok(()) => {
                    print(attachment, args.output).map_err(|source| CliError::output(&source))?;
                    detached.push(attachment);
                }
                Err(error) => {
                    let (name, interface) = (&attachment.workload.name, &attachment.interface);
                    let told = net(format!("cannot detach {interface} of {name}"), &error)
                        .left([still_there(attachment)]);
                    if let Some(earlier) = failed.replace(told) {
                        earlier.report();
                    }
                }
            }
        }
    }
    // Nobody has to wait for what is only said.
    drop(session);
    if !detached.is_empty() && !say.is_quiet() {
        let kept = kept_by_agent(&host);
        detached.retain(|attachment| kept.contains(&attachment.netns_inode()));
        let mut names: Vec<&str> = detached.iter().map(|a| &a.workload.name[..]).collect();
        names.dedup();
        if let [first, others @ ..] = &names[..] {
            let (first, more) = (escape::text(first), others.len());
            let what = match more {
                0 => format!("selects {first} and attaches it again"),
                _ => format!("selects {first} and {more} more and attaches them again"),
            };
            say.note(format_args!(
                "note: the agent {what}: exclude it there (a rule, --exclude, targets), or end the agent first"
            ));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Says of what is attached that it is.
pub(crate) fn still_there(attachment: &Attachment) -> String {
    let (name, interface) = (&attachment.workload.name, &attachment.interface);
    format!("{interface} of {name} is attached (id {})", attachment.id)
}

/// The namespaces that an agent which runs would attach by itself, by inode.
fn kept_by_agent(host: &Netns) -> BTreeSet<u64> {
    let answer = client::ask(host, "/v1/containers", client::HASTE).map(client::Answer::all);
    let lines = match answer {
        Some(Ok(lines)) => lines,
        Some(Err(error)) => {
            error.report();
            return BTreeSet::new();
        }
        None => return BTreeSet::new(),
    };
    let netns = |line: &String| {
        let told: Value = serde_json::from_str(line).ok()?;
        if told["attach"] == "no" {
            return None;
        }
        // A container has a process, and anything else is called as it is named in the configuration.
        match told["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()) {
            Some(pid) => Netns::of_pid(pid).ok(),
            None => netns_of(&told["workload"].as_str()?.parse().ok()?),
        }
    };
    let ids = lines.iter().filter_map(netns).map(|netns| netns.id().ino);
    ids.collect()
}

/// Whether the attachment is one of `target`, by what the kernel knows alone.
pub(crate) fn is_of(attachment: &Attachment, target: &Target) -> bool {
    let workload = &attachment.workload;
    match target {
        Target::Container(name) => {
            is_called(name, &workload.name, workload.container_id.as_deref())
        }
        Target::Pid(pid) if workload.pid == Some(*pid) => true,
        // Any way that leads to the same namespace will do.
        other => {
            workload.name == target.to_string()
                || netns_of(other)
                    .is_some_and(|there| attachment.netns().is_some_and(|netns| netns == there))
        }
    }
}

/// The error for a target that is not attached, and what to do about it, unless it is attached as another one.
pub(crate) fn not_attached(target: &Target, attached: &[Attachment], remedy: String) -> CliError {
    let error = CliError::new(format!("{target} is not attached"));
    let is_attached = |owner: &String| {
        let mut names = attached.iter().map(|one| &one.workload.name);
        names.any(|name| name == owner)
    };
    if let Some(owner) = owner(target).filter(is_attached) {
        return error
            .because(format!(
                "it shares the network of {owner}, and is seen as that"
            ))
            .remedy(format!("name {} instead", escape::shell(&owner)));
    }
    let mut names: Vec<&str> = attached
        .iter()
        .map(|attachment| attachment.workload.name.as_str())
        .collect();
    names.dedup();
    names.truncate(5);
    let error = if names.is_empty() {
        error.because("nothing is")
    } else {
        error.because(format!("attached: {}", names.join(", ")))
    };
    error.remedy(remedy)
}

/// The container whose network that of `target` is, where it has none of its own.
fn owner(target: &Target) -> Option<String> {
    let Target::Container(name) = target else {
        return None;
    };
    let found = Engine::connect().ok()?.find(name).ok()?;
    found.shared_by.map(|_| found.name)
}

fn print(attachment: &Attachment, output: ListOutput) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (workload, interface) = (&attachment.workload.name, &attachment.interface);
    match output {
        ListOutput::Table => {
            let (workload, interface) = (escape::text(workload), escape::text(interface));
            writeln!(out, "detached {interface} of {workload}")?;
        }
        ListOutput::Json => {
            escape::json(
                &mut out,
                &Detached {
                    id: attachment.id.to_string(),
                    workload,
                    interface,
                },
            )?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}
