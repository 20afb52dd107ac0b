//! Sandboxes of one process share a program set. What one may reach, learns, reports and holds is its alone all the same, and
//! its end is nobody else's.

use crate::{
    job::Job,
    library::{addresses, attach_in_the_box, directories, policy},
};
use egress_agent::{observe::event::Kind, sandbox::Sandbox};
use lab::{EVIL, Lab, OK, need, until};
use std::{path::Path, process, time::Duration};

const SOON: Duration = Duration::from_secs(10);
const OTHER: &str = "198.51.100.11";

/// The kernel's number of one of the sandbox's maps: the same for all that share a set.
pub(crate) fn set_of(lab: &Lab, sandbox: &str) -> u64 {
    need("bpftool");
    let map = lab.pin_dir().join(sandbox).join("maps/PERMITS");
    let shown = lab.outer_ns().sh(&format!("bpftool -j map show pinned {}", map.display()));
    let shown: serde_json::Value = serde_json::from_str(&shown.exits(0).stdout).unwrap();
    shown["id"].as_u64().unwrap()
}

/// Keys of a slot in a pinned map; a slot is the first word of a key.
fn keys_of(lab: &Lab, sandbox: &str, map: &str, slot: u8) -> usize {
    let map = lab.pin_dir().join(sandbox).join("maps").join(map);
    let dump = lab.outer_ns().sh(&format!("bpftool -j map dump pinned {}", map.display()));
    let dump: serde_json::Value = serde_json::from_str(&dump.exits(0).stdout).unwrap();
    let first =
        |entry: &serde_json::Value| entry["key"][0].as_str().and_then(|byte| u8::from_str_radix(&byte[2..], 16).ok());
    dump.as_array().unwrap().iter().filter(|entry| first(entry) == Some(slot)).count()
}

fn reaches(job: &Job<'_>, target: &str) -> bool {
    job.curl(target, &job.lab().token("asked")) == Some(0)
}

#[test]
fn each_reaches_what_its_own_policy_names_and_no_other() {
    let lab = Lab::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| Job::new(&lab, name));
    let before = lab.snapshot();
    let first = attach_in_the_box(&lab, &a, addresses(&["198.51.100.20"]));
    let mut second = attach_in_the_box(&lab, &b, policy("names = [\"ok.test\"]"));
    let third = attach_in_the_box(&lab, &c, policy("names = [\"evil.test\"]"));
    let sets = [&first, &second, &third].map(|sandbox| set_of(&lab, sandbox.name()));
    assert!(sets[0] != sets[1] && sets[1] == sets[2], "one for the first, one for those who come later: {sets:?}");

    // Learned by one of a set, closed for the other, by name and by address.
    let (heard_by_second, heard_by_third) = (second.events(), third.events());
    assert!(reaches(&b, "ok.test") && reaches(&c, "evil.test"));
    assert!(!reaches(&c, &OK.to_string()) && !reaches(&b, &EVIL.to_string()));
    assert!(reaches(&a, &EVIL.to_string()) && !reaches(&a, &OK.to_string()));

    // A policy that changes changes one of them.
    second.update(addresses(&[OTHER])).unwrap();
    assert!(reaches(&b, OTHER) && !reaches(&b, &OK.to_string()));
    assert!(reaches(&c, "evil.test") && !reaches(&c, OTHER));

    // The end of one leaves nothing of it in the maps, and opens nobody else.
    let name = third.name().to_owned();
    assert!(keys_of(&lab, &name, "PERMITS", 1) > 0 && keys_of(&lab, &name, "PERMITS", 2) > 0);
    second.detach().unwrap();
    assert_eq!(["PERMITS", "OWN"].map(|map| keys_of(&lab, &name, map, 1)), [0, 0]);
    assert!(reaches(&b, &OK.to_string()), "open again");
    assert!(reaches(&c, "evil.test") && !reaches(&c, &OK.to_string()));

    // Whoever comes next gets the programs, and neither the slot nor what it held.
    let fourth = attach_in_the_box(&lab, &d, policy(""));
    assert_eq!(set_of(&lab, fourth.name()), sets[1]);
    assert_eq!(keys_of(&lab, &name, "PERMITS", 1), 0);
    assert!(!reaches(&d, OTHER) && !reaches(&d, &OK.to_string()) && !reaches(&d, "evil.test"));

    third.detach().unwrap();
    let denied = |events: Vec<egress_agent::observe::event::Event>| {
        events
            .into_iter()
            .filter(|event| event.event == Kind::Connect)
            .filter_map(|event| event.dst_ip)
            .collect::<Vec<_>>()
    };
    let (of_second, of_third) = (denied(heard_by_second.collect()), denied(heard_by_third.collect()));
    assert!(of_second.contains(&EVIL) && of_second.contains(&OK), "{of_second:?}");
    assert!(of_third.contains(&OK) && !of_third.contains(&EVIL), "{of_third:?}");
    fourth.detach().unwrap();
    first.detach().unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// Whom a socket asked for a name is kept with the socket: however many others ask, nobody's is forgotten.
