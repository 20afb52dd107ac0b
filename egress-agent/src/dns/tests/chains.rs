//! What of an upstream's answer becomes an address of the name.

use super::{
    lab::{Lab, addresses, allow, config, ede, ips},
    scripted::{Upstream, address, cname, whole},
};
use crate::dns::{Answers, DnsEvent};
use hickory_proto::{
    op::ResponseCode,
    rr::{DNSClass, RData, Record, RecordType, rdata},
};

const NAME: &str = "www.example.test";

/// Answers every question with these sections.
fn sections(answers: Vec<Record>, authorities: Vec<Record>, additionals: Vec<Record>) -> Upstream {
    Upstream::start(move |asked| {
        let mut reply = asked.reply(answers.clone());
        reply.authorities.clone_from(&authorities);
        reply.additionals.clone_from(&additionals);
        whole(&reply)
    })
}

fn lab(upstream: &Upstream) -> Lab {
    Lab::start(allow(&[NAME]), &[upstream])
}

/// Exactly these are answered and permitted.
fn opens(upstream: &Upstream, expected: &[&str]) -> Lab {
    let lab = lab(upstream);
    let answer = lab.ask_a(NAME);
    assert_eq!((answer.metadata.response_code, addresses(&answer)), (ResponseCode::NoError, ips(expected)));
    let permitted: Vec<_> = lab.records.permits().into_iter().flat_map(|permit| permit.addresses).collect();
    assert_eq!(permitted, ips(expected));
    lab
}

fn good() -> Record {
    address(NAME, 60, "198.51.100.7")
}

#[test]
fn d01_d02_records_off_the_chain_are_not_there() {
    let stray = || address("stray.example.test", 60, "203.0.113.66");
    opens(&sections(vec![stray(), good(), stray()], vec![], vec![]), &["198.51.100.7"]);
    opens(&sections(vec![], vec![good()], vec![good()]), &[]);
    // A chain that does not start at the question.
    opens(&sections(vec![cname("stray.example.test", 60, NAME), stray()], vec![], vec![]), &[]);
}

#[test]
fn d03_loops_and_long_chains_fail() {
    let long = |hops: usize| {
        let mut records: Vec<_> = (1..hops)
            .map(|hop| cname(&format!("h{hop}.example.test"), 60, &format!("h{}.example.test", hop + 1)))
            .collect();
        records.push(cname(NAME, 60, "h1.example.test"));
        records.push(address(&format!("h{hops}.example.test"), 60, "198.51.100.7"));
        sections(records, vec![], vec![])
    };
    let back = sections(vec![cname(NAME, 60, "x.example.test"), cname("x.example.test", 60, NAME)], vec![], vec![]);
    let own = sections(vec![cname(NAME, 60, NAME)], vec![], vec![]);
    for upstream in [back, own, long(13)] {
        let lab = lab(&upstream);
        assert_eq!(lab.ask_a(NAME).metadata.response_code, ResponseCode::ServFail);
        assert!(lab.records.permits().is_empty());
    }
    opens(&long(12), &["198.51.100.7"]);
}

#[test]
fn d04_a_bare_cname_is_chased() {
    let upstream = Upstream::start(|asked| {
        whole(&asked.reply(match asked.name().as_str() {
            NAME => vec![cname(NAME, 60, "a.cdn.test")],
            "a.cdn.test" => vec![cname("a.cdn.test", 20, "b.cdn.test")],
            _ => vec![address("b.cdn.test", 60, "198.51.100.7")],
        }))
    });
    let lab = opens(&upstream, &["198.51.100.7"]);
    assert_eq!(lab.ask_a(NAME).answers[0].ttl, 20);
    assert!(lab.records.permits().iter().all(|permit| permit.name == NAME));
}

#[test]
fn d04_a_bare_loop_over_many_exchanges_ends() {
    let upstream = Upstream::start(|asked| {
        let next = if asked.name() == NAME { "other.example.test" } else { NAME };
        whole(&asked.reply(vec![cname(&asked.name(), 60, next)]))
    });
    assert_eq!(lab(&upstream).ask_a(NAME).metadata.response_code, ResponseCode::ServFail);
    assert!(upstream.asked().len() <= 13);
}

#[test]
fn d06_the_first_cname_of_an_owner_wins() {
    let upstream = sections(
        vec![
            cname(NAME, 60, "a.cdn.test"),
            cname(NAME, 60, "b.cdn.test"),
            address("b.cdn.test", 60, "203.0.113.66"),
            address("a.cdn.test", 60, "198.51.100.7"),
        ],
        vec![],
        vec![],
    );
    opens(&upstream, &["198.51.100.7"]);
}

