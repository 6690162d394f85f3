//! Snapshots as files: built here, or received from the leader.
//!
//! Driver; files are written and read off the control core's thread. A snapshot takes its place only when it is whole
//! and durable: a file of another name is written, flushed and checked, then renamed, and the folder flushed.
//!
//! | at | size | what |
//! |---|---|---|
//! | 0 | 4 | length of the first envelope, little endian |
//! | 4 | | the envelope with the state beside the image: place in the log, membership, applied proposals |
//! | | | the envelope with the image, up to the end of the file |

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::host::{File, Folder};
use super::machine::Machine;
use crate::control::metadata::envelope::{self, Schema};
use crate::control::metadata::image::Image;
use crate::control::metadata::snapshot;
use crate::store::StoreError;

/// Names within the Raft folder.
const CURRENT: &str = "snapshot";
const BUILDING: &str = "snapshot.building";
const RECEIVING: &str = "snapshot.receiving";

/// What one call carries of a snapshot, and what is in memory of it while it is sent.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// A snapshot that is larger is refused: no image comes near to it.
pub(super) const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;

const MACHINE: Schema = Schema { name: "state of the metadata log", kind: 20, schema: 1 };

/// A whole snapshot on disk. The file stays readable when another one has taken its place.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    file: Arc<dyn File>,
    pub(super) len: u64,
    /// CRC-32C of the whole file.
    pub(super) crc: u32,
    /// What it holds, when it was just received or opened.
    pub(super) content: Option<Arc<Content>>,
}

/// What a snapshot holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub machine: Machine,
    pub image: Image,
}

impl SnapshotFile {
    /// The bytes at `offset`, as many as one call carries.
    pub(super) fn chunk(&self, offset: u64) -> io::Result<Bytes> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(CHUNK_BYTES)];
        self.file.read_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// A copy in `folder`, as if it was received there.
    pub(super) fn receive_in(&self, folder: &dyn Folder) -> io::Result<Self> {
        let mut receiving = Receiving::begin(folder, self.len, self.crc)?;
        while !receiving.is_whole() {
            receiving.add(&self.chunk(receiving.received)?)?;
        }
        receiving.finish()
    }

    /// Reads and checks all of it.
    pub(super) fn read(&self) -> io::Result<Content> {
        let len = usize::try_from(self.len).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.file.read_at(&mut bytes, 0)?;
        decode(&bytes).map_err(io::Error::other)
    }
}

fn decode(bytes: &[u8]) -> Result<Content, String> {
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or("it is too short")?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|error| error.to_string())?;
    let (machine, image) = rest.split_at_checked(len).ok_or("it is cut off")?;
    let machine: Machine = envelope::open(MACHINE, machine).map_err(|error| error.to_string())?;
    let image = snapshot::decode(image).map_err(|error| error.to_string())?;
    if image.revision != machine.revision {
        return Err(format!("its image is of revision {}, its log of {}", image.revision, machine.revision));
    }
    Ok(Content { machine, image })
}

/// CRC-32C, piece by piece.
#[derive(Debug)]
struct Sum(Digest);

impl Sum {
    fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn get(&self) -> u32 {
        u32::try_from(self.0.finalize()).expect("a CRC-32 has 32 bits")
    }
}

/// The current snapshot of the folder, if there is one; what an earlier life left unfinished is removed.
pub(super) fn open(folder: &dyn Folder) -> Result<Option<SnapshotFile>, StoreError> {
    let path = folder.path().join(CURRENT);
    let failed = |error: io::Error| StoreError::Io { file: path.clone(), reason: error.to_string() };
    for unfinished in [BUILDING, RECEIVING] {
        folder.remove(unfinished).map_err(failed)?;
    }
    let Some(file) = folder.open(CURRENT).map_err(failed)? else { return Ok(None) };
    let len = file.size().and_then(|len| usize::try_from(len).map_err(io::Error::other)).map_err(failed)?;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0).map_err(failed)?;
    let content = decode(&bytes).map_err(|reason| StoreError::Damaged { file: path.clone(), reason })?;
    let mut sum = Sum::new();
    sum.add(&bytes);
    Ok(Some(SnapshotFile { file, len: bytes.len() as u64, crc: sum.get(), content: Some(Arc::new(content)) }))
}

/// Writes a snapshot and makes it durable; [`put_in_place`] makes it the current one.
pub(super) fn build(folder: &dyn Folder, machine: &Machine, image: &Image) -> io::Result<SnapshotFile> {
    let machine = envelope::seal(MACHINE, machine);
    let len = u32::try_from(machine.len()).map_err(io::Error::other)?.to_le_bytes();
    let image = snapshot::encode(image);
    let file = folder.create(BUILDING)?;
    let (mut sum, mut at) = (Sum::new(), 0);
    for part in [&len[..], &machine, &image] {
        sum.add(part);
        file.write_at(part, at)?;
        at += part.len() as u64;
    }
    file.sync()?;
    Ok(SnapshotFile { file, len: at, crc: sum.get(), content: None })
}

