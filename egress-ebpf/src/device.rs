//! TC on the host side of a sandbox's device: sees every frame that leaves its namespace, whoever made it.

use crate::{
    context::{Room, Packet},
    maps::{DEVICES, FLOWS, Placed, SANDBOXES, SOURCES, Tenant, now_ns, tenant_of},
    packet::{admit, is_reply, judge, refresh_flow},
    report::{self, Subject},
};
use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use egress_common::{
    addr::Addr,
    event::Hook,
    neighbour::{self, ETHERNET_LEN},
    packet::{Flow, FlowKey, ethertype, is_icmp_error},
    permit::PermitKey,
    question::Path,
    sandbox::flags,
    verdict::{FlowState, Reason, Verdict, flow_idle_ns},
};

/// Ours has no objection: the next program decides. In the clsact fallback the same number means "as configured".
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Frames from the sandbox.
#[classifier]
pub(crate) fn device_egress(ctx: TcContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = device_tenant(packet) else { return DROP };
    let mut room = Room::new();
    let flow = room.clear();
    let verdict = judge_frame(tenant, packet, flow);
    if verdict.allows() {
        return NEXT;
    }
    let subject = Subject {
        hook: Hook::Device,
        addr: flow.dst,
        dst_port: flow.dst_port,
        src_port: flow.src_port,
        protocol: flow.protocol,
    };
    if report::denied_packet(tenant, verdict, &subject) { NEXT } else { DROP }
}

/// Frames to the sandbox: remembers the flows that listed peers open, and hears the remote side of living ones.
#[classifier]
pub(crate) fn device_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = device_tenant(packet) else { return DROP };
    let mut room = Room::new();
    let flow = room.clear();
    if packet.read(ETHERNET_LEN, flow).allows() {
        if tenant.sandbox.flags & flags::INBOUND == 0 {
            refresh_flow(tenant, flow);
        } else {
            // The cgroup hook refuses what is not welcome, with an event; here the memory alone matters.
            let _welcome = admit(tenant, flow);
        }
    }
    NEXT
}

#[inline(always)]
fn device_tenant(packet: Packet) -> Option<Tenant> {
    // SAFETY: a small value, copied at once; a torn identity names no slot's nonce.
    let identity = unsafe { DEVICES.get(&packet.ifindex()) }.copied()?;
    tenant_of(&identity)
}

#[inline(always)]
fn judge_frame(tenant: Tenant, packet: Packet, flow: &mut Flow) -> Verdict {
    if packet.has_vlan() {
        return Reason::EtherType.into();
    }
    // Each kind of frame names one address that must be the sandbox's own, and what it is worth if so.
    let (own, verdict) = if packet.ethertype() == ethertype::ARP {
        match neighbour::arp(&packet, packet.len()) {
            // Address conflict detection (RFC 5227) asks from the unspecified address.
            Ok(sender) if sender == Addr::v4(0) => return Reason::Neighbour.into(),
            Ok(sender) => (sender, Some(Reason::Neighbour)),
            Err(reason) => return reason.into(),
        }
    } else {
        let read = packet.read(ETHERNET_LEN, flow);
        if !read.allows() {
            return read;
        }
        if neighbour::is_discovery(flow) {
            match neighbour::discovery(&packet, flow, packet.len()) {
                Ok(None) => return Reason::Neighbour.into(),
                Ok(Some(own)) => (own, Some(Reason::Neighbour)),
                Err(reason) => return reason.into(),
            }
        } else {
            (flow.src, None)
        }
    };
    if !is_source(tenant, own) {
        return Reason::Source.into();
    }
    match verdict {
        Some(reason) => reason.into(),
        None => judge_flow(tenant, packet, flow),
    }
}

#[inline(always)]
fn is_source(tenant: Tenant, addr: Addr) -> bool {
    SOURCES.get_ptr(&Placed::new(PermitKey { slot: tenant.slot, addr }).key).is_some()
}

#[inline(always)]
fn judge_flow(tenant: Tenant, packet: Packet, flow: &Flow) -> Verdict {
    if is_icmp_error(flow) {
        return Verdict(quoted_at(packet.skb(), tenant.slot.into(), flow));
    }
    let verdict = judge(tenant, flow, Path::Wire);
    if verdict.allows() {
        if verdict.fleeting() && !flow.tail {
            remember_permitted(tenant, flow, verdict);
        }
        return verdict;
    }
    if verdict.is_miss() && !flow.opens_connection() && is_reply(tenant, flow) {
        return Reason::Established.into();
    }
    verdict
}

/// A live flow goes on after its permit's end: it is on record from its first permitted packet, and only the remote side
/// keeps it alive.
#[inline(always)]
fn remember_permitted(tenant: Tenant, flow: &Flow, verdict: Verdict) {
    let key = Placed::new(FlowKey::outgoing(tenant.slot, flow));
    let now = now_ns();
    if let Some(state) = FLOWS.get_ptr(&key.key) {
        // SAFETY: a map value, words read once.
        let state = unsafe { *state };
        if state.nonce == tenant.sandbox.nonce
            && state.rule == verdict.rule()
            && now.wrapping_sub(state.heard_ns) < flow_idle_ns(flow.protocol) / 2
        {
            return;
        }
    }
    let state = FlowState { rule: verdict.rule(), nonce: tenant.sandbox.nonce, heard_ns: now };
    let _full = FLOWS.insert(&key.key, &state, 0);
}

/// An ICMP error passes to whom the policy permits the flow that it quotes (path MTU, unreachable ports). A global BPF
/// function, rarely run and verified apart.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quoted_at(skb: *mut __sk_buff, slot: u64, flow: *const Flow) -> u64 {
    let slot = slot as u32;
    // SAFETY: null, or a whole flow of the caller's, as the verifier checks.
    if let Some(flow) = unsafe { flow.as_ref() }
        && let Some(sandbox) = SANDBOXES.get(slot)
        && quotes_permitted(Tenant { slot, sandbox }, Packet::from(skb), flow)
    {
        return Verdict::from(Reason::Permitted).0;
    }
    Verdict::from(Reason::Icmp).0
}

#[inline(always)]
fn quotes_permitted(tenant: Tenant, packet: Packet, flow: &Flow) -> bool {
    let header = if flow.src.is_v4() { 20 } else { 40 };
    let mut room = Room::new();
    let flow = room.clear();
    if !packet.read(ETHERNET_LEN + header + 8, flow).allows() {
        return false;
    }
    // As the sandbox would have answered it.
    let inner = *flow;
    let answer = Flow { src: inner.dst, dst: inner.src, src_port: inner.dst_port, dst_port: inner.src_port, ..inner };
    if answer.dst != flow.dst || answer.tail || !is_source(tenant, answer.src) {
        return false;
    }
    judge(tenant, &answer, Path::Wire).allows() || is_reply(tenant, &answer)
}
