//! The lab's DNS servers: UDP and TCP on every DNS address of the sink, one zone behind all of them.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    str::FromStr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA},
    },
};

use crate::{
    netns::Netns,
    sink::canonical,
    wait::Stop,
    zone::{Query, Zone, key},
};

/// CNAME targets followed within one answer.
const CHAIN: usize = 16;

/// Starts a server on port 53 of each address.
pub(crate) fn start(netns: &Netns, addresses: &[IpAddr], zone: &Zone, stop: &Stop) {
    for address in addresses {
        let at = SocketAddr::new(*address, 53);
        let (udp, tcp) = netns.enter(|| {
            let udp = UdpSocket::bind(at).unwrap_or_else(|error| panic!("DNS on {at}/udp: {error}"));
            (udp, TcpListener::bind(at).unwrap_or_else(|error| panic!("DNS on {at}/tcp: {error}")))
        });
        let (its_zone, its_stop) = (zone.clone(), stop.clone());
        std::thread::spawn(move || serve_udp(&udp, &its_zone, &its_stop));
        let (its_zone, its_stop) = (zone.clone(), stop.clone());
        std::thread::spawn(move || {
            while its_stop.wait(&[tcp.as_fd()]) {
                let Ok((stream, _)) = tcp.accept() else { continue };
                let (zone, stop) = (its_zone.clone(), its_stop.clone());
                std::thread::spawn(move || serve_tcp(stream, &zone, &stop));
            }
        });
    }
}

fn serve_udp(socket: &UdpSocket, zone: &Zone, stop: &Stop) {
    let server = socket.local_addr().expect("local address");
    let mut buffer = [0; 4096];
    while stop.wait(&[socket.as_fd()]) {
        let Ok((count, src)) = socket.recv_from(&mut buffer) else { continue };
        let Some((answer, delay)) = respond(&buffer[..count], server, src, false, zone) else { continue };
        if delay.is_zero() {
            let _gone = socket.send_to(&answer, src);
            continue;
        }
        let socket = socket.try_clone().expect("a second descriptor");
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let _gone = socket.send_to(&answer, src);
        });
    }
}

fn serve_tcp(mut stream: TcpStream, zone: &Zone, stop: &Stop) {
    let (Ok(server), Ok(src)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let _timeout = stream.set_read_timeout(Some(Duration::from_secs(2)));
    while stop.wait(&[stream.as_fd()]) {
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        let Some((answer, delay)) = respond(&query, server, src, true, zone) else { continue };
        std::thread::sleep(delay);
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        if stream.write_all(&framed).is_err() {
            return;
        }
    }
}

/// The answer to a query and how long to hold it back; `None` where there shall be none.
fn respond(bytes: &[u8], server: SocketAddr, src: SocketAddr, tcp: bool, zone: &Zone) -> Option<(Vec<u8>, Duration)> {
    let query = Message::from_vec(bytes).ok()?;
    let question = query.queries.first()?.clone();
    let name = key(&question.name().to_ascii());
    let kind = question.query_type();
    zone.log(Query {
        server: canonical(server),
        src: canonical(src),
        name: name.clone(),
        kind,
        tcp,
        at: Instant::now(),
    });

    let mut answer = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    if let Some(asked) = &query.edns {
        answer.set_edns(Edns::clone(asked));
    }
    let Some(entry) = zone.get(&name) else {
        answer.metadata.response_code = ResponseCode::NXDomain;
        answer.add_authority(soa());
        return Some((answer.to_vec().ok()?, Duration::ZERO));
    };
    if entry.silent || entry.silent_for == Some(kind) {
        return None;
    }
    if zone.takes_failure(&name) {
        answer.metadata.response_code = ResponseCode::ServFail;
    } else {
        answer.add_answers(records(zone, question.name(), kind));
        answer
            .add_answers(entry.strays.iter().filter_map(|(owner, ip)| address(&owned(owner), *ip, kind, entry.ttl_s)));
        answer.add_additionals(
            entry.additional.iter().filter_map(|(owner, ip)| address(&owned(owner), *ip, kind, entry.ttl_s)),
        );
        if answer.answers.is_empty() {
            answer.add_authority(soa());
        }
    }
    let mut wire = answer.to_vec().ok()?;
    let room = query.edns.as_ref().map_or(512, |edns| usize::from(edns.max_payload().max(512)));
    if !tcp && (entry.tcp_only || wire.len() > room) {
        answer.answers.clear();
        answer.additionals.clear();
        answer.metadata.truncation = true;
        wire = answer.to_vec().ok()?;
    }
    Some((wire, entry.delay))
}

/// The records on the chain from `name`.
fn records(zone: &Zone, name: &Name, kind: RecordType) -> Vec<Record> {
    let (mut records, mut owner) = (Vec::new(), name.clone());
    for _ in 0..CHAIN {
        let Some(entry) = zone.get(&owner.to_ascii()) else { break };
        records.extend(entry.addresses.iter().filter_map(|ip| address(&owner, *ip, kind, entry.ttl_s)));
        let Some(target) = entry.alias else { break };
        let target = owned(&target);
        records.push(Record::from_rdata(owner, entry.ttl_s, RData::CNAME(CNAME(target.clone()))));
        owner = target;
    }
    records
}

fn address(owner: &Name, ip: IpAddr, kind: RecordType, ttl_s: u32) -> Option<Record> {
    let data = match (ip, kind) {
        (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
        (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(Record::from_rdata(owner.clone(), ttl_s, data))
}

fn soa() -> Record {
    let soa = SOA::new(owned("ns.test"), owned("hostmaster.test"), 1, 3600, 600, 86400, 5);
    Record::from_rdata(owned("test"), 5, RData::SOA(soa))
}

fn owned(name: &str) -> Name {
    let mut name = Name::from_str(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    name.set_fqdn(true);
    name
}
