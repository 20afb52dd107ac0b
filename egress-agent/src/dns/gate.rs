//! Message -> what to do with it. Nothing here asks anybody but the policy.

use super::{
    event::Reason,
    permits::{NameVerdict, Names},
    special::{self, Special},
    tunnel,
    wire::{Question, rtype},
};
use std::net::IpAddr;

/// Why a name is not allowed, before it is known who asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) rule: Option<usize>,
    pub(super) reason: Reason,
}

/// By what a name goes upstream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pass {
    pub(super) rules: Vec<usize>,
    /// Labels below the wildcard that alone matches: the asker's own choice.
    pub(super) free_labels: Option<usize>,
}

/// What to do with a well-formed question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Answer the sandbox's loopback address of the asked family.
    Loopback,
    /// Answer the names that permits hold for the address.
    Reverse(IpAddr),
    /// The name is there, this type is not.
    NoData,
    /// Tell the client that the name is not allowed: no data where a rule names something below it, no name otherwise.
    Deny(Refusal),
    /// Ask upstream, permit the addresses that it says by the rules that pass it, answer. Only while observing there is a refusal
    /// that would have come instead, no rule, or a type other than A and AAAA.
    Forward { pass: Pass, refusal: Option<Refusal> },
}

/// Judges a question of class IN whose type is not a zone transfer.
///
/// With `observe`, names and types that would be kept back are forwarded. Not so, because the same answer is what makes
/// enforcing work or keeps a name where it belongs: names that lead clients past this resolver, HTTPS and SVCB, loopback
/// names, the reverse tree, and names that must not leave the host (RFC 6762, 7686).
///
/// With `services`, SVCB and HTTPS of an allowed name are forwarded.
pub(super) fn decide(question: &Question, names: &dyn Names, observe: bool, services: bool) -> Decision {
    let labels = question.labels();
    let qtype = question.qtype();
    match special::special(&labels) {
        Some(Special::Localhost) => return Decision::Loopback,
        Some(Special::Canary) => return Decision::Deny(Refusal { rule: None, reason: Reason::Canary }),
        Some(Special::Reverse(address)) => return Decision::Reverse(address),
        Some(Special::ReverseTree | Special::Nat64Probe) => return Decision::NoData,
        None => {}
    }
    let refuse = |rule, reason| Some(Refusal { rule, reason });
    let mut pass = Pass::default();
    let refusal = match names.verdict(&labels) {
        NameVerdict::Allow { rules, free_labels } => {
            let outsized = free_labels.is_some_and(|free| tunnel::is_outsized(&labels, free));
            pass = Pass { rules, free_labels };
            refuse(None, Reason::Outsized).filter(|_| outsized)
        }
        NameVerdict::Deny { rule } => refuse(Some(rule), Reason::DenyRule),
        NameVerdict::Ancestor => refuse(None, Reason::Ancestor),
        NameVerdict::Unlisted if special::is_local(&labels) => refuse(None, Reason::Local),
        NameVerdict::Unlisted => refuse(None, Reason::Unlisted),
    };
    let forward = is_address(qtype) || if is_service(qtype) { services } else { observe };
    match refusal {
        Some(refusal) if !observe || special::never_forwarded(&labels) => Decision::Deny(refusal),
        _ if !forward => Decision::NoData,
        refusal => Decision::Forward { pass, refusal },
    }
}

pub(super) fn is_address(qtype: u16) -> bool {
    matches!(qtype, rtype::A | rtype::AAAA)
}

pub(super) fn is_service(qtype: u16) -> bool {
    matches!(qtype, rtype::SVCB | rtype::HTTPS)
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
