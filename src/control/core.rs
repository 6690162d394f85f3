//! The control core's state machine: requests become proposals, committed entries become an image and what it means
//! for each shard, and a request is answered once every shard has applied it.
//!
//! Control core, pure. One proposal is under way at a time; what is asked meanwhile goes into the next one, so the
//! log's flush is shared. A shard hears of its partitions only after where they belong is durable.

mod publish;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use highwater_shards::ids::{ConnId, NodeId, PartitionId, ProducerEpoch, Revision, ShardId};
use highwater_shards::mail::{FromControl, ToControl, Token};
use highwater_shards::time::{Instant, TimerTable};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use self::publish::Publication;
use super::io::{ControlFatal, Input, KeepId, LocalId, Output, ProposalId};
use super::limits::{
    ENTRY_BYTES_MAX, KEEP_RETRY, PUBLICATIONS_MAX, REQUEST_TIMEOUT, REQUEST_TIMEOUT_MAX, REQUESTS_MAX,
    STOP_GRACE,
};
use super::metadata::apply::Outcome;
use super::metadata::command::{Command, Entry, PRODUCER_ID_BLOCK, RegisterNode};
use super::metadata::delta::Delta;
use super::metadata::image::Image;
use super::metadata::topic_config::TopicDefaults;
use super::plan::{self, Basis, Plan};
use super::producer_ids::ProducerIds;
use super::request::{Refusal, Reply, Request, Why};
use super::shard_load::ShardLoad;

#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// How this node registers with the cluster; its incarnation is above all earlier ones.
    pub register: RegisterNode,
    pub shards: u16,
    pub defaults: TopicDefaults,
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
}

/// See the module's description.
#[derive(Debug)]
pub struct Control {
    config: ControlConfig,
    phase: Phase,
    /// Everything that is committed, with placements on shards that may not be durable yet.
    image: Image,
    load: ShardLoad,
    shards: Vec<Shard>,
    requests: BTreeMap<RequestNo, Asked>,
    request_next: RequestNo,
    /// Waiting for the proposal under way to end.
    queue: VecDeque<RequestNo>,
    /// Waiting for a producer id.
    id_queue: VecDeque<RequestNo>,
    ids: ProducerIds,
    proposal: Option<Proposed>,
    proposal_next: ProposalId,
    /// Replies that wait until every shard has applied a revision.
    replies: BTreeMap<Revision, Vec<(RequestNo, Reply)>>,
    /// Told to the shards in this order, once what they rely on is kept.
    publications: VecDeque<Publication>,
    /// The write of the first publication's placements is under way.
    keeping: Option<KeepId>,
    keep_next: KeepId,
    timers: TimerTable<Timer>,
    entropy: Xoshiro256PlusPlus,
    outputs: VecDeque<Output>,
    stats: ControlStats,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Until this node is registered and every shard has recovered.
    Starting {
        registered: bool,
    },
    /// Until every shard has its partitions, as of this revision.
    Assigning {
        revision: Revision,
    },
    Serving,
    Stopping,
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
}

#[derive(Clone, Copy, Debug)]
enum Asker {
    Session { shard: ShardId, conn: ConnId, token: Token },
    Local(LocalId),
}

#[derive(Debug)]
struct Proposed {
    id: ProposalId,
    registers: bool,
    reserves: bool,
    /// Each with its plan and the number of its first command in the entry.
    requests: Vec<(RequestNo, Plan, usize)>,
    /// Answered with the entry without being part of it.
    settled: Vec<(RequestNo, Reply)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Timer {
    Request(RequestNo),
    Keep,
    Stop,
}

impl Control {
    /// `image` is what the store holds: committed metadata with the placements on this node's shards.
    pub fn new(config: ControlConfig, mut image: Image) -> Self {
        assert!(config.shards > 0, "a node has at least one shard");
        // Who leads the metadata log is the controller, and a standalone node has its log for itself.
        image.controller = Some(config.register.node);
        let mut control = Self {
            phase: Phase::Starting { registered: false },
            load: ShardLoad::of(&image, config.shards),
            shards: (0..config.shards).map(|_| Shard::default()).collect(),
            requests: BTreeMap::new(),
            request_next: RequestNo(0),
            queue: VecDeque::new(),
            id_queue: VecDeque::new(),
            ids: ProducerIds::default(),
            proposal: None,
            proposal_next: ProposalId(0),
            replies: BTreeMap::new(),
            publications: VecDeque::new(),
            keeping: None,
            keep_next: KeepId(0),
            timers: TimerTable::default(),
            entropy: Xoshiro256PlusPlus::from_seed(config.seed),
            outputs: VecDeque::new(),
            stats: ControlStats::default(),
            image,
            config,
        };
        control.propose_next();
        control
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        if self.phase == Phase::Over {
            return;
        }
        match input {
            Input::Timeout => self.on_timeout(now),
            Input::FromShard { shard, message } => self.on_shard(now, shard, message),
            Input::Committed { revision, proposal, entry } => self.on_committed(revision, proposal, &entry),
            Input::ProposalFailed { proposal, reason } => self.on_proposal_failed(proposal, reason),
            Input::Kept { id } => self.on_kept(id),
            Input::KeepFailed { id, reason } => {
                assert_eq!(self.keeping, Some(id), "one placement is written at a time");
                tracing::warn!("where partitions belong could not be stored, trying again: {reason}");
                self.timers.set(Timer::Keep, now + KEEP_RETRY);
            }
            Input::Local { id, request } => self.on_request(now, Asker::Local(id), request),
            Input::Stop { deadline } => self.on_stop(now, deadline),
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
        ControlStats { requests_waiting: self.requests.len() as u64, ..self.stats }
    }

    fn node(&self) -> NodeId {
        self.config.register.node
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
                if self.phase == Phase::Stopping && self.shards.iter().all(|s| s.stopped) {
                    self.on_all_stopped();
                }
            }
            // Counters are the driver's to gather; nothing is decided by them.
            ToControl::Stats { .. } => {}
        }
    }

