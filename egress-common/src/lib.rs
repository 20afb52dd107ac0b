//! What the two halves of egressd share: the layout of every map key, value and event, and the one function that
//! decides. `no_std`, no I/O, no clock: whoever calls passes the time.
//!
//! The eBPF programs and the host tests run the same [`verdict::decide`]; the eBPF crate gathers [`packet::Flow`]s and
//! answers [`verdict::Tables`] from its maps, the host answers them from plain collections.
//!
//! Every type that crosses the boundary derives [`bytemuck::Pod`], so the compiler refuses padding.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod addr;
pub mod bucket;
pub mod destination;
pub mod event;
pub mod kernel;
pub mod names;
pub mod neighbour;
pub mod packet;
pub mod permit;
pub mod question;
pub mod reason;
pub mod sandbox;
pub mod verdict;

/// Implements `aya::Pod` for types that are already [`bytemuck::Pod`], and checks the size that the ABI promises.
macro_rules! abi {
    ($($type:ty = $size:literal),* $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: bytemuck::Pod, required below, already means "no padding, any bit pattern".
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type where $type: bytemuck::Pod {}
    )*};
}
pub(crate) use abi;
