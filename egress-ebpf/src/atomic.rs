//! Atomic instructions on words of maps, by hand: `core::sync::atomic` has none that write for this target, and LLVM makes
//! those that return what they found (Linux 5.12) only along with 32-bit arithmetic, with which every program would have to
//! be verified and measured anew.

use core::arch::asm;

/// Adds, and returns what was there.
///
/// # Safety
/// `to` is a live, aligned word of a map.
#[inline(always)]
pub(crate) unsafe fn fetch_add(to: *mut u64, value: u64) -> u64 {
    let mut found = value;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{found} = atomic_fetch_add((u64 *)({to} + 0), {found})", to = in(reg) to, found = inout(reg) found);
    };
    found
}

/// Adds.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) value) };
}

/// Writes `new` where `old` is, and returns what was there.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn exchange_if(to: *mut u64, old: u64, new: u64) -> u64 {
    let mut found = old;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({to} + 0, r0, {new})", to = in(reg) to, new = in(reg) new, inout("r0") found);
    }
    found
}
