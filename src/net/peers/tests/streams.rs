use std::os::fd::OwnedFd;

use highwater_shards::ids::{RegistrationEpoch, ShardId};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::control::metadata::image::Incarnation;
use crate::net::auth::{Dialer, HELLO_LEN, Known, NONCE_LEN, VERDICT_LEN};
use crate::net::peers::{ACCEPTED_MAX, Registration, Stream};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
/// What `node` of these tests lives in.
const LIFE: Incarnation = Incarnation(3);

/// Node ids and lives that a node has in its metadata; the registration epoch is ten times the life.
fn registered(of: &Peers, nodes: &[(u32, u64)]) {
    of.set_registered(nodes.iter().map(|&(node, life)| {
        let registration =
            Registration { incarnation: Incarnation(life), epoch: RegistrationEpoch(life * 10) };
        (NodeId(node), registration)
    }));
}

struct Both {
    a: Node,
    b: Node,
    of_a: mpsc::Receiver<Stream>,
    of_b: mpsc::Receiver<Stream>,
}

/// Two nodes of one cluster that have each other in their metadata and take streams for four shards.
async fn both(config: Config) -> Both {
    let (a, b) = two(config).await;
    for peers in [&a.peers, &b.peers] {
        registered(peers, &[(1, LIFE.0), (2, LIFE.0)]);
    }
    let (of_a, of_b) = (a.peers.take_streams(4), b.peers.take_streams(4));
    Both { a, b, of_a, of_b }
}

impl Both {
    async fn open(&self) -> Result<Stream, CallError> {
        self.a.peers.open_stream(ShardId(0), B, ShardId(3), &self.b.at).await
    }
}

fn tokio_stream(socket: OwnedFd) -> TcpStream {
    TcpStream::from_std(socket.into()).unwrap()
}

fn why<T>(answer: Result<T, CallError>) -> String {
    match answer {
        Err(CallError::Rejected { why, .. } | CallError::Unreachable(why)) => why,
        Err(error) => panic!("not {error:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn both_ends_of_a_stream_know_who_is_at_the_other_and_their_bytes_are_their_own() {
    run(async {
        let mut both = both(Config::default()).await;
        let dialed = both.open().await.unwrap();
        let accepted = both.of_b.recv().await.unwrap();
        let seen = |s: &Stream| (s.node, s.epoch, s.local_shard, s.remote_shard, s.dialed);
        assert_eq!(seen(&dialed), (B, RegistrationEpoch(30), ShardId(0), ShardId(3), true));
        assert_eq!(seen(&accepted), (A, RegistrationEpoch(30), ShardId(3), ShardId(0), false));
        for end in [&dialed, &accepted] {
            let socket = SockRef::from(&end.socket);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(5)));
        }
        let (mut a, mut b) = (tokio_stream(dialed.socket), tokio_stream(accepted.socket));
        let mut bytes = [0; 5];
        a.write_all(b"hello").await.unwrap();
        b.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        b.write_all(b"world").await.unwrap();
        a.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"world");
        let stats = |of: &Node| of.peers.stats().peers[0].clone();
        let (of_a, of_b) = (stats(&both.a), stats(&both.b));
        assert_eq!((of_a.streams_dialed, of_a.streams_accepted, of_a.streams_failed), (1, 0, 0));
        assert_eq!((of_b.streams_dialed, of_b.streams_accepted, of_b.streams_failed), (0, 1, 0));
        assert_eq!((both.b.peers.stats().inbound, both.b.peers.stats().unproven), (0, 0));
        // A node that stops its calls leaves the shards' streams alone.
        both.b.peers.close();
        a.write_all(b"still").await.unwrap();
        b.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"still");
        // One that stops takes no more.
        both.a.peers.close();
        assert!(both.of_a.recv().await.is_none());
    });
}

