//! The control core's state machine: requests become proposals, committed entries become an image and what it means
//! for each shard, and a request is answered once every shard has applied it, the asking one in passing.
//!
//! Control core, pure. One proposal is under way at a time; what is asked meanwhile goes into the next one, so the
//! log's flush is shared. Whichever node leads the log, each plans its own proposals on its own image, and what they
//! come to is decided where they are applied. A shard hears of its partitions only after where they belong is durable.

mod gather;
mod isr;
mod propose;
mod publish;
mod stop;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use highwater_shards::ids::{ConnId, NodeId, PartitionId, ProducerEpoch, Revision, ShardId};
use highwater_shards::mail::{FromControl, ToControl, Token};
use highwater_shards::time::{Instant, TimerTable};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use self::gather::Gather;
use self::isr::IsrWishes;
use self::propose::{Proposed, Retry};
use self::publish::Publications;
use super::io::{ControlFatal, Input, LocalId, Output, ProposalId};
use super::lease;
use super::limits::{
    BALANCE_EVERY, KEEP_RETRY, LEADER_WAIT, REQUEST_TIMEOUT, REQUEST_TIMEOUT_MAX, REQUESTS_MAX,
};
use super::liveness::Liveness;
use super::metadata::command::{Entry, RegisterNode};
use super::metadata::delta::Delta;
use super::metadata::image::{Image, NodeInfo};
use super::metadata::topic_config::TopicDefaults;
use super::placement::Placement;
use super::plan::{self, Plan};
use super::producer_ids::ProducerIds;
use super::request::{Refusal, Reply, Request, Why};
use super::review::Review;
use super::shard_load::ShardLoad;

#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// How this node registers with the cluster; its incarnation is above all earlier ones.
    pub register: RegisterNode,
    pub shards: u16,
    pub defaults: TopicDefaults,
    /// How new replicas find their nodes.
    pub placement: Placement,
    /// From the operating system's entropy, new at each start: topic ids come from it.
    pub seed: [u8; 32],
}

/// What the control core counts about itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlStats {
    pub requests: u64,
    pub requests_waiting: u64,
    pub requests_timed_out: u64,
    pub proposals: u64,
    pub proposals_failed: u64,
    pub commits: u64,
    /// Times that this node, as the controller, proposed to fence another.
    pub fences: u64,
    /// Committed changes by which a partition that was there got a leader in a new epoch, heard of while this node served.
    pub elections: u64,
    /// Those of them whose leader may lack acknowledged records.
    pub elections_unclean: u64,
    /// Who leads the metadata log, as far as this node knows, and in which term.
    pub leader: Option<NodeId>,
    pub term: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Control {
    config: ControlConfig,
    phase: Phase,
    /// Everything that is committed, with placements on shards that may not be durable yet.
    image: Image,
    /// This life of the node is registered: from here on, being gone from the image means having been removed.
    is_registered: bool,
    /// Who leads the metadata log; nothing is proposed while nobody does.
    leader: Option<NodeId>,
    term: u64,
    /// Nobody has led for [`LEADER_WAIT`]: requests are refused at once.
    is_leaderless: bool,
    /// As the controller: which partitions are still to be looked at.
    review: Review,
    /// [`Timer::Balance`] is set.
    balances: bool,
    isr_wishes: IsrWishes,
    /// Until when this node may lead partitions, as far as it knows.
    lease: Option<Instant>,
    /// Of the last input.
    now: Instant,
    liveness: Liveness,
    /// Nodes whose fencing is on its way into the log.
    fencing: BTreeSet<NodeId>,
    load: ShardLoad,
    shards: Vec<Shard>,
    /// How long shards get to stop, once the node is to.
    stop: Option<Duration>,
    requests: BTreeMap<RequestNo, Asked>,
    request_next: RequestNo,
    /// Waiting for the proposal under way to end.
    queue: VecDeque<RequestNo>,
    /// Waiting for a producer id.
    id_queue: VecDeque<RequestNo>,
    ids: ProducerIds,
    proposal: Option<Proposed>,
    proposal_next: ProposalId,
    retry: Retry,
    gather: Gather,
    /// Replies that wait until every shard has applied a revision, or will have when the reply comes to it.
    replies: BTreeMap<Revision, Vec<(RequestNo, Reply)>>,
    publications: Publications,
    timers: TimerTable<Timer>,
    entropy: Xoshiro256PlusPlus,
    outputs: VecDeque<Output>,
    stats: ControlStats,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Until this node is registered and every shard has recovered.
    Starting,
    /// Until every shard has its partitions, as of this revision.
    Assigning {
        revision: Revision,
    },
    /// Until this node is unfenced, and every shard has heard of that, which it does with this revision.
    Joining {
        unfenced: Option<Revision>,
    },
    Serving,
    /// Until others lead what this node led, and every shard has heard of that, which it does with this revision.
    Leaving {
        left: Option<Revision>,
    },
    /// A moment longer, in which clients hear from this node that others lead.
    Lingering,
    /// Until every shard has stopped. Without `assigned` they had no partitions, and are told of none any more: what the
    /// image says of this node may be of an earlier life.
    Stopping {
        assigned: bool,
    },
    /// Until the log has it that this node is gone.
    Departing,
    /// Stopped, or failed: nothing more comes out.
    Over,
}

