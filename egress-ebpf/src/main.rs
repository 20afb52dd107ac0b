//! The kernel half of egressd. Each hook gathers the facts of one packet or socket call, asks
//! [`egress_common::verdict::decide`], and reports; there is no arithmetic of its own here.
//!
//! | module | hooks |
//! |---|---|
//! | `socket` | cgroup connect4/6, sendmsg4/6, recvmsg4/6, getpeername4/6, bind4/6, sock_create |
//! | `packet` | cgroup_skb egress and ingress |
//! | `rate` | sock_ops |
//! | `device` | tc on the host side of a sandbox's device |
//! | `foreign` | lsm_cgroup: sockets that were made elsewhere, and address families that no rule is about |
//! | `guest` | tc on the host side of a guest's device, and of the one that leads to its resolver |
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::cast_lossless,
    clippy::cast_ptr_alignment,
    clippy::checked_conversions,
    clippy::needless_pass_by_value,
    clippy::nonminimal_bool,
    reason = "contexts come by value from the hook macros; the rest is written as the verifier reads it best"
)]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod device;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod foreign;
#[cfg(target_arch = "bpf")]
mod guest;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod rate;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod socket;

/// On any other target there is nothing to run: the crate is built for `bpfel-unknown-none` by `egress-agent/build.rs`.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// Never reached: the verifier refuses a program that could get here, because the loop has no end.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers that we call are open to GPL-compatible programs only; this crate is licensed under GPL-2.0 too.
// SAFETY: the section name is the loader's convention, and no other item of the object has it.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
