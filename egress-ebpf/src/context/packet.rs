//! A packet as cgroup_skb and tc programs see it.

use super::Socket;
use crate::maps::Aligned;
use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::{bpf_redirect, bpf_sk_fullsock, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::{SkBuffContext, TcContext},
};
use core::mem::MaybeUninit;
use egress_common::packet::Bytes;

/// A packet, from cgroup_skb (starts at the network header) or tc (starts at the Ethernet header).
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    skb: *mut __sk_buff,
}

impl From<&SkBuffContext> for Packet {
    #[inline(always)]
    fn from(ctx: &SkBuffContext) -> Self {
        Self { skb: ctx.as_ptr().cast() }
    }
}

impl From<&TcContext> for Packet {
    #[inline(always)]
    fn from(ctx: &TcContext) -> Self {
        Self { skb: ctx.as_ptr().cast() }
    }
}

impl From<*mut __sk_buff> for Packet {
    #[inline(always)]
    fn from(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        if let Some(at) = self.linear(offset, N as u32 * 4) {
            // SAFETY: within the packet, as was just checked. Volatile: each word is read by itself, and nothing is copied.
            return Some(core::array::from_fn(|index| unsafe { at.cast::<u32>().add(index).read_volatile() }));
        }
        self.load(offset)
    }

    #[inline(always)]
    fn doubles<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        // One double word more is behind a header already read, and rare enough to be left to the kernel.
        if N > 1
            && let Some(at) = self.linear(offset, N as u32 * 8)
        {
            // SAFETY: as above.
            return Some(core::array::from_fn(|index| unsafe { at.cast::<u64>().add(index).read_volatile() }));
        }
        self.load(offset)
    }
}

impl Packet {
    /// Where `len` bytes from `offset` lie, if they are in the part of the packet that a program may read itself.
    #[inline(always)]
    fn linear(self, offset: u32, len: u32) -> Option<*const u8> {
        // SAFETY: a live context for the whole program run; these two fields hold pointers as the verifier sees them.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let at = data + (offset & 0xff) as usize;
        (at + len as usize <= end).then_some(at as *const u8)
    }

    /// `T` is an array of numbers. Not zeroed first: that is a call of memset, which the verifier walks byte by byte.
    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> Option<T> {
        let mut to = MaybeUninit::<Aligned<T>>::uninit();
        // SAFETY: the buffer is ours and as long as we say; the helper checks the packet's own bounds.
        let failed =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, to.as_mut_ptr().cast(), size_of::<T>() as u32) };
        // SAFETY: zero means that all of it was written.
        (failed == 0).then(|| unsafe { to.assume_init().0 })
    }

    /// The context, for a global function.
    #[inline(always)]
    pub(crate) fn skb(self) -> *mut __sk_buff {
        self.skb
    }

    /// EtherType, host order.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: a live context for the whole program run.
        u16::from_be(unsafe { (*self.skb).protocol } as u16)
    }

    /// The device that the packet is on.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ifindex }
    }

    /// Bytes from the first header to the end.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).len }
    }

    /// How many packets of the network a GSO packet is, and their size, as far as the kernel says; 0 where it is one.
    #[inline(always)]
    pub(crate) fn segments(self) -> (u32, u32) {
        // SAFETY: as above.
        unsafe { ((*self.skb).gso_segs, (*self.skb).gso_size) }
    }

    /// What a program before us on the same hook left in the packet's control block.
    #[inline(always)]
    pub(crate) fn mark(self) -> u64 {
        // SAFETY: as above. Volatile: one word at a time.
        unsafe {
            let cb = (&raw const (*self.skb).cb).cast::<u32>();
            u64::from(cb.read_volatile()) << 32 | u64::from(cb.add(1).read_volatile())
        }
    }

    /// Leaves a mark for the programs behind us.
    #[inline(always)]
    pub(crate) fn set_mark(self, mark: u64) {
        // SAFETY: as above; tc programs may write these words.
        unsafe {
            let cb = (&raw mut (*self.skb).cb).cast::<u32>();
            cb.write_volatile((mark >> 32) as u32);
            cb.add(1).write_volatile(mark as u32);
        }
    }

    /// Has the frame sent by another device, to a MAC address as it lies in memory. What the hook has to return.
    #[inline(always)]
    pub(crate) fn hand_over(self, ifindex: u32, mac: u64) -> Option<i32> {
        const { assert!(cfg!(target_endian = "little")) };
        // SAFETY: a tc program's own packet, whose destination MAC address is its first six bytes; the helper checks the bounds.
        let failed = unsafe { bpf_skb_store_bytes(self.skb.cast(), 0, (&raw const mac).cast(), 6, 0) };
        // SAFETY: takes numbers alone. Where there is no such device, the kernel drops the frame.
        (failed == 0).then(|| unsafe { bpf_redirect(ifindex, 0) } as i32)
    }

    /// True where a VLAN tag travels beside the packet.
    #[inline(always)]
    pub(crate) fn has_vlan(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// The full socket that sent the packet; `None` for a request or time-wait socket.
    #[inline(always)]
    pub(crate) fn socket(self) -> Option<Socket> {
        // SAFETY: as above; the union has one reading in network programs.
        let sk = unsafe { (*self.skb).__bindgen_anon_2.sk };
        if sk.is_null() {
            return None;
        }
        // SAFETY: not null, just checked.
        let full = unsafe { bpf_sk_fullsock(sk) };
        (!full.is_null()).then_some(Socket { sk: full })
    }
}
