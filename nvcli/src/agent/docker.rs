//! What an engine runs: its list, then its events, and the list again whenever the connection was lost.
//!
//! An event only says that something may have changed: what is true now is asked for. So an event that comes twice, late, or
//! beside the list does no harm.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use futures_core::Stream;
use nvnet::MacAddr;

use super::keeper::News;
use super::select::Facts;
use crate::escape;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long an engine that is away is left alone: at first, and at most.
const REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// What may change a container's network, or what we say of it; Podman calls `die` `died`.
const ACTIONS: [&str; 9] = [
    "start",
    "die",
    "died",
    "destroy",
    "pause",
    "unpause",
    "rename",
    "connect",
    "disconnect",
];

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// All digits of its id.
    pub(crate) id: String,
    /// What rules ask about.
    pub(crate) facts: Facts,
    /// Its first process.
    pub(crate) pid: u32,
    /// When that process was started, by which it is told from another one that gets its number.
    pub(crate) started: u64,
    /// Whose network it uses.
    pub(crate) network: Network,
    /// The networks it is on.
    pub(crate) on: Vec<OnNetwork>,
    /// It is paused.
    pub(crate) is_paused: bool,
}

/// Whose network a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// One of its own.
    Own,
    /// The host's.
    Host,
    /// That of the container of this name or id.
    Of(String),
}

/// A container's place on a network of its engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OnNetwork {
    /// The network's name.
    pub(crate) name: String,
    /// Its addresses there.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its interface there.
    pub(crate) mac: Option<MacAddr>,
}

/// How an engine fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineState {
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// Its answers come.
    pub(crate) is_connected: bool,
    /// Times the connection was made.
    pub(crate) connects: u64,
    /// Events that were heard, each once.
    pub(crate) events: u64,
    /// Why it is not connected.
    pub(crate) why: Option<String>,
}

/// Follows one engine until the agent ends.
pub(crate) async fn follow(number: usize, socket: PathBuf, out: Sender<News>) {
    let mut follower = Follower {
        number,
        state: EngineState {
            socket,
            ..EngineState::default()
        },
        out,
        heard: Heard::default(),
    };
    let mut rest = REST.0;
    // An engine that is away is said to be once.
    let mut said = false;
    loop {
        let before = follower.state.connects;
        let Err(why) = follower.connection().await else {
            // Nobody listens to us any longer.
            return;
        };
        if follower.state.connects > before {
            (rest, said) = (REST.0, false);
        }
        if !said {
            let socket = follower.state.socket.display().to_string();
            tracing::warn!(
                engine = %escape::text(&socket),
                why = %escape::text(&why),
                "the engine does not answer; it is tried again"
            );
            said = true;
        }
        follower.state.is_connected = false;
        follower.state.why = Some(why);
        let state = follower.state.clone();
        if follower.tell(News::Engine(number, state)).is_err() {
            return;
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(REST.1);
    }
}

/// The agent has ended.
struct Over;

/// Which events were heard, so that each is heard once although the engine tells the last ones again.
#[derive(Debug, Default)]
struct Heard {
    /// When the latest came, by the engine's clock.
    latest: i64,
    /// Those of that moment.
    then: HashSet<(String, String)>,
}

impl Heard {
    /// Whether it is new.
    fn is_new(&mut self, event: &EventMessage) -> bool {
        let at = event.time_nano.unwrap_or_default();
        let actor = event.actor.as_ref().and_then(|actor| actor.id.clone());
        let what = (
            event.action.clone().unwrap_or_default(),
            actor.unwrap_or_default(),
        );
        if at > self.latest {
            self.latest = at;
            self.then.clear();
        }
        at == self.latest && self.then.insert(what)
    }

    /// From where the engine is to tell, as it wants it; now, when nothing was heard yet.
    fn since(&self) -> String {
        let now = || {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |now| now.as_nanos() as i64)
        };
        let nanos = if self.latest == 0 { now() } else { self.latest };
        format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
    }
}

struct Follower {
    number: usize,
    state: EngineState,
    out: Sender<News>,
    heard: Heard,
}

impl Follower {
    fn tell(&self, news: News) -> Result<(), Over> {
        self.out.send(news).map_err(|_| Over)
    }

