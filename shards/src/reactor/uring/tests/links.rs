//! Sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::echo::{Client, Options, pattern, run};
use crate::front::CloseReason;
use crate::reactor::boot::ShardExit;
use crate::reactor::uring::{KernelUse, LinkConfig, Spin};

/// What every kernel and every way of waiting has to do alike.
fn echoes_all_shapes(options: &Options) {
    let mut running = run(options);
    let mut client = running.connect();
    client.echo(b"");
    client.echo(b"hello");
    for (seed, len) in
        [1, 1000, 16 * 1024, 65_536, 65_537, 200_000, 1 << 20, 3 << 20, 10, 1 << 20].iter().enumerate()
    {
        client.echo_meanwhile(&pattern(*len, seed));
    }
    for &byte in [0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 1, b'z'].iter() {
        client.0.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.recv(), b"abc");
    assert_eq!(client.recv(), b"z");
    drop(client);
    running.until("the end of the connection", |seen| seen.closed == [CloseReason::Peer]);
    assert_eq!(running.stop(), [ShardExit::Stopped]);
}

#[test]
fn frames_of_all_shapes_come_back() {
    echoes_all_shapes(&Options::default());
}

#[test]
fn frames_of_all_shapes_come_back_on_the_oldest_kernel() {
    echoes_all_shapes(&Options { kernel_use: KernelUse::Oldest, ..Options::default() });
}

#[test]
fn frames_of_all_shapes_come_back_while_spinning() {
    echoes_all_shapes(&Options { spin: Spin::Micros(100), ..Options::default() });
}

#[test]
fn frames_of_all_shapes_come_back_through_two_tiny_buffers() {
    let link = LinkConfig { recv_buffers: 2, recv_buffer_bytes: 64, ..LinkConfig::default() };
    echoes_all_shapes(&Options { link, ..Options::default() });
}

fn many_pipelining_connections(options: &Options) {
    const FRAMES: usize = 300;
    let mut running = run(options);
    let addresses: Vec<_> = running.shards().addresses.iter().map(|a| a[0]).collect();
    assert!(addresses.iter().all(|a| *a == addresses[0]), "a shared address is one");
    std::thread::scope(|s| {
        for c in 0..32 {
            let mut client = Client::to(addresses[0]);
            s.spawn(move || {
                let mut writer = Client(client.0.try_clone().unwrap());
                let frames = move |i: usize| pattern((i * 37 + c) % 3000, i + c);
                std::thread::scope(|s| {
                    s.spawn(move || (0..FRAMES).for_each(|i| writer.send(&frames(i))));
                    for i in 0..FRAMES {
                        assert!(client.recv() == frames(i), "connection {c}, frame {i}");
                    }
                });
            });
        }
    });
    let opened: u64 = running.seen.iter().map(|s| s.lock().unwrap().opened).sum();
    assert_eq!(opened, 32);
}

#[test]
fn many_connections_pipeline_in_order() {
    many_pipelining_connections(&Options { shards: 2, ..Options::default() });
}

#[test]
fn many_connections_pipeline_in_order_on_the_oldest_kernel() {
    many_pipelining_connections(&Options { shards: 2, kernel_use: KernelUse::Oldest, ..Options::default() });
}

#[test]
fn many_connections_pipeline_through_few_buffers() {
    let link = LinkConfig { recv_buffers: 2, recv_buffer_bytes: 4096, ..LinkConfig::default() };
    many_pipelining_connections(&Options { link, unsent_max: 10_000, ..Options::default() });
}

#[test]
fn a_client_that_never_reads_is_no_longer_read_from() {
    let unsent_max = 1 << 20;
    let mut running = run(&Options { unsent_max, ..Options::default() });
    let mut stalled = running.connect();
    stalled.0.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let frame = pattern(60_000, 1);
    let mut framed = 60_000_u32.to_be_bytes().to_vec();
    framed.extend_from_slice(&frame);
    let mut written = 0_u64;
    // The server's memory does not grow, so in the end the client cannot write.
    let error = loop {
        match stalled.0.write(&framed[(written % 60_004) as usize..]) {
            Ok(n) => written += n as u64,
            Err(e) => break e,
        }
        assert!(written < 1 << 30, "the server takes in everything");
    };
    assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
    running.connect().echo(b"others are served");
    // Once it reads, all that it wrote comes back.
    let mut reader = stalled.0.try_clone().unwrap();
    let reads = std::thread::spawn(move || {
        let mut echoed = 0;
        let mut chunk = vec![0; 1 << 16];
        while let Ok(n) = reader.read(&mut chunk)
            && n > 0
        {
            echoed += n as u64;
            if echoed == (written / 60_004 + 1) * 60_004 {
                break;
            }
        }
        echoed
    });
    stalled.0.set_write_timeout(None).unwrap();
    stalled.0.write_all(&framed[(written % 60_004) as usize..]).unwrap();
    assert_eq!(reads.join().unwrap(), (written / 60_004 + 1) * 60_004);
    assert_eq!(running.stop(), [ShardExit::Stopped]);
}

#[test]
fn a_thousand_stalled_connections_do_not_disturb_one_that_works() {
    let mut running = run(&Options::default());
    let stalled: Vec<_> = (0..1000)
        .map(|i| {
            let client = running.connect();
            // Some say nothing, some half a prefix, some announce a frame that never comes.
            let begun: &[u8] = [&b""[..], &[0, 0], &[0, 16, 0, 0], &[0, 16, 0, 0, 1, 2, 3]][i % 4];
            (&client.0).write_all(begun).unwrap();
            client
        })
        .collect();
    let mut client = running.connect();
    for i in 0..200 {
        client.echo(&pattern(i * 10, i));
    }
    running.until("all connections", |seen| seen.opened == 1001);
    drop(stalled);
    running.until("the stalled ones to be gone", |seen| seen.closed.len() == 1000);
    client.echo(b"still there");
    assert_eq!(running.stop(), [ShardExit::Stopped]);
}

