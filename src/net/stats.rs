//! What the peers' connections count: by peer, and over all.
//!
//! Owned by the control core's thread, so plain cells do.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;
use highwater_shards::ids::NodeId;

use super::{CallError, Class};

/// The longest latency that is told from longer ones, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct NetStats {
    /// By node id.
    pub peers: Vec<PeerStats>,
    /// By reason, since the start.
    pub refusals: Vec<(&'static str, u64)>,
    /// Connections from others that have proven who they are, at this moment.
    pub inbound: u64,
    /// Connections from others that have not, at this moment.
    pub unproven: u64,
    /// Bytes of calls that wait for this node's answer, at this moment.
    pub incoming_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct PeerStats {
    pub node: NodeId,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    /// Open ones, at this moment, of both directions.
    pub connections: u64,
    /// Connections that this node opened, since the start; all but the first of each lane are reconnects.
    pub dialed: u64,
    pub reconnects: u64,
    /// Attempts to connect that failed.
    pub dial_failures: u64,
    /// Streams between shards that this node opened,
    pub streams_dialed: u64,
    /// that the peer opened,
    pub streams_accepted: u64,
    /// and that this node could not open. Their bytes are the shards' to count.
    pub streams_failed: u64,
    /// By [`Class`].
    pub classes: [ClassStats; 3],
}

#[derive(Clone, Debug, Default)]
pub struct ClassStats {
    /// Of this node's calls that were answered, in microseconds; `None` before the first one.
    pub latency_us: Option<Histogram<u32>>,
    pub timed_out: u64,
    pub refused: u64,
    pub full: u64,
    pub unreachable: u64,
}

/// The live counters of one peer.
#[derive(Default)]
pub(super) struct PeerCounters {
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
    pub frames_in: Cell<u64>,
    pub frames_out: Cell<u64>,
    pub connections: Cell<u64>,
    pub dialed: Cell<u64>,
    pub reconnects: Cell<u64>,
    pub dial_failures: Cell<u64>,
    pub streams_dialed: Cell<u64>,
    pub streams_accepted: Cell<u64>,
    pub streams_failed: Cell<u64>,
    classes: RefCell<[ClassStats; 3]>,
}

pub(super) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

impl PeerCounters {
    pub fn called(&self, class: Class, took: Duration, error: Option<&CallError>) {
        let stats = &mut self.classes.borrow_mut()[class as usize];
        match error {
            None => {
                let histogram = stats.latency_us.get_or_insert_with(|| {
                    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).expect("sound bounds")
                });
                histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            Some(CallError::TimedOut) => stats.timed_out += 1,
            Some(CallError::Refused(_)) => stats.refused += 1,
            Some(CallError::Full) => stats.full += 1,
            Some(_) => stats.unreachable += 1,
        }
    }

    pub fn read(&self, node: NodeId) -> PeerStats {
        PeerStats {
            node,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            frames_in: self.frames_in.get(),
            frames_out: self.frames_out.get(),
            connections: self.connections.get(),
            dialed: self.dialed.get(),
            reconnects: self.reconnects.get(),
            dial_failures: self.dial_failures.get(),
            streams_dialed: self.streams_dialed.get(),
            streams_accepted: self.streams_accepted.get(),
            streams_failed: self.streams_failed.get(),
            classes: self.classes.borrow().clone(),
        }
    }
}
