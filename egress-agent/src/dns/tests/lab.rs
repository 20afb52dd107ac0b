//! A server between a test's client and a scripted upstream, all on loopback.

use super::super::{
    Client, Clients, Config, DnsEvent, DnsEvents, Listeners, Name, NameVerdict, Names, PermitError, Permits, Server,
    upstream::Schedule,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{self, Record, RecordType},
};
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Nothing on loopback takes this long unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Rules as exact names and `*.suffix`; numbers are places in the list.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) allow: Vec<&'static str>,
    pub(crate) deny: Vec<&'static str>,
}

fn matches(rule: &str, name: &Name) -> bool {
    let (base, below) = rule.strip_prefix("*.").map_or((rule, false), |base| (base, true));
    let base: Name = base.parse().unwrap();
    let (labels, base_labels) = (name.labels(), base.labels());
    labels.len() >= base_labels.len()
        && labels[labels.len() - base_labels.len()..] == base_labels[..]
        && (labels.len() > base_labels.len()) == below
}

impl Names for Rules {
    fn verdict(&self, labels: &[&[u8]]) -> NameVerdict {
        let name = Name::from_labels(labels.iter().copied()).unwrap();
        if let Some(rule) = self.deny.iter().position(|rule| matches(rule, &name)) {
            return NameVerdict::Deny { rule };
        }
        let rules: Vec<usize> = (0..self.allow.len()).filter(|&index| matches(self.allow[index], &name)).collect();
        if !rules.is_empty() {
            return NameVerdict::Allow { rules };
        }
        let above = self.allow.iter().any(|rule| {
            let rule: Name = rule.trim_start_matches("*.").parse().unwrap();
            let (rule, labels) = (rule.labels(), name.labels());
            rule.len() >= labels.len() && rule[rule.len() - labels.len()..] == labels[..]
        });
        if above { NameVerdict::Ancestor } else { NameVerdict::Unlisted }
    }
}

/// One call of `permit`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Permit {
    pub(crate) generation: u64,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) rules: Vec<usize>,
    pub(crate) life: Duration,
}

/// The kernel's side and everybody who listens.
#[derive(Default)]
pub(crate) struct Records {
    permits: Mutex<Vec<Permit>>,
    events: Mutex<Vec<DnsEvent>>,
    pub(crate) fail: Mutex<Option<PermitError>>,
}

impl Records {
    pub(crate) fn permits(&self) -> Vec<Permit> {
        self.permits.lock().unwrap().clone()
    }

    pub(crate) fn events(&self) -> Vec<DnsEvent> {
        self.events.lock().unwrap().clone()
    }

    /// Waits for an event that the filter takes.
    pub(crate) fn event<T>(&self, filter: impl Fn(&DnsEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = self.events().iter().find_map(&filter) {
                return found;
            }
            assert!(Instant::now() < deadline, "no such event in {:?}", self.events());
            thread::yield_now();
        }
    }
}

impl Permits for Records {
    fn permit(
        &self,
        generation: u64,
        name: &Name,
        addresses: &[IpAddr],
        rules: &[usize],
        life: Duration,
    ) -> Result<(), PermitError> {
        if let Some(error) = *self.fail.lock().unwrap() {
            return Err(error);
        }
        let permit =
            Permit { generation, name: name.to_string(), addresses: addresses.to_vec(), rules: rules.to_vec(), life };
        self.permits.lock().unwrap().push(permit);
        Ok(())
    }

    fn names_of(&self, address: IpAddr) -> Vec<String> {
        self.permits()
            .iter()
            .filter(|permit| permit.addresses.contains(&address))
            .map(|permit| permit.name.clone())
            .collect()
    }
}

impl Clients for Records {
    fn client(&self, protocol: u8, peer_port: u16) -> Option<Client> {
        Some(Client { pid: u32::from(peer_port), uid: 1000, comm: if protocol == 17 { "udp" } else { "tcp" }.into() })
    }
}

impl DnsEvents for Records {
    fn dns_event(&self, event: DnsEvent) {
        self.events.lock().unwrap().push(event);
    }
}

