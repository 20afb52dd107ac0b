//! Messages from upstreams, whose id and question were found to match.
#![no_main]

use egress_agent::dns::fuzzing::FromUpstream;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    static UPSTREAM: RefCell<FromUpstream> = RefCell::new(FromUpstream::new());
}

fuzz_target!(|data: &[u8]| {
    UPSTREAM.with_borrow_mut(|upstream| upstream.receive(data));
});
