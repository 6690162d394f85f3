//! How a node with an empty disk comes into a cluster: it founds one together with all other seeds, or joins one.
//!
//! Control core, pure: it resolves no name and opens no connection, and never founds a second cluster. [`Forming`] asks
//! the seeds who they are, round after round, until one of three things is certain:
//!
//! - A seed is in a cluster: join it; or, when the cluster was founded by this very disk among others, found it too,
//!   with the same members.
//! - All seeds answered, know no cluster, and *propose exactly the same founders as this node did before it asked*:
//!   found the cluster with them. One round to learn who is there is not enough: a seed whose disk is wiped between the
//!   answers to two others would be known to one under the old disk and to the other under the new one, and each would
//!   found a cluster of its own.
//! - Something can never become right: [`Fatal`].
//!
//! Why at most one cluster comes about. A node proposes one set of founders at a time, and counts only answers to
//! questions that it asked after it began to propose that set. Say x founded S and y founded T, both on disks that
//! still exist. x saw y propose S after x had turned to S for good, and y saw x propose T after y had turned to T for
//! good. So y turned to T after x had turned to S, and x turned to S after y had turned to T. A set that holds a disk
//! from before a wipe, or from after it, orders the two in the same way.
//!
//! Nothing here must survive a crash: a restarted node proposes anew, and its founding is the one thing that it keeps.

mod identity;
mod rounds;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use highwater_shards::ids::NodeId;
use highwater_shards::time::Instant;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

pub use self::identity::{ClusterId, Digest, Founders, Member, NotAClusterId, show};
use self::rounds::{Asked, Verdict};
use self::wire::{JoinAnswer, Refused};
use crate::control::metadata::image::Endpoint;

/// Seeds that a node can have. All of them vote, and more voters only make agreement slower.
pub const SEEDS_MAX: usize = 9;
/// Bytes of a host name.
pub const HOST_BYTES_MAX: usize = 253;
/// Addresses of one seed whose answers are looked at.
pub const ADDRESSES_MAX: usize = 16;
/// For all answers of a round to come in. The driver gives each question less.
pub const ROUND_TIME_MAX: Duration = Duration::from_secs(5);
/// For a request to join: a leader may have to be elected first.
pub const JOIN_TIME_MAX: Duration = Duration::from_secs(15);
/// Pauses between rounds: the first, and the longest. Each is drawn from half of it to all of it.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What a node waits for is said for the first time after this long, then so often; sooner when it has changed.
const SAY_AFTER: Duration = Duration::from_secs(1);
const SAY_AGAIN: Duration = Duration::from_secs(5);

/// Who a node is and how it stands: the answer to [`wire::CALL_WHO`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Who {
    pub member: Member,
    /// As configured, sorted.
    pub seeds: Vec<Endpoint>,
    pub standing: Standing,
}

/// New variants are added at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Standing {
    /// In no cluster; would found one with these.
    Fresh { proposes: Option<Digest> },
    /// In this cluster for good. Who joined later knows its founders from the welcome.
    Formed { cluster: ClusterId, founders: Founders },
}

#[derive(Clone, Debug)]
pub struct FormingConfig {
    /// This node. Its address is the advertised one: a seed with this very address is this node.
    pub member: Member,
    pub seeds: Vec<Endpoint>,
    pub seed: u64,
}

/// One question to a peer; never used twice in one life of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId(pub u64);

#[derive(Debug)]
pub enum Input {
    /// The instant that `poll_timeout` named has come.
    Timeout,
    /// What became of [`Output::Ask`]: one for each address that the name has now, at most [`ADDRESSES_MAX`] of them; or
    /// why the name has none.
    Heard { call: CallId, from: Result<Vec<Heard>, String> },
    /// What became of [`Output::Join`].
    JoinAnswered { call: CallId, answer: Result<JoinAnswer, String> },
    /// A node asked this one who it is: it is there now, if it was not before.
    AskedBy(NodeId),
    /// Join through this node too, beside the seeds: an operator's wish. The last one counts.
    JoinThrough(Endpoint),
}

/// What came of asking one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    Who(Box<Who>),
    /// The address leads back to this very process.
    Myself,
    /// The two nodes have proven who they are, and one of them refused to go on.
    Rejected(Rejection),
    /// Not reached, or not understood, in words.
    Failed(String),
}

/// Why a node is not talked to at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// The other one has the id of this node, and another disk.
    SameNodeId,
    /// The cluster knows this node with another disk.
    DiskReplaced,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Resolve the name anew and ask whoever is there, [`wire::CALL_WHO`]; answer with [`Input::Heard`].
    Ask { call: CallId, seed: Endpoint },
    /// Send [`wire::CALL_JOIN`]; answer with [`Input::JoinAnswered`].
    Join { call: CallId, node: NodeId, at: Endpoint, cluster: ClusterId },
    /// Keep cluster and founders durably, then begin the metadata log with exactly these members. Final.
    Found { cluster: ClusterId, founders: Founders },
    /// Keep cluster and founders durably, then start with an empty metadata log, which the leader fills. Final.
    Joined { cluster: ClusterId, founders: Founders },
    /// For the log: what this node waits for. Its rate is bounded.
    Waiting(String),
    /// The node must not go on. Final.
    Fatal(Fatal),
}

