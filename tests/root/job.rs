//! A cgroup that exists before egressd is asked to enforce it, with processes that a test puts there.

use lab::{Cgroup, Lab, Launch, Netns, Output, Running, until};
use serde_json::Value;
use std::{fs, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(10);

/// Somebody's job: a cgroup, and the network namespace that its processes are in.
pub(crate) struct Job<'l> {
    lab: &'l Lab,
    cgroup: Cgroup,
    netns: Netns,
}

impl<'l> Job<'l> {
    /// A job in the box.
    pub(crate) fn new(lab: &'l Lab, name: &str) -> Self {
        Self::at(lab, lab.cgroup().child(name), lab.box_ns())
    }

    pub(crate) fn at(lab: &'l Lab, cgroup: Cgroup, netns: &Netns) -> Self {
        Self { lab, cgroup, netns: netns.clone() }
    }

    pub(crate) fn lab(&self) -> &'l Lab {
        self.lab
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The cgroup's directory, for a command line.
    pub(crate) fn path(&self) -> &str {
        self.cgroup.path().to_str().unwrap()
    }

    fn command(&self, cgroup: &Cgroup, script: &str) -> Command {
        let mut command = self.netns.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "sh", "-c", script]);
        command.current_dir(self.lab.work_dir());
        cgroup.place(&mut command);
        command
    }

    /// Starts a script in the cgroup, as nobody.
    pub(crate) fn spawn(&self, script: &str) -> Running {
        Running::spawn(self.command(&self.cgroup, script))
    }

    /// Runs a script in the cgroup, as nobody.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> Output {
        self.spawn(script).finish(Duration::from_secs(30))
    }

    /// Runs a script in the cgroup as root with every capability: what root of the job's own network namespace can do.
    #[track_caller]
    pub(crate) fn as_root(&self, script: &str) -> Output {
        let mut command = self.netns.command("sh");
        command.args(["-c", script]).current_dir(self.lab.work_dir());
        self.cgroup.place(&mut command);
        Running::spawn(command).finish(Duration::from_secs(90))
    }

    /// Starts a script beside the cgroup; [`Self::admit`] moves it in.
    pub(crate) fn outside(&self, script: &str) -> Running {
        Running::spawn(self.command(self.lab.caller(), script))
    }

    /// Moves a process into the cgroup.
    pub(crate) fn admit(&self, running: &Running) {
        fs::write(self.cgroup.path().join("cgroup.procs"), running.pid().to_string()).unwrap();
    }

    /// `egressd attach --cgroup …`.
    pub(crate) fn attach(&self, flags: &str) -> Launch<'l> {
        self.lab.egressd("attach").flags(&format!("--cgroup {} {flags}", self.path()))
    }

    /// `egressd attach` in the foreground, from the moment at which the policy is in force.
    #[track_caller]
    pub(crate) fn attached(&self, flags: &str) -> Running {
        ready(self.attach(flags))
    }

    #[track_caller]
    pub(crate) fn detach(&self) -> Output {
        self.lab.egressd("detach").inside(self.lab.outer_ns()).flags(&format!("--cgroup {}", self.path())).output()
    }

    /// `egressd status --cgroup …`: 0 only where a policy is in force. From where the device's host side is: filters are to be
    /// seen nowhere else.
    #[track_caller]
    pub(crate) fn status(&self) -> (Option<i32>, Value) {
        let status = self.lab.egressd("status").inside(self.lab.outer_ns());
        let output = status.flags(&format!("--json --cgroup {}", self.path())).output();
        let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
        (output.code, report["sandboxes"][0].clone())
    }

    /// One request to the address as nobody; the exit status of curl.
    #[track_caller]
    pub(crate) fn curl(&self, target: &str, token: &str) -> Option<i32> {
        self.sh(&format!("curl -sS -m3 http://{target}/{token}")).code
    }
}

/// Starts egressd and waits for the line on `--ready-fd`, which is its standard output here: nothing else is written there.
#[track_caller]
pub(crate) fn ready(launch: Launch<'_>) -> Running {
    let mut running = launch.flags("--ready-fd 1").spawn();
    until(SOON, "the policy is in force", || {
        let said = running.said();
        assert!(running.is_alive() || running.stdout() == "\n", "ended early: {said}");
        running.stdout() == "\n"
    });
    running
}

/// Ends egressd by a signal and returns what became of it.
#[track_caller]
pub(crate) fn end(running: Running, signal: nix::sys::signal::Signal) -> Output {
    running.signal(signal);
    running.finish(Duration::from_secs(3600))
}

/// True where hooks follow the calling task, and so sockets from outside are judged: egressd's own word, which
/// `kernel::hooks_follow_the_calling_task` holds against the kernel's.
#[track_caller]
pub(crate) fn judges_foreign(lab: &Lab) -> bool {
    let doctor = lab.egressd("doctor").flags("--json").output();
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap_or_else(|error| panic!("{error}: {doctor}"));
    let mut needs = report["needs"].as_array().unwrap().iter();
    let hooks = needs.find(|need| need["hook"].as_str().unwrap().starts_with("lsm_cgroup")).unwrap();
    hooks["present"] == "yes"
}

/// The DNS listener's ports in a namespace: nobody else listens on loopback below 1024 there.
#[track_caller]
pub(crate) fn listeners(netns: &Netns) -> Vec<u16> {
    let said = netns.sh("ss -Hlnu 'src 127.0.0.1'");
    let fields = said.exits(0).stdout.lines().filter_map(|line| line.split_whitespace().nth(3));
    fields.filter_map(|local| local.rsplit_once(':')?.1.parse().ok()).filter(|port| *port < 1024).collect()
}

/// `CLOCK_MONOTONIC`, which the probes write into what they send.
pub(crate) fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(Duration::from(now).as_nanos()).unwrap()
}

/// The moments that `drip.py` wrote into the frames to `address`, in the order of their arrival.
pub(crate) fn drops(lab: &Lab, address: std::net::IpAddr, token: &str, kind: &str) -> Vec<u64> {
    let frames = lab.frames_to(address);
    let word = format!("{token} {kind};");
    let texts = frames.iter().map(|frame| String::from_utf8_lossy(&frame.payload));
    let last = texts.filter_map(|text| text.rsplit(&word).next()?.split(';').next()?.parse().ok());
    last.collect()
}
