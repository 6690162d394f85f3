//! Why the store cannot be opened or written.

use std::io::ErrorKind;
use std::path::PathBuf;

use highwater_shards::ids::NodeId;

use crate::control::metadata::envelope::EnvelopeError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error(
        "{}: no space left for the metadata: free some; the node goes on by itself", file.display()
    )]
    Full { file: PathBuf },
    #[error("{}: another process has it open", file.display())]
    InUse { file: PathBuf },
    #[error("{}: {reason}. Check the disk and the rights of the folder", file.display())]
    Io { file: PathBuf, reason: String },
    #[error(
        "{}: damaged: {reason}. Restore the whole data directory from one copy", file.display()
    )]
    Damaged { file: PathBuf, reason: String },
    #[error(
        "{}: written by another version of Highwater (format {found}; this one reads {known})", file.display()
    )]
    Format { file: PathBuf, found: u32, known: u32 },
    #[error(
        "{}: the data directory belongs to node {found}, but the configuration says node {configured}: correct \
         `cluster.node_id` or the data directory", file.display()
    )]
    OtherNode { file: PathBuf, found: NodeId, configured: NodeId },
    #[error(
        "{}: the data directory belongs to cluster {found}, not to {configured}: another data directory is meant",
        file.display()
    )]
    OtherCluster { file: PathBuf, found: String, configured: String },
    #[error(
        "{} and the folder `raft` beside it do not belong together, one of them was lost: restore the whole data \
         directory from one copy, or remove the node from the cluster and start it as a new one, with another \
         `cluster.node_id` and an empty directory", file.display()
    )]
    OtherLog { file: PathBuf },
}

/// What failed while reading or writing, before the file's name is known.
#[derive(Debug)]
pub(crate) enum Failure {
    Redb(redb::Error),
    Envelope(EnvelopeError),
    Damaged(String),
}

impl Failure {
    pub fn at(self, file: &std::path::Path) -> StoreError {
        let file = file.to_owned();
        match self {
            Self::Redb(redb::Error::DatabaseAlreadyOpen) => StoreError::InUse { file },
            Self::Redb(redb::Error::Io(error))
                if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                StoreError::Full { file }
            }
            // What redb says of a file that is no database of its format.
            Self::Redb(redb::Error::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                StoreError::Damaged { file, reason: error.to_string() }
            }
            Self::Redb(redb::Error::Corrupted(reason)) => StoreError::Damaged { file, reason },
            Self::Redb(error) => StoreError::Io { file, reason: error.to_string() },
            Self::Envelope(error) => StoreError::Damaged { file, reason: error.to_string() },
            Self::Damaged(reason) => StoreError::Damaged { file, reason },
        }
    }
}

impl From<EnvelopeError> for Failure {
    fn from(error: EnvelopeError) -> Self {
        Self::Envelope(error)
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                Self::Redb(error.into())
            }
        })*
    };
}

from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);
