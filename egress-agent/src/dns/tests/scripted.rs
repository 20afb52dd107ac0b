//! Upstreams that do what a test tells them, on loopback.

use super::lab::DEADLINE;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{self, Record, RecordType},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

/// What the upstream sends back for a query.
pub(crate) type Script = dyn Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync;

/// A query as an upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) bytes: Vec<u8>,
    pub(crate) message: Message,
    pub(crate) from: SocketAddr,
    pub(crate) tcp: bool,
}

impl Asked {
    pub(crate) fn name(&self) -> String {
        self.message.queries[0].name().to_lowercase().to_string().trim_end_matches('.').into()
    }

    pub(crate) fn qtype(&self) -> RecordType {
        self.message.queries[0].query_type()
    }

    /// An answer with these records.
    pub(crate) fn reply(&self, records: Vec<Record>) -> Message {
        let mut reply = Message::new(self.message.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = true;
        reply.metadata.recursion_available = true;
        reply.queries = self.message.queries.clone();
        reply.answers = records;
        reply.edns = self.message.edns.is_some().then(Edns::new);
        reply
    }

    pub(crate) fn code(&self, code: ResponseCode) -> Message {
        let mut reply = self.reply(Vec::new());
        reply.metadata.response_code = code;
        reply
    }
}

pub(crate) fn whole(reply: &Message) -> Vec<Vec<u8>> {
    vec![reply.to_vec().unwrap()]
}

/// The one address of whatever name is asked for: `198.51.100.7`, for a minute.
pub(crate) fn good(asked: &Asked) -> Vec<Vec<u8>> {
    let records = (asked.qtype() == RecordType::A).then(|| address(&asked.name(), 60, "198.51.100.7"));
    whole(&asked.reply(records.into_iter().collect()))
}

/// An upstream that says when it was asked, and gives its good answer when it is told to. It waits for ever where `go` is
/// dropped last.
pub(crate) fn held() -> (Upstream, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (arrived, arrival) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        arrived.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        good(asked)
    });
    (upstream, arrival, go)
}

/// A scripted upstream on UDP and TCP of one port.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start(script: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = pair();
        Self::on(udp, Some(tcp), script)
    }

    /// TCP to it is refused.
    pub(crate) fn without_tcp(script: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::on(pair().0, None, script)
    }

    fn on(
        udp: UdpSocket,
        tcp: Option<TcpListener>,
        script: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let address = udp.local_addr().unwrap();
        let script: Arc<Script> = Arc::new(script);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let see = {
            let asked = Arc::clone(&asked);
            move |bytes: &[u8], from, tcp| {
                let seen = Asked { bytes: bytes.to_vec(), message: Message::from_vec(bytes).unwrap(), from, tcp };
                asked.lock().unwrap().push(seen.clone());
                script(&seen)
            }
        };
        let on_udp = {
            let (see, stop) = (see.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    for reply in see(&buffer[..length], from, false) {
                        // The asker may be gone already.
                        drop(udp.send_to(&reply, from));
                    }
                }
            })
        };
        let on_tcp = tcp.map(|tcp| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while let Ok((mut stream, from)) = tcp.accept() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let Some(query) = read_frame(&mut stream) else { continue };
                    for reply in see(&query, from, true) {
                        write_frame(&mut stream, &reply);
                    }
                }
            })
        });
        Self { address, asked, stop, threads: [on_udp].into_iter().chain(on_tcp).collect() }
    }

    /// Answers by name from a table; NXDOMAIN otherwise.
    pub(crate) fn table(records: Vec<Record>) -> Self {
        Self::start(move |asked| {
            let found: Vec<Record> = chain(&records, &asked.name(), asked.qtype());
            let known = records.iter().any(|record| same(&record.name, &asked.name()));
            whole(&if known { asked.reply(found) } else { asked.code(ResponseCode::NXDomain) })
        })
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().send_to(&[0], self.address).unwrap();
        drop(TcpStream::connect(self.address));
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the upstream's script failed");
        }
    }
}

fn same(owner: &rr::Name, name: &str) -> bool {
    owner.to_lowercase().to_string().trim_end_matches('.') == name
}

fn chain(records: &[Record], name: &str, qtype: RecordType) -> Vec<Record> {
    let mut found = Vec::new();
    let mut owner = name.to_owned();
    for _ in 0..20 {
        let here = records.iter().filter(|record| same(&record.name, &owner));
        let (links, rest): (Vec<_>, Vec<_>) = here.partition(|record| record.record_type() == RecordType::CNAME);
        found.extend(rest.into_iter().filter(|record| record.record_type() == qtype).cloned());
        let Some(link) = links.first() else { break };
        found.push((*link).clone());
        let rr::RData::CNAME(target) = &link.data else { unreachable!() };
        owner = target.0.to_lowercase().to_string().trim_end_matches('.').into();
    }
    found
}

pub(crate) fn name(text: &str) -> rr::Name {
    rr::Name::from_ascii(format!("{text}.")).unwrap()
}

/// A or AAAA.
pub(crate) fn address(owner: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(v4) => rr::RData::A(v4.into()),
        IpAddr::V6(v6) => rr::RData::AAAA(v6.into()),
    };
    Record::from_rdata(name(owner), ttl, data)
}

pub(crate) fn cname(owner: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(name(owner), ttl, rr::RData::CNAME(rr::rdata::CNAME(name(target))))
}

/// UDP and TCP sockets on one loopback port.
pub(crate) fn pair() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

pub(crate) fn write_frame(stream: &mut TcpStream, message: &[u8]) {
    let mut frame = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(message);
    stream.write_all(&frame).unwrap();
}

pub(crate) fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}
