//! Random logs, reads and changes against a plain list. `READER_SEEDS` says how many.

use super::*;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn random_log(random: &mut Random, files: &mut Files, index: u32) -> Log {
    let mut log = Log::new(index);
    let is_compacted = random.one_in(2);
    let mut now_ms = 1000;
    for _ in 0..1 + random.below(4) {
        // Retention, or compaction, may leave gaps between segments.
        log.end = log.end.plus(if is_compacted { random.below(20) as u64 } else { 0 });
        let name = log.begin_segment(files, u32::from(is_compacted));
        let len_max = [40, 600, 3000, 30_000][random.below(4)];
        let batches_max = [400, 300, 100, 20][random.below(4)];
        for _ in 0..random.below(batches_max) {
            now_ms += random.below(20) as i64 - 5;
            let gap = if is_compacted && random.one_in(3) { random.below(50) as u64 } else { 0 };
            log.append(files, gap, 1 + random.below(4) as u64, now_ms, random.below(len_max));
        }
        log.put_index(files, name);
        match random.below(6) {
            0 => {
                files.remove(&FileName::Index(name));
            }
            1 => {
                let file = files.get_mut(&FileName::Index(name)).unwrap();
                let at = random.below(file.len());
                file[at] ^= 1 << random.below(8);
            }
            2 => {
                let file = files.get_mut(&FileName::Index(name)).unwrap();
                file.truncate(random.below(file.len() + 1));
            }
            3 => {
                // Of another file.
                let other = SegmentName { generation: 9, ..name };
                let mut file = Vec::new();
                log.index_of(name).put_file(&mut file, &other);
                files.insert(FileName::Index(name), file);
            }
            _ => {}
        }
    }
    log
}

fn check_search(log: &Log, (timestamp_ms, from, below): (i64, u64, u64), stretch: &Stretch) {
    let first = log.batches.iter().find(|b| b.end.0 > from && b.timestamp_ms >= timestamp_ms);
    let first = first.filter(|b| b.end.0 <= below);
    match (first, stretch.batches.first()) {
        (Some(first), Some(found)) => {
            assert!(*found == first.bytes);
            assert_eq!(stretch.next, first.end);
            assert_eq!(stretch.batches.len(), 1);
        }
        (Some(first), None) => assert!(stretch.next.0 > from && stretch.next <= first.base, "it goes on"),
        (None, found) => assert!(found.is_none()),
    }
}

#[derive(Clone, Copy)]
enum Asked {
    Read(Ask),
    Search(i64, u64, u64),
}

