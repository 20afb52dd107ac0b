//! What clients see.

use super::{
    lab::{Lab, Rules, addresses, allow, config, ede, ips, query},
    scripted::{Upstream, address, cname, read_frame, write_frame},
};
use crate::dns::{DnsEvent, PermitError, Reason, tests::lab::DEADLINE};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use std::{net::TcpStream, time::Duration};

fn upstream() -> Upstream {
    Upstream::table(vec![
        address("api.example.test", 60, "198.51.100.7"),
        address("api.example.test", 60, "2001:db8::7"),
        cname("www.example.test", 30, "edge.cdn.test"),
        address("edge.cdn.test", 600, "203.0.113.9"),
        address("other.example.test", 60, "198.51.100.8"),
    ])
}

#[test]
fn e01_an_allowed_name_is_permitted_then_answered() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test", "*.example.test"]), &[&upstream]);
    let answer = lab.ask_a("api.example.test");
    assert_eq!(addresses(&answer), ips(&["198.51.100.7"]));
    assert_eq!(answer.answers[0].ttl, 60);
    assert_eq!((answer.metadata.authoritative, answer.metadata.recursion_available), (false, true));
    let permits = lab.records.permits();
    assert_eq!(permits.len(), 1);
    assert_eq!(
        (permits[0].name.as_str(), &permits[0].rules, permits[0].generation),
        ("api.example.test", &vec![0, 1], 1)
    );
    assert_eq!((permits[0].addresses.clone(), permits[0].life), (ips(&["198.51.100.7"]), Duration::from_secs(180)));
    assert_eq!(addresses(&lab.ask("api.example.test", RecordType::AAAA)), ips(&["2001:db8::7"]));
}

#[test]
fn e01_nothing_is_sent_before_the_permit_is_written() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    let client = lab.client();
    let watcher = client.try_clone().unwrap();
    let (looked, look) = std::sync::mpsc::channel();
    *lab.records.hook.lock().unwrap() = Some(Box::new(move || {
        watcher.set_nonblocking(true).unwrap();
        assert_eq!(watcher.recv(&mut [0; 512]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        watcher.set_nonblocking(false).unwrap();
        looked.send(()).unwrap();
    }));
    client.send(&query("api.example.test", RecordType::A, None)).unwrap();
    look.recv_timeout(DEADLINE).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    assert!(client.recv(&mut [0; 512]).unwrap() > 40);
    assert_eq!(lab.records.permits().len(), 1);
}

/// While a permit is being written, questions wait, and so come together.
#[test]
fn questions_that_come_together_are_answered_each_by_itself() {
    const ROUNDS: u16 = 8;
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test", "other.example.test"]), &[&upstream]);
    let client = lab.client();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (looked, look) = std::sync::mpsc::channel();
    *lab.records.hook.lock().unwrap() = Some(Box::new(move || {
        looked.send(()).unwrap();
        // An error once the test has let it go.
        let _free = released.recv();
    }));
    client.send(&query("api.example.test", RecordType::A, None)).unwrap();
    look.recv_timeout(DEADLINE).unwrap();
    let mut asked = 1;
    for round in 0..ROUNDS {
        for (place, name) in (0..).zip(["api.example.test", "denied.test", "other.example.test"]) {
            let mut query = query(name, RecordType::A, None);
            query[..2].copy_from_slice(&(round * 4 + place).to_be_bytes());
            client.send(&query).unwrap();
            // Too short for an answer.
            client.send(&query[..11]).unwrap();
            asked += 1;
        }
    }
    drop(release);
    let mut answers = std::collections::BTreeMap::new();
    for number in 0..asked {
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        // The first has an id of its own.
        let key = if number == 0 { u16::MAX } else { answer.metadata.id };
        assert!(answers.insert(key, answer).is_none(), "an id came twice");
    }
    for (id, answer) in answers.iter().filter(|(id, _)| **id != u16::MAX) {
        let (code, open) = match id % 4 {
            0 => (ResponseCode::NoError, ips(&["198.51.100.7"])),
            1 => (ResponseCode::NXDomain, Vec::new()),
            _ => (ResponseCode::NoError, ips(&["198.51.100.8"])),
        };
        assert_eq!((answer.metadata.response_code, addresses(answer)), (code, open), "{id}");
    }
    let counts = lab.server.counts();
    assert_eq!((counts.short, counts.denied, counts.unsent), (u64::from(ROUNDS) * 3, ROUNDS.into(), 0));
}

#[test]
fn e02_no_address_leaves_when_the_permit_fails() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    for error in [PermitError::Full, PermitError::Map { errno: 28 }] {
        *lab.records.fail.lock().unwrap() = Some(error);
        let answer = lab.ask_a("api.example.test");
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(answer.answers.is_empty());
        assert!(
            lab.records
                .events()
                .iter()
                .any(|event| matches!(event, DnsEvent::PermitFailed { error: seen, .. } if *seen == error))
        );
    }
    *lab.records.fail.lock().unwrap() = None;
    assert_eq!(addresses(&lab.ask_a("api.example.test")), ips(&["198.51.100.7"]));
}

