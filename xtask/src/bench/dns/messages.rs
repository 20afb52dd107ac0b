//! The names of the bench, and DNS messages as octets: neither end may cost more than the resolver between them.

use std::net::Ipv4Addr;

/// Names that are allowed one by one: so many that nobody still has one in the cache when its turn comes again.
pub(super) const NAMES: u32 = 20_000;
/// Names with [`MANY_ADDRESSES`] each.
pub(super) const MANY_NAMES: u32 = 2_000;
pub(super) const MANY_ADDRESSES: u32 = 45;
/// Addresses that answers are taken from: below what one sandbox may learn.
const ADDRESSES: u32 = 4_000;
/// Seconds. An answer of no life would spare those who cache the keeping, and who keeps it for a second pays alone.
const TTL: u32 = 300;
/// RFC 1035, 4.1.1
const HEADER: usize = 12;
const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

/// What stands before the zone in a name: the upstream reads its first octet.
pub(super) fn allowed() -> impl Iterator<Item = String> {
    let single = (0..NAMES).map(|number| format!("a{number}.bench.test"));
    let many = (0..MANY_NAMES).map(|number| format!("m{number}.bench.test"));
    single.chain(many).chain([HOT.to_owned()])
}

/// Asked for again and again.
pub(super) const HOT: &str = "hot.bench.test";

/// An A query with recursion desired and room for 1232 octets.
pub(super) fn query(id: u16, name: &str, into: &mut Vec<u8>) {
    into.clear();
    into.extend(id.to_be_bytes());
    into.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        into.push(label.len() as u8);
        into.extend(label.bytes());
    }
    into.extend([0, 0, 1, 0, 1]);
    into.extend(OPT);
}

/// The answer to a query: addresses that its name determines. `None` for what is no query.
pub(super) fn answer(query: &[u8], into: &mut Vec<u8>) -> Option<()> {
    let question = query.get(HEADER..)?;
    let name = question.iter().position(|octet| *octet == 0)?;
    let (first, qtype) = (question.get(1)?.to_ascii_lowercase(), question.get(name + 1..name + 3)?);
    let number = question
        .get(2..)?
        .iter()
        .map_while(|octet| char::from(*octet).to_digit(10))
        .fold(0, |sum, digit| sum * 10 + digit);
    let count = match (first, qtype) {
        (_, [0, kind]) if *kind != 1 => 0,
        (b'm', _) => MANY_ADDRESSES,
        _ => 1,
    };
    into.clear();
    into.extend(query.get(..2)?);
    into.extend([0x81, 0x80, 0, 1]);
    into.extend((count as u16).to_be_bytes());
    into.extend([0, 0, 0, 0]);
    into.extend(question.get(..name + 5)?);
    for index in 0..count {
        let address = (number * MANY_ADDRESSES + index) % ADDRESSES;
        into.extend([0xc0, 0x0c, 0, 1, 0, 1]);
        into.extend(TTL.to_be_bytes());
        into.extend([0, 4]);
        // RFC 2544's range for benchmarks.
        into.extend((u32::from(Ipv4Addr::new(198, 18, 0, 1)) + address).to_be_bytes());
    }
    Some(())
}

/// RCODE and the number of answers.
pub(super) fn outcome(answer: &[u8]) -> Option<(u8, u16)> {
    Some((answer.get(3)? & 0x0f, u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_what_its_name_says() {
        let (mut asked, mut told) = (Vec::new(), Vec::new());
        for (name, count) in [("a7.bench.test", 1), ("m7.bench.test", 45), (HOT, 1)] {
            query(7, name, &mut asked);
            answer(&asked, &mut told).unwrap();
            assert_eq!(outcome(&told), Some((0, count)), "{name}");
            assert!(told.len() <= 1232, "{name}");
        }
        assert_eq!(answer(&[0; 5], &mut told), None);
    }
}
