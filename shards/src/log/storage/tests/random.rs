//! Random histories with crashes at any operation.

use super::rig::Rig;
use crate::ids::Offset;
use crate::log::journal::Urgency;
use crate::log::storage::Start;

/// One life of random work, of about so many steps.
fn live(rig: &mut Rig, steps: usize) {
    for _ in 0..steps {
        let index = rig.random.below(4) as u32;
        match rig.random.below(40) {
            0..=17 => {
                let len = match rig.random.below(4) {
                    0 => 6000,
                    1 => 1500,
                    _ => rig.random.below(200),
                };
                let urgency = if rig.random.one_in(3) { Urgency::Lazy } else { Urgency::Sync };
                let _ = rig.append(index, len, urgency);
            }
            18 => {
                let content = rig.content(index);
                let ends: Vec<Offset> = content.batches.iter().map(|(_, next, _)| *next).collect();
                if let Some(last) = ends.len().checked_sub(1) {
                    let end = ends[last - rig.random.below(last.min(12) + 1)].max(content.start);
                    if ends.contains(&end) {
                        rig.truncate(index, end);
                    }
                }
            }
            19 => {
                let content = rig.content(index);
                let span = (content.end.0 - content.start.0) as usize;
                let start = content.start.plus(rig.random.below(span / 2 + 1) as u64);
                if start > content.start {
                    rig.advance_start(index, start);
                }
            }
            20 if rig.random.one_in(4) => rig.drop_log(index),
            21 => {
                let ms = rig.random.below(80) as u64;
                rig.wait(ms);
            }
            22 => rig.drain(),
            _ => {
                rig.complete_one();
            }
        }
        assert_eq!(rig.fatal, None);
    }
}

fn run(seed: u64, lives: usize, plant: impl Fn(&mut Rig)) {
    let mut rig = Rig::new(seed);
    plant(&mut rig);
    for life in 0..lives {
        match rig.random.below(6) {
            // A crash in the middle of recovery.
            0 => {
                let steps = rig.random.below(30);
                for _ in 0..steps {
                    rig.complete_one();
                }
            }
            _ => {
                rig.recover();
                rig.check_recovered();
                let steps = 50 + rig.random.below(500);
                live(&mut rig, steps);
                if rig.random.one_in(3) {
                    rig.rest();
                    rig.check_contents();
                }
                if rig.random.one_in(4) {
                    rig.stop();
                    rig.flushed = rig.flushed.max(rig.last_chunk());
                    let with_power = rig.random.one_in(2);
                    rig.crash(with_power);
                    let reads = rig.disk.segment_reads;
                    rig.settle();
                    assert_eq!(rig.report.unwrap().start, Start::Clean, "life {life}");
                    assert_eq!(rig.disk.segment_reads, reads, "a clean start reads no segment");
                    rig.check_recovered();
                    continue;
                }
            }
        }
        let with_power = rig.random.one_in(2);
        rig.crash(with_power);
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let from = number("HIGHWATER_STORAGE_FROM").unwrap_or(0);
    from..from + number("HIGHWATER_STORAGE_SEEDS").unwrap_or(60)
}

#[test]
fn what_was_flushed_survives_crashes_at_any_operation() {
    for seed in seeds() {
        let result = std::panic::catch_unwind(|| run(seed, 12, |_| {}));
        if let Err(panic) = result {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn is_caught(plant: impl Fn(&mut Rig) + Copy + std::panic::RefUnwindSafe) -> bool {
    (0..200).any(|seed| std::panic::catch_unwind(|| run(seed, 12, plant)).is_err())
}

#[test]
fn planted_release_before_segments_are_synced_is_caught() {
    assert!(is_caught(|rig| rig.disk.skips_segment_syncs = true));
}

#[test]
fn planted_skip_of_folder_syncs_is_caught() {
    assert!(is_caught(|rig| rig.disk.skips_folder_syncs = true));
}