/// The dialer's end by hand, over a socket of its own: everything but its last message, which it gives.
async fn all_but_the_last(to: &Node, me: PeerIdentity) -> (TcpStream, Vec<u8>) {
    let secret = Secret::new(SECRET).unwrap();
    let purpose = Purpose::Stream { from: ShardId(1), to: ShardId(2) };
    let mut dialer = Dialer::new(me, Some(B), purpose, &[7; NONCE_LEN]);
    let mut socket = TcpStream::connect(("127.0.0.1", to.at.port)).await.unwrap();
    socket.write_all(dialer.hello()).await.unwrap();
    let mut hello = [0; HELLO_LEN];
    socket.read_exact(&mut hello).await.unwrap();
    let proof = dialer.prove(&secret, &hello).unwrap();
    socket.write_all(&proof).await.unwrap();
    let mut verdict = [0; VERDICT_LEN];
    socket.read_exact(&mut verdict).await.unwrap();
    let knows = |_| Known { disk: None, registered: Some(LIFE) };
    let (judged, open) = dialer.finish(&secret, &verdict, &knows).unwrap();
    assert!(judged.refusal.is_none());
    (socket, open.to_vec())
}

#[test]
fn what_is_said_right_behind_the_handshake_reaches_the_shard_however_it_was_cut() {
    run(async {
        let mut both = both(Config::default()).await;
        let words: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
        for cut in [0, 1, 19, 20, 21, 1000] {
            let (mut socket, mut open) = all_but_the_last(&both.b, node(1, CLUSTER)).await;
            open.extend_from_slice(&words);
            let (first, rest) = open.split_at(cut);
            socket.write_all(first).await.unwrap();
            settle().await;
            socket.write_all(rest).await.unwrap();
            let mut shard = tokio_stream(both.of_b.recv().await.unwrap().socket);
            let mut come = vec![0; words.len()];
            shard.read_exact(&mut come).await.unwrap();
            assert!(come == words, "cut at {cut}");
        }
    });
}

#[test]
fn a_stream_whose_opening_stops_half_way_is_let_go_and_reaches_no_shard() {
    run(async {
        let config = Config { handshake_timeout: Duration::from_millis(50), ..Config::default() };
        let mut both = both(config).await;
        let (_socket, _) = all_but_the_last(&both.b, node(1, CLUSTER)).await;
        until(|| refusals(&both.b.peers, "handshake timeout") == 1).await;
        let (socket, _) = all_but_the_last(&both.b, node(1, CLUSTER)).await;
        drop(socket);
        until(|| refusals(&both.b.peers, "unfinished") == 1).await;
        assert_eq!(both.b.peers.stats().unproven, 0);
        assert!(both.of_b.try_recv().is_err());
    });
}

#[test]
fn only_nodes_that_have_each_other_in_their_present_lives_open_streams() {
    run(async {
        let mut both = both(Config::default()).await;
        let mut count = 0;
        for known in [&[][..], &[(2, LIFE.0)], &[(1, LIFE.0 - 1), (2, LIFE.0)], &[(1, LIFE.0 + 1)]] {
            registered(&both.b.peers, known);
            assert!(why(both.open().await).contains("do not have each other"), "{known:?}");
            count += 1;
            until(|| refusals(&both.b.peers, "not registered") == count).await;
        }
        registered(&both.b.peers, &[(1, LIFE.0), (2, LIFE.0)]);
        // The dialer judges as well, and the other end hears of it.
        for known in [&[][..], &[(1, LIFE.0)], &[(2, LIFE.0 - 1)]] {
            registered(&both.a.peers, known);
            assert!(why(both.open().await).contains("do not have each other"), "{known:?}");
            count += 1;
            until(|| refusals(&both.b.peers, "not registered") == count).await;
        }
        assert!(both.of_b.try_recv().is_err());
        registered(&both.a.peers, &[(1, LIFE.0), (2, LIFE.0)]);
        assert!(both.open().await.is_ok());
        let stats = both.a.peers.stats();
        assert_eq!((stats.peers[0].streams_failed, stats.peers[0].streams_dialed), (7, 1));
    });
}

