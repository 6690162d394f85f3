//! Lifeguard's local health: a count of signs that this member, not the others, is slow.
//!
//! Control core, pure.

use std::time::Duration;

/// The worst; intervals and timeouts are then nine times as long.
const WORST: u32 = 8;

/// 0 is healthy, [`WORST`] the worst.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health(u32);

impl Health {
    pub(super) fn better(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    pub(super) fn worse(&mut self, by: u32) {
        self.0 = (self.0 + by).min(WORST);
    }

    pub(super) fn value(self) -> u32 {
        self.0
    }

    pub(super) fn scaled(self, time: Duration) -> Duration {
        time * (self.0 + 1)
    }
}