#[test]
fn a_crowd_of_questions_leaves_every_answer_its_server() {
    const CROWD: usize = 5000;
    let lab = Lab::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| Job::new(&lab, name));
    let sandboxes = [&a, &b, &c].map(|job| attach_in_the_box(&lab, job, policy("names = [\"both.test\"]")));
    assert_eq!(set_of(&lab, sandboxes[1].name()), set_of(&lab, sandboxes[2].name()));
    let mut asking = b.spawn(&format!("exec {} both.test wait", lab.probe("source.py")));
    asking.says("asked", SOON);
    let mut crowd = c.spawn(&format!("exec {} {CROWD} both.test", lab.probe("crowd.py")));
    crowd.says(&format!("asked={CROWD}"), SOON);
    asking.feed(b"\n");
    let answered = asking.finish(SOON);
    for server in ["127.0.0.11", "203.0.113.8", "::1", "2001:db8::54"] {
        answered.says(&format!("{server} answers as {server} 53"));
    }
    crowd.feed(b"\n");
    crowd.finish(SOON).exits(0);
    for sandbox in sandboxes {
        sandbox.detach().unwrap();
    }
}

#[test]
fn those_of_one_network_namespace_have_programs_of_their_own() {
    let lab = Lab::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| Job::new(&lab, name));
    let other = lab.another_box(31);
    let in_netns = |job: &Job<'_>, netns: &lab::Netns, policy| {
        let builder = Sandbox::builder(policy).cgroup(job.cgroup().path()).netns(netns.path()).dirs(directories(&lab));
        lab.outer_ns().enter(|| builder.attach().unwrap())
    };
    let first = attach_in_the_box(&lab, &a, policy(""));
    let second = in_netns(&b, lab.box_ns(), addresses(&["198.51.100.10"]));
    let neighbour = in_netns(&c, &other, policy(""));
    let d = Job::new(&lab, "d");
    let third = in_netns(&d, lab.box_ns(), addresses(&["198.51.100.20"]));
    let sets = [&first, &second, &neighbour, &third].map(|sandbox| set_of(&lab, sandbox.name()));
    assert!(sets[1] == sets[2] && sets[3] != sets[1], "{sets:?}");
    // The device of the box passes what either may reach; the cgroup hooks still tell them apart.
    assert!(reaches(&b, &OK.to_string()) && !reaches(&b, &EVIL.to_string()));
    assert!(reaches(&d, &EVIL.to_string()) && !reaches(&d, &OK.to_string()));
    for sandbox in [third, neighbour, second, first] {
        sandbox.detach().unwrap();
    }
}

/// Not a test, but the other process of the one below: takes a sandbox over, or says why not.
#[test]
fn adopter() {
    let Ok(words) = std::env::var("EGT_ADOPT") else { return };
    let [name, state, pin] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("NAME STATE PIN: {words}") };
    let directories = egress_agent::sandbox::Directories { state: state.into(), pin: pin.into() };
    match Sandbox::adopt(name, &directories) {
        Ok(_) => println!("\nadopted"),
        Err(error) => println!("\n{error}"),
    }
    process::exit(0);
}

#[test]
fn one_process_at_a_time_reads_what_a_set_reports() {
    let lab = Lab::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| Job::new(&lab, name));
    let _first = attach_in_the_box(&lab, &a, policy(""));
    let mut second = attach_in_the_box(&lab, &b, addresses(&["198.51.100.10"]));
    let third = attach_in_the_box(&lab, &c, addresses(&["198.51.100.20"]));
    assert_eq!(set_of(&lab, second.name()), set_of(&lab, third.name()));
    let name = second.name().to_owned();
    second.pin("left").unwrap();
    drop(second);
    let elsewhere = || {
        let this = std::env::current_exe().unwrap();
        let mut command = lab.box_ns().command(this.to_str().unwrap());
        let words = format!("{name} {} {}", lab.state_dir().display(), lab.pin_dir().display());
        command.args(["--exact", "--nocapture", "--test-threads=1", "together::adopter"]).env("EGT_ADOPT", words);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let refused = elsewhere();
    assert!(refused.contains(third.name()) && refused.contains("adopt both in one process"), "{refused}");
    assert!(reaches(&b, &OK.to_string()) && !reaches(&b, &EVIL.to_string()), "enforced by the kernel alone");

    // The process that serves the other may; both are heard then.
    let again = lab.box_ns().enter(|| Sandbox::adopt("left", &directories(&lab)).unwrap());
    let (events, others) = (again.events(), third.events());
    assert!(!reaches(&b, &EVIL.to_string()) && !reaches(&c, &OK.to_string()));
    again.detach().unwrap();
    third.detach().unwrap();
    assert!(events.into_iter().any(|event| event.dst_ip == Some(EVIL)));
    let heard: Vec<_> = others.into_iter().filter_map(|event| event.dst_ip).collect();
    assert!(heard.contains(&OK) && !heard.contains(&EVIL), "{heard:?}");
    until(SOON, "no pin of them is left", || !Path::new(&lab.pin_dir().join(&name)).exists());
}
