//! Containers of a Docker engine: from a name to a running process.
//!
//! The one place with an async runtime: a current-thread one, for bollard alone.

use std::collections::HashMap;
use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};
use tokio::runtime::Runtime;

use crate::escape;
use crate::exit::{CliError, Result};

/// The socket of an engine that nobody configured.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Names that are suggested for one that does not exist.
const SUGGESTIONS: usize = 3;

/// A container that runs, in a network of its own or of another container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its name, without the slash of the API; of the owner when the network is shared.
    pub(crate) name: String,
    /// All 64 digits of its id.
    pub(crate) id: String,
    /// A process in its network namespace, as this machine numbers it.
    pub(crate) pid: u32,
    /// The container that was asked for, when it shares the network of this one.
    pub(crate) shared_by: Option<String>,
}

/// A connection to an engine.
#[derive(Debug)]
pub(crate) struct Engine {
    client: Docker,
    runtime: Runtime,
    socket: PathBuf,
}

/// One line of the engine's list.
#[derive(Clone, Debug)]
struct Listed {
    id: String,
    names: Vec<String>,
}

/// What the engine tells of one container, as far as it matters here.
#[derive(Clone, Debug, Default)]
struct Inspected {
    id: String,
    name: String,
    status: String,
    running: bool,
    pid: u32,
    network_mode: String,
    networks: Vec<String>,
    /// The addresses of its interfaces.
    macs: Vec<String>,
}

impl Engine {
    /// Connects to the engine that `DOCKER_HOST` names, or to the local one, and agrees on an API version.
    pub(crate) fn connect() -> Result<Self> {
        Self::at(socket_of(env::var("DOCKER_HOST").ok().as_deref())?)
    }

    /// Connects to the engine that listens at `socket`, and agrees on an API version.
    pub(crate) fn at(socket: PathBuf) -> Result<Self> {
        reachable(&socket)?;
        let answers = |source: &dyn std::fmt::Display| {
            CliError::new(format!(
                "the Docker engine at {} does not answer as one",
                socket.display()
            ))
            .because(source)
            .remedy("docker version, or name the target by pid:N or netns:NAME")
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| CliError::new("cannot talk to Docker").because(source))?;
        let client = Docker::connect_with_unix(
            &format!("unix://{}", socket.display()),
            TIMEOUT.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|source| answers(&source))?;
        let client = runtime
            .block_on(client.negotiate_version())
            .map_err(|source| answers(&source))?;
        Ok(Self {
            client,
            runtime,
            socket,
        })
    }

    /// The engine's name and version, such as "28.2.2 (API 1.50)".
    pub(crate) fn version(&self) -> Result<String> {
        let version = self
            .runtime
            .block_on(self.client.version())
            .map_err(|source| self.failed("ask its version", &source))?;
        Ok(format!(
            "{} (API {})",
            version
                .version
                .unwrap_or_else(|| "of unknown version".to_owned()),
            version.api_version.unwrap_or_else(|| "unknown".to_owned())
        ))
    }

    /// Where the engine listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The running container that `wanted` names: by name, by id, or by the first digits of its id.
    pub(crate) fn find(&self, wanted: &str) -> Result<Container> {
        let listed = self.list()?;
        let id = pick(&listed, wanted)?.id.clone();
        let asked = self.inspect(&id)?;
        running(&asked)?;
        let Some(owner) = asked.network_mode.strip_prefix("container:") else {
            return networked(asked);
        };
        let owner = self.inspect(owner)?;
        running(&owner)?;
        let mut container = networked(owner)?;
        container.shared_by = Some(asked.name);
        Ok(container)
    }

    /// Whether the process that [`Engine::find`] gave is still the container's.
    ///
    /// Asked after its namespace is open: from then on the number may belong to anybody.
    pub(crate) fn still_is(&self, container: &Container) -> Result<()> {
        let now = self.inspect(&container.id)?;
        if now.running && now.pid == container.pid {
            return Ok(());
        }
        Err(CliError::new(format!(
            "container {} was restarted or stopped in this moment",
            container.name
        ))
        .remedy("the same command again"))
    }

