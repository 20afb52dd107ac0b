//! E02 on the kernel's own map: an answer that finds no room in it.

use crate::{
    job::Job,
    library::{attach_in_the_box, policy},
};
use lab::{Entry, Lab, need, until};
use serde_json::Value;
use std::{fmt::Write as _, path::Path, time::Duration};

const SOON: Duration = Duration::from_secs(10);

/// What bpftool says of a map, as JSON.
fn bpftool(lab: &Lab, words: &str, map: &Path) -> Value {
    let output = lab.outer_ns().sh(&format!("bpftool -j map {words} pinned {}", map.display()));
    serde_json::from_str(&output.exits(0).stdout).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!(" {byte:02x}")).collect()
}

#[test]
fn e02_an_answer_that_does_not_fit_opens_nothing() {
    const ADDRESSES: [&str; 5] = ["198.51.100.10", "198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.14"];
    /// Fewer than that.
    const ROOM: u64 = 3;
    need("bpftool");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    lab.zone().put("many.test", Entry::at(&ADDRESSES).ttl(600));
    lab.zone().put("one.test", Entry::at(&["198.51.100.15"]).ttl(600));
    let before = lab.snapshot();
    let sandbox = attach_in_the_box(&lab, &job, policy("names = [\"many.test\", \"one.test\"]"));
    let map = lab.pin_dir().join(sandbox.name()).join("maps/PERMITS");
    let entries = || bpftool(&lab, "dump", &map).as_array().unwrap().len() as u64;
    let shape = bpftool(&lab, "show", &map);
    let of = |field: &str| shape[field].as_u64().unwrap_or_else(|| panic!("no {field} in {shape}"));
    // Entries of a sandbox that is not there: its slot is no slot, and nobody sweeps them.
    let key = |number: u64| {
        let mut key = vec![0xff; usize::try_from(of("bytes_key")).unwrap()];
        key[4..12].copy_from_slice(&number.to_be_bytes());
        hex(&key)
    };
    let value = hex(&vec![0; usize::try_from(of("bytes_value")).unwrap()]);
    let strangers = of("max_entries") - entries() - ROOM;
    let batch = |line: &dyn Fn(u64) -> String, numbers: std::ops::Range<u64>| {
        let mut lines = String::new();
        numbers.for_each(|number| writeln!(lines, "map {}", line(number)).unwrap());
        let file = lab.file("batch", &lines);
        lab.outer_ns().sh(&format!("bpftool batch file {}", file.display())).exits(0);
    };
    let at = map.display();
    batch(&|number| format!("update pinned {at} key hex{} value hex{value}", key(number)), 0..strangers);
    let full = entries();

    let look_up = || job.sh("dig +tries=1 +time=3 many.test");
    look_up().says("SERVFAIL");
    assert_eq!(entries(), full, "what had been written was taken back");
    for address in ADDRESSES {
        assert_eq!(job.curl(address, &lab.token("closed")), Some(7), "{address}");
    }
    // Nor does anybody hear that the name has them, once it is known what an answer that fits left behind.
    let explained = |name: &str| lab.egressd("explain").arg(name).output().exits(0).stdout.clone();
    let names_of = |address: &str| job.sh(&format!("dig +tries=1 +time=3 +short -x {address}")).stdout;
    job.sh("dig +tries=1 +time=3 one.test").says("NOERROR");
    until(SOON, "one.test is written down", || explained("one.test").contains("198.51.100.15"));
    assert_eq!(names_of("198.51.100.15"), "one.test.\n");
    assert!(explained("many.test").contains("not_resolved_yet"), "{}", explained("many.test"));
    assert_eq!(ADDRESSES.map(names_of), [""; 5]);
    // Its twin, where there is room.
    batch(&|number| format!("delete pinned {at} key hex{}", key(number)), 0..strangers);
    look_up().says("NOERROR").says(ADDRESSES[4]);
    until(SOON, "many.test is written down", || explained("many.test").contains(ADDRESSES[4]));
    assert_eq!(ADDRESSES.map(names_of), ["many.test.\n"; 5]);
    for address in ADDRESSES {
        assert_eq!(job.curl(address, &lab.token("open")), Some(0), "{address}");
    }
    lab.expect_hits(&lab.token("open"), ADDRESSES.len());
    assert_eq!(lab.hits(&lab.token("closed")), []);
    sandbox.detach().unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}
