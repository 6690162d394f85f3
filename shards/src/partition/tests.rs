//! What a leader answers to a wish to follow, and what a follower makes of the answer, rule by rule.

use super::follower::{Learnt, Mend, Misfit};
use super::leader::Followed;
use super::*;
use crate::batch::{BatchBuilder, parse_header, put_patched};
use crate::ids::{PartitionIndex, RegistrationEpoch, TopicId};
use crate::stream::{Ends as Told, Refusal, Subscribe};

const US: NodeId = NodeId(1);
const THEM: NodeId = NodeId(2);
const LIFE: RegistrationEpoch = RegistrationEpoch(3);
const ID: PartitionId = PartitionId { topic: TopicId(1), index: PartitionIndex(0) };

/// A replica with records from `start` to `end`, of epochs that begin at these offsets.
fn replica(start: u64, epochs: &[(u32, u64)], end: u64) -> Partition {
    let mut partition = Partition::new(ID, US);
    partition.restore(
        Instant::ZERO,
        &LogState {
            partition: ID,
            moved: crate::log::Lsn::ZERO,
            noted: crate::log::Lsn::ZERO,
            start: Offset(start),
            end: Offset(end),
            high_watermark: Offset(start),
            cleaned: Offset::ZERO,
            segments: Vec::new(),
            epochs: epochs.iter().map(|&(epoch, at)| (LeaderEpoch(epoch), Offset(at))).collect(),
            producers: Vec::new(),
            superseded: Vec::new(),
        },
    );
    partition
}

fn assign(partition: &mut Partition, leader: NodeId, epoch: u32) -> Assigned {
    let assignment = Assignment {
        partition: ID,
        leader: Some(leader),
        leader_epoch: LeaderEpoch(epoch),
        partition_epoch: PartitionEpoch(partition.partition_epoch.0 + 1),
        replicas: vec![US, THEM],
        isr: vec![US, THEM],
        config: PartitionConfig::default(),
    };
    partition.assign(Instant::ZERO, &assignment)
}

fn leader(start: u64, epochs: &[(u32, u64)], end: u64, epoch: u32) -> Partition {
    let mut partition = replica(start, epochs, end);
    assert_eq!(assign(&mut partition, US, epoch), Assigned::LeadingAnew);
    partition
}

fn follower(start: u64, epochs: &[(u32, u64)], end: u64, epoch: u32) -> Partition {
    let mut partition = replica(start, epochs, end);
    assert_eq!(assign(&mut partition, THEM, epoch), Assigned::FollowingAnew);
    partition
}

fn ask(leader: &mut Partition, leader_epoch: u32, offset: u64, last_epoch: Option<u32>) -> Followed {
    let asked = Subscribe {
        handle: Handle(1),
        partition: ID,
        leader_epoch: LeaderEpoch(leader_epoch),
        offset: Offset(offset),
        last_epoch: last_epoch.map(LeaderEpoch),
    };
    leader.follow(THEM, LIFE, &asked)
}

fn diverging(epoch: u32, end: u64) -> Followed {
    Followed::Diverging { epoch: LeaderEpoch(epoch), end: Offset(end) }
}

const ACCEPTED: Followed = Followed::Accepted { epoch: LeaderEpoch(6) };
const EPOCHS: &[(u32, u64)] = &[(1, 0), (3, 10), (5, 20)];

#[test]
fn r02_an_assignment_that_is_older_than_what_is_known_changes_nothing() {
    let mut partition = leader(0, EPOCHS, 30, 6);
    partition.partition_epoch = PartitionEpoch(9);
    let mut old = Assignment {
        partition: ID,
        leader: Some(THEM),
        leader_epoch: LeaderEpoch(7),
        partition_epoch: PartitionEpoch(8),
        replicas: vec![US, THEM],
        isr: vec![THEM],
        config: PartitionConfig::default(),
    };
    assert_eq!(partition.assign(Instant::ZERO, &old), Assigned::Stale);
    assert!(partition.is_leader());
    old.partition_epoch = PartitionEpoch(9);
    assert_eq!(partition.assign(Instant::ZERO, &old), Assigned::FollowingAnew);
    assert_eq!(partition.assign(Instant::ZERO, &old), Assigned::Following, "the same again is no news");
}

#[test]
fn r03_a_leaders_epoch_begins_at_the_end_of_its_log() {
    let mut partition = leader(0, EPOCHS, 30, 6);
    assert_eq!(ask(&mut partition, 6, 30, Some(5)), ACCEPTED);
    assert_eq!(ask(&mut partition, 6, 31, Some(5)), diverging(5, 30));
    assert_eq!(partition.latest(), Err(PartitionError::OffsetNotAvailable));
}

#[test]
fn r04_a_subscription_of_another_epoch_is_refused_by_its_direction() {
    let mut partition = leader(0, EPOCHS, 30, 6);
    assert_eq!(ask(&mut partition, 5, 30, Some(5)), Followed::Refused(Refusal::FencedEpoch));
    assert_eq!(ask(&mut partition, 7, 30, Some(5)), Followed::Refused(Refusal::UnknownEpoch));
    let mut partition = follower(0, EPOCHS, 30, 6);
    assert_eq!(ask(&mut partition, 6, 30, Some(5)), Followed::Refused(Refusal::NotLeader));
}

