//! `nvcli attach`: all targets, or none.

use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use nvnet::{Attachment, AttachmentId, CheckedPlan, Netns, Orphan, Plan, Session};
use serde::Serialize;

use crate::args::{Attach, ListOutput};
use crate::cmd::detach::still_there;
use crate::cmd::list;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::open::{Opener, host, net, session};
use crate::orphan::Judge;
use crate::signals::uninterrupted;
use crate::target::Target;

/// So many are attached together: enough that the kernel is kept busy, few enough that a signal is soon heard.
const TOGETHER: usize = 64;

/// Attaches the targets, or prints what it would do.
pub(crate) fn run(args: &Attach, say: Say) -> Result<()> {
    let host = host()?;
    let mut opener = Opener::default();
    // One for all targets: what is attached is read once, and nothing comes between.
    let mut session = session(&host, say)?;
    if args.dry_run {
        for target in &args.targets {
            let plan = plan(args, &host, target, &mut opener, say)?
                .check_in(session)
                .map_err(|error| net(format!("cannot attach {target}"), &error))?;
            show(target, &plan, args.output).map_err(|source| CliError::output(&source))?;
            session = plan.into_session();
        }
        return Ok(());
    }
    let mut attached: Vec<Attachment> = Vec::new();
    for targets in args.targets.chunks(TOGETHER) {
        let done = together(args, &host, targets, &mut opener, &mut session, say);
        attached.extend(done.attached);
        if let Err(error) = done.outcome {
            return Err(take_back(&mut session, &attached, error));
        }
    }
    drop(session);
    say.note(format!(
        "attached {} interface{}; see who they talk to: nvcli flows --watch",
        attached.len(),
        if attached.len() == 1 { "" } else { "s" }
    ));
    list::print(&attached, args.output, args.no_header)
        .map_err(|error| error.left(attached.iter().map(still_there)))
}

fn plan(
    args: &Attach,
    host: &Netns,
    target: &Target,
    opener: &mut Opener,
    say: Say,
) -> Result<Plan> {
    let (netns, workload) = opener.open(target, say)?;
    let plan = Plan::new(host, &netns, workload).mode(args.mode.into());
    let interfaces = args.interfaces.iter();
    Ok(interfaces.fold(plan, |plan, interface| plan.interface(interface)))
}

/// What was attached, whatever the outcome is.
struct Done {
    attached: Vec<Attachment>,
    outcome: Result<()>,
}

fn together(
    args: &Attach,
    host: &Netns,
    targets: &[Target],
    opener: &mut Opener,
    session: &mut Session,
    say: Say,
) -> Done {
    let mut done = Done {
        attached: vec![],
        outcome: Ok(()),
    };
    let opened = targets
        .iter()
        .map(|target| plan(args, host, target, opener, say));
    let plans = match opened.collect::<Result<Vec<_>>>() {
        Ok(plans) => plans,
        Err(error) => {
            done.outcome = Err(error);
            return done;
        }
    };
    // It asks the engine, one question after the other.
    let judge = Mutex::new(Judge::default());
    let fate = |orphan: &Orphan<'_>| {
        let judge = judge.lock().unwrap_or_else(PoisonError::into_inner);
        judge.fate(orphan)
    };
    let outcomes = uninterrupted(|| session.attach_together(plans, &fate));
    for (target, outcome) in targets.iter().zip(outcomes) {
        for repaired in outcome.repaired {
            let repaired = repaired.to_string();
            say.note(format_args!("repaired: {}", escape::text(&repaired)));
        }
        match outcome.attached {
            Some(Ok(new)) => done.attached.extend(new),
            Some(Err(error)) => {
                let told = net(format!("cannot attach {target}"), &error);
                match &done.outcome {
                    Ok(()) => done.outcome = Err(told),
                    // Two at a time may fail; the first one is what the run ends with.
                    Err(_) => {
                        told.report();
                    }
                }
            }
            None => {}
        }
    }
    done
}

/// Detaches what this run attached before `error` came.
fn take_back(session: &mut Session, attached: &[Attachment], error: CliError) -> CliError {
    let ids: Vec<AttachmentId> = attached.iter().map(|attachment| attachment.id).collect();
    let outcomes = uninterrupted(|| session.detach_together(&ids));
    let mut left = Vec::new();
    for (attachment, outcome) in attached.iter().zip(outcomes) {
        if let Err(source) = outcome {
            left.push(format!("{}: {source}", still_there(attachment)));
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
