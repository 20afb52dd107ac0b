//! Upstreams that are slow, wrong, forged or dead.

use super::{
    lab::{DEADLINE, Everything, Lab, addresses, allow, config, ede, hasty, ips, query},
    scripted::{Upstream, address, good, whole},
};
use crate::dns::{DnsEvent, UpstreamError};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

const NAME: &str = "api.example.test";
/// Answers of a minute have grown old by then.
const OLD: Duration = Duration::from_secs(61);

fn forged(asked: &super::scripted::Asked) -> Vec<u8> {
    asked.reply(vec![address(NAME, 60, "203.0.113.66")]).to_vec().unwrap()
}

fn answers_well(lab: &Lab) {
    assert_eq!(addresses(&lab.ask_a(NAME)), ips(&["198.51.100.7"]));
    assert!(lab.records.permits().iter().all(|permit| permit.addresses == ips(&["198.51.100.7"])));
}

fn fails(lab: &Lab) -> u16 {
    let answer = lab.ask_a(NAME);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(answer.answers.is_empty() && lab.records.permits().is_empty());
    ede(&answer).unwrap().0
}

fn failure(lab: &Lab) -> UpstreamError {
    lab.records.event(|event| match event {
        DnsEvent::UpstreamFailed { error, .. } => Some(*error),
        _ => None,
    })
}

#[test]
fn f01_replies_that_do_not_match_are_ignored() {
    let upstream = Upstream::start(|asked| {
        let other_id = {
            let mut reply = forged(asked);
            reply[0] ^= 1;
            reply
        };
        let other_name = {
            let mut reply = forged(asked);
            reply[13] = b'x';
            reply
        };
        let other_type = {
            let mut reply = forged(asked);
            reply[12 + NAME.len() + 3] = 28;
            reply
        };
        let a_query = {
            let mut reply = forged(asked);
            reply[2] &= 0x7f;
            reply
        };
        // From another port of the same host.
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().send_to(&forged(asked), asked.from).unwrap();
        [vec![other_id, other_name, other_type, a_query], good(asked)].concat()
    });
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    answers_well(&lab);
    assert!(upstream.asked().iter().all(|asked| !asked.tcp));
}

#[test]
fn f02_many_forgeries_move_the_exchange_to_tcp() {
    let upstream = Upstream::start(|asked| {
        if asked.tcp {
            return good(asked);
        }
        (0..200_u8)
            .map(|guess| {
                let mut reply = forged(asked);
                reply[0] ^= guess | 1;
                reply
            })
            .collect()
    });
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    answers_well(&lab);
    assert!(upstream.asked().iter().any(|asked| asked.tcp));
}

#[test]
fn f01_a_name_in_another_case_counts_only_over_tcp() {
    let upstream = Upstream::start(|asked| {
        let ours = asked.tcp || asked.bytes[12..].starts_with(b"\x03api\x07example\x04test");
        let mut replies = if ours { good(asked) } else { vec![forged(asked)] };
        for reply in &mut replies {
            reply[12..12 + NAME.len() + 2].make_ascii_lowercase();
        }
        replies
    });
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    answers_well(&lab);
    assert!(upstream.asked().iter().any(|asked| asked.tcp), "one that folds case is asked over TCP first");
    let before = upstream.asked().len();
    lab.later(OLD);
    answers_well(&lab);
    let after = upstream.asked();
    assert!(after.len() == before + 1 && !after[before].tcp, "then it is asked in lower case");
}

#[test]
fn f03_truncated_and_no_tcp_means_the_next_upstream() {
    let truncated = |asked: &super::scripted::Asked| {
        let mut reply = asked.reply(vec![address(NAME, 60, "203.0.113.66")]);
        reply.metadata.truncation = true;
        whole(&reply)
    };
    let first = Upstream::without_tcp(truncated);
    let second = Upstream::start(good);
    answers_well(&Lab::start(allow(&[NAME]), &[&first, &second]));
    let lab = Lab::start(allow(&[NAME]), &[&first]);
    assert_eq!(fails(&lab), 23);
    assert_eq!(failure(&lab), UpstreamError::Network(std::io::ErrorKind::ConnectionRefused));
}

