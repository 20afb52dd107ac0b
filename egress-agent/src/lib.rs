//! egressd: what a sandbox may reach is what its policy names, decided in the kernel.
//!
//! Data flows one way: policy text -> [`policy`] -> [`compile`] -> `datapath` -> kernel maps. A lower module never names a
//! higher one.

pub mod cgroup;
mod clock;
pub mod compile;
pub mod datapath;
pub mod dns;
pub mod level;
mod mountinfo;
pub mod observe;
pub mod policy;
pub mod run;
pub mod sandbox;
pub mod verify;
