//! What one round of questions to all seeds amounts to. A function of the answers alone.

use highwater_shards::ids::NodeId;

use super::identity::{ClusterId, Digest, Founders, Member, show};
use super::{CallId, Fatal, Heard, Rejection, Standing, Who};
use crate::control::metadata::image::Endpoint;

/// A target of this round, and what was heard from it.
#[derive(Debug)]
pub(super) struct Asked {
    target: Endpoint,
    /// Otherwise an operator named it, for joining only.
    is_seed: bool,
    /// `None` for this node itself, which is not asked.
    pub(super) call: Option<CallId>,
    heard: Option<Result<Vec<Heard>, String>>,
}

impl Asked {
    pub(super) fn new(target: Endpoint, is_seed: bool, call: CallId) -> Self {
        Self { target, is_seed, call: Some(call), heard: None }
    }

    pub(super) fn myself(target: Endpoint, is_seed: bool) -> Self {
        Self { target, is_seed, call: None, heard: Some(Ok(vec![Heard::Myself])) }
    }

    pub(super) fn heard(&mut self, from: Result<Vec<Heard>, String>) {
        self.heard = Some(from);
    }

    pub(super) fn is_done(&self) -> bool {
        self.heard.is_some()
    }

    fn answers(&self) -> impl Iterator<Item = &Heard> {
        let all = self.heard.as_ref().and_then(|heard| heard.as_ref().ok());
        all.into_iter().flatten().take(super::ADDRESSES_MAX)
    }

    /// Every node that answered.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Who> {
        self.answers().filter_map(|heard| match heard {
            Heard::Who(who) => Some(&**who),
            Heard::Myself | Heard::Rejected(_) | Heard::Failed(_) => None,
        })
    }
}

/// What follows from a round.
#[derive(Debug)]
pub(super) enum Verdict {
    Fatal(Fatal),
    /// This very disk is among the founders of a cluster that others have founded already.
    Founded {
        cluster: ClusterId,
        founders: Founders,
    },
    /// There is a cluster; these are in it.
    Formed {
        cluster: ClusterId,
        through: Vec<(NodeId, Endpoint)>,
    },
    /// Every seed answered and is in no cluster. `agree`: what all the others propose, when that is one thing.
    AllFresh {
        founders: Founders,
        agree: Option<Digest>,
    },
    /// In words, what keeps this node out of a cluster.
    Waiting(String),
}

pub(super) fn judge(me: &Member, seeds: &[Endpoint], asked: &[Asked]) -> Verdict {
    let rejected = asked.iter().find_map(|asked| {
        asked.answers().find_map(|heard| match heard {
            Heard::Rejected(why) => Some((asked.target.clone(), why)),
            _ => None,
        })
    });
    if let Some((at, why)) = rejected {
        return Verdict::Fatal(match why {
            Rejection::SameNodeId => Fatal::NodeIdTaken { node: me.node, at },
            Rejection::DiskReplaced => Fatal::UnderOldIdentity { node: me.node, at },
        });
    }
    if let Some(fatal) = asked.iter().flat_map(Asked::nodes).find_map(|who| mistaken_identity(me, who)) {
        return Verdict::Fatal(fatal);
    }
    if let Some(verdict) = join_or_found_with(me, asked) {
        return verdict;
    }
    if !seeds.contains(&me.at) {
        let mut reasons: Vec<String> =
            asked.iter().filter_map(|asked| member_of(me, seeds, asked).err()).collect();
        reasons.insert(
            0,
            format!(
                "no seed is in a cluster yet, and this node ({}) is not among `cluster.seeds`, which found it",
                show(&me.at)
            ),
        );
        return Verdict::Waiting(reasons.join("; "));
    }
    found_anew(me, seeds, asked)
}

fn mistaken_identity(me: &Member, who: &Who) -> Option<Fatal> {
    let at = || who.member.at.clone();
    match (who.member.node == me.node, who.member.disk == me.disk) {
        (true, false) => Some(Fatal::NodeIdTaken { node: me.node, at: at() }),
        (false, true) => Some(Fatal::DiskCopied { other: who.member.node, at: at() }),
        (true, true) | (false, false) => None,
    }
}

/// What to do when somebody is in a cluster; `None` when nobody is.
fn join_or_found_with(me: &Member, asked: &[Asked]) -> Option<Verdict> {
    let formed = asked.iter().flat_map(Asked::nodes).filter_map(|who| match &who.standing {
        Standing::Formed { cluster, founders } => Some((who, *cluster, founders)),
        Standing::Fresh { .. } => None,
    });
    let formed: Vec<(&Who, ClusterId, &Founders)> = formed.collect();
    let &(first, cluster, _) = formed.first()?;
    if let Some((other, second, _)) = formed.iter().find(|(_, other, _)| *other != cluster) {
        return Some(Verdict::Fatal(Fatal::TwoClusters {
            first: cluster,
            first_at: first.member.at.clone(),
            second: *second,
            second_at: other.member.at.clone(),
        }));
    }
    for (_, _, founders) in &formed {
        match founders.get(me.node) {
            Some(founder) if founder.disk == me.disk => {
                return Some(Verdict::Founded { cluster, founders: (*founders).clone() });
            }
            // An id that founded is never given to another disk, so nobody has to be asked.
            Some(_) => return Some(Verdict::Fatal(Fatal::DiskReplaced { node: me.node, cluster })),
            None => {}
        }
    }
    let mut through: Vec<(NodeId, Endpoint)> =
        formed.iter().map(|(who, ..)| (who.member.node, who.member.at.clone())).collect();
    through.dedup();
    Some(Verdict::Formed { cluster, through })
}

