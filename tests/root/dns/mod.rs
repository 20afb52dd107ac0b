//! Names as real clients ask for them: the layers C and K of the DNS half's cases, and the acceptance tests on names.

mod acceptance;
mod channel;
mod clients;
mod encrypted;
mod forwarders;
mod full;
mod lifecycle;
mod matching;
mod matrix;
mod race;
mod transports;

use lab::{Lab, Launch};
use serde_json::Value;

/// Starts egressd where /etc/resolv.conf says `text`, in a mount namespace of its own: the file of the host stays as it is.
fn resolving<'l>(lab: &'l Lab, launch: Launch<'l>, text: &str) -> Launch<'l> {
    let file = lab.file("resolv.conf", text);
    let mount = format!("mount --bind {} /etc/resolv.conf; exec \"$0\" \"$@\"", file.display());
    launch.through(&["unshare", "-m", "sh", "-c", &mount])
}

/// Every event that the lab's egressd wrote.
fn events(lab: &Lab) -> Vec<Value> {
    let told = lab.egressd("events").flags("--json").output();
    told.exits(0).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
