//! Program sets that stay loaded: whoever takes one finds nothing of the one before, and has it alone.

use crate::job::Job;
use lab::{EVIL, Inside, Lab, Launch, OK, Output};
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(10);
/// How often a set is taken before it is loaded anew.
const TIMES: u32 = 16;

#[track_caller]
fn preload(lab: &Lab, sets: u32) {
    lab.egressd("preload").flags(&format!("--sets {sets}")).output().exits(0);
}

/// The directories of the sets that wait.
fn waiting(lab: &Lab) -> Vec<PathBuf> {
    let kept = fs::read_dir(lab.pin_dir()).into_iter().flatten().flatten().map(|entry| entry.path());
    let kept = kept.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("kept:"));
    let mut sets: Vec<_> =
        kept.flat_map(|kept| fs::read_dir(kept).unwrap()).map(|entry| entry.unwrap().path()).collect();
    sets.sort();
    sets
}

/// The slots that those who come next get.
fn slots(lab: &Lab) -> Vec<u32> {
    let slot = |path: PathBuf| path.to_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap();
    waiting(lab).into_iter().map(slot).collect()
}

/// The programs that are on the lab's cgroups now.
fn programs(lab: &Lab) -> BTreeSet<String> {
    let snapshot = lab.snapshot();
    let lines = snapshot.lines("program ").into_iter().filter(|line| line.starts_with("program "));
    lines.map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
}

/// Starts a sandbox that may reach `name` at `there`, and nothing else: `closed` gets nothing, the other gets what is sent.
#[track_caller]
fn enforced<'l>(lab: &'l Lab, run: Launch<'l>, (name, there): (&str, &str), closed: &str) -> Inside {
    static SANDBOX: AtomicU32 = AtomicU32::new(0);
    let number = SANDBOX.fetch_add(1, Ordering::Relaxed);
    let token = lab.token(&format!("sent-{number}"));
    let mut inside = Inside::start(run.flags(&format!("--allow {name}")));
    inside.ask(&format!("curl -fsS -m5 http://{name}/{token}")).exits(0);
    inside.ask(&format!("curl -fsS -m5 http://{there}/{token}")).exits(0);
    lab.expect_hits(&token, 2);
    let token = lab.token(&format!("closed-{number}"));
    inside.ask(&format!("curl -fsS -m5 http://{closed}/{token}")).exits(7);
    assert!(lab.hits(&token).is_empty(), "{closed} was reached");
    inside
}

