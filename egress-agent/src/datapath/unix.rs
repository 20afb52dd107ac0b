//! Unix sockets by their abstract names, where the kernel has the hooks (6.7). The programs are written here as instructions: aya
//! has no attach type for them, and what they read takes one call of a kernel function, whose number only the running kernel
//! knows.
//!
//! A path is not judged: a symbolic link or another directory leads to the same socket. So names are allowed, and every path is
//! closed as soon as anything is.

use super::{
    attach::{AttachError, Hooked, held},
    bpf::{Bpf, bpf},
};
use aya::Btf;
use aya_obj::btf::BtfKind;
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Hooks, by the name of the pin and `enum bpf_attach_type` (`include/uapi/linux/bpf.h`).
const HOOKS: [(&str, u32); 2] = [("connect_unix", 49), ("sendmsg_unix", 50)];

/// Octets of `sun_path` (unix(7)), and so of an abstract name with the zero in front.
pub(crate) const NAME_AT_MOST: usize = 108;
/// A key of the map: the length, then the name, zeros behind it.
const KEY: usize = 4 + NAME_AT_MOST;

/// Errors of judging unix sockets.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// The kernel has no such hook, or no way to read a name.
    #[error("allow.unix needs Linux 6.7 or newer with BTF (cgroup/connect_unix): leave it out, or write \"any\"")]
    Unsupported(#[source] io::Error),
    /// One of the steps failed.
    #[error("cannot {action} for allow.unix")]
    Step {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The link is there and cannot be held.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl UnixError {
    fn step(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Step { action, source }
    }
}

/// Lets the cgroup's processes reach these abstract names (without the zero in front) and no other unix socket. The links are
/// pinned below `pins`.
pub(crate) fn attach(cgroup: BorrowedFd<'_>, names: &[String], pins: &Path) -> Result<Vec<Hooked>, UnixError> {
    let cast = kernel_function("bpf_cast_to_kern_ctx").map_err(UnixError::Unsupported)?;
    let map = map_of(names).map_err(UnixError::step("make the map of names"))?;
    let program = program(cast, map.as_raw_fd());
    for (name, attach_type) in HOOKS {
        let program = checked(&program, attach_type)?;
        let link = link(&program, cgroup, attach_type).map_err(UnixError::step("attach a program"))?;
        pin(&link, &pins.join(name)).map_err(UnixError::step("pin a link"))?;
    }
    Ok(held(pins, HOOKS.iter().map(|(name, _)| *name))?)
}

/// Whether this kernel has the hooks: loads the programs, for no name.
pub(crate) fn availability() -> Result<(), UnixError> {
    let cast = kernel_function("bpf_cast_to_kern_ctx").map_err(UnixError::Unsupported)?;
    let map = map_of(&[]).map_err(UnixError::step("make the map of names"))?;
    let program = program(cast, map.as_raw_fd());
    HOOKS.iter().try_for_each(|(_, attach_type)| checked(&program, *attach_type).map(drop))
}

fn checked(program: &[Instruction], attach_type: u32) -> Result<OwnedFd, UnixError> {
    load(program, attach_type).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => UnixError::Unsupported(source),
        _ => UnixError::Step { action: "load a program", source },
    })
}

/// The number of a function that programs may call, in the kernel's own BTF.
fn kernel_function(name: &str) -> io::Result<i32> {
    let btf = Btf::from_sys_fs().map_err(io::Error::other)?;
    let id = btf.id_by_type_name_kind(name, BtfKind::Func).map_err(io::Error::other)?;
    i32::try_from(id).map_err(io::Error::other)
}

fn map_of(names: &[String]) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_HASH: u32 = 1;
    let entries = u32::try_from(names.len().max(1)).map_err(io::Error::other)?;
    // union bpf_attr: map_type, key_size, value_size, max_entries.
    let map = Bpf::MapCreate.make(&mut [BPF_MAP_TYPE_HASH, KEY as u32, 4, entries])?;
    for name in names {
        let (key, value) = (key(name), [0_u8; 4]);
        // map_fd, padding; key, value, flags.
        let mut attribute = [u64::from(map.as_raw_fd().cast_unsigned()), address(&key), address(&value), 0];
        bpf(Bpf::MapUpdate, &mut attribute)?;
    }
    Ok(map)
}

fn key(name: &str) -> [u8; KEY] {
    let mut key = [0; KEY];
    // The zero in front counts.
    let length = name.len().min(NAME_AT_MOST - 1);
    key[..4].copy_from_slice(&(1 + length as u32).to_ne_bytes());
    key[5..5 + length].copy_from_slice(&name.as_bytes()[..length]);
    key
}

/// struct bpf_insn: opcode; destination register in the low half, source in the high; offset; constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

/// Where the program refuses; each jump there is counted from its own place.
const REFUSE: i16 = i16::MAX;

