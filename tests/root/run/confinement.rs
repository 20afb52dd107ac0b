//! What CMD is given, and what it is not.

use super::*;
use egress_agent::run::{RunError, Step};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::fs::MetadataExt,
};

const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

#[test]
fn no_capability_is_left_in_any_set_for_root_nor_for_others() {
    for uid in [0, NOBODY] {
        let cgroup = Fresh::new();
        let child = sleeper(&cgroup, |command| command.identity = user(uid));
        for set in SETS {
            assert_eq!(status(child.pid(), set), "0000000000000000", "{set} of uid {uid}");
        }
        assert_eq!(status(child.pid(), "NoNewPrivs"), "1");
        assert_eq!(status(child.pid(), "SigBlk"), "0000000000000000");
    }
}

#[test]
fn a_kept_capability_is_the_only_one_and_survives_exec_of_any_user() {
    let kept = KeptCaps::parse(&["net_bind_service"], false).unwrap();
    for uid in [0, NOBODY] {
        let cgroup = Fresh::new();
        let child = sleeper(&cgroup, |command| (command.identity, command.keep_caps) = (user(uid), kept));
        for set in SETS {
            assert_eq!(status(child.pid(), set), "0000000000000400", "{set} of uid {uid}");
        }
    }
}

#[test]
fn ids_and_groups_are_those_of_the_identity() {
    let cgroup = Fresh::new();
    let child = sleeper(&cgroup, |command| {
        command.identity = Identity { uid: 4242, gid: 4243, groups: vec![27, 4243], ..user(0) };
    });
    assert_eq!(status(child.pid(), "Uid"), "4242\t4242\t4242\t4242");
    assert_eq!(status(child.pid(), "Gid"), "4243\t4243\t4243\t4243");
    assert_eq!(status(child.pid(), "Groups"), "27 4243");
}

#[test]
fn only_what_is_kept_stays_open() {
    use nix::fcntl::{FcntlArg, fcntl};
    // Below and above those of this process; without close-on-exec, as if every one had been handed over.
    let null = File::open("/dev/null").unwrap();
    let files = [3, 3, 3, 500, 500, 500].map(|least| {
        let fd = fcntl(&null, FcntlArg::F_DUPFD(least)).unwrap();
        // SAFETY: nobody else has heard of the new descriptor.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    let kept: Vec<i32> = files.iter().skip(1).step_by(2).map(AsRawFd::as_raw_fd).collect();
    for keep in [&[][..], &kept] {
        let cgroup = Fresh::new();
        let child = sleeper(&cgroup, |command| command.keep_fds = KeptFds::check(keep).unwrap());
        let expected: BTreeSet<i32> = (0..=2).chain(keep.iter().copied()).collect();
        // The dynamic loader has files open for a moment.
        until(LIMIT, "exactly the kept descriptors", || {
            let fds = fs::read_dir(format!("/proc/{}/fd", child.pid())).unwrap();
            expected == fds.map(|fd| fd.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
        });
    }
}

#[test]
fn the_environment_is_exactly_what_was_given() {
    let odd = "@#$% \u{e9}";
    let text = script_output(NOBODY, "tr '\\0' '\\n' < /proc/self/environ", |command| {
        command.env = vec![("PATH".into(), "/bin".into()), ("E".into(), odd.into()), ("EMPTY".into(), "".into())];
    });
    // The shell that runs the script adds PWD for its children.
    let variables: Vec<_> = text.lines().filter(|line| !line.starts_with("PWD=")).collect();
    assert_eq!(variables, ["PATH=/bin", &format!("E={odd}"), "EMPTY="]);
}

/// The processes of a cgroup, less the one that is the first of its pid namespace.
fn beside_process_1(cgroup: &Cgroup) -> Vec<u32> {
    let (first, others): (Vec<_>, Vec<_>) =
        cgroup.procs().unwrap().into_iter().partition(|pid| status(*pid, "NSpid").ends_with("\t1"));
    assert_eq!(first.len(), 1, "{first:?} {others:?}");
    others
}

#[test]
fn cmd_is_born_in_the_cgroup_and_stays_in_group_and_session() {
    let cgroup = Fresh::new();
    let child = sleeper(&cgroup, |_| {});
    assert_eq!(beside_process_1(&cgroup), [child.pid()]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.pid()).unwrap());
    assert_eq!(nix::unistd::getpgid(Some(pid)).unwrap(), nix::unistd::getpgrp());
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), nix::unistd::getsid(None).unwrap());
}

