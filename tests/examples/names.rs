//! Many sandboxes of one process, for `cargo xtask bench`, by the library: the command line has no policy without a limit of
//! queries, and a sandbox each would make a hundred of them a hundred processes.
//!
//! `names POLICY STATE PIN CGROUP…` attaches every cgroup, without a limit of queries, prints one JSON object (resident memory
//! before and after in KiB, what each attach took in microseconds), and ends with its standard input.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench that cannot measure has to end"
)]

use egress_agent::{
    policy::Policy,
    sandbox::{Directories, Sandbox},
};
use std::{fs, io::Read as _, path::PathBuf, time::Instant};

fn main() {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [policy, state, pin, cgroups @ ..] = words.as_slice() else { panic!("names POLICY STATE PIN CGROUP…") };
    let mut policy = Policy::from_path(policy).expect("the policy");
    policy.dns.queries_per_second = u32::MAX;
    let before = resident_kib();
    let mut attach_us = Vec::new();
    let mut attach = |cgroup: &PathBuf| {
        let directories = Directories { state: state.clone(), pin: pin.clone() };
        let builder = Sandbox::builder(policy.clone()).cgroup(cgroup).dirs(directories);
        let started = Instant::now();
        let sandbox = builder.attach().expect("attach");
        attach_us.push(started.elapsed().as_micros());
        sandbox
    };
    let sandboxes: Vec<Sandbox> = cgroups.iter().map(&mut attach).collect();
    let after = resident_kib();
    println!("{}", serde_json::json!({ "before_kib": before, "after_kib": after, "attach_us": attach_us }));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    for sandbox in sandboxes {
        sandbox.detach().expect("detach");
    }
}

/// `VmRSS` of proc(5), whose unit is KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
