//! What must hold of every partition after every command, and between one command and the next; see kafka.md R1, R25-R28.
//!
//! It looks at images alone and knows nothing of how they come about. Commands of one entry are held apart: a move that
//! comes to its end and a leader that is fenced right after it are two steps, and would be a wrong one together.

use highwater::control::metadata::image::{Image, PartitionState};
use highwater_shards::ids::{NodeId, PartitionId, PartitionIndex, TopicId};

use crate::checkers::{Verdict, broken};

/// Holds the image after a command against the one before it.
pub fn check(old: &Image, new: &Image) -> Verdict {
    for topic in new.topics_from(TopicId::default()) {
        for (index, state) in (0..).map(PartitionIndex).zip(&topic.partitions) {
            let id = topic.partition_id(index);
            state_holds(id, state, new)?;
            if let Some(before) = old.partition(id) {
                step_holds(id, before, state, new)?;
            }
        }
    }
    Ok(())
}

fn state_holds(id: PartitionId, state: &PartitionState, image: &Image) -> Verdict {
    let wrong =
        |what: &str| Err(broken("partitions", format!("{id} {what} at {}: {state:?}", image.revision)));
    let held = |nodes: &[NodeId]| nodes.iter().all(|node| state.replicas.contains(node));
    if ![&state.isr, &state.elr, &state.adding, &state.removing].iter().all(|nodes| held(nodes)) {
        return wrong("counts on a node that does not hold it");
    }
    if state.isr.iter().any(|node| state.elr.contains(node)) {
        return wrong("has a node that is in sync and only eligible");
    }
    if state.isr.iter().any(|node| !image.serves(*node)) {
        return wrong("has a fenced node in sync");
    }
    match state.leader {
        Some(leader) if !state.isr.contains(&leader) => wrong("is led by a node that is not in sync"),
        None if state.isr.iter().any(|node| image.can_lead(*node)) => {
            wrong("has no leader, and one that could")
        }
        None if state.isr.is_empty() && state.elr.iter().any(|node| image.can_lead(*node)) => {
            wrong("has no leader, and an eligible one")
        }
        _ => Ok(()),
    }
}

fn step_holds(id: PartitionId, old: &PartitionState, new: &PartitionState, image: &Image) -> Verdict {
    let wrong = |what: &str| Err(broken("partitions", format!("{id} {what}: {old:?} {new:?}")));
    if old == new {
        return Ok(());
    }
    if new.partition_epoch <= old.partition_epoch {
        return wrong("changed within an epoch (R1)");
    }
    let has_left = old.replicas.iter().any(|node| !new.replicas.contains(node));
    if (new.leader != old.leader || has_left) != (new.leader_epoch > old.leader_epoch) {
        return wrong("has another leader epoch than it should (R1)");
    }
    // Whoever has everything that was acknowledged: unless it is said to recover, a leader is one of them.
    let had = |node: &NodeId| old.isr.contains(node) || old.elr.contains(node);
    // A leader that lives says itself who came in sync; it may leave by the same change.
    let is_vouched_for = old.leader.is_some_and(|leader| image.serves(leader));
    if let Some(leader) = new.leader
        && new.leader != old.leader
        && !(had(&leader) || is_vouched_for)
        && !new.recovering
    {
        return wrong("is led by a node that may lack acknowledged records (R25)");
    }
    let is_done = !old.adding.is_empty() && new.adding.is_empty() && new.replicas.len() < old.replicas.len();
    let went = old.removing.iter().any(|node| !new.replicas.contains(node));
    let joined = old
        .adding
        .iter()
        .all(|node| !new.replicas.contains(node) || new.isr.contains(node) || !new.isr.is_empty());
    if is_done && went && !joined {
        return wrong("gave replicas away before others were in sync");
    }
    Ok(())
}