    /// The names that containers of these ids have now, by id.
    pub(crate) fn names_of(&self, ids: Vec<String>) -> Result<Vec<(String, String)>> {
        let listed = self.list_some(Some(HashMap::from([("id".to_owned(), ids)])))?;
        // Names with a slash in them are those that others gave it (links).
        let own = |one: Listed| {
            let name = one.names.into_iter().find(|name| !name.contains('/'))?;
            Some((one.id, name))
        };
        Ok(listed.into_iter().filter_map(own).collect())
    }

    /// The addresses of a running container's interfaces, as the engine made them; `None` when it knows no such container,
    /// or when that does not run.
    pub(crate) fn interfaces(&self, id: &str) -> Result<Option<Vec<String>>> {
        let listed = self.list()?;
        let Some(found) = listed.iter().find(|one| one.id.starts_with(id)) else {
            return Ok(None);
        };
        let now = self.inspect(&found.id)?;
        Ok(now.running.then_some(now.macs))
    }

    /// The names of all containers.
    pub(crate) fn all_names(&self) -> Result<Vec<String>> {
        Ok(self.list()?.into_iter().flat_map(|one| one.names).collect())
    }

    fn list(&self) -> Result<Vec<Listed>> {
        self.list_some(None)
    }

    fn list_some(&self, filters: Option<HashMap<String, Vec<String>>>) -> Result<Vec<Listed>> {
        let options = ListContainersOptions {
            all: true,
            filters,
            ..Default::default()
        };
        let summaries = self
            .runtime
            .block_on(self.client.list_containers(Some(options)))
            .map_err(|source| self.failed("list its containers", &source))?;
        Ok(summaries
            .into_iter()
            .filter_map(|summary| {
                let names = summary.names.unwrap_or_default();
                let names = names
                    .iter()
                    .map(|name| name.trim_start_matches('/').to_owned())
                    .collect();
                Some(Listed {
                    id: summary.id?,
                    names,
                })
            })
            .collect())
    }

    fn inspect(&self, id: &str) -> Result<Inspected> {
        let answer = self
            .runtime
            .block_on(
                self.client
                    .inspect_container(id, None::<InspectContainerOptions>),
            )
            .map_err(|source| self.failed("tell of the container", &source))?;
        let state = answer.state.unwrap_or_default();
        let networks = answer
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        Ok(Inspected {
            id: answer.id.unwrap_or_default(),
            name: answer
                .name
                .unwrap_or_default()
                .trim_start_matches('/')
                .to_owned(),
            status: state
                .status
                .map(|status| status.to_string())
                .unwrap_or_default(),
            running: state.running.unwrap_or(false),
            pid: state
                .pid
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or(0),
            network_mode: answer
                .host_config
                .and_then(|config| config.network_mode)
                .unwrap_or_default(),
            macs: networks
                .values()
                .filter_map(|endpoint| endpoint.mac_address.clone())
                .collect(),
            networks: networks.into_keys().collect(),
        })
    }

    fn failed(&self, doing: &str, source: &bollard::errors::Error) -> CliError {
        CliError::new(format!(
            "the Docker engine at {} did not {doing}",
            self.socket.display()
        ))
        .caused_by(source)
        .remedy("docker version")
    }
}

/// The path of the engine's socket, from the value of `DOCKER_HOST`.
pub(crate) fn socket_of(docker_host: Option<&str>) -> Result<PathBuf> {
    let host = match docker_host {
        None | Some("") => return Ok(DEFAULT_SOCKET.into()),
        Some(host) => host,
    };
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(CliError::new(format!("DOCKER_HOST is {host}, which is no socket of this machine"))
            .because("the processes of another machine's containers cannot be attached from here")
            .remedy("unset DOCKER_HOST, or set it to unix:///path/of/docker.sock, or run nvcli on that machine")),
    }
}

