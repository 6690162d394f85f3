//! Streams between this shard and shards of other nodes: who is at the other end, and what is to be sent.
//!
//! This shard follows over streams that it asked for (`following.rs`) and is followed over those that others made
//! (`leading.rs`). What is to be said is gathered while inputs are handled and sent when outputs are polled, before the
//! disk is asked for anything: one frame for each stream, whatever came, and under way while the journal is written.
//!
//! Bounds: a stream has so many bytes unsent and no more ([`ReplicationConfig`]); what a follower has not acknowledged
//! taking is bounded by the credit that it gave; nothing waits for a slow follower but its own place in the log. Of two
//! streams for the same pair of shards the newer one wins.
//!
//! [`ReplicationConfig`]: super::ReplicationConfig

mod chase;
mod fill;
mod following;
mod in_sync;
mod leading;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{Output, PeerInput, Shard, Stop};
use crate::front::{CloseReason, Front};
use crate::ids::{ConnId, Map, NodeId, RegistrationEpoch, ShardId};
use crate::log::Slot;
use crate::mail::{IsrChange, PeerNode};
use crate::partition::isr::Standing;
use crate::stats::ReplicationStats;
use crate::stream::{Encoder, FRAME_BYTES_WANTED, Hello, StreamError, VERSION};
use crate::time::Instant;

use following::{Following, Inbox};
use leading::Outflow;
pub(super) use leading::StreamRead;

/// Of a stream's credit, the part in which records go to who is behind while others are waited for: one in so many.
const CATCH_UP_SHARE: u32 = 8;

#[derive(Debug)]
pub(super) struct Peers {
    nodes: BTreeMap<NodeId, Standing>,
    streams: Map<ConnId, Stream>,
    following: Following,
    /// Led partitions whose followers are to be told of something.
    marked: Vec<Slot>,
    /// Streams that may have something to send.
    active: BTreeSet<ConnId>,
    /// Streams whose followers are to be told of a high watermark, at the latest when their timer fires.
    news: BTreeSet<ConnId>,
    wishes: Vec<IsrChange>,
    is_lag_armed: bool,
    /// Catch-up traffic waits until then.
    catch_up_from: Instant,
    random: u64,
    pub stats: ReplicationStats,
}

/// One connection.
#[derive(Debug)]
struct Stream {
    node: NodeId,
    shard: ShardId,
    epoch: RegistrationEpoch,
    /// The other side's first message came.
    greeted: bool,
    closing: bool,
    receiving: bool,
    unsent_bytes: usize,
    encoder: Encoder,
    side: Side,
}

#[derive(Debug)]
enum Side {
    /// The other shard follows this one.
    Out(Outflow),
    /// This shard follows the other.
    In(Inbox),
}

