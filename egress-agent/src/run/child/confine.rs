//! Giving up everything that CMD must not have.

use super::{Failure, Plan, Step, check, integers};
use std::{
    ffi::{c_int, c_long, c_uint},
    os::fd::RawFd,
};

/// `_LINUX_CAPABILITY_VERSION_3`, include/uapi/linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// First thing after birth. `entrance` is `cgroup.procs`, open for writing, where the process was not born in the cgroup.
pub(crate) fn arrive(entrance: RawFd) -> Result<(), Failure> {
    hide_memory()?;
    if entrance >= 0 {
        // SAFETY: one byte of static memory. "0" is whoever writes; nothing was opened that would stay behind.
        check(Step::Cgroup, unsafe { libc::syscall(libc::SYS_write, entrance, b"0".as_ptr(), 1_usize) })?;
    }
    Ok(())
}

/// No process of the same user may attach to this copy of egressd's memory. Exec sets it anew, and so may a change of user.
pub(super) fn hide_memory() -> Result<(), Failure> {
    integers(Step::Clone, libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 0, 0, 0, 0]).map(drop)
}

/// A session keyring without keys. It is made by the caller's user, whose quota is not CMD's.
pub(super) fn leave_keyring() -> Result<(), Failure> {
    let join = c_long::from(libc::KEYCTL_JOIN_SESSION_KEYRING);
    match integers(Step::Keyring, libc::SYS_keyctl, [join, 0, 0, 0, 0]) {
        // A kernel without keys.
        Err(Failure { errno: libc::ENOSYS, .. }) => Ok(()),
        joined => joined.map(drop),
    }
}

/// Leaves the user, its groups and `keep_caps`, for good. Order matters: what needs a capability comes before it is dropped.
pub(super) fn give_up(plan: &Plan, keep_caps: u64) -> Result<(), Failure> {
    drop_bounding(keep_caps)?;
    let keep = if keep_caps == 0 { 0 } else { libc::SECBIT_KEEP_CAPS };
    let bits = integers(Step::Securebits, libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into(), 0, 0, 0, 0])?
        | c_long::from(libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED | keep);
    integers(Step::Securebits, libc::SYS_prctl, [libc::PR_SET_SECUREBITS.into(), bits, 0, 0, 0])?;
    if let Some(groups) = &plan.groups {
        // SAFETY: pointer and length are those of a vector that outlives the call.
        check(Step::Groups, unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    let (uid, gid) = (plan.uid.into(), plan.gid.into());
    integers(Step::Gid, libc::SYS_setresgid, [gid, gid, gid, 0, 0])?;
    integers(Step::Uid, libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
    set_capabilities(keep_caps)?;
    integers(Step::NoNewPrivs, libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS.into(), 1, 0, 0, 0])?;
    plan.filter.install().map_err(Failure::at(Step::Seccomp))
}

/// Closes everything from `first` up but `keep` (ascending) and `report`, and takes close-on-exec off what is kept.
pub(super) fn close_others(first: c_int, keep: &[RawFd], report: RawFd) -> Result<(), Failure> {
    let mut first = c_long::from(first);
    let mut rest = keep;
    let mut report = Some(report);
    loop {
        let next = match (rest.first().copied(), report) {
            (Some(kept), Some(own)) if own < kept => report.take(),
            (Some(kept), _) => {
                rest = rest.get(1..).unwrap_or_default();
                integers(Step::Descriptors, libc::SYS_fcntl, [kept.into(), libc::F_SETFD.into(), 0, 0, 0])?;
                Some(kept)
            }
            (None, Some(_)) => report.take(),
            (None, None) => None,
        };
        let Some(next) = next else {
            let last = c_long::from(c_uint::MAX);
            return integers(Step::Descriptors, libc::SYS_close_range, [first, last, 0, 0, 0]).map(|_| ());
        };
        if first < c_long::from(next) {
            integers(Step::Descriptors, libc::SYS_close_range, [first, c_long::from(next) - 1, 0, 0, 0])?;
        }
        first = c_long::from(next) + 1;
    }
}

/// Drops every capability that the kernel knows and that is not kept.
fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for capability in 0..64 {
        match integers(Step::Bounding, libc::SYS_prctl, [libc::PR_CAPBSET_READ.into(), capability, 0, 0, 0]) {
            Ok(0) => {}
            Ok(_) if keep >> capability & 1 == 1 => {}
            Ok(_) => {
                integers(Step::Bounding, libc::SYS_prctl, [libc::PR_CAPBSET_DROP.into(), capability, 0, 0, 0])?;
            }
            // The first number above the last capability.
            Err(Failure { errno: libc::EINVAL, .. }) => break,
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Leaves exactly `keep` in the permitted, effective, inheritable and ambient sets. The ambient set is what a user other
/// than root carries over exec.
fn set_capabilities(keep: u64) -> Result<(), Failure> {
    let (low, high) = (keep as u32, (keep >> 32) as u32);
    let header: [u32; 2] = [CAPABILITY_VERSION, 0];
    let sets: [u32; 6] = [low, low, low, high, high, high];
    // SAFETY: the shapes of cap_user_header_t (version, pid 0 = self) and of two cap_user_data_t (effective, permitted,
    // inheritable), both all u32.
    check(Step::Capabilities, unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    let ambient = |operation: c_int, capability| {
        let arguments = [libc::PR_CAP_AMBIENT.into(), operation.into(), capability, 0, 0];
        integers(Step::Ambient, libc::SYS_prctl, arguments)
    };
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for capability in (0..64).filter(|capability| keep >> capability & 1 == 1) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
}
