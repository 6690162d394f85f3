//! A start with more or fewer shards than the data directory was written with: logs go to other shards.
//!
//! Driver; runs on the thread that starts the node, before its shards. The shards as they were are started without
//! listeners and stopped in order, after which the segments hold everything and each checkpoint says so. The logs of
//! all checkpoints are then dealt out to new ones, in a folder of their own:
//!
//! ```text
//! resharding/journal-<shard>/checkpoint    being written: worth nothing
//! resharded/journal-<shard>/checkpoint     all of them, durable: they take the place of the journals
//! resharded/shards                         how many they are
//! ```
//!
//! The renaming from the first to the second is the moment that counts. Before it the old journals hold; after it
//! what is left is moving folders, which the next start goes on with if this one does not come to it. Partition
//! folders stay where they are.

#![expect(clippy::disallowed_methods, reason = "driver: waits for shards, moves folders")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use highwater_shards::ids::ShardId;
use highwater_shards::log::Lsn;
use highwater_shards::log::checkpoint::{Checkpoint, LogState, Resume};
use highwater_shards::log::disk::FileNo;
use highwater_shards::log::journal::LogPosition;
use highwater_shards::mail::{FromControl, ToControl};
use highwater_shards::reactor::boot::{ShardExit, Shards, start};

use super::NodeError;
use super::boot::{entropy, shard_setups};
use super::data_dir::DataDir;
use crate::config::{Config, CorePlan};
use crate::control::metadata::image::Image;
use crate::kafka::Kafka;

const MAKING: &str = "resharding";
const MADE: &str = "resharded";
/// In `MADE`: the number of shards.
const COUNT: &str = "shards";
/// Shards say nothing for so long only when they have nothing to say.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// A shard that stops moves all that its journal holds to segments first.
const STOP_DEADLINE: Duration = Duration::from_secs(3600);

/// Sees to it that the data directory is that of `shards` shards. `image` says which logs were whose.
///
/// # Errors
/// When the old shards cannot be recovered, or the new checkpoints not be written. The next start goes on where this
/// one ended.
pub(super) fn reshard(
    config: &Config,
    data_dir: &DataDir,
    image: &Image,
    shards: u16,
) -> Result<(), NodeError> {
    let root = data_dir.path();
    let failed = |error: io::Error| NodeError::Reshard(error.to_string());
    remove(&root.join(MAKING)).map_err(failed)?;
    if root.join(MADE).exists() {
        put_in_place(root, data_dir).map_err(failed)?;
    }
    let before = data_dir.journals().map_err(failed)?;
    if before == 0 || before == shards {
        return Ok(());
    }
    tracing::info!(before, now = shards, "the number of shards has changed: logs are given to other shards");
    let plan = CorePlan { control: None, shards: vec![None; usize::from(before)], pinned: false };
    let mut setups = shard_setups(config, &plan, data_dir, image)?;
    setups.iter_mut().for_each(|setup| setup.listen.clear());
    stop_in_order(start(setups)?)?;
    let logs = collect(data_dir, before)?;
    let count = logs.len();
    write(&root.join(MAKING), deal(logs, shards)).map_err(failed)?;
    fs::rename(root.join(MAKING), root.join(MADE)).and_then(|()| sync(root)).map_err(failed)?;
    put_in_place(root, data_dir).map_err(failed)?;
    tracing::info!(logs = count, shards, "all logs have their shards");
    Ok(())
}

/// Lets shards recover and stop.
fn stop_in_order(mut shards: Shards<Kafka>) -> Result<(), NodeError> {
    let mut running = shards.links.len();
    while running > 0 {
        for link in &mut shards.links {
            while let Some(message) = link.recv() {
                if let ToControl::Recovered { .. } = message {
                    let stop = FromControl::Stop { deadline: STOP_DEADLINE };
                    link.send(stop).map_err(|_| NodeError::Reshard("a shard takes no messages".into()))?;
                }
            }
        }
        match shards.try_exit() {
            Some((_, ShardExit::Stopped)) => running -= 1,
            Some((shard, ShardExit::Fatal(reason))) => return Err(NodeError::Shard { shard, reason }),
            Some((shard, ShardExit::Panicked)) => return Err(NodeError::ShardPanicked { shard }),
            None => std::thread::sleep(LOOK_AGAIN),
        }
    }
    shards.join();
    Ok(())
}

/// The logs of all shards, by partition.
fn collect(data_dir: &DataDir, shards: u16) -> Result<Vec<LogState>, NodeError> {
    let mut logs = Vec::new();
    for shard in (0..shards).map(ShardId) {
        let path = data_dir.journal_of(shard).join("checkpoint");
        let unusable = |why: String| NodeError::Reshard(format!("{}: {why}", path.display()));
        let bytes = fs::read(&path).map_err(|e| unusable(e.to_string()))?;
        let checkpoint = Checkpoint::parse(&bytes).map_err(|e| unusable(e.to_string()))?;
        if !matches!(checkpoint.resume, Resume::Clean { .. }) {
            return Err(unusable("the shard stopped without moving everything to segments".into()));
        }
        logs.extend(checkpoint.logs);
    }
    logs.sort_unstable_by_key(|log| log.partition);
    Ok(logs)
}

/// Deals the logs out, neighbours to different shards: those of one topic spread evenly.
fn deal(logs: Vec<LogState>, shards: u16) -> Vec<Vec<LogState>> {
    let mut hands = vec![Vec::new(); usize::from(shards)];
    for (i, log) in logs.into_iter().enumerate() {
        // The new journals have no entries yet.
        hands[i % usize::from(shards)].push(LogState { moved: Lsn::ZERO, noted: Lsn::ZERO, ..log });
    }
    hands
}

