use super::rebuild::set_crc;
use super::*;

const LIMITS: Limits = Limits { batch_bytes_max: 1 << 20, keys_required: false };

fn plain(records: u32) -> Vec<u8> {
    let mut b = BatchBuilder::new();
    for i in 0..records {
        b = b.record(1_000 + i64::from(i), Some(b"key"), Some(&vec![7; i as usize * 40]));
    }
    b.build().to_vec()
}

fn idempotent(base_sequence: u32) -> BatchProducer {
    BatchProducer { id: ProducerId(4000), epoch: ProducerEpoch(2), base_sequence: Sequence(base_sequence) }
}

/// The batch after `change`, with a CRC that is right again.
fn changed(mut batch: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut batch);
    set_crc(&mut batch);
    batch
}

fn validate(bytes: &[u8]) -> Result<usize, BatchError> {
    validate_produced(bytes, LIMITS).map(|b| b.len())
}

fn invalid(bytes: &[u8]) -> bool {
    matches!(validate(bytes), Err(BatchError::Invalid(_)))
}

/// What kafka-python 3.0 makes of two records: a key, a value and a header at timestamp 1, then nothing at 3.
#[rustfmt::skip]
const GOLDEN: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 71, 0, 0, 0, 0, 2, 23, 99, 227, 226,
    0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 2,
    28, 0, 0, 0, 2, 107, 4, 118, 119, 2, 2, 104, 4, 120, 121,
    12, 0, 4, 2, 1, 1, 0,
];

#[test]
fn header_reads_as_it_was_built() {
    let bytes = BatchBuilder::new()
        .producer(idempotent(9))
        .record(50, None, Some(b"a"))
        .record(40, Some(b"k"), None)
        .build();
    let h = parse_header(&bytes).unwrap();
    assert_eq!(h.len as usize, bytes.len());
    assert_eq!((h.base_offset, h.leader_epoch), (0, -1));
    assert_eq!((h.last_offset_delta, h.records, h.offsets()), (1, 2, 2));
    assert_eq!((h.base_timestamp_ms, h.max_timestamp_ms), (50, 50));
    assert_eq!(h.producer, Some(idempotent(9)));
    assert_eq!(h.last_sequence(), Some(Sequence(10)));
    assert_eq!(validate(&bytes), Ok(1));
}

#[test]
fn every_byte_flip_of_a_batch_is_refused_or_outside_the_crc() {
    let good = plain(3);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let patched_by_leader = at < 8 || (12..16).contains(&at);
            assert_eq!(validate(&bad).is_ok(), patched_by_leader, "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn every_cut_of_a_batch_is_corrupt() {
    let good = plain(3);
    for len in 1..good.len() {
        assert_eq!(validate(&good[..len]), Err(BatchError::Corrupt), "{len}");
    }
    assert!(invalid(&[]));
}

#[test]
fn old_formats_are_unsupported_not_corrupt() {
    for magic in [0, 1] {
        let mut old = vec![0; 34];
        old[16] = magic;
        assert_eq!(validate(&old), Err(BatchError::UnsupportedFormat(magic)));
        assert_eq!(
            PartitionError::from(BatchError::UnsupportedFormat(magic)),
            PartitionError::UnsupportedFormat
        );
    }
}

#[test]
fn length_that_lies_is_corrupt() {
    for len in [i32::MIN, -1, 0, 48, i32::MAX] {
        let bad = changed(plain(1), |b| b[8..12].copy_from_slice(&len.to_be_bytes()));
        assert_eq!(validate(&bad), Err(BatchError::Corrupt), "{len}");
    }
}

#[test]
fn count_must_be_last_offset_delta_plus_one() {
    for count in [i32::MIN, -1, 0, 1, 3, i32::MAX] {
        assert!(invalid(&changed(plain(2), |b| b[57..61].copy_from_slice(&count.to_be_bytes()))), "{count}");
    }
    for delta in [i32::MIN, -1, 0, 2, i32::MAX] {
        assert!(invalid(&changed(plain(2), |b| b[23..27].copy_from_slice(&delta.to_be_bytes()))), "{delta}");
    }
    // Both agree, but there are fewer records, or more.
    for count in [1, 3] {
        assert!(invalid(&changed(plain(2), |b| {
            b[23..27].copy_from_slice(&(count - 1_i32).to_be_bytes());
            b[57..61].copy_from_slice(&count.to_be_bytes());
        })));
    }
    assert!(invalid(&BatchBuilder::new().build()));
}

#[test]
fn attributes_that_a_producer_may_not_set_are_refused() {
    let with = |bits| BatchBuilder::new().attributes(Attributes(bits)).record(1, None, None).build();
    assert_eq!(validate(&with(0)), Ok(1));
    for bits in [5, 6, 7, 0x08, 0x10, 0x20, 0x40, 0x80, 0x8000] {
        assert!(invalid(&with(bits)), "{bits:#x}");
    }
}

#[test]
fn compressed_records_are_not_looked_at() {
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let b = BatchBuilder::new().compressed(codec, 5, 3, b"opaque").build();
        assert_eq!(validate(&b), Ok(1));
        assert_eq!(parse_header(&b).unwrap().attributes.compression(), Some(codec));
    }
}

