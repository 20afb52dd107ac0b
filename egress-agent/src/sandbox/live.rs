//! A sandbox under enforcement, in the hands of the process that serves it.

use super::{
    Directories,
    apply::apply,
    attach::{end_of_pins, refuse_transient_mounts, rule_lines},
    error::Error,
    level::Reached,
    plan::Plan,
    record::Record,
    reporter::{Reporter, Scene, about},
};
use crate::{
    cgroup::{Cgroup, CgroupMount},
    compile::{Facts, RuleIds, compile, diff, undo},
    datapath::{
        addresses,
        attach::{Hooked, disown},
        bpffs::PinRoot,
        load::Programs,
        state_dir::StateDir,
        tables::Tables,
    },
    dns,
    observe::{EventSink, Events, event::Kind, sink::QUEUE},
    policy::Policy,
};
use egress_common::{sandbox::Identity, verdict::ListenerKey};
use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// What the kernel holds for us. Closing our descriptors changes nothing while the pins are there.
pub(super) struct Kernel {
    pub(super) _programs: Programs,
    pub(super) hooks: Vec<Hooked>,
    pub(super) tables: Arc<Tables>,
    pub(super) identity: Identity,
    pub(super) cgroup_id: u64,
}

/// A sandbox under enforcement.
///
/// Dropping it detaches, unless it was pinned: a populated cgroup is open then. Its links are pinned from the first moment
/// on, so that a crash of this process opens nothing.
pub struct Sandbox {
    kernel: Kernel,
    scene: Arc<Scene>,
    server: Option<dns::Server>,
    reporter: Option<Reporter>,
    _watch: Option<addresses::Watch>,
    sink: EventSink,
    record: Record,
    plan: Plan,
    ids: RuleIds,
    directories: Directories,
    stays: bool,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox")
            .field("name", &self.record.name)
            .field("cgroup", &self.record.directory)
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
    #[expect(clippy::too_many_arguments, reason = "called once, by attach, with what it made")]
    pub(super) fn new(
        kernel: Kernel,
        scene: Arc<Scene>,
        server: Option<dns::Server>,
        reporter: Reporter,
        watch: Option<addresses::Watch>,
        sink: EventSink,
        record: Record,
        plan: Plan,
        ids: RuleIds,
        directories: Directories,
    ) -> Self {
        let reporter = Some(reporter);
        Self { kernel, scene, server, reporter, _watch: watch, sink, record, plan, ids, directories, stays: false }
    }

    /// Its name, unique on the host.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What is promised.
    pub fn level(&self) -> Reached {
        self.record.level.clone()
    }

    /// Host side of its device, where one was found or given.
    pub fn device(&self) -> Option<&str> {
        self.record.devices.first().map(String::as_str)
    }

    /// Its network namespace, for whoever starts processes in it; `None` = egressd's own.
    pub fn netns(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.record.own_netns {
            return Ok(None);
        }
        Ok(Some(self.plan.netns.as_fd().try_clone_to_owned().map_err(Error::Descriptor)?))
    }

    /// The number of the policy in force, from 1.
    pub fn generation(&self) -> u64 {
        self.record.generation
    }

    /// Names of the hooks in place.
    pub fn hooks(&self) -> impl Iterator<Item = &str> {
        self.kernel.hooks.iter().map(|hook| hook.name.as_str())
    }

    /// Events from now on; they end with the sandbox, after what the kernel reported last.
    pub fn events(&self) -> Events {
        self.sink.subscribe(QUEUE)
    }

