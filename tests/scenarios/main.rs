//! Directed simulations, and slices of the random ones.

mod crashes;
mod disks;
mod logs;
mod planted_bugs;
mod seeds;
