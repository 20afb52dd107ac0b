//! What can be wrong with a policy, and where it stands.

use super::destination::DestinationError;
use serde::{Deserialize, Serialize};
use std::{fmt, io, net::IpAddr, path::PathBuf, sync::Arc};

/// Where something was written: a file with line and column, or a flag.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    source: Arc<str>,
    line: u32,
    column: u32,
}

impl Position {
    pub(super) fn new(source: Arc<str>, line: u32, column: u32) -> Self {
        Self { source, line, column }
    }

    /// Something that is one word by itself, such as `--allow example.com`.
    pub(super) fn whole(source: &str) -> Self {
        Self { source: source.into(), line: 0, column: 0 }
    }

    /// For rules that were built in code.
    pub(super) fn or_code(at: Option<&Self>) -> Self {
        at.cloned().unwrap_or_else(|| Self::whole("policy"))
    }

    /// Name of the file, or the flag.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Line from 1; 0 for a flag.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Column in characters from 1; 0 for a flag.
    pub fn column(&self) -> u32 {
        self.column
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// A policy that is refused, whole. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("{}: cannot read the policy: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither TOML nor JSON.
    #[error("{at}: {message}")]
    Syntax {
        /// Where.
        at: Position,
        /// What the parser says.
        message: String,
    },
    /// A key that no version of the format knows at this place.
    #[error("{at}: unknown key {key}; allowed here: {allowed}")]
    UnknownKey {
        /// Where.
        at: Position,
        /// The key with its table.
        key: String,
        /// The keys of that table.
        allowed: String,
    },
    /// The same key twice.
    #[error("{at}: {key} stands here and at {first}; keep one")]
    DuplicateKey {
        /// The second.
        at: Position,
        /// The key.
        key: String,
        /// The first.
        first: Position,
    },
    /// A value of the wrong type or outside of its range.
    #[error("{at}: {key}: {found}, but allowed is {allowed}")]
    Value {
        /// Where.
        at: Position,
        /// The key with its table.
        key: &'static str,
        /// The value.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A DEST that cannot be parsed.
    #[error("{at}: {key}: {source}")]
    Destination {
        /// Where.
        at: Position,
        /// The key with its table; empty for a flag, whose name is its position.
        key: &'static str,
        /// Why.
        source: DestinationError,
    },
    /// A DEST of another kind than the key takes.
    #[error("{at}: {key}: {text:?} {why}")]
    Misplaced {
        /// Where.
        at: Position,
        /// The key with its table.
        key: &'static str,
        /// As written.
        text: String,
        /// What is wrong with it here, and what to write instead.
        why: Misplaced,
    },
    /// A DNS server that cannot be one.
    #[error("{at}: {key}: {text:?} {why}")]
    Server {
        /// Where.
        at: Position,
        /// The key with its table.
        key: &'static str,
        /// As written.
        text: String,
        /// Why.
        why: ServerError,
    },
    /// The same rule twice in one file.
    #[error("{at}: {key}: {text:?} says the same as the line at {first}; keep one")]
    DuplicateRule {
        /// The second.
        at: Position,
        /// The key with its table.
        key: &'static str,
        /// As written.
        text: String,
        /// The first.
        first: Position,
    },
    /// An allow that can never open anything.
    #[error(
        "{at}: {key}: {text:?} is closed whole by {deny} ({deny_at}), since a deny beats every allow; drop one of the two"
    )]
    Covered {
        /// The allow.
        at: Position,
        /// Its key.
        key: &'static str,
        /// The allow as written.
        text: String,
        /// The deny as written, with its key.
        deny: String,
        /// Where it stands.
        deny_at: Position,
    },
    /// A deny that spans loopback, which addresses do not judge.
    #[error(
        "{at}: deny.addresses: {text:?} spans loopback, which allow.loopback opens; write loopback = false (or narrow the deny)"
    )]
    DenyOfLoopback {
        /// The deny.
        at: Position,
        /// As written.
        text: String,
    },
    /// Two files that disagree about one value.
    #[error("{key} is {first} at {first_at} and {second} at {second_at}; two files that are used together must agree")]
    Conflict {
        /// The key with its table.
        key: &'static str,
        /// First value.
        first: String,
        /// Where it stands.
        first_at: Position,
        /// Second value.
        second: String,
        /// Where it stands.
        second_at: Position,
    },
}

