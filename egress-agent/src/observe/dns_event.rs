//! What the DNS half tells, as events.

use super::event::{Event, Kind, Resolver, Subject, Verdict};
use crate::{
    dns::{Denial, DnsEvent, PermitError, Reason, UpstreamError},
    policy::Policy,
};
use std::time::SystemTime;

/// Words for what the name half decides or runs into; `denied_by_rule` and `not_permitted` mean what they mean to the kernel.
pub mod word {
    /// A deny line names the name.
    pub const DENIED_BY_RULE: &str = "denied_by_rule";
    /// A deny line names a target of the CNAME chain.
    pub const DENIED_TARGET: &str = "denied_target";
    /// No rule names the name.
    pub const NOT_PERMITTED: &str = "not_permitted";
    /// No rule names the name, but one names something below it.
    pub const ANCESTOR: &str = "ancestor";
    /// A name that no resolver outside would know.
    pub const LOCAL_NAME: &str = "local_name";
    /// A name that leads clients past this resolver.
    pub const CANARY: &str = "canary";
    /// Longer or deeper than names below a wildcard are.
    pub const OUTSIZED_NAME: &str = "outsized_name";
    /// More new names below a wildcard than may leave in a minute: perhaps a tunnel.
    pub const NAME_BUDGET: &str = "name_budget";
    /// An address that no name may open was taken out of an answer.
    pub const FILTERED: &str = "filtered";
    /// An address holds four grants: the one that would have ended first gave way.
    pub const GRANT_EVICTED: &str = "grant_evicted";
    /// The DNS servers know no such name.
    pub const UPSTREAM_NO_NAME: &str = "upstream_no_name";
    /// More questions than the budget has.
    pub const QUERY_BUDGET: &str = "query_budget";
    /// No DNS server answered in time.
    pub const UPSTREAM_TIMEOUT: &str = "upstream_timeout";
    /// No DNS server could be reached.
    pub const UPSTREAM_UNREACHABLE: &str = "upstream_unreachable";
    /// A DNS server's certificate is not trusted.
    pub const UPSTREAM_UNTRUSTED: &str = "upstream_untrusted";
    /// The DNS servers answered with an error.
    pub const UPSTREAM_ERROR: &str = "upstream_error";
    /// The DNS servers answered with what is no answer.
    pub const UPSTREAM_MALFORMED: &str = "upstream_malformed";
    /// The policy changed while the name was being resolved.
    pub const POLICY_CHANGED: &str = "policy_changed";
    /// The permit map has no room.
    pub const PERMITS_FULL: &str = "permits_full";
    /// The permit map cannot be written.
    pub const PERMIT_MAP: &str = "permit_map";
}

