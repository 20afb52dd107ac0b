//! What CMD leaves of the level that its sandbox reaches.

use super::{capability::KeptCaps, identity::Identity, shares::Shares};
use crate::level::{Level, Reached};
use std::{fmt, path::PathBuf};

/// What the level is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Footing<'a> {
    /// As whom CMD runs.
    pub identity: &'a Identity,
    /// What it keeps.
    pub caps: KeptCaps,
    /// An ancestor cgroup that it may leave through ([`crate::cgroup::Cgroup::delegated_to`]).
    pub delegated: Option<&'a PathBuf>,
    /// What it has not of its own.
    pub shares: Shares,
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
    /// CAP_NET_ADMIN of the host's user namespace: `run` makes none for CMD.
    NetAdmin,
    /// A cgroup above belongs to CMD's user.
    Delegated(PathBuf),
    /// No pid namespace of its own: processes of the same user can be seen, signalled and traced. One that is traced makes calls
    /// that no filter of the sandbox judges.
    PidNamespace,
    /// No mount namespace of its own: sockets of engines and resolvers are not covered.
    MountNamespace,
}

/// Judges what [`super::spawn`] makes in a sandbox that reaches that much.
pub fn level(sandbox: Reached, footing: Footing<'_>) -> Reached {
    let device = sandbox.level >= Some(Level::L2);
    let mut against = Vec::new();
    // The sandbox may have been told already.
    if footing.identity.uid == 0 && sandbox.level.is_some() {
        against.push(Missing::Uid0);
    }
    if !footing.caps.only_network() {
        against.push(Missing::Capabilities(footing.caps.names()));
    } else if !footing.caps.is_empty() && !device {
        against.push(Missing::CapabilitiesWithoutDevice(footing.caps.names()));
    }
    if footing.caps.net_admin() {
        against.push(Missing::NetAdmin);
    }
    if let Some(ancestor) = footing.delegated {
        against.push(Missing::Delegated(ancestor.clone()));
    }
    let mut reached = against.into_iter().rev().fold(sandbox, |reached, why| reached.void(why.to_string()));
    if !footing.shares.own_pids() {
        reached = reached.minus("same-user processes", Missing::PidNamespace.to_string());
    }
    if !footing.shares.own_mounts() {
        reached = reached.minus("sockets of engines and resolvers", Missing::MountNamespace.to_string());
    }
    reached
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
            // `rtnl_newlink` in net/core/rtnetlink.c asks for the capability over the namespace in which the device is made.
            Self::NetAdmin => f.write_str(
                "net_admin of the host's user namespace makes devices in the host's network namespace (IFLA_TARGET_NETNSID); leave out --keep-cap net_admin",
            ),
            Self::Delegated(path) => write!(
                f,
                "cgroup {} belongs to the command's user, who can move out of the sandbox; use --cgroup with a parent of root's",
                path.display()
            ),
            Self::PidNamespace => {
                f.write_str("processes are shared: those of the same user outside can be signalled and traced; leave out --share")
            }
            Self::MountNamespace => {
                f.write_str("mounts are shared: sockets of container engines and resolvers are not covered; leave out --share mounts")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(uid: u32, caps: &[&str], device: bool, delegated: Option<&PathBuf>) -> Reached {
        sharing(Shares::default(), uid, caps, device, delegated)
    }

    fn sharing(shares: Shares, uid: u32, caps: &[&str], device: bool, delegated: Option<&PathBuf>) -> Reached {
        let identity = Identity { uid, gid: 1, groups: vec![], home: "/".into(), name: "ann".into(), switched: false };
        // Parsed as if there were a device, so that a caller's mistake can be judged too.
        let caps = KeptCaps::parse(caps, true).unwrap();
        let found = if device { Level::L2 } else { Level::L1 };
        let sandbox =
            Reached { level: Some(found), text: found.to_string(), missing: vec!["of the sandbox".to_owned()] };
        level(sandbox, Footing { identity: &identity, caps, delegated, shares })
    }

    #[test]
    fn a_plain_user_leaves_the_level_as_it_is() {
        assert_eq!(reached(1000, &[], false, None).text, "L1");
        assert_eq!(reached(1000, &[], true, None).level, Some(Level::L2));
        assert_eq!(reached(1000, &["net_raw"], true, None).level, Some(Level::L2));
    }

    /// It was L2 once. But a device that is made on the host's side from inside is followed, not foreseen.
    #[test]
    fn net_admin_without_a_user_namespace_of_its_own_is_no_level() {
        for caps in [&["net_admin"][..], &["net_raw", "net_admin"]] {
            let reached = reached(1000, caps, true, None);
            assert_eq!((reached.level, reached.text.as_str()), (None, "none"));
            assert!(reached.missing[0].contains("IFLA_TARGET_NETNSID"), "{reached:?}");
        }
    }

    #[test]
    fn uid_0_is_no_level_and_the_text_says_so_once() {
        let root = reached(0, &[], true, None);
        assert_eq!((root.level, root.text.as_str()), (None, "none"));
        assert!(root.missing[0].starts_with("uid 0 in the host's user and mount namespaces"), "{root:?}");
        assert!(root.missing[0].contains("--user"), "{root:?}");
        let identity =
            Identity { uid: 0, gid: 0, groups: vec![], home: "/".into(), name: "root".into(), switched: false };
        let caps = KeptCaps::parse::<&str>(&[], false).unwrap();
        let told = Reached { level: None, text: "none".to_owned(), missing: vec!["uid 0".to_owned()] };
        let told = level(told, Footing { identity: &identity, caps, delegated: None, shares: Shares::default() });
        assert_eq!(told.missing.iter().filter(|missing| missing.contains("uid 0")).count(), 1, "{told:?}");
    }

    #[test]
    fn other_capabilities_and_a_delegated_parent_are_no_level() {
        assert_eq!(reached(1000, &["chown"], true, None).level, None);
        assert_eq!(reached(1000, &["net_raw"], false, None).level, None);
        let parent = PathBuf::from("/sys/fs/cgroup/user.slice/ann");
        let delegated = reached(1000, &[], true, Some(&parent));
        assert_eq!(delegated.level, None);
        assert!(delegated.missing[0].contains("user.slice/ann"), "{delegated:?}");
    }

    #[test]
    fn what_is_shared_is_an_exception_that_the_text_names() {
        let shared = |pids, mounts| sharing(Shares { pids, mounts }, 1000, &[], true, None);
        assert_eq!(
            (shared(false, false).text.as_str(), shared(false, false).missing),
            ("L2", vec!["of the sandbox".into()])
        );
        let pids = shared(true, false);
        assert_eq!((pids.level, pids.text.as_str()), (Some(Level::L2), "L2, minus same-user processes"));
        // The host's /proc shows the host's processes.
        let mounts = shared(false, true);
        assert_eq!(mounts.text, "L2, minus same-user processes, minus sockets of engines and resolvers");
        assert_eq!(mounts.missing.len(), 3, "{mounts:?}");
        let root = sharing(Shares { pids: true, mounts: true }, 0, &[], true, None);
        assert_eq!((root.text.as_str(), root.missing.len()), ("none", 4), "{root:?}");
    }
}