#[test]
fn r19_the_largest_common_epoch_and_its_end_are_the_answer_where_logs_part() {
    let mut partition = leader(0, EPOCHS, 30, 6);
    for (offset, last_epoch, answer) in [
        (30, Some(5), ACCEPTED),
        (25, Some(5), ACCEPTED),
        (20, Some(3), ACCEPTED),
        (0, None, ACCEPTED),
        (21, Some(3), diverging(3, 20)),
        (15, Some(4), diverging(3, 20)),
        (12, Some(2), diverging(1, 10)),
        (40, Some(5), diverging(5, 30)),
    ] {
        assert_eq!(ask(&mut partition, 6, offset, last_epoch), answer, "{offset} {last_epoch:?}");
    }
}

#[test]
fn r19_an_offset_before_the_log_is_out_of_range() {
    let mut partition = leader(15, &[(3, 15), (5, 20)], 30, 6);
    let out = Followed::Refused(Refusal::OutOfRange { start: Offset(15), end: Offset(30) });
    assert_eq!(ask(&mut partition, 6, 14, Some(3)), out);
    assert_eq!(ask(&mut partition, 6, 31, None), out);
    assert_eq!(ask(&mut partition, 6, 18, Some(2)), out, "no record of epoch 2 or before is left");
}

#[test]
fn r20_a_log_is_cut_where_the_common_epoch_ends_first() {
    let own = follower(0, EPOCHS, 30, 6);
    for ((epoch, end), cut) in [
        ((5, 25), 25),
        ((5, 40), 30),
        ((3, 15), 15),
        ((3, 40), 20),
        // Epoch 4 is unknown here: what follows epoch 3 goes, and the leader is asked again.
        ((4, 28), 20),
        ((0, 5), 0),
    ] {
        let mend = own.mend_diverging(LeaderEpoch(epoch), Offset(end));
        assert_eq!(mend, Mend::Cut { end: Offset(cut) }, "epoch {epoch} to {end}");
    }
    let own = follower(20, &[(5, 20)], 40, 6);
    assert_eq!(own.mend_diverging(LeaderEpoch(3), Offset(30)), Mend::Cut { end: Offset(20) });
}

#[test]
fn r20_asking_and_cutting_ends_with_a_common_log() {
    // Every pair of histories over three epochs, of which two had the same leaders: what is left is a prefix of the
    // leader's, and there are never more rounds than epochs.
    let histories = |last: u32| {
        let mut all = vec![];
        for starts in 0..64_u64 {
            let (a, b, c) = (starts % 4, starts / 4 % 4, starts / 16);
            let mut epochs = vec![];
            for (epoch, len) in [(1, a), (2, b), (last, c)] {
                let at: u64 = epochs.iter().map(|&(_, _, len): &(u32, u64, u64)| len).sum();
                if len > 0 {
                    epochs.push((epoch, at, len));
                }
            }
            all.push(epochs);
        }
        all
    };
    let build = |history: &[(u32, u64, u64)]| {
        let epochs: Vec<(u32, u64)> = history.iter().map(|&(epoch, at, _)| (epoch, at)).collect();
        (epochs, history.last().map_or(0, |&(_, at, len)| at + len))
    };
    for ours in histories(3) {
        for theirs in histories(4) {
            let second = |history: &[(u32, u64, u64)]| history.iter().find(|e| e.0 == 2).map(|e| e.1);
            if second(&ours).zip(second(&theirs)).is_some_and(|(a, b)| a != b) {
                // An epoch begins in one place.
                continue;
            }
            let (epochs, end) = build(&ours);
            let mut leader = leader(0, &epochs, end, 6);
            let (epochs, end) = build(&theirs);
            let mut follower = follower(0, &epochs, end, 6);
            let mut rounds = 0;
            loop {
                let (offset, last_epoch) = follower.position();
                match ask(&mut leader, 6, offset.0, last_epoch.map(|e| e.0)) {
                    Followed::Accepted { .. } => break,
                    Followed::Diverging { epoch, end } => {
                        let Mend::Cut { end } = follower.mend_diverging(epoch, end) else { panic!("a cut") };
                        assert!(end < follower.log_end(), "each round cuts: {ours:?} {theirs:?}");
                        follower.cut(end);
                    }
                    Followed::Refused(Refusal::OutOfRange { .. }) => follower.cut(Offset(0)),
                    Followed::Refused(other) => panic!("{other:?}"),
                }
                rounds += 1;
                assert!(rounds <= 4, "{ours:?} {theirs:?}");
            }
            for offset in (0..follower.log_end().0).map(Offset) {
                assert_eq!(follower.epoch_of(offset), leader.epoch_of(offset), "{ours:?} {theirs:?}");
            }
        }
    }
}

