//! What a sandbox stands on: a cgroup, or a guest's device.

use super::error::Error;
use crate::{
    cgroup::{Cgroup, CgroupMount},
    datapath::{
        device::{self, Device},
        netns::Netns,
    },
    policy::{Local, Policy, Unix},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// How a caller names a sandbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Which {
    /// By its cgroup: a path below the mount, or as the kernel names it.
    Cgroup(PathBuf),
    /// By the device of its guest.
    Device(String),
}

impl From<&Path> for Which {
    fn from(cgroup: &Path) -> Self {
        Self::Cgroup(cgroup.to_owned())
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => path.display().fmt(f),
            Self::Device(name) => write!(f, "device {name}"),
        }
    }
}

impl Which {
    /// What to type for it.
    pub fn flag(&self) -> String {
        match self {
            Self::Cgroup(path) => format!("--cgroup {}", path.display()),
            Self::Device(name) => format!("--device {name}"),
        }
    }
}

/// What a sandbox stands on, as its record has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Target {
    Cgroup {
        /// Path below the mount.
        name: PathBuf,
        /// Where it is mounted.
        directory: PathBuf,
        /// Inode of its directory.
        id: u64,
    },
    Guest {
        device: String,
        ifindex: u32,
        /// What it may send from.
        addresses: BTreeSet<IpAddr>,
    },
}

impl Target {
    pub(super) fn which(&self) -> Which {
        match self {
            Self::Cgroup { directory, .. } => Which::Cgroup(directory.clone()),
            Self::Guest { device, .. } => Which::Device(device.clone()),
        }
    }

    pub(super) fn is_guest(&self) -> bool {
        matches!(self, Self::Guest { .. })
    }

    /// Path of the cgroup below the mount, for events and `status`.
    pub(super) fn cgroup(&self) -> Option<String> {
        match self {
            Self::Cgroup { name, .. } => Some(name.to_string_lossy().into_owned()),
            Self::Guest { .. } => None,
        }
    }

    /// The cgroup's inode, while that very cgroup is there: one that was made at its path since is another.
    pub(super) fn living_cgroup(&self) -> Option<u64> {
        match self {
            Self::Cgroup { directory, id, .. } => {
                std::fs::metadata(directory).is_ok_and(|found| found.ino() == *id).then_some(*id)
            }
            Self::Guest { .. } => None,
        }
    }

    /// True where the caller means this one, however it was written.
    pub(super) fn is(&self, which: &Which) -> bool {
        match (self, which) {
            (Self::Cgroup { name, directory, .. }, Which::Cgroup(asked)) => {
                asked == directory || asked == name || name.strip_prefix("/").is_ok_and(|bare| bare == asked)
            }
            (Self::Guest { device, .. }, Which::Device(asked)) => device == asked,
            _ => false,
        }
    }
}

/// The same, open.
pub(super) enum Opened {
    Cgroup(Cgroup),
    Guest(Guest),
}

/// A guest's device, and what may come from it.
pub(super) struct Guest {
    pub(super) device: Device,
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Opened {
    /// That of a record, if it is still there.
    pub(super) fn again(target: &Target) -> Result<Option<Self>, Error> {
        match target {
            Target::Cgroup { directory, id, .. } => {
                let cgroup = Cgroup::open(&CgroupMount::find()?, directory)?;
                Ok((cgroup.id() == *id).then_some(Self::Cgroup(cgroup)))
            }
            Target::Guest { ifindex, addresses, .. } => {
                let device = device::by_index(*ifindex)?;
                Ok(device.map(|device| Self::Guest(Guest { device, addresses: addresses.clone() })))
            }
        }
    }

    pub(super) fn target(&self) -> Target {
        match self {
            Self::Cgroup(cgroup) => {
                Target::Cgroup { name: cgroup.name().to_owned(), directory: cgroup.path().to_owned(), id: cgroup.id() }
            }
            Self::Guest(Guest { device, addresses }) => {
                Target::Guest { device: device.name.clone(), ifindex: device.ifindex, addresses: addresses.clone() }
            }
        }
    }

    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup),
            Self::Guest(_) => None,
        }
    }

    pub(super) fn guest(&self) -> Option<&Guest> {
        match self {
            Self::Cgroup(_) => None,
            Self::Guest(guest) => Some(guest),
        }
    }

    /// Unique on the host, and told from those of before: policy names may repeat, this does not.
    pub(super) fn number(&self, host: &Netns) -> Result<String, Error> {
        Ok(match self {
            Self::Cgroup(cgroup) => cgroup.id().to_string(),
            Self::Guest(guest) => format!("{}-{}", host.cookie()?, guest.device.ifindex),
        })
    }
}

