//! What people see: events, counters, and the line that says how to allow what was denied.
//!
//! Everything here is made from what the kernel and the DNS half report; nothing here decides. Only [`sink`] and [`tail`]
//! touch files, and no function reads a clock: the time comes with the report.

pub mod counters;
pub mod dns_event;
pub mod escape;
pub mod event;
pub mod fold;
pub mod hosts;
pub mod names;
pub mod permits_file;
pub mod sink;
pub mod suggest;
pub mod tail;

mod advice;

pub use event::{Event, Resolver, Subject};
pub use sink::{AsyncEvents, EventSink, Events};
pub use suggest::Summary;
