//! `nvcli attach`: all targets, or none.

use std::io::{self, Write as _};

use nvnet::{Attachment, CheckedPlan, Netns, Plan, Session};
use serde::Serialize;

use crate::args::{Attach, ListOutput};
use crate::cmd::list;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::open::{Opener, host, net};
use crate::orphan::Judge;
use crate::signals::uninterrupted;
use crate::target::Target;

/// Attaches the targets, or prints what it would do.
pub(crate) fn run(args: &Attach, say: Say) -> Result<()> {
    let host = host()?;
    let mut opener = Opener::default();
    // One for all targets: what is attached is read once, and nothing comes between.
    let mut session =
        Session::open(&host).map_err(|error| net("cannot read what is attached", &error))?;
    if args.dry_run {
        for target in &args.targets {
            let plan = checked(args, &host, target, &mut opener, session, say)?;
            show(target, &plan, args.output).map_err(|source| CliError::output(&source))?;
            session = plan.into_session();
        }
        return Ok(());
    }
    let mut attached: Vec<Attachment> = Vec::new();
    for target in &args.targets {
        let done = checked(args, &host, target, &mut opener, session, say).and_then(|plan| {
            uninterrupted(|| plan.attach_in_session())
                .map_err(|error| net(format!("cannot attach {target}"), &error))
        });
        match done {
            Ok((new, next)) => {
                attached.extend(new);
                session = next;
            }
            Err(error) => return Err(take_back(&host, &attached, error)),
        }
    }
    drop(session);
    say.note(format!(
        "attached {} interface{}; see who they talk to: nvcli flows --watch",
        attached.len(),
        if attached.len() == 1 { "" } else { "s" }
    ));
    list::print(&attached, args.output, args.no_header)
}

fn checked(
    args: &Attach,
    host: &Netns,
    target: &Target,
    opener: &mut Opener,
    mut session: Session,
    say: Say,
) -> Result<CheckedPlan> {
    let (netns, workload) = opener.open(target, say)?;
    if !args.dry_run {
        // What a killed run left half-done in there would be in the way.
        let judge = Judge::default();
        let repair = || session.repair_target(&netns, &|orphan| judge.fate(orphan));
        let repaired = uninterrupted(repair).map_err(|error| {
            net(
                format!("cannot repair {target} before attaching it"),
                &error,
            )
        })?;
        for done in repaired {
            say.note(format_args!(
                "repaired: {}",
                escape::text(&done.to_string())
            ));
        }
    }
    let plan = Plan::new(host, &netns, workload).mode(args.mode.into());
    let plan = args
        .interfaces
        .iter()
        .fold(plan, |plan, interface| plan.interface(interface));
    plan.check_in(session)
        .map_err(|error| net(format!("cannot attach {target}"), &error))
}

/// Detaches what this run attached before `error` came.
fn take_back(host: &Netns, attached: &[Attachment], error: CliError) -> CliError {
    let mut left = Vec::new();
    for attachment in attached.iter().rev() {
        if let Err(source) = uninterrupted(|| nvnet::detach(host, attachment.id)) {
            let (name, interface) = (&attachment.workload.name, &attachment.interface);
            left.push(format!(
                "{interface} of {name} is attached (id {}): {source}",
                attachment.id
            ));
        }
    }
    let undone = attached.len() - left.len();
    let error = if undone > 0 {
        error.undone(format!("{undone} interfaces attached before it"))
    } else {
        error
    };
    error.left(left)
}

#[derive(Serialize)]
struct Planned {
    target: String,
    step: String,
}

fn show(target: &Target, plan: &CheckedPlan, output: ListOutput) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if output == ListOutput::Table {
        writeln!(out, "{target}:")?;
    }
    for (number, step) in plan.steps().iter().enumerate() {
        let step = step.to_string();
        match output {
            ListOutput::Table => writeln!(out, "{:4}  {}", number + 1, escape::text(&step))?,
            ListOutput::Json => {
                escape::json(
                    &mut out,
                    &Planned {
                        target: target.to_string(),
                        step,
                    },
                )?;
                out.write_all(b"\n")?;
            }
        }
    }
    out.flush()
}
