//! Random lives and crashes. `JOURNAL_SEEDS` says how many, `JOURNAL_SEED` from which on.

use super::super::*;
use super::rig::*;
use crate::log::random::Random;

/// Lives of random appends, completions, stops and crashes; see [`Rig::settle_life`] for what must hold.
fn random_lives(seed: u64) -> Tally {
    let mut random = Random(seed);
    let len_fixed = random.one_in(2).then(|| 20 + random.below(6000));
    let config = JournalConfig {
        file_bytes: (10 + random.below(20)) as u64 * SEC,
        chunk_bytes_max: SECTOR * (1 + random.below(4)),
        writes_in_flight_max: 1 + random.below(4),
        backlog_bytes_max: 5000 + random.below(100_000),
        spare_files_max: random.below(4),
        ..config()
    };
    let mut rig = Rig::new(config);
    rig.alike = random.one_in(2);
    if random.one_in(2) {
        rig.run();
    }
    let mut tally = Tally::default();
    let lives = 3 + random.below(6);
    for _ in 0..lives {
        let steps = random.below(120);
        let mut stopping = false;
        for _ in 0..steps {
            match random.below(10) {
                0 if random.one_in(3) => {
                    let urgency = if random.one_in(2) { Urgency::Sync } else { Urgency::Lazy };
                    let offset = Offset(random.next());
                    let note = match random.below(3) {
                        0 => Note::Truncated { end: offset },
                        1 => Note::Started { start: offset },
                        _ => Note::Dropped,
                    };
                    let _ = rig.note(note, urgency);
                }
                0..=3 => {
                    let len = len_fixed.unwrap_or_else(|| 20 + random.below(18_000));
                    let urgency = if random.one_in(2) { Urgency::Sync } else { Urgency::Lazy };
                    let _ = rig.append(len, urgency);
                }
                4 => rig.pass(Duration::from_millis(random.below(15) as u64)),
                5 if random.one_in(40) => rig.disk.is_full = !rig.disk.is_full,
                5 if random.one_in(20) && rig.report.is_some() => {
                    rig.journal.stop();
                    stopping = true;
                }
                5 if rig.report.is_some() && random.one_in(4) => {
                    rig.save_somewhere(&mut random);
                    if !random.one_in(4) {
                        rig.release();
                    }
                }
                5 if rig.report.is_some() && rig.saved.is_some() && random.one_in(4) => rig.release(),
                5 if rig.report.is_none() => {
                    rig.journal.pause_replay(random.one_in(2));
                }
                6 => rig.poll(),
                _ if !rig.disk.in_flight.is_empty() => {
                    let index = random.below(rig.disk.in_flight.len());
                    rig.complete(index);
                    if random.one_in(2) {
                        rig.poll();
                    }
                }
                _ => rig.poll(),
            }
        }
        if random.one_in(4) && rig.report.is_some() {
            // Without a crash everything becomes durable in bounded time.
            rig.disk.is_full = false;
            for _ in 0..3 {
                rig.run();
                rig.pass(Duration::from_secs(2));
            }
            rig.run();
            assert_eq!(rig.flushed, rig.log.len(), "seed {seed}");
            assert_eq!(rig.journal.stats().unflushed_bytes * u64::from(!stopping), 0);
            assert!(!stopping || rig.others.iter().any(|e| matches!(e, JournalEvent::Stopped)));
        }
        assert_eq!(rig.fatal, None, "seed {seed}");
        let is_stopped = rig.others.iter().any(|e| matches!(e, JournalEvent::Stopped));
        if is_stopped && rig.report.is_some() && random.one_in(2) {
            rig.stop_clean();
            tally.clean += 1;
        }
        if random.one_in(2) {
            rig.disk.lose_power(&mut random);
        } else {
            rig.disk.kill(&mut random);
        }
        rig.disk.is_full = false;
        rig.is_checkpoint_lost = random.one_in(4);
        rig.begin_life();
        // Some recoveries are crashed into.
        if random.one_in(3) {
            for _ in 0..random.below(6) {
                rig.poll();
                if !rig.disk.in_flight.is_empty() {
                    rig.complete(0);
                }
            }
            rig.disk.lose_power(&mut random);
            rig.is_checkpoint_lost = random.one_in(4);
            rig.begin_life();
        }
        let before = rig.log.len();
        rig.poll();
        while rig.report.is_none() {
            assert_eq!(rig.fatal, None, "seed {seed}");
            rig.complete(0);
            rig.poll();
        }
        rig.settle_life();
        tally.lost += before - rig.log.len();
        tally.cuts += usize::from(rig.report.unwrap().cut.is_some());
        tally.total += rig.log.len();
        rig.replayed.clear();
    }
    tally.recycled = rig.disk.recycled;
    tally
}

/// How hard the runs were.
#[derive(Default, Debug)]
struct Tally {
    /// Entries that were appended and not flushed.
    lost: usize,
    cuts: usize,
    total: usize,
    /// Lives that ended with a clean mark.
    clean: usize,
    recycled: usize,
}

#[test]
fn random_crashes_lose_nothing_flushed_and_bring_nothing_back() {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let (first, seeds) = (number("JOURNAL_SEED").unwrap_or(0), number("JOURNAL_SEEDS").unwrap_or(500));
    let mut all = Tally::default();
    for seed in first..first + seeds {
        let outcome = std::panic::catch_unwind(|| random_lives(seed));
        let Ok(tally) = outcome else { panic!("seed {seed}") };
        all.lost += tally.lost;
        all.cuts += tally.cuts;
        all.total += tally.total;
        all.clean += tally.clean;
        all.recycled += tally.recycled;
    }
    // Many runs must have been hard enough to mean something.
    let n = seeds as usize;
    let is_hard =
        all.lost > n && all.cuts > n / 4 && all.total > 10 * n && all.clean > n / 20 && all.recycled > n / 2;
    assert!(seeds < 100 || is_hard, "{all:?}");
}
