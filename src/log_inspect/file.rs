//! A file that is read from any place, and may be written to by a node at the same time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The longest index or checkpoint file that is read: it is read as a whole.
pub const WHOLE_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug)]
pub struct Source {
    file: File,
    /// As it was when it was opened; what is written behind it later is not looked at.
    pub bytes: u64,
}

impl Source {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }

    /// `len` bytes from `position` on; fewer at the file's end.
    pub fn read(&self, position: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = len.min(self.bytes.saturating_sub(position));
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The whole file, if it is not absurdly long.
    pub fn whole(&self) -> io::Result<Vec<u8>> {
        if self.bytes > WHOLE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.read(0, self.bytes)
    }
}