#[test]
fn d07_a_dname_counts_through_its_cname() {
    // Type 39: the target's name.
    let dname = Record::from_rdata(
        hickory_proto::rr::Name::from_ascii("example.test.").unwrap(),
        60,
        RData::Unknown { code: RecordType::Unknown(39), rdata: rdata::NULL::with(b"\x03cdn\x04test\0".to_vec()) },
    );
    let upstream = sections(
        vec![dname, cname(NAME, 60, "www.cdn.test"), address("www.cdn.test", 60, "198.51.100.7")],
        vec![],
        vec![],
    );
    opens(&upstream, &["198.51.100.7"]);
}

#[test]
fn d08_d11_closed_addresses_are_taken_out() {
    let records = |list: &[&str]| sections(list.iter().map(|text| address(NAME, 60, text)).collect(), vec![], vec![]);
    let closed = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "10.0.0.1"];
    for text in closed {
        let upstream = records(&[text]);
        let lab = opens(&upstream, &[]);
        assert_eq!(ede(&lab.ask_a(NAME)), Some((15, "rebinding".into())));
        lab.records.event(|event| {
            matches!(event, DnsEvent::Filtered { address, .. } if *address == ips(&[text])[0]).then_some(())
        });
    }
    opens(&records(&["127.0.0.1", "198.51.100.7", "10.0.0.1"]), &["198.51.100.7"]);
}

#[test]
fn d10_an_address_that_hides_another_is_taken_out() {
    let hidden = ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"];
    let records = hidden.iter().chain(&["2001:db8::7"]).map(|text| address(NAME, 60, text)).collect();
    let upstream = sections(records, vec![], vec![]);
    let lab = lab(&upstream);
    assert_eq!(addresses(&lab.ask(NAME, RecordType::AAAA)), ips(&["2001:db8::7"]));
    assert_eq!(lab.records.permits()[0].addresses, ips(&["2001:db8::7"]));
    assert_eq!(lab.server.counts().filtered, 3);
}

#[test]
fn d09_d12_the_policy_opens_private_ranges_but_nothing_protected() {
    let upstream =
        sections(["10.0.0.1", "10.0.0.53", "192.168.1.1"].map(|text| address(NAME, 60, text)).to_vec(), vec![], vec![]);
    let mut config = config(allow(&[NAME]), &[upstream.address]);
    config.answers = Answers::Networks(vec!["10.0.0.0/8".parse().unwrap()]);
    config.protected = ips(&["10.0.0.53"]).into_iter().collect();
    let lab = Lab::with(config);
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["10.0.0.1"]));
    assert_eq!(lab.records.permits()[0].addresses, ips(&["10.0.0.1"]));
}

#[test]
fn d12_no_name_opens_an_upstream() {
    let records = ["198.51.100.53", "198.51.100.7"].map(|text| address(NAME, 60, text)).to_vec();
    let upstream = sections(records, vec![], vec![]);
    // The first one answers: the second is only named.
    let lab = Lab::with(config(allow(&[NAME]), &[upstream.address, ([198, 51, 100, 53], 53).into()]));
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    assert_eq!(lab.records.permits()[0].addresses, ips(&["198.51.100.7"]));
    let lab = Lab::with(config(allow(&[NAME]), &[upstream.address]));
    assert_eq!(addresses(&lab.ask_a(NAME)).len(), 2, "anybody else's address is open");
}

#[test]
fn d13_https_has_no_data_and_is_not_forwarded() {
    let upstream = sections(vec![good()], vec![], vec![]);
    let lab = lab(&upstream);
    for qtype in [RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::ANY] {
        let answer = lab.ask(NAME, qtype);
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len(), answer.authorities.len()),
            (ResponseCode::NoError, 0, 1)
        );
    }
    assert!(upstream.asked().is_empty());
    assert_eq!(addresses(&lab.ask_a(NAME)).len(), 1);
}

