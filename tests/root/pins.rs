//! The pin directory and the state directory, on a thread with a mount namespace of its own, so that no mount is left.

use egress_agent::datapath::{
    PathError,
    bpffs::{PinError, PinRoot, is_init_mount_namespace},
    state_dir::{StateDir, StateError},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        stat::stat,
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::{Uid, chown},
};
use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{PermissionsExt as _, symlink},
        },
    },
    path::{Path, PathBuf},
    sync::mpsc::{TryRecvError, channel},
    thread,
};
use tempfile::TempDir;

const MOUNTS: &str = "/proc/thread-self/mountinfo";
const NOBODY: Uid = Uid::from_raw(65534);

struct Lab {
    dir: TempDir,
    state: StateDir,
}

impl Lab {
    /// Runs `test` where mounts end with the thread.
    fn run(test: impl FnOnce(&Self) + Send + 'static) {
        let done = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            let dir = TempDir::new().unwrap();
            let state = StateDir::open(&dir.path().join("state")).unwrap();
            test(&Self { dir, state });
        })
        .join();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn dir(&self, name: &str, mode: u32, owner: Uid) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(owner), None).unwrap();
        path
    }

    fn open(&self, path: &Path) -> Result<PinRoot, PinError> {
        PinRoot::open(path, &self.state.lock().unwrap())
    }

    fn release(&self, root: PinRoot) -> bool {
        root.release(&self.state.lock().unwrap()).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A directory under a mount could not be removed.
        let below = self.dir.path().to_string_lossy().into_owned() + "/";
        for line in fs::read_to_string(MOUNTS).unwrap_or_default().lines() {
            if let Some(path) = line.split(' ').nth(4).filter(|path| path.starts_with(&below)) {
                umount2(path, MntFlags::MNT_DETACH).ok();
            }
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).unwrap().filesystem_type() == BPF_FS_MAGIC
}

/// Mounts on `path`, one upon the other.
fn mounts(path: &Path) -> usize {
    let table = fs::read_to_string(MOUNTS).unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == path.to_str()).count()
}

/// Makes a map and pins it at `path`.
fn pin_a_map(path: &Path) {
    const CREATE: libc::c_long = 0;
    const PIN: libc::c_long = 6;
    // union bpf_attr: BPF_MAP_TYPE_ARRAY with one entry of 4 bytes.
    let map: [u32; 32] = std::array::from_fn(|word| [2, 4, 4, 1].get(word).copied().unwrap_or(0));
    // SAFETY: the attributes live across the call and are as long as said.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, CREATE, map.as_ptr(), size_of_val(&map)) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel just gave this descriptor to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let attributes = [path.as_ptr() as u64, u64::try_from(fd.as_raw_fd()).unwrap()];
    // SAFETY: as above; the path ends with a zero and lives across the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PIN, attributes.as_ptr(), size_of_val(&attributes)) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn pins_live_in_an_own_bpffs_that_goes_with_its_last_owner() {
    Lab::run(|lab| {
        let path = lab.path("pins");
        let root = lab.open(&path).unwrap();
        assert!(is_bpffs(&path) && mode(&path) & 0o777 == 0o700 && mounts(&path) == 1);
        let again = lab.open(&path).unwrap();
        assert_eq!(mounts(&path), 1);

        let owner = root.create_owner_dir("run-1_a").unwrap();
        assert_eq!((mode(&owner), owner.as_path()), (0o700, path.join("run-1_a").as_path()));
        assert!(matches!(again.create_owner_dir("run-1_a"), Err(PinError::OwnerExists { .. })));
        assert_eq!(again.owner_dir("run-1_a").unwrap().as_deref(), Some(owner.as_path()));
        assert_eq!(again.owner_dir("run-2").unwrap(), None);
        again.create_owner_dir("daemon").unwrap();
        pin_a_map(&owner.join("rules"));
        fs::create_dir(owner.join("links")).unwrap();
        pin_a_map(&owner.join("links/egress"));
        symlink("/", owner.join("out")).unwrap();
        assert_eq!(root.owners().unwrap(), ["daemon", "run-1_a"]);

        drop(root);
        assert!(!lab.release(again), "others have pins");
        let root = lab.open(&path).unwrap();
        assert_eq!(root.owners().unwrap(), ["daemon", "run-1_a"]);
        root.remove_owner_dir("daemon").unwrap();
        root.remove_owner_dir("run-1_a").unwrap();
        root.remove_owner_dir("run-1_a").unwrap();
        assert!(root.owners().unwrap().is_empty() && Path::new("/proc").exists());
        let busy = lab.open(&path).unwrap();
        assert!(!lab.release(root), "another handle is open");
        assert!(lab.release(busy));
        assert!(!path.exists());
    });
}

