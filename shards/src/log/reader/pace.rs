//! When bulk reads may be asked of the disk, so that they give way to what is written. Floor 1, pure.
//!
//! A disk does one large read beside the journal's writes without much harm to these; several at a time fill its queue,
//! and every write waits behind all of them. So while the shard writes, one bulk read is under way at a time, and after
//! each the disk is left to the writes for a multiple of the time that it took. The multiple grows with how much
//! longer it took than the fastest of late: a disk that has enough to do with writes hardly reads. When moves are behind,
//! reads make as much room as they may. The pause is bounded, so that reads go on whatever is written. While nothing
//! is written there is no bound but the reader's.

use std::time::Duration;

use crate::time::Instant;

/// So long after a write the next one is expected. Producers that wait for their answers pause about as long.
const WRITES_GO_ON: Duration = Duration::from_millis(5);
/// The pause after a bulk read that was as fast as the fastest, in times of what it took.
const PAUSE_FACTOR: u32 = 2;
/// The longest pause: with windows of 256 KiB, about 5 MB/s are left to readers.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// By this part of itself the fastest time becomes longer with each read, so that it is one of the last few hundred.
const FASTEST_FADES: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Writes, flushes and changes of names that the disk has.
    writes: usize,
    /// When the last of them began or ended.
    written_at: Option<Instant>,
    /// Moves are behind.
    is_behind: bool,
    /// Bulk reads that the disk has.
    reads: usize,
    /// When the last of them began.
    began_at: Instant,
    /// About the least time that one took of late. Zero: not known yet.
    fastest: Duration,
    /// None is begun before that beside writes. At most `PAUSE_MAX` after the end of the last one.
    ready_at: Instant,
}

impl Pace {
    pub fn on_write(&mut self, now: Instant) {
        self.writes += 1;
        self.written_at = Some(now);
    }

    pub fn on_written(&mut self, now: Instant) {
        assert!(self.writes > 0, "a write ends once");
        self.writes -= 1;
        self.written_at = Some(now);
    }

    pub fn note_behind(&mut self, is_behind: bool) {
        self.is_behind = is_behind;
    }

    pub fn may_read(&self, now: Instant) -> bool {
        !self.is_writing(now) || (self.reads == 0 && now >= self.ready_at)
    }

    pub fn on_read(&mut self, now: Instant) {
        self.reads += 1;
        self.began_at = now;
    }

    pub fn on_read_done(&mut self, now: Instant) {
        assert!(self.reads > 0, "a read ends once");
        self.reads -= 1;
        let took = now.since(self.began_at);
        let fading = self.fastest + self.fastest / FASTEST_FADES;
        self.fastest = if self.fastest.is_zero() { took } else { took.min(fading) };
        let slowness = took.as_secs_f64() / self.fastest.as_secs_f64().max(1e-9);
        let pause = (took * PAUSE_FACTOR).as_secs_f64() * slowness;
        let is_long = self.is_behind || pause > PAUSE_MAX.as_secs_f64();
        self.ready_at = now + if is_long { PAUSE_MAX } else { Duration::from_secs_f64(pause) };
    }

    /// When a read that waits may begin if nothing else happens; `None`: something must end first.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let after_writes = self.written_at.filter(|_| self.writes == 0).map(|at| at + WRITES_GO_ON);
        let after_pause = Some(self.ready_at).filter(|_| self.reads == 0);
        [after_writes, after_pause].into_iter().flatten().filter(|&at| at > now).min()
    }

    pub fn is_writing(&self, now: Instant) -> bool {
        self.writes > 0 || self.written_at.is_some_and(|at| now < at + WRITES_GO_ON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Instant {
        Instant::from_nanos(us * 1000)
    }

    fn writing() -> Pace {
        let mut pace = Pace::default();
        pace.on_write(us(0));
        pace
    }

    /// Whether `due` names the instant from which on a read may begin, and none before.
    fn check_due(pace: &Pace, now: Instant) {
        assert!(!pace.may_read(now));
        if let Some(due) = pace.due(now) {
            assert!(pace.may_read(due), "{pace:?}");
            assert!(!pace.may_read(Instant::from_nanos(due.as_nanos() - 1)), "{pace:?}");
        }
    }

    #[test]
    fn without_writes_reads_are_not_counted() {
        let mut pace = Pace::default();
        for _ in 0..64 {
            assert!(pace.may_read(us(7)));
            pace.on_read(us(7));
        }
        pace.on_read_done(us(90_000));
        assert!(pace.may_read(us(90_000)));
    }

    #[test]
    fn beside_writes_one_read_is_under_way_and_the_next_waits_twice_as_long_as_it_took() {
        let mut pace = writing();
        assert!(pace.may_read(us(10)));
        pace.on_read(us(10));
        check_due(&pace, us(500));
        assert_eq!(pace.due(us(500)), None, "the read must end first");
        pace.on_read_done(us(1010));
        check_due(&pace, us(1010));
        assert_eq!(pace.due(us(1010)), Some(us(3010)));
        assert!(pace.may_read(us(3010)));
    }

    #[test]
    fn a_read_that_took_longer_than_others_makes_a_longer_pause_until_that_is_usual() {
        let mut pace = writing();
        let mut pause_after = |at: u64, took: u64| {
            pace.on_read(us(at));
            pace.on_read_done(us(at + took));
            pace.due(us(at + took)).unwrap().since(us(at + took)).as_micros()
        };
        assert_eq!(pause_after(0, 1000), 2000);
        let slow = pause_after(10_000, 3000);
        assert!((17_000..=18_000).contains(&slow), "nine times as long, but the fastest fades: {slow}");
        let usual = (1..300).map(|i| pause_after(i * 100_000, 3000)).last().unwrap();
        assert_eq!(usual, 6000);
        assert_eq!(pause_after(90_000_000, 500), 1000);
    }

    #[test]
    fn a_slow_disk_and_late_moves_make_the_pause_longer_but_never_endless() {
        let mut pace = writing();
        pace.on_read(us(0));
        pace.on_read_done(us(1_000_000));
        check_due(&pace, us(1_000_000));
        assert_eq!(pace.due(us(1_000_000)), Some(us(1_000_000) + PAUSE_MAX));
        pace.note_behind(true);
        pace.on_read(us(2_000_000));
        pace.on_read_done(us(2_000_100));
        check_due(&pace, us(2_000_100));
        assert_eq!(pace.due(us(2_000_100)), Some(us(2_000_100) + PAUSE_MAX));
    }

    #[test]
    fn reads_go_at_full_depth_soon_after_the_last_write() {
        let mut pace = writing();
        pace.on_read(us(0));
        pace.on_written(us(2_000));
        check_due(&pace, us(2_001));
        assert_eq!(pace.due(us(2_001)), Some(us(7_000)));
        for _ in 0..64 {
            assert!(pace.may_read(us(7_000)));
            pace.on_read(us(7_000));
        }
        // Those that were begun meanwhile end before the next one begins.
        pace.on_write(us(7_100));
        for _ in 0..64 {
            check_due(&pace, us(8_000));
            pace.on_read_done(us(8_000));
        }
        check_due(&pace, us(8_000));
    }
}