impl Peers {
    pub fn new(seed: u64) -> Self {
        Self {
            nodes: BTreeMap::new(),
            streams: Map::default(),
            following: Following::default(),
            marked: Vec::new(),
            active: BTreeSet::new(),
            news: BTreeSet::new(),
            wishes: Vec::new(),
            is_lag_armed: false,
            catch_up_from: Instant::ZERO,
            random: seed,
            stats: ReplicationStats::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    fn has_work(&self) -> bool {
        !(self.marked.is_empty()
            && self.active.is_empty()
            && self.wishes.is_empty()
            && self.following.is_quiet())
    }

    fn out(&mut self, conn: ConnId) -> Option<&mut Outflow> {
        match self.streams.get_mut(&conn).map(|stream| &mut stream.side) {
            Some(Side::Out(out)) => Some(out),
            _ => None,
        }
    }

    /// The encoder of a stream, to say something with the next frame.
    fn say(&mut self, conn: ConnId) -> Option<&mut Encoder> {
        let stream = self.streams.get_mut(&conn).filter(|stream| !stream.closing)?;
        self.active.insert(conn);
        Some(&mut stream.encoder)
    }

    /// In a fixed order, so that a simulation repeats.
    fn conns(&self) -> Vec<ConnId> {
        let mut conns: Vec<ConnId> = self.streams.keys().copied().collect();
        conns.sort_unstable();
        conns
    }

    /// The next of a sequence of numbers that looks random (SplitMix64).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl<F: Front> Shard<F> {
    pub(super) fn on_peer(&mut self, input: PeerInput) {
        match input {
            PeerInput::Opened { conn, node, remote_shard, epoch, dialed } => {
                self.on_stream(conn, node, remote_shard, epoch, dialed);
            }
            PeerInput::Frame { conn, frame } => self.on_peer_frame(conn, frame),
            PeerInput::Sent { conn, bytes } => {
                if let Some(stream) = self.peers.streams.get_mut(&conn) {
                    assert!(bytes <= stream.unsent_bytes, "no more can have been sent than was given");
                    stream.unsent_bytes -= bytes;
                    if let Side::In(inbox) = &mut stream.side {
                        self.peers.following.acks.append(&mut inbox.late_acks);
                    }
                    self.peers.active.insert(conn);
                }
            }
            PeerInput::Closed { conn, .. } => self.on_stream_closed(conn),
            PeerInput::DialFailed { node, shard } => self.on_dial_failed((node, shard)),
        }
    }

    fn on_stream(
        &mut self,
        conn: ConnId,
        node: NodeId,
        shard: ShardId,
        epoch: RegistrationEpoch,
        dialed: bool,
    ) {
        let side = if dialed { Side::In(Inbox::default()) } else { Side::Out(Outflow::default()) };
        let stream = Stream {
            node,
            shard,
            epoch,
            greeted: false,
            closing: false,
            receiving: true,
            unsent_bytes: 0,
            encoder: Encoder::default(),
            side,
        };
        let is_stale = self.peers.nodes.get(&node).is_some_and(|known| known.epoch > epoch);
        let same = |other: &Stream| {
            (other.node, other.shard, matches!(other.side, Side::In(_))) == (node, shard, dialed)
                && !other.closing
        };
        let older: Vec<ConnId> =
            self.peers.conns().into_iter().filter(|conn| same(&self.peers.streams[conn])).collect();
        let is_newest = older.iter().all(|conn| self.peers.streams[conn].epoch <= epoch);
        let before = self.peers.streams.insert(conn, stream);
        assert!(before.is_none(), "a connection id is never used twice");
        if self.stop != Stop::No {
            return self.close_stream(conn, CloseReason::Stopping);
        }
        if is_stale || !is_newest {
            self.close_stream(conn, CloseReason::StalePeer);
            return if dialed {
                self.on_dial_failed((node, shard))
            };
        }
        for older in older {
            self.close_stream(older, CloseReason::Superseded);
        }
        let hello = Hello { version: VERSION, batch_bytes_max: self.config.batch_bytes_max() };
        if dialed {
            self.on_link_open((node, shard), conn, hello);
        } else if let Some(encoder) = self.peers.say(conn) {
            encoder.from_leader(crate::stream::FromLeader::Hello(hello));
        }
    }

    fn on_peer_frame(&mut self, conn: ConnId, frame: Bytes) {
        let Some(stream) = self.peers.streams.get_mut(&conn).filter(|stream| !stream.closing) else { return };
        let result = match &mut stream.side {
            Side::Out(_) => self.on_follower_frame(conn, &frame),
            Side::In(inbox) => {
                inbox.frames.push_back((frame, 0));
                self.on_leader_frames(conn)
            }
        };
        if let Err(error) = result {
            self.on_bad_peer(conn, error);
        }
    }

    fn on_bad_peer(&mut self, conn: ConnId, error: StreamError) {
        let Some(stream) = self.peers.streams.get(&conn) else { return };
        tracing::error!(node = %stream.node, shard = %stream.shard, %error, "a peer's stream is closed");
        self.close_stream(conn, CloseReason::Malformed);
    }

    /// The other side's first message: whether the nodes agree on what they must.
    fn greet(&mut self, conn: ConnId, hello: Hello) -> Result<(), StreamError> {
        let batch_bytes_max = self.config.batch_bytes_max();
        let Some(stream) = self.peers.streams.get_mut(&conn) else { return Ok(()) };
        if hello.batch_bytes_max != batch_bytes_max {
            tracing::error!(
                node = %stream.node, ours = batch_bytes_max, theirs = hello.batch_bytes_max,
                "the nodes store batches of different sizes; give all nodes the same storage settings"
            );
            return Err(StreamError::Impossible("another largest batch than this node's"));
        }
        stream.greeted = true;
        Ok(())
    }

    /// Whether the other side has said hello, as it must before anything else.
    fn is_greeted(&self, conn: ConnId) -> bool {
        self.peers.streams.get(&conn).is_some_and(|stream| stream.greeted)
    }

    /// Nothing more is sent or taken in. What was said over the stream holds; who spoke over it has to begin anew.
    fn close_stream(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(stream) = self.peers.streams.get_mut(&conn).filter(|stream| !stream.closing) else { return };
        stream.closing = true;
        self.outputs.push_back(Output::Close { conn, flush: false, reason });
        self.leave_stream(conn);
    }

    /// The stream is no longer used: its subscriptions are over.
    fn leave_stream(&mut self, conn: ConnId) {
        self.peers.active.remove(&conn);
        self.peers.news.remove(&conn);
        let Some(stream) = self.peers.streams.get_mut(&conn) else { return };
        let link = (stream.node, stream.shard);
        match &mut stream.side {
            Side::Out(out) => {
                let slots = out.leave();
                self.leave_audiences(conn, &slots);
            }
            Side::In(inbox) => {
                *inbox = Inbox::default();
                self.on_link_lost(link, conn);
            }
        }
    }

    fn on_stream_closed(&mut self, conn: ConnId) {
        let Some(stream) = self.peers.streams.get(&conn) else { return };
        if !stream.closing {
            if matches!(stream.side, Side::In(_)) {
                self.peers.stats.streams_broken += 1;
            }
            self.leave_stream(conn);
        }
        self.peers.streams.remove(&conn);
        self.finish_stop();
    }

    /// Closes every stream to a leader: nothing more is taken in.
    pub(super) fn stop_following(&mut self) {
        for conn in self.peers.conns() {
            if matches!(self.peers.streams[&conn].side, Side::In(_)) {
                self.close_stream(conn, CloseReason::Stopping);
            }
        }
    }

    pub(super) fn close_all_streams(&mut self) {
        for conn in self.peers.conns() {
            self.close_stream(conn, CloseReason::Stopping);
        }
    }

    /// The nodes of the cluster changed. What earlier lives of them said no longer counts.
    pub(super) fn on_nodes(&mut self, nodes: &[PeerNode]) {
        let standing = |n: &PeerNode| (n.node, Standing { epoch: n.epoch, eligible: n.eligible });
        self.peers.nodes = nodes.iter().map(standing).collect();
        for conn in self.peers.conns() {
            let stream = &self.peers.streams[&conn];
            if self.peers.nodes.get(&stream.node).is_some_and(|known| known.epoch > stream.epoch) {
                self.close_stream(conn, CloseReason::StalePeer);
            }
        }
        self.reconsider_all();
    }

    /// Sends what is to be said. Whether there is an output now.
    pub(super) fn work_peers(&mut self) -> bool {
        if !self.peers.has_work() {
            return false;
        }
        if !self.peers.wishes.is_empty() {
            let changes = std::mem::take(&mut self.peers.wishes);
            self.outputs.push_back(Output::Control(crate::mail::ToControl::AlterIsr { changes }));
        }
        self.tell_audiences();
        self.work_links();
        self.send_acks();
        while let Some(conn) = self.peers.active.pop_first() {
            self.pump(conn);
            self.flush_stream(conn);
        }
        !self.outputs.is_empty()
    }

    /// Sends what was put into the stream's encoder.
    fn flush_stream(&mut self, conn: ConnId) {
        let Some(stream) = self.peers.streams.get_mut(&conn).filter(|stream| !stream.closing) else { return };
        if let Some(parts) = stream.encoder.take() {
            stream.unsent_bytes += parts.iter().map(Bytes::len).sum::<usize>();
            self.outputs.push_back(Output::Send { conn, parts });
        }
    }

    /// Begins another frame when this one is large enough.
    fn flush_when_full(&mut self, conn: ConnId) {
        if self.peers.streams.get(&conn).is_some_and(|stream| stream.encoder.len() >= FRAME_BYTES_WANTED) {
            self.flush_stream(conn);
        }
    }

    /// How it is now, and what was counted.
    pub(super) fn replication_stats(&self) -> ReplicationStats {
        let mut stats = self.peers.stats;
        for partition in self.partitions.iter() {
            let Some(in_sync) = partition.in_sync() else {
                let is_following = partition.follower().is_some();
                stats.following += u64::from(is_following);
                stats.offline += u64::from(!is_following);
                continue;
            };
            let (records, time) = in_sync.lag(self.now, partition.log_end());
            stats.leading += 1;
            stats.under_replicated += u64::from(in_sync.len() < in_sync.replicas());
            stats.under_min_isr += u64::from(partition.is_under_min());
            stats.lag_records_max = stats.lag_records_max.max(records);
            stats.lag_max = stats.lag_max.max(time);
        }
        let outs = self.peers.streams.values().filter(|s| matches!(s.side, Side::Out(_))).count();
        stats.streams_out = outs as u64;
        stats.streams_in = (self.peers.streams.len() - outs) as u64;
        stats
    }
}

/// Frames that came and were not worked on, and where in the first one to go on.
type Frames = VecDeque<(Bytes, usize)>;
