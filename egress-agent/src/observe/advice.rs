//! From one denied destination to what would open it: a flag, a policy line, or the reason why neither can.

use super::{
    dns_event::word,
    names::{Named as _, protocol_name},
};
use crate::policy;
use egress_common::{
    addr::{Addr, Class},
    packet::protocol,
    verdict::Reason,
};
use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

/// What was denied, as far as it is known.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Destination {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
    /// Absent for a question, which is asked before a protocol is chosen.
    pub(super) proto: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Host {
    /// Escaped.
    Name(String),
    Addr(IpAddr),
    /// A socket or packet without a destination; the reason's word tells them apart.
    Nowhere(String),
}

/// The form of DEST in a policy, so that what is printed can be typed.
impl Display for Destination {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Addr(IpAddr::V6(addr)), Some(_)) => write!(f, "[{addr}]")?,
            (Host::Addr(addr), _) => write!(f, "{addr}")?,
            (Host::Name(name), _) => f.write_str(name)?,
            (Host::Nowhere(reason), _) => f.write_str(what_of(reason))?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        // A protocol without ports is no part of a destination that can be typed, but it tells what was tried.
        match &self.proto {
            Some(proto) => write!(f, "/{proto}"),
            None => Ok(()),
        }
    }
}

/// What would open a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Advice {
    /// `--allow` with this argument.
    Allow(String),
    /// A line of the policy file, in this section.
    Line { section: &'static str, line: String },
    /// A deny line closes it.
    Denied { rule: Option<String> },
    /// Nothing opens it.
    Never(&'static str),
}

impl Display for Advice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(dest) => write!(f, "to allow: --allow {}", quoted(dest)),
            Self::Line { section, line } => write!(f, "to allow: {line} under [{section}]"),
            Self::Denied { rule: Some(rule) } => write!(f, "closed by the deny line \"{}\"", super::escape::text(rule)),
            Self::Denied { rule: None } => f.write_str("closed by a deny line of the policy"),
            Self::Never(why) => write!(f, "no flag opens it: {why}"),
        }
    }
}

/// Brackets and stars are patterns to a shell.
fn quoted(dest: &str) -> String {
    if dest.contains(['[', '*']) { format!("'{dest}'") } else { dest.to_owned() }
}

/// What would have let a destination pass.
pub(super) struct Question<'a> {
    pub(super) dest: &'a Destination,
    /// Why it was denied: a word of [`super::names`] or of [`word`].
    pub(super) reason: &'a str,
    /// The line that denied it.
    pub(super) rule: Option<&'a str>,
    /// An address that a name's answer was not let have.
    pub(super) addr: Option<IpAddr>,
}

pub(super) fn advise(question: &Question<'_>) -> Advice {
    let Question { dest, rule, .. } = question;
    let Some(reason) = Reason::from_name(question.reason) else { return advise_name(question) };
    match reason {
        Reason::NotPermitted | Reason::PortNotPermitted if is_icmp(dest) => icmp_echo(dest),
        Reason::NotPermitted | Reason::PortNotPermitted => allow(dest),
        Reason::Expired | Reason::ExpiredElsewhere => line("dns", "a longer \"grace\""),
        Reason::DeniedByRule => Advice::Denied { rule: rule.map(str::to_owned) },
        Reason::Restricted | Reason::Tunnel => line("allow", format!("addresses = [\"{}\"]", typed(dest))),
        Reason::LoopbackClosed => match dest.port {
            Some(port) => line("allow", format!("loopback = [{port}]")),
            None => line("allow", "loopback = true"),
        },
        Reason::Icmp => icmp_echo(dest),
        Reason::Inbound => match &dest.host {
            Host::Addr(addr) => line("allow", format!("inbound = [\"{addr}\"]")),
            Host::Name(_) | Host::Nowhere(_) => Advice::Never("the peer is unknown"),
        },
        Reason::DnsBypass => Advice::Never("port 53 goes to egressd's own resolver, whose servers --dns names"),
        Reason::ForeignListener => Advice::Never("it is the resolver of another sandbox"),
        Reason::Budget => line("bandwidth", "a larger \"budget\""),
        Reason::ListenerPort => Advice::Never("the port belongs to a sandbox's resolver"),
        Reason::Protocol => Advice::Never("only TCP, UDP and ICMP have destinations that a policy can name"),
        Reason::IpOptions => Advice::Never("IPv4 options can carry a second destination"),
        Reason::ExtensionHeader => Advice::Never("IPv6 extension headers can carry a second destination"),
        Reason::Truncated | Reason::Malformed => Advice::Never("its headers cannot be read"),
        Reason::EtherType => Advice::Never("only IPv4, IPv6 and ARP frames can be judged"),
        Reason::Source => Advice::Never("its source address is not the sandbox's"),
        Reason::NeighbourForm => Advice::Never("ARP and neighbour discovery pass in their plain forms only"),
        Reason::ForeignSocket => Advice::Never("the socket was made outside the sandbox; make it inside"),
        Reason::NoSandbox => Advice::Never("the cgroup has no policy in force; see egressd status"),
        Reason::Permitted
        | Reason::Loopback
        | Reason::Own
        | Reason::Listener
        | Reason::Established
        | Reason::Reply
        | Reason::Neighbour
        | Reason::Translated => Advice::Never("it was not denied"),
    }
}

