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
    is_test: bool,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    package_id: Option<String>,
    out_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the tests of a package and gives their binaries, in cargo's order: not its examples, which are built along.
pub(crate) fn build_tests(mut command: Command, package: &str) -> Result<Vec<Executable>> {
    command.args(["test", "--locked", "--package", package, "--no-run"]);
    Ok(executables(command)?.into_iter().filter(|it| it.is_test).collect())
}

/// Runs a `cargo build` to its end and gives the executables it made, in cargo's order.
pub(crate) fn executables(command: Command) -> Result<Vec<Executable>> {
    let made = messages(command)?.into_iter().filter(|message| message.reason == "compiler-artifact");
    let executable = |message: Message| {
        let package_dir = message.manifest_path?.parent()?.to_owned();
        let is_test = message.profile?.test;
        Some(Executable { target: message.target?.name, package_dir, path: message.executable?, is_test })
    };
    Ok(made.filter_map(executable).collect())
}

/// What cargo says of a build, which must succeed.
fn messages(mut command: Command) -> Result<Vec<Message>> {
    command.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("the build failed: {}", readable(&command));
    }
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'{'));
    lines.map(|line| serde_json::from_slice(line).context("cargo wrote a message that is not JSON")).collect()
}

/// The BPF object that the agent's build script made for this profile.
pub(crate) fn build_object(profile_args: &[&str]) -> Result<PathBuf> {
    let mut command = command(&["build", "--locked", "--package", "egress-agent"])?;
    command.args(profile_args);
    let script = messages(command)?.into_iter().find(|message| {
        message.reason == "build-script-executed"
            && message.package_id.as_ref().is_some_and(|id| id.contains("egress-agent"))
    });
    let directory = script.and_then(|message| message.out_dir).context("egress-agent has no build script")?;
    Ok(directory.join("egress"))
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
