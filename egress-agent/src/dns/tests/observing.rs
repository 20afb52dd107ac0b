//! Observe mode: nothing is kept back, and what would have been is told.

use super::{
    lab::{Lab, Rules, addresses, config, ips},
    scripted::{Upstream, address, cname, whole},
};
use crate::dns::{DnsEvent, Reason};
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, Record, RecordType, rdata::TXT},
};

fn lab(upstream: &Upstream) -> Lab {
    let rules = Rules { allow: vec!["api.example.test"], deny: vec!["bad.example.test"] };
    let mut config = config(rules, &[upstream.address]);
    config.observe = true;
    Lab::with(config)
}

fn text(owner: &str) -> Record {
    Record::from_rdata(owner.parse().unwrap(), 60, RData::TXT(TXT::new(vec!["v=1".into()])))
}

#[test]
fn unlisted_and_denied_names_resolve_without_a_permit() {
    let upstream = Upstream::table(vec![
        address("api.example.test", 60, "198.51.100.7"),
        address("bad.example.test", 60, "198.51.100.8"),
        address("example.test", 60, "10.0.0.1"),
    ]);
    let lab = lab(&upstream);
    for (name, expected, reason) in
        [("bad.example.test", "198.51.100.8", Reason::DenyRule), ("example.test", "10.0.0.1", Reason::Ancestor)]
    {
        assert_eq!(addresses(&lab.ask_a(name)), ips(&[expected]), "{name}");
        let seen = lab.records.event(|event| match event {
            DnsEvent::WouldDeny(denial) if denial.name.to_string() == name => Some(denial.reason.clone()),
            _ => None,
        });
        assert_eq!(seen, reason);
    }
    assert!(lab.records.permits().is_empty());
    assert_eq!(addresses(&lab.ask_a("api.example.test")), ips(&["198.51.100.7"]));
    assert_eq!(lab.records.permits().len(), 1);
    assert!(!lab.records.events().iter().any(|event| matches!(event, DnsEvent::Denied(_))));
}

#[test]
fn a_closed_address_of_an_allowed_name_is_answered_and_not_permitted() {
    let upstream = Upstream::table(vec![
        address("api.example.test", 60, "169.254.169.254"),
        address("api.example.test", 60, "198.51.100.7"),
    ]);
    let lab = lab(&upstream);
    assert_eq!(addresses(&lab.ask_a("api.example.test")).len(), 2);
    assert_eq!(lab.records.permits()[0].addresses, ips(&["198.51.100.7"]));
}

#[test]
fn other_types_pass_as_upstream_wrote_them() {
    let upstream = Upstream::start(|asked| {
        let owner = asked.name();
        whole(&asked.reply(vec![cname(&owner, 60, "text.cdn.test"), text("text.cdn.test.")]))
    });
    let lab = lab(&upstream);
    for (name, size) in [("api.example.test", Some(1232)), ("TXT.Unlisted.example", None)] {
        let sent = super::lab::query(name, RecordType::TXT, size);
        let bytes = lab.exchange(&sent);
        let answer = hickory_proto::op::Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.answers.len(), answer.edns.is_some(), answer.metadata.id), (2, size.is_some(), 0x1234));
        let question = 12 + name.len() + 6;
        assert_eq!(bytes[12..question], sent[12..question]);
        assert_eq!(answer.answers[1].data.to_string(), text("x.").data.to_string());
    }
    lab.records.event(|event| matches!(event, DnsEvent::WouldDeny(denial) if denial.qtype == 16).then_some(()));
}

#[test]
fn an_answer_too_large_for_udp_is_truncated() {
    let upstream = Upstream::start(|asked| {
        let owner = format!("{}.", asked.name());
        whole(&asked.reply((0..20).map(|_| text(&owner)).collect()))
    });
    let answer = lab(&upstream).exchange(&super::lab::query(
        &format!("{}.example.test", "long".repeat(10)),
        RecordType::TXT,
        None,
    ));
    let answer = hickory_proto::op::Message::from_vec(&answer).unwrap();
    assert!(answer.answers.len() == 20 || answer.metadata.truncation && answer.answers.is_empty());
}

#[test]
fn names_that_stay_on_the_host_stay_there() {
    let upstream = Upstream::table(vec![address("use-application-dns.net", 60, "198.51.100.7")]);
    let lab = lab(&upstream);
    for name in ["printer.local", "x.onion", "use-application-dns.net"] {
        assert_eq!(lab.ask_a(name).metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(lab.ask("api.example.test", RecordType::HTTPS).answers.len(), 0);
    assert!(upstream.asked().is_empty());
}