/// For the words that only the DNS half has.
fn advise_name(question: &Question<'_>) -> Advice {
    match (question.reason, question.addr) {
        (word::DENIED_TARGET, _) => Advice::Denied { rule: question.rule.map(str::to_owned) },
        (word::CANARY, _) => Advice::Never("it asks whether clients may go past egressd's own resolver"),
        (word::QUERY_BUDGET, _) => line("dns", "a higher \"queries_per_second\""),
        // A private address may be answered where the policy says so, a special one is only ever reached as itself.
        (word::FILTERED, Some(addr)) => match Addr::from(addr).routed().class() {
            Class::Global => line("dns", format!("answers = [\"{addr}\"]")),
            Class::Loopback | Class::Restricted | Class::Tunnel => line("allow", format!("addresses = [\"{addr}\"]")),
        },
        _ => allow(question.dest),
    }
}

/// `--allow`, if a policy can name the destination at all.
fn allow(dest: &Destination) -> Advice {
    let text = typed(dest);
    if text.parse::<policy::Destination>().is_ok() {
        Advice::Allow(text)
    } else {
        Advice::Never("a policy cannot name it")
    }
}

fn line(section: &'static str, line: impl Into<String>) -> Advice {
    Advice::Line { section, line: line.into() }
}

/// The destination as a policy takes it, without a protocol that has no ports.
fn typed(dest: &Destination) -> String {
    let proto = dest.proto.clone().filter(|proto| dest.port.is_some() && ["tcp", "udp"].contains(&proto.as_str()));
    Destination { proto, ..dest.clone() }.to_string()
}

fn icmp_echo(dest: &Destination) -> Advice {
    match &dest.host {
        Host::Addr(addr) => line("allow", format!("icmp = \"echo\" and addresses = [\"{addr}\"]")),
        Host::Name(_) | Host::Nowhere(_) => line("allow", "icmp = \"echo\""),
    }
}

fn is_icmp(dest: &Destination) -> bool {
    [protocol::ICMP, protocol::ICMPV6].iter().any(|&number| dest.proto.as_deref() == Some(&*protocol_name(number)))
}

