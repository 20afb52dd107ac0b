//! Builds the kernel half with the toolchain that is building us, so that plain `cargo build` needs no environment.

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};
use std::{fs, path::Path};

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
    let object = std::path::PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("egress");
    // That of the build before is a stub, or shortened already.
    if object.exists() {
        fs::remove_file(&object).with_context(|| format!("cannot remove {}", object.display()))?;
    }
    aya_build::build_ebpf(
        [Package { name: "egress-ebpf", root_dir: ebpf, ..Package::default() }],
        Toolchain::Custom(CHANNEL),
    )?;
    // AYA_BUILD_SKIP (clippy and rustdoc need no object) leaves no file, and include_bytes! would not compile.
    if object.exists() {
        without_dwarf(&object).with_context(|| format!("cannot shorten {}", object.display()))?;
    } else {
        fs::write(&object, []).with_context(|| format!("cannot write the stub {}", object.display()))?;
    }
    let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    println!("cargo::rustc-env=EGRESSD_OBJECT={:016x}", fnv1a(&bytes));
    Ok(())
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// BTF is made from DWARF, and nobody needs that afterwards: four fifths of the object, which every start would walk through.
fn without_dwarf(path: &Path) -> Result<()> {
    let whole = fs::read(path)?;
    let mut object = Builder::read(whole.as_slice())?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    object.delete_orphans();
    // LLVM keeps the names of sections and symbols in one section; the writer wants two.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut short = Vec::new();
    object.write(&mut short)?;
    Ok(fs::write(path, short)?)
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
