//! Planted bugs, by which the checkers are checked.

use highwater::control::metadata::command::{Command, Entry};
use highwater::raft::types::{EntryPayload, Payload};
use highwater::raft::wire::{self, AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use highwater::raft::{APPEND, VOTE};
use highwater_shards::ids::NodeId;

use super::net::{Answer, Call, Reply};
use crate::rng::Rng;

/// What goes wrong although nothing says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// A vote is answered before it is durable.
    VoteBeforeSync,
    /// Appended entries are acknowledged before they are durable.
    AppendBeforeSync,
    /// New names are not made durable.
    NoFolderSync,
    /// An append is answered as taken, and the node never saw it.
    AppendNeverTaken,
    /// Followers are told that entries are committed that are not.
    CommitTooFar,
    /// A vote that was refused comes as granted.
    VoteForged,
    /// The image of a snapshot lacks an entry.
    SnapshotSkips,
    /// The content of an entry changes on its way.
    EntryAltered,
    /// What was applied is told to the control loop twice.
    AppliedTwice,
    /// All lives of a node have the same number, so that its proposals are taken for repetitions.
    LivesAlike,
    /// One of the founders founds a cluster of its own.
    FoundedTwice,
    /// One link stays cut for ever.
    NeverHealed,
}

impl Sabotage {
    pub const ALL: [Self; 12] = [
        Self::VoteBeforeSync,
        Self::AppendBeforeSync,
        Self::NoFolderSync,
        Self::AppendNeverTaken,
        Self::CommitTooFar,
        Self::VoteForged,
        Self::SnapshotSkips,
        Self::EntryAltered,
        Self::AppliedTwice,
        Self::LivesAlike,
        Self::FoundedTwice,
        Self::NeverHealed,
    ];

    /// The checkers that are meant to catch it. Or a life ends that should go on: its log is damaged, or
    /// openraft sees by itself what is wrong.
    pub fn caught_by(self) -> &'static [&'static str] {
        match self {
            Self::VoteBeforeSync => &["votes", "leaders", "lives"],
            Self::AppendBeforeSync | Self::AppendNeverTaken | Self::CommitTooFar => {
                &["committed", "proposals", "images", "lives"]
            }
            Self::NoFolderSync => &["committed", "proposals", "votes", "leaders", "lives"],
            Self::VoteForged => &["leaders"],
            Self::SnapshotSkips | Self::AppliedTwice => &["images", "lives", "I11 convergence"],
            Self::EntryAltered => &["log matching"],
            Self::LivesAlike => &["proposals", "I11 convergence"],
            Self::FoundedTwice => &["founding"],
            Self::NeverHealed => &["I11 convergence"],
        }
    }
}

/// A call arrives; with an answer when its receiver never sees it.
pub fn on_call(sabotage: Option<Sabotage>, rng: &mut Rng, call: &mut Call) -> Option<Answer> {
    use Sabotage as S;
    let sabotage =
        sabotage.filter(|s| matches!(s, S::CommitTooFar | S::EntryAltered | S::AppendNeverTaken))?;
    if call.kind != APPEND {
        return None;
    }
    let mut rpc: AppendEntriesRequest<_> = wire::decode(APPEND, &call.body).ok()?;
    let last = rpc.entries.last()?.log_id;
    match sabotage {
        S::CommitTooFar => rpc.leader_commit = Some(last),
        S::AppendNeverTaken if rng.chance(50) => {
            let answer = AppendEntriesResponse::Success;
            return Some(Ok(wire::encode_answer::<AppendEntriesRequest<_>>(APPEND, &answer)));
        }
        S::EntryAltered if rng.chance(20) => {
            for entry in &mut rpc.entries {
                if let EntryPayload::Normal(Payload::Entry { body, .. }) = &mut entry.payload {
                    let other = Command::ReserveProducerIds { node: NodeId(1), count: 1 };
                    *body = Entry { commands: vec![other] }.encode().into();
                }
            }
        }
        _ => return None,
    }
    call.body = wire::encode(APPEND, &rpc);
    None
}

/// An answer arrives.
pub fn on_reply(sabotage: Option<Sabotage>, reply: &mut Reply) {
    let (Some(Sabotage::VoteForged), VOTE, Ok(bytes)) = (sabotage, reply.call.kind, &reply.answer) else {
        return;
    };
    let asked = wire::decode::<VoteRequest<_>>(VOTE, &reply.call.body);
    let answer = wire::decode_answer::<VoteRequest<_>>(VOTE, bytes);
    if let (Ok(asked), Ok(mut answer)) = (asked, answer) {
        answer.vote_granted = true;
        answer.vote = asked.vote;
        reply.answer = Ok(wire::encode_answer::<VoteRequest<_>>(VOTE, &answer));
    }
}
