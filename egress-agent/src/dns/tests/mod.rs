//! The whole path over loopback sockets: a client, a server, scripted upstreams.

mod ahead;
mod caching;
mod chains;
mod fuzz;
pub(super) mod lab;
mod observing;
mod reload;
pub(super) mod scripted;
mod serving;
mod streams;
mod suffixes;
mod trust;
mod tunnels;
