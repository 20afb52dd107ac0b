//! How much may pass in which time. A bucket is one number, the time up to which what passed is paid for; a packet moves it
//! by its price and passes while the bucket is not full *before* it. So a packet larger than the bucket passes into debt
//! (a GSO packet of 64 KiB at 1 Mbit/s is half a second's worth, and would otherwise never pass), and over any window what
//! passes is at most rate x time + burst + one packet.
//!
//! 200 ms is TCP's shortest retransmission timeout (`TCP_RTO_MIN` in include/net/tcp.h): with a smaller bucket, a flow that
//! lost a window waits for longer than the bucket lasts, and reaches burst / 200 ms of its rate.

use crate::packet::protocol;
use bytemuck::{Pod, Zeroable};

/// Parts of a nanosecond in which buckets count: at 100 Gbit/s a small packet's price is five nanoseconds, which whole ones
/// would round by a fifth.
const PARTS_BITS: u32 = 4;
/// Bits behind the point of [`Limit::price`].
const PRICE_BITS: u32 = 16;
/// The most bytes that a packet is counted as: beyond the largest that the kernel makes (512 KiB, `GSO_MAX_SIZE` in
/// include/linux/netdevice.h) with headers for each of its segments.
pub const PACKET_MAX: u32 = 1 << 22;

/// Slowest limit, in bits per second.
pub const RATE_MIN_BITS: u64 = 8_000;
/// Fastest limit, in bits per second.
pub const RATE_MAX_BITS: u64 = 100_000_000_000;
/// Shortest bucket, in nanoseconds.
pub const BURST_MIN_NS: u64 = 200_000_000;
/// Longest bucket, in nanoseconds.
pub const BURST_MAX_NS: u64 = 1_000_000_000;

/// A rate and how far ahead of it one may be. Zero is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Limit {
    /// Time of one byte, rounded up; 0 = no limit.
    pub price: u64,
    /// Time that fits into the bucket.
    pub depth: u64,
    /// The rate itself; 0 = no limit.
    pub bits_per_s: u64,
}

/// Bandwidth of one sandbox. All zero = unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Limits {
    /// What leaves it, at the cgroup and again at its device.
    pub egress: Limit,
    /// What comes to it.
    pub ingress: Limit,
    /// Bytes that may leave it in all; 0 = any number.
    pub budget: u64,
}

/// What one bucket let pass and what not. Written by the kernel half alone, each field by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Meter {
    /// Up to when what passed is paid for.
    pub paid: u64,
    /// IP bytes that passed.
    pub bytes: u64,
    /// Packets, as the network sees them, that did not.
    pub dropped_packets: u64,
    /// Their IP bytes.
    pub dropped_bytes: u64,
    /// How full the latest packet found the bucket, as [`Limit::depth`] counts.
    pub found: u64,
}

/// The meters of one sandbox, and how many of its TCP sockets send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Meters {
    /// By [`Place`].
    pub at: [Meter; PLACES],
    /// The epoch in which `current` sockets had an answer.
    pub epoch: u64,
    /// How many had one in this epoch.
    pub current: u64,
    /// And in the one before.
    pub previous: u64,
    /// [`Meter::bytes`] of [`Place::Egress`] when the epoch began.
    pub counted: u64,
    /// See [`boost`].
    pub boost: u64,
}

crate::abi!(Limit = 24, Limits = 56, Meter = 40, Meters = 200);

/// Where packets are metered. The buckets are apart, so that a packet which passes two of them counts once in each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Place {
    /// cgroup_skb/egress: what the sandbox's sockets send.
    Egress = 0,
    /// The host side of its device, from the sandbox: whoever made it.
    DeviceEgress = 1,
    /// cgroup_skb/ingress, where there is no device.
    Ingress = 2,
    /// The host side of its device, to the sandbox.
    DeviceIngress = 3,
}

/// How many [`Place`]s there are.
pub const PLACES: usize = 4;

impl Place {
    /// The limit that holds here.
    #[inline(always)]
    pub const fn limit(self, limits: &Limits) -> Limit {
        match self {
            Self::Egress | Self::DeviceEgress => limits.egress,
            Self::Ingress | Self::DeviceIngress => limits.ingress,
        }
    }
}

impl Limit {
    /// A limit in bits per second ([`RATE_MIN_BITS`] to [`RATE_MAX_BITS`]) with a bucket of [`BURST_MIN_NS`] to
    /// [`BURST_MAX_NS`]; values beyond are taken as the nearest.
    pub const fn new(bits_per_s: u64, burst_ns: u64) -> Self {
        const BYTE_AT_A_BIT: u64 = (8 * 1_000_000_000) << (PARTS_BITS + PRICE_BITS);
        let bits_per_s = clamp(bits_per_s, RATE_MIN_BITS, RATE_MAX_BITS);
        Self {
            bits_per_s,
            price: BYTE_AT_A_BIT.div_ceil(bits_per_s),
            depth: clamp(burst_ns, BURST_MIN_NS, BURST_MAX_NS) << PARTS_BITS,
        }
    }

