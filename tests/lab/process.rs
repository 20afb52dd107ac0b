//! Child processes with a deadline: no test hangs, and nothing that it started survives it.

use std::{
    fmt,
    io::{Read, Write},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::wait::patient;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

/// How a process ended and what it said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status, `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Panics with everything that was said unless the exit status is `code`.
    #[track_caller]
    pub fn exits(&self, code: i32) -> &Self {
        assert!(self.code == Some(code), "expected exit status {code}, got {self}");
        self
    }

    /// Panics unless one of `stdout` and `stderr` contains `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stdout.contains(text) || self.stderr.contains(text), "expected {text:?} in {self}");
        self
    }

    /// The exit status that a line `NAME=STATUS` of standard output tells, as scripts of several steps print it.
    #[track_caller]
    pub fn step(&self, name: &str) -> i32 {
        let prefix = format!("{name}=");
        let line = self.stdout.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|status| status.trim().parse().ok()).unwrap_or_else(|| panic!("no step {name} in {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => write!(f, "no status")?,
        }
        write!(
            f,
            " after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.took,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// A started process. Dropping it kills its process group and waits for it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    started: Instant,
    stdout: Stream,
    stderr: Stream,
    ended: Option<ExitStatus>,
}

#[derive(Debug, Default)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn of(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            loop {
                match source.read(&mut chunk) {
                    Ok(count @ 1..) => kept.lock().expect("output").extend_from_slice(&chunk[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
                }
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("output")).into_owned()
    }

    /// True where every writer has closed the stream.
    fn closes(&mut self, deadline: Instant) -> bool {
        let Some(reader) = self.reader.take() else { return true };
        while !reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        reader.is_finished() && reader.join().is_ok()
    }
}

impl Running {
    /// Starts `command` in a process group of its own, with pipes for its three streams. It ends with the calling thread.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        ends_with_caller(&mut command);
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
        assert!(raw >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was made by the call above and nobody else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        let stdout = child.stdout.take().map(Stream::of).unwrap_or_default();
        let stderr = child.stderr.take().map(Stream::of).unwrap_or_default();
        Self { child, pidfd, started, stdout, stderr, ended: None }
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends `signal` to the process alone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("kill -{signal} {}: {error}", self.pid()));
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("standard input is open");
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|error| panic!("stdin: {error}: {}", self.said()));
    }

    /// Writes to its standard input and closes it.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.write(bytes);
        self.child.stdin = None;
    }

    /// What it has said so far: both streams, for messages and conditions.
    pub fn said(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout.text(), self.stderr.text())
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// True until it has ended.
    pub fn is_alive(&mut self) -> bool {
        self.wait_until(Instant::now()).is_none()
    }

    /// Waits until it says `text` on either stream; panics when it ends first or after `deadline`.
    #[track_caller]
    pub fn says(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + patient(deadline);
        while !self.said().contains(text) {
            let over = !self.is_alive() || Instant::now() > end;
            // What it said last may still be in the pipe.
            if over && !self.said().contains(text) {
                self.stdout.closes(Instant::now() + Duration::from_millis(200));
                assert!(self.said().contains(text), "never said {text:?}: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_until(&mut self, end: Instant) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut fds, timeout), Ok(1..)) {
                self.ended = Some(self.child.wait().expect("wait"));
            }
        }
        self.ended
    }

    /// Waits for its end and nothing else: what it started may live on and hold its output.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let ended = self.wait_until(Instant::now() + patient(deadline));
        ended.unwrap_or_else(|| panic!("not ended after {deadline:?}\n{}", self.said()))
    }

    /// Waits for its end. Past `deadline` its process group is killed and the test fails with what it said.
    #[track_caller]
    pub fn finish(mut self, deadline: Duration) -> Output {
        self.child.stdin = None;
        let Some(status) = self.wait_until(self.started + patient(deadline)) else {
            let said = self.said();
            drop(self);
            panic!("not ended after {deadline:?}\n{said}");
        };
        let took = self.started.elapsed();
        let grace = Instant::now() + patient(Duration::from_secs(3));
        let closed = self.stdout.closes(grace) && self.stderr.closes(grace);
        assert!(closed, "something that it started outlives it and holds its output\n{}", self.said());
        Output {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() && self.wait_until(Instant::now()).is_none() {
            // The group may be gone already; the wait below is what counts.
            let _gone = killpg(self.pid(), Signal::SIGKILL);
            let _status = self.child.wait();
        }
    }
}

/// Lets the kernel terminate the process when the thread that starts it ends, so that a killed test run leaves nothing.
pub(crate) fn ends_with_caller(command: &mut Command) {
    // SAFETY: prctl with integer arguments touches no memory of this process and allocates nothing after fork.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}
