//! How fast, and how much in all: buckets behind the verdict, and TCP that paces itself below them.
//!
//! Nobody without a limit gets here: a flag in the sandbox's own value says so before any map is asked.

use crate::{
    atomic::{add, exchange_if, fetch_add},
    context::{Conversation, Packet},
    maps::{LIMITS, METERS, Tenant, narrow, tenant},
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_ktime_get_ns, macros::sock_ops, programs::SockOpsContext};
use egress_common::{
    bucket::{Limit, Limits, Meter, Meters, PLACES, Place, boost, debt, epoch, ip_bytes, pace, segments, share},
    neighbour::ETHERNET_LEN,
    packet::{Bytes as _, Flow, ethertype, protocol},
};

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metered {
    Passed = 0,
    /// Too fast.
    Full = 1,
    /// The budget is used up.
    Spent = 2,
}

/// Counts a packet, and says whether it may pass.
#[inline(always)]
pub(crate) fn meter(tenant: Tenant, packet: Packet, flow: &Flow, place: Place) -> Metered {
    match meter_at(packet.skb(), tenant.slot.into(), place as u64, flow.protocol.into()) {
        0 => Metered::Passed,
        1 => Metered::Full,
        _ => Metered::Spent,
    }
}

/// A global BPF function, so that it is verified apart from its callers, and once for all of them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn meter_at(skb: *mut __sk_buff, slot: u64, place: u64, protocol: u64) -> u64 {
    // A slot without limits is a sandbox whose policy is being changed.
    let (Some(limits), Some(meters)) = (LIMITS.get(narrow(slot)), METERS.get_ptr_mut(narrow(slot))) else {
        return Metered::Full as u64;
    };
    // By arithmetic alone: what branches tell apart, the verifier walks apart.
    const { assert!(PLACES == 4 && core::mem::offset_of!(Limits, ingress) == size_of::<Limit>()) };
    let (place, to_sandbox, at_device) = (place & 3, place >> 1 & 1, place & 1);
    // SAFETY: the limits of both directions stand beside each other, as was just checked.
    let limit = unsafe { (&raw const limits.egress).add(to_sandbox as usize).read() }.of(protocol as u8);
    let budget = limits.budget & to_sandbox.wrapping_sub(1);
    // SAFETY: within a value of the map, alive for the program run.
    let meter = unsafe { (&raw mut (*meters).at).cast::<Meter>().add(place as usize) };
    let (packet, header) = (Packet::from(skb), at_device * u64::from(ETHERNET_LEN));
    // What has shapes, by a function of its own, so that they end here. A single packet has none, and was judged by its headers.
    let size = match packet.segments() {
        (_, 0) => 1 << 32 | u64::from(packet.len()).wrapping_sub(header),
        _ => size_at(skb, header),
    };
    let (bytes, packets) = (size as u32, (size >> 32) as u32);
    // SAFETY: a live meter.
    let metered = unsafe { take(meter, limit, budget, bytes) };
    if metered == Metered::Full {
        // SAFETY: as above.
        unsafe {
            add(&raw mut (*meter).dropped_packets, packets.into());
            add(&raw mut (*meter).dropped_bytes, bytes.into());
        }
    }
    metered as u64
}

/// Takes a packet off the budget and pays for it. What one CPU takes, none takes again: the bucket changes by compare and
/// exchange, and the budget by an addition that is taken back where it went too far.
///
/// # Safety
/// `meter` is a live meter.
#[inline(always)]
unsafe fn take(meter: *mut Meter, limit: Limit, budget: u64, bytes: u32) -> Metered {
    let bytes64 = u64::from(bytes);
    // SAFETY: the caller's promise.
    let before = unsafe { fetch_add(&raw mut (*meter).bytes, bytes64) };
    let refused = if budget != 0 && before + bytes64 > budget {
        Metered::Spent
    // SAFETY: as above.
    } else if !limit.is_none() && !unsafe { pay(meter, limit, bytes) } {
        Metered::Full
    } else {
        return Metered::Passed;
    };
    // SAFETY: as above.
    unsafe { add(&raw mut (*meter).bytes, bytes64.wrapping_neg()) };
    refused
}

/// False where the bucket is full.
///
/// # Safety
/// `meter` is a live meter.
#[inline(always)]
unsafe fn pay(meter: *mut Meter, limit: Limit, bytes: u32) -> bool {
    // SAFETY: takes nothing and touches nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the caller's promise.
    let (paid, found) = unsafe { (&raw mut (*meter).paid, &raw mut (*meter).found) };
    let mut tries = 0;
    while tries < 2 {
        tries += 1;
        // SAFETY: the caller's promise; volatile, because other CPUs write it.
        let old = unsafe { paid.read_volatile() };
        // SAFETY: as above.
        unsafe { found.write_volatile(debt(old, now)) };
        let Some(new) = limit.pay(old, now, bytes) else { return false };
        // SAFETY: as above.
        if unsafe { exchange_if(paid, old, new) } == old {
            return true;
        }
    }
    // Others paid twice while we tried, so the time is theirs already: what is due is added to it.
    // SAFETY: as above.
    unsafe { add(paid, limit.cost(bytes)) };
    true
}