#[test]
fn what_egressd_did_not_make_stays() {
    Lab::run(|lab| {
        let there = lab.dir("there", 0o700, Uid::from_raw(0));
        let root = lab.open(&there).unwrap();
        assert!(is_bpffs(&there));
        assert!(lab.release(root));
        assert!(there.exists() && mounts(&there) == 0);

        mount(Some("bpf"), &there, Some("bpf"), MsFlags::empty(), Some("mode=700")).unwrap();
        let root = lab.open(&there).unwrap();
        assert_eq!(mounts(&there), 1);
        // Inside somebody's bpffs no mount is needed.
        let inner = lab.open(&there.join("egressd")).unwrap();
        inner.create_owner_dir("a").unwrap();
        assert!(!lab.release(inner) && !lab.release(root));
        assert_eq!(mounts(&there), 1);
    });
}

#[test]
fn two_processes_at_once_mount_once() {
    Lab::run(|lab| {
        let path = lab.path("pins");
        // Threads made here share this thread's mount namespace.
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| lab.open(&path).unwrap());
            }
        });
        assert_eq!(mounts(&path), 1);
    });
}

#[test]
fn the_lock_makes_the_second_wait_for_the_first() {
    Lab::run(|lab| {
        let other = StateDir::open(lab.state.path()).unwrap();
        assert_eq!(mode(&lab.path("state")), 0o700);
        let held = lab.state.lock().unwrap();
        let (send, taken) = channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let lock = other.lock().unwrap();
                send.send(()).unwrap();
                drop(lock);
            });
            assert_eq!(taken.try_recv(), Err(TryRecvError::Empty));
            drop(held);
            taken.recv().unwrap();
        });
        assert_eq!(mode(&lab.path("state/lock")), 0o600);
    });
}

#[test]
fn a_component_that_others_can_replace_is_refused() {
    Lab::run(|lab| {
        let root = Uid::from_raw(0);
        let refused = |path: &Path| match lab.open(path) {
            Err(PinError::Path(error)) => error,
            other => panic!("{}: {other:?}", path.display()),
        };
        let nobodys = lab.dir("nobodys", 0o755, NOBODY);
        assert!(matches!(refused(&nobodys.join("pins")), PathError::NotRoots { uid: 65534, .. }));
        for mode in [0o777, 0o775, 0o702] {
            let shared = lab.dir(&format!("shared-{mode:o}"), mode, root);
            assert!(matches!(refused(&shared.join("pins")), PathError::SharedWrite { .. }), "{mode:o}");
            assert!(!shared.join("pins").exists());
        }
        let sticky = lab.dir("sticky", 0o1777, root);
        lab.dir("sticky/squatted", 0o700, NOBODY);
        assert!(matches!(refused(&sticky.join("squatted")), PathError::NotRoots { .. }));
        assert!(matches!(refused(&sticky.join("squatted/pins")), PathError::NotRoots { .. }));
        assert!(matches!(refused(&sticky), PathError::NotPrivate { .. }));
        lab.open(&sticky.join("egressd")).unwrap();

        let open = lab.dir("open", 0o755, root);
        let error = refused(&open);
        assert!(matches!(error, PathError::NotPrivate { mode: 0o755, .. }), "{error}");
        assert!(error.to_string().contains(&format!("`chmod 700 {}`", open.display())), "{error}");
        lab.open(&open.join("pins")).unwrap();

        symlink(&open, lab.path("link")).unwrap();
        assert!(matches!(refused(&lab.path("link")), PathError::NotADirectory { .. }));
        assert!(matches!(refused(&lab.path("link/more")), PathError::NotADirectory { .. }));
        for relative in [Path::new("pins"), &lab.path("open/../pins"), Path::new("")] {
            assert!(matches!(refused(relative), PathError::NotAbsolute { .. }), "{}", relative.display());
        }
        let shared = lab.path("shared-777/state");
        assert!(matches!(StateDir::open(&shared), Err(StateError::Path(PathError::SharedWrite { .. }))));
    });
}

