//! From a policy and a cgroup to enforcement. Everything that can be refused is refused before the first hook; from the
//! first hook on the cgroup is closed; a failure after that takes back all that was made.

use super::{
    apply::apply,
    error::Error,
    level::{Level, Reached},
    live::{Kernel, Sandbox},
    permits::{LEARNED_AT_MOST, Permits, Table},
    record::{Record, RuleLine, start_time},
    reporter::{Reporter, Scene, about},
};
use crate::{
    cgroup::{Cgroup, CgroupMount},
    compile::{Facts, Image, Limits, RuleIds, RuleText, compile, diff},
    datapath::{
        addresses, attach,
        bpffs::{self, PinRoot},
        device::{self, Found},
        listeners::{self, Listeners},
        load::{Capacity, Programs},
        netns::Netns,
        records::Records,
        state_dir::{StateDir, StateLock},
        tables::Tables,
    },
    dns,
    observe::{
        EventSink,
        event::{Kind, Subject},
        sink::{FILE_BYTES, FILE_NAME},
    },
    policy::{Answers, Mode, NameTable, Policy},
};
use egress_common::{
    addr::Addr,
    names::map,
    sandbox::Identity,
    verdict::ListenerKey,
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// Where egressd keeps what it must find again. Two instances with different directories never meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directories {
    /// Events and records of sandboxes.
    pub state: PathBuf,
    /// Pinned links and maps: a bpffs of its own.
    pub pin: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        Self { state: "/run/egressd".into(), pin: "/run/egressd/bpf".into() }
    }
}

impl Directories {
    /// The pin of the one map that all owners share.
    pub(super) fn listeners(&self) -> PathBuf {
        self.pin.join(map::LISTENERS)
    }
}

/// Collects what a sandbox is made of.
#[derive(Debug)]
pub struct Builder {
    policy: Policy,
    cgroup: Option<PathBuf>,
    netns: Option<PathBuf>,
    device: Option<String>,
    directories: Directories,
    strict: bool,
    require: Option<Level>,
    raw_sockets: bool,
    privileged: bool,
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

