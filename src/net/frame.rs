//! What goes over a proven connection: frames, each a chunk of a call or of its answer, with a tag at the end.
//!
//! Pure. A frame's bytes, little endian:
//!
//! | at | size | what |
//! |---|---|---|
//! | 0 | 4 | length of the chunk, [`CHUNK_MAX`] at most |
//! | 4 | 1 | what it is: 1 call, 2 answer, 3 refusal, 4 ping, 5 pong |
//! | 5 | 1 | class: 0 urgent, 1 append, 2 bulk |
//! | 6 | 2 | kind of the call |
//! | 8 | 8 | number of the call on this connection; its answer has the same |
//! | 16 | 4 | length of the whole body |
//! | 20 | 4 | where in the body the chunk belongs |
//! | 24 | | the chunk |
//! | | 16 | tag |
//!
//! Of each class one body at a time is on its way; its chunks come in order, and those of more urgent classes between
//! them.

use bytes::{Bytes, BytesMut};

use super::auth::session::{BadTag, FrameKey, TAG_LEN};
use super::{BODY_MAX, Class};

/// Bytes of a frame at most, all told.
pub const FRAME_MAX: usize = 64 * 1024;
/// Bytes of a chunk at most.
pub const CHUNK_MAX: usize = FRAME_MAX - FRAME_OVERHEAD;
pub const FRAME_OVERHEAD: usize = HEADER_LEN + TAG_LEN;
const HEADER_LEN: usize = 24;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    Call = 1,
    Answer = 2,
    Refusal = 3,
    Ping = 4,
    Pong = 5,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub chunk_len: usize,
    pub what: Type,
    pub class: Class,
    pub kind: u16,
    pub call: u64,
    pub body_len: usize,
    pub at: usize,
}

/// The other end does not keep to the protocol, or somebody changed what it said: the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("a frame was changed on its way, or is out of order")]
    Tag,
    #[error("a frame is longer than the protocol allows")]
    TooLong,
    #[error("a frame of a kind that the protocol does not have")]
    Unknown,
    #[error("a chunk does not continue the body that it claims to belong to")]
    Chunk,
}

impl From<BadTag> for FrameError {
    fn from(_: BadTag) -> Self {
        Self::Tag
    }
}

impl Header {
    /// A frame without a body.
    pub fn bare(what: Type) -> Self {
        Self { chunk_len: 0, what, class: Class::Urgent, kind: 0, call: 0, body_len: 0, at: 0 }
    }

    fn encode(&self) -> [u8; HEADER_LEN] {
        let u32_of = |n: usize| u32::try_from(n).expect("bodies are far below 4 GiB").to_le_bytes();
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&u32_of(self.chunk_len));
        bytes[4] = self.what as u8;
        bytes[5] = self.class as u8;
        bytes[6..8].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.call.to_le_bytes());
        bytes[16..20].copy_from_slice(&u32_of(self.body_len));
        bytes[20..24].copy_from_slice(&u32_of(self.at));
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let what = match bytes[4] {
            1 => Type::Call,
            2 => Type::Answer,
            3 => Type::Refusal,
            4 => Type::Ping,
            5 => Type::Pong,
            _ => return Err(FrameError::Unknown),
        };
        let class = *Class::ALL.get(usize::from(bytes[5])).ok_or(FrameError::Unknown)?;
        let u32_at = |at: usize| {
            let n = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            usize::try_from(n).expect("a usize has 32 bits at least")
        };
        let mut call = [0; 8];
        call.copy_from_slice(&bytes[8..16]);
        Ok(Self {
            chunk_len: u32_at(0),
            what,
            class,
            kind: u16::from_le_bytes([bytes[6], bytes[7]]),
            call: u64::from_le_bytes(call),
            body_len: u32_at(16),
            at: u32_at(20),
        })
    }
}

/// Puts the next frame behind `out`.
pub fn seal(header: &Header, chunk: &[u8], key: &mut FrameKey, out: &mut Vec<u8>) {
    assert!(chunk.len() == header.chunk_len && chunk.len() <= CHUNK_MAX);
    let start = out.len();
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(chunk);
    let tag = key.sign(&out[start..]);
    out.extend_from_slice(&tag);
}

