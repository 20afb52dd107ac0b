//! A file's tree -> [`Part`]: which keys there are, and what each takes.

use super::{
    Amount, Answers, Bandwidth, Cnames, Established, Icmp, Local, Mode, PreResolve, Rate, Services, Unix,
    destination::{Destination, Host},
    document::{Entry, Node, Text, Value},
    error::{PolicyError, Position},
    part::{List, Part, Written},
};
use std::{str::FromStr, time::Duration};

const TOP: &[&str] = &["version", "name", "mode", "allow", "deny", "dns", "bandwidth", "reload"];
const ALLOW: &[&str] = &["loopback", "self", "proxy", "gateway", "names", "addresses", "inbound", "icmp", "unix"];
/// Octets of an abstract name with the zero in front (unix(7)).
const NAME_AT_MOST: usize = 108;
const DENY: &[&str] = &["names", "addresses"];
const DNS: &[&str] =
    &["servers", "answers", "permit_min", "permit_max", "grace", "pre_resolve", "cname", "svcb", "queries_per_second"];
const BANDWIDTH: &[&str] = &["egress", "ingress", "egress_burst", "budget"];
const RELOAD: &[&str] = &["established"];

/// Longest name of a policy: it stands in every event.
const NAME_MAX: usize = 64;

impl Part {
    /// Reads one file.
    pub(super) fn from_file(text: &Text<'_>, root: Node) -> Result<Self, PolicyError> {
        let mut part = Self::default();
        let read = Read { text };
        for Entry { key, node, .. } in read.table("", TOP, root)? {
            match key.as_str() {
                "version" => read.version(&node)?,
                "name" => part.name = Some(read.name(&node)?),
                "mode" => part.mode = Some(read.choice("mode", &node, MODES)?),
                "allow" => read.allow(&mut part, node)?,
                "deny" => {
                    for Entry { key, node, .. } in read.table("deny", DENY, node)? {
                        let list = if key == "names" { List::DenyNames } else { List::DenyAddresses };
                        read.destinations(&mut part, list, node)?;
                    }
                }
                "dns" => read.dns(&mut part, node)?,
                "bandwidth" => read.bandwidth(&mut part, node)?,
                _ => {
                    for Entry { node, .. } in read.table("reload", RELOAD, node)? {
                        part.established = Some(read.choice("reload.established", &node, ESTABLISHED)?);
                    }
                }
            }
        }
        Ok(part)
    }
}

