//! Messages from clients. The first octet chooses the transport.
#![no_main]

use egress_agent::dns::fuzzing::FromClient;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    static CLIENT: RefCell<FromClient> = RefCell::new(FromClient::new());
}

fuzz_target!(|data: &[u8]| {
    if let Some((transport, message)) = data.split_first() {
        CLIENT.with_borrow_mut(|client| client.receive(message, transport & 1 == 1));
    }
});
