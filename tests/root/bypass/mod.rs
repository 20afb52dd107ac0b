//! Ways out by technique, each over IPv4 and IPv6 where there are both: what is tried inside, what arrives outside, and that
//! it does arrive where nobody enforces.
//!
//! Elsewhere: `sockets` and `headers` (as an ordinary user), `escape` (drafts that were broken), `device` (devices that come and
//! go), `apart` (other sandboxes), `platform` (metadata, gateway, proxy), `dns::transports` (other resolvers, other agents).

mod descriptors;
mod frames;
mod own;
mod sockets;
mod transports;
mod unix;

use crate::job::Job;
use lab::{Lab, OK, OK6};
use std::collections::BTreeSet;

/// One port of one server over both families, and a port of it for connections.
fn allowed() -> String {
    format!("--allow {OK}:443/udp --allow [{OK6}]:443/udp --allow {OK}:80/tcp --allow [{OK6}]:80/tcp")
}

/// The ways whose payload arrived, or, for those without one, whose SYN did (`PORTS` of ways.py).
fn arrived(lab: &Lab, token: &str) -> BTreeSet<String> {
    let word = format!("{token}-");
    let name = |payload: &[u8]| {
        let text = String::from_utf8_lossy(payload);
        let (_, rest) = text.split_once(&word)?;
        rest.split_once(';').map(|(name, _)| name.to_owned())
    };
    lab.frames().iter().filter_map(|frame| name(&frame.payload)).collect()
}

/// Enforces, with the device or without.
fn enforce(job: &Job<'_>, device: bool, flags: &str) {
    let attach = job.attach(&format!("{flags} --pin"));
    let attach = if device { attach.entering(job.lab().box_ns()) } else { attach };
    attach.output().exits(0);
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
