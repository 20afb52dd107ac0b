//! TC on the host side of a sandbox's device: sees every frame that leaves its namespace, whoever made it.

use crate::{
    context::Packet,
    maps::{self, DEVICES, FLOWS, SOURCES, Tenant, now_ns, tenant_of},
    packet::{admit, is_reply, judge},
    report::{self, Subject},
};
use aya_ebpf::{macros::classifier, programs::TcContext};
use egress_common::{
    addr::Addr,
    event::Hook,
    neighbour::{self, ETHERNET_LEN},
    packet::{Flow, FlowKey, ethertype, is_icmp_error},
    permit::PermitKey,
    question::{Asked, Path, Question},
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
    let (verdict, flow) = judge_frame(tenant, packet);
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
    let Ok(flow) = packet.flow(ETHERNET_LEN, tenant) else { return NEXT };
    // The cgroup hook refuses what is not welcome, with an event; here the memory alone matters.
    let _welcome = admit(tenant, &flow, Path::Wire);
    NEXT
}

#[inline(always)]
fn device_tenant(packet: Packet) -> Option<Tenant> {
    // SAFETY: a small value, copied at once; a torn identity names no slot's nonce.
    let identity = unsafe { DEVICES.get(&packet.ifindex()) }.copied()?;
    tenant_of(&identity)
}

const NO_FLOW: Flow =
    Flow { src: Addr::UNSPECIFIED, dst: Addr::UNSPECIFIED, src_port: 0, dst_port: 0, protocol: 0, detail: 0, tail: false };

#[inline(always)]
fn judge_frame(tenant: Tenant, packet: Packet) -> (Verdict, Flow) {
    let ethertype = packet.ethertype();
    if packet.has_vlan() {
        return (Reason::EtherType.into(), NO_FLOW);
    }
    if ethertype == ethertype::ARP {
        let reason = match neighbour::arp(&packet, packet.len()) {
            Ok(sender) if sender == Addr::v4(0) || is_source(tenant, sender) => Reason::Neighbour,
            Ok(_) => Reason::Source,
            Err(reason) => reason,
        };
        return (reason.into(), NO_FLOW);
    }
    let flow = match packet.flow(ETHERNET_LEN, tenant) {
        Ok(flow) => flow,
        Err(reason) => return (reason.into(), NO_FLOW),
    };
    if let Some(target) = neighbour::solicitation(&packet, &flow, packet.len()) {
        let reason = match target {
            Ok(own) if own.is_none_or(|own| is_source(tenant, own)) => Reason::Neighbour,
            Ok(_) => Reason::Source,
            Err(reason) => reason,
        };
        return (reason.into(), flow);
    }
    if !is_source(tenant, flow.src) {
        return (Reason::Source.into(), flow);
    }
    (judge_flow(tenant, packet, &flow), flow)
}

#[inline(always)]
fn is_source(tenant: Tenant, addr: Addr) -> bool {
    SOURCES.get_ptr(&PermitKey { slot: tenant.slot, addr }).is_some()
}

#[inline(always)]
fn judge_flow(tenant: Tenant, packet: Packet, flow: &Flow) -> Verdict {
    if is_icmp_error(flow) {
        return quoted(tenant, packet, flow);
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
    let key = FlowKey::outgoing(tenant.slot, flow);
    let now = now_ns();
    if let Some(state) = FLOWS.get_ptr(&key) {
        // SAFETY: a map value, words read once.
        let state = unsafe { *state };
        if state.nonce == tenant.sandbox.nonce && state.rule == verdict.rule() && now.wrapping_sub(state.heard_ns) < flow_idle_ns(flow.protocol) / 2 {
            return;
        }
    }
    let _full = FLOWS.insert(&key, &FlowState { rule: verdict.rule(), nonce: tenant.sandbox.nonce, heard_ns: now }, 0);
}

/// An ICMP error passes to whom the policy permits the flow that it quotes (path MTU, unreachable ports).
#[inline(always)]
fn quoted(tenant: Tenant, packet: Packet, flow: &Flow) -> Verdict {
    let header = if flow.src.is_v4() { 20 } else { 40 };
    let Ok(inner) = packet.flow(ETHERNET_LEN + header + 8, tenant) else { return Reason::Icmp.into() };
    if inner.src != flow.dst || !is_source(tenant, inner.dst) || inner.tail {
        return Reason::Icmp.into();
    }
    let asked = Asked::new(Path::Wire, inner.protocol, Some(inner.src_port), 0);
    let verdict = maps::judge(tenant, Question { dst: inner.src, asked });
    if verdict.allows() || is_reply(tenant, &Flow { src: inner.dst, dst: inner.src, src_port: inner.dst_port, dst_port: inner.src_port, ..inner }) {
        return Reason::Permitted.into();
    }
    Reason::Icmp.into()
}
