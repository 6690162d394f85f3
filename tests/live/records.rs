//! Record batches (format v2) written and read by hand, apart from the code under test, so that each byte can be wrong
//! on purpose.
//!
//! Layout: <https://kafka.apache.org/documentation/#recordbatch>.

use crc_fast::{CrcAlgorithm, checksum};

/// Bytes before the records of a batch.
pub const HEADER: usize = 61;
pub const CRC_AT: usize = 17;
pub const MAGIC_AT: usize = 16;
pub const ATTRIBUTES_AT: usize = 21;
pub const LAST_DELTA_AT: usize = 23;
pub const COUNT_AT: usize = 57;

/// Who produced a batch, for the idempotent producer; the default is nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    pub id: i64,
    pub epoch: i16,
    pub sequence: i32,
}

impl Producer {
    pub const NOBODY: Self = Self { id: -1, epoch: -1, sequence: -1 };
}

/// A record as this test suite uses them: no headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// The key and value of a record to write.
pub type KeyValue<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// One uncompressed batch with correct lengths, counts and CRC. `timestamp` is in milliseconds since 1970.
pub fn batch(timestamp: i64, producer: Producer, records: &[KeyValue<'_>]) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(HEADER + records.iter().map(|(k, v)| len(*k) + len(*v) + 20).sum::<usize>());
    out.extend(0i64.to_be_bytes());
    out.extend(0i32.to_be_bytes());
    out.extend((-1i32).to_be_bytes());
    out.push(2);
    out.extend(0u32.to_be_bytes());
    out.extend(0i16.to_be_bytes());
    let count = i32::try_from(records.len()).unwrap();
    out.extend((count - 1).to_be_bytes());
    out.extend(timestamp.to_be_bytes());
    out.extend(timestamp.to_be_bytes());
    out.extend(producer.id.to_be_bytes());
    out.extend(producer.epoch.to_be_bytes());
    out.extend(producer.sequence.to_be_bytes());
    out.extend(count.to_be_bytes());
    for (delta, (key, value)) in records.iter().enumerate() {
        let mut record = vec![0, 0];
        varint(&mut record, i64::try_from(delta).unwrap());
        for part in [key, value] {
            match part {
                Some(part) => {
                    varint(&mut record, i64::try_from(part.len()).unwrap());
                    record.extend_from_slice(part);
                }
                None => varint(&mut record, -1),
            }
        }
        varint(&mut record, 0);
        varint(&mut out, i64::try_from(record.len()).unwrap());
        out.extend(record);
    }
    seal(&mut out);
    out
}

fn len(part: Option<&[u8]>) -> usize {
    part.map_or(0, <[u8]>::len)
}

/// Writes the length and CRC that the bytes of one batch have now.
pub fn seal(batch: &mut [u8]) {
    let length = i32::try_from(batch.len() - 12).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    reseal_crc(batch);
}

/// Writes the CRC that the bytes of one batch have now, and leaves its length alone.
pub fn reseal_crc(batch: &mut [u8]) {
    let crc = crc32c(&batch[ATTRIBUTES_AT..]);
    batch[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
}

fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("32 bits")
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn read_varint(input: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

fn take<'a>(input: &mut &'a [u8], len: i64) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(usize::try_from(len).ok()?)?;
    *input = rest;
    Some(head)
}

/// The records of the whole batches at the front of a fetch answer, which may end inside one. Panics when a whole batch
/// is not as its CRC, count and offsets say.
pub fn read_batches(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while bytes.len() >= HEADER {
        let field = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = usize::try_from(field(8)).expect("a stored batch has a length") + 12;
        if bytes.len() < length {
            break;
        }
        let base = i64::from_be_bytes(bytes[..8].try_into().unwrap());
        let batch = &bytes[..length];
        assert_eq!(batch[MAGIC_AT], 2, "magic of the batch at {base}");
        assert_eq!(
            field(CRC_AT).cast_unsigned(),
            crc32c(&batch[ATTRIBUTES_AT..]),
            "CRC of the batch at {base}"
        );
        assert_eq!(batch[ATTRIBUTES_AT + 1] & 7, 0, "this suite writes uncompressed batches");
        assert_eq!(field(LAST_DELTA_AT) + 1, field(COUNT_AT), "count of the batch at {base}");
        let mut rest = &batch[HEADER..];
        for delta in 0..field(COUNT_AT) {
            let record =
                read_record(&mut rest, base).unwrap_or_else(|| panic!("record {delta} of batch {base}"));
            assert_eq!(record.offset, base + i64::from(delta));
            records.push(record);
        }
        assert!(rest.is_empty(), "the batch at {base} has bytes after its last record");
        bytes = &bytes[length..];
    }
    records
}

fn read_record(input: &mut &[u8], base: i64) -> Option<Record> {
    let len = read_varint(input)?;
    let mut body = take(input, len)?;
    take(&mut body, 1)?;
    read_varint(&mut body)?;
    let offset = base + read_varint(&mut body)?;
    let mut part = || -> Option<Option<Vec<u8>>> {
        match read_varint(&mut body)? {
            -1 => Some(None),
            len => Some(Some(take(&mut body, len)?.to_vec())),
        }
    };
    let (key, value) = (part()?, part()?);
    Some(Record { offset, key, value })
}

#[test]
fn batches_of_this_suite_are_read_alike_by_another_library() {
    use kafka_protocol::records::RecordBatchDecoder;

    let producer = Producer { id: 77, epoch: 3, sequence: 12 };
    let long = vec![b'x'; 70_000];
    let pairs: [KeyValue<'_>; 3] = [(Some(b"k"), Some(b"v")), (None, Some(&long)), (Some(b""), None)];
    let bytes = batch(1_700_000_000_000, producer, &pairs);
    let read = RecordBatchDecoder::decode(&mut bytes::Bytes::from(bytes.clone())).unwrap().records;
    assert_eq!(read.len(), 3);
    for (n, ((key, value), record)) in pairs.iter().zip(&read).enumerate() {
        assert_eq!((record.key.as_deref(), record.value.as_deref()), (*key, *value));
        assert_eq!((record.producer_id, record.producer_epoch), (77, 3));
        assert_eq!(
            (record.offset, record.sequence),
            (i64::try_from(n).unwrap(), 12 + i32::try_from(n).unwrap())
        );
        assert_eq!(record.timestamp, 1_700_000_000_000);
    }
    // The end of a fetch answer may be a piece of the next batch.
    let mut two = bytes.clone();
    two.extend(&bytes[..100]);
    let own = read_batches(&two);
    assert!(own.iter().map(|r| (r.key.as_deref(), r.value.as_deref())).eq(pairs.iter().copied()));
}
