//! The admin HTTP: metrics, health, readiness and a summary of the cluster; `cluster` changes who is in it.
//!
//! Driver; runs on the control core's thread, so that an answer also says that the control core is alive. Connections,
//! headers and times are bounded; a body that a client sends is read only by `cluster` and `members`.

mod cluster;
pub(super) mod members;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::boot::ask;
use super::metrics::{self, ProcessStats};
use super::{Command, Snapshot};
use crate::raft::Status;

/// Connections at one time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// Bytes of a request's line and headers.
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// For a request's headers to arrive, and for the next request of a connection that is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The life of a connection, after which a client that reads slowly, or not at all, is let go.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(300);
/// After a failed accept (mostly: no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const INDEX: &str = "Highwater\n\n\
    /metrics  counters and latencies for Prometheus\n\
    /healthz  200 while the control core and every shard answer\n\
    /readyz   200 while clients can be served\n\
    /cluster  the cluster in short, as JSON; `highwater cluster` changes it\n\
    /members  who is alive as this node sees it, as JSON; `highwater members keys` changes the keys of gossip\n";

type Answer = Response<Full<Bytes>>;

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, commands: mpsc::Sender<Command>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let (socket, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin HTTP: a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let commands = commands.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let commands = commands.clone();
                async move { Ok::<_, Infallible>(answer(request, client, &commands).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(TokioIo::new(socket), service);
            // How a connection ended concerns nobody but its client.
            let _ = tokio::time::timeout(CONNECTION_TIME_MAX, connection).await;
            drop(slot);
        });
    }
}

async fn answer(request: Request<Incoming>, client: SocketAddr, commands: &mpsc::Sender<Command>) -> Answer {
    if cluster::is_change(request.uri().path()) {
        if request.method() == Method::POST {
            return cluster::change(request, client, commands).await;
        }
        return not_allowed("POST", "only POST is answered here\n");
    }
    if members::is_change(request.uri().path()) {
        if request.method() == Method::POST {
            return members::change(request, client, commands).await;
        }
        return not_allowed("POST", "only POST is answered here\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return not_allowed("GET, HEAD", "only GET is answered here\n");
    }
    let path = request.uri().path();
    if path == "/" {
        return text(StatusCode::OK, INDEX);
    }
    if !matches!(path, "/metrics" | "/healthz" | "/readyz" | "/cluster" | "/members") {
        return text(StatusCode::NOT_FOUND, format!("there is nothing here. {INDEX}"));
    }
    let Some(snapshot) = ask(commands, |reply| Command::Snapshot { reply }).await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n");
    };
    match path {
        "/metrics" => typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics::render(&snapshot, &ProcessStats::read()),
        ),
        "/healthz" => health(&snapshot),
        "/readyz" if snapshot.ready => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the node is starting or stopping\n"),
        "/members" => typed(StatusCode::OK, "application/json", members::render(&snapshot)),
        _ => typed(StatusCode::OK, "application/json", cluster(&snapshot)),
    }
}

fn not_allowed(allowed: &'static str, words: &'static str) -> Answer {
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, words);
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refused
}

fn health(snapshot: &Snapshot) -> Answer {
    let silent = snapshot.shards.iter().filter(|(_, stats)| stats.is_none());
    let silent: Vec<String> = silent.map(|(shard, _)| shard.to_string()).collect();
    if silent.is_empty() {
        return text(StatusCode::OK, "healthy\n");
    }
    let words = format!("these shards do not answer: {}\n", silent.join(", "));
    text(StatusCode::SERVICE_UNAVAILABLE, words)
}

fn cluster(snapshot: &Snapshot) -> String {
    let image = &snapshot.image;
    let node = |node: &Arc<crate::control::metadata::image::NodeInfo>| {
        serde_json::json!({
            "id": node.id.0,
            "host": node.client.host,
            "port": node.client.port,
            "shard_ports": node.shard_clients.iter().map(|at| at.port).collect::<Vec<_>>(),
            "cluster_host": node.cluster.host,
            "cluster_port": node.cluster.port,
            "rack": node.rack,
            "incarnation": node.incarnation.0,
            "epoch": node.epoch.0,
            "disk": format!("{:032x}", node.disk.0),
            "feature_level": node.feature_level.0,
            "voter": node.capabilities.voter,
            "may_lead": node.capabilities.leader,
            "takes_replicas": node.capabilities.replica,
            "fenced": node.fenced,
        })
    };
    let member = |status: &Status, id: &NodeId| {
        let last = status.last_log.unwrap_or(0);
        let leads = status.leader == Some(status.node);
        let behind = match status.progress.get(id).and_then(|progress| progress.matched) {
            Some(matched) => Some(last.saturating_sub(matched)),
            None => (leads && *id == status.node).then_some(0),
        };
        let silent =
            status.silent.get(id).map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX));
        serde_json::json!({
            "id": id.0,
            "address": status.members.get(id).map(|member| &*member.cluster_addr),
            "votes": status.voters.contains(id),
            "behind": behind,
            "silent_ms": silent.filter(|_| *id != status.node),
        })
    };
    let members = snapshot
        .raft
        .as_ref()
        .map(|(status, _)| status.members.keys().map(|id| member(status, id)).collect::<Vec<_>>());
    let summary = serde_json::json!({
        "forming": snapshot.forming,
        "members": members.unwrap_or_default(),
        "cluster_id": &*image.cluster_id,
        "revision": image.revision.0,
        "feature_level": image.feature_level.0,
        "controller": image.controller.map(|node| node.0),
        "leader": snapshot.control.leader.map(|node| node.0),
        "term": snapshot.control.term,
        "nodes": image.nodes.values().map(node).collect::<Vec<_>>(),
        "topics": image.topic_count(),
        "partitions": image.partition_count(),
        "partitions_without_leader": image.leaderless_count(),
        "replicas": image.replica_count(),
        "shards": snapshot.shards.len(),
        "ready": snapshot.ready,
    });
    format!("{summary:#}\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