    /// True where it limits nothing.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.price == 0
    }

    /// The limit for packets of an IP protocol. For all but TCP the bucket is full at three quarters: TCP that keeps to its
    /// share then finds room beside datagrams that keep to nothing. Without it, it gets next to nothing.
    #[inline(always)]
    pub const fn of(self, ip_protocol: u8) -> Self {
        // 0 for TCP and 1 for others, without a branch that the verifier would walk.
        let others = ((ip_protocol ^ protocol::TCP) as u64 + 0xff) >> 8;
        Self { depth: self.depth - self.depth / 4 * others, ..self }
    }

    /// [`Meter::paid`] after a packet of so many bytes; `None` where the bucket is full. A clock that went back finds it as
    /// full as it was.
    #[inline(always)]
    pub const fn pay(self, paid: u64, now_ns: u64, bytes: u32) -> Option<u64> {
        let now = parts(now_ns);
        if paid > now && paid - now > self.depth {
            return None;
        }
        Some(if paid > now { paid } else { now } + self.cost(bytes))
    }

    /// Time of a packet. At most 2^(40+22-16) parts, so that sums with any clock of this century fit.
    #[inline(always)]
    pub const fn cost(self, bytes: u32) -> u64 {
        let bytes = if bytes > PACKET_MAX { PACKET_MAX } else { bytes } as u64;
        (bytes * self.price + ((1 << PRICE_BITS) - 1)) >> PRICE_BITS
    }
}

/// How far what passed is ahead of the clock, as [`Limit::depth`] counts.
#[inline(always)]
pub const fn debt(paid: u64, now_ns: u64) -> u64 {
    paid.saturating_sub(parts(now_ns))
}

/// The same in nanoseconds.
pub const fn debt_ns(paid: u64, now_ns: u64) -> u64 {
    debt(paid, now_ns) >> PARTS_BITS
}

#[inline(always)]
const fn parts(now_ns: u64) -> u64 {
    now_ns << PARTS_BITS
}

const fn clamp(value: u64, least: u64, most: u64) -> u64 {
    if value < least {
        least
    } else if value > most {
        most
    } else {
        value
    }
}

/// Packets of a GSO packet as the network sees them, of the network header's length `len`: the kernel says how many, except
/// for some that a packet socket made, of which it knows the size alone.
#[inline(always)]
pub const fn segments(len: u32, segments: u32, size: u32, headers: u32) -> u32 {
    if segments > 1 || size == 0 || len <= headers {
        return if segments > 1 { segments } else { 1 };
    }
    (len - headers).div_ceil(size)
}

/// IP bytes of so many packets, whose `headers` stand in `len` once.
#[inline(always)]
pub const fn ip_bytes(len: u32, segments: u32, headers: u32) -> u32 {
    let more = (segments - 1) as u64 * headers as u64;
    let bytes = len as u64 + more;
    if bytes > PACKET_MAX as u64 { PACKET_MAX } else { bytes as u32 }
}

/// Nanoseconds of an epoch, as a shift: 134 ms, beyond the round trip of nearly every path.
const EPOCH_BITS: u32 = 27;

/// The epoch of a moment.
#[inline(always)]
pub const fn epoch(now_ns: u64) -> u64 {
    now_ns >> EPOCH_BITS
}

/// How often the share of a socket is doubled, from one epoch to the next: more while the sandbox sends less than 15/16 of
/// its rate, because some that are active have little to say or have ended, and less when together they send too much.
#[inline(always)]
pub const fn boost(last: u64, limit: Limit, sent: u64, debt: u64, sockets: u64) -> u64 {
    if debt > limit.depth / 16 * 3 {
        last.saturating_sub(1)
    } else if sent < ((limit.bits_per_s / 8) << EPOCH_BITS) / 1_000_000_000 / 16 * 15
        && last < 63
        && sockets >> last > 1
    {
        last + 1
    } else {
        last
    }
}

/// What one of so many active sockets may send, in bits per second. A doubled share shrinks to the even one while what was
/// sent goes from an eighth of the bucket to a quarter: by degrees, because a packet of many segments that left at a fast pace waits for
/// all of them at the pace that it finds.
///
/// Where the latest packet found more than a quarter, it goes on to three quarters of the even one: at even shares a bucket stays as
/// full as it is, and a socket that comes late finds no room in it, until TCP gives up (15 probes, half a second apart:
/// `tcp_probe_timer` in net/ipv4/tcp_timer.c). What that packet itself put in counts for nothing there: 64 KiB at 1 Mbit/s are two
/// and a half buckets, and a flow that is alone would be slowed down by each.
#[inline(always)]
pub const fn share(limit: Limit, sockets: u64, boost: u64, debt: u64, found: u64) -> u64 {
    // Of an eighth of the bucket.
    const STEPS: u64 = 64;
    let all = if sockets == 0 { 1 } else { sockets };
    let few = if all >> (boost & 63) == 0 { 1 } else { all >> (boost & 63) };
    let (even, most) = (limit.bits_per_s / all, limit.bits_per_s / few);
    // Odd, so never 0: the kernel half has no way to panic.
    let over = debt.saturating_sub(limit.depth / 8) / (limit.depth / (8 * STEPS) | 1);
    let beyond = found.saturating_sub(limit.depth / 4) / (limit.depth / 32 | 1);
    let less = if beyond > STEPS / 4 { STEPS / 4 } else { beyond };
    even + (most - even) / STEPS * STEPS.saturating_sub(over) - even / STEPS * less
}

/// A rate in bytes of payload per second: TCP's pacing counts no headers
/// (`tcp_update_skb_after_send` in net/ipv4/tcp_output.c). The kernel takes 32 bits, and all ones as no limit.
#[inline(always)]
pub const fn pace(bits_per_s: u64, mss: u32, headers: u32) -> u32 {
    let mss = if mss == 0 { 536 } else { mss as u64 };
    // At most 12.5 GB/s times a segment: 2^34 x 2^32 does not fit, so a segment is what 16 bits hold.
    let mss = if mss > 0xffff { 0xffff } else { mss };
    let share = bits_per_s / 8 * mss / (mss + headers as u64);
    if share >= u32::MAX as u64 {
        u32::MAX
    } else if share == 0 {
        1
    } else {
        share as u32
    }
}
