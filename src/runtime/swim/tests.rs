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