#[derive(Debug, Default)]
struct Shard {
    /// What its journal holds, until that was compared with where partitions belong.
    recovered: Option<Vec<PartitionId>>,
    applied: Revision,
    stopped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct RequestNo(u64);

#[derive(Debug)]
struct Asked {
    asker: Asker,
    request: Request,
    /// Once it was begun.
    plan: Option<Plan>,
}

#[derive(Clone, Copy, Debug)]
enum Asker {
    Session { shard: ShardId, conn: ConnId, token: Token },
    Local(LocalId),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Timer {
    Request(RequestNo),
    /// To propose again what failed.
    Retry,
    /// To propose what waits, although more was expected.
    Gather,
    /// Nobody has led the log for too long.
    Leader,
    /// To look for partitions that another replica should lead.
    Balance,
    Keep,
    Leave,
    Stop,
    Depart,
}

impl Control {
    /// `image` is what the store holds: committed metadata with the placements on this node's shards.
    pub fn new(config: ControlConfig, image: Image) -> Self {
        assert!(config.shards > 0, "a node has at least one shard");
        Self {
            phase: Phase::Starting,
            is_registered: false,
            leader: None,
            term: 0,
            is_leaderless: false,
            review: Review::default(),
            balances: false,
            isr_wishes: IsrWishes::default(),
            lease: None,
            now: Instant::ZERO,
            liveness: Liveness::default(),
            fencing: BTreeSet::new(),
            load: ShardLoad::of(&image, config.shards),
            shards: (0..config.shards).map(|_| Shard::default()).collect(),
            stop: None,
            requests: BTreeMap::new(),
            request_next: RequestNo(0),
            queue: VecDeque::new(),
            id_queue: VecDeque::new(),
            ids: ProducerIds::default(),
            proposal: None,
            proposal_next: ProposalId(0),
            retry: Retry::default(),
            gather: Gather::default(),
            replies: BTreeMap::new(),
            publications: Publications::default(),
            timers: TimerTable::default(),
            entropy: Xoshiro256PlusPlus::from_seed(config.seed),
            outputs: VecDeque::new(),
            stats: ControlStats::default(),
            image,
            config,
        }
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        if self.phase == Phase::Over {
            return;
        }
        self.now = now;
        match input {
            Input::Timeout => self.on_timeout(now),
            Input::FromShard { shard, message } => self.on_shard(now, shard, message),
            Input::Committed { revision, proposal, entry } => self.on_committed(revision, proposal, &entry),
            Input::ProposalFailed { proposal, reason } => self.on_proposal_failed(now, proposal, reason),
            Input::Image(image) => self.on_image(*image),
            Input::Leadership { term, leader } => self.on_leadership(now, term, leader),
            Input::Lease { until } => self.on_lease(until),
            Input::ClusterId(id) => self.image.cluster_id = id,
            Input::Hint(hint) => self.liveness.on_hint(hint),
            Input::Heard(heard) if self.leads() => {
                self.liveness.on_heard(now, &heard, &self.image, self.node());
            }
            Input::Heard(_) => {}
            Input::Kept { id } => self.on_kept(id),
            Input::KeepFailed { id, reason } => {
                self.on_keep_failed(id, &reason);
                self.timers.set(Timer::Keep, now + KEEP_RETRY);
            }
            Input::Local { id, request } => self.on_request(now, Asker::Local(id), request),
            Input::Stop { deadline } => self.on_stop(deadline),
        }
        self.propose_next();
    }

    /// The next output. Drain to `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `handle` wants an [`Input::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Everything that is committed.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Whether every shard has its partitions and none was told to stop.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Serving
    }

    pub fn stats(&self) -> ControlStats {
        let (leader, term) = (self.leader, self.term);
        ControlStats { requests_waiting: self.requests.len() as u64, leader, term, ..self.stats }
    }

    pub fn node(&self) -> NodeId {
        self.config.register.node
    }

