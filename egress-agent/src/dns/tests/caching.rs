//! What is answered without asking upstream, and for how long.

use super::{
    lab::{DEADLINE, Lab, Rules, addresses, allow, config, ede, ips, patient, query},
    scripted::{Upstream, address, good, held, whole},
};
use crate::dns::{Config, DnsEvent, PermitError, cache::Key, resolve::Asker, wire::rtype};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const NAME: &str = "api.example.test";

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Answers until it is told to fail.
fn mortal() -> (Upstream, Arc<AtomicBool>) {
    let dead = Arc::new(AtomicBool::new(false));
    let upstream = {
        let dead = Arc::clone(&dead);
        Upstream::start(move |asked| {
            if dead.load(Ordering::SeqCst) { whole(&asked.code(ResponseCode::ServFail)) } else { good(asked) }
        })
    };
    (upstream, dead)
}

#[test]
fn f10_one_name_asked_all_the_time_goes_upstream_once_in_its_ttl() {
    let upstream = Upstream::start(good);
    let lab = Lab::with(Config { queries_per_second: 5000, ..config(allow(&[NAME]), &[upstream.address]) });
    let client = lab.client();
    let start = Instant::now();
    let mut buffer = [0; 512];
    for number in 0..2000_u32 {
        // 1000 a second; nothing waits where the machine is slower than that.
        let due = start + Duration::from_millis(number.into());
        thread::sleep(due.saturating_duration_since(Instant::now()));
        client.send(&query(NAME, RecordType::A, None)).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()), ips(&["198.51.100.7"]), "{number}");
    }
    assert_eq!(upstream.asked().len(), 1);
    let counts = lab.server.counts();
    assert_eq!((counts.cached, counts.forwarded, counts.dropped, counts.over_budget), (1999, 1, 0, 0));
}

#[test]
fn f10_a_flight_ends_when_its_word_is_in_the_cache() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    let responder = &lab.server.responder;
    let (state, key) = (responder.current(), Key { name: NAME.parse().unwrap(), qtype: rtype::A });
    let ask = || responder.fly(&state, &key, Asker::Sandbox);
    lab.server.runtime.block_on(async {
        let first = ask().await;
        // Its answer leaves before those of the first, which notes.
        drop(ask().await);
        drop(ask().await);
        drop(first);
    });
    lab.ask_a(NAME);
    assert_eq!(upstream.asked().len(), 1);
}

#[test]
fn f10_what_is_asked_at_once_is_asked_once() {
    let (upstream, arrival, go) = held();
    let lab = Lab::scheduled(config(allow(&[NAME]), &[upstream.address]), patient());
    let clients: Vec<_> = (0..100).map(|_| lab.client()).collect();
    for client in &clients {
        client.send(&query(NAME, RecordType::A, None)).unwrap();
    }
    arrival.recv_timeout(DEADLINE).unwrap();
    // All are in: the last one's neighbour is answered.
    assert_eq!(lab.ask_a("denied.example").metadata.response_code, ResponseCode::NXDomain);
    go.send(()).unwrap();
    for client in &clients {
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()), ips(&["198.51.100.7"]));
    }
    assert_eq!(upstream.asked().len(), 1);
    assert_eq!(lab.records.permits().len(), 100, "each answer behind its permit");
}

