//! What the headers of a packet say, read once for all who ask.

use super::{LOOPBACK_IFINDEX, Packet};
use crate::maps::narrow;
use aya_ebpf::bindings::__sk_buff;
use core::mem::MaybeUninit;
use egress_common::{
    packet::{Flow, parse_into},
    question::{Asked, Path, Question},
    verdict::{Reason, Verdict},
};

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
    let packet = Packet::from(skb);
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
    /// Reads the headers at `offset`; see [`parse_into`]. Allows where they could be read.
    #[inline(always)]
    pub(crate) fn read(self, offset: u32, headers: &mut Headers) -> Verdict {
        Verdict(parse_at(self.skb(), u64::from(offset), headers))
    }
}
