//! Counters, and events that a flood cannot turn into a flood.

use crate::maps::{COUNTERS, DENIALS, EVENTS, SANDBOXES, Tenant, now_ns};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use egress_common::{
    addr::Addr,
    event::{Client, Counters, Denial, DenialKey, EVENTS_PER_SECOND, FOLD_NS, Hook, Record},
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

/// Where a hook has no caller to name.
const NOBODY: Client = Client { pid: 0, uid: u32::MAX, comm: [0; 16] };

/// The calling process. Socket hooks only: elsewhere the current task is whoever the packet interrupted.
#[inline(always)]
pub(crate) fn caller() -> Client {
    Client {
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    }
}

#[inline(always)]
fn counters(slot: u32) -> Option<&'static mut Counters> {
    // SAFETY: a per-CPU value, and programs of one CPU do not preempt each other within a hook.
    COUNTERS.get_ptr_mut(slot).map(|counters| unsafe { &mut *counters })
}

/// Counts a packet that passed.
#[inline(always)]
pub(crate) fn passed(slot: u32, bytes: u32) {
    if let Some(counters) = counters(slot) {
        counters.allowed_packets += 1;
        counters.allowed_bytes += u64::from(bytes);
    }
}

/// Counts and reports a denied socket call, and says whether it may go on all the same (observe mode).
#[inline(always)]
pub(crate) fn denied_call(tenant: Tenant, verdict: Verdict, subject: &Subject) -> bool {
    let (high, low) = subject.addr.pack();
    opaque(report_call(tenant.slot, high, low, pack(subject), verdict.0)) != 0
}

/// Counts and reports a denied packet, and says whether it may go on all the same (observe mode).
#[inline(always)]
pub(crate) fn denied_packet(tenant: Tenant, verdict: Verdict, subject: &Subject) -> bool {
    let (high, low) = subject.addr.pack();
    opaque(report_packet(tenant.slot, high, low, pack(subject), verdict.0)) != 0
}

/// Makes the compiler forget what it knows of a global function's result: the verifier does not, and wants to see the test.
#[inline(always)]
fn opaque(value: u32) -> u32 {
    // SAFETY: reads a local.
    unsafe { core::ptr::read_volatile(&raw const value) }
}

#[inline(always)]
const fn pack(subject: &Subject) -> u64 {
    (subject.hook as u64) << 40 | (subject.protocol as u64) << 32 | (subject.src_port as u64) << 16 | subject.dst_port as u64
}

// Two global BPF functions of plain numbers, verified once each: only socket programs may ask for the current task.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_call(slot: u32, high: u64, low: u64, subject: u64, verdict: u64) -> u32 {
    u32::from(report(slot, Addr::unpack(high, low), subject, Verdict(verdict), caller))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_packet(slot: u32, high: u64, low: u64, subject: u64, verdict: u64) -> u32 {
    u32::from(report(slot, Addr::unpack(high, low), subject, Verdict(verdict), || NOBODY))
}

#[inline(always)]
fn report(slot: u32, addr: Addr, subject: u64, verdict: Verdict, client: impl Fn() -> Client) -> bool {
    let Some(sandbox) = SANDBOXES.get(slot) else { return false };
    let dst_port = subject as u16;
    let protocol = (subject >> 32) as u8;
    let observe = sandbox.flags & flags::OBSERVE != 0;
    let now = now_ns();
    let Some(counters) = counters(slot) else { return observe };
    if let Some(counter) = counters.denied.get_mut(usize::from(verdict.reason_number()) & (REASONS - 1)) {
        *counter += 1;
    }
    let key = DenialKey { addr, slot, port: dst_port, protocol, reason: verdict.reason_number() };
    let mut count = 1;
    if let Some(denial) = DENIALS.get_ptr_mut(&key) {
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
    if counters.window_events >= EVENTS_PER_SECOND {
        counters.lost += 1;
        return observe;
    }
    counters.window_events += 1;
    let client = client();
    let record = Record {
        time_ns: now,
        nonce: sandbox.nonce,
        addr,
        comm: client.comm,
        rule_tag: verdict.rule().tag,
        pid: client.pid,
        uid: client.uid,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        lost: u32::try_from(counters.lost).unwrap_or(u32::MAX),
        dst_port,
        src_port: (subject >> 16) as u16,
        protocol,
        hook: (subject >> 40) as u8,
        reason: verdict.reason_number(),
        observed: u8::from(observe),
        reserved: 0,
    };
    if EVENTS.output::<Record>(&record, 0).is_err() {
        counters.lost += 1;
        return observe;
    }
    counters.lost = 0;
    // A full table forgets the oldest; the worst that follows is one more event.
    let _full = DENIALS.insert(&key, &Denial { reported_ns: now, count: 0 }, 0);
    observe
}
