//! Cargo, as the chores call it.

use crate::invoker;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `cargo ARGS…` at the root of the workspace, as the caller.
pub(crate) fn command(args: &[&str]) -> Result<Command> {
    let mut command = invoker::command_as_caller("cargo")?;
    // A stub instead of the kernel half is for editors.
    command.args(args).current_dir(workspace()).env_remove("AYA_BUILD_SKIP");
    Ok(command)
}

/// One executable that cargo built.
pub(crate) struct Executable {
    pub(crate) target: String,
    pub(crate) package_dir: PathBuf,
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs a `cargo build` or `cargo test --no-run` to its end and gives the executables it made, in cargo's order.
pub(crate) fn executables(mut command: Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("the build failed: {}", readable(&command));
    }
    let mut found = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'{')) {
        let message: Message = serde_json::from_slice(line).context("cargo wrote a message that is not JSON")?;
        if message.reason != "compiler-artifact" {
            continue;
        }
        if let (Some(path), Some(manifest), Some(target)) = (message.executable, message.manifest_path, message.target)
        {
            let package_dir = manifest.parent().unwrap_or(workspace()).to_owned();
            found.push(Executable { target: target.name, package_dir, path });
        }
    }
    Ok(found)
}

/// Builds the agent and gives the path of `egressd`.
pub(crate) fn build_egressd(profile_args: &[&str]) -> Result<PathBuf> {
    let mut command = command(&["build", "--locked", "--package", "egress-agent", "--bin", "egressd"])?;
    command.args(profile_args);
    let built = executables(command)?;
    built.into_iter().find(|it| it.target == "egressd").map(|it| it.path).context("cargo built no egressd")
}

/// The command as somebody would type it.
pub(crate) fn readable(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