#[test]
fn a_hit_counts_its_ttl_down_and_writes_the_permit_before_it_answers() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    assert_eq!(lab.ask_a(NAME).answers[0].ttl, 60);
    lab.later(secs(20));
    let client = lab.client();
    let watcher = client.try_clone().unwrap();
    *lab.records.hook.lock().unwrap() = Some(Box::new(move || {
        watcher.set_nonblocking(true).unwrap();
        assert_eq!(watcher.recv(&mut [0; 512]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        watcher.set_nonblocking(false).unwrap();
    }));
    client.send(&query(NAME, RecordType::A, None)).unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((answer.answers[0].ttl, addresses(&answer)), (40, ips(&["198.51.100.7"])));
    let permits = lab.records.permits();
    assert_eq!(permits.iter().map(|permit| permit.life).collect::<Vec<_>>(), [secs(180), secs(160)]);
    let told = lab.records.events().iter().filter(|event| matches!(event, DnsEvent::Permitted { .. })).count();
    assert_eq!((told, upstream.asked().len()), (1, 1), "what is open already is no news");
    *lab.records.hook.lock().unwrap() = None;
    // As fresh answers: no address leaves without its permit.
    *lab.records.fail.lock().unwrap() = Some(PermitError::Full);
    let refused = lab.ask_a(NAME);
    assert_eq!((refused.metadata.response_code, refused.answers.len()), (ResponseCode::ServFail, 0));
}

#[test]
fn negative_answers_are_remembered_for_their_time() {
    let soa = rdata::SOA::new(".".parse().unwrap(), ".".parse().unwrap(), 1, 1, 1, 1, 30);
    let soa = Record::from_rdata("example.test.".parse().unwrap(), 60, RData::SOA(soa));
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        let soa = soa.clone();
        let upstream = Upstream::start(move |asked| {
            let mut reply = asked.code(code);
            reply.authorities = vec![soa.clone()];
            whole(&reply)
        });
        let lab = Lab::start(allow(&[NAME]), &[&upstream]);
        for (age, ttl, asked) in [(0, 30, 1), (20, 10, 1), (11, 30, 2)] {
            lab.later(secs(age));
            let answer = lab.ask_a(NAME);
            assert_eq!((answer.metadata.response_code, answer.authorities[0].ttl), (code, ttl));
            assert_eq!(upstream.asked().len(), asked);
        }
    }
}

#[test]
fn f15_what_one_sandbox_asked_another_asks_again() {
    let upstream = Upstream::start(good);
    let (a, b) = (Lab::start(allow(&[NAME]), &[&upstream]), Lab::start(allow(&[NAME]), &[&upstream]));
    for (lab, asked) in [(&a, 1), (&a, 1), (&b, 2), (&b, 2)] {
        assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
        assert_eq!(upstream.asked().len(), asked);
    }
    assert!(a.records.permits().len() == 2 && b.records.permits().len() == 2);
}

#[test]
fn e16_stale_answers_for_15_minutes_while_no_upstream_answers() {
    let (upstream, dead) = mortal();
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    dead.store(true, Ordering::SeqCst);
    let asked = upstream.asked().len();
    for minute in 0..14 {
        lab.later(secs(61));
        let answer = lab.ask_a(NAME);
        assert_eq!((addresses(&answer), answer.answers[0].ttl), (ips(&["198.51.100.7"]), 30), "minute {minute}");
        assert_eq!(lab.records.permits().last().unwrap().life, secs(30 + 120));
    }
    assert!(upstream.asked().len() >= asked + 14, "upstream is tried before an old answer is used");
    let asked = upstream.asked().len();
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    assert_eq!(upstream.asked().len(), asked, "and left alone for a while after it failed");
    lab.later(secs(3 * 61));
    let answer = lab.ask_a(NAME);
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::ServFail, 0));
    dead.store(false, Ordering::SeqCst);
    assert_eq!(lab.ask_a(NAME).answers[0].ttl, 60);
}

#[test]
fn e16_a_silent_upstream_is_not_waited_for_long_where_there_is_an_old_answer() {
    let silent = Arc::new(AtomicBool::new(false));
    let upstream = {
        let silent = Arc::clone(&silent);
        Upstream::start(move |asked| if silent.load(Ordering::SeqCst) { Vec::new() } else { good(asked) })
    };
    let lab = Lab::with(config(allow(&[NAME]), &[upstream.address]));
    lab.ask_a(NAME);
    silent.store(true, Ordering::SeqCst);
    lab.later(secs(61));
    let start = Instant::now();
    assert_eq!(lab.ask_a(NAME).answers[0].ttl, 30);
    assert!((secs(1)..secs(4)).contains(&start.elapsed()), "{:?}", start.elapsed());
    let asked = upstream.asked().len();
    assert_eq!(lab.ask_a(NAME).answers[0].ttl, 30);
    assert_eq!(upstream.asked().len(), asked);
}

