//! The process that makes a side's load: this program once more, in the side's namespace and cgroup, asked over its standard
//! input for one measurement after the other.

use anyhow::{Context as _, Result, ensure};
use lab::{Cgroup, Netns};
use nix::unistd::Pid;
use serde::Serialize;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
};

/// Ends with its side.
pub(super) struct Generator {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Generator {
    /// `words` are the hidden verb of this program, and what that takes.
    pub(super) fn start(words: &[&str], netns: &Netns, cgroup: &Cgroup) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        netns.place(&mut command);
        cgroup.place(&mut command);
        let mut child = command.spawn().context("cannot start the generator")?;
        let answers = BufReader::new(child.stdout.take().context("stdout is not a pipe")?);
        Ok(Self { child, answers })
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The line that it answers.
    pub(super) fn ask(&mut self, ask: &impl Serialize) -> Result<String> {
        let stdin = self.child.stdin.as_mut().context("the generator has ended")?;
        writeln!(stdin, "{}", serde_json::to_string(ask)?)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the generator has died");
        Ok(line.trim_end().to_owned())
    }

    /// Waits until its cgroup is empty.
    pub(super) fn end(&mut self) {
        self.child.stdin = None;
        let _status = self.child.wait();
    }
}
