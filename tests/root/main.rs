//! Tests that need root: a real kernel, real clients, and servers in network namespaces of their own.
//! One module a topic; tests/README.md says what each shows and which production line it stands for.

#![allow(
    unreachable_pub,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::format_collect,
    clippy::format_push_string,
    clippy::redundant_closure_for_method_calls,
    clippy::result_large_err,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "everything here is a test or is called by tests alone"
)]

mod adopt;
mod agents;
mod apart;
mod attach;
mod bad_input;
mod bypass;
mod clients;
mod device;
mod dns;
mod ends;
mod escape;
mod flood;
mod foreign;
mod guest;
mod headers;
mod job;
mod kernel;
mod lab;
mod levels;
mod library;
mod names;
mod net;
mod own;
mod parity;
mod pins;
mod platform;
mod preload;
mod rate;
mod readme;
mod refusals;
mod reload;
mod run;
mod sockets;
mod together;
mod verbs;
mod verify;
