//! What the sessions of one shard count: requests, errors and how long answers took, per API. Plain numbers: the
//! shard's core owns them, and hands out a [`FrontStats`] when it is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_shards::stats::{FrontStats, LATENCY_BUCKETS, RequestStats};

use super::api::ApiKey;
use super::errors::ErrorCode;

/// The counters of one API, as [`RequestStats`] explains them.
#[derive(Clone, Copy, Debug)]
struct ApiStats {
    requests: u64,
    latency: [u64; LATENCY_BUCKETS],
    latency_sum: Duration,
}

/// All counters since the start of the shard.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    by_api: [ApiStats; ApiKey::ALL.len()],
    errors: BTreeMap<(ApiKey, ErrorCode), u64>,
    /// Requests that could not be read, or of an API or version that is not supported.
    pub malformed: u64,
    /// Connections whose producers were asked to pause.
    pub pauses: u64,
}

impl Default for Stats {
    fn default() -> Self {
        let none = ApiStats { requests: 0, latency: [0; LATENCY_BUCKETS], latency_sum: Duration::ZERO };
        Self { by_api: [none; ApiKey::ALL.len()], errors: BTreeMap::new(), malformed: 0, pauses: 0 }
    }
}

impl Stats {
    pub fn snapshot(&self) -> FrontStats {
        let of_api = |(&api, stats): (&ApiKey, &ApiStats)| RequestStats {
            name: api.name(),
            requests: stats.requests,
            latency: stats.latency,
            latency_sum: stats.latency_sum,
            errors: self
                .errors
                .range((api, ErrorCode::ALL[0])..)
                .take_while(|((of, _), _)| *of == api)
                .map(|((_, code), n)| (code.name(), *n))
                .collect(),
        };
        let came = |stats: &RequestStats| stats.requests > 0 || !stats.errors.is_empty();
        FrontStats {
            requests: ApiKey::ALL.iter().zip(&self.by_api).map(of_api).filter(came).collect(),
            malformed: self.malformed,
            pauses: self.pauses,
        }
    }

    pub fn answered(&mut self, api: ApiKey, took: Duration) {
        let stats = &mut self.by_api[api as usize];
        stats.requests += 1;
        stats.latency_sum += took;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(usize::MAX);
        stats.latency[bucket.min(LATENCY_BUCKETS - 1)] += 1;
    }

    /// One for each partition, topic or resource that is answered with an error.
    pub fn error(&mut self, api: ApiKey, code: ErrorCode) {
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
        let snapshot = stats.snapshot();
        assert_eq!(
            snapshot.requests.iter().map(|s| (s.name, s.requests)).collect::<Vec<_>>(),
            [("Fetch", 6)]
        );
    }

    #[test]
    fn errors_stand_with_their_api_in_a_snapshot() {
        let mut stats = Stats::default();
        stats.error(ApiKey::Produce, ErrorCode::RequestTimedOut);
        stats.error(ApiKey::Fetch, ErrorCode::UnknownServerError);
        stats.error(ApiKey::Fetch, ErrorCode::InvalidRecord);
        stats.error(ApiKey::Fetch, ErrorCode::InvalidRecord);
        stats.error(ApiKey::Metadata, ErrorCode::None);
        let snapshot = stats.snapshot();
        let errors: Vec<_> = snapshot.requests.into_iter().map(|s| (s.name, s.errors)).collect();
        assert_eq!(
            errors,
            [
                ("Produce", vec![("RequestTimedOut", 1)]),
                ("Fetch", vec![("UnknownServerError", 1), ("InvalidRecord", 2)])
            ]
        );
    }
}
