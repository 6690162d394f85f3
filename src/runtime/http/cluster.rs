//! The routes that change the cluster: `POST /cluster/join`, `/cluster/remove`, `/cluster/transfer-leader`.
//!
//! Driver; control core's thread. Only clients on this host are listened to, and no browser: a page from elsewhere that
//! runs in one could otherwise change the cluster.
//!
//! | route | body | |
//! |---|---|---|
//! | `/cluster/join` | `{"through": "host:port"}` | this node, which waits for a cluster, joins that node's |
//! | `/cluster/remove` | `{"node": 3}` | takes the node out; again until `/cluster` shows it gone |
//! | `/cluster/transfer-leader` | `{"to": 2}` or `{}` | lets that voter, or any other, lead |
//!
//! Answers are `{"done": WORDS}` with 200, or `{"error": WORDS, "try_again": BOOL}` with 400, 403, 409 or 503.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, ORIGIN};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::super::Command;
use super::super::boot::ask;
use super::{Answer, typed};
use crate::config::HostPort;
use crate::control::membership::change::{Change, Changed, Unchanged};
use crate::control::metadata::image::Endpoint;

/// Bytes of a request's body at most.
const BODY_BYTES_MAX: usize = 4096;
/// For a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinBody {
    through: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveBody {
    node: u32,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferBody {
    to: Option<u32>,
}

/// Whether [`change`] answers this path.
pub(super) fn is_change(path: &str) -> bool {
    matches!(path, "/cluster/join" | "/cluster/remove" | "/cluster/transfer-leader")
}

/// Carries a change out, or says why not.
pub(super) async fn change<B>(
    request: Request<B>,
    client: SocketAddr,
    commands: &mpsc::Sender<Command>,
) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    let body = match body_of_change(request, client).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let change = match parse(&path, &body) {
        Ok(change) => change,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    match ask(commands, |reply| Command::Cluster { change, reply }).await {
        Some(changed) => answer(&changed),
        None => answer(&Err(Unchanged::not_now("the node is stopping"))),
    }
}

/// The body of a request that changes something: from a program on this host that is no browser, in bounded size and
/// time. It is wiped when dropped.
pub(super) async fn body_of_change<B>(
    request: Request<B>,
    client: SocketAddr,
) -> Result<Zeroizing<Vec<u8>>, Answer>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !is_local(client.ip()) {
        return Err(refused(StatusCode::FORBIDDEN, "the cluster is changed from the node's own host only"));
    }
    let json =
        request.headers().get(CONTENT_TYPE).is_some_and(|found| found.as_bytes() == b"application/json");
    if !json || request.headers().contains_key(ORIGIN) {
        return Err(refused(
            StatusCode::FORBIDDEN,
            "expected a body of `Content-Type: application/json` from a program that is no browser",
        ));
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return Err(refused(StatusCode::BAD_REQUEST, "the body is cut off, or longer than 4 KiB"));
        }
        Err(_) => return Err(refused(StatusCode::BAD_REQUEST, "the body did not arrive in time")),
    };
    let copy = Zeroizing::new(body.to_vec());
    // The connection's own buffer may still hold it; that is overwritten by the next request, or freed with it.
    if let Ok(mut bytes) = body.try_into_mut() {
        bytes.fill(0);
    }
    Ok(copy)
}

fn parse(path: &str, body: &[u8]) -> Result<Change, String> {
    fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(body).map_err(|e| format!("not the body of this request: {e}"))
    }
    match path {
        "/cluster/join" => {
            let JoinBody { through } = read(body)?;
            let at = HostPort::parse(&through).ok_or("`through` is no HOST:PORT")?;
            Ok(Change::JoinThrough(Endpoint { host: at.host, port: at.port }))
        }
        "/cluster/remove" => {
            let RemoveBody { node, force } = read(body)?;
            Ok(if force { Change::RemoveByForce(NodeId(node)) } else { Change::Remove(NodeId(node)) })
        }
        _ => Ok(Change::TransferLeader(read::<TransferBody>(body)?.to.map(NodeId))),
    }
}

