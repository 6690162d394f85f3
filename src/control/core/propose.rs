//! What goes into the next entry of the metadata log, and what became of it.
//!
//! Control core, pure. An entry is tried out on a draft of the image: requests in one entry see each other, and what
//! would change nothing is answered without the log. What was decided on the draft counts only once the entry is
//! committed and came to what the draft said.

use std::collections::BTreeSet;

use highwater_shards::time::Instant;
use rand_xoshiro::rand_core::RngCore;

use super::{Control, Phase, RequestNo, Timer, no_leader};
use crate::control::io::{ControlFatal, Output, ProposalId};
use crate::control::limits::{
    CHANGES_WAITING_MAX, ENTRY_BYTES_MAX, ENTRY_PARTITIONS_MAX, GATHER_MAX, RETRY_MAX, RETRY_MIN,
};
use crate::control::metadata::apply::Outcome;
use crate::control::metadata::command::{Command, Entry, PRODUCER_ID_BLOCK, SettingChange, SettingOp};
use crate::control::metadata::image::Image;
use crate::control::metadata::topic_config;
use crate::control::plan::{self, Basis, Plan, Step};
use crate::control::request::{Refusal, Why};

/// The entry under way.
#[derive(Debug)]
pub(super) struct Proposed {
    pub(super) id: ProposalId,
    /// A snapshot came in between: whether the entry is part of it may never be known.
    pub(super) in_doubt: bool,
    /// What its commands are to come to, unless another node's entry comes first.
    drafted: Vec<Outcome>,
    /// What the node proposes by itself, and the number of the command.
    own: Vec<(Own, usize)>,
    requests: Vec<InEntry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Own {
    Register,
    Unfence,
    TakeControl,
    /// Defaults of this node's config file that have to be the same everywhere.
    Defaults,
    ReserveIds,
    AlterIsr,
    Review,
    Stop,
    Depart,
    Fence,
}

/// A request that has a part in the entry, or that relies on what is in it.
#[derive(Debug)]
struct InEntry {
    no: RequestNo,
    /// Parts of it were in entries before.
    goes_on: bool,
    /// By the number of the command: the items of the request that it is for.
    steps: Vec<(usize, Vec<usize>)>,
    /// What changes nothing once the entry is applied, and the outcome.
    held: Vec<(Step, Outcome)>,
}

/// When to propose again what the node wants by itself, after a failure.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    waits: bool,
}

impl Retry {
    pub(super) fn is_due(&mut self) {
        self.waits = false;
    }
}

/// The entry as far as it is made, and the image as it will leave it.
struct Draft {
    image: Image,
    entry: Entry,
    outcomes: Vec<Outcome>,
    bytes: usize,
    partitions: usize,
}

impl Draft {
    fn add(&mut self, command: Command) -> usize {
        let (_, outcome) = self.image.try_out(&command);
        self.bytes += command.weight();
        self.entry.commands.push(command);
        self.outcomes.push(outcome);
        self.outcomes.len() - 1
    }

    fn is_empty(&self) -> bool {
        self.entry.commands.is_empty()
    }

    /// A single command always fits: those of requests are made small enough.
    fn has_room(&self, step: &Step) -> bool {
        self.is_empty()
            || (self.bytes + step.weight <= ENTRY_BYTES_MAX
                && self.partitions + step.partitions <= ENTRY_PARTITIONS_MAX)
    }
}

