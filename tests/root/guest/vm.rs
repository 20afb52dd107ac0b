//! A real guest: a kernel of its own in qemu, on a tap.

use super::NOWHERE;
use crate::job::ready;
use lab::{EVIL, GATEWAY, Lab, OK, Running, need, unpacked, until};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const GUEST: &str = "198.51.100.40";
/// By itself it takes some seconds; the machine may have more to do.
const BOOTED: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);
/// In the order in which they need each other.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// A guest that does what is written to its console.
struct Vm(Running);

impl Vm {
    fn boot(lab: &Lab, tap: &str) -> Self {
        need("qemu-system-x86_64");
        let image = unpacked("linux-image-cloud-amd64");
        let kernel = only(&image.join("boot"), "vmlinuz-");
        let modules = only(&image.join("lib/modules"), "").join("kernel");
        let initrd = lab.directory().join("initrd");
        fs::write(&initrd, initramfs(&modules)).unwrap();
        let mut command = lab.outer_ns().command("qemu-system-x86_64");
        command.args("-accel tcg -smp 1 -m 192 -nodefaults -nographic -no-reboot -serial stdio -append".split(' '));
        // Where many share the processor, the check of the timer fails.
        command.arg("console=ttyS0 quiet panic=-1 no_timer_check tsc=unstable");
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.args(["-netdev", &format!("tap,id=n0,ifname={tap},script=no,downscript=no")]);
        command.args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
        let mut running = Running::spawn(command);
        running.says("BOOTED", BOOTED);
        Self(running)
    }

    /// What a line of shell says in the guest.
    fn ask(&mut self, line: &str) -> String {
        let before = self.0.stdout().len();
        self.0.write(format!("{line}\n").as_bytes());
        let said = || self.0.stdout().get(before..).unwrap_or_default().to_owned();
        until(SOON, &format!("the guest has done {line}"), || said().contains("DONE"));
        said()
    }

    /// Asks for a page, and says whether the answer came.
    fn gets(&mut self, address: &str, token: &str) -> bool {
        self.ask(&format!("printf 'GET /{token} HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} 80")).contains("200 OK")
    }
}

/// The one entry of a directory whose name begins so.
fn only(directory: &Path, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| {
        panic!("{}: {error}: run `cargo xtask setup`", directory.display());
    });
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.unwrap_or_else(|| panic!("nothing in {}", directory.display())).path()
}

/// Everything of the guest: busybox, the modules of its device, and what it does first.
fn initramfs(modules: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, data: &[u8]| {
        // cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst in Linux).
        let size = data.len() as u32;
        let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    for directory in ["bin", "dev", "m"] {
        add(directory, 0o40755, b"");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| fs::read(path).ok());
    add("bin/busybox", 0o100_755, &busybox.expect("busybox: run `cargo xtask setup`"));
    let mut insmod = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap();
        let path = modules.join(format!("{module}.ko"));
        add(
            &format!("m/{name}.ko"),
            0o100_644,
            &fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        );
        insmod.push_str(&format!("insmod /m/{name}.ko\n"));
    }
    let init = format!(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
{insmod}ip link set lo up
ip link set eth0 up
ip addr add {GUEST}/24 dev eth0
ip addr add 2001:db8::40/64 dev eth0
ip route add default via {GATEWAY}
stty -echo
echo BOOTED
while read -r line; do eval \"$line\"; echo DONE; done
"
    );
    add("init", 0o100_755, init.as_bytes());
    add("TRAILER!!!", 0, b"");
    archive
}

#[test]
fn a_guest_kernel_is_contained_by_its_tap_alone() {
    let lab = Lab::new();
    lab.outer_ns().ip("tuntap add dev tap0 mode tap\nlink set tap0 master br0 up");
    let before = lab.snapshot();
    let flags =
        format!("--device tap0 --self {GUEST} --self 2001:db8::40 --allow ok.test --allow ok6.test --pre-resolve off");
    let mut owner = ready(lab.egressd("attach").inside(lab.outer_ns()).flags(&flags));
    let mut vm = Vm::boot(&lab, "tap0");
    let token = lab.token("vm");
    assert!(!vm.gets(&OK.to_string(), &token), "no name was asked for yet");
    let said = vm.ask(&format!("nslookup ok.test {NOWHERE}"));
    assert!(said.contains(&OK.to_string()), "{said}");
    assert!(vm.gets(&OK.to_string(), &token));
    let said = vm.ask(&format!("nslookup ok6.test {NOWHERE}"));
    assert!(said.contains(lab::OK6), "{said}");
    assert!(vm.gets(lab::OK6, &token));
    let said = vm.ask(&format!("nslookup evil.test {NOWHERE}"));
    assert!(said.contains("NXDOMAIN"), "{said}");
    assert!(!vm.gets(&EVIL.to_string(), &token) && !vm.gets(lab::EVIL6, &token));
    vm.ask("ip addr add 198.51.100.41/24 dev eth0; ip addr del 198.51.100.40/24 dev eth0");
    assert!(!vm.gets(&OK.to_string(), &token), "a source that is not its own");
    vm.ask(&format!(
        "ip addr add {GUEST}/24 dev eth0; ip addr del 198.51.100.41/24 dev eth0; ip route add default via {GATEWAY}"
    ));

    owner.signal(nix::sys::signal::Signal::SIGKILL);
    owner.wait(SOON);
    assert!(vm.gets(&OK.to_string(), &token) && !vm.gets(&EVIL.to_string(), &token), "nobody is needed for that");
    let said = vm.ask(&format!("nslookup b.test {NOWHERE}"));
    assert!(!said.contains("198.51.100.12"), "{said}");
    lab.expect_silence(EVIL);
    lab.expect_silence(lab::EVIL6.parse::<std::net::IpAddr>().unwrap());
    assert_eq!(lab.hits(&token).len(), 3);

    // Another owner, and the control: without any, everything arrives.
    let owner = ready(lab.egressd("attach").inside(lab.outer_ns()).flags(&format!("{flags} --allow b.test")));
    let said = vm.ask(&format!("nslookup b.test {NOWHERE}"));
    assert!(said.contains("198.51.100.12"), "{said}");
    lab.egressd("detach").inside(lab.outer_ns()).flags("--device tap0").output().exits(0);
    drop(owner);
    assert!(vm.gets(&EVIL.to_string(), &token), "the control");
    drop(vm);
    until(SOON, "nothing is left", || before.diff(&lab.snapshot()).iter().all(|line| line.contains("tap0")));
}
