//! What is to be known of a sandbox from outside, by whoever puts it to the test.

use super::{
    Directories,
    error::Error,
    level::{foreign, packet_maker},
    looked::judge,
    plan::find_netns,
    record::Record,
    status,
    target::{Opened, Which},
};
use crate::{
    cgroup::Cgroup,
    datapath::{
        detach::target,
        foreign::is_judged,
        netns::Netns,
        tables::Tables,
        tc::{self, Held},
    },
    level::Reached,
    policy::{AddressRule, Policy},
};
use egress_common::{
    addr::{Addr, Class},
    destination::{DNS_PORT, Protocols},
    packet::protocol,
    question::Path as Route,
    verdict::Reason,
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

/// One sandbox, as its record and the kernel have it.
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) cgroup: Cgroup,
    pub(crate) policy: Policy,
    pub(crate) level: Reached,
    /// Hooks that should be there and are not, and what else keeps the policy from being in force.
    pub(crate) lost: Vec<String>,
    /// Sockets that were made elsewhere are judged by hooks of its own.
    pub(crate) judges_foreign: bool,
    /// And so is who makes a packet socket: in a network namespace of its own, a device judges frames.
    pub(crate) judges_families: bool,
    /// Sockets that its processes hold and no hook sees: how many, and one of them.
    pub(crate) foreign: Option<(usize, String)>,
    /// One of its processes that may make packet sockets where egressd is.
    pub(crate) packet_maker: Option<u32>,
    /// Addresses with a permit, or its own: no documentation addresses to aim at.
    pub(crate) taken: Vec<IpAddr>,
    /// What its devices may send from.
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) devices: Vec<DeviceView>,
    /// Where the devices are.
    pub(crate) host: Option<Netns>,
    /// Where its DNS listener stands, as far as that can be found; none where nobody answers.
    pub(crate) listener: Option<(Result<Netns, Error>, u16)>,
    slot: u32,
    tables: Tables,
}

/// The program that judges what leaves by a device.
pub(crate) struct DeviceView {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    /// Its id; none where there is none any more.
    pub(crate) program: Option<u32>,
    /// Other sandboxes have programs there too, and none decides alone.
    pub(crate) shared: bool,
}

/// Looks at the sandbox of a cgroup, or at the only one that there is.
pub(crate) fn view(directories: &Directories, cgroup: Option<&Path>) -> Result<View, Error> {
    let record = Record::of(directories, cgroup.map(Which::from).as_ref())?;
    let status = status::list(directories)?.into_iter().find(|status| status.sandbox == record.name);
    let status = status.ok_or_else(|| Error::NotAttached { which: record.target.which() })?;
    let (pins, tables) = record.open_maps(directories)?;
    let Some(Opened::Cgroup(cgroup)) = Opened::again(&record.target)? else {
        return Err(Error::VerifyGuest { name: record.name });
    };
    let sandbox = tables.sandbox(record.slot)?;
    let port = u16::try_from(sandbox.listener_port).unwrap_or_default();
    let answers = record.agent().is_some() && port != 0;
    let listener = answers.then(|| (find_netns(&record, Some(&cgroup), sandbox.netns_cookie), port));
    let host = if record.devices.is_empty() { None } else { Some(record.find_host_netns()?) };
    let mut devices = Vec::new();
    for line in &record.devices {
        let program = match (line.held, &host) {
            (Held::Tcx, _) => {
                let [(hook, _), _] = tc::DEVICE_HOOKS;
                target(&pins.join("links").join(tc::name(hook, line.ifindex)))?.map(|target| target.program)
            }
            (Held::Clsact, Some(host)) => host.enter(|| tc::filter_program(line.ifindex, record.nonce))??,
            (Held::Clsact, None) => None,
        };
        let shared = tables.device(line.ifindex)?.is_some_and(|on| on.mark != 0);
        devices.push(DeviceView { name: line.name.clone(), ifindex: line.ifindex, program, shared });
    }
    let hooks = status.hooks.iter().filter(|hook| !hook.attached).map(|hook| format!("{} is not attached", hook.hook));
    let mut lost: Vec<_> = hooks.collect();
    if !status.in_force && lost.is_empty() {
        lost.push("a hook, the cgroup or the sandbox's place in the maps is gone".to_owned());
    }
    let permits = tables.permits(record.slot)?.into_iter().map(|(key, _)| key.addr);
    let taken = permits.chain(tables.own(record.slot)?).map(Addr::to_ip).collect();
    let attached = status.hooks.iter().filter(|hook| hook.attached).map(|hook| hook.hook.as_str());
    let judges_foreign = is_judged(attached);
    let judges_families = judges_foreign && !record.own_netns;
    let found = foreign(&cgroup, judges_foreign)?;
    Ok(View {
        foreign: found.first().map(|first| (found.len(), format!("{} of process {}", first.kind, first.pid))),
        policy: Policy::from_toml(&record.policy)?,
        level: status.level,
        lost,
        judges_foreign,
        judges_families,
        packet_maker: if judges_families { None } else { packet_maker(&cgroup)? },
        taken,
        sources: tables.sources(record.slot)?.into_iter().map(|key| key.addr.to_ip()).collect(),
        devices,
        host,
        listener,
        slot: record.slot,
        name: record.name,
        cgroup,
        tables,
    })
}

impl View {
    fn rules(&self) -> impl Iterator<Item = &AddressRule> {
        let allow = &self.policy.allow;
        allow.addresses.iter().chain(&allow.gateway).chain(&allow.proxy)
    }

    /// True where some line of the policy permits the address, at whatever port.
    pub(crate) fn names(&self, ip: IpAddr) -> bool {
        self.rules().any(|rule| rule.net.contains(&ip))
    }

    /// An address that is none of `own`, that the policy's text names and the kernel's maps permit, and whether by UDP. Names
    /// are left out: nothing is asked for.
    pub(crate) fn permitted(&self, own: &[IpAddr]) -> Result<Option<(SocketAddr, bool)>, Error> {
        const ANY: u16 = 443;
        /// Where a network begins with addresses that mean something else.
        const DOCUMENTATION: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
        for rule in self.rules() {
            let mut hosts = rule.net.hosts().take(2).chain([DOCUMENTATION]).filter(|ip| rule.net.contains(ip));
            let plain = |ip: &IpAddr| Addr::from(*ip).routed().class() == Class::Global && !own.contains(ip);
            let Some(ip) = hosts.find(plain) else { continue };
            for range in rule.ports.ranges() {
                let port = if range.first <= ANY && ANY <= range.last { ANY } else { range.first };
                for (set, number) in [(Protocols::UDP, protocol::UDP), (Protocols::TCP, protocol::TCP)] {
                    let asked = range.protocols.contains(set) && port != DNS_PORT;
                    if asked
                        && judge(&self.tables, self.slot, Route::Socket, ip.into(), port, number)?
                            .0
                            .is(Reason::Permitted)
                    {
                        return Ok(Some((SocketAddr::new(ip, port), number == protocol::UDP)));
                    }
                }
            }
        }
        Ok(None)
    }
}
