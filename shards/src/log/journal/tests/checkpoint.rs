//! Journals in front of segments: where recovery begins, what is released, files that are used again.

use super::super::*;
use super::rig::*;
use crate::log::chunk::ChunkHeader;
use crate::log::random::Random;

/// Chunks of two sectors, each of one batch, each flushed; a file holds seven.
pub fn fill(rig: &mut Rig, n: usize) {
    for _ in 0..n {
        rig.sync(5000);
        rig.run();
    }
}

/// A journal whose every file was another one before, right behind a checkpoint.
pub fn recycled() -> Rig {
    let mut rig = Rig::running();
    for _ in 0..10 {
        fill(&mut rig, 7);
        rig.save(rig.journal.last_lsn());
        rig.release();
        rig.run();
    }
    assert!(rig.disk.recycled > 5);
    rig
}

fn files(rig: &Rig) -> Vec<u64> {
    rig.disk.files.keys().map(|file| file.0).collect()
}

#[test]
fn notes_are_replayed_between_batches_in_the_order_of_appending() {
    let mut rig = Rig::running();
    for note in [Note::Truncated { end: Offset(5) }, Note::Started { start: Offset(3) }, Note::Dropped] {
        rig.sync(100);
        rig.note(note, Urgency::Lazy).unwrap();
    }
    let last = rig.note(Note::Dropped, Urgency::Sync).unwrap();
    assert_eq!(rig.log.last().unwrap().lsn, Lsn { chunk: last.0, entry: 6 });
    rig.run();
    assert_eq!(rig.flushed, 7);
    rig.lose_power(1);
    rig.restart();
    assert_eq!((rig.replayed.len(), rig.report.unwrap().notes), (7, 4));
    assert_eq!(rig.journal.last_lsn(), Lsn { chunk: last.0, entry: u32::MAX });
}

#[test]
fn steady_use_writes_released_files_again_and_zeroes_none() {
    let mut rig = Rig::running();
    let mut prepared_late = 0;
    for round in 0..40 {
        for _ in 0..7 {
            rig.sync(5000);
            rig.poll();
            while !rig.disk.in_flight.is_empty() {
                prepared_late += usize::from(round > 5 && rig.doing().contains("prepare"));
                rig.complete(0);
                rig.poll();
            }
        }
        if round % 3 == 2 {
            rig.save(rig.journal.last_lsn());
            rig.release();
            assert!(rig.journal.live_bytes() <= 17 * SEC);
        }
        assert!(rig.journal.live_bytes() <= 4 * 16 * SEC, "{}", rig.journal.live_bytes());
        assert!(rig.disk.files.len() <= 9, "{:?}", files(&rig));
    }
    assert_eq!(prepared_late, 0);
    assert!(rig.disk.recycled > 30);
    assert_eq!(rig.flushed, rig.log.len());
    rig.lose_power(1);
    rig.restart();
    // What the file held before lies behind the end, and may be the middle of a chunk.
    assert!(rig.report.unwrap().cut.is_none_or(|cut| !cut.damaged && cut.bytes_after == 0));
}

#[test]
fn more_spares_than_are_kept_are_removed() {
    let mut rig = Rig::new(JournalConfig { spare_files_max: 1, ..config() });
    rig.run();
    fill(&mut rig, 60);
    assert_eq!(files(&rig).len(), 10);
    rig.save(rig.journal.last_lsn());
    rig.release();
    rig.run();
    // Without a checkpoint the headers on disk still ask for them.
    assert_eq!(files(&rig).len(), 10);
    fill(&mut rig, 7);
    assert_eq!(files(&rig), [7, 8, 9, 10]);
    assert_eq!(rig.disk.recycled, 1);
    // What was removed comes back, and is a spare again.
    rig.stop();
    rig.disk.files.insert(FileNo(2), rig.disk.files[&FileNo(7)].clone());
    for is_lost in [true, false] {
        rig.is_checkpoint_lost = is_lost;
        rig.restart();
        assert_eq!(rig.report.unwrap().cut, None);
    }
    fill(&mut rig, 14);
    assert!(!files(&rig).contains(&2));
}

#[test]
fn spare_is_not_touched_before_a_header_without_it_is_durable() {
    let mut rig = Rig::new(JournalConfig { spare_files_max: 0, ..config() });
    rig.run();
    fill(&mut rig, 13);
    rig.save(rig.journal.last_lsn());
    rig.release();
    rig.run();
    assert_eq!(files(&rig), [0, 1, 2]);
    // Into file 2.
    fill(&mut rig, 1);
    rig.sync(5000);
    rig.poll();
    assert_eq!((rig.at(14).file, rig.doing().as_str()), (FileNo(2), "write+"));
    rig.complete(0);
    rig.poll();
    assert_eq!(rig.doing(), "recycle");
    // Not before the file has its new name is it written to.
    for _ in 0..7 {
        rig.sync(5000);
        rig.poll();
        while let Some(i) = rig.disk.in_flight.iter().position(|f| !matches!(f.op, DiskOp::Recycle { .. })) {
            rig.complete(i);
            rig.poll();
        }
    }
    assert_eq!((rig.flushed, rig.doing().as_str()), (21, "recycle"));
    rig.run();
    assert_eq!((rig.flushed, rig.at(21).file), (22, FileNo(3)));
}

