//! What a mount namespace of CMD's own covers: doors to whoever acts for CMD outside of the sandbox.
//!
//! What is not there yet when CMD starts cannot be covered, so a door is covered by its directory where it has one.

use super::{
    RunError,
    child::{Cover, Mounts},
    environment::Variable,
    error::Step,
    identity::Identity,
};
use crate::mountinfo;
use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    fs, io,
    os::unix::{ffi::OsStrExt, fs::FileTypeExt},
    path::{Path, PathBuf},
};

/// Trees by which the kernel or a cgroup is changed: read-only, wherever they are mounted.
const READ_ONLY: [&[u8]; 8] =
    [b"sysfs", b"cgroup", b"cgroup2", b"debugfs", b"tracefs", b"securityfs", b"configfs", b"efivarfs"];

/// Below /run, where /var/run leads as well.
const DOORS_IN_RUN: [&str; 24] = [
    // Engines, and who starts programs for others.
    "docker.sock",
    "docker",
    "containerd",
    "podman",
    "crio",
    "buildkit",
    "k3s",
    "libvirt",
    "lxd.socket",
    "incus",
    "snapd.socket",
    "snapd-snap.socket",
    "systemd/private",
    "screen",
    // The bus leads to resolvers and to systemd.
    "dbus",
    // Resolvers, and who else asks the network for others.
    "systemd/resolve/io.systemd.Resolve",
    "systemd/resolve/io.systemd.Resolve.Monitor",
    "nscd",
    "avahi-daemon",
    "unbound.ctl",
    "tailscale",
    "cups",
    "gssproxy.sock",
    "NetworkManager",
];

/// Engines with a place of their own.
const DOORS_ELSEWHERE: [&str; 4] = [
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
    "/var/lib/gssproxy/default.sock",
];

/// Looks at what is there. `hidden` are egressd's own directories.
pub(super) fn mounts(
    identity: &Identity,
    own_pids: bool,
    hidden: &[PathBuf],
    env: &[Variable],
) -> Result<Mounts, RunError> {
    let table = mountinfo::mounts().map_err(unreadable)?;
    let mut covers = kernel_trees(&table, own_pids)?;
    let runtime = PathBuf::from(format!("/run/user/{}", identity.uid));
    if runtime.is_dir() {
        // The user's bus, systemd and engines. Programs expect a directory that they can write.
        let options = format!("mode=700,uid={},gid={},size=10%", identity.uid, identity.gid);
        covers.push(Cover::Directory { path: c_path(&runtime)?, options: c_path(options.as_ref())?, writable: true });
    }
    let run = ["/run", "/var/run"].map(Path::new);
    let in_run = run.into_iter().flat_map(|run| DOORS_IN_RUN.map(|door| run.join(door)));
    let terminals = PathBuf::from(format!("/tmp/tmux-{}", identity.uid));
    let doors = in_run.chain(DOORS_ELSEWHERE.map(PathBuf::from)).chain([terminals]).chain(named_sockets(env));
    // One door may have several names.
    let doors: BTreeSet<PathBuf> =
        doors.chain(hidden.iter().cloned()).filter_map(|door| door.canonicalize().ok()).collect();
    for door in doors.iter().filter(|door| !door.starts_with(&runtime)) {
        let cover = cover(door)?;
        // The pins have one already.
        if !covers.contains(&cover) {
            covers.push(cover);
        }
    }
    // A cover that is not there would let everything through, and be taken for a door that is gone.
    if !fs::metadata("/dev/null").map_err(unreadable)?.file_type().is_char_device() {
        return Err(unreadable(io::ErrorKind::InvalidData.into()));
    }
    let cwd = std::env::current_dir().ok().map(|cwd| c_path(&cwd)).transpose()?;
    Ok(Mounts { covers, cwd })
}

/// Covers of what the kernel shows of itself.
fn kernel_trees(table: &[mountinfo::Mount], own_pids: bool) -> Result<Vec<Cover>, RunError> {
    let mut covers = if own_pids { vec![Cover::Proc] } else { Vec::new() };
    covers.push(Cover::ReadOnly { path: c"/proc/sys".into(), mounted: false });
    for (at, mount) in table.iter().enumerate() {
        if table.iter().skip(at + 1).any(|later| later.point == mount.point) {
            continue;
        }
        let shows_others = mount.kind == b"proc" && own_pids && !mount.point.starts_with("/proc");
        if READ_ONLY.contains(&mount.kind.as_slice()) {
            covers.push(Cover::ReadOnly { path: c_path(&mount.point)?, mounted: true });
        } else if (mount.kind == b"bpf" || shows_others) && mount.point.exists() {
            covers.push(cover(&mount.point)?);
        }
    }
    Ok(covers)
}

