//! Checkpoints: their bytes, every way to damage them, and random ones.

use super::*;
use crate::ids::{PartitionIndex, TopicId};
use crate::log::random::Random;

/// Of any magnitude.
fn any(random: &mut Random, bits_max: u32) -> u64 {
    let bits = random.below(bits_max as usize + 1) as u32;
    random.next() & (1_u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1))
}

fn log(index: u32) -> LogState {
    let segment = SegmentMeta {
        base: Offset(1_000),
        end: Offset(90_000),
        generation: 2,
        bytes: 300_000_000,
        max_timestamp_ms: 1_700_000_000_000,
        begun_ms: 1_699_999_999_000,
    };
    LogState {
        partition: PartitionId { topic: TopicId(7 << 100), index: PartitionIndex(index) },
        moved: Lsn { chunk: 500_000, entry: 20 },
        noted: Lsn { chunk: 500_040, entry: 3 },
        start: Offset(1_010),
        end: Offset(90_000),
        high_watermark: Offset(89_990),
        cleaned: Offset(0),
        segments: vec![segment],
        epochs: vec![(LeaderEpoch(3), Offset(1_000)), (LeaderEpoch(9), Offset(80_000))],
        producers: Vec::new(),
        superseded: Vec::new(),
    }
}

fn small() -> Checkpoint {
    let batch = ProducedBatch { first: Sequence(5), last: Sequence(7), base: Offset(300) };
    let producer = ProducerState { id: ProducerId(4_000), epoch: ProducerEpoch(1), batches: vec![batch] };
    let superseded = vec![
        Superseded { id: ProducerId(4_000), by: Offset(300), before: None },
        Superseded { id: ProducerId(4_000), by: Offset(303), before: Some(producer.clone()) },
    ];
    Checkpoint {
        shard: ShardId(3),
        journal: 0xfeed,
        incarnation: 4,
        resume: Resume::From { file: FileNo(17), sequence: 500_001 },
        logs: vec![log(1), LogState { producers: vec![producer], superseded, ..log(2) }],
    }
}

fn bytes(checkpoint: &Checkpoint) -> Vec<u8> {
    checkpoint.encode().concat()
}