    /// One connection, from the list to its end; `Ok` when the agent ends.
    async fn connection(&mut self) -> Result<(), String> {
        let client = connect(&self.state.socket).await?;
        // Before the list is asked for: what happens meanwhile is told afterwards.
        let options = EventsOptions {
            since: Some(self.heard.since()),
            filters: Some(HashMap::from([
                ("type".into(), vec!["container".into(), "network".into()]),
                ("event".into(), ACTIONS.map(str::to_owned).to_vec()),
            ])),
            ..EventsOptions::default()
        };
        let mut events = pin!(client.events(Some(options)));
        let failed = |error: DockerError| reason(&error);
        let listed = client
            .list_containers(None::<ListContainersOptions>)
            .await
            .map_err(failed)?;
        let mut running = HashSet::new();
        // Whose network is another one's is told after that one, as it was started: by it is known what becomes of both.
        let mut guests = Vec::new();
        for id in listed.into_iter().filter_map(|one| one.id) {
            let Some(container) = look(&client, &id).await.map_err(failed)? else {
                continue;
            };
            running.insert(container.id.clone());
            if matches!(container.network, Network::Of(_)) {
                guests.push(container);
            } else if self.running(container).is_err() {
                return Ok(());
            }
        }
        for guest in guests {
            if self.running(guest).is_err() {
                return Ok(());
            }
        }
        self.state.is_connected = true;
        self.state.connects += 1;
        self.state.why = None;
        let synced = self.tell(News::Listed(self.number, running));
        if synced
            .and_then(|()| self.tell(News::Engine(self.number, self.state.clone())))
            .is_err()
        {
            return Ok(());
        }
        loop {
            let event = match poll_fn(|context| events.as_mut().poll_next(context)).await {
                Some(Ok(event)) => event,
                Some(Err(error)) => return Err(reason(&error)),
                None => return Err("it closed the connection".to_owned()),
            };
            if !self.heard.is_new(&event) {
                continue;
            }
            self.state.events += 1;
            if self
                .tell(News::Engine(self.number, self.state.clone()))
                .is_err()
            {
                return Ok(());
            }
            let Some(id) = concerns(&event) else {
                continue;
            };
            let told = match look(&client, &id).await.map_err(failed)? {
                Some(container) => self.running(container),
                None => self.tell(News::Ended(id)),
            };
            if told.is_err() {
                return Ok(());
            }
        }
    }

    fn running(&self, container: Container) -> Result<(), Over> {
        self.tell(News::Running(self.number, Box::new(container)))
    }
}

async fn connect(socket: &Path) -> Result<Docker, String> {
    let client = Docker::connect_with_unix(
        &format!("unix://{}", socket.display()),
        TIMEOUT.as_secs(),
        bollard::API_DEFAULT_VERSION,
    )
    .map_err(|error| reason(&error))?;
    client
        .negotiate_version()
        .await
        .map_err(|error| reason(&error))
}

