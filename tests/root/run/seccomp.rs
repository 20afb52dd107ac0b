//! System calls that CMD is refused, and that nothing else is.

use super::{confinement::forbid, *};
use egress_agent::run::{RunError, Step};
use nix::sched::{CloneFlags, unshare};
use std::{collections::BTreeMap, fs, os::unix::process::CommandExt, process};

const CALLS: &str = include_str!("../../probes/calls.py");
const PROBE: &str = "exec /usr/bin/python3 -I -c \"$CALLS\"";

const FAMILY: &str = "EAFNOSUPPORT";
const REFUSED: &str = "EPERM";

/// Name in `calls.py`, the error number that CMD gets, and whether this kernel grants the call to root where nothing refuses it
/// (else it fails for another reason).
const REFUSALS: [(&str, &str, bool); 25] = [
    ("vsock", FAMILY, true),
    ("vsock_above", FAMILY, true),
    ("packet", FAMILY, true),
    ("packet_old", FAMILY, true),
    ("xdp", FAMILY, true),
    ("pair_vsock", FAMILY, false),
    // The kernel may be set to refuse it by itself (dev.tty.legacy_tiocsti), with EIO.
    ("TIOCSTI", REFUSED, false),
    ("TIOCSTI_above", REFUSED, false),
    ("TIOCLINUX", REFUSED, false),
    ("add_key", REFUSED, true),
    ("request_key", REFUSED, true),
    ("keyctl", REFUSED, true),
    ("pidfd_getfd", REFUSED, true),
    ("io_uring_setup", REFUSED, true),
    ("IP_ADD_MEMBERSHIP", REFUSED, true),
    ("IP_ADD_SOURCE_MEMBERSHIP", REFUSED, true),
    ("IP_MSFILTER", REFUSED, false),
    ("v4_MCAST_JOIN_GROUP", REFUSED, true),
    ("v4_MCAST_JOIN_SOURCE_GROUP", REFUSED, true),
    ("v4_MCAST_MSFILTER", REFUSED, false),
    ("IPV6_JOIN_GROUP", REFUSED, true),
    (ANYCAST, REFUSED, false),
    ("v6_MCAST_JOIN_GROUP", REFUSED, true),
    ("v6_MCAST_JOIN_SOURCE_GROUP", REFUSED, true),
    ("v6_MCAST_MSFILTER", REFUSED, false),
];

/// Needs CAP_NET_ADMIN anyway.
const ANYCAST: &str = "IPV6_JOIN_ANYCAST";

