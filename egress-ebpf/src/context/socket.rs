//! The socket behind a packet.

use super::{AF_INET, read_words};
use crate::maps::{CONNECTED, ORIGINS};
use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_sk_storage_get};
use egress_common::{
    addr::Addr,
    event::{Connected, Origin},
};

/// A full socket behind a packet.
#[derive(Clone, Copy)]
pub(crate) struct Socket {
    pub(super) sk: *mut bpf_sock,
}

const TCP_LISTEN: u32 = 10;

impl Socket {
    /// Destination address and port (host order) that the socket itself is connected to.
    #[inline(always)]
    pub(crate) fn peer(self) -> (Addr, u16) {
        // SAFETY: the kernel gave a full socket, whose fields the verifier lets us read one by one.
        unsafe {
            let port = u16::from_be((*self.sk).dst_port);
            if (*self.sk).family == AF_INET {
                return (Addr::v4((*self.sk).dst_ip4), port);
            }
            let words = &raw const (*self.sk).dst_ip6;
            (Addr::v6(read_words(words)), port)
        }
    }

    /// True for a listening socket, which has no destination of its own.
    #[inline(always)]
    pub(crate) fn is_listening(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.sk).state == TCP_LISTEN }
    }

    /// The rule under which the socket was connected, if one was kept.
    #[inline(always)]
    pub(crate) fn connected(self) -> Option<&'static Connected> {
        // SAFETY: a full socket, and a map whose value is `Connected`.
        let value = unsafe {
            bpf_sk_storage_get((&raw const CONNECTED).cast_mut().cast(), self.sk.cast(), core::ptr::null_mut(), 0)
        };
        // SAFETY: null, or a value of this map, alive for the program run.
        unsafe { value.cast::<Connected>().as_ref() }
    }

    /// The server that a redirected socket asked for.
    #[inline(always)]
    pub(crate) fn origin(self) -> Option<&'static Origin> {
        // SAFETY: as above.
        let value = unsafe {
            bpf_sk_storage_get((&raw const ORIGINS).cast_mut().cast(), self.sk.cast(), core::ptr::null_mut(), 0)
        };
        // SAFETY: as above.
        unsafe { value.cast::<Origin>().as_ref() }
    }
}
