//! One sandbox: attach, update, events, detach.
