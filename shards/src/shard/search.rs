//! A search of a log for a record by its timestamp, one batch at a time. Floor 2, pure.
//!
//! The log answers one question: which is the first batch with a record of this timestamp or a later one? The first
//! record from a timestamp on is in that batch. The largest timestamp is what the log believes it to be, unless the
//! batch that had it is gone or not committed yet; then it is found by halving what it may be.

use bytes::Bytes;

use crate::batch::{self, Found};
use crate::ids::Offset;

/// The timestamp that a record without one has; no record has a smaller one.
const TIMESTAMP_MS_MIN: i64 = -1;
/// Batches that one search looks at: what halving all timestamps takes, and the two questions before it.
const QUESTIONS_MAX: u32 = 66;

/// What is sought, in what was committed when the search began.
#[derive(Clone, Debug)]
pub(super) struct Search {
    /// Batches that end at or before this are searched.
    pub below: Offset,
    goal: Goal,
    /// The best batch so far.
    best: Option<Bytes>,
    questions: u32,
}

#[derive(Clone, Copy, Debug)]
enum Goal {
    AtOrAfter(i64),
    /// The largest timestamp of a batch that is better than the best is above `known_ms` and at most `upto_ms`.
    Largest {
        known_ms: i64,
        upto_ms: i64,
    },
}

impl Search {
    pub fn first_at_or_after(timestamp_ms: i64, below: Offset) -> Self {
        Self { below, goal: Goal::AtOrAfter(timestamp_ms), best: None, questions: 0 }
    }

    /// For the first record with the largest timestamp, which is at most `upto_ms`.
    pub fn largest(upto_ms: i64, below: Offset) -> Self {
        let goal = Goal::Largest { known_ms: TIMESTAMP_MS_MIN - 1, upto_ms };
        Self { below, goal, best: None, questions: 0 }
    }

    /// The timestamp that the log is to be asked for; `None` at the end of the search. The answer goes to
    /// [`Self::take`].
    pub fn question(&self) -> Option<i64> {
        match self.goal {
            Goal::AtOrAfter(timestamp_ms) => (self.questions == 0).then_some(timestamp_ms),
            Goal::Largest { known_ms, upto_ms } if known_ms >= upto_ms => None,
            // Mostly the log knows.
            Goal::Largest { upto_ms, .. } if self.questions == 0 => Some(upto_ms),
            // Whether there is anything is worth knowing before a timestamp from the far future is halved.
            Goal::Largest { known_ms, .. } if self.best.is_none() => Some(known_ms + 1),
            Goal::Largest { known_ms, upto_ms } => {
                Some(known_ms.saturating_add_unsigned(upto_ms.abs_diff(known_ms).div_ceil(2)))
            }
        }
    }

    /// Takes the first batch with a record of the timestamp in question or a later one.
    pub fn take(&mut self, batch: Option<Bytes>) {
        let asked_ms = self.question().expect("it is an answer to a question");
        self.questions += 1;
        assert!(self.questions <= QUESTIONS_MAX, "a search narrows with each answer: {self:?}");
        let header = batch.as_ref().and_then(|batch| batch::parse_header(batch).ok());
        if let Goal::Largest { known_ms, upto_ms } = &mut self.goal {
            match header {
                Some(header) => *known_ms = header.max_timestamp_ms.max(asked_ms),
                None => *upto_ms = asked_ms - 1,
            }
        }
        // One that compaction left without records counts as none.
        if header.is_some_and(|header| header.records > 0) {
            self.best = batch;
        }
    }

    /// The record in the best batch, of those at or behind `log_start`.
    pub fn found(&self, log_start: Offset) -> Option<Found> {
        let batch = self.best.as_ref()?;
        let header = batch::parse_header(batch).ok()?;
        match self.goal {
            Goal::AtOrAfter(timestamp_ms) => {
                batch::first_at_or_after(&header, batch, log_start, timestamp_ms)
            }
            Goal::Largest { .. } => batch::largest_timestamp(&header, batch, log_start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    /// The best of a log of batches with these timestamps, and what the log was asked.
    fn largest(log: &[i64], believed_ms: i64) -> (Option<i64>, u32) {
        let mut search = Search::largest(believed_ms, Offset(0));
        while let Some(at_ms) = search.question() {
            let first = log.iter().find(|&&ms| ms >= at_ms);
            search.take(first.map(|&ms| BatchBuilder::new().record(ms, None, None).build()));
        }
        (search.found(Offset(0)).map(|found| found.timestamp_ms), search.questions)
    }

    #[test]
    fn largest_timestamp_that_the_log_knows_takes_one_question() {
        assert_eq!(largest(&[5, 9, 7], 9), (Some(9), 1));
        assert_eq!(largest(&[-1], -1), (Some(-1), 1));
    }

    #[test]
    fn largest_timestamp_is_found_whatever_the_log_believes() {
        let now_ms = 1_700_000_000_000;
        for log in [&[now_ms, now_ms + 9, now_ms + 3][..], &[9, 5, 7], &[0], &[-1, -1], &[i64::MAX, 3]] {
            let largest_ms = log.iter().copied().max();
            for believed_ms in [i64::MAX, i64::MAX - 1, now_ms * 2, now_ms + 10] {
                if Some(believed_ms) >= largest_ms {
                    let (found, questions) = largest(log, believed_ms);
                    assert_eq!(found, largest_ms, "{log:?} {believed_ms}");
                    assert!(questions <= QUESTIONS_MAX);
                }
            }
        }
    }

    #[test]
    fn empty_log_takes_two_questions() {
        assert_eq!(largest(&[], i64::MAX), (None, 2));
    }

    #[test]
    fn first_record_takes_one_question() {
        let mut search = Search::first_at_or_after(7, Offset(0));
        assert_eq!(search.question(), Some(7));
        search.take(Some(BatchBuilder::new().record(5, None, None).record(8, None, None).build()));
        assert_eq!(search.question(), None);
        assert_eq!(search.found(Offset(0)), Some(Found { offset: Offset(1), timestamp_ms: 8 }));
    }
}
