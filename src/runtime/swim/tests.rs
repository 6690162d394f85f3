//! Members on loopback, in one thread.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::control::swim::Extensions;

/// How long anything may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(at: &str, name: &str, seeds: &[&Swim], change: impl Fn(&mut SwimConfig)) -> Swim {
    let socket = bind(at.parse().unwrap()).unwrap();
    let mut config = SwimConfig::new(name, socket.local_addr().unwrap());
    change(&mut config);
    let keys = Keyring::new("tests", 1, &[7; 32]).unwrap();
    let seeds = seeds.iter().map(|seed| seed.local_addr().unwrap());
    let seeds = seeds.map(|at| HostPort { host: at.ip().to_string(), port: at.port() }).collect();
    Swim::start(socket, config, keys, seeds).unwrap()
}

/// Lets these members run until `done`, and says what they saw: who, and what.
async fn run(members: &mut [&mut Swim], done: impl Fn(&[(usize, Event)]) -> bool) -> Vec<(usize, Event)> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let run = async {
        let all = members.iter_mut().enumerate().map(|(at, member)| {
            let seen = Rc::clone(&seen);
            async move {
                while let Some(event) = member.next().await {
                    seen.borrow_mut().push((at, event));
                }
                std::future::pending::<()>().await;
            }
        });
        futures_util::future::join_all(all).await;
    };
    let looked = async {
        while !done(&seen.borrow()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(PATIENCE, run) => panic!("in vain; seen: {:?}", seen.borrow()),
        () = looked => {}
    }
    seen.take()
}

fn joined(seen: &[(usize, Event)]) -> usize {
    seen.iter().filter(|(_, event)| matches!(event, Event::Joined { .. })).count()
}

fn live(members: &[&mut Swim]) -> Vec<usize> {
    members.iter().map(|member| member.live_count()).collect()
}

#[tokio::test]
async fn members_join_through_a_seed_and_see_deaths_and_leavers() {
    let mut a = start("127.0.0.1:0", "a", &[], |_| {});
    let mut b = start("127.0.0.1:0", "b", &[&a], |_| {});
    let mut c = start("127.0.0.1:0", "c", &[&a], |_| {});
    let mut d = start("127.0.0.1:0", "d", &[&a], |_| {});
    run(&mut [&mut a, &mut b, &mut c, &mut d], |seen| joined(seen) == 12).await;
    assert_eq!(live(&[&mut a, &mut b, &mut c, &mut d]), [4; 4]);
    drop(d);
    let died = |event: &Event| matches!(event, Event::Died { name, .. } if &**name == "d");
    run(&mut [&mut a, &mut b, &mut c], |seen| seen.iter().filter(|(_, event)| died(event)).count() == 3)
        .await;
    c.leave();
    let left = |event: &Event| matches!(event, Event::Left { name, .. } if &**name == "c");
    let seen =
        run(&mut [&mut a, &mut b, &mut c], |seen| seen.iter().filter(|(_, event)| left(event)).count() >= 2)
            .await;
    assert!(!seen.iter().any(|(_, event)| matches!(event, Event::Died { .. })), "{seen:?}");
    while let Ok(Some(_)) = tokio::time::timeout(PATIENCE, c.next()).await {}
    assert!(c.is_gone);
}

#[tokio::test]
async fn members_meet_over_ipv6() {
    if bind("[::1]:0".parse().unwrap()).is_err() {
        return;
    }
    let mut a = start("[::1]:0", "a", &[], |_| {});
    let mut b = start("[::1]:0", "b", &[&a], |_| {});
    run(&mut [&mut a, &mut b], |seen| joined(seen) == 2).await;
    let addrs: Vec<SocketAddr> = a.members().map(|member| member.addr).collect();
    assert!(addrs.contains(&b.local_addr().unwrap()), "{addrs:?}");
}

#[tokio::test]
async fn what_arrived_during_a_stall_counts_before_timers_that_became_due() {
    // Without the core's own help for stalls, so that only the order of input and timers decides.
    let blunt = |config: &mut SwimConfig| {
        config.extensions = Extensions::SWIM;
        config.indirect_probes = 0;
    };
    let mut a = start("127.0.0.1:0", "a", &[], blunt);
    let mut b = start("127.0.0.1:0", "b", &[&a], blunt);
    run(&mut [&mut a, &mut b], |seen| joined(seen) == 2).await;
    for _ in 0..5 {
        // A probes B, B answers, and A is stalled before it reads that, until the probe's time is over.
        let probes = a.stats().probes;
        loop {
            brief(&mut a).await;
            if a.stats().probes > probes {
                break;
            }
            brief(&mut b).await;
        }
        let (acks, failed) = (a.stats().acks, a.stats().probes_failed);
        let received = b.stats().datagrams_received;
        while b.stats().datagrams_received == received {
            brief(&mut b).await;
        }
        std::thread::sleep(Duration::from_millis(250));
        brief(&mut a).await;
        assert_eq!(a.stats().probes_failed, failed, "the answer was there");
        assert!(a.stats().acks > acks);
    }
}

/// Lets a member act for a moment.
async fn brief(member: &mut Swim) {
    let _ = tokio::time::timeout(Duration::from_millis(1), member.next()).await;
}

