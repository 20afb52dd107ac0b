//! Debian packages: asked of dpkg, installed by apt, no service started.

use crate::invoker;
use anyhow::{Context as _, Result, bail};
use std::{
    collections::HashSet,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// One need: the package that is installed for it, others that serve as well, a command of it, and what asks for it.
pub(crate) struct Package {
    name: &'static str,
    instead: &'static [&'static str],
    command: &'static str,
    asks: &'static str,
}

const fn package(name: &'static str, command: &'static str, asks: &'static str) -> Package {
    Package { name, instead: &[], command, asks }
}

/// What a Debian 12 machine needs besides git, make and rustup.
pub(crate) const NEEDED: &[Package] = &[
    package("gcc", "cc", "links everything"),
    package("libc6-dev", "", "links everything"),
    package("g++", "c++", "libFuzzer, which the fuzz targets link, is C++"),
    package(LLVM, "", "bpf-linker, which links the kernel half, links LLVM 22"),
    package("git", "git", "the style gates list the files of the tree, tests clone"),
    package("squid", "squid", "the proxy of tests and demo"),
    package("nftables", "nft", "tests beside other firewalls, bench"),
    package("iptables", "iptables", "tests beside other firewalls"),
    package("iproute2", "ip", "namespaces, devices, tc"),
    package("iputils-ping", "ping", "real client"),
    package("curl", "curl", "real client"),
    package("wget", "wget", "real client"),
    package("netcat-openbsd", "nc", "real client"),
    package("bind9-dnsutils", "dig", "real client"),
    package("python3", "python3", "real client, and odd sockets"),
    package("python3-websockets", "", "WebSocket client and server of the lab"),
    package("nghttp2-server", "nghttpd", "HTTP/2 server of the lab"),
    Package {
        name: "busybox-static",
        instead: &["busybox"],
        command: "busybox",
        asks: "real client, one that resolves without glibc",
    },
    package("musl-tools", "musl-gcc", "clients linked against musl"),
    package("libc-ares-dev", "", "clients linked against c-ares"),
    package("golang-go", "go", "clients with Go's own resolver"),
    package("nodejs", "node", "real client"),
    package("openjdk-17-jdk-headless", "javac", "real client"),
    package("chromium-headless-shell", "chromium-headless-shell", "real client"),
    package("unbound", "unbound", "forwards from inside a sandbox, bench"),
    package("dnsmasq-base", "dnsmasq", "forwards from inside a sandbox, bench"),
    package("publicsuffix", "", "where registries draw the line between names"),
    package("openssl", "openssl", "TLS servers in the lab"),
    package("tcpdump", "tcpdump", "sinks that see frames"),
    package("bpftool", "bpftool", "looks at programs, maps and links from outside"),
    package("ethtool", "ethtool", "tests with offloads on and off"),
    package("jq", "jq", "reads --json as users do"),
    package("libcap2-bin", "capsh", "tests without capabilities"),
    package("procps", "ps", "looks at processes from outside"),
    package("qemu-system-x86", "qemu-system-x86_64", "boots other kernels, and guests"),
    package("kmod", "modprobe", "finds the modules of other kernels"),
];

/// What tests run that must not be installed, since that would change the host: unpacked beside the build.
const UNPACKED: &[Unpacked] = &[
    Unpacked {
        name: "systemd-resolved",
        with: &["libsystemd-shared"],
        file: "lib/systemd/systemd-resolved",
        asks: "forwards from inside a sandbox; installed it would take over /etc/resolv.conf",
    },
    Unpacked {
        name: "systemd",
        with: &["libsystemd-shared"],
        file: "usr/bin/systemd-analyze",
        asks: "checks the unit in README; installed it would want to be process 1",
    },
    Unpacked {
        name: "runsc",
        with: &[],
        file: "usr/bin/runsc",
        asks: "gVisor, a guest without a kernel; installed it would want to be containerd's",
    },
    Unpacked {
        name: KERNEL,
        with: &[],
        file: "lib/modules",
        asks: "the kernel of a guest in qemu; installed it would be the machine's next one",
    },
];

/// Depends on the newest kernel, and is empty itself.
const KERNEL: &str = "linux-image-cloud-amd64";

/// A package whose files are used where they were unpacked, and the others that it needs there.
struct Unpacked {
    name: &'static str,
    with: &'static [&'static str],
    /// One of its files: where that is, nothing is done.
    file: &'static str,
    asks: &'static str,
}

/// The one that only building bpf-linker asks for.
const LLVM: &str = "llvm-22-dev";

