//! Limits and meters of sandboxes, by slot. The limits are written here, the meters by the kernel half.

use super::{
    load::{LoadError, Programs},
    table_error::{TableError, failed},
    tables::{Tables, open},
};
use aya::maps::{Array, MapData};
use bytemuck::Zeroable as _;
use egress_common::{
    bucket::{Limits, Meters},
    names::map,
};
use std::path::Path;

/// Both maps.
pub(super) struct Rates {
    limits: Array<MapData, Limits>,
    meters: Array<MapData, Meters>,
}

impl Rates {
    pub(super) fn take(programs: &mut Programs) -> Result<Self, LoadError> {
        Ok(Self { limits: programs.map(map::LIMITS)?, meters: programs.map(map::METERS)? })
    }

    pub(super) fn open(pins: &Path) -> Result<Self, LoadError> {
        Ok(Self { limits: open(pins, map::LIMITS)?, meters: open(pins, map::METERS)? })
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
}
