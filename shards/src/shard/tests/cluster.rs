//! Shards of several nodes, wired in memory, under a controller that does what a test says.
//!
//! Connections deliver whole frames in order; a test can hold back what goes from one node to another, cut nodes off, stop
//! disks, and restart nodes with or without what was not flushed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::*;
use crate::ids::RegistrationEpoch;
use crate::mail::{IsrChange, IsrRefusal, PeerNode};

pub(super) const A: NodeId = NodeId(1);
pub(super) const B: NodeId = NodeId(2);
pub(super) const C: NodeId = NodeId(3);

pub(super) type At = (NodeId, ShardId);

pub(super) const fn on(node: NodeId) -> At {
    (node, ShardId(0))
}

/// One connection, whose id is the same at both ends.
pub(super) struct Wire {
    pub dialer: At,
    pub acceptor: At,
    /// To the dialer, and to the acceptor.
    queues: [VecDeque<Bytes>; 2],
    pub open: [bool; 2],
}

pub(super) struct Cluster {
    pub rigs: BTreeMap<At, Rig>,
    pub wires: BTreeMap<ConnId, Wire>,
    pub lives: BTreeMap<NodeId, RegistrationEpoch>,
    pub fenced: BTreeSet<NodeId>,
    /// Nodes whose disks do nothing.
    pub slow_disks: BTreeSet<NodeId>,
    /// What goes from the first to the second node is held back.
    pub held: BTreeSet<(NodeId, NodeId)>,
    /// Nodes that nobody can connect to, and that connect to nobody.
    pub cut_off: BTreeSet<NodeId>,
    /// Nodes whose sockets take nothing.
    pub stuck: BTreeSet<NodeId>,
    pub wishes: Vec<(NodeId, IsrChange)>,
    assigned: BTreeMap<u32, Assignment>,
    conns: u64,
    pub frames: u64,
    pub bytes: u64,
    revision: u64,
    replication: ReplicationConfig,
    tail_bytes_max: u64,
}

impl Cluster {
    pub fn new() -> Self {
        Self::with(ReplicationConfig::default(), u64::MAX)
    }

    /// Three nodes of one shard, recovered and registered.
    pub fn with(replication: ReplicationConfig, tail_bytes_max: u64) -> Self {
        let mut cluster = Self {
            rigs: BTreeMap::new(),
            wires: BTreeMap::new(),
            lives: [A, B, C].map(|node| (node, RegistrationEpoch(1))).into(),
            fenced: BTreeSet::new(),
            slow_disks: BTreeSet::new(),
            held: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            stuck: BTreeSet::new(),
            wishes: vec![],
            assigned: BTreeMap::new(),
            conns: 0,
            frames: 0,
            bytes: 0,
            revision: 0,
            replication,
            tail_bytes_max,
        };
        for node in [A, B, C] {
            cluster.start(on(node), BTreeMap::new());
        }
        cluster.tell_nodes();
        cluster
    }

    pub fn start(&mut self, at: At, files: BTreeMap<FileName, Vec<u8>>) {
        let now = self.now();
        let mut rig = Rig::of(at.0, at.1, files, self.tail_bytes_max, self.replication);
        rig.now = now;
        rig.run_disk();
        self.rigs.insert(at, rig);
    }

    pub fn now(&self) -> Instant {
        self.rigs.values().map(|rig| rig.now).max().unwrap_or(Instant::from_nanos(1))
    }

    pub fn rig(&mut self, node: NodeId) -> &mut Rig {
        self.rigs.get_mut(&on(node)).expect("the node runs")
    }

    fn ats(&self) -> Vec<At> {
        self.rigs.keys().copied().collect()
    }

    /// The node may not enter any set of in-sync replicas.
    pub fn fence(&mut self, node: NodeId) {
        self.fenced.insert(node);
        self.tell_nodes();
    }

    /// Tells all shards of the nodes and how they stand.
    pub fn tell_nodes(&mut self) {
        let peer = |(&node, &epoch): (&NodeId, &RegistrationEpoch)| PeerNode {
            node,
            epoch,
            eligible: !self.fenced.contains(&node),
        };
        let nodes: std::sync::Arc<[PeerNode]> = self.lives.iter().map(peer).collect();
        for at in self.ats() {
            let rig = self.rigs.get_mut(&at).unwrap();
            rig.handle(Input::Control(FromControl::Nodes(nodes.clone())));
        }
        self.run();
    }

