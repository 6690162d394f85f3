//! Connections between shards, adopted from the control core.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::echo::{Client, Options, PeerSeen, Running, pattern, run};
use crate::front::CloseReason;
use crate::ids::{NodeId, RegistrationEpoch, ShardId};
use crate::reactor::boot::ShardExit;
use crate::reactor::handover::{Adopted, ToDriver};
use crate::reactor::uring::{KernelUse, LinkConfig};
use crate::stream::FRAME_BYTES_MAX;

fn adopted(socket: impl Into<OwnedFd>, dialed: bool) -> Adopted {
    Adopted {
        socket: socket.into(),
        node: NodeId(7),
        remote_shard: ShardId(3),
        epoch: RegistrationEpoch(41),
        dialed,
    }
}

/// Both ends of a connection over loopback.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    for end in [&dialed, &accepted] {
        end.set_nodelay(true).unwrap();
        end.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    (dialed, accepted)
}

/// Hands one end to shard 0 and returns the other.
fn adopt(running: &mut Running, dialed: bool) -> Client {
    let (its, ours) = pair();
    // As the control core's sockets are.
    its.set_nonblocking(true).unwrap();
    running.link(0).hand_over(ToDriver::Adopt(adopted(its, dialed))).unwrap();
    Client(ours)
}

fn echoes_all_shapes(options: &Options) {
    let mut running = run(options);
    let mut peer = adopt(&mut running, true);
    peer.echo(b"");
    peer.echo(b"hello");
    for (seed, len) in
        [1, 1000, 16 * 1024, 65_537, 200_000, 1 << 20, 5 << 20, 10, 1 << 20, 1 << 20].iter().enumerate()
    {
        peer.echo_meanwhile(&pattern(*len, seed));
    }
    assert_eq!(
        running.seen[0].lock().unwrap().peers,
        [PeerSeen { node: NodeId(7), remote_shard: ShardId(3), epoch: RegistrationEpoch(41), dialed: true }]
    );
    drop(peer);
    running.until("the end of the connection", |seen| seen.peers_closed == [CloseReason::Peer]);
    let (received, sent) = (running.counter("peer_bytes_received"), running.counter("peer_bytes_sent"));
    assert!(received > 8 << 20 && received == sent, "{received} in, {sent} out");
    assert_eq!(running.counter("peers_opened"), 1);
    assert_eq!(running.counter("peers_closed"), 1);
    assert_eq!(running.seen[0].lock().unwrap().opened, 0, "it is no client");
    assert_eq!(running.stop(), [ShardExit::Stopped]);
}

#[test]
fn an_adopted_connection_carries_frames_of_all_shapes() {
    echoes_all_shapes(&Options::default());
}

#[test]
fn an_adopted_connection_carries_frames_of_all_shapes_on_the_oldest_kernel() {
    echoes_all_shapes(&Options { kernel_use: KernelUse::Oldest, ..Options::default() });
}

#[test]
fn a_peer_may_send_frames_that_a_client_may_not() {
    let link = LinkConfig { frame_bytes_max: 1000, ..LinkConfig::default() };
    let mut running = run(&Options { link, ..Options::default() });
    let mut peer = adopt(&mut running, false);
    peer.echo(&pattern(300_000, 1));
    let mut client = running.connect();
    client.0.write_all(&1001_u32.to_be_bytes()).unwrap();
    assert!(client.is_closed());
    peer.0.write_all(&(FRAME_BYTES_MAX + 1).to_be_bytes()).unwrap();
    assert!(peer.is_closed());
    running.until("the close", |seen| seen.peers_closed == [CloseReason::FrameTooLarge]);
    assert_eq!(running.seen[0].lock().unwrap().closed, [CloseReason::FrameTooLarge]);
}

#[test]
fn peers_take_no_room_from_clients_nor_clients_from_peers() {
    let link = LinkConfig { connections_max: 1, peers_max: 2, ..LinkConfig::default() };
    let mut running = run(&Options { link, ..Options::default() });
    let (mut a, mut b) = (adopt(&mut running, true), adopt(&mut running, false));
    a.echo(b"a");
    b.echo(b"b");
    let mut client = running.connect();
    client.echo(b"client");
    assert!(running.connect().is_closed());
    // One that asked is told, one that came is only closed.
    assert!(adopt(&mut running, true).is_closed());
    assert!(adopt(&mut running, false).is_closed());
    running.until("the failure", |seen| seen.dials_failed == [(NodeId(7), ShardId(3))]);
    assert_eq!(running.counter("peers_refused"), 2);
    assert_eq!(running.counter("connections_refused"), 1);
    drop(a);
    running.until("room", |seen| seen.peers_closed.len() == 1);
    adopt(&mut running, true).echo(b"c");
    b.echo(b"b");
    client.echo(b"client");
}

#[test]
fn a_failed_dial_reaches_the_shard() {
    let mut running = run(&Options::default());
    let failed = ToDriver::DialFailed { node: NodeId(2), shard: ShardId(1) };
    running.link(0).hand_over(failed).unwrap();
    running.until("the failure", |seen| seen.dials_failed == [(NodeId(2), ShardId(1))]);
}

#[test]
fn a_silent_peer_stays_while_an_idle_client_goes() {
    let link = LinkConfig { connection_idle: Duration::from_millis(100), ..LinkConfig::default() };
    let mut running = run(&Options { link, ..Options::default() });
    let mut peer = adopt(&mut running, false);
    peer.echo(b"once");
    let mut idle = running.connect();
    idle.echo(b"once");
    assert!(idle.is_closed());
    let mut another = running.connect();
    another.echo(b"once");
    assert!(another.is_closed());
    peer.echo(b"still there");
    assert_eq!(running.seen[0].lock().unwrap().peers_closed, []);
}

