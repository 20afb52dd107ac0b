//! A server between a test's client and a scripted upstream, all on loopback.

use super::scripted::{Upstream, name as scripted_name, pair};
use crate::dns::{
    Answers, Client, Clients, Config, DnsEvent, DnsEvents, Listeners, Name, NameVerdict, Names, PermitError, Permits,
    Protected, Server, Written, upstream::Schedule,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{self, Record, RecordType},
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
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
            let exact = rules.iter().any(|&index| !self.allow[index].starts_with("*."));
            let bases = rules.iter().map(|&index| self.allow[index].matches('.').count());
            let free_labels = bases.max().filter(|_| !exact).map(|base| labels.len() - base);
            return NameVerdict::Allow { rules, free_labels };
        }
        let above = self.allow.iter().any(|rule| {
            let rule: Name = rule.trim_start_matches("*.").parse().unwrap();
            let (rule, labels) = (rule.labels(), name.labels());
            rule.len() >= labels.len() && rule[rule.len() - labels.len()..] == labels[..]
        });
        if above { NameVerdict::Ancestor } else { NameVerdict::Unlisted }
    }
}

/// Every name has a rule of its own.
pub(crate) struct Everything;

impl Names for Everything {
    fn verdict(&self, _labels: &[&[u8]]) -> NameVerdict {
        NameVerdict::Allow { rules: vec![0], free_labels: None }
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
    /// What every permit says to have taken the place of.
    pub(crate) evicted: Mutex<Vec<IpAddr>>,
    /// Called inside `permit`.
    pub(crate) hook: Mutex<Option<Box<dyn Fn() + Send>>>,
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
    ) -> Result<Written, PermitError> {
        if let Some(error) = *self.fail.lock().unwrap() {
            return Err(error);
        }
        if let Some(hook) = &*self.hook.lock().unwrap() {
            hook();
        }
        let permit =
            Permit { generation, name: name.to_string(), addresses: addresses.to_vec(), rules: rules.to_vec(), life };
        let mut permits = self.permits.lock().unwrap();
        let held = |address| permits.iter().any(|held| held.name == permit.name && held.addresses.contains(address));
        let new = !permit.addresses.iter().all(held);
        permits.push(permit);
        Ok(Written { new, evicted: self.evicted.lock().unwrap().clone() })
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
        servers: servers.iter().copied().map(Into::into).collect(),
        answers: Answers::Public,
        protected: Protected::default(),
        permit_min: Duration::from_secs(30),
        permit_max: Duration::from_secs(3600),
        grace: Duration::from_secs(120),
        queries_per_second: 100_000,
        keep_chains: false,
        services: false,
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
        Self::scheduled(config, patient())
    }

    pub(crate) fn scheduled(config: Config, schedule: Schedule) -> Self {
        let (udp, tcp) = pair();
        let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let records = Arc::new(Records::default());
        let listeners = Listeners { udp: vec![udp], tcp: vec![tcp], every_address: false };
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

    /// Answers grow old by so much at once.
    pub(crate) fn later(&self, by: Duration) {
        self.server.responder.clock.advance(by);
    }

    /// One exchange over UDP, byte for byte.
    pub(crate) fn exchange(&self, query: &[u8]) -> Vec<u8> {
        let socket = self.client();
        socket.send(query).unwrap();
        let mut buffer = vec![0; 65535];
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

/// For upstreams that do not answer.
pub(crate) fn hasty() -> Schedule {
    let ms = Duration::from_millis;
    Schedule { race: ms(100), resend: [ms(200), ms(400)], budget: ms(1500) }
}

/// Sends each question once and waits long, however loaded the machine is.
pub(crate) fn patient() -> Schedule {
    Schedule { race: DEADLINE, resend: [DEADLINE; 2], budget: DEADLINE }
}

/// A client's query; with an OPT record where there is a size.
pub(crate) fn query(name: &str, qtype: RecordType, size: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(scripted_name(name), qtype)];
    if let Some(size) = size {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.edns = Some(edns);
    }
    message.to_vec().unwrap()
}

/// The addresses of a flattened answer, in order.
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
