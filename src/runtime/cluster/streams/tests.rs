//! Two nodes of one cluster, each with its control core's half of this and real shards with small machines.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as sync;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::RegistrationEpoch;
use highwater_shards::mail::{FromControl, ToControl};
use highwater_shards::reactor::boot::{ShardSetup, Shards, start};
use highwater_shards::reactor::uring::{KernelUse, LinkConfig, Spin};
use highwater_shards::shard::{Input, Machine, Output, PeerInput};
use highwater_shards::time::Instant;

use super::super::{GossipSetup, Happened, PeersSetup, Pin, Setup};
use super::*;
use crate::config::{Config, HostPort};
use crate::control::forming::Member;
use crate::control::metadata::image::{DiskId, Endpoint, Incarnation};
use crate::net::auth::Secret;
use crate::raft::{self, RaftConfig};

const SHARDS: u16 = 2;
const FRAME: usize = 300_000;

/// Says what it hears of peers. Sends a large frame on a connection that it asked for; answers one on the others.
struct Talker {
    outputs: VecDeque<Output<Kafka>>,
    says: sync::Sender<String>,
    is_dialer: bool,
}

impl Machine for Talker {
    type Front = Kafka;

    fn handle(&mut self, _: Instant, input: Input<Kafka>) {
        let frame = |byte: u8| {
            let prefix = Bytes::copy_from_slice(&u32::try_from(FRAME).unwrap().to_be_bytes());
            vec![prefix, Bytes::from(vec![byte; FRAME])]
        };
        match input {
            Input::Peer(PeerInput::Opened { conn, node, remote_shard, epoch, dialed }) => {
                self.is_dialer = dialed;
                let what = if dialed { "reached" } else { "met" };
                self.says.send(format!("{what} shard {remote_shard} of node {node} in {epoch}")).unwrap();
                if dialed {
                    self.outputs.push_back(Output::Send { conn, parts: frame(1) });
                }
            }
            Input::Peer(PeerInput::Frame { conn, frame: came }) => {
                assert_eq!(came.len(), FRAME);
                self.says.send(format!("heard {}", came[FRAME - 1])).unwrap();
                if !self.is_dialer {
                    self.outputs.push_back(Output::Send { conn, parts: frame(2) });
                }
            }
            Input::Peer(PeerInput::DialFailed { node, shard }) => {
                self.says.send(format!("failed to reach shard {shard} of node {node}")).unwrap();
            }
            Input::Control(FromControl::Stop { .. }) => {
                self.outputs.push_back(Output::Control(ToControl::Stopped));
            }
            _ => {}
        }
    }