#[test]
fn an_idle_peer_does_not_turn_the_loop() {
    let mut running = run(&Options::default());
    let mut peer = adopt(&mut running, true);
    peer.echo(b"once");
    std::thread::sleep(Duration::from_millis(200));
    let before = running.counter("loop_turns");
    std::thread::sleep(Duration::from_millis(500));
    let after = running.counter("loop_turns");
    // A socket that did not wait for its bytes would be asked again and again.
    assert!(after - before <= 3, "{} turns of an idle shard", after - before);
}

#[test]
fn a_peer_closes_with_what_was_sent_or_at_once_and_each_close_is_told_once() {
    let mut running = run(&Options::default());
    let mut flushed = adopt(&mut running, true);
    let big = pattern(3 << 20, 3);
    let mut writer = Client(flushed.0.try_clone().unwrap());
    std::thread::scope(|s| {
        let big = &big;
        s.spawn(move || {
            writer.send(big);
            writer.send(b"close");
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(flushed.recv() == *big);
        assert_eq!(flushed.recv(), b"close");
        assert!(flushed.is_closed());
    });
    running.until("the flushed close", |seen| seen.peers_closed == [CloseReason::Malformed]);
    let mut never_reads = adopt(&mut running, true);
    never_reads.send(&pattern(8 << 20, 4));
    never_reads.send(b"kill");
    running.until("the close at once", |seen| seen.peers_closed.len() == 2);
    assert!(never_reads.is_closed());
    let half = adopt(&mut running, true);
    for _ in 0..10 {
        (&half.0).write_all(&[0, 0, 0, 1, b'x']).unwrap();
    }
    half.0.shutdown(Shutdown::Write).unwrap();
    running.until("the end of the stream", |seen| seen.peers_closed.len() == 3);
    assert_eq!(running.seen[0].lock().unwrap().peers_closed[2], CloseReason::Peer);
}

#[test]
fn a_peer_that_never_reads_is_no_longer_read_from_and_others_go_on() {
    let mut running = run(&Options { unsent_max: 1 << 20, ..Options::default() });
    let mut stalled = adopt(&mut running, false);
    stalled.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let frame = pattern(100_000, 1);
    let mut framed = 100_000_u32.to_be_bytes().to_vec();
    framed.extend_from_slice(&frame);
    let mut written = 0;
    while let Ok(n) = stalled.0.write(&framed[written % framed.len()..]) {
        written += n;
        assert!(written < 1 << 30, "the shard takes in everything");
    }
    adopt(&mut running, false).echo(b"others are served");
    running.connect().echo(b"and clients");
}

/// Descriptors of this process that name this kind of socket.
fn sockets_named(name: &str) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|to| to.to_string_lossy() == name)
        .count()
}

fn name_of(socket: &UnixStream) -> String {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
    std::fs::read_link(link).unwrap().to_string_lossy().into_owned()
}

/// Waits until the shard has let go of a socket, known by its name.
fn until_gone(name: &str) {
    for _ in 0..3000 {
        if sockets_named(name) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{name} is still open");
}

#[test]
fn no_adopted_socket_outlives_its_connection_its_refusal_or_its_shard() {
    let link = LinkConfig { peers_max: 1, ..LinkConfig::default() };
    let mut running = run(&Options { link, ..Options::default() });
    let hand_over = |running: &mut Running| {
        let (its, ours) = UnixStream::pair().unwrap();
        let name = name_of(&its);
        running.link(0).hand_over(ToDriver::Adopt(adopted(its, true))).unwrap();
        (name, ours)
    };
    let (first, end) = hand_over(&mut running);
    running.until("the first", |seen| seen.peers.len() == 1);
    assert_eq!(sockets_named(&first), 1);
    let (refused, _end) = hand_over(&mut running);
    until_gone(&refused);
    drop(end);
    running.until("its end", |seen| seen.peers_closed.len() == 1);
    until_gone(&first);
    let (second, _end) = hand_over(&mut running);
    running.until("the second", |seen| seen.peers.len() == 2);
    // What comes with or after the order to stop goes with the rings.
    let mut shards = running.shards.take().unwrap();
    let stop = crate::mail::FromControl::Stop { deadline: Duration::ZERO };
    shards.links[0].send(stop).unwrap();
    let (its, _end) = UnixStream::pair().unwrap();
    let late = name_of(&its);
    let _ = shards.links[0].hand_over(ToDriver::Adopt(adopted(its, false)));
    shards.links.truncate(1);
    let exits: Vec<_> = shards.join().into_iter().map(|(_, exit)| exit).collect();
    assert_eq!(exits, [ShardExit::Stopped]);
    assert_eq!((sockets_named(&second), sockets_named(&late)), (0, 0));
}

#[test]
fn two_shards_that_adopt_both_ends_of_a_connection_talk_until_they_stop() {
    let mut running = run(&Options { shards: 2, unsent_max: 1 << 16, ..Options::default() });
    let (mut a, b) = pair();
    // What one says the other says back, for ever.
    for n in 0..20_usize {
        let len = if n == 10 { 70_000 } else { n * 10 };
        a.write_all(&u32::try_from(len).unwrap().to_be_bytes()).unwrap();
        a.write_all(&pattern(len, n)).unwrap();
    }
    running.link(0).hand_over(ToDriver::Adopt(adopted(a, true))).unwrap();
    running.link(1).hand_over(ToDriver::Adopt(adopted(b, false))).unwrap();
    running.until("frames to go to and fro", |seen| seen.frames > 2000);
    assert_eq!(running.stop(), [ShardExit::Stopped, ShardExit::Stopped]);
}
