//! TC on the host side of a sandbox's device: sees every frame that leaves its namespace, whoever made it.

use crate::{
    context::{Headers, Packet, Room},
    flows,
    maps::{self, DEVICES, Placed, SANDBOXES, SOURCES, Tenant, narrow, tenant_of},
    packet::admit,
    rate::{self, Metered},
    report::{self, Subject},
};
use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use egress_common::{
    addr::Addr,
    bucket::Place,
    event::Hook,
    neighbour::{self, ETHERNET_LEN},
    packet::{Flow, ethertype, is_icmp_error},
    permit::PermitKey,
    question::{Asked, Question},
    sandbox::{OnDevice, flags},
    verdict::{Reason, Verdict},
};

/// Ours has no objection: the next program decides. In the clsact fallback the same number means "as configured".
pub(crate) const NEXT: i32 = -1;
pub(crate) const DROP: i32 = 2;

/// Frames from the sandbox.
#[classifier]
pub(crate) fn device_egress(ctx: TcContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some((tenant, on)) = device_tenant(packet) else { return DROP };
    let mut room = Room::new();
    let headers = room.clear();
    let verdict = judge_frame(tenant, &on, packet, headers);
    if on.mark != 0 {
        if verdict.allows() {
            packet.set_mark(on.mark);
        } else if on.place != 0 || packet.mark() == on.mark {
            return NEXT;
        }
    }
    // Of a frame on a shared device nobody knows whose it is; its sockets are metered at the cgroup.
    if verdict.allows() && on.mark != 0 { NEXT } else { conclude(tenant, packet, headers, verdict) }
}

/// What becomes of a frame from the sandbox, at a device that it has alone.
#[inline(always)]
pub(crate) fn conclude(tenant: Tenant, packet: Packet, headers: &Headers, mut verdict: Verdict) -> i32 {
    if verdict.allows() {
        if tenant.sandbox.flags & flags::METERED_EGRESS == 0 || verdict.is(Reason::Neighbour) {
            return NEXT;
        }
        match rate::meter(tenant, packet, &headers.flow, Place::DeviceEgress) {
            Metered::Passed => return NEXT,
            Metered::Full => return DROP,
            Metered::Spent => verdict = Reason::Budget.into(),
        }
    }
    let flow = &headers.flow;
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
    let Some((tenant, on)) = device_tenant(packet) else { return DROP };
    if on.mark != 0 {
        // Root inside may send a frame back as it came.
        packet.set_mark(0);
    }
    let mut room = Room::new();
    let headers = room.clear();
    if packet.read(ETHERNET_LEN, headers).allows() {
        if tenant.sandbox.flags & flags::INBOUND == 0 {
            flows::hear(tenant, &headers.flow);
        } else {
            // The cgroup hook refuses what is not welcome, with an event; here the memory alone matters.
            let _welcome = admit(tenant, headers);
        }
        if on.mark == 0 && !keeps_to_rate(tenant, packet, headers) {
            return DROP;
        }
    }
    NEXT
}

/// False where a frame to the sandbox comes too fast.
#[inline(always)]
pub(crate) fn keeps_to_rate(tenant: Tenant, packet: Packet, headers: &Headers) -> bool {
    tenant.sandbox.flags & flags::METERED_INGRESS == 0
        || neighbour::is_discovery(&headers.flow)
        || matches!(rate::meter(tenant, packet, &headers.flow, Place::DeviceIngress), Metered::Passed)
}

#[inline(always)]
pub(crate) fn device_tenant(packet: Packet) -> Option<(Tenant, OnDevice)> {
    // SAFETY: a small value, copied at once; a torn identity names no slot's nonce.
    let on = unsafe { DEVICES.get(&packet.ifindex()) }.copied()?;
    Some((tenant_of(&on.identity)?, on))
}

#[inline(always)]
pub(crate) fn judge_frame(tenant: Tenant, on: &OnDevice, packet: Packet, headers: &mut Headers) -> Verdict {
    if packet.has_vlan() {
        return Reason::EtherType.into();
    }
    if packet.ethertype() == ethertype::ARP {
        return Verdict(judge_arp_at(packet.skb(), tenant.slot.into()));
    }
    let read = packet.read(ETHERNET_LEN, headers);
    if !read.allows() {
        return read;
    }
    if neighbour::is_discovery(&headers.flow) {
        return Verdict(judge_discovery_at(packet.skb(), tenant.slot.into(), headers));
    }
    if !on.is_usual(headers.flow.src) && !is_source(tenant.slot.into(), headers.flow.src) {
        return Reason::Source.into();
    }
    judge_flow(tenant, packet, headers)
}

