//! How prompt the control core is: how late it runs what is due, and how long shards take to act on what was committed.
//!
//! Driver; control core. Its lateness is told by a timer that is set while the loop has work and then fires once more:
//! a loop with nothing to do is not woken for it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use highwater_shards::ids::Revision;
use highwater_shards::time::Instant;
use tokio::sync::Notify;

/// The times that a histogram tells apart, in ns.
const NANOS_MIN: u64 = 1_000;
const NANOS_MAX: u64 = 60_000_000_000;
/// Between a turn of the loop and the timer that tells how late the loop is.
const PROBE_AFTER: Duration = Duration::from_millis(5);
/// Commits that one shard has not acted on and whose times are kept; of further ones nothing is recorded.
const COMMITS_MAX: usize = 1024;

/// Distributions since the start. Times are in ns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoopStats {
    /// How much later than it was due a timer of the control core ran, of the clock's granularity of 1 ms at least
    /// now and then.
    pub lag_nanos: Histogram<u64>,
    /// From a committed entry in the hands of the control core to a shard's word that it acts on it.
    pub delta_nanos: Histogram<u64>,
}

impl Default for LoopStats {
    fn default() -> Self {
        let nanos = || Histogram::new_with_bounds(NANOS_MIN, NANOS_MAX, 2).expect("the bounds are sound");
        Self { lag_nanos: nanos(), delta_nanos: nanos() }
    }
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(NANOS_MAX));
}

/// Commits that a shard has not acted on yet.
#[derive(Clone, Debug, Default)]
struct Pending(VecDeque<(Revision, Instant)>);

/// Where the control core keeps time of itself.
pub(super) struct Watch {
    stats: Rc<RefCell<LoopStats>>,
    turned: Rc<Notify>,
    /// By shard.
    pending: Vec<Pending>,
}

impl Watch {
    /// To be called within a `LocalSet`.
    pub fn start(shards: usize) -> Self {
        let watch =
            Self { stats: Rc::default(), turned: Rc::default(), pending: vec![Pending::default(); shards] };
        tokio::task::spawn_local(probe(Rc::clone(&watch.stats), Rc::clone(&watch.turned)));
        watch
    }

    /// The loop has something to do.
    pub fn on_turn(&self) {
        self.turned.notify_one();
    }

    /// An entry is about to be handed to the control core.
    pub fn on_committed(&mut self, revision: Revision, now: Instant) {
        for Pending(commits) in &mut self.pending {
            if commits.len() < COMMITS_MAX {
                commits.push_back((revision, now));
            }
        }
    }

    /// The shard acts on everything up to this revision.
    pub fn on_applied(&mut self, shard: usize, revision: Revision, now: Instant) {
        let Pending(commits) = &mut self.pending[shard];
        let mut stats = self.stats.borrow_mut();
        while let Some((_, since)) = commits.pop_front_if(|(committed, _)| *committed <= revision) {
            record(&mut stats.delta_nanos, now.since(since));
        }
    }

    pub fn stats(&self) -> LoopStats {
        self.stats.borrow().clone()
    }
}

async fn probe(stats: Rc<RefCell<LoopStats>>, turned: Rc<Notify>) {
    loop {
        turned.notified().await;
        let due = tokio::time::Instant::now() + PROBE_AFTER;
        tokio::time::sleep_until(due).await;
        record(&mut stats.borrow_mut().lag_nanos, due.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(at: u64) -> Instant {
        Instant::from_nanos(at * 1_000_000)
    }

    #[tokio::test(start_paused = true)]
    async fn each_commit_counts_once_for_each_shard_and_an_idle_loop_is_not_probed() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let mut watch = Watch::start(2);
                watch.on_committed(Revision(1), ms(0));
                watch.on_committed(Revision(2), ms(10));
                watch.on_applied(0, Revision(2), ms(20));
                watch.on_applied(0, Revision(2), ms(90));
                watch.on_applied(1, Revision(1), ms(50));
                let stats = watch.stats();
                assert_eq!(stats.delta_nanos.len(), 3);
                assert!(stats.delta_nanos.max() >= 50_000_000 && stats.delta_nanos.max() < 51_000_000);

                tokio::time::sleep(Duration::from_secs(10)).await;
                assert_eq!(watch.stats().lag_nanos.len(), 0, "nothing was to be done");
                watch.on_turn();
                tokio::time::sleep(Duration::from_secs(10)).await;
                assert_eq!(watch.stats().lag_nanos.len(), 1);
            })
            .await;
    }
}
