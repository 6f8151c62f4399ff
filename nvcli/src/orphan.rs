//! What becomes of a container's original interface when the pair in its place is gone: the engine is asked, since it may have
//! taken the interface away itself, and given its addresses to somebody else.

use std::cell::OnceCell;
use std::path::PathBuf;

use nvnet::{Fate, Orphan};

use crate::container::Engine;
use crate::exit::Result;

/// Asks the engine, and connects only if there is something to ask.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Where engines listen; nothing for the usual one.
    sockets: Option<Vec<PathBuf>>,
    engines: OnceCell<Vec<Engine>>,
}

impl Judge {
    /// Asks those that listen at `sockets`.
    pub(crate) fn of(sockets: Vec<PathBuf>) -> Self {
        Self {
            sockets: Some(sockets),
            engines: OnceCell::new(),
        }
    }

    /// What is to become of one.
    pub(crate) fn fate(&self, orphan: &Orphan<'_>) -> Fate {
        let ask = |id: &str| {
            let engines = self.engines.get_or_init(|| match &self.sockets {
                None => Engine::connect().into_iter().collect(),
                Some(sockets) => {
                    let engines = sockets.iter().cloned().map(Engine::at);
                    engines.filter_map(Result::ok).collect()
                }
            });
            // The one that knows it, or else what the last one says.
            let mut told = None;
            for engine in engines {
                let says = engine.interfaces(id);
                let knows = matches!(says, Ok(Some(_)));
                told = Some(says);
                if knows {
                    break;
                }
            }
            told
        };
        decide(orphan, ask)
    }
}

/// `ask` gives the addresses of a container's interfaces as the engine has them; `None` when there is no engine to ask.
pub(crate) fn decide(
    orphan: &Orphan<'_>,
    ask: impl FnOnce(&str) -> Option<Result<Option<Vec<String>>>>,
) -> Fate {
    let Some(id) = orphan.workload.container_id.as_deref() else {
        return match orphan.replaced_by {
            Some(other) => Fate::Leave(format!("{other} has the same address")),
            None => Fate::Restore,
        };
    };
    match ask(id) {
        Some(Ok(Some(macs))) => {
            let mac = orphan.mac.to_string();
            if !macs.iter().any(|one| one.eq_ignore_ascii_case(&mac)) {
                Fate::Remove("Docker has disconnected the container from this network".into())
            } else if let Some(other) = orphan.replaced_by {
                Fate::Remove(format!("Docker has connected the container anew, by {other}"))
            } else {
                Fate::Restore
            }
        }
        Some(Ok(None)) => Fate::Leave("Docker knows no such running container".into()),
        Some(Err(_)) | None => Fate::Leave(
            "Docker does not tell whether the container is still on this network: once it answers, nvcli repair".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use nvnet::Workload;

    use super::*;
    use crate::exit::CliError;

    /// What is decided for an orphan of this container, with this link beside it, when the engine says so.
    fn decided(
        container: Option<&str>,
        beside: Option<&str>,
        says: Option<Result<Option<Vec<String>>>>,
    ) -> &'static str {
        let workload = Workload {
            container_id: container.map(str::to_owned),
            ..Workload::default()
        };
        let mac = "02:42:ac:11:00:02".parse().expect("an address");
        let orphan = Orphan::new(&workload, "eth0", mac, beside);
        match decide(&orphan, |_| says) {
            Fate::Restore => "restore",
            Fate::Remove(_) => "remove",
            Fate::Leave(_) => "leave",
        }
    }

    #[test]
    fn only_what_the_engine_took_away_is_removed() {
        let has = |mac: &str| Some(Ok(Some(vec![mac.to_owned()])));
        let own = "02:42:AC:11:00:02";
        let c = Some("4f5c0e1b");
        assert_eq!(decided(None, None, None), "restore");
        assert_eq!(decided(None, Some("eth1"), None), "leave");
        assert_eq!(decided(c, None, has(own)), "restore");
        assert_eq!(decided(c, None, has("02:42:ac:11:00:03")), "remove");
        // The engine derives addresses: one network, connected again, brings the same one.
        assert_eq!(decided(c, Some("eth1"), has(own)), "remove");
        assert_eq!(decided(c, None, Some(Ok(None))), "leave");
        assert_eq!(decided(c, None, Some(Err(CliError::new("no")))), "leave");
        assert_eq!(decided(c, None, None), "leave");
    }
}