#[test]
fn e16_a_stale_answer_needs_the_policy_of_now() {
    let (upstream, dead) = mortal();
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    lab.ask_a(NAME);
    dead.store(true, Ordering::SeqCst);
    lab.later(secs(61));
    let denied = Rules { allow: vec!["*.example.test"], deny: vec![NAME] };
    lab.server.update(Config { generation: 2, ..config(denied, &[upstream.address]) }).unwrap();
    let answer = lab.ask_a(NAME);
    assert_eq!((answer.metadata.response_code, ede(&answer).unwrap().0), (ResponseCode::NXDomain, 15));
    lab.server.update(Config { generation: 3, ..config(allow(&[NAME]), &[upstream.address]) }).unwrap();
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    assert_eq!(lab.records.permits().last().unwrap().generation, 3);
}

#[test]
fn a_known_answer_is_judged_by_the_policy_of_now() {
    let upstream = Upstream::start(|asked| {
        whole(&asked.reply(vec![
            super::scripted::cname(NAME, 60, "edge.cdn.test"),
            address("edge.cdn.test", 60, "198.51.100.7"),
        ]))
    });
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    lab.ask_a(NAME);
    let hop = Rules { allow: vec![NAME], deny: vec!["edge.cdn.test"] };
    lab.server.update(Config { generation: 2, ..config(hop, &[upstream.address]) }).unwrap();
    assert_eq!(lab.ask_a(NAME).metadata.response_code, ResponseCode::NXDomain);
    let protected = ips(&["198.51.100.7"]).into_iter().collect();
    let config = Config { generation: 3, protected, ..config(allow(&[NAME]), &[upstream.address]) };
    lab.server.update(config).unwrap();
    assert_eq!(lab.ask_a(NAME).answers.len(), 0);
    assert_eq!((upstream.asked().len(), lab.records.permits().len()), (1, 1));
}

#[test]
fn other_servers_are_asked_again() {
    let (first, second) = (Upstream::start(good), Upstream::start(good));
    let lab = Lab::start(allow(&[NAME]), &[&first]);
    lab.ask_a(NAME);
    lab.server.update(Config { generation: 2, ..config(allow(&[NAME]), &[second.address]) }).unwrap();
    lab.ask_a(NAME);
    assert_eq!((first.asked().len(), second.asked().len()), (1, 1));
}

#[test]
fn e15_a_name_in_use_is_renewed_before_it_grows_old_and_permitted_when_it_is_asked() {
    let last = Arc::new(AtomicU8::new(0));
    let upstream = {
        let last = Arc::clone(&last);
        Upstream::start(move |asked| {
            let host = last.fetch_add(1, Ordering::SeqCst) + 1;
            whole(&asked.reply(vec![address(NAME, 2, &format!("198.51.100.{host}"))]))
        })
    };
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    lab.ask_a(NAME);
    let until = Instant::now() + secs(7);
    while Instant::now() < until {
        let answer = lab.ask_a(NAME);
        assert_eq!(lab.records.permits().last().unwrap().addresses, addresses(&answer));
        thread::sleep(Duration::from_millis(50));
    }
    let counts = lab.server.counts();
    assert_eq!(counts.cached, counts.received - 1, "nobody waited for upstream but the first");
    assert!((3..=6).contains(&upstream.asked().len()), "{}", upstream.asked().len());

    // Renewed into the cache alone: without a question there is no permit, and no second renewal.
    let (asked, permits) = (upstream.asked().len(), lab.records.permits().len());
    let deadline = Instant::now() + DEADLINE;
    while upstream.asked().len() == asked {
        assert!(Instant::now() < deadline, "not renewed");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(secs(3));
    assert_eq!((upstream.asked().len(), lab.records.permits().len()), (asked + 1, permits));
}

#[test]
fn a_question_outlives_the_client_that_asked_it_first() {
    use super::scripted::write_frame;
    let (upstream, arrival, go) = held();
    let lab = Lab::scheduled(config(allow(&[NAME]), &[upstream.address]), patient());
    let mut first = std::net::TcpStream::connect(lab.tcp).unwrap();
    write_frame(&mut first, &query(NAME, RecordType::A, None));
    arrival.recv_timeout(DEADLINE).unwrap();
    let second = lab.client();
    second.send(&query(NAME, RecordType::A, None)).unwrap();
    lab.ask_a("denied.example");
    // Breaks the connection, and with it its tasks: half a frame, then a reset.
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&first, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    drop(first);
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    assert!(second.recv(&mut [0; 512]).unwrap() > 40);
}
