//! A DNS server as a policy names it: `ADDRESS[:PORT]`, `tls://ADDRESS[:PORT]#NAME` (RFC 7858) or
//! `https://ADDRESS[:PORT]/PATH#NAME` (RFC 8484). NAME is what its certificate bears: nobody is asked for its address.

use super::error::ServerError;
use egress_common::destination::DNS_PORT;
use serde::{Serialize, Serializer};
use std::{
    fmt,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    str::FromStr,
};

const TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;

/// Whom to ask, and how.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is asked.
    pub transport: Transport,
}

/// How a server is asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// UDP, and TCP where that is needed.
    Plain,
    /// DNS over TLS.
    Tls {
        /// What the certificate bears.
        name: String,
    },
    /// DNS over HTTPS.
    Https {
        /// What the certificate bears.
        name: String,
        /// Of the resource, with its slash.
        path: String,
    },
}

impl From<SocketAddr> for Server {
    fn from(address: SocketAddr) -> Self {
        Self { address, transport: Transport::Plain }
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(address(text, DNS_PORT)?.into()) };
        let (rest, name) = rest.split_once('#').ok_or(ServerError::NoName)?;
        let name = Some(name.to_owned()).filter(|name| is_host(name)).ok_or(ServerError::NoName)?;
        let server = match (scheme, rest.split_once('/')) {
            ("tls", None) => Self { address: address(rest, TLS_PORT)?, transport: Transport::Tls { name } },
            ("https", Some((host, path))) => {
                let path = Some(format!("/{path}")).filter(|path| path.bytes().all(|octet| octet.is_ascii_graphic()));
                let path = path.ok_or(ServerError::NotAnAddress)?;
                Self { address: address(host, HTTPS_PORT)?, transport: Transport::Https { name, path } }
            }
            _ => return Err(ServerError::NotAnAddress),
        };
        if cfg!(feature = "encrypted-upstream") { Ok(server) } else { Err(ServerError::NotBuilt) }
    }
}

/// A name as certificates bear it.
fn is_host(name: &str) -> bool {
    name.split('.').all(|label| {
        (1..=63).contains(&label.len()) && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
    }) && name.len() <= 253
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, transport } = self;
        match transport {
            Transport::Plain => write!(f, "{address}"),
            Transport::Tls { name } => write!(f, "tls://{address}#{name}"),
            Transport::Https { name, path } => write!(f, "https://{address}{path}#{name}"),
        }
    }
}

impl Serialize for Server {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn address(text: &str, port: u16) -> Result<SocketAddr, ServerError> {
    let (text, scope) = match text.split_once('%') {
        None => (text.to_owned(), None),
        Some((address, rest)) => {
            let end =
                rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')).unwrap_or(rest.len());
            let (scope, behind) = rest.split_at(end);
            (format!("{address}{behind}"), Some(scope.to_owned()))
        }
    };
    let address = if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>()
        && text.starts_with('[') == text.ends_with(']')
        && (ip.is_ipv6() || !text.starts_with('['))
    {
        SocketAddr::new(ip, port)
    } else {
        let split = text.rsplit_once(':').filter(|(host, _)| host.ends_with(']') || !host.contains(':'));
        let (host, port) = split.ok_or(ServerError::NotAnAddress)?;
        let plain = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let ip = match plain {
            Some(host) => IpAddr::V6(host.parse().map_err(|_| ServerError::NotAnAddress)?),
            None => IpAddr::V4(host.parse().map_err(|_| ServerError::NotAnAddress)?),
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
        let port = port.parse().ok().filter(|_| digits).ok_or(ServerError::Port)?;
        SocketAddr::new(ip, port)
    };
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    match address.ip() {
        ip if ip.is_unspecified() => return Err(ServerError::Unspecified),
        ip if ip.is_multicast() => return Err(ServerError::Multicast),
        IpAddr::V4(ip) if ip.octets()[0] >= 240 || ip.octets()[0] == 0 => return Err(ServerError::Multicast),
        _ => {}
    }
    match (address, scope) {
        (SocketAddr::V6(v6), Some(scope)) if v6.ip().is_unicast_link_local() => {
            let index = scope.parse().ok().filter(|&index| index != 0).ok_or(ServerError::Scope)?;
            Ok(SocketAddrV6::new(*v6.ip(), v6.port(), 0, index).into())
        }
        (_, Some(_)) => Err(ServerError::Scope),
        (SocketAddr::V6(v6), None) if v6.ip().is_unicast_link_local() => Err(ServerError::NoScope),
        (address, None) => Ok(address),
    }
}