/// Tells apart what bollard would all call a failed connection.
fn reachable(socket: &Path) -> Result<()> {
    let Err(source) = UnixStream::connect(socket) else {
        return Ok(());
    };
    let shown = socket.display();
    let (what, remedy) = match source.kind() {
        io::ErrorKind::NotFound => (
            format!("no Docker engine: there is no socket {shown}"),
            "start Docker or set DOCKER_HOST; without an engine name the target by pid:N or netns:NAME",
        ),
        io::ErrorKind::PermissionDenied => (
            format!("no permission to use the Docker socket {shown}"),
            "run nvcli as root (sudo), or as a member of the socket's group",
        ),
        io::ErrorKind::ConnectionRefused => (
            format!("no Docker engine: nobody listens on {shown}"),
            "systemctl start docker; without an engine name the target by pid:N or netns:NAME",
        ),
        _ => (
            format!("cannot connect to the Docker socket {shown}"),
            "docker version",
        ),
    };
    Err(CliError::new(what).because(source).remedy(remedy))
}

/// The one container of the list that `wanted` names, in the engine's own order: id, name, first digits of an id.
fn pick<'l>(listed: &'l [Listed], wanted: &str) -> Result<&'l Listed> {
    let exact = listed
        .iter()
        .find(|container| container.id == wanted)
        .or_else(|| {
            listed
                .iter()
                .find(|container| container.names.iter().any(|name| name == wanted))
        });
    if let Some(found) = exact {
        return Ok(found);
    }
    let by_prefix: Vec<&Listed> = listed
        .iter()
        .filter(|container| container.id.starts_with(wanted))
        .collect();
    match by_prefix.as_slice() {
        [one] => Ok(one),
        [] => Err(unknown(listed, wanted)),
        several => {
            let named: Vec<String> = several
                .iter()
                .take(5)
                .map(|container| described(container))
                .collect();
            Err(CliError::new(format!(
                "{wanted} is the beginning of {} container ids",
                several.len()
            ))
            .because(named.join(", "))
            .remedy("more digits of the id, or the name"))
        }
    }
}

fn described(container: &Listed) -> String {
    let id = container.id.get(..12).unwrap_or(&container.id);
    match container.names.first() {
        Some(name) => format!("{id} ({name})"),
        None => id.to_owned(),
    }
}

