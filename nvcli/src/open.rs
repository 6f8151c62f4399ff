//! From a target to its network namespace and the name its attachments get.

use std::ops::ControlFlow;
use std::time::Duration;

use nvnet::{Attachment, Netns, Session, Workload};

use crate::container::Engine;
use crate::escape;
use crate::exit::{CliError, Result, Say};
use crate::target::Target;

/// What nvnet says, as the causes of `what`.
pub(crate) fn net(what: impl Into<String>, error: &nvnet::Error) -> CliError {
    let told = CliError::new(what);
    let told = match error {
        nvnet::Error::Undone { undone, source } => told.caused_by(source.as_ref()).undone(format!(
            "{undone} of {undone} changes; the container is as it was"
        )),
        nvnet::Error::RollbackIncomplete { source, .. } => told.caused_by(source.as_ref()),
        other => told.caused_by(other),
    };
    let told = told.left(error.left().iter().cloned());
    match remedy(error) {
        Some(remedy) => told.remedy(remedy),
        None => told,
    }
}

/// What to do, by commands alone: nvnet names functions beside them.
fn remedy(error: &nvnet::Error) -> Option<String> {
    use nvnet::Error;
    let command = match error {
        Error::Undone { source, .. } => return remedy(source),
        Error::RollbackIncomplete { .. } => "run `nvcli repair`, then look at `nvcli list`",
        Error::Unfinished { .. } => "nvcli repair",
        Error::NotAttached { .. } => "`nvcli list` shows what is attached",
        Error::Exhausted { what, .. } if *what != "id" => {
            "--mode mirror, which needs no port; or detach something first"
        }
        other => return other.remedy(),
    };
    Some(command.into())
}

/// The namespace nvcli runs in, which nv-br is in.
pub(crate) fn host() -> Result<Netns> {
    Netns::current().map_err(|error| net("cannot open the host's network namespace", &error))
}

/// How long another command is waited for without a word, and from then on until it is looked whether it is still the same one.
const QUIET: Duration = Duration::from_secs(1);

/// The right to change what is attached in `host`; says whom it waits for. A signal ends the wait.
pub(crate) fn session(host: &Netns, say: Say) -> Result<Session> {
    let mut told: Option<Option<(u32, String)>> = None;
    let mut next = QUIET;
    let opened = Session::open_watched(host, Session::PATIENCE, |waiting| {
        if waiting.lasted() >= next {
            next = waiting.lasted() + QUIET;
            let holder = waiting.holder();
            let whom = match &holder {
                Some((pid, command)) => format!("process {pid} ({})", escape::text(command)),
                None => "another process".into(),
            };
            // One that may not be seen is told of once.
            if told.is_none() || (holder.is_some() && told.as_ref() != Some(&holder)) {
                say.note(format!(
                    "waiting for {whom}, which changes what is attached"
                ));
                told = Some(holder);
            }
        }
        ControlFlow::Continue(())
    });
    opened.map_err(|error| net("cannot change what is attached", &error))
}

/// What is attached to the nv-br in `host`.
pub(crate) fn attached(host: &Netns) -> Result<Vec<Attachment>> {
    nvnet::list(host).map_err(|error| net("cannot read what is attached", &error))
}

/// The namespace that a target names now, if it is no container: that is asked of an engine.
pub(crate) fn netns_of(target: &Target) -> Option<Netns> {
    let netns = match target {
        Target::Pid(pid) => Netns::of_pid(*pid),
        Target::NetnsName(name) => Netns::named(name),
        Target::NetnsPath(path) => Netns::at_path(path),
        Target::Container(_) => return None,
    };
    netns.ok()
}

/// Opens targets; talks to the engine only if a container is among them, and connects once.
#[derive(Debug, Default)]
pub(crate) struct Opener {
    engine: Option<Engine>,
}

impl Opener {
    /// With a connection that is there already.
    pub(crate) fn with(engine: Option<Engine>) -> Self {
        Self { engine }
    }

    /// The namespace of `target`, and whose it is.
    pub(crate) fn open(&mut self, target: &Target, say: Say) -> Result<(Netns, Workload)> {
        let cannot = |error: nvnet::Error| net(format!("cannot open {target}"), &error);
        let plain = || Workload {
            name: target.to_string(),
            ..Workload::default()
        };
        match target {
            Target::Container(name) => self.container(name, say),
            Target::Pid(pid) => {
                let netns = Netns::of_pid(*pid).map_err(cannot)?;
                Ok((
                    netns,
                    Workload {
                        pid: Some(*pid),
                        ..plain()
                    },
                ))
            }
            Target::NetnsName(name) => Ok((Netns::named(name).map_err(cannot)?, plain())),
            Target::NetnsPath(path) => Ok((Netns::at_path(path).map_err(cannot)?, plain())),
        }
    }

    fn container(&mut self, wanted: &str, say: Say) -> Result<(Netns, Workload)> {
        let engine = match &mut self.engine {
            Some(engine) => engine,
            none => none.insert(Engine::connect()?),
        };
        let found = engine.find(wanted)?;
        let cannot = |error: nvnet::Error| {
            net(
                format!("cannot open the network of container {}", found.name),
                &error,
            )
        };
        let netns = Netns::of_pid(found.pid)
            .map_err(cannot)?
            .labelled(&found.name);
        engine.still_is(&found)?;
        if let Some(by) = &found.shared_by {
            let (by, name) = (escape::text(by), escape::text(&found.name));
            say.note(format!(
                "note: {by} shares the network of {name}; both are seen as {name}"
            ));
        }
        let workload = Workload {
            name: found.name,
            container_id: Some(found.id),
            pid: Some(found.pid),
        };
        Ok((netns, workload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_is_a_command() {
        let id = nvnet::AttachmentId::new(1).expect("not zero");
        let absent = || nvnet::Error::NotAttached { id };
        let undone = nvnet::Error::Undone {
            undone: 1,
            source: Box::new(nvnet::Error::Unfinished {
                interface: "eth0".into(),
                netns: "web".into(),
            }),
        };
        let left = nvnet::Error::RollbackIncomplete {
            left: vec!["nv-br".into()],
            source: Box::new(absent()),
        };
        for (error, to_do) in [
            (undone, "nvcli repair"),
            (left, "run `nvcli repair`, then look at `nvcli list`"),
            (absent(), "`nvcli list` shows what is attached"),
        ] {
            assert_eq!(net("x", &error).to_do(), Some(to_do));
        }
    }
}
