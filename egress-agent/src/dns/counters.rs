//! Numbers for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident),+ $(,)?) => {
        /// Live counters of one server.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)+
        }

        /// What a server has done since its start.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Messages from clients, over UDP and TCP.
    received,
    /// Shorter than a header; not answered.
    short,
    /// Responses where a query was expected; not answered.
    responses,
    /// FORMERR, NOTIMP, REFUSED, BADVERS: malformed, or of a kind that is not served.
    refused,
    /// Names that the policy does not allow.
    denied,
    /// Questions that were taken to an upstream, renewals included.
    forwarded,
    /// Questions that were answered from the cache at once.
    cached,
    /// Questions for new names below a wildcard that were kept back.
    tunnels,
    /// Questions that no upstream answered usably.
    failed,
    /// Of these: messages that could not be decoded.
    malformed,
    /// Answers whose addresses were permitted.
    permitted,
    /// Addresses taken out of answers.
    filtered,
    /// Queries beyond the budget that were refused.
    over_budget,
    /// Queries beyond the budget that were not answered.
    dropped,
    /// Answers that could not be sent.
    unsent,
}

/// One number.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}