fn random_life(seed: u64) -> ReaderStats {
    let mut random = Random(seed);
    let mut files = Files::new();
    let mut logs: Vec<Log> =
        (0..1 + random.below(3) as u32).map(|i| random_log(&mut random, &mut files, i)).collect();
    let config = ReaderConfig {
        read_bytes: [1, 200, 5000, 70_000, 1 << 20][random.below(5)],
        read_bytes_beside_writes: [1, 3000, 1 << 20][random.below(3)],
        bulk_bytes_min: [0, 200, 5000, 1 << 20][random.below(4)],
        ahead_bytes_max: [0, 10_000, 300_000, 64 << 20][random.below(4)],
        index_bytes_max: [0, 1000, 1 << 20][random.below(3)],
        reads_in_flight_max: 1 + random.below(6),
        waiting_max: 1000,
    };
    let mut rig = Rig::new(config, files);
    let mut open: BTreeMap<u64, (Asked, usize)> = BTreeMap::new();
    let mut sequential = [0_u64; 4];
    for _ in 0..300 {
        let which = random.below(logs.len());
        let log = &logs[which];
        let span = log.end.0 as usize + 3;
        match random.below(10) {
            0..=3 => {
                let reader = random.below(4);
                let from = if reader < 2 { sequential[reader] } else { random.below(span) as u64 };
                let below = if random.one_in(3) { random.below(span + 3) as u64 } else { ALL };
                let bytes_max = [0, 100, 3000, 50_000, usize::MAX][random.below(5)];
                let (first_whole, is_urgent) = (!random.one_in(4), random.one_in(4));
                let asked = Ask { from, below, bytes_max, first_whole, is_urgent };
                open.insert(rig.begin(log, asked), (Asked::Read(asked), which));
            }
            4 => {
                let timestamp_ms = 900 + random.below(4000) as i64;
                let from = if random.one_in(2) { 0 } else { random.below(span) as u64 };
                let below = if random.one_in(3) { random.below(span + 3) as u64 } else { ALL };
                let ticket = rig.begin_search(log, timestamp_ms, from, below);
                open.insert(ticket, (Asked::Search(timestamp_ms, from, below), which));
            }
            5 if random.one_in(5) => {
                // Answers to this log from here on are checked against what it is now.
                let log = &mut logs[which];
                let last = log.name(log.segments.last().unwrap());
                let in_last = log.batches.iter().filter(|b| b.segment == last).count();
                if in_last > 0 && random.one_in(2) {
                    let (name, bytes) = log.cut(log.batches.len() - 1 - random.below(in_last));
                    rig.reader.cut(name, bytes);
                    rig.files.get_mut(&FileName::Segment(name)).unwrap().truncate(bytes as usize);
                    if random.one_in(2) {
                        log.put_index(&mut rig.files, name);
                    }
                } else if random.one_in(2) {
                    let segment = log.segments[random.below(log.segments.len())];
                    rig.reader.forget(log.name(&segment));
                }
                rig.poll();
                let log = &mut logs[which];
                let (begun, known) = (log.segments.last().unwrap().bytes, log.index_of(last).entries().len());
                for _ in 0..random.below(100) {
                    log.append(&mut rig.files, 0, 1 + random.below(3) as u64, 5000, random.below(3000));
                }
                let meta = *log.segments.last().unwrap();
                let index = log.index_of(last);
                if meta.bytes > begun && random.one_in(2) {
                    let entries = &index.entries()[known..];
                    rig.reader.note_moved(last, begun..meta.bytes, meta.max_timestamp_ms, entries);
                }
            }
            _ if !rig.in_flight.is_empty() => rig.complete(random.below(rig.in_flight.len())),
            _ => {}
        }
        check_done(&mut rig, &mut open, &logs, &mut sequential);
    }
    rig.run();
    check_done(&mut rig, &mut open, &logs, &mut sequential);
    assert!(open.is_empty(), "every read ends");
    rig.reader.stats()
}

fn check_done(
    rig: &mut Rig,
    open: &mut BTreeMap<u64, (Asked, usize)>,
    logs: &[Log],
    sequential: &mut [u64; 4],
) {
    while let Some((ticket, result)) = rig.done.pop_first() {
        let (asked, which) = open.remove(&ticket).expect("it was asked for");
        let log = &logs[which];
        match (result, asked) {
            (Ok(stretch), Asked::Read(ask)) => {
                check_answer(log, ask, &stretch);
                let reader = (ticket % 2) as usize;
                sequential[reader] = if stretch.next.0 > ask.from { stretch.next.0 } else { 0 };
            }
            (Ok(stretch), Asked::Search(timestamp_ms, from, below)) => {
                check_search(log, (timestamp_ms, from, below), &stretch);
            }
            (Err(ReadFault::Gone), _) => {}
            (Err(fault), _) => panic!("{fault}"),
        }
    }
}

#[test]
fn random_reads_of_random_logs_find_what_is_there() {
    let first = number("READER_SEED", 1);
    let mut total = ReaderStats::default();
    for seed in first..first + number("READER_SEEDS", 150) {
        let stats = std::panic::catch_unwind(|| random_life(seed));
        let stats = stats.unwrap_or_else(|_| panic!("seed {seed}"));
        total.cursor_hits += stats.cursor_hits;
        total.ahead_hits += stats.ahead_hits;
        total.index_loads += stats.index_loads;
        total.index_rebuilds += stats.index_rebuilds;
        total.window_hits += stats.window_hits;
    }
    // The lives went where they were meant to.
    for count in
        [total.cursor_hits, total.ahead_hits, total.index_loads, total.index_rebuilds, total.window_hits]
    {
        assert!(count > 50, "{total:?}");
    }
}
