//! Upstream message -> addresses: the chain from the question, and nothing else in the message.

use super::{lifetime, name::Name, services, wire::rtype};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{self, DNSClass, RData},
};
use std::net::IpAddr;

/// Links of a CNAME chain that are followed, over all exchanges of one query.
pub(super) const MAX_HOPS: usize = 12;
/// Addresses of one answer that are released and permitted.
pub(super) const MAX_ADDRESSES: usize = 128;
/// Life of a negative answer that says no time of its own.
const NEGATIVE_TTL: u32 = 5;

/// What upstream said of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Walk {
    /// Targets of the chain in order, the last included.
    pub(super) hops: Vec<Name>,
    /// Least TTL of what was used, in seconds.
    pub(super) ttl: u32,
    pub(super) end: End,
}

/// How a chain ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Addresses in upstream's order, none twice, at most [`MAX_ADDRESSES`].
    Addresses(Vec<IpAddr>),
    /// Data of SVCB or HTTPS records, as far as they may be let out; at most [`services::MAX_RECORDS`].
    Services(Vec<Vec<u8>>),
    /// Upstream stopped in the middle: ask for the last hop.
    Chase,
    /// For so many seconds.
    NoData(u32),
    /// For so many seconds.
    NxDomain(u32),
    /// More than the hops allowed, or a loop.
    TooLong,
}

/// Decodes a message whose id and question were found to match. Octets behind the message are ignored: nothing of it is
/// passed on. One malformed record makes the whole message unusable, and so does an error that only its OPT record names.
pub(super) fn decode(message: &[u8]) -> Option<Message> {
    let message = Message::from_vec(message).ok()?;
    matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain).then_some(message)
}

/// Follows the chain from `name` through the answer section of a NOERROR or NXDOMAIN message.
///
/// Only CNAMEs are links (a DNAME counts through the CNAME that upstream made of it), the first of an owner wins, and only
/// addresses of class IN, of the asked type and of the last owner are taken.
pub(super) fn walk(message: &Message, name: &Name, qtype: u16, hops_left: usize) -> Walk {
    let mut walk = Walk { hops: Vec::new(), ttl: u32::MAX, end: End::TooLong };
    let mut owner = name.clone();
    while let Some((target, ttl)) = cname(message, &owner) {
        if walk.hops.len() == hops_left {
            return walk;
        }
        let Some(target) = target else { return walk };
        walk.ttl = walk.ttl.min(ttl);
        walk.hops.push(target.clone());
        owner = target;
    }
    let mut addresses = Vec::new();
    let mut services = Vec::new();
    for record in of_owner(message, &owner) {
        if let Some(service) = services::of_type(&record.data, qtype) {
            walk.ttl = walk.ttl.min(lifetime::ttl(record.ttl));
            services.push(service);
            continue;
        }
        let address = match (&record.data, qtype) {
            (RData::A(a), rtype::A) => IpAddr::V4(a.0),
            (RData::AAAA(aaaa), rtype::AAAA) => IpAddr::V6(aaaa.0),
            _ => continue,
        };
        walk.ttl = walk.ttl.min(lifetime::ttl(record.ttl));
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let negative = negative_ttl(message).map(|ttl| ttl.min(walk.ttl));
    walk.end = if message.metadata.response_code == ResponseCode::NXDomain {
        End::NxDomain(negative.unwrap_or(NEGATIVE_TTL))
    } else if !addresses.is_empty() {
        End::Addresses(addresses)
    } else if !services.is_empty() {
        let aliased = services.iter().any(|record| services::is_alias(record));
        let sanitised: Vec<_> =
            services.into_iter().filter_map(services::sanitised).take(services::MAX_RECORDS).collect();
        if aliased || sanitised.is_empty() { End::NoData(walk.ttl) } else { End::Services(sanitised) }
    } else if !walk.hops.is_empty() && negative.is_none() {
        End::Chase
    } else {
        End::NoData(negative.unwrap_or(NEGATIVE_TTL))
    };
    walk
}

fn of_owner<'a>(message: &'a Message, owner: &'a Name) -> impl Iterator<Item = &'a rr::Record> {
    let owner = owner.labels();
    message.answers.iter().filter(move |record| record.dns_class == DNSClass::IN && same(&record.name, &owner))
}

/// The target and TTL of the owner's first CNAME; no target where it is no name of ours.
fn cname(message: &Message, owner: &Name) -> Option<(Option<Name>, u32)> {
    of_owner(message, owner).find_map(|record| match &record.data {
        RData::CNAME(target) => Some((Name::from_labels(target.0.iter()).ok(), lifetime::ttl(record.ttl))),
        _ => None,
    })
}

fn same(theirs: &rr::Name, ours: &[&[u8]]) -> bool {
    theirs.iter().len() == ours.len() && theirs.iter().zip(ours).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// How long the message says that there is nothing (RFC 2308, 5).
fn negative_ttl(message: &Message) -> Option<u32> {
    message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(lifetime::ttl(record.ttl).min(lifetime::ttl(soa.minimum))),
        _ => None,
    })
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
