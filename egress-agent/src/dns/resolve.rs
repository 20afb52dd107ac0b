//! A question that cannot be answered at once: out of a flight that is under way, from upstream, or, where no upstream
//! answers, from what was known before. Everything that comes of it goes through [`Responder::publish`], which alone
//! permits and answers.

use super::{
    answer::{self, End},
    cache::{Cached, Found, Key, Known},
    event::DnsEvent,
    exchange::UpstreamError,
    flights::{Flight, Unknown},
    gate,
    name::Name,
    publish::Outdated,
    relay,
    reply::{self, Content, Ede},
    responder::{Miss, Responder, State},
    twins::Pending,
    wire::rtype,
};
use std::{
    sync::Arc,
    time::{self, Duration},
};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

/// How long a question waits for its turn.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How long AAAA may take beside an A that is answered.
const AAAA_PATIENCE: Duration = Duration::from_millis(700);
/// How long upstream may take where an old answer is at hand (RFC 8767, 5).
const STALE_PATIENCE: Duration = Duration::from_millis(1800);
/// TTL of an old answer (RFC 8767, 4).
pub(super) const STALE_TTL: u32 = 30;
/// Life of "no AAAA" that stands for a failure.
const FAILED_TTL: u32 = 1;

/// On whose behalf upstream is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// Counted against its budget.
    Sandbox,
    /// A name that the policy spells out.
    Policy,
}

/// What nobody waits for, done by dropping it: best when the answer was sent.
#[derive(Default)]
pub(super) struct Behind<'r> {
    pending: Option<Pending<'r>>,
    flown: Option<Flown<'r>>,
}

/// What is known of a name, and for how many seconds.
struct Heard<'r> {
    known: Arc<Known>,
    ttl: u32,
    flown: Option<Flown<'r>>,
}

impl Heard<'_> {
    fn before(known: Arc<Known>, ttl: u32) -> Self {
        Self { known, ttl, flown: None }
    }
}

/// Upstream's word. Until that of the one who asked is dropped, and the word is in the cache, whoever asks the same joins it.
pub(super) struct Flown<'r> {
    responder: &'r Responder,
    key: Key,
    flight: Arc<Flight>,
    /// Under what it was asked, and when it was answered; the one who asked notes it.
    notes: Option<(Arc<State>, time::Instant)>,
}

impl Flown<'_> {
    pub(super) fn asked(&self) -> Result<Arc<Known>, Unknown> {
        self.flight.get().cloned().unwrap_or(Err(Unknown::Busy))
    }
}

impl Drop for Flown<'_> {
    fn drop(&mut self) {
        if let (Some((state, learned)), Some(asked)) = (&self.notes, self.flight.get()) {
            self.responder.note(state, &self.key, asked, *learned);
            self.responder.flights.land(&self.key, &self.flight);
        }
    }
}