/// IP bytes (low half) and packets (high half) of the network of a GSO packet, behind a header of that length.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn size_at(skb: *mut __sk_buff, header: u64) -> u64 {
    let (packet, header) = (Packet::from(skb), narrow(header));
    let len = packet.len().saturating_sub(header);
    let (count, size) = packet.segments();
    let headers = headers(packet, header);
    let count = segments(len, count, size, headers);
    u64::from(count) << 32 | u64::from(ip_bytes(len, count, headers))
}

/// Length of the headers that each segment of a GSO packet repeats. The verdict has refused IPv4 options and extension
/// headers, but for the jumbogram header of BIG TCP, which no segment has.
#[inline(always)]
fn headers(packet: Packet, start: u32) -> u32 {
    const HOP_BY_HOP: u8 = 0;
    let is_v4 = packet.ethertype() == ethertype::IPV4;
    // Words as they lie in memory: the protocol is the second byte of one or the third of another, TCP's data offset the first.
    let (network, word) = if is_v4 { (20, packet.words::<1>(start + 8)) } else { (40, packet.words::<1>(start + 4)) };
    let protocol = word.map_or(0, |[word]| word.to_ne_bytes()[if is_v4 { 1 } else { 2 }]);
    let jumbo = !is_v4 && protocol == HOP_BY_HOP;
    if protocol != protocol::TCP && !jumbo {
        return network + 8;
    }
    let at = start + network + if jumbo { 8 } else { 0 } + 12;
    network + packet.words::<1>(at).map_or(20, |[word]| u32::from(word.to_ne_bytes()[0] >> 4) * 4)
}

// include/uapi/linux/bpf.h, BPF_SOCK_OPS_*
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const RETRANSMISSION: u32 = 9;
const ROUND_TRIP: u32 = 12;
const TELL_RETRANSMISSIONS: i32 = 1 << 1;
const TELL_ROUND_TRIPS: i32 = 1 << 3;

/// TCP that paces itself at its share of the rate meets no full bucket: nothing is lost, and nothing waits in a queue. The
/// share is that of the sockets that had an answer lately, not of all that are open.
#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    let conversation = Conversation::from(&ctx);
    let op = conversation.op();
    if matches!(op, ACTIVE_ESTABLISHED | PASSIVE_ESTABLISHED | RETRANSMISSION | ROUND_TRIP)
        && conversation.leaves()
        && let Some(tenant) = tenant()
        && let Some(limits) = LIMITS.get(tenant.slot)
    {
        adjust(tenant, limits, conversation, op);
    }
    1
}

#[inline(always)]
fn adjust(tenant: Tenant, limits: &Limits, conversation: Conversation, op: u32) {
    if limits.egress.is_none() {
        // A limit may come later, and nothing is called for a socket that is there. The bucket holds it then, and the first
        // loss on its way calls us: a socket without a limit pays for its losses alone.
        if op != RETRANSMISSION {
            conversation.tell(TELL_RETRANSMISSIONS);
        }
        if op == ROUND_TRIP && conversation.was_paced() {
            conversation.set_pace(u32::MAX);
        }
        return;
    }
    if op != ROUND_TRIP {
        conversation.tell(TELL_ROUND_TRIPS);
    }
    let Some(meters) = METERS.get_ptr_mut(tenant.slot) else { return };
    // SAFETY: a live value of the map.
    let share = unsafe { share_of(meters, limits.egress, conversation) };
    conversation.set_pace(pace(share, conversation.mss(), conversation.headers()));
}

/// The socket's part of the rate. Active are those that had an answer in this epoch or the one before. Two CPUs that begin an
/// epoch at once may count a socket too few, for one epoch: a share too large for 134 ms, which the bucket holds.
///
/// # Safety
/// `meters` is a live value of the map.
#[inline(always)]
unsafe fn share_of(meters: *mut Meters, limit: Limit, conversation: Conversation) -> u64 {
    // SAFETY: takes nothing and touches nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let now = epoch(now_ns);
    // SAFETY: the caller's promise; volatile, because other CPUs write them.
    unsafe {
        let meter = &raw const (*meters).at[Place::Egress as usize];
        let debt = debt((&raw const (*meter).paid).read_volatile(), now_ns);
        let current = &raw mut (*meters).current;
        let (began, previous) = (&raw mut (*meters).epoch, &raw mut (*meters).previous);
        let (counted, boosted) = (&raw mut (*meters).counted, &raw mut (*meters).boost);
        let known = began.read_volatile();
        if known != now {
            began.write_volatile(now);
            let bytes = (&raw const (*meter).bytes).read_volatile();
            let sent = bytes.saturating_sub(counted.read_volatile());
            counted.write_volatile(bytes);
            let (sockets, last) =
                if known + 1 == now { (current.read_volatile(), boosted.read_volatile()) } else { (0, 0) };
            previous.write_volatile(sockets);
            boosted.write_volatile(boost(last, limit, sent, debt, sockets));
            current.write_volatile(0);
        }
        if conversation.is_first_of(now) {
            add(current, 1);
        }
        let active = current.read_volatile().max(previous.read_volatile());
        share(limit, active, boosted.read_volatile(), debt, (&raw const (*meter).found).read_volatile())
    }
}