/// Why a DEST does not belong under its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misplaced {
    /// A name under `addresses`, `proxy`, `gateway`, `inbound` or `deny.addresses`.
    #[error("is a name, and this key takes addresses; put it into names")]
    Name,
    /// An address under `names` or `deny.names`.
    #[error("is an address, and this key takes names; put it into addresses")]
    Address,
    /// Ports behind a denied name.
    #[error(
        "has ports: a denied name is closed whole; leave out scheme, ports and protocol, or deny an address with ports"
    )]
    DenyPorts,
    /// A network for a proxy or gateway.
    #[error("is a network: a proxy or gateway is one address; put networks into addresses")]
    Network,
    /// A proxy or gateway whose ports are not written.
    #[error("has no ports: write them, e.g. \"198.51.100.80:3128\"")]
    NoPorts,
    /// An address of loopback, which `loopback` alone opens.
    #[error("is loopback: allow.loopback says what is open there, e.g. loopback = [8080]")]
    Loopback,
}

/// Why an address is no DNS server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerError {
    /// Not an address at all.
    #[error(
        "is no address; a DNS server is \"198.51.100.53\", \"2001:db8::53\" or one of them with a port: \"[2001:db8::53]:53\""
    )]
    NotAnAddress,
    /// Port 0 or above 65535.
    #[error("has no valid port: 1 to 65535")]
    Port,
    /// Multicast or broadcast.
    #[error("is a multicast, broadcast or reserved address; a DNS server is one host")]
    Multicast,
    /// 0.0.0.0 or `::`.
    #[error("is the unspecified address; write the server's own")]
    Unspecified,
    /// `fe80::/10` without the interface.
    #[error(
        "is link-local and says no interface; write its index behind a %, e.g. \"fe80::53%2\" (`ip link` lists them)"
    )]
    NoScope,
    /// A scope that is no interface index, or stands where none belongs.
    #[error("has a scope that is no interface index; write the number of `ip link`, for link-local addresses only")]
    Scope,
    /// `tls://` or `https://` without the name that the certificate bears.
    #[error(
        "says no name behind a #; write \"tls://198.51.100.53#dns.example\" or \"https://198.51.100.53/dns-query#dns.example\""
    )]
    NoName,
    /// TLS and HTTPS are a feature of the build.
    #[error("is asked over TLS, which this build cannot: build egressd with --features encrypted-upstream")]
    NotBuilt,
    /// The same server twice.
    #[error("is listed twice; keep one")]
    Duplicate,
}

/// Something that is allowed and worth a look. Does not stop anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// A wildcard over a suffix of the public suffix list's private section: strangers have names under it.
    PrivateSuffix {
        /// Where.
        at: Option<Position>,
        /// As written.
        text: String,
        /// The suffix.
        suffix: String,
    },
    /// A name that is not ASCII: what DNS will see.
    Mapped {
        /// Where.
        at: Option<Position>,
        /// As written.
        text: String,
        /// As matched.
        name: String,
    },
    /// A rule for port 53 alone.
    DnsPort {
        /// Where.
        at: Option<Position>,
        /// As written.
        text: String,
    },
    /// A DNS server on loopback: it must be one that egressd itself can reach.
    LoopbackServer {
        /// Where.
        at: Option<Position>,
        /// The server.
        server: IpAddr,
    },
}

impl Warning {
    /// True where both say the same, wherever they were written.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let without = |warning: &Self| {
            let mut warning = warning.clone();
            match &mut warning {
                Self::PrivateSuffix { at, .. }
                | Self::Mapped { at, .. }
                | Self::DnsPort { at, .. }
                | Self::LoopbackServer { at, .. } => *at = None,
            }
            warning
        };
        without(self) == without(other)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |at: &Option<Position>| Position::or_code(at.as_ref());
        match self {
            Self::PrivateSuffix { at: place, text, suffix } => {
                let place = at(place);
                write!(
                    f,
                    "{place}: {text:?} opens names of everybody who has one under {suffix}; name yours if you can"
                )
            }
            Self::Mapped { at: place, text, name } => write!(f, "{}: {text:?} is matched as {name}", at(place)),
            Self::DnsPort { at: place, text } => {
                let place = at(place);
                write!(f, "{place}: {text:?} opens nothing: port 53 always goes to the agent, which asks dns.servers")
            }
            Self::LoopbackServer { at: place, server } => {
                let place = at(place);
                write!(
                    f,
                    "{place}: DNS server {server} is loopback: it is asked from where egressd runs, not from the sandbox"
                )
            }
        }
    }
}