#[test]
fn a_checkpoint_has_these_bytes_in_format_2() {
    let hex: String = bytes(&small()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

const GOLDEN: &str = "48574350b5b1e0da0000000200000003000000000000feed00000000000000045a46748f000000420000007000000000\
    000000000000000001a0c21e142803f2079eb70586bf050001e807a8b7050280c6868f0180a0abfef962b090abfef962\
    0203e8070698e90400002d0790e4000000590000007000000000000000000000000002a0c21e142803f2079eb70586bf\
    050001e807a8b7050280c6868f0180a0abfef962b090abfef9620203e8070698e90401a01f01010507ac0202ac02a01f\
    000003a01f01010507ac0259350db1000000020000000100000000000000110000000000000000000000000007a121";

#[test]
fn checkpoints_survive_their_bytes() {
    let clean = Resume::Clean { end: LogPosition { file: FileNo(1), position: 8192 }, sequence: 9 };
    for checkpoint in
        [small(), Checkpoint { resume: clean, ..small() }, Checkpoint { logs: Vec::new(), ..small() }]
    {
        assert_eq!(Checkpoint::parse(&bytes(&checkpoint)), Ok(checkpoint));
    }
}

#[test]
fn every_bit_flip_in_a_checkpoint_is_refused() {
    let good = bytes(&small());
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(Checkpoint::parse(&bad).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_checkpoint_cut_anywhere_or_longer_than_written_is_refused() {
    let good = bytes(&small());
    for len in 0..good.len() {
        assert!(Checkpoint::parse(&good[..len]).is_err(), "{len}");
    }
    for more in [&[0][..], &[0; 36], &good] {
        assert!(Checkpoint::parse(&[&good[..], more].concat()).is_err());
    }
}

#[test]
fn records_of_two_checkpoints_do_not_mix() {
    let (one, mut other) = (small(), small());
    other.logs[0].end = Offset(90_001);
    let (a, b) = (bytes(&one), bytes(&other));
    assert_eq!(a.len(), b.len());
    for cut in 0..a.len() {
        let mixed = [&a[..cut], &b[cut..]].concat();
        let read = Checkpoint::parse(&mixed);
        assert!(read.is_err() || mixed == a || mixed == b, "{cut}");
    }
}

#[test]
fn logs_come_sorted_and_no_partition_comes_twice() {
    let unsorted = Checkpoint { logs: vec![log(9), log(2), log(5)], ..small() };
    let read = Checkpoint::parse(&bytes(&unsorted)).unwrap();
    assert_eq!(read.logs, [log(2), log(5), log(9)]);
    let twice = Checkpoint { logs: vec![log(2), log(5), log(2)], ..small() };
    assert!(matches!(Checkpoint::parse(&bytes(&twice)), Err(BadCheckpoint::Value { .. })));
}

fn random_checkpoint(random: &mut Random) -> Checkpoint {
    let mut logs = Vec::new();
    for index in 0..random.below(20) as u32 {
        let lsn = |random: &mut Random| Lsn { chunk: any(random, 64), entry: any(random, 32) as u32 };
        let (a, b) = (lsn(random), lsn(random));
        let (x, y) = (any(random, 63), any(random, 63));
        let mut base = 0;
        let segments = (0..random.below(4)).map(|_| {
            base += any(random, 60);
            SegmentMeta {
                base: Offset(base),
                end: Offset(base + any(random, 60)),
                generation: any(random, 32) as u32,
                bytes: any(random, 64),
                max_timestamp_ms: any(random, 64).cast_signed(),
                begun_ms: any(random, 64).cast_signed(),
            }
        });
        let segments = segments.collect();
        let (mut epoch, mut start) = (0, 0);
        let epochs = (0..random.below(5)).map(|_| {
            epoch += any(random, 28) as u32;
            start += any(random, 60);
            (LeaderEpoch(epoch), Offset(start))
        });
        let epochs = epochs.collect();
        let producer = |random: &mut Random, batches_max: usize| ProducerState {
            id: ProducerId(any(random, 64)),
            epoch: ProducerEpoch(any(random, 16) as u16),
            batches: (0..random.below(batches_max + 1))
                .map(|_| ProducedBatch {
                    first: Sequence(any(random, 32) as u32),
                    last: Sequence(any(random, 32) as u32),
                    base: Offset(any(random, 63)),
                })
                .collect(),
        };
        let producers = (0..random.below(4)).map(|_| producer(random, 5)).collect();
        let mut by = 0;
        let superseded = (0..random.below(4)).map(|_| {
            by += any(random, 60);
            let before = producer(random, 2);
            let (id, by) = (before.id, Offset(by));
            Superseded { id, by, before: Some(before).filter(|before| !before.batches.is_empty()) }
        });
        let superseded = superseded.collect();
        logs.push(LogState {
            partition: PartitionId { topic: TopicId(u128::from(index) << 64), index: PartitionIndex(index) },
            moved: a.min(b),
            noted: a.max(b),
            start: Offset(x.min(y)),
            end: Offset(x.max(y)),
            high_watermark: Offset(any(random, 63)),
            cleaned: Offset(any(random, 63)),
            segments,
            epochs,
            producers,
            superseded,
        });
    }
    let (file, sequence) = (FileNo(any(random, 64)), any(random, 64));
    let resume = if random.below(2) == 0 {
        Resume::From { file, sequence }
    } else {
        Resume::Clean { end: LogPosition { file, position: any(random, 64) }, sequence }
    };
    Checkpoint {
        shard: ShardId(any(random, 16) as u16),
        journal: any(random, 64),
        incarnation: any(random, 64),
        resume,
        logs,
    }
}

#[test]
fn random_checkpoints_survive_their_bytes_and_no_random_damage_passes() {
    for seed in 0..300 {
        let random = &mut Random(seed);
        let checkpoint = random_checkpoint(random);
        let good = bytes(&checkpoint);
        assert_eq!(Checkpoint::parse(&good).as_ref(), Ok(&checkpoint), "seed {seed}");
        for _ in 0..20 {
            let mut bad = good.clone();
            let at = random.below(bad.len());
            match random.below(3) {
                0 => bad[at] = bad[at].wrapping_add(1 + random.below(255) as u8),
                1 => drop(bad.remove(at)),
                _ => bad.insert(at, random.next() as u8),
            }
            // What was put in or taken out may leave the file as it was.
            assert!(bad == good || Checkpoint::parse(&bad).is_err(), "seed {seed}");
        }
    }
}

#[test]
fn ten_thousand_logs_take_less_than_a_megabyte() {
    let mut encoder = Encoder::new(ShardId(0), 1, 1);
    for index in 0..10_000 {
        encoder.log(&log(index));
    }
    assert!(encoder.bytes() < 1_000_000, "{}", encoder.bytes());
    let parts = encoder.finish(small().resume);
    assert!(parts.len() > 1 && parts.iter().all(|part| part.len() < 300_000));
    assert_eq!(Checkpoint::parse(&parts.concat()).unwrap().logs.len(), 10_000);
}

/// A record under a right CRC whose content is hostile.
fn with_record(body: &[u8]) -> Vec<u8> {
    let empty = bytes(&Checkpoint { logs: Vec::new(), ..small() });
    let (header, trailer) = empty.split_at(32);
    let seal = |crc: [u8; 4], rest: &[u8]| {
        let mut all = [&crc[..], rest].concat();
        let crc = crc_fast::crc32_iscsi(&all).to_be_bytes();
        all[..4].copy_from_slice(&crc);
        (all, crc)
    };
    let rest = [&(body.len() as u32).to_be_bytes(), body].concat();
    let (record, crc) = seal(header[4..8].try_into().unwrap(), &rest);
    let mut rest = trailer[4..].to_vec();
    rest[..4].copy_from_slice(&1_u32.to_be_bytes());
    [header, &record, &seal(crc, &rest).0].concat()
}

#[test]
fn hostile_records_under_right_crcs_are_refused_without_allocating_for_them() {
    let topic = [1; 16];
    let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let fields = |fields: &[&[u8]]| [&[&topic[..]], fields].concat().concat();
    let plain = [0; 9];
    let good = fields(&[&plain, &[0, 0, 0, 0]]);
    assert_eq!(Checkpoint::parse(&with_record(&good)).unwrap().logs.len(), 1);
    for (body, why) in [
        (topic[..15].to_vec(), "a record shorter than a topic id"),
        (topic.to_vec(), "a number is cut short"),
        (fields(&[&plain, &huge]), "a list is longer than its record"),
        (fields(&[&plain, &[0], &huge]), "a list is longer than its record"),
        (fields(&[&plain, &[0, 0], &huge]), "a list is longer than its record"),
        (fields(&[&plain, &[0, 0, 1, 1, 1], &huge]), "a list is longer than its record"),
        (fields(&[&plain, &[0, 0, 0], &huge]), "a list is longer than its record"),
        (fields(&[&plain, &[0, 0, 0, 1, 7, 1, 1, 0]]), "a producer that was unknown has an epoch"),
        (fields(&[&plain, &[0, 0, 0, 0, 0]]), "a record longer than what it holds"),
        (fields(&[&[0x80, 0]]), "a number is padded"),
        (fields(&[&[0xff; 9], &[2]]), "a number is too long"),
        (fields(&[&[0xff; 12]]), "a number is too long"),
        (fields(&[&[0xff; 9], &[1]]), "a number is too large"),
        (fields(&[&[0, 0, 5, 0, 4]]), "what is noted is older than what was moved"),
        (fields(&[&[0; 5], &[0xff; 9], &[1]]), "an offset is too large"),
    ] {
        assert_eq!(
            Checkpoint::parse(&with_record(&body)),
            Err(BadCheckpoint::Value { position: 32, what: why }),
            "{body:?}"
        );
    }
}
