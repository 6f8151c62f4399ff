//! Records as log records of OpenTelemetry: OTLP over HTTP, in JSON.
//!
//! The JSON is written here, as the records of other formats are: the SDK's batching exporter has a queue of its own, whose losses nobody would count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use nvflow::{FlowRecord, Value};
use serde_json::json;

use super::config::OtlpTo;
use super::lane::{Exporter, Lane, Lost, TICK, Trouble};
use crate::escape;
use crate::render::flows::protocol;

/// Records of a request, at most.
const BATCH: usize = 512;
/// How long a collector may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Octets of an answer that are read.
const LONGEST: usize = 64 << 10;

pub(super) struct Otlp {
    to: OtlpTo,
    host: String,
    runtime: tokio::runtime::Runtime,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What a collector made of a request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Taken, but for so many records.
    Taken { rejected: u64, why: String },
    /// Not now.
    Later(String),
    /// Never.
    Refused(String),
}

impl Otlp {
    pub(super) fn new(to: &OtlpTo) -> std::io::Result<Self> {
        Ok(Self {
            to: to.clone(),
            host: nix::unistd::gethostname()?.to_string_lossy().into_owned(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            connection: None,
        })
    }

    fn trouble(&self, why: impl std::fmt::Display) -> Trouble {
        Trouble::new(format!("otlp {}", self.to.address), why)
    }

    /// Sends a request and reads the answer.
    fn post(&mut self, body: Vec<u8>, lane: &Lane) -> Result<Verdict, Trouble> {
        let patience = lane.within(ANSWER).max(TICK);
        let address = self.to.address.clone();
        let connection = self.connection.take();
        let request = Request::post("/v1/logs")
            .header(header::HOST, &address)
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("nvcli/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.trouble(error))?;
        let exchange = async {
            let mut sender = match connection.filter(|sender| !sender.is_closed()) {
                Some(sender) => sender,
                None => {
                    let stream = tokio::net::TcpStream::connect(&address).await?;
                    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                    // Its errors are those of the request.
                    drop(tokio::spawn(connection));
                    sender
                }
            };
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST).collect().await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((sender, status, body.to_bytes()))
        };
        let exchanged = self
            .runtime
            .block_on(async { tokio::time::timeout(patience, exchange).await });
        match exchanged {
            Err(_) => Err(self.trouble("it does not answer")),
            Ok(Err(error)) => {
                let cause = error
                    .source()
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                Err(self.trouble(format_args!("{error}{cause}")))
            }
            Ok(Ok((sender, status, body))) => {
                self.connection = Some(sender);
                Ok(verdict(status, &body))
            }
        }
    }
}

/// The OTLP specification's section "OTLP/HTTP Response".
fn verdict(status: StatusCode, body: &[u8]) -> Verdict {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match status.as_u16() {
        200..=299 => {
            let partial = &said["partialSuccess"];
            let rejected = &partial["rejectedLogRecords"];
            let text = rejected.as_str().and_then(|text| text.parse().ok());
            Verdict::Taken {
                rejected: text.or_else(|| rejected.as_u64()).unwrap_or(0),
                why: partial["errorMessage"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            }
        }
        429 | 502..=504 => Verdict::Later(format!("it answers {status}")),
        _ => {
            let why = said["message"]
                .as_str()
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            Verdict::Refused(format!("it answers {status}{why}"))
        }
    }
}

fn text(text: &str) -> serde_json::Value {
    json!({ "stringValue": text })
}

fn attribute(key: &str, value: serde_json::Value) -> serde_json::Value {
    json!({ "key": key, "value": value })
}

/// A record as a log record: its fields are the attributes.
fn log_record(record: &FlowRecord) -> serde_json::Value {
    // Numbers of 64 bits are texts in the JSON of Protocol Buffers, and have a sign.
    let number = |number: u64| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        json!({ "intValue": number.to_string() })
    };
    let mut attributes = Vec::new();
    record.fields(|field, value| {
        let name = field.name();
        match value {
            Value::Unsigned(value) => attributes.push(attribute(name, number(value))),
            Value::Address(address) => attributes.push(attribute(name, text(&address.to_string()))),
            Value::Text(value) => attributes.push(attribute(name, text(value))),
            Value::HandshakeRtt { client, server } => {
                for (part, micros) in [("client", client), ("server", server)] {
                    if let Some(micros) = micros {
                        let name = format!("{name}.{part}");
                        attributes.push(attribute(&name, number(micros.into())));
                    }
                }
            }
            other => attributes.push(attribute(name, text(&format!("{other:?}")))),
        }
    });
    let end = |end: nvflow::Endpoint| match record.has_ports {
        true => std::net::SocketAddr::new(end.address, end.port).to_string(),
        false => end.address.to_string(),
    };
    let body = format!(
        "{} {} to {}",
        protocol(record.protocol_identifier),
        end(record.source),
        end(record.destination)
    );
    json!({
        "timeUnixNano": record.flow_start.as_nanos().to_string(),
        "observedTimeUnixNano": record.flow_end.as_nanos().to_string(),
        "severityNumber": 9,
        "severityText": "INFO",
        "eventName": "nvcli.flow",
        "body": text(&body),
        "attributes": attributes,
    })
}

/// A request's body.
fn request<'r>(host: &str, records: impl Iterator<Item = &'r FlowRecord>) -> serde_json::Value {
    let records: Vec<_> = records.map(log_record).collect();
    json!({ "resourceLogs": [{
        "resource": { "attributes": [
            attribute("service.name", text("nvcli")),
            attribute("host.name", text(host)),
        ]},
        "scopeLogs": [{
            "scope": { "name": "nvcli", "version": env!("CARGO_PKG_VERSION") },
            "logRecords": records,
        }],
    }]})
}

