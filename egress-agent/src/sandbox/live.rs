//! A sandbox under enforcement, in the hands of the process that serves it.

use super::{
    Directories,
    apply::exchange,
    cut::{Connections, Place},
    devices::Devices,
    end::take_down,
    error::Error,
    names::Listening,
    nesting::refuse_transient_mounts,
    plan::Plan,
    record::Record,
    reporter::{DnsInbox, Reporter, Scene, about},
    seat::Seat,
    sent::rule_lines,
    sharing,
    target::{Opened, Target},
};
use crate::{
    compile::{Facts, RuleIds, compile},
    datapath::{addresses, attach::Hooked, bpffs::PinRoot, device::DeviceWatch, state_dir::StateDir, tables::Tables},
    dns,
    level::Reached,
    observe::{AsyncEvents, EventSink, Events, event::Kind, sink::QUEUE},
    policy::{Established, Policy},
};
use egress_common::sandbox::Identity;
use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// What the kernel holds for us. Closing our descriptors changes nothing while the pins are there.
pub(super) struct Kernel {
    pub(super) seat: Seat,
    pub(super) devices: Arc<Mutex<Devices>>,
    pub(super) hooks: Vec<Hooked>,
    pub(super) tables: Arc<Tables>,
    pub(super) identity: Identity,
    pub(super) target: Target,
}

/// A sandbox under enforcement.
///
/// Dropping it detaches, unless it was pinned or adopted: a populated cgroup is open then. Its links are pinned from the
/// first moment on, so that a crash of this process opens nothing, and [`Sandbox::adopt`] finds it as it was.
pub struct Sandbox {
    pub(super) kernel: Kernel,
    pub(super) scene: Arc<Scene>,
    pub(super) server: Option<Arc<dns::Server>>,
    pub(super) reporter: Option<Reporter>,
    /// For a server that starts later.
    pub(super) inbox: Arc<DnsInbox>,
    pub(super) _addresses: Option<addresses::Watch>,
    pub(super) device_watch: Option<DeviceWatch>,
    pub(super) sink: EventSink,
    /// Its devices and level change on the thread that follows them.
    pub(super) record: Arc<Mutex<Record>>,
    pub(super) plan: Plan,
    pub(super) ids: RuleIds,
    pub(super) directories: Directories,
    pub(super) at_drop: AtDrop,
}

/// What Drop does to enforcement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AtDrop {
    /// Ends it.
    Detach,
    /// Leaves it to whoever adopts the sandbox.
    Leave,
    /// Nothing any more.
    Nothing,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox")
            .field("name", &self.name())
            .field("on", &self.kernel.target.which())
            .finish_non_exhaustive()
    }
}

/// What became of a sandbox that its owner let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// Its cgroup was empty: hooks and pins are gone.
    Detached,
    /// Processes live in it: it stays closed, without anybody who answers DNS.
    Enforced,
}

impl Sandbox {
    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.kernel.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, unique on the host.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Where its record and its events stand, and what its owner puts there; it goes with the sandbox.
    pub fn directory(&self) -> PathBuf {
        Record::directory(&self.directories, self.name())
    }

    /// What is promised now: devices may come later.
    pub fn level(&self) -> Reached {
        let record = self.record().clone();
        let level = record.promised();
        sharing::level(&self.directories, &record, level.clone()).unwrap_or_else(|error| {
            tracing::warn!(%error, "who shares the devices is not known");
            level
        })
    }

    /// What whoever puts processes into it knows better, for `egressd status`. It is not looked into.
    pub fn judge(&mut self, reached: Reached) -> Result<(), Error> {
        let mut record = self.record();
        record.judged = Some(reached);
        record.write(&self.directories)
    }

    /// Host side of its device, where one was found or given.
    pub fn device(&self) -> Option<String> {
        self.record().devices.first().map(|device| device.name.clone())
    }

    /// True for a guest's, which no cgroup stands for.
    pub fn is_guest(&self) -> bool {
        self.kernel.target.is_guest()
    }

    /// Its network namespace, for whoever starts processes in it; `None` = egressd's own.
    pub fn netns(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.plan.has_namespace() {
            return Ok(None);
        }
        Ok(Some(self.plan.netns.as_fd().try_clone_to_owned().map_err(Error::Descriptor)?))
    }

    /// The number of the policy in force, from 1.
    pub fn generation(&self) -> u64 {
        self.record().generation
    }

    /// Names of the hooks in place.
    pub fn hooks(&self) -> impl Iterator<Item = String> {
        let devices: Vec<String> = self.devices().hooks().collect();
        self.kernel.hooks.iter().map(|hook| hook.name.clone()).chain(devices)
    }

    /// Events from now on; they end with the sandbox, after what the kernel reported last.
    pub fn events(&self) -> Events {
        self.sink.subscribe(QUEUE)
    }

