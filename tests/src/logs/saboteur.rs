//! What a disk may be made to do wrong between the log and itself: planted bugs, by which the checkers are checked.

use highwater_shards::log::disk::{DiskEvent, DiskOp, FileName};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// A folder's sync is reported and never done.
    NoFolderSyncs,
    /// The sync of a segment is reported at once, and done long after.
    LateSegmentSyncs,
    /// The sync of a segment is reported and never done.
    NoSegmentSyncs,
    /// The journal's writes are reported at once and done later.
    EarlyWrites,
    /// A new journal file is reported before it is there.
    EarlyPrepares,
    /// A recycled journal file is reported before it has its new name.
    EarlyRecycles,
    /// A segment that was to be shortened is not.
    LostCuts,
    /// One put in some is reported and never done.
    LostPuts,
    /// The checkpoint is reported as replaced and stays as it was.
    LostCheckpoints,
    /// What compaction made is reported as synced and is not: it takes the place of segments that are.
    NoCompactionSyncs,
}

impl Sabotage {
    pub const ALL: [Self; 10] = [
        Self::NoFolderSyncs,
        Self::LateSegmentSyncs,
        Self::NoSegmentSyncs,
        Self::EarlyWrites,
        Self::EarlyPrepares,
        Self::EarlyRecycles,
        Self::LostCuts,
        Self::LostPuts,
        Self::LostCheckpoints,
        Self::NoCompactionSyncs,
    ];
}

/// What becomes of an operation.
#[derive(Debug)]
pub enum Fate {
    /// The disk does it.
    Done(DiskOp),
    /// The log is told at once, and the disk does it later without a word.
    Early(DiskEvent, DiskOp),
    /// The log is told and nothing is done.
    Lost(DiskEvent),
}

/// `count` counts the operations that were asked about.
pub fn fate(sabotage: Option<Sabotage>, op: DiskOp, count: u64) -> Fate {
    use Sabotage as S;
    let Some(sabotage) = sabotage else { return Fate::Done(op) };
    match (&op, sabotage) {
        (DiskOp::SyncFolder { op, .. }, S::NoFolderSyncs)
        | (DiskOp::Sync { op, file: FileName::Segment(_) }, S::NoSegmentSyncs) => {
            Fate::Lost(DiskEvent::Synced { op: *op, result: Ok(()) })
        }
        (&DiskOp::Sync { op: no, file: FileName::Segment(_) }, S::LateSegmentSyncs) => {
            Fate::Early(DiskEvent::Synced { op: no, result: Ok(()) }, op)
        }
        (&DiskOp::Write { op: no, .. }, S::EarlyWrites) => {
            Fate::Early(DiskEvent::Written { op: no, result: Ok(()) }, op)
        }
        (&DiskOp::Prepare { op: no, .. }, S::EarlyPrepares)
        | (&DiskOp::Recycle { op: no, .. }, S::EarlyRecycles) => {
            Fate::Early(DiskEvent::Prepared { op: no, result: Ok(()) }, op)
        }
        (DiskOp::Cut { op, file: FileName::Segment(_), .. }, S::LostCuts)
        | (DiskOp::Replace { op, .. }, S::LostCheckpoints) => {
            Fate::Lost(DiskEvent::Done { op: *op, result: Ok(()) })
        }
        (DiskOp::Put { op, file: FileName::Segment(_), .. }, S::LostPuts) if count.is_multiple_of(7) => {
            Fate::Lost(DiskEvent::Written { op: *op, result: Ok(()) })
        }
        (DiskOp::Sync { op, file: FileName::Segment(name) }, S::NoCompactionSyncs) if name.generation > 0 => {
            Fate::Lost(DiskEvent::Synced { op: *op, result: Ok(()) })
        }
        _ => Fate::Done(op),
    }
}
