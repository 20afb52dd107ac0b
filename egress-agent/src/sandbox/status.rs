//! `egressd status`: the kernel's state, with names from the records.

use super::{
    Directories,
    bandwidth::{BandwidthStatus, How},
    error::Error,
    permits::now_ns,
    record::{DeviceLine, Record},
    sent::{Sent, sent},
    sharing,
    target::{Target, Which},
};
use crate::{
    datapath::{
        attach::CGROUP_HOOKS,
        bpffs::PinRoot,
        detach::pinned_links,
        netns::Netns,
        shape,
        state_dir::StateDir,
        tables::Tables,
        tc::{self, Held},
    },
    level::Reached,
    observe::{counters::Totals, sink::FILE_NAME},
    policy::{Mode, Policy},
};
use egress_common::names::map;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// One hook of a sandbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HookStatus {
    /// A word of `observe::names`, with the interface's index behind a device's.
    pub hook: String,
    /// Whether the kernel has it attached now.
    pub attached: bool,
}

/// Fill of one map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapUse {
    /// Its name.
    pub map: String,
    /// Entries of this sandbox.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// One sandbox as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the sandbox.
    pub sandbox: String,
    /// `name` of the policy.
    pub policy: Option<String>,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Path of the cgroup below the mount; none for a guest.
    pub cgroup: Option<String>,
    /// Devices.
    pub device: Option<String>,
    /// True where every hook that the policy needs is attached.
    pub in_force: bool,
    /// Generation of the policy.
    pub generation: u64,
    /// What is promised.
    pub level: Reached,
    /// Process that answers DNS; none where it is gone.
    pub agent_pid: Option<u32>,
    /// Hooks.
    pub hooks: Vec<HookStatus>,
    /// Maps.
    pub maps: Vec<MapUse>,
    /// Totals.
    pub counters: Totals,
    /// Limits, and what became of them; none where nothing is limited.
    pub bandwidth: Option<BandwidthStatus>,
    /// Where it sent most; at most ten.
    pub destinations: Vec<Sent>,
}

/// The sandboxes below these directories.
pub fn list(directories: &Directories) -> Result<Vec<Status>, Error> {
    // Asking must not make the directories of sandboxes that do not exist.
    if Record::all(directories)?.is_empty() {
        return Ok(Vec::new());
    }
    let state = StateDir::open(&directories.state)?;
    let turn = state.lock()?;
    // Again, because nobody comes or goes from here on.
    let records = Record::all(directories)?;
    if records.is_empty() {
        turn.remove()?;
        return Ok(Vec::new());
    }
    let root = PinRoot::open(&directories.pin, &turn)?;
    let mut ours = BTreeSet::new();
    for record in &records {
        if let Some(pins) = root.owner_dir(&record.name)? {
            let links = pinned_links(&pins.join("links"))?;
            ours.extend(links.into_iter().filter_map(|link| link.target).map(|target| target.program));
        }
    }
    records.into_iter().map(|record| status(directories, &root, record, &ours)).collect()
}

