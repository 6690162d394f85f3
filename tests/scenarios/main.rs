//! Directed simulations, and slices of the random ones.

mod clusters;
mod controls;
mod crashes;
mod disks;
mod logs;
mod planted_bugs;
mod rafts;
mod seeds;