#[test]
fn batch_of_an_idempotent_producer_comes_alone_and_with_base_offset_zero() {
    let one = BatchBuilder::new().producer(idempotent(0)).record(1, None, None).build();
    assert_eq!(validate_produced(&one, LIMITS).unwrap().idempotent().map(|h| h.records), Some(1));
    assert!(invalid(&[&one[..], &one].concat()));
    assert!(invalid(&[&one[..], &plain(1)].concat()));
    assert!(invalid(&[&plain(1)[..], &one].concat()));
    assert!(invalid(&changed(one.to_vec(), |b| b[7] = 1)));
    assert_eq!(validate(&changed(plain(1), |b| b[7] = 1)), Ok(1));
    for at in [43, 51, 53] {
        assert!(invalid(&changed(one.to_vec(), |b| b[at] = 0x80)), "negative at {at}");
    }
}

#[test]
fn several_batches_are_taken_together_or_not_at_all() {
    let (a, b) = (plain(2), plain(5));
    let both = [&a[..], &b].concat();
    let batches = validate_produced(&both, LIMITS).unwrap();
    assert_eq!((batches.len(), batches.offsets(), batches.bytes()), (2, 7, both.len()));
    let parts: Vec<_> = batches.iter().map(|(h, bytes)| (h.records, bytes)).collect();
    assert_eq!(parts, [(2, &a[..]), (5, &b[..])]);
    let mut bad = both.clone();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(validate(&bad), Err(BatchError::Corrupt));
    assert_eq!(validate(&plain(1).repeat(RECORD_SET_BATCHES_MAX)), Ok(RECORD_SET_BATCHES_MAX));
    assert!(invalid(&plain(1).repeat(RECORD_SET_BATCHES_MAX + 1)));
}

#[test]
fn larger_than_the_topic_allows_is_its_own_error() {
    let b = plain(1);
    let len = b.len() as u32;
    assert!(validate_produced(&b, Limits { batch_bytes_max: len, ..LIMITS }).is_ok());
    let error = validate_produced(&b, Limits { batch_bytes_max: len - 1, ..LIMITS }).unwrap_err();
    assert_eq!(error, BatchError::TooLarge { len, limit: len - 1 });
    assert_eq!(PartitionError::from(error), PartitionError::BatchTooLarge);
}

#[test]
fn where_keys_are_required_one_record_without_refuses_all_batches() {
    let keyed = Limits { keys_required: true, ..LIMITS };
    let (with, mut without) = (plain(3), BatchBuilder::new());
    for n in 0..5 {
        without = without.record(n, (n != 3).then_some(&b""[..]), Some(b"v"));
    }
    let without = without.build();
    let refused = |bytes: &[u8]| validate_produced(bytes, keyed).err();
    assert_eq!(refused(&with), None);
    assert_eq!(
        refused(&BatchBuilder::new().record(1, Some(b""), None).build()),
        None,
        "an empty key is a key"
    );
    assert_eq!(refused(&without), Some(BatchError::KeyMissing));
    assert_eq!(refused(&[&with[..], &without].concat()), Some(BatchError::KeyMissing));
    assert_eq!(refused(GOLDEN), Some(BatchError::KeyMissing), "its second record has none");
    assert_eq!(validate(&without), Ok(1), "elsewhere keys are not asked for");
    let broken = changed(without.to_vec(), |b| *b.last_mut().unwrap() = 1);
    assert!(matches!(refused(&broken), Some(BatchError::Invalid(_))), "a broken batch is called that");
}