#[test]
fn file_that_cannot_be_recycled_is_made_anew() {
    let mut rig = Rig::running();
    fill(&mut rig, 13);
    rig.save(rig.journal.last_lsn());
    rig.release();
    fill(&mut rig, 1);
    rig.sync(5000);
    rig.poll();
    rig.complete(0);
    rig.poll();
    let event = rig.disk.fail(rig.index_of("recycle"), DiskError::Io(5));
    rig.give(event);
    rig.run();
    assert_eq!(rig.doing(), "");
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.doing(), "prepare");
    rig.run();
    fill(&mut rig, 20);
}

#[test]
fn recovery_begins_with_the_file_of_the_checkpoint() {
    let mut rig = Rig::running();
    fill(&mut rig, 30);
    let resume = rig.save(rig.log[20].lsn);
    let first = rig.log[14].lsn.chunk;
    assert_eq!(resume, Resume::From { file: FileNo(2), sequence: first });
    rig.lose_power(1);
    rig.restart();
    assert_eq!((rig.replayed.len(), rig.replayed[0].lsn.chunk), (16, first));
    // Without it, with what is there: nothing was given up.
    rig.is_checkpoint_lost = true;
    rig.restart();
    assert_eq!(rig.replayed.len(), 30);
}

#[test]
fn chunk_that_a_checkpoint_begins_with_must_be_there() {
    let mut rig = Rig::running();
    fill(&mut rig, 8);
    rig.save(rig.log[7].lsn);
    let first = rig.log[7].lsn.chunk;
    rig.disk.settle();
    let disk = rig.disk.clone();
    for damage in 0..4 {
        rig.disk = disk.clone();
        match damage {
            0 => drop(rig.disk.files.remove(&FileNo(1))),
            1 => rig.disk.raw(1)[SECTOR + 20] ^= 1,
            2 => rig.disk.raw(1)[20] ^= 1,
            _ => rig.disk.raw(1).fill(0),
        }
        rig.begin_life();
        rig.run();
        match rig.fatal {
            Some(FatalReason::JournalDamaged { file: FileNo(1), sequence, .. }) if sequence == first => {}
            ref other => panic!("{damage}: {other:?}"),
        }
        // Accepted, it goes on with what was lost left out.
        rig.config.on_damage = OnDamage::Truncate;
        rig.begin_life();
        rig.run();
        assert_eq!((rig.fatal.clone(), rig.replayed.len()), (None, 0));
        assert!(rig.report.unwrap().cut.unwrap().damaged);
        rig.config.on_damage = OnDamage::Refuse;
    }
}

#[test]
fn clean_start_reads_one_place_and_writes_nothing() {
    let mut rig = recycled();
    fill(&mut rig, 2);
    rig.stop_clean();
    for _ in 0..3 {
        rig.lose_power(1);
        let before = rig.disk.clone();
        rig.restart();
        assert!(rig.read_bytes <= 4 * SEC, "{}", rig.read_bytes);
        assert_eq!(rig.replayed.len(), 0);
        assert_eq!(rig.report.unwrap().cut, None);
        assert_eq!(rig.doing(), "");
        for (no, file) in &before.files {
            assert!(rig.disk.files.get(no).is_none_or(|now| now.content() == file.content()));
        }
        rig.stop();
    }
    // And the log goes on.
    rig.restart();
    fill(&mut rig, 3);
    rig.lose_power(1);
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    // With a checkpoint of this life too.
    rig.save(rig.journal.last_lsn());
    rig.release();
    rig.restart();
    assert_eq!(rig.flushed, rig.log.len());
}

#[test]
fn life_after_a_clean_mark_is_replayed_wherever_the_mark_lies_in_its_file() {
    for n in 0..16 {
        let mut rig = recycled();
        for _ in 0..n {
            rig.sync(100);
            rig.run();
        }
        rig.stop_clean();
        rig.restart();
        assert_eq!(rig.replayed.len(), 0);
        // Of what this life writes at first, only what is behind could be there: it is not.
        for _ in 0..4 {
            rig.sync(5000);
        }
        rig.poll();
        assert_eq!(rig.doing().replace("recycle", "").trim(), "write+");
        let disk = rig.disk.clone();
        for seed in 0..8 {
            rig.disk = disk.clone();
            rig.lose_power(seed);
            let (saved, log) = (rig.log.clone(), rig.flushed);
            rig.restart();
            assert_eq!(rig.replayed.len(), 0);
            (rig.log, rig.flushed) = (saved, log);
        }
        rig.log.truncate(rig.flushed);
        rig.disk = disk;
        rig.lose_power(99);
        rig.restart();
        fill(&mut rig, 3);
        rig.sync(100);
        rig.poll();
        rig.lose_power(n);
        rig.restart();
        assert!(rig.replayed.len() >= 3, "{n}");
    }
}