#[test]
fn d13_sanitised_records_lead_nobody_elsewhere() {
    use rdata::{
        HTTPS, SVCB,
        svcb::{Alpn, EchConfigList, IpHint, Mandatory, SvcParamKey as Key, SvcParamValue as Value},
    };
    let h3 = || (Key::Alpn, Value::Alpn(Alpn(vec!["h3".into(), "h2".into()])));
    let here = || hickory_proto::rr::Name::root();
    let ech = || (Key::EchConfigList, Value::EchConfigList(EchConfigList(vec![1; 64])));
    let leading = vec![
        (Key::Mandatory, Value::Mandatory(Mandatory(vec![Key::Alpn, Key::Ipv4Hint, Key::EchConfigList]))),
        h3(),
        (Key::NoDefaultAlpn, Value::NoDefaultAlpn),
        (Key::Ipv4Hint, Value::Ipv4Hint(IpHint(vec!["203.0.113.66".parse().unwrap()]))),
        ech(),
        (Key::Ipv6Hint, Value::Ipv6Hint(IpHint(vec!["2001:db8::66".parse().unwrap()]))),
    ];
    let left = |priority| {
        SVCB::new(
            priority,
            here(),
            vec![
                (Key::Mandatory, Value::Mandatory(Mandatory(vec![Key::Alpn]))),
                h3(),
                (Key::NoDefaultAlpn, Value::NoDefaultAlpn),
            ],
        )
    };
    let elsewhere = || "other.example.test.".parse().unwrap();
    let needs_port =
        vec![(Key::Mandatory, Value::Mandatory(Mandatory(vec![Key::Port]))), (Key::Port, Value::Port(8443))];
    for (records, expected) in [
        (vec![SVCB::new(1, here(), leading.clone())], vec![left(1)]),
        (vec![SVCB::new(1, here(), vec![ech()])], vec![SVCB::new(1, here(), vec![])]),
        // Another port, another target, an alias, and an alias beside a good one.
        (vec![SVCB::new(1, here(), needs_port), SVCB::new(2, here(), leading.clone())], vec![left(2)]),
        (vec![SVCB::new(1, here(), vec![(Key::Port, Value::Port(8443))])], vec![]),
        (vec![SVCB::new(1, elsewhere(), vec![h3()])], vec![]),
        (vec![SVCB::new(0, elsewhere(), vec![])], vec![]),
        (vec![SVCB::new(1, here(), vec![h3()]), SVCB::new(0, elsewhere(), vec![])], vec![]),
    ] {
        let of = records
            .iter()
            .map(|record| Record::from_rdata(NAME.parse().unwrap(), 60, RData::HTTPS(HTTPS(record.clone()))));
        // Behind a CNAME, beside a record of another owner.
        let stray = Record::from_rdata("stray.example.test.".parse().unwrap(), 60, RData::HTTPS(HTTPS(left(1))));
        let upstream = sections(of.chain([stray, good()]).collect(), vec![], vec![]);
        let lab = Lab::with(crate::dns::Config { services: true, ..config(allow(&[NAME]), &[upstream.address]) });
        for asked in [1, 1] {
            let answer = lab.ask(NAME, RecordType::HTTPS);
            let told: Vec<_> = answer
                .answers
                .iter()
                .map(|record| match &record.data {
                    RData::HTTPS(HTTPS(record)) => record.clone(),
                    other => panic!("{other}"),
                })
                .collect();
            assert_eq!((answer.metadata.response_code, &told), (ResponseCode::NoError, &expected), "{records:?}");
            assert_eq!(answer.authorities.len(), usize::from(expected.is_empty()));
            assert_eq!(upstream.asked().len(), asked, "cached");
        }
        assert!(lab.records.permits().is_empty(), "no record opens an address");
        assert_eq!(lab.ask("other.example.test", RecordType::HTTPS).metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(lab.ask(NAME, RecordType::TXT).answers.len(), 0);
    }
}

#[test]
fn d14_one_malformed_record_spoils_the_message() {
    let upstream = Upstream::start(|asked| {
        let mut reply = asked.reply(vec![good()]);
        reply.edns = None;
        let mut bytes = reply.to_vec().unwrap();
        bytes[7] += 1;
        // An SVCB record whose parameters are out of order (RFC 9460, 2.2).
        bytes.extend(
            b"\xc0\x0c\x00\x40\x00\x01\x00\x00\x00\x3c\x00\x0d\x00\x01\x00\x00\x03\x00\x02\x01\xbb\x00\x02\x00\x00",
        );
        vec![bytes]
    });
    let lab = lab(&upstream);
    let answer = lab.ask_a(NAME);
    assert_eq!((answer.metadata.response_code, ede(&answer).unwrap().0), (ResponseCode::ServFail, 24));
    assert!(lab.records.permits().is_empty());
    assert_eq!(lab.server.counts().malformed, 1);
}

#[test]
fn d15_a_record_of_another_class_is_not_there() {
    let mut chaos = good();
    chaos.dns_class = DNSClass::CH;
    opens(&sections(vec![chaos.clone()], vec![], vec![]), &[]);
    opens(&sections(vec![chaos, address(NAME, 60, "198.51.100.8")], vec![], vec![]), &["198.51.100.8"]);
}

#[test]
fn c05_at_most_128_addresses_are_taken_each_once() {
    let upstream = Upstream::start(|asked| {
        let hosts = (0..1000).map(|host| address(NAME, 60, &format!("198.51.{}.{}", host / 250, host % 250)));
        whole(&asked.reply([good(), good()].into_iter().chain(hosts).collect()))
    });
    let lab = lab(&upstream);
    let mut stream = std::net::TcpStream::connect(lab.tcp).unwrap();
    super::scripted::write_frame(&mut stream, &super::lab::query(NAME, RecordType::A, None));
    let answer = hickory_proto::op::Message::from_vec(&super::scripted::read_frame(&mut stream).unwrap()).unwrap();
    let mut seen = addresses(&answer);
    assert_eq!((seen.len(), &seen), (128, &lab.records.permits()[0].addresses));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 128);
}

