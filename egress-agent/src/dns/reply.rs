//! Answers to clients, written octet by octet.
//!
//! Every answer repeats the client's question as it was written (Go ignores an answer without it), and every owner is a
//! pointer to that question, or into the chain of CNAMEs where that is kept. A truncated answer carries as many whole
//! records as fit, because musl before 1.2.4 has no TCP to fall back to.

use super::{
    name::Name,
    wire::{HEADER, Query, Rcode, UDP_SIZE, rtype},
};
use std::net::IpAddr;

/// An extended error (RFC 8914): why the answer is what it is. Sent only to clients that sent an OPT record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ede(u16, &'static str);

impl Ede {
    pub(super) const NOT_ALLOWED: Self = Self(15, "not in allowlist");
    pub(super) const REBINDING: Self = Self(15, "rebinding");
    pub(super) const RATE: Self = Self(0, "rate");
    pub(super) const TUNNEL: Self = Self(0, "too many new names");
    pub(super) const BUSY: Self = Self(0, "too many queries in flight");
    pub(super) const PERMIT: Self = Self(0, "address could not be permitted");
    pub(super) const CHAIN: Self = Self(0, "CNAME chain too long");
    pub(super) const UPSTREAM_SILENT: Self = Self(22, "no upstream answered");
    pub(super) const UPSTREAM_NETWORK: Self = Self(23, "no upstream reachable");
    pub(super) const UPSTREAM_FAILED: Self = Self(22, "upstreams failed");
    pub(super) const UPSTREAM_MALFORMED: Self = Self(24, "upstream answer malformed");
}

/// The records of an answer section.
#[derive(Clone, Copy, Debug)]
pub(super) enum Records<'a> {
    None,
    /// Of the question's name, or of the last target where there is a chain of CNAMEs to it.
    Addresses {
        chain: &'a [Name],
        addresses: &'a [IpAddr],
        ttl: u32,
    },
    Pointers {
        names: &'a [Name],
        ttl: u32,
    },
    /// Of the question's name and type.
    Services {
        data: &'a [Vec<u8>],
        ttl: u32,
    },
}

/// What an answer says. Shared by every place that answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    pub(super) rcode: Rcode,
    pub(super) records: Records<'a>,
    /// TTL of the SOA record that makes a negative answer cacheable (RFC 2308); `None` leaves the record out.
    pub(super) negative_ttl: Option<u32>,
    pub(super) ede: Option<Ede>,
}

impl Content<'_> {
    /// A bare code.
    pub(super) const fn code(rcode: Rcode) -> Self {
        Self { rcode, records: Records::None, negative_ttl: None, ede: None }
    }

    /// SERVFAIL and why.
    pub(super) const fn fail(ede: Ede) -> Self {
        Self { ede: Some(ede), ..Self::code(Rcode::ServFail) }
    }

    /// No such name, for `ttl` seconds.
    pub(super) const fn nxdomain(ttl: u32, ede: Option<Ede>) -> Self {
        Self { negative_ttl: Some(ttl), ede, ..Self::code(Rcode::NxDomain) }
    }

    /// The name is there, the type is not, for `ttl` seconds.
    pub(super) const fn nodata(ttl: u32, ede: Option<Ede>) -> Self {
        Self { negative_ttl: Some(ttl), ede, ..Self::code(Rcode::NoError) }
    }
}

const QUESTION_POINTER: u16 = 0xc000 | HEADER as u16;
const CLASS_IN: u16 = 1;
/// Octets of an AAAA record whose owner is a pointer.
const LONGEST_ADDRESS: usize = 28;
/// Octets of an OPT record without options.
const OPT_FIXED: usize = 11;
const OPTION_EDE: u16 = 15;

/// Writes the answer into `out`, at most `limit` octets, and returns how many of the addresses or pointers are in it.
pub(super) fn write(query: &Query, content: &Content<'_>, limit: usize, out: &mut Vec<u8>) -> usize {
    out.clear();
    out.extend([0; HEADER]);
    out.extend(query.question.as_wire());
    let opt = query.opt.map_or(0, |_| OPT_FIXED + content.ede.map_or(0, |Ede(_, text)| 6 + text.len()));
    let room = limit.saturating_sub(opt);

    let mut links = 0;
    let (wanted, written) = match content.records {
        Records::None => (0, 0),
        Records::Addresses { chain, addresses, ttl } => {
            let owner = put_chain(out, room, chain, ttl);
            links = owner.map_or(0, |_| chain.len());
            let owner = owner.unwrap_or(QUESTION_POINTER);
            (addresses.len(), fill(out, room, addresses, |out, address| put_address(out, owner, *address, ttl)))
        }
        Records::Pointers { names, ttl } => {
            (names.len(), fill(out, room, names, |out, name| put_pointer(out, name, ttl)))
        }
        Records::Services { data, ttl } => {
            let qtype = query.question.qtype();
            (data.len(), fill(out, room, data, |out, data| put_service(out, qtype, data, ttl)))
        }
    };
    let soa = content.negative_ttl.map_or(0, |ttl| fill(out, room, [ttl], |out, ttl| put_soa(out, query, ttl)));
    if let Some(client) = query.opt {
        put_opt(out, content.rcode, client.dnssec_ok, content.ede);
    }

    let truncated = written < wanted;
    let questions = u16::from(!query.question.as_wire().is_empty());
    let flags = [
        0x80 | query.opcode << 3 | u8::from(truncated) << 1 | u8::from(query.recursion_desired),
        0x80 | u8::from(query.checking_disabled) << 4 | (content.rcode as u16 & 0x0f) as u8,
    ];
    let counts = [questions, (links + written) as u16, soa as u16, u16::from(query.opt.is_some())];
    out[..2].copy_from_slice(&query.id.to_be_bytes());
    out[2..4].copy_from_slice(&flags);
    for (field, count) in out[4..HEADER].as_chunks_mut().0.iter_mut().zip(counts) {
        *field = count.to_be_bytes();
    }
    written
}