    /// This node as it is registered, whichever of its lives that is.
    fn this(&self) -> Option<&NodeInfo> {
        self.image.nodes.get(&self.node()).map(AsRef::as_ref)
    }

    fn leads(&self) -> bool {
        self.leader == Some(self.node())
    }

    fn fatal(&mut self, reason: ControlFatal) {
        self.outputs.push_back(Output::Fatal(reason));
        self.phase = Phase::Over;
    }

    fn on_shard(&mut self, now: Instant, shard: ShardId, message: ToControl<Request>) {
        let state = &mut self.shards[usize::from(shard.0)];
        match message {
            ToControl::Recovered { partitions } => {
                state.recovered = Some(partitions);
                self.assign_when_all_recovered();
            }
            ToControl::Applied { revision } => {
                state.applied = state.applied.max(revision);
                self.on_applied();
            }
            ToControl::Request { conn, token, request } => {
                self.on_request(now, Asker::Session { shard, conn, token }, request);
            }
            ToControl::Stopped => {
                state.stopped = true;
                if matches!(self.phase, Phase::Stopping { .. }) && self.shards.iter().all(|s| s.stopped) {
                    self.on_all_stopped();
                }
            }
            ToControl::AlterIsr { changes } => self.on_isr_wishes(changes),
            // Counters are the driver's to gather; nothing is decided by them.
            ToControl::Stats { .. } => {}
            // The driver connects.
            ToControl::Dial { .. } => {}
        }
    }

    fn on_request(&mut self, now: Instant, asker: Asker, request: Request) {
        self.stats.requests += 1;
        let refusal = if self.stop.is_some() {
            Some(Refusal::new(Why::TimedOut, "the node is stopping"))
        } else if self.requests.len() >= REQUESTS_MAX {
            let words = format!("{REQUESTS_MAX} requests wait for the control core already: try again");
            Some(Refusal::new(Why::TimedOut, words))
        } else if self.is_leaderless {
            Some(no_leader())
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let reply = plan::refuse(&request, &refusal);
            self.send_reply(asker, reply);
            return;
        }
        let no = self.request_next;
        self.request_next.0 += 1;
        let (timeout, queue) = match &request {
            Request::CreateTopics { timeout, .. }
            | Request::DeleteTopics { timeout, .. }
            | Request::CreatePartitions { timeout, .. }
            | Request::ChangeNode { timeout, .. }
            | Request::Reassign { timeout, .. }
            | Request::ElectLeaders { timeout, .. }
            | Request::SetFeatureLevel { timeout, .. } => (*timeout, &mut self.queue),
            Request::AlterConfigs { .. } => (REQUEST_TIMEOUT, &mut self.queue),
            Request::NewProducerId => (REQUEST_TIMEOUT, &mut self.id_queue),
        };
        queue.push_back(no);
        self.timers.set(Timer::Request(no), now + timeout.min(REQUEST_TIMEOUT_MAX));
        self.requests.insert(no, Asked { asker, request, plan: None });
        self.hand_out_ids();
    }

    fn hand_out_ids(&mut self) {
        while !self.id_queue.is_empty()
            && let Some(id) = self.ids.take()
        {
            let no = self.id_queue.pop_front().expect("it is not empty");
            self.answer(no, Reply::NewProducerId(Ok((id, ProducerEpoch(0)))));
        }
    }

    fn on_committed(&mut self, revision: Revision, proposal: Option<ProposalId>, entry: &Entry) {
        self.stats.commits += 1;
        let old = self.image.clone();
        let (delta, outcomes) = self.image.apply(revision, entry);
        if proposal.is_some() {
            let proposed = self.proposal.take().expect("only what was proposed comes back");
            assert_eq!(Some(proposed.id), proposal, "one proposal is under way at a time");
            self.on_own_entry(proposed, outcomes);
        }
        self.look_at_this_node();
        self.plan_balance();
        match self.phase {
            Phase::Starting => self.assign_when_all_recovered(),
            Phase::Assigning { .. }
            | Phase::Joining { .. }
            | Phase::Serving
            | Phase::Leaving { .. }
            | Phase::Lingering
            | Phase::Stopping { assigned: true } => {
                self.count_elections(&old, &delta);
                self.publish(&old, &delta);
            }
            Phase::Stopping { assigned: false } | Phase::Departing | Phase::Over => {}
        }
        self.on_applied();
    }

