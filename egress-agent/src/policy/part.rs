//! One source (a file, or the flags) lifted: everything it says, each value with its place, nothing defaulted yet.

use super::{
    AddressRule, Amount, Answers, Cnames, Established, Icmp, Local, Mode, NameRule, PreResolve, Rate, Server, Services,
    Unix,
    destination::{Destination, Host},
    error::{Misplaced, PolicyError, Position, ServerError, Warning},
    ports::Ports,
};
use egress_common::{
    addr::{Addr, Class},
    destination::DNS_PORT,
};
use std::{
    collections::{HashMap, hash_map},
    hash::Hash,
    net::IpAddr,
    time::Duration,
};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Written<T> {
    pub(super) value: T,
    pub(super) at: Position,
}

#[derive(Default, Debug)]
pub(super) struct Part {
    pub(super) name: Option<Written<String>>,
    pub(super) mode: Option<Written<Mode>>,
    pub(super) loopback: Option<Written<Local>>,
    pub(super) own: Option<Written<Local>>,
    pub(super) icmp: Option<Written<Icmp>>,
    pub(super) unix: Option<Written<Unix>>,
    pub(super) established: Option<Written<Established>>,
    pub(super) answers: Option<Written<Answers>>,
    pub(super) permit_min: Option<Written<Duration>>,
    pub(super) permit_max: Option<Written<Duration>>,
    pub(super) grace: Option<Written<Duration>>,
    pub(super) queries_per_second: Option<Written<u32>>,
    pub(super) pre_resolve: Option<Written<PreResolve>>,
    pub(super) cname: Option<Written<Cnames>>,
    pub(super) svcb: Option<Written<Services>>,
    pub(super) egress: Option<Written<Rate>>,
    pub(super) ingress: Option<Written<Rate>>,
    pub(super) egress_burst: Option<Written<Duration>>,
    pub(super) budget: Option<Written<Amount>>,
    pub(super) servers: Vec<Written<Server>>,
    pub(super) names: Rules<NameRule>,
    pub(super) proxy: Rules<AddressRule>,
    pub(super) gateway: Rules<AddressRule>,
    pub(super) addresses: Rules<AddressRule>,
    pub(super) inbound: Rules<AddressRule>,
    pub(super) deny_names: Rules<NameRule>,
    pub(super) deny_addresses: Rules<AddressRule>,
    pub(super) warnings: Vec<Warning>,
}

/// Rules in the order of the text, each once. What a rule says is its `Eq` and `Hash`; where it stands is not.
#[derive(Debug)]
pub(super) struct Rules<R> {
    list: Vec<R>,
    known: HashMap<R, Position>,
}

impl<R> Default for Rules<R> {
    fn default() -> Self {
        Self { list: Vec::new(), known: HashMap::new() }
    }
}

impl<R: Clone + Eq + Hash + Placed> Rules<R> {
    /// Appends the rule unless an equal one is there; returns where that one stands.
    pub(super) fn put(&mut self, rule: R) -> Option<Position> {
        match self.known.entry(rule.clone()) {
            hash_map::Entry::Occupied(first) => Some(first.get().clone()),
            hash_map::Entry::Vacant(place) => {
                place.insert(Position::or_code(rule.at()));
                self.list.push(rule);
                None
            }
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        for rule in other.list {
            self.put(rule);
        }
    }

    pub(super) fn into_vec(self) -> Vec<R> {
        self.list
    }
}

/// A rule that knows where it was written.
pub(super) trait Placed {
    fn at(&self) -> Option<&Position>;
}

impl Placed for NameRule {
    fn at(&self) -> Option<&Position> {
        self.at.as_ref()
    }
}

impl Placed for AddressRule {
    fn at(&self) -> Option<&Position> {
        self.at.as_ref()
    }
}

/// Keys whose values are DESTs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum List {
    Names,
    Addresses,
    Proxy,
    Gateway,
    Inbound,
    DenyNames,
    DenyAddresses,
}

impl List {
    /// The key with its table.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Names => "allow.names",
            Self::Addresses => "allow.addresses",
            Self::Proxy => "allow.proxy",
            Self::Gateway => "allow.gateway",
            Self::Inbound => "allow.inbound",
            Self::DenyNames => "deny.names",
            Self::DenyAddresses => "deny.addresses",
        }
    }

    /// Where a DEST belongs that may be a name or an address.
    pub(super) fn of(destination: &Destination, denies: bool) -> Self {
        match (destination.host(), denies) {
            (Host::Name(_), false) => Self::Names,
            (Host::Name(_), true) => Self::DenyNames,
            (Host::Net(_), false) => Self::Addresses,
            (Host::Net(_), true) => Self::DenyAddresses,
        }
    }
}

