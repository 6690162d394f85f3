//! Proposals of this node: to the leader, again and again, until what became of them is known.
//!
//! Control core; one task. One tagged proposal is under way at a time. It is settled when it comes back from the log
//! on this node. It has failed only when it cannot be in any log: no attempt was taken in by a leader, and
//! [`PATIENCE`] is over. The registration of the node waits for ever, as the node does.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::NodeId;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::metrics::Counters;
use super::serve::answer_of;
use super::state::{Own, Shared};
use super::types::{Payload, Tag, node_id};
use super::wire::{self, Propose, ProposeAnswer};
use super::{Event, Group};
use crate::control::{Input, ProposalId};
use crate::net::{CallError, Class, Network};

/// How long a proposal that no leader took in is held.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(100);
/// How long the leader has for its answer, which comes when the proposal was applied there.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);
/// How long what the leader has applied may take to come to this node, before it is sent again.
const APPLY_PATIENCE: Duration = Duration::from_secs(2);

/// A proposal that waits for its turn.
pub(super) struct Ask {
    pub proposal: ProposalId,
    pub body: Bytes,
    /// Whether it is held until there is a leader, however long that takes.
    pub forever: bool,
    pub since: std::time::Instant,
}

pub(super) struct Proposer<N> {
    pub node: NodeId,
    pub incarnation: u64,
    pub group: Group,
    pub net: N,
    pub shared: Rc<Shared>,
    pub counters: Counters,
}

/// What one attempt came to.
enum Attempt {
    /// A leader has applied it.
    Applied,
    /// It may be in a log.
    Unknown,
    /// It is in no log by this attempt.
    NotTaken(String),
}

impl<N: Network> Proposer<N> {
    pub async fn run(self, mut asks: mpsc::Receiver<Ask>) {
        let mut sequence = 0;
        while let Some(ask) = asks.recv().await {
            sequence += 1;
            let tag = Tag { node: self.node, incarnation: self.incarnation, sequence };
            *self.shared.own.borrow_mut() = Some(Own { tag, proposal: ask.proposal, since: ask.since });
            self.settle(tag, ask).await;
        }
    }

    async fn settle(&self, tag: Tag, ask: Ask) {
        let payload = Payload::Entry { tag: Some(tag), body: ask.body };
        let until = Instant::now() + PATIENCE;
        let mut in_doubt = false;
        for attempt in 0.. {
            if attempt > 0 {
                self.counters.count(|stats| stats.proposals_repeated += 1);
            }
            let attempt = tokio::select! {
                biased;
                () = self.shared.own_applied.notified() => return,
                attempt = self.attempt(&payload) => attempt,
            };
            let pause = match attempt {
                Attempt::Applied => {
                    in_doubt = true;
                    APPLY_PATIENCE
                }
                Attempt::Unknown => {
                    in_doubt = true;
                    RETRY
                }
                Attempt::NotTaken(reason) => {
                    if !in_doubt && !ask.forever && Instant::now() >= until {
                        return self.fail(reason).await;
                    }
                    RETRY
                }
            };
            tokio::select! {
                biased;
                () = self.shared.own_applied.notified() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn fail(&self, reason: String) {
        let own = self.shared.own.borrow_mut().take().expect("nobody else takes one that was not applied");
        self.counters.count(|stats| stats.proposals_failed += 1);
        let failed = Input::ProposalFailed { proposal: own.proposal, reason };
        // Without a control loop nobody waits for it.
        let _ = self.shared.events.send(Event::Input(failed)).await;
    }

    /// Waits until somebody else than `leader` is known to lead: an answer of the one that did may never come.
    async fn another_leads(&self, leader: NodeId) {
        let mut metrics = self.group.server_metrics();
        loop {
            let leads = metrics.borrow_and_update().current_leader.and_then(node_id);
            if leads.is_some_and(|leads| leads != leader) {
                return;
            }
            if metrics.changed().await.is_err() {
                // The group has ended, which is told by an event.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn attempt(&self, payload: &Payload) -> Attempt {
        let leader = self.group.metrics().borrow_watched().current_leader.and_then(node_id);
        let answer = match leader {
            None => return Attempt::NotTaken("no leader of the metadata is known".into()),
            Some(leader) if leader == self.node => match self.group.client_write(payload.clone()).await {
                Ok(_) => ProposeAnswer::Applied,
                Err(error) => answer_of(error),
            },
            Some(leader) => {
                let body = wire::encode(wire::PROPOSE, &Propose(payload.clone()));
                let answer = tokio::select! {
                    biased;
                    answer = self.net.call(leader, Class::Append, wire::PROPOSE, body, FORWARD_DEADLINE) => answer,
                    () = self.another_leads(leader) => return Attempt::Unknown,
                };
                match answer {
                    Ok(bytes) => match wire::decode_answer::<Propose>(wire::PROPOSE, &bytes) {
                        Ok(answer) => answer,
                        Err(_) => ProposeAnswer::Unknown,
                    },
                    Err(
                        error @ (CallError::TooLarge { .. } | CallError::Full | CallError::Rejected { .. }),
                    ) => ProposeAnswer::NotTaken(error.to_string()),
                    Err(_) => ProposeAnswer::Unknown,
                }
            }
        };
        match answer {
            ProposeAnswer::Applied => Attempt::Applied,
            ProposeAnswer::Unknown => Attempt::Unknown,
            ProposeAnswer::NotTaken(reason) => Attempt::NotTaken(reason),
            ProposeAnswer::NotLeader(_) => {
                Attempt::NotTaken("the metadata has no leader that a majority of the voters follows".into())
            }
        }
    }
}
