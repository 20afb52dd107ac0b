//! Packet hooks of the cgroup: the boundary. Every packet is judged by its own header; there is no verdict to remember.

use crate::{
    context::{LOOPBACK_IFINDEX, Packet, Socket},
    maps::{self, CLIENTS, FLOWS, KernelTables, Tenant, now_ns, tenant},
    report::{self, Subject},
};
use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};
use egress_common::{
    addr::{Addr, Class},
    event::{ClientKey, Hook},
    packet::{Flow, FlowKey, protocol},
    permit::{Match, PermitKey, RuleRef},
    question::{Asked, Mode, Path, Question},
    sandbox::flags,
    verdict::{FlowState, Reason, Tables as _, Verdict, flow_idle_ns},
};

const PASS: i32 = 1;
/// EPERM for the sender.
const DROP: i32 = 0;

#[cgroup_skb(egress)]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = tenant() else { return DROP };
    let flow = match packet.flow(0) {
        Ok(flow) => flow,
        Err(reason) => return refuse(tenant, reason.into(), Hook::Egress, &NO_FLOW),
    };
    let path = if packet.ifindex() == LOOPBACK_IFINDEX { Path::Loopback } else { Path::Wire };
    let mut verdict = judge(tenant, &flow, path);
    if verdict.is(Reason::Listener) {
        remember_client(tenant, packet, &flow);
    } else if !verdict.allows() {
        verdict = excuse(tenant, packet, &flow, path, verdict);
        if !verdict.allows() {
            return refuse(tenant, verdict, Hook::Egress, &flow);
        }
    }
    report::passed(tenant.slot, packet.len());
    PASS
}

#[cgroup_skb(ingress)]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = tenant() else { return DROP };
    let flow = match packet.flow(0) {
        Ok(flow) => flow,
        // What comes in cannot leak anything out; the protocols that we cannot read have no sockets here.
        Err(_) => return PASS,
    };
    let verdict = admit(tenant, &flow, packet.ifindex() == LOOPBACK_IFINDEX);
    if verdict.allows() { PASS } else { refuse(tenant, verdict, Hook::Ingress, &flow) }
}

const NO_FLOW: Flow =
    Flow { src: Addr::UNSPECIFIED, dst: Addr::UNSPECIFIED, src_port: 0, dst_port: 0, protocol: 0, detail: 0, tail: false };

/// The verdict on a packet by its own header.
#[inline(always)]
pub(crate) fn judge(tenant: Tenant, flow: &Flow, path: Path) -> Verdict {
    maps::judge(tenant, Question { dst: flow.dst, asked: Asked::of(flow, path) })
}

/// What can still speak for a packet that no rule names: a flow that a listed peer opened, a connection older than its
/// permit's end, or the address that the application asked for before the host translated it. Never against a deny.
#[inline(always)]
fn excuse(tenant: Tenant, packet: Packet, flow: &Flow, path: Path, verdict: Verdict) -> Verdict {
    if !verdict.is_miss() && !verdict.is(Reason::LoopbackClosed) {
        return verdict;
    }
    if !flow.opens_connection() && is_reply(tenant, flow) {
        return Reason::Reply.into();
    }
    if !matches!(path, Path::Wire) || !verdict.is_miss() {
        return verdict;
    }
    let Some(socket) = packet.socket() else { return verdict };
    if verdict.is(Reason::Expired)
        && outlives(tenant, socket, flow)
    {
        return Reason::Established.into();
    }
    if tenant.sandbox.flags & flags::OWN_NETNS == 0 && translated(tenant, socket, flow) {
        return Reason::Translated.into();
    }
    verdict
}

#[inline(always)]
pub(crate) fn is_reply(tenant: Tenant, flow: &Flow) -> bool {
    let Some(state) = FLOWS.get_ptr(&FlowKey::outgoing(tenant.slot, flow)) else { return false };
    // SAFETY: a map value; each field is a word, and a racing update writes the same nonce.
    let state = unsafe { *state };
    state.nonce == tenant.sandbox.nonce
        && now_ns().wrapping_sub(state.heard_ns) < flow_idle_ns(flow.protocol)
        && stands(tenant, state.rule)
}

/// The rule is still in force.
#[inline(always)]
fn stands(tenant: Tenant, rule: RuleRef) -> bool {
    matches!(KernelTables.matches(rule, tenant.slot, Asked::EXISTS), Match::Hit)
}

