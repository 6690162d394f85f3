//! What the sessions of one shard count: requests, errors and how long answers took, per API. Plain numbers: the
//! shard's core owns them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::api::ApiKey;
use super::errors::ErrorCode;

/// Buckets of [`ApiStats::latency`].
pub const LATENCY_BUCKETS: usize = 32;

/// The counters of one API.
#[derive(Clone, Copy, Debug)]
pub struct ApiStats {
    /// Requests that were answered (or, without acks, done).
    pub requests: u64,
    /// Those whose time from the arrival of the frame to the answer was below 2^i microseconds and not below
    /// 2^(i-1), by i; the last bucket has no upper bound.
    pub latency: [u64; LATENCY_BUCKETS],
    pub latency_sum: Duration,
}

/// All counters since the start of the shard.
#[derive(Clone, Debug)]
pub struct Stats {
    by_api: [ApiStats; ApiKey::ALL.len()],
    errors: BTreeMap<(ApiKey, ErrorCode), u64>,
    /// Requests that could not be read, or of an API or version that is not supported.
    pub malformed: u64,
}

impl Default for Stats {
    fn default() -> Self {
        let none = ApiStats { requests: 0, latency: [0; LATENCY_BUCKETS], latency_sum: Duration::ZERO };
        Self { by_api: [none; ApiKey::ALL.len()], errors: BTreeMap::new(), malformed: 0 }
    }
}

impl Stats {
    pub fn by_api(&self) -> impl Iterator<Item = (ApiKey, &ApiStats)> {
        ApiKey::ALL.iter().map(|&api| (api, &self.by_api[api as usize]))
    }

    /// Errors that were answered, one for each partition, topic or resource that had one.
    pub fn errors(&self) -> impl Iterator<Item = (ApiKey, ErrorCode, u64)> {
        self.errors.iter().map(|(&(api, code), &n)| (api, code, n))
    }

    pub(super) fn answered(&mut self, api: ApiKey, took: Duration) {
        let stats = &mut self.by_api[api as usize];
        stats.requests += 1;
        stats.latency_sum += took;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(usize::MAX);
        stats.latency[bucket.min(LATENCY_BUCKETS - 1)] += 1;
    }

    pub(super) fn error(&mut self, api: ApiKey, code: ErrorCode) {
        if code != ErrorCode::None {
            *self.errors.entry((api, code)).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_counted_below_the_next_power_of_two() {
        let mut stats = Stats::default();
        for (nanos, bucket) in [(0, 0), (999, 0), (1_000, 1), (3_999, 2), (4_000, 3), (u64::MAX, 31)] {
            let before = stats.by_api[ApiKey::Fetch as usize].latency[bucket];
            stats.answered(ApiKey::Fetch, Duration::from_nanos(nanos));
            assert_eq!(stats.by_api[ApiKey::Fetch as usize].latency[bucket], before + 1, "{nanos} ns");
        }
        assert_eq!(stats.by_api().map(|(_, s)| s.requests).sum::<u64>(), 6);
    }
}
