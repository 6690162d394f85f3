//! Elections, catching up, and proposals over a network that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use highwater_shards::ids::{NodeId, ProducerId};
use rand_xoshiro::rand_core::RngCore as _;
use tokio::time::{Instant, sleep};

use super::super::types::Vote;
use super::super::wire::ChunkAnswer::{Busy, Next, Working};
use super::super::{SNAPSHOT_CHUNK, raft_id, wire};
use super::world::{A, B, C, World, member, register, run, take_one};
use crate::control::ProposalId;
use crate::net::Incoming;

#[test]
fn three_nodes_founded_at_once_elect_one_leader_and_apply_the_same() {
    run(async || {
        let mut world = World::of_three(1).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        for node in [A, B, C] {
            world.count(node).await;
        }
        world.same(3).await;
        let status = world.raft(leader).status();
        assert_eq!(status.voters, BTreeSet::from([A, B, C]));
        assert_eq!(status.members[&B], member(B));
        let follower = world.follower(leader);
        world
            .until("progress", |world| {
                let status = world.raft(leader).status();
                status.progress[&follower].matched == status.last_log
            })
            .await;
        let stats = world.raft(leader).stats();
        assert!(stats.forwarded >= 2 && !stats.proposal_nanos.is_empty() && stats.flushes > 0);
        world.end().await;
    });
}

#[test]
fn killed_leaders_are_replaced_and_nothing_committed_is_lost() {
    run(async || {
        let mut world = World::of_three(2).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let mut taken = 0;
        for _ in 0..8 {
            let leader = world.leader().await;
            let term = world.raft(leader).status().term;
            world.count(leader).await;
            world.kill(leader).await;
            let killed = Instant::now();
            let next = world.leader().await;
            assert!(world.raft(next).status().term > term);
            // Nearly always within 1.5 s; split votes, which openraft's own dice decide, take longer.
            assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
            world.count(next).await;
            world.start(leader).await;
            taken += 2;
            world.same(taken).await;
        }
        world.end().await;
    });
}

#[test]
fn who_is_told_that_the_leader_is_dead_succeeds_it_once_its_lease_has_run_out() {
    run(async || {
        for seed in 0..20 {
            let mut world = World::of_three(seed).await;
            let leader = world.leader().await;
            world.kill(leader).await;
            let killed = Instant::now();
            let others = world.others(leader);
            for (turn, node) in (0..).zip(&others) {
                let raft = world.raft(*node).clone();
                tokio::task::spawn_local(async move { raft.succeed(leader, turn).await });
            }
            let next = world.leader().await;
            let (took, config) = (killed.elapsed(), &world.config);
            // By itself a follower waits for the one and then at least for the other.
            assert!(took < config.election_max + config.election_min, "{took:?}");
            let (heard_of, silent) = world.raft(next).status().predecessor.unwrap();
            assert_eq!(heard_of, leader);
            assert!(silent >= config.election_max, "its lease had run out: {silent:?}");
        }
    });
}

#[test]
fn a_leader_that_is_wrongly_said_to_be_dead_goes_on_leading() {
    run(async || {
        let world = World::of_three(1).await;
        let leader = world.leader().await;
        let term = world.raft(leader).status().term;
        let tries = world.others(leader).into_iter().map(|node| world.raft(node).succeed(leader, 0));
        join_all(tries).await;
        let status = world.raft(leader).status();
        assert_eq!((status.leader, status.term), (Some(leader), term));
    });
}

#[test]
fn a_node_far_behind_catches_up_by_a_snapshot() {
    run(async || {
        let mut world = World::of_three(3).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let behind = world.follower(leader);
        world.same(0).await;
        world.kill(behind).await;
        let leader = world.leader().await;
        for _ in 0..50 {
            let probes = (0..2000).map(|n| world.raft(leader).probe(Bytes::from(vec![n as u8; 20])));
            for result in join_all(probes).await {
                result.unwrap();
            }
            world.count(leader).await;
        }
        let status = world.raft(leader).status();
        assert!(status.last_log > Some(100_000) && status.purged > Some(80_000), "{status:?}");
        world.start(behind).await;
        world.same(50).await;
        assert!(world.seen(behind).installed >= 1);
        assert!(world.raft(behind).stats().snapshots_installed >= 1);
        assert!(world.raft(leader).stats().snapshots_sent >= 1);
        // And it goes on from there after another start.
        world.count(behind).await;
        world.kill(behind).await;
        world.start(behind).await;
        assert!(
            world.seen(behind).image.producer_id_next >= ProducerId(50),
            "from the snapshot, before any leader"
        );
        world.same(51).await;
        world.end().await;
    });
}

