mod faults;
mod random;
mod rig;

use super::*;
use rig::*;

const ALL: u64 = u64::MAX;

fn ask(from: u64, bytes_max: usize) -> Ask {
    Ask { from, below: ALL, bytes_max, first_whole: true, is_urgent: false }
}

/// A log of 1000 batches of about 600 bytes: more than an index entry spans.
fn rig_and_log(config: ReaderConfig) -> (Rig, Log) {
    let mut files = Files::new();
    let log = Log::simple(&mut files, 1, 1000, 512);
    (Rig::new(config, files), log)
}

#[test]
fn an_answer_shares_the_memory_of_what_the_disk_gave() {
    let (mut rig, log) = rig_and_log(small());
    let stretch = rig.read(&log, ask(500, 3000)).unwrap();
    assert!(stretch.batches.len() > 2);
    for batch in &stretch.batches {
        let range = batch.as_ptr_range();
        assert!(rig.given.iter().any(|given| {
            let given = given.as_ptr_range();
            given.start <= range.start && range.end <= given.end
        }));
    }
}

#[test]
fn a_read_begins_near_its_offset_and_loads_the_index_once() {
    let (mut rig, log) = rig_and_log(small());
    for from in [700, 300, 999] {
        check_answer(&log, ask(from, 3000), &rig.read(&log, ask(from, 3000)).unwrap());
    }
    let stats = rig.reader.stats();
    assert_eq!(stats.index_loads, 1);
    assert_eq!(stats.index_rebuilds, 0);
    // Three times at most an interval and a window or two.
    assert!(stats.disk_bytes < 3 * (INTERVAL_BYTES + 3 * 8192), "{stats:?}");
}

#[test]
fn who_goes_on_where_it_ended_finds_the_next_window_on_its_way() {
    let (mut rig, log) = rig_and_log(small());
    let mut from = 0;
    let mut reads = 0;
    while from < 1000 {
        let asked = ask(from, 8192);
        let is_warm = reads > 2 && from < 850;
        let (ops, ticket) = (rig.ops, rig.begin(&log, asked));
        if is_warm {
            // It was all there: one operation at most was asked for, and that for the read after.
            let done = rig.done.get(&ticket).unwrap_or_else(|| panic!("read {reads} from {from} waited"));
            assert!(!done.as_ref().unwrap().batches.is_empty());
            assert!(rig.ops <= ops + 1);
        }
        rig.run();
        let stretch = rig.done.remove(&ticket).unwrap().unwrap();
        check_answer(&log, asked, &stretch);
        from = stretch.next.0;
        reads += 1;
    }
    let stats = rig.reader.stats();
    assert_eq!(stats.index_loads, 0, "it began at the beginning");
    assert_eq!(stats.cursor_hits, reads - 1);
    assert!(stats.ahead_hits >= stats.ahead_reads - 1 && stats.ahead_reads > 60, "{stats:?}");
    // Only the frames at the ends of windows were read twice.
    assert!(stats.disk_bytes < log.segments[0].bytes * 115 / 100 + 2 * INTERVAL_BYTES, "{stats:?}");
}

#[test]
fn a_second_reader_waits_for_the_window_that_is_on_its_way() {
    let (mut rig, log) = rig_and_log(small());
    let first = rig.begin(&log, ask(0, 2000));
    let second = rig.begin(&log, ask(0, 1000));
    let third = rig.begin(&log, ask(2, 1000));
    assert_eq!(rig.in_flight.len(), 2, "the third needs the index");
    rig.run();
    for (ticket, asked) in [(first, ask(0, 2000)), (second, ask(0, 1000)), (third, ask(2, 1000))] {
        check_answer(&log, asked, &rig.done.remove(&ticket).unwrap().unwrap());
    }
    assert_eq!(rig.reader.stats().disk_reads, 2);
}