#[test]
fn damaged_first_chunk_of_the_life_after_a_clean_mark_is_damage() {
    let mut rig = recycled();
    rig.sync(100);
    rig.stop_clean();
    rig.restart();
    fill(&mut rig, 3);
    let Some(Saved { resume: Resume::Clean { end, sequence }, .. }) = rig.saved else {
        panic!("{:?}", rig.saved)
    };
    rig.disk.raw(end.file.0)[end.position as usize + 30] ^= 1;
    rig.begin_life();
    rig.run();
    let LogPosition { file, position } = end;
    assert_eq!(rig.fatal, Some(FatalReason::JournalDamaged { file, position, sequence }));
}

#[test]
fn leftovers_of_recycled_files_are_neither_log_nor_evidence() {
    let mut rig = recycled();
    fill(&mut rig, 2);
    let last = rig.at(rig.log.len() - 1);
    let end = last.position + 2 * SEC;
    // Behind the end, and in the next file, lie chunks that say of themselves all that would make them follow, or
    // prove that something was lost; but they were written to another file.
    let next = rig.log.last().unwrap().lsn.chunk + 1;
    for (file, position) in [(last.file.0, end), (last.file.0, end + SEC), (last.file.0 + 1, SEC)] {
        let leftover = ChunkHeader {
            payload_len: 0,
            entries: 0,
            last_crc: ChunkHeader::seed(1000, next),
            position,
            journal: rig.journal.journal_id(),
            incarnation: 1000,
            sequence: next,
            flushed: next + 1000,
            file: FileNo(0),
        };
        let raw = rig.disk.raw(file);
        leftover.write(raw[position as usize..].first_chunk_mut().unwrap());
    }
    let n = rig.log.len();
    for is_lost in [false, true] {
        rig.is_checkpoint_lost = is_lost;
        rig.restart();
        assert_eq!((rig.log.len(), rig.report.unwrap().cut), (n, None));
        assert_eq!(rig.journal.incarnation(), 2);
    }
}

/// What a node writes that starts with another number of shards.
#[test]
fn checkpoint_made_by_hand_begins_a_new_journal_and_stays_good() {
    let mut rig = Rig::new(config());
    let end = LogPosition { file: FileNo(0), position: 0 };
    rig.saved = Some(Saved { resume: Resume::Clean { end, sequence: 1 }, journal: 0xabcd, incarnation: 0 });
    rig.restart();
    assert_eq!((rig.journal.journal_id(), rig.journal.incarnation()), (0xabcd, 1));
    rig.sync(100);
    // Nothing is written before this life's first chunk is durable.
    for _ in 0..3 {
        rig.sync(5000);
    }
    rig.run();
    assert_eq!(rig.chunk_at[&1], LogPosition { file: FileNo(0), position: SEC });
    for life in 2..5 {
        rig.lose_power(life);
        rig.restart();
        assert_eq!((rig.replayed.len(), rig.flushed), (rig.log.len(), 2 * life as usize));
        assert_eq!((rig.journal.journal_id(), rig.journal.incarnation()), (0xabcd, life));
        fill(&mut rig, 2);
    }
}

#[test]
fn paused_replay_asks_for_nothing_until_it_goes_on() {
    let mut rig = Rig::running();
    fill(&mut rig, 20);
    rig.begin_life();
    rig.poll();
    rig.journal.pause_replay(true);
    while !rig.disk.in_flight.is_empty() {
        rig.complete(0);
        rig.poll();
    }
    assert!(rig.report.is_none());
    rig.journal.pause_replay(false);
    rig.run();
    rig.settle_life();
    assert_eq!(rig.flushed, 20);
}

#[test]
fn journal_without_a_durable_chunk_resumes_where_its_life_began() {
    let mut rig = Rig::running();
    let end = LogPosition { file: FileNo(0), position: 0 };
    assert_eq!(rig.save(Lsn::ZERO), Resume::Clean { end, sequence: 1 });
    rig.release();
    rig.sync(100);
    rig.sync(5000);
    rig.poll();
    assert_eq!(rig.save(rig.journal.last_lsn()), Resume::Clean { end, sequence: 1 });
    rig.disk.kill(&mut Random(3));
    rig.restart();
    fill(&mut rig, 2);
    rig.lose_power(1);
    rig.restart();
    assert_eq!(rig.journal.end(), None);
    rig.stop_clean();
}
