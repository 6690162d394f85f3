//! Leadership and membership on command, starts, disks that fail, and callers that are refused.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use highwater_shards::ids::{NodeId, ProducerId};
use tokio::time::{Instant, sleep, timeout};

use super::super::types::{self, Payload, Tag, TypeConfig, Vote, raft_id};
use super::super::wire::{self, Propose};
use super::super::{APPEND, AdminError, DiskId, Member, PROPOSE, VOTE, open_in};
use super::world::{A, B, C, D, STUCK, World, member, register, run, take_one};
use crate::net::Incoming;

#[test]
fn leadership_moves_where_it_is_told() {
    run(async || {
        let mut world = World::of_three(8).await;
        let mut leader = world.leader().await;
        world.commit(leader, &register()).await;
        let moves: Vec<NodeId> = world.running().into_iter().filter(|node| *node != leader).collect();
        for to in moves {
            assert!(matches!(
                world.raft(to).transfer_leader(leader, STUCK).await,
                Err(AdminError::NotLeader { .. })
            ));
            let begun = Instant::now();
            world.raft(leader).transfer_leader(to, Duration::from_secs(10)).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
            leader = world.leader().await;
            assert_eq!(leader, to);
            world.count(leader).await;
        }
        world.same(2).await;
        world.end().await;
    });
}

#[test]
fn members_come_and_go() {
    run(async || {
        let mut world = World::of_three(9).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        world.start(D).await;
        let follower = world.follower(leader);
        let refused = world.raft(follower).add_learner(D, member(D)).await;
        assert_eq!(refused, Err(AdminError::NotLeader { leader: Some(leader) }));
        world.raft(leader).add_learner(D, member(D)).await.unwrap();
        world.raft(leader).add_learner(D, member(D)).await.unwrap();
        let replaced = Member { disk: DiskId(99), ..member(D) };
        let refused = world.raft(leader).add_learner(D, replaced).await.unwrap_err();
        assert_eq!(refused, AdminError::DiskReplaced { node: D });
        assert!(refused.to_string().contains("remove the node, then join under a new id"));
        world.count(D).await;
        world.raft(leader).promote(D).await.unwrap();
        assert_eq!(world.raft(leader).status().voters, BTreeSet::from([A, B, C, D]));
        world.raft(leader).demote(follower).await.unwrap();
        assert_eq!(world.raft(leader).status().learners, BTreeSet::from([follower]));
        world.raft(leader).remove(follower).await.unwrap();
        let status = world.raft(leader).status();
        assert!(!status.members.contains_key(&follower), "{status:?}");
        assert_eq!(world.raft(leader).remove(follower).await, Err(AdminError::UnknownNode(follower)));
        world.kill(follower).await;
        world.count(D).await;
        world.same(2).await;
        // The leader itself can be removed as well; another one takes over.
        world.raft(leader).remove(leader).await.unwrap();
        let rest: Vec<NodeId> = world.running().into_iter().filter(|node| *node != leader).collect();
        let next = world.leader_of(&rest).await;
        world.kill(leader).await;
        world.count(next).await;
        world.same(3).await;
        world.end().await;
    });
}

#[test]
fn a_sole_voter_leads_at_once_and_starts_from_snapshot_and_log() {
    run(async || {
        let mut world = World::new(10);
        world.config.snapshot_every = 50;
        world.config.keep_entries = 10;
        world.start(A).await;
        world.found(&[A]).await;
        world.commit(A, &register()).await;
        for life in 1..5 {
            for _ in 0..30 {
                world.count(A).await;
            }
            world.kill(A).await;
            let begun = Instant::now();
            world.start(A).await;
            assert!(world.seen(A).image.producer_id_next >= ProducerId(30 * life - 1), "all that was known");
            world.leader().await;
            world.same(30 * life).await;
            assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        }
        let status = world.raft(A).status();
        assert!(status.snapshot > Some(50), "{status:?}");
        world.end().await;
    });
}

