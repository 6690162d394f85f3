//! Compaction, one rule at a time.

use super::*;

type Pair<'a> = (&'a str, Option<&'a str>);
/// Offset, timestamp, key and value.
type Text = (u64, i64, String, Option<String>);

fn batch(codec: Compression, at_ms: i64, records: &[Pair<'_>]) -> Bytes {
    let mut batch = BatchBuilder::new();
    for (i, (key, value)) in records.iter().enumerate() {
        batch = batch.record(at_ms + i as i64, Some(key.as_bytes()), value.map(str::as_bytes));
    }
    if codec == Compression::None { batch.build() } else { batch.packed(codec).build() }
}

fn compact(log: &mut Log, now_ms: i64) -> Done {
    let (outcome, _) = run(log.job(now_ms), &mut log.disk, Mishap::None);
    let done = done(outcome);
    log.take(&done);
    done
}

fn records(log: &Log) -> Vec<Text> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let all = log.batches().into_iter().flat_map(|b| b.records.unwrap());
    all.map(|r| (r.offset, r.timestamp_ms, text(&r.key.unwrap()), r.value.map(|v| text(&v)))).collect()
}

fn rec(offset: u64, at_ms: i64, key: &str, value: Option<&str>) -> Text {
    (offset, at_ms, key.into(), value.map(Into::into))
}

#[test]
fn deletion_is_kept_until_its_horizon_and_its_timestamp_does_not_change() {
    for codec in CODECS {
        let mut log = Log::default();
        log.add_segment(&[batch(codec, 10, &[("a", Some("1")), ("b", Some("2"))])]);
        log.add_segment(&[batch(codec, 50, &[("a", None), ("c", Some("3"))])]);
        compact(&mut log, 5000);
        let kept = [rec(1, 11, "b", Some("2")), rec(2, 50, "a", None), rec(3, 51, "c", Some("3"))];
        assert_eq!(records(&log), kept);
        let horizons = |log: &Log| log.batches().iter().map(|b| b.horizon_ms).collect::<Vec<_>>();
        assert_eq!(horizons(&log), [None, Some(6000)], "now and the time that deletions are kept");

        // Not before its time, and the horizon is not set anew.
        log.add_segment(&[batch(codec, 60, &[("d", Some("4"))])]);
        compact(&mut log, 5999);
        assert_eq!(records(&log)[..3], kept);
        assert_eq!(horizons(&log), [None, Some(6000), None]);

        log.add_segment(&[batch(codec, 70, &[("e", Some("5"))])]);
        compact(&mut log, 6000);
        let want = [
            rec(1, 11, "b", Some("2")),
            rec(3, 51, "c", Some("3")),
            rec(4, 60, "d", Some("4")),
            rec(5, 70, "e", Some("5")),
        ];
        assert_eq!(records(&log), want);
    }
}

#[test]
fn record_behind_the_job_is_not_counted() {
    let mut log = Log::default();
    log.add_segment(&[batch(Compression::None, 10, &[("a", Some("1"))])]);
    log.add_segment(&[batch(Compression::None, 20, &[("a", Some("2"))])]);
    log.add_segment(&[batch(Compression::None, 30, &[("a", Some("3"))])]);
    let job = Job { upto: Offset(2), ..log.job(100) };
    let (outcome, _) = run(job, &mut log.disk, Mishap::None);
    let done = done(outcome);
    assert_eq!((done.cleaned, done.replaced.len()), (Offset(2), 2));
    log.take(&done);
    assert_eq!(records(&log), [rec(1, 20, "a", Some("2")), rec(2, 30, "a", Some("3"))]);
    let job = Job { upto: Offset(0), ..log.job(100) };
    assert_eq!(run(job, &mut log.disk, Mishap::None), (Some(Outcome::Nothing), 0));
}

