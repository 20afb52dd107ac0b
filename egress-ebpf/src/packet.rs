//! Packet hooks of the cgroup: the boundary. Every packet is judged by its own header; there is no verdict to remember.

use crate::{
    context::{Room, LOOPBACK_IFINDEX, Packet, Socket},
    maps::{self, CLIENTS, FLOWS, KernelTables, Placed, SANDBOXES, Tenant, now_ns, tenant},
    report::{self, Subject},
};
use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
use egress_common::{
    addr::Class,
    event::{ClientKey, Hook},
    packet::{Flow, FlowKey, protocol},
    permit::{Match, RuleRef},
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
    let mut room = Room::new();
    let flow = room.clear();
    let mut verdict = packet.read(0, flow);
    if verdict.allows() {
        verdict = judge(tenant, flow, path_of(packet));
        if verdict.is(Reason::Listener) {
            remember_client_at(packet.skb(), tenant.slot.into(), flow.src_port.into(), flow.protocol.into());
        } else if !verdict.allows() {
            verdict = Verdict(excuse_at(packet.skb(), tenant.slot.into(), flow, verdict.0));
        }
    }
    if !verdict.allows() {
        return refuse(tenant, verdict, Hook::Egress, flow);
    }
    report::passed(tenant.slot, packet.len());
    PASS
}

#[cgroup_skb(ingress)]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = tenant() else { return DROP };
    let mut room = Room::new();
    let flow = room.clear();
    // What comes in cannot leak anything out; the protocols that we cannot read have no sockets here.
    if !packet.read(0, flow).allows() {
        return PASS;
    }
    let verdict = if let Path::Loopback = path_of(packet) {
        remember_loopback(tenant, flow);
        Reason::Loopback.into()
    } else {
        admit(tenant, flow)
    };
    if verdict.allows() { PASS } else { refuse(tenant, verdict, Hook::Ingress, flow) }
}

#[inline(always)]
fn path_of(packet: Packet) -> Path {
    if packet.ifindex() == LOOPBACK_IFINDEX { Path::Loopback } else { Path::Wire }
}

/// The verdict on a packet by its own header.
#[inline(always)]
pub(crate) fn judge(tenant: Tenant, flow: &Flow, path: Path) -> Verdict {
    maps::judge(tenant, Question { dst: flow.dst, asked: Asked::of(flow, path) })
}

/// What can still speak for a packet that no rule names: a flow that a listed peer opened, a connection older than its
/// permit's end, or the address that the application asked for before the host translated it. Never against a deny.
///
/// A global BPF function: apart from the hot path, it is verified apart too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn excuse_at(skb: *mut __sk_buff, slot: u64, flow: *const Flow, verdict: u64) -> u64 {
    let slot = slot as u32;
    // SAFETY: null, or a whole flow of the caller's, as the verifier checks.
    if let Some(flow) = unsafe { flow.as_ref() }
        && let Some(sandbox) = SANDBOXES.get(slot)
    {
        return excuse(Tenant { slot, sandbox }, Packet::from(skb), flow, Verdict(verdict)).0;
    }
    verdict
}

#[inline(always)]
fn excuse(tenant: Tenant, packet: Packet, flow: &Flow, verdict: Verdict) -> Verdict {
    let on_loopback = packet.ifindex() == LOOPBACK_IFINDEX;
    // Off loopback a loopback address stays denied, whatever flow is on record for it there.
    if !verdict.is_miss() && !(on_loopback && verdict.is(Reason::LoopbackClosed)) {
        return verdict;
    }
    if !flow.opens_connection() && is_reply(tenant, flow) {
        return Reason::Reply.into();
    }
    if on_loopback || !verdict.is_miss() {
        return verdict;
    }
    let Some(socket) = packet.socket() else { return verdict };
    if verdict.is_expired() && !flow.opens_connection() && outlives(tenant, socket, flow) {
        return Reason::Established.into();
    }
    if translates(tenant, socket, flow) { Reason::Translated.into() } else { verdict }
}

#[inline(always)]
pub(crate) fn is_reply(tenant: Tenant, flow: &Flow) -> bool {
    let Some(state) = FLOWS.get_ptr(&Placed::new(FlowKey::outgoing(tenant.slot, flow)).key) else { return false };
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
        && stands(tenant, kept.rule)
}

