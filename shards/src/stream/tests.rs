use super::*;
use crate::ids::{PartitionIndex, TopicId};

const HANDLE: Handle = Handle(7);
const ENDS: Ends = Ends { high_watermark: Offset(40), log_start: Offset(3) };

fn of_followers() -> Vec<FromFollower> {
    let subscribe = |last_epoch| {
        FromFollower::Subscribe(Subscribe {
            handle: HANDLE,
            partition: PartitionId { topic: TopicId(9 << 77), index: PartitionIndex(4) },
            leader_epoch: LeaderEpoch(5),
            offset: Offset(1 << 40),
            last_epoch,
        })
    };
    vec![
        FromFollower::Hello(Hello { version: VERSION, batch_bytes_max: 1 << 24 }),
        subscribe(None),
        subscribe(Some(LeaderEpoch(4))),
        FromFollower::Unsubscribe { handle: HANDLE },
        FromFollower::Ack(Ack {
            handle: HANDLE,
            log_start: Offset(1),
            log_end: Offset(9),
            flushed_end: Offset(0),
        }),
        FromFollower::Credit { bytes: u32::MAX },
    ]
}

fn of_leaders() -> Vec<FromLeader> {
    let refused = |reason| FromLeader::Refused { handle: HANDLE, reason };
    vec![
        FromLeader::Hello(Hello { version: VERSION, batch_bytes_max: 7 }),
        FromLeader::Accepted { handle: HANDLE, leader_epoch: LeaderEpoch(5), ends: ENDS },
        FromLeader::Diverging { handle: HANDLE, epoch: LeaderEpoch(2), end: Offset(11) },
        refused(Refusal::NotLeader),
        refused(Refusal::FencedEpoch),
        FromLeader::Records {
            handle: HANDLE,
            leader_epoch: LeaderEpoch(5),
            ends: ENDS,
            batches: Bytes::from_static(b"some batches"),
        },
        refused(Refusal::UnknownEpoch),
        refused(Refusal::NotReplica),
        refused(Refusal::Unavailable),
        refused(Refusal::Moved { shard: ShardId(3) }),
        refused(Refusal::OutOfRange { start: Offset(2), end: Offset(8) }),
        FromLeader::Records {
            handle: HANDLE,
            leader_epoch: LeaderEpoch(5),
            ends: ENDS,
            batches: Bytes::from_static(b"more"),
        },
        FromLeader::Watermark { handle: HANDLE, ends: ENDS },
    ]
}

/// The body of the one frame that was encoded.
fn body(encoder: &mut Encoder) -> Bytes {
    let framed = Bytes::from(encoder.take().unwrap().concat());
    let (prefix, _) = framed.split_first_chunk().unwrap();
    assert_eq!(u32::from_be_bytes(*prefix) as usize, framed.len() - 4);
    assert!(encoder.is_empty() && encoder.take().is_none());
    framed.slice(4..)
}

fn read<M: Message>(frame: &Bytes) -> Result<Vec<M>, StreamError> {
    Messages::new(frame).collect()
}

#[test]
fn messages_of_one_frame_come_out_as_they_went_in() {
    let mut encoder = Encoder::default();
    for _ in 0..2 {
        of_followers().into_iter().for_each(|m| encoder.from_follower(m));
        assert_eq!(read(&body(&mut encoder)), Ok(of_followers()));
        of_leaders().into_iter().for_each(|m| encoder.from_leader(m));
        assert_eq!(read(&body(&mut encoder)), Ok(of_leaders()));
    }
}

#[test]
fn each_message_alone_makes_a_frame() {
    let mut encoder = Encoder::default();
    for message in of_leaders() {
        encoder.from_leader(message.clone());
        assert_eq!(read(&body(&mut encoder)), Ok(vec![message]));
    }
}

#[test]
fn record_bytes_are_not_copied_on_either_side() {
    let batches = [Bytes::from(vec![1; 1000]), Bytes::from(vec![2; 500])];
    let mut encoder = Encoder::default();
    encoder.records(HANDLE, LeaderEpoch(1), ENDS, batches.to_vec());
    let parts = encoder.take().unwrap();
    assert!(batches.iter().all(|b| parts.iter().any(|p| p.as_ptr() == b.as_ptr())));
    let frame = Bytes::from(parts.concat()).slice(4..);
    let Some(Ok(FromLeader::Records { batches, .. })) = Messages::new(&frame).next() else {
        panic!("one message of records")
    };
    assert_eq!(batches.len(), 1500);
    assert!(frame.as_ptr_range().contains(&batches.as_ptr()));
}

#[test]
fn a_frame_that_is_cut_anywhere_is_refused_or_ends_between_two_messages() {
    let mut encoder = Encoder::default();
    of_leaders().into_iter().for_each(|m| encoder.from_leader(m));
    let frame = body(&mut encoder);
    let whole = of_leaders();
    for cut in 0..frame.len() {
        match read::<FromLeader>(&frame.slice(..cut)) {
            Ok(messages) => assert_eq!(messages, whole[..messages.len()]),
            Err(error) => assert_eq!(error, StreamError::CutShort),
        }
    }
}

#[test]
fn bytes_of_a_stranger_are_refused_and_never_panic() {
    let mut state = 1_u64;
    for _ in 0..50_000 {
        let mut bytes = [0; 40];
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8 & if state & (1 << 40) == 0 { 0xff } else { 0x13 };
        }
        let frame = Bytes::copy_from_slice(&bytes);
        let _ = read::<FromLeader>(&frame);
        let _ = read::<FromFollower>(&frame);
    }
    let hello = |bytes: &[u8]| read::<FromFollower>(&Bytes::copy_from_slice(bytes));
    assert_eq!(hello(b"\0GET / HTTP/1.1"), Err(StreamError::NotAStream));
    assert_eq!(hello(b"\0HWRS\0\x09\0\0\0\0"), Err(StreamError::Version(9)));
}

#[test]
fn values_that_cannot_be_are_refused() {
    let mut encoder = Encoder::default();
    let impossible = Ends { high_watermark: Offset(3), log_start: Offset(4) };
    encoder.from_leader(FromLeader::Watermark { handle: HANDLE, ends: impossible });
    assert!(matches!(read::<FromLeader>(&body(&mut encoder)), Err(StreamError::Impossible(_))));
    let (log_start, log_end) = (Offset(0), Offset(3));
    encoder.from_follower(FromFollower::Ack(Ack {
        handle: HANDLE,
        log_start,
        log_end,
        flushed_end: Offset(4),
    }));
    assert!(matches!(read::<FromFollower>(&body(&mut encoder)), Err(StreamError::Impossible(_))));
    encoder.from_follower(FromFollower::Unsubscribe { handle: HANDLE });
    assert_eq!(read::<FromLeader>(&body(&mut encoder)), Err(StreamError::UnknownKind(2)));
}
