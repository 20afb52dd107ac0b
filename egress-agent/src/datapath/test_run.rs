//! A program that is attached, run by the kernel on a frame of ours (BPF_PROG_TEST_RUN): the verdict, and no packet.

use super::bpf::{Bpf, bpf};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Loaded(OwnedFd);

impl Loaded {
    /// By its id.
    pub(crate) fn open(id: u32) -> io::Result<Self> {
        // union bpf_attr: prog_id, next_id, open_flags.
        Bpf::ProgGetFdById.make(&mut [id, 0, 0]).map(Self)
    }

    /// What the program returns for an Ethernet frame on the device of the caller's network namespace with this `ifindex`.
    /// Frames are at least 14 bytes long.
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32) -> io::Result<i32> {
        /// Of the test part of union bpf_attr (include/uapi/linux/bpf.h), in words.
        const WORDS: usize = 20;
        // struct __sk_buff: ifindex is its eleventh word.
        let mut context = [0_u32; 48];
        context[10] = ifindex;
        let mut attribute = [0_u32; WORDS];
        attribute[0] = self.0.as_raw_fd().cast_unsigned();
        attribute[2] = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        attribute[4..6].copy_from_slice(&halves(frame.as_ptr() as u64));
        attribute[8] = 1;
        attribute[10] = size_of_val(&context) as u32;
        attribute[12..14].copy_from_slice(&halves(context.as_ptr() as u64));
        bpf(Bpf::ProgTestRun, &mut attribute)?;
        Ok(attribute[1].cast_signed())
    }
}

/// A pointer where the kernel has two words.
fn halves(pointer: u64) -> [u32; 2] {
    bytemuck::cast(pointer)
}
