//! What the egress program costs by itself.

use crate::cargo;
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::process::Command;

/// What `tests/examples/costs.rs` prints.
#[derive(Deserialize)]
pub(super) struct Costs {
    pub(super) program_ns: f64,
    /// With a limit that nothing reaches.
    pub(super) limited_ns: f64,
    /// Of an empty program.
    pub(super) empty_ns: f64,
    /// Of what two CPUs sent at once, what the meter does not have.
    pub(super) lost_bytes: f64,
}

/// In a process of its own: this one must not need the kernel half, which `setup` makes buildable.
pub(super) fn measure(rounds: usize) -> Result<Costs> {
    let object = cargo::build_object(&["--release"])?;
    let output = Command::new(super::example("costs")?).arg(object).arg(rounds.to_string()).output()?;
    ensure!(output.status.success(), "costs: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("costs told no figures")
}