    /// Commits metadata of a partition with all three nodes as replicas, and tells the shards that run.
    pub fn assign(
        &mut self,
        index: u32,
        leader: NodeId,
        epoch: u32,
        isr: &[NodeId],
        config: PartitionConfig,
    ) {
        self.assign_only(index, leader, epoch, isr, config, &[A, B, C]);
        self.run();
    }

    /// Likewise, tells only some nodes of it, and lets nothing else happen.
    pub fn assign_only(
        &mut self,
        index: u32,
        leader: NodeId,
        epoch: u32,
        isr: &[NodeId],
        config: PartitionConfig,
        to: &[NodeId],
    ) {
        let partition_epoch = self.assigned.get(&index).map_or(0, |known| known.partition_epoch.0) + 1;
        let assignment = Assignment {
            partition: partition(index),
            leader: Some(leader),
            leader_epoch: LeaderEpoch(epoch),
            partition_epoch: PartitionEpoch(partition_epoch),
            replicas: vec![A, B, C],
            isr: isr.to_vec(),
            config,
        };
        self.assigned.insert(index, assignment);
        to.iter().for_each(|&node| self.tell(index, node));
    }

    /// Tells a node what was committed last.
    pub fn tell(&mut self, index: u32, node: NodeId) {
        self.revision += 1;
        let assignment = self.assigned[&index].clone();
        let shard = ShardId(u16::try_from(index / 100).unwrap());
        let Some(rig) = self.rigs.get_mut(&(node, shard)) else { return };
        rig.revision = self.revision;
        rig.delta(vec![assignment], vec![]);
    }

    /// Commits the last wish of a partition.
    pub fn commit_wish(&mut self, index: u32) {
        let at = self.wishes.iter().rposition(|(_, wish)| wish.partition == partition(index));
        let (node, wish) = self.wishes.remove(at.expect("there is a wish"));
        let known = self.assigned[&index].clone();
        assert_eq!((known.leader, known.partition_epoch), (Some(node), wish.partition_epoch));
        for &(member, epoch) in &wish.isr {
            assert_eq!(self.lives[&member], epoch, "a wish names the lives of its members");
        }
        let isr: Vec<NodeId> = wish.isr.iter().map(|&(node, _)| node).collect();
        self.assign(index, node, known.leader_epoch.0, &isr, known.config);
    }

    pub fn refuse_wish(&mut self, index: u32, refusal: IsrRefusal) {
        let (node, wish) = self.wishes.pop().expect("there is a wish");
        let (partition, partition_epoch) = (partition(index), wish.partition_epoch);
        self.rig(node).handle(Input::Control(FromControl::IsrRefused {
            partition,
            partition_epoch,
            refusal,
        }));
        self.run();
    }

    /// The members of the last wish.
    pub fn wished(&self) -> Vec<NodeId> {
        self.wishes.last().map_or(vec![], |(_, wish)| wish.isr.iter().map(|&(node, _)| node).collect())
    }