#[test]
fn f16_truncated_or_too_large_is_asked_again_over_tcp() {
    for large in [false, true] {
        let upstream = Upstream::start(move |asked| {
            let mut reply = asked.reply(vec![address(NAME, 60, "198.51.100.7")]);
            if !asked.tcp && large {
                reply.answers = (0..120).map(|host| address(NAME, 60, &format!("203.0.113.{host}"))).collect();
            } else if !asked.tcp {
                reply.metadata.truncation = true;
            }
            whole(&reply)
        });
        answers_well(&Lab::start(allow(&[NAME]), &[&upstream]));
    }
}

#[test]
fn f04_an_error_from_one_upstream_is_not_the_last_word() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let first = Upstream::start(move |asked| whole(&asked.code(code)));
        let second = Upstream::start(good);
        answers_well(&Lab::start(allow(&[NAME]), &[&first, &second]));
        let lab = Lab::start(allow(&[NAME]), &[&first]);
        assert_eq!(fails(&lab), 22);
        assert_eq!(failure(&lab), UpstreamError::Rcode(u16::from(code) as u8));
    }
}

#[test]
fn f04_nxdomain_is_final_and_keeps_its_time() {
    let first = Upstream::start(|asked| whole(&asked.code(ResponseCode::NXDomain)));
    let second = Upstream::start(|asked| vec![forged(asked)]);
    let lab = Lab::start(allow(&[NAME]), &[&first, &second]);
    let answer = lab.ask_a(NAME);
    assert_eq!((answer.metadata.response_code, answer.authorities[0].ttl), (ResponseCode::NXDomain, 5));
    assert_eq!(ede(&answer), None, "not a denial");
    let told =
        |event: &DnsEvent| matches!(event, DnsEvent::NoSuchName { name } if name.to_string() == NAME).then_some(());
    lab.records.event(told);
    lab.ask_a(NAME);
    let events = lab.records.events();
    assert_eq!((events.iter().filter_map(told).count(), events.len()), (1, 1), "told when it is learned");
    assert!(second.asked().is_empty());
}

#[test]
fn f04_one_that_cannot_read_opt_is_asked_without() {
    for header_only in [false, true] {
        let upstream = Upstream::start(move |asked| {
            if asked.message.edns.is_none() {
                return good(asked);
            }
            let mut reply = asked.code(ResponseCode::FormErr);
            reply.edns = None;
            if header_only {
                reply.queries.clear();
            }
            whole(&reply)
        });
        let lab = Lab::start(allow(&[NAME]), &[&upstream]);
        answers_well(&lab);
        assert_eq!(upstream.asked().len(), 2);
    }
}

#[test]
fn a_silent_upstream_is_raced_then_left_for_the_one_that_answers() {
    let silent = Upstream::start(|_| Vec::new());
    let second = Upstream::start(good);
    let lab = Lab::scheduled(config(allow(&[NAME]), &[silent.address, second.address]), hasty());
    answers_well(&lab);
    let asked = silent.asked().len();
    lab.later(OLD);
    answers_well(&lab);
    assert_eq!(silent.asked().len(), asked, "the second must be asked first now");
}

#[test]
fn silence_is_asked_again_from_new_ports_and_ends_in_servfail() {
    let silent = Upstream::start(|_| Vec::new());
    let lab = Lab::scheduled(config(allow(&[NAME]), &[silent.address]), hasty());
    let start = Instant::now();
    assert_eq!(fails(&lab), 22);
    assert!(start.elapsed() >= Duration::from_millis(1400) && start.elapsed() < DEADLINE);
    let asked = silent.asked();
    let pairs: HashSet<_> = asked.iter().map(|asked| (asked.from, asked.message.metadata.id)).collect();
    assert_eq!((asked.len(), pairs.len()), (3, 3));
    assert_eq!(failure(&lab), UpstreamError::Timeout);
}

#[test]
fn a_dead_upstream_fails_at_once() {
    let dead: SocketAddr = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let lab = Lab::with(config(allow(&[NAME]), &[dead]));
    let start = Instant::now();
    assert_eq!(fails(&lab), 23);
    assert!(start.elapsed() < DEADLINE / 2);
}

