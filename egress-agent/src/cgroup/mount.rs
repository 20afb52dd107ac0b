//! Where the cgroup v2 tree is mounted, and where in it a process stands.
//!
//! Nothing is assumed about `/sys/fs/cgroup`: on hybrid hosts it holds the v1 controllers, in containers the tree is a bind
//! mount of a part, and the source column is free text. Only the file system type tells.

use super::{CgroupError, io};
use crate::mountinfo;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One mount of the cgroup v2 tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CgroupMount {
    point: PathBuf,
    root: PathBuf,
    writable: bool,
}

impl CgroupMount {
    /// Finds the mount to work with: one that shows the whole tree where there is one, else one that shows this process's
    /// own cgroup; writable before read-only.
    ///
    /// # Errors
    /// [`CgroupError::NoMount`] where none can be seen, as after `ip netns exec`, which mounts a new `/sys` over it.
    pub fn find() -> Result<Self, CgroupError> {
        let own = own_cgroup()?;
        // A mount can be hidden under another file system that was mounted on or above it later.
        let visible = |mount: &Self| statfs(&mount.point).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        Self::all()?.into_iter().filter(visible).min_by_key(|mount| mount.distance(&own)).ok_or(CgroupError::NoMount)
    }

    /// Every mount of the tree that this process's mount namespace lists, in the order of mounting.
    pub fn all() -> Result<Vec<Self>, CgroupError> {
        Ok(of_tree(mountinfo::mounts().map_err(io(Path::new(mountinfo::TABLE), "read"))?))
    }

    /// Directory on which the tree is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The cgroup that the mount point shows; `/` for the whole tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// False for a mount that is read-only as a whole.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Directory of a cgroup named as in `/proc/PID/cgroup`; `None` where this mount does not show it.
    pub fn directory_of(&self, cgroup: &Path) -> Option<PathBuf> {
        let below = cgroup.strip_prefix(&self.root).ok()?;
        // `..` stands for the way out of a cgroup namespace; joined to the mount point it would lead anywhere.
        (!below.components().any(|part| part.as_os_str() == "..")).then(|| plain_join(&self.point, below))
    }

    /// Name, as in `/proc/PID/cgroup`, of a directory under the mount point; `None` for any other directory.
    pub fn cgroup_of(&self, directory: &Path) -> Option<PathBuf> {
        directory.strip_prefix(&self.point).ok().map(|below| plain_join(&self.root, below))
    }

    /// How badly the mount serves a process in cgroup `own`; smaller is better.
    fn distance(&self, own: &Path) -> (bool, bool, bool) {
        (self.root != Path::new("/"), self.directory_of(own).is_none(), !self.writable)
    }
}

/// [`Path::join`] without the slash that an empty second half would leave at the end.
fn plain_join(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { base.to_owned() } else { base.join(below) }
}

/// The cgroup of this process, named from the root of its cgroup namespace.
pub fn own_cgroup() -> Result<PathBuf, CgroupError> {
    read_membership(Path::new("/proc/self/cgroup"))
}

/// The cgroup of process `pid`, named from the root of the caller's cgroup namespace.
///
/// # Errors
/// [`CgroupError::Io`] when there is no such process (any more), [`CgroupError::NotInTree`] when it has no v2 cgroup.
pub fn cgroup_of_process(pid: u32) -> Result<PathBuf, CgroupError> {
    read_membership(Path::new(&format!("/proc/{pid}/cgroup")))
}

fn read_membership(path: &Path) -> Result<PathBuf, CgroupError> {
    let membership = fs::read(path).map_err(io(path, "read"))?;
    parse_membership(&membership).ok_or_else(|| CgroupError::NotInTree { path: path.to_owned() })
}

/// Lines are `HIERARCHY:CONTROLLERS:PATH`; hierarchy 0 is the v2 tree. The path is raw bytes: the kernel refuses newlines
/// in names and escapes nothing here (kernel/cgroup/cgroup.c, `proc_cgroup_show`).
fn parse_membership(membership: &[u8]) -> Option<PathBuf> {
    let path = membership.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(OsString::from_vec(path.to_vec()).into())
}

