//! Recovery: what is replayed, what is cut off, what is refused.

use bytes::BytesMut;

use super::super::*;
use super::checkpoint::{fill, recycled};
use super::model::op_no;
use super::rig::*;
use crate::log::random::Random;

#[test]
fn recovery_that_cannot_list_or_read_is_fatal() {
    for reads in 0..3 {
        let mut rig = Rig::running();
        rig.sync(500);
        rig.stop();
        rig.begin_life();
        rig.poll();
        for _ in 0..reads {
            rig.complete(0);
            rig.poll();
        }
        let event = rig.disk.fail(0, DiskError::Io(5));
        rig.give(event);
        assert_eq!(rig.fatal, Some(FatalReason::RecoveryFailed { error: DiskError::Io(5) }));
    }
}

#[test]
fn file_of_a_newer_format_is_refused_not_cut() {
    let mut rig = Rig::running();
    rig.sync(500);
    rig.stop();
    let raw = rig.disk.raw(0);
    raw[8..12].copy_from_slice(&9_u32.to_be_bytes());
    raw[4..8].fill(0);
    let crc = crc_fast::crc32_iscsi(&raw[..64]);
    raw[4..8].copy_from_slice(&crc.to_be_bytes());
    rig.begin_life();
    rig.run();
    assert_eq!(rig.fatal, Some(FatalReason::JournalFormat { file: FileNo(0), version: 9 }));
}

#[test]
fn recovery_reads_little_at_a_time_and_waits_for_its_events_to_be_taken() {
    let mut rig = Rig::new(big());
    rig.run();
    for _ in 0..200 {
        rig.sync(16_000);
        rig.run();
    }
    rig.stop();
    rig.begin_life();
    let mut replayed = 0;
    loop {
        let Some(op) = rig.journal.poll_op(rig.now) else { break };
        if let DiskOp::Read { len, .. } = op {
            assert!(len <= 1 << 20);
        }
        rig.disk.submit(op);
        let event = rig.disk.complete(0);
        rig.journal.handle(rig.now, event);
        if rig.journal.events.iter().any(|e| matches!(e, JournalEvent::Replayed { .. })) {
            assert!(rig.journal.poll_op(rig.now).is_none());
        }
        let mut events = 0;
        let mut recovered = false;
        while let Some(event) = rig.journal.poll_event() {
            events += 1;
            replayed += u64::from(matches!(event, JournalEvent::Replayed { .. }));
            recovered |= matches!(event, JournalEvent::Recovered(_));
        }
        assert!(events <= 70, "{events}");
        if recovered {
            break;
        }
    }
    assert_eq!(replayed, 200);
}

/// A journal of `n` chunks with one batch each, all of them durable, and where the chunks begin.
fn chunks(n: usize, len: usize) -> (Rig, Vec<LogPosition>) {
    let mut rig = Rig::running();
    for _ in 0..n {
        rig.sync(len);
        rig.run();
    }
    let at = (0..n).map(|i| rig.at(i)).collect();
    (rig, at)
}

#[test]
fn torn_chunk_is_cut_as_a_whole_and_reported() {
    let (mut rig, _) = chunks(3, 1000);
    for _ in 0..3 {
        rig.sync(2000);
    }
    rig.poll();
    assert_eq!(rig.doing(), "write+");
    // The write comes through but for its last sector.
    rig.complete(0);
    let torn = LogPosition { position: 4 * SEC, ..rig.at(3) };
    rig.disk.raw(0)[5 * SECTOR..6 * SECTOR].fill(0);
    rig.flushed = 3;
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    let cut = rig.report.unwrap().cut.unwrap();
    assert_eq!((cut.file, cut.position), (torn.file, torn.position));
    assert_eq!((cut.reason, cut.bytes_after, cut.damaged), (CutReason::Entry, SEC, false));
    // The log goes on there.
    rig.sync(100);
    rig.run();
    rig.lose_power(0);
    rig.restart();
    assert_eq!((rig.flushed, rig.report.unwrap().cut), (4, None));
}