impl Part {
    /// Adds one DEST to the list it was written under. `unique` refuses a rule that the list has already.
    pub(super) fn add(
        &mut self,
        list: List,
        destination: Destination,
        at: Position,
        unique: bool,
    ) -> Result<(), PolicyError> {
        let key = list.key();
        let text = destination.text().to_owned();
        if let Some(why) = misplaced(list, &destination) {
            return Err(PolicyError::Misplaced { at, key, text, why });
        }
        self.warn(list, &destination, &at);
        let ports = destination.ports();
        let first = match destination.into_host() {
            Host::Name(pattern) => {
                let ports = if list == List::DenyNames { Ports::all() } else { ports };
                let rules = if list == List::DenyNames { &mut self.deny_names } else { &mut self.names };
                rules.put(NameRule { pattern, ports, text: text.clone(), at: Some(at.clone()) })
            }
            Host::Net(net) => {
                let rules = match list {
                    List::Proxy => &mut self.proxy,
                    List::Gateway => &mut self.gateway,
                    List::Inbound => &mut self.inbound,
                    List::DenyAddresses => &mut self.deny_addresses,
                    List::Addresses | List::Names | List::DenyNames => &mut self.addresses,
                };
                rules.put(AddressRule { net, ports, text: text.clone(), at: Some(at.clone()) })
            }
        };
        match first {
            Some(first) if unique => Err(PolicyError::DuplicateRule { at, key, text, first }),
            _ => Ok(()),
        }
    }

    fn warn(&mut self, list: List, destination: &Destination, at: &Position) {
        let (at, text) = (Some(at.clone()), destination.text().to_owned());
        if let Host::Name(pattern) = destination.host() {
            if !text.is_ascii() {
                self.warnings.push(Warning::Mapped { at: at.clone(), text: text.clone(), name: pattern.to_string() });
            }
            if list == List::Names
                && let Some(suffix) = pattern.private_suffix()
            {
                let suffix = suffix.to_owned();
                self.warnings.push(Warning::PrivateSuffix { at: at.clone(), text: text.clone(), suffix });
            }
        }
        let dns = |ports: &Ports| ports.ranges().iter().all(|range| (range.first, range.last) == (DNS_PORT, DNS_PORT));
        if destination.written_ports().is_some_and(dns) && !matches!(list, List::DenyAddresses | List::Inbound) {
            self.warnings.push(Warning::DnsPort { at, text });
        }
    }

    /// Adds one DNS server. `unique` refuses one that stands there already.
    pub(super) fn add_server(
        &mut self,
        key: &'static str,
        text: &str,
        at: Position,
        unique: bool,
    ) -> Result<(), PolicyError> {
        let refuse = |why| PolicyError::Server { at: at.clone(), key, text: text.to_owned(), why };
        let value: Server = text.parse().map_err(&refuse)?;
        if self.servers.iter().any(|server| server.value == value) {
            return if unique { Err(refuse(ServerError::Duplicate)) } else { Ok(()) };
        }
        if value.address.ip().is_loopback() {
            self.warnings.push(Warning::LoopbackServer { at: Some(at.clone()), server: value.address.ip() });
        }
        self.servers.push(Written { value, at });
        Ok(())
    }
}

fn misplaced(list: List, destination: &Destination) -> Option<Misplaced> {
    let ported = destination.written_ports();
    match (destination.host(), list) {
        (Host::Name(_), List::DenyNames) => ported.map(|_| Misplaced::DenyPorts),
        (Host::Name(_), List::Names) => None,
        (Host::Name(_), _) => Some(Misplaced::Name),
        (Host::Net(_), List::Names | List::DenyNames) => Some(Misplaced::Address),
        (Host::Net(net), _) if list != List::DenyAddresses && within_loopback(net) => Some(Misplaced::Loopback),
        (Host::Net(net), List::Proxy | List::Gateway) => {
            if net.prefix_len() != net.max_prefix_len() {
                Some(Misplaced::Network)
            } else if ported.is_none() {
                Some(Misplaced::NoPorts)
            } else {
                None
            }
        }
        (Host::Net(_), _) => None,
    }
}

/// True for networks that hold nothing but loopback, 0.0.0.0 and `::` included.
fn within_loopback(net: &ipnet::IpNet) -> bool {
    let loopback = |ip: IpAddr| Addr::from(ip).routed().class() == Class::Loopback;
    loopback(net.network()) && loopback(net.broadcast()) && (net.prefix_len() >= 8 || net.network().is_ipv6())
}