    /// Closed from here on; DNS is answered when it returns.
    ///
    /// # Errors
    /// Anything that cannot be enforced whole; nothing is left behind then.
    pub fn attach(self) -> Result<Sandbox, Error> {
        let directory = self.cgroup.as_ref().ok_or(Error::NoCgroup)?;
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
        }
        made
    }

    fn make(&self, cgroup: &Cgroup, plan: Plan, own: &Path) -> Result<Sandbox, Error> {
        let fault = std::env::var("EGRESSD_FAULT").ok();
        let pins = Pins::make(own)?;
        let capacity = plan.capacity;
        let mut programs = Programs::load(capacity, Some(&self.directories.listeners()), None)?;
        if !plan.found.devices.is_empty() {
            programs.load_device_programs()?;
        }
        let tables = Arc::new(Tables::take(&mut programs, &pins.maps)?);
        let records = Records::take(&mut programs)?;
        let nonce = rand::random::<u64>().max(1);
        let identity = Identity { slot: super::SLOT, reserved: 0, nonce };

        let listeners = plan.open_listeners()?;
        let facts = Facts { listener_port: listeners.as_ref().map_or(0, |found| found.port), ..plan.facts.clone() };
        let mut ids = RuleIds::new(capacity.rules);
        let image = compile(&self.policy, &facts, super::SLOT, &mut ids, plan.limits)?;
        apply(&diff(&Image::empty(super::SLOT), &image), &image, nonce, &tables).map_err(|(_, error)| error)?;
        let listener = listeners
            .as_ref()
            .map(|found| ListenerKey { netns_cookie: facts.netns_cookie, port: found.port.into(), reserved: 0 });
        if let Some(key) = listener {
            tables.set_listener(key, nonce)?;
        }

        let permits = Arc::new(Permits::new(super::SLOT, Arc::clone(&tables), self.policy.clone(), image));
        let subject = Subject {
            sandbox: plan.name.clone(),
            policy: self.policy.name.clone(),
            generation: 1,
            cgroup: Some(cgroup.name().to_string_lossy().into_owned()),
        };
        let mut record = self.record(cgroup, &plan, nonce, listener, &permits);
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
        });
        let (reporter, inbox) = Reporter::start(Arc::clone(&scene), records, sink.clone())?;
        let port = facts.listener_port;
        let server = match listeners {
            // The sockets stay open, and nobody reads them.
            Some(_) if fault.as_deref() == Some("agent_silent") => None,
            Some(found) => {
                let sockets = dns::Listeners { udp: found.udp, tcp: found.tcp };
                let config = plan.dns_config(&self.policy, 1);
                let permits: Arc<dyn dns::Permits> = Arc::clone(&permits) as _;
                let clients: Arc<dyn dns::Clients> = Arc::clone(&scene) as _;
                Some(dns::Server::start(sockets, config, permits, clients, inbox)?)
            }
            None => None,
        };
        if plan.listens {
            answers(&plan.netns, port)?;
        }
        let watch = plan.follow_addresses(&tables)?;

        let mut hooks = attach::cgroup(&mut programs, &tables, cgroup.fd(), cgroup.id(), identity, &pins.links, fault.as_deref())?;
        for found in &plan.found.devices {
            tables.set_device(found.ifindex, identity)?;
            for source in device::source_addresses(&plan.netns)? {
                tables.set_source(super::SLOT, source.into())?;
            }
            hooks.extend(attach::device(&mut programs, found.ifindex, &pins.links)?);
        }
        record.level = plan.level(self.privileged).with_processes(cgroup, plan.found.devices.is_empty(), self.strict)?;
        self.refuse_below(&record.level)?;
        record.write(&self.directories)?;
        sink.emit(&about(Kind::Attach, &subject));
        let kernel = Kernel { _programs: programs, hooks, tables, identity, cgroup_id: cgroup.id() };
        Ok(Sandbox::new(kernel, scene, server, reporter, watch, sink, record, plan, ids, self.directories.clone()))
    }

    fn record(&self, cgroup: &Cgroup, plan: &Plan, nonce: u64, listener: Option<ListenerKey>, permits: &Permits) -> Record {
        let pid = std::process::id();
        Record {
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
            agent_pid: Some(pid),
            agent_start: start_time(pid),
            listener: listener.map(|key| (key.netns_cookie, key.port)),
            own_netns: plan.facts.own_netns,
        }
    }

    fn refuse_below(&self, reached: &Reached) -> Result<(), Error> {
        match self.require {
            Some(wanted) if reached.level.is_none_or(|level| level < wanted) => Err(Error::Require {
                wanted,
                reached: reached.text.clone(),
                missing: reached.missing.join("; "),
            }),
            _ => Ok(()),
        }
    }
}

pub(super) fn rule_lines(image: &Image) -> Vec<RuleLine> {
    let text = |text: &RuleText| text.origins().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let rules = image.rules.iter();
    rules.map(|(reference, (_, lines))| RuleLine { index: reference.index, tag: reference.tag, text: text(lines) }).collect()
}

/// What is known before anything is made.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) netns: Arc<Netns>,
    pub(super) facts: Facts,
    pub(super) limits: Limits,
    capacity: Capacity,
    found: Found,
    servers: Vec<SocketAddr>,
    pub(super) listens: bool,
}

/// Whether the policy needs somebody who answers DNS, and whom that one asks.
fn resolvers(policy: &Policy) -> Result<(bool, Vec<SocketAddr>), Error> {
    let listens = !policy.allow.names.is_empty() || policy.mode == Mode::Observe;
    let servers = match (&policy.dns.servers, listens) {
        (servers, true) if servers.is_empty() => dns::host_servers()?,
        (servers, _) => servers.clone(),
    };
    Ok((listens, servers))
}

