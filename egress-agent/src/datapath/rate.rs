//! Limits and meters of sandboxes, by slot, and what passed by their rules. The limits are written here, the rest by the kernel half.

use super::{
    load::{LoadError, Programs},
    table_error::{TableError, failed},
    tables::{Tables, open},
};
use aya::maps::{Array, MapData, PerCpuArray};
use bytemuck::Zeroable as _;
use egress_common::{
    bucket::{Limits, Meters},
    event::{Passed, PassedByRules, RULES_AT_ONCE},
    names::map,
};
use std::{collections::BTreeMap, path::Path};

/// The maps.
pub(super) struct Rates {
    limits: Array<MapData, Limits>,
    meters: Array<MapData, Meters>,
    passed: PerCpuArray<MapData, PassedByRules>,
}

impl Rates {
    pub(super) fn take(programs: &mut Programs) -> Result<Self, LoadError> {
        Ok(Self {
            limits: programs.map(map::LIMITS)?,
            meters: programs.map(map::METERS)?,
            passed: programs.map(map::PASSED)?,
        })
    }

    pub(super) fn open(pins: &Path) -> Result<Self, LoadError> {
        Ok(Self {
            limits: open(pins, map::LIMITS)?,
            meters: open(pins, map::METERS)?,
            passed: open(pins, map::PASSED)?,
        })
    }
}

impl Tables {
    pub(crate) fn limits(&self, slot: u32) -> Result<Limits, TableError> {
        self.maps().rates.limits.get(&slot, 0).map_err(failed(map::LIMITS, "read"))
    }

    /// In force at once, for flows that are under way too.
    pub(crate) fn set_limits(&self, slot: u32, limits: Limits) -> Result<(), TableError> {
        self.maps().rates.limits.set(slot, &limits, 0).map_err(failed(map::LIMITS, "write"))
    }

    pub(crate) fn meters(&self, slot: u32) -> Result<Meters, TableError> {
        self.maps().rates.meters.get(&slot, 0).map_err(failed(map::METERS, "read"))
    }

    /// Nothing has passed, and nothing is limited: what a slot begins and ends with.
    pub(crate) fn clear_rates(&self, slot: u32) -> Result<(), TableError> {
        self.set_limits(slot, Limits::zeroed())?;
        self.maps().rates.meters.set(slot, &Meters::zeroed(), 0).map_err(failed(map::METERS, "write"))
    }

    /// What passed by each index of the slot's part of the rule array, whichever rules had it; all CPUs together.
    pub(crate) fn passed(&self, slot: u32) -> Result<BTreeMap<u32, Passed>, TableError> {
        let maps = self.maps();
        let (indices, mut passed) = (maps.rules_of(slot), BTreeMap::new());
        let each = RULES_AT_ONCE as u32;
        for entry in indices.start / each..indices.end.div_ceil(each) {
            for cpu in maps.rates.passed.get(&entry, 0).map_err(failed(map::PASSED, "read"))?.iter() {
                for (index, one) in (entry * each..).zip(cpu.rules).filter(|(index, _)| indices.contains(index)) {
                    let all: &mut Passed = passed.entry(index).or_default();
                    all.packets += one.packets;
                    all.bytes += one.bytes;
                }
            }
        }
        Ok(passed)
    }
}
