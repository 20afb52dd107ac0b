//! One sandbox's answers: what can be said at once is said in the receive loop, the rest becomes a [`Miss`].

use super::{
    ahead,
    beat::Beat,
    budget::{Budget, Verdict},
    cache::{Cache, Key},
    clock::Clock,
    config::{Config, DnsError},
    counters::Counters,
    derived::Derived,
    event::{Clients, Denial, DnsEvent, DnsEvents, Reason},
    flights::Flights,
    gate::{self, Decision, Pass, Refusal},
    name::Name,
    permits::Permits,
    rebinding::Protected,
    reply::{self, Content, Ede, Records},
    special,
    tunnel::{Kept, Tunnels},
    twins::Twins,
    upstream::{Schedule, Upstreams},
    wire::{self, Query, Rcode, Silence, rtype},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, Semaphore};

/// Life of what the policy says: short, for a policy may change.
pub(super) const POLICY_TTL: u32 = 5;
const LOOPBACK_TTL: u32 = 60;
/// Questions that are with upstreams at a time.
pub(super) const MAX_IN_FLIGHT: usize = 256;
/// Questions that are with upstreams or wait for their turn.
pub(super) const MAX_QUEUED: usize = 1024;
/// Names in one PTR answer.
const MAX_POINTERS: usize = 8;

/// IP protocol numbers (IANA).
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Where a query came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) protocol: u8,
    pub(super) port: u16,
}

impl Peer {
    /// Octets that an answer to it may have.
    pub(super) fn limit(self, query: &Query) -> usize {
        if self.protocol == UDP { query.udp_limit() } else { usize::from(u16::MAX) }
    }
}

/// A policy in force, and the upstreams that belong to it. Who holds the one that [`Responder::current`] gave knows by
/// pointer whether it still is.
pub(super) struct State {
    pub(super) config: Config,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) protected: Protected,
}

impl State {
    /// What was learned of the upstreams is kept where `previous` has the same ones.
    pub(super) fn new(config: Config, schedule: Schedule, previous: Option<&Self>) -> Result<Arc<Self>, DnsError> {
        let mut protected = config.protected.clone();
        protected.extend(config.servers.iter().map(|server| server.address.ip()));
        let upstreams = match previous {
            Some(previous) if previous.config.servers == config.servers => Arc::clone(&previous.upstreams),
            _ => Arc::new(Upstreams::new(&config.servers, schedule)?),
        };
        Ok(Arc::new(Self { config, upstreams, protected }))
    }
}

/// A question for a name that goes upstream, unless its answer is known.
pub(super) struct Miss {
    pub(super) query: Query,
    pub(super) peer: Peer,
    pub(super) state: Arc<State>,
    pub(super) rules: Vec<usize>,
}

impl Miss {
    pub(super) fn key(&self) -> Key {
        Key { name: self.query.question.name(), qtype: self.query.question.qtype() }
    }
}

/// What became of a message.
pub(super) enum Step {
    /// Nothing is to be sent.
    Silent,
    /// The answer is in the buffer.
    Answered,
    /// It takes an upstream.
    Ask(Box<Miss>),
}

/// Everything that answering needs but sockets.
pub(super) struct Responder {
    state: Mutex<Arc<State>>,
    budget: Mutex<Budget>,
    cache: Mutex<Cache>,
    tunnels: Mutex<Tunnels>,
    derived: Mutex<Derived>,
    pub(super) clock: Clock,
    pub(super) flights: Flights,
    pub(super) permits: Arc<dyn Permits>,
    clients: Arc<dyn Clients>,
    pub(super) events: Arc<dyn DnsEvents>,
    pub(super) counters: Counters,
    pub(super) in_flight: Semaphore,
    pub(super) queue: Semaphore,
    /// Places for names that are renewed before they grow old.
    pub(super) renewals: Arc<Semaphore>,
    pub(super) twins: Twins,
    pub(super) beat: Beat,
    /// Told when a task panicked.
    pub(super) defect: Notify,
}

