//! Verdicts of the programs as the kernel would come to them, for calls that this kernel or user cannot make for real.

use super::*;

/// AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64 and AUDIT_ARCH_I386 (include/uapi/linux/audit.h).
const OWN: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
const I386: u32 = 0x4000_0003;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const BITS_ABOVE: u64 = 1 << 32;

/// Runs one program over the words of a `struct seccomp_data`.
fn run(program: &[sock_filter], words: &[u32; 16]) -> u32 {
    let (mut at, mut accumulator) = (0_usize, 0);
    loop {
        let instruction = &program[at];
        at += 1;
        let (code, k) = (u32::from(instruction.code), instruction.k);
        let mut jump = |holds: bool| at += usize::from(if holds { instruction.jt } else { instruction.jf });
        if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
            accumulator = words[k as usize / 4];
        } else if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K {
            accumulator &= k;
        } else if code == libc::BPF_JMP | libc::BPF_JA {
            at += k as usize;
        } else if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K {
            jump(accumulator == k);
        } else if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K {
            jump(accumulator >= k);
        } else if code == libc::BPF_RET | libc::BPF_K {
            return k;
        } else {
            panic!("{instruction:?} is not known here");
        }
    }
}

/// The strictest verdict, which is the lowest action as a signed number (include/uapi/linux/seccomp.h).
fn verdict_on(keep_caps: KeptCaps, arch: u32, number: u32, arguments: &[u64]) -> u32 {
    let mut words = [0; 16];
    words[0] = number;
    words[1] = arch;
    for (at, argument) in arguments.iter().enumerate() {
        words[4 + 2 * at] = *argument as u32;
        words[5 + 2 * at] = (*argument >> 32) as u32;
    }
    let Filter(programs) = Filter::new(keep_caps).unwrap();
    programs.iter().map(|program| run(program, &words)).min_by_key(|verdict| verdict.cast_signed()).unwrap()
}

fn verdict(number: libc::c_long, arguments: &[u64]) -> u32 {
    verdict_on(KeptCaps::NONE, OWN, u32::try_from(number).unwrap(), arguments)
}

fn refused(errno: c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
}

#[test]
fn four_families_are_left() {
    // AF_MAX of Linux 6.18 is 46; what comes later is refused too.
    for family in 0..100 {
        let allowed = [1, 2, 10, 16].contains(&family);
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            let expected = if allowed { ALLOW } else { refused(libc::EAFNOSUPPORT) };
            assert_eq!(verdict(call, &[family, 1, 0]), expected, "{family}");
            assert_eq!(verdict(call, &[family | BITS_ABOVE, 1, 0]), expected, "{family} with a bit that nobody reads");
        }
    }
}

#[test]
fn packet_sockets_go_with_the_capability() {
    let raw = KeptCaps::parse(&["net_raw"], true).unwrap();
    let (packet, xdp, inet, old) = (17, 44, 2, (SOCK_PACKET | libc::SOCK_CLOEXEC) as u64);
    for (keep_caps, expected) in [(KeptCaps::NONE, refused(libc::EAFNOSUPPORT)), (raw, ALLOW)] {
        let socket = |family, kind| verdict_on(keep_caps, OWN, libc::SYS_socket as u32, &[family, kind, 0]);
        assert_eq!((socket(packet, 3), socket(inet, old)), (expected, expected));
        assert_eq!((socket(xdp, 3), socket(inet, 1)), (refused(libc::EAFNOSUPPORT), ALLOW));
    }
}

#[test]
fn two_requests_of_terminals_are_refused_in_every_disguise() {
    for (request, expected) in [
        (0x5412, refused(libc::EPERM)),
        (0x541c, refused(libc::EPERM)),
        (0x5412 | BITS_ABOVE, refused(libc::EPERM)),
        (0x5413, ALLOW),
        (0x5401, ALLOW),
    ] {
        assert_eq!(verdict(libc::SYS_ioctl, &[0, request, 0]), expected, "{request:#x}");
    }
}

#[test]
fn memberships_are_refused_and_other_options_are_not() {
    let (ip, ipv6) = (0, 41);
    let refusals = [(ip, [35, 39, 41, 42, 46, 48].as_slice()), (ipv6, &[20, 27, 42, 46, 48])];
    for (level, options) in refusals {
        for option in 0..256 {
            let expected = if options.contains(&option) { refused(libc::EPERM) } else { ALLOW };
            assert_eq!(verdict(libc::SYS_setsockopt, &[3, level, option]), expected, "level {level} option {option}");
            let disguised = [3, level | BITS_ABOVE, option | BITS_ABOVE];
            assert_eq!(verdict(libc::SYS_setsockopt, &disguised), expected, "level {level} option {option}");
        }
    }
    // SOL_SOCKET and IPPROTO_TCP have options of the same numbers.
    for level in [1, 6] {
        assert_eq!(verdict(libc::SYS_setsockopt, &[3, level, 35]), ALLOW);
        assert_eq!(verdict(libc::SYS_setsockopt, &[3, level, 20]), ALLOW);
    }
}

#[test]
fn whole_calls_are_refused_and_their_neighbours_are_not() {
    let whole =
        [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl, libc::SYS_pidfd_getfd, libc::SYS_io_uring_setup];
    let with_conditions = [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_ioctl, libc::SYS_setsockopt];
    for number in (0..600).filter(|number| !with_conditions.contains(number)) {
        let expected = if whole.contains(&number) { refused(libc::EPERM) } else { ALLOW };
        assert_eq!(verdict(number, &[1, 2, 3]), expected, "{number}");
    }
}

#[test]
fn other_abis_end_the_process_and_skipped_calls_do_not() {
    let harmless = libc::SYS_getpid as u32;
    assert_eq!(verdict_on(KeptCaps::NONE, OWN, harmless, &[]), ALLOW);
    assert_eq!(verdict_on(KeptCaps::NONE, I386, harmless, &[]), KILL);
    for number in [harmless, libc::SYS_socket as u32, 0x3fff_ffff] {
        assert_eq!(verdict_on(KeptCaps::NONE, OWN, number | X32, &[]), KILL, "{number}");
    }
    assert_eq!(verdict_on(KeptCaps::NONE, OWN, u32::MAX, &[]), ALLOW, "what a tracer puts in place of a call");
}
