//! Starting egressd: one builder for every verb.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use crate::{
    Lab,
    netns::Netns,
    process::{Output, Running},
};

/// How long `run` may take before a test gives up.
const DEADLINE: Duration = Duration::from_secs(30);

/// An egressd command that is not started yet.
#[derive(Debug)]
pub struct Launch<'l> {
    lab: &'l Lab,
    netns: &'l Netns,
    prefix: Vec<OsString>,
    verb: Vec<OsString>,
    flags: Vec<OsString>,
    user: Option<OsString>,
    dns: bool,
    program: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    deadline: Duration,
}

/// The binary under test: `EGRESSD_BIN`, or the one that cargo put beside this test. It is never built here.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("EGRESSD_BIN").map_or_else(
        || {
            let own = std::env::current_exe().expect("the path of this test");
            let profile = own.ancestors().find(|path| path.join("deps").is_dir()).expect("a cargo target directory");
            profile.join("egressd")
        },
        PathBuf::from,
    );
    assert!(path.is_file(), "no egressd at {}: build it, or name it in EGRESSD_BIN", path.display());
    path
}

impl<'l> Launch<'l> {
    pub(crate) fn new(lab: &'l Lab, verb: &str) -> Self {
        let sandboxes = verb == "run";
        Self {
            lab,
            netns: lab.box_ns(),
            prefix: Vec::new(),
            verb: verb.split_whitespace().map(Into::into).collect(),
            flags: Vec::new(),
            // Root in the host's namespaces is no level at all.
            user: sandboxes.then(|| "nobody".into()),
            dns: matches!(verb, "run" | "attach"),
            program: Vec::new(),
            environment: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// Adds flags, separated by white space.
    #[must_use]
    pub fn flags(mut self, flags: &str) -> Self {
        self.flags.extend(flags.split_whitespace().map(Into::into));
        self
    }

    /// Adds one argument as it is: for empty ones and those with blanks.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.flags.push(argument.as_ref().to_owned());
        self
    }

    /// `--user` of `run`; `None` leaves the flag out. The default is nobody.
    #[must_use]
    pub fn user(mut self, user: Option<&str>) -> Self {
        self.user = user.map(Into::into);
        self
    }

    /// Leaves `--dns` out, or brings its own by [`Self::flags`].
    #[must_use]
    pub fn no_dns(mut self) -> Self {
        self.dns = false;
        self
    }

    /// Starts egressd inside `netns`, which then is "the host's" for it. The default is the box.
    #[must_use]
    pub fn inside(mut self, netns: &'l Netns) -> Self {
        self.netns = netns;
        self
    }

    /// Starts egressd outside and names `netns` to it: the sandbox owns its namespace, the device's other end is
    /// where egressd is.
    #[must_use]
    pub fn entering(mut self, netns: &Netns) -> Self {
        self.netns = self.lab.outer_ns();
        self.flags.extend(["--netns".into(), netns.path().into()]);
        self
    }

    /// Starts egressd by another program: `capsh … --`, `unshare …`.
    #[must_use]
    pub fn through<S: AsRef<OsStr>>(mut self, prefix: &[S]) -> Self {
        self.prefix.extend(prefix.iter().map(|part| part.as_ref().to_owned()));
        self
    }

    /// Sets a variable of egressd's environment, which is otherwise PATH and LANG.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Another deadline than 30 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command to run behind `--`.
    #[must_use]
    pub fn program<S: AsRef<OsStr>>(mut self, program: &[S]) -> Self {
        self.program = program.iter().map(|part| part.as_ref().to_owned()).collect();
        self
    }

    /// `sh -c script` behind `--`.
    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.program(&["sh", "-c", script])
    }

    /// The words of the command line, egressd's path first.
    fn words(&self) -> Vec<OsString> {
        let mut words = self.prefix.clone();
        words.push(binary().into());
        words.extend(self.verb.iter().cloned());
        words.extend(["--state-dir".into(), self.lab.state_dir().into()]);
        words.extend(["--pin-dir".into(), self.lab.pin_dir().into()]);
        if self.dns {
            words.extend(["--dns".into(), crate::DNS.to_string().into()]);
        }
        if let Some(user) = &self.user {
            words.extend(["--user".into(), user.clone()]);
        }
        words.extend(self.flags.iter().cloned());
        if !self.program.is_empty() {
            words.push("--".into());
            words.extend(self.program.iter().cloned());
        }
        words
    }

    /// The command, ready to be spawned. Its caller's cgroup is the lab's, so whatever it makes is below that.
    pub fn command(&self) -> Command {
        let words = self.words();
        let mut command = self.netns.command(&words[0]);
        command.args(&words[1..]).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.lab.work_dir());
        self.lab.caller().place(&mut command);
        command
    }

    /// Replaces this thread's process: for benches that measure from exec on.
    pub fn exec(&self) -> std::io::Error {
        self.command().exec()
    }

    /// Starts it.
    pub fn spawn(&self) -> Running {
        Running::spawn(self.command())
    }

    /// Starts it and waits for its end.
    #[track_caller]
    pub fn output(&self) -> Output {
        self.spawn().finish(self.deadline)
    }
}