#[test]
fn batch_in_which_nothing_goes_is_copied_as_it_is() {
    for codec in CODECS {
        let mut log = Log::default();
        log.add_segment(&[batch(codec, 10, &[("a", Some("1")), ("b", Some("2"))])]);
        log.add_segment(&[batch(codec, 20, &[("c", Some("1"))])]);
        let before = log.batches();
        let done = compact(&mut log, 100);
        assert_eq!(log.batches(), before);
        assert_eq!((done.replaced.len(), done.by.len()), (2, 1), "put together");
    }
}

#[test]
fn newest_batch_of_a_producer_stays_as_a_header() {
    let of = |id, sequence, key: &str| {
        let producer =
            BatchProducer { id: ProducerId(id), epoch: ProducerEpoch(0), base_sequence: Sequence(sequence) };
        BatchBuilder::new().producer(producer).record(7, Some(key.as_bytes()), Some(b"v")).build()
    };
    let mut log = Log::default();
    log.add_segment(&[
        of(1, 0, "a"),
        of(1, 1, "a"),
        of(2, 0, "a"),
        batch(Compression::None, 9, &[("a", None)]),
    ]);
    log.add_segment(&[of(2, 1, "a")]);
    let first = log.batches();
    compact(&mut log, 100);
    let after = log.batches();
    assert_eq!(after.iter().map(|b| b.base).collect::<Vec<_>>(), [1, 4], "of producer 1 and 2 the newest");
    assert_eq!((after[0].producer, after[0].end, after[0].epoch), (first[1].producer, 2, first[1].epoch));
    assert_eq!((after[0].records.as_deref(), after[0].raw.len()), (Some(&[][..]), HEADER_BYTES));
    // Once the producer is forgotten its header goes too.
    log.producers.remove(&1);
    log.add_segment(&[batch(Compression::None, 9, &[("b", Some("1"))])]);
    compact(&mut log, 200);
    assert_eq!(log.batches().iter().map(|b| b.base).collect::<Vec<_>>(), [4, 5]);
}

#[test]
fn unreadable_batch_stays_and_so_do_deletions_behind_it() {
    let mut log = Log::default();
    let garbage = BatchBuilder::new().compressed(Compression::Lz4, 5, 2, b"garbage").build();
    let unknown = BatchBuilder::new().attributes(Attributes(7)).record(1, Some(b"a"), None).build();
    log.add_segment(&[batch(Compression::None, 1, &[("z", None), ("a", Some("1"))]), garbage, unknown]);
    log.add_segment(&[batch(Compression::None, 9, &[("a", None), ("b", Some("1"))])]);
    let job = log.job(100);
    let (outcome, _) = run(job, &mut log.disk, Mishap::None);
    let done = done(outcome);
    assert_eq!(done.kept_whole, 2);
    let files = &log.disk.files[&FileName::Segment(name_of(&done.by[0]))];
    let mut scanner = Scanner::new(
        Seed::of_segment(&name_of(&done.by[0])),
        Check::All,
        &files[SEGMENT_HEADER_BYTES..],
        FIRST_FRAME,
        done.by[0].bytes,
    );
    let mut found = Vec::new();
    while let Scanned::Frame(frame) = scanner.scan() {
        found.push((frame.base.0, frame.header.records, frame.header.delete_horizon_ms()));
    }
    assert_eq!(found, [(0, 1, Some(1100)), (2, 2, None), (4, 1, None), (5, 2, None)]);
}

#[test]
fn batch_that_unpacks_beyond_the_bound_stays_whole() {
    let big = "x".repeat(100_000);
    let mut log = Log::default();
    log.add_segment(&[batch(Compression::Zstd, 1, &[("a", Some(&big)), ("a", Some("2"))])]);
    log.add_segment(&[batch(Compression::Zstd, 1, &[("a", Some("3"))])]);
    let mut job = log.job(100);
    job.limits.decompressed_bytes_max = 50_000;
    let (outcome, _) = run(job, &mut log.disk, Mishap::None);
    let done = done(outcome);
    assert_eq!((done.kept_whole, done.records_in, done.records_out), (1, 3, 3));
}

