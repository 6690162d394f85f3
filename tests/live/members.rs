//! Gossip over real sockets: 50 members in one process, and nodes that are killed, stopped and given new keys.
//!
//! Times are printed, not asserted: a slow machine is no failure.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use highwater::config::HostPort;
use highwater::control::swim::{Event, Keyring, Status, SwimConfig};
use highwater::runtime::swim::{Swim, bind};
use serde_json::Value;

use crate::cluster::{Fleet, cluster, highwater, wait_for_leader};
use crate::node::{Home, PATIENCE, http_get, wait_for};

const MEMBERS: usize = 50;

/// What one of the members in this process has seen.
#[derive(Default)]
struct Seen {
    live: BTreeSet<String>,
    died: Vec<String>,
}

type Table = Rc<RefCell<Vec<Seen>>>;

/// Starts members that join through the first of them, each as a task.
fn start(config: impl Fn(SwimConfig) -> SwimConfig) -> (Table, Vec<tokio::task::JoinHandle<()>>) {
    let table: Table = Rc::default();
    let mut seeds = Vec::new();
    let mut tasks = Vec::new();
    for at in 0..MEMBERS {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = socket.local_addr().unwrap();
        let keys = Keyring::new("live", 1, b"a secret of the live tests").unwrap();
        let config = config(SwimConfig::new(&format!("m{at}"), addr));
        let mut member = Swim::start(socket, config, keys, seeds.clone()).unwrap();
        if seeds.is_empty() {
            seeds.push(HostPort { host: "localhost".into(), port: addr.port() });
        }
        table.borrow_mut().push(Seen::default());
        let table = Rc::clone(&table);
        tasks.push(tokio::task::spawn_local(async move {
            while let Some(event) = member.next().await {
                let seen = &mut table.borrow_mut()[at];
                match event {
                    Event::Died { name, .. } => seen.died.push(name.to_string()),
                    Event::Joined { .. } => {
                        let live = member.members().filter(|other| other.status != Status::Dead);
                        seen.live = live.map(|other| other.name.to_string()).collect();
                    }
                    _ => {}
                }
            }
        }));
    }
    (table, tasks)
}

async fn until(what: &str, table: &Table, done: impl Fn(&[Seen]) -> bool) -> Duration {
    let began = Instant::now();
    while !done(&table.borrow()) {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// Joins, idles, and loses one of them.
async fn measure(what: &str, config: impl Fn(SwimConfig) -> SwimConfig) {
    let (table, tasks) = start(config);
    let join =
        until("all to know all", &table, |all| all.iter().all(|seen| seen.live.len() == MEMBERS)).await;
    // Until the news of the joins have been told often enough.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, began) = (processor_time(), Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = (processor_time() - before).as_secs_f64() / began.elapsed().as_secs_f64() / MEMBERS as f64;
    let early: Vec<String> = table.borrow().iter().flat_map(|seen| seen.died.clone()).collect();
    tasks[7].abort();
    let knows = |seen: &Seen| seen.died.iter().any(|name| name == "m7");
    let rest = |all: &[Seen], what: &dyn Fn(&Seen) -> bool| {
        all.iter().enumerate().filter(|(at, _)| *at != 7).filter(|(_, seen)| what(seen)).count()
    };
    let first = until("anyone to see the death", &table, |all| rest(all, &knows) > 0).await;
    let full = first + until("all to see the death", &table, |all| rest(all, &knows) == MEMBERS - 1).await;
    println!(
        "{what}: {MEMBERS} members joined in {join:?}; idle {:.1} us/s of processor time each; a death seen first after \
         {first:?}, by all after {full:?}; held dead wrongly before: {early:?}",
        idle * 1e6
    );
    tasks.iter().for_each(|task| task.abort());
}

#[test]
fn fifty_members_in_one_process_join_idle_and_see_a_death() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        measure("ping_interval_ms: 100", |config| config).await;
        measure("ping_interval_ms: 1000", SwimConfig::with_paper_times).await;
    });
}

