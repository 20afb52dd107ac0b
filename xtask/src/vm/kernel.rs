//! Debian's kernels: fetched by apt from lists of their own, unpacked below `target/kernels`, and kept there.

use crate::{cargo, invoker};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A series, and the Debian release that has it.
const SERIES: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Drivers that a guest may ask for; the others are most of a kernel's size.
const DRIVERS: [&str; 2] = ["net", "virtio"];

/// A kernel that is here.
pub(super) struct Kernel {
    /// As the caller names it: `6.1`.
    pub(super) series: String,
    /// As it names itself: `6.1.0-56-amd64`.
    pub(super) release: String,
    /// Where `boot` and `lib/modules` are.
    pub(super) directory: PathBuf,
}

impl Kernel {
    /// Fetches the kernel, unless that was done before.
    pub(super) fn get(series: &str) -> Result<Self> {
        let directory = cargo::workspace().join("target/kernels").join(series);
        let marker = directory.join("release");
        if !marker.exists() {
            fetch(series, &directory, &marker).with_context(|| {
                format!("kernel {series} cannot be had; what is unpacked of it: rm -r {}", directory.display())
            })?;
        }
        let release = fs::read_to_string(&marker).with_context(|| format!("cannot read {}", marker.display()))?;
        Ok(Self { series: series.to_owned(), release, directory })
    }

    pub(super) fn image(&self) -> PathBuf {
        self.directory.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The files of these modules and of what they need, in the order in which they are loaded.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut modprobe = invoker::command_as_caller("modprobe")?;
        modprobe.arg("--dirname").arg(&self.directory).args(["--set-version", &self.release]);
        modprobe.args(["--show-depends", "--all"]).args(names);
        let said = said(&mut modprobe)?;
        let mut files: Vec<PathBuf> = Vec::new();
        for file in said.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = PathBuf::from(file.trim());
            if !files.contains(&file) {
                files.push(file);
            }
        }
        Ok(files)
    }
}

fn fetch(series: &str, directory: &Path, marker: &Path) -> Result<()> {
    let Some((_, suite)) = SERIES.iter().find(|(name, _)| *name == series) else {
        let known: Vec<&str> = SERIES.iter().map(|(name, _)| *name).collect();
        bail!("Debian has none; one of {}", known.join(", "));
    };
    ensure!(cfg!(target_arch = "x86_64"), "the matrix boots x86-64 kernels alone");
    let apt = Apt::new(directory, suite)?;
    apt.run("apt-get", &["--quiet=2", "update"])
        .context("the package lists cannot be fetched: is the network there? then: cargo xtask vm")?;
    let depends = apt.run("apt-cache", &["depends", "linux-image-amd64"])?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("{suite}-security has no linux-image-amd64"))?;
    let release = package.strip_prefix("linux-image-").context("not the name of a kernel")?;
    ensure!(release.starts_with(&format!("{series}.")), "{suite}-security has {release}");
    println!("vm: fetching {package} into target/kernels ({suite}-security)");
    apt.run("apt-get", &["--quiet=2", "download", package])?;
    for archive in archives(directory)? {
        said(invoker::command_as_caller("dpkg-deb")?.arg("--extract").arg(&archive).arg(directory))?;
        fs::remove_file(&archive)?;
    }
    // Since Debian 13 the modules are below /usr; depmod looks in one place.
    if directory.join("usr/lib/modules").exists() {
        fs::rename(directory.join("usr/lib"), directory.join("lib"))?;
    }
    let modules = directory.join("lib/modules").join(release);
    for entry in fs::read_dir(modules.join("kernel/drivers"))? {
        let entry = entry?;
        if !DRIVERS.iter().any(|kept| entry.file_name() == *kept) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let mut depmod = invoker::command_as_caller("depmod")?;
    said(depmod.arg("--basedir").arg(directory).arg(release))?;
    fs::remove_dir_all(directory.join("apt"))?;
    // Last: whoever finds it finds all.
    fs::write(marker, release).with_context(|| format!("cannot write {}", marker.display()))
}

fn archives(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    Ok(found)
}

/// apt with one suite and lists of its own, so that the machine's lists are as they were.
struct Apt<'k> {
    directory: &'k Path,
    options: Vec<String>,
}

impl<'k> Apt<'k> {
    fn new(directory: &'k Path, suite: &str) -> Result<Self> {
        let place = directory.join("apt");
        let mut mkdir = invoker::command_as_caller("mkdir")?;
        // As the caller, or `cargo clean` could not remove it.
        said(mkdir.arg("-p").arg(place.join("lists/partial")).arg(place.join("archives/partial")))?;
        let list = place.join("sources.list");
        fs::write(&list, format!("deb [signed-by={KEYRING}] {} {suite}-security main\n", mirror()?))?;
        let options = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", place.join("lists").display()),
            format!("Dir::Cache={}", place.display()),
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { directory, options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect() })
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        said(invoker::command_as_caller(program)?.args(&self.options).args(words).current_dir(self.directory))
    }
}

/// The machine's own mirror of Debian's security suites: every release is there.
fn mirror() -> Result<String> {
    let mut targets = invoker::command_as_caller("apt-get")?;
    targets.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
    let targets = said(&mut targets).context("kernels come from Debian packages")?;
    let mut suites = targets.lines().filter_map(|line| line.split_once(' '));
    let found = suites.find(|(suite, _)| suite.ends_with("-security"));
    found.map(|(_, uri)| uri.to_owned()).context(
        "no Debian security suite in the apt sources: add `deb http://deb.debian.org/debian-security bookworm-security main` \
         to /etc/apt/sources.list",
    )
}

/// What a command that succeeds writes on its standard output.
pub(super) fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", cargo::readable(command)))?;
    ensure!(
        output.status.success(),
        "{}: {}\n{}",
        cargo::readable(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("its output is not UTF-8")
}
