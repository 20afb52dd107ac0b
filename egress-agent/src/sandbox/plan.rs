//! What is known of a sandbox before anything is made for it.

use super::{
    builder::Builder,
    error::Error,
    permits::Table,
    record::Record,
    room,
    target::{Guest, Opened},
};
use crate::{
    cgroup::Cgroup,
    compile::{Facts, Limits, RuleIds, compile},
    datapath::{
        addresses,
        device::{self, Found},
        load::Capacity,
        netns::Netns,
        tables::Tables,
    },
    dns,
    level::{Level, Reached},
    policy::{Answers, Cnames, Mode, NameTable, Policy, Server, Services},
};
use egress_common::{
    addr::Addr,
    sandbox::{self, flags},
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What is known before anything is made.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) netns: Arc<Netns>,
    /// Addresses of the guest, where there is one and no cgroup.
    pub(super) guest: Option<BTreeSet<IpAddr>>,
    /// Cookie of egressd's own.
    pub(super) host_netns: u64,
    pub(super) facts: Facts,
    pub(super) limits: Limits,
    pub(super) capacity: Capacity,
    pub(super) found: Found,
    pub(super) servers: Vec<Server>,
    pub(super) listens: bool,
    /// Sockets that were made elsewhere are judged, by hooks that the kernel need not have.
    pub(super) judges_foreign: bool,
}

/// Whether the policy needs somebody who answers DNS, and whom that one asks.
fn resolvers(policy: &Policy) -> Result<(bool, Vec<Server>), Error> {
    let listens = !policy.allow.names.is_empty() || policy.mode == Mode::Observe;
    let servers = match (&policy.dns.servers, listens) {
        (servers, true) if servers.is_empty() => dns::host_servers()?.into_iter().map(Server::from).collect(),
        (servers, _) => servers.clone(),
    };
    Ok((listens, servers))
}

/// Addresses that no name opens.
fn protected(servers: &[Server], own_netns: bool, own_addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let hosts = own_addresses.iter().copied().filter(|_| !own_netns);
    servers.iter().map(|server| server.address.ip()).chain(hosts).collect()
}

impl Plan {
    pub(super) fn new(builder: &Builder, on: &Opened) -> Result<Self, Error> {
        let policy = &builder.policy;
        let here = Netns::current()?;
        let (netns, found) = match on {
            Opened::Cgroup(cgroup) => place_of(builder, cgroup, &here)?,
            Opened::Guest(guest) => {
                Guest::refuse(policy)?;
                (here.try_clone()?, Found { devices: vec![guest.device.clone()], uncovered: Vec::new() })
            }
        };
        let guest = on.guest().map(|guest| guest.addresses.clone());
        // What a guest has is its own: a network of the policy around an address of the host means that one too.
        let elsewhere = !netns.same_as(&here);
        let own_netns = guest.is_some() || elsewhere;
        let (listens, servers) = resolvers(policy)?;
        let own_addresses = guest.clone().map_or_else(|| addresses::list(&netns), Ok)?;
        let host_netns = here.cookie()?;
        let facts = Facts {
            own_netns,
            netns_cookie: if elsewhere { netns.cookie()? } else { host_netns },
            protected: protected(&servers, own_netns, &own_addresses),
            own_addresses,
            listener_port: 0,
            raw_sockets: builder.raw_sockets,
        };
        // Compiled once without effect: what cannot be enforced is refused before anything is made, and the maps are made
        // as large as this policy and a later one of its kind need.
        let image = compile(policy, &facts, super::NOBODY, &mut RuleIds::new(0..u32::MAX), super::MOST)?;
        let capacity = room::for_image(&image);
        let limits = room::limits(capacity);
        Ok(Self {
            name: name(policy, &on.number(&here)?),
            netns: Arc::new(netns),
            guest,
            host_netns,
            facts,
            limits,
            capacity,
            found,
            servers,
            listens,
            judges_foreign: false,
        })
    }

    /// The place of a sandbox that another process attached: what the kernel holds of it, and the host as it is now.
    pub(super) fn resumed(
        record: &Record,
        on: &Opened,
        policy: &Policy,
        sandbox: &sandbox::Sandbox,
        capacity: Capacity,
    ) -> Result<Self, Error> {
        let netns = find_netns(record, on.cgroup(), sandbox.netns_cookie)?;
        let own_netns = sandbox.flags & flags::OWN_NETNS != 0;
        let guest = on.guest().map(|guest| guest.addresses.clone());
        let (listens, servers) = resolvers(policy)?;
        let own_addresses = guest.clone().map_or_else(|| addresses::list(&netns), Ok)?;
        let facts = Facts {
            own_netns,
            netns_cookie: sandbox.netns_cookie,
            protected: protected(&servers, own_netns, &own_addresses),
            own_addresses,
            listener_port: 0,
            raw_sockets: sandbox.flags & flags::RAW_SOCKETS != 0,
        };
        Ok(Self {
            name: record.name.clone(),
            found: match on {
                Opened::Guest(guest) => Found { devices: vec![guest.device.clone()], uncovered: Vec::new() },
                Opened::Cgroup(_) if own_netns => device::find(&netns)?,
                Opened::Cgroup(_) => Found::default(),
            },
            netns: Arc::new(netns),
            guest,
            host_netns: record.host_netns,
            facts,
            limits: room::limits(capacity),
            capacity,
            servers,
            listens,
            judges_foreign: false,
        })
    }

    /// The same with the room that it got.
    pub(super) fn in_room(self, capacity: Capacity) -> Self {
        Self { capacity, limits: room::limits(capacity), ..self }
    }