const CODECS: [Compression; 4] =
    [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

#[test]
fn compressed_records_need_keys_too_where_keys_are_required() {
    let keyed = Limits { keys_required: true, ..LIMITS };
    let refused = |bytes: &[u8]| validate_produced(bytes, keyed).err();
    for codec in CODECS {
        let built = |without: Option<i64>| {
            let mut builder = BatchBuilder::new();
            for n in 0..5 {
                builder = builder.record(n, (without != Some(n)).then_some(&b"key"[..]), Some(b"v"));
            }
            builder.packed(codec).build()
        };
        assert_eq!(refused(&built(None)), None, "{codec:?}");
        let without = built(Some(3));
        assert_eq!(refused(&without), Some(BatchError::KeyMissing), "{codec:?}");
        assert_eq!(refused(&[built(None), without.clone()].concat()), Some(BatchError::KeyMissing));
        assert_eq!(validate(&without), Ok(1), "elsewhere its records are not looked at");
        let garbage = BatchBuilder::new().compressed(codec, 1, 2, b"whatever").build();
        assert!(matches!(refused(&garbage), Some(BatchError::Invalid(_))), "{codec:?}");
        assert_eq!(validate(&garbage), Ok(1), "{codec:?}");
        // Fewer records than the header says.
        let mut body = Vec::new();
        codec::compress(codec, &plain(2)[HEADER_BYTES..], &mut body).unwrap();
        let fewer = BatchBuilder::new().compressed(codec, 1, 3, &body).build();
        assert!(matches!(refused(&fewer), Some(BatchError::Invalid(_))), "{codec:?}");
    }
}

#[test]
fn records_that_unpack_beyond_the_bound_are_refused_before_they_are_whole() {
    let keyed = Limits { batch_bytes_max: u32::MAX, keys_required: true };
    let refused = |bytes: &[u8]| validate_produced(bytes, keyed).err();
    for codec in CODECS {
        let of = |len: usize| {
            BatchBuilder::new().record(1, Some(b"key"), Some(&vec![0; len])).packed(codec).build()
        };
        assert!(matches!(refused(&of(UNPACKED_BYTES_MAX)), Some(BatchError::Invalid(_))), "{codec:?}");
        // The bound is that of all batches of a set.
        let half = of(UNPACKED_BYTES_MAX / 2 - 100);
        assert_eq!(refused(&[half.clone(), half.clone()].concat()), None, "{codec:?}");
        let three = [half.clone(), half.clone(), half].concat();
        assert!(matches!(refused(&three), Some(BatchError::Invalid(_))), "{codec:?}");
    }
}

#[test]
fn batch_that_a_real_client_built_is_accepted() {
    let batches = validate_produced(GOLDEN, LIMITS).unwrap();
    assert_eq!((batches.first().records, batches.first().producer), (2, None));
    assert_eq!(first_at_or_after(batches.first(), GOLDEN, Offset(0), 2).unwrap().offset, Offset(1));
}

#[test]
fn records_must_fill_the_batch_exactly_and_count_up() {
    let good = GOLDEN.to_vec();
    // length, attributes, timestamp delta, offset delta, key length, key, value length, value, headers, ...
    for (at, value, what) in [
        (61, 26, "record shorter than its fields"),
        (61, 30, "record longer than the batch"),
        (61, 1, "negative record length"),
        (64, 2, "first offset delta is 1"),
        (65, 3, "key length -2"),
        (65, 40, "key longer than the record"),
        (67, 6, "value takes the header count"),
        (70, 0, "bytes left after the last header"),
        (70, 4, "a header too many"),
        (70, 1, "negative number of headers"),
        (71, 1, "header without a key"),
        (73, 6, "header value longer than the record"),
        (61, 0x80, "varint that does not end well"),
    ] {
        assert!(invalid(&changed(good.clone(), |b| b[at] = value)), "{what}");
    }
    assert_eq!(validate(&changed(good, |_| ())), Ok(1));
}

#[test]
fn hostile_varints_end() {
    for byte in [0x80, 0xff] {
        let mut b = plain(1);
        b.truncate(HEADER_BYTES);
        b.extend([byte; 30]);
        let len = (b.len() - PREFIX_BYTES) as i32;
        assert!(invalid(&changed(b, |b| b[8..12].copy_from_slice(&len.to_be_bytes()))));
    }
}

#[test]
fn random_bytes_under_a_right_crc_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut refused = 0;
    for _ in 0..20_000 {
        let bad = changed(plain(3), |b| {
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = 21 + (state >> 8) as usize % (b.len() - 21);
                b[at] = state as u8;
            }
        });
        match validate_produced(&bad, LIMITS) {
            Ok(batches) => {
                let (h, bytes) = batches.iter().next().unwrap();
                first_at_or_after(h, bytes, Offset(1), 1001);
                largest_timestamp(h, bytes, Offset(1));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 5_000, "{refused}");
}

#[test]
fn patching_sets_offset_and_epoch_and_keeps_the_crc() {
    let b = plain(2);
    let mut out = BytesMut::new();
    put_patched(&mut out, &b, Offset(1 << 40), LeaderEpoch(7));
    let h = parse_header(&out).unwrap();
    assert_eq!((h.base(), h.leader_epoch), (Some(Offset(1 << 40)), 7));
    assert!(check_crc(&out));
    assert_eq!(out[16..], b[16..]);
    assert_eq!(out[8..12], b[8..12]);
}

fn out_of_order() -> BatchBuilder {
    [100, 90, 300, 200].into_iter().fold(BatchBuilder::new(), |b, ms| b.record(ms, None, None))
}

#[test]
fn timestamp_is_found_exactly_whatever_the_codec() {
    use Compression::{Gzip, Lz4, None as Plain, Snappy, Zstd};
    for codec in [Plain, Gzip, Snappy, Lz4, Zstd] {
        let bytes = out_of_order().packed(codec).build();
        let mut stored = BytesMut::new();
        put_patched(&mut stored, &bytes, Offset(10), LeaderEpoch(0));
        let h = parse_header(&stored).unwrap();
        let find =
            |from, t| first_at_or_after(&h, &stored, Offset(from), t).map(|f| (f.offset.0, f.timestamp_ms));
        assert_eq!(find(0, 0), Some((10, 100)), "{codec:?}");
        assert_eq!(find(0, 101), Some((12, 300)), "{codec:?}");
        assert_eq!(find(0, 300), Some((12, 300)), "{codec:?}");
        assert_eq!(find(0, 301), None, "{codec:?}");
        assert_eq!(find(11, 0), Some((11, 90)), "what is deleted is not found");
        assert_eq!(find(13, 0), Some((13, 200)), "what is deleted is not found");
        assert_eq!(find(13, 201), Some((13, 100)), "a reader who starts there misses nothing");
        let largest =
            |from| largest_timestamp(&h, &stored, Offset(from)).map(|f| (f.offset.0, f.timestamp_ms));
        assert_eq!((largest(0), largest(13)), (Some((12, 300)), Some((13, 200))), "{codec:?}");
    }
}

#[test]
fn timestamp_in_a_batch_that_cannot_be_unpacked_is_found_at_its_first_record() {
    let bytes = BatchBuilder::new().compressed(Compression::Zstd, 100, 4, b"opaque").build();
    let bytes = changed(bytes.to_vec(), |b| b[35..43].copy_from_slice(&200_i64.to_be_bytes()));
    let mut stored = BytesMut::new();
    put_patched(&mut stored, &bytes, Offset(10), LeaderEpoch(0));
    let h = parse_header(&stored).unwrap();
    assert_eq!(
        first_at_or_after(&h, &stored, Offset(0), 150),
        Some(Found { offset: Offset(10), timestamp_ms: 100 })
    );
    assert_eq!(first_at_or_after(&h, &stored, Offset(0), 201), None);
    assert_eq!(
        largest_timestamp(&h, &stored, Offset(0)),
        Some(Found { offset: Offset(13), timestamp_ms: 200 })
    );
}

fn records_of(batch: &[u8]) -> Result<Vec<Record<'_>>, BatchError> {
    Records::new(&parse_header(batch)?, &batch[HEADER_BYTES..]).collect()
}

