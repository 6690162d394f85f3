//! Fetch requests and answers, versions 4 to 11 (the ones before the flexible encoding), without fetch sessions.
//!
//! One connection follows its partitions with one fetch in flight, as the common clients do.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::client::Directory;
use super::{Cursor, Verdict, batch, judge, whole_frame};
use crate::load::{Answer, Arrival, Outbox, Reply, Ticket, Wire, WireError};

pub const API_KEY: i16 = 1;
pub const VERSIONS: (i16, i16) = (4, 11);

#[derive(Clone, Debug)]
pub struct FetchSpec {
    pub version: i16,
    pub client_id: String,
    pub topic: String,
    pub max_wait_ms: i32,
    pub min_bytes: i32,
    /// Of the whole answer.
    pub max_bytes: i32,
    pub partition_max_bytes: i32,
    /// Set end to end: only records with this run id count.
    pub stamp_run_id: Option<u64>,
}

/// Where a partition is read, and to which offset at most.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub partition: i32,
    /// next_offset <= end_offset
    pub next_offset: i64,
    /// `i64::MAX` to follow the log.
    pub end_offset: i64,
}

pub struct FetchWire {
    directory: Directory,
    spec: FetchSpec,
    positions: Vec<Position>,
    request: Vec<u8>,
    next_correlation: i32,
    nothing: Arc<[u8]>,
}

impl FetchWire {
    pub fn new(directory: Directory, spec: FetchSpec, positions: Vec<Position>) -> FetchWire {
        assert!(!positions.is_empty());
        FetchWire {
            directory,
            spec,
            positions,
            request: Vec::new(),
            next_correlation: 0,
            nothing: Arc::new([]),
        }
    }

    fn build_request(&mut self, correlation: i32) {
        let (spec, out) = (&self.spec, &mut self.request);
        out.clear();
        out.extend_from_slice(&0i32.to_be_bytes());
        out.extend_from_slice(&API_KEY.to_be_bytes());
        out.extend_from_slice(&spec.version.to_be_bytes());
        out.extend_from_slice(&correlation.to_be_bytes());
        out.extend_from_slice(&(spec.client_id.len() as i16).to_be_bytes());
        out.extend_from_slice(spec.client_id.as_bytes());
        out.extend_from_slice(&(-1i32).to_be_bytes());
        out.extend_from_slice(&spec.max_wait_ms.to_be_bytes());
        out.extend_from_slice(&spec.min_bytes.to_be_bytes());
        out.extend_from_slice(&spec.max_bytes.to_be_bytes());
        out.push(0);
        if spec.version >= 7 {
            // No session: id 0, epoch -1.
            out.extend_from_slice(&0i32.to_be_bytes());
            out.extend_from_slice(&(-1i32).to_be_bytes());
        }
        out.extend_from_slice(&1i32.to_be_bytes());
        out.extend_from_slice(&(spec.topic.len() as i16).to_be_bytes());
        out.extend_from_slice(spec.topic.as_bytes());
        let is_wanted = |position: &&Position| position.next_offset < position.end_offset;
        let count = self.positions.iter().filter(is_wanted).count();
        out.extend_from_slice(&(count as i32).to_be_bytes());
        for position in self.positions.iter().filter(is_wanted) {
            out.extend_from_slice(&position.partition.to_be_bytes());
            if spec.version >= 9 {
                out.extend_from_slice(&(-1i32).to_be_bytes());
            }
            out.extend_from_slice(&position.next_offset.to_be_bytes());
            if spec.version >= 5 {
                out.extend_from_slice(&(-1i64).to_be_bytes());
            }
            out.extend_from_slice(&spec.partition_max_bytes.to_be_bytes());
        }
        if spec.version >= 7 {
            out.extend_from_slice(&0i32.to_be_bytes());
        }
        if spec.version >= 11 {
            out.extend_from_slice(&0i16.to_be_bytes());
        }
        let length = (out.len() - 4) as i32;
        out[..4].copy_from_slice(&length.to_be_bytes());
        // The first partition of this answer is the last of the next one, so that a full answer starves none.
        self.positions.rotate_left(1);
    }