/// Why this node can come into no cluster, with what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    #[error(
        "{} answers under the id of this node, {node}: give every node a `cluster.node_id` of its own; if that is this \
         node from before its data directory was emptied, stop it first",
        show(at)
    )]
    NodeIdTaken { node: NodeId, at: Endpoint },
    #[error(
        "{} knows node {node} with another disk: this data directory was emptied or replaced. Put the old one back; or remove \
         the node (`highwater cluster remove {node}`) and start it under an id that was never used",
        show(at)
    )]
    UnderOldIdentity { node: NodeId, at: Endpoint },
    #[error(
        "node {other} at {} has the same disk id as this node: one data directory is a copy of the other's. Start this \
         node with an empty one",
        show(at)
    )]
    DiskCopied { other: NodeId, at: Endpoint },
    #[error(
        "node {node} founded cluster {cluster} with another disk: this data directory was emptied or replaced. Put the old \
         one back; or remove the node (`highwater cluster remove {node}`) and start it under an id that was never used"
    )]
    DiskReplaced { node: NodeId, cluster: ClusterId },
    #[error(
        "the seeds belong to two clusters: {} to {first}, {} to {second}. Name the nodes of one of them in `cluster.seeds`",
        show(first_at),
        show(second_at)
    )]
    TwoClusters { first: ClusterId, first_at: Endpoint, second: ClusterId, second_at: Endpoint },
    #[error("cluster {cluster} refused this node: {why}")]
    Refused { cluster: ClusterId, why: Refused },
}

#[derive(Debug)]
enum Phase {
    /// Until the timer, then the next round.
    Pausing,
    /// Until all have been heard, or the timer.
    Asking(Vec<Asked>),
    /// Until the answer, or the timer.
    Joining {
        call: CallId,
        cluster: ClusterId,
        at: Endpoint,
    },
    Done,
}

/// A node on its way into a cluster. After each [`Self::handle`], drain [`Self::poll_output`]; it is over with the first
/// `Found`, `Joined` or `Fatal`.
#[derive(Debug)]
pub struct Forming {
    member: Member,
    /// Sorted, each once.
    seeds: Vec<Endpoint>,
    join_through: Option<Endpoint>,
    rng: Xoshiro256PlusPlus,
    phase: Phase,
    timer: Instant,
    /// What this node tells who asks; changes between rounds only.
    proposal: Option<Founders>,
    pause: Duration,
    /// Who answered in the last round, or asked since; only nodes with the secret do, so it is as small as the cluster.
    heard: BTreeSet<NodeId>,
    call_next: u64,
    outputs: VecDeque<Output>,
    /// Since when it waits.
    since: Option<Instant>,
    said: Option<(Instant, String)>,
}

impl Forming {
    /// Begins with [`Input::Timeout`], at once.
    pub fn new(config: FormingConfig) -> Self {
        let mut seeds = config.seeds;
        seeds.sort_unstable_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        seeds.dedup();
        assert!(seeds.len() <= SEEDS_MAX, "the configuration bounds the seeds");
        Self {
            member: config.member,
            seeds,
            join_through: None,
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            phase: Phase::Pausing,
            timer: Instant::ZERO,
            proposal: None,
            pause: PAUSE_MIN,
            heard: BTreeSet::new(),
            call_next: 0,
            outputs: VecDeque::new(),
            since: None,
            said: None,
        }
    }

