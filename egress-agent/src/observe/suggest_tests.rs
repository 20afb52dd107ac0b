use super::*;
use crate::observe::{event::Subject, names::Named as _};
use egress_common::verdict::Reason;
use std::time::SystemTime;

fn asked(name: &str, count: u64) -> Event {
    Event {
        verdict: Some(Verdict::Deny),
        reason: Some("not_permitted".into()),
        count: Some(count),
        pid: Some(4121),
        comm: Some("cargo".into()),
        ..Event::dns(Kind::Dns, SystemTime::UNIX_EPOCH, &Subject::default(), name)
    }
}

fn connected(addr: &str, port: u16, reason: Reason) -> Event {
    Event {
        verdict: Some(Verdict::Deny),
        reason: Some(reason.name().into()),
        proto: Some("tcp".into()),
        dst_ip: Some(addr.parse().unwrap()),
        dst_port: Some(port),
        count: Some(1),
        ..Event::new(Kind::Connect, SystemTime::UNIX_EPOCH, &Subject::default())
    }
}

fn summary(events: &[Event]) -> Summary {
    let mut summary = Summary::new(Hosts::parse("198.51.100.9 db.test\n"));
    for event in events {
        summary.add(event);
    }
    summary
}

#[test]
fn lines_come_by_count_with_the_flag_that_allows() {
    let summary = summary(&[
        connected("198.51.100.7", 5432, Reason::NotPermitted),
        asked("api.foo.test", 4),
        asked("api.foo.test", 10),
        Event { verdict: Some(Verdict::Allow), ..connected("203.0.113.1", 443, Reason::Permitted) },
        connected("198.51.100.7", 5432, Reason::NotPermitted),
    ]);
    assert_eq!(
        summary.lines(),
        [
            "egressd: denied 14x api.foo.test (cargo, pid 4121) - to allow: --allow api.foo.test",
            "egressd: denied 2x 198.51.100.7:5432/tcp - to allow: --allow 198.51.100.7:5432/tcp",
        ]
    );
    assert!(!summary.is_empty());
    assert!(Summary::default().is_empty() && Summary::default().lines().is_empty());
}

#[test]
fn what_a_network_stack_reports_on_its_own_is_not_the_commands() {
    for report in ["ff02::16", "224.0.0.22"] {
        let packet = connected(report, 0, Reason::ExtensionHeader);
        assert!(summary(std::slice::from_ref(&packet)).is_empty(), "{report}");
        assert_eq!(summary(&[Event { pid: Some(4121), ..packet }]).lines().len(), 1, "{report} by a process");
    }
    assert_eq!(summary(&[connected("ff02::fb", 0, Reason::ExtensionHeader)]).lines().len(), 1);
}

#[test]
fn the_line_tells_of_hosts_files_and_of_doors_that_stay_closed() {
    let raw = Event {
        reason: Some(Reason::Protocol.name().into()),
        dst_ip: None,
        dst_port: None,
        proto: Some("icmp".into()),
        ..connected("198.51.100.7", 0, Reason::Protocol)
    };
    let observed = Event { verdict: Some(Verdict::WouldDeny), ..connected("2001:db8::7", 443, Reason::NotPermitted) };
    for (event, line) in [
        (
            connected("198.51.100.9", 443, Reason::NotPermitted),
            "egressd: denied 1x 198.51.100.9:443/tcp - /etc/hosts names it db.test, no DNS answer does - to allow: --allow 198.51.100.9:443/tcp",
        ),
        (
            connected("198.51.100.7", 53, Reason::DnsBypass),
            "egressd: denied 1x 198.51.100.7:53/tcp - no flag opens it: port 53 goes to egressd's own resolver, whose servers --dns names",
        ),
        (
            raw,
            "egressd: denied 1x a raw or packet socket/icmp - no flag opens it: only TCP, UDP and ICMP have destinations that a policy can name",
        ),
        (observed, "egressd: would deny 1x [2001:db8::7]:443/tcp - to allow: --allow '[2001:db8::7]:443/tcp'"),
    ] {
        assert_eq!(summary(&[event]).lines(), [line]);
    }
}

#[test]
fn the_sandbox_cannot_write_into_the_log() {
    let event = Event { comm: Some("x\n::error::y\u{1b}[2J%0A".into()), ..asked("a\n::error::b.test", 1) };
    let [line] = &summary(&[event]).lines()[..] else { panic!("one line") };
    assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')), "{line}");
    assert!(!line.contains("::") && !line.contains("%0A"), "{line}");
}

#[test]
fn several_processes_are_one_line() {
    let other = Event { pid: Some(5000), comm: Some("git".into()), ..asked("api.foo.test", 1) };
    assert_eq!(
        summary(&[asked("api.foo.test", 1), other]).lines(),
        ["egressd: denied 2x api.foo.test (cargo, pid 4121 and 1 more) - to allow: --allow api.foo.test"]
    );
}

#[test]
fn a_name_that_did_not_resolve_is_no_denial() {
    let failure =
        Event { verdict: None, reason: Some("upstream_timeout".into()), pid: None, ..asked("api.foo.test", 3) };
    let summary = summary(&[failure]);
    assert_eq!(summary.lines(), ["egressd: api.foo.test did not resolve: upstream_timeout (3x)"]);
    let json = r#"{"schema":1,"denied":[],"failed":[{"name":"api.foo.test","reason":"upstream_timeout","count":3}],"denied_beyond":0,"events_lost":0,"sent":[]}"#;
    assert_eq!(summary.to_json_line::<()>(&[]).unwrap(), json);
}

#[test]
fn many_destinations_stay_bounded_and_say_so() {
    let events: Vec<_> = (0..=DESTINATIONS).map(|n| asked(&format!("n{n}.test"), 1)).collect();
    let mut summary = summary(&events);
    assert_eq!(summary.denied.len(), DESTINATIONS);
    summary.add(&asked("n0.test", 1));
    summary.add(&Event::lost(SystemTime::UNIX_EPOCH, &Subject::default(), 3));
    let lines = summary.lines();
    assert_eq!(lines.len(), LINES + 2);
    assert!(lines[0].starts_with("egressd: denied 2x n0.test "));
    assert_eq!(lines[LINES], "egressd: and 4076 or more destinations more: egressd events --verdict deny");
    assert_eq!(lines[LINES + 1], "egressd: 3 events were lost, so the numbers above are too low");
}

#[test]
fn the_json_form_is_this() {
    let summary = summary(&[asked("api.foo.test", 14), connected("198.51.100.7", 53, Reason::DnsBypass)]);
    assert_eq!(
        summary.to_json_line::<()>(&[]).unwrap(),
        concat!(
            r#"{"schema":1,"denied":[{"destination":"api.foo.test","count":14,"verdict":"deny","reason":"not_permitted","#,
            r#""comm":"cargo","pid":4121,"allow":"api.foo.test","advice":"to allow: --allow api.foo.test"},"#,
            r#"{"destination":"198.51.100.7:53/tcp","count":1,"verdict":"deny","reason":"dns_bypass","#,
            r#""advice":"no flag opens it: port 53 goes to egressd's own resolver, whose servers --dns names"}],"#,
            r#""failed":[],"denied_beyond":0,"events_lost":0,"sent":[]}"#,
        )
    );
}