#[test]
fn one_after_the_other_takes_the_same_programs_and_finds_nothing_of_the_one_before() {
    let lab = Lab::new();
    let nothing = lab.snapshot();
    lab.zone().put("other.test", lab::Entry::at(&["198.51.100.21"]));
    let [ok, other] = [("ok.test", OK.to_string()), ("other.test", "198.51.100.21".to_owned())];
    let promised = |output: &Output| output.stderr.lines().next().unwrap_or_default().to_owned();
    let levels: Vec<_> = lab
        .shapes()
        .into_iter()
        .map(|(_, run)| promised(&run.flags("--allow ok.test").program(&["true"]).output()))
        .collect();
    assert!(levels.iter().all(|level| level.contains(" L")), "{levels:?}");
    preload(&lab, 1);
    assert_eq!(slots(&lab), [1]);
    let mut seen = BTreeSet::new();
    let mut slot = 1;
    for (may, must_not) in [(&ok, &other), (&other, &ok), (&ok, &other)] {
        for ((shape, run), level) in lab.shapes().into_iter().zip(&levels) {
            let before = lab.snapshot();
            let inside = enforced(&lab, run, (may.0, &may.1), &must_not.1);
            seen.insert(programs(&lab));
            assert!(waiting(&lab).is_empty(), "{shape}: whoever has a set has it alone");
            let output = inside.end();
            assert_eq!(promised(output.exits(0)), *level, "{shape}: as much as without");
            slot += 1;
            assert_eq!(slots(&lab), [slot], "{shape}: no slot is given twice");
            // The directory's name is another, and nothing else is.
            let news: Vec<_> =
                before.diff(&lab.snapshot()).into_iter().filter(|line| !line.contains("/kept:1/")).collect();
            assert_eq!(news, Vec::<String>::new(), "{shape} left something");
        }
    }
    assert_eq!(seen.len(), 1, "nothing was loaded: {seen:?}");
    assert!(seen.iter().all(|programs| programs.len() >= 14), "{seen:?}");
    preload(&lab, 0);
    assert_eq!(nothing.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_set_is_loaded_anew_before_its_slots_run_out() {
    let lab = Lab::new();
    preload(&lab, 1);
    let first = waiting(&lab);
    for slot in 2..=TIMES {
        lab.run("--allow ok.test", &["true"]).exits(0);
        assert_eq!(slots(&lab), [slot]);
    }
    lab.run("--allow ok.test", &["true"]).exits(0);
    assert_eq!(slots(&lab), [0; 0], "its last slot was given");
    enforced(&lab, lab.egressd("run"), ("ok.test", &OK.to_string()), &EVIL.to_string()).end().exits(0);
    assert_eq!(slots(&lab), [2], "whoever finds none leaves his own");
    let ring = |sets: &[PathBuf]| sets[0].to_str().unwrap().rsplit('-').nth(1).unwrap().to_owned();
    assert_ne!(ring(&waiting(&lab)), ring(&first));
    // Of a sandbox that had no device; the next one has, and leaves what it loaded for that as well.
    let of_device = |sets: &[PathBuf]| sets[0].join("programs/device_egress").exists();
    assert!(!of_device(&waiting(&lab)));
    let run = lab.egressd("run").entering(lab.box_ns()).flags("--require L2");
    enforced(&lab, run, ("ok.test", &OK.to_string()), &EVIL.to_string()).end().exits(0);
    assert_eq!((slots(&lab), of_device(&waiting(&lab))), (vec![3], true));
    let run = lab.egressd("run").entering(lab.box_ns()).flags("--require L2");
    enforced(&lab, run, ("ok.test", &OK.to_string()), &EVIL.to_string()).end().exits(0);
    preload(&lab, 0);
}

#[test]
fn as_many_wait_as_were_asked_for() {
    let lab = Lab::new();
    preload(&lab, 1);
    let [ok, evil] = [OK.to_string(), EVIL.to_string()];
    let both = [(); 2].map(|()| enforced(&lab, lab.egressd("run"), ("ok.test", &ok), &evil));
    for inside in both {
        inside.end().exits(0);
        assert_eq!(slots(&lab), [2]);
    }
    for sets in [3, 2] {
        preload(&lab, sets);
        assert_eq!(slots(&lab).len(), sets as usize);
    }
    // A policy that is too large for it has maps of its own.
    for (number, fits) in [(128, true), (129, false)] {
        let others: Vec<_> = (1..number).map(|host| format!("\"198.18.0.{host}\"")).collect();
        let text = format!("version = 1\n[allow]\naddresses = [\"{ok}:80\", {}]\n", others.join(", "));
        let policy = lab.file(&format!("{number}.toml"), &text);
        let before = waiting(&lab);
        let token = lab.token(&format!("of-{number}"));
        let run = lab.egressd("run").arg("--policy").arg(policy);
        run.sh(&format!("curl -fsS -m5 http://{ok}/{token}")).output().exits(0);
        lab.expect_hits(&token, 1);
        assert_eq!(waiting(&lab) != before, fits, "{number}");
    }
    preload(&lab, 0);
}

#[test]
fn a_set_whose_owner_is_killed_stays_with_the_sandbox() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let nothing = lab.snapshot();
    preload(&lab, 1);
    let mut owner = job.attached("--allow ok.test");
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    owner.signal(Signal::SIGKILL);
    owner.wait(SOON);
    assert!(waiting(&lab).is_empty());
    let (sent, closed) = (lab.token("sent"), lab.token("closed"));
    assert_eq!(job.curl(&OK.to_string(), &sent), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7));
    assert_eq!((lab.hits(&sent).len(), lab.hits(&closed).len()), (1, 0));
    // Whoever takes the sandbox over has its maps alone, and so nothing to leave.
    let owner = job.attached("--allow ok.test");
    assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7));
    owner.signal(Signal::SIGTERM);
    owner.finish(SOON).exits(0);
    assert!(waiting(&lab).is_empty());
    lab.run("--allow ok.test", &["true"]).exits(0);
    assert_eq!(slots(&lab), [2]);
    preload(&lab, 0);
    assert_eq!(nothing.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_set_of_another_build_or_with_a_program_missing_is_not_taken() {
    let lab = Lab::new();
    let [ok, evil] = [OK.to_string(), EVIL.to_string()];
    let spoilt = |spoil: &dyn Fn(PathBuf), warns: bool| {
        preload(&lab, 1);
        let set = waiting(&lab).remove(0);
        let ring = set.to_str().unwrap().rsplit('-').nth(1).unwrap().to_owned();
        spoil(set);
        let output = enforced(&lab, lab.egressd("run"), ("ok.test", &ok), &evil).end();
        assert_eq!(output.exits(0).stderr.contains("that was kept cannot be used"), warns, "{output}");
        let after = waiting(&lab);
        assert_eq!(after.len(), 1);
        assert_ne!(after[0].to_str().unwrap().rsplit('-').nth(1).unwrap(), ring);
        preload(&lab, 0);
    };
    let other_build = |set: PathBuf| {
        let name = set.file_name().unwrap().to_str().unwrap();
        let (object, _) = name.split_once('-').unwrap();
        fs::rename(&set, set.with_file_name(name.replacen(object, "0123456789abcdef", 1))).unwrap();
    };
    spoilt(&other_build, false);
    spoilt(&|set| fs::remove_file(set.join("programs/egress")).unwrap(), true);
    spoilt(&|set| fs::remove_file(set.join("PERMITS")).unwrap(), true);
    // One that nobody finished.
    spoilt(&|set| fs::rename(&set, set.with_file_name("unfinished")).unwrap(), false);
}

/// Whoever takes a sandbox down may be killed on the way: the next one goes on where that one was.
#[test]
fn a_take_down_that_was_interrupted_goes_on() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let nothing = lab.snapshot();
    let maps = || lab.pin_dir().join(job.status().1["sandbox"].as_str().unwrap()).join("maps");
    // Behind clearing its slot, and behind giving its maps away.
    let cleared = |maps: PathBuf| {
        let sandboxes = maps.join("SANDBOXES");
        let sandboxes = sandboxes.to_str().unwrap();
        let shown = lab.box_ns().sh(&format!("bpftool -j map show pinned {sandboxes}"));
        let shown: serde_json::Value = serde_json::from_str(&shown.exits(0).stdout).unwrap();
        let zeros = "0 ".repeat(shown["bytes_value"].as_u64().unwrap() as usize);
        lab.box_ns().sh(&format!("bpftool map update pinned {sandboxes} key 1 0 0 0 value {zeros}")).exits(0);
    };
    let given = |maps: PathBuf| fs::rename(maps, lab.pin_dir().join("kept:1/0_0-1-2")).unwrap();
    for interrupt in [&cleared as &dyn Fn(PathBuf), &given] {
        preload(&lab, 1);
        let mut owner = job.attached("--allow ok.test");
        assert_eq!(job.curl(&EVIL.to_string(), "closed"), Some(7));
        owner.signal(Signal::SIGKILL);
        owner.wait(SOON);
        interrupt(maps());
        assert_ne!(job.status().0, Some(0), "it is not enforced");
        job.detach().exits(0);
        let token = lab.token("open");
        assert_eq!(job.curl(&EVIL.to_string(), &token), Some(0));
        preload(&lab, 0);
        assert_eq!(nothing.diff(&lab.snapshot()), Vec::<String>::new());
    }
}

/// What is wrong with the sets that wait keeps no sandbox from loading its own.
#[test]
fn what_is_in_the_way_of_taking_a_set_costs_time_alone() {
    let lab = Lab::new();
    preload(&lab, 1);
    let set = waiting(&lab).remove(0);
    // A pin where a directory should be, which no build removes.
    fs::rename(set.join("PERMITS"), set.with_file_name("0_0-1-1")).unwrap();
    let [ok, evil] = [OK.to_string(), EVIL.to_string()];
    let output = enforced(&lab, lab.egressd("run"), ("ok.test", &ok), &evil).end();
    output.exits(0).says("that was kept cannot be used");
    preload(&lab, 0);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let lab = Lab::new();
    let nothing = lab.snapshot();
    lab.egressd("preload").flags("--sets 65").output().exits(2).says("65 is not in 0..=64");
    let unshared = lab.egressd("preload").through(&["unshare", "-m"]).output();
    // Where not even root may look at PID 1's namespace, there is nothing to compare with.
    assert!(matches!(unshared.code, Some(3 | 4)), "{unshared}");
    unshared.says("PID 1");
    preload(&lab, 0);
    assert_eq!(nothing.diff(&lab.snapshot()), Vec::<String>::new());
}
