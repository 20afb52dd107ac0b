//! Socket calls, as sock_addr and sock programs see them.

use super::{AF_INET, AF_INET6, read_words};
use crate::maps::{CONNECTED, ORIGINS};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_get_netns_cookie,
    programs::{SockAddrContext, SockContext},
};
use egress_common::{
    addr::Addr,
    event::{Connected, Origin},
};

/// The address family of a hook: connect4 sees an IPv4 sockaddr, connect6 an IPv6 one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The address in a socket call: what the application wrote, and where a redirect is written.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    ctx: &'a SockAddrContext,
    family: Family,
}

impl<'a> Call<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a SockAddrContext, family: Family) -> Self {
        Self { ctx, family }
    }

    /// Address of the call.
    #[inline(always)]
    pub(crate) fn addr(self) -> Addr {
        // SAFETY: a live context for the whole program run; ip4 and ip6 hooks may each read their own field.
        unsafe {
            match self.family {
                Family::V4 => Addr::v4((*self.ctx.sock_addr).user_ip4),
                Family::V6 => Addr::v6(read_words(&raw const (*self.ctx.sock_addr).user_ip6)),
            }
        }
    }

    /// Port as the kernel holds it, in network order.
    #[inline(always)]
    pub(crate) fn port_be(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.ctx.sock_addr).user_port }
    }

    /// Port, host order.
    #[inline(always)]
    pub(crate) fn port(self) -> u16 {
        u16::from_be(self.port_be() as u16)
    }

    /// IP protocol of the socket; MPTCP, whose subflows are TCP, counts as TCP.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u8 {
        const IPPROTO_MPTCP: u32 = 262;
        // SAFETY: as above.
        match unsafe { (*self.ctx.sock_addr).protocol } {
            IPPROTO_MPTCP => egress_common::packet::protocol::TCP,
            other => other as u8,
        }
    }

    /// Writes another address, of the hook's own family (IPv4 in an IPv6 call: v4-mapped).
    #[inline(always)]
    pub(crate) fn set(self, addr: Addr, port_be: u32) {
        let [a, b, c, d] = addr.words();
        // SAFETY: as above; these are the fields that the hook may write.
        unsafe {
            let sock_addr = self.ctx.sock_addr;
            match self.family {
                Family::V4 => (*sock_addr).user_ip4 = d,
                Family::V6 => {
                    let first = (&raw mut (*sock_addr).user_ip6).cast::<u32>();
                    core::ptr::write_volatile(first, a);
                    core::ptr::write_volatile(first.add(1), b);
                    core::ptr::write_volatile(first.add(2), c);
                    core::ptr::write_volatile(first.add(3), d);
                }
            }
            (*sock_addr).user_port = port_be;
        }
    }

    /// Cookie of the caller's network namespace.
    #[inline(always)]
    pub(crate) fn netns_cookie(self) -> u64 {
        // SAFETY: the helper takes the context of a socket address program.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// Keeps the server that the application asked for; `false` where the kernel has no memory for it.
    #[inline(always)]
    pub(crate) fn keep_origin(self, origin: impl FnOnce(*mut Origin)) -> bool {
        let kept = ORIGINS.get_or_insert_ptr_mut(self.ctx, None);
        if kept.is_null() {
            return false;
        }
        origin(kept);
        true
    }

    /// The server kept by [`Call::keep_origin`].
    #[inline(always)]
    pub(crate) fn origin(self) -> Option<&'static Origin> {
        // SAFETY: null, or a value of this map, alive for the program run.
        unsafe { ORIGINS.get_ptr_mut(self.ctx).as_ref() }
    }

    /// Keeps the rule under which this socket is being connected.
    #[inline(always)]
    pub(crate) fn keep_connected(self, connected: Connected) {
        // Made empty and then filled: an initial value would be built on the stack first.
        let kept = CONNECTED.get_or_insert_ptr_mut(self.ctx, None);
        if !kept.is_null() {
            // SAFETY: not null, just checked.
            unsafe { kept.write(connected) };
        }
    }
}

/// What a new socket will be.
#[derive(Clone, Copy)]
pub(crate) struct NewSocket {
    /// `SOCK_STREAM` and friends.
    pub(crate) kind: u32,
    /// IP protocol number, beyond 255 for MPTCP.
    pub(crate) protocol: u32,
    /// True for AF_INET and AF_INET6, the only families this hook is asked about.
    pub(crate) is_ip: bool,
}

impl From<&SockContext> for NewSocket {
    #[inline(always)]
    fn from(ctx: &SockContext) -> Self {
        // SAFETY: a live context for the whole program run.
        unsafe {
            let family = (*ctx.sock).family;
            Self {
                kind: (*ctx.sock).type_,
                protocol: (*ctx.sock).protocol,
                is_ip: family == AF_INET || family == AF_INET6,
            }
        }
    }
}
