//! The Kafka side: control calls through the generated codec, produce and fetch by hand because they are the load.

pub mod batch;
pub mod client;
pub mod fetch;
pub mod produce;

use kafka_protocol::ResponseError;

/// `NOT_LEADER_OR_FOLLOWER (6)`, or the bare number of a code that no Kafka has.
pub fn error_name(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        Some(error) if !matches!(error, ResponseError::Unknown(_)) => {
            let debug = format!("{error:?}");
            let mut name = String::with_capacity(debug.len() + 8);
            for (i, c) in debug.chars().enumerate() {
                if i > 0 && c.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(c.to_ascii_uppercase());
            }
            format!("{name} ({code})")
        }
        _ => format!("error {code}"),
    }
}

/// What a client does about an error code of Produce and Fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    Retry,
    /// Retry, but ask first who leads.
    Moved,
    Refuse,
}

pub fn judge(code: i16, is_idempotent: bool) -> Verdict {
    match code {
        0 => Verdict::Success,
        // The batch is in the log already; that is what the retry was for.
        46 if is_idempotent => Verdict::Success,
        // Behind a batch that was turned down: in order again once that one is through.
        45 if is_idempotent => Verdict::Retry,
        // Unknown topic or partition, leader not available, not leader, fenced or unknown leader epoch, offline.
        3 | 5 | 6 | 72 | 74 | 75 | 100 => Verdict::Moved,
        // Timeout, replica not available, network, not enough replicas (after append), storage, throttling, OFFSET_NOT_AVAILABLE.
        7 | 8 | 9 | 13 | 14 | 15 | 19 | 20 | 56 | 78 | 89 => Verdict::Retry,
        _ => Verdict::Refuse,
    }
}

/// Big-endian fields of an answer, read in order; `None` at the end of the bytes.
pub struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes }
    }

    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    pub fn i16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    pub fn i32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    /// A classic string: two bytes of length, then the text; a null string is empty.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.i16()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    /// An array's length, which the remaining bytes must be able to hold; null is empty.
    pub fn array(&mut self, item_bytes_min: usize) -> Option<usize> {
        let length = usize::try_from(self.i32()?).unwrap_or(0);
        (length.checked_mul(item_bytes_min)? <= self.bytes.len()).then_some(length)
    }
}

/// The length prefix of an answer: its whole size with the prefix, or `None` while it is not all there.
pub fn whole_frame(bytes: &[u8]) -> Result<Option<usize>, crate::load::WireError> {
    let Some(prefix) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*prefix);
    if length < 4 {
        return Err(crate::load::WireError::Malformed("its length is less than a header"));
    }
    let total = length as usize + 4;
    if total > crate::load::io::INBOX_BYTES_MAX {
        return Err(crate::load::WireError::TooLarge(total));
    }
    Ok((bytes.len() >= total).then_some(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_have_their_kafka_names() {
        assert_eq!(error_name(6), "NOT_LEADER_OR_FOLLOWER (6)");
        assert_eq!(error_name(19), "NOT_ENOUGH_REPLICAS (19)");
        assert_eq!(error_name(12345), "error 12345");
    }

    #[test]
    fn a_hostile_array_length_is_refused() {
        let bytes = i32::MAX.to_be_bytes();
        assert_eq!(Cursor::new(&bytes).array(1), None);
        assert!(whole_frame(&i32::MAX.to_be_bytes()).is_err());
        assert!(whole_frame(&(-1i32).to_be_bytes()).is_err());
        assert_eq!(whole_frame(&[0, 0, 0, 4, 0]).unwrap(), None);
    }
}
