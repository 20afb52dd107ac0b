//! Packet hooks of the cgroup: the boundary. Every packet is judged by its own header; there is no verdict to remember.

use crate::{
    context::{Headers, Packet, Room, Socket},
    flows,
    maps::{self, CLIENTS, KernelTables, SANDBOXES, Tenant, narrow, tenant},
    rate::{self, Metered},
    report::{self, Subject},
};
use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
use egress_common::{
    addr::Addr,
    bucket::Place,
    event::{ClientKey, Hook},
    packet::{Flow, protocol},
    permit::{Match, PermitKey, RuleRef},
    question::{Asked, Mode, Path, Question},
    sandbox::flags,
    verdict::{Reason, Tables as _, Verdict},
};

const PASS: i32 = 1;
/// EPERM for the sender.
const DROP: i32 = 0;
/// Dropped as a full queue drops, and no sender sees an error (`BPF_PROG_CGROUP_INET_EGRESS_RUN_ARRAY` in
/// include/linux/bpf-cgroup.h). Not for TCP: it tries again each half a second, and gives a connection up that found no room
/// ten times (`TCP_RESOURCE_PROBE_INTERVAL` in net/ipv4/tcp_timer.c). Of EPERM it tells nobody, and waits as after a loss.
const CONGESTED: i32 = 2;

#[cgroup_skb(egress)]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = tenant() else { return DROP };
    let mut room = Room::new();
    let headers = room.clear();
    let mut verdict = packet.read(0, headers);
    if verdict.allows() {
        verdict = maps::judge(tenant, headers.question());
        if verdict.is(Reason::Listener) {
            remember_client_at(
                packet.skb(),
                tenant.slot.into(),
                headers.flow.src_port.into(),
                headers.flow.protocol.into(),
            );
        } else if !verdict.allows() {
            verdict = Verdict(excuse_at(packet.skb(), tenant.slot.into(), headers, verdict.0));
        }
    }
    if !verdict.allows() {
        return refuse(tenant, verdict, Hook::Egress, &headers.flow);
    }
    if tenant.sandbox.flags & flags::METERED_EGRESS != 0 && !Asked(headers.asked).is_on(Path::Loopback) {
        match rate::meter(tenant, packet, &headers.flow, Place::Egress) {
            Metered::Passed => {}
            Metered::Full if headers.flow.protocol == protocol::TCP => return DROP,
            Metered::Full => return CONGESTED,
            Metered::Spent => return refuse(tenant, Reason::Budget.into(), Hook::Egress, &headers.flow),
        }
    }
    report::passed(tenant.slot, verdict.rule(), packet.len());
    PASS
}

#[cgroup_skb(ingress)]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some(tenant) = tenant() else { return DROP };
    let mut room = Room::new();
    let headers = room.clear();
    // What comes in cannot leak anything out; the protocols that we cannot read have no sockets here.
    if !packet.read(0, headers).allows() {
        return PASS;
    }
    let asked = Asked(headers.asked);
    if asked.is_on(Path::Loopback) {
        remember_loopback(tenant, headers);
        return PASS;
    }
    let verdict = admit(tenant, headers);
    if !verdict.allows() {
        return refuse(tenant, verdict, Hook::Ingress, &headers.flow);
    }
    let metered = tenant.sandbox.flags & flags::METERED_INGRESS != 0;
    if metered && !matches!(rate::meter(tenant, packet, &headers.flow, Place::Ingress), Metered::Passed) {
        DROP
    } else {
        PASS
    }
}

/// What can still speak for a packet that no rule names: a flow that a listed peer opened, a connection older than its
/// permit's end, or the address that the application asked for before the host translated it. Never against a deny.
///
/// A global BPF function: apart from the hot path, it is verified apart too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn excuse_at(skb: *mut __sk_buff, slot: u64, headers: *const Headers, verdict: u64) -> u64 {
    let slot = narrow(slot);
    // SAFETY: null, or whole headers of the caller's, as the verifier checks.
    if let Some(headers) = unsafe { headers.as_ref() }
        && let Some(sandbox) = SANDBOXES.get(slot)
    {
        return excuse(Tenant { slot, sandbox }, Packet::from(skb), headers, Verdict(verdict)).0;
    }
    verdict
}

#[inline(always)]
fn excuse(tenant: Tenant, packet: Packet, headers: &Headers, verdict: Verdict) -> Verdict {
    let flow = &headers.flow;
    let on_loopback = Asked(headers.asked).is_on(Path::Loopback);
    // Off loopback a loopback address stays denied, whatever flow is on record for it there.
    if !verdict.is_miss() && !(on_loopback && verdict.is(Reason::LoopbackClosed)) {
        return verdict;
    }
    let opens = Asked(headers.asked).opens_connection();
    if !opens && flows::goes_on(tenant, flow) {
        return Reason::Reply.into();
    }
    if on_loopback {
        return verdict;
    }
    let Some(socket) = packet.socket() else { return verdict };
    let peer = socket.peer();
    if !opens && outlives(tenant, socket, peer, flow) {
        return Reason::Established.into();
    }
    if translates(tenant, socket, peer, headers) { Reason::Translated.into() } else { verdict }
}