    /// What this node answers to [`wire::CALL_WHO`] as long as it is in no cluster.
    pub fn who(&self) -> Who {
        let proposes = self.proposal.as_ref().map(Founders::digest);
        Who { member: self.member.clone(), seeds: self.seeds.clone(), standing: Standing::Fresh { proposes } }
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        let since = *self.since.get_or_insert(now);
        match (input, &mut self.phase) {
            (_, Phase::Done) => {}
            (Input::Timeout, _) if now < self.timer => {}
            (Input::Timeout, Phase::Pausing) => self.begin_round(now),
            (Input::Timeout, Phase::Asking(_)) => self.end_round(now),
            (Input::Timeout, Phase::Joining { at, .. }) => {
                let what = format!("{} did not answer the request to join in time", show(at));
                self.say(now, since, what);
                self.pause(now);
            }
            (Input::Heard { call, from }, Phase::Asking(asked)) => {
                // An answer to an earlier round says how things were before this node turned to its proposal.
                if let Some(asked) = asked.iter_mut().find(|asked| asked.call == Some(call)) {
                    asked.heard(from);
                }
                if asked.iter().all(Asked::is_done) {
                    self.end_round(now);
                }
            }
            (Input::JoinAnswered { call, answer }, Phase::Joining { call: open, .. }) if call == *open => {
                self.on_join_answer(now, since, answer);
            }
            (Input::Heard { .. } | Input::JoinAnswered { .. }, _) => {}
            (Input::AskedBy(node), Phase::Pausing) => {
                // One that has just come need not wait for the pause to end.
                if self.heard.insert(node) {
                    self.timer = self.timer.min(now + PAUSE_MIN / 2);
                }
            }
            (Input::AskedBy(_), _) => {}
            (Input::JoinThrough(at), phase) => {
                self.join_through = Some(at);
                if matches!(phase, Phase::Pausing) {
                    self.timer = now;
                }
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to hand in [`Input::Timeout`]; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!matches!(self.phase, Phase::Done)).then_some(self.timer)
    }

    fn next_call(&mut self) -> CallId {
        self.call_next += 1;
        CallId(self.call_next)
    }

    fn begin_round(&mut self, now: Instant) {
        let seeds = self.seeds.clone().into_iter().map(|seed| (seed, true));
        let also = self.join_through.clone().filter(|at| !self.seeds.contains(at));
        let mut all = Vec::with_capacity(self.seeds.len() + 1);
        for (target, is_seed) in seeds.chain(also.map(|at| (at, false))) {
            if target == self.member.at {
                all.push(Asked::myself(target, is_seed));
            } else {
                let call = self.next_call();
                self.outputs.push_back(Output::Ask { call, seed: target.clone() });
                all.push(Asked::new(target, is_seed, call));
            }
        }
        let done = all.iter().all(Asked::is_done);
        self.phase = Phase::Asking(all);
        self.timer = now + ROUND_TIME_MAX;
        if done {
            self.end_round(now);
        }
    }

    fn end_round(&mut self, now: Instant) {
        let Phase::Asking(asked) = std::mem::replace(&mut self.phase, Phase::Pausing) else { return };
        let since = self.since.unwrap_or(now);
        self.heard = asked.iter().flat_map(Asked::nodes).map(|who| who.member.node).collect();
        match rounds::judge(&self.member, &self.seeds, &asked) {
            Verdict::Fatal(fatal) => self.finish(Output::Fatal(fatal)),
            Verdict::Founded { cluster, founders } => self.finish(Output::Found { cluster, founders }),
            Verdict::Formed { cluster, through } => {
                // Another one each time, so that one that cannot help does not keep this node out.
                let choice = self.rng.next_u64() % u64::try_from(through.len()).expect("a few");
                let (node, at) = through[usize::try_from(choice).expect("a few")].clone();
                let call = self.next_call();
                self.outputs.push_back(Output::Join { call, node, at: at.clone(), cluster });
                self.phase = Phase::Joining { call, cluster, at };
                self.timer = now + JOIN_TIME_MAX;
            }
            Verdict::AllFresh { founders, agree } => {
                let mine = self.proposal.as_ref() == Some(&founders);
                match agree {
                    Some(digest) if mine && digest == founders.digest() => {
                        self.finish(Output::Found { cluster: founders.cluster_id(), founders });
                    }
                    _ => {
                        if !mine {
                            self.proposal = Some(founders);
                        }
                        // The others turn to it within their next round.
                        self.pause = PAUSE_MIN;
                        self.say(now, since, "all seeds are there and agree on who they are".into());
                        self.pause(now);
                    }
                }
            }
            Verdict::Waiting(what) => {
                self.say(now, since, what);
                self.pause(now);
            }
        }
    }

    fn on_join_answer(&mut self, now: Instant, since: Instant, answer: Result<JoinAnswer, String>) {
        let Phase::Joining { cluster, at, .. } = std::mem::replace(&mut self.phase, Phase::Pausing) else {
            return;
        };
        let what = match answer {
            Ok(JoinAnswer::Welcome { cluster: welcomed, founders }) if welcomed == cluster => {
                let me = founders.get(self.member.node);
                return match me {
                    Some(me) if me.disk == self.member.disk => {
                        self.finish(Output::Found { cluster, founders });
                    }
                    _ => self.finish(Output::Joined { cluster, founders }),
                };
            }
            Ok(JoinAnswer::Welcome { cluster: other, .. }) => {
                format!("{} is in cluster {cluster} but welcomed this node to {other}", show(&at))
            }
            Ok(JoinAnswer::Refused(why)) => {
                return self.finish(Output::Fatal(Fatal::Refused { cluster, why }));
            }
            Ok(JoinAnswer::NotNow(why)) => format!("{} cannot let this node join yet: {why}", show(&at)),
            Err(why) => format!("{} did not answer the request to join: {why}", show(&at)),
        };
        self.say(now, since, what);
        self.pause(now);
    }

    fn finish(&mut self, output: Output) {
        self.outputs.push_back(output);
        self.phase = Phase::Done;
    }

    fn pause(&mut self, now: Instant) {
        self.phase = Phase::Pausing;
        let half = u64::try_from(self.pause.as_nanos() / 2).expect("a second");
        self.timer = now + Duration::from_nanos(half + self.rng.next_u64() % (half + 1));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn say(&mut self, now: Instant, since: Instant, what: String) {
        let due = match &self.said {
            None => now.since(since) >= SAY_AFTER,
            Some((at, said)) => now.since(*at) >= if *said == what { SAY_AGAIN } else { SAY_AFTER },
        };
        if due {
            self.said = Some((now, what.clone()));
            self.outputs.push_back(Output::Waiting(what));
        }
    }
}
