//! Frames of the streams between shards, as they come from a follower and from a leader.
//!
//! A frame has no CRC of its own; the batches in it do. So a damaged frame may be read as other messages, but what a
//! follower would take in of it must be batches that were sent; and whatever is read must come out again when it is
//! written.

use std::sync::LazyLock;

use bytes::Bytes;
use highwater_shards::batch::{
    BatchBuilder, BatchHeader, Compression, HEADER_BYTES, OUTSIDE_CRC_BYTES, check_crc, parse_header,
};
use highwater_shards::frame::PREFIX;
use highwater_shards::ids::{LeaderEpoch, Offset, PartitionId, PartitionIndex, ShardId, TopicId};
use highwater_shards::stream::{
    Ack, Encoder, Ends, FromFollower, FromLeader, Handle, Hello, Message, Messages, Refusal, Subscribe,
    VERSION,
};
use highwater_sim::rng::Rng;

use crate::target::{Target, hold, u32_at};

/// [`Messages`] of either side, and the batches in them as a follower takes them.
pub struct Spoken;

const ENDS: Ends = Ends { high_watermark: Offset(70), log_start: Offset(9) };

/// The body of a frame, without its prefix.
fn frame(put: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut encoder = Encoder::default();
    put(&mut encoder);
    encoder.take().map_or_else(Vec::new, |parts| parts.concat().split_off(PREFIX))
}

fn batch(number: i64, len: usize) -> Bytes {
    let value: Vec<u8> = (0..len).map(|at| (at as i64 * 5 + number) as u8).collect();
    let batch = BatchBuilder::new();
    match number % 2 {
        0 => batch.record(number, Some(b"key"), Some(&value)).record(number, None, None).build(),
        _ => batch.compressed(Compression::Zstd, number, 2, &value).build(),
    }
}

/// What the CRCs cover of all batches of the corpus: parts of one of its files may have come into another.
static SENT: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let files = Spoken.generate().into_iter();
    let sent: Vec<Bytes> =
        files.flat_map(|(_, bytes)| batches(&bytes.into())).map(|(_, covered)| covered).collect();
    assert_eq!(sent.len(), 6, "all that is sent is taken");
    sent
});

/// What is read before the first message that cannot be.
fn read<M: Message>(frame: &Bytes) -> Vec<M> {
    Messages::new(frame).map_while(Result::ok).collect()
}

/// Batches of records as a follower takes them in: one after the other, up to the first that is not sound. What the CRC
/// covers of each; the offsets and epochs before that are held against the log.
fn batches(frame: &Bytes) -> Vec<(BatchHeader, Bytes)> {
    let mut all = Vec::new();
    for message in read::<FromLeader>(frame) {
        let FromLeader::Records { batches, .. } = message else { continue };
        let mut at = 0;
        while let Ok(header) = parse_header(&batches[at..])
            && let Some(batch) = batches.get(at..at + header.len as usize)
            && check_crc(batch)
        {
            let end = at + header.len as usize;
            all.push((header, batches.slice(at + OUTSIDE_CRC_BYTES..end)));
            at = end;
        }
    }
    all
}

/// `messages` must come back when they are written.
fn comes_back<M: Message + Clone + PartialEq + std::fmt::Debug>(
    messages: &[M],
    put: impl Fn(&mut Encoder, M),
) -> Result<(), String> {
    let again = frame(|encoder| messages.iter().for_each(|message| put(encoder, message.clone())));
    let again = read::<M>(&again.into());
    hold(again == messages, || format!("{messages:?} was read, and {again:?} once it was written again"))
}

fn is_written_as_read(frame: &Bytes) -> Result<(), String> {
    comes_back(&read(frame), Encoder::from_follower)?;
    comes_back(&read(frame), Encoder::from_leader)
}

