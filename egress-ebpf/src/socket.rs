//! Socket hooks: the early, typed refusal (EPERM), the DNS redirect, and who asked. The packet hooks judge again.

use crate::{
    context::{Call, Family, NewSocket},
    maps::{self, LISTENERS, Tenant, tenant},
    report::{self, CallerAt, Subject},
};
use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use egress_common::{
    addr::Addr,
    destination::{DNS_PORT, Protocols},
    event::{Connected, Hook},
    packet::protocol,
    question::{Asked, Path, Question},
    sandbox::flags,
    verdict::{ListenerKey, Reason, Verdict},
};

const PASS: i32 = 1;
/// The kernel turns it into EPERM.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    judge(Hook::Connect4, Call::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    judge(Hook::Connect6, Call::new(&ctx, Family::V6))
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    judge(Hook::Sendmsg4, Call::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    judge(Hook::Sendmsg6, Call::new(&ctx, Family::V6))
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    restore(Call::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    restore(Call::new(&ctx, Family::V6))
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    restore(Call::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    restore(Call::new(&ctx, Family::V6))
}

#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    guard_listener(Hook::Bind4, Call::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    guard_listener(Hook::Bind6, Call::new(&ctx, Family::V6))
}

#[inline(always)]
fn judge(hook: Hook, call: Call<'_>) -> i32 {
    let Some(tenant) = tenant() else { return REFUSE };
    let (addr, port, protocol) = (call.addr(), call.port(), call.protocol());
    if port == DNS_PORT && Protocols::of(protocol) != Protocols::NONE && tenant.sandbox.listener_port != 0 {
        return redirect(tenant, call, addr);
    }
    let asked = Asked(call_asks(protocol.into(), port.into()));
    let verdict = maps::judge(tenant, Question { dst: addr, asked });
    let connects = matches!(hook, Hook::Connect4 | Hook::Connect6);
    if !verdict.allows() {
        if connects && asks_for_source(tenant, verdict, protocol) {
            return PASS;
        }
        return refuse(tenant, verdict, hook, addr, port, protocol);
    }
    if verdict.fleeting() && connects {
        call.keep_connected(Connected {
            nonce: tenant.sandbox.nonce,
            addr,
            rule: verdict.rule(),
            port: u32::from(port),
            protocol: u32::from(protocol),
        });
    }
    PASS
}

/// ping connects a UDP socket to any port of its target to learn its own address. That sends nothing, and what the socket
/// would send is judged as a packet; so where echo is open, the port does not matter.
#[inline(always)]
fn asks_for_source(tenant: Tenant, verdict: Verdict, protocol: u8) -> bool {
    protocol == protocol::UDP && verdict.is(Reason::PortNotPermitted) && tenant.sandbox.flags & flags::ICMP_ECHO != 0
}

/// What a socket call asks, as a global BPF function: see `maps`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn call_asks(protocol: u64, port: u64) -> u64 {
    let protocol = protocol as u8;
    // A ping socket's connect says where echo requests will go.
    let echo_type = if protocol == protocol::ICMP { 8 } else { 128 };
    Asked::new(Path::Socket, protocol, Some(port as u16), echo_type).0
}

#[inline(always)]
fn refuse(tenant: Tenant, verdict: Verdict, hook: Hook, addr: Addr, dst_port: u16, protocol: u8) -> i32 {
    let subject = Subject { hook, addr, dst_port, src_port: 0, protocol };
    if report::denied_call(tenant, verdict, &subject) { PASS } else { REFUSE }
}

/// Every query to port 53, loopback servers included, goes to the sandbox's own listener.
#[inline(always)]
fn redirect(tenant: Tenant, call: Call<'_>, addr: Addr) -> i32 {
    let port_be = call.port_be();
    let kept = call.keep_origin(|origin| {
        // SAFETY: a value of the map, alive for the program run.
        unsafe {
            (*origin).addr = addr;
            (*origin).port_be = port_be;
            let client = &raw mut (*origin).client;
            let at =
                CallerAt { pid: &raw mut (*client).pid, uid: &raw mut (*client).uid, comm: &raw mut (*client).comm };
            at.write_caller();
        }
    });
    if !kept {
        return REFUSE;
    }
    let listener = if addr.is_v4() { Addr::LOOPBACK_V4 } else { Addr::LOOPBACK_V6 };
    call.set(listener, u32::from((tenant.sandbox.listener_port as u16).to_be()));
    PASS
}

/// Shows the application the server that it asked: musl, c-ares and Node drop answers from anybody else.
#[inline(always)]
fn restore(call: Call<'_>) -> i32 {
    if let Some(tenant) = tenant()
        && u32::from(call.port()) == tenant.sandbox.listener_port
        && (call.addr() == Addr::LOOPBACK_V4 || call.addr() == Addr::LOOPBACK_V6)
        && let Some(origin) = call.origin()
    {
        call.set(origin.addr, origin.port_be);
    }
    PASS
}

/// No sandbox binds the port of a listener, its own included: after the agent's death it would answer in its stead.
#[inline(always)]
fn guard_listener(hook: Hook, call: Call<'_>) -> i32 {
    let Some(tenant) = tenant() else { return REFUSE };
    let key = ListenerKey { netns_cookie: call.netns_cookie(), port: u32::from(call.port()), reserved: 0 };
    if LISTENERS.get_ptr(&key).is_none() {
        return PASS;
    }
    refuse(tenant, Reason::ListenerPort.into(), hook, call.addr(), call.port(), call.protocol())
}

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const IPPROTO_MPTCP: u32 = 262;

/// Raw sockets write their own headers; protocols other than TCP, UDP and ping have no rule to be judged by.
#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    let Some(tenant) = tenant() else { return REFUSE };
    let socket = NewSocket::from(&ctx);
    let flags = tenant.sandbox.flags;
    let plain = match (socket.kind, socket.protocol) {
        (SOCK_STREAM, 6 | IPPROTO_MPTCP) | (SOCK_DGRAM, 17) => true,
        (SOCK_DGRAM, 1 | 58) => flags & flags::ICMP_ECHO != 0,
        (SOCK_RAW, _) => flags & flags::RAW_SOCKETS != 0,
        _ => false,
    };
    if plain || !socket.is_ip {
        return PASS;
    }
    refuse(tenant, Reason::Protocol.into(), Hook::SockCreate, Addr::UNSPECIFIED, 0, socket.protocol as u8)
}
