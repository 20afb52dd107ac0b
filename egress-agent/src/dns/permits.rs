//! The seams to the policy and to the kernel's maps.

use super::name::Name;
pub use crate::policy::NameVerdict;
use std::{net::IpAddr, time::Duration};
use thiserror::Error;

/// The policy's table of names.
pub trait Names: Send + Sync {
    /// Judges a name by its labels, leftmost first, in any ASCII case. No label is empty; one may hold any octet, a dot
    /// included.
    fn verdict(&self, labels: &[&[u8]]) -> NameVerdict;
}

/// Why addresses are not permitted. None of them leaves the agent then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PermitError {
    /// The policy changed while the name was being resolved.
    #[error("the policy changed while the name was being resolved: ask again")]
    StalePolicy,
    /// No room in the map, or in the sandbox's share of it.
    #[error(
        "the sandbox's share of the permit map is full: wait for permits to expire, or name addresses in the policy"
    )]
    Full,
    /// The kernel refused the write.
    #[error(
        "the permit map could not be written (errno {errno}): is the sandbox still attached? `egressd status` shows it"
    )]
    Map {
        /// errno.
        errno: i32,
    },
}

/// What a permit changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// The name did not open one of the addresses already.
    pub new: bool,
    /// Addresses at which a grant of other rules that would have ended first gave way: an address holds four.
    pub evicted: Vec<IpAddr>,
}

/// The kernel's permits of one sandbox.
pub trait Permits: Send + Sync {
    /// Opens the addresses for the ports of `rules`, for `life` from now. All of them or none: an error means that the caller
    /// releases no address.
    ///
    /// Called with the server's policy lock held, so it must neither block for long nor call the server.
    fn permit(
        &self,
        generation: u64,
        name: &Name,
        addresses: &[IpAddr],
        rules: &[usize],
        life: Duration,
    ) -> Result<Written, PermitError>;

    /// The names, as [`Name`] prints them, whose live permits hold the address. Answers PTR queries.
    fn names_of(&self, address: IpAddr) -> Vec<String>;
}
