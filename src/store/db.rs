//! The store's tables and what is done to them, one transaction each.
//!
//! | table | key | value |
//! |---|---|---|
//! | `format` | () | the version of this layout |
//! | `bodies` | `identity` | an envelope |
//! | `placement` | topic id and partition index, big endian | shard |
//!
//! Every commit is flushed before it returns. Opening checks the checksum of every page.

use highwater_shards::ids::{PartitionId, PartitionIndex, ShardId, TopicId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::error::Failure;
use super::identity::{IDENTITY, Identity};
use crate::control::Placements;
use crate::control::metadata::envelope;

/// Format 1 held the metadata log too.
pub(super) const FORMAT: u32 = 2;

const FORMAT_TABLE: TableDefinition<'_, (), u32> = TableDefinition::new("format");
const BODIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("bodies");
const PLACEMENT: TableDefinition<'_, [u8; 20], u16> = TableDefinition::new("placement");

const IDENTITY_KEY: &str = "identity";

/// The content is small and read once; pages that are written again should still be in memory.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// How a database is opened; tests put a disk of their own in place of the file.
pub(super) type Opener = Box<dyn FnMut(&redb::Builder) -> Result<Database, redb::DatabaseError> + Send>;

pub(super) struct Db {
    /// Absent after an attempt to open it again failed.
    database: Option<Database>,
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
        txn.open_table(PLACEMENT)?;
        Ok(txn.commit()?)
    }

    /// Who the node was in its last life. The tables have to be there.
    pub fn identity(&self) -> Result<Option<Identity>, Failure> {
        let txn = self.database().begin_read()?;
        match txn.open_table(BODIES)?.get(IDENTITY_KEY)? {
            Some(bytes) => Ok(Some(envelope::open(IDENTITY, bytes.value())?)),
            None => Ok(None),
        }
    }

    /// Which shard each partition belongs to. The tables have to be there.
    pub fn placements(&self) -> Result<Vec<(PartitionId, ShardId)>, Failure> {
        let txn = self.database().begin_read()?;
        let mut placements = Vec::new();
        for row in txn.open_table(PLACEMENT)?.iter()? {
            let (partition, shard) = row?;
            placements.push((partition_of(partition.value()), ShardId(shard.value())));
        }
        Ok(placements)
    }

    /// Makes all of it durable, or none.
    pub fn write<'a>(&self, changes: impl Iterator<Item = &'a Placements>) -> Result<(), Failure> {
        let txn = self.database().begin_write()?;
        {
            let mut placement = txn.open_table(PLACEMENT)?;
            for (partition, shard) in changes.flatten() {
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
