//! Messages from clients: hostile bytes, read by hand.
//!
//! A general decoder accepts no question or two, accepts trailing bytes, does not keep the question as it was written, and
//! allocates; here a query is refused unless its counts, records and options tile the message exactly.

use super::name::{Labels, MAX_WIRE, Name, wire_len};

/// Octets of a message's header (RFC 1035, 4.1.1).
pub(super) const HEADER: usize = 12;
/// The largest UDP message that either side of this server sends or asks for (DNS Flag Day 2020).
pub(super) const UDP_SIZE: u16 = 1232;
/// What a client takes that does not say (RFC 1035, 4.2.1), and the least that it may say (RFC 6891, 6.2.3).
const UDP_FLOOR: u16 = 512;

/// Query and record types by number (IANA, DNS Parameters).
pub(super) mod rtype {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const OPT: u16 = 41;
    pub(in super::super) const SVCB: u16 = 64;
    pub(in super::super) const HTTPS: u16 = 65;
    pub(in super::super) const IXFR: u16 = 251;
    pub(in super::super) const MAILA: u16 = 254;
}

const CLASS_IN: u16 = 1;
const OPCODE_QUERY: u8 = 0;

/// Response codes that this server sends; BADVERS needs an OPT record (RFC 6891, 6.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(super) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
}

/// Messages that get no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Silence {
    /// Shorter than a header.
    Short,
    /// A response: answering one could make two servers talk for ever.
    Response,
}

/// The question as its client wrote it: an uncompressed name in any case, type and class. Empty where none could be read.
#[derive(Clone)]
pub(super) struct Question {
    octets: [u8; MAX_WIRE + 4],
    len: u16,
}

impl Question {
    const NONE: Self = Self { octets: [0; MAX_WIRE + 4], len: 0 };

    fn read(message: &[u8]) -> Option<Self> {
        let rest = message.get(HEADER..)?;
        let end = wire_len(rest)? + 4;
        let mut question = Self { len: end as u16, ..Self::NONE };
        question.octets[..end].copy_from_slice(rest.get(..end)?);
        Some(question)
    }

    /// Everything, as received.
    pub(super) fn as_wire(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    fn name_wire(&self) -> &[u8] {
        &self.octets[..usize::from(self.len.saturating_sub(4))]
    }

    /// Labels in the client's case.
    pub(super) fn labels(&self) -> Labels<'_> {
        Labels::of(self.name_wire())
    }

    /// The name in lower case; the root where there is no question.
    pub(super) fn name(&self) -> Name {
        Name::from_wire(self.name_wire()).unwrap_or_else(Name::root)
    }

    fn word(&self, from_end: usize) -> u16 {
        let wire = self.as_wire();
        wire.len().checked_sub(from_end).map_or(0, |at| u16::from_be_bytes([wire[at], wire[at + 1]]))
    }

    /// QTYPE.
    pub(super) fn qtype(&self) -> u16 {
        self.word(4)
    }

    fn qclass(&self) -> u16 {
        self.word(2)
    }
}

/// What a client's OPT record says that this server heeds. Its options are checked and forgotten: none is ever forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ClientOpt {
    size: u16,
    /// Copied into the answer (RFC 3225, 3), not acted on.
    pub(super) dnssec_ok: bool,
}

/// What an answer needs to know of its query.
#[derive(Clone)]
pub(super) struct Query {
    pub(super) id: u16,
    pub(super) opcode: u8,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    pub(super) question: Question,
    pub(super) opt: Option<ClientOpt>,
}

impl Query {
    /// Octets that an answer over UDP may have.
    pub(super) fn udp_limit(&self) -> usize {
        usize::from(self.opt.map_or(UDP_FLOOR, |opt| opt.size.clamp(UDP_FLOOR, UDP_SIZE)))
    }
}

/// Reads a client's message: the query, and the code that refuses it if its form or its class of question is not served.
pub(super) fn read(message: &[u8]) -> Result<(Query, Option<Rcode>), Silence> {
    let Some(header) = message.first_chunk::<HEADER>() else { return Err(Silence::Short) };
    let [id0, id1, flags0, flags1, qd0, qd1, an0, an1, ns0, ns1, ar0, ar1] = *header;
    if flags0 & 0x80 != 0 {
        return Err(Silence::Response);
    }
    let mut query = Query {
        id: u16::from_be_bytes([id0, id1]),
        opcode: flags0 >> 3 & 0x0f,
        recursion_desired: flags0 & 0x01 != 0,
        checking_disabled: flags1 & 0x10 != 0,
        question: Question::NONE,
        opt: None,
    };
    if [qd0, qd1] == [0, 1]
        && let Some(question) = Question::read(message)
    {
        query.question = question;
    }
    if query.opcode != OPCODE_QUERY {
        return Ok((query, Some(Rcode::NotImp)));
    }
    let after = usize::from(query.question.len);
    if after == 0 || [an0, an1, ns0, ns1] != [0; 4] {
        return Ok((query, Some(Rcode::FormErr)));
    }
    let Some(version) = additional(message, HEADER + after, u16::from_be_bytes([ar0, ar1]), &mut query.opt) else {
        return Ok((query, Some(Rcode::FormErr)));
    };
    let refusal = if version != 0 {
        Some(Rcode::BadVers)
    } else if query.question.qclass() != CLASS_IN || (rtype::IXFR..=rtype::MAILA).contains(&query.question.qtype()) {
        Some(Rcode::Refused)
    } else {
        None
    };
    Ok((query, refusal))
}

/// Walks the additional section, which must end with the message. Returns the EDNS version.
fn additional(message: &[u8], start: usize, count: u16, opt: &mut Option<ClientOpt>) -> Option<u8> {
    let mut at = start;
    let mut version = 0;
    for _ in 0..count {
        let owner = at;
        at = skip_name(message, at)?;
        let (fixed, rest) = message.get(at..)?.split_first_chunk::<10>()?;
        let [type0, type1, class0, class1, _, ttl1, ttl2, _, len0, len1] = *fixed;
        let length = usize::from(u16::from_be_bytes([len0, len1]));
        let content = rest.get(..length)?;
        at += fixed.len() + length;
        if u16::from_be_bytes([type0, type1]) != rtype::OPT {
            continue;
        }
        if opt.is_some() || message[owner] != 0 || !options_tile(content) {
            return None;
        }
        version = ttl1;
        *opt = Some(ClientOpt { size: u16::from_be_bytes([class0, class1]), dnssec_ok: ttl2 & 0x80 != 0 });
    }
    (at == message.len()).then_some(version)
}

/// The offset behind a name that may end in a pointer; the pointer is not followed.
pub(super) fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
    }
}

/// True where {code, length, octets} fill the content exactly (RFC 6891, 6.1.2).
fn options_tile(mut content: &[u8]) -> bool {
    while !content.is_empty() {
        let Some(([_, _, len0, len1], rest)) = content.split_first_chunk::<4>() else { return false };
        let Some(after) = rest.get(usize::from(u16::from_be_bytes([*len0, *len1]))..) else { return false };
        content = after;
    }
    true
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