/// Three durable chunks of one sector; then, in the same life, two more in flight, of which the disk holds only
/// the second.
fn gap() -> Rig {
    let mut rig = Rig::new(JournalConfig { chunk_bytes_max: SECTOR, ..config() });
    rig.run();
    for _ in 0..3 {
        rig.sync(3000);
        rig.run();
    }
    rig.sync(3000);
    rig.sync(3000);
    rig.poll();
    assert_eq!(rig.doing(), "write write");
    let later = rig.disk.in_flight.iter().map(|f| op_no(&f.op)).max().unwrap();
    let index = rig.disk.in_flight.iter().position(|f| op_no(&f.op) == later).unwrap();
    rig.complete(index);
    rig.lose_in_flight();
    rig.disk.settle();
    rig
}

#[test]
fn chunk_behind_a_gap_never_comes_back() {
    let mut rig = gap();
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    assert_eq!(rig.report.unwrap().cut.unwrap().reason, CutReason::Missing);
    // The gap is filled by this life's first chunk, of exactly the lost one's size and sequence, and nothing else.
    rig.sync(3000);
    rig.poll();
    rig.complete_kind("write+");
    rig.lose_in_flight();
    rig.disk.settle();
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    assert_eq!(rig.report.unwrap().cut.unwrap().reason, CutReason::EarlierLife);
    rig.sync(3000);
    rig.run();
    rig.lose_power(1);
    rig.restart();
    assert_eq!((rig.replayed.len(), rig.report.unwrap().cut), (4, None));
}

#[test]
fn chunk_behind_a_gap_never_comes_back_after_two_crashes_in_a_row() {
    let mut rig = gap();
    // Two lives that end before their first chunk is durable, the second in the middle of its writing.
    for life in 0..2 {
        rig.begin_life();
        rig.poll();
        while rig.report.is_none() {
            rig.complete(0);
            rig.poll();
        }
        rig.settle_life();
        assert_eq!(rig.replayed.len(), 3);
        // What is appended waits for it, also where a chunk of its size would be written at once.
        for _ in 0..3 {
            rig.sync(3000);
        }
        rig.poll();
        assert_eq!(rig.doing(), "write+");
        if life == 0 {
            rig.lose_in_flight();
        }
        rig.lose_power(2);
    }
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    rig.sync(3000);
    rig.run();
    rig.lose_power(3);
    rig.restart();
    assert_eq!(rig.replayed.len(), 4);
}

#[test]
fn entries_of_a_lost_chunk_never_come_back_under_the_header_of_a_later_one() {
    let mut rig = Rig::running();
    rig.sync(100);
    rig.run();
    // Life 1: the chunk's second sector reaches the disk, its header does not.
    rig.sync(6000);
    rig.poll();
    rig.complete(0);
    let start = 2 * SECTOR;
    rig.disk.raw(0)[start..start + SECTOR].fill(0);
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
    // Life 2, which saw no newer incarnation than life 1 did: the header does, the second sector does not.
    let old = rig.disk.raw(0)[start + SECTOR..start + 2 * SECTOR].to_vec();
    rig.sync(6000);
    rig.poll();
    rig.complete(0);
    rig.disk.raw(0)[start + SECTOR..start + 2 * SECTOR].copy_from_slice(&old);
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
}

#[test]
fn torn_chunk_is_not_made_whole_by_equal_bytes_of_a_later_one() {
    let mut rig = Rig::running();
    rig.alike = true;
    rig.sync(100);
    rig.run();
    // Life 1: of the chunk the first sector reaches the disk, the second does not.
    rig.sync(6000);
    rig.poll();
    rig.complete(0);
    rig.disk.raw(0)[3 * SECTOR..].fill(0);
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
    // Life 2 writes another batch, whose bytes are the same from the second sector on, and only that arrives.
    rig.sync(6000);
    rig.poll();
    while !rig.disk.in_flight.is_empty() {
        let before = rig.disk.raw(0).clone();
        let op = rig.disk.in_flight[0].op.clone();
        rig.complete(0);
        if let DiskOp::Write { position, parts, .. } = op
            && parts.iter().map(Bytes::len).sum::<usize>() > SECTOR
        {
            let first = position as usize..position as usize + SECTOR;
            rig.disk.raw(0)[first.clone()].copy_from_slice(&before[first]);
            break;
        }
        rig.poll();
    }
    rig.lose_in_flight();
    rig.flushed = 1;
    rig.restart();
    assert_eq!(rig.replayed.len(), 1);
}