impl Event {
    /// What one report of the DNS half says; a permit is one event for each address. `policy` is the one whose rules the
    /// report counts. Send the result through [`super::fold::Fold`]: questions come at whatever pace the sandbox likes.
    pub fn from_dns(
        report: &DnsEvent,
        time: SystemTime,
        subject: &Subject,
        policy: &Policy,
        resolver: &impl Resolver,
    ) -> Vec<Self> {
        let named = |kind, name: &dyn ToString| Self::dns(kind, time, subject, &name.to_string());
        match report {
            DnsEvent::Denied(denial) => vec![Self::denied(Verdict::Deny, denial, time, subject, policy, resolver)],
            DnsEvent::WouldDeny(denial) => {
                vec![Self::denied(Verdict::WouldDeny, denial, time, subject, policy, resolver)]
            }
            DnsEvent::Permitted { name, addresses, rules, .. } => {
                let rule = rules.first().and_then(|&index| policy.allow.names.get(index)).map(|rule| rule.text.clone());
                let permit = |&address| Self {
                    verdict: Some(Verdict::Allow),
                    rule: rule.clone(),
                    dst_ip: Some(address),
                    ..named(Kind::Permit, name)
                };
                addresses.iter().map(permit).collect()
            }
            DnsEvent::Filtered { name, address } => vec![Self {
                verdict: Some(Verdict::Deny),
                reason: Some(word::FILTERED.into()),
                dst_ip: Some(*address),
                ..named(Kind::Dns, name)
            }],
            DnsEvent::Evicted { name, address } => vec![Self {
                reason: Some(word::GRANT_EVICTED.into()),
                dst_ip: Some(*address),
                ..named(Kind::Expire, name)
            }],
            DnsEvent::NoSuchName { name } => {
                vec![Self { reason: Some(word::UPSTREAM_NO_NAME.into()), ..named(Kind::Dns, name) }]
            }
            // Failures carry no verdict: the policy had nothing against the name.
            DnsEvent::UpstreamFailed { name, error, .. } => {
                vec![Self { reason: Some(upstream_word(*error).into()), ..named(Kind::Dns, name) }]
            }
            DnsEvent::PermitFailed { name, error } => {
                vec![Self { reason: Some(permit_word(*error).into()), ..named(Kind::Dns, name) }]
            }
            DnsEvent::Tunnel { base, refused } => vec![Self {
                verdict: Some(Verdict::Deny),
                reason: Some(word::NAME_BUDGET.into()),
                count: Some(*refused),
                ..named(Kind::Budget, base)
            }],
            DnsEvent::Budget { refused, dropped } => vec![Self {
                verdict: Some(Verdict::Deny),
                reason: Some(word::QUERY_BUDGET.into()),
                hook: Some("dns".into()),
                count: Some(refused + dropped),
                ..Self::new(Kind::Budget, time, subject)
            }],
        }
    }

    fn denied(
        verdict: Verdict,
        denial: &Denial,
        time: SystemTime,
        subject: &Subject,
        policy: &Policy,
        resolver: &impl Resolver,
    ) -> Self {
        let client = denial.client.as_ref();
        Self {
            verdict: Some(verdict),
            reason: Some(denial_word(&denial.reason).into()),
            rule: denial.rule.and_then(|index| policy.deny.names.get(index)).map(|rule| rule.text.clone()),
            pid: client.map(|client| client.pid),
            comm: client.map(|client| client.comm.clone()),
            exe: client.and_then(|client| resolver.exe(client.pid)),
            uid: client.map(|client| client.uid),
            count: Some(1),
            ..Self::dns(Kind::Dns, time, subject, &denial.name.to_string())
        }
    }
}

const fn denial_word(reason: &Reason) -> &'static str {
    match reason {
        Reason::DenyRule => word::DENIED_BY_RULE,
        Reason::Unlisted => word::NOT_PERMITTED,
        Reason::Ancestor => word::ANCESTOR,
        Reason::Local => word::LOCAL_NAME,
        Reason::Canary => word::CANARY,
        Reason::Hop(_) => word::DENIED_TARGET,
        Reason::Outsized => word::OUTSIZED_NAME,
    }
}

const fn upstream_word(error: UpstreamError) -> &'static str {
    match error {
        UpstreamError::Timeout => word::UPSTREAM_TIMEOUT,
        UpstreamError::Network(_) => word::UPSTREAM_UNREACHABLE,
        UpstreamError::Certificate => word::UPSTREAM_UNTRUSTED,
        UpstreamError::Rcode(_) => word::UPSTREAM_ERROR,
        UpstreamError::Malformed => word::UPSTREAM_MALFORMED,
    }
}

