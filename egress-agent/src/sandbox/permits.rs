//! Permits: answers of the DNS half become entries of the kernel's map, before anybody hears of them.

use super::{
    learned::{AT_MOST, Admitted, Full, Learned},
    sleep::aged,
};
use crate::{
    compile::Image,
    datapath::tables::{TableError, Tables},
    dns,
    observe::permits_file,
    policy::{NameTable, NameVerdict, Policy},
};
use egress_common::{
    addr::Addr,
    permit::{Grant, NEVER_NS, Permit, PermitKey},
};
use nix::time::{ClockId, clock_gettime};
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Learned addresses of one sandbox at a time.
pub(super) const LEARNED_AT_MOST: usize = AT_MOST;
/// How long an expired permit stays in the map, so that a denial can still say that it expired.
const REMEMBERED: Duration = Duration::from_secs(60);

const SECOND_NS: u64 = 1_000_000_000;

/// Now, on the clock by which the kernel half judges expiry.
pub(super) fn now_ns() -> u64 {
    // CLOCK_MONOTONIC_COARSE always exists on Linux; at the end of time everything has expired.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::MAX, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(NEVER_NS - 1)
}

/// What ended by then is nobody's business any more.
pub(super) fn horizon_ns() -> u64 {
    now_ns().saturating_sub(u64::try_from(REMEMBERED.as_nanos()).unwrap_or(u64::MAX))
}

/// True where something of the permit ended by the horizon.
pub(super) fn has_expired(permit: &Permit, horizon: u64) -> bool {
    without_expired(permit, horizon) != *permit
}

/// The policy's names, as the DNS half asks for them.
pub(super) struct Table(pub(super) NameTable);

impl dns::Names for Table {
    fn verdict(&self, labels: &[&[u8]]) -> NameVerdict {
        self.0.verdict(labels)
    }
}

/// The policy in force, with what its compilation made of it.
pub(super) struct InForce {
    pub(super) generation: u64,
    pub(super) policy: Arc<Policy>,
    pub(super) image: Image,
    learned: Learned,
    /// `learned` is not what was last asked for by [`Permits::news`].
    changed: bool,
}

/// Writes permits, one at a time and under the policy in force.
pub(super) struct Permits {
    slot: u32,
    tables: Arc<Tables>,
    in_force: Mutex<InForce>,
}

impl Permits {
    pub(super) fn new(slot: u32, tables: Arc<Tables>, policy: Policy, generation: u64, image: Image) -> Self {
        let in_force =
            InForce { generation, policy: Arc::new(policy), image, learned: Learned::default(), changed: false };
        Self { slot, tables, in_force: Mutex::new(in_force) }
    }

    /// Takes over what an earlier owner knew of the permits that are in the map.
    pub(super) fn recall(&self, known: Vec<permits_file::Learned>) -> Result<(), TableError> {
        let mut in_force = self.in_force();
        for permits_file::Learned { name, address } in known {
            let address = canonical(address);
            let permit = self.tables.permit(&PermitKey { slot: self.slot, addr: address.into() })?.unwrap_or_default();
            let learned =
                permit.grants.iter().map(|grant| grant.expires_ns).filter(|expires_ns| *expires_ns != NEVER_NS);
            if let Some(expires_ns) = learned.max().filter(|expires_ns| *expires_ns > 0) {
                in_force.learned.note(address, &name, expires_ns);
            }
        }
        Ok(())
    }

    /// The policy in force, which does not change while this is held.
    pub(super) fn in_force(&self) -> MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name whose answer held the address, the first that is still live.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<String> {
        self.live_names(address).into_iter().next()
    }

    fn live_names(&self, address: IpAddr) -> Vec<String> {
        self.in_force().learned.live_names(canonical(address), now_ns()).map(str::to_owned).collect()
    }

    /// Every learned name and its addresses, where something changed since this was last asked for.
    pub(super) fn news(&self) -> Option<Vec<permits_file::Learned>> {
        let mut in_force = self.in_force();
        if !std::mem::take(&mut in_force.changed) {
            return None;
        }
        let learned = in_force.learned.pairs();
        Some(learned.map(|(address, name)| permits_file::Learned { name: name.to_owned(), address }).collect())
    }