/// Addresses that no name opens.
fn protected(servers: &[SocketAddr], own_netns: bool, own_addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let hosts = own_addresses.iter().copied().filter(|_| !own_netns);
    servers.iter().map(SocketAddr::ip).chain(hosts).collect()
}

impl Plan {
    fn new(builder: &Builder, cgroup: &Cgroup) -> Result<Self, Error> {
        let policy = &builder.policy;
        let here = Netns::current()?;
        let netns = match &builder.netns {
            Some(name) if name.components().count() == 1 && !name.has_root() => Netns::from_name(&name.to_string_lossy())?,
            Some(path) => Netns::from_path(path)?,
            None => match cgroup.procs()?.first().and_then(|pid| i32::try_from(*pid).ok()) {
                Some(pid) => Netns::from_pid(nix::unistd::Pid::from_raw(pid))?,
                None => here.try_clone()?,
            },
        };
        let own_netns = !netns.same_as(&here);
        let mut found = if own_netns { device::find(&netns)? } else { Found::default() };
        if let Some(name) = &builder.device {
            let named = device::by_name(name)?;
            if !found.devices.iter().any(|device| device.ifindex == named.ifindex) {
                found.devices.push(named);
            }
        }
        let (listens, servers) = resolvers(policy)?;
        let own_addresses = addresses::list(&netns)?;
        let facts = Facts {
            own_netns,
            netns_cookie: netns.cookie()?,
            protected: protected(&servers, own_netns, &own_addresses),
            own_addresses,
            listener_port: 0,
            raw_sockets: builder.raw_sockets,
        };
        // Compiled once without effect: what cannot be enforced is refused before anything is made, and the maps are made
        // as large as this policy and a later one of its kind need.
        let image = compile(policy, &facts, super::SLOT, &mut RuleIds::new(u32::MAX), super::MOST)?;
        let (limits, capacity) = sizes(&image);
        Ok(Self { name: name(policy, cgroup), netns: Arc::new(netns), facts, limits, capacity, found, servers, listens })
    }

    /// The same place under another policy.
    pub(super) fn with(&self, policy: &Policy) -> Result<Self, Error> {
        let (listens, servers) = resolvers(policy)?;
        let protected = protected(&servers, self.facts.own_netns, &self.facts.own_addresses);
        Ok(Self { facts: Facts { protected, ..self.facts.clone() }, servers, listens, ..self.clone() })
    }

    fn open_listeners(&self) -> Result<Option<Listeners>, Error> {
        if !self.listens {
            return Ok(None);
        }
        Ok(Some(self.netns.open_listeners(listeners::PORTS)?))
    }

    pub(super) fn dns_config(&self, policy: &Policy, generation: u64) -> dns::Config {
        dns::Config {
            names: Arc::new(Table(NameTable::new(policy))),
            generation,
            servers: self.servers.clone(),
            answers: match &policy.dns.answers {
                Answers::Public => dns::Answers::Public,
                Answers::Any => dns::Answers::Any,
                Answers::Nets(nets) => dns::Answers::Networks(nets.clone()),
            },
            protected: self.facts.protected.iter().copied().collect(),
            permit_min: policy.dns.permit_min,
            permit_max: policy.dns.permit_max,
            grace: policy.dns.grace,
            queries_per_second: policy.dns.queries_per_second,
            observe: policy.mode == Mode::Observe,
        }
    }