    /// Lets everything happen that can, now.
    pub fn run(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "the shards talk without end");
            if !self.step() {
                return;
            }
        }
    }

    fn step(&mut self) -> bool {
        let mut any = false;
        for at in self.ats() {
            if !self.slow_disks.contains(&at.0) && !self.rigs[&at].slow.is_empty() {
                self.rigs.get_mut(&at).unwrap().run_disk();
                any = true;
            }
            for output in std::mem::take(&mut self.rigs.get_mut(&at).unwrap().outputs) {
                any |= self.carry_out(at, output);
            }
        }
        for conn in self.wires.keys().copied().collect::<Vec<_>>() {
            any |= self.deliver(conn);
        }
        any
    }

    fn carry_out(&mut self, at: At, output: Output<Echo>) -> bool {
        match output {
            Output::Control(ToControl::Dial { node, shard }) => self.dial(at, (node, shard)),
            Output::Control(ToControl::AlterIsr { changes }) => {
                self.wishes.extend(changes.into_iter().map(|change| (at.0, change)));
            }
            Output::Send { conn, parts } => {
                let bytes = Bytes::from(parts.concat());
                let (prefix, _) = bytes.split_first_chunk::<4>().expect("a frame has a prefix");
                assert_eq!(u32::from_be_bytes(*prefix) as usize, bytes.len() - 4, "one frame a send");
                self.frames += 1;
                self.bytes += bytes.len() as u64;
                // It may have been closed since.
                let Some(wire) = self.wires.get_mut(&conn) else { return true };
                let other = usize::from(wire.dialer == at);
                if wire.open[other] {
                    wire.queues[other].push_back(bytes.slice(4..));
                }
                if !self.stuck.contains(&at.0) {
                    let bytes = bytes.len();
                    let rig = self.rigs.get_mut(&at).unwrap();
                    rig.handle(Input::Peer(PeerInput::Sent { conn, bytes }));
                }
            }
            Output::Close { conn, reason, .. } => self.close(conn, reason),
            Output::Fatal(reason) => panic!("a shard of {} failed: {reason}", at.0),
            _ => return false,
        }
        true
    }

    fn dial(&mut self, from: At, to: At) {
        let is_cut_off = self.cut_off.contains(&from.0) || self.cut_off.contains(&to.0);
        if is_cut_off || !self.rigs.contains_key(&to) {
            let failed = PeerInput::DialFailed { node: to.0, shard: to.1 };
            return self.rigs.get_mut(&from).unwrap().handle(Input::Peer(failed));
        }
        self.connect(from, to);
    }

    pub fn connect(&mut self, from: At, to: At) -> ConnId {
        self.conns += 1;
        let conn = ConnId(self.conns);
        let wire = Wire { dialer: from, acceptor: to, queues: Default::default(), open: [true; 2] };
        self.wires.insert(conn, wire);
        for (at, other, dialed) in [(from, to, true), (to, from, false)] {
            let epoch = self.lives[&other.0];
            let (node, remote_shard) = other;
            let opened = PeerInput::Opened { conn, node, remote_shard, epoch, dialed };
            self.rigs.get_mut(&at).unwrap().handle(Input::Peer(opened));
        }
        conn
    }

    /// Both ends are told; what is under way is lost.
    pub fn close(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(wire) = self.wires.remove(&conn) else { return };
        for at in [wire.dialer, wire.acceptor] {
            if let Some(rig) = self.rigs.get_mut(&at) {
                rig.handle(Input::Peer(PeerInput::Closed { conn, reason }));
            }
        }
    }

    fn deliver(&mut self, conn: ConnId) -> bool {
        for side in 0..2 {
            let Some(wire) = self.wires.get_mut(&conn) else { return true };
            let (to, from) =
                if side == 0 { (wire.dialer, wire.acceptor) } else { (wire.acceptor, wire.dialer) };
            if self.held.contains(&(from.0, to.0)) {
                continue;
            }
            if let Some(frame) = wire.queues[side].pop_front() {
                if let Some(rig) = self.rigs.get_mut(&to) {
                    rig.handle(Input::Peer(PeerInput::Frame { conn, frame }));
                }
                return true;
            }
        }
        false
    }

    /// Breaks every connection of a node.
    pub fn break_streams(&mut self, node: NodeId) {
        for (conn, wire) in
            self.wires.iter().map(|(c, w)| (*c, [w.dialer.0, w.acceptor.0])).collect::<Vec<_>>()
        {
            if wire.contains(&node) {
                self.close(conn, CloseReason::Peer);
            }
        }
    }

    pub fn cut_off(&mut self, node: NodeId) {
        self.cut_off.insert(node);
        self.break_streams(node);
        self.run();
    }

    /// The node's process ends, and what was not flushed is lost.
    pub fn kill(&mut self, node: NodeId) -> BTreeMap<FileName, Vec<u8>> {
        let rig = self.rigs.remove(&on(node)).expect("it runs");
        self.break_streams(node);
        rig.files
    }

    /// Another life of the node begins; it knows nothing of metadata yet.
    pub fn restart(&mut self, node: NodeId, files: BTreeMap<FileName, Vec<u8>>) {
        self.start(on(node), files);
        self.lives.entry(node).and_modify(|life| life.0 += 1);
        self.tell_nodes();
    }

    /// Time passes, in steps, and whatever is due happens.
    pub fn after(&mut self, time: Duration) {
        let until = self.now() + time;
        while self.now() < until {
            let now = (self.now() + Duration::from_millis(500)).min(until);
            self.at(now);
        }
    }

    /// It is that time at once.
    pub fn at(&mut self, now: Instant) {
        for at in self.ats() {
            let rig = self.rigs.get_mut(&at).unwrap();
            rig.now = now;
            if rig.shard.poll_timeout().is_some_and(|due| due <= now) {
                rig.handle(Input::Timeout);
            }
        }
        self.run();
    }

    /// Short waits pass: for retries, and for what is told late.
    pub fn settle(&mut self) {
        for _ in 0..20 {
            let now = self.now() + Duration::from_millis(100);
            self.at(now);
        }
    }

    pub fn append(&mut self, node: NodeId, index: u32, value: &str) -> u64 {
        let token = self.rig(node).append(index, Acks::All, batch(value));
        self.run();
        token
    }

    /// Appends so many records, one after the other.
    pub fn append_each(
        &mut self,
        node: NodeId,
        index: u32,
        numbers: std::ops::Range<u32>,
        value: impl Fn(u32) -> String,
    ) {
        for number in numbers {
            self.append(node, index, &value(number));
        }
    }

    pub fn base(&mut self, node: NodeId, token: u64) -> Option<u64> {
        self.rig(node).base(token)
    }

    pub fn error(&mut self, node: NodeId, token: u64) -> Option<PartitionError> {
        self.rig(node).error(token)
    }

    pub fn replica(&self, node: NodeId, index: u32) -> &crate::partition::Partition {
        let shard = ShardId(u16::try_from(index / 100).unwrap());
        let shard = &self.rigs[&(node, shard)].shard;
        let slot = shard.storage.slot(partition(index)).expect("the replica is there");
        shard.partitions.get(slot).expect("the replica is there")
    }

    /// Where the log starts, the high watermark, and where the log ends.
    pub fn ends(&self, node: NodeId, index: u32) -> (u64, u64, u64) {
        let replica = self.replica(node, index);
        (replica.log_start().0, replica.high_watermark().0, replica.log_end().0)
    }

    /// All record bytes of a replica.
    pub fn log(&mut self, node: NodeId, index: u32) -> Vec<u8> {
        let shard = ShardId(u16::try_from(index / 100).unwrap());
        let rig = self.rigs.get_mut(&(node, shard)).unwrap();
        let storage = &mut rig.shard.storage;
        let slot = storage.slot(partition(index)).unwrap();
        let (from, below) = (storage.start(slot).unwrap(), storage.end(slot).unwrap());
        let wanted = crate::log::storage::Wanted {
            from,
            below,
            bytes_max: usize::MAX,
            first_whole: true,
            is_urgent: false,
        };
        match storage.read(rig.now, slot, wanted, u64::MAX) {
            crate::log::storage::Found::Memory(parts) => parts.concat(),
            crate::log::storage::Found::Nothing => vec![],
            crate::log::storage::Found::Later => panic!("these tests look at logs in memory"),
        }
    }

    /// The batches of a replica, one record each, wherever they are.
    pub fn whole_log(&mut self, node: NodeId, index: u32) -> Vec<Bytes> {
        let (start, _, end) = self.ends(node, index);
        let rig = self.rig(node);
        let storage = &mut rig.shard.storage;
        let slot = storage.slot(partition(index)).unwrap();
        let mut from = Offset(start);
        let mut all = Vec::new();
        while from < Offset(end) {
            let wanted = crate::log::storage::Wanted {
                from,
                below: Offset(end),
                bytes_max: 1 << 20,
                first_whole: true,
                is_urgent: false,
            };
            let parts = match storage.read(rig.now, slot, wanted, u64::MAX) {
                crate::log::storage::Found::Memory(parts) => parts,
                crate::log::storage::Found::Nothing => panic!("{from} is missing"),
                crate::log::storage::Found::Later => loop {
                    match storage.poll_event() {
                        Some(StorageEvent::Read { result, .. }) => break result.expect("it can be read"),
                        Some(_) => continue,
                        None => {}
                    }
                    match storage.poll_op(rig.now, &rig.shard.partitions) {
                        Some(op) => {
                            let event = do_disk(&mut rig.files, op);
                            storage.handle(rig.now, event);
                        }
                        // Reads give way to writes for a while.
                        None => {
                            rig.now = rig.now + Duration::from_millis(10);
                            storage.handle_timeout(rig.now);
                        }
                    }
                },
            };
            assert!(!parts.is_empty(), "{from} is missing");
            from = from.plus(parts.len() as u64);
            all.extend(parts);
        }
        all
    }

    /// Whether the node was told of the partition in this life, or has its log.
    pub fn knows(&self, node: NodeId, index: u32) -> bool {
        self.rigs[&on(node)].shard.storage.slot(partition(index)).is_some()
    }

    pub fn committed(&self, index: u32) -> &Assignment {
        &self.assigned[&index]
    }

    pub fn stats(&self, node: NodeId) -> crate::stats::ReplicationStats {
        self.rigs[&on(node)].shard.replication_stats()
    }

    /// All three replicas have the same records, of which there are so many, all committed.
    #[track_caller]
    pub fn assert_same(&mut self, index: u32, records: u64) {
        self.settle();
        let first = self.log(A, index);
        for node in [A, B, C] {
            assert_eq!(self.ends(node, index), (0, records, records), "{node}");
            assert!(self.log(node, index) == first, "the logs of {A} and {node} differ");
        }
    }
}
