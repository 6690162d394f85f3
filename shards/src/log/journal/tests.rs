//! The journal on a disk that crashes: see [`model`] and [`rig`].

mod checkpoint;
mod model;
mod random;
mod recovery;
mod rig;
mod running;
