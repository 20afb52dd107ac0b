//! A miss, from upstream's word to the permit to the answer.
//!
//! A cache, the merging of identical questions in flight, stale answers and refreshing ahead belong between
//! [`Responder::finish`] and [`Responder::chase`]: whatever they yield goes through [`Responder::publish`], which alone
//! permits and answers.

use super::{
    answer::{self, End},
    event::{DnsEvent, Reason},
    exchange::UpstreamError,
    gate::{self, Refusal},
    lifetime,
    name::Name,
    permits::{NameVerdict, PermitError},
    rebinding::is_public,
    relay,
    reply::{self, Content, Ede, Records},
    responder::{Miss, POLICY_TTL, Responder, State, found},
    wire::rtype,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a question waits for its turn.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How long AAAA may take beside an A that is answered.
const AAAA_PATIENCE: Duration = Duration::from_millis(700);
/// Life of "no AAAA" that stands for a failure.
const FAILED_TTL: u32 = 1;

/// What a chain came to.
enum Outcome {
    Addresses { addresses: Vec<IpAddr>, ttl: u32, server: SocketAddr },
    NoData(u32),
    NxDomain(u32),
    TooLong,
    Denied(Refusal),
}

/// The policy changed before the permit was written.
struct Stale;

impl Responder {
    /// Answers a miss into `out`.
    pub(super) async fn finish(&self, mut miss: Box<Miss>, out: &mut Vec<u8>) {
        let limit = miss.peer.limit(&miss.query);
        let queued = self.queue.try_acquire();
        let turn = match &queued {
            Ok(_) => timeout(MAX_WAIT, self.in_flight.acquire()).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        if turn.is_none() {
            reply::write(&miss.query, &Content::fail(Ede::BUSY), limit, out);
            return;
        }
        self.counters.forwarded.add(1);
        for _ in 0..2 {
            let Err(Stale) = self.resolve(&miss, out).await else { return };
            let state = self.current();
            match self.judge(&miss.query, miss.peer, &state, out) {
                Some(rules) => (miss.state, miss.rules) = (state, rules),
                None => return,
            }
        }
        reply::write(&miss.query, &Content::fail(Ede::PERMIT), limit, out);
    }

    async fn resolve(&self, miss: &Miss, out: &mut Vec<u8>) -> Result<(), Stale> {
        let name = miss.query.question.name();
        let qtype = miss.query.question.qtype();
        if !gate::is_address(qtype) {
            self.relay(miss, &name, qtype, out).await;
            return Ok(());
        }
        let mut pending = (qtype == rtype::A).then(|| self.twins.begin(&name));
        let outcome =
            if qtype == rtype::AAAA { self.beside_a(miss, &name).await } else { self.chase(miss, &name, qtype).await };
        let content = match outcome {
            Ok(Outcome::Addresses { addresses, ttl, server }) => {
                let permitted = self.publish(miss, &name, addresses, ttl, server, out)?;
                if let (Some(pending), Some(life)) = (&mut pending, permitted) {
                    pending.permitted(Instant::now() + life);
                }
                return Ok(());
            }
            Ok(Outcome::NoData(ttl)) => Content::nodata(lifetime::negative_ttl(ttl), None),
            Ok(Outcome::NxDomain(ttl)) => Content::nxdomain(lifetime::negative_ttl(ttl), None),
            Ok(Outcome::TooLong) => Content::fail(Ede::CHAIN),
            Ok(Outcome::Denied(refusal)) => self.deny(&miss.query, miss.peer, refusal),
            Err(error) => failure(error),
        };
        reply::write(&miss.query, &content, miss.peer.limit(&miss.query), out);
        Ok(())
    }

    /// Observing: another type than A and AAAA is handed on.
    async fn relay(&self, miss: &Miss, name: &Name, qtype: u16, out: &mut Vec<u8>) {
        let limit = miss.peer.limit(&miss.query);
        let upstreams = &miss.state.upstreams;
        let asked = upstreams.ask(name, qtype, upstreams.deadline()).await;
        let written =
            asked.and_then(|(reply, _)| relay::write(&miss.query, &reply, limit, out).ok_or(UpstreamError::Malformed));
        if let Err(error) = written {
            self.upstream_failed(miss, name, qtype, error);
            reply::write(&miss.query, &failure(error), limit, out);
        }
    }

    /// AAAA: whatever is no answer becomes "no data" where the name's A is answered.
    async fn beside_a(&self, miss: &Miss, name: &Name) -> Result<Outcome, UpstreamError> {
        let patience = Instant::now() + AAAA_PATIENCE;
        let outlasted = async {
            sleep_until(patience).await;
            if !self.twins.is_live(name).await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            outcome = self.chase(miss, name, rtype::AAAA) => match outcome {
                Err(_) | Ok(Outcome::NxDomain(_) | Outcome::TooLong) if self.twins.is_live(name).await => Ok(Outcome::NoData(FAILED_TTL)),
                outcome => outcome,
            },
            () = outlasted => {
                self.upstream_failed(miss, name, rtype::AAAA, UpstreamError::Timeout);
                Ok(Outcome::NoData(FAILED_TTL))
            }
        }
    }

    /// Asks upstream, again where it stopped in the middle of a chain, and holds every hop against the deny rules.
    async fn chase(&self, miss: &Miss, name: &Name, qtype: u16) -> Result<Outcome, UpstreamError> {
        let config = &miss.state.config;
        let upstreams = &miss.state.upstreams;
        let deadline = upstreams.deadline();
        let mut target = name.clone();
        let mut ttl = u32::MAX;
        let mut hops = 0;
        loop {
            let asked = upstreams.ask(&target, qtype, deadline).await;
            let decoded = asked.and_then(|(reply, server)| {
                let message = answer::decode(&reply).ok_or(UpstreamError::Malformed)?;
                Ok((message, server))
            });
            let (message, server) = decoded.inspect_err(|error| self.upstream_failed(miss, name, qtype, *error))?;
            let walk = answer::walk(&message, &target, qtype, answer::MAX_HOPS - hops);
            for hop in &walk.hops {
                if let NameVerdict::Deny { rule } = config.names.verdict(&hop.labels()) {
                    let refusal = Refusal { rule: Some(rule), reason: Reason::Hop(Box::new(hop.clone())) };
                    if !config.observe {
                        return Ok(Outcome::Denied(refusal));
                    }
                    self.events.dns_event(DnsEvent::WouldDeny(self.denial(&miss.query, miss.peer, refusal)));
                }
            }
            ttl = ttl.min(walk.ttl);
            hops += walk.hops.len();
            return Ok(match walk.end {
                End::Addresses(addresses) => Outcome::Addresses { addresses, ttl, server },
                End::NoData(life) => Outcome::NoData(life.min(ttl)),
                End::NxDomain(life) => Outcome::NxDomain(life.min(ttl)),
                End::TooLong => Outcome::TooLong,
                End::Chase => match walk.hops.last() {
                    Some(last) if hops < answer::MAX_HOPS => {
                        target = last.clone();
                        continue;
                    }
                    _ => Outcome::TooLong,
                },
            });
        }
    }

    fn upstream_failed(&self, miss: &Miss, name: &Name, qtype: u16, error: UpstreamError) {
        self.counters.failed.add(1);
        self.counters.malformed.add(u64::from(error == UpstreamError::Malformed));
        let servers = miss.state.config.servers.clone();
        self.events.dns_event(DnsEvent::UpstreamFailed { name: name.clone(), qtype, servers, error });
    }

    /// Filters, writes the answer, permits exactly the addresses that are in it. Returns the life of the permit where there
    /// is one. On any failure nothing of upstream's answer is left in `out`.
    fn publish(
        &self,
        miss: &Miss,
        name: &Name,
        addresses: Vec<IpAddr>,
        ttl: u32,
        server: SocketAddr,
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Stale> {
        let config = &miss.state.config;
        let limit = miss.peer.limit(&miss.query);
        let (mut kept, closed) = self.filter(miss, name, addresses);
        if config.observe {
            // Nothing is kept back, but no name opens a closed address: a connect to it will be reported too.
            let all: Vec<IpAddr> = kept.iter().chain(&closed).copied().collect();
            let content = found(Records::Addresses { addresses: &all, ttl: lifetime::answer_ttl(ttl) });
            reply::write(&miss.query, &content, limit, out);
            if kept.is_empty() || miss.rules.is_empty() {
                return Ok(None);
            }
            return self.permit(miss, name, kept, ttl, server, out);
        }
        if kept.is_empty() {
            reply::write(&miss.query, &Content::nodata(POLICY_TTL, Some(Ede::REBINDING)), limit, out);
            return Ok(None);
        }
        let fill = |kept: &[IpAddr], out: &mut Vec<u8>| {
            let content = found(Records::Addresses { addresses: kept, ttl: lifetime::answer_ttl(ttl) });
            reply::write(&miss.query, &content, limit, out)
        };
        let mut written = fill(&kept, out);
        if written < kept.len() {
            // Not always the same addresses are left out.
            let first = rand::random_range(0..kept.len());
            kept.rotate_left(first);
            written = fill(&kept, out);
        }
        kept.truncate(written);
        self.permit(miss, name, kept, ttl, server, out)
    }

    /// Permits what the answer in `out` carries, or replaces that answer.
    fn permit(
        &self,
        miss: &Miss,
        name: &Name,
        addresses: Vec<IpAddr>,
        ttl: u32,
        server: SocketAddr,
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Stale> {
        let config = &miss.state.config;
        let life = lifetime::permit_life(ttl, config.permit_min, config.permit_max, config.grace);
        let current = self.lock();
        if !Arc::ptr_eq(&current, &miss.state) {
            return Err(Stale);
        }
        let result = self.permits.permit(config.generation, name, &addresses, &miss.rules, life);
        drop(current);
        match result {
            Ok(()) => {
                self.counters.permitted.add(1);
                let (name, rules) = (name.clone(), miss.rules.clone());
                self.events.dns_event(DnsEvent::Permitted { name, addresses, rules, life, server });
                Ok(Some(life))
            }
            Err(PermitError::StalePolicy) => Err(Stale),
            Err(error) => {
                reply::write(&miss.query, &Content::fail(Ede::PERMIT), miss.peer.limit(&miss.query), out);
                self.events.dns_event(DnsEvent::PermitFailed { name: name.clone(), error });
                Ok(None)
            }
        }
    }

    /// What the name may open, and what it may not.
    fn filter(&self, miss: &Miss, name: &Name, addresses: Vec<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let State { config, protected, .. } = &*miss.state;
        let (open, closed): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|&address| is_public(address, &config.answers, protected));
        for &address in &closed {
            self.counters.filtered.add(1);
            self.events.dns_event(DnsEvent::Filtered { name: name.clone(), address });
        }
        (open, closed)
    }
}

fn failure(error: UpstreamError) -> Content<'static> {
    Content::fail(match error {
        UpstreamError::Timeout => Ede::UPSTREAM_SILENT,
        UpstreamError::Network(_) => Ede::UPSTREAM_NETWORK,
        UpstreamError::Rcode(_) => Ede::UPSTREAM_FAILED,
        UpstreamError::Malformed => Ede::UPSTREAM_MALFORMED,
    })
}