/// What the upstream does with a decoded query; `None` is silence.
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
        let address = udp.local_addr().unwrap();
        let script: Arc<Script> = Arc::new(script);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let see = {
            let (asked, script) = (Arc::clone(&asked), Arc::clone(&script));
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
                        udp.send_to(&reply, from).unwrap();
                    }
                }
            })
        };
        let on_tcp = {
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
        };
        Self { address, asked, stop, threads: vec![on_udp, on_tcp] }
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

fn name(text: &str) -> rr::Name {
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
fn pair() -> (UdpSocket, TcpListener) {
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

/// A running server and its client.
pub(crate) struct Lab {
    pub(crate) server: Server,
    pub(crate) records: Arc<Records>,
    pub(crate) udp: SocketAddr,
    pub(crate) tcp: SocketAddr,
}

pub(crate) fn config(rules: Rules, servers: &[SocketAddr]) -> Config {
    Config {
        names: Arc::new(rules),
        generation: 1,
        servers: servers.to_vec(),
        answers: super::super::Answers::Public,
        protected: super::super::Protected::default(),
        permit_min: Duration::from_secs(30),
        permit_max: Duration::from_secs(3600),
        grace: Duration::from_secs(120),
        queries_per_second: 100_000,
        observe: false,
    }
}

pub(crate) fn allow(allow: &[&'static str]) -> Rules {
    Rules { allow: allow.to_vec(), deny: Vec::new() }
}

impl Lab {
    pub(crate) fn start(rules: Rules, upstreams: &[&Upstream]) -> Self {
        let servers: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
        Self::with(config(rules, &servers))
    }

    pub(crate) fn with(config: Config) -> Self {
        let ms = Duration::from_millis;
        Self::scheduled(config, Schedule { race: ms(100), resend: [ms(200), ms(400)], budget: ms(1500) })
    }

    pub(crate) fn scheduled(config: Config, schedule: Schedule) -> Self {
        let (udp, tcp) = pair();
        let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let records = Arc::new(Records::default());
        let listeners = Listeners { udp: vec![udp], tcp: vec![tcp] };
        let (permits, clients, events) = (Arc::clone(&records), Arc::clone(&records), Arc::clone(&records));
        let server = Server::start_with(listeners, config, permits, clients, events, schedule).unwrap();
        Self { server, records, udp: udp_address, tcp: tcp_address }
    }

    pub(crate) fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(self.udp).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// One exchange over UDP, byte for byte.
    pub(crate) fn exchange(&self, query: &[u8]) -> Vec<u8> {
        let socket = self.client();
        socket.send(query).unwrap();
        let mut buffer = [0; 65535];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    pub(crate) fn ask(&self, name: &str, qtype: RecordType) -> Message {
        Message::from_vec(&self.exchange(&query(name, qtype, Some(1232)))).unwrap()
    }

    pub(crate) fn ask_a(&self, name: &str) -> Message {
        self.ask(name, RecordType::A)
    }
}

/// A client's query; with an OPT record where there is a size.
pub(crate) fn query(name: &str, qtype: RecordType, size: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(self::name(name), qtype)];
    if let Some(size) = size {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.edns = Some(edns);
    }
    message.to_vec().unwrap()
}

/// The addresses of an answer, in order.
pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    let of = |record: &Record| match &record.data {
        rr::RData::A(a) => IpAddr::V4(a.0),
        rr::RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
        other => panic!("{other:?} in a flattened answer"),
    };
    message.answers.iter().map(of).collect()
}

pub(crate) fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The extended error code and text of an answer.
pub(crate) fn ede(message: &Message) -> Option<(u16, String)> {
    let options: &HashMap<_, _> = &message.edns.as_ref()?.options().as_ref().iter().cloned().collect();
    match options.get(&rr::rdata::opt::EdnsCode::Unknown(15)) {
        Some(rr::rdata::opt::EdnsOption::Unknown(15, octets)) => {
            let code = u16::from_be_bytes([octets[0], octets[1]]);
            Some((code, String::from_utf8(octets[2..].to_vec()).unwrap()))
        }
        _ => None,
    }
}