/// `int hook(struct bpf_sock_addr *)`: 1 where the address is an abstract name of the map, else 0, which is EPERM.
#[expect(clippy::cast_possible_wrap, reason = "sizes and jumps of a program this small are far below i16::MAX")]
fn program(cast: i32, map: i32) -> Vec<Instruction> {
    const KEY_AT: i16 = -(KEY as i16);
    const NAME_AT: i16 = KEY_AT + 4;
    // bpf_probe_read_kernel, bpf_map_lookup_elem (`___BPF_FUNC_MAPPER`).
    const PROBE_READ_KERNEL: i32 = 113;
    const MAP_LOOKUP: i32 = 1;
    const PSEUDO_KFUNC_CALL: u8 = 2;
    const PSEUDO_MAP_FD: u8 = 1;
    let mut code = vec![
        // r0 = struct bpf_sock_addr_kern of the context, whose layout the verifier knows and checks (include/linux/filter.h):
        // uaddr at 8, uaddrlen at 32.
        op(0x85, 0, PSEUDO_KFUNC_CALL, 0, cast),
        op(0x79, 7, 0, 8, 0),
        op(0x61, 8, 0, 32, 0),
    ];
    // Zeros behind the name.
    code.extend((0..KEY as i16 / 8).map(|word| op(0x7a, 10, 0, KEY_AT + 8 * word, 0)));
    code.extend([
        // struct sockaddr_un: a family of two octets, then one of the name at least, and no more than there is room for.
        op(0xa5, 8, 0, REFUSE, 3),
        op(0x25, 8, 0, REFUSE, 2 + NAME_AT_MOST as i32),
        op(0x07, 8, 0, 0, -2),
        op(0x63, 10, 8, KEY_AT, 0),
        op(0xbf, 1, 10, 0, 0),
        op(0x07, 1, 0, 0, NAME_AT.into()),
        op(0xbf, 2, 8, 0, 0),
        op(0xbf, 3, 7, 0, 0),
        op(0x07, 3, 0, 0, 2),
        op(0x85, 0, 0, 0, PROBE_READ_KERNEL),
        op(0x55, 0, 0, REFUSE, 0),
        // A name begins with a zero, a path does not.
        op(0x71, 1, 10, NAME_AT, 0),
        op(0x55, 1, 0, REFUSE, 0),
        op(0x18, 1, PSEUDO_MAP_FD, 0, map),
        op(0, 0, 0, 0, 0),
        op(0xbf, 2, 10, 0, 0),
        op(0x07, 2, 0, 0, KEY_AT.into()),
        op(0x85, 0, 0, 0, MAP_LOOKUP),
        op(0x15, 0, 0, REFUSE, 0),
        op(0xb7, 0, 0, 0, 1),
        op(0x95, 0, 0, 0, 0),
    ]);
    let refuse = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        if instruction.offset == REFUSE {
            instruction.offset = (refuse - at - 1) as i16;
        }
    }
    code.extend([op(0xb7, 0, 0, 0, 0), op(0x95, 0, 0, 0, 0)]);
    code
}

fn load(program: &[Instruction], attach_type: u32) -> io::Result<OwnedFd> {
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u64 = 18;
    let license = c"GPL";
    let count = (program.len() as u64) << 32;
    // union bpf_attr: prog_type, insn_cnt; insns; license; log (three words); prog_flags; prog_name (16 octets); prog_ifindex,
    // expected_attach_type.
    let mut attribute = [
        BPF_PROG_TYPE_CGROUP_SOCK_ADDR | count,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
        0,
        0,
        0,
        0,
        0,
        u64::from(attach_type) << 32,
    ];
    Bpf::ProgLoad.make(&mut attribute)
}

fn link(program: &OwnedFd, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    // union bpf_attr: prog_fd, target_fd, attach_type, flags.
    let (program, cgroup) = (program.as_raw_fd().cast_unsigned(), cgroup.as_raw_fd().cast_unsigned());
    Bpf::LinkCreate.make(&mut [program, cgroup, attach_type, 0])
}

fn pin(link: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // union bpf_attr: pathname; bpf_fd, file_flags.
    let mut attribute = [path.as_ptr() as u64, u64::from(link.as_raw_fd().cast_unsigned())];
    bpf(Bpf::ObjPin, &mut attribute).map(drop)
}

fn address<const N: usize>(bytes: &[u8; N]) -> u64 {
    bytes.as_ptr() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_by_its_length_too() {
        assert_eq!(key("ab")[..8], [3, 0, 0, 0, 0, b'a', b'b', 0].map(|byte: u8| byte));
        assert_ne!(key("ab"), key("ab\0"));
        assert_eq!(key(&"x".repeat(NAME_AT_MOST - 1))[..4], 108_u32.to_ne_bytes());
    }

    #[test]
    fn every_way_out_of_the_program_is_a_verdict() {
        let code = program(7, 8);
        for (at, instruction) in code.iter().enumerate() {
            let class = instruction.code & 7;
            let jumps = class == 5 && !matches!(instruction.code, 0x85 | 0x95);
            if jumps {
                let target = at + 1 + instruction.offset.cast_unsigned() as usize;
                assert_eq!(code[target..], [op(0xb7, 0, 0, 0, 0), op(0x95, 0, 0, 0, 0)], "{at}");
            }
        }
        assert_eq!(code.iter().filter(|instruction| instruction.code == 0x95).count(), 2);
    }
}