impl Exporter for Otlp {
    fn export(
        &mut self,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> Result<(), Trouble> {
        while !records.is_empty() && !lane.is_over() {
            let count = records.len().min(BATCH);
            let batch = records.iter().take(count).map(AsRef::as_ref);
            let mut body = Vec::new();
            // Whoever looks at it may look at it raw; writing to memory does not fail.
            let _ = escape::json(&mut body, &request(&self.host, batch));
            let octets = body.len();
            match self.post(body, lane)? {
                Verdict::Later(why) => return Err(self.trouble(why)),
                Verdict::Taken { rejected, why } => {
                    let rejected = rejected.min(count as u64);
                    lane.connected();
                    lane.exported(count - rejected as usize, octets);
                    if rejected > 0 {
                        lane.lost(Lost::Refused, rejected);
                        lane.said(&format!("otlp {}: {why}", self.to.address));
                    }
                }
                Verdict::Refused(why) => {
                    lane.lost(Lost::Refused, count as u64);
                    lane.said(&format!("otlp {}: {why}", self.to.address));
                }
            }
            records.drain(..count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::lane::tests::record;

    #[test]
    fn answers_are_understood() {
        let taken = |rejected, why: &str| Verdict::Taken {
            rejected,
            why: why.to_owned(),
        };
        assert_eq!(verdict(StatusCode::OK, b"{}"), taken(0, ""));
        assert_eq!(verdict(StatusCode::OK, b""), taken(0, ""));
        let partial = br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"why"}}"#;
        assert_eq!(verdict(StatusCode::OK, partial), taken(3, "why"));
        for status in [429, 502, 503, 504] {
            let status = StatusCode::from_u16(status).expect("right");
            assert!(matches!(verdict(status, b""), Verdict::Later(_)));
        }
        assert_eq!(
            verdict(StatusCode::BAD_REQUEST, br#"{"message":"no"}"#),
            Verdict::Refused("it answers 400 Bad Request: no".to_owned())
        );
    }

    #[test]
    fn a_record_is_what_the_specification_wants() {
        let mut flow = record(4242);
        flow.forward.octets = u64::MAX;
        let log = log_record(&flow);
        // ProtoJSON: 64-bit integers are decimal strings.
        assert_eq!(log["timeUnixNano"], "1700000000123456789");
        assert_eq!(
            log["body"]["stringValue"],
            "udp 10.0.0.1:4242 to 10.0.0.2:53"
        );
        let value = |key: &str| {
            let attributes = log["attributes"].as_array().expect("a list");
            let found = attributes.iter().find(|attribute| attribute["key"] == key);
            found.expect(key)["value"].clone()
        };
        assert_eq!(value("sourceTransportPort"), json!({"intValue": "4242"}));
        assert_eq!(
            value("octetDeltaCount"),
            json!({"intValue": i64::MAX.to_string()})
        );
        assert_eq!(
            value("sourceIPv4Address"),
            json!({"stringValue": "10.0.0.1"})
        );
    }
}
