//! One turn of a shard's loop, as every world drives it: a batch of inputs goes in. What comes out is the world's affair.

use std::collections::VecDeque;

use highwater_shards::front::Front;
use highwater_shards::log::disk::OpNo;
use highwater_shards::shard::{Input, Machine};
use highwater_shards::time::Instant;

use crate::disk::SimDisk;
use crate::rng::Rng;

/// What waits for the next turn.
pub enum Item<F: Front> {
    Input(Input<F>),
    /// The disk does an operation when the shard hears of it, so that nothing is promised before.
    Disk(OpNo),
}

/// Hands the machine what is there, mostly all of it and now and then a part, after a timeout if one is due. `see` is shown
/// each input first.
pub fn take<M: Machine>(
    machine: &mut M,
    disk: &mut SimDisk,
    inbox: &mut VecDeque<Item<M::Front>>,
    clock: Instant,
    rng: &mut Rng,
    mut see: impl FnMut(&Input<M::Front>),
) {
    let all = inbox.len();
    let batch = if all > 1 && rng.chance(200) { 1 + rng.index(all) } else { all };
    if machine.poll_timeout().is_some_and(|t| t <= clock) {
        see(&Input::Timeout);
        machine.handle(clock, Input::Timeout);
    }
    for item in inbox.drain(..batch) {
        let input = match item {
            Item::Input(input) => input,
            Item::Disk(op) => Input::Disk(disk.complete(op)),
        };
        see(&input);
        machine.handle(clock, input);
    }
}