    /// [`Sandbox::events`] for asynchronous code, on any executor.
    pub fn events_async(&self) -> AsyncEvents {
        self.sink.subscribe_async(QUEUE)
    }

    /// Why nobody answers the sandbox's DNS any more; `None` while somebody does, or where no name was ever allowed.
    ///
    /// Enforcement goes on without: what is permitted fades, and no name opens anything new. The server does not recover; a new
    /// owner starts another ([`Sandbox::adopt`]).
    pub fn dns_failure(&self) -> Option<Arc<dns::DnsError>> {
        self.server.as_ref()?.wait_failure(Duration::ZERO)
    }

    /// Puts another policy in force; it is when this returns. An error leaves the old one.
    ///
    /// In between, nothing is open that neither policy opens: denies come first, then what is no longer allowed goes, then
    /// denies that are gone, then what is new. With the first name, the sandbox gets a DNS listener; `lo` must be up in its
    /// network namespace then.
    ///
    /// With `established = "cut"` the owners of TCP connections that the new policy does not allow get ECONNABORTED, where the
    /// kernel can do that (CONFIG_INET_DIAG_DESTROY); else their packets are denied, and they notice by a timeout.
    pub fn update(&mut self, policy: Policy) -> Result<(), Error> {
        if self.was_detached() {
            return Err(Error::NotAttached { which: self.kernel.target.which() });
        }
        if policy.allow.unix != self.scene.permits.in_force().policy.allow.unix {
            return Err(Error::UnixChanged);
        }
        let plan = self.plan.with(&policy)?;
        let opened = match self.server {
            None if plan.listens => Some(Listening::open(&plan, &self.kernel.tables, self.kernel.identity.nonce)?),
            _ => None,
        };
        let before = self.scene.permits.in_force().image.settings.listener_port;
        let facts = Facts { listener_port: opened.as_ref().map_or(before, Listening::port), ..plan.facts.clone() };
        // On a copy, so that a policy which is refused uses up no rule.
        let mut ids = self.ids.clone();
        let image = compile(&policy, &facts, self.slot(), &mut ids, plan.limits)?;
        let generation = self.generation() + 1;
        let (text, name) = (policy.to_toml(), policy.name.clone());
        let place = self.place().filter(|_| policy.established == Established::Cut);
        let connections = place.map(Connections::before);
        let passed = self.kernel.tables.passed(self.slot())?;
        // Nobody asks it before the policy is in force.
        let started =
            opened.map(|opened| opened.serve(&plan, &policy, generation, &self.scene, &self.inbox)).transpose()?;
        {
            let mut in_force = self.scene.permits.in_force();
            // First, because it may refuse the policy. It can write no permit of the new policy before that is in force.
            let serve = |plan: &Plan, policy: &Policy, generation| match &self.server {
                Some(server) if plan.listens => server.update(plan.dns_config(policy, generation)),
                // Without names there is nothing to ask a server for.
                Some(server) => server.update(self.plan.dns_config(policy, generation)),
                None => Ok(()),
            };
            serve(&plan, &policy, generation)?;
            if let Err(error) = exchange(&in_force.image, &image, &self.kernel) {
                serve(&self.plan, &in_force.policy, in_force.generation)?;
                drop(in_force);
                self.ids.skip_tags(&ids);
                let mut record = self.record();
                record.next_tag = self.ids.next_tag();
                record.write(&self.directories)?;
                return Err(error);
            }
            in_force.generation = generation;
            in_force.policy = Arc::new(policy);
            in_force.image = image;
        }
        if let Some(mut started) = started {
            started.lead(&mut self.devices())?;
            self.server = Some(started.keep());
        }
        self.ids = ids;
        if plan.listens {
            self.plan = plan;
        }
        let rules = rule_lines(&self.scene.permits.in_force().image, &self.record().rules, &passed);
        let devices = self.devices().shape();
        let mut record = self.record();
        record.devices = devices;
        (record.generation, record.policy, record.rules) = (generation, text, rules);
        record.next_tag = self.ids.next_tag();
        record.write(&self.directories)?;
        drop(record);
        // They are denied all the same: only their owners wait longer.
        let cut = |before: Result<Connections, _>| self.place().map(|place| before?.cut(place));
        match connections.and_then(cut) {
            Some(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "connections were not ended"),
            Some(Ok(ended)) => tracing::debug!(ended, "connections"),
            None => {}
        }
        let mut subject = self.scene.subject.lock().unwrap_or_else(PoisonError::into_inner);
        subject.generation = generation;
        subject.policy = name;
        self.sink.emit(&about(Kind::Reload, &subject));
        Ok(())
    }

