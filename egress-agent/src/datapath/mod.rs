//! What the kernel holds and how it is reached: programs, links, maps and pins (the only module that names aya), network
//! namespaces, devices, addresses, the bpffs and sockets.

pub mod addresses;
pub(crate) mod attach;
mod bpf;
pub mod bpffs;
mod btf;
pub(crate) mod detach;
pub mod device;
pub(crate) mod foreign;
pub mod ground;
pub(crate) mod kept;
mod link;
pub mod listeners;
pub mod load;
mod load_error;
mod netlink;
pub mod netns;
mod own_path;
mod pair;
#[doc(hidden)]
pub mod probe;
pub(crate) mod rate;
pub(crate) mod records;
pub mod resolver;
pub(crate) mod shape;
pub mod sock_diag;
pub mod sockets;
pub(crate) mod sockopt;
pub mod state_dir;
mod stations;
mod table_error;
pub(crate) mod tables;
pub(crate) mod tc;
pub(crate) mod test_run;
pub(crate) mod unix;
mod watch;

pub use netlink::NetlinkError;
pub use own_path::PathError;