    fn on_request(&mut self, now: Instant, asker: Asker, request: Request) {
        self.stats.requests += 1;
        let refusal = if self.phase == Phase::Stopping {
            Some("the node is stopping".to_owned())
        } else if self.requests.len() >= REQUESTS_MAX {
            Some(format!("{REQUESTS_MAX} requests wait for the control core already: try again"))
        } else {
            None
        };
        if let Some(words) = refusal {
            let reply = plan::refuse(&request, &Refusal::new(Why::TimedOut, words));
            self.send_reply(asker, reply);
            return;
        }
        let no = self.request_next;
        self.request_next.0 += 1;
        let (timeout, queue) = match &request {
            Request::CreateTopics { timeout, .. }
            | Request::DeleteTopics { timeout, .. }
            | Request::CreatePartitions { timeout, .. } => (*timeout, &mut self.queue),
            Request::AlterConfigs { .. } => (REQUEST_TIMEOUT, &mut self.queue),
            Request::NewProducerId => (REQUEST_TIMEOUT, &mut self.id_queue),
        };
        queue.push_back(no);
        self.timers.set(Timer::Request(no), now + timeout.min(REQUEST_TIMEOUT_MAX));
        self.requests.insert(no, Asked { asker, request });
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

    /// Starts the next proposal when none is under way and something waits.
    fn propose_next(&mut self) {
        let registers = self.phase == (Phase::Starting { registered: false });
        let reserves = self.ids.wants_block(self.id_queue.len());
        let held_up = self.proposal.is_some() || self.publications.len() >= PUBLICATIONS_MAX;
        let over = matches!(self.phase, Phase::Stopping | Phase::Over);
        if held_up || over || !(registers || reserves || !self.queue.is_empty()) {
            return;
        }
        let id = self.proposal_next;
        let mut proposed = Proposed { id, registers, reserves, requests: Vec::new(), settled: Vec::new() };
        let mut entry = Entry::default();
        let mut draft = self.image.clone();
        if registers {
            let command = Command::RegisterNode(self.config.register.clone());
            try_out(&mut draft, std::slice::from_ref(&command));
            entry.commands.push(command);
        }
        if reserves {
            self.ids.on_reserving();
            let command = Command::ReserveProducerIds { node: self.node(), count: PRODUCER_ID_BLOCK };
            entry.commands.push(command);
        }
        self.take_requests(&mut draft, &mut entry, &mut proposed);
        if entry.commands.is_empty() {
            let revision = self.image.revision;
            for (no, reply) in proposed.settled {
                self.answer_once_applied(revision, no, reply);
            }
            return;
        }
        self.proposal_next.0 += 1;
        self.stats.proposals += 1;
        self.outputs.push_back(Output::Propose { proposal: id, entry });
        self.proposal = Some(proposed);
    }

    /// Plans waiting requests against `draft`, which is the image as the entry will leave it.
    fn take_requests(&mut self, draft: &mut Image, entry: &mut Entry, proposed: &mut Proposed) {
        let mut weight = 0;
        while weight < ENTRY_BYTES_MAX
            && let Some(no) = self.queue.pop_front()
        {
            let request = &self.requests[&no].request;
            let mut basis =
                Basis { image: draft, defaults: &self.config.defaults, entropy: &mut self.entropy };
            let plan = Plan::new(request, &mut basis).expect("requests for ids wait elsewhere");
            let mut after = draft.clone();
            let (changes, outcomes) = try_out(&mut after, &plan.commands);
            if changes.is_empty() || plan::validate_only(request) {
                proposed.settled.push((no, plan.reply(&outcomes)));
                continue;
            }
            *draft = after;
            weight += plan.commands.iter().map(Command::weight).sum::<usize>();
            let first = entry.commands.len();
            entry.commands.extend(plan.commands.iter().cloned());
            proposed.requests.push((no, plan, first));
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
        match self.phase {
            Phase::Starting { .. } => self.assign_when_all_recovered(),
            Phase::Assigning { .. } | Phase::Serving | Phase::Stopping => self.publish(&old, &delta),
            Phase::Over => {}
        }
    }

    fn on_own_entry(&mut self, proposed: Proposed, mut outcomes: Vec<Outcome>) {
        let revision = self.image.revision;
        for (no, plan, first) in proposed.requests {
            let end = first + plan.commands.len();
            let reply = plan.reply(&outcomes[first..end]);
            self.answer_once_applied(revision, no, reply);
        }
        for (no, reply) in proposed.settled {
            self.answer_once_applied(revision, no, reply);
        }
        let mut own = outcomes.drain(..);
        if proposed.registers {
            match own.next() {
                Some(Outcome::Registered(Ok(()))) => self.phase = Phase::Starting { registered: true },
                Some(Outcome::Registered(Err(refusal))) => {
                    return self.fatal(ControlFatal::RegistrationRefused(refusal.message));
                }
                other => unreachable!("the registration stands first in its entry, not {other:?}"),
            }
        }
        if proposed.reserves {
            match own.next() {
                Some(Outcome::ProducerIds(result)) => {
                    if let Err(refusal) = &result {
                        self.refuse_ids(refusal);
                    }
                    self.ids.on_reserved(result.ok());
                }
                other => unreachable!("the reservation stands before requests, not {other:?}"),
            }
            self.hand_out_ids();
        }
    }

    fn on_proposal_failed(&mut self, proposal: ProposalId, reason: String) {
        self.stats.proposals_failed += 1;
        let proposed = self.proposal.take().expect("only what was proposed can fail");
        assert_eq!(proposed.id, proposal, "one proposal is under way at a time");
        if proposed.registers {
            return self.fatal(ControlFatal::RegistrationFailed(reason));
        }
        tracing::warn!("a change of the metadata could not be stored: {reason}");
        let refusal = Refusal::new(Why::StorageFailed, reason);
        for (no, ..) in proposed.requests {
            if let Some(asked) = self.requests.get(&no) {
                let reply = plan::refuse(&asked.request, &refusal);
                self.answer(no, reply);
            }
        }
        let revision = self.image.revision;
        for (no, reply) in proposed.settled {
            self.answer_once_applied(revision, no, reply);
        }
        if proposed.reserves {
            self.ids.on_reserved(None);
            self.refuse_ids(&refusal);
        }
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
        if self.phase == Phase::Serving && self.applied_everywhere() >= revision {
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
        if let Phase::Assigning { revision } = self.phase
            && applied >= revision
        {
            self.phase = Phase::Serving;
            self.outputs.push_back(Output::Ready);
        }
        if matches!(self.phase, Phase::Starting { .. } | Phase::Assigning { .. }) {
            return;
        }
        while let Some(first) = self.replies.first_entry()
            && *first.key() <= applied
        {
            for (no, reply) in first.remove() {
                self.answer(no, reply);
            }
        }
    }

    fn on_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Request(no) => {
                    self.stats.requests_timed_out += 1;
                    self.queue.retain(|waiting| *waiting != no);
                    self.id_queue.retain(|waiting| *waiting != no);
                    let asked = &self.requests[&no];
                    let words = "the change was not complete in time; it may still come about";
                    let reply = plan::refuse(&asked.request, &Refusal::new(Why::TimedOut, words));
                    self.answer(no, reply);
                }
                Timer::Keep => {
                    self.keeping = None;
                    self.send_publications();
                }
                Timer::Stop => self.on_all_stopped(),
            }
        }
    }

    fn on_stop(&mut self, now: Instant, deadline: Duration) {
        if self.phase == Phase::Stopping {
            return;
        }
        self.phase = Phase::Stopping;
        for shard in self.shard_ids() {
            self.outputs.push_back(Output::ToShard { shard, message: FromControl::Stop { deadline } });
        }
        self.timers.set(Timer::Stop, now + deadline + STOP_GRACE);
        if self.shards.iter().all(|s| s.stopped) {
            self.on_all_stopped();
        }
    }

    fn on_all_stopped(&mut self) {
        let late = self.shard_ids().filter(|id| !self.shards[usize::from(id.0)].stopped).collect();
        self.outputs.push_back(Output::Stopped { late });
        self.phase = Phase::Over;
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.config.shards).map(ShardId)
    }
}

/// What the commands would do to `draft`, and does it.
fn try_out(draft: &mut Image, commands: &[Command]) -> (Delta, Vec<Outcome>) {
    let revision = Revision(draft.revision.0 + 1);
    draft.apply(revision, &Entry { commands: commands.to_vec() })
}

#[cfg(test)]
mod tests;
