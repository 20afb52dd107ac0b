//! Names of maps and programs, once: the eBPF crate must use the same, and the loader checks all of them at load.

/// Maps.
pub mod map {
    /// Cgroup storage: [`crate::sandbox::Identity`].
    pub const IDENTITY: &str = "IDENTITY";
    /// Array: slot -> [`crate::sandbox::Sandbox`].
    pub const SANDBOXES: &str = "SANDBOXES";
    /// Array: index -> [`crate::permit::Rule`].
    pub const RULES: &str = "RULES";
    /// Hash: [`crate::permit::PermitKey`] -> [`crate::permit::Permit`].
    pub const PERMITS: &str = "PERMITS";
    /// LPM trie: [`crate::permit::NetworkKey`] -> [`crate::permit::Network`].
    pub const NETWORKS: &str = "NETWORKS";
    /// Hash: [`crate::permit::PermitKey`] -> u32, the sandbox's own addresses.
    pub const OWN: &str = "OWN";
    /// Hash, shared by every owner on the host: [`crate::verdict::ListenerKey`] -> nonce of the sandbox that it serves.
    pub const LISTENERS: &str = "LISTENERS";
    /// Hash: ifindex -> [`crate::sandbox::OnDevice`].
    pub const DEVICES: &str = "DEVICES";
    /// Hash: [`crate::permit::PermitKey`] -> [`crate::sandbox::Station`], the source addresses that a device may send from.
    pub const SOURCES: &str = "SOURCES";
    /// LRU hash: [`crate::packet::FlowKey`] -> [`crate::verdict::FlowState`].
    pub const FLOWS: &str = "FLOWS";
    /// Socket storage: the DNS server that the application asked for.
    pub const ORIGINS: &str = "ORIGINS";
    /// Socket storage: the rule under which a socket was connected.
    pub const CONNECTED: &str = "CONNECTED";
    /// LRU hash: [`crate::event::ClientKey`] -> [`crate::event::Client`], who sent a DNS query.
    pub const CLIENTS: &str = "CLIENTS";
    /// LRU hash: [`crate::event::DenialKey`] -> [`crate::event::Denial`].
    pub const DENIALS: &str = "DENIALS";
    /// Per-CPU array: slot -> [`crate::event::Counters`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU array: index of a rule / [`crate::event::RULES_AT_ONCE`] -> [`crate::event::PassedByRules`].
    pub const PASSED: &str = "PASSED";
    /// Array: slot -> [`crate::bucket::Limits`].
    pub const LIMITS: &str = "LIMITS";
    /// Array: slot -> [`crate::bucket::Meters`].
    pub const METERS: &str = "METERS";
    /// Socket storage: the last epoch in which the socket had an answer.
    pub const PACED: &str = "PACED";
    /// Ring buffer of [`crate::event::Record`].
    pub const EVENTS: &str = "EVENTS";
}

/// Read-only globals.
pub mod global {
    /// Stands in for cgroup storage under BPF_PROG_TEST_RUN, where it is zero; all zero in production.
    pub const TEST_IDENTITY: &str = "TEST_IDENTITY";
    /// [`crate::kernel::Offsets`].
    pub const OFFSETS: &str = "OFFSETS";
}