/// The socket was connected to this very destination while its permit lived, and the rule still stands.
#[inline(always)]
fn outlives(tenant: Tenant, socket: Socket, flow: &Flow) -> bool {
    let Some(kept) = socket.connected() else { return false };
    let (peer, port) = socket.peer();
    kept.nonce == tenant.sandbox.nonce
        && kept.addr == flow.dst.routed()
        && kept.addr == peer.routed()
        && kept.port == u32::from(flow.dst_port)
        && kept.port == u32::from(port)
        && kept.protocol == u32::from(flow.protocol)
        && !flow.opens_connection()
        && stands(tenant, kept.rule)
}

/// The host rewrote the destination on its way out (DNAT); the socket still holds what the application asked for.
#[inline(always)]
fn translated(tenant: Tenant, socket: Socket, flow: &Flow) -> bool {
    if socket.is_listening() {
        return false;
    }
    let (peer, port) = socket.peer();
    if peer == Addr::UNSPECIFIED || peer.routed() == flow.dst.routed() || !matches!(peer.routed().class(), Class::Global) {
        return false;
    }
    let asked = Flow { dst: peer, dst_port: port, ..*flow };
    let verdict = judge(tenant, &asked, Path::Wire);
    verdict.is(Reason::Permitted)
}

/// Whether a packet may come in, and the memory of flows that peers opened.
#[inline(always)]
pub(crate) fn admit(tenant: Tenant, flow: &Flow, on_loopback: bool) -> Verdict {
    let asked = Asked::of(flow, Path::Wire);
    if on_loopback {
        // With open loopback every reply passes anyway; with a list of ports the reply needs its flow on record.
        let asked = asked.read_as(Mode::AllowStatic);
        if tenant.sandbox.flags & flags::LOOPBACK_PORTS != 0
            && asked.has_port()
            && matches!(KernelTables.matches(tenant.sandbox.loopback, tenant.slot, asked), Match::Hit)
        {
            remember_flow(tenant, flow, tenant.sandbox.loopback);
        }
        return Reason::Loopback.into();
    }
    let opens = flow.opens_connection();
    if tenant.sandbox.flags & flags::INBOUND == 0 {
        return if opens { Reason::Inbound.into() } else { Reason::Permitted.into() };
    }
    let key = PermitKey { slot: tenant.slot, addr: flow.src.routed() };
    let listed = KernelTables.network(&key).map_or(RuleRef::NONE, |network| network.inbound);
    let asked = asked.read_as(Mode::Inbound);
    let welcome = !listed.is_none() && matches!(KernelTables.matches(listed, tenant.slot, asked), Match::Hit);
    if welcome && (opens || flow.protocol == protocol::UDP) {
        remember_flow(tenant, flow, listed);
        return Reason::Permitted.into();
    }
    refresh_flow(tenant, flow);
    if opens { Reason::Inbound.into() } else { Reason::Permitted.into() }
}

#[inline(always)]
pub(crate) fn remember_flow(tenant: Tenant, flow: &Flow, rule: RuleRef) {
    let state = FlowState { rule, nonce: tenant.sandbox.nonce, heard_ns: now_ns() };
    // A full table forgets the oldest flow, whose replies are then denied: closed, not open.
    let _full = FLOWS.insert(&FlowKey::incoming(tenant.slot, flow), &state, 0);
}

/// Only packets from the remote side keep a flow alive.
#[inline(always)]
pub(crate) fn refresh_flow(tenant: Tenant, flow: &Flow) {
    if let Some(state) = FLOWS.get_ptr_mut(&FlowKey::incoming(tenant.slot, flow)) {
        // SAFETY: a map value, one word written.
        unsafe { (*state).heard_ns = now_ns() };
    }
}

/// Keeps who is behind a source port, so that the agent can name the process that asked for a denied name.
#[inline(always)]
fn remember_client(tenant: Tenant, packet: Packet, flow: &Flow) {
    if let Some(socket) = packet.socket()
        && let Some(origin) = socket.origin()
    {
        let key = ClientKey { slot: tenant.slot, port: flow.src_port, protocol: u16::from(flow.protocol) };
        let _full = CLIENTS.insert(&key, &origin.client, 0);
    }
}

#[inline(always)]
fn refuse(tenant: Tenant, verdict: Verdict, hook: Hook, flow: &Flow) -> i32 {
    let addr = if let Hook::Ingress = hook { flow.src } else { flow.dst };
    let subject =
        Subject { hook, addr, dst_port: flow.dst_port, src_port: flow.src_port, protocol: flow.protocol };
    if report::denied_packet(tenant, verdict, &subject) { PASS } else { DROP }
}
