//! What the egress program costs by itself, beside an empty one and with a limit: figures for `cargo xtask bench`, which
//! runs this as `costs OBJECT ROUNDS`, OBJECT being the kernel half that build.rs made. Prints one JSON object.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a bench that cannot measure has to end"
)]

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap},
    programs::{CgroupSkb, Program},
};
use bytemuck::{Pod, Zeroable};
use egress_common::{
    addr::Addr,
    bucket::{BURST_MAX_NS, Limit, Limits, Meters, Place, RATE_MAX_BITS},
    destination::PortRange,
    names,
    permit::{Grant, NEVER_NS, Permit, PermitKey, Rule, RuleRef, rule_flags},
    sandbox::{Identity, Sandbox as SandboxEntry, flags},
};
use lab::Lab;
use nix::net::if_::{Interface, if_nameindex};
use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

/// Entries that the maps are made for.
const PERMITS: u32 = 1024;
const SLOT: u32 = 1;
const NONCE: u64 = 7;
const PERMITTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Runs of the program in one measurement.
const REPEAT: u32 = 200_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let object = std::fs::read(arguments.next().expect("the path of the BPF object")).expect("the BPF object");
    let rounds: usize = arguments.next().expect("the number of rounds").parse().expect("a number of rounds");
    let lab = Lab::without_capture();
    let figures = lab.outer_ns().enter(|| {
        let Best { program, limited, empty } = best_runs(&object, rounds);
        serde_json::json!({
            "program_ns": program.as_nanos(),
            "limited_ns": limited.as_nanos(),
            "empty_ns": empty.as_nanos(),
            "lost_bytes": lost_bytes(&object),
        })
    });
    println!("{figures}");
}

/// Every program of a sandbox without a device, verified and in the kernel.
fn load(object: &[u8]) -> Ebpf {
    let identity = Identity { slot: SLOT, depth: 0, nonce: NONCE };
    let mut ebpf = EbpfLoader::new()
        .map_max_entries(names::map::PERMITS, PERMITS)
        .override_global(names::global::TEST_IDENTITY, bytemuck::bytes_of(&identity), true)
        .load(object)
        .expect("the maps");
    for (_, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => Ok(()),
        }
        .expect("a program");
    }
    ebpf
}

struct Best {
    program: Duration,
    limited: Duration,
    empty: Duration,
}

/// The shortest runs of the egress program on an allowed IPv4 UDP packet, without a limit and with one that nothing reaches, and
/// of an empty one, turn by turn: what else the machine does only adds.
fn best_runs(object: &[u8], rounds: usize) -> Best {
    let (mut free, mut limited) = (load(object), load(object));
    permit(&mut free, false);
    permit(&mut limited, true);
    let empty = empty_program().expect("an empty program");
    let turn = |_| Best { program: run(egress(&free)), limited: run(egress(&limited)), empty: run(empty.as_fd()) };
    let better = |best: Best, turn: Best| Best {
        program: best.program.min(turn.program),
        limited: best.limited.min(turn.limited),
        empty: best.empty.min(turn.empty),
    };
    (0..rounds).map(turn).reduce(better).expect("a round")
}

/// Of what two CPUs sent at once, what the meter does not have.
fn lost_bytes(object: &[u8]) -> u64 {
    let mut ebpf = load(object);
    permit(&mut ebpf, true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| run(egress(&ebpf)));
        }
    });
    let meters: Array<_, Meters> = Array::try_from(ebpf.map(names::map::METERS).unwrap()).unwrap();
    let meter = meters.get(&SLOT, 0).unwrap().at[Place::Egress as usize];
    let sent = 2 * u64::from(REPEAT) * (packet().len() as u64 - 14);
    sent.abs_diff(meter.bytes)
}

fn egress(ebpf: &Ebpf) -> BorrowedFd<'_> {
    let egress: &CgroupSkb = ebpf.program("egress").expect("the egress program").try_into().expect("cgroup_skb");
    egress.fd().expect("loaded").as_fd()
}

fn run(program: BorrowedFd<'_>) -> Duration {
    let packet = packet();
    // struct __sk_buff (include/uapi/linux/bpf.h): ifindex is at byte 40. Not 1, which is loopback and judged otherwise.
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&device().to_ne_bytes());
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat: REPEAT,
        ctx_size_in: context.len() as u32,
        ctx_in: context.as_ptr() as u64,
        ..TestRun::zeroed()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes).expect("BPF_PROG_TEST_RUN");
    assert_eq!(attributes.retval, 1, "the packet is denied: this would measure a denial");
    Duration::from_nanos(attributes.duration.into())
}

/// `return 1`.
fn empty_program() -> io::Result<OwnedFd> {
    // include/uapi/linux/bpf.h: r0 = 1; exit.
    let instructions: [u64; 2] = [1 << 32 | 0xb7, 0x95];
    let mut attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_SKB,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: BPF_CGROUP_INET_EGRESS,
        ..ProgramLoad::zeroed()
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn permit(ebpf: &mut Ebpf, limited: bool) {
    let rule_ref = RuleRef { index: 1, tag: 1 };
    let mut rule = Rule { tag: 1, slot: SLOT, flags: rule_flags::STATIC, len: 1, ..Rule::zeroed() };
    rule.ranges[0] = PortRange::ALL;
    let mut permit = Permit::default();
    permit.grants[0] = Grant { expires_ns: NEVER_NS, rule: rule_ref };
    let mut sandboxes = Array::try_from(ebpf.map_mut(names::map::SANDBOXES).unwrap()).unwrap();
    let flags = if limited { flags::METERED_EGRESS } else { 0 };
    sandboxes.set(SLOT, &SandboxEntry { nonce: NONCE, flags, ..SandboxEntry::default() }, 0).unwrap();
    let mut limits = Array::try_from(ebpf.map_mut(names::map::LIMITS).unwrap()).unwrap();
    limits.set(SLOT, &Limits { egress: Limit::new(RATE_MAX_BITS, BURST_MAX_NS), ..Limits::default() }, 0).unwrap();
    let mut rules = Array::try_from(ebpf.map_mut(names::map::RULES).unwrap()).unwrap();
    rules.set(rule_ref.index, &rule, 0).unwrap();
    let mut permits = HashMap::try_from(ebpf.map_mut(names::map::PERMITS).unwrap()).unwrap();
    permits.insert(&PermitKey { slot: SLOT, addr: Addr::from(PERMITTED) }, &permit, 0).unwrap();
}

const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;

/// `union bpf_attr` for BPF_PROG_LOAD, as far as expected_attach_type.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u32; 4],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for BPF_PROG_TEST_RUN, as far as ctx_out.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

fn bpf<T: Pod>(command: i64, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are as long as we say; every pointer in them is to memory of the caller's that outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

/// Any device of this namespace but loopback.
fn device() -> u32 {
    let names = if_nameindex().expect("devices");
    names.iter().map(Interface::index).find(|index| *index != 1).expect("a device besides loopback")
}

/// Ethernet, IPv4, UDP to port 443, eight bytes. The checksums are nobody's business here.
fn packet() -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    bytes.extend([0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0, 198, 51, 100, 30]);
    bytes.extend(PERMITTED.octets());
    bytes.extend([0x9c, 0x40, 0x01, 0xbb, 0, 16, 0, 0]);
    bytes.extend([0; 8]);
    bytes
}