#[test]
fn resets_in_the_middle_of_everything_leave_nothing_behind() {
    let running = run(&Options::default());
    for round in 0..60 {
        let mut client = running.connect();
        if round % 3 == 0 {
            // Linger 0: closing sends a reset.
            rustix::net::sockopt::set_socket_linger(&client.0, Some(Duration::ZERO)).unwrap();
        }
        for _ in 0..20 {
            client.send(&pattern(5000, round));
        }
        client.0.write_all(&[0, 16, 0, 0, 1]).unwrap();
        if round % 2 == 0 {
            client.recv();
        }
    }
    running.connect().echo(b"alive");
    // Those that were reset before they were accepted were never there.
    running.until("all of them closed", |seen| seen.opened > 40 && seen.closed.len() as u64 == seen.opened);
    assert!(running.seen[0].lock().unwrap().closed.iter().all(|r| *r == CloseReason::Peer));
}

#[test]
fn closing_with_flush_answers_first_and_closing_at_once_does_not_wait() {
    let running = run(&Options::default());
    let mut client = running.connect();
    let big = pattern(2 << 20, 3);
    let mut writer = Client(client.0.try_clone().unwrap());
    std::thread::scope(|s| {
        let big = &big;
        s.spawn(move || {
            writer.send(big);
            writer.send(b"close");
        });
        // The answer is larger than the socket's buffer, so it is not out when the close is asked for.
        std::thread::sleep(Duration::from_millis(50));
        assert!(client.recv() == *big);
        assert_eq!(client.recv(), b"close");
        assert!(client.is_closed());
    });
    running.until("the flushed close", |seen| seen.closed == [CloseReason::Malformed]);
    let mut never_reads = running.connect();
    never_reads.send(&pattern(8 << 20, 4));
    never_reads.send(b"kill");
    running.until("the close at once", |seen| seen.closed.len() == 2);
    assert!(never_reads.is_closed());
}

#[test]
fn an_end_of_stream_closes_after_the_frames_before_it() {
    let running = run(&Options::default());
    let mut client = running.connect();
    for _ in 0..100 {
        client.send(b"last words");
    }
    client.0.shutdown(Shutdown::Write).unwrap();
    running.until("the close", |seen| seen.closed == [CloseReason::Peer] && seen.frames == 100);
}

#[test]
fn bad_lengths_close_the_connection() {
    let link = LinkConfig { frame_bytes_max: 1000, ..LinkConfig::default() };
    let running = run(&Options { link, ..Options::default() });
    for hostile in [[0xff; 4], [0, 0, 3, 0xe9]] {
        let mut client = running.connect();
        client.echo(b"fine");
        client.0.write_all(&hostile).unwrap();
        assert!(client.is_closed());
    }
    running.until("both closed", |seen| seen.closed == [CloseReason::FrameTooLarge; 2]);
}

#[test]
fn connections_beyond_the_bound_are_closed_and_counted() {
    let link = LinkConfig { connections_max: 2, ..LinkConfig::default() };
    let mut running = run(&Options { link, ..Options::default() });
    let (mut a, mut b) = (running.connect(), running.connect());
    a.echo(b"a");
    b.echo(b"b");
    assert!(running.connect().is_closed());
    assert_eq!(running.counter("connections_refused"), 1);
    drop(b);
    running.until("room", |seen| seen.closed.len() == 1);
    running.connect().echo(b"c");
    a.echo(b"a");
}

#[test]
fn idle_connections_are_closed_and_busy_ones_are_not() {
    let link = LinkConfig { connection_idle: Duration::from_millis(300), ..LinkConfig::default() };
    let running = run(&Options { link, ..Options::default() });
    let mut idle = running.connect();
    let mut busy = running.connect();
    idle.echo(b"once");
    while running.seen[0].lock().unwrap().closed.is_empty() {
        busy.echo(b"again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running.seen[0].lock().unwrap().closed, [CloseReason::Idle]);
    assert!(idle.is_closed());
    busy.echo(b"and again");
}

#[test]
fn stopping_with_everything_in_flight_ends_cleanly() {
    for round in 0..10 {
        let mut running = run(&Options { shards: 2, ..Options::default() });
        let clients: Vec<TcpStream> = (0..40)
            .map(|i| {
                let mut client = running.connect();
                client.0.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
                // Half a frame, or answers that nobody reads.
                let _ = client.0.write_all(&[0, 16, 0, 0, 1]);
                if i % 2 == 0 {
                    let _ = client.0.write_all(&pattern(1 << 20, round));
                }
                client.0
            })
            .collect();
        assert_eq!(running.stop(), [ShardExit::Stopped, ShardExit::Stopped]);
        drop(clients);
    }
}

#[test]
fn accepted_sockets_do_not_delay_small_answers() {
    let running = run(&Options::default());
    let mut client = running.connect();
    // With Nagle's algorithm and delayed acks, these would take 40 ms each; a second is far from the two minutes.
    let start = std::time::Instant::now();
    for i in 0..3000_u32 {
        client.echo(&i.to_be_bytes());
    }
    assert!(start.elapsed() < Duration::from_secs(60));
}
