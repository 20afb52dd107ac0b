//! The maps, typed. What is enforced is what they hold; nothing here keeps a second copy.

#![expect(deprecated, reason = "CGROUP_STORAGE is chosen over its successor: see ARCHITECTURE.md, Identity")]

pub(crate) use super::table_error::TableError;
use super::{
    bpf::update_batch,
    load::{Capacity, DEVICES_EACH, LoadError, Programs, Room},
    rate::Rates,
    table_error::{absent, failed, gone},
};
use aya::maps::{
    Array, CgroupStorage, HashMap, IterableMap as _, LpmTrie, MapData, MapError, MapInfo, PerCpuArray,
    cgroup_storage::CgroupStorageKey, lpm_trie::Key,
};
use bytemuck::Zeroable as _;
use egress_common::{
    addr::Addr,
    event::{Client, ClientKey, Counters, Denial, DenialKey},
    names::map,
    packet::FlowKey,
    permit::{NETWORK_SLOT_BITS, Network, NetworkKey, Permit, PermitKey, Rule, RuleRef},
    sandbox::{Identity, OnDevice, Sandbox, Station},
    verdict::{FlowState, ListenerKey},
};
use std::{
    ops::Range,
    os::fd::AsFd as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The maps of the sandboxes that share a program set.
pub(crate) struct Tables {
    maps: Mutex<Maps>,
    /// For pins of later sandboxes; none where there is room for one alone.
    handles: Vec<(&'static str, MapData)>,
}

pub(super) struct Maps {
    identity: CgroupStorage<MapData, Identity>,
    sandboxes: Array<MapData, Sandbox>,
    rules: Array<MapData, Rule>,
    permits: HashMap<MapData, PermitKey, Permit>,
    networks: LpmTrie<MapData, NetworkKey, Network>,
    own: HashMap<MapData, PermitKey, u32>,
    listeners: HashMap<MapData, ListenerKey, u64>,
    pub(super) devices: HashMap<MapData, u32, OnDevice>,
    pub(super) sources: HashMap<MapData, PermitKey, Station>,
    clients: HashMap<MapData, ClientKey, Client>,
    denials: HashMap<MapData, DenialKey, Denial>,
    counters: PerCpuArray<MapData, Counters>,
    flows: HashMap<MapData, FlowKey, FlowState>,
    pub(super) rates: Rates,
}

/// Maps that are pinned with a sandbox, so that any later process can read, change and end it.
pub(crate) const PINNED: [&str; 16] = [
    map::IDENTITY,
    map::SANDBOXES,
    map::RULES,
    map::PERMITS,
    map::NETWORKS,
    map::OWN,
    map::DEVICES,
    map::SOURCES,
    map::CLIENTS,
    map::DENIALS,
    map::COUNTERS,
    map::PASSED,
    map::EVENTS,
    map::FLOWS,
    map::LIMITS,
    map::METERS,
];

impl Tables {
    /// Takes the maps out of a loaded program set, pinning them below `pins` for its first sandbox. `shared` where others will
    /// come ([`Tables::pin`]).
    pub(crate) fn take(programs: &mut Programs, pins: &Path, shared: bool) -> Result<Self, LoadError> {
        for name in PINNED {
            programs.pin_map(name, pins)?;
        }
        let reopened = PINNED.iter().take_while(|_| shared).map(|name| Ok((*name, data(name, &pins.join(name))?)));
        let handles = reopened.collect::<Result<_, LoadError>>()?;
        let maps = Mutex::new(Maps {
            identity: programs.map(map::IDENTITY)?,
            sandboxes: programs.map(map::SANDBOXES)?,
            rules: programs.map(map::RULES)?,
            permits: programs.map(map::PERMITS)?,
            networks: programs.map(map::NETWORKS)?,
            own: programs.map(map::OWN)?,
            listeners: programs.map(map::LISTENERS)?,
            devices: programs.map(map::DEVICES)?,
            sources: programs.map(map::SOURCES)?,
            clients: programs.map(map::CLIENTS)?,
            denials: programs.map(map::DENIALS)?,
            counters: programs.map(map::COUNTERS)?,
            flows: programs.map(map::FLOWS)?,
            rates: Rates::take(programs)?,
        });
        Ok(Self { maps, handles })
    }

    /// Pins the maps for one more sandbox: any later process finds them by its directory.
    pub(crate) fn pin(&self, pins: &Path) -> Result<(), LoadError> {
        self.handles.iter().try_for_each(|(name, map)| {
            let path = pins.join(name);
            map.pin(&path).map_err(|source| LoadError::Pin { map: name, path, source })
        })
    }

    /// Opens the maps that another process pinned.
    pub(crate) fn open(pins: &Path, listeners: &Path) -> Result<Self, LoadError> {
        let maps = Mutex::new(Maps {
            identity: open(pins, map::IDENTITY)?,
            sandboxes: open(pins, map::SANDBOXES)?,
            rules: open(pins, map::RULES)?,
            permits: open(pins, map::PERMITS)?,
            networks: open(pins, map::NETWORKS)?,
            own: open(pins, map::OWN)?,
            listeners: super::load::open_pinned(map::LISTENERS, listeners)?,
            devices: open(pins, map::DEVICES)?,
            sources: open(pins, map::SOURCES)?,
            clients: open(pins, map::CLIENTS)?,
            denials: open(pins, map::DENIALS)?,
            counters: open(pins, map::COUNTERS)?,
            flows: open(pins, map::FLOWS)?,
            rates: Rates::open(pins)?,
        });
        Ok(Self { maps, handles: Vec::new() })
    }

    /// True where the map of DNS listeners is the one at this pin, which all owners of the same directories share.
    pub(crate) fn lists_listeners_at(&self, pin: &Path) -> Result<bool, TableError> {
        let ours = self.maps().listeners.map().info().map_err(failed(map::LISTENERS, "read"))?.id();
        Ok(MapInfo::from_pin(pin).is_ok_and(|pinned| pinned.id() == ours))
    }

    pub(super) fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_identity(&self, cgroup_id: u64, attach_type: u32, identity: Identity) -> Result<(), MapError> {
        self.maps().identity.insert(CgroupStorageKey::new(cgroup_id, attach_type), &identity, 0)
    }

    pub(crate) fn set_sandbox(&self, slot: u32, sandbox: Sandbox) -> Result<(), TableError> {
        self.maps().sandboxes.set(slot, &sandbox, 0).map_err(failed(map::SANDBOXES, "write"))
    }

    pub(crate) fn sandbox(&self, slot: u32) -> Result<Sandbox, TableError> {
        self.maps().sandboxes.get(&slot, 0).map_err(failed(map::SANDBOXES, "read"))
    }

    pub(crate) fn set_rule(&self, index: u32, rule: &Rule) -> Result<(), TableError> {
        self.maps().rules.set(index, rule, 0).map_err(failed(map::RULES, "write"))
    }

    pub(crate) fn rule(&self, rule: RuleRef) -> Result<Option<Rule>, TableError> {
        let found = self.maps().rules.get(&rule.index, 0).map_err(failed(map::RULES, "read"))?;
        Ok((found.tag == rule.tag).then_some(found))
    }

    /// Every rule of the slot, from its part of the array.
    pub(crate) fn rules(&self, slot: u32) -> Result<Vec<(RuleRef, Rule)>, TableError> {
        let maps = self.maps();
        let mut rules = Vec::new();
        for index in maps.rules_of(slot) {
            let rule = maps.rules.get(&index, 0).map_err(failed(map::RULES, "read"))?;
            if rule.tag != 0 && rule.slot == slot {
                rules.push((RuleRef { index, tag: rule.tag }, rule));
            }
        }
        Ok(rules)
    }

    pub(crate) fn permit(&self, key: &PermitKey) -> Result<Option<Permit>, TableError> {
        absent(self.maps().permits.get(key, 0)).map_err(failed(map::PERMITS, "read"))
    }

    pub(crate) fn set_permit(&self, key: &PermitKey, permit: &Permit) -> Result<(), TableError> {
        self.maps().permits.insert(key, permit, 0).map_err(failed(map::PERMITS, "write"))
    }

    /// Writes all of them; an error leaves some of them written.
    pub(crate) fn set_permits(&self, entries: &[(PermitKey, Permit)]) -> Result<(), TableError> {
        if entries.len() > 1 && update_batch(self.maps().permits.map().fd().as_fd(), entries).is_ok() {
            return Ok(());
        }
        // One by one it says which and why, and an old kernel can do it.
        entries.iter().try_for_each(|(key, permit)| self.set_permit(key, permit))
    }

    pub(crate) fn remove_permit(&self, key: &PermitKey) -> Result<(), TableError> {
        gone(self.maps().permits.remove(key)).map_err(failed(map::PERMITS, "remove"))
    }

    /// Every permit of the slot.
    pub(crate) fn permits(&self, slot: u32) -> Result<Vec<(PermitKey, Permit)>, TableError> {
        self.permits_where(|key, _| key.slot == slot)
    }

    /// Every permit of whatever sandbox that is wanted.
    pub(crate) fn permits_where(
        &self,
        wanted: impl Fn(&PermitKey, &Permit) -> bool,
    ) -> Result<Vec<(PermitKey, Permit)>, TableError> {
        let maps = self.maps();
        let entries =
            maps.permits.iter().filter(|entry| entry.as_ref().map_or(true, |(key, permit)| wanted(key, permit)));
        entries.collect::<Result<_, _>>().map_err(failed(map::PERMITS, "read"))
    }

    /// For how many sandboxes the pinned maps were made, and with how much room for each.
    pub(crate) fn room(pins: &Path) -> Result<Room, TableError> {
        let entries = |name| {
            let info = MapInfo::from_pin(pins.join(name)).map_err(failed(name, "read"))?;
            Ok(info.max_entries())
        };
        // Slot 0 is nobody's.
        let slots = entries(map::SANDBOXES)?.saturating_sub(1).max(1);
        let at_once = (entries(map::DEVICES)? / DEVICES_EACH).max(1);
        let each = Capacity {
            rules: entries(map::RULES)? / slots,
            networks: entries(map::NETWORKS)? / at_once,
            permits: entries(map::PERMITS)? / at_once,
        };
        Ok(Room { slots, at_once, each })
    }

    /// Takes everything out that is a sandbox's, after its hooks are gone. Nobody has its slot again.
    pub(crate) fn clear(&self, slot: u32) -> Result<(), TableError> {
        self.set_sandbox(slot, Sandbox::default())?;
        for (rule, _) in self.rules(slot)? {
            self.set_rule(rule.index, &Rule::zeroed())?;
        }
        for (key, _) in self.permits(slot)? {
            self.remove_permit(&key)?;
        }
        for (addr, bits, _) in self.networks(slot)? {
            self.remove_network(NetworkKey { slot, addr }, bits)?;
        }
        for addr in self.own(slot)? {
            self.remove_own(slot, addr)?;
        }
        self.clear_sources(slot)?;
        self.clear_rates(slot)
    }

    pub(crate) fn set_network(&self, key: NetworkKey, prefix: u32, network: &Network) -> Result<(), TableError> {
        let key = Key::new(NETWORK_SLOT_BITS + prefix, key);
        self.maps().networks.insert(&key, network, 0).map_err(failed(map::NETWORKS, "write"))
    }

    pub(crate) fn remove_network(&self, key: NetworkKey, prefix: u32) -> Result<(), TableError> {
        let key = Key::new(NETWORK_SLOT_BITS + prefix, key);
        gone(self.maps().networks.remove(&key)).map_err(failed(map::NETWORKS, "remove"))
    }

    /// Every network of the slot, with the bits of its prefix.
    pub(crate) fn networks(&self, slot: u32) -> Result<Vec<(Addr, u32, Network)>, TableError> {
        let maps = self.maps();
        let mut networks = Vec::new();
        for entry in &maps.networks {
            let (key, network) = entry.map_err(failed(map::NETWORKS, "read"))?;
            let NetworkKey { slot: owner, addr } = key.data();
            if owner == slot {
                networks.push((addr, key.prefix_len().saturating_sub(NETWORK_SLOT_BITS), network));
            }
        }
        Ok(networks)
    }

    pub(crate) fn network(&self, key: &PermitKey) -> Result<Option<Network>, TableError> {
        let key = Key::new(NETWORK_SLOT_BITS + 128, NetworkKey { slot: key.slot, addr: key.addr });
        absent(self.maps().networks.get(&key, 0)).map_err(failed(map::NETWORKS, "read"))
    }

    pub(crate) fn set_own(&self, slot: u32, addr: Addr) -> Result<(), TableError> {
        self.maps().own.insert(&PermitKey { slot, addr }, &1, 0).map_err(failed(map::OWN, "write"))
    }

    pub(crate) fn remove_own(&self, slot: u32, addr: Addr) -> Result<(), TableError> {
        gone(self.maps().own.remove(&PermitKey { slot, addr })).map_err(failed(map::OWN, "remove"))
    }

    /// Every own address of the slot.
    pub(crate) fn own(&self, slot: u32) -> Result<Vec<Addr>, TableError> {
        let maps = self.maps();
        let keys = maps.own.keys().filter(|key| key.as_ref().map_or(true, |key| key.slot == slot));
        keys.map(|key| key.map(|key| key.addr)).collect::<Result<_, _>>().map_err(failed(map::OWN, "read"))
    }

    pub(crate) fn is_own(&self, key: &PermitKey) -> Result<bool, TableError> {
        let found = absent(self.maps().own.get(key, 0)).map_err(failed(map::OWN, "read"))?;
        Ok(found.is_some())
    }

    pub(crate) fn set_listener(&self, key: ListenerKey, nonce: u64) -> Result<(), TableError> {
        self.maps().listeners.insert(&key, &nonce, 0).map_err(failed(map::LISTENERS, "write"))
    }

    pub(crate) fn remove_listener(&self, key: ListenerKey) -> Result<(), TableError> {
        gone(self.maps().listeners.remove(&key)).map_err(failed(map::LISTENERS, "remove"))
    }

    pub(crate) fn listener(&self, key: &ListenerKey) -> Result<Option<u64>, TableError> {
        absent(self.maps().listeners.get(key, 0)).map_err(failed(map::LISTENERS, "read"))
    }

    pub(crate) fn client(&self, key: ClientKey) -> Result<Option<Client>, TableError> {
        absent(self.maps().clients.get(&key, 0)).map_err(failed(map::CLIENTS, "read"))
    }

    /// A flow on record, whose rule may be gone.
    pub(crate) fn flow(&self, key: &FlowKey) -> Result<Option<FlowState>, TableError> {
        absent(self.maps().flows.get(key, 0)).map_err(failed(map::FLOWS, "read"))
    }

    /// Denials that were counted but not reported yet.
    pub(crate) fn denials(&self, slot: u32) -> Result<Vec<(DenialKey, Denial)>, TableError> {
        let maps = self.maps();
        let entries = maps
            .denials
            .iter()
            .filter(|entry| entry.as_ref().map_or(true, |(key, denial)| key.slot == slot && denial.count > 0));
        entries.collect::<Result<_, _>>().map_err(failed(map::DENIALS, "read"))
    }

    /// Counters of the slot, one per CPU.
    pub(crate) fn counters(&self, slot: u32) -> Result<Vec<Counters>, TableError> {
        let values = self.maps().counters.get(&slot, 0).map_err(failed(map::COUNTERS, "read"))?;
        Ok(values.iter().copied().collect())
    }
}

impl Maps {
    pub(super) fn rules_of(&self, slot: u32) -> Range<u32> {
        // Slot 0 is nobody's.
        rules_of(slot, self.rules.len() / (self.sandboxes.len() - 1).max(1))
    }
}

/// The part of the rule array that is a slot's, where each has so many.
pub(crate) fn rules_of(slot: u32, each: u32) -> Range<u32> {
    let first = slot.saturating_sub(1) * each;
    first..first + each
}

pub(super) fn open<T>(pins: &Path, name: &'static str) -> Result<T, LoadError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    super::load::open_pinned(name, &pins.join(name))
}

fn data(name: &'static str, pin: &Path) -> Result<MapData, LoadError> {
    MapData::from_pin(pin).map_err(|source| LoadError::Map { map: name, source: Box::new(source) })
}
