//! The part of NATS' client protocol that publishing to JetStream needs: text over TCP.
//!
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Entry;
use crate::export::config::NatsTo;
use crate::export::lane::{Lane, TICK, Trouble};

/// How long a broker may take to greet, and to answer a question.
const ANSWER: Duration = Duration::from_secs(5);
/// A line, and a payload, that are longer are not NATS.
const LINE: usize = 1 << 20;
const PAYLOAD: usize = 16 << 20;

/// What a broker said to a message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is stored, now or since before.
    Stored,
    /// It will never be.
    Refused(String),
    /// It is not, and may be later.
    NotNow(String),
}

pub(super) struct Client {
    stream: TcpStream,
    /// Octets that came and were not understood yet.
    coming: Vec<u8>,
    /// Octets to be written.
    going: Vec<u8>,
    inbox: String,
    pub(super) max_payload: usize,
    /// Answers to questions, by the last token of their subject.
    answers: HashMap<String, (Option<u16>, Vec<u8>)>,
}

fn trouble(to: &NatsTo, why: impl std::fmt::Display) -> Trouble {
    Trouble::new(format!("nats {}", to.address), why)
}

impl Client {
    /// Connects, and makes sure that there is a stream.
    pub(super) fn connect(to: &NatsTo, lane: &Lane) -> Result<Self, Trouble> {
        let failed = |error: io::Error| trouble(to, error);
        let addresses = to.address.to_socket_addrs().map_err(failed)?;
        let patience = lane
            .within(Duration::from_secs(3))
            .max(Duration::from_millis(1));
        let mut last = io::Error::other("the name has no address");
        let stream = addresses.into_iter().find_map(|address| {
            TcpStream::connect_timeout(&address, patience)
                .map_err(|error| last = error)
                .ok()
        });
        let stream = match stream {
            Some(stream) => stream,
            None => return Err(failed(last)),
        };
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_write_timeout(Some(TICK)).map_err(failed)?;
        let mut client = Self {
            stream,
            coming: Vec::new(),
            going: Vec::new(),
            inbox: format!("_INBOX.{}", super::token()),
            max_payload: 1 << 20,
            answers: HashMap::new(),
        };
        client.greet(to, lane)?;
        client.find_stream(to, lane)?;
        Ok(client)
    }

