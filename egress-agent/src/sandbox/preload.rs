//! Program sets that stay loaded between sandboxes: asked for by hand, and then kept by those who use them.

use super::{
    Directories, build::kept_by, error::Error, nesting::refuse_transient_mounts, record::Record, seat::Set,
    undo::end_of_pins,
};
use crate::datapath::{bpffs::PinRoot, kept::Kept, state_dir::StateDir};

/// Loads program sets until so many wait for sandboxes below these directories, and from then on has every sandbox leave its set
/// to the next one while fewer wait; 0 unloads them. A set is loaded anew after sixteen sandboxes.
///
/// A sandbox takes a set whose policy has no more than 64 rules, 128 networks and 128 addresses; where none waits, one is loaded as
/// ever. Whoever serves a sandbox to its end leaves its set; one that another process ends is unloaded. Nothing of a
/// sandbox is in the slot of the next one, for no slot is given twice.
///
/// # Errors
/// [`Error::TransientMounts`], [`Error::Load`], [`Error::NotKept`]. As many are kept then as before; those that wait stay.
pub fn preload(directories: &Directories, sets: u32) -> Result<(), Error> {
    refuse_transient_mounts()?;
    let state = StateDir::open(&directories.state)?;
    let turn = state.lock()?;
    let root = match PinRoot::open(&directories.pin, &turn) {
        Ok(root) => root,
        Err(error) => {
            if Record::all(directories)?.is_empty() {
                turn.remove()?;
            }
            return Err(error.into());
        }
    };
    let done = keep(directories, &root, sets);
    end_of_pins(directories, root, turn);
    done
}

fn keep(directories: &Directories, root: &PinRoot, sets: u32) -> Result<(), Error> {
    let before = Kept::find(root)?;
    if sets == 0 {
        return before.map_or(Ok(()), |kept| Ok(kept.end()?));
    }
    let kept = Kept::set(root, sets)?;
    let waiting = kept.waiting(&kept_by())?;
    let (stay, surplus) = waiting.split_at(waiting.len().min(sets as usize));
    surplus.iter().try_for_each(|waiting| kept.remove(waiting))?;
    let loaded = (stay.len()..sets as usize).try_for_each(|_| Set::preload(&kept, directories));
    if loaded.is_err() {
        match before {
            None => kept.end()?,
            Some(before) => {
                let kept = Kept::set(root, before.most)?;
                // Takes away what was not finished.
                drop(kept.waiting(&kept_by())?);
            }
        }
    }
    loaded
}
