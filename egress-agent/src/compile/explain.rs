//! From a rule back to the line of the policy.

use super::Image;
use crate::policy::{Ports, Position};
use egress_common::{destination::Protocols, permit::rule_flags};
use std::fmt;

/// One line of the policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The key with its table, e.g. `allow.names`.
    pub key: &'static str,
    /// The value as written.
    pub text: String,
    /// Where it stands; `None` for policies built in code, and for defaults.
    pub at: Option<Position>,
    /// The ports it speaks of.
    pub ports: Ports,
}

/// `allow.names: github.com (ci.toml:7:13)`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)?;
        match &self.at {
            Some(at) => write!(f, " ({at})"),
            None => Ok(()),
        }
    }
}

/// A line of a policy without its place in a file.
pub(super) fn line(key: &str, text: &str) -> String {
    format!("{key}: {text}")
}

/// The lines behind one compiled rule, never none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleText(pub(super) Vec<Origin>);

impl RuleText {
    /// All of them, sorted by key and text.
    pub fn origins(&self) -> &[Origin] {
        &self.0
    }

    /// What [`RuleIds::recognise`](super::RuleIds::recognise) knows the rule by, where somebody else has to take over.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(|origin| line(origin.key, &origin.text)).collect()
    }

    /// A rule of the kernel's whose lines nobody knows.
    pub fn unknown() -> Self {
        Self(Vec::new())
    }
}

impl Image {
    /// The lines behind the rule of that tag (an event's `rule_tag`).
    pub fn origins(&self, tag: u32) -> &[Origin] {
        let rule = self.rules.iter().find(|(rule, _)| rule.tag == tag);
        rule.map(|(_, (_, text))| text.origins()).unwrap_or_default()
    }

    /// The line that decided: the first behind the rule that speaks of the port. Without a port (ICMP, later fragments), or
    /// where the rule denied by all its lines together, the first.
    pub fn explain(&self, tag: u32, protocol: Protocols, port: Option<u16>) -> Option<&Origin> {
        let (_, (rule, text)) = self.rules.iter().find(|(rule, _)| rule.tag == tag)?;
        let denies = rule.flags & rule_flags::DENY != 0;
        let speaks = |origin: &&Origin| match port {
            None => true,
            Some(port) if denies => origin.ports.closes(protocol, port),
            Some(port) => origin.ports.opens(protocol, port),
        };
        text.origins().iter().find(speaks).or_else(|| text.origins().first())
    }
}
