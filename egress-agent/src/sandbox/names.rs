//! Events of the DNS half, in the words that users read.

use super::permits::Permits;
use crate::{
    dns::{DnsEvent, Reason},
    observe::event::{Event, Kind, Subject, Verdict},
};
use egress_common::event::Client;
use std::{borrow::Cow, fs, time::SystemTime};

/// An event, and whether repetitions of it are to be folded.
pub(super) enum Named {
    Denial(Event),
    Other(Event),
}

pub(super) fn event(event: DnsEvent, subject: &Subject, permits: &Permits, now: SystemTime) -> Named {
    let about = |kind, name: &crate::dns::Name| Event::dns(kind, now, subject, &name.to_string());
    match event {
        DnsEvent::Denied(denial) => Named::Denial(denied(denial, false, subject, permits, now)),
        DnsEvent::WouldDeny(denial) => Named::Denial(denied(denial, true, subject, permits, now)),
        DnsEvent::Permitted { name, addresses, rules, .. } => {
            let in_force = permits.in_force();
            let rule = rules.first().and_then(|rule| in_force.policy.allow.names.get(*rule));
            Named::Other(Event {
                verdict: Some(Verdict::Allow),
                rule: rule.map(|rule| rule.text.clone()),
                dst_ip: addresses.first().copied(),
                count: u64::try_from(addresses.len()).ok(),
                ..about(Kind::Permit, &name)
            })
        }
        DnsEvent::Filtered { name, address } => Named::Denial(Event {
            verdict: Some(Verdict::Deny),
            reason: Some("rebinding".into()),
            dst_ip: Some(address),
            count: Some(1),
            ..about(Kind::Dns, &name)
        }),
        DnsEvent::UpstreamFailed { name, error, .. } => {
            let reason = format!("upstream failed: {error}");
            Named::Other(Event { reason: Some(reason.into()), ..about(Kind::Dns, &name) })
        }
        DnsEvent::PermitFailed { name, error } => {
            let reason = format!("no permit: {error}");
            Named::Other(Event { reason: Some(reason.into()), ..about(Kind::Dns, &name) })
        }
        DnsEvent::Budget { refused, dropped } => Named::Other(Event {
            reason: Some("queries_per_second".into()),
            count: Some(refused + dropped),
            ..Event::new(Kind::Budget, now, subject)
        }),
    }
}

fn denied(
    denial: crate::dns::Denial,
    observed: bool,
    subject: &Subject,
    permits: &Permits,
    now: SystemTime,
) -> Event {
    let rule = denial.rule.and_then(|rule| permits.in_force().policy.deny.names.get(rule).map(|rule| rule.text.clone()));
    let event = Event::dns_denied(now, subject, observed, &denial.name.to_string(), reason(&denial.reason), rule);
    let Some(client) = denial.client else { return event };
    let mut comm = [0; 16];
    for (place, byte) in comm.iter_mut().zip(client.comm.bytes()) {
        *place = byte;
    }
    let exe = fs::read_link(format!("/proc/{}/exe", client.pid)).ok();
    let exe = exe.map(|path| path.to_string_lossy().into_owned());
    event.called_by(&Client { pid: client.pid, uid: client.uid, comm }, exe)
}

const fn reason(reason: &Reason) -> Cow<'static, str> {
    Cow::Borrowed(match reason {
        Reason::DenyRule => "denied_by_rule",
        Reason::Unlisted => "not_permitted",
        Reason::Ancestor => "ancestor",
        Reason::Local => "local_name",
        Reason::Canary => "canary",
        Reason::Hop(_) => "denied_target",
    })
}
