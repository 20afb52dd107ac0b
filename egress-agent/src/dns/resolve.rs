//! A miss, from upstream's word to the permit to the answer.
//!
//! A cache, the merging of identical questions in flight, stale answers and refreshing ahead belong between
//! [`Responder::finish`] and [`Responder::chase`]: whatever they yield goes through [`Responder::publish`], which alone
//! permits and answers.

use super::{
    answer::{self, End},
    event::{DnsEvent, Reason},
    exchange::UpstreamError,
    gate::Refusal,
    lifetime,
    name::Name,
    permits::{NameVerdict, PermitError},
    rebinding::is_public,
    reply::{self, Content, Ede, Records},
    responder::{Miss, POLICY_TTL, Responder, found},
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
        let Ok(Ok(_turn)) = timeout(MAX_WAIT, self.in_flight.acquire()).await else {
            reply::write(&miss.query, &Content::fail(Ede::BUSY), limit, out);
            return;
        };
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
            Err(error) => Content::fail(match error {
                UpstreamError::Timeout => Ede::UPSTREAM_SILENT,
                UpstreamError::Network(_) => Ede::UPSTREAM_NETWORK,
                UpstreamError::Rcode(_) => Ede::UPSTREAM_FAILED,
                UpstreamError::Malformed => Ede::UPSTREAM_MALFORMED,
            }),
        };
        reply::write(&miss.query, &content, miss.peer.limit(&miss.query), out);
        Ok(())
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
            let decoded = asked.and_then(|(reply, server)| match answer::decode(&reply) {
                Ok(message) => Ok((message, server)),
                Err(_) => {
                    self.counters.malformed.add(1);
                    Err(UpstreamError::Malformed)
                }
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
        let mut kept = self.filter(miss, name, addresses);
        if kept.is_empty() {
            reply::write(&miss.query, &Content::nodata(POLICY_TTL, Some(Ede::REBINDING)), limit, out);
            return Ok(None);
        }
        let ttl_out = lifetime::answer_ttl(ttl);
        let mut written =
            reply::write(&miss.query, &found(Records::Addresses { addresses: &kept, ttl: ttl_out }), limit, out);
        if written < kept.len() {
            // Not always the same addresses are left out.
            let first = rand::random_range(0..kept.len());
            kept.rotate_left(first);
            written =
                reply::write(&miss.query, &found(Records::Addresses { addresses: &kept, ttl: ttl_out }), limit, out);
        }
        kept.truncate(written);
        let life = lifetime::permit_life(ttl, config.permit_min, config.permit_max, config.grace);

        let current = self.lock();
        if !Arc::ptr_eq(&current, &miss.state) {
            return Err(Stale);
        }
        if config.observe && miss.rules.is_empty() {
            return Ok(None);
        }
        let result = self.permits.permit(config.generation, name, &kept, &miss.rules, life);
        drop(current);
        match result {
            Ok(()) => {
                self.counters.permitted.add(1);
                let (name, rules) = (name.clone(), miss.rules.clone());
                self.events.dns_event(DnsEvent::Permitted { name, addresses: kept, rules, life, server });
                Ok(Some(life))
            }
            Err(PermitError::StalePolicy) => Err(Stale),
            Err(error) => {
                reply::write(&miss.query, &Content::fail(Ede::PERMIT), limit, out);
                self.events.dns_event(DnsEvent::PermitFailed { name: name.clone(), error });
                Ok(None)
            }
        }
    }

    fn filter(&self, miss: &Miss, name: &Name, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        addresses.retain(|&address| {
            let public = is_public(address, &miss.state.config.answers, &miss.state.protected);
            if !public {
                self.counters.filtered.add(1);
                self.events.dns_event(DnsEvent::Filtered { name: name.clone(), address });
            }
            public
        });
        addresses
    }
}
