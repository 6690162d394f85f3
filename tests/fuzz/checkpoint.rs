//! Checkpoint files.

use highwater_shards::ids::{
    LeaderEpoch, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Sequence, ShardId, TopicId,
};
use highwater_shards::log::Lsn;
use highwater_shards::log::checkpoint::{
    Checkpoint, LogState, ProducedBatch, ProducerState, Resume, Superseded,
};
use highwater_shards::log::disk::FileNo;
use highwater_shards::log::journal::LogPosition;
use highwater_shards::log::segment::SegmentMeta;
use highwater_sim::rng::Rng;

use crate::target::{Target, hold, put_crc, u32_at};

const HEADER_BYTES: usize = 32;
const TRAILER_BYTES: usize = 36;

/// [`Checkpoint::parse`], which decodes epochs and producers too.
pub struct Parsed;

fn log(index: u32, segments: u64, producers: u64) -> LogState {
    let segment = |i: u64| SegmentMeta {
        base: Offset(i * 1_000),
        end: Offset(i * 1_000 + 990),
        generation: i as u32 % 3,
        bytes: 1 << (20 + i),
        max_timestamp_ms: 1_700_000_000_000,
        begun_ms: -1,
    };
    let batch = |i: u64| ProducedBatch {
        first: Sequence(i as u32),
        last: Sequence(i as u32 + 9),
        base: Offset(i * 7),
    };
    let producer = |i: u64| ProducerState {
        id: ProducerId(i << 33),
        epoch: ProducerEpoch(i as u16),
        batches: (0..5).map(batch).collect(),
    };
    let superseded = |i: u64| Superseded {
        id: ProducerId(i << 33),
        by: Offset(i * 9),
        before: (i % 2 == 1).then(|| producer(i)),
    };
    LogState {
        partition: PartitionId { topic: TopicId(5 << 90), index: PartitionIndex(index) },
        moved: Lsn { chunk: 400, entry: index },
        noted: Lsn { chunk: 401, entry: 0 },
        start: Offset(10),
        end: Offset(10 + segments * 1_000),
        high_watermark: Offset(12),
        cleaned: Offset(11),
        segments: (0..segments).map(segment).collect(),
        epochs: (0..3).map(|i| (LeaderEpoch(i * 2), Offset(u64::from(i) * 500))).collect(),
        producers: (0..producers).map(producer).collect(),
        superseded: (0..2 * producers).map(superseded).collect(),
    }
}

impl Target for Parsed {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn generate(&self) -> Vec<(&'static str, Vec<u8>)> {
        let end = LogPosition { file: FileNo(9), position: 81_920 };
        let make = |resume, logs| {
            Checkpoint { shard: ShardId(3), journal: 0xfeed, incarnation: 4, resume, logs }.encode().concat()
        };
        vec![
            ("empty", make(Resume::From { file: FileNo(7), sequence: 5 }, Vec::new())),
            ("clean", make(Resume::Clean { end, sequence: 402 }, vec![log(1, 2, 0), log(2, 1, 0)])),
            (
                "producers",
                make(Resume::From { file: FileNo(7), sequence: 5 }, vec![log(1, 1, 3), log(9, 0, 1)]),
            ),
            (
                "logs",
                make(Resume::From { file: FileNo(7), sequence: 5 }, (0..20).map(|i| log(i, 1, 0)).collect()),
            ),
        ]
    }

    fn seal(&self, bytes: &mut [u8]) {
        let Some(trailer) = bytes.len().checked_sub(TRAILER_BYTES).filter(|at| *at >= HEADER_BYTES) else {
            return;
        };
        let (mut crc, mut at, mut records) =
            (put_crc(&mut bytes[..HEADER_BYTES], 4, [0; 4]), HEADER_BYTES, 0_u32);
        while at + 8 <= trailer {
            // A length that leads nowhere is one that ends with the records.
            let len = (8 + u32_at(bytes, at + 4)).min(trailer - at);
            bytes[at + 4..at + 8].copy_from_slice(&(len as u32 - 8).to_be_bytes());
            crc = put_crc(&mut bytes[at..at + len], 0, crc);
            at += len;
            records += 1;
        }
        bytes[trailer + 4..trailer + 8].copy_from_slice(&records.to_be_bytes());
        put_crc(&mut bytes[trailer..], 0, crc);
    }

    fn damaged(&self, _rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String> {
        match Checkpoint::parse(bytes) {
            Ok(read) => hold(Checkpoint::parse(good).as_ref() == Ok(&read), || format!("passed: {read:?}")),
            Err(_) => hold(good != bytes, || "a good checkpoint was refused".to_owned()),
        }
    }

    fn hostile(&self, _rng: &mut Rng, bytes: &[u8]) -> Result<(), String> {
        let Ok(read) = Checkpoint::parse(bytes) else { return Ok(()) };
        // The bytes may have the logs in another order, but then they are the same in sorted order.
        let written = read.encode().concat();
        hold(written.len() == bytes.len() && Checkpoint::parse(&written) == Ok(read), || {
            "what was read is not what would be written".to_owned()
        })
    }
}