impl Control {
    /// Starts the next proposal when none is under way and something waits.
    pub(super) fn propose_next(&mut self) {
        let over = matches!(self.phase, Phase::Stopping { .. } | Phase::Over);
        if self.proposal.is_some() || self.leader.is_none() || over {
            return;
        }
        let own = self.wanted();
        let stays = self.stop.is_none();
        let reviews = stays && self.leads() && self.review.is_due() && !self.retry.waits;
        let takes_requests = stays && !self.queue.is_empty() && !self.is_congested();
        let wishes = self.phase != Phase::Departing && !self.isr_wishes.is_empty() && !self.retry.waits;
        if own.is_empty() && !reviews && !wishes {
            if !takes_requests {
                return;
            }
            if self.gather.waits(self.queue.len()) {
                self.timers.set_at_latest(Timer::Gather, self.now + GATHER_MAX);
                return;
            }
        }
        self.timers.cancel(Timer::Gather);
        let id = self.proposal_next;
        let mut draft = Draft {
            image: self.image.clone(),
            entry: Entry::default(),
            outcomes: Vec::new(),
            bytes: 0,
            partitions: 0,
        };
        let mut proposed =
            Proposed { id, in_doubt: false, drafted: Vec::new(), own: Vec::new(), requests: Vec::new() };
        for (own, command) in own {
            if own == Own::ReserveIds {
                self.ids.on_reserving();
            }
            proposed.own.push((own, draft.add(command)));
        }
        if wishes {
            self.take_isr_wishes(&mut draft, &mut proposed);
        }
        if takes_requests {
            self.take_requests(&mut draft, &mut proposed);
        }
        if reviews {
            let room = ENTRY_BYTES_MAX.saturating_sub(draft.bytes);
            if let Some(command) = self.review.next(&draft.image, room) {
                proposed.own.push((Own::Review, draft.add(command)));
            }
        }
        if draft.is_empty() {
            // All that waited was answered, or nothing was wrong.
            assert!(proposed.requests.is_empty(), "nothing relies on an entry that is empty");
            return;
        }
        proposed.drafted = draft.outcomes;
        self.proposal_next.0 += 1;
        self.stats.proposals += 1;
        self.outputs.push_back(Output::Propose { proposal: id, entry: draft.entry });
        self.proposal = Some(proposed);
    }

    /// What the node wants by itself.
    fn wanted(&mut self) -> Vec<(Own, Command)> {
        let mut all = Vec::new();
        let node = self.node();
        if self.stop.is_some() {
            let own = self.this().filter(|this| this.incarnation == self.config.register.incarnation);
            if let Some(epoch) = own.map(|this| this.epoch).filter(|_| !self.retry.waits) {
                match self.phase {
                    Phase::Leaving { left: None } => {
                        all.push((Own::Stop, Command::StopNode { node, epoch }));
                    }
                    Phase::Departing => all.push((Own::Depart, Command::FenceNode { node, epoch })),
                    _ => {}
                }
            }
            return all;
        }
        if !self.retry.waits {
            let registers = self.phase == Phase::Starting && !self.is_registered;
            if registers {
                all.push((Own::Register, Command::RegisterNode(self.config.register.clone())));
            }
            let has_applied = matches!(self.phase, Phase::Joining { .. } | Phase::Serving);
            if has_applied && let Some(this) = self.this().filter(|this| this.fenced) {
                all.push((Own::Unfence, Command::UnfenceNode { node, epoch: this.epoch }));
            }
            // Whoever heard of an older term only is about to hear of the newer one.
            let is_news = self.term > self.image.controller_term;
            if self.leads() && is_news && (registers || self.is_registered) {
                all.push((Own::TakeControl, Command::TakeControl { node, term: self.term }));
                let defaults = topic_config::not_cluster_wide_yet(&self.image, &self.config.defaults);
                let set = |(name, value): (&str, &str)| SettingChange {
                    name: name.to_owned(),
                    op: SettingOp::Set(value.to_owned()),
                };
                let defaults: Vec<SettingChange> = defaults.map(set).collect();
                if !defaults.is_empty() {
                    all.push((Own::Defaults, Command::SetClusterConfig(defaults)));
                }
            }
        }
        if self.leads() && !self.retry.waits {
            all.extend(self.fences());
        }
        let may_reserve = self.is_registered || !all.is_empty();
        let reserves = self.ids.wants_block(self.id_queue.len());
        if may_reserve && reserves && (!self.retry.waits || !self.id_queue.is_empty()) {
            let command = Command::ReserveProducerIds { node, count: PRODUCER_ID_BLOCK };
            all.push((Own::ReserveIds, command));
        }
        all
    }

    /// Nodes that are taken for dead.
    fn fences(&mut self) -> Vec<(Own, Command)> {
        let mut all = Vec::new();
        for (node, why) in self.liveness.take_decided(self.now) {
            if let Some(info) = self.image.nodes.get(&node).filter(|info| !info.fenced) {
                tracing::warn!("node {node} {why}: it is fenced, and leads no partition until it is back");
                self.stats.fences += 1;
                self.fencing.insert(node);
                all.push((Own::Fence, Command::FenceNode { node, epoch: info.epoch }));
            }
        }
        all
    }

    /// Whether the shards are so far behind that more changes would only pile up.
    fn is_congested(&self) -> bool {
        self.publications.changes_waiting() >= CHANGES_WAITING_MAX
    }

