//! Policy text -> valid [`Policy`]. Pure: the only I/O is [`Source::read`]. What comes out holds everything that compile and
//! DNS need; what cannot be enforced does not come out.

mod bandwidth;
mod check;
mod destination;
mod dns;
mod document;
mod error;
mod lift;
mod matching;
mod merge;
mod name;
mod part;
mod ports;
mod print;
mod server;
mod source;

pub use bandwidth::{Amount, AmountError, Bandwidth, Rate, RateError};
pub use destination::{Destination, DestinationError, Host};
pub use dns::{Answers, Cnames, DnsPolicy, PreResolve, Services};
pub use error::{Misplaced, PolicyError, Position, ServerError, Warning};
pub use matching::{NameTable, NameVerdict};
pub use name::{NameError, NamePattern, Reach};
pub use ports::{Ports, TooManyRanges};
pub use server::{Server, Transport};
pub use source::{Flags, Source};

use ipnet::IpNet;
use std::{
    fmt,
    hash::{Hash, Hasher},
    path::Path,
};

/// What one sandbox may reach. Built by parsing, or from [`Policy::deny_all`] in code.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Appears in events and metrics.
    pub name: Option<String>,
    /// Enforce, or only report.
    pub mode: Mode,
    /// What is open.
    pub allow: Allow,
    /// What is closed, whatever the allows say.
    pub deny: Deny,
    /// How names become addresses.
    pub dns: DnsPolicy,
    /// How fast, and how much.
    pub bandwidth: Bandwidth,
    /// What happens to flows that a reload takes the allow from.
    pub established: Established,
    /// What deserves a look. Empty for policies that were built in code.
    pub warnings: Vec<Warning>,
}

/// Whether verdicts bind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// What is not allowed is denied.
    #[default]
    Enforce,
    /// Same verdicts and events, nothing is blocked.
    Observe,
}

/// The `[allow]` table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allow {
    /// Loopback: 127.0.0.0/8 and `::1`. Default: open.
    pub loopback: Local,
    /// Key `self`, the sandbox's own addresses. `None`: open in its own network namespace, closed in the host's.
    pub own: Option<Local>,
    /// Proxies: single addresses with ports.
    pub proxy: Vec<AddressRule>,
    /// Gateways: single addresses with ports.
    pub gateway: Vec<AddressRule>,
    /// Names, which the agent resolves.
    pub names: Vec<NameRule>,
    /// Addresses and networks.
    pub addresses: Vec<AddressRule>,
    /// Peers that may open connections to the sandbox; ports are the sandbox's own that they may reach.
    pub inbound: Vec<AddressRule>,
    /// Echo requests.
    pub icmp: Icmp,
    /// Unix sockets.
    pub unix: Unix,
}

/// Which unix sockets may be reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Unix {
    /// All that the mount and network namespaces hold.
    #[default]
    Any,
    /// Those with these abstract names, without the zero (or `@`) in front, each 1 to 107 octets; sorted. None by its path.
    Names(Vec<String>),
}

/// What of the sandbox's own side is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Local {
    /// Nothing.
    Closed,
    /// Every port.
    Open,
    /// These ports, both protocols; sorted, not empty.
    Ports(Vec<u16>),
}

/// Whether pings may go out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Icmp {
    /// No ICMP of the sandbox's own making.
    #[default]
    None,
    /// Echo requests to any permitted address.
    Echo,
}

/// A network and its ports.
#[derive(Clone, Debug)]
pub struct AddressRule {
    /// The network; IPv4 where it was written v4-mapped or inside `64:ff9b::/96`.
    pub net: IpNet,
    /// Ports at these addresses.
    pub ports: Ports,
    /// As written.
    pub text: String,
    /// Where; `None` for rules built in code.
    pub at: Option<Position>,
}

/// A name pattern and its ports.
#[derive(Clone, Debug)]
pub struct NameRule {
    /// Which names.
    pub pattern: NamePattern,
    /// Ports at the addresses that they resolve to; [`Ports::all`] in [`Deny::names`].
    pub ports: Ports,
    /// As written.
    pub text: String,
    /// Where; `None` for rules built in code.
    pub at: Option<Position>,
}

/// What a rule says; where and how it was written is no part of that.
impl PartialEq for AddressRule {
    fn eq(&self, other: &Self) -> bool {
        (self.net, &self.ports) == (other.net, &other.ports)
    }
}

impl Eq for AddressRule {}

impl Hash for AddressRule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.net, &self.ports).hash(state);
    }
}

/// What a rule says; where and how it was written is no part of that.
impl PartialEq for NameRule {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, &self.ports) == (&other.pattern, &other.ports)
    }
}

impl Eq for NameRule {}

impl Hash for NameRule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.pattern, &self.ports).hash(state);
    }
}

/// The `[deny]` table: beats every allow, whatever the order or length.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Deny {
    /// Names that never resolve.
    pub names: Vec<NameRule>,
    /// Networks that are closed, or some of their ports.
    pub addresses: Vec<AddressRule>,
}

/// What a reload does to flows that lost their allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Established {
    /// They end.
    #[default]
    Cut,
    /// They go on.
    Keep,
}

