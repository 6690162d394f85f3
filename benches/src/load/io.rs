//! Byte buffers of one connection: what waits to be written, and what was read and is not parsed yet.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

/// Small requests are gathered into one write up to this size; what is over it waits for the next write.
const OUTBOX_BYTES_MAX: usize = 256 << 10;
/// A request body up to this size is copied next to its neighbours; a larger one is written from where it is.
const COPY_BYTES_MAX: usize = 16 << 10;
/// The largest answer that this client takes.
pub const INBOX_BYTES_MAX: usize = 256 << 20;

/// Unsent bytes: copied small requests, then at most one large shared body.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    bytes_sent: usize,
    body: Option<Arc<[u8]>>,
    body_sent: usize,
}

impl Outbox {
    pub fn accepts(&self) -> bool {
        self.body.is_none() && self.bytes.len() < OUTBOX_BYTES_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.body.is_none()
    }

    /// Adds one request: `head` is copied, `tail` only when it is small.
    pub fn push(&mut self, head: &[u8], tail: &Arc<[u8]>) {
        assert!(self.body.is_none(), "a request was pushed behind an unsent large body");
        self.bytes.extend_from_slice(head);
        if tail.len() <= COPY_BYTES_MAX {
            self.bytes.extend_from_slice(tail);
        } else {
            self.body = Some(Arc::clone(tail));
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes_sent = 0;
        self.body = None;
        self.body_sent = 0;
    }

    /// Writes until everything is out (`true`) or the socket takes no more (`false`).
    pub fn write_to(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while !self.is_empty() {
            let bytes = &self.bytes[self.bytes_sent..];
            let body = self.body.as_ref().map_or(&[][..], |body| &body[self.body_sent..]);
            let wrote = match (bytes.is_empty(), body.is_empty()) {
                (false, true) => socket.write(bytes),
                (true, false) => socket.write(body),
                (false, false) => socket.write_vectored(&[IoSlice::new(bytes), IoSlice::new(body)]),
                (true, true) => unreachable!("an outbox is cleared when its last byte is out"),
            };
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(wrote) => {
                    let of_bytes = wrote.min(bytes.len());
                    let all_out = wrote == bytes.len() + body.len();
                    self.bytes_sent += of_bytes;
                    self.body_sent += wrote - of_bytes;
                    if all_out {
                        self.clear();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// What one read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadState {
    /// Bytes, and the socket's buffer is empty now: there was room left in ours.
    Drained,
    /// Bytes, and there may be more.
    More,
    Nothing,
    Closed,
}

/// Bytes that were read and not yet parsed. Grows to hold one whole answer, at most [`INBOX_BYTES_MAX`].
pub struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub fn with_capacity(bytes: usize) -> Inbox {
        Inbox { buffer: vec![0; bytes.clamp(4 << 10, INBOX_BYTES_MAX)], start: 0, end: 0 }
    }

    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        assert!(self.start <= self.end, "more was consumed than was read");
        if self.start == self.end {
            self.clear();
        }
    }

    /// One read. Fails with `InvalidData` when an answer would outgrow the limit.
    pub fn read_from(&mut self, socket: &mut impl Read) -> io::Result<ReadState> {
        if self.end == self.buffer.len() {
            self.make_room()?;
        }
        let room = self.buffer.len() - self.end;
        match socket.read(&mut self.buffer[self.end..]) {
            Ok(0) => Ok(ReadState::Closed),
            Ok(read) => {
                self.end += read;
                Ok(if read < room { ReadState::Drained } else { ReadState::More })
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(ReadState::Nothing)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(ReadState::More),
            Err(error) => Err(error),
        }
    }

    fn make_room(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        } else {
            if self.buffer.len() >= INBOX_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an answer is beyond this client's limit",
                ));
            }
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes at most `step` bytes a write and then says that it would block, every other time.
    struct Sluggish {
        taken: Vec<u8>,
        step: usize,
        block: bool,
    }

    impl Write for Sluggish {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.block = !self.block;
            if self.block {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(self.step);
            self.taken.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_outbox_survives_partial_writes_of_head_and_body() {
        let body: Arc<[u8]> = (0..40_000u32).map(|i| i as u8).collect();
        let small: Arc<[u8]> = vec![7; 10].into();
        let mut outbox = Outbox::default();
        outbox.push(b"one", &small);
        outbox.push(b"two", &body);
        assert!(!outbox.accepts(), "a second large request would be out of order");
        let mut socket = Sluggish { taken: Vec::new(), step: 999, block: false };
        while !outbox.write_to(&mut socket).unwrap() {}
        let expected: Vec<u8> = [b"one".as_slice(), &small, b"two", &body].concat();
        assert_eq!(socket.taken, expected);
        assert!(outbox.is_empty() && outbox.accepts());
    }

    #[test]
    fn an_inbox_grows_for_a_long_answer_and_compacts_for_a_short_one() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let mut source = data.as_slice();
        let mut inbox = Inbox::with_capacity(4096);
        while inbox.unread().len() < 50_000 {
            inbox.read_from(&mut source).unwrap();
        }
        assert_eq!(inbox.unread(), &data[..inbox.unread().len()]);
        inbox.consume(49_999);
        let mut seen = 49_999;
        while inbox.read_from(&mut source).unwrap() != ReadState::Closed {}
        seen += inbox.unread().len();
        assert_eq!(seen, data.len());
        assert_eq!(inbox.unread(), &data[49_999..]);
    }
}