#[test]
fn a_lost_answer_to_a_snapshot_does_not_hold_a_node_up() {
    run(async || {
        let mut world = World::new(3);
        world.config.snapshot_every = 50;
        world.config.keep_entries = 0;
        for node in [A, B, C] {
            world.start(node).await;
        }
        world.found(&[A, B, C]).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let behind = world.follower(leader);
        world.same(0).await;
        world.kill(behind).await;
        let leader = world.leader().await;
        let probes = (0..600).map(|n| world.raft(leader).probe(Bytes::from(vec![n as u8; 20])));
        join_all(probes).await.into_iter().for_each(|result| result.unwrap());
        world.count(leader).await;
        world.until("a purge", |world| world.raft(leader).status().purged > Some(100)).await;
        world.hub.0.borrow_mut().loses_chunk = true;
        let since = Instant::now();
        world.start(behind).await;
        world.same(1).await;
        assert!(!world.hub.0.borrow().loses_chunk, "an answer was lost");
        // Another one, when the leader built a newer snapshot meanwhile.
        assert!(world.seen(behind).installed >= 1);
        assert!(since.elapsed() < Duration::from_secs(10), "it took {:?}", since.elapsed());
        world.end().await;
    });
}

#[test]
fn who_sends_a_part_of_a_snapshot_again_is_told_that_it_is_being_stored() {
    run(async || {
        let world = World::of_three(3).await;
        let leader = world.leader().await;
        let follower = world.follower(leader);
        let term = world.raft(leader).status().term;
        let chunk = |transfer| wire::Chunk {
            vote: Vote::new_committed(term, raft_id(leader)),
            transfer,
            len: 100,
            crc: 7,
            offset: 0,
            bytes: Bytes::from(vec![0; 60]),
        };
        let ask = |transfer| {
            let body = wire::encode(SNAPSHOT_CHUNK, &chunk(transfer));
            let (call, answer) = Incoming::new(leader, SNAPSHOT_CHUNK, body);
            world.raft(follower).on_call(call);
            async move { wire::decode_answer::<wire::Chunk>(SNAPSHOT_CHUNK, &answer.await.unwrap().unwrap()) }
        };
        let answers = join_all([ask(1), ask(1), ask(2)]).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [Next(60), Working, Busy]);
        world.end().await;
    });
}

#[test]
fn a_leader_that_one_follower_does_not_reach_goes_on_leading() {
    run(async || {
        let mut world = World::of_three(4).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let (near, far) =
            (world.follower(leader), world.running().into_iter().rfind(|n| *n != leader).unwrap());
        assert_ne!(near, far);
        let term = world.raft(leader).status().term;
        world.cut_both(leader, far);
        for _ in 0..20 {
            sleep(Duration::from_millis(500)).await;
            world.count(leader).await;
        }
        assert_eq!(
            world.raft(leader).status().term,
            term,
            "votes of the one that hears nothing disturb nobody"
        );
        assert_eq!(world.raft(near).status().leader, Some(leader));
        world.heal_all();
        world.same(20).await;
        assert_eq!(world.raft(far).status().term, term);
        world.end().await;
    });
}

#[test]
fn a_leader_that_hears_no_answers_gives_way() {
    run(async || {
        let mut world = World::of_three(5).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        let others = world.others(leader);
        // Its heartbeats go on keeping the others from electing one of them, were it not to go quiet.
        for &other in &others {
            world.cut(other, leader);
        }
        let next = world.leader_of(&others).await;
        world.count(next).await;
        world.heal_all();
        world.count(leader).await;
        world.same(2).await;
        world.end().await;
    });
}

#[test]
fn a_minority_takes_no_changes_and_heals_by_itself() {
    run(async || {
        let mut world = World::of_three(6).await;
        let old = world.leader().await;
        world.commit(old, &register()).await;
        let others = world.others(old);
        for &other in &others {
            world.cut_both(old, other);
        }
        let next = world.leader_of(&others).await;
        sleep(Duration::from_secs(2)).await;
        let refused = world.give(old, &take_one());
        world.until("a refusal", |world| world.seen(old).failed.iter().any(|(id, _)| *id == refused)).await;
        let reason = world.seen(old).failed[0].1.clone();
        assert!(reason.contains("leader"), "{reason}");
        world.count(next).await;
        assert_eq!(world.seen(old).image.producer_id_next, ProducerId(0));
        world.heal_all();
        world.count(old).await;
        world.same(2).await;
        world.end().await;
    });
}

