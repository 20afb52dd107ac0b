//! Program sets that stay loaded between sandboxes: asked for by hand, and then kept by those who use them.

use super::{Directories, build::build, error::Error, nesting::refuse_transient_mounts, seat::Set, undo::end_of_pins};
use crate::datapath::{bpffs::PinRoot, kept::Kept, state_dir::StateDir};

/// Loads program sets until so many wait for sandboxes below these directories, and from then on has every sandbox leave its set
/// to the next one while fewer wait; 0 unloads them. A set is loaded anew after sixteen sandboxes.
///
/// A sandbox takes a set whose policy has no more than 128 rules, 256 networks and 256 addresses; where none waits, one is loaded as
/// ever. Whoever serves a sandbox to its end leaves its set; one that another process ends is unloaded. Nothing of a
/// sandbox is in the slot of the next one, for no slot is given twice.
///
/// # Errors
/// [`Error::TransientMounts`], [`Error::Load`]; those that wait already stay.
pub fn preload(directories: &Directories, sets: u32) -> Result<(), Error> {
    refuse_transient_mounts()?;
    let state = StateDir::open(&directories.state)?;
    let turn = state.lock()?;
    let root = PinRoot::open(&directories.pin, &turn)?;
    let done = keep(directories, &root, sets);
    end_of_pins(directories, root, turn);
    done
}

fn keep(directories: &Directories, root: &PinRoot, sets: u32) -> Result<(), Error> {
    if sets == 0 {
        return Kept::find(root)?.map_or(Ok(()), |kept| Ok(kept.end()?));
    }
    let kept = Kept::set(root, sets)?;
    let waiting = kept.waiting(build().object)?;
    let (stay, surplus) = waiting.split_at(waiting.len().min(sets as usize));
    surplus.iter().try_for_each(|waiting| kept.remove(waiting))?;
    let loaded = (stay.len()..sets as usize).try_for_each(|_| Set::preload(&kept, directories));
    if loaded.is_err() && kept.waiting(build().object)?.is_empty() {
        kept.end()?;
    }
    loaded
}
