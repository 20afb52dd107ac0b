//! The name service of a sandbox: from an open port to somebody who answers there.

use super::{
    claim::Claim,
    devices::Devices,
    error::Error,
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
    policy::Policy,
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

fn open(plan: &Plan, ports: RangeInclusive<u16>) -> Result<(Listeners, ListenerKey), ListenError> {
    let sockets = plan.netns.open_listeners(ports)?;
    let key = ListenerKey { netns_cookie: plan.facts.netns_cookie, port: sockets.port.into(), reserved: 0 };
    Ok((sockets, key))
}
