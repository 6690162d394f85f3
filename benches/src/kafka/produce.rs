//! Produce requests: encoded once per partition, then only the correlation id, the base sequence, the due-time stamp
//! and the checksum change, in place.
//!
//! A frame is a small *head* with everything that changes and a *tail* that never does and that all frames share.
//! Versions 3 to 8 have one and the same request layout.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crc_fast::crc32_iscsi;

use super::batch::{self, ATTRIBUTES_AT, BatchSpec, CRC_AT, HEADER_BYTES, SEQUENCE_AT, STAMP_BYTES};
use super::client::Directory;
use super::{Cursor, Verdict, judge, whole_frame};
use crate::load::{Answer, Arrival, Outbox, Reply, Ticket, Wire, WireError};

pub const API_KEY: i16 = 0;
/// The versions whose request this file writes.
pub const VERSIONS: (i16, i16) = (3, 8);

const CORRELATION_AT: usize = 8;

/// What one connection produces.
#[derive(Clone, Debug)]
pub struct ProduceSpec {
    pub version: i16,
    pub client_id: String,
    pub topic: String,
    pub acks: i16,
    pub timeout_ms: i32,
    pub batch: BatchSpec,
    /// Set end to end: every batch carries this run id and its due time.
    pub stamp_run_id: Option<u64>,
}

/// The unchanging parts, built once for all connections that share a spec.
#[derive(Clone)]
pub struct Payload {
    batch_head: Arc<[u8]>,
    tail: Arc<[u8]>,
    tail_crc: u32,
    stamp_at: Option<usize>,
}

impl Payload {
    pub fn new(spec: &ProduceSpec) -> Payload {
        let built = batch::build(&spec.batch);
        let mut bytes = built.bytes;
        let mut head_bytes = HEADER_BYTES;
        let mut stamp_at = None;
        if let Some(run_id) = spec.stamp_run_id {
            assert!(spec.batch.value_bytes >= STAMP_BYTES, "the value has no room for a stamp");
            bytes[built.first_value_at..built.first_value_at + 8].copy_from_slice(&run_id.to_be_bytes());
            stamp_at = Some(built.first_value_at + 8);
            head_bytes = built.first_value_at + STAMP_BYTES;
        }
        let tail = bytes.split_off(head_bytes);
        Payload { batch_head: bytes.into(), tail_crc: crc32_iscsi(&tail), tail: tail.into(), stamp_at }
    }
}

/// One partition's frame.
struct Frame {
    partition: i32,
    head: Vec<u8>,
    /// Where the batch begins in `head`.
    batch_at: usize,
    next_sequence: i32,
}