/// Puts records until one does not fit; returns how many did.
fn fill<T>(out: &mut Vec<u8>, room: usize, items: impl IntoIterator<Item = T>, put: impl Fn(&mut Vec<u8>, T)) -> usize {
    let mut written = 0;
    for item in items {
        let before = out.len();
        put(out, item);
        if out.len() > room {
            out.truncate(before);
            break;
        }
        written += 1;
    }
    written
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_be_bytes());
}

/// The fixed part behind an owner name.
fn put_fixed(out: &mut Vec<u8>, rtype: u16, ttl: u32, length: usize) {
    put_u16(out, rtype);
    put_u16(out, CLASS_IN);
    out.extend(ttl.to_be_bytes());
    put_u16(out, length as u16);
}

/// The links from the question's name to the last target, whose pointer is returned. Where they leave no room for an
/// address there are none: the address at the question's name is worth more.
fn put_chain(out: &mut Vec<u8>, room: usize, chain: &[Name], ttl: u32) -> Option<u16> {
    let start = out.len();
    let mut owner = QUESTION_POINTER;
    for target in chain {
        put_u16(out, owner);
        put_fixed(out, rtype::CNAME, ttl, target.as_wire().len());
        // Twelve links of 255 octets stay below the 16 KiB that a pointer reaches.
        owner = 0xc000 | out.len() as u16;
        out.extend(target.as_wire());
    }
    if out.len() + LONGEST_ADDRESS > room {
        out.truncate(start);
        return None;
    }
    Some(owner)
}

fn put_address(out: &mut Vec<u8>, owner: u16, address: IpAddr, ttl: u32) {
    put_u16(out, owner);
    match address {
        IpAddr::V4(v4) => {
            put_fixed(out, rtype::A, ttl, 4);
            out.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            put_fixed(out, rtype::AAAA, ttl, 16);
            out.extend(v6.octets());
        }
    }
}

fn put_pointer(out: &mut Vec<u8>, name: &Name, ttl: u32) {
    put_u16(out, QUESTION_POINTER);
    put_fixed(out, rtype::PTR, ttl, name.as_wire().len());
    out.extend(name.as_wire());
}

fn put_service(out: &mut Vec<u8>, rtype: u16, data: &[u8], ttl: u32) {
    put_u16(out, QUESTION_POINTER);
    put_fixed(out, rtype, ttl, data.len());
    out.extend(data);
}

/// An SOA record at the parent of the question's name, for resolvers in the sandbox cache a negative answer only with one.
fn put_soa(out: &mut Vec<u8>, query: &Query, ttl: u32) {
    let labels = query.question.labels();
    match labels.first() {
        Some(first) if labels.len() > 1 => put_u16(out, QUESTION_POINTER + 1 + first.len() as u16),
        _ => out.push(0),
    }
    // Both names are the root: there is no zone and nobody to write to.
    put_fixed(out, rtype::SOA, ttl, 22);
    out.extend([0, 0]);
    for number in [1, 3600, 600, 86400, ttl] {
        out.extend(number.to_be_bytes());
    }
}

pub(super) fn put_opt(out: &mut Vec<u8>, rcode: Rcode, dnssec_ok: bool, ede: Option<Ede>) {
    out.push(0);
    put_u16(out, rtype::OPT);
    put_u16(out, UDP_SIZE);
    out.extend([(rcode as u16 >> 4) as u8, 0, u8::from(dnssec_ok) << 7, 0]);
    let Some(Ede(code, text)) = ede else { return put_u16(out, 0) };
    put_u16(out, (6 + text.len()) as u16);
    put_u16(out, OPTION_EDE);
    put_u16(out, (2 + text.len()) as u16);
    put_u16(out, code);
    out.extend(text.as_bytes());
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
