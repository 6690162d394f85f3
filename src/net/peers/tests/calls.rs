use super::*;
use crate::net::BODY_MAX;

#[test]
fn calls_of_all_classes_and_sizes_are_answered_many_at_a_time() {
    run(async {
        let (a, b) = two(Config::default()).await;
        echo(b.incoming);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..600u32 {
            let (peers, class) = (a.peers.clone(), Class::ALL[n as usize % 3]);
            let len = if n % 300 == 2 { BODY_MAX } else { n as usize * 7 };
            let body = Bytes::from(vec![n as u8; len]);
            tasks.spawn_local(async move {
                let answer = peers.call(NodeId(2), class, 0x0101, body.clone(), LONG).await;
                assert!(answer == Ok(body), "call {n}");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let stats = a.peers.stats();
        let peer = &stats.peers[0];
        assert_eq!(
            (peer.node, peer.dialed, peer.reconnects),
            (NodeId(2), 2, 0),
            "one connection for each lane"
        );
        let answered: Vec<u64> = peer
            .classes
            .iter()
            .map(|c| c.latency_us.as_ref().map_or(0, hdrhistogram::Histogram::len))
            .collect();
        assert_eq!(answered, [200, 200, 200]);
        assert!(peer.bytes_out > 2 * BODY_MAX as u64 && peer.bytes_in > 2 * BODY_MAX as u64);
        let other = b.peers.stats();
        assert_eq!((other.inbound, other.unproven, other.incoming_bytes), (2, 0, 0));
    });
}

#[test]
fn a_call_carries_its_kind_and_the_proven_identity_of_its_caller() {
    run(async {
        let (a, mut b) = two(Config::default()).await;
        let peers = a.peers.clone();
        let call = tokio::task::spawn_local(async move { call(&peers, 2, b"body").await });
        let incoming = b.incoming.recv().await.unwrap();
        assert_eq!((incoming.from, incoming.kind, &incoming.body[..]), (NodeId(1), 0x0101, &b"body"[..]));
        assert_eq!(incoming.peer(), Some(&node(1, CLUSTER)));
        incoming.refuse("not now");
        assert_eq!(call.await.unwrap(), Err(CallError::Refused("not now".to_owned())));
    });
}

#[test]
fn a_dropped_call_is_refused_and_a_long_reason_is_cut() {
    run(async {
        let (a, mut b) = two(Config::default()).await;
        tokio::task::spawn_local(async move {
            drop(b.incoming.recv().await);
            b.incoming.recv().await.unwrap().refuse(&"ä".repeat(1000));
            std::future::pending::<()>().await;
        });
        let Err(CallError::Refused(why)) = call(&a.peers, 2, b"").await else { panic!("refused") };
        assert_eq!(why, "the call was dropped without an answer");
        assert_eq!(call(&a.peers, 2, b"").await, Err(CallError::Refused("ä".repeat(256))));
    });
}

#[test]
fn a_call_without_an_answer_ends_at_its_deadline_and_gives_its_place_back() {
    run(async {
        let limits = Limits { calls_max: 1, ..Limits::default() };
        let (a, mut b) = two(Config { limits, ..Config::default() }).await;
        let short = Duration::from_millis(20);
        for _ in 0..3 {
            let lost = a.peers.call(NodeId(2), Class::Append, 1, Bytes::new(), short).await;
            assert_eq!(lost, Err(CallError::TimedOut));
            // Otherwise the next is one too many for the other end.
            b.incoming.recv().await.unwrap().answer(Bytes::new());
        }
        assert_eq!(a.peers.stats().peers[0].classes[1].timed_out, 3);
        echo(b.incoming);
        assert_eq!(call(&a.peers, 2, b"x").await.as_deref(), Ok(&b"x"[..]));
    });
}

#[test]
fn a_body_above_the_limit_and_an_unknown_node_are_errors_at_once() {
    run(async {
        let (a, _b) = two(Config::default()).await;
        let body = Bytes::from(vec![0; BODY_MAX + 1]);
        let answer = a.peers.call(NodeId(2), Class::Bulk, 1, body, LONG).await;
        assert_eq!(answer, Err(CallError::TooLarge { len: BODY_MAX + 1, max: BODY_MAX }));
        let Err(CallError::Unreachable(why)) = call(&a.peers, 9, b"").await else { panic!("unreachable") };
        assert_eq!(why, "no address of node 9 is known");
    });
}

#[test]
fn a_full_queue_is_an_error_at_once_and_leaves_other_classes_their_room() {
    run(async {
        let limits = Limits { calls_max: 3, ..Limits::default() };
        let (a, mut b) = two(Config { limits, ..Config::default() }).await;
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let peers = a.peers.clone();
            waiting.spawn_local(
                async move { peers.call(NodeId(2), Class::Append, 1, Bytes::new(), LONG).await },
            );
        }
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(b.incoming.recv().await.unwrap());
        }
        let more = a.peers.call(NodeId(2), Class::Append, 1, Bytes::new(), LONG).await;
        assert_eq!(more, Err(CallError::Full));
        echo(b.incoming);
        assert_eq!(call(&a.peers, 2, b"x").await.as_deref(), Ok(&b"x"[..]));
        drop(held);
        while let Some(done) = waiting.join_next().await {
            assert!(matches!(done.unwrap(), Err(CallError::Refused(_))));
        }
        assert_eq!(a.peers.stats().peers[0].classes[1].full, 1);
    });
}

#[test]
fn a_node_that_holds_too_many_calls_or_bytes_refuses_more_at_once() {
    run(async {
        let limits = Limits { incoming_max: 2, incoming_bytes_max: 300_000, ..Limits::default() };
        let (a, mut b) = two(Config { limits, ..Config::default() }).await;
        let big = Bytes::from(vec![1; 200_000]);
        let first = {
            let (peers, big) = (a.peers.clone(), big.clone());
            tokio::task::spawn_local(async move { peers.call(NodeId(2), Class::Bulk, 1, big, LONG).await })
        };
        let held = b.incoming.recv().await.unwrap();
        let second = a.peers.call(NodeId(2), Class::Bulk, 1, big.clone(), LONG).await;
        assert!(matches!(&second, Err(CallError::Refused(why)) if why.contains("too many")), "{second:?}");
        assert_eq!(b.peers.stats().incoming_bytes, 200_000);
        held.answer(Bytes::new());
        first.await.unwrap().unwrap();
        assert_eq!(b.peers.stats().incoming_bytes, 0);
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let peers = a.peers.clone();
            waiting.spawn_local(async move { call(&peers, 2, b"x").await });
        }
        // Nobody takes them: two wait in the queue, and three are refused.
        for _ in 0..3 {
            let refused = waiting.join_next().await.unwrap().unwrap();
            assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
        }
        echo(b.incoming);
        while let Some(done) = waiting.join_next().await {
            done.unwrap().unwrap();
        }
    });
}

