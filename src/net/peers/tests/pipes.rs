use std::future::poll_fn;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::super::handshake::{accept, dial};
use super::*;
use crate::net::auth::session::tests::pair;
use crate::net::auth::{Acceptor, HELLO_LEN, OPEN_LEN, PROOF_LEN, VERDICT_LEN};
use crate::net::frame::{FRAME_MAX, Header, Opened, Type, open, seal};

type Outcome = Result<Box<Judged>, HandshakeError>;

/// A handshake over a pipe that ends after so many bytes of the dialer and of the acceptor.
async fn handshake_cut(dialers: usize, acceptors: usize) -> (Outcome, Outcome) {
    let secret = Secret::new(SECRET).unwrap();
    let own = Own { secret: &secret, me: node(1, CLUSTER), knows: &|_| Known::default() };
    let (mut dialer, dialers_end) = duplex(1024);
    let (mut acceptor, acceptors_end) = duplex(1024);
    let pass = async {
        let (mut from_dialer, mut to_dialer) = tokio::io::split(dialers_end);
        let (mut from_acceptor, mut to_acceptor) = tokio::io::split(acceptors_end);
        let there = async {
            let mut bytes = (&mut from_dialer).take(dialers as u64);
            let _ = tokio::io::copy(&mut bytes, &mut to_acceptor).await;
            let _ = to_acceptor.shutdown().await;
        };
        let back = async {
            let mut bytes = (&mut from_acceptor).take(acceptors as u64);
            let _ = tokio::io::copy(&mut bytes, &mut to_dialer).await;
            let _ = to_dialer.shutdown().await;
        };
        tokio::join!(there, back);
    };
    let dialed = async {
        let outcome = dial(&mut dialer, &own, Some(NodeId(2)), Purpose::Calls, &[7; 32]).await;
        drop(dialer);
        outcome
    };
    let accepted = async {
        let hear = |hello: &_| Acceptor::new(&node(2, CLUSTER), hello, &[8; 32]);
        let judge =
            |acceptor: &Acceptor, proof: &_| acceptor.verdict(&secret, proof, &|_| Known::default(), None);
        let outcome = accept(&mut acceptor, hear, judge).await;
        drop(acceptor);
        outcome
    };
    let (dialed, accepted, ()) = tokio::join!(dialed, accepted, pass);
    (dialed, accepted)
}

#[test]
fn a_handshake_that_is_cut_at_any_byte_welcomes_nobody_and_hangs_nobody() {
    run_paused(async {
        let (of_dialer, of_acceptor) = (HELLO_LEN + PROOF_LEN + OPEN_LEN, HELLO_LEN + VERDICT_LEN);
        let (dialed, accepted) = handshake_cut(of_dialer, of_acceptor).await;
        assert!(dialed.is_ok() && accepted.is_ok(), "nothing was cut");
        for len in 0..of_dialer {
            let (_, accepted) = handshake_cut(len, of_acceptor).await;
            assert_eq!(accepted.err(), Some(HandshakeError::Unfinished), "{len} bytes of the dialer");
        }
        for len in 0..of_acceptor {
            let (dialed, accepted) = handshake_cut(of_dialer, len).await;
            assert!(dialed.is_err() && accepted.is_err(), "{len} bytes of the acceptor");
        }
    });
}

/// The other end of a link, by hand.
struct Hand {
    stream: DuplexStream,
    keys: crate::net::auth::session::Keys,
    bytes: Vec<u8>,
}

impl Hand {
    /// The next frame, and the bytes it took.
    async fn frame(&mut self) -> Option<(Header, usize)> {
        loop {
            if let Some(Opened { header, used, .. }) = open(&self.bytes, &mut self.keys.receive).unwrap() {
                self.bytes.drain(..used);
                return Some((header, used));
            }
            let mut more = [0; 4096];
            let len = self.stream.read(&mut more).await.unwrap();
            if len == 0 {
                return None;
            }
            self.bytes.extend_from_slice(&more[..len]);
        }
    }