/// Runs `body` on a thread in a network namespace that has a loopback interface and nothing else.
fn beside_the_network<Result: Send>(body: impl FnOnce() -> Result + Send) -> Result {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            body()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(super) fn answers(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn each_refused_call_fails_and_works_without_egressd() {
    for uid in [0, NOBODY] {
        let (without, with) = beside_the_network(|| {
            let mut plain = process::Command::new("sh");
            let plain = plain.args(["-c", PROBE]).env("CALLS", CALLS).uid(uid).gid(uid).output().unwrap();
            assert!(plain.status.success(), "{plain:?}");
            let with = script_output(uid, PROBE, |command| command.env.push(("CALLS".into(), CALLS.into())));
            (String::from_utf8(plain.stdout).unwrap(), with)
        });
        let (without, with) = (answers(&without), answers(&with));
        assert_eq!((without.len(), with.len()), (REFUSALS.len(), REFUSALS.len()), "{without:?} {with:?}");
        for (name, errno, granted) in REFUSALS {
            assert_eq!(with[name], errno, "{name} of uid {uid}");
            if uid == 0 && granted {
                assert_eq!(without[name], "ok", "{name} of uid {uid} without egressd");
            } else if uid == 0 || name != ANYCAST {
                assert_ne!(without[name], errno, "{name} of uid {uid} without egressd");
            }
        }
    }
}

#[test]
fn packet_sockets_are_left_where_the_capability_is_kept() {
    let text = beside_the_network(|| {
        script_output(NOBODY, PROBE, |command| {
            command.env.push(("CALLS".into(), CALLS.into()));
            command.keep_caps = KeptCaps::parse(&["net_raw"], true).unwrap();
        })
    });
    let answers = answers(&text);
    assert_eq!((answers["packet"], answers["packet_old"]), ("ok", "ok"), "{answers:?}");
    assert_eq!((answers["xdp"], answers["vsock"], answers["add_key"]), (FAMILY, FAMILY, REFUSED), "{answers:?}");
}

/// What builds and agents do all day, and calls that stand beside the refused ones. Ends with 0 if all of it works.
const ORDINARY: &str = r#"
set -e
dir=$(mktemp -d); trap 'kill $server; rm -rf $dir' EXIT; cd $dir; export HOME=$dir
/usr/bin/python3 -I - > address <<'END' &
import http.server, socket, sys
class Dual(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
server = Dual(("::", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_address[1], flush=True)
server.serve_forever()
END
server=$!
until port=$(grep . address); do kill -0 $server; done
echo hello > file
test "$(curl -fsS http://127.0.0.1:$port/file)$(curl -gfsS "http://[::1]:$port/file")" = hellohello
/usr/bin/python3 -I -c "import urllib.request as u; assert u.urlopen('http://127.0.0.1:$port/file').read() == b'hello\n'"
git init -q -b main made; git -C made -c user.name=a -c user.email=a@b.test commit -q --allow-empty -m one
git -C made update-server-info; git clone -q made cloned; git clone -q http://127.0.0.1:$port/made/.git fetched
test "$(git -C fetched log --format=%s)" = one
ip -o link show lo > links; busybox true; ps -e -o comm= > processes; grep -q '^python3' processes
/usr/bin/python3 -I - <<'END'
import errno, fcntl, mmap, os, select, socket, subprocess, termios, threading
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK).close()
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
for side in socket.socketpair(): side.close()
with socket.socket() as tcp, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
leader, follower = os.openpty()
fcntl.ioctl(follower, termios.TIOCGWINSZ, bytes(8)); termios.tcgetattr(follower)
os.setresuid(*[os.getuid()] * 3); os.setresgid(*[os.getgid()] * 3)
try: os.setuid(os.getuid() + 1); raise SystemExit("another user")
except PermissionError: pass
poll = select.epoll(); poll.register(os.eventfd(0)); os.pidfd_open(os.getpid())
thread = threading.Thread(target=subprocess.check_call, args=(["true"],)); thread.start(); thread.join()
END
"#;

#[test]
fn ordinary_programs_work_as_without_egressd() {
    ["curl", "git", "ip", "busybox"].into_iter().for_each(lab::need);
    beside_the_network(|| {
        let mut plain = process::Command::new("sh");
        let plain = plain.args(["-c", ORDINARY]).uid(NOBODY).gid(NOBODY).output().unwrap();
        assert!(plain.status.success(), "without egressd: {plain:?}");
        script_output(NOBODY, &format!("exec 2>&1\n{ORDINARY}"), |_| {});
    });
}

#[test]
fn the_filter_holds_for_descendants_and_beside_that_of_the_caller() {
    let text = script_output(NOBODY, "sh -c 'grep ^Seccomp /proc/self/status'; true", |_| {});
    let own = status(std::process::id(), "Seccomp_filters").parse::<u32>().unwrap();
    assert_eq!(text.replace('\t', ""), format!("Seccomp:2\nSeccomp_filters:{}\n", own + 2));
}

#[test]
fn without_a_filter_cmd_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let touch = command(0, &["touch", dir.path().join("ran").to_str().unwrap()]);
    std::thread::scope(|scope| {
        let forbidden = scope.spawn(|| {
            let cgroup = Fresh::new();
            forbid(libc::SYS_seccomp, libc::EPERM);
            let error = spawn(&touch, &cgroup).unwrap_err();
            assert!(matches!(error, RunError::Child { step: Step::Seccomp, .. }), "{error}");
            assert!(error.to_string().contains("seccomp filter"), "{error}");
            assert_eq!(error.exit_code(), 125);
            assert!(!cgroup.populated().unwrap());
        });
        forbidden.join().unwrap();
    });
    assert!(!dir.path().join("ran").exists());
    assert_eq!(exit_code(&touch), 0);
    assert!(dir.path().join("ran").exists());
}

/// Statically linked programs of a few instructions each; what they exit with says which way of calling the kernel worked.
#[cfg(target_arch = "x86_64")]
mod abi {
    use super::*;

    /// mov edi, 42; mov eax, exit_group; syscall
    const NATIVE: &[u8] = b"\xbf\x2a\0\0\0\xb8\xe7\0\0\0\x0f\x05";
    /// mov ebx, 42; mov eax, exit of i386; int 0x80
    const I386: &[u8] = b"\xbb\x2a\0\0\0\xb8\x01\0\0\0\xcd\x80";
    /// mov edi, 42; mov eax, exit_group of x32; syscall
    const X32: &[u8] = b"\xbf\x2a\0\0\0\xb8\xe7\0\0\x40\x0f\x05";
    /// mov edi, 7; mov eax, exit_group; syscall: what is left to do where the kernel does not know the call before it.
    const OTHERWISE: &[u8] = b"\xbf\x07\0\0\0\xb8\xe7\0\0\0\x0f\x05";

    /// An ELF file with one segment (elf(5)), as nobody may execute it.
    fn program(dir: &Path, code: &[u8]) -> String {
        const START: u64 = 0x40_0000;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        let size = 64 + 56 + code.len() as u64;
        elf.extend([START + 64 + 56, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        elf.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x05\0\0\0");
        elf.extend([0, START, START, size, size, 0x1000].into_iter().flat_map(u64::to_le_bytes));
        elf.extend(code);
        let (source, program) = (dir.join("source"), dir.join("program"));
        fs::write(&source, elf).unwrap();
        // A child that another test forks meanwhile would hold a file open that was written here, and exec refuses that.
        let made = process::Command::new("install").arg("-m755").args([&source, &program]).status().unwrap();
        assert!(made.success());
        program.to_str().unwrap().to_owned()
    }

    /// Exit codes without egressd and of CMD.
    fn codes(code: &[u8]) -> (u8, u8) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = program(dir.path(), &[code, OTHERWISE].concat());
        let without = plain("sh", &format!("exec {program}"));
        (without, exit_code(&command(NOBODY, &[&program])))
    }

    const KILLED: u8 = 128 + libc::SIGSYS as u8;

    #[test]
    fn statically_linked_programs_run() {
        assert_eq!(codes(NATIVE), (42, 42));
    }

    #[test]
    fn calls_of_i386_end_the_process() {
        let (without, with) = codes(I386);
        assert_eq!(with, KILLED);
        // SIGSEGV is the answer of a kernel without CONFIG_IA32_EMULATION.
        if without == 128 + libc::SIGSEGV as u8 {
            lab::skip("this kernel has no calls of i386");
        } else {
            assert_eq!(without, 42);
        }
    }

    #[test]
    fn calls_of_x32_end_the_process() {
        let (without, with) = codes(X32);
        assert_eq!(with, KILLED);
        assert!([42, 7].contains(&without), "{without}: 7 is that of a kernel without CONFIG_X86_X32_ABI");
    }
}