/// An error with its causes, in a line.
fn reason(error: &DockerError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The container that an event may have changed something of.
fn concerns(event: &EventMessage) -> Option<String> {
    use bollard::models::EventMessageTypeEnum as Kind;
    let actor = event.actor.as_ref()?;
    match event.typ? {
        Kind::CONTAINER => actor.id.clone(),
        Kind::NETWORK => actor.attributes.as_ref()?.get("container").cloned(),
        _ => None,
    }
}

/// The container as it is now; `None` when it does not run.
///
/// Asked twice, with the look at its process in between: the process that was looked at is so the container's own, and no other one
/// that got its number since.
async fn look(client: &Docker, id: &str) -> Result<Option<Container>, DockerError> {
    for _ in 0..3 {
        let Some((before, pid)) = inspect(client, id).await? else {
            return Ok(None);
        };
        let started = process_start(pid);
        let Some((after, then)) = inspect(client, id).await? else {
            return Ok(None);
        };
        let (Some(started), true) = (started, then == pid) else {
            continue;
        };
        drop(before);
        return Ok(Some(container(after, pid, started)));
    }
    // It comes and goes faster than it can be asked about; its next event will tell.
    Ok(None)
}

async fn inspect(
    client: &Docker,
    id: &str,
) -> Result<Option<(ContainerInspectResponse, u32)>, DockerError> {
    let told = match client
        .inspect_container(id, None::<InspectContainerOptions>)
        .await
    {
        Ok(told) => told,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let state = told.state.as_ref();
    let running = state.and_then(|state| state.running).unwrap_or(false);
    let pid = state
        .and_then(|state| state.pid)
        .and_then(|pid| u32::try_from(pid).ok());
    Ok(pid
        .filter(|pid| running && *pid != 0)
        .map(|pid| (told, pid)))
}

/// Whether there is no such container. Podman says so of one that is being removed with a status that means a fault of its own.
fn is_gone(error: &DockerError) -> bool {
    match error {
        DockerError::DockerResponseServerError {
            status_code: 404, ..
        } => true,
        DockerError::DockerResponseServerError {
            status_code: 500,
            message,
        } => message.contains("no such container"),
        _ => false,
    }
}

fn container(told: ContainerInspectResponse, pid: u32, started: u64) -> Container {
    let config = told.config.unwrap_or_default();
    let mode = told
        .host_config
        .and_then(|host| host.network_mode)
        .unwrap_or_default();
    let on = told
        .network_settings
        .and_then(|settings| settings.networks)
        .unwrap_or_default()
        .into_iter()
        .map(|(name, place)| OnNetwork {
            name,
            addresses: [place.ip_address, place.global_ipv6_address]
                .into_iter()
                .flatten()
                .filter_map(|address| address.parse().ok())
                .collect(),
            mac: place.mac_address.and_then(|mac| mac.parse().ok()),
        })
        .collect();
    Container {
        id: told.id.unwrap_or_default(),
        facts: Facts {
            name: told
                .name
                .unwrap_or_default()
                .trim_start_matches('/')
                .to_owned(),
            image: config.image.unwrap_or_default(),
            labels: config.labels.unwrap_or_default(),
        },
        pid,
        started,
        network: match (mode.as_str(), mode.strip_prefix("container:")) {
            ("host", _) => Network::Host,
            (_, Some(of)) => Network::Of(of.to_owned()),
            // Without a network now, it may be connected to one later: its interfaces tell.
            _ => Network::Own,
        },
        on,
        is_paused: told.state.and_then(|state| state.paused).unwrap_or(false),
    }
}

/// When a process was started, in ticks since the machine was; `None` when there is none of this number.
///
/// Source: field 22 of /proc/PID/stat, proc(5).
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field, in brackets, is a name that may hold anything, cut after 15 octets.
    let stat = String::from_utf8_lossy(&stat);
    let (_, rest) = stat.rsplit_once(')')?;
    // A zombie has no namespace any longer.
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;

    use super::*;

    fn event(at: i64, action: &str, id: &str) -> EventMessage {
        EventMessage {
            action: Some(action.into()),
            actor: Some(EventActor {
                id: Some(id.into()),
                attributes: None,
            }),
            time_nano: Some(at),
            ..EventMessage::default()
        }
    }

    #[test]
    fn what_an_engine_tells_again_is_heard_once() {
        let mut heard = Heard::default();
        assert!(heard.is_new(&event(5_000_000_001, "start", "a")));
        assert!(heard.is_new(&event(5_000_000_002, "die", "a")));
        assert!(heard.is_new(&event(5_000_000_002, "die", "b")));
        assert_eq!(heard.since(), "5.000000002");
        // As after a new connection: the last moment's come again.
        assert!(!heard.is_new(&event(5_000_000_002, "die", "a")));
        assert!(!heard.is_new(&event(5_000_000_002, "die", "b")));
        assert!(!heard.is_new(&event(5_000_000_001, "start", "a")));
        assert!(heard.is_new(&event(5_000_000_003, "start", "a")));
    }

    #[test]
    fn a_container_that_is_gone_is_no_fault_of_the_engine() {
        let error = |status_code, message: &str| DockerError::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        };
        assert!(is_gone(&error(404, "No such container: web-1")));
        // Podman 4.3.1.
        let podman = "container 11f7 does not exist in database: no such container";
        assert!(is_gone(&error(500, podman)));
        assert!(!is_gone(&error(500, "database is locked")));
        assert!(!is_gone(&error(503, podman)));
    }

    #[test]
    fn a_process_is_told_by_its_start() {
        let own = process_start(std::process::id()).unwrap();
        let parent = process_start(nix::unistd::getppid().as_raw() as u32).unwrap();
        assert!(own >= parent && parent > 0, "{own} {parent}");
        assert_eq!(process_start(u32::MAX), None);
    }

    #[test]
    fn a_process_may_have_any_name() {
        // Threads are in /proc too, and the name of one is cut in the middle of its last letter.
        let thread = std::thread::Builder::new().name("fourteenletterß".into());
        let look = || {
            let id = nix::unistd::gettid().as_raw() as u32;
            let stat = std::fs::read(format!("/proc/{id}/stat")).unwrap();
            assert!(String::from_utf8(stat).is_err());
            assert!(process_start(id).is_some());
        };
        thread.spawn(look).unwrap().join().unwrap();
    }
}
