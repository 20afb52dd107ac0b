//! Who called: under sudo, builds stay the caller's, so that `target/` and the toolchain never become root's.

use anyhow::{Context as _, Result};
use nix::unistd::{Uid, User};
use std::{env, ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

/// True when this process may make namespaces, cgroups and BPF programs.
pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// A command that runs as whoever typed `sudo`, or as we are.
pub(crate) fn command_as_caller(program: &str) -> Result<Command> {
    let mut command = Command::new(program);
    // The outer `cargo` pinned its own choice; rust-toolchain.toml decides.
    command.env_remove("RUSTUP_TOOLCHAIN");
    let home = match sudo_caller()? {
        None => env::var_os("HOME").map(PathBuf::from),
        Some(user) => {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
            Some(user.dir)
        }
    };
    command.env("PATH", search_path(home)?);
    Ok(command)
}

fn sudo_caller() -> Result<Option<User>> {
    let Some(uid) = env::var_os("SUDO_UID").filter(|_| is_root()) else { return Ok(None) };
    let uid: u32 = uid.to_str().and_then(|text| text.parse().ok()).context("SUDO_UID is not a number: unset it")?;
    if uid == 0 {
        return Ok(None);
    }
    User::from_uid(Uid::from_raw(uid))?.map(Some).with_context(|| format!("SUDO_UID={uid}: no such user"))
}

/// PATH, with the place where rustup and `cargo install` put things, and the sbin directories that a user's PATH lacks.
fn search_path(home: Option<PathBuf>) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".cargo")));
    let extra = cargo_bin.map(|dir| dir.join("bin")).into_iter().chain(["/usr/sbin".into(), "/sbin".into()]);
    env::join_paths(env::split_paths(&path).chain(extra)).context("PATH cannot be extended")
}
