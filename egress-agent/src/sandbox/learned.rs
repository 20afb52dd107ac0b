//! Which names led to which addresses, until when, and how many there may be. For people and for PTR; what is open is in
//! the kernel's map alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Learned addresses of one sandbox at a time.
pub(super) const AT_MOST: usize = 4096;
/// Addresses of one name: a name whose answers rotate through a pool must not take everybody's room.
pub(super) const PER_NAME: usize = 256;

/// No room that could be made without taking another name's live address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Full;

/// What a name's answer changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Admitted {
    /// The name did not open one of the addresses already.
    pub(super) new: bool,
    /// Addresses that gave way: no name leads to them any more.
    pub(super) gone: Vec<IpAddr>,
}

/// Addresses are canonical: IPv4 where they were mapped. Many names may lead to one address, and an answer that evicts nothing
/// costs no more for it.
#[derive(Default)]
pub(super) struct Learned {
    /// When each of its addresses ends.
    by_name: HashMap<Arc<str>, BTreeMap<IpAddr, u64>>,
    /// In the order in which they were learned.
    by_address: BTreeMap<IpAddr, Vec<Arc<str>>>,
}

impl Learned {
    /// Makes room for the addresses of a name's answer, for all or none. What gives way has expired, or is the name's own and
    /// ends first; never what another name still leads to. The name leads to them once [`Self::note`] was told so.
    pub(super) fn admit(&mut self, name: &str, addresses: &[IpAddr], now: u64) -> Result<Admitted, Full> {
        if let Some(new) = self.knows(name, addresses, now) {
            return Ok(Admitted { new, gone: Vec::new() });
        }
        let mut gone = Vec::new();
        let own = self.by_name.get(name);
        let more = addresses.iter().filter(|address| own.is_none_or(|own| !own.contains_key(address))).count();
        let beyond_name = (own.map_or(0, BTreeMap::len) + more).saturating_sub(PER_NAME);
        let unknown = addresses.iter().filter(|address| !self.by_address.contains_key(address)).count();
        if self.by_address.len() + unknown > AT_MOST {
            gone.extend(self.forget(now, addresses));
        }
        let beyond = (self.by_address.len() + unknown).saturating_sub(AT_MOST);
        if beyond_name > 0 || beyond > 0 {
            let oldest = self.oldest_of(name, addresses);
            let alone =
                oldest.iter().filter(|address| self.by_address.get(address).is_some_and(|names| names.len() == 1));
            if alone.clone().count() < beyond {
                return Err(Full);
            }
            let mut leaving: BTreeSet<IpAddr> = oldest.iter().take(beyond_name).copied().collect();
            let freed = leaving.iter().filter(|address| alone.clone().any(|alone| alone == *address)).count();
            let others = alone.filter(|address| !leaving.contains(address)).take(beyond.saturating_sub(freed));
            leaving = leaving.iter().chain(others).copied().collect();
            gone.extend(self.release(name, &leaving));
        }
        Ok(Admitted { new: true, gone })
    }

    /// `None` unless the name leads to all of these; true where it no longer leads to one of them.
    fn knows(&self, name: &str, addresses: &[IpAddr], now: u64) -> Option<bool> {
        let own = self.by_name.get(name)?;
        let mut new = false;
        for address in addresses {
            new |= *own.get(address)? <= now;
        }
        Some(new)
    }

    /// A name leads to the address at least until then.
    pub(super) fn note(&mut self, address: IpAddr, name: &str, expires_ns: u64) {
        if let Some(ends_ns) = self.by_name.get_mut(name).and_then(|own| own.get_mut(&address)) {
            *ends_ns = expires_ns.max(*ends_ns);
            return;
        }
        let known = self.by_name.get_key_value(name).map(|(known, _)| Arc::clone(known));
        let name = known.unwrap_or_else(|| Arc::from(name));
        self.by_address.entry(address).or_default().push(Arc::clone(&name));
        self.by_name.entry(name).or_default().insert(address, expires_ns);
    }

    /// Names that lead to the address now.
    pub(super) fn live_names(&self, address: IpAddr, now: u64) -> impl Iterator<Item = &str> {
        let names = self.by_address.get(&address).into_iter().flatten();
        names.filter(move |name| self.ends_ns(name, &address).is_some_and(|ends_ns| ends_ns > now)).map(|name| &**name)
    }

    fn ends_ns(&self, name: &str, address: &IpAddr) -> Option<u64> {
        self.by_name.get(name)?.get(address).copied()
    }

    /// Every address and name.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.by_address.iter().flat_map(|(&address, names)| names.iter().map(move |name| (address, &**name)))
    }

    /// Forgets what ended by then.
    pub(super) fn sweep(&mut self, horizon_ns: u64) {
        self.forget(horizon_ns, &[]);
    }

    /// Everything ends so much earlier.
    pub(super) fn age(&mut self, slept_ns: u64) {
        for ends_ns in self.by_name.values_mut().flat_map(BTreeMap::values_mut) {
            *ends_ns = ends_ns.saturating_sub(slept_ns);
        }
    }

    /// The name's addresses but for these, the one that ends first in front.
    fn oldest_of(&self, name: &str, but: &[IpAddr]) -> Vec<IpAddr> {
        let own = self.by_name.get(name).into_iter().flatten().filter(|(address, _)| !but.contains(address));
        let mut own: Vec<(IpAddr, u64)> = own.map(|(address, ends_ns)| (*address, *ends_ns)).collect();
        own.sort_by_key(|(_, ends_ns)| *ends_ns);
        own.into_iter().map(|(address, _)| address).collect()
    }

    fn release(&mut self, name: &str, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        if let Some(own) = self.by_name.get_mut(name) {
            own.retain(|address, _| !addresses.contains(address));
        }
        self.part(addresses)
    }

    /// Drops what ends by then, but at these addresses; returns the addresses that nothing leads to any more.
    fn forget(&mut self, horizon_ns: u64, but: &[IpAddr]) -> Vec<IpAddr> {
        let mut touched = BTreeSet::new();
        self.by_name.retain(|_, own| {
            own.retain(|address, ends_ns| {
                let kept = *ends_ns > horizon_ns || but.contains(address);
                if !kept {
                    touched.insert(*address);
                }
                kept
            });
            !own.is_empty()
        });
        self.part(&touched)
    }

    /// Parts these addresses from names that do not lead there any more; returns those that nothing leads to.
    fn part(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let mut gone = Vec::new();
        for address in addresses {
            let Some(names) = self.by_address.get_mut(address) else { continue };
            names.retain(|name| self.by_name.get(name).is_some_and(|own| own.contains_key(address)));
            if names.is_empty() {
                self.by_address.remove(address);
                gone.push(*address);
            }
        }
        gone
    }
}

#[cfg(test)]
#[path = "learned_tests.rs"]
mod tests;