    fn poll_output(&mut self) -> Option<Output<Kafka>> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

struct Node {
    cluster: Cluster,
    shards: Option<Shards<Kafka>>,
    /// By shard.
    hears: Vec<sync::Receiver<String>>,
    root: PathBuf,
}

impl Node {
    fn start(id: u32) -> Self {
        let root = std::env::temp_dir().join(format!("highwater-streams-{id}-{}", std::process::id()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = Endpoint { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let disk = DiskId(u128::from(id));
        let setup = Setup {
            member: Member { node: NodeId(id), disk, at: at.clone() },
            incarnation: Incarnation(1),
            may_vote: true,
            seeds: Vec::new(),
            voters: None,
            raft: RaftConfig::new(NodeId(id), Incarnation(1)),
            storage: raft::open(&root.join("raft"), raft::DiskId(disk.0)).unwrap().storage,
            peers: Some(PeersSetup {
                secret: Secret::new(b"the secret of this cluster").unwrap(),
                listener,
                gossip: GossipSetup {
                    socket: crate::runtime::swim::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
                    advertised: HostPort { host: "127.0.0.1".into(), port: at.port },
                    config: Config::default().cluster.swim,
                    data_dir: root.clone(),
                },
            }),
            formed: None,
            shards: SHARDS,
            seed: u64::from(id),
        };
        let pin = Pin { to: None, anywhere: rustix::thread::sched_getaffinity(None).unwrap() };
        let cluster = Cluster::new(setup, pin).unwrap();
        cluster.peers.as_ref().unwrap().set_cluster("MDEyMzQ1Njc4OWFiY2RlZg".parse().unwrap());
        let mut hears = Vec::new();
        let setups = (0..SHARDS).map(|shard| {
            let (says, hear) = sync::channel();
            hears.push(hear);
            ShardSetup {
                shard: ShardId(shard),
                core: None,
                journal_dir: root.join(format!("journal-{shard}")),
                partitions_dir: root.join("partitions"),
                open_files_max: 16,
                listen: Vec::new(),
                link: LinkConfig::default(),
                spin: Spin::Auto,
                kernel_use: KernelUse::default(),
                make: Box::new(move || Talker { outputs: VecDeque::new(), says, is_dialer: false }),
            }
        });
        let shards = Some(start(setups.collect()).unwrap());
        Self { cluster, shards, hears, root }
    }

    /// What [`super::super::super::control_core`] does with it.
    fn hand_over(&self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            if let Effect::ToDriver { shard, message } = effect {
                let links = &self.shards.as_ref().unwrap().links;
                links[usize::from(shard.0)].hand_over(message).unwrap();
            }
        }
    }

    /// Carries out what comes next of the streams; this node's way into a cluster is none of these tests'.
    async fn step(&mut self, image: &Image) {
        loop {
            let happened = self.cluster.next(|| Instant::ZERO).await;
            if let Happened::Stream(_) | Happened::Told(Told::Dialed { .. }) = happened {
                let effects = self.cluster.handle(Instant::ZERO, happened, image).unwrap();
                return self.hand_over(effects);
            }
            tokio::task::yield_now().await;
        }
    }

    fn hear(&self, shard: usize) -> String {
        self.hears[shard].recv_timeout(Duration::from_secs(60)).expect("it hears something")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(shards) = self.shards.take() {
            for link in &shards.links {
                let _ = link.send(FromControl::Stop { deadline: Duration::ZERO });
            }
            shards.join();
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Both nodes registered, in epochs of ten times their ids.
fn image(nodes: [&Node; 2]) -> Image {
    let mut image = Image::default();
    for node in nodes {
        let Member { node: id, disk, at } = node.cluster.member.clone();
        let info = NodeInfo {
            id,
            incarnation: Incarnation(1),
            epoch: RegistrationEpoch(u64::from(id.0) * 10),
            disk,
            cluster: at,
            ..NodeInfo::default()
        };
        image.nodes.insert(id, Arc::new(info));
    }
    image
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_shard_that_asks_for_one_of_another_node_talks_to_it() {
    run(async {
        let (mut a, mut b) = (Node::start(1), Node::start(2));
        let image = image([&a, &b]);
        a.cluster.learn(&image);
        b.cluster.learn(&image);
        assert!(a.cluster.dial(ShardId(0), NodeId(2), ShardId(1), &image).is_none(), "it takes a while");
        tokio::join!(a.step(&image), b.step(&image));
        assert_eq!(a.hear(0), "reached shard 1 of node 2 in 20");
        assert_eq!(b.hear(1), "met shard 0 of node 1 in 10");
        assert_eq!((b.hear(1), a.hear(0)), ("heard 1".into(), "heard 2".into()));
    });
}

#[test]
fn a_shard_hears_once_of_each_connection_that_cannot_be_had() {
    run(async {
        let (mut a, b) = (Node::start(3), Node::start(4));
        let mut image = image([&a, &b]);
        a.cluster.learn(&image);
        let expect = |a: &Node, node: u32, shard: u16| {
            let failed = format!("failed to reach shard {shard} of node {node}");
            assert_eq!(a.hear(1), failed);
            assert!(a.hears[1].try_recv().is_err(), "once");
        };
        // A node that is not in the image, and this one itself.
        for node in [9, 3] {
            let effect = a.cluster.dial(ShardId(1), NodeId(node), ShardId(0), &image);
            a.hand_over(effect);
            expect(&a, node, 0);
        }
        // The other one does not know of this one yet.
        assert!(a.cluster.dial(ShardId(1), NodeId(4), ShardId(0), &image).is_none());
        a.step(&image).await;
        expect(&a, 4, 0);
        // Nobody is there any more.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut info = NodeInfo::clone(&image.nodes[&NodeId(4)]);
        info.cluster.port = gone;
        image.nodes.insert(NodeId(4), Arc::new(info));
        assert!(a.cluster.dial(ShardId(1), NodeId(4), ShardId(1), &image).is_none());
        a.step(&image).await;
        expect(&a, 4, 1);
        // More than it may have asked for.
        for _ in 0..DIALS_MAX {
            assert!(a.cluster.dial(ShardId(1), NodeId(4), ShardId(0), &image).is_none());
        }
        let effect = a.cluster.dial(ShardId(1), NodeId(4), ShardId(0), &image);
        assert!(matches!(effect, Some(Effect::ToDriver { message: ToDriver::DialFailed { .. }, .. })));
        assert!(
            a.cluster.dial(ShardId(0), NodeId(4), ShardId(0), &image).is_none(),
            "others are not held up"
        );
    });
}
