//! What the server is told, and why it refuses.

use super::{
    cache::{Found, Known},
    exchange::UpstreamError,
    name::Name,
    permits::Names,
    rebinding::{Answers, Protected},
};
use crate::policy::Server as Upstream;
use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use thiserror::Error;

/// One policy's view of names, replaced as a whole by [`Server::update`](super::Server::update).
#[derive(Clone)]
pub struct Config {
    /// The policy's names.
    pub names: Arc<dyn Names>,
    /// Passed back with every permit.
    pub generation: u64,
    /// Upstream resolvers in order of preference, at least one. They are protected addresses too.
    pub servers: Vec<Upstream>,
    /// Which private addresses a name may have.
    pub answers: Answers,
    /// Addresses that no name opens.
    pub protected: Protected,
    /// Least life of a permit, without `grace`.
    pub permit_min: Duration,
    /// Greatest life of a permit, without `grace`.
    pub permit_max: Duration,
    /// Added to the life of every permit, for clients that keep an answer longer than its TTL says.
    pub grace: Duration,
    /// Twice as many may come at once; more get SERVFAIL, and ten times more none at all.
    pub queries_per_second: u32,
    /// CNAMEs stay in answers, and their targets may be asked for while the answer lives, A and AAAA alone.
    pub keep_chains: bool,
    /// SVCB and HTTPS are answered, without what leads past this resolver. Otherwise they have no data.
    pub services: bool,
    /// Nothing is kept back: a name or type that the policy denies is resolved after a `WouldDeny` event. A and AAAA are
    /// rebuilt as ever, with closed addresses left in; other types (but HTTPS and SVCB, which stay without data) are handed
    /// on as upstream wrote them. Addresses are permitted as if enforcing: only where rules match, and never closed ones.
    pub observe: bool,
}

impl Config {
    pub(super) fn check(&self, listeners: &Listeners) -> Result<(), DnsError> {
        if self.servers.is_empty() {
            return Err(DnsError::NoServers);
        }
        let addresses = listeners.addresses()?;
        let open = addresses.iter().find(|listener| listener.ip().is_unspecified());
        if let (Some(&listener), false) = (open, listeners.every_address) {
            return Err(DnsError::OpenListener { listener });
        }
        for server in self.servers.iter().map(|server| server.address) {
            if let Some(problem) = problem(server) {
                return Err(DnsError::Upstream { server, problem });
            }
            if addresses.contains(&server) {
                return Err(DnsError::Upstream { server, problem: Problem::OwnListener });
            }
        }
        Ok(())
    }
}

fn problem(server: SocketAddr) -> Option<Problem> {
    let ip = server.ip().to_canonical();
    if server.port() == 0 {
        Some(Problem::PortZero)
    } else if ip.is_unspecified() {
        Some(Problem::Unspecified)
    } else if ip.is_multicast() || ip == IpAddr::from([255; 4]) {
        Some(Problem::Multicast)
    } else if matches!(server, SocketAddr::V6(v6) if v6.scope_id() == 0 && Ipv6Addr::is_unicast_link_local(v6.ip())) {
        Some(Problem::NoInterface)
    } else {
        None
    }
}

/// Sockets that were opened inside the sandbox's network namespace.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Bound, not connected, to a specific address each: answers leave from it.
    pub udp: Vec<UdpSocket>,
    /// Listening.
    pub tcp: Vec<TcpListener>,
    /// They are bound to every address, and answer as the one that was asked: nobody but the sandbox reaches their namespace. UDP
    /// sockets say which one it was (IP_PKTINFO, IPV6_RECVPKTINFO).
    pub every_address: bool,
}

impl Listeners {
    /// The same sockets under new descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            udp: self.udp.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?,
            tcp: self.tcp.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            every_address: self.every_address,
        })
    }

    fn addresses(&self) -> Result<Vec<SocketAddr>, DnsError> {
        let udp = self.udp.iter().map(UdpSocket::local_addr);
        let tcp = self.tcp.iter().map(TcpListener::local_addr);
        udp.chain(tcp).collect::<io::Result<_>>().map_err(|source| DnsError::Listener { source })
    }
}