#[test]
fn file_behind_a_cut_is_used_again_and_its_chunks_never_come_back() {
    let mut rig = Rig::new(JournalConfig { chunk_bytes_max: SECTOR, ..config() });
    rig.run();
    // File 0 has room for 15 chunks of a sector.
    for _ in 0..14 {
        rig.sync(3000);
        rig.run();
    }
    for _ in 0..4 {
        rig.sync(3000);
    }
    rig.poll();
    assert_eq!(rig.at(15).file, FileNo(1));
    rig.complete(0);
    rig.run();
    // The 15th chunk is lost, those in file 1 are not; no one had been told.
    rig.disk.raw(0)[15 * SECTOR..].fill(0);
    rig.flushed = 14;
    rig.restart();
    assert_eq!(rig.replayed.len(), 14);
    let cut = rig.report.unwrap().cut.unwrap();
    assert_eq!((cut.file, cut.position, cut.reason), (FileNo(0), 15 * SEC, CutReason::Sequence));
    assert!(!cut.damaged);
    // Into file 1, over what lies there.
    rig.sync(3000);
    rig.run();
    rig.lose_power(5);
    rig.restart();
    assert_eq!(rig.replayed.len(), 15);
    rig.sync(3000);
    rig.run();
    rig.lose_power(6);
    rig.restart();
    assert_eq!(rig.replayed.len(), 16);
    assert_eq!((rig.at(14).file, rig.at(15).file), (FileNo(1), FileNo(1)));
}

#[test]
fn header_of_a_file_without_chunks_is_written_again() {
    let mut rig = Rig::running();
    rig.sync(3000);
    rig.poll();
    rig.complete(0);
    // Only the file's header is there, and it was never synced.
    rig.disk.raw(0)[SECTOR..].fill(0);
    rig.flushed = 0;
    rig.restart();
    assert_eq!(rig.replayed.len(), 0);
    rig.sync(3000);
    rig.poll();
    let DiskOp::Write { position, .. } = rig.disk.in_flight[0].op else { panic!("{}", rig.doing()) };
    assert_eq!(position, 0);
}

#[test]
fn chunks_that_were_never_synced_are_synced_before_they_count() {
    let mut rig = Rig::new(big());
    rig.run();
    for _ in 0..20 {
        rig.lazy(16_000);
    }
    rig.poll();
    rig.complete_kind("write");
    // The process is killed; the machine runs on until the next life has recovered, and then loses power.
    rig.disk.kill(&mut Random(1));
    rig.restart();
    assert_eq!(rig.flushed, 20);
    for seed in 0..20 {
        let disk = rig.disk.clone();
        rig.lose_power(seed);
        rig.restart();
        assert_eq!(rig.flushed, 20);
        rig.disk = disk;
    }
}

#[test]
fn damage_to_flushed_chunks_is_refused_and_named() {
    let (mut rig, at) = chunks(5, 1000);
    rig.disk.raw(0)[at[2].position as usize + 200] ^= 1;
    rig.begin_life();
    rig.run();
    let LogPosition { file, position } = at[2];
    assert_eq!(rig.fatal, Some(FatalReason::JournalDamaged { file, position, sequence: 3 }));
    // No operation follows, so that nothing is overwritten.
    assert_eq!(rig.doing(), "");
}

#[test]
fn damage_is_cut_off_when_so_configured_and_stays_so() {
    let (mut rig, at) = chunks(8, 1000);
    rig.disk.raw(0)[at[2].position as usize + 200] ^= 1;
    rig.config.on_damage = OnDamage::Truncate;
    rig.flushed = 2;
    rig.restart();
    assert_eq!(rig.replayed.len(), 2);
    assert!(rig.report.unwrap().cut.unwrap().damaged);
    rig.sync(1000);
    rig.run();
    // What the lost life promised binds no later one.
    rig.config.on_damage = OnDamage::Refuse;
    rig.lose_power(1);
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    assert!(!rig.report.unwrap().cut.unwrap().damaged);
}

