//! Bounds: what is in memory, what is not moved and what the journal holds stays below what was configured.

use highwater_shards::log::storage::StorageConfig;
use highwater_shards::stats::StorageStats;

use crate::checkers::{Verdict, broken};
use crate::logs::world::Phase;

pub const NAME: &str = "bounds";

/// What one turn may add before a bound is looked at again: an open chunk and the largest batch, as memory.
fn turn(config: &StorageConfig) -> u64 {
    (config.journal.chunk_bytes_max + 2 * config.journal.batch_bytes_max) as u64 + 16 * 1024
}

pub fn check(config: &StorageConfig, stats: &StorageStats, phase: Phase) -> Verdict {
    // Recovery takes what one read of the journal has. Logs that are rebuilt cannot be moved before its end.
    let replayed = if phase == Phase::Recovering { 2 * config.journal.file_bytes } else { 0 };
    if stats.unmoved_bytes > config.unmoved_bytes_max + turn(config) + replayed {
        let most = config.unmoved_bytes_max;
        return Err(broken(NAME, format!("{} bytes are not moved; {most} may be", stats.unmoved_bytes)));
    }
    Ok(())
}

/// What the journal takes up on disk; `most` is the largest bound of any life.
pub fn check_journal(config: &StorageConfig, most: u64, bytes: u64) -> Verdict {
    let spare = config.journal.file_bytes * (config.journal.spare_files_max as u64 + 4);
    if bytes > most + spare {
        return Err(broken(
            NAME,
            format!("the journal has {bytes} bytes; {most} and {spare} of spares may be"),
        ));
    }
    Ok(())
}

/// After a time without work; `live_bytes` are those of the journal that a start would read.
pub fn check_idle(config: &StorageConfig, stats: &StorageStats, logs: u64, live_bytes: u64) -> Verdict {
    // Whole files are released, and one is being filled.
    let most = config.checkpoint_bytes + config.journal.file_bytes * 5;
    if live_bytes > most {
        return Err(broken(
            NAME,
            format!("{live_bytes} bytes of journal are live with nothing to do; {most} may be"),
        ));
    }
    if stats.unmoved_bytes > config.unmoved_bytes_soft.max(config.move_bytes * logs) + turn(config) {
        return Err(broken(NAME, format!("{} bytes are not moved with nothing to do", stats.unmoved_bytes)));
    }
    Ok(())
}
