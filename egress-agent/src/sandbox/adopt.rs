//! Taking over a sandbox that lives on in its pins. Enforcement is the kernel's all the while: nothing is taken off, and
//! what is written on the way opens nothing that the policy on record does not open.

use super::{
    Directories,
    apply::exchange,
    build::ABI,
    builder::Builder,
    devices::Devices,
    end::give_back_listener,
    error::Error,
    following::Following,
    live::{AtDrop, Kernel, Sandbox},
    names::{Listening, Serving},
    permits::Permits,
    plan::{Plan, open_netns},
    record::{Record, RuleLine},
    recover,
    reporter::{Reporting, about},
    seat::{Seat, Set},
    sent::rule_lines,
    target::Opened,
};
use crate::{
    compile::{Facts, RuleText, compile},
    datapath::{
        attach::{CGROUP_HOOKS, Hooked, held},
        bpffs::PinRoot,
        detach::pinned_links,
        device::DeviceWatch,
        foreign,
        netns::Netns,
        records::Records,
        state_dir::StateDir,
    },
    observe::{
        event::{Kind, Subject},
        permits_file,
    },
    policy::Policy,
};
use egress_common::{permit::RuleRef, sandbox::Identity};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

impl Sandbox {
    /// Takes over a sandbox that nobody serves: one that was pinned, or whose owner was killed. `name` is the sandbox's own, or
    /// the one it was pinned under.
    ///
    /// Events flow again, beginning with what the kernel kept since (its ring holds 64 KiB; the rest is counted as lost). Names are answered
    /// again, on the same port; what was learned from them stays open as long as it would have been. The policy is the last one
    /// for which [`Sandbox::attach`](super::Builder::attach) or [`Sandbox::update`] had returned.
    ///
    /// Devices that come later are put under the verdict as before, and so are those that came while nobody served it. Call it
    /// in the network namespace that has the devices.
    ///
    /// Dropping an adopted sandbox does not detach it.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Served`] while its owner lives, [`Error::SharedRing`] while another process serves a sandbox
    /// that was attached by the same one, [`Error::HookGone`] where it is not enforced whole,
    /// [`Error::OtherBuild`], [`Error::NetnsLost`], [`Error::HostNetns`]. Enforcement is as before then.
    pub fn adopt(name: &str, directories: &Directories) -> Result<Self, Error> {
        // Asking must not make the directories of sandboxes that do not exist.
        Record::named(directories, name)?;
        let state = StateDir::open(&directories.state)?;
        let turn = state.lock()?;
        let mut record = Record::named(directories, name)?;
        if let Some(pid) = record.agent() {
            return Err(Error::Served { name: record.name, pid });
        }
        if record.abi != ABI {
            return Err(Error::OtherBuild { name: record.name });
        }
        let unknown = || Error::Unknown { name: name.to_owned() };
        let root = PinRoot::open(&directories.pin, &turn)?;
        let pins = root.owner_dir(&record.name)?.ok_or_else(unknown)?;
        let maps = pins.join("maps");
        others_are_ours(&record, &maps, directories)?;
        let slot = record.slot;
        let seat = Seat::resume(directories, slot, &maps)?;
        let tables = Arc::clone(seat.tables());
        let sandbox = tables.sandbox(slot)?;
        // A device is known by its index alone, which is another's in another namespace.
        host_of(&record)?;
        let on = Opened::again(&record.target)?.ok_or_else(unknown)?;
        if sandbox.nonce != record.nonce {
            return Err(unknown());
        }
        let identity = Identity { slot, depth: 0, nonce: record.nonce };
        let hooks = whole(&record, &pins.join("links"))?;
        let devices = devices_of(&record, &seat.set, identity, pins, directories)?;

        let policy = Policy::from_toml(&record.policy)?;
        let judges_foreign = foreign::is_judged(hooks.iter().map(|hook| hook.name.as_str()));
        let plan = Plan { judges_foreign, ..Plan::resumed(&record, &on, &policy, &sandbox, seat.capacity())? };
        let (nonce, generation) = (record.nonce, record.generation);
        let opened = match u16::try_from(sandbox.listener_port) {
            _ if !plan.listens => None,
            Ok(port @ 1..) => Some(Listening::reopen(&plan, port, &tables, nonce)?),
            _ => Some(Listening::open(&plan, &tables, nonce)?),
        };
        let facts = Facts { listener_port: opened.as_ref().map_or(0, Listening::port), ..plan.facts.clone() };
        let (set, ours) = (Arc::clone(&seat.set), seat.rules());
        let kernel = Kernel {
            seat,
            devices: Arc::new(Mutex::new(devices)),
            hooks,
            tables: Arc::clone(&tables),
            identity,
            target: record.target.clone(),
        };
        let before = recover::image(&tables, slot)?;
        let mut ids = recover::ids(&before, &record, ours);
        let image = compile(&policy, &facts, slot, &mut ids, plan.limits)?;
        let passed = tables.passed(slot)?;
        exchange(&before, &image, &kernel)?;
        // What its owner did not come to do any more, or what went while nobody was there.
        record.devices = kernel.devices.lock().unwrap_or_else(PoisonError::into_inner).shape();
        before.rules.keys().filter(|rule| !image.rules.contains_key(rule)).for_each(|rule| ids.give_back(rule.index));

        let rules = rule_lines(&image, &record.rules, &passed);
        let directory = Record::directory(directories, &record.name);
        let permits = Permits::new(slot, Arc::clone(&tables), policy.clone(), generation, image);
        permits.recall(permits_file::read(&directory).map_err(Error::file(&directory, "read"))?)?;
        let subject = Subject {
            sandbox: record.name.clone(),
            policy: policy.name.clone(),
            generation,
            cgroup: record.target.cgroup(),
        };
        let Reporting { scene, sink, reporter, inbox } =
            Reporting::begin(&set, identity, subject, permits, directories)?;
        let mut serving = opened.map(|opened| opened.serve(&plan, &policy, generation, &scene, &inbox)).transpose()?;
        if let Some(serving) = &mut serving {
            serving.lead(&mut kernel.devices.lock().unwrap_or_else(PoisonError::into_inner))?;
        }
        let addresses = plan.follow_addresses(&tables, slot)?;
        record.served_by(Some(std::process::id()));
        record.next_tag = ids.next_tag();
        record.rules = renewed(record.texts(), rules);
        record.write(directories)?;
        let server = serving.map(Serving::keep);
        if sandbox.listener_port != u32::from(facts.listener_port) {
            give_back_listener(&tables, &sandbox)?;
        }
        let record = Arc::new(Mutex::new(record));
        // Last: its thread waits for the lock that we hold, and whoever drops it waits for the thread.
        let device_watch = follow(&kernel, &record, &plan, directories)?;
        sink.emit(&about(Kind::Adopt, &scene.subject()));
        Ok(Self {
            kernel,
            scene,
            server,
            reporter: Some(reporter),
            inbox,
            _addresses: addresses,
            device_watch,
            sink,
            record,
            plan,
            ids,
            directories: directories.clone(),
            at_drop: AtDrop::Leave,
        })
    }
}

