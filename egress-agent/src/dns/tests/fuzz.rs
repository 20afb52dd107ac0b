//! Mutated messages from both sides, with a fixed seed: no panic, and no answer that breaks its own limits.

use super::{
    lab::query,
    scripted::{address, cname},
};
use crate::dns::fuzzing::{Became, FromClient, FromUpstream};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{RData, Record, RecordType, rdata},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// Of each side.
const ROUNDS: usize = 1_000_000;

fn mutate(random: &mut StdRng, seed: &[u8]) -> Vec<u8> {
    let mut message = seed.to_vec();
    for _ in 0..random.random_range(0..6) {
        if message.is_empty() {
            break;
        }
        let at = random.random_range(0..message.len());
        match random.random_range(0..6) {
            0 => message[at] = random.random(),
            1 => message[at] ^= 1 << random.random_range(0..8),
            2 => message[at] = [0, 1, 41, 63, 64, 0x80, 0xc0, 0xff][random.random_range(0..8)],
            3 => message.truncate(at),
            4 => message.insert(at, random.random()),
            _ => {
                let end = (at + random.random_range(0..16)).min(message.len());
                let piece = message[at..end].to_vec();
                message.extend(piece);
            }
        }
    }
    message
}

fn client_seeds() -> Vec<Vec<u8>> {
    let mut reverse = query("7.100.51.198.in-addr.arpa", RecordType::PTR, None);
    reverse[2] |= 0x78;
    let mut two_opts = query("api.example.test", RecordType::A, Some(512));
    two_opts.extend_from_within(two_opts.len() - 11..);
    two_opts[11] = 2;
    vec![
        query("api.example.test", RecordType::A, Some(1232)),
        query("a.b.wild.test", RecordType::AAAA, None),
        query("localhost", RecordType::A, Some(4096)),
        query("7.100.51.198.in-addr.arpa", RecordType::PTR, None),
        query(&format!("{}test", "a.".repeat(124)), RecordType::HTTPS, Some(512)),
        reverse,
        two_opts,
    ]
}

#[test]
fn a15_a_million_mutated_queries() {
    let seeds = client_seeds();
    let mut random = StdRng::seed_from_u64(15);
    let mut client = FromClient::new();
    let (mut silent, mut answered, mut asked) = (0, 0, 0);
    for round in 0..ROUNDS {
        let mut message = mutate(&mut random, &seeds[round % seeds.len()]);
        if round % 10 == 0 {
            random.fill_bytes(&mut message);
        }
        match client.receive(&message, round % 2 == 0) {
            Became::Nothing => silent += 1,
            Became::Question => asked += 1,
            Became::Answer => answered += 1,
        }
    }
    assert!(silent > 1000 && answered > 100_000 && asked > 10_000, "{silent} {answered} {asked}");
}

#[test]
fn a15_a_million_mutated_answers() {
    let mut reply = Message::new(7, MessageType::Response, OpCode::Query);
    reply.queries = vec![Query::query("api.example.test.".parse().unwrap(), RecordType::A)];
    reply.answers = vec![
        cname("api.example.test", 60, "edge.cdn.test"),
        cname("edge.cdn.test", 60, "pop.cdn.test"),
        address("pop.cdn.test", 60, "198.51.100.7"),
        address("pop.cdn.test", 60, "2001:db8::7"),
        address("stray.test", 60, "203.0.113.66"),
    ];
    let soa = rdata::SOA::new(".".parse().unwrap(), ".".parse().unwrap(), 1, 1, 1, 1, 30);
    reply.authorities = vec![Record::from_rdata(".".parse().unwrap(), 60, RData::SOA(soa))];
    let seed = reply.to_vec().unwrap();
    let mut random = StdRng::seed_from_u64(16);
    let mut upstream = FromUpstream::new();
    let (mut decoded, mut relayed) = (0, 0);
    for _ in 0..ROUNDS {
        let (whole, passed) = upstream.receive(&mutate(&mut random, &seed));
        decoded += usize::from(whole);
        relayed += usize::from(passed);
    }
    assert!(decoded > 10_000 && relayed > 10_000, "{decoded} {relayed}");
}
