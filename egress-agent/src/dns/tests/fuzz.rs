//! Mutated messages from both sides, with a fixed seed: no panic, and no answer that breaks its own limits.

use crate::dns::fuzzing::{Became, FromClient, FromUpstream};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::{
    fs,
    path::{Path, PathBuf},
};

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

/// Messages of the cases, a file each, with which `cargo xtask fuzz` begins too.
fn seeds(side: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(side);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    // In one order, whatever the directory's is: what is mutated how must not change.
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn a15_a_million_mutated_queries() {
    let seeds = seeds("queries");
    let mut random = StdRng::seed_from_u64(15);
    let mut client = FromClient::new();
    let (mut silent, mut answered, mut asked) = (0, 0, 0);
    for round in 0..ROUNDS {
        // The first octet is the transport.
        let mut message = mutate(&mut random, &seeds[round % seeds.len()][1..]);
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
    let seeds = seeds("answers");
    let mut random = StdRng::seed_from_u64(16);
    let mut upstream = FromUpstream::new();
    let (mut decoded, mut relayed) = (0, 0);
    for round in 0..ROUNDS {
        let (whole, passed) = upstream.receive(&mutate(&mut random, &seeds[round % seeds.len()]));
        decoded += usize::from(whole);
        relayed += usize::from(passed);
    }
    assert!(decoded > 10_000 && relayed > 10_000, "{decoded} {relayed}");
}