/// Makes a system call fail for the calling thread and its children.
pub(super) fn forbid(call: libc::c_long, errno: i32) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let answer = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::try_from(call).unwrap()),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its four instructions outlive the call, which copies them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn without_clone3_cmd_moves_itself_in_before_anything_else() {
    let (without, with) = (Fresh::new(), Fresh::new());
    let filters = |pid| status(pid, "Seccomp_filters").parse::<u32>().unwrap();
    let own = filters(std::process::id());
    std::thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            // As filters do that are older than the call.
            forbid(libc::SYS_clone3, libc::ENOSYS);
            let child = sleeper(&without, |_| {});
            assert_eq!(beside_process_1(&without), [child.pid()]);
            assert_eq!(filters(child.pid()), own + 3);
            assert_eq!(status(child.pid(), "CapEff"), "0000000000000000");
        });
        filtered.join().unwrap();
    });
    let child = sleeper(&with, |_| {});
    assert_eq!((beside_process_1(&with), filters(child.pid())), (vec![child.pid()], own + 2));
}

#[test]
fn cmd_runs_in_the_namespace_that_it_is_given() {
    // Of a thread that is gone, so that the descriptor alone keeps it.
    let netns = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let netns = netns.join().unwrap();
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    let own = inode("/proc/self/ns/net");
    let given = netns.metadata().unwrap().ino();
    let cgroup = Fresh::new();
    let inside = sleeper(&cgroup, |command| command.netns = Some(OwnedFd::from(netns)));
    let outside = sleeper(&cgroup, |_| {});
    assert_eq!(inode(&format!("/proc/{}/ns/net", inside.pid())), given);
    assert_eq!(inode(&format!("/proc/{}/ns/net", outside.pid())), own);
    assert_ne!(given, own);
}

#[test]
fn what_is_no_namespace_fails_before_cmd_runs() {
    let (cgroup, dir) = (Fresh::new(), tempfile::tempdir().unwrap());
    let mut command = command(0, &["touch", dir.path().join("ran").to_str().unwrap()]);
    command.netns = Some(File::open("/dev/null").unwrap().into());
    let error = spawn(&command, &cgroup).unwrap_err();
    assert!(matches!(error, RunError::Child { step: Step::Netns, .. }), "{error}");
    assert_eq!(error.exit_code(), 125);
    assert!(!cgroup.populated().unwrap() && !dir.path().join("ran").exists());
    command.netns = None;
    assert_eq!(exit_code(&command), 0);
    assert!(dir.path().join("ran").exists());
}

#[test]
fn the_working_directory_is_entered_as_the_user() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut pwd = shell("test \"$(pwd -P)\" = \"$WANTED\"");
    pwd.env.push(("WANTED".into(), dir.path().into()));
    pwd.cwd = Some(dir.path().into());
    let cgroup = Fresh::new();
    let error = spawn(&pwd, &cgroup).unwrap_err();
    assert!(matches!(error, RunError::Child { step: Step::Directory, .. }), "{error}");
    chown(dir.path(), Some(NOBODY), None).unwrap();
    assert_eq!(exit_code(&pwd), 0);
}

#[test]
fn what_the_caller_ignored_stays_ignored_but_not_what_the_runtime_ignores() {
    let cgroup = Fresh::new();
    let child = sleeper(&cgroup, |_| {});
    let ignored = u64::from_str_radix(&status(child.pid(), "SigIgn"), 16).unwrap();
    let own = u64::from_str_radix(&status(std::process::id(), "SigIgn"), 16).unwrap();
    let pipe = 1 << (libc::SIGPIPE - 1);
    assert_ne!(own & pipe, 0, "the Rust runtime ignores SIGPIPE");
    assert_eq!(ignored, own & !pipe);
}