/// Writes the journal folders of new shards, each with a checkpoint and nothing else, and makes them durable.
fn write(root: &Path, hands: Vec<Vec<LogState>>) -> io::Result<()> {
    fs::create_dir(root)?;
    fs::write(root.join(COUNT), hands.len().to_string())?;
    File::open(root.join(COUNT))?.sync_all()?;
    for (shard, logs) in (0..).map(ShardId).zip(hands) {
        let begin = Resume::Clean { end: LogPosition { file: FileNo(0), position: 0 }, sequence: 1 };
        let journal = u64::from_ne_bytes(entropy().map_err(io::Error::other)?);
        let checkpoint = Checkpoint { shard, journal, incarnation: 0, resume: begin, logs };
        let folder = root.join(DataDir::journal_name(shard));
        fs::create_dir(&folder)?;
        let mut file = File::create(folder.join("checkpoint"))?;
        for part in checkpoint.encode() {
            file.write_all(&part)?;
        }
        file.sync_all()?;
        sync(&folder)?;
    }
    sync(root)
}

/// Puts the new journal folders where the old ones are. Can be done again from wherever it ended.
fn put_in_place(root: &Path, data_dir: &DataDir) -> io::Result<()> {
    let made = root.join(MADE);
    let count = made.join(COUNT);
    // Without the count everything was in place before: it goes last.
    if count.exists() {
        let shards: u16 = fs::read_to_string(&count)?.trim().parse().map_err(io::Error::other)?;
        for shard in (0..shards).map(ShardId) {
            let folder = made.join(DataDir::journal_name(shard));
            if folder.exists() {
                remove(&data_dir.journal_of(shard))?;
                fs::rename(folder, data_dir.journal_of(shard))?;
            }
        }
        for shard in (shards..data_dir.journals()?).map(ShardId) {
            remove(&data_dir.journal_of(shard))?;
        }
        sync(root)?;
        fs::remove_file(&count)?;
    }
    fs::remove_dir(&made)?;
    sync(root)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use highwater_shards::ids::{Offset, PartitionId, PartitionIndex, TopicId};

    use super::*;

    fn log(topic: u128, index: u32) -> LogState {
        LogState {
            partition: PartitionId { topic: TopicId(topic), index: PartitionIndex(index) },
            moved: Lsn { chunk: 7, entry: 1 },
            noted: Lsn { chunk: 9, entry: 0 },
            start: Offset(3),
            end: Offset(12),
            high_watermark: Offset(12),
            cleaned: Offset(0),
            segments: Vec::new(),
            epochs: Vec::new(),
            producers: Vec::new(),
            superseded: Vec::new(),
        }
    }

    fn data_dir(name: &str) -> DataDir {
        let path = std::env::temp_dir().join(format!("highwater-{name}-{}", std::process::id()));
        // Left over by a test process of that number that was killed.
        let _ = fs::remove_dir_all(&path);
        DataDir::hold(&path).unwrap()
    }

    fn partitions_of(data_dir: &DataDir, shard: u16) -> Vec<PartitionId> {
        let bytes = fs::read(data_dir.journal_of(ShardId(shard)).join("checkpoint")).unwrap();
        let checkpoint = Checkpoint::parse(&bytes).unwrap();
        assert!(checkpoint.logs.iter().all(|l| l.moved == Lsn::ZERO && l.end == Offset(12)));
        checkpoint.logs.into_iter().map(|l| l.partition).collect()
    }

    #[test]
    fn partitions_of_a_topic_spread_over_all_shards() {
        let logs = (0..2).flat_map(|topic| (0..6).map(move |index| log(topic, index))).collect();
        let hands = deal(logs, 3);
        for topic in 0..2 {
            let of_topic =
                |hand: &Vec<LogState>| hand.iter().filter(|l| l.partition.topic == TopicId(topic)).count();
            assert_eq!(hands.iter().map(of_topic).collect::<Vec<_>>(), [2, 2, 2]);
        }
    }

    /// Ends after every step of putting the folders in place, then goes on.
    #[test]
    fn a_start_goes_on_where_the_last_one_ended() {
        for steps in 0..6 {
            let data_dir = data_dir(&format!("reshard-{steps}"));
            let root = data_dir.path().to_owned();
            for shard in (0..3).map(ShardId) {
                fs::create_dir(data_dir.journal_of(shard)).unwrap();
                fs::write(data_dir.journal_of(shard).join("0000000000000000.journal"), "old").unwrap();
            }
            let made = root.join(MADE);
            write(&made, deal((0..5).map(|index| log(1, index)).collect(), 2)).unwrap();
            let step = |n: i32| {
                let first = data_dir.journal_of(ShardId(0));
                match n {
                    0 => fs::remove_dir_all(&first),
                    1 => fs::rename(made.join("journal-0"), &first),
                    2 => fs::remove_dir_all(data_dir.journal_of(ShardId(1))),
                    3 => fs::rename(made.join("journal-1"), data_dir.journal_of(ShardId(1))),
                    4 => fs::remove_dir_all(data_dir.journal_of(ShardId(2))),
                    _ => fs::remove_file(made.join(COUNT)),
                }
            };
            (0..steps).for_each(|n| step(n).unwrap());
            put_in_place(&root, &data_dir).unwrap();
            assert!(!made.exists());
            assert_eq!(data_dir.journals().unwrap(), 2);
            assert_eq!((partitions_of(&data_dir, 0).len(), partitions_of(&data_dir, 1).len()), (3, 2));
            fs::remove_dir_all(root).unwrap();
        }
    }
}