/// True when something was installed.
pub(super) fn install_missing(linker_is_here: bool) -> Result<bool> {
    let installed = installed()?;
    let here = |package: &&Package| {
        installed.contains(package.name)
            || package.instead.iter().any(|other| installed.contains(*other))
            || (linker_is_here && package.name == LLVM)
    };
    let missing: Vec<&Package> = NEEDED.iter().filter(|package| !here(package)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    for package in &missing {
        println!("setup: installing {} ({})", package.name, package.asks);
    }
    if !invoker::is_root() {
        bail!("installing packages needs root: sudo make setup");
    }
    let no_services = NoServices::new()?;
    apt(&["update"])?;
    for package in &missing {
        if !apt_knows(package.name)? {
            bail!("{}", unknown(package.name));
        }
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(missing.iter().map(|package| package.name));
    apt(&arguments)?;
    drop(no_services);
    for service in ["squid", "unbound"] {
        if missing.iter().any(|package| package.name == service) && Path::new("/run/systemd/system").exists() {
            println!("setup: disabling {service}.service: the lab starts its own in its own namespace");
            status(Command::new("systemctl").args(["disable", "--quiet", &format!("{service}.service")]))?;
        }
    }
    Ok(true)
}

/// True when something was unpacked.
pub(super) fn unpack_missing() -> Result<bool> {
    let mut added = false;
    for package in UNPACKED {
        let place = lab::unpacked(package.name);
        if place.join(package.file).exists() {
            continue;
        }
        println!("setup: unpacking {} into target/ ({})", package.name, package.asks);
        // As the caller, or `cargo clean` could not remove it.
        status(invoker::command_as_caller("mkdir")?.arg("-p").arg(&place))?;
        for name in [&package.name].into_iter().chain(package.with) {
            let name = if *name == KERNEL { dependency(name)? } else { (*name).to_owned() };
            let mut download = invoker::command_as_caller("apt-get")?;
            download.args(["--quiet=2", "download", &name]).current_dir(&place).stderr(Stdio::null());
            status(&mut download).with_context(|| format!("apt cannot download {name}: sudo apt-get update"))?;
        }
        for entry in fs::read_dir(&place)? {
            let archive = entry?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                status(invoker::command_as_caller("dpkg-deb")?.arg("--extract").arg(&archive).arg(&place))?;
                fs::remove_file(&archive)?;
            }
        }
        added = true;
    }
    Ok(added)
}

/// The first package that one depends on.
fn dependency(name: &str) -> Result<String> {
    let mut show = Command::new("apt-cache");
    let output = show.args(["show", "--no-all-versions", name]).output().context("cannot run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")?.split([' ', ',']).next());
    depends.map(str::to_owned).with_context(|| format!("apt does not know what {name} depends on: sudo apt-get update"))
}

/// Elsewhere than on Debian nothing is installed: what lacks is named.
pub(super) fn check_commands() -> Result<bool> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let found = |command: &str| command.is_empty() || dirs.iter().any(|dir| dir.join(command).exists());
    let missing: Vec<&str> = NEEDED.iter().map(|package| package.command).filter(|command| !found(command)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    bail!("this is not Debian, so nothing is installed for you; these commands are missing: {}", missing.join(" "))
}

fn installed() -> Result<HashSet<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${Status}\n"]);
    for package in NEEDED {
        query.arg(package.name).args(package.instead);
    }
    // Non-zero when one of the names is unknown, which is what we ask.
    let output = query.output().context("cannot run dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(" install ok installed")).map(str::to_owned).collect())
}

fn apt_knows(name: &str) -> Result<bool> {
    let output =
        Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C").output().context("cannot run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)")))
}

fn unknown(name: &str) -> String {
    if name == LLVM {
        format!(
            "apt does not know {name}: Debian 12 has it in bookworm-security, so that suite must stand in /etc/apt/sources.list; \
             or put a prebuilt bpf-linker on PATH ({})",
            super::linker::PREBUILT
        )
    } else {
        format!("apt does not know {name}: are the suites bookworm and bookworm-security in /etc/apt/sources.list?")
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("--quiet=2").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // A line per unpacked file tells nobody anything; what goes wrong is on standard error.
    status(command.stdout(Stdio::null()))
}

fn status(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{}: {status}", crate::cargo::readable(command));
    }
    Ok(())
}

/// Packages start nothing while this lives: invoke-rc.d and deb-systemd-invoke ask this script, and 101 means "no".
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Result<Self> {
        let created = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        match created {
            Ok(mut file) => {
                let guard = Self { ours: true };
                file.write_all(b"#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
                file.set_permissions(fs::Permissions::from_mode(0o755))?;
                Ok(guard)
            }
            // The machine has a rule of its own, and it stands.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).with_context(|| format!("cannot write {POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!(
                "setup: cannot remove {POLICY}: {error}; remove it, or services will not start after installation"
            );
        }
    }
}