impl Target for Spoken {
    fn name(&self) -> &'static str {
        "stream"
    }

    fn generate(&self) -> Vec<(&'static str, Vec<u8>)> {
        let hello = Hello { version: VERSION, batch_bytes_max: 1 << 20 };
        let subscribe = |handle, last_epoch: Option<u32>| {
            FromFollower::Subscribe(Subscribe {
                handle: Handle(handle),
                partition: PartitionId { topic: TopicId(0xabc << 66), index: PartitionIndex(handle) },
                leader_epoch: LeaderEpoch(5),
                offset: Offset(40),
                last_epoch: last_epoch.map(LeaderEpoch),
            })
        };
        let of_follower = |encoder: &mut Encoder| {
            encoder.from_follower(FromFollower::Hello(hello));
            encoder.from_follower(FromFollower::Credit { bytes: 1 << 24 });
            encoder.from_follower(subscribe(1, None));
            encoder.from_follower(subscribe(2, Some(4)));
            let (log_end, flushed_end) = (Offset(40), Offset(38));
            let ack = Ack { handle: Handle(1), log_start: Offset(0), log_end, flushed_end };
            encoder.from_follower(FromFollower::Ack(ack));
            encoder.from_follower(FromFollower::Unsubscribe { handle: Handle(2) });
        };
        let records = |encoder: &mut Encoder, handle, batches: Vec<Bytes>| {
            encoder.records(Handle(handle), LeaderEpoch(5), ENDS, batches);
        };
        let of_leader = |encoder: &mut Encoder| {
            records(encoder, 1, vec![batch(0, 300), batch(1, 200)]);
            records(encoder, 2, vec![batch(2, 40)]);
            encoder.from_leader(FromLeader::Watermark { handle: Handle(1), ends: ENDS });
            records(encoder, 1, vec![batch(3, 90), batch(4, 0), batch(5, 7)]);
        };
        let answers = |encoder: &mut Encoder| {
            encoder.from_leader(FromLeader::Hello(hello));
            let leader_epoch = LeaderEpoch(5);
            encoder.from_leader(FromLeader::Accepted { handle: Handle(1), leader_epoch, ends: ENDS });
            let (epoch, end) = (LeaderEpoch(3), Offset(20));
            encoder.from_leader(FromLeader::Diverging { handle: Handle(2), epoch, end });
            for reason in [
                Refusal::NotLeader,
                Refusal::FencedEpoch,
                Refusal::UnknownEpoch,
                Refusal::NotReplica,
                Refusal::Unavailable,
                Refusal::Moved { shard: ShardId(3) },
                Refusal::OutOfRange { start: Offset(9), end: Offset(30) },
            ] {
                encoder.from_leader(FromLeader::Refused { handle: Handle(2), reason });
            }
        };
        vec![
            ("of-a-follower", frame(of_follower)),
            ("records", frame(of_leader)),
            ("answers", frame(answers)),
        ]
    }

    fn seal(&self, bytes: &mut [u8]) {
        let frame = Bytes::copy_from_slice(bytes);
        let mut messages = Messages::<FromLeader>::new(&frame);
        while let Some(Ok(message)) = messages.next() {
            let FromLeader::Records { batches, .. } = message else { continue };
            let upto = messages.position();
            let mut at = upto - batches.len();
            while upto - at >= HEADER_BYTES {
                let len = u32_at(bytes, at + 8).saturating_add(12);
                if len < HEADER_BYTES || len > upto - at {
                    break;
                }
                let batch = &mut bytes[at..at + len];
                let crc = crc_fast::crc32_iscsi(&batch[OUTSIDE_CRC_BYTES..]);
                batch[OUTSIDE_CRC_BYTES - 4..OUTSIDE_CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
                at += len;
            }
        }
    }

    fn damaged(&self, _rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String> {
        let frame = Bytes::copy_from_slice(bytes);
        if bytes == good {
            let is_read = Messages::<FromLeader>::new(&frame).all(|m| m.is_ok())
                || Messages::<FromFollower>::new(&frame).all(|m| m.is_ok());
            hold(is_read, || "a good frame was refused".to_owned())?;
        }
        for (header, covered) in batches(&frame) {
            hold(SENT.contains(&covered), || format!("a batch that was never sent: {header:?}"))?;
        }
        is_written_as_read(&frame)
    }

    fn hostile(&self, _rng: &mut Rng, bytes: &[u8]) -> Result<(), String> {
        let frame = Bytes::copy_from_slice(bytes);
        for (header, covered) in batches(&frame) {
            let len = covered.len() + OUTSIDE_CRC_BYTES;
            hold(len == header.len as usize && header.offsets() > 0, || format!("an odd batch: {header:?}"))?;
        }
        is_written_as_read(&frame)
    }
}
