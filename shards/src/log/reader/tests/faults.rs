//! Files that are damaged, missing, or changed under a read.

use super::*;

/// Five small batches in one segment.
fn five() -> (Files, Log) {
    let mut files = Files::new();
    let mut log = Log::new(1);
    log.begin_segment(&mut files, 0);
    for i in 0..5 {
        log.append(&mut files, 0, 1 + i, 10 + i as i64, 20);
    }
    (files, log)
}

#[test]
fn damage_at_any_byte_is_never_served_as_good() {
    let (files, log) = five();
    let name = FileName::Segment(log.name(&log.segments[0]));
    let len = files[&name].len();
    let mut told = 0;
    for at in SEGMENT_HEADER..len {
        for flip in [1, 0x80, 0xff] {
            let mut rig = Rig::new(small(), files.clone());
            rig.files.get_mut(&name).unwrap()[at] ^= flip;
            let hit = log.batches.iter().rposition(|b| b.position as usize <= at).unwrap();
            let damaged = &log.batches[hit];
            for from in 0..log.end.0 {
                match rig.read(&log, ask(from, 10_000)) {
                    Ok(stretch) => {
                        check_answer(&log, ask(from, 10_000), &stretch);
                        assert!(!stretch.batches.is_empty());
                        assert!(!stretch.batches.contains(&damaged.bytes), "byte {at}");
                    }
                    Err(ReadFault::Damaged { partition, offset, position, file }) => {
                        told += 1;
                        assert_eq!((partition, FileName::Segment(file)), (log.partition, name));
                        assert_eq!((offset, position), (damaged.base, damaged.position), "byte {at}");
                        assert!(from >= damaged.base.0);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            let search = rig.search(&log, damaged.timestamp_ms, 0, ALL);
            assert!(matches!(search, Err(ReadFault::Damaged { .. })), "byte {at}: {search:?}");
        }
    }
    assert!(told > 1000);
}

const SEGMENT_HEADER: usize = crate::log::segment::format::SEGMENT_HEADER_BYTES;

#[test]
fn what_lies_behind_damage_is_served_by_way_of_the_index() {
    let (mut rig, log) = rig_and_log(small());
    let name = log.name(&log.segments[0]);
    let entry = log.index_of(name).entries()[4];
    // The frame that the index leads to.
    rig.files.get_mut(&FileName::Segment(name)).unwrap()[entry.position as usize + 2] ^= 4;
    for _ in 0..2 {
        let fault = rig.read(&log, ask(entry.offset.0 + 1, 600)).unwrap_err();
        let expected = ReadFault::Damaged {
            partition: log.partition,
            offset: entry.offset,
            file: name,
            position: entry.position,
        };
        assert_eq!(fault, expected);
        check_answer(&log, ask(990, 600), &rig.read(&log, ask(990, 600)).unwrap());
    }
    assert_eq!(rig.reader.stats().index_rebuilds, 0, "the index was right");
    assert_eq!(rig.reader.stats().damaged_batches, 2);
}

#[test]
fn an_index_that_is_wrong_is_found_out_and_made_anew() {
    for first_wrong in [0, 3, 7] {
        for at in [1, -1, 40, 1000] {
            let (mut rig, log) = rig_and_log(small());
            let name = log.name(&log.segments[0]);
            let right = log.index_of(name);
            let mut wrong = Index::default();
            for (i, entry) in right.entries().iter().enumerate() {
                let by = if i >= first_wrong { at } else { 0 };
                let position = entry.position.checked_add_signed(by).unwrap();
                wrong.push(IndexEntry { position, ..*entry });
            }
            let mut file = Vec::new();
            wrong.put_file(&mut file, &name);
            rig.files.insert(FileName::Index(name), file);
            for from in [999, 200, 500, 700, 999] {
                check_answer(&log, ask(from, 600), &rig.read(&log, ask(from, 600)).unwrap());
            }
            check_answer(&log, ask(0, 600), &rig.read(&log, ask(0, 600)).unwrap());
            assert!(rig.reader.stats().index_rebuilds > 0);
            let made = rig.reader.known.indexes.get(name).unwrap().entries();
            assert_eq!(made, &right.entries()[..made.len()], "{first_wrong} {at}");
        }
    }
}

#[test]
fn an_index_whose_offsets_are_wrong_does_not_hide_a_batch() {
    let (mut rig, log) = rig_and_log(small());
    let name = log.name(&log.segments[0]);
    // As left by an earlier life of the segment, in which there were more records in each batch.
    let mut wrong = Index::default();
    for entry in log.index_of(name).entries() {
        wrong.push(IndexEntry { offset: Offset(entry.offset.0 / 2), ..*entry });
    }
    let mut file = Vec::new();
    wrong.put_file(&mut file, &name);
    rig.files.insert(FileName::Index(name), file);
    for from in [300, 400, 120] {
        let stretch = rig.read(&log, ask(from, 600)).unwrap();
        check_answer(&log, ask(from, 600), &stretch);
    }
}

#[test]
fn good_frames_in_the_wrong_order_are_damage() {
    let (mut files, log) = five();
    let file = log.name(&log.segments[0]);
    let bytes = files.get_mut(&FileName::Segment(file)).unwrap();
    let at = |i: usize| log.batches[i].position as usize;
    bytes[at(1)..at(3)].rotate_left(at(2) - at(1));
    let mut rig = Rig::new(small(), files);
    let stretch = rig.read(&log, ask(0, 10_000)).unwrap();
    assert_eq!(stretch.batches, [log.batches[0].bytes.clone()]);
    let fault = rig.read(&log, ask(stretch.next.0, 10_000)).unwrap_err();
    let (offset, position) = (log.batches[1].base, log.batches[1].position);
    assert_eq!(fault, ReadFault::Damaged { partition: log.partition, offset, file, position });
}

#[test]
fn a_load_of_an_index_from_before_a_cut_is_not_taken() {
    let (mut rig, mut log) = rig_and_log(small());
    let reading = rig.begin(&log, ask(900, 600));
    assert_eq!(rig.in_flight.len(), 1, "it loads the index");
    let (name, bytes) = log.cut(500);
    rig.reader.cut(name, bytes);
    for _ in 0..500 {
        log.append(&mut rig.files, 0, 3, 5000, 512);
    }
    log.put_index(&mut rig.files, name);
    let again = rig.begin(&log, ask(900, 600));
    rig.run();
    assert_eq!(rig.done[&reading], Err(ReadFault::Gone));
    check_answer(&log, ask(900, 600), rig.done[&again].as_ref().unwrap());
    assert_eq!(rig.reader.known.indexes.get(name), Some(&log.index_of(name)));
}

#[test]
fn a_file_that_ends_early_is_damage_and_a_broken_disk_is_told_as_such() {
    let (files, log) = five();
    let file = log.name(&log.segments[0]);
    let mut rig = Rig::new(small(), files);
    let cut = log.batches[3].position + 9;
    rig.files.get_mut(&FileName::Segment(file)).unwrap().truncate(cut as usize);
    let stretch = rig.read(&log, ask(0, 10_000)).unwrap();
    assert_eq!(stretch.batches.len(), 3);
    let fault = rig.read(&log, ask(stretch.next.0, 10_000)).unwrap_err();
    let (offset, position) = (log.batches[3].base, log.batches[3].position);
    assert_eq!(fault, ReadFault::Damaged { partition: log.partition, offset, file, position });
    rig.broken = Some(DiskError::Io(5));
    let fault = rig.read(&log, ask(0, 10_000)).unwrap_err();
    assert_eq!(fault, ReadFault::Failed { file, error: DiskError::Io(5) });
    rig.broken = None;
    rig.files.clear();
    assert_eq!(rig.read(&log, ask(0, 10_000)), Err(ReadFault::Gone));
}

#[test]
fn reads_under_way_on_a_file_that_goes_end_with_gone() {
    let (mut rig, log) = rig_and_log(ReaderConfig { reads_in_flight_max: 2, ..small() });
    let other = Log::simple(&mut rig.files, 2, 100, 512);
    let name = log.name(&log.segments[0]);
    let tickets: Vec<u64> = (0..5).map(|i| rig.begin(&log, ask(i * 100, 600))).collect();
    let theirs = rig.begin(&other, ask(5, 600));
    assert!(rig.order.is_empty());
    rig.reader.forget(name);
    rig.poll();
    assert_eq!(rig.order, tickets);
    assert!(tickets.iter().all(|t| rig.done[t] == Err(ReadFault::Gone)));
    // The same name with other content: nothing that was on its way is taken for it.
    let again = Log::simple(&mut rig.files, 1, 300, 700);
    let new: Vec<u64> = (0..3).map(|i| rig.begin(&again, ask(i * 100, 900))).collect();
    rig.run();
    for (i, ticket) in new.iter().enumerate() {
        check_answer(&again, ask(i as u64 * 100, 900), rig.done[ticket].as_ref().unwrap());
    }
    assert!(rig.done[&theirs].is_ok());
    rig.reader.forget_log(again.partition);
    rig.reader.forget_log(other.partition);
    assert_eq!(rig.reader.bytes_kept(), 0);
    assert_eq!(rig.reader.known.cursors.len(), 0);
}

#[test]
fn what_was_cut_and_written_anew_is_read_as_it_is_now() {
    let (mut rig, mut log) = rig_and_log(small());
    let mut from = 0;
    while from < 1000 {
        from = rig.read(&log, ask(from, 8192)).unwrap().next.0;
    }
    rig.read(&log, ask(950, 600)).unwrap();
    let reading = rig.begin(&log, ask(960, 5000));
    let (name, bytes) = log.cut(940);
    rig.reader.cut(name, bytes);
    for i in 0..60 {
        log.append(&mut rig.files, 0, 1, i, 300);
    }
    rig.poll();
    if let Some(done) = rig.done.get(&reading) {
        assert!(done.is_ok() || *done == Err(ReadFault::Gone));
    }
    for from in [930, 939, 940, 941, 960, 999] {
        check_answer(&log, ask(from, 5000), &rig.read(&log, ask(from, 5000)).unwrap());
    }
}

#[test]
fn nothing_is_missed_behind_what_a_search_may_look_at() {
    let (mut rig, log) = rig_and_log(small());
    let name = log.name(&log.segments[0]);
    let last = log.batches.last().unwrap().timestamp_ms;
    for cut in [1, 40, log.batches.len() / 2, log.batches.len() - 1] {
        // An earlier life cut the file there, by a truncation that has yet to take effect in this one.
        let Stored { base, position, .. } = log.batches[cut].clone();
        let mut files = rig.files.clone();
        files.get_mut(&FileName::Segment(name)).unwrap().truncate(position as usize);
        for leaves_more in [false, true] {
            if leaves_more {
                files.get_mut(&FileName::Segment(name)).unwrap().extend_from_slice(&[7; 300]);
            }
            for timestamp_ms in [log.batches[cut].timestamp_ms, last] {
                for read_bytes in [512, 8192] {
                    let config = ReaderConfig { read_bytes, ..small() };
                    let mut cut_short = Rig::new(config, files.clone());
                    let found = cut_short.search(&log, timestamp_ms, 0, base.0);
                    assert!(found.as_ref().is_ok_and(|s| s.batches.is_empty()), "cut at {cut}: {found:?}");
                    let mut at = 0;
                    while at < base.0 {
                        let asked = Ask {
                            from: at,
                            below: base.0,
                            bytes_max: 3000,
                            first_whole: true,
                            is_urgent: false,
                        };
                        at = cut_short.read(&log, asked).unwrap().next.0;
                    }
                    assert_eq!(at, base.0);
                }
            }
        }
    }
    // Of what it may look at, all must be there.
    let Stored { base, position, .. } = log.batches[40].clone();
    rig.files.get_mut(&FileName::Segment(name)).unwrap().truncate(position as usize);
    let missing = rig.search(&log, last, 0, base.0 + 1);
    assert!(matches!(missing, Err(ReadFault::Damaged { .. })), "{missing:?}");
}