    fn greet(&mut self, to: &NatsTo, lane: &Lane) -> Result<(), Trouble> {
        let until = Instant::now() + lane.within(ANSWER).max(TICK);
        let line = self
            .wait_for(until, |client| client.line())
            .map_err(|e| trouble(to, e))?;
        let info = line
            .strip_prefix("INFO ")
            .and_then(|info| serde_json::from_str(info).ok());
        let Some(info): Option<Value> = info else {
            return Err(trouble(to, "it does not speak NATS"));
        };
        if info["tls_required"] == true {
            return Err(trouble(
                to,
                "it wants TLS, which nvcli has not: a leaf node or a tunnel beside it can",
            ));
        }
        if info["headers"] != true {
            return Err(trouble(
                to,
                "it takes no headers: JetStream needs NATS 2.2 or later",
            ));
        }
        if let Some(most) = info["max_payload"].as_u64() {
            self.max_payload = usize::try_from(most).unwrap_or(PAYLOAD);
        }
        let mut options = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1,
            "lang": "rust", "name": "nvcli", "version": env!("CARGO_PKG_VERSION"),
        });
        for (key, value) in [
            ("user", &to.user),
            ("pass", &to.password),
            ("auth_token", &to.token),
        ] {
            if let Some(value) = value {
                options[key] = value.as_str().into();
            }
        }
        let hello = format!("CONNECT {options}\r\nSUB {}.* 1\r\nPING\r\n", self.inbox);
        self.going.extend(hello.as_bytes());
        self.flush(lane).map_err(|error| trouble(to, error))?;
        let answer = self
            .wait_for(until, |client| {
                Ok(client
                    .line()?
                    .filter(|line| line.starts_with("PONG") || line.starts_with("-ERR")))
            })
            .map_err(|error| trouble(to, error))?;
        match answer.strip_prefix("-ERR") {
            None => Ok(()),
            Some(why) => Err(trouble(to, why.trim().trim_matches('\''))),
        }
    }

    /// Asks for the stream, and makes it when there is none and that is wanted.
    fn find_stream(&mut self, to: &NatsTo, lane: &Lane) -> Result<(), Trouble> {
        let info = self.ask(
            to,
            lane,
            &format!("$JS.API.STREAM.INFO.{}", to.stream),
            &json!({}),
        )?;
        let Some(error) = info.get("error") else {
            return Ok(());
        };
        if error["code"] != 404 || !to.create {
            let why = error["description"].as_str().unwrap_or("no reason given");
            return Err(trouble(to, format!("stream {}: {why}", to.stream)));
        }
        let stream = json!({
            "name": to.stream,
            "subjects": [format!("{}.>", to.subject)],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000_u64,
        });
        let made = self.ask(
            to,
            lane,
            &format!("$JS.API.STREAM.CREATE.{}", to.stream),
            &stream,
        )?;
        match made.get("error") {
            None => Ok(()),
            Some(error) => {
                let why = error["description"].as_str().unwrap_or("no reason given");
                Err(trouble(
                    to,
                    format!("cannot make stream {}: {why}", to.stream),
                ))
            }
        }
    }

    /// Asks JetStream's interface something.
    fn ask(
        &mut self,
        to: &NatsTo,
        lane: &Lane,
        subject: &str,
        body: &Value,
    ) -> Result<Value, Trouble> {
        let body = body.to_string();
        let question = format!(
            "PUB {subject} {}.api {}\r\n{body}\r\n",
            self.inbox,
            body.len()
        );
        self.going.extend(question.as_bytes());
        self.flush(lane).map_err(|error| trouble(to, error))?;
        let until = Instant::now() + lane.within(ANSWER).max(TICK);
        let (status, body) = self
            .wait_for(until, |client| {
                client.understand()?;
                Ok(client.answers.remove("api"))
            })
            .map_err(|error| trouble(to, error))?;
        if status == Some(503) {
            return Err(trouble(to, "JetStream is not enabled there"));
        }
        serde_json::from_slice(&body).map_err(|error| trouble(to, error))
    }

    /// Reads until `look` finds what it looks for.
    fn wait_for<T>(
        &mut self,
        until: Instant,
        mut look: impl FnMut(&mut Self) -> io::Result<Option<T>>,
    ) -> io::Result<T> {
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(ErrorKind::TimedOut, "it does not answer"));
            }
            self.receive(left.min(TICK))?;
        }
    }

    /// Takes what has come, waiting up to `patience` for it.
    fn receive(&mut self, patience: Duration) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        self.stream
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "it closed the connection",
            )),
            Ok(octets) => {
                self.coming.extend(&buffer[..octets]);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next line, if it is there as a whole.
    fn line(&mut self) -> io::Result<Option<String>> {
        let Some(end) = self.coming.windows(2).position(|pair| pair == b"\r\n") else {
            if self.coming.len() > LINE {
                return Err(io::Error::other("it does not speak NATS"));
            }
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&self.coming[..end]).into_owned();
        self.coming.drain(..end + 2);
        Ok(Some(line))
    }

    /// Understands what has come: answers are kept, pings answered.
    fn understand(&mut self) -> io::Result<()> {
        let mut at = 0;
        while let Some(length) = self.understand_one(at)? {
            at += length;
        }
        self.coming.drain(..at);
        Ok(())
    }

    /// Understands what stands there; gives its length, or `None` when it is not there as a whole.
    fn understand_one(&mut self, at: usize) -> io::Result<Option<usize>> {
        let rest = &self.coming[at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return match rest.len() {
                0..=LINE => Ok(None),
                _ => Err(io::Error::other("it does not speak NATS")),
            };
        };
        let line = String::from_utf8_lossy(&rest[..end]);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let strange = || io::Error::other(format!("it said {line:?}"));
        let number = |word: Option<&&str>| -> io::Result<usize> {
            word.and_then(|word| word.parse().ok())
                .filter(|number| *number <= PAYLOAD)
                .ok_or_else(strange)
        };
        let (head, payload) = match words.first() {
            Some(&"MSG") => (0, number(words.last())?),
            Some(&"HMSG") => (number(words.iter().rev().nth(1))?, number(words.last())?),
            Some(&"PING") => {
                self.going.extend(b"PONG\r\n");
                return Ok(Some(end + 2));
            }
            Some(&"-ERR") => {
                let why = line.trim_start_matches("-ERR").trim().trim_matches('\'');
                return Err(io::Error::other(why.to_owned()));
            }
            // INFO, PONG, +OK.
            _ => return Ok(Some(end + 2)),
        };
        let whole = end + 2 + payload + 2;
        let Some(octets) = rest.get(end + 2..whole) else {
            return Ok(None);
        };
        let (head, octets) = octets[..payload]
            .split_at_checked(head)
            .ok_or_else(strange)?;
        let token = words.get(1).and_then(|subject| subject.rsplit('.').next());
        let token = token.unwrap_or_default().to_owned();
        self.answers.insert(token, (status(head), octets.to_vec()));
        Ok(Some(whole))
    }

    /// Puts a message into what is to be written; its answer will have `number`.
    pub(super) fn publish(&mut self, number: u64, entry: &Entry) {
        let head = format!("NATS/1.0\r\nNats-Msg-Id: {}\r\n\r\n", entry.id);
        let command = format!(
            "HPUB {} {}.{number} {} {}\r\n{head}",
            entry.subject,
            self.inbox,
            head.len(),
            head.len() + entry.body.len()
        );
        self.going.extend(command.as_bytes());
        self.going.extend(&entry.body);
        self.going.extend(b"\r\n");
    }

    /// Octets that a message takes of what the broker allows.
    pub(super) fn length(entry: &Entry) -> usize {
        entry.body.len() + entry.id.len() + "NATS/1.0\r\nNats-Msg-Id: \r\n\r\n".len()
    }

    /// Writes what is to be written.
    pub(super) fn flush(&mut self, lane: &Lane) -> io::Result<()> {
        while !self.going.is_empty() {
            match self.stream.write(&self.going) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.going.drain(..written)),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    // It may be stuck on answers that nobody takes.
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if !lane.is_over() => {
                        self.receive(Duration::from_millis(1))?;
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// The answers that have come, waiting up to `patience` for the first.
    pub(super) fn answers(&mut self, patience: Duration) -> io::Result<Vec<(u64, Answer)>> {
        self.receive(patience)?;
        self.understand()?;
        let answers = self.answers.drain();
        Ok(answers
            .filter_map(|(token, (status, body))| {
                Some((token.parse().ok()?, answer(status, &body)))
            })
            .collect())
    }
}

/// The status in a message's headers: `NATS/1.0 503`.
fn status(head: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(head).ok()?;
    let rest = text.strip_prefix("NATS/1.0")?;
    rest.trim_start_matches(' ').get(..3)?.parse().ok()
}

fn answer(status: Option<u16>, body: &[u8]) -> Answer {
    if status.is_some() {
        return Answer::NotNow("no stream takes this subject".to_owned());
    }
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return Answer::NotNow("an acknowledgment that is no JSON".to_owned());
    };
    let Some(error) = body.get("error") else {
        return Answer::Stored;
    };
    let why = error["description"]
        .as_str()
        .unwrap_or("no reason given")
        .to_owned();
    // A full stream (10077 and others of 503) may have room later; what a client did wrong stays wrong.
    match error["code"].as_u64() {
        Some(400..=499) => Answer::Refused(why),
        _ => Answer::NotNow(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(status(b"NATS/1.0 503\r\n\r\n"), Some(503));
        assert_eq!(status(b"NATS/1.0\r\nKey: v\r\n\r\n"), None);
        assert_eq!(status(b""), None);
        let of = |body: &str| answer(None, body.as_bytes());
        assert_eq!(of(r#"{"stream":"s","seq":1}"#), Answer::Stored);
        assert_eq!(
            of(r#"{"stream":"s","seq":1,"duplicate":true}"#),
            Answer::Stored
        );
        assert!(matches!(answer(Some(503), b""), Answer::NotNow(_)));
        assert!(matches!(of("what"), Answer::NotNow(_)));
        let error = |code: u16| format!(r#"{{"error":{{"code":{code},"description":"why"}}}}"#);
        assert_eq!(of(&error(503)), Answer::NotNow("why".to_owned()));
        assert_eq!(of(&error(400)), Answer::Refused("why".to_owned()));
    }
}
