//! Directed simulations, and slices of the random ones.

mod planted_bugs;
mod seeds;
