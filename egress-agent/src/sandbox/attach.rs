//! From a policy and a cgroup to enforcement. Everything that can be refused is refused before the first hook; from the
//! first hook on the cgroup is closed; a failure after that takes back all that was made.

use super::{
    Builder,
    apply::apply,
    build::ABI,
    devices::Devices,
    error::Error,
    following::Following,
    live::{AtDrop, Kernel, Sandbox},
    names::{Listening, Serving},
    nesting::{refuse_nesting, refuse_transient_mounts},
    permits::Permits,
    plan::{Plan, lasting},
    record::Record,
    reporter::{Reporting, about},
    seat::{Seat, Wanted},
    sent::rule_lines,
    sharing,
    target::{Guest, Opened, Target},
    undo::{Undo, end_of_pins},
};
use crate::{
    cgroup::{Cgroup, CgroupMount},
    compile::{Facts, Image, RuleIds, compile, diff},
    datapath::{
        attach::{self, Hooked},
        bpffs::PinRoot,
        foreign,
        state_dir::StateDir,
        unix,
    },
    level::{Level, Reached},
    observe::event::{Kind, Subject},
    policy::{Mode, Unix},
};
use egress_common::sandbox::Identity;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

impl Builder {
    /// Closed from here on; DNS is answered when it returns.
    ///
    /// A cgroup, or a guest, whose sandbox nobody serves any more, because its owner was killed or let go of it while it was
    /// populated, is taken over ([`Sandbox::adopt`]) and gets this policy; it does not open on the way. One that was pinned is somebody's: it is refused.
    ///
    /// # Errors
    /// Anything that cannot be enforced whole; nothing is left behind then.
    pub fn attach(self) -> Result<Sandbox, Error> {
        if self.outlives {
            refuse_transient_mounts()?;
        }
        let on = &self.open()?;
        let plan = Plan::new(&self, on)?;
        let state = StateDir::open(&self.directories.state)?;
        let turn = state.lock()?;
        if let Some(left) = refuse_nesting(&self.directories, on, plan.host_netns)? {
            drop(turn);
            return self.take_over(&left, on);
        }
        let root = match PinRoot::open(&self.directories.pin, &turn) {
            Ok(root) => root,
            Err(error) => {
                if Record::all(&self.directories)?.is_empty() {
                    turn.remove()?;
                }
                return Err(error.into());
            }
        };
        let made = match root.create_owner_dir(&plan.name) {
            Ok(own) => {
                let mut undo = Undo { directories: &self.directories, name: &plan.name, armed: true };
                let made = self.make(on, plan.clone(), &root, &own);
                undo.armed = made.is_err();
                made
            }
            // Whoever has this name already keeps what is pinned under it.
            Err(error) => Err(error.into()),
        };
        if made.is_err() {
            end_of_pins(&self.directories, root, turn);
            return made;
        }
        // Nobody waits for this one's names. Closed meanwhile; detached where a name is required and not there.
        drop((root, turn));
        made.and_then(|sandbox| sandbox.resolve_ahead().map(|()| sandbox))
    }

    fn open(&self) -> Result<Opened, Error> {
        match (&self.cgroup, &self.guest) {
            (Some(directory), None) => {
                let cgroup = Cgroup::open(&CgroupMount::find()?, directory)?;
                cgroup.check_enforceable()?;
                Ok(Opened::Cgroup(cgroup))
            }
            (None, Some((device, addresses))) => Ok(Opened::Guest(Guest::open(device, addresses)?)),
            (Some(_), Some(_)) => Err(Error::CgroupAndGuest),
            (None, None) => Err(Error::NoCgroup),
        }
    }

