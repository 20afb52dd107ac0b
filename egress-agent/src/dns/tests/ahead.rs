//! Names of the policy that are resolved before the sandbox asks.

use super::{
    lab::{Lab, addresses, allow, config, ips},
    scripted::{Upstream, address, good, whole},
};
use crate::dns::{DnsError, Name, NotResolved, UpstreamError};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

const NAME: &str = "api.example.test";

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Each name that was refused, and why.
fn refused(lab: &Lab, texts: &[&str]) -> Vec<(String, NotResolved)> {
    match lab.server.require(names(texts)) {
        Ok(()) => Vec::new(),
        Err(DnsError::Unresolved { names }) => names.into_iter().map(|one| (one.name.to_string(), one.why)).collect(),
        Err(error) => panic!("{error}"),
    }
}

fn asked(upstream: &Upstream, qtype: RecordType) -> usize {
    upstream.asked().iter().filter(|asked| asked.qtype() == qtype).count()
}

#[test]
fn e12_every_name_without_an_address_is_named() {
    let upstream = Upstream::start(|asked| match asked.name().as_str() {
        "gone.invalid" => whole(&asked.code(ResponseCode::NXDomain)),
        "empty.example.test" => whole(&asked.reply(vec![])),
        "inside.example.test" => whole(&asked.reply(vec![address("inside.example.test", 60, "10.0.0.1")])),
        _ => good(asked),
    });
    let all = [NAME, "gone.invalid", "other.example.test", "empty.example.test", "inside.example.test"];
    let lab = Lab::start(allow(&all), &[&upstream]);
    let start = Instant::now();
    assert_eq!(
        refused(&lab, &all),
        [
            ("gone.invalid".into(), NotResolved::NoSuchName),
            ("empty.example.test".into(), NotResolved::NoAddress),
            ("inside.example.test".into(), NotResolved::Closed),
        ]
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    let text = lab.server.require(names(&all)).unwrap_err().to_string();
    assert!(text.starts_with("no address for gone.invalid (no such name), empty.example.test (the name has"), "{text}");
    assert_eq!(refused(&lab, &[NAME, "other.example.test"]), []);
}

#[test]
fn e13_a_name_that_fails_twice_resolves_at_the_third_attempt() {
    let tries = AtomicUsize::new(0);
    let upstream = Upstream::start(move |asked| match asked.qtype() {
        RecordType::A if tries.fetch_add(1, Ordering::SeqCst) < 2 => whole(&asked.code(ResponseCode::ServFail)),
        _ => good(asked),
    });
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    let start = Instant::now();
    assert_eq!(refused(&lab, &[NAME]), []);
    assert!(start.elapsed() >= Duration::from_millis(400), "the pauses between attempts");
    assert_eq!(asked(&upstream, RecordType::A), 3);
    // Into the cache, and no further: the sandbox's question opens it, and asks nobody.
    assert!(lab.records.permits().is_empty());
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    assert_eq!((asked(&upstream, RecordType::A), lab.records.permits().len()), (3, 1));
}

#[test]
fn e13_four_attempts_are_all() {
    let upstream = Upstream::start(|asked| whole(&asked.code(ResponseCode::ServFail)));
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    assert_eq!(refused(&lab, &[NAME]), [(NAME.into(), NotResolved::Failed(UpstreamError::Rcode(2)))]);
    assert_eq!(asked(&upstream, RecordType::A), 4);
}

#[test]
fn e14_a_silent_upstream_ends_it_within_10_s() {
    let upstream = Upstream::start(|_| Vec::new());
    let all = ["a.example.test", "b.example.test", "c.example.test"];
    let lab = Lab::with(config(allow(&all), &[upstream.address]));
    let start = Instant::now();
    assert_eq!(refused(&lab, &all).len(), 3);
    let took = start.elapsed();
    assert!((Duration::from_secs(8)..Duration::from_secs(10)).contains(&took), "{took:?}");
    assert!(asked(&upstream, RecordType::A) >= 4 * 3, "four attempts at each of them, side by side");
}

#[test]
fn e14_an_attempt_takes_two_seconds_and_no_longer() {
    let tries = AtomicUsize::new(0);
    let upstream = Upstream::start(move |asked| match asked.qtype() {
        // One packet for each attempt: nothing is sent again within it.
        RecordType::A if tries.fetch_add(1, Ordering::SeqCst) < 2 => Vec::new(),
        _ => good(asked),
    });
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    let start = Instant::now();
    assert_eq!(refused(&lab, &[NAME]), []);
    let took = start.elapsed();
    assert!((Duration::from_millis(4400)..Duration::from_millis(6400)).contains(&took), "{took:?}");
    assert_eq!(asked(&upstream, RecordType::A), 3);
}

#[test]
fn e14_an_address_of_either_family_is_enough() {
    let v6 = Upstream::start(|asked| match asked.qtype() {
        RecordType::AAAA => whole(&asked.reply(vec![address(NAME, 60, "2001:db8::7")])),
        _ => whole(&asked.reply(vec![])),
    });
    assert_eq!(refused(&Lab::start(allow(&[NAME]), &[&v6]), &[NAME]), []);
    let slow_v6 = Upstream::start(|asked| if asked.qtype() == RecordType::A { good(asked) } else { Vec::new() });
    let start = Instant::now();
    assert_eq!(refused(&Lab::start(allow(&[NAME]), &[&slow_v6]), &[NAME]), []);
    assert!(start.elapsed() < Duration::from_secs(2), "IPv4 answered long ago");
}

#[test]
fn warming_waits_for_nobody() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    lab.server.warm(names(&[NAME, "gone.invalid"]));
    let deadline = Instant::now() + super::lab::DEADLINE;
    while lab.server.counts().forwarded < 4 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(lab.records.permits().is_empty());
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
}
