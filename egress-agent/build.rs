//! Builds the kernel half with the toolchain that is building us, so that plain `cargo build` needs no environment.

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The nested build compiles `core` for the BPF target, which stable refuses without this.
const RUSTC_BOOTSTRAP: &str = "RUSTC_BOOTSTRAP";
const CHANNEL: &str = "1.98.0";

fn main() -> Result<()> {
    revision();
    let ebpf = concat!(env!("CARGO_MANIFEST_DIR"), "/../egress-ebpf");
    // aya-build watches the kernel half alone: without these lines an edit of the shared ABI would leave a stale object.
    println!("cargo::rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../egress-common/src"));
    println!("cargo::rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"));
    // SAFETY: a build script's main has no other thread.
    unsafe { std::env::set_var(RUSTC_BOOTSTRAP, "1") };
    aya_build::build_ebpf(
        [Package { name: "egress-ebpf", root_dir: ebpf, ..Package::default() }],
        Toolchain::Custom(CHANNEL),
    )?;
    // AYA_BUILD_SKIP (clippy and rustdoc need no object) leaves no file, and include_bytes! would not compile.
    let object = std::path::PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("egress");
    if !object.exists() {
        std::fs::write(&object, []).with_context(|| format!("cannot write the stub {}", object.display()))?;
    }
    Ok(())
}

/// Git revision and whether the tree had changes, for `egressd version` and the first line of the log.
fn revision() {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"]);
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    println!("cargo::rustc-env=EGRESSD_REVISION={}", head.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=EGRESSD_DIRTY={dirty}");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}