/// The host rewrote the destination on its way out (DNAT); the socket still holds what the application asked for. Only
/// where the namespace is the host's: in its own, the sandbox could write such rules itself.
#[inline(always)]
fn translates(tenant: Tenant, socket: Socket, flow: &Flow) -> bool {
    if tenant.sandbox.flags & flags::OWN_NETNS != 0 || socket.is_listening() {
        return false;
    }
    let (peer, port) = socket.peer();
    let asked = peer.routed();
    if asked == flow.dst.routed()
        || KernelTables.class(asked) != Class::Global
        || KernelTables.is_own(tenant.slot, asked)
    {
        return false;
    }
    let asked = Asked::of(&Flow { dst_port: port, ..*flow }, Path::Wire);
    maps::judge(tenant, Question { dst: peer, asked }).is(Reason::Permitted)
}

/// Whether a packet off loopback may come in, and the memory of flows that listed peers opened.
#[inline(always)]
pub(crate) fn admit(tenant: Tenant, flow: &Flow) -> Verdict {
    let opens = flow.opens_connection();
    let mut verdict = Verdict::from(if opens { Reason::Inbound } else { Reason::Permitted });
    if tenant.sandbox.flags & flags::INBOUND == 0 {
        return verdict;
    }
    let listed = KernelTables.network(tenant.slot, flow.src.routed()).map_or(RuleRef::NONE, |network| network.inbound);
    let asked = Asked::of(flow, Path::Wire).read_as(Mode::Inbound);
    if (opens || flow.protocol == protocol::UDP) && matches!(KernelTables.matches(listed, tenant.slot, asked), Match::Hit) {
        remember_flow(tenant, flow, listed);
        verdict = Reason::Permitted.into();
    } else {
        refresh_flow(tenant, flow);
    }
    verdict
}

/// With open loopback every reply passes anyway; with a list of ports the reply needs its flow on record.
#[inline(always)]
fn remember_loopback(tenant: Tenant, flow: &Flow) {
    let rule = tenant.sandbox.loopback;
    let asked = Asked::of(flow, Path::Loopback).read_as(Mode::AllowStatic);
    if tenant.sandbox.flags & flags::LOOPBACK_PORTS != 0
        && asked.has_port()
        && matches!(KernelTables.matches(rule, tenant.slot, asked), Match::Hit)
    {
        remember_flow(tenant, flow, rule);
    }
}

#[inline(always)]
fn remember_flow(tenant: Tenant, flow: &Flow, rule: RuleRef) {
    let state = FlowState { rule, nonce: tenant.sandbox.nonce, heard_ns: now_ns() };
    // A full table forgets the oldest flow, whose replies are then denied: closed, not open.
    let _full = FLOWS.insert(&Placed::new(FlowKey::incoming(tenant.slot, flow)).key, &state, 0);
}

/// Only packets from the remote side keep a flow alive.
#[inline(always)]
pub(crate) fn refresh_flow(tenant: Tenant, flow: &Flow) {
    if let Some(state) = FLOWS.get_ptr_mut(&Placed::new(FlowKey::incoming(tenant.slot, flow)).key) {
        // SAFETY: a map value, one word written.
        unsafe { (*state).heard_ns = now_ns() };
    }
}

/// Keeps who is behind a source port, so that the agent can name the process that asked for a denied name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_client_at(skb: *mut __sk_buff, slot: u64, port: u64, protocol: u64) -> u64 {
    if let Some(socket) = Packet::from(skb).socket()
        && let Some(origin) = socket.origin()
    {
        let key = ClientKey { slot: slot as u32, port: port as u16, protocol: protocol as u16 };
        let _full = CLIENTS.insert(&key, &origin.client, 0);
    }
    0
}

#[inline(always)]
fn refuse(tenant: Tenant, verdict: Verdict, hook: Hook, flow: &Flow) -> i32 {
    let addr = if let Hook::Ingress = hook { flow.src } else { flow.dst };
    let subject =
        Subject { hook, addr, dst_port: flow.dst_port, src_port: flow.src_port, protocol: flow.protocol };
    if report::denied_packet(tenant, verdict, &subject) { PASS } else { DROP }
}