// Global BPF functions: what is rare is verified apart from what is not.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_arp_at(skb: *mut __sk_buff, slot: u64) -> u64 {
    let packet = Packet::from(skb);
    let reason = match neighbour::arp(&packet, packet.len()) {
        // Address conflict detection (RFC 5227) asks from the unspecified address.
        Ok(sender) if sender == Addr::v4(0) || is_source(slot, sender) => Reason::Neighbour,
        Ok(_) => Reason::Source,
        Err(reason) => reason,
    };
    Verdict::from(reason).0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_discovery_at(skb: *mut __sk_buff, slot: u64, headers: *const Headers) -> u64 {
    let packet = Packet::from(skb);
    // SAFETY: null, or whole headers of the caller's, as the verifier checks.
    let Some(headers) = (unsafe { headers.as_ref() }) else { return Verdict::from(Reason::NeighbourForm).0 };
    let reason = match neighbour::discovery(&packet, &headers.flow, packet.len()) {
        Ok(own) if own.is_none_or(|own| is_source(slot, own)) => Reason::Neighbour,
        Ok(_) => Reason::Source,
        Err(reason) => reason,
    };
    Verdict::from(reason).0
}

#[inline(always)]
fn is_source(slot: u64, addr: Addr) -> bool {
    let (high, low) = addr.pack();
    is_source_at(slot, high, low) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_source_at(slot: u64, high: u64, low: u64) -> u64 {
    let key = PermitKey { slot: narrow(slot), addr: Addr::unpack(high, low) };
    SOURCES.get_ptr(&Placed::new(key).key).is_some().into()
}

#[inline(always)]
fn judge_flow(tenant: Tenant, packet: Packet, headers: &Headers) -> Verdict {
    let flow = &headers.flow;
    if is_icmp_error(flow) {
        return Verdict(quoted_at(packet.skb(), tenant.slot.into(), headers));
    }
    let verdict = maps::judge(tenant, headers.question());
    if verdict.allows() {
        if verdict.fleeting() && !flow.tail {
            flows::keep(tenant, flow, verdict.rule());
        }
        return verdict;
    }
    if verdict.is_miss() && !Asked(headers.asked).opens_connection() && flows::goes_on(tenant, flow) {
        return Reason::Established.into();
    }
    verdict
}

/// An ICMP error passes to whom the policy permits the flow that it quotes (path MTU, unreachable ports). A global BPF
/// function, rarely run and verified apart.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quoted_at(skb: *mut __sk_buff, slot: u64, headers: *const Headers) -> u64 {
    let slot = narrow(slot);
    // SAFETY: null, or whole headers of the caller's, as the verifier checks.
    if let Some(headers) = unsafe { headers.as_ref() }
        && let Some(sandbox) = SANDBOXES.get(slot)
        && quotes_permitted(Tenant { slot, sandbox }, Packet::from(skb), &headers.flow)
    {
        return Verdict::from(Reason::Permitted).0;
    }
    Verdict::from(Reason::Icmp).0
}

#[inline(always)]
fn quotes_permitted(tenant: Tenant, packet: Packet, flow: &Flow) -> bool {
    let header = if flow.src.is_v4() { 20 } else { 40 };
    let mut room = Room::new();
    let headers = room.clear();
    if !packet.read(ETHERNET_LEN + header + 8, headers).allows() {
        return false;
    }
    // As the sandbox would have answered it.
    let inner = &headers.flow;
    let answer = Flow { src: inner.dst, dst: inner.src, src_port: inner.dst_port, dst_port: inner.src_port, ..*inner };
    if answer.dst != flow.dst || answer.tail || !is_source(tenant.slot.into(), answer.src) {
        return false;
    }
    maps::judge(tenant, Question { dst: answer.dst, asked: Asked(headers.asked).to_port(answer.dst_port) }).allows()
        || flows::goes_on(tenant, &answer)
}
