//! IncrementalAlterConfigs, version 0: five settings of one topic, each time to values that they did not have. The
//! change is about 200 B in the log.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::kafka::{Cursor, Verdict, judge, whole_frame};
use crate::load::{Answer, Arrival, Outbox, Reply, Ticket, Wire, WireError};

const API_KEY: i16 = 44;
const RESOURCE_TOPIC: i8 = 2;
const OP_SET: i8 = 0;
const SETTINGS: [&str; 5] =
    ["delete.retention.ms", "min.compaction.lag.ms", "retention.bytes", "retention.ms", "segment.ms"];
/// Of 18 digits, and out of reach for any record or file.
const VALUE_BASE: u64 = 100_000_000_000_000_000;
const CORRELATION_AT: usize = 8;

/// One connection that changes the settings of one topic.
pub struct AlterWire {
    address: SocketAddr,
    frame: Vec<u8>,
    /// Where the values stand in the frame.
    values_at: [usize; SETTINGS.len()],
    next_correlation: i32,
    /// Values go on where another run stopped, or they would change nothing.
    next_value: u64,
    nothing: Arc<[u8]>,
}

impl AlterWire {
    pub fn new(address: SocketAddr, topic: &str, client_id: &str) -> AlterWire {
        let since_epoch =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let next_value = VALUE_BASE + since_epoch.as_micros() as u64;
        let mut frame = Vec::with_capacity(512);
        frame.extend_from_slice(&0i32.to_be_bytes());
        frame.extend_from_slice(&API_KEY.to_be_bytes());
        frame.extend_from_slice(&0i16.to_be_bytes());
        frame.extend_from_slice(&0i32.to_be_bytes());
        put_string(&mut frame, client_id);
        frame.extend_from_slice(&1i32.to_be_bytes());
        frame.push(RESOURCE_TOPIC.cast_unsigned());
        put_string(&mut frame, topic);
        frame.extend_from_slice(&(SETTINGS.len() as i32).to_be_bytes());
        let values_at = SETTINGS.map(|name| {
            put_string(&mut frame, name);
            frame.push(OP_SET.cast_unsigned());
            put_string(&mut frame, &next_value.to_string());
            frame.len() - 18
        });
        // Not to be tried out only.
        frame.push(0);
        let length = (frame.len() - 4) as i32;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        AlterWire { address, frame, values_at, next_correlation: 0, next_value, nothing: Arc::from([]) }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as i16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Wire for AlterWire {
    fn encode(&mut self, ticket: &mut Ticket, out: &mut Outbox) {
        ticket.correlation = self.next_correlation;
        self.next_correlation = self.next_correlation.wrapping_add(1);
        self.next_value += 1;
        self.frame[CORRELATION_AT..CORRELATION_AT + 4].copy_from_slice(&ticket.correlation.to_be_bytes());
        let value = self.next_value.to_string();
        for at in self.values_at {
            self.frame[at..at + value.len()].copy_from_slice(value.as_bytes());
        }
        out.push(&self.frame, &self.nothing);
    }

    fn decode(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        _: &mut Vec<Arrival>,
    ) -> Result<Option<Reply>, WireError> {
        let Some(total) = whole_frame(bytes)? else { return Ok(None) };
        let mut cursor = Cursor::new(&bytes[4..total]);
        let mut code = || {
            let correlation = cursor.i32()?;
            cursor.i32()?;
            cursor.array(1).filter(|resources| *resources == 1)?;
            Some((correlation, cursor.i16()?))
        };
        let (correlation, code) =
            code().ok_or(WireError::Malformed("an answer about settings is not for one topic"))?;
        if correlation != ticket.correlation {
            return Err(WireError::Correlation { expected: ticket.correlation, got: correlation });
        }
        let answer = match judge(code, false) {
            Verdict::Success => Answer::Done,
            Verdict::Retry | Verdict::Moved => Answer::Retry { code, moved: false },
            Verdict::Refuse => Answer::Refused { code },
        };
        let done = u64::from(answer == Answer::Done);
        Ok(Some(Reply { consumed: total, records: done, bytes: done * self.frame.len() as u64, answer }))
    }

    fn locate(&mut self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Buf, Bytes, BytesMut};
    use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
    use kafka_protocol::messages::{
        IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, RequestHeader, ResponseHeader,
    };
    use kafka_protocol::protocol::{Decodable, Encodable};

    #[test]
    fn the_generated_codec_reads_our_requests_and_each_asks_for_other_values() {
        let mut wire = AlterWire::new(([127, 0, 0, 1], 9092).into(), "orders", "test");
        let mut seen = std::collections::BTreeSet::new();
        for nth in 0..5 {
            let (mut out, mut bytes) = (Outbox::default(), Vec::new());
            let mut ticket = Ticket::new(1, 0, 0);
            wire.encode(&mut ticket, &mut out);
            out.write_to(&mut bytes).unwrap();
            let mut bytes = Bytes::from(bytes);
            assert_eq!(bytes.get_i32() as usize, bytes.len());
            let header = RequestHeader::decode(&mut bytes, 1).unwrap();
            assert_eq!((header.request_api_key, header.correlation_id), (API_KEY, nth));
            let request = IncrementalAlterConfigsRequest::decode(&mut bytes, 0).unwrap();
            assert!(bytes.is_empty() && !request.validate_only);
            let resource = &request.resources[0];
            assert_eq!((resource.resource_type, resource.resource_name.as_str()), (2, "orders"));
            assert_eq!(resource.configs.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), SETTINGS);
            for config in &resource.configs {
                seen.insert(config.value.as_ref().unwrap().to_string());
            }
        }
        assert_eq!(seen.len(), 5);
        assert!(seen.iter().all(|value| value.len() == 18 && value.parse::<i64>().is_ok()));
    }

    #[test]
    fn answers_of_the_generated_codec_are_understood() {
        for (code, expected) in [
            (0, Answer::Done),
            (7, Answer::Retry { code: 7, moved: false }),
            (40, Answer::Refused { code: 40 }),
        ] {
            let mut wire = AlterWire::new(([127, 0, 0, 1], 9092).into(), "orders", "test");
            let mut ticket = Ticket::new(1, 0, 0);
            wire.encode(&mut ticket, &mut Outbox::default());
            let one = AlterConfigsResourceResponse::default().with_error_code(code).with_resource_type(2);
            let response = IncrementalAlterConfigsResponse::default().with_responses(vec![one]);
            let mut body = BytesMut::new();
            ResponseHeader::default().encode(&mut body, 0).unwrap();
            response.encode(&mut body, 0).unwrap();
            let mut bytes = (body.len() as i32).to_be_bytes().to_vec();
            bytes.extend_from_slice(&body);
            assert_eq!(wire.decode(&ticket, &bytes[..bytes.len() - 1], &mut Vec::new()).unwrap(), None);
            let reply = wire.decode(&ticket, &bytes, &mut Vec::new()).unwrap().unwrap();
            assert_eq!((reply.consumed, reply.answer), (bytes.len(), expected));
            ticket.correlation += 1;
            assert!(wire.decode(&ticket, &bytes, &mut Vec::new()).is_err(), "another request's answer");
        }
    }
}
