//! `run`: a command in a cgroup of its own, with nothing that it could get around the enforcement by.
//!
//! The order of calls is what makes it safe. Everything up to `spawn` can fail without CMD having run:
//!
//! 1. [`Signals::take`], before any thread exists;
//! 2. [`KeptFds::check`], before egressd opens anything;
//! 3. [`identity()`], [`KeptCaps::parse`], [`environment()`];
//! 4. [`Cgroup::create_child`](crate::cgroup::Cgroup::create_child), then attach the policy to it: closed from here on;
//! 5. [`Signals::check_before_start`], then [`spawn()`]: CMD in a pid namespace and a mount namespace of its own;
//! 6. [`Child::wait`], then [`Child::end`]: nobody is left in the cgroup;
//! 7. detach, then [`Cgroup::remove`](crate::cgroup::Cgroup::remove).
//!
//! On every other way out the child is dropped, which ends the cgroup too. If [`Child::end`] fails, do not detach: an end
//! never opens.

mod capability;
mod child;
mod descriptors;
mod environment;
mod error;
mod follow;
mod identity;
mod level;
mod masks;
mod seccomp;
mod shares;
mod signals;
mod spawn;
mod terminal;

pub(crate) use child::{Born, Failure, arrive, bear};

pub use capability::KeptCaps;
pub use descriptors::KeptFds;
pub use environment::{Variable, environment, parse_variable};
pub use error::{FdKind, RunError, Step};
pub use follow::{Child, END_LIMIT, Exit, KILL_AFTER, Limits};
pub use identity::{Account, Accounts, Caller, HostAccounts, Identity, IdentityError, identity};
pub use level::{Footing, Missing, level};
pub use shares::Shares;
pub use signals::Signals;
pub use spawn::{Command, spawn};