#[test]
fn batch_that_would_grow_beyond_the_bound_stays_whole() {
    // Timestamps relative to the horizon take more bytes than those relative to the first record.
    let many: Vec<String> = (0..100).map(|i| format!("{i}")).collect();
    let records: Vec<_> = many.iter().map(|k| (&k[..], None)).collect();
    let mut log = Log::default();
    log.add_segment(&[batch(Compression::None, 1, &records)]);
    let len = log.batches()[0].raw.len();
    let mut job = log.job(1 << 40);
    job.limits.batch_bytes_max = len + 10;
    let (outcome, _) = run(job.clone(), &mut log.disk, Mishap::None);
    assert_eq!(done(outcome).kept_whole, 1);
    job.limits.batch_bytes_max = len + 1000;
    let (outcome, _) = run(job, &mut log.disk, Mishap::None);
    assert_eq!(done(outcome).kept_whole, 0);
}

#[test]
fn without_credit_nothing_is_asked_for_and_what_is_asked_for_is_paid() {
    let mut log = Log::default();
    // Each batch unpacks to sixteen windows.
    let value = "v".repeat(8192);
    for i in 0..4 {
        log.add_segment(&[
            batch(Compression::Zstd, i, &[("a", Some(&value)), ("b", Some("x"))]),
            batch(Compression::Zstd, i, &[("a", Some(&value)), ("c", Some("x"))]),
        ]);
    }
    let job = log.job(100);
    let window = job.limits.window_bytes as u64;
    let mut cleaning = Cleaning::new(job);
    let (mut given, mut moved, mut rounds, mut turns) = (0, 0, 0, 0);
    let mut ops = 0;
    while cleaning.outcome().is_none() {
        match cleaning.poll_op(&mut || OpNo(1)) {
            Some(op) => {
                moved += match &op {
                    DiskOp::Read { len, .. } => u64::from(*len),
                    DiskOp::Put { parts, .. } => parts.iter().map(|p| p.len() as u64).sum(),
                    _ => 0,
                };
                assert!(moved <= given + 4 * window, "{moved} moved, {given} given");
                ops += 1;
                cleaning.handle(&log.disk.apply(op));
            }
            None if cleaning.outcome().is_some() => {}
            None => {
                assert!(cleaning.wants_credit());
                assert!(cleaning.poll_op(&mut || panic!("without credit")).is_none());
                turns += 1;
                // A turn alone does not pay.
                if turns % 2 == 0 {
                    cleaning.credit(0);
                } else {
                    cleaning.credit(window);
                    given += window;
                    rounds += 1;
                }
            }
        }
    }
    // Two passes unpack eight batches of 8 KiB each.
    assert!(rounds > 2 * 8 * 8192 / window, "{rounds} windows paid, {ops} operations");
}

#[test]
fn compacted_batch_of_every_codec_reads_again_after_being_written_anew() {
    let text = "some text that compresses ".repeat(40);
    for codec in CODECS {
        let mut log = Log::default();
        let made: Vec<_> =
            (0..50).map(|i| (if i % 2 == 0 { "even" } else { "odd" }, Some(&text[..]))).collect();
        log.add_segment(&[batch(codec, 100, &made)]);
        compact(&mut log, 1000);
        let want = [rec(48, 148, "even", Some(&text)), rec(49, 149, "odd", Some(&text))];
        assert_eq!(records(&log), want);
        assert_eq!(log.batches()[0].codec, codec);
    }
}

#[test]
fn last_generation_is_not_compacted_again() {
    let mut log = Log::default();
    log.add_segment(&[batch(Compression::None, 10, &[("a", Some("1")), ("a", Some("2"))])]);
    let mut job = log.job(100);
    job.segments[0].generation = GENERATION_MAX;
    assert_eq!(run(job, &mut log.disk, Mishap::None), (Some(Outcome::Nothing), 0));
}
