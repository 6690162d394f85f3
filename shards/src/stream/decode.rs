//! Bytes to messages, one by one where they lie.

use std::marker::PhantomData;

use bytes::Bytes;

use super::{
    Ack, Ends, FromFollower, FromLeader, Handle, Hello, MAGIC, Refusal, StreamError, Subscribe, VERSION,
};
use crate::ids::{LeaderEpoch, Offset, PartitionId, PartitionIndex, ShardId, TopicId};

/// What one side says.
pub trait Message: Sized {
    /// Reads the fields of a message of this kind.
    fn read(kind: u8, fields: &mut Fields<'_>) -> Result<Self, StreamError>;
}

/// The messages of one frame, in order. Ends behind the first that cannot be read.
#[derive(Debug)]
pub struct Messages<'a, M> {
    fields: Fields<'a>,
    failed: bool,
    kind: PhantomData<M>,
}

impl<'a, M> Messages<'a, M> {
    /// `frame` is one frame's body, without its prefix.
    pub fn new(frame: &'a Bytes) -> Self {
        Self::from(frame, 0)
    }

    /// Goes on where an earlier one had come to ([`Self::position`]).
    pub fn from(frame: &'a Bytes, position: usize) -> Self {
        Self { fields: Fields { frame, at: position.min(frame.len()) }, failed: false, kind: PhantomData }
    }

    /// Where the next message begins.
    pub fn position(&self) -> usize {
        self.fields.at
    }
}

impl<M: Message> Iterator for Messages<'_, M> {
    type Item = Result<M, StreamError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.fields.at == self.fields.frame.len() {
            return None;
        }
        let message = self.fields.u8().and_then(|kind| M::read(kind, &mut self.fields));
        self.failed = message.is_err();
        Some(message)
    }
}

/// What is left of a frame.
#[derive(Debug)]
pub struct Fields<'a> {
    frame: &'a Bytes,
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let bytes = self.frame[self.at..].first_chunk().ok_or(StreamError::CutShort)?;
        self.at += N;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, StreamError> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, StreamError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, StreamError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, StreamError> {
        self.take().map(u64::from_be_bytes)
    }

    fn offset(&mut self) -> Result<Offset, StreamError> {
        let offset = self.u64()?;
        if i64::try_from(offset).is_err() {
            return Err(StreamError::Impossible("an offset of 2^63 or more"));
        }
        Ok(Offset(offset))
    }

    fn epoch(&mut self) -> Result<LeaderEpoch, StreamError> {
        let epoch = self.u32()?;
        if i32::try_from(epoch).is_err() {
            return Err(StreamError::Impossible("a leader epoch of 2^31 or more"));
        }
        Ok(LeaderEpoch(epoch))
    }

    fn handle(&mut self) -> Result<Handle, StreamError> {
        self.u32().map(Handle)
    }

    fn ends(&mut self) -> Result<Ends, StreamError> {
        let (high_watermark, log_start) = (self.offset()?, self.offset()?);
        if log_start > high_watermark {
            return Err(StreamError::Impossible("a log that starts behind its high watermark"));
        }
        Ok(Ends { high_watermark, log_start })
    }

    fn bytes(&mut self) -> Result<Bytes, StreamError> {
        let len = self.u32()? as usize;
        if len > self.frame.len() - self.at {
            return Err(StreamError::CutShort);
        }
        let bytes = self.frame.slice(self.at..self.at + len);
        self.at += len;
        Ok(bytes)
    }

    fn hello(&mut self) -> Result<Hello, StreamError> {
        if self.u32()? != MAGIC {
            return Err(StreamError::NotAStream);
        }
        let version = self.u16()?;
        if version != VERSION {
            return Err(StreamError::Version(version));
        }
        Ok(Hello { version, batch_bytes_max: self.u32()? })
    }
}

impl Message for FromFollower {
    fn read(kind: u8, fields: &mut Fields<'_>) -> Result<Self, StreamError> {
        Ok(match kind {
            0 => Self::Hello(fields.hello()?),
            1 => Self::Subscribe(Subscribe {
                handle: fields.handle()?,
                partition: PartitionId {
                    topic: TopicId(fields.take().map(u128::from_be_bytes)?),
                    index: PartitionIndex(fields.u32()?),
                },
                leader_epoch: fields.epoch()?,
                offset: fields.offset()?,
                last_epoch: LeaderEpoch::from_wire(fields.take().map(i32::from_be_bytes)?),
            }),
            2 => Self::Unsubscribe { handle: fields.handle()? },
            3 => {
                let handle = fields.handle()?;
                let (log_start, log_end, flushed_end) =
                    (fields.offset()?, fields.offset()?, fields.offset()?);
                if flushed_end > log_end || log_start > log_end {
                    return Err(StreamError::Impossible("an end of a log behind its end"));
                }
                Self::Ack(Ack { handle, log_start, log_end, flushed_end })
            }
            4 => Self::Credit { bytes: fields.u32()? },
            other => return Err(StreamError::UnknownKind(other)),
        })
    }
}

impl Message for FromLeader {
    fn read(kind: u8, fields: &mut Fields<'_>) -> Result<Self, StreamError> {
        Ok(match kind {
            0 => Self::Hello(fields.hello()?),
            16 => Self::Accepted {
                handle: fields.handle()?,
                leader_epoch: fields.epoch()?,
                ends: fields.ends()?,
            },
            17 => Self::Diverging { handle: fields.handle()?, epoch: fields.epoch()?, end: fields.offset()? },
            18 => {
                let handle = fields.handle()?;
                let code = fields.u8()?;
                let (a, b) = (fields.offset()?, fields.offset()?);
                let reason = match code {
                    1 => Refusal::NotLeader,
                    2 => Refusal::FencedEpoch,
                    3 => Refusal::UnknownEpoch,
                    4 => Refusal::NotReplica,
                    5 => Refusal::Moved {
                        shard: u16::try_from(a.0)
                            .map(ShardId)
                            .map_err(|_| StreamError::Impossible("a shard of 2^16 or more"))?,
                    },
                    6 if a <= b => Refusal::OutOfRange { start: a, end: b },
                    6 => return Err(StreamError::Impossible("a log that ends before it starts")),
                    7 => Refusal::Unavailable,
                    other => return Err(StreamError::UnknownRefusal(other)),
                };
                Self::Refused { handle, reason }
            }
            19 => Self::Records {
                handle: fields.handle()?,
                leader_epoch: fields.epoch()?,
                ends: fields.ends()?,
                batches: fields.bytes()?,
            },
            20 => Self::Watermark { handle: fields.handle()?, ends: fields.ends()? },
            other => return Err(StreamError::UnknownKind(other)),
        })
    }
}
