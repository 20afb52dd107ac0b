//! Which threat level a sandbox reaches, and what is missing for more. The promises of each level stand in SECURITY.md.

use super::{capability::KeptCaps, identity::Identity};
use std::{fmt, path::PathBuf};

/// What is promised about a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// Nothing: the sandbox can switch enforcement off, or write around it.
    None,
    /// No packet of its sockets reaches a destination that the policy does not name.
    L1,
    /// The same for packets written below IP, by CAP_NET_RAW or CAP_NET_ADMIN in an own network namespace.
    L2,
}

/// What the level is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Footing<'a> {
    /// As whom CMD runs.
    pub identity: &'a Identity,
    /// What it keeps.
    pub caps: KeptCaps,
    /// It has a network namespace of its own whose host-side device is enforced.
    pub device: bool,
    /// An ancestor cgroup that it may leave through ([`crate::cgroup::Cgroup::delegated_to`]).
    pub delegated: Option<&'a PathBuf>,
}

/// Why a level is not reached, or is reached with an exception.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// uid 0 in the host's user and mount namespaces.
    Uid0,
    /// Capabilities beyond those that a device holds.
    Capabilities(Vec<String>),
    /// A network capability without an enforced device.
    CapabilitiesWithoutDevice(Vec<String>),
    /// A cgroup above belongs to CMD's user.
    Delegated(PathBuf),
    /// For L2: no own network namespace with an enforced host-side device.
    Device,
    /// No pid namespace of its own: processes of the same user can be seen, signalled and traced. One that is traced makes calls
    /// that no filter of the sandbox judges.
    PidNamespace,
    /// No mount namespace of its own: sockets of engines and resolvers are not masked.
    MountNamespace,
    /// The caller's session keyring: closed to CMD's own calls, but file systems (AFS, NFS, CIFS) find the keys in it.
    Keyring,
}

/// A level, with all that stands between it and more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reached {
    /// What is promised.
    pub level: Level,
    /// Reasons against a level or the next one, and exceptions to the one that is reached.
    pub missing: Vec<Missing>,
}

/// Judges a sandbox that [`super::spawn`] makes.
pub fn level(footing: Footing<'_>) -> Reached {
    let mut missing = Vec::new();
    if footing.identity.uid == 0 {
        missing.push(Missing::Uid0);
    }
    if !footing.caps.only_network() {
        missing.push(Missing::Capabilities(footing.caps.names()));
    } else if !footing.caps.is_empty() && !footing.device {
        missing.push(Missing::CapabilitiesWithoutDevice(footing.caps.names()));
    }
    if let Some(ancestor) = footing.delegated {
        missing.push(Missing::Delegated(ancestor.clone()));
    }
    let level = match (missing.is_empty(), footing.device) {
        (false, _) => Level::None,
        (true, true) => Level::L2,
        (true, false) => Level::L1,
    };
    if !footing.device {
        missing.push(Missing::Device);
    }
    // None of these is made yet, so each is an exception to every level.
    missing.extend([Missing::PidNamespace, Missing::MountNamespace, Missing::Keyring]);
    Reached { level, missing }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::L1 => "L1",
            Self::L2 => "L2",
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid0 => f.write_str(
                "uid 0 in the host's user and mount namespaces can leave the cgroup and remove pins; use --user NAME",
            ),
            Self::Capabilities(names) => {
                write!(f, "capabilities are kept that no filter holds; leave out --keep-cap {}", names.join(","))
            }
            Self::CapabilitiesWithoutDevice(names) => {
                write!(
                    f,
                    "{} writes packets past the cgroup hooks; use --netns with an enforced device",
                    names.join(",")
                )
            }
            Self::Delegated(path) => write!(
                f,
                "cgroup {} belongs to the command's user, who can move out of the sandbox; use --cgroup with a parent of root's",
                path.display()
            ),
            Self::Device => f.write_str("for L2: a network namespace of its own (--netns) with an enforced device"),
            Self::PidNamespace => {
                f.write_str("no pid namespace: processes of the same user outside can be signalled and traced")
            }
            Self::MountNamespace => {
                f.write_str("no mount namespace: sockets of container engines and resolvers are not masked")
            }
            Self::Keyring => {
                f.write_str("file systems (AFS, NFS, CIFS) still find keys in the caller's session keyring")
            }
        }
    }
}

/// One line: the level and everything that is missing.
impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {}", self.level)?;
        for (at, missing) in self.missing.iter().enumerate() {
            write!(f, "{} {missing}", if at == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(uid: u32, caps: &[&str], device: bool, delegated: Option<&PathBuf>) -> Reached {
        let identity = Identity { uid, gid: 1, groups: vec![], home: "/".into(), name: "ann".into(), switched: false };
        // Parsed as if there were a device, so that a caller's mistake can be judged too.
        let caps = KeptCaps::parse(caps, true).unwrap();
        level(Footing { identity: &identity, caps, device, delegated })
    }

    #[test]
    fn a_plain_user_reaches_l1_and_with_a_device_l2() {
        let plain = reached(1000, &[], false, None);
        assert_eq!(plain.level, Level::L1);
        assert!(plain.missing.contains(&Missing::Device));
        let device = reached(1000, &[], true, None);
        assert_eq!(device.level, Level::L2);
        assert!(!device.missing.contains(&Missing::Device));
        assert_eq!(reached(1000, &["net_raw", "net_admin"], true, None).level, Level::L2);
    }

    #[test]
    fn uid_0_is_no_level_and_the_text_says_so() {
        let root = reached(0, &[], true, None);
        assert_eq!(root.level, Level::None);
        let text = root.to_string();
        assert!(text.starts_with("level none; uid 0 in the host's user and mount namespaces"), "{text}");
        assert!(text.contains("--user"), "{text}");
    }

    #[test]
    fn other_capabilities_and_a_delegated_parent_are_no_level() {
        assert_eq!(reached(1000, &["chown"], true, None).level, Level::None);
        assert_eq!(reached(1000, &["net_raw"], false, None).level, Level::None);
        let parent = PathBuf::from("/sys/fs/cgroup/user.slice/ann");
        let delegated = reached(1000, &[], true, Some(&parent));
        assert_eq!(delegated.level, Level::None);
        assert!(delegated.to_string().contains("user.slice/ann"));
    }

    #[test]
    fn what_is_not_built_is_named_at_every_level() {
        for missing in [Missing::PidNamespace, Missing::MountNamespace, Missing::Keyring] {
            assert!(reached(1000, &[], true, None).missing.contains(&missing));
        }
    }
}
