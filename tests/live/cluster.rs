//! Clusters of real processes on loopback: forming once, electing after kill -9, joining, removing, refusing.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Home, Node, free_port, free_ports, http_get, wait_for, without_own_settings};

const REFUSED: i32 = 1;

/// The homes of nodes 1 to N, with the same seeds and secret.
pub struct Fleet {
    pub homes: Vec<Home>,
    pub peers: Vec<u16>,
    seeds: usize,
    name: String,
}

impl Fleet {
    /// `seeds` nodes that found a cluster.
    pub fn new(name: &str, seeds: usize) -> Self {
        let peers: Vec<u16> = (0..seeds).map(|_| free_port()).collect();
        let mut fleet = Self { homes: Vec::new(), peers, seeds, name: name.to_owned() };
        for id in 1..=seeds {
            fleet.add(id);
        }
        fleet
    }

    /// The home of one more node.
    fn add(&mut self, id: usize) -> usize {
        if self.peers.len() <= self.homes.len() {
            self.peers.push(free_port());
        }
        let home = self.home(id, self.peers[self.homes.len()]);
        self.homes.push(home);
        self.homes.len() - 1
    }

    pub fn home(&self, id: usize, peer: u16) -> Home {
        let seeds: Vec<String> =
            self.peers[..self.seeds].iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Home::new(&self.name)
            .set("profile", "dev")
            .set("cluster.mode", "cluster")
            .set("cluster.node_id", &id.to_string())
            .set("cluster.cluster_addr", &format!("127.0.0.1:{peer}"))
            .set("cluster.seeds", &format!("[{}]", seeds.join(",")))
            .set("security.cluster_secret", "a secret of the live tests")
    }

    pub fn start(&self) -> Vec<Option<Node>> {
        self.homes.iter().map(|home| Some(home.spawn())).collect()
    }
}

/// What a node says of the cluster; `None` while it says nothing.
pub fn cluster(home: &Home) -> Option<Value> {
    let (status, body) = http_get(home.admin, "/cluster").ok()?;
    (status == 200).then(|| serde_json::from_str(&body).unwrap())
}

/// The leader that this node knows of, and its term.
pub fn leader(home: &Home) -> Option<(u64, u64)> {
    let view = cluster(home)?;
    Some((view["leader"].as_u64()?, view["term"].as_u64()?))
}

/// Waits until all of these nodes are ready and name the same leader; its id.
pub fn wait_for_leader(homes: &[&Home]) -> u64 {
    wait_for("one leader that all nodes name", || {
        let named: BTreeSet<(u64, u64)> = homes.iter().filter_map(|home| leader(home)).collect();
        let ready =
            homes.iter().filter(|home| matches!(http_get(home.admin, "/readyz"), Ok((200, _)))).count();
        (named.len() == 1 && ready == homes.len()).then(|| named.first().unwrap().0)
    })
}

fn ids(view: &Value, of: &str, is: impl Fn(&Value) -> bool) -> BTreeSet<u64> {
    let all = view[of].as_array().into_iter().flatten();
    all.filter(|item| is(item)).filter_map(|item| item["id"].as_u64()).collect()
}

fn voters(home: &Home) -> BTreeSet<u64> {
    cluster(home).map(|view| ids(&view, "members", |member| member["votes"] == true)).unwrap_or_default()
}