    /// The same place under another policy.
    pub(super) fn with(&self, policy: &Policy) -> Result<Self, Error> {
        if self.guest.is_some() {
            Guest::refuse(policy)?;
        }
        let (listens, servers) = resolvers(policy)?;
        let protected = protected(&servers, self.facts.own_netns, &self.facts.own_addresses);
        Ok(Self { facts: Facts { protected, ..self.facts.clone() }, servers, listens, ..self.clone() })
    }

    /// True for a sandbox with a network namespace that egressd can look into.
    pub(super) fn has_namespace(&self) -> bool {
        self.facts.own_netns && self.guest.is_none()
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
            keep_chains: policy.dns.cname == Cnames::Keep,
            services: policy.dns.svcb == Services::Sanitised,
            observe: policy.mode == Mode::Observe,
        }
    }

    /// Keeps the map of own addresses as the namespace has them. The host's own are never open, so nobody follows them.
    pub(super) fn follow_addresses(&self, tables: &Arc<Tables>, slot: u32) -> Result<Option<addresses::Watch>, Error> {
        if !self.has_namespace() {
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
            let gone = known.difference(&now).map(|addr| tables.remove_own(slot, *addr));
            let new = now.difference(&known).map(|addr| tables.set_own(slot, *addr));
            for result in gone.chain(new) {
                if let Err(error) = result {
                    tracing::error!(%error, "an own address could not be followed");
                }
            }
            known = now;
        };
        Ok(Some(addresses::Watch::start(&self.netns, changed)?))
    }

    pub(super) fn level(&self, privileged: bool, found: &Found) -> Reached {
        let mut missing = Vec::new();
        if self.guest.is_some() {
            return Reached { level: Some(Level::L3), text: Level::L3.to_string(), missing };
        }
        if privileged && !self.facts.own_netns {
            missing.push("its processes run as uid 0 in the host's namespaces: run them as another user".to_owned());
            return Reached { level: None, text: "none".to_owned(), missing };
        }
        for uncovered in &found.uncovered {
            missing
                .push(format!("for L2: device {} ({}) leads past the enforced ones", uncovered.name, uncovered.kind));
        }
        if found.devices.is_empty() {
            missing
                .push("for L2: a network namespace of its own with a veth whose host side is in egressd's".to_owned());
        }
        let level = if missing.is_empty() { Level::L2 } else { Level::L1 };
        if level == Level::L1 && !self.judges_foreign {
            missing.push(
                "sockets passed in from outside are not judged: that takes lsm_cgroup, see egressd doctor".to_owned(),
            );
        }
        Reached { level: Some(level), text: level.to_string(), missing }
    }
}

/// Asks the sandbox's own listener for `localhost`, which it answers by itself: nothing is started before it answers.
pub(super) fn answers(netns: &Netns, port: u16) -> Result<(), Error> {
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

/// A name of `ip netns`, or a path.
pub(super) fn open_netns(name_or_path: &Path) -> Result<Netns, Error> {
    Ok(match netns_path(name_or_path) {
        None => Netns::from_name(&name_or_path.to_string_lossy())?,
        Some(path) => Netns::from_path(path)?,
    })
}

fn netns_path(name_or_path: &Path) -> Option<&Path> {
    (name_or_path.components().count() > 1 || name_or_path.has_root()).then_some(name_or_path)
}

/// What names the namespace from any directory.
pub(super) fn lasting(name_or_path: &Path) -> PathBuf {
    let path = netns_path(name_or_path).and_then(|path| std::path::absolute(path).ok());
    path.unwrap_or_else(|| name_or_path.to_owned())
}

/// The namespace with this cookie. A path may lead to another one by now, and a process may have moved.
pub(super) fn find_netns(record: &Record, cgroup: Option<&Cgroup>, cookie: u64) -> Result<Netns, Error> {
    let named = record.netns.iter().map(|path| open_netns(path));
    let here = std::iter::once_with(|| Ok(Netns::current()?));
    let pids = cgroup.map_or(Ok(Vec::new()), Cgroup::procs)?.into_iter().filter_map(|pid| i32::try_from(pid).ok());
    let inside = pids.map(|pid| Ok(Netns::from_pid(nix::unistd::Pid::from_raw(pid))?));
    let found = named.chain(here).chain(inside).filter_map(Result::ok);
    for netns in found {
        if netns.cookie().is_ok_and(|its| its == cookie) {
            return Ok(netns);
        }
    }
    Err(Error::NetnsLost { name: record.name.clone() })
}

/// The network namespace of a cgroup's processes, and the devices that lead out of it.
fn place_of(builder: &Builder, cgroup: &Cgroup, here: &Netns) -> Result<(Netns, Found), Error> {
    let netns = match &builder.netns {
        Some(path) => open_netns(path)?,
        None => match cgroup.procs()?.first().and_then(|pid| i32::try_from(*pid).ok()) {
            Some(pid) => Netns::from_pid(nix::unistd::Pid::from_raw(pid))?,
            None => here.try_clone()?,
        },
    };
    let mut found = if netns.same_as(here) { Found::default() } else { device::find(&netns)? };
    if let Some(name) = &builder.device {
        let named = device::by_name(name)?;
        if !found.devices.iter().any(|device| device.ifindex == named.ifindex) {
            found.devices.push(named);
        }
    }
    Ok((netns, found))
}

/// `number` is [`Opened::number`].
fn name(policy: &Policy, number: &str) -> String {
    const LONGEST: usize = 40;
    let plain = |byte: char| if byte.is_ascii_alphanumeric() || byte == '-' { byte } else { '_' };
    let base: String = policy.name.as_deref().unwrap_or("sandbox").chars().take(LONGEST).map(plain).collect();
    format!("{base}-{number}")
}
