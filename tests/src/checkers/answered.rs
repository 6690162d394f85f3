//! I9: every request is answered once, in the order of the requests, in bounded time, or its connection closes.

use std::time::Duration;

use highwater_shards::time::Instant;

use super::{Verdict, broken};
use crate::wire::Call;

pub const NAME: &str = "I9 answered";

/// How much longer than a request allows the node may take; disks here are slow by tenths of a second at most.
pub const ALLOWANCE: Duration = Duration::from_secs(5);

/// A frame came. `expected` is the oldest open call of the connection.
pub fn on_answer(correlation: u32, expected: Option<u32>) -> Verdict {
    match expected {
        Some(e) if e == correlation => Ok(()),
        Some(e) => {
            Err(broken(NAME, format!("the answer to call {correlation} came where {e} is the oldest")))
        }
        None => Err(broken(NAME, format!("an answer to call {correlation}, though none is open"))),
    }
}

/// `open` is the oldest open call of a connection whose client reads.
pub fn on_waiting(open: &Call, sent_at: Instant, now: Instant) -> Verdict {
    if now.since(sent_at) > open.patience() + ALLOWANCE {
        let waited = now.since(sent_at);
        return Err(broken(NAME, format!("no answer and no close after {waited:?}: {open:?}")));
    }
    Ok(())
}
