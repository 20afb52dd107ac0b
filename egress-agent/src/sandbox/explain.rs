//! `egressd explain`: the verdict on a destination, asked of the same function over the same maps as in the kernel.

use super::{Directories, error::Error, looked::judge, permits::now_ns, record::Record, target::Which};
use crate::{
    datapath::tables::Tables,
    observe::{
        event::Verdict,
        names::{Named as _, protocol_name},
        permits_file,
    },
    policy::{Destination, Host, Mode, NameTable, NameVerdict, Policy},
};
use egress_common::{
    addr::Addr, destination::Protocols, packet::protocol, permit::NEVER_NS, question::Path, verdict::Reason,
};
use serde::{Deserialize, Serialize};
use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

/// What holds for one address of a destination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// As asked, with the port and protocol that this is about.
    pub destination: String,
    /// The address; none where a name has no permit now.
    pub address: Option<IpAddr>,
    /// Allowed or denied.
    pub verdict: Verdict,
    /// A word of `observe::names`.
    pub reason: String,
    /// The policy line.
    pub rule: Option<String>,
    /// When the permit ends; none where it does not.
    #[serde(with = "humantime_option")]
    pub expires: Option<SystemTime>,
    /// Other names that share the address.
    pub names: Vec<String>,
}

mod humantime_option {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use std::time::SystemTime;

    #[expect(clippy::ref_option, reason = "the form that serde asks for")]
    pub(super) fn serialize<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| humantime::format_rfc3339_millis(time).to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| humantime::parse_rfc3339(&text).map_err(D::Error::custom)).transpose()
    }
}

/// What holds for a destination in a sandbox, or in the only one that there is.
pub fn explain(
    directories: &Directories,
    which: Option<&Which>,
    dest: &Destination,
) -> Result<Vec<Explanation>, Error> {
    let record = Record::of(directories, which)?;
    let (_, tables) = record.open_maps(directories)?;
    let policy = Policy::from_toml(&record.policy)?;
    let directory = Record::directory(directories, &record.name);
    let names = permits_file::read(&directory).map_err(Error::file(&directory, "read"))?;
    let asking = Asking { record: &record, policy: &policy, tables: &tables, names: &names };
    match dest.host() {
        Host::Name(pattern) => asking.name(dest, pattern.base()),
        Host::Net(net) => asking.address(dest, net.addr()).map(|explanations| explanations.into_iter().collect()),
    }
}

struct Asking<'a> {
    record: &'a Record,
    policy: &'a Policy,
    tables: &'a Tables,
    names: &'a [permits_file::Learned],
}

impl Asking<'_> {
    fn name(&self, dest: &Destination, name: &str) -> Result<Vec<Explanation>, Error> {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        let allow = |rule: &usize| self.policy.allow.names.get(*rule).map(|rule| rule.text.clone());
        let (verdict, reason, rule) = match NameTable::new(self.policy).verdict(&labels) {
            NameVerdict::Deny { rule } => {
                (self.denial(), "denied_by_rule", self.policy.deny.names.get(rule).map(|rule| rule.text.clone()))
            }
            NameVerdict::Allow { rules, .. } => {
                let learned: Vec<IpAddr> =
                    self.names.iter().filter(|learned| learned.name == name).map(|learned| learned.address).collect();
                if learned.is_empty() {
                    (Verdict::Allow, "not_resolved_yet", rules.first().and_then(allow))
                } else {
                    return learned
                        .into_iter()
                        .map(|address| self.address(dest, address))
                        .collect::<Result<Vec<_>, _>>()
                        .map(|all| all.into_iter().flatten().collect());
                }
            }
            NameVerdict::Ancestor | NameVerdict::Unlisted => (self.denial(), "not_permitted", None),
        };
        Ok(vec![Explanation {
            destination: dest.text().to_owned(),
            address: None,
            verdict,
            reason: reason.to_owned(),
            rule,
            expires: None,
            names: Vec::new(),
        }])
    }

    /// One explanation for each protocol and port that was asked for; the first port stands for a range.
    fn address(&self, dest: &Destination, address: IpAddr) -> Result<Vec<Explanation>, Error> {
        const HTTPS: u16 = 443;
        let ports = dest.ports();
        let mut explanations = Vec::new();
        for range in ports.ranges() {
            let port = if range.first == 0 { HTTPS } else { range.first };
            for (set, number) in [(Protocols::TCP, protocol::TCP), (Protocols::UDP, protocol::UDP)] {
                if range.protocols.contains(set) {
                    explanations.push(self.one(address, port, number)?);
                }
            }
        }
        Ok(explanations)
    }

    fn one(&self, address: IpAddr, port: u16, number: u8) -> Result<Explanation, Error> {
        let addr = Addr::from(address).routed();
        // A guest's own addresses and its loopback are not on its device.
        let path = if self.record.target.is_guest() { Path::Wire } else { Path::Socket };
        let (verdict, permit) = judge(self.tables, self.record.slot, path, addr, port, number)?;
        let reason = Reason::from_number(verdict.reason_number());
        let grant = permit.and_then(|permit| {
            permit.grants.into_iter().find(|grant| !grant.rule.is_none() && grant.rule.tag == verdict.rule().tag)
        });
        Ok(Explanation {
            destination: format!("{}/{}", std::net::SocketAddr::new(address, port), protocol_name(number)),
            address: Some(address),
            verdict: if verdict.allows() { Verdict::Allow } else { self.denial() },
            reason: reason.map_or_else(|| verdict.reason_number().to_string(), |reason| reason.name().to_owned()),
            rule: self
                .record
                .rule_text(verdict.rule().tag)
                .and_then(|text| text.decided(address, Protocols::of(number), Some(port)))
                .map(ToString::to_string),
            expires: grant.filter(|grant| grant.expires_ns != NEVER_NS).map(|grant| wall_clock(grant.expires_ns)),
            names: self
                .names
                .iter()
                .filter(|learned| learned.address == addr.to_ip())
                .map(|learned| learned.name.clone())
                .collect(),
        })
    }

    fn denial(&self) -> Verdict {
        Verdict::denial(self.policy.mode == Mode::Observe)
    }
}

fn wall_clock(monotonic_ns: u64) -> SystemTime {
    let (now, ahead) = (now_ns(), Duration::from_nanos);
    if monotonic_ns >= now {
        SystemTime::now() + ahead(monotonic_ns - now)
    } else {
        SystemTime::now() - ahead(now - monotonic_ns)
    }
}