    /// Waits until every `proxy` of the policy takes a connection, from the sandbox's network namespace.
    pub fn await_proxies(&self, limit: Duration) -> Result<(), Error> {
        let in_force = self.scene.permits.in_force();
        let proxies: Vec<SocketAddr> = in_force
            .policy
            .allow
            .proxy
            .iter()
            .flat_map(|rule| rule.ports.ranges().iter().map(|range| SocketAddr::new(rule.net.addr(), range.first)))
            .collect();
        drop(in_force);
        let deadline = Instant::now() + limit;
        proxies.into_iter().try_for_each(|proxy| {
            let connected = self.plan.netns.enter(|| connect_until(proxy, deadline))?;
            connected.map_err(|source| Error::Proxy { proxy, waited: limit, source })
        })
    }

    /// Leaves enforcement to the kernel: Drop no longer detaches. Whoever comes later finds the sandbox by this name, beside its
    /// own: [`Sandbox::adopt`]. It is 1 to 64 letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// [`Error::NameTaken`]; [`Error::TransientMounts`] where pins would not last.
    pub fn pin(&mut self, name: &str) -> Result<(), Error> {
        refuse_transient_mounts()?;
        let state = StateDir::open(&self.directories.state)?;
        let turn = state.lock()?;
        let named = PinRoot::open(&self.directories.pin, &turn)?.owner_dir(name)?.is_some();
        let others = Record::all(&self.directories)?.into_iter().filter(|record| record.name != self.name());
        let taken = others.into_iter().any(|record| record.pinned_as.as_deref() == Some(name));
        if taken || (named && name != self.name()) {
            return Err(Error::NameTaken { name: name.to_owned() });
        }
        let mut record = self.record();
        record.pinned_as = Some(name.to_owned());
        record.write(&self.directories)?;
        drop(record);
        self.at_drop = AtDrop::Leave;
        Ok(())
    }

    /// Detaches if the cgroup is empty, or the guest's device gone; leaves it closed otherwise.
    pub fn release(mut self) -> Result<Released, Error> {
        let host = self.devices().host.try_clone()?;
        let populated = match host.enter(|| Opened::again(&self.kernel.target))? {
            Ok(Some(Opened::Cgroup(cgroup))) => cgroup.populated()?,
            Ok(Some(Opened::Guest(_))) => true,
            // Removed: nothing can be in it any more.
            _ => false,
        };
        // A record of what somebody else took down would keep the cgroup from being attached again.
        if populated && !self.was_detached() {
            self.leave()?;
            return Ok(Released::Enforced);
        }
        self.end()?;
        Ok(Released::Detached)
    }

    /// Opens the cgroup, whoever is in it.
    pub fn detach(mut self) -> Result<(), Error> {
        self.end()
    }

    /// True once somebody else detached the sandbox, also where another one is attached to its cgroup by now.
    pub fn was_detached(&self) -> bool {
        self.record().is_taken_down(&self.directories)
    }

    fn slot(&self) -> u32 {
        self.kernel.identity.slot
    }

    /// None for a guest: its sockets are its own.
    fn place(&self) -> Option<Place<'_>> {
        let Target::Cgroup { directory, .. } = &self.kernel.target else { return None };
        Some(Place { tables: &self.kernel.tables, slot: self.slot(), netns: &self.plan.netns, cgroup: directory })
    }

    /// Nobody serves it from here on, and whoever comes may.
    fn leave(&mut self) -> Result<(), Error> {
        self.fall_silent();
        if self.was_detached() {
            return Ok(());
        }
        let mut record = self.record();
        record.served_by(None);
        record.write(&self.directories)
    }

    fn end(&mut self) -> Result<(), Error> {
        self.fall_silent();
        self.sink.emit(&about(Kind::Detach, &self.scene.subject()));
        let record = self.record().clone();
        let host = self.devices().host.try_clone()?;
        take_down(&self.directories, &record, Some(host), Some(&self.kernel.seat))
    }

    /// Reads what the kernel reported last, so that no count is lost.
    fn fall_silent(&mut self) {
        self.at_drop = AtDrop::Nothing;
        drop(self.server.take());
        drop(self.reporter.take());
        // Its thread waits for the lock of the state directory, and may write the record.
        drop(self.device_watch.take());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let (done, left) = match self.at_drop {
            AtDrop::Nothing => return,
            AtDrop::Leave => (self.leave(), "its record names this process as the one that serves it"),
            AtDrop::Detach => (self.end(), "not detached; it stays closed until `egressd detach`"),
        };
        if let Err(error) = done {
            tracing::error!(%error, sandbox = self.name(), "{left}");
        }
    }
}

fn connect_until(address: SocketAddr, deadline: Instant) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        match TcpStream::connect_timeout(&address, left.min(Duration::from_secs(2))) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() + PAUSE >= deadline => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
