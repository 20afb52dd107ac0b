//! One boot: an initramfs with what it takes to mount the host's file system read-only, and qemu.

use super::kernel::Kernel;
use crate::cargo;
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// What the initramfs loads; the rest is loaded on demand, as on any machine.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const BUSYBOX: &str = "/bin/busybox";
/// An emulated timer may be late for the kernel's check of it, and every mitigation is emulated too. `bpf` stands in Debian's own list from 6.1 on.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off lsm=lockdown,yama,apparmor,bpf";

/// A guest that is running. What it says comes on its standard output. Dropping it ends it.
pub(super) struct Guest {
    pub(super) process: Child,
    /// What the kernel said.
    pub(super) console: PathBuf,
}

impl Guest {
    /// Boots `kernel`, which runs the shell script `script` as process 1 and ends with it.
    pub(super) fn boot(kernel: &Kernel, script: &str) -> Result<Self> {
        let place = cargo::workspace().join("target/kernels").join(&kernel.series);
        let [guest, initramfs, console] = ["guest.sh", "initramfs", "console.log"].map(|name| place.join(name));
        fs::write(&guest, whole(kernel, script))?;
        fs::write(&initramfs, pack(kernel, &guest)?)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        // One processor: with two, kernel 6.12 dies under this emulation (qemu 7.2).
        qemu.args(["-accel", "tcg", "-smp", "1", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&initramfs).args(["-append", COMMAND_LINE]);
        qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        qemu.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let process = qemu.spawn().context("cannot run qemu-system-x86_64: cargo xtask setup")?;
        Ok(Self { process, console })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            let _gone = self.process.kill();
            let _status = self.process.wait();
        }
    }
}

/// The script between what makes a machine of the guest and its end. Debian's kernels do not load DCCP for whoever makes such a socket.
fn whole(kernel: &Kernel, script: &str) -> String {
    format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8\n\
         mkdir -p /lib/modules && ln -s {}/lib/modules/{} /lib/modules/\n\
         export EGRESS_LAB_PATIENCE=5\nip link set lo up\nmodprobe --all dccp_ipv4 dccp_ipv6\n{script}\nbusybox poweroff -f\n",
        kernel.directory.display(),
        kernel.release
    )
}

/// The initramfs, as a cpio archive.
fn pack(kernel: &Kernel, guest: &Path) -> Result<Vec<u8>> {
    let binary = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}: cargo xtask setup"))?;
    ensure!(!is_interpreted(&binary), "{BUSYBOX} is not static: apt-get install busybox-static");
    let tree = tempfile::tempdir()?;
    let root = tree.path();
    for directory in ["bin", "modules"] {
        fs::create_dir(root.join(directory))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    let mut order = Vec::new();
    for module in kernel.modules(&MODULES)? {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        fs::copy(&module, root.join("modules").join(name)).with_context(|| format!("no {}", module.display()))?;
        order.push(name.to_owned());
    }
    fs::write(root.join("modules/order"), order.join("\n"))?;
    let init = include_str!("init.sh").replace("GUEST", guest.to_str().context("a path that is not UTF-8")?);
    fs::write(root.join("init"), init)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut cpio = Command::new(BUSYBOX);
    cpio.args(["sh", "-c", "find . | busybox cpio -o -H newc"]).current_dir(root);
    let output = cpio.output().context("cannot run busybox cpio")?;
    ensure!(output.status.success(), "cpio: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// True for a 64-bit ELF file that names a loader (PT_INTERP, elf(5)): the initramfs has none.
fn is_interpreted(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let (headers, size, count) = (number(0x20, 8) as usize, number(0x36, 2) as usize, number(0x38, 2) as usize);
    (0..count).any(|at| number(headers + at * size, 4) == PT_INTERP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_is_seen() {
        assert!(is_interpreted(&fs::read("/proc/self/exe").unwrap()));
        let mut elf = vec![0; 0x40 + 0x38];
        (elf[0x20], elf[0x36], elf[0x38]) = (0x40, 0x38, 1);
        assert!(!is_interpreted(&elf));
        elf[0x40] = 3;
        assert!(is_interpreted(&elf));
    }
}
