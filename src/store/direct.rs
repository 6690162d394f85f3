//! A file of which every write is durable when it returns, past the page cache where the file system allows that.
//!
//! Driver; the thread that writes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use redb::StorageBackend;
use rustix::fs::OFlags;

/// Offsets, lengths and addresses of what is written are multiples of this.
pub const BLOCK: usize = 4096;

#[derive(Debug)]
pub struct DirectFile {
    writer: File,
    /// Reads go through the page cache: their buffers may lie anywhere.
    reader: File,
}

impl DirectFile {
    /// Opens the file, or makes an empty one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |flags: OFlags| {
            let flags = i32::try_from(flags.bits()).expect("flags of open are an int");
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
        };
        let writer = match open(OFlags::DSYNC | OFlags::DIRECT) {
            // The file system knows only the page cache.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(OFlags::DSYNC)?,
            opened => opened?,
        };
        Ok(Self { writer, reader: File::open(path)? })
    }
}

/// Room for what is written, at an address as direct I/O wants it.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    start: usize,
}

impl Block {
    /// Room for `len` bytes.
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start }
    }

    /// The first `len` bytes.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

impl StorageBackend for DirectFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.reader.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writer.set_len(len)?;
        self.writer.sync_all()
    }

    /// Nothing is left to do.
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writer.write_all_at(data, offset)
    }
}