#[test]
fn a_reader_within_a_window_on_its_way_waits_for_it_too() {
    let (mut rig, log) = rig_and_log(ReaderConfig { ahead_bytes_max: 0, ..small() });
    let next = rig.read(&log, ask(0, 2000)).unwrap().next.0;
    let first = rig.begin(&log, ask(0, 8000));
    let second = rig.begin(&log, ask(next, 2000));
    assert_eq!(rig.in_flight.len(), 1);
    rig.run();
    check_answer(&log, ask(0, 8000), &rig.done.remove(&first).unwrap().unwrap());
    check_answer(&log, ask(next, 2000), &rig.done.remove(&second).unwrap().unwrap());
    assert_eq!(rig.reader.stats().disk_reads, 2);
}

#[test]
fn one_log_keeps_no_more_than_its_share_and_leaves_the_windows_of_others() {
    let config = ReaderConfig { ahead_bytes_max: 512 * 1024, ..small() };
    let mut files = Files::new();
    let near = Log::simple(&mut files, 1, 40, 512);
    let far = Log::simple(&mut files, 2, 2000, 512);
    let mut rig = Rig::new(config, files);
    rig.read(&near, ask(0, 2000)).unwrap();
    let kept = rig.reader.known.windows.bytes();
    assert!(kept > 0);
    let mut from = 0;
    while from < 2000 {
        from = rig.read(&far, ask(from, 4000)).unwrap().next.0;
        assert!(rig.reader.known.windows.bytes() <= kept + 64 * 1024);
    }
    let reads = rig.reader.stats().disk_reads;
    rig.read(&near, ask(0, 2000)).unwrap();
    assert_eq!(rig.reader.stats().disk_reads, reads, "what the near reader had is still there");
}

#[test]
fn more_sequential_readers_than_windows_do_not_read_twice() {
    // Room for eight windows, and sixteen readers.
    let config = ReaderConfig { ahead_bytes_max: 64 * 1024, ..small() };
    let mut files = Files::new();
    let logs: Vec<Log> = (0..16).map(|i| Log::simple(&mut files, i, 1000, 512)).collect();
    let total: u64 = logs.iter().map(|log| log.segments[0].bytes).sum();
    let mut rig = Rig::new(config, files);
    let mut from = [0; 16];
    while from.iter().any(|&f| f < 200) {
        for (log, from) in logs.iter().zip(&mut from) {
            *from = rig.read(log, ask(*from, 8192)).unwrap().next.0;
        }
    }
    let stats = rig.reader.stats();
    assert!(stats.disk_bytes < total * 13 / 10, "{} of {total}: {stats:?}", stats.disk_bytes);
}

#[test]
fn a_log_with_many_reads_does_not_starve_another() {
    let config = ReaderConfig { reads_in_flight_max: 1, ahead_bytes_max: 0, ..small() };
    let mut files = Files::new();
    let busy = Log::simple(&mut files, 1, 100, 512);
    let other = Log::simple(&mut files, 2, 100, 512);
    let mut rig = Rig::new(config, files);
    let tickets: Vec<u64> = (0..20).map(|i| rig.begin(&busy, ask(i * 2, 600))).collect();
    let late = rig.begin(&other, ask(50, 600));
    rig.run();
    let place = rig.order.iter().position(|&t| t == late).unwrap();
    assert!(place <= 2, "{:?}", rig.order);
    let of_busy: Vec<u64> = rig.order.iter().copied().filter(|t| *t != late).collect();
    assert_eq!(of_busy, tickets, "the reads of one log come as they were asked");
}

/// Logs of 1000 batches of about 600 bytes, and a reader of theirs beside writes.
fn rig_beside_writes(logs: u32) -> (Rig, Vec<Log>) {
    let mut files = Files::new();
    let logs = (0..logs).map(|i| Log::simple(&mut files, i, 1000, 512)).collect();
    let mut rig = Rig::new(ReaderConfig { ahead_bytes_max: 256 * 1024, ..small() }, files);
    rig.reader.on_write(Instant::ZERO);
    (rig, logs)
}

