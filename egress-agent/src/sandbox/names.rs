//! The name service of a sandbox: from an open port to somebody who answers there.

use super::{
    claim::Claim,
    error::Error,
    live::Sandbox,
    plan::{Plan, answers},
    reporter::{DnsInbox, Scene},
};
use crate::{
    datapath::{
        listeners::{self, ListenError, Listeners},
        tables::Tables,
    },
    dns,
    policy::{Policy, PreResolve, Reach},
};
use egress_common::verdict::ListenerKey;
use std::{ops::RangeInclusive, sync::Arc};

/// Sockets that nobody reads yet, on a port that is the sandbox's.
pub(super) struct Listening {
    sockets: Listeners,
    claim: Claim,
}

/// Somebody answers. The claim is to be kept once the sandbox's queries are sent there.
pub(super) struct Serving {
    server: Arc<dns::Server>,
    claim: Claim,
}

impl Serving {
    pub(super) fn keep(self) -> Arc<dns::Server> {
        self.claim.keep();
        self.server
    }
}

impl Listening {
    /// On a port that no sandbox has.
    pub(super) fn open(plan: &Plan, tables: &Arc<Tables>, nonce: u64) -> Result<Self, Error> {
        let (sockets, key) = open(plan, listeners::PORTS)?;
        Ok(Self { sockets, claim: Claim::new(tables, key, nonce)? })
    }

    /// On the port of an owner that is gone, which stayed the sandbox's; on another where somebody else has it by now.
    pub(super) fn reopen(plan: &Plan, port: u16, tables: &Arc<Tables>, nonce: u64) -> Result<Self, Error> {
        match open(plan, port..=port) {
            Ok((sockets, key)) => Ok(Self { sockets, claim: Claim::again(tables, key, nonce)? }),
            Err(ListenError::NoPort { .. }) => Self::open(plan, tables, nonce),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.sockets.port
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
        let port = self.port();
        if std::env::var("EGRESSD_FAULT").is_ok_and(|fault| fault == "agent_silent") {
            answers(&plan.netns, port)?;
        }
        let sockets = dns::Listeners { udp: self.sockets.udp, tcp: self.sockets.tcp };
        let permits: Arc<dyn dns::Permits> = Arc::clone(&scene.permits) as _;
        let clients: Arc<dyn dns::Clients> = Arc::clone(scene) as _;
        let config = plan.dns_config(policy, generation);
        let server = Arc::new(dns::Server::start(sockets, config, permits, clients, Arc::clone(inbox) as _)?);
        scene.watch(&server);
        answers(&plan.netns, port)?;
        Ok(Serving { server, claim: self.claim })
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
