//! Packet hooks of the cgroup: the boundary. Every packet is judged by its own header; there is no verdict to remember.

use crate::{
    context::{LOOPBACK_IFINDEX, Packet, Socket},
    maps::{self, CLIENTS, FLOWS, KernelTables, SANDBOXES, Tenant, now_ns, tenant},
    report::{self, Subject},
};
use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
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
    let flow = match packet.flow(0, tenant) {
        Ok(flow) => flow,
        Err(reason) => return refuse(tenant, reason.into(), Hook::Egress, &NO_FLOW),
    };
    let mut verdict = judge(tenant, &flow, path_of(packet));
    if verdict.is(Reason::Listener) {
        remember_client_at(packet.skb(), tenant.slot, flow.src_port, flow.protocol);
    } else if !verdict.allows() {
        verdict = Verdict(excuse_at(packet.skb(), tenant.slot, verdict.0));
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
    // What comes in cannot leak anything out; the protocols that we cannot read have no sockets here.
    let Ok(flow) = packet.flow(0, tenant) else { return PASS };
    let verdict = admit(tenant, &flow, path_of(packet));
    if verdict.allows() { PASS } else { refuse(tenant, verdict, Hook::Ingress, &flow) }
}

#[inline(always)]
fn path_of(packet: Packet) -> Path {
    if packet.ifindex() == LOOPBACK_IFINDEX { Path::Loopback } else { Path::Wire }
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
///
/// A global BPF function, which reads the headers again: apart from the hot path, it is verified apart too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn excuse_at(skb: *mut __sk_buff, slot: u32, verdict: u64) -> u64 {
    let packet = Packet::from(skb);
    let Some(sandbox) = SANDBOXES.get(slot) else { return verdict };
    let tenant = Tenant { slot, sandbox };
    let Ok(flow) = packet.flow(0, tenant) else { return verdict };
    excuse(tenant, packet, &flow, Verdict(verdict)).0
}

#[inline(always)]
fn excuse(tenant: Tenant, packet: Packet, flow: &Flow, verdict: Verdict) -> Verdict {
    if !verdict.is_miss() && !verdict.is(Reason::LoopbackClosed) {
        return verdict;
    }
    if flow.opens_connection() {
        return if translates(tenant, packet, flow, verdict) { Reason::Translated.into() } else { verdict };
    }
    if is_reply(tenant, flow) {
        return Reason::Reply.into();
    }
    if verdict.is_expired()
        && let Some(socket) = packet.socket()
        && outlives(tenant, socket, flow)
    {
        return Reason::Established.into();
    }
    if translates(tenant, packet, flow, verdict) { Reason::Translated.into() } else { verdict }
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

/// The host rewrote the destination on its way out (DNAT); the socket still holds what the application asked for. Only
/// where the namespace is the host's: in its own, the sandbox could write such rules itself.
#[inline(always)]
fn translates(tenant: Tenant, packet: Packet, flow: &Flow, verdict: Verdict) -> bool {
    if tenant.sandbox.flags & flags::OWN_NETNS != 0 || !verdict.is_miss() || packet.ifindex() == LOOPBACK_IFINDEX {
        return false;
    }
    let Some(socket) = packet.socket() else { return false };
    if socket.is_listening() {
        return false;
    }
    let (peer, port) = socket.peer();
    let asked = peer.routed();
    if peer == Addr::UNSPECIFIED || asked == flow.dst.routed() || KernelTables.class(asked) != Class::Global {
        return false;
    }
    let flow = Flow { dst: peer, dst_port: port, ..*flow };
    judge(tenant, &flow, Path::Wire).is(Reason::Permitted)
}

/// Whether a packet may come in, and the memory of flows that peers opened.
#[inline(always)]
pub(crate) fn admit(tenant: Tenant, flow: &Flow, path: Path) -> Verdict {
    let asked = Asked::of(flow, Path::Wire);
    if let Path::Loopback = path {
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
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_client_at(skb: *mut __sk_buff, slot: u32, port: u16, protocol: u8) -> u32 {
    if let Some(socket) = Packet::from(skb).socket()
        && let Some(origin) = socket.origin()
    {
        let key = ClientKey { slot, port, protocol: u16::from(protocol) };
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
