//! The bounds of the control core.

use std::time::Duration;

/// Requests that are taken in and not yet answered; one more is answered with [`super::request::Why::TimedOut`],
/// which clients take for "try again".
pub const REQUESTS_MAX: usize = 4096;
/// Topics, partitions or resources in one request; the ones beyond are refused.
pub const ITEMS_MAX: usize = 10_000;
/// Partitions that one request creates, over all of its topics; topics beyond are refused.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 10_000;
/// No further request joins an entry of the metadata log that is this large, in bytes.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// The longest that a request waits, whatever it asks for.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// How long a request waits that does not say.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to keep a placement that the store could not keep.
pub const KEEP_RETRY: Duration = Duration::from_secs(1);
/// What a shard gets on top of its deadline before it counts as late with stopping.
pub const STOP_GRACE: Duration = Duration::from_secs(1);
/// Changes that shards are not told of yet, because what they rely on is not durable; with so many, no further
/// change is proposed.
pub const PUBLICATIONS_MAX: usize = 64;
