//! Slow shards, large topics, and random schedules.

use super::*;

#[test]
fn producer_ids_are_never_given_twice_across_restarts_and_failures() {
    let mut disk = Disk::default();
    let mut seen = BTreeSet::new();
    for life in 0..4 {
        let mut world = World::start(1, disk);
        world.recover_empty();
        world.run();
        for id in 0..700 {
            world.ask(id, Request::NewProducerId);
            if id % 300 == 0 && world.reply(id).is_none() {
                let (proposal, _) = world.proposals.pop_front().unwrap();
                world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
            }
            if id % 350 == 0 {
                world.run();
            }
        }
        world.run();
        for (_, reply) in world.local.drain(..) {
            match reply {
                Reply::NewProducerId(Ok((id, epoch))) => {
                    assert_eq!(epoch, ProducerEpoch(0));
                    assert!(seen.insert(id), "life {life}: {id} was given before");
                }
                Reply::NewProducerId(Err(refusal)) => assert_eq!(refusal.why, Why::StorageFailed),
                other => panic!("{other:?}"),
            }
        }
        disk = world.disk;
    }
    assert!(seen.len() > 2000, "{}", seen.len());
}

#[test]
fn what_a_slow_shard_has_not_applied_is_gathered_into_one_change() {
    let mut world = World::serving(1);
    for id in 0..100 {
        world.ask(id, create(&[&format!("t{id}")], 1));
        while world.commit() | world.keep() {}
    }
    assert!(world.shards[0].told.len() <= DELTAS_MAX, "{}", world.shards[0].told.len());
    world.run();
    assert_eq!(world.local.len(), 100);
    world.check_shards();
}

#[test]
fn a_large_topic_whose_part_is_refused_is_answered_once_and_not_begun_anew() {
    let mut world = World::serving(1);
    world.ask(1, create(&["large"], 3000));
    world.commit();
    assert_eq!(world.proposals.len(), 1, "the second part is under way");
    let other = Stage { by: ME, topic: TopicId(5), at: 0, replicas: vec![vec![ME]] };
    let entry = Entry { commands: vec![Command::Stage(other)] };
    let revision = Revision(world.disk.image.revision.0 + 1);
    world.disk.image.apply(revision, &entry);
    world.input(Input::Committed { revision, proposal: None, entry });
    world.run();
    assert_eq!(refusals(&world.reply(1).unwrap()), [Some(Why::Conflict)]);
    assert!(world.local.is_empty() && world.proposals.is_empty());
    assert_eq!(world.control.image().topic_count(), 0);
    world.ask(2, create(&["large"], 3000));
    world.run();
    assert_eq!(refusals(&world.reply(2).unwrap()), [None]);
    world.check_shards();
}

#[test]
fn a_hundred_thousand_partitions_come_in_small_entries_and_each_topic_at_once() {
    let mut world = World::serving(4);
    let first = world.disk.image.revision;
    for id in 0..10 {
        match id % 2 {
            // One topic that is too large for an entry, or many small ones.
            0 => world.ask(id, create(&[&format!("large{id}")], 10_000)),
            _ => {
                let names: Vec<String> = (0..2500).map(|at| format!("small{id}-{at}")).collect();
                world.ask(id, create(&names.iter().map(String::as_str).collect::<Vec<_>>(), 4));
            }
        }
        while let Some((_, entry)) = world.proposals.front() {
            assert!(entry.encode().len() <= ENTRY_BYTES_MAX + 16, "{} bytes", entry.encode().len());
            let weight: usize = entry.commands.iter().map(Command::weight).sum();
            assert!(weight <= ENTRY_BYTES_MAX, "{weight}");
            world.commit();
            let large = world.control.image().topic(&format!("large{id}"));
            assert!(large.is_none_or(|t| t.partitions.len() == 10_000), "half of a topic can be seen");
        }
        world.run();
        let reply = world.reply(id).expect("answered");
        assert!(refusals(&reply).iter().all(Option::is_none));
    }
    assert_eq!(world.control.image().partition_count(), 100_000);
    let entries = world.disk.image.revision.0 - first.0;
    assert!((100..150).contains(&entries), "{entries} entries of at most 1000 partitions");
    world.check_shards();
    let owned = world.owned();
    assert_eq!(owned, [25_000; 4]);
}

#[test]
fn random_schedules_with_restarts_answer_each_request_once_and_converge() {
    for seed in 0..60 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = |n: u32| random.next_u32() % n;
        let mut disk = Disk::default();
        for _ in 0..3 {
            let mut world = World::start(3, disk);
            let (mut asked, mut answered) = (0_u64, BTreeSet::new());
            for shard in 0..3 {
                let placed = world.disk.image.local_shards().filter(|(_, s)| s.0 == shard);
                let partitions = placed.map(|(p, _)| p).collect();
                world.shard_says(usize::from(shard), ToControl::Recovered { partitions });
            }
            for _ in 0..400 {
                let name = format!("t{}", below(8));
                match below(12) {
                    0..=2 => world.ask(asked, create(&[&name], 1 + below(5))),
                    3 => world.ask(asked, delete(&name)),
                    4 => world.ask(asked, Request::NewProducerId),
                    5 => {
                        let op = ConfigOp::Set((1 + below(3)).to_string());
                        let resource = match below(2) {
                            0 => ConfigResource::Cluster,
                            _ => ConfigResource::Topic(name),
                        };
                        world.ask(asked, alter(resource, "min.insync.replicas", op));
                    }
                    6 | 7 => drop(world.commit()),
                    8 => drop(world.keep()),
                    9 if below(4) == 0 => {
                        if let Some((id, _)) = world.keeps.pop_front() {
                            world.input(Input::KeepFailed { id, reason: "disk full".into() });
                        } else if world.ready
                            && let Some((proposal, _)) = world.proposals.pop_front()
                        {
                            world.input(Input::ProposalFailed { proposal, reason: "disk full".into() });
                        }
                    }
                    9 => world.pass(Duration::from_millis(u64::from(below(900)))),
                    _ => drop(world.step(below(3) as usize)),
                }
                // Only the arms that ask use up the number: an unused one is not expected to be answered.
                if world.control.stats().requests > asked {
                    asked += 1;
                }
                for (id, _) in world.local.drain(..) {
                    assert!(answered.insert(id), "seed {seed}: answered twice");
                }
            }
            if below(2) == 0 {
                for _ in 0..20 {
                    world.run();
                    world.pass(2 * SECOND);
                }
                assert!(world.ready, "seed {seed}");
                world.check_shards();
                for (id, _) in world.local.drain(..) {
                    assert!(answered.insert(id), "seed {seed}: answered twice");
                }
                assert_eq!(answered.len() as u64, asked, "seed {seed}: each request is answered");
            }
            disk = world.disk;
        }
    }
}
