//! What the kernel half reads of the kernel's own structures.

use bytemuck::{Pod, Zeroable};

/// Where fields lie in the running kernel's structures, in octets: its BTF says so. All zero where no program asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Offsets {
    /// `struct socket`, `sk`
    pub socket_sk: u32,
    /// `struct sock`, `__sk_common.skc_family`
    pub sock_family: u32,
    /// `struct sock`, `sk_cgrp_data.cgroup`
    pub sock_cgroup: u32,
    /// `struct task_struct`, `cgroups`
    pub task_cgroups: u32,
    /// `struct css_set`, `dfl_cgrp`
    pub css_set_cgroup: u32,
    /// `struct cgroup`, `level`
    pub cgroup_level: u32,
    /// `struct cgroup`, `ancestors` (Linux 6.1)
    pub cgroup_ancestors: u32,
}

crate::abi!(Offsets = 28);
