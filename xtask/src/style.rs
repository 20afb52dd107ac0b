//! The style stage: what the tools check, and the house's own gates.

use crate::{cargo, cases, tally::Tally};
use anyhow::{Context as _, Result};
use std::{fs, path::Path, process::Command};

/// Longest file that needs no reason.
const LINES: usize = 400;
/// A longer file says why in one of its first lines, behind this word.
const REASON: &str = "Long:";
/// Words that name no idea, as a file, a module or the end of a type's name.
const EMPTY_WORDS: &[&str] =
    &["util", "utils", "helper", "helpers", "common", "manager", "handler", "data", "info", "misc"];

/// Runs every gate, whatever the ones before it said.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    let mut check = |name: &str, passed: bool| {
        println!("style: {name} ... {}", if passed { "ok" } else { "FAILED" });
        tally.add(Tally::one(passed));
    };
    check("cargo fmt", succeeds(cargo::command(&["fmt", "--all", "--check"])?)?);
    let files = files()?;
    check("no file is long without a reason", report(&long_files(&files)?));
    check("names say what a thing is", report(&empty_names(&files)?));
    check("every case of names has a test", report(&cases::missing(&files)?));
    check("clippy, kernel half", succeeds(clippy_bpf()?)?);
    check("clippy", succeeds(clippy_host()?)?);
    check("cargo doc", succeeds(doc()?)?);
    Ok(tally)
}

fn succeeds(mut command: Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("cannot run {}", cargo::readable(&command)))?;
    Ok(status.success())
}

fn report(findings: &[String]) -> bool {
    for finding in findings {
        eprintln!("{finding}");
    }
    findings.is_empty()
}

fn clippy_host() -> Result<Command> {
    let mut command = cargo::command(&["clippy", "--quiet", "--locked", "--workspace", "--exclude", "egress-ebpf"])?;
    command.args(["--all-targets", "--features", "egress-agent/encrypted-upstream", "--", "-D", "warnings"]);
    // The fuzz targets are looked at, not linked: libFuzzer itself need not be built.
    command.env("CUSTOM_LIBFUZZER_PATH", "/nonexistent/libfuzzer.a");
    Ok(command)
}

/// The same flags as aya-build's, so that the code that is checked is the code that runs. A target directory of its own:
/// other flags in the shared one would rebuild the world at every turn.
fn clippy_bpf() -> Result<Command> {
    let mut command = cargo::command(&["clippy", "--quiet", "--locked", "--package", "egress-ebpf", "--release"])?;
    command.args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir", "target/bpf-clippy"]);
    command.args(["--", "-D", "warnings"]);
    let flags =
        format!("--cfg=bpf_target_arch=\"{}\"\u{1f}-Cdebuginfo=2\u{1f}-Clink-arg=--btf", std::env::consts::ARCH);
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags);
    Ok(command)
}

fn doc() -> Result<Command> {
    let mut command =
        cargo::command(&["doc", "--quiet", "--locked", "--workspace", "--exclude", "egress-ebpf", "--no-deps"])?;
    command.args(["--exclude", "egress-fuzz"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    Ok(command)
}

/// Every file of the tree that git does not ignore.
pub(crate) fn files() -> Result<Vec<String>> {
    let mut git = crate::invoker::command_as_caller("git")?;
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(cargo::workspace());
    let output = git.output().context("cannot run git")?;
    anyhow::ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let list = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    Ok(list.split_terminator('\0').filter(|path| cargo::workspace().join(path).is_file()).map(str::to_owned).collect())
}

fn has_extension(path: &str, extensions: &[&str]) -> bool {
    Path::new(path).extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension))
}

fn long_files(files: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files.iter().filter(|path| has_extension(path, &["rs", "py", "sh", "c"])) {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let lines = text.lines().count();
        if lines > LINES && !text.lines().take(10).any(|line| line.contains(REASON)) {
            findings.push(format!(
                "{path}: {lines} lines, over {LINES}: split it by idea, or say `{REASON} why` at its top"
            ));
        }
    }
    Ok(findings)
}

fn empty_names(files: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files {
        let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if EMPTY_WORDS.contains(&stem) {
            findings.push(format!("{path}: `{stem}` names no idea"));
        }
        if has_extension(path, &["rs"]) {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            findings.extend(text.lines().filter_map(empty_type).map(|name| format!("{path}: `{name}` names no idea")));
        }
    }
    Ok(findings)
}

/// The name of the type or module that the line declares, if it is or ends in one of the empty words.
fn empty_type(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
    if !matches!(words.next()?, "struct" | "enum" | "trait" | "mod" | "union") {
        return None;
    }
    let name = words.next()?.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    let last = name.rfind(char::is_uppercase).map_or(name, |start| name.get(start..).unwrap_or(name));
    EMPTY_WORDS.contains(&last.to_lowercase().as_str()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_words_are_found_where_a_thing_is_named() {
        assert_eq!(empty_type("pub(crate) struct LinkManager<'a> {"), Some("LinkManager"));
        assert_eq!(empty_type("mod utils;"), Some("utils"));
        assert_eq!(empty_type("    pub enum Info {"), Some("Info"));
        assert_eq!(empty_type("struct Datagram(Vec<u8>);"), None);
        assert_eq!(empty_type("// struct of the Manager"), None);
        assert_eq!(empty_type("mod links;"), None);
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("long.rs"), "x\n".repeat(LINES + 1)).unwrap();
        fs::write(path("reason.rs"), format!("// Long: one table.\n{}", "x\n".repeat(LINES))).unwrap();
        fs::write(path("short.rs"), "x\n".repeat(LINES)).unwrap();
        let found = long_files(&[path("long.rs"), path("reason.rs"), path("short.rs")]).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("long.rs: 401 lines"), "{found:?}");
    }
}