/// A frame that passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened<'a> {
    pub header: Header,
    pub chunk: &'a [u8],
    /// Bytes that the frame took.
    pub used: usize,
}

/// Takes the next frame from the front of `bytes`; `None` while it is not there as a whole. After an error the connection
/// is of no use.
pub fn open<'a>(bytes: &'a [u8], key: &mut FrameKey) -> Result<Option<Opened<'a>>, FrameError> {
    let Some((len, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let chunk_len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    if chunk_len > CHUNK_MAX {
        return Err(FrameError::TooLong);
    }
    let Some(frame) = bytes.get(..chunk_len + FRAME_OVERHEAD) else { return Ok(None) };
    let (signed, tag) = frame.split_at(HEADER_LEN + chunk_len);
    key.verify(signed, tag)?;
    let (header, chunk) = signed.split_first_chunk().expect("the header is part of it");
    Ok(Some(Opened { header: Header::decode(header)?, chunk, used: frame.len() }))
}

/// A body that has come as a whole.
#[derive(PartialEq, Eq, Debug)]
pub struct Message {
    pub what: Type,
    pub class: Class,
    pub kind: u16,
    pub call: u64,
    /// `None`: nobody wanted it, and it was thrown away as it came.
    pub body: Option<Bytes>,
}

/// Puts chunks together. Holds one unfinished body of each class at most, and only such as somebody wants.
#[derive(Default)]
pub struct Assembler {
    unfinished: [Option<Unfinished>; 3],
}

struct Unfinished {
    first: Header,
    come: usize,
    /// `None`: thrown away.
    body: Option<BytesMut>,
}

impl Assembler {
    /// Takes a chunk. `wanted` is asked once for each body, at its first chunk: whether there is use and room for it.
    pub fn add(
        &mut self,
        header: &Header,
        chunk: &[u8],
        wanted: impl FnOnce(&Header) -> bool,
    ) -> Result<Option<Message>, FrameError> {
        assert_eq!(chunk.len(), header.chunk_len);
        let slot = &mut self.unfinished[header.class as usize];
        let body_goes_on = header.at.checked_add(chunk.len()).is_some_and(|end| end <= header.body_len);
        if !body_goes_on || header.body_len > BODY_MAX {
            return Err(FrameError::Chunk);
        }
        let Some(unfinished) = slot else {
            if header.at != 0 || (chunk.is_empty() && header.body_len > 0) {
                return Err(FrameError::Chunk);
            }
            let wanted = wanted(header);
            if chunk.len() == header.body_len {
                let body = wanted.then(|| Bytes::copy_from_slice(chunk));
                return Ok(Some(message(header, body)));
            }
            // The sender has proven who it is, and asked for room that `wanted` agreed to: the body gets all of it.
            let body = wanted.then(|| {
                let mut body = BytesMut::with_capacity(header.body_len);
                body.extend_from_slice(chunk);
                body
            });
            *slot = Some(Unfinished { first: *header, come: chunk.len(), body });
            return Ok(None);
        };
        let expected = Header { chunk_len: header.chunk_len, at: unfinished.come, ..unfinished.first };
        if *header != expected || chunk.is_empty() {
            return Err(FrameError::Chunk);
        }
        unfinished.come += chunk.len();
        if let Some(body) = &mut unfinished.body {
            body.extend_from_slice(chunk);
        }
        if unfinished.come < header.body_len {
            return Ok(None);
        }
        let body = slot.take().and_then(|unfinished| unfinished.body).map(BytesMut::freeze);
        Ok(Some(message(header, body)))
    }
}

fn message(header: &Header, body: Option<Bytes>) -> Message {
    let Header { what, class, kind, call, .. } = *header;
    Message { what, class, kind, call, body }
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;
    use crate::net::auth::session::tests::pair;

    fn call(class: Class, call: u64, chunk_len: usize, body_len: usize, at: usize) -> Header {
        Header { chunk_len, what: Type::Call, class, kind: 0x0101, call, body_len, at }
    }

    /// Three frames of some length, each on its own.
    fn frames(key: &mut FrameKey) -> Vec<Vec<u8>> {
        let seal_one = |n: u8| {
            let mut bytes = Vec::new();
            let chunk = vec![n; 10 * usize::from(n)];
            seal(&call(Class::Append, u64::from(n), chunk.len(), chunk.len(), 0), &chunk, key, &mut bytes);
            bytes
        };
        [1, 2, 3].map(seal_one).into()
    }

    /// What the receiver makes of the bytes: frames that passed, and whether it broke.
    fn take(mut bytes: &[u8], key: &mut FrameKey) -> (Vec<u64>, Result<(), FrameError>) {
        let mut calls = Vec::new();
        loop {
            match open(bytes, key) {
                Ok(Some(Opened { header, used, .. })) => {
                    calls.push(header.call);
                    bytes = &bytes[used..];
                }
                Ok(None) => return (calls, Ok(())),
                Err(error) => return (calls, Err(error)),
            }
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let (mut a, mut b) = pair();
        assert_eq!(take(&frames(&mut a.send).concat(), &mut b.receive), (vec![1, 2, 3], Ok(())));
        let (mut a, mut b) = pair();
        assert_eq!(take(&frames(&mut b.send).concat(), &mut a.receive), (vec![1, 2, 3], Ok(())));
    }

    #[test]
    fn a_frame_with_any_changed_bit_does_not_pass() {
        let (mut a, _) = pair();
        let bytes = frames(&mut a.send).concat();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (_, mut b) = pair();
            let (calls, end) = take(&bad, &mut b.receive);
            // A length that was made larger may leave the receiver waiting, and nothing after it passes.
            let hit = if bit / 8 < 50 {
                0
            } else if bit / 8 < 110 {
                1
            } else {
                2
            };
            assert_eq!(calls, (1..=hit).collect::<Vec<u64>>(), "bit {bit}: {end:?}");
        }
    }

    #[test]
    fn frames_that_are_moved_repeated_or_left_out_do_not_pass() {
        for (order, pass) in [
            (vec![1, 0, 2], 0),
            (vec![0, 2, 1], 1),
            (vec![0, 0, 1, 2], 1),
            (vec![0, 1, 1, 2], 2),
            (vec![0, 2], 1),
            (vec![1, 2], 0),
        ] {
            let (mut a, mut b) = pair();
            let frames = frames(&mut a.send);
            let bytes = order.iter().map(|at| frames[*at].clone()).collect::<Vec<_>>().concat();
            let (calls, end) = take(&bytes, &mut b.receive);
            assert_eq!((calls.len(), end), (pass, Err(FrameError::Tag)), "{order:?}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_gives_whole_frames_only() {
        let (mut a, _) = pair();
        let bytes = frames(&mut a.send).concat();
        for len in 0..bytes.len() {
            let (_, mut b) = pair();
            let (calls, end) = take(&bytes[..len], &mut b.receive);
            assert_eq!(end, Ok(()), "nothing wrong came");
            assert_eq!(calls.len(), [50, 110, 180].iter().filter(|end| len >= **end).count(), "length {len}");
        }
    }

    #[test]
    fn a_frame_longer_than_the_protocol_allows_is_refused_by_its_first_four_bytes() {
        let (_, mut b) = pair();
        let len = u32::try_from(CHUNK_MAX + 1).unwrap();
        assert_eq!(open(&len.to_le_bytes(), &mut b.receive), Err(FrameError::TooLong));
        assert_eq!(open(&[0xff; 64], &mut b.receive), Err(FrameError::TooLong));
    }

    #[test]
    fn random_bytes_never_pass_and_never_panic() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(11);
        for _ in 0..20_000 {
            let (_, mut b) = pair();
            let mut bytes = vec![0; usize::try_from(random.next_u64() % 300).unwrap()];
            random.fill_bytes(&mut bytes);
            if let Some(len) = bytes.get_mut(..4) {
                // Mostly lengths that make a whole frame.
                len.copy_from_slice(&u32::try_from(random.next_u64() % 260).unwrap().to_le_bytes());
            }
            let (calls, _) = take(&bytes, &mut b.receive);
            assert!(calls.is_empty());
        }
    }

    #[test]
    fn headers_that_a_peer_makes_up_never_break_the_assembler_nor_take_more_than_it_may() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(12);
        let mut pick = |among: &[usize]| among[usize::try_from(random.next_u64()).unwrap() % among.len()];
        let chunk = [7; CHUNK_MAX];
        let (mut whole, mut wrong) = (0, 0);
        let mut assembler = Assembler::default();
        for _ in 0..200_000 {
            let mut bytes = [0; HEADER_LEN];
            bytes[4] = u8::try_from(pick(&[0, 1, 1, 1, 2, 9])).unwrap();
            bytes[5] = u8::try_from(pick(&[0, 1, 2, 2, 3])).unwrap();
            bytes[8] = u8::try_from(pick(&[1, 1, 1, 2])).unwrap();
            bytes[0..4].copy_from_slice(&u32::try_from(pick(&[0, 1, 5, CHUNK_MAX])).unwrap().to_le_bytes());
            let body_len =
                pick(&[0, 5, 10, CHUNK_MAX, 2 * CHUNK_MAX, BODY_MAX, BODY_MAX + 1, u32::MAX as usize]);
            bytes[16..20].copy_from_slice(&u32::try_from(body_len).unwrap().to_le_bytes());
            let at = pick(&[0, 0, 5, 5, CHUNK_MAX, u32::MAX as usize]);
            bytes[20..24].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
            let Ok(header) = Header::decode(&bytes) else { continue };
            match assembler.add(&header, &chunk[..header.chunk_len], |_| true) {
                Ok(Some(message)) => {
                    assert_eq!(message.body.unwrap().len(), header.body_len);
                    whole += 1;
                }
                Ok(None) => {}
                // As a connection does: it ends at the first.
                Err(_) => {
                    assembler = Assembler::default();
                    wrong += 1;
                }
            }
            let held: usize = assembler.unfinished.iter().flatten().map(|u| u.first.body_len).sum();
            assert!(held <= 3 * BODY_MAX);
        }
        assert!(whole > 1000 && wrong > 1000, "{whole} {wrong}");
    }

    #[test]
    fn a_body_is_put_together_from_its_chunks_while_more_urgent_ones_pass() {
        let mut assembler = Assembler::default();
        let mut add = |header: Header, chunk: &[u8]| assembler.add(&header, chunk, |_| true);
        assert_eq!(add(call(Class::Bulk, 1, 3, 5, 0), b"abc"), Ok(None));
        let urgent = add(call(Class::Urgent, 2, 1, 1, 0), b"x").unwrap().unwrap();
        assert_eq!((urgent.call, urgent.body.as_deref()), (2, Some(&b"x"[..])));
        let bulk = add(call(Class::Bulk, 1, 2, 5, 3), b"de").unwrap().unwrap();
        assert_eq!((bulk.call, bulk.body.as_deref()), (1, Some(&b"abcde"[..])));
        assert_eq!(add(call(Class::Bulk, 1, 2, 5, 3), b"de"), Err(FrameError::Chunk), "it has no beginning");
    }

    #[test]
    fn a_body_that_nobody_wants_takes_no_memory() {
        let mut assembler = Assembler::default();
        let chunk = [1; CHUNK_MAX];
        let mut last = None;
        let allocated = allocation_counter::measure(|| {
            let mut at = 0;
            while at < BODY_MAX {
                let len = CHUNK_MAX.min(BODY_MAX - at);
                let header = call(Class::Bulk, 1, len, BODY_MAX, at);
                last = assembler.add(&header, &chunk[..len], |_| false).unwrap();
                at += len;
            }
        });
        assert_eq!(allocated.count_total, 0);
        assert_eq!(last.map(|message| message.body), Some(None));
    }
}
