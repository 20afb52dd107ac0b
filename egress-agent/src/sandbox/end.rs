//! `egressd detach`: the only end that opens a populated cgroup.

use super::{Directories, error::Error, live::take_down, record::Record};
use std::path::Path;

/// Opens the sandbox of a cgroup, given as a path below the mount or as the kernel names it. Whoever serves it notices and
/// ends.
pub fn detach(directories: &Directories, cgroup: &Path) -> Result<(), Error> {
    let record = Record::of(directories, Some(cgroup))?;
    take_down(directories, &record, None)
}