impl Responder {
    pub(super) fn new(
        state: Arc<State>,
        permits: Arc<dyn Permits>,
        clients: Arc<dyn Clients>,
        events: Arc<dyn DnsEvents>,
    ) -> Self {
        let clock = Clock::new();
        Self {
            budget: Mutex::new(Budget::new(state.config.queries_per_second, clock.now())),
            cache: Mutex::new(Cache::new()),
            tunnels: Mutex::default(),
            derived: Mutex::new(Derived::new()),
            clock,
            flights: Flights::default(),
            state: Mutex::new(state),
            permits,
            clients,
            events,
            counters: Counters::default(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            queue: Semaphore::new(MAX_QUEUED),
            renewals: Arc::new(Semaphore::new(ahead::RENEWALS)),
            twins: Twins::new(),
            beat: Beat::default(),
            defect: Notify::new(),
        }
    }

    /// The policy lock. A permit is written with it held, so whoever replaces the state knows that no permit of the old one
    /// is written afterwards.
    pub(super) fn lock(&self) -> MutexGuard<'_, Arc<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current(&self) -> Arc<State> {
        Arc::clone(&self.lock())
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn derived(&self) -> MutexGuard<'_, Derived> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another policy in force. What the same servers said is still true.
    pub(super) fn replace(&self, state: Arc<State>) {
        self.budget().set_rate(state.config.queries_per_second);
        let servers = Arc::clone(&state.upstreams);
        let previous = std::mem::replace(&mut *self.lock(), state);
        self.derived().clear();
        if !Arc::ptr_eq(&previous.upstreams, &servers) {
            self.flights.clear();
            self.cache().clear();
        }
    }

    /// Takes a client's message; an answer goes into `out`.
    pub(super) fn receive(self: &Arc<Self>, message: &[u8], peer: Peer, out: &mut Vec<u8>) -> Step {
        self.counters.received.add(1);
        let verdict = self.spend();
        if verdict == Verdict::Drop {
            self.counters.dropped.add(1);
            return Step::Silent;
        }
        let (query, refusal) = match wire::read(message) {
            Ok(read) => read,
            Err(silence) => {
                match silence {
                    Silence::Short => self.counters.short.add(1),
                    Silence::Response => self.counters.responses.add(1),
                }
                return Step::Silent;
            }
        };
        let content = match refusal {
            Some(rcode) => {
                self.counters.refused.add(1);
                Content::code(rcode)
            }
            None if verdict == Verdict::Refuse => {
                self.counters.over_budget.add(1);
                Content::fail(Ede::RATE)
            }
            None => {
                let state = self.current();
                let Some(Pass { rules, free_labels }) = self.judge(&query, peer, &state, out) else {
                    return Step::Answered;
                };
                let miss = Miss { query, peer, state, rules };
                if self.answer_known(&miss, out) || free_labels.is_some_and(|free| self.keep_back(&miss, free, out)) {
                    return Step::Answered;
                }
                return Step::Ask(Box::new(miss));
            }
        };
        reply::write(&query, &content, peer.limit(&query), out);
        Step::Answered
    }

    /// Counts an answer against the budget.
    pub(super) fn sent(&self, octets: usize) {
        self.budget().answered(self.clock.now(), octets);
    }

    fn spend(&self) -> Verdict {
        let now = self.clock.now();
        let mut budget = self.budget();
        let verdict = budget.take(now);
        let report = budget.report(now);
        drop(budget);
        if let Some((refused, dropped)) = report {
            self.events.dns_event(DnsEvent::Budget { refused, dropped });
        }
        verdict
    }

    /// Refuses a name below a wildcard that is one too many; the answer is in `out` then.
    fn keep_back(&self, miss: &Miss, free_labels: usize, out: &mut Vec<u8>) -> bool {
        let Key { name, .. } = miss.key();
        let known = {
            let cache = self.cache();
            [rtype::A, rtype::AAAA].into_iter().any(|qtype| cache.holds(&Key { name: name.clone(), qtype }))
        };
        if known || miss.state.config.observe {
            return false;
        }
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        let (passes, report) = tunnels.take(&name, free_labels, self.clock.now());
        drop(tunnels);
        if let Some(Kept { base, refused }) = report {
            self.events.dns_event(DnsEvent::Tunnel { base, refused });
        }
        if !passes {
            self.counters.tunnels.add(1);
            reply::write(&miss.query, &Content::fail(Ede::TUNNEL), miss.peer.limit(&miss.query), out);
        }
        !passes
    }

    /// By what a question goes upstream; otherwise its answer is in `out`.
    pub(super) fn judge(&self, query: &Query, peer: Peer, state: &State, out: &mut Vec<u8>) -> Option<Pass> {
        let decision = {
            let Config { names, observe, services, .. } = &state.config;
            gate::decide(&query.question, &**names, *observe, *services)
        };
        let qtype = query.question.qtype();
        if let Decision::Deny(Refusal { rule: None, reason: Reason::Unlisted | Reason::Ancestor | Reason::Local }) =
            &decision
            && state.config.keep_chains
            && gate::is_address(qtype)
            && let Some(rules) = self.derived().rules(&query.question.name(), self.clock.now())
        {
            return Some(Pass { rules, free_labels: None });
        }
        let pointers;
        let loopback;
        let content = match decision {
            Decision::Forward { pass, refusal } => {
                if let Some(refusal) = refusal {
                    self.events.dns_event(DnsEvent::WouldDeny(self.denial(query, peer, refusal)));
                }
                return Some(pass);
            }
            Decision::Deny(refusal) => self.deny(query, peer, refusal),
            Decision::NoData => Content::nodata(POLICY_TTL, None),
            Decision::Loopback => {
                loopback = match qtype {
                    rtype::A => [IpAddr::V4(Ipv4Addr::LOCALHOST)],
                    _ => [IpAddr::V6(Ipv6Addr::LOCALHOST)],
                };
                if gate::is_address(qtype) {
                    found(Records::Addresses { chain: &[], addresses: &loopback, ttl: LOOPBACK_TTL })
                } else {
                    Content::nodata(POLICY_TTL, None)
                }
            }
            Decision::Reverse(address) => {
                pointers = self.pointers(address);
                match qtype {
                    _ if pointers.is_empty() => Content::nxdomain(POLICY_TTL, None),
                    rtype::PTR => found(Records::Pointers { names: &pointers, ttl: POLICY_TTL }),
                    _ => Content::nodata(POLICY_TTL, None),
                }
            }
        };
        reply::write(query, &content, peer.limit(query), out);
        None
    }

    fn pointers(&self, address: IpAddr) -> Vec<Name> {
        if address.to_canonical().is_loopback() {
            return special::localhost().into_iter().collect();
        }
        // A name too long to be printed whole does not come back, or not as a name.
        self.permits.names_of(address).iter().filter_map(|name| name.parse().ok()).take(MAX_POINTERS).collect()
    }

    /// Reports a denial and says what the client is told: where something below the name is allowed, the name must seem to
    /// be there, or a cache in the sandbox would deny what is below it too (RFC 8020).
    pub(super) fn deny(&self, query: &Query, peer: Peer, refusal: Refusal) -> Content<'static> {
        self.counters.denied.add(1);
        let content = match refusal.reason {
            Reason::Ancestor => Content::nodata(POLICY_TTL, Some(Ede::NOT_ALLOWED)),
            _ => Content::nxdomain(POLICY_TTL, Some(Ede::NOT_ALLOWED)),
        };
        self.events.dns_event(DnsEvent::Denied(self.denial(query, peer, refusal)));
        content
    }

    pub(super) fn denial(&self, query: &Query, peer: Peer, refusal: Refusal) -> Denial {
        Denial {
            name: query.question.name(),
            qtype: query.question.qtype(),
            client: self.clients.client(peer.protocol, peer.port),
            rule: refusal.rule,
            reason: refusal.reason,
        }
    }
}

pub(super) fn found(records: Records<'_>) -> Content<'_> {
    Content { records, ..Content::code(Rcode::NoError) }
}
