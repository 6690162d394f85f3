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

/// Takes the next frame from the front of `bytes`: its header, its chunk and how many bytes it used. `None` while it is
/// not there as a whole. After an error the connection is of no use.
pub fn open<'a>(
    bytes: &'a [u8],
    key: &mut FrameKey,
) -> Result<Option<(Header, &'a [u8], usize)>, FrameError> {
    let Some((len, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let chunk_len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    if chunk_len > CHUNK_MAX {
        return Err(FrameError::TooLong);
    }
    let Some(frame) = bytes.get(..chunk_len + FRAME_OVERHEAD) else { return Ok(None) };
    let (signed, tag) = frame.split_at(HEADER_LEN + chunk_len);
    key.verify(signed, tag)?;
    let (header, chunk) = signed.split_first_chunk().expect("the header is part of it");
    Ok(Some((Header::decode(header)?, chunk, frame.len())))
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