const fn permit_word(error: PermitError) -> &'static str {
    match error {
        PermitError::StalePolicy => word::POLICY_CHANGED,
        PermitError::Full => word::PERMITS_FULL,
        PermitError::Map { .. } => word::PERMIT_MAP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dns::Client, observe::event::tests::Known};
    use std::time::Duration;

    fn lines(report: &DnsEvent) -> Vec<String> {
        let policy = Policy::from_toml(
            "version = 1\n[allow]\nnames = [\"*.example.com\"]\n[deny]\nnames = [\"gist.example.com\"]\n",
        );
        let subject = Subject { sandbox: "s".into(), generation: 1, ..Subject::default() };
        let events = Event::from_dns(report, SystemTime::UNIX_EPOCH, &subject, &policy.unwrap(), &Known);
        let head = r#"{"time":"1970-01-01T00:00:00.000Z","schema":1,"#;
        events.iter().map(|event| event.to_json_line().unwrap().strip_prefix(head).unwrap().to_owned()).collect()
    }

    fn denial(name: &str, reason: Reason, rule: Option<usize>) -> Denial {
        let client = Client { pid: 4121, uid: 1000, comm: "cargo".into() };
        Denial { name: name.parse().unwrap(), qtype: 1, client: Some(client), rule, reason }
    }

    #[test]
    fn a_denied_name_says_who_asked_and_which_line_closed_it() {
        assert_eq!(
            lines(&DnsEvent::Denied(denial("gist.example.com", Reason::DenyRule, Some(0)))),
            [concat!(
                r#""event":"dns","sandbox":"s","generation":1,"verdict":"deny","reason":"denied_by_rule","#,
                r#""rule":"gist.example.com","hook":"dns","dst_name":"gist.example.com","pid":4121,"comm":"cargo","#,
                r#""exe":"/usr/bin/cargo","uid":1000,"count":1}"#
            )]
        );
        let observed = Denial { client: None, ..denial("a\\010b.test", Reason::Unlisted, None) };
        assert_eq!(
            lines(&DnsEvent::WouldDeny(observed)),
            [concat!(
                r#""event":"dns","sandbox":"s","generation":1,"verdict":"would_deny","reason":"not_permitted","#,
                r#""hook":"dns","dst_name":"a\\010b.test","count":1}"#
            )]
        );
    }

    #[test]
    fn a_permit_is_one_event_for_each_address() {
        let permitted = DnsEvent::Permitted {
            name: "a.example.com".parse().unwrap(),
            addresses: vec!["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            rules: vec![0],
            life: Duration::from_mins(1),
            server: "192.0.2.53:53".parse().unwrap(),
        };
        let line = |address: &str| {
            format!(
                concat!(
                    r#""event":"permit","sandbox":"s","generation":1,"verdict":"allow","rule":"*.example.com","hook":"dns","#,
                    r#""dst_ip":"{}","dst_name":"a.example.com"}}"#
                ),
                address
            )
        };
        assert_eq!(lines(&permitted), [line("198.51.100.7"), line("2001:db8::7")]);
    }

    #[test]
    fn what_the_policy_did_not_decide_is_told_without_a_verdict() {
        let name = || "a.example.com".parse().unwrap();
        assert_eq!(
            lines(&DnsEvent::Evicted { name: name(), address: "198.51.100.7".parse().unwrap() }),
            [concat!(
                r#""event":"expire","sandbox":"s","generation":1,"reason":"grant_evicted","hook":"dns","#,
                r#""dst_ip":"198.51.100.7","dst_name":"a.example.com"}"#
            )]
        );
        assert_eq!(
            lines(&DnsEvent::NoSuchName { name: name() }),
            [
                r#""event":"dns","sandbox":"s","generation":1,"reason":"upstream_no_name","hook":"dns","dst_name":"a.example.com"}"#
            ]
        );
    }

    #[test]
    fn failures_are_told_without_a_verdict() {
        let failed = DnsEvent::UpstreamFailed {
            name: "a.example.com".parse().unwrap(),
            qtype: 1,
            servers: Vec::new(),
            error: UpstreamError::Timeout,
        };
        assert_eq!(
            lines(&failed),
            [
                r#""event":"dns","sandbox":"s","generation":1,"reason":"upstream_timeout","hook":"dns","dst_name":"a.example.com"}"#
            ]
        );
        assert_eq!(
            lines(&DnsEvent::Budget { refused: 2, dropped: 3 }),
            [
                r#""event":"budget","sandbox":"s","generation":1,"verdict":"deny","reason":"query_budget","hook":"dns","count":5}"#
            ]
        );
    }
}