#[test]
fn a_grant_that_gave_way_is_told() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    lab.ask_a("api.example.test");
    let evicted = |event: &DnsEvent| match event {
        DnsEvent::Evicted { name, address } => Some((name.to_string(), *address)),
        _ => None,
    };
    assert_eq!(lab.records.events().iter().find_map(evicted), None);
    *lab.records.evicted.lock().unwrap() = ips(&["198.51.100.7"]);
    assert_eq!(addresses(&lab.ask_a("api.example.test")), ips(&["198.51.100.7"]));
    assert_eq!(lab.records.event(evicted), ("api.example.test".into(), ips(&["198.51.100.7"])[0]));
}

#[test]
fn e04_the_clients_ttl_is_short_and_the_permits_is_not() {
    for (ttl, answer, permit) in [(0, 1, 150), (1, 1, 150), (86_400, 300, 3600 + 120), (0xff00_0000, 1, 150)] {
        let upstream = Upstream::table(vec![address("api.example.test", ttl, "198.51.100.7")]);
        let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
        assert_eq!(lab.ask_a("api.example.test").answers[0].ttl, answer, "{ttl}");
        assert_eq!(lab.records.permits()[0].life, Duration::from_secs(permit), "{ttl}");
    }
}

#[test]
fn c01_a_denied_name_does_not_exist_and_the_event_says_who_asked() {
    let upstream = upstream();
    let lab = Lab::start(Rules { allow: vec!["*.example.test"], deny: vec!["other.example.test"] }, &[&upstream]);
    for (name, rule) in [("other.example.test", Some(0)), ("evil.example", None)] {
        let answer = lab.ask_a(name);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!((answer.authorities.len(), answer.authorities[0].ttl), (1, 5));
        assert_eq!(ede(&answer), Some((15, "not in allowlist".into())));
        let denial = lab.records.event(|event| match event {
            DnsEvent::Denied(denial) if denial.name.to_string() == name => Some(denial.clone()),
            _ => None,
        });
        assert_eq!((denial.rule, denial.qtype), (rule, 1));
        assert_eq!(denial.client.unwrap().comm, "udp");
    }
    assert!(upstream.asked().is_empty());
    assert_eq!(addresses(&lab.ask_a("api.example.test")).len(), 1);
}

