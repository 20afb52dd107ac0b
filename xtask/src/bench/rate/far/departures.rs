//! Earliest departure times, as small as they can be: one clock for a cgroup, in a program of its own that is in no egressd. Every
//! packet departs when those before it have been paid for (`skb->tstamp`), sch_fq on the device holds it until then, and what
//! would wait for longer than the bucket of egressd is deep is dropped with a congestion notice, as there.

use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

/// As `BURST_MIN_NS` of egressd's buckets.
const HORIZON_NS: i32 = 200_000_000;
/// Of IPv4 and TCP with timestamps, which each segment of a GSO packet repeats.
const HEADERS: i32 = 52;

/// Attached until it is dropped.
pub(super) struct Departures {
    _link: OwnedFd,
}

impl Departures {
    /// Gives every packet of the cgroup, and of those below it, its time.
    pub(super) fn attach(cgroup: &Path, mbit: u32) -> Result<Self> {
        const EGRESS: u32 = 1;
        let cgroup = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        let clock = clock().context("a map")?;
        let program = load(&program(&clock, mbit), EGRESS).context("the program of departure times")?;
        // union bpf_attr: prog_fd, target_fd, attach_type, flags.
        let fd = |fd: i32| fd.cast_unsigned();
        let link = bpf(Command::LinkCreate, &mut [fd(program.as_raw_fd()), fd(cgroup.as_raw_fd()), EGRESS, 0]);
        Ok(Self { _link: link.context("attaching departure times")? })
    }
}

/// An array of one word: up to when what passed is paid for.
fn clock() -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    // union bpf_attr: map_type, key_size, value_size, max_entries.
    bpf(Command::MapCreate, &mut [BPF_MAP_TYPE_ARRAY, 4, 8, 1])
}

/// struct bpf_insn: opcode; destination register in the low half, source in the high; offset; constant.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

const fn op(code: u8, dst: u8, src: u8, offset: i16, constant: i32) -> Instruction {
    Instruction { code, registers: dst | src << 4, offset, constant }
}

/// The clock changes without a lock: a guest has one processor.
fn program(clock: &OwnedFd, mbit: u32) -> [Instruction; 28] {
    const KTIME_GET_NS: i32 = 5;
    const PSEUDO_MAP_VALUE: u8 = 2;
    // struct __sk_buff (include/uapi/linux/bpf.h).
    const LEN: i16 = 0;
    const IFINDEX: i16 = 40;
    const TSTAMP: i16 = 152;
    const GSO_SEGS: i16 = 164;
    let byte_ns = 8000 / mbit.max(1);
    [
        op(0xbf, 6, 1, 0, 0),
        op(0x85, 0, 0, 0, KTIME_GET_NS),
        // Loopback passes.
        op(0x61, 1, 6, IFINDEX, 0),
        op(0x15, 1, 0, 20, 1),
        // r8 = what it costs: IP bytes of the network, in time.
        op(0x61, 8, 6, LEN, 0),
        op(0x61, 1, 6, GSO_SEGS, 0),
        op(0xa5, 1, 0, 3, 2),
        op(0x07, 1, 0, 0, -1),
        op(0x27, 1, 0, 0, HEADERS),
        op(0x0f, 8, 1, 0, 0),
        op(0x27, 8, 0, 0, byte_ns.cast_signed()),
        op(0x18, 9, PSEUDO_MAP_VALUE, 0, clock.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        // r2 = its turn: when the others are paid for, and not before now.
        op(0x79, 2, 9, 0, 0),
        op(0x3d, 2, 0, 1, 0),
        op(0xbf, 2, 0, 0, 0),
        op(0xbf, 3, 2, 0, 0),
        op(0x1f, 3, 0, 0, 0),
        op(0x25, 3, 0, 7, HORIZON_NS),
        // A socket may want to wait for longer, and then does.
        op(0x79, 4, 6, TSTAMP, 0),
        op(0x3d, 4, 2, 1, 0),
        op(0x7b, 6, 2, TSTAMP, 0),
        op(0x0f, 2, 8, 0, 0),
        op(0x7b, 9, 2, 0, 0),
        op(0xb7, 0, 0, 0, 1),
        op(0x95, 0, 0, 0, 0),
        op(0xb7, 0, 0, 0, 2),
        op(0x95, 0, 0, 0, 0),
    ]
}

fn load(program: &[Instruction], attach_type: u32) -> io::Result<OwnedFd> {
    const BPF_PROG_TYPE_CGROUP_SKB: u64 = 8;
    let license = c"GPL";
    let kind = BPF_PROG_TYPE_CGROUP_SKB | (program.len() as u64) << 32;
    // union bpf_attr: prog_type, insn_cnt; insns; license; log (three words); prog_flags; prog_name (16 octets); prog_ifindex,
    // expected_attach_type.
    let (program, license) = (program.as_ptr() as u64, license.as_ptr() as u64);
    bpf(Command::ProgLoad, &mut [kind, program, license, 0, 0, 0, 0, 0, u64::from(attach_type) << 32])
}

/// `enum bpf_cmd`, of those that make a descriptor.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    ProgLoad = 5,
    LinkCreate = 28,
}

fn bpf<T>(command: Command, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the attribute, and what it points to, lives through the call, and the kernel takes no more of it than its size.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attribute), size_of::<T>()) };
    match i32::try_from(fd) {
        // SAFETY: these commands return a new descriptor, which nobody else has.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
