//! DEST, the one way to write where something may go:
//! `[http://|https://]HOST[:PORTS][/PROTO]`, HOST = name, `*.name`, `.name`, address or CIDR.

use super::{
    name::{NameError, NamePattern},
    ports::{Ports, TooManyRanges},
};
use egress_common::destination::{PortRange, Protocols};
use ipnet::{IpNet, Ipv4Net};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

/// A parsed DEST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    host: Host,
    ports: Option<Ports>,
    text: String,
}

/// The host of a DEST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// A name pattern, to be resolved by the agent.
    Name(NamePattern),
    /// A network; one address is a network of full length. v4-mapped and NAT64 (`64:ff9b::/96`) forms are IPv4 here.
    Net(IpNet),
}

/// Why a text is no DEST. Every message repeats the text and says what to write.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DestinationError {
    /// The empty string.
    #[error("\"\" names nothing: write a destination, e.g. \"example.com\" or \"10.1.0.0/16:5432/tcp\"")]
    Empty,
    /// White space or a control character.
    #[error("{text:?} contains white space: one destination each, without spaces")]
    WhiteSpace {
        /// As written.
        text: String,
    },
    /// Several destinations in one string.
    #[error("{text:?}: a comma separates ports only; write one destination each")]
    Comma {
        /// As written.
        text: String,
    },
    /// A scheme other than http and https.
    #[error("{text:?}: only http:// and https:// are known; write the host and its port, e.g. \"{host}:21/tcp\"")]
    Scheme {
        /// As written.
        text: String,
        /// The host behind the scheme.
        host: String,
    },
    /// A path, query or fragment.
    #[error("{text:?}: rules know hosts and ports, not paths; write {host:?}")]
    Path {
        /// As written.
        text: String,
        /// What is left without the path.
        host: String,
    },
    /// `user@host`. The message leaves out what stands before the @: it may be a password.
    #[error("a destination has no user or password; write {host:?}")]
    User {
        /// What is left without them.
        host: String,
    },
    /// Nothing before the port.
    #[error("{text:?} names no host; write one before the colon, e.g. \"example.com:443\"")]
    NoHost {
        /// As written.
        text: String,
    },
    /// Not a port or range of ports.
    #[error("{text:?}: {port:?} is not a port; PORTS is 443, 80,443, 8000-8010 or *, each from 1 to 65535")]
    Port {
        /// As written.
        text: String,
        /// The part in question.
        port: String,
    },
    /// A range that ends before it begins.
    #[error("{text:?}: the range {first}-{last} ends before it begins; write {last}-{first}")]
    Backwards {
        /// As written.
        text: String,
        /// First port as written.
        first: u16,
        /// Last port as written.
        last: u16,
    },
    /// HTTP without encryption does not run over UDP.
    #[error("{text:?}: http:// is TCP; write /tcp or leave it out")]
    HttpOverUdp {
        /// As written.
        text: String,
    },
    /// An IPv6 address with a port behind it but without brackets, or brackets that do not match.
    #[error("{text:?}: write an IPv6 address or network in brackets before a port, e.g. \"[2001:db8::/48]:443\"")]
    Brackets {
        /// As written.
        text: String,
    },
    /// `fe80::1%eth0`.
    #[error("{text:?}: rules know no interfaces; leave out what follows the %")]
    Zone {
        /// As written.
        text: String,
    },
    /// A prefix length that the address family does not have.
    #[error("{text:?}: {length:?} is not a prefix length; 0 to {max}")]
    PrefixLength {
        /// As written.
        text: String,
        /// The part in question.
        length: String,
        /// Longest of the family.
        max: u8,
    },
    /// An address inside the network instead of its first.
    #[error("{text:?} has bits set behind the prefix; write {network} for the network or {address} for the address")]
    HostBits {
        /// As written.
        text: String,
        /// The network around it.
        network: String,
        /// The address alone.
        address: String,
    },
    /// Too many ranges for one rule.
    #[error("{text:?}: {source}")]
    Ranges {
        /// As written.
        text: String,
        /// How many.
        source: TooManyRanges,
    },
    /// Not a name pattern, and no address either.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Destination {
    /// What is named.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The ports as written; `None` where nothing narrows them.
    pub fn written_ports(&self) -> Option<&Ports> {
        self.ports.as_ref()
    }

    /// The ports that are meant: [`Ports::web`] for a name without, [`Ports::all`] for an address without.
    pub fn ports(&self) -> Ports {
        match (&self.ports, &self.host) {
            (Some(ports), _) => ports.clone(),
            (None, Host::Name(_)) => Ports::web(),
            (None, Host::Net(_)) => Ports::all(),
        }
    }

    /// What is named, by value.
    pub(super) fn into_host(self) -> Host {
        self.host
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Scheme {
    None,
    Http,
    Https,
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let owned = || text.to_owned();
        if text.is_empty() {
            return Err(DestinationError::Empty);
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(DestinationError::WhiteSpace { text: owned() });
        }
        if let Some((_, host)) = text.rsplit_once('@') {
            let host = host.split(['/', '?', '#']).next().unwrap_or_default().to_owned();
            return Err(DestinationError::User { host });
        }
        let (scheme, rest) = scheme(text)?;
        let (rest, protocols) = match rest.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Protocols::TCP),
            Some((rest, "udp")) => (rest, Protocols::UDP),
            _ => (rest, Protocols::ANY),
        };
        if scheme == Scheme::Http && protocols == Protocols::UDP {
            return Err(DestinationError::HttpOverUdp { text: owned() });
        }
        let (host, ports) = host_and_ports(text, rest)?;
        let host = parse_host(text, host)?;
        let ports = match ports {
            Some(ports) => {
                let protocols = if scheme == Scheme::Http { Protocols::TCP } else { protocols };
                Some(union(text, parse_ports(text, ports, protocols)?)?)
            }
            None => default_ports(text, scheme, protocols, &host)?,
        };
        Ok(Self { host, ports, text: owned() })
    }
}

