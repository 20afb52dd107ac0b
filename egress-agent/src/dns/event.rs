//! What the name half tells: denials, permits, and failures of what it depends on.

use super::{exchange::UpstreamError, name::Name};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The process behind a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// Process id in the agent's PID namespace.
    pub pid: u32,
    /// User id in the agent's user namespace.
    pub uid: u32,
    /// The kernel's short name of the process.
    pub comm: String,
}

/// Finds the process behind a query. Asked for denials only, from the receive loop: it must not block.
pub trait Clients: Send + Sync {
    /// The owner of the sandbox's socket that queries from `peer_port` by `protocol` (IANA: 6 = TCP, 17 = UDP).
    fn client(&self, protocol: u8, peer_port: u16) -> Option<Client>;
}

/// Why a name got no address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A deny rule names it.
    DenyRule,
    /// No rule names it.
    Unlisted,
    /// No rule names it, but one names something below it.
    Ancestor,
    /// No rule names it, and no resolver outside would know it: a single label, `.local` and the like.
    Local,
    /// It exists to lead clients past this resolver.
    Canary,
    /// A deny rule names this target of its CNAME chain.
    Hop(Box<Name>),
    /// A wildcard matches it, but it is longer or deeper than names are.
    Outsized,
}

/// A name that was not allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denial {
    /// The name asked for.
    pub name: Name,
    /// QTYPE by number (IANA).
    pub qtype: u16,
    /// Who asked, where known.
    pub client: Option<Client>,
    /// Index of the deny rule, where one decided.
    pub rule: Option<usize>,
    /// Why.
    pub reason: Reason,
}

/// One thing that happened. Denials are not folded: whoever listens counts and limits them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DnsEvent {
    /// Enforced: the client was told that there is no such name, or no such data.
    Denied(Denial),
    /// Observed: the name was resolved although the policy would deny it.
    WouldDeny(Denial),
    /// The addresses are in the map and go out in the answer. Not told again while the name's permits live.
    Permitted {
        /// The name asked for, not the end of its CNAME chain.
        name: Name,
        /// What the answer carries.
        addresses: Vec<IpAddr>,
        /// Indices of the allow rules that name it.
        rules: Vec<usize>,
        /// Until the permit ends.
        life: Duration,
        /// The upstream that said so.
        server: SocketAddr,
    },
    /// An address held as many grants as it can. The one that would have ended first gave way to this name's: whoever was
    /// led there by another name may be refused until it asks again.
    Evicted {
        /// The name asked for.
        name: Name,
        /// An address of its answer.
        address: IpAddr,
    },
    /// Upstream has no such name, though a rule has.
    NoSuchName {
        /// The name asked for.
        name: Name,
    },
    /// An address was taken out of an answer: no name may open it.
    Filtered {
        /// The name asked for.
        name: Name,
        /// What upstream answered.
        address: IpAddr,
    },
    /// No upstream gave a usable answer, and the client got an old answer, SERVFAIL, or, for AAAA beside a live A,
    /// no data.
    UpstreamFailed {
        /// The name asked for.
        name: Name,
        /// QTYPE by number (IANA).
        qtype: u16,
        /// All that were configured.
        servers: Vec<SocketAddr>,
        /// The last failure.
        error: UpstreamError,
    },
    /// The addresses could not be permitted, and the client got SERVFAIL.
    PermitFailed {
        /// The name asked for.
        name: Name,
        /// Why.
        error: super::PermitError,
    },
    /// New names below a wildcard beyond what leaves in a minute, since the last event of this kind; at most one such event
    /// a second for each wildcard. A sign of a tunnel: the names themselves carry data out.
    Tunnel {
        /// What the wildcard stands below.
        base: Name,
        /// Answered SERVFAIL.
        refused: u64,
    },
    /// Queries beyond the budget since the last event of this kind; at most one such event a second.
    Budget {
        /// Answered SERVFAIL.
        refused: u64,
        /// Not answered at all.
        dropped: u64,
    },
}

/// Where events go. Called from the server's thread: it must not block.
pub trait DnsEvents: Send + Sync {
    /// Takes one event.
    fn dns_event(&self, event: DnsEvent);
}
