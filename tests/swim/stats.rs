//! Many runs at once, and what to say of their numbers.

use std::time::Duration;

/// Runs the seeds on so many threads; the results in the order of the seeds.
#[expect(clippy::disallowed_types, reason = "driver: seeds are handed out to threads")]
pub fn seeds<T: Send>(count: u64, jobs: usize, run: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = std::sync::atomic::AtomicU64::new(0);
    let results = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let result = run(seed);
                    results.lock().expect("no run panics with the lock").push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no run panics with the lock");
    results.sort_unstable_by_key(|(seed, _)| *seed);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The value below which so many thousandths of the values are.
pub fn permille(values: &mut [Duration], permille: usize) -> f64 {
    values.sort_unstable();
    match values.len() {
        0 => f64::NAN,
        len => values[(len * permille / 1000).min(len - 1)].as_secs_f64(),
    }
}
