//! The toy's journal: one file of chunks, each written with `sync` after the one before is durable. A chunk is magic,
//! number, length and CRC, then batches, each behind its partition's id.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, checksum};
use highwater_shards::ids::PartitionId;
use highwater_shards::log::disk::{DiskOp, FileName, FileNo, OpNo, SECTOR};

use super::Bug;

pub(super) const FILE: FileNo = FileNo(1);
pub(super) const FILE_BYTES: u64 = 64 << 20;
pub(super) const MAGIC: u32 = 0x746f_795f;
pub(super) const CHUNK_HEADER: usize = 20;
/// What recovery reads at once, in bytes.
pub(super) const WINDOW: u32 = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) ops: u64,
    pub(super) position: u64,
    pub(super) chunk: u64,
    pub(super) ready: bool,
    pub(super) writing: Option<(OpNo, Vec<(PartitionId, u64)>)>,
    pub(super) pending: BytesMut,
    /// Where each partition's log ends once `pending` is durable.
    pub(super) ends: Vec<(PartitionId, u64)>,
    /// `pending` has something that is to be flushed now.
    pub(super) urgent: bool,
    pub(super) found: BytesMut,
}

impl Journal {
    pub(super) fn op(&mut self) -> OpNo {
        self.ops += 1;
        OpNo(self.ops)
    }

    pub(super) fn read(&mut self) -> DiskOp {
        let position = self.position + self.found.len() as u64;
        DiskOp::Read { op: self.op(), file: FileName::Journal(FILE), position, len: WINDOW }
    }

    /// Makes a chunk of what is pending, in whole sectors at an address that direct I/O takes.
    pub(super) fn seal(&mut self) -> Bytes {
        self.urgent = false;
        let body = std::mem::take(&mut self.pending).freeze();
        let len = (CHUNK_HEADER + body.len()).next_multiple_of(SECTOR);
        let mut buffer = vec![0; len + SECTOR];
        let start = buffer.as_ptr().align_offset(SECTOR);
        let mut chunk = &mut buffer[start..start + len];
        let crc = crc_of(self.chunk, &body);
        chunk.put_u32(MAGIC);
        chunk.put_u64(self.chunk);
        chunk.put_u32(u32::try_from(body.len()).expect("a chunk is small"));
        chunk.put_u32(crc);
        chunk.put_slice(&body);
        self.chunk += 1;
        Bytes::from(buffer).slice(start..start + len)
    }

    /// Takes the next chunk out of what was read.
    pub(super) fn next_chunk(&mut self, bug: Option<Bug>) -> Found {
        let Some(mut header) = self.found.get(..CHUNK_HEADER) else { return Found::Part };
        let sound = header.get_u32() == MAGIC && header.get_u64() == self.chunk;
        let (len, crc) = (header.get_u32() as usize, header.get_u32());
        if !sound || len as u64 > FILE_BYTES {
            return Found::End;
        }
        let whole = (CHUNK_HEADER + len).next_multiple_of(SECTOR);
        if self.found.len() < whole {
            return Found::Part;
        }
        let body = Bytes::copy_from_slice(&self.found[CHUNK_HEADER..CHUNK_HEADER + len]);
        if crc_of(self.chunk, &body) != crc && bug != Some(Bug::RecoversWithoutCrc) {
            return Found::End;
        }
        self.found.advance(whole);
        self.position += whole as u64;
        self.chunk += 1;
        Found::Chunk(body)
    }
}

/// What stands at the place where the journal was read to.
pub(super) enum Found {
    Chunk(Bytes),
    /// Not enough was read.
    Part,
    End,
}

fn crc_of(number: u64, body: &[u8]) -> u32 {
    let crc = u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, body)).expect("a CRC of 32 bits");
    crc ^ number.to_le_bytes()[0] as u32
}
