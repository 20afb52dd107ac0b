//! Which names led to which addresses, until when, and how many there may be. For people and for PTR; what is open is in
//! the kernel's map alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
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

#[derive(Clone, Debug)]
struct Held {
    name: String,
    expires_ns: u64,
}

/// Addresses are canonical: IPv4 where they were mapped.
#[derive(Default)]
pub(super) struct Learned {
    by_address: BTreeMap<IpAddr, Vec<Held>>,
    by_name: HashMap<String, BTreeSet<IpAddr>>,
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
        let more = addresses.iter().filter(|address| own.is_none_or(|own| !own.contains(address))).count();
        let beyond_name = (own.map_or(0, BTreeSet::len) + more).saturating_sub(PER_NAME);
        let unknown = addresses.iter().filter(|address| !self.by_address.contains_key(address)).count();
        if self.by_address.len() + unknown > AT_MOST {
            gone.extend(self.forget(|held| held.expires_ns <= now, addresses));
        }
        let beyond = (self.by_address.len() + unknown).saturating_sub(AT_MOST);
        if beyond_name > 0 || beyond > 0 {
            let oldest = self.oldest_of(name, addresses);
            let alone =
                oldest.iter().filter(|address| self.by_address.get(address).is_some_and(|held| held.len() == 1));
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
        let mut new = false;
        for address in addresses {
            let held = self.by_address.get(address)?.iter().find(|held| held.name == name)?;
            new |= held.expires_ns <= now;
        }
        Some(new)
    }

    /// A name leads to the address at least until then.
    pub(super) fn note(&mut self, address: IpAddr, name: &str, expires_ns: u64) {
        let held = self.by_address.entry(address).or_default();
        if let Some(known) = held.iter_mut().find(|held| held.name == name) {
            known.expires_ns = known.expires_ns.max(expires_ns);
            return;
        }
        held.push(Held { name: name.to_owned(), expires_ns });
        self.by_name.entry(name.to_owned()).or_default().insert(address);
    }

    /// Names that lead to the address now.
    pub(super) fn live_names(&self, address: IpAddr, now: u64) -> impl Iterator<Item = &str> {
        let held = self.by_address.get(&address).into_iter().flatten();
        held.filter(move |held| held.expires_ns > now).map(|held| held.name.as_str())
    }

    /// Every address and name.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.by_address.iter().flat_map(|(&address, held)| held.iter().map(move |held| (address, held.name.as_str())))
    }

    /// Forgets what ended by then.
    pub(super) fn sweep(&mut self, horizon_ns: u64) {
        self.forget(|held| held.expires_ns <= horizon_ns, &[]);
    }

    /// Everything ends so much earlier.
    pub(super) fn age(&mut self, slept_ns: u64) {
        for held in self.by_address.values_mut().flatten() {
            held.expires_ns = held.expires_ns.saturating_sub(slept_ns);
        }
    }

    /// The name's addresses but for these, the one that ends first in front.
    fn oldest_of(&self, name: &str, but: &[IpAddr]) -> Vec<IpAddr> {
        let ends = |address: &IpAddr| {
            let held = self.by_address.get(address).into_iter().flatten();
            held.filter(|held| held.name == name).map(|held| held.expires_ns).next()
        };
        let own = self.by_name.get(name).into_iter().flatten().filter(|address| !but.contains(address));
        let mut own: Vec<IpAddr> = own.copied().collect();
        own.sort_by_key(ends);
        own
    }

    fn release(&mut self, name: &str, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let mut gone = Vec::new();
        for address in addresses {
            if let Some(held) = self.by_address.get_mut(address) {
                held.retain(|held| held.name != name);
                if held.is_empty() {
                    self.by_address.remove(address);
                    gone.push(*address);
                }
            }
            if let Some(own) = self.by_name.get_mut(name) {
                own.remove(address);
            }
        }
        gone
    }

    /// Drops what fits, but at these addresses; returns the addresses that nothing leads to any more.
    fn forget(&mut self, fits: impl Fn(&Held) -> bool, but: &[IpAddr]) -> Vec<IpAddr> {
        let mut gone = Vec::new();
        let by_name = &mut self.by_name;
        self.by_address.retain(|address, held| {
            if but.contains(address) {
                return true;
            }
            held.retain(|held| {
                let kept = !fits(held);
                if !kept && let Some(own) = by_name.get_mut(&held.name) {
                    own.remove(address);
                }
                kept
            });
            if held.is_empty() {
                gone.push(*address);
            }
            !held.is_empty()
        });
        by_name.retain(|_, own| !own.is_empty());
        gone
    }
}

#[cfg(test)]
#[path = "learned_tests.rs"]
mod tests;