#[test]
fn missing_file_is_damage() {
    for missing in [0, 1] {
        let (mut rig, at) = chunks(40, 3000);
        assert!(at[39].file.0 > 1);
        rig.disk.files.remove(&FileNo(missing));
        rig.begin_life();
        rig.run();
        assert!(matches!(rig.fatal, Some(FatalReason::JournalDamaged { .. })), "{:?}", rig.fatal);
    }
}

#[test]
fn damaged_file_header_is_damage() {
    let (mut rig, _) = chunks(40, 3000);
    for file in [0, 1] {
        rig.disk.raw(file)[30] ^= 1;
        rig.begin_life();
        rig.run();
        assert!(
            matches!(rig.fatal, Some(FatalReason::JournalDamaged { position, .. }) if position == 0 || file == 1)
        );
        rig.disk.raw(file)[30] ^= 1;
    }
    rig.restart();
}

#[test]
fn record_bytes_that_imitate_a_chunk_prove_nothing() {
    let (mut rig, _) = chunks(3, 1000);
    // A client that knows the format, but not the journal's id, sends a chunk header that will lie on a sector.
    let fake = crate::log::chunk::ChunkHeader {
        payload_len: 0,
        entries: 0,
        last_crc: 0,
        position: 5 * SEC,
        journal: 0,
        incarnation: u64::MAX - 1,
        sequence: u64::MAX - 1,
        flushed: u64::MAX - 1,
        file: FileNo(0),
    };
    let mut header = [0; CHUNK_HEADER_BYTES];
    fake.write(&mut header);
    let mut batch = BytesMut::from(&rig.batch(6000)[..]);
    let in_batch = SECTOR - CHUNK_HEADER_BYTES - ENTRY_HEADER_BYTES;
    batch[in_batch..in_batch + header.len()].copy_from_slice(&header);
    rig.append_batch(&batch.freeze(), Urgency::Sync).unwrap();
    rig.poll();
    rig.complete(0);
    assert_eq!(rig.disk.raw(0)[5 * SECTOR..5 * SECTOR + 64], header);
    // The chunk that holds it is torn.
    rig.disk.raw(0)[4 * SECTOR..5 * SECTOR].fill(0);
    rig.flushed = 3;
    rig.restart();
    assert_eq!(rig.replayed.len(), 3);
    rig.sync(100);
    rig.run();
    rig.restart();
    assert_eq!(rig.replayed.len(), 4);
}

#[test]
fn spare_of_another_size_is_prepared_again() {
    let (mut rig, _) = chunks(3, 1000);
    rig.stop();
    rig.config.file_bytes = 32 * SEC;
    rig.restart();
    for _ in 0..30 {
        rig.sync(5000);
        rig.run();
    }
    let sizes: Vec<_> = rig.disk.files.values().map(|f| f.content().len() / SECTOR).collect();
    assert_eq!(sizes[..3], [16, 32, 32]);
    rig.restart();
    assert_eq!(rig.flushed, 33);
}

/// Every bit of every byte of a closed journal: with it flipped, recovery replays all batches as they were (the
/// byte means nothing) or refuses. Cut at its end without being closed: it may drop the last chunk, no more.
#[test]
fn every_flipped_byte_is_noticed_or_means_nothing() {
    for closed in [true, false] {
        let mut rig = Rig::new(JournalConfig { file_bytes: 8 * SEC, ..config() });
        rig.run();
        for i in 0..7 {
            rig.sync(40 + 700 * i);
            rig.sync(30);
            rig.run();
        }
        if closed {
            rig.stop();
        }
        rig.disk.settle();
        let (log, disk) = (rig.log.clone(), rig.disk.clone());
        let last_chunk = *rig.markers.iter().rev().nth(1).map(|(_, n)| n).unwrap();
        let (mut refused, mut cut, mut same) = (0, 0, 0);
        for (&file, content) in &disk.files {
            let content = content.content();
            let used = content.iter().rposition(|&b| b != 0).map_or(0, |n| n + 100);
            for at in 0..used {
                rig.disk = disk.clone();
                rig.disk.raw(file.0)[at] ^= 1 << (at % 8);
                rig.begin_life();
                // Only recovery itself: nothing is prepared after it.
                while rig.report.is_none() && rig.fatal.is_none() {
                    let op = rig.journal.poll_op(rig.now).unwrap();
                    rig.disk.submit(op);
                    rig.complete(0);
                }
                let n = rig.replayed.len();
                assert_eq!(rig.replayed[..], log[..n], "{file} {at}");
                match (rig.fatal, n == log.len()) {
                    (Some(FatalReason::JournalDamaged { .. } | FatalReason::JournalFormat { .. }), _) => {
                        refused += 1
                    }
                    (None, true) => same += 1,
                    (None, false) if !closed && n == last_chunk => cut += 1,
                    other => panic!("{other:?}: {n} batches, {file} byte {at}"),
                }
                rig.fatal = None;
            }
        }
        assert!(refused > 10_000 && same > 1000 && (cut > 0) != closed, "{refused} {same} {cut}");
    }
}

