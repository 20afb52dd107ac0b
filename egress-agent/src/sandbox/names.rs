//! The name service of a sandbox: from an open port to somebody who answers there.

use super::{
    claim::Claim,
    devices::Devices,
    error::Error,
    live::Sandbox,
    plan::{Plan, answers},
    reporter::{DnsInbox, Scene},
};
use crate::{
    datapath::{
        listeners::{self, ListenError, Listeners},
        resolver::Resolver,
        tables::Tables,
    },
    dns,
    policy::{Policy, PreResolve, Reach},
};
use egress_common::verdict::ListenerKey;
use std::{ops::RangeInclusive, sync::Arc};

/// Sockets that nobody reads yet.
pub(super) struct Listening {
    sockets: Listeners,
    way: Way,
}

/// How questions get there.
enum Way {
    /// Sent to a port that is the sandbox's, in its network namespace.
    Port(Claim),
    /// Handed to a namespace of the resolver's own, from a guest's device. None once the device leads there.
    Device(Option<Resolver>),
}

/// Somebody answers. The claim is to be kept once the sandbox's queries are sent there.
pub(super) struct Serving {
    server: Arc<dns::Server>,
    way: Way,
}

impl Serving {
    /// Has a guest's device lead there.
    pub(super) fn lead(&mut self, devices: &mut Devices) -> Result<(), Error> {
        match &mut self.way {
            Way::Device(resolver) => resolver.take().map_or(Ok(()), |resolver| devices.lead_to(resolver)),
            Way::Port(_) => Ok(()),
        }
    }

    pub(super) fn keep(self) -> Arc<dns::Server> {
        if let Way::Port(claim) = self.way {
            claim.keep();
        }
        self.server
    }
}

impl Listening {
    /// On a port that no sandbox has; where a guest asks, in a namespace of its own.
    pub(super) fn open(plan: &Plan, tables: &Arc<Tables>, nonce: u64) -> Result<Self, Error> {
        if let Some(guest) = &plan.guest {
            // Their ends of the way are where the guest's device is.
            let (resolver, sockets) = plan.netns.enter(|| Resolver::open(nonce, guest))??;
            return Ok(Self { sockets, way: Way::Device(Some(resolver)) });
        }
        let (sockets, key) = open(plan, listeners::PORTS)?;
        Ok(Self { sockets, way: Way::Port(Claim::new(tables, key, nonce)?) })
    }

    /// On the port of an owner that is gone, which stayed the sandbox's; on another where somebody else has it by now.
    pub(super) fn reopen(plan: &Plan, port: u16, tables: &Arc<Tables>, nonce: u64) -> Result<Self, Error> {
        match open(plan, port..=port) {
            Ok((sockets, key)) => Ok(Self { sockets, way: Way::Port(Claim::again(tables, key, nonce)?) }),
            Err(ListenError::NoPort { .. }) => Self::open(plan, tables, nonce),
            Err(error) => Err(error.into()),
        }
    }

    /// The port in the sandbox's network namespace; 0 where it is elsewhere.
    pub(super) fn port(&self) -> u16 {
        if let Way::Port(_) = self.way { self.sockets.port } else { 0 }
    }

    /// Starts the server; it answers when this returns.
    pub(super) fn serve(
        self,
        plan: &Plan,
        policy: &Policy,
        generation: u64,
        scene: &Arc<Scene>,
        inbox: &Arc<DnsInbox>,
    ) -> Result<Serving, Error> {
        let Self { sockets, way } = self;
        let (port, every_address) = (sockets.port, matches!(way, Way::Device(_)));
        // A listener for every address answers at that of loopback too.
        let netns = match &way {
            Way::Device(Some(resolver)) => resolver.netns.try_clone()?,
            _ => plan.netns.try_clone()?,
        };
        if std::env::var("EGRESSD_FAULT").is_ok_and(|fault| fault == "agent_silent") {
            answers(&netns, port)?;
        }
        let sockets = dns::Listeners { udp: sockets.udp, tcp: sockets.tcp, every_address };
        let permits: Arc<dyn dns::Permits> = Arc::clone(&scene.permits) as _;
        let clients: Arc<dyn dns::Clients> = Arc::clone(scene) as _;
        let config = plan.dns_config(policy, generation);
        let server = Arc::new(dns::Server::start(sockets, config, permits, clients, Arc::clone(inbox) as _)?);
        scene.watch(&server);
        answers(&netns, port)?;
        Ok(Serving { server, way })
    }
}

impl Sandbox {
    /// Asks for the names that the policy in force spells out, as far as it wants that.
    ///
    /// # Errors
    /// Names that it requires have no address.
    pub(super) fn resolve_ahead(&self) -> Result<(), Error> {
        let policy = Arc::clone(&self.scene.permits.in_force().policy);
        match (&self.server, spelled_out(&policy)) {
            (Some(server), names) if !names.is_empty() => match policy.dns.pre_resolve {
                PreResolve::Off => {}
                PreResolve::Warn => server.warm(names),
                PreResolve::Require => server.require(names)?,
            },
            _ => {}
        }
        Ok(())
    }

    /// [`Sandbox::update`] to a policy whose names are resolved as at a start: those that it requires, while the policy before
    /// is still in force.
    pub(super) fn start_over(&mut self, policy: Policy) -> Result<(), Error> {
        let names = spelled_out(&policy);
        if policy.dns.pre_resolve == PreResolve::Require && !names.is_empty() {
            let config = self.plan.with(&policy)?.dns_config(&policy, self.generation());
            let (permits, clients) = (Arc::clone(&self.scene.permits), Arc::clone(&self.scene));
            dns::rehearse(config, permits, clients, Arc::clone(&self.inbox) as _, names.clone())?;
        }
        let ahead = policy.dns.pre_resolve != PreResolve::Off && !names.is_empty();
        self.update(policy)?;
        self.server.iter().filter(|_| ahead).for_each(|server| server.warm(names.clone()));
        Ok(())
    }
}

/// Names without a wildcard, which names nothing that could be asked for.
fn spelled_out(policy: &Policy) -> Vec<dns::Name> {
    let exact = policy.allow.names.iter().filter(|rule| rule.pattern.reach() == Reach::Exact);
    exact.filter_map(|rule| rule.pattern.to_string().parse().ok()).collect()
}

fn open(plan: &Plan, ports: RangeInclusive<u16>) -> Result<(Listeners, ListenerKey), ListenError> {
    let sockets = plan.netns.open_listeners(ports)?;
    let key = ListenerKey { netns_cookie: plan.facts.netns_cookie, port: sockets.port.into(), reserved: 0 };
    Ok((sockets, key))
}
