//! Denials cost whoever is denied: neither a neighbour's events nor the agent's memory. The floods are bounded, and tell their pace.

#![expect(clippy::print_stdout, reason = "the pace of a flood is told")]

use crate::{
    job::{Job, end},
    library::{addresses, attach_in_the_box},
    together::set_of,
};
use egress_common::event::EVENTS_PER_SECOND;
use lab::{EVIL, Lab, OK, Running, until};
use nix::sys::signal::Signal;
use std::{fs, time::Duration};

const SOON: Duration = Duration::from_secs(10);
/// First address of the network that nobody permits.
const NOBODY: &str = "203.0.113.1";
/// How late the neighbour's denial may be told, on a machine that others use too.
const IN_TIME: Duration = Duration::from_secs(3);
/// What the agent's memory may grow by: its queues are full long before.
const GROWTH_KIB: u64 = 8 * 1024;

/// What came of a flood.
struct Flood {
    sent: u64,
    refused: u64,
    seconds: u64,
}

/// So many sends, or for so many milliseconds.
fn flood(job: &Job<'_>, (most, milliseconds): (u64, u64), to: &str) -> Running {
    job.spawn(&format!("exec {} {most} {milliseconds} {to}", job.lab().compiled("flood")))
}

/// What the sink gets of a flood that is permitted. No more than fit into the buffer of its socket.
#[track_caller]
fn arrives(job: &Job<'_>) {
    const SENDS: u64 = 100;
    let gauge = job.lab().gauge(4242);
    let allowed = ended(flood(job, (SENDS, 3000), &OK.to_string()));
    assert_eq!((allowed.sent, allowed.refused), (SENDS, 0));
    until(SOON, "they arrive", || gauge.total() == SENDS);
}

#[track_caller]
fn ended(flood: Running) -> Flood {
    let output = flood.finish(Duration::from_secs(30));
    let numbers: Vec<u64> = output.exits(0).stdout.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [sent, refused, failed, milliseconds] = numbers[..] else { panic!("{output}") };
    assert_eq!(failed, 0, "{output}");
    println!("{sent} sends, {refused} refused, {} a second", sent * 1000 / milliseconds.max(1));
    Flood { sent, refused, seconds: milliseconds.div_ceil(1000) }
}

/// Lines of the event file of the sandbox in a job's cgroup that are about what `flood` sends to.
fn told(job: &Job<'_>) -> Vec<serde_json::Value> {
    let (_, status) = job.status();
    let directory = job.lab().state_dir().join("sandboxes").join(status["sandbox"].as_str().unwrap());
    let text: String = ["events.jsonl.1", "events.jsonl"]
        .map(|file| fs::read_to_string(directory.join(file)).unwrap_or_default())
        .concat();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|event| event["event"] == "send").collect()
}

fn denied(job: &Job<'_>) -> u64 {
    job.status().1["counters"]["denied"]["not_permitted"].as_u64().unwrap_or_default()
}

/// Two sandboxes of one program set, which share a ring, a table of denials and the thread that reads: nothing keeps them further
/// apart elsewhere.
#[test]
fn a_flood_of_denials_keeps_no_neighbour_from_being_heard() {
    let lab = Lab::without_capture();
    let [first, loud, quiet] = ["first", "loud", "quiet"].map(|name| Job::new(&lab, name));
    let attached = [&first, &loud, &quiet].map(|job| attach_in_the_box(&lab, job, addresses(&["198.51.100.10"])));
    let sets = [1, 2].map(|at: usize| set_of(&lab, attached[at].name()));
    assert_eq!(sets[0], sets[1], "they share what can be shared");
    let heard = attached[2].events();

    let mut running = flood(&loud, (u64::from(u32::MAX), 4000), &format!("{NOBODY} spread"));
    until(SOON, "the flood is on", || denied(&loud) > 20_000 || !running.is_alive());
    assert!(running.is_alive(), "the flood lasts: {}", running.said());
    assert_eq!(quiet.curl(&EVIL.to_string(), &lab.token("quiet")), Some(7));
    until(IN_TIME, "the neighbour's denial is told", || {
        heard.ready().any(|event| event.dst_ip == Some(EVIL) && event.comm.as_deref() == Some("curl"))
    });
    assert!(running.is_alive(), "while it goes on");
    let Flood { sent, refused, seconds } = ended(running);
    assert_eq!(refused, sent);
    assert_eq!(denied(&loud), sent, "each one is counted");
    // Each CPU has its own count of what it may report in a second.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let events = told(&loud).len() as u64;
    assert!(events > 0 && events <= EVENTS_PER_SECOND * cpus * (seconds + 1), "{events} events in {seconds} s");

    // The twin: what is permitted goes out at the same pace.
    arrives(&loud);
    drop(attached);
}

/// One destination, however often, is one event a second.
#[test]
fn a_flood_to_one_destination_folds_and_no_flood_grows_the_agent() {
    let lab = Lab::without_capture();
    let job = Job::new(&lab, "job");
    let attach = job.attached(&format!("--allow {OK}"));
    let resident = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", attach.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // What is made once is made by now.
    ended(flood(&job, (2000, 3000), &format!("{NOBODY} spread")));
    until(SOON, "it is told", || !told(&job).is_empty());
    let (before, others) = (resident(), told(&job).len());

    let evil = |event: &serde_json::Value| event["dst_ip"].as_str().and_then(|ip| ip.parse().ok()) == Some(EVIL);
    let mut one = Flood { sent: 0, refused: 0, seconds: 0 };
    // Again where it ended within the second whose events the first flood had used up.
    until(SOON, "it is told", || {
        let Flood { sent, refused, seconds } = ended(flood(&job, (1_000_000, 3000), &EVIL.to_string()));
        one = Flood { sent: one.sent + sent, refused: one.refused + refused, seconds: one.seconds + seconds };
        told(&job).iter().any(evil)
    });
    let folded: Vec<_> = told(&job).into_iter().filter(evil).collect();
    // Two CPUs may find the second over at once.
    assert!(folded.len() as u64 <= 2 * (one.seconds + 1), "{} events in {} s", folded.len(), one.seconds);
    if one.seconds > 2 {
        assert!(folded.iter().any(|event| event["count"].as_u64() > Some(1000)), "{folded:?}");
    }

    let many = ended(flood(&job, (1_000_000, 3000), &format!("{NOBODY} spread")));
    assert_eq!((one.refused, many.refused), (one.sent, many.sent));
    assert!(told(&job).len() > others + folded.len(), "the flood is heard of");
    let grown = resident().saturating_sub(before);
    println!("resident {before} KiB, grown by {grown} KiB");
    assert!(grown <= GROWTH_KIB, "{grown} KiB after {} denials", one.sent + many.sent);
    // The agent is there for the next one all the same.
    assert_eq!(job.curl(&OK.to_string(), &lab.token("ok")), Some(0));
    arrives(&job);
    end(attach, Signal::SIGINT).exits(0);
}
