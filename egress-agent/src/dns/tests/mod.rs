//! The whole path over loopback sockets: a client, a server, scripted upstreams.

mod lab;
mod serving;
mod trust;