#[test]
fn a_lock_that_is_no_plain_file_is_refused() {
    Lab::run(|lab| {
        fs::write(lab.path("victim"), "").unwrap();
        symlink(lab.path("victim"), lab.path("state/lock")).unwrap();
        assert!(matches!(lab.state.lock(), Err(StateError::Lock { .. })));
        fs::remove_file(lab.path("state/lock")).unwrap();
        drop(lab.state.lock().unwrap());
    });
}

#[test]
fn a_read_only_bpffs_says_how_to_change_that() {
    Lab::run(|lab| {
        let path = lab.dir("pins", 0o700, Uid::from_raw(0));
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), Some("mode=700")).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &path, None::<&str>, flags, Some("mode=700")).unwrap();
        let error = lab.open(&path).unwrap_err();
        assert!(matches!(error, PinError::ReadOnly { .. }), "{error}");
        assert!(error.to_string().contains(&format!("`mount -o remount,rw {}`", path.display())), "{error}");
        mount(None::<&str>, &path, None::<&str>, MsFlags::MS_REMOUNT, Some("mode=700")).unwrap();
        lab.open(&path).unwrap();
    });
}

#[test]
fn without_cap_sys_admin_nothing_is_mounted_or_left() {
    const CAP_SYS_ADMIN: u32 = 21;
    Lab::run(|lab| {
        let header = [0x2008_0522_u32, 0];
        let mut sets = [0_u32; 6];
        // SAFETY: version 3 of the header and its two triples, for the calling thread; both live across the call.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) }, 0);
        sets[0] &= !(1 << CAP_SYS_ADMIN);
        // SAFETY: as above; only this thread loses the capability.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }, 0);
        let path = lab.path("pins");
        let error = lab.open(&path).unwrap_err();
        assert!(matches!(error, PinError::MountPermission { .. }), "{error}");
        assert!(error.to_string().contains("CAP_SYS_ADMIN") && !path.exists(), "{error}");
    });
}

#[test]
fn names_of_owners_stay_inside_the_directory() {
    Lab::run(|lab| {
        let root = lab.open(&lab.path("pins")).unwrap();
        for name in ["", ".", "..", "a/b", "a.b", "ä", "a b", &"x".repeat(65)] {
            assert!(matches!(root.create_owner_dir(name), Err(PinError::OwnerName { .. })), "{name}");
            assert!(matches!(root.remove_owner_dir(name), Err(PinError::OwnerName { .. })), "{name}");
        }
        root.create_owner_dir(&"x".repeat(64)).unwrap();
    });
}

#[test]
fn a_mount_namespace_of_ones_own_is_noticed() {
    Lab::run(|_| {
        if stat("/proc/1/ns/mnt").is_ok() {
            assert!(!is_init_mount_namespace().unwrap());
        } else {
            // PID 1 is hidden, so nothing can be said.
            assert!(matches!(is_init_mount_namespace(), Err(PinError::MountNamespace { .. })));
        }
    });
}
