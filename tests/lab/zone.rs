//! What the lab's DNS servers answer. A test scripts it, also while they run.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;

/// One query that a server received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The server that it came to.
    pub server: SocketAddr,
    /// Who asked.
    pub src: SocketAddr,
    /// The name, lower case, without the trailing dot.
    pub name: String,
    /// The type.
    pub kind: RecordType,
    /// True when it came by TCP.
    pub tcp: bool,
    /// When.
    pub at: Instant,
}

/// What is known of one name.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) alias: Option<String>,
    pub(crate) strays: Vec<(String, IpAddr)>,
    pub(crate) additional: Vec<(String, IpAddr)>,
    pub(crate) ttl_s: u32,
    pub(crate) failures: usize,
    pub(crate) silent: bool,
    pub(crate) silent_for: Option<RecordType>,
    pub(crate) tcp_only: bool,
    pub(crate) delay: Duration,
}

impl Entry {
    /// A name with addresses; both families may be mixed. An empty list is a name without records.
    pub fn at(addresses: &[&str]) -> Self {
        Self {
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            alias: None,
            strays: Vec::new(),
            additional: Vec::new(),
            ttl_s: 60,
            failures: 0,
            silent: false,
            silent_for: None,
            tcp_only: false,
            delay: Duration::ZERO,
        }
    }

    /// A CNAME to another name; the answer holds the whole chain as far as the zone knows it.
    pub fn alias(target: &str) -> Self {
        Self { alias: Some(target.to_owned()), ..Self::at(&[]) }
    }

    /// TTL of its records in seconds (default 60).
    #[must_use]
    pub fn ttl(mut self, seconds: u32) -> Self {
        self.ttl_s = seconds;
        self
    }

    /// The next `times` queries get SERVFAIL; `usize::MAX` for all.
    #[must_use]
    pub fn fails(mut self, times: usize) -> Self {
        self.failures = times;
        self
    }

    /// Never answered.
    #[must_use]
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// Never answered where this type is asked for.
    #[must_use]
    pub fn silent_for(mut self, kind: RecordType) -> Self {
        self.silent_for = Some(kind);
        self
    }

    /// Answered after `delay`.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// By UDP only an empty truncated answer.
    #[must_use]
    pub fn tcp_only(mut self) -> Self {
        self.tcp_only = true;
        self
    }

    /// Adds an address record of another owner to the answer section.
    #[must_use]
    pub fn stray(mut self, owner: &str, address: &str) -> Self {
        self.strays.push((owner.to_owned(), address.parse().expect("an address")));
        self
    }

    /// Adds an address record of another owner to the additional section.
    #[must_use]
    pub fn additional(mut self, owner: &str, address: &str) -> Self {
        self.additional.push((owner.to_owned(), address.parse().expect("an address")));
        self
    }
}

/// The zone that all of a lab's servers share, and the log of what they were asked.
#[derive(Clone, Debug, Default)]
pub struct Zone(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    queries: Vec<Query>,
}

impl Zone {
    /// Replaces what is known of `name`.
    pub fn put(&self, name: &str, entry: Entry) {
        self.0.lock().expect("zone").entries.insert(key(name), entry);
    }

    /// Forgets `name`: NXDOMAIN from now on.
    pub fn remove(&self, name: &str) {
        self.0.lock().expect("zone").entries.remove(&key(name));
    }

    /// Every query so far, in order.
    pub fn queries(&self) -> Vec<Query> {
        self.0.lock().expect("zone").queries.clone()
    }

    /// The queries for `name` itself.
    pub fn queries_for(&self, name: &str) -> Vec<Query> {
        let name = key(name);
        self.queries().into_iter().filter(|query| query.name == name).collect()
    }

    pub(crate) fn log(&self, query: Query) {
        self.0.lock().expect("zone").queries.push(query);
    }

    pub(crate) fn get(&self, name: &str) -> Option<Entry> {
        self.0.lock().expect("zone").entries.get(&key(name)).cloned()
    }

    /// Takes one of the failures that `name` has left.
    pub(crate) fn takes_failure(&self, name: &str) -> bool {
        let mut inner = self.0.lock().expect("zone");
        let Some(entry) = inner.entries.get_mut(&key(name)) else { return false };
        let fails = entry.failures > 0;
        entry.failures = entry.failures.saturating_sub(1);
        fails
    }
}

pub(crate) fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}
