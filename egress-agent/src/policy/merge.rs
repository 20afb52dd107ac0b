//! Parts -> [`Policy`]: allows and denies add up, single values must agree, defaults fill the rest.

use super::{
    Allow, Answers, Bandwidth, Deny, DnsPolicy, Flags, Icmp, Local, Mode, Policy, Rate, Source, Unix,
    destination::Destination,
    document::Text,
    error::{PolicyError, Position},
    part::{List, Part, Written},
};
use std::time::Duration;

/// Merges any number of sources, in order.
pub(super) fn merge(sources: impl IntoIterator<Item = Source>) -> Result<Policy, PolicyError> {
    let mut merged = Part::default();
    let mut flags = Part::default();
    for source in sources {
        match source {
            Source::Toml { name, text } => {
                let text = Text::new(&name, &text);
                merged.absorb(Part::from_file(&text, text.toml()?)?)?;
            }
            Source::Json { name, text } => {
                let text = Text::new(&name, &text);
                merged.absorb(Part::from_file(&text, text.json()?)?)?;
            }
            Source::Flags(given) => flags.absorb(Part::from_flags(&given)?)?,
        }
    }
    // A flag is said for this one time, so it beats what a file says.
    merged.mode = flags.mode.take().or(merged.mode);
    merged.pre_resolve = flags.pre_resolve.take().or(merged.pre_resolve);
    merged.egress = flags.egress.take().or(merged.egress);
    merged.absorb(flags)?;
    let policy = merged.into_policy()?;
    policy.check()?;
    Ok(policy)
}

impl Part {
    /// Lifts the flags by the same rules as the file.
    fn from_flags(flags: &Flags) -> Result<Self, PolicyError> {
        let mut part = Self::default();
        let lists: [(&str, &[String], Option<List>, bool); 4] = [
            ("--allow", &flags.allow, None, false),
            ("--deny", &flags.deny, None, true),
            ("--proxy", &flags.proxy, Some(List::Proxy), false),
            ("--gateway", &flags.gateway, Some(List::Gateway), false),
        ];
        for (flag, texts, list, denies) in lists {
            for text in texts {
                let at = position(flag, text);
                let parsed = text.parse::<Destination>();
                let destination = parsed.map_err(|source| PolicyError::Destination {
                    at: Position::whole(flag),
                    key: list.map_or(if denies { "deny" } else { "allow" }, List::key),
                    source,
                })?;
                let list = list.unwrap_or_else(|| List::of(&destination, denies));
                part.add(list, destination, at, false)?;
            }
        }
        for text in &flags.dns {
            part.add_server("dns.servers", text, position("--dns", text), false)?;
        }
        if flags.observe {
            part.mode = Some(Written { value: Mode::Observe, at: Position::whole("--observe") });
        }
        if let Some(value) = flags.pre_resolve {
            part.pre_resolve = Some(Written { value, at: Position::whole("--pre-resolve") });
        }
        if let Some(text) = &flags.rate {
            let at = position("--rate", text);
            let (key, found, allowed) = ("bandwidth.egress", format!("{text:?}"), Rate::ALLOWED);
            let value = text.parse().map_err(|_| PolicyError::Value { at: at.clone(), key, found, allowed })?;
            part.egress = Some(Written { value, at });
        }
        Ok(part)
    }

    fn absorb(&mut self, other: Self) -> Result<(), PolicyError> {
        agree("name", &mut self.name, other.name, |name| format!("{name:?}"))?;
        agree("mode", &mut self.mode, other.mode, |mode| format!("\"{}\"", mode.name()))?;
        agree("allow.icmp", &mut self.icmp, other.icmp, |icmp| format!("\"{}\"", icmp.name()))?;
        agree("reload.established", &mut self.established, other.established, |value| format!("\"{}\"", value.name()))?;
        let duration = |value: &Duration| format!("\"{}\"", humantime::format_duration(*value));
        agree("dns.permit_min", &mut self.permit_min, other.permit_min, duration)?;
        agree("dns.permit_max", &mut self.permit_max, other.permit_max, duration)?;
        agree("dns.grace", &mut self.grace, other.grace, duration)?;
        agree("dns.queries_per_second", &mut self.queries_per_second, other.queries_per_second, u32::to_string)?;
        agree("dns.svcb", &mut self.svcb, other.svcb, |value| format!("\"{}\"", value.name()))?;
        agree("bandwidth.egress", &mut self.egress, other.egress, |rate| format!("\"{rate}\""))?;
        agree("bandwidth.ingress", &mut self.ingress, other.ingress, |rate| format!("\"{rate}\""))?;
        agree("bandwidth.egress_burst", &mut self.egress_burst, other.egress_burst, duration)?;
        agree("bandwidth.budget", &mut self.budget, other.budget, |amount| format!("\"{amount}\""))?;
        agree("dns.cname", &mut self.cname, other.cname, |value| format!("\"{}\"", value.name()))?;
        agree("dns.pre_resolve", &mut self.pre_resolve, other.pre_resolve, |value| format!("\"{}\"", value.name()))?;
        add_up("allow.loopback", &mut self.loopback, other.loopback, Local::union, Local::to_string)?;
        add_up("allow.unix", &mut self.unix, other.unix, Unix::union, Unix::to_string)?;
        add_up("allow.self", &mut self.own, other.own, Local::union, Local::to_string)?;
        add_up("dns.answers", &mut self.answers, other.answers, Answers::union, Answers::to_string)?;
        for server in other.servers {
            if !self.servers.iter().any(|known| known.value == server.value) {
                self.servers.push(server);
            }
        }
        self.names.append(other.names);
        self.deny_names.append(other.deny_names);
        for (rules, more) in [
            (&mut self.proxy, other.proxy),
            (&mut self.gateway, other.gateway),
            (&mut self.addresses, other.addresses),
            (&mut self.inbound, other.inbound),
            (&mut self.deny_addresses, other.deny_addresses),
        ] {
            rules.append(more);
        }
        for warning in other.warnings {
            if !self.warnings.iter().any(|known| known.says_the_same(&warning)) {
                self.warnings.push(warning);
            }
        }
        Ok(())
    }