#[test]
fn other_secrets_clusters_nodes_and_disks_open_no_stream() {
    run(async {
        let mut both = both(Config::default()).await;
        let open = async |me: PeerIdentity, secret: &[u8], to: u32| {
            let stranger = start(me, secret, Config::default()).await;
            registered(&stranger.peers, &[(1, LIFE.0), (2, LIFE.0), (7, LIFE.0)]);
            why(stranger.peers.open_stream(ShardId(0), NodeId(to), ShardId(0), &both.b.at).await)
        };
        assert!(open(node(1, CLUSTER), b"another secret, as long", 2).await.contains("compare the secrets"));
        assert!(open(node(1, OTHER), SECRET, 2).await.contains("node 2 belongs to cluster MDEy"));
        assert!(open(node(1, None), SECRET, 2).await.contains("do not have each other"));
        assert!(open(node(1, CLUSTER), SECRET, 7).await.contains("called node 7 and reached node 2"));
        both.b.peers.set_disk(A, DiskId(99));
        assert!(open(node(1, CLUSTER), SECRET, 2).await.contains("the disk of node"));
        assert!(both.of_b.try_recv().is_err());
    });
}

#[test]
fn a_stream_to_a_shard_that_is_not_there_or_is_not_taking_is_refused() {
    run(async {
        let (a, b) = two(Config::default()).await;
        for peers in [&a.peers, &b.peers] {
            registered(peers, &[(1, LIFE.0), (2, LIFE.0)]);
        }
        let open = async |shard| a.peers.open_stream(ShardId(0), B, ShardId(shard), &b.at).await;
        assert!(why(open(0).await).contains("no such shard"), "nobody takes streams yet");
        let mut of_b = b.peers.take_streams(2);
        assert!(why(open(2).await).contains("no such shard"));
        let mut held = Vec::new();
        for _ in 0..ACCEPTED_MAX {
            held.push(open(1).await.unwrap());
        }
        until(|| b.peers.stats().peers[0].streams_accepted == ACCEPTED_MAX as u64).await;
        assert!(why(open(1).await).contains("no room"));
        of_b.recv().await.unwrap();
        assert!(open(1).await.is_ok());
        drop(of_b);
        let stream = open(1).await;
        // The room was there when it was asked, or not: it is gone either way.
        if let Ok(stream) = stream {
            let mut rest = Vec::new();
            let _ = tokio_stream(stream.socket).read_to_end(&mut rest).await;
            assert!(rest.is_empty());
        }
    });
}

#[test]
fn a_node_that_does_not_answer_costs_a_bounded_time_and_few_sockets() {
    run(async {
        let config = Config { stream_timeout: Duration::from_millis(200), ..Config::default() };
        let a = start(node(1, CLUSTER), SECRET, config).await;
        registered(&a.peers, &[(2, LIFE.0)]);
        // Its kernel takes connections, and nobody speaks.
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = Endpoint { host: "127.0.0.1".to_owned(), port: mute.local_addr().unwrap().port() };
        let mut dials = tokio::task::JoinSet::new();
        for shard in 0..100 {
            let (peers, at) = (a.peers.clone(), at.clone());
            dials.spawn_local(async move { peers.open_stream(ShardId(shard), B, ShardId(0), &at).await });
        }
        let mut held = Vec::new();
        let count = std::cell::Cell::new(0);
        let accept = async {
            loop {
                held.push(mute.accept().await.unwrap());
                count.set(held.len());
            }
        };
        // When the first one gave up, no other had taken its place yet.
        let mut at_first = None;
        let all = async {
            while let Some(dialed) = dials.join_next().await {
                at_first.get_or_insert(count.get());
                assert!(matches!(dialed.unwrap(), Err(CallError::TimedOut)));
            }
        };
        tokio::select! { () = accept => {}, () = all => {} }
        let at_once = at_first.expect("each dial ends");
        assert!((1..=64).contains(&at_once), "{at_once} sockets");
        assert_eq!(a.peers.stats().peers[0].streams_failed, 100);
    });
}