#[test]
fn proposals_of_a_follower_are_applied_once_when_answers_are_lost() {
    run(async || {
        let mut world = World::of_three(7).await;
        let leader = world.leader().await;
        world.commit(leader, &register()).await;
        world.hub.0.borrow_mut().lost_answers = 500;
        world.hub.0.borrow_mut().lost = 50;
        let follower = world.follower(leader);
        let mut taken = 0;
        for round in 0..40 {
            world.count(follower).await;
            taken += 1;
            if round % 10 == 4 {
                // What the follower asks comes through; neither answers nor entries come back for a while.
                let leader = world.leader().await;
                let id = world.give(follower, &take_one());
                taken += 1;
                world.cut(leader, follower);
                sleep(Duration::from_secs(13)).await;
                world.heal_all();
                world
                    .until("a proposal in doubt", |world| world.seen(follower).committed.contains(&id))
                    .await;
            }
            if round % 10 == 9 {
                // Leaders come and go meanwhile.
                let leader = world.raft(follower).status().leader.unwrap_or(follower);
                let id = world.give(follower, &take_one());
                taken += 1;
                if leader != follower {
                    world.kill(leader).await;
                    world.start(leader).await;
                }
                world
                    .until("a proposal in doubt", |world| world.seen(follower).committed.contains(&id))
                    .await;
            }
        }
        world.hub.0.borrow_mut().lost_answers = 0;
        world.hub.0.borrow_mut().lost = 0;
        world.same(taken).await;
        let stats = world.raft(follower).stats();
        assert!(stats.proposals_repeated > 0, "some answers were lost");
        let duplicates: u64 = world.running().iter().map(|node| world.raft(*node).stats().duplicates).sum();
        assert!(duplicates > 0, "some proposals came twice into the log");
        {
            let seen = world.seen(follower);
            let once: BTreeSet<ProposalId> = seen.committed.iter().copied().collect();
            assert_eq!(once.len(), seen.committed.len(), "each is told once");
            assert!(seen.failed.is_empty());
        }
        world.end().await;
    });
}

#[test]
fn changes_come_through_a_network_that_delays_loses_and_cuts() {
    for seed in 100..106 {
        run(async || {
            let mut world = World::of_three(seed).await;
            let leader = world.leader().await;
            world.commit(leader, &register()).await;
            world.hub.0.borrow_mut().lost = 60;
            world.hub.0.borrow_mut().delay_ms_max = 40;
            let mut given: BTreeMap<NodeId, Vec<ProposalId>> = BTreeMap::new();
            for _ in 0..30 {
                let draw = world.hub.0.borrow_mut().random.next_u32();
                let pair = [(A, B), (B, C), (A, C)][(draw % 3) as usize];
                match draw % 7 {
                    0 => world.cut_both(pair.0, pair.1),
                    1 => world.cut(pair.0, pair.1),
                    2 | 3 => world.heal_all(),
                    _ => {}
                }
                let node = [A, B, C][(draw / 8 % 3) as usize];
                let id = world.give(node, &take_one());
                given.entry(node).or_default().push(id);
                sleep(Duration::from_millis(u64::from(draw / 64 % 2000))).await;
            }
            world.heal_all();
            world.hub.0.borrow_mut().lost = 0;
            world
                .until("answers to all", |world| {
                    given.iter().all(|(node, ids)| {
                        let seen = world.seen(*node);
                        let settled =
                            |id| seen.committed.contains(id) != seen.failed.iter().any(|(f, _)| f == id);
                        ids.iter().all(settled)
                    })
                })
                .await;
            let committed = given.iter().map(|(node, ids)| {
                ids.iter().filter(|id| world.seen(*node).committed.contains(id)).count() as u64
            });
            let committed = committed.sum();
            world.same(committed).await;
            world.end().await;
        });
    }
}

#[test]
fn a_leader_is_told_with_no_term_but_its_own() {
    let (old, new) = (Vote::new_committed(4, 3), Vote::new_committed(6, 2));
    assert_eq!(super::super::leader_in(&old, Some(2)), None, "its vote is not durable yet");
    assert_eq!(super::super::leader_in(&Vote::new(6, 2), Some(2)), None);
    assert_eq!(super::super::leader_in(&new, Some(2)), Some(2));
    assert_eq!(super::super::leader_in(&new, None), None);
}