/// Those of the v2 tree. The later of two mounts on one directory hides the earlier.
fn of_tree(table: Vec<mountinfo::Mount>) -> Vec<CgroupMount> {
    let mut mounts: Vec<CgroupMount> = Vec::new();
    for mount in table.into_iter().filter(|mount| mount.kind == b"cgroup2") {
        mounts.retain(|earlier| earlier.point != mount.point);
        mounts.push(CgroupMount { point: mount.point, root: mount.root, writable: !mount.read_only });
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 - cgroup2 any\\040thing rw,nsdelegate
";

    fn parse(table: &[u8]) -> Vec<CgroupMount> {
        of_tree(mountinfo::parse(table))
    }

    fn mount(point: &str, root: &str, writable: bool) -> CgroupMount {
        CgroupMount { point: point.into(), root: root.into(), writable }
    }

    fn best<'a>(mounts: &'a [CgroupMount], own: &str) -> &'a CgroupMount {
        mounts.iter().min_by_key(|mount| mount.distance(Path::new(own))).unwrap()
    }

    #[test]
    fn v2_is_found_by_type_beside_v1() {
        assert_eq!(parse(HYBRID), [mount("/sys/fs/cgroup/unified", "/", true)]);
    }

    #[test]
    fn a_source_or_path_that_says_cgroup2_is_not_the_type() {
        assert!(parse(b"5 1 0:2 / /cgroup2 rw - tmpfs cgroup2 rw\n").is_empty());
        assert!(parse(b"5 1 0:2 / /x rw cgroup2:1\n\nshort\n").is_empty());
    }

    #[test]
    fn the_whole_tree_is_preferred_then_what_shows_the_own_cgroup_then_writable() {
        let part = mount("/part", "/system.slice", true);
        let other = mount("/other", "/user.slice", true);
        let whole = mount("/whole", "/", false);
        let writable = mount("/writable", "/", true);
        let own = "/system.slice/ci.service";
        assert_eq!(best(&[other.clone(), part.clone(), whole.clone()], own), &whole);
        assert_eq!(best(&[whole, writable.clone()], own), &writable);
        assert_eq!(best(&[other, part.clone()], own), &part);
    }

    #[test]
    fn a_later_mount_on_the_same_directory_hides_the_earlier() {
        let parsed = parse(b"1 0 0:2 / /m rw - cgroup2 a rw\n2 1 0:2 /b /m rw - cgroup2 a rw\n");
        assert_eq!(parsed, [mount("/m", "/b", true)]);
    }

    #[test]
    fn names_and_directories_map_both_ways() {
        let part = mount("/mnt", "/system.slice", true);
        assert_eq!(part.directory_of(Path::new("/system.slice/a/b")), Some("/mnt/a/b".into()));
        assert_eq!(part.directory_of(Path::new("/system.slice")), Some("/mnt".into()));
        assert_eq!(part.directory_of(Path::new("/system.slice2")), None);
        assert_eq!(part.cgroup_of(Path::new("/mnt/a")), Some("/system.slice/a".into()));
        assert_eq!(part.cgroup_of(Path::new("/mnt")), Some("/system.slice".into()));
        assert_eq!(part.cgroup_of(Path::new("/mnt2/a")), None);
        let whole = mount("/sys/fs/cgroup", "/", true);
        assert_eq!(whole.directory_of(Path::new("/a")), Some("/sys/fs/cgroup/a".into()));
        assert_eq!(whole.directory_of(Path::new("/")), Some("/sys/fs/cgroup".into()));
    }

    #[test]
    fn a_way_out_of_the_cgroup_namespace_is_not_joined_to_the_mount() {
        assert_eq!(mount("/mnt", "/", true).directory_of(Path::new("/../outside")), None);
        assert_eq!(mount("/mnt", "/..", true).directory_of(Path::new("/../outside")), Some("/mnt/outside".into()));
    }

    #[test]
    fn membership_is_the_line_of_hierarchy_0_and_raw() {
        assert_eq!(parse_membership(b"9:name=systemd:/x\n0::/a b\\040c:d\n"), Some("/a b\\040c:d".into()));
        assert_eq!(parse_membership(b"0::/\xff\n"), Some(OsString::from_vec(b"/\xff".to_vec()).into()));
        assert_eq!(parse_membership(b"10::/a\n9:name=systemd:/x\n"), None);
    }
}