impl Builder {
    /// What cannot be had of it leaves it closed and nobody's.
    pub(super) fn take_over(self, left: &Record, on: &Opened) -> Result<Sandbox, Error> {
        if on.guest().is_some() && left.target != on.target() {
            return Err(Error::OtherGuest { name: left.name.clone(), which: left.target.which() });
        }
        let has = |name: &String| left.devices.iter().any(|line| line.name == *name);
        if self.device.as_ref().is_some_and(|name| !has(name)) {
            return Err(Error::Adopted);
        }
        let mut sandbox = Sandbox::adopt(&left.name, &self.directories)?;
        if let Some(path) = &self.netns
            && open_netns(path)?.cookie()? != sandbox.plan.facts.netns_cookie
        {
            return Err(Error::OtherNetns { name: left.name.clone(), netns: path.clone() });
        }
        let reached = match on {
            Opened::Cgroup(cgroup) => {
                let (judged, no_device) = (sandbox.plan.judges_foreign, sandbox.device().is_none());
                sandbox.level().with_processes(cgroup, judged, no_device, self.strict)?
            }
            Opened::Guest(_) => sandbox.level(),
        };
        self.refuse_below(&reached)?;
        sandbox.start_over(self.policy)?;
        sandbox.at_drop = AtDrop::Detach;
        Ok(sandbox)
    }
}

