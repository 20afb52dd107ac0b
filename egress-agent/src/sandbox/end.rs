//! The end of a sandbox, whoever brings it about. `egressd detach` is the only one that opens a populated cgroup.

use super::{
    Directories,
    error::Error,
    record::{DeviceLine, Record},
    seat::Seat,
    sharing::Place,
    target::Which,
    undo::end_of_pins,
};
use crate::datapath::{
    attach::disown,
    bpffs::PinRoot,
    detach::{detach_link, pinned_links},
    netns::Netns,
    shape,
    state_dir::StateDir,
    tables::{TableError, Tables},
    tc::{self, Held},
};
use egress_common::{sandbox::Sandbox, verdict::ListenerKey};

/// Opens the sandbox of a cgroup or of a guest. Whoever serves it notices and ends.
pub fn detach(directories: &Directories, which: impl Into<Which>) -> Result<(), Error> {
    let record = Record::of(directories, Some(&which.into()))?;
    take_down(directories, &record, None, None)
}

/// Removes everything of a sandbox: closed first, open at the very end. Done as well when somebody else did it, and then
/// nothing of a sandbox that took its name since is touched.
///
/// `host` is the network namespace in which its devices are, where the caller has it, and `seat` what it leaves to the next
/// sandbox.
pub(super) fn take_down(
    directories: &Directories,
    record: &Record,
    host: Option<Netns>,
    seat: Option<&Seat>,
) -> Result<(), Error> {
    let state = StateDir::open(&directories.state)?;
    let turn = state.lock()?;
    let root = PinRoot::open(&directories.pin, &turn)?;
    let Some(pins) = root.owner_dir(&record.name)? else {
        Record::remove(directories, &record.name)?;
        end_of_pins(directories, root, turn);
        return Ok(());
    };
    let maps = pins.join("maps");
    // Without maps, whoever took it down died behind giving them to the next sandbox: they had been cleared.
    let tables = maps.exists().then(|| Tables::open(&maps, &directories.listeners())).transpose()?;
    let sandbox = tables.as_ref().map(|tables| tables.sandbox(record.slot)).transpose()?.unwrap_or_default();
    // 0: cleared, and left there.
    if ![0, record.nonce].contains(&sandbox.nonce) {
        return Ok(());
    }
    let on_device = |device: &&DeviceLine| device.held == Held::Clsact || device.shaped;
    let marked: Vec<_> = record.devices.iter().filter(on_device).collect();
    // Asked for before anything is taken off: filters and queues are not found from everywhere.
    let host = if marked.is_empty() { None } else { Some(host.map_or_else(|| record.find_host_netns(), Ok)?) };
    // The storage would outlive the links, for whoever attaches next. It went with a cgroup that was removed, even where
    // another one has its path.
    if let (Some(tables), Some(cgroup_id)) = (&tables, record.target.living_cgroup()) {
        disown(tables, cgroup_id)?;
    }
    if let Some(tables) = &tables {
        give_back_listener(tables, &sandbox)?;
    }
    for device in &record.devices {
        let (host_netns, name) = (record.host_netns, record.name.as_str());
        Place { directories, host_netns, ifindex: device.ifindex, name }.leave()?;
    }
    let links = pins.join("links");
    for link in pinned_links(&links)? {
        detach_link(&links.join(link.name))?;
    }
    if let Some(tables) = &tables
        && Tables::room(&maps)?.slots > 1
    {
        tables.remove_devices_of(record.nonce)?;
        tables.clear(record.slot)?;
    }
    if let Some(host) = host {
        for device in marked {
            if device.shaped {
                host.enter(|| shape::unshape(device.ifindex))??;
            }
            if device.held == Held::Clsact {
                host.enter(|| tc::remove_filters(device.ifindex, record.nonce, device.made_clsact))??;
            }
        }
    }
    if let Some(Err(error)) = seat.filter(|_| tables.is_some()).map(|seat| seat.give_back(&root, &maps)) {
        // What is left of it goes with its owner's directory.
        tracing::warn!(error = &error as &dyn std::error::Error, "the program set is not kept for the next sandbox");
    }
    root.remove_owner_dir(&record.name)?;
    Record::remove(directories, &record.name)?;
    end_of_pins(directories, root, turn);
    Ok(())
}

/// Any sandbox may have the port again.
pub(super) fn give_back_listener(tables: &Tables, sandbox: &Sandbox) -> Result<(), TableError> {
    let key = ListenerKey { netns_cookie: sandbox.netns_cookie, port: sandbox.listener_port, reserved: 0 };
    if sandbox.listener_port != 0 && tables.listener(&key)? == Some(sandbox.nonce) {
        tables.remove_listener(key)?;
    }
    Ok(())
}