fn members(home: &Home) -> Option<Value> {
    let (status, body) = http_get(home.admin, "/members").ok()?;
    (status == 200).then(|| serde_json::from_str(&body).unwrap())
}

/// How a node sees another one.
pub fn status(home: &Home, node: usize) -> Option<String> {
    let view = members(home)?;
    let all = view["members"].as_array().into_iter().flatten();
    let of = all.clone().find(|member| member["name"] == node.to_string().as_str());
    of.map(|member| member["status"].as_str().unwrap().to_owned())
}

pub fn is_fenced(home: &Home, node: usize) -> Option<bool> {
    let view = cluster(home)?;
    let mut all = view["nodes"].as_array().into_iter().flatten();
    all.find(|info| info["id"] == node).and_then(|info| info["fenced"].as_bool())
}

/// Waits until every one of these nodes sees the nodes 1 to `count` alive, and none of them fenced.
fn wait_for_members(homes: &[&Home], count: usize) {
    wait_for("all members alive everywhere", || {
        let sees = |home: &&Home| {
            (1..=count).all(|node| {
                status(home, node).as_deref() == Some("alive") && is_fenced(home, node) == Some(false)
            })
        };
        homes.iter().all(sees).then_some(())
    });
}

#[test]
fn a_killed_node_is_seen_fenced_and_back_after_its_restart() {
    let fleet = Fleet::new("gossip", 3);
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    for round in 0..4 {
        let leader = usize::try_from(wait_for_leader(&homes)).unwrap();
        wait_for_members(&homes, 3);
        // By turns a follower and the leader itself.
        let victim = if round % 2 == 0 { leader % 3 + 1 } else { leader };
        nodes[victim - 1].take().unwrap().kill();
        let killed = Instant::now();
        let rest: Vec<&Home> = (1..=3).filter(|id| *id != victim).map(|id| homes[id - 1]).collect();
        wait_for("gossip to see the death", || {
            rest.iter().any(|home| status(home, victim).as_deref() == Some("dead")).then_some(())
        });
        let first = killed.elapsed();
        wait_for("both to see the death", || {
            rest.iter().all(|home| status(home, victim).as_deref() == Some("dead")).then_some(())
        });
        let both = killed.elapsed();
        wait_for("the node to be fenced", || {
            rest.iter().any(|home| is_fenced(home, victim) == Some(true)).then_some(())
        });
        println!(
            "kill -9 of node {victim} (node {leader} led): dead by gossip after {first:?} and {both:?}, fenced after {:?}",
            killed.elapsed()
        );
        nodes[victim - 1] = Some(homes[victim - 1].spawn());
    }
    wait_for_leader(&homes);
    wait_for_members(&homes, 3);
    // A clean end is told by the node itself.
    let leader = usize::try_from(wait_for_leader(&homes)).unwrap();
    let leaver = leader % 3 + 1;
    let began = Instant::now();
    nodes[leaver - 1].as_ref().unwrap().terminate();
    wait_for("the leaver to be known as one", || {
        (status(homes[leader - 1], leaver).as_deref() == Some("left")).then_some(())
    });
    println!("a clean end was known after {:?}", began.elapsed());
    wait_for("the leaver to be fenced", || is_fenced(homes[leader - 1], leaver)?.then_some(()));
    assert!(nodes[leaver - 1].as_mut().unwrap().wait_exit().success());
}

