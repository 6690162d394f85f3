//! Clusters whose network is cut: packets vanish between real processes, each in a network namespace of its own.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::{CreateTopicsRequest, IncrementalAlterConfigsRequest};
use kafka_protocol::protocol::StrBytes;

use crate::cluster::{cluster, leader, topics, wait_for_leader};
use crate::network::Network;
use crate::node::{Home, Node, http_get, wait_for};
use crate::wire::{Conn, NONE, topic_name};

/// Errors of Kafka that clients answer by asking again.
const REQUEST_TIMED_OUT: i16 = 7;
const NOT_CONTROLLER: i16 = 41;
const TOPIC_ALREADY_EXISTS: i16 = 36;

/// Entries beyond which a node that was away gets a snapshot: it is built every 10,000, and 5,000 before it are kept.
const ENTRIES_AWAY: u64 = 20_000;

/// Three nodes, each behind a link of its own.
struct Fleet {
    // Nodes end before their homes are removed, and those before the network.
    nodes: Vec<Node>,
    homes: Vec<Home>,
    network: Network,
}

impl Fleet {
    fn start(name: &str) -> Option<Self> {
        let network = Network::try_new(3)?;
        let homes = homes(&network, name);
        let nodes = (1..).zip(&homes).map(|(node, home)| network.inside(node, || home.spawn())).collect();
        let fleet = Self { nodes, homes, network };
        wait_for_leader(&fleet.all());
        Some(fleet)
    }

    fn all(&self) -> Vec<&Home> {
        self.homes.iter().collect()
    }

    fn home(&self, node: usize) -> &Home {
        &self.homes[node - 1]
    }

    fn client(&self, node: usize) -> SocketAddr {
        self.home(node).client
    }

    /// Who leads, and the two others.
    fn roles(&self) -> (usize, [usize; 2]) {
        let leader = usize::try_from(wait_for_leader(&self.all())).unwrap();
        let others: Vec<usize> = (1..=3).filter(|node| *node != leader).collect();
        (leader, [others[0], others[1]])
    }

    fn term(&self, node: usize) -> u64 {
        leader(self.home(node)).expect("it knows a leader").1
    }

    fn revision(&self, node: usize) -> Option<u64> {
        cluster(self.home(node))?["revision"].as_u64()
    }