    fn make(&self, on: &Opened, plan: Plan, root: &PinRoot, own: &Path) -> Result<Sandbox, Error> {
        let pins = Pins::make(own)?;
        let started = Instant::now();
        let wanted = Wanted {
            capacity: plan.capacity,
            netns_cookie: plan.has_namespace().then_some(plan.facts.netns_cookie),
            devices: &plan.found.devices.iter().map(|device| device.ifindex).collect::<Vec<_>>(),
        };
        let mut seat = Seat::take(&self.directories, root, &wanted, &pins.maps)?;
        let mut plan = plan.in_room(seat.capacity());
        tracing::debug!(took_us = started.elapsed().as_micros(), slot = seat.slot, "programs loaded");
        let started = Instant::now();
        let (tables, slot) = (Arc::clone(seat.tables()), seat.slot);
        let nonce = rand::random::<u64>().max(1);
        let identity = Identity { slot, depth: 0, nonce };

        let opened = plan.listens.then(|| Listening::open(&plan, &tables, nonce)).transpose()?;
        let facts = Facts { listener_port: opened.as_ref().map_or(0, Listening::port), ..plan.facts.clone() };
        let mut ids = RuleIds::new(seat.rules());
        let image = compile(&self.policy, &facts, slot, &mut ids, plan.limits)?;
        apply(&diff(&Image::empty(slot), &image), &image, nonce, &tables).map_err(|(_, error)| error)?;

        let permits = Permits::new(slot, Arc::clone(&tables), self.policy.clone(), 1, image);
        let subject = Subject {
            sandbox: plan.name.clone(),
            policy: self.policy.name.clone(),
            generation: 1,
            cgroup: on.target().cgroup(),
        };
        let mut record = self.record(on.target(), &plan, identity, &permits, &ids);
        record.write(&self.directories)?;
        let written = record.clone();
        let Reporting { scene, sink, reporter, inbox } =
            Reporting::begin(&seat.set, identity, subject, permits, &self.directories)?;
        let mut serving = opened.map(|opened| opened.serve(&plan, &self.policy, 1, &scene, &inbox)).transpose()?;
        let addresses = plan.follow_addresses(&tables, slot)?;

        let hooks = match on.cgroup() {
            Some(cgroup) => self.close(cgroup, &seat, identity, &pins.links)?,
            // The device's programs say it all.
            None => Vec::new(),
        };
        plan.judges_foreign = foreign::is_judged(hooks.iter().map(|hook| hook.name.as_str()));
        let mut devices = Devices::new(&seat.set, identity, own.to_owned(), &plan, self.tcx, &self.directories)?;
        if let Some(serving) = &mut serving {
            serving.lead(&mut devices)?;
        }
        if let Some((_, error)) = devices.settle(&plan.found).into_iter().next() {
            return Err(error);
        }
        record.devices = devices.lines();
        let level = plan.level(self.privileged, &plan.found);
        record.level = match on {
            Opened::Cgroup(cgroup) => {
                let no_device = plan.found.devices.is_empty();
                level.with_processes(cgroup, plan.judges_foreign, no_device, self.strict)?
            }
            Opened::Guest(_) => level,
        };
        self.refuse_below(&sharing::level(&self.directories, &record, record.promised())?)?;
        if record != written {
            record.write(&self.directories)?;
        }
        let (devices, record) = (Arc::new(Mutex::new(devices)), Arc::new(Mutex::new(record)));
        // Last: its thread waits for the lock that we hold, and whoever drops it waits for the thread.
        let following = Following {
            devices: Arc::clone(&devices),
            record: Arc::clone(&record),
            plan: plan.clone(),
            privileged: self.privileged,
            directories: self.directories.clone(),
            last: Some(plan.found.clone()),
        };
        let device_watch = following.start()?;
        devices.lock().unwrap_or_else(PoisonError::into_inner).stay();
        tracing::debug!(took_us = started.elapsed().as_micros(), "hooks attached");
        sink.emit(&about(Kind::Attach, &scene.subject()));
        let server = serving.map(Serving::keep);
        seat.keep();
        Ok(Sandbox {
            kernel: Kernel { seat, devices, hooks, tables, identity, target: on.target() },
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
            directories: self.directories.clone(),
            at_drop: AtDrop::Detach,
        })
    }

    /// Puts the hooks on a cgroup. From the first one on it is closed but for what the maps say.
    fn close(&self, cgroup: &Cgroup, seat: &Seat, identity: Identity, links: &Path) -> Result<Vec<Hooked>, Error> {
        let (tables, fault) = (seat.tables(), std::env::var("EGRESSD_FAULT").ok());
        let (mut hooks, foreign) = seat.set.on_cgroup(|programs| {
            let (fd, id) = (cgroup.fd(), cgroup.id());
            let hooks = attach::cgroup(programs, tables, fd, id, identity, links, fault.as_deref())?;
            Ok((hooks, foreign::attach(programs, tables, cgroup, identity, links)))
        })?;
        match foreign {
            Ok(attached) => hooks.extend(attached),
            // The level says so.
            Err(error) => tracing::info!(%error, "sockets from outside are not judged"),
        }
        if let (Unix::Names(names), Mode::Enforce) = (&self.policy.allow.unix, self.policy.mode) {
            hooks.extend(unix::attach(cgroup.fd(), names, links)?);
        }
        Ok(hooks)
    }

    fn record(&self, target: Target, plan: &Plan, identity: Identity, permits: &Permits, ids: &RuleIds) -> Record {
        let mut record = Record {
            name: plan.name.clone(),
            target,
            slot: identity.slot,
            nonce: identity.nonce,
            policy: self.policy.to_toml(),
            generation: 1,
            rules: rule_lines(&permits.in_force().image, &[], &BTreeMap::new()),
            devices: Vec::new(),
            host_netns: plan.host_netns,
            level: plan.level(self.privileged, &plan.found),
            judged: None,
            // A raw socket is held by the device alone.
            required: self.require.max(self.raw_sockets.then_some(Level::L2)),
            agent_pid: None,
            agent_start: None,
            own_netns: plan.has_namespace(),
            netns: self.netns.as_deref().map(lasting),
            pinned_as: None,
            abi: ABI,
            next_tag: ids.next_tag(),
        };
        record.served_by(Some(std::process::id()));
        record
    }

    pub(super) fn refuse_below(&self, reached: &Reached) -> Result<(), Error> {
        match self.require {
            Some(wanted) if reached.level.is_none_or(|level| level < wanted) => {
                Err(Error::Require { wanted, reached: reached.text.clone(), missing: reached.missing.join("; ") })
            }
            _ => Ok(()),
        }
    }
}

/// Directories of one owner's pins.
struct Pins {
    maps: PathBuf,
    links: PathBuf,
}

impl Pins {
    fn make(own: &Path) -> Result<Self, Error> {
        let (maps, links) = (own.join("maps"), own.join("links"));
        for path in [&maps, &links] {
            std::fs::create_dir(path).map_err(Error::file(path, "make"))?;
        }
        Ok(Self { maps, links })
    }
}
