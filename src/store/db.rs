//! The store's tables and what is done to them, one transaction each.
//!
//! | table | key | value |
//! |---|---|---|
//! | `format` | () | the version of this layout |
//! | `bodies` | `identity`, `snapshot` | an envelope |
//! | `log` | revision | an envelope with an [`Entry`] |
//! | `placement` | topic id and partition index, big endian | shard |
//!
//! Every commit is flushed before it returns. Opening checks the checksum of every page.

use highwater_shards::ids::{PartitionId, PartitionIndex, Revision, ShardId, TopicId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::error::Failure;
use super::identity::{IDENTITY, Identity};
use crate::control::Placements;
use crate::control::metadata::command::Entry;
use crate::control::metadata::envelope;
use crate::control::metadata::image::Image;
use crate::control::metadata::snapshot;

pub(super) const FORMAT: u32 = 1;

const FORMAT_TABLE: TableDefinition<'_, (), u32> = TableDefinition::new("format");
const BODIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("bodies");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const PLACEMENT: TableDefinition<'_, [u8; 20], u16> = TableDefinition::new("placement");

const IDENTITY_KEY: &str = "identity";
const SNAPSHOT_KEY: &str = "snapshot";

/// The metadata is small and read once; pages that are written again should still be in memory.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// How a database is opened; tests put a disk of their own in place of the file.
pub(super) type Opener = Box<dyn FnMut(&redb::Builder) -> Result<Database, redb::DatabaseError> + Send>;

pub(super) struct Db {
    /// Absent after an attempt to open it again failed.
    database: Option<Database>,
}

/// What a transaction makes durable.
#[derive(Default)]
pub(super) struct Changes<'a> {
    pub entries: Vec<(Revision, &'a Entry)>,
    pub placements: Vec<&'a Placements>,
    /// Takes the place of the log up to its revision.
    pub snapshot: Option<&'a Image>,
}

/// Everything that a store holds.
pub(super) struct Content {
    pub identity: Option<Identity>,
    pub image: Image,
    /// The revision of the snapshot.
    pub snapshot: Revision,
}

impl Db {
    pub fn open(opener: &mut Opener) -> Result<Self, Failure> {
        let mut db = Self { database: None };
        db.reopen(opener)?;
        Ok(db)
    }

    /// Closes and opens it, which also ends the state that a failed write leaves it in. When this fails, do it again
    /// before anything else.
    pub fn reopen(&mut self, opener: &mut Opener) -> Result<(), Failure> {
        self.database = None;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        self.database = Some(opener(&builder)?);
        Ok(())
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("a failed reopening is repeated before anything else")
    }

    /// The version of the layout; `None` in a new store.
    pub fn format(&self) -> Result<Option<u32>, Failure> {
        let txn = self.database().begin_read()?;
        match txn.open_table(FORMAT_TABLE) {
            Ok(table) => Ok(table.get(())?.map(|version| version.value())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the identity, and the tables when they are not there.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), Failure> {
        let txn = self.database().begin_write()?;
        txn.open_table(FORMAT_TABLE)?.insert((), FORMAT)?;
        txn.open_table(BODIES)?.insert(IDENTITY_KEY, &*envelope::seal(IDENTITY, identity))?;
        txn.open_table(LOG)?;
        txn.open_table(PLACEMENT)?;
        Ok(txn.commit()?)
    }

    /// Everything that the store holds. Its tables have to be there.
    pub fn read(&self) -> Result<Content, Failure> {
        let txn = self.database().begin_read()?;
        let bodies = txn.open_table(BODIES)?;
        let identity = match bodies.get(IDENTITY_KEY)? {
            Some(bytes) => Some(envelope::open(IDENTITY, bytes.value())?),
            None => None,
        };
        let mut image = match bodies.get(SNAPSHOT_KEY)? {
            Some(bytes) => snapshot::decode(bytes.value())?,
            None => Image::default(),
        };
        let snapshot = image.revision;
        for row in txn.open_table(LOG)?.iter()? {
            let (revision, bytes) = row?;
            let revision = Revision(revision.value());
            if revision.0 != image.revision.0 + 1 {
                let after = image.revision;
                return Err(Failure::Damaged(format!(
                    "the metadata log goes from entry {after} to entry {revision}"
                )));
            }
            image.apply(revision, &Entry::decode(bytes.value())?);
        }
        for row in txn.open_table(PLACEMENT)?.iter()? {
            let (partition, shard) = row?;
            image.put_local_shard(partition_of(partition.value()), ShardId(shard.value()));
        }
        Ok(Content { identity, image, snapshot })
    }

    /// The last revision that is durable in the log or the snapshot.
    pub fn last_revision(&self) -> Result<Revision, Failure> {
        let txn = self.database().begin_read()?;
        if let Some((revision, _)) = txn.open_table(LOG)?.last()? {
            return Ok(Revision(revision.value()));
        }
        let bodies = txn.open_table(BODIES)?;
        match bodies.get(SNAPSHOT_KEY)? {
            Some(bytes) => Ok(snapshot::decode(bytes.value())?.revision),
            None => Ok(Revision(0)),
        }
    }

    /// Makes all of it durable, or none.
    pub fn write(&self, changes: &Changes<'_>) -> Result<(), Failure> {
        let txn = self.database().begin_write()?;
        {
            let mut log = txn.open_table(LOG)?;
            for (revision, entry) in &changes.entries {
                log.insert(revision.0, &*entry.encode())?;
            }
            if let Some(image) = changes.snapshot {
                txn.open_table(BODIES)?.insert(SNAPSHOT_KEY, &*snapshot::encode(image))?;
                log.retain_in(..=image.revision.0, |_, _| false)?;
            }
            let mut placement = txn.open_table(PLACEMENT)?;
            for (partition, shard) in changes.placements.iter().copied().flatten() {
                match shard {
                    Some(shard) => placement.insert(key_of(*partition), shard.0)?,
                    None => placement.remove(key_of(*partition))?,
                };
            }
        }
        Ok(txn.commit()?)
    }
}

fn key_of(partition: PartitionId) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&partition.topic.to_bytes());
    key[16..].copy_from_slice(&partition.index.0.to_be_bytes());
    key
}

fn partition_of(key: [u8; 20]) -> PartitionId {
    let (topic, index) = key.split_first_chunk::<16>().expect("16 of 20 bytes");
    let index = index.try_into().expect("the other 4 bytes");
    PartitionId { topic: TopicId::from_bytes(*topic), index: PartitionIndex(u32::from_be_bytes(index)) }
}