#[test]
fn first_chunk_of_a_file_counts_only_with_the_header_it_was_written_with() {
    // File 0 has one sector left behind seven chunks of two.
    let (mut rig, _) = chunks(7, 5000);
    rig.sync(5000);
    rig.poll();
    rig.complete_kind("write+");
    rig.lose_in_flight();
    // Life 1 began file 1: the header is there, the chunk is not.
    rig.disk.raw(1)[SECTOR..].fill(0);
    let header = rig.disk.raw(1)[..SECTOR].to_vec();
    rig.flushed = 7;
    rig.restart();
    // Life 2 begins it again: the chunk is there, the header is not.
    rig.sync(5000);
    rig.poll();
    rig.complete_kind("write+");
    rig.complete_kind("write+");
    rig.lose_in_flight();
    assert_eq!((rig.at(7).file, rig.flushed), (FileNo(1), 8));
    rig.disk.raw(1)[..SECTOR].copy_from_slice(&header);
    rig.flushed = 7;
    rig.restart();
    assert_eq!((rig.replayed.len(), rig.report.unwrap().cut.unwrap().reason), (7, CutReason::FileHeader));
}

/// Flips bit by bit of the last chunk, which holds three batches, and starts after each.
fn flip_the_last_chunk(mut rig: Rig) {
    for _ in 0..3 {
        rig.append(60, Urgency::Lazy).unwrap();
    }
    rig.sync(60);
    rig.run();
    let all = rig.log.len();
    assert_eq!(rig.flushed, all);
    let last = rig.log[all - 1].lsn.chunk;
    let kept = rig.log.partition_point(|logged| logged.lsn.chunk < last);
    let at = rig.at(all - 1);
    let (log, disk, released) = (rig.log.clone(), rig.disk.clone(), rig.released);
    // All of what is written, and a few of the zeros behind it.
    let (mut lost, mut whole) = (0, 0);
    for bit in (0..900 * 8).chain((900 * 8..SECTOR * 8).step_by(101)) {
        (rig.log, rig.disk, rig.released, rig.flushed) = (log.clone(), disk.clone(), released, kept);
        rig.disk.raw(at.file.0)[at.position as usize + bit / 8] ^= 1 << (bit % 8);
        rig.restart();
        let cut = rig.report.unwrap().cut;
        if rig.log.len() == all {
            whole += 1;
            continue;
        }
        lost += 1;
        assert_eq!(rig.log.len(), kept, "bit {bit}: none of the chunk comes back");
        let cut = cut.unwrap_or_else(|| panic!("bit {bit}: the loss is reported"));
        assert_eq!((cut.file, cut.position, cut.damaged), (at.file, at.position, false), "bit {bit}");
    }
    assert!(lost > 64 * 8 && whole > 0, "{lost} lost, {whole} whole");
}

#[test]
fn flipped_bit_of_the_last_chunk_is_reported_where_it_loses_the_chunk() {
    flip_the_last_chunk(chunks(3, 1000).0);
    let mut rig = recycled();
    fill(&mut rig, 2);
    flip_the_last_chunk(rig);
}