/// The longest read that the disk has.
fn longest(rig: &Rig) -> u32 {
    let len = |op: &DiskOp| if let DiskOp::Read { len, .. } = op { *len } else { panic!("it reads only") };
    rig.in_flight.iter().map(len).max().unwrap_or(0)
}

/// Lets the time pass that the reader asks for.
fn pause(rig: &mut Rig) {
    let due = rig.reader.poll_timeout(rig.now).expect("reads wait for the time");
    assert!(due > rig.now);
    rig.now = due;
    rig.poll();
}

#[test]
fn beside_writes_windows_come_one_at_a_time_and_in_turn() {
    let (mut rig, logs) = rig_beside_writes(4);
    let mut from = [0; 4];
    let mut tickets: Vec<u64> = logs.iter().map(|log| rig.begin(log, ask(0, 8192))).collect();
    let mut served = [0_u32; 4];
    let mut windows = 0;
    while served.iter().sum::<u32>() < 40 {
        if rig.in_flight.is_empty() {
            pause(&mut rig);
        }
        assert_eq!(rig.in_flight.len(), 1, "one at a time");
        assert!(longest(&rig) <= small().read_bytes_beside_writes, "no write waits behind more");
        windows += 1;
        rig.now = rig.now + std::time::Duration::from_micros(100);
        rig.complete(0);
        for (i, log) in logs.iter().enumerate() {
            if let Some(done) = rig.done.remove(&tickets[i]) {
                from[i] = done.unwrap().next.0;
                served[i] += 1;
                tickets[i] = rig.begin(log, ask(from[i], 8192));
            }
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(most - least <= 2, "{served:?}");
    }
    assert!(windows <= 48, "{windows} windows for 40 answers");
    // 100 us of each 300 us are for reads.
    assert!(rig.now < Instant::from_nanos(windows * 300_000 + 100_000), "{:?}", rig.now);
}

#[test]
fn what_is_small_does_not_wait_for_windows() {
    let (mut rig, logs) = rig_beside_writes(3);
    rig.begin(&logs[0], ask(0, 8192));
    rig.begin(&logs[1], ask(0, 8192));
    assert_eq!(rig.in_flight.len(), 1, "a window is under way, another waits");
    rig.begin(&logs[2], ask(900, 600));
    let DiskOp::Read { file, .. } = rig.in_flight[1] else { panic!("it reads only") };
    assert!(matches!(file, FileName::Index(_)), "{file}");
}

#[test]
fn what_is_urgent_does_not_give_way_to_writes() {
    let (mut rig, logs) = rig_beside_writes(3);
    let urgent = |from| Ask { is_urgent: true, ..ask(from, 8192) };
    rig.begin(&logs[0], ask(0, 8192));
    let waits = rig.begin(&logs[1], ask(0, 8192));
    assert_eq!(rig.in_flight.len(), 1);
    let hurries = rig.begin(&logs[1], urgent(0));
    assert_eq!(rig.in_flight.len(), 2, "the window that another waits for");
    rig.complete(1);
    let next = rig.done.remove(&hurries).expect("it is here").unwrap().next.0;
    assert!(rig.done.contains_key(&waits), "one read for both");
    let mut from = next;
    for _ in 0..5 {
        let ticket = rig.begin(&logs[1], urgent(from));
        while !rig.done.contains_key(&ticket) {
            assert_eq!(rig.in_flight.len(), 2, "at once");
            rig.complete(1);
        }
        from = rig.done.remove(&ticket).unwrap().unwrap().next.0;
    }
    assert_eq!(rig.in_flight.len(), 2, "also what is fetched ahead");
    assert_eq!(longest(&rig), small().read_bytes, "in whole windows");
    rig.begin(&logs[2], ask(0, 8192));
    assert_eq!(rig.in_flight.len(), 2, "others give way as ever");
    rig.complete(0);
    assert_eq!(rig.in_flight.len(), 2, "to each other, and not to what is urgent");
    assert_eq!(rig.reader.stats().urgent_reads, 6);
}

#[test]
fn without_writes_windows_come_as_many_at_a_time_as_there_may_be() {
    let (mut rig, logs) = rig_beside_writes(4);
    for log in &logs {
        rig.begin(log, ask(0, 8192));
    }
    assert_eq!(rig.in_flight.len(), 1);
    assert_eq!(rig.reader.poll_timeout(rig.now), None, "the read ends first");
    rig.reader.on_written(rig.now);
    pause(&mut rig);
    assert_eq!(rig.in_flight.len(), 4);
    rig.run();
    assert_eq!(rig.done.len(), 4);
    let (mut rig, log) = rig_and_log(small());
    rig.begin(&log, ask(0, 8192));
    assert_eq!(longest(&rig), small().read_bytes);
}

#[test]
fn reads_beyond_what_may_wait_are_refused() {
    let config = ReaderConfig { reads_in_flight_max: 2, waiting_max: 3, ahead_bytes_max: 0, ..small() };
    let (mut rig, log) = rig_and_log(config);
    let tickets: Vec<u64> = (0..8).map(|i| rig.begin(&log, ask(i * 100, 600))).collect();
    let refused: Vec<u64> = rig.order.clone();
    assert_eq!(refused, tickets[5..]);
    assert!(refused.iter().all(|t| rig.done[t] == Err(ReadFault::Overloaded)));
    rig.run();
    assert!(tickets[..5].iter().all(|t| rig.done[t].is_ok()));
}

#[test]
fn a_missing_index_is_made_by_the_reads_that_need_it() {
    let (mut rig, log) = rig_and_log(small());
    let name = log.name(&log.segments[0]);
    rig.files.remove(&FileName::Index(name));
    check_answer(&log, ask(900, 600), &rig.read(&log, ask(900, 600)).unwrap());
    assert_eq!(rig.reader.stats().index_rebuilds, 1);
    let made: Vec<_> = rig.reader.known.indexes.get(name).unwrap().entries().to_vec();
    let whole = log.index_of(name);
    assert!(made.len() >= 8);
    assert_eq!(made, whole.entries()[..made.len()]);
    let bytes = rig.reader.stats().disk_bytes;
    check_answer(&log, ask(890, 600), &rig.read(&log, ask(890, 600)).unwrap());
    assert!(rig.reader.stats().disk_bytes - bytes < INTERVAL_BYTES + 3 * 8192);
}

#[test]
fn an_index_in_memory_grows_with_what_the_mover_tells() {
    let (mut rig, mut log) = rig_and_log(small());
    rig.read(&log, ask(900, 600)).unwrap();
    let name = log.name(&log.segments[0]);
    let (begun, entries) = (log.segments[0].bytes, log.index_of(name).entries().len());
    // The reader has gone over everything up to here, but for the last frames.
    check_answer(&log, ask(999, 600), &rig.read(&log, ask(999, 600)).unwrap());
    for i in 0..1000 {
        log.append(&mut rig.files, 0, 1, 1000 + i, 512);
    }
    let index = log.index_of(name);
    rig.reader.note_moved(name, begun..log.segments[0].bytes, 1999, &index.entries()[entries..]);
    assert_eq!(rig.reader.known.indexes.get(name), Some(&index));
    let bytes = rig.reader.stats().disk_bytes;
    check_answer(&log, ask(1900, 600), &rig.read(&log, ask(1900, 600)).unwrap());
    let stats = rig.reader.stats();
    assert!(stats.disk_bytes - bytes < INTERVAL_BYTES + 3 * 8192);
    assert_eq!(stats.index_loads, 1);
    // What lies behind a gap is not taken: a search must not pass over what the gap hides.
    let end = log.segments[0].bytes;
    let far = IndexEntry { offset: Offset(9000), position: end + 500_000, timestamp_before_ms: 5000 };
    rig.reader.note_moved(name, end + 400_000..end + 600_000, 6000, &[far]);
    assert_eq!(rig.reader.known.indexes.get(name), Some(&index));
}

#[test]
fn indexes_in_memory_keep_to_their_budget() {
    let config = ReaderConfig { index_bytes_max: 4096, ..small() };
    let mut files = Files::new();
    let logs: Vec<Log> = (0..20).map(|i| Log::simple(&mut files, i, 400, 512)).collect();
    let mut rig = Rig::new(config, files);
    for _ in 0..2 {
        for log in &logs {
            check_answer(log, ask(300, 600), &rig.read(log, ask(300, 600)).unwrap());
            assert!(rig.reader.known.indexes.bytes() <= 4096);
            assert!(rig.reader.known.indexes.len() < 20);
        }
    }
    assert_eq!(rig.reader.stats().index_loads, 40);
}

#[test]
fn a_batch_larger_than_a_window_is_read_as_a_whole() {
    let mut files = Files::new();
    let mut log = Log::new(1);
    log.begin_segment(&mut files, 0);
    for len in [100, 50_000, 100, 300_000, 100] {
        log.append(&mut files, 0, 2, 7, len);
    }
    let mut rig = Rig::new(small(), files);
    let mut from = 0;
    while from < 10 {
        let stretch = rig.read(&log, ask(from, 1000)).unwrap();
        check_answer(&log, ask(from, 1000), &stretch);
        assert!(!stretch.batches.is_empty());
        from = stretch.next.0;
    }
    let not_whole = Ask { first_whole: false, ..ask(2, 1000) };
    assert_eq!(rig.read(&log, not_whole), Ok(Stretch { batches: Vec::new(), next: Offset(2) }));
}

#[test]
fn segments_without_records_are_passed_over() {
    let mut files = Files::new();
    let mut log = Log::new(1);
    log.begin_segment(&mut files, 0);
    log.append(&mut files, 0, 1, 7, 100);
    for _ in 0..10 {
        log.begin_segment(&mut files, 1);
        log.end = log.end.plus(5);
        log.segments.last_mut().unwrap().end = log.end;
    }
    log.begin_segment(&mut files, 0);
    log.append(&mut files, 0, 1, 8, 100);
    let mut rig = Rig::new(small(), files);
    let mut from = 1;
    let mut reads = 0;
    let found = loop {
        let stretch = rig.read(&log, ask(from, 1000)).unwrap();
        check_answer(&log, ask(from, 1000), &stretch);
        reads += 1;
        if !stretch.batches.is_empty() {
            break stretch;
        }
        assert!(stretch.next.0 > from && reads < 5);
        from = stretch.next.0;
    };
    assert_eq!(found.next, log.end);
    let nothing = |below| Ok(Stretch { batches: Vec::new(), next: Offset(below) });
    assert_eq!(rig.search(&log, 9, 0, ALL), nothing(ALL));
    assert_eq!(
        rig.read(&log, ask(log.end.0, 1000)),
        nothing(ALL),
        "what is behind the segments is elsewhere"
    );
    assert_eq!(rig.read(&log, Ask { below: 20, ..ask(5, 1000) }), nothing(20));
}

#[test]
fn a_gap_up_to_where_memory_begins_is_passed() {
    let mut files = Files::new();
    let mut log = Log::new(1);
    log.begin_segment(&mut files, 1);
    log.append(&mut files, 0, 2, 7, 100);
    log.append(&mut files, 8, 2, 8, 100);
    let mut rig = Rig::new(small(), files);
    // The segment is read below 7 only, though its next batch is behind that.
    let nothing = |next| Ok(Stretch { batches: Vec::new(), next: Offset(next) });
    assert_eq!(rig.read(&log, Ask { below: 7, ..ask(2, 1000) }), nothing(7));
    assert_eq!(rig.read(&log, Ask { below: 10, ..ask(2, 1000) }), nothing(10));
    // Here a batch lies across: nothing is known to be missing.
    assert_eq!(rig.read(&log, Ask { below: 11, ..ask(2, 1000) }), nothing(2));
}