    /// Plans waiting requests against the draft, as many as the entry has room for.
    fn take_requests(&mut self, draft: &mut Draft, proposed: &mut Proposed) {
        while let Some(&no) = self.queue.front() {
            let goes_on = self.requests[&no].plan.is_some();
            let mut part = InEntry { no, goes_on, steps: Vec::new(), held: Vec::new() };
            let taken_whole = self.take_request(draft, &mut part);
            let asked = &self.requests[&no];
            let is_complete = asked.plan.as_ref().is_some_and(Plan::is_complete);
            let relies_on_entry = !draft.is_empty();
            if taken_whole {
                self.queue.pop_front();
            }
            if is_complete && !relies_on_entry {
                self.finish(no);
            } else if relies_on_entry {
                proposed.requests.push(part);
            }
            if !taken_whole {
                return;
            }
        }
    }

    /// Takes the steps of a request into the draft; `false` when the entry is full before all are in it.
    fn take_request(&mut self, draft: &mut Draft, part: &mut InEntry) -> bool {
        let node = self.node();
        let asked = self.requests.get_mut(&part.no).expect("what is queued was not answered");
        let mut basis = Basis {
            image: &draft.image,
            defaults: &self.config.defaults,
            placement: &self.config.placement,
            entropy: &mut self.entropy,
            node,
        };
        let plan = asked.plan.get_or_insert_with(|| {
            let mut plan = Plan::new(&asked.request, &mut basis).expect("requests for ids wait elsewhere");
            if !draft.is_empty() {
                plan.rely_on_entry();
            }
            plan
        });
        if plan::validate_only(&asked.request) {
            let mut image = draft.image.clone();
            while let Some(step) = plan.take_step() {
                let (_, outcome) = image.try_out(&step.command);
                plan.fill(&step.slots, outcome);
            }
            return true;
        }
        while let Some(step) = plan.next_step() {
            if !draft.has_room(step) {
                return false;
            }
            let (changes, outcome) = draft.image.try_out(&step.command);
            let step = plan.take_step().expect("it was just seen");
            if changes.is_empty() {
                if draft.is_empty() {
                    plan.fill(&step.slots, outcome);
                } else {
                    part.held.push((step, outcome));
                }
                continue;
            }
            draft.bytes += step.weight;
            draft.partitions += step.partitions;
            part.steps.push((draft.outcomes.len(), step.slots));
            draft.entry.commands.push(step.command);
            draft.outcomes.push(outcome);
        }
        true
    }

    fn take_isr_wishes(&mut self, draft: &mut Draft, proposed: &mut Proposed) {
        let Some(epoch) = self.this().map(|this| this.epoch) else { return };
        let room = ENTRY_BYTES_MAX.saturating_sub(draft.bytes);
        let node = self.node();
        if let Some(command) = self.isr_wishes.command(node, epoch, &self.image, room) {
            proposed.own.push((Own::AlterIsr, draft.add(command)));
        }
    }

    pub(super) fn on_own_entry(&mut self, proposed: Proposed, outcomes: Vec<Outcome>) {
        let revision = self.image.revision;
        let as_drafted = outcomes == proposed.drafted;
        self.retry = Retry::default();
        self.fencing.clear();
        let mut outcomes: Vec<Option<Outcome>> = outcomes.into_iter().map(Some).collect();
        let mut take = |at: usize| outcomes[at].take().expect("each command has one outcome");
        let mut again = Vec::new();
        self.gather.on_answered(proposed.requests.len(), self.queue.len());
        for InEntry { no, goes_on, steps, held } in proposed.requests {
            let Some(asked) = self.requests.get_mut(&no) else { continue };
            let Some(plan) = &mut asked.plan else { continue };
            let is_begun = goes_on || !steps.is_empty();
            for (at, slots) in steps {
                plan.fill(&slots, take(at));
            }
            if as_drafted {
                plan.confirm();
                for (step, outcome) in held {
                    plan.fill(&step.slots, outcome);
                }
            } else if is_begun {
                let words = "another change of the metadata came first: try again";
                plan.retract(&Refusal::new(Why::NoController, words));
                plan.put_back(held);
                again.push(no);
            } else {
                asked.plan = None;
                again.push(no);
                continue;
            }
            if plan.is_complete() {
                again.retain(|waiting| *waiting != no);
                // A part that was refused ends the request, although others of its parts were still to come.
                if self.queue.front() == Some(&no) {
                    self.queue.pop_front();
                }
                let reply = asked.plan.take().expect("it was just seen").reply();
                self.answer_once_applied(revision, no, reply);
            }
        }
        self.queue_again(again);
        for (own, at) in proposed.own {
            self.on_own_outcome(own, take(at));
        }
    }

