//! bpf-linker, which turns the kernel half's bitcode into an object.

use crate::{cargo, invoker};
use anyhow::{Context as _, Result, bail};
use std::path::Path;

/// The version that the kernel half is built and tested with.
pub(super) const VERSION: &str = "0.13.0";
/// Where binaries of it are.
pub(super) const PREBUILT: &str =
    "https://github.com/aya-rs/bpf-linker/releases/tag/v0.13.0, or: cargo binstall bpf-linker@0.13.0";
/// The LLVM of Rust 1.98, as Debian installs it.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The bpf-linker on PATH, if any.
pub(super) struct Found {
    version: Option<String>,
}

pub(super) fn found() -> Result<Found> {
    // Missing altogether is an answer too, so the error of spawning is not passed on.
    let Ok(output) = invoker::command_as_caller("bpf-linker")?.arg("--version").output() else {
        return Ok(Found { version: None });
    };
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(Found { version: text.split_whitespace().nth(1).map(str::to_owned) })
}

impl Found {
    pub(super) fn is_right(&self) -> bool {
        self.version.as_deref() == Some(VERSION)
    }

    pub(super) fn install(&self) -> Result<()> {
        let now = self.version.as_ref().map_or("none is on PATH".to_owned(), |version| format!("{version} is on PATH"));
        if !Path::new(LLVM_PREFIX).exists() {
            bail!("bpf-linker {VERSION} is needed ({now}): {PREBUILT}");
        }
        println!("setup: building bpf-linker {VERSION} against {LLVM_PREFIX} ({now}); a few minutes, once");
        let mut install = cargo::command(&["install", "--quiet", "--locked", "bpf-linker", "--version", VERSION])?;
        install.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", LLVM_PREFIX);
        let status = install.status().context("cannot run cargo install")?;
        if !status.success() {
            bail!("{} failed; prebuilt: {PREBUILT}", cargo::readable(&install));
        }
        Ok(())
    }
}