/// An IPv4 client of an IPv6 listener comes with a mapped address.
fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn answer(changed: &Changed) -> Answer {
    match changed {
        Ok(done) => json(StatusCode::OK, &serde_json::json!({ "done": done })),
        Err(Unchanged { why, try_again }) => {
            let status = if *try_again { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT };
            json(status, &serde_json::json!({ "error": why, "try_again": try_again }))
        }
    }
}

pub(super) fn refused(status: StatusCode, why: &str) -> Answer {
    json(status, &serde_json::json!({ "error": why, "try_again": false }))
}

pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Answer {
    typed(status, "application/json", format!("{body}\n"))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    /// Sends one request from `client` to a node that takes every change; the answer, and what the node was asked.
    async fn send(
        client: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, serde_json::Value, Option<Change>) {
        let (commands, mut inbox) = mpsc::channel(1);
        let node = tokio::spawn(async move {
            let Some(Command::Cluster { change, reply }) = inbox.recv().await else { return None };
            let changed = match change {
                Change::Remove(NodeId(9)) => Err(Unchanged::refused("node 9 is not in the cluster")),
                Change::Remove(NodeId(8)) => Err(Unchanged::not_now("there is no leader")),
                _ => Ok("so be it".to_owned()),
            };
            reply.send(changed).unwrap();
            Some(change)
        });
        let mut request = Request::post(path).body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        for (name, value) in headers {
            let name: hyper::header::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = change(request, SocketAddr::new(client.parse().unwrap(), 5), &commands).await;
        drop(commands);
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap(), node.await.unwrap())
    }

    const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

    #[tokio::test]
    async fn changes_reach_the_node_and_their_answers_come_back() {
        let through = Endpoint { host: "n1.example".into(), port: 9093 };
        for (path, body, want) in [
            ("/cluster/join", r#"{"through":"n1.example:9093"}"#, Change::JoinThrough(through)),
            ("/cluster/remove", r#"{"node":3}"#, Change::Remove(NodeId(3))),
            ("/cluster/remove", r#"{"node":3,"force":true}"#, Change::RemoveByForce(NodeId(3))),
            ("/cluster/transfer-leader", r#"{"to":2}"#, Change::TransferLeader(Some(NodeId(2)))),
            ("/cluster/transfer-leader", "{}", Change::TransferLeader(None)),
        ] {
            for client in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
                let (status, answer, asked) = send(client, path, &JSON, body).await;
                assert_eq!(
                    (status, answer["done"].as_str(), asked),
                    (200, Some("so be it"), Some(want.clone()))
                );
            }
        }
        let (status, answer, _) = send("127.0.0.1", "/cluster/remove", &JSON, r#"{"node":9}"#).await;
        assert_eq!((status, &answer["try_again"]), (409, &false.into()));
        let (status, answer, _) = send("127.0.0.1", "/cluster/remove", &JSON, r#"{"node":8}"#).await;
        assert_eq!((status, &answer["try_again"]), (503, &true.into()));
    }

    #[tokio::test]
    async fn clients_elsewhere_browsers_and_odd_bodies_change_nothing() {
        let remove = r#"{"node":3}"#;
        let browser = [JSON[0], ("origin", "http://evil.example")];
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let long = format!(r#"{{"node":3{}}}"#, " ".repeat(5000));
        for (client, headers, body, want) in [
            ("10.0.0.1", &JSON[..], remove, 403),
            ("::ffff:10.0.0.1", &JSON[..], remove, 403),
            ("127.0.0.1", &browser[..], remove, 403),
            ("127.0.0.1", &form[..], remove, 403),
            ("127.0.0.1", &[][..], remove, 403),
            ("127.0.0.1", &JSON[..], &*long, 400),
            ("127.0.0.1", &JSON[..], "", 400),
            ("127.0.0.1", &JSON[..], r#"{"node":-1}"#, 400),
            ("127.0.0.1", &JSON[..], r#"{"node":3,"gently":true}"#, 400),
        ] {
            let (status, answer, asked) = send(client, "/cluster/remove", headers, body).await;
            assert_eq!((status, asked), (want, None), "{client} {headers:?} {body:.20}: {answer}");
            assert!(answer["error"].is_string());
        }
        let (status, ..) = send("127.0.0.1", "/cluster/join", &JSON, r#"{"through":"no port"}"#).await;
        assert_eq!(status, 400);
    }
}
