//! One event, as people and their tools see it: one JSON object a line, `schema` 1.

use super::{
    escape,
    names::{Named as _, protocol_name},
};
use egress_common::{
    event::{Hook, Record},
    verdict::Reason,
};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, net::IpAddr, time::SystemTime};

/// Version of the meaning of the keys. Keys may be added under the same number.
pub const SCHEMA: u32 = 1;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A socket was connected, or was refused to be.
    Connect,
    /// A datagram was sent from an unconnected socket, or was refused to be.
    Send,
    /// A socket was bound to a port that no sandbox may have.
    Bind,
    /// A socket of a kind that the policy does not allow was asked for.
    Socket,
    /// A packet, seen behind the socket layer.
    Packet,
    /// A DNS question.
    Dns,
    /// An address was opened because an allowed name resolved to it.
    Permit,
    /// A permit ended.
    Expire,
    /// A new policy is in force.
    Reload,
    /// Enforcement began.
    Attach,
    /// Another process serves the sandbox from now on; enforcement went on all the while.
    Adopt,
    /// Enforcement ended.
    Detach,
    /// `count` events were not reported.
    Lost,
    /// A budget is nearly or wholly used up.
    Budget,
}

/// What was decided.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passed.
    Allow,
    /// It did not.
    Deny,
    /// It passed because the sandbox only observes.
    WouldDeny,
}

impl Verdict {
    /// True where the policy speaks against it, blocked or not.
    pub const fn denies(self) -> bool {
        matches!(self, Self::Deny | Self::WouldDeny)
    }

    /// What a denial is called in this mode.
    pub const fn denial(observed: bool) -> Self {
        if observed { Self::WouldDeny } else { Self::Deny }
    }
}

/// Whom an event is about: what every event of one sandbox has in common.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subject {
    /// Name of the sandbox.
    pub sandbox: String,
    /// `name` of the policy in force, where it has one.
    pub policy: Option<String>,
    /// Generation of the policy in force, from 1.
    pub generation: u64,
    /// The cgroup's path below the cgroup v2 mount; none for a guest behind a device.
    pub cgroup: Option<String>,
}

/// Answers what a kernel record leaves open. The implementation may look at maps and `/proc`; [`Event::from_record`] does not.
pub trait Resolver {
    /// The policy line behind a tag that decided about this destination, as its author wrote it.
    fn rule(&self, tag: u32, addr: IpAddr, protocol: u8, port: Option<u16>) -> Option<String>;

    /// A name whose answer held this address, the latest first asked for.
    fn name(&self, addr: IpAddr) -> Option<String>;

    /// The executable of a process that may be gone by now.
    fn exe(&self, pid: u32) -> Option<String>;

    /// The time of day at a moment of the kernel's coarse monotonic clock, in nanoseconds.
    fn wall_clock(&self, monotonic_ns: u64) -> SystemTime;
}

/// One event. Fields that do not apply are left out of the JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, UTC, to the millisecond.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// [`SCHEMA`].
    pub schema: u32,
    /// What happened.
    pub event: Kind,
    /// Name of the sandbox.
    pub sandbox: String,
    /// `name` of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Generation of the policy that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// What was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why: a word of [`super::names`], or of [`super::dns_event::word`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The policy line that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where it was decided: a word of [`super::names`], or `dns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<Cow<'static, str>>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or an IP protocol number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Cow<'static, str>>,
    /// The other side's address; IPv4 also where the application wrote it v4-mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_ip: Option<IpAddr>,
    /// The other side's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<u16>,
    /// Name of the destination, escaped by [`escape::name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_name: Option<String>,
    /// The sandbox's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    /// Process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of its thread, as the thread chose it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Its executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The cgroup's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// How many like this one since the last report, this one included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// IP bytes that were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// IP bytes that may be sent in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
}

impl Event {
    /// An event with nothing but its subject.
    pub fn new(event: Kind, time: SystemTime, subject: &Subject) -> Self {
        Self {
            time,
            schema: SCHEMA,
            event,
            sandbox: subject.sandbox.clone(),
            policy: subject.policy.clone(),
            generation: Some(subject.generation),
            verdict: None,
            reason: None,
            rule: None,
            hook: None,
            proto: None,
            dst_ip: None,
            dst_port: None,
            dst_name: None,
            src_port: None,
            pid: None,
            comm: None,
            exe: None,
            uid: None,
            cgroup: subject.cgroup.clone(),
            count: None,
            bytes: None,
            budget: None,
        }
    }

