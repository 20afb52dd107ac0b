//! What compile must know of the host, as a value.

use std::{collections::BTreeSet, net::IpAddr};

/// The host's side of a sandbox, as it is now. Whoever watches the host compiles again when it changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The sandbox has a network namespace of its own.
    pub own_netns: bool,
    /// Cookie of the namespace in which the DNS listener stands.
    pub netns_cookie: u64,
    /// Every address of the sandbox's namespace. Where that is the host's, they are the host's own: no network of the policy
    /// opens them, only a line that names the very address.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Addresses that no name may lead to: the host's own where the sandbox shares its namespace, upstream resolvers. For the
    /// filter of DNS answers; the image does not depend on them.
    pub protected: BTreeSet<IpAddr>,
    /// Port of the sandbox's DNS listener; 0 = none, port 53 is denied.
    pub listener_port: u16,
    /// CAP_NET_RAW was kept, and a device judges what raw sockets send.
    pub raw_sockets: bool,
}
