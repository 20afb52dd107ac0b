//! Queries over TCP.

use super::{
    lab::{DEADLINE, Lab, addresses, allow, config, patient, query},
    scripted::{Upstream, address, read_frame, whole, write_frame},
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

fn upstream() -> Upstream {
    Upstream::table(vec![address("api.example.test", 60, "198.51.100.7")])
}

fn connect(lab: &Lab) -> TcpStream {
    let stream = TcpStream::connect(lab.tcp).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn answer(stream: &mut TcpStream) -> Message {
    Message::from_vec(&read_frame(stream).unwrap()).unwrap()
}

#[test]
fn a09_c12_tcp_takes_pipelined_and_split_queries_and_refuses_transfers() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    let mut stream = TcpStream::connect(lab.tcp).unwrap();
    stream.set_nodelay(true).unwrap();
    for name in ["api.example.test", "denied.example.test"] {
        write_frame(&mut stream, &query(name, RecordType::A, None));
    }
    let mut codes: Vec<_> =
        (0..2).map(|_| Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap().metadata.response_code).collect();
    codes.sort_by_key(|code| u16::from(*code));
    assert_eq!(codes, [ResponseCode::NoError, ResponseCode::NXDomain]);

    let message = query("api.example.test", RecordType::A, None);
    let mut frame = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(message);
    for octet in frame {
        stream.write_all(&[octet]).unwrap();
    }
    assert_eq!(addresses(&Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap()).len(), 1);

    // A transfer is refused and the connection stays; an empty frame ends it.
    write_frame(&mut stream, &query("api.example.test", RecordType::AXFR, None));
    assert_eq!(
        Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap().metadata.response_code,
        ResponseCode::Refused
    );
    stream.write_all(&[0, 0]).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn answers_do_not_wait_for_each_other() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        wait.lock().unwrap().recv().unwrap();
        whole(&asked.reply(vec![address(&asked.name(), 60, "198.51.100.7")]))
    });
    let lab = Lab::scheduled(config(allow(&["*.example.test"]), &[upstream.address]), patient());
    let mut stream = connect(&lab);
    write_frame(&mut stream, &query("slow.example.test", RecordType::A, None));
    write_frame(&mut stream, &query("denied.example", RecordType::A, None));
    assert_eq!(answer(&mut stream).metadata.response_code, ResponseCode::NXDomain);
    go.send(()).unwrap();
    assert_eq!(answer(&mut stream).answers.len(), 1);
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answers() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    let mut stream = connect(&lab);
    for _ in 0..200 {
        write_frame(&mut stream, &query("api.example.test", RecordType::A, None));
    }
    stream.shutdown(Shutdown::Write).unwrap();
    for number in 0..200 {
        assert_eq!(addresses(&answer(&mut stream)).len(), 1, "{number}");
    }
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn connections_beyond_the_limit_wait_and_a_message_must_be_finished() {
    let upstream = upstream();
    let lab = Lab::start(allow(&["api.example.test"]), &[&upstream]);
    let start = Instant::now();
    let mut held: Vec<_> = (0..16).map(|_| connect(&lab)).collect();
    for stream in &mut held {
        // Each is served, so it has its place, and then begins a message.
        write_frame(stream, &query("denied.example", RecordType::A, None));
        assert_eq!(answer(stream).metadata.response_code, ResponseCode::NXDomain);
        stream.write_all(&[0, 30, 1]).unwrap();
    }
    let mut late = connect(&lab);
    write_frame(&mut late, &query("api.example.test", RecordType::A, None));
    assert_eq!(addresses(&answer(&mut late)).len(), 1);
    assert!(start.elapsed() >= Duration::from_millis(1900) && start.elapsed() < DEADLINE, "{:?}", start.elapsed());
    assert_eq!(held[0].read(&mut [0; 1]).unwrap(), 0);
}
