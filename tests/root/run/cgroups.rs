//! What is a cgroup to enforce, and what is refused.

use super::*;
use egress_agent::cgroup::{CgroupError, cgroup_of_process, own_cgroup};
use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
};

#[test]
fn a_cgroup_is_found_by_name_by_path_and_by_process() {
    let fresh = Fresh::new();
    let name = fresh.path().file_name().unwrap().to_owned();
    assert_eq!(Cgroup::open(&mount(), Path::new(&name)).unwrap().id(), fresh.id());
    assert_eq!(Cgroup::open(&mount(), fresh.path()).unwrap().name(), fresh.name());
    assert_eq!(fresh.id(), fs::metadata(fresh.path()).unwrap().ino());
    let child = sleeper(&fresh, |_| {});
    assert_eq!(Cgroup::of_process(&mount(), child.pid()).unwrap().id(), fresh.id());
    assert_eq!(cgroup_of_process(child.pid()).unwrap(), fresh.name());
    assert!(fresh.holds(child.pid()));
    assert!(!fresh.holds(std::process::id()));
}

#[test]
fn links_and_dots_lead_to_the_same_cgroup() {
    let (fresh, dir) = (Fresh::new(), tempfile::tempdir().unwrap());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(fresh.path(), &link).unwrap();
    for path in [link, fresh.path().join("."), fresh.path().join("../").join(fresh.path().file_name().unwrap())] {
        let opened = Cgroup::open(&mount(), &path).unwrap();
        assert_eq!((opened.path(), opened.name()), (fresh.path(), fresh.name()), "{}", path.display());
    }
}

#[test]
fn what_is_no_v2_cgroup_is_refused_by_name() {
    let (mount, dir) = (mount(), tempfile::tempdir().unwrap());
    assert!(matches!(Cgroup::open(&mount, Path::new("egt-nowhere")), Err(CgroupError::Missing { .. })));
    assert!(matches!(Cgroup::open(&mount, dir.path()), Err(CgroupError::NotCgroup { .. })));
    assert!(matches!(Cgroup::open(&mount, Path::new("cgroup.procs")), Err(CgroupError::NotCgroup { .. })));
}

#[test]
fn a_v1_cgroup_is_refused_with_the_way_to_v2() {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let v1 = mountinfo.lines().find(|line| line.contains(" - cgroup ")).expect("this host is hybrid");
    let point = v1.split(' ').nth(4).unwrap();
    let error = Cgroup::open(&mount(), Path::new(point)).unwrap_err();
    assert!(matches!(error, CgroupError::V1 { .. }), "{error}");
    assert!(error.to_string().contains(mount().point().to_str().unwrap()), "{error}");
}

#[test]
fn threaded_cgroups_are_refused_but_not_the_domain_above_them() {
    let fresh = Fresh::new();
    let child = Cgroup::create_child(&fresh, "egt").unwrap();
    fs::write(child.path().join("cgroup.type"), "threaded").unwrap();
    assert!(matches!(Cgroup::open(&mount(), child.path()), Err(CgroupError::Threaded { .. })));
    assert!(Cgroup::open(&mount(), fresh.path()).is_ok());
    let before = fs::read_dir(child.path()).unwrap().count();
    assert!(matches!(Cgroup::create_child(&child, "egt"), Err(CgroupError::Threaded { .. })));
    assert_eq!(fs::read_dir(child.path()).unwrap().count(), before, "nothing is left behind");
}

#[test]
fn the_root_is_refused_and_a_fresh_cgroup_is_not() {
    assert!(matches!(root().check_enforceable(), Err(CgroupError::Root { .. })));
    Fresh::new().check_enforceable().unwrap();
}

