//! A broker of NATS for a test, and a consumer written from its protocol.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::{Running, until};

/// Starts a broker with JetStream, whose store is `folder`.
pub(crate) fn broker(port: u16, folder: &Path) -> Result<Running, Failed> {
    let mut command = Command::new("nats-server");
    command
        .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let broker = Running::start(command)?;
    until("the broker answers", || Ok(Consumer::connect(port).is_ok()))?;
    Ok(broker)
}

pub(crate) struct Consumer {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

/// A message: its subject, the id it was sent under, its body.
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) id: String,
    pub(crate) body: String,
}

impl Consumer {
    pub(crate) fn connect(port: u16) -> Result<Self, Failed> {
        let writer = TcpStream::connect(("127.0.0.1", port))?;
        writer.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut consumer = Self {
            reader: BufReader::new(writer.try_clone()?),
            writer,
        };
        let hello = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true,\"protocol\":1}\r\n\
                     SUB answers 1\r\nSUB messages 2\r\nPING\r\n";
        consumer.writer.write_all(hello.as_bytes())?;
        let mut line = String::new();
        while line != "PONG\r\n" {
            line.clear();
            if consumer.reader.read_line(&mut line)? == 0 {
                return Err("the broker closed the connection".into());
            }
        }
        Ok(consumer)
    }

    /// The next message: on which subject of ours it came, and what it is.
    fn next(&mut self) -> Result<(String, Message), Failed> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err("the broker closed the connection".into());
            }
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (head, all): (usize, usize) = match words[..] {
                ["MSG", .., all] => (0, all.parse()?),
                ["HMSG", .., head, all] => (head.parse()?, all.parse()?),
                ["PING"] => {
                    self.writer.write_all(b"PONG\r\n")?;
                    continue;
                }
                _ => continue,
            };
            // Subject, subscription, and where to answer: there JetStream says what the message is.
            let (subject, subscription) = (words[1].to_owned(), words[2].to_owned());
            let mut octets = vec![0; all + 2];
            self.reader.read_exact(&mut octets)?;
            let headers = String::from_utf8(octets[..head].to_vec())?;
            let id = headers
                .lines()
                .find_map(|line| line.strip_prefix("Nats-Msg-Id: "))
                .unwrap_or_default();
            let message = Message {
                subject,
                id: id.to_owned(),
                body: String::from_utf8(octets[head..all].to_vec())?,
            };
            return Ok((subscription, message));
        }
    }

    fn ask(&mut self, subject: &str, body: &Value) -> Result<Value, Failed> {
        let body = body.to_string();
        let question = format!("PUB {subject} answers {}\r\n{body}\r\n", body.len());
        self.writer.write_all(question.as_bytes())?;
        loop {
            let (subscription, message) = self.next()?;
            if subscription == "1" {
                return Ok(serde_json::from_str(&message.body)?);
            }
        }
    }

    /// Messages in the stream; none where there is no stream.
    pub(crate) fn count(&mut self, stream: &str) -> Result<u64, Failed> {
        let info = self.ask(&format!("$JS.API.STREAM.INFO.{stream}"), &json!({}))?;
        Ok(info["state"]["messages"].as_u64().unwrap_or(0))
    }

    /// All messages of the stream, once for each id, in order of their ids.
    pub(crate) fn all(&mut self, stream: &str) -> Result<BTreeMap<String, Message>, Failed> {
        let count = self.count(stream)?;
        let consumer = json!({
            "stream_name": stream,
            "config": {"deliver_subject": "messages", "deliver_policy": "all", "ack_policy": "none"},
        });
        let body = consumer.to_string();
        let create = format!(
            "PUB $JS.API.CONSUMER.CREATE.{stream} answers {}\r\n{body}\r\n",
            body.len()
        );
        self.writer.write_all(create.as_bytes())?;
        let mut messages = BTreeMap::new();
        let mut seen = 0;
        while seen < count {
            let (subscription, message) = self.next()?;
            if subscription == "2" {
                seen += 1;
                messages.insert(message.id.clone(), message);
            } else if message.body.contains("\"error\"") {
                return Err(message.body.into());
            }
        }
        Ok(messages)
    }
}