#[test]
fn after_the_other_side_restarts_calls_reach_it_again() {
    run(async {
        let (a, b) = two(Config::default()).await;
        let answering = echo(b.incoming);
        call(&a.peers, 2, b"x").await.unwrap();
        b.peers.close();
        answering.abort();
        until(|| a.peers.stats().peers[0].connections == 0).await;
        let Err(CallError::Unreachable(why)) = call(&a.peers, 2, b"x").await else { panic!("unreachable") };
        assert!(why.contains("node 2"), "{why}");
        let again = start_at(node(2, CLUSTER), SECRET, Config::default(), b.at.port).await;
        echo(again.incoming);
        let mut failed = 0;
        while let Err(error) = call(&a.peers, 2, b"x").await {
            assert!(matches!(error, CallError::Unreachable(_)), "{error}");
            failed += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stats = a.peers.stats();
        assert!(stats.peers[0].reconnects >= 1);
        assert!(stats.peers[0].dial_failures < failed + 10, "calls while it rests do not dial");
    });
}

#[test]
fn a_peer_that_calls_is_dialed_at_once_however_long_it_was_away() {
    run(async {
        let backoff = Backoff { first: Duration::from_secs(3600), max: Duration::from_secs(3600) };
        let config = Config { backoff, ..Config::default() };
        let a = start(node(1, CLUSTER), SECRET, config).await;
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        a.peers.set_peer(NodeId(2), Endpoint { host: "127.0.0.1".to_owned(), port: free });
        for _ in 0..2 {
            assert!(matches!(call(&a.peers, 2, b"x").await, Err(CallError::Unreachable(_))));
        }
        assert_eq!(a.peers.stats().peers[0].dial_failures, 1, "the second call did not dial");
        let b = start_at(node(2, CLUSTER), SECRET, Config::default(), free).await;
        echo(b.incoming);
        b.peers.set_peer(NodeId(1), a.at.clone());
        echo(a.incoming);
        call(&b.peers, 1, b"x").await.unwrap();
        call(&a.peers, 2, b"x").await.unwrap();
    });
}

#[test]
fn a_removed_or_moved_peer_ends_the_calls_on_their_way() {
    run(async {
        let (a, mut b) = two(Config::default()).await;
        let peers = a.peers.clone();
        let waiting = tokio::task::spawn_local(async move { call(&peers, 2, b"x").await });
        let held = b.incoming.recv().await.unwrap();
        let c = start(node(2, CLUSTER), SECRET, Config::default()).await;
        a.peers.set_peer(NodeId(2), c.at.clone());
        assert!(matches!(waiting.await.unwrap(), Err(CallError::Unreachable(_))));
        held.answer(Bytes::new());
        echo(c.incoming);
        call(&a.peers, 2, b"x").await.unwrap();
        a.peers.remove_peer(NodeId(2));
        assert!(matches!(call(&a.peers, 2, b"x").await, Err(CallError::Unreachable(_))));
    });
}

#[test]
fn an_address_says_who_is_there_and_takes_calls_before_its_node_is_known() {
    run(async {
        let (a, b) = two(Config::default()).await;
        assert_eq!(a.peers.probe(&b.at, LONG).await, Ok(node(2, CLUSTER)));
        assert_eq!(a.peers.probe(&a.at, LONG).await, Ok(node(1, CLUSTER)), "it finds itself");
        echo(b.incoming);
        let by_name = Endpoint { host: "localhost".to_owned(), ..b.at.clone() };
        let body = Bytes::from(vec![5; 100_000]);
        let answer = a.peers.call_endpoint(&by_name, Class::Append, 0x0201, body.clone(), LONG).await;
        assert!(answer == Ok((node(2, CLUSTER), body)));
        until(|| b.peers.stats().inbound == 0).await;
        let nowhere = Endpoint { host: "no.such.host.invalid".to_owned(), port: 1 };
        assert!(matches!(a.peers.probe(&nowhere, LONG).await, Err(CallError::Unreachable(_))));
    });
}