/// The socket was connected to this very destination while its permit lived, and the rule still stands. The permit itself is
/// forgotten some time after its end.
#[inline(always)]
fn outlives(tenant: Tenant, socket: Socket, (peer, port): (Addr, u16), flow: &Flow) -> bool {
    let Some(kept) = socket.connected() else { return false };
    // One comparison in the end: each would be a branch to walk.
    let differs = kept.nonce ^ tenant.sandbox.nonce
        | differ(kept.addr, flow.dst)
        | differ(kept.addr, peer)
        | u64::from(kept.port ^ u32::from(flow.dst_port))
        | u64::from(kept.port ^ u32::from(port))
        | u64::from(kept.protocol ^ u32::from(flow.protocol));
    differs == 0 && flows::stands(tenant, kept.rule)
}

/// Zero where the addresses are the same.
#[inline(always)]
fn differ(one: Addr, other: Addr) -> u64 {
    let ((a, b), (c, d)) = (one.pack(), other.pack());
    (a ^ c) | (b ^ d)
}

/// The host rewrote the destination on its way out (DNAT); the socket still holds what the application asked for. Only
/// where the namespace is the host's: in its own, the sandbox could write such rules itself.
#[inline(always)]
fn translates(tenant: Tenant, socket: Socket, (peer, port): (Addr, u16), headers: &Headers) -> bool {
    if tenant.sandbox.flags & flags::OWN_NETNS != 0 || socket.is_listening() {
        return false;
    }
    if differ(peer, headers.flow.dst) == 0 {
        return false;
    }
    // As on the wire: there loopback is closed, and own addresses are nobody's.
    let asked = Asked(headers.asked).to_port(port);
    maps::judge(tenant, Question { dst: peer, asked }).is(Reason::Permitted)
}

/// Whether a packet off loopback may come in, and the memory of flows that listed peers opened.
#[inline(always)]
pub(crate) fn admit(tenant: Tenant, headers: &Headers) -> Verdict {
    let (flow, asked) = (&headers.flow, Asked(headers.asked));
    let opens = asked.opens_connection();
    if tenant.sandbox.flags & flags::INBOUND != 0 {
        let rule =
            if opens || flow.protocol == protocol::UDP { welcome(tenant, flow.src, asked) } else { RuleRef::NONE };
        if !rule.is_none() {
            flows::open(tenant, flow, rule);
            return Reason::Permitted.into();
        }
        flows::hear(tenant, flow);
    }
    if opens { Reason::Inbound.into() } else { Reason::Permitted.into() }
}

/// The rule that lists the peer for what it asks.
#[inline(always)]
fn welcome(tenant: Tenant, peer: Addr, asked: Asked) -> RuleRef {
    let (high, low) = peer.pack();
    Verdict(welcome_at(tenant.slot.into(), high, low, asked.0)).rule()
}

// Two global BPF functions, so that the second is not walked once for each kind of address.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn welcome_at(slot: u64, high: u64, low: u64, asked: u64) -> u64 {
    let (high, low) = Addr::unpack(high, low).routed().pack();
    welcome_routed_at(slot, high, low, asked)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn welcome_routed_at(slot: u64, high: u64, low: u64, asked: u64) -> u64 {
    let key = PermitKey { slot: narrow(slot), addr: Addr::unpack(high, low) };
    if let Some(network) = KernelTables.network(&key)
        && let Match::Hit = KernelTables.matches(network.inbound, key.slot, Asked(asked).read_as(Mode::Inbound))
    {
        return Verdict::by(Reason::Permitted, network.inbound, false).0;
    }
    Verdict::from(Reason::Inbound).0
}

/// With open loopback every reply passes anyway; with a list of ports the reply needs its flow on record.
#[inline(always)]
fn remember_loopback(tenant: Tenant, headers: &Headers) {
    let rule = tenant.sandbox.loopback;
    let asked = Asked(headers.asked).read_as(Mode::AllowStatic);
    if tenant.sandbox.flags & flags::LOOPBACK_PORTS != 0
        && asked.has_port()
        && matches!(KernelTables.matches(rule, tenant.slot, asked), Match::Hit)
    {
        flows::open(tenant, &headers.flow, rule);
    }
}

/// Keeps who is behind a source port, so that the agent can name the process that asked for a denied name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_client_at(skb: *mut __sk_buff, slot: u64, port: u64, protocol: u64) -> u64 {
    if let Some(socket) = Packet::from(skb).socket()
        && let Some(origin) = socket.origin()
    {
        let key = ClientKey { slot: narrow(slot), port: port as u16, protocol: protocol as u16 };
        let _full = CLIENTS.insert(&key, &origin.client, 0);
    }
    0
}

#[inline(always)]
fn refuse(tenant: Tenant, verdict: Verdict, hook: Hook, flow: &Flow) -> i32 {
    let addr = if let Hook::Ingress = hook { flow.src } else { flow.dst };
    let subject = Subject { hook, addr, dst_port: flow.dst_port, src_port: flow.src_port, protocol: flow.protocol };
    if report::denied_packet(tenant, verdict, &subject) { PASS } else { DROP }
}
