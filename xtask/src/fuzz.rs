//! `cargo xtask fuzz`: libFuzzer on the DNS half, under AddressSanitizer, with the pinned compiler.

use crate::cargo;
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What cargo-fuzz would have it instrumented by.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Zsanitizer=address",
];

/// Of messages from clients, and of those from upstreams.
const TARGETS: [&str; 2] = ["queries", "answers"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// queries (of clients) or answers (of upstreams); both, one after the other, where none is named
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    target: Option<String>,
    /// How long each runs; until something is found where this is not given
    #[arg(long)]
    seconds: Option<u32>,
    /// Only build
    #[arg(long)]
    build: bool,
    /// For libFuzzer, e.g. -jobs=2
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// True when it was built, and found nothing.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let wanted = |target: &&str| options.target.as_ref().is_none_or(|only| only == target);
    for target in TARGETS.into_iter().filter(wanted) {
        let binary = build(target)?;
        if !options.build && !search(options, target, &binary)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn build(target: &str) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // With a target, the flags are for that alone and not for build scripts.
    let mut command = cargo::command(&["build", "--locked", "--package", "egress-fuzz", "--bin", target])?;
    command.args(["--target", &triple, "--target-dir", "target/fuzz"]);
    command.env("RUSTC_BOOTSTRAP", "1").env("AYA_BUILD_SKIP", "1");
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    let built = cargo::executables(command)?.into_iter().find(|it| it.target == target);
    built.map(|it| it.path).with_context(|| format!("cargo built no {target}"))
}

/// What is found on the way is kept below target/, and tried first the next time; the seeds stay as they are.
fn search(options: &Options, target: &str, binary: &Path) -> Result<bool> {
    let kept = cargo::workspace().join("target/fuzz");
    let found = kept.join("corpus").join(target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let seeds = cargo::workspace().join("fuzz/seeds").join(target);
    let mut command = Command::new(binary);
    command.arg(format!("-artifact_prefix={}/{target}-", kept.display()));
    command.args(options.seconds.map(|seconds| format!("-max_total_time={seconds}"))).args(&options.arguments);
    let status = command.arg(found).arg(seeds).status().context("cannot run libFuzzer")?;
    Ok(status.success())
}