    fn count_elections(&mut self, old: &Image, delta: &Delta) {
        for &partition in &delta.changed {
            let (before, now) = (old.partition(partition), self.image.partition(partition));
            if let (Some(before), Some(now)) = (before, now)
                && now.leader.is_some()
                && now.leader_epoch > before.leader_epoch
            {
                self.stats.elections += 1;
                self.stats.elections_unclean += u64::from(now.recovering);
            }
        }
    }

    /// A snapshot took the place of entries that this node never saw.
    fn on_image(&mut self, image: Image) {
        assert!(image.revision >= self.image.revision, "a snapshot never takes the node back");
        let old = std::mem::replace(&mut self.image, image);
        if self.image.cluster_id.is_empty() {
            self.image.cluster_id = old.cluster_id.clone();
        }
        if let Some(proposed) = &mut self.proposal {
            proposed.in_doubt = true;
        }
        self.take_over_placements(&old);
        self.look_at_this_node();
        match self.phase {
            Phase::Starting => self.assign_when_all_recovered(),
            Phase::Assigning { .. }
            | Phase::Joining { .. }
            | Phase::Serving
            | Phase::Leaving { .. }
            | Phase::Lingering
            | Phase::Stopping { assigned: true } => {
                self.publish_all(&old);
            }
            Phase::Stopping { assigned: false } | Phase::Departing | Phase::Over => {}
        }
        self.on_applied();
    }

    /// Whether this life of the node is in the image, and is still the one that counts.
    fn look_at_this_node(&mut self) {
        if self.phase == Phase::Over {
            return;
        }
        let own = self.config.register.incarnation;
        match self.this().map(|info| info.incarnation) {
            Some(incarnation) if incarnation == own => self.is_registered = true,
            Some(incarnation) if self.is_registered && incarnation > own => {
                self.fatal(ControlFatal::Superseded { incarnation });
            }
            None if self.is_registered => self.fatal(ControlFatal::Removed),
            _ => {}
        }
    }

    fn on_leadership(&mut self, now: Instant, term: u64, leader: Option<NodeId>) {
        (self.term, self.leader) = (term, leader);
        self.liveness.stop_deciding();
        if !self.leads() {
            self.review.stop();
        }
        self.plan_balance();
        if leader.is_none() {
            self.timers.set(Timer::Leader, now + LEADER_WAIT);
            return;
        }
        self.is_leaderless = false;
        self.timers.cancel(Timer::Leader);
        // Another leader may take what the last one could not.
        self.timers.cancel(Timer::Retry);
        self.retry = Retry::default();
    }

    /// Only the controller looks, and only where there are other nodes is there anything to be evened out.
    fn plan_balance(&mut self) {
        let is_wanted = self.leads() && self.image.nodes.len() > 1;
        if is_wanted && !self.balances {
            self.timers.set(Timer::Balance, self.now + BALANCE_EVERY);
        } else if !is_wanted {
            self.timers.cancel(Timer::Balance);
        }
        self.balances = is_wanted;
    }

    fn on_balance(&mut self) {
        self.review.restart();
        self.balances = false;
        self.plan_balance();
    }

    /// Whether this node, as the controller, may say that it counts on a node.
    pub fn counts_on(&self, times: lease::Times, standing: lease::Standing, asking: lease::Asking) -> bool {
        let is_being_fenced = self.fencing.contains(&asking.node) || self.liveness.is_decided(asking.node);
        self.leads() && lease::may_grant(&self.image, times, standing, asking, is_being_fenced)
    }

    fn on_lease(&mut self, until: Instant) {
        self.lease = self.lease.max(Some(until));
        self.tell_lease();
    }

    /// Shards that have no partitions yet, or are told to stop, need none; the first of these get it with those.
    fn tell_lease(&mut self) {
        let lead = match self.phase {
            Phase::Assigning { .. }
            | Phase::Joining { .. }
            | Phase::Serving
            | Phase::Leaving { .. }
            | Phase::Lingering => true,
            Phase::Starting | Phase::Stopping { .. } | Phase::Departing | Phase::Over => false,
        };
        if let Some(until) = self.lease.filter(|_| lead) {
            for shard in self.shard_ids() {
                self.outputs.push_back(Output::ToShard { shard, message: FromControl::Lease { until } });
            }
        }
    }

    fn on_leaderless(&mut self) {
        self.is_leaderless = true;
        tracing::warn!("nobody leads the metadata log: requests to change the metadata are refused");
        let waiting: Vec<RequestNo> = self.queue.drain(..).chain(self.id_queue.drain(..)).collect();
        for no in waiting {
            self.give_up(no, &no_leader());
        }
    }