fn scheme(text: &str) -> Result<(Scheme, &str), DestinationError> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok((Scheme::None, text)) };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, rest)),
        "https" => Ok((Scheme::Https, rest)),
        _ => {
            let host = rest.split(['/', ':', '?', '#']).next().filter(|host| !host.is_empty()).unwrap_or("example.com");
            Err(DestinationError::Scheme { text: text.to_owned(), host: host.to_owned() })
        }
    }
}

/// What is left when no ports are written, narrowed by the scheme and the protocol.
fn default_ports(
    text: &str,
    scheme: Scheme,
    protocols: Protocols,
    host: &Host,
) -> Result<Option<Ports>, DestinationError> {
    let single = |port, protocols| PortRange { first: port, last: port, protocols };
    let base = match (scheme, host) {
        (Scheme::Http, _) => vec![single(80, Protocols::TCP)],
        (Scheme::Https, _) => vec![single(443, Protocols::ANY)],
        (Scheme::None, _) if protocols == Protocols::ANY => return Ok(None),
        (Scheme::None, Host::Name(_)) => Ports::web().ranges().to_vec(),
        (Scheme::None, Host::Net(_)) => vec![PortRange::ALL],
    };
    let narrowed = base.into_iter().filter_map(|range| {
        let protocols = Protocols(range.protocols.0 & protocols.0);
        (protocols != Protocols::NONE).then_some(PortRange { protocols, ..range })
    });
    union(text, narrowed.collect()).map(Some)
}

fn union(text: &str, ranges: Vec<PortRange>) -> Result<Ports, DestinationError> {
    Ports::union(ranges).map_err(|source| DestinationError::Ranges { text: text.to_owned(), source })
}