    /// Whom the event is about.
    pub fn subject(&self) -> Subject {
        Subject {
            sandbox: self.sandbox.clone(),
            policy: self.policy.clone(),
            generation: self.generation.unwrap_or_default(),
            cgroup: self.cgroup.clone(),
        }
    }

    /// `count` events of this sandbox were not reported.
    pub fn lost(time: SystemTime, subject: &Subject, count: u64) -> Self {
        Self { count: Some(count), ..Self::new(Kind::Lost, time, subject) }
    }

    /// The `lost` event that stands for this one, and for those that `before` stood for.
    #[must_use]
    pub fn lost_with(&self, before: Option<&Self>) -> Self {
        let count = |event: &Self| event.count.unwrap_or(1);
        // The loss of a report of losses counts as what it told; a folded event was one report, however much it counted.
        let weight = if self.event == Kind::Lost { count(self) } else { 1 };
        Self::lost(self.time, &self.subject(), before.map_or(0, count) + weight)
    }

    /// What one record of the ring buffer says: first how many were lost before it, if any were, then the event itself.
    pub fn from_record<R: Resolver>(
        record: &Record,
        subject: &Subject,
        resolver: &R,
    ) -> impl Iterator<Item = Self> + use<R> {
        let time = resolver.wall_clock(record.time_ns);
        let lost = (record.lost > 0).then(|| Self::lost(time, subject, record.lost.into()));
        let reason = Reason::from_number(record.reason);
        // A number that this build does not know is no reason to let it look allowed.
        let allowed = reason.is_some_and(Reason::allows);
        let addr = record.addr.to_ip();
        let placed = !addr.is_unspecified();
        let event = Self {
            verdict: Some(if allowed { Verdict::Allow } else { Verdict::denial(record.observed != 0) }),
            reason: Some(Reason::name_of(record.reason)),
            rule: present(record.rule_tag)
                .and_then(|tag| resolver.rule(tag, addr, record.protocol, present(record.dst_port))),
            hook: Some(Hook::name_of(record.hook)),
            proto: present(record.protocol).map(protocol_name),
            dst_ip: placed.then_some(addr),
            dst_port: present(record.dst_port),
            dst_name: placed.then(|| resolver.name(addr)).flatten().map(|name| escape::name(&name)),
            src_port: present(record.src_port),
            pid: present(record.pid),
            comm: Some(comm(&record.comm)).filter(|comm| !comm.is_empty()),
            exe: present(record.pid).and_then(|pid| resolver.exe(pid)),
            uid: Some(record.uid).filter(|&uid| uid != u32::MAX),
            count: Some(record.count.max(1).into()),
            ..Self::new(kind(record.hook), time, subject)
        };
        lost.into_iter().chain([event])
    }

    /// An event of the DNS half about a name, which may hold any bytes.
    pub fn dns(kind: Kind, time: SystemTime, subject: &Subject, name: &str) -> Self {
        Self { hook: Some("dns".into()), dst_name: Some(escape::name(name)), ..Self::new(kind, time, subject) }
    }

    /// The event as one line of JSON in ASCII, without the newline.
    pub fn to_json_line(&self) -> serde_json::Result<String> {
        escape::json_line(self)
    }
}

/// A thread's name as the kernel pads it, up to the first zero.
fn comm(padded: &[u8]) -> String {
    let name = padded.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// Zero means unknown in kernel records.
fn present<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn kind(hook: u8) -> Kind {
    match Hook::from_number(hook) {
        Some(Hook::Connect4 | Hook::Connect6 | Hook::SocketConnect) => Kind::Connect,
        Some(Hook::Sendmsg4 | Hook::Sendmsg6 | Hook::SocketSendmsg | Hook::FilePermission) => Kind::Send,
        Some(Hook::Bind4 | Hook::Bind6) => Kind::Bind,
        Some(
            Hook::SockCreate
            | Hook::SocketCreate
            | Hook::SocketRecvmsg
            | Hook::SocketSetsockopt
            | Hook::SocketGetsockopt
            | Hook::FileReceive,
        ) => Kind::Socket,
        Some(Hook::Egress | Hook::Ingress | Hook::Device | Hook::DeviceIngress) | None => Kind::Packet,
    }
}

/// RFC 3339 in UTC with milliseconds.
mod rfc3339 {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use std::{borrow::Cow, time::SystemTime};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
pub(super) mod tests;