impl Frame {
    fn new(spec: &ProduceSpec, payload: &Payload, partition: i32) -> Frame {
        let batch_bytes = payload.batch_head.len() + payload.tail.len();
        let mut head = Vec::with_capacity(128 + payload.batch_head.len());
        head.extend_from_slice(&0i32.to_be_bytes());
        head.extend_from_slice(&API_KEY.to_be_bytes());
        head.extend_from_slice(&spec.version.to_be_bytes());
        head.extend_from_slice(&0i32.to_be_bytes());
        put_string(&mut head, &spec.client_id);
        head.extend_from_slice(&(-1i16).to_be_bytes());
        head.extend_from_slice(&spec.acks.to_be_bytes());
        head.extend_from_slice(&spec.timeout_ms.to_be_bytes());
        head.extend_from_slice(&1i32.to_be_bytes());
        put_string(&mut head, &spec.topic);
        head.extend_from_slice(&1i32.to_be_bytes());
        head.extend_from_slice(&partition.to_be_bytes());
        head.extend_from_slice(&(batch_bytes as i32).to_be_bytes());
        let batch_at = head.len();
        head.extend_from_slice(&payload.batch_head);
        let length = (head.len() + payload.tail.len() - 4) as i32;
        head[..4].copy_from_slice(&length.to_be_bytes());
        Frame { partition, head, batch_at, next_sequence: 0 }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as i16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// One connection that produces to the partitions of one leader, in turn.
pub struct ProduceWire {
    directory: Directory,
    spec: ProduceSpec,
    payload: Payload,
    frames: Vec<Frame>,
    next_frame: usize,
    next_correlation: i32,
    batch_bytes: u64,
}

impl ProduceWire {
    pub fn new(
        directory: Directory,
        spec: ProduceSpec,
        mut payload: Payload,
        partitions: &[i32],
    ) -> ProduceWire {
        assert!(!partitions.is_empty());
        // Every connection is a producer of its own, so the shared head gets this connection's id.
        let mut batch_head = payload.batch_head.to_vec();
        batch_head[43..51].copy_from_slice(&spec.batch.producer_id.to_be_bytes());
        batch_head[51..53].copy_from_slice(&spec.batch.producer_epoch.to_be_bytes());
        let sequence: i32 = if spec.batch.producer_id < 0 { -1 } else { 0 };
        batch_head[SEQUENCE_AT..SEQUENCE_AT + 4].copy_from_slice(&sequence.to_be_bytes());
        let crc = batch::crc_of_changed(&batch_head[ATTRIBUTES_AT..], payload.tail_crc, payload.tail.len());
        batch_head[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
        payload.batch_head = batch_head.into();
        let frames = partitions.iter().map(|partition| Frame::new(&spec, &payload, *partition)).collect();
        let batch_bytes = (spec.batch.records * spec.batch.value_bytes) as u64;
        ProduceWire { directory, spec, payload, frames, next_frame: 0, next_correlation: 0, batch_bytes }
    }

    fn is_idempotent(&self) -> bool {
        self.spec.batch.producer_id >= 0
    }

    /// Error code of the one partition in a whole answer.
    fn error_code(&self, ticket: &Ticket, frame: &[u8]) -> Result<i16, WireError> {
        let mut cursor = Cursor::new(&frame[4..]);
        let cut = || WireError::Malformed("a produce answer is too short");
        let correlation = cursor.i32().ok_or_else(cut)?;
        if correlation != ticket.correlation {
            return Err(WireError::Correlation { expected: ticket.correlation, got: correlation });
        }
        let mut partition_error = || {
            cursor.array(1).filter(|topics| *topics == 1)?;
            cursor.string()?;
            cursor.array(1).filter(|partitions| *partitions == 1)?;
            cursor.i32()?;
            cursor.i16()
        };
        partition_error()
            .ok_or(WireError::Malformed("a produce answer is not for one topic and one partition"))
    }
}

impl Wire for ProduceWire {
    fn encode(&mut self, ticket: &mut Ticket, out: &mut Outbox) {
        let is_idempotent = self.is_idempotent();
        if ticket.attempts == 0 {
            ticket.slot = self.next_frame as u32;
            self.next_frame = (self.next_frame + 1) % self.frames.len();
            if is_idempotent {
                let frame = &mut self.frames[ticket.slot as usize];
                ticket.sequence = frame.next_sequence;
                // Sequences wrap from the largest i32 to zero.
                let next = i64::from(frame.next_sequence) + self.spec.batch.records as i64;
                frame.next_sequence = (next % (1 << 31)) as i32;
            }
        }
        let frame = &mut self.frames[ticket.slot as usize];
        ticket.correlation = self.next_correlation;
        self.next_correlation = self.next_correlation.wrapping_add(1);
        frame.head[CORRELATION_AT..CORRELATION_AT + 4].copy_from_slice(&ticket.correlation.to_be_bytes());
        if is_idempotent || self.payload.stamp_at.is_some() {
            let batch = &mut frame.head[frame.batch_at..];
            if is_idempotent {
                batch[SEQUENCE_AT..SEQUENCE_AT + 4].copy_from_slice(&ticket.sequence.to_be_bytes());
            }
            if let Some(at) = self.payload.stamp_at {
                batch[at..at + 8].copy_from_slice(&ticket.due_ns.to_be_bytes());
            }
            let crc = batch::crc_of_changed(
                &batch[ATTRIBUTES_AT..],
                self.payload.tail_crc,
                self.payload.tail.len(),
            );
            batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
        }
        out.push(&frame.head, &self.payload.tail);
    }

    fn decode(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        _: &mut Vec<Arrival>,
    ) -> Result<Option<Reply>, WireError> {
        let Some(total) = whole_frame(bytes)? else { return Ok(None) };
        let code = self.error_code(ticket, &bytes[..total])?;
        let answer = match judge(code, self.is_idempotent()) {
            Verdict::Success => Answer::Done,
            Verdict::Retry => Answer::Retry { code, moved: false },
            Verdict::Moved => Answer::Retry { code, moved: true },
            Verdict::Refuse => Answer::Refused { code },
        };
        let records = if answer == Answer::Done { self.spec.batch.records as u64 } else { 0 };
        let bytes = if answer == Answer::Done { self.batch_bytes } else { 0 };
        Ok(Some(Reply { consumed: total, records, bytes, answer }))
    }

    fn locate(&mut self) -> io::Result<SocketAddr> {
        self.directory.leader_address(self.frames[0].partition)
    }

    fn is_answered(&self) -> bool {
        self.spec.acks != 0
    }

    fn must_not_fail(&self) -> bool {
        self.is_idempotent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Buf, Bytes, BytesMut};
    use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
    use kafka_protocol::messages::{
        ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
    };
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use kafka_protocol::records::RecordBatchDecoder;

    fn wire(
        version: i16,
        producer_id: i64,
        stamp: Option<u64>,
        records: usize,
        value_bytes: usize,
    ) -> ProduceWire {
        let spec = ProduceSpec {
            version,
            client_id: "test".into(),
            topic: "orders".into(),
            acks: -1,
            timeout_ms: 1000,
            batch: BatchSpec { records, value_bytes, timestamp_ms: 5, producer_id: -1, producer_epoch: -1 },
            stamp_run_id: stamp,
        };
        let payload = Payload::new(&spec);
        let mut own = spec.clone();
        own.batch.producer_id = producer_id;
        own.batch.producer_epoch = if producer_id < 0 { -1 } else { 3 };
        ProduceWire::new(Directory::for_tests(), own, payload, &[4, 9])
    }

    fn sent(out: &mut Outbox) -> Bytes {
        let mut bytes = Vec::new();
        out.write_to(&mut bytes).unwrap();
        bytes.into()
    }

    #[test]
    fn the_generated_codec_reads_our_requests_in_every_version() {
        for version in VERSIONS.0..=VERSIONS.1 {
            for (producer_id, stamp, records, value_bytes) in
                [(-1, None, 1, 100), (-1, Some(7), 10, 1024), (55, None, 10, 5000), (55, Some(7), 2, 16)]
            {
                let mut wire = wire(version, producer_id, stamp, records, value_bytes);
                for nth in 0..5i32 {
                    let mut ticket = Ticket::new(1, 1000 + nth as u64, 0);
                    let mut out = Outbox::default();
                    wire.encode(&mut ticket, &mut out);
                    let mut bytes = sent(&mut out);
                    assert_eq!(bytes.get_i32() as usize, bytes.len());
                    let header = RequestHeader::decode(&mut bytes, 1).unwrap();
                    assert_eq!((header.request_api_version, header.correlation_id), (version, nth));
                    let request = ProduceRequest::decode(&mut bytes, version).unwrap();
                    assert!(bytes.is_empty(), "nothing is left over");
                    let data = &request.topic_data[0].partition_data[0];
                    assert_eq!(data.index, [4, 9][nth as usize % 2]);
                    let mut log = data.records.clone().unwrap();
                    // The decoder checks the CRC.
                    let set = RecordBatchDecoder::decode(&mut log).unwrap();
                    assert_eq!(set.records.len(), records);
                    assert_eq!(set.records[0].producer_id, producer_id);
                    let sequence = if producer_id < 0 { -1 } else { nth / 2 * records as i32 };
                    assert_eq!(set.records[0].sequence, sequence);
                    if stamp.is_some() {
                        let value = set.records[0].value.as_ref().unwrap();
                        assert_eq!(value[..8], 7u64.to_be_bytes());
                        assert_eq!(value[8..16], (1000 + nth as u64).to_be_bytes());
                    }
                }
            }
        }
    }

    #[test]
    fn a_retry_keeps_partition_and_sequence_and_gets_a_new_correlation_id() {
        let mut wire = wire(7, 55, None, 10, 100);
        let mut out = Outbox::default();
        let mut first = Ticket::new(1, 0, 0);
        wire.encode(&mut first, &mut out);
        let before = first.clone();
        wire.encode(&mut Ticket::new(2, 0, 0), &mut out);
        first.attempts = 1;
        wire.encode(&mut first, &mut out);
        assert_eq!((first.slot, first.sequence), (before.slot, before.sequence));
        assert_ne!(first.correlation, before.correlation);
    }

    #[test]
    fn answers_of_the_generated_codec_are_understood() {
        for version in VERSIONS.0..=VERSIONS.1 {
            for (code, expected) in [
                (0, Answer::Done),
                (6, Answer::Retry { code: 6, moved: true }),
                (19, Answer::Retry { code: 19, moved: false }),
                (87, Answer::Refused { code: 87 }),
            ] {
                let mut wire = wire(version, -1, None, 1, 100);
                let mut ticket = Ticket::new(1, 0, 0);
                wire.encode(&mut ticket, &mut Outbox::default());
                let partition = PartitionProduceResponse::default().with_index(4).with_error_code(code);
                let topic = TopicProduceResponse::default()
                    .with_name(TopicName(StrBytes::from_static_str("orders")))
                    .with_partition_responses(vec![partition]);
                let response = ProduceResponse::default().with_responses(vec![topic]);
                let mut body = BytesMut::new();
                ResponseHeader::default().encode(&mut body, 0).unwrap();
                response.encode(&mut body, version).unwrap();
                let mut bytes = (body.len() as i32).to_be_bytes().to_vec();
                bytes.extend_from_slice(&body);
                for cut in 0..bytes.len() {
                    assert_eq!(wire.decode(&ticket, &bytes[..cut], &mut Vec::new()).unwrap(), None);
                }
                bytes.push(0xff);
                let reply = wire.decode(&ticket, &bytes, &mut Vec::new()).unwrap().unwrap();
                assert_eq!((reply.consumed, reply.answer), (bytes.len() - 1, expected));
                assert_eq!((reply.records, reply.bytes), if code == 0 { (1, 100) } else { (0, 0) });
                ticket.correlation += 1;
                assert!(wire.decode(&ticket, &bytes, &mut Vec::new()).is_err(), "another request's answer");
            }
        }
    }
}