/// Splits at the colon before the ports, IPv6 colons apart. CIDR slashes stay in the host, any other slash is a path.
fn host_and_ports<'a>(text: &str, rest: &'a str) -> Result<(&'a str, Option<&'a str>), DestinationError> {
    let brackets = || DestinationError::Brackets { text: text.to_owned() };
    let (host, ports) = if let Some(inside) = rest.strip_prefix('[') {
        let (host, behind) = inside.split_once(']').ok_or_else(brackets)?;
        if !host.contains(':') {
            return Err(brackets());
        }
        match behind.strip_prefix(':') {
            Some(ports) => (host, Some(ports)),
            None if behind.is_empty() => (host, None),
            None if behind.starts_with('/') && !is_prefix(behind) => return Err(path(text, rest)),
            None => return Err(brackets()),
        }
    } else if rest.matches(':').count() > 1 {
        (rest, None)
    } else if let Some((host, ports)) = rest.split_once(':') {
        (host, Some(ports))
    } else {
        (rest, None)
    };
    let after_port = ports.is_some_and(|ports| ports.contains(['/', '?', '#']));
    let in_host =
        host.contains(['?', '#']) || host.split_once('/').is_some_and(|(addr, _)| addr.parse::<IpAddr>().is_err());
    if after_port || in_host {
        return Err(path(text, rest));
    }
    if ports.is_none() && host.contains(',') {
        return Err(DestinationError::Comma { text: text.to_owned() });
    }
    Ok((host, ports))
}

fn is_prefix(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit()))
}

fn path(text: &str, rest: &str) -> DestinationError {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let scheme = text.find("://").map_or(0, |at| at + 3);
    let host = format!("{}{}", &text[..scheme], &rest[..end]);
    DestinationError::Path { text: text.to_owned(), host }
}

fn parse_host(text: &str, host: &str) -> Result<Host, DestinationError> {
    let owned = || text.to_owned();
    if host.contains('%') && host.contains(':') {
        return Err(DestinationError::Zone { text: owned() });
    }
    let (address, length) = host.split_once('/').map_or((host, None), |(address, length)| (address, Some(length)));
    let Ok(address) = address.parse::<IpAddr>() else {
        if host.contains(':') {
            return Err(DestinationError::Brackets { text: owned() });
        }
        if host.is_empty() {
            return Err(DestinationError::NoHost { text: owned() });
        }
        return Ok(Host::Name(host.parse()?));
    };
    let max = if address.is_ipv4() { 32 } else { 128 };
    let net = match length {
        None => Some(IpNet::from(address)),
        Some(length) => decimal(length).and_then(|length| IpNet::new(address, u8::try_from(length).ok()?).ok()),
    };
    let Some(net) = net else {
        if length.is_some_and(|length| length.contains(':')) {
            return Err(DestinationError::Brackets { text: owned() });
        }
        let length = length.unwrap_or_default().to_owned();
        return Err(DestinationError::PrefixLength { text: owned(), length, max });
    };
    if net.trunc() != net {
        let (network, address) = (net.trunc().to_string(), address.to_string());
        return Err(DestinationError::HostBits { text: owned(), network, address });
    }
    Ok(Host::Net(judged(net)))
}

/// The network whose addresses decide: IPv4 inside the v4-mapped and NAT64 prefixes, as
/// [`egress_common::addr::Addr::routed`] does for one address.
fn judged(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let Some(length) = v6.prefix_len().checked_sub(96) else { return net };
    let mapped = v6.network().to_ipv4_mapped();
    let nat64 = match v6.network().segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    };
    mapped.or(nat64).and_then(|v4| Ipv4Net::new(v4, length).ok()).map_or(net, IpNet::V4)
}

fn parse_ports(text: &str, ports: &str, protocols: Protocols) -> Result<Vec<PortRange>, DestinationError> {
    if ports == "*" {
        return Ok(vec![PortRange { protocols, ..PortRange::ALL }]);
    }
    let bad = |port: &str| DestinationError::Port { text: text.to_owned(), port: port.to_owned() };
    let parse = |port: &str| decimal(port).filter(|&port| port != 0).ok_or(());
    ports
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (parse(first), parse(last)) else { return Err(bad(part)) };
            if last < first {
                return Err(DestinationError::Backwards { text: text.to_owned(), first, last });
            }
            Ok(PortRange { first, last, protocols })
        })
        .collect()
}

/// Digits only: `u16::from_str` would take a plus sign and leading zeros.
fn decimal(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if digits { text.parse().ok() } else { None }
}
