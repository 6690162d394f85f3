//! The bounds of the control core.

use std::time::Duration;

/// Requests that are taken in and not yet answered; one more is answered with [`super::request::Why::TimedOut`],
/// which clients take for "try again".
pub const REQUESTS_MAX: usize = 4096;
/// Topics, partitions or resources in one request; the ones beyond are refused.
pub const ITEMS_MAX: usize = 10_000;
/// Partitions that one request creates, over all of its topics; topics beyond are refused.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 10_000;
/// Bytes of an entry of the metadata log. A larger one would hold up the heartbeats of the Raft group.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// Partitions that one entry makes, so that applying it takes no longer than a few ms.
pub const ENTRY_PARTITIONS_MAX: usize = 1000;
/// Bytes, and new partitions, of one command of a request; what is larger comes in several.
pub const STEP_BYTES_MAX: usize = 30 * 1024;
pub const STEP_PARTITIONS_MAX: usize = 1000;
/// The longest that a request waits, whatever it asks for.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// How long a request waits that does not say.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to keep a placement that the store could not keep.
pub const KEEP_RETRY: Duration = Duration::from_secs(1);
/// What a shard gets on top of its deadline before it counts as late with stopping.
pub const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long requests wait for a leader of the metadata log; about two elections. After that, they are refused until
/// there is one.
pub const LEADER_WAIT: Duration = Duration::from_secs(4);
/// Between attempts of what the node proposes by itself: grows with each failure from the first to the last.
pub const RETRY_MIN: Duration = Duration::from_millis(100);
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// With so many requests answered by an entry, the next one waits for more, see `core/gather.rs`: for at most so many and
/// so long, and after that was in vain at most so many entries do not wait.
pub const GATHER_MIN: usize = 8;
pub const GATHER_ENOUGH: usize = 256;
pub const GATHER_MAX: Duration = Duration::from_millis(1);
pub const GATHER_SKIPS_MAX: u32 = 1024;
/// Changes that a shard was told and has not applied yet; further ones are gathered into one.
pub const DELTAS_MAX: usize = 16;
/// Partitions of this node whose changes wait to be told; with so many, no further request is proposed.
pub const CHANGES_WAITING_MAX: usize = 10_000;
/// How long a node that stops waits for others to lead what it led.
pub const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How long it goes on to tell clients so: for a request that is under way, and one more.
pub const LINGER: Duration = Duration::from_millis(200);
/// How long one that has stopped waits until the log has it that it is gone.
pub const DEPART_MAX: Duration = Duration::from_secs(2);
/// How often the controller lets preferred replicas lead again.
pub const BALANCE_EVERY: Duration = Duration::from_secs(60);
