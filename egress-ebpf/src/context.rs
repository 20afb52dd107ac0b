//! The only reads and writes of kernel contexts.
//!
//! Long: nothing else may touch a kernel context, so all of it stands here.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock, bpf_sock_ops},
    helpers::generated::{
        bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_load_bytes,
        bpf_sock_ops_cb_flags_set,
    },
    programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext, TcContext},
};
use egress_common::{
    addr::Addr,
    event::{Connected, Origin},
    packet::{Bytes, Flow, parse_into},
    question::{Asked, Path, Question},
    verdict::{Reason, Verdict},
};

use crate::maps::{Aligned, CONNECTED, ORIGINS, PACED, narrow};
use core::mem::MaybeUninit;

/// `ifindex` of `lo` in every network namespace (`net/core/dev.c`, LOOPBACK_IFINDEX).
pub(crate) const LOOPBACK_IFINDEX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;

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

/// Headers of a packet, and what they ask.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Headers {
    pub(crate) flow: Flow,
    pub(crate) asked: u64,
}

impl Headers {
    /// The question that the packet asks of its destination.
    #[inline(always)]
    pub(crate) fn question(&self) -> Question {
        Question { dst: self.flow.dst, asked: Asked(self.asked) }
    }
}

/// Room on the stack for the headers of a packet, which [`Packet::read`] fills.
pub(crate) struct Room(MaybeUninit<Headers>);

impl Room {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// [`Flow::NONE`], in place: the verifiers of older kernels want memory written before a global function may write it.
    #[inline(always)]
    pub(crate) fn clear(&mut self) -> &mut Headers {
        const { assert!(size_of::<Headers>() == 6 * size_of::<u64>() && align_of::<Headers>() == align_of::<u64>()) };
        let words = self.0.as_mut_ptr().cast::<u64>();
        let mut index = 0;
        while index < 6 {
            // SAFETY: within the headers, whose size was just checked. Volatile, or the compiler would call memset, which the
            // verifier walks byte by byte.
            unsafe { words.add(index).write_volatile(0) };
            index += 1;
        }
        // SAFETY: zeros are headers.
        unsafe { self.0.assume_init_mut() }
    }
}

/// [`parse_into`] as a global BPF function: verified once for all the kinds of headers, and whoever calls it sees plain
/// numbers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_at(skb: *mut __sk_buff, offset: u64, headers: *mut Headers) -> u64 {
    let packet = Packet { skb };
    // SAFETY: null, or whole headers of the caller's, as the verifier checks.
    let Some(headers) = (unsafe { headers.as_mut() }) else { return Verdict::from(Reason::Malformed).0 };
    match parse_into(&packet, narrow(offset), packet.ethertype(), &mut headers.flow) {
        Ok(asked) => {
            let path = if packet.ifindex() == LOOPBACK_IFINDEX { Path::Loopback } else { Path::Wire };
            headers.asked = asked.on(path).0;
            Verdict::from(Reason::Permitted).0
        }
        Err(reason) => Verdict::from(reason).0,
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

    /// Reads the headers at `offset`; see [`parse_into`]. Allows where they could be read.
    #[inline(always)]
    pub(crate) fn read(self, offset: u32, headers: &mut Headers) -> Verdict {
        Verdict(parse_at(self.skb, u64::from(offset), headers))
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

/// A full socket behind a packet.
#[derive(Clone, Copy)]
pub(crate) struct Socket {
    sk: *mut bpf_sock,
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

/// Word by word: the verifier takes context reads of exactly four bytes, and the compiler may not merge these.
#[inline(always)]
unsafe fn read_words(words: *const [u32; 4]) -> [u32; 4] {
    let first = words.cast::<u32>();
    // SAFETY: the caller's pointer covers four words.
    unsafe {
        [
            core::ptr::read_volatile(first),
            core::ptr::read_volatile(first.add(1)),
            core::ptr::read_volatile(first.add(2)),
            core::ptr::read_volatile(first.add(3)),
        ]
    }
}

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
