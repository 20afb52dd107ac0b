//! `egressd verify`: is a sandbox really closed? Asked of the kernel, from inside.
//!
//! **How.** Two processes are made that differ in their cgroup alone: one is born in the sandbox's, one in ours. Both live in a
//! network namespace of our own, whose one device leads to another namespace of our own (`datapath::ground`). The programs of a
//! cgroup judge by cgroup and not by namespace, so those of the sandbox judge the first process with the sandbox's own maps,
//! while nothing that it sends can leave the machine. Each way out is tried by the second process first: unless its frame
//! arrives, silence means nothing ([`Outcome::NotShown`]). Then the first one tries, and what arrives has leaked.
//!
//! **Devices.** The frames that the second process sent are what the sandbox's own would be: they have its source addresses.
//! The program that is attached to the sandbox's device is run on them by BPF_PROG_TEST_RUN, in the device's place, which gives
//! its verdict and sends nothing. An ARP request of the sandbox's own, which passes every device, is the control.
//!
//! **Names.** The sandbox's listener is asked for a name that no line of the policy allows. Only a refusal by policy bears the
//! extended error of one; with it no server was asked.
//!
//! The probes' denials are the sandbox's events, as any other.

mod device;
mod names;
mod prober;
mod probes;
mod report;

pub use report::{Outcome, Proof, Report, Row, Traces};

use crate::{
    cgroup::{Cgroup, CgroupMount},
    datapath::ground::{Ground, GroundError, LED_OUT},
    policy::Mode,
    run::RunError,
    sandbox::{self, Directories, View},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use prober::Prober;
use probes::{Aim, Beneath, PROBES, Probe, Targets};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

/// What cgroups of probes are called, where the sandbox's own takes no process.
const CGROUP_PREFIX: &str = "egressd-verify";
/// Source addresses where the sandbox's device has none (RFC 5737, RFC 3849).
const OWN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xe9, 0x53, 0, 0, 0, 2);

/// Why a sandbox could not be put to the test.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The sandbox, or what is known of it.
    #[error("cannot look at the sandbox")]
    Sandbox(#[source] Box<sandbox::Error>),
    /// The namespaces of the probes.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// No process to probe with.
    #[error("cannot probe from {}", cgroup.display())]
    Prober {
        /// The cgroup that it was to be born in.
        cgroup: PathBuf,
        /// Why.
        source: Box<RunError>,
    },
    /// The process does not answer.
    #[error("the prober (process {pid}) does not answer; is its cgroup frozen?")]
    Silent {
        /// Its number.
        pid: nix::unistd::Pid,
        /// What the pipe said.
        source: io::Error,
    },
    /// No pipe, or no socket.
    #[error("cannot make a pipe or a socket; is the limit on open files too low?")]
    Pipe(#[source] io::Error),
    /// A device's program could not be run.
    #[error("cannot run the program of {device} on a frame (BPF_PROG_TEST_RUN)")]
    Device {
        /// The device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<sandbox::Error> for VerifyError {
    fn from(error: sandbox::Error) -> Self {
        Self::Sandbox(Box::new(error))
    }
}

impl VerifyError {
    /// As [`sandbox::Error::exit_code`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Sandbox(error) => error.exit_code(),
            _ => 3,
        }
    }
}

/// Puts the sandbox of a cgroup, or the only one that there is, to the test. The caller is root, and in no sandbox itself.
pub fn verify(directories: &Directories, cgroup: Option<&Path>) -> Result<Report, VerifyError> {
    let view = sandbox::view(directories, cgroup)?;
    let own = own_addresses(&view);
    let mut ground = Ground::make(&own)?;
    let targets = Targets {
        v4: free(&view, |[a, ..]| Ipv4Addr::new(203, 0, 113, a)).unwrap_or(Ipv4Addr::UNSPECIFIED),
        v6: free(&view, |[a, b, c, d]| Ipv6Addr::from([0x20, 1, 0xd, 0xb8, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 9]))
            .unwrap_or(Ipv6Addr::UNSPECIFIED),
        own: own.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }).unwrap_or(OWN_V4),
        ifindex: ground.ifindex,
        permitted: view.permitted(&own)?,
    };
    let mut rows = vec![hooks(&view)];
    let tried = at_cgroup(&view, &targets, &mut ground, &mut rows)?;
    for one in &view.devices {
        rows.extend(device::rows(&view, one, &targets, &tried.sent)?);
    }
    rows.extend(brought_along(&view));
    rows.push(names::row(&view));
    let cgroup = view.cgroup.name().to_string_lossy().into_owned();
    let fixed = PROBES.iter().filter_map(|probe| if let Aim::Fixed(ip) = probe.aim { Some(ip) } else { None });
    let traces = Traces {
        pid: tried.by,
        addresses: vec![targets.v4.into(), targets.v6.into(), LED_OUT.into()],
        fixed: fixed.collect(),
        devices: view.devices.len() as u64,
    };
    Ok(Report { sandbox: view.name, cgroup, level: view.level, rows, traces })
}

