//! From one denied destination to what would open it: a flag, a policy line, or the reason why neither can.

use super::names::Named as _;
use egress_common::{packet::protocol, verdict::Reason};
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

/// What would have let `dest` pass, which was denied for `reason`: a word of [`super::names`] or of the DNS half.
pub(super) fn advise(reason: &str, dest: &Destination, rule: Option<&str>) -> Advice {
    let Some(reason) = Reason::from_name(reason) else {
        return advise_name(reason, dest, rule);
    };
    let typed =
        || if has_ports(dest) { dest.to_string() } else { Destination { proto: None, ..dest.clone() }.to_string() };
    let line = |section, line: String| Advice::Line { section, line };
    match reason {
        Reason::NotPermitted | Reason::PortNotPermitted if dest.port.is_some_and(|_| has_ports(dest)) => {
            Advice::Allow(typed())
        }
        Reason::NotPermitted | Reason::PortNotPermitted if is_icmp(dest) => icmp_echo(dest),
        Reason::NotPermitted | Reason::PortNotPermitted => Advice::Allow(typed()),
        Reason::Expired | Reason::ExpiredElsewhere => line("dns", "a longer \"grace\"".to_owned()),
        Reason::DeniedByRule => Advice::Denied { rule: rule.map(str::to_owned) },
        Reason::Restricted | Reason::Tunnel => line("allow", format!("addresses = [\"{}\"]", typed())),
        Reason::LoopbackClosed => match dest.port {
            Some(port) => line("allow", format!("loopback = [{port}]")),
            None => line("allow", "loopback = true".to_owned()),
        },
        Reason::Icmp => icmp_echo(dest),
        Reason::Inbound => match &dest.host {
            Host::Addr(addr) => line("allow", format!("inbound = [\"{addr}\"]")),
            Host::Name(_) | Host::Nowhere(_) => Advice::Never("the peer is unknown"),
        },
        Reason::DnsBypass => Advice::Never("port 53 goes to egressd's own resolver, whose servers --dns names"),
        Reason::ForeignListener => Advice::Never("it is the resolver of another sandbox"),
        Reason::ListenerPort => Advice::Never("the port belongs to a sandbox's resolver"),
        Reason::Protocol => Advice::Never("only TCP, UDP and ICMP have destinations that a policy can name"),
        Reason::IpOptions => Advice::Never("IPv4 options can carry a second destination"),
        Reason::ExtensionHeader => Advice::Never("IPv6 extension headers can carry a second destination"),
        Reason::Truncated | Reason::Malformed => Advice::Never("its headers cannot be read"),
        Reason::EtherType => Advice::Never("only IPv4, IPv6 and ARP frames can be judged"),
        Reason::Source => Advice::Never("its source address is not the sandbox's"),
        Reason::NeighbourForm => Advice::Never("ARP and neighbour discovery pass in their plain forms only"),
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

/// The words of the DNS half are about names.
fn advise_name(reason: &str, dest: &Destination, rule: Option<&str>) -> Advice {
    match (reason, &dest.host) {
        ("denied", _) => Advice::Denied { rule: rule.map(str::to_owned) },
        ("rate", _) => Advice::Line { section: "dns", line: "a higher \"queries_per_second\"".to_owned() },
        (_, Host::Name(name)) if !can_be_named(name) => Advice::Never("a policy cannot name it"),
        (_, Host::Name(name)) => Advice::Allow(name.clone()),
        (_, Host::Addr(_)) => Advice::Allow(dest.to_string()),
        (_, Host::Nowhere(_)) => Advice::Never("it has no destination"),
    }
}

/// Names with escapes, without a dot at the right place or of one label are no hosts of a policy.
fn can_be_named(name: &str) -> bool {
    !name.contains('\\') && name.split('.').all(|label| !label.is_empty())
}

fn icmp_echo(dest: &Destination) -> Advice {
    match &dest.host {
        Host::Addr(addr) => {
            Advice::Line { section: "allow", line: format!("icmp = \"echo\" and addresses = [\"{addr}\"]") }
        }
        Host::Name(_) | Host::Nowhere(_) => Advice::Line { section: "allow", line: "icmp = \"echo\"".to_owned() },
    }
}

fn has_ports(dest: &Destination) -> bool {
    matches!(dest.proto.as_deref(), Some("tcp" | "udp"))
}

fn is_icmp(dest: &Destination) -> bool {
    [protocol::ICMP, protocol::ICMPV6]
        .iter()
        .any(|&number| dest.proto.as_deref() == Some(&*super::names::protocol_name(number)))
}

/// What to call a denial that had no destination.
fn what_of(reason: &str) -> &'static str {
    match Reason::from_name(reason) {
        Some(Reason::Protocol) => "a raw or packet socket",
        Some(Reason::ListenerPort) => "a bind",
        Some(Reason::EtherType) => "a frame that is not IP",
        Some(Reason::Icmp) => "a ping socket",
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

    #[test]
    fn what_is_printed_can_be_typed() {
        let advice = |reason: Reason, dest| advise(reason.name(), &dest, None).to_string();
        for (given, expected) in [
            (
                advice(Reason::NotPermitted, dest("198.51.100.7", 5432, "tcp")),
                "to allow: --allow 198.51.100.7:5432/tcp",
            ),
            (
                advice(Reason::NotPermitted, dest("2001:db8::7", 443, "udp")),
                "to allow: --allow '[2001:db8::7]:443/udp'",
            ),
            (advice(Reason::PortNotPermitted, dest("db.test", 5432, "tcp")), "to allow: --allow db.test:5432/tcp"),
            (
                advice(Reason::Restricted, dest("169.254.169.254", 80, "tcp")),
                "to allow: addresses = [\"169.254.169.254:80/tcp\"] under [allow]",
            ),
            (
                advice(Reason::LoopbackClosed, dest("127.0.0.1", 5432, "tcp")),
                "to allow: loopback = [5432] under [allow]",
            ),
            (
                advice(Reason::Icmp, dest("198.51.100.7", 0, "icmp")),
                "to allow: icmp = \"echo\" and addresses = [\"198.51.100.7\"] under [allow]",
            ),
            (
                advice(Reason::Inbound, dest("198.51.100.7", 22, "tcp")),
                "to allow: inbound = [\"198.51.100.7\"] under [allow]",
            ),
        ] {
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn questions_lead_to_a_flag_or_to_the_line_that_closes_them() {
        let asked = |reason, name, rule| advise(reason, &dest(name, 0, ""), rule).to_string();
        assert_eq!(asked("not_listed", "api.foo.test", None), "to allow: --allow api.foo.test");
        assert_eq!(asked("denied", "gist.test", Some("gist.test")), "closed by the deny line \"gist.test\"");
        assert_eq!(asked("not_listed", "a\\010b.test", None), "no flag opens it: a policy cannot name it");
    }

    #[test]
    fn every_denial_has_an_answer_and_only_closed_doors_have_none() {
        let dest = dest("198.51.100.7", 443, "tcp");
        for &reason in Reason::ALL {
            let advice = advise(reason.name(), &dest, Some("x"));
            let opens = matches!(advice, Advice::Allow(_) | Advice::Line { .. });
            let openable = [
                Reason::NotPermitted,
                Reason::PortNotPermitted,
                Reason::Expired,
                Reason::Restricted,
                Reason::Tunnel,
                Reason::LoopbackClosed,
                Reason::Icmp,
                Reason::Inbound,
            ];
            assert_eq!(opens, openable.contains(&reason), "{reason:?}: {advice}");
        }
    }
}