    /// Keeps the map of own addresses as the namespace has them. The host's own are never open, so nobody follows them.
    fn follow_addresses(&self, tables: &Arc<Tables>) -> Result<Option<addresses::Watch>, Error> {
        if !self.facts.own_netns {
            return Ok(None);
        }
        let tables = Arc::clone(tables);
        let mut known: BTreeSet<Addr> = self.facts.own_addresses.iter().map(|ip| Addr::from(*ip).routed()).collect();
        let changed = move |now: Result<BTreeSet<IpAddr>, _>| {
            let now: BTreeSet<Addr> = match now {
                Ok(now) => now.into_iter().map(|ip| Addr::from(ip).routed()).collect(),
                Err(error) => {
                    tracing::error!(%error, "own addresses are no longer followed; new ones stay closed");
                    return;
                }
            };
            let gone = known.difference(&now).map(|addr| tables.remove_own(super::SLOT, *addr));
            let new = now.difference(&known).map(|addr| tables.set_own(super::SLOT, *addr));
            for result in gone.chain(new) {
                if let Err(error) = result {
                    tracing::error!(%error, "an own address could not be followed");
                }
            }
            known = now;
        };
        Ok(Some(addresses::Watch::start(&self.netns, changed)?))
    }

    pub(super) fn level(&self, privileged: bool) -> Reached {
        let mut missing = Vec::new();
        if privileged && !self.facts.own_netns {
            missing.push("its processes run as uid 0 in the host's namespaces: run them as another user".to_owned());
            return Reached { level: None, text: "none".to_owned(), missing };
        }
        for uncovered in &self.found.uncovered {
            missing.push(format!("for L2: device {} ({}) leads past the enforced ones", uncovered.name, uncovered.kind));
        }
        if self.found.devices.is_empty() {
            missing.push("for L2: a network namespace of its own with a veth whose host side is in egressd's".to_owned());
        }
        let level = if missing.is_empty() { Level::L2 } else { Level::L1 };
        Reached { level: Some(level), text: level.to_string(), missing }
    }
}

/// Asks the sandbox's own listener for `localhost`, which it answers by itself: nothing is started before it answers.
fn answers(netns: &Netns, port: u16) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(2);
    // RFC 1035, 4.1: id, recursion desired, one question; then the name, type A, class IN.
    const QUERY: &[u8] = b"\xe9\x53\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";
    let ask = || -> io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(QUERY)?;
        let mut answer = [0; 512];
        socket.recv(&mut answer).map(drop)
    };
    netns.enter(ask)?.map_err(|source| Error::SilentAgent { waited: PATIENCE, source })
}

/// Room for this image, and for another of twice its size beside it while a reload is applied. A hash map without entries costs
/// 16 bytes for each that fits, so no map is made for more.
fn sizes(image: &Image) -> (Limits, Capacity) {
    let twice = |len: usize, least: usize| (len * 2).max(least);
    let limits = Limits {
        rules: twice(image.rules.len(), 64).min(super::MOST.rules),
        networks: twice(image.networks.len(), 128).min(super::MOST.networks),
        permits: twice(image.permits.len(), 128).min(super::MOST.permits),
    };
    let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let capacity = Capacity {
        sandboxes: 1,
        rules: entries(limits.rules * 2),
        networks: entries(limits.networks * 2),
        permits: entries(limits.permits + LEARNED_AT_MOST),
    };
    (limits, capacity)
}

/// Unique on the host: policy names may repeat, a cgroup's inode does not.
fn name(policy: &Policy, cgroup: &Cgroup) -> String {
    const LONGEST: usize = 40;
    let plain = |byte: char| if byte.is_ascii_alphanumeric() || byte == '-' { byte } else { '_' };
    let base: String = policy.name.as_deref().unwrap_or("sandbox").chars().take(LONGEST).map(plain).collect();
    format!("{base}-{}", cgroup.id())
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
    let ended = ended.map_err(Error::file(&directories.pin, "remove")).and_then(|()| Ok(root.release(&turn).map(drop)?));
    if let Err(error) = ended.and_then(|()| Ok(turn.remove()?)) {
        tracing::warn!(%error, "something of the last sandbox is left in the state or pin directory");
    }
}

/// Pins in a mount namespace that ends with its processes would end with them.
pub(super) fn refuse_transient_mounts() -> Result<(), Error> {
    if bpffs::is_init_mount_namespace()? { Ok(()) } else { Err(Error::TransientMounts) }
}