    /// Answers the request, whatever is not known of it with the refusal.
    fn give_up(&mut self, no: RequestNo, refusal: &Refusal) {
        let Some(asked) = self.requests.get_mut(&no) else { return };
        let reply = match asked.plan.take() {
            Some(mut plan) => {
                plan.give_up(refusal);
                plan.reply()
            }
            None => plan::refuse(&asked.request, refusal),
        };
        self.answer(no, reply);
    }

    fn refuse_ids(&mut self, refusal: &Refusal) {
        while let Some(no) = self.id_queue.pop_front() {
            self.answer(no, Reply::NewProducerId(Err(refusal.clone())));
        }
    }

    fn answer_once_applied(&mut self, revision: Revision, no: RequestNo, reply: Reply) {
        if !self.requests.contains_key(&no) {
            return;
        }
        if self.phase == Phase::Serving && self.is_known(revision, no) {
            self.answer(no, reply);
        } else {
            self.replies.entry(revision).or_default().push((no, reply));
        }
    }

    /// Answers the request, unless its time was up before.
    fn answer(&mut self, no: RequestNo, reply: Reply) {
        if let Some(asked) = self.requests.remove(&no) {
            self.timers.cancel(Timer::Request(no));
            self.send_reply(asked.asker, reply);
        }
    }

    fn send_reply(&mut self, asker: Asker, reply: Reply) {
        self.outputs.push_back(match asker {
            Asker::Local(id) => Output::LocalReply { id, reply },
            Asker::Session { shard, conn, token } => {
                Output::ToShard { shard, message: FromControl::Reply { conn, token, reply } }
            }
        });
    }

    fn applied_everywhere(&self) -> Revision {
        self.shards.iter().map(|s| s.applied).min().expect("a node has at least one shard")
    }

    fn on_applied(&mut self) {
        let applied = self.applied_everywhere();
        self.publications.on_applied(applied);
        self.send_publications();
        if let Phase::Assigning { revision } = self.phase
            && applied >= revision
        {
            self.phase = Phase::Joining { unfenced: None };
        }
        if let Phase::Joining { unfenced: None } = self.phase
            && self.is_registered
            && self.this().is_some_and(|info| !info.fenced)
        {
            self.phase = Phase::Joining { unfenced: Some(self.image.revision) };
        }
        if let Phase::Joining { unfenced: Some(revision) } = self.phase
            && applied >= revision
        {
            self.phase = Phase::Serving;
            self.outputs.push_back(Output::Ready);
        }
        self.go_on_leaving();
        if matches!(self.phase, Phase::Starting | Phase::Assigning { .. }) {
            return;
        }
        let told: Vec<Revision> =
            self.replies.range(..=self.publications.told_last()).map(|(told, _)| *told).collect();
        for revision in told {
            let waiting = self.replies.remove(&revision).expect("it was just seen");
            let (ready, waiting): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(no, _)| self.is_known(revision, *no));
            for (no, reply) in ready {
                self.answer(no, reply);
            }
            if !waiting.is_empty() {
                self.replies.insert(revision, waiting);
            }
        }
    }

    /// Whether all shards act on the revision by the time that the answer comes to who asked: his own shard takes what
    /// it is told in order, so that there it is enough that the revision goes first.
    fn is_known(&self, revision: Revision, no: RequestNo) -> bool {
        let own = match self.requests.get(&no).map(|asked| asked.asker) {
            Some(Asker::Session { shard, .. }) => Some(shard),
            Some(Asker::Local(_)) => None,
            // Nobody waits for the answer any more.
            None => return true,
        };
        self.publications.told_last() >= revision
            && self
                .shard_ids()
                .all(|id| Some(id) == own || self.shards[usize::from(id.0)].applied >= revision)
    }

    fn on_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Request(no) => {
                    self.stats.requests_timed_out += 1;
                    self.queue.retain(|waiting| *waiting != no);
                    self.id_queue.retain(|waiting| *waiting != no);
                    let words = "the change was not complete in time; it may still come about";
                    self.give_up(no, &Refusal::new(Why::TimedOut, words));
                }
                Timer::Retry => self.retry.is_due(),
                Timer::Gather => self.gather.on_timeout(),
                Timer::Leader => self.on_leaderless(),
                Timer::Balance => self.on_balance(),
                Timer::Keep => self.keep_again(),
                Timer::Leave => self.stop_shards(),
                Timer::Stop => self.on_all_stopped(),
                Timer::Depart => self.end(),
            }
        }
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.config.shards).map(ShardId)
    }
}

fn no_leader() -> Refusal {
    Refusal::new(Why::NoController, "nobody leads the metadata log at the moment: try again")
}

#[cfg(test)]
mod tests;