/// Nobody is in a cluster: whether the seeds can found one.
fn found_anew(me: &Member, seeds: &[Endpoint], asked: &[Asked]) -> Verdict {
    let mut members: Vec<(Member, &Endpoint)> = Vec::new();
    let mut proposals = Vec::new();
    let mut reasons = Vec::new();
    for asked in asked.iter().filter(|asked| asked.is_seed) {
        match member_of(me, seeds, asked) {
            Ok((member, proposes)) => {
                if let Some((_, other)) = members.iter().find(|(known, _)| known.node == member.node) {
                    reasons.push(format!(
                        "{} and {} both answer as node {}: give every node a `cluster.node_id` of its own",
                        show(other),
                        show(&asked.target),
                        member.node
                    ));
                }
                if let Some((_, other)) = members.iter().find(|(known, _)| known.disk == member.disk) {
                    reasons.push(format!(
                        "{} and {} have the same disk id: one data directory is a copy of the other's",
                        show(other),
                        show(&asked.target)
                    ));
                }
                if member != *me {
                    proposals.push(proposes);
                }
                members.push((member, &asked.target));
            }
            Err(reason) => reasons.push(reason),
        }
    }
    let ready = members.len();
    let founders = Founders::new(members.into_iter().map(|(member, _)| member).collect());
    match founders.filter(|_| reasons.is_empty()) {
        Some(founders) => {
            // Alone this node has nobody to agree with but itself.
            let agree = proposals.first().copied().unwrap_or_else(|| Some(founders.digest()));
            let agree = agree.filter(|first| proposals.iter().all(|other| *other == Some(*first)));
            Verdict::AllFresh { founders, agree }
        }
        None => {
            let of = seeds.len();
            Verdict::Waiting(format!(
                "{ready} of {of} seeds are ready to found the cluster; {}",
                reasons.join("; ")
            ))
        }
    }
}

/// The one node behind a seed and what it proposes, or why the seed cannot take part in founding.
fn member_of(me: &Member, seeds: &[Endpoint], asked: &Asked) -> Result<(Member, Option<Digest>), String> {
    let name = show(&asked.target);
    let mut found: Option<(&Member, Option<&Who>)> = None;
    let mut failed: Option<&str> = None;
    match &asked.heard {
        None => return Err(format!("{name} did not answer in time")),
        Some(Err(why)) => return Err(format!("{name}: {why}")),
        Some(Ok(_)) => {}
    }
    for heard in asked.answers() {
        let next = match heard {
            // Such a round has ended before.
            Heard::Rejected(_) => continue,
            Heard::Failed(why) => {
                failed = failed.or(Some(why));
                continue;
            }
            Heard::Myself => (me, None),
            Heard::Who(who) if who.member.disk == me.disk => (me, None),
            Heard::Who(who) => (&who.member, Some(&**who)),
        };
        if let Some((known, _)) = found
            && known != next.0
        {
            return Err(format!(
                "{name} leads to more than one node ({} and {}): name each by an address of its own",
                show(&known.at),
                show(&next.0.at)
            ));
        }
        found = Some(next);
    }
    let Some((member, who)) = found else {
        return Err(format!("{name}: {}", failed.unwrap_or("the name has no address")));
    };
    // Under a name that could lead elsewhere from elsewhere, two nodes could take themselves for the only seed.
    if member.at != asked.target {
        return Err(format!(
            "{name} is node {}, which advertises {1}: set its `cluster.cluster_addr_advertised` to {name}, or name it {1} in \
             the `cluster.seeds` of all nodes",
            member.node,
            show(&member.at)
        ));
    }
    let Some(who) = who else { return Ok((member.clone(), None)) };
    if let Some(difference) = difference(&who.seeds, seeds) {
        return Err(format!(
            "{name} (node {}) has other `cluster.seeds`: {difference}; make them the same",
            member.node
        ));
    }
    let Standing::Fresh { proposes } = &who.standing else {
        return Err(format!("{name} is in a cluster already"));
    };
    Ok((member.clone(), *proposes))
}

/// Which seeds only one of the two names; both lists are sorted.
fn difference(theirs: &[Endpoint], ours: &[Endpoint]) -> Option<String> {
    let only = |a: &[Endpoint], b: &[Endpoint]| -> Vec<String> {
        a.iter().filter(|seed| !b.contains(seed)).map(show).collect()
    };
    let (there, here) = (only(theirs, ours), only(ours, theirs));
    let parts = [(there, "it alone names"), (here, "this node alone names")];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(seeds, _)| !seeds.is_empty())
        .map(|(seeds, who)| format!("{who} {}", seeds.join(", ")))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