impl Policy {
    /// The policy of an empty file: no destination is open. Loopback and, in its own network namespace, the sandbox's own
    /// addresses are, as in a file that does not speak of them; set `allow.loopback` and `allow.own` to close them.
    pub fn deny_all() -> Self {
        Self {
            name: None,
            mode: Mode::Enforce,
            allow: Allow {
                loopback: Local::Open,
                own: None,
                proxy: Vec::new(),
                gateway: Vec::new(),
                names: Vec::new(),
                addresses: Vec::new(),
                inbound: Vec::new(),
                icmp: Icmp::None,
                unix: Unix::Any,
            },
            deny: Deny::default(),
            dns: DnsPolicy::default(),
            bandwidth: Bandwidth::default(),
            established: Established::Cut,
            warnings: Vec::new(),
        }
    }

    /// Parses TOML.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        Self::merge([Source::Toml { name: "policy".into(), text: text.into() }])
    }

    /// Parses JSON of the same shape.
    pub fn from_json(text: &str) -> Result<Self, PolicyError> {
        Self::merge([Source::Json { name: "policy".into(), text: text.into() }])
    }

    /// Reads and parses one file.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, PolicyError> {
        Self::merge([Source::read(path)?])
    }

    /// One policy from several files and flags: allows and denies add up, denies win, single values that two files set
    /// differently are an error. No source at all gives [`Policy::deny_all`].
    pub fn merge(sources: impl IntoIterator<Item = Source>) -> Result<Self, PolicyError> {
        merge::merge(sources)
    }

    /// Opens a destination.
    #[must_use]
    pub fn allow(mut self, destination: Destination) -> Self {
        let (text, ports) = (destination.text().to_owned(), destination.ports());
        match destination.into_host() {
            Host::Name(pattern) => self.allow.names.push(NameRule { pattern, ports, text, at: None }),
            Host::Net(net) => self.allow.addresses.push(AddressRule { net, ports, text, at: None }),
        }
        self
    }

    /// Closes a destination. A name with ports makes [`Policy::check`] fail: a denied name is closed whole.
    #[must_use]
    pub fn deny(mut self, destination: Destination) -> Self {
        let text = destination.text().to_owned();
        let ports = destination.written_ports().cloned().unwrap_or_else(Ports::all);
        match destination.into_host() {
            Host::Name(pattern) => self.deny.names.push(NameRule { pattern, ports, text, at: None }),
            Host::Net(net) => self.deny.addresses.push(AddressRule { net, ports, text, at: None }),
        }
        self
    }
}

/// Equal where they say the same, wherever that was written.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        let warnings =
            |a: &[Warning], b: &[Warning]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.says_the_same(b));
        (&self.name, self.mode, &self.allow, &self.deny, &self.dns, self.bandwidth, self.established)
            == (&other.name, other.mode, &other.allow, &other.deny, &other.dns, other.bandwidth, other.established)
            && warnings(&self.warnings, &other.warnings)
    }
}

impl Eq for Policy {}

impl Local {
    /// These ports; nothing where the list is empty.
    pub fn ports(mut ports: Vec<u16>) -> Self {
        ports.sort_unstable();
        ports.dedup();
        if ports.is_empty() { Self::Closed } else { Self::Ports(ports) }
    }

    /// Lists add up; anything else must agree.
    fn union(&self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Ports(ours), Self::Ports(theirs)) => Some(Self::ports(ours.iter().copied().chain(theirs).collect())),
            (ours, theirs) => (*ours == theirs).then_some(theirs),
        }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("false"),
            Self::Open => f.write_str("true"),
            Self::Ports(ports) => write!(f, "{ports:?}"),
        }
    }
}

impl Unix {
    /// These abstract names; none at all where the list is empty.
    pub fn names(mut names: Vec<String>) -> Self {
        names.sort_unstable();
        names.dedup();
        Self::Names(names)
    }

    /// Lists add up; anything else must agree.
    fn union(&self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Names(ours), Self::Names(theirs)) if !ours.is_empty() && !theirs.is_empty() => {
                Some(Self::names(ours.iter().cloned().chain(theirs).collect()))
            }
            (ours, theirs) => (*ours == theirs).then_some(theirs),
        }
    }
}

impl fmt::Display for Unix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("\"any\""),
            Self::Names(names) if names.is_empty() => f.write_str("\"none\""),
            Self::Names(names) => f.debug_list().entries(names.iter().map(|name| format!("@{name}"))).finish(),
        }
    }
}

impl Answers {
    /// Public addresses and these networks.
    pub fn nets(mut nets: Vec<IpNet>) -> Self {
        nets.sort_unstable();
        nets.dedup();
        if nets.is_empty() { Self::Public } else { Self::Nets(nets) }
    }

    /// Lists add up; anything else must agree.
    fn union(&self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Nets(ours), Self::Nets(theirs)) => Some(Self::nets(ours.iter().copied().chain(theirs).collect())),
            (ours, theirs) => (*ours == theirs).then_some(theirs),
        }
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("\"public\""),
            Self::Any => f.write_str("\"any\""),
            Self::Nets(nets) => f.debug_list().entries(nets.iter().map(ToString::to_string)).finish(),
        }
    }
}

#[cfg(test)]
mod tests;
