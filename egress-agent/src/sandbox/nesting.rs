//! Where no sandbox can be made, because of one that is there or of where egressd is.

use super::{
    Directories,
    error::Error,
    record::Record,
    sharing,
    target::{Opened, Target},
};
use crate::datapath::bpffs;

/// Sandboxes do not nest: an outer one's hooks would judge the inner one's redirected queries. The one that stands here already may
/// be taken over where nobody serves it.
pub(super) fn refuse_nesting(directories: &Directories, on: &Opened, host_netns: u64) -> Result<Option<Record>, Error> {
    for record in Record::all(directories)? {
        let (name, directory) = match (&record.target, on) {
            (Target::Cgroup { id, .. }, Opened::Cgroup(cgroup)) if *id == cgroup.id() && record.is_left() => {
                return Ok(Some(record));
            }
            (Target::Cgroup { name, directory, .. }, Opened::Cgroup(_)) => (name, directory),
            (Target::Guest { ifindex, .. }, Opened::Guest(guest))
                if *ifindex == guest.device.ifindex && record.host_netns == host_netns =>
            {
                if record.is_left() {
                    return Ok(Some(record));
                }
                let (device, which) = (guest.device.name.clone(), record.target.which());
                return Err(Error::DeviceTaken { device, name: record.name, which, why: sharing::GUESTS });
            }
            // Whose a device is, is asked where it gets its programs.
            _ => continue,
        };
        let Some(cgroup) = on.cgroup() else { continue };
        let relation = if name == cgroup.name() {
            "the cgroup of"
        } else if cgroup.name().starts_with(name) {
            "below"
        } else if name.starts_with(cgroup.name()) {
            "above"
        } else {
            continue;
        };
        return Err(Error::Nested {
            cgroup: cgroup.path().to_owned(),
            relation,
            other: directory.clone(),
            name: record.name,
        });
    }
    Ok(None)
}

/// Pins in a mount namespace that ends with its processes would end with them.
pub(super) fn refuse_transient_mounts() -> Result<(), Error> {
    if bpffs::is_init_mount_namespace()? { Ok(()) } else { Err(Error::TransientMounts) }
}
