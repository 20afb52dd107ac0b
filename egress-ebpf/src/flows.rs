//! Flows on record: those that a listed peer opened, and those that outlive their permit at a device.
//!
//! Each step is a global BPF function, verified once, whose key does not weigh on the stack of its callers.

use crate::maps::{FLOWS, KernelTables, Placed, SANDBOXES, Tenant, narrow, now_ns};
use egress_common::{
    packet::{Flow, FlowKey},
    permit::{Match, RuleRef},
    question::Asked,
    verdict::{FLOW_LIFE_NS, FlowState, Tables as _, flow_idle_ns},
};

/// True where an outgoing packet belongs to a flow on record that was heard lately and whose rule still stands.
#[inline(always)]
pub(crate) fn goes_on(tenant: Tenant, flow: &Flow) -> bool {
    flow_goes_on(tenant.slot.into(), flow) != 0
}

/// Records the flow of an incoming packet under a rule.
#[inline(always)]
pub(crate) fn open(tenant: Tenant, flow: &Flow, rule: RuleRef) {
    record_flow(tenant.slot.into(), flow, rule.index.into(), rule.tag.into(), 0);
}

/// Records the flow of an outgoing packet under the rule of a permit that will expire.
#[inline(always)]
pub(crate) fn keep(tenant: Tenant, flow: &Flow, rule: RuleRef) {
    record_flow(tenant.slot.into(), flow, rule.index.into(), rule.tag.into(), 1);
}

/// Keeps the flow of an incoming packet alive: only the remote side can.
#[inline(always)]
pub(crate) fn hear(tenant: Tenant, flow: &Flow) {
    hear_flow(tenant.slot.into(), flow);
}

/// The rule is still in force.
#[inline(always)]
pub(crate) fn stands(tenant: Tenant, rule: RuleRef) -> bool {
    matches!(KernelTables.matches(rule, tenant.slot, Asked::EXISTS), Match::Hit)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_goes_on(slot: u64, flow: *const Flow) -> u64 {
    let slot = narrow(slot);
    // SAFETY: null, or a whole flow of the caller's, as the verifier checks.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(sandbox) = SANDBOXES.get(slot) else { return 0 };
    let Some(state) = FLOWS.get_ptr(&Placed::new(FlowKey::outgoing(slot, flow)).key) else { return 0 };
    // SAFETY: a map value; each field is a word, and a racing update writes the same nonce.
    let state = unsafe { &*state };
    let now = now_ns();
    let goes_on = state.nonce == sandbox.nonce
        && now < state.ends_ns
        && now.wrapping_sub(state.heard_ns) < flow_idle_ns(flow.protocol)
        && stands(Tenant { slot, sandbox }, state.rule);
    goes_on.into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_flow(slot: u64, flow: *const Flow, index: u64, tag: u64, outgoing: u64) -> u64 {
    let slot = narrow(slot);
    // SAFETY: as above.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(sandbox) = SANDBOXES.get(slot) else { return 0 };
    let outgoing = outgoing != 0;
    let mut key = Placed::new(FlowKey::incoming(slot, flow));
    if outgoing {
        key = Placed::new(FlowKey::outgoing(slot, flow));
    }
    let now = now_ns();
    // What a peer opened ends with the rule that lists him; what outlives a permit must end by itself.
    let ends_ns = if outgoing { now + FLOW_LIFE_NS } else { u64::MAX };
    let rule = RuleRef { index: narrow(index), tag: narrow(tag) };
    if outgoing && let Some(state) = FLOWS.get_ptr(&key.key) {
        // SAFETY: as above.
        let state = unsafe { &*state };
        let fresh = now.wrapping_sub(state.heard_ns) < flow_idle_ns(flow.protocol) / 2
            && state.ends_ns.saturating_sub(now) > FLOW_LIFE_NS / 2;
        if state.nonce == sandbox.nonce && state.rule == rule && fresh {
            return 0;
        }
    }
    // A full table forgets the oldest flow, whose packets are then denied: closed, not open.
    let _full = FLOWS.insert(&key.key, &FlowState { rule, nonce: sandbox.nonce, heard_ns: now, ends_ns }, 0);
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hear_flow(slot: u64, flow: *const Flow) -> u64 {
    // SAFETY: as above.
    if let Some(flow) = unsafe { flow.as_ref() }
        && let Some(state) = FLOWS.get_ptr_mut(&Placed::new(FlowKey::incoming(narrow(slot), flow)).key)
    {
        // SAFETY: a map value, one word written.
        unsafe { (*state).heard_ns = now_ns() };
    }
    0
}