#[test]
fn a_log_without_the_snapshot_it_relies_on_is_refused() {
    run(async || {
        let mut world = World::new(11);
        world.config.snapshot_every = 50;
        world.config.keep_entries = 10;
        world.start(A).await;
        world.found(&[A]).await;
        world.commit(A, &register()).await;
        for _ in 0..400 {
            world.count(A).await;
        }
        world.kill(A).await;
        let state = &world.nodes[&A];
        std::fs::remove_file(state.folder.join("snapshot")).unwrap();
        let refused = open_in(state.folder(), member(A).disk).err().expect("refused");
        assert!(refused.to_string().contains("snapshot"), "{refused}");
        world.end().await;
    });
}

#[test]
fn a_node_whose_disk_fails_stops_and_the_others_go_on() {
    run(async || {
        let mut world = World::of_three(13).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        world.nodes[&leader].disk.1.store(true, Ordering::Relaxed);
        world.give(leader, &take_one());
        let stopped = timeout(STUCK, async {
            while world.seen(leader).failure.is_none() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        stopped.await.expect("it says that it cannot go on");
        let reason = world.seen(leader).failure.as_ref().map(ToString::to_string).unwrap();
        assert!(reason.contains("the disk is gone"), "{reason}");
        world.kill(leader).await;
        let next = world.leader().await;
        world.count(next).await;
        world.end().await;
    });
}

#[test]
fn a_snapshot_waits_for_space_and_the_node_goes_on() {
    run(async || {
        let mut world = World::new(14);
        world.config.snapshot_every = 50;
        world.config.keep_entries = 10;
        world.start(A).await;
        world.found(&[A]).await;
        world.commit(A, &register()).await;
        world.nodes[&A].full.store(true, Ordering::Relaxed);
        for _ in 0..120 {
            world.count(A).await;
        }
        sleep(Duration::from_secs(3)).await;
        world.count(A).await;
        assert_eq!(world.raft(A).status().snapshot, None);
        world.nodes[&A].full.store(false, Ordering::Relaxed);
        world.until("a snapshot", |world| world.raft(A).status().snapshot > Some(50)).await;
        world.end().await;
    });
}

#[test]
fn a_node_that_speaks_for_another_is_refused() {
    run(async || {
        let mut world = World::of_three(12).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let follower = world.follower(leader);
        let term = world.raft(leader).status().term;
        let ask = async |from: NodeId, kind: u16, body: Bytes| {
            let (call, answer) = Incoming::new(from, kind, body);
            world.raft(follower).on_call(call);
            answer.await.unwrap().map(drop)
        };
        let vote = |node: NodeId, term: u64| openraft::raft::VoteRequest::<TypeConfig> {
            vote: Vote::new(term, raft_id(node)),
            last_log_id: None,
            leadership_transfer: true,
        };
        let forged = ask(A, VOTE, wire::encode(VOTE, &vote(B, term + 9))).await.unwrap_err();
        assert!(forged.contains("node 1 speaks for node 2"), "{forged}");
        let append = |node: NodeId, first: u64| openraft::raft::AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(term + 9, raft_id(node)),
            prev_log_id: None,
            entries: vec![types::LogEntry {
                log_id: types::LogId::new_term_index(1, first),
                payload: openraft::EntryPayload::Blank,
            }],
            leader_commit: None,
        };
        assert!(ask(A, APPEND, wire::encode(APPEND, &append(B, 0))).await.is_err());
        let gap = ask(A, APPEND, wire::encode(APPEND, &append(A, 7))).await.unwrap_err();
        assert!(gap.contains("cannot follow"), "{gap}");
        let tag = Some(Tag { node: B, incarnation: 1, sequence: 1 });
        let propose = Propose(Payload::Entry { tag, body: Bytes::new() });
        assert!(ask(A, PROPOSE, wire::encode(PROPOSE, &propose)).await.is_err());
        assert!(ask(A, 0x01ff, Bytes::new()).await.is_err());
        assert!(ask(A, VOTE, Bytes::from_static(b"junk")).await.is_err());
        assert_eq!(world.raft(follower).status().term, term, "nothing of it came to openraft");
        assert_eq!(world.raft(follower).stats().calls_refused, 6);
        world.end().await;
    });
}