#[test]
fn c06_a_chain_is_flattened_and_only_its_end_is_permitted() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["www.example.test"]), &[&upstream]);
    let answer = lab.ask_a("www.example.test");
    assert_eq!(addresses(&answer), ips(&["203.0.113.9"]));
    assert_eq!((answer.answers[0].name.to_string().as_str(), answer.answers[0].ttl), ("www.example.test.", 30));
    assert_eq!(lab.records.permits()[0].name, "www.example.test");
    assert_eq!(lab.ask_a("edge.cdn.test").metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn b14_b15_b16_local_and_canary_names_never_reach_upstream() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test", "use-application-dns.net"]), &[&upstream]);
    assert_eq!(addresses(&lab.ask_a("localhost")), ips(&["127.0.0.1"]));
    assert_eq!(addresses(&lab.ask("foo.localhost", RecordType::AAAA)), ips(&["::1"]));
    for name in ["wpad", "intranet", "printer.local", "x.onion", "use-application-dns.net"] {
        assert_eq!(lab.ask_a(name).metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(lab.ask("_dns.resolver.arpa", RecordType::SVCB).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(lab.ask_a("api.example.test.ns.svc.cluster.local").metadata.response_code, ResponseCode::NXDomain);
    assert!(upstream.asked().is_empty() && lab.records.permits().is_empty());
}

#[test]
fn b17_reverse_lookups_are_answered_from_permits_alone() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    let reverse = "7.100.51.198.in-addr.arpa";
    assert_eq!(lab.ask(reverse, RecordType::PTR).metadata.response_code, ResponseCode::NXDomain);
    lab.ask_a("api.example.test");
    let asked = upstream.asked().len();
    assert_eq!(lab.ask(reverse, RecordType::PTR).answers[0].data.to_string(), "api.example.test.");
    assert_eq!(lab.ask("1.0.0.127.in-addr.arpa", RecordType::PTR).answers[0].data.to_string(), "localhost.");
    let nibbles = format!("{}ip6.arpa", "a.".repeat(32));
    assert_eq!(lab.ask(&nibbles, RecordType::PTR).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(upstream.asked().len(), asked);
}

#[test]
fn a13_a14_nothing_of_the_client_but_the_name_goes_upstream_and_its_case_comes_back() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    let mut sent = query("aPi.eXample.TEST", RecordType::A, Some(4096));
    let options = [
        &[0, 8, 0, 7, 0, 1, 24, 0, 203, 0, 113][..],
        &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0, 12, 0, 4, 0, 0, 0, 0],
        &[0xfd, 0xe9, 0, 3, 9, 9, 9],
    ]
    .concat();
    let length = sent.len();
    sent[length - 2..].copy_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
    sent.extend(&options);
    let answer = lab.exchange(&sent);
    assert_eq!(&answer[..2], &sent[..2]);
    assert_eq!(&answer[12..12 + 22], &sent[12..12 + 22], "the question must come back as it was written");
    let asked = upstream.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].bytes.len(), 12 + 22 + 11, "an OPT record without options");
    assert_ne!(&asked[0].bytes[..2], &sent[..2]);
    assert_eq!(addresses(&Message::from_vec(&answer).unwrap()), ips(&["198.51.100.7"]));
}

#[test]
fn c04_a_udp_answer_is_filled_to_the_size_the_client_takes() {
    let many: Vec<_> = (0..200).map(|host| address("many.example.test", 60, &format!("198.51.100.{host}"))).collect();
    let upstream = Upstream::table(many);
    let lab = Lab::start(allow(&["many.example.test"]), &[&upstream]);
    for (size, least, most) in [(None, 28, 512), (Some(512), 28, 512), (Some(4096), 70, 1232), (Some(100), 28, 512)] {
        let bytes = lab.exchange(&query("many.example.test", RecordType::A, size));
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(answer.metadata.truncation && bytes.len() <= most, "{size:?}: {}", bytes.len());
        assert!(answer.answers.len() >= least, "{size:?}: {}", answer.answers.len());
        assert_eq!(answer.edns.is_some(), size.is_some());
        assert_eq!(
            lab.records.permits().last().unwrap().addresses,
            addresses(&answer),
            "released and permitted must be the same"
        );
    }
    let mut stream = TcpStream::connect(lab.tcp).unwrap();
    write_frame(&mut stream, &query("many.example.test", RecordType::A, None));
    let answer = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (128, false));
}

#[test]
fn the_budget_refuses_and_tells() {
    let upstream = upstream();
    let mut config = config(allow(&["api.example.test"]), &[upstream.address]);
    config.queries_per_second = 1;
    let lab = Lab::with(config);
    assert_eq!(lab.ask_a("api.example.test").metadata.response_code, ResponseCode::NoError);
    assert_eq!(lab.ask_a("api.example.test").metadata.response_code, ResponseCode::NoError);
    let refused = lab.ask_a("api.example.test");
    assert_eq!((refused.metadata.response_code, ede(&refused)), (ResponseCode::ServFail, Some((0, "rate".into()))));
    lab.records.event(|event| matches!(event, DnsEvent::Budget { refused: 1, dropped: 0 }).then_some(()));
}

#[test]
fn d05_a_denied_hop_denies_the_name() {
    let upstream = upstream();
    let lab = Lab::start(Rules { allow: vec!["*.example.test"], deny: vec!["*.cdn.test"] }, &[&upstream]);
    assert_eq!(lab.ask_a("www.example.test").metadata.response_code, ResponseCode::NXDomain);
    assert!(lab.records.permits().is_empty());
    let reason = lab.records.event(|event| match event {
        DnsEvent::Denied(denial) => Some(denial.reason.clone()),
        _ => None,
    });
    assert_eq!(reason, Reason::Hop(Box::new("edge.cdn.test".parse().unwrap())));
    assert_eq!(addresses(&lab.ask_a("api.example.test")).len(), 1);
}
