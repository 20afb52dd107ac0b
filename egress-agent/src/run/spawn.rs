//! What is to be run, and its start.

use super::{
    Child, RunError, Shares,
    capability::KeptCaps,
    child::{Plan, Started, StringArray, start},
    descriptors::KeptFds,
    environment::Variable,
    error::Step,
    identity::Identity,
    masks,
    seccomp::Filter,
    terminal::Foreground,
};
use crate::cgroup::Cgroup;
use nix::unistd::{Gid, getgroups};
use std::{
    ffi::{CString, OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

/// Where commands are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// CMD and all that it is given. What is not named here it does not get.
#[derive(Debug)]
pub struct Command {
    /// The command and its arguments. Without a slash the command is looked for in PATH of `env`.
    pub argv: Vec<OsString>,
    /// The whole environment; [`super::environment()`] makes it.
    pub env: Vec<Variable>,
    /// As whom it runs.
    pub identity: Identity,
    /// Capabilities that it keeps.
    pub keep_caps: KeptCaps,
    /// Descriptors that it inherits beside 0, 1 and 2.
    pub keep_fds: KeptFds,
    /// Network namespace to run in; `None` = the caller's.
    pub netns: Option<OwnedFd>,
    /// Working directory; `None` = the caller's.
    pub cwd: Option<PathBuf>,
    /// What it does not have of its own.
    pub shares: Shares,
    /// Directories that its mount namespace does not show: egressd's own.
    pub hidden: Vec<PathBuf>,
}

/// Starts CMD inside the cgroup: it is born there, so every socket it ever makes belongs to the sandbox. Returns once
/// CMD is executed.
///
/// It stays in the caller's process group and session, so the terminal and its job control go on working. In a pid namespace
/// of its own it is process 2, a child of the caller; process 1 ends with the caller, however that ends, and the kernel then kills
/// all others. Where processes are shared, CMD goes on under enforcement, which is pinned in the kernel and needs nobody
/// alive: PR_SET_PDEATHSIG would end CMD but none of its descendants, when the *thread* ends that made it.
///
/// # Errors
/// [`RunError::NotFound`] and [`RunError::NotExecutable`] where exec refuses; others before it. The cgroup is then
/// as it was.
pub fn spawn<'cgroup>(command: &Command, cgroup: &'cgroup Cgroup) -> Result<Child<'cgroup>, RunError> {
    let foreground = Foreground::note();
    // Whoever unshares a pid namespace has its children there for ever.
    let started = thread::scope(|scope| scope.spawn(|| start_here(command, cgroup)).join());
    let Started { command, init } = started.unwrap_or_else(|panic| resume_unwind(panic))?;
    Ok(Child::new(command, init, cgroup, foreground))
}

fn start_here(command: &Command, cgroup: &Cgroup) -> Result<Started, RunError> {
    let Some(program) = command.argv.first() else { return Err(RunError::NoCommand) };
    command.keep_caps.check_held()?;
    let plan = plan(command, program)?;
    let entrance = cgroup.entrance()?;
    start(plan, cgroup.fd(), entrance.as_fd()).map_err(|failure| match (failure.step, failure.errno) {
        (Step::Exec, libc::ENOENT | libc::ENOTDIR) => RunError::NotFound(program.clone()),
        (Step::Exec, _) => RunError::NotExecutable { command: program.clone(), source: failure.source() },
        _ => failure.into(),
    })
}

fn plan(command: &Command, program: &OsStr) -> Result<Plan, RunError> {
    let variables = command.env.iter().map(|(name, value)| {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        pair
    });
    let rest = command.argv.iter().skip(1).map(OsString::as_os_str);
    let through_shell = [OsStr::new("/bin/sh"), program].into_iter().chain(rest);
    let Identity { uid, gid, groups, .. } = &command.identity;
    let current = getgroups().map_err(RunError::syscall("getgroups"))?;
    let mut current: Vec<u32> = current.into_iter().map(Gid::as_raw).collect();
    current.sort_unstable();
    let own_mounts = command
        .shares
        .own_mounts()
        .then(|| masks::mounts(&command.identity, command.shares.own_pids(), &command.hidden, &command.env));
    Ok(Plan {
        candidates: c_strings(candidates(program, &command.env))?,
        argv: StringArray::new(c_strings(&command.argv)?),
        shell_argv: StringArray::new(c_strings(through_shell)?),
        envp: StringArray::new(c_strings(variables)?),
        own_pids: command.shares.own_pids(),
        mounts: own_mounts.transpose()?,
        netns: command.netns.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        keep_fds: command.keep_fds.as_slice().to_vec(),
        // Setting them needs a capability that a caller without root does not have.
        groups: (current != *groups).then(|| groups.clone()),
        uid: *uid,
        gid: *gid,
        keep_caps: command.keep_caps.mask(),
        filter: Filter::new(command.keep_caps)?,
        cwd: command.cwd.as_deref().map(c_string).transpose()?,
    })
}

/// Paths at which exec is tried, as execvp does it: the command itself if it has a slash, else in every directory of PATH.
fn candidates(program: &OsStr, env: &[Variable]) -> Vec<PathBuf> {
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
    // An empty entry means the working directory, and joining to it is right.
    path.as_bytes().split(|&byte| byte == b':').map(|entry| Path::new(OsStr::from_bytes(entry)).join(program)).collect()
}

fn c_strings<Text: AsRef<OsStr>>(texts: impl IntoIterator<Item = Text>) -> Result<Vec<CString>, RunError> {
    texts.into_iter().map(c_string).collect()
}

fn c_string(text: impl AsRef<OsStr>) -> Result<CString, RunError> {
    let text = text.as_ref();
    CString::new(text.as_bytes()).map_err(|_nul| RunError::Nul(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_path(path: &str) -> Vec<Variable> {
        vec![("A".into(), "b".into()), ("PATH".into(), path.into())]
    }

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_command_without_slash_is_looked_for_in_its_own_path() {
        assert_eq!(candidates("ls".as_ref(), &with_path("/a:/b")), paths(&["/a/ls", "/b/ls"]));
        assert_eq!(candidates("ls".as_ref(), &with_path(":/b")), paths(&["ls", "/b/ls"]));
        assert_eq!(candidates("ls".as_ref(), &[]), paths(&["/usr/local/bin/ls", "/usr/bin/ls", "/bin/ls"]));
    }

    #[test]
    fn a_command_with_slash_is_taken_as_it_is() {
        assert_eq!(candidates("./ls".as_ref(), &with_path("/a")), paths(&["./ls"]));
        assert_eq!(candidates("".as_ref(), &with_path("/a")), paths(&[""]));
    }

    #[test]
    fn nul_bytes_are_named() {
        assert!(matches!(c_string("a\0b"), Err(RunError::Nul(text)) if text == "a\0b"));
    }
}
