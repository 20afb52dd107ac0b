//! A socket in the hands of the calling task, as the kernel's own structures have it. The loader says where their fields lie.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use core::ffi::c_void;
use egress_common::kernel::Offsets;

const AF_UNIX: u16 = 1;
const AF_NETLINK: u16 = 16;

// SAFETY: the name is the loader's handle on this global, and no other item has it.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    socket_sk: 0,
    sock_family: 0,
    sock_cgroup: 0,
    task_cgroups: 0,
    css_set_cgroup: 0,
    cgroup_level: 0,
    cgroup_ancestors: 0,
};

/// A number of the loader's, which the verifier sees as a constant.
macro_rules! offset {
    ($field:ident) => {
        number(&raw const OFFSETS.$field)
    };
}

/// Volatile, because the loader has given it another value than the source shows.
#[inline(always)]
fn number(of: *const u32) -> usize {
    // SAFETY: a field of a valid static.
    unsafe { core::ptr::read_volatile(of) as usize }
}

/// `struct sock`
#[derive(Clone, Copy)]
pub(crate) struct Held {
    sk: *const u8,
}

impl Held {
    /// Behind a `struct socket`; none of one that is being closed.
    #[inline(always)]
    pub(crate) fn by_socket(socket: *const u8) -> Option<Self> {
        // SAFETY: a socket of the hook's arguments, or of the helper below.
        let sk: *const u8 = unsafe { field(socket, offset!(socket_sk)) };
        (!sk.is_null()).then_some(Self { sk })
    }

    /// Behind a `struct file`, if it is a socket's.
    #[inline(always)]
    pub(crate) fn by_file(file: *mut c_void) -> Option<Self> {
        // SAFETY: a file of the hook's arguments; the helper answers null for one of another kind.
        let socket = unsafe { generated::bpf_sock_from_file(file.cast()) };
        if socket.is_null() { None } else { Self::by_socket(socket.cast_const().cast()) }
    }

    /// False for the families that never leave the host, as `datapath::sockets` of the agent has them.
    #[inline(always)]
    pub(crate) fn leads_out(self) -> bool {
        // SAFETY: a live `struct sock`.
        let family: u16 = unsafe { field(self.sk, offset!(sock_family)) };
        !matches!(family, AF_UNIX | AF_NETLINK)
    }

    /// True where it was made in the very cgroup that the caller is in, as nearly all are.
    #[inline(always)]
    pub(crate) fn is_of_callers_cgroup(self) -> bool {
        self.cgroup() == callers_cgroup()
    }

    /// True where it was made in, or below, the cgroup that lies above the caller's at this depth.
    #[inline(always)]
    pub(crate) fn is_of_callers_tree(self, depth: u32) -> bool {
        let made_in = ancestor(self.cgroup(), depth);
        made_in.is_some() && made_in == ancestor(callers_cgroup(), depth)
    }

    #[inline(always)]
    fn cgroup(self) -> *const u8 {
        // SAFETY: a live `struct sock`.
        unsafe { field(self.sk, offset!(sock_cgroup)) }
    }
}

#[inline(always)]
fn callers_cgroup() -> *const u8 {
    // SAFETY: the calling task, which has a set of cgroups for as long as it runs.
    unsafe {
        let task: *const u8 = generated::bpf_get_current_task_btf().cast_const().cast();
        let cgroups: *const u8 = field(task, offset!(task_cgroups));
        field(cgroups, offset!(css_set_cgroup))
    }
}

/// The address of the cgroup that lies above this one, or is it. Trees are not as deep as the mask allows.
#[inline(always)]
fn ancestor(cgroup: *const u8, depth: u32) -> Option<u64> {
    if cgroup.is_null() {
        return None;
    }
    // SAFETY: a live `struct cgroup`: its socket, or the calling task, holds it. It has as many ancestors as its level says.
    unsafe {
        let level: u32 = field(cgroup, offset!(cgroup_level));
        if level < depth {
            return None;
        }
        let ancestors = cgroup.add(offset!(cgroup_ancestors));
        bpf_probe_read_kernel(ancestors.add((depth & 0xff) as usize * 8).cast::<u64>()).ok()
    }
}

/// One field, by one load.
#[inline(always)]
unsafe fn field<T>(of: *const u8, offset: usize) -> T {
    // SAFETY: the caller's pointer is to a structure that has the field there.
    unsafe { core::ptr::read_volatile(of.add(offset).cast::<T>()) }
}