#[test]
fn a_node_that_was_stopped_for_five_seconds_is_back_by_itself() {
    let fleet = Fleet::new("stopped", 3);
    let nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    let leader = usize::try_from(wait_for_leader(&homes)).unwrap();
    wait_for_members(&homes, 3);
    let at = leader % 3;
    let node = nodes[at].as_ref().unwrap();
    let before = members(homes[at]).unwrap();
    node.signal(rustix::process::Signal::STOP);
    std::thread::sleep(Duration::from_secs(5));
    let meanwhile = status(homes[leader - 1], at + 1);
    node.signal(rustix::process::Signal::CONT);
    let began = Instant::now();
    wait_for_members(&homes, 3);
    let after = members(homes[at]).unwrap();
    println!(
        "stopped for 5 s, then {meanwhile:?} to the leader; alive and serving everywhere {:?} after it went on; it objected \
         {} times, and held {} others dead meanwhile",
        began.elapsed(),
        after["refutations"].as_u64().unwrap() - before["refutations"].as_u64().unwrap(),
        after["deaths"].as_u64().unwrap() - before["deaths"].as_u64().unwrap(),
    );
    assert_eq!(before["members"][0]["life"], after["members"][0]["life"], "the same life");
}

#[test]
fn keys_change_on_running_nodes_one_after_the_other() {
    const NEW: &str = "another secret of the live tests";
    let fleet = Fleet::new("keys", 3);
    let nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    wait_for_members(&homes, 3);
    let file = homes[0].root.join("new-secret");
    fs::write(&file, format!("{NEW}\n")).unwrap();
    let keys = |home: &Home| -> Vec<(u64, bool, u64)> {
        let view = members(home).unwrap();
        let of = |key: &Value| {
            (
                key["key"].as_u64().unwrap(),
                key["in_use"].as_bool().unwrap(),
                key["received"].as_u64().unwrap(),
            )
        };
        view["keys"].as_array().unwrap().iter().map(of).collect()
    };
    let run = |home: &Home, what: &[&str]| {
        let admin = home.admin.to_string();
        let (ok, said) = highwater(&[&["members", "keys"], what, &["--admin", &admin]].concat());
        assert!(!said.contains(NEW), "{said}");
        (ok, said)
    };
    let [(old, true, _)] = keys(homes[0])[..] else { panic!("one key at first: {:?}", keys(homes[0])) };
    for home in &homes {
        let (ok, said) = run(home, &["install", file.to_str().unwrap()]);
        assert!(ok, "{said}");
    }
    let new = keys(homes[0]).iter().find(|key| key.0 != old).unwrap().0;
    for home in &homes {
        let (ok, said) = run(home, &["use", &new.to_string()]);
        assert!(ok, "{said}");
    }
    let (ok, said) = run(homes[0], &["remove", &new.to_string()]);
    assert!(!ok && said.contains("in use"), "{said}");
    for home in &homes {
        wait_for("traffic under the new key", || {
            let all = keys(home);
            (all[0].0 == new && all[0].2 > 20).then_some(())
        });
        let (ok, said) = run(home, &["remove", &old.to_string()]);
        assert!(ok, "{said}");
        assert_eq!(keys(home).len(), 1);
    }
    let (_, listed) = run(homes[1], &["list"]);
    assert!(listed.contains("IN USE") && listed.contains(&new.to_string()), "{listed}");
    let deaths = |home: &&Home| members(home).unwrap()["deaths"].as_u64().unwrap();
    println!("deaths while keys were changed: {:?}", homes.iter().map(deaths).collect::<Vec<_>>());
    wait_for_members(&homes, 3);
    let admin = homes[2].admin.to_string();
    let (ok, said) = highwater(&["members", "--admin", &admin]);
    assert!(ok && said.lines().count() == 4 && said.matches("alive").count() == 3, "{said}");
    for node in nodes.iter().flatten() {
        assert!(!node.log_text().contains(NEW));
    }
    // A node that starts again has the key of the cluster's secret alone.
    let (status, body) = http_get(homes[0].admin, "/metrics").unwrap();
    assert!(status == 200 && body.contains("highwater_members{status=\"alive\"} 3"), "{body}");
}