    /// Forgets what ended by the horizon, here and at these keys of the map.
    pub(super) fn sweep<'k>(&self, keys: impl Iterator<Item = &'k PermitKey>, horizon: u64) -> Result<(), TableError> {
        let mut in_force = self.in_force();
        in_force.learned.sweep(horizon);
        // Read again: nobody writes meanwhile.
        keys.map(|key| (key, self.tables.permit(key))).try_for_each(|(key, permit)| match permit? {
            Some(permit) => self.expire(key, &permit, horizon),
            None => Ok(()),
        })
    }

    /// Takes from the map what ends by then.
    fn expire(&self, key: &PermitKey, permit: &Permit, horizon: u64) -> Result<(), TableError> {
        let kept = without_expired(permit, horizon);
        if kept == *permit {
            Ok(())
        } else if kept.grants.iter().all(|grant| grant.rule.is_none()) {
            self.tables.remove_permit(key)
        } else {
            self.tables.set_permit(key, &kept)
        }
    }

    /// Closes an address that no name leads to any more; what the policy itself opens there stays.
    fn close(&self, address: IpAddr) -> Result<(), TableError> {
        let key = PermitKey { slot: self.slot, addr: address.into() };
        self.tables.permit(&key)?.map_or(Ok(()), |permit| self.expire(&key, &permit, NEVER_NS - 1))
    }

    /// Takes what the machine slept off the life of everything that was learned.
    pub(super) fn age(&self, slept: Duration) -> Result<(), TableError> {
        let slept_ns = u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX);
        let mut in_force = self.in_force();
        in_force.learned.age(slept_ns);
        for (key, permit) in self.tables.permits(self.slot)? {
            let aged = aged(&permit, slept_ns);
            if aged != permit {
                self.tables.set_permit(&key, &aged)?;
            }
        }
        Ok(())
    }

    /// The address with these grants besides what it has. `None` where it is as it was: the answer came from the cache, and its
    /// permit was written when that was learned.
    fn granted(
        &self,
        image: &Image,
        address: IpAddr,
        grants: &[Grant],
        now: u64,
    ) -> Result<Option<Change>, TableError> {
        let addr = Addr::from(address).routed();
        let key = PermitKey { slot: self.slot, addr };
        let before = self.tables.permit(&key)?;
        let mut after = Permit { deny: image.deny_for(addr), ..before.unwrap_or_default() };
        let mut evicts = false;
        for &grant in grants {
            evicts |= add(&mut after, grant, now);
        }
        Ok((before.unwrap_or_default() != after).then_some(Change { address, key, before, after, evicts }))
    }

    /// Writes all of them or, as far as the kernel lets us, none.
    fn write(&self, changes: &[Change]) -> Result<(), TableError> {
        let entries: Vec<_> = changes.iter().map(|change| (change.key, change.after)).collect();
        self.tables.set_permits(&entries).inspect_err(|_| {
            for Change { key, before, .. } in changes {
                let undone = before.map_or_else(
                    || self.tables.remove_permit(key),
                    |before| self.tables.set_permit(key, &before),
                );
                if let Err(error) = undone {
                    tracing::error!(%error, "an address stays open for which nobody got an answer, until its permit ends");
                }
            }
        })
    }
}

/// One address whose entry of the map is to be another.
struct Change {
    address: IpAddr,
    key: PermitKey,
    before: Option<Permit>,
    after: Permit,
    /// A grant had to give way.
    evicts: bool,
}

impl dns::Permits for Permits {
    fn permit(
        &self,
        generation: u64,
        name: &dns::Name,
        addresses: &[IpAddr],
        rules: &[usize],
        life: Duration,
    ) -> Result<dns::Written, dns::PermitError> {
        let now = now_ns();
        let expires_ns = now.saturating_add(u64::try_from(life.as_nanos()).unwrap_or(u64::MAX)).min(NEVER_NS - 1);
        let mut in_force = self.in_force();
        if in_force.generation != generation {
            return Err(dns::PermitError::StalePolicy);
        }
        let (name, addresses) = (name.to_string(), addresses.iter().copied().map(canonical).collect::<Vec<_>>());
        let admitted = in_force.learned.admit(&name, &addresses, now);
        let Admitted { new, gone } = admitted.map_err(|Full| dns::PermitError::Full)?;
        in_force.changed |= !gone.is_empty();
        let rules = rules.iter().filter_map(|rule| in_force.image.name_rules.get(*rule));
        let grants: Vec<Grant> = rules.map(|&rule| Grant { expires_ns, rule }).collect();
        let written = gone.into_iter().try_for_each(|address| self.close(address)).and_then(|()| {
            let changes = addresses.iter().map(|&address| self.granted(&in_force.image, address, &grants, now));
            let changes: Vec<Change> = changes.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            self.write(&changes).map(|()| changes)
        });
        let changes = written.map_err(|error| match error.errno() {
            Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => dns::PermitError::Full,
            errno => dns::PermitError::Map { errno: errno.unwrap_or(libc::EIO) },
        })?;
        // Only now: nobody may hear of an address that the kernel refused.
        for &address in &addresses {
            in_force.learned.note(address, &name, expires_ns);
        }
        in_force.changed |= new;
        let evicted = changes.iter().filter(|change| change.evicts).map(|change| change.address).collect();
        Ok(dns::Written { new, evicted })
    }