type Choices<T> = (&'static str, &'static [(&'static str, T)]);
const MODES: Choices<Mode> = ("\"enforce\" or \"observe\"", &[("enforce", Mode::Enforce), ("observe", Mode::Observe)]);
const ESTABLISHED: Choices<Established> =
    ("\"cut\" or \"keep\"", &[("cut", Established::Cut), ("keep", Established::Keep)]);
const ICMP: Choices<Icmp> = ("\"none\" or \"echo\"", &[("none", Icmp::None), ("echo", Icmp::Echo)]);
const SERVICES: Choices<Services> =
    ("\"none\" or \"sanitised\"", &[("none", Services::None), ("sanitised", Services::Sanitised)]);
const CNAMES: Choices<Cnames> = ("\"flatten\" or \"keep\"", &[("flatten", Cnames::Flatten), ("keep", Cnames::Keep)]);
const PRE_RESOLVE: Choices<PreResolve> = (
    "\"warn\", \"require\" or \"off\"",
    &[("warn", PreResolve::Warn), ("require", PreResolve::Require), ("off", PreResolve::Off)],
);

/// Shortest, longest, and both in words.
type Span = (Duration, Duration, &'static str);
const PERMIT: Span = (Duration::from_secs(1), Duration::from_hours(24), "\"1s\" to \"24h\"");
const GRACE: Span = (Duration::ZERO, Duration::from_hours(1), "\"0s\" to \"1h\"");
const BURST: Span = (Bandwidth::BURST.0, Bandwidth::BURST.1, "\"200ms\" to \"1s\"");

struct Read<'a> {
    text: &'a Text<'a>,
}

impl Read<'_> {
    fn at(&self, node: &Node) -> Position {
        self.text.position(node.at)
    }

    fn refuse(&self, key: &'static str, node: &Node, allowed: &'static str) -> PolicyError {
        PolicyError::Value { at: self.at(node), key, found: node.value.describe(), allowed }
    }

    fn written<T>(&self, node: &Node, value: T) -> Written<T> {
        Written { value, at: self.at(node) }
    }

    /// The entries of a table, all of known keys.
    fn table(&self, path: &'static str, keys: &'static [&'static str], node: Node) -> Result<Vec<Entry>, PolicyError> {
        let at = self.at(&node);
        let Value::Table(entries) = node.value else {
            let key = if path.is_empty() { "policy" } else { path };
            return Err(PolicyError::Value { at, key, found: node.value.describe(), allowed: "a table" });
        };
        if let Some(entry) = entries.iter().find(|entry| !keys.contains(&entry.key.as_str())) {
            let dot = if path.is_empty() { "" } else { "." };
            let key = format!("{path}{dot}{}", entry.key.escape_debug());
            return Err(PolicyError::UnknownKey { at: self.text.position(entry.at), key, allowed: keys.join(", ") });
        }
        Ok(entries)
    }

    fn version(&self, node: &Node) -> Result<(), PolicyError> {
        match node.value {
            Value::Integer(1) => Ok(()),
            _ => Err(self.refuse("version", node, "1, the only version that this build reads")),
        }
    }

    fn name(&self, node: &Node) -> Result<Written<String>, PolicyError> {
        let fits = |name: &str| (1..=NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        match &node.value {
            Value::Text(name) if fits(name) => Ok(self.written(node, name.clone())),
            _ => Err(self.refuse("name", node, "a string of 1 to 64 bytes without control characters")),
        }
    }

    fn choice<T: Copy>(&self, key: &'static str, node: &Node, choices: Choices<T>) -> Result<Written<T>, PolicyError> {
        let (allowed, choices) = choices;
        let Value::Text(text) = &node.value else { return Err(self.refuse(key, node, allowed)) };
        match choices.iter().find(|(name, _)| name == text) {
            Some(&(_, value)) => Ok(self.written(node, value)),
            None => Err(self.refuse(key, node, allowed)),
        }
    }

    fn allow(&self, part: &mut Part, node: Node) -> Result<(), PolicyError> {
        for Entry { key, node, .. } in self.table("allow", ALLOW, node)? {
            match key.as_str() {
                "loopback" => part.loopback = Some(self.local("allow.loopback", &node)?),
                "self" => part.own = Some(self.local("allow.self", &node)?),
                "proxy" => self.destinations(part, List::Proxy, node)?,
                "gateway" => self.destinations(part, List::Gateway, node)?,
                "names" => self.destinations(part, List::Names, node)?,
                "addresses" => self.destinations(part, List::Addresses, node)?,
                "inbound" => self.destinations(part, List::Inbound, node)?,
                "icmp" => part.icmp = Some(self.choice("allow.icmp", &node, ICMP)?),
                _ => part.unix = Some(self.unix(&node)?),
            }
        }
        Ok(())
    }

    fn unix(&self, node: &Node) -> Result<Written<Unix>, PolicyError> {
        const KEY: &str = "allow.unix";
        const ALLOWED: &str = "\"any\", \"none\" or a list of abstract names such as \"@name\", of 1 to 107 octets";
        const PATH: &str = "an abstract name such as \"@name\": a path cannot be judged, since links and other directories lead \
             to the same socket; whoever lists names, or writes \"none\", closes every path";
        let value = match &node.value {
            Value::Text(text) if text == "any" => Unix::Any,
            Value::Text(text) if text == "none" => Unix::names(Vec::new()),
            Value::Array(items) => {
                let name = |item: &Node| match &item.value {
                    Value::Text(text) => match text.strip_prefix('@') {
                        Some(name) if (1..NAME_AT_MOST).contains(&name.len()) => Ok(name.to_owned()),
                        None if text.contains('/') => Err(self.refuse(KEY, item, PATH)),
                        _ => Err(self.refuse(KEY, item, ALLOWED)),
                    },
                    _ => Err(self.refuse(KEY, item, ALLOWED)),
                };
                Unix::names(items.iter().map(name).collect::<Result<_, _>>()?)
            }
            _ => return Err(self.refuse(KEY, node, ALLOWED)),
        };
        Ok(self.written(node, value))
    }

    fn dns(&self, part: &mut Part, node: Node) -> Result<(), PolicyError> {
        for Entry { key, node, .. } in self.table("dns", DNS, node)? {
            match key.as_str() {
                "servers" => {
                    for (text, at) in self.strings("dns.servers", node)? {
                        part.add_server("dns.servers", &text, at, true)?;
                    }
                }
                "answers" => part.answers = Some(self.answers(node)?),
                "permit_min" => {
                    part.permit_min = Some(self.duration("dns.permit_min", &node, PERMIT)?);
                }
                "permit_max" => {
                    part.permit_max = Some(self.duration("dns.permit_max", &node, PERMIT)?);
                }
                "grace" => part.grace = Some(self.duration("dns.grace", &node, GRACE)?),
                "queries_per_second" => part.queries_per_second = Some(self.queries(&node)?),
                "svcb" => part.svcb = Some(self.choice("dns.svcb", &node, SERVICES)?),
                "cname" => part.cname = Some(self.choice("dns.cname", &node, CNAMES)?),
                _ => part.pre_resolve = Some(self.choice("dns.pre_resolve", &node, PRE_RESOLVE)?),
            }
        }
        Ok(())
    }

    fn bandwidth(&self, part: &mut Part, node: Node) -> Result<(), PolicyError> {
        for Entry { key, node, .. } in self.table("bandwidth", BANDWIDTH, node)? {
            match key.as_str() {
                "egress" => part.egress = Some(self.parsed("bandwidth.egress", &node, Rate::ALLOWED)?),
                "ingress" => part.ingress = Some(self.parsed("bandwidth.ingress", &node, Rate::ALLOWED)?),
                "egress_burst" => {
                    part.egress_burst = Some(self.duration("bandwidth.egress_burst", &node, BURST)?);
                }
                _ => part.budget = Some(self.parsed("bandwidth.budget", &node, Amount::ALLOWED)?),
            }
        }
        Ok(())
    }

    /// A string that says all there is to say.
    fn parsed<T: FromStr>(
        &self,
        key: &'static str,
        node: &Node,
        allowed: &'static str,
    ) -> Result<Written<T>, PolicyError> {
        let value = match &node.value {
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        Ok(self.written(node, value.ok_or_else(|| self.refuse(key, node, allowed))?))
    }

    fn queries(&self, node: &Node) -> Result<Written<u32>, PolicyError> {
        let rate = match node.value {
            Value::Integer(rate @ 1..=5000) => u32::try_from(rate).ok(),
            _ => None,
        };
        let rate = rate.ok_or_else(|| self.refuse("dns.queries_per_second", node, "a number from 1 to 5000"))?;
        Ok(self.written(node, rate))
    }

    fn duration(
        &self,
        key: &'static str,
        node: &Node,
        (min, max, allowed): Span,
    ) -> Result<Written<Duration>, PolicyError> {
        let parsed = match &node.value {
            Value::Text(text) => humantime::parse_duration(text).ok(),
            _ => None,
        };
        match parsed {
            Some(duration) if (min..=max).contains(&duration) => Ok(self.written(node, duration)),
            _ => Err(self.refuse(key, node, allowed)),
        }
    }

    fn local(&self, key: &'static str, node: &Node) -> Result<Written<Local>, PolicyError> {
        const ALLOWED: &str = "true, false or a list of ports from 1 to 65535";
        let value = match &node.value {
            Value::Boolean(true) => Local::Open,
            Value::Boolean(false) => Local::Closed,
            Value::Array(items) => {
                let mut ports = Vec::with_capacity(items.len());
                for item in items {
                    let Value::Integer(port) = item.value else { return Err(self.refuse(key, item, ALLOWED)) };
                    let port = u16::try_from(port).ok().filter(|&port| port != 0);
                    let port = port.ok_or_else(|| self.refuse(key, item, ALLOWED))?;
                    if let Some(index) = ports.iter().position(|&known| known == port) {
                        let first = items.get(index).map_or(node.at, |item| item.at);
                        let (at, first) = (self.at(item), self.text.position(first));
                        return Err(PolicyError::DuplicateRule { at, key, text: port.to_string(), first });
                    }
                    ports.push(port);
                }
                Local::ports(ports)
            }
            _ => return Err(self.refuse(key, node, ALLOWED)),
        };
        Ok(self.written(node, value))
    }

    fn strings(&self, key: &'static str, node: Node) -> Result<Vec<(String, Position)>, PolicyError> {
        const ALLOWED: &str = "a list of strings";
        let Value::Array(items) = node.value else { return Err(self.refuse(key, &node, ALLOWED)) };
        let string = |item: Node| match item.value {
            Value::Text(text) => Ok((text, self.text.position(item.at))),
            _ => Err(self.refuse(key, &item, ALLOWED)),
        };
        items.into_iter().map(string).collect()
    }

    fn destinations(&self, part: &mut Part, list: List, node: Node) -> Result<(), PolicyError> {
        for (text, at) in self.strings(list.key(), node)? {
            let parsed = text.parse::<Destination>();
            let destination =
                parsed.map_err(|source| PolicyError::Destination { at: at.clone(), key: list.key(), source })?;
            part.add(list, destination, at, true)?;
        }
        Ok(())
    }

    fn answers(&self, node: Node) -> Result<Written<Answers>, PolicyError> {
        const KEY: &str = "dns.answers";
        const ALLOWED: &str = "\"public\", \"any\" or a list of networks such as \"10.2.0.0/16\", without ports";
        let at = self.at(&node);
        let value = match &node.value {
            Value::Text(text) if text == "public" => Answers::Public,
            Value::Text(text) if text == "any" => Answers::Any,
            Value::Array(_) => {
                let mut nets = Vec::new();
                for (text, at) in self.strings(KEY, node)? {
                    let refuse = || PolicyError::Value {
                        at: at.clone(),
                        key: KEY,
                        found: format!("{text:?}"),
                        allowed: ALLOWED,
                    };
                    let parsed = text.parse::<Destination>();
                    let parsed =
                        parsed.map_err(|source| PolicyError::Destination { at: at.clone(), key: KEY, source })?;
                    match parsed.host() {
                        Host::Net(net) if parsed.written_ports().is_none() => nets.push(*net),
                        _ => return Err(refuse()),
                    }
                }
                nets.sort_unstable();
                nets.dedup();
                Answers::nets(nets)
            }
            _ => return Err(self.refuse(KEY, &node, ALLOWED)),
        };
        Ok(Written { value, at })
    }
}
