//! Several policies, and several sandboxes.

use super::{Job, end};
use lab::{EVIL, Lab, OK};
use nix::sys::signal::Signal;

#[test]
fn policies_of_several_files_add_up_and_denies_win() {
    let lab = Lab::new();
    // f.test shares nothing; c.test resolves to an address that the organisation closes.
    let org = lab.file(
        "org.toml",
        "version = 1\n[allow]\nnames = [\"ok.test\"]\n[deny]\nnames = [\"secret.lab.test\"]\naddresses = [\"198.51.100.13\"]\n",
    );
    let repository = lab.file("ci.toml", "version = 1\n[allow]\nnames = [\"a.test\", \"*.lab.test\", \"c.test\"]\n");
    lab.zone().put("secret.lab.test", lab::Entry::at(&["198.51.100.14"]));
    let token = |name: &str| lab.token(name);
    let job = Job::new(&lab, "job");
    let attach = job.attach("--allow b.test").arg("--policy").arg(&org).arg("--policy").arg(&repository);
    let attach = crate::job::ready(attach);
    for name in ["ok.test", "a.test", "b.test", "good.lab.test"] {
        assert_eq!(job.curl(name, &token(name)), Some(0), "{name}");
        lab.expect_hits(&token(name), 1);
    }
    for name in ["secret.lab.test", "c.test", "198.51.100.13", "198.51.100.14", "evil.test"] {
        assert!(job.curl(name, &token("closed")).is_some_and(|code| [6, 7].contains(&code)), "{name}");
    }
    assert!(lab.zone().queries_for("secret.lab.test").is_empty(), "a denied name is not asked for");
    end(attach, Signal::SIGINT).exits(0);

    // Without the organisation's file the same repository reaches them.
    let attach = crate::job::ready(job.attach("").arg("--policy").arg(&repository));
    for name in ["secret.lab.test", "c.test"] {
        assert_eq!(job.curl(name, &token(&format!("twin-{name}"))), Some(0), "{name}");
    }
    end(attach, Signal::SIGINT).exits(0);
    assert_eq!(lab.hits(&token("closed")).len(), 0);
}

#[test]
fn detach_all_opens_every_sandbox_of_these_directories_alone() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (pinned, served) = (Job::new(&lab, "pinned"), Job::new(&lab, "served"));
    let before = lab.snapshot();
    pinned.attach(&format!("--allow {OK} --pin")).output().exits(0);
    let attach = served.attached("--allow ok.test");
    let elsewhere = Job::new(&other, "elsewhere");
    elsewhere.attach(&format!("--allow {OK} --pin")).output().exits(0);
    for job in [&pinned, &served] {
        assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    }
    lab.egressd("explain").arg("ok.test").output().exits(2).says("--cgroup");
    lab.egressd("detach").flags("--all").output().exits(0);
    attach.finish(std::time::Duration::from_secs(3600)).exits(0).says("detached by another");
    for job in [&pinned, &served] {
        assert_eq!(job.status().0, Some(5));
        assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0));
    }
    lab.expect_hits(&lab.token("open"), 2);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    lab.egressd("detach").flags("--all").output().exits(0);
    assert_eq!(elsewhere.status().0, Some(0));
    assert_eq!(elsewhere.curl(&EVIL.to_string(), &other.token("closed")), Some(7));
    elsewhere.detach().exits(0);
    other.expect_silence(EVIL);
}
