//! One sandbox: attach, update, events, detach. What the command line does, it does through here.

mod adopt;
mod apply;
mod attach;
mod bandwidth;
mod build;
mod builder;
mod claim;
mod cut;
mod devices;
mod directories;
mod end;
mod error;
mod explain;
mod following;
mod learned;
mod level;
mod live;
mod looked;
mod names;
pub mod needs;
mod nesting;
mod permits;
mod plan;
mod preload;
mod record;
mod recover;
mod reporter;
mod ring;
mod room;
mod seat;
mod sent;
mod sharing;
mod sleep;
mod status;
mod target;
mod undo;
mod view;

pub use bandwidth::{BandwidthStatus, How, LimitStatus};
pub use build::{Build, build};
pub use builder::Builder;
pub use directories::Directories;
pub use end::detach;
pub use error::Error;
pub use explain::{Explanation, explain};
pub use live::{Released, Sandbox};
pub use preload::preload;
pub use sent::Sent;
pub use status::{HookStatus, MapUse, Status, directory, event_files, list};
pub use target::Which;
pub(crate) use view::{DeviceView, View, view};

pub use crate::level::{Level, Reached, UnknownLevel};

use crate::{
    compile::{Facts, Limits, RuleIds, compile},
    policy::Policy,
};

/// The most that a sandbox's maps are made for. Rules have 16 bits in a verdict.
pub(crate) const MOST: Limits = Limits { rules: 32_768, networks: 1 << 20, permits: 1 << 20 };

/// The slot of images that nobody gets.
const NOBODY: u32 = 0;

/// Compiles without touching the kernel.
///
/// # Errors
/// A policy that cannot be enforced whole, by the figure that is exceeded.
pub fn check(policy: &Policy) -> Result<(), Error> {
    compile(policy, &Facts::default(), NOBODY, &mut RuleIds::new(0..u32::MAX), MOST)?;
    Ok(())
}