    /// Reads one whole answer: its error if there is one, otherwise what came.
    fn read_answer(
        &mut self,
        mut cursor: Cursor<'_>,
        arrivals: &mut Vec<Arrival>,
    ) -> Option<(Answer, u64, u64)> {
        let version = self.spec.version;
        cursor.i32()?;
        if version >= 7 {
            let code = cursor.i16()?;
            cursor.i32()?;
            if code != 0 {
                return Some((answer_of(code), 0, 0));
            }
        }
        let (mut records, mut bytes, mut failure) = (0, 0, None);
        for _ in 0..cursor.array(6)? {
            cursor.string()?;
            for _ in 0..cursor.array(26)? {
                let partition = cursor.i32()?;
                let code = cursor.i16()?;
                cursor.take(if version >= 5 { 24 } else { 16 })?;
                let aborted = cursor.array(16)?;
                cursor.take(aborted * 16)?;
                if version >= 11 {
                    cursor.i32()?;
                }
                let length = usize::try_from(cursor.i32()?).unwrap_or(0);
                let log = cursor.take(length)?;
                if code != 0 {
                    failure = Some(answer_of(code));
                    continue;
                }
                let position = self.positions.iter_mut().find(|position| position.partition == partition)?;
                let (some_records, some_bytes) = advance(position, log, self.spec.stamp_run_id, arrivals);
                records += some_records;
                bytes += some_bytes;
            }
        }
        Some((failure.unwrap_or(Answer::Done), records, bytes))
    }
}

/// Moves the position over the batches in `log`; returns the records and bytes that count.
fn advance(
    position: &mut Position,
    log: &[u8],
    run_id: Option<u64>,
    arrivals: &mut Vec<Arrival>,
) -> (u64, u64) {
    let (mut records, mut bytes) = (0, 0);
    for seen in batch::walk(log) {
        // A fetch in the middle of a batch brings all of it.
        if seen.last_offset < position.next_offset {
            continue;
        }
        let missed = u64::try_from(position.next_offset - seen.base_offset).unwrap_or(0);
        let fresh = seen.records.saturating_sub(missed);
        position.next_offset = seen.last_offset.saturating_add(1);
        match (run_id, seen.stamp) {
            (None, _) => {}
            (Some(own), Some((id, due_ns))) if own == id => {
                arrivals.push(Arrival { due_ns, records: fresh, is_foreign: false });
            }
            (Some(_), _) => {
                arrivals.push(Arrival { due_ns: 0, records: fresh, is_foreign: true });
                continue;
            }
        }
        records += fresh;
        bytes += seen.bytes as u64;
    }
    (records, bytes)
}

fn answer_of(code: i16) -> Answer {
    match judge(code, false) {
        Verdict::Moved => Answer::Retry { code, moved: true },
        Verdict::Refuse => Answer::Refused { code },
        Verdict::Retry | Verdict::Success => Answer::Retry { code, moved: false },
    }
}

impl Wire for FetchWire {
    fn encode(&mut self, ticket: &mut Ticket, out: &mut Outbox) {
        ticket.correlation = self.next_correlation;
        self.next_correlation = self.next_correlation.wrapping_add(1);
        self.build_request(ticket.correlation);
        out.push(&self.request, &self.nothing);
    }

    fn decode(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        arrivals: &mut Vec<Arrival>,
    ) -> Result<Option<Reply>, WireError> {
        let Some(total) = whole_frame(bytes)? else { return Ok(None) };
        let mut cursor = Cursor::new(&bytes[4..total]);
        let correlation = cursor.i32().expect("a whole frame holds a correlation id");
        if correlation != ticket.correlation {
            return Err(WireError::Correlation { expected: ticket.correlation, got: correlation });
        }
        let (answer, records, bytes) = self
            .read_answer(cursor, arrivals)
            .ok_or(WireError::Malformed("a fetch answer is cut or inconsistent"))?;
        if let Answer::Refused { code } = answer {
            // The same fetch would be refused for ever.
            return Err(WireError::Stopped(format!("a fetch was refused: {}", super::error_name(code))));
        }
        Ok(Some(Reply { consumed: total, records, bytes, answer }))
    }

    fn locate(&mut self) -> io::Result<SocketAddr> {
        let first = self.positions.iter().map(|position| position.partition).min();
        self.directory.leader_address(first.expect("a connection has partitions"))
    }