fn cover(path: &Path) -> Result<Cover, RunError> {
    let path_text = c_path(path)?;
    Ok(if path.is_dir() {
        Cover::Directory { path: path_text, options: c"mode=555,size=4k".into(), writable: false }
    } else {
        Cover::File(path_text)
    })
}

/// Sockets of engines, buses and terminals that the environment names.
fn named_sockets(env: &[Variable]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (name, value) in env {
        let value = value.as_bytes();
        match name.as_bytes() {
            b"DOCKER_HOST" | b"CONTAINER_HOST" => found.extend(value.strip_prefix(b"unix://")),
            b"TMUX" => found.extend(value.split(|&byte| byte == b',').next()),
            b"DBUS_SESSION_BUS_ADDRESS" => {
                let addresses = value.split(|&byte| byte == b';').filter_map(|address| address.strip_prefix(b"unix:"));
                let keys = addresses.flat_map(|address| address.split(|&byte| byte == b','));
                found.extend(keys.filter_map(|key| key.strip_prefix(b"path=")));
            }
            _ => {}
        }
    }
    let paths = found.into_iter().map(|path| PathBuf::from(OsStr::from_bytes(path)));
    paths.filter(|path| fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())).collect()
}

fn c_path(path: &Path) -> Result<CString, RunError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_nul| RunError::Nul(path.into()))
}

fn unreadable(source: io::Error) -> RunError {
    RunError::Child { step: Step::Mounts, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
1 0 0:1 / /proc rw - proc proc rw
2 0 0:2 / /sys rw - sysfs sysfs rw
3 2 0:3 / /sys/fs/cgroup rw - tmpfs tmpfs rw
4 3 0:4 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw
5 3 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
6 0 0:6 / /mnt rw - cgroup2 none rw
7 0 0:7 / /mnt rw - tmpfs none rw
8 0 0:1 / /usr rw - proc none rw
9 0 0:8 / /etc rw - bpf none rw
10 1 0:1 /sys /proc/sys ro - proc proc rw
";

    fn closed(path: &str) -> Cover {
        Cover::ReadOnly { path: CString::new(path).unwrap(), mounted: path != "/proc/sys" }
    }

    #[test]
    fn trees_are_known_by_type_wherever_they_are_mounted() {
        let table = mountinfo::parse(TABLE);
        let closed: Vec<_> =
            ["/proc/sys", "/sys", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(closed).into_iter().collect();
        let [usr, etc] = ["/usr", "/etc"].map(|path| cover(path.as_ref()).unwrap());
        let own = [vec![Cover::Proc], closed.clone(), vec![usr, etc.clone()]].concat();
        assert_eq!(kernel_trees(&table, true).unwrap(), own);
        assert_eq!(kernel_trees(&table, false).unwrap(), [closed, vec![etc]].concat());
    }

    #[test]
    fn a_directory_is_covered_by_an_empty_one_and_all_else_by_null() {
        assert!(matches!(cover("/proc".as_ref()).unwrap(), Cover::Directory { writable: false, .. }));
        assert_eq!(cover("/dev/zero".as_ref()).unwrap(), Cover::File(c"/dev/zero".into()));
    }

    #[test]
    fn sockets_are_found_where_the_environment_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let named = |name: &str, value: String| named_sockets(&[(name.into(), value.into())]);
        let path = socket.display();
        for (name, value) in [
            ("DOCKER_HOST", format!("unix://{path}")),
            ("CONTAINER_HOST", format!("unix://{path}")),
            ("TMUX", format!("{path},4711,0")),
            ("DBUS_SESSION_BUS_ADDRESS", format!("tcp:host=a;unix:abstract=/x;unix:path={path},guid=1")),
        ] {
            assert_eq!(named(name, value), [socket.as_path()], "{name}");
        }
        for (name, value) in [("DOCKER_HOST", "tcp://x"), ("TMUX", ""), ("TMUX", "/etc"), ("PATH", "/etc")] {
            assert!(named(name, value.into()).is_empty(), "{name}={value}");
        }
    }
}