#[test]
fn negative_answers_keep_upstreams_time_within_limits() {
    for (ttl, minimum, expected) in [(3600, 30, 30), (10, 300, 10), (3600, 3600, 60), (0, 0, 1)] {
        let soa = rdata::SOA::new(".".parse().unwrap(), ".".parse().unwrap(), 1, 1, 1, 1, minimum);
        let record = Record::from_rdata("example.test.".parse().unwrap(), ttl, RData::SOA(soa));
        let upstream = sections(vec![cname(NAME, 3600, "gone.cdn.test")], vec![record], vec![]);
        let answer = lab(&upstream).ask_a(NAME);
        assert_eq!((answer.metadata.response_code, answer.authorities[0].ttl), (ResponseCode::NoError, expected));
        assert_eq!(upstream.asked().len(), 1, "an SOA record ends the chain");
    }
}

#[test]
fn c08_a_chain_that_is_kept_may_be_asked_for_link_by_link() {
    let upstream = Upstream::table(vec![
        cname(NAME, 60, "edge.cdn.test"),
        cname("edge.cdn.test", 60, "pop.cdn.test"),
        address("pop.cdn.test", 60, "198.51.100.7"),
        cname("www.example.net", 60, "closed.cdn.test"),
        address("closed.cdn.test", 60, "198.51.100.8"),
    ]);
    let rules = || super::lab::Rules { allow: vec![NAME, "www.example.net"], deny: vec!["closed.cdn.test"] };
    let config =
        |generation| crate::dns::Config { generation, keep_chains: true, ..config(rules(), &[upstream.address]) };
    let lab = Lab::with(config(1));
    let code = |name: &str, qtype| lab.ask(name, qtype).metadata.response_code;
    for name in ["edge.cdn.test", "pop.cdn.test"] {
        assert_eq!(code(name, RecordType::A), ResponseCode::NXDomain, "{name} before its chain");
    }
    let answer = lab.ask_a(NAME);
    let text: Vec<_> = answer.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
    assert_eq!(
        text,
        [
            "www.example.test. edge.cdn.test.".to_owned(),
            "edge.cdn.test. pop.cdn.test.".into(),
            "pop.cdn.test. 198.51.100.7".into()
        ]
    );
    assert_eq!(lab.records.permits()[0].name, NAME);
    assert_eq!(lab.ask_a("edge.cdn.test").answers.len(), 2);
    assert_eq!(addresses(&lab.ask_a("pop.cdn.test")), ips(&["198.51.100.7"]));
    assert!(lab.records.permits().iter().all(|permit| permit.rules == [0]));
    assert_eq!(code("pop.cdn.test", RecordType::TXT), ResponseCode::NXDomain);
    // A deny beats a chain, and a chain lives as long as its answer, under the policy of its time.
    assert_eq!(code("www.example.net", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code("closed.cdn.test", RecordType::A), ResponseCode::NXDomain);
    lab.later(std::time::Duration::from_secs(61));
    assert_eq!(code("pop.cdn.test", RecordType::A), ResponseCode::NXDomain);
    lab.ask_a(NAME);
    assert_eq!(code("pop.cdn.test", RecordType::A), ResponseCode::NoError);
    lab.server.update(config(2)).unwrap();
    assert_eq!(code("pop.cdn.test", RecordType::A), ResponseCode::NXDomain);
}