impl Guest {
    pub(super) fn open(device: &str, addresses: &BTreeSet<IpAddr>) -> Result<Self, Error> {
        if addresses.is_empty() {
            return Err(Error::NoGuestAddress { device: device.to_owned() });
        }
        if let Some(address) = addresses.iter().find(|address| !is_ones_own(**address)) {
            return Err(Error::GuestAddress { address: *address });
        }
        let device = device::by_name(device)?;
        Ok(Self { device, addresses: addresses.clone() })
    }

    /// What is said of the inside of a sandbox, nobody judges in a guest.
    pub(super) fn refuse(policy: &Policy) -> Result<(), Error> {
        let open = |local: &Local| matches!(local, Local::Open);
        let key = match &policy.allow {
            allow if !open(&allow.loopback) => "allow.loopback",
            allow if allow.own.as_ref().is_some_and(|own| !open(own)) => "allow.self",
            allow if allow.unix != Unix::Any => "allow.unix",
            _ => return Ok(()),
        };
        Err(Error::NotForGuests { key })
    }
}

/// True for an address that a machine can send from, and be answered at.
fn is_ones_own(address: IpAddr) -> bool {
    let plain = match address {
        IpAddr::V4(v4) => !v4.is_broadcast() && v4.octets()[0] != 0,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none(),
    };
    plain && !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_addresses_that_can_be_sent_from() {
        for own in ["192.0.2.2", "169.254.7.7", "2001:db8::2", "fe80::2"] {
            assert!(is_ones_own(own.parse().unwrap()), "{own}");
        }
        for other in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:192.0.2.2",
        ] {
            assert!(!is_ones_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn keys_about_the_inside_are_not_for_guests() {
        let refused = |lines: &str| {
            Guest::refuse(&Policy::from_toml(&format!("version = 1\n[allow]\n{lines}")).unwrap())
                .map_err(|error| error.to_string())
        };
        assert_eq!(refused("loopback = true\nself = true"), Ok(()));
        for (lines, key) in [
            ("loopback = false", "allow.loopback"),
            ("loopback = [80]", "allow.loopback"),
            ("self = false", "allow.self"),
            ("unix = \"none\"", "allow.unix"),
        ] {
            assert!(refused(lines).is_err_and(|error| error.contains(key)), "{lines}");
        }
    }

    #[test]
    fn a_sandbox_is_known_by_what_it_stands_on() {
        let guest = Target::Guest { device: "tap0".into(), ifindex: 7, addresses: BTreeSet::new() };
        assert!(guest.is(&Which::Device("tap0".into())) && !guest.is(&Which::Device("tap1".into())));
        assert!(!guest.is(&Which::Cgroup("tap0".into())));
        let cgroup = Target::Cgroup { name: "/job".into(), directory: "/mnt/job".into(), id: 1 };
        assert!(["/job", "job", "/mnt/job"].iter().all(|path| cgroup.is(&Which::from(Path::new(path)))));
        assert!(!cgroup.is(&Which::Device("job".into())));
        assert_eq!((guest.which().flag(), cgroup.which().flag()), ("--device tap0".into(), "--cgroup /mnt/job".into()));
    }
}
