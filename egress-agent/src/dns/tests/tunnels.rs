//! Names below a wildcard as a way out, and floods.

use super::{
    lab::{Lab, addresses, allow, config, ede, ips, query},
    scripted::{Upstream, address, whole},
};
use crate::dns::{Config, DnsEvent, Reason};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use std::time::{Duration, Instant};

/// Knows every name.
fn obliging() -> Upstream {
    Upstream::start(|asked| whole(&asked.reply(vec![address(&asked.name(), 60, "198.51.100.7")])))
}

/// A label of 40 characters.
fn word(number: usize) -> String {
    format!("{:0>40x}", (number as u128 + 1) * 0x9e37_79b9_7f4a_7c15_f39c)
}

#[test]
fn f08_t36_words_below_a_wildcard_stop_at_4_kib_a_minute() {
    let upstream = obliging();
    let lab = Lab::start(allow(&["*.wild.test", "api.wild.test"]), &[&upstream]);
    let mut refused = 0;
    for number in 0..500 {
        let answer = lab.ask_a(&format!("{}.wild.test", word(number)));
        match answer.metadata.response_code {
            ResponseCode::NoError => {}
            code => {
                assert_eq!((code, ede(&answer)), (ResponseCode::ServFail, Some((0, "too many new names".into()))));
                refused += 1;
            }
        }
    }
    let left: usize = upstream.asked().iter().map(|asked| asked.name().len() - ".wild.test".len()).sum();
    assert!((3500..=4096).contains(&left), "{left} octets left");
    assert_eq!(lab.server.counts().tunnels, refused);
    let base = lab.records.event(|event| match event {
        DnsEvent::Tunnel { base, .. } => Some(base.to_string()),
        _ => None,
    });
    assert_eq!(base, "wild.test");
    // What is known, and what a rule spells out, is free.
    assert_eq!(addresses(&lab.ask_a(&format!("{}.wild.test", word(0)))), ips(&["198.51.100.7"]));
    assert_eq!(
        lab.ask(&format!("{}.wild.test", word(0)), RecordType::AAAA).metadata.response_code,
        ResponseCode::NoError
    );
    assert_eq!(addresses(&lab.ask_a("api.wild.test")), ips(&["198.51.100.7"]));
    // A minute on there is room again.
    lab.later(Duration::from_secs(61));
    assert_eq!(addresses(&lab.ask_a(&format!("{}.wild.test", word(1000)))), ips(&["198.51.100.7"]));
}

#[test]
fn f08_outsized_names_do_not_leave() {
    let upstream = obliging();
    let deep = "a.b.c.d.e.f.g.wild.test";
    let lab = Lab::start(allow(&["*.wild.test"]), &[&upstream]);
    let answer = lab.ask_a(deep);
    assert_eq!((answer.metadata.response_code, ede(&answer).unwrap().0), (ResponseCode::NXDomain, 15));
    let reason = lab.records.event(|event| match event {
        DnsEvent::Denied(denial) => Some(denial.reason.clone()),
        _ => None,
    });
    assert_eq!(reason, Reason::Outsized);
    assert!(upstream.asked().is_empty());
    let lab = Lab::start(allow(&["*.wild.test", deep]), &[&upstream]);
    assert_eq!(addresses(&lab.ask_a(deep)), ips(&["198.51.100.7"]), "a rule spells it out");
}

#[test]
fn f09_a_builds_names_trip_nothing() {
    let upstream = obliging();
    let lab = Lab::start(allow(&["*.blob.core.test", "*.cdn-front.test", "*.forge.test"]), &[&upstream]);
    let mut hosts: Vec<String> = (0..40).map(|number| format!("productionresultssa{number}.blob.core.test")).collect();
    hosts.extend(
        (0..20_u64).map(|number| format!("d{:013x}.cdn-front.test", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12)),
    );
    for host in ["registry", "files", "index", "objects", "raw", "codeload", "pkg-containers", "ghcr"] {
        hosts.push(format!("{host}.forge.test"));
    }
    for host in &hosts {
        for qtype in [RecordType::A, RecordType::AAAA] {
            assert_eq!(lab.ask(host, qtype).metadata.response_code, ResponseCode::NoError, "{host}");
        }
    }
    assert_eq!(lab.server.counts().tunnels, 0);
}

#[test]
fn f11_denied_names_cost_no_upstream_and_hardly_any_time() {
    let upstream = obliging();
    let (flooded, other) = (
        Lab::start(allow(&["api.example.test"]), &[&upstream]),
        Lab::start(allow(&["api.example.test"]), &[&upstream]),
    );
    let client = flooded.client();
    let mut buffer = [0; 512];
    for number in 0..10_000 {
        client.send(&query(&format!("n{number}.evil.test"), RecordType::A, None)).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[3] & 0x0f, 3, "{:?}", Message::from_vec(&buffer[..length]));
    }
    assert!(upstream.asked().is_empty());
    let start = Instant::now();
    assert_eq!(addresses(&other.ask_a("api.example.test")), ips(&["198.51.100.7"]));
    assert!(start.elapsed() < Duration::from_secs(1), "the other sandbox has a thread of its own");
}

#[test]
fn what_goes_on_to_upstreams_has_a_budget_of_its_own() {
    let upstream = obliging();
    let mut config = Config { queries_per_second: 50, ..config(allow(&[]), &[upstream.address]) };
    config.names = std::sync::Arc::new(super::lab::Everything);
    let lab = Lab::with(config);
    let client = lab.client();
    for number in 0..60 {
        client.send(&query(&format!("n{number}.example.test"), RecordType::A, None)).unwrap();
    }
    for _ in 0..60 {
        client.recv(&mut [0; 512]).unwrap();
    }
    // 30 at once, 10 a second while somebody waits, the rest refused.
    let asked = upstream.asked().len();
    assert!((35..=50).contains(&asked), "{asked}");
    assert!(lab.server.counts().over_budget >= 10);
}
