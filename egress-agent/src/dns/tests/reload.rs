//! A policy that changes while questions are in flight, and the server's own life.

use super::{
    lab::{DEADLINE, Lab, Rules, addresses, allow, config, ips, query},
    scripted::{Upstream, good, held},
};
use crate::dns::{Config, DnsError, Listeners, PermitError, Problem, Server};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

const NAME: &str = "api.example.test";

fn next(rules: Rules, upstream: &Upstream, generation: u64) -> Config {
    Config { generation, ..config(rules, &[upstream.address]) }
}

#[test]
fn a_question_in_flight_is_judged_again_by_the_new_policy() {
    for (rules, code, generations) in [
        (Rules { allow: vec!["*.example.test"], deny: vec![NAME] }, ResponseCode::NXDomain, vec![]),
        (allow(&["*.example.test"]), ResponseCode::NoError, vec![2]),
    ] {
        let (upstream, arrival, go) = held();
        let lab = Lab::scheduled(next(allow(&[NAME]), &upstream, 1), super::lab::patient());
        let client = lab.client();
        client.send(&query(NAME, RecordType::A, None)).unwrap();
        arrival.recv_timeout(DEADLINE).unwrap();
        lab.server.update(next(rules, &upstream, 2)).unwrap();
        go.send(()).unwrap();
        go.send(()).unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, code);
        assert_eq!(lab.records.permits().iter().map(|permit| permit.generation).collect::<Vec<_>>(), generations);
    }
}

#[test]
fn no_permit_of_an_older_policy_is_written_after_update_returns() {
    let upstream = Upstream::start(good);
    let lab = Arc::new(Lab::start(allow(&[NAME]), &[&upstream]));
    let done = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..3)
        .map(|_| {
            let (lab, done) = (Arc::clone(&lab), Arc::clone(&done));
            thread::spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    lab.ask_a(NAME);
                }
            })
        })
        .collect();
    for generation in 2..300 {
        lab.server.update(next(allow(&[NAME]), &upstream, generation)).unwrap();
        let before = lab.records.permits().len();
        while lab.records.permits().len() < before + usize::from(generation % 20 == 0) {
            thread::yield_now();
        }
        let late = lab.records.permits()[before..].iter().find(|permit| permit.generation < generation).cloned();
        assert_eq!(late, None, "after update to {generation}");
    }
    done.store(true, Ordering::SeqCst);
    for asker in askers {
        asker.join().unwrap();
    }
}

#[test]
fn permits_that_call_the_policy_stale_release_nothing() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    *lab.records.fail.lock().unwrap() = Some(PermitError::StalePolicy);
    let answer = lab.ask_a(NAME);
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::ServFail, 0));
    *lab.records.fail.lock().unwrap() = None;
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
}

#[test]
fn e09_a_bad_configuration_leaves_the_old_one_in_force() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    let own = config(allow(&[]), &[lab.udp]);
    assert!(matches!(lab.server.update(own), Err(DnsError::Upstream { problem: Problem::OwnListener, .. })));
    assert!(matches!(lab.server.update(config(allow(&[]), &[])), Err(DnsError::NoServers)));
    for (server, problem) in [
        ("192.0.2.1:0", Problem::PortZero),
        ("0.0.0.0:53", Problem::Unspecified),
        ("[::]:53", Problem::Unspecified),
        ("224.0.0.1:53", Problem::Multicast),
        ("[ff02::1]:53", Problem::Multicast),
        ("255.255.255.255:53", Problem::Multicast),
        ("[fe80::1]:53", Problem::NoInterface),
    ] {
        let server: SocketAddr = server.parse().unwrap();
        let refused = lab.server.update(config(allow(&[]), &[server])).unwrap_err();
        assert!(
            matches!(refused, DnsError::Upstream { server: named, problem: seen } if named == server && seen == problem),
            "{refused}"
        );
    }
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    // f07: these are accepted.
    lab.server
        .update(config(allow(&[]), &["[2001:db8::53]:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]))
        .unwrap();
}

#[test]
fn sockets_outlive_the_server_for_the_next_one() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    let kept = lab.server.listeners().unwrap();
    let client = lab.client();
    let Lab { server, records, .. } = lab;
    assert!(server.wait_failure(Duration::ZERO).is_none());
    drop(server);
    // Asked while nobody serves: the question waits in the socket.
    client.send(&query(NAME, RecordType::A, None)).unwrap();
    let (permits, clients, events) = (Arc::clone(&records), Arc::clone(&records), Arc::clone(&records));
    let _next = Server::start(kept, config(allow(&[NAME]), &[upstream.address]), permits, clients, events).unwrap();
    assert!(client.recv(&mut [0; 512]).unwrap() > 40);
}

#[test]
fn a_defect_ends_the_server_loudly() {
    let upstream = Upstream::start(good);
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    assert!(lab.server.wait_failure(Duration::ZERO).is_none());
    *lab.records.hook.lock().unwrap() = Some(Box::new(|| panic!("a defect made by the test")));
    lab.client().send(&query(NAME, RecordType::A, None)).unwrap();
    assert!(matches!(*lab.server.wait_failure(DEADLINE).unwrap(), DnsError::Panicked));
}

#[test]
fn listeners_are_of_both_transports_and_of_one_address() {
    let upstream = Upstream::start(good);
    let udp = || vec![UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()];
    let tcp = || vec![TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()];
    let start = |listeners| {
        let records = Arc::new(super::lab::Records::default());
        let (permits, clients, events) = (Arc::clone(&records), Arc::clone(&records), Arc::clone(&records));
        Server::start(listeners, config(allow(&[NAME]), &[upstream.address]), permits, clients, events)
    };
    assert!(matches!(start(Listeners { udp: udp(), ..Listeners::default() }), Err(DnsError::NoListeners)));
    assert!(matches!(start(Listeners { tcp: tcp(), ..Listeners::default() }), Err(DnsError::NoListeners)));
    assert!(start(Listeners { udp: udp(), tcp: tcp(), every_address: false }).is_ok());
    let open = vec![UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()];
    assert!(matches!(
        start(Listeners { udp: open, tcp: tcp(), every_address: false }),
        Err(DnsError::OpenListener { .. })
    ));
}