fn status(directories: &Directories, root: &PinRoot, record: Record, ours: &BTreeSet<u32>) -> Result<Status, Error> {
    let policy = Policy::from_toml(&record.policy)?;
    // Whoever took it down may have died behind giving its maps away.
    let pins = root.owner_dir(&record.name)?.filter(|pins| pins.join("maps").exists());
    let mut hooks = Vec::new();
    let mut maps = Vec::new();
    let mut counters = Totals::default();
    let mut owned = false;
    let mut bandwidth = None;
    let mut destinations = Vec::new();
    if let Some(pins) = &pins {
        let tables = Tables::open(&pins.join("maps"), &directories.listeners())?;
        owned = tables.sandbox(record.slot)?.nonce == record.nonce;
        hooks = hooks_of(&record, &pins.join("links"), ours)?;
        let permits = u64::try_from(tables.permits(record.slot)?.len()).unwrap_or(u64::MAX);
        maps.push(MapUse {
            map: map::PERMITS.to_owned(),
            entries: permits,
            capacity: Tables::room(&pins.join("maps"))?.each.permits.into(),
        });
        let passed = tables.passed(record.slot)?;
        counters = Totals::of(&tables.counters(record.slot)?, passed.values());
        destinations = sent(&record.rules, &passed);
        let (limits, meters) = (tables.limits(record.slot)?, tables.meters(record.slot)?);
        bandwidth = BandwidthStatus::of(&limits, &meters, now_ns(), is_shaped(&record));
        let sends = bandwidth.as_mut().and_then(|bandwidth| bandwidth.egress.as_mut());
        if let Some(sends) = sends.filter(|_| record.target.is_guest()) {
            // No socket of the host's paces itself for it.
            sends.how = How::Policed;
        }
    }
    // Hooks of a cgroup that was removed stay attached to nothing; one that was made at its path since has none.
    let there = record.target.is_guest() || record.target.living_cgroup().is_some();
    let attached = |hook: &str| hooks.iter().any(|found| found.hook == hook && found.attached);
    let complete = match record.target {
        Target::Cgroup { .. } => CGROUP_HOOKS.iter().all(|hook| attached(hook.name)),
        Target::Guest { ifindex, .. } => tc::DEVICE_HOOKS.iter().all(|(hook, _)| attached(&tc::name(hook, ifindex))),
    };
    let devices: Vec<_> = record.devices.iter().map(|device| device.name.clone()).collect();
    Ok(Status {
        in_force: there && complete && owned && hooks.iter().all(|hook| hook.attached),
        agent_pid: record.agent(),
        policy: policy.name.clone(),
        mode: if policy.mode == Mode::Observe { "observe" } else { "enforce" }.to_owned(),
        cgroup: record.target.cgroup(),
        device: (!record.devices.is_empty()).then(|| devices.join(",")),
        generation: record.generation,
        level: sharing::level(directories, &record, record.promised())?,
        sandbox: record.name,
        hooks,
        maps,
        counters,
        bandwidth,
        destinations,
    })
}

/// True where every device has its queue. Whoever shares a device may have taken it.
fn is_shaped(record: &Record) -> bool {
    let shaped = |host: &Netns, line: &DeviceLine| {
        line.shaped && host.enter(|| shape::is_shaped(line.ifindex)).is_ok_and(|found| found.unwrap_or(false))
    };
    !record.devices.is_empty()
        && record.find_host_netns().is_ok_and(|host| record.devices.iter().all(|line| shaped(&host, line)))
}

/// What the kernel has attached. A program of a device counts where only egressd's own, `ours`, are asked before it.
fn hooks_of(record: &Record, links: &Path, ours: &BTreeSet<u32>) -> Result<Vec<HookStatus>, Error> {
    let mut hooks = Vec::new();
    let mut orders = BTreeMap::new();
    let host = if record.devices.is_empty() { None } else { record.find_host_netns().ok() };
    for device in &record.devices {
        // From elsewhere a link shows that it is there, not what stands before it; a filter shows nothing.
        let names = tc::DEVICE_HOOKS.map(|(hook, _)| tc::name(hook, device.ifindex));
        match (device.held, &host) {
            (Held::Tcx, Some(host)) => {
                let on = host.enter(|| tc::programs_on(device.ifindex))?.unwrap_or_default();
                orders.extend(names.into_iter().zip(on));
            }
            (Held::Tcx, None) => {}
            (Held::Clsact, Some(host)) => {
                let own = host.enter(|| tc::own_filters(device.ifindex, record.nonce))??;
                let status = |(hook, first)| HookStatus { hook, attached: first == Some(true) };
                hooks.extend(names.into_iter().zip(own).map(status));
            }
            (Held::Clsact, None) => hooks.extend(names.map(|hook| HookStatus { hook, attached: false })),
        }
    }
    for link in pinned_links(links)? {
        let attached = link.target.is_some_and(|target| {
            let Some(order) = orders.get(&link.name) else { return true };
            let mut before = order.iter().take_while(|program| **program != target.program);
            order.contains(&target.program) && before.all(|program| ours.contains(program))
        });
        hooks.push(HookStatus { hook: link.name, attached });
    }
    Ok(hooks)
}

/// Where what there is of one sandbox stands: its record, its events, and what its owner puts there. Without a name, of the only one.
pub fn directory(directories: &Directories, which: Option<&Which>) -> Result<PathBuf, Error> {
    Ok(Record::directory(directories, &Record::of(directories, which)?.name))
}

/// The event files of one sandbox, or of all.
pub fn event_files(directories: &Directories, which: Option<&Which>) -> Result<Vec<PathBuf>, Error> {
    let records = match which {
        Some(_) => vec![Record::of(directories, which)?],
        None => Record::all(directories)?,
    };
    Ok(records.iter().map(|record| Record::directory(directories, &record.name).join(FILE_NAME)).collect())
}
