//! From a policy and a cgroup to enforcement. Everything that can be refused is refused before the first hook; from the
//! first hook on the cgroup is closed; a failure after that takes back all that was made.

use super::{
    Directories,
    apply::apply,
    build::ABI,
    error::Error,
    live::{AtDrop, Kernel, Sandbox},
    names::{Listening, Serving},
    permits::Permits,
    plan::{Plan, lasting},
    record::{Record, RuleLine},
    reporter::{Reporter, Scene, about},
};
use crate::{
    cgroup::{Cgroup, CgroupMount},
    compile::{Facts, Image, RuleIds, RuleText, compile, diff},
    datapath::{
        attach,
        bpffs::{self, PinRoot},
        device,
        load::Programs,
        records::Records,
        state_dir::{StateDir, StateLock},
        tables::Tables,
    },
    level::{Level, Reached},
    observe::{
        EventSink,
        event::{Kind, Subject},
        sink::{FILE_BYTES, FILE_NAME},
    },
    policy::Policy,
};
use egress_common::{permit::RuleRef, sandbox::Identity};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

/// Collects what a sandbox is made of.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one for each question that the caller answers")]
pub struct Builder {
    pub(super) policy: Policy,
    cgroup: Option<PathBuf>,
    pub(super) netns: Option<PathBuf>,
    pub(super) device: Option<String>,
    directories: Directories,
    strict: bool,
    require: Option<Level>,
    pub(super) raw_sockets: bool,
    privileged: bool,
    outlives: bool,
}

impl Sandbox {
    /// Starts to describe a sandbox.
    pub fn builder(policy: Policy) -> Builder {
        Builder {
            policy,
            cgroup: None,
            netns: None,
            device: None,
            directories: Directories::default(),
            strict: false,
            require: None,
            raw_sockets: false,
            privileged: false,
            outlives: false,
        }
    }
}

impl Builder {
    /// The cgroup's directory; below the cgroup v2 mount where it is relative.
    #[must_use]
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Its network namespace: a name of `ip netns`, or a path. Otherwise that of the processes in the cgroup, or egressd's own.
    #[must_use]
    pub fn netns(mut self, name_or_path: impl Into<PathBuf>) -> Self {
        self.netns = Some(name_or_path.into());
        self
    }

    /// The host side of its device, where it is not to be found from the namespace.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// Where to keep pins and events.
    #[must_use]
    pub fn dirs(mut self, directories: Directories) -> Self {
        self.directories = directories;
        self
    }

    /// Refuse where the cgroup holds sockets that the hooks cannot judge.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Refuse below this level.
    #[must_use]
    pub fn require(mut self, level: Level) -> Self {
        self.require = Some(level);
        self
    }

    /// The sandbox keeps CAP_NET_RAW: raw sockets may be made where a device judges what they send.
    #[must_use]
    pub fn raw_sockets(mut self, raw_sockets: bool) -> Self {
        self.raw_sockets = raw_sockets;
        self
    }

    /// Code in the sandbox is uid 0 in the host's user namespace, or will be: no level holds for it.
    #[must_use]
    pub fn privileged(mut self, privileged: bool) -> Self {
        self.privileged = privileged;
        self
    }

    /// Refuse where enforcement would end with this process: its mount namespace is a private one, and so are its pins.
    #[must_use]
    pub fn outlives(mut self, outlives: bool) -> Self {
        self.outlives = outlives;
        self
    }

