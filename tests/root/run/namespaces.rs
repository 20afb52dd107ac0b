//! What CMD has of its own: processes, mounts, a session keyring. Each refusal stands beside the same without it.

use super::{seccomp::answers, *};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixListener,
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process,
};

const PYTHON: &str = "/usr/bin/python3 -I -c \"$PROBE\"";
const DOORS: &str = include_str!("../../probes/doors.py");
const OUTSIDER: &str = include_str!("../../probes/outsider.py");

const NOTHING: Shares = Shares { pids: false, mounts: false };
const PIDS: Shares = Shares { pids: true, mounts: false };
const MOUNTS: Shares = Shares { pids: false, mounts: true };

/// Output of a script with a Python probe in its environment.
fn probe_output(uid: u32, shares: Shares, probe: &str, script: &str) -> String {
    script_output(uid, script, |command| {
        command.env.push(("PROBE".into(), probe.into()));
        command.shares = shares;
    })
}

/// Runs `body` on a thread with a mount namespace of its own, so that the host's stays as it is.
fn beside_the_mounts<Result: Send>(body: impl FnOnce() -> Result + Send) -> Result {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            body()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn mounted(kind: &str, at: &Path) {
    mount(Some("egt"), at, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
}

/// A process of the sandbox's user outside of it, which anybody may trace whom the kernel lets.
struct Outsider(process::Child);

impl Outsider {
    fn start() -> Self {
        const STAYS: &str = "import ctypes, sys
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1 & (1 << 64) - 1), 0, 0, 0)
print('ready', flush=True)
sys.stdin.read()";
        let mut command = process::Command::new("/usr/bin/python3");
        command.args(["-I", "-c", STAYS]).uid(NOBODY).gid(NOBODY);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self(child)
    }

    fn try_all(&self, shares: Shares) -> String {
        probe_output(NOBODY, shares, OUTSIDER, &format!("exec {PYTHON} {}", self.0.id()))
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_process_outside_is_not_seen_nor_traced_nor_killed() {
    let mut outsider = Outsider::start();
    let text = outsider.try_all(NOTHING);
    for (step, answer) in answers(&text) {
        let expected = match step {
            "memory" => "ENOENT",
            _ => "ESRCH",
        };
        assert_eq!(answer, expected, "{step}: {text}");
    }
    assert_eq!(answers(&text).len(), 5, "{text}");
    assert!(outsider.lives());
    // Without a pid namespace all of it works but for what the filter refuses, and the level says so.
    for shares in [PIDS, MOUNTS] {
        let mut outsider = Outsider::start();
        let text = outsider.try_all(shares);
        for (step, answer) in answers(&text) {
            let expected = if step == "pidfd_getfd" { "EPERM" } else { "ok" };
            assert_eq!(answer, expected, "{step}: {text}");
        }
        assert_eq!(outsider.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    let plain = Outsider::start();
    let mut command = process::Command::new("sh");
    command.args(["-c", &format!("exec {PYTHON} {}", plain.0.id())]).env("PROBE", OUTSIDER).uid(NOBODY).gid(NOBODY);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(answers(&text).values().all(|answer| *answer == "ok"), "{text}");
}

#[test]
fn proc_shows_cmds_processes_alone_wherever_it_is_mounted() {
    beside_the_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        mounted("proc", dir.path());
        let script = format!("echo $$; ls -d /proc/[0-9]* {}/[0-9]* 2>/dev/null; true", dir.path().display());
        let own = script_output(NOBODY, &script, |_| {});
        assert_eq!(own, "2\n/proc/1\n/proc/2\n");
        let shared = script_output(NOBODY, &script, |command| command.shares = PIDS);
        let this = std::process::id();
        for path in [format!("/proc/{this}"), format!("{}/{this}", dir.path().display())] {
            assert!(shared.lines().any(|line| line == path), "{path}: {shared}");
        }
        nix::mount::umount(dir.path()).unwrap();
    });
}

#[test]
fn an_orphan_goes_to_process_1_and_is_reaped() {
    let script = "orphan=$(sleep 1000 >/dev/null & echo $!)
until grep -q '^PPid:.1$' /proc/$orphan/status; do :; done
kill -KILL $orphan
while test -e /proc/$orphan; do n=$((n + 1)); test $n -lt 20000 || { cat /proc/$orphan/status; exit 1; }; done
echo reaped; ps -o pid= -p 1";
    assert_eq!(script_output(NOBODY, script, |_| {}).split_whitespace().collect::<Vec<_>>(), ["reaped", "1"]);
}

#[test]
fn process_1_cannot_be_killed_nor_looked_into_from_inside() {
    let script = "kill -KILL 1; kill -TERM 1; ls /proc/1/root/ /proc/1/cwd/ 2>/dev/null; cat /proc/1/environ 2>/dev/null; kill -0 1 && echo there";
    for uid in [0, NOBODY] {
        assert_eq!(script_output(uid, script, |_| {}), "there\n", "uid {uid}");
    }
    assert_eq!(script_output(NOBODY, "test -r /proc/$$/environ && ls -d /proc/$$/root/", |_| {}), "/proc/2/root/\n");
}

/// Sockets of engines, buses, resolvers and terminals below a /run of the test's own.
const SOCKETS: [&str; 12] = [
    "docker.sock",
    "containerd/containerd.sock",
    "podman/podman.sock",
    "dbus/system_bus_socket",
    "nscd/socket",
    "avahi-daemon/socket",
    "systemd/resolve/io.systemd.Resolve",
    "snapd.socket",
    "user/65534/bus",
    "user/65534/systemd/private",
    "named-by-the-environment.sock",
    "egressd/control",
];

#[test]
fn doors_on_unix_sockets_are_covered() {
    beside_the_mounts(|| {
        mounted("tmpfs", Path::new("/run"));
        fs::set_permissions("/run", fs::Permissions::from_mode(0o755)).unwrap();
        let paths = SOCKETS.map(|name| Path::new("/run").join(name));
        let listeners = paths.clone().map(|path| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        chown("/run/user/65534", Some(NOBODY), Some(NOBODY)).unwrap();
        fs::write("/run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n").unwrap();
        fs::write("/run/other", "other\n").unwrap();
        let beside = UnixListener::bind("/run/other.sock").unwrap();
        fs::set_permissions("/run/other.sock", fs::Permissions::from_mode(0o777)).unwrap();
        std::env::set_current_dir("/run/containerd").unwrap();
        let arrived = || listeners.iter().filter(|listener| listener.accept().is_ok()).count();

        let all = paths.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        let script = format!("exec {PYTHON} {all} containerd.sock /run/other.sock");
        let doors = |shares| {
            script_output(NOBODY, &script, |command| {
                command.env.push(("PROBE".into(), DOORS.into()));
                command.env.push(("DOCKER_HOST".into(), "unix:///run/named-by-the-environment.sock".into()));
                (command.shares, command.cwd) = (shares, None);
                command.hidden = vec![PathBuf::from("/run/egressd")];
            })
        };
        let text = doors(NOTHING);
        assert_eq!(arrived(), 0, "{text}");
        for (path, answer) in answers(&text) {
            assert_eq!(answer == "ok", path == "/run/other.sock", "{path}: {text}");
        }
        assert_eq!(answers(&text).len(), SOCKETS.len() + 2, "{text}");
        // A user namespace of its own takes no cover off.
        let unmask = "unshare -U -r -m sh -c 'for at in /run/docker.sock /run/containerd /run/dbus; do umount $at && echo $at; done' 2>/dev/null; true";
        assert_eq!(script_output(NOBODY, unmask, |_| {}), "");
        // What is no door is there, and the user has a place of its own for sockets.
        let useful =
            "cat /run/systemd/resolve/stub-resolv.conf /run/other; touch /run/user/65534/new && ls /run/user/65534";
        assert_eq!(script_output(NOBODY, useful, |_| {}), "nameserver 127.0.0.53\nother\nnew\n");
        assert!(!Path::new("/run/user/65534/new").exists(), "the host's is another");

        let text = doors(MOUNTS);
        assert_eq!(arrived(), SOCKETS.len(), "{text}");
        assert!(answers(&text).values().all(|answer| *answer == "ok"), "{text}");
        drop(beside);
        std::env::set_current_dir("/").unwrap();
    });
}

/// As root without capabilities: who else has no right to write there has none anyway.
#[test]
fn kernel_trees_cannot_be_written() {
    let sibling = Fresh::new();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    // What stands there already, so that nothing changes.
    let script = format!(
        "write() {{ sh -c \"$2\" 2>/dev/null && echo $1=ok || echo $1=refused; }}
write core_pattern 'cat /proc/sys/kernel/core_pattern > $HERE; cat $HERE > /proc/sys/kernel/core_pattern'
write sibling 'echo $$ > {sibling}/cgroup.procs'
write new-cgroup 'mkdir {sibling}/made'
sed -n 's/^0:://p' /proc/self/cgroup | grep -q {name} && echo moved",
        sibling = sibling.path().display(),
        name = sibling.path().file_name().unwrap().to_str().unwrap(),
    );
    let dir = tempfile::tempdir().unwrap();
    let write = |shares| {
        script_output(0, &format!("{script}; true"), |command| {
            command.env.push(("HERE".into(), dir.path().join("here").into()));
            command.shares = shares;
        })
    };
    assert_eq!(write(NOTHING), "core_pattern=refused\nsibling=refused\nnew-cgroup=refused\n");
    assert!(!sibling.path().join("made").exists());
    assert_eq!(write(MOUNTS), "core_pattern=ok\nsibling=ok\nnew-cgroup=ok\n");
    fs::remove_dir(sibling.path().join("made")).unwrap();
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    // Reading is what runtimes do to learn their limits.
    assert_eq!(script_output(NOBODY, &format!("cat {}/cgroup.type", sibling.path().display()), |_| {}), "domain\n");
}

#[test]
fn pins_are_not_seen() {
    beside_the_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        mounted("bpf", dir.path());
        fs::create_dir(dir.path().join("pinned")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let script = format!(
            "ls -d {0}/pinned 2>/dev/null; rmdir {0}/pinned 2>/dev/null && echo removed; true",
            dir.path().display()
        );
        for uid in [0, NOBODY] {
            assert_eq!(script_output(uid, &script, |_| {}), "", "uid {uid}");
        }
        assert!(dir.path().join("pinned").is_dir());
        assert_eq!(
            script_output(0, &script, |command| command.shares = MOUNTS),
            format!("{}/pinned\nremoved\n", dir.path().display())
        );
        nix::mount::umount(dir.path()).unwrap();
    });
}

/// Keys of the caller's session, as the kernel would find them for a file system. `keyctl` itself is refused.
#[test]
fn the_callers_keys_are_not_cmds() {
    // On a thread of its own: a session keyring is a thread's until it is handed on.
    let (with, without) = std::thread::spawn(|| {
        // SAFETY: numbers, a null pointer and static strings of the given lengths.
        let key = unsafe {
            assert!(libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0) > 0);
            let session = libc::KEY_SPEC_SESSION_KEYRING;
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"egt-secret".as_ptr(),
                c"value".as_ptr(),
                5_usize,
                session,
            )
        };
        assert!(key > 0, "{}", std::io::Error::last_os_error());
        let plain = process::Command::new("cat").arg("/proc/keys").uid(NOBODY).gid(NOBODY).output().unwrap();
        (script_output(NOBODY, "cat /proc/keys", |_| {}), String::from_utf8(plain.stdout).unwrap())
    })
    .join()
    .unwrap();
    assert!(without.contains("egt-secret"), "{without}");
    assert!(!with.contains("egt-secret"), "{with}");
}

#[test]
fn nothing_is_mounted_on_the_host() {
    let table = || {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        table.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    beside_the_mounts(|| {
        // As most hosts have it: what is mounted below goes to every namespace that shares it.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>).unwrap();
        let before = table();
        let inside = script_output(NOBODY, "wc -l < /proc/self/mountinfo", |_| {});
        assert!(inside.trim().parse::<usize>().unwrap() > before.len(), "{inside}");
        // Mounts go when another test removes their directory.
        let new: Vec<_> = table().into_iter().filter(|line| !before.contains(line)).collect();
        assert!(new.is_empty(), "{new:#?}");
    });
}