    async fn send(&mut self, what: Type, call: u64, body: &[u8]) {
        let header = Header { chunk_len: body.len(), body_len: body.len(), call, ..Header::bare(what) };
        let mut bytes = Vec::new();
        seal(&header, body, &mut self.keys.send, &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }
}

/// A link that is connected by a pipe, the end of its connection, and the other end.
fn linked(config: &Config) -> (Rc<Link>, tokio::task::JoinHandle<String>, Hand) {
    let link = Rc::new(Link::new(config, Rc::default()));
    let (mine, stream) = duplex(FRAME_MAX);
    let (a, keys) = pair();
    let liveness = Liveness { ping_after: Some(config.ping_after), silence_max: config.silence_max };
    let runs = Rc::clone(&link);
    let ended = tokio::task::spawn_local(async move { runs.run(mine, a, liveness).await.to_string() });
    (link, ended, Hand { stream, keys, bytes: Vec::new() })
}

fn calling(link: &Rc<Link>, class: Class, len: usize) -> tokio::task::JoinHandle<Result<Bytes, CallError>> {
    let link = Rc::clone(link);
    tokio::task::spawn_local(async move { link.call(class, 1, Bytes::from(vec![0; len]), LONG).await })
}

#[test]
fn an_urgent_call_passes_64_mib_of_bulk_within_a_chunk() {
    run_paused(async {
        let mut config = Config::default();
        config.limits.queued_bytes_max[Class::Bulk as usize] = 65 << 20;
        let (link, _, mut hand) = linked(&config);
        for _ in 0..8 {
            calling(&link, Class::Bulk, 8 << 20);
        }
        for _ in 0..20 {
            assert_eq!(hand.frame().await.unwrap().0.class, Class::Bulk);
        }
        calling(&link, Class::Urgent, 10);
        settle().await;
        // What lies in the pipe, and the one write that had begun.
        let mut before = hand.bytes.len() + 2 * FRAME_MAX;
        loop {
            let (header, used) = hand.frame().await.unwrap();
            if header.class == Class::Urgent {
                break;
            }
            before = before.checked_sub(used).expect("more bulk passed than was under way");
        }
        let mut bulk = 0;
        while bulk < 8 {
            let (header, _) = hand.frame().await.unwrap();
            bulk += u32::from(header.at + header.chunk_len == header.body_len);
        }
    });
}

#[test]
fn a_peer_that_falls_silent_is_pinged_and_given_up_and_its_calls_end() {
    run_paused(async {
        let (link, ended, mut hand) = linked(&Config::default());
        let waiting = calling(&link, Class::Append, 1);
        assert_eq!(hand.frame().await.unwrap().0.what, Type::Call);
        assert_eq!(hand.frame().await.unwrap().0.what, Type::Ping);
        hand.send(Type::Pong, 0, b"").await;
        assert_eq!(hand.frame().await.unwrap().0.what, Type::Ping);
        assert!(hand.frame().await.is_none(), "one ping, then the end");
        assert_eq!(ended.await.unwrap(), "the peer was silent for 6s");
        assert!(matches!(waiting.await.unwrap(), Err(CallError::Unreachable(why)) if why.contains("silent")));
    });
}

#[test]
fn a_connection_without_calls_is_closed_after_a_while_and_not_before() {
    run_paused(async {
        let (link, ended, mut hand) = linked(&Config::default());
        let began = Instant::now();
        let waiting = calling(&link, Class::Append, 1);
        let (header, _) = hand.frame().await.unwrap();
        hand.send(Type::Answer, header.call, b"yes").await;
        assert_eq!(waiting.await.unwrap().as_deref(), Ok(&b"yes"[..]));
        while let Some((header, _)) = hand.frame().await {
            assert_eq!(header.what, Type::Ping);
            hand.send(Type::Pong, 0, b"").await;
        }
        assert_eq!(ended.await.unwrap(), "nothing was to be sent for a while");
        assert!(began.elapsed() >= Config::default().idle_max);
    });
}

#[test]
fn answers_to_calls_that_nobody_made_are_thrown_away_and_calls_of_the_callee_end_the_connection() {
    run_paused(async {
        let (link, ended, mut hand) = linked(&Config::default());
        hand.send(Type::Answer, 77, b"unasked").await;
        let waiting = calling(&link, Class::Append, 1);
        let (header, _) = hand.frame().await.unwrap();
        hand.send(Type::Refusal, header.call, b"no").await;
        assert_eq!(waiting.await.unwrap(), Err(CallError::Refused("no".to_owned())));
        hand.send(Type::Call, 1, b"turned around").await;
        assert_eq!(ended.await.unwrap(), "a frame of a kind that the protocol does not have");
    });
}

#[test]
fn a_call_that_is_given_up_before_it_was_sent_is_never_sent() {
    run_paused(async {
        let link = Rc::new(Link::new(&Config::default(), Rc::default()));
        let mut given_up = Box::pin(link.call(Class::Append, 1, Bytes::new(), LONG));
        poll_fn(|cx| {
            assert!(given_up.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        assert!(!link.pipe.outbox.borrow().is_empty());
        drop(given_up);
        assert!(link.pipe.outbox.borrow().is_empty());
    });
}
