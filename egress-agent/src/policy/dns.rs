//! What a policy says of the name service.

use super::Server;
use ipnet::IpNet;
use std::time::Duration;

/// The `[dns]` table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsPolicy {
    /// Upstream servers, in the order of preference. Empty: the host's, as egressd sees them.
    pub servers: Vec<Server>,
    /// Which addresses an answer may hold.
    pub answers: Answers,
    /// Shortest life of a permit.
    pub permit_min: Duration,
    /// Longest life of a permit.
    pub permit_max: Duration,
    /// Added to a permit's life.
    pub grace: Duration,
    /// Budget of one sandbox, 1 to 5000.
    pub queries_per_second: u32,
    /// Whether exact names are resolved at attach.
    pub pre_resolve: PreResolve,
    /// What becomes of the CNAME records of an answer.
    pub cname: Cnames,
    /// What becomes of SVCB and HTTPS records.
    pub svcb: Services,
}

impl Default for DnsPolicy {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            answers: Answers::Public,
            permit_min: Duration::from_secs(30),
            permit_max: Duration::from_hours(1),
            grace: Duration::from_secs(120),
            queries_per_second: 500,
            pre_resolve: PreResolve::Warn,
            cname: Cnames::Flatten,
            svcb: Services::None,
        }
    }
}

/// The rebinding filter: which addresses an answer may hold. Never loopback, link-local, metadata, multicast or protected
/// addresses, whatever stands here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Answers {
    /// Public addresses.
    #[default]
    Public,
    /// Private ones too.
    Any,
    /// Public addresses and these networks; sorted, not empty.
    Nets(Vec<IpNet>),
}

/// Whether exact names are resolved before the first question, so that it is answered at once. Only asking opens an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PreResolve {
    /// No.
    Off,
    /// In the background; those without an address are named in the log.
    #[default]
    Warn,
    /// Attach fails where one does not resolve.
    Require,
}

/// What becomes of SVCB and HTTPS records (RFC 9460).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Services {
    /// A name has none.
    #[default]
    None,
    /// Which protocols a name speaks; no hints of addresses, no ports, no other targets, no ECH.
    Sanitised,
}

/// What becomes of the CNAME records of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cnames {
    /// The addresses stand at the name that was asked for: no target needs a rule.
    #[default]
    Flatten,
    /// They stay, and their targets may be asked for while the answer lives: for clients that want the canonical name, and
    /// for resolvers inside the sandbox that ask for each link.
    Keep,
}