    /// Closed from here on; DNS is answered when it returns.
    ///
    /// # Errors
    /// Anything that cannot be enforced whole; nothing is left behind then.
    pub fn attach(self) -> Result<Sandbox, Error> {
        let directory = self.cgroup.as_ref().ok_or(Error::NoCgroup)?;
        if self.outlives {
            refuse_transient_mounts()?;
        }
        let cgroup = &Cgroup::open(&CgroupMount::find()?, directory)?;
        cgroup.check_enforceable()?;
        let plan = Plan::new(&self, cgroup)?;
        let state = StateDir::open(&self.directories.state)?;
        let turn = state.lock()?;
        refuse_nesting(&self.directories, cgroup)?;
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
                let made = self.make(cgroup, plan.clone(), &own);
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

    fn make(&self, cgroup: &Cgroup, plan: Plan, own: &Path) -> Result<Sandbox, Error> {
        let fault = std::env::var("EGRESSD_FAULT").ok();
        let pins = Pins::make(own)?;
        let capacity = plan.capacity;
        let started = Instant::now();
        let mut programs = Programs::load(capacity, Some(&self.directories.listeners()), None)?;
        if !plan.found.devices.is_empty() {
            programs.load_device_programs()?;
        }
        tracing::debug!(took_us = started.elapsed().as_micros(), "programs loaded");
        let started = Instant::now();
        let tables = Arc::new(Tables::take(&mut programs, &pins.maps)?);
        let records = Records::take(&mut programs)?;
        let nonce = rand::random::<u64>().max(1);
        let identity = Identity { slot: super::SLOT, reserved: 0, nonce };

        let opened = plan.listens.then(|| Listening::open(&plan, &tables, nonce)).transpose()?;
        let facts = Facts { listener_port: opened.as_ref().map_or(0, Listening::port), ..plan.facts.clone() };
        let mut ids = RuleIds::new(capacity.rules);
        let image = compile(&self.policy, &facts, super::SLOT, &mut ids, plan.limits)?;
        apply(&diff(&Image::empty(super::SLOT), &image), &image, nonce, &tables).map_err(|(_, error)| error)?;

        let permits = Arc::new(Permits::new(super::SLOT, Arc::clone(&tables), self.policy.clone(), 1, image));
        let subject = Subject {
            sandbox: plan.name.clone(),
            policy: self.policy.name.clone(),
            generation: 1,
            cgroup: Some(cgroup.name().to_string_lossy().into_owned()),
        };
        let mut record = self.record(cgroup, &plan, nonce, &permits, &ids);
        record.write(&self.directories)?;
        let events = Record::directory(&self.directories, &plan.name).join(FILE_NAME);
        let sink = EventSink::with_file(&events, FILE_BYTES).map_err(Error::file(&events, "open"))?;
        let scene = Arc::new(Scene {
            slot: super::SLOT,
            nonce,
            subject: Mutex::new(subject.clone()),
            permits: Arc::clone(&permits),
            tables: Arc::clone(&tables),
            directory: Record::directory(&self.directories, &plan.name),
            server: Mutex::new(Weak::new()),
        });
        let (reporter, inbox) = Reporter::start(Arc::clone(&scene), records, sink.clone())?;
        let serving = opened.map(|opened| opened.serve(&plan, &self.policy, 1, &scene, &inbox)).transpose()?;
        let watch = plan.follow_addresses(&tables)?;

        let mut hooks =
            attach::cgroup(&mut programs, &tables, cgroup.fd(), cgroup.id(), identity, &pins.links, fault.as_deref())?;
        for found in &plan.found.devices {
            tables.set_device(found.ifindex, identity)?;
            for source in device::source_addresses(&plan.netns)? {
                tables.set_source(super::SLOT, source.into())?;
            }
            hooks.extend(attach::device(&mut programs, found.ifindex, &pins.links)?);
        }
        record.level =
            plan.level(self.privileged).with_processes(cgroup, plan.found.devices.is_empty(), self.strict)?;
        self.refuse_below(&record.level)?;
        record.write(&self.directories)?;
        tracing::debug!(took_us = started.elapsed().as_micros(), "hooks attached");
        sink.emit(&about(Kind::Attach, &subject));
        let server = serving.map(Serving::keep);
        Ok(Sandbox {
            kernel: Kernel { _programs: Some(programs), hooks, tables, identity, cgroup_id: cgroup.id() },
            scene,
            server,
            reporter: Some(reporter),
            inbox,
            _watch: watch,
            sink,
            record,
            plan,
            ids,
            directories: self.directories.clone(),
            at_drop: AtDrop::Detach,
        })
    }

    fn record(&self, cgroup: &Cgroup, plan: &Plan, nonce: u64, permits: &Permits, ids: &RuleIds) -> Record {
        let mut record = Record {
            name: plan.name.clone(),
            cgroup: cgroup.name().to_owned(),
            directory: cgroup.path().to_owned(),
            cgroup_id: cgroup.id(),
            nonce,
            policy: self.policy.to_toml(),
            generation: 1,
            rules: rule_lines(&permits.in_force().image),
            devices: plan.found.devices.iter().map(|found| found.name.clone()).collect(),
            level: plan.level(self.privileged),
            agent_pid: None,
            agent_start: None,
            own_netns: plan.facts.own_netns,
            netns: self.netns.as_deref().map(lasting),
            pinned_as: None,
            abi: ABI,
            next_tag: ids.next_tag(),
        };
        record.served_by(Some(std::process::id()));
        record
    }

    fn refuse_below(&self, reached: &Reached) -> Result<(), Error> {
        match self.require {
            Some(wanted) if reached.level.is_none_or(|level| level < wanted) => {
                Err(Error::Require { wanted, reached: reached.text.clone(), missing: reached.missing.join("; ") })
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn rule_lines(image: &Image) -> Vec<RuleLine> {
    let line = |(reference, (_, text)): (&RuleRef, &(_, RuleText))| RuleLine {
        index: reference.index,
        tag: reference.tag,
        text: text.clone(),
    };
    image.rules.iter().map(line).collect()
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

/// Sandboxes do not nest: an outer one's hooks would judge the inner one's redirected queries.
fn refuse_nesting(directories: &Directories, cgroup: &Cgroup) -> Result<(), Error> {
    for record in Record::all(directories)? {
        let relation = if record.cgroup == cgroup.name() {
            "the cgroup of"
        } else if cgroup.name().starts_with(&record.cgroup) {
            "below"
        } else if record.cgroup.starts_with(cgroup.name()) {
            "above"
        } else {
            continue;
        };
        return Err(Error::Nested {
            cgroup: cgroup.path().to_owned(),
            relation,
            name: record.name,
            other: record.directory,
        });
    }
    Ok(())
}

/// Takes back what an attach that failed had made.
struct Undo<'a> {
    directories: &'a Directories,
    name: &'a str,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // Nothing runs in the cgroup under this policy yet, so taking its hooks off opens nothing that was closed.
        if let Err(error) = std::fs::remove_dir_all(self.directories.pin.join(self.name)).or_else(ignore_missing) {
            tracing::error!(%error, "pins of {} are left behind; `egressd detach` removes them", self.name);
        }
        if let Err(error) = Record::remove(self.directories, self.name) {
            tracing::error!(%error, "the record of {} is left behind", self.name);
        }
    }
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// After the last owner: the shared map's pin, the bpffs itself, and the lock.
pub(super) fn end_of_pins(directories: &Directories, root: PinRoot, turn: StateLock) {
    if !root.owners().is_ok_and(|owners| owners.is_empty()) {
        return;
    }
    let ended = std::fs::remove_file(directories.listeners()).or_else(ignore_missing);
    let ended =
        ended.map_err(Error::file(&directories.pin, "remove")).and_then(|()| Ok(root.release(&turn).map(drop)?));
    if let Err(error) = ended.and_then(|()| Ok(turn.remove()?)) {
        tracing::warn!(%error, "something of the last sandbox is left in the state or pin directory");
    }
}

/// Pins in a mount namespace that ends with its processes would end with them.
pub(super) fn refuse_transient_mounts() -> Result<(), Error> {
    if bpffs::is_init_mount_namespace()? { Ok(()) } else { Err(Error::TransientMounts) }
}
