//! TCP that is under way.

use super::{AF_INET, read_words};
use crate::maps::PACED;
use aya_ebpf::{
    bindings::bpf_sock_ops,
    helpers::generated::{bpf_setsockopt, bpf_sk_storage_get, bpf_sock_ops_cb_flags_set},
    programs::SockOpsContext,
};

const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;

/// A TCP socket in the middle of its life, as sock_ops programs see it.
#[derive(Clone, Copy)]
pub(crate) struct Conversation {
    ops: *mut bpf_sock_ops,
}

impl From<&SockOpsContext> for Conversation {
    #[inline(always)]
    fn from(ctx: &SockOpsContext) -> Self {
        Self { ops: ctx.ops }
    }
}

impl Conversation {
    /// What the program is called for.
    #[inline(always)]
    pub(crate) fn op(self) -> u32 {
        // SAFETY: a live context for the whole program run.
        unsafe { (*self.ops).op }
    }

    /// False where both ends are on this machine: loopback, or one own address.
    #[inline(always)]
    pub(crate) fn leaves(self) -> bool {
        // SAFETY: as above.
        unsafe {
            if (*self.ops).family == AF_INET {
                let peer = (*self.ops).remote_ip4;
                return peer.to_ne_bytes()[0] != 127 && peer != (*self.ops).local_ip4;
            }
            let own = read_words(&raw const (*self.ops).local_ip6);
            let peer @ [a, b, c, d] = read_words(&raw const (*self.ops).remote_ip6);
            let mapped = (a | b) == 0 && c == 0xffff_u32.to_be();
            !(mapped && d.to_ne_bytes()[0] == 127)
                && (peer[0] ^ own[0]) | (peer[1] ^ own[1]) | (peer[2] ^ own[2]) | (peer[3] ^ own[3]) != 0
        }
    }

    /// Payload of a full segment.
    #[inline(always)]
    pub(crate) fn mss(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.ops).mss_cache }
    }

    /// Headers of a segment: IP, TCP and its timestamps.
    #[inline(always)]
    pub(crate) fn headers(self) -> u32 {
        // SAFETY: as above. Of the socket: one for IPv6 may speak IPv4, and counts 20 bytes too many then.
        if unsafe { (*self.ops).family } == AF_INET { 52 } else { 72 }
    }

    /// Has the kernel call the program at these moments, and no others.
    #[inline(always)]
    pub(crate) fn tell(self, moments: i32) {
        // SAFETY: the helper takes the context of a sock_ops program.
        unsafe { bpf_sock_ops_cb_flags_set(self.ops, moments) };
    }

    /// Bytes of payload per second; all ones = no limit.
    #[inline(always)]
    pub(crate) fn set_pace(self, bytes_per_s: u32) {
        const SOL_SOCKET: i32 = 1;
        const SO_MAX_PACING_RATE: i32 = 47;
        let mut value = bytes_per_s;
        // SAFETY: as above, and four bytes of our own stack. A socket that refuses is held by the bucket alone.
        unsafe { bpf_setsockopt(self.ops.cast(), SOL_SOCKET, SO_MAX_PACING_RATE, (&raw mut value).cast(), 4) };
    }

    /// The last epoch in which the socket had an answer, 0 while it is not paced; made where `make`.
    #[inline(always)]
    fn last_epoch(self, make: bool) -> Option<&'static mut u64> {
        // SAFETY: as above; the union has one reading in network programs.
        let sk = unsafe { (*self.ops).__bindgen_anon_2.sk };
        if sk.is_null() {
            return None;
        }
        let map = (&raw const PACED).cast_mut().cast();
        let flags = if make { BPF_SK_STORAGE_GET_F_CREATE } else { 0 };
        // SAFETY: a socket of the kernel's, and a map whose value is a number.
        let last = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags) };
        // SAFETY: null, or a value of this map, alive for the program run.
        unsafe { last.cast::<u64>().as_mut() }
    }

    /// True once in each epoch.
    #[inline(always)]
    pub(crate) fn is_first_of(self, epoch: u64) -> bool {
        self.last_epoch(true).is_some_and(|last| core::mem::replace(last, epoch) != epoch)
    }

    /// True once behind the last [`Conversation::is_first_of`].
    #[inline(always)]
    pub(crate) fn was_paced(self) -> bool {
        self.last_epoch(false).is_some_and(|last| core::mem::replace(last, 0) != 0)
    }
}