#[test]
fn records_read_as_they_were_built() {
    let bytes = BatchBuilder::new()
        .record_with_headers(100, Some(b"k"), Some(b"v"), &[(b"h", None), (b"i", Some(b"x"))])
        .record(90, Some(b""), None)
        .record(1 << 40, None, Some(b""))
        .build();
    let records = records_of(&bytes).unwrap();
    let numbers: Vec<_> = records.iter().map(|r| (r.offset_delta, r.timestamp_delta_ms)).collect();
    assert_eq!(numbers, [(0, 0), (1, -10), (2, (1 << 40) - 100)]);
    let parts: Vec<_> = records.iter().map(|r| [r.key, r.value]).collect();
    assert_eq!(parts, [[Some(&b"k"[..]), Some(b"v")], [Some(b""), None], [None, Some(b"")]]);
    let all: Vec<u8> = records.iter().flat_map(|r| r.bytes).copied().collect();
    assert_eq!(all, bytes[HEADER_BYTES..]);
    let golden = records_of(GOLDEN).unwrap();
    assert_eq!(
        (golden[0].key, golden[0].value, golden[1].timestamp_delta_ms),
        (Some(&b"k"[..]), Some(&b"vw"[..]), 2)
    );
}

#[test]
fn record_with_another_timestamp_keeps_all_else() {
    for record in records_of(GOLDEN).unwrap() {
        for delta in [0, -1, 63, 64, -64, -65, 1 << 20, i64::MAX, i64::MIN, record.timestamp_delta_ms] {
            let mut out = Vec::new();
            record.put_with_timestamp_delta(&mut out, delta);
            let header = BatchHeader { records: 1, ..parse_header(GOLDEN).unwrap() };
            let read: Vec<_> = Records::new(&header, &out).map(Result::unwrap).collect();
            assert_eq!((read[0].offset_delta, read[0].timestamp_delta_ms), (record.offset_delta, delta));
            assert_eq!((read[0].key, read[0].value, read[0].bytes), (record.key, record.value, &out[..]));
            assert_eq!(out == record.bytes, delta == record.timestamp_delta_ms);
        }
    }
}

