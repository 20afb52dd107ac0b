//! [`Policy`] and [`Facts`] -> [`Image`], and from one image to the next. Pure: no maps, no clock.

mod build;
mod cover;
mod diff;
mod explain;
mod facts;
mod ids;
mod image;
mod prefix;
mod tables;

pub use build::{CompileError, Limits, compile};
pub use diff::{Change, diff, undo};
pub use explain::{Origin, RuleText};
pub use facts::Facts;
pub use ids::RuleIds;
pub use image::{Image, Settings};
pub use prefix::Prefix;
pub use tables::ImageTables;

#[cfg(doc)]
use crate::policy::Policy;
#[cfg(test)]
mod tests;
