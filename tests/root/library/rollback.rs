//! An update that the kernel refuses half-way: taken back, or closed.

use super::*;
use lab::need;
use std::fmt::Write as _;

/// The pinned maps of the lab's one sandbox.
fn maps(lab: &Lab) -> std::path::PathBuf {
    lab.pin_dir().join(&sandbox::list(&directories(lab)).unwrap()[0].sandbox).join("maps")
}

#[test]
fn what_was_written_of_a_failed_update_is_taken_back() {
    need("bpftool");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let mut sandbox = attach_in_the_box(&lab, &job, policy("names = [\"ok.test\"]"));
    assert_eq!(job.curl("ok.test", &lab.token("before")), Some(0));
    // Permits of a sandbox that is not there, until no other fits. One goes with the name, so the update needs two.
    let permits = maps(&lab).join("PERMITS");
    let update = format!("map update pinned {} key hex 09 00 00 00", permits.display());
    let lines = (0..5000_u32).fold(String::new(), |mut lines, number| {
        let key = number.to_be_bytes().map(|byte| format!("{byte:02x}")).join(" ");
        writeln!(lines, "{update}{} {key} value hex{}", " 00".repeat(12), " 00".repeat(72)).unwrap();
        lines
    });
    let batch = lab.file("permits", &lines);
    // It ends at the first that does not fit.
    lab.outer_ns().sh(&format!("bpftool batch file {}", batch.display())).says("Argument list too long");

    let text = format!(
        "version = 1\n[allow]\nnames = [\"evil.test\"]\naddresses = [\"198.51.100.20\", \"198.51.100.11\"]\n[deny]\naddresses = [\"198.51.100.10\"]\n[dns]\nservers = [\"{DNS}\"]\n"
    );
    let refused = sandbox.update(Policy::from_toml(&text).unwrap()).unwrap_err();
    assert!(matches!(refused, Error::Table(_)), "{refused:?}");
    assert_eq!(sandbox.generation(), 1);
    assert_eq!(job.curl("ok.test", &lab.token("name")), Some(0), "the names are as before, and the deny is gone again");
    assert_eq!(job.curl("198.51.100.10", &lab.token("permit")), Some(0));
    assert_eq!(job.curl("198.51.100.20", &lab.token("closed")), Some(7));
    assert!(job.curl("evil.test", &lab.token("closed")).is_some_and(|code| code != 0));
    sandbox.detach().unwrap();
    for name in ["before", "permit", "name"] {
        lab.expect_hits(&lab.token(name), 1);
    }
    lab.expect_silence(EVIL);
}

#[test]
fn an_update_that_cannot_be_taken_back_closes_the_sandbox() {
    need("bpftool");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let mut sandbox = attach_in_the_box(&lab, &job, addresses(&["198.51.100.10"]));
    assert_eq!(job.curl("198.51.100.10", &lab.token("before")), Some(0));
    // Nothing can be written into a frozen map, and so nothing taken back.
    lab.outer_ns().sh(&format!("bpftool map freeze pinned {}", maps(&lab).join("NETWORKS").display())).exits(0);
    let refused = sandbox.update(addresses(&["198.51.100.10", "203.0.113.0/24"])).unwrap_err();
    assert!(matches!(refused, Error::Table(_)), "{refused:?}");
    assert_eq!(job.curl("198.51.100.10", &lab.token("closed")), Some(7), "neither policy as a whole");
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    sandbox.detach().unwrap();
    assert_eq!(job.curl("198.51.100.10", &lab.token("after")), Some(0));
}
