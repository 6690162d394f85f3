//! Peers over loopback and over pipes. Each test has a runtime of its own; none looks at the clock.

mod calls;
mod identities;
mod pipes;
mod strangers;
mod streams;

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::net::auth::tests::node;

pub(super) const SECRET: &[u8] = b"the secret of this cluster";
pub(super) const CLUSTER: Option<&str> = Some("MDEyMzQ1Njc4OWFiY2RlZg");
pub(super) const OTHER: Option<&str> = Some("AAAAAAAAAAAAAAAAAAAAAA");
pub(super) const LONG: Duration = Duration::from_secs(60);

/// Runs a test on a runtime like the control core's.
pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// As [`run`], with a clock that jumps ahead when nothing else is left to do. Without sockets.
pub(super) fn run_paused<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

pub(super) struct Node {
    pub peers: Peers,
    pub incoming: mpsc::Receiver<Incoming>,
    pub at: Endpoint,
}

pub(super) async fn start(me: PeerIdentity, secret: &[u8], config: Config) -> Node {
    start_at(me, secret, config, 0).await
}

pub(super) async fn start_at(me: PeerIdentity, secret: &[u8], config: Config, port: u16) -> Node {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let at = Endpoint { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
    let (peers, incoming) = Peers::start(config, Secret::new(secret).unwrap(), me, Some(listener));
    Node { peers, incoming, at }
}

/// Two nodes of one cluster that know each other's addresses.
pub(super) async fn two(config: Config) -> (Node, Node) {
    let a = start(node(1, CLUSTER), SECRET, config.clone()).await;
    let b = start(node(2, CLUSTER), SECRET, config).await;
    a.peers.set_peer(NodeId(2), b.at.clone());
    b.peers.set_peer(NodeId(1), a.at.clone());
    (a, b)
}

/// Answers every call with its own body, by a task.
pub(super) fn echo(mut incoming: mpsc::Receiver<Incoming>) -> tokio::task::JoinHandle<()> {
    tokio::task::spawn_local(async move {
        while let Some(call) = incoming.recv().await {
            let body = call.body.clone();
            call.answer(body);
        }
    })
}

pub(super) async fn call(from: &Peers, to: u32, body: &[u8]) -> Result<Bytes, CallError> {
    from.call(NodeId(to), Class::Urgent, 0x0101, Bytes::copy_from_slice(body), LONG).await
}

/// Lets every other task run until it waits.
pub(super) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Waits until it holds, however long that takes.
pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(super) fn refusals(of: &Peers, reason: &str) -> u64 {
    of.stats().refusals.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
}

pub(super) fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}