fn unknown(listed: &[Listed], wanted: &str) -> CliError {
    let error = CliError::new(format!("no container {wanted}"));
    let mut near: Vec<(f64, &str)> = listed
        .iter()
        .flat_map(|container| &container.names)
        // Docker knows no limit for names; the distance is quadratic in them.
        .filter(|name| name.len() <= 256 && wanted.len() <= 256)
        .map(|name| {
            let inside = name.contains(wanted) || wanted.contains(name.as_str());
            (
                if inside {
                    1.0
                } else {
                    strsim::jaro_winkler(name, wanted)
                },
                name.as_str(),
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.truncate(SUGGESTIONS);
    if near.is_empty() {
        return error
            .because(format!(
                "the engine knows {} containers, none of this name or id",
                listed.len()
            ))
            .remedy("docker ps");
    }
    let near: Vec<&str> = near.into_iter().map(|(_, name)| name).collect();
    error
        .because("the engine knows none of this name or id")
        .remedy(format!("did you mean {}?", near.join(" or ")))
}

fn running(container: &Inspected) -> Result<()> {
    if container.running && container.pid != 0 {
        return Ok(());
    }
    let status = if container.status.is_empty() {
        "not running"
    } else {
        &container.status
    };
    Err(CliError::new(format!(
        "container {} has no network now: it is {status}",
        container.name
    ))
    .because("a container's network namespace exists only while the container runs")
    .remedy(format!("docker start {}", escape::shell(&container.name))))
}

/// Refuses what has no network of its own.
fn networked(container: Inspected) -> Result<Container> {
    match container.network_mode.as_str() {
        "host" => Err(CliError::new(format!(
            "container {} uses the host's network (--network host)",
            container.name
        ))
        .because("it has no interface of its own: attaching it would attach the whole host")
        .remedy("run it in a network of its own, such as --network bridge")),
        // The mode stays what it was when other networks are connected later.
        "none" if container.networks.iter().all(|network| network == "none") => {
            Err(CliError::new(format!(
                "container {} has no network (--network none)",
                container.name
            ))
            .because("loopback is its only interface: nothing enters or leaves it")
            .remedy(format!(
                "docker network disconnect none {0}; docker network connect bridge {0}",
                escape::shell(&container.name)
            )))
        }
        _ => Ok(Container {
            name: container.name,
            id: container.id,
            pid: container.pid,
            shared_by: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, name: &str) -> Listed {
        Listed {
            id: id.to_owned(),
            names: vec![name.to_owned()],
        }
    }

    fn three() -> Vec<Listed> {
        vec![
            listed("aa11", "web-1"),
            listed("aa22", "web-2"),
            listed("bb33", "aa11x"),
        ]
    }

    fn inspected() -> Inspected {
        Inspected {
            id: "aa11".into(),
            name: "web-1".into(),
            status: "running".into(),
            running: true,
            pid: 4711,
            network_mode: "bridge".into(),
            networks: vec!["bridge".into()],
            macs: vec!["02:42:ac:11:00:02".into()],
        }
    }

    #[test]
    fn a_name_an_id_and_a_prefix_find_the_container() {
        let all = three();
        for (wanted, id) in [
            ("web-2", "aa22"),
            ("aa11", "aa11"),
            ("b", "bb33"),
            ("aa11x", "bb33"),
            ("aa1", "aa11"),
        ] {
            assert_eq!(pick(&all, wanted).unwrap().id, id, "{wanted}");
        }
    }

    #[test]
    fn an_ambiguous_prefix_tells_the_candidates() {
        let error = pick(&three(), "aa").unwrap_err().to_string();
        assert!(
            error.contains("2 container ids") && error.contains("aa11 (web-1), aa22 (web-2)"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_name_suggests_near_ones() {
        let error = pick(&three(), "wbe-1").unwrap_err().to_string();
        assert!(
            error.contains("no container wbe-1") && error.contains("did you mean web-1"),
            "{error}"
        );
        let error = pick(&three(), "database").unwrap_err().to_string();
        assert!(
            error.contains("knows 3 containers") && !error.contains("did you mean"),
            "{error}"
        );
    }

    #[test]
    fn what_has_no_network_of_its_own_is_refused() {
        assert!(running(&inspected()).is_ok());
        assert!(networked(inspected()).is_ok());
        let stopped = Inspected {
            running: false,
            pid: 0,
            status: "exited".into(),
            ..inspected()
        };
        assert!(
            running(&stopped)
                .unwrap_err()
                .to_string()
                .contains("it is exited")
        );
        for (mode, says) in [("host", "the host's network"), ("none", "has no network")] {
            let alone = Inspected {
                network_mode: mode.into(),
                networks: vec![mode.into()],
                ..inspected()
            };
            let error = networked(alone).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        // Started without a network, connected to one later.
        assert!(
            networked(Inspected {
                network_mode: "none".into(),
                ..inspected()
            })
            .is_ok()
        );
    }

    #[test]
    fn only_a_socket_of_this_machine_is_an_engine() {
        assert_eq!(socket_of(None).unwrap(), Path::new(DEFAULT_SOCKET));
        assert_eq!(
            socket_of(Some("unix:///run/user/1000/docker.sock")).unwrap(),
            Path::new("/run/user/1000/docker.sock")
        );
        for host in ["tcp://10.0.0.1:2375", "ssh://a@b", "unix://", "nonsense"] {
            assert!(socket_of(Some(host)).is_err(), "{host}");
        }
    }

    #[test]
    fn a_socket_that_is_not_there_and_one_where_nobody_listens_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        assert!(
            reachable(&socket)
                .unwrap_err()
                .to_string()
                .contains("there is no socket")
        );
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(reachable(&socket).is_ok());
        drop(listener);
        assert!(
            reachable(&socket)
                .unwrap_err()
                .to_string()
                .contains("nobody listens")
        );
    }
}
