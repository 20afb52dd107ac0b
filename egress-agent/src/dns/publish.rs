//! From what is known of a name to the answer, by way of the permit: here, and nowhere else, the policy is asked what of it
//! may be let out.

use super::{
    cache::{Cached, Found, Known},
    event::{DnsEvent, Reason},
    gate::Refusal,
    lifetime,
    name::Name,
    permits::{NameVerdict, PermitError, Written},
    rebinding::is_public,
    reply::{self, Content, Ede, Records},
    resolve::STALE_TTL,
    responder::{Miss, POLICY_TTL, Responder, State, found},
    wire::rtype,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// What is let out beside the addresses.
struct Answer<'a> {
    name: &'a Name,
    /// Where it is kept.
    chain: &'a [Name],
    ttl: u32,
    server: SocketAddr,
}

/// The policy changed before the permit was written.
pub(super) struct Outdated;

impl State {
    /// The first target of a chain that a deny rule names.
    pub(super) fn denied_hop(&self, hops: &[Name]) -> Option<Refusal> {
        hops.iter().find_map(|hop| match self.config.names.verdict(&hop.labels()) {
            NameVerdict::Deny { rule } => {
                Some(Refusal { rule: Some(rule), reason: Reason::Hop(Box::new(hop.clone())) })
            }
            _ => None,
        })
    }

    /// True where the name would have an address in the sandbox.
    pub(super) fn opens(&self, known: &Known) -> bool {
        let Found::Addresses { addresses, .. } = &known.found else { return false };
        self.denied_hop(&known.hops).is_none()
            && addresses.iter().any(|&address| is_public(address, &self.config.answers, &self.protected))
    }
}

impl Responder {
    /// Answers at once where the answer is known, with its permit written anew: the map may have lost it. False where
    /// upstream has to be asked.
    pub(super) fn answer_known(self: &Arc<Self>, miss: &Miss, out: &mut Vec<u8>) -> bool {
        let key = miss.key();
        let cached = self.cache().get(&key, self.clock.now());
        let (known, ttl, renewed) = match cached {
            Some(Cached::Fresh { known, ttl, renewed }) => (known, ttl, renewed),
            Some(Cached::Stale { known, ask: false }) => (known, STALE_TTL, true),
            _ => return false,
        };
        // Otherwise the name's A decides, and that may be under way.
        if key.qtype == rtype::AAAA && !known.answers_aaaa() {
            return false;
        }
        let Ok(permitted) = self.publish(miss, &key.name, &known, ttl, out) else { return false };
        self.counters.cached.add(1);
        if let (rtype::A, Some(life)) = (key.qtype, permitted) {
            self.twins.permitted(&key.name, Instant::now() + life);
        }
        if permitted.is_some() && !renewed {
            self.renew_later(key);
        }
        true
    }

    /// Writes the answer, and permits exactly the addresses that are in it. Returns the life of the permit where there is
    /// one. On any failure nothing of upstream's answer is left in `out`.
    pub(super) fn publish(
        &self,
        miss: &Miss,
        name: &Name,
        known: &Known,
        ttl: u32,
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Outdated> {
        let observe = miss.state.config.observe;
        let denied = miss.state.denied_hop(&known.hops);
        if let Some(refusal) = denied.clone().filter(|_| observe) {
            self.events.dns_event(DnsEvent::WouldDeny(self.denial(&miss.query, miss.peer, refusal)));
        }
        let content = match (&known.found, denied.filter(|_| !observe)) {
            (_, Some(refusal)) => self.deny(&miss.query, miss.peer, refusal),
            (Found::Addresses { addresses, server }, None) => {
                let chain = if miss.state.config.keep_chains { known.hops.as_slice() } else { &[] };
                let answer = Answer { name, chain, ttl, server: *server };
                return self.release(miss, &answer, addresses, out);
            }
            (Found::Services(data), None) => found(Records::Services { data, ttl: lifetime::answer_ttl(ttl) }),
            (Found::NoData, None) => Content::nodata(lifetime::negative_ttl(ttl), None),
            (Found::NxDomain, None) => Content::nxdomain(lifetime::negative_ttl(ttl), None),
            (Found::TooLong, None) => Content::fail(Ede::CHAIN),
        };
        reply::write(&miss.query, &content, miss.peer.limit(&miss.query), out);
        Ok(None)
    }

    fn release(
        &self,
        miss: &Miss,
        answer: &Answer<'_>,
        addresses: &[IpAddr],
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Outdated> {
        let Answer { name, chain, ttl, .. } = *answer;
        let config = &miss.state.config;
        let limit = miss.peer.limit(&miss.query);
        let mut kept = self.filter(miss, name, addresses);
        if config.observe {
            // Nothing is kept back, but no name opens a closed address: a connect to it will be reported too.
            let content = found(Records::Addresses { chain, addresses, ttl: lifetime::answer_ttl(ttl) });
            reply::write(&miss.query, &content, limit, out);
            if kept.is_empty() || miss.rules.is_empty() {
                return Ok(None);
            }
            return self.permit(miss, answer, kept, out);
        }
        if kept.is_empty() {
            reply::write(&miss.query, &Content::nodata(POLICY_TTL, Some(Ede::REBINDING)), limit, out);
            return Ok(None);
        }
        let fill = |kept: &[IpAddr], out: &mut Vec<u8>| {
            let content = found(Records::Addresses { chain, addresses: kept, ttl: lifetime::answer_ttl(ttl) });
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
        self.permit(miss, answer, kept, out)
    }

    /// Permits what the answer in `out` carries, or replaces that answer.
    fn permit(
        &self,
        miss: &Miss,
        answer: &Answer<'_>,
        addresses: Vec<IpAddr>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Outdated> {
        let Answer { name, chain, ttl, server } = *answer;
        let config = &miss.state.config;
        let life = lifetime::permit_life(ttl, config.permit_min, config.permit_max, config.grace);
        let current = self.lock();
        if !Arc::ptr_eq(&current, &miss.state) {
            return Err(Outdated);
        }
        let result = self.permits.permit(config.generation, name, &addresses, &miss.rules, life);
        if result.is_ok() && !chain.is_empty() {
            // Still under the policy lock: the rules are this policy's.
            self.derived().note(chain, &miss.rules, lifetime::answer_ttl(ttl), self.clock.now());
        }
        drop(current);
        match result {
            Ok(Written { new, evicted }) => {
                self.counters.permitted.add(1);
                for address in evicted {
                    self.events.dns_event(DnsEvent::Evicted { name: name.clone(), address });
                }
                if new {
                    let (name, rules) = (name.clone(), miss.rules.clone());
                    self.events.dns_event(DnsEvent::Permitted { name, addresses, rules, life, server });
                }
                Ok(Some(life))
            }
            Err(PermitError::StalePolicy) => Err(Outdated),
            Err(error) => {
                reply::write(&miss.query, &Content::fail(Ede::PERMIT), miss.peer.limit(&miss.query), out);
                self.events.dns_event(DnsEvent::PermitFailed { name: name.clone(), error });
                Ok(None)
            }
        }
    }

    /// What of it the name may open.
    fn filter(&self, miss: &Miss, name: &Name, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let State { config, protected, .. } = &*miss.state;
        let mut open = Vec::with_capacity(addresses.len());
        for &address in addresses {
            if is_public(address, &config.answers, protected) {
                open.push(address);
            } else {
                self.counters.filtered.add(1);
                self.events.dns_event(DnsEvent::Filtered { name: name.clone(), address });
            }
        }
        open
    }
}