/// What to call a denial that had no destination.
fn what_of(reason: &str) -> &'static str {
    match Reason::from_name(reason) {
        Some(Reason::Protocol) => "a raw or packet socket",
        Some(Reason::ListenerPort) => "a bind",
        Some(Reason::EtherType) => "a frame that is not IP",
        Some(Reason::ForeignSocket) => "a socket from outside",
        Some(Reason::Icmp) => "a ping socket",
        None if reason == word::QUERY_BUDGET => "DNS questions",
        _ => "a packet",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dest(host: &str, port: u16, proto: &str) -> Destination {
        Destination {
            host: host.parse().map_or_else(|_| Host::Name(host.into()), Host::Addr),
            port: (port != 0).then_some(port),
            proto: (!proto.is_empty()).then(|| proto.into()),
        }
    }

    fn advice(reason: &str, dest: &Destination, rule: Option<&str>, addr: Option<&str>) -> Advice {
        advise(&Question { dest, reason, rule, addr: addr.map(|addr| addr.parse().unwrap()) })
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        let to_allow = |reason: Reason, dest| {
            let advice = advice(reason.name(), &dest, None, None).to_string();
            advice.strip_prefix("to allow: ").unwrap_or_default().to_owned()
        };
        for (given, expected) in [
            (to_allow(Reason::NotPermitted, dest("198.51.100.7", 5432, "tcp")), "--allow 198.51.100.7:5432/tcp"),
            (to_allow(Reason::NotPermitted, dest("2001:db8::7", 443, "udp")), "--allow '[2001:db8::7]:443/udp'"),
            (
                to_allow(Reason::PortNotPermitted, dest("db.example.com", 5432, "tcp")),
                "--allow db.example.com:5432/tcp",
            ),
            (
                to_allow(Reason::Restricted, dest("169.254.169.254", 80, "tcp")),
                "addresses = [\"169.254.169.254:80/tcp\"] under [allow]",
            ),
            (to_allow(Reason::LoopbackClosed, dest("127.0.0.1", 5432, "tcp")), "loopback = [5432] under [allow]"),
            (
                to_allow(Reason::Icmp, dest("198.51.100.7", 0, "icmp")),
                "icmp = \"echo\" and addresses = [\"198.51.100.7\"] under [allow]",
            ),
            (to_allow(Reason::Inbound, dest("198.51.100.7", 22, "tcp")), "inbound = [\"198.51.100.7\"] under [allow]"),
        ] {
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn questions_lead_to_a_flag_or_to_the_line_that_closes_them() {
        let asked = |reason, name, rule, addr| advice(reason, &dest(name, 0, ""), rule, addr).to_string();
        for (given, expected) in [
            (asked(word::NOT_PERMITTED, "api.foo.dev", None, None), "to allow: --allow api.foo.dev"),
            (asked(word::ANCESTOR, "foo.dev", None, None), "to allow: --allow foo.dev"),
            (asked(word::LOCAL_NAME, "printer.local", None, None), "to allow: --allow printer.local"),
            (
                asked(word::DENIED_BY_RULE, "gist.github.com", Some("gist.github.com"), None),
                "closed by the deny line \"gist.github.com\"",
            ),
            (asked(word::DENIED_TARGET, "a.test", Some("b.test"), None), "closed by the deny line \"b.test\""),
            (asked(word::NOT_PERMITTED, "a\\010b.test", None, None), "no flag opens it: a policy cannot name it"),
            (asked(word::FILTERED, "a.test", None, Some("10.1.2.3")), "to allow: answers = [\"10.1.2.3\"] under [dns]"),
            (
                asked(word::FILTERED, "a.test", None, Some("169.254.169.254")),
                "to allow: addresses = [\"169.254.169.254\"] under [allow]",
            ),
        ] {
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn every_denial_has_an_answer_and_only_closed_doors_have_none() {
        let dest = dest("198.51.100.7", 443, "tcp");
        for &reason in Reason::ALL {
            let advice = advice(reason.name(), &dest, Some("x"), None);
            let opens = matches!(advice, Advice::Allow(_) | Advice::Line { .. });
            let openable = [
                Reason::NotPermitted,
                Reason::PortNotPermitted,
                Reason::Expired,
                Reason::ExpiredElsewhere,
                Reason::Restricted,
                Reason::Tunnel,
                Reason::LoopbackClosed,
                Reason::Icmp,
                Reason::Inbound,
                Reason::Budget,
            ];
            assert_eq!(opens, openable.contains(&reason), "{reason:?}: {advice}");
        }
    }
}