/// The addresses of the sandbox's device, so that frames are what its own would be.
fn own_addresses(view: &View) -> Vec<IpAddr> {
    let mut own = view.sources.clone();
    for fallback in [IpAddr::V4(OWN_V4), IpAddr::V6(OWN_V6)] {
        let kernel_has = fallback.is_ipv4() || Path::new("/proc/net/if_inet6").exists();
        if kernel_has && !own.iter().any(|ip| ip.is_ipv4() == fallback.is_ipv4()) {
            own.push(fallback);
        }
    }
    own
}

/// A documentation address that no line of the policy names, no name has opened, and that is not the sandbox's own.
fn free<Ip: Into<IpAddr> + Copy>(view: &View, make: impl Fn([u8; 4]) -> Ip) -> Option<Ip> {
    const ATTEMPTS: usize = 64;
    let mut candidates = std::iter::repeat_with(|| make(rand::random())).take(ATTEMPTS);
    candidates
        .find(|&ip| !view.names(ip.into()) && !view.taken.contains(&ip.into()) && !view.sources.contains(&ip.into()))
}

fn hooks(view: &View) -> Row {
    let outcome = if view.lost.is_empty() { Outcome::Contained } else { Outcome::Leaked };
    Row::shown("hooks_in_force", "cgroup", outcome, Proof::Listing).because(view.lost.join("; "))
}

/// What no probe shows: sockets that processes have from elsewhere, and rights that L1 is not for. A device judges what comes of
/// either.
fn brought_along(view: &View) -> [Row; 2] {
    let row = |technique, found: Option<String>| match found {
        None => Row::shown(technique, "cgroup", Outcome::Contained, Proof::Listing).because("no process has any"),
        Some(_) if !view.devices.is_empty() => {
            Row::told(technique, "cgroup", Outcome::NotApplicable, "the device judges what they send")
        }
        Some(why) => Row::shown(technique, "cgroup", Outcome::Leaked, Proof::Listing).because(why),
    };
    let sockets = view.foreign.as_ref().map(|(count, first)| {
        format!("{count}, first {first}: restart those processes inside; attach --strict refuses them")
    });
    let rights = view.packet_maker.map(|pid| format!("process {pid} has CAP_NET_RAW: start it without"));
    [row("sockets_from_outside", sockets), row("rights_to_packet_sockets", rights)]
}