/// What is wrong with an upstream's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Problem {
    /// Nothing listens there.
    #[error("port 0 is no port: leave the port out for 53")]
    PortZero,
    /// `0.0.0.0` or `::`.
    #[error("the unspecified address is no server: name the address itself, such as 127.0.0.1")]
    Unspecified,
    /// Or broadcast.
    #[error("a multicast or broadcast address is no server")]
    Multicast,
    /// `fe80::/10` without a scope.
    #[error("a link-local address needs its interface: write it as fe80::1%eth0")]
    NoInterface,
    /// It would ask itself.
    #[error("this is the sandbox's own listener: name another server")]
    OwnListener,
}

/// Why there is no name service.
#[derive(Debug, Error)]
pub enum DnsError {
    /// No upstream was given.
    #[error("no DNS server is configured: name one with --dns ADDRESS[:PORT]")]
    NoServers,
    /// Neither file of the host names a server that is not a loopback stub.
    #[error("no DNS server found in {}: name one with --dns ADDRESS[:PORT]", list(.looked))]
    NoHostServers {
        /// Files that were looked at.
        looked: Vec<PathBuf>,
    },
    /// A file of the host is there and cannot be read.
    #[error("cannot read {}: name a DNS server with --dns ADDRESS[:PORT]", path.display())]
    HostServers {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An upstream that cannot be one.
    #[error("DNS server {server}: {problem}")]
    Upstream {
        /// As configured.
        server: SocketAddr,
        /// Why not.
        problem: Problem,
    },
    /// A server is asked over TLS, which is a feature of the build.
    #[error(
        "DNS server {server} is asked over TLS, which this build cannot: build egressd with --features encrypted-upstream"
    )]
    NotBuilt {
        /// As configured.
        server: Upstream,
    },
    /// A server is asked over TLS, and nobody's certificate could be believed.
    #[error(
        "no certificate authorities found on this host: install them (ca-certificates), or name a file by SSL_CERT_FILE"
    )]
    NoAuthorities,
    /// There is nothing to serve on, or only one of UDP and TCP.
    #[error("the DNS server of a sandbox needs at least one UDP and one TCP listener")]
    NoListeners,
    /// A listener cannot be used.
    #[error("DNS listener unusable: is it a bound socket of this sandbox?")]
    Listener {
        /// Why.
        source: io::Error,
    },
    /// It would answer whoever reaches the namespace, and from addresses that the client did not ask.
    #[error("DNS listener {listener} is bound to every address: bind it to one of the sandbox's own")]
    OpenListener {
        /// The listener's address.
        listener: SocketAddr,
    },
    /// The runtime or its thread cannot be started.
    #[error("cannot start the DNS server's thread: are limits on open files and tasks too low?")]
    Start {
        /// Why.
        source: io::Error,
    },
    /// Names that the policy spells out, and that have no address before the start.
    #[error("no address for {}: correct or remove the name, or start without it by --pre-resolve warn", each(.names))]
    Unresolved {
        /// In the order of the policy.
        names: Vec<Unresolved>,
    },
    /// A listener failed while serving: the sandbox has no name service any more.
    #[error("DNS listener {listener} failed: names no longer resolve in the sandbox; attach it again")]
    Serve {
        /// The listener's address.
        listener: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A defect: a part of the server panicked.
    #[error(
        "the DNS server stopped on a defect: names no longer resolve in the sandbox; please report it with the log"
    )]
    Panicked,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

/// A name without an address.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{name} ({why})")]
pub struct Unresolved {
    /// As the policy has it.
    pub name: Name,
    /// What the last attempt came to.
    pub why: NotResolved,
}

/// Why a name has no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NotResolved {
    /// NXDOMAIN.
    #[error("no such name")]
    NoSuchName,
    /// The name is there, without addresses.
    #[error("the name has no address")]
    NoAddress,
    /// Its addresses are such as no name opens, or a deny names a target of its CNAME chain.
    #[error("its addresses are closed to names: see dns.answers and deny.names")]
    Closed,
    /// The CNAME chain does not end.
    #[error("its CNAME chain is too long")]
    TooLong,
    /// No upstream gave a usable answer.
    #[error("{0}")]
    Failed(UpstreamError),
    /// There was no time for more attempts.
    #[error("no answer in time")]
    Late,
}

impl NotResolved {
    pub(super) fn no_address(known: &Known) -> Self {
        match known.found {
            Found::Addresses { .. } => Self::Closed,
            Found::NoData | Found::Services(_) => Self::NoAddress,
            Found::NxDomain => Self::NoSuchName,
            Found::TooLong => Self::TooLong,
        }
    }
}

fn each(names: &[Unresolved]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