#[test]
fn c07_aaaa_does_not_fail_beside_a_good_a() {
    for code in [None, Some(ResponseCode::ServFail), Some(ResponseCode::NXDomain)] {
        let upstream = Upstream::start(move |asked| match (asked.qtype(), code) {
            (RecordType::A, _) => good(asked),
            (_, None) => Vec::new(),
            (_, Some(code)) => whole(&asked.code(code)),
        });
        let lab = Lab::start(allow(&[NAME]), &[&upstream]);
        answers_well(&lab);
        let start = Instant::now();
        let answer = lab.ask(NAME, RecordType::AAAA);
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len(), answer.authorities.len()),
            (ResponseCode::NoError, 0, 1),
            "{code:?}"
        );
        assert!(start.elapsed() < DEADLINE / 2, "{code:?}: {:?}", start.elapsed());
    }
}

#[test]
fn c07_without_an_a_the_failure_is_told() {
    let upstream = Upstream::start(|asked| whole(&asked.code(ResponseCode::ServFail)));
    let lab = Lab::start(allow(&[NAME]), &[&upstream]);
    fails(&lab);
    assert_eq!(lab.ask(NAME, RecordType::AAAA).metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn f04_a_server_that_came_back_is_asked_first_again() {
    let well = Arc::new(AtomicBool::new(false));
    let first = {
        let well = Arc::clone(&well);
        Upstream::start(move |asked| if well.load(Ordering::SeqCst) { good(asked) } else { Vec::new() })
    };
    let second = Upstream::start(good);
    let lab = Lab::scheduled(config(allow(&[NAME]), &[first.address, second.address]), hasty());
    answers_well(&lab);
    well.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + DEADLINE;
    // It is left alone for a while, then gets a question beside the second one's, then is the only one that is asked.
    loop {
        lab.later(OLD);
        let asked = second.asked().len();
        answers_well(&lab);
        if second.asked().len() == asked {
            break;
        }
        assert!(Instant::now() < deadline, "the first server is never asked again");
    }
    assert!(first.asked().len() >= 3);
}

/// Chi-square of counts that should all be the same.
fn chi_square(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / f64::from(u32::try_from(counts.len()).unwrap());
    counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
}

#[test]
fn f05_ports_and_ids_of_10_000_queries_are_evenly_spread() {
    const QUERIES: usize = 10_000;
    let upstream = Upstream::start(|asked| whole(&asked.reply(vec![address(&asked.name(), 60, "198.51.100.7")])));
    let mut config = config(allow(&[]), &[upstream.address]);
    config.names = Arc::new(Everything);
    let lab = Lab::with(config);
    let client = lab.client();
    let mut buffer = [0; 512];
    for number in 0..QUERIES {
        client.send(&query(&format!("n{number}.example.test"), RecordType::A, None)).unwrap();
        client.recv(&mut buffer).unwrap();
    }
    let asked: Vec<_> = upstream.asked().into_iter().filter(|asked| !asked.tcp).collect();
    let pairs: HashSet<_> = asked.iter().map(|asked| (asked.from.port(), asked.message.metadata.id)).collect();
    assert!(asked.len() >= QUERIES && pairs.len() > 9_000, "{} pairs of {}", pairs.len(), asked.len());
    let mut ids = [0; 16];
    let mut ports: Vec<u16> = Vec::new();
    for asked in &asked {
        ids[usize::from(asked.message.metadata.id >> 12)] += 1;
        ports.push(asked.from.port());
    }
    // 15 degrees of freedom: above 44.3 once in ten thousand runs.
    assert!(chi_square(&ids) < 44.3, "ids {ids:?}");
    // The kernel gives away odd ports last: those it uses are spread over their range.
    let (least, most) = (ports.iter().min().copied().unwrap(), ports.iter().max().copied().unwrap());
    let width = (u32::from(most - least) / 8).max(1);
    let mut eighths = [0; 8];
    for port in &ports {
        eighths[(u32::from(port - least) / width).min(7) as usize] += 1;
    }
    let distinct: HashSet<_> = ports.iter().collect();
    assert!(distinct.len() > 4_000, "{} ports", distinct.len());
    // 7 degrees of freedom, 29.9 once in ten thousand runs; ports in use by others make it a little uneven.
    assert!(chi_square(&eighths) < 60.0, "ports {eighths:?}");
}
