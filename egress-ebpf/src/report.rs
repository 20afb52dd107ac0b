//! Counters, and events that a flood cannot turn into a flood.

use crate::maps::{Aligned, COUNTERS, DENIALS, EVENTS, PASSED, SANDBOXES, Tenant, narrow, now_ns};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_ns, generated::bpf_get_current_comm,
};
use core::mem::MaybeUninit;
use egress_common::{
    addr::Addr,
    event::{Counters, Denial, DenialKey, EVENTS_PER_SECOND, FOLD_NS, Hook, Passed, RULES_AT_ONCE, Record},
    permit::RuleRef,
    sandbox::flags,
    verdict::{REASONS, Verdict},
};

/// What an event says beside the verdict and the caller.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) hook: Hook,
    pub(crate) addr: Addr,
    pub(crate) dst_port: u16,
    pub(crate) src_port: u16,
    pub(crate) protocol: u8,
}

/// Where a caller is written down: in place, because a copy of a name is made byte by byte.
#[derive(Clone, Copy)]
pub(crate) struct CallerAt {
    pub(crate) pid: *mut u32,
    pub(crate) uid: *mut u32,
    pub(crate) comm: *mut [u8; 16],
}

impl CallerAt {
    /// Writes down the calling process. Socket hooks only: elsewhere the current task is whoever the packet interrupted.
    #[inline(always)]
    pub(crate) fn write_caller(self) {
        // SAFETY: three fields of one value; the helper fails for no buffer of this size.
        unsafe {
            *self.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            *self.uid = bpf_get_current_uid_gid() as u32;
            bpf_get_current_comm(self.comm.cast(), size_of::<[u8; 16]>() as u32);
        }
    }

    /// Where a hook has no caller to name.
    #[inline(always)]
    fn write_nobody(self) {
        // SAFETY: as above.
        unsafe {
            *self.pid = 0;
            *self.uid = u32::MAX;
            // Two words, volatile: a call of memset would be walked byte by byte. The name stands on eight bytes.
            const { assert!(core::mem::offset_of!(Record, comm) % 8 == 0) };
            self.comm.cast::<u64>().write_volatile(0);
            self.comm.cast::<u64>().add(1).write_volatile(0);
        }
    }
}

#[inline(always)]
fn counters(slot: u32) -> Option<&'static mut Counters> {
    // SAFETY: a per-CPU value, and programs of one CPU do not preempt each other within a hook.
    COUNTERS.get_ptr_mut(slot).map(|counters| unsafe { &mut *counters })
}

/// Counts a packet that passed, with its rule or, where it has none, with its sandbox: one look-up either way.
#[inline(always)]
pub(crate) fn passed(slot: u32, rule: RuleRef, bytes: u32) {
    let passed: Option<*mut Passed> = if rule.is_none() {
        counters(slot).map(|counters| &raw mut counters.passed)
    } else {
        let entry = PASSED.get_ptr_mut(rule.index / RULES_AT_ONCE as u32);
        // SAFETY: a live value of the map, and an index within it.
        entry.map(|entry| unsafe { entry.cast::<Passed>().add(rule.index as usize % RULES_AT_ONCE) })
    };
    if let Some(passed) = passed {
        // SAFETY: a per-CPU value, and programs of one CPU do not preempt each other within a hook.
        let passed = unsafe { &mut *passed };
        passed.packets += 1;
        passed.bytes += u64::from(bytes);
    }
}

/// Counts and reports a denied socket call, and says whether it may go on all the same (observe mode).
#[inline(always)]
pub(crate) fn denied_call(tenant: Tenant, verdict: Verdict, subject: &Subject) -> bool {
    let (high, low) = subject.addr.pack();
    opaque(report_call(tenant.slot.into(), high, low, pack(subject), verdict.0)) != 0
}

/// Counts and reports a denied use of a file or socket, and says whether it may go on all the same (observe mode).
#[inline(always)]
pub(crate) fn denied_use(tenant: Tenant, verdict: Verdict, subject: &Subject) -> bool {
    let (high, low) = subject.addr.pack();
    opaque(report_use(tenant.slot.into(), high, low, pack(subject), verdict.0)) != 0
}

/// Counts and reports a denied packet, and says whether it may go on all the same (observe mode).
#[inline(always)]
pub(crate) fn denied_packet(tenant: Tenant, verdict: Verdict, subject: &Subject) -> bool {
    let (high, low) = subject.addr.pack();
    opaque(report_packet(tenant.slot.into(), high, low, pack(subject), verdict.0)) != 0
}

