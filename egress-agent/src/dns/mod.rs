//! The name half: the sandbox's only resolver.
//!
//! Every query of the sandbox is redirected to a [`Server`], which asks the policy ([`Names`]) first, an upstream second,
//! writes the addresses into the kernel's map ([`Permits`]) third, and answers last. So no client ever knows an address
//! that the kernel does not yet admit, and nothing that the client wrote reaches upstream but an allowed name and A or AAAA.
//!
//! A message runs through: `serve`/`stream` (sockets) -> `wire` (form) -> `gate` (policy) -> `cache`, or else `tunnel`
//! (budget) -> `resolve`: `flights` -> `upstream` -> `exchange` -> `answer` (chain to addresses) -> cache. What is known goes
//! through `publish`: `rebinding` (filter) -> permits -> `reply` (octets).

mod ahead;
mod answer;
mod beat;
mod budget;
mod cache;
mod clock;
mod config;
mod counters;
mod derived;
#[cfg(feature = "encrypted-upstream")]
mod encrypted;
#[cfg(not(feature = "encrypted-upstream"))]
#[path = "encrypted_absent.rs"]
mod encrypted;
mod event;
mod exchange;
mod flights;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod lifetime;
mod name;
mod permits;
mod publish;
mod rebinding;
mod relay;
mod reply;
mod resolv_conf;
mod resolve;
mod responder;
mod serve;
mod server;
mod services;
mod sockets;
mod special;
mod stream;
mod tunnel;
mod twins;
mod upstream;
mod wire;

pub use config::{Config, DnsError, Listeners, NotResolved, Problem, Unresolved};
pub use counters::Counts;
pub use event::{Client, Clients, Denial, DnsEvent, DnsEvents, Reason};
pub use exchange::UpstreamError;
pub use name::{Labels, Name, NameError};
pub use permits::{NameVerdict, Names, PermitError, Permits, Written};
pub use rebinding::{Answers, Protected, is_public};
pub use resolv_conf::host_servers;
pub use server::{Server, rehearse};

#[cfg(test)]
mod tests;
