//! Driver: requests to the admin HTTP of a node, one connection each, by a process that may wait.

#![expect(clippy::disallowed_methods, reason = "driver: reads the clock and waits")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::Admin;
use crate::config::HostPort;
use crate::error::{ExitStatus, Failure};

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What a node answered; text that is no JSON comes as a JSON string.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Value,
}

pub(super) struct Client {
    runtime: Runtime,
    at: String,
    until: Instant,
}

impl Client {
    /// All that is asked through it has `timeout` together.
    pub(super) fn new(at: &str, timeout: Duration) -> Result<Self, Failure> {
        if HostPort::parse(at).is_none() {
            let why = format!("--admin {at}: expected HOST:PORT, such as 127.0.0.1:9094");
            return Err(Failure::new(ExitStatus::Usage, why));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| Failure::new(ExitStatus::Environment, format!("no runtime: {e}")))?;
        Ok(Self { runtime, at: at.into(), until: Instant::now() + timeout })
    }

    fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let until = tokio::time::Instant::from_std(self.until);
        let exchange = exchange(&self.at, method, path, body);
        let failure = |why: String| Failure::new(ExitStatus::Unreachable, why);
        match self.runtime.block_on(async { tokio::time::timeout_at(until, exchange).await }) {
            Ok(answer) => answer.map_err(failure),
            Err(_) => Err(failure(format!(
                "{} did not answer in time; is a node running there, and does a firewall let you through?",
                self.at
            ))),
        }
    }
}

impl Admin for Client {
    fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        self.exchange(Method::GET, path, Vec::new())
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.exchange(Method::POST, path, body.to_string().into_bytes())
    }

    fn pause(&mut self, time: Duration) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        std::thread::sleep(time.min(left));
        left > time
    }
}

async fn exchange(at: &str, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, String> {
    let stream = TcpStream::connect(at).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on {at}; `--admin` names the `admin.addr` of a running node")
        }
        _ => format!("{at}: {e}"),
    })?;
    let broken =
        |e: hyper::Error| format!("{at} broke the exchange off ({e}); is it the admin port of a node?");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, at)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| format!("{at}: {e}"))?;
    let talk = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| format!("{at} broke its answer off: {e}"))?.to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or_else(|_| text()) })
    };
    tokio::pin!(talk);
    tokio::select! {
        answer = &mut talk => answer,
        // The connection may end before the answer has been read to its end.
        _ = connection => talk.await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A server that sends these bytes to whoever connects, and what it was asked.
    fn server(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        (at, asked)
    }

    fn client(at: &str) -> Client {
        Client::new(at, Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn answers_come_with_status_and_json() {
        let (at, asked) = server("HTTP/1.1 409 Conflict\r\ncontent-length: 16\r\n\r\n{\"error\": \"why\"}");
        let answer = client(&at).post("/cluster/remove", &serde_json::json!({"node": 3})).unwrap();
        assert_eq!((answer.status, answer.body["error"].as_str()), (409, Some("why")));
        let asked = asked.join().unwrap().to_lowercase();
        assert!(asked.starts_with("post /cluster/remove http/1.1\r\n"), "{asked}");
        assert!(
            asked.contains("content-type: application/json") && asked.ends_with("{\"node\":3}"),
            "{asked}"
        );
        let (at, _asked) = server("HTTP/1.1 503 x\r\nconnection: close\r\n\r\nthe node is stopping\n");
        let answer = client(&at).get("/cluster").unwrap();
        assert_eq!((answer.status, answer.body), (503, Value::from("the node is stopping\n")));
    }

    #[test]
    fn whatever_is_no_node_is_said_to_be_none() {
        let (at, _asked) = server("SSH-2.0-OpenSSH\r\n");
        let failure = client(&at).get("/cluster").unwrap_err();
        assert!(
            failure.status == ExitStatus::Unreachable && failure.message.contains("admin port"),
            "{failure}"
        );
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let failure = client(&unused).get("/cluster").unwrap_err();
        assert!(failure.message.contains("nothing listens on"), "{failure}");
        assert_eq!(Client::new("nowhere", Duration::ZERO).err().unwrap().status, ExitStatus::Usage);
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = silent.local_addr().unwrap().to_string();
        let failure = Client::new(&at, Duration::from_millis(50)).unwrap().get("/cluster").unwrap_err();
        assert!(failure.message.contains("did not answer in time"), "{failure}");
    }
}