/// What was tried at the cgroup's hooks.
struct Tried {
    /// By this process.
    by: u32,
    /// What each way out sends where nothing stops it.
    sent: Vec<(&'static str, Vec<Vec<u8>>)>,
}

/// Tries every way out at the cgroup's hooks.
fn at_cgroup(view: &View, targets: &Targets, ground: &mut Ground, rows: &mut Vec<Row>) -> Result<Tried, VerifyError> {
    let open = || socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let foreign = ground.netns.enter(open).map_err(sandbox::Error::from)?;
    let foreign = foreign.map_err(|source| VerifyError::Pipe(source.into()))?;
    let start = |cgroup: &Cgroup| Prober::start(cgroup, ground.netns.as_fd(), targets, foreign.as_fd());
    let mount = CgroupMount::find().map_err(sandbox::Error::from)?;
    let outside = start(&Cgroup::own(&mount).map_err(sandbox::Error::from)?)?;
    // Before its prober is gone, the cgroup that was made for it cannot be.
    let mut child = None;
    let inside = match start(&view.cgroup) {
        Err(error) if error.is_inner_cgroup() => {
            let made = Cgroup::create_child(&view.cgroup, CGROUP_PREFIX).map_err(sandbox::Error::from)?;
            start(&child.insert(Made(made)).0)
        }
        started => started,
    }?;
    ground.arrived()?;
    let mut sent = Vec::new();
    for (number, probe) in (0..).zip(PROBES) {
        if let Some(why) = not_applicable(view, targets, probe.aim) {
            rows.push(Row::told(probe.technique, "cgroup", Outcome::NotApplicable, why));
            continue;
        }
        let said = outside.attempt(number)?;
        let frames = ground.arrived()?;
        if frames.is_empty() {
            rows.push(silent_control(probe, said));
            continue;
        }
        let said = inside.attempt(number)?;
        let leaked = !ground.arrived()?.is_empty();
        rows.extend(judge(view, probe, leaked, said));
        if probe.aim != Aim::Permitted {
            sent.push((probe.technique, frames));
        }
    }
    Ok(Tried { by: inside.pid(), sent })
}

/// A cgroup of our own below the sandbox's.
struct Made(Cgroup);

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            tracing::warn!(%error, "the cgroup of the prober stays");
        }
    }
}

fn not_applicable(view: &View, targets: &Targets, aim: Aim) -> Option<String> {
    let everywhere = || Some("the policy permits every documentation address".to_owned());
    match aim {
        Aim::V4 if targets.v4.is_unspecified() => everywhere(),
        Aim::V6 if targets.v6.is_unspecified() => everywhere(),
        Aim::Fixed(ip) if view.names(ip) => Some(format!("the policy permits {ip}")),
        Aim::Permitted if targets.permitted.is_none() => Some("the policy permits no address by number".to_owned()),
        _ => None,
    }
}

/// What it means that the twin did not arrive.
fn silent_control(probe: &Probe, said: Result<(), Errno>) -> Row {
    let absent = |errno: &Errno| {
        matches!(errno, Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ESOCKTNOSUPPORT | Errno::ENOPROTOOPT)
    };
    match said {
        Err(errno) if absent(&errno) => {
            Row::told(probe.technique, "cgroup", Outcome::NotApplicable, "this kernel has no such socket")
        }
        said => {
            let why = said.err().map_or_else(String::new, |errno| format!(" ({errno})"));
            let detail = format!("the same from outside of the sandbox did not arrive either{why}");
            Row::told(probe.technique, "cgroup", Outcome::NotShown, detail)
        }
    }
}

impl Beneath {
    /// True where hooks of the calling task hold it.
    const fn is_judged(self, view: &View) -> bool {
        match self {
            Self::Foreign => view.judges_foreign,
            Self::Raw => view.judges_families,
        }
    }
}

/// The row of a probe whose twin arrived. None where a device has to stop it, and there is one.
fn judge(view: &View, probe: &Probe, leaked: bool, said: Result<(), Errno>) -> Option<Row> {
    let shown = |outcome| Row::shown(probe.technique, "cgroup", outcome, Proof::Sink);
    Some(match (probe.aim, probe.beneath, leaked) {
        (Aim::Permitted, _, true) => shown(Outcome::Permitted),
        (Aim::Permitted, ..) => shown(Outcome::NotShown).because("nothing passes, so silence proves nothing"),
        (_, Some(_), true) if !view.devices.is_empty() => return None,
        (_, Some(beneath), true) if !beneath.is_judged(view) => {
            Row::told(probe.technique, "cgroup", Outcome::NotApplicable, beneath.why())
        }
        (_, _, true) if view.policy.mode == Mode::Observe => shown(Outcome::Leaked).because("the policy only observes"),
        (_, _, true) => shown(Outcome::Leaked),
        (_, _, false) => match said {
            // Refused, sent into nothing, or led to the name service, of which there is none here.
            Ok(()) | Err(Errno::EPERM | Errno::EACCES | Errno::ECONNREFUSED) => shown(Outcome::Contained),
            Err(errno) => shown(Outcome::NotShown).because(format!("it could not be tried inside ({errno})")),
        },
    })
}
