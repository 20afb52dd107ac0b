//! Which capabilities CMD keeps: none, unless `--keep-cap` names them.

use super::RunError;
use caps::{CapSet, Capability, to_canonical};

/// With one of these a process ends or reads around any enforcement in the kernel, whatever namespaces it is in.
const NEVER: [Capability; 5] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_MODULE,
];

/// These write packets past the cgroup hooks, or rebuild the network below them; a host-side device still sees all.
const NEED_DEVICE: [Capability; 2] = [Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN];

/// Capabilities that CMD keeps, as a bit mask of their numbers (include/uapi/linux/capability.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeptCaps(u64);

impl KeptCaps {
    /// Nothing is kept.
    pub const NONE: Self = Self(0);

    /// Reads the names of `--keep-cap`, in any case, with or without `CAP_`. `device` is true where the sandbox has a
    /// network namespace of its own and its host-side device was found and is enforced.
    ///
    /// # Errors
    /// A name that does not exist, that is never kept, or that needs a device where there is none.
    pub fn parse<Name: AsRef<str>>(names: &[Name], device: bool) -> Result<Self, RunError> {
        let mut kept = 0;
        for name in names.iter().map(AsRef::as_ref) {
            let capability = to_canonical(name)
                .parse::<Capability>()
                .map_err(|_unknown| RunError::UnknownCapability(name.to_owned()))?;
            if NEVER.contains(&capability) {
                return Err(RunError::ForbiddenCapability(short(capability)));
            }
            if NEED_DEVICE.contains(&capability) && !device {
                return Err(RunError::CapabilityNeedsDevice(short(capability)));
            }
            kept |= capability.bitmask();
        }
        Ok(Self(kept))
    }

    /// The bit mask.
    pub fn mask(self) -> u64 {
        self.0
    }

    /// True where nothing is kept.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names that are kept, as `--keep-cap` takes them, in the order of their numbers.
    pub fn names(self) -> Vec<String> {
        self.iter().map(short).collect()
    }

    /// True where only capabilities are kept that a host-side device holds.
    pub fn only_network(self) -> bool {
        self.iter().all(|capability| NEED_DEVICE.contains(&capability))
    }

    /// True where CMD may make packet sockets.
    pub(super) fn net_raw(self) -> bool {
        self.0 & Capability::CAP_NET_RAW.bitmask() != 0
    }

    /// True where CMD may configure networks.
    pub(super) fn net_admin(self) -> bool {
        self.0 & Capability::CAP_NET_ADMIN.bitmask() != 0
    }

    /// Refuses what this process could not hand on.
    pub(super) fn check_held(self) -> Result<(), RunError> {
        if self.is_empty() {
            return Ok(());
        }
        let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
        match self.iter().find(|capability| !held.contains(capability)) {
            Some(missing) => Err(RunError::CapabilityNotHeld(short(missing))),
            None => Ok(()),
        }
    }

    fn iter(self) -> impl Iterator<Item = Capability> {
        let mut all: Vec<_> = caps::all().into_iter().filter(|capability| self.0 & capability.bitmask() != 0).collect();
        all.sort_unstable_by_key(Capability::index);
        all.into_iter()
    }
}

fn short(capability: Capability) -> String {
    capability.to_string().trim_start_matches("CAP_").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_every_spelling() {
        let kept = KeptCaps::parse(&["net_bind_service", "CAP_CHOWN", "Sys_Nice"], false).unwrap();
        assert_eq!(kept.mask(), 1 << 10 | 1 << 0 | 1 << 23);
        assert_eq!(kept.names(), ["chown", "net_bind_service", "sys_nice"]);
        assert!(!kept.only_network());
        assert_eq!(KeptCaps::parse(&[] as &[&str], false).unwrap(), KeptCaps::NONE);
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = KeptCaps::parse(&["chown", "net_everything"], true).unwrap_err();
        assert!(matches!(error, RunError::UnknownCapability(name) if name == "net_everything"));
        assert!(KeptCaps::parse(&[""], true).is_err());
    }

    #[test]
    fn some_are_never_kept_even_with_a_device() {
        for name in ["sys_admin", "BPF", "cap_perfmon", "sys_ptrace", "sys_module"] {
            assert!(matches!(KeptCaps::parse(&[name], true), Err(RunError::ForbiddenCapability(_))), "{name}");
        }
    }

    #[test]
    fn network_capabilities_need_a_device() {
        for name in ["net_raw", "net_admin"] {
            let error = KeptCaps::parse(&[name], false).unwrap_err();
            assert!(matches!(error, RunError::CapabilityNeedsDevice(refused) if refused == name));
            let kept = KeptCaps::parse(&[name], true).unwrap();
            assert_eq!(kept.names(), [name]);
            assert!(kept.only_network());
        }
    }
}
