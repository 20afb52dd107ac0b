//! `cargo xtask fuzz TARGET`: libFuzzer on the DNS half, under AddressSanitizer, with the pinned compiler.

use crate::cargo;
use anyhow::{Context as _, Result, bail};
use std::process::Command;

/// What cargo-fuzz would have it instrumented by.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Zsanitizer=address",
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// queries (of clients) or answers (of upstreams)
    target: String,
    /// Only build it
    #[arg(long)]
    build: bool,
    /// For libFuzzer, e.g. -max_total_time=60
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// True when it was built, and found nothing.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // With a target, the flags are for that alone and not for build scripts.
    let mut command = cargo::command(&["build", "--locked", "--package", "egress-fuzz", "--bin", &options.target])?;
    command.args(["--target", &triple, "--target-dir", "target/fuzz"]);
    command.env("RUSTC_BOOTSTRAP", "1").env("AYA_BUILD_SKIP", "1");
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    let built = cargo::executables(command)?;
    let Some(binary) = built.into_iter().find(|it| it.target == options.target) else {
        bail!("cargo built no {}", options.target)
    };
    if options.build {
        return Ok(true);
    }
    let corpus = cargo::workspace().join("target/fuzz/corpus").join(&options.target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let status =
        Command::new(binary.path).args(&options.arguments).arg(corpus).status().context("cannot run libFuzzer")?;
    Ok(status.success())
}