/// Sandboxes that one process attached share an event ring, which has one reader.
fn others_are_ours(record: &Record, maps: &Path, directories: &Directories) -> Result<(), Error> {
    let ring = Records::id(maps)?;
    for other in Record::all(directories)?.into_iter().filter(|other| other.name != record.name) {
        let Some(pid) = other.agent().filter(|pid| *pid != std::process::id()) else { continue };
        let its = directories.pin.join(&other.name).join("maps");
        if Records::id(&its).is_ok_and(|its| its == ring) {
            return Err(Error::SharedRing { name: record.name.clone(), other: other.name, pid });
        }
    }
    Ok(())
}

/// The lines as they are in force, with their places in the files that they were read from where those are known.
fn renewed(mut known: BTreeMap<RuleRef, RuleText>, now: Vec<RuleLine>) -> Vec<RuleLine> {
    let place = |line: RuleLine| match known.remove(&line.reference()) {
        Some(text) => RuleLine { text, ..line },
        None => line,
    };
    now.into_iter().map(place).collect()
}

/// Every hook that the sandbox's cgroup was attached with, held open.
fn whole(record: &Record, links: &Path) -> Result<Vec<Hooked>, Error> {
    let pinned = pinned_links(links)?;
    let attached = |hook: &str| pinned.iter().any(|link| link.name == hook && link.target.is_some());
    let on_cgroup = CGROUP_HOOKS.iter().map(|hook| hook.name).filter(|_| !record.target.is_guest());
    let on_tasks = foreign::HOOKS.into_iter().filter(|hook| attached(hook));
    let mut expected = on_cgroup.clone().chain(pinned.iter().map(|link| link.name.as_str()));
    if let Some(hook) = expected.find(|hook| !attached(hook)) {
        return Err(Error::HookGone { name: record.name.clone(), hook: hook.to_owned() });
    }
    Ok(held(links, on_cgroup.chain(on_tasks))?)
}

/// The calling thread's network namespace, which has to be the one with the devices.
fn host_of(record: &Record) -> Result<Netns, Error> {
    let host = Netns::current()?;
    if (record.own_netns || record.target.is_guest()) && host.cookie()? != record.host_netns {
        return Err(Error::HostNetns { name: record.name.clone() });
    }
    Ok(host)
}

/// The devices that it was attached with, where they are to be seen.
fn devices_of(
    record: &Record,
    set: &Arc<Set>,
    identity: Identity,
    pins: PathBuf,
    directories: &Directories,
) -> Result<Devices, Error> {
    let host = host_of(record)?;
    let devices = Devices::resume(set, identity, pins, host, record, directories)?;
    match devices.missing()? {
        Some(hook) => Err(Error::HookGone { name: record.name.clone(), hook }),
        None => Ok(devices),
    }
}

fn follow(
    kernel: &Kernel,
    record: &Arc<Mutex<Record>>,
    plan: &Plan,
    directories: &Directories,
) -> Result<Option<DeviceWatch>, Error> {
    let following = Following {
        devices: Arc::clone(&kernel.devices),
        record: Arc::clone(record),
        plan: plan.clone(),
        // Only in egressd's own network namespace, where nothing is followed, does it matter.
        privileged: false,
        directories: directories.clone(),
        last: None,
    };
    following.start()
}
