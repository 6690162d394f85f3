//! Driver: one blocking connection to a node, for commands that ask a few questions and end.
//!
//! Runs on the main thread of a process without shards. It bounds the time of each step and the size of each answer,
//! and turns every way to fail into a sentence that says what to do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{ExitStatus, Failure};
use crate::kafka::api::{ApiKey, Call, decode_response, request_frame};
use crate::kafka::messages::api_versions::{ApiVersion, ApiVersionsRequest};

/// The largest answer that is read: the metadata of a large cluster.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Addresses in one `--bootstrap` list, and addresses of one name, that are tried.
const ADDRESSES_MAX: usize = 16;
/// How much later than its own deadline an answer of a node may come.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
const CLIENT_ID: &str = "highwater-cli";

/// A connection that knows which versions the node offers.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    /// For messages.
    address: String,
    versions: Vec<ApiVersion>,
    correlation: i32,
}

impl Client<TcpStream> {
    /// Connects to the first of the comma-separated addresses that answers. `timeout` bounds each step: connecting,
    /// and every wait for bytes.
    pub fn connect(bootstrap: &str, timeout: Duration) -> Result<Self, Failure> {
        let mut failure = None;
        for address in bootstrap.split(',').map(str::trim).filter(|a| !a.is_empty()).take(ADDRESSES_MAX) {
            match connect_one(address, timeout).and_then(|stream| Self::start(stream, address)) {
                Ok(client) => return Ok(client),
                Err(e) => _ = failure.get_or_insert(e),
            }
        }
        Err(failure
            .unwrap_or_else(|| Failure::new(ExitStatus::Usage, "--bootstrap is empty; expected HOST:PORT")))
    }
}

fn connect_one(address: &str, timeout: Duration) -> Result<TcpStream, Failure> {
    let unreachable = |e: &io::Error| Failure::new(ExitStatus::Unreachable, why_unreachable(address, e));
    let resolved = address.to_socket_addrs().map_err(|e| match e.kind() {
        ErrorKind::InvalidInput => Failure::new(
            ExitStatus::Usage,
            format!("--bootstrap {address}: expected HOST:PORT, such as 127.0.0.1:9092"),
        ),
        _ => Failure::new(ExitStatus::Unreachable, format!("the name in {address} cannot be resolved: {e}")),
    })?;
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for resolved in resolved.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&resolved, timeout) {
            Ok(stream) => {
                let prepared = stream
                    .set_read_timeout(Some(timeout + ANSWER_GRACE))
                    .and_then(|()| stream.set_write_timeout(Some(timeout)))
                    .and_then(|()| stream.set_nodelay(true));
                return prepared.map(|()| stream).map_err(|e| unreachable(&e));
            }
            Err(e) => last = e,
        }
    }
    Err(unreachable(&last))
}

fn why_unreachable(address: &str, e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::ConnectionRefused => format!("no node listens on {address}; start one with `highwater`"),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            format!(
                "{address} did not answer in time; is a node running there, and does a firewall let you through?"
            )
        }
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            format!("{address} closed the connection; is it the client port of a node?")
        }
        _ => format!("{address}: {e}"),
    }
}

impl<S: Read + Write> Client<S> {
    /// Asks the node for its versions.
    pub fn start(stream: S, address: &str) -> Result<Self, Failure> {
        let mut client = Self { stream, address: address.into(), versions: Vec::new(), correlation: 0 };
        // Version 0 is understood by every node there is.
        let answer = client.call_version(0, &ApiVersionsRequest::default())?;
        if answer.error_code != 0 {
            return Err(
                client.not_kafka(&format!("it refuses to say what it offers (error {})", answer.error_code))
            );
        }
        client.versions = answer.api_keys;
        Ok(client)
    }

    #[cfg(test)]
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// The newest version of `api` that both sides know, at least `version_min`.
    fn version(&self, api: ApiKey, version_min: i16) -> Result<i16, Failure> {
        let offered = self.versions.iter().find(|offered| offered.api_key == api.wire());
        let newest = offered.map(|offered| offered.max_version.min(api.version_max()));
        let oldest = offered.map_or(0, |offered| offered.min_version).max(version_min).max(api.version_min());
        newest.filter(|newest| *newest >= oldest).ok_or_else(|| {
            let why = format!(
                "the node at {} does not offer {} from version {oldest} on",
                self.address,
                api.name()
            );
            Failure::new(ExitStatus::Refused, why)
        })
    }

    /// Sends a request in the newest common version, at least `version_min`, and waits for its answer.
    pub fn call<C: Call>(&mut self, version_min: i16, body: &C) -> Result<C::Response, Failure> {
        let version = self.version(C::API, version_min)?;
        self.call_version(version, body)
    }

    fn call_version<C: Call>(&mut self, version: i16, body: &C) -> Result<C::Response, Failure> {
        self.correlation += 1;
        let request = request_frame(version, self.correlation, CLIENT_ID, body);
        let frame = self.exchange(&request)?;
        let (correlation, answer) =
            decode_response::<C>(version, &frame).map_err(|e| self.not_kafka(&e.to_string()))?;
        if correlation != self.correlation {
            return Err(
                self.not_kafka(&format!("answer {correlation} came for request {}", self.correlation))
            );
        }
        Ok(answer)
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Bytes, Failure> {
        let unreachable =
            |e: io::Error| Failure::new(ExitStatus::Unreachable, why_unreachable(&self.address, &e));
        self.stream.write_all(request).and_then(|()| self.stream.flush()).map_err(unreachable)?;
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).map_err(unreachable)?;
        let announced = i32::from_be_bytes(len);
        let len = usize::try_from(announced)
            .ok()
            .filter(|len| *len <= ANSWER_BYTES_MAX)
            .ok_or_else(|| self.not_kafka(&format!("an answer of {announced} bytes was announced")))?;
        // Grows with what really arrives, not with what was announced.
        let mut frame = Vec::new();
        let unreachable =
            |e: io::Error| Failure::new(ExitStatus::Unreachable, why_unreachable(&self.address, &e));
        (&mut self.stream).take(len as u64).read_to_end(&mut frame).map_err(unreachable)?;
        if frame.len() < len {
            return Err(unreachable(ErrorKind::UnexpectedEof.into()));
        }
        Ok(frame.into())
    }

    fn not_kafka(&self, why: &str) -> Failure {
        let message = format!("what listens on {} does not speak Kafka's protocol: {why}", self.address);
        Failure::new(ExitStatus::Unreachable, message)
    }
}