impl Responder {
    /// Answers a miss into `out`.
    pub(super) async fn finish(self: &Arc<Self>, mut miss: Box<Miss>, out: &mut Vec<u8>) -> Behind<'_> {
        self.beat();
        let limit = miss.peer.limit(&miss.query);
        let Ok(_queued) = self.queue.try_acquire() else {
            reply::write(&miss.query, &Content::fail(Ede::BUSY), limit, out);
            return Behind::default();
        };
        for _ in 0..2 {
            if let Ok(behind) = self.resolve(&miss, out).await {
                return behind;
            }
            let state = self.current();
            match self.judge(&miss.query, miss.peer, &state, out) {
                Some(pass) => (miss.state, miss.rules) = (state, pass.rules),
                None => return Behind::default(),
            }
        }
        reply::write(&miss.query, &Content::fail(Ede::PERMIT), limit, out);
        Behind::default()
    }

    async fn resolve(self: &Arc<Self>, miss: &Miss, out: &mut Vec<u8>) -> Result<Behind<'_>, Outdated> {
        let key = miss.key();
        if !gate::is_address(key.qtype) && !gate::is_service(key.qtype) {
            self.relay(miss, &key, out).await;
            return Ok(Behind::default());
        }
        let pending = (key.qtype == rtype::A).then(|| self.twins.begin(&key.name));
        let mut behind = Behind { pending, flown: None };
        let known = match key.qtype {
            rtype::AAAA => self.beside_a(&miss.state, &key).await,
            _ => self.known(&miss.state, &key).await,
        };
        match known {
            Ok(Heard { known, ttl, flown }) => {
                behind.flown = flown;
                let permitted = self.publish(miss, &key.name, &known, ttl, out)?;
                if let (Some(pending), Some(life)) = (&mut behind.pending, permitted) {
                    pending.permitted(Instant::now() + life);
                }
            }
            Err(unknown) => drop(reply::write(&miss.query, &failure(unknown), miss.peer.limit(&miss.query), out)),
        }
        Ok(behind)
    }

    /// Observing: another type than A and AAAA is handed on.
    async fn relay(&self, miss: &Miss, key: &Key, out: &mut Vec<u8>) {
        let limit = miss.peer.limit(&miss.query);
        let upstreams = &miss.state.upstreams;
        let asked = match self.turn(Asker::Sandbox).await {
            Ok(_turn) => {
                let asked = upstreams.ask(&key.name, key.qtype, upstreams.deadline()).await;
                let written = asked.and_then(|(reply, _)| {
                    relay::write(&miss.query, &reply, limit, out).ok_or(UpstreamError::Malformed)
                });
                written.map_err(|error| {
                    self.upstream_failed(&miss.state, key, error);
                    Unknown::Upstream(error)
                })
            }
            Err(unknown) => Err(unknown),
        };
        if let Err(unknown) = asked {
            reply::write(&miss.query, &failure(unknown), limit, out);
        }
    }

    /// AAAA: whatever is no answer becomes "no data" where the name's A is answered.
    async fn beside_a(self: &Arc<Self>, state: &Arc<State>, key: &Key) -> Result<Heard<'_>, Unknown> {
        let patience = Instant::now() + AAAA_PATIENCE;
        let nothing = || Ok(Heard::before(Arc::new(Known::nothing(FAILED_TTL)), FAILED_TTL));
        let outlasted = async {
            sleep_until(patience).await;
            if !self.twins.is_live(&key.name).await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            known = self.known(state, key) => {
                let answers = known.as_ref().is_ok_and(|heard| heard.known.answers_aaaa());
                if !answers && self.twins.is_live(&key.name).await { nothing() } else { known }
            }
            () = outlasted => {
                self.upstream_failed(state, key, UpstreamError::Timeout);
                nothing()
            }
        }
    }

    /// By the cache, or by upstream.
    async fn known(self: &Arc<Self>, state: &Arc<State>, key: &Key) -> Result<Heard<'_>, Unknown> {
        let cached = self.cache().get(key, self.clock.now());
        match cached {
            Some(Cached::Fresh { known, ttl, .. }) => Ok(Heard::before(known, ttl)),
            Some(Cached::Stale { known, ask: false }) => Ok(Heard::before(known, STALE_TTL)),
            Some(Cached::Stale { known, ask: true }) => {
                // In a task of its own, which goes on when patience ends.
                if let Ok(Ok(Ok(renewed))) = timeout(STALE_PATIENCE, self.renew(state, key)).await {
                    let ttl = renewed.ttl;
                    return Ok(Heard::before(renewed, ttl));
                }
                self.cache().failed(key, self.clock.now());
                Ok(Heard::before(known, STALE_TTL))
            }
            None => {
                let flown = self.fly(state, key, Asker::Sandbox).await;
                flown.asked().map(|known| Heard { ttl: known.ttl, known, flown: Some(flown) })
            }
        }
    }

    /// Asks upstream, together with everybody who asks the same at this time.
    pub(super) async fn fly(&self, state: &Arc<State>, key: &Key, asker: Asker) -> Flown<'_> {
        let flight = self.flights.join(key);
        let mut asks = false;
        let ask = || {
            asks = true;
            self.ask(state, key, asker)
        };
        flight.get_or_init(ask).await;
        let notes = asks.then(|| (Arc::clone(state), self.clock.now()));
        Flown { responder: self, key: key.clone(), flight, notes }
    }

    async fn ask(&self, state: &Arc<State>, key: &Key, asker: Asker) -> Result<Arc<Known>, Unknown> {
        let _turn = self.turn(asker).await?;
        self.counters.forwarded.add(1);
        let asked = self.chase(state, key).await.map(Arc::new).map_err(Unknown::Upstream);
        if asked.as_ref().is_ok_and(|known| matches!(known.found, Found::NxDomain)) {
            self.events.dns_event(DnsEvent::NoSuchName { name: key.name.clone() });
        }
        asked
    }

    /// Keeps what was asked.
    fn note(&self, state: &State, key: &Key, asked: &Result<Arc<Known>, Unknown>, learned: time::Instant) {
        let mut cache = self.cache();
        match asked {
            // Nothing that servers of an earlier policy said: whoever replaces them clears the cache afterwards.
            Ok(known) if Arc::ptr_eq(&self.current().upstreams, &state.upstreams) => {
                cache.put(key.clone(), Arc::clone(known), learned);
            }
            Err(Unknown::Upstream(_)) => cache.failed(key, learned),
            Ok(_) | Err(Unknown::Busy | Unknown::Rate) => {}
        }
    }

    /// Waits until upstream may be asked.
    async fn turn(&self, asker: Asker) -> Result<SemaphorePermit<'_>, Unknown> {
        if asker == Asker::Policy {
            return self.in_flight.acquire().await.map_err(|_| Unknown::Busy);
        }
        let deadline = Instant::now() + MAX_WAIT;
        while let Err(wait) = self.may_forward() {
            if Instant::now() + wait > deadline {
                self.budget().refuse_forward();
                self.counters.over_budget.add(1);
                return Err(Unknown::Rate);
            }
            sleep(wait).await;
        }
        timeout_at(deadline, self.in_flight.acquire()).await.ok().and_then(Result::ok).ok_or(Unknown::Busy)
    }

    fn may_forward(&self) -> Result<(), Duration> {
        self.budget().forward(self.clock.now())
    }

    /// Asks upstream, again where it stopped in the middle of a chain, but for no target that a deny rule names.
    async fn chase(&self, state: &State, key: &Key) -> Result<Known, UpstreamError> {
        let upstreams = &state.upstreams;
        let deadline = upstreams.deadline();
        let mut known = Known { hops: Vec::new(), found: Found::TooLong, ttl: u32::MAX };
        let mut target: Name = key.name.clone();
        loop {
            let asked = upstreams.ask(&target, key.qtype, deadline).await;
            let decoded = asked.and_then(|(reply, server)| {
                let message = answer::decode(&reply).ok_or(UpstreamError::Malformed)?;
                Ok((message, server))
            });
            let (message, server) = decoded.inspect_err(|error| self.upstream_failed(state, key, *error))?;
            let walk = answer::walk(&message, &target, key.qtype, answer::MAX_HOPS - known.hops.len());
            known.ttl = known.ttl.min(walk.ttl);
            known.hops.extend(walk.hops);
            known.found = match walk.end {
                End::Addresses(addresses) => Found::Addresses { addresses, server },
                End::Services(records) => Found::Services(records),
                End::NoData(life) => {
                    known.ttl = known.ttl.min(life);
                    Found::NoData
                }
                End::NxDomain(life) => {
                    known.ttl = known.ttl.min(life);
                    Found::NxDomain
                }
                End::TooLong => Found::TooLong,
                End::Chase => match known.hops.last() {
                    // Publishing will deny it for that hop.
                    Some(_) if state.denied_hop(&known.hops).is_some() => Found::NoData,
                    Some(last) if known.hops.len() < answer::MAX_HOPS => {
                        target = last.clone();
                        continue;
                    }
                    _ => Found::TooLong,
                },
            };
            return Ok(known);
        }
    }

    fn upstream_failed(&self, state: &State, key: &Key, error: UpstreamError) {
        self.counters.failed.add(1);
        self.counters.malformed.add(u64::from(error == UpstreamError::Malformed));
        let Key { name, qtype } = key.clone();
        let servers = state.config.servers.iter().map(|server| server.address).collect();
        self.events.dns_event(DnsEvent::UpstreamFailed { name, qtype, servers, error });
    }
}

fn failure(unknown: Unknown) -> Content<'static> {
    Content::fail(match unknown {
        Unknown::Upstream(UpstreamError::Timeout) => Ede::UPSTREAM_SILENT,
        Unknown::Upstream(UpstreamError::Network(_) | UpstreamError::Certificate) => Ede::UPSTREAM_NETWORK,
        Unknown::Upstream(UpstreamError::Rcode(_)) => Ede::UPSTREAM_FAILED,
        Unknown::Upstream(UpstreamError::Malformed) => Ede::UPSTREAM_MALFORMED,
        Unknown::Busy => Ede::BUSY,
        Unknown::Rate => Ede::RATE,
    })
}
