//! One sandbox: attach, update, events, detach.

use crate::{
    observe::{Events, counters::Totals, event::Verdict},
    policy::{Destination, Policy, PolicyError},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

/// Where egressd keeps what it must find again. Two instances with different directories never meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directories {
    /// Events and names of sandboxes.
    pub state: PathBuf,
    /// Pinned links and maps: a bpffs of its own.
    pub pin: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        Self { state: "/run/egressd".into(), pin: "/run/egressd/bpf".into() }
    }
}

/// A promise of security.md.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Level {
    /// Unprivileged code in its cgroup.
    L1,
    /// Root in its own network namespace.
    L2,
    /// A guest kernel or a user-space stack.
    L3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
        })
    }
}

/// A level that does not exist.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no level {0:?}; levels are L1, L2 and L3")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        match text {
            "L1" => Ok(Self::L1),
            "L2" => Ok(Self::L2),
            "L3" => Ok(Self::L3),
            _ => Err(UnknownLevel(text.to_owned())),
        }
    }
}

/// The level that was reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reached {
    /// `None`: no promise holds.
    pub level: Option<Level>,
    /// In words: "L1, minus same-user processes".
    pub text: String,
    /// What the next level needs.
    pub missing: Vec<String>,
}

/// What can go wrong, by stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The kernel half is not there.
    #[error("{what} is not in this build")]
    NotBuilt {
        /// What was asked for.
        what: &'static str,
    },
}

impl Error {
    /// Exit code of every verb but `run`: 2 policy, 3 needs, 4 permission, 5 enforcement lost.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Policy(_) => 2,
            Self::NotBuilt { .. } => 3,
        }
    }
}

const NOT_BUILT: Error = Error::NotBuilt { what: "enforcement" };

/// Collects what a sandbox is made of.
#[derive(Debug)]
pub struct Builder {
    policy: Policy,
    cgroup: Option<PathBuf>,
    netns: Option<PathBuf>,
    device: Option<String>,
    directories: Directories,
    strict: bool,
    require: Option<Level>,
}

impl Builder {
    /// Directory of the cgroup.
    #[must_use]
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Its network namespace where that is not egressd's own: a name of `ip netns`, or a path.
    #[must_use]
    pub fn netns(mut self, name_or_path: impl Into<PathBuf>) -> Self {
        self.netns = Some(name_or_path.into());
        self
    }

    /// The host side of its device.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// Where to keep pins and events.
    #[must_use]
    pub fn dirs(mut self, directories: Directories) -> Self {
        self.directories = directories;
        self
    }

    /// Refuse where the cgroup holds sockets or processes that the hooks cannot judge.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Refuse below this level.
    #[must_use]
    pub fn require(mut self, level: Level) -> Self {
        self.require = Some(level);
        self
    }

    /// Closed from here on. DNS is answered when this returns.
    pub fn attach(self) -> Result<Sandbox, Error> {
        Err(NOT_BUILT)
    }
}

/// A sandbox under enforcement.
#[derive(Debug)]
pub struct Sandbox(());

/// What became of a sandbox that its owner let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// Its cgroup was empty: hooks and pins are gone.
    Detached,
    /// Processes live in it: it stays closed, without anybody who answers DNS.
    Enforced,
}

impl Sandbox {
    /// Starts to describe a sandbox.
    pub fn builder(policy: Policy) -> Builder {
        Builder {
            policy,
            cgroup: None,
            netns: None,
            device: None,
            directories: Directories::default(),
            strict: false,
            require: None,
        }
    }

    /// Takes over a pinned sandbox.
    pub fn adopt(name: &str) -> Result<Self, Error> {
        let _ = name;
        Err(NOT_BUILT)
    }

    /// Its name, unique on the host.
    pub fn name(&self) -> &str {
        ""
    }

    /// Host side of its device, where one was found or given.
    pub fn device(&self) -> Option<&str> {
        None
    }

    /// Its network namespace, for whoever starts processes in it; `None` = egressd's own.
    pub fn netns(&self) -> Result<Option<OwnedFd>, Error> {
        Err(NOT_BUILT)
    }

    /// What is promised.
    pub fn level(&self) -> Reached {
        Reached { level: None, text: "none".to_owned(), missing: Vec::new() }
    }

    /// Events from now on; they end with the sandbox, after what the kernel reported last.
    pub fn events(&self) -> Events {
        crate::observe::EventSink::new().subscribe(1)
    }

    /// In force when it returns.
    pub fn update(&mut self, policy: Policy) -> Result<(), Error> {
        let _ = policy;
        Err(NOT_BUILT)
    }

    /// Waits until every `proxy` of the policy takes a connection, from the sandbox's network namespace.
    pub fn await_proxies(&self, limit: Duration) -> Result<(), Error> {
        let _ = limit;
        Err(NOT_BUILT)
    }

    /// Drop no longer detaches.
    pub fn pin(&mut self, name: &str) -> Result<(), Error> {
        let _ = name;
        Err(NOT_BUILT)
    }

    /// Detaches if the cgroup is empty, leaves it closed otherwise.
    pub fn release(self) -> Result<Released, Error> {
        Err(NOT_BUILT)
    }

