//! Downloads in a queue of their own: tbf (net/sched/sch_tbf.c) on the host side of a sandbox's device. What comes too fast
//! waits there for up to 50 ms, so that TCP sees a slow network and not a lossy one.
//!
//! The queue belongs to the device, as a filter does. It is known by its handle.

use super::{
    netlink::{Netlink, NetlinkError, Request, attributes, put},
    tc::{TCA_KIND, TCA_OPTIONS, TCMSG},
};
use netlink_sys::protocols::NETLINK_ROUTE;

/// `eg`, of egressd; the kernel numbers its own from 0x8001 on.
const HANDLE: u32 = 0x6567_0000;

// include/uapi/linux/pkt_sched.h, rtnetlink.h
const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u32 = 1;

/// Puts the queue on a device of the calling thread's network namespace, or gives the one that is there another rate. False
/// where the device has a queue of somebody else's, or the kernel none of this kind: then the bucket alone limits.
pub(crate) fn shape(ifindex: u32, bits_per_s: u64) -> Result<bool, NetlinkError> {
    let mut body = tcmsg(ifindex);
    put(&mut body, TCA_KIND, b"tbf\0");
    put(&mut body, TCA_OPTIONS, &options(bits_per_s / 8));
    let request = Request { name: "RTM_NEWQDISC", kind: libc::RTM_NEWQDISC, body: &body };
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    if is_shaped(ifindex)? {
        return netlink.call(request).map(|_| true);
    }
    match netlink.create(request) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.refusal(), Some(libc::EEXIST | libc::ENOENT | libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes it off. Done as well when it, or the device, is gone.
pub(crate) fn unshape(ifindex: u32) -> Result<(), NetlinkError> {
    if !is_shaped(ifindex)? {
        return Ok(());
    }
    let request = Request { name: "RTM_DELQDISC", kind: libc::RTM_DELQDISC, body: &tcmsg(ifindex) };
    match Netlink::open(NETLINK_ROUTE)?.call(request) {
        Err(error) if !matches!(error.refusal(), Some(libc::ENOENT | libc::ENODEV)) => Err(error),
        _ => Ok(()),
    }
}

/// True where the queue is on the device.
pub(crate) fn is_shaped(ifindex: u32) -> Result<bool, NetlinkError> {
    let request = Request { name: "RTM_GETQDISC", kind: libc::RTM_GETQDISC, body: &[0; TCMSG] };
    let replies = Netlink::open(NETLINK_ROUTE)?.dump(request)?;
    Ok(replies.iter().any(|reply| {
        let word = |at: usize| reply.body.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        let kinds = attributes(reply.body.get(TCMSG..).unwrap_or_default()).flatten();
        (word(4), word(8)) == (Some(ifindex), Some(HANDLE))
            && kinds.into_iter().any(|(kind, value)| kind == TCA_KIND && value == b"tbf\0")
    }))
}

fn tcmsg(ifindex: u32) -> Vec<u8> {
    [0, ifindex, HANDLE, TC_H_ROOT, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// 5 ms at once, at least two full packets; 50 ms wait, at least 32 KiB of them.
fn options(bytes_per_s: u64) -> Vec<u8> {
    let within = |ms: u64, least: u64| u32::try_from((bytes_per_s * ms / 1000).max(least)).unwrap_or(u32::MAX);
    let (burst, limit) = (within(5, 3100), within(50, 32 << 10));
    let rate = u32::try_from(bytes_per_s).unwrap_or(u32::MAX);
    // struct tc_tbf_qopt: two struct tc_ratespec (the second for no peak rate), limit, buffer (by TCA_TBF_BURST), mtu.
    let spec = [TC_LINKLAYER_ETHERNET << 8, 0, rate];
    let words = spec.into_iter().chain([0; 3]).chain([limit, 0, 0]);
    let parms: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let mut options = Vec::new();
    put(&mut options, TCA_TBF_PARMS, &parms);
    if rate == u32::MAX {
        put(&mut options, TCA_TBF_RATE64, &bytes_per_s.to_ne_bytes());
    }
    put(&mut options, TCA_TBF_BURST, &burst.to_ne_bytes());
    options
}
