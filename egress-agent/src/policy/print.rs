//! [`Policy`] -> canonical TOML.

use super::{
    AddressRule, Answers, Cnames, Established, Icmp, Local, Mode, NameRule, Policy, PreResolve, Server, Services, Unix,
};
use ipnet::IpNet;
use serde::{Serialize, Serializer};

#[derive(Serialize)]
struct File<'a> {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    mode: &'a str,
    allow: AllowTable<'a>,
    deny: DenyTable<'a>,
    dns: DnsTable<'a>,
    bandwidth: BandwidthTable,
    reload: ReloadTable<'a>,
}

#[derive(Serialize)]
struct AllowTable<'a> {
    loopback: LocalValue<'a>,
    #[serde(rename = "self", skip_serializing_if = "Option::is_none")]
    own: Option<LocalValue<'a>>,
    proxy: Vec<&'a str>,
    gateway: Vec<&'a str>,
    names: Vec<&'a str>,
    addresses: Vec<&'a str>,
    inbound: Vec<&'a str>,
    icmp: &'a str,
    unix: UnixValue<'a>,
}

#[derive(Serialize)]
struct DenyTable<'a> {
    names: Vec<&'a str>,
    addresses: Vec<&'a str>,
}

#[derive(Serialize)]
struct DnsTable<'a> {
    servers: &'a [Server],
    answers: AnswersValue<'a>,
    permit_min: String,
    permit_max: String,
    grace: String,
    queries_per_second: u32,
    pre_resolve: &'a str,
    cname: &'a str,
    svcb: &'a str,
}

/// What is not limited has no key.
#[derive(Serialize)]
struct BandwidthTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_burst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
}

#[derive(Serialize)]
struct ReloadTable<'a> {
    established: &'a str,
}

struct LocalValue<'a>(&'a Local);

impl Serialize for LocalValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Local::Closed => serializer.serialize_bool(false),
            Local::Open => serializer.serialize_bool(true),
            Local::Ports(ports) => ports.serialize(serializer),
        }
    }
}

struct UnixValue<'a>(&'a Unix);

impl Serialize for UnixValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Unix::Any => serializer.serialize_str("any"),
            Unix::Names(names) if names.is_empty() => serializer.serialize_str("none"),
            Unix::Names(names) => serializer.collect_seq(names.iter().map(|name| format!("@{name}"))),
        }
    }
}

struct AnswersValue<'a>(&'a Answers);

impl Serialize for AnswersValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Answers::Public => serializer.serialize_str("public"),
            Answers::Any => serializer.serialize_str("any"),
            Answers::Nets(nets) => serializer.collect_seq(nets.iter().map(IpNet::to_string)),
        }
    }
}

impl Policy {
    /// The policy as one file: every key that has a value, rules as they were written. Parsing it gives an equal policy.
    pub fn to_toml(&self) -> String {
        let duration = |value| humantime::format_duration(value).to_string();
        let file = File {
            version: 1,
            name: self.name.as_deref(),
            mode: self.mode.name(),
            allow: AllowTable {
                loopback: LocalValue(&self.allow.loopback),
                own: self.allow.own.as_ref().map(LocalValue),
                proxy: addresses(&self.allow.proxy),
                gateway: addresses(&self.allow.gateway),
                names: names(&self.allow.names),
                addresses: addresses(&self.allow.addresses),
                inbound: addresses(&self.allow.inbound),
                icmp: self.allow.icmp.name(),
                unix: UnixValue(&self.allow.unix),
            },
            deny: DenyTable { names: names(&self.deny.names), addresses: addresses(&self.deny.addresses) },
            dns: DnsTable {
                servers: &self.dns.servers,
                answers: AnswersValue(&self.dns.answers),
                permit_min: duration(self.dns.permit_min),
                permit_max: duration(self.dns.permit_max),
                grace: duration(self.dns.grace),
                queries_per_second: self.dns.queries_per_second,
                pre_resolve: self.dns.pre_resolve.name(),
                cname: self.dns.cname.name(),
                svcb: self.dns.svcb.name(),
            },
            bandwidth: BandwidthTable {
                egress: self.bandwidth.egress.map(|rate| rate.to_string()),
                ingress: self.bandwidth.ingress.map(|rate| rate.to_string()),
                egress_burst: self.bandwidth.egress.map(|_| duration(self.bandwidth.egress_burst)),
                budget: self.bandwidth.budget.map(|amount| amount.to_string()),
            },
            reload: ReloadTable { established: self.established.name() },
        };
        // Strings, numbers and lists of them: there is nothing here that TOML cannot hold.
        toml::to_string(&file).unwrap_or_default()
    }
}

fn addresses(rules: &[AddressRule]) -> Vec<&str> {
    rules.iter().map(|rule| rule.text.as_str()).collect()
}

fn names(rules: &[NameRule]) -> Vec<&str> {
    rules.iter().map(|rule| rule.text.as_str()).collect()
}

impl Mode {
    /// As written in a file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl Icmp {
    /// As written in a file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Echo => "echo",
        }
    }
}

impl Established {
    /// As written in a file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Keep => "keep",
        }
    }
}

impl Services {
    /// As a policy writes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sanitised => "sanitised",
        }
    }
}

impl Cnames {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Flatten => "flatten",
            Self::Keep => "keep",
        }
    }
}

impl PreResolve {
    /// As written in a file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Require => "require",
        }
    }
}