    /// Opens the cgroup.
    pub fn detach(self) -> Result<(), Error> {
        Err(NOT_BUILT)
    }
}

/// One hook of a sandbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HookStatus {
    /// A word of `observe::names`.
    pub hook: String,
    /// Whether the kernel has it attached now.
    pub attached: bool,
}

/// Fill of one map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapUse {
    /// Its name.
    pub map: String,
    /// Entries of this sandbox.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// One sandbox as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the sandbox.
    pub sandbox: String,
    /// `name` of the policy.
    pub policy: Option<String>,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Path of the cgroup below the mount.
    pub cgroup: Option<String>,
    /// Device.
    pub device: Option<String>,
    /// True where every hook that the policy needs is attached.
    pub in_force: bool,
    /// Generation of the policy.
    pub generation: u64,
    /// What is promised.
    pub level: Reached,
    /// Process that answers DNS; none where it is gone.
    pub agent_pid: Option<u32>,
    /// Hooks.
    pub hooks: Vec<HookStatus>,
    /// Maps.
    pub maps: Vec<MapUse>,
    /// Totals.
    pub counters: Totals,
}

/// The sandboxes below these directories.
pub fn list(directories: &Directories) -> Result<Vec<Status>, Error> {
    let _ = directories;
    Err(NOT_BUILT)
}

/// Opens the sandbox of a cgroup; a populated one only with `force`.
pub fn detach(directories: &Directories, cgroup: &Path, force: bool) -> Result<(), Error> {
    let _ = (directories, cgroup, force);
    Err(NOT_BUILT)
}

/// What holds for one address of a destination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// As asked, with the port and protocol that this is about.
    pub destination: String,
    /// The address; none where a name has no permit now.
    pub address: Option<IpAddr>,
    /// Allowed or denied.
    pub verdict: Verdict,
    /// A word of `observe::names`.
    pub reason: String,
    /// The policy line.
    pub rule: Option<String>,
    /// When the permit ends; none where it does not.
    #[serde(with = "humantime_option")]
    pub expires: Option<SystemTime>,
    /// Other names that share the address.
    pub names: Vec<String>,
}

mod humantime_option {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use std::time::SystemTime;

    #[expect(clippy::ref_option, reason = "the form that serde asks for")]
    pub(super) fn serialize<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| humantime::format_rfc3339_millis(time).to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| humantime::parse_rfc3339(&text).map_err(D::Error::custom)).transpose()
    }
}

/// What holds for a destination in the sandbox of a cgroup, or in the only one that there is.
pub fn explain(
    directories: &Directories,
    cgroup: Option<&Path>,
    dest: &Destination,
) -> Result<Vec<Explanation>, Error> {
    let _ = (directories, cgroup, dest);
    Err(NOT_BUILT)
}

/// The event files that exist: of one sandbox (an error where there is none), or of all.
pub fn event_files(directories: &Directories, cgroup: Option<&Path>) -> Result<Vec<PathBuf>, Error> {
    let _ = (directories, cgroup);
    Err(NOT_BUILT)
}

/// Compiles without touching the kernel.
pub fn check(policy: &Policy) -> Result<(), Error> {
    let _ = policy;
    Ok(())
}

/// What this binary is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Build {
    /// Version.
    pub version: &'static str,
    /// Git revision.
    pub revision: &'static str,
    /// Whether the tree had changes.
    pub dirty: bool,
    /// Hash of the BPF object.
    pub object: String,
    /// Version of the ABI between the halves.
    pub abi: u32,
}

/// What this binary is made of.
pub fn build() -> Build {
    Build { version: env!("CARGO_PKG_VERSION"), revision: "unknown", dirty: false, object: "none".to_owned(), abi: 0 }
}

/// What a hook needs of the host.
pub mod needs {
    use serde::{Serialize, Serializer, ser::SerializeStruct as _};

    /// One requirement.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct Need {
        /// What needs it.
        pub hook: &'static str,
        /// First kernel that has it.
        pub kernel: &'static str,
        /// What it stops.
        pub contains: &'static str,
        /// Whether this host has it.
        pub present: Present,
        /// What to do where it has not.
        pub fix: String,
    }

    /// Whether a host has something.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub enum Present {
        /// Yes.
        Yes,
        /// No.
        No,
        /// It could not be looked at, for this reason.
        Unknown(String),
    }

    impl Serialize for Need {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut need = serializer.serialize_struct("Need", 6)?;
            need.serialize_field("hook", self.hook)?;
            need.serialize_field("kernel", self.kernel)?;
            need.serialize_field("contains", self.contains)?;
            let (present, why) = match &self.present {
                Present::Yes => ("yes", None),
                Present::No => ("no", None),
                Present::Unknown(why) => ("unknown", Some(why)),
            };
            need.serialize_field("present", present)?;
            need.serialize_field("why", &why)?;
            need.serialize_field("fix", &self.fix)?;
            need.end()
        }
    }

    /// Looks at this host.
    pub fn probe() -> Vec<Need> {
        Vec::new()
    }
}