    fn metric(&self, node: usize, name: &str) -> u64 {
        let (_, text) = http_get(self.home(node).admin, "/metrics").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    /// Until the topic is made on this node; how long that took.
    fn make(&self, node: usize, name: &str) -> Duration {
        let began = Instant::now();
        wait_for("a topic to be made", || {
            let answer = try_create(self.client(node), name);
            assert!(
                [NONE, TOPIC_ALREADY_EXISTS, REQUEST_TIMED_OUT, NOT_CONTROLLER].contains(&answer),
                "error {answer} is none that clients try again after"
            );
            [NONE, TOPIC_ALREADY_EXISTS].contains(&answer).then_some(())
        });
        began.elapsed()
    }

    /// Until all nodes have heard of the same changes and of all these topics.
    fn wait_for_agreement(&self, made: &[&str]) {
        wait_for("one revision on all nodes", || {
            let revisions: BTreeSet<Option<u64>> = (1..=3).map(|node| self.revision(node)).collect();
            (revisions.len() == 1 && !revisions.contains(&None)).then_some(())
        });
        for home in &self.homes {
            let list = topics(home);
            made.iter().for_each(|topic| assert!(list.contains(topic), "{topic} is not in: {list}"));
        }
    }
}

/// The homes of three nodes, each at its address in the network.
pub fn homes(network: &Network, name: &str) -> Vec<Home> {
    const PEERS: u16 = 9093;
    let address = |node: usize, port: u16| SocketAddr::from((network.address(node), port));
    let seeds = (1..=3).map(|node| address(node, PEERS).to_string()).collect::<Vec<_>>().join(",");
    (1..=3)
        .map(|node| {
            let mut home = Home::new(name)
                .set("profile", "dev")
                .set("cluster.mode", "cluster")
                .set("cluster.node_id", &node.to_string())
                .set("cluster.cluster_addr", &address(node, PEERS).to_string())
                .set("cluster.seeds", &format!("[{seeds}]"))
                .set("security.cluster_secret", "a secret of the live tests");
            (home.client, home.admin) = (address(node, 9092), address(node, 9094));
            home
        })
        .collect()
}

/// What a node answers to CreateTopics.
fn try_create(node: SocketAddr, name: &str) -> i16 {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(2_000);
    Conn::open(node).unwrap().call(5, &request).unwrap().topics[0].error_code
}

/// A change of a topic's setting to a value that it did not have.
fn change(topic: &str, value: u64) -> IncrementalAlterConfigsRequest {
    let config = AlterableConfig::default()
        .with_name(StrBytes::from_static_str("retention.ms"))
        .with_value(Some(StrBytes::from_string((1_000_000 + value).to_string())));
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(StrBytes::from_string(topic.to_owned()))
        .with_configs(vec![config]);
    IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
}

/// Straight to the stream: what a passing test prints is not shown, and times are worth knowing.
fn tell(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

#[test]
fn a_leader_that_is_cut_off_refuses_changes_while_the_others_go_on() {
    let Some(mut fleet) = Fleet::start("minority-cut") else { return };
    let (old, [one, other]) = fleet.roles();
    let term = fleet.term(old);
    fleet.network.cut(old, one);
    fleet.network.cut(old, other);
    let took = fleet.make(one, "by-the-majority");
    tell(&format!("the majority made a topic {took:?} after its leader was cut off"));
    assert!(fleet.term(one) > term);
    let mut refused = Vec::new();
    for attempt in 0.. {
        if refused.len() == 3 {
            break;
        }
        let name = format!("alone-{attempt}");
        match try_create(fleet.client(old), &name) {
            NOT_CONTROLLER => refused.push(name),
            // It was taken in before the node knew that it was alone, and may come about later.
            REQUEST_TIMED_OUT => {}
            answer => panic!("a node that is alone answered {answer}"),
        }
    }
    fleet.network.heal();
    let took = fleet.make(old, "by-the-old-leader");
    tell(&format!("the old leader made a topic {took:?} after it was healed"));
    wait_for_leader(&fleet.all());
    fleet.wait_for_agreement(&["by-the-majority", "by-the-old-leader"]);
    let list = topics(fleet.home(one));
    refused.iter().for_each(|name| assert!(!list.contains(name.as_str()), "{name} was refused: {list}"));
}

#[test]
fn a_node_that_was_away_for_long_catches_up_by_a_snapshot_and_disturbs_nobody() {
    let Some(mut fleet) = Fleet::start("away") else { return };
    let entries = std::env::var("HIGHWATER_ENTRIES").map_or(ENTRIES_AWAY, |n| n.parse().unwrap());
    let (led, [one, away]) = fleet.roles();
    for topic in ["first", "second"] {
        fleet.make(led, topic);
    }
    fleet.wait_for_agreement(&["first", "second"]);
    let term = fleet.term(led);
    let before = fleet.revision(away).unwrap();
    fleet.network.cut(away, led);
    fleet.network.cut(away, one);
    // Each request is an entry of its own: a connection has one at a time.
    let mut conns = [(led, "first"), (one, "second")]
        .map(|(node, topic)| (Conn::open(fleet.client(node)).unwrap(), topic));
    let began = Instant::now();
    for value in 0..entries / 2 {
        for (conn, topic) in &mut conns {
            conn.send(0, &change(topic, value)).unwrap();
        }
        for (conn, _) in &mut conns {
            let answer = conn.receive::<IncrementalAlterConfigsRequest>(0).unwrap();
            assert_eq!(answer.responses[0].error_code, NONE, "{:?}", answer.responses[0].error_message);
        }
    }
    tell(&format!("{entries} entries took {:?}", began.elapsed()));
    assert!(fleet.revision(led).unwrap() >= before + entries);
    assert_eq!(fleet.revision(away), Some(before));
    let installed = "highwater_raft_snapshots_installed_total";
    assert_eq!(fleet.metric(away, installed), 0);
    let memory = fleet.nodes[led - 1].memory();
    fleet.network.heal();
    let began = Instant::now();
    wait_for("the node to catch up", || (fleet.revision(away).unwrap() >= before + entries).then_some(()));
    tell(&format!(
        "caught up {:?} after it was healed; the leader's memory before: {} MiB",
        began.elapsed(),
        memory >> 20
    ));
    assert!(fleet.metric(away, installed) >= 1, "by a snapshot, since its entries are gone");
    fleet.wait_for_agreement(&["first", "second"]);
    assert_eq!(fleet.term(led), term, "who comes back does not depose the leader");
    fleet.make(away, "afterwards");
}

#[test]
fn a_leader_that_reaches_only_one_follower_does_not_stall_the_cluster() {
    let Some(mut fleet) = Fleet::start("partial") else { return };
    let (led, [near, far]) = fleet.roles();
    let term = fleet.term(led);
    fleet.network.cut(led, far);
    let (until, mut slowest, mut number) = (Instant::now() + Duration::from_secs(12), Duration::ZERO, 0);
    while Instant::now() < until {
        for node in [led, near] {
            number += 1;
            slowest = slowest.max(fleet.make(node, &format!("topic-{number}")));
        }
        sleep(Duration::from_millis(20));
    }
    tell(&format!("{number} topics were made meanwhile, the slowest in {slowest:?}"));
    // Whoever is not reached may be voted for once, and not again and again.
    let later = fleet.term(near);
    assert!(later <= term + 2, "the leader was deposed again and again: terms {term} to {later}");
    let answer = try_create(fleet.client(far), "by-the-far-one");
    assert!([NONE, REQUEST_TIMED_OUT, NOT_CONTROLLER].contains(&answer), "{answer}");
    fleet.network.heal();
    fleet.make(far, "healed");
    fleet.wait_for_agreement(&["topic-1", "healed"]);
}

#[test]
fn a_leader_that_hears_nobody_or_is_heard_by_nobody_is_replaced() {
    let Some(mut fleet) = Fleet::start("one-way") else { return };
    for hears in [false, true] {
        let (led, others) = fleet.roles();
        let term = fleet.term(led);
        for other in others {
            match hears {
                true => fleet.network.drop_between(led, other),
                false => fleet.network.drop_between(other, led),
            }
        }
        let name = if hears { "mute" } else { "deaf" };
        let took = fleet.make(others[0], name);
        tell(&format!("a topic was made {took:?} after the leader became {name}"));
        assert!(fleet.term(others[0]) > term);
        fleet.network.heal();
        wait_for_leader(&fleet.all());
        fleet.wait_for_agreement(&[name]);
    }
}

#[test]
fn connections_whose_packets_vanish_are_replaced() {
    let Some(mut fleet) = Fleet::start("vanish") else { return };
    let (led, [near, far]) = fleet.roles();
    // The leader and one follower lose each other, and could talk over a new connection at once.
    assert!(fleet.network.cut_connections(led, far) > 0);
    let began = Instant::now();
    fleet.make(near, "behind-its-back");
    wait_for("the follower to hear of it", || {
        topics(fleet.home(far)).contains("behind-its-back").then_some(())
    });
    tell(&format!("heard of it over another connection after {:?}", began.elapsed()));
    // And the same with both, which deposes the leader unless it is quick.
    let (led, others) = fleet.roles();
    let lost: usize = others.iter().map(|other| fleet.network.cut_connections(led, *other)).sum();
    assert!(lost > 0);
    let took = fleet.make(led, "by-whom-nobody-heard");
    tell(&format!("a topic was made {took:?} after all connections of the leader were lost"));
    fleet.wait_for_agreement(&["behind-its-back", "by-whom-nobody-heard"]);
    fleet.network.heal();
    wait_for_leader(&fleet.all());
}

/// How a node sees the members by gossip: by their numbers.
fn statuses(home: &Home) -> Vec<(usize, String)> {
    let Ok((200, body)) = http_get(home.admin, "/members") else { return Vec::new() };
    let view: serde_json::Value = serde_json::from_str(&body).unwrap();
    let word = |of: &serde_json::Value| of.as_str().unwrap().to_owned();
    let members = view["members"].as_array().into_iter().flatten();
    let mut all: Vec<_> =
        members.map(|member| (word(&member["name"]).parse().unwrap(), word(&member["status"]))).collect();
    all.sort();
    all
}

fn see(home: &Home, of: &[usize], what: &str) -> bool {
    let all = statuses(home);
    of.iter().all(|of| all.iter().any(|(node, status)| node == of && status == what))
}

fn is_fenced(home: &Home, node: usize) -> Option<bool> {
    let view = cluster(home)?;
    let mut all = view["nodes"].as_array().into_iter().flatten();
    all.find(|info| info["id"] == node).and_then(|info| info["fenced"].as_bool())
}

#[test]
fn members_that_held_each_other_for_dead_meet_again_when_the_cut_heals() {
    let Some(mut fleet) = Fleet::start("gossip-cut") else { return };
    let all_alive = |fleet: &Fleet| {
        let good = |home: &Home| {
            see(home, &[1, 2, 3], "alive") && (1..=3).all(|node| is_fenced(home, node) == Some(false))
        };
        fleet.homes.iter().all(good).then_some(())
    };
    wait_for("all to see all", || all_alive(&fleet));
    // First a follower, then the leader.
    for round in 0..2 {
        let (led, [one, other]) = fleet.roles();
        let (away, rest) = if round == 0 { (other, [led, one]) } else { (led, [one, other]) };
        rest.iter().for_each(|node| fleet.network.cut(away, *node));
        let began = Instant::now();
        wait_for("both sides to hold each other for dead", || {
            let theirs = rest.iter().all(|node| see(fleet.home(*node), &[away], "dead"));
            (theirs && see(fleet.home(away), &rest, "dead")).then_some(())
        });
        let dead = began.elapsed();
        // Much longer than any suspicion, which is two seconds at most with these settings.
        sleep(Duration::from_secs(10));
        assert!(see(fleet.home(away), &rest, "dead"));
        fleet.network.heal();
        let healed = Instant::now();
        wait_for("all to see all again", || all_alive(&fleet));
        tell(&format!(
            "node {away} cut off (node {led} led): dead on both sides after {dead:?}; all alive and unfenced everywhere {:?} \
             after it was healed",
            healed.elapsed()
        ));
        fleet.make(away, &format!("after-{round}"));
    }
    fleet.wait_for_agreement(&["after-0", "after-1"]);
}