    fn names_of(&self, address: IpAddr) -> Vec<String> {
        self.live_names(address)
    }
}

fn canonical(address: IpAddr) -> IpAddr {
    Addr::from(address).routed().to_ip()
}

/// The grant of a rule that is there already lives as long as the later of both, but for what is not worth a write: answers
/// from the cache move the end by less than their TTL's second. A new one takes a free place, else that
/// of the learned grant which ends first, and then this is true. Grants of the policy itself are never evicted.
fn add(permit: &mut Permit, grant: Grant, now: u64) -> bool {
    if let Some(same) = permit.grants.iter_mut().find(|held| held.rule == grant.rule) {
        let life = grant.expires_ns.saturating_sub(now);
        if grant.expires_ns > same.expires_ns.saturating_add((life / 8).min(SECOND_NS)) {
            same.expires_ns = grant.expires_ns;
        }
        return false;
    }
    if let Some(free) = permit.grants.iter_mut().find(|held| held.rule.is_none() || held.expires_ns <= now) {
        *free = grant;
        return false;
    }
    let learned = permit.grants.iter_mut().filter(|held| held.expires_ns != NEVER_NS);
    let first = learned.min_by_key(|held| held.expires_ns);
    first.map(|first| *first = grant).is_some()
}

fn without_expired(permit: &Permit, horizon: u64) -> Permit {
    let mut kept = *permit;
    for grant in &mut kept.grants {
        if grant.expires_ns <= horizon {
            *grant = Grant::default();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::permit::{GRANTS, RuleRef};

    fn grant(tag: u32, expires_ns: u64) -> Grant {
        Grant { expires_ns, rule: RuleRef { index: tag, tag } }
    }

    #[test]
    fn a_fifth_grant_takes_the_place_of_the_one_that_ends_first_but_never_of_the_policys_own() {
        let grants = [grant(1, NEVER_NS), grant(2, 500), grant(3, 300), grant(4, 400)];
        let mut permit = Permit { grants, ..Permit::default() };
        assert!(add(&mut permit, grant(5, 900), 100), "which is told");
        assert_eq!(permit.grants, [grant(1, NEVER_NS), grant(2, 500), grant(5, 900), grant(4, 400)]);
        permit.grants = [grant(1, NEVER_NS); GRANTS];
        let full = permit;
        assert!(!add(&mut permit, grant(5, 900), 100));
        assert_eq!(permit, full);
    }

    #[test]
    fn a_rule_holds_one_grant_whose_end_only_moves_away() {
        let mut permit = Permit::default();
        assert!(!add(&mut permit, grant(1, 500), 100));
        assert!(!add(&mut permit, grant(1, 400), 100));
        assert_eq!(permit.grants[0], grant(1, 500));
        assert!(!add(&mut permit, grant(1, 600), 100));
        assert_eq!(permit.grants[0], grant(1, 600));
        assert!(!add(&mut permit, grant(1, 601), 100));
        assert_eq!(permit.grants[0], grant(1, 600), "an eighth of a life, at most a second, is not worth a write");
        permit.grants[0] = grant(1, 100 * SECOND_NS);
        assert!(!add(&mut permit, grant(1, 101 * SECOND_NS), 100));
        assert_eq!(permit.grants[0], grant(1, 100 * SECOND_NS));
        assert!(!add(&mut permit, grant(1, 101 * SECOND_NS + 1), 100));
        assert_eq!(permit.grants[0], grant(1, 101 * SECOND_NS + 1));
        assert!(permit.grants[1].rule.is_none());
    }

    #[test]
    fn expired_grants_give_way_and_are_swept() {
        let grants = [grant(1, 50), grant(2, 500), grant(3, NEVER_NS), grant(4, 700)];
        let mut permit = Permit { grants, ..Permit::default() };
        let swept = without_expired(&permit, 60);
        assert!(swept.grants[0].rule.is_none());
        assert_eq!(swept.grants[1..], permit.grants[1..]);
        assert!(!add(&mut permit, grant(5, 900), 100), "what has expired is nobody's loss");
        assert_eq!(permit.grants[0], grant(5, 900));
    }
}
