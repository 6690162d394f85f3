use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::net::auth::{Dialer, NONCE_LEN};

/// What one connection that has proven nothing may take, besides the socket's own state, in bytes.
const STRANGER_BYTES_MAX: u64 = 1024;

/// Connects from an address of loopback.
async fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip(last), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

fn address(of: &Node) -> SocketAddr {
    SocketAddr::new(ip(1), of.at.port)
}

/// The most bytes that were held while so many strangers came, by this node or, to compare, by a loop that only accepts.
fn held_for_strangers(count: usize, hello: &[u8], is_node: bool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let accepted: Rc<RefCell<Vec<TcpStream>>> = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let (peers, to) = local.block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let config = Config { handshake_timeout: LONG, ..Config::default() };
        let secret = Secret::new(SECRET).unwrap();
        let mut listener = Some(listener);
        let given = if is_node { listener.take() } else { None };
        let peers = Peers::start(config, secret, node(2, CLUSTER), given).0;
        if let Some(listener) = listener {
            let accepted = Rc::clone(&accepted);
            tokio::task::spawn_local(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    accepted.borrow_mut().push(stream);
                }
            });
        }
        settle().await;
        (peers, to)
    });
    // Plain sockets, which allocate nothing.
    let mut ends = Vec::with_capacity(count);
    let measured = allocation_counter::measure(|| {
        local.block_on(&runtime, async {
            for n in 1..=count {
                let mut end = std::net::TcpStream::connect(to).unwrap();
                end.write_all(hello).unwrap();
                ends.push(end);
                let come = || {
                    if is_node {
                        peers.inner.inbound.borrow().counts().1
                    } else {
                        accepted.borrow().len() as u64
                    }
                };
                while come() < n as u64 {
                    tokio::task::yield_now().await;
                }
            }
            for _ in 0..100 {
                settle().await;
            }
        });
    });
    measured.bytes_max
}

#[test]
fn a_stranger_takes_at_most_a_kibibyte_silent_or_half_way_through_the_handshake() {
    const STRANGERS: usize = 200;
    let dialer = Dialer::new(node(1, CLUSTER), None, Purpose::Calls, &[7; NONCE_LEN]);
    for hello in [&[][..], dialer.hello()] {
        let sockets = held_for_strangers(STRANGERS, hello, false);
        let all = held_for_strangers(STRANGERS, hello, true);
        let each = all.saturating_sub(sockets) / STRANGERS as u64;
        println!("a stranger takes {each} bytes");
        assert!(each > 100, "something is held for each, and was not seen: {each} bytes");
        assert!(each <= STRANGER_BYTES_MAX, "{each} bytes");
    }
}

#[test]
fn ten_thousand_half_open_connections_do_not_disturb_two_peers_nor_keep_a_third_out() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let may = limit.maximum.unwrap_or(u64::MAX).min(16_384);
    if limit.current.is_some_and(|current| current < may) {
        limit.current = Some(may);
        setrlimit(Resource::Nofile, limit).unwrap();
    }
    // Each takes a descriptor at this end; those that the node holds, and other tests, take some too.
    let strangers = usize::try_from(may.saturating_sub(2_000)).unwrap().min(10_000);
    if strangers < 10_000 {
        println!("only {strangers} strangers: this host allows a process {may} descriptors");
    }
    run(async {
        let (a, b) = two(Config::default()).await;
        echo(b.incoming);
        let calls = Rc::new(Cell::new(0u64));
        let mut callers = tokio::task::JoinSet::new();
        for class in Class::ALL {
            let (peers, calls) = (a.peers.clone(), Rc::clone(&calls));
            callers.spawn_local(async move {
                loop {
                    let body = Bytes::from_static(&[7; 1000]);
                    peers.call(NodeId(2), class, 1, body, LONG).await.unwrap();
                    calls.set(calls.get() + 1);
                }
            });
        }
        until(|| calls.get() > 10).await;
        let to = SocketAddr::new(ip(1), b.at.port);
        let mut held = Vec::with_capacity(strangers);
        let mut before = calls.get();
        for n in 0..strangers {
            let mut end = connect_from(if n % 2 == 0 { 2 } else { 3 }, to).await;
            if n % 3 == 0 {
                let part = n % 104;
                // The node may have closed it already.
                let _ = end.write_all(&[b'H'; 104][..part]).await;
            }
            held.push(end);
            if n % 1000 == 999 {
                assert!(calls.get() > before, "calls went on");
                before = calls.get();
                let stats = b.peers.stats();
                assert!(stats.unproven <= 2 * Limits::default().unproven_per_address_max as u64);
                assert_eq!(stats.inbound, 2);
            }
        }
        let c = start(node(3, CLUSTER), SECRET, Config::default()).await;
        c.peers.set_peer(NodeId(2), b.at.clone());
        call(&c.peers, 2, b"x").await.unwrap();
        assert!(callers.try_join_next().is_none(), "no call failed");
        assert!(refusals(&b.peers, "crowded out") > strangers as u64 / 2);
    });
}

#[test]
fn a_stranger_that_says_nothing_is_let_go_after_a_while() {
    run(async {
        let config = Config { handshake_timeout: Duration::from_millis(30), ..Config::default() };
        let b = start(node(2, CLUSTER), SECRET, config).await;
        let _end = connect_from(2, address(&b)).await;
        until(|| b.peers.stats().unproven == 1 || refusals(&b.peers, "handshake timeout") == 1).await;
        until(|| refusals(&b.peers, "handshake timeout") == 1).await;
        assert_eq!(b.peers.stats().unproven, 0);
    });
}

#[test]
fn the_oldest_stranger_makes_room_for_the_newest() {
    run(async {
        let limits = Limits { unproven_max: 3, unproven_per_address_max: 2, ..Limits::default() };
        let config = Config { limits, handshake_timeout: LONG, ..Config::default() };
        let b = start(node(2, CLUSTER), SECRET, config).await;
        let holders = || {
            let inbound = b.peers.inner.inbound.borrow();
            inbound.unproven.keys().copied().collect::<Vec<u64>>()
        };
        let mut held = Vec::new();
        let from = |last| connect_from(last, address(&b));
        for (stranger, left) in [
            (2, vec![0]),
            (3, vec![0, 1]),
            (3, vec![0, 1, 2]),
            // The crowd of one address is its own affair,
            (3, vec![0, 2, 3]),
            // and when all is full the oldest of all goes.
            (4, vec![2, 3, 4]),
        ] {
            held.push(from(stranger).await);
            let newest = *left.last().unwrap();
            until(|| holders().last() == Some(&newest)).await;
            assert_eq!(holders(), left);
        }
    });
}

#[test]
fn bytes_that_are_no_handshake_are_refused() {
    run(async {
        let b = start(node(2, CLUSTER), SECRET, Config::default()).await;
        let mut end = connect_from(2, address(&b)).await;
        end.write_all(&[b'G'; 200]).await.unwrap();
        until(|| refusals(&b.peers, "not a peer") == 1).await;
        drop(connect_from(2, address(&b)).await);
        until(|| refusals(&b.peers, "unfinished") == 1).await;
        assert_eq!(b.peers.stats().unproven, 0);
    });
}
