//! A sandbox as the kernel knows it: who it is (identity in cgroup storage) and what holds for all its packets.

use crate::{addr::Addr, permit::RuleRef};
use bytemuck::{Pod, Zeroable};

/// Value of the cgroup storage, one per cgroup and attach type. All zero (slot 0) until the agent wrote it: denied.
///
/// The kernel keeps a cgroup's storage over detach and re-attach (measured), so the slot alone would let a later sandbox
/// inherit an earlier one's policy; the nonce must equal the slot's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Identity {
    /// Index into the sandbox table; 0 is nobody.
    pub slot: u32,
    /// How far its cgroup lies below the root of the tree, for the hooks that follow the calling task; 0 for all others.
    pub depth: u32,
    /// Random, never reused.
    pub nonce: u64,
}

/// Value of the device table: whose a device is, and how several sandboxes share it.
///
/// Each has a program on it that is asked in turn. What one allows it marks; the last one drops what none has marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct OnDevice {
    /// The sandbox.
    pub identity: Identity,
    /// Mark of a frame that one of them allows: random, the same for all on the device; 0 where there is one alone.
    pub mark: u64,
    /// 0 for the one that is asked last; the others leave to it what they do not allow.
    pub place: u32,
    /// Of a guest's device: the one that leads to its resolver, by ifindex; 0 = port 53 is denied. Of that one: the guest's.
    pub resolver: u32,
    /// One of the sandbox's source addresses, which are as they were at its attach: most frames bear it, and need no other look.
    /// Unspecified = none.
    pub usual_source: Addr,
}

impl OnDevice {
    /// True where a frame from this address needs no look into the table of source addresses.
    #[inline(always)]
    pub const fn is_usual(&self, source: Addr) -> bool {
        let ((high, low), (source_high, source_low)) = (self.usual_source.pack(), source.pack());
        high == source_high && low == source_low && high | low != 0
    }
}

/// MAC address of the resolver's end of the device that leads there: the namespace behind it has no other.
pub const RESOLVER_MAC: [u8; 6] = [0x02, b'e', b'g', b'r', 0, 53];

/// Value of the table of source addresses: the MAC address that its last question to a resolver came from, as it lies in
/// memory, in the lower 48 bits; 0 before the first.
pub type Station = u64;

/// Value of the sandbox table, an array indexed by slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Sandbox {
    /// Equal to the nonce of every identity that may use this slot; 0 in a free slot.
    pub nonce: u64,
    /// Cookie of the network namespace in which the DNS listener stands.
    pub netns_cookie: u64,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Port of this sandbox's DNS listener on 127.0.0.1 and `::1`, host order; 0 = port 53 is denied.
    pub listener_port: u32,
    /// What loopback offers; [`RuleRef::NONE`] = nothing but the listener.
    pub loopback: RuleRef,
    /// What the sandbox's own addresses offer.
    pub own: RuleRef,
}

crate::abi!(Identity = 16, OnDevice = 48, Sandbox = 40);

impl Sandbox {
    /// Zero, which neither compiler nor verifier can know: what is told apart by constants, the verifier walks apart.
    #[inline(always)]
    pub const fn zero(&self) -> u64 {
        (self.flags >> 31) as u64
    }
}

/// Bits of [`Sandbox::flags`]. The highest stays 0: [`Sandbox::zero`].
pub mod flags {
    /// Judge and report, but let everything pass.
    pub const OBSERVE: u32 = 1;
    /// Echo requests may go to any permitted address, and ping sockets may be made.
    pub const ICMP_ECHO: u32 = 1 << 1;
    /// The sandbox lives in its own network namespace: own addresses are its own, and host DNAT is not judged.
    pub const OWN_NETNS: u32 = 1 << 2;
    /// Raw sockets may be made (CAP_NET_RAW was kept and a device judges what they send).
    pub const RAW_SOCKETS: u32 = 1 << 3;
    /// Some peer may open connections to the sandbox.
    pub const INBOUND: u32 = 1 << 4;
    /// Loopback is open on some ports only, so that replies from them need their flow on record.
    pub const LOOPBACK_PORTS: u32 = 1 << 5;
    /// What leaves has a limit or a budget. Says where to look; the limits themselves say how much.
    pub const METERED_EGRESS: u32 = 1 << 6;
    /// What comes in has a limit.
    pub const METERED_INGRESS: u32 = 1 << 7;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn only_the_usual_source_needs_no_look() {
        for (usual, others) in [
            ("192.0.2.1", ["192.0.2.2", "0.0.0.0", "::", "::192.0.2.1", "2001:db8::ffff:c000:201"]),
            ("2001:db8::1", ["2001:db8::2", "2001:db8:1::1", "::1", "::", "192.0.2.1"]),
        ] {
            let on = OnDevice { usual_source: addr(usual), ..OnDevice::default() };
            assert!(on.is_usual(addr(usual)));
            for other in others {
                assert!(!on.is_usual(addr(other)), "{other}");
                assert!(!OnDevice::default().is_usual(addr(other)), "{other} where there is none");
            }
        }
    }
}
