//! What no hook of a socket's own cgroup sees: sockets that were made outside the sandbox (inherited, passed, taken), and address
//! families without a hook. These hooks run for the cgroup of the calling task (`bpf_lsm_find_cgroup_shim` in
//! kernel/bpf/bpf_lsm.c).

use crate::{
    context::Held,
    maps::{Tenant, identity, tenant, tenant_of},
    report::{self, Subject},
};
use aya_ebpf::{macros::lsm_cgroup, programs::LsmContext};
use egress_common::{addr::Addr, event::Hook, sandbox::flags, verdict::Reason};

const PASS: i32 = 1;
/// The kernel turns it into EPERM.
const REFUSE: i32 = 0;

/// sendto(2), send(2), write(2), io_uring's; TCP fast open; splice(2) and sendfile(2) since Linux 6.5.
#[lsm_cgroup(hook = "socket_sendmsg")]
pub(crate) fn socket_sendmsg(ctx: LsmContext) -> i32 {
    judge(Hook::SocketSendmsg, Held::by_socket(ctx.arg(0)))
}

#[lsm_cgroup(hook = "socket_connect")]
pub(crate) fn socket_connect(ctx: LsmContext) -> i32 {
    judge(Hook::SocketConnect, Held::by_socket(ctx.arg(0)))
}

#[lsm_cgroup(hook = "socket_recvmsg")]
pub(crate) fn socket_recvmsg(ctx: LsmContext) -> i32 {
    judge(Hook::SocketRecvmsg, Held::by_socket(ctx.arg(0)))
}

/// SCTP connects by an option, and joining a group sends: neither is a connect(2).
#[lsm_cgroup(hook = "socket_setsockopt")]
pub(crate) fn socket_setsockopt(ctx: LsmContext) -> i32 {
    judge(Hook::SocketSetsockopt, Held::by_socket(ctx.arg(0)))
}

/// SCTP connects by reading an option too, and TCP receives by one (TCP_ZEROCOPY_RECEIVE).
#[lsm_cgroup(hook = "socket_getsockopt")]
pub(crate) fn socket_getsockopt(ctx: LsmContext) -> i32 {
    judge(Hook::SocketGetsockopt, Held::by_socket(ctx.arg(0)))
}

/// SCM_RIGHTS and pidfd_getfd(2): a socket that never comes in is not polled or mapped either, which sends by AF_XDP.
#[lsm_cgroup(hook = "file_receive")]
pub(crate) fn file_receive(ctx: LsmContext) -> i32 {
    judge(Hook::FileReceive, Held::by_file(ctx.arg(0)))
}

/// splice(2) and sendfile(2) before Linux 6.5, which sent pages past `socket_sendmsg`.
#[lsm_cgroup(hook = "file_permission")]
pub(crate) fn file_permission(ctx: LsmContext) -> i32 {
    judge(Hook::FilePermission, Held::by_file(ctx.arg(0)))
}

#[inline(always)]
fn judge(hook: Hook, held: Option<Held>) -> i32 {
    let Some(held) = held else { return PASS };
    if held.is_of_callers_cgroup() || !held.leads_out() {
        return PASS;
    }
    let identity = identity();
    let Some(tenant) = tenant_of(&identity) else { return REFUSE };
    if held.is_of_callers_tree(identity.depth) {
        return PASS;
    }
    refuse(tenant, Reason::ForeignSocket, hook, 0)
}

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const AF_PACKET: i32 = 17;
const AF_ALG: i32 = 38;
const AF_XDP: i32 = 44;

/// Families beside those that `sock_create` judges or that stay on the host. In a network namespace of its own the device
/// judges frames.
#[lsm_cgroup(hook = "socket_create")]
pub(crate) fn socket_create(ctx: LsmContext) -> i32 {
    let (family, protocol, by_kernel): (i32, u32, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    if by_kernel != 0 || matches!(family, AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK | AF_ALG) {
        return PASS;
    }
    let Some(tenant) = tenant() else { return REFUSE };
    if matches!(family, AF_PACKET | AF_XDP) && tenant.sandbox.flags & flags::OWN_NETNS != 0 {
        return PASS;
    }
    refuse(tenant, Reason::Protocol, Hook::SocketCreate, protocol as u8)
}

#[inline(always)]
fn refuse(tenant: Tenant, reason: Reason, hook: Hook, protocol: u8) -> i32 {
    let subject = Subject { hook, addr: Addr::UNSPECIFIED, dst_port: 0, src_port: 0, protocol };
    if report::denied_use(tenant, reason.into(), &subject) { PASS } else { REFUSE }
}
