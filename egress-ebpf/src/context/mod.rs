//! The only reads and writes of kernel contexts, a module for each kind.

mod call;
mod conversation;
mod headers;
mod held;
mod packet;
mod socket;

pub(crate) use call::{Call, Family, NewSocket};
pub(crate) use conversation::Conversation;
pub(crate) use headers::{Headers, Room};
pub(crate) use held::Held;
pub(crate) use packet::Packet;
pub(crate) use socket::Socket;

/// `ifindex` of `lo` in every network namespace (`net/core/dev.c`, LOOPBACK_IFINDEX).
pub(crate) const LOOPBACK_IFINDEX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

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
