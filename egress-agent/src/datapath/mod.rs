//! What the kernel holds and how it is reached: network namespaces, devices, addresses, the bpffs, sockets, maps and links.

pub mod addresses;
pub mod bpffs;
pub mod device;
mod link;
pub mod listeners;
mod netlink;
pub mod netns;
mod own_path;
mod pair;
pub mod sock_diag;
pub mod sockets;
mod sockopt;
pub mod state_dir;
mod watch;

pub use netlink::NetlinkError;
pub use own_path::PathError;
