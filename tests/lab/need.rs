//! What a test needs from the host. A check that could not look is a failure, never a silent pass.

use std::path::{Path, PathBuf};

/// Panics unless `tool` is on the search path.
#[track_caller]
pub fn need(tool: &str) {
    let found = crate::netns::PATH.split(':').any(|directory| Path::new(directory).join(tool).is_file());
    assert!(found, "{tool} is missing: run `cargo xtask setup`");
}

/// Says that a part of a test cannot be done on this kernel. Under `EGRESS_LAB_STRICT=1` that is a failure.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var_os("EGRESS_LAB_STRICT").is_none(), "skipped: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Where `cargo xtask setup` unpacks a package that must not be installed, because installing it changes the host.
pub fn unpacked(package: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/unpacked").join(package)
}

/// Says that this kernel has no such thing, where `cargo xtask vm` boots one that has: no failure here.
pub fn absent(what: &str) {
    println!("ABSENT: {what}");
}