    /// Puts another policy in force; it is when this returns. An error leaves the old one.
    ///
    /// In between, nothing is open that neither policy opens: denies come first, then what is no longer allowed goes, then
    /// denies that are gone, then what is new.
    pub fn update(&mut self, policy: Policy) -> Result<(), Error> {
        if self.was_detached() {
            return Err(Error::NotAttached { cgroup: self.record.directory.clone() });
        }
        let plan = self.plan.with(&policy)?;
        if plan.listens && self.server.is_none() {
            return Err(Error::NoListener);
        }
        let listener_port = self.scene.permits.in_force().image.settings.listener_port;
        let facts = Facts { listener_port, ..plan.facts.clone() };
        // On a copy, so that a policy which is refused uses up no rule.
        let mut ids = self.ids.clone();
        let image = compile(&policy, &facts, super::SLOT, &mut ids, plan.limits)?;
        let generation = self.record.generation + 1;
        let (text, name) = (policy.to_toml(), policy.name.clone());
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
            let changes = diff(&in_force.image, &image);
            let nonce = self.kernel.identity.nonce;
            if let Err((done, error)) = apply(&changes, &image, nonce, &self.kernel.tables) {
                let back = undo(&in_force.image, &changes[..=done]);
                if let Err((_, worse)) = apply(&back, &in_force.image, nonce, &self.kernel.tables) {
                    // Neither policy as a whole: closed for good, rather than open by accident.
                    tracing::error!(%worse, "the old policy could not be restored; the sandbox is closed");
                    disown(&self.kernel.tables, self.kernel.cgroup_id)?;
                }
                self.ids.skip_tags(&ids);
                serve(&self.plan, &in_force.policy, in_force.generation)?;
                return Err(error.into());
            }
            in_force.generation = generation;
            in_force.policy = Arc::new(policy);
            in_force.image = image;
        }
        self.ids = ids;
        if plan.listens {
            self.plan = plan;
        }
        self.record.generation = generation;
        self.record.policy = text;
        self.record.rules = rule_lines(&self.scene.permits.in_force().image);
        self.record.write(&self.directories)?;
        let mut subject = self.scene.subject.lock().unwrap_or_else(PoisonError::into_inner);
        subject.generation = generation;
        subject.policy = name;
        self.sink.emit(&about(Kind::Reload, &subject));
        Ok(())
    }

    pub(super) fn resolve_ahead(&self) -> Result<(), Error> {
        let policy = Arc::clone(&self.scene.permits.in_force().policy);
        let server = self.server.iter();
        server.map(|server| Plan::resolve_ahead(&policy, server)).try_for_each(|ahead| Ok(ahead?))
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

    /// Leaves enforcement to the kernel: Drop no longer detaches. Whoever comes later finds the sandbox by its name.
    pub fn pin(&mut self) -> Result<(), Error> {
        refuse_transient_mounts()?;
        self.stays = true;
        self.record.agent_pid = None;
        self.record.agent_start = None;
        self.record.write(&self.directories)
    }

    /// Detaches if the cgroup is empty, leaves it closed otherwise.
    pub fn release(mut self) -> Result<Released, Error> {
        let mount = CgroupMount::find()?;
        let populated = match Cgroup::open(&mount, &self.record.directory) {
            Ok(cgroup) if cgroup.id() == self.record.cgroup_id => cgroup.populated()?,
            // Removed: nothing can be in it any more.
            _ => false,
        };
        // A record of what somebody else took down would keep the cgroup from being attached again.
        if populated && !self.was_detached() {
            self.stays = true;
            self.record.agent_pid = None;
            self.record.agent_start = None;
            self.record.write(&self.directories)?;
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
        let replaced = Record::read(&self.directories, &self.record.name)
            .is_ok_and(|found| found.is_some_and(|found| found.nonce != self.record.nonce));
        replaced || !self.directories.pin.join(&self.record.name).exists()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.stays = true;
        // Reads what the kernel reported last, so that no count is lost.
        drop(self.server.take());
        drop(self.reporter.take());
        self.sink.emit(&about(Kind::Detach, &self.scene.subject()));
        take_down(&self.directories, &self.record)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = self.end() {
            tracing::error!(%error, sandbox = self.record.name, "not detached; it stays closed until `egressd detach`");
        }
    }
}

/// Removes everything of a sandbox: closed first, open at the very end. Done as well when somebody else did it, and then
/// nothing of a sandbox that took its name since is touched.
pub(super) fn take_down(directories: &Directories, record: &Record) -> Result<(), Error> {
    let state = StateDir::open(&directories.state)?;
    let turn = state.lock()?;
    let root = PinRoot::open(&directories.pin, &turn)?;
    let Some(pins) = root.owner_dir(&record.name)? else {
        Record::remove(directories, &record.name)?;
        end_of_pins(directories, root, turn);
        return Ok(());
    };
    let tables = Tables::open(&pins.join("maps"), &directories.listeners())?;
    if tables.sandbox(super::SLOT)?.nonce != record.nonce {
        return Ok(());
    }
    // The storage would outlive the links, for whoever attaches next. It went with a cgroup that was removed, even where
    // another one has its path.
    if std::fs::metadata(&record.directory).is_ok_and(|found| found.ino() == record.cgroup_id) {
        disown(&tables, record.cgroup_id)?;
    }
    if let Some((netns_cookie, port)) = record.listener {
        tables.remove_listener(ListenerKey { netns_cookie, port, reserved: 0 })?;
    }
    let links = pins.join("links");
    for (name, _link) in crate::datapath::detach::pinned_links(&links)? {
        crate::datapath::detach::detach_link(&links.join(name))?;
    }
    root.remove_owner_dir(&record.name)?;
    Record::remove(directories, &record.name)?;
    end_of_pins(directories, root, turn);
    Ok(())
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
