//! The maps of devices: whose a device is, and from which addresses it may send.

use super::{
    table_error::{absent, failed, gone},
    tables::{TableError, Tables},
};
use aya::maps::MapError;
use egress_common::{addr::Addr, names::map, permit::PermitKey, sandbox::OnDevice};

impl Tables {
    pub(crate) fn device(&self, ifindex: u32) -> Result<Option<OnDevice>, TableError> {
        absent(self.maps().devices.get(&ifindex, 0)).map_err(failed(map::DEVICES, "read"))
    }

    pub(crate) fn set_device(&self, ifindex: u32, on: OnDevice) -> Result<(), TableError> {
        self.maps().devices.insert(&ifindex, &on, 0).map_err(failed(map::DEVICES, "write"))
    }

    pub(crate) fn remove_device(&self, ifindex: u32) -> Result<(), TableError> {
        gone(self.maps().devices.remove(&ifindex)).map_err(failed(map::DEVICES, "remove"))
    }

    /// Removes every entry of the sandbox with this nonce, also of devices that it did not come to enforce.
    pub(crate) fn remove_devices_of(&self, nonce: u64) -> Result<(), TableError> {
        let mut maps = self.maps();
        let of_it = |entry: &Result<(u32, OnDevice), MapError>| {
            entry.as_ref().map_or(true, |(_, on)| on.identity.nonce == nonce)
        };
        let found: Vec<_> =
            maps.devices.iter().filter(of_it).collect::<Result<_, _>>().map_err(failed(map::DEVICES, "read"))?;
        found
            .iter()
            .try_for_each(|(ifindex, _)| gone(maps.devices.remove(ifindex)))
            .map_err(failed(map::DEVICES, "remove"))
    }

    pub(crate) fn set_source(&self, slot: u32, addr: Addr) -> Result<(), TableError> {
        self.maps().sources.insert(&PermitKey { slot, addr }, &0, 0).map_err(failed(map::SOURCES, "write"))
    }

    /// One of what the slot's devices may send from, of IPv4 where there is one; `None` where they may send from nothing.
    pub(crate) fn usual_source(&self, slot: u32) -> Result<Option<Addr>, TableError> {
        Ok(self.sources(slot)?.into_iter().map(|key| key.addr).min_by_key(|addr| !addr.is_v4()))
    }

    pub(super) fn clear_sources(&self, slot: u32) -> Result<(), TableError> {
        let keys = self.sources(slot)?;
        let mut maps = self.maps();
        keys.iter().try_for_each(|key| gone(maps.sources.remove(key))).map_err(failed(map::SOURCES, "remove"))
    }

    /// What the slot's devices may send from.
    pub(crate) fn sources(&self, slot: u32) -> Result<Vec<PermitKey>, TableError> {
        let of_slot = |key: &Result<PermitKey, _>| key.as_ref().map_or(true, |key| key.slot == slot);
        self.maps().sources.keys().filter(of_slot).collect::<Result<_, _>>().map_err(failed(map::SOURCES, "read"))
    }
}