#[test]
fn r21_an_answer_other_than_acceptance_is_no_progress() {
    let mut partition = leader(0, EPOCHS, 30, 6);
    let told = |p: &Partition| p.in_sync().unwrap().ends(THEM).unwrap();
    ask(&mut partition, 6, 40, Some(5));
    ask(&mut partition, 6, 21, Some(3));
    ask(&mut partition, 5, 30, Some(5));
    assert_eq!(told(&partition), Ends::default());
    ask(&mut partition, 6, 25, Some(5));
    assert_eq!(told(&partition), Ends { log: Offset(25), flushed: Offset(0) });
}

/// Of a batch of two records.
fn header(base: u64, epoch: u32) -> BatchHeader {
    let mut out = bytes::BytesMut::new();
    let batch = BatchBuilder::new().record(1, None, None).record(2, None, None).build();
    put_patched(&mut out, &batch, Offset(base), LeaderEpoch(epoch));
    parse_header(&out).unwrap()
}

#[test]
fn r22_only_what_comes_next_fits() {
    let own = follower(0, EPOCHS, 30, 6);
    let fits = |epoch, base, batch_epoch| own.fits(LeaderEpoch(epoch), &header(base, batch_epoch));
    assert_eq!(fits(6, 30, 5), Ok((Offset(30), LeaderEpoch(5))));
    assert_eq!(fits(6, 30, 6), Ok((Offset(30), LeaderEpoch(6))));
    assert_eq!(fits(5, 30, 5), Err(Misfit::OtherEpoch));
    for (base, batch_epoch) in [(29, 5), (31, 5), (30, 7), (30, 4)] {
        assert!(fits(6, base, batch_epoch).is_err(), "{base} {batch_epoch}");
    }
    // Only an empty log may begin within a batch.
    let empty = follower(31, &[], 31, 6);
    assert_eq!(empty.fits(LeaderEpoch(6), &header(30, 6)), Ok((Offset(30), LeaderEpoch(6))));
    assert!(empty.fits(LeaderEpoch(6), &header(29, 6)).is_err());
}

#[test]
fn r17_the_high_watermark_of_a_follower_is_the_leaders_within_its_log() {
    let mut own = follower(5, &[(5, 5)], 30, 6);
    let mut learn = |epoch, high_watermark, log_start| {
        let ends = Told { high_watermark: Offset(high_watermark), log_start: Offset(log_start) };
        let learnt = own.learn(LeaderEpoch(epoch), ends);
        (own.high_watermark().0, learnt)
    };
    let moved = Learnt { moved: true, start: None };
    assert_eq!(learn(6, 20, 0), (20, moved));
    assert_eq!(learn(5, 25, 0), (20, Learnt::default()), "of another epoch");
    assert_eq!(learn(6, 18, 0), (20, Learnt::default()), "what is committed stays so");
    assert_eq!(learn(6, 99, 0), (30, moved));
    assert_eq!(learn(6, 99, 50), (30, Learnt { moved: false, start: Some(Offset(30)) }));
}

#[test]
fn r24_a_log_that_does_not_meet_the_leaders_begins_anew() {
    let mend = |own: &Partition, start, end| own.mend_out_of_range(Offset(start), Offset(end));
    let own = follower(0, EPOCHS, 30, 6);
    assert_eq!(mend(&own, 50, 60), Mend::Anew { start: Offset(50) });
    assert_eq!(mend(&own, 0, 0), Mend::Anew { start: Offset(0) });
    let own = follower(20, EPOCHS, 30, 6);
    assert_eq!(mend(&own, 10, 25), Mend::Anew { start: Offset(20) });
    let empty = follower(30, &[], 30, 6);
    assert_eq!(mend(&empty, 0, 10), Mend::Cut { end: Offset(10) });
}

#[test]
fn an_epoch_without_records_is_forgotten_with_its_leadership() {
    let mut partition = leader(0, EPOCHS, 30, 6);
    assert_eq!(partition.end_of_epoch(LeaderEpoch(6)).map(|e| e.epoch), Some(LeaderEpoch(6)));
    assign(&mut partition, THEM, 7);
    assert_eq!(partition.position(), (Offset(30), Some(LeaderEpoch(5))));
    assert_eq!(partition.epochs.latest(), Some(LeaderEpoch(5)), "a batch of epoch 5 still fits");
}

#[test]
fn an_epoch_without_records_is_forgotten_by_a_life_after_it() {
    let led = leader(0, EPOCHS, 30, 6);
    let noted: Vec<_> = led.epochs.to_list().iter().map(|&(epoch, at)| (epoch.0, at.0)).collect();
    assert_eq!(noted.last(), Some(&(6, 30)), "the checkpoint was made while it led");
    let mut next = replica(0, &noted, 30);
    // What it took behind the checkpoint, as a follower, was of an epoch before.
    next.replay(Instant::ZERO, &header(30, 5), Offset(30), false);
    next.recovered();
    assert_eq!(next.position(), (Offset(32), Some(LeaderEpoch(5))));
}