/// Makes a snapshot that was built or received the current one, durably.
pub(super) fn put_in_place(folder: &dyn Folder, received: bool) -> io::Result<()> {
    folder.rename(if received { RECEIVING } else { BUILDING }, CURRENT)?;
    folder.sync()
}

/// A snapshot that comes in, piece by piece.
#[derive(Debug)]
pub(super) struct Receiving {
    file: Arc<dyn File>,
    sum: Sum,
    pub received: u64,
    pub len: u64,
    pub crc: u32,
}

impl Receiving {
    pub fn begin(folder: &dyn Folder, len: u64, crc: u32) -> io::Result<Self> {
        Ok(Self { file: folder.create(RECEIVING)?, sum: Sum::new(), received: 0, len, crc })
    }

    /// The next bytes.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.received + bytes.len() as u64 > self.len {
            return Err(io::Error::other("a snapshot is longer than it was said to be"));
        }
        self.file.write_at(bytes, self.received)?;
        self.sum.add(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    pub fn is_whole(&self) -> bool {
        self.received == self.len
    }

    /// Checks the whole, makes it durable and reads it.
    pub fn finish(self) -> io::Result<SnapshotFile> {
        if self.sum.get() != self.crc {
            return Err(io::Error::other(
                "the checksum of the whole snapshot does not match: the leader's copy is damaged",
            ));
        }
        self.file.sync()?;
        let mut whole = SnapshotFile { file: self.file, len: self.len, crc: self.crc, content: None };
        whole.content = Some(Arc::new(whole.read()?));
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use highwater_shards::ids::Revision;

    use super::*;
    use crate::store::folder::Directory;

    fn folder(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("highwater-snapshot-{name}-{}", std::process::id()));
        // Left over by a test process of that number that was killed.
        let _ = fs::remove_dir_all(&path);
        Directory::make(&path).unwrap()
    }

    fn content() -> Content {
        let mut content = Content::default();
        content.machine.revision = Revision(7);
        content.image.revision = Revision(7);
        content
    }

    #[test]
    fn a_snapshot_is_current_once_it_is_in_its_place() {
        let folder = folder("place");
        assert!(open(&folder).unwrap().is_none());
        let Content { machine, image } = content();
        let built = build(&folder, &machine, &image).unwrap();
        assert!(open(&folder).unwrap().is_none(), "and what was not finished is gone");
        build(&folder, &machine, &image).unwrap();
        put_in_place(&folder, false).unwrap();
        let found = open(&folder).unwrap().unwrap();
        assert_eq!((found.len, found.crc), (built.len, built.crc));
        assert_eq!(found.content.unwrap().machine, machine);
        assert_eq!(built.read().unwrap().image, image, "the removed file is still readable");
        fs::remove_dir_all(folder.path()).unwrap();
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_noticed() {
        let folder = folder("damage");
        let Content { machine, image } = content();
        build(&folder, &machine, &image).unwrap();
        let whole = fs::read(folder.path().join(BUILDING)).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 16;
            assert!(decode(&bytes).is_err(), "byte {at}");
            assert!(decode(&whole[..at]).is_err(), "length {at}");
        }
        fs::write(folder.path().join(CURRENT), &whole[1..]).unwrap();
        assert!(matches!(open(&folder), Err(StoreError::Damaged { .. })));
        fs::remove_dir_all(folder.path()).unwrap();
    }

    #[test]
    fn a_received_snapshot_is_checked_as_a_whole() {
        let (from, to) = (folder("from"), folder("to"));
        let Content { machine, image } = content();
        let sent = build(&from, &machine, &image).unwrap();
        let bytes = sent.chunk(0).unwrap();
        let mut receiving = Receiving::begin(&to, sent.len, sent.crc).unwrap();
        for piece in bytes.chunks(10) {
            assert!(!receiving.is_whole());
            receiving.add(piece).unwrap();
        }
        assert!(receiving.is_whole());
        assert!(receiving.add(b"x").is_err(), "no more than it was said to be");
        assert_eq!(receiving.finish().unwrap().content.unwrap().machine, machine);
        let mut altered = Receiving::begin(&to, sent.len, sent.crc).unwrap();
        let mut wrong = bytes.to_vec();
        wrong[9] ^= 1;
        altered.add(&wrong).unwrap();
        assert!(altered.finish().is_err());
        fs::remove_dir_all(from.path()).unwrap();
        fs::remove_dir_all(to.path()).unwrap();
    }
}