/// Makes the compiler forget what it knows of a global function's result: the verifier does not, and wants to see the test.
#[inline(always)]
fn opaque(value: u64) -> u64 {
    // SAFETY: reads a local.
    unsafe { core::ptr::read_volatile(&raw const value) }
}

#[inline(always)]
const fn pack(subject: &Subject) -> u64 {
    (subject.hook as u64) << 40
        | (subject.protocol as u64) << 32
        | (subject.src_port as u64) << 16
        | subject.dst_port as u64
}

// Global BPF functions of plain numbers, verified once for each program: those of packets may not ask for the current task,
// and those of LSM hooks not for the coarse clock.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_call(slot: u64, high: u64, low: u64, subject: u64, verdict: u64) -> u64 {
    report(narrow(slot), Addr::unpack(high, low), subject, Verdict(verdict), now_ns, CallerAt::write_caller).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_use(slot: u64, high: u64, low: u64, subject: u64, verdict: u64) -> u64 {
    // SAFETY: takes nothing and touches nothing.
    let now_ns = || unsafe { bpf_ktime_get_ns() };
    report(narrow(slot), Addr::unpack(high, low), subject, Verdict(verdict), now_ns, CallerAt::write_caller).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_packet(slot: u64, high: u64, low: u64, subject: u64, verdict: u64) -> u64 {
    report(narrow(slot), Addr::unpack(high, low), subject, Verdict(verdict), now_ns, CallerAt::write_nobody).into()
}

#[inline(always)]
fn report(
    slot: u32,
    addr: Addr,
    subject: u64,
    verdict: Verdict,
    now_ns: impl Fn() -> u64,
    write: impl Fn(CallerAt),
) -> bool {
    let Some(sandbox) = SANDBOXES.get(slot) else { return false };
    let observe = sandbox.flags & flags::OBSERVE != 0;
    let Some(counters) = counters(slot) else { return observe };
    if let Some(counter) = counters.denied.get_mut(usize::from(verdict.reason_number()) & (REASONS - 1)) {
        *counter += 1;
    }
    let now = now_ns();
    let (dst_port, protocol) = (subject as u16, (subject >> 32) as u8);
    let key = Aligned(DenialKey { addr, slot, port: dst_port, protocol, reason: verdict.reason_number() });
    let mut count = 1;
    if let Some(denial) = DENIALS.get_ptr_mut(&key.0) {
        // SAFETY: a map value; a racing update loses a count, nothing else.
        let denial = unsafe { &mut *denial };
        if now.wrapping_sub(denial.reported_ns) < FOLD_NS {
            denial.count += 1;
            return observe;
        }
        count += denial.count;
    }
    let second = now / 1_000_000_000;
    if counters.window_s != second {
        counters.window_s = second;
        counters.window_events = 0;
    }
    counters.window_events += 1;
    if counters.window_events > EVENTS_PER_SECOND {
        counters.lost += 1;
        return observe;
    }
    let mut record = MaybeUninit::<Record>::uninit();
    let to = record.as_mut_ptr();
    // SAFETY: every field of the record is written here, in place.
    let record = unsafe {
        write(CallerAt { pid: &raw mut (*to).pid, uid: &raw mut (*to).uid, comm: &raw mut (*to).comm });
        (*to).time_ns = now;
        (*to).nonce = sandbox.nonce;
        (*to).addr = addr;
        (*to).rule_tag = verdict.rule().tag;
        // Nothing is denied four billion times between two reports.
        (*to).count = count as u32;
        (*to).lost = counters.lost as u32;
        (*to).dst_port = dst_port;
        (*to).src_port = (subject >> 16) as u16;
        (*to).protocol = protocol;
        (*to).hook = (subject >> 40) as u8;
        (*to).reason = verdict.reason_number();
        (*to).observed = u8::from(observe);
        (*to).reserved = 0;
        record.assume_init_ref()
    };
    if EVENTS.output::<Record>(record, 0).is_err() {
        counters.lost += 1;
        return observe;
    }
    counters.lost = 0;
    // A full table forgets the oldest; the worst that follows is one more event.
    let _full = DENIALS.insert(&key.0, &Denial { reported_ns: now, count: 0 }, 0);
    observe
}
