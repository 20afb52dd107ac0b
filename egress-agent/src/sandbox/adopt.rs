//! Taking over a sandbox that lives on in its pins. Enforcement is the kernel's all the while: nothing is taken off, and
//! what is written on the way opens nothing that the policy on record does not open.

use super::{
    Directories, SLOT,
    apply::exchange,
    attach::rule_lines,
    build::ABI,
    devices::{Devices, Following},
    end::give_back_listener,
    error::Error,
    live::{AtDrop, Kernel, Sandbox},
    names::{Listening, Serving},
    permits::Permits,
    plan::Plan,
    record::{Record, RuleLine},
    recover,
    reporter::{Reporter, Scene, about},
};
use crate::{
    cgroup::{Cgroup, CgroupMount},
    compile::{Facts, RuleText, compile},
    datapath::{
        attach::{CGROUP_HOOKS, Hooked, held},
        bpffs::PinRoot,
        detach::pinned_links,
        device::DeviceWatch,
        netns::Netns,
        records::Records,
        state_dir::StateDir,
        tables::Tables,
    },
    observe::{
        EventSink,
        event::{Kind, Subject},
        permits_file,
        sink::{FILE_BYTES, FILE_NAME},
    },
    policy::Policy,
};
use egress_common::{permit::RuleRef, sandbox::Identity};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};

impl Sandbox {
    /// Takes over a sandbox that nobody serves: one that was pinned, or whose owner was killed. `name` is the sandbox's own, or
    /// the one it was pinned under.
    ///
    /// Events flow again, beginning with what the kernel kept since (its ring holds 64 KiB; the rest is counted as lost). Names are answered
    /// again, on the same port; what was learned from them stays open as long as it would have been. The policy is the last one
    /// for which [`Sandbox::attach`](super::Builder::attach) or [`Sandbox::update`] had returned.
    ///
    /// Devices that come later are not put under the verdict any more; [`Sandbox::level`] says so, and is L1 while there is one.
    /// Call it in the network namespace that has the devices.
    ///
    /// Dropping an adopted sandbox does not detach it.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Served`] while its owner lives, [`Error::HookGone`] where it is not enforced whole,
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
        let tables = Arc::new(Tables::open(&maps, &directories.listeners())?);
        let sandbox = tables.sandbox(SLOT)?;
        let cgroup = Cgroup::open(&CgroupMount::find()?, &record.directory)?;
        if sandbox.nonce != record.nonce || cgroup.id() != record.cgroup_id {
            return Err(unknown());
        }
        let identity = Identity { slot: SLOT, reserved: 0, nonce: record.nonce };
        let links = pins.join("links");
        let hooks = whole(&record, &links)?;
        let devices = devices_of(&record, &tables, identity, links, directories)?;

        let policy = Policy::from_toml(&record.policy)?;
        let plan = Plan::resumed(&record, &cgroup, &policy, &sandbox, Tables::capacity(&maps)?)?;
        let (nonce, generation) = (record.nonce, record.generation);
        let opened = match u16::try_from(sandbox.listener_port) {
            _ if !plan.listens => None,
            Ok(port @ 1..) => Some(Listening::reopen(&plan, port, &tables, nonce)?),
            _ => Some(Listening::open(&plan, &tables, nonce)?),
        };
        let facts = Facts { listener_port: opened.as_ref().map_or(0, Listening::port), ..plan.facts.clone() };
        let kernel = Kernel {
            devices: Arc::new(Mutex::new(devices)),
            hooks,
            tables: Arc::clone(&tables),
            identity,
            directory: record.directory.clone(),
            cgroup_id: record.cgroup_id,
        };
        let before = recover::image(&tables)?;
        let mut ids = recover::ids(&before, &record, plan.capacity.rules);
        let image = compile(&policy, &facts, SLOT, &mut ids, plan.limits)?;
        exchange(&before, &image, &kernel)?;
        before.rules.keys().filter(|rule| !image.rules.contains_key(rule)).for_each(|rule| ids.give_back(rule.index));

        let rules = rule_lines(&image);
        let directory = Record::directory(directories, &record.name);
        let permits = Arc::new(Permits::new(SLOT, Arc::clone(&tables), policy.clone(), generation, image));
        permits.recall(permits_file::read(&directory).map_err(Error::file(&directory, "read"))?)?;
        let subject = Subject {
            sandbox: record.name.clone(),
            policy: policy.name.clone(),
            generation,
            cgroup: Some(record.cgroup.to_string_lossy().into_owned()),
        };
        let events = directory.join(FILE_NAME);
        let sink = EventSink::with_file(&events, FILE_BYTES).map_err(Error::file(&events, "open"))?;
        let scene = Arc::new(Scene {
            slot: SLOT,
            nonce,
            subject: Mutex::new(subject.clone()),
            permits,
            tables: Arc::clone(&tables),
            directory,
            server: Mutex::new(Weak::new()),
        });
        let (reporter, inbox) = Reporter::start(Arc::clone(&scene), Records::open(&maps)?, sink.clone())?;
        let serving = opened.map(|opened| opened.serve(&plan, &policy, generation, &scene, &inbox)).transpose()?;
        let addresses = plan.follow_addresses(&tables)?;
        record.adopted = true;
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
        sink.emit(&about(Kind::Adopt, &subject));
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
    let mut expected = CGROUP_HOOKS.iter().map(|hook| hook.name).chain(pinned.iter().map(|link| link.name.as_str()));
    if let Some(hook) = expected.find(|hook| !attached(hook)) {
        return Err(Error::HookGone { name: record.name.clone(), hook: hook.to_owned() });
    }
    Ok(held(links, CGROUP_HOOKS.iter().map(|hook| hook.name))?)
}

/// The devices that it was attached with, where they are to be seen.
fn devices_of(
    record: &Record,
    tables: &Arc<Tables>,
    identity: Identity,
    links: PathBuf,
    directories: &Directories,
) -> Result<Devices, Error> {
    let host = Netns::current()?;
    if record.own_netns && host.cookie()? != record.host_netns {
        return Err(Error::HostNetns { name: record.name.clone() });
    }
    let devices = Devices::resume(tables, identity, links, host, record, directories)?;
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