/// Runs this binary again inside a cgroup; there the inner half judges.
#[test]
fn a_cgroup_that_holds_egressd_is_refused() {
    if let Some(cgroup) = std::env::var_os("EGT_HOLDS") {
        let own = own_cgroup().unwrap();
        let error = Cgroup::open(&mount(), Path::new(&cgroup)).unwrap().check_enforceable().unwrap_err();
        assert!(matches!(&error, CgroupError::HoldsEgressd { own: named, .. } if *named == own), "{error}");
        return;
    }
    let fresh = Fresh::new();
    let inner = Cgroup::create_child(&fresh, "egt").unwrap();
    let this = std::env::current_exe().unwrap();
    for holder in [&inner, &*fresh] {
        let mut itself = command(0, &[this.to_str().unwrap(), "--exact", "--quiet"]);
        itself.argv.push("run::cgroups::a_cgroup_that_holds_egressd_is_refused".into());
        itself.env.push(("EGT_HOLDS".into(), holder.path().into()));
        let mut child = spawn(&itself, &inner).unwrap();
        let exit = child.wait(&Signals::take().unwrap(), Limits::default()).unwrap();
        assert_eq!(exit, Exit::Code(0), "{}", holder.path().display());
    }
}

#[test]
fn delegation_is_seen_at_every_ancestor_and_only_there() {
    let fresh = Fresh::new();
    let middle = Cgroup::create_child(&fresh, "egt").unwrap();
    let inner = Cgroup::create_child(&middle, "egt").unwrap();
    let delegated = || inner.delegated_to(NOBODY, &[NOBODY]).unwrap();
    assert_eq!(delegated(), None);
    // Its own directory leads nowhere but further in.
    chown(inner.path(), Some(NOBODY), None).unwrap();
    assert_eq!(delegated(), None);
    chown(fresh.path().join("cgroup.procs"), Some(NOBODY), None).unwrap();
    assert_eq!(delegated(), Some(fresh.path().to_owned()));
    chown(middle.path(), Some(NOBODY), None).unwrap();
    assert_eq!(delegated(), Some(middle.path().to_owned()));
    assert_eq!(inner.delegated_to(NOBODY - 1, &[]).unwrap(), None);
}

#[test]
fn a_group_that_may_write_counts() {
    use std::os::unix::fs::PermissionsExt;
    let fresh = Fresh::new();
    let inner = Cgroup::create_child(&fresh, "egt").unwrap();
    let procs = fresh.path().join("cgroup.procs");
    chown(&procs, None, Some(4242)).unwrap();
    assert_eq!(inner.delegated_to(NOBODY, &[4242]).unwrap(), None);
    fs::set_permissions(&procs, fs::Permissions::from_mode(0o664)).unwrap();
    assert_eq!(inner.delegated_to(NOBODY, &[4242]).unwrap(), Some(fresh.path().to_owned()));
    assert_eq!(inner.delegated_to(NOBODY, &[4243]).unwrap(), None);
}

#[test]
fn a_removed_cgroup_is_empty_and_its_successor_is_left_alone() {
    let fresh = Fresh::new();
    let old = Cgroup::create_child(&fresh, "egt").unwrap();
    old.remove().unwrap();
    assert!(!old.populated().unwrap());
    old.remove().unwrap();
    fs::create_dir(old.path()).unwrap();
    let successor = Cgroup::open(&mount(), old.path()).unwrap();
    let child = sleeper(&successor, |_| {});
    old.kill().unwrap();
    old.remove().unwrap();
    assert!(!old.populated().unwrap());
    assert!(successor.populated().unwrap() && successor.holds(child.pid()));
}

/// Without a first process beside it.
fn sharing_pids(cgroup: &Cgroup) -> Child<'_> {
    sleeper(cgroup, |command| command.shares.pids = true)
}

#[test]
fn processes_are_listed_waited_for_and_killed_in_the_whole_subtree() {
    let fresh = Fresh::new();
    let inner = Cgroup::create_child(&fresh, "egt").unwrap();
    let (outer_child, inner_child) = (sharing_pids(&fresh), sharing_pids(&inner));
    let mut pids = fresh.procs().unwrap();
    pids.sort_unstable();
    let mut expected = [outer_child.pid(), inner_child.pid()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    let error = fresh.wait_unpopulated(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, CgroupError::Populated { pids, .. } if pids.len() == 2));
    assert!(matches!(fresh.remove(), Err(CgroupError::Io { .. })), "a populated cgroup stays");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fresh.wait_unpopulated(LIMIT));
        fresh.kill().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert!(!fresh.populated().unwrap());
}