#[test]
fn keys_that_were_changed_at_run_time_survive_a_restart() {
    const NEW: &str = "a secret that came while the nodes ran";
    let fleet = Fleet::new("kept-keys", 3);
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    wait_for_members(&homes, 3);
    let file = homes[0].root.join("new-secret");
    fs::write(&file, format!("{NEW}\n")).unwrap();
    let keys = |home: &Home| -> Vec<u64> {
        let view = members(home).unwrap();
        view["keys"].as_array().unwrap().iter().map(|key| key["key"].as_u64().unwrap()).collect()
    };
    let run = |home: &Home, what: &[&str]| {
        let (ok, said) =
            highwater(&[&["members", "keys"], what, &["--admin", &home.admin.to_string()]].concat());
        assert!(ok, "{said}");
    };
    let old = keys(homes[0])[0];
    homes.iter().for_each(|home| run(home, &["install", file.to_str().unwrap()]));
    let new = *keys(homes[0]).iter().find(|key| **key != old).unwrap();
    homes.iter().for_each(|home| run(home, &["use", &new.to_string()]));
    homes.iter().for_each(|home| run(home, &["remove", &old.to_string()]));
    // Killed, and stopped in order: either way the next life has the key under which the others talk.
    for (at, kill) in [(1, true), (2, false)] {
        let mut node = nodes[at].take().unwrap();
        if kill {
            node.kill();
        } else {
            node.terminate();
            assert!(node.wait_exit().success());
        }
        nodes[at] = Some(homes[at].spawn());
        let began = Instant::now();
        wait_for_members(&homes, 3);
        println!("alive everywhere {:?} after its start, under the key that it was given", began.elapsed());
        assert_eq!(keys(homes[at]), [new]);
    }
}

#[test]
fn a_taken_port_and_a_wildcard_are_refused_in_clear_words() {
    let fleet = Fleet::new("taken", 1);
    let taken = std::net::UdpSocket::bind(("127.0.0.1", fleet.peers[0])).unwrap();
    let (status, said) = fleet.homes[0].start_refused();
    assert!(!status.success() && said.contains("cluster.swim.port"), "{said}");
    drop(taken);
    let told = Fleet::new("told", 1);
    let home = told.home(1, told.peers[0]).set("cluster.swim.addr_advertised", "0.0.0.0:9093");
    let (status, said) = home.start_refused();
    assert!(!status.success() && said.contains("means nothing on other hosts"), "{said}");
}

/// As many datagrams as members at an interval of a second exchange, and nothing else: what the machine itself takes.
#[test]
fn what_as_many_bare_datagrams_cost() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut sockets = Vec::new();
        for _ in 0..MEMBERS {
            sockets.push(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        }
        let all: Rc<Vec<_>> = Rc::new(sockets.iter().map(|socket| socket.local_addr().unwrap()).collect());
        let answered = Rc::new(std::cell::Cell::new(0));
        for (at, socket) in sockets.into_iter().enumerate() {
            let (all, answered) = (Rc::clone(&all), Rc::clone(&answered));
            tokio::task::spawn_local(async move {
                let mut probes = tokio::time::interval(Duration::from_secs(1));
                // Members probe at times of their own.
                tokio::time::sleep(Duration::from_millis(20 * at as u64)).await;
                probes.reset();
                let (mut round, mut buffer) = (at, [0; 64]);
                loop {
                    tokio::select! {
                        _ = probes.tick() => {
                            round += 1;
                            let other = (at + 1 + round % (MEMBERS - 1)) % MEMBERS;
                            socket.send_to(&[1; 51], all[other]).await.unwrap();
                        }
                        got = socket.recv_from(&mut buffer) => match got.unwrap() {
                            (51, from) => drop(socket.send_to(&buffer[..50], from).await.unwrap()),
                            _ => answered.set(answered.get() + 1),
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, began) = (processor_time(), Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let each = (processor_time() - before).as_secs_f64() / began.elapsed().as_secs_f64() / MEMBERS as f64;
        println!(
            "bare datagrams, one a second and its answer: {:.1} us/s of processor time each",
            each * 1e6
        );
        assert!(answered.get() > MEMBERS, "they were exchanged");
    });
}