/// Runs the binary; whether it succeeded, and what it said.
pub fn highwater(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

fn create_topic(home: &Home, name: &str) -> (bool, String) {
    highwater(&["topic", "create", name, "--partitions", "3", "--bootstrap", &home.client.to_string()])
}

pub fn topics(home: &Home) -> String {
    highwater(&["topic", "list", "--bootstrap", &home.client.to_string()]).1
}

#[test]
fn three_nodes_found_one_cluster_and_topics_made_on_any_are_seen_on_all() {
    let fleet = Fleet::new("cluster", 3);
    let nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    let clusters: BTreeSet<String> =
        homes.iter().map(|home| cluster(home).unwrap()["cluster_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(clusters.len(), 1, "{clusters:?}");
    for (number, home) in homes.iter().enumerate() {
        assert_eq!(voters(home), BTreeSet::from([1, 2, 3]));
        let (created, said) = create_topic(home, &format!("made-on-{number}"));
        assert!(created, "{said}");
    }
    for home in &homes {
        wait_for("all topics on every node", || {
            let list = topics(home);
            (0..3).all(|number| list.contains(&format!("made-on-{number}"))).then_some(())
        });
    }
    let (_, said) = create_topic(homes[1], "made-on-0");
    assert!(said.contains("exists"), "{said}");
    // A clean end of all, and a start again: the same cluster.
    for node in nodes.into_iter().flatten() {
        assert!(node.stop().success());
    }
    let _again = fleet.start();
    wait_for_leader(&homes);
    let again = cluster(homes[2]).unwrap();
    assert_eq!(again["cluster_id"].as_str(), clusters.first().map(String::as_str));
    assert_eq!(again["topics"], 3);
}

#[test]
fn a_late_seed_is_waited_for_and_named() {
    let fleet = Fleet::new("late", 3);
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    let mut early = [homes[0].spawn(), homes[1].spawn()];
    let missing = format!("127.0.0.1:{}", fleet.peers[2]);
    for (home, node) in homes.iter().zip(&early) {
        wait_for("the missing seed to be named", || {
            let waits_for = cluster(home)?["forming"].as_str()?.to_owned();
            (waits_for.contains("2 of 3 seeds are ready") && waits_for.contains(&missing)).then_some(())
        });
        wait_for("the log to say so", || node.log_text().contains(&missing).then_some(()));
        assert!(matches!(http_get(home.admin, "/readyz"), Ok((503, _))));
    }
    let (ok, said) = highwater(&["cluster", "status", "--admin", &homes[0].admin.to_string()]);
    assert!(ok && said.contains("in no cluster yet: 2 of 3 seeds"), "{said}");
    // A node that waits still ends cleanly.
    early[0].terminate();
    assert!(early[0].wait_exit().success());
    let _first = homes[0].spawn();
    let _third = homes[2].spawn();
    wait_for_leader(&homes);
}

#[test]
fn a_new_leader_stands_after_each_kill_and_nothing_is_lost() {
    const KILLS: usize = 5;
    let fleet = Fleet::new("kills", 3);
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    let mut made = Vec::new();
    for kill in 0..KILLS {
        let led = wait_for_leader(&homes);
        let at = usize::try_from(led).unwrap() - 1;
        let name = format!("before-kill-{kill}");
        let (created, said) = create_topic(homes[at], &name);
        assert!(created, "{said}");
        made.push(name);
        nodes[at].take().unwrap().kill();
        let killed = Instant::now();
        let others: Vec<&Home> = (0..3).filter(|other| *other != at).map(|other| homes[other]).collect();
        let next = wait_for("another leader", || {
            let named: BTreeSet<u64> =
                others.iter().filter_map(|home| leader(home)).map(|(id, _)| id).collect();
            (named.len() == 1).then(|| *named.first().unwrap()).filter(|next| *next != led)
        });
        println!("kill {kill}: node {next} leads {:?} after node {led} was killed", killed.elapsed());
        let name = format!("after-kill-{kill}");
        wait_for("a topic on the rest of the cluster", || {
            let (created, said) = create_topic(others[0], &name);
            (created || said.contains("exists")).then_some(())
        });
        made.push(name);
        nodes[at] = Some(homes[at].spawn());
    }
    wait_for_leader(&homes);
    for home in &homes {
        wait_for("every topic on every node", || {
            let list = topics(home);
            made.iter().all(|name| list.contains(name.as_str())).then_some(())
        });
        assert_eq!(cluster(home).unwrap()["topics"], made.len());
    }
}

#[test]
fn a_minority_refuses_changes_and_goes_on_by_itself_when_others_are_back() {
    let fleet = Fleet::new("minority", 3);
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    for other in [1, 2] {
        nodes[other].take().unwrap().kill();
    }
    wait_for("a refusal that can be tried again", || {
        let (created, said) = create_topic(homes[0], "alone");
        assert!(!created, "a single node of three has made a topic: {said}");
        (said.contains("try again") || said.contains("not the controller")).then_some(())
    });
    nodes[1] = Some(homes[1].spawn());
    wait_for("the topic with a majority", || {
        let (created, said) = create_topic(homes[0], "together");
        (created || said.contains("exists")).then_some(())
    });
}

#[test]
fn nodes_join_take_the_place_of_others_and_leave() {
    let mut fleet = Fleet::new("change", 3);
    let mut nodes = fleet.start();
    let fourth = fleet.add(4);
    nodes.push(Some(fleet.homes[fourth].spawn()));
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    wait_for("the fourth as a member without a vote", || {
        let view = cluster(homes[0])?;
        let members = ids(&view, "members", |_| true);
        (members.len() == 4 && ids(&view, "nodes", |node| node["fenced"] == false).len() == 4).then_some(())
    });
    assert_eq!(voters(homes[3]), BTreeSet::from([1, 2, 3]));

    let admin = homes[3].admin.to_string();
    let (ok, said) = highwater(&["cluster", "transfer-leader", "--to", "2", "--admin", &admin]);
    assert!(ok && said.contains("node 2 leads"), "{said}");
    wait_for("node 2 to lead everywhere", || (wait_for_leader(&homes) == 2).then_some(()));
    let (ok, said) = highwater(&["cluster", "transfer-leader", "--to", "4", "--admin", &admin]);
    assert!(!ok && said.contains("does not vote"), "{said}");

    // The leader itself is removed, through a node that does not lead: the fourth takes its vote.
    let (ok, said) = highwater(&["cluster", "remove", "2", "--admin", &admin, "--timeout", "60"]);
    assert!(ok && said.contains("node 2 is out of the cluster"), "{said}");
    let mut second = nodes[1].take().unwrap();
    assert_eq!(second.wait_exit().code(), Some(REFUSED), "{}", second.log_text());
    assert!(second.log_text().contains("removed from the cluster"), "{}", second.log_text());
    let rest: Vec<&Home> = [0, 2, 3].map(|at| homes[at]).into();
    wait_for("three voters again", || (voters(rest[0]) == BTreeSet::from([1, 3, 4])).then_some(()));
    let (created, said) = create_topic(rest[2], "afterwards");
    assert!(created, "{said}");
    let (ok, said) = highwater(&["cluster", "remove", "9", "--admin", &admin]);
    assert!(!ok && said.contains("not in the cluster"), "{said}");
    // With its old disk it is told that it was removed.
    let (status, said) = homes[1].start_refused();
    assert_eq!(status.code(), Some(REFUSED), "{said}");
    assert!(said.contains("was removed from the cluster"), "{said}");
}

#[test]
fn wiped_disks_wrong_secrets_and_taken_ids_are_refused() {
    let fleet = Fleet::new("refused", 3);
    let mut nodes = fleet.start();
    let homes: Vec<&Home> = fleet.homes.iter().collect();
    wait_for_leader(&homes);
    nodes[2].take().unwrap().kill();
    fs::remove_dir_all(&homes[2].data).unwrap();
    let (status, said) = homes[2].start_refused();
    assert_eq!(status.code(), Some(REFUSED), "{said}");
    assert!(said.contains("another disk") && said.contains("highwater cluster remove 3"), "{said}");

    let twin = fleet.home(2, free_port());
    let (status, said) = twin.start_refused();
    assert_eq!(status.code(), Some(REFUSED), "{said}");
    assert!(said.contains("under the id of this node, 2") || said.contains("another disk"), "{said}");

    let stranger = fleet.home(7, free_port()).set("security.cluster_secret", "some other secret of 16");
    let mut node = stranger.spawn();
    wait_for("the wrong secret to be named", || {
        let waits_for = cluster(&stranger)?["forming"].as_str()?.to_owned();
        waits_for.contains("secret").then_some(())
    });
    assert!(node.is_running(), "it waits: the secret of the others may be the wrong one");
    node.terminate();
    node.wait_exit();
    assert_eq!(voters(homes[0]), BTreeSet::from([1, 2, 3]), "nobody has taken part");
}

#[test]
fn a_cluster_for_development_runs_from_one_command() {
    let folder =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("live-dev-{}", std::process::id()));
    // Three nodes with three ports each, ten apart.
    let first = free_ports(23);
    let log = folder.join("log");
    fs::create_dir_all(&folder).unwrap();
    let file = fs::File::create(&log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
    command.args(["dev", "cluster", "--port", &first.to_string(), "--data-dir"]).arg(folder.join("data"));
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    without_own_settings(&mut command);
    let mut child = command.spawn().unwrap();
    let admin = |node: u16| std::net::SocketAddr::from(([127, 0, 0, 1], first + node * 10 + 2));
    let ready = |node: u16| matches!(http_get(admin(node), "/readyz"), Ok((200, _)));
    wait_for("three ready nodes", || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(&log).unwrap_or_default());
        (0..3).all(ready).then_some(())
    });
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains(&format!("node 3: Kafka clients 127.0.0.1:{}", first + 20)), "{text}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", fs::read_to_string(&log).unwrap());
    wait_for("all nodes to be gone", || {
        (0..3).all(|node| http_get(admin(node), "/readyz").is_err()).then_some(())
    });
    std::thread::sleep(Duration::from_millis(10));
    fs::remove_dir_all(&folder).unwrap();
}
