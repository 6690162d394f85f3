use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Starts a node that calls `b`, and gives what becomes of its call.
async fn stranger(me: PeerIdentity, secret: &[u8], b: &Node, to: u32) -> (Node, Result<Bytes, CallError>) {
    let a = start(me, secret, Config::default()).await;
    a.peers.set_peer(NodeId(to), b.at.clone());
    let answer = call(&a.peers, to, b"x").await;
    (a, answer)
}

fn why(answer: Result<Bytes, CallError>) -> String {
    match answer {
        Err(CallError::Unreachable(why)) => why,
        other => panic!("unreachable, not {other:?}"),
    }
}

#[test]
fn a_node_with_another_secret_reaches_nobody() {
    run(async {
        let mut b = start(node(2, CLUSTER), SECRET, Config::default()).await;
        let (a, answer) = stranger(node(1, CLUSTER), b"another secret, as long", &b, 2).await;
        assert!(why(answer).contains("compare the secrets"));
        until(|| refusals(&b.peers, "wrong secret") == 1).await;
        assert_eq!(refusals(&a.peers, "no verdict"), 1);
        assert!(b.incoming.try_recv().is_err());
    });
}

#[test]
fn a_node_of_another_cluster_is_told_so_at_both_ends() {
    run(async {
        let b = start(node(2, CLUSTER), SECRET, Config::default()).await;
        let (a, answer) = stranger(node(1, OTHER), SECRET, &b, 2).await;
        let why = why(answer);
        assert!(
            why.contains("node 2 belongs to cluster MDEy") && why.contains("node 1 to cluster AAAA"),
            "{why}"
        );
        until(|| refusals(&b.peers, "other cluster") == 1).await;
        assert_eq!(refusals(&a.peers, "other cluster"), 1);
    });
}

#[test]
fn a_call_that_reaches_another_node_than_the_one_meant_is_not_made() {
    run(async {
        let mut b = start(node(2, CLUSTER), SECRET, Config::default()).await;
        let (_, answer) = stranger(node(1, CLUSTER), SECRET, &b, 7).await;
        assert!(why(answer).contains("called node 7 and reached node 2"));
        until(|| refusals(&b.peers, "wrong node") == 1).await;
        assert!(b.incoming.try_recv().is_err());
    });
}

#[test]
fn a_wiped_disk_is_refused_under_its_old_identity_and_put_out_when_it_is_in() {
    run(async {
        let b = start(node(2, CLUSTER), SECRET, Config::default()).await;
        echo(b.incoming);
        let b = Node { incoming: mpsc::channel(1).1, ..b };
        let wiped = PeerIdentity { disk: DiskId(99), ..node(1, CLUSTER) };
        let (a, answer) = stranger(wiped, SECRET, &b, 2).await;
        assert!(answer.is_ok(), "nobody knows better yet");
        assert_eq!(b.peers.stats().inbound, 1);
        b.peers.set_disk(NodeId(1), node(1, None).disk);
        until(|| a.peers.stats().peers[0].connections == 0).await;
        assert_eq!(b.peers.stats().inbound, 0);
        tokio::time::sleep(Duration::from_millis(60)).await;
        let why = why(call(&a.peers, 2, b"x").await);
        assert!(why.contains("remove the node, then join under a new id"), "{why}");
        until(|| refusals(&b.peers, "other disk") == 1).await;
        let (_, answer) = stranger(node(1, CLUSTER), SECRET, &b, 2).await;
        assert!(answer.is_ok(), "the right one is let in");
    });
}

#[test]
fn who_becomes_part_of_a_cluster_tells_everybody_by_new_connections() {
    run(async {
        let (a, b) = (
            start(node(1, None), SECRET, Config::default()).await,
            start(node(2, None), SECRET, Config::default()).await,
        );
        a.peers.set_peer(NodeId(2), b.at.clone());
        let mut incoming = b.incoming;
        let task = tokio::task::spawn_local(async move {
            let mut clusters = Vec::new();
            while let Some(call) = incoming.recv().await {
                clusters.push(call.peer().unwrap().cluster);
                let last = call.body.is_empty();
                call.answer(Bytes::new());
                if last {
                    return clusters;
                }
            }
            clusters
        });
        call(&a.peers, 2, b"x").await.unwrap();
        a.peers.set_cluster(CLUSTER.unwrap().parse().unwrap());
        call(&a.peers, 2, b"").await.unwrap();
        assert_eq!(task.await.unwrap(), [None, node(1, CLUSTER).cluster]);
        b.peers.set_cluster(OTHER.unwrap().parse().unwrap());
        until(|| a.peers.stats().peers[0].connections == 0).await;
        while !why(call(&a.peers, 2, b"x").await).contains("belongs to cluster AAAA") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// Sends on what comes at a port, except that it changes one bit of the dialer's bytes.
async fn proxy(to: Endpoint, flip_at: usize) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        let mut flip_at = Some(flip_at);
        loop {
            let (from, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
            let flip = flip_at.take();
            tokio::task::spawn_local(async move {
                let (mut from_read, mut from_write) = from.into_split();
                let (mut server_read, mut server_write) = server.into_split();
                let there = async {
                    let (mut bytes, mut sent) = ([0; 4096], 0);
                    while let Ok(len @ 1..) = from_read.read(&mut bytes).await {
                        if let Some(at) = flip.and_then(|at| at.checked_sub(sent)).filter(|at| *at < len) {
                            bytes[at] ^= 1;
                        }
                        sent += len;
                        if server_write.write_all(&bytes[..len]).await.is_err() {
                            break;
                        }
                    }
                };
                let back = tokio::io::copy(&mut server_read, &mut from_write);
                tokio::select! { () = there => {}, _ = back => {} }
            });
        }
    });
    Endpoint { host: "127.0.0.1".to_owned(), port }
}

#[test]
fn a_call_that_somebody_changes_on_its_way_is_never_delivered_and_the_next_connection_works() {
    run(async {
        let mut b = start(node(2, CLUSTER), SECRET, Config::default()).await;
        let a = start(node(1, CLUSTER), SECRET, Config::default()).await;
        // Behind the handshake, within the body.
        let between = proxy(b.at.clone(), 104 + 32 + 20 + 30).await;
        a.peers.set_peer(NodeId(2), between);
        let answer = call(&a.peers, 2, b"give a reward of 1").await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
        until(|| refusals(&b.peers, "bad frame") == 1).await;
        assert!(b.incoming.try_recv().is_err());
        echo(b.incoming);
        while let Err(error) = call(&a.peers, 2, b"x").await {
            assert!(matches!(error, CallError::Unreachable(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn connections_beyond_the_bound_of_an_address_are_refused_after_their_proof() {
    run(async {
        let limits = Limits { inbound_per_address_max: 2, ..Limits::default() };
        let b = start(node(2, CLUSTER), SECRET, Config { limits, ..Config::default() }).await;
        echo(b.incoming);
        let b = Node { incoming: mpsc::channel(1).1, ..b };
        let (first, one) = stranger(node(1, CLUSTER), SECRET, &b, 2).await;
        let (_second, two) = stranger(node(3, CLUSTER), SECRET, &b, 2).await;
        assert!(one.is_ok() && two.is_ok());
        let (third, three) = stranger(node(4, CLUSTER), SECRET, &b, 2).await;
        assert!(why(three).contains("no room for another connection"));
        call(&first.peers, 2, b"x").await.unwrap();
        first.peers.close();
        until(|| b.peers.stats().inbound == 1).await;
        while call(&third.peers, 2, b"x").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
