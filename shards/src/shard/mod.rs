//! One core's whole state machine. Floor 2, pure.

mod io;

pub use io::{ClientInput, FatalReason, Input, Output};

use crate::front::Front;
use crate::time::Instant;

/// What a driver drives: a state machine that takes inputs and is drained for outputs.
///
/// A driver hands over a batch of inputs, then drains the outputs, then waits for the next completion or for
/// `poll_timeout`, whichever is first. `Shard` is the one that serves; tests of drivers use smaller ones.
pub trait Machine {
    type Front: Front;

    /// Takes one input. Does no I/O and never blocks.
    fn handle(&mut self, now: Instant, input: Input<Self::Front>);

    /// The next output. Drain to `None` after every batch of inputs.
    fn poll_output(&mut self) -> Option<Output<Self::Front>>;

    /// When `handle` wants an [`Input::Timeout`]; ask again after every drain.
    fn poll_timeout(&self) -> Option<Instant>;
}
