use std::net::SocketAddr;

use highwater_shards::ids::ShardId;
use highwater_shards::stats::ShardStats;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::control::ControlStats;

/// A listener in front of a node that answers every snapshot with this one, or with nothing.
async fn listen(snapshot: Option<Snapshot>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (commands, mut inbox) = mpsc::channel(8);
    tokio::spawn(serve(listener, commands));
    tokio::spawn(async move {
        while let Some(Command::Snapshot { reply }) = inbox.recv().await {
            match snapshot.clone() {
                Some(snapshot) => drop(reply.send(snapshot)),
                None => drop(reply),
            }
        }
    });
    address
}

fn node(ready: bool, second: Option<ShardStats>) -> Snapshot {
    Snapshot {
        ready,
        image: Arc::default(),
        raft: None,
        forming: None,
        net: None,
        gossip: None,
        control: ControlStats::default(),
        control_loop: crate::runtime::LoopStats::default(),
        shards: vec![(ShardId(0), Some(ShardStats::default())), (ShardId(1), second)],
    }
}

/// Sends the bytes and reads until the other side closes.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses the rest of a request may reset the connection after its answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn a_node_that_serves_is_healthy_and_ready() {
    let address = listen(Some(node(true, Some(ShardStats::default())))).await;
    assert_eq!(get(address, "/healthz").await, (200, "healthy\n".into()));
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".into()));
    let (status, metrics) = get(address, "/metrics").await;
    assert!(status == 200 && metrics.contains("\nhighwater_ready 1\n"));
    let (status, cluster) = get(address, "/cluster").await;
    let cluster: serde_json::Value = serde_json::from_str(&cluster).unwrap();
    assert!(status == 200 && cluster["ready"] == true && cluster["shards"] == 2);
    assert_eq!(get(address, "/").await.0, 200);
    assert_eq!(get(address, "/etc/passwd").await.0, 404);
}

#[tokio::test]
async fn a_silent_shard_is_named_and_a_starting_node_is_not_ready() {
    let address = listen(Some(node(false, None))).await;
    let (status, words) = get(address, "/healthz").await;
    assert_eq!((status, &*words), (503, "these shards do not answer: 1\n"));
    assert_eq!(get(address, "/readyz").await.0, 503);
    assert_eq!(get(address, "/metrics").await.0, 200, "what is known is told");
}

#[tokio::test]
async fn a_node_that_ends_says_so() {
    let address = listen(None).await;
    assert_eq!(get(address, "/readyz").await.0, 503);
}

#[tokio::test]
async fn bad_requests_are_refused_and_others_served_on() {
    let address = listen(Some(node(true, None))).await;
    let post = b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    let post = exchange(address, post).await;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
    let garbage = exchange(address, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");
    let mut long = b"GET / HTTP/1.1\r\n".to_vec();
    long.extend((0..5000).flat_map(|n| format!("H{n}: {}\r\n", "x".repeat(100)).into_bytes()));
    let long = exchange(address, &long).await;
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
    assert_eq!(get(address, "/readyz").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn clients_that_stall_are_let_go_and_do_not_keep_others_out() {
    let address = listen(Some(node(true, None))).await;
    let mut stalled = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"G").await.unwrap();
        stalled.push(stream);
    }
    assert_eq!(get(address, "/readyz").await.0, 200);
}
