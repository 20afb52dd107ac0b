use super::*;
use bytemuck::Zeroable as _;
use egress_common::addr::Addr;
use std::time::Duration;

pub(in crate::observe) struct Known;

impl Resolver for Known {
    fn rule(&self, tag: u32, _: IpAddr, _: u8, _: Option<u16>) -> Option<String> {
        (tag == 7).then(|| "198.51.100.0/24:443/tcp".into())
    }

    fn name(&self, addr: IpAddr) -> Option<String> {
        (addr.to_string() == "198.51.100.7").then(|| "Db\n.test".into())
    }

    fn exe(&self, pid: u32) -> Option<String> {
        (pid == 4121).then(|| "/usr/bin/cargo".into())
    }

    fn wall_clock(&self, monotonic_ns: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(500_000) + Duration::from_nanos(monotonic_ns)
    }
}

fn subject() -> Subject {
    Subject { sandbox: "ci-1".into(), policy: Some("ci-build".into()), generation: 3, cgroup: Some("/ci/job-1".into()) }
}

fn record() -> Record {
    let mut comm = [0; 16];
    comm[..5].copy_from_slice(b"cargo");
    Record {
        time_ns: 1_500_000_000,
        addr: Addr::from("198.51.100.7".parse::<IpAddr>().unwrap()),
        comm,
        rule_tag: 7,
        pid: 4121,
        uid: 1000,
        count: 14,
        dst_port: 5432,
        src_port: 40000,
        protocol: 6,
        hook: Hook::Connect4 as u8,
        reason: Reason::PortNotPermitted as u8,
        ..Record::zeroed()
    }
}

fn events(record: &Record) -> Vec<Event> {
    Event::from_record(record, &subject(), &Known).collect()
}

#[test]
fn a_full_record_is_this_line() {
    let [event] = &events(&record())[..] else { panic!("one event") };
    assert_eq!(
        event.to_json_line().unwrap(),
        concat!(
            r#"{"time":"2027-01-15T08:00:01.500Z","schema":1,"event":"connect","sandbox":"ci-1","policy":"ci-build","generation":3,"#,
            r#""verdict":"deny","reason":"port_not_permitted","rule":"198.51.100.0/24:443/tcp","hook":"connect4","proto":"tcp","#,
            r#""dst_ip":"198.51.100.7","dst_port":5432,"dst_name":"db\\010.test","src_port":40000,"pid":4121,"comm":"cargo","#,
            r#""exe":"/usr/bin/cargo","uid":1000,"cgroup":"/ci/job-1","count":14}"#,
        )
    );
}

#[test]
fn what_is_unknown_is_left_out() {
    let bare = Record { hook: Hook::Device as u8, reason: Reason::EtherType as u8, uid: u32::MAX, ..Record::zeroed() };
    let subject = Subject { sandbox: "vm".into(), generation: 1, ..Subject::default() };
    let lines: Vec<_> =
        Event::from_record(&bare, &subject, &Known).map(|event| event.to_json_line().unwrap()).collect();
    assert_eq!(
        lines,
        [
            r#"{"time":"2027-01-15T08:00:00.000Z","schema":1,"event":"packet","sandbox":"vm","generation":1,"verdict":"deny","reason":"ether_type","hook":"device","count":1}"#
        ]
    );
}

#[test]
fn losses_come_before_the_event_that_tells_of_them() {
    let [lost, event] = &events(&Record { lost: 9, ..record() })[..] else { panic!("two events") };
    assert_eq!((lost.event, lost.count, lost.verdict), (Kind::Lost, Some(9), None));
    assert_eq!(event.event, Kind::Connect);
}

#[test]
fn the_verdict_follows_reason_and_mode() {
    let verdict = |reason: u8, observed: u8| events(&Record { reason, observed, ..record() })[0].verdict;
    assert_eq!(verdict(Reason::Permitted as u8, 0), Some(Verdict::Allow));
    assert_eq!(verdict(Reason::Permitted as u8, 1), Some(Verdict::Allow));
    assert_eq!(verdict(Reason::NotPermitted as u8, 0), Some(Verdict::Deny));
    assert_eq!(verdict(Reason::NotPermitted as u8, 1), Some(Verdict::WouldDeny));
    assert_eq!(verdict(12, 0), Some(Verdict::Deny), "a number from a newer kernel half");
}

#[test]
fn an_event_survives_its_own_json() {
    for event in events(&Record { lost: 2, ..record() }) {
        let line = event.to_json_line().unwrap();
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
    let newer = r#"{"time":"2027-01-15T08:00:00Z","schema":1,"event":"dns","sandbox":"s","a_later_key":1}"#;
    assert_eq!(serde_json::from_str::<Event>(newer).unwrap().event, Kind::Dns);
}

#[test]
fn f14_what_the_sandbox_named_is_escaped() {
    let record = Record { comm: *b"\x1b[31m::error::\0\0", ..record() };
    let [event] = &events(&record)[..] else { panic!("one event") };
    assert_eq!(event.comm.as_deref(), Some("\u{1b}[31m::error::"));
    assert!(event.to_json_line().unwrap().contains(r#""comm":"\u001b[31m::error::""#));
    let asked = Event::dns(Kind::Dns, Known.wall_clock(0), &subject(), "a\n::error::x.test");
    assert_eq!(asked.dst_name.as_deref(), Some("a\\010\\058\\058error\\058\\058x.test"));
}