/// The batch with only these of its records.
fn thinned(batch: &[u8], stay: &[u32], horizon_ms: Option<i64>) -> Vec<u8> {
    let header = parse_header(batch).unwrap();
    let mut body = Vec::new();
    let base_ms = horizon_ms.unwrap_or(header.base_timestamp_ms);
    let mut max_timestamp_ms = -1;
    for record in records_of(batch).unwrap().iter().filter(|r| stay.contains(&r.offset_delta)) {
        let at_ms = header.base_timestamp_ms + record.timestamp_delta_ms;
        record.put_with_timestamp_delta(&mut body, at_ms - base_ms);
        max_timestamp_ms = max_timestamp_ms.max(at_ms);
    }
    let attributes =
        if horizon_ms.is_some() { header.attributes.with_delete_horizon() } else { header.attributes };
    let new = Rebuilt {
        attributes,
        base_timestamp_ms: base_ms,
        max_timestamp_ms,
        records: stay.len() as u32,
        body: &body,
    };
    let mut out = Vec::new();
    put_rebuilt(&mut out, batch, new);
    out
}

#[test]
fn records_of_a_compacted_batch_may_have_gaps_but_ascend() {
    let some = thinned(&plain(5), &[1, 4], None);
    assert!(check_crc(&some));
    assert_eq!(records_of(&some).unwrap().iter().map(|r| r.offset_delta).collect::<Vec<_>>(), [1, 4]);
    let header = parse_header(&some).unwrap();
    assert_eq!((header.records, header.offsets()), (2, 5));
    assert_eq!(records_of(&thinned(&plain(5), &[], None)), Ok(Vec::new()));
    for bad in [
        changed(some.clone(), |b| b[57..61].copy_from_slice(&1_u32.to_be_bytes())),
        changed(some.clone(), |b| b[57..61].copy_from_slice(&3_u32.to_be_bytes())),
        changed(some.clone(), |b| b[57..61].copy_from_slice(&0_u32.to_be_bytes())),
        changed(some, |b| b[23..27].copy_from_slice(&3_u32.to_be_bytes())),
    ] {
        assert!(matches!(records_of(&bad), Err(BatchError::Invalid(_))));
    }
    let twice = [&GOLDEN[HEADER_BYTES..HEADER_BYTES + 15], &GOLDEN[HEADER_BYTES..HEADER_BYTES + 15]].concat();
    let header = parse_header(GOLDEN).unwrap();
    let read: Vec<_> = Records::new(&header, &twice).collect();
    assert!(read.len() == 2 && read[0].is_ok() && read[1].is_err(), "the same offset twice");
}

#[test]
fn timestamp_is_found_in_a_compacted_batch() {
    let bytes = out_of_order().build();
    for horizon_ms in [None, Some(10_000)] {
        let some = thinned(&bytes, &[1, 3], horizon_ms);
        let h = parse_header(&some).unwrap();
        assert_eq!(h.delete_horizon_ms(), horizon_ms);
        let find = |t| first_at_or_after(&h, &some, Offset(0), t).map(|f| (f.offset.0, f.timestamp_ms));
        assert_eq!(find(0), Some((1, 90)));
        assert_eq!(find(100), Some((3, 200)));
        assert_eq!(find(201), None);
        assert_eq!(
            largest_timestamp(&h, &some, Offset(0)),
            Some(Found { offset: Offset(3), timestamp_ms: 200 })
        );
    }
    let none = thinned(&bytes, &[], None);
    let h = parse_header(&none).unwrap();
    assert_eq!(
        (first_at_or_after(&h, &none, Offset(0), -1), largest_timestamp(&h, &none, Offset(0))),
        (None, None)
    );
}