    fn on_own_outcome(&mut self, own: Own, outcome: Outcome) {
        match (own, outcome) {
            (Own::Register, Outcome::Registered(Ok(()))) => self.is_registered = true,
            (Own::Register, Outcome::Registered(Err(refusal))) => {
                self.fatal(ControlFatal::RegistrationRefused(refusal.message));
            }
            // Refused when this node is not what it was any more, which the image says.
            (Own::Unfence | Own::Stop | Own::Fence, Outcome::Fenced(_))
            | (Own::TakeControl, Outcome::ControlTaken(_))
            | (Own::Defaults, Outcome::ClusterConfigSet(_))
            // What could not be elected meanwhile is looked at another time.
            | (Own::Review, Outcome::Elected(_)) => {}
            (Own::AlterIsr, Outcome::IsrAltered(results)) => self.on_isr_altered(results),
            (Own::Depart, Outcome::Fenced(_)) => self.end(),
            (Own::ReserveIds, Outcome::ProducerIds(result)) => {
                self.ids.on_reserved(result.as_ref().ok().copied());
                if let Err(refusal) = &result {
                    self.refuse_ids(refusal);
                }
                self.hand_out_ids();
            }
            (own, outcome) => unreachable!("{own:?} does not come to {outcome:?}"),
        }
    }

    pub(super) fn on_proposal_failed(&mut self, now: Instant, proposal: ProposalId, reason: String) {
        self.stats.proposals_failed += 1;
        let proposed = self.proposal.take().expect("only what was proposed can fail");
        assert_eq!(proposed.id, proposal, "one proposal is under way at a time");
        tracing::warn!("a change of the metadata could not be stored: {reason}");
        self.fencing.clear();
        let refusal = if proposed.in_doubt {
            let words = "whether the change came about is not known: this node had fallen behind";
            Refusal::new(Why::TimedOut, words)
        } else if self.leads() {
            Refusal::new(Why::StorageFailed, reason)
        } else {
            Refusal { message: reason, ..no_leader() }
        };
        let mut again = Vec::new();
        for InEntry { no, goes_on, steps, held } in proposed.requests {
            if !steps.is_empty() {
                self.queue.retain(|waiting| *waiting != no);
                self.give_up(no, &refusal);
            } else if let Some(asked) = self.requests.get_mut(&no) {
                // What it would come to was said by an entry that never came about.
                match asked.plan.as_mut().filter(|_| goes_on) {
                    Some(plan) => plan.put_back(held),
                    None => asked.plan = None,
                }
                again.push(no);
            }
        }
        self.queue_again(again);
        for (own, _) in proposed.own {
            match own {
                Own::ReserveIds => {
                    self.ids.on_reserved(None);
                    self.refuse_ids(&refusal);
                }
                Own::AlterIsr => self.isr_wishes.on_failed(),
                Own::Fence => self.liveness.on_failed(),
                Own::Register
                | Own::Unfence
                | Own::TakeControl
                | Own::Defaults
                | Own::Review
                | Own::Stop
                | Own::Depart => {}
            }
        }
        self.wait_to_retry(now);
    }

    /// What the node wants by itself is proposed again after a while, a longer one after each failure.
    fn wait_to_retry(&mut self, now: Instant) {
        let wait = RETRY_MIN.saturating_mul(1 << self.retry.failures.min(10)).min(RETRY_MAX);
        // Up to half as much again, so that nodes do not come all at once.
        let jitter = wait.mul_f64(f64::from(self.entropy.next_u32()) / f64::from(u32::MAX) / 2.0);
        self.retry = Retry { failures: self.retry.failures + 1, waits: true };
        self.timers.set(Timer::Retry, now + wait + jitter);
    }

    /// Requests that were taken too early come first again, in their order.
    fn queue_again(&mut self, again: Vec<RequestNo>) {
        if again.is_empty() {
            return;
        }
        let queued: BTreeSet<RequestNo> = again.iter().copied().collect();
        self.queue.retain(|no| !queued.contains(no));
        for no in again.into_iter().rev() {
            self.queue.push_front(no);
        }
    }

    fn finish(&mut self, no: RequestNo) {
        let asked = self.requests.get_mut(&no).expect("it was not answered yet");
        let reply = asked.plan.take().expect("it is complete").reply();
        self.answer_once_applied(self.image.revision, no, reply);
    }
}
