//! One hostile message at a time, from either side, and what must hold of whatever comes of it. For the test with a fixed
//! seed and for `cargo fuzz`; in no other build.

use super::{
    Answers, Client, Clients, Config, DnsEvent, DnsEvents, Name, NameVerdict, Names, PermitError, Permits, Protected,
    Written, answer, relay,
    responder::{Peer, Responder, State, Step, TCP, UDP},
    upstream::Schedule,
    wire::{self, Query},
};
use crate::policy::{NameTable, Policy};
use hickory_proto::op::Message;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

struct Rules(NameTable);

impl Names for Rules {
    fn verdict(&self, labels: &[&[u8]]) -> NameVerdict {
        self.0.verdict(labels)
    }
}

/// Permits everything, knows nobody, hears nothing.
struct Nobody;

impl Permits for Nobody {
    fn permit(&self, _: u64, _: &Name, _: &[IpAddr], _: &[usize], _: Duration) -> Result<Written, PermitError> {
        Ok(Written { new: true, ..Written::default() })
    }

    fn names_of(&self, _: IpAddr) -> Vec<String> {
        vec!["api.example.test".into()]
    }
}

impl Clients for Nobody {
    fn client(&self, _: u8, _: u16) -> Option<Client> {
        None
    }
}

impl DnsEvents for Nobody {
    fn dns_event(&self, _: DnsEvent) {}
}

/// What became of a client's message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Became {
    /// No answer.
    Nothing,
    /// An answer that holds its limits.
    Answer,
    /// A question for an upstream.
    Question,
}

/// The side of a client.
pub struct FromClient {
    responder: Arc<Responder>,
    out: Vec<u8>,
}

impl FromClient {
    /// Under a policy with a name, a wildcard and a deny.
    ///
    /// # Panics
    /// Never.
    #[expect(clippy::expect_used, reason = "a policy of three lines, in no production build")]
    pub fn new() -> Self {
        let policy = Policy::from_toml(
            "[allow]\nnames = [\"api.example.test\", \"*.wild.test\"]\n[deny]\nnames = [\"bad.wild.test\"]",
        )
        .expect("a policy");
        let config = Config {
            names: Arc::new(Rules(NameTable::new(&policy))),
            generation: 1,
            servers: vec![SocketAddr::from(([192, 0, 2, 53], 53)).into()],
            answers: Answers::Public,
            protected: Protected::default(),
            permit_min: policy.dns.permit_min,
            permit_max: policy.dns.permit_max,
            grace: policy.dns.grace,
            queries_per_second: u32::MAX,
            keep_chains: false,
            services: false,
            observe: false,
        };
        let state = State::new(config, Schedule::default(), None).expect("a server in the clear");
        let responder = Responder::new(state, Arc::new(Nobody), Arc::new(Nobody), Arc::new(Nobody));
        Self { responder: Arc::new(responder), out: Vec::new() }
    }

    /// # Panics
    /// On a defect.
    pub fn receive(&mut self, message: &[u8], tcp: bool) -> Became {
        let peer = Peer { protocol: if tcp { TCP } else { UDP }, port: 5000 };
        match self.responder.receive(message, peer, &mut self.out) {
            Step::Silent => Became::Nothing,
            Step::Ask(miss) => {
                assert!(!miss.rules.is_empty() && [1, 28].contains(&miss.query.question.qtype()));
                Became::Question
            }
            Step::Answered => {
                let out = &self.out;
                assert!(out.len() <= 1232 && out.capacity() <= 128 << 10);
                assert!(out[..2] == message[..2] && out[2] & 0x80 != 0);
                assert!(Message::from_vec(out).is_ok(), "{message:?} -> {out:?}");
                Became::Answer
            }
        }
    }
}

impl Default for FromClient {
    fn default() -> Self {
        Self::new()
    }
}

/// The side of an upstream that was asked for the A records of `api.example.test`.
pub struct FromUpstream {
    name: Name,
    query: Query,
    out: Vec<u8>,
}

impl FromUpstream {
    /// # Panics
    /// Never.
    #[expect(clippy::expect_used, reason = "a constant message, in no production build")]
    pub fn new() -> Self {
        const QUERY: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03api\x07example\x04test\0\0\x01\0\x01";
        let (query, _) = wire::read(QUERY).expect("a query");
        Self { name: query.question.name(), query, out: Vec::new() }
    }

    /// Whether it could be decoded, and whether it could be handed on.
    ///
    /// # Panics
    /// On a defect.
    pub fn receive(&mut self, message: &[u8]) -> (bool, bool) {
        let relayed = relay::write(&self.query, message, 512, &mut self.out).is_some();
        assert!(!relayed || self.out.len() <= 512 && self.out[..2] == self.query.id.to_be_bytes());
        let Some(message) = answer::decode(message) else { return (false, relayed) };
        let walk = answer::walk(&message, &self.name, 1, answer::MAX_HOPS);
        assert!(walk.hops.len() <= answer::MAX_HOPS);
        if let answer::End::Addresses(addresses) = walk.end {
            assert!((1..=answer::MAX_ADDRESSES).contains(&addresses.len()) && addresses.iter().all(IpAddr::is_ipv4));
        }
        (true, relayed)
    }
}

impl Default for FromUpstream {
    fn default() -> Self {
        Self::new()
    }
}
