//! From a rule back to the line of the policy.

use super::{Image, Prefix};
use crate::policy::{Ports, Position};
use egress_common::{addr::Addr, destination::Protocols};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, net::IpAddr};

/// One line of the policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// The key with its table, e.g. `allow.names`.
    pub key: Cow<'static, str>,
    /// The value as written.
    pub text: String,
    /// Where it stands; `None` for policies built in code, and for defaults.
    pub at: Option<Position>,
    /// The addresses it speaks of; `None` for names, loopback and own addresses.
    pub net: Option<Prefix>,
    /// The ports it speaks of.
    pub ports: Ports,
}

impl Origin {
    /// The line without its place in a file.
    pub(super) fn line(&self) -> String {
        format!("{}: {}", self.key, self.text)
    }
}

/// `allow.names: github.com (ci.toml:7:13)`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())?;
        match &self.at {
            Some(at) => write!(f, " ({at})"),
            None => Ok(()),
        }
    }
}

/// The lines behind one compiled rule, never none. Lines of addresses that say the same of the same ports share a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleText {
    pub(super) denies: bool,
    pub(super) origins: Vec<Origin>,
}

impl RuleText {
    /// All of them, sorted by key and text.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// The line that decided about an address: the first that speaks of it and of the port. Without a port (ICMP, later
    /// fragments), or where the rule denied by all its lines together, the first that speaks of the address.
    pub fn decided(&self, addr: IpAddr, protocol: Protocols, port: Option<u16>) -> Option<&Origin> {
        let addr = Addr::from(addr).routed();
        let speaks = |origin: &&Origin| match port {
            None => true,
            Some(port) if self.denies => origin.ports.closes(protocol, port),
            Some(port) => origin.ports.opens(protocol, port),
        };
        let near = || self.origins.iter().filter(|origin| origin.net.is_none_or(|net| net.holds(addr)));
        near().find(speaks).or_else(|| near().next())
    }

    /// A rule of the kernel's whose lines nobody knows.
    pub fn unknown() -> Self {
        Self { denies: false, origins: Vec::new() }
    }
}

impl Image {
    /// The line behind the rule of that tag (an event's `rule_tag`) which decided: see [`RuleText::decided`].
    pub fn explain(&self, tag: u32, addr: IpAddr, protocol: Protocols, port: Option<u16>) -> Option<&Origin> {
        let (_, (_, text)) = self.rules.iter().find(|(rule, _)| rule.tag == tag)?;
        text.decided(addr, protocol, port)
    }
}