    fn is_exhausted(&self) -> bool {
        self.positions.iter().all(|position| position.next_offset >= position.end_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::batch::BatchSpec;
    use bytes::{Buf, Bytes, BytesMut};
    use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
    use kafka_protocol::messages::{FetchRequest, FetchResponse, RequestHeader, ResponseHeader, TopicName};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

    fn wire(version: i16, end_offset: i64, stamp_run_id: Option<u64>) -> FetchWire {
        let spec = FetchSpec {
            version,
            client_id: "test".into(),
            topic: "orders".into(),
            max_wait_ms: 100,
            min_bytes: 1,
            max_bytes: 1 << 20,
            partition_max_bytes: 1 << 19,
            stamp_run_id,
        };
        let position = |partition| Position { partition, next_offset: 2, end_offset };
        FetchWire::new(Directory::for_tests(), spec, vec![position(0), position(1)])
    }

    fn answer(version: i16, correlation: i32, code: i16, records: Option<Bytes>) -> Vec<u8> {
        let partition = PartitionData::default()
            .with_partition_index(1)
            .with_error_code(code)
            .with_high_watermark(9)
            .with_records(records);
        let topic = FetchableTopicResponse::default()
            .with_topic(TopicName(StrBytes::from_static_str("orders")))
            .with_partitions(vec![partition]);
        let response = FetchResponse::default().with_responses(vec![topic]);
        let mut body = BytesMut::new();
        ResponseHeader::default().with_correlation_id(correlation).encode(&mut body, 0).unwrap();
        response.encode(&mut body, version).unwrap();
        [&(body.len() as i32).to_be_bytes()[..], &body].concat()
    }

    fn log() -> Bytes {
        let spec =
            BatchSpec { records: 5, value_bytes: 64, timestamp_ms: 5, producer_id: -1, producer_epoch: -1 };
        batch::build(&spec).bytes.into()
    }

    #[test]
    fn the_generated_codec_reads_our_requests_in_every_version() {
        for version in VERSIONS.0..=VERSIONS.1 {
            let mut wire = wire(version, i64::MAX, None);
            let mut out = Outbox::default();
            wire.encode(&mut Ticket::new(1, 0, 0), &mut out);
            let mut bytes = Vec::new();
            out.write_to(&mut bytes).unwrap();
            let mut bytes = Bytes::from(bytes);
            assert_eq!(bytes.get_i32() as usize, bytes.len());
            let header = RequestHeader::decode(&mut bytes, 1).unwrap();
            assert_eq!(header.request_api_version, version);
            let request = FetchRequest::decode(&mut bytes, version).unwrap();
            assert!(bytes.is_empty());
            assert_eq!(request.topics[0].partitions.len(), 2);
            assert_eq!(request.topics[0].partitions[1].fetch_offset, 2);
            assert_eq!(request.topics[0].partitions[1].partition_max_bytes, 1 << 19);
        }
    }

    #[test]
    fn a_fetch_inside_a_batch_counts_only_what_lies_behind_the_offset() {
        for version in VERSIONS.0..=VERSIONS.1 {
            let mut wire = wire(version, 5, None);
            let bytes = answer(version, 0, 0, Some(log()));
            let ticket = Ticket::new(1, 0, 0);
            for cut in 0..bytes.len() {
                assert_eq!(wire.decode(&ticket, &bytes[..cut], &mut Vec::new()).unwrap(), None);
            }
            let reply = wire.decode(&ticket, &bytes, &mut Vec::new()).unwrap().unwrap();
            assert_eq!(reply.consumed, bytes.len());
            assert_eq!((reply.answer, reply.records), (Answer::Done, 3));
            let position = wire.positions.iter().find(|p| p.partition == 1).unwrap();
            assert_eq!(position.next_offset, 5);
        }
    }

    #[test]
    fn records_of_another_run_are_foreign() {
        let mut wire = wire(11, i64::MAX, Some(42));
        let mut arrivals = Vec::new();
        let reply =
            wire.decode(&Ticket::new(1, 0, 0), &answer(11, 0, 0, Some(log())), &mut arrivals).unwrap();
        assert_eq!(reply.unwrap().records, 0);
        assert!(arrivals[0].is_foreign && arrivals[0].records == 3);
    }

    #[test]
    fn a_moved_leader_is_looked_up_and_an_offset_out_of_range_ends_the_run() {
        let mut wire = wire(11, i64::MAX, None);
        let ticket = Ticket::new(1, 0, 0);
        let reply = wire.decode(&ticket, &answer(11, 0, 6, None), &mut Vec::new()).unwrap().unwrap();
        assert_eq!(reply.answer, Answer::Retry { code: 6, moved: true });
        assert!(wire.decode(&ticket, &answer(11, 0, 1, None), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_cut_answer_inside_a_whole_frame_is_an_error_and_no_panic() {
        for version in VERSIONS.0..=VERSIONS.1 {
            let whole = answer(version, 0, 0, Some(log()));
            for cut in 8..whole.len() - 1 {
                let mut wire = wire(version, i64::MAX, None);
                let mut bytes = whole[..cut].to_vec();
                let length = (cut - 4) as i32;
                bytes[..4].copy_from_slice(&length.to_be_bytes());
                let _ = wire.decode(&Ticket::new(1, 0, 0), &bytes, &mut Vec::new());
            }
        }
    }
}
