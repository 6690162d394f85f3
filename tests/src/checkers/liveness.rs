//! I11: once faults stop, everything that waits ends, every partition takes records, and the whole log is readable,
//! in bounded time.

use std::time::Duration;

use super::{Violation, broken};

pub const NAME: &str = "I11 liveness";

/// From the end of the faults to the end of the final audit, in virtual time.
pub const BOUND: Duration = Duration::from_secs(60);
/// From `Stop` to `Stopped` of every shard, beyond the deadline that the stop itself names.
pub const STOP_BOUND: Duration = Duration::from_secs(5);

pub fn stuck(what: &str) -> Violation {
    broken(NAME, format!("{what}, long after the faults ended"))
}
