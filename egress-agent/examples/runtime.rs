//! What a container runtime does with egressd as a library: the cgroup is closed before the process is in it, and what was
//! denied is known in the end.
//!
//! ```text
//! runtime CGROUP POLICY.toml COMMAND [ARG…]        as root, with an empty cgroup
//! ```

#![allow(clippy::print_stderr, reason = "an example that people run by hand")]

use egress_agent::{
    observe::event::{Event, Verdict},
    policy::Policy,
    sandbox::{Directories, Sandbox},
};
use std::{
    error::Error,
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [cgroup, policy, program, arguments @ ..] = words.as_slice() else {
        return Err("usage: runtime CGROUP POLICY.toml COMMAND [ARG…]".into());
    };
    let mut command = Command::new(program);
    command.args(arguments);
    let policy = Policy::from_path(policy)?;
    let (status, denied) = contain(policy, Path::new(cgroup), Directories::default(), command)?;
    for event in denied {
        eprintln!("{}", event.to_json_line()?);
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a command in the cgroup, which is enforced from before its start to its end, and tells what was denied.
pub(crate) fn contain(
    policy: Policy,
    cgroup: &Path,
    directories: Directories,
    mut command: Command,
) -> Result<(ExitStatus, Vec<Event>), Box<dyn Error>> {
    let sandbox = Sandbox::builder(policy).cgroup(cgroup).dirs(directories).attach()?;
    let events = sandbox.events();
    // Every socket is to be made inside, so the child joins before it becomes the command.
    let entrance = File::options().write(true).open(cgroup.join("cgroup.procs"))?;
    // SAFETY: between fork and exec there is one write to an open file, and nothing is allocated.
    unsafe {
        command.pre_exec(move || (&entrance).write_all(b"0"));
    }
    let status = command.status()?;
    // Opens the cgroup, and ends the events after the last that the kernel reported.
    sandbox.detach()?;
    Ok((status, events.filter(|event| event.verdict == Some(Verdict::Deny)).collect()))
}
