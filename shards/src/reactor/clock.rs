//! The clock of the drivers. Deadlines travel between cores, so all cores read the same one.

use crate::time::Instant;

/// CLOCK_MONOTONIC: nanoseconds since a point that is the same for all threads of this machine's boot.
pub fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(t.tv_sec), u64::try_from(t.tv_nsec)) else {
        unreachable!("the monotonic clock counts up from the boot")
    };
    Instant::from_nanos(seconds * 1_000_000_000 + nanos)
}