#[tokio::test]
async fn a_flood_of_noise_does_not_keep_timers_from_running() {
    let mut a = start("127.0.0.1:0", "a", &[], |_| {});
    let mut b = start("127.0.0.1:0", "b", &[&a], |_| {});
    run(&mut [&mut a, &mut b], |seen| joined(seen) == 2).await;
    let noise = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = a.local_addr().unwrap();
    let probes = a.stats().probes;
    let flood = async {
        loop {
            for _ in 0..200 {
                let _ = noise.send_to(&[0x11; 100], to);
            }
            tokio::task::yield_now().await;
        }
    };
    let mut both = [&mut a, &mut b];
    tokio::select! {
        () = flood => {}
        _ = run(&mut both, |seen| {
            assert!(!seen.iter().any(|(_, event)| matches!(event, Event::Died { .. })));
            false
        }) => {}
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert!(a.stats().probes > probes);
    assert!(a.stats().rejected.iter().sum::<u64>() > 1000, "{:?}", a.stats());
}

#[tokio::test]
async fn a_wildcard_address_is_refused() {
    let socket = bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let config = SwimConfig::new("a", socket.local_addr().unwrap());
    let keys = Keyring::new("tests", 1, &[7; 32]).unwrap();
    let refused = Swim::start(socket, config, keys, Vec::new());
    assert!(refused.err().unwrap().to_string().contains("cannot be told to others"));
}

/// Carries datagrams between members and keeps a copy of each: members tell others its address instead of their own.
struct Tap {
    socket: UdpSocket,
    /// The member behind it.
    to: SocketAddr,
}

impl Tap {
    /// Datagrams leave by `out`, so that the receiver sees the sender's tap as their origin.
    fn carry(&self, by: &[(SocketAddr, &UdpSocket)], record: &mut Vec<(SocketAddr, Vec<u8>)>) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            record.push((self.to, buffer[..len].to_vec()));
            let out = by.iter().find(|(member, _)| *member == from).map_or(&self.socket, |(_, tap)| *tap);
            let _ = out.send_to(&buffer[..len], self.to);
        }
    }
}

#[tokio::test]
async fn rule_1_datagrams_recorded_between_running_members_change_nothing_when_they_are_sent_again() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let sockets = NAMES.map(|_| bind("127.0.0.1:0".parse().unwrap()).unwrap());
    let at = [0, 1, 2].map(|n| sockets[n].local_addr().unwrap());
    let taps = at.map(|to| Tap { socket: bind("127.0.0.1:0".parse().unwrap()).unwrap(), to });
    let seeds = taps.each_ref().map(|tap| tap.socket.local_addr().unwrap());
    let seeds = seeds.map(|at| HostPort { host: at.ip().to_string(), port: at.port() });
    let life = |n: usize, socket: UdpSocket, boot_count: u32| {
        let mut config = SwimConfig::new(NAMES[n], taps[n].socket.local_addr().unwrap());
        config.boot_count = boot_count;
        // What is measured is what recordings do, not how fast this machine is.
        config.suspicion_multiplier = 100;
        let keys = Keyring::new("tests", 1, &[7; 32]).unwrap();
        Swim::start(socket, config, keys, seeds.to_vec()).unwrap()
    };
    let mut sockets = sockets.map(Some);
    let mut members: Vec<Swim> = (0..3).map(|n| life(n, sockets[n].take().unwrap(), 1)).collect();
    let mut record = Vec::new();
    // Before any restart, after one of a receiver of many of them, and after one of the seed.
    for restarted in [None, Some(1), Some(0)] {
        if let Some(n) = restarted {
            let old = members.remove(n);
            drop(old);
            members.insert(n, life(n, bind(at[n]).unwrap(), if n == 1 { 2 } else { 3 }));
        }
        let (began, before) = (Clock::now(), record.len());
        loop {
            assert!(
                began.elapsed() < PATIENCE,
                "in vain: {:?}",
                members.iter().map(Swim::live_count).collect::<Vec<_>>()
            );
            for member in &mut members {
                brief(member).await;
            }
            let by: Vec<_> = at.iter().zip(&taps).map(|(at, tap)| (*at, &tap.socket)).collect();
            taps.iter().for_each(|tap| tap.carry(&by, &mut record));
            let alive = |member: &Swim| {
                member.members().filter(|m| m.status == crate::control::swim::Status::Alive).count()
            };
            if members.iter().all(|member| alive(member) == 3) && record.len() > before + 60 {
                break;
            }
        }
        // Nothing is under way any more, and nobody talks: what comes now are recordings.
        let stranger = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        for (n, member) in members.iter_mut().enumerate() {
            // What still waits in the socket is no recording.
            member.take_turn();
            member.events.clear();
            let table = |member: &Swim| -> Vec<_> {
                let all = member.members();
                all.map(|m| (m.name.clone(), m.addr, m.status, m.incarnation, m.metadata.clone())).collect()
            };
            let (before, mut taken) = (table(member), 0);
            let counted = member.stats().datagrams_received;
            for (_, bytes) in &record {
                stranger.send_to(bytes, at[n]).unwrap();
                let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
                let (len, from) = member.socket.receive(&mut buffer).expect("loopback delivers at once");
                let now = member.now();
                member.membership.handle(now, Input::Datagram { from, bytes: &buffer[..len] });
                taken += 1;
                while let Some(output) = member.membership.poll_output() {
                    match output {
                        Output::Send { bytes: answer, .. } => assert!(answer.len() <= bytes.len()),
                        other => panic!("{}: a recording made it say {other:?}", NAMES[n]),
                    }
                }
            }
            assert_eq!(member.stats().datagrams_received - counted, taken);
            assert_eq!(table(member), before, "{}", NAMES[n]);
        }
    }
}
