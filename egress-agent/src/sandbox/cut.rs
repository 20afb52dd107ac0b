//! `established = "cut"`: what a new policy does not allow any more is denied, packet by packet; here its owner hears of it at
//! once, instead of waiting for answers that no packet brings.

use super::{error::Error, looked::judge};
use crate::{
    cgroup::{Cgroup, CgroupMount},
    datapath::{
        netns::Netns,
        sock_diag::{self, InetSocket, Protocol},
        tables::{TableError, Tables},
    },
};
use egress_common::{
    packet::{FlowKey, protocol},
    question::Path,
    sandbox::flags,
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

/// The TCP connections of a sandbox before its policy changes.
pub(super) struct Connections {
    /// By socket cookie, whether the maps speak for it. What outlived its permit has nobody who does, and lives on by its
    /// socket's own storage, which only the kernel sees.
    spoken_for: BTreeMap<u64, bool>,
}

/// Where connections are looked for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) tables: &'a Tables,
    pub(super) slot: u32,
    pub(super) netns: &'a Netns,
    pub(super) cgroup: &'a std::path::Path,
}

impl Connections {
    pub(super) fn before(place: Place<'_>) -> Result<Self, Error> {
        let sockets = place.sockets()?.into_iter();
        let spoken_for = sockets.map(|socket| Ok((socket.cookie, place.may_go_on(&socket)?)));
        Ok(Self { spoken_for: spoken_for.collect::<Result<_, TableError>>()? })
    }

    /// Ends those that the policy in force does not allow. Returns how many.
    pub(super) fn cut(self, place: Place<'_>) -> Result<usize, Error> {
        if place.tables.sandbox(place.slot)?.flags & flags::OBSERVE != 0 {
            return Ok(0);
        }
        let mut ended = 0;
        for socket in place.sockets()? {
            // One that came meanwhile was opened under either policy, and outlived nothing yet.
            let spoken_for = self.spoken_for.get(&socket.cookie).copied().unwrap_or(true);
            if !spoken_for || place.may_go_on(&socket)? {
                continue;
            }
            match sock_diag::destroy(place.netns, &socket) {
                Ok(gone) => ended += usize::from(gone),
                Err(error) if error.refusal() == Some(libc::EOPNOTSUPP) => {
                    say_once();
                    return Ok(ended);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ended)
    }
}

impl Place<'_> {
    /// TCP sockets of the cgroup, and of those below it, that have a peer.
    fn sockets(self) -> Result<Vec<InetSocket>, Error> {
        let cgroups = Cgroup::open(&CgroupMount::find()?, self.cgroup)?.ids()?;
        let mut sockets = sock_diag::list(self.netns, &[Protocol::Tcp])?;
        sockets.retain(|socket| socket.remote.is_some() && socket.cgroup.is_some_and(|id| cgroups.contains(&id)));
        Ok(sockets)
    }

    /// True where the maps let the connection's packets pass, or let it outlive its permit.
    fn may_go_on(self, socket: &InetSocket) -> Result<bool, TableError> {
        let Some(remote) = socket.remote else { return Ok(true) };
        let (verdict, _) =
            judge(self.tables, self.slot, Path::Socket, remote.ip().into(), remote.port(), protocol::TCP)?;
        if verdict.allows() || verdict.is_expired() {
            return Ok(true);
        }
        let flow = FlowKey {
            slot: self.slot,
            local: socket.local.ip().into(),
            remote: remote.ip().into(),
            local_port: socket.local.port(),
            remote_port: remote.port(),
            protocol: protocol::TCP.into(),
        };
        // Replies to a peer that may come in, or to one's own client on loopback.
        match self.tables.flow(&flow)? {
            Some(state) if verdict.is_miss() || remote.ip().to_canonical().is_loopback() => {
                Ok(self.tables.rule(state.rule)?.is_some())
            }
            _ => Ok(false),
        }
    }
}

fn say_once() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "this kernel cannot end the sockets of others (CONFIG_INET_DIAG_DESTROY): connections that a new policy does not allow are denied, and their owners notice by a timeout"
        );
    }
}
