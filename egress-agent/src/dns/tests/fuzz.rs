//! Mutated messages from both sides, with a fixed seed: no panic, and no answer that breaks its own limits.

use super::{
    lab::{Records, Rules, config, query},
    scripted::{address, cname},
};
use crate::dns::{
    Name, answer, relay,
    responder::{Peer, Responder, State, Step, TCP, UDP},
    upstream::Schedule,
    wire,
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{RecordType, rdata},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::sync::Arc;

const ROUNDS: usize = 100_000;

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
fn a15_mutated_queries() {
    let rules = Rules { allow: vec!["api.example.test", "*.wild.test"], deny: vec!["bad.wild.test"] };
    let records = Arc::new(Records::default());
    let state = State::new(config(rules, &["192.0.2.53:53".parse().unwrap()]), Schedule::default(), None);
    let (permits, clients, events) = (Arc::clone(&records), Arc::clone(&records), Arc::clone(&records));
    let responder = Arc::new(Responder::new(state, permits, clients, events));
    let seeds = client_seeds();
    let mut random = StdRng::seed_from_u64(15);
    let mut out = Vec::new();
    let (mut silent, mut answered, mut asked) = (0, 0, 0);
    for round in 0..ROUNDS {
        let mut message = mutate(&mut random, &seeds[round % seeds.len()]);
        if round % 10 == 0 {
            random.fill_bytes(&mut message);
        }
        let protocol = if round % 2 == 0 { UDP } else { TCP };
        match responder.receive(&message, Peer { protocol, port: 5000 }, &mut out) {
            Step::Silent => silent += 1,
            Step::Ask(miss) => {
                asked += 1;
                let rules = miss.rules.clone();
                assert!(!rules.is_empty() && [1, 28].contains(&miss.query.question.qtype()), "{message:?}");
            }
            Step::Answered => {
                answered += 1;
                assert!(out.len() <= 1232 && out[..2] == message[..2] && out[2] & 0x80 != 0, "{message:?}");
                Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {message:?} -> {out:?}"));
            }
        }
    }
    assert!(silent > 100 && answered > 10_000 && asked > 1000, "{silent} {answered} {asked}");
}

#[test]
fn mutated_answers() {
    let name: Name = "api.example.test".parse().unwrap();
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
    reply.authorities =
        vec![hickory_proto::rr::Record::from_rdata(".".parse().unwrap(), 60, hickory_proto::rr::RData::SOA(soa))];
    let seed = reply.to_vec().unwrap();
    let (query, None) = wire::read(&query("api.example.test", RecordType::A, Some(512))).unwrap() else { panic!() };
    let mut random = StdRng::seed_from_u64(16);
    let mut out = Vec::new();
    let (mut decoded, mut relayed) = (0, 0);
    for _ in 0..ROUNDS {
        let message = mutate(&mut random, &seed);
        if relay::write(&query, &message, 512, &mut out).is_some() {
            relayed += 1;
            assert!(out.len() <= 512 && out[..2] == query.id.to_be_bytes());
        }
        let Some(message) = answer::decode(&message) else { continue };
        decoded += 1;
        let walk = answer::walk(&message, &name, 1, answer::MAX_HOPS);
        assert!(walk.hops.len() <= answer::MAX_HOPS);
        if let answer::End::Addresses(addresses) = walk.end {
            assert!(
                !addresses.is_empty()
                    && addresses.len() <= answer::MAX_ADDRESSES
                    && addresses.iter().all(std::net::IpAddr::is_ipv4)
            );
        }
    }
    assert!(decoded > 1000 && relayed > 1000, "{decoded} {relayed}");
}
