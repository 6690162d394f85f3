//! How a node stops: it gives its leaderships away, stays a moment to tell so whoever asks, then its shards flush and end,
//! then it is fenced at once, without waiting until others miss it.
//!
//! Without that moment a client hears of the new leaders only from others, and that this node is gone with it: librdkafka
//! 2 then drops the node with the partitions that it still expects there, and asks for them again a second later.
//!
//! Control core, pure. Each step has its time: what the log does not take in time is left to the others, who fence a
//! node that is silent.

use std::time::Duration;

use highwater_shards::ids::RegistrationEpoch;
use highwater_shards::mail::FromControl;

use super::{Control, Phase, Timer};
use crate::control::io::Output;
use crate::control::limits::{DEPART_MAX, LEAVE_MAX, LINGER, STOP_GRACE};

impl Control {
    pub(super) fn on_stop(&mut self, deadline: Duration) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(deadline);
        if self.phase == Phase::Serving && self.has_others() {
            self.phase = Phase::Leaving { left: None };
            self.timers.set(Timer::Leave, self.now + LEAVE_MAX);
            // Others may have heard already, of an earlier attempt.
            self.go_on_leaving();
        } else {
            self.stop_shards();
        }
    }

    /// Whether anybody is there to take over.
    fn has_others(&self) -> bool {
        self.is_registered && self.image.nodes.keys().any(|node| *node != self.node())
    }

    /// Others lead by now, and the shards may have heard.
    pub(super) fn go_on_leaving(&mut self) {
        if self.phase == (Phase::Leaving { left: None }) && self.this().is_none_or(|info| info.stopping) {
            self.phase = Phase::Leaving { left: Some(self.image.revision) };
        }
        if let Phase::Leaving { left: Some(revision) } = self.phase
            && self.applied_everywhere() >= revision
        {
            self.phase = Phase::Lingering;
            self.timers.set(Timer::Leave, self.now + LINGER);
        }
    }

    pub(super) fn stop_shards(&mut self) {
        self.timers.cancel(Timer::Leave);
        self.phase = Phase::Stopping { assigned: self.phase != Phase::Starting };
        let deadline = self.stop.expect("a node stops when it is told to");
        for shard in self.shard_ids() {
            self.outputs.push_back(Output::ToShard { shard, message: FromControl::Stop { deadline } });
        }
        self.timers.set(Timer::Stop, self.now + deadline + STOP_GRACE);
        if self.shards.iter().all(|s| s.stopped) {
            self.on_all_stopped();
        }
    }

    pub(super) fn on_all_stopped(&mut self) {
        self.timers.cancel(Timer::Stop);
        if self.has_others() && self.this().is_some_and(|info| !info.fenced) {
            self.phase = Phase::Departing;
            self.timers.set(Timer::Depart, self.now + DEPART_MAX);
        } else {
            self.end();
        }
    }

    /// Nothing is left to do, or to wait for.
    pub(super) fn end(&mut self) {
        let late: Vec<_> = self.shard_ids().filter(|id| !self.shards[usize::from(id.0)].stopped).collect();
        // Another life may have registered; then this one says nothing about it.
        let own = self.this().filter(|info| info.incarnation == self.config.register.incarnation);
        let clean: Option<RegistrationEpoch> = own.filter(|_| late.is_empty()).map(|info| info.epoch);
        self.outputs.push_back(Output::Stopped { late, clean });
        self.phase = Phase::Over;
    }
}