    fn into_policy(self) -> Result<Policy, PolicyError> {
        let default = DnsPolicy::default();
        let (min, max) = (&self.permit_min, &self.permit_max);
        let permit_min = min.as_ref().map_or(default.permit_min, |written| written.value);
        let permit_max = max.as_ref().map_or(default.permit_max.max(permit_min), |written| written.value);
        if let Some(max) = max
            && permit_max < permit_min
        {
            return Err(PolicyError::Value {
                at: max.at.clone(),
                key: "dns.permit_max",
                found: format!("\"{}\"", humantime::format_duration(permit_max)),
                allowed: "dns.permit_min (default \"30s\") or more",
            });
        }
        let bandwidth = self.bandwidth()?;
        Ok(Policy {
            name: self.name.map(|written| written.value),
            mode: or_default(self.mode),
            allow: Allow {
                loopback: self.loopback.map_or(Local::Open, |written| written.value),
                own: self.own.map(|written| written.value),
                proxy: self.proxy.into_vec(),
                gateway: self.gateway.into_vec(),
                names: self.names.into_vec(),
                addresses: self.addresses.into_vec(),
                inbound: self.inbound.into_vec(),
                icmp: self.icmp.map_or(Icmp::None, |written| written.value),
                unix: or_default(self.unix),
            },
            deny: Deny { names: self.deny_names.into_vec(), addresses: self.deny_addresses.into_vec() },
            dns: DnsPolicy {
                servers: self.servers.into_iter().map(|written| written.value).collect(),
                answers: or_default(self.answers),
                permit_min,
                permit_max,
                grace: self.grace.map_or(default.grace, |written| written.value),
                queries_per_second: self.queries_per_second.map_or(default.queries_per_second, |written| written.value),
                pre_resolve: or_default(self.pre_resolve),
                cname: or_default(self.cname),
                svcb: or_default(self.svcb),
            },
            bandwidth,
            established: or_default(self.established),
            warnings: self.warnings,
        })
    }
}

impl Part {
    fn bandwidth(&self) -> Result<Bandwidth, PolicyError> {
        let burst = self.egress_burst.as_ref();
        if let (Some(burst), None) = (burst, &self.egress) {
            return Err(PolicyError::Value {
                at: burst.at.clone(),
                key: "bandwidth.egress_burst",
                found: format!("\"{}\"", humantime::format_duration(burst.value)),
                allowed: "a burst beside bandwidth.egress or --rate, and there is neither",
            });
        }
        Ok(Bandwidth {
            egress: self.egress.as_ref().map(|written| written.value),
            ingress: self.ingress.as_ref().map(|written| written.value),
            egress_burst: burst.map_or(Bandwidth::BURST.0, |written| written.value),
            budget: self.budget.as_ref().map(|written| written.value),
        })
    }
}

fn position(flag: &str, text: &str) -> Position {
    Position::whole(&format!("{flag} {}", text.escape_debug()))
}

fn or_default<T: Default>(written: Option<Written<T>>) -> T {
    written.map_or_else(T::default, |written| written.value)
}

/// One value that every source must set alike.
fn agree<T: PartialEq>(
    key: &'static str,
    ours: &mut Option<Written<T>>,
    theirs: Option<Written<T>>,
    show: impl Fn(&T) -> String,
) -> Result<(), PolicyError> {
    let same = |ours: &T, theirs: T| (*ours == theirs).then_some(theirs);
    add_up(key, ours, theirs, same, show)
}

/// One value that sources may add to; `union` gives nothing where they contradict each other.
fn add_up<T>(
    key: &'static str,
    ours: &mut Option<Written<T>>,
    theirs: Option<Written<T>>,
    union: impl Fn(&T, T) -> Option<T>,
    show: impl Fn(&T) -> String,
) -> Result<(), PolicyError> {
    let Some(theirs) = theirs else { return Ok(()) };
    let Some(first) = ours.as_mut() else {
        *ours = Some(theirs);
        return Ok(());
    };
    let (second, second_at) = (show(&theirs.value), theirs.at);
    let Some(value) = union(&first.value, theirs.value) else {
        let (first, first_at) = (show(&first.value), first.at.clone());
        return Err(PolicyError::Conflict { key, first, first_at, second, second_at });
    };
    first.value = value;
    Ok(())
}
